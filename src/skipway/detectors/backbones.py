"""A residual network's stages as what detectors' heads read: a feature pyramid, or the C4 form.

Sources: FPN 1612.03144; He et al. 2015, 1512.03385, appendix A, "2015"; He et al. 2016, 1603.05027,
"2016".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from skipway.errors import InputError
from skipway.heads import DetectorConfig
from skipway.norms import RoIBatchNorm, group_norm
from skipway.resnet import ResNet, as_read, recomputed


def through(body: ResNet, stages: Sequence[nn.Sequential], x: Tensor) -> Tensor:
    """x after the units of some stages of a network."""
    for stage in stages:
        for unit in stage:
            x = recomputed(unit, x) if body.arch.checkpointing and body.training else unit(x)
    return x


def head_norm(config: DetectorConfig) -> Callable[[int], nn.Module] | None:
    """The norm of pyramid and RoI heads: version 2 alone has one."""
    if config.version == 1:
        return None
    return group_norm if config.norm == "group" else RoIBatchNorm


class Pyramid(nn.Module):
    """The stages from `finest` on as levels of a feature pyramid, by "0", "1", …

    Further levels, each half as large: one for the RPN by sub-sampling (FPN, section 4.1), two for
    RetinaNet and FCOS by convolutions, from the pyramid's coarsest level or, in version 2, from the
    last stage.
    """

    def __init__(self, body: ResNet, config: DetectorConfig) -> None:
        super().__init__()
        self.body = body
        self.out_channels = config.channels
        names = list(body.strides)
        finest = config.finest or ("c3" if config.one_stage and "c3" in names else "c2")
        if finest not in names:
            raise InputError(f"finest: this network has no {finest}; it ends with {names[-1]}")
        self.stages = names[names.index(finest) :]
        self.pooled = [body.strides[name] for name in self.stages]
        """Strides of the levels that RoIs are pooled from."""
        last = self.pooled[-1]
        channels = [body.channels[name] for name in self.stages]
        extra: Any = LastLevelMaxPool()
        self.strides = [*self.pooled, 2 * last]
        if config.one_stage:
            source = channels[-1] if config.version == 2 else config.channels
            extra = LastLevelP6P7(source, config.channels)
            extra.use_P5 = config.version == 1
            self.strides.append(4 * last)
        norm = None if config.one_stage else head_norm(config)
        self.fpn = FeaturePyramidNetwork(channels, config.channels, extra, norm)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body.features(x)
        maps = [as_read(self.body, name, features[name]) for name in self.stages]
        return self.fpn(OrderedDict((str(i), x) for i, x in enumerate(maps)))


class AllButLast(nn.Module):
    """The last stage but one, as "0", for the C4 form (2015, appendix A)."""

    def __init__(self, body: ResNet) -> None:
        super().__init__()
        if len(body.strides) == 1:
            raise InputError("neck: c4 needs a network of two stages at least")
        self.body = body
        self.name = list(body.strides)[-2]
        self.out_channels = body.channels[self.name]
        self.pooled = self.strides = [body.strides[self.name]]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        body = self.body
        return {"0": through(body, body.stages()[:-1], body.maxpool(body.stem(x)))}


class LastStage(nn.Module):
    """The last stage on each RoI (2015, appendix A): [R, C, 14, 14] to [R, D, 7, 7], or with `mean`
    to their averages [R, D].

    It is the backbone's own, which keeps its parameters and their names.
    """

    def __init__(self, body: ResNet, mean: bool) -> None:
        super().__init__()
        self.shared = (body,)  # in a tuple, no child: its parameters are in the state dict once
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        (body,) = self.shared
        if len(x):
            x = through(body, body.stages()[-1:], x)
            if body.arch.order == "pre":
                x = F.relu(body.norm(x))
        else:  # statistics are left alone
            x = x.new_zeros(0, list(body.channels.values())[-1], 7, 7)
        return x.mean((2, 3)) if self.mean else x
