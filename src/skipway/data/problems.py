"""What is wrong with the files of annotated data: found while they are read, told, left out.

Forms of annotations and of masks share it: what they find are problems. `open_objects` and
`open_pixels` stop at the first or leave out what is at fault, and check-data lists them all.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from skipway.errors import harmless
from skipway.images import DecodeError, header

Item = TypeVar("Item")
Found = TypeVar("Found")

_HEAD = 1 << 16
"""Bytes of a JPEG that nearly always hold its size."""
_THREADS = 8
"""They wait for the disk rather than compute."""
_BLOCK = 256
"""Items that one of them looks at in one go, at most."""
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_NOTES = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
"""Chunks that may turn a PNG."""


class Fault(NamedTuple):
    """What is wrong with something whose place is known."""

    kind: str
    """A key of the form's `KINDS`."""
    what: str
    """What is wrong, in words."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where."""

    file: str
    """The file of annotations, the mask, or the image that has none."""
    annotation: int | None
    """Its id in the file, or its row, from 1, where the form has no ids; None: it is about the
    image or the file."""
    image: str
    """Name of the image; empty where there is none, or where `file` is the image."""
    kind: str
    """A key of the form's `KINDS`."""
    what: str
    """What is wrong, in words."""

    def __str__(self) -> str:
        where = harmless(self.file)
        if self.annotation is not None:
            where += f", annotation {self.annotation}"
        if self.image:
            where += f" ({harmless(self.image)})"
        return f"{where}: {self.what}"


def refusal(found: Sequence[Problem], fatal: Sequence[str]) -> str:
    """The first problem, how many more there are, and what to do; kinds that are fatal cannot be
    left out."""
    text = str(found[0])
    if len(found) > 1:
        text += f"\nand {count(len(found) - 1, 'more problem')}: skipway check-data lists all."
    if found[0].kind not in fatal:
        text += "\nMend it, or leave what is at fault out with --on-bad skip."
    return text


def left_out(what: str, kinds: Counter[str], words: Mapping[str, str]) -> list[str]:
    """A note on how many are left out and why; none where none are. words: the form's `KINDS`."""
    if not kinds.total():
        return []
    why = ", ".join(f"{words[kind]} {n:,}" for kind, n in kinds.most_common())
    return [f"{what} left out ({kinds.total():,}): {why}"]


def count(n: int, one: str, many: str = "") -> str:
    """``1 image`` or ``2 images``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def in_threads(look: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
    """What `look` makes of each item, in their order."""

    def block(part: Sequence[Item]) -> list[Found]:
        return [look(item) for item in part]

    size = min(max(len(items) // (4 * _THREADS), 1), _BLOCK)
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = pool.map(block, (items[i : i + size] for i in range(0, len(items), size)))
        return [found for part in parts for found in part]


class Header(NamedTuple):
    """What the head of an image says."""

    size: tuple[int, int]
    """Height and width, EXIF rotation applied."""
    turned: bool
    """EXIF turns or mirrors the image."""


def header_of(root: Path, name: str) -> Header | Fault:
    """The header of an image, or why there is none: missing-image or unreadable-image."""
    try:
        name.encode("utf-8", "surrogateescape")
        with open(os.path.join(root, name), "rb") as file:
            data = file.read(_HEAD)
            if data.startswith(b"\xff\xd8"):
                try:
                    return Header(*header(data, name))
                except DecodeError:
                    pass  # much stands before the size: all of the file then
            data += file.read()
    except FileNotFoundError:
        return Fault("missing-image", f"no such image in {harmless(root)}")
    except OSError as error:
        return Fault("unreadable-image", f"cannot be read: {error.strerror or harmless(error)}")
    except ValueError:
        return Fault("missing-image", "not a name that a file can have")
    plain = data.startswith(_PNG) and not any(note in data for note in _PNG_NOTES)
    if plain and data[12:16] == b"IHDR":
        width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
        if width and height:
            return Header((height, width), False)
    try:
        return Header(*header(data, name))
    except DecodeError as error:
        return Fault("unreadable-image", str(error).removeprefix(f"{harmless(name)}: "))
