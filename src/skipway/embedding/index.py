"""The vectors of many images in a parquet file, with what made them in its metadata.

They are computed in parts, each a file in a folder beside, and joined at the end: what was embedded
before a crash is not embedded again, and never are all vectors in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.data import Split, open_data
from skipway.data.ahead import batches, read_ahead
from skipway.data.forms import find
from skipway.data.forms.folders import is_image, walk
from skipway.data.forms.rowgroups import reading
from skipway.data.split import FolderReader, Names
from skipway.embedding.embedder import Embedder
from skipway.errors import InputError, harmless, missing_part
from skipway.files import atomic_write, check_new, locked
from skipway.images import Channels, DecodeError, ImageLike, decode
from skipway.version import __version__

Array = npt.NDArray[Any]

PART = 1024
"""Images of a part, rounded up to whole batches."""
_BLOCK = 64 << 20
"""Bytes of vectors that are read at a time."""
_KEY = b"skipway"
_SPELT = ("model", "data")
"""What the metadata names as the user spelt it, and is not asked to be the same."""


@dataclass(frozen=True)
class Images:
    """The images of DATA, split after split; labels where it has classes."""

    data: str
    splits: Mapping[str, Split]
    """By name; ``all`` where DATA knows none."""
    classes: tuple[str, ...] | None
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(data: str) -> Images:
        """What DATA holds: as for training, or an image, or a folder in which images lie without
        class folders. Raises InputError."""
        path = Path(data)
        try:
            is_file = path.is_file() and is_image(path.name)
            loose = path.is_dir() and any(
                is_image(entry.name) and entry.is_file() for entry in os.scandir(path)
            )
        except OSError as error:
            raise InputError(f"{harmless(path)}: {error.strerror}") from None
        if is_file or loose:
            names = [path.name] if is_file else walk(path)
            note = "images lie outside of class folders: none is given a label"
            notes = (note,) if "/" in "".join(names) else ()
            return Images._unlabelled(data, path.parent if is_file else path, names, notes)
        if data == "digits":
            made = open_data(data)
            return Images(data, made.splits, made.classes)
        try:
            found = find(data)
        except InputError as error:  # folders that are no classes have images all the same
            names = walk(path) if path.is_dir() else []
            if not names:
                raise
            why = str(error).splitlines()[0].removeprefix(f"{harmless(path)}: ")
            notes = (f"{why}: none is given a label",)
            return Images._unlabelled(data, path, names, notes)
        return Images(data, found.splits, found.classes, found.notes)

    @staticmethod
    def _unlabelled(data: str, root: Path, names: Sequence[str], notes: tuple[str, ...]) -> Images:
        split = Split(FolderReader(root), Names(names), np.zeros(len(names), np.int64))
        return Images(data, {"all": split}, None, notes)

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    def rows(self, low: int, high: int) -> list[tuple[str, int]]:
        """Split and position of the images from `low` to below `high`."""
        found, start = [], 0
        for name, split in self.splits.items():
            end = start + len(split)
            found += [(name, i - start) for i in range(max(low, start), min(high, end))]
            start = end
        return found

    def label(self, split: str, i: int) -> str | None:
        return None if self.classes is None else self.classes[self.splits[split].target(i)]

    @property
    def folder(self) -> str | None:
        """The absolute folder that the names are relative to; None where they are no files."""
        readers = [split.reader for split in self.splits.values()]
        roots = {r.root for r in readers if isinstance(r, FolderReader)}
        return os.path.abspath(roots.pop()) if len(roots) == 1 else None

    def read(self, split: str | None, name: str) -> ImageLike:
        """What lies under a name. Raises DecodeError, and others where there is no such image."""
        return self.splits[split or "all"].reader.read(name)

    def digest(self) -> str:
        """sha256 of names, labels and splits, and of the readers' stamps: another where an image
        may have changed. Raises InputError for one that is not UTF-8, as all text of a parquet is.
        """
        digest = hashlib.sha256()
        for label in self.classes or ():
            digest.update(_utf8(label))
        for name, split in self.splits.items():
            digest.update(f"{name} {len(split)} ".encode())
            digest.update(split.labels.tobytes())
            for image in split.names:
                digest.update(_utf8(image))
            digest.update(split.reader.stamp(split.names))
        return digest.hexdigest()


def _utf8(name: str) -> bytes:
    try:
        return name.encode() + b"\0"
    except UnicodeEncodeError:
        raise InputError(f"{harmless(name)}: not UTF-8, which a parquet needs; rename it") from None


@dataclass(frozen=True)
class Written:
    """What `write_index` did."""

    path: Path
    rows: int
    skipped: int
    """Images that cannot be read."""
    kept: int
    """Images that had been embedded before it was started."""


def write_index(
    embedder: Embedder,
    images: Images,
    out: str | os.PathLike[str],
    made: Mapping[str, Any],
    *,
    batch_size: int = 32,
    threads: int = 1,
    on_bad: str = "error",
    tell: Callable[[int], None] = lambda done: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Written:
    """Embed all images into a parquet: path, label and split (null where there are none), vector.

    Started again after it was killed it goes on after the last whole part, and the file is the same
    as if it had not been. made: what else the vectors come from, for the metadata; has to be the
    same then, but for the name of the model. threads: that decode. on_bad: error, or skip to leave
    out images that cannot be read. tell: called with the number of images that are done; warn: with
    a line of text.

    Raises InputError where `out` exists or parts of something else lie beside it, DecodeError.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing_part("embed", "tables", error) from None
    out = Path(out)
    check_new(out)
    made = {
        "skipway": __version__,
        "model": embedder.origin,
        **embedder.made,
        "dimensions": embedder.dimensions,
        **made,
        "batch_size": batch_size,
        "data": os.path.abspath(images.data) if os.path.exists(images.data) else images.data,
        "folder": images.folder,
        "images": len(images),
        "digest": images.digest(),
    }
    size = batch_size * -(-PART // batch_size)
    with _parts_folder(out, made) as (folder, begun):
        parts = [folder / f"part-{i:05}.parquet" for i in range(-(-len(images) // size))]
        kept = next((i for i, part in enumerate(parts) if not part.exists()), len(parts))
        done = min(kept * size, len(images))
        if done:
            warn(f"{harmless(folder)}: going on after {done:,} of {len(images):,} images")
        tell(done)
        decoded = _decoded(embedder, images, done, batch_size, threads, on_bad)
        for i in range(kept, len(parts)):
            rows: list[tuple[str, str | None, str | None]] = []
            vectors, skipped = [], []
            while done < min((i + 1) * size, len(images)):
                batch = next(decoded)
                found = embedder.batch([x for _, x in batch])
                for ((split, j), _), vector in zip(batch, found, strict=True):
                    if isinstance(vector, DecodeError):
                        skipped.append(str(vector))
                        warn(f"skipped: {vector}")
                        continue
                    own = None if split == "all" else split
                    rows.append((images.splits[split].names[j], images.label(split, j), own))
                    vectors.append(vector)
                done += len(batch)
                tell(done)
            table = _table(rows, vectors, embedder.dimensions)
            notes = {_KEY: json.dumps({"skipped": len(skipped)})}
            with atomic_write(parts[i]) as file:
                pq.write_table(table.replace_schema_metadata(notes), file, **_ENCODING)
        return _joined(out, parts, begun, min(kept * size, len(images)))


def _decoded(
    embedder: Embedder, images: Images, start: int, batch_size: int, threads: int, on_bad: str
) -> Iterator[list[tuple[tuple[str, int], Array | DecodeError]]]:
    """Rows with their model inputs [C, H, W] by batches; the next is decoded meanwhile."""
    preprocess = embedder.card.preprocess
    channels: Channels = preprocess.channels

    def ready(row: tuple[str, int]) -> Array:
        split, i = row
        try:
            return preprocess(images.splits[split].image(i, channels))
        except DecodeError as error:
            if on_bad == "error":
                raise DecodeError(f"{error}\nAdd --on-bad skip to leave such files out.") from None
            raise

    lows = range(start, len(images), batch_size)
    rows = itertools.chain.from_iterable(images.rows(low, low + batch_size) for low in lows)
    return batches(read_ahead(rows, ready, threads, batch_size, on_bad), batch_size)


@contextlib.contextmanager
def _parts_folder(out: Path, made: Mapping[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder of the parts, for this process alone, and what it was begun with.

    Without a part at the end it goes again. Raises InputError where it was begun with other things,
    or another process is at it.
    """
    folder = out.with_name(f"{out.name}.parts")
    begun = folder / "made.json"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{harmless(folder)}: cannot be made: {error.strerror}") from None
    handle, ours = locked(folder, "another process is embedding into it"), False
    try:
        check_new(out)  # as another process may have finished it just now
        for left in folder.glob(".skipway-*.tmp"):  # of one that was killed
            left.unlink()
        if not begun.exists() and any(folder.iterdir()):
            raise InputError(
                f"{harmless(folder)}: is needed for the parts, and holds something else\n"
                "Give another --out, or move it away."
            )
        ours = True
        then = dict(made)
        if _has_parts(folder):
            then = _json(begun, begun.read_bytes() if begun.exists() else b"")
            if found := differences(then, made):
                raise InputError(
                    f"{harmless(folder)}: begun otherwise: {_few(found)}\n"
                    "Embed as it was begun, give another --out, or remove the folder to start "
                    "afresh."
                )
        else:
            with atomic_write(begun) as file:
                file.write(json.dumps(then).encode())
        yield folder, then
    finally:
        if ours and not _has_parts(folder):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # where it is empty
            folder.rmdir()
        os.close(handle)


def _has_parts(folder: Path) -> bool:
    return any(folder.glob("part-*"))


def differences(there: Mapping[str, Any], here: Mapping[str, Any], within: str = "") -> list[str]:
    """What two descriptions of how vectors were made differ in, each in a few words."""
    found = []
    for key in dict.fromkeys([*there, *here]):
        one, other = there.get(key), here.get(key)
        if one == other or key in _SPELT:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{within}{key}.")
        elif key in _OTHERS:
            found.append(_OTHERS[key])
        else:
            shown = (harmless(json.dumps(value))[:40] for value in (one, other))
            found.append(f"{within}{key} {' there, '.join(shown)} here")
    return found


def _few(found: Sequence[str]) -> str:
    more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
    return "; ".join(found[:4]) + more


_OTHERS = {
    "weights": "other weights",
    "pixel_mean": "another preprocess.pixel_mean",
    "digest": "other images or labels, or changed ones",
    "folder": "another folder of the images",
}
"""What is too long to be shown."""


def _json(path: Path, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{harmless(path)}: what made it cannot be read in it: damaged")
    return value


_ENCODING: dict[str, Any] = {
    "compression": {
        "path": "zstd",
        "label": "zstd",
        "split": "zstd",
        "vector.list.element": "none",
    },
    "use_dictionary": ["label", "split"],
    "write_statistics": False,
    "write_page_checksum": True,
}
"""Plain floats: they hardly compress, and so they are read at the speed of the disk."""


def _table(
    rows: Sequence[tuple[str, str | None, str | None]], vectors: Sequence[Array], dimensions: int
) -> Any:
    import pyarrow as pa

    flat = pa.array(np.concatenate([np.zeros(0, np.float32), *vectors]))
    columns = {
        name: pa.array([row[i] for row in rows], pa.string())
        for i, name in enumerate(("path", "label", "split"))
    }
    return pa.table(columns | {"vector": pa.FixedSizeListArray.from_arrays(flat, dimensions)})


def _joined(out: Path, parts: Sequence[Path], made: Mapping[str, Any], kept: int) -> Written:
    """The parts as one file, read one after the other; then they are removed."""
    import pyarrow.parquet as pq

    skipped = rows = 0
    for part in parts:
        with reading(part):
            found = pq.read_schema(part).metadata or {}
            rows += pq.read_metadata(part).num_rows
        skipped += int(_json(part, found.get(_KEY, b"")).get("skipped", 0))
    if not rows:
        shutil.rmtree(parts[0].parent)
        raise InputError(f"{harmless(made['data'])}: none of its {skipped:,} images can be read")
    notes = {_KEY: json.dumps({**made, "skipped": skipped})}
    with reading(parts[0]):
        schema = pq.read_schema(parts[0]).with_metadata(notes)
    whole = parts[0].parent / "whole.parquet"  # a crash leaves nothing of it beside `out`
    with atomic_write(whole) as file, pq.ParquetWriter(file, schema, **_ENCODING) as writer:
        for part in parts:
            with reading(part):
                table = pq.ParquetFile(part, page_checksum_verification=True).read(
                    use_threads=False
                )
            writer.write_table(table.cast(schema))
    os.replace(whole, out)
    shutil.rmtree(whole.parent, ignore_errors=True)
    return Written(out, rows, skipped, kept)


@dataclass(frozen=True)
class Entry:
    """An image of an index."""

    path: str
    label: str | None
    split: str | None


class Index:
    """A file that `write_index` wrote, read by blocks. Raises InputError where it is none.

    `made` is what its vectors come from; `len` the number of them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise missing_part("search", "tables", error) from None
        self.path = Path(path)
        where = harmless(self.path)
        with reading(self.path):
            with self.path.open("rb") as file:
                magic = file.read(4)
            if magic != b"PAR1":
                raise InputError(f"{where}: not a parquet; make one with: skipway embed")
            self._file = pq.ParquetFile(
                self.path, pre_buffer=False, page_checksum_verification=True
            )
            schema = self._file.schema_arrow
        if _KEY not in (schema.metadata or {}):
            raise InputError(f"{where}: does not say what made it; make it with: skipway embed")
        self.made = _json(self.path, schema.metadata[_KEY])
        kinds = {item.name: item.type for item in schema}
        vector = kinds.get("vector", pa.null())
        if not (
            pa.types.is_fixed_size_list(vector)
            and vector.value_type == pa.float32()
            and vector.list_size == self.made.get("dimensions")
            and all(kinds.get(name) == pa.string() for name in ("path", "label", "split"))
        ):
            raise InputError(f"{where}: its columns are not those of skipway embed")
        self.dimensions = vector.list_size
        self._images: Images | None = None
        meta = self._file.metadata
        self._ends = np.cumsum([meta.row_group(i).num_rows for i in range(meta.num_row_groups)])

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    @property
    def settings(self) -> dict[str, Any]:
        """What `load_embedder` is to be given, besides the model, for vectors to compare with."""
        kinds = {"stage": str, "pooling": str, "normalised": bool, "gem_p": float}
        found = {key: self.made[key] for key in kinds if self.made.get(key) is not None}
        if not all(isinstance(value, kinds[key]) for key, value in found.items()):
            raise InputError(f"{harmless(self.path)}: what made it cannot be read in it: damaged")
        return found

    @property
    def precision(self) -> str:
        """That in which its vectors were made."""
        return "bf16" if self.made.get("precision") == "bf16" else "float32"

    def refuse_other(self, embedder: Embedder) -> None:
        """Raise InputError where vectors of this embedder are not comparable with these."""
        there = {key: self.made.get(key) for key in embedder.made}
        if found := differences(there, embedder.made):
            raise InputError(
                f"{harmless(self.path)}: made otherwise: {_few(found)}\n"
                f"Search it with the model that made it, {harmless(self.made.get('model'))[:200]}, "
                "or embed anew."
            )

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, Array]]:
        """The vectors, float32 [n, dimensions], by blocks of at most so many, each with its first
        row; None takes blocks of 64 MiB."""
        start, size = 0, rows or max(_BLOCK // (4 * self.dimensions), 1)
        batches = self._file.iter_batches(size, columns=["vector"], use_threads=False)
        while True:
            with reading(self.path):
                batch = next(batches, None)
                if batch is None:
                    return
                flat = batch.column(0).flatten().to_numpy(zero_copy_only=False)
            block = flat.reshape(-1, self.dimensions)
            if len(block) != len(batch) or not np.isfinite(block).all():
                raise InputError(f"{harmless(self.path)}: damaged: vectors that are not whole")
            if len(block):  # else a part without an image that can be read
                yield start, block
            start += len(block)

    def entries(self, rows: Sequence[int]) -> dict[int, Entry]:
        """The images of those rows."""
        groups = np.searchsorted(self._ends, np.asarray(rows, np.int64), side="right")
        found = {}
        for group in np.unique(groups):
            start = int(self._ends[group - 1]) if group else 0
            with reading(self.path):
                table = self._file.read_row_group(
                    int(group), columns=["path", "label", "split"], use_threads=False
                )
            for row, its in zip(rows, groups, strict=True):
                if its == group:
                    found[row] = Entry(**table.slice(row - start, 1).to_pylist()[0])
        return found

    @property
    def folder(self) -> str | None:
        """The absolute folder in which the images lay; None where they were no files."""
        folder = self.made.get("folder")
        return folder if isinstance(folder, str) else None

    def image(self, entry: Entry) -> Array | None:
        """The pixels of an image, uint8 or uint16 [H, W, 3]; None where it is gone or damaged."""
        try:
            if self.folder is not None:
                return decode(os.path.join(self.folder, entry.path))
            if self._images is None:
                self._images = Images.of(str(self.made.get("data")))
            return decode(self._images.read(entry.split, entry.path))
        except (InputError, LookupError, ValueError):
            return None
