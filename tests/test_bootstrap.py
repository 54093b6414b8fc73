"""The bootstrap against SciPy, by its definition, and on models that do not differ."""

from __future__ import annotations

import contextlib
import functools
import io
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import stats
from sklearn.metrics import f1_score

from skipway import bootstrap
from skipway.accumulation import Matches
from skipway.bootstrap import (
    ComparedFigures,
    Statistic,
    known_difference,
    known_percentiles,
    mean_of,
    percentiles,
    resampled,
)
from skipway.evaluation.comparing import compare, intervals
from skipway.metrics import (
    PairedAccuracy,
    Scored,
    calibration_error_of,
    expected_calibration_error,
    mcnemar,
)
from skipway.segmentations import statistics


def scored(n: int, classes: int = 10, seed: int = 0, skill: float = 2.0) -> Scored:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) * 2
    logits[np.arange(n), labels] += rng.exponential(skill, n)
    return Scored.from_logits(logits, labels, np.arange(n))


def expanded(n: int) -> float:
    """The confidence level of plain percentiles that Hesterberg's of 95 % have on n values."""
    return 1 - 2 * float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.isf(0.025, n - 1)))


@pytest.mark.parametrize("n", [12, 40, 400])
def test_percentiles_against_scipy(n: int) -> None:
    values = np.random.default_rng(n).gamma(2, size=n)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, method="percentile", rng=0,
        confidence_level=expanded(n),
    ).confidence_interval  # fmt: skip
    low, high = percentiles(resampled({"mean": mean_of(values)}, n, 9999)["mean"], n)
    width = theirs.high - theirs.low
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.04 * width)


@pytest.mark.parametrize("n", [10, 20, 40])
def test_intervals_of_few_images_hold_what_they_say(n: int) -> None:
    """95 % of intervals of a mean of n values hold the true one; plain percentiles fewer."""
    drawn = np.random.default_rng(n).normal(size=(1500, n))
    held = plain = 0
    for values in drawn:
        means = resampled({"mean": mean_of(values)}, n, 600)["mean"]
        low, high = percentiles(means, n)
        held += low <= 0 <= high
        low, high = np.percentile(means, (2.5, 97.5))
        plain += low <= 0 <= high
    assert 0.935 <= held / 1500 <= 0.965
    assert plain < held


def test_one_image_has_no_interval_but_itself() -> None:
    for n in (1, 2):
        assert percentiles(np.array([0.2, 0.4, 0.3]), n) == (0.2, 0.4)


def test_every_metric_against_scoring_the_images_that_were_drawn() -> None:
    """Statistics of counts are the metrics of images that are there several times."""
    found = scored(150)
    values = resampled(found.statistics(), 150, 60)
    counted: list[np.ndarray] = []

    def record(counts: np.ndarray) -> np.ndarray:
        counted.extend(counts)
        return counts[:, 0]

    resampled({"": record}, 150, 60)
    assert len(counted) == 60
    for r, counts in enumerate(counted):
        assert counts.sum() == 150
        images = found.take(np.repeat(np.arange(150), counts.astype(int)))
        for name, metric in images.metrics().items():
            assert values[name][r] == pytest.approx(metric, abs=1e-12), name


def test_ones_give_the_metric_itself() -> None:
    found = scored(77, 4)
    for name, statistic in found.statistics().items():
        assert statistic(np.ones((1, 77)))[0] == pytest.approx(found.metrics()[name], abs=1e-12)


def test_a_metric_of_a_task_of_its_own() -> None:
    """Anything that can be told from counts: here macro-F1 by scikit-learn, row by row."""
    found = scored(60, 3)

    def macro_f1(counts: np.ndarray) -> np.ndarray:
        return np.array(
            [
                f1_score(found.label, found.predicted, average="macro", sample_weight=row)
                for row in counts
            ]
        )

    values = resampled({"f1": macro_f1, **found.statistics()}, 60, 200)
    low, high = percentiles(values["f1"], 60)
    assert low < f1_score(found.label, found.predicted, average="macro") < high
    assert np.corrcoef(values["f1"], values["accuracy"])[0, 1] > 0.8  # of the same resamples


@pytest.mark.parametrize("at_once", [1, 200, 1000])
def test_resamples_are_a_function_of_their_number(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = resampled({"mean": mean_of(np.arange(70.0))}, 70, 50)["mean"]
    few = resampled({"mean": mean_of(np.arange(70.0))}, 70, 20)["mean"]
    other = resampled({"mean": mean_of(np.arange(70.0))}, 70, 50, seed=1)["mean"]
    monkeypatch.setattr(bootstrap, "_AT_ONCE", at_once)
    parts = resampled({"mean": mean_of(np.arange(70.0))}, 70, 50)["mean"]
    assert np.allclose(parts, whole, rtol=1e-12)
    assert np.allclose(few, whole[:20], rtol=1e-12)
    assert not np.isclose(other, whole).any()


@settings(max_examples=15)
@given(st.integers(1, 80), st.integers(2, 6), st.integers(0, 99))
def test_intervals_hold_the_metric(n: int, classes: int, seed: int) -> None:
    found = scored(n, classes, seed)
    metrics = found.metrics()
    for name, ends in intervals(found).items():
        if ends is None:
            assert (n < 3, name in ("loss", "ece")) == (True, True)
            continue
        low, high = ends
        assert 0 <= low <= high
        if n > 30 and 0 < metrics["accuracy"] < 1:
            assert low - 1e-9 <= metrics[name] <= high + 1e-9, name


@pytest.mark.parametrize("n", [100, 1000])
def test_the_calibration_error_that_chance_raises(n: int) -> None:
    """Confidence without fault: the interval is that of the error that such images have."""
    rng = np.random.default_rng(0)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        confidence = 1 - 0.9 * rng.beta(1, 6, n)
        return confidence, rng.random(n) < confidence

    expected = np.mean([expected_calibration_error(*draw()) for _ in range(300)])
    inside = 0
    for _ in range(30):
        confidence, correct = draw()
        error = expected_calibration_error(confidence, correct)
        values = resampled({"e": calibration_error_of(confidence, correct)}, n, 200)["e"]
        assert values.mean() > error  # what the interval is moved by
        low, high = percentiles(values, n, error)
        inside += low <= expected <= high
    assert inside >= 26


# --- two models -----------------------------------------------------------------------------------


def swapped(a: Scored, b: Scored, swap: np.ndarray) -> tuple[Scored, Scored]:
    """Two models that do not differ: which of the two answers an image gets is a matter of luck."""
    columns = [
        {
            name: np.where(
                swap[:, None] if getattr(one, name).ndim == 2 else swap,
                getattr(other, name),
                getattr(one, name),
            )
            for name in one.__dataclass_fields__
        }
        for one, other in ((a, b), (b, a))
    ]
    return Scored(**columns[0]), Scored(**columns[1])


def pairs(n: int) -> tuple[Scored, Scored]:
    """Two models with noise of their own on the same images."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 5, n)
    shared = rng.normal(size=(n, 5)) * 1.5
    shared[np.arange(n), labels] += rng.exponential(2, n)
    return tuple(
        Scored.from_logits(shared + 0.8 * rng.normal(size=(n, 5)), labels, np.arange(n))
        for _ in range(2)
    )  # type: ignore[return-value]


@pytest.mark.parametrize("n", [60, 300, 2000])
def test_models_that_do_not_differ_are_told_apart_in_five_of_a_hundred(n: int) -> None:
    """1,000 A/A comparisons, each on a resample of the images."""
    a, b = pairs(n)
    rng = np.random.default_rng(n)
    false = 0
    for _ in range(1000):
        drawn = rng.integers(0, n, n)
        swap = rng.random(n) < 0.5
        only = a.correct[drawn] != b.correct[drawn]
        first = only & (np.where(swap, b.correct[drawn], a.correct[drawn]))
        false += mcnemar(int(first.sum()), int((only & ~first).sum())) < 0.05
    assert 0 < false <= 50


def test_intervals_of_models_that_do_not_differ_hold_zero() -> None:
    a, b = pairs(200)
    rng = np.random.default_rng(1)
    missed = dict.fromkeys(a.metrics(), 0)
    clear = 0
    for _ in range(40):
        drawn = rng.integers(0, 200, 200)
        found = compare(
            *(
                Scored(**{**vars(s), "index": np.arange(200)})
                for s in swapped(a.take(drawn), b.take(drawn), rng.random(200) < 0.5)
            )
        )
        clear += found.clear
        for name, (low, high) in found.intervals.items():
            missed[name] += not low <= 0 <= high
    assert clear <= 4
    assert max(missed.values()) <= 6  # of a nominal 2; 7 have a probability of 0.003


def told_apart(
    first: Statistic, second: Statistic, both: Statistic, n: int, resamples: int, seed: int
) -> tuple[bool, bool]:
    """Whether the permutation test, and the paired interval, tell two models apart that answered n
    images. both: of the 2n answers."""
    figures = [{"": float(of(np.ones((1, n)))[0])} for of in (first, second)]
    drawn = resampled({"first": first, "second": second}, n, resamples, seed)
    chance = bootstrap.swapped({"": both}, n, resamples, seed)
    paired = {"": drawn["first"]}, {"": drawn["second"]}
    found = ComparedFigures.of(n, (figures[0], figures[1]), paired, chance)
    ends = found.intervals[""]
    assert ends is not None
    assert found.clear("") == (found.p[""] < 0.05)
    return found.clear(""), not ends[0] <= 0 <= ends[1]


def twins_on_streets(n: int, rng: np.random.Generator) -> list[Statistic]:
    """mIoU over four classes, the last rare, in n images that are as hard for both models."""
    truth, hard = 400 * rng.dirichlet([4, 2, 1, 0.5], n), rng.beta(2, 6, (n, 4))
    found = []
    for _ in range(2):
        wrong = (hard * rng.gamma(6, 1 / 6, (n, 4))).clip(0, 1)
        taken = rng.dirichlet(np.ones(4), (n, 4)) * (truth * wrong)[..., None]
        found.append(taken + (truth * (1 - wrong))[..., None] * np.eye(4))
    return [statistics(of)["miou"] for of in (*found, np.concatenate(found))]


@functools.cache
def boxes_of_two(images: int = 400) -> tuple[Any, list[list[Any]]]:
    """What pycocotools says of each image for two detectors with noise of their own: one to three
    objects, most of them found, some pixels off, and something that is none in 40 %."""
    rng, true, guessed = np.random.default_rng(0), [], [[], []]
    for image in range(images):
        for _ in range(rng.integers(1, 4)):
            x, y, w, h = rng.uniform(8, 24, 4).tolist()
            row = {"image_id": image, "category_id": 0, "area": w * h}
            true.append(row | {"bbox": [x, y, w, h], "iscrowd": 0})
            for found in guessed:
                if rng.random() < 0.9:
                    box = (np.array([x, y, w, h]) + rng.normal(0, 1, 4)).tolist()
                    found.append(row | {"bbox": box, "score": rng.beta(4, 2)})
        for found in guessed:
            if rng.random() < 0.4:
                row = {"image_id": image, "category_id": 0, "area": 400}
                found.append(row | {"bbox": [60, 60, 20, 20], "score": rng.beta(2, 4)})
    rows = []
    for found in guessed:
        sets = COCO(), COCO()
        with contextlib.redirect_stdout(io.StringIO()):
            for one, annotations in zip(sets, (true, found), strict=True):
                one.dataset = {
                    "images": [{"id": i} for i in range(images)],
                    "categories": [{"id": 0}],
                    "annotations": [row | {"id": i} for i, row in enumerate(annotations, 1)],
                }
                one.createIndex()
            evaluation = COCOeval(*sets, "bbox")
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.iouThrs = evaluation.params.iouThrs[::5]
            evaluation.evaluate()
        rows.append(evaluation.evalImgs)
    return evaluation.params, rows


def twins_on_boxes(n: int, rng: np.random.Generator) -> list[Statistic]:
    """AP at IoU 0.5 and 0.75 of two detectors on n images, drawn from more, and swapped in half of
    them."""
    params, rows = boxes_of_two()
    drawn, swap = rng.integers(0, len(rows[0]), n), rng.integers(0, 2, n)
    params = SimpleNamespace(
        imgIds=range(n), areaRng=params.areaRng, catIds=params.catIds, recThrs=params.recThrs
    )
    first, second = (
        Matches.of(
            SimpleNamespace(
                params=params,
                evalImgs=[rows[k ^ int(s)][i] for i, s in zip(drawn, swap, strict=True)],
            )
        )
        for k in (0, 1)
    )

    def ap(matches: Matches) -> Statistic:
        return lambda counts: matches(counts)[:, 0, 0].mean(axis=1, dtype=np.float64)

    return [ap(matches) for matches in (first, second, first.beside(second))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("twins", "n", "pairs", "resamples"),
    [(twins_on_streets, 100, 1000, 1000), (twins_on_boxes, 100, 400, 250)],
    ids=["miou", "ap"],
)
def test_figures_of_models_that_do_not_differ(
    twins: Callable[[int, np.random.Generator], list[Statistic]],
    n: int,
    pairs: int,
    resamples: int,
) -> None:
    """At most 5 of a hundred pairs are told apart, and what noise adds to that once in a thousand:
    73 of 1,000, 35 of 400. So are the intervals."""
    rng = np.random.default_rng(1)
    told = [told_apart(*twins(n, rng), n, resamples, seed) for seed in range(pairs)]
    by_swaps, by_interval = np.sum(told, axis=0)
    most, least = stats.binom.isf(0.001, pairs, 0.05), stats.binom.ppf(0.001, pairs, 0.05)
    assert least <= by_swaps <= most
    assert by_interval <= most


def test_a_better_model_is_told_apart() -> None:
    a, b = scored(1500, seed=3, skill=2.0), scored(1500, seed=3, skill=4.0)
    found = compare(a, b)
    assert found.clear
    assert found.differences["accuracy"] > 0
    assert found.differences["loss"] < 0
    assert found.intervals["accuracy"][0] > 0
    assert found.intervals["loss"][1] < 0
    test = stats.binomtest(int((a.correct & ~b.correct).sum()), int((a.correct != b.correct).sum()))
    assert found.accuracy.p == pytest.approx(test.pvalue, rel=1e-9)
    back = compare(b, a)
    assert back.accuracy.p == found.accuracy.p
    assert back.differences == pytest.approx({k: -v for k, v in found.differences.items()})
    for name in ("top5", "loss"):  # the same resamples either way
        low, high = found.intervals[name]
        assert back.intervals[name] == pytest.approx((-high, -low))
    paired = stats.bootstrap(
        (a.losses, b.losses), lambda x, y, axis: (y - x).mean(axis), paired=True,
        method="percentile", n_resamples=4000, rng=0, vectorized=True,
    ).confidence_interval  # fmt: skip
    width = paired.high - paired.low
    assert found.intervals["loss"] == pytest.approx((paired.low, paired.high), abs=0.12 * width)


def test_a_model_against_itself() -> None:
    found = compare(scored(50), scored(50))
    assert (found.accuracy.p, found.clear) == (1, False)
    assert set(found.differences.values()) == {0}
    for name in ("accuracy", "top5"):
        low, high = found.intervals.pop(name)  # others of its images may tell them apart
        assert low < 0 < high
    assert all(ends == (0, 0) for ends in found.intervals.values())


def test_the_difference_of_top_five_is_that_of_paired_shares() -> None:
    """Of 30 images that both have among their five, others may be missed by one of them."""
    a, b = (Scored(**{**vars(scored(30, seed=s)), "in_top5": np.ones(30, bool)}) for s in (1, 2))
    found = compare(a, b)
    assert found.intervals["top5"] == PairedAccuracy.of(a.in_top5, b.in_top5).interval
    assert found.intervals["top5"][0] < -0.1 < 0.1 < found.intervals["top5"][1]


@pytest.mark.parametrize("n", [1, 2])
def test_two_images_tell_nothing_of_a_difference(n: int) -> None:
    found = compare(scored(n, seed=1), scored(n, seed=2))
    assert found.intervals["loss"] is found.intervals["ece"] is None
    assert None not in (found.intervals["accuracy"], found.intervals["top5"])


def test_what_does_not_vary_has_no_interval() -> None:
    equal = np.full(200, 0.3) + 1e-9 * np.random.default_rng(0).random(200)
    assert known_percentiles(equal, 40) is None
    assert known_percentiles(np.ones(200), 40) is None
    varied = np.linspace(0.2, 0.4, 200)
    assert known_percentiles(varied, 40) == percentiles(varied, 40)
    assert known_difference(varied, varied, 40) == (0, 0)
    assert known_difference(varied, varied, 2) is None
    assert known_difference(varied, varied, 40, None, 4) is None
    assert known_difference(varied, varied, 40, None, 5) == (0, 0)
    assert known_difference(varied, np.full(len(varied), np.nan), 40) is None
    assert known_difference(np.ones(200), np.ones(200), 40) is None  # without a mistake, both
    assert known_difference(varied, varied + 0.1, 40) is None
    assert known_difference(np.ones(200), varied, 40) == percentiles(varied - 1, 40)


def test_images_that_one_could_not_read_are_left_out() -> None:
    a, b = scored(80, seed=1), scored(80, seed=1, skill=5)
    whole = compare(a.take(np.arange(5, 75)), b.take(np.arange(5, 75)))
    found = compare(a.take(np.arange(5, 80)), b.take(np.arange(75)))
    assert found == whole
    assert found.accuracy.n == 70


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_paired_accuracy_counts(rows: list[tuple[bool, bool]]) -> None:
    first, second = np.array(rows).T
    found = PairedAccuracy.of(first, second)
    assert found.both == sum(a and b for a, b in rows)
    assert found.only_first == sum(a and not b for a, b in rows)
    assert found.only_second == sum(b and not a for a, b in rows)
    assert found.difference == pytest.approx(second.mean() - first.mean())
    assert found.p == mcnemar(found.only_first, found.only_second)
    low, high = found.interval
    assert low <= found.difference + 1e-9
    assert found.difference - 1e-9 <= high
