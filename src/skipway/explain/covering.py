"""Squares that cover a model's input, one after the other, and what is lost by each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.errors import InputError

Array = npt.NDArray[Any]
Measure = Callable[[Array], Array]
"""Model inputs, float32 [B, C, H, W], to what is measured of each: [B, M]."""


@dataclass(frozen=True)
class Squares:
    """Squares of `window` pixels of the input, moved in steps of `stride`."""

    window: int
    stride: int

    @classmethod
    def of(cls, size: tuple[int, int], window: int | None, stride: int | None) -> Squares:
        """size: the model's input. None is about a seventh of its shorter side, 8 at least, and
        half the window. Raises InputError where they do not fit."""
        side = min(size)
        window = window or max(round(side / 7), min(8, side))
        stride = stride or max(window // 2, 1)
        if window > side:
            raise InputError(
                f"--window {window}: larger than the model's input, {size[0]} x {size[1]} pixels"
            )
        if stride > window:
            raise InputError(
                f"--stride {stride}: larger than the window of {window} pixels, which would leave "
                "pixels uncovered"
            )
        return cls(window, stride)

    def falls(self, x: Array, measure: Measure, batch_size: int = 32) -> Array:
        """How much of each measure is lost where x is covered: float32 [M, H, W], below 0 where it
        gains.

        A square, filled with 0, which is the mean after normalisation, is moved over x, float32 [C,
        H, W], and cut at its right and bottom edge. A pixel gets the mean over the squares that
        cover it of what the measure falls by. The stride must be at most the window, else pixels
        would never be covered.
        """
        height, width = x.shape[1:]
        places = list(itertools.product(*(self._starts(n) for n in (height, width))))

        def covered() -> Iterator[Array]:
            for top, left in places:
                view = x.copy()
                view[:, top : top + self.window, left : left + self.window] = 0
                yield view

        views, values = itertools.chain([x], covered()), []
        while batch := list(itertools.islice(views, batch_size)):
            values.append(np.asarray(measure(np.stack(batch)), np.float64))
        whole, *covered_values = np.concatenate(values)
        total, times = np.zeros((len(whole), height, width)), np.zeros((height, width))
        for (top, left), value in zip(places, covered_values, strict=True):
            at = slice(top, top + self.window), slice(left, left + self.window)
            total[:, *at] += (whole - value)[:, None, None]
            times[at] += 1
        found: Array = (total / times).astype(np.float32)
        return found

    def _starts(self, size: int) -> range:
        """Where windows begin along a side: the first that reaches its end is the last."""
        return range(0, max(size - self.window, 0) + self.stride, self.stride)

    def said(self, heat: Array, what: str, points: bool = True) -> str:
        """How a map was made, for its caption; points: what is measured is a share."""
        most = max(float(heat.max()), 0.0) * (100 if points else 1)
        fall = f"{most:.1f}" if most >= 0.1 else f"{most:.1g}"
        fall += " points" if points else ""
        return (
            f"occlusion, {self.window} px squares every {self.stride} px of the model's input: "
            f"{what} falls by up to {fall}, the mean of the squares over a place"
        )


@dataclass(frozen=True)
class Windows:
    """Squares for inputs that differ in size: `window` and `stride` as `Squares.of` takes them."""

    window: int | None
    stride: int | None

    def on(self, of: Array) -> Squares:
        """Over an input or its map, [H, W]. Raises InputError where they do not fit it."""
        return Squares.of((of.shape[0], of.shape[1]), self.window, self.stride)
