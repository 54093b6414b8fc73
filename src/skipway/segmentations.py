"""Class maps, and how good they are: IoU, accuracy, boundaries, and how sure that is. NumPy only.

A map is uint8 [H, W]: positions in the classes, and `IGNORED` where nothing is judged. Everything
is counted by image, in matrices that add up, so that a metric of many images, or of a resample of
them, is one product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.bootstrap import (
    ComparedFigures,
    Interval,
    Statistic,
    known_percentiles,
    resampled,
    swapped,
)

Array = npt.NDArray[Any]

IGNORED = 255
"""What a map says where nothing is judged; classes are therefore 255 at most."""
TOLERANCE = 0.0075
"""Share of an image's diagonal that a boundary is off by less than (Csurka et al. 2013)."""


def confusion(found: Array, truth: Array, classes: int) -> Array:
    """Pixels by true class (rows) and found class (columns): int64 [K, K].

    found, truth: maps [H, W]; where the truth is IGNORED nothing counts. Raises ValueError where
    they are not of one shape, or name a class that there is not.
    """
    found = _judged(found, truth, classes)
    both = (truth.astype(np.uint16) << 8) | found
    counts = np.bincount(both.ravel(), minlength=1 << 16).reshape(256, 256)
    return counts[:classes, :classes].astype(np.int64)


def _judged(found: Array, truth: Array, classes: int) -> Array:
    """What was found, IGNORED where the truth is. Raises ValueError, see `confusion`."""
    if found.dtype != np.uint8 or truth.dtype != np.uint8 or found.shape != truth.shape:
        raise ValueError(
            f"maps of {found.dtype} {found.shape} and {truth.dtype} {truth.shape}, "
            "not both uint8 and of one shape"
        )
    ignored = truth == IGNORED
    for name, labels in (("found", found), ("truth", truth)):
        if (unknown := (labels >= classes) & ~ignored).any():
            raise ValueError(f"{name}: holds {labels[unknown].max()}, of {classes} classes")
    kept: Array = np.where(ignored, np.uint8(IGNORED), found)
    return kept


# Of a confusion [..., K, K]: of one image, of their sum, or of many images at once


def iou(confusion: Array) -> Array:
    """Intersection over union of each class (Jaccard): float64 [..., K]; NaN for a class that is
    neither there nor found."""
    return _iou(*_margins(confusion))


def mean_iou(confusion: Array) -> Array:
    """The mean of `iou` over the classes that are there or found: float64 [...]."""
    return _mean(iou(confusion))


def pixel_accuracy(confusion: Array) -> Array:
    """The share of the pixels that is right: float64 [...]."""
    return _pixel_accuracy(*_margins(confusion))


def mean_accuracy(confusion: Array) -> Array:
    """The mean of `recall` over the classes that are there: float64 [...]."""
    return _mean(recall(confusion))


def weighted_iou(confusion: Array) -> Array:
    """The mean of `iou`, weighted with the pixels of each class (1411.4038, section 5): float64
    [...]."""
    return _weighted_iou(*_margins(confusion))


def recall(confusion: Array) -> Array:
    """Of the pixels of each class, the share that was found, also called its accuracy: float64
    [..., K]; NaN for a class that is not there."""
    hits, truth, _ = _margins(confusion)
    return _ratio(hits, truth)


def precision(confusion: Array) -> Array:
    """Of the pixels that were given each class, the share that is of it: float64 [..., K]; NaN for
    a class that was not found."""
    hits, _, found = _margins(confusion)
    return _ratio(hits, found)


def _margins(confusion: Array) -> tuple[Array, Array, Array]:
    """Pixels of each class that are right, that are there, and that were found: [..., K] each."""
    counts = np.asarray(confusion)
    return np.einsum("...kk->...k", counts), counts.sum(axis=-1), counts.sum(axis=-2)


def _iou(hits: Array, truth: Array, found: Array) -> Array:
    return _ratio(hits, truth + found - hits)


def _pixel_accuracy(hits: Array, truth: Array, found: Array) -> Array:
    return _ratio(hits.sum(axis=-1), truth.sum(axis=-1))


def _weighted_iou(hits: Array, truth: Array, found: Array) -> Array:
    shares = _ratio(truth, truth.sum(axis=-1, keepdims=True))
    weighted: Array = (shares * np.nan_to_num(_iou(hits, truth, found))).sum(axis=-1)
    return weighted


def _ratio(part: Array, whole: Array) -> Array:
    """NaN where there is nothing to divide by."""
    with np.errstate(invalid="ignore"):
        ratio: Array = np.asarray(part / whole, np.float64)
    return ratio


def _mean(values: Array, axis: int = -1) -> Array:
    """The mean of those that are not NaN; NaN where all are."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=axis), known.sum(axis=axis))


# Boundaries


def boundary_counts(
    found: Array, truth: Array, classes: int, tolerance: float = TOLERANCE
) -> Array:
    """Boundary pixels of each class, int64 [4, K]: found, of these near the true boundary; true,
    of these near the found one.

    A pixel is on the boundary of its class where one of its four neighbours is of another class.
    What lies outside of the image is no neighbour, and neither is a pixel where the truth is
    IGNORED: no boundary runs along or within it, found or true. Near is less than `tolerance`, a
    share of the image's diagonal, from a boundary pixel of the same class, from centre to centre,
    after Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013;
    a distance of just the tolerance is not near, as in minar09/bfscore_python, which is made after
    it too. Raises ValueError as `confusion`.
    """
    found = _judged(found, truth, classes)
    height, width = truth.shape
    # a squared distance is a whole number, and this the largest that is near
    limit = math.ceil((tolerance * math.hypot(height, width)) ** 2) - 1
    reach = math.isqrt(max(limit, 0))
    # Each class, and each row, has its own whole numbers: a way of `reach` leads into no other's.
    stride, rows = width + reach, height + reach
    places = []
    for labels in (found, truth):
        at = np.flatnonzero(_edges(labels))
        y, x = np.divmod(at, width)
        places.append(np.sort((labels.ravel()[at] * np.int64(rows) + y) * stride + x))
    counts = np.zeros((4, classes), np.int64)
    for side in (0, 1):
        of = places[side] // (rows * stride)
        near = _near(places[side], places[1 - side], limit, stride)
        counts[2 * side] = np.bincount(of, minlength=classes)
        counts[2 * side + 1] = np.bincount(of[near], minlength=classes)
    return counts


def _edges(labels: Array) -> Array:
    """The pixels on the boundary of their class: bool [H, W]."""
    edges = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        first, second = np.swapaxes(labels, 0, axis)[:-1], np.swapaxes(labels, 0, axis)[1:]
        apart = (first != second) & (first != IGNORED) & (second != IGNORED)
        along = np.swapaxes(edges, 0, axis)
        along[:-1] |= apart
        along[1:] |= apart
    return edges


def _near(places: Array, others: Array, limit: int, stride: int) -> Array:
    """Whether each pixel has one of the others at most the root of `limit` away: bool [n].

    places, others: sorted; a pixel below is `stride` further. The disc around a pixel is searched
    row by row, the nearest first.
    """
    near = np.zeros(len(places), bool)
    ends = np.append(others, np.iinfo(np.int64).max)
    left = np.arange(len(places))
    reach = math.isqrt(limit) if limit >= 0 else -1
    for down in sorted(range(-reach, reach + 1), key=abs):
        half = math.isqrt(limit - down * down)
        first = places[left] + down * stride - half
        met = ends[np.searchsorted(others, first)] <= first + 2 * half
        near[left[met]] = True
        left = left[~met]
    return near


def boundary_f1(counts: Array) -> Array:
    """The boundary F1 of `boundary_counts` [..., 4, K]: float64 [..., K], 0..1.

    The harmonic mean of precision, the found boundary pixels that are near a true one, and recall,
    the reverse. 0 where only one of the two has a boundary, NaN where neither has. Of several
    images it is taken by image, see `mean_boundary_f1`, and never of their sum.
    """
    found, right, true, met = np.moveaxis(np.asarray(counts, np.float64), -2, 0)
    precise, complete = right / np.maximum(found, 1), met / np.maximum(true, 1)
    both = precise + complete
    f1 = 2 * precise * complete / np.where(both > 0, both, 1)
    named: Array = np.where(found + true > 0, f1, np.nan)
    return named


def mean_boundary_f1(boundaries: Array) -> tuple[float, Array]:
    """Of images [N, 4, K], as the paper has it: the mean over images of the mean over the classes
    with a boundary in them; and of each class the mean over the images with one, float64 [K]."""
    scores = boundary_f1(boundaries)
    return float(_mean(_mean(scores))), _mean(scores, axis=0)


# Of many images: metrics, and how sure they are


def statistics(confusions: Array, boundaries: Array | None = None) -> dict[str, Statistic]:
    """Every metric by its name, the first the main one, of resamples of N images.

    confusions: [N, K, K], `confusion` of each. boundaries: [N, 4, K], `boundary_counts` of each.
    A class that a resample lacks altogether is left out of its means.
    """
    of = _of_margins(confusions)
    found = {
        "miou": of(lambda *parts: _mean(_iou(*parts))),
        "pixel_accuracy": of(_pixel_accuracy),
        "mean_accuracy": of(lambda hits, truth, found: _mean(_ratio(hits, truth))),
        "weighted_iou": of(_weighted_iou),
    }
    if boundaries is None:
        return found
    by_image = _mean(boundary_f1(boundaries))
    known = ~np.isnan(by_image)  # images without a boundary do not count
    scores = np.nan_to_num(by_image)
    return found | {"boundary_f1": lambda counts: _ratio(counts @ scores, counts @ known)}


def _of_margins(confusions: Array) -> Callable[[Callable[[Array, Array, Array], Array]], Statistic]:
    """What makes a statistic of a metric of `_margins`, summed over images."""
    margins = np.stack(_margins(confusions), axis=1).astype(np.float64)  # [N, 3, K]

    def of(metric: Callable[[Array, Array, Array], Array]) -> Statistic:
        return lambda counts: metric(*np.moveaxis(np.tensordot(counts, margins, 1), 1, 0))

    return of


def iou_intervals(confusions: Array) -> list[Interval | None]:
    """The 95 % interval of the IoU of each class, by the same bootstrap; None for one of too few
    images (`bootstrap.known_percentiles`)."""
    n, classes = confusions.shape[:2]
    if not n:
        return [None] * classes
    values = resampled({"iou": _of_margins(confusions)(_iou)}, n)["iou"]  # [R, K]
    holding = np.any(np.stack(_margins(confusions)[1:]), axis=0).sum(axis=0)  # in truth or found
    return [known_percentiles(values[:, k], n, holding=int(holding[k])) for k in range(classes)]


def _holding(
    names: Iterable[str], confusions: Array, boundaries: Array | None = None
) -> dict[str, int]:
    """Of each metric, how many of N images have what it measures: judged pixels, a boundary."""

    def images(counts: Array) -> int:
        return int(np.any(counts, axis=(1, 2)).sum())

    found = dict.fromkeys(names, images(confusions))
    return found if boundaries is None else found | {"boundary_f1": images(boundaries)}


def metrics(confusions: Array, boundaries: Array | None = None) -> dict[str, float]:
    """Every metric of N images, 0..1, as in `statistics`; NaN where nothing is judged."""
    once = np.ones((1, len(confusions)))
    found = statistics(confusions, boundaries)
    return {name: float(statistic(once)[0]) for name, statistic in found.items()}


def intervals(confusions: Array, boundaries: Array | None = None) -> dict[str, Interval | None]:
    """The 95 % interval of each of `metrics`, by a bootstrap over the images; None where in too few
    something is judged (`bootstrap.known_percentiles`). Resamples without any are left out."""
    found, n = statistics(confusions, boundaries), len(confusions)
    if not n:
        return dict.fromkeys(found)
    drawn, held = resampled(found, n), _holding(found, confusions, boundaries)
    return {name: known_percentiles(drawn[name], n, holding=held[name]) for name in found}


def compare(first: tuple[Array, Array], second: tuple[Array, Array]) -> ComparedFigures:
    """Two models on the same N images, by the metrics that both have: none, where nothing is
    judged.

    first, second: of each, `confusion` [N, K, K] and `boundary_counts` [N, 4, K] of the images,
    with one order of the classes.
    """
    n = len(first[0])
    figures = [metrics(*counts) for counts in (first, second)]
    told = [name for name in figures[0] if not any(np.isnan(of[name]) for of in figures)]
    ours, theirs = ({name: of[name] for name in told} for of in figures)
    drawn = [resampled(statistics(*counts), n) for counts in (first, second)]
    both = (np.concatenate(pair) for pair in zip(first, second, strict=True))
    chance = swapped(statistics(*both), n)
    held, others = (_holding(told, *counts) for counts in (first, second))
    fewest = {name: min(n, others[name]) for name, n in held.items()}
    return ComparedFigures.of(n, (ours, theirs), (drawn[0], drawn[1]), chance, fewest)
