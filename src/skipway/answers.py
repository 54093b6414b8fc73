"""Model outputs to answers, in NumPy, so that they are the same whatever engine ran the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Score:
    """One class and its probability, 0..1."""

    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image: its classes, the most probable first."""

    path: str
    predictions: tuple[Score, ...]
    error: str | None = None
    """Why there is no prediction, where the image could not be read."""


def softmax(logits: Array) -> Array:
    """Probabilities [..., K] in float64 from logits [..., K]."""
    z = np.asarray(logits, np.float64)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def best_classes(logits: Array, classes: Sequence[str], top: int) -> list[tuple[Score, ...]]:
    """The `top` most probable classes of each image from logits [B, K]; ties by class order."""
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
    return [
        tuple(Score(classes[k], float(row[k])) for k in best)
        for row, best in zip(probabilities, order, strict=True)
    ]
