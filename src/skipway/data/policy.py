"""RandAugment and TrivialAugment: random operations on whole images, drawn by key.

Cubuk et al. 2019 (1909.13719) and Müller and Hutter 2021 (2103.10158, the wide space). Operations
and strengths are those of torchvision, on Pillow images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

Array = npt.NDArray[Any]
Fill = tuple[int, ...]
Policy = Literal["none", "rand", "trivial"]
MOST = 30
"""The largest strength."""


def _moved(image: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    """The pixel at (x, y) is what was at (ax + by + c, dx + ey + f), for matrix (a, …, f)."""
    kind, smooth = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return image.transform(image.size, kind, matrix, smooth, fillcolor=_colour(fill))


def _colour(fill: Fill) -> Any:
    return fill if len(fill) > 1 else fill[0]


def _rotate(image: Image.Image, level: float, fill: Fill) -> Image.Image:
    return image.rotate(level, Image.Resampling.BILINEAR, fillcolor=_colour(fill))


def _enhance(kind: Any) -> Callable[[Image.Image, float, Fill], Image.Image]:
    def apply(image: Image.Image, level: float, _: Fill) -> Image.Image:
        enhanced: Image.Image = kind(image).enhance(1 + level)
        return enhanced

    return apply


@dataclass(frozen=True)
class Operation:
    """`apply(image, level, fill)`; the level grows with the strength up to the largest."""

    apply: Callable[[Image.Image, float, Fill], Image.Image]
    rand: float
    """The largest level in RandAugment; of translations a share of the side."""
    trivial: float
    """The largest level in TrivialAugment; of translations pixels."""
    signed: bool = False
    """Whether the level is negative half of the time."""


OPERATIONS: dict[str, Operation] = {
    "identity": Operation(lambda image, _, __: image, 0, 0),
    "shear_x": Operation(lambda i, n, fill: _moved(i, (1, n, 0, 0, 1, 0), fill), 0.3, 0.99, True),
    "shear_y": Operation(lambda i, n, fill: _moved(i, (1, 0, 0, n, 1, 0), fill), 0.3, 0.99, True),
    "translate_x": Operation(
        lambda i, n, fill: _moved(i, (1, 0, -int(n), 0, 1, 0), fill), 150 / 331, 32, True
    ),
    "translate_y": Operation(
        lambda i, n, fill: _moved(i, (1, 0, 0, 0, 1, -int(n)), fill), 150 / 331, 32, True
    ),
    "rotate": Operation(_rotate, 30, 135, True),
    "brightness": Operation(_enhance(ImageEnhance.Brightness), 0.9, 0.99, True),
    "colour": Operation(_enhance(ImageEnhance.Color), 0.9, 0.99, True),
    "contrast": Operation(_enhance(ImageEnhance.Contrast), 0.9, 0.99, True),
    "sharpness": Operation(_enhance(ImageEnhance.Sharpness), 0.9, 0.99, True),
    # bits that are dropped
    "posterize": Operation(lambda image, n, _: ImageOps.posterize(image, 8 - round(n)), 4, 6),
    # levels from which on pixels are inverted, counted from above
    "solarize": Operation(lambda image, n, _: ImageOps.solarize(image, 255 - int(n)), 255, 255),
    "autocontrast": Operation(lambda image, _, __: ImageOps.autocontrast(image), 0, 0),
    "equalize": Operation(lambda image, _, __: ImageOps.equalize(image), 0, 0),
}


def level_of(operation: str, policy: Policy, strength: float, side: tuple[int, int]) -> float:
    """The level of an operation at a strength of 0 to `MOST`, for an image of [height, width]."""
    row = OPERATIONS[operation]
    level = (row.rand if policy == "rand" else row.trivial) * strength / MOST
    if policy == "rand" and operation.startswith("translate"):
        level *= side[operation.endswith("_x")]
    return level


def augmented(
    image: Array,
    policy: Policy,
    magnitude: float,
    fill: Fill,
    draws: Array,
    probability: float = 1.0,
    deviation: float = 0.0,
) -> Array:
    """uint8 [H, W, 1 or 3] after random operations, of the same shape; of uint16 the upper 8 bits.

    rand: each operation with that probability, at a strength that is normal around `magnitude` with
    that deviation, within 0 to `MOST` (timm's RandAugment, whose strengths go to 10). trivial: at a
    random strength. fill: the colour of what comes into the picture. draws: in [0, 1),
    [operations, 4].
    """
    picture = _picture(image)
    names = tuple(OPERATIONS)
    for which, sign, strength, applied in draws:
        if policy == "rand" and applied >= probability:
            continue
        name = names[int(which * len(names))]
        at = float(int(strength * (MOST + 1)))
        if policy == "rand":
            at = magnitude
            if deviation:
                # never 0, where the normal distribution has no quantile
                noise = NormalDist().inv_cdf(max(float(strength), 2.0**-54))
                at = min(max(magnitude + deviation * noise, 0.0), float(MOST))
        level = level_of(name, policy, at, image.shape[:2])
        if OPERATIONS[name].signed and sign < 0.5:
            level = -level
        picture = OPERATIONS[name].apply(picture, level, fill)
    return np.asarray(picture).reshape(image.shape)


def jittered(image: Array, strength: float, draws: Array) -> Array:
    """Brightness, contrast and saturation each times 1 - strength to 1 + strength, in random
    order; images as for `augmented`.

    draws: in [0, 1), six.
    """
    picture = _picture(image)
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for i in np.argsort(draws[:3], kind="stable"):
        picture = kinds[i](picture).enhance(1 + strength * (2 * draws[3 + i] - 1))
    return np.asarray(picture).reshape(image.shape)


def _picture(image: Array) -> Image.Image:
    levels = image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
    return Image.fromarray(levels[:, :, 0] if image.shape[2] == 1 else levels)
