"""A run: a directory that holds all there is to know of one training; its start and its resume.

It holds ``run.json`` (configuration, choices, data, environment, result), ``metrics.jsonl`` (a
row an epoch), ``checkpoints/step-N``, ``best.safetensors``, ``last.safetensors``, ``card.json``,
``samples.json`` (augmented images of the first batch) and ``evaluation.json`` (what the report
shows of the final score).
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from skipway.card import Card, parse_card
from skipway.config import RunConfig, flag_of, plain, resolve
from skipway.data.feed import telling_of_a_killed_worker
from skipway.errors import InputError, harmless
from skipway.training import checkpoint, finder
from skipway.training.callbacks import Audience, Callback
from skipway.training.checkpoint import saved
from skipway.training.claim import claimed
from skipway.training.distributed import ALONE, World, joined, restarts, starter
from skipway.training.forecast import Forecast, Trial
from skipway.training.plan import (
    Plan,
    check_compile,
    check_device,
    check_workers,
    make_plan,
    opened,
    teacher_of,
)
from skipway.training.progress import TrainingProgress
from skipway.training.record import (
    begun_by,
    check_place,
    flat,
    make_place,
    read_record,
    setting_flags,
)
from skipway.training.setup import Setup
from skipway.training.trainer import Result, Trainer, result_of


def start(
    data_path: str,
    given: Mapping[str, Any],
    out: str | os.PathLike[str] | None = None,
    progress: TrainingProgress | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Train from the beginning; see `plan.make_plan` for the settings.

    `out` must not exist or be empty; None makes a dated name under ``runs``. Nothing is left
    behind where the data or the settings cannot be used. Under torchrun all processes train
    together, and a training that it starts again goes on, no other in that place. callbacks: see
    `callbacks.Callback`. Raises InputError, Interrupted.
    """
    began = time.perf_counter()
    given = plain(given)
    torch.set_flush_denormal(True)  # before the thread pools start: they inherit it
    restart, most = restarts()
    with joined() as world:
        progress = _heard(progress, world)
        if most and out is None:
            raise InputError("torchrun --max-restarts: give --out, where a restart finds the run")
        audience = Audience(callbacks if world.first else (), progress.say)
        launch = world.gather(starter()) if most else []
        place = None if out is None else Path(out)
        again = bool(restart and place and world.first and begun_by(place, launch))
        going_on = bool(again and place and saved(place / "checkpoints"))
        if place is not None and world.any(going_on):
            return _resume(place, progress, began, world, audience)

        def plan_here() -> Plan:
            if again and place is not None:
                shutil.rmtree(place)  # it died before its first checkpoint
            check_place(out if world.first else None)
            return make_plan(data_path, given, world)

        plan = world.agreed(plan_here)
        training = Trainer(plan, progress, began, world)

        def made() -> Path | None:
            return make_place(out, data_path, plan.config.model.name) if world.first else None

        flags = setting_flags(training.as_settled(given))
        command = shlex.join(["skipway", "train", data_path, *flags])
        run = world.gather(world.agreed(made))[0]
        assert run is not None
        with claimed(run, world):
            if world.first:
                check_place(run)  # another may have begun since
            record = training.new_record(run, command)
            record |= {"launch": sorted({*launch})} if launch else {}
            with audience.told_of_the_end(record):
                return training.run(run, record, None, audience)


def expect(
    data_path: str,
    given: Mapping[str, Any],
    measure: float,
    progress: TrainingProgress | None = None,
) -> tuple[Plan, Forecast]:
    """What `start` would do and how long it would take, from about `measure` seconds of its own
    steps. Nothing is written. Raises InputError.

    The plan's configuration has the length and the parts of a batch that were found to fit.
    """
    began = time.perf_counter()
    torch.set_flush_denormal(True)
    plan = make_plan(data_path, given)
    trial = Trial(measure, share=1.0, only=True)
    training = Setup(plan, progress or TrainingProgress(), began, ALONE, trial=trial)
    assert training.expected is not None
    return replace(plan, config=training.config), training.expected


def find_rate(
    data_path: str,
    given: Mapping[str, Any],
    progress: TrainingProgress | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    steps: int = finder.STEPS,
) -> finder.RateTest:
    """Which learning rates the training that `start` would begin bears (`finder.range_test`).

    low, high: the rates of the test; None takes the planned one over and times 1,000. Nothing is
    written. Raises InputError.
    """
    torch.set_flush_denormal(True)
    with joined() as world:
        progress = _heard(progress, world)
        plan = world.agreed(lambda: make_plan(data_path, given, world))
        optim = plan.config.optim
        low = optim.lr / finder.SPAN if low is None else low
        high = optim.lr * finder.SPAN if high is None else high
        if not (0 < low < high and math.isfinite(high / low)):
            raise InputError(
                f"--low {low:g}, --high {high:g}: give rates above 0, the lower one first"
            )
        if steps < finder.FEWEST:
            raise InputError(f"--steps {steps}: a test needs {finder.FEWEST} at least")
        training = Setup(plan, progress, time.perf_counter(), world, trial=None)
        with world.answering(), telling_of_a_killed_worker():
            found = finder.range_test(training.loop, low, high, steps, plan.config.seed)
        muon = None
        if optim.kind == "muon" and found.suggested is not None:
            muon = found.suggested * optim.muon_lr / optim.lr
        return replace(found, muon=muon, rank=world.rank)


def _heard(progress: TrainingProgress | None, world: World) -> TrainingProgress:
    """The progress of the first process; the others are silent."""
    return progress or TrainingProgress() if world.first else TrainingProgress(quiet=True)


def resume(
    run: str | os.PathLike[str],
    progress: TrainingProgress | None = None,
    callbacks: Sequence[Callback] = (),
    data_path: str | None = None,
    given: Mapping[str, Any] | None = None,
) -> Result:
    """Go on with a run from its newest checkpoint, as if it had never stopped.

    data_path: where its data is now; None is where it was. given: settings of the machine rather
    than of the training (`MAY_CHANGE`), by dotted key. A finished run that lacks its report gives
    its result again. Raises InputError for a run that cannot go on: finished, in use, damaged, or
    with other data or settings than it began with.
    """
    changes = {key: value for key, value in (given or {}).items() if value != "auto"}
    if refused := [harmless(flag_of(key)) for key in changes if key not in MAY_CHANGE]:
        others = ", ".join(flag_of(key) for key in MAY_CHANGE[1:])
        raise InputError(
            f"--resume: a run goes on as it began; leave out {', '.join(refused)}\n"
            f"Of its settings these may be others: {others}."
        )
    if data_path is not None:
        changes["data_path"] = data_path
    began = time.perf_counter()
    torch.set_flush_denormal(True)
    with joined() as world:
        progress = _heard(progress, world)
        audience = Audience(callbacks if world.first else (), progress.say)
        return _resume(Path(run), progress, began, world, audience, changes)


def _resume(
    run: Path,
    progress: TrainingProgress,
    began: float,
    world: World,
    audience: Audience,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Result:
    record = world.agreed(lambda: read_record(run))
    if record["status"] == "finished":
        if (run / "report.html").exists() and not restarts()[0]:
            raise InputError(f"--resume {harmless(run)}: this run is finished")
        return result_of(run, record, world)
    processes = record.get("environment", {}).get("processes", 1)
    if processes != world.size:
        raise InputError(
            f"--resume {harmless(run)}: {processes} processes trained it, not {world.size}\n"
            f"Go on with as many: torchrun --nproc-per-node {processes} -m skipway train --resume …"
        )

    def read() -> tuple[Plan, dict[str, Any]]:
        state, damaged = checkpoint.newest(run)
        for line in damaged:
            progress.say(f"{line}; going on from the one before")
        config = resolve(flat(record["config"]), changes)
        card = parse_card(state["card"], str(run))
        _check_settings(run, config, card)
        check_device(config.device)
        check_compile(config, world)
        try:
            data = opened(config)
        except InputError:
            if "data_path" in changes or Path(config.data_path).exists():
                raise
            raise InputError(
                f"--resume {harmless(run)}: its data is no longer at {harmless(config.data_path)}\n"
                f"Say where it is now: skipway train DATA --resume {shlex.quote(harmless(run))}"
            ) from None
        check_workers(config, data, world)
        if data.digest() != state["data"]:
            counts = record.get("data", {}).get("splits", {})
            changed = (
                f"{len(split)} {name} images, {counts[name]['n']} then"
                for name, split in data.splits.items()
                if name in counts and counts[name]["n"] != len(split)
            )
            what = ", ".join(changed) or "as many, but with other names or contents"
            if record["data"].get("skipped"):  # the record counts what is left without them
                what = "other names, contents or numbers"
            raise InputError(
                f"--resume {harmless(run)}: {harmless(data.path)} has other images than when the "
                f"run began: {what}\nPut them back as they were, or train anew."
            )
        teacher = teacher_of(config, data)
        if teacher is not None and teacher.digest != card.provenance.get("teacher"):
            raise InputError(
                f"--resume {harmless(run)}: the teacher {harmless(config.distill.model)} is "
                "another than when the run began\nPut it back as it was, or train anew."
            )
        return Plan(config, data, card.architecture, card.preprocess, (), teacher), state

    with claimed(run, world):
        plan, state = world.agreed(read)
        steps = world.gather(state["loop"]["step"])
        if len({*steps}) > 1:  # a folder of a network is not at once the same for all
            raise InputError(
                f"--resume {harmless(run)}: its newest checkpoint is of step {min(steps)} for some "
                f"processes, of {max(steps)} for others\nStart again when all see the same files."
            )
        record["config"] = plan.config.model_dump(mode="json")
        record["data"]["path"] = plan.config.data_path
        training = Trainer(plan, progress, began, world, resumed=run)
        with audience.told_of_the_end(record):
            return training.run(run, record, state, audience)


MAY_CHANGE = (
    "data_path", "threads", "data.workers", "device", "checkpoint_every", "keep_checkpoints",
)  # fmt: skip
"""Settings that a run may go on with others of: where it is trained, not what is learned. Other
threads and devices round otherwise, which is then said."""


def _check_settings(run: Path, config: RunConfig, card: Card) -> None:
    """Raise InputError where ``run.json`` was given other settings than those of the checkpoint."""
    now, then = flat(config.model_dump(mode="json")), flat(card.recipe)
    changed = [
        f"{key} = {harmless(now[key])[:60]}, {harmless(then[key])[:60]} then"
        for key in now
        if key in then and now[key] != then[key] and key not in MAY_CHANGE
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(
            f"--resume {harmless(run)}: run.json has other settings than the run began with: "
            f"{'; '.join(changed[:3])}{more}\nPut them back, or train anew with them."
        )
