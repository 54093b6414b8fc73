"""Norms in the place of batch norm: frozen, group, and one that outlives a batch without an RoI."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn


class FrozenBatchNorm(nn.BatchNorm2d):
    """A batch norm that keeps statistics and weights, in training too.

    As torchvision's FrozenBatchNorm2d, with batch norm's one pass over the data in place of two,
    and bfloat16 left as it is. What freezes and frees parts of a network does not free it.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(channels, eps)
        self.train().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        super().train(False)
        return self


class RoIBatchNorm(nn.BatchNorm2d):
    """A batch norm for [RoIs, C, h, w] whose statistics outlive a batch without an RoI."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x):
            return super().forward(x)
        # weight and bias stay in the graph, as training in several processes needs
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """A group norm of at most 32 groups, as 1803.08494, with at least two channels in each."""
    groups = (g for g in range(32, 0, -1) if channels % g == 0 and channels >= 2 * g)
    return nn.GroupNorm(next(groups, 1), channels, eps)


def convert_norms(net: nn.Module, norm: str, eps: float | None = None) -> None:
    """Batch norms become frozen ones with the same state, or group norms with the same weights.

    norm: "frozen", "group", or "batch", which changes nothing. eps: None keeps each norm's own.
    """
    if norm == "batch":
        return
    for parent in list(net.modules()):
        for name, old in parent.named_children():
            if not isinstance(old, nn.BatchNorm2d):
                continue
            width, small = old.num_features, old.eps if eps is None else eps
            new = group_norm(width, small) if norm == "group" else FrozenBatchNorm(width, small)
            new.load_state_dict(old.state_dict(), strict=norm == "frozen", assign=True)
            new.requires_grad_(norm == "group")
            setattr(parent, name, new)
