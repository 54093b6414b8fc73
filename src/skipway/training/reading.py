"""The images of a run, each read once: its content, and its pixels where they live in memory.

What was read is kept with the run until it ends, so that going on is quick where the files are as
they were, and is refused where an image has changed.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.config import RunConfig
from skipway.data import DataSet
from skipway.data.feed import decode_all
from skipway.data.preflight import DIGEST, Scan, scan
from skipway.errors import InputError, harmless
from skipway.files import atomic_write
from skipway.images import Preprocess, verify

Array = npt.NDArray[Any]

KEPT = "checkpoints/images.npz"
"""Where in a run it is kept."""
SLOW = 2.0
"""Seconds of reading from which on pixels are kept too: they take room on the disk."""


@dataclass(frozen=True)
class Reading:
    """What reading each image once gave, by split."""

    stamps: dict[str, bytes]
    """As the splits gave them before they were read."""
    scans: dict[str, Scan]
    """Empty where images are decoded in each epoch and were not looked at before."""
    frames: dict[str, Array]
    """uint8 or uint16 [N, H, W, C]; empty where they do not live in memory."""
    seconds: float = 0.0
    """What it took; 0 where it was kept."""

    def keep(self, run: Path) -> None:
        """Write it into a run's folder, unless it comes from there. Raises InputError."""
        if not self.seconds or not self.scans:
            return
        arrays: dict[str, Any] = {}
        for name, found in self.scans.items():
            arrays[f"{name}.stamp"] = np.frombuffer(self.stamps[name], np.uint8)
            arrays[f"{name}.digests"] = found.digests
            failed = json.dumps(found.failed).encode()
            arrays[f"{name}.failed"] = np.frombuffer(failed, np.uint8)
            if self.seconds > SLOW and name in self.frames:
                arrays[f"{name}.frames"] = self.frames[name]
        (run / KEPT).parent.mkdir(exist_ok=True)
        with atomic_write(run / KEPT) as file:
            np.savez(file, **arrays)


def read_images(
    data: DataSet, config: RunConfig, preprocess: Preprocess, run: Path | None = None
) -> Reading:
    """Read every image of a data set as the configuration asks: into memory, or to look at it.

    run: the folder of a run that goes on. What it kept is taken where no file has changed since.
    Raises InputError where an image is another than when the run began.
    """
    begun = time.perf_counter()
    stamps = {name: split.stamp() for name, split in data.splits.items()}
    before = _kept(run / KEPT, data) if run is not None else None
    complete = before is not None and (before.frames or not config.data.resident)
    if before is not None and complete and before.stamps == stamps:
        return before
    frames: dict[str, Array] = {}
    scans: dict[str, Scan] = {}
    for name, split in data.splits.items():
        if config.data.resident:
            frames[name], scans[name] = decode_all(split, preprocess, config.threads)
        elif config.data.preflight:
            scans[name] = scan(split, config.threads, verify)
    if before is not None:
        assert run is not None
        _refuse_changed(run, data, before.scans, scans)
    return Reading(stamps, scans, frames, time.perf_counter() - begun)


def forget(run: Path) -> None:
    """Remove what was kept: the run has ended."""
    (run / KEPT).unlink(missing_ok=True)


def _kept(path: Path, data: DataSet) -> Reading | None:
    """What was kept of that data; None where nothing was, or where it is damaged."""
    kept = Reading({}, {}, {})
    try:
        with np.load(path, allow_pickle=False) as arrays:  # checksums are zip's
            for name, split in data.splits.items():
                kept.stamps[name] = arrays[f"{name}.stamp"].tobytes()
                failed = json.loads(arrays[f"{name}.failed"].tobytes())
                digests = arrays[f"{name}.digests"]
                if digests.shape != (len(split), DIGEST):
                    return None
                kept.scans[name] = Scan(digests, [(int(i), str(why)) for i, why in failed])
                if f"{name}.frames" in arrays:
                    kept.frames[name] = arrays[f"{name}.frames"]
                    if len(kept.frames[name]) != len(split):
                        return None
    except Exception:  # whatever is wrong with it, the images are there to be read again
        return None
    return kept if len(kept.frames) in (0, len(data.splits)) else None


def _refuse_changed(
    run: Path, data: DataSet, before: dict[str, Scan], now: dict[str, Scan]
) -> None:
    changed = [
        split.names[int(i)]
        for name, split in data.splits.items()
        for i in np.flatnonzero(_contents(before[name]) != _contents(now[name]))
    ]
    if changed:
        others = f" and {len(changed) - 1:,} others" if len(changed) > 1 else ""
        raise InputError(
            f"--resume {harmless(run)}: {harmless(changed[0])}{others} in {harmless(data.path)} "
            "changed since the run began\nPut back what was there, or train anew."
        )


def _contents(found: Scan) -> Array:
    """What can be compared of each image: void [N]; zeros where it cannot be read."""
    digests = found.digests.copy()
    digests[[i for i, _ in found.failed]] = 0
    return digests.view(f"V{DIGEST}")[:, 0]
