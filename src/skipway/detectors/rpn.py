"""The RPN's head, with a gradient only where the RPN learned.

It tells of every cell of every level, and learns from 256 anchors an image at most (Faster R-CNN,
1506.01497, section 3.1.3): all other cells' gradient is exactly 0.
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
        shape = {"kernel_size": drawn.kernel_size, "padding": drawn.padding}
        # without storage it draws no numbers, so that a seed gives what torchvision's gives
        block[0] = _SparseConv2d(channels, channels, **shape, device="meta")
        block[0].weight, block[0].bias = drawn.weight, drawn.bias
    return head


class _SparseConv2d(nn.Conv2d):
    """A convolution of stride 1 with a bias, whose gradient is computed at those cells alone that
    have one, in memory of kernel size x channels for each of them."""

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
    def backward(
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        (outputs, inputs, *kernel), (above, left) = weight.shape, ctx.padding
        image, row, column = (gradient != 0).any(1).nonzero(as_tuple=True)
        own = gradient[image, :, row, column].to(weight.dtype)
        height, width = x.shape[2] + 2 * above, x.shape[3] + 2 * left
        down, across = (torch.arange(side) for side in kernel)
        rows = (image * height + row)[:, None, None] + down[:, None]
        seen = (rows * width + column[:, None, None] + across).flatten()
        x_gradient = weight_gradient = None
        if of_weight:
            padded = F.pad(x, (left, left, above, above)).permute(0, 2, 3, 1).reshape(-1, inputs)
            patches = padded[seen].view(len(own), weight[0].numel()).to(weight.dtype)
            by_place = (own.T @ patches).view(outputs, *kernel, inputs)
            weight_gradient = by_place.permute(0, 3, 1, 2)
        if of_x:
            spread = (own @ weight.permute(0, 2, 3, 1).flatten(1)).view(-1, inputs)
            total = spread.new_zeros(len(x) * height * width, inputs)
            total.index_add_(0, seen, spread)  # index_put_ adds in any order with several threads
            total = total.view(len(x), height, width, inputs)
            within = total[:, above : above + x.shape[2], left : left + x.shape[3]]
            x_gradient = within.permute(0, 3, 1, 2).to(x.dtype)
        return x_gradient, weight_gradient, own.sum(0) if of_bias else None, None
