"""Annotated images as a data set: forms told apart, classes matched, problems refused or left out.

The classes are those of the training annotations: COCO's categories in the order of their ids,
YOLO's names in the order of their numbers, the names in VOC's xml by alphabet. Other splits are
matched by name, whatever their ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skipway.data.objects import coco, voc, yolo
from skipway.data.objects.annotated import AnnotatedSplit
from skipway.data.objects.checking import KINDS, Checked, Listing, check
from skipway.data.problems import Problem, count, left_out, refusal
from skipway.data.split import (
    DataSet,
    Skipped,
    Undivided,
    Val,
    check_val,
    divided,
    hold_out,
    rarest,
)
from skipway.errors import InputError, harmless, nearest

Form = Literal["COCO", "YOLO", "VOC"]
Array = npt.NDArray[Any]

_FEW, _RARE, _OFTEN = 2, 0.01, 20
"""A class may be a slip of another one's name that has `_OFTEN` times its objects at least, where
they are `_FEW` at most or no larger share than `_RARE` of the other's."""
SHOWN = 3
"""Such classes that are named."""


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
    return undivided_objects(path, val, seed, on_bad, masks, classes).divide()


def undivided_objects(
    path: str,
    val: Val = "auto",
    seed: int = 0,
    on_bad: Literal["error", "skip"] = "error",
    masks: bool = False,
    classes: Sequence[str] | None = None,
) -> Undivided[AnnotatedSplit]:
    """The same before anything is held out: for a model that is scored on the splits as they are,
    or on all images. Raises InputError."""
    check_val(val)
    found = _gathered(path, masks, classes)
    fatal = [p for p in found.problems if p.kind == "no-objects"]
    if found.problems and on_bad == "error":
        raise InputError(refusal(found.problems, ["no-objects"]))
    if fatal:
        raise InputError(f"{fatal[0]}\nSo nothing can be learned or judged there.")
    k = len(found.classes)

    def hold(
        split: AnnotatedSplit, share: float, at_most: int | None
    ) -> tuple[AnnotatedSplit, AnnotatedSplit]:
        parts = hold_out(split, share, seed, at_most, _strata(split, k))
        if not all(len(part.table) for part in parts):
            raise InputError(
                f"{harmless(path)}: too few images with objects to hold any out\n"
                "Add images, or train on all of them with --val none."
            )
        return parts

    def divide() -> DataSet:
        how = "stratified by the rarest class in an image"
        splits, notes = divided(path, found.splits, val, seed, hold, how)
        for name, split in splits.items():
            notes += _lacks(name, split, k)
        skipped = tuple(Skipped(p.image or p.file, str(p)) for p in found.problems)
        return DataSet(path, found.classes, dict(splits), (*found.notes, *notes), skipped)

    alone = {name: replace(s, notes=(*_lacks(name, s, k),)) for name, s in found.splits.items()}
    return Undivided(path, alone, tuple(found.notes), divide)


def _lacks(name: str, split: AnnotatedSplit, classes: int) -> Iterator[str]:
    """Notes on what a split holds nothing of."""
    absent = int((split.per_class(classes) == 0).sum())
    if absent:
        yield f"{name}: no object of {absent} of the {classes} classes"
    empty = int((np.diff(split.table.offsets) == 0).sum())
    if empty:
        yield f"{name}: {empty:,} of {len(split):,} images hold no object"


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
        notes += _slips(checked.get("train") or checked["all"])
    found: list[Problem] = []
    splits = {}
    for name, one in checked.items():
        found += one.problems
        before = "" if name == "all" else f"{name}: "
        notes += [before + note for note in one.notes]
        split, unknown = _counted(one, learned)
        found += unknown
        notes += _left_out(before, one, len(one.split.table) - len(split.table))
        if split.table.crowd.all():
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
        if any(Path(path).glob("labels/**/*.txt")):
            raise InputError(
                f"{harmless(path)}: YOLO's labels/ without its data.yaml\n"
                "Write one there with names, the list of classes, and train and val, folders of "
                "images."
            )
        raise InputError(
            f"{harmless(path)}: no annotations found\nExpected COCO (train.json beside train/, or "
            "annotations/instances_train.json), YOLO (data.yaml)\nor Pascal VOC (Annotations/*.xml "
            "beside JPEGImages/, or each beside its image)."
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


def _slips(training: Checked) -> list[str]:
    """Notes on classes of few objects that are called almost as one of many: slips, perhaps."""
    table, names = training.split.table, training.categories
    counts = np.bincount(table.labels, minlength=len(names))
    found = []
    for label in np.flatnonzero(counts).tolist():
        n = int(counts[label])
        enough = max(_OFTEN * n, 1 if n <= _FEW else n / _RARE)
        name = harmless(names[label])
        others = (harmless(names[k]) for k in np.flatnonzero(counts >= enough).tolist())
        guess = nearest(name, (o for o in others if _undigited(o) != _undigited(name)))
        if guess:
            first = int(np.argmax(table.labels == label))
            image = int(np.searchsorted(table.offsets, first, side="right")) - 1
            where = training.file_of(image), int(table.ids[first]), training.split.names[image]
            also = f" and {count(n - 1, 'more object')}" if n > 1 else ""
            what = f"only this{also} in training of the class {name!r}.{guess}"
            found.append(str(Problem(*where, "unknown-class", what)))
    if len(found) > SHOWN:
        more = count(len(found) - SHOWN, "more class is", "more classes are")
        found[SHOWN:] = [f"{more} called almost as one of many more objects"]
    return found


def _undigited(name: str) -> str:
    """A name without what numbers it."""
    return "".join(char for char in name if not char.isdigit())


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
    annotations = one.left_out + Counter({"unknown-class": unknown})
    notes = left_out(f"{before}images", one.images_out, KINDS)
    notes += left_out(f"{before}annotations", annotations, KINDS)
    if one.lost:
        notes.append(f"{before}annotations left out with their images ({one.lost:,})")
    return notes


def _strata(split: AnnotatedSplit, classes: int) -> Array:
    labels = split.table.labels.astype(np.int64)
    return rarest(split.table.images(), labels, len(split), classes)
