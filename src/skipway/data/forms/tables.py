"""Tables of paths and labels: CSV, or parquet.

Columns are found by their names, in any case: the path (path, file, filename, file_name, image),
the label (label, class, target), and, where there is one, ``split`` (train, val, test), or else
subset, set, partition or dataset_split that holds nothing but names of splits. A CSV has a header,
is UTF-8, and is separated by commas, semicolons or tabs. Paths are absolute or relative to the
table's folder.
"""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from skipway.data.forms.folders import split_name
from skipway.data.split import FolderReader, Found, Names, Split
from skipway.errors import InputError, harmless

PATHS = ("path", "file", "filename", "file_name", "image")
LABELS = ("label", "class", "target")
_SPLIT = ("split",)
_MAYBE_SPLIT = ("subset", "set", "partition", "dataset_split")
_SHOWN = 5
"""Rows that an error, or columns that a note names at most."""


class Row(NamedTuple):
    """A line of a CSV or a row of a parquet, counted from 1."""

    number: int
    path: str
    label: str
    split: str | None
    """None where the table has no such column."""


def column(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    """The one column with one of the names wanted; None for none. Raises ValueError for several."""
    found = [i for i, name in enumerate(names) if name.strip().lower() in wanted]
    if len(found) > 1:
        raise ValueError(f"{' and '.join(names[i].strip() for i in found)} could both be meant")
    return found[0] if found else None


def split_column(names: Sequence[str], values: Callable[[int], Iterable[str]]) -> int | None:
    """The column that tells splits. values: of a column. Raises ValueError for several."""
    found = column(names, _SPLIT)
    if found is not None:
        return found
    maybe = [
        name
        if column([name], _MAYBE_SPLIT) == 0 and all(split_name(v.strip()) for v in values(i))
        else ""
        for i, name in enumerate(names)
    ]
    return column(maybe, _MAYBE_SPLIT)


def unused(names: Sequence[str], used: Iterable[int | None]) -> tuple[str, ...]:
    """A note on the columns that are not used, where there are any."""
    others = [harmless(n.strip()) for i, n in enumerate(names) if n.strip() and i not in {*used}]
    more = ", …" if len(others) > _SHOWN else ""
    return (f"columns not used: {', '.join(others[:_SHOWN])}{more}",) if others else ()


def is_csv(path: Path) -> bool:
    """Whether a file is called so, or begins with a line that names path and label."""
    if path.suffix.lower() in (".csv", ".tsv"):
        return True
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _separator(file.readline(10_000)) is not None
    except (OSError, ValueError):
        return False


def open_csv(path: Path) -> Found:
    """Images by a CSV. Raises InputError that names the lines at fault."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            separator = _separator(header)
            if separator is None:
                raise InputError(
                    f"{harmless(path)}: its first line does not name a path and a label: "
                    f"{harmless(header.strip())[:60]!r}\n"
                    f"Columns: one of {', '.join(PATHS)}; one of {', '.join(LABELS)}; and split "
                    "where there is one."
                )
            names, places = _columns(path, file, separator)
            rows = _rows(path, _lines(file, separator), places)
            return found_in(path, "line", rows, notes=unused(names, places))
    except UnicodeDecodeError:
        raise InputError(f"{harmless(path)}: not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{harmless(path)}: {error.strerror}") from None


def _separator(header: str) -> str | None:
    """What separates the columns, None where the line names no path and label."""
    for separator in ",;\t":
        try:
            names: list[str] = next(_reader([header], separator), [])
            if column(names, PATHS) is not None and column(names, LABELS) is not None:
                return separator
        except csv.Error:
            continue
        except ValueError:  # several, which is told when the table is read
            return separator
    return None


def _reader(lines: Iterable[str], separator: str) -> Any:
    return csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)


def _lines(file: TextIO, separator: str) -> Any:
    """A `csv.reader` from the first line on."""
    file.seek(0)
    return _reader(file, separator)


def _columns(
    path: Path, file: TextIO, separator: str
) -> tuple[list[str], tuple[int | None, int | None, int | None]]:
    """The names of the columns, and the places of path, label and split. Raises InputError where
    several could be meant."""

    def values(i: int) -> Iterator[str]:
        lines = _lines(file, separator)
        next(lines)
        with contextlib.suppress(csv.Error):  # told, with its line, when the rows are read
            yield from (fields[i] if i < len(fields) else "" for fields in lines if fields)

    try:
        names = next(_lines(file, separator))
        return names, (column(names, PATHS), column(names, LABELS), split_column(names, values))
    except UnicodeDecodeError:
        raise
    except (csv.Error, ValueError) as error:
        raise InputError(f"{harmless(path)}, line 1: {harmless(error)}") from None


def _rows(path: Path, lines: Any, places: Sequence[int | None]) -> Iterator[Row]:
    number = 1
    try:
        names = next(lines)
        for number, fields in _numbered(lines):
            if len(fields) != len(names):
                raise ValueError(f"{len(fields)} fields where the header has {len(names)}")
            file, label, split = (None if i is None else fields[i] for i in places)
            yield Row(number, file or "", label or "", split)
    except UnicodeDecodeError:
        raise
    except (csv.Error, ValueError) as error:
        raise InputError(f"{harmless(path)}, line {number}: {harmless(error)}") from None


def _numbered(lines: Any) -> Iterator[tuple[int, list[str]]]:
    """The records of a `csv.reader`, each with the line on which it begins; empty ones are passed
    over."""
    number = lines.line_num
    for fields in lines:
        if fields:
            yield number + 1, fields
        number = lines.line_num


def found_in(
    path: Path,
    unit: str,
    rows: Iterable[Row],
    order: Callable[[str], Any] = str,
    notes: tuple[str, ...] = (),
) -> Found:
    """What the rows of a table make; `unit` is what a row is called in errors, `order` gives what
    the labels are sorted by, `notes` what is known of its columns."""
    faults = _Faults(path, unit)
    first: dict[str, int] = {}
    by_split: dict[str, list[tuple[str, str, int]]] = {}
    absolute = 0
    for row in rows:
        label, split = row.label.strip(), "all"
        if row.split is not None:
            known = split_name(row.split.strip())
            if known is None:
                faults.add(
                    row.number, f"the split {harmless(row.split)!r} is none of train, val, test"
                )
                continue
            split = known
        if not row.path or not label:
            faults.add(row.number, "no path" if not row.path else "no label")
            continue
        place = os.path.normpath(path.parent / row.path)
        if place in first:
            faults.add(row.number, f"{harmless(row.path)} again, first in {unit} {first[place]}")
            continue
        first[place] = row.number
        if "\0" in place or not os.path.isfile(place):
            faults.add(row.number, f"{harmless(row.path)}: no such file")
        absolute += os.path.isabs(row.path)
        by_split.setdefault(split, []).append((label, row.path, row.number))
    faults.tell()
    if not by_split:
        raise InputError(f"{harmless(path)}: no {unit}s below the header")
    labels_found = {label for part in by_split.values() for label, _, _ in part}
    classes = tuple(sorted(labels_found, key=order))
    place_of = {c: i for i, c in enumerate(classes)}
    splits, numbers = {}, {}
    for name, part in by_split.items():
        part.sort(key=lambda row: (place_of[row[0]], row[1]))  # as class folders are
        labels = np.array([place_of[label] for label, _, _ in part], np.int64)
        splits[name] = Split(FolderReader(path.parent), Names(file for _, file, _ in part), labels)
        numbers[name] = unit, np.array([number for _, _, number in part], np.int64)
    if absolute:
        notes = (f"{absolute:,} paths are absolute: they hold on this machine", *notes)
    return Found(splits, classes, notes=notes, rows=numbers)


class _Faults:
    """What is wrong with a table; the first fault is told in words, others by their row."""

    def __init__(self, path: Path, unit: str) -> None:
        self.path, self.unit = path, unit
        self.found: list[tuple[int, str]] = []

    def add(self, number: int, what: str) -> None:
        self.found.append((number, what))

    def tell(self) -> None:
        """Raise InputError where there is any."""
        if not self.found:
            return
        (number, what), *others = self.found
        more = ""
        if others:
            shown = ", ".join(str(n) for n, _ in others[:_SHOWN])
            rest = f" and {len(others) - _SHOWN:,} more" if len(others) > _SHOWN else ""
            more = f"\nalso at fault: {self.unit} {shown}{rest}"
        raise InputError(f"{harmless(self.path)}, {self.unit} {number:,}: {what}{more}")
