"""From scores of classes to the class of each pixel, in strips, so that an image may be large.

Scores are a network's logits, or probabilities. They are interpolated bilinearly, each the value at
the centre of its pixel and level beyond the outermost centres (``align_corners=False``), and only
then is the class decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Array = npt.NDArray[Any]

_STRIP = 1 << 24
"""Scores that are held at a time: 64 MiB."""


def strips(scores: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Scores [K, h, w] at another height and width: float32 [K, rows, width], from top to bottom.

    At their own size they come back as they are, to the bit.
    """
    classes, own, _ = scores.shape
    height, width = size
    rows = max(_STRIP // (classes * width), 1)
    at = (torch.arange(height, dtype=torch.float64, device=scores.device) + 0.5) * (own / height)
    at = (at - 0.5).clamp(0, own - 1)
    upper = at.long()
    lower = (upper + 1).clamp_max(own - 1)
    shares = (at - upper).float()[:, None]
    for top in range(0, height, rows):
        part = slice(top, top + rows)
        lines = torch.lerp(
            scores[:, upper[part]].float(), scores[:, lower[part]].float(), shares[part]
        )
        if width != lines.shape[2]:
            lines = F.interpolate(lines[None], (lines.shape[1], width), mode="bilinear")[0]
        yield lines


def best(scores: Tensor) -> Tensor:
    """The class of the highest of the scores [K, h, w], of equals the first: uint8 [h, w].

    Class after class: on a processor several times as fast as `argmax` over the outermost axis.
    """
    highest, classes = scores[0].clone(), scores.new_zeros(scores.shape[1:], dtype=torch.uint8)
    for k in range(1, len(scores)):
        classes.masked_fill_(scores[k] > highest, k)
        torch.maximum(highest, scores[k], out=highest)
    return classes


def decided(strips: Iterable[Tensor]) -> Array:
    """The class of each pixel from scores [K, rows, W], strip below strip: uint8 [H, W]."""
    return np.concatenate([best(scores).cpu().numpy() for scores in strips])


def class_map(scores: Tensor, size: tuple[int, int]) -> Array:
    """The class of each pixel of an image of that height and width, from scores [K, h, w] of all of
    it: uint8 [H, W]."""
    return decided(strips(scores, size))
