"""Augmentation whose every parameter is drawn by key."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.data.keyed import Key
from skipway.images import resize

Array = npt.NDArray[Any]

_OF_BATCH = 3
"""Draws of an image that `pad_crop_flip` takes: the first. What else is drawn comes after, else
mirrored images would all be cropped from the same side."""


def pad_crop_flip(x: Tensor, key: Key, pad: int, flip: bool) -> Tensor:
    """He et al. 2015, section 4.2, for a whole batch: pad by zeros, crop at random, mirror.

    x: normalised [B, C, H, W], so that zero is the mean; `key.index` is [B]. Same shape out.
    """
    draws = key.uniform(_OF_BATCH)
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
        mirrored = torch.from_numpy(draws[:, 2] < 0.5).to(x.device)
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
    draws = key.uniform(_OF_BATCH + 40)[_OF_BATCH:].reshape(10, 4)
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
