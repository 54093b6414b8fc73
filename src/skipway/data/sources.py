"""Data for training and evaluation: splits, the classes that labels count, and what is held out.

Where labelled images come from is the matter of `forms`. Here are the rules that hold for all: the
classes of a data set are those of its training images, in alphabetical order, or that of numbers
where the form has numbers, unless it lists classes of its own; other splits are matched by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.data.forms import find
from skipway.data.forms.imagenet import in_models_order
from skipway.data.split import (
    ArrayReader,
    DataSet,
    Found,
    Names,
    Split,
    Val,
    check_val,
    divided,
    hold_out,
)
from skipway.errors import InputError, harmless, missing_part

Array = npt.NDArray[Any]

_SHOWN = 3
"""Groups of classes that a note names at most."""


def open_data(path: str, val: Val = "auto", seed: int = 0, unseen: bool = False) -> DataSet:
    """A data set for training, its validation split made where it has none.

    path: digits or a name of `forms.NAMED`; a folder, zip or uncompressed tar of class folders; a
    CSV or parquet of paths and labels; parquet with images; an npz of arrays; IDX or CIFAR's files.
    Layouts are told by the modules of `forms`.

    The rules: a split that exists is used as it is. With train and test only, 10 % of train (at
    most 5,000, stratified, by seed) becomes validation; a number for `val` sets the share. With
    no split, 80/10/10. ``none`` holds nothing out: validation is not split off, and an existing
    ``val`` serves for the last score only. unseen: other splits may have classes of their own,
    which come after those of training; without it they are refused. Raises InputError.
    """
    check_val(val)
    if path == "digits":
        return _digits(val)
    return _made(path, find(path), val, seed, unseen)


def _made(path: str, found: Found, val: Val, seed: int, unseen: bool = False) -> DataSet:
    if found.empty:
        shown = ", ".join(repr(harmless(c)) for c in found.empty[:3])
        more = ", …" if len(found.empty) > 3 else ""
        raise InputError(
            f"{harmless(path)}: class folders without a training image: {shown}{more}\n"
            + (f"{found.strange}\n" if found.strange else "")
            + "Put images into them, or remove them."
        )
    training = next((name for name in ("train", "all") if name in found.splits), None)
    if training is None:
        raise InputError(
            f"{harmless(path)}: has {', '.join(found.splits)} but no train folder, files or rows"
        )
    notes = list(found.notes)
    classes, others = _classes(path, found, found.splits[training], unseen)
    splits = {
        name: _counted(path, name, split, found, classes) for name, split in found.splits.items()
    }
    if others:
        n = len(classes) - others
        notes.append(f"{n} classes are trained on, {others} others are only measured on")
    notes += _alike(classes)

    def hold(split: Split, share: float, at_most: int | None) -> tuple[Split, Split]:
        parts = hold_out(split, share, seed, at_most)
        if not len(parts[1]):
            raise InputError(
                f"{harmless(path)}: too few images of each class to hold any out\n"
                "Add images, or train on all of them with --val none."
            )
        return parts

    splits, said = divided(path, splits, val, seed, hold)
    for name, split in splits.items():
        absent = len(classes) - len(np.unique(split.labels))
        if absent and not others:
            notes.append(f"{absent} of {len(classes)} classes have no image in {name}")
    return DataSet(
        path,
        classes,
        splits,
        (*notes, *said),
        channels=found.channels,
        mirror=found.mirror,
        unseen=others,
    )


def open_split(
    path: str,
    split: str | None,
    classes: Sequence[str] | None,
    seed: int,
    val: Val,
) -> tuple[str, Split, tuple[str, ...]]:
    """One split for evaluation: its name, the images, and the class names that labels count.

    `split` None takes test, else val, else every image (``all``). Splits that the data does not
    have are made as `open_data` makes them from `seed` and `val`. `classes` are the model's; they
    are matched by name, ImageNet's 1,000 WordNet ids by position, as the split's notes then say.
    None takes the data's own. Raises InputError for a class that the model does not know.
    """
    if path == "digits":
        made = open_data(path, val)
        found = Found(made.splits, made.classes)
        split = split or "test"
    else:
        found = find(path)
        split = split or next(n for n in ("test", "val", "all", "train") if n in found.splits)
        derived = "all" in found.splits or (split == "val" and "train" in found.splits)
        if split not in found.splits and derived:
            if "all" in found.splits:
                _matched(path, "all", found, classes)  # its rows are known
            made = _made(path, found, val, seed, unseen=classes is None)
            splits = found.splits | made.splits  # what was made counts the classes of training
            found = replace(found, classes=made.classes, splits=splits, rows={})
    if split not in found.splits:
        known = ", ".join(found.splits)
        raise InputError(f"--split {harmless(split)}: {harmless(path)} has {known}")
    return split, *_matched(path, split, found, classes)


def _classes(path: str, found: Found, training: Split, unseen: bool) -> tuple[tuple[str, ...], int]:
    """The classes that are learned, and after them, where `unseen`, the others that any split has,
    with their number. Raises InputError for fewer than two that are learned, and for no text."""
    occurring = np.unique(training.labels).tolist()
    others: list[int] = []
    if unseen:
        every = np.concatenate([split.labels for split in found.splits.values()])
        others = np.setdiff1d(every, occurring).tolist()
    learned = range(len(found.classes)) if found.declared and not unseen else occurring
    classes = tuple(found.classes[i] for i in (*learned, *others))
    for name in classes:
        if any("\ud800" <= char <= "\udfff" for char in name):
            raise InputError(
                f"{harmless(path)}: the class {harmless(name)} has a name that is not UTF-8"
                "\nRename it: a card cannot hold the name."
            )
    if len(occurring) < 2:
        raise InputError(
            f"{harmless(path)}: one class only ({harmless(found.classes[occurring[0]])!r}); "
            "training needs two or more"
        )
    return classes, len(others)


def _alike(classes: Sequence[str]) -> list[str]:
    """A note on names of classes that differ in case alone, where there are any."""
    by_name: dict[str, list[str]] = {}
    for name in classes:
        by_name.setdefault(name.casefold(), []).append(repr(harmless(name)))
    groups = [" and ".join(names) for names in by_name.values() if len(names) > 1]
    more = ", …" if len(groups) > _SHOWN else ""
    shown = ", ".join(groups[:_SHOWN])
    return [f"classes that differ in case alone: {shown}{more}"] if groups else []


def _matched(
    path: str, name: str, found: Found, classes: Sequence[str] | None
) -> tuple[Split, tuple[str, ...]]:
    """A split for a model of those classes, and what its labels count."""
    split = found.splits[name]
    if classes is None:
        return split, found.classes
    if in_models_order(found.classes, classes):
        note = "classes are matched by position: the WordNet ids, sorted, are the model's order"
        return replace(split, notes=(note,)), tuple(classes)
    return _counted(path, name, split, found, classes), tuple(classes)


def _counted(path: str, name: str, split: Split, found: Found, classes: Sequence[str]) -> Split:
    """The split with labels that count `classes` in place of those that were found, by name.

    Raises InputError for a class of its images that is not among them.
    """
    if found.classes == tuple(classes):
        return split
    place = {c: i for i, c in enumerate(classes)}
    unknown = [int(i) for i in np.unique(split.labels) if found.classes[i] not in place]
    if unknown:
        shown = ", ".join(repr(harmless(found.classes[i])) for i in unknown[:3])
        known = ", ".join(repr(harmless(c)) for c in classes[:5])
        shown += ", …" if len(unknown) > 3 else ""
        known += ", …" if len(classes) > 5 else ""
        if name in found.rows:
            unit, numbers = found.rows[name]
            of_unknown = numbers[np.isin(split.labels, unknown)]
            shown += f" ({unit} {of_unknown.min()}{' and others' if len(of_unknown) > 1 else ''})"
        raise InputError(
            f"{harmless(path)} ({name}): unknown classes: {shown}\n"
            f"Known: {known}. Rename them, or leave them out."
        )
    places = np.array([place.get(c, -1) for c in found.classes], np.int64)
    return replace(split, labels=places[split.labels])


def _digits(val: Val) -> DataSet:
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
    note = "the fixed split of the embedded digits"
    return DataSet("digits", classes, splits, (note,), channels=1, mirror=False)
