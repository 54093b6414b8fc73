"""The block X-ray in a table and as a picture: strips over the blocks from input to output."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from skipway.report.document import as_svg, document, write_document
from skipway.report.markup import Html, percent, table, tag
from skipway.report.plot import (
    LETTER,
    Axis,
    Line,
    below,
    beside,
    decades,
    dot,
    linear,
    rect,
    rule,
    shares,
    words,
)
from skipway.xray import Xray, points

HEAD = (
    "block", "accuracy without it", "costs, points", "95 % interval", "branch", "shortcut",
    "gradient", "weights' gradient",
)  # fmt: skip
LEFT, RIGHT = 48, 284
"""Of the blocks; labels stand to the right of them."""
STRIP, GAP, TOP = 100, 36, 24
"""Height of a strip, what is between two, and what is above the first."""
FOOT = 40
"""Below the last, for the names of the stages."""
BAR = 0.62
"""Of the width of a block, that its bars take."""


def rows(found: Xray) -> list[tuple[str, ...]]:
    """A row a unit, under `HEAD`."""
    return [
        (
            block.name,
            percent(block.accuracy, 2),
            points(100 * block.cost),
            " to ".join(points(100 * end) for end in block.interval),
            f"{block.branch:.3g}",
            "none" if block.shortcut is None else f"{block.shortcut:.3g}",
            f"{block.output_gradient:.2g}",
            f"{block.weight_gradient:.2g}",
        )
        for block in found.blocks
    ]


def write_picture(
    found: Xray, out: str | os.PathLike[str], title: str, lines: Sequence[str]
) -> Path:
    """Write the picture as a page with the table or, by the ending of `out`, as a drawing; the path
    is returned. lines: what was looked at, in words. Raises InputError where it cannot be written.
    """
    path = Path(out)
    if path.suffix.lower() == ".svg":
        return write_document(as_svg(picture(title, [("", found)]), found.family), path)
    said = [tag("p", line) for line in lines]
    first = [picture("Block by block", [("", found)]), *said, table(HEAD, rows(found))]
    return write_document(document(title, title, first, [], found.family), path)


def picture(title: str, found: Sequence[tuple[str, Xray]]) -> Html:
    """A figure of three strips over the blocks from input to output: norms, gradients, and the
    accuracy without each block, hanging from that of the whole net.

    found: X-rays of nets of equally many units, each with a short name to tell it by; of one alone
    the name is not shown.
    """
    blocks = found[0][1].blocks
    assert all(len(one.blocks) == len(blocks) for _, one in found), "nets of different depths"
    named = [(f"{name} " if len(found) > 1 else "", one) for name, one in found]
    strips = [make(named) for make in (_norms, _gradients, _accuracies)]
    stages = [block.name.partition(".")[0] for block in blocks]
    borders = [place for place in range(1, len(stages)) if stages[place] != stages[place - 1]]
    ends = itertools.pairwise([0, *borders, len(stages)])
    middles = [(_x((a + b - 1) / 2, len(blocks)), stages[a]) for a, b in ends]
    drawn = [
        part
        for place, strip in enumerate(strips)
        for part in strip.drawn(TOP + place * (STRIP + GAP), borders)
    ]
    bottom = TOP + len(strips) * (STRIP + GAP) - GAP
    under = words("block, from the input to the output", (LEFT + RIGHT) / 2, bottom + 33, "middle")
    longest = max(len(label) for strip in strips for label in strip.labels)
    caption = " ".join(_said(name.strip(), one) for name, one in named)
    svg = tag(
        "svg", *drawn, *below(middles, bottom + 16), under, class_="plot", role="img",
        viewBox=f"0 0 {math.ceil(RIGHT + 7 + LETTER * longest)} {bottom + FOOT}",
        aria_label=f"{title}. {caption}",
    )  # fmt: skip
    return tag("figure", tag("h3", title), svg, tag("figcaption", caption))


# Strips

Named = Sequence[tuple[str, Xray]]
"""X-rays behind what their labels begin with, "" where there is one alone."""


@dataclass(frozen=True)
class _Level:
    """A thin line across, at a value."""

    value: float
    style: str
    label: str


@dataclass(frozen=True)
class _Strip:
    """A band of the picture: an axis upwards, and what it shows of each block."""

    axis: Axis
    blocks: int
    lines: Sequence[Line]
    """By the place of a block, from 0."""
    hung: Sequence[tuple[float, Xray]] = ()
    """Nets whose blocks' costs hang from the accuracy of the whole, and how far these bars are
    moved from a block's middle, in its width."""
    levels: Sequence[_Level] = ()

    @property
    def labels(self) -> list[str]:
        return [*(line.name for line in self.lines), *(level.label for level in self.levels)]

    def drawn(self, top: float, borders: Sequence[int]) -> Iterator[Html]:
        """Title, grid and `borders` between stages, then what is shown; `top`: of the strip."""

        def y(value: float) -> float:
            return round(top + STRIP * (1 - self.axis.share(self.axis.within(value))), 1)

        yield words(self.axis.label, 0, top - 9)
        for value, text in self.axis.ticks:
            yield rule("grid", LEFT, y(value), RIGHT, y(value))
            yield words(text, LEFT - 6, y(value) + 4, "end")
        for border in borders:
            x = _x(border - 0.5, self.blocks)
            yield rule("grid", x, top, x, top + STRIP)
        radius = max(min(3.0, 60 / self.blocks), 1)
        width = BAR * (RIGHT - LEFT) / self.blocks / max(len(self.hung), 1)
        for shift, one in self.hung:
            for place, block in enumerate(one.blocks):
                x, whole, left = _x(place + shift, self.blocks), y(one.accuracy), y(block.accuracy)
                height = round(abs(left - whole), 1)
                yield rect(f"band {one.family}", x - width / 2, min(whole, left), width, height)
                low, high = (y(one.accuracy - end) for end in block.interval)
                yield rule(f"spread {one.family}", x, low, x, high)
                yield dot(f"dot {one.family}", x, left, radius)
        for level in self.levels:
            yield rule(level.style, LEFT, y(level.value), RIGHT, y(level.value))
        for line in self.lines:
            at = [(_x(place, self.blocks), y(value)) for place, value in line.points]
            path = "M" + "L".join(f"{x} {height}" for x, height in at)
            yield tag("path", class_=f"line {line.style}", d=path)
            yield from (dot(f"dot {line.style}", x, height, radius) for x, height in at)
        named = [(y(line.points[-1][1]), line.name) for line in self.lines]
        named += [(y(level.value), level.label) for level in self.levels]
        yield from beside(named, RIGHT, top + STRIP)


def _x(place: float, blocks: int) -> float:
    """The middle of the block at that place."""
    return round(LEFT + (place + 0.5) * (RIGHT - LEFT) / blocks, 1)


def _line(name: str, values: Sequence[float | None], style: str, log: bool) -> list[Line]:
    """A value of each block, joined; those that the axis cannot show are left out."""
    shown = [
        (float(place), value)
        for place, value in enumerate(values)
        if value is not None and (value > 0 or not log)
    ]
    return [Line(name, shown, style)] if shown else []


def _norms(found: Named) -> _Strip:
    lines = []
    for of, one in found:
        lines += _line(f"{of}shortcut", [b.shortcut for b in one.blocks], "middle", log=False)
        lines += _line(f"{of}F(x)", [b.branch for b in one.blocks], one.family, log=False)
    largest = max(value for line in lines for _, value in line.points)
    axis = linear("RMS of branch F(x) and of shortcut, as they are added", largest)
    return _Strip(axis, len(found[0][1].blocks), lines)


def _gradients(found: Named) -> _Strip:
    lines, what = [], "RMS of the gradient of the loss with respect to the output"
    for of, one in found:
        if not of:
            what = "gradient of the loss: output's RMS, weights' L2 norm"
            lines += _line("weights", [b.weight_gradient for b in one.blocks], "middle", log=True)
        outputs = [b.output_gradient for b in one.blocks]
        lines += _line(of.strip() or "output", outputs, one.family, log=True)
    axis = decades(what, [value for line in lines for _, value in line.points] or [1.0])
    return _Strip(axis, len(found[0][1].blocks), lines)


def _accuracies(found: Named) -> _Strip:
    chance = found[0][1].chance
    levels = [_Level(chance, "mark", f"chance {100 * chance:.3g} %")]
    levels += [
        _Level(one.accuracy, f"spread {one.family}", f"{of or 'whole '}{percent(one.accuracy)}")
        for of, one in found
    ]
    shifts = [BAR * ((place + 0.5) / len(found) - 0.5) for place in range(len(found))]
    hung = list(zip(shifts, (one for _, one in found), strict=True))
    axis = shares("accuracy without the block, hanging from the whole net's")
    return _Strip(axis, len(found[0][1].blocks), [], hung, levels)


def _said(name: str, one: Xray) -> str:
    """What deleting a block costs, for the caption."""
    worst = max(one.blocks, key=lambda block: block.cost)
    said = f"{one.summary}; {worst.name} costs most" + (f"; {one.caveat}" if one.caveat else "")
    return f"{name}: {said}." if name else f"{said[0].upper()}{said[1:]}."
