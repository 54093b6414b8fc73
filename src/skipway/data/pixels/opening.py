"""Images and masks as a data set: classes matched by name, problems refused or left out.

The classes are those that a file beside the training masks names (see `legend`), all of them
whether they occur or not; without one, the values of the training masks. Other splits may have a
file of their own, and are matched by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skipway.data.pixels import layouts
from skipway.data.pixels.checking import KINDS, Looked, check, look_at, usual_colours
from skipway.data.pixels.layouts import Form, Layout
from skipway.data.pixels.legend import VOC, Legend, find_legend, found_in
from skipway.data.pixels.masked import MaskedSplit
from skipway.data.pixels.smoothing import no_classes
from skipway.data.problems import Problem, left_out, refusal
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
from skipway.errors import InputError, harmless
from skipway.segmentations import IGNORED

Array = npt.NDArray[Any]

SHOWN = 3
"""Classes that a note names."""


def form_of_masks(path: str) -> Form | None:
    """What masks lie there, as far as names tell; None for none that are known.

    Raises InputError where two folders could be meant.
    """
    try:
        layout = layouts.find(Path(path))
    except OSError:
        return None
    return layout.form if layout else None


def colours(path: str) -> tuple[tuple[int, int, int], ...] | None:
    """The colour of each class, in their order, where the data names one for all.

    Raises InputError for a file of classes that cannot be used.
    """
    layout = _layout(path)
    training = next((s for s in ("train", "all") if s in layout.places), None)
    legend = _legend(layout, training) if training else None
    return legend.colours if legend else None


def open_pixels(
    path: str,
    val: Val = "auto",
    seed: int = 0,
    on_bad: Literal["error", "skip"] = "error",
    classes: Sequence[str] | None = None,
) -> DataSet:
    """Images and masks for training or evaluation; each split is a `MaskedSplit`.

    path: a folder in a layout of `layouts`, with a file of `legend` for its classes. Every mask is
    read, and the header of every image, before anything is returned: with on_bad ``error`` the
    first problem is raised, with ``skip`` the images at fault are left out, counted in the notes
    and listed in `skipped`. `classes` are a model's, to be matched by name; None takes those of
    the data.

    A mask has the size of its image as it is shown, EXIF rotation applied, and is taken to be
    drawn on that. Splits are made as `open_data` makes them: with no split 80/10/10, with train
    only, or train and test, 10 % of train (at most 5,000 images) becomes val; a number for `val`
    sets the share, ``none`` holds no val out. They are stratified by the rarest class in an image.
    Raises InputError.
    """
    return undivided_pixels(path, val, seed, on_bad, classes).divide()


def undivided_pixels(
    path: str,
    val: Val = "auto",
    seed: int = 0,
    on_bad: Literal["error", "skip"] = "error",
    classes: Sequence[str] | None = None,
) -> Undivided[MaskedSplit]:
    """The same before anything is held out: for a model that is scored on the splits as they are,
    or on all images. Raises InputError."""
    check_val(val)
    found = _gathered(path, classes)
    fatal = [p for p in found.problems if p.kind == "no-images"]
    if found.problems and on_bad == "error":
        raise InputError(refusal(found.problems, ["no-images"]))
    if fatal:
        raise InputError(f"{fatal[0]}\nSo nothing can be learned or judged there.")

    def hold(
        split: MaskedSplit, share: float, at_most: int | None
    ) -> tuple[MaskedSplit, MaskedSplit]:
        images, labels = np.nonzero(split.counts)
        strata = rarest(images, labels, len(split), len(found.classes))
        parts = hold_out(split, share, seed, at_most, strata)
        if not len(parts[1]):
            raise InputError(
                f"{harmless(path)}: too few images to hold any out\n"
                "Add images, or train on all of them with --val none."
            )
        return parts

    def divide() -> DataSet:
        how = "stratified by the rarest class in an image"
        splits, notes = divided(path, found.splits, val, seed, hold, how)
        for name, split in splits.items():
            notes += _lacks(name, split, found.classes)
        skipped = tuple(Skipped(_name(found.root, p), str(p)) for p in found.problems)
        return DataSet(path, found.classes, dict(splits), (*found.notes, *notes), skipped)

    alone = {
        name: replace(split, notes=(*_lacks(name, split, found.classes),))
        for name, split in found.splits.items()
    }
    return Undivided(path, alone, tuple(found.notes), divide)


def _lacks(name: str, split: MaskedSplit, classes: Sequence[str]) -> Iterator[str]:
    """A note on what a split holds nothing of."""
    absent = np.flatnonzero(split.counts.sum(axis=0) == 0)
    if len(absent):
        shown = ", ".join(repr(harmless(classes[k])) for k in absent[:SHOWN])
        more = f" and {len(absent) - SHOWN:,} other classes" if len(absent) > SHOWN else ""
        yield f"{name}: no pixel of {shown}{more}"


def mask_problems(path: str) -> list[Problem]:
    """All that is wrong in masks, in the order of splits and images.

    Raises InputError where there are none that can be read at all.
    """
    return _gathered(path, None).problems


def _name(root: Path, problem: Problem) -> str:
    """Of the image, or of the file, relative to the data's folder."""
    file = Path(problem.file)
    inside = file.is_relative_to(root)
    return problem.image or str(file.relative_to(root) if inside else file)


@dataclass(frozen=True)
class _Content:
    """What a path holds, all that is at fault taken out."""

    root: Path
    splits: dict[str, MaskedSplit]
    classes: tuple[str, ...]
    problems: list[Problem]
    notes: list[str]


def _layout(path: str) -> Layout:
    try:
        layout = layouts.find(Path(path))
    except OSError as error:
        why = error.strerror or harmless(error)
        raise InputError(f"{harmless(error.filename or path)}: {why}") from None
    if layout is None:
        if not Path(path).exists():
            raise InputError(f"{harmless(path)}: no such folder")
        raise InputError(
            f"{harmless(path)}: no masks found\nExpected train/images and train/masks (val and "
            "test beside), images/ and masks/,\ntrain/ and train_labels/, or Pascal VOC's "
            "JPEGImages/ and SegmentationClass/."
        )
    return layout


def _legend(layout: Layout, split: str) -> Legend | None:
    """What is said of the values in a split's masks."""
    found = find_legend(layout.places[split].masks, layout.root)
    return VOC if found is None and layout.form == "VOC masks" else found


def _gathered(path: str, given: Sequence[str] | None) -> _Content:
    layout = _layout(path)
    order: list[str] = [s for s in ("train", "all", "val", "test") if s in layout.places]
    training = next((s for s in ("train", "all") if s in order), None)
    if training is None and given is None:
        raise InputError(f"{harmless(path)}: has masks of {', '.join(order)}, none of train")
    try:
        declared = {split: _legend(layout, split) for split in order}
        looked = {
            s: look_at(layout.root, layouts.pairs_of(layout.root, layout.places[s])) for s in order
        }
    except OSError as error:
        why = error.strerror or harmless(error)
        raise InputError(f"{harmless(error.filename or path)}: {why}") from None
    main = declared[training] if training else None
    if main is None:
        main = _undeclared(looked, training, given)
    classes = main.classes if given is None else tuple(given)
    _check_classes(path, classes, main)
    problems: list[Problem] = []
    notes = [*layout.notes, *_said(main)]
    splits = {}
    usual = usual_colours(looked[name] for name in order if declared[name] is None)
    for name in order:
        one = check(looked[name], declared[name] or main, classes, usual)
        problems += one.problems
        before = "" if name == "all" else f"{name}: "
        notes += [before + note for note in one.notes]
        notes += left_out(f"{before}images", one.images_out, KINDS)
        notes += left_out(f"{before}masks", one.masks_out, KINDS)
        if not len(one.split):
            left = " left" if one.problems else ""
            folder = str(layout.places[name].images)
            problems.append(Problem(folder, None, "", "no-images", f"no image with a mask{left}"))
        splits[name] = one.split
    return _Content(layout.root, splits, classes, problems, notes)


def _undeclared(
    looked: dict[str, Looked], training: str | None, given: Sequence[str] | None
) -> Legend:
    """The legend of masks that no file describes: of those of training, for a model of all."""
    taken = [training] if training and given is None else list(looked)
    values = set().union(*(looked[name].values() for name in taken))
    return found_in(values, given, no_classes(looked[name] for name in taken))


def _check_classes(path: str, classes: Sequence[str], legend: Legend) -> None:
    """Raise InputError where there are too few classes, or too many."""
    if len(classes) > IGNORED:
        raise InputError(f"{harmless(path)}: {len(classes):,} classes; {IGNORED} at most")
    if len(classes) < 2 and legend.left:
        raise InputError(
            f"{harmless(path)}: {len(legend.left):,} values in the masks look like no class, as "
            "after JPEG,\na resize that is not to the nearest, or as the numbers of instances; "
            f"others: {harmless(', '.join(classes)) or 'none'}.\n"
            "Mend the masks, or name the values that are classes in classes.json."
        )
    if len(classes) == 1:
        only = repr(harmless(classes[0]))
        raise InputError(
            f"{harmless(path)}: one class only ({only}, by {legend.source})\n"
            "A segmenter needs two or more: name the background too."
        )


def _said(legend: Legend) -> list[str]:
    """What was decided of values."""
    if not legend.declared:
        values = [entry.name for entry in legend.entries if not entry.ignored]
        shown = ", ".join(values) if len(values) <= 12 else f"{values[0]} to {values[-1]}"
        other = "; 255 is ignored" if any(entry.ignored for entry in legend.entries) else ""
        return [
            f"no file names the classes: they are the values of {legend.source}, {shown}{other}. "
            "Name them in classes.json"
        ]
    ignored = [entry for entry in legend.entries if entry.ignored]
    texts = [f"{harmless(e.name)!r} (value {e.value})" if e.name else str(e.value) for e in ignored]
    notes = [f"ignored, by {legend.source}: {', '.join(texts)}"] if texts else []
    return notes if legend is not VOC else [f"no file names the classes: {legend.source}", *notes]
