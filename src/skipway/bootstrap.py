"""The bootstrap over images (Efron and Tibshirani 1993, chapter 13), for any metric, in NumPy; and
the permutation test of two models (chapter 15).

A metric comes as a `Statistic`, a function of how often each image counts, so that many resamples
are worked out at once: a mean over images, a calibration error, or an average precision that a task
has of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from skipway.data.keyed import Key

Array = npt.NDArray[Any]
Statistic = Callable[[Array], Array]
"""How often each of N images counts in each of R resamples, float64 [R, N], to the metric in each,
float64 [R]. Rows of ones give the metric itself."""
Name = TypeVar("Name", bound=Hashable)
Interval = tuple[float, float]

RESAMPLES = 1000
_AT_ONCE = 1 << 22
"""Counts that are held at a time: 32 MiB."""


def mean_of(values: Array) -> Statistic:
    """The metric that is the mean of a value of each image, [N]."""
    column = np.asarray(values, np.float64)

    def mean(counts: Array) -> Array:
        return counts @ column / counts.sum(axis=1)

    return mean


def resampled(
    statistics: Mapping[Name, Statistic], n: int, resamples: int = RESAMPLES, seed: int = 0
) -> dict[Name, Array]:
    """Each metric on resamples of n images, drawn with replacement: float64 [resamples] by name.

    All see the same resamples, which are a function of (seed, number of the resample, n) alone:
    differences of what two models have are those of a paired bootstrap.
    """
    rows = max(1, _AT_ONCE // n)
    parts: dict[Name, list[Array]] = {name: [] for name in statistics}
    for low in range(0, resamples, rows):
        numbers = np.arange(low, min(low + rows, resamples))
        drawn = (Key(seed, 0, numbers).uniform(n) * n).astype(np.int64)
        drawn += n * np.arange(len(numbers))[:, None]
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(-1, n).astype(np.float64)
        for name, statistic in statistics.items():
            parts[name].append(statistic(counts))
    return {name: np.concatenate(found) for name, found in parts.items()}


def student(v: int) -> float:
    """The 97.5 % point of Student's t of v degrees of freedom, by Fisher's expansion: for 4 of them
    0.3 % too low, for more closer."""
    z = NormalDist().inv_cdf(0.975)
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    return t + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)


def _tail(n: int) -> float:
    """The share of resamples of n images beyond either end of a 95 % interval.

    Resamples of few images vary too little, and their percentiles are those of a normal
    distribution where Student's is due. So percentiles further out are taken: the expanded ones of
    Hesterberg 2014 (1411.5279). 2.5 % for many images.
    """
    if n < 3:
        return 0.0
    return NormalDist().cdf(-math.sqrt(n / (n - 1)) * student(n - 1))


def percentiles(values: Array, n: int, biased: float | None = None) -> Interval:
    """The 95 % interval of a metric by the percentiles of its resamples [R] of n images, those of
    few images expanded (Hesterberg 2014, 1411.5279).

    `biased`: the metric itself, where it is one that chance alone raises, as a calibration error:
    few images make it too high, a resample's is higher still, and without this the interval may
    lie above the metric. The percentiles are moved by how far the resamples are off on average
    (Efron and Tibshirani 1993, section 10.2). It is the interval of the metric on as many other
    images, whose own excess stays in it.
    """
    tail = _tail(n)
    low, high = np.quantile(values, (tail, 1 - tail))
    excess = 0.0 if biased is None else float(values.mean()) - biased
    return float(low) - excess, float(high) - excess


def known_percentiles(
    values: Array, n: int, biased: float | None = None, holding: int | None = None
) -> Interval | None:
    """`percentiles` of the resamples that have the metric; None where more than half of them have
    not, of fewer than three images, and where all are equal: nothing measured is so certain.

    holding: how many of the images have what is measured, as the objects of a class: what varies is
    no more than these. None of fewer than `FEWEST`, whose resamples vary too little for any
    interval.
    """
    there = values[np.isfinite(values)]
    if n < 3 or (holding is not None and holding < FEWEST) or 2 * len(there) <= len(values):
        return None
    if np.ptp(there) <= _ROUNDING * np.abs(there).max():
        return None
    return percentiles(there, n if holding is None else holding, biased)


def known_difference(
    first: Array, second: Array, n: int, biased: float | None = None, holding: int | None = None
) -> Interval | None:
    """`known_percentiles` of second minus first of two models in the same resamples [R]. Exactly 0
    where their figures, which vary, are the same in all of them: so are their answers."""
    if np.array_equal(first, second, equal_nan=True):
        return None if known_percentiles(first, n, None, holding) is None else (0.0, 0.0)
    return known_percentiles(second - first, n, biased, holding)


FEWEST = 5
"""Images that have what is measured, of which an interval can be told."""
_ROUNDING = 1e-6
"""Share of a metric by which equal ones may be apart: some are float32."""


# Two models on the same images


def random_swaps(n: int, numbers: Array, seed: int = 0) -> Array:
    """In which of n images two models are swapped, in swaps of those numbers [R]: bool [R, n]."""
    swaps: Array = Key(seed, 1, numbers).uniform(n) < 0.5
    return swaps


def swapped(
    statistics: Mapping[Name, Statistic], n: int, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[dict[Name, Array], dict[Name, Array]]:
    """Each metric of two models that were swapped at random, image by image: of what is then the
    first and the second, float64 [resamples] by name.

    statistics: of 2n images, those that the first model answered and behind them the same ones as
    the second did.
    """
    rows = max(1, _AT_ONCE // (2 * n))
    parts: list[dict[Name, list[Array]]] = [{name: [] for name in statistics} for _ in range(2)]
    for low in range(0, resamples, rows):
        swaps = random_swaps(n, np.arange(low, min(low + rows, resamples)), seed)
        kept = np.concatenate([~swaps, swaps], axis=1).astype(np.float64)
        for found, counts in zip(parts, (kept, 1 - kept), strict=True):
            for name, statistic in statistics.items():
                found[name].append(statistic(counts))
    first, second = ({name: np.concatenate(of) for name, of in found.items()} for found in parts)
    return first, second


@dataclass(frozen=True)
class ComparedFigures:
    """Two models on the same images. Differences are second minus first."""

    n: int
    """Images."""
    first: dict[str, float]
    second: dict[str, float]
    intervals: dict[str, Interval | None]
    """Of the differences, 95 %, by a paired bootstrap over images (`known_difference`)."""
    p: dict[str, float]
    """Of the differences, by a permutation test: the share of random swaps of the two models, image
    by image, that make the difference as large: exact where it does not matter which model an
    answer is of."""

    @classmethod
    def of(
        cls,
        n: int,
        figures: tuple[dict[str, float], dict[str, float]],
        drawn: tuple[Mapping[str, Array], Mapping[str, Array]],
        swapped: tuple[Mapping[str, Array], Mapping[str, Array]],
        holding: Mapping[str, int] | None = None,
    ) -> ComparedFigures:
        """figures: of each model, those that are told. drawn: each figure in the same resamples,
        [R]. swapped: each after the same swaps (see `swapped`). holding: of each figure, as in
        `known_percentiles`; None where all images have what is measured."""
        first, second = figures
        ends, p = {}, {}
        for name, value in first.items():
            difference = second[name] - value
            pair = drawn[0][name], drawn[1][name]
            held = None if holding is None else holding[name]
            ends[name] = known_difference(*pair, n, difference, held)
            by_chance = np.abs(swapped[1][name] - swapped[0][name])
            # 1e-6 as some are float32; a swap that leaves nothing to judge counts, to be careful
            as_large = int((~(by_chance < abs(difference) - 1e-6)).sum())
            p[name] = (1 + as_large) / (1 + len(by_chance))
        return cls(n, first, second, ends, p)

    @property
    def differences(self) -> dict[str, float]:
        return {name: self.second[name] - value for name, value in self.first.items()}

    def clear(self, name: str) -> bool:
        """Whether chance alone hardly explains the difference: p below 0.05."""
        return self.p[name] < 0.05
