"""Annotated images as a data set: forms told apart, classes matched, problems refused or left out.

The classes are those of the training annotations: COCO's categories in the order of their ids,
YOLO's names in the order of their numbers, the names in VOC's xml by alphabet. Other splits are
matched by name, whatever their ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from skipway.data.objects import coco, voc, yolo
from skipway.data.objects.annotated import AnnotatedSplit
from skipway.data.objects.checking import KINDS, Checked, Listing, Problem, check
from skipway.data.sources import LARGEST_VALIDATION
from skipway.data.split import DataSet, Skipped, Split, hold_out
from skipway.errors import InputError, harmless, nearest

Form = Literal["COCO", "YOLO", "VOC"]
Val = float | Literal["auto", "none"]


def form_of(path: str) -> Form | None:
    """What annotations lie there, as far as names tell; None for none that are known.

    Raises InputError where two files could be meant.
    """
    try:
        place = _place(Path(path))
    except OSError:
        return None
    return place[0] if place else None


def open_objects(
    path: str,
    val: Val = "auto",
    seed: int = 0,
    on_bad: Literal["error", "skip"] = "error",
    masks: bool = False,
    classes: Sequence[str] | None = None,
) -> DataSet:
    """Annotated images for training or evaluation; each split is an `AnnotatedSplit`.

    path: a folder in a layout of `coco`, `yolo` or `voc`, a COCO json or a YOLO yaml. Everything
    is checked, and the header of every image read, before anything is returned: with on_bad
    ``error`` the first problem is raised, with ``skip`` the annotations and images at fault are
    left out, counted in the notes and listed in `skipped`. With `masks` every object has a shape,
    and the lack of one is a problem; without, no shape is read. `classes` are a model's, to be
    matched by name; None takes those of the data.

    Splits are made as `open_data` makes them: with no split 80/10/10, with train only, or train
    and test, 10 % of train (at most 5,000 images) becomes val; a number for `val` sets the share,
    ``none`` holds no val out. They are drawn by image, stratified by the rarest class in it.
    Raises InputError.
    """
    if not isinstance(val, str) and not 0 < val < 1:
        raise InputError(f"--val {val}: give a share between 0 and 1, or none")
    found = _gathered(path, masks, classes)
    fatal = [p for p in found.problems if p.kind == "no-objects"]
    if found.problems and on_bad == "error":
        raise InputError(_refusal(found.problems))
    if fatal:
        raise InputError(f"{fatal[0]}\nSo nothing can be learned or judged there.")
    splits, notes = _divided(path, found.splits, found.classes, val, seed)
    for name, split in splits.items():
        absent = int((split.per_class(len(found.classes)) == 0).sum())
        if absent:
            notes.append(f"{name}: no object of {absent} of the {len(found.classes)} classes")
        empty = int((np.diff(split.table.offsets) == 0).sum())
        if empty:
            notes.append(f"{name}: {empty:,} of {len(split):,} images hold no object")
    skipped = tuple(Skipped(p.image or p.file, str(p)) for p in found.problems)
    return DataSet(path, found.classes, dict(splits), (*found.notes, *notes), skipped)


def problems(path: str, masks: bool = False) -> list[Problem]:
    """All that is wrong in annotations, in the order of splits, images and annotations.

    Raises InputError where there are none that can be read at all.
    """
    return _gathered(path, masks, None).problems


@dataclass(frozen=True)
class _Content:
    """What a path holds, all that is at fault taken out."""

    splits: dict[str, AnnotatedSplit]
    classes: tuple[str, ...]
    problems: list[Problem]
    notes: list[str]


def _gathered(path: str, masks: bool, classes: Sequence[str] | None) -> _Content:
    try:
        listings, parents = _listings(path, masks)
        checked = {name: check(listing) for name, listing in listings.items()}
    except OSError as error:
        why = error.strerror or harmless(error)
        raise InputError(f"{harmless(error.filename or path)}: {why}") from None
    notes = []
    learned = tuple(classes or ())
    if classes is None:
        learned, phantom = _classes(path, checked, parents)
        if phantom:
            shown = ", ".join(repr(harmless(name)) for name in phantom[:3])
            notes.append(f"a category that only groups others is no class: {shown}")
    found: list[Problem] = []
    splits = {}
    for name, one in checked.items():
        found += one.problems
        before = "" if name == "all" else f"{name}: "
        notes += [before + note for note in one.notes]
        split, unknown = _counted(one, learned)
        found += unknown
        notes += _left_out(before, one, len(one.split.table) - len(split.table))
        if not len(split.table):
            left = " left" if one.problems or unknown else ""
            what = f"no object{left} in any of its images ({len(split):,})"
            found.append(Problem(one.path, None, "", "no-objects", what))
        splits[name] = split
    return _Content(splits, learned, found, notes)


def _place(path: Path, deeper: bool = True) -> tuple[Form, Path] | None:
    """The form of what lies at a path, and where it begins."""
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix == ".json":
            return "COCO", path
        return ("YOLO", path) if suffix in (".yaml", ".yml") else None
    if not path.is_dir():
        return None
    if coco.find_files(path):
        return "COCO", path
    if yolo.find_file(path):
        return "YOLO", path
    if voc.find_files(path):
        return "VOC", path
    inside = [entry for entry in path.iterdir() if not entry.name.startswith((".", "__"))]
    folders = [entry for entry in inside if entry.is_dir()]
    return _place(folders[0], False) if deeper and len(folders) == 1 else None


def _listings(path: str, masks: bool) -> tuple[dict[str, Listing], dict[str, str | None] | None]:
    """What the files say by split, and COCO's categories with the one above each; None for VOC."""
    place = _place(Path(path))
    if place is None:
        if not Path(path).exists():
            raise InputError(f"{harmless(path)}: no such folder or file")
        raise InputError(
            f"{harmless(path)}: no annotations found\nExpected COCO (train.json beside train/, or "
            "annotations/instances_train.json), YOLO (data.yaml)\nor Pascal VOC (Annotations/*.xml "
            "beside JPEGImages/)."
        )
    form, root = place
    if form == "YOLO":
        file = yolo.find_file(root) if root.is_dir() else None
        return yolo.read(file or root, masks), {}
    if form == "VOC":
        return voc.read(root, voc.find_files(root), masks), None
    files = {"all": root} if root.is_file() else coco.find_files(root)
    listings: dict[str, Listing] = {}
    parents: dict[str, str | None] = {}
    folder = root.parent if root.is_file() else root
    for split in ("train", "all", "val", "test"):
        if split in files:
            listings[split], found = coco.read(files[split], split, folder, masks)
            parents |= dict(zip(found.names, found.parents, strict=True))
    return listings, parents


def _classes(
    path: str, checked: dict[str, Checked], parents: dict[str, str | None] | None
) -> tuple[tuple[str, ...], list[str]]:
    """The classes of the training annotations, and the categories that are none: exporters put the
    name of a whole project among them, above all others and without an object of its own."""
    training = checked.get("train") or checked.get("all")
    if training is None:
        raise InputError(
            f"{harmless(path)}: has annotations of {', '.join(checked)}, none of train"
        )
    names = training.categories
    phantom: list[str] = []
    if parents is None:
        names = tuple(sorted(names[i] for i in np.unique(training.split.table.labels)))
    else:
        used = {
            one.categories[i] for one in checked.values() for i in np.unique(one.split.table.labels)
        }
        above = {parent for name, parent in parents.items() if parent != name}
        phantom = [name for name in names if name in above and name not in used]
        names = tuple(name for name in names if name not in phantom)
    for name in names:
        if any("\ud800" <= char <= "\udfff" for char in name):
            where = f"{harmless(training.path)}: the class {harmless(name)}"
            raise InputError(
                f"{where} has a name that is not UTF-8\nRename it: a card cannot hold the name."
            )
    return names, phantom


def _counted(one: Checked, classes: Sequence[str]) -> tuple[AnnotatedSplit, list[Problem]]:
    """The split with labels that count `classes`; objects of others are taken out and told, each
    class once."""
    table = one.split.table
    position = {name: i for i, name in enumerate(classes)}
    places = np.array([position.get(name, -1) for name in one.categories], np.int32)
    if np.array_equal(places, np.arange(len(classes))):
        return one.split, []
    images = table.images()
    told = []
    for label in np.flatnonzero(places < 0).tolist():
        rows = np.flatnonzero(table.labels == label)
        if len(rows):
            name = harmless(one.categories[label])
            guess = nearest(name, map(harmless, classes))
            also = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
            what = f"the class {name!r} here{also} is not among those learned.{guess}"
            image = int(images[rows[0]])
            first = int(table.ids[rows[0]])
            image_name = one.split.names[image]
            told.append(Problem(one.file_of(image), first, image_name, "unknown-class", what))
    labels = places[table.labels] if len(places) else table.labels
    kept = replace(table, labels=labels).keep(labels >= 0)
    return replace(one.split, table=kept), told


def _left_out(before: str, one: Checked, unknown: int) -> list[str]:
    """How much of a split is left out, and why."""
    notes = []
    annotations = one.left_out + Counter({"unknown-class": unknown})
    for what, counts in (("images", one.images_out), ("annotations", annotations)):
        if counts.total():
            kinds = ", ".join(f"{KINDS[kind]} {n:,}" for kind, n in counts.most_common())
            notes.append(f"{before}{what} left out ({counts.total():,}): {kinds}")
    if one.lost:
        notes.append(f"{before}annotations left out with their images ({one.lost:,})")
    return notes


def _refusal(found: list[Problem]) -> str:
    more = ""
    if len(found) > 1:
        n = len(found) - 1
        more = (
            f"\nand {n:,} more {'problem' if n == 1 else 'problems'}: skipway check-data lists all."
        )
    if found[0].kind == "no-objects":
        return f"{found[0]}{more}"
    return f"{found[0]}{more}\nMend it, or leave what is at fault out with --on-bad skip."


def _divided(
    path: str, splits: dict[str, AnnotatedSplit], classes: Sequence[str], val: Val, seed: int
) -> tuple[dict[str, AnnotatedSplit], list[str]]:
    """Train, val and test, those that are not there held out of the images for training."""
    if "val" in splits and not isinstance(val, str) and "train" in splits:
        raise InputError(f"--val {val}: {harmless(path)} has a validation split of its own")
    notes = []
    found = dict(splits)
    whole = found.pop("all", None)
    share, at_most = (0.1, LARGEST_VALIDATION) if isinstance(val, str) else (val, None)
    if whole is not None:
        found["train"] = whole
        if val != "none":
            share, at_most = (1 / 9, None) if isinstance(val, str) else (val, None)
            found["train"], found["test"] = _held_out(path, whole, len(classes), 0.1, seed, None)
            notes.append(_note("no split given", len(found["test"]), "images became test", seed))
    if "train" in found and "val" not in found and val != "none":
        whole = found["train"]
        found["train"], held = _held_out(path, whole, len(classes), share, seed, at_most)
        found["val"] = held
        notes.append(_note("", len(held), "of the training images became validation", seed))
    return {name: found[name] for name in ("train", "val", "test") if name in found}, notes


def _note(before: str, n: int, what: str, seed: int) -> str:
    text = f"{n:,} {what} (stratified by the rarest class in an image, seed {seed})"
    return f"{before}: {text}" if before else text


def _held_out(
    path: str, split: AnnotatedSplit, classes: int, share: float, seed: int, at_most: int | None
) -> tuple[AnnotatedSplit, AnnotatedSplit]:
    """As `hold_out`; an image counts as of the class of its that the fewest images have, one
    without objects as of a class of its own. Raises InputError where a part is left without any.
    """
    images, labels = split.table.images(), split.table.labels.astype(np.int64)
    pairs = np.unique(images * (classes + 1) + labels)
    owner, label = np.divmod(pairs, classes + 1)
    rank = np.empty(classes, np.int64)  # 0 is the rarest
    rank[np.argsort(np.bincount(label, minlength=classes), kind="stable")] = np.arange(classes)
    rarest = np.full(len(split), classes)
    np.minimum.at(rarest, owner, rank[label])
    as_labels: Split = replace(split, labels=rarest)
    parts = hold_out(as_labels, share, seed, at_most)
    rest, held = (
        replace(part, labels=np.zeros(len(part), np.int64))
        for part in parts
        if isinstance(part, AnnotatedSplit)
    )
    if not len(rest.table) or not len(held.table):
        raise InputError(
            f"{harmless(path)}: too few images with objects to hold any out\n"
            "Add images, or train on all of them with --val none."
        )
    return rest, held
