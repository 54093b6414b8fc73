"""Pascal VOC: an xml for each image.

``Annotations/*.xml`` beside ``JPEGImages/`` (or ``images/``), and the splits in ``ImageSets/Main/
train.txt``, ``val.txt`` and ``test.txt`` where they are there; or ``train/``, ``val/`` and
``test/`` with each xml beside its image; or one folder of both.

Corners are taken as they stand, which is how today's tools write them. In the sets of the VOC
challenge, told by ``<database>``, they count pixels from 1 and the last belongs to the box: there 1
is taken from xmin and ymin (VOC devkit, section 8). Difficult objects count as crowd.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from skipway.data.forms.folders import is_image, split_name, walk
from skipway.data.objects.checking import Listing
from skipway.data.objects.collecting import Collected
from skipway.data.problems import Fault
from skipway.data.texts import read_text
from skipway.errors import InputError, harmless

_CHALLENGE = re.compile(r"The VOC\d{4} Database")
_MEMBER = re.compile(r"\s+-?[01]$")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def find_files(root: Path) -> dict[str, Path]:
    """The folders of xml files by split, or the one of ``all``; none where there are none."""
    for name in ("Annotations", "annotations"):
        if any((root / name).glob("*.xml")):
            return {"all": root / name}
    folders = [f for f in sorted(root.iterdir()) if f.is_dir() and split_name(f.name)]
    found = {str(split_name(f.name)): f for f in folders if any(f.glob("*.xml"))}
    return found or ({"all": root} if _is_flat(root) else {})


def _is_flat(root: Path) -> bool:
    """Whether a folder has an xml beside an image of that name."""
    files = [Path(entry.name) for entry in root.iterdir()]
    images = {file.stem for file in files if is_image(file.name)}
    return any(file.suffix == ".xml" and file.stem in images for file in files)


def read(root: Path, folders: dict[str, Path], masks: bool) -> dict[str, Listing]:
    """The listings of the splits, or of ``all``. Raises InputError for masks, which boxes in xml
    have none of."""
    if masks:
        raise InputError(
            f"{harmless(root)}: Pascal VOC's xml holds boxes and no masks\n"
            "Instance masks are read from COCO json and from YOLO's polygons."
        )
    if "all" not in folders:
        found = {split: sorted(f.glob("*.xml")) for split, f in folders.items()}
        return {split: _listing(folders[split], folders[split], f) for split, f in found.items()}
    annotations = folders["all"]
    places = (root / name for name in ("JPEGImages", "images", "Images"))
    flat = annotations == root
    images = root if flat else next((place for place in places if place.is_dir()), root)
    sets = lists(root, "Main")
    if not sets:
        return {"all": _listing(annotations, images, sorted(annotations.glob("*.xml")))}
    known = {file.stem for file in annotations.glob("*.xml")}
    listings = {}
    for split, one in sets.items():
        names, notes = one.read(known)
        files = [annotations / f"{name}.xml" for name in names]
        listings[split] = _listing(one.file, images, files)
        listings[split].notes += notes
    return listings


@dataclass(frozen=True)
class NameList:
    """A list of a split's names."""

    file: Path
    without: Path | None = None
    """The list of val, where `file` is that of train and val together."""

    def read(self, known: Container[str]) -> tuple[list[str], list[str]]:
        """The names in it, those of `without` left out, and notes on that. known: names of the
        files there are. Raises InputError for a list that cannot be read."""
        names = _names(self.file, known)
        if self.without is None:
            return names, []
        others = set(_names(self.without, known))
        kept = [name for name in names if name not in others]
        if names and not kept:
            raise InputError(
                f"{harmless(self.file)}: no name that {self.without.name} has not\n"
                "It is taken for train, as there is no train.txt: write one."
            )
        out = len(names) - len(kept)
        text = f"{self.file.name} is train, as there is no train.txt"
        return kept, [f"{text}, without the names in {self.without.name} ({out:,})"] if out else []


def lists(root: Path, task: str) -> dict[str, NameList]:
    """The lists of the splits in ``ImageSets/TASK``; trainval without val is train where there is
    no train."""
    folder = root / "ImageSets" / task
    names = {"train": ("train", "trainval"), "val": ("val",), "test": ("test",)}
    found = {}
    for split, stems in names.items():
        files = [folder / f"{stem}.txt" for stem in stems]
        there = [file for file in files if file.is_file()]
        if there:
            found[split] = NameList(there[0])
    if "train" in found and found["train"].file.stem == "trainval" and "val" in found:
        found["train"] = NameList(found["train"].file, found["val"].file)
    return found


def _names(file: Path, known: Container[str]) -> list[str]:
    lines = map(str.strip, read_text(file).splitlines())
    # The lists of one class have 1, 0 or -1 behind each name; other names may end so.
    return [line if line in known else _MEMBER.sub("", line) for line in lines if line]


def _listing(path: Path, images: Path, files: list[Path]) -> Listing:
    found = Collected(masks=False)
    there = {name.casefold(): name for name in walk(images)}
    by_stem = {os.path.splitext(name)[0].casefold(): name for name in there.values()}
    classes: dict[str, int] = {}
    challenge = difficult = 0
    for file in files:
        try:
            top = ET.fromstring(file.read_bytes())
        except FileNotFoundError:
            absent = Fault("damaged", "there is no such xml")
            found.image(by_stem.get(file.stem.casefold(), file.stem), file, fault=absent)
            continue
        except (ET.ParseError, ValueError, LookupError) as error:
            damaged = Fault("damaged", f"damaged xml: {harmless(error)[:100]}")
            found.image(by_stem.get(file.stem.casefold(), file.stem), file, fault=damaged)
            continue
        named = (top.findtext("filename") or "").strip()
        # The name inside stays behind when files are renamed: it comes second.
        name = by_stem.get(file.stem.casefold()) or there.get(named.casefold()) or named
        sides = [_side(top.findtext(f"size/{key}")) for key in ("height", "width")]
        fault = None
        if not name:
            fault = Fault("missing-image", f"no image {harmless(file.stem)} in {harmless(images)}")
        elif None in sides:
            fault = Fault("wrong-size", "its size is no pair of whole numbers")
        height, width = (side or 0 for side in sides)
        found.image(name, file, height, width, fault)
        first = float(bool(_CHALLENGE.fullmatch((top.findtext("source/database") or "").strip())))
        challenge += bool(first)
        for number, entry in enumerate(top.findall("object"), 1):
            label = " ".join((entry.findtext("name") or "").split())
            is_difficult = (entry.findtext("difficult") or "").strip() == "1"
            difficult += is_difficult
            corners, wrong = _corners(entry, first)
            if not label:
                wrong = wrong or Fault("unknown-category", "an object without a name")
            place = classes.setdefault(label, len(classes)) if label else -1
            found.add(number, place, corners, is_difficult, fault=wrong)
    unnamed = len(there) - len(set(found.names) & set(there.values()))
    listing = found.listing(path, images, tuple(classes), lambda written, size: written)
    if challenge:
        listing.notes.append("corners count from 1, as in the VOC challenge: moved by a pixel")
    if unnamed and path.is_dir():
        listing.notes.append(f"images without an xml are left out: {unnamed:,}")
    if difficult:
        listing.notes.append(
            f"difficult objects are no targets, as COCO's crowds ({difficult:,}): in training "
            "their place counts as background, and they are not judged; figures are COCO's, not "
            "VOC's"
        )
    return listing


def _corners(entry: ET.Element, first: float) -> tuple[list[float] | None, Fault | None]:
    texts = [entry.findtext(f"bndbox/{key}") for key in _CORNERS]
    try:
        x1, y1, x2, y2 = (float(text or "") for text in texts)
    except ValueError:
        shown = ", ".join(harmless(text)[:20] for text in texts)
        return None, Fault("no-box", f"bndbox is {shown}, not four numbers {', '.join(_CORNERS)}")
    return [x1 - first, y1 - first, x2, y2], None


def _side(text: str | None) -> int | None:
    """A side of an image, 0 where none is given; None for what is no side."""
    try:
        value = float(text or 0)
    except ValueError:
        return None
    return int(value) if value.is_integer() and 0 <= value < 1 << 31 else None
