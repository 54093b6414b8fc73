"""Masks of objects, kept encoded: polygons, or runs along the columns as COCO's RLE has them.

COCO's RLE counts pixels down the columns of the mask, background and object by turns, background
first. As text each count is base 32 from the character 0 on, the lowest digit first, 32 added to
all digits but the last, the sign in the last; from the fourth count on it is the difference to the
count two before.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.errors import missing_part

Array = npt.NDArray[Any]

NONE, POLYGONS, RUNS = 0, 1, 2
"""What `Shapes.kind` holds."""
_DIGITS = 7
"""Of a count at most: 2**34 pixels."""
_CHARACTERS = 1 << 22
"""Of texts that are decoded at a time, so that the working memory stays below 300 MB."""
_NUMBERS = frozenset((int, float))


@dataclass(frozen=True)
class Runs:
    """A mask as run lengths down its columns, background first."""

    counts: Array
    """int64 [m], their sum height * width."""
    size: tuple[int, int]
    """Height and width."""


Shape = tuple[Array, ...] | Runs | None
"""The mask of one object: polygons (float64 [k, 2], x and y in pixels), runs, or none."""


def decoded(shapes: Sequence[Shape], height: int, width: int) -> Array:
    """Masks bool [n, height, width], equal to pycocotools' `annToMask` in every pixel.

    Polygons need pycocotools: InputError where it is not installed. Raises ValueError for an
    object without a shape, or with runs of another size.
    """
    masks = np.zeros((len(shapes), height, width), bool)
    drawn = []
    for i, shape in enumerate(shapes):
        if shape is None:
            raise ValueError(f"object {i} has no mask")
        if isinstance(shape, Runs):
            if shape.size != (height, width):
                raise ValueError(f"object {i}: a mask of {shape.size}, not {(height, width)}")
            turns = np.arange(len(shape.counts)) % 2 == 1
            masks[i] = np.repeat(turns, shape.counts).reshape(width, height).T
        else:
            drawn.append((i, shape))
    if drawn:
        try:
            from pycocotools import mask
        except ImportError as error:
            raise missing_part("masks of polygons", "detect", error) from None
        encoded = []
        for _, polygons in drawn:
            parts = mask.frPyObjects([p.ravel().tolist() for p in polygons], height, width)
            encoded.append(mask.merge(parts))
        masks[[i for i, _ in drawn]] = mask.decode(encoded).transpose(2, 0, 1)
    return masks


@dataclass(frozen=True)
class Shapes:
    """The shapes of many objects in flat arrays. `take` copies none of the outlines."""

    kind: Array
    """int8 [n]"""
    at: Array
    """int64 [n]: which group of polygons, or which runs."""
    points: Array
    """float64 [p, 2]"""
    polygon_ends: Array
    """int64 [polygons + 1], in points."""
    group_ends: Array
    """int64 [groups + 1], in polygons; no group is empty."""
    runs: Array
    """uint32 [r]"""
    run_ends: Array
    """int64 [masks + 1], in runs."""
    run_sizes: Array
    """int64 [masks, 2]: height and width."""

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, i: int) -> Shape:
        at = int(self.at[i])
        if self.kind[i] == POLYGONS:
            low, high = self.group_ends[at : at + 2]
            ends = itertools.pairwise(self.polygon_ends[low : high + 1])
            return tuple(self.points[a:b] for a, b in ends)
        if self.kind[i] == RUNS:
            counts = self.runs[self.run_ends[at] : self.run_ends[at + 1]].astype(np.int64)
            height, width = self.run_sizes[at].tolist()
            return Runs(counts, (height, width))
        return None

    def take(self, rows: Array) -> Shapes:
        return replace(self, kind=self.kind[rows], at=self.at[rows])

    def scaled(self, scale: Array) -> Shapes:
        """Polygons times float64 [n, 2], x and y, of the object that each belongs to."""
        drawn = self.kind == POLYGONS
        by_group = np.ones((len(self.group_ends) - 1, 2))
        by_group[self.at[drawn]] = scale[drawn]
        by_polygon = np.repeat(by_group, np.diff(self.group_ends), axis=0)
        factors = np.repeat(by_polygon, np.diff(self.polygon_ends), axis=0)
        return replace(self, points=self.points * factors)

    def areas(self) -> Array:
        """Pixels float64 [n]: counted for runs, by the shoelace formula for polygons, else NaN."""
        found = np.full(len(self), np.nan)
        x, y = self.points.T
        following = np.arange(1, len(x) + 1)
        following[self.polygon_ends[1:] - 1] = self.polygon_ends[:-1]
        with np.errstate(over="ignore", invalid="ignore"):
            twice = segment_sums(x * y[following] - x[following] * y, self.polygon_ends)
            drawn = segment_sums(np.abs(twice) / 2, self.group_ends)
        is_odd = positions(self.run_ends) % 2 == 1
        counted = segment_sums(np.where(is_odd, self.runs, 0), self.run_ends)
        for kind, areas in ((POLYGONS, drawn), (RUNS, counted)):
            found[self.kind == kind] = areas[self.at[self.kind == kind]]
        return found

    def extents(self) -> Array:
        """x1, y1, x2, y2 of the polygons of each object: float64 [n, 4], NaN without polygons."""
        found = np.full((len(self), 4), np.nan)
        drawn = self.kind == POLYGONS
        if drawn.any():
            starts = self.polygon_ends[self.group_ends[:-1]]
            low, high = (f.reduceat(self.points, starts) for f in (np.minimum, np.maximum))
            found[drawn] = np.concatenate([low, high], axis=1)[self.at[drawn]]
        return found


class ShapeList:
    """Shapes as they are read, one for each object."""

    def __init__(self) -> None:
        self.kind, self.at = array("b"), array("q")
        self.points, self.polygons, self.groups = array("d"), array("q", [0]), array("q", [0])
        self.texts, self.text_ends, self.text_sizes = bytearray(), array("q", [0]), array("q")
        self.counts, self.count_ends, self.count_sizes = array("q"), array("q", [0]), array("q")
        self.plain = array("q")
        """Objects whose runs came as numbers: these follow those that came as text."""
        self.rows = array("q")
        """Objects whose runs came as text."""

    def nothing(self) -> None:
        self.kind.append(NONE)
        self.at.append(0)

    def add(self, shape: object) -> str | None:
        """Keep one shape as COCO writes it: what is wrong with it, None where nothing is."""
        wrong = "no mask" if shape is None or shape == [] else self._kept(shape)
        if wrong:
            self.nothing()
        return wrong

    def _kept(self, shape: object) -> str | None:
        if isinstance(shape, list):
            return self._polygons(shape)
        if not isinstance(shape, dict):
            return "a mask that is neither polygons nor RLE"
        size, counts = shape.get("size"), shape.get("counts")
        if type(size) is not list or len(size) != 2 or any(type(s) is not int for s in size):
            return "RLE without a size of two whole numbers"
        if not all(0 < s < 1 << 31 for s in size):
            return "RLE with a size that no image has"
        row = len(self.kind)
        if isinstance(counts, str):
            if not counts.isascii():
                return "broken RLE: characters that it cannot have"
            self.texts += counts.encode()
            self.text_ends.append(len(self.texts))
            self.text_sizes.extend(size)
            self.rows.append(row)
        elif isinstance(counts, list):
            if any(type(c) is not int or not 0 <= c < 1 << 32 for c in counts):
                return "broken RLE: counts that are no whole numbers from 0 on"
            self.counts.extend(counts)
            self.count_ends.append(len(self.counts))
            self.count_sizes.extend(size)
            self.plain.append(row)
        else:
            return "RLE without counts"
        self.kind.append(RUNS)
        self.at.append(0)  # known in the end
        return None

    def _polygons(self, polygons: list[Any]) -> str | None:
        for polygon in polygons:
            if type(polygon) is not list:
                return "polygons that are not lists of numbers"
            if not _NUMBERS.issuperset(map(type, polygon)):
                return "a polygon with something else than numbers"
            if len(polygon) < 6:
                return f"a polygon of {len(polygon)} numbers, fewer than 6"
            if len(polygon) % 2:
                return f"a polygon of {len(polygon)} numbers, an odd count"
        before = len(self.points), len(self.polygons)
        try:
            for polygon in polygons:
                self.points.extend(polygon)
                self.polygons.append(len(self.points) // 2)
        except OverflowError:
            del self.points[before[0] :], self.polygons[before[1] :]
            return "a polygon with a number that is too large"
        self.kind.append(POLYGONS)
        self.at.append(len(self.groups) - 1)
        self.groups.append(len(self.polygons) - 1)
        return None

    def finish(self) -> tuple[Shapes, Array]:
        """All of them, and which have broken runs, bool [n]."""
        kind, at = _int(self.kind, np.int8), _int(self.at)
        rows = np.concatenate([_int(self.rows), _int(self.plain)])
        text = np.frombuffer(bytes(self.texts), np.uint8)
        ends = _int(self.text_ends)
        parts = [decode_texts(text[a:b], e) for a, b, e in _blocks(ends)]
        counts_ends = _int(self.count_ends)
        parts.append((_int(self.counts), counts_ends, np.zeros(len(counts_ends) - 1, bool)))
        counts = np.concatenate([p[0] for p in parts])
        run_ends = np.concatenate([[0], *(np.diff(p[1]) for p in parts)]).cumsum()
        sizes = np.concatenate([_int(self.text_sizes), _int(self.count_sizes)]).reshape(-1, 2)
        wrong = np.concatenate([p[2] for p in parts])
        wrong |= segment_sums(counts, run_ends) != sizes.prod(axis=1)
        at[rows] = np.arange(len(rows))
        broken = np.zeros(len(kind), bool)
        broken[rows] = wrong
        points = np.array(self.points, np.float64).reshape(-1, 2)
        polygon_ends, group_ends = _int(self.polygons), _int(self.groups)
        runs = np.clip(counts, 0, 0xFFFFFFFF).astype(np.uint32)
        return Shapes(kind, at, points, polygon_ends, group_ends, runs, run_ends, sizes), broken


def _int(values: array[int], kind: type[np.signedinteger[Any]] = np.int64) -> Array:
    return np.array(values, kind)


def _blocks(ends: Array) -> Iterator[tuple[int, int, Array]]:
    """Texts in blocks of bounded length: where a block begins and stops, and its own ends."""
    low = 0
    while low < len(ends) - 1:
        high = int(np.searchsorted(ends, ends[low] + _CHARACTERS, side="right")) - 1
        high = max(high, low + 1)
        yield int(ends[low]), int(ends[high]), ends[low : high + 1] - ends[low]
        low = high


def decode_texts(text: Array, ends: Array) -> tuple[Array, Array, Array]:
    """Run lengths of RLE texts, uint8 [t] one after the other, of which n stop at int64 [n + 1].

    Gives counts int64 [c], where those of each text stop, int64 [n + 1], and which texts are
    broken, bool [n]: characters out of range, a last digit missing, a count too long or below 0.
    """
    digit = text.astype(np.int64) - 48
    owner = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    broken = np.zeros(len(ends) - 1, bool)
    broken[owner[(digit < 0) | (digit > 63)]] = True
    last = digit & 32 == 0
    final = ends[1:][np.diff(ends) > 0] - 1
    broken[owner[final[~last[final]]]] = True
    last[final] = True  # a text never runs into the next
    stops = np.flatnonzero(last) + 1
    starts = np.concatenate([[0], stops[:-1]]) if len(stops) else stops
    place = np.arange(len(digit)) - np.repeat(starts, stops - starts)
    broken[owner[place >= _DIGITS]] = True
    place = np.minimum(place, _DIGITS - 1)
    values = segment_sums((digit & 31) << 5 * place, np.concatenate([[0], stops]))
    values -= np.where(digit[stops - 1] & 16, 1 << 5 * (place[stops - 1] + 1), 0)
    count_ends = np.concatenate([[0], np.cumsum(segment_sums(last, ends))])
    m = positions(count_ends)
    counts = values.copy()
    for odd in (0, 1):  # two chains of differences; the first count is in neither
        chosen = (m % 2 == odd) & (m > 0)
        sums = np.concatenate([[0], np.cumsum(np.where(chosen, values, 0))])
        base = np.repeat(sums[count_ends[:-1]], np.diff(count_ends))
        counts[chosen] = (sums[1:] - base)[chosen]
    below = np.flatnonzero(counts < 0)
    broken[np.searchsorted(count_ends, below, side="right") - 1] = True
    return counts, count_ends, broken


def segment_sums(values: Array, ends: Array) -> Array:
    """Sums [n] of values between ends [n + 1]; segments may be empty."""
    kind = np.float64 if values.dtype.kind == "f" else np.int64
    if kind is np.int64:
        sums = np.concatenate([[0], np.cumsum(values, dtype=kind)])
        return sums[ends[1:]] - sums[ends[:-1]]
    found = np.zeros(len(ends) - 1, kind)  # differences of float sums would lose digits
    there = np.diff(ends) > 0
    if there.any():
        found[there] = np.add.reduceat(values, ends[:-1][there])
    return found


def positions(ends: Array) -> Array:
    """0, 1, … anew in each segment."""
    return np.arange(ends[-1]) - np.repeat(ends[:-1], np.diff(ends))
