"""COCO's average precision and recall of resampled images, in NumPy: what `COCOeval.accumulate`
gives where each image counts any number of times.

Detections and objects are matched within an image, so that is done once, by pycocotools; a resample
only ranks and counts the matches anew. Images are what is drawn: the objects of one depend on one
another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from skipway.bootstrap import RESAMPLES, Interval, known_percentiles, resampled

Array = npt.NDArray[Any]
Name = TypeVar("Name")

AREAS = ("", "small", "medium", "large")
"""pycocotools' ranges of areas, in its order: all of them, up to 32 by 32 pixels, up to 96 by 96,
and above."""
DETECTIONS = (1, 10, 100)
"""Of an image and class, the most certain detections that count for recall; for precision, the last
of these."""
_AT_ONCE = 1 << 22
"""Weights of detections that are held at a time: 32 MiB."""
_LARGE, _FEWER = 500, 200
"""Images from which on there are so many resamples: the percentiles of an interval that is narrow
need fewer."""


@dataclass(frozen=True)
class _Ranked:
    """The D detections of one class, judged in one range of areas, the most certain first."""

    image: Array
    """Of each, the position of its image: int64 [D]."""
    right: Array
    """Whether it was matched with an object, at each of T IoUs: bool [T, D]."""
    counted: Array
    """Whether it counts; not, where it lies on a crowd or is of another size: bool [T, D]."""
    score: Array
    """float64 [D], falling."""
    before: Array
    """How many of its image and class are more certain: int64 [D]."""
    objects: Array
    """How many there are to be found in each of N images: float64 [N]."""

    def beside(self, other: _Ranked) -> _Ranked:
        """The same with another model's detections in the same images, as images of their own."""
        score = np.concatenate([self.score, other.score])
        order = np.argsort(-score, kind="stable")
        image = np.concatenate([self.image, other.image + len(self.objects)])
        right, counted = (
            np.concatenate(pair, axis=1)[:, order]
            for pair in ((self.right, other.right), (self.counted, other.counted))
        )
        before = np.concatenate([self.before, other.before])[order]
        objects = np.concatenate([self.objects, other.objects])
        return _Ranked(image[order], right, counted, score[order], before, objects)

    def least(self, counts: Array, recalls: Array) -> Array:
        """The fewest right ones with each recall: float64 [R, 101], by the division that
        pycocotools compares."""
        objects = np.maximum(counts @ self.objects, 1)[:, None]
        found: Array = np.floor(recalls * objects)
        found += found / objects < recalls
        return found

    def precision(self, counts: Array, recalls: Array) -> Array:
        """Precision at each recall, the largest at that or a higher one: float64 [R, T, 101]."""
        found = np.zeros((len(counts), len(self.right), len(recalls)))
        least, rows = self.least(counts, recalls), np.arange(len(counts))[:, None]
        weight = counts[:, self.image]
        above = float(counts.sum(axis=1).max()) * self.objects.max() + 1
        for t, (right, counted) in enumerate(zip(self.right, self.counted, strict=True)):
            # Between right ones precision only falls, so theirs are all that is needed.
            at = np.flatnonzero(right[counted])
            if not len(at):
                continue
            seen = weight if counted.all() else weight[:, counted]
            hits = seen[:, at].cumsum(axis=1)
            best = hits / (seen.cumsum(axis=1)[:, at] + np.spacing(1))
            best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
            # Rows one behind the other in one rising sequence, which is searched at once.
            place = np.searchsorted((hits + above * rows).ravel(), (least + above * rows).ravel())
            place = place.reshape(least.shape) - len(at) * rows
            reached = place < len(at)
            found[:, t] = np.where(reached, best[rows, np.minimum(place, len(at) - 1)], 0)
        return found

    def recall(self, counts: Array) -> Array:
        """The mean recall over the IoUs, with 1, 10 and 100 detections: float64 [R, 3]."""
        right = (self.right & self.counted).mean(axis=0)
        hits = np.zeros((len(counts), len(DETECTIONS)))
        for i, most in enumerate(DETECTIONS):
            among = self.before < most
            hits[:, i] = (
                np.bincount(self.image[among], right[among], minlength=len(self.objects)) @ counts.T
            )
        return hits / np.maximum(counts @ self.objects, 1)[:, None]


class Matches:
    """How detections and objects of N images match, by range of areas and class."""

    def __init__(self, ranked: Sequence[Sequence[_Ranked | None]], recalls: Array, images: int):
        self._ranked, self._recalls, self.images = ranked, recalls, images

    @classmethod
    def of(cls, evaluation: Any) -> Matches:
        """Of a COCOeval whose `evaluate` was called."""
        params = evaluation.params
        n, areas = len(params.imgIds), len(params.areaRng)
        rows = iter(evaluation.evalImgs)
        by_class = [
            [_ranked([next(rows) for _ in range(n)]) for _ in range(areas)] for _ in params.catIds
        ]
        by_area = [[row[a] for row in by_class] for a in range(areas)]
        return cls(by_area, np.asarray(params.recThrs), n)

    def beside(self, other: Matches) -> Matches:
        """The same with another model's, as of 2N images (see `bootstrap.swapped`). Both must have
        matched the same images and classes."""
        ranked = [
            [None if a is None or b is None else a.beside(b) for a, b in zip(*rows, strict=True)]
            for rows in zip(self._ranked, other._ranked, strict=True)
        ]
        return Matches(ranked, self._recalls, 2 * self.images)

    def holding(self) -> list[int]:
        """In how many images there is an object to be found, by range of areas."""
        none = np.zeros(self.images)
        return [
            int(np.count_nonzero(sum((r.objects for r in row if r is not None), none)))
            for row in self._ranked
        ]

    def precision(self, counts: Array) -> Iterator[tuple[int, int, Array]]:
        """Ranges of areas and classes, and precision at 101 recalls in each resample, float64 [R,
        T, 101]; NaN in those without such an object. Where there never is one, nothing."""
        for a, row in enumerate(self._ranked):
            for k, ranked in enumerate(row):
                if ranked is None:
                    continue
                step = max(_AT_ONCE // max(len(ranked.image), 1), 1)
                parts = [
                    ranked.precision(counts[low : low + step], self._recalls)
                    for low in range(0, len(counts), step)
                ]
                found = np.concatenate(parts)
                found[counts @ ranked.objects == 0] = np.nan
                yield a, k, found

    def __call__(self, counts: Array) -> Array:
        """In resamples with these counts of the images, float64 [R, N]: float32 [R, areas, classes,
        T + 3], average precision at each IoU, then the mean recall over them with 1, 10 and 100
        detections (`DETECTIONS`); NaN where there is no object. A `bootstrap.Statistic` of many."""
        shape = len(counts), len(self._ranked), len(self._ranked[0])
        thresholds = next((len(r.right) for row in self._ranked for r in row if r), 1)
        found = np.full((*shape, thresholds + len(DETECTIONS)), np.nan, np.float32)
        for a, k, precision in self.precision(counts):
            found[:, a, k, :thresholds] = precision.mean(axis=2)
            there = ~np.isnan(precision[:, 0, 0])
            ranked = self._ranked[a][k]
            assert ranked is not None  # it has a precision
            found[there, a, k, thresholds:] = ranked.recall(counts[there])
        return found


def _ranked(images: Sequence[Any]) -> _Ranked | None:
    """What pycocotools found of one class and range of areas; None where there is no object."""
    there = [(i, row) for i, row in enumerate(images) if row is not None]
    objects = np.zeros(len(images))
    for i, row in there:
        objects[i] = np.count_nonzero(row["gtIgnore"] == 0)
    if not objects.any():
        return None
    scores = np.concatenate([row["dtScores"] for _, row in there])
    order = np.argsort(-scores, kind="stable")
    matched, ignored = (
        np.concatenate([row[key] for _, row in there], axis=1)[:, order].astype(bool)
        for key in ("dtMatches", "dtIgnore")
    )
    found = [len(row["dtScores"]) for _, row in there]
    image = np.repeat([i for i, _ in there], found)[order]
    before = np.concatenate([np.arange(n) for n in found])[order]
    kept = ~ignored.all(axis=0)
    image, before, scores = image[kept], before[kept], scores[order][kept]
    return _Ranked(image, matched[:, kept], ~ignored[:, kept], scores, before, objects)


def resamples_of(images: int) -> int:
    """How many resamples an interval comes from."""
    return _FEWER if images >= _LARGE else RESAMPLES


def scores_of(matches: Mapping[Name, Matches]) -> dict[Name, Array]:
    """`Matches.__call__` on resamples of the images, which are the same for all: float32
    [resamples, areas, classes, T + 3]."""
    images = next(iter(matches.values())).images
    return resampled(matches, images, resamples_of(images))


def figures(scores: Array) -> dict[str, Array]:
    """COCO's twelve figures in each resample, [R], from [R, areas, classes, T + 3]: ap, ap50, ap75,
    ap_small, ap_medium, ap_large, and ar, ar_1, ar_10, ar_small, ar_medium, ar_large; NaN where
    there is no such object."""
    precision, recall = scores[..., : -len(DETECTIONS)], scores[..., -len(DETECTIONS) :]
    every, found = precision[:, 0], recall[:, 0]
    parts = {"ap": every, "ap50": every[..., :1], "ap75": every[..., 5:6]}
    parts |= {f"ap_{AREAS[a]}": precision[:, a] for a in range(1, len(AREAS))}
    parts |= {"ar": found[..., 2], "ar_1": found[..., 0], "ar_10": found[..., 1]}
    parts |= {f"ar_{AREAS[a]}": recall[:, a, :, 2] for a in range(1, len(AREAS))}
    return {name: _mean(part) for name, part in parts.items()}


def holding(matches: Matches) -> dict[str, int]:
    """Of each of `figures`, in how many images there is an object that it is of."""
    of_all, *by_size = matches.holding()
    sizes = dict(zip(AREAS[1:], by_size, strict=True))
    return dict.fromkeys(("ap", "ap50", "ap75", "ar", "ar_1", "ar_10"), of_all) | {
        f"{figure}_{size}": n for figure in ("ap", "ar") for size, n in sizes.items()
    }


def by_class(scores: Array) -> Array:
    """AP of each class in each resample, [R, classes], from the same."""
    found: Array = scores[:, 0, :, : -len(DETECTIONS)].mean(axis=2, dtype=np.float64)
    return found


def _mean(values: Array) -> Array:
    """Over all but the first axis, of what is a number; NaN where nothing is."""
    flat = values.reshape(len(values), -1)
    there = np.isfinite(flat)
    n = there.sum(axis=1)
    total = np.where(there, flat, 0).sum(axis=1, dtype=np.float64)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def interval(values: Array, n: int, figure: float, holding: int | None = None) -> Interval | None:
    """The 95 % interval of a figure from its resamples [R] of n images; `holding` of them have such
    objects, and resamples that have none are left out (`bootstrap.known_percentiles`).

    Precision at a recall is the largest at that or a higher one, so chance alone raises it, in a
    resample once more: see `bootstrap.percentiles`. Average recall has hardly any such excess, and
    is hardly moved.
    """
    ends = known_percentiles(values, n, figure, holding)
    return None if ends is None else (max(ends[0], 0.0), min(ends[1], 1.0))
