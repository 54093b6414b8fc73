"""Pictures of the signal through depth: small panels on one log axis, still and moving.

An exact 0 has no place on a log axis and neither has what overflowed: each has a line of its own
below and above it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

from skipway.report.document import as_svg
from skipway.report.markup import Html, tag
from skipway.report.plot import LETTER, RAISED, Axis, apart, below, beside, dot, rule, words
from skipway.study.flow_nets import Number

WIDTH = 272
"""Of a panel's plotting area; to its right stand the names of the lines."""
HEIGHT, HEAD, FOOT = 188, 44, 52
LEFT = 44
BEYOND = 13
"""Pixels from the axis to the line of zeros below it and to that of what overflowed above it."""


@dataclass(frozen=True)
class Trace:
    """One line of a panel: its values by place, and where it moves those of each frame."""

    name: str
    style: str
    """Classes of the style sheet, as of `report.plot.Line`."""
    frames: Sequence[Sequence[Number]]
    """As long as `Panel.places` each; one where nothing moves."""
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()
    """The range over seeds."""


@dataclass(frozen=True)
class Panel:
    """A plot among others on the same axis."""

    title: str
    x: Axis
    places: Sequence[float]
    """Rising, two at least."""
    traces: Sequence[Trace]


@dataclass(frozen=True)
class _Area:
    """Where a panel is drawn, and what its values are there."""

    left: float
    top: float
    axis: Axis
    """Of the values."""
    panel: Panel

    @property
    def bottom(self) -> float:
        return self.top + HEIGHT

    @property
    def right(self) -> float:
        return self.left + WIDTH

    def x(self, place: float) -> float:
        return round(self.left + self.panel.x.share(place) * WIDTH, 1)

    def y(self, value: Number) -> float:
        if value is None:
            return self.top - BEYOND
        if value == 0:
            return self.bottom + BEYOND
        return round(self.bottom - self.axis.share(self.axis.within(value)) * HEIGHT, 1)

    def path(self, values: Sequence[Number]) -> str:
        points = zip(self.panel.places, values, strict=True)
        return "M" + "L".join(f"{self.x(place)} {self.y(value)}" for place, value in points)


def panels(title: str, caption: str, label: str, rows: Sequence[Sequence[Panel]]) -> Html:
    """A figure of panels in rows, all of one log axis, which is named at the top."""
    areas = _areas(label, rows)
    drawn = [part for area in areas for part in (*_ground(area), *_lines(area))]
    return _figure(title, caption, label, rows, drawn)


def animation(
    title: str, caption: str, label: str, row: Sequence[Panel], frames: Sequence[str]
) -> str:
    """An SVG document of its own in which the traces move from frame to frame and begin again.

    frames: what each is called, as "step 40". It moves by SMIL, without a script. Who asks for
    reduced motion sees the last frame over the first; what knows no SMIL shows the first.
    """
    areas = _areas(label, [row])
    ground = [part for area in areas for part in _ground(area)]
    moving = [part for area in areas for part in _moving(area)] + _clock(areas[0], frames)
    still = [
        tag("path", class_="line early", d=area.path(trace.frames[0]))
        for area in areas
        for trace in area.panel.traces
    ]
    still += [part for area in areas for part in _lines(area)]
    told = f"{frames[-1]} (thin: {frames[0]})"
    still.append(words(told, areas[0].right, areas[0].top - 20, "end", "letter"))
    motion = Html(
        "svg .still { display: none; } @media (prefers-reduced-motion: reduce) "
        "{ svg .still { display: inline; } svg .moving { display: none; } }"
    )
    drawn = [
        tag("style", motion),
        *ground,
        tag("g", *moving, class_="moving"),
        tag("g", *still, class_="still"),
    ]
    return as_svg(_figure(title, caption, label, [row], drawn))


SECONDS = 0.6
"""That a frame lasts; the last one is held three times as long."""
HELD = 3


def _moved(
    attribute: str, values: Sequence[object], step: bool = False, leaps: Container[int] = ()
) -> Html:
    """How an attribute goes through its values, one a frame, the last of which stays until the end.

    step: without what is in between. leaps: frames after which it waits, and leaps to the next.
    """
    whole = len(values) - 1 + HELD
    moves: list[tuple[float, object]] = []
    for frame, value in enumerate(values):
        moves.append((frame, value))
        if frame in leaps:
            moves += [(frame + 0.5, value), (frame + 0.5, values[frame + 1])]
    moves.append((whole, values[-1]))
    return tag(
        "animate", attributeName=attribute, values=";".join(str(value) for _, value in moves),
        keyTimes=";".join(f"{at / whole:.4f}" for at, _ in moves), dur=f"{SECONDS * whole:g}s",
        repeatCount="indefinite", calcMode="discrete" if step else "linear",
    )  # fmt: skip


def _moving(area: _Area) -> list[Html]:
    """Each trace with its name at its end, both moving; names that pass one another leap, so that
    none is on another in between."""
    parts: list[Html] = []
    traces = area.panel.traces
    heights = [_name_heights(area, frame) for frame in range(len(traces[0].frames))]
    orders = [sorted(range(len(at)), key=at.__getitem__) for at in heights]
    leaps = {frame for frame, two in enumerate(itertools.pairwise(orders)) if two[0] != two[1]}
    for number, trace in enumerate(traces):
        paths = [area.path(values) for values in trace.frames]
        parts.append(tag("path", _moved("d", paths), class_=f"line {trace.style}", d=paths[0]))
        places = [round(at[number], 1) for at in heights]
        parts.append(
            tag(
                "text", trace.name, _moved("y", places, leaps=leaps),
                class_="name", x=round(area.right + 7, 1), y=places[0],
            )
        )  # fmt: skip
    return parts


def _clock(area: _Area, frames: Sequence[str]) -> list[Html]:
    """The name of the frame that is shown, over the first panel."""
    parts = []
    for number, name in enumerate(frames):
        shown = [int(at == number) for at in range(len(frames))]
        parts.append(
            tag(
                "text", name, _moved("opacity", shown, step=True),
                class_="letter", x=area.right, y=area.top - 20, text_anchor="end",
                opacity=shown[0],
            )
        )  # fmt: skip
    return parts


def _named(rows: Sequence[Sequence[Panel]]) -> int:
    """Pixels that the names of the lines take beside a panel."""
    names = [trace.name for some in rows for panel in some for trace in panel.traces]
    return 10 + math.ceil(LETTER * max(map(len, names)))


def _around(label: str, rows: Sequence[Sequence[Panel]]) -> Axis:
    """A log axis from tick to tick around 1 and all values, so that no panel exaggerates; 1 is one
    of its ticks."""
    traces = [trace for some in rows for panel in some for trace in panel.traces]
    values = [v for t in traces for seen in (*t.frames, t.low, t.high) for v in seen if v]
    low, high = (math.log10(end) for end in (min([1, *values]), max([1, *values])))
    every = 1 if high - low <= 4 else 5 if high - low <= 40 else 10
    below, above = min(math.floor(low / every), -1), max(math.ceil(high / every), 1)
    ticks = [
        (10.0**n, f"10{str(n).translate(RAISED)}" if n else "1")
        for n in range(every * below, every * above + 1, every)
    ]
    return Axis(label, ticks[0][0], ticks[-1][0], ticks, log=True)


def _areas(label: str, rows: Sequence[Sequence[Panel]]) -> list[_Area]:
    axis = _around(label, rows)
    step = WIDTH + _named(rows) + LEFT
    return [
        _Area(LEFT + column * step, 18 + HEAD + row * (HEIGHT + HEAD + FOOT), axis, panel)
        for row, some in enumerate(rows)
        for column, panel in enumerate(some)
    ]


def _figure(
    title: str,
    caption: str,
    label: str,
    rows: Sequence[Sequence[Panel]],
    drawn: Sequence[Html],
) -> Html:
    columns = max(map(len, rows))
    width = columns * (LEFT + WIDTH + _named(rows))
    height = (
        18
        + len(rows) * (HEAD + HEIGHT + FOOT)
        - 14
        + (BEYOND if any(0 in _values(panel) for panel in rows[-1]) else 0)
    )
    svg = tag(
        "svg", words(label, 0, 12), *drawn, class_="plot panels", role="img",
        viewBox=f"0 0 {width} {height}", aria_label=f"{title}. {caption}",
    )  # fmt: skip
    return tag("figure", tag("h3", title), svg, tag("figcaption", caption))


def _values(panel: Panel) -> list[Number]:
    return [value for trace in panel.traces for frame in trace.frames for value in frame]


def _ground(area: _Area) -> list[Html]:
    """Title, axes and grid of a panel."""
    values = _values(area.panel)

    def across(style: str, value: Number) -> Html:
        return rule(style, area.left, area.y(value), area.right, area.y(value))

    parts = [words(area.panel.title, area.left, area.top - 20, style="letter")]
    for tick, text in area.axis.ticks:
        parts.append(across("level" if tick == 1 else "grid", tick))
        parts.append(words(text, area.left - 6, area.y(tick) + 4, "end"))
    for there, value, text in ((0 in values, 0.0, "0"), (None in values, None, "∞")):
        if there:
            parts.append(across("mark", value))
            parts.append(words(text, area.left - 6, area.y(value) + 4, "end"))
    ticks = [(area.x(at), text) for at, text in area.panel.x.ticks]
    parts += [rule("grid", x, area.top, x, area.bottom) for x, _ in ticks]
    under = area.bottom + (BEYOND if 0 in values else 0) + 16
    parts += below(ticks, under)
    parts.append(words(area.panel.x.label, (area.left + area.right) / 2, under + 15, "middle"))
    return parts


def _lines(area: _Area) -> list[Html]:
    """The last frame of each trace, its range over seeds behind it and its name at its end."""
    parts: list[Html] = []
    for trace in area.panel.traces:
        if trace.low:
            back = zip(reversed(area.panel.places), reversed(trace.low), strict=True)
            under = "L".join(f"{area.x(place)} {area.y(value)}" for place, value in back)
            d = f"{area.path(trace.high)}L{under}Z"
            parts.append(tag("path", class_=f"area {trace.style}", d=d))
    named = []
    for trace in area.panel.traces:
        end = area.y(trace.frames[-1][-1])
        parts.append(tag("path", class_=f"line {trace.style}", d=area.path(trace.frames[-1])))
        parts.append(dot(f"dot {trace.style}", area.right, end, radius=2.5))
        named.append((end, trace.name))
    return parts + beside(named, area.right, area.bottom + BEYOND)


def _name_heights(area: _Area, frame: int) -> list[float]:
    """Where the names of the traces stand, in their order, none on another."""
    ends = [area.y(trace.frames[frame][-1]) for trace in area.panel.traces]
    order = sorted(range(len(ends)), key=ends.__getitem__)
    placed = apart([ends[n] for n in order], area.bottom + BEYOND)
    heights = dict(zip(order, placed, strict=True))
    return [heights[n] + 4 for n in range(len(ends))]
