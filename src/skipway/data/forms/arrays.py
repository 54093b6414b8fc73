"""Arrays of pixels in a ``.npz``, in the layout of MedMNIST (10.1038/s41597-022-01721-8).

``train_images`` is uint8 [N, H, W] or [N, H, W, 3], ``train_labels`` whole numbers [N] or [N, 1];
``val_…`` and ``test_…`` beside them. The file holds no class names: classes are called by their
numbers. Nothing in it is unpickled.
"""

from __future__ import annotations

import math
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
    image, and damaged files."""
    pixels, labels = {}, {}
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
    if not pixels:
        shown = ", ".join(map(harmless, sorted(keys)[:5]))
        raise InputError(
            f"{harmless(path)}: holds {shown}\n"
            "Expected train_images and train_labels, and val_… and test_… beside them (MedMNIST)."
        )
    if len({images.shape[3] for images in pixels.values()}) > 1:
        raise InputError(f"{harmless(path)}: grey images in one split, colour in another")
    numbers = np.unique(np.concatenate(list(labels.values())))
    splits = {
        name: Split(
            ArrayReader(images),
            Names(f"{name}/{i:05}.png" for i in range(len(images))),
            np.searchsorted(numbers, labels[name]).astype(np.int64),
        )
        for name, images in pixels.items()
    }
    note = "classes are called by their numbers: the file holds no names"
    grey = next(iter(pixels.values())).shape[3] == 1
    return Found(
        splits,
        tuple(map(str, numbers.tolist())),
        notes=(note,),
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
    return values.reshape(-1).astype(np.int64)
