"""Parquet: images with labels as Hugging Face's datasets keep them, or a table of paths.

Images: a column (``image``, ``img`` or any other of encoded bytes, as a struct of bytes and path or
plain) and a label (label, labels, fine_label, class, target) of whole numbers or text. The names
that the schema's metadata gives for a ClassLabel are the classes, in that order. One file, or a
folder with ``train-*.parquet``, ``test-*`` and ``validation-*`` in it, in its ``data`` or in its
only folder; where no file is called so, a column ``split`` (train, val, test) tells the splits.
Paths: as in `tables`, but that whole numbers are sorted as numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from skipway.data.forms.folders import split_name, walk
from skipway.data.forms.rowgroups import KEPT, Column, ParquetReader, reading
from skipway.data.forms.tables import LABELS, PATHS, Row, column, found_in, split_column, unused
from skipway.data.split import Found, Names, Split
from skipway.errors import InputError, harmless, missing_part

Array = npt.NDArray[Any]

_IMAGE_LABELS = (*LABELS, "labels", "fine_label")
_MAGIC = b"PAR1"
_LARGE_GROUP = 16 << 20
"""Bytes of a group of rows from which on it is told how to write smaller ones."""
_SHARD = re.compile(r"(?P<split>[A-Za-z]+)(?:[-_.](?P<rest>.*))?\.parquet", re.DOTALL)
_OF = re.compile(r"(?P<i>\d{5})-of-(?P<n>\d{5})")


def is_parquet(path: Path) -> bool:
    """Whether a file begins as parquet."""
    with path.open("rb") as file:
        return file.read(4) == _MAGIC


def is_parquet_folder(path: Path) -> bool:
    """Whether a folder holds parquet files where Hugging Face puts them, and no images."""
    return _shards_folder(path) is not None


def open_parquet(path: Path) -> Found:
    """Images or paths by one file. Raises InputError where it is damaged or has neither."""
    layout = _Layout.of(path)
    if layout.image is not None:
        return _images(path.parent, {"all": [path]}, ())
    order = int if layout.whole else str
    return found_in(path, "row", _rows(path, layout), order, layout.notes)


def open_parquet_folder(path: Path) -> Found:
    """Splits of images by their files. Raises InputError for damaged or missing files."""
    folder = _shards_folder(path)
    assert folder is not None
    by_split: dict[str, list[Path]] = {}
    others = []
    for file in sorted(folder.glob("*.parquet")):
        match = _SHARD.fullmatch(file.name)
        name = split_name(match["split"]) if match else None
        if name is None:
            others.append(file)
        else:
            by_split.setdefault(name, []).append(file)
    for files in by_split.values():
        _complete(files)
    if not by_split:
        return _images(folder, {"all": others}, ())
    shown = ", ".join(harmless(file.name) for file in others[:3])
    notes = (f"{len(others)} parquet files of no split are left out: {shown}",) if others else ()
    return _images(folder, by_split, notes)


def _shards_folder(path: Path) -> Path | None:
    inner = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    for place in (path, path / "data", *(inner if len(inner) == 1 else ())):
        if next(place.glob("*.parquet"), None) is not None and not walk(path):
            return place
    return None


def _complete(files: Sequence[Path]) -> None:
    """Raise InputError where files of a numbered set are missing."""
    there: dict[tuple[str, str], set[int]] = {}
    for file in files:
        if match := _OF.search(file.stem):
            pattern = (
                f"{file.name[: match.start()]}{{:05}}-of-{match['n']}{file.name[match.end() :]}"
            )
            there.setdefault((pattern, match["n"]), set()).add(int(match["i"]))
    for (pattern, n), found in there.items():
        missing = sorted(set(range(int(n))) - found)
        if missing:
            raise InputError(
                f"{harmless(files[0].parent / pattern.format(missing[0]))}: missing, "
                f"{len(found)} of {int(n)} files are there; fetch it"
            )


class _Layout(NamedTuple):
    """Which columns of a file are what."""

    image: Column | None
    """None for a table of paths."""
    path: str | None
    label: str
    split: str | None
    """The column of splits; not used where the names of the files tell them."""
    names: tuple[str, ...] | None
    """Of the classes, in the order of their numbers, where the metadata gives them."""
    whole: bool
    """Labels are numbers."""
    notes: tuple[str, ...]
    """Of a table of paths, on its other columns."""

    @staticmethod
    def of(path: Path) -> _Layout:
        """Raises InputError for a file that cannot be read, or whose columns are others."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise missing_part(f"reading {harmless(path.name)}", "tables", error) from None
        with reading(path):
            schema = pq.read_schema(path)
        where, names = harmless(path), list(schema.names)
        binary = (pa.types.is_binary, pa.types.is_large_binary)
        images = []
        for item in schema:
            kind, inner = item.type, ""
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                kind, inner = kind.field("bytes").type, "bytes"
            if any(test(kind) for test in binary):
                images.append(Column(item.name, inner))
        try:
            label = column(names, _IMAGE_LABELS if images else LABELS)
            file = None if images else column(names, PATHS)
            split = split_column(names, lambda i: map(str, _columns(path, [names[i]])[0]))
        except ValueError as error:
            raise InputError(f"{where}: {harmless(error)}; leave one of these columns") from None
        shown = ", ".join(f"{harmless(item.name)} ({item.type})"[:60] for item in list(schema)[:6])
        if len(images) > 1:
            raise InputError(f"{where}: several columns of bytes: {shown}; leave one")
        if label is None or (file is None and not images):
            raise InputError(
                f"{where}: no columns of image and label, or path and label: {shown}\n"
                f"Images: encoded bytes. Paths: {', '.join(PATHS)}. Label: {', '.join(LABELS)}."
            )
        kind = schema.field(label).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        whole = pa.types.is_integer(kind)
        if not whole and not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
            raise InputError(f"{where}: the labels are {kind}; give whole numbers or text")
        return _Layout(
            images[0] if images else None,
            None if file is None else names[file],
            names[label],
            None if split is None else names[split],
            _class_names(path, schema, names[label]) if whole else None,
            whole,
            () if images else unused(names, (file, label, split)),
        )


def _class_names(path: Path, schema: Any, label: str) -> tuple[str, ...] | None:
    """Those that Hugging Face's datasets wrote into the schema for the label."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return None
    try:
        feature = json.loads(raw)["info"]["features"][label]
        names = feature.get("names")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{harmless(path)}: the names of the classes in its metadata are no text")
    if len(set(names)) < len(names):
        raise InputError(f"{harmless(path)}: two classes of one name in its metadata")
    return tuple(names)


def _columns(path: Path, names: Sequence[str]) -> list[list[Any]]:
    """Whole columns as Python's values."""
    import pyarrow.parquet as pq

    with reading(path):  # `read_table` would make columns of folders called key=value
        table = pq.ParquetFile(path).read(columns=list(names), use_threads=False)
        return [table.column(name).to_pylist() for name in names]


def _group_sizes(files: Sequence[Path], image: Column) -> tuple[int, int]:
    """Bytes of all images, uncompressed, and of the largest group of rows."""
    import pyarrow.parquet as pq

    leaf, sizes = ".".join(filter(None, image)), [0]
    for path in files:
        with reading(path):
            meta = pq.read_metadata(path)
            for i in range(meta.num_row_groups):
                group = meta.row_group(i)
                chunks = map(group.column, range(group.num_columns))
                sizes += [c.total_uncompressed_size for c in chunks if c.path_in_schema == leaf]
    return sum(sizes), max(sizes)


def _rows(path: Path, layout: _Layout) -> Iterator[Row]:
    names = [name for name in (layout.path, layout.label, layout.split) if name is not None]
    columns = _columns(path, names)
    for i, (file, label, *split) in enumerate(zip(*columns, strict=True), 1):
        text = "" if label is None else str(label)
        yield Row(i, "" if file is None else str(file), text, str(split[0]) if split else None)


def _images(folder: Path, files: dict[str, list[Path]], notes: tuple[str, ...]) -> Found:
    """Splits of encoded images, each of one or several files of one layout."""
    layout = _common_layout([path for paths in files.values() for path in paths])
    assert layout.image is not None
    reader = ParquetReader(folder, layout.image)
    remarks = [*notes, *_remarks(files, layout.image)]
    if "all" not in files and layout.split is not None:
        remarks.append(
            f"the column {harmless(layout.split)} is not used: the names of the files tell the "
            "splits"
        )
    held: dict[str, tuple[list[str], list[Any]]] = {}
    for split, (names, labels) in _by_split(files, layout).items():
        if not layout.whole:
            labels = [label and label.strip() for label in labels]
        if not labels:
            remarks.append(f"{split} has no rows and is left out")
        elif layout.whole and set(labels) == {-1}:  # Hugging Face's way to keep them back
            remarks.append(f"{split} has no labels and is left out")
        else:
            held[split] = names, labels
    if not held:
        raise InputError(f"{harmless(folder)}: no labelled images in its parquet files")
    known: Sequence[Any] = range(len(layout.names or ()))
    if layout.names is None:
        every = {value for _, labels in held.values() for value in labels}
        known = sorted(every - {None, ""})
    classes = layout.names or tuple(map(str, known))
    place = {value: i for i, value in enumerate(known) if value != -1}
    splits = {}
    for split, (names, labels) in held.items():
        for name, value in zip(names, labels, strict=True):
            if value not in place:
                what = "no label" if value in (None, "") else f"the label {harmless(value)}"
                of = f", not one of its {len(classes)} classes" if layout.names is not None else ""
                raise InputError(f"{harmless(folder / name)}: {what}{of}")
        targets = np.array([place[value] for value in labels], np.int64)
        splits[split] = Split(reader, Names(names), targets)
    return Found(splits, classes, declared=layout.names is not None, notes=tuple(remarks))


def _by_split(
    files: dict[str, list[Path]], layout: _Layout
) -> dict[str, tuple[list[str], list[Any]]]:
    """Names and labels of the rows of each split, which the files tell, else the column."""
    found: dict[str, tuple[list[str], list[Any]]] = {}
    if "all" not in files or layout.split is None:
        for split, paths in files.items():
            columns = [(path, _columns(path, [layout.label])[0]) for path in paths]
            names = [f"{path.name}#{i}" for path, labels in columns for i in range(len(labels))]
            found[split] = names, [label for _, labels in columns for label in labels]
        return found
    for path in files["all"]:
        rows = zip(*_columns(path, [layout.split, layout.label]), strict=True)
        for i, (told, label) in enumerate(rows):
            known = None if told is None else split_name(str(told).strip())
            if known is None:
                said = "no split" if told is None else f"the split {harmless(told)!r}"
                raise InputError(
                    f"{harmless(path)}#{i}: {said}, not one of train, val, test\n"
                    f"Correct it, or give the column {harmless(layout.split)} another name."
                )
            names, labels = found.setdefault(known, ([], []))
            names.append(f"{path.name}#{i}")
            labels.append(label)
    return found


def _common_layout(files: Sequence[Path]) -> _Layout:
    """That of each file. Raises InputError where they differ, or hold no images."""
    layouts = [_Layout.of(path) for path in files]
    for path, layout in zip(files, layouts, strict=True):
        if layout.image is None:
            raise InputError(f"{harmless(path)}: no column of image bytes")
        if layout != layouts[0]:
            raise InputError(
                f"{harmless(path)}: other columns or classes than {harmless(files[0])}"
            )
    return layouts[0]


def _remarks(files: dict[str, list[Path]], image: Column) -> list[str]:
    """What is to be told of how the rows are grouped."""
    total, largest = _group_sizes([path for paths in files.values() for path in paths], image)
    if total <= KEPT or largest <= _LARGE_GROUP:
        return []
    return [
        f"groups of rows hold up to {largest >> 20} MiB, and in random order one is read for each "
        "image: write the parquet with row_group_size=100"
    ]
