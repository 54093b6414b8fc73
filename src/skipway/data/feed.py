"""Batches for the loop: from memory, or decoded by workers. Both give the same images by key."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from skipway.data.keyed import Key, permutation
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

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> Batch:
        """The batch on that device, lists and dictionaries element by element."""
        return Batch(_moved(self.images, device), _moved(self.targets, device), self.index)


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
        """Images."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterable[Batch]:
        """The batches of a training epoch from batch `start` on, in the order of its key."""
        ...

    def shuffled(self, epoch: int) -> Iterable[Batch]:
        """Every image once, as it is, in the order of that epoch's key."""
        ...

    def in_order(self) -> Iterable[Batch]:
        """Every image once, as it is, in the order of the split."""
        ...


def batches(n: int, size: int) -> list[tuple[int, int]]:
    """Bounds of the batches of n images; a last batch of one joins the one before.

    Batch norm has no statistics of a single value.
    """
    ends = [*range(size, n, size), n]
    if len(ends) > 1 and n - ends[-2] == 1 and size > 1:
        del ends[-2]
    return list(zip([0, *ends[:-1]], ends, strict=True))


Augment = Callable[[Array, Any, Key | None], tuple[Any, Any]]
Collate = Callable[[list[tuple[Any, Any]]], tuple[Any, Any]]


class ResidentFeed:
    """A split that was decoded once and lives in memory.

    frames: uint8 or uint16 [N, H, W, C]; labels: int64 [N].
    """

    def __init__(self, frames: Array, labels: Array, batch_size: int, seed: int) -> None:
        self.frames = torch.from_numpy(frames)
        self.labels = torch.from_numpy(labels)
        self.batch_size, self.seed = batch_size, seed

    def __len__(self) -> int:
        return len(self.labels)

    def _batch(self, index: Array) -> Batch:
        rows = torch.from_numpy(index)
        images = self.frames[rows].permute(0, 3, 1, 2)
        return Batch(images, self.labels[rows], index)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = permutation(len(self), self.seed, epoch)
        for low, high in batches(len(self), self.batch_size)[start:]:
            yield self._batch(order[low:high])

    def shuffled(self, epoch: int) -> Iterator[Batch]:
        return self.epoch(epoch)

    def in_order(self) -> Iterator[Batch]:
        for low, high in batches(len(self), self.batch_size):
            yield self._batch(np.arange(low, high))


@dataclass(frozen=True)
class _Failure:
    message: str


class _Decoded(Dataset[Any]):
    """Samples by (seed, epoch, index); epoch -1 asks for the image as it is."""

    def __init__(self, split: Split, channels: Channels, augment: Augment) -> None:
        self.split, self.channels, self.augment = split, channels, augment

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, at: tuple[int, int, int]) -> Any:
        seed, epoch, i = at
        try:
            image = self.split.image(i, self.channels)
        except DecodeError as error:
            return _Failure(str(error))
        key = None if epoch < 0 else Key(seed, epoch, i)
        return *self.augment(image, self.split.target(i), key), i


class _Collated:
    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Batch | _Failure:
        for sample in samples:
            if isinstance(sample, _Failure):
                return sample
        images, targets, index = zip(*samples, strict=True)
        if any(isinstance(image, np.ndarray) and image.dtype == np.uint16 for image in images):
            images = tuple(widened(image) for image in images)
        together = self.collate(list(zip(images, targets, strict=True)))
        return Batch(*together, np.array(index, np.int64))


class _Order:
    """The batch sampler, set anew for each pass."""

    def __init__(self) -> None:
        self.plan: list[list[tuple[int, int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        return iter(self.plan)

    def __len__(self) -> int:
        return len(self.plan)


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for number in (signal.SIGINT, signal.SIGTERM):  # they are the main process's to answer
        signal.signal(number, signal.SIG_IGN)


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
    ) -> None:
        self.n, self.batch_size, self.seed = len(split), batch_size, seed
        self._order = _Order()
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

    def _pass(self, order: Array, epoch: int, start: int) -> Iterator[Batch]:
        bounds = batches(self.n, self.batch_size)[start:]
        self._order.plan = [
            [(self.seed, epoch, int(i)) for i in order[low:high]] for low, high in bounds
        ]
        for batch in self._loader:
            if isinstance(batch, _Failure):
                raise InputError(
                    f"{batch.message}\n"
                    "Add --on-bad skip, with data.preflight on, to leave such files out."
                )
            yield batch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return self._pass(permutation(self.n, self.seed, epoch), epoch, start)

    def shuffled(self, epoch: int) -> Iterator[Batch]:
        return self._pass(permutation(self.n, self.seed, epoch), -1, 0)

    def in_order(self) -> Iterator[Batch]:
        return self._pass(np.arange(self.n), -1, 0)


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
