"""ImageNet (ILSVRC 2012-2017) as it is unpacked.

``ILSVRC/Data/CLS-LOC`` (or a folder with ``train`` and ``val``): training images in class folders
of WordNet ids, validation images all in one folder. Their labels come from ``LOC_val_solution.csv``
(columns ImageId, PredictionString) or from the development kit: ``meta.mat`` and
``ILSVRC2012_validation_ground_truth.txt``, which counts the classes as ``meta.mat`` does. Where
``val`` has class folders too, these are class folders like any other.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from skipway.data.forms.folders import by_class, walk
from skipway.data.split import FolderReader, Found
from skipway.errors import InputError, harmless, missing_part

_WNID = re.compile(r"n\d{8}")
_VAL = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_INNER = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC", "")
_DEVKIT = ("", "ILSVRC2012_devkit_t12/data", "ILSVRC/devkit/data", "devkit/data", "data")
_SOLUTION = "LOC_val_solution.csv"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_CLASSES = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""sha256 of the 1,000 WordNet ids of ILSVRC 2012, sorted, a line each."""
_BEGIN = ("tench", "goldfish")
"""The first two classes: every list of ImageNet's names begins with them."""


def is_imagenet(path: Path) -> bool:
    """Whether a folder holds WordNet ids for training and validation images all in one folder."""
    return _base(path) is not None


def open_imagenet(path: Path) -> Found:
    """Training and validation. Raises InputError where no file tells the labels of validation."""
    base = _base(path)
    assert base is not None
    train: dict[str, list[str]] = {}
    loose = 0
    for name in walk(base / "train"):
        if "/" in name:
            train.setdefault(name.split("/")[0], []).append(f"train/{name}")
        else:
            loose += 1
    labels = _labels(path, base)
    val: dict[str, list[str]] = {}
    for name in walk(base / "val"):
        label = labels.get(name.removesuffix(".JPEG"))
        if label is None:
            raise InputError(f"{harmless(base / 'val' / name)}: its label is not told")
        val.setdefault(label, []).append(f"val/{name}")
    empty = tuple(e.name for e in _folders(base / "train") if e.name not in train)
    notes = [f"{loose:,} images outside class folders are left out"] if loose else []
    if (base / "test").is_dir():
        notes.append("the test images have no labels and are left out")
    return by_class(FolderReader(base), {"train": train, "val": val}, empty, tuple(notes))


def refuse_name() -> Found:
    """Raise InputError: ImageNet has terms that each user accepts, so that nothing fetches it."""
    raise InputError(
        "imagenet: give the folder of your copy; it cannot be downloaded without an account\n"
        f"Known: train/WNID and val/WNID; ILSVRC/Data/CLS-LOC with {_SOLUTION} beside ILSVRC."
    )


def in_models_order(own: Sequence[str], model: Sequence[str]) -> bool:
    """Whether a model's classes are ImageNet's under human names, in the order of the WordNet ids.

    That is so where the data's classes are the 1,000 ids in their order, and the model has 1,000
    names that begin as ImageNet's do and of which none is an id.
    """
    if len(own) != 1000 or len(model) != 1000 or any(map(_WNID.fullmatch, model)):
        return False
    if hashlib.sha256("\n".join(own).encode()).hexdigest() != _CLASSES:
        return False
    begin = zip(model, _BEGIN, strict=False)
    return all(name.replace("_", " ").lower().startswith(first) for name, first in begin)


def _base(path: Path) -> Path | None:
    for inner in _INNER:
        base = path / inner
        if (base / "train").is_dir() and (base / "val").is_dir():
            ids = any(_WNID.fullmatch(entry.name) for entry in _folders(base / "train"))
            return base if ids and next(_flat(base / "val"), None) is not None else None
    return None


def _folders(path: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        yield from (e for e in entries if e.is_dir() and not e.name.startswith("."))


def _flat(path: Path) -> Iterator[str]:
    with os.scandir(path) as entries:
        yield from (entry.name for entry in entries if _VAL.fullmatch(entry.name))


def _labels(path: Path, base: Path) -> dict[str, str]:
    """WordNet ids of the validation images by their names without suffix."""
    whole = base.absolute()
    around = [path, whole, *(whole.parents[:3] if whole.name == "CLS-LOC" else ())]
    places = [place / inner for place in around for inner in _DEVKIT]
    for place in places:
        if (place / _SOLUTION).is_file():
            return _solution(place / _SOLUTION)
    for place in places:
        if (place / _TRUTH).is_file() and (place / "meta.mat").is_file():
            return _devkit(place)
    raise InputError(
        f"{harmless(base / 'val')}: nothing tells the labels of these images\n"
        f"Put {_SOLUTION} (Kaggle), or the development kit's meta.mat and {_TRUTH}, into\n"
        f"{harmless(path)}."
    )


def _solution(path: Path) -> dict[str, str]:
    labels = {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        number = 1
        try:
            if next(rows, []) != ["ImageId", "PredictionString"]:
                raise ValueError("the header is not ImageId,PredictionString")
            for row in rows:
                number = rows.line_num
                image, prediction = row
                ids = set(prediction.split()[::5])  # an id and a box for each object
                if len(ids) != 1 or not _WNID.fullmatch(wnid := ids.pop()):
                    raise ValueError(
                        f"{harmless(prediction)[:60]!r} is not one class with its boxes"
                    )
                labels[image] = wnid
        except (csv.Error, ValueError) as error:
            raise InputError(f"{harmless(path)}, line {number}: {harmless(error)}") from None
    return labels


def _devkit(place: Path) -> dict[str, str]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise missing_part("reading meta.mat", "train", error) from None
    try:
        synsets = loadmat(place / "meta.mat", squeeze_me=True)["synsets"]
        ids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if not s["num_children"]}
    except Exception as error:  # a damaged file raises all kinds of errors
        raise InputError(
            f"{harmless(place / 'meta.mat')}: damaged: {harmless(error)[:100]}"
        ) from None
    labels = {}
    for i, line in enumerate((place / _TRUTH).read_text("utf-8", "replace").splitlines(), 1):
        number = int(line) if line.strip().isdecimal() else -1
        if number not in ids:
            raise InputError(f"{harmless(place / _TRUTH)}, line {i}: no class of meta.mat")
        labels[f"ILSVRC2012_val_{i:08}"] = ids[number]
    return labels
