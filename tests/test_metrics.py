"""Metrics against torchmetrics, scikit-learn and SciPy, and answers by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import special, stats
from sklearn.metrics import confusion_matrix, log_loss
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from skipway.answers import best_classes, softmax
from skipway.metrics import (
    Scored,
    calibration,
    expected_calibration_error,
    top_k,
    wilson_interval,
)


def outputs(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right more often than chance, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) * 2
    logits[np.arange(n), labels] += rng.exponential(2, n)
    return logits.astype(np.float32), labels


def scored(logits: np.ndarray, labels: np.ndarray) -> Scored:
    return Scored.from_logits(logits, labels, np.arange(len(labels)))


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (500, 2), (3000, 10), (2000, 100)])
def test_against_torchmetrics_and_scikit_learn(n: int, classes: int) -> None:
    logits, labels = outputs(n, classes, seed=classes)
    found = scored(logits, labels)
    # In float64, so that no confidence is rounded across the edge of a bin.
    scores, targets = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    metrics = found.metrics()
    top1 = multiclass_accuracy(scores, targets, classes, average="micro")
    assert metrics["accuracy"] == pytest.approx(top1.item(), abs=1e-6)
    if classes > 5:
        top5 = multiclass_accuracy(scores, targets, classes, top_k=5, average="micro")
        assert metrics["top5"] == pytest.approx(top5.item(), abs=1e-6)
    ece = multiclass_calibration_error(scores, targets, classes, n_bins=15, norm="l1")
    assert metrics["ece"] == pytest.approx(ece.item(), abs=1e-6)
    table = multiclass_confusion_matrix(scores, targets, classes)
    assert np.array_equal(found.confusion(classes), table.numpy())
    predicted = logits.argmax(1)
    expected = confusion_matrix(labels, predicted, labels=range(classes))
    assert np.array_equal(found.confusion(classes), expected)
    probabilities = special.softmax(logits.astype(np.float64), axis=1)
    loss = log_loss(labels, probabilities, labels=range(classes))
    assert metrics["loss"] == pytest.approx(loss, rel=1e-9)
    assert np.allclose(found.true_score, probabilities[np.arange(n), labels], rtol=1e-12)
    assert np.allclose(found.confidence, probabilities.max(axis=1), rtol=1e-12)
    assert np.array_equal(found.correct, predicted == labels)


def test_loss_of_extreme_logits_is_finite() -> None:
    metrics = scored(np.array([[1e4, -1e4], [0.0, 0.0]]), np.array([1, 0])).metrics()
    assert np.isfinite(metrics["loss"])
    assert metrics["loss"] > 300  # not clipped to something that looks fine


# --- top k ------------------------------------------------------------------------------------

# Few values, so that ties are common.
LOGITS = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 8), st.integers(1, 9)),
    elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
)


@given(LOGITS, st.data())
def test_top_k_is_what_best_classes_lists(logits: np.ndarray, data: st.DataObject) -> None:
    n, classes = logits.shape
    labels = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)))
    k = data.draw(st.integers(1, classes + 2))
    names = [str(i) for i in range(classes)]
    listed = best_classes(logits, names, k)
    expected = [str(y) in {s.label for s in row} for y, row in zip(labels, listed, strict=True)]
    assert top_k(logits, labels, k).tolist() == expected
    first = [int(row[0].label) for row in best_classes(logits, names, 1)]
    assert scored(logits, labels).predicted.tolist() == first


def test_equal_logits_are_ranked_by_class() -> None:
    logits = np.zeros((7, 7))
    assert top_k(logits, np.arange(7), 5).tolist() == [True] * 5 + [False] * 2
    assert scored(logits, np.arange(7)).metrics()["accuracy"] == pytest.approx(1 / 7)


# --- calibration ------------------------------------------------------------------------------


def test_bins_hold_their_upper_end() -> None:
    """1706.04599, section 2: bin m is the interval ((m - 1) / M, m / M]."""
    rows = calibration(np.array([0.25, 0.26, 0.5, 1.0, 0.0]), np.array([1, 0, 1, 1, 0]), bins=4)
    assert [(r["low"], r["high"], r["n"]) for r in rows] == [
        (0.0, 0.25, 2),
        (0.25, 0.5, 2),
        (0.75, 1.0, 1),
    ]
    assert [r["accuracy"] for r in rows] == [0.5, 0.5, 1.0]
    assert [r["confidence"] for r in rows] == pytest.approx([0.125, 0.38, 1.0])
    error = expected_calibration_error(
        np.array([0.25, 0.26, 0.5, 1.0, 0.0]), np.array([1, 0, 1, 1, 0]), bins=4
    )
    assert error == pytest.approx((2 * 0.375 + 2 * 0.12 + 0) / 5)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 20),
)
def test_bins_hold_every_image_once(pairs: list[tuple[float, bool]], bins: int) -> None:
    confidence, correct = np.array([c for c, _ in pairs]), np.array([r for _, r in pairs])
    rows = calibration(confidence, correct, bins)
    assert sum(r["n"] for r in rows) == len(pairs)
    for r in rows:
        assert r["low"] - 1e-12 <= r["confidence"] <= r["high"] + 1e-12
    assert sum(r["n"] * r["accuracy"] for r in rows) == pytest.approx(correct.sum())
    assert 0 <= expected_calibration_error(confidence, correct, bins) <= 1


# --- intervals --------------------------------------------------------------------------------


@given(st.integers(1, 50_000), st.floats(0, 1))
def test_wilson_against_scipy(n: int, share: float) -> None:
    correct = round(n * share)
    expected = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 10_000])
def test_wilson_at_the_ends(n: int) -> None:
    low, high = wilson_interval(0, n)
    assert low == 0
    assert 0 < high < 1
    assert wilson_interval(n, n) == pytest.approx((1 - high, 1.0))


# --- merging ----------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.integers(1, 40), st.data())
def test_merged_parts_count_each_image_once(n: int, data: st.DataObject) -> None:
    """Parts overlap as they do where processes pad their shares to equal length."""
    logits, labels = outputs(n, 7, seed=n)
    order = data.draw(st.permutations(range(n)))
    again = data.draw(st.lists(st.integers(0, n - 1), max_size=10))
    index = np.array([*order, *again])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(index)), max_size=4)))
    parts = [
        Scored.from_logits(logits[part], labels[part], part)
        for part in np.split(index, cuts)
        if len(part)
    ]
    merged, whole = Scored.merge(parts), scored(logits, labels)
    for name in Scored.__dataclass_fields__:
        assert np.array_equal(getattr(merged, name), getattr(whole, name)), name
    assert merged.metrics() == whole.metrics()


# --- answers ----------------------------------------------------------------------------------


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 6)),
        elements=st.floats(-1e4, 1e4, width=32),
    )
)
def test_softmax_against_scipy(logits: np.ndarray) -> None:
    found = softmax(logits)
    assert found.dtype == np.float64
    assert np.allclose(found, special.softmax(logits.astype(np.float64), axis=-1), atol=1e-15)


def test_best_classes_by_hand() -> None:
    logits = np.log(np.array([[0.1, 0.2, 0.7], [0.4, 0.4, 0.2]]))
    rows = best_classes(logits, ["a", "b", "c"], 2)
    assert [[s.label for s in row] for row in rows] == [["c", "b"], ["a", "b"]]
    assert [[s.score for s in row] for row in rows] == [
        pytest.approx([0.7, 0.2]),
        pytest.approx([0.4, 0.4]),
    ]
    assert len(best_classes(logits, ["a", "b", "c"], 50)[0]) == 3  # more were asked than there are
    assert best_classes(np.zeros((0, 3)), ["a", "b", "c"], 2) == []
