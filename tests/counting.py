"""Parameters and multiply-adds counted by building a network and running it without memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from skipway.architecture import Architecture
from skipway.resnet import ResNet


def counted(arch: Architecture) -> tuple[int, int]:
    """Learnable parameters, and multiply-adds of convolutions and classifier for one image.

    At the native size; batch norm, ReLU, pooling and addition are not counted, as in 2015,
    Table 1. Nothing is allocated.
    """
    with torch.device("meta"):
        net = ResNet(arch).eval()
        x = torch.empty(1, arch.in_channels, arch.input_size, arch.input_size)
    macs = 0

    def add(module: nn.Module, _: Any, y: Tensor) -> None:
        nonlocal macs
        weight = module.get_parameter("weight")
        macs += weight.numel() * (y.numel() // weight.shape[0])

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(add)
        elif isinstance(module, nn.BatchNorm2d):  # keeps the shape, and is slow without data
            module.__dict__["forward"] = nn.Identity().forward
    net(x)
    return sum(p.numel() for p in net.parameters()), macs
