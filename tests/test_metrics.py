"""Metrics against torchmetrics, scikit-learn and SciPy, and answers by hand."""

from __future__ import annotations

import itertools
import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import optimize, special, stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from skipway.answers import best_classes, softmax
from skipway.metrics import (
    Outcomes,
    Scored,
    best_temperature,
    calibration,
    calibration_by_chance,
    class_scores,
    expected_calibration_error,
    fisher,
    grouped_interval,
    holm,
    mcnemar,
    paired_interval,
    selective_risk,
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


def test_a_confidence_that_is_no_number_has_a_bin() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = expected_calibration_error(np.array([0.5, np.nan]), np.array([True, False]))
    assert np.isnan(error)


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


@pytest.mark.parametrize(("n", "classes", "truth"), [(300, 2, 0.6), (2000, 10, 1.0), (900, 5, 3.0)])
def test_the_best_temperature_against_scipy(n: int, classes: int, truth: float) -> None:
    rng = np.random.default_rng(classes)
    honest = rng.normal(size=(n, classes)) * 2
    labels = np.array([rng.choice(classes, p=p) for p in special.softmax(honest, axis=1)])
    logits = (honest * truth + 7).astype(np.float32)

    def loss(log: float) -> float:
        return log_loss(labels, special.softmax(logits / np.exp(log), axis=1))

    expected = optimize.minimize_scalar(loss, bracket=(-1, 1))
    found = best_temperature(logits, labels)
    assert math.log(found) == pytest.approx(expected.x, abs=1e-4)
    assert found == pytest.approx(truth, rel=0.2)


def test_a_temperature_that_is_not_there_is_an_end() -> None:
    right = np.eye(4)[[0, 1, 2, 3]]
    assert best_temperature(right, np.arange(4)) == pytest.approx(0.01)
    assert best_temperature(right, np.array([1, 2, 3, 0])) == pytest.approx(100)


# --- leaving the least confident unanswered -------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.50001, 0.9]), st.booleans()), min_size=1,
                max_size=7))  # fmt: skip
def test_selective_risk_is_the_mean_over_orders(rows: list[tuple[float, bool]]) -> None:
    """By its definition: sorted by confidence, equal ones in any order."""
    confidence, correct = np.array([c for c, _ in rows]), np.array([r for _, r in rows])
    expected = np.zeros(len(rows))
    orders = 0
    for order in itertools.permutations(range(len(rows))):
        if all(confidence[i] >= confidence[j] for i, j in itertools.pairwise(order)):
            wrong = ~correct[list(order)]
            expected += np.cumsum(wrong) / np.arange(1, len(rows) + 1)
            orders += 1
    assert selective_risk(confidence, correct) == pytest.approx(expected / orders)


def test_selective_risk_of_the_best_and_the_worst_order() -> None:
    correct = np.array([True] * 6 + [False] * 4)
    falling = np.linspace(1, 0, 10)
    assert selective_risk(falling, correct).tolist() == [0] * 6 + [1 / 7, 2 / 8, 3 / 9, 0.4]
    assert (selective_risk(falling[::-1], correct)[:4] == 1).all()


# --- intervals --------------------------------------------------------------------------------


@given(st.integers(1, 50_000), st.floats(0, 1))
def test_wilson_against_scipy(n: int, share: float) -> None:
    correct = round(n * share)
    expected = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 10_000])
def test_wilson_at_the_ends(n: int) -> None:
    low, high = wilson_interval(0, n)
    assert (low, wilson_interval(n, n)[1]) == (0, 1)  # exactly
    assert 0 < high < 1
    assert wilson_interval(n, n) == pytest.approx((1 - high, 1.0))


@pytest.mark.parametrize("even", [True, False])
def test_values_in_groups_against_leaving_each_group_out(even: bool) -> None:
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(9) + 3, 6 if even else rng.integers(1, 30, 9)))
    values = rng.beta(4, 2, 12)[groups] * rng.random(len(groups))
    kinds, mean = np.unique(groups), values.mean()
    without = np.array([values[groups != g].mean() for g in kinds])
    error = math.sqrt(8 / 9 * ((without - mean) ** 2).sum())
    if even:
        means = [values[groups == g].mean() for g in kinds]
        assert error == pytest.approx(stats.sem(means))
    ends = np.array(grouped_interval(values, groups))
    # the ends of Wilson's interval are where the mean is t errors off, these being as large there
    there = error * np.sqrt(ends * (1 - ends) / (mean * (1 - mean)))
    assert (ends - mean) / there == pytest.approx(stats.t.ppf([0.025, 0.975], 8), rel=1e-3)


def test_groups_that_say_nothing_of_others_have_no_interval() -> None:
    groups = np.arange(20) % 5
    assert grouped_interval(np.arange(20) < 5, groups) is None  # all equal
    assert grouped_interval(np.arange(16) % 3 == 0, groups[:16] % 4) is None  # of four
    assert grouped_interval(np.ones(20), groups) == wilson_interval(5, 5)


# --- by class -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (40, 30), (3000, 10)])
def test_class_scores_against_scikit_learn(n: int, classes: int) -> None:
    logits, labels = outputs(n, classes, seed=n)
    found = class_scores(scored(logits, labels).confusion(classes))
    expected = precision_recall_fscore_support(
        labels, logits.argmax(1), labels=range(classes), zero_division=np.nan
    )
    for ours, theirs in zip(
        (found.precision, found.recall, found.f1, found.n), expected, strict=True
    ):
        assert np.allclose(ours, theirs, equal_nan=True)
    for k in range(classes):
        if found.n[k]:
            hits = round(found.recall[k] * found.n[k])
            ends = stats.binomtest(hits, int(found.n[k])).proportion_ci(method="wilson")
            assert found.interval(k) == pytest.approx((ends.low, ends.high), abs=1e-6)
        else:
            assert found.interval(k) is None


def test_calibration_against_scikit_learn() -> None:
    found = scored(*outputs(3000, 10))
    correct, confidence = calibration_curve(found.correct, found.confidence, n_bins=15)
    rows = calibration(found.confidence, found.correct)
    assert [r["accuracy"] for r in rows] == pytest.approx(correct.tolist())
    assert [r["confidence"] for r in rows] == pytest.approx(confidence.tolist())


# --- two models on the same images ----------------------------------------------------------------


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_against_the_binomial_test(first: int, second: int) -> None:
    n = first + second
    expected = stats.binomtest(first, n).pvalue if n else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(first, second) == mcnemar(second, first)


@given(
    # SciPy overflows at the least floats
    st.lists(st.tuples(st.integers(1, 300), st.floats(1e-9, 1) | st.sampled_from([0, 0.25, 0.5])))
    .filter(len)
)  # fmt: skip
@settings(max_examples=40)
def test_calibration_error_by_chance_against_the_binomial(bins: list[tuple[int, float]]) -> None:
    n, p = map(np.array, zip(*bins, strict=True))
    mean, variance = 0.0, 0.0
    for size, confidence in bins:
        right = np.arange(size + 1)
        weights = stats.binom.pmf(right, size, confidence)
        off = abs(right - size * confidence)
        mean += weights @ off
        variance += weights @ off**2 - (weights @ off) ** 2
    found = calibration_by_chance(p, n)
    assert found[0] == pytest.approx(mean / n.sum(), abs=1e-9)
    assert found[1] == pytest.approx(np.sqrt(max(variance, 0)) / n.sum(), abs=1e-6)


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_fisher_against_scipy(n: int, others: int, data: st.DataObject) -> None:
    hits, other = data.draw(st.integers(0, n)), data.draw(st.integers(0, others))
    expected = stats.fisher_exact([[hits, n - hits], [other, others - other]]).pvalue
    assert fisher(hits, n, other, others) == pytest.approx(expected, rel=1e-6)


def test_fisher_of_many_images() -> None:
    expected = stats.fisher_exact([[880, 120], [45_000, 4_000]]).pvalue
    assert fisher(880, 1000, 45_000, 49_000) == pytest.approx(expected, rel=1e-4)


def test_mcnemar_of_many_images_is_a_number() -> None:
    assert mcnemar(20_000, 20_000) == 1
    assert 0 <= mcnemar(0, 50_000) < 1e-300
    expected = stats.binomtest(24_800, 50_000).pvalue
    assert mcnemar(24_800, 25_200) == pytest.approx(expected, rel=1e-6)


def test_paired_interval_against_drawing_images() -> None:
    """The plain bootstrap, where the models differ on many images."""
    rng = np.random.default_rng(3)
    n, both, first, second = 500, 400, 40, 22
    outcome = np.zeros(n)
    outcome[:first], outcome[first : first + second] = -1, 1
    drawn = [outcome[rng.integers(0, n, n)].mean() for _ in range(4000)]
    expected = np.percentile(drawn, (2.5, 97.5))
    found = paired_interval(both, first, second, n)
    assert found == pytest.approx(expected.tolist(), abs=0.004)
    turned = paired_interval(both, second, first, n)
    assert turned == pytest.approx((-found[1], -found[0]))


@pytest.mark.parametrize(
    ("n", "shares"),
    [(12, (0.5, 0.1, 0.2)), (20, (0.9, 0.02, 0.05)), (20, (0.6, 0.0, 0.1)), (25, (0.95, 0.0, 0.0))],
)
def test_paired_interval_covers_the_truth(n: int, shares: tuple[float, float, float]) -> None:
    """Over every outcome with its probability: also where the models rarely differ."""
    covered = 0.0
    both, first, second = shares
    neither = 1 - sum(shares)
    for a in range(n + 1):
        for b in range(n + 1 - a):
            for c in range(n + 1 - a - b):
                counts = (a, b, c, n - a - b - c)
                p = stats.multinomial.pmf(counts, n, (both, first, second, neither))
                low, high = paired_interval(a, b, c, n)
                assert -1 <= low <= (c - b) / n <= high <= 1
                covered += p * (low <= second - first <= high)
    assert covered > 0.94


def test_models_that_never_differed_may_yet_differ() -> None:
    low, high = paired_interval(180, 0, 0, 200)
    assert -0.02 < low < -0.01
    assert high == pytest.approx(-low)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_by_its_definition(values: list[float]) -> None:
    """The k-th smallest of m times m - k + 1, never below those before, at most 1."""
    expected = [0.0] * len(values)
    highest = 0.0
    for k, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, values[i] * (len(values) - k))
        expected[i] = min(highest, 1.0)
    assert holm(np.array(values)).tolist() == pytest.approx(expected)


# --- outcomes that are kept -----------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(2, 70_000), st.integers(0, 99))
def test_outcomes_come_back_from_json(n: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kept = Outcomes(rng.integers(0, classes, n), rng.integers(0, classes, n), rng.uniform(0, 1, n))
    back = Outcomes.unpacked(json.loads(json.dumps(kept.packed(classes))), classes)
    assert back is not None
    assert np.array_equal(back.label, kept.label)
    assert np.array_equal(back.predicted, kept.predicted)
    assert np.array_equal(back.correct, kept.correct)
    assert np.allclose(back.confidence, kept.confidence, atol=1 / 65535)


def test_outcomes_of_fifty_thousand_images_stay_below_a_megabyte() -> None:
    n = np.zeros(50_000, np.int64)
    assert len(json.dumps(Outcomes(n, n, np.ones(50_000)).packed(1000))) < 1_000_000


@pytest.mark.parametrize(
    "change",
    [{"n": 3}, {"n": None}, {"label": "AAAA"}, {"label": "A"}, {"label": 7}, {"predicted": "ü"},
     {"confidence": "AAA="}, {"label": "/w==/w=="}, {"predicted": "//8="}],
)  # fmt: skip
def test_outcomes_of_another_shape_are_none(change: dict[str, object]) -> None:
    kept = Outcomes(np.array([0, 1]), np.array([1, 1]), np.array([0.5, 0.5])).packed(3)
    assert Outcomes.unpacked(kept, 3) is not None
    assert Outcomes.unpacked(kept | change, 3) is None
    for key in kept:
        assert Outcomes.unpacked({k: v for k, v in kept.items() if k != key}, 3) is None


# --- labels that are likely wrong -----------------------------------------------------------------


def confident_learning(p: np.ndarray, labels: np.ndarray) -> list[tuple[float, int, int]]:
    """1911.00068, equations 1 and 2, image by image: (margin, image, class), clearest first; as in
    cleanlab's filter none whose label is the most probable class."""
    classes = p.shape[1]
    threshold = [
        np.mean([p[i, j] for i in range(len(p)) if labels[i] == j]) if (labels == j).any() else 2.0
        for j in range(classes)
    ]
    found = []
    for i, own in enumerate(labels):
        reached = [j for j in range(classes) if p[i, j] >= threshold[j]]
        if reached:
            best = max(reached, key=lambda j: p[i, j])
            if own not in (best, np.argmax(p[i])):
                found.append((p[i, own] - p[i, best], i, best))
    return sorted(found)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_doubted_labels_against_a_plain_reimplementation(classes: int, seed: int) -> None:
    logits, labels = outputs(200, classes, seed=seed)
    labels[:20] = (labels[:20] + 1) % classes
    expected = confident_learning(special.softmax(logits.astype(np.float64), axis=1), labels)
    images, likelier = scored(logits, labels).doubted_labels(classes)
    assert 0 < len(images) < 200
    assert images.tolist() == [i for _, i, _ in expected]
    assert likelier.tolist() == [k for _, _, k in expected]


def test_a_label_that_the_network_answers_is_not_doubted() -> None:
    """Class 1 gets 0.4 of its own image, and 0.45 of one that is answered rightly, as class 0."""
    p = np.array([[0.95, 0.05, 1e-9], [0.55, 0.45, 1e-9], [1e-9, 0.4, 0.6], [0.1, 0.8, 0.1]])
    found = scored(np.log(p), np.array([0, 0, 1, 2]))
    images, likelier = found.doubted_labels(3)
    assert (images.tolist(), likelier.tolist()) == ([3, 2], [1, 2])


def test_planted_label_errors_come_first() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 20, 1000)
    logits = rng.normal(size=(1000, 20))
    logits[np.arange(1000), truth] += 9
    labels = truth.copy()
    labels[:30] = (truth[:30] + 7) % 20
    images, likelier = scored(logits, labels).doubted_labels(20)
    clear = [i for i in images.tolist() if i < 30]
    assert len(clear) >= 15
    assert images[: len(clear)].tolist() == clear
    assert likelier[: len(clear)].tolist() == truth[clear].tolist()


def test_a_class_without_images_is_never_the_likelier_one() -> None:
    logits = np.array([[5.0, 0.0, 9.0], [5.0, 0.0, 9.0], [0.0, 5.0, 9.0]])
    images, likelier = scored(logits, np.array([0, 0, 1])).doubted_labels(3)
    assert 2 not in likelier.tolist()
    assert len(images) == 0


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
