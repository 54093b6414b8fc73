"""Class folders: in a folder or a zip.

``CLASS/image.jpg``, or ``train/CLASS/image.jpg`` with ``val`` and ``test`` beside it (or what else
`SPLIT_NAMES` calls so); one folder around all of it is passed. Images may lie deeper in their
class folder.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from skipway.data.split import FolderReader, Found, Names, Reader, Split, ZipReader
from skipway.errors import InputError, harmless
from skipway.images import suffixes

SPLIT_NAMES = {  # in any case
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
    "testing": "test",
}
_SHOWN = 3
"""Names that a text lists at most."""


class Members(NamedTuple):
    """What lies in a folder or an archive, by name relative to it, sorted."""

    images: list[str]
    folders: list[str]
    others: list[str]
    """Files that are no images by their names."""
    outside: int = 0
    """Images beside the one folder that was passed."""


def open_folder(path: Path) -> Found:
    """Class folders in a folder. Raises InputError where there are none."""
    root, members = passed(_walk(path))
    return from_names(path, FolderReader(path / root), members)


def open_zip(path: Path) -> Found:
    """Class folders in a zip. Raises InputError where there are none or the zip is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except Exception as error:  # damaged directories raise all kinds of errors
        raise InputError(f"{harmless(path)}: damaged zip: {harmless(error)[:100]}") from None
    root, members = passed(members_of(names))
    return from_names(path, ZipReader(path, root), members)


def passed(members: Members) -> tuple[str, Members]:
    """The one folder around all class folders, with a slash behind it, and what lies in it; an
    empty name where there is none, or it is a split or a class itself."""
    tops = {name.split("/", 1)[0] for name in members.images if "/" in name}
    root = f"{next(iter(tops))}/" if len(tops) == 1 else ""
    inner = {split_name(n.split("/")[1]) for n in members.images if n.count("/") > 1}
    # A folder beside it may be a class that lacks images, and it a class too, unless it has splits.
    alone = all(f"{folder}/".startswith(root) for folder in members.folders)
    if not root or split_name(root[:-1]) or not inner or not (alone or "train" in inner):
        return "", members
    images, folders, others = (
        [n.removeprefix(root) for n in part if n.startswith(root)]
        for part in (members.images, members.folders, members.others)
    )
    return root, Members(images, folders, others, len(members.images) - len(images))


def from_names(path: Path, reader: Reader, members: Members) -> Found:
    """Splits and classes from the names of images and folders. Raises InputError where there are
    none, or where splits would be taken for classes, or classes for splits."""
    names = members.images
    tree: dict[str, dict[str, list[str]]] = {}
    tops = {n.split("/", 1)[0] for n in names if "/" in n}
    # A class may be called train too: a split is a folder of folders.
    splits = {split_name(n.split("/", 1)[0]) for n in names if n.count("/") > 1}
    has_splits = "train" in splits or (bool(splits) and all(map(split_name, tops)))

    def place(name: str) -> tuple[str, str] | None:
        *parents, _ = name.split("/")
        split = split_name(parents[0]) if has_splits and parents else "all"
        inner = parents[1:] if has_splits else parents
        return (split, inner[0]) if split and inner else None

    beside: Counter[str] = Counter()
    loose = members.outside
    for name in names:
        if found := place(name):
            tree.setdefault(found[0], {}).setdefault(found[1], []).append(name)
        elif has_splits and "/" in name and not split_name(top := name.split("/", 1)[0]):
            beside[top] += 1
        else:
            loose += 1
    strange = _strange(name for name in members.others if place(name))
    if not tree:
        raise InputError(
            f"{harmless(path)}: no images in class folders\n"
            "Expected DATA/CLASS/image.jpg, or DATA/train/CLASS/image.jpg and val/ or test/ beside"
            + (f"\n{strange}" if strange else "")
        )
    inner = _inner(names)
    _check_doubled(path, inner)
    if has_splits:
        _check_twins(path, inner)
    else:
        _check_classes(path, inner)
    training, depth = ("train", 1) if has_splits else ("all", 0)
    inside = [f.split("/") for f in members.folders if f.count("/") == depth]
    inside = [c for c in inside if not has_splits or split_name(c[0]) == training]
    empty = [c[-1] for c in inside if c[-1] not in tree.get(training, {})]
    notes = [
        f"{harmless(top)}/ is none of train, val, test: its {n:,} images are left out"
        for top, n in beside.most_common()
    ]
    notes += [f"{loose:,} images outside class folders are left out"] if loose else []
    notes += [strange] if strange else []
    return replace(by_class(reader, tree, tuple(empty), tuple(notes)), strange=strange)


def _strange(names: Iterable[str]) -> str:
    """What is said of files in class folders that are no images by their names; nothing of none."""
    ends = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names)
    shown = ", ".join(f"{harmless(end)[:20]} {n:,}" for end, n in ends.most_common(_SHOWN))
    more = ", …" if len(ends) > _SHOWN else ""
    what = f"{ends.total():,} files in class folders are no images by their names"
    return f"{what}: {shown}{more}" if ends else ""


def _inner(names: Iterable[str]) -> dict[str, set[str]]:
    """The folders in each of the first folders."""
    inner: dict[str, set[str]] = {}
    for name in names:
        top, *below = name.split("/")[:-1] or [""]
        if top:
            inner.setdefault(top, set()).update(below[:1])
    return inner


def _like_a_split(folder: str) -> bool:
    """Whether a split's name is a word of this one, as of training_set."""
    return any(map(split_name, re.split(r"[\W_\d]+", folder)))


def _check_doubled(path: Path, inner: Mapping[str, set[str]]) -> None:
    """Raise InputError where a folder like a split holds nothing but one of its own name, as some
    archives are unpacked."""
    for top, below in inner.items():
        if below == {top} and _like_a_split(top):
            top = harmless(top)
            raise InputError(
                f"{harmless(path)}: {top}/ holds nothing but {top}/\nMove what that holds one up, "
                "so that it is DATA/train/CLASS/image.jpg."
            )


def _check_twins(path: Path, inner: Mapping[str, set[str]]) -> None:
    """Raise InputError where two folders would be one split, or the only one may be a class."""
    splits = [top for top in inner if split_name(top)]
    alike = [top for top in inner if not split_name(top) and inner[top] == inner[splits[0]]]
    if len(splits) == 1 and alike:
        raise InputError(
            f"{harmless(path)}: {harmless(splits[0])}/ may be a split or a class, as "
            f"{_folders(alike)} beside it hold the same folders\nName it otherwise where it is a "
            "class; else move the others away."
        )
    first: dict[str, str] = {}
    for top in sorted(inner):
        split = split_name(top)
        if split and first.setdefault(split, top) != top:
            raise InputError(
                f"{harmless(path)}: {harmless(first[split])}/ and {harmless(top)}/ could both be "
                f"{split}\nLeave one of them there, or join them."
            )


def _check_classes(path: Path, inner: Mapping[str, set[str]]) -> None:
    """Raise InputError where class folders look like splits, or hold them."""
    second = set().union(*inner.values())
    if len(set(map(split_name, second))) > 1 and all(map(split_name, second)):
        raise InputError(
            f"{harmless(path)}: splits lie inside the classes, as {_folders(second)} in "
            f"{harmless(min(top for top in inner if inner[top]))}/\n"
            "Put classes into splits: DATA/train/CLASS/image.jpg."
        )
    if len(inner) < 2:
        return
    where = f"{harmless(path)}: {_folders(inner)}"
    if all(map(split_name, inner)):
        raise InputError(
            f"{where} hold images without class folders\n"
            "Put them into class folders: DATA/train/CLASS/image.jpg."
        )
    alike = len(second) > 1 and all(below == second for below in inner.values())
    if alike and all(map(_like_a_split, inner)):
        raise InputError(
            f"{where} each hold {_folders(second)}: splits, it seems, and not classes\n"
            "Rename them to train/ and test/ (or val/); classes, to names without these words."
        )


def _folders(names: Iterable[str]) -> str:
    """The first of the names, for texts."""
    ordered = sorted(names)
    shown = ", ".join(f"{harmless(name)}/" for name in ordered[:_SHOWN])
    return shown + (", …" if len(ordered) > _SHOWN else "")


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
    """The images under a folder, by name relative to it, sorted; hidden ones are left out. Raises
    InputError for a folder that cannot be looked into."""
    return _walk(root).images


def _walk(root: Path) -> Members:
    """Links are followed, but not back up, where the same images would come again without end; what
    is no file, as a pipe that nobody writes to, is none."""
    found = Members([], [], [])
    waiting = [("", frozenset({_identity(root)}))]
    while waiting:
        prefix, above = waiting.pop()
        try:
            entries = [*os.scandir(root / prefix)]
        except OSError as error:
            raise InputError(f"{harmless(root / prefix)}: {error.strerror}") from None
        for entry in entries:
            name = prefix + entry.name
            linked = entry.is_symlink()
            if os.path.isdir(entry) if linked else entry.is_dir(follow_symlinks=False):
                own = _identity(entry)
                if own not in above and not _is_hidden(entry.name):
                    found.folders.append(name)
                    waiting.append((f"{name}/", above | {own}))
            elif _is_special(entry) or _is_hidden(entry.name):
                continue
            elif is_image(entry.name):
                found.images.append(name)
            elif linked and not os.path.exists(entry):  # it may have been a whole split
                raise InputError(
                    f"{harmless(entry.path)}: a link to what is not there\n"
                    "Mend the link, or remove it."
                )
            else:
                found.others.append(name)
    return Members(sorted(found.images), sorted(found.folders), sorted(found.others))


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


def members_of(names: set[str]) -> Members:
    """What the names of an archive's members tell; those of folders end with a slash."""
    shown = [m for m in names if not any(map(_is_hidden, m.split("/")))]
    folders: set[str] = set()
    inner = {m.rpartition("/")[0] for m in shown}
    while inner := inner - folders - {""}:  # not every archive has members for its folders
        folders |= inner
        inner = {f.rpartition("/")[0] for f in inner}
    files = sorted(m for m in shown if not m.endswith("/"))
    others = [f for f in files if not is_image(f)]
    return Members([f for f in files if is_image(f)], sorted(folders), others)


def _is_hidden(part: str) -> bool:
    return (part.startswith(".") and part != ".") or part == "__MACOSX"


def is_image(name: str) -> bool:
    base = PurePosixPath(name)
    return base.suffix.lower() in suffixes() and not base.name.startswith(".")
