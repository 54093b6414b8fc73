"""The verdict on a weight file, and the file as it should have been."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from skipway.architecture import name_of
from skipway.card import Card
from skipway.data import open_split
from skipway.data.keyed import hashed, permutation
from skipway.doctor.bench import TELLS, Bench
from skipway.doctor.evidence import FEWEST, Array, Comparison, Finding, Outcome
from skipway.doctor.readings import as_read
from skipway.errors import InputError, harmless
from skipway.images import Preprocess, plain_preprocess
from skipway.predictor import torch_source
from skipway.resnet import ResNet
from skipway.weights import load_model, save_weights

MOST = 2048
"""Labelled images above which none are taken: all are kept in memory under each framing, and what
matters shows on far fewer."""


@dataclass(frozen=True)
class Diagnosis:
    """The verdict on a weight file; `correct` writes the file that it should have been."""

    file: str
    data: str
    split: str
    of: int
    """Images in the split; `assumed.n` of them were looked at."""
    carded: bool
    """Whether the assumed reading is what the file's card says."""
    classes: tuple[str, ...]
    """Class names by output, as assumed."""
    order: tuple[int, ...] | None
    """By class, the output that stands for it, where that is another order than assumed."""
    untold: tuple[int, ...]
    """The classes of which the images do not tell whether the output in `order` is theirs."""
    order_asked: bool
    """Whether there are images enough to ask for the order of classes: `A_CLASS` a class."""
    assumed: Outcome
    diagnosed: Outcome
    """With an order, each image's class has the output that the other images match to it."""
    comparison: Comparison
    """Of the assumed reading with the diagnosed one."""
    findings: tuple[Finding, ...]
    readings: int
    """How many were tried."""
    passes: int
    """Images that went through the network."""
    clear: bool
    """Whether the reading found does better than guessing."""
    net: ResNet = field(repr=False)
    """As the file was read."""
    card: Card = field(repr=False)
    """As declared or assumed."""
    preprocess: Preprocess = field(repr=False)
    """As diagnosed, for a network that takes RGB."""

    @property
    def verdict(self) -> Literal["right", "wrong", "unclear"]:
        """unclear: no reading that was tried does better than guessing."""
        if not self.clear:
            return "unclear"
        wrong = self.order is not None or self.assumed.reading != self.diagnosed.reading
        return "wrong" if wrong else "right"

    @property
    def names(self) -> tuple[str | None, ...]:
        """Class names by output, as diagnosed; None where the images do not tell it."""
        if self.order is None:
            return self.classes
        names: list[str | None] = [None] * len(self.classes)
        for k, output in enumerate(self.order):
            names[output] = None if k in self.untold else self.classes[k]
        return tuple(names)

    @property
    def withheld(self) -> str:
        """Why there is no file as it should have been, and what to do; empty where there is one."""
        if not self.clear:
            return "no reading does better than guessing"
        if not self.untold:
            return ""
        n, classes = self.diagnosed.n, len(self.classes)
        each = max(TELLS, math.ceil(2 * n / classes))
        if n == MOST:
            advice = f"No more than {MOST:,} are looked at; --json has those that are told."
        elif n == self.of:
            advice = "Give data with more labelled images."
        else:
            advice = f"Give --images {min(each * classes, MOST):,}."
        return (
            f"{len(self.untold):,} of {classes:,} classes are not told from others: that takes "
            f"about {each} images a class\n{advice}"
        )


def check(
    file: str | os.PathLike[str],
    data: str,
    images: int = 256,
    split: str | None = None,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda readings, passes: None,
) -> Diagnosis:
    """Examine a weight file with at most so many labelled images of a data set.

    Without class names in the file, labels count the data's classes in alphabetical order. The
    images are a sample with as many of each class as there are of any other, as far as possible,
    and depend on nothing but the split. `progress` is called while it works, with how many readings
    were tried and how many images went through the network. Raises InputError where file or images
    cannot be read, their classes do not agree, below `FEWEST` images and above `MOST`.
    """
    if images > MOST:
        raise InputError(
            f"--images {images:,}: give {MOST:,} at most; what matters shows on far fewer"
        )
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    name = os.fspath(file)
    why = "ONNX says how it is to be read; give the run or weight file that it was made from"
    net, card, _ = load_model(torch_source(file, why))
    seed: Any = card.setting("seed", 0) if card else 0
    val: Any = card.setting("data.val", "auto") if card else "auto"
    known = card.classes if card and card.classes_known else None
    split_name, found, classes = open_split(data, split, known, seed, val)
    outputs = net.arch.num_classes
    if len(classes) != outputs:
        raise InputError(
            f"{harmless(name)} has {outputs} outputs without class names, {harmless(data)} "
            f"{len(classes)} classes\nGive images of all of its classes."
        )
    if min(images, len(found)) < FEWEST:
        raise InputError(
            f"{min(images, len(found))} labelled images say too little; give {FEWEST} at least"
        )
    assumed = card or Card(
        model=name_of(net.arch),
        architecture=net.arch,
        classes=classes,
        preprocess=plain_preprocess(net.arch.input_size, net.arch.in_channels),
    )
    if not assumed.classes_known:
        assumed = _named(assumed, classes)
    likely = (32, 64) if net.arch.stem_stride == 1 else (128, 160, 192, 224, 288)
    sizes = () if card else likely
    chosen = found.take(_sample(found.labels, images))
    bench = Bench(net, assumed, chosen, sizes, threads, progress)
    reading, order = bench.search(), None
    # A step of its own: with its classes in another order a right reading looks wrong.
    for _ in range(2):
        start = reading if bench.beats_guessing(reading) else bench.best_matched()
        again = bench.order(start)
        if again is None or again == order:
            break
        order = again
        bench.relabel(order)
        reading = bench.search()
    clear = bench.beats_guessing(reading)
    if not clear:
        order, reading = None, bench.declared
        bench.relabel(range(outputs))
    labels, untold = chosen.labels, np.zeros(0, np.int64)
    if order is not None:  # which these very images have chosen: they are not judged by it
        labels = bench.cross_matched(reading, len(bench))
        untold = np.flatnonzero(~bench.told(reading, order))
    return Diagnosis(
        file=name,
        data=data,
        split=split_name,
        of=len(found),
        carded=card is not None,
        classes=tuple(classes),
        order=order,
        untold=tuple(untold.tolist()),
        order_asked=bench.asks_order,
        assumed=bench.outcome(bench.declared, chosen.labels),
        diagnosed=bench.outcome(reading, labels),
        comparison=bench.assumed_with(reading, labels),
        findings=bench.findings(reading) if clear else (),
        readings=len(bench.logits),
        passes=bench.passes,
        clear=clear,
        net=net,
        card=assumed,
        preprocess=bench.preprocess(reading),
    )


def correct(diagnosis: Diagnosis, path: str | os.PathLike[str]) -> None:
    """Write the file as it should have been: safetensors with a card that says how to read it.

    A network that takes BGR gets the input channels of its first convolution turned round, which
    changes no answer; scaling and normalisation become the card's mean and std. Raises InputError
    where it is `withheld`, and as `save_weights` does.
    """
    if diagnosis.withheld:
        raise InputError(f"{harmless(path)}: not written: {diagnosis.withheld}")
    found, card = diagnosis.diagnosed, diagnosis.card
    arch = as_read(card.architecture, found.reading)
    state = diagnosis.net.state_dict()
    if found.reading.colour == "BGR":
        first = "conv1.0.weight" if arch.stem == "deep" else "conv1.weight"
        state[first] = state[first].flip(1)
    changed: dict[str, Any] = {
        f.trait: [f.declared, f.found] for f in diagnosis.findings if f.state == "wrong"
    }
    row = name_of(arch)
    fields = card.model_dump() | {
        "model": card.model if row == "custom" else row,
        "architecture": dataclasses.asdict(arch),
        "classes": diagnosis.names,
        "preprocess": diagnosis.preprocess.model_dump(),
        "temperature": 1.0,  # what was fitted was fitted to another reading
        "metrics": (),  # of another reading; and these images have chosen this one
        "provenance": card.provenance | {"check-weights": {"read otherwise": changed}},
    }
    save_weights(path, state, Card.model_validate(fields))


def _named(card: Card, classes: Sequence[str]) -> Card:
    """A card without class names of its own, with those of the data."""
    stated: Any = card.provenance["assumed"]
    assumed = {"assumed": [what for what in stated if what != "classes"]}
    fields = {"classes": classes, "provenance": card.provenance | assumed}
    return Card.model_validate(card.model_dump() | fields)


def _sample(labels: Array, n: int) -> Array:
    """Positions of n images, classes in turn, so that each beginning of them is balanced too."""
    turn = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members[permutation(len(members), 0, int(label))]] = np.arange(len(members))
    ties = hashed(1, turn.astype(np.uint64), labels.astype(np.uint64))
    return np.lexsort((ties, turn))[:n]
