"""LAMB: Adam whose step of each layer is in proportion to the layer's weights.

You et al. 2020, "Large Batch Optimization for Deep Learning" (1904.00962), algorithm 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """x := x - lr (|x| / |u|) u, where u = m / (sqrt(v) + eps) + weight_decay x.

    m and v are the averages of the gradient and of its square, freed of their bias to 0. Groups
    without weight decay (biases and norms) take Adam's step; so does a tensor that is all 0.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step from the gradients that are there."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for update, weight in zip(self._updates(weights, group), weights, strict=True):
                if group["weight_decay"]:
                    update = update.add(weight, alpha=group["weight_decay"])
                    update *= _ratio(weight, update)
                weight.add_(update, alpha=-group["lr"])

    def _updates(self, weights: list[Tensor], group: dict[str, Any]) -> tuple[Tensor, ...]:
        """Adam's direction for each weight."""
        first, second = group["betas"]
        gradients = [p.grad for p in weights if p.grad is not None]
        for weight in weights:
            state = self.state[weight]
            if not state:
                zeros = {name: torch.zeros_like(weight) for name in ("mean", "square")}
                state |= {"steps": 0} | zeros
            state["steps"] += 1  # of this weight: it may have been frozen when others began
        steps = [self.state[p]["steps"] for p in weights]
        means = [self.state[p]["mean"] for p in weights]
        squares = [self.state[p]["square"] for p in weights]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        scales = torch._foreach_sqrt(squares)
        torch._foreach_div_(scales, [(1 - second**n) ** 0.5 for n in steps])
        torch._foreach_add_(scales, group["eps"])
        updates = torch._foreach_div(means, [1 - first**n for n in steps])
        torch._foreach_div_(updates, scales)
        return tuple(updates)


def _ratio(weight: Tensor, update: Tensor) -> Tensor:
    """|x| / |u|, 1 where either is 0. No synchronisation with a GPU."""
    x, u = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(update)
    return torch.where((x > 0) & (u > 0), x / u, torch.ones_like(x))
