"""A run: a directory that holds all there is to know of one training, and how it is made.

It holds ``run.json`` (configuration, choices, data, environment, result), ``metrics.jsonl`` (a
row an epoch), ``checkpoints/step-N``, ``best.safetensors``, ``last.safetensors``, ``card.json``
and ``evaluation.json`` (what the report shows of the final score).
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from skipway.card import Card, Measured, parse_card
from skipway.config import resolve
from skipway.data import open_data
from skipway.data.feed import batches
from skipway.errors import InputError, SkipwayError, harmless
from skipway.metrics import wilson_interval
from skipway.resnet import ResNet, count
from skipway.tasks import Evaluator
from skipway.tasks.classify import ClassificationEvaluator
from skipway.training import checkpoint
from skipway.training.clock import Clock, Schedule
from skipway.training.loop import Loop, evaluate
from skipway.training.optim import freeze, make_ema, make_optimizer, set_exact_statistics
from skipway.training.plan import Plan, check_device, make_plan
from skipway.training.prepare import prepare
from skipway.training.progress import TrainingProgress
from skipway.training.record import (
    append_row,
    cut_rows,
    default_place,
    environment,
    evaluation,
    flat,
    read_record,
    write_json,
)
from skipway.version import __version__
from skipway.weights import load_model, load_weights, read_state, save_weights


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


def start(
    data_path: str,
    given: Mapping[str, Any],
    out: str | os.PathLike[str] | None = None,
    progress: TrainingProgress | None = None,
) -> Result:
    """Train from the beginning; see `plan.make_plan` for the settings.

    `out` must not exist or be empty; None makes a dated name under ``runs``. Nothing is left
    behind where the data or the settings cannot be used. Raises InputError, Interrupted.
    """
    began = time.perf_counter()
    torch.set_flush_denormal(True)  # before the thread pools start: they inherit it
    progress = progress or TrainingProgress()
    if (
        out is not None
        and Path(out).exists()
        and (not Path(out).is_dir() or any(Path(out).iterdir()))
    ):
        raise InputError(f"--out {harmless(out)}: exists and is not empty; choose another place")
    plan = make_plan(data_path, given)
    return _Training(plan, out, progress, began).run(None)


def resume(run: str | os.PathLike[str], progress: TrainingProgress | None = None) -> Result:
    """Go on with a run from its newest checkpoint, as if it had never stopped."""
    began = time.perf_counter()
    torch.set_flush_denormal(True)
    path = Path(run)
    record = read_record(path)
    if record["status"] == "finished":
        raise InputError(f"--resume {harmless(run)}: this run is finished")
    state = checkpoint.load(checkpoint.newest(path))
    config, card = resolve(flat(record["config"])), parse_card(state["card"], str(run))
    check_device(config.device)
    data = open_data(config.data_path, config.data.val, config.seed)
    if data.classes != card.classes:
        raise InputError(f"--resume {harmless(run)}: {harmless(data.path)} has other classes now")
    plan = Plan(config, data, card.architecture, card.preprocess, ())
    return _Training(plan, path, progress or TrainingProgress(), began, record).run(state)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The stop signals that came in: SIGINT and SIGTERM; a second one ends the process at once."""
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: nobody's signals to take
        before = {}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Training:
    """One training from a plan, new or resumed."""

    def __init__(
        self,
        plan: Plan,
        out: str | os.PathLike[str] | None,
        progress: TrainingProgress,
        began: float,
        record: dict[str, Any] | None = None,
    ) -> None:
        self.plan, self.config, self.progress, self.began = plan, plan.config, progress, began
        self.resumed = record is not None
        torch.set_num_threads(plan.config.threads)
        self.device = torch.device(plan.config.device)
        self._announce()
        self.prepared = prepare(plan)
        if skipped := self.prepared.data.skipped:
            first = f"the first: {skipped[0].reason}"
            progress.say(f"  {len(skipped):,} damaged images left out; {first}")
        self.net = self._network()
        self.loop = self._loop(self.net)
        self.run_path = (
            Path(out) if out else default_place(plan.config.data_path, plan.config.model.name)
        )
        self.record = record or self._record()
        self.best: dict[str, Any] = {}
        self.images, self.seconds = 0, 0.0

    # Set-up

    def _announce(self) -> None:
        say, data = self.progress.say, self.plan.data
        splits = ", ".join(f"{len(s):,} {name}" for name, s in data.splits.items())
        say(f"{harmless(data.path)}: {splits} images of {len(data.classes)} classes")
        for note in data.notes:
            say(f"  {harmless(note)}")
        for choice in self.plan.choices:
            say(f"  {choice.key} = {harmless(choice.value)}  ({choice.reason})")

    def _network(self) -> ResNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            net = self.prepared.task.build(self.plan.architecture)
        assert isinstance(net, ResNet)
        if self.config.model.weights is not None and not self.resumed:
            state, _ = read_state(self.config.model.weights)
            for line in load_weights(net, state).lines():
                self.progress.say(f"  {line}")
        return net.to(self.device).to(memory_format=torch.channels_last)

    def _loop(self, net: ResNet) -> Loop:
        config = self.config
        feed = self.prepared.feeds["train"]
        try:
            clock = Clock.of(config.schedule.length, len(batches(len(feed), config.batch_size)))
        except ValueError as error:
            raise InputError(f"schedule.length: {error}") from None
        keep_frozen = freeze(net, config.model.freeze)
        torch.manual_seed(config.seed)
        return Loop(
            self.prepared.task,
            net,
            feed,
            make_optimizer(net, config.optim),
            clock,
            Schedule(config.schedule, clock, config.optim.lr),
            seed=config.seed,
            device=self.device,
            precision=config.precision,
            ema=make_ema(net, config.ema.decay) if config.ema.decay else None,
            clip=config.optim.clip,
            keep_frozen=keep_frozen,
        )

    def _record(self) -> dict[str, Any]:
        data = self.prepared.data
        parameters, macs = count(self.net.arch)
        return {
            "version": 1,
            "skipway": __version__,
            "name": self.run_path.name,
            "command": " ".join(["skipway", *sys.argv[1:]]),
            "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "config": self.config.model_dump(mode="json"),
            "choices": [asdict(c) for c in self.plan.choices],
            "data": {
                "path": data.path,
                "classes": data.classes,
                "splits": {
                    n: {"n": len(s), "counts": data.counts(n)} for n, s in data.splits.items()
                },
                "notes": data.notes,
                "skipped": [asdict(s) for s in data.skipped],
            },
            "environment": environment(self.device, self.config.threads),
            "params": parameters,
            "macs": macs,
            "status": "running",
        }

    # The run

    def run(self, state: dict[str, Any] | None) -> Result:
        try:
            self.run_path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--out {harmless(self.run_path)}: cannot be made: {error.strerror}"
            ) from None
        self._write_record(status="running")
        if state is not None:
            self.loop.load_state(state["loop"])
            self.best = state["best"]
            cut_rows(self.run_path, self.loop.step)
            self.progress.say(f"going on at step {self.loop.step:,}")
        with _signals() as came:
            self.progress.begin(self.loop.clock, self.loop.step)
            try:
                self._epochs(came)
            except SkipwayError as error:
                with contextlib.suppress(SkipwayError):  # a full disk must not hide the reason
                    self._write_record(status="failed", error=str(error))
                raise
            finally:
                self.progress.end()
            if came:
                self._write_record(status="interrupted")
                raise Interrupted(self.run_path, came[0])
        return self._finish()

    def _epochs(self, came: list[int]) -> None:
        loop = self.loop
        every = loop.clock.steps(self.config.checkpoint_every)

        def pause(loop: Loop) -> bool:
            self.progress.step(loop.step, loop.tally)
            at_end = loop.step % loop.clock.steps_per_epoch == 0 or loop.finished
            if every and loop.step % every == 0 and not at_end:
                self._checkpoint()
            return bool(came)

        while not loop.finished:
            images, seconds = loop.tally.images, loop.tally.seconds
            if loop.clock.position(loop.step)[1] == 0:
                images, seconds = 0, 0.0
            whole = loop.epoch(pause)
            self.images += loop.tally.images - images
            self.seconds += loop.tally.seconds - seconds
            if whole:
                self._end_of_epoch()
            if whole or came:
                self._checkpoint()
            if came:
                return

    def _end_of_epoch(self) -> None:
        loop, tally = self.loop, self.loop.tally
        epoch = (loop.step - 1) // loop.clock.steps_per_epoch + 1
        row: dict[str, Any] = {
            "epoch": epoch,
            "step": loop.step,
            "lr": loop.schedule(loop.step - 1),
        }
        row |= {f"train_{name}": value for name, value in tally.means().items()}
        if "val" in self.prepared.feeds and self.config.data.val != "none":
            task, feed = self.prepared.task, self.prepared.feeds["val"]
            metrics = finite_metrics(evaluate(task, loop.weights, feed, self.device), "val")
            row |= {f"val_{name}": value for name, value in metrics.items()}
            value = next(iter(metrics.values()))
            if value >= self.best.get("value", -1.0):
                self.best = {"value": value, "epoch": epoch, "step": loop.step}
                self._save(loop.weights, "best", self._measured(metrics, "val"))
        row |= {
            "seconds": round(tally.seconds, 3),
            "images_per_second": round(tally.images / max(tally.seconds, 1e-9), 1),
            "waiting": round(tally.waiting / max(tally.seconds, 1e-9), 4),
            "gradient_norms": loop.norms.means(),
        }
        append_row(self.run_path, row)
        self.progress.epoch(row)

    def _checkpoint(self) -> None:
        card = self._card(()).to_json()
        state = {"loop": self.loop.state(), "best": self.best, "card": card}
        folder, keep = self.run_path / "checkpoints", self.config.keep_checkpoints
        checkpoint.save(folder, self.loop.step, state, keep)

    # The end

    def _finish(self) -> Result:
        self._save(self.loop.weights, "last", ())
        path = self.run_path / "best.safetensors"
        net, _, _ = load_model(path if self.best else self.run_path / "last.safetensors")
        net = net.to(self.device).to(memory_format=torch.channels_last)
        if self.config.exact_norm:
            task, feed = self.prepared.task, self.prepared.feeds["train"]
            inputs = (task.to_input(b.to(self.device), None).images for b in feed.in_order())
            set_exact_statistics(net, inputs)
        split = next((s for s in ("test", "val") if s in self.prepared.feeds), None)
        metrics: dict[str, float] = {}
        measured: tuple[Measured, ...] = ()
        result: dict[str, Any] = {"metrics": metrics, "split": split}
        if split is not None:
            evaluator = evaluate(self.prepared.task, net, self.prepared.feeds[split], self.device)
            assert isinstance(evaluator, ClassificationEvaluator)
            scored = evaluator.scored()
            metrics = finite_metrics(evaluator, split)
            interval = wilson_interval(int(scored.correct.sum()), len(scored.label))
            result |= {"metrics": metrics, "interval": interval, "n": len(scored.label)}
            measured = self._measured(metrics, split, interval)
            images, classes = self.prepared.data.splits[split], self.prepared.data.classes
            shown = evaluation(split, images, classes, scored)
            write_json(self.run_path / "evaluation.json", shown)
        card = self._save(net, "best", measured)
        write_json(self.run_path / "card.json", card.model_dump(mode="json"))
        seconds = time.perf_counter() - self.began
        speed = self.images / max(self.seconds, 1e-9)
        result |= {
            "weights": "best.safetensors",
            "chosen": f"best on val, epoch {self.best['epoch']}" if self.best else "last step",
            "best_epoch": self.best.get("epoch"),
            "averaged": self.loop.ema is not None,
            "seconds": round(seconds, 2),
            "images_per_second": round(speed, 1),
        }
        self._write_record(status="finished", result=result)
        return Result(self.run_path, metrics, split, path, seconds, speed, self.record)

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
        return Card(
            model=self.config.model.name,
            architecture=self.plan.architecture,
            classes=self.prepared.data.classes,
            preprocess=self.prepared.task.preprocess,
            metrics=metrics,
            recipe=self.config.model_dump(mode="json"),
            provenance={
                key: self.record[key] for key in ("created", "command", "skipway", "environment")
            },
        )

    def _save(self, net: nn.Module, name: str, metrics: tuple[Measured, ...]) -> Card:
        card = self._card(metrics)
        save_weights(self.run_path / f"{name}.safetensors", net, card)
        return card

    def _write_record(self, **update: Any) -> None:
        self.record |= update
        write_json(self.run_path / "run.json", self.record)


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
