"""Where labelled images come from: a folder or a zip of class folders, or the embedded digits.

A data set has named splits. Classes are those of the training images, in alphabetical order, and
are matched by name in the other splits.
"""

from __future__ import annotations

import contextlib
import hashlib
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
from skipway.errors import InputError, harmless, missing_part
from skipway.images import Channels, DecodeError, ImageLike, decode, header_size, verify

Array = npt.NDArray[Any]

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
SPLIT_NAMES = {  # in any case
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
LARGEST_VALIDATION = 5000
WINDOW = 4096
"""Images that wait for the decoding threads at a time."""


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
        try:
            if pid not in self._handles:
                self._handles = {pid: zipfile.ZipFile(self.path)}
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

    def target(self, i: int) -> int:
        """What image i is to be learned as."""
        return int(self.labels[i])

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

    def digest(self) -> str:
        """sha256 of which images are in which split, with which label."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for name, split in self.splits.items():
            digest.update(f"{name} {len(split)} ".encode())
            digest.update(split.labels.tobytes())
            for image in split.names:
                digest.update(image.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()


def open_data(path: str, val: float | Literal["auto", "none"] = "auto", seed: int = 0) -> DataSet:
    """A data set for training, its validation split made where it has none.

    The rules: a split that exists is used as it is. With train and test only, 10 % of train (at
    most 5,000, stratified, by seed) becomes validation; a number for `val` sets the share. With
    no split, 80/10/10. ``none`` holds nothing out: validation is not split off, and an existing
    ``val`` serves for the last score only. Raises InputError.
    """
    if not isinstance(val, str) and not 0 < val < 1:
        raise InputError(f"--val {val}: give a share between 0 and 1, or none")
    if path == "digits":
        return _digits(val)
    found = _scan(path)
    reader, tree = found.reader, found.tree
    if found.empty:
        shown = ", ".join(repr(harmless(c)) for c in found.empty[:3])
        more = ", …" if len(found.empty) > 3 else ""
        raise InputError(
            f"{harmless(path)}: class folders without a training image: {shown}{more}\n"
            "Put images into them, or remove them."
        )
    notes: list[str] = []
    if found.loose:
        notes.append(f"{found.loose:,} images outside class folders are left out")
    if "train" in tree:
        classes = _classes(path, tree["train"])
        splits = {name: _split(path, reader, name, part, classes) for name, part in tree.items()}
        if "val" in splits and not isinstance(val, str):
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
            n = len(splits["test"])
            notes.append(f"no split given: {n:,} images became test (stratified, seed {seed})")
    else:
        raise InputError(f"{harmless(path)}: has {', '.join(tree)} but no train folder")
    if "val" not in splits and val != "none":
        share, at_most = val, None
        if isinstance(share, str) and "all" in tree:
            share = 1 / 9  # of what is left: a tenth of all
        elif isinstance(share, str):
            share, at_most = 0.1, LARGEST_VALIDATION
        splits["train"], splits["val"] = hold_out(splits["train"], share, seed, at_most)
        n = len(splits["val"])
        if not n:
            raise InputError(
                f"{harmless(path)}: too few images of each class to hold any out\n"
                "Add images, or train on all of them with --val none."
            )
        notes.append(f"{n:,} of the training images became validation (stratified, seed {seed})")
    order = [name for name in ("train", "val", "test") if name in splits]
    return DataSet(path, classes, {name: splits[name] for name in order}, tuple(notes))


def open_split(
    path: str,
    split: str | None,
    classes: Sequence[str] | None,
    seed: int,
    val: float | Literal["auto", "none"],
) -> tuple[str, Split, tuple[str, ...]]:
    """One split for evaluation: its name, the images, and the class names that labels count.

    `split` None takes test, else val, else every image (``all``). Splits that are not folders
    are made as `open_data` makes them from `seed` and `val`. `classes` are the model's; None takes
    the data's own. Raises InputError for a class that the model does not know.
    """
    made: DataSet | None = None
    known: list[str] = []
    if path == "digits":
        made = open_data(path, val)
        split = split or "test"
    else:
        found = _scan(path)
        known = list(found.tree)
        split = split or next(n for n in ("test", "val", "all", "train") if n in known)
        if split in known:
            part = found.tree[split]
            names = tuple(classes or sorted({c for p in found.tree.values() for c in p}))
            return split, _split(path, found.reader, split, part, names), names
        if "all" in known or (split == "val" and "train" in known):
            made = open_data(path, val, seed)
    if made is None or split not in made.splits:
        known += [name for name in (made.splits if made else ()) if name not in known]
        raise InputError(f"--split {harmless(split)}: {harmless(path)} has {', '.join(known)}")
    names = tuple(classes or made.classes)
    unknown = [c for c in made.classes if c not in names]
    if unknown:
        raise _unknown_classes(path, split, unknown, names)
    place = np.array([names.index(c) for c in made.classes])
    chosen = made.splits[split]
    return split, replace(chosen, labels=place[chosen.labels]), names


def hold_out(
    split: Split, share: float, seed: int, at_most: int | None = None
) -> tuple[Split, Split]:
    """Split off a stratified share: at least one image of each class that has two, and otherwise
    no more than `at_most`. The image of a class that has no other stays.

    The rest, then what was held out; both keep the order.
    """
    at_most = len(split) if at_most is None else at_most
    share = min(share, at_most / len(split))
    labels, sizes = np.unique(split.labels, return_counts=True)
    counts = np.minimum(np.maximum(np.rint(share * sizes).astype(np.int64), 1), sizes - 1)
    while (over := int(counts.sum()) - at_most) > 0 and counts.max() > 1:
        largest = np.argsort(-counts, kind="stable")[:over]  # rounding up had made it too many
        counts[largest] = np.maximum(counts[largest] - 1, np.minimum(counts[largest], 1))
    chosen = np.zeros(len(split), bool)
    by_class = np.split(np.argsort(split.labels, kind="stable"), np.cumsum(sizes)[:-1])
    for label, members, n in zip(labels, by_class, counts, strict=True):
        chosen[members[permutation(len(members), seed, int(label))[:n]]] = True
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen))


def _digits(val: float | Literal["auto", "none"]) -> DataSet:
    """scikit-learn's 1,797 digits of 8x8 px in a fixed stratified split of 70/10/20."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_part("the data set digits", "train", error) from None
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


@dataclass(frozen=True)
class _Found:
    """What a folder or a zip holds."""

    reader: Reader
    tree: dict[str, dict[str, list[str]]]
    """Names of images by split and class; one split ``all`` where there are no splits."""
    empty: list[str]
    """Class folders of training images that hold none."""
    loose: int
    """Images outside class folders."""


def _scan(path: str) -> _Found:
    place = Path(path)
    if place.is_dir():
        names, folders = _walk(place)
        root = _common_root(names)
        if _split_name(root) or "train" not in {
            _split_name(n.split("/")[1]) for n in names if root
        }:
            root = ""
        reader: Reader = FolderReader(place / root)
    elif place.is_file() and zipfile.is_zipfile(place):
        names, folders = _members(place)
        root = _common_root(names)
        if _split_name(root) or all(n.count("/") < 2 for n in names):
            root = ""
        reader = ZipReader(place, f"{root}/" if root else "")
    elif place.exists():
        raise InputError(f"{harmless(path)}: neither a folder nor a zip of class folders")
    else:
        raise InputError(f"{harmless(path)}: no such folder or file")
    if root:
        names = [n[len(root) + 1 :] for n in names]
        folders = [f[len(root) + 1 :] for f in folders if f.startswith(f"{root}/")]
    tree: dict[str, dict[str, list[str]]] = {}
    tops = {n.split("/", 1)[0] for n in names if "/" in n}
    # A class may be called train too: a split is a folder of folders.
    splits = {_split_name(n.split("/", 1)[0]) for n in names if n.count("/") > 1}
    has_splits = "train" in splits or (bool(splits) and all(map(_split_name, tops)))
    for name in names:
        *parents, _ = name.split("/")
        split = _split_name(parents[0]) if has_splits and parents else "all"
        inner = parents[1:] if has_splits else parents
        if split and inner:
            tree.setdefault(split, {}).setdefault(inner[0], []).append(name)
    if not tree:
        raise InputError(
            f"{harmless(path)}: no images in class folders\n"
            "Expected DATA/CLASS/image.jpg, or DATA/train/CLASS/image.jpg and val/ or test/ beside"
        )
    training, depth = ("train", 1) if has_splits else ("all", 0)
    classes = [f.split("/") for f in folders if f.count("/") == depth]
    classes = [c for c in classes if not has_splits or _split_name(c[0]) == training]
    empty = [c[-1] for c in classes if c[-1] not in tree.get(training, {})]
    loose = len(names) - sum(len(n) for part in tree.values() for n in part.values())
    return _Found(reader, tree, empty, loose)


def _split_name(folder: str) -> str | None:
    """The split that a folder of that name is, None where it is none."""
    return SPLIT_NAMES.get(folder.lower())


def walk(root: Path) -> list[str]:
    """The images under a folder, by name relative to it, sorted; hidden ones are left out."""
    return _walk(root)[0]


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """Images and folders under a folder."""
    names, inside = [], []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [f for f in folders if not _is_hidden(f)]
        inner = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if inner == "." else inner + "/"
        inside += [prefix + f for f in folders]
        names += [prefix + f for f in files if _is_image(f)]
    return sorted(names), sorted(inside)


def _members(path: Path) -> tuple[list[str], list[str]]:
    """Images and folders in a zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
    except Exception as error:  # damaged directories raise all kinds of errors
        raise InputError(f"{harmless(path)}: damaged zip: {harmless(error)[:100]}") from None
    shown = [m for m in members if not any(map(_is_hidden, m.split("/")))]
    folders: set[str] = set()
    inner = {m.rpartition("/")[0] for m in shown}
    while inner := inner - folders - {""}:  # not every zip has members for its folders
        folders |= inner
        inner = {f.rpartition("/")[0] for f in inner}
    return sorted(filter(_is_image, shown)), sorted(folders)


def _is_hidden(part: str) -> bool:
    return (part.startswith(".") and part != ".") or part == "__MACOSX"


def _common_root(names: Sequence[str]) -> str:
    tops = {n.split("/", 1)[0] if "/" in n else "" for n in names}
    return tops.pop() if len(tops) == 1 else ""


def _is_image(name: str) -> bool:
    base = PurePosixPath(name)
    return base.suffix.lower() in SUFFIXES and not base.name.startswith(".")


def _classes(path: str, found: dict[str, list[str]]) -> tuple[str, ...]:
    for name in found:
        if any("\ud800" <= char <= "\udfff" for char in name):
            raise InputError(
                f"{harmless(path)}: the class folder {harmless(name)} has a name that is not UTF-8"
                "\nRename it: a card cannot hold the name."
            )
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
        f"{harmless(path)} ({split}): unknown classes: {shown}\n"
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

    found = []
    with ThreadPoolExecutor(threads) as pool:
        for low in range(0, len(split), WINDOW):  # so that few futures wait at a time
            window = range(low, min(low + WINDOW, len(split)))
            reasons = zip(window, pool.map(reason, window), strict=True)
            found += [(i, why) for i, why in reasons if why is not None]
    return found
