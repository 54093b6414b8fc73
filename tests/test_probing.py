"""Probes of features: scikit-learn's classifiers as oracles, and voting by hand where it ties."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from commands import draw
from skipway.data import Split, open_data
from skipway.data.split import FolderReader, Names, hold_out
from skipway.embedding import Embedder
from skipway.errors import InputError
from skipway.images import DecodeError, plain_preprocess
from skipway.metrics import wilson_interval
from skipway.probing import (
    HELD_OUT,
    STRENGTHS,
    Probe,
    choose_strength,
    nearest_classes,
    probe,
)

Array = npt.NDArray[Any]


class Pixels(Embedder):
    """Takes the pixels of a small grey image themselves for its features."""

    def __init__(self, side: int = 8) -> None:
        self.card: Any = type("Card", (), {"preprocess": plain_preprocess(side, 1)})
        self.origin, self.dimensions, self.made = "pixels", side * side, {"normalised": False}
        self._engine = lambda x: x.reshape(len(x), -1)


@pytest.fixture(scope="module")
def digits() -> dict[str, Split]:
    """Parts of the embedded digits."""
    splits = open_data("digits", "none").splits
    return {"train": splits["train"].take(np.arange(0, 1400, 5)), "test": splits["test"]}


def features(split: Split) -> tuple[Array, Array]:
    """Normalised pixels in rows of length 1, float64, and labels, by another way."""
    pixels = np.stack([split.reader.read(name) for name in split.names])[..., 0]
    rows = (pixels.reshape(len(split), -1) / 255 - 0.5) / 0.25
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), split.labels


# k nearest neighbours


@pytest.mark.parametrize("k", [1, 20, 1000])
def test_neighbours_vote_as_scikit_learn_s(k: int, digits: dict[str, Split]) -> None:
    (known, labels), (asked, truth) = features(digits["train"]), features(digits["test"])
    oracle = KNeighborsClassifier(
        min(k, len(labels)), metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(known, labels)
    expected = oracle.predict(asked)
    predicted = nearest_classes(known.astype(np.float32), labels, asked.astype(np.float32), k)
    assert predicted.tolist() == expected.tolist()
    found = probe(Pixels(), digits["train"], digits["test"], "knn", neighbours=k, batch_size=50)
    correct = int((expected == truth).sum())
    low, high = wilson_interval(correct, len(truth))
    assert asdict(found) == {
        "kind": "knn",
        "accuracy": correct / len(truth),
        "low": low,
        "high": high,
        "n": len(truth),
        "trained_on": len(labels),
        "neighbours": min(k, len(labels)),
        "strength": None,
        "skipped": (),
    }


EXACT = [*np.eye(4), *-np.eye(4)] + [
    np.array([*signs, 1]) / 2 for signs in itertools.product((-1, 1), repeat=3)
]
"""Vectors of length 1 whose products have no rounding."""


@given(
    st.lists(st.tuples(st.sampled_from(range(16)), st.integers(0, 3)), min_size=1, max_size=20),
    st.lists(st.sampled_from(range(16)), max_size=5),
    st.integers(1, 25),
)
def test_ties_are_broken_by_order(known: list[tuple[int, int]], asked: list[int], k: int) -> None:
    expected = [by_hand(known, EXACT[a], k) for a in asked]
    predicted = nearest_classes(
        np.array([EXACT[i] for i, _ in known], np.float32),
        np.array([label for _, label in known]),
        np.array([EXACT[a] for a in asked], np.float32).reshape(-1, 4),
        k,
    )
    assert predicted.tolist() == expected


def by_hand(known: Sequence[tuple[int, int]], asked: Array, k: int) -> int:
    similar = [(-float(EXACT[i] @ asked), row, label) for row, (i, label) in enumerate(known)]
    votes = [0.0] * 4
    for distance, _, label in sorted(similar)[:k]:
        votes[label] += math.exp((-distance - 1) / 0.07)
    return votes.index(max(votes))


# Linear


def test_the_linear_probe_is_scikit_learn_s(digits: dict[str, Split]) -> None:
    parts = [features(part) for part in hold_out(digits["train"], HELD_OUT, 3)]
    right = [
        LogisticRegression(C=c, max_iter=1000).fit(*parts[0]).score(*parts[1]) for c in STRENGTHS
    ]
    strength = STRENGTHS[right.index(max(right))]
    known, labels = (np.concatenate(both) for both in zip(*parts, strict=True))
    expected = LogisticRegression(C=strength, max_iter=1000).fit(known, labels)
    asked, truth = features(digits["test"])
    found = probe(Pixels(), digits["train"], digits["test"], "linear", seed=3)
    assert found.strength == strength
    assert found.accuracy == pytest.approx(expected.score(asked, truth), abs=1.5 / len(truth))
    assert (found.n, found.trained_on, found.neighbours) == (len(truth), len(labels), None)
    assert found.low < found.accuracy < found.high
    assert min(right) < max(right)  # there was something to choose


def test_the_penalty_is_chosen_on_what_was_held_out() -> None:
    """Noise with many dimensions asks for a strong penalty, a fine border for a weak one."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    x[:, 0] = np.sign(x[:, 0]) * (0.02 + 0.02 * rng.random(400))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = (x[:, 0] > 0).astype(np.int64)
    assert choose_strength((x[:200], y[:200]), (x[200:], y[200:])) > STRENGTHS[0]
    labels = y.copy()
    labels[:80] = 1 - labels[:80]
    noise = rng.normal(size=(400, 300))
    noise[:, 0] += 3 * (2 * y - 1)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    known, held = (noise[:200], labels[:200]), (noise[200:], y[200:])
    assert choose_strength(known, held) < STRENGTHS[-1]
    assert choose_strength(known, (held[0][:0], held[1][:0])) == 1
    assert choose_strength((noise[:9], np.zeros(9, np.int64)), held) == 1


# Images


@pytest.fixture
def folder(tmp_path: Path) -> Split:
    """Images of two classes, one of them damaged."""
    draw(tmp_path, ["ant", "bee"], n=5, size=8)
    names = [f"{c}/{i:02}.png" for c in ("ant", "bee") for i in range(5)]
    (tmp_path / names[7]).write_bytes(b"no image")
    return Split(FolderReader(tmp_path), Names(names), np.array([0] * 5 + [1] * 5))


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_damaged_images_are_refused_or_left_out(kind: Any, folder: Split) -> None:
    whole = folder.take(np.array([0, 1, 2, 3, 5, 6]))
    with pytest.raises(DecodeError, match=r"bee/02\.png"):
        probe(Pixels(), folder, whole, kind)
    found = probe(Pixels(), folder, folder, kind, on_bad="skip", threads=2, batch_size=3)
    assert (found.n, found.trained_on) == (9, 9)
    assert len(found.skipped) == 2
    assert all("bee/02.png" in reason for reason in found.skipped)
    same = folder.take(np.array([i for i in range(10) if i != 7]))
    assert (
        probe(Pixels(), same, same, "knn").accuracy
        == probe(Pixels(), folder, folder, "knn", on_bad="skip").accuracy
    )


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_what_cannot_be_probed_is_refused(kind: Any, folder: Split) -> None:
    damaged, ants = folder.take(np.array([7])), folder.take(np.arange(5))
    with pytest.raises(InputError, match=r"no test image\n.*bee/02\.png"):
        probe(Pixels(), folder, damaged, kind, on_bad="skip")
    with pytest.raises(InputError, match="two classes at least"):
        probe(Pixels(), ants, ants, kind)
    unknown: Any = "quadratic"
    with pytest.raises(InputError, match="--probe quadratic: knn or linear"):
        probe(Pixels(), folder, folder, unknown)
    with pytest.raises(InputError, match="0 neighbours"):
        probe(Pixels(), folder, folder, kind, neighbours=0)


def test_a_class_that_training_lacks_is_never_found(digits: dict[str, Split]) -> None:
    train, test = digits["train"], digits["test"]
    fewer = train.take(np.flatnonzero(train.labels != 9))
    for kind in ("knn", "linear"):
        found: Probe = probe(Pixels(), fewer, test, kind)
        assert found.accuracy <= (test.labels != 9).mean()
