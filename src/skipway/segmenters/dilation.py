"""Stages that keep their size: dilated in place of strided (1706.05587, section 3.1).

A network's output stays what it was on every pixel that its strides would have kept, and the pixels
between are computed alike; only squeeze-and-excitation sees them all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.resnet import ResNet, Unit, ZeroPad


class Dilated(nn.Conv2d):
    """A 3x3 convolution whose taps are `rate` pixels apart; height and width stay.

    Under autocast on a CPU it computes in float32: PyTorch's kernels for bfloat16 dilate many times
    more slowly (pytorch issue 183815).
    """

    def __init__(self, inputs: int, outputs: int, rate: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, padding=rate, dilation=rate, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)


class Unstrided(nn.Module):
    """A 2x2 pool without its stride: each pixel with those `rate` pixels to the right and below,
    as far as there are any; height and width stay."""

    def __init__(self, mean: bool, rate: int) -> None:
        super().__init__()
        self.mean, self.rate = mean, rate

    def forward(self, x: Tensor) -> Tensor:
        for side in (2, 3):
            whole = x.shape[side]
            alone = min(self.rate, whole)  # pixels without a neighbour
            inner = whole - alone
            neighbour = torch.cat(
                (x.narrow(side, alone, inner), x.narrow(side, inner, alone)), side
            )
            x = (x + neighbour) / 2 if self.mean else torch.maximum(x, neighbour)
        return x


def dilate(body: ResNet, output_stride: int) -> None:
    """Dilate the stages that go beyond a stride. Parameters and their names stay.

    Bottlenecks that stride in their 3x3 become what torchvision's `replace_stride_with_dilation`
    makes of them. Raises InputError for a network that blurs where it sub-samples.
    """
    rate = 1
    for name, stage in zip(body.strides, body.stages(), strict=True):
        if body.strides[name] > output_stride:
            if body.arch.antialias:
                raise InputError(
                    "output_stride: a network with antialias does not dilate; give 32, or head unet"
                )
            for unit in stage:
                assert isinstance(unit, Unit)
                rate = _dilate(unit, rate)
            body.strides[name] //= rate


def _dilate(unit: Unit, rate: int) -> int:
    """Take the stride from a unit of a stage where taps are to be `rate` pixels apart; what they
    are to be behind it."""
    behind = rate
    for name, conv in list(unit.named_children()):
        if not isinstance(conv, nn.Conv2d):
            continue
        step = conv.stride[0]
        setattr(unit, name, _without_stride(conv, behind))
        behind *= step
        if name == "conv1" and isinstance(unit.pool, nn.MaxPool2d):
            unit.pool = Unstrided(mean=False, rate=behind)
            behind *= 2
    if isinstance(unit.downsample, ZeroPad):
        unit.downsample.stride = 1
    elif isinstance(unit.downsample, nn.Sequential):
        for i, layer in enumerate(unit.downsample):
            if isinstance(layer, nn.AvgPool2d):
                unit.downsample[i] = Unstrided(mean=True, rate=rate)
            elif isinstance(layer, nn.Conv2d):
                unit.downsample[i] = _without_stride(layer, rate)
    return behind


def _without_stride(conv: nn.Conv2d, rate: int) -> nn.Conv2d:
    conv.stride = (1, 1)
    if rate == 1 or conv.kernel_size == (1, 1):
        return conv
    with torch.device("meta"):  # its weight is there already
        dilated = Dilated(conv.in_channels, conv.out_channels, rate, conv.groups)
    dilated.weight = conv.weight
    return dilated
