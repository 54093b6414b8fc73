"""A contact sheet: each query with the images that were found for it, as one picture."""

from __future__ import annotations

import bisect
import contextlib
import functools
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from skipway.errors import InputError
from skipway.files import atomic_write

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Tile:
    """One picture with two lines below it: the title and, at its right, the score; the name."""

    image: Image.Image | None
    """As `fitted` makes it; None where there is none to be shown."""
    title: str
    score: str
    name: str
    """A path, shortened where it is too long."""


SIDE = 208
"""Pixels of a picture's longer side."""
_ACROSS = 5
"""Hits in a line, at most."""
_GAP, _LINE, _TEXT, _MARGIN = 12, 20, 14, 20
_TILE = SIDE + 2 * _LINE + _GAP
_TALLEST = 60_000
"""Pixels of a sheet's height, which viewers can still open."""
_PAPER, _INK, _QUIET, _FRAME, _EMPTY = "#ffffff", "#1a1a1a", "#5c5c5c", "#0072b2", "#f2f2f2"


@dataclass(frozen=True)
class Layout:
    """How many hits stand in a line, the lines of each query, and all of it in pixels."""

    across: int
    lines: tuple[int, ...]
    width: int
    height: int

    @staticmethod
    def of(counts: Sequence[int]) -> Layout:
        """For queries with so many hits. Raises InputError where it would be too tall."""
        most = max(counts, default=0)
        across = -(-most // max(-(-most // _ACROSS), 1))  # as many in each line
        lines = tuple(max(-(-n // max(across, 1)), 1) for n in counts)
        hits = 2 * _MARGIN + across * (SIDE + _GAP) - _GAP if across else 0
        height = _MARGIN + sum(n * _TILE + _MARGIN for n in lines)
        if height > _TALLEST:
            raise InputError(
                f"--sheet: {len(counts):,} images with their hits are a picture of {height:,} "
                "pixels high\nGive fewer images at a time, or a smaller --top."
            )
        return Layout(across, lines, 2 * _MARGIN + SIDE + hits, height)


def write_sheet(
    path: str | os.PathLike[str], rows: Sequence[tuple[Tile, Sequence[Tile]]]
) -> tuple[int, int]:
    """A PNG with each query, framed in blue, left of its hits; the width and height in pixels.

    Raises InputError where it would be too tall or cannot be written.
    """
    layout = Layout.of([len(hits) for _, hits in rows])
    width, height = layout.width, layout.height
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for (query, hits), n in zip(rows, layout.lines, strict=True):
        _place(sheet, draw, query, _MARGIN, top, _FRAME)
        left = 3 * _MARGIN + SIDE
        for i, hit in enumerate(hits):
            line, place = divmod(i, layout.across)
            x, y = left + place * (SIDE + _GAP), top + line * _TILE
            _place(sheet, draw, hit, x, y, None)
        top += n * _TILE + _MARGIN
        if top < height:
            draw.line((_MARGIN, top - _MARGIN, width - _MARGIN, top - _MARGIN), _EMPTY)
    with atomic_write(path) as file:
        sheet.save(file, "PNG")
    return width, height


def _place(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, x: int, y: int, frame: str | None
) -> None:
    """A tile whose picture's corner is at (x, y)."""
    draw.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), _EMPTY)
    if tile.image is None:
        draw.text((x + SIDE / 2, y + SIDE / 2), "gone or damaged", _QUIET, _font(), "mm")
        box = (x, y, SIDE, SIDE)
    else:
        w, h = tile.image.size
        box = (x + (SIDE - w) // 2, y + (SIDE - h) // 2, w, h)
        sheet.paste(tile.image, box[:2])
    if frame:
        left, upper, w, h = box
        draw.rectangle((left - 4, upper - 4, left + w + 3, upper + h + 3), None, frame, 3)
    below = y + SIDE + 6
    room = SIDE - (_font().getlength(tile.score) + _GAP if tile.score else 0)
    draw.text((x, below), _cut(tile.title, room), _INK, _font())
    draw.text((x + SIDE, below), tile.score, _QUIET, _font(), "ra")
    draw.text((x, below + _LINE), _named(tile.name), _QUIET, _font())


def fitted(image: Array) -> Image.Image:
    """uint8 or uint16 [H, W, 3] with its longer side of `SIDE`; small ones grow without blur."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    picture = Image.fromarray(image)
    ratio = SIDE / max(picture.size)
    size = (max(round(picture.width * ratio), 1), max(round(picture.height * ratio), 1))
    small = ratio > 2
    return picture.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


def _named(path: str) -> str:
    """A path, or its last part where all of it has no room below a picture."""
    whole = _cut(path, SIDE)
    return whole if "…" not in whole else _cut(path.rpartition("/")[2], SIDE)


def _cut(text: str, room: float) -> str:
    """As much of both ends as has room."""
    font = _font()
    text = "".join(char if char.isprintable() else "�" for char in text[-1000:])
    if font.getlength(text) <= room:
        return text
    lengths = range(len(text))
    kept = bisect.bisect_right(lengths, room, key=lambda n: font.getlength(_ends(text, n)))
    return _ends(text, max(kept - 1, 0))


def _ends(text: str, kept: int) -> str:
    """So many characters of a text, from both of its ends."""
    return f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"


@functools.cache
def _font() -> Any:
    """DejaVu Sans, which knows many scripts, where matplotlib brings it, else Pillow's own."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        with contextlib.suppress(OSError):
            return ImageFont.truetype(str(file), _TEXT)
    return ImageFont.load_default(_TEXT)
