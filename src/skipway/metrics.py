"""Metrics of classification, in NumPy. Inputs are per image; labels count from 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.answers import softmax

Array = npt.NDArray[Any]


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
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
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


def expected_calibration_error(confidence: Array, correct: Array, bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over the bins, 0..1 (1706.04599, eq. 3)."""
    rows = calibration(confidence, correct, bins)
    return sum(r["n"] * abs(r["confidence"] - r["accuracy"]) for r in rows) / len(confidence)


def wilson_interval(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson 1927); holds at 0 and 1 and for small n."""
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


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

    @classmethod
    def from_logits(cls, logits: Array, labels: Array, index: Array) -> Scored:
        """From logits [N, K], labels [N] and positions in the split [N]."""
        logits = np.asarray(logits, np.float64)
        p = softmax(logits)
        predicted = p.argmax(axis=1)
        rows = np.arange(len(labels))
        return cls(
            index=index,
            label=labels,
            predicted=predicted,
            confidence=p[rows, predicted],
            true_score=p[rows, labels],
            in_top5=top_k(logits, labels, 5),
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

    def metrics(self) -> dict[str, float]:
        """accuracy, top5 and ece in 0..1, and loss: the mean cross-entropy in nats."""
        tiny = np.finfo(np.float64).tiny
        return {
            "accuracy": float(self.correct.mean()),
            "top5": float(self.in_top5.mean()),
            "loss": float(-np.log(np.maximum(self.true_score, tiny)).mean()),
            "ece": expected_calibration_error(self.confidence, self.correct),
        }

    def confusion(self, classes: int) -> Array:
        """Counts [classes, classes]: rows are labels, columns predictions."""
        matrix = np.zeros((classes, classes), np.int64)
        np.add.at(matrix, (self.label, self.predicted), 1)
        return matrix
