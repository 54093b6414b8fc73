"""What a study has computed, in a folder: its plan, a file for each cell, and what follows.

``OUT/NAME/SCALE/`` holds ``plan.json`` (what was asked for), ``cells/KEY.json`` (results),
``study.json`` (the outcome, all of it raw) and its plots; whoever ran it may add ``remarks.txt``,
which is shown with the numbers. ``work/KEY/`` is what cells are computed in, of which nothing is
needed once their file is there. KEY is a hash of all that decides a result, so cells of several
machines can be copied into one folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skipway.errors import InputError, harmless
from skipway.files import atomic_write
from skipway.machine import cores, cpu_name
from skipway.report.markup import plural
from skipway.study.form import (
    NOTHING_DUE,
    WORDS,
    Cell,
    Done,
    Finding,
    Given,
    Scale,
    Study,
    Told,
    Verdict,
    Weights,
    claim_of,
    claimed,
    tally,
    verdict,
)
from skipway.version import __version__


@dataclass(frozen=True)
class Plan:
    """What a study was asked for, and of which data."""

    scale: str
    seeds: int
    given: Given
    data: str
    """Digest of the data; empty where there is none."""


@dataclass(frozen=True)
class Outcome:
    """A study at one scale as far as it is computed."""

    study: Study
    scale: Scale
    seeds: int
    told: Told
    done: int
    """Cells that are computed."""
    cells: int
    """Of so many."""
    reached: Sequence[str]
    """How far those are that are not computed yet, as "resnet20, seed 0: step 12,000 of 64,000";
    of those that have begun."""
    seconds: float
    """Of computing, summed over the cells."""
    environments: Sequence[str]
    """The machines and versions that computed them, in words."""
    data: str
    """What was measured on, with the beginning of its digest; empty where there is none."""
    command: str
    remarks: Sequence[str] = ()
    """Of whoever ran it, a paragraph each."""
    precisions: Sequence[str] = ()
    """Of the trainings, as "float32"; none where nothing is trained."""

    @property
    def claim(self) -> str:
        """What is claimed at this scale."""
        return claim_of(self.study, self.scale)

    @property
    def deviations(self) -> tuple[str, ...]:
        """From the paper's protocol: of the scale, and of what was given."""
        return (*self.scale.deviations, *self.told.deviations)

    @property
    def verdict(self) -> Verdict:
        """Inconclusive where cells are missing, unless what is there contradicts."""
        found = verdict(self.told.findings)
        whole = self.done == self.cells
        return found if whole or found == "contradicted" else "inconclusive"

    @property
    def expects(self) -> bool:
        """Whether anything is expected of it, so that it has a verdict."""
        return self.done < self.cells or bool(claimed(self.told.findings))

    @property
    def judged(self) -> str:
        """The verdict in words."""
        return WORDS[self.verdict] if self.expects else NOTHING_DUE


class Store:
    """The folder of one study at one scale."""

    def __init__(self, root: Path, study: Study, scale: str) -> None:
        self.folder = root / study.NAME / scale
        self._made_by = {"skipway": __version__, "study": study.NAME, "revision": study.REVISION}

    # The plan

    def plan(self) -> Plan | None:
        """What was asked for last; None where nothing was. Raises InputError for a damaged file and
        for one of another version."""
        path = self.folder / "plan.json"
        if not path.exists():
            return None
        row = self._read(path)
        try:
            weights = tuple(Weights(**one) for one in row["given"]["weights"])
            given = {**row["given"], "weights": weights}
            return Plan(row["scale"], row["seeds"], Given(**given), row["data"])
        except (KeyError, TypeError):
            raise InputError(f"{harmless(path)}: not the plan of a study\n{ANEW}") from None

    def keep(self, plan: Plan) -> None:
        """Write the plan. Raises InputError where it cannot be written, or what lies there is of
        another version."""
        self.plan()
        try:
            (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--out {harmless(self.folder)}: cannot be made: {error.strerror}\n"
                "Name a folder in which files may be written."
            ) from None
        row = asdict(plan)
        for own in ("device", "threads", "runs"):  # another machine's are others
            del row["given"][own]
        self._keep("plan.json", row)

    # Cells

    def key(self, cell: Cell, data: str) -> str:
        """The hash of all that decides the result of a cell."""
        whole = [self._made_by, data, cell.settings, cell.stands_for]
        return hash_of(whole)[:16]

    def done(self, cell: Cell, data: str) -> tuple[Done, str] | None:
        """A cell's result and the environment that it was computed in; None where it is not yet."""
        path = self.folder / "cells" / f"{self.key(cell, data)}.json"
        if not path.exists():
            return None
        row = self._read(path)
        try:
            return Done(cell, row["result"], float(row["seconds"])), str(row["environment"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{harmless(path)}: not the result of a cell\n{ANEW}") from None

    def place(self, cell: Cell, data: str) -> Path:
        """The folder to compute a cell in, there or not."""
        return self.folder / "work" / self.key(cell, data)

    def finish(self, cell: Cell, data: str, result: Mapping[str, Any], seconds: float) -> None:
        """Keep the result of a cell. seconds: since it was begun; a result that knows better says
        so (`form.Study.compute`)."""
        row = {
            "name": cell.name,
            "settings": dict(cell.settings),
            "data": data,
            "seconds": round(result.get("seconds", seconds), 1),
            "environment": result.get("environment") or environment("cpu"),
            "result": result,
        }
        self._keep(f"cells/{self.key(cell, data)}.json", row)

    # Files

    def remarks(self) -> tuple[str, ...]:
        """The paragraphs of ``remarks.txt``, made harmless; none where it is not there. Raises
        InputError where it cannot be read or is no text."""
        path = self.folder / "remarks.txt"
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise InputError(f"{harmless(path)}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InputError(f"{harmless(path)}: not a text in UTF-8") from None
        paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
        return tuple(harmless(paragraph) for paragraph in paragraphs if paragraph)

    def write(self, name: str, value: Any) -> None:
        """Indented JSON, or text as it is, whole or not at all."""
        text = value if isinstance(value, str) else json.dumps(value, indent=1) + "\n"
        with atomic_write(self.folder / name) as file:
            file.write(text.encode("utf-8"))

    def _keep(self, name: str, row: Mapping[str, Any]) -> None:
        """Write what `_read` reads."""
        row = json.loads(json.dumps({**self._made_by, **row}))
        self.write(name, {**row, "checksum": hash_of(row)[:16]})

    def _read(self, path: Path) -> dict[str, Any]:
        """What `_keep` wrote. Raises InputError for anything else."""
        try:
            row = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise InputError(f"{harmless(path)}: cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise InputError(f"{harmless(path)}: not valid JSON\n{ANEW}") from None
        if not isinstance(row, dict) or not row.keys() > self._made_by.keys():
            raise InputError(f"{harmless(path)}: not what a study wrote\n{ANEW}")
        for name, now in self._made_by.items():
            if row[name] != now:
                then = harmless(row[name])[:40]
                raise InputError(
                    f"{harmless(path)}: computed by another version ({name} {then}, {now} now), "
                    "whose numbers do not belong to these\n"
                    f"Remove {harmless(self.folder)} and run the study again, or give another "
                    "--out."
                )
        if row.pop("checksum", None) != hash_of(row)[:16]:
            raise InputError(f"{harmless(path)}: was changed after it was written\n{ANEW}")
        return row


def hash_of(value: Any) -> str:
    """The sha256 of what is JSON, in hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


ANEW = "Remove it and run the study again: all else that it computed stays."


@contextlib.contextmanager
def alone_at(place: Path) -> Iterator[None]:
    """What is computed in that folder is this process's alone. Raises Busy where it is another's.

    The lock is on a folder beside it, ``.NAME``, which stays: the folder itself comes and goes.
    """
    from skipway.training.claim import claimed
    from skipway.training.distributed import ALONE

    claim = place.with_name(f".{place.name}")
    claim.mkdir(parents=True, exist_ok=True)
    with claimed(claim, ALONE):
        yield


def environment(device: str) -> str:
    """This machine and the versions in words, with the GPU where that is the device."""
    import torch

    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return environment_of(
        {
            "cpu": cpu_name(),
            "cores": cores(),
            "device": gpu,
            "torch": torch.__version__,
            "skipway": __version__,
        }
    )


def environment_of(record: Mapping[str, Any]) -> str:
    """The machine and the versions of a run's record in words."""
    gpu = "" if record["device"] == "cpu" else f", {record['device']}"
    versions = f"PyTorch {record['torch']}, Skipway {record['skipway']}"
    return f"{record['cpu']}, {plural(record['cores'], 'core', 'cores')}{gpu}, {versions}"


def as_json(outcome: Outcome, done: Sequence[Done]) -> dict[str, Any]:
    """All of an outcome, with the raw results."""
    study, scale = outcome.study, outcome.scale
    return {
        "study": study.NAME,
        "source": study.SOURCE,
        "claim": outcome.claim,
        "scale": scale.name,
        "protocol": scale.protocol,
        "deviations": list(outcome.deviations),
        "data": outcome.data,
        "precisions": list(outcome.precisions),
        "seeds": outcome.seeds,
        "verdict": outcome.verdict if outcome.expects else None,
        "tally": tally(outcome.told.findings),
        "findings": [finding_json(finding) for finding in outcome.told.findings],
        "notes": list(outcome.told.notes),
        "remarks": list(outcome.remarks),
        "computed": outcome.done,
        "cells": outcome.cells,
        "reached": list(outcome.reached),
        "seconds": round(outcome.seconds, 1),
        "environments": list(outcome.environments),
        "command": outcome.command,
        "raw": [
            {"name": d.cell.name, "settings": dict(d.cell.settings), "result": d.result}
            for d in done
        ],
    }


def finding_json(finding: Finding) -> dict[str, Any]:
    """A number, expected and obtained, for programs; what is infinite or no number is None, and so
    is the interval of what is exact."""
    ends = finding.interval
    expected: Mapping[str, Any] | None = None
    if finding.expected is not None:
        expected = {
            "words": finding.expected.words,
            "low": _finite(finding.expected.low),
            "high": _finite(finding.expected.high),
        }
    return {
        "name": finding.name,
        "unit": finding.unit,
        "expected": expected,
        "values": [*map(_finite, finding.values)],
        "n": finding.n,
        "mean": _finite(finding.mean),
        "deviation": finding.deviation,
        "control": finding.control,
        "exact": finding.exact,
        "interval": None if finding.exact or ends is None else [*map(_finite, ends)],
        "verdict": finding.verdict,
        "note": finding.note,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
