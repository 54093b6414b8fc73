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
    lies between a lower and a higher one instead. So a value counts as smoothed if at least half of
    its pixels lie so, and is believed if there are `MANY` such values that together hold less than
    half of the pixels; then values as rare as the commonest of them are left out too.
    """
    masks = [
        (split.root, name, one.drawn.grey)
        for split in looked
        for name, one in zip(split.pairs.masks, split.looks, strict=True)
        if isinstance(one, Look) and one.drawn.grey is not None
    ]
    values = {value for _, _, grey in masks for value in grey.tolist()}
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
    held = sum(total[value] for value in smoothed)
    if len(smoothed) >= MANY and 2 * held < total.total():
        most = max(total[value] for value in smoothed)
        left |= {value for value in values if total[value] <= most}
    return frozenset(left)


def _counts(root: Path, name: str) -> tuple[dict[int, int], dict[int, int]]:
    """Pixels of each value in a mask, and those of them that lie between a lower and a higher."""
    try:
        with mask_image(FolderReader(root).read(name), name) as image:
            pixels = np.asarray(image)
    except DecodeError:  # it has just been read; `check` tells of it
        return {}, {}
    pixels = pixels[..., 0] if pixels.ndim == 3 else pixels
    low = high = np.pad(pixels, 1, "edge")
    for axis in (0, 1):  # the least and the most of 3 x 3 pixels
        parts = [np.roll(low, shift, axis) for shift in (-1, 0, 1)]
        low = np.minimum.reduce(parts)
        high = np.maximum.reduce([np.roll(high, shift, axis) for shift in (-1, 0, 1)])
    inside = (low[1:-1, 1:-1] < pixels) & (pixels < high[1:-1, 1:-1])
    return _histogram(pixels), _histogram(pixels[inside])


def _histogram(pixels: Array) -> dict[int, int]:
    values, counts = np.unique(pixels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
