"""Annotated images: what is in each, for detection and instance segmentation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from skipway.data.objects.shapes import Shape, Shapes, decoded, positions
from skipway.data.split import Names, Split

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Objects:
    """The n objects in one image, in its original pixels, EXIF rotation applied.

    Coordinates are continuous, (0, 0) the outer corner of the first pixel; boxes lie in the image
    and have an area.
    """

    boxes: Array
    """float32 [n, 4]: x1, y1, x2, y2."""
    labels: Array
    """int64 [n]: positions in the classes."""
    crowd: Array
    """bool [n]: many objects in one box, or an object not to be judged (VOC: difficult). In
    training they are no targets and their place counts as background, which is torchvision's
    way."""
    areas: Array
    """float32 [n], square pixels: of the mask where one is known, else of the box. That which COCO
    gives is taken unless it is larger than the box."""
    ids: Array
    """int64 [n]: the annotation's id in its file; where the form has none, its row, from 1."""
    shapes: tuple[Shape, ...]
    """Masks as the file has them, None where they were not asked for."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, keep: Array) -> Objects:
        """Those objects only: positions, or bool [n]."""
        rows = np.arange(len(self))[keep]
        arrays = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "shapes"}
        return Objects(**arrays, shapes=tuple(self.shapes[i] for i in rows))

    def masks(self, height: int, width: int) -> Array:
        """bool [n, height, width], the size that of the image. Errors as in `shapes.decoded`."""
        return decoded(self.shapes, height, width)


@dataclass(frozen=True)
class Table:
    """The objects of many images in flat arrays, those of an image side by side."""

    offsets: Array
    """int64 [images + 1]: where those of each image begin, and the end."""
    boxes: Array
    """float32 [m, 4]"""
    labels: Array
    """int32 [m]"""
    crowd: Array
    """bool [m]"""
    areas: Array
    """float32 [m]"""
    ids: Array
    """int64 [m]"""
    shapes: Shapes | None

    def __len__(self) -> int:
        """Objects."""
        return len(self.labels)

    def of(self, i: int) -> Objects:
        """The objects of image i."""
        low, high = self.offsets[i : i + 2]
        part = slice(low, high)
        if self.shapes is None:
            shapes: tuple[Shape, ...] = (None,) * int(high - low)
        else:
            shapes = tuple(self.shapes[j] for j in range(low, high))
        return Objects(
            self.boxes[part].copy(),
            self.labels[part].astype(np.int64),
            self.crowd[part].copy(),
            self.areas[part].copy(),
            self.ids[part].copy(),
            shapes,
        )

    def images(self) -> Array:
        """The image of each object: int64 [m]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def take(self, images: Array) -> Table:
        """The objects of those images, in that order."""
        sizes = np.diff(self.offsets)[images]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        return self._of(np.repeat(self.offsets[:-1][images], sizes) + positions(offsets), offsets)

    def keep(self, chosen: Array) -> Table:
        """Those objects only, bool [m]; every image stays."""
        sums = np.concatenate([[0], np.cumsum(chosen)])
        return self._of(np.flatnonzero(chosen), sums[self.offsets])

    def _of(self, rows: Array, offsets: Array) -> Table:
        arrays = {
            name: getattr(self, name)[rows] for name in ("boxes", "labels", "crowd", "areas", "ids")
        }
        shapes = None if self.shapes is None else self.shapes.take(rows)
        return Table(offsets, **arrays, shapes=shapes)


@dataclass(frozen=True, kw_only=True)
class AnnotatedSplit(Split):
    """Images with objects in them. `labels` is 0 for all: an image has no class of its own."""

    sizes: Array
    """int32 [N, 2]: height and width of each image, EXIF rotation applied."""
    table: Table

    def target(self, i: int) -> Objects:
        """What is in image i."""
        return self.table.of(i)

    def take(self, positions: Array) -> Self:
        """Those images only, in that order, with their objects."""
        positions = np.asarray(positions, np.int64)
        return replace(
            self,
            names=Names(self.names[int(i)] for i in positions),
            labels=self.labels[positions],
            sizes=self.sizes[positions],
            table=self.table.take(positions),
        )

    counted: ClassVar[str] = "objects"

    def per_class(self, classes: int) -> Array:
        """int64 [classes], crowds left out, which are neither targets nor judged."""
        return np.bincount(self.table.labels[~self.table.crowd], minlength=classes)

    def content(self) -> bytes:
        """32 bytes that are others once an object is another."""
        digest = hashlib.blake2b(digest_size=32)
        table, shapes = self.table, self.table.shapes
        arrays = [self.sizes, table.offsets, table.boxes, table.labels, table.crowd, table.areas]
        if shapes is not None:  # what `at` points to may be shared with other splits
            arrays += [getattr(shapes, field.name) for field in fields(shapes)]
        for values in arrays:
            digest.update(np.ascontiguousarray(values).data)
        return digest.digest()
