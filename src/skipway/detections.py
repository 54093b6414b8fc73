"""Objects that were found in images, and how good they are: COCO's figures. NumPy only;
pycocotools, which is the reference, does the matching."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skipway.accumulation import DETECTIONS, Matches
from skipway.data.objects import Objects
from skipway.data.objects.shapes import Runs
from skipway.errors import missing_part

Array = npt.NDArray[Any]

SIZES = ("small", "medium", "large")
"""Up to 32 by 32 pixels, up to 96 by 96, and above (1405.0312, section 5)."""
Kind = Literal["box", "mask"]


@dataclass(frozen=True)
class Detections:
    """The n objects that a model finds in an image, in its original pixels, the most certain
    first."""

    boxes: Array
    """float32 [n, 4]: x1, y1, x2, y2."""
    labels: Array
    """int64 [n]: positions in the classes."""
    scores: Array
    """float32 [n], 0 to 1."""
    masks: tuple[Runs, ...] | None = None
    """Of instance segmentation."""

    def __len__(self) -> int:
        return len(self.labels)


def runs_of(mask: Array) -> Runs:
    """A mask bool [H, W] as run lengths down its columns."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [len(flat)]]))
    if flat[0]:
        counts = np.concatenate([[0], counts])
    return Runs(counts.astype(np.int64), (mask.shape[0], mask.shape[1]))


def pixels_of(runs: Runs) -> Array:
    """The mask that `runs_of` was given: bool [H, W]."""
    turns = np.arange(len(runs.counts)) % 2 == 1
    return np.repeat(turns, runs.counts).reshape(runs.size[::-1]).T


@dataclass(frozen=True)
class Matched:
    """How detections and objects of an image go together, at a score and an IoU of 0.5 at least."""

    right: Array
    """Positions of detections that are an object of their class: int64 [r]."""
    extra: Array
    """Positions of the other detections, crowds' left out."""
    missed: Array
    """Positions of the objects that are left over, no crowd among them."""


def matched(found: Detections, truth: Objects, least: float = 0.5) -> Matched:
    """The most certain detections choose first, each the object that it covers best."""
    right: list[int] = []
    extra: list[int] = []
    left = np.ones(len(truth), bool)
    for i in np.flatnonzero(found.scores >= least).tolist():
        overlap = _overlaps(found.boxes[i], truth.boxes, truth.crowd)
        overlap = np.where(truth.labels == found.labels[i], overlap, 0.0)
        free = np.where(left & ~truth.crowd, overlap, 0.0)
        best = int(free.argmax()) if len(free) else 0
        if len(free) and free[best] >= 0.5:
            left[best] = False
            right.append(i)
        elif not (overlap[truth.crowd] >= 0.5).any():
            extra.append(i)
    missed = np.flatnonzero(left & ~truth.crowd)
    return Matched(np.array(right, np.int64), np.array(extra, np.int64), missed)


def _overlaps(box: Array, boxes: Array, crowd: Array) -> Array:
    """IoU of a box with each of n; with a crowd, the share of the box that lies in it."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = (high - low).clip(0).prod(axis=1).astype(np.float64)
    own = float((box[2:] - box[:2]).prod())
    others = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    whole = np.where(crowd, own, own + others - common)
    return common / np.maximum(whole, 1e-9)


@dataclass(frozen=True)
class OutOfReach:
    """Objects that cannot be found, as there are more than detections that count."""

    objects: int
    of_a_class: int
    """Images with more objects of a class than COCO's measure counts detections of it there."""
    in_all: int
    """Images with more objects than `given`."""
    given: int | None
    """The most detections that a detector gives of an image, where that is known."""

    @classmethod
    def of(cls, truth: Iterable[Objects], given: int | None) -> OutOfReach:
        """In images with these objects."""
        most, lost, of_a_class, in_all = DETECTIONS[-1], 0, 0, 0
        for objects in truth:
            counts = np.bincount(objects.labels[~objects.crowd])
            n, counted = int(counts.sum()), int(np.minimum(counts, most).sum())
            lost += n - (counted if given is None else min(counted, given))
            of_a_class += bool((counts > most).any())
            in_all += given is not None and n > given
        return cls(lost, of_a_class, in_all, given)

    def in_words(self) -> str:
        """A sentence, empty where every object can be found."""
        parts = []
        if self.of_a_class:
            parts.append(
                f"of a class COCO's measure counts {DETECTIONS[-1]} detections in an image (images "
                f"with more objects of one: {self.of_a_class:,})"
            )
        if self.in_all:
            parts.append(
                f"the detector gives {self.given:,} in all, its detector.detections (images with "
                f"more: {self.in_all:,})"
            )
        said = "; ".join(parts)
        what = "1 object is" if self.objects == 1 else f"{self.objects:,} objects are"
        return f"{what} out of reach: {said}." if self.objects else ""


@dataclass(frozen=True)
class Judged:
    """COCO's figures of one kind, boxes or masks."""

    ap: float
    """The mean over classes, and over IoU 0.5 to 0.95 in steps of 0.05, of average precision."""
    ap50: float
    ap75: float
    by_size: dict[str, float]
    """AP by size of the object, of those sizes that there are."""
    ar: float
    """Average recall: the mean, over classes and the same IoUs, of the largest recall with 100
    detections of an image and class."""
    ar_1: float
    ar_10: float
    """The same with the most certain one, and with ten."""
    ar_by_size: dict[str, float]
    """AR by size of the object, of the same sizes."""
    objects: dict[str, int]
    """Of those sizes, the objects that are judged; one of just 32 by 32 pixels has two sizes."""
    by_class: dict[int, tuple[float, float]]
    """AP and AP50 of each class that has an object."""
    curves: dict[int, Array]
    """Of each such class: precision at IoU 0.5 at recall 0, 0.01, …, 1, [101]."""
    scores: dict[int, Array]
    """Of each such class: the score of the detection with which each of these recalls is reached,
    [101]; 0 where none is."""
    recall: dict[int, float]
    """Of each such class: the largest recall at IoU 0.5."""
    matches: Matches
    """For the same of resampled images."""


def judged(
    found: Sequence[Detections],
    truth: Sequence[Objects],
    sizes: Sequence[tuple[int, int]],
    classes: int,
    kind: Kind,
) -> Judged:
    """COCO's figures over images, given in the same order; sizes: height and width of each.

    Crowds are matched by any number of detections and counted by none. Raises InputError where
    pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise missing_part("scoring detections", "detect", error) from None
    true, guessed = COCO(), COCO()
    images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    categories = [{"id": k} for k in range(classes)]
    annotations = [_row(row, size, kind) for row, size in _true_rows(truth, sizes)]
    detections = [_row(row, size, kind) for row, size in _found_rows(found, sizes)]
    with contextlib.redirect_stdout(io.StringIO()):
        for coco, rows in ((true, annotations), (guessed, detections)):
            rows = [row | {"id": i} for i, row in enumerate(rows, 1)]
            coco.dataset = {"images": images, "categories": categories, "annotations": rows}
            coco.createIndex()
        evaluation = COCOeval(true, guessed, "segm" if kind == "mask" else "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return _judged(evaluation)


def _true_rows(
    truth: Sequence[Objects], sizes: Sequence[tuple[int, int]]
) -> Iterable[tuple[dict[str, Any], tuple[int, int]]]:
    for i, (objects, size) in enumerate(zip(truth, sizes, strict=True)):
        for j in range(len(objects)):
            yield (
                {
                    "image_id": i,
                    "category_id": int(objects.labels[j]),
                    "box": objects.boxes[j],
                    "shape": objects.shapes[j],
                    "iscrowd": int(objects.crowd[j]),
                    "area": float(objects.areas[j]),
                },
                size,
            )


def _found_rows(
    found: Sequence[Detections], sizes: Sequence[tuple[int, int]]
) -> Iterable[tuple[dict[str, Any], tuple[int, int]]]:
    for i, (detections, size) in enumerate(zip(found, sizes, strict=True)):
        for j in range(len(detections)):
            yield (
                {
                    "image_id": i,
                    "category_id": int(detections.labels[j]),
                    "box": detections.boxes[j],
                    "shape": None if detections.masks is None else detections.masks[j],
                    "iscrowd": 0,
                    "score": float(detections.scores[j]),
                },
                size,
            )


def _row(row: dict[str, Any], size: tuple[int, int], kind: Kind) -> dict[str, Any]:
    """As pycocotools wants it: the box as corner and sides, the mask as compressed runs."""
    x1, y1, x2, y2 = np.asarray(row.pop("box"), np.float64).tolist()
    shape = row.pop("shape")
    row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    row.setdefault("area", (x2 - x1) * (y2 - y1))
    if kind == "mask":
        from pycocotools import mask

        if isinstance(shape, Runs):
            counts = {"size": [*size], "counts": shape.counts.tolist()}
            row["segmentation"] = mask.frPyObjects(counts, *size)
            if "score" in row:
                row["area"] = float(shape.counts[1::2].sum())
        else:
            polygons = [polygon.ravel().tolist() for polygon in shape]
            row["segmentation"] = mask.merge(mask.frPyObjects(polygons, *size))
    return row


def _judged(evaluation: Any) -> Judged:
    """From a COCOeval whose figures are accumulated: precision and scores [IoU, recall, class,
    size, detections] and recall [IoU, class, size, detections], -1 where a class has no object."""
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    every = precision[:, :, :, 0, -1]  # all sizes, the most detections
    there = np.flatnonzero(every[0, 0] >= 0)
    mean = every[:, :, there].mean(axis=1)  # [IoU, class]

    def average(values: Array) -> float:
        return float(values.mean()) if values.size else 0.0

    found = recall[:, there, 0].mean(axis=0)  # [class, detections]
    by_size, ar_by_size, objects = {}, {}, {}
    for i, name in enumerate(SIZES, 1):
        of_size = precision[:, :, :, i, -1]
        if (of_size >= 0).any():
            by_size[name] = average(of_size[of_size >= 0])
            most = recall[:, :, i, -1]
            ar_by_size[name] = average(most[most >= 0])
            objects[name] = _objects(evaluation, i)
    return Judged(
        average(mean),
        average(mean[0]),
        average(mean[5]),
        by_size,
        average(found[:, 2]),
        average(found[:, 0]),
        average(found[:, 1]),
        ar_by_size,
        objects,
        {int(k): (float(mean[:, j].mean()), float(mean[0, j])) for j, k in enumerate(there)},
        {int(k): every[0, :, k] for k in there},
        {int(k): evaluation.eval["scores"][0, :, k, 0, -1] for k in there},
        {int(k): float(recall[0, k, 0, -1]) for k in there},
        Matches.of(evaluation),
    )


def _objects(evaluation: Any, size: int) -> int:
    """The objects that count in a range of areas."""
    within = evaluation.params.areaRng[size]
    rows = (row for row in evaluation.evalImgs if row is not None and row["aRng"] == within)
    return sum(int(np.count_nonzero(row["gtIgnore"] == 0)) for row in rows)
