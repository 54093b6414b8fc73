"""The training of one run's folder, new or resumed: from its first step to its last file."""

from __future__ import annotations

import base64
import contextlib
import datetime
import math
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from skipway.architecture import count
from skipway.card import Card, Measured, read_card
from skipway.config import minutes_of
from skipway.data.feed import Batch, telling_of_a_killed_worker
from skipway.errors import InputError, SkipwayError, harmless
from skipway.explain import add_maps
from skipway.heads import HEADS
from skipway.machine import peak_memory
from skipway.resnet import backbone_of
from skipway.tasks import Evaluator
from skipway.training import checkpoint
from skipway.training.callbacks import Audience
from skipway.training.choices import Choice
from skipway.training.claim import signals
from skipway.training.distributed import Elsewhere, World
from skipway.training.loop import Loop, evaluate, in_parts
from skipway.training.optim import freeze, set_exact_statistics
from skipway.training.reading import forget
from skipway.training.record import (
    append_row,
    cut_rows,
    environment,
    remove_unfinished,
    write_json,
)
from skipway.training.samples import write_samples
from skipway.training.setup import FROZEN, Setup, memory_format
from skipway.version import __version__
from skipway.weights import read_state, save_weights

DECIDE_BITS = (
    "skipway", "torch", "numpy", "pillow", "cpu", "threads", "instruction_set", "device",
)  # fmt: skip
"""What a run's environment must have in common for a resume to be equal to the bit."""
_WHY = {"data.views": "the run has no more epochs"}
"""Why a setting was settled, where it is not for time and memory."""
_LONG = 10.0
"""Seconds of scoring that a resume should not have to repeat."""


class _Stopped(Exception):
    """A signal came, and the steps since the last checkpoint may be unsaved."""


class Interrupted(SkipwayError):
    """A signal ended the run at a step's boundary or while it was scored, with a checkpoint."""

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


def result_of(run: Path, record: Mapping[str, Any], world: World) -> Result:
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


class Trainer(Setup):
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
                    asdict(
                        Choice(key, value, _WHY.get(key, "fits the time and the memory there is"))
                    )
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
        folder, start = path / "checkpoints", 0 if state is None else state["loop"]["step"]
        try:
            with (
                self.world.answering(),
                telling_of_a_killed_worker(),
                signals() as self.came,
                checkpoint.Writer(folder, self.config.keep_checkpoints, start) as self.writer,
            ):
                if state is None:
                    self._begin()
                else:
                    self._go_on(state)
                self.progress.begin(self.loop.clock, self.loop.step)
                audience.begin(path, record, self.loop.step - self.unscored)
                try:
                    self._epochs()
                    return self._finish()
                except _Stopped:
                    if self.loop.step > self.saved_at:
                        self._checkpoint()
                number = max(self.world.gather(self.came[0] if self.came else 0))
        except BaseException as error:
            told = (
                str(error)
                if isinstance(error, SkipwayError)
                else f"{type(error).__name__}: {error}"
            )
            with contextlib.suppress(Exception):  # a full disk must not hide the reason
                self._write_record(status="failed", error=told)
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
        self._check_best()
        self.began -= self.spent["elapsed"]
        self.saved_at = self.loop.step
        self.saved_when = time.monotonic()
        self.unscored = state["unscored"]
        if self.world.first:
            cut_rows(self.run_path, self.loop.step - self.unscored)
        self.progress.say(f"going on at step {self.loop.step:,}")
        before, now = self.record["environment"], environment(self.device, self.config.threads)
        told = (*DECIDE_BITS, "cores")
        changed = {key: now[key] for key in told if now[key] != before.get(key)}
        self.record.setdefault("resumed", []).append({"step": self.loop.step} | changed)
        for key, value in ((key, changed[key]) for key in DECIDE_BITS if key in changed):
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

    def _epochs(self) -> None:
        """Train to the end. Raises _Stopped where a signal comes."""
        loop, every, world = self.loop, self.config.checkpoint_every, self.world
        minutes = minutes_of(every)
        steps = 1 if minutes else max(loop.clock.steps(every), 1)

        def due() -> bool:
            if minutes is not None:  # clocks differ
                return world.any(time.monotonic() - self.saved_when >= 60 * minutes)
            return loop.step - self.saved_at >= steps

        def pause(loop: Loop) -> bool:
            self.progress.step(loop.step, loop.tally)
            self.writer.check()
            at_end = loop.step % loop.clock.steps_per_epoch == 0 or loop.finished
            if not at_end and due():
                self._checkpoint()
            return world.any(bool(self.came))

        while self.unscored or not loop.finished:
            self.unscored = self.unscored or loop.epoch(pause)
            # Before it is scored: that may take longer than there is time to stop.
            stop = world.any(bool(self.came))
            if (stop or loop.finished or due()) and loop.step > self.saved_at:
                self._checkpoint()
            if stop:
                raise _Stopped
            if self.unscored:
                begun = time.monotonic()
                self._end_of_epoch()
                self.spent["images"] += loop.tally.images
                self.spent["seconds"] += loop.tally.seconds
                self.unscored = False
                long = loop.step == self.saved_at and time.monotonic() - begun > _LONG
                stop = world.any(bool(self.came))
                if world.any(long) or stop:
                    self._checkpoint()
                if stop:
                    raise _Stopped
        self.writer.wait()

    def _until_asked(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches. Raises _Stopped where a signal comes; of several processes none does, as
        they would have to agree at each."""
        for batch in batches:
            if self.came and self.world.size == 1:
                raise _Stopped
            yield batch

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
            batches = self._until_asked(self.feeds["val"].in_order())
            evaluator = evaluate(
                self.task, loop.weights, batches, self.device, self.world, loop.at_once
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

    def _check_best(self) -> None:
        """Forget the best epoch where its weights are gone, as where a later one has taken their
        file, after the checkpoint and before the stop. Gone on with bit by bit, that one comes
        again; on another machine it may not, and others are then the best of what is left."""
        if not self.best:
            return
        kept = self.run_path / "best.safetensors"
        card = read_card(kept) if kept.exists() else None
        if card is None or card.provenance.get("step") != self.best["step"]:
            self.progress.say(
                f"  note: the weights of epoch {self.best['epoch']}, the best so far, are gone; "
                "the best of what comes is taken"
            )
            self.best = {}

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
        chosen = kept if self.best else self.run_path / "last.safetensors"
        net.load_state_dict(read_state(chosen)[0])
        layout = memory_format(self.prepared.task, self.device, self.config.precision)
        net = net.to(self.device).to(memory_format=layout).eval()
        if self.config.exact_norm:
            frozen = freeze(backbone_of(net), self.config.model.freeze, self.loop.keep_frozen.until)
            frozen.at(self.best.get("step", self.loop.step) - 1)  # as when these weights were made
            task, feed = self.prepared.task, self.prepared.feeds["train"]
            shuffled = feed.shuffled(self.loop.clock.epochs)  # in order, a batch would be one class
            inputs = (
                task.to_input(part.to(self.device), None).images
                for batch in self._until_asked(shuffled)
                for part in in_parts(batch, self.loop.at_once)
            )
            set_exact_statistics(net, inputs)
        split = next((s for s in ("test", "val") if s in self.prepared.feeds), None)
        metrics: dict[str, float] = {}
        measured: tuple[Measured, ...] = ()
        result: dict[str, Any] = {"metrics": metrics, "split": split}
        if split is not None:
            batches = self._until_asked(self.prepared.feeds[split].in_order())
            task, at_once = self.prepared.task, self.loop.at_once
            evaluator = evaluate(task, net, batches, self.device, self.world, at_once)
            metrics = finite_metrics(evaluator, split)
            interval, n = evaluator.interval(), len(self.prepared.feeds[split])
            result |= {"metrics": metrics, "interval": interval, "n": n}
            measured = self._measured(metrics, split, interval)
            images, classes = self.prepared.data.splits[split], self.prepared.data.classes
            shown = {"split": split, "n": n} | evaluator.details(images, classes)
            if self.world.first:
                add_maps(shown, net, self._card(()), images)
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
        return result_of(self.run_path, self.record, self.world)

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
