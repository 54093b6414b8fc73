"""A run: a directory that holds all there is to know of one training, and how it is made.

It holds ``run.json`` (configuration, choices, data, environment, result), ``metrics.jsonl`` (a
row an epoch), ``checkpoints/step-N``, ``best.safetensors``, ``last.safetensors``, ``card.json``,
``samples.json`` (augmented images of the first batch) and ``evaluation.json`` (what the report
shows of the final score).
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import math
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from skipway.architecture import count
from skipway.card import Card, Measured, parse_card, read_card
from skipway.config import RunConfig, minutes_of, resolve
from skipway.errors import InputError, SkipwayError, harmless
from skipway.explain import add_maps
from skipway.heads import HEADS
from skipway.machine import peak_memory
from skipway.resnet import backbone_of
from skipway.tasks import Evaluator
from skipway.training import checkpoint, finder
from skipway.training.callbacks import Audience, Callback
from skipway.training.checkpoint import saved
from skipway.training.choices import Choice
from skipway.training.claim import claimed, signals
from skipway.training.distributed import ALONE, Elsewhere, World, joined, restarts, starter
from skipway.training.forecast import Forecast, Trial
from skipway.training.loop import Loop, evaluate
from skipway.training.optim import freeze, set_exact_statistics
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
from skipway.training.reading import forget
from skipway.training.record import (
    append_row,
    begun_by,
    check_place,
    cut_rows,
    environment,
    flat,
    make_place,
    read_record,
    remove_unfinished,
    setting_flags,
    write_json,
)
from skipway.training.samples import write_samples
from skipway.training.setup import FROZEN, Setup
from skipway.version import __version__
from skipway.weights import read_state, save_weights

DECIDE_BITS = ("skipway", "torch", "numpy", "pillow", "cpu", "instruction_set", "device")
"""What a run's environment must have in common for a resume to be equal to the bit."""


class Interrupted(SkipwayError):
    """A signal ended the run at a step's boundary, with a checkpoint."""

    def __init__(self, run: Path, number: int) -> None:
        name = shlex.quote(harmless(run))
        super().__init__(
            f"stopped, with a checkpoint. Go on with:\n  skipway train --resume {name}"
        )
        self.exit_code = 128 + number


@dataclass(frozen=True)
class Result:
    """What a finished run came to."""

    run: Path
    metrics: dict[str, float]
    """Of the weights in `weights` on `split`; empty where nothing was held out."""
    split: str | None
    weights: Path
    seconds: float
    """Of the whole command, reading the data included."""
    images_per_second: float
    """Training images over training time; evaluation and decoding to memory not counted."""
    record: dict[str, Any]
    """What ``run.json`` holds."""
    rank: int = 0
    """Of this process under torchrun; what is written and said is the first one's."""


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
        training = _Training(plan, progress, began, world)

        def made() -> Path | None:
            return make_place(out, data_path, plan.config.model.name) if world.first else None

        run = world.gather(world.agreed(made))[0]
        assert run is not None
        with claimed(run, world):
            if world.first:
                check_place(run)  # another may have begun since
            flags = setting_flags(training.as_settled(given))
            command = shlex.join(["skipway", "train", data_path, *flags])
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
        with world.answering():
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
) -> Result:
    """Go on with a run from its newest checkpoint, as if it had never stopped.

    data_path: where its data is now; None is where it was. A finished run that lacks its report
    gives its result again. Raises InputError for a run that cannot go on: finished, in use,
    damaged, or with other data than it began with.
    """
    began = time.perf_counter()
    torch.set_flush_denormal(True)
    with joined() as world:
        progress = _heard(progress, world)
        audience = Audience(callbacks if world.first else (), progress.say)
        return _resume(Path(run), progress, began, world, audience, data_path)


def _resume(
    run: Path,
    progress: TrainingProgress,
    began: float,
    world: World,
    audience: Audience,
    data_path: str | None = None,
) -> Result:
    record = world.agreed(lambda: read_record(run))
    if record["status"] == "finished":
        if (run / "report.html").exists() and not restarts()[0]:
            raise InputError(f"--resume {harmless(run)}: this run is finished")
        return _result(run, record, world)
    if data_path is not None:
        record["config"]["data_path"] = record["data"]["path"] = data_path
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
        config, card = resolve(flat(record["config"])), parse_card(state["card"], str(run))
        _check_settings(run, config, card)
        check_device(config.device)
        check_compile(config, world)
        check_workers(config, world)
        try:
            data = opened(config)
        except InputError:
            if data_path is not None or Path(config.data_path).exists():
                raise
            raise InputError(
                f"--resume {harmless(run)}: its data is no longer at {harmless(config.data_path)}\n"
                f"Say where it is now: skipway train DATA --resume {shlex.quote(harmless(run))}"
            ) from None
        if data.digest() != state["data"]:
            counts = record.get("data", {}).get("splits", {})
            changed = (
                f"{len(split)} {name} images, {counts[name]['n']} then"
                for name, split in data.splits.items()
                if name in counts and counts[name]["n"] != len(split)
            )
            what = ", ".join(changed) or "as many, but with other names or contents"
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
        training = _Training(plan, progress, began, world, resumed=run)
        with audience.told_of_the_end(record):
            return training.run(run, record, state, audience)


_MAY_CHANGE = (
    "data_path", "threads", "device", "data.workers", "checkpoint_every", "keep_checkpoints",
)  # fmt: skip
"""Settings of a run that do not decide what is learned."""


def _check_settings(run: Path, config: RunConfig, card: Card) -> None:
    """Raise InputError where ``run.json`` was given other settings than those of the checkpoint."""
    now, then = flat(config.model_dump(mode="json")), flat(card.recipe)
    changed = [
        f"{key} = {harmless(now[key])[:60]}, {harmless(then[key])[:60]} then"
        for key in now
        if key in then and now[key] != then[key] and key not in _MAY_CHANGE
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(
            f"--resume {harmless(run)}: run.json has other settings than the run began with: "
            f"{'; '.join(changed[:3])}{more}\nPut them back, or train anew with them."
        )


def _result(run: Path, record: Mapping[str, Any], world: World) -> Result:
    """The result of a finished run from its record."""
    found = record["result"]
    return Result(
        run,
        found["metrics"],
        found["split"],
        run / found["weights"],
        found["seconds"],
        found["images_per_second"],
        dict(record),
        world.rank,
    )


class _Training(Setup):
    """One training, new or resumed, and its folder."""

    def new_record(self, run: Path, command: str) -> dict[str, Any]:
        """What ``run.json`` begins with. `command` is what gives the same run."""
        data = self.prepared.data
        parameters, macs = cast("tuple[int, int | None]", count(self.plan.architecture))
        if self.config.task != "classify":  # its heads are counted, and work on what they find
            parameters, macs = sum(p.numel() for p in self.net.parameters()), None
        return {
            "version": 1,
            "skipway": __version__,
            "name": run.name,
            "command": command,
            "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "config": self.config.model_dump(mode="json"),
            "choices": [
                *(asdict(c) for c in self.plan.choices if c.key not in self.settled),
                *(
                    asdict(Choice(key, value, "fits the time and the memory there is"))
                    for key, value in self.settled.items()
                    if value
                ),
            ],
            "data": {
                "path": data.path,
                "classes": data.classes,
                "splits": {
                    n: {"n": len(s), "counts": data.counts(n)} for n, s in data.splits.items()
                },
                "notes": data.notes,
                "skipped": [asdict(s) for s in data.skipped],
            },
            "environment": environment(self.device, self.config.threads)
            | {"processes": self.world.size},
            "expected": asdict(self.expected) | {"seconds": self.expected.seconds}
            if self.expected
            else None,
            "params": parameters,
            "macs": macs,
            "status": "running",
        }

    # The run

    def run(
        self,
        path: Path,
        record: dict[str, Any],
        state: dict[str, Any] | None,
        audience: Audience,
    ) -> Result:
        """Train to the end in that folder, from a checkpoint's state or from the beginning."""
        self.best: dict[str, Any] = {}
        self.unscored = False
        """Whether an epoch is over and has no row yet."""
        self.spent = {"images": 0, "seconds": 0.0, "elapsed": 0.0}
        """Over all sittings: images and seconds of training, and seconds in all."""
        self.saved_at, self.saved_when = 0, time.monotonic()
        self.digest = self.plan.data.digest()
        self.run_path, self.record, self.audience = path, record, audience
        self.record.pop("error", None)  # of an earlier sitting
        if self.world.first:
            remove_unfinished(path)
        self._write_record(status="running")
        folder = path / "checkpoints"
        try:
            with (
                self.world.answering(),
                signals() as came,
                checkpoint.Writer(folder, self.config.keep_checkpoints) as self.writer,
            ):
                if state is None:
                    self._begin()
                else:
                    self._go_on(state)
                self.progress.begin(self.loop.clock, self.loop.step)
                audience.begin(path, record, self.loop.step - self.unscored)
                if self._epochs(came):
                    return self._finish()
                number = max(self.world.gather(came[0] if came else 0))
        except SkipwayError as error:
            with contextlib.suppress(SkipwayError):  # a full disk must not hide the reason
                self._write_record(status="failed", error=str(error))
            raise
        finally:
            self.progress.end()
        self._write_record(status="interrupted")
        if self.world.first:
            raise Interrupted(self.run_path, number)
        raise Elsewhere(128 + number)

    def _begin(self) -> None:
        """Write what a run has before its first step."""
        if self.world.first:
            if self.config.on_features:
                checkpoint.write(self.run_path / FROZEN, self.net.state_dict())
            write_samples(self.run_path, self.prepared, self.config)
        self._keep_images()
        self._checkpoint()  # so that what is killed early can go on

    def _go_on(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's state."""
        self._keep_images()
        self.loop.load_state(state["loop"])
        self.best, self.spent = state["best"], state["spent"]
        self.began -= self.spent["elapsed"]
        self.saved_at = self.loop.step
        self.saved_when = time.monotonic()
        self.unscored = state.get("unscored", False)
        if self.world.first:
            cut_rows(self.run_path, self.loop.step - self.unscored)
        self.progress.say(f"going on at step {self.loop.step:,}")
        before, now = self.record["environment"], environment(self.device, self.config.threads)
        changed = {key: now[key] for key in DECIDE_BITS if now[key] != before.get(key)}
        self.record.setdefault("resumed", []).append({"step": self.loop.step} | changed)
        for key, value in changed.items():
            self.progress.say(
                f"  note: {key} was {harmless(before.get(key))} and is {harmless(value)}: bits may "
                "differ from those of a run that never stopped"
            )

    def _keep_images(self) -> None:
        """Keep what was read of the images with the run, so that going on is quick."""
        assert self.prepared.reading is not None
        try:
            if self.world.first:
                self.prepared.reading.keep(self.run_path)
        except InputError as error:  # it takes room, and the run can do without
            self.progress.say(f"  note: {error}\n  --resume will read all images again")
        self.prepared = replace(self.prepared, reading=None)

    def _epochs(self, came: list[int]) -> bool:
        """Train to the end; False where a signal ended it before, with a checkpoint."""
        loop, every, world = self.loop, self.config.checkpoint_every, self.world
        minutes = minutes_of(every)
        steps = 1 if minutes else max(loop.clock.steps(every), 1)

        def due() -> bool:
            if minutes is not None:  # clocks differ
                return world.any(time.monotonic() - self.saved_when >= 60 * minutes)
            return loop.step - self.saved_at >= steps

        def pause(loop: Loop) -> bool:
            self.progress.step(loop.step, loop.tally)
            at_end = loop.step % loop.clock.steps_per_epoch == 0 or loop.finished
            if not at_end and due():
                self._checkpoint()
            return world.any(bool(came))

        while self.unscored or not loop.finished:
            self.unscored = self.unscored or loop.epoch(pause)
            # Before it is scored: that may take longer than there is time to stop.
            stop = world.any(bool(came))
            if (stop or loop.finished or due()) and loop.step > self.saved_at:
                self._checkpoint()
            if stop:
                self.writer.wait()
                return False
            if self.unscored:
                self._end_of_epoch()
                self.spent["images"] += loop.tally.images
                self.spent["seconds"] += loop.tally.seconds
                self.unscored = False
                if world.any(bool(came)):
                    self._checkpoint()
                    self.writer.wait()
                    return False
        self.writer.wait()
        return True

    def _end_of_epoch(self) -> None:
        loop, tally = self.loop, self.loop.tally
        epoch = (loop.step - 1) // loop.clock.steps_per_epoch + 1
        row: dict[str, Any] = {
            "epoch": epoch,
            "step": loop.step,
            "lr": loop.schedule(loop.step - 1),
        }
        row |= {f"train_{name}": value for name, value in tally.means().items()}
        said: list[str] = []
        if "val" in self.prepared.feeds and self.config.data.val != "none":
            evaluator = evaluate(
                self.task, loop.weights, self.feeds["val"].in_order(), self.device, self.world
            )
            metrics = finite_metrics(evaluator, "val")
            row |= {f"val_{name}": value for name, value in metrics.items()}
            name, value = next(iter(self.world.gather(metrics)[0].items()))  # one decision for all
            said = [f"  val {name}: {line}" for line in loop.schedule.seen(loop.step, value)]
            if value >= self.best.get("value", -math.inf):
                self.best = {"value": value, "epoch": epoch, "step": loop.step}
                self._save(self._weights(), "best", self._measured(metrics, "val"))
        row |= {
            "seconds": round(tally.seconds, 3),
            "images_per_second": round(tally.images / max(tally.seconds, 1e-9), 1),
            "waiting": round(tally.waiting / max(tally.seconds, 1e-9), 4),
            "memory_mib": peak_memory(),
            "signal": loop.signal.means(),
        }
        if self.world.first:
            append_row(self.run_path, row)
        self.progress.epoch(row)
        self.audience.epoch(row)
        for line in said:
            self.progress.say(line)

    def _checkpoint(self) -> None:
        self.spent["elapsed"] = time.perf_counter() - self.began
        state = {
            "loop": self.loop.state(),
            "best": self.best,
            "unscored": self.unscored,
            "spent": self.spent,
            "data": self.digest,
            "card": self._card(()).to_json(),
        }
        if self.world.first:
            self.writer.save(self.loop.step, state)
        self.saved_at, self.saved_when = self.loop.step, time.monotonic()

    # The end

    def _finish(self) -> Result:
        self._save(self._weights(), "last", ())
        self.world.gather(None)  # until the first has written it
        net = self.prepared.task.build(self.plan.architecture)
        kept = self.run_path / "best.safetensors"
        card = read_card(kept) if self.best else None
        if card is not None and card.provenance.get("step", self.best["step"]) != self.best["step"]:
            self.progress.say(
                "  note: the best weights are of a sitting that was cut off and went another way; "
                "the last are taken"
            )
            self.best = {}
        chosen = kept if self.best else self.run_path / "last.safetensors"
        net.load_state_dict(read_state(chosen)[0])
        net = net.to(self.device).to(memory_format=torch.channels_last).eval()
        if self.config.exact_norm:
            frozen = freeze(backbone_of(net), self.config.model.freeze, self.loop.keep_frozen.until)
            frozen.at(self.best.get("step", self.loop.step) - 1)  # as when these weights were made
            task, feed = self.prepared.task, self.prepared.feeds["train"]
            shuffled = feed.shuffled(self.loop.clock.epochs)  # in order, a batch would be one class
            inputs = (task.to_input(b.to(self.device), None).images for b in shuffled)
            set_exact_statistics(net, inputs)
        split = next((s for s in ("test", "val") if s in self.prepared.feeds), None)
        metrics: dict[str, float] = {}
        measured: tuple[Measured, ...] = ()
        result: dict[str, Any] = {"metrics": metrics, "split": split}
        if split is not None:
            feed = self.prepared.feeds[split]
            evaluator = evaluate(self.prepared.task, net, feed.in_order(), self.device, self.world)
            metrics = finite_metrics(evaluator, split)
            interval, n = evaluator.interval(), len(self.prepared.feeds[split])
            result |= {"metrics": metrics, "interval": interval, "n": n}
            measured = self._measured(metrics, split, interval)
            images, classes = self.prepared.data.splits[split], self.prepared.data.classes
            shown = {"split": split, "n": n} | evaluator.details(images, classes)
            if self.world.first and self.config.task == "classify":
                preprocess = self.prepared.task.preprocess
                add_maps(shown["mistakes"], backbone_of(net), preprocess, images, classes)
            # so that runs on copies can be compared
            if split in self.prepared.contents and "images" in shown:
                content = self.prepared.contents[split].tobytes()
                shown["images"]["content"] = base64.b64encode(content).decode("ascii")
            self._write("evaluation.json", shown)
        card = self._save(net.state_dict(), "best", measured, self.best.get("step"))
        self._write("card.json", card.model_dump(mode="json"))
        seconds = time.perf_counter() - self.began
        speed = self.spent["images"] / max(self.spent["seconds"], 1e-9)
        result |= {
            "weights": "best.safetensors",
            "chosen": f"best on val, epoch {self.best['epoch']}" if self.best else "last step",
            "best_epoch": self.best.get("epoch"),
            "stopped": self._stopped(),
            "averaged": self.loop.ema is not None,
            "seconds": round(seconds, 2),
            "images_per_second": round(speed, 1),
        }
        if self.world.first:
            forget(self.run_path)
        self._write_record(status="finished", result=result)
        return _result(self.run_path, self.record, self.world)

    def _stopped(self) -> dict[str, Any] | None:
        """Where and why the metric ended the run; None for a run of its whole length."""
        clock, why = self.loop.clock, self.loop.schedule.stopped
        if why is None:
            return None
        return {"epoch": clock.position(self.loop.step)[0], "of": clock.epochs, "why": why}

    def _measured(
        self, metrics: Mapping[str, float], split: str, interval: tuple[float, float] | None = None
    ) -> tuple[Measured, ...]:
        n = len(self.prepared.feeds[split])
        rows = [
            Measured(name=name, value=value, split=split, n=n, data=self.plan.data.path)
            for name, value in metrics.items()
        ]
        if interval is not None:
            low, high = interval
            rows[0] = rows[0].model_copy(update={"low": low, "high": high})
        return tuple(rows)

    def _card(self, metrics: tuple[Measured, ...]) -> Card:
        head = HEADS.get(self.config.task)
        return Card(
            task=self.config.task,
            **({head: getattr(self.config, head)} if head else {}),
            model=self.config.model.name,
            architecture=self.plan.architecture,
            classes=self.prepared.data.learned,
            preprocess=self.prepared.task.preprocess,
            metrics=metrics,
            recipe=self.config.model_dump(mode="json"),
            provenance={
                key: self.record[key] for key in ("created", "command", "skipway", "environment")
            }
            | {"data": self.digest}
            | ({"teacher": self.plan.teacher.digest} if self.plan.teacher else {}),
        )

    def _weights(self) -> dict[str, Tensor]:
        """The whole network's tensors, as they are evaluated and kept."""
        trained = self.loop.weights.state_dict()
        return self.net.state_dict() | trained if self.config.on_features else trained

    def _save(
        self,
        state: Mapping[str, Tensor],
        name: str,
        metrics: tuple[Measured, ...],
        step: int | None = None,
    ) -> Card:
        """The weights after so many steps, as many as there were now, as a file of the run."""
        card = self._card(metrics)
        step = self.loop.step if step is None else step
        card = card.model_copy(update={"provenance": card.provenance | {"step": step}})
        if self.world.first:
            save_weights(self.run_path / f"{name}.safetensors", state, card)
        return card

    def _write_record(self, **update: Any) -> None:
        self.record |= update
        self._write("run.json", self.record)

    def _write(self, name: str, value: Any) -> None:
        if self.world.first:
            write_json(self.run_path / name, value)


def finite_metrics(evaluator: Evaluator, split: str) -> dict[str, float]:
    """The metrics. Raises InputError where one is no number: weights that are finite, but so large
    that outputs are not, must not be kept as the best."""
    with np.errstate(invalid="ignore"):
        metrics = dict(evaluator.metrics())
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        raise InputError(
            f"{broken[0]} on {split} is not finite; training stopped, the last checkpoint is kept."
            "\nTry a lower --lr, --set optim.clip=1 or --precision float32."
        )
    return metrics
