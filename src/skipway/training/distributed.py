"""Several processes on one training, as torchrun starts them.

All processes hold the same network and see parts of the same global batch. What one process could
not know of the others goes through `World`: sums, a stop that only one of them was asked for, what
only the first one chooses.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from skipway.data.feed import Part
from skipway.errors import InputError, SkipwayError, harmless

T = TypeVar("T")
GONE = "another process of this training has gone"
PATIENCE = timedelta(minutes=30)
"""How long processes wait for one another: reading the data may take one of them longer."""


class Elsewhere(SkipwayError):
    """Another process has said what went wrong; this one leaves without a word."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


@dataclass(frozen=True)
class World:
    """The processes of a training, and which of them this is. Alone, every exchange is nothing."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    """Of this machine."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def part(self) -> Part:
        return Part(self.rank, self.size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of what each process gives, in place. Raises SkipwayError where one has gone."""
        if self.size > 1:
            with self._exchange():
                dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag))))

    def gather(self, value: T) -> list[T]:
        """What each process gives, by rank. Raises SkipwayError where one has gone."""
        found: list[Any] = [value]
        if self.size > 1:
            found = [None] * self.size
            with self._exchange():
                dist.all_gather_object(found, value)
        return found

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self.size > 1 and lost(error):
                raise SkipwayError(GONE) from error
            raise

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """What goes wrong inside says which process it is."""
        try:
            with self._exchange():  # of gradients too
                yield
        except SkipwayError as error:
            if self.size > 1 and not isinstance(error, Elsewhere):
                error.args = (f"process {self.rank}: {error}",)
            raise

    def agreed(self, make: Callable[[], T]) -> T:
        """What `make` gives here. Where it fails in any process, all leave: of those in which it
        failed the first raises its error, the others `Elsewhere`."""
        failure: SkipwayError | None = None
        made: T | None = None
        try:
            made = make()
        except SkipwayError as error:
            failure = error
        told = self.gather(None if failure is None else (str(failure), failure.exit_code))
        of, found = next(((r, t) for r, t in enumerate(told) if t is not None), (0, None))
        if found is None:
            return cast(T, made)
        if failure is not None and self.rank == of:
            raise failure
        raise Elsewhere(found[1])


ALONE = World()


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """The world that torchrun has started this process in; alone where it has not. Raises
    InputError where another launcher seems to have."""
    size = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
    if not dist.is_torchelastic_launched() and os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError(
            f"WORLD_SIZE is {harmless(os.environ['WORLD_SIZE'])}, but torchrun did not start this "
            "process\n"
            "Start all with: torchrun --nproc-per-node N -m skipway train …, or unset WORLD_SIZE."
        )
    if size == 1:
        yield ALONE
        return
    local = int(os.environ["LOCAL_RANK"])
    backend = "gloo"
    rank, here = int(os.environ["RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available() and here <= torch.cuda.device_count():
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    meeting = _meeting() if here == size else None
    try:
        dist.init_process_group(backend, meeting, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:  # what torch raises is of all kinds
        where = meeting or ":".join(os.environ.get(f"MASTER_{key}", "") for key in ("ADDR", "PORT"))
        raise SkipwayError(
            f"process {rank} of {size} did not find the others at {where}: "
            f"{str(error).splitlines()[0][:150]}\n"
            "Give torchrun another --master-port, or --rdzv-endpoint, or look for one that died."
        ) from error
    yield World(rank, size, here)
    dist.destroy_process_group()  # not after an error: it would wait for those that are gone


def _meeting() -> str:
    """A file of its own for each start, where processes of one machine find one another.

    Through torchrun's own store (torch 2.14) about half of the restarts never come together.
    """
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
    name = f"skipway-{os.getuid()}-{hashlib.sha256(starter().encode()).hexdigest()[:16]}"
    return f"file://{tempfile.gettempdir()}/{name}-{start}"


def starter() -> str:
    """Which torchrun has started this process: the same after a restart, another for each launch,
    also in containers, where all that is started has the same number each time."""
    parent = os.getppid()
    try:
        begun = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        begun = ""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{run} {platform.node()} {parent} {begun}"


def restarts() -> tuple[int, int]:
    """How often torchrun has started this training again after a process of it died, and how often
    it will at most."""
    environ = os.environ
    done, most = "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"
    return int(environ.get(done, 0)), int(environ.get(most, 0))


def lost(error: Exception) -> bool:
    """Whether an exchange failed because another process has gone."""
    said = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(w in said for w in ("gloo", "nccl", "peer"))
    )


def parallel(net: nn.Module, world: World) -> nn.Module:
    """The network whose backward pass averages gradients over the processes; it shares parameters
    and buffers with `net`, whose batch norms are made to count the whole batch."""
    if world.size == 1:
        return net
    synchronise(net)
    # Buffers are equal in all processes already. torch 2.14 has another name for that choice.
    names = inspect.signature(DistributedDataParallel).parameters
    still = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    choices: dict[str, Any] = {still: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(net, **choices)


# Batch norm over all processes


def synchronise(net: nn.Module) -> None:
    """Make each batch norm take its statistics over the batches of all processes, in place.

    torch's own `SyncBatchNorm` does not run on a CPU. State and parameters stay what they are.
    """
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d  # another forward, nothing else: no state to move


class _Normalise(torch.autograd.Function):
    """x [B, C, H, W] by mean and variance [C] of the batch that it is a part of, times weight plus
    bias; `count` values of a channel are in that batch. One pass over x forward, two backward.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor,
        mean: Tensor, variance: Tensor, count: Tensor, eps: float,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        # as if mean and variance were constants: their part needs the sums of all processes
        own, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, variance, None, None, False, ctx.eps, [True] * 3
        )
        sums = torch.stack((of_weight, of_bias))
        dist.all_reduce(sums)
        deviation = (variance + ctx.eps).rsqrt()
        slope = -weight * deviation.square() * sums[0] / count
        level = -weight * deviation * sums[1] / count - slope * mean
        own.addcmul_(x, slope.to(x.dtype)[:, None, None]).add_(level.to(x.dtype)[:, None, None])
        return own, of_weight, of_bias, None, None, None, None


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation (1502.03167) with mean and variance over the images of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], B at least 1 in each process."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        # of bfloat16, float32 statistics only come beside float32 ones; of a single value these
        # would become NaN
        unused = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        own, spread = torch.ops.aten.batch_norm_update_stats(x.detach(), *unused, 0.0)
        count = own.new_full((1,), x.numel() / x.shape[1])
        mine = torch.cat((own, spread, count))
        every = mine.new_empty(dist.get_world_size(), len(mine))
        dist.all_gather(list(every.unbind()), mine)
        means, variances, counts = every.split((self.num_features, self.num_features, 1), 1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        # Chan et al. 1979: what each process has around its own mean, and the means around theirs
        variance = ((variances + (means - mean).square()) * counts).sum(0) / total
        assert self.momentum is not None
        with torch.no_grad():
            if self.num_batches_tracked is not None:  # else activations are computed again
                self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            unbiased = variance * (total / (total - 1))
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        normalised: Tensor = _Normalise.apply(
            x, self.weight, self.bias, mean, variance, total, self.eps
        )
        return normalised
