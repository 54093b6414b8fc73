"""What the values and colours in masks stand for, as a file beside them says.

``classes.json`` is a list of names (their values are 0, 1, 2, …), an object of names and values, or
of names and colours, or a list of objects with `name` and, where wanted, `index` (or `id`,
`value`), `color` and `ignore`. Around any of them may stand ``{"classes": …, "ignore_index":
255}``, with one value or several. ``classes.txt`` has a name on each line, ``class_dict.csv`` the
columns name, r, g and b, ``labelmap.txt``, which CVAT writes, lines ``name:r,g,b:parts:actions``;
there values count from 0 too. Entries that are called unlabelled, void or the like are ignored
unless they say ``"ignore": false``.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.pixels.masked import UNKNOWN, Coding
from skipway.data.texts import read_json, read_text
from skipway.errors import InputError, harmless
from skipway.segmentations import IGNORED

Colour = tuple[int, int, int]

_UNJUDGED = frozenset(("unlabelled", "unlabeled", "void", "ignore", "ignored", "__ignore__"))
"""Names, in any case, of what is no class."""
_VALUES = ("index", "id", "value")
_HIGHEST = 65535
"""The largest value that a mask of 16 bits has."""
_FORMS = (
    "Expected a list of names, an object of names and values, or a list of objects with\n"
    '"name" and, where wanted, "index", "color" and "ignore".'
)


@dataclass(frozen=True)
class Entry:
    """A class, or what is ignored."""

    name: str
    """Empty for a value that is only ignored."""
    value: int
    colour: Colour | None = None
    ignored: bool = False


@dataclass(frozen=True)
class Legend:
    """What masks hold, in the order of the classes."""

    entries: tuple[Entry, ...]
    source: str
    """The file that says so, or what else does."""
    declared: bool = True
    """Else it is what the masks were found to hold."""
    left: frozenset[int] = frozenset()
    """Where it is not declared: values of the masks that look like no class."""

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.entries if not entry.ignored)

    @property
    def colours(self) -> tuple[Colour, ...] | None:
        """Of each class, None unless all have one."""
        found = [entry.colour for entry in self.entries if not entry.ignored]
        return tuple(c for c in found if c is not None) if all(found) else None

    def name_of(self, codes: Iterable[int], coloured: bool) -> str | None:
        """The first class that one of the values, or of the `packed` colours, stands for."""
        names = {
            packed_colour(e.colour) if coloured and e.colour else e.value: e.name
            for e in self.entries
            if not e.ignored and (e.colour or not coloured)
        }
        return next((names[code] for code in codes if code in names), None)

    def coding(self, classes: Sequence[str]) -> Coding:
        """For classes that are learned, matched by name; what is not among them is UNKNOWN."""
        place = {name: i for i, name in enumerate(classes)}
        table = np.full(max(256, *(e.value + 1 for e in self.entries)), UNKNOWN, np.int16)
        coloured = {}
        for entry in self.entries:
            at = IGNORED if entry.ignored else place.get(entry.name, UNKNOWN)
            table[entry.value] = at
            if entry.colour is not None:
                coloured[packed_colour(entry.colour)] = at
        codes = sorted(coloured)
        places = np.array([coloured[code] for code in codes], np.int16)
        return Coding(table, np.array(codes, np.int32), places)


def found_in(
    values: set[int], classes: Sequence[str] | None, left: frozenset[int] = frozenset()
) -> Legend:
    """The legend where no file has one: each value is a class, called by its number, but for those
    to be `left` out that no model's class is called by, and 255 is ignored unless it and one other
    value are all there is, or a model's classes have it."""
    left = left - {value for value in left if str(value) in (classes or ())}
    values = values - left
    binary = len(values) == 2 and IGNORED in values
    is_class = binary or (classes is not None and str(IGNORED) in classes)
    ignored = () if is_class else (Entry("", IGNORED, ignored=True),)
    learned = sorted(values if is_class else values - {IGNORED})
    entries = tuple(Entry(str(value), value) for value in learned)
    return Legend(entries + ignored, "the training masks", declared=False, left=left)


def find_legend(folder: Path, root: Path) -> Legend | None:
    """The legend of masks in a folder: of the file in it or in the nearest folder around it, up to
    `root`. Raises InputError for two in one folder, and for one that cannot be used."""
    for place in (folder, *folder.parents):
        files = [place / name for name in _READERS if (place / name).is_file()]
        if len(files) > 1:
            names = " and ".join(file.name for file in files[:2])
            raise InputError(f"{harmless(place)}: {names} both name the classes: remove one")
        if files:
            return read_legend(files[0])
        if place == root:
            break
    return None


def read_legend(file: Path) -> Legend:
    """The legend in a file. Raises InputError that names it."""
    try:
        entries = _READERS[file.name](file)
        _check(entries)
    except ValueError as error:
        raise InputError(f"{harmless(file)}: {error}") from None
    return Legend(tuple(entries), file.name)


def _check(entries: Sequence[Entry]) -> None:
    """Raise ValueError for entries that contradict one another, or that no card can hold."""
    names = [entry.name for entry in entries if entry.name]
    for what, found in (
        ("name", [harmless(name) for name in names]),
        ("value", [entry.value for entry in entries]),
        (
            "colour",
            ["#{:02x}{:02x}{:02x}".format(*entry.colour) for entry in entries if entry.colour],
        ),
    ):
        again = [one for i, one in enumerate(found) if one in set(found[:i])]
        if again:
            raise ValueError(f"the {what} {again[0]!r} is given twice")
    for name in names:
        if any("\ud800" <= char <= "\udfff" for char in name):
            raise ValueError(f"the class {harmless(name)} has a name that is not UTF-8")
    if not any(not entry.ignored for entry in entries):
        raise ValueError("names no class")


def packed_colour(colour: Colour) -> int:
    """As `masked.packed` has it."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def _entry(name: object, value: object, colour: object = None, ignored: object = None) -> Entry:
    """Raises ValueError for parts that are none."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{_shown(name)} is no name of a class")
    if type(value) is not int or not 0 <= value <= _HIGHEST:
        raise ValueError(f"the value of {_shown(name)} is {_shown(value)}, not 0 to {_HIGHEST}")
    if ignored is None:
        ignored = name.strip().lower() in _UNJUDGED
    if not isinstance(ignored, bool):
        raise ValueError(f"ignore of {_shown(name)} is {_shown(ignored)}, not true or false")
    return Entry(name.strip(), value, None if colour is None else _colour(name, colour), ignored)


def _colour(name: str, given: object) -> Colour:
    parts = given
    if isinstance(given, str) and len(given) == 7 and given[0] == "#":
        with contextlib.suppress(ValueError):
            parts = list(bytes.fromhex(given[1:]))
    if isinstance(parts, list) and all(type(part) is int and 0 <= part <= 255 for part in parts):
        with contextlib.suppress(ValueError):
            red, green, blue = parts
            return red, green, blue
    shown = f"{_shown(name)} is {_shown(given)}"
    raise ValueError(f"the colour of {shown}, not three numbers from 0 to 255")


def _shown(found: object) -> str:
    return repr(harmless(found)[:60])


def _json(file: Path) -> list[Entry]:
    data = read_json(file, of_pairs=_once)
    ignored: list[int] = []
    if isinstance(data, dict) and isinstance(data.get("classes"), list | dict):
        given = data.get("ignore_index", [])
        ignored = given if isinstance(given, list) else [given]
        data = data["classes"]
        for value in ignored:
            if type(value) is not int or not 0 <= value <= _HIGHEST:
                raise ValueError(f"ignore_index is {_shown(value)}, not 0 to {_HIGHEST}")
    if isinstance(data, dict):
        entries = _of_object(data)
    elif isinstance(data, list):
        entries = _of_list(data)
    else:
        raise ValueError(f"names no classes\n{_FORMS}")
    entries = [replace(e, ignored=True) if e.value in ignored else e for e in entries]
    further = sorted(set(ignored) - {entry.value for entry in entries})
    return entries + [Entry("", value, ignored=True) for value in further]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        again = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise ValueError(f"{_shown(again)} is given twice")
    return found


def _of_object(data: dict[str, Any]) -> list[Entry]:
    """Names and values, names and colours, or values and names."""
    pairs = list(data.items())
    if all(key.isdecimal() and isinstance(name, str) for key, name in pairs):
        pairs = [(name, int(key)) for key, name in pairs]
    if any(isinstance(found, list | str) for _, found in pairs):
        return [_entry(name, i, colour) for i, (name, colour) in enumerate(pairs)]
    return sorted((_entry(name, value) for name, value in pairs), key=lambda entry: entry.value)


def _of_list(data: list[Any]) -> list[Entry]:
    if all(isinstance(name, str) for name in data):
        return [_entry(name, i) for i, name in enumerate(data)]
    entries = []
    key = next((k for k in _VALUES if any(isinstance(e, dict) and k in e for e in data)), None)
    for i, one in enumerate(data):
        if not isinstance(one, dict):
            raise ValueError(f"entry {i + 1} is no object with a name\n{_FORMS}")
        colour = one.get("color", one.get("colour"))
        value = i if key is None else one.get(key)
        entries.append(_entry(one.get("name"), value, colour, one.get("ignore")))
    return sorted(entries, key=lambda entry: entry.value)


def _lines(file: Path) -> list[Entry]:
    lines = read_text(file).rstrip().splitlines()
    return [_entry(line, i) for i, line in enumerate(lines)]


def _csv(file: Path) -> list[Entry]:
    rows = csv.DictReader(read_text(file).splitlines(), skipinitialspace=True, strict=True)
    columns = {name.strip().lower(): name for name in rows.fieldnames or ()}
    if not {"name", "r", "g", "b"} <= columns.keys():
        shown = _shown(", ".join(columns))
        raise ValueError(f"its first line is {shown}, not name,r,g,b")
    try:
        found = [[row[columns[key]] for key in ("name", "r", "g", "b")] for row in rows]
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from None
    return [_entry(name, i, _numbers(rgb)) for i, (name, *rgb) in enumerate(found)]


def _labelmap(file: Path) -> list[Entry]:
    entries: list[Entry] = []
    for line in read_text(file).splitlines():
        if line.strip() and not line.startswith("#"):
            name, *rest = line.rsplit(":", 3)
            rgb = rest[0].split(",") if len(rest) == 3 else []
            entries.append(_entry(name, len(entries), _numbers(rgb)))
    return entries


def _numbers(texts: Iterable[str | None]) -> list[int | str | None]:
    """Texts as whole numbers, where they are such."""
    found = ((text or "").strip() for text in texts)
    return [int(text) if text.isascii() and text.isdecimal() else text for text in found]


_READERS: dict[str, Callable[[Path], list[Entry]]] = {
    "classes.json": _json,
    "classes.txt": _lines,
    "class_names.txt": _lines,  # as labelme's converter calls it
    "class_dict.csv": _csv,
    "labelmap.txt": _labelmap,
}


def _voc() -> Legend:
    names = [
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat",
        "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant",
        "sheep", "sofa", "train", "tvmonitor",
    ]  # fmt: skip
    entries = [Entry(name, i, voc_colour(i)) for i, name in enumerate(names)]
    entries.append(Entry("", IGNORED, voc_colour(IGNORED), ignored=True))
    return Legend(tuple(entries), "Pascal VOC's list of 21")


def voc_colour(value: int) -> Colour:
    """The colour of a value in Pascal VOC's masks: its bits dealt to red, green and blue in turn,
    the lowest to the highest of each (VOC devkit, VOClabelcolormap)."""
    red, green, blue = (
        sum((value >> (3 * j + channel) & 1) << (7 - j) for j in range(8)) for channel in range(3)
    )
    return red, green, blue


VOC = _voc()
"""The 20 classes of Pascal VOC and the background; 255, the border of objects, is ignored."""
