"""What a run's directory holds, read without trusting the shape of its parts."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.architecture import Architecture
from skipway.card import Card, read_card
from skipway.errors import InputError, harmless
from skipway.metrics import Outcomes
from skipway.report.values import dig, ends, mapping, number, objects

Counts = npt.NDArray[np.float64]

SPLITS = {"train": "training", "val": "validation", "test": "test"}
"""Splits in words, by the names that a run has for them."""
CACHED = "the classifier on cached features"
"""What the speed of a run counts whose backbone ran only once, see `Run.on_features`."""
LOSSES = {"ce": "cross-entropy", "bce": "BCE", "focal": "focal loss"}
"""By value of the setting `loss`, in words."""
LEAK = re.compile(
    r"(?i:warning): (\d[\d,]*) of [\d,]+ (\w+) images are in (\w+) too\b.*", re.DOTALL
)
"""How a run notes that two of its splits share images (`data.preflight.remarks`); earlier ones do
in capitals."""


def family_of(arch: Architecture) -> str:
    """The class of the style sheet that a network's lines and marks have."""
    if arch.shortcut == "none":
        return "plain"
    return "preactivation" if arch.order == "pre" else "residual"


@dataclass(frozen=True)
class Run:
    """The files of a run as they are; what a file or a key lacks is empty or None."""

    path: Path
    record: dict[str, Any]
    epochs: list[dict[str, Any]]
    evaluation: dict[str, Any]
    samples: list[dict[str, Any]]
    """Training images as the network saw them: name, label, image; where images were mixed, the
    class of the other and the share, 0 to 1, of the label."""
    card: Card | None

    @property
    def family(self) -> str:
        """The class of the page that gives the palette its meaning."""
        return "residual" if self.card is None else family_of(self.card.architecture)

    @property
    def name(self) -> str:
        """The run's name, for people."""
        return str(dig(self.record, "name") or self.path.absolute().name)

    @property
    def task(self) -> str:
        """What the network does, by its name in the configuration."""
        known = (dig(self.record, "config", "task"), dig(self.evaluation, "task"))
        return next((task for task in known if isinstance(task, str)), "classify")

    @property
    def model(self) -> str:
        """The network's name, as far as it is known."""
        named = dig(self.record, "config", "model", "name")
        return self.card.model if self.card else str(named or "a model")

    @property
    def data(self) -> str:
        """The data set as the user named it."""
        return str(dig(self.record, "data", "path") or "DATA")

    @property
    def splits(self) -> dict[str, dict[str, Any]]:
        """What is known of each split, by name."""
        splits = mapping(dig(self.record, "data", "splits"))
        return {name: split for name, split in splits.items() if isinstance(split, dict)}

    def metric(self, key: str) -> float | None:
        """A metric of the run's result."""
        return number(dig(self.record, "result", "metrics", key))

    @property
    def scored(self) -> int | None:
        """Images that the result was measured on."""
        n = number(dig(self.record, "result", "n"))
        return int(n) if n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the accuracy."""
        return ends(dig(self.record, "result", "interval"))

    @property
    def split(self) -> str:
        """The split that the result was measured on, in words; empty where none was."""
        split = dig(self.record, "result", "split")
        return SPLITS.get(str(split), str(split)) if split else ""

    @property
    def guessing(self) -> float | None:
        """The accuracy of always naming the commonest class of the split that was scored."""
        split = str(dig(self.record, "result", "split"))
        counts = [number(n) or 0 for n in mapping(dig(self.splits, split, "counts")).values()]
        return max(counts) / sum(counts) if sum(counts) > 0 else None

    @cached_property
    def leaks(self) -> dict[tuple[str, str], int]:
        """Images of the second split that are in the first too, by the names of the two, as the
        preflight found them; empty too where it did not look."""
        notes = dig(self.record, "data", "notes")
        found = [LEAK.fullmatch(str(note)) for note in notes] if isinstance(notes, list) else []
        return {(leak[3], leak[2]): int(leak[1].replace(",", "")) for leak in found if leak}

    @property
    def leaked(self) -> int:
        """How many of the images that were scored are training images too, as far as is known."""
        return self.leaks.get(("train", str(dig(self.record, "result", "split"))), 0)

    @property
    def seen_in_training(self) -> str:
        """What training saw of the images that were scored, as a clause."""
        if self.leaked:
            return f"{self.leaked:,} of which training saw too"
        looked = dig(self.record, "config", "data", "preflight") is not False
        if not looked and dig(self.record, "config", "data", "resident") is not True:
            return "which were not compared with those that training saw"
        return "which training did not see"

    @property
    def on_features(self) -> bool:
        """Whether the loop trained the classifier alone, on features that were computed before:
        images a second and waiting then tell of nothing else."""
        config = dig(self.record, "config")
        views = number(dig(config, "data", "views")) or 0
        return dig(config, "model", "freeze") == "all" and views > 0

    @property
    def mixed(self) -> bool:
        """Whether training mixed images (mixup, CutMix): its loss and accuracy are of those."""
        augment = dig(self.record, "config", "augment")
        return any((number(dig(augment, key)) or 0) > 0 for key in ("mixup", "cutmix"))

    @property
    def training_loss(self) -> str | None:
        """What the training loss is, in words, where it is another quantity than the validation
        loss, which is always softmax cross-entropy over single images; None where both are that."""
        config = mapping(self.record.get("config"))
        kind = config.get("loss") or "ce"
        gamma = number(config.get("focal_gamma"))
        parts = [
            LOSSES.get(str(kind), str(kind)),
            f"gamma {gamma:g}" if kind == "focal" and gamma is not None else None,
            "class weights" if config.get("class_weights") not in (None, "none") else None,
            "mixed images" if self.mixed else None,
            "the share that is not a teacher's" if dig(config, "distill", "model") else None,
        ]
        named = ", ".join(part for part in parts if part)
        return None if named == LOSSES["ce"] else named

    @property
    def seconds(self) -> float | None:
        """Of the whole command; of the training alone where it did not come to its end."""
        spent = sum(value for _, value in self.series("seconds"))
        return number(dig(self.record, "result", "seconds")) or spent or None

    @property
    def expected(self) -> tuple[float, float] | None:
        """Seconds and MiB that were forecast before the first step."""
        forecast = dig(self.record, "expected")
        seconds, memory = (number(dig(forecast, key)) for key in ("seconds", "memory_mib"))
        return (seconds, memory) if seconds is not None and memory is not None else None

    @property
    def stopped(self) -> str | None:
        """Where the run ended before its length, because the metric no longer rose."""
        ends = [number(dig(self.record, "result", "stopped", key)) for key in ("epoch", "of")]
        return f"after epoch {ends[0]:g} of {ends[1]:g}" if None not in ends else None

    @property
    def speed(self) -> float | None:
        """Training images a second; see `on_features`."""
        return number(dig(self.record, "result", "images_per_second"))

    @property
    def memory(self) -> float | None:
        """The most MiB that the process held."""
        return max((value for _, value in self.series("memory_mib")), default=None)

    @cached_property
    def classes(self) -> list[str]:
        """Class names of the evaluation, safe to show."""
        names = dig(self.evaluation, "classes")
        return [harmless(name) for name in names] if isinstance(names, list) else []

    @cached_property
    def outcomes(self) -> Outcomes | None:
        """What became of each image; None where the run kept nothing of it."""
        kept = dig(self.evaluation, "images")
        known = isinstance(kept, dict) and self.classes
        return Outcomes.unpacked(kept, len(self.classes)) if known else None

    @cached_property
    def contents(self) -> npt.NDArray[np.uint64] | None:
        """A digest of the content of each image that was scored, in the order of `outcomes`; None
        where the run kept none."""
        kept = dig(self.evaluation, "images", "content")
        try:
            found = np.frombuffer(base64.b64decode(kept, validate=True), "<u8")
        except (TypeError, ValueError):
            return None
        known = self.outcomes is not None and len(found) == len(self.outcomes.label)
        return found.astype(np.uint64) if known else None

    @cached_property
    def names(self) -> dict[int, str]:
        """The paths of the images whose path was kept, by their place in the split."""
        if self.outcomes is None:
            return {}
        rows = [
            row
            for kept in ("mistakes", "doubtful")
            for row in objects(self.evaluation.get(kept))
            if isinstance(row.get("index"), int)
        ]
        wrong = dig(self.evaluation, "images", "wrong")
        places = np.flatnonzero(~self.outcomes.correct).tolist()
        named = zip(places, wrong if isinstance(wrong, list) else (), strict=False)
        return {row["index"]: str(row.get("name")) for row in rows} | {
            place: str(name) for place, name in named
        }

    @cached_property
    def confusion(self) -> Counts | None:
        """Counts [truth, predicted] of `classes`; None where they are absent or do not fit."""
        k, kept = len(self.classes), self.evaluation.get("confusion")
        if kept is None and self.outcomes is not None:
            places = self.outcomes.label * k + self.outcomes.predicted
            return np.bincount(places, minlength=k * k).reshape(k, k).astype(np.float64)
        try:
            counts = np.asarray(kept, dtype=float)
        except (TypeError, ValueError):
            return None
        if not k or counts.shape != (k, k):
            return None
        return counts if np.isfinite(counts).all() and (counts >= 0).all() else None

    def series(self, key: str) -> list[tuple[float, float]]:
        """(epoch, value) wherever the value is a finite number."""
        return [
            (row["epoch"], value)
            for row in self.epochs
            if (value := number(row.get(key))) is not None
        ]


def read_run(run: Path) -> Run:
    """The run in a directory. Raises InputError where `run.json` is absent or a file is damaged."""
    record = _json(run / "run.json")
    if record is None:
        raise InputError(f"{harmless(run)}: not a run: it holds no run.json")
    card = run / "card.json"
    return Run(
        path=run,
        record=record,
        epochs=_epochs(run / "metrics.jsonl"),
        evaluation=_json(run / "evaluation.json") or {},
        samples=objects(dig(_json(run / "samples.json"), "images")),
        card=read_card(card) if card.exists() else None,
    )


def _json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no such file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{harmless(path)}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{harmless(path)}: not valid JSON") from None
    if not isinstance(value, dict):
        raise InputError(f"{harmless(path)}: holds no JSON object")
    return value


def _epochs(path: Path) -> list[dict[str, Any]]:
    """Rows by rising epoch. An epoch that a resume ran again counts once, by its last row."""
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{harmless(path)}: cannot be read: {error.strerror}") from None
    rows: dict[float, dict[str, Any]] = {}
    for count, line in enumerate(lines, 1):
        with contextlib.suppress(ValueError, RecursionError):  # a run cut off tears its last line
            row = json.loads(line)
            if isinstance(row, dict):
                epoch = number(row.get("epoch"))
                epoch = count if epoch is None else epoch
                rows[epoch] = row | {"epoch": epoch}
    return [rows[epoch] for epoch in sorted(rows)]
