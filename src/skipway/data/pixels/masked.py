"""Images with masks: the class of each pixel, as their files have it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from skipway.data.preflight import content_digest
from skipway.data.split import Names, Split
from skipway.errors import harmless
from skipway.images import DecodeError, opened, upright

Array = npt.NDArray[Any]

UNKNOWN = -1
"""What a value or a colour stands for that is no class and not ignored."""


class NoMask(DecodeError):
    """An image that can be read and is no mask; `kind` says why, as a key of `checking.KINDS`."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


@contextlib.contextmanager
def mask_image(data: bytes, name: str) -> Iterator[Image.Image]:
    """A mask as Pillow has it, in mode L, P, I;16 or I: values, or RGB: colours.

    Palettes are left aside, grey of 1, 2 and 4 bits has the values that were written, transparency
    is dropped, an EXIF rotation of the mask's own is applied. Raises DecodeError, and NoMask for
    files that may have lost what was drawn.
    """
    name = harmless(name)
    with opened(data, name) as image:
        if _is_lossy(image, data):
            raise NoMask(f"{name}: a lossy {image.format}: values are lost; use PNG", "lossy-mask")
        written = [(str(tile[0]), str(tile[3])) for tile in getattr(image, "tile", ())]
        if any(codec.startswith("ppm") for codec, _ in written):  # Pillow stretches their values
            raise NoMask(f"{name}: a PGM of other than 8 or 16 bits; use PNG", "mask-mode")
        image.load()
        image = upright(image)
        if image.mode == "1":
            image = image.convert("L").point([0] + [1] * 255)
        elif image.mode in ("LA", "PA"):
            image = image.getchannel(0)
        elif image.mode == "RGBA":
            image = image.convert("RGB")
        elif narrow := [bits for bits in (2, 4) if any(f"L;{bits}" in raw for _, raw in written)]:
            levels = 2 ** narrow[0] - 1  # which Pillow has spread over 0 to 255
            image = image.point([v * levels // 255 for v in range(256)])
        if image.mode not in ("L", "P", "RGB") and not image.mode.startswith("I"):
            what = f"mode {image.mode}: a mask has whole numbers (L, P, I;16) or colours (RGB)"
            raise NoMask(f"{name}: {what}", "mask-mode")
        yield image


def _is_lossy(image: Image.Image, data: bytes) -> bool:
    by_format = image.format in ("JPEG", "MPO")
    in_tiff = image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")
    return by_format or in_tiff or (image.format == "WEBP" and b"VP8 " in data)


def packed(colours: Array) -> Array:
    """Colours uint8 [..., 3] as whole numbers, int32 [...]: 65536 red + 256 green + blue."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    found: Array = (red << 16) | (green << 8) | blue
    return found


@dataclass(frozen=True)
class Coding:
    """What stands in the files of masks for the classes that are learned."""

    table: Array
    """int16 [256] or longer: by value, a position in the classes, IGNORED or UNKNOWN."""
    colours: Array
    """int32 [c], `packed` and sorted; empty: masks in RGB are grey, and their grey is the value."""
    places: Array
    """int16 [c]: what each colour stands for, as in `table`."""

    def of_values(self, values: Array) -> Array:
        """int16 of the same shape."""
        there = (values >= 0) & (values < len(self.table))
        return np.where(there, self.table[np.where(there, values, 0)], np.int16(UNKNOWN))

    def of_colours(self, codes: Array) -> Array:
        """int16 of the same shape, of `packed` colours."""
        if not len(self.colours):
            return np.full(codes.shape, UNKNOWN, np.int16)
        at = np.searchsorted(self.colours, codes).clip(max=len(self.colours) - 1)
        return np.where(self.colours[at] == codes, self.places[at], np.int16(UNKNOWN))

    def labels(self, pixels: Array) -> Array:
        """uint8 [H, W] of positions and IGNORED from a mask's values [H, W] or colours
        uint8 [H, W, 3], none of which is UNKNOWN."""
        if pixels.ndim == 3 and len(self.colours):
            return self.of_colours(packed(pixels)).astype(np.uint8)
        values = pixels[..., 0] if pixels.ndim == 3 else pixels
        return self.table.astype(np.uint8)[values]

    def digest(self) -> bytes:
        parts = (self.table, self.colours, self.places)
        return hashlib.blake2b(b"".join(part.tobytes() for part in parts)).digest()


@dataclass(frozen=True, kw_only=True)
class MaskedSplit(Split):
    """Images with a mask each. `labels` is 0 for all: an image has no class of its own."""

    masks: Sequence[str]
    """The mask of each image, a name that `reader` reads."""
    sizes: Array
    """int32 [N, 2]: height and width of each image and its mask, EXIF rotation applied."""
    counts: Array
    """int32 [N, K]: pixels of each class."""
    digests: Array
    """uint8 [N, 16] of the masks' bytes, see `preflight.content_digest`."""
    coding: Coding

    def target(self, i: int) -> Array:
        """The class of each pixel of image i, of the image's size: uint8 [H, W], a position in the
        classes or IGNORED. Raises DecodeError where the mask is not as it was when the data was
        opened."""
        name = self.masks[i]
        data = self.reader.read(name)
        if content_digest(data) != self.digests[i].tobytes():
            raise DecodeError(f"{harmless(name)}: the mask has changed since the data was opened")
        assert isinstance(data, bytes)
        with mask_image(data, name) as image:
            return self.coding.labels(np.asarray(image))

    def take(self, positions: Array) -> Self:
        """Those images only, in that order, with their masks."""
        positions = np.asarray(positions, np.int64)
        return replace(
            super().take(positions),
            masks=Names(self.masks[int(i)] for i in positions),
            sizes=self.sizes[positions],
            counts=self.counts[positions],
            digests=self.digests[positions],
        )

    counted: ClassVar[str] = "pixels"

    def per_class(self, classes: int) -> Array:
        """Pixels of each class, the ignored left out: int64 [classes], as many as there are."""
        found: Array = self.counts.sum(axis=0, dtype=np.int64)
        return found

    def ignored(self) -> int:
        """Pixels that are not judged."""
        return int(self.sizes.prod(axis=1, dtype=np.int64).sum() - self.counts.sum(dtype=np.int64))

    def stamp(self) -> bytes:
        names = (*self.names, *self.masks)
        return self.reader.stamp(names)

    def content(self) -> bytes:
        """32 bytes that are others once a mask's file is another, or what its values stand for."""
        digest = hashlib.blake2b(self.coding.digest(), digest_size=32)
        digest.update(np.ascontiguousarray(self.digests).data)
        return digest.digest()
