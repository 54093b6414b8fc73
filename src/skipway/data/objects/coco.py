"""COCO json: one file for each split, or one for all.

``train.json``, ``val.json``, ``test.json`` beside folders of those names; ``train/
_annotations.coco.json`` among the images, as Roboflow writes it; ``annotations/
instances_train2017.json`` beside ``train2017/``, as COCO itself; or a single json, its images
beside it or in a folder ``images``. Ids are names: they may have holes, begin at 0, or be text.

Annotations are turned into flat arrays while the file is parsed, so that a million of them never
lie in memory as Python's objects.
"""

from __future__ import annotations

import contextlib
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from skipway.data.forms.folders import split_name
from skipway.data.objects.checking import Listing, find_repeated_ids
from skipway.data.objects.shapes import ShapeList
from skipway.data.problems import Fault
from skipway.data.texts import read_json
from skipway.errors import InputError, harmless

Array = npt.NDArray[Any]
Id = int | str

ROBOFLOW = "_annotations.coco.json"
_FILE = re.compile(
    r"(?:instances_|annotations_)?([a-z]+?)[_-]?\d*(?:_annotations|_instances|_coco)?\.json",
    re.IGNORECASE,
)
"""Files of a split: its name is the group."""
_NUMBERS = frozenset((int, float))
_TRIED = 50
"""Images that are looked for in each folder that could hold them."""


def find_files(root: Path) -> dict[str, Path]:
    """The files of annotations in a folder by split, or that of ``all``; none where it has none.

    Raises InputError where two could be meant.
    """
    found: dict[str, list[Path]] = {}
    for file in _entries(root, root / "annotations"):
        match = _FILE.fullmatch(file.name)
        split = split_name(match[1]) if match else None
        if split and file.is_file():
            found.setdefault(split, []).append(file)
    if not found:
        for folder in _entries(root):
            split = split_name(folder.name)
            if split and (folder / ROBOFLOW).is_file():
                found.setdefault(split, []).append(folder / ROBOFLOW)
    if not found:
        files = [f for f in _entries(root, root / "annotations") if f.suffix.lower() == ".json"]
        found = {"all": [f for f in files if _has_keys(f)]}
    for split, files in found.items():
        if len(files) > 1:
            names = " and ".join(harmless(f) for f in files[:2])
            if split == "all":
                raise InputError(
                    f"{names} could both be the annotations\n"
                    "Give the one that is meant, or call them train.json and val.json."
                )
            raise InputError(f"{names} could both be the annotations of {split}: leave one there")
    return {split: files[0] for split, files in found.items() if files}


def _entries(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        if folder.is_dir():
            yield from sorted(folder.iterdir())


_KEYS = (b'"annotations"', b'"images"', b'"categories"')
_WITHIN = (b'"image_id"', b'"file_name"', b'"supercategory"')
"""What stands below each of them."""


def _has_keys(file: Path) -> bool:
    """Whether a file has one key of the form near its beginning or its end, and another, or what
    stands below it: one alone may be of anything."""
    with file.open("rb") as opened:
        ends = opened.read(1 << 16)
        opened.seek(max(0, file.stat().st_size - (1 << 16)))
        ends += opened.read()
    parts = sum(key in ends or within in ends for key, within in zip(_KEYS, _WITHIN, strict=True))
    return parts > 1 and any(key in ends for key in _KEYS)


class _Image(NamedTuple):
    id: object
    name: object
    width: object
    height: object


class _Row(int):
    """Stands in the parsed file for an annotation that was kept in the arrays."""

    __slots__ = ()


class _Annotations:
    """Annotations in flat arrays, in the order in which they are parsed."""

    def __init__(self, masks: bool) -> None:
        self.images: list[object] = []
        self.categories: list[object] = []
        self.ids, self.unnamed = array("q"), array("q")
        self.boxes, self.areas, self.crowd = array("d"), array("d"), array("b")
        self.shapes = ShapeList() if masks else None
        self.faults: dict[int, Fault] = {}

    def hook(self, found: dict[str, Any]) -> Any:
        """What the parser puts in the place of an object."""
        if "image_id" in found:
            return self.add(found)
        if "file_name" in found:
            keys = ("id", "file_name", "width", "height")
            return _Image(*(found.get(key) for key in keys))
        return found

    def add(self, found: dict[str, Any]) -> _Row:
        row = len(self.ids)
        self.images.append(found.get("image_id"))
        self.categories.append(found.get("category_id"))
        fault = self._id(row, found.get("id"))
        crowd = found.get("iscrowd", 0)
        self.crowd.append(crowd in (1, True))
        if crowd not in (0, 1):
            fault = fault or Fault("bad-annotation", f"iscrowd is {_shown(crowd)}, not 0 or 1")
        fault = self._box(found.get("bbox")) or fault
        self.areas.append(_area(found.get("area")))
        if self.shapes is not None and (wrong := self.shapes.add(found.get("segmentation"))):
            kind = "no-mask" if wrong == "no mask" else "broken-mask"
            fault = fault or Fault(kind, wrong)
        if fault:
            self.faults[row] = fault
        return _Row(row)

    def _id(self, row: int, found: object) -> Fault | None:
        if type(found) is int and -(2**63) <= found < 2**63:
            self.ids.append(found)
            return None
        self.ids.append(row + 1)
        if found is None:
            self.unnamed.append(row)
            return None
        return Fault("bad-annotation", f"its id is {_shown(found)}; this is its row, from 1")

    def _box(self, box: object) -> Fault | None:
        if type(box) is list and len(box) == 4 and _NUMBERS.issuperset(map(type, box)):
            try:
                self.boxes.fromlist(box)
                return None
            except OverflowError:
                pass
        self.boxes.extend((0.0, 0.0, 0.0, 0.0))
        if box is None:
            return Fault("no-box", "no bbox")
        return Fault("no-box", f"bbox is {_shown(box)}, not four numbers x, y, width, height")


class Categories(NamedTuple):
    """Classes of one file, in the order of their ids."""

    names: tuple[str, ...]
    parents: tuple[str | None, ...]
    """The supercategory of each."""


def read(path: Path, split: str, root: Path, masks: bool) -> tuple[Listing, Categories]:
    """What one file says; `root` is the folder of the whole data. Raises InputError where the file
    is no COCO json."""
    found = _Annotations(masks)
    data = _parsed(path, found)
    places, categories = _categories(path, data["categories"])
    names, said, image_faults, by_id = _images(data["images"])
    rows = _rows(found, data["annotations"])
    image = np.array([by_id.get(_key(i), -1) for i in found.images], np.int64)
    label = np.array([places.get(_key(c), -1) for c in found.categories], np.int64)
    faults = found.faults
    if 0 < len(found.unnamed) < len(found.ids):
        for row in found.unnamed:
            faults.setdefault(row, Fault("bad-annotation", "no id; this is its row, from 1"))
    for row in np.flatnonzero(image < 0).tolist():
        what = f"image_id {_shown(found.images[row])} is not among the images"
        faults.setdefault(row, Fault("unknown-image", what))
    for row in np.flatnonzero(label < 0).tolist():
        what = f"category_id {_shown(found.categories[row])} is not among the categories"
        faults.setdefault(row, Fault("unknown-category", what))
    shapes = None
    if found.shapes is not None:
        shapes, broken = found.shapes.finish()
        for row in np.flatnonzero(broken).tolist():
            faults.setdefault(row, Fault("broken-mask", "broken RLE: its counts do not add up"))
    place = np.full(len(found.ids), -1)
    place[rows] = np.arange(len(rows))  # objects within objects are in no list
    listing = Listing(
        path=str(path),
        root=_image_folder(path, split, root, names),
        names=names,
        files=(str(path),),
        said=said,
        image=image[rows],
        labels=label[rows],
        ids=np.array(found.ids, np.int64)[rows],
        written=np.array(found.boxes, np.float64).reshape(-1, 4)[rows],
        corners=_corners,
        crowd=np.array(found.crowd, bool)[rows],
        areas=np.array(found.areas, np.float64)[rows],
        shapes=None if shapes is None else shapes.take(rows),
        categories=categories.names,
        image_faults=image_faults,
        faults={int(place[row]): fault for row, fault in faults.items() if place[row] >= 0},
    )
    find_repeated_ids(listing)
    return listing, categories


def _corners(written: Array, size: Array) -> Array:
    """From x, y, width, height."""
    return np.concatenate([written[:, :2], written[:, :2] + written[:, 2:]], axis=1)


def _parsed(path: Path, found: _Annotations) -> dict[str, list[Any]]:
    data = read_json(path, of_object=found.hook)
    keys = ("images", "annotations", "categories")
    if not isinstance(data, dict):
        raise InputError(
            f"{harmless(path)}: no COCO annotations: its top is no object\n"
            f"Expected one with the lists {', '.join(keys)}."
        )
    for key in keys:
        if not isinstance(data.get(key), list):
            raise InputError(f"{harmless(path)}: no COCO annotations: it has no list {key!r}")
    return data


def _categories(path: Path, entries: list[Any]) -> tuple[dict[Id | None, int], Categories]:
    """Position in the classes by id, and the classes. One name under two ids is one class."""
    by_id: dict[Id, tuple[str, str | None]] = {}
    for number, entry in enumerate(entries, 1):
        name = entry.get("name") if isinstance(entry, dict) else None
        key = _key(entry.get("id")) if isinstance(entry, dict) else None
        where = f"{harmless(path)}: categories, entry {number}"
        if key is None or not isinstance(name, str) or not name.strip():
            raise InputError(f"{where}: needs an id and a name; it is {_shown(entry)}")
        if key in by_id and by_id[key][0] != name.strip():
            raise InputError(
                f"{where}: the id {_shown(key)} is that of {_shown(by_id[key][0])} and of "
                f"{_shown(name)}"
            )
        parent = entry.get("supercategory")
        by_id[key] = name.strip(), parent if isinstance(parent, str) else None
    order = sorted(by_id, key=lambda key: (isinstance(key, str), key))
    classes = dict.fromkeys(by_id[key][0] for key in order)
    parents = {by_id[key][0]: by_id[key][1] for key in order}
    position = {name: i for i, name in enumerate(classes)}
    places: dict[Id | None, int] = {key: position[by_id[key][0]] for key in order}
    return places, Categories(tuple(classes), tuple(parents[name] for name in classes))


def _images(
    entries: list[Any],
) -> tuple[list[str], Array, dict[int, Fault], dict[Id | None, int]]:
    """Names, sizes as said, faults by position, and positions by id."""
    names: list[str] = []
    said = np.zeros((len(entries), 2), np.int64)
    faults: dict[int, Fault] = {}
    by_id: dict[Id | None, int] = {}
    for i, entry in enumerate(entries):
        named = isinstance(entry, _Image) and isinstance(entry.name, str) and entry.name
        key = _key(entry.id) if isinstance(entry, _Image) else None
        names.append(str(entry.name) if named else "")
        if not named or key is None:
            lacks = "a file_name" if not named else "an id that is a whole number or text"
            faults[i] = Fault("bad-image", f"images, entry {i + 1:,}: without {lacks}")
            continue
        first = by_id.setdefault(key, i)
        if first != i:
            what = f"image id {_shown(key)} is that of {harmless(names[first])} too"
            faults[i] = Fault("duplicate-image-id", what)
            if names[i] != names[first]:  # whose are the annotations?
                what = f"image id {_shown(key)} is that of {harmless(names[i])} too"
                faults.setdefault(first, Fault("duplicate-image-id", what))
        height, width = _whole(entry.height), _whole(entry.width)
        if height is None or width is None:
            what = f"its size is {_shown(entry.width)} x {_shown(entry.height)}"
            faults.setdefault(i, Fault("wrong-size", what))
        else:
            said[i] = height, width
    return names, said, faults, by_id


def _rows(found: _Annotations, entries: list[Any]) -> Array:
    """The rows of the list of annotations, in its order: int64 [M]."""
    rows = np.zeros(len(entries), np.int64)
    for i, entry in enumerate(entries):
        if type(entry) is _Row:
            rows[i] = entry
        elif isinstance(entry, dict):
            rows[i] = found.add(entry)
        else:
            rows[i] = row = found.add({})
            found.faults[row] = Fault("bad-annotation", "this entry is no object; its row, from 1")
            found.ids[row] = i + 1
    return rows


def _key(found: object) -> Id | None:
    """An id as it is compared: a whole number or text; None for anything else."""
    if type(found) is int or isinstance(found, str):
        return found
    return int(found) if isinstance(found, float) and found.is_integer() else None


def _area(found: object) -> float:
    """What is given as an area, NaN where it is no number."""
    if isinstance(found, (int, float)) and not isinstance(found, bool):
        with contextlib.suppress(OverflowError):
            return float(found)
    return float("nan")


def _whole(found: object) -> int | None:
    """A side of an image, 0 where none is given; None for what is no side."""
    if found is None:
        return 0
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    return found if type(found) is int and 0 <= found < 1 << 31 else None


def _shown(found: object) -> str:
    """A value of the file in an error: no more of it than can be read."""
    try:
        text = repr(found)
    except ValueError:  # a whole number of thousands of digits
        text = "a huge number"
    return harmless(text if len(text) <= 60 else text[:57] + "…")


def _image_folder(path: Path, split: str, root: Path, names: list[str]) -> Path:
    """The folder in which most of some images are, the first of equals."""
    stems = dict.fromkeys(
        (path.stem, split, path.stem.removeprefix("instances_").removeprefix("annotations_"))
    )
    beside = [f for f in _entries(root) if f.is_dir() and split_name(f.name) == split]
    places = [path.parent] if path.name == ROBOFLOW else []
    for base in dict.fromkeys((root, path.parent)):
        places += [base / stem for stem in stems]
        places += [base / "images" / stem for stem in stems]
    places += [*beside, root / "images", path.parent / "images", root, path.parent]
    places = [place for place in dict.fromkeys(places) if place.is_dir()]
    chosen = np.unique(np.linspace(0, max(len(names) - 1, 0), _TRIED).astype(int))
    tried = [names[i] for i in chosen if i < len(names) and names[i]]

    def there(place: Path) -> int:
        return sum(os.path.isfile(os.path.join(place, name)) for name in tried)

    return max(places, key=there)
