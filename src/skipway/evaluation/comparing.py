"""How sure the numbers are: intervals of every metric, and two models on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.bootstrap import percentiles, resampled
from skipway.metrics import PairedAccuracy, Scored, wilson_interval

Array = npt.NDArray[Any]
Interval = tuple[float, float]
BIASED = ("ece",)
"""Metrics from 0 up that chance alone raises."""
SHARES = ("accuracy", "top5")
"""Metrics that count images."""


def intervals(scored: Scored) -> dict[str, Interval]:
    """The 95 % interval of each of `Scored.metrics`: Wilson's of shares of the images, which holds
    for few of them too, and `bootstrap.percentiles` of the others."""
    found, n = resampled(scored.statistics(), len(scored.label)), len(scored.label)
    ends = {
        name: wilson_interval(round(value * n), n)
        if name in SHARES
        else _interval(name, found[name], n, value)
        for name, value in scored.metrics().items()
    }
    return ends | {name: (max(ends[name][0], 0.0), ends[name][1]) for name in BIASED}


def _interval(name: str, values: Array, n: int, metric: float) -> Interval:
    return percentiles(values, n, metric if name in BIASED else None)


@dataclass(frozen=True)
class Compared:
    """Two models on the same images. Differences are second minus first."""

    accuracy: PairedAccuracy
    first: dict[str, float]
    """`Scored.metrics` on these images."""
    second: dict[str, float]
    intervals: dict[str, Interval]
    """Of the differences, 95 %: by a paired bootstrap, that of accuracy as `PairedAccuracy` has
    it."""

    @property
    def differences(self) -> dict[str, float]:
        return {name: self.second[name] - value for name, value in self.first.items()}

    @property
    def clear(self) -> bool:
        """Whether chance alone hardly explains the difference of accuracy: p below 0.05."""
        return self.accuracy.p < 0.05


def compare(first: Scored, second: Scored) -> Compared:
    """Both scored on one split; images that either could not read are left out."""
    _, here, there = np.intersect1d(first.index, second.index, return_indices=True)
    first, second = first.take(here), second.take(there)
    both = {
        (number, name): statistic
        for number, scored in enumerate((first, second))
        for name, statistic in scored.statistics().items()
    }
    n = len(first.label)
    drawn = resampled(both, n)
    a, b = first.metrics(), second.metrics()
    ends = {
        name: _interval(name, drawn[1, name] - drawn[0, name], n, b[name] - a[name]) for name in a
    }
    accuracy = PairedAccuracy.of(first.correct, second.correct)
    return Compared(accuracy, a, b, ends | {"accuracy": accuracy.interval})
