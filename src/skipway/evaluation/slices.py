"""Accuracy by the values of a column: of the light, the camera, the place, whatever was noted."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from skipway.data.forms.tables import PATHS, column
from skipway.data.split import FolderReader
from skipway.errors import InputError, harmless, nearest
from skipway.evaluation.labelled import Labelled
from skipway.metrics import Scored, fisher, holm, wilson_interval

FEW = 30
"""Images below which a slice says little."""
MOST = 1000
"""Values of a column at most: a column of more names images rather than groups of them."""


@dataclass(frozen=True)
class Slice:
    """The images with one value."""

    value: str
    n: int
    accuracy: float
    interval: tuple[float, float]
    """Of the accuracy, 95 % (Wilson)."""
    difference: float | None
    """Accuracy minus that of all other images; None where there are none."""
    p: float | None
    """Of Fisher's exact test of that difference, adjusted for how many slices there are (Holm)."""

    @property
    def few(self) -> bool:
        return self.n < FEW

    @property
    def clear(self) -> bool:
        """Whether chance alone hardly explains the difference."""
        return self.p is not None and self.p < 0.05


@dataclass(frozen=True)
class Sliced:
    """A column's slices, that of the fewest images first."""

    column: str
    slices: tuple[Slice, ...]
    left_out: int
    """Images of which the table has no row."""

    @property
    def worst(self) -> Slice:
        """The slice of the lowest accuracy, of those that are clearly below the others where there
        are any."""
        clear = [s for s in self.slices if s.clear and (s.difference or 0) < 0]
        return min(clear or self.slices, key=lambda s: s.accuracy)


class Column:
    """One column of a CSV, by path. Raises InputError that names the line at fault.

    given: FILE.csv:COLUMN. The file has a header, is UTF-8, is separated by commas, semicolons or
    tabs, and has a column of paths (`data.forms.tables.PATHS`): as the data names its images, or of
    files, absolute or relative to the table's folder or to the data.
    """

    def __init__(self, given: str) -> None:
        file, _, self.name = given.rpartition(":")
        if not file or not self.name:
            raise InputError(f"--slices {harmless(given)}: give FILE.csv:COLUMN")
        self.path = Path(file)
        self.rows: dict[str, str] = {}
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as lines:
                self._read(lines)
        except UnicodeDecodeError:
            raise InputError(f"--slices {harmless(file)}: not UTF-8; save it as UTF-8") from None
        except OSError as error:
            raise InputError(f"--slices {harmless(file)}: {error.strerror}") from None

    def _read(self, lines: TextIO) -> None:
        shown = harmless(self.path)
        number = 1
        try:
            separator, path, value = self._places(lines.readline())
            lines.seek(0)
            reader = csv.reader(lines, delimiter=separator, strict=True)
            width = len(next(reader))
            for fields in reader:
                number = reader.line_num
                if not fields:
                    continue
                if len(fields) != width:
                    raise ValueError(f"{len(fields)} fields where the header has {width}")
                if not fields[path]:
                    raise ValueError("no path")
                found = fields[value].strip()
                if self.rows.setdefault(os.path.normpath(fields[path]), found) != found:
                    raise ValueError(f"{harmless(fields[path])} again, with another value")
        except UnicodeDecodeError:
            raise
        except (csv.Error, ValueError) as error:
            raise InputError(f"--slices {shown}, line {number}: {harmless(error)}") from None
        if not self.rows:
            raise InputError(f"--slices {shown}: no lines below the header")
        if (n := len(set(self.rows.values()))) > MOST:
            raise InputError(
                f"--slices {shown}: {harmless(self.name)} has {n:,} values, which name images "
                "rather than groups of them"
            )

    def _places(self, header: str) -> tuple[str, int, int]:
        """The separator, and where the path and the value stand."""
        for separator in ",;\t":
            names = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
            path = column(names, PATHS)
            if path is not None:
                if self.name not in names:
                    few = ", ".join(harmless(n) for n in names[:8]) + (", …" * (len(names) > 8))
                    said = f"no column {harmless(self.name)!r} among {few}."
                    raise ValueError(said + nearest(self.name, names))
                return separator, path, names.index(self.name)
        raise ValueError(f"no column of paths: one of {', '.join(PATHS)}")

    def of(self, images: Labelled, positions: Sequence[int]) -> list[str | None]:
        """The value of each image at those positions of the split; None where there is no row.

        Raises InputError where there is no row for any.
        """
        rows = dict(self.rows)
        for place in (self.path.parent, images.data):
            for path, value in self.rows.items():
                rows.setdefault(os.path.abspath(os.path.join(place, path)), value)
        reader = images.split.reader
        root = reader.root if isinstance(reader, FolderReader) else images.data
        found: list[str | None] = []
        for i in positions:
            name = images.split.names[i]
            own = rows.get(os.path.normpath(name))
            whole = os.path.abspath(os.path.join(root, name))
            found.append(rows.get(whole) if own is None else own)
        if all(value is None for value in found):
            raise InputError(
                f"--slices {harmless(self.path)}: none of its paths is that of an image that was "
                f"scored\nThey are called as {harmless(images.split.names[positions[0]])}, and "
                f"its first path is {harmless(next(iter(self.rows)))}."
            )
        return found


def slices(scored: Scored, images: Labelled, of: Column) -> Sliced:
    """The accuracy of what was scored, by the column's value."""
    values = of.of(images, scored.index.tolist())
    known = [value for value in values if value is not None]
    names, group = np.unique(known, return_inverse=True)
    right = scored.correct[[value is not None for value in values]]
    n = np.bincount(group)
    hits = np.bincount(group, right).astype(int)
    found = list(_slices(names.tolist(), hits, n))
    found.sort(key=lambda s: (s.n, s.value))
    return Sliced(of.name, tuple(found), len(values) - len(known))


def _slices(names: list[str], hits: npt.NDArray[Any], n: npt.NDArray[Any]) -> Iterator[Slice]:
    right, total = int(hits.sum()), int(n.sum())
    alone = len(names) == 1
    counts = list(zip(hits.tolist(), n.tolist(), strict=True))
    p = np.array([fisher(h, k, right - h, total - k) for h, k in counts])
    p = p if len(names) == 2 else holm(p)  # two are told apart by one test
    for name, (h, k), value in zip(names, counts, p.tolist(), strict=True):
        yield Slice(
            value=name,
            n=k,
            accuracy=h / k,
            interval=wilson_interval(h, k),
            difference=None if alone else h / k - (right - h) / (total - k),
            p=None if alone else value,
        )
