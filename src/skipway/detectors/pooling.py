"""RoIAlign from the levels of a pyramid, on a CPU as a sparse matrix product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

_SAMPLES = 2
"""Points a bin along each axis (Mask R-CNN, section 3)."""


class PyramidRoIAlign(nn.Module):
    """RoIAlign from levels with these strides to size x size: [R, C, size, size] (FPN, eq. 1).

    It is torchvision's `MultiScaleRoIAlign`, but for two things. That one guesses the strides from
    the first images that it sees, and wrongly where padding makes up much of them. And on a CPU it
    runs on one thread: there each bin is the weighted sum of 16 cells instead, of all levels at
    once, and the gradient is the product with the transposed matrix. Boxes get no gradient; they
    have none in training.
    """

    def __init__(self, strides: Sequence[int], size: int) -> None:
        super().__init__()
        self.size = size
        self.names = [str(i) for i in range(len(strides))]
        self.scales = [1 / stride for stride in strides]
        self.level_of = LevelMapper(*(int(math.log2(strides[i])) for i in (0, -1)))
        self.elsewhere: Any = MultiScaleRoIAlign(self.names, size, _SAMPLES)
        self.elsewhere.scales, self.elsewhere.map_levels = self.scales, self.level_of

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        maps = [x[name] for name in self.names]
        if maps[0].device.type != "cpu":
            pooled: Tensor = self.elsewhere(x, boxes, image_shapes)
            return pooled
        index, weight = self._cells(maps, boxes)
        channels = maps[0].shape[1]
        cells = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in maps])
        bins: Tensor = _WeightedSum.apply(cells.float(), index, weight)
        shaped = bins.view(-1, self.size, self.size, channels).permute(0, 3, 1, 2)
        if maps[0].dtype == torch.float32:
            return shaped.contiguous()  # convolutions of the mask head are faster so
        return shaped.to(maps[0].dtype)

    def _cells(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Which cells make up each bin, counted through levels, images, rows and columns, and
        their weights: [R * size * size, 16]."""
        height, width = torch.tensor([level.shape[2:] for level in maps]).T
        each = height * width
        before = (each * len(boxes)).cumsum(0) - each * len(boxes)
        level = torch.zeros(sum(map(len, boxes)), dtype=torch.int64)
        if len(maps) > 1:
            level = self.level_of(list(boxes)).clamp(0, len(maps) - 1)  # one gone wrong has none
        image = torch.repeat_interleave(torch.tensor([len(own) for own in boxes]))
        corners = torch.cat([*boxes]).float() * torch.tensor(self.scales)[level, None]
        column, across = self._along(corners[:, 0], corners[:, 2], width[level])
        row, down = self._along(corners[:, 1], corners[:, 3], height[level])
        first = before[level] + image * each[level]
        row = first[:, None, None] + row * width[level, None, None]
        index = row[:, :, None, :, None] + column[:, None, :, None, :]
        weight = down[:, :, None, :, None] * across[:, None, :, None, :]
        taps = (2 * _SAMPLES) ** 2
        return index.reshape(-1, taps).int(), weight.reshape(-1, taps)

    def _along(self, low: Tensor, high: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """The cells beside each bin's points along one axis, and their weights in its average:
        [R, size, 4]."""
        bin_size = (high - low).clamp(min=1) / self.size
        points = torch.arange(self.size * _SAMPLES) / _SAMPLES + 0.5 / _SAMPLES
        at, cells = low[:, None] + points * bin_size[:, None], cells[:, None]
        inside = (at >= -1) & (at <= cells)
        at = torch.where(inside, at.clamp(min=0), 0)  # nor does what is not finite index anything
        before = at.long().minimum(cells - 1)
        after = (before + 1).minimum(cells - 1)
        share = torch.where(before < cells - 1, at - before, 0)
        index = torch.stack([before, after], dim=-1)
        weight = torch.stack([1 - share, share], dim=-1) * inside[..., None] / _SAMPLES
        shape = (len(low), self.size, 2 * _SAMPLES)
        return index.view(shape), weight.view(shape)


class _WeightedSum(torch.autograd.Function):
    """Sums of weighted rows: [N, C] by index and weight [B, T] to [B, C]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(index, weight)
        ctx.n = len(rows)
        return F.embedding_bag(index, rows, per_sample_weights=weight, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        index, weight = ctx.saved_tensors
        read, order = index.flatten().sort(stable=True)  # the order of the sums is fixed
        offsets = torch.searchsorted(read, torch.arange(ctx.n, dtype=read.dtype))
        source = order.div(index.shape[1], rounding_mode="floor")
        transposed = F.embedding_bag(
            source, gradient.contiguous(), offsets,
            per_sample_weights=weight.flatten()[order], mode="sum",
        )  # fmt: skip
        return transposed, None, None
