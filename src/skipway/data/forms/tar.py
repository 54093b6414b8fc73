"""Class folders in an uncompressed tar, as in a folder: images are read where they lie.

Only regular members count; their names are no more than names, for nothing is unpacked. A
compressed tar is refused: no image in it can be reached without all that is before it.
"""

from __future__ import annotations

import bisect
import lzma
import os
import shlex
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from skipway.data.forms.folders import from_names, members_of, passed
from skipway.data.split import Found, Names, stamp_of
from skipway.errors import InputError, harmless
from skipway.images import DecodeError

Array = npt.NDArray[Any]

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class TarReader:
    """Members of an uncompressed tar, read in place; each process opens its own handle.

    names: sorted. offsets, sizes: where each begins and how long it is, int64 [N], in bytes.
    """

    def __init__(self, path: Path, names: Sequence[str], offsets: Array, sizes: Array) -> None:
        self.path, self.names, self.offsets, self.sizes = path, names, offsets, sizes
        self._handles: dict[int, BinaryIO] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}}

    def stamp(self, names: Iterable[str]) -> bytes:
        return stamp_of([self.path])

    def read(self, name: str) -> bytes:
        pid, i = os.getpid(), bisect.bisect_left(self.names, name)
        where = harmless(f"{self.path}: {name}")
        try:
            # Threads share the handle: its position is not used. Where two open it at once, the
            # first that is kept stays, so that no thread's is closed under it.
            file = self._handles.get(pid) or self._handles.setdefault(pid, self.path.open("rb"))
            content = os.pread(file.fileno(), int(self.sizes[i]), int(self.offsets[i]))
        except OSError as error:
            raise DecodeError(f"{where}: cannot be read: {error.strerror}") from None
        if len(content) != self.sizes[i]:
            raise DecodeError(f"{where}: the tar ends within it")
        return content


def is_tar(path: Path) -> bool:
    """Whether a file begins as an uncompressed tar."""
    try:
        tarfile.open(path, "r:").close()
    except (tarfile.TarError, ValueError):
        return False
    return True


def open_tar(path: Path) -> Found:
    """Class folders in a tar. Raises InputError where there are none, or it is damaged or cut."""
    members: dict[str, tuple[int, int]] = {}
    left_out = 0
    try:
        for member in _headers(path):
            parts = [part for part in member.name.split("/") if part not in ("", ".")]
            name = "/".join(parts)
            if member.isdir():
                members[f"{name}/"] = 0, 0
            elif ".." in parts or member.issparse() or not member.isreg():
                left_out += 1
            else:
                members[name] = member.offset_data, member.size  # the last of a name counts
    except (InputError, MemoryError):
        raise
    except Exception as error:  # headers of nonsense raise all kinds of errors
        raise _damaged(path, harmless(error)[:100]) from None
    root, inside = passed(members_of(set(members)))
    places = np.array([members[root + name] for name in inside.images], np.int64).reshape(-1, 2)
    reader = TarReader(path, Names(inside.images), places[:, 0], places[:, 1])
    found = from_names(path, reader, inside)
    if not left_out:
        return found
    note = f"{left_out:,} members of the tar are left out: links, or with .. in their names"
    return replace(found, notes=(*found.notes, note))


def _headers(path: Path) -> Iterator[tarfile.TarInfo]:
    """The members one by one. `TarFile` would keep them all, a kilobyte each, and end without a
    word at what is no header."""
    length = path.stat().st_size
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        at = 0
        while True:
            file.seek(at)
            try:
                member = tarfile.TarInfo.fromtarfile(archive)
            except tarfile.HeaderError:
                file.seek(at)
                if file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE):
                    return  # the end mark
                raise _damaged(path, f"no header at byte {at:,}; it was cut, or changed") from None
            if not at < archive.offset <= length:
                raise _damaged(path, f"it ends within {harmless(member.name)}")
            at = archive.offset
            yield member


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{harmless(path)}: damaged tar: {why}")


def is_compressed_tar(path: Path) -> bool:
    """Whether a file is a compressed tar; of zstd, which not every Python reads, by its name."""
    kind = _compression(path)
    if kind == "zstd":
        return path.name.endswith((".tar.zst", ".tzst"))
    if kind is None:
        return False
    try:
        tarfile.open(path, "r:*").close()
    except (tarfile.TarError, ValueError, EOFError, OSError, zlib.error, lzma.LZMAError):
        return False
    return True


def refuse_compressed_tar(path: Path) -> Found:
    """Raise InputError that says how to unpack it."""
    stem = path.name.partition(".tar")[0].removesuffix(".tgz").removesuffix(".tzst")
    folder = stem if stem != path.name else f"{stem}-unpacked"
    command = (
        f"mkdir {shlex.quote(folder)} && tar -xf {shlex.quote(str(path))} -C {shlex.quote(folder)}"
    )
    raise InputError(
        f"{harmless(path)}: compressed with {_compression(path)}; images are read in place only "
        f"from a plain tar\nUnpack it: {harmless(command)}\nThen give the folder."
    )


def _compression(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(6)
    return next((kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), None)
