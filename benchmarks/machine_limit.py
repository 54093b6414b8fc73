"""The share of the machine's own limit that a training step of Skipway reaches, and the rest.

The limit: over all convolutions of the network and its classifier, at the step's batch size, the
best time measured for that very layer: forward, gradient of the input (the first layer needs none)
and gradient of the weights, the two apart or together, whichever is faster, each in the best of
two layouts (contiguous, channels_last) and two precisions (float32, and bf16 where the processor
has it). Layers of equal shape are measured once and counted. A faster step than the sum of these
needs faster convolutions.

The step is the product's own, with its defaults, from the first batch's loading to the update: a
run on CIFAR-10, in whose pauses, which it does not count, the layers are measured, after each
epoch of a few steps. A round is the median step of an epoch, and the layers measured after it;
its share takes the fastest repetition of each layer, `share_of_medians` the median one. The last
epoch is run under PyTorch's profiler: where a step's time goes, by kind of operation.

    python benchmarks/machine_limit.py --data CIFAR10
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from recorded import record_case, spread
from skipway.architecture import architecture
from skipway.machine import has_bf16
from skipway.resnet import ResNet
from skipway.tasks.classify import Classify
from skipway.training.loop import Tally
from skipway.training.progress import TrainingProgress
from skipway.training.run import start
from train_speed import CASES, subset

BARS = {"resnet20": 0.6, "resnet18_cifar": 0.8}
BATCHES = {name: CASES[name].batch for name in BARS}
PROFILED = 6
"""Steps under the profiler, at most."""


@dataclass(frozen=True)
class Layer:
    """A convolution, or the classifier, whose weights have two axes."""

    inputs: tuple[int, ...]
    weights: tuple[int, ...]
    stride: int = 1
    groups: int = 1
    first: bool = False
    """Its input needs no gradient."""

    def __str__(self) -> str:
        kernel = f", {self.weights[2]}x{self.weights[3]}" if self.weights[2:] else ""
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{list(self.inputs)} to {self.weights[0]}{kernel}{stride}"


def layers_of(net: nn.Module, inputs: Sequence[int]) -> collections.Counter[Layer]:
    """The layers of a network on the meta device, and how often each is there."""
    found: list[Layer] = []

    def note(module: nn.Module, args: tuple[Tensor], _: Tensor) -> None:
        stride, groups = 1, 1
        if isinstance(module, nn.Conv2d):
            stride, groups = module.stride[0], module.groups
        weights = tuple(module.get_parameter("weight").shape)
        found.append(Layer(tuple(args[0].shape), weights, stride, groups, first=not found))

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(note)
    net(torch.empty(*inputs, device="meta"))
    return collections.Counter(found)


def operations(
    layer: Layer, dtype: torch.dtype, layout: torch.memory_format
) -> dict[str, Callable[[], Any]]:
    """What a step does with the layer: forward, and the gradients of weights and input."""
    x, w = torch.randn(layer.inputs).to(dtype), torch.randn(layer.weights).to(dtype)
    if not layer.weights[2:]:
        g = torch.randn(x.shape[0], w.shape[0]).to(dtype)
        return {
            "forward": lambda: F.linear(x, w),
            "weight": lambda: g.t() @ x,
            "input": lambda: g @ w,
        }
    x, w = x.to(memory_format=layout), w.to(memory_format=layout)
    padding, stride = layer.weights[2] // 2, layer.stride
    g = torch.randn_like(F.conv2d(x, w, None, stride, padding, 1, layer.groups))

    def backward(*wanted: bool) -> Callable[[], Any]:
        return lambda: torch.ops.aten.convolution_backward(
            g, x, w, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], layer.groups, wanted
        )

    found = {
        "forward": lambda: F.conv2d(x, w, None, stride, padding, 1, layer.groups),
        "weight": backward(False, True, False),
    }
    if not layer.first:
        found |= {"input": backward(True, False, False), "both": backward(True, True, False)}
    return found


def seconds(operation: Callable[[], Any]) -> list[float]:
    """Of repetitions after one that is not counted; three of long ones."""
    operation()
    times: list[float] = []
    while len(times) < (5 if sum(times) < 0.06 else 3):
        begun = time.perf_counter()
        operation()
        times.append(time.perf_counter() - begun)
    return times


@torch.no_grad()
def best(layer: Layer, of: Callable[[list[float]], float]) -> dict[str, tuple[float, str]]:
    """By operation, the least seconds (`of` its repetitions) and in what they were reached."""
    found: dict[str, tuple[float, str]] = {}
    for dtype in (torch.float32, torch.bfloat16) if has_bf16() else (torch.float32,):
        for layout in (torch.contiguous_format, torch.channels_last):
            name = f"{dtype}, {layout}".replace("torch.", "")
            for operation, call in operations(layer, dtype, layout).items():
                reached = (of(seconds(call)), name)
                found[operation] = min(found.get(operation, reached), reached)
    return found


def total(found: dict[str, tuple[float, str]]) -> float:
    """Seconds of a layer in a step."""
    apart = found["weight"][0] + found.get("input", (0.0, ""))[0]
    return found["forward"][0] + min(apart, found.get("both", (apart, ""))[0])


class Measuring(TrainingProgress):
    """Listens to a run: notes each step's seconds, measures the layers at each epoch's end, and
    profiles the last epoch."""

    def __init__(self, layers: collections.Counter[Layer], steps: int, rounds: int) -> None:
        super().__init__(quiet=True)
        self.layers, self.steps, self.rounds = layers, steps, rounds
        self.before = 0.0
        self.times: list[float] = []
        self.medians: list[float] = []
        """Of a step, by round."""
        self.limits: dict[str, list[float]] = {"share": [], "share_of_medians": []}
        self.found: dict[Layer, dict[str, tuple[float, str]]] = {}
        self.profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        self.profiled: list[float] = []

    def step(self, step: int, tally: Tally) -> None:
        self.times.append(tally.seconds - self.before)
        epoch, place = divmod(step, self.steps)
        self.before = tally.seconds if place else 0.0
        if epoch == self.rounds + 1 and place <= PROFILED:
            if place == 0:
                self._round()
                self.profiler.start()
            else:
                self.profiled.append(self.times[-1])
            if place == min(PROFILED, self.steps - 1):
                self.profiler.stop()
        elif place == 0 and epoch <= self.rounds:
            if epoch > 1:  # the first epoch is not counted
                self._round()
            self.times.clear()

    def _round(self) -> None:
        self.medians.append(statistics.median(self.times))
        for name, of in (("share", min), ("share_of_medians", statistics.median)):
            self.found = {layer: best(layer, of) for layer in self.layers}
            limit = sum(n * total(self.found[layer]) for layer, n in self.layers.items())
            self.limits[name].append(limit)
        print(f"step {self.medians[-1]:.4f} s, limit {self.limits['share'][-1]:.4f} s",
              file=sys.stderr)  # fmt: skip


KINDS = {
    "optimizer and averages": r"Optimizer|_fused_|_foreach_",
    "data": r"^data$|aten::index",
    "loss": r"nll|softmax|cross_entropy|CrossEntropy",
    "batch norm": r"batch_norm|BatchNorm",
    "convolutions and classifier": r"conv|Conv|addmm|aten::mm|linear|Linear",
    "ReLU": r"relu|Relu|threshold|Threshold|clamp_min",
    "add": r"aten::add|AddBackward",
    "casts": r"aten::to\b|_to_copy|ToCopy",
    "layout and other copies": r"contiguous|aten::clone|aten::copy_",
}
"""By kind of operation, the names that the profiler gives it."""
WHOLE = ("optimizer and averages", "data")
"""Kinds that have all that is called within them."""


def kind(path: Sequence[dict[str, Any]]) -> str:
    """The kind of an operation, given as the events around it and itself last."""
    for name in WHOLE:
        if any(re.search(KINDS[name], event["name"]) for event in path):
            return name
    types = [t for t in path[-1].get("args", {}).get("Input type", []) if t != "Scalar"]
    if path[-1]["name"] == "aten::copy_":
        return "casts" if len(set(types[:2])) > 1 else "layout and other copies"
    for event in reversed(path):
        for name, pattern in KINDS.items():
            if re.search(pattern, event["name"]):
                return name
    return "other operations"


def own_times(trace: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Kind and seconds of each event of a trace, without those of the events within it."""
    events = [e for e in trace["traceEvents"] if e.get("cat") in ("cpu_op", "user_annotation")]
    by_thread = collections.defaultdict(list)
    for event in events:
        by_thread[event["tid"]].append(event)
    for thread in by_thread.values():
        path: list[dict[str, Any]] = []
        for event in sorted(thread, key=lambda e: (e["ts"], -e["dur"])):
            while path and path[-1]["ts"] + path[-1]["dur"] <= event["ts"]:
                path.pop()
            if path:
                yield kind(path), -event["dur"] / 1e6
            path.append(event)
            yield kind(path), event["dur"] / 1e6


def where_it_goes(measuring: Measuring, folder: Path) -> dict[str, float]:
    """Shares of the profiled steps' time, the largest first."""
    measuring.profiler.export_chrome_trace(str(folder / "trace.json"))
    spent: collections.Counter[str] = collections.Counter()
    for name, taken in own_times(json.loads((folder / "trace.json").read_text())):
        spent[name] += taken
    whole = sum(measuring.profiled)
    spent["between operations"] = max(whole - sum(spent.values()), 0.0)
    return {name: round(taken / whole, 4) for name, taken in spent.most_common()}


def measure(model: str, data: Path, rounds: int, steps: int, folder: Path) -> dict[str, Any]:
    """One network: so many rounds of so many steps."""
    batch = BATCHES[model]
    data = subset(data, folder / "data", steps * batch)
    with torch.device("meta"):
        net = ResNet(architecture(model, num_classes=10))
    measuring = Measuring(layers_of(net, (batch, 3, 32, 32)), steps, rounds)
    given = {
        "model.name": model,
        "batch_size": batch,
        "data.val": "none",
        "schedule.length": f"{rounds + 2} epochs",
        "checkpoint_every": "1000 epochs",
    }
    into = Classify.to_input

    def marked(self: Classify, *arguments: Any) -> Any:
        with record_function("data"):
            return into(self, *arguments)

    with mock.patch.object(Classify, "to_input", marked):
        result = start(str(data), given, folder / "run", measuring)
    config = result.record["config"]
    shares = {
        name: spread([a / b for a, b in zip(limits, measuring.medians, strict=True)])
        for name, limits in measuring.limits.items()
    }
    return shares | {
        "bar": BARS[model],
        "step_ms": spread([1e3 * s for s in measuring.medians]),
        "limit_ms": spread([1e3 * s for s in measuring.limits["share"]]),
        "profiled_step_ms": spread([1e3 * s for s in measuring.profiled]),
        "where_it_goes": where_it_goes(measuring, folder),
        "batch": batch,
        "steps_of_a_round": steps,
        "precision": config["precision"],
        "threads": config["threads"],
        "layers": [
            {"layer": str(layer), "count": count, "ms": round(1e3 * count * total(found), 3)}
            | {op: f"{1e3 * time:.3f} ms, {how}" for op, (time, how) in found.items()}
            for layer, count in measuring.layers.items()
            for found in [measuring.found[layer]]
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=BARS, default=list(BARS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="of a round")
    options = parser.parse_args()
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(model, options.data, options.rounds, options.steps, Path(folder))
        record_case("machine_limit", model, figures)


if __name__ == "__main__":
    main()
