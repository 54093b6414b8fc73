"""Statistics of a network in training, by residual unit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from skipway.resnet import ResNet


def parts(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters by part, from input to output: stem, each residual unit, classifier.

    A network that is not a `ResNet` gives its children.
    """
    if not isinstance(net, ResNet):
        children = {name: list(child.parameters()) for name, child in net.named_children()}
        return {name: group for name, group in children.items() if group}
    groups: dict[str, list[nn.Parameter]] = {"conv1": [*net.conv1.parameters()]}
    groups["conv1"] += net.bn1.parameters()
    groups |= {name: list(unit.parameters()) for name, unit in net.units().items()}
    groups["fc"] = [*net.norm.parameters(), *net.fc.parameters()]
    return groups


class GradientNorms:
    """The mean norm of the gradient of each part over the steps at which it was looked at."""

    def __init__(self, net: nn.Module) -> None:
        self._parts = parts(net)
        self._sums: Tensor | None = None
        self._n = 0

    def update(self) -> None:
        """Look at the gradients that a backward pass has just left."""
        norms = []
        for group in self._parts.values():
            gradients = [p.grad for p in group if p.grad is not None]
            if gradients:
                norms.append(torch.stack(torch._foreach_norm(gradients)).norm())
            else:
                norms.append(torch.zeros(()))
        now = torch.stack([n.to(norms[0].device) for n in norms])
        self._sums = now if self._sums is None else self._sums.to(now.device) + now
        self._n += 1

    def means(self) -> dict[str, float]:
        """Mean norm by part since the last call, and start anew."""
        if self._sums is None:
            return {}
        values = (self._sums / self._n).tolist()
        self._sums, self._n = None, 0
        return dict(zip(self._parts, values, strict=True))

    def state(self) -> dict[str, Any]:
        """The sums so far, for a checkpoint."""
        return {"sums": self._sums, "n": self._n}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._sums, self._n = state["sums"], state["n"]
