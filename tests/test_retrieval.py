"""Metrics of retrieval against their definitions in loops, and scikit-learn's neighbours."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from skipway import retrieval
from skipway.retrieval import TIE, Retrieved, neighbours, retrieved

KS = (1, 2, 4, 8)


def unit(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors about a centre for each class, and labels in no order."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    vectors = unit(classes, seed=seed + 1)[labels] + 0.25 * rng.normal(size=(n, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is equal is tied: by chance some similarities are no further apart than `TIE`."""
    monkeypatch.setattr(retrieval, "TIE", 1e-12)


def by_definition(vectors: np.ndarray, labels: np.ndarray) -> dict[int, tuple[list[bool], float]]:
    """Of each query whether it finds its class at each of `KS`, and its average precision at R, in
    plain loops over a list that is sorted by similarity, other classes first where it is equal."""
    found = {}
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        relevant = sum(labels[j] == labels[i] for j in others)
        if not relevant:
            continue
        by_similarity = []
        for j in others:
            pairs = zip(vectors[i].tolist(), vectors[j].tolist(), strict=True)
            similarity = sum(a * b for a, b in pairs)
            by_similarity.append((-similarity, bool(labels[j] == labels[i])))
        right = [own for _, own in sorted(by_similarity)]
        total = 0.0
        for rank in range(1, relevant + 1):
            if right[rank - 1]:
                total += sum(right[:rank]) / rank
        found[i] = [any(right[:k]) for k in KS], total / relevant
    return found


def assert_as_defined(found: Retrieved, vectors: np.ndarray, labels: np.ndarray) -> None:
    expected = by_definition(vectors, labels)
    assert found.index.tolist() == list(expected)
    precision = [each for _, each in expected.values()]
    np.testing.assert_allclose(found.precision, precision, atol=1e-12)
    for at, k in enumerate(KS):
        recall = [each[at] for each, _ in expected.values()]
        assert found.found_at(k).tolist() == recall
        if recall:
            assert found.recall_at_k(k) == pytest.approx(np.mean(recall))
    if precision:
        assert found.map_at_r() == pytest.approx(np.mean(precision))


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 6))
@settings(max_examples=60)
def test_small_whole_numbers_as_by_definition(seed: int, n: int, classes: int) -> None:
    """Vectors of so few values that most similarities are tied, and exactly so."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (n, 3)).astype(np.float32)
    labels = rng.integers(0, classes, n)
    assert_as_defined(retrieved(vectors, labels), vectors, labels)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("n", "classes"), [(150, 3), (150, 40), (90, 90)])
def test_vectors_as_by_definition(n: int, classes: int) -> None:
    vectors, labels = clustered(n, classes)
    assert_as_defined(retrieved(vectors, labels), vectors, labels)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("classes", [4, 60])
def test_neighbours_of_scikit_learn(classes: int) -> None:
    vectors, labels = clustered(400, classes)
    search = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors.astype(np.float64))
    near = search.kneighbors(n_neighbors=399, return_distance=False)  # each itself left out
    right = labels[near] == labels[:, None]
    asked = np.flatnonzero(right.any(axis=1))
    found = retrieved(vectors, labels)
    assert found.index.tolist() == asked.tolist()
    assert found.first.tolist() == (right[asked].argmax(axis=1) + 1).tolist()
    for k in KS:
        assert found.recall_at_k(k) == pytest.approx(right[asked, :k].any(axis=1).mean())
    precision = []
    for row in right[asked]:
        top = row[: row.sum()]
        precision.append((top * top.cumsum() / np.arange(1, len(top) + 1)).sum() / len(top))
    np.testing.assert_allclose(found.precision, precision, atol=1e-12)
    assert 0.1 < found.map_at_r() < 0.95


@given(st.integers(0, 1000), st.integers(2, 60), st.integers(1, 8))
@settings(max_examples=40)
def test_neither_order_nor_names_of_classes_count(seed: int, n: int, classes: int) -> None:
    vectors, labels = clustered(n, classes, seed)
    rng = np.random.default_rng(seed)
    order, names = rng.permutation(n), rng.permutation(classes) * 7
    here, there = retrieved(vectors, labels), retrieved(vectors[order], names[labels[order]])
    back = np.argsort(order[there.index])
    assert order[there.index][back].tolist() == here.index.tolist()
    assert there.first[back].tolist() == here.first.tolist()
    np.testing.assert_array_equal(there.precision[back], here.precision)


@pytest.mark.parametrize("at_once", [1, 700, 10_000])
def test_how_many_are_worked_out_at_once_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    vectors, labels = clustered(120, 7)
    whole = retrieved(vectors, labels)
    monkeypatch.setattr(retrieval, "_AT_ONCE", at_once)
    parts = retrieved(vectors, labels)
    assert parts.index.tolist() == whole.index.tolist()
    assert parts.first.tolist() == whole.first.tolist()
    assert parts.precision.tolist() == whole.precision.tolist()


def test_memory_is_that_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_AT_ONCE", 1 << 14)
    vectors, labels = clustered(1200, 200)
    tracemalloc.start()
    retrieved(vectors, labels)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1200 * 1200 * 8 / 15


def test_vectors_that_are_all_alike_find_nothing() -> None:
    labels = np.arange(20) // 5
    found = retrieved(np.ones((20, 4), np.float32) / 2, labels)
    assert (found.recall_at_k(8), found.map_at_r()) == (0, 0)
    assert found.first.tolist() == [16] * 20
    alone = retrieved(np.ones((5, 4), np.float32) / 2, labels[:5])
    assert (alone.recall_at_k(1), alone.map_at_r()) == (1, 1)


def test_a_tie_is_what_float32_cannot_tell_apart() -> None:
    query, own = np.array([1, 0]), np.array([0.8, 0.6])
    for further, first in ((TIE / 4, 2), (4 * TIE, 1)):
        cosine = 0.8 - further
        other = np.array([cosine, -np.sqrt(1 - cosine**2)])
        found = retrieved(np.stack([query, own, other]), np.array([0, 0, 1]))
        assert found.first[0] == first


def test_an_image_without_another_of_its_class_is_no_query() -> None:
    found = retrieved(unit(6), np.array([3, 1, 3, 7, 1, 9]))
    assert found.index.tolist() == [0, 1, 2, 4]
    none = retrieved(unit(3), np.arange(3))
    assert len(none) == 0
    assert np.isnan(none.recall_at_k(1))
    assert np.isnan(none.map_at_r())
    assert len(retrieved(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))) == 0


def test_the_nearest_in_their_order() -> None:
    vectors, _ = clustered(30, 4)
    near, similarity = neighbours(vectors, np.array([7, 0]), 5)
    for row, cosines, i in zip(near, similarity, (7, 0), strict=True):
        every = vectors.astype(np.float64) @ vectors[i]
        order = [j for j in np.argsort(-every, kind="stable") if j != i]
        assert row.tolist() == order[:5]
        np.testing.assert_allclose(cosines, every[row], atol=1e-6)
    alike, _ = neighbours(np.ones((4, 2), np.float32), np.array([1]), 9)
    assert alike.tolist() == [[0, 2, 3]]
