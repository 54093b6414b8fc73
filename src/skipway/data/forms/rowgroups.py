"""Encoded images in parquet files, read by the group of rows in which they lie."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skipway.data.split import stamp_of
from skipway.errors import InputError, harmless
from skipway.images import DecodeError

KEPT = 256 << 20
"""Bytes of encoded images that a process keeps, so that a small data set is read once."""


class Column(NamedTuple):
    """The column of the encoded bytes."""

    name: str
    inner: str
    """The field of the bytes where the column is a struct, else empty."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong with a parquet in the block becomes InputError."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Arrow's errors derive from many
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"{harmless(path)}: {os.strerror(error.errno)}") from None
        why = (harmless(error) or type(error).__name__).strip()[:100]
        raise InputError(f"{harmless(path)}: damaged parquet: {why}") from None


class _File:
    """An open file: where its groups of rows begin, and how to read one."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        # Neither Arrow's threads nor its read-ahead: they do not live on in a forked process.
        self.file = pq.ParquetFile(path, pre_buffer=False)
        meta = self.file.metadata
        sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        self.ends = np.cumsum(sizes)

    def group(self, number: int, column: Column) -> Any:
        """The bytes of every row of a group: an Arrow array, null where there are none."""
        leaf = ".".join(filter(None, column))
        table = self.file.read_row_group(number, columns=[leaf], use_threads=False)
        array = table.column(0).combine_chunks()
        return array.flatten()[array.type.get_field_index(column.inner)] if column.inner else array


class ParquetReader:
    """Bytes of images named ``FILE#ROW``; rows count from 0 in their file.

    A group of rows is read as a whole, and the latest are kept, up to `KEPT` bytes, by each
    process for itself.
    """

    def __init__(self, folder: Path, column: Column) -> None:
        self.folder, self.column = folder, column
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}
        self._groups: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "column": self.column}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.column = state["folder"], state["column"]
        self._reset()

    def stamp(self, names: Iterable[str]) -> bytes:
        files = dict.fromkeys(name.rpartition("#")[0] for name in names)
        return stamp_of(self.folder / file for file in files)

    def read(self, name: str) -> bytes:
        file, _, row = name.rpartition("#")
        if self._pid != os.getpid():
            self._reset()
        try:
            with self._lock, reading(self.folder / file):
                value = self._row(file, int(row))
        except InputError as error:
            raise DecodeError(f"{harmless(name)}: {error}") from None
        if value is None:
            raise DecodeError(f"{harmless(name)}: no bytes in the parquet")
        return value

    def _row(self, file: str, row: int) -> bytes | None:
        if file not in self._files:
            self._files[file] = _File(self.folder / file)
        ends = self._files[file].ends
        number = int(np.searchsorted(ends, row, side="right"))
        start = int(ends[number - 1]) if number else 0
        if (file, number) not in self._groups:
            self._groups[file, number] = self._files[file].group(number, self.column)
            while len(self._groups) > 1 and sum(g.nbytes for g in self._groups.values()) > KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end((file, number))
        value: bytes | None = self._groups[file, number][row - start].as_py()
        return value
