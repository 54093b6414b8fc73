"""Labelled images: their names and labels, how they are read, and what makes a data set of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt

from skipway.data.keyed import permutation
from skipway.errors import InputError, harmless
from skipway.images import Channels, DecodeError, ImageLike, decode, header_size

Array = npt.NDArray[Any]
S = TypeVar("S", bound="Split")
Val = float | Literal["auto", "none"]
"""The share of train that is held out for validation where there is none."""

LARGEST_VALIDATION = 5000
"""Images that become validation at most where no share is given."""
_LARGEST = 1 << 30
"""Bytes of a member of a zip from above which it is not unpacked: no image is so large."""


class Names(Sequence[str]):
    """Many strings in two arrays, so that processes share them without copying."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        part = self._bytes[self._ends[i] : self._ends[i + 1]]
        return part.tobytes().decode("utf-8", "surrogateescape")


class Reader(Protocol):
    """Gives the encoded bytes, or the pixels, of a name."""

    def read(self, name: str) -> ImageLike: ...

    def stamp(self, names: Iterable[str]) -> bytes:
        """32 bytes that are others once what is read of those names may be another: a digest of
        the pixels in memory, or of size and times of the files, which are not read."""
        ...


def stamp_of(files: Iterable[str | os.PathLike[str]]) -> bytes:
    """The stamp of what lies in those files; one that is not there counts as such."""
    digest = hashlib.blake2b(digest_size=32)
    for file in files:
        found: tuple[int, ...] = ()
        with contextlib.suppress(OSError):
            status = os.stat(file)  # a copy may keep the time of writing, but not of the change
            found = status.st_size, status.st_mtime_ns, status.st_ctime_ns
        digest.update(repr(found).encode())
    return digest.digest()


@dataclass(frozen=True)
class FolderReader:
    root: Path

    def stamp(self, names: Iterable[str]) -> bytes:
        root = os.fspath(self.root)
        return stamp_of(os.path.join(root, name) for name in names)

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise DecodeError(f"{harmless(self.root / name)}: {error.strerror}") from None


class ZipReader:
    """Members of a zip read in place; each process opens its own handle."""

    def __init__(self, path: Path, root: str) -> None:
        self.path, self.root = path, root
        self._handles: dict[int, zipfile.ZipFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "root": self.root, "_handles": {}}

    def stamp(self, names: Iterable[str]) -> bytes:
        return stamp_of([self.path])

    def read(self, name: str) -> bytes:
        pid = os.getpid()
        try:
            if pid not in self._handles:
                self._handles = {pid: zipfile.ZipFile(self.path)}
            member = self._handles[pid].getinfo(self.root + name)
            if member.file_size <= _LARGEST:  # no more than that is unpacked
                return self._handles[pid].read(member)
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
            where = harmless(f"{self.path}: {self.root}{name}")
            raise DecodeError(f"{where}: cannot be read: {harmless(error)[:100]}") from None
        except Exception as error:  # zlib.error and the like on damaged members
            where = harmless(f"{self.path}: {self.root}{name}")
            raise DecodeError(f"{where}: damaged in the zip: {harmless(error)[:100]}") from None
        where = harmless(f"{self.path}: {self.root}{name}")
        raise DecodeError(f"{where}: {member.file_size:,} bytes unpacked, too many for an image")


@dataclass(frozen=True)
class ArrayReader:
    """Pixels in memory, uint8 [N, H, W, C], named by their position."""

    pixels: Array

    def stamp(self, names: Iterable[str]) -> bytes:
        return hashlib.blake2b(np.ascontiguousarray(self.pixels).data, digest_size=32).digest()

    def read(self, name: str) -> Array:
        image: Array = self.pixels[int(PurePosixPath(name).stem)]
        return image


@dataclass(frozen=True)
class Split:
    """Labelled images: names, labels (int64, positions in the classes) and how to read them."""

    reader: Reader
    names: Sequence[str]
    labels: Array
    notes: tuple[str, ...] = ()
    """What was decided on the way, where the split stands alone."""
    drawn: bool = False
    """Held out of images for training: other images would be, had the data others."""

    def __len__(self) -> int:
        return len(self.labels)

    def target(self, i: int) -> Any:
        """What image i is to be learned as."""
        return int(self.labels[i])

    counted: ClassVar[str] = "images"
    """What has a class."""

    def per_class(self, classes: int) -> Array:
        """How often each class is there: int64 [classes]."""
        return np.bincount(self.labels, minlength=classes)

    def content(self) -> bytes:
        """What changes once an image is to be learned as something else."""
        return self.labels.tobytes()

    def image(self, i: int, channels: Channels) -> Array:
        """The pixels of image i as `images.decode` gives them. Raises DecodeError."""
        name = self.names[i]
        return decode(self.reader.read(name), channels, name)

    def stamp(self) -> bytes:
        """32 bytes that are others once what is read of an image may be another."""
        return self.reader.stamp(self.names)

    def places(self) -> set[str]:
        """Of each image, what tells it from those of the other splits of its data set."""
        root = self.reader.root if isinstance(self.reader, FolderReader) else ""
        return {os.path.join(root, name) for name in self.names}

    def take(self, positions: Array) -> Self:
        """Those images only, in that order."""
        names = Names(self.names[int(i)] for i in positions)
        return replace(self, names=names, labels=self.labels[positions])


@dataclass(frozen=True)
class Skipped:
    """An image that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What a form of data holds, before anything is held out of it."""

    splits: dict[str, Split]
    """train, val and test as far as they are there, or only ``all``; labels count `classes`."""
    classes: tuple[str, ...]
    """Of every split, in the order in which a network shall have them."""
    declared: bool = False
    """The form lists its classes, and all of them are learned; else those of training are."""
    empty: tuple[str, ...] = ()
    """Class folders of training images that hold none."""
    strange: str = ""
    """What the notes say of files in class folders that are no images by their names."""
    notes: tuple[str, ...] = ()
    channels: Channels = 3
    """As in `DataSet`, and `mirror` too."""
    mirror: bool = True
    rows: Mapping[str, tuple[str, Array]] = field(default_factory=dict)
    """Of a table, by split: what its rows are called, and that of each image, int64 [N]."""


@dataclass(frozen=True)
class DataSet:
    """Classes, splits by name (train, val, test, or all), and what was decided on the way."""

    path: str
    classes: tuple[str, ...]
    """In the order that labels count."""
    splits: dict[str, Split]
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    channels: Channels = 3
    """What a network takes where nothing else is asked: 1 where the form says that all is grey."""
    mirror: bool = True
    """Whether a mirrored image keeps its label, as far as is known of the form."""
    unseen: int = 0
    """How many of the classes, the last, are of no training image: nothing is learned of them."""
    whole: Split | None = None
    """The training split, where ``train`` is a part of it (`taken`)."""

    @property
    def learned(self) -> tuple[str, ...]:
        """The classes that a network learns."""
        return self.classes[: len(self.classes) - self.unseen]

    def counts(self, split: str) -> dict[str, int]:
        """Images, or objects, per class."""
        found = self.splits[split].per_class(len(self.classes))
        return dict(zip(self.classes, found.tolist(), strict=True))

    def learned_from(self, images: Split) -> int:
        """How many images of a split of this data are among those for training."""
        return len(self.splits["train"].places() & images.places())

    def digest(self) -> str:
        """sha256 of which images are in which split, to be learned as what; taken or not."""
        digest = hashlib.sha256(repr(self.classes).encode())
        whole = {"train": self.whole} if self.whole is not None else {}
        for name, split in (self.splits | whole).items():
            digest.update(f"{name} {len(split)} ".encode())
            digest.update(split.content())
            for image in split.names:
                digest.update(image.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()


@dataclass(frozen=True)
class Undivided(Generic[S]):
    """What data holds before anything is held out of it, for a model that is scored on it."""

    path: str
    splits: Mapping[str, S]
    """Train, val and test as far as they are there, or only ``all``; what must be known of one
    alone is in its notes."""
    notes: tuple[str, ...]
    divide: Callable[[], DataSet]
    """The data set that a training would make of it. Raises InputError, see `divided`."""

    def trained(self, digest: str) -> DataSet | None:
        """The data set of that digest, which a training made of this; None where this is other
        data."""
        with contextlib.suppress(InputError):  # not a set to train on: then other data
            made = self.divide()
            if made.digest() == digest:
                return made
        return None

    def held_out(self, digest: str) -> tuple[str, ...] | None:
        """What that training held out, test before val; None where this is other data."""
        made = self.trained(digest)
        return None if made is None else tuple(n for n in ("test", "val") if n in made.splits)

    def take(self, name: str | None = None) -> tuple[str, Split, tuple[str, ...]]:
        """One split, by the rules of `open_split`: its name, the images, and what was decided.

        name: None takes test, else val, else every image (``all``), else train; splits that are
        not there are made as a training would. Raises InputError.
        """
        name = name or next(n for n in ("test", "val", "all", "train") if n in self.splits)
        known = [*self.splits]
        if name in self.splits:
            split = self.splits[name]
            return name, split, (*self.notes, *split.notes)
        if "all" in self.splits or (name == "val" and "train" in self.splits):
            made = self.divide()
            if name in made.splits:
                return name, made.splits[name], made.notes
            known += [other for other in made.splits if other not in known]
        raise InputError(f"--split {harmless(name)}: {harmless(self.path)} has {', '.join(known)}")


def check_val(val: Val) -> None:
    """Raise InputError for a share that is none."""
    if not isinstance(val, str) and not 0 < val < 1:
        raise InputError(f"--val {val}: give a share between 0 and 1, or none")


def divided(
    path: str,
    splits: Mapping[str, S],
    val: Val,
    seed: int,
    hold: Callable[[S, float, int | None], tuple[S, S]],
    how: str = "stratified",
) -> tuple[dict[str, S], list[str]]:
    """Train, val and test in that order, what is not there held out of the images for training.

    splits: those that are there, or only ``all``, of which a tenth becomes test and a tenth val.
    Without val 10 % of train, at most `LARGEST_VALIDATION` images, become val; a number sets the
    share, ``none`` holds nothing out. hold: `hold_out` of a split by share and largest number, and
    `how` in words. With the splits come notes on what was held out. Raises InputError for a share
    where there is a val.
    """
    if "train" in splits and "val" in splits and not isinstance(val, str):
        raise InputError(f"--val {val}: {harmless(path)} has a validation split of its own")
    found, notes = dict(splits), []
    how = f"({how}, seed {seed})"
    share, at_most = (0.1, LARGEST_VALIDATION) if isinstance(val, str) else (val, None)
    if "all" in found:
        found["train"] = found.pop("all")
        if val != "none":
            share, at_most = (1 / 9 if isinstance(val, str) else val), None  # of what is left
            found["train"], test = hold(found["train"], 0.1, None)
            found["test"] = replace(test, drawn=True)
            notes.append(f"no split given: {len(found['test']):,} images became test {how}")
    if "train" in found and "val" not in found and val != "none":
        found["train"], held = hold(found["train"], share, at_most)
        found["val"], n = replace(held, drawn=True), len(held)
        notes.append(f"{n:,} of the training images became validation {how}")
    return {name: found[name] for name in ("train", "val", "test") if name in found}, notes


def hold_out(
    split: S, share: float, seed: int, at_most: int | None = None, strata: Array | None = None
) -> tuple[S, S]:
    """Split off a stratified share: at least one image of each class that has two, and otherwise
    no more than `at_most`. The image of a class that has no other stays.

    strata: int64 [N], what each image counts as; None is its label. The rest, then what was held
    out; both keep the order.
    """
    at_most = len(split) if at_most is None else at_most
    share = min(share, at_most / len(split))
    strata = split.labels if strata is None else strata
    labels, sizes = np.unique(strata, return_counts=True)
    counts = np.minimum(np.maximum(np.rint(share * sizes).astype(np.int64), 1), sizes - 1)
    while (over := int(counts.sum()) - at_most) > 0 and counts.max() > 1:
        largest = np.argsort(-counts, kind="stable")[:over]  # rounding up had made it too many
        counts[largest] = np.maximum(counts[largest] - 1, np.minimum(counts[largest], 1))
    chosen = np.zeros(len(split), bool)
    by_class = np.split(np.argsort(strata, kind="stable"), np.cumsum(sizes)[:-1])
    for label, members, n in zip(labels, by_class, counts, strict=True):
        chosen[members[permutation(len(members), seed, int(label))[:n]]] = True
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen))


def taken(data: DataSet, images: int, seed: int) -> DataSet:
    """The data set with about so many of its training images, of each class its share and one at
    least. Raises InputError where it has no more than that."""
    train = data.splits["train"]
    if images >= len(train):
        raise InputError(
            f"data.take = {images}: {harmless(data.path)} has {len(train):,} training images, "
            "and no more to take them from"
        )
    few, _ = hold_out(train, 1 - images / len(train), seed)
    note = f"learned from {len(few):,} of {len(train):,} training images (data.take)"
    return replace(
        data, splits={**data.splits, "train": few}, notes=(*data.notes, note), whole=train
    )


def rarest(images: Array, labels: Array, n: int, classes: int) -> Array:
    """Strata for n images that hold things of several classes: each counts as of the class of its
    that the fewest images have, one with nothing in it as of a class of its own.

    images, labels: int64 [m], of each thing, those of an image in any number. int64 [n]: 0 is the
    rarest class, and `classes` that of images with nothing.
    """
    owner, label = np.divmod(np.unique(images * (classes + 1) + labels), classes + 1)
    rank = np.empty(classes, np.int64)
    rank[np.argsort(np.bincount(label, minlength=classes), kind="stable")] = np.arange(classes)
    strata = np.full(n, classes)
    np.minimum.at(strata, owner, rank[label])
    return strata


def image_sizes(split: Split, at_most: int = 200) -> Array:
    """(height, width) of up to `at_most` images spread over the split: int64 [n, 2], n > 0.

    Only headers are read; unreadable images are passed over (`preflight.scan` names them). Raises
    DecodeError where none can be read.
    """
    sizes = []
    for i in np.unique(np.linspace(0, len(split) - 1, at_most).astype(int)):
        name = split.names[int(i)]
        with contextlib.suppress(DecodeError):
            sizes.append(header_size(split.reader.read(name), name))
    if not sizes:
        split.image(0, 3)
    return np.array(sizes, np.int64).reshape(-1, 2)
