"""Muon: momentum whose update of each weight matrix is made orthogonal.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (kellerjordan.github.
io/posts/muon). It takes fewer steps than SGD to the same loss, at some more work a step, so it pays
where epochs are few. PyTorch's own takes matrices only; here a convolution's weight is the matrix
of its outputs by its inputs, and what is no hidden weight is left to SGD.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def orthogonalised(matrix: Tensor) -> Tensor:
    """Close to U V^T of the singular value decomposition [m, n] = U S V^T, in the matrix's
    precision, of which bfloat16 is enough.

    Five Newton-Schulz steps with Jordan's coefficients, which leave singular values within about
    0.7 to 1.2.
    """
    a, b, c = _COEFFICIENTS
    x = matrix
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.SGD):
    """SGD with Nesterov momentum, and Muon for the groups marked ``orthogonal``.

    In those groups weight decay is decoupled from the gradient, and the step is
    lr * sqrt(max(1, outputs / inputs)) times the orthogonalised momentum. keep_norm: each weight
    is brought back to the norm that it had before its first step, in place of decay. half:
    orthogonalise in bfloat16, as Jordan does; a processor that emulates it takes 50 times as long.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        keep_norm: bool = False,
        half: bool = False,
    ) -> None:
        self.keep_norm = keep_norm
        self.half = half
        groups = [{"orthogonal": False} | group for group in groups]
        super().__init__(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step from the gradients that are there."""
        every = self.param_groups
        self.param_groups = [group for group in every if not group["orthogonal"]]
        super().step(closure)
        self.param_groups = every
        for group in every:
            if group["orthogonal"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._turn(parameter, group)

    def _turn(self, weight: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        update = gradient.add(momentum, alpha=group["momentum"]).flatten(1)
        update = update.bfloat16() if self.half else update
        scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
        if self.keep_norm:
            norm = state.setdefault("norm", weight.norm())
        else:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(orthogonalised(update).reshape(weight.shape), alpha=-group["lr"] * scale)
        if self.keep_norm and norm > 0:
            weight.mul_(norm / weight.norm())
