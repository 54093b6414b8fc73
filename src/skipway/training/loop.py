"""The loop: one for every task. It knows batches, losses and steps, and nothing of images."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from skipway.data import Key
from skipway.data.feed import Batch, Feed
from skipway.errors import InputError
from skipway.predictor import autocast
from skipway.probes import Signal
from skipway.tasks import Evaluator, Task
from skipway.training.clock import Clock, Schedule
from skipway.training.distributed import ALONE, World, parallel
from skipway.training.optim import Frozen

PROBED_STEPS = 8
"""Steps of an epoch at which the signal is looked at."""


def probed(step: int, steps_per_epoch: int) -> bool:
    """Whether step `step` of a run is looked at: the first, and of twenty at most one, so that
    short epochs do not pay more. Some of less than twenty steps are not looked at at all."""
    return step % max(steps_per_epoch // PROBED_STEPS, 20) == 0


class Diverged(InputError):
    """A loss that is no number any more."""


@dataclass
class Tally:
    """Sums over the steps of an epoch."""

    images: int = 0
    sums: dict[str, float] | None = None
    seconds: float = 0.0
    waiting: float = 0.0

    def add(self, terms: Mapping[str, float], images: int) -> None:
        self.images += images
        sums = self.sums or {}
        self.sums = {k: sums.get(k, 0.0) + v * images for k, v in terms.items()}

    def means(self) -> dict[str, float]:
        return {k: v / max(self.images, 1) for k, v in (self.sums or {}).items()}


class Loop:
    """Steps of one network on one feed, from any position on.

    `pause` is asked after every step: True ends `epoch` at that step's boundary. at_once: images of
    a forward pass; None for a whole batch. compiled_for: the
    images of a forward pass for which the network is compiled, in one process; 0 for none. Passes
    on others, and those that are looked at, which compiled code does not show, go uncompiled.
    """

    def __init__(
        self,
        task: Task,
        net: nn.Module,
        feed: Feed,
        optimizer: torch.optim.Optimizer,
        clock: Clock,
        schedule: Schedule,
        *,
        seed: int,
        device: torch.device,
        precision: Literal["float32", "bf16"] = "float32",
        ema: AveragedModel | None = None,
        clip: float | None = None,
        keep_frozen: Frozen | None = None,
        at_once: int | None = None,
        compiled_for: int = 0,
        world: World = ALONE,
    ) -> None:
        self.task, self.net, self.feed = task, net, feed
        self.model, self.world, self.at_once = parallel(net, world), world, at_once
        self.optimizer, self.clock, self.schedule = optimizer, clock, schedule
        self.seed, self.device, self.ema, self.clip = seed, device, ema, clip
        self.precision = precision
        self.compiled_for = compiled_for
        self.compiled = net
        if compiled_for:
            self.compiled = cast(nn.Module, torch.compile(net, dynamic=False))
        self.keep_frozen = keep_frozen or Frozen()
        self.step = 0
        self.tally = Tally()
        self.signal = Signal(net)

    def epoch(self, pause: Callable[[Loop], bool]) -> bool:
        """Go on to the end of the epoch, or of the run. False where `pause` ended it before."""
        epoch, start = self.clock.position(self.step)
        if start == 0:
            self.tally, self.signal = Tally(), Signal(self.net)
        self.net.train()
        self._hold()
        begun = time.perf_counter()
        for batch in self._waited(self.feed.epoch(epoch, start)):
            if self.step in self.keep_frozen.until:
                self._hold()
            rate = self.schedule(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            look = probed(self.step, self.clock.steps_per_epoch)
            terms, images = self._gradients(batch, epoch, look)
            if look:
                self.signal.backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
            self.optimizer.step()
            if look:
                self.signal.stepped()
            self.optimizer.zero_grad()
            if self.ema is not None:
                self.ema.update_parameters(self.net)
            self.step += 1
            self._count(terms, images)
            self.tally.seconds += time.perf_counter() - begun
            if pause(self):
                return self.clock.position(self.step)[1] == 0 or self.finished
            if self.finished:
                break
            begun = time.perf_counter()
        return True

    def _gradients(self, batch: Batch, epoch: int, look: bool) -> tuple[dict[str, Tensor], int]:
        """Forward and backward passes of the step; its terms, means over all processes, and their
        number of images.

        Batches of uneven size, in one process or in several, count by their images.
        """
        images = int(self.world.sum(torch.tensor(len(batch), dtype=torch.int64)))
        # as many in each process, or they would wait for one another for ever
        parts = batch.split(_parts(images // self.world.size, self.at_once))
        sums: dict[str, Tensor] = {}
        for i, part in enumerate(parts):
            key = Key(self.seed, epoch, part.index, part.repeat)
            part = self.task.to_input(part.to(self.device), key)
            watched = self.signal.forward() if look and i == 0 else contextlib.nullcontext()
            with contextlib.ExitStack() as during:
                if isinstance(self.model, DistributedDataParallel) and i < len(parts) - 1:
                    during.enter_context(self.model.no_sync())
                fast = len(part) == self.compiled_for and not look
                with watched, autocast(self.device, self.precision):
                    terms = self.task.losses(self.compiled if fast else self.model, part)
                loss = torch.stack([t for t in terms.values() if t.requires_grad]).sum()
                share = len(part) / images
                if share < 1:
                    loss = loss * (share * self.world.size)  # what averages gradients divides by it
                loss.backward()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach() * share
        if self.world.size > 1:
            together = self.world.sum(torch.stack(list(sums.values())))
            sums = dict(zip(sums, together, strict=True))
        return sums, images

    def _hold(self) -> None:
        """Freeze and free the parts of the network as this step asks."""
        if self.keep_frozen.at(self.step):
            # what averages gradients knows those that were there when it was made
            self.model = parallel(self.net, self.world)

    @property
    def finished(self) -> bool:
        """Whether no step is left: of the length, or since the metric ended the run."""
        return self.step >= self.clock.total or self.schedule.stopped is not None

    @property
    def weights(self) -> nn.Module:
        """The network whose weights are evaluated and kept: the averaged one where there is one."""
        return self.net if self.ema is None else self.ema.module

    def _waited(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        waiting = iter(batches)
        while True:
            begun = time.perf_counter()
            batch = next(waiting, None)
            self.tally.waiting += time.perf_counter() - begun
            if batch is None:
                return
            yield batch

    def _count(self, terms: Mapping[str, Tensor], images: int) -> None:
        together = torch.stack(list(terms.values())).tolist()  # one synchronisation
        values = dict(zip(terms, together, strict=True))
        broken = [k for k, v in values.items() if not math.isfinite(v)]
        if broken:
            rate = self.schedule(self.step - 1)
            raise Diverged(
                f"{broken[0]} became {values[broken[0]]} at step {self.step:,} "
                f"(learning rate {rate:.3g}); training stopped, the last checkpoint is kept.\n"
                "Try a lower --lr, --set optim.clip=1, --precision float32, or look for odd images."
            )
        self.tally.add(values, images)

    def state(self) -> dict[str, Any]:
        """Everything that decides the steps to come. Raises InputError where weights are not
        finite, so that a broken state is never kept."""
        state = self.net.state_dict()
        if not all(torch.isfinite(t).all() for t in state.values() if t.is_floating_point()):
            raise InputError(
                f"weights are not finite after step {self.step:,}; the last checkpoint is kept.\n"
                "Try a lower --lr, --set optim.clip=1 or --precision float32."
            )
        return {
            "step": self.step,
            "model": state,
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state(),
            "tally": asdict(self.tally),
            "signal": self.signal.state(),
            "generators": self.world.gather(self._generators()),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state` gave."""
        self.step = state["step"]
        self.net.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state(state["schedule"])
        self.tally = Tally(**state["tally"])
        self.signal.load_state(state["signal"])
        cpu, gpu = state["generators"][self.world.rank]
        torch.set_rng_state(cpu)
        if gpu is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(gpu, self.device)

    def _generators(self) -> list[Tensor | None]:
        gpu = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return [torch.get_rng_state(), gpu]


def _parts(images: int, at_once: int | None) -> int:
    """In how many parts a batch of so many images is taken: of `at_once` at most, but that none is
    of a single image where others are not, of which batch norm has no statistics."""
    if at_once is None:
        return 1
    parts = -(-images // at_once)
    return max(parts - 1, 1) if images // parts < min(at_once, 2) else parts


def in_parts(batch: Batch, at_once: int | None) -> list[Batch]:
    """A batch as training takes it."""
    return batch.split(_parts(len(batch), at_once))


@torch.inference_mode()
def evaluate(
    task: Task,
    net: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    world: World = ALONE,
    at_once: int | None = None,
) -> Evaluator:
    """Every image of the batches, once, in float32. The evaluator with all outputs, everywhere.

    batches: `Feed.in_order`, the part of this process. at_once: as of `Loop`: what takes its
    batches in parts for want of memory is scored in such parts too.
    """
    was_training = net.training
    net.eval()
    evaluator = task.evaluator()
    for batch in (part for whole in batches for part in in_parts(whole, at_once)):
        batch = task.to_input(batch.to(device), None)
        with np.errstate(invalid="ignore"):  # outputs may be no numbers, which metrics show
            evaluator.update(task.predict(net, batch), batch)
    net.train(was_training)
    own, *others = world.gather(evaluator)
    for other in others:
        own.merge(other)
    return own
