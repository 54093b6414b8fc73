"""Checkpoints: everything that it takes to go on as if nothing had happened.

A checkpoint is a line that says what it is, the BLAKE2b digest of what follows, and a state as
`torch.save` writes it. torch itself loads a file with a flipped bit in a tensor without a word.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from skipway.errors import InputError, harmless
from skipway.files import atomic_write

_MAGIC = b"skipway checkpoint 2\n"
_DIGEST = 32


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state whole or not at all, its folder made. Raises InputError."""
    write_packed(path, _packed(state))


def _packed(state: Mapping[str, Any]) -> memoryview:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def write_packed(path: Path, payload: memoryview) -> None:
    """As `write`, of a state that `torch.save` has written to memory."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{harmless(path.parent)}: cannot be made: {error.strerror}") from None
    with atomic_write(path) as file:
        file.write(_MAGIC)
        file.write(hashlib.blake2b(payload, digest_size=_DIGEST).digest())
        file.write(payload)


class Writer:
    """Writes ``step-N`` into a folder in the background and keeps the newest `keep`.

    start: the step that a run goes on from. What lies there of a later one is damaged, or the run
    would have gone on from that: it takes no sound one's place. An older one is removed after the
    newer is safe on the disk. As a context it waits at the end for what is being written.
    """

    def __init__(self, folder: Path, keep: int, start: int = 0) -> None:
        self.folder, self.keep = folder, keep
        self._sound = {step_of(path) for path in saved(folder) if step_of(path) <= start}
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Copy the state, which may change afterwards, and have it written.

        Raises InputError where the one before could not be written, a full disk for instance;
        those that were there survive.
        """
        self.wait()
        self._pending = self._thread.submit(self._save, step, _packed(state))

    def _save(self, step: int, payload: memoryview) -> None:
        write_packed(self.folder / f"step-{step:08}", payload)
        self._sound = {*sorted({*self._sound, step})[-self.keep :]}
        for path in saved(self.folder):
            if step_of(path) not in self._sound:
                with contextlib.suppress(OSError):  # it takes room, no more
                    path.unlink()

    def check(self) -> None:
        """Raise InputError where what was saved could not be written; waits for nothing."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until what was saved is on the disk. Raises InputError where it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:  # else the first error is told
            self.wait()


def saved(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the oldest first."""
    return sorted((p for p in folder.glob("step-*") if p.name[5:].isdecimal()), key=step_of)


def step_of(path: Path) -> int:
    """The step of a checkpoint, from its name."""
    return int(path.name[5:])


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's state on the CPU; no code in it runs. Raises InputError where damaged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{harmless(path)}: cannot be read: {error.strerror}") from None
    start = len(_MAGIC) + _DIGEST
    digest, payload = data[len(_MAGIC) : start], memoryview(data)[start:]
    if not data.startswith(_MAGIC):
        raise _damaged(path, "it does not begin as one")
    if hashlib.blake2b(payload, digest_size=_DIGEST).digest() != digest:
        raise _damaged(path, "its checksum is another")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        raise _damaged(path, str(error).partition("\n")[0] or type(error).__name__) from None
    if not isinstance(state, dict):
        raise _damaged(path, "not a state")
    return state


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{harmless(path)}: damaged checkpoint: {harmless(why)[:100]}")


def newest(run: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The state of the last sound checkpoint of a run, and what is wrong with later ones.

    Raises InputError where there is none.
    """
    damaged: list[str] = []
    for path in reversed(saved(run / "checkpoints")):
        try:
            return load(path), tuple(damaged)
        except InputError as error:
            damaged.append(str(error))
    if damaged:
        raise InputError(f"{damaged[0]}\nNo other is left; train anew.")
    raise InputError(f"{harmless(os.fspath(run))}: no checkpoint to go on from")
