"""What was found in an image, drawn on it: boxes, masks, class maps and labels that can be read at
any size.

Pillow and NumPy only. Lines and letters grow with the picture, every label stays inside of it and
keeps off the other labels where there is room, and letters have a contrast of 4.5 at least.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from skipway.errors import InputError, harmless

Array = npt.NDArray[Any]
Colour = tuple[int, int, int]

# Colours

OKABE_ITO: tuple[Colour, ...] = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233),
    (240, 228, 66),
)  # fmt: skip
"""Blue, vermillion, green, purple, orange, sky blue, yellow: told apart without colour vision too
(Okabe and Ito 2002)."""
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
PAPER, INK, QUIET = WHITE, (27, 31, 36), (87, 96, 106)


def colour(index: int) -> Colour:
    """The colour of a class, always the same for an index: Okabe-Ito, then `_distinct`."""
    if 0 <= index < len(OKABE_ITO):
        return OKABE_ITO[index]
    known = _distinct(max(64, 1 << index.bit_length()))
    red, green, blue = known[index % len(known)].tolist()
    return red, green, blue


def palette(classes: int) -> Array:
    """`colour` of each class, uint8 [classes, 3]: of an indexed PNG too."""
    return np.array([colour(k) for k in range(classes)], np.uint8).reshape(-1, 3)


@functools.cache
def _distinct(most: int) -> Array:
    """Colours in an order in which each is as far as can be from all before, uint8 [n, 3], `most`
    or as many as there are: Okabe-Ito, then those of a grid that are not grey and neither dark nor
    bright.

    Distances are those of Oklab (Ottosson 2020), in whole numbers, so that the order is the same
    everywhere.
    """
    levels = np.arange(0, 256, 17)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(grid)
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    kept = (lightness >= 350) & (lightness <= 930) & (chroma >= 50)
    grid, lab = grid[kept], lab[kept]
    found = [*OKABE_ITO]
    away = np.min([((lab - _oklab(np.array(c))) ** 2).sum(axis=1) for c in OKABE_ITO], axis=0)
    while len(found) < most and away.any():
        furthest = int(away.argmax())
        found.append(tuple(grid[furthest]))
        away = np.minimum(away, ((lab - lab[furthest]) ** 2).sum(axis=1))
    return np.array(found, np.uint8)


def _oklab(rgb: Array) -> Array:
    """sRGB [..., 3], 0 to 255, in thousandths of Oklab, int64 [..., 3]: lightness and two axes of
    colour, in which equal distances look about equal."""
    linear = _linear(rgb)
    cones = np.cbrt(linear @ np.array(
        [[0.4122214708, 0.2119034982, 0.0883024619],
         [0.5363325363, 0.6806995451, 0.2817188376],
         [0.0514459929, 0.1073969566, 0.6299787005]]
    ))  # fmt: skip
    lab = cones @ np.array(
        [[0.2104542553, 1.9779984951, 0.0259040371],
         [0.7936177850, -2.4285922050, 0.7827717662],
         [-0.0040720468, 0.4505937099, -0.8086757660]]
    )  # fmt: skip
    thousandths: Array = np.rint(1000 * lab).astype(np.int64)
    return thousandths


def _linear(rgb: Array) -> Array:
    """sRGB, 0 to 255, as light, 0 to 1 (WCAG 2.1)."""
    share = np.asarray(rgb, np.float64) / 255
    light: Array = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return light


def luminance(of: Colour) -> float:
    """Relative luminance, 0 to 1, of an sRGB colour (WCAG 2.1)."""
    return float(_linear(np.array(of)) @ [0.2126, 0.7152, 0.0722])


def ink_on(plate: Colour) -> Colour:
    """Black or white, whichever has the larger contrast: 4.58 at least, whatever the plate."""
    return BLACK if luminance(plate) > 0.179 else WHITE


# Letters

FALLBACKS = ("DejaVuSans.ttf", "Arial Unicode.ttf", "segoeui.ttf", "NotoSansCJK-Regular.ttc")
"""Fonts of the system, for text with characters that Pillow's own lacks."""
LONGEST = 200
"""Characters of a text that are looked at."""


@functools.cache
def font(size: int, name: str = "") -> ImageFont.FreeTypeFont | None:
    """A font of the system by its file, Pillow's own without; None where it is not there."""
    try:
        found = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None
    return found if isinstance(found, ImageFont.FreeTypeFont) else None


@functools.cache
def _known(char: str, name: str) -> bool:
    """Whether the font of that name is there and has the character."""
    found = font(16, name)
    if found is None or char.isascii():
        return found is not None
    return bytes(found.getmask(char)) != bytes(found.getmask("\uffff"))


@functools.lru_cache(4096)
def lettering(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text, harmless, and the font that has most of its characters; those that it lacks become
    escapes. Raises InputError where Pillow was built without FreeType."""
    said = harmless(text[:LONGEST])
    name, lacking = "", {char for char in said if not _known(char, "")}
    for other in FALLBACKS if lacking else ():
        if len(rest := {char for char in said if not _known(char, other)}) < len(lacking):
            name, lacking = other, rest
    letters = font(size, name)
    if letters is None:
        raise InputError("labels on images need FreeType, which this build of Pillow lacks")
    escaped = (
        char.encode("unicode_escape").decode("ascii") if char in lacking else char for char in said
    )
    return "".join(escaped), letters


def cut(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """The text, its end replaced by … where it is wider than the room in pixels; "" where not even
    two characters fit."""
    if font.getlength(text) <= room:
        return text
    kept = len(text) - 1
    while kept > 1 and font.getlength(f"{text[:kept].rstrip()}…") > room:
        kept -= 1
    return f"{text[:kept].rstrip()}…" if kept > 1 else ""


# Where labels stand

FURTHER = 0.04
"""Share of an object that a label may hide rather than stand at the next place of its own."""
SPARSE = 0.1
"""Share of the picture that labels cover at most where not all can stand."""


def placed(
    sizes: Array, boxes: Array, frame: tuple[int, int], needed: Array | None = None
) -> tuple[Array, Array]:
    """Corners (x, y) [n, 2] of labels with these widths and heights [n, 2], each at its box [n, 4],
    and which of them stand, bool [n].

    Those before have the choice. A label stays inside the frame (width, height), which it must fit
    into, keeps off the other labels where a place at its box lets it, and hides little of any
    object. needed: bool [n], labels that stand in any case, the others only where they can keep to
    that and `SPARSE` is not reached; None is all.
    """
    room = SPARSE * frame[0] * frame[1]
    sizes, boxes = np.asarray(sizes, np.int64), np.asarray(boxes, np.int64)
    areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1)
    taken = np.zeros((len(sizes), 4), np.int64)
    stands = np.ones(len(sizes), bool)
    for i, (size, box) in enumerate(zip(sizes, boxes, strict=True)):
        corners = np.clip(_candidates(size, box), 0, np.maximum(np.array(frame) - size, 0))
        plates = np.concatenate([corners, corners + size], axis=1)
        hidden = (_overlap(plates, boxes) / areas).sum(axis=1)  # of its own object too
        worse = FURTHER * np.arange(len(plates)) + hidden
        clash = _overlap(plates, taken[:i]).sum(axis=1)
        best = np.lexsort((worse, clash))[0]
        apart = clash[best] == 0 and hidden[best] <= FURTHER and size.prod() <= room
        stands[i] = needed is None or needed[i] or apart
        if stands[i]:
            taken[i] = plates[best]
            room -= size.prod()
    return taken[:, :2], stands


def _candidates(size: Array, box: Array) -> Array:
    """Corners of a label at its box, the usual places first."""
    (w, h), (x1, y1, x2, y2) = size.tolist(), box.tolist()
    right, above, below = x2 - w, y1 - h, y2 - h
    middle, centre = (x1 + x2 - w) // 2, (y1 + y2 - h) // 2
    outside = [(x1, above), (right, above), (x1, y2), (right, y2), (middle, above), (middle, y2)]
    inside = [(x1, y1), (right, y1), (x1, below), (right, below)]
    aside = [(x2, y1), (x1 - w, y1), (x2, below), (x1 - w, below), (x2, centre), (x1 - w, centre)]
    corners = [(x2, above), (x1 - w, above), (x2, y2), (x1 - w, y2)]
    return np.array([*outside, *inside, *aside, *corners, (middle, centre)], np.int64)


def _overlap(a: Array, b: Array) -> Array:
    """Pixels that boxes [n, 4] and [m, 4] share: [n, m]."""
    sides = (
        np.minimum(a[:, None, axis + 2], b[None, :, axis + 2])
        - np.maximum(a[:, None, axis], b[None, :, axis])
        for axis in (0, 1)
    )
    width, height = (np.maximum(side, 0) for side in sides)
    shared: Array = width * height
    return shared


# On the image

ENLARGED = 640
"""Pixels that the longer side of a small image is brought to, about: by a whole factor."""
LEAST_LETTERS = 11
"""Pixels of the smallest letters."""
CROWDED = 0.2
"""Share of the picture that labels may cover before their letters become smaller."""
COVER = 0.4
"""How much of its colour covers a mask's pixels."""


class Masks(Protocol):
    """Of each object its mask, bool [H, W]: an array [n, H, W], or what makes one where it is asked
    for, as together those of a large photograph take gigabytes."""

    def __getitem__(self, i: int, /) -> Array: ...


def drawn(
    image: Array,
    boxes: Array,
    texts: Sequence[str],
    colours: Sequence[int],
    masks: Masks | None = None,
    dashed: Array | None = None,
    side: int | None = None,
) -> Array:
    """The image with its objects on it: uint8 [H', W', 3].

    image: uint8 or uint16 [H, W, 1 | 3]. boxes: [n, 4], x1, y1, x2, y2 in pixels of the image; one
    that is not finite or lies outside is left out, with all that belongs to it. texts: a label
    each, "" for none. colours: an index of a class each, see `colour`. masks: as `Masks`.
    dashed: bool [n]. side: pixels of the longer side;
    None leaves the image as it is, but for small ones, which are enlarged to about `ENLARGED`."""
    picture, ratio = _resized(_as_rgb(image), side)
    frame = picture.size
    scaled = np.asarray(boxes, np.float64).reshape(-1, 4) * np.array(ratio * 2)
    shown = [i for i, box in enumerate(scaled) if _visible(box, frame)]
    order = sorted(shown, key=lambda i: -_area(scaled[i]))  # small ones on top of large ones
    line = max(2, round(max(frame) / 320))
    if masks is not None:
        canvas = np.array(picture)
        for i in order:
            _cover(canvas, masks[i], colour(colours[i]), line)
        picture = Image.fromarray(canvas)
        line = max(1, line // 2)  # the outline of the mask tells more
    draw = ImageDraw.Draw(picture)
    outlines = {i: _outline(scaled[i], frame, line) for i in order}
    for i in order:
        _draw_box(draw, outlines[i], colour(colours[i]), line, dashed is not None and dashed[i])
    labelled = [i for i in shown if texts[i]]
    _draw_labels(
        draw,
        [texts[i] for i in labelled],
        np.array([outlines[i] for i in labelled], np.int64).reshape(-1, 4),
        [colour(colours[i]) for i in labelled],
        frame,
    )
    return np.asarray(picture)


def _as_rgb(image: Array) -> Image.Image:
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2 or image.shape[2] == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return Image.fromarray(np.ascontiguousarray(image))


def _resized(picture: Image.Image, side: int | None) -> tuple[Image.Image, tuple[float, float]]:
    """The picture at that side, and by what its width and height grew."""
    (width, height), longer = picture.size, max(picture.size)
    ratio = max(round(ENLARGED / longer), 1) if side is None else side / longer
    size = max(round(width * ratio), 1), max(round(height * ratio), 1)
    sampling = Image.Resampling.NEAREST if ratio > 2 else Image.Resampling.LANCZOS
    return picture.resize(size, sampling), (size[0] / width, size[1] / height)


def _visible(box: Array, frame: tuple[int, int]) -> bool:
    if not np.isfinite(box).all():
        return False
    (left, right), (top, bottom) = sorted(box[0::2]), sorted(box[1::2])
    return bool(right > 0 and bottom > 0 and left < frame[0] and top < frame[1])


def _area(box: Array) -> float:
    return float(abs((box[2] - box[0]) * (box[3] - box[1])))


def _outline(box: Array, frame: tuple[int, int], line: int) -> tuple[int, int, int, int]:
    """The pixels, first and past the last, of a line around the box; inside the frame.

    It stands outside of the box, whose object it must not hide.
    """
    (left, right), (top, bottom) = sorted(box[0::2]), sorted(box[1::2])
    width, height = frame
    x1, y1 = max(math.floor(left) - line, 0), max(math.floor(top) - line, 0)
    x2, y2 = min(math.ceil(right) + line, width), min(math.ceil(bottom) + line, height)
    return x1, y1, x2, y2


def _draw_box(
    draw: ImageDraw.ImageDraw,
    outline: tuple[int, int, int, int],
    own: Colour,
    line: int,
    dashed: bool,
) -> None:
    """The line in the class's colour, between two thin ones that are seen where that is not; the
    finest line alone."""
    x1, y1, x2, y2 = outline
    thin = max(line // 3, 1)
    if line > 1:
        whole = (x1 - thin, y1 - thin, x2 - 1 + thin, y2 - 1 + thin)
        draw.rectangle(whole, outline=ink_on(own), width=line + 2 * thin)
    inner = (x1, y1, x2 - 1, y2 - 1)
    if not dashed:
        draw.rectangle(inner, outline=own, width=line)
        return
    dash = 4 * line
    for x in range(x1, x2, 2 * dash):
        for y in (y1, max(y2 - line, y1)):
            draw.rectangle((x, y, min(x + dash, x2) - 1, y + line - 1), own)
    for y in range(y1, y2, 2 * dash):
        for x in (x1, max(x2 - line, x1)):
            draw.rectangle((x, y, x + line - 1, min(y + dash, y2) - 1), own)


def _cover(canvas: Array, mask: Array, own: Colour, line: int) -> None:
    """Lay the mask [H, W] over the canvas [H', W', 3], half transparent, its edge opaque."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return
    ratios = canvas.shape[0] / mask.shape[0], canvas.shape[1] / mask.shape[1]
    spans = []
    for places, ratio, size in zip((rows, columns), ratios, canvas.shape[:2], strict=True):
        low, high = math.floor(places[0] * ratio), math.ceil((places[-1] + 1) * ratio)
        spans.append(np.arange(low, min(high, size)))
    source = [
        np.minimum(((span + 0.5) / ratio).astype(np.int64), size - 1)
        for span, ratio, size in zip(spans, ratios, mask.shape, strict=True)
    ]
    inside = mask[np.ix_(*source)]
    edge = inside & ~_eroded(inside, line)
    part = canvas[spans[0][0] : spans[0][-1] + 1, spans[1][0] : spans[1][-1] + 1]
    mixed = np.rint(part[inside] * (1 - COVER) + np.array(own) * COVER)
    part[inside] = mixed.astype(np.uint8)
    part[edge] = own


def _eroded(mask: Array, by: int) -> Array:
    """Pixels whose square of 2 `by` + 1 is all mask; beyond the border nothing is."""
    size = 2 * by + 1
    sums = np.zeros((mask.shape[0] + size, mask.shape[1] + size), np.int64)
    sums[1:, 1:] = np.pad(mask, by).cumsum(axis=0).cumsum(axis=1)
    found = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    whole: Array = found == size * size
    return whole


def _draw_labels(
    draw: ImageDraw.ImageDraw,
    texts: Sequence[str],
    outlines: Array,
    plates: Sequence[Colour],
    frame: tuple[int, int],
) -> None:
    """Each text on a plate of its colour; in letters that grow with the picture, and are smaller
    where there are many. Where the smallest are still too many, one of each colour, and of the rest
    those that hide nothing."""
    size = _letter_size(frame)
    labels = [_label(text, size, frame) for text in texts]
    share = sum(w * h for _, _, (w, h) in labels) / (frame[0] * frame[1])
    if share > CROWDED:
        size = max(round(size * math.sqrt(CROWDED / share)), LEAST_LETTERS)
        labels = [_label(text, size, frame) for text in texts]
        share = sum(w * h for _, _, (w, h) in labels) / (frame[0] * frame[1])
    fit = [i for i, (text, _, (_, h)) in enumerate(labels) if text and h <= frame[1]]
    sizes = np.array([labels[i][2] for i in fit], np.int64).reshape(-1, 2)
    of = [plates[i] for i in fit]
    first = np.array([of.index(plate) == n for n, plate in enumerate(of)], bool)
    corners, stands = placed(sizes, outlines[fit], frame, first if share > CROWDED else None)
    rows = list(zip(fit, corners.tolist(), stands.tolist(), strict=True))
    for i, (x, y), there in reversed(rows):
        if there:
            _draw_label(draw, (x, y), labels[i], plates[i], size)


def _draw_label(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], label: Label, plate: Colour, size: int
) -> None:
    """The text of that size on its plate, whose upper left corner is given."""
    (x, y), (text, letters, (w, h)) = corner, label
    draw.rectangle((x, y, x + w - 1, y + h - 1), plate)
    base = y + (h + letters.getmetrics()[0] - letters.getmetrics()[1]) // 2
    draw.text((x + _pad(size), base), text, ink_on(plate), letters, anchor="ls")


def _letter_size(frame: tuple[int, int]) -> int:
    """Pixels of the letters on a picture of that width and height."""
    return max(round(max(frame) / 52), LEAST_LETTERS + 1)


def _pad(size: int) -> int:
    return max(size // 4, 2)


Label = tuple[str, ImageFont.FreeTypeFont, tuple[int, int]]
"""A text, its font, and the width and height of its plate."""


def _label(text: str, size: int, frame: tuple[int, int]) -> Label:
    """The text as it fits into the frame."""
    said, letters = lettering(text, size)
    said = cut(said, letters, frame[0] - 2 * _pad(size))
    width = math.ceil(letters.getlength(said)) + 2 * _pad(size)
    return said, letters, (min(width, frame[0]), size + _pad(size))


# Class maps

PAINT = 0.6
"""How much of its colour covers a pixel of a class."""
_NO_CLASS = 255
_LINED = 160
"""Pixels of the longer side from which there is room for lines between regions and in them."""
_HATCHES = 48
"""Lines along the longer side of a picture where its pixels have no class."""
_CELLS = 240
"""Cells along the longer side in which a place for a name is looked for."""
_SPACIOUS = (6.0, 4.5, 3.4, 2.6, 2.0, 1.5, 1.15)
"""Times the sides of its plate that the place of a name may have, the most spacious first."""
_FILLED = 0.9
"""Share of such a place that the region must fill."""
_ANEW = 0.4
"""Share of the longer side from which on a name stands again, where something else is between."""
_LOOKED_AT = 400
"""Places that are weighed at a time."""


def painted(image: Array, labels: Array, classes: Sequence[str], side: int | None = None) -> Array:
    """The image under its class map, of which it keeps the light but not the hue: uint8
    [H', W', 3].

    image: uint8 or uint16 [H, W, 1 | 3]. labels: uint8 [H, W], positions in the classes; what is
    none, as `segmentations.IGNORED`, leaves the image as it is, hatched. classes: their names, 255
    at most; one stands wherever its region has the room, "" nowhere. Colours are those of
    `palette`. side: as of `drawn`.
    """
    picture, _ = _resized(_as_rgb(image), side)
    frame, longer = picture.size, max(picture.size)
    labels = np.where(labels < len(classes), labels, np.uint8(_NO_CLASS))
    shown = _sampled(labels, (frame[1], frame[0]))
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(classes)] = palette(len(classes))
    # grey, neither dark nor bright: a class looks the same everywhere
    grey = picture.convert("L").point([64 + level // 2 for level in range(256)])
    mixed = Image.blend(grey.convert("RGB"), Image.fromarray(colours[shown]), PAINT)
    picture.paste(mixed, mask=Image.fromarray(shown != _NO_CLASS))
    if longer >= _LINED:
        canvas, thin = np.array(picture), max(round(longer / 900), 1)
        _hatch(canvas, shown == _NO_CLASS, thin)
        _trace(canvas, shown, thin)
        picture = Image.fromarray(canvas)
    draw, size = ImageDraw.Draw(picture), _letter_size(frame)
    cells = _sampled(labels, [max(round(n * _CELLS / longer), 1) for n in shown.shape])
    taken = np.zeros((0, 4), np.int64)
    for k in np.unique(cells[cells != _NO_CLASS]).tolist():
        label = _label(classes[k], size, frame)
        for corner in _rooms(cells == k, label[2], frame) if label[0] else ():
            plate = np.array([[*np.subtract(corner, 1), *np.add(corner, label[2])]])
            if _overlap(plate, taken).any():  # a name of a region beside, as narrow as this one
                continue
            taken = np.concatenate([taken, plate])
            _draw_label(draw, corner, label, colour(k), size)
    return np.asarray(picture)


def _sampled(labels: Array, size: Sequence[int]) -> Array:
    """The map [H, W] at another height and width: what is at the middle of each place."""
    rows, columns = (
        ((np.arange(n) + 0.5) * of / n).astype(np.int64)
        for n, of in zip(size, labels.shape, strict=True)
    )
    found: Array = labels[np.ix_(rows, columns)]
    return found


def _hatch(canvas: Array, where: Array, thin: int) -> None:
    """Slanting lines, light beside dark, so that they are seen on any ground."""
    if not where.any():
        return
    apart = max(max(where.shape) // _HATCHES, 6 * thin)
    y, x = np.ogrid[: where.shape[0], : where.shape[1]]
    place = (y + x) % apart
    canvas[where & (place < thin)] = WHITE
    canvas[where & (place >= thin) & (place < 2 * thin)] = INK


def _trace(canvas: Array, shown: Array, thin: int) -> None:
    """A dark line where two regions meet, on a large picture beside a light one."""
    apart = np.zeros(shown.shape, bool)
    apart[:, :-1] |= shown[:, 1:] != shown[:, :-1]
    apart[:-1] |= shown[1:] != shown[:-1]
    if max(shown.shape) >= ENLARGED:
        canvas[_grown(apart, 2 * thin)] = WHITE
    canvas[_grown(apart, thin)] = INK


def _grown(mask: Array, size: int) -> Array:
    """Each pixel of the mask as a square of that side, to the right and below."""
    for axis in (0, 1):
        whole = mask.copy()
        for step in range(1, size):
            np.swapaxes(whole, 0, axis)[step:] |= np.swapaxes(mask, 0, axis)[:-step]
        mask = whole
    return mask


def _rooms(inside: Array, plate: tuple[int, int], frame: tuple[int, int]) -> list[tuple[int, int]]:
    """Corners (x, y) of plates of that width and height that stand in a region.

    inside: the region in cells [h, w] of the frame (width, height).
    """
    sums = np.zeros((inside.shape[0] + 1, inside.shape[1] + 1), np.int64)
    sums[1:, 1:] = inside.cumsum(axis=0).cumsum(axis=1)
    cell = frame[0] / inside.shape[1], frame[1] / inside.shape[0]
    centres: list[Array] = []
    for times in _SPACIOUS:
        w, h = (math.ceil(times * n / of) for n, of in zip(plate, cell, strict=True))
        count = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
        free = np.argwhere(count >= _FILLED * w * h)[:, ::-1] + (w / 2, h / 2)
        free = free[:: max(math.ceil(len(free) / _LOOKED_AT), 1)]
        for centre in centres:
            free = free[_elsewhere(free, centre, inside)]
        while len(free):
            middle = ((free - free.mean(axis=0)) ** 2).sum(axis=1).argmin()
            centres.append(free[middle])
            free = free[_elsewhere(free, free[middle], inside)]
    corners = [np.rint(centre * cell - np.array(plate) / 2).astype(int) for centre in centres]
    return [(int(x), int(y)) for x, y in corners]


def _elsewhere(places: Array, centre: Array, inside: Array) -> Array:
    """Whether each place (x, y) [n, 2] is far from the centre, and another region is between:
    bool [n]."""
    way = centre + (places - centre) * np.linspace(0, 1, 32)[:, None, None]
    x, y = np.moveaxis(way.astype(np.int64), -1, 0)
    far = np.hypot(*(places - centre).T) >= _ANEW * max(inside.shape)
    elsewhere: Array = far & (inside[y, x].mean(axis=0) < _FILLED)
    return elsewhere


# Several pictures as one

GAP = 16
"""Pixels between pictures, for each 1,000 of a sheet's width; 8 at least."""


def beside(left: Array, right: Array, captions: tuple[str, str] = ("", "")) -> Array:
    """Two pictures, uint8 [H, W, 3], side by side on white, each above its caption."""
    return contact_sheet([left, right], list(captions), columns=2)


def contact_sheet(
    pictures: Sequence[Array],
    captions: Sequence[str],
    columns: int | None = None,
    side: int | None = None,
) -> Array:
    """Pictures, uint8 [H, W, 3], in rows on white, each above its caption: uint8 [H', W', 3].

    columns: None for a sheet about as wide as high. side: pixels of each picture's longer side;
    None leaves the pictures as they are. Raises InputError where there is none.
    """
    if not pictures:
        raise InputError("a contact sheet: there is no picture to be shown")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    shown = [Image.fromarray(picture) for picture in pictures]
    if side is not None:
        shown = [_resized(picture, side)[0] for picture in shown]
    width, height = (max(picture.size[axis] for picture in shown) for axis in (0, 1))
    size = max(round(columns * width / 80), 13) if columns < 3 else max(round(width / 22), 13)
    gap = max(columns * width * GAP // 1000, 8)
    line = round(1.4 * size)
    under = 2 * line if any(captions) else 0
    rows = math.ceil(len(shown) / columns)
    sheet = Image.new(
        "RGB",
        (columns * (width + gap) + gap, rows * (height + under + gap) + gap),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(shown, captions, strict=True)):
        x, y = gap + i % columns * (width + gap), gap + i // columns * (height + under + gap)
        sheet.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
        for row, said in enumerate(_lines(caption, size, width)):
            text, letters = said
            base = y + height + row * line + round(1.15 * size)
            draw.text((x, base), text, QUIET if row else INK, letters, anchor="ls")
    return np.asarray(sheet)


def _lines(text: str, size: int, room: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """At most two lines: what follows the first line break, or else what did not fit."""
    first, _, second = str(text).partition("\n")
    said, letters = lettering(first, size)
    if not second and letters.getlength(said) > room:
        words, kept = said.split(" "), 0
        while kept < len(words) and letters.getlength(" ".join(words[: kept + 1])) <= room:
            kept += 1
        if kept:
            said, second = " ".join(words[:kept]), " ".join(words[kept:])
    lines = [(cut(said, letters, room), letters)]
    if second:
        rest, letters = lettering(second, size)
        lines.append((cut(rest, letters, room), letters))
    return lines
