"""How sure the numbers are: intervals of every metric, and two models on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skipway.bootstrap import Interval, known_difference, known_percentiles, resampled
from skipway.metrics import PairedAccuracy, Scored, wilson_interval

BIASED = ("ece",)
"""Metrics from 0 up that chance alone raises."""
SHARES = ("accuracy", "top5")
"""Metrics that count images."""


def intervals(scored: Scored) -> dict[str, Interval | None]:
    """The 95 % interval of each of `Scored.metrics`: Wilson's of shares of the images, which holds
    for few of them too, and `bootstrap.known_percentiles` of the others."""
    found, n = resampled(scored.statistics(), len(scored.label)), len(scored.label)
    ends: dict[str, Interval | None] = {}
    for name, value in scored.metrics().items():
        if name in SHARES:
            ends[name] = wilson_interval(round(value * n), n)
        elif known := known_percentiles(found[name], n, value if name in BIASED else None):
            ends[name] = max(known[0], 0.0), known[1]  # a loss and an error are no less
        else:
            ends[name] = None
    return ends


@dataclass(frozen=True)
class Compared:
    """Two models on the same images. Differences are second minus first."""

    accuracy: PairedAccuracy
    first: dict[str, float]
    """`Scored.metrics` on these images."""
    second: dict[str, float]
    intervals: dict[str, Interval | None]
    """Of the differences, 95 %: by a paired bootstrap (`bootstrap.known_difference`), those of
    shares of the images as `PairedAccuracy` has them."""

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
        name: known_difference(
            drawn[0, name], drawn[1, name], n, b[name] - a[name] if name in BIASED else None
        )
        for name in a
    }
    accuracy = PairedAccuracy.of(first.correct, second.correct)
    ends["accuracy"] = accuracy.interval
    ends["top5"] = PairedAccuracy.of(first.in_top5, second.in_top5).interval
    return Compared(accuracy, a, b, ends)
