"""Every mask of a split read once: what stands in it, and what of it cannot be used."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from skipway.data.pixels.layouts import Pairs
from skipway.data.pixels.legend import Legend
from skipway.data.pixels.masked import (
    UNKNOWN,
    Coding,
    MaskedSplit,
    NoMask,
    mask_image,
    packed,
)
from skipway.data.preflight import DIGEST, content_digest
from skipway.data.problems import Fault, Header, Problem, count, header_of, in_threads
from skipway.data.split import FolderReader, Names
from skipway.errors import harmless, nearest
from skipway.images import DecodeError
from skipway.segmentations import IGNORED

Array = npt.NDArray[Any]

KINDS = {
    "missing-mask": "images without a mask",
    "missing-image": "missing images",
    "image-twice": "images of the same name",
    "mask-twice": "images with two masks",
    "unreadable-image": "unreadable images",
    "unreadable-mask": "unreadable masks",
    "lossy-mask": "lossy masks",
    "mask-mode": "masks of neither whole numbers nor colours",
    "mask-size": "masks of another size than their image",
    "unknown-value": "masks with values that are no class",
    "wide-value": "masks of 16 bits with values that are no class",
    "unknown-colour": "masks with colours that are no class",
    "no-colours": "masks in colours that nothing names",
    "palette": "masks whose palette contradicts their values or other palettes",
    "unknown-class": "masks with classes that are not learned",
    "no-pixels": "masks with ignored pixels only",
    "no-images": "no image at all",
}
"""What can be wrong, and how notes count it."""

_COLOURS = 4096
"""Colours of a mask that are told apart; one with more is no drawing of classes."""
MANY = 8
"""Values that are no class, of few pixels, from which on masks look as if they had been
smoothed."""


class Drawn(NamedTuple):
    """What the pixels of a mask hold."""

    values: Array
    """int32 [v], sorted: the values in the mask, or its colours, `packed`."""
    counts: Array
    """int32 [v]: pixels of each."""
    coloured: bool
    palette: Array | None
    """int32 [v]: the colour of each value, `packed`, where the mask has a palette; -1 for values
    beyond its end."""

    @property
    def grey(self) -> Array | None:
        """int32 [v]: the values of the mask, None where it has colours that are not grey."""
        if not self.coloured:
            return self.values
        level = self.values & 255
        return level if np.array_equal(self.values, level * 0x010101) else None


class Look(NamedTuple):
    """What an image's header and its mask hold."""

    header: Header
    digest: bytes
    """Of the mask's bytes."""
    drawn: Drawn


def look(root: Path, image: str, mask: str) -> Look | Fault:
    """An image and its mask, or the first thing that is wrong with them whatever the classes."""
    header = header_of(root, image)
    if isinstance(header, Fault):
        return header
    try:
        data = FolderReader(root).read(mask)
        with mask_image(data, mask) as image_of_it:
            size = image_of_it.height, image_of_it.width
            if size != header.size:
                return Fault("mask-size", _sizes_differ(size, header))
            drawn = _drawn(image_of_it)
    except DecodeError as error:
        kind = error.kind if isinstance(error, NoMask) else "unreadable-mask"
        return Fault(kind, str(error).rpartition(f"{harmless(mask)}: ")[2])
    return drawn if isinstance(drawn, Fault) else Look(header, content_digest(data), drawn)


def _sizes_differ(size: tuple[int, int], header: Header) -> str:
    shown = header.size
    text = f"a mask of {size[1]} x {size[0]} px, its image has {shown[1]} x {shown[0]}"
    if header.turned and size == shown[::-1]:
        text += " as EXIF turns it; if the mask is right, take the orientation out of the EXIF"
    return text


def _drawn(image: Image.Image) -> Drawn | Fault:
    if image.mode == "RGB":
        found = image.getcolors(_COLOURS)
        if found is None:
            return Fault("mask-mode", f"more than {_COLOURS:,} colours: a picture, no mask")
        sizes, colours = zip(*found, strict=True)
        codes = packed(np.array(colours, np.uint8))
        order = np.argsort(codes)
        return Drawn(codes[order], np.array(sizes, np.int32)[order], True, None)
    if image.mode.startswith("I"):
        values, counts = np.unique(np.asarray(image), return_counts=True)
        return Drawn(values.astype(np.int32), counts.astype(np.int32), False, None)
    histogram = np.array(image.histogram(), np.int32)
    values = np.flatnonzero(histogram).astype(np.int32)
    palette = None
    if image.mode == "P":
        written = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        codes = packed(written[values.clip(max=len(written) - 1)])
        palette = np.where(values < len(written), codes, np.int32(-1))
    return Drawn(values, histogram[values], False, palette)


@dataclass
class Looked:
    """A split whose images and masks were looked at."""

    root: Path
    pairs: Pairs
    looks: list[Look | Fault]

    def values(self) -> set[int]:
        """All values of masks that are not in colours."""
        greys = [one.drawn.grey for one in self.looks if isinstance(one, Look)]
        found = [grey for grey in greys if grey is not None]
        return set(np.unique(np.concatenate(found)).tolist()) if found else set()


def look_at(root: Path, pairs: Pairs) -> Looked:
    """Read the header of every image and all of every mask."""
    names = list(zip(pairs.images, pairs.masks, strict=True))
    return Looked(root, pairs, in_threads(lambda pair: look(root, *pair), names))


def usual_colours(looked: Iterable[Looked]) -> Array:
    """The colour that most palettes have for each value that occurs: int32 [256], `packed`, -1 for
    what no palette has."""
    found: dict[int, Counter[int]] = {}
    for one in (one for split in looked for one in split.looks if isinstance(one, Look)):
        if one.drawn.palette is not None:
            pairs = zip(one.drawn.values.tolist(), one.drawn.palette.tolist(), strict=True)
            for value, code in pairs:
                found.setdefault(value, Counter())[code] += code >= 0
    usual = np.full(256, -1, np.int32)
    for value, codes in found.items():
        code, masks = codes.most_common(1)[0]
        usual[value] = code if masks else -1
    return usual


@dataclass
class Checked:
    """What of a split can be used, and what cannot."""

    split: MaskedSplit
    problems: list[Problem]
    images_out: Counter[str]
    """Images by kind of problem."""
    masks_out: Counter[str]
    notes: list[str]


def check(looked: Looked, legend: Legend, classes: Sequence[str], usual: Array) -> Checked:
    """Compare masks with the classes that are learned: what can be used, and every problem in the
    rest.

    usual: `usual_colours` of all splits, which palettes must agree with where no file names the
    classes.
    """
    root, pairs = looked.root, looked.pairs
    coding = legend.coding(classes)
    found = [
        one if isinstance(one, Fault) else _places(one.drawn, coding, legend, usual)
        for one in looked.looks
    ]
    if any(isinstance(places, Fault) and places.kind == "palette" for places in found):
        # Then a colour of another class is no chance in masks of a single class either.
        found = [
            places
            if isinstance(one, Fault) or isinstance(places, Fault)
            else _contradicted(one.drawn, places, coding, legend, fewest=1) or places
            for one, places in zip(looked.looks, found, strict=True)
        ]
    counts: dict[int, Array] = {}
    faults: dict[int, Fault] = {}
    unknown: dict[int, Array] = {}
    """Which of the values in a mask stand for nothing."""
    of_class: dict[str, list[int]] = {}
    """Masks by a class in them that is not learned."""
    for i, (one, places) in enumerate(zip(looked.looks, found, strict=True)):
        if isinstance(places, Fault):
            faults[i] = places
            continue
        assert isinstance(one, Look)
        drawn, judged = one.drawn, places != IGNORED
        unnamed = places == UNKNOWN
        if unnamed.any():
            name = _class_in(drawn, unnamed, coding, legend)
            if name is None:
                unknown[i] = unnamed
            else:
                of_class.setdefault(name, []).append(i)
        elif not judged.any():
            faults[i] = Fault("no-pixels", "every pixel is ignored")
        else:
            counts[i] = np.zeros(len(classes), np.int32)
            np.add.at(counts[i], places[judged], drawn.counts[judged])
    told = in_threads(lambda i: _told(looked, i, unknown[i], coding, legend), list(unknown))
    faults |= dict(zip(unknown, told, strict=True))
    images_out = pairs.images_out + Counter(fault.kind for fault in faults.values())
    for name, members in of_class.items():
        faults[members[0]] = _not_learned(name, len(members), legend, classes)
        images_out["unknown-class"] += len(members)
    problems = list(pairs.problems)
    for i, fault in sorted(faults.items()):
        of_image = fault.kind in ("missing-image", "unreadable-image")
        file = pairs.images[i] if of_image else pairs.masks[i]
        image = "" if of_image else pairs.images[i]
        problems.append(Problem(os.path.join(root, file), None, image, *fault))
    kept = list(counts)
    looks = [one for i in kept if isinstance(one := looked.looks[i], Look)]
    notes = list(pairs.notes)
    if turned := sum(one.header.turned for one in looks):
        images = count(turned, "image is", "images are")
        notes.append(f"{images} turned by EXIF: masks are taken to be drawn on what is shown")
    split = MaskedSplit(
        FolderReader(root),
        Names(pairs.images[i] for i in kept),
        np.zeros(len(kept), np.int64),
        masks=Names(pairs.masks[i] for i in kept),
        sizes=np.array([one.header.size for one in looks], np.int32).reshape(-1, 2),
        counts=np.array([*counts.values()], np.int32).reshape(len(kept), len(classes)),
        digests=np.frombuffer(b"".join(o.digest for o in looks), np.uint8).reshape(-1, DIGEST),
        coding=coding,
    )
    return Checked(split, problems, images_out, pairs.masks_out, notes)


def _by_colour(drawn: Drawn, coding: Coding) -> bool:
    return drawn.coloured and len(coding.colours) > 0


def _places(one: Drawn, coding: Coding, legend: Legend, usual: Array) -> Array | Fault:
    """int16 [v]: what each value or colour stands for; a fault where that cannot be said."""
    if _by_colour(one, coding):
        return coding.of_colours(one.values)
    if one.grey is None:
        shown = ", ".join(hex_of(code) for code in one.values[:3].tolist())
        more = ", …" if len(one.values) > 3 else ""
        return Fault(
            "no-colours",
            f"colours that no file names: {shown}{more}; write class_dict.csv with the columns "
            "name, r, g and b",
        )
    places = coding.of_values(one.grey)
    other = None if legend.declared else _of_its_own(one, places, usual)
    return other or _contradicted(one, places, coding, legend, fewest=2) or places


def _contradicted(
    one: Drawn, places: Array, coding: Coding, legend: Legend, fewest: int
) -> Fault | None:
    """The fault of a palette with the colours of other classes, in a mask of `fewest` judged
    values at least."""
    judged = places != IGNORED
    if one.palette is None or judged.sum() < fewest:
        return None
    ramp = one.palette == one.values * 0x010101  # Pillow's own, of masks without colours
    if fewest == 1 and ramp[judged].all():
        return None
    drawn = coding.of_colours(one.palette)
    odd = np.flatnonzero(judged & (drawn != places))
    # A palette that is made for viewing, of greys or as another set's, has other colours too.
    if not len(odd) or (drawn[judged] == UNKNOWN).any():
        return None
    value, colour = int(one.values[odd[0]]), hex_of(int(one.palette[odd[0]]))
    return Fault(
        "palette",
        f"value {value} has the colour {colour} in its palette, which {legend.source} "
        "gives to another class; leave the colours out there, or save the masks in RGB",
    )


def _of_its_own(one: Drawn, places: Array, usual: Array) -> Fault | None:
    """The fault of a palette that differs from those of other masks: as tools make one for each
    file, in which a value is a place in the colours of that file. Grey masks have no say."""
    if one.palette is None:
        return None
    wanted = usual[one.values]
    odd = np.flatnonzero((places != IGNORED) & (one.palette >= 0) & (one.palette != wanted))
    if not len(odd):
        return None
    value, theirs = int(one.values[odd[0]]), hex_of(int(wanted[odd[0]]))
    return Fault(
        "palette",
        f"value {value} has the colour {hex_of(int(one.palette[odd[0]]))} in its palette, "
        f"{theirs} in other masks; save the masks in RGB and name colours in class_dict.csv, or "
        "if values are classes name them in classes.json",
    )


def _class_in(drawn: Drawn, unnamed: Array, coding: Coding, legend: Legend) -> str | None:
    """A class that values of a mask stand for and that is not learned."""
    coloured = _by_colour(drawn, coding)
    codes = drawn.values if coloured or drawn.grey is None else drawn.grey
    return legend.name_of(codes[unnamed].tolist(), coloured)


def _told(looked: Looked, i: int, unknown: Array, coding: Coding, legend: Legend) -> Fault:
    """The fault of a mask with values that stand for nothing: which has the most pixels, and where
    the first is."""
    one, name = looked.looks[i], looked.pairs.masks[i]
    assert isinstance(one, Look)
    drawn = one.drawn
    code = int(drawn.values[unknown][np.argmax(drawn.counts[unknown])])
    try:
        with mask_image(FolderReader(looked.root).read(name), name) as image:
            pixels = np.asarray(image)
    except DecodeError as error:  # it has just been read
        return Fault("unreadable-mask", str(error))
    same = (packed(pixels) if pixels.ndim == 3 else pixels) == code
    y, x = divmod(int(same.argmax()), same.shape[1])
    coloured = _by_colour(drawn, coding)
    value = code if coloured or not drawn.coloured else code & 255
    named = f"colour {hex_of(code)}" if coloured else f"value {value}"
    where = f"in {legend.source}" if legend.declared else f"of {legend.source}"
    text = f"{named} is no class {where}: {count(int(same.sum()), 'pixel')}, the first at "
    text += f"x {x}, y {y}"
    others = int(unknown.sum()) - 1
    if others:
        text += f"; {count(others, f'other {named.split()[0]}')} too"
    kind = "unknown-colour" if coloured else "wide-value" if value > IGNORED else "unknown-value"
    found = not coloured and value in legend.left
    if kind == "wide-value":
        text += "; 16 bits often hold instances, not classes"
    elif found or (others >= MANY and 4 * drawn.counts[unknown].sum() < drawn.counts.sum()):
        text += "; as after JPEG, or a resize that is not to the nearest"
    elif value == IGNORED and not coloured:
        text += f"; if it is not to be judged, write {IGNORE_255} in classes.json"
    if found:
        again = "" if kind == "wide-value" else "Resize it anew, to the nearest. "
        text += f". {again}If it is a class, write classes.json"
    return Fault(kind, text)


IGNORE_255 = '{"classes": …, "ignore_index": 255}'
"""What a file says for 255 to be ignored."""


def _not_learned(name: str, n: int, legend: Legend, classes: Sequence[str]) -> Fault:
    also = f" and in {count(n - 1, 'more mask')}" if n > 1 else ""
    shown = harmless(name)
    what = f"the class {shown!r} here{also} is not among those learned."
    what += nearest(shown, map(harmless, classes))
    if not legend.declared:
        what += " No file says what the values are: write classes.json."
    return Fault("unknown-class", what)


def hex_of(code: int) -> str:
    """A packed colour as it is written in HTML."""
    return f"#{code:06x}"
