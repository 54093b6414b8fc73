"""What a weight file without a card is for, from the names of its tensors. Runs nothing of it, and
needs no torch."""

from __future__ import annotations

import contextlib
import pickletools
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from skipway.card import read_header
from skipway.errors import InputError

_ENOUGH = 1 << 24
"""Bytes of a pickle that are read."""
_PICKLES = 4
"""PyTorch's older files keep the tensors in the fourth, after a mark, a version and sizes."""

_TASKS = (
    ("instance", "roi_heads.mask_predictor."),
    ("detect", "roi_heads.box_predictor."),
    ("detect", "head.classification_head."),
)


def task_of_names(names: Iterable[str]) -> str:
    """The task of torchvision's models with these names of tensors, whatever stands before them;
    that of all others is to classify."""
    names = list(names)
    for task, part in _TASKS:
        if any(part in name for name in names):
            return task
    decoded = any(name.endswith("classifier.4.weight") for name in names)
    on_network = any(name.endswith("backbone.conv1.weight") for name in names)
    return "segment" if decoded and on_network else "classify"


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors in safetensors or in one of PyTorch's files, and other words of the
    latter; those before the damage where it is damaged."""
    with contextlib.suppress(InputError, OSError):
        with path.open("rb") as file:
            start = file.read(9)
        if start[5:] == b"\0\0\0{":  # the header's length, then JSON
            return [*read_header(path)]
    return [word for _, word in opcodes(path) if isinstance(word, str)]


def opcodes(path: Path) -> Iterator[tuple[str, Any]]:
    """The names of the instructions in the pickles of one of PyTorch's files, each with its
    argument, up to where they are damaged; none is followed."""
    with contextlib.suppress(Exception):  # of damaged archives and pickles, of all kinds
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inner = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                with archive.open(inner) as file:
                    yield from _read(file.read(_ENOUGH))
        else:
            with path.open("rb") as file:
                for _ in range(_PICKLES):
                    yield from _read(file)


def _read(pickle: bytes | BinaryIO) -> Iterator[tuple[str, Any]]:
    for opcode, argument, _ in pickletools.genops(pickle):
        yield opcode.name, argument
