"""Batches for the loop: from memory, or decoded by workers. Both give the same images by key."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import multiprocessing
import multiprocessing.process
import signal
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from skipway.data.keyed import Key, hashed, permutation
from skipway.data.preflight import Scan, scan
from skipway.data.split import Split
from skipway.errors import InputError
from skipway.images import Channels, DecodeError, ImageLike, Preprocess, decode

Array = npt.NDArray[Any]


@dataclass
class Batch:
    """What a task's loss needs; images and targets are tensors or, where ragged, lists."""

    images: Any
    targets: Any
    index: Array
    """Position of each image in the data set: int64 [B]."""
    repeat: Array | int = 0
    """Which copy of its image each is, where an epoch has several: int64 [B], or 0 for all."""

    def __len__(self) -> int:
        return len(self.index)

    def split(self, parts: int) -> list[Batch]:
        """So many batches, as even as can be; at most as many as there are images."""
        ends = [len(self) * i // parts for i in range(parts + 1)]
        return [
            Batch(
                _rows(self.images, *at),
                _rows(self.targets, *at),
                self.index[slice(*at)],
                self.repeat if isinstance(self.repeat, int) else self.repeat[slice(*at)],
            )
            for at in itertools.pairwise(ends)
        ]

    def to(self, device: torch.device) -> Batch:
        """The batch on that device, lists and dictionaries element by element."""
        return replace(
            self, images=_moved(self.images, device), targets=_moved(self.targets, device)
        )


def _rows(value: Any, low: int, high: int) -> Any:
    if isinstance(value, dict):
        return {k: _rows(v, low, high) for k, v in value.items()}
    return value[low:high]


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {k: _moved(v, device) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_moved(v, device) for v in value]
    return value


class Feed(Protocol):
    """Batches of one split."""

    def __len__(self) -> int:
        """Images of the split, and as many of an epoch."""
        ...

    @property
    def steps(self) -> int:
        """Batches of a training epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterable[Batch]:
        """The batches of a training epoch from batch `start` on, in the order of its key; of each
        the part that is this process's."""
        ...

    def shuffled(self, epoch: int) -> Iterable[Batch]:
        """Every image once, as it is, in the order of that epoch's key."""
        ...

    def in_order(self) -> Iterable[Batch]:
        """Every image of this process's part once, as it is, in the order of the split."""
        ...


class ImageFeed(Feed, Protocol):
    """A feed of images, which are drawn by key."""

    def order(self, epoch: int) -> tuple[Array, Array]:
        """Which image a training epoch shows, and which copy of it: int64 [n] each, over all
        processes."""
        ...


@dataclass(frozen=True)
class Part:
    """The part of a training that one process has: of each batch, and of what is evaluated, every
    `size`-th image from `rank` on."""

    rank: int = 0
    size: int = 1

    def of(self, index: Array) -> Array:
        return index[self.rank :: self.size]


WHOLE = Part()


def batches(n: int, size: int, processes: int = 1) -> list[tuple[int, int]]:
    """Bounds of the batches of n images, `size` for each process; a last one of less than two, or
    less than one for each process, joins the one before.

    Batch norm has no statistics of a single value.
    """
    if not n:
        return []
    size *= processes
    ends = [*range(size, n, size), n]
    if len(ends) > 1 and n - ends[-2] < max(2, processes) and size > 1:
        del ends[-2]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def repeated(n: int, repeats: int, seed: int, epoch: int) -> tuple[Array, Array]:
    """What a training epoch shows, in order: which image, and which copy of it, int64 [n] each.

    Repeated augmentation (1901.09335, 1902.05509) as DeiT, timm and torchvision sample
    it: an epoch is as long as without, so it shows `repeats` copies of each of the first
    ceil(n / repeats) images of its permutation, one after another; of the last there may be fewer.
    So the copies are in one batch (at its border in two), or at the same step of several processes.
    timm and torchvision also drop what is over a multiple of 256; here nothing is dropped.
    """
    at = np.arange(n)
    return permutation(n, seed, epoch)[at // repeats], at % repeats


def grouped(
    labels: Array, per_class: int, batch_size: int, seed: int, epoch: int, processes: int = 1
) -> tuple[Array, Array]:
    """What a training epoch of P classes x K images a batch (1703.07737, section 2) shows, in
    order: which image, and which copy of it, int64 [N] each.

    labels: int64 [N]; per_class is K, batch_size that of each process, of P K images. On average
    all classes come equally often, and none twice in a batch where there are as many as it has
    groups of K; images of a class come in turn, and again as another copy once all have been. A
    process has whole groups of a batch: how many processes share it changes which of them has an
    image, and no more.
    """
    n = len(labels)
    classes, own, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.lexsort((hashed(seed, epoch, np.arange(n, dtype=np.uint64)), own))
    at_once = max(batch_size * processes // per_class, 1)
    a_round = len(classes) // at_once * at_once or len(classes)  # groups until a class may return
    groups = -(-n // per_class)
    rounds = np.arange(-(-groups // a_round), dtype=np.uint64)[:, None]
    draws = hashed(seed, epoch, rounds, np.arange(len(classes), dtype=np.uint64), 1)
    chosen = np.argsort(draws, axis=1, kind="stable")[:, :a_round].ravel()[:groups]
    turn = _visits(chosen)[:, None] * per_class + np.arange(per_class)
    starts, size = (np.cumsum(sizes) - sizes)[chosen][:, None], sizes[chosen][:, None]
    index, copy = order[starts + turn % size].ravel()[:n], (turn // size).ravel()[:n]
    places = np.arange(n)
    if processes > 1:  # neighbours go to one process, which takes every so many-th image
        for low, high in batches(n, batch_size, processes):
            dealt = np.concatenate([np.arange(low + r, high, processes) for r in range(processes)])
            places[dealt] = np.arange(low, high)
    return index[places], copy[places]


def _visits(values: Array) -> Array:
    """How often each value has come before: int64 [N]."""
    order = np.argsort(values, kind="stable")
    counts = np.bincount(values)
    visits = np.empty(len(values), np.int64)
    visits[order] = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    return visits


def _shown(
    n: int, labels: Array | None, batch_size: int, seed: int, processes: int, repeats: int,
    per_class: int,
) -> Callable[[int], tuple[Array, Array]]:  # fmt: skip
    """What an epoch shows in order, by its number; labels are asked for with per_class alone."""
    if not per_class:
        return lambda epoch: repeated(n, repeats, seed, epoch)
    assert labels is not None
    return lambda epoch: grouped(labels, per_class, batch_size, seed, epoch, processes)


Augment = Callable[[Array, Any, Key | None], tuple[Any, Any]]
Collate = Callable[[list[tuple[Any, Any]]], tuple[Any, Any]]


class ResidentFeed:
    """A split that was decoded once and lives in memory.

    frames: uint8 or uint16 [N, H, W, C]; labels: int64 [N]. repeats: copies of an image in a
    training epoch, see `repeated`; per_class: images of a class beside one another, see `grouped`.
    """

    def __init__(
        self,
        frames: Array,
        labels: Array,
        batch_size: int,
        seed: int,
        part: Part = WHOLE,
        repeats: int = 1,
        per_class: int = 0,
    ) -> None:
        self.frames = torch.from_numpy(frames)
        self.labels = torch.from_numpy(labels)
        self.batch_size, self.seed, self.part = batch_size, seed, part
        self._shown = _shown(len(labels), labels, batch_size, seed, part.size, repeats, per_class)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def steps(self) -> int:
        return len(batches(len(self), self.batch_size, self.part.size))

    def order(self, epoch: int) -> tuple[Array, Array]:
        return self._shown(epoch)

    def _batch(self, index: Array, repeat: Array | int = 0) -> Batch:
        rows = torch.from_numpy(index)
        images = self.frames[rows].permute(0, 3, 1, 2)
        return Batch(images, self.labels[rows], index, repeat)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order, repeat = self._shown(epoch)
        for low, high in batches(len(self), self.batch_size, self.part.size)[start:]:
            yield self._batch(self.part.of(order[low:high]), self.part.of(repeat[low:high]))

    def _once(self, order: Array) -> Iterator[Batch]:
        for low, high in batches(len(order), self.batch_size):
            yield self._batch(order[low:high])

    def shuffled(self, epoch: int) -> Iterator[Batch]:
        return self._once(permutation(len(self), self.seed, epoch))

    def in_order(self) -> Iterator[Batch]:
        return self._once(self.part.of(np.arange(len(self))))


@dataclass(frozen=True)
class _Failure:
    message: str


class _Decoded(Dataset[Any]):
    """Samples by (seed, epoch, index, repeat); epoch -1 asks for the image as it is."""

    def __init__(self, split: Split, channels: Channels, augment: Augment) -> None:
        self.split, self.channels, self.augment = split, channels, augment

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, at: tuple[int, int, int, int]) -> Any:
        seed, epoch, i, repeat = at
        try:
            image, target = self.split.image(i, self.channels), self.split.target(i)
        except DecodeError as error:
            return _Failure(str(error))
        key = None if epoch < 0 else Key(seed, epoch, i, repeat)
        return *self.augment(image, target, key), i, repeat


class _Collated:
    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Batch | _Failure:
        for sample in samples:
            if isinstance(sample, _Failure):
                return sample
        images, targets, index, repeat = zip(*samples, strict=True)
        if any(isinstance(image, np.ndarray) and image.dtype == np.uint16 for image in images):
            images = tuple(widened(image) for image in images)
        together = self.collate(list(zip(images, targets, strict=True)))
        return Batch(*together, np.array(index, np.int64), np.array(repeat, np.int64))


class _Order:
    """The batch sampler, set anew for each pass: the samples of a batch are named when it is due,
    as the names of all would take 130 bytes an image."""

    def __init__(self) -> None:
        self.plan: list[tuple[Array, Array]] = []
        """Indices and repeats of each batch."""
        self.seed = self.epoch = 0

    def __iter__(self) -> Iterator[list[tuple[int, int, int, int]]]:
        seed, epoch = self.seed, self.epoch
        for index, repeat in self.plan:
            pairs = zip(index.tolist(), repeat.tolist(), strict=True)
            yield [(seed, epoch, i, r) for i, r in pairs]

    def __len__(self) -> int:
        return len(self.plan)


@contextlib.contextmanager
def _as_many_as_asked() -> Iterator[None]:
    """PyTorch says nothing of more workers than cores, which are what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


_WORKERS: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()


def _end_workers() -> None:
    """Kill the workers that are left when the process exits. They leave signals to it, so that what
    Python sends them then would have it wait for ever, as after an error in a script."""
    if left := [process for process in _WORKERS if process.is_alive()]:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's would raise: they were killed
        for process in left:
            process.kill()


atexit.register(_end_workers)  # after multiprocessing's own, and so called before it


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for number in (signal.SIGINT, signal.SIGTERM):  # they are the main process's to answer
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def telling_of_a_killed_worker() -> Iterator[None]:
    """Raise InputError where PyTorch says that a decoding process was killed. It does so wherever
    the main process is, in the middle of a step too."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or _was_raised_there(error):
            raise
        raise _killed() from error


def _was_raised_there(error: Exception) -> bool:
    """Whether PyTorch hands on what went wrong in a process, which lives."""
    return str(error).startswith("Caught ")


def _killed() -> InputError:
    return InputError(
        "a process that decodes images was killed, as where memory runs out\n"
        "Take fewer --workers, or a smaller --batch-size."
    )


class DecodedFeed:
    """A split that is decoded and augmented image by image, by `workers` processes or by none."""

    def __init__(
        self,
        split: Split,
        channels: Channels,
        augment: Augment,
        collate: Collate,
        batch_size: int,
        seed: int,
        workers: int,
        persistent: bool = True,
        part: Part = WHOLE,
        repeats: int = 1,
        per_class: int = 0,
    ) -> None:
        self.n, self.batch_size, self.seed, self.part = len(split), batch_size, seed, part
        labels = split.labels if per_class else None
        self._shown = _shown(len(split), labels, batch_size, seed, part.size, repeats, per_class)
        self._order = _Order()
        self._order.seed = seed
        with _as_many_as_asked():
            self._loader = DataLoader(
                _Decoded(split, channels, augment),
                batch_sampler=self._order,
                collate_fn=_Collated(collate),
                num_workers=workers,
                persistent_workers=persistent and workers > 0,
                generator=torch.Generator(),  # its own: the global one is stochastic depth's
                worker_init_fn=_start_worker if workers else None,
            )

    def __len__(self) -> int:
        return self.n

    @property
    def steps(self) -> int:
        return len(batches(self.n, self.batch_size, self.part.size))

    def order(self, epoch: int) -> tuple[Array, Array]:
        return self._shown(epoch)

    def _pass(self, plan: Iterable[tuple[Array, Array]], epoch: int) -> Iterator[Batch]:
        self._order.plan, self._order.epoch = list(plan), epoch
        with telling_of_a_killed_worker():
            for batch in self._received():
                if isinstance(batch, _Failure):
                    raise InputError(
                        f"{batch.message}\n"
                        "Add --on-bad skip, with data.preflight on, to leave such files out."
                    )
                yield batch

    def _received(self) -> Iterator[Batch | _Failure]:
        try:
            before = {*multiprocessing.active_children()}
            with _as_many_as_asked():
                batches = iter(self._loader)
            _WORKERS.update({*multiprocessing.active_children()} - before)
            yield from batches
        except (ConnectionError, EOFError) as error:  # killed while it handed a batch over
            if _was_raised_there(error):
                raise
            raise _killed() from error

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order, repeat = self._shown(epoch)
        bounds = batches(self.n, self.batch_size, self.part.size)[start:]
        of = self.part.of
        return self._pass(((of(order[a:b]), of(repeat[a:b])) for a, b in bounds), epoch)

    def _once(self, order: Array) -> Iterator[Batch]:
        bounds = batches(len(order), self.batch_size)
        return self._pass(((order[a:b], np.zeros(b - a, np.int64)) for a, b in bounds), -1)

    def shuffled(self, epoch: int) -> Iterator[Batch]:
        return self._once(permutation(self.n, self.seed, epoch))

    def in_order(self) -> Iterator[Batch]:
        return self._once(self.part.of(np.arange(self.n)))


def decode_all(split: Split, preprocess: Preprocess, threads: int) -> tuple[Array, Scan]:
    """Frames [N, *size, C] of a split, and what else reading its images gave.

    uint16 where any image has 16 bits, else uint8. A failed image's frame is undefined.
    """
    shape = (len(split), *preprocess.size, preprocess.channels)
    frames: Array = np.zeros(shape, np.uint8)

    def framed(source: ImageLike, name: str) -> Array:
        return preprocess.frame(decode(source, preprocess.channels, name))[0]

    def keep(i: int, frame: Array) -> None:
        nonlocal frames
        if frame.dtype == np.uint16:
            frames = widened(frames)
        frames[i] = widened(frame) if frames.dtype == np.uint16 else frame

    scanned = scan(split, threads, framed, keep)
    return frames, scanned


def widened(frames: Array) -> Array:
    """uint8 levels as the uint16 levels of the same brightness; uint16 as it is."""
    return frames.astype(np.uint16) * 257 if frames.dtype == np.uint8 else frames


def pixel_mean(frames: Array) -> Array:
    """The per-pixel mean of frames [N, H, W, C]: float32 [C, H, W] of 0..1."""
    mean = frames.mean(axis=0, dtype=np.float64) / np.iinfo(frames.dtype).max
    return np.moveaxis(mean, -1, 0).astype(np.float32)
