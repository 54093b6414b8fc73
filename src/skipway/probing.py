"""How good a model's features are: what a classifier without parameters, or a linear one, makes of
them.

knn: the 20 training images of the highest cosine similarity s vote for their classes with the
weight exp(s / 0.07) (1805.01978, section 3.4, which takes 200). linear: multinomial logistic
regression on features of length 1, its penalty chosen on a fifth of the training images.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skipway.data.split import Split, hold_out
from skipway.embedding.embedder import Embedder, unit_vectors
from skipway.embedding.search import nearest_rows
from skipway.errors import InputError, harmless, missing_part
from skipway.images import DecodeError
from skipway.metrics import wilson_interval

Array = npt.NDArray[Any]

NEIGHBOURS = 20
TEMPERATURE = 0.07
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse penalties of the linear probe (scikit-learn's C) that are tried, the simplest first."""
HELD_OUT = 0.2
"""Share of the training images on which one of them is chosen."""
_BLOCK = 1 << 16
"""Training images that are compared at once."""


@dataclass(frozen=True)
class Probe:
    """What a probe came to."""

    kind: Literal["knn", "linear"]
    accuracy: float
    """Share of the test images whose class was found, 0..1."""
    low: float
    high: float
    """The 95 % interval of the accuracy (Wilson 1927)."""
    n: int
    """Test images."""
    trained_on: int
    """Training images."""
    neighbours: int | None
    """Of knn: those that voted."""
    strength: float | None
    """Of linear: the inverse penalty that was chosen."""
    skipped: tuple[str, ...]
    """Why each image that was left out was."""


def probe(
    embedder: Embedder,
    train: Split,
    test: Split,
    kind: Literal["knn", "linear"],
    *,
    neighbours: int = NEIGHBOURS,
    seed: int = 0,
    on_bad: str = "error",
    threads: int = 1,
    batch_size: int = 32,
) -> Probe:
    """The accuracy on `test` of a probe that knows the features of `train`.

    The labels of both splits count the same classes; one that `train` lacks is never found.
    neighbours: that vote in knn; all where there are fewer. seed: of what linear holds out. on_bad:
    error, or skip to leave out images that cannot be read. threads: that decode. Raises DecodeError
    where `on_bad` is error, InputError where no image is left, or only one class to learn.
    """
    if kind not in ("knn", "linear"):
        raise InputError(f"--probe {harmless(kind)}: knn or linear")
    if neighbours < 1:
        raise InputError(f"{neighbours} neighbours: give 1 or more")
    linear = kind == "linear"
    parts = hold_out(train, HELD_OUT, seed) if linear else (train,)
    read = [_embedded(embedder, split, on_bad, threads, batch_size) for split in (*parts, test)]
    *known, (asked, truth, _) = read
    features = np.concatenate([part[0] for part in known])
    labels = np.concatenate([part[1] for part in known])
    if len(np.unique(labels)) < 2 or not len(truth):
        skipped = [reason for part in read for reason in part[2]]
        what = "no test image" if not len(truth) else "training images of two classes at least"
        raise InputError(f"--probe {kind}: needs {what}" + "".join(f"\n{r}" for r in skipped[:1]))
    strength = None
    if linear:
        strength = choose_strength(*(part[:2] for part in known))
        predicted = linear_classes(features, labels, asked, strength)
    else:
        predicted = nearest_classes(features, labels, asked, neighbours)
    correct, n = int((predicted == truth).sum()), len(truth)
    low, high = wilson_interval(correct, n)
    return Probe(
        kind=kind,
        accuracy=correct / n,
        low=low,
        high=high,
        n=n,
        trained_on=len(labels),
        neighbours=None if linear else min(neighbours, len(labels)),
        strength=strength,
        skipped=tuple(reason for part in read for reason in part[2]),
    )


def nearest_classes(
    known: Array,
    labels: Array,
    asked: Array,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Array:
    """What the nearest known features vote for: int64 [M] of the classes 0 to the largest label.

    known: float32 [N, D], their labels: int64 [N], asked: float32 [M, D]; each row of length 1. Of
    equally similar ones that come first vote, and of equal votes the lower class wins.
    """
    classes = int(labels.max()) + 1
    blocks = ((low, known[low : low + _BLOCK]) for low in range(0, len(known), _BLOCK))
    similarity, voters = nearest_rows(blocks, asked, neighbours)
    weight = np.exp((similarity - 1) / temperature)
    place = np.arange(len(asked))[:, None] * classes + labels[voters]
    votes = np.bincount(place.ravel(), weight.ravel(), len(asked) * classes)
    return votes.reshape(-1, classes).argmax(axis=1)


def linear_classes(known: Array, labels: Array, asked: Array, strength: float) -> Array:
    """What logistic regression with that inverse penalty answers: int64 [M]; arguments as of
    `nearest_classes`. It stops after 1,000 steps of L-BFGS where it has not converged."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise missing_part("--probe linear", "train", error) from None
    model = LogisticRegression(C=strength, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(known.astype(np.float64), labels)
    answers: Array = model.predict(asked.astype(np.float64))
    return answers


def choose_strength(known: tuple[Array, Array], held: tuple[Array, Array]) -> float:
    """The one of `STRENGTHS` with which most of the held-out labels are found, of equals the first;
    1 where nothing is held out. known, held: features and labels."""
    if not len(held[1]) or len(np.unique(known[1])) < 2:
        return 1.0
    right = [int((linear_classes(*known, held[0], c) == held[1]).sum()) for c in STRENGTHS]
    return STRENGTHS[int(np.argmax(right))]


def _embedded(
    embedder: Embedder, split: Split, on_bad: str, threads: int, batch_size: int
) -> tuple[Array, Array, list[str]]:
    """Features of length 1, float32 [N, D], and labels of a split's images, and why each image that
    was left out was."""
    prepare = embedder.card.preprocess

    def ready(i: int) -> Array | DecodeError:
        try:
            return prepare(split.image(i, prepare.channels))
        except DecodeError as error:
            if on_bad == "error":
                raise
            return error

    vectors, kept, skipped = [np.zeros((0, embedder.dimensions), np.float32)], [], []
    with ThreadPoolExecutor(threads) as pool:
        for low in range(0, len(split), batch_size):
            window = range(low, min(low + batch_size, len(split)))
            found = embedder.batch(list(pool.map(ready, window)))
            for i, vector in zip(window, found, strict=True):
                if isinstance(vector, DecodeError):
                    skipped.append(str(vector))
                else:
                    vectors.append(vector[None])
                    kept.append(i)
    features = unit_vectors(np.concatenate(vectors))
    return features, split.labels[np.array(kept, np.int64)], skipped
