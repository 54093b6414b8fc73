"""Values in masks that are no classes, where no file names the classes: what a smooth resize, or
JPEG, puts between the values of neighbours, and instances in 16 bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.data.pixels.checking import MANY, Look, Looked
from skipway.data.pixels.masked import mask_image
from skipway.data.problems import in_threads
from skipway.data.split import FolderReader
from skipway.images import DecodeError
from skipway.segmentations import IGNORED

Array = npt.NDArray[Any]

_SEEN = 64
"""Masks that are read again, those with the most values."""


def no_classes(looked: Iterable[Looked]) -> frozenset[int]:
    """The values of masks that look like anything but classes; none where all may be classes.

    A class has an inside, and most of its border is to one other class. A pixel that was smoothed
    lies between a lower one and a higher one on its other side. So a value counts as smoothed if at
    least half of its pixels lie so. Values as rare as the commonest of these are left out too. That
    is believed if there are `MANY` of the first and what is left holds at least half of the pixels:
    of noise in many classes nothing would be left.
    """
    masks = [
        (split.root, name, one.drawn.grey, one.drawn.counts)
        for split in looked
        for name, one in zip(split.pairs.masks, split.looks, strict=True)
        if isinstance(one, Look) and one.drawn.grey is not None
    ]
    everywhere = Counter[int]()
    for _, _, grey, counts in masks:
        for value, n in zip(grey.tolist(), counts.tolist(), strict=True):
            everywhere[value] += n
    values = everywhere.keys()
    wide = {value for value in values if value > IGNORED}
    left = wide if len(wide) >= MANY else set()
    if len(values - left) < MANY + 2:  # what is smoothed lies between two at least
        return frozenset(left)
    masks.sort(key=lambda mask: len(mask[2]), reverse=True)
    seen = in_threads(lambda mask: _counts(mask[0], mask[1]), masks[:_SEEN])
    total, between = Counter[int](), Counter[int]()
    for all_of_it, inside in seen:
        total.update(all_of_it)
        between.update(inside)
    smoothed = {v for v in total if v not in left and 2 * between[v] >= total[v]}
    if len(smoothed) >= MANY:
        most = max(everywhere[value] for value in smoothed)
        rare = {value for value in values if everywhere[value] <= most}
        if 2 * sum(everywhere[value] for value in rare) <= everywhere.total():
            left |= rare
    return frozenset(left)


def _counts(root: Path, name: str) -> tuple[dict[int, int], dict[int, int]]:
    """Pixels of each value in a mask, and those of them that lie between a lower one and a higher
    one on the other side, along two of the four lines through them at least."""
    try:
        with mask_image(FolderReader(root).read(name), name) as image:
            pixels = np.asarray(image)
    except DecodeError:  # it has just been read; `check` tells of it
        return {}, {}
    pixels = pixels[..., 0] if pixels.ndim == 3 else pixels
    height, width = pixels.shape
    around = np.pad(pixels, 1, "edge")
    lines = np.zeros(pixels.shape, np.uint8)
    for y, x in ((0, 1), (1, 0), (1, 1), (1, -1)):
        one, other = (
            around[1 + s * y : 1 + s * y + height, 1 + s * x : 1 + s * x + width] for s in (-1, 1)
        )
        lines += (np.minimum(one, other) < pixels) & (pixels < np.maximum(one, other))
    return _histogram(pixels), _histogram(pixels[lines >= 2])


def _histogram(pixels: Array) -> dict[int, int]:
    values, counts = np.unique(pixels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
