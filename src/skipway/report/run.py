"""What a run's directory holds, read without trusting the shape of its parts."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipway.card import Card, read_card
from skipway.errors import InputError, harmless
from skipway.report.values import dig, mapping, number

SPLITS = {"train": "training", "val": "validation", "test": "test"}
"""Splits in words, by the names that a run has for them."""


@dataclass(frozen=True)
class Run:
    """The files of a run as they are; what a file or a key lacks is empty or None."""

    path: Path
    record: dict[str, Any]
    epochs: list[dict[str, Any]]
    evaluation: dict[str, Any]
    card: Card | None

    @property
    def family(self) -> str:
        """The class of the page that gives the palette its meaning."""
        if self.card is None:
            return "residual"
        if self.card.architecture.shortcut == "none":
            return "plain"
        return "preactivation" if self.card.architecture.order == "pre" else "residual"

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
