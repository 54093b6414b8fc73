"""Cells that are trainings, by the door of `skipway train`, gone on with where one stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from skipway.architecture import ARCHITECTURES, Architecture, count, replaced
from skipway.config import split_duration
from skipway.errors import InputError, harmless
from skipway.recipes import recipe
from skipway.study.form import Cell, Done, Finding, Given
from skipway.study.store import alone_at, environment_of, hash_of
from skipway.version import __version__

REVISION = 1
"""To be raised when the same settings would train another network; studies that train add it to
their own, so that either makes theirs higher."""
DATA = "cifar10"
"""The data of the papers' small networks."""
PAPER: Mapping[str, Any] = {"recipe": "he2015-cifar", "data.val": "none"}
"""2015, section 4.2, on all training images."""
SLOW_START: Mapping[str, Any] = {"schedule.warmup": "400 steps", "schedule.warmup_lr": 0.01}
"""The same section, of 110 layers."""
NOT_CAFFES = (
    "batch norm sees all 128 images of a batch, where the paper's two GPUs saw 64 each, and is "
    "tested with running averages",
    "momentum as PyTorch has it, which scales the whole step by the rate, where Caffe scales the "
    "gradient alone: they differ in the steps after a fall of the rate",
)
"""Deviations of all of them."""
LEFT_OPEN = "all 50,000 training images, where the paper leaves open whether its 45,000 or all"
ALIKE = (*NOT_CAFFES, LEFT_OPEN)
"""Those of the paper's own schedule."""
HALVED = "trained in bfloat16, with float32 weights"
"""Another, of some."""
IMAGES, TESTED = 50_000, 10_000
"""Of CIFAR-10, to learn from and to be measured on."""
CLASSES = frozenset(
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
)
"""Of CIFAR-10."""
BATCH = 128


def data_of(given: Given) -> str:
    """The data that a training of the studies reads."""
    return given.data or DATA


def machine(given: Given) -> dict[str, Any]:
    """The settings that say where a training runs; they are no part of a cell."""
    where: dict[str, Any] = {"device": given.device}
    if given.threads is not None:
        where["threads"] = given.threads
    return where


def training(name: str, seed: int, settings: Mapping[str, Any], given: Given) -> Cell:
    """A cell that trains a row of `skipway models` with settings by dotted key."""
    whole = {"model.name": name, "seed": seed, "precision": given.precision} | dict(settings)
    return Cell(f"{name}, seed {seed}", whole, _cost(whole), stands_for(whole))


def stands_for(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`form.Cell.stands_for` of the settings of a training: its network and recipe."""
    rows = {"recipe": dict(recipe(settings["recipe"]).settings)} if "recipe" in settings else {}
    return {"network": told_apart(ARCHITECTURES[settings["model.name"]])} | rows


def told_apart(arch: Architecture) -> dict[str, Any]:
    """The fields of a network that are not as usual, so that one that is added to all changes
    nothing, and neither do words on where it comes from."""
    usual = {f.name: f.default for f in dataclasses.fields(arch)} | {"source": arch.source}
    return {k: v for k, v in dataclasses.asdict(arch).items() if v != usual[k]}


def _cost(settings: Mapping[str, Any]) -> float:
    """Multiply-adds of a training on CIFAR-10, in 10^12."""
    fields = settings.get("model.architecture", {})
    arch = replaced(ARCHITECTURES[settings["model.name"]], **fields)
    size = settings.get("data.size", arch.input_size)
    number, unit = split_duration(settings.get("schedule.length", "64000 steps"))
    epoch = math.ceil(settings.get("data.take", IMAGES) / BATCH)
    steps = number * (epoch if unit == "epoch" else 1)
    return count(arch)[1] * (size / arch.input_size) ** 2 * steps * BATCH / 1e12


def run_of(cell: Cell, given: Given, data: str | None = None) -> Path:
    """The run of a cell's training: the same for all studies that train the same. data: the digest
    of the data, where it is known."""
    names = stands_for(cell.settings)
    whole = [__version__, REVISION, data or digest(given), cell.settings, names]
    return (
        given.runs / f"{cell.settings['model.name']}-{cell.settings['seed']}-{hash_of(whole)[:8]}"
    )


def train_cell(cell: Cell, given: Given, say: Callable[[str], None]) -> dict[str, Any]:
    """Train a cell in `run_of` it, go on with it, or take it as it is; `logged`, as JSON.

    The weights stay in the run, its checkpoints do not. A training that diverges is a result too:
    ``diverged`` is then true, and its accuracy that of chance.
    """
    from skipway.training.loop import Diverged

    run = run_of(cell, given)
    try:
        trained(cell, run, given, say)
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
    except Diverged as error:  # its last checkpoint soon tells another study so
        say(f"{cell.name}: {error}")
    return logged(run)


def compute(cell: Cell, place: Path, given: Given, say: Callable[[str], None]) -> dict[str, Any]:
    """`form.Study.compute` of studies whose cells are trainings and nothing else."""
    return train_cell(cell, given, say)


def trained(cell: Cell, run: Path, given: Given, say: Callable[[str], None]) -> None:
    """Train a cell as that run, go on with it, or leave it as it is; its checkpoints stay."""
    from skipway import training as engine
    from skipway.training.checkpoint import saved
    from skipway.training.record import read_record

    progress = engine.TrainingProgress()
    with alone_at(run):
        # Of what a copy has damaged or left out nothing is thrown away: that raises.
        kept = (run / "run.json").exists() or (run / "best.safetensors").exists()
        if kept and read_record(run)["status"] == "finished":
            return
        if saved(run / "checkpoints"):
            say(f"{cell.name}: going on")
            engine.resume(run, progress, data_path=data_of(given), given=machine(given))
        elif (run / "metrics.jsonl").exists():
            raise InputError(
                f"{harmless(run)}: its checkpoints are missing\n"
                "Put them back, or move the folder away to train anew."
            )
        else:
            shutil.rmtree(run, ignore_errors=True)  # it stopped before its first checkpoint
            engine.start(data_of(given), {**cell.settings, **machine(given)}, run, progress)


def logged(run: Path) -> dict[str, Any]:
    """Log and result of a run that has ended.

    ``rows`` are those of ``metrics.jsonl`` without the signal through depth, ``metrics`` those of
    the test images, scored once.
    """
    record = _record(run)
    rows = [json.loads(line) for line in _lines(run)]
    rows = [{k: v for k, v in row.items() if k != "signal"} for row in rows]
    result, classes = record.get("result"), len(record["data"]["classes"])
    seconds = sum(row["seconds"] for row in rows) if result is None else result["seconds"]
    return {
        "rows": rows,
        "diverged": result is None,
        "metrics": {"accuracy": 1 / classes} if result is None else result["metrics"],
        "images": {name: split["n"] for name, split in record["data"]["splits"].items()},
        "classes": classes,
        "class_names": sorted(record["data"]["classes"]),
        "data": record["data"]["path"],
        "precision": record["config"]["precision"],
        "seconds": seconds,
        "environment": _environments(record),
    }


def _lines(run: Path) -> list[str]:
    """Those of a run's log; none where no epoch was ended."""
    log = run / "metrics.jsonl"
    return log.read_text("utf-8").splitlines() if log.exists() else []


def _record(run: Path) -> dict[str, Any]:
    """The record of a run; an empty one where there is none that can be read."""
    try:
        found = json.loads((run / "run.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _environments(record: Mapping[str, Any]) -> str:
    """The machine and the versions of a training, and those with which it was gone on with."""
    first = record["environment"]
    last = environment_of(first)
    words = [last]
    for again in record.get("resumed", ()):
        if (now := environment_of(first | again)) != last:
            words.append(f"from step {again['step']:,} on {now}")
            last = now
    return "; ".join(words)


def training_seconds(cell: Cell, given: Given) -> float:
    """How long the training of a cell would take here, or what is left of it."""
    from skipway.training.checkpoint import saved, step_of

    run = run_of(cell, given)
    if _record(run).get("status") == "finished":
        return 0.0
    same = {**cell.settings, "seed": 0, **machine(given)}
    seconds, steps = _forecast(json.dumps(same, sort_keys=True), data_of(given))
    kept = saved(run / "checkpoints")
    return seconds * (1 - step_of(kept[-1]) / steps) if kept else seconds


def reached(cell: Cell, place: Path, given: Given, data: str) -> str | None:
    """`form.Study.reached` of cells that are trainings."""
    return step_reached(run_of(cell, given, data))


def step_reached(run: Path) -> str | None:
    """The last step in the log of a training, as "step 12,000 of 64,000"; None where there is no
    training yet, or it does not say how long it is."""
    unreadable = (OSError, ValueError, KeyError, TypeError)
    with contextlib.suppress(*unreadable):
        steps = _record(run)["expected"]["steps"]
        for line in reversed(_lines(run)):
            with contextlib.suppress(*unreadable):  # a kill may cut the last line
                return f"step {json.loads(line)['step']:,} of {steps:,}"
    return None


@functools.cache
def _forecast(settings: str, data: str) -> tuple[float, int]:
    """Seconds and steps of a whole training with those settings, which are JSON, from a few seconds
    of its steps."""
    from skipway import training as engine

    quiet = engine.TrainingProgress(quiet=True)
    _, found = engine.expect(data, json.loads(settings), _MEASURED, quiet)
    return found.seconds, found.steps


_MEASURED = 4.0
"""Seconds of steps that are timed."""


# What trainings came to

Runs = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Results of trainings by network and seed."""


def by_seed(done: Sequence[Done]) -> Runs:
    """The trainings that are done, by network and seed."""
    runs: dict[str, dict[int, Mapping[str, Any]]] = {}
    for one in done:
        settings = one.cell.settings
        runs.setdefault(settings["model.name"], {})[settings["seed"]] = one.result
    return runs


def errors(result: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(step, training error in %) by epoch: of the images as they were trained on, augmented, each
    before the step that learned from it, as in 2015, Fig. 1 and 6."""
    return [(float(row["step"]), 100 * (1 - row["train_accuracy"])) for row in result["rows"]]


def errors_by_seed(runs: Mapping[int, Mapping[str, Any]]) -> dict[int, list[tuple[float, float]]]:
    """`errors` of each seed."""
    return {seed: errors(found) for seed, found in runs.items()}


def last_error(result: Mapping[str, Any]) -> float:
    """The training error in % over the steps of the last epoch and, where that is cut short, of the
    one before it; that of chance where the training diverged."""
    if result["diverged"]:
        return tested_error(result)
    points = [(0.0, 0.0), *errors(result)]
    lengths = [after[0] - before[0] for before, after in itertools.pairwise(points)]
    parts = list(zip(lengths, (error for _, error in points[1:]), strict=True))
    whole = parts[-1:] if len(parts) < 2 or lengths[-1] >= lengths[-2] else parts[-2:]
    return sum(steps * error for steps, error in whole) / sum(steps for steps, _ in whole)


def tested_error(result: Mapping[str, Any]) -> float:
    """In %, of the weights after the last step."""
    return 100 * (1 - float(result["metrics"]["accuracy"]))


def is_cifar10(done: Sequence[Done]) -> bool:
    """Whether the trainings were on what can be CIFAR-10, by its numbers and classes; early results
    have the number of classes alone."""
    return all(
        d.result["images"] == {"train": d.cell.settings.get("data.take", IMAGES), "test": TESTED}
        and d.result["classes"] == len(CLASSES)
        and {*d.result.get("class_names", CLASSES)} == CLASSES
        for d in done
    )


def judged(findings: Iterable[Finding], done: Sequence[Done]) -> list[Finding]:
    """Those that have a value or are due one; of other data than CIFAR-10 nothing is expected."""
    if not is_cifar10(done):
        findings = [replace(finding, expected=None) for finding in findings]
    return [finding for finding in findings if finding.values or finding.expected]


def deviations(done: Sequence[Done]) -> list[str]:
    """From the paper's protocol, of what was given: other data, bfloat16; and what diverged."""
    found = []
    if done and not is_cifar10(done):
        result = done[0].result
        images = ", ".join(f"{n:,} {name}" for name, n in result["images"].items())
        found.append(
            f"{result['data']} in place of CIFAR-10 ({images} images, {result['classes']} "
            "classes), of which nothing is expected"
        )
    if any(d.result["precision"] == "bf16" for d in done):
        found.append(HALVED)
    found += [
        f"{d.cell.name} diverged, which counts as the error of chance"
        for d in done
        if d.result["diverged"]
    ]
    return found


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
