"""Data sets by name: local files where they are found, else torchvision's download."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path

from skipway.errors import InputError, harmless, missing_part

_PATIENCE = 30.0
"""Seconds that a server may be silent."""


def cache() -> Path:
    """Where downloads go: ``skipway`` in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skipway"


def fetched(
    name: str,
    kind: str,
    inner: str,
    there: Callable[[Path], bool],
    files: str,
    usual: Sequence[str] = (),
) -> Path:
    """The folder of a data set's files, downloaded where none is found.

    kind: torchvision's class. inner: the folder in which its download puts them. there: whether a
    folder holds them. files: what they are, for the error. usual: where some systems install them.
    Searched are Skipway's cache, ``data`` in the working folder (torchvision's habit), and `usual`.
    Raises InputError where there is no copy and no network.
    """
    for place in (cache() / inner, Path("data") / inner, *map(Path, usual)):
        if there(place):
            return place
    try:
        from torchvision import datasets
    except ImportError as error:
        raise missing_part(f"the download of {name}", "train", error) from None
    try:
        with _impatient():
            getattr(datasets, kind)(cache(), download=True)
    # No network, no space, a wrong checksum; a server that stops within a file.
    except (OSError, RuntimeError, EOFError, HTTPException) as error:
        last = str(getattr(error, "reason", error)).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{name}: no copy was found here, and the download failed: {harmless(last[-1])[:100]}\n"
            f"Put {files} into\n{harmless(cache() / inner)}, or give their folder as DATA."
        ) from None
    return cache() / inner


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Connections that give up: torchvision sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
