"""What tasks on pixels share: an image and what lies in it scaled, cut and mirrored together, and
made ready for the network on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from skipway.config import AugmentConfig
from skipway.data import Key
from skipway.images import Geometry, Preprocess, resize

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class View:
    """The part of an image that the network sees."""

    geometry: Geometry
    """Where pixels of the image go, before it is mirrored."""
    shape: tuple[int, int]
    """Height and width."""
    box: tuple[float, float, float, float] | None
    """The part in pixels of the image, (left, top, right, bottom); None is all of it."""
    mirrored: tuple[int, ...]
    """Which of the axes, rows (0) and columns (1), are reversed."""

    def cut(self, pixels: Array, interpolation: str) -> Array:
        """uint8 or uint16 [H, W, C] to [*shape, C], not mirrored."""
        return resize(pixels, self.shape, interpolation, self.box)

    def mirror(self, pixels: Array, first: int = 0) -> Array:
        """What was cut as it is seen; `first` is the axis of its rows."""
        return np.flip(pixels, tuple(axis + first for axis in self.mirrored))


def view_of(
    size: tuple[int, int],
    preprocess: Preprocess,
    augmentation: AugmentConfig,
    key: Key | None,
    limit: tuple[int, int] | None = None,
) -> View:
    """How an image of that height and width is seen: all of it, within the size of the input, or by
    key at another scale, mirrored, and where it is then larger than `limit` a part of it.

    limit: height and width; None is the size at which all of it is seen, so that an image has no
    more pixels in training than in use.
    """
    scaled = preprocess.fitted(*size)
    limit = limit or scaled
    mirrored: tuple[int, ...] = ()
    corner = np.zeros(2)
    if key is not None:
        c, draws = augmentation, key.uniform(6)
        low, high = c.scale
        ratio = low * (high / low) ** draws[0]
        scaled = (max(round(scaled[0] * ratio), 1), max(round(scaled[1] * ratio), 1))
        corner = draws[1:3]
        aside = draws[3] < 0.5
        if c.flip == "alternate":  # as `data.augment.pad_crop_flip`
            aside = (replace(key, epoch=0).uniform(6)[3] < 0.5) ^ bool(key.epoch % 2)
        asked = (0, c.flip_up and draws[4] < 0.5), (1, c.flip and aside)
        mirrored = tuple(axis for axis, flip in asked if flip)
    sx, sy = scaled[1] / size[1], scaled[0] / size[0]
    shape = min(scaled[0], limit[0]), min(scaled[1], limit[1])
    if shape == scaled:
        return View(Geometry(size, (sx, sy), (0.0, 0.0)), shape, None, mirrored)
    top, left = (int(d * (a - b + 1)) for d, a, b in zip(corner, scaled, shape, strict=True))
    right, bottom = min((left + shape[1]) / sx, size[1]), min((top + shape[0]) / sy, size[0])
    geometry = Geometry(size, (sx, sy), (float(-left), float(-top)))
    return View(geometry, shape, (left / sx, top / sy, right, bottom), mirrored)


class Normaliser:
    """`Preprocess.normalise` on any device."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess
        self._constants: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 or uint16 [..., C, H, W] to float32."""
        at = (frames.device, frames.dtype)
        if at not in self._constants:
            dtype = np.uint8 if frames.dtype == torch.uint8 else np.uint16
            scale, shift = map(torch.from_numpy, self.preprocess.scale_shift(dtype))
            self._constants[at] = scale.to(frames.device), shift.to(frames.device)
        scale, shift = self._constants[at]
        return frames.float().mul_(scale).add_(shift)


def padded(images: Sequence[Tensor], fill: float = 0.0) -> Tensor:
    """Images [..., h, w] of any sizes as one batch, each at the upper left of the largest."""
    height = max(image.shape[-2] for image in images)
    width = max(image.shape[-1] for image in images)
    batch = images[0].new_full((len(images), *images[0].shape[:-2], height, width), fill)
    for image, place in zip(images, batch, strict=True):
        place[..., : image.shape[-2], : image.shape[-1]] = image
    return batch
