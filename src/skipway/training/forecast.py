"""How long a training will take and how much memory, measured on steps of its own.

The steps are real ones, on the run's own images, of a copy of its network that is dropped
afterwards: a training that was forecast gives the same bits as one that was not.
"""

from __future__ import annotations

import copy
import io
import itertools
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skipway.config import RunConfig, minutes_of
from skipway.data import Key
from skipway.data.feed import Batch, Feed
from skipway.predictor import autocast
from skipway.tasks import Task
from skipway.training.clock import Clock
from skipway.training.loop import Loop, evaluate

_COLD = 2
"""Steps at the start that are slower than the others: kernels are chosen, memory is taken."""
_EVALUATED = 3
"""Batches on which evaluation is timed."""
_REPORT = 2.0
"""Seconds for the report and the last files."""
_MARGIN = 0.95
"""Share of a time budget that is planned for: other programs come and go."""
_SCRATCH = 1.2
"""Memory over that of tensors: what convolutions take while they run."""


@dataclass(frozen=True)
class Trial:
    """How long the pace of a training is measured before it."""

    seconds: float = 5.0
    """Of steps, at most."""
    share: float = 0.02
    """Of the run, at most."""
    only: bool = False
    """Whether nothing is trained after it."""

    def within(self, minutes: float | None) -> Trial:
        """The trial of a run whose length is planned after it, to end within so many minutes."""
        if minutes is None:
            return self
        return replace(self, seconds=min(max(self.seconds, 60 * 0.02 * minutes), 60.0), share=1.0)


SHORT = Trial()
"""Before a training."""


@dataclass(frozen=True)
class Pace:
    """What the parts of a training take on this machine, in seconds."""

    step: float
    """One step, waiting for its images included."""
    cold: float
    """What the first steps take longer than others."""
    image: float
    """An image of evaluation."""
    evaluation: float
    """The start of an evaluation."""
    checkpoint: float
    steps: int
    """That were measured."""


@dataclass(frozen=True)
class Forecast:
    """What is expected of a training, in seconds and MiB."""

    preparing: float
    """Reading the data, and measuring: what has passed already."""
    training: float
    evaluating: float
    ending: float
    """The final score and the report."""
    memory_mib: float
    """The most that the process will hold; its workers and a GPU's memory are not counted."""
    steps: int

    @property
    def seconds(self) -> float:
        """Of the whole command."""
        return self.preparing + self.training + self.evaluating + self.ending


class _Few:
    """The first batches of an evaluation: the images of the first, when it was scored, and the
    images after it."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.opening, self.images, self.opened = 0, 0, 0.0

    def batches(self) -> Iterator[Batch]:
        for i, batch in enumerate(itertools.islice(self.feed.in_order(), _EVALUATED)):
            yield batch
            if i == 0:
                self.opening, self.opened = len(batch), time.perf_counter()
            else:
                self.images += len(batch)


class _Watch:
    """Times the steps of a loop until there are enough of them."""

    def __init__(self, limit: float, share: float) -> None:
        self.limit, self.share, self.enough = limit, share, False
        self.times: list[float] = []
        self._begun = self._last = time.perf_counter()

    def __call__(self, loop: Loop) -> bool:
        now = time.perf_counter()
        self.times.append(now - self._last)
        self._last = now
        done, spent = len(self.times), now - self._begun
        longest = min(self.limit, self.share * loop.clock.total * spent / done)
        self.enough = loop.world.any(done > _COLD and spent >= longest)
        return self.enough


def pace_of(loop: Loop, feeds: Mapping[str, Feed], trial: Trial) -> Pace:
    """The pace of a training, from three steps at least and a few batches of evaluation.

    The loop and its network are left changed.
    """
    watch = _Watch(trial.seconds, trial.share)
    while not (loop.finished or watch.enough):
        loop.epoch(watch)
    warm = watch.times[_COLD:] or watch.times
    step = statistics.fmean(warm)
    image = start = 0.0
    held_out = next((feeds[name] for name in ("val", "test") if name in feeds), None)
    if held_out is not None:
        for _ in ("cold", "warm"):
            few, begun = _Few(held_out), time.perf_counter()
            batches = few.batches()
            evaluator = evaluate(
                loop.task, loop.weights, batches, loop.device, at_once=loop.at_once
            )
            if few.opening:  # of few images this process may have none
                with np.errstate(invalid="ignore"):  # the training will tell what is no number
                    evaluator.metrics()
            ended = time.perf_counter()
        if few.images:
            image = (ended - few.opened) / few.images
            start = max(few.opened - begun - few.opening * image, 0.0)
        else:
            image = (ended - begun) / max(few.opening, 1)
    begun = time.perf_counter()
    torch.save(loop.state(), io.BytesIO())
    saving = time.perf_counter() - begun
    return Pace(
        step=step,
        cold=max(sum(watch.times[:_COLD]) - step * _COLD, 0.0),
        image=image,
        evaluation=start,
        checkpoint=saving,
        steps=len(watch.times),
    )


def forecast(
    pace: Pace, clock: Clock, config: RunConfig, feeds: Mapping[str, Feed], passed: float,
    memory_mib: float, processes: int = 1, last: float | None = None,
) -> Forecast:  # fmt: skip
    """What a run of that clock will take, `passed` seconds after its start. last: seconds of the
    last score, where it is not at the pace of the others."""

    def scoring(name: str) -> float:
        n = len(feeds[name]) if name in feeds else 0
        return (pace.evaluation + n * pace.image / processes) if n else 0.0

    evaluating = clock.epochs * scoring("val") if config.data.val != "none" else 0.0
    if last is None:
        last = scoring("test" if "test" in feeds else "val")
        if config.exact_norm:
            last += len(feeds["train"]) * pace.image
    training = pace.cold + clock.total * pace.step
    minutes = minutes_of(config.checkpoint_every)
    saves = training / (60 * minutes) if minutes else 0.0
    if not minutes:
        saves = clock.total / max(clock.steps(config.checkpoint_every), 1)
    training += (saves + 1) * pace.checkpoint
    return Forecast(passed, training, evaluating, last + _REPORT, memory_mib, clock.total)


def steps_within(seconds: float, expected: Callable[[int], Forecast], most: int) -> int:
    """The most steps whose forecast ends within a share of so many seconds that leaves room for
    other programs; 0 where not even one does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if expected(middle).seconds <= seconds * _MARGIN:
            low = middle
        else:
            high = middle - 1
    return low


def over(config: RunConfig, clock: Clock, steps: int) -> RunConfig:
    """The run of that clock over other steps: warm-up, milestones and unfreezing at the same shares
    of it."""

    def shares(*durations: str) -> tuple[str, ...]:
        return tuple(
            d if d.endswith("%") else f"{100 * clock.steps(d) / clock.total:.6f} %"
            for d in durations
        )

    planned, net = config.schedule, config.model
    length = {"length": f"{steps} steps", "warmup": shares(planned.warmup)[0]}
    schedule = planned.model_copy(update=length | {"milestones": shares(*planned.milestones)})
    model = net.model_copy(update={"unfreeze": shares(*net.unfreeze)})
    return config.model_copy(update={"schedule": schedule, "model": model})


# Memory


class Living(TorchDispatchMode):
    """The most bytes that tensors made inside held at one time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._seen:
            return
        self._seen.add(place)
        self.now += size
        self.most = max(self.most, self.now)

        def gone() -> None:
            self._seen.discard(place)
            self.now -= size

        weakref.finalize(storage, gone)


def step_memory(
    task: Task, net: nn.Module, feed: Feed, device: torch.device, precision: str, seed: int
) -> Callable[[int], int]:
    """The bytes that one step over so many images will hold beside the weights, from a step of two
    and one of four images, or fewer, on a copy of the network."""
    batch = next(iter(feed.epoch(0)))
    net = copy.deepcopy(net).train()
    held = []
    most = min(len(batch), 4)
    for n in (max(most // 2, 1), most):
        few = replace(
            batch,
            images=batch.images[:n],
            targets=batch.targets[:n],
            index=batch.index[:n],
            repeat=batch.repeat if isinstance(batch.repeat, int) else batch.repeat[:n],
        ).to(device)
        with Living() as living:
            part = task.to_input(few, Key(seed, 0, few.index))
            with autocast(device, precision):
                terms = task.losses(net, part)
            torch.stack([t for t in terms.values() if t.requires_grad]).sum().backward()
        held.append((len(few), living.most))
        net.zero_grad()
    (a, x), (b, y) = held
    each = max(y - x, 0) / (b - a) if b > a else x / a
    fixed = max(x - a * each, 0)
    return lambda images: round(_SCRATCH * (fixed + images * each))
