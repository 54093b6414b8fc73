"""The small networks that timm has no name for, under a name that its train.py takes.

`python train.py --device-modules timm_nets --model skipway_resnet20 …`, with this folder on
PYTHONPATH. The ResNet-20 is ours, the ResNet-18 timm's own with a 3x3 stem and no pool.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model
from torch import nn

from skipway import create_model


@register_model
def skipway_resnet20(
    num_classes: int = 10, in_chans: int = 3, pretrained: bool = False, **_: Any
) -> nn.Module:
    """ResNet-20 for 32 px, the paper's."""
    return create_model("resnet20", num_classes=num_classes, in_channels=in_chans)


@register_model
def skipway_resnet18_cifar(pretrained: bool = False, **fields: Any) -> nn.Module:
    """timm's ResNet-18 with the stem for 32 px."""
    fields = {name: value for name, value in fields.items() if not name.startswith("pretrained")}
    net = timm.create_model("resnet18", **fields)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return net
