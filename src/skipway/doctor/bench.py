"""The search for the reading under which a network answers best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from skipway.architecture import Architecture, count
from skipway.card import Card
from skipway.data import Split
from skipway.data.feed import decode_all
from skipway.doctor.evidence import (
    CHANCE,
    FEWEST,
    MATTERS,
    MATTERS_IN_SIZE,
    Array,
    Comparison,
    Finding,
    Outcome,
    compared,
    material,
    tempered,
)
from skipway.doctor.readings import (
    TRAITS,
    Reading,
    as_read,
    framings,
    normalisations,
    updated,
)
from skipway.errors import InputError
from skipway.images import DecodeError, Preprocess
from skipway.metrics import mcnemar, wilson_interval
from skipway.resnet import ResNet

_LIGHT = 500_000_000  # multiply-adds an image up to which a network may see all images each time
_FEW = 64  # images a reading is compared on, at most, where the network is heavier
_NEAREST = 3  # rivals of a trait's value that are looked at closely there
A_CLASS = 4
"""Images a class from which on the order of classes is asked for."""
TELLS = 20
"""Images a class that tell all of its classes, of 100 and a network that is right for 3 of 4."""
_PARTS = 4  # of each class's images: each is answered for by what is matched on the others
_RESAMPLES = 200
_NEARLY_ALL = 0.99
_BATCH = 64  # images that go through the network together
_USUAL_EPS = 1e-5
BN_EPS = (1e-6, _USUAL_EPS, 2e-5, 1e-4, 1e-3, 1e-2)


class Bench:
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
        return updated(self.framings[reading.resize], **mine)

    def _net(self, reading: Reading) -> ResNet:
        arch = as_read(self.arch, dataclasses.replace(reading, bn_eps=self.arch.bn_eps))
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
        return compared(*losses, self.correct(other, n), self.correct(held, n), share)

    def assumed_with(self, reading: Reading, labels: Array) -> Comparison:
        """The declared reading, its classes in the declared order too, with another under these
        labels."""
        pairs = ((self.declared, self.images.labels), (reading, labels))
        said = [(self.run(r, len(self)), of) for r, of in pairs]
        first, second = (tempered(logits, of) for logits, of in said)
        one, other = (logits.argmax(axis=1) == of for logits, of in said)
        return compared(first, second, one, other, MATTERS)

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
            as_read(self.arch, reading)
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
                if d.mean() <= 4 * d.std(ddof=1) / math.sqrt(n) + material(best, MATTERS):
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
        further = rivals[_NEAREST:] if self.most < len(self) else []  # of a heavy network
        rivals = rivals[: len(rivals) - len(further)]
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
        compared_with = {*value.values(), getattr(rival, trait)}
        left = dict.fromkeys(getattr(r, trait) for r in further)
        untried = tuple(v for v in left if v not in compared_with)
        return Finding(trait, declared, mine, undecided, getattr(rival, trait), comparison, untried)

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
            predicted = self.run(reading, n).argmax(axis=1)
            return float((predicted == self.cross_matched(reading, n)).mean())

        return max(self.grid(), key=followed)

    def cross_matched(self, reading: Reading, n: int) -> Array:
        """The output that stands for the class of each of the first n images, as the images of the
        other parts have it: int64 [n]. A class has its images in all parts."""
        predicted, labels = self.run(reading, n).argmax(axis=1), self.images.labels[:n]
        part, output = _turns(labels) % _PARTS, np.zeros(n, np.int64)
        for test in (part == i for i in range(_PARTS)):
            order = _matched(_counts(predicted[~test], labels[~test], self.arch.num_classes))
            output[test] = order[labels[test]]
        return output

    @property
    def asks_order(self) -> bool:
        return len(self) >= A_CLASS * self.arch.num_classes

    def order(self, reading: Reading) -> tuple[int, ...] | None:
        """The output for each class, where another order than the declared is better beyond doubt.

        None too where there are too few images for so many classes.
        """
        n, classes = len(self), self.arch.num_classes
        if not self.asks_order:
            return None
        predicted = self.run(reading, n).argmax(axis=1)
        as_declared = predicted == self.images.labels
        matched = predicted == self.cross_matched(reading, n)
        wins, losses = int((matched & ~as_declared).sum()), int((as_declared & ~matched).sum())
        if wins - losses < 0.1 * n or mcnemar(wins, losses) > CHANCE:
            return None
        return tuple(_matched(_counts(predicted, self.images.labels, classes)).tolist())

    def told(self, reading: Reading, order: Iterable[int]) -> Array:
        """Whether the images tell which output stands for a class, bool [classes]: of `A_CLASS` at
        least, where nearly all resamples of each class's images match it to that of the order."""
        predicted, labels = self.run(reading, len(self)).argmax(axis=1), self.images.labels
        counts, expected = _counts(predicted, labels, self.arch.num_classes), np.array([*order])
        n = counts.sum(axis=1)
        rng, own = np.random.default_rng(len(self)), np.arange(len(n))
        same = np.zeros(len(n))
        for _ in range(_RESAMPLES):
            drawn = rng.multinomial(n, counts / np.maximum(n, 1)[:, None])
            answered = drawn[own, expected] > 0  # else it took what was left
            same += answered & (_matched(drawn, rng) == expected)
        told: Array = (n >= A_CLASS) & (same >= _NEARLY_ALL * _RESAMPLES)
        return told


def _turns(labels: Array) -> Array:
    """Which image of its class each is, 0 for the first: int64 [n]."""
    turn = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    return turn


def _counts(predicted: Array, labels: Array, classes: int) -> Array:
    """Images by class and by the output that is highest: int64 [classes, classes]."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def _matched(counts: Array, rng: np.random.Generator | None = None) -> Array:
    """The output that stands for each class, int64 [classes], so that most images are right.

    counts: of `_counts`. Of orders that are equal the nearest to the declared one, or any by lot.
    """
    from scipy.optimize import linear_sum_assignment

    classes = len(counts)
    first = np.eye(classes) if rng is None else rng.random(counts.shape)
    found: Array = linear_sum_assignment(counts + first / (2 * classes), maximize=True)[1]
    return found


def _moments(parts: Iterable[Array]) -> tuple[list[float], list[float]]:
    """Mean and deviation by channel, of 0..1, of frames [N, H, W, C] in parts."""
    n, first, second = 0, np.zeros(()), np.zeros(())
    for part in parts:  # one by one: as float64 they take eight times their memory
        flat = part.reshape(-1, part.shape[-1]) / np.iinfo(part.dtype).max
        n, first, second = n + len(flat), first + flat.sum(axis=0), second + (flat**2).sum(axis=0)
    mean = first / n
    return mean.tolist(), np.sqrt(np.maximum(second / n - mean**2, 0)).tolist()
