"""Augmentation whose every parameter is drawn by key."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.data.keyed import Key
from skipway.images import resize

Array = npt.NDArray[Any]

_PAD_CROP_FLIP, _AREA, _ERASE, JITTER, POLICY = 0, 3, 43, 84, 90
"""Where the draws of each begin. None uses those of another, else mirrored images would all be
cropped from the same side. Those of the policy are the last: there may be many."""


def pad_crop_flip(x: Tensor, key: Key, pad: int, flip: bool | Literal["alternate"]) -> Tensor:
    """He et al. 2015, section 4.2, for a whole batch: pad by zeros, crop at random, mirror.

    flip: by chance, or alternate: in every other epoch (Jordan 2024, 2404.00498, section 3.6).
    x: normalised [B, C, H, W], so that zero is the mean; `key.index` is [B]. Same shape out.
    """
    draws = key.uniform(3, _PAD_CROP_FLIP)
    height, width = x.shape[2:]
    if pad:
        dy, dx = (
            torch.from_numpy((draws[:, i] * (2 * pad + 1)).astype(np.int64)).to(x.device)
            for i in (0, 1)
        )
        padded = F.pad(x, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
        windows = padded.unfold(1, height, 1).unfold(2, width, 1)  # [B, dy, dx, C, H, W]
        x = windows[torch.arange(len(x), device=x.device), dy, dx]
    if flip:
        chosen = draws[:, 2] < 0.5
        if flip == "alternate":
            chosen = replace(key, epoch=0).uniform(1, _PAD_CROP_FLIP + 2)[:, 0] < 0.5
            chosen = chosen ^ bool(key.epoch % 2)
        mirrored = torch.from_numpy(chosen).to(x.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x


def random_resized_crop(
    image: Array, size: tuple[int, int], key: Key, area: tuple[float, float], interpolation: str
) -> Array:
    """Szegedy et al. 2014 (1409.4842, section 6): a part of random area and aspect, resized.

    uint8 or uint16 [H, W, C] to [*size, C]. Aspect ratio log-uniform in 3/4..4/3; after ten
    parts that do not fit, the largest central one.
    """
    height, width = image.shape[:2]
    draws = key.uniform(40, _AREA).reshape(10, 4)
    for share, aspect, top, left in draws:
        target = height * width * (area[0] + (area[1] - area[0]) * share)
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * aspect)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            y, x = int(top * (height - h + 1)), int(left * (width - w + 1))
            return resize(image, size, interpolation, (x, y, x + w, y + h))
    ratio = min(max(width / height, 3 / 4), 4 / 3)
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    y, x = (height - h) // 2, (width - w) // 2
    return resize(image, size, interpolation, (x, y, x + w, y + h))


def erased(x: Tensor, key: Key, probability: float) -> Tensor:
    """Random erasing (Zhong et al. 2017, 1708.04896) in torchvision's ranges: a rectangle of random
    images set to 0, the mean.

    x: normalised [B, C, H, W]. Area 2 to 33 % of the image, aspect ratio log-uniform in 0.3 to
    3.3; after ten rectangles that do not fit, none.
    """
    height, width = x.shape[2:]
    draws = key.uniform(41, _ERASE)
    for i in np.flatnonzero(draws[:, 0] < probability).tolist():
        for share, aspect, top, left in draws[i, 1:].reshape(10, 4):
            target = height * width * (0.02 + 0.31 * share)
            ratio = 0.3 * (3.3 / 0.3) ** aspect
            h, w = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < h < height and 0 < w < width:
                at, to = int(top * (height - h + 1)), int(left * (width - w + 1))
                x[i, :, at : at + h, to : to + w] = 0
                break
    return x


def partner(index: Array) -> int:
    """By how many places the images of a batch are shifted to be mixed: by as few as it takes that
    none meets another copy of itself, whose mixture would be none; by 1 where all shifts do.

    index: the position of each image in the data set, [B].
    """
    shifts = range(1, len(index))
    return next((s for s in shifts if (np.roll(index, -s) != index).all()), 1)


def mixed(x: Tensor, key: Key, mixup: float, cutmix: float, shift: int = 1) -> tuple[Tensor, float]:
    """Mixup (1710.09412) or CutMix (1905.04899) of each image with that `shift` places further on.

    x: [B, C, H, W], B > 1. mixup, cutmix: alpha of Beta(alpha, alpha), 0 for none; of both, one
    for each batch with probability 1/2. Returns the images and the share of each that is its own.
    """
    draw = key.generator()
    cut = cutmix > 0 and (not mixup or draw.random() < 0.5)
    alpha = cutmix if cut else mixup
    share = float(draw.beta(alpha, alpha))
    others = x.roll(-shift, 0)
    if not cut:
        return torch.lerp(others, x, share), share
    height, width = x.shape[2:]
    h, w = (round(side * math.sqrt(1 - share)) for side in (height, width))
    # the centre is drawn and the rectangle cut off at the border, as in the paper's code
    y, z = int(draw.random() * height), int(draw.random() * width)
    top, left = max(y - h // 2, 0), max(z - w // 2, 0)
    bottom, right = min(y - h // 2 + h, height), min(z - w // 2 + w, width)
    x = x.clone()
    x[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return x, 1 - (bottom - top) * (right - left) / (height * width)
