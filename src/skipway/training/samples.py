"""Pictures of what the network is shown: the first training images, augmented."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from skipway.config import RunConfig
from skipway.data import Key
from skipway.data.feed import Batch, batches, widened
from skipway.errors import harmless
from skipway.images import DecodeError
from skipway.training.prepare import Prepared
from skipway.training.record import write_json

SHOWN = 24
"""One more is made, with which the last is mixed where images are."""


def write_samples(run: Path, prepared: Prepared, config: RunConfig) -> None:
    """Write ``samples.json``: the first images of the first training batch as they reach the
    network, and their classes.

    They are made apart from the feed. Every draw has a key, so the run is the same without them.
    """
    data, task = prepared.data, prepared.task
    split = data.splits["train"]
    first = min(batches(len(split), config.batch_size)[0][1], SHOWN + 1)
    samples, index, copies = [], [], []
    order, repeat = prepared.feeds["train"].order(0)
    for i, copy in zip(order[:first].tolist(), repeat[:first].tolist(), strict=True):
        with contextlib.suppress(DecodeError):  # the feed tells of it when its turn comes
            image = split.image(i, config.data.channels)
            samples.append(task.augment(image, split.target(i), Key(config.seed, 0, i, copy)))
            index.append(i)
            copies.append(copy)
    if not samples:
        return
    if any(image.dtype == np.uint16 for image, _ in samples):
        samples = [(widened(image), target) for image, target in samples]
    places = np.array(index, np.int64)
    key = Key(config.seed, 0, places, np.array(copies, np.int64))
    batch = task.to_input(Batch(*task.collate(samples), places), key)
    names = [{"name": harmless(split.names[i])} for i in index]
    rows = [name | row for name, row in zip(names, task.shown(batch, data.classes), strict=True)]
    write_json(run / "samples.json", {"epoch": 1, "images": rows[:SHOWN]})
