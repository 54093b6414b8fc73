"""Checkpoints: everything that it takes to go on as if nothing had happened."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from skipway.errors import InputError, harmless
from skipway.files import atomic_write


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``step-N`` whole or not at all, then remove all but the newest `keep`.

    Raises InputError where the disk is full; what was there before survives.
    """
    path = folder / f"step-{step:08}"
    write(path, state)
    for old in saved(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a state whole or not at all, its folder made. Raises InputError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def saved(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the oldest first."""
    found = [p for p in folder.glob("step-*") if p.name[5:].isdecimal()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's state on the CPU; no code in it runs. Raises InputError where damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        detail = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise InputError(f"{harmless(path)}: damaged checkpoint: {harmless(detail)}") from None
    return state


def newest(run: Path) -> Path:
    """The last checkpoint of a run. Raises InputError where there is none."""
    found = saved(run / "checkpoints")
    if not found:
        raise InputError(f"{harmless(os.fspath(run))}: no checkpoint to go on from")
    return found[-1]
