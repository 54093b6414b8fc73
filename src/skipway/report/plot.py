"""Plots as SVG: axes, lines labelled at their end, and small bars to stand beside numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from skipway.report.markup import Html, tag

WIDTH, HEIGHT = 380, 244
LEFT, TOP = 48, 34
LETTER = 6.4
"""About the width of a character; so much room is kept for labels."""
ROW = 12
"""The least height between two lines of text."""
WIDEST = 5
"""Characters of a tick that fit to its left, on a telephone too."""
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """One direction of a plot, from `low` to `high`, with (value, text) ticks."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def share(self, value: float) -> float:
        """Where on the axis, 0 to 1."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low)

    def within(self, value: float) -> float:
        """The value, brought to the nearer end where it lies beyond."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Frame:
    """The plotting area of a drawing; the labels of the lines stand to its right."""

    width: int = WIDTH
    height: int = HEIGHT

    @property
    def right(self) -> int:
        return self.width - 74

    @property
    def bottom(self) -> int:
        return self.height - 38

    def x(self, axis: Axis, value: float) -> float:
        return round(LEFT + axis.share(value) * (self.right - LEFT), 1)

    def y(self, axis: Axis, value: float) -> float:
        return round(self.bottom - axis.share(value) * (self.bottom - TOP), 1)


WIDE = Frame(780, 350)
"""For the whole width of a page."""


def linear(label: str, top: float, whole: bool = False) -> Axis:
    """From 0, so that no difference looks larger than it is, to the tick at or above `top`.

    Ticks too wide for their place are counted in a power of ten, which the label then names.
    `whole`: only integer ticks, and the axis ends at `top`.
    """
    top = top if top > 1e-300 else 1
    power = 10.0 ** math.floor(math.log10(top / 5))
    step = next(s * power for s in (1, 2, 5, 10) if top / (s * power) <= 5.0001)
    step = max(step, 1) if whole else step
    count = math.floor(top / step) if whole else math.ceil(top / step - 1e-9)
    ticks = [(n * step, f"{n * step:,.12g}") for n in range(count + 1)]
    if not whole and any(len(text) > WIDEST or "e" in text for _, text in ticks):
        power = 3 * math.floor(math.log10(count * step) / 3)
        unit = step / 10.0**power
        label = f"{label}, in 10{str(power).translate(RAISED)}"
        ticks = [(value, f"{n * unit:.6g}") for n, (value, _) in enumerate(ticks)]
    return Axis(label, 0, top if whole else ticks[-1][0], ticks)


def shares(label: str) -> Axis:
    """0 to 100 %."""
    return Axis(label, 0, 1, [(n / 4, f"{25 * n} %") for n in range(5)])


def decades(label: str, values: Sequence[float]) -> Axis:
    """Whole powers of ten around the values, which are positive."""
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)
    every = math.ceil((high - low) / 6)
    low = high - every * math.ceil((high - low) / every)
    ticks = [
        (10.0**n, f"{10.0**n:g}" if -3 <= n <= 3 else f"10{str(n).translate(RAISED)}")
        for n in range(low, high + 1, every)
    ]
    return Axis(label, 10.0**low, 10.0**high, ticks, log=True)


@dataclass(frozen=True)
class Line:
    """(x, y) points, at least one, joined in order."""

    name: str
    """Stands at its end; a line without one is told by its looks, which the caption explains."""
    points: Sequence[tuple[float, float]]
    style: str = "validation"
    """Classes of the style sheet: the kind of network ("residual", "plain", "preactivation"; by
    default the page's), a shade of it ("tone1" to "tone3"), "heavy", and "training" for dashes."""
    letter: str = ""
    """Stands on the line too, where several of one colour cross."""


# The parts of a drawing, in its units; `style`: classes of the style sheet.


def words(text: str, x: float, y: float, anchor: str = "start", style: str = "tick") -> Html:
    return tag("text", text, class_=style, x=x, y=round(y, 1), text_anchor=anchor)


def rule(style: str, x1: float, y1: float, x2: float, y2: float) -> Html:
    return tag("line", class_=style, x1=x1, y1=y1, x2=x2, y2=y2)


def dot(style: str, x: float, y: float, radius: float) -> Html:
    return tag("circle", class_=style, cx=x, cy=y, r=round(radius, 1))


def rect(style: str, x: float, y: float, width: float, height: float) -> Html:
    return tag("rect", class_=style, x=round(x, 1), y=y, width=round(width, 1), height=height)


def plot(
    title: str,
    caption: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line] = (),
    marks: Sequence[tuple[float, str]] = (),
    diagonal: bool = False,
    dots: Sequence[tuple[float, float, float]] = (),
    spread: Sequence[tuple[float, float, float]] = (),
    bands: Sequence[tuple[str, Sequence[tuple[float, float, float]]]] = (),
    levels: Sequence[tuple[float, str]] = (),
    wide: bool = False,
) -> Html:
    """A figure: lines labelled at their end, `marks` (x, text) as thin upright lines.

    `diagonal`: a thin line from corner to corner. `dots`: (x, y, radius), the radius in pixels.
    `spread`: (x, low, high) of intervals. `bands`: the same joined to areas behind the lines, each
    with its style (`Line.style`); what lies beyond the axis is cut off. `levels`: (y, text) as thin
    lines across, for values that were published. `wide`: drawn for the whole width of a page.
    """
    frame = WIDE if wide else Frame()
    right, bottom = frame.right, frame.bottom

    def at_x(value: float) -> float:
        return frame.x(x, value)

    def at_y(value: float) -> float:
        return frame.y(y, value)

    parts = [
        words(y.label, 0, 12),
        words(x.label, (LEFT + right) / 2, frame.height - 5, "middle"),
    ]
    for value, text in y.ticks:
        parts.append(rule("grid", LEFT, at_y(value), right, at_y(value)))
        parts.append(words(text, LEFT - 6, at_y(value) + 4, "end"))
    parts += below([(at_x(value), text) for value, text in x.ticks], bottom + 16)
    for style, ends in bands:
        over = [f"{at_x(a)} {at_y(y.within(high))}" for a, _, high in ends]
        under = [f"{at_x(a)} {at_y(y.within(low))}" for a, low, _ in reversed(ends)]
        parts.append(tag("path", class_=f"area {style}", d="M" + "L".join(over + under) + "Z"))
    for value, text in marks:
        parts.append(rule("mark", at_x(value), TOP, at_x(value), bottom))
        parts.append(words(text, at_x(value), TOP - 4, "middle"))
    parts += [rule("level", LEFT, at_y(value), right, at_y(value)) for value, _ in levels]
    named = []
    for place, line in enumerate(lines):
        at = [(at_x(a), at_y(b)) for a, b in line.points]
        path = "M" + "L".join(f"{a} {b}" for a, b in at)
        parts.append(tag("path", class_=f"line {line.style}", d=path))
        parts.append(dot(f"dot {line.style}", *at[-1], radius=2.5))
        if line.name:
            named.append((at[-1][1], line.name))
        if line.letter:
            a, b = at[(len(at) - 1) * (place + 1) // (len(lines) + 1)]
            parts.append(words(line.letter, a, b + 4, "middle", "letter"))
    parts += beside(named, right, bottom)
    if diagonal:
        parts.append(rule("mark", at_x(x.low), at_y(y.low), at_x(x.high), at_y(y.high)))
    parts += [rule("spread", at_x(a), at_y(low), at_x(a), at_y(high)) for a, low, high in spread]
    parts += [dot("bin", at_x(a), at_y(b), radius) for a, b, radius in dots]
    parts += _level_names([(at_y(value), text) for value, text in levels])
    longest = max((len(name) for _, name in named), default=0)
    svg = tag(
        "svg", *parts, class_="plot", role="img", aria_label=f"{title}. {caption}",
        viewBox=f"0 0 {max(frame.width, math.ceil(right + 7 + LETTER * longest))} {frame.height}",
    )  # fmt: skip
    return tag("figure", tag("h3", title), svg, tag("figcaption", caption))


def _level_names(levels: Sequence[tuple[float, str]]) -> list[Html]:
    """The (y, text) of levels at their left end: above the line or, where the name before is in the
    way, below it; else to the right of that."""
    parts: list[Html] = []
    edge, last = float(LEFT), -math.inf
    for y, text in sorted(levels):
        at = y - 4 if y - 4 - last >= ROW else y + ROW
        x = LEFT + 5.0 if at - last >= ROW else edge + 12
        parts.append(words(text, round(x, 1), at, style="tick halo"))
        edge, last = x + LETTER * len(text), at
    return parts


def below(ticks: Sequence[tuple[float, str]], y: float) -> list[Html]:
    """The (x, text) of an axis in a row at that height; what would run into the text before it is
    left out."""
    parts: list[Html] = []
    edge = -math.inf
    for x, text in ticks:
        half = 3.4 * len(text)  # about half the width of the text
        if x - half > edge + 4:
            parts.append(words(text, x, y, "middle"))
            edge = x + half
    return parts


def beside(named: Sequence[tuple[float, str]], right: float, bottom: float) -> list[Html]:
    """The (y, text) of lines that end at `right`, one under the other, none below `bottom`."""
    ends = sorted(named)
    heights = apart([end for end, _ in ends], bottom)
    return [
        words(text, right + 7, height + 4, style="name")
        for height, (_, text) in zip(heights, ends, strict=True)
    ]


def apart(places: Sequence[float], limit: float, gap: float = 15) -> list[float]:
    """Rising places moved until they are `gap` apart, none below `limit`."""
    placed: list[float] = []
    for place in places:
        placed.append(max(place, placed[-1] + gap) if placed else place)
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


def bar(share: float) -> Html:
    """A horizontal bar, `share` of its track long."""
    parts = (rect("track", 0, 0, 100, 8), rect("dot", 0, 0, 100 * share, 8))
    shape = {"class_": "bar", "viewBox": "0 0 100 8", "preserveAspectRatio": "none"}
    return tag("svg", *parts, **shape, aria_hidden="true")


def gauge(value: float, ends: tuple[float, float] | None, commonest: float | None) -> Html:
    """Accuracy on a line from 0 to 100 %, its interval as a band, the commonest class as a tick."""
    parts = [rect("track", 0, 8, 300, 6)]
    if ends:
        parts.append(rect("band", 300 * ends[0], 4, max(300 * (ends[1] - ends[0]), 1), 14))
    if commonest is not None:
        parts.append(rule("mark", round(300 * commonest, 1), 2, round(300 * commonest, 1), 20))
    parts.append(dot("dot", round(300 * value, 1), 11, 5))
    parts += [words("0 %", 0, 32), words("100 %", 300, 32, "end")]
    return tag("svg", *parts, class_="interval", viewBox="-6 0 312 36", aria_hidden="true")


def intervals(
    title: str,
    caption: str,
    rows: Sequence[tuple[str, float, tuple[float, float] | None, str]],
) -> Html:
    """A figure of shares with their intervals, one under the other: (name, share, interval, style).

    The axis holds all intervals, at least ten points of them, and says so by its ticks.
    """
    seen = [end for _, value, ends, _ in rows for end in (value, *(ends or ()))]
    low, high = min(seen), max(seen)
    step = next(s for s in (0.02, 0.05, 0.1, 0.25) if s == 0.25 or high - low <= 4 * s)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    while (last - first) * step < 0.0999:
        first, last = max(first - 1, 0), min(last + 1, round(1 / step))
    ticks = [(n * step, f"{100 * n * step:.0f} %") for n in range(first, last + 1)]
    axis, frame = Axis("", first * step, last * step, ticks), Frame()
    bottom = 10 + 26 * len(rows)
    parts: list[Html] = []
    for value, text in axis.ticks:
        parts.append(rule("grid", frame.x(axis, value), 6, frame.x(axis, value), bottom))
        parts.append(words(text, frame.x(axis, value), bottom + 16, "middle"))
    for place, (name, value, ends, style) in enumerate(rows):
        y = 22 + 26 * place
        if ends:
            width = max(frame.x(axis, ends[1]) - frame.x(axis, ends[0]), 1)
            parts.append(rect(f"band {style}", frame.x(axis, ends[0]), y - 6, width, 12))
        parts.append(dot(f"dot {style}", frame.x(axis, value), y, 4))
        parts.append(words(name, frame.right + 7, y + 4, style="name"))
    svg = tag(
        "svg", *parts, class_="plot", viewBox=f"0 0 {WIDTH} {bottom + 22}", role="img",
        aria_label=f"{title}. {caption}",
    )  # fmt: skip
    return tag("figure", tag("h3", title), svg, tag("figcaption", caption))
