"""Statistics of a network in training, by residual unit: the signal through depth."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from skipway.resnet import PreUnit, ResNet, Unit, ZeroPad


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
    groups |= {name: [own] for name, own in net.named_parameters(recurse=False)}
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


def flow(net: ResNet, images: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """The signal through depth of one forward and one backward pass of cross-entropy, in training
    mode: by statistic, then by part (stem, each residual unit, classifier) from input to output.

    images: [B, C, H, W]; labels: [B], int64. The statistics:

    - ``activation_rms``: root mean square of the part's output,
    - ``gradient_rms``: of the loss's gradient with respect to that output, the loss being the mean
      over the batch times B, so that B does not scale it,
    - ``weight_gradient_norm``: L2 of the mean loss's gradient, over the part's trained parameters.

    The passes are the network's own, in its own precision; norms are taken in float64, where no
    square under- or overflows. So 0 means that the signal is 0 at each place, be it that nothing is
    passed on or that it is below the smallest number of that precision; what overflowed is inf or
    nan. Nothing stays: gradients, buffers, mode and random state are as before.
    """
    found: dict[str, dict[str, float]] = {"activation_rms": {}, "gradient_rms": {}}
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(_: nn.Module, inputs: Any, y: Tensor) -> Tensor:
            outputs[name] = y
            found["activation_rms"][name] = _exact_rms(y)
            return y.clone()  # what follows may write into it

        return hook

    named = {"conv1": net.maxpool, **net.units(), "fc": net.fc}
    buffers = [(b, b.clone()) for b in net.buffers()]
    modes = [(m, m.training) for m in net.modules()]
    devices = [images.device] if images.is_cuda else []
    handles = [module.register_forward_hook(keep(name)) for name, module in named.items()]
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            loss = F.cross_entropy(net.train()(images), labels)
        groups = {
            part: trained
            for part, group in parts(net).items()
            if (trained := [p for p in group if p.requires_grad])
        }
        wanted = [*outputs.values(), *(p for group in groups.values() for p in group)]
        gradients = iter(torch.autograd.grad(loss, wanted, allow_unused=True))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    for name in outputs:
        gradient = next(gradients)
        found["gradient_rms"][name] = (
            0.0 if gradient is None else _exact_rms(gradient) * len(images)
        )
    found["weight_gradient_norm"] = {
        part: math.hypot(*(_exact_norm(g) for _ in group if (g := next(gradients)) is not None))
        for part, group in groups.items()
    }
    return found


def _exact_norm(x: Tensor) -> float:
    """L2, in float64."""
    return float(torch.linalg.vector_norm(x.detach(), dtype=torch.float64))


def _exact_rms(x: Tensor) -> float:
    return _exact_norm(x) / math.sqrt(x.numel())


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


@contextlib.contextmanager
def without(net: ResNet, *names: str) -> Iterator[None]:
    """Inside the block the network lacks the branch of those units, and keeps what `kept` says:
    ``y = ReLU(shortcut(x))``, with pre-activation ``y = shortcut(x)``, fed as it always is.

    Veit et al. 2016 (1605.06431), section 4.1. Raises KeyError for a name that no unit has.
    """
    units, shortcuts = net.units(), kept(net)
    before = {name: vars(units[name]).get("forward") for name in names}
    try:
        for name in names:
            vars(units[name])["forward"] = _shortcut_alone(units[name], shortcuts[name])
        yield
    finally:
        for name, forward in before.items():
            vars(units[name]).pop("forward", None)
            if forward is not None:  # deleted around this block too
                vars(units[name])["forward"] = forward


def kept(net: ResNet) -> dict[str, nn.Module]:
    """What is left of each residual unit without its branch, from input to output: its shortcut.

    A plain net has none. Where its unit changes the shape, and x itself does not fit what follows,
    option A stands in for one: every second pixel and channels of zeros (2015, section 4.1).
    """
    units, found = net.units(), dict[str, nn.Module]()
    inputs = net.arch.stem_channels
    for number, (stage, outputs) in enumerate(
        zip(net.stages(), net.channels.values(), strict=True)
    ):
        for place in range(len(stage)):
            name, stride = f"layer{number + 1}.{place}", 1
            if place == 0 and net.arch.halves(number):
                stride = 2
            found[name] = units[name].downsample
            if units[name].plain and (stride, inputs) != (1, outputs):
                found[name] = ZeroPad(inputs, outputs, stride, split=False)
            inputs = outputs
    return found


def _shortcut_alone(unit: Unit, shortcut: nn.Module) -> Callable[[Tensor], Tensor]:
    def pre(x: Tensor) -> Tensor:
        y: Tensor = shortcut(unit.relu(unit.bn1(x)) if unit.shared else x)
        return y

    def post(x: Tensor) -> Tensor:
        return F.relu(shortcut(x))

    return pre if isinstance(unit, PreUnit) else post
