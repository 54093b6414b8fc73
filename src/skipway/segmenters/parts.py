"""What makes logits of a network's maps: FCN, DeepLabV3, DeepLabV3+ and U-Net.

A head is called with maps [N, C, h, w] by the names of their stages, of which it needs `reads`, and
gives logits [N, classes, h, w] at the size of the finest of these.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.heads import SegmenterConfig
from skipway.resnet import ResNet
from skipway.segmenters.dilation import Dilated

STEM = "stem"
"""The name of what the stem puts out before its max-pool."""
_LOW_LEVEL = 48
"""Channels of DeepLabV3+'s finer map (1802.02611, section 4.1)."""


def resized(x: Tensor, size: torch.Size) -> Tensor:
    """[N, C, h, w] to the height and width that `size` ends with, bilinear."""
    if x.shape[2:] == size[2:]:
        return x
    return F.interpolate(x, size[2:], mode="bilinear", align_corners=False)


def layers(inputs: int, outputs: int, kernel: int = 3, rate: int = 1) -> list[nn.Module]:
    """A convolution that keeps height and width, batch norm and ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    if rate > 1:
        conv = Dilated(inputs, outputs, rate)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def names(body: ResNet) -> list[str]:
    """The stages, from the finest to the coarsest."""
    return list(body.strides)


class OnStage(nn.Sequential):
    """Layers on the map of one stage."""

    def __init__(self, stage: str, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.reads = (stage,)

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        x = maps[self.reads[0]]
        for module in self:
            x = module(x)
        return x


def fcn(body: ResNet, stage: str, classes: int) -> OnStage:
    """FCN (1411.4038) on one stage, without finer ones; as torchvision has it, with a 3x3 to a
    quarter of the channels before the classifier."""
    channels = body.channels[stage]
    inner = max(channels // 4, 1)
    last = nn.Conv2d(inner, classes, 1)
    return OnStage(stage, *layers(channels, inner), nn.Dropout(0.1), last)


def deeplabv3(body: ResNet, config: SegmenterConfig, classes: int) -> OnStage:
    """DeepLabV3 (1706.05587, section 3.3), with torchvision's 3x3 before the classifier."""
    width = config.channels
    last = nn.Conv2d(width, classes, 1)
    return OnStage(names(body)[-1], Pyramid(body, config), *layers(width, width), last)


class OfImage(nn.Sequential):
    """The mean of a map, through a 1x1, on each of its pixels (1706.05587, section 3.3)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *layers(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        pool, conv, norm, relu = self
        y = conv(pool(x))
        if len(y) == 1 and norm.training and type(norm) is nn.BatchNorm2d:
            # One value has no statistics: the running ones serve. (A norm that is synchronised over
            # processes is of another type, and sees their images too.)
            mean, variance = norm.running_mean, norm.running_var
            y = F.batch_norm(y, mean, variance, norm.weight, norm.bias, eps=norm.eps)
        else:
            y = norm(y)
        return resized(relu(y), x.shape)


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling of the last stage (1706.05587, section 3.3): [N, C, h, w] to
    [N, config.channels, h, w]."""

    def __init__(self, body: ResNet, config: SegmenterConfig) -> None:
        super().__init__()
        last, width = names(body)[-1], config.channels
        inputs, stride = body.channels[last], max(body.strides[last], 8)
        rates = [max(rate * 16 // stride, 1) for rate in config.rates]
        branches = [nn.Sequential(*layers(inputs, width, 1))]
        branches += [nn.Sequential(*layers(inputs, width, rate=rate)) for rate in rates]
        self.convs = nn.ModuleList([*branches, OfImage(inputs, width)])
        self.project = nn.Sequential(*layers(len(self.convs) * width, width, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        together: Tensor = self.project(torch.cat([branch(x) for branch in self.convs], 1))
        return together


class DeepLabV3Plus(nn.Module):
    """DeepLabV3's pyramid, refined at the size of the first stage (1802.02611, section 3.1)."""

    def __init__(self, body: ResNet, config: SegmenterConfig, classes: int) -> None:
        super().__init__()
        first, last, width = names(body)[0], names(body)[-1], config.channels
        self.reads = (first, last)
        self.pyramid = Pyramid(body, config)
        self.low = nn.Sequential(*layers(body.channels[first], _LOW_LEVEL, 1))
        self.refine = nn.Sequential(*layers(width + _LOW_LEVEL, width), *layers(width, width))
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        first, last = self.reads
        low = self.low(maps[first])
        found = resized(self.pyramid(maps[last]), low.shape)
        logits: Tensor = self.classify(self.refine(torch.cat((found, low), 1)))
        return logits


class UNet(nn.Module):
    """The decoder of 1505.04597 (section 2) on a residual network: from stage to finer stage, and
    to the stem where that is finer still.

    Each step resizes what it has to the finer map, appends that, and convolves twice. Convolutions
    are padded, so nothing is cropped, and any size of input will do. It resizes bilinearly: to
    repeat pixels takes 4/5 of that, a hundredth of a step, and leaves blocks to smooth.
    """

    def __init__(self, body: ResNet, config: SegmenterConfig, classes: int) -> None:
        super().__init__()
        stem = 2 if body.arch.stem_stride > 1 else 1
        levels = {stem: STEM} | {stride: name for name, stride in body.strides.items()}
        channels = {STEM: body.arch.stem_channels} | body.channels
        inputs, steps = channels[names(body)[-1]], []
        self.reads = tuple(levels[stride] for stride in sorted(levels, reverse=True))
        for stride in sorted(levels, reverse=True)[1:]:
            width = config.widths[max(5 - stride.bit_length(), 0)]
            skipped = channels[levels[stride]]
            steps.append(nn.Sequential(*layers(inputs + skipped, width), *layers(width, width)))
            inputs = width
        self.steps = nn.ModuleList(steps)
        self.classify = nn.Conv2d(inputs, classes, 1)

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        coarsest, *finer = self.reads
        x = maps[coarsest]
        for name, step in zip(finer, self.steps, strict=True):
            x = step(torch.cat((resized(x, maps[name].shape), maps[name]), 1))
        logits: Tensor = self.classify(x)
        return logits


def head(body: ResNet, config: SegmenterConfig, classes: int) -> OnStage | DeepLabV3Plus | UNet:
    """The head of that configuration. Raises InputError where the network is too short for it."""
    if config.head == "unet":
        return UNet(body, config, classes)
    if config.head == "deeplabv3plus":
        if len(body.strides) == 1:
            raise InputError("segmenter.head: deeplabv3plus needs a network of two stages at least")
        return DeepLabV3Plus(body, config, classes)
    if config.head == "deeplabv3":
        return deeplabv3(body, config, classes)
    return fcn(body, names(body)[-1], classes)


def auxiliary(body: ResNet, classes: int) -> OnStage:
    """An FCN head on the last stage but one. Raises InputError where there is none."""
    if len(body.strides) == 1:
        raise InputError("segmenter.auxiliary: needs a network of two stages at least")
    return fcn(body, names(body)[-2], classes)
