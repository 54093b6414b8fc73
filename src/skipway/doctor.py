"""The import doctor: whether a weight file is read as it was trained, judged by labelled images.

Keys and shapes cannot tell everything: v1 and v1.5 bottlenecks, the paddings of shortcut A,
colours in another order, other values, another epsilon all load without an error and are wrong.
A `Reading` is one way to read a file. Readings are searched, first all together on few images,
then trait by trait on more, and compared by what each says of the same labelled images.

The measure is the cross-entropy at the temperature that suits each reading best: a reading must
not win by making an over-confident network less sure, as a larger epsilon or less contrast does.
Differences are paired by image and come with a bootstrap interval (Efron & Tibshirani 1993,
chapter 13) and, for accuracy, with the exact sign test. What the file declares, or Skipway assumed,
stands unless another reading is better beyond doubt and by an amount that matters.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from skipway.architecture import Architecture, count, name_of, replaced
from skipway.card import Card
from skipway.data import Split, open_split
from skipway.data.feed import decode_all
from skipway.data.keyed import hashed, permutation
from skipway.errors import InputError, harmless
from skipway.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DecodeError,
    Preprocess,
    plain_preprocess,
)
from skipway.metrics import best_temperature, mcnemar, wilson_interval
from skipway.resnet import ResNet
from skipway.weights import load_model, save_weights

Array = npt.NDArray[Any]

FEWEST = 32
"""Labelled images below which nothing is said."""
MOST = 2048
"""Labelled images above which none are taken: all are kept in memory under each framing, and what
matters shows on far fewer."""
CHANCE = 0.001
"""A claim's chance of being wrong, two-sided, as the bootstrap has it: small, as many readings are
compared on the same images, and as with few of them it promises more than it keeps."""
MATTERS = 0.03
"""Share of the loss by which a reading must be better to be preferred to the declared one."""
MATTERS_IN_SIZE = 0.10
"""The same for cropping and size: many networks like test images a little larger than those of
training (1906.06423), which is no mistake."""
_LEAST = 0.003  # nats; below this no difference matters
_RESAMPLES = 10_000
_LIGHT = 500_000_000  # multiply-adds an image up to which a network may see all images each time
_FEW = 64  # images a reading is compared on, at most, where the network is heavier
_NEAREST = 3  # rivals of a trait's value that are looked at closely there
_BATCH = 64  # images that go through the network together

_USUAL_EPS = 1e-5
BN_EPS = (1e-6, _USUAL_EPS, 2e-5, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class Reading:
    """One way to read a weight file: every trait that its tensors do not show."""

    stride_in: str
    """As `Architecture.stride_in`."""
    shortcut: str
    """As `Architecture.shortcut`."""
    antialias: bool
    bn_eps: float
    colour: str
    """RGB or BGR: the order in which the network takes the channels."""
    scaling: str
    """0..1 or 0..255: the values before normalisation."""
    normalisation: str
    """A name of `normalisations`."""
    resize: str
    """A name of `framings`."""


TRAITS = tuple(f.name for f in dataclasses.fields(Reading))

Constants = tuple[tuple[float, ...], tuple[float, ...]]

_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
# In the order RGB; published as (103.939, 116.779, 123.68) of 0..255 in the order BGR.
_CAFFE_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)
_KNOWN: dict[int, dict[str, Constants]] = {
    1: {
        "MNIST": ((0.1307,), (0.3081,)),
        "Fashion-MNIST": ((0.2860,), (0.3530,)),
        "0.5 and 0.25": ((0.5,), (0.25,)),
    },
    3: {
        "ImageNet": (IMAGENET_MEAN, IMAGENET_STD),
        "CIFAR-10": (_CIFAR10_MEAN, (0.2470, 0.2435, 0.2616)),
        "CIFAR-10 (std 0.20)": (_CIFAR10_MEAN, (0.2023, 0.1994, 0.2010)),
        "CIFAR-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        "ImageNet, channels reversed": (IMAGENET_MEAN[::-1], IMAGENET_STD[::-1]),
    },
}


def normalisations(
    declared: Preprocess, mean: Sequence[float], std: Sequence[float]
) -> tuple[dict[tuple[str, str], Preprocess], tuple[str, str]]:
    """Preprocessing by (scaling, normalisation), and which of them is the declared one.

    `mean` and `std` are the images' own, of 0..1. Constants that belong to 0..1 and were used on
    0..255 as they are (a common mistake of training code) are readings too; means without
    deviations are in the unit of the values, as Caffe's.
    """
    channels = declared.channels
    one, none = (1.0,) * channels, (0.0,) * channels
    constants: dict[str, Constants] = {"none": (none, one)}
    constants["0.5 and 0.5"] = ((0.5,) * channels, (0.5,) * channels)
    constants |= _KNOWN.get(channels, {})
    constants["the data's mean and std"] = (tuple(mean), tuple(np.maximum(std, 1e-3).tolist()))
    means: dict[str, Constants] = {"the data's mean": (tuple(mean), one)}
    if channels == 3:
        means["Caffe's mean"] = (_CAFFE_MEAN, one)
    table: dict[tuple[str, str], Constants] = {}
    for name, (m, s) in constants.items():
        table["0..1", name] = (m, s)
        table["0..255", name] = (_over(m, 255), _over(s, 255))
    for name, (m, s) in means.items():
        table["0..1", name] = (m, s)
        table["0..255", name] = (m, _over(s, 255))
    own: Constants = (declared.mean, declared.std)
    ours = "0..255" if max(declared.std) < 0.02 else "0..1"
    known = [key for key, c in table.items() if np.allclose(c, own, rtol=2e-3, atol=1e-6)]
    made: dict[tuple[str, str], Preprocess] = {}
    if known and declared.pixel_mean is None:
        at = known[0]
    else:
        at, factor = (ours, "the card's"), 1 / 255 if ours == "0..255" else 255.0
        other = "0..1" if ours == "0..255" else "0..255"
        scaled = _over(own[0], factor), _over(own[1], factor)
        if declared.pixel_mean is None:
            table[other, "the card's"] = scaled
        else:  # a mean without deviation is in the unit of the values
            made[other, "the card's"] = _updated(declared, std=scaled[1])
        if channels == 3 and own[0] != own[0][::-1] and declared.pixel_mean is None:
            table[ours, "the card's, channels reversed"] = (own[0][::-1], own[1][::-1])
    made |= {
        key: _updated(declared, mean=m, std=s, pixel_mean=None) for key, (m, s) in table.items()
    }
    made[at] = declared  # to the last digit
    return made, at


def _over(values: Iterable[float], factor: float) -> tuple[float, ...]:
    return tuple(value / factor for value in values)


def _updated(preprocess: Preprocess, **fields: Any) -> Preprocess:
    return Preprocess.model_validate(preprocess.model_dump() | fields)


def framings(declared: Preprocess, sizes: Iterable[int]) -> dict[str, Preprocess]:
    """How an image is cut and resized, by name: the declared way first.

    `sizes` are other heights and widths to try, cut as declared. With a per-pixel mean only the
    declared size is possible.
    """
    size = min(declared.size)
    ways = [declared]
    for fields in (
        {"resize": "crop", "short_side": size},
        {"resize": "crop", "short_side": round(size * 256 / 224)},
        {"resize": "squash", "short_side": None},
        {"resize": "letterbox", "short_side": None},
    ):
        ways.append(_updated(declared, **fields))
    if declared.pixel_mean is None:
        for other in sizes:
            short = declared.short_side and max(round(declared.short_side * other / size), other)
            ways.append(_updated(declared, size=(other, other), short_side=short))
    named: dict[str, Preprocess] = {}
    for way in ways:
        name = f"{way.resize} {way.size[0]}x{way.size[1]}"
        if way.resize == "crop":
            name += f" of {way.short_side or min(way.size)}"
        named.setdefault(name, way)
    return named


def tempered(logits: Array, labels: Array) -> Array:
    """The cross-entropy of each image [N] in nats at the best temperature, 0.2 to 100.

    Temperature scaling (1706.04599, section 4.2), fitted to these very images.
    """
    z = (logits - logits.max(axis=1, keepdims=True)) / best_temperature(
        logits, labels, 0.2, 100, 18
    )
    loss: Array = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(labels)), labels]
    return loss


@functools.lru_cache(maxsize=8)
def _resamples(n: int) -> Array:
    return np.random.default_rng(n).integers(0, n, (_RESAMPLES, n), dtype=np.int32)


@dataclass(frozen=True)
class Comparison:
    """One reading against the one that is held to be right, on the same images."""

    n: int
    loss: float
    """Mean of the paired differences in nats; positive: this reading is worse."""
    low: float
    """Lower end of the 99.9 % interval of `loss`."""
    high: float
    accuracy: float
    p: float
    """Two-sided sign test of the images that only one of the two gets right."""
    material: float
    """Nats from which a difference matters."""

    @property
    def worse(self) -> bool:
        """Beyond doubt and by an amount that matters."""
        return self.low > 0 and self.loss >= self.material


@dataclass(frozen=True)
class Outcome:
    """What a reading makes of the images."""

    reading: Reading
    n: int
    accuracy: float
    low: float
    """Lower end of the 95 % interval of the accuracy."""
    high: float
    loss: float
    """Mean cross-entropy in nats at the best temperature."""


@dataclass(frozen=True)
class Finding:
    """What the images say of one trait, the others being as diagnosed."""

    trait: str
    declared: Any
    found: Any
    undecided: tuple[Any, ...]
    """Values that the images cannot tell from the one found."""
    rival: Any = None
    """The value that was compared: the declared one where it is wrong, else the best other."""
    comparison: Comparison | None = None
    """Of the rival with the reading found; None where there is no other value."""

    @property
    def state(self) -> Literal["right", "wrong", "undecided"]:
        """Of the declared value."""
        if self.declared != self.found:
            return "wrong"
        return "undecided" if self.undecided else "right"


@dataclass(frozen=True)
class Diagnosis:
    """The verdict on a weight file; `corrected` makes the file that it should have been."""

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
    """By class, the output that stands for it, where that is another than assumed."""
    assumed: Outcome
    diagnosed: Outcome
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
    def names(self) -> tuple[str, ...]:
        """Class names by output, as diagnosed."""
        if self.order is None:
            return self.classes
        names = [""] * len(self.classes)
        for name, output in zip(self.classes, self.order, strict=True):
            names[output] = name
        return tuple(names)


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
    net, card, _ = load_model(file)
    seed: Any = card.setting("seed", 0) if card else 0
    val: Any = card.setting("data.val", "auto") if card else "auto"
    known = card.classes if card else None
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
    likely = (32, 64) if net.arch.stem_stride == 1 else (128, 160, 192, 224, 288)
    sizes = () if card else likely
    chosen = found.take(_sample(found.labels, images))
    bench = _Bench(net, assumed, chosen, sizes, threads, progress)
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
    return Diagnosis(
        file=name,
        data=data,
        split=split_name,
        of=len(found),
        carded=card is not None,
        classes=tuple(classes),
        order=order,
        assumed=bench.outcome(bench.declared, chosen.labels),
        diagnosed=bench.outcome(reading, bench.labels),
        comparison=bench.assumed_with(reading),
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
    where no reading was found, and as `save_weights` does.
    """
    if not diagnosis.clear:
        raise InputError(f"{harmless(path)}: not written: no reading does better than guessing")
    found, card = diagnosis.diagnosed, diagnosis.card
    arch = _architecture(card.architecture, found.reading)
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


def _sample(labels: Array, n: int) -> Array:
    """Positions of n images, classes in turn, so that each beginning of them is balanced too."""
    turn = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members[permutation(len(members), 0, int(label))]] = np.arange(len(members))
    ties = hashed(1, turn.astype(np.uint64), labels.astype(np.uint64))
    return np.lexsort((ties, turn))[:n]


def _architecture(declared: Architecture, reading: Reading) -> Architecture:
    fields: dict[str, Any] = {
        key: getattr(reading, key) for key in ("stride_in", "shortcut", "antialias", "bn_eps")
    }
    if reading.shortcut == "none":  # what serves training alone and a plain net cannot have
        fields |= {"zero_init_last": False, "drop_path": 0.0}
    return replaced(declared, **fields)


def _matched(predicted: Array, labels: Array, classes: int) -> Array:
    """The output that stands for each class, int64 [classes]: the most frequent pairs first."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    order = np.full(classes, -1)
    free = np.ones(classes, bool)
    for at in np.argsort(-counts, axis=None, kind="stable"):
        label, output = divmod(int(at), classes)
        if order[label] < 0 and free[output] and counts[label, output]:
            order[label], free[output] = output, False
    for label in np.flatnonzero(order < 0).tolist():  # unseen: its own place, else any
        output = label if free[label] else int(np.flatnonzero(free)[0])
        order[label], free[output] = output, False
    return order


class _Bench:
    """The labelled images, the network under each reading, and what it said; kept, as most
    readings are asked for more than once."""

    def __init__(
        self,
        net: ResNet,
        card: Card,
        images: Split,
        sizes: Iterable[int],
        threads: int,
        progress: Callable[[int, int], None],
    ) -> None:
        self.arch, self.images, self.threads = card.architecture, images, threads
        self.labels: Array = images.labels
        self.progress = progress
        self.state = net.state_dict()
        self.logits: dict[Reading, Array] = {}
        self.passes = 0
        self._frames: dict[str, list[Array]] = {}
        self._nets: dict[Architecture, ResNet] = {}
        self._losses: dict[tuple[Reading, int], Array] = {}
        self.framings = framings(card.preprocess, sizes)
        native = next(iter(self.framings))
        self.framings = self._different()
        mean, std = _moments(self._framed(native))
        self.normalisations, (scaling, normalisation) = normalisations(card.preprocess, mean, std)
        self.declared = Reading(
            self.arch.stride_in, self.arch.shortcut, self.arch.antialias, self.arch.bn_eps, "RGB",
            scaling, normalisation, native,
        )  # fmt: skip
        light = count(self.arch)[1] <= _LIGHT
        self.first = 32 if light else 8
        self.most = len(images) if light else min(_FEW, len(images))

    def __len__(self) -> int:
        return len(self.images)

    def _framed(self, resize: str) -> list[Array]:
        """All images under a framing, in parts: decoded `FEWEST` at a time, the rest at the end."""
        return self._between(resize, 0, len(self))

    def _part(self, resize: str, i: int) -> Array:
        parts = self._frames.setdefault(resize, [])
        while len(parts) <= i:
            low = FEWEST * len(parts)
            some = self.images.take(np.arange(low, min(low + FEWEST, len(self))))
            frames, scanned = decode_all(some, self.framings[resize], self.threads)
            if scanned.failed:
                raise DecodeError(f"{scanned.failed[0][1]}\nTake it out, or give other images.")
            parts.append(frames)
        return parts[i]

    def _between(self, resize: str, low: int, high: int) -> list[Array]:
        """The images low to high under a framing, in parts."""
        parts = []
        for i in range(low // FEWEST, math.ceil(high / FEWEST)):
            start = FEWEST * i
            parts.append(self._part(resize, i)[max(low - start, 0) : high - start])
        return parts

    def _different(self) -> dict[str, Preprocess]:
        """The framings that differ on the first images from those before them."""
        seen: dict[tuple[Any, bytes], str] = {}
        for name in self.framings:
            frames = self._part(name, 0)
            seen.setdefault((frames.shape, frames.tobytes()), name)
        return {name: self.framings[name] for name in seen.values()}

    def preprocess(self, reading: Reading) -> Preprocess:
        """How images become input under a reading, the network's channels in the order RGB."""
        numbers = self.normalisations[reading.scaling, reading.normalisation]
        mine = {key: getattr(numbers, key) for key in ("mean", "std", "pixel_mean")}
        return _updated(self.framings[reading.resize], **mine)

    def _net(self, reading: Reading) -> ResNet:
        arch = _architecture(self.arch, dataclasses.replace(reading, bn_eps=self.arch.bn_eps))
        if arch not in self._nets:
            with torch.random.fork_rng(devices=[]):
                net = ResNet(arch)
            net.load_state_dict(self.state, assign=True)  # all share one memory
            self._nets[arch] = net.eval().to(memory_format=torch.channels_last)
        net = self._nets[arch]
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = reading.bn_eps
        return net

    @torch.inference_mode()
    def run(self, reading: Reading, n: int) -> Array:
        """Logits of the first n images, float64 [n, K]; zero where they are not finite."""
        have = self.logits.get(reading, np.zeros((0, self.arch.num_classes)))
        if len(have) < n:
            net, preprocess, found = self._net(reading), self.preprocess(reading), [have]
            at = len(have)
            while at < n:
                frames = self._between(reading.resize, at, min(n, at + _BATCH))
                x = np.concatenate([preprocess.normalise(part) for part in frames])
                if reading.colour == "BGR":
                    x = np.ascontiguousarray(x[:, ::-1])
                batch = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
                found.append(net(batch).double().numpy())
                at += len(x)
            self.passes += n - len(have)
            have = np.concatenate(found)
            have[~np.isfinite(have).all(axis=1)] = 0
            self.logits[reading] = have
            self.progress(len(self.logits), self.passes)
        return have[:n]

    def loss(self, reading: Reading, n: int) -> Array:
        """`tempered` on the first n images."""
        if (reading, n) not in self._losses:
            self._losses[reading, n] = tempered(self.run(reading, n), self.labels[:n])
        return self._losses[reading, n]

    def relabel(self, order: Iterable[int]) -> None:
        """Let output order[c] stand for class c of the data."""
        self.labels = np.array(list(order))[self.images.labels]
        self._losses.clear()

    def correct(self, reading: Reading, n: int) -> Array:
        return self.run(reading, n).argmax(axis=1) == self.labels[:n]

    def outcome(self, reading: Reading, labels: Array) -> Outcome:
        """On all images, under these labels."""
        n, logits = len(self), self.run(reading, len(self))
        right = int((logits.argmax(axis=1) == labels).sum())
        low, high = wilson_interval(right, n)
        loss = float(tempered(logits, labels).mean())
        return Outcome(reading, n, right / n, low, high, loss)

    def beats_guessing(self, reading: Reading) -> bool:
        """Whether the accuracy is above that of always naming the most frequent class."""
        right = int(self.correct(reading, len(self)).sum())
        guess = np.bincount(self.labels).max() / len(self)
        return bool(wilson_interval(right, len(self))[0] > guess)

    def compare(self, other: Reading, held: Reading, n: int) -> Comparison:
        """A reading with the one that is held to be right, on the first n images."""
        share = MATTERS if other.resize == held.resize else MATTERS_IN_SIZE
        losses = self.loss(other, n), self.loss(held, n)
        return _compared(*losses, self.correct(other, n), self.correct(held, n), share)

    def assumed_with(self, reading: Reading) -> Comparison:
        """The declared reading, its classes in the declared order too, with another."""
        n, labels = len(self), self.images.labels
        logits = self.run(self.declared, n)
        return _compared(
            tempered(logits, labels), self.loss(reading, n),
            logits.argmax(axis=1) == labels, self.correct(reading, n), MATTERS,
        )  # fmt: skip

    def moves(self, at: Reading) -> list[list[Reading]]:
        """The readings around one: pixels, structure, epsilon, framing; each with itself."""

        def around(**choices: Iterable[Any]) -> list[Reading]:
            some = [at]
            for key, values in choices.items():
                values = list(values)
                some = [dataclasses.replace(r, **{key: v}) for r in some for v in values]
            return some

        pixels = [
            dataclasses.replace(at, scaling=scaling, normalisation=normalisation, colour=colour)
            for scaling, normalisation in self.normalisations
            for colour in self._colours
        ]
        structure = [
            reading
            for reading in around(
                stride_in=self._strides, shortcut=self._shortcuts, antialias=(False, True)
            )
            if self._exists(reading)
        ]
        epsilons = around(bn_eps=sorted({*BN_EPS, self.arch.bn_eps}))
        return [pixels, structure, epsilons, around(resize=self.framings)]

    @property
    def _colours(self) -> tuple[str, ...]:
        return ("RGB", "BGR") if self.arch.in_channels == 3 else ("RGB",)

    @property
    def _strides(self) -> tuple[str, ...]:
        return ("3x3", "1x1") if self.arch.block == "bottleneck" else (self.arch.stride_in,)

    @property
    def _shortcuts(self) -> tuple[str, ...]:
        alike = ("A", "A-split", "none")
        return alike if self.arch.shortcut in alike else (self.arch.shortcut,)

    def _exists(self, reading: Reading) -> bool:
        try:
            _architecture(self.arch, reading)
        except InputError:
            return False
        return reading.antialias == self.arch.antialias or self._strides_at_all

    @property
    def _strides_at_all(self) -> bool:
        return self.arch.stem != "cifar" or len(self.arch.depths) > 1

    def grid(self) -> list[Reading]:
        """Every structure with every order of colours and the normalisations that differ much, and
        the declared reading with every epsilon and with or without blur."""
        much = (
            ("0..1", "none"), ("0..1", "0.5 and 0.5"), ("0..255", "none"),
            ("0..1", "the data's mean and std"), ("0..1", "the data's mean"),
            ("0..255", "ImageNet"), ("0..255", "Caffe's mean"),
            ("0..1", "the card's"), ("0..255", "the card's"),
        )  # fmt: skip
        keys = [key for key in much if key in self.normalisations]
        plain = dataclasses.replace
        pixels = [
            plain(self.declared, scaling=scaling, normalisation=normalisation, colour=colour)
            for scaling, normalisation in [
                (self.declared.scaling, self.declared.normalisation), *keys
            ]
            for colour in self._colours
        ]  # fmt: skip
        _, structures, epsilons, _ = self.moves(self.declared)
        joint = [
            plain(p, stride_in=s.stride_in, shortcut=s.shortcut)
            for p in dict.fromkeys(pixels)
            for s in structures
            if s.antialias == self.arch.antialias
        ]
        return list(dict.fromkeys([*joint, *structures, *epsilons]))

    def race(self, readings: Iterable[Reading], most: int) -> Reading:
        """The best of the readings: on few images, then the better half on twice as many."""
        alive, n = list(dict.fromkeys(readings)), min(self.first, most)
        while True:
            alive.sort(key=lambda r: float(self.loss(r, n).mean()))
            best = self.loss(alive[0], n)
            if n >= most or len(alive) == 1:
                return alive[0]
            kept = alive[:1]
            for reading in alive[1 : max(4, len(alive) // 2)]:
                d = self.loss(reading, n) - best
                if d.mean() <= 4 * d.std(ddof=1) / math.sqrt(n) + _material(best, MATTERS):
                    kept.append(reading)
            alive, n = kept, min(2 * n, most)

    def search(self) -> Reading:
        """The best reading, as near to the declared one as the images allow."""
        best = self.race(self.grid(), min(self.most, _FEW))
        for _ in range(3):
            before = best
            for i in range(4):
                best = self.race([best, *self.moves(best)[i]], self.most)
            if best == before:
                break
        pixels = ("scaling", "normalisation")
        for traits in (pixels, *((trait,) for trait in TRAITS)):
            declared = {trait: getattr(self.declared, trait) for trait in traits}
            nearer = dataclasses.replace(best, **declared)
            exists = (nearer.scaling, nearer.normalisation) in self.normalisations
            if exists and self._exists(nearer) and not self._worse(nearer, best):
                best = nearer
        if best.bn_eps != self.declared.bn_eps:
            usual = dataclasses.replace(best, bn_eps=_USUAL_EPS)
            best = best if self._worse(usual, best) else usual
        return best if self._worse(self.declared, best) else self.declared

    def _worse(self, other: Reading, held: Reading) -> bool:
        return other != held and self.compare(other, held, len(self)).worse

    def findings(self, held: Reading) -> tuple[Finding, ...]:
        """What the images say of each trait that could have been otherwise."""
        pixels, structure, epsilons, frames = self.moves(held)
        groups = dict.fromkeys(TRAITS, structure) | {
            "bn_eps": epsilons, "colour": pixels, "scaling": pixels, "normalisation": pixels,
            "resize": frames,
        }  # fmt: skip
        found = []
        for trait, readings in groups.items():
            rivals = [r for r in readings if getattr(r, trait) != getattr(held, trait)]
            same = [t for t in TRAITS if t != trait and (trait, t) != ("scaling", "normalisation")]
            rivals = [r for r in rivals if all(getattr(r, t) == getattr(held, t) for t in same)]
            if rivals:
                found.append(self._finding(trait, held, rivals))
        return tuple(found)

    def _finding(self, trait: str, held: Reading, rivals: list[Reading]) -> Finding:
        first = min(self.first, self.most)
        rivals.sort(key=lambda r: float(self.loss(r, first).mean()))
        if self.most < len(self):  # a heavy network
            rivals = rivals[:_NEAREST]
        told = {rival: self._examined(rival, held) for rival in rivals}
        value = {rival: getattr(rival, trait) for rival in rivals}
        undecided = tuple(dict.fromkeys(value[r] for r in rivals if not told[r].worse))
        declared, mine = getattr(self.declared, trait), getattr(held, trait)
        rival = min(rivals, key=lambda r: told[r].loss)
        comparison = told[rival]
        if declared != mine:
            rival = dataclasses.replace(held, **{trait: declared})
            if (rival.scaling, rival.normalisation) not in self.normalisations:
                normalisation = self.declared.normalisation
                rival = dataclasses.replace(rival, normalisation=normalisation)
            if (rival.scaling, rival.normalisation) not in self.normalisations:
                rival = dataclasses.replace(rival, scaling=self.declared.scaling)
            comparison = self.compare(rival, held, len(self))
            if comparison.worse:  # of all images, where `told` may be of few
                undecided = tuple(value for value in undecided if value != declared)
        return Finding(trait, declared, mine, undecided, getattr(rival, trait), comparison)

    def _examined(self, rival: Reading, held: Reading) -> Comparison:
        """On as few images as tell the two apart, at most `most`."""
        n = min(32, self.most)
        while True:
            comparison = self.compare(rival, held, n)
            if comparison.worse or n >= self.most:
                return comparison
            n = min(2 * n, self.most)

    def best_matched(self) -> Reading:
        """The reading whose predictions follow the classes best, whatever their order."""
        n = min(len(self), _FEW)

        def followed(reading: Reading) -> float:
            return float(self._cross_matched(reading, n).mean())

        return max(self.grid(), key=followed)

    def _cross_matched(self, reading: Reading, n: int) -> Array:
        """Whether each of the first n images is right where classes are matched to outputs on the
        other half of them: bool [n]."""
        predicted, labels = self.run(reading, n).argmax(axis=1), self.images.labels[:n]
        half = np.arange(n) % 2 == 0
        right = np.zeros(n, bool)
        for test, fit in ((half, ~half), (~half, half)):
            order = _matched(predicted[fit], labels[fit], self.arch.num_classes)
            right[test] = order[labels[test]] == predicted[test]
        return right

    def order(self, reading: Reading) -> tuple[int, ...] | None:
        """The output for each class, where another order than the declared is better beyond doubt.

        None too where there are too few images for so many classes.
        """
        n, classes = len(self), self.arch.num_classes
        if n < 4 * classes:
            return None
        predicted = self.run(reading, n).argmax(axis=1)
        as_declared, matched = predicted == self.images.labels, self._cross_matched(reading, n)
        wins, losses = int((matched & ~as_declared).sum()), int((as_declared & ~matched).sum())
        if wins - losses < 0.1 * n or mcnemar(wins, losses) > CHANCE:
            return None
        return tuple(_matched(predicted, self.images.labels, classes).tolist())


def _moments(parts: Iterable[Array]) -> tuple[list[float], list[float]]:
    """Mean and deviation by channel, of 0..1, of frames [N, H, W, C] in parts."""
    n, first, second = 0, np.zeros(()), np.zeros(())
    for part in parts:  # one by one: as float64 they take eight times their memory
        flat = part.reshape(-1, part.shape[-1]) / np.iinfo(part.dtype).max
        n, first, second = n + len(flat), first + flat.sum(axis=0), second + (flat**2).sum(axis=0)
    mean = first / n
    return mean.tolist(), np.sqrt(np.maximum(second / n - mean**2, 0)).tolist()


def _material(held: Array, share: float) -> float:
    return max(_LEAST, share * float(held.mean()))


def _compared(
    other: Array, held: Array, other_right: Array, held_right: Array, share: float
) -> Comparison:
    """Losses [N] and hits [N] of two readings."""
    d = other - held
    low, high = np.quantile(d[_resamples(len(d))].mean(axis=1), [CHANCE / 2, 1 - CHANCE / 2])
    wins = int((other_right & ~held_right).sum())
    losses = int((held_right & ~other_right).sum())
    return Comparison(
        n=len(d),
        loss=float(d.mean()),
        low=float(low),
        high=float(high),
        accuracy=float(other_right.mean()),
        p=mcnemar(wins, losses),
        material=_material(held, share),
    )
