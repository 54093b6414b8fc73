"""The block X-ray: what each residual unit of a classifier adds, and what it costs to delete it.

A unit is deleted as in Veit et al. 2016 (1605.06431), section 4.1: its branch is removed and its
shortcut kept (`probes.without`). A plain net, which has no shortcuts, then passes on x alone; where
its unit changes the shape, option A's sub-sampling with channels of zeros stands in.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.data import Split
from skipway.data.ahead import batches, read_ahead
from skipway.data.keyed import permutation
from skipway.errors import InputError, harmless
from skipway.files import atomic_write
from skipway.images import DecodeError
from skipway.metrics import PairedAccuracy, Scored, wilson_interval
from skipway.predictor import Predictor, open_network, task_of, torch_predictor, torch_source
from skipway.probes import at_least_float32, kept, norm, without
from skipway.report.document import as_svg, document
from skipway.report.markup import Html, percent, table, tag
from skipway.report.plot import LETTER, Axis, apart, decades, linear, shares
from skipway.report.run import family_of
from skipway.resnet import ResNet, Unit

Array = npt.NDArray[Any]
Interval = tuple[float, float]

IMAGES = 2000
"""That are looked at by default."""
_PIXELS = 16 * 224 * 224
"""Of a batch: its gradients hold the activations of every layer."""


# The measurement


@dataclass(frozen=True, kw_only=True)
class Block:
    """One residual unit, in evaluation mode, over all images."""

    name: str
    """As "layer1.0"."""
    branch: float
    """Root mean square of F(x), just before the shortcut is added; in a plain net before the
    ReLU."""
    shortcut: float | None
    """That of the shortcut there; None in a plain net."""
    output_gradient: float
    """Root mean square of the gradient, with respect to the unit's output, of each image's own
    cross-entropy in nats."""
    weight_gradient: float
    """L2 norm of the gradient of the mean cross-entropy with respect to the unit's parameters."""
    accuracy: float
    """Of the net without this unit, 0..1."""
    loss: float
    """Its mean cross-entropy in nats."""
    cost: float
    """Accuracy of the whole net less `accuracy`."""
    interval: Interval
    """The 95 % interval of `cost`, image by image (`metrics.paired_interval`)."""
    stands_in: bool
    """Whether option A stood in for the shortcut that a plain net's unit does not have."""


@dataclass(frozen=True, kw_only=True)
class Xray:
    """The units of a network from input to output, and the network as a whole."""

    family: str
    """The class of the style sheet: residual, plain or preactivation."""
    classes: int
    n: int
    """Images."""
    accuracy: float
    """Of the whole net, 0..1."""
    interval: Interval
    """Its 95 % interval, Wilson's."""
    loss: float
    blocks: tuple[Block, ...]
    skipped: tuple[str, ...] = ()
    """Why each image that was left out was."""

    @property
    def chance(self) -> float:
        """The accuracy of guessing, all classes being equally frequent."""
        return 1 / self.classes

    @property
    def costs(self) -> list[float]:
        """What deleting each unit takes off the accuracy, in points."""
        return [100 * block.cost for block in self.blocks]

    @property
    def median_cost(self) -> float:
        """Of `costs`."""
        return statistics.median(self.costs)

    @property
    def summary(self) -> str:
        """What deleting one unit costs, in a sentence."""
        low, high, middle = (_points(f(self.costs)) for f in (min, max, statistics.median))
        several = f"{low} to {high} points (median {middle})"
        costs = several if len(self.blocks) > 1 else f"{low} points"
        return f"deleting one block costs {costs}; chance is {100 * self.chance:.3g} %"

    @property
    def caveat(self) -> str | None:
        """Which shortcuts were stood in for, in a sentence; None where none was."""
        names = [block.name for block in self.blocks if block.stands_in]
        if not names:
            return None
        change = "changes the shape and has" if len(names) == 1 else "change the shape and have"
        return (
            f"{', '.join(names)} {change} no shortcut: deleted, every second pixel with channels "
            "of zeros stands in (option A)"
        )

    def to_json(self) -> dict[str, Any]:
        """For programs; `from_json` reads it again."""
        named = {"family", "classes", "n", "accuracy", "interval", "loss"}
        return {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name in named
        } | {
            "chance": self.chance,
            "median_cost": self.median_cost / 100,
            "blocks": [vars(block) for block in self.blocks],
            "skipped": len(self.skipped),
        }


def from_json(value: dict[str, Any]) -> Xray:
    """What `Xray.to_json` gave, without the reasons of what was skipped."""
    known = {name: value[name] for name in ("family", "classes", "n", "accuracy", "loss")}
    blocks = (Block(**{**block, "interval": tuple(block["interval"])}) for block in value["blocks"])
    return Xray(**known, interval=tuple(value["interval"]), blocks=tuple(blocks))


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

    @contextlib.contextmanager
    def forward(self, unit: Unit, passed: dict[str, Tensor], name: str) -> Iterator[None]:
        """Look at the forward passes inside; `passed` gets input and output by ``NAME.``."""
        handles = [
            unit.se.register_forward_hook(lambda _, inputs, y: self.branch.add(y)),
            unit.downsample.register_forward_hook(lambda _, inputs, y: self.shortcut.add(y)),
            unit.register_forward_hook(
                lambda _, inputs, y: passed.update({f"{name}.x": inputs[0], f"{name}.y": y})
            ),
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


# In words


HEAD = (
    "block", "accuracy without it", "costs, points", "95 % interval", "branch", "shortcut",
    "gradient", "weights' gradient",
)  # fmt: skip


def rows(found: Xray) -> list[tuple[str, ...]]:
    """A row a unit, under `HEAD`."""
    return [
        (
            block.name,
            percent(block.accuracy, 2),
            _points(100 * block.cost),
            " to ".join(_points(100 * end) for end in block.interval),
            f"{block.branch:.3g}",
            "none" if block.shortcut is None else f"{block.shortcut:.3g}",
            f"{block.output_gradient:.2g}",
            f"{block.weight_gradient:.2g}",
        )
        for block in found.blocks
    ]


def _points(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"  # + 0.0: none is -0.0


# In a picture

LEFT, RIGHT = 48, 284
"""Of the blocks; labels stand to the right of them."""
STRIP, GAP, TOP = 100, 36, 24
"""Height of a strip, what is between two, and what is above the first."""


def write_picture(
    found: Xray, out: str | os.PathLike[str], title: str, lines: Sequence[str]
) -> Path:
    """Write the picture as a page with the table or, by the ending of `out`, as a drawing; the path
    is returned. lines: what was looked at, in words. Raises InputError where it cannot be written.
    """
    path = Path(out)
    if path.suffix.lower() == ".svg":
        text = as_svg(picture(title, [("", found)]), found.family)
    else:
        words = [tag("p", line) for line in lines]
        first = [picture("Block by block", [("", found)]), *words, table(HEAD, rows(found))]
        text = document(title, title, first, [], found.family)
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))
    return path


@dataclass(frozen=True)
class _Strip:
    """A band of the picture: an axis upwards, blocks from left to right."""

    axis: Axis
    place: int
    blocks: int
    parts: list[Html] = field(default_factory=list)
    ends: list[tuple[float, str]] = field(default_factory=list)
    """Height and text of the labels on the right."""

    @property
    def top(self) -> float:
        return TOP + self.place * (STRIP + GAP)

    def y(self, value: float) -> float:
        return round(self.top + STRIP * (1 - self.axis.share(value)), 1)

    def x(self, block: float) -> float:
        return round(LEFT + (block + 0.5) * (RIGHT - LEFT) / self.blocks, 1)

    def across(self, value: float, style: str, label: str) -> None:
        """A thin line at a value, with its label."""
        y = self.y(value)
        self.parts.append(tag("line", class_=style, x1=LEFT, x2=RIGHT, y1=y, y2=y))
        if label:
            self.ends.append((y, label))

    def line(self, values: Sequence[float | None], style: str, label: str) -> None:
        """A value of each block, joined; those that the axis cannot show are left out."""
        shown = [
            (self.x(block), self.y(value))
            for block, value in enumerate(values)
            if value is not None and (value > 0 or not self.axis.log)
        ]
        if not shown:
            return
        path = "M" + "L".join(f"{x} {y}" for x, y in shown)
        self.parts.append(tag("path", class_=f"line {style}", d=path))
        self.dots(shown, style)
        self.ends.append((shown[-1][1], label))

    def dots(self, places: Sequence[tuple[float, float]], style: str) -> None:
        radius = round(max(min(3.0, 60 / self.blocks), 1), 1)
        self.parts.extend(
            tag("circle", class_=f"dot {style}", cx=x, cy=y, r=radius) for x, y in places
        )

    def drawn(self, borders: Sequence[int]) -> Iterator[Html]:
        """Title, grid, what was put in, and the labels."""
        yield tag("text", self.axis.label, class_="tick", x=0, y=self.top - 9)
        for value, text in self.axis.ticks:
            y = self.y(value)
            yield tag("line", class_="grid", x1=LEFT, x2=RIGHT, y1=y, y2=y)
            yield tag("text", text, class_="tick", x=LEFT - 6, y=round(y + 4, 1), text_anchor="end")
        for border in borders:
            x = self.x(border - 0.5)
            yield tag("line", class_="grid", x1=x, x2=x, y1=self.top, y2=self.top + STRIP)
        yield from self.parts
        ends = sorted(self.ends)
        for y, (_, text) in zip(
            apart([end for end, _ in ends], self.top + STRIP), ends, strict=True
        ):
            yield tag("text", text, class_="name", x=RIGHT + 7, y=round(y + 4, 1))


def picture(title: str, found: Sequence[tuple[str, Xray]]) -> Html:
    """A figure of three strips over the blocks from input to output: norms, gradients, and the
    accuracy without each block, hanging from that of the whole net.

    found: X-rays of nets of equally many units, each with a short name to tell it by; of one alone
    the name is not shown.
    """
    blocks = found[0][1].blocks
    assert all(len(one.blocks) == len(blocks) for _, one in found), "nets of different depths"
    several = len(found) > 1
    norms = [v for _, one in found for b in one.blocks for v in (b.branch, b.shortcut or 0.0)]
    gradients = [
        v for _, one in found for b in one.blocks
        for v in (b.output_gradient, 0.0 if several else b.weight_gradient) if v > 0
    ] or [1.0]  # fmt: skip
    what = "RMS of the gradient of the loss with respect to the output"
    if not several:
        what = "gradient of the loss: output's RMS, weights' L2 norm"
    strips = [
        _Strip(linear("RMS of branch F(x) and of shortcut, as they are added", max(norms)), 0,
               len(blocks)),
        _Strip(decades(what, gradients), 1, len(blocks)),
        _Strip(shares("accuracy without the block, hanging from the whole net's"), 2, len(blocks)),
    ]  # fmt: skip
    strips[2].across(found[0][1].chance, "mark", f"chance {100 * found[0][1].chance:.3g} %")
    for place, (name, one) in enumerate(found):
        of = f"{name} " if several else ""
        if any(block.shortcut is not None for block in one.blocks):
            strips[0].line([b.shortcut for b in one.blocks], "middle", f"{of}shortcut")
        strips[0].line([b.branch for b in one.blocks], one.family, f"{of}F(x)")
        if not several:
            strips[1].line([b.weight_gradient for b in one.blocks], "middle", "weights")
        strips[1].line([b.output_gradient for b in one.blocks], one.family, of.strip() or "output")
        _hang(strips[2], one, (place + 0.5) / len(found) - 0.5, len(found))
        strips[2].across(one.accuracy, f"spread {one.family}",
                         f"{of or 'whole '}{percent(one.accuracy)}")  # fmt: skip
    stages = [block.name.partition(".")[0] for block in blocks]
    borders = [place for place in range(1, len(stages)) if stages[place] != stages[place - 1]]
    parts = [part for strip in strips for part in strip.drawn(borders)]
    bottom = strips[-1].top + STRIP
    edge = -math.inf
    for first, last in itertools.pairwise([0, *borders, len(stages)]):
        x, half = strips[0].x((first + last - 1) / 2), 3.4 * len(stages[first])
        if x - half > edge + 4:  # else it would run into the label before it
            parts.append(tag("text", stages[first], class_="tick", x=x, y=bottom + 16,
                             text_anchor="middle"))  # fmt: skip
            edge = x + half
    parts.append(tag("text", "block, from the input to the output", class_="tick",
                     x=(LEFT + RIGHT) / 2, y=bottom + 33, text_anchor="middle"))  # fmt: skip
    longest = max(len(text) for strip in strips for _, text in strip.ends)
    width = math.ceil(RIGHT + 7 + LETTER * longest)
    caption = " ".join(_said(name if several else "", one) for name, one in found)
    svg = tag(
        "svg", *parts, class_="plot", viewBox=f"0 0 {width} {bottom + 40:g}", role="img",
        aria_label=f"{title}. {caption}",
    )  # fmt: skip
    return tag("figure", tag("h3", title), svg, tag("figcaption", caption))


def _hang(strip: _Strip, one: Xray, shift: float, nets: int) -> None:
    """Each block's cost as a bar that hangs from the accuracy of the whole net, a dot at its end
    with the interval."""
    width = 0.62 * (RIGHT - LEFT) / strip.blocks / nets
    top = strip.y(one.accuracy)
    ends = []
    for place, block in enumerate(one.blocks):
        x, y = strip.x(place + 0.62 * shift), strip.y(block.accuracy)
        strip.parts.append(
            tag("rect", class_=f"band {one.family}", x=round(x - width / 2, 1), y=min(top, y),
                width=round(width, 1), height=round(abs(y - top), 1))
        )  # fmt: skip
        low, high = (strip.y(min(max(one.accuracy - end, 0), 1)) for end in block.interval)
        strip.parts.append(tag("line", class_=f"spread {one.family}", x1=x, x2=x, y1=low, y2=high))
        ends.append((x, y))
    strip.dots(ends, one.family)


def _said(name: str, one: Xray) -> str:
    """What deleting a block costs, for the caption."""
    worst = max(one.blocks, key=lambda block: block.cost)
    words = f"{name + ': ' if name else ''}{one.summary}"
    last = f"{words[0].upper()}{words[1:]}; {worst.name} costs most."
    return f"{last} {one.caveat[0].upper()}{one.caveat[1:]}." if one.caveat else last
