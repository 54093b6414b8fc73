"""From a plan to a training that can begin: data read, network built, time and memory settled."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skipway.architecture import count
from skipway.data.feed import Feed, telling_of_a_killed_worker
from skipway.errors import InputError, harmless
from skipway.machine import free_memory, keep_freed_memory, peak_memory
from skipway.recipes import recipe
from skipway.resnet import backbone_of
from skipway.tasks import Task
from skipway.tasks.classify import Classify
from skipway.tasks.detect import Detect
from skipway.tasks.distil import Distilled, Teacher
from skipway.tasks.segment import Segment
from skipway.training import checkpoint
from skipway.training.clock import Clock, Schedule
from skipway.training.distributed import World
from skipway.training.features import OnFeatures, feature_feeds, head
from skipway.training.forecast import (
    SHORT,
    Forecast,
    Trial,
    forecast,
    over,
    pace_of,
    step_memory,
    steps_within,
)
from skipway.training.loop import Diverged, Loop
from skipway.training.optim import Frozen, freeze, make_ema, make_optimizer
from skipway.training.plan import Plan, check_batch, compares_images
from skipway.training.prepare import prepare
from skipway.training.progress import TrainingProgress
from skipway.training.whitening import PATCHED, whiten
from skipway.weights import load_start, read_state

_BYTES_A_MAC = 1
"""More than a step holds, for each multiply-add of an image: whether to look at it closely."""
FALLING = ("linear", "polynomial", "cosine", "one-cycle")
"""Schedules whose rate is 0 at the end of the run."""
FROZEN = "checkpoints/frozen"
"""The network of a run that trains on features, whose checkpoints hold the classifier alone."""


def memory_format(task: Task, device: torch.device, precision: str) -> torch.memory_format:
    """How a network's weights lie in memory: channels last, but for detectors and segmenters in
    float32 on a CPU, where the gradients of wide convolutions on large maps take longer so."""
    large_maps = isinstance(task, Detect | Segment)
    if large_maps and device.type == "cpu" and precision == "float32":
        return torch.contiguous_format
    return torch.channels_last


class Setup:
    """A training from a plan, ready for its first step or to go on: data, network, loop, and what
    memory and time allow."""

    def __init__(
        self,
        plan: Plan,
        progress: TrainingProgress,
        began: float,
        world: World,
        resumed: Path | None = None,
        trial: Trial | None = SHORT,
    ) -> None:
        self.plan, self.config, self.progress, self.began = plan, plan.config, progress, began
        self.world = world
        self.settled: dict[str, Any] = {}
        """Settings that time and memory decided, by dotted key."""
        torch.set_num_threads(plan.config.threads)
        keep_freed_memory()
        self.device = torch.device(plan.config.device)
        self._announce()
        self.prepared = world.agreed(lambda: prepare(plan, world.part, resumed))
        if skipped := self.prepared.data.skipped[len(plan.data.skipped) :]:
            first = f"the first: {skipped[0].reason}"
            progress.say(f"  {len(skipped):,} damaged images left out; {first}")
        for remark in self.prepared.data.notes[len(plan.data.notes) :]:
            progress.say(f"  {remark}")
        self.net = world.agreed(lambda: self._network(resumed))
        if not self.config.model.unfreeze:  # else `_loop` does it, and until then all of it counts
            freeze(backbone_of(self.net), self.config.model.freeze)
        self.task: Task = self.prepared.task
        if plan.teacher is not None:
            self.task = self._distilled(plan.teacher)
        self.feeds: Mapping[str, Feed] = self.prepared.feeds
        self._last: float | None = None
        """Seconds that the last score will take, where the whole network runs there alone."""
        self.trained: nn.Module = self.net
        if self.config.on_features:
            self.trained, self.task = head(self.net), OnFeatures(self.task)
            self._keep_views(min(self.config.data.views, self._clock().epochs))
            self.feeds = self._features(self.config.data.views)
        self.expected: Forecast | None = None
        if resumed is None:
            self._settle(trial)
        self._remark()
        self.loop = self._loop(self.trained)

    def _announce(self) -> None:
        say, data = self.progress.say, self.plan.data
        splits = ", ".join(f"{len(s):,} {name}" for name, s in data.splits.items())
        say(f"{harmless(data.path)}: {splits} images of {len(data.classes)} classes")
        for note in data.notes:
            say(f"  {harmless(note)}")
        named = recipe(self.config.recipe)
        say(f"  recipe {self.config.recipe}: {named.source}; {named.expected}")
        for choice in self.plan.choices:
            say(f"  {choice.key} = {harmless(choice.value)}  ({choice.reason})")

    def _keep_views(self, views: int) -> None:
        """So many views are computed, whatever length is planned later: a resume takes them too."""
        if views < self.config.data.views:
            self.settled["data.views"] = views
            data = self.config.data.model_copy(update={"views": views})
            self.config = self.config.model_copy(update={"data": data})

    def _features(self, views: int) -> dict[str, Feed]:
        begun, task = time.perf_counter(), self.prepared.task
        self.progress.say(
            f"  all but the classifier is frozen: computing its features of {views} views once"
        )
        all_feeds = self.prepared.feeds
        feeds = feature_feeds(
            backbone_of(self.net), task, all_feeds, self.config, views, self.device
        )
        seconds = time.perf_counter() - begun
        self.progress.say(f"  features computed in {seconds:.1f} s")
        passed = sum(len(feed) * (views if name == "train" else 1) for name, feed in feeds.items())
        scored = next((all_feeds[name] for name in ("test", "val") if name in all_feeds), ())
        self._last = len(scored) * seconds / passed
        return feeds

    def _network(self, resumed: Path | None) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            net = self.prepared.task.build(self.plan.architecture)
        if resumed is not None:  # its checkpoint has all weights, or those of the classifier
            if self.config.on_features:
                net.load_state_dict(checkpoint.load(resumed / FROZEN))
        elif self.config.model.weights is not None:
            for line in load_start(net, *read_state(self.config.model.weights)).lines():
                self.progress.say(f"  {line}")
        elif self.plan.architecture.stem == "whitened":
            stem = backbone_of(net).conv1
            assert isinstance(stem, nn.Conv2d)
            whiten(stem, self._first_images(PATCHED))
        layout = memory_format(self.prepared.task, self.device, self.config.precision)
        return net.to(self.device).to(memory_format=layout)

    def _distilled(self, teacher: Teacher) -> Distilled:
        """The task with a teacher, which is moved to the device."""
        config, task = self.config, self.prepared.task
        assert isinstance(task, Classify)
        teacher.net.to(self.device).to(memory_format=torch.channels_last)
        line = (
            f"  teacher {harmless(config.distill.model)}: {config.distill.weight:.0%} of the loss"
        )
        size = config.augment.size or task.preprocess.size[0]
        if size != teacher.preprocess.size[0]:
            line += f"; images of {size} px are resized to its {teacher.preprocess.size[0]} px"
        self.progress.say(line)
        return Distilled(task, teacher, config.distill.weight, config.distill.temperature)

    def _first_images(self, pixels: int) -> Tensor:
        """Training images of about so many pixels, or all, as the network gets them in evaluation:
        [N, C, H, W]."""
        found: list[Tensor] = []
        left = pixels
        for batch in self.prepared.feeds["train"].shuffled(0):
            found.append(self.prepared.task.to_input(batch, None).images)
            left -= found[-1][:, 0].numel()
            if left <= 0:
                break
        return torch.cat(found)

    def _clock(self) -> Clock:
        try:
            return Clock.of(self.config.schedule.length, self.feeds["train"].steps)
        except ValueError as error:
            raise InputError(f"schedule.length: {error}") from None

    def _settle(self, trial: Trial | None) -> None:
        """Fit the steps into memory and the run into its time, and say what it will take.

        trial: how the pace is measured for it; None fits memory alone.
        """
        with self.world.answering():
            self.world.agreed(self._fit_memory)
            if trial is None:
                return
            minutes = self.config.schedule.minutes
            loop = self._loop(copy.deepcopy(self.trained), thawed=True)
            try:
                with telling_of_a_killed_worker():
                    pace = pace_of(loop, self.feeds, trial.within(minutes))
            except InputError as error:
                alone = self.world.size > 1 and not isinstance(error, Diverged)
                if minutes is not None or trial.only or alone:
                    raise
                return  # the training will say so, with what was trained before
            peak = peak_memory()
            # what is measured for a forecast alone, a training does not spend
            of_training = SHORT.within(minutes)
            longest = min(of_training.seconds, of_training.share * pace.step * loop.clock.total)
            spare = max(pace.step * (pace.steps - 3) - longest, 0.0) if trial.only else 0.0

            def expected(clock: Clock) -> Forecast:
                passed = time.perf_counter() - self.began - spare
                return forecast(
                    pace, clock, self.config, self.feeds, passed, peak, self.world.size, self._last
                )

            if minutes is not None:
                self.world.agreed(lambda: self._fit_time(loop.clock, minutes, expected))
            self.expected = self.world.gather(expected(self._clock()))[0]
        self.progress.expect(self.expected)

    def _fit_memory(self) -> None:
        """Take the batch in parts where a step on the whole would not fit."""
        config, world = self.config, self.world
        free = free_memory() // world.local_size
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
        free = min(world.gather(free))
        batch = min(config.batch_size, len(self.feeds["train"]))
        if batch * count(self.plan.architecture)[1] * _BYTES_A_MAC < free:
            return
        parameters = sum(p.numel() for p in self.net.parameters())
        room = 0.9 * free - 12 * parameters  # momentum, its square or the average, and a copy
        of_step = step_memory(
            self.task, self.trained, self.feeds["train"], self.device, config.precision, config.seed
        )

        def needed(parts: int) -> int:
            synced = 2 if world.size > 1 else 1  # batch norm over processes keeps float32 copies
            return max(world.gather(synced * of_step(-(-batch // parts))))

        accumulate, whole = config.accumulate, needed(config.accumulate)
        if whole > room and compares_images(config):
            raise InputError(
                f"a step on {batch:,} images takes {whole / 2**30:.1f} GiB, {free / 2**30:.1f} GiB "
                f"are free\n{config.embedder.loss} compares the images of a batch, which cannot be "
                "taken in parts: take a smaller --batch-size."
            )
        while needed(accumulate) > room and accumulate < batch:
            accumulate += 1
        if needed(accumulate) > room:
            raise InputError(
                f"a step on one image takes {needed(batch) / 2**30:.1f} GiB, {free / 2**30:.1f} "
                "GiB are free\nTake a smaller --model or data.size, or "
                "--set model.architecture.checkpointing=true."
            )
        if accumulate > config.accumulate:
            self.settled["accumulate"] = accumulate
            self.config = config.model_copy(update={"accumulate": accumulate})
            at_once = -(-batch // accumulate)
            self.progress.say(
                f"  accumulate = {accumulate}  (a step on {-(-batch // config.accumulate):,} "
                f"images takes {whole / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
                f"batch norm sees {at_once:,} at a time)"
            )
            check_batch(self.config, self.plan.architecture, len(self.feeds["train"]))

    def _fit_time(
        self, clock: Clock, minutes: float, expected: Callable[[Clock], Forecast]
    ) -> None:
        """Plan the length of the run so that it ends within so many minutes."""

        def of(steps: int) -> Forecast:
            return expected(Clock(clock.steps_per_epoch, steps))

        steps = min(self.world.gather(steps_within(60 * minutes, of, round(60 * minutes * 1e6))))
        if steps < 1:
            raise InputError(
                f"--minutes {minutes:g}: reading, measuring and scoring the data takes "
                f"{of(1).seconds / 60:.1f} minutes without training\nGive more time."
            )
        self.config = over(self.config, clock, steps)
        planned = self.config.schedule
        self.settled |= {
            "schedule.length": planned.length,
            "schedule.warmup": planned.warmup,
            "model.unfreeze": self.config.model.unfreeze,
        }
        if planned.kind == "step":  # of others they would do nothing
            self.settled["schedule.milestones"] = planned.milestones
        epochs = steps / clock.steps_per_epoch
        self.progress.say(
            f"  schedule.length = {planned.length}  ({epochs:.3g} epochs end within {minutes:g} "
            "minutes)"
        )

    def as_settled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that were given, and those that time and memory decided in their place."""
        left = {key: value for key, value in given.items() if key != "schedule.minutes"}
        return left | {key: value for key, value in self.settled.items() if value}

    def _remark(self) -> None:
        """Say what of the schedule has no effect, and when frozen parts begin to train."""
        config, clock = self.config, self._clock()
        borders = self._borders(clock)
        past = [step for step in borders if step >= clock.total]
        if borders:
            steps = ", ".join(f"{step:,}" for step in borders)
            self.progress.say(f"  frozen parts begin to train after {steps} steps")
        if past:
            self.progress.say("  note: that is past the end of the run: some never train")
        if config.schedule.stop_patience is not None and config.schedule.kind in FALLING:
            self.progress.say(
                f"  note: stopped early, the rate of {config.schedule.kind} does not reach 0; with "
                "--set schedule.kind=plateau it follows the metric"
            )
        warmup = clock.steps(config.schedule.warmup)
        if warmup > clock.total:  # a recipe's, of a longer run; a given one is refused
            self.progress.say(
                f"  note: the warm-up takes {warmup:,} steps and the run {clock.total:,}: the rate "
                "does not get to optim.lr; try --set schedule.warmup='10 %'"
            )
        for milestone in self.config.schedule.milestones:
            if clock.steps(milestone) >= clock.total:
                self.progress.say(f"  note: the milestone {milestone} is past the end of the run")

    def _borders(self, clock: Clock) -> tuple[int, ...]:
        """The steps at which frozen parts begin to train."""
        borders = tuple(clock.steps(duration) for duration in self.config.model.unfreeze)
        if any(a >= b for a, b in itertools.pairwise(borders)):
            steps = ", ".join(map(str, borders))
            raise InputError(f"model.unfreeze: {steps} steps: each must be above the one before")
        return borders

    def _loop(self, net: nn.Module, thawed: bool = False) -> Loop:
        """The loop of a network; thawed: with none of the parts frozen that will train."""
        config, clock = self.config, self._clock()
        borders = self._borders(clock)
        batch = min(config.batch_size, -(-len(self.feeds["train"]) // self.world.size))
        at_once = -(-batch // config.accumulate)
        whole = self.net if self.config.on_features else net  # not the classifier alone
        keep_frozen = Frozen()
        if not (thawed and borders):
            keep_frozen = freeze(backbone_of(whole), config.model.freeze, borders)
        torch.manual_seed(config.seed + self.world.rank)  # of dropped paths
        return Loop(
            self.task,
            net,
            self.feeds["train"],
            make_optimizer(net, config.optim, keep_frozen.later(), half=config.precision == "bf16"),
            clock,
            Schedule(config.schedule, clock, config.optim.lr, settled=max(borders, default=0)),
            seed=config.seed,
            device=self.device,
            precision=config.precision,
            ema=make_ema(net, config.ema.decay) if config.ema.decay else None,
            clip=config.optim.clip,
            keep_frozen=keep_frozen,
            at_once=at_once if config.accumulate > 1 else None,
            compiled_for=at_once if config.compile else 0,
            world=self.world,
        )
