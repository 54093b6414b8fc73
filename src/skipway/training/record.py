"""The files of a run: ``run.json``, ``metrics.jsonl`` and ``evaluation.json``."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from skipway.config import flag_of
from skipway.errors import InputError, harmless
from skipway.files import atomic_write
from skipway.machine import cores, cpu_name
from skipway.version import __version__


def check_place(out: str | os.PathLike[str] | None) -> None:
    """Raise InputError where `out` is taken, or its place cannot hold a folder."""
    if out is None:
        return
    if not os.fspath(out):
        raise InputError("--out is empty: name a folder that is not there yet, or leave it out")
    place = Path(out)
    try:
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise InputError(f"--out {harmless(out)}: exists and is not empty; take another place")
        above = next(p for p in place.absolute().parents if p.exists())
    except OSError as error:
        raise InputError(f"--out {harmless(out)}: {error.strerror}") from None
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"--out {harmless(out)}: nothing can be made in {harmless(above)}")


def make_place(out: str | os.PathLike[str] | None, data_path: str, model: str) -> Path:
    """The run's folder, made: `out`, or a dated name under ``runs`` that nobody has."""
    stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{Path(data_path).stem or 'data'}-{model}"
    dated = (Path("runs") / (stem if i == 1 else f"{stem}-{i}") for i in itertools.count(1))
    for place in dated if out is None else [Path(out)]:
        try:
            place.mkdir(parents=True, exist_ok=out is not None)
        except FileExistsError:
            if out is None:
                continue
            raise InputError(f"--out {harmless(place)}: exists and is no folder") from None
        except OSError as error:
            raise InputError(f"--out {harmless(place)}: cannot be made: {error.strerror}") from None
        return place
    raise AssertionError("names do not run out")


def setting_flags(given: Mapping[str, Any]) -> list[str]:
    """Settings, by dotted key, as the flags that give them on the command line."""
    flags = []
    for key, value in given.items():
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        if key == "schedule.length":
            number, _, unit = text.partition(" ")
            flags += ["--epochs", number] if unit == "epochs" else ["--set", f"{key}={text}"]
        else:
            flag = flag_of(key)
            flags += ["--set", f"{key}={text}"] if " " in flag else [flag, text]
    return flags


def remove_unfinished(run: Path) -> None:
    """Remove what a killed process left half-written."""
    for folder in (run, run / "checkpoints"):
        for part in folder.glob(".skipway-*.tmp"):
            part.unlink(missing_ok=True)


def begun_by(run: Path, launch: Collection[str]) -> bool:
    """Whether a run was begun by one of these starters of processes (`distributed.starter`)."""
    if not (run / "run.json").exists():
        return False
    try:
        return not set(read_record(run).get("launch", ())).isdisjoint(launch)
    except InputError:
        return False


def read_record(run: Path) -> dict[str, Any]:
    """The ``run.json`` of a run. Raises InputError where it is none."""
    try:
        record: dict[str, Any] = json.loads((run / "run.json").read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{harmless(run)}: not a run (it has no run.json)") from None
    except OSError as error:
        raise InputError(f"{harmless(run)}/run.json: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(
            f"{harmless(run)}/run.json: not valid JSON\n"
            "Put back a whole copy of the file, or train anew."
        ) from None
    if not isinstance(record, dict) or not {"status", "config"} <= record.keys():
        raise InputError(f"{harmless(run)}/run.json: not the record of a run")
    return record


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested configuration as dotted keys."""
    keys: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict) and prefix + key != "model.architecture":
            keys |= flat(value, f"{prefix}{key}.")
        else:
            keys[prefix + key] = value
    return keys


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, whole or not at all."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "replace"))


def append_row(run: Path, row: Mapping[str, Any]) -> None:
    """Add a row to ``metrics.jsonl``. Raises InputError where the disk is full."""
    path = run / "metrics.jsonl"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that follows is on the disk too
    except OSError as error:
        raise InputError(
            f"{harmless(path)}: cannot be written: {error.strerror}. The last checkpoint is kept."
        ) from None


def cut_rows(run: Path, step: int) -> None:
    """Drop the rows that were written after that step."""
    path = run / "metrics.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    kept = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the last line may be half a line
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    with atomic_write(path) as file:
        file.write("".join(kept).encode())


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """What a run ran on, as far as its bits and its speed depend on it."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "skipway": __version__,
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": threads,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "device": gpu or "cpu",
        "platform": platform.platform(),
    }
