"""What is wrong with masks of classes, and what is in them, before anything is trained on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.check import LISTED, Looks, size_rows, table, wrapped
from skipway.check_objects import leaks, problem_lines, unreadable
from skipway.data import DataSet
from skipway.data.pixels import (
    KINDS,
    MaskedSplit,
    Problem,
    form_of_masks,
    mask_problems,
    open_pixels,
)
from skipway.data.preflight import balance, scan
from skipway.errors import InputError, harmless
from skipway.images import verify

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PixelReport:
    """Problems of masks, and how much of each class the splits hold."""

    path: str
    form: str
    """As `form_of_masks` gives it."""
    problems: list[Problem]
    data: DataSet | None
    """Without what is at fault; None where nothing is left to be learned."""

    @property
    def ok(self) -> bool:
        """Whether a training would take the data as they are, and its scores could be trusted."""
        return not self.problems

    @property
    def _splits(self) -> dict[str, MaskedSplit]:
        splits = self.data.splits.items() if self.data else ()
        return {name: split for name, split in splits if isinstance(split, MaskedSplit)}

    def to_json(self) -> dict[str, Any]:
        classes = self.data.classes if self.data else ()
        return {
            "ok": self.ok,
            "form": self.form,
            "classes": list(classes),
            "splits": {
                name: {
                    "images": len(split),
                    "pixels": int(split.sizes.prod(axis=1, dtype=np.int64).sum()),
                    "ignored": split.ignored(),
                    "classes": self.data.counts(name) if self.data else {},
                    "images_with": dict(zip(classes, _images_with(split).tolist(), strict=True)),
                }
                for name, split in self._splits.items()
            },
            "notes": list(self.data.notes) if self.data else [],
            "problems": [asdict(problem) for problem in self.problems],
        }

    def lines(self) -> Iterator[str]:
        """The report for a terminal."""
        classes = f", {len(self.data.classes)} classes" if self.data else ""
        yield f"{harmless(self.path)}: {self.form}{classes}"
        for note in self.data.notes if self.data else ():
            yield from wrapped(harmless(note), "  ")
        if self.data is not None:
            yield ""
            yield from table(list(self._rows(self.data.classes)))
            yield "Of each class: its share of the judged pixels, and the images that have it."
            train = self._splits["train"].per_class(len(self.data.classes))
            yield from wrapped(balance(self.data.classes, train, "pixels"), "")
            yield ""
        yield from problem_lines(self.problems, KINDS)

    def _rows(self, classes: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """The table: a title, and a cell for each split."""
        splits = self._splits.values()
        yield ("", *self._splits)
        yield ("images", *(f"{len(split):,}" for split in splits))
        yield from size_rows([Looks(split.sizes) for split in splits])
        pixels = [int(split.sizes.prod(axis=1, dtype=np.int64).sum()) for split in splits]
        shares = (split.ignored() / n for split, n in zip(splits, pixels, strict=True))
        yield ("ignored pixels", *map(_percent, shares))
        shown = np.arange(len(classes))
        if len(classes) > LISTED:
            order = np.argsort(self._splits["train"].per_class(len(classes)), kind="stable")
            shown = np.sort(order[:LISTED])
            yield (f"the {LISTED} rarest classes", *("" for _ in splits))
        cells = [_cells(split) for split in splits]
        for k in shown:
            yield (f"  {harmless(classes[k])}", *(of_split[k] for of_split in cells))


def _images_with(split: MaskedSplit) -> Array:
    """Images that have a pixel of each class: int64 [K]."""
    return np.count_nonzero(split.counts, axis=0)


def _cells(split: MaskedSplit) -> list[str]:
    """Of each class the share of the judged pixels, and the images."""
    pixels = split.per_class(split.counts.shape[1])
    images = _images_with(split)
    width = len(f"{images.max():,}")
    total = pixels.sum()
    return [
        f"{_percent(of_class / total)} in {n:>{width},}"
        for of_class, n in zip(pixels, images, strict=True)
    ]


def _percent(share: float) -> str:
    return "<0.01%" if 0 < share < 5e-5 else f"{share:.2%}"


def check_pixels(path: str, val: Any, seed: int, threads: int) -> PixelReport:
    """The report on masks and their images, each of which is read. Raises InputError where the
    path holds none, and for those that cannot be read at all."""
    found = mask_problems(path)
    try:
        data = open_pixels(path, val, seed, "skip")
    except InputError:
        if not found:
            raise
        data = None
    if data is not None:
        scans = {name: scan(split, threads, verify) for name, split in data.splits.items()}
        found += [*unreadable(data, scans), *leaks(data, scans)]
    return PixelReport(path, str(form_of_masks(path)), found, data)
