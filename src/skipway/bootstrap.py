"""The bootstrap over images (Efron and Tibshirani 1993, chapter 13), for any metric, in NumPy.

A metric comes as a `Statistic`, a function of how often each image counts, so that many resamples
are worked out at once: a mean over images, a calibration error, or an average precision that a task
has of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from skipway.data.keyed import Key

Array = npt.NDArray[Any]
Statistic = Callable[[Array], Array]
"""How often each of N images counts in each of R resamples, float64 [R, N], to the metric in each,
float64 [R]. Rows of ones give the metric itself."""
Name = TypeVar("Name", bound=Hashable)

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


def percentiles(values: Array, biased: float | None = None) -> tuple[float, float]:
    """The 95 % interval of a metric by the percentiles of its resamples [R].

    `biased`: the metric itself, where it is one that chance alone raises, as a calibration error:
    few images make it too high, a resample's is higher still, and without this the interval may
    lie above the metric. The percentiles are moved by how far the resamples are off on average
    (Efron and Tibshirani 1993, section 10.2). It is the interval of the metric on as many other
    images, whose own excess stays in it.
    """
    low, high = np.percentile(values, (2.5, 97.5))
    excess = 0.0 if biased is None else float(values.mean()) - biased
    return float(low) - excess, float(high) - excess
