"""A run's folder for one training alone, and the signals that stop one."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skipway.files import locked
from skipway.training.distributed import World

_HELD: set[int] = set()
"""Locks of this process. Workers, which outlive one that is killed by some seconds, drop them."""


def _drop_locks() -> None:
    while _HELD:  # what is forked from a worker has none of them left
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_drop_locks)


@contextlib.contextmanager
def claimed(run: Path, world: World) -> Iterator[None]:
    """The run's folder, for this training alone. Raises InputError where another has it."""
    if not world.first:
        yield
        return
    handle = locked(run, "another process is training in it")
    _HELD.add(handle)
    try:
        yield
    finally:
        _HELD.discard(handle)
        os.close(handle)


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """The stop signals that came in: SIGINT and SIGTERM; a second SIGINT ends the process at once.

    A second SIGTERM is the same stop: a service manager sends one to all processes, and torchrun
    hands on its own.
    """
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: nobody's signals to take
        before = {}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
