"""Cells that are trainings, by the door of `skipway train`, gone on with where one stopped."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from skipway.errors import InputError, harmless
from skipway.study.form import Cell, Done, Given
from skipway.version import __version__

DATA = "cifar10"
"""The data of the papers' small networks."""
PAPER: Mapping[str, Any] = {
    "recipe": "he2015-cifar",
    "data.val": "none",
    "schedule.warmup": "400 steps",
    "schedule.warmup_lr": 0.01,
}
"""2015, section 4.2, with the slow beginning that the paper gives its deepest net."""
SHORT: Mapping[str, Any] = {
    **PAPER,
    "data.size": 16,
    "schedule.length": "1600 steps",
    "schedule.milestones": ("800 steps", "1200 steps"),
    "schedule.warmup": "100 steps",
}
"""The same on smaller images in a fortieth of the steps."""


def data_of(given: Given) -> str:
    """The data that a training of the studies reads."""
    return given.data or DATA


def machine(given: Given) -> dict[str, Any]:
    """The settings that say where a training runs; they are no part of a cell."""
    where: dict[str, Any] = {"device": given.device}
    if given.threads is not None:
        where["threads"] = given.threads
    return where


def training(name: str, seed: int, settings: Mapping[str, Any]) -> Cell:
    """A cell that trains a row of `skipway models` with settings by dotted key."""
    whole = {"model.name": name, "seed": seed} | dict(settings)
    return Cell(f"{name}, seed {seed}", whole, group=name)


def run_of(cell: Cell, given: Given) -> Path:
    """The run of a cell's training: the same for all studies that train the same."""
    whole = [__version__, digest(given), cell.settings]
    key = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:8]
    return given.runs / f"{cell.settings['model.name']}-{cell.settings['seed']}-{key}"


def train_cell(cell: Cell, given: Given, say: Callable[[str], None]) -> dict[str, Any]:
    """Train a cell in `run_of` it, go on with it, or take it as it is; log and result as JSON.

    ``rows`` are those of ``metrics.jsonl`` without the signal through depth, ``metrics`` those of
    the test images, scored once. The weights stay in the run, its checkpoints do not.
    """
    run = run_of(cell, given)
    trained(cell, run, given, say)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return logged(run)


def trained(cell: Cell, run: Path, given: Given, say: Callable[[str], None]) -> None:
    """Train a cell as that run, go on with it, or leave it as it is; its checkpoints stay."""
    from skipway import training as engine
    from skipway.training.checkpoint import saved
    from skipway.training.claim import claimed
    from skipway.training.distributed import ALONE

    progress = engine.TrainingProgress()
    claim = run.with_name(f".{run.name}")  # the run itself is the training's to make
    claim.mkdir(parents=True, exist_ok=True)
    with claimed(claim, ALONE):
        status = _record(run).get("status")
        if status != "finished" and saved(run / "checkpoints"):
            say(f"{cell.name}: going on")
            engine.resume(run, progress, data_path=data_of(given), given=machine(given))
        elif status != "finished":
            shutil.rmtree(run, ignore_errors=True)  # it stopped before its first checkpoint
            engine.start(data_of(given), {**cell.settings, **machine(given)}, run, progress)


def logged(run: Path) -> dict[str, Any]:
    """Log and result of a finished run, as `train_cell` gives them."""
    record = _record(run)
    rows = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return {
        "rows": [{k: v for k, v in row.items() if k not in _HEAVY} for row in rows],
        "metrics": record["result"]["metrics"],
        "split": record["result"]["split"],
        "n": record["result"].get("n"),
        "training_images": record["data"]["splits"]["train"]["n"],
        "precision": record["config"]["precision"],
        "threads": record["environment"]["threads"],
        "device": record["environment"]["device"],
    }


_HEAVY = {"signal", "gradient_norms"}


def _record(run: Path) -> dict[str, Any]:
    """The record of a run; an empty one where there is none that can be read."""
    try:
        found: dict[str, Any] = json.loads((run / "run.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def training_seconds(cell: Cell, given: Given) -> float:
    """How long the training of a cell would take here, from a few seconds of its own steps."""
    from skipway import training as engine

    quiet = engine.TrainingProgress(quiet=True)
    _, forecast = engine.expect(
        data_of(given), {**cell.settings, **machine(given)}, _MEASURED, quiet
    )
    return forecast.seconds


_MEASURED = 4.0
"""Seconds of steps that are timed."""


Runs = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Results of trainings by network and seed."""


def by_seed(done: Sequence[Done]) -> Runs:
    """The trainings that are done, by network and seed."""
    runs: dict[str, dict[int, Mapping[str, Any]]] = {}
    for one in done:
        settings = one.cell.settings
        runs.setdefault(settings["model.name"], {})[settings["seed"]] = one.result
    return runs


def errors(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(step, training error in %) by epoch: of the images as they were trained on, augmented, each
    before the step that learned from it, as in 2015, Fig. 1 and 6."""
    return [(float(row["step"]), 100 * (1 - row["train_accuracy"])) for row in rows]


def errors_by_seed(runs: Mapping[int, Mapping[str, Any]]) -> dict[int, list[tuple[float, float]]]:
    """`errors` of each seed."""
    return {seed: errors(found["rows"]) for seed, found in runs.items()}


def tested_error(result: Mapping[str, Any]) -> float:
    """In %, of the weights after the last step."""
    if result["split"] != "test":
        raise InputError("the data of this study needs test images: train/ and test/ folders")
    return 100 * (1 - float(result["metrics"]["accuracy"]))


def digest(given: Given) -> str:
    """The digest of the data, all of whose training images are learned from. Raises InputError
    where it has no test images, and for what trainings do not know."""
    for flag, value in (("--weights", given.weights), ("--imagenet", given.imagenet)):
        if value:
            raise InputError(f"{flag}: this study trains its own networks; it is for tables")

    return _digest(data_of(given))


@functools.cache
def _digest(path: str) -> str:
    from skipway.data import open_data

    opened = open_data(path, "none", 0)
    if "test" not in opened.splits:
        raise InputError(
            f"--data {harmless(path)}: has no test images; these trainings hold none out\n"
            "Give data with train/ and test/, as CIFAR-10's class folders."
        )
    return opened.digest()
