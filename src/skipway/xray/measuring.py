"""The measurement of the block X-ray: one look at the whole net, and one without each unit."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.data import Split
from skipway.data.ahead import batches, read_ahead
from skipway.data.keyed import permutation
from skipway.errors import InputError, harmless
from skipway.images import DecodeError
from skipway.metrics import PairedAccuracy, Scored, wilson_interval
from skipway.predictor import Predictor, open_network, task_of, torch_predictor, torch_source
from skipway.probes import at_least_float32, kept, norm, without
from skipway.report.run import family_of
from skipway.resnet import ResNet, Unit
from skipway.xray import Block, Xray

Array = npt.NDArray[Any]

_PIXELS = 16 * 224 * 224
"""Of a batch: its gradients hold the activations of every layer."""


def open_classifier(
    model: str | os.PathLike[str], threads: int | None = None, device: str = "cpu"
) -> tuple[ResNet, Predictor]:
    """The network of a run, a weight file, a shipped model or a hub's name, in evaluation mode, and
    the predictor that runs it. Raises InputError for ONNX and for a model of another task."""
    source = torch_source(
        model,
        "no block can be deleted from an ONNX file\n"
        "Give the run or the weights that it was made from.",
    )
    if (task := task_of(model)) != "classify":
        raise InputError(
            f"{harmless(model)}: a model of the task {task}; xray takes those that classify, whose "
            "accuracy without a block it measures"
        )
    net, card = open_network(source, threads)
    return net, torch_predictor(net, card, str(source), device)


def sample(split: Split, most: int) -> Split:
    """That many of the images, the same ones each time, or all where there are fewer."""
    return split.take(np.sort(permutation(len(split), 0)[:most]))


def xray(
    net: ResNet,
    predictor: Predictor,
    split: Split,
    *,
    threads: int = 1,
    on_bad: str = "error",
    seen: Callable[[int], None] = lambda images: None,
) -> Xray:
    """The X-ray of a network on labelled images; nothing of the network is changed.

    net: of `predictor`, in evaluation mode. The labels of the split count its classes. threads:
    that decode. on_bad: error, or skip to leave out images that cannot be read. seen: is told of
    images as they are done. Raises DecodeError where `on_bad` is error, InputError where no image
    is left or an output is not finite.
    """
    preprocess = predictor.card.preprocess
    looks = {name: _Look() for name in net.units()}
    whole: list[Scored] = []
    deleted: dict[str, list[Scored]] = {name: [] for name in looks}
    skipped: list[str] = []

    def scored(logits: Tensor, index: Array) -> Scored:
        values = logits.detach().double().cpu().numpy()
        if not np.isfinite(values).all():
            raise InputError(f"{harmless(predictor.origin)}: its outputs are not finite numbers")
        return Scored.from_logits(predictor.calibrated(values), split.labels[index], index)

    size = max(min(_PIXELS // math.prod(preprocess.size), 128), 1)
    rows = read_ahead(
        range(len(split)), lambda i: preprocess(split.image(i, preprocess.channels)), threads, size,
        on_bad,
    )  # fmt: skip
    device = next(net.parameters()).device
    for batch in batches(rows, size):
        skipped += [str(x) for _, x in batch if isinstance(x, DecodeError)]
        read = {i: x for i, x in batch if not isinstance(x, DecodeError)}
        if read:
            index = np.array(list(read))
            x = torch.from_numpy(np.stack(list(read.values()))).to(device)
            labels = torch.from_numpy(split.labels[index]).to(device)
            logits, inputs = _looked_at(net, looks, x, labels, predictor.card.temperature)
            whole.append(scored(logits, index))
            for name, logits in _deletions(net, inputs):
                deleted[name].append(scored(logits, index))
        seen(len(batch))
    if not whole:
        raise InputError(skipped[0] if skipped else "no images to look at")
    return _xray(net, Scored.merge(whole), {n: Scored.merge(d) for n, d in deleted.items()}, looks,
                 predictor, tuple(skipped))  # fmt: skip


def _xray(
    net: ResNet,
    whole: Scored,
    deleted: dict[str, Scored],
    looks: dict[str, _Look],
    predictor: Predictor,
    skipped: tuple[str, ...],
) -> Xray:
    n, units, shortcuts = len(whole.label), net.units(), kept(net)

    def block(name: str, without_it: Scored) -> Block:
        pair, metrics = PairedAccuracy.of(whole.correct, without_it.correct), without_it.metrics()
        look, unit = looks[name], units[name]
        return Block(
            name=name,
            reshapes=look.reshapes,
            branch=look.branch.root,
            shortcut=None if unit.plain else look.shortcut.root,
            output_gradient=look.gradient.root,
            weight_gradient=float(norm(look.weights)) / n,
            accuracy=metrics["accuracy"],
            loss=metrics["loss"],
            cost=-pair.difference,
            interval=(-pair.interval[1], -pair.interval[0]),
            stands_in=shortcuts[name] is not unit.downsample,
        )

    metrics = whole.metrics()
    return Xray(
        family=family_of(net.arch),
        classes=len(predictor.classes),
        n=n,
        accuracy=metrics["accuracy"],
        interval=wilson_interval(int(whole.correct.sum()), n),
        loss=metrics["loss"],
        chance=float(np.bincount(whole.label).max() / n),
        blocks=tuple(block(name, without_it) for name, without_it in deleted.items()),
        skipped=skipped,
    )


class _MeanSquare:
    """The mean of the squares of all elements that were added."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, x: Tensor) -> None:
        length = torch.linalg.vector_norm(x.detach(), dtype=at_least_float32(x))
        self._sum, self._count = self._sum + float(length) ** 2, self._count + x.numel()

    @property
    def root(self) -> float:
        return math.sqrt(self._sum / self._count)


@dataclass
class _Look:
    """What was seen of a unit so far."""

    branch: _MeanSquare = field(default_factory=_MeanSquare)
    shortcut: _MeanSquare = field(default_factory=_MeanSquare)
    gradient: _MeanSquare = field(default_factory=_MeanSquare)
    weights: list[Tensor] = field(default_factory=list)
    """Gradients of the summed loss."""
    reshapes: bool = False

    @contextlib.contextmanager
    def forward(self, unit: Unit, passed: dict[str, Tensor], name: str) -> Iterator[None]:
        """Look at the forward passes inside; `passed` gets input and output by ``NAME.``."""

        def both_ends(_: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
            passed.update({f"{name}.x": inputs[0], f"{name}.y": y})
            self.reshapes = inputs[0].shape != y.shape

        handles = [
            unit.se.register_forward_hook(lambda _, inputs, y: self.branch.add(y)),
            unit.downsample.register_forward_hook(lambda _, inputs, y: self.shortcut.add(y)),
            unit.register_forward_hook(both_ends),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _looked_at(
    net: ResNet, looks: dict[str, _Look], x: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits [B, K] of a batch [B, C, H, W], and the input of each unit; the looks go on."""
    # In place of the parameters, so that none gets a gradient and what is frozen has one too.
    weights = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
    passed: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for name, unit in net.units().items():
            stack.enter_context(looks[name].forward(unit, passed, name))
        logits: Tensor = torch.func.functional_call(net, weights, (x,))
    loss = F.cross_entropy(logits / temperature, labels, reduction="sum")
    of = {n: [w for name, w in weights.items() if name.startswith(f"{n}.")] for n in looks}
    outputs = [passed[f"{name}.y"] for name in looks]
    gradients = iter(torch.autograd.grad(loss, [*outputs, *itertools.chain(*of.values())]))
    for look in looks.values():
        look.gradient.add(next(gradients))
    for name, look in looks.items():
        new = [next(gradients) for _ in of[name]]
        look.weights = (
            [a + b for a, b in zip(look.weights, new, strict=True)] if look.weights else new
        )
    return logits, {name: passed[f"{name}.x"].detach() for name in looks}


@torch.inference_mode()
def _deletions(net: ResNet, inputs: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Logits without each unit. What comes before it is as it was: `inputs` has it."""
    units = list(net.units().items())
    for place, (name, _) in enumerate(units):
        with without(net, name):
            x = inputs[name]
            for _, unit in units[place:]:
                x = unit(x)
        if net.arch.order == "pre":
            x = F.relu(net.norm(x))
        yield name, net.fc(x.mean((2, 3)))
