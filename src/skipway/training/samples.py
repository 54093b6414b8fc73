"""Pictures of what the network is shown: the first training images, augmented."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.config import RunConfig
from skipway.data import Key
from skipway.data.feed import Batch, batches, widened
from skipway.data.keyed import permutation
from skipway.errors import harmless
from skipway.images import DecodeError, Preprocess, thumbnail
from skipway.tasks.classify import Mixed
from skipway.training.prepare import Prepared
from skipway.training.record import write_json

Array = npt.NDArray[Any]

SHOWN = 24
"""One more is made, with which the last is mixed where images are."""


def write_samples(run: Path, prepared: Prepared, config: RunConfig) -> None:
    """Write ``samples.json``: the first images of the first training batch as they reach the
    network, and their classes.

    They are made apart from the feed. Every draw has a key, so the run is the same without them.
    """
    data, task = prepared.data, prepared.task
    split = data.splits["train"]
    first = batches(len(split), config.batch_size)[0][1]
    samples, index = [], []
    for i in permutation(len(split), config.seed, 0)[: min(first, SHOWN + 1)].tolist():
        with contextlib.suppress(DecodeError):  # the feed tells of it when its turn comes
            image = split.image(i, config.data.channels)
            samples.append(task.augment(image, split.target(i), Key(config.seed, 0, i)))
            index.append(i)
    if not samples:
        return
    if any(image.dtype == np.uint16 for image, _ in samples):
        samples = [(widened(image), target) for image, target in samples]
    places = np.array(index, np.int64)
    batch = task.to_input(Batch(*task.collate(samples), places), Key(config.seed, 0, places))
    pictures = pixels(batch.images.numpy(), task.preprocess)
    rows: list[dict[str, Any]] = [
        {
            "name": harmless(split.names[int(i)]),
            "label": data.classes[split.target(int(i))],
            "image": thumbnail(picture),
        }
        for i, picture in zip(places, pictures, strict=True)
    ]
    if isinstance(batch.targets, Mixed):
        for row, other in zip(rows, batch.targets.others.tolist(), strict=True):
            row |= {"other": data.classes[other], "share": batch.targets.share}
    write_json(run / "samples.json", {"epoch": 1, "images": rows[:SHOWN]})


def pixels(inputs: Array, preprocess: Preprocess) -> Array:
    """Model input [B, C, H, W] back to uint8 [B, H, W, 3], levels outside of 0..255 clipped."""
    scale, shift = preprocess.scale_shift(np.uint8)
    levels = np.clip(np.rint((inputs - shift) / scale), 0, 255).astype(np.uint8)
    colour = levels[:, :3] if levels.shape[1] >= 3 else np.repeat(levels, 3, axis=1)
    return np.moveaxis(colour, 1, -1)
