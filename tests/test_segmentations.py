"""Class maps are judged as scikit-learn, torchmetrics and the paper on boundaries judge them."""

from __future__ import annotations

import math
import warnings

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    jaccard_score,
    precision_score,
    recall_score,
)
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

from skipway.bootstrap import percentiles, random_swaps, resampled
from skipway.segmentations import (
    IGNORED,
    TOLERANCE,
    boundary_counts,
    boundary_f1,
    compare,
    confusion,
    intervals,
    iou,
    iou_intervals,
    mean_accuracy,
    mean_boundary_f1,
    mean_iou,
    metrics,
    pixel_accuracy,
    precision,
    recall,
    statistics,
    weighted_iou,
)

CLASSES = 5


def maps(
    seed: int, classes: int = CLASSES, size: tuple[int, int] = (40, 55), ignored: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """A true map of blobs, and a found one that errs; the last class is there but not found."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    points = rng.uniform(0, 1, (3 * classes, 2)) * size
    nearest = ((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2).argmin(-1)
    truth = (nearest % classes).astype(np.uint8)
    found = np.roll(truth, rng.integers(-3, 4, 2), (0, 1))
    noise = rng.random(size) < 0.03
    found[noise] = rng.integers(0, classes, noise.sum())
    found[found == classes - 1] = 0
    truth[rng.random(size) < ignored] = IGNORED
    return found, truth


def judged(found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and found class of the pixels that count, as scikit-learn takes them."""
    return truth[truth != IGNORED], found[truth != IGNORED]


# --- regions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_confusion_and_class_scores_against_scikit_learn(seed: int) -> None:
    found, truth = maps(seed)
    counts, named = confusion(found, truth, CLASSES), {"labels": range(CLASSES), "average": None}
    true, answer = judged(found, truth)
    assert counts.dtype == np.int64
    assert np.array_equal(counts, confusion_matrix(true, answer, labels=range(CLASSES)))
    assert np.allclose(iou(counts), jaccard_score(true, answer, **named))
    assert np.allclose(recall(counts), recall_score(true, answer, **named))
    theirs = precision_score(true, answer, **named, zero_division=np.nan)
    assert np.isnan(theirs[-1])  # never found
    assert np.allclose(precision(counts), theirs, equal_nan=True)
    assert pixel_accuracy(counts) == pytest.approx(accuracy_score(true, answer))
    assert mean_accuracy(counts) == pytest.approx(balanced_accuracy_score(true, answer))
    assert weighted_iou(counts) == pytest.approx(jaccard_score(true, answer, average="weighted"))
    assert mean_iou(counts) == pytest.approx(jaccard_score(true, answer, average="macro"))


def test_iou_against_torchmetrics() -> None:
    """Over several images, with a class that is in none and one that is found alone."""
    pairs = [maps(seed, 4) for seed in range(4)]
    classes = 6
    for found, _ in pairs:
        found[:3, :3] = 4
    theirs = {
        average: MulticlassJaccardIndex(classes, average=average, ignore_index=IGNORED)
        for average in ("none", "macro")
    }
    for metric in theirs.values():
        for found, truth in pairs:
            metric.update(torch.from_numpy(found).long(), torch.from_numpy(truth).long())
    counts = sum(confusion(*pair, classes) for pair in pairs)
    ours = iou(counts)
    assert np.isnan(ours[5])
    assert ours[4] == 0
    assert np.allclose(np.nan_to_num(ours), theirs["none"].compute().numpy(), atol=1e-6)
    assert mean_iou(counts) == pytest.approx(float(theirs["macro"].compute()), abs=1e-6)


def test_mean_iou_of_images_against_torchmetrics() -> None:
    pairs = [maps(seed, ignored=0) for seed in range(3)]
    for found, _ in pairs:
        found[0, 0] = CLASSES - 1  # so that every class is found too
    ours = mean_iou(np.stack([confusion(*pair, CLASSES) for pair in pairs]))
    for pair, own in zip(pairs, ours, strict=True):
        theirs = MeanIoU(CLASSES, input_format="index")
        theirs.update(*(torch.from_numpy(labels).long()[None] for labels in pair))
        assert own == pytest.approx(float(theirs.compute()), abs=1e-6)


def test_metrics_by_hand() -> None:
    counts = np.array([[6, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    counts[1, 3] = 2
    assert np.allclose(iou(counts), [6 / 9, 1 / 6, np.nan, 0], equal_nan=True)
    assert mean_iou(counts) == pytest.approx((6 / 9 + 1 / 6 + 0) / 3)
    assert pixel_accuracy(counts) == pytest.approx(7 / 12)
    assert mean_accuracy(counts) == pytest.approx((6 / 8 + 1 / 4) / 2)
    assert weighted_iou(counts) == pytest.approx(8 / 12 * 6 / 9 + 4 / 12 * 1 / 6)


def test_many_confusions_at_once_are_each_alone() -> None:
    many = np.stack([confusion(*maps(seed), CLASSES) for seed in range(6)]).reshape(2, 3, 5, 5)
    for metric in (iou, mean_iou, pixel_accuracy, mean_accuracy, weighted_iou, recall, precision):
        found = metric(many)
        assert found.shape[:2] == (2, 3)
        assert np.allclose(found[1, 2], metric(many[1, 2]), equal_nan=True)


any_map = hnp.arrays(np.uint8, (6, 7), elements=st.integers(0, CLASSES - 1))
any_truth = hnp.arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, 3, 4, IGNORED]))


@hypothesis.settings(max_examples=40)
@hypothesis.given(any_map, any_truth)
def test_every_judged_pixel_counts_once(found: np.ndarray, truth: np.ndarray) -> None:
    counts = confusion(found, truth, CLASSES)
    assert counts.sum() == (truth != IGNORED).sum()
    top, bottom = (confusion(found[part], truth[part], CLASSES)
                   for part in (slice(3), slice(3, 6)))  # fmt: skip
    assert np.array_equal(top + bottom, counts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = np.array([*metrics(counts[None]).values()])
    assert np.isnan(values).all() if not counts.any() else ((values >= 0) & (values <= 1)).all()


@hypothesis.settings(max_examples=40)
@hypothesis.given(any_map, any_truth, hnp.arrays(np.uint8, (6, 7)))
def test_what_is_found_where_nothing_is_judged_does_not_matter(found, truth, other) -> None:
    changed = np.where(truth == IGNORED, other, found)
    assert np.array_equal(confusion(changed, truth, CLASSES), confusion(found, truth, CLASSES))
    counts = boundary_counts(found, truth, CLASSES, 0.2)
    assert np.array_equal(boundary_counts(changed, truth, CLASSES, 0.2), counts)


def test_all_255_classes_can_be_there() -> None:
    truth = np.arange(255, dtype=np.uint8).repeat(4).reshape(30, 34)
    assert np.array_equal(confusion(truth, truth, 255), 4 * np.eye(255))
    counts = boundary_counts(truth, truth, 255)
    assert (boundary_f1(counts) == 1).all()
    assert (counts[0] == 4).all()


@pytest.mark.parametrize("judge", [confusion, boundary_counts])
def test_maps_that_do_not_fit_are_refused(judge) -> None:
    truth = np.zeros((4, 5), np.uint8)
    with pytest.raises(ValueError, match=r"uint8 \(5, 4\) and uint8 \(4, 5\)"):
        judge(truth.T, truth, 3)
    with pytest.raises(ValueError, match="int64"):
        judge(truth.astype(np.int64), truth, 3)
    for name, place in (("found", 0), ("truth", 1)):
        pair = [truth.copy(), truth.copy()]
        pair[place][1, 1] = 3
        with pytest.raises(ValueError, match=f"{name}: holds 3, of 3 classes"):
            judge(*pair, 3)
    with pytest.raises(ValueError, match="found: holds 255"):
        judge(truth + np.uint8(IGNORED), truth, 3)


# --- boundaries -----------------------------------------------------------------------------------


def slow_boundary(labels: np.ndarray, truth: np.ndarray, k: int) -> list[tuple[int, int]]:
    """Pixels of class k beside one of another class, both judged."""
    height, width = labels.shape
    found = []
    for y in range(height):
        for x in range(width):
            if labels[y, x] != k or truth[y, x] == IGNORED:
                continue
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(a, b) for a, b in around if 0 <= a < height and 0 <= b < width]
            if any(labels[p] != k and truth[p] != IGNORED for p in inside):
                found.append((y, x))
    return found


def slow_counts(found: np.ndarray, truth: np.ndarray, classes: int, share: float) -> np.ndarray:
    """All pairs of boundary pixels."""
    most = share * math.hypot(*truth.shape)
    counts = np.zeros((4, classes), int)
    for k in range(classes):
        own, true = (slow_boundary(labels, truth, k) for labels in (found, truth))
        for row, (some, others) in enumerate(((own, true), (true, own))):
            counts[2 * row, k] = len(some)
            counts[2 * row + 1, k] = sum(any(math.dist(a, b) < most for b in others) for a in some)
    return counts


@pytest.mark.parametrize("share", [0.004, TOLERANCE, 0.03, 0.06])
@pytest.mark.parametrize("seed", range(3))
def test_boundaries_against_all_pairs_of_pixels(seed: int, share: float) -> None:
    size = ((37, 61), (60, 33), (48, 48))[seed]
    found, truth = maps(seed, size=size, ignored=0.02 * seed)
    truth[10:14, 5:20] = IGNORED
    counts = boundary_counts(found, truth, CLASSES, share)
    assert np.array_equal(counts, slow_counts(found, truth, CLASSES, share))
    assert (counts[1::2] > 0).sum() >= CLASSES


@hypothesis.settings(max_examples=40)
@hypothesis.given(any_map, any_truth, st.floats(0.05, 0.6))
def test_any_boundary_against_all_pairs_of_pixels(found, truth, share: float) -> None:
    expected = slow_counts(found, truth, CLASSES, share)
    assert np.array_equal(boundary_counts(found, truth, CLASSES, share), expected)


@hypothesis.settings(max_examples=40)
@hypothesis.given(any_map, any_map, st.floats(0.01, 0.5))
def test_boundaries_have_no_direction(found, truth, share: float) -> None:
    counts = boundary_counts(found, truth, CLASSES, share)
    back = boundary_counts(truth, found, CLASSES, share)
    assert np.array_equal(back, counts[[2, 3, 0, 1]])
    f1 = boundary_f1(counts)
    assert np.array_equal(f1, boundary_f1(back), equal_nan=True)
    for turned in (lambda m: m[::-1], lambda m: m[:, ::-1], lambda m: m.T):
        assert np.array_equal(boundary_counts(turned(found), turned(truth), CLASSES, share), counts)
    wider = boundary_counts(found, truth, CLASSES, 2 * share)
    assert (wider >= counts).all()
    same = boundary_f1(boundary_counts(truth, truth, CLASSES, share))
    assert set(same[~np.isnan(same)]) <= {1.0}


@pytest.mark.parametrize(("off", "near"), [(0, True), (4, True), (5, False)])
def test_a_boundary_may_be_off_by_less_than_the_tolerance(off: int, near: bool) -> None:
    """480 by 360 pixels: 0.75 % of the diagonal is 4.5 pixels."""
    truth = np.zeros((360, 480), np.uint8)
    truth[:, 200:] = 1
    found = np.zeros_like(truth)
    found[:, 200 + off :] = 1
    counts = boundary_counts(found, truth, 2)
    assert counts[[0, 2]].tolist() == [[360, 360]] * 2
    assert boundary_f1(counts).tolist() == [float(near)] * 2


def test_near_is_less_than_the_tolerance_and_measured_as_the_crow_flies() -> None:
    """A pixel of class 1 at a distance of exactly 5: 3 down and 4 to the right."""
    truth = np.zeros((30, 40), np.uint8)  # a diagonal of 50
    found = truth.copy()
    truth[10, 10] = found[13, 14] = 1
    for share, near in ((0.1, 0), (0.1001, 1)):
        assert boundary_counts(found, truth, 2, share)[:, 1].tolist() == [1, near, 1, near]


def test_no_boundary_runs_along_what_is_ignored_or_the_image() -> None:
    truth = np.zeros((20, 30), np.uint8)
    truth[5:15, 10:20] = 1
    truth[4:16, 9:21] = np.where(truth[4:16, 9:21] == 1, 1, IGNORED)  # a band around the object
    counts = boundary_counts(truth % 255, truth, 2)
    assert not counts.any()
    assert np.isnan(boundary_f1(counts)).all()


def test_f1_of_counts_by_hand() -> None:
    counts = np.array([[10, 0, 4, 0, 5], [5, 0, 0, 0, 0], [20, 0, 0, 3, 5], [20, 0, 0, 0, 0]])
    # half of what is found is right, all that is true is found; nothing; one side alone; never near
    assert np.allclose(boundary_f1(counts), [2 / 3, np.nan, 0, 0, 0], equal_nan=True)


def test_boundary_f1_is_a_mean_over_images() -> None:
    none = [[0, 0], [0, 0], [0, 0], [0, 0]]
    whole = [[9, 4], [9, 4], [9, 4], [9, 4]]  # both classes right
    half = [[8, 0], [4, 0], [8, 0], [4, 0]]  # one class, a half of it
    mean, by_class = mean_boundary_f1(np.array([none, whole, half]))
    assert mean == pytest.approx((1 + 0.5) / 2)
    assert np.allclose(by_class, [(1 + 0.5) / 2, 1])
    assert np.isnan(mean_boundary_f1(np.array([none]))[0])


# --- how sure -------------------------------------------------------------------------------------


def counted(n: int, classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    pairs = [maps(seed, classes, (24, 32)) for seed in range(n)]
    return (
        np.stack([confusion(*pair, classes) for pair in pairs]),
        np.stack([boundary_counts(*pair, classes, 0.05) for pair in pairs]),
    )


def test_metrics_of_resamples_are_those_of_the_images_that_were_drawn() -> None:
    confusions, boundaries = counted(25)
    boundaries[3] = 0  # an image without a boundary
    n = len(confusions)
    drawn: list[np.ndarray] = []

    def record(counts: np.ndarray) -> np.ndarray:
        drawn.extend(counts)
        return counts[:, 0]

    found = statistics(confusions, boundaries)
    values = resampled(found | {"": record}, n, 40)
    assert next(iter(found)) == "miou"
    for r, counts in enumerate(drawn):
        images = np.repeat(np.arange(n), counts.astype(int))
        whole = confusions[images].sum(axis=0)
        expected = {
            "miou": mean_iou(whole),
            "pixel_accuracy": pixel_accuracy(whole),
            "mean_accuracy": mean_accuracy(whole),
            "weighted_iou": weighted_iou(whole),
            "boundary_f1": mean_boundary_f1(boundaries[images])[0],
        }
        for name, value in expected.items():
            assert values[name][r] == pytest.approx(value, abs=1e-12), name


def test_metrics_are_those_of_all_images_together() -> None:
    confusions, boundaries = counted(8)
    found, whole = metrics(confusions, boundaries), confusions.sum(axis=0)
    assert found["miou"] == pytest.approx(mean_iou(whole))
    assert found["boundary_f1"] == pytest.approx(mean_boundary_f1(boundaries)[0])
    assert [*metrics(confusions)] == [*found][:-1]


def test_the_interval_of_mean_iou_against_scipy() -> None:
    confusions, _ = counted(40)

    def miou(images: np.ndarray) -> float:
        return float(mean_iou(confusions[images.astype(int)].sum(axis=0)))

    theirs = stats.bootstrap(
        (np.arange(40),), miou, n_resamples=2000, method="percentile", vectorized=False, rng=0
    ).confidence_interval
    low, high = intervals(confusions)["miou"]
    width = theirs.high - theirs.low
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.1 * width)
    assert low < metrics(confusions)["miou"] < high


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.integers(0, 12), st.integers(0, 99))
def test_images_in_which_nothing_is_judged(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    confusions = rng.integers(0, 9, (n, 3, 3)) * rng.integers(0, 2, (n, 1, 1))
    boundaries = rng.integers(0, 5, (n, 4, 3)) * rng.integers(0, 2, (n, 1, 1))
    boundaries[:, 1::2] = np.minimum(boundaries[:, 1::2], boundaries[:, ::2])
    found, ends = metrics(confusions, boundaries), intervals(confusions, boundaries)
    assert found.keys() == ends.keys()
    for name, value in found.items():
        if math.isnan(value) or n < 3:
            assert ends[name] is None
        elif ends[name] is not None:  # as where more than half of the resamples judge nothing
            low, high = ends[name]
            assert 0 <= low <= high <= 1


def test_boundaries_that_few_images_have_have_no_interval() -> None:
    """Of 40 images, which all have judged pixels."""
    confusions, boundaries = counted(40)
    for few, known in ((1, False), (4, False), (5, True)):
        boundaries[few:] = 0
        _, boundaries[:few] = counted(few)
        ends = intervals(confusions, boundaries)
        assert (ends["boundary_f1"] is not None, ends["miou"] is not None) == (known, True)
        others = boundaries.copy()
        others[0, [1, 3]] //= 2
        ends = compare((confusions, boundaries), (confusions, others)).intervals
        assert (ends["boundary_f1"] is not None, ends["miou"]) == (known, (0, 0))


def test_a_figure_of_few_images_or_without_a_mistake_is_not_certain() -> None:
    confusions = np.stack([np.diag(row) for row in np.arange(1, 25).reshape(8, 3)])
    assert metrics(confusions)["miou"] == 1
    assert set(intervals(confusions).values()) == {None}
    confusions, boundaries = counted(8)
    confusions[4:] = 0  # nothing in them is judged
    assert intervals(confusions, boundaries)["miou"] is None


# --- two models -----------------------------------------------------------------------------------


def pairs_of_models(seed: int, n: int, errors: tuple[float, float]) -> list[tuple]:
    """The counts of two models on the same n images; of each, the share of pixels it guesses."""
    rng = np.random.default_rng(seed)
    found = []
    for share in errors:
        counts = []
        for i in range(n):
            truth, _ = maps(i, size=(24, 32))
            guessed = rng.integers(0, CLASSES, truth.shape).astype(np.uint8)
            answer = np.where(rng.random(truth.shape) < share, guessed, truth)
            answer[truth == IGNORED] = 0
            pair = answer.astype(np.uint8), truth, CLASSES
            counts.append((confusion(*pair), boundary_counts(*pair, 0.05)))
        found.append(tuple(map(np.stack, zip(*counts, strict=True))))
    return found


def test_two_models_on_the_same_images() -> None:
    first, second = pairs_of_models(0, 25, (0.3, 0.2))
    found = compare(first, second)
    assert found.n == 25
    assert (found.first, found.second) == (metrics(*first), metrics(*second))
    for name, difference in found.differences.items():
        low, high = found.intervals[name]
        assert low < difference < high
    assert found.p["miou"] == 1 / 1001
    assert found.clear("miou")
    back = compare(second, first)
    assert back.p == found.p
    for name, (low, high) in back.intervals.items():
        assert (-high, -low) == pytest.approx(found.intervals[name])


def test_a_model_against_itself() -> None:
    one, _ = pairs_of_models(0, 12, (0.3, 0.3))
    found = compare(one, one)
    assert set(found.differences.values()) == {0}
    assert set(found.intervals.values()) == {(0, 0)}
    assert set(found.p.values()) == {1}
    assert not any(map(found.clear, found.first))


def test_models_that_are_as_good_are_seldom_told_apart() -> None:
    """By chance alone 2 of 40, and more than 6 in one of 300 such tests."""
    close = [compare(*pairs_of_models(seed, 8, (0.3, 0.3))).p["miou"] for seed in range(1, 41)]
    assert sum(p < 0.05 for p in close) <= 6
    assert 0.3 < np.mean(close) < 0.7


def test_swaps_are_those_of_scoring_what_was_swapped() -> None:
    models = pairs_of_models(3, 9, (0.3, 0.28))
    found = compare(*models)
    falls: dict[str, list[float]] = {name: [] for name in found.p}
    for swap in random_swaps(9, np.arange(1000)):
        mixed = [
            metrics(*(np.stack([models[n ^ int(s)][part][i] for i, s in enumerate(swap)])
                      for part in (0, 1)))
            for n in (0, 1)
        ]  # fmt: skip
        for name, fall in falls.items():
            fall.append(abs(mixed[1][name] - mixed[0][name]))
    for name, fall in falls.items():
        as_large = sum(f >= abs(found.differences[name]) - 1e-6 for f in fall)
        assert found.p[name] == (1 + as_large) / 1001


def test_what_is_not_judged_is_not_compared() -> None:
    """Images of one class have no true boundary, and one of the models finds none either."""
    truth = np.zeros((2, 8, 8), np.uint8)
    holed = truth.copy()
    holed[:, 3, 3] = 1
    counts = [
        (np.stack([confusion(f, t, 2) for f, t in zip(found, truth, strict=True)]),
         np.stack([boundary_counts(f, t, 2) for f, t in zip(found, truth, strict=True)]))
        for found in (truth, holed)
    ]  # fmt: skip
    assert "boundary_f1" not in compare(*counts).p
    assert "boundary_f1" in compare(counts[1], counts[1]).p
    nothing = [np.zeros_like(part) for part in counts[0]]
    assert compare(nothing, nothing).p == {}


def test_intervals_of_each_class_by_scoring_the_images_that_were_drawn() -> None:
    rng = np.random.default_rng(2)
    confusions = rng.integers(0, 50, (12, 3, 3)) + 100 * np.eye(3, dtype=int)
    confusions[1:, 2] = confusions[1:, :, 2] = 0  # in one image alone

    def of(k: int):
        return lambda counts: np.array([iou(np.tensordot(c, confusions, 1))[k] for c in counts])

    found = iou_intervals(confusions)
    for k in range(2):
        assert found[k] == pytest.approx(percentiles(resampled({"k": of(k)}, 12)["k"], 12))
    assert found[2] is None  # whose resamples do not vary
    confusions[4:, 1] = confusions[4:, :, 1] = 0
    assert iou_intervals(confusions)[1] is None
    confusions[4, 0, 1] = 3  # found in a fifth
    drawn = resampled({"k": of(1)}, 12)["k"]
    assert iou_intervals(confusions)[1] == pytest.approx(percentiles(drawn[~np.isnan(drawn)], 5))
    confusions[:, 2] = confusions[:, :, 2] = 0
    assert iou_intervals(confusions)[2] is None
    assert iou_intervals(confusions[:0]) == [None] * 3
