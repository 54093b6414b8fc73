"""Maps over a model's input as pictures: back to original pixels, in colour, with a caption."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from skipway import images
from skipway.drawing import INK, PAPER, QUIET, cut, lettering
from skipway.images import Geometry

Array = npt.NDArray[Any]

# Where a map lies


def sampled(values: Array, y: Array, x: Array) -> Array:
    """Bilinear values, float32 [len(y), len(x)], of a grid [h, w] of cells with sides of 1.

    y and x are continuous, 0 the outer edge of the first cell; beyond the centres of the outermost
    cells their values go on.
    """

    def weights(at: Array, size: int) -> tuple[Array, Array, Array]:
        at = np.clip(np.asarray(at, np.float64) - 0.5, 0, size - 1)
        low = np.minimum(at.astype(np.int64), max(size - 2, 0))
        return low, np.minimum(low + 1, size - 1), (at - low).astype(np.float32)

    values = np.asarray(values, np.float32)
    (top, bottom, down), (left, right, along) = (
        weights(y, values.shape[0]),
        weights(x, values.shape[1]),
    )
    rows = values[top] + (values[bottom] - values[top]) * down[:, None]
    return rows[:, left] + (rows[:, right] - rows[:, left]) * along


def enlarged(cells: Array, size: tuple[int, int]) -> Array:
    """A grid [h, w] spread over `size` pixels: float32 [*size], bilinear."""
    return sampled(
        cells, *(_centres(n) * cell / n for n, cell in zip(size, cells.shape, strict=True))
    )


def over_original(heat: Array, geometry: Geometry, size: tuple[int, int] | None = None) -> Array:
    """A map [h, w] over the model's input, over the original image: float32 [H, W].

    NaN where the model did not see the image, because it was cut off. `size`: the original resized
    to that; None is its own.
    """
    height, width = size or geometry.size
    y, x = (
        _centres(n) * whole / n for n, whole in zip((height, width), geometry.size, strict=True)
    )
    y, x = y * geometry.scale[1] + geometry.offset[1], x * geometry.scale[0] + geometry.offset[0]
    found = sampled(heat, y, x)
    found[(y < 0) | (y > heat.shape[0])] = np.nan
    found[:, (x < 0) | (x > heat.shape[1])] = np.nan
    return found


def peak(heat: Array, geometry: Geometry) -> tuple[int, int] | None:
    """The original pixel (x, y) where a map [h, w] over the model's input is highest.

    None where it is nowhere above 0 on the image. Of a flat top, the middle.
    """
    y, x = _centres(heat.shape[0]), _centres(heat.shape[1])
    (right, bottom), scale, offset = geometry.size[::-1], geometry.scale, geometry.offset
    rows = (y > offset[1]) & (y < bottom * scale[1] + offset[1])  # the rest is a letterbox's border
    columns = (x > offset[0]) & (x < right * scale[0] + offset[0])
    seen = np.where(rows[:, None] & columns, heat, -np.inf)
    top = seen.max()
    if not top > 0:
        return None
    flat = np.argwhere(seen >= top - 1e-6 * abs(top))
    row, column = flat[((flat - flat.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    at = geometry.to_original(np.array([x[column], y[row]]))
    return min(int(at[0]), right - 1), min(int(at[1]), bottom - 1)


def _centres(n: int) -> Array:
    return np.arange(n) + 0.5


# In colour


@functools.cache
def colours() -> Array:
    """From weak to strong, uint8 [256, 3]: dark violet through red to pale yellow.

    In OKLab (Ottosson 2020) lightness rises evenly, so that the order is seen without colour
    vision and in grey print too, while the hue turns evenly.
    """
    t = np.linspace(0, 1, 256)
    lightness, hue, chroma = 0.30 + 0.65 * t, np.radians(290 + 175 * t), 0.165
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    lms = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(to_rgb @ lms**3, 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    table: Array = np.rint(255 * rgb.T).astype(np.uint8)
    return table


OPAQUE = 0.8
"""How much of the strongest colour covers the image."""


def overlay(image: Array, heat: Array) -> Array:
    """uint8 [H, W, 3] with the map [H, W] on it, as `over_original` gives it, on the image in grey.

    The stronger, the brighter and the more opaque, from 0 to the map's maximum; what is below 0
    is left grey. What was not seen (NaN) is dark and hatched.
    """
    seen = np.isfinite(heat)
    strength = np.where(seen, np.maximum(heat, 0), 0)
    strength = strength / (strength.max() or 1)
    grey = (image @ np.array([0.299, 0.587, 0.114], np.float32))[:, :, None]
    colour = colours()[np.rint(255 * strength).astype(np.uint8)]
    cover = (OPAQUE * strength**0.75)[:, :, None].astype(np.float32)
    found = grey * (1 - cover) + colour * cover
    if not seen.all():
        height, width = heat.shape
        step = max(max(height, width) // 40, 4)
        stripe = (np.arange(height)[:, None] + np.arange(width)) % step < max(step // 4, 1)
        found = np.where(seen[:, :, None], found, grey * 0.3 + 40 * stripe[:, :, None])
    return np.rint(found).astype(np.uint8)


# As pictures

SMALL_SIDE, LARGE_SIDE = 448, 2048
"""Pixels of an image's longer side below which it is enlarged, by a whole factor and without blur,
and above which it is made smaller."""


def fitted(image: Array, smallest: int = SMALL_SIDE, largest: int = LARGE_SIDE) -> Array:
    """uint8 or uint16 [H, W, 3] as uint8, its longer side brought between the two, in pixels."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer > largest:
        size = (max(round(width * largest / longer), 1), max(round(height * largest / longer), 1))
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    factor = max(smallest // longer, 1)
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def picture(
    image: Array,
    heat: Array,
    geometry: Geometry,
    title: str,
    notes: Sequence[str],
    mark: Callable[[Array], Array] | None = None,
) -> bytes:
    """A PNG: the image [H, W, 3], beside it the image under its map, below both the caption.

    heat: [h, w] over the model's input. mark: draws on either of the two, uint8 [H', W', 3]. The
    image is in its own size, but for `SMALL_SIDE` and `LARGE_SIDE`.
    """
    shown = fitted(image)
    height, width = shown.shape[:2]
    covered = over_original(heat, geometry, (height, width))
    sides = [shown, overlay(shown, covered)]
    panels = [Image.fromarray(side if mark is None else mark(side)) for side in sides]
    beside = width <= 1.6 * height
    text = min(max((2 if beside else 1) * width // 44, 15), 72)
    gap = text // 2
    total = max(2 * width + gap if beside else width, 24 * text)
    places = (
        [((total - 2 * width - gap) // 2, 0), ((total + gap + 1) // 2, 0)]
        if beside
        else [((total - width) // 2, 0), ((total - width) // 2, height + gap)]
    )
    caption = _caption(total, text, title, notes, bool(np.nan_to_num(covered).max() > 0))
    bottom = places[1][1] + height
    page = Image.new("RGB", (total + 2 * gap, bottom + caption.height + 2 * gap), PAPER)
    for panel, (left, top) in zip(panels, places, strict=True):
        page.paste(panel, (left + gap, top + gap))
    page.paste(caption, (gap, bottom + gap))
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return buffer.getvalue()


def thumbnail(
    image: Array,
    heat: Array,
    geometry: Geometry,
    side: int = 112,
    mark: Callable[[Array], Array] | None = None,
) -> str:
    """The image [H, W, 3] under its map, as small as `images.thumbnail` makes the image alone.
    mark: as of `picture`."""
    small = fitted(image, 1, 2 * side)
    shown = overlay(small, over_original(heat, geometry, small.shape[:2]))
    return images.thumbnail(shown if mark is None else mark(shown), side)


def _caption(width: int, text: int, title: str, notes: Sequence[str], scale: bool) -> Image.Image:
    """The strip under the panels: the title, the notes, and at the right what the colours mean."""
    bar = 8 * text if scale else 0
    lines = []
    for said, size, ink in ((title, round(1.35 * text), INK), *((n, text, QUIET) for n in notes)):
        shown, letters = lettering(said, size)
        lines += [(line, letters, ink) for line in wrapped(shown, letters, width - bar - text)]
    steps = [round(1.35 * letters.size) for _, letters, _ in lines]
    strip = Image.new("RGB", (width, max(sum(steps) + text // 2, 4 * text)), PAPER)
    draw, y = ImageDraw.Draw(strip), text // 2
    for (line, letters, ink), step in zip(lines, steps, strict=True):
        draw.text((0, y), line, ink, letters)
        y += step
    if scale:
        left, top = width - bar, round(0.75 * text)
        ramp = np.broadcast_to(colours()[np.linspace(0, 255, bar).astype(int)], (text, bar, 3))
        strip.paste(Image.fromarray(np.ascontiguousarray(ramp)), (left, top))
        for said, x, anchor in (("weak", left, "la"), ("strong", width, "ra")):
            shown, letters = lettering(said, text)
            draw.text((x, top + round(1.2 * text)), shown, QUIET, letters, anchor)
    return strip


def wrapped(said: str, letters: ImageFont.FreeTypeFont, width: int) -> Iterator[str]:
    """Lines of at most `width` pixels; a word that is longer by itself is cut."""
    line = ""
    for word in said.split():
        longer = f"{line} {word}".lstrip()
        if line and letters.getlength(longer) > width:
            yield line
            longer = word
        line = cut(longer, letters, width)
    yield line
