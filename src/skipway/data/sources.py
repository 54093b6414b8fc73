"""Where labelled images come from: a folder or a zip of class folders, or the embedded digits.

A data set has named splits. Classes are those of the training images, in alphabetical order, and
are matched by name in the other splits.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol, overload

import numpy as np
import numpy.typing as npt

from skipway.data.keyed import permutation
from skipway.errors import InputError, harmless
from skipway.images import Channels, DecodeError, ImageLike, decode, header_size, verify

Array = npt.NDArray[Any]

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
LARGEST_VALIDATION = 5000


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


@dataclass(frozen=True)
class FolderReader:
    root: Path

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

    def read(self, name: str) -> bytes:
        pid = os.getpid()
        if pid not in self._handles:
            self._handles = {pid: zipfile.ZipFile(self.path)}
        try:
            return self._handles[pid].read(self.root + name)
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
            where = harmless(f"{self.path}: {self.root}{name}")
            raise DecodeError(f"{where}: cannot be read: {harmless(error)[:100]}") from None
        except Exception as error:  # zlib.error and the like on damaged members
            where = harmless(f"{self.path}: {self.root}{name}")
            raise DecodeError(f"{where}: damaged in the zip: {harmless(error)[:100]}") from None


@dataclass(frozen=True)
class ArrayReader:
    """Pixels in memory, uint8 [N, H, W, C], named by their position."""

    pixels: Array

    def read(self, name: str) -> Array:
        image: Array = self.pixels[int(PurePosixPath(name).stem)]
        return image


@dataclass(frozen=True)
class Split:
    """Labelled images: names, labels (int64, positions in the classes) and how to read them."""

    reader: Reader
    names: Sequence[str]
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int, channels: Channels) -> Array:
        """The pixels of image i as `images.decode` gives them. Raises DecodeError."""
        name = self.names[i]
        return decode(self.reader.read(name), channels, name)

    def take(self, positions: Array) -> Split:
        """Those images only, in that order."""
        names = Names(self.names[int(i)] for i in positions)
        return Split(self.reader, names, self.labels[positions])


@dataclass(frozen=True)
class Skipped:
    """An image that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class DataSet:
    """Classes, splits by name (train, val, test, or all), and what was decided on the way."""

    path: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def counts(self, split: str) -> dict[str, int]:
        """Images per class."""
        found = Counter(self.splits[split].labels.tolist())
        return {name: found[i] for i, name in enumerate(self.classes)}


def open_data(path: str, val: float | Literal["auto", "none"] = "auto", seed: int = 0) -> DataSet:
    """A data set for training, its validation split made where it has none.

    The rules: a split that exists is used as it is. With train and test only, 10 % of train (at
    most 5,000, stratified, by seed) becomes validation; a number for `val` sets the share. With
    no split, 80/10/10. ``none`` holds nothing out: validation is not split off, and an existing
    ``val`` serves for the last score only. Raises InputError.
    """
    if path == "digits":
        return _digits(val)
    reader, tree = _scan(path)
    notes: list[str] = []
    if "train" in tree:
        classes = _classes(path, tree["train"])
        splits = {name: _split(path, reader, name, found, classes) for name, found in tree.items()}
        if "val" in splits and isinstance(val, float):
            raise InputError(f"--val {val}: {harmless(path)} has a validation split of its own")
        for name, split in splits.items():
            absent = len(classes) - len(np.unique(split.labels))
            if absent:
                notes.append(f"{absent} of {len(classes)} classes have no image in {name}")
    elif "all" in tree:
        classes = _classes(path, tree["all"])
        whole = _split(path, reader, "all", tree["all"], classes)
        splits = {"train": whole}
        if val != "none":
            splits["train"], splits["test"] = hold_out(whole, 0.1, seed)
            notes.append(f"no split given: 10 % became test (stratified, seed {seed})")
    else:
        raise InputError(f"{harmless(path)}: has {', '.join(tree)} but no train folder")
    if "val" not in splits and val != "none":
        share = val if isinstance(val, float) else 0.1
        if isinstance(val, str) and "all" in tree:
            share = 1 / 9  # of what is left: a tenth of all
        if not 0 < share < 1:
            raise InputError(f"--val {val}: give a share between 0 and 1, or none")
        splits["train"], splits["val"] = hold_out(splits["train"], share, seed)
        n = len(splits["val"])
        notes.append(f"{n:,} of the training images became validation (stratified, seed {seed})")
    order = [name for name in ("train", "val", "test") if name in splits]
    return DataSet(path, classes, {name: splits[name] for name in order}, tuple(notes))


def open_split(
    path: str, split: str | None, classes: Sequence[str] | None, seed: int, val: float | str
) -> tuple[str, Split, tuple[str, ...]]:
    """One split for evaluation: its name, the images, and the class names that labels count.

    `split` None takes test, else val, else every image (``all``). Splits that are not folders
    are made as `open_data` makes them from `seed` and `val`. `classes` are the model's; None takes
    the data's own. Raises InputError for a class that the model does not know.
    """
    made: DataSet | None = None
    if path == "digits":
        made = _digits("auto")
        split = split or "test"
    else:
        reader, tree = _scan(path)
        name = split or next(n for n in ("test", "val", "all", "train") if n in tree)
        if name in tree:
            own = tuple(sorted({c for found in tree.values() for c in found}))
            return (
                name,
                _split(path, reader, name, tree[name], classes or own),
                tuple(classes or own),
            )
        if name in ("train", "val", "test") and ("all" in tree or "train" in tree):
            made = open_data(path, "auto" if isinstance(val, str) else val, seed)
        split = name
    if made is None or split not in made.splits:
        known = ", ".join(made.splits if made else tree)
        raise InputError(f"--split {harmless(split)}: {harmless(path)} has {known}")
    names = tuple(classes or made.classes)
    unknown = [c for c in made.classes if c not in names]
    if unknown:
        raise _unknown_classes(path, split, unknown, names)
    place = np.array([names.index(c) for c in made.classes])
    found = made.splits[split]
    return split, replace(found, labels=place[found.labels]), names


def hold_out(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Split off a stratified share, at most 5,000 images, at least one of each class that has two.

    The rest, then what was held out; both keep the order.
    """
    share = min(share, LARGEST_VALIDATION / len(split))
    chosen = np.zeros(len(split), bool)
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        n = min(max(round(share * len(members)), 1), len(members) - 1)
        chosen[members[permutation(len(members), seed, int(label))[:n]]] = True
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen))


def _digits(val: float | Literal["auto", "none"]) -> DataSet:
    """scikit-learn's 1,797 digits of 8x8 px in a fixed stratified split of 70/10/20."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)[..., None]
    names = Names(f"digits/{i:04}.png" for i in range(len(pixels)))
    whole = Split(ArrayReader(pixels), names, found.target.astype(np.int64))
    train, test = hold_out(whole, 0.2, 0)
    splits = {"train": train, "test": test}
    if val != "none":
        share = 0.125 if val == "auto" else val
        rest, held = hold_out(train, share, 0)
        splits = {"train": rest, "val": held, "test": test}
    classes = tuple(str(d) for d in range(10))
    return DataSet("digits", classes, splits, ("the fixed split of the embedded digits",))


def _scan(path: str) -> tuple[Reader, dict[str, dict[str, list[str]]]]:
    """A reader, and the names of images by split and class; one split ``all`` without splits."""
    place = Path(path)
    if place.is_dir():
        names = walk(place)
        reader: Reader = FolderReader(place)
    elif place.is_file() and zipfile.is_zipfile(place):
        names, reader = _open_zip(place)
    elif place.exists():
        raise InputError(f"{harmless(path)}: neither a folder nor a zip of class folders")
    else:
        raise InputError(f"{harmless(path)}: no such folder or file")
    if "train" not in {n.split("/", 1)[0] for n in names} and isinstance(reader, FolderReader):
        root = _common_root(names)
        if root and any(n.startswith(f"{root}/train/") for n in names):
            names = [n[len(root) + 1 :] for n in names]
            reader = FolderReader(place / root)
    tree: dict[str, dict[str, list[str]]] = {}
    tops = {n.split("/", 1)[0] for n in names if "/" in n}
    has_splits = bool(tops & SPLIT_NAMES.keys()) and tops <= SPLIT_NAMES.keys()
    has_splits = has_splits or "train" in tops
    for name in names:
        parts = name.split("/")
        if has_splits:
            if parts[0] in SPLIT_NAMES and len(parts) > 2:
                found = tree.setdefault(SPLIT_NAMES[parts[0]], {})
                found.setdefault(parts[1], []).append(name)
        elif len(parts) > 1:
            tree.setdefault("all", {}).setdefault(parts[0], []).append(name)
    if not tree:
        raise InputError(
            f"{harmless(path)}: no images in class folders\n"
            "Expected DATA/CLASS/image.jpg, or DATA/train/CLASS/image.jpg and val/ or test/ beside"
        )
    return reader, tree


def walk(root: Path) -> list[str]:
    names = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        inner = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if inner == "." else inner + "/"
        names += [prefix + f for f in files if _is_image(f)]
    return sorted(names)


def _open_zip(path: Path) -> tuple[list[str], ZipReader]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{harmless(path)}: damaged zip: {harmless(error)}") from None
    names = sorted(m for m in members if not m.startswith("__MACOSX/") and _is_image(m))
    root = _common_root(names)
    if root in SPLIT_NAMES or any(n.count("/") < 2 for n in names):
        root = ""
    prefix = f"{root}/" if root else ""
    return [n[len(prefix) :] for n in names], ZipReader(path, prefix)


def _common_root(names: Sequence[str]) -> str:
    tops = {n.split("/", 1)[0] if "/" in n else "" for n in names}
    return tops.pop() if len(tops) == 1 else ""


def _is_image(name: str) -> bool:
    base = PurePosixPath(name)
    return base.suffix.lower() in SUFFIXES and not base.name.startswith(".")


def _classes(path: str, found: dict[str, list[str]]) -> tuple[str, ...]:
    if len(found) < 2:
        raise InputError(
            f"{harmless(path)}: one class only ({harmless(next(iter(found)))!r}); "
            "a classifier needs two or more class folders"
        )
    return tuple(sorted(found))


def _split(
    path: str, reader: Reader, name: str, found: dict[str, list[str]], classes: Sequence[str]
) -> Split:
    place = {c: i for i, c in enumerate(classes)}
    unknown = [c for c in found if c not in place]
    if unknown:
        raise _unknown_classes(path, name, unknown, classes)
    pairs = [(n, place[c]) for c in sorted(found) for n in found[c]]
    labels = np.array([label for _, label in pairs], np.int64)
    return Split(reader, Names(n for n, _ in pairs), labels)


def _unknown_classes(
    path: str, split: str, unknown: Sequence[str], classes: Sequence[str]
) -> InputError:
    shown = ", ".join(repr(harmless(c)) for c in unknown[:3]) + (", …" if len(unknown) > 3 else "")
    known = ", ".join(repr(harmless(c)) for c in classes[:5]) + (", …" if len(classes) > 5 else "")
    return InputError(
        f"{harmless(path)}: {split} has classes that training does not know: {shown}\n"
        f"Known: {known}. Rename the folders, or leave them out."
    )


def image_sizes(split: Split, at_most: int = 200) -> Array:
    """(height, width) of up to `at_most` images spread over the split: int64 [n, 2], n > 0.

    Only headers are read; unreadable images are passed over (`find_damaged` names them). Raises
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


def find_damaged(split: Split, threads: int) -> list[tuple[int, str]]:
    """Position and reason of every image that cannot be decoded."""

    def reason(i: int) -> str | None:
        try:
            verify(split.reader.read(split.names[i]), split.names[i])
        except DecodeError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(threads) as pool:
        reasons = pool.map(reason, range(len(split)), chunksize=64)
        return [(i, r) for i, r in enumerate(reasons) if r is not None]
