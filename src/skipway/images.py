"""Images to model input and back: the canonical pixels, with Pillow and NumPy only.

`decode` turns encoded bytes into a uint8 (or uint16) array. `Preprocess` is the specification,
kept in a model's card, of how such an array becomes model input. Every other executor (on a
device, inside an exported graph) is tested equal to the one here.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import itertools
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, model_validator

from skipway.errors import InputError, harmless
from skipway.files import atomic_write

Array = npt.NDArray[Any]
ImageLike = str | os.PathLike[str] | bytes | Image.Image | Array
Channels = Literal[1, 3, 4]
Resize = Literal["crop", "letterbox", "squash", "fit"]

FORMATS = (
    *("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000"),
    *(["AVIF"] if find_spec("PIL.AvifImagePlugin") else []),
)
"""What is read, by Pillow's names. It knows others, among them EPS, for which it starts a program
on what the file says."""


@functools.cache
def suffixes() -> frozenset[str]:
    """The endings of the names of such files, lower case. Pillow loads all of its formats for it,
    which is not for the time of an import."""
    return frozenset(end for end, name in Image.registered_extensions().items() if name in FORMATS)


# Pillow's notes on odd but readable files. Filters are the whole process's: changing them around
# each image, in several threads, would in the end leave all warnings off. Last of all, so that
# those of who imports this count.
warnings.filterwarnings("ignore", module=r"PIL\b", append=True)


class DecodeError(InputError):
    """An image that cannot be decoded; the text begins with its name."""


def decode(source: ImageLike, channels: Channels = 3, name: str | None = None) -> Array:
    """The pixels of an image: uint8 [H, W, channels], or uint16 where the source has 16 bits.

    EXIF rotation is applied. Grey, palette, CMYK, 1-bit and other modes are converted;
    transparent pixels are laid on white unless four channels are asked. Arrays must be uint8 or
    uint16, [H, W] or [H, W, 1 | 3 | 4]. `name` is used in errors in place of the path.
    Raises DecodeError where the source is not a whole, readable image.
    """
    name = harmless(name if name is not None else _name(source))
    if isinstance(source, np.ndarray):
        return _from_array(source, channels, name)
    if not isinstance(source, (str, os.PathLike, bytes, Image.Image)):
        raise DecodeError(
            f"{name}: a {type(source).__name__}; give a path, bytes, a PIL image or an array"
        )
    with opened(source, name) as image:
        return _pixels(image, channels, name)


def verify(source: ImageLike, name: str | None = None) -> None:
    """Read all of an image as cheaply as can be. Raises DecodeError as `decode` does."""
    name = harmless(name if name is not None else _name(source))
    if isinstance(source, np.ndarray):
        _from_array(source, 3, name)
        return
    with opened(source, name) as image:
        if image is not source:  # the caller's own image must stay as it is
            image.draft("L", (1, 1))  # a JPEG is decoded at an eighth of its size
        _pixels(image, 1, name)


def header_size(source: ImageLike, name: str | None = None) -> tuple[int, int]:
    """Height and width in pixels, as `decode` would give them; only TIFFs are decoded for it."""
    return header(source, name)[0]


def header(source: ImageLike, name: str | None = None) -> tuple[tuple[int, int], bool]:
    """Height and width as `header_size` gives them, and whether EXIF turns or mirrors the image."""
    name = harmless(name if name is not None else _name(source))
    if isinstance(source, np.ndarray):
        return (source.shape[0], source.shape[1]), False
    with opened(source, name) as image:
        turned = _orientation(image) != 1
        if image.format == "TIFF":
            image.load()  # Pillow turns these by itself, and only then is the tag gone
        swapped = _orientation(image) in (5, 6, 7, 8)
        return image.size if swapped else image.size[::-1], turned


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What shows an image as it was taken, by EXIF's orientation."""


def upright(image: Image.Image) -> Image.Image:
    """A decoded image as EXIF says that it is shown.

    Pillow's own `exif_transpose` also writes the EXIF anew, which fails where any other entry of it
    is damaged, after it has turned the image.
    """
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """1 to 8 as EXIF has it; 1, as it is shown, where there is none that can be read."""
    with contextlib.suppress(Exception):
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        if found in range(1, 9):
            return int(found)
    return 1


@contextlib.contextmanager
def opened(
    source: str | os.PathLike[str] | bytes | Image.Image, name: str
) -> Iterator[Image.Image]:
    """The image, not decoded yet; what goes wrong inside the block becomes DecodeError.

    name: what errors begin with, made harmless.
    """
    format_name, held = "image", ""
    try:
        if isinstance(source, Image.Image):
            yield source
            return
        data = source if isinstance(source, bytes) else _read(source, name)
        held = f" ({len(data):,} bytes)"
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            format_name = image.format or "image"
            yield image
    except DecodeError:
        raise
    except UnidentifiedImageError:
        what = f"not an image that can be read{held}" if data else "an empty file"
        raise DecodeError(f"{name}: {what}") from None
    except Image.DecompressionBombError:
        raise DecodeError(f"{name}: too many pixels for one image; make it smaller") from None
    except (MemoryError, Warning):  # the latter where filters make errors of warnings
        raise
    except Exception as error:  # decoders raise all kinds of errors on damaged bytes
        if "truncated" in str(error).lower() or isinstance(error, EOFError):
            raise DecodeError(f"{name}: truncated {format_name}{held}") from None
        detail = harmless(error)[:120]
        raise DecodeError(f"{name}: damaged {format_name}{held}: {detail}") from None


def _name(source: ImageLike) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return "image"


def _read(path: str | os.PathLike[str], name: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DecodeError(f"{name}: {error.strerror or harmless(error)}") from None
    except ValueError:  # a null character in it
        raise DecodeError(f"{name}: not a name that a file can have") from None


def _from_array(array: Array, channels: Channels, name: str) -> Array:
    if array.dtype not in (np.uint8, np.uint16):
        raise DecodeError(f"{name}: an array of {array.dtype}; give uint8 or uint16 pixels")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise DecodeError(f"{name}: an array of shape {array.shape}; give [H, W] or [H, W, 1|3|4]")
    if array.shape[2] == channels:
        return array
    if array.dtype == np.uint16:
        return _spread16(array, channels)
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    return _pixels(image, channels, name)


def _pixels(image: Image.Image, channels: Channels, name: str) -> Array:
    image.load()
    if 0 in image.size:
        raise DecodeError(f"{name}: an image of {image.width} x {image.height} pixels")
    if image.mode.startswith("I") or image.mode == "F":
        return _spread16(_sixteen(image, name), channels)
    image = upright(image)
    if image.mode == "La":
        image = image.convert("LA")  # the only conversion that Pillow has for it
    if channels == 4:
        return np.array(image.convert("RGBA"))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGBA", rgba.size, "white")
        image.alpha_composite(rgba)
    if channels == 1:
        colour = image.convert("RGB") if image.mode in ("P", "LAB") else image
        return np.array(colour.convert("L"))[:, :, None]
    return np.array(image.convert("RGB"))


def _sixteen(image: Image.Image, name: str) -> Array:
    """Modes I;16, I and F as uint16 [H, W, 1], refused where that would lose values, and where
    nothing but their size says how many bits they have."""
    values = np.asarray(upright(image))
    if values.min() < 0 or values.max() > 65535 or (values != np.floor(values)).any():
        raise DecodeError(
            f"{name}: mode {image.mode} with values other than whole 0..65535; "
            "convert it to 8 or 16 bits"
        )
    of_16_bits = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    if not of_16_bits and 0 < values.max() <= 255:
        raise DecodeError(
            f"{name}: mode {image.mode} with values of 8 bits, which as 16 bits would be nearly "
            "black; convert it to 8 or 16 bits"
        )
    return values.astype(np.uint16)[:, :, None]


def _spread16(values: Array, channels: Channels) -> Array:
    """uint16 [H, W, c] to the asked number of channels, as `_pixels` does with 8 bits."""
    if values.shape[2] == channels:
        return values
    if values.shape[2] == 4:  # on white; four channels were not asked
        alpha = values[:, :, 3:] / 65535
        values = np.rint(values[:, :, :3] * alpha + 65535 * (1 - alpha)).astype(np.uint16)
    if channels == 1:  # ITU-R 601-2 luma, as Pillow's conversion of 8-bit colours
        luma = values @ np.array([0.299, 0.587, 0.114])
        return np.rint(luma)[:, :, None].astype(np.uint16)
    colour = values if values.shape[2] == 3 else np.repeat(values, 3, axis=2)
    if channels == 3:
        return np.ascontiguousarray(colour)
    return np.concatenate([colour, np.full_like(colour[:, :, :1], 65535)], axis=2)


_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def resize(
    image: Array,
    size: tuple[int, int],
    interpolation: str = "bilinear",
    box: tuple[float, float, float, float] | None = None,
) -> Array:
    """uint8 or uint16 [H, W, C] to [size[0], size[1], C], antialiased, channels kept apart.

    `box` is (left, top, right, bottom) in pixels of the input; None is all of it.
    """
    height, width = size
    whole = box is None or box == (0, 0, image.shape[1], image.shape[0])
    if whole and image.shape[:2] == (height, width):
        return image
    kind = _FILTERS[interpolation]

    def one(values: Array, mode: str) -> Array:
        image_size = (values.shape[1], values.shape[0])
        picture = Image.frombytes(mode, image_size, np.ascontiguousarray(values).tobytes())
        return np.asarray(picture.resize((width, height), kind, box=box))

    if image.dtype == np.uint8:
        # CMYK is Pillow's mode of four plain channels: RGBA would be multiplied by its alpha.
        mode = {1: "L", 3: "RGB", 4: "CMYK"}[image.shape[2]]
        return one(image, mode).reshape(height, width, image.shape[2])
    layers = [one(image[:, :, c].astype(np.float32), "F") for c in range(image.shape[2])]
    return np.clip(np.rint(np.stack(layers, axis=2)), 0, 65535).astype(np.uint16)


@dataclass(frozen=True)
class Geometry:
    """Where the original pixels went: ``model_xy = original_xy * scale + offset``.

    Coordinates are continuous, (x, y), with (0, 0) the outer corner of the first pixel.
    `size` is the original (height, width).
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]

    def to_model(self, xy: Array) -> Array:
        """Points [..., 2] of the original image in the model's input."""
        return np.asarray(xy, np.float64) * self.scale + self.offset

    def to_original(self, xy: Array) -> Array:
        """Points [..., 2] of the model's input in the original image, clipped to it."""
        points = (np.asarray(xy, np.float64) - self.offset) / self.scale
        return np.clip(points, 0, (self.size[1], self.size[0]))


_WHOLE = 2**24
"""Pixels up to which an image is resized as a whole and then cropped. Beyond (a strip of 1 x 60,000
would take 10 GB) only the part that stays is resized, which may differ by one level."""
LONGEST = 4
"""Times the short side, what is taken of the long side where nothing else bounds an input."""


class Preprocess(BaseModel):
    """How an image becomes model input, and the way back. Kept in the card, run without torch.

    A call takes anything that `decode` takes and gives float32 [channels, *size]; with ``fit``
    [channels, h, w], no larger than that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    size: tuple[int, int]
    """Height and width of the model's input in pixels."""
    channels: Channels = 3
    resize: Resize = "crop"
    """crop: resize the short side, take the centre. letterbox: fit all of it, fill the rest.
    squash: resize both sides, the aspect ratio is lost. fit: as letterbox, but nothing is filled:
    the input is as large as the image then is."""
    short_side: int | None = Field(None, gt=0)
    """For crop: the short side in pixels before the centre is taken; None is min(size). For fit:
    what the short side has at most; None bounds it by size alone."""
    odd_border: Literal["even", "down"] = "even"
    """For crop: where half a border is no whole pixel, take the even neighbour, as torchvision and
    timm do, or the lower, as transformers does."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    fill: float = Field(0.5, ge=0, le=1)
    """For letterbox: the grey of the border, 0 black to 1 white."""
    mean: tuple[float, ...]
    """Subtracted, one per channel, of pixels scaled to 0..1."""
    std: tuple[float, ...]
    """Divides, one per channel."""
    pixel_mean: str | None = None
    """Subtracted in place of `mean`: base64 of little-endian float32 [channels, *size] (2015,
    section 4.2: the per-pixel mean of the training images)."""

    @model_validator(mode="after")
    def _consistent(self) -> Preprocess:
        if min(self.size) < 1:
            raise ValueError(f"size {self.size} is not positive")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} values, one per channel")
        if not all(np.isfinite(self.mean)) or not all(s > 0 and np.isfinite(s) for s in self.std):
            raise ValueError("mean must be finite and std positive")
        if self.resize == "crop" and (self.short_side or min(self.size)) < min(self.size):
            raise ValueError(f"short_side {self.short_side} is below the size {self.size}")
        if self.pixel_mean is not None:
            if self.resize == "fit":
                raise ValueError("pixel_mean: inputs that fit are of different sizes")
            expected = 4 * self.channels * self.size[0] * self.size[1]
            raw = base64.b64decode(self.pixel_mean, validate=True)
            if len(raw) != expected or not np.isfinite(np.frombuffer(raw, "<f4")).all():
                raise ValueError(f"pixel_mean is not finite float32 {self._shape}")
        return self

    @property
    def said(self) -> str:
        """What is done with an image, for who has to do the same or to judge it."""
        height, width = self.size
        short = self.short_side or min(self.size)
        limit = f"short side to {short} px, " if self.short_side else ""
        way = {
            "crop": f"short side to {short} px, the centre's {height} x {width}",
            "letterbox": f"fitted into {height} x {width} px, the rest filled",
            "squash": f"squashed to {height} x {width} px",
            "fit": f"{limit}at most {height} x {width}",
        }[self.resize]
        mean, std = (", ".join(f"{x:.4g}" for x in values) for values in (self.mean, self.std))
        mean = "of each pixel" if self.pixel_mean is not None else mean
        return f"{way} ({self.interpolation}), pixels of 0 to 1, mean {mean}, std {std}"

    def with_pixel_mean(self, mean: Array) -> Preprocess:
        """This specification with a per-pixel mean, float32 [channels, *size] of 0..1.

        Raises ValueError for another shape or values that are not finite.
        """
        if mean.shape != self._shape:  # the same count in another order would pass unnoticed
            raise ValueError(f"pixel_mean has the shape {mean.shape}, not {self._shape}")
        text = base64.b64encode(np.ascontiguousarray(mean, "<f4").tobytes()).decode("ascii")
        return Preprocess.model_validate(self.model_dump() | {"pixel_mean": text})

    def frame(self, image: Array) -> tuple[Array, Geometry]:
        """The geometric part: [H, W, C] to [*size, C], or less with ``fit``, of the same type, and
        where pixels went."""
        height, width = image.shape[:2]
        goal_h, goal_w = self.size
        if self.resize == "fit":
            h, w = self.fitted(height, width)
            geometry = Geometry((height, width), (w / width, h / height), (0.0, 0.0))
            return resize(image, (h, w), self.interpolation), geometry
        if self.resize == "squash":
            geometry = Geometry((height, width), (goal_w / width, goal_h / height), (0.0, 0.0))
            return resize(image, self.size, self.interpolation), geometry
        if self.resize == "letterbox":
            h, w = self.fitted(height, width)
            top, left = (goal_h - h) // 2, (goal_w - w) // 2
            levels = np.iinfo(image.dtype).max
            framed = np.full(
                (goal_h, goal_w, image.shape[2]), round(self.fill * levels), image.dtype
            )
            framed[top : top + h, left : left + w] = resize(image, (h, w), self.interpolation)
            scale, offset = (w / width, h / height), (float(left), float(top))
            return framed, Geometry((height, width), scale, offset)
        h, w = self._resized(height, width)
        top, left = self._centre(h, w)
        scale, offset = (w / width, h / height), (float(-left), float(-top))
        return self._cut(image, (h, w), [(top, left)])[0], Geometry((height, width), scale, offset)

    def five_crops(self, image: Array) -> list[Array]:
        """[H, W, C] to its corners and its centre after the resize, 5 times [*size, C]; their
        mirror images make them the ten of Krizhevsky et al. 2012 (2015, section 3.4).

        Raises ValueError where the card does not crop, or crops nothing off the short side.
        """
        if self.resize != "crop" or (self.short_side or min(self.size)) <= min(self.size):
            raise ValueError("the crops need an image that is larger than the input")
        h, w = self._resized(*image.shape[:2])
        bottom, right = h - self.size[0], w - self.size[1]
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
        return self._cut(image, (h, w), [*corners, self._centre(h, w)])

    def whole(self, image: Array, short_side: int) -> Array:
        """[H, W, C] with that short side in pixels and nothing cut off, for a network that takes
        any size; of an image longer than `LONGEST` times its short side, the middle."""
        height, width = image.shape[:2]
        longest = LONGEST * min(height, width)
        top, left = max(height - longest, 0) // 2, max(width - longest, 0) // 2
        height, width = min(height, longest), min(width, longest)
        ratio = short_side / min(height, width)
        size = (round(height * ratio), round(width * ratio))
        return resize(image, size, self.interpolation, (left, top, left + width, top + height))

    def at_size(self, size: int) -> Preprocess:
        """This specification for square inputs of another size in pixels: as large a part of the
        image, with more or fewer pixels of it (1906.06423).

        Raises ValueError where there is a mean of each pixel, which has one size.
        """
        return self.scaled(size / min(self.size)).model_copy(update={"size": (size, size)})

    def scaled(self, ratio: float) -> Preprocess:
        """This specification for inputs with that many times the pixels along each side: size and,
        where it is given, short side. Raises ValueError as `at_size` does."""
        if self.pixel_mean is not None:
            raise ValueError("the mean of each pixel has one size")

        def times(side: int) -> int:
            return max(round(side * ratio), 1)

        size = times(self.size[0]), times(self.size[1])
        short = None if self.short_side is None else times(self.short_side)
        return self.model_copy(update={"size": size, "short_side": short})

    def _centre(self, height: int, width: int) -> tuple[int, int]:
        """Top and left of the centre crop of an image of that size."""
        half = round if self.odd_border == "even" else math.floor
        return half((height - self.size[0]) / 2), half((width - self.size[1]) / 2)

    def _cut(
        self, image: Array, resized: tuple[int, int], corners: list[tuple[int, int]]
    ) -> list[Array]:
        """Crops [*size, C] at (top, left) of the image once resized to (height, width)."""
        (height, width), (h, w) = image.shape[:2], resized
        goal_h, goal_w = self.size
        if h * w <= _WHOLE:
            larger = resize(image, resized, self.interpolation)
            return [larger[top : top + goal_h, left : left + goal_w] for top, left in corners]
        y, x = h / height, w / width
        boxes = [
            (left / x, top / y, min((left + goal_w) / x, width), min((top + goal_h) / y, height))
            for top, left in corners
        ]
        return [resize(image, self.size, self.interpolation, box) for box in boxes]

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """The largest height and width of that aspect ratio within `size`, and for ``fit`` with
        no more than `short_side` pixels on the short side."""
        ratio = min(self.size[0] / height, self.size[1] / width)
        if self.resize == "fit" and self.short_side is not None:
            ratio = min(ratio, self.short_side / min(height, width))
        h, w = (max(round(side * ratio), 1) for side in (height, width))
        return min(h, self.size[0]), min(w, self.size[1])

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the short side was resized, never below `size`."""
        short = self.short_side or min(self.size)
        h, w = (
            (short, int(short * width / height))
            if height <= width
            else (int(short * height / width), short)
        )
        grow = max(self.size[0] / h, self.size[1] / w, 1.0)  # only where size is not square
        return round(h * grow), round(w * grow)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.size)

    def scale_shift(self, dtype: npt.DTypeLike) -> tuple[Array, Array]:
        """float32 scale [C, 1, 1] and shift [C, 1|H, 1|W]: input = pixel * scale + shift.

        `dtype` is that of the pixels, whose largest value counts as 1.
        """
        scale = 1 / (float(np.iinfo(np.dtype(dtype)).max) * np.array(self.std))
        return scale[:, None, None].astype(np.float32), _shift(self)

    def normalise(self, frames: Array) -> Array:
        """The numeric part: uint8 or uint16 [..., H, W, C] to float32 [..., C, H, W]."""
        scale, shift = self.scale_shift(frames.dtype)
        x = np.moveaxis(frames, -1, -3).astype(np.float32, order="C")
        x *= scale
        x += shift
        return x

    def pixels(self, inputs: Array) -> Array:
        """Model input [..., C, H, W] back to uint8 [..., H, W, 3], levels outside of 0..255
        clipped."""
        scale, shift = self.scale_shift(np.uint8)
        levels = np.clip(np.rint((inputs - shift) / scale), 0, 255).astype(np.uint8)
        levels = np.moveaxis(levels, -3, -1)
        return levels[..., :3] if levels.shape[-1] >= 3 else np.repeat(levels, 3, axis=-1)

    def __call__(self, source: ImageLike, name: str | None = None) -> Array:
        image = decode(source, self.channels, name)
        return self.normalise(self.frame(image)[0])


@functools.lru_cache(maxsize=8)
def _shift(preprocess: Preprocess) -> Array:
    """What is added after scaling; kept, as decoding a pixel mean takes longer than using it."""
    std = np.array(preprocess.std)[:, None, None]
    mean: Array = np.array(preprocess.mean)[:, None, None]
    if preprocess.pixel_mean is not None:
        raw = np.frombuffer(base64.b64decode(preprocess.pixel_mean), "<f4")
        mean = raw.reshape(preprocess.channels, *preprocess.size)
    return (-mean / std).astype(np.float32)


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL_IMAGE = 64
"""Side in pixels up to which images are taken whole, without cutting off their border."""


def plain_preprocess(
    size: int, channels: int, resize: Resize = "crop", crop_ratio: float | None = None
) -> Preprocess:
    """Where nothing else is known: ImageNet's mean and deviation, and its 256 / 224 centre crop.

    crop_ratio: of a crop, `size` over the short side, which is rounded down as timm does; None is
    224 / 256, or 1 for images of at most `SMALL_IMAGE`. Raises InputError where no image has so
    many channels.
    """
    if channels not in (1, 3, 4):
        raise InputError(f"{channels} input channels: images have 1, 3 or 4")
    short_side = size if size <= SMALL_IMAGE else round(size * 256 / 224)
    if crop_ratio is not None:
        short_side = int(size / crop_ratio + 1e-6)  # 224 / (224 / 232) is 231.99
    return Preprocess(
        size=(size, size),
        channels=channels,
        resize=resize,
        short_side=None if resize == "fit" else short_side,
        mean=IMAGENET_MEAN if channels == 3 else (0.5,) * channels,
        std=IMAGENET_STD if channels == 3 else (0.25,) * channels,
    )


def thumbnail(image: Array, side: int = 112) -> str:
    """uint8 or uint16 [H, W, 3] as a PNG of at most `side` pixels, in a data: URL."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    picture = Image.fromarray(image)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def write_png(picture: Image.Image, folder: Path, stem: str) -> Path:
    """Write STEM.png into the folder, or where that is there already STEM-2.png and so on, whole or
    not at all. Raises InputError where it cannot be written."""
    names = (f"{stem}-{n}.png" if n > 1 else f"{stem}.png" for n in itertools.count(1))
    path = next(folder / name for name in names if not (folder / name).exists())
    with atomic_write(path) as file:
        picture.save(file, "PNG")
    return path
