"""IDX files: MNIST, Fashion-MNIST, and what was made in their likeness.

A folder holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and, for test, ``t10k-…``,
each gzipped (``.gz``) or not. A file begins with two zero bytes, the type (8: unsigned bytes), the
number of dimensions and each dimension as four bytes, big-endian; the values follow
(http://yann.lecun.com/exdb/mnist). Images are grey, uint8 [N, H, W].
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.data.forms.named import fetched
from skipway.data.split import ArrayReader, Found, Names, Split
from skipway.errors import InputError, harmless

Array = npt.NDArray[Any]

FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""The classes of Fashion-MNIST in the order of their labels (1708.07747, table 2)."""
_FASHION_LABELS = "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"
"""sha256 of the 60,000 training labels of Fashion-MNIST, by which its files are recognised."""
_STEMS = {"train": "train", "test": "t10k"}
_TORCHVISION = {"fashion-mnist": "FashionMNIST", "mnist": "MNIST"}
"""torchvision's class, which is also the folder of its download."""
_DEBIAN = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package dataset-fashion-mnist puts the files."""
_LARGEST = 1 << 36
"""Bytes of pixels beyond which the dimensions are not believed."""


def is_idx(path: Path) -> bool:
    """Whether a folder holds IDX files, by itself or as torchvision lays them out."""
    return next(_places(path), None) is not None


def open_idx(path: Path) -> Found:
    """The IDX files of a folder. Raises InputError for files that are missing or damaged."""
    places = list(_places(path))
    if len(places) > 1:
        shown = " and ".join(harmless(place.relative_to(path)) for place in places)
        raise InputError(f"{harmless(path)}: holds {shown}; give one of them")
    return _read(places[0], fashion=places[0].parent.name == "FashionMNIST")


def open_named(name: str) -> Found:
    """``mnist`` or ``fashion-mnist``: local files where they are found, else a download."""
    kind = _TORCHVISION[name]
    usual = [_DEBIAN] if name == "fashion-mnist" else []
    files = "its four IDX files (train-images-idx3-ubyte.gz and so on)"
    place = fetched(name, kind, f"{kind}/raw", _complete, files, usual)
    return _read(place, fashion=name == "fashion-mnist")


def _complete(folder: Path) -> bool:
    wanted = [(stem, *what) for stem in _STEMS.values() for what in (("images", 3), ("labels", 1))]
    return all(_file(folder, *file) for file in wanted)


def _places(path: Path) -> Iterator[Path]:
    for inner in ("", "raw", *(f"{kind}/raw" for kind in _TORCHVISION.values())):
        if any(_file(path / inner, stem, "images", 3) for stem in _STEMS.values()):
            yield path / inner


def _file(folder: Path, stem: str, what: str, dimensions: int) -> Path | None:
    for joint in "-.":
        for suffix in ("", ".gz"):
            path = folder / f"{stem}-{what}{joint}idx{dimensions}-ubyte{suffix}"
            if path.is_file():
                return path
    return None


def _read(folder: Path, fashion: bool) -> Found:
    splits, highest = {}, 0
    for name, stem in _STEMS.items():
        images, labels = _file(folder, stem, "images", 3), _file(folder, stem, "labels", 1)
        if images is None and labels is None:
            continue
        if images is None or labels is None:
            missing = f"{stem}-images-idx3-ubyte" if images is None else f"{stem}-labels-idx1-ubyte"
            raise InputError(f"{harmless(folder)}: {missing} (or .gz) is missing")
        pixels, targets = _values(images, 3), _values(labels, 1)
        if len(pixels) != len(targets):
            raise InputError(
                f"{harmless(labels)}: {len(targets):,} labels for the {len(pixels):,} images of "
                f"{images.name}"
            )
        if name == "train":
            fashion = fashion or hashlib.sha256(targets.tobytes()).hexdigest() == _FASHION_LABELS
        highest = max(highest, int(targets.max()))
        if fashion and highest >= len(FASHION):
            raise InputError(
                f"{harmless(labels)}: the label {highest}; Fashion-MNIST has labels 0 to 9"
            )
        names = Names(f"{name}/{i:05}.png" for i in range(len(pixels)))
        splits[name] = Split(ArrayReader(pixels[..., None]), names, targets.astype(np.int64))
    classes = FASHION if fashion else tuple(map(str, range(highest + 1)))
    notes = [f"IDX files of {folder}"]
    if not fashion:
        notes.append("classes are called by their numbers: IDX files hold no names")
    return Found(splits, classes, declared=fashion, notes=tuple(notes), channels=1, mirror=fashion)


def _values(path: Path, dimensions: int) -> Array:
    """uint8 values of that many dimensions. Raises InputError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes((0, 0, 8, dimensions)):
                raise InputError(
                    f"{harmless(path)}: not an IDX file of unsigned bytes in {dimensions} "
                    "dimensions; remove it and fetch it again"
                )
            shape = struct.unpack(f">{dimensions}I", head[4:])
            expected = math.prod(shape)
            if not 0 < expected < _LARGEST:
                raise InputError(f"{harmless(path)}: its header tells the dimensions {shape}")
            content = file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        why = harmless(getattr(error, "strerror", None) or error)[:100]
        raise InputError(
            f"{harmless(path)}: cannot be read: {why}; remove it and fetch it again"
        ) from None
    if len(content) != expected:
        found = "more" if len(content) > expected else f"{len(content):,}"
        raise InputError(
            f"{harmless(path)}: {found} bytes where its header tells {expected:,}; "
            "remove it and fetch it again"
        )
    # Copied: torch warns of arrays that cannot be written.
    return np.frombuffer(content, np.uint8).reshape(shape).copy()
