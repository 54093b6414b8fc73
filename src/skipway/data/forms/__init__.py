"""The forms in which labelled images come, each recognised from its content.

A form is a module with its layout in the docstring and a function that gives a `Found`. A new one
is a row of `_FOLDERS` or `_FILES`: what recognises it, and what opens it. The first that fits is
taken; no test is so wide that it takes what belongs to a row below.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from skipway.data.forms import arrays, cifar, folders, idx, imagenet, parquet, tables, tar
from skipway.data.split import Found
from skipway.errors import InputError, harmless, nearest

Recognise = Callable[[Path], bool]
Open = Callable[[Path], Found]

DATA = "a folder, zip or tar of class folders, a CSV, a parquet or an .npz"
"""What DATA may be beside a name, for texts."""
NAMED: dict[str, Callable[[], Found]] = {
    "fashion-mnist": partial(idx.open_named, "fashion-mnist"),
    "mnist": partial(idx.open_named, "mnist"),
    "cifar10": partial(cifar.open_named, "cifar10"),
    "cifar100": partial(cifar.open_named, "cifar100"),
    "imagenet": imagenet.refuse_name,
}
"""Data sets that are known by name; digits is `sources`' own."""
_FOLDERS: tuple[tuple[Recognise, Open], ...] = (
    (idx.is_idx, idx.open_idx),
    (cifar.is_cifar, cifar.open_cifar),
    (imagenet.is_imagenet, imagenet.open_imagenet),
    (parquet.is_parquet_folder, parquet.open_parquet_folder),
    (Path.is_dir, folders.open_folder),
)
_FILES: tuple[tuple[Recognise, Open], ...] = (
    (tar.is_tar, tar.open_tar),  # before zip: a zip is looked for at the end of a file
    (arrays.is_npz, arrays.open_npz),
    (zipfile.is_zipfile, folders.open_zip),
    (parquet.is_parquet, parquet.open_parquet),
    (tar.is_compressed_tar, tar.refuse_compressed_tar),
    (tables.is_csv, tables.open_csv),
)


def find(data: str) -> Found:
    """What DATA holds; what lies on the disk goes before a name. Raises InputError."""
    path = Path(data)
    try:
        forms = _FOLDERS if path.is_dir() else _FILES if path.is_file() else ()
        opened = next((opened for recognise, opened in forms if recognise(path)), None)
        found = None if opened is None else opened(path)
    except OSError as error:
        why = error.strerror or harmless(error)
        raise InputError(f"{harmless(error.filename or data)}: {why}") from None
    if found is not None:
        if data in NAMED:
            note = f"what is called {data} here is taken, not the data set of that name"
            found = replace(found, notes=(note, *found.notes))
        return found
    if forms:
        raise InputError(
            f"{harmless(data)}: neither a folder nor a zip, tar, CSV, parquet or .npz that can be "
            "read"
        )
    if data in NAMED:
        return NAMED[data]()
    raise InputError(
        f"{harmless(data)}: no such folder or file.{nearest(data, ('digits', *NAMED))}\n"
        f"DATA is {', '.join(('digits', *NAMED))}, or {DATA}."
    )
