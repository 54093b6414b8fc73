"""The files of a run: ``run.json``, ``metrics.jsonl`` and ``evaluation.json``."""

from __future__ import annotations

import base64
import contextlib
import datetime
import io
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import torch
from PIL import Image

from skipway.data import Split
from skipway.errors import InputError, harmless
from skipway.files import atomic_write
from skipway.machine import cores, cpu_name
from skipway.metrics import Scored, calibration
from skipway.version import __version__

Array = npt.NDArray[Any]

SHOWN_MISTAKES = 24


def default_place(data_path: str, model: str) -> Path:
    """A dated name under ``runs`` that is not taken."""
    stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{Path(data_path).stem or 'data'}-{model}"
    place, i = Path("runs") / stem, 1
    while place.exists():
        i += 1
        place = Path("runs") / f"{stem}-{i}"
    return place


def read_record(run: Path) -> dict[str, Any]:
    """The ``run.json`` of a run. Raises InputError where it is none."""
    try:
        record: dict[str, Any] = json.loads((run / "run.json").read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{harmless(run)}: not a run (it has no run.json)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{harmless(run)}/run.json: cannot be read: {harmless(error)}") from None
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


def evaluation(split: str, images: Split, classes: Sequence[str], scored: Scored) -> dict[str, Any]:
    """What ``evaluation.json`` holds: what the report shows of the final score.

    Pictures included, for the data may move.
    """
    wrong = np.flatnonzero(~scored.correct)
    worst = wrong[np.argsort(scored.true_score[wrong], kind="stable")][:SHOWN_MISTAKES]
    return {
        "split": split,
        "n": len(scored.label),
        "classes": classes,
        "confusion": scored.confusion(len(classes)).tolist(),
        "calibration": calibration(scored.confidence, scored.correct),
        "mistakes": [
            {
                "name": harmless(images.names[int(scored.index[i])]),
                "label": classes[scored.label[i]],
                "predicted": classes[scored.predicted[i]],
                "score": float(scored.confidence[i]),
                "true_score": float(scored.true_score[i]),
                "image": thumbnail(images.image(int(scored.index[i]), 3)),
            }
            for i in worst
        ],
    }


def thumbnail(image: Array, side: int = 112) -> str:
    """uint8 or uint16 [H, W, 3] as a PNG of at most `side` pixels, in a data: URL."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    picture = Image.fromarray(image)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


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
