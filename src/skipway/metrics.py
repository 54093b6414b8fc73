"""Metrics of classification, in NumPy. Inputs are per image; labels count from 0."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.answers import softmax
from skipway.bootstrap import FEWEST, Interval, Statistic, mean_of, student

Array = npt.NDArray[Any]

_ROUNDING = 1e-9
"""Share of a mean by which those of equal groups may be apart."""


def top_k(logits: Array, labels: Array, k: int) -> Array:
    """Whether each label [N] is among the k highest of its logits [N, K]: bool [N].

    An equal logit of an earlier class counts as higher, as in `answers.best_classes`.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    classes = np.arange(logits.shape[1])
    above = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    return above.sum(axis=1) < k


def calibration(confidence: Array, correct: Array, bins: int = 15) -> list[dict[str, float]]:
    """Bins of equal width over confidence 0..1: low, high, n, mean confidence, accuracy.

    Empty bins are left out (1706.04599, section 2).
    """
    place = _bins(confidence, bins)
    rows = []
    for b in range(bins):
        inside = place == b
        if inside.any():
            rows.append(
                {
                    "low": b / bins,
                    "high": (b + 1) / bins,
                    "n": int(inside.sum()),
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(correct[inside].mean()),
                }
            )
    return rows


def _bins(confidence: Array, bins: int) -> Array:
    """The bin of each image [N]; a bin holds its upper end. What is no number is in the last."""
    upper = np.fmin(np.ceil(confidence * bins), bins)  # a NaN has no whole number to become
    return np.maximum(upper.astype(int) - 1, 0)


def expected_calibration_error(confidence: Array, correct: Array, bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over the bins, 0..1 (1706.04599, eq. 3)."""
    rows = calibration(confidence, correct, bins)
    return sum(r["n"] * abs(r["confidence"] - r["accuracy"]) for r in rows) / len(confidence)


def calibration_error_of(confidence: Array, correct: Array, bins: int = 15) -> Statistic:
    """`expected_calibration_error` of resamples of these images."""
    gaps = np.zeros((len(confidence), bins))
    gaps[np.arange(len(gaps)), _bins(confidence, bins)] = confidence - correct

    def error(counts: Array) -> Array:
        return np.abs(counts @ gaps).sum(axis=1) / counts.sum(axis=1)

    return error


def best_temperature(
    logits: Array, labels: Array, low: float = 0.01, high: float = 100, steps: int = 40
) -> float:
    """The temperature between `low` and `high` that gives logits [N, K] the least cross-entropy
    (1706.04599, section 4.2).

    The loss is convex in one over the temperature: its slope is followed to 0 by `steps`
    bisections on a logarithmic scale. Where it has no least value, an end comes out.
    """
    z = np.asarray(logits, np.float64)
    z = z - z.max(axis=1, keepdims=True)
    own = z[np.arange(len(labels)), labels]
    lower, upper = math.log(1 / high), math.log(1 / low)
    for _ in range(steps):
        middle = (lower + upper) / 2
        expected = (softmax(math.exp(middle) * z) * z).sum(axis=1)
        if (expected - own).mean() > 0:
            upper = middle
        else:
            lower = middle
    return math.exp(-(lower + upper) / 2)


def selective_risk(confidence: Array, correct: Array) -> Array:
    """The share that is wrong of the k most confident images, for k = 1 to N: float64 [N].

    Its mean is the area under the risk-coverage curve, AURC (1805.08206, section 3). Of images of
    equal confidence, as many are taken as are needed, each with equal probability.
    """
    _, group, size = np.unique(-confidence, return_inverse=True, return_counts=True)
    wrong = np.repeat(np.bincount(group, ~np.asarray(correct, bool)) / size, size)
    risk: Array = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    return risk


def calibration_by_chance(confidence: Array, n: Array) -> tuple[float, float]:
    """The expected calibration error that confidence without fault has on so few images, and its
    standard deviation, 0..1 both.

    confidence: float [B], mean of each bin; n: whole numbers [B], its images. How many of them are
    right is then binomial, whose mean deviation is de Moivre's (Diaconis and Zabell 1991).
    """
    total, mean, variance = float(np.sum(n)), 0.0, 0.0
    for p, images in zip(np.asarray(confidence, np.float64).tolist(), n.tolist(), strict=True):
        size = round(images)
        if size < 1 or not 0 < p < 1:  # nothing deviates
            continue
        k = math.floor(size * p) + 1
        choices = math.lgamma(size + 1) - math.lgamma(k + 1) - math.lgamma(size - k + 1)
        likelihood = math.exp(choices + k * math.log(p) + (size - k + 1) * math.log1p(-p))
        mean += 2 * k * likelihood
        variance += size * p * (1 - p) - (2 * k * likelihood) ** 2
    return mean / total, math.sqrt(max(variance, 0.0)) / total


def wilson_interval(correct: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson 1927); holds at 0 and 1 and for small n."""
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = max(centre - half, 0.0), min(centre + half, 1.0)
    return low if correct else 0.0, high if correct < n else 1.0  # rounded, it would miss them


def grouped_interval(values: Array, groups: Array) -> Interval | None:
    """The 95 % interval of the mean of values of 0..1 [N] that come in groups [N], as queries do in
    classes: of what other groups would give.

    The variance is the jackknife's, one group left out at a time; of groups of one size it is that
    of their means. Wilson's interval of as many independent values as have it, with Student's t, is
    told (Korn and Graubard 1998, Survey Methodology 24, 193): it holds near 0 and 1. Where all
    values are 0 or all are 1, each group counts as one. None of fewer than `FEWEST` groups, and
    where all have one mean in between: nothing measured is so certain.
    """
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    count, n = len(size), len(groups)
    if count < FEWEST:
        return None
    mean = float(np.mean(values))
    if mean in (0, 1):
        return wilson_interval(mean * count, count)
    moved = (np.bincount(group, values) - size * mean) / (n - size)  # by leaving a group out
    variance = (count - 1) / count * float(np.square(moved).sum())
    if variance <= (_ROUNDING * mean) ** 2:
        return None
    alike = mean * (1 - mean) / variance
    return wilson_interval(mean * alike, alike, student(count - 1))


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 of each class, 0..1, float64 [K]; NaN where there is nothing to
    divide by."""

    n: Array
    """Images of the class."""
    precision: Array
    recall: Array
    f1: Array

    def interval(self, k: int) -> tuple[float, float] | None:
        """The 95 % interval of the recall of class k; None for a class without images."""
        n = int(self.n[k])
        return wilson_interval(round(float(self.recall[k]) * n), n) if n else None


def class_scores(confusion: Array) -> ClassScores:
    """From counts [K, K], rows labels and columns predictions."""
    counts = np.asarray(confusion, np.float64)
    hits, n, answers = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return ClassScores(n, hits / answers, hits / n, 2 * hits / (n + answers))


def mcnemar(only_first: int, only_second: int) -> float:
    """p of the exact test that two models are right equally often (McNemar 1947, two-sided).

    only_first, only_second: images that the one got right and the other did not.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    whole = math.lgamma(n + 1) - n * math.log(2)
    tail = (math.exp(whole - math.lgamma(i + 1) - math.lgamma(n - i + 1)) for i in range(k + 1))
    return min(1.0, 2 * math.fsum(tail))


def paired_interval(both: int, only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """The 95 % interval of second minus first accuracy on the same n images: Newcombe 1998
    (Statistics in Medicine 17, 2635), method 10, from Wilson's of each. It holds where the two
    differ on few images or none, where a bootstrap's is too narrow.

    both, only_first, only_second: images that both got right, and one of them alone.
    """
    first, second = both + only_first, both + only_second
    p, q = second / n, first / n
    (p_low, p_high), (q_low, q_high) = (wilson_interval(right, n) for right in (second, first))
    together = float(both * (n - both - only_first - only_second) - only_first * only_second)
    if together > 0:  # for continuity
        together = max(together - n / 2, 0)
    sides = first * (n - first) * second * (n - second)
    phi = together / math.sqrt(sides) if sides else 0.0

    def reach(of_one: float, of_other: float) -> float:
        return math.sqrt(max(of_one**2 - 2 * phi * of_one * of_other + of_other**2, 0.0))

    return p - q - reach(p - p_low, q_high - q), p - q + reach(p_high - p, q - q_low)


@dataclass(frozen=True)
class PairedAccuracy:
    """The accuracy of two models on the same images."""

    n: int
    both: int
    """Images that both got right."""
    only_first: int
    only_second: int
    difference: float
    """Second minus first accuracy."""
    interval: tuple[float, float]
    """Its 95 % interval, `paired_interval`."""
    p: float
    """Of McNemar's exact test."""

    @classmethod
    def of(cls, first: Array, second: Array) -> PairedAccuracy:
        """From whether each model got each image right: bool [N] each."""
        n, both = len(first), int((first & second).sum())
        only_first, only_second = int(first.sum()) - both, int(second.sum()) - both
        return cls(
            n=n,
            both=both,
            only_first=only_first,
            only_second=only_second,
            difference=(only_second - only_first) / n,
            interval=paired_interval(both, only_first, only_second, n),
            p=mcnemar(only_first, only_second),
        )


def fisher(hits: int, n: int, other_hits: int, others: int) -> float:
    """p of the exact test that two groups of images have equal shares of hits (Fisher 1935,
    two-sided: all tables that are no more probable than the one found)."""
    total, right = n + others, hits + other_hits
    log = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])  # of factorials
    k = np.arange(max(0, right - others), min(n, right) + 1)
    whole = log[n] + log[others] + log[right] + log[total - right] - log[total]
    parts = log[k] + log[n - k] + log[right - k] + log[others - right + k]
    probability = np.exp(whole - parts)
    found = probability[hits - k[0]]
    return min(1.0, float(probability[probability <= found * (1 + 1e-7)].sum()))


def holm(values: Array) -> Array:
    """p values of several tests at once, each adjusted so that 0.05 holds for all together
    (Holm 1979)."""
    values = np.asarray(values, np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * (len(values) - np.arange(len(values))))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1)
    return adjusted


@dataclass(frozen=True)
class Outcomes:
    """What became of each image of a split, in its order, small enough to be kept."""

    label: Array
    predicted: Array
    confidence: Array
    """Of the answer, 0..1, to 16 bits."""

    @property
    def correct(self) -> Array:
        """Whether the label was predicted: bool [N]."""
        same: Array = self.predicted == self.label
        return same

    def packed(self, classes: int) -> dict[str, Any]:
        """As JSON: n, and base64 of each column, 8 bytes an image at most."""
        kind = np.min_scalar_type(max(classes - 1, 0)).newbyteorder("<")
        levels = np.rint(self.confidence * 65535).astype("<u2")
        columns = (self.label.astype(kind), self.predicted.astype(kind), levels)
        names = ("label", "predicted", "confidence")
        return {"n": len(levels)} | {
            name: base64.b64encode(column.tobytes()).decode("ascii")
            for name, column in zip(names, columns, strict=True)
        }

    @classmethod
    def unpacked(cls, value: Mapping[str, Any], classes: int) -> Outcomes | None:
        """From what `packed` gave; None where it is something else."""
        kind = np.min_scalar_type(max(classes - 1, 0)).newbyteorder("<")
        try:
            label, predicted = (
                np.frombuffer(base64.b64decode(value[name], validate=True), kind).astype(np.int64)
                for name in ("label", "predicted")
            )
            raw = np.frombuffer(base64.b64decode(value["confidence"], validate=True), "<u2")
        except (KeyError, TypeError, ValueError):
            return None
        if not len(label) == len(predicted) == len(raw) == value.get("n") or not len(raw):
            return None
        if max(label.max(), predicted.max()) >= classes:
            return None
        return cls(label, predicted, raw / 65535)


KEPT_CLASSES = 5
"""The most probable classes that are kept of each image."""


@dataclass(frozen=True)
class Scored:
    """The outcome of each image of a split, by its index in the split."""

    index: Array
    label: Array
    predicted: Array
    confidence: Array
    """Probability of the predicted class."""
    true_score: Array
    """Probability of the label."""
    in_top5: Array
    best: Array
    """The most probable classes, the first first: [N, min(K, KEPT_CLASSES)]."""
    best_score: Array
    """Their probabilities."""

    @classmethod
    def from_logits(cls, logits: Array, labels: Array, index: Array) -> Scored:
        """From logits [N, K], labels [N] and positions in the split [N]."""
        logits = np.asarray(logits, np.float64)
        p = softmax(logits)
        predicted = p.argmax(axis=1)
        rows = np.arange(len(labels))
        best = np.argsort(-p, axis=1, kind="stable")[:, :KEPT_CLASSES]
        return cls(
            index=index,
            label=labels,
            predicted=predicted,
            confidence=p[rows, predicted],
            true_score=p[rows, labels],
            in_top5=top_k(logits, labels, 5),
            best=best,
            best_score=np.take_along_axis(p, best, axis=1),
        )

    @classmethod
    def merge(cls, parts: list[Scored]) -> Scored:
        """All parts in the order of the split, each image once however often it was scored."""
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in cls.__dataclass_fields__
        }
        _, first = np.unique(columns["index"], return_index=True)
        return cls(**{name: column[first] for name, column in columns.items()})

    @property
    def correct(self) -> Array:
        """Whether the label was predicted: bool [N]."""
        return self.predicted == self.label

    def take(self, positions: Array) -> Scored:
        """Those images only, in that order."""
        columns = {name: getattr(self, name)[positions] for name in self.__dataclass_fields__}
        return Scored(**columns)

    @property
    def losses(self) -> Array:
        """The cross-entropy of each image in nats: [N]."""
        tiny = np.finfo(np.float64).tiny
        return -np.log(np.maximum(self.true_score, tiny))

    def statistics(self) -> dict[str, Statistic]:
        """`metrics` of resamples of these images."""
        return {
            "accuracy": mean_of(self.correct),
            "top5": mean_of(self.in_top5),
            "loss": mean_of(self.losses),
            "ece": calibration_error_of(self.confidence, self.correct),
        }

    def metrics(self) -> dict[str, float]:
        """accuracy, top5 and ece in 0..1, and loss: the mean cross-entropy in nats."""
        return {
            "accuracy": float(self.correct.mean()),
            "top5": float(self.in_top5.mean()),
            "loss": float(self.losses.mean()),
            "ece": expected_calibration_error(self.confidence, self.correct),
        }

    def confusion(self, classes: int) -> Array:
        """Counts [classes, classes]: rows are labels, columns predictions."""
        matrix = np.zeros((classes, classes), np.int64)
        np.add.at(matrix, (self.label, self.predicted), 1)
        return matrix

    @property
    def outcomes(self) -> Outcomes:
        """What is kept of each image."""
        return Outcomes(self.label, self.predicted, self.confidence)

    def doubted_labels(self, classes: int) -> tuple[Array, Array]:
        """Images whose label is likely wrong, the clearest first, and the class they more likely
        are of: positions [M] and classes [M].

        Confident learning (1911.00068, section 3.1): the probability of another class is at least
        what that class's own images get on average, and above that of the label where the label
        reaches its own average too. Looked for among the `KEPT_CLASSES` most probable classes, and
        never where the network answers the label itself.
        """
        n = np.bincount(self.label, minlength=classes)
        sums = np.bincount(self.label, self.true_score, minlength=classes)
        average = np.where(n > 0, sums / np.maximum(n, 1), np.inf)
        confident = self.best_score >= average[self.best]
        first = confident.argmax(axis=1)
        rows = np.arange(len(self.label))
        other, score = self.best[rows, first], self.best_score[rows, first]
        found = np.flatnonzero(confident.any(axis=1) & (other != self.label) & ~self.correct)
        order = np.argsort(self.true_score[found] - score[found], kind="stable")
        return found[order], other[found][order]
