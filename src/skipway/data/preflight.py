"""What labels, and reading each image once, tell of a data set before it is trained on. No torch.

The same file in two places is found by a hash of its bytes, or of the pixels where the data is
arrays: 16 bytes an image, so that a million images take 16 MB.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from skipway.data.split import DataSet, Split
from skipway.errors import harmless
from skipway.images import SMALL_IMAGE, DecodeError, ImageLike

Array = npt.NDArray[Any]
T = TypeVar("T")

TRIED, QUICK = 32, 1e-3
"""Images that are read first, to see how long one takes, and the seconds of a quick one."""
WINDOW = 4096
"""Images that wait for the reading threads at a time, so that few futures do."""
DIGEST = 16
"""Bytes of a digest: by chance, two of a million images share one with probability 1e-27."""
UNEVEN = 10
"""Largest over smallest class from which on classes are told to be uneven."""


@dataclass(frozen=True)
class Scan:
    """What reading each image of a split once gave."""

    digests: Array
    """uint8 [N, 16], see `content_digest`; undefined for what could not be read."""
    failed: list[tuple[int, str]]
    """Position and reason of every image that cannot be decoded."""


def content_digest(source: ImageLike) -> bytes:
    """16 bytes of BLAKE2b of what a reader gives: encoded bytes, or pixels with shape and type."""
    if isinstance(source, bytes):
        return hashlib.blake2b(source, digest_size=DIGEST).digest()
    pixels = np.asarray(source)
    digest = hashlib.blake2b(f"{pixels.dtype.str} {pixels.shape} ".encode(), digest_size=DIGEST)
    digest.update(pixels.tobytes())
    return digest.digest()


def scan(
    split: Split,
    threads: int,
    examine: Callable[[ImageLike, str], T],
    keep: Callable[[int, T], None] | None = None,
) -> Scan:
    """Read every image once, hash it and examine it.

    `examine` gets what the reader gives and the name, in one of the threads; an image fails where
    it raises DecodeError. `keep` gets position and result of the others, in order, in this thread.
    Images that take less than `QUICK` are read by this thread alone: several would mostly wait for
    one another.
    """

    def one(i: int) -> tuple[bytes, T] | str:
        name = split.names[i]
        try:
            source = split.reader.read(name)
            return content_digest(source), examine(source, name)
        except DecodeError as error:
            return str(error)

    found = Scan(np.zeros((len(split), DIGEST), np.uint8), [])

    def take(i: int, result: tuple[bytes, T] | str) -> None:
        if isinstance(result, str):
            found.failed.append((i, result))
            return
        found.digests[i] = np.frombuffer(result[0], np.uint8)
        if keep is not None:
            keep(i, result[1])

    begun, tried = time.perf_counter(), min(TRIED, len(split))
    for i in range(tried):
        take(i, one(i))
    if threads == 1 or time.perf_counter() - begun < QUICK * tried:
        for i in range(tried, len(split)):
            take(i, one(i))
        return found
    with ThreadPoolExecutor(threads) as pool:
        for low in range(tried, len(split), WINDOW):
            window = range(low, min(low + WINDOW, len(split)))
            for i, result in zip(window, pool.map(one, window), strict=True):
                take(i, result)
    return found


def readable_counts(data: DataSet, scans: Mapping[str, Scan]) -> dict[str, Array]:
    """Images, or objects, of each class by split, without images that failed: int64 [classes]."""
    counts = {}
    for name, split in data.splits.items():
        failed = [i for i, _ in scans[name].failed] if name in scans else []
        if failed:
            split = split.take(np.setdiff1d(np.arange(len(split)), failed))
        counts[name] = split.per_class(len(data.classes))
    return counts


def default_size(short: int) -> int:
    """Input size in pixels for images whose short side is `short`: theirs where they are small,
    else a multiple of 32, 224 at most."""
    return max(short, 16) if short <= SMALL_IMAGE else min(max(short // 32 * 32, 64), 224)


@dataclass(frozen=True)
class Leak:
    """Images of one split that are in an earlier one too."""

    first: str
    second: str
    pairs: Array
    """int64 [n, 2]: position in `first` and in `second`, one row for each image of `second`."""


@dataclass(frozen=True)
class Copies:
    """Images that are there more than once, those of equal content side by side.

    Four int64 arrays [M]. Groups are numbered from 0 in the order of their first image.
    """

    data: DataSet
    split: Array
    """Which of the data's splits, by number."""
    position: Array
    """Position in that split."""
    label: Array
    group: Array

    def __len__(self) -> int:
        """Images."""
        return len(self.group)

    @property
    def groups(self) -> int:
        return int(self.group[-1]) + 1 if len(self) else 0

    def leaks(self) -> list[Leak]:
        """Images that are in two splits, by pair of splits."""
        found, names = [], list(self.data.splits)
        for b, second in enumerate(names):
            for a, first in enumerate(names[:b]):
                earlier, later = np.flatnonzero(self.split == a), np.flatnonzero(self.split == b)
                groups, at = np.unique(self.group[earlier], return_index=True)
                later = later[np.isin(self.group[later], groups)]
                later = later[np.argsort(self.position[later])]
                partner = earlier[at[np.searchsorted(groups, self.group[later])]]
                if len(later):
                    pairs = np.stack([self.position[partner], self.position[later]], axis=1)
                    found.append(Leak(first, second, pairs))
        return found

    def conflicts(self) -> Copies:
        """Only the groups whose images have different labels."""
        starts = np.flatnonzero(np.diff(self.group, prepend=-1))
        if not len(starts):
            return self
        lowest, highest = (f.reduceat(self.label, starts) for f in (np.minimum, np.maximum))
        chosen = np.flatnonzero((lowest != highest)[self.group])
        return self._taken(chosen, self.group[chosen])

    def repeats(self) -> Copies:
        """Groups of images that are equal in content, split and label."""
        return self._taken(*_alike(self.group, self.split, self.label))

    def members(self) -> Iterator[list[tuple[str, int]]]:
        """Split and position of the images of each group."""
        names = list(self.data.splits)
        bounds = np.searchsorted(self.group, np.arange(self.groups + 1))
        for low, high in itertools.pairwise(bounds):
            yield [(names[self.split[m]], int(self.position[m])) for m in range(low, high)]

    def _taken(self, chosen: Array, group: Array) -> Copies:
        """Those images, in groups that are numbered anew."""
        numbers = np.unique(group, return_inverse=True)[1]
        return Copies(
            self.data, self.split[chosen], self.position[chosen], self.label[chosen], numbers
        )


def find_copies(data: DataSet, scans: Mapping[str, Scan]) -> Copies:
    """The images that are there more than once, whatever their split; failed ones are left out."""
    parts = []
    for number, (name, images) in enumerate(data.splits.items()):
        there = np.setdiff1d(np.arange(len(images)), [i for i, _ in scans[name].failed])
        halves = scans[name].digests.view(np.uint64)[there]
        columns = (np.full(len(there), number), there, images.labels[there])
        parts.append((*columns, halves[:, 0], halves[:, 1]))
    split, position, label, high, low = map(np.concatenate, zip(*parts, strict=True))
    order, group = _alike(high, low)
    return Copies(data, split[order], position[order], label[order], group)


def _alike(*columns: Array) -> tuple[Array, Array]:
    """The rows that are there more than once, equal ones side by side, and their group.

    Groups are in the order of their first row, rows in order within a group.
    """
    order = np.lexsort(columns)  # stable
    differs = np.zeros(len(order), bool)
    for column in columns:
        differs[1:] |= np.diff(column[order]) != 0
    group = np.cumsum(differs)
    often = np.bincount(group)[group] > 1 if len(order) else differs
    order, group = order[often], group[often]
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(order[first])] = np.arange(len(first))
    group = rank[group]
    sorted_by_group = np.argsort(group, kind="stable")
    return order[sorted_by_group], group[sorted_by_group]


def balance(classes: tuple[str, ...], counts: Array, things: str = "images") -> str:
    """How many training images, or objects, the classes have, in one line, classes without any
    left out."""
    there = np.flatnonzero(counts)
    few, many = there[np.argmin(counts[there])], there[np.argmax(counts[there])]
    if counts[few] == counts[many]:
        return f"{counts[few]:,} training {things} of each class"
    text = (
        f"from {counts[few]:,} ({harmless(classes[few])}) to "
        f"{counts[many]:,} ({harmless(classes[many])}) training {things} of a class"
    )
    ratio = counts[many] / counts[few]
    return f"warning: uneven classes, {ratio:.0f} to 1: {text}" if ratio >= UNEVEN else text


def remarks(data: DataSet, scans: Mapping[str, Scan]) -> tuple[str, ...]:
    """What `train` says of its data before it begins, one line each.

    Counts come from labels; what is there twice, from the scans of all splits, where there are any.
    """
    things = data.splits["train"].counted
    lines = [balance(data.classes, readable_counts(data, scans)["train"], things)]
    if scans.keys() != data.splits.keys():
        return tuple(lines)
    found = find_copies(data, scans)
    for leak in found.leaks():
        first, second = data.splits[leak.first], data.splits[leak.second]
        pairs = [
            f"{harmless(first.names[int(a)])} = {harmless(second.names[int(b)])}"
            for a, b in leak.pairs[:2]
        ]
        lines.append(
            f"warning: {len(leak.pairs):,} of {len(second):,} {leak.second} images are in "
            f"{leak.first} too, so scores on {leak.second} will be too good: {', '.join(pairs)}"
            + ("; skipway check-data lists all" if len(leak.pairs) > len(pairs) else "")
        )
    conflicts = found.conflicts()
    if len(conflicts):
        (one, i), *others = next(conflicts.members())
        label = data.splits[one].labels[i]
        two, j = next((s, p) for s, p in others if data.splits[s].labels[p] != label)
        shown = (
            f"{harmless(data.splits[s].names[p])} "
            f"({harmless(data.classes[data.splits[s].labels[p]])})"
            for s, p in ((one, i), (two, j))
        )
        n = conflicts.groups
        images = "1 image is" if n == 1 else f"{n:,} images are"
        lines.append(f"warning: {images} there with different labels: {' = '.join(shown)}")
    return tuple(lines)
