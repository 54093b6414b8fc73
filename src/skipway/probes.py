"""Statistics of a network in training, by residual unit: the signal through depth."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from skipway.resnet import PreUnit, ResNet, Unit


def parts(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters by part, from input to output: stem, each residual unit, classifier.

    Where heads stand on a `ResNet`, the children of the whole take the place of the classifier,
    with what is not the network's. One without a `ResNet` gives its children.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    body = _body(net)
    if body is not None:
        groups["conv1"] = [*body.conv1.parameters(), *body.bn1.parameters()]
        groups |= {name: list(unit.parameters()) for name, unit in body.units().items()}
        if body is net:
            groups["fc"] = [*body.norm.parameters(), *body.fc.parameters()]
            return groups
        groups["norm"] = [*body.norm.parameters()]
    seen = set(body.parameters()) if body is not None else set()
    for name, child in net.named_children():
        groups[name] = [p for p in child.parameters() if p not in seen]
    return {name: group for name, group in groups.items() if group}


def _body(net: nn.Module) -> ResNet | None:
    """The residual network of a model, where it has one."""
    body = net if isinstance(net, ResNet) else getattr(net, "body", None)
    return body if isinstance(body, ResNet) else None


class Signal:
    """How the signal passes the parts of a network: means over the steps that were looked at.

    A look at a step is three calls, none of which changes a bit of the training: `forward` around
    the forward pass, `backward` after the backward pass and before clipping, `stepped` after the
    optimizer's step. Between looks nothing hangs on the network and nothing is computed. The
    statistics, by part:

    - ``activation_rms``, ``activation_mean``: root mean square and mean magnitude of the output,
    - ``residual_ratio``: RMS of F(x), before stochastic depth, over RMS of the shortcut, just
      before they are added; only where there is a shortcut,
    - ``dead_channels``: share of the channels that a ReLU leaves 0 at every pixel of the batch; in
      a unit of several ReLUs, of the one that has the most,
    - ``gradient_norm``, ``weight_norm``: L2, over all trained parameters of the part,
    - ``update_ratio``: norm of what the step changed, over the weight norm before it.

    The last three are absent where nothing is trained. Of heads, and of a network without a
    `ResNet`, they are all there is, beside the activations of children that put out a tensor.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net, self._body = net, _body(net)
        self._parts = parts(net)
        # Made once: the context is slow to make. Autocast would copy what norms are taken of.
        device = next((p.device.type for p in net.parameters()), "cpu")
        self._exact = torch.autocast(device, enabled=False)
        self._before: dict[str, tuple[Tensor, list[nn.Parameter], list[Tensor]]] = {}
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def _add(self, statistic: str, part: str, value: Tensor) -> None:
        key = statistic, part
        so_far = self._sums.get(key)
        self._sums[key] = value if so_far is None else so_far.to(value.device) + value
        self._counts[key] = self._counts.get(key, 0) + 1

    # One look

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """The forward pass inside is looked at. What is recomputed later, outside, is not."""
        handles = list(self._hooks())
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self) -> Iterator[RemovableHandle]:
        body = self._body
        if body is not None:
            yield from self._body_hooks(body)
        if body is self._net:
            return
        children = dict(self._net.named_children())
        if body is not None:
            children["norm"] = body.norm
        for name in self._parts.keys() & children.keys():
            yield self._on_output(children[name], self._output_of(name))

    def _body_hooks(self, body: ResNet) -> Iterator[RemovableHandle]:
        stem, pre = self._output_of("conv1"), body.arch.order == "pre"

        def first(y: Tensor) -> None:
            stem(y)
            if not pre:
                self._add("dead_channels", "conv1", dead_channels(y))

        yield self._on_output(body.maxpool, first)
        for name, unit in body.units().items():
            yield from self._unit_hooks(name, unit)
        if body is not self._net:
            return
        yield self._on_output(body.fc, self._output_of("fc"))
        if pre:  # the last ReLU is no module; pooled, it is what the classifier is given

            def last(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                self._add("dead_channels", "fc", dead_channels(inputs[0].detach()))

            yield body.fc.register_forward_pre_hook(last)

    def _on_output(self, module: nn.Module, look: Callable[[Tensor], None]) -> RemovableHandle:
        """Have each output of the module, where it is a tensor, looked at as it is made."""

        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                with torch.no_grad(), self._exact:
                    look(output)

        return module.register_forward_hook(hook)

    def _unit_hooks(self, name: str, unit: Unit) -> Iterator[RemovableHandle]:
        sides: dict[str, Tensor] = {}
        dead: list[Tensor] = []
        whole = self._output_of(name)

        def output(y: Tensor) -> None:
            whole(y)
            if not unit.plain:
                self._add("residual_ratio", name, sides["branch"] / sides["shortcut"])
            if not isinstance(unit, PreUnit):
                dead.append(dead_channels(y))
            self._add("dead_channels", name, torch.stack(dead).max())
            dead.clear()

        yield self._on_output(unit.relu, lambda y: dead.append(dead_channels(y)))
        yield self._on_output(unit.se, lambda y: sides.update(branch=rms(y)))
        yield self._on_output(unit.downsample, lambda y: sides.update(shortcut=rms(y)))
        yield self._on_output(unit, output)

    def _output_of(self, name: str) -> Callable[[Tensor], None]:
        def measure(y: Tensor) -> None:
            self._add("activation_rms", name, rms(y))
            magnitude = torch.linalg.vector_norm(y, 1, dtype=at_least_float32(y)) / y.numel()
            self._add("activation_mean", name, magnitude)

        return measure

    @torch.no_grad()
    def backward(self) -> None:
        """Look at the gradients that the backward pass has just left, and at the weights."""
        for part, group in self._parts.items():
            trained = [p for p in group if p.grad is not None]
            if trained:  # what is frozen must cost nothing
                weight = norm([p.detach() for p in trained])
                self._add("weight_norm", part, weight)
                self._add(
                    "gradient_norm", part, norm([p.grad for p in trained if p.grad is not None])
                )
                self._before[part] = weight, trained, [p.detach().clone() for p in trained]

    @torch.no_grad()
    def stepped(self) -> None:
        """Look at what the optimizer's step, just made, has changed."""
        for part, (weight, trained, before) in self._before.items():
            torch._foreach_sub_(before, [p.detach() for p in trained])
            self._add("update_ratio", part, norm(before) / weight)
        self._before.clear()

    # What was seen

    def means(self) -> dict[str, dict[str, float | None]]:
        """Mean by statistic and part, to four digits; None where it is not finite."""
        found: dict[str, dict[str, float | None]] = {}
        if self._sums:
            values = torch.stack(list(self._sums.values())).tolist()  # one synchronisation
            for (statistic, part), total in zip(self._sums, values, strict=True):
                mean = float(f"{total / self._counts[statistic, part]:.4g}")
                found.setdefault(statistic, {})[part] = mean if math.isfinite(mean) else None
        return found

    def state(self) -> dict[str, Any]:
        """The sums so far, for a checkpoint."""
        return {
            "names": [list(key) for key in self._sums],
            "sums": torch.stack(list(self._sums.values())) if self._sums else torch.zeros(0),
            "counts": list(self._counts.values()),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        names = [(statistic, part) for statistic, part in state["names"]]
        self._sums = dict(zip(names, state["sums"].unbind(), strict=True))
        self._counts = dict(zip(names, state["counts"], strict=True))


def norm(tensors: list[Tensor]) -> Tensor:
    """The L2 norm of all their elements together."""
    return torch.stack(torch._foreach_norm(tensors)).norm()


def rms(x: Tensor) -> Tensor:
    """The root mean square of all elements, summed in float32 or better."""
    return torch.linalg.vector_norm(x, dtype=at_least_float32(x)) / math.sqrt(x.numel())


def at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def dead_channels(x: Tensor) -> Tensor:
    """The share of channels of a ReLU's output [B, C, …] that are 0 throughout."""
    others = [d for d in range(x.ndim) if d != 1]
    silent = x.sum(others, dtype=torch.float32) == 0  # nothing is below 0
    return silent.sum(dtype=torch.float32) / x.shape[1]
