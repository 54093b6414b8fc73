"""YOLO: a text file of the same name for each image, and a ``data.yaml`` with classes and splits.

``images/…`` has its labels in ``labels/…``; other images have them beside them. A line is a class
and a box (``0 0.5 0.5 0.2 0.1``: centre x, y, width, height) or a class and a polygon (``0 x1 y1 x2
y2 x3 y3 …``), all in shares of the image's width and height. Where the yaml has a ``kpt_shape``, a
box and keypoints, which are left out. An image without a text file holds no object.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.data.forms.folders import is_image, walk
from skipway.data.objects.checking import Listing
from skipway.data.objects.collecting import Collected
from skipway.data.problems import Fault, Problem
from skipway.errors import InputError, harmless, missing_part

Array = npt.NDArray[Any]

SPLITS = ("train", "val", "test")
_NO_LABELS = ("classes.txt", "notes.txt")
"""What tools put among the labels."""
_NAMES = re.compile(rb"""^["']?names["']?\s*:""", re.MULTILINE)
_IMAGES = re.compile(rb"""^["']?(train|val|valid|test)["']?\s*:""", re.MULTILINE)


def find_file(root: Path) -> Path | None:
    """The yaml in a folder that describes it, None where there is none."""
    files = [f for f in sorted(root.iterdir()) if f.suffix.lower() in (".yaml", ".yml")]
    named = [f for f in files if f.stem.lower() in ("data", "dataset")]
    if described := next(filter(_is_described, [*named, *files]), None):
        return described
    laid = any(root.glob("labels")) or any(root.glob("*/labels"))  # else anything may be called so
    return named[0] if named and laid else None


def _is_described(file: Path) -> bool:
    """Whether a yaml has the keys of names and of a split."""
    start = file.read_bytes()[: 1 << 20]
    return bool(_NAMES.search(start) and _IMAGES.search(start))


def read(path: Path, masks: bool) -> dict[str, Listing]:
    """The listings of the splits. Raises InputError where the yaml cannot be used."""
    data = _parsed(path)
    numbers, classes = _classes(path, data)
    keypoints = _keypoints(path, data)
    found: dict[str, Listing] = {}
    taken: dict[tuple[str, ...], str] = {}
    for split in SPLITS:
        entry = data.get(split) or (data.get("valid") if split == "val" else None)
        if not entry:
            continue
        entries = entry if isinstance(entry, list) else [entry]
        places = [_place(path, data, e) for e in entries]
        absent = [e for e, place in zip(entries, places, strict=True) if place is None]
        if absent and found and split == "test":  # exporters name it, there or not
            note = f"the yaml's test is not there: {_text(absent[0])}"
            next(iter(found.values())).notes.append(note)
            continue
        if absent:
            raise InputError(
                f"{harmless(path)}: {split}: no such folder or file: {_text(absent[0])}"
            )
        images = [name for place in places if place for name in _images(path, place)]
        listing = _listing(path, images, numbers, classes, masks, keypoints)
        earlier = taken.setdefault(tuple(images), split)
        if earlier != split:
            listing.notes.append(f"warning: {split} and {earlier} are the same images")
        found[split] = listing
    if found:
        listing = next(iter(found.values()))
        listing.stray += _orphans({f for each in found.values() for f in each.files})
        return found
    raise InputError(f"{harmless(path)}: names no images: give train, and val and test if any")


def _parsed(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise missing_part("YOLO's data.yaml", "detect", error) from None
    try:
        # Every scalar as text: a class may be called no, or 1.
        data = yaml.load(path.read_text("utf-8-sig"), Loader=yaml.BaseLoader)
    except UnicodeDecodeError as error:
        raise InputError(f"{harmless(path)}: not UTF-8 at byte {error.start:,}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(
            f"{harmless(path)}{where}: damaged yaml: {harmless(error.problem)}"
        ) from None
    except (yaml.YAMLError, RecursionError) as error:
        first = harmless(error).split("\\n")[0][:100]
        raise InputError(f"{harmless(path)}: damaged yaml: {first}") from None
    if not isinstance(data, dict) or "names" not in data:
        raise InputError(f"{harmless(path)}: no YOLO yaml: it has no names of classes")
    return data


def _classes(path: Path, data: dict[str, Any]) -> tuple[dict[int, int], list[str]]:
    """Position in the classes by the number that labels have, and the classes."""
    names = data["names"]
    by_number: dict[int, Any] = dict(enumerate(names)) if isinstance(names, list) else {}
    try:
        if isinstance(names, dict):
            by_number = dict(sorted((int(key), name) for key, name in names.items()))
    except ValueError:
        raise InputError(f"{harmless(path)}: names: its keys are not whole numbers") from None
    except TypeError:  # a number twice, and names that are no text
        by_number = {}
    if not by_number or not all(isinstance(n, str) and n.strip() for n in by_number.values()):
        raise InputError(f"{harmless(path)}: names is no list of names, nor one for each number")
    count = data.get("nc")
    if count is not None and count != str(len(by_number)):
        raise InputError(f"{harmless(path)}: nc is {_text(count)}, and names has {len(by_number)}")
    classes = list(dict.fromkeys(name.strip() for name in by_number.values()))
    place = {name: i for i, name in enumerate(classes)}
    return {number: place[name.strip()] for number, name in by_number.items()}, classes


def _keypoints(path: Path, data: dict[str, Any]) -> int:
    """Numbers of the keypoints behind each box, 0 where there are none: ``kpt_shape`` says how many
    keypoints, and how many numbers each has."""
    shape = data.get("kpt_shape")
    if not shape:
        return 0
    texts = shape if isinstance(shape, list) else []
    sides = [int(t) for t in texts if isinstance(t, str) and t.isascii() and t.isdecimal()]
    if len(texts) != 2 or len(sides) != 2:
        raise InputError(f"{harmless(path)}: kpt_shape is {_text(shape)}, not as [17, 3]")
    return sides[0] * sides[1]


def _place(path: Path, data: dict[str, Any], entry: object) -> Path | None:
    """The folder or list of a split, None where it is not there."""
    if not isinstance(entry, str) or "\0" in entry:
        return None
    base = data.get("path")
    bases = [path.parent / base] if isinstance(base, str) and "\0" not in base else []
    tried = [b / entry for b in (*bases, path.parent)]
    if entry.startswith("../"):  # as exporters write what lies beside the yaml
        tried.append(path.parent / entry[3:])
    return next((place for place in tried if place.exists()), None)


def _images(path: Path, place: Path) -> list[str]:
    """The images of a folder or of a list in a file, by name relative to the yaml's folder."""
    if place.is_dir():
        found = [place / name for name in walk(place)]
    else:
        try:
            lines = place.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise InputError(f"{harmless(place)}: not a list of images in UTF-8") from None
        found = [place.parent / line.strip() for line in lines if line.strip()]
    return [os.path.relpath(file, path.parent) for file in found]


def _swapped(folder: str, part: str, other: str) -> str | None:
    """A folder's path with its last `part` in place of `other`; None where it has none."""
    parts = folder.split(os.sep)
    if part not in parts:
        return None
    parts[len(parts) - 1 - parts[::-1].index(part)] = other
    return os.sep.join(parts)


def _label_file(image: str) -> str:
    folder, name = os.path.split(image)
    beside = _swapped(folder, "images", "labels")
    return os.path.join(folder if beside is None else beside, os.path.splitext(name)[0] + ".txt")


def _listing(
    path: Path,
    images: list[str],
    numbers: dict[int, int],
    classes: list[str],
    masks: bool,
    keypoints: int,
) -> Listing:
    root = path.parent
    found = Collected(masks)
    posed = 0
    for name in images:
        label = root / _label_file(name)
        try:
            text = label.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            fault = Fault("damaged", f"not UTF-8 at byte {error.start:,}")
            found.image(name, label, fault=fault)
            continue
        except (FileNotFoundError, ValueError):  # a null character in the name of the image
            text = ""
        found.image(name, label)
        for number, line in enumerate(text.splitlines(), 1):
            if tokens := line.split():
                has_keypoints = keypoints > 0 and len(tokens) == 5 + keypoints
                posed += has_keypoints
                tokens = tokens[:5] if has_keypoints else tokens
                _add(found, number, tokens, numbers, masks, keypoints)
    listing = found.listing(path, root, classes, _corners, shares=True)
    if posed:
        listing.notes.append(f"keypoints are left out, their boxes are kept ({posed:,})")
    return listing


def _add(
    found: Collected,
    number: int,
    tokens: list[str],
    numbers: dict[int, int],
    masks: bool,
    keypoints: int,
) -> None:
    label, fault = -1, None
    try:
        value = float(tokens[0])
        label = numbers.get(int(value), -1) if value.is_integer() else -1
    except ValueError:
        pass
    if label < 0:
        what = f"class {harmless(tokens[0])[:20]!r} is not among the names of the yaml"
        fault = Fault("unknown-category", what)
    polygon = len(tokens) > 6 and not keypoints
    try:
        values = [float(token) for token in tokens[1:]]
    except ValueError:
        shown = harmless(" ".join(tokens))[:60]
        values, fault = [], Fault("no-box", f"a line with something else than numbers: {shown}")
    written, shape = None, None
    if len(values) == 4:
        written = values
    elif polygon and len(values) % 2 == 0:
        x, y = values[::2], values[1::2]
        low, high = (min(x), min(y)), (max(x), max(y))
        written = [
            *((a + b) / 2 for a, b in zip(low, high, strict=True)),
            high[0] - low[0],
            high[1] - low[1],
        ]
        shape = [values] if masks else None
    elif values:
        kind = "broken-mask" if polygon else "no-box"
        other = f"with its keypoints {4 + keypoints}" if keypoints else ""
        other = other or "a polygon an even count from 6 on"
        what = f"{len(values)} numbers: a box has 4, {other}"
        fault = fault or Fault(kind, what)
    elif fault is None:
        fault = Fault("no-box", "a class without a box")
    found.add(number, label, written, shape=shape, fault=fault)


def _orphans(known: set[str]) -> list[Problem]:
    """Text files beside those of the images that belong to no image."""
    problems = []
    for folder in sorted({os.path.dirname(file) for file in known}):
        images = _swapped(folder, "labels", "images")
        if images is None or not os.path.isdir(folder):
            continue
        listed = os.listdir(images) if os.path.isdir(images) else []
        stems = {os.path.splitext(name)[0] for name in listed if is_image(name)}
        for name in sorted(os.listdir(folder)):
            stem, suffix = os.path.splitext(name)
            file = os.path.join(folder, name)
            if suffix == ".txt" and name not in _NO_LABELS and not (stem in stems or file in known):
                what = "labels without an image of this name"
                problems.append(Problem(file, None, "", "missing-image", what))
    return problems


def _corners(written: Array, size: Array) -> Array:
    """From shares: centre, width and height."""
    sides = size[:, ::-1]
    centre, half = written[:, :2], written[:, 2:] / 2
    return np.concatenate([(centre - half) * sides, (centre + half) * sides], axis=1)


def _text(found: object) -> str:
    return repr(harmless(found)[:60])
