"""Average precision of resampled images: pycocotools on copies of images as the oracle, and how the
intervals and comparisons of detectors behave."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from commands import call
from detected import task_evaluation, task_record
from pages import make_run, read
from skipway.accumulation import (
    Matches,
    by_class,
    figures,
    interval,
    resamples_of,
    scores_of,
)
from skipway.architecture import architecture
from skipway.bootstrap import percentiles, random_swaps
from skipway.card import Card
from skipway.data.objects import Objects, open_objects
from skipway.detections import Detections, judged, runs_of
from skipway.errors import InputError
from skipway.heads import DetectorConfig
from skipway.images import Preprocess
from skipway.locator import Locator
from skipway.tasks.detect import DetectionEvaluator

SIDE = 220
CLASSES = ("dark", "bright", "absent")

Scene = list[tuple[Objects, Detections]]


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (resamples_of(72), resamples_of(5000)) == (1000, 200)
    monkeypatch.setattr("skipway.accumulation.RESAMPLES", 250)


def scene(
    seed: int, images: int, skill: float = 0.8, ties: bool = False, noise: int | None = None
) -> Scene:
    """Objects of two of three classes and of all sizes, crowds among them, and detections near and
    far from them. Images may have neither. noise: the seed of what is found, where it is another.
    """
    rng, rows = np.random.default_rng(seed), []
    found_rng = rng if noise is None else np.random.default_rng(noise)
    for i in range(images):
        n = int(rng.integers(0, 7))
        corners, sides = rng.integers(0, 100, (n, 2)), rng.integers(6, 115, (n, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
        labels = rng.integers(0, 2, n)
        crowd = rng.random(n) < 0.1
        truth = Objects(
            boxes, labels, crowd, sides.prod(axis=1).astype(np.float32), np.arange(n), (None,) * n
        )
        seen, extra = found_rng.random(n) < skill, int(found_rng.integers(0, 5))
        moved = boxes[seen] + found_rng.normal(0, 3, (int(seen.sum()), 4))
        odd = found_rng.uniform(0, 150, (extra, 2))
        every = np.concatenate([moved, np.concatenate([odd, odd + 50], axis=1)])
        scores = np.concatenate([found_rng.beta(4, 2, len(moved)), found_rng.beta(2, 4, extra)])
        # Scores of other images may be the same; within one, copies of images would be told apart.
        scores = np.round(scores, 2) if ties else scores + 1e-6 * i
        guessed = np.concatenate([labels[seen], found_rng.integers(0, 3, extra)])
        order = np.argsort(-scores, kind="stable")
        rows.append((truth, Detections(every[order].astype(np.float32), guessed[order].astype(int),
                                       scores[order].astype(np.float32))))  # fmt: skip
    return rows


def with_masks(rows: Scene) -> Scene:
    """The same; masks are the boxes, to whole pixels."""

    def masks(boxes: np.ndarray) -> tuple[Any, ...]:
        y, x = np.mgrid[:SIDE, :SIDE] + 0.5
        return tuple(runs_of((x > a) & (x < c) & (y > b) & (y < d)) for a, b, c, d in boxes)

    return [(replace(t, shapes=masks(t.boxes)), replace(f, masks=masks(f.boxes))) for t, f in rows]


def evaluated(rows: Scene) -> COCOeval:
    """pycocotools by itself."""
    true, guessed = COCO(), COCO()
    annotations, detections = [], []
    for i, (truth, found) in enumerate(rows):
        for j in range(len(truth)):
            a, b, c, d = truth.boxes[j].astype(float).tolist()
            annotations.append({"image_id": i, "category_id": int(truth.labels[j]),
                                "bbox": [a, b, c - a, d - b], "area": float(truth.areas[j]),
                                "iscrowd": int(truth.crowd[j])})  # fmt: skip
        for j in range(len(found)):
            a, b, c, d = found.boxes[j].astype(float).tolist()
            detections.append({"image_id": i, "category_id": int(found.labels[j]),
                               "bbox": [a, b, c - a, d - b], "area": (c - a) * (d - b),
                               "iscrowd": 0, "score": float(found.scores[j])})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        for coco, given_rows in ((true, annotations), (guessed, detections)):
            coco.dataset = {
                "images": [{"id": i} for i in range(len(rows))],
                "categories": [{"id": k} for k in range(3)],
                "annotations": [row | {"id": i} for i, row in enumerate(given_rows, 1)],
            }
            coco.createIndex()
        evaluation = COCOeval(true, guessed, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def judge(rows: Scene, kind: Any = "box") -> Any:
    return judged(
        [f for _, f in rows], [t for t, _ in rows], [(SIDE, SIDE)] * len(rows), 3, kind
    )  # fmt: skip


# --- as pycocotools accumulates -------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 12), st.booleans())
@settings(max_examples=25)
def test_each_image_once_is_pycocotools_to_the_bit(seed: int, images: int, ties: bool) -> None:
    evaluation = evaluated(scene(seed, images, ties=ties))
    matches = Matches.of(evaluation)
    expected = evaluation.eval["precision"][..., -1]  # [T, 101, classes, areas]
    there = set()
    for area, k, precision in matches.precision(np.ones((1, images))):
        assert np.array_equal(precision[0], expected[:, :, k, area])
        there.add((k, area))
    absent = {(k, a) for k in range(3) for a in range(4) if (expected[:, :, k, a] == -1).all()}
    assert there == {(k, a) for k in range(3) for a in range(4)} - absent


@given(st.integers(0, 10_000), st.integers(1, 8), st.data())
@settings(max_examples=25)
def test_counts_are_copies_of_images(seed: int, images: int, data: st.DataObject) -> None:
    rows = scene(seed, images)
    counts = data.draw(st.lists(st.integers(0, 3), min_size=images, max_size=images))
    matches = Matches.of(evaluated(rows))
    copies = [row for row, n in zip(rows, counts, strict=True) for _ in range(n)]
    both = np.array([counts, [1] * images], float)  # a row does not depend on the others
    expected = (
        evaluated(copies).eval["precision"][..., -1] if copies else np.full((10, 101, 3, 4), -1)
    )
    for area, k, precision in matches.precision(both):
        wanted = expected[:, :, k, area]
        if (wanted == -1).all():
            assert np.isnan(precision[0]).all()
        else:
            assert np.array_equal(precision[0], wanted)


def test_the_twelve_figures_are_those_that_pycocotools_prints() -> None:
    """Of a crowded scene, so that one detection, ten and a hundred of a class differ."""
    parts = scene(5, 40, 0.9)
    rows = [_together(parts[low : low + 5]) for low in range(0, 40, 5)]
    evaluation = evaluated(rows)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    got = judge(rows)
    found = [got.ap, got.ap50, got.ap75, *got.by_size.values()]
    found += [got.ar_1, got.ar_10, got.ar, *got.ar_by_size.values()]
    assert found == pytest.approx(evaluation.stats.tolist(), abs=1e-12)
    assert got.ar_1 < got.ar_10 < got.ar


def _together(rows: Scene) -> tuple[Objects, Detections]:
    """Several scenes in one image."""
    truths, founds = zip(*rows, strict=True)
    labels = np.concatenate([t.labels for t in truths])
    truth = Objects(
        np.concatenate([t.boxes for t in truths]), labels,
        np.concatenate([t.crowd for t in truths]), np.concatenate([t.areas for t in truths]),
        np.arange(len(labels)), (None,) * len(labels)
    )  # fmt: skip
    scores = np.concatenate([f.scores for f in founds])
    order = np.argsort(-scores, kind="stable")
    boxes, labels = (np.concatenate([getattr(f, k) for f in founds]) for k in ("boxes", "labels"))
    return truth, Detections(boxes[order], labels[order], scores[order])


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_figures_are_those_of_scoring_the_images_that_were_drawn(kind: str) -> None:
    rows = scene(3, 9)
    rows = with_masks(rows) if kind == "mask" else rows
    matches = judge(rows, kind).matches
    rng = np.random.default_rng(0)
    counts = np.stack([np.bincount(rng.integers(0, 9, 9), minlength=9) for _ in range(6)])
    scores = matches(counts.astype(float))
    found, classes = figures(scores), by_class(scores)
    for r, row in enumerate(counts):
        scored = judge([one for one, n in zip(rows, row, strict=True) for _ in range(n)], kind)
        wanted = {"ap": scored.ap, "ap50": scored.ap50, "ap75": scored.ap75}
        wanted |= {f"ap_{size}": value for size, value in scored.by_size.items()}
        wanted |= {"ar": scored.ar, "ar_1": scored.ar_1, "ar_10": scored.ar_10}
        wanted |= {f"ar_{size}": value for size, value in scored.ar_by_size.items()}
        assert len(found) == 12
        for name, values in found.items():
            assert values[r] == pytest.approx(wanted.get(name, np.nan), abs=1e-6, nan_ok=True), name
        for k in range(3):
            ap = scored.by_class.get(k, (np.nan,))[0]
            assert classes[r, k] == pytest.approx(ap, abs=1e-6, nan_ok=True)


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    matches = Matches.of(evaluated(scene(1, 7)))
    whole = scores_of({"": matches})[""]
    assert whole.shape == (250, 4, 3, 13)
    monkeypatch.setattr("skipway.accumulation._AT_ONCE", 512)
    assert np.array_equal(whole, scores_of({"": matches})[""], equal_nan=True)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_objects_by_size_and_scores_by_recall(kind: Any) -> None:
    """Objects counted by hand, scores as pycocotools has them."""
    rows = with_masks(scene(4, 30))
    truth = rows[0][0]
    edge = replace(truth, areas=np.full(len(truth), 32**2, np.float32))  # small, and medium too
    rows[0] = edge, rows[0][1]
    found, theirs = judge(rows, kind), evaluated(rows).eval["scores"]
    areas = np.concatenate([t.areas[~t.crowd] for t, _ in rows])
    assert (edge.areas[~edge.crowd] == 1024).any()
    assert found.objects == {
        "small": int((areas <= 32**2).sum()),
        "medium": int(((areas >= 32**2) & (areas <= 96**2)).sum()),
        "large": int((areas >= 96**2).sum()),
    }
    assert [*found.objects] == [*found.by_size]
    assert found.scores.keys() == found.curves.keys() == {0, 1}
    for k, scores in found.scores.items():
        if kind == "box":  # masks of whole pixels match a little otherwise
            assert np.array_equal(scores, theirs[0, :, k, 0, -1])
        assert ((scores > 0) == (found.curves[k] > 0)).all()
        assert (np.diff(scores) <= 0).all()
    small = [(t.take(t.areas <= 32**2), f) for t, f in rows]
    assert [*judge(small, kind).objects] == ["small", "medium"]


def test_scores_by_recall_by_hand() -> None:
    """Four objects; the finds of 0.9 and 0.6 are right, that of 0.7 is not."""
    boxes = np.array([[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9], [60, 0, 69, 9]], np.float32)
    crowd, areas, n = np.zeros(4, bool), np.full(4, 81, np.float32), np.arange(4)
    truth = Objects(boxes, np.zeros(4, int), crowd, areas, n, (None,) * 4)
    scores = np.array([0.9, 0.7, 0.6], np.float32)
    guessed = Detections(boxes[[0, 3, 1]] + [[0], [30], [0]], np.zeros(3, int), scores)
    found = judge([(truth, guessed)])
    assert found.objects == {"small": 4}
    wanted = [0.9] * 26 + [0.6] * 25 + [0.0] * 50  # recall up to 0.25, and up to 0.5
    assert found.scores[0] == pytest.approx(np.array(wanted), abs=1e-6)
    assert found.curves[0] == pytest.approx(np.array([1] * 26 + [2 / 3] * 25 + [0] * 50))


# --- intervals ------------------------------------------------------------------------------------


def evaluator(rows: Scene, kinds: tuple[Any, ...] = ("box",), only: Any = None) -> Any:
    made = DetectionEvaluator(3, kinds)
    for i, (truth, found) in enumerate(rows):
        if only is None or i in only:
            made.add(i, found, truth, (SIDE, SIDE))
    return made


@pytest.mark.parametrize("kinds", [("box",), ("mask", "box")])
def test_every_metric_has_its_interval(kinds: tuple[Any, ...]) -> None:
    rows = scene(0, 30)
    made = evaluator(with_masks(rows) if len(kinds) > 1 else rows, kinds)
    metrics, ends = made.metrics(), made.intervals
    assert list(ends) == list(metrics)
    for name, value in metrics.items():
        low, high = ends[name]
        assert 0 <= low <= value <= high <= 1
        assert high - low > 0.01
        if name.endswith("_large"):  # in six images: an interval that holds for so few
            assert 0.5 < high - low < 0.8
        else:
            assert high - low < 0.5
    first = "ap" if len(kinds) == 1 else "mask_ap"
    assert made.interval() == ends[first]
    assert evaluator(with_masks(rows), kinds).intervals == ends  # the same again
    for row in made.per_class(CLASSES):
        for name in ["ap"] + ["mask_ap"] * (len(kinds) > 1):
            low, high = row[f"{name}_interval"]
            assert low < row[name] < high
    for i, (truth, found) in enumerate(with_masks(scene(5, 90)), 30):
        made.add(i, found, truth, (SIDE, SIDE))
    narrower = made.intervals[first]  # and what was known is forgotten
    assert narrower[1] - narrower[0] < 0.8 * (ends[first][1] - ends[first][0])


def test_where_nothing_can_be_told() -> None:
    none = scene(0, 1)[0][0].take(np.zeros(0, int))
    found = [(none, detections) for _, detections in scene(0, 4)]
    made = evaluator(found)
    assert made.interval() is None
    assert set(made.intervals.values()) == {None}
    assert made.per_class(CLASSES) == []
    perfect = [
        (truth, Detections(truth.boxes, truth.labels, np.ones(len(truth), np.float32)))
        for truth, _ in scene(2, 12)
    ]
    assert evaluator(perfect).metrics()["ap"] == pytest.approx(1)
    assert evaluator(perfect).interval() is None  # twelve images do not make it certain
    assert evaluator(perfect).against(evaluator(perfect)).intervals["ap"] is None
    values = np.array([0.2, np.nan, 0.4, np.nan, np.nan])
    assert interval(values, 100, 0.3) is None
    others = percentiles(np.array([0.2, 0.4, 0.3, 0.3]), 100)
    assert interval(np.append(values, [0.3, 0.3]), 100, 0.3) == pytest.approx(others)
    assert interval(np.array([0.0, 0.02]), 100, 0.0)[0] == 0  # type: ignore[index]


def with_small_ones_in(images: int, noise: int) -> Scene:
    """40 images, in no more than so many of them objects of 32 by 32 pixels or less."""
    rows, left = [], images
    for truth, found in scene(0, 40, noise=noise):
        small = truth.areas <= 32**2
        left -= (keeps := left > 0 and bool((small & ~truth.crowd).any()))
        rows.append((truth if keeps else truth.take(~small), found))
    assert left == 0
    return rows


@pytest.mark.parametrize("few", [1, 4, 5, 9])
def test_a_size_that_few_images_have_has_no_interval(few: int) -> None:
    first, second = (evaluator(with_small_ones_in(few, noise)) for noise in (1, 2))
    found = first.against(second)
    assert set(found.intervals) == set(first.intervals)
    for ends in (first.intervals, found.intervals):
        unknown = {name for name, interval in ends.items() if interval is None}
        assert unknown == ({"ap_small", "ar_small"} if few < 5 else set())
    counted = first.judgements["box"].matches.holding()
    assert counted[1] == few
    for a, (low, high) in enumerate([(0, 1e9), (0, 32**2), (32**2, 96**2), (96**2, 1e9)]):
        truths = [t for t, _ in with_small_ones_in(few, 1)]
        there = [((t.areas >= low) & (t.areas <= high) & ~t.crowd).any() for t in truths]
        assert counted[a] == sum(there)


def test_what_chance_raises_is_taken_off() -> None:
    """On few images a resample's average precision is higher than the sample's on average."""
    matches = judge(scene(0, 25)).matches
    value = float(figures(matches(np.ones((1, 25))))["ap"][0])
    values = figures(scores_of({"": matches})[""])["ap"]
    assert values.mean() > value + 0.003
    low, high = interval(values, 25, value)  # type: ignore[misc]
    assert (low + high) / 2 == pytest.approx(
        sum(percentiles(values, 25)) / 2 - (values.mean() - value), abs=1e-6
    )


# --- two detectors --------------------------------------------------------------------------------


def test_two_detectors_on_the_same_images() -> None:
    first, second = evaluator(scene(0, 40, 0.5, noise=1)), evaluator(scene(0, 40, 0.9, noise=2))
    found = first.against(second)
    assert found.n == 40
    assert (found.first, found.second) == (first.metrics(), second.metrics())
    for name, difference in found.differences.items():
        assert difference == second.metrics()[name] - first.metrics()[name]
        low, high = found.intervals[name]
        assert low < difference < high
    assert found.clear("ap50")
    paired = found.intervals["ap50"]
    alone = first.intervals["ap50"], second.intervals["ap50"]
    widths = [high - low for low, high in (paired, *alone)]
    assert widths[0] < widths[1] + widths[2]
    back = second.against(first)
    for name, (low, high) in back.intervals.items():
        assert (-high, -low) == pytest.approx(found.intervals[name], abs=1e-6)


def test_a_detector_against_itself_and_a_twin() -> None:
    made = evaluator(scene(0, 20))
    same = made.against(evaluator(scene(0, 20)))
    assert set(same.differences.values()) == {0}
    # Large objects are in four images alone: too few to say how far the difference may be from 0.
    unknown = {name for name, interval in same.intervals.items() if interval is None}
    assert unknown == {"ap_large", "ar_large"}
    assert set(same.intervals.values()) == {(0, 0), None}
    assert set(same.p.values()) == {1}
    assert not any(map(same.clear, same.first))
    pairs = [
        evaluator(scene(s, 15, noise=100 + s)).against(evaluator(scene(s, 15, noise=200 + s)))
        for s in range(4)
    ]
    assert sum(pair.clear("ap50") for pair in pairs) <= 1


def test_images_that_one_could_not_read_are_left_out() -> None:
    rows = scene(0, 20)
    made = evaluator(rows, only=range(15)).against(evaluator(rows, only=range(5, 20)))
    assert made.n == 10
    part = evaluator(rows, only=range(5, 15))
    assert made.first == made.second == part.metrics()
    with pytest.raises(InputError, match="no image was read by both"):
        evaluator(rows, only=[1]).against(evaluator(rows, only=[2]))


def test_swaps_are_those_of_scoring_what_was_swapped() -> None:
    """The p of the permutation test, from pycocotools on each swapped pair of models."""
    rows = [scene(0, 9, 0.5, noise=1), scene(0, 9, 0.8, noise=2)]
    first, second = (judge(one) for one in rows)
    swaps = np.random.default_rng(0).random((5, 9)) < 0.5
    swaps[0] = False
    both = first.matches.beside(second.matches)

    def after(swaps: np.ndarray) -> list[dict[str, np.ndarray]]:
        kept = np.concatenate([~swaps, swaps], axis=1).astype(float)
        return [figures(both(counts)) for counts in (kept, 1 - kept)]

    found = after(swaps)
    for r, swap in enumerate(swaps):
        for n in range(2):
            mixed = [rows[n ^ int(s)][i] for i, s in enumerate(swap)]
            scored = judge(mixed)
            for name in ("ap", "ap50", "ap75", "ar", "ar_1", "ar_10"):
                assert found[n][name][r] == pytest.approx(getattr(scored, name), abs=1e-6)
    made = evaluator(rows[0]).against(evaluator(rows[1]))
    chance = after(random_swaps(9, np.arange(250)))
    fall = np.abs(chance[1]["ap50"] - chance[0]["ap50"])
    at_least = int((fall >= abs(made.differences["ap50"]) - 1e-6).sum())
    assert made.p["ap50"] == (1 + at_least) / 251
    assert made.clear("ap50") == (made.p["ap50"] < 0.05)


def test_labels_in_another_order_are_the_same_classes() -> None:
    rows = scene(0, 15)
    turned = [(replace(t, labels=2 - t.labels), replace(f, labels=2 - f.labels)) for t, f in rows]
    made = evaluator(turned).relabelled([2, 1, 0])
    assert made.per_class(CLASSES) == evaluator(rows).per_class(CLASSES)
    assert set(evaluator(rows).against(made).p.values()) == {1}


def test_boxes_alone_are_compared_where_one_has_no_masks() -> None:
    rows = with_masks(scene(0, 12))
    found = evaluator(rows, ("mask", "box")).against(evaluator(rows))
    assert found.first == found.second == evaluator(rows).metrics()


# --- the command and the page ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO: bright squares and dark ones on grey."""
    place, rng = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for split, n in (("train", 2), ("val", 24)):
        (place / split).mkdir()
        annotations = []
        for i in range(n):
            pixels = np.full((64, 64, 3), 128, np.uint8)
            for x, y in (rng.integers(0, 8, 2), rng.integers(34, 40, 2))[: 1 + i % 2]:
                side, kind = int(rng.integers(8, 22)), int(rng.integers(0, 2))
                pixels[y : y + side, x : x + side] = 255 * kind
                annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": kind,
                                    "bbox": [int(x), int(y), side, side], "iscrowd": 0,
                                    "area": side * side})  # fmt: skip
            Image.fromarray(pixels).save(place / split / f"{i}.png")
        held = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64}
                       for i in range(n)],
            "annotations": annotations,
            "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES[:2])],
        }  # fmt: skip
        (place / f"{split}.json").write_text(json.dumps(held))
    return place


def by_eye(noise: float, classes: tuple[str, ...] = CLASSES[:2], seed: int = 0) -> Locator:
    """Finds squares by their grey, some pixels off, and more of them the noisier it is."""
    rng = np.random.default_rng(seed)
    card = Card(
        task="detect",
        model="custom",
        architecture=architecture("resnet18", num_classes=len(classes)),
        classes=classes,
        detector=DetectorConfig(),
        preprocess=Preprocess(size=(64, 64), resize="fit", mean=(0.5,) * 3, std=(0.25,) * 3),
    )

    def run(inputs: Any) -> list[dict[str, Any]]:
        outputs = []
        for x in inputs:
            rows = []
            for k, name in enumerate(classes):
                mask = x[0] > 1 if name == "bright" else x[0] < -1
                places = ndimage.find_objects(ndimage.label(mask)[0])
                rows += [([s[1].start, s[0].start, s[1].stop, s[0].stop], k) for s in places]
                rows += [([2, 2, 30, 30], k)] * (rng.random() < noise / 8)
            boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
            boxes[:, 2:] += rng.uniform(0, noise, (len(rows), 2))
            outputs.append(
                {
                    "boxes": torch.from_numpy(boxes),
                    "labels": torch.tensor([k for _, k in rows]),
                    "scores": torch.sort(torch.from_numpy(rng.random(len(rows))), descending=True)[
                        0
                    ],
                }
            )
        return outputs

    return Locator(run, card, "by-eye")


@pytest.fixture
def locators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that are called by what they are."""

    def load(name: str, *_: Any) -> Locator:
        if name == "renamed":
            return by_eye(1, ("bright", "dark"))
        if name == "others":
            return by_eye(1, ("bright", "light"))
        if not name.startswith("eye-"):
            raise InputError(f"{name}: there is none")
        return by_eye(float(name.removeprefix("eye-")))

    monkeypatch.setattr("skipway.locator.load_locator", load)
    monkeypatch.setattr("skipway.predictor.task_of", lambda _: "detect")


@pytest.mark.usefixtures("locators")
def test_eval_tells_intervals(squares: Path) -> None:
    told = call("eval", "eye-4", squares, "--json", "--threads=1")
    assert told.code == 0, told.err
    found = told.value
    assert (found["n"], found["split"], found["resamples"]) == (24, "val", 250)
    assert list(found["intervals"]) == list(found["metrics"])
    for name, value in found["metrics"].items():
        low, high = found["intervals"][name]
        assert low <= value <= high
    assert 0 < found["intervals"]["ap"][0] < found["intervals"]["ap"][1] < 1
    lines = call("eval", "eye-4", squares, "--threads=1").out.splitlines()
    low, high = (f"{end:.2%}" for end in found["intervals"]["ap50"])
    ap50 = f"{found['metrics']['ap50']:.2%}"
    assert f"AP50 {ap50}  (95 % interval {low} to {high})" in lines
    assert any(line.startswith("AP of small objects ") for line in lines)
    (row,) = [row for row in found["per_class"] if row["label"] == "dark"]
    low, high = (f"{end:.2%}" for end in row["ap_interval"])
    assert any(
        line.startswith(f"  dark: AP {row['ap']:.2%}  (95 % interval {low} to {high})  AP50 ")
        for line in lines
    )


def one_json(place: Path, squares: Path) -> Path:
    """The 24 images in one json, without a split."""
    place.mkdir()
    for image in (squares / "val").iterdir():
        shutil.copy(image, place / image.name)
    shutil.copy(squares / "val.json", place / "instances_val2017.json")
    return place / "instances_val2017.json"


def test_eval_of_a_detector_where_there_are_no_splits(
    tmp_path: Path, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images, but what was held out of them for a run that was trained on them."""
    file = one_json(tmp_path / "data", squares)
    fields: dict[str, Any] = {}

    def load(*_: Any) -> Locator:
        found = by_eye(4)
        found.card = found.card.model_copy(update=fields)
        return found

    monkeypatch.setattr("skipway.locator.load_locator", load)
    monkeypatch.setattr("skipway.predictor.task_of", lambda _: "detect")

    def scored(*flags: str) -> tuple[str, int, str]:
        told = call("eval", "eye", file, *flags, "--json", "--threads=1")
        assert told.code == 0, told.err
        return told.value["split"], told.value["n"], told.err

    assert scored()[:2] == ("all", 24)
    assert scored("--split=all")[:2] == ("all", 24)
    lines = call("eval", "eye", file, "--threads=1").out.splitlines()
    assert lines[0] == f"eye on {file}, all: 24 images"
    assert scored("--against=other")[:2] == ("all", 24)
    fields["recipe"] = {"seed": 3, "data_path": str(file)}
    made = open_objects(str(file), seed=3)
    for name, split in made.splits.items():
        assert scored(f"--split={name}")[:2] == (name, len(split))
        against = call("eval", "eye", file, f"--split={name}", "--against=b", "--json").value
        assert (against["n"], against["against"]["n"]) == (len(split), len(split))
    refused = call("eval", "eye", file, "--split=some")
    assert (refused.code, "has all, train, val, test" in refused.error[0]) == (2, True)

    fields["provenance"] = {"data": made.digest()}
    name, n, err = scored()
    assert (name, n) == ("test", len(made.splits["test"]))
    assert "became test" in err
    assert scored("--split=all")[:2] == ("all", 24)
    fields["recipe"] |= {"seed": 4}
    name, n, err = scored()
    assert (name, n) == ("all", 24)
    assert "note: the images are not those of training; where there are no splits" in err
    fields["recipe"] = {"data": {"val": "none"}}
    fields["provenance"] = {"data": open_objects(str(file), val="none").digest()}
    name, n, err = scored()
    assert (name, n) == ("all", 24)
    assert "note: nothing was held out; these images were trained on" in err


@pytest.mark.parametrize(
    ("counts", "given", "beyond"),
    [
        ([(100, 0), (40, 50)], 100, (0, 0, 0)),
        ([(130, 0), (3, 1)], 300, (30, 1, 0)),
        ([(130, 0), (60, 60)], 100, (50, 1, 2)),
        ([(130, 20)], None, (30, 1, 0)),
    ],
)
def test_more_objects_than_detections_that_count(
    counts: list[tuple[int, int]], given: int | None, beyond: tuple[int, int, int]
) -> None:
    """A detector that finds all that it may reaches no higher recall."""
    made, total = DetectionEvaluator(2, ("box",), given), 0
    for i, of in enumerate(counts):
        labels = np.repeat([0, 1], of)
        n, total = len(labels), total + len(labels)
        corners = np.stack([20.0 * (np.arange(n) % 20), 20.0 * (np.arange(n) // 20)], axis=1)
        boxes = np.concatenate([corners, corners + 10], axis=1).astype(np.float32)
        truth = Objects(boxes, labels, np.zeros(n, bool), np.full(n, 100.0), np.arange(n),
                        (None,) * n)  # fmt: skip
        most = np.arange(n if given is None else min(n, given))
        found = Detections(boxes[most], labels[most], np.ones(len(most), np.float32))
        made.add(i, found, truth, (400, 400))
    told = made.out_of_reach()
    assert (told.objects, told.of_a_class, told.in_all) == beyond
    assert bool(told.in_words()) == bool(told.objects)
    rows = made.per_class(["a", "b"])
    assert sum(row["n"] * row["recall"] for row in rows) == pytest.approx(total - told.objects)


@pytest.mark.usefixtures("locators")
def test_eval_says_that_objects_are_out_of_reach(
    squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "out of reach" not in call("eval", "eye-1", squares, "--threads=1").err
    monkeypatch.setattr("skipway.detections.DETECTIONS", (1, 10, 1))
    told = call("eval", "eye-1", squares, "--threads=1").err
    assert "objects are out of reach: of a class COCO's measure counts 1 detections" in told


def test_eval_says_which_detector_was_trained_on_the_images(
    tmp_path: Path, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each model's own split of the data counts; train and val may have files of one name."""
    file = str(one_json(tmp_path / "data", squares))
    made = {seed: open_objects(file, seed=seed) for seed in (3, 4)}
    digests = {f"seed-{seed}": made[seed].digest() for seed in made}
    digests |= {"other": "0" * 64, "squares": open_objects(str(squares)).digest()}

    def load(name: str, *_: Any) -> Locator:
        found = by_eye(4)
        seed = int(name[-1]) if name.startswith("seed-") else 0
        fields = {"recipe": {"seed": seed}, "provenance": {"data": digests[name]}}
        found.card = found.card.model_copy(update=fields)
        return found

    monkeypatch.setattr("skipway.locator.load_locator", load)
    monkeypatch.setattr("skipway.predictor.task_of", lambda _: "detect")

    def notes(data: str | Path, *flags: str) -> list[str]:
        told = call("eval", *flags[:1], data, *flags[1:], "--json", "--threads=1")
        assert told.code == 0, told.err
        assert {f"note: {note}" for note in told.value["notes"]} == {*told.err.splitlines()}
        return [line for line in told.err.splitlines() if "was trained on" in line]

    def trained_on(name: str, n: int) -> str:
        return f"note: {name} was trained on {n} of these images"

    names = {
        seed: {s: {*split.names} for s, split in of.splits.items()} for seed, of in made.items()
    }
    both = len(names[4]["train"] & names[3]["test"])
    assert both
    assert notes(file, "seed-3", "--against=seed-4") == [trained_on("seed-4", both)]
    n = len(names[3]["train"])
    assert notes(file, "seed-3", "--split=all", "--against=other") == [trained_on("seed-3", n)]
    assert notes(squares, "other", "--against=squares") == []
    told = notes(squares, "other", "--split=train", "--against=squares")
    assert told == [trained_on("squares", 2)]


@pytest.mark.usefixtures("locators")
def test_eval_against_another_detector(squares: Path) -> None:
    one = call("eval", "eye-8", squares, "--json", "--threads=1").value
    two = call("eval", "eye-1", squares, "--json", "--threads=1").value
    found = call("eval", "eye-8", squares, "--against=eye-1", "--json", "--threads=1").value
    told = found.pop("against")
    assert found == one
    assert (told["model"], told["n"], told["metrics"]) == ("eye-1", 24, two["metrics"])
    for name, value in told["differences"].items():
        assert value == pytest.approx(two["metrics"][name] - one["metrics"][name])
        low, high = told["intervals"][name]
        assert low <= value <= high
    assert told["clear"]["ap"] is True
    lines = call("eval", "eye-8", squares, "--against=eye-1", "--threads=1").out.splitlines()
    low, high = (f"{100 * end:+.2f}" for end in told["intervals"]["ap"])
    points = f"{100 * told['differences']['ap']:+.2f}"
    assert (
        f"  AP {two['metrics']['ap']:.2%}, B minus A {points} points ({low} to {high})"
        in "\n".join(lines)
    )
    assert lines[-1].startswith("B is better: AP differs by ")
    assert lines[-1].endswith(f", p = {told['p']['ap']:.2g}.")
    lines = call("eval", "eye-1", squares, "--against=renamed", "--threads=1").out.splitlines()
    assert re.fullmatch(r"Not told apart: AP differs by \d+\.\d\d points, p = \S+\.", lines[-1])


@pytest.mark.usefixtures("locators")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--against=others"], "--against others: its classes are not those of MODEL"),
        (["--against=absent"], "--against: absent: there is none"),
        (["--calibrate"], "finds objects; --calibrate, "),
        (["--slices=absent.csv:light"], "finds objects; --calibrate, "),
        (["--against=eye-1", "--views=flip"], "finds objects; --calibrate, "),
    ],
)
def test_what_is_refused(squares: Path, flags: list[str], words: str) -> None:
    """Before a file that a flag names is opened."""
    told = call("eval", "eye-1", squares, *flags, "--threads=1")
    assert (told.code, told.out) == (2, "")
    assert words in told.error[0]


@pytest.mark.parametrize("task", ["detect", "instance"])
def test_the_report_shows_intervals(tmp_path: Path, task: str) -> None:
    before = "mask_" if task == "instance" else ""
    made = task_record(task)
    made["result"]["interval"] = [0.4711, 0.5522]
    shown = task_evaluation(task, 1)
    shown["intervals"] = {f"{before}ap50": [0.7912, 0.8711], f"{before}ap_small": [0.1, 0.32]}
    for row in shown["per_class"]:
        row[f"{before}ap_interval"] = [row["ap"] - 0.1, row["ap"] + 0.05]
    page = read(make_run(tmp_path / "a", made, evaluated=shown))
    for text in (
        "95 % interval: 47.1 % to 55.2 %",
        "At IoU 0.5\n83.5 % (79.1 to 87.1 %)",
        "At IoU 0.75\n55.6 %\n",
        "small, up to 32 × 32 px\n21.0 % (10.0 to 32.0 %)\n60",
        "% (58.0 to 73.0 %)",
        "In brackets: 95 % intervals, by a bootstrap over images.",
    ):
        assert text in page.text
    for odd in (None, [0.1], "x", [0.1, None], {"a": 1}):
        shown["intervals"] = {"ap50": odd} if odd else odd
        for row in shown["per_class"]:
            row[f"{before}ap_interval"] = odd
        page = read(make_run(tmp_path / f"odd-{odd!r:.5}", made, evaluated=shown))
        assert "In brackets" not in page.text
        assert "(" not in page.text.split("By size")[1].split("The data")[0]
