"""Arrays of pixels in a ``.npz``, in the layout of MedMNIST (10.1038/s41597-022-01721-8).

``train_images`` is uint8 [N, H, W] or [N, H, W, 3], ``train_labels`` whole numbers [N] or [N, 1];
``val_…`` and ``test_…`` beside them. MedMNIST's files hold no class names: classes are called by
their numbers. Where ``class_names`` is there, text [K], label k is the class of that place. Nothing
in the file is unpickled.
"""

from __future__ import annotations

import math
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from skipway.data.split import ArrayReader, Found, Names, Split
from skipway.errors import InputError, harmless

Array = npt.NDArray[Any]

_SPLITS = ("train", "val", "test")
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def is_npz(path: Path) -> bool:
    """Whether a file is a zip of NumPy arrays and of nothing else."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged directories raise all kinds of errors; who opens zips tells them
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def open_npz(path: Path) -> Found:
    """Splits of arrays. Raises InputError for pickled objects, other shapes, several labels an
    image, class names that do not fit the labels, and damaged files."""
    pixels, labels, names = {}, {}, None
    with zipfile.ZipFile(path) as archive:
        keys = {name.removesuffix(".npy") for name in archive.namelist()}
        for split in _SPLITS:
            pair = f"{split}_images", f"{split}_labels"
            if not keys & set(pair):
                continue
            for key in pair:
                if key not in keys:
                    raise InputError(f"{harmless(path)}: {key} is missing")
            pixels[split] = _images(path, pair[0], _array(path, archive, pair[0]))
            labels[split] = _labels(path, pair[1], _array(path, archive, pair[1]))
            if len(pixels[split]) != len(labels[split]):
                raise InputError(
                    f"{harmless(path)}: {len(pixels[split]):,} {pair[0]}, "
                    f"but {len(labels[split]):,} {pair[1]}"
                )
        if "class_names" in keys:
            names = _class_names(path, _array(path, archive, "class_names"))
    if not pixels:
        shown = ", ".join(map(harmless, sorted(keys)[:5]))
        raise InputError(
            f"{harmless(path)}: holds {shown}\n"
            "Expected train_images and train_labels, and val_… and test_… beside them (MedMNIST)."
        )
    if len({images.shape[3] for images in pixels.values()}) > 1:
        raise InputError(f"{harmless(path)}: grey images in one split, colour in another")
    numbers = np.unique(np.concatenate(list(labels.values())))
    notes: tuple[str, ...] = ()
    if names is None:
        names = tuple(map(str, numbers.tolist()))
        labels = {name: np.searchsorted(numbers, column) for name, column in labels.items()}
        notes = ("classes are called by their numbers: the file holds no names",)
    elif not 0 <= numbers[0] <= numbers[-1] < len(names):
        raise InputError(
            f"{harmless(path)}: labels from {numbers[0]} to {numbers[-1]}, but {len(names)} "
            "class_names\nLabels count them from 0."
        )
    splits = {
        name: Split(
            ArrayReader(images),
            Names(f"{name}/{i:05}.png" for i in range(len(images))),
            labels[name].astype(np.int64),
        )
        for name, images in pixels.items()
    }
    grey = next(iter(pixels.values())).shape[3] == 1
    return Found(
        splits,
        names,
        notes=notes,
        channels=1 if grey else 3,
        mirror=False,
    )


def _array(path: Path, archive: zipfile.ZipFile, key: str) -> Array:
    """An array whose header was believed only after it was looked at."""
    where = f"{harmless(path)}: {key}"
    member = archive.getinfo(f"{key}.npy")
    try:
        with archive.open(member) as file:
            shape, fortran, dtype = _header(file)
            if dtype.hasobject:
                raise InputError(
                    f"{where} holds pickled Python objects, which are not loaded: they can run "
                    "code\nSave plain arrays: uint8 pixels and whole numbers."
                )
            expected = math.prod(shape) * dtype.itemsize
            if min(shape, default=1) < 1 or expected > member.file_size:
                raise InputError(f"{where} is empty or shorter than its shape {shape} tells")
            content = file.read(expected)
            if len(content) < expected:
                raise EOFError(f"{len(content):,} of {expected:,} bytes")
        # Copied: torch warns of arrays that cannot be written.
        values = np.frombuffer(content, dtype).copy()
        return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # zlib.error, BadZipFile and what headers of nonsense raise
        raise InputError(f"{where} is damaged: {harmless(error)[:100]}") from None


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"unknown version {version}")
    return _HEADERS[version](file)


def _images(path: Path, key: str, values: Array) -> Array:
    """uint8 [N, H, W, C] of one or three channels."""
    if values.dtype != np.uint8:
        raise InputError(
            f"{harmless(path)}: {key} is {values.dtype}; give uint8 pixels from 0 to 255"
        )
    if values.ndim == 3:
        return values[..., None]
    if values.ndim != 4 or values.shape[3] not in (1, 3):
        raise InputError(
            f"{harmless(path)}: {key} has the shape {values.shape}; give [N, H, W] or [N, H, W, 3]"
        )
    return values


def _labels(path: Path, key: str, values: Array) -> Array:
    """int64 [N]."""
    if values.ndim == 2 and values.shape[1] > 1:
        raise InputError(
            f"{harmless(path)}: {key} has the shape {values.shape}, several labels an image; "
            "a classifier takes one"
        )
    if values.dtype.kind not in "iu" or values.ndim not in (1, 2):
        raise InputError(
            f"{harmless(path)}: {key} is {values.dtype} of shape {values.shape}; "
            "give whole numbers, [N] or [N, 1]"
        )
    if values.dtype.kind == "u" and values.max(initial=0) > np.iinfo(np.int64).max:
        raise InputError(
            f"{harmless(path)}: {key} has {values.max():,}, too large for a label; number "
            "the classes from 0"
        )
    return values.reshape(-1).astype(np.int64)


def _class_names(path: Path, values: Array) -> tuple[str, ...]:
    """Text [K], each another."""
    names: list[str] = []
    if values.dtype.kind == "U" and values.ndim == 1:
        points = values.view(np.dtype(np.uint32).newbyteorder(values.dtype.byteorder))
        if points.max() <= sys.maxunicode:  # NumPy fails on others with all kinds of errors
            names = values.tolist()
    if not names or len(set(names)) < len(names) or not all(names):
        raise InputError(
            f"{harmless(path)}: class_names is {values.dtype} of shape {values.shape}; give text, "
            "[K], one name for each class"
        )
    return tuple(names)
