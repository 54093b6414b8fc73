"""The RPN's head, with a gradient only where the RPN learned.

It tells of every cell of every level, and learns from 256 anchors an image at most (Faster R-CNN,
1506.01497, section 3.1.3): all other cells' gradient is exactly 0. Counting with it took a sixth of
a training step on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.models.detection.rpn import RPNHead


def rpn_head(channels: int, anchors: int, convolutions: int) -> Any:
    """torchvision's RPNHead: the same values, gradients, parameters and names of them."""
    head: Any = RPNHead(channels, anchors, conv_depth=convolutions)
    for block in head.conv:
        drawn = block[0]
        block[0] = _SparseConv2d(channels, channels, drawn.kernel_size, padding=drawn.padding)
        block[0].weight, block[0].bias = drawn.weight, drawn.bias
    return head


class _SparseConv2d(nn.Conv2d):
    """A convolution of stride 1, whose gradient is computed at the cells alone that have one."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)  # a GPU does all cells in less time than it takes to find few
        assert self.bias is not None
        convolved: Tensor = _SparseConvolution.apply(x, self.weight, self.bias, self.padding)
        return convolved


class _SparseConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        (outputs, inputs, *kernel), (above, left) = weight.shape, ctx.padding
        padded = F.pad(x, (left, left, above, above)).permute(0, 2, 3, 1)
        image, row, column = (gradient != 0).any(1).nonzero(as_tuple=True)
        own = gradient[image, :, row, column].to(weight.dtype)
        down, across = (torch.arange(side) for side in kernel)
        seen = (
            image[:, None, None],
            row[:, None, None] + down[:, None],
            column[:, None, None] + across,
        )
        patches = padded[seen].flatten(1).to(weight.dtype)
        weight_gradient = (own.T @ patches).view(outputs, *kernel, inputs).permute(0, 3, 1, 2)
        spread = (own @ weight.permute(0, 2, 3, 1).flatten(1)).view(-1, *kernel, inputs)
        total = spread.new_zeros(padded.shape).index_put_(seen, spread, accumulate=True)
        within = total[:, above : above + x.shape[2], left : left + x.shape[3]]
        return within.permute(0, 3, 1, 2).to(x.dtype), weight_gradient, own.sum(0), None
