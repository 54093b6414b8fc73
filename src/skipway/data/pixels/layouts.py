"""Where images and their masks lie, told by the names of folders, and which belong together.

``train/images`` and ``train/masks`` with ``val`` and ``test`` beside; ``images/train`` and
``masks/train``; ``images`` and ``masks`` alone; ``train`` and ``train_masks`` (or ``train_labels``,
``trainannot``). Folders of masks may be called masks, labels or annotations. Pascal VOC:
``JPEGImages`` and ``SegmentationClass``, with splits by the lists in ``ImageSets/Segmentation``.

An image and its mask have the same name but for the suffix, in folders of the same name where they
lie deeper. Where no mask is called as an image, one ending that all masks have, such as ``_mask``
or ``_L``, is left aside, and one that all images have.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from skipway.data.forms.folders import is_image, split_name, walk
from skipway.data.objects.voc import NameList, lists
from skipway.data.problems import Problem, count
from skipway.errors import InputError, harmless

Form = Literal["masks", "VOC masks"]

_IMAGES = ("images", "image", "imgs", "img", "jpegimages")
_VOC_MASKS = ("segmentationclasspng", "segmentationclass")
_MASKS = ("masks", "mask", "labels", "label", "annotations", "annotation", *_VOC_MASKS)
_BESIDE = re.compile(r"[ _-]?(masks?|labels?|annot(ation)?s?)")
"""What stands behind a split's name in that of the folder with its masks."""


@dataclass(frozen=True)
class Place:
    """The folders of one split, and the list of its images where there is one."""

    images: Path
    masks: Path
    listed: NameList | None = None


@dataclass(frozen=True)
class Layout:
    """What a path holds: train, val and test as far as they are there, or only ``all``."""

    form: Form
    root: Path
    """The folder that names are relative to."""
    places: dict[str, Place]
    notes: tuple[str, ...] = ()


def find(path: Path) -> Layout | None:
    """The layout of a folder, or of the one folder in it; None where there are no masks. Raises
    InputError where two folders could be meant."""
    if not path.is_dir():
        return None
    inside = _folders(path)
    found = _at(path, inside)
    return _at(only, _folders(only)) if not found and (only := _only(inside)) else found


def _only(folders: Mapping[str, Path]) -> Path | None:
    return next(iter(folders.values())) if len(folders) == 1 else None


def _folders(root: Path) -> dict[str, Path]:
    """The folders in a folder, by name in lower case."""
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith((".", "__")))
    return {entry.name.lower(): entry for entry in entries if entry.is_dir()}


def _at(root: Path, inside: dict[str, Path]) -> Layout | None:
    """The layout of a folder with those folders in it."""
    pair = _pair(inside)
    if pair is not None and pair.masks.name.lower() in _VOC_MASKS:
        listed = lists(root, "Segmentation")
        by_list = {split: Place(pair.images, pair.masks, file) for split, file in listed.items()}
        return Layout("VOC masks", root, by_list or {"all": pair})
    found = [(name, _pair(_folders(folder))) for name, folder in inside.items() if split_name(name)]
    found += [(name, _beside(name, inside)) for name in inside if split_name(name)]
    alone = [name for name, folder in inside.items() if split_name(name) and _has_images(folder)]
    if pair is not None:
        masks = _folders(pair.masks)
        for name, folder in _folders(pair.images).items():
            if split_name(name):
                has = name in masks and _has_images(masks[name])
                found.append((f"images/{name}", Place(folder, masks[name]) if has else None))
                alone.append(f"images/{name}")
    places: dict[str, Place] = {}
    for name, place in found:
        split = str(split_name(name.rpartition("/")[2]))
        if place is not None and split in places:
            raise InputError(
                f"{harmless(root)}: {harmless(place.masks)} and {harmless(places[split].masks)} "
                f"could both be the masks of {split}\nGive the folder of one of them."
            )
        if place is not None:
            places[split] = place
    if places:
        bare = [n for n in alone if split_name(n.rpartition("/")[2]) not in places]
        notes = [f"{harmless(name)} has images and no masks: left out" for name in bare]
        return Layout("masks", root, places, tuple(notes))
    return None if pair is None else Layout("masks", root, {"all": pair})


def _pair(inside: Mapping[str, Path]) -> Place | None:
    """A folder of images and one of masks among folders."""
    images = next((inside[name] for name in _IMAGES if name in inside), None)
    masks = (inside[name] for name in _MASKS if name in inside)
    there = next((folder for folder in masks if _has_images(folder)), None)
    return None if images is None or there is None else Place(images, there)


def _beside(name: str, inside: Mapping[str, Path]) -> Place | None:
    """A split's own folder and that of its masks beside it."""
    for other, folder in inside.items():
        suffix = other.removeprefix(name)
        if suffix != other and _BESIDE.fullmatch(suffix) and _has_images(folder):
            return Place(inside[name], folder)
    return None


def _has_images(folder: Path) -> bool:
    """Whether an image lies under a folder; it is looked at no further than to the first."""
    return any(is_image(name) for _, _, names in os.walk(folder) for name in names)


@dataclass
class Pairs:
    """The images of one split that have a mask, and what is wrong with the others."""

    images: list[str] = field(default_factory=list)
    """Names relative to the layout's root."""
    masks: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    images_out: Counter[str] = field(default_factory=Counter)
    masks_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def pairs_of(root: Path, place: Place) -> Pairs:
    """The images of a split and their masks, by name. Raises InputError for a list that cannot be
    read."""
    found = Pairs()
    images, masks = walk(place.images), walk(place.masks)
    ending, mask_ending = _endings(_stems(images), _stems(masks))
    by_stem, masks_by_stem = _by_stem(images, ending), _by_stem(masks, mask_ending)

    def problem(out: Counter[str], file: Path, kind: str, what: str) -> None:
        out[kind] += 1
        found.problems.append(Problem(str(file), None, "", kind, what))

    wanted = [*by_stem, *(stem for stem in masks_by_stem if stem not in by_stem)]
    if place.listed is not None:
        wanted, found.notes = place.listed.read(by_stem.keys() | masks_by_stem.keys())
    elif place.masks.name.lower() in _VOC_MASKS:  # most of its images are for detection
        wanted = list(masks_by_stem)
        bare = len(by_stem.keys() - masks_by_stem.keys())
        found.notes += [f"{count(bare, 'image')} without a mask left out"] if bare else []
    for stem in dict.fromkeys(wanted):
        here, drawn = by_stem.get(stem, []), masks_by_stem.get(stem, [])
        if not here:
            list_of_it = place.listed.file if place.listed else place.masks
            file = place.masks / drawn[0] if drawn else list_of_it
            named = f"no image {'of this name' if drawn else harmless(stem)}"
            what = f"{named} in {harmless(place.images)}"
            problem(found.masks_out, file, "missing-image", what)
            continue
        file = place.images / here[0]
        if not drawn:
            what = f"no mask of this name in {harmless(place.masks)}"
            problem(found.images_out, file, "missing-mask", what)
        elif len(drawn) > 1:
            what = f"has two masks, {' and '.join(map(harmless, drawn[:2]))}"
            problem(found.images_out, file, "mask-twice", what)
        else:
            found.images.append(os.path.relpath(file, root))
            found.masks.append(os.path.relpath(place.masks / drawn[0], root))
        for twin in here[1:]:
            what = f"has the name of {harmless(here[0])}: one mask cannot be that of both"
            problem(found.images_out, place.images / twin, "image-twice", what)
    for stem, n in Counter(wanted).items():
        if n > 1:
            assert place.listed is not None
            what = f"lists {harmless(stem)} {n} times"
            problem(found.images_out, place.listed.file, "image-twice", what)
    return found


def _stems(names: list[str]) -> list[str]:
    return [os.path.splitext(name)[0] for name in names]


def _by_stem(names: list[str], ending: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for stem, name in zip(_stems(names), names, strict=True):
        found.setdefault(stem.removesuffix(ending), []).append(name)
    return found


def _endings(images: list[str], masks: list[str]) -> tuple[str, str]:
    """What all images, and all masks, have behind the name that is common to both."""
    best, most = ("", ""), len(set(images) & set(masks))
    if most:
        return best
    for ending in _tails(images):
        stems = {stem.removesuffix(ending) for stem in images}
        for mask_ending in _tails(masks):
            n = len(stems & {stem.removesuffix(mask_ending) for stem in masks})
            if n > most:
                best, most = (ending, mask_ending), n
    return best


def _tails(stems: list[str]) -> Iterator[str]:
    """The endings that all have, from a separator on, beginning with none and the shortest."""
    yield ""
    first = os.path.basename(stems[0]) if stems else ""
    for i in range(len(first) - 1, 0, -1):
        if first[i] in "_-. " and all(stem.endswith(first[i:]) for stem in stems):
            yield first[i:]
