"""Class folders: in a folder or a zip.

``CLASS/image.jpg``, or ``train/CLASS/image.jpg`` with ``val`` and ``test`` beside it; one folder
around all of it is passed. Images may lie deeper in their class folder.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from skipway.data.split import FolderReader, Found, Names, Reader, Split, ZipReader
from skipway.errors import InputError, harmless

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
SPLIT_NAMES = {  # in any case
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def open_folder(path: Path) -> Found:
    """Class folders in a folder. Raises InputError where there are none."""
    names, folders = _walk(path)
    root = _common_root(names)
    if split_name(root) or "train" not in {split_name(n.split("/")[1]) for n in names if root}:
        root = ""
    return from_names(path, FolderReader(path / root), names, folders, root)


def open_zip(path: Path) -> Found:
    """Class folders in a zip. Raises InputError where there are none or the zip is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
    except Exception as error:  # damaged directories raise all kinds of errors
        raise InputError(f"{harmless(path)}: damaged zip: {harmless(error)[:100]}") from None
    names, folders = images_among(members)
    root = archive_root(names)
    return from_names(path, ZipReader(path, f"{root}/" if root else ""), names, folders, root)


def from_names(
    path: Path, reader: Reader, names: list[str], folders: list[str], root: str
) -> Found:
    """Splits and classes from the names of images and folders; `root` is passed."""
    if root:
        names = [n[len(root) + 1 :] for n in names]
        folders = [f[len(root) + 1 :] for f in folders if f.startswith(f"{root}/")]
    tree: dict[str, dict[str, list[str]]] = {}
    tops = {n.split("/", 1)[0] for n in names if "/" in n}
    # A class may be called train too: a split is a folder of folders.
    splits = {split_name(n.split("/", 1)[0]) for n in names if n.count("/") > 1}
    has_splits = "train" in splits or (bool(splits) and all(map(split_name, tops)))
    for name in names:
        *parents, _ = name.split("/")
        split = split_name(parents[0]) if has_splits and parents else "all"
        inner = parents[1:] if has_splits else parents
        if split and inner:
            tree.setdefault(split, {}).setdefault(inner[0], []).append(name)
    if not tree:
        raise InputError(
            f"{harmless(path)}: no images in class folders\n"
            "Expected DATA/CLASS/image.jpg, or DATA/train/CLASS/image.jpg and val/ or test/ beside"
        )
    training, depth = ("train", 1) if has_splits else ("all", 0)
    inside = [f.split("/") for f in folders if f.count("/") == depth]
    inside = [c for c in inside if not has_splits or split_name(c[0]) == training]
    empty = [c[-1] for c in inside if c[-1] not in tree.get(training, {})]
    loose = len(names) - sum(len(n) for part in tree.values() for n in part.values())
    notes = (f"{loose:,} images outside class folders are left out",) if loose else ()
    return by_class(reader, tree, tuple(empty), notes)


def by_class(
    reader: Reader,
    tree: Mapping[str, Mapping[str, Sequence[str]]],
    empty: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Found:
    """What names of images by split and class make: splits ordered by class, then as given."""
    classes = tuple(sorted({c for part in tree.values() for c in part}))
    place = {c: i for i, c in enumerate(classes)}
    splits = {}
    for split, part in tree.items():
        pairs = [(name, place[c]) for c in sorted(part) for name in part[c]]
        labels = np.array([label for _, label in pairs], np.int64)
        splits[split] = Split(reader, Names(name for name, _ in pairs), labels)
    return Found(splits, classes, empty=empty, notes=notes)


def split_name(folder: str) -> str | None:
    """The split that a folder of that name is, None where it is none."""
    return SPLIT_NAMES.get(folder.lower())


def walk(root: Path) -> list[str]:
    """The images under a folder, by name relative to it, sorted; hidden ones are left out."""
    return _walk(root)[0]


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """Images and folders under a folder. Links are followed, but not back up, where the same images
    would come again without end; what is no file, as a pipe that nobody writes to, is none."""
    names: list[str] = []
    inside: list[str] = []
    waiting = [("", frozenset({_identity(root)}))]
    while waiting:
        prefix, above = waiting.pop()
        try:
            entries = [*os.scandir(root / prefix)]
        except OSError:
            continue
        for entry in entries:
            name = prefix + entry.name
            linked = entry.is_symlink()
            if os.path.isdir(entry) if linked else entry.is_dir(follow_symlinks=False):
                own = _identity(entry)
                if own not in above and not _is_hidden(entry.name):
                    inside.append(name)
                    waiting.append((f"{name}/", above | {own}))
            elif is_image(entry.name) and not _is_special(entry):
                names.append(name)
    return sorted(names), sorted(inside)


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int] | None:
    """What a folder is known by, whatever link leads to it; None where it cannot be looked at."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Whether it is there and neither a file nor a folder."""
    if entry.is_file(follow_symlinks=False):  # known without looking at it
        return False
    return os.path.exists(entry) and not os.path.isfile(entry)


def images_among(members: set[str]) -> tuple[list[str], list[str]]:
    """Images and folders among the members of an archive."""
    shown = [m for m in members if not any(map(_is_hidden, m.split("/")))]
    folders: set[str] = set()
    inner = {m.rpartition("/")[0] for m in shown}
    while inner := inner - folders - {""}:  # not every archive has members for its folders
        folders |= inner
        inner = {f.rpartition("/")[0] for f in inner}
    return sorted(filter(is_image, shown)), sorted(folders)


def _is_hidden(part: str) -> bool:
    return (part.startswith(".") and part != ".") or part == "__MACOSX"


def _common_root(names: Sequence[str]) -> str:
    tops = {n.split("/", 1)[0] if "/" in n else "" for n in names}
    return tops.pop() if len(tops) == 1 else ""


def archive_root(names: Sequence[str]) -> str:
    """The one folder around all that an archive holds, where it is neither split nor class."""
    root = _common_root(names)
    return "" if split_name(root) or all(n.count("/") < 2 for n in names) else root


def is_image(name: str) -> bool:
    base = PurePosixPath(name)
    return base.suffix.lower() in SUFFIXES and not base.name.startswith(".")
