"""How good a model's features are: what a classifier without parameters, or a linear one, makes of
them.

knn: the k training images of the highest cosine similarity s vote for their classes with the weight
exp(s / 0.07) (Wu et al. 1805.01978, section 3.4, with k of 200; DINO, 2104.14294, found 20 best).
linear: multinomial logistic regression on features of length 1. How many vote, and how strong the
penalty is, is chosen on a fifth of the training images; then all of them are learned from.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skipway.card import Card
from skipway.data import open_data
from skipway.data.ahead import batches, read_ahead
from skipway.data.preflight import content_digest
from skipway.data.split import Split, hold_out
from skipway.embedding.embedder import Embedder, unit_vectors
from skipway.embedding.search import nearest_rows
from skipway.errors import InputError, harmless, missing_part
from skipway.images import DecodeError, decode
from skipway.metrics import wilson_interval

Array = npt.NDArray[Any]

NEIGHBOURS = (20, 10, 50, 5, 100, 1, 200)
"""How many may vote, DINO's choice first."""
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
    leaked: int
    """Test images whose content a training image has too."""
    skipped: tuple[str, ...]
    """Why each image that was left out was."""


def probe(
    embedder: Embedder,
    train: Split,
    test: Split,
    kind: Literal["knn", "linear"],
    *,
    neighbours: int | None = None,
    seed: int = 0,
    on_bad: str = "error",
    threads: int = 1,
    batch_size: int = 32,
) -> Probe:
    """The accuracy on `test` of a probe that knows the features of `train`.

    The labels of both splits count the same classes; one that `train` lacks is never found.
    neighbours: that vote in knn, all where there are fewer; None chooses. seed: of what is held out
    to choose on. on_bad: error, or skip to leave out images that cannot be read. threads: that
    decode. Raises DecodeError where `on_bad` is error, InputError where no image is left, or only
    one class to learn.
    """
    if kind not in ("knn", "linear"):
        raise InputError(f"--probe {harmless(kind)}: knn or linear")
    if neighbours is not None and neighbours < 1:
        raise InputError(f"{neighbours} neighbours: give 1 or more")
    splits = (*hold_out(train, HELD_OUT, seed), test)
    read = [_embedded(embedder, split, on_bad, threads, batch_size) for split in splits]
    skipped = tuple(reason for part in read for reason in part.skipped)
    learned, held, asked = read
    features = np.concatenate([learned.features, held.features])
    labels = np.concatenate([learned.labels, held.labels])
    if len(np.unique(labels)) < 2 or not len(asked.labels):
        what = "training images of two classes at least" if len(asked.labels) else "a test image"
        raise InputError(f"--probe {kind}: needs {what}" + "".join(f"\n{r}" for r in skipped[:1]))
    strength = None
    if kind == "linear":
        strength = choose_strength(learned.known, held.known)
        predicted = linear_classes(features, labels, asked.features, strength)
    else:
        neighbours = min(neighbours or choose_neighbours(learned.known, held.known), len(labels))
        predicted = nearest_classes(features, labels, asked.features, neighbours)
    correct, n = int((predicted == asked.labels).sum()), len(asked.labels)
    seen = {*learned.contents, *held.contents}
    low, high = wilson_interval(correct, n)
    return Probe(
        kind=kind,
        accuracy=correct / n,
        low=low,
        high=high,
        n=n,
        trained_on=len(labels),
        neighbours=None if kind == "linear" else neighbours,
        strength=strength,
        leaked=sum(content in seen for content in asked.contents),
        skipped=skipped,
    )


@dataclass(frozen=True)
class Splits:
    """What of a data set a probe learns from and is scored on."""

    name: str
    """Of `test`."""
    classes: tuple[str, ...]
    train: Split
    test: Split
    notes: tuple[str, ...]


def open_splits(card: Card, data: str, split: str | None = None) -> Splits:
    """The data's own classes and its split, or where it has none, as the model's training split it.

    split: that is scored, test or val; None takes the first of these that there is. Raises
    InputError, for data without a train split and with one class too.
    """
    made = open_data(data, card.setting("data.val", "auto"), card.setting("seed", 0), unseen=True)
    if made.unseen:
        raise InputError(
            f"--probe learns classes from train, and {made.unseen:,} of {harmless(data)} are not "
            "there\nWithout --probe, eval measures what a model of the task embed finds among them."
        )
    held = [name for name in ("test", "val") if name in made.splits]
    if not held:
        raise InputError(f"--probe: {harmless(data)} has {', '.join(made.splits)} alone, and no "
                         "split to score\nGive data with a val or test split.")  # fmt: skip
    name = split or held[0]
    if name not in held:
        raise InputError(f"--split {harmless(name)}: --probe learns from train and scores "
                         f"{' or '.join(held)}")  # fmt: skip
    return Splits(name, made.classes, made.splits["train"], made.splits[name], made.notes)


def nearest_classes(
    known: Array,
    labels: Array,
    asked: Array,
    neighbours: int,
    temperature: float = TEMPERATURE,
) -> Array:
    """What the nearest known features vote for: int64 [M] of the classes 0 to the largest label.

    known: float32 [N, D], their labels: int64 [N], asked: float32 [M, D]; each row of length 1. Of
    equally similar ones that come first vote, and of equal votes the lower class wins.
    """
    similarity, voters = _nearest(known, asked, neighbours)
    return _voted(similarity, labels[voters], temperature)


def _nearest(known: Array, asked: Array, neighbours: int) -> tuple[Array, Array]:
    blocks = ((low, known[low : low + _BLOCK]) for low in range(0, len(known), _BLOCK))
    return nearest_rows(blocks, asked, neighbours)


def _voted(similarity: Array, labels: Array, temperature: float) -> Array:
    """The class with the most votes of each row of voters: int64 [M] from [M, k]."""
    classes = int(labels.max(initial=0)) + 1
    weight = np.exp((similarity - 1) / temperature)
    place = np.arange(len(labels))[:, None] * classes + labels
    votes = np.bincount(place.ravel(), weight.ravel(), len(labels) * classes)
    best: Array = votes.reshape(-1, classes).argmax(axis=1)
    return best


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


def choose_neighbours(known: tuple[Array, Array], held: tuple[Array, Array]) -> int:
    """The one of `NEIGHBOURS` with which most of the held-out labels are found, of equals the
    first, which it is too where nothing is held out. known, held: features and labels."""
    if not len(held[1]) or not len(known[1]):
        return NEIGHBOURS[0]
    similarity, voters = _nearest(known[0], held[0], max(NEIGHBOURS))
    labels = known[1][voters]
    right = [
        int((_voted(similarity[:, :k], labels[:, :k], TEMPERATURE) == held[1]).sum())
        for k in NEIGHBOURS
    ]
    return NEIGHBOURS[int(np.argmax(right))]


def choose_strength(known: tuple[Array, Array], held: tuple[Array, Array]) -> float:
    """The one of `STRENGTHS` with which most of the held-out labels are found, of equals the first;
    1 where nothing is held out. known, held: features and labels."""
    if not len(held[1]) or len(np.unique(known[1])) < 2:
        return 1.0
    right = [int((linear_classes(*known, held[0], c) == held[1]).sum()) for c in STRENGTHS]
    return STRENGTHS[int(np.argmax(right))]


@dataclass(frozen=True)
class _Embedded:
    """The images of a split that could be read."""

    features: Array
    """float32 [N, D], of length 1."""
    labels: Array
    contents: list[bytes]
    """`preflight.content_digest` of each."""
    skipped: list[str]
    """Why each of the others could not."""

    @property
    def known(self) -> tuple[Array, Array]:
        return self.features, self.labels


def _embedded(
    embedder: Embedder, split: Split, on_bad: str, threads: int, batch_size: int
) -> _Embedded:
    prepare = embedder.card.preprocess

    def ready(i: int) -> tuple[Array, bytes]:
        name = split.names[i]
        source = split.reader.read(name)
        return prepare(decode(source, prepare.channels, name)), content_digest(source)

    vectors, contents = [np.zeros((0, embedder.dimensions), np.float32)], []
    kept: list[int] = []
    skipped: list[str] = []
    rows = read_ahead(range(len(split)), ready, threads, batch_size, on_bad)
    for batch in batches(rows, batch_size):
        skipped += [str(x) for _, x in batch if isinstance(x, DecodeError)]
        read = {i: x for i, x in batch if not isinstance(x, DecodeError)}
        if read:
            vectors.append(embedder.run(np.stack([x for x, _ in read.values()])))
            contents += [content for _, content in read.values()]
            kept += read
    features = unit_vectors(np.concatenate(vectors))
    return _Embedded(features, split.labels[np.array(kept, np.int64)], contents, skipped)
