"""Errors over training, of several networks and seeds, as the figures of the papers show them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skipway.report.markup import Html
from skipway.report.plot import Line, linear, plot

Points = Sequence[tuple[float, float]]
"""(step, error in %)."""


@dataclass(frozen=True)
class Curve:
    """A network's error over training, by seed."""

    name: str
    style: str
    """Classes of the style sheet, as of `report.plot.Line`."""
    seeds: Mapping[int, Points]
    tested: Sequence[float] = ()
    """What it came to on the test images, in %, by seed."""


def curves(
    title: str,
    caption: str,
    drawn: Sequence[Curve],
    published: Sequence[tuple[float, str]] = (),
    top: float | None = None,
) -> Html:
    """A figure: the mean over seeds of each curve, the range over them as a band, and dots at the
    end for test errors.

    published: values of the paper in %, with their words. top: where the axis ends, for figures
    that are to be compared; by default all is seen but the first epochs of a steep start, and a
    line begins where it enters.
    """
    at = {curve.name: _by_step(curve) for curve in drawn}
    tested = [error for curve in drawn for error in curve.tested]
    top = max(highest(drawn), *tested, 0.0) if top is None else top
    last = max(step for steps in at.values() for step in steps)
    x = linear("step", last, whole=True)
    y = linear("error, %", top)
    lines, bands = [], []
    for curve in drawn:
        steps = at[curve.name]
        means = [(s, statistics.fmean(values)) for s, values in steps.items()]
        lines.append(Line(curve.name, _entering(means, y.high), curve.style))
        for place, error in enumerate(curve.tested):
            name = "" if place else f"{curve.name}, test"
            lines.append(Line(name, [(last, error)], curve.style))
        if len(curve.seeds) > 1:
            ends = [(s, min(values), max(values)) for s, values in steps.items()]
            bands.append((curve.style, ends))
    return plot(title, caption, x, y, lines, bands=bands, levels=published)


def _entering(points: Points, top: float) -> Points:
    """From where a line is below `top` for good; the last point is in any case."""
    out = max((place for place, (_, value) in enumerate(points[:-1]) if value > top), default=-1)
    if out < 0:
        return points
    (before, high), (after, low) = points[out], points[out + 1]
    share = (high - top) / (high - low)
    return [(before + share * (after - before), top), *points[out + 1 :]]


def highest(drawn: Sequence[Curve]) -> float:
    """Where an axis for these curves ends: above all that comes after a fifth of the training."""
    values = [
        value
        for curve in drawn
        for points in curve.seeds.values()
        for step, value in points
        if step >= points[-1][0] / 5
    ]
    return min(100.0, 1.05 * max(values))


def _by_step(curve: Curve) -> dict[float, list[float]]:
    """The values of all seeds at the steps that each of them has."""
    steps: dict[float, list[float]] = {}
    for points in curve.seeds.values():
        for step, value in points:
            steps.setdefault(step, []).append(value)
    whole = {s: v for s, v in steps.items() if len(v) == len(curve.seeds)}
    return dict(sorted((whole or steps).items()))
