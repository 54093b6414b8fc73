"""What annotation files say of images, and what of it can be used.

A form of annotations reads its files into a `Listing`; `check` compares it with the images and
with itself.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.data.objects.annotated import AnnotatedSplit, Table
from skipway.data.objects.shapes import NONE, POLYGONS, RUNS, Shapes
from skipway.data.problems import Fault, Problem, count, header_of, in_threads
from skipway.data.split import FolderReader, Names
from skipway.errors import harmless

Array = npt.NDArray[Any]

KINDS = {
    "damaged": "damaged files",
    "bad-image": "entries that are no images",
    "duplicate-image-id": "image ids given twice",
    "image-twice": "images listed twice",
    "missing-image": "missing images",
    "unreadable-image": "unreadable images",
    "wrong-size": "images of another size than annotated",
    "bad-annotation": "entries that are no annotations",
    "duplicate-id": "ids given twice",
    "unknown-image": "of unknown images",
    "unknown-category": "of unknown categories",
    "unknown-class": "of classes that are not learned",
    "no-box": "without a box of four numbers",
    "not-finite": "boxes with NaN or infinity",
    "reversed": "reversed corners",
    "no-area": "boxes without an area",
    "outside": "boxes outside their image",
    "no-mask": "without a mask",
    "broken-mask": "broken masks",
    "mask-size": "masks of another size",
    "no-objects": "no object at all",
}
"""What can be wrong, and how notes count it."""


@dataclass
class Listing:
    """What annotation files say of the N images and M annotations of one split."""

    path: str
    """Of the annotations, for problems of them all."""
    root: Path
    """The folder that the names of images are relative to."""
    names: list[str]
    files: Sequence[str]
    """The file that annotates each image, or one for all."""
    said: Array
    """int64 [N, 2]: height and width as the files say; 0 where they do not."""
    image: Array
    """int64 [M]: position in `names`; -1 for those at fault without one."""
    labels: Array
    """int64 [M]: position in `categories`; -1 for those at fault without one."""
    ids: Array
    """int64 [M]"""
    written: Array
    """float64 [M, 4] in the form's own way."""
    corners: Callable[[Array, Array], Array]
    """From what was written and the images' sizes, float64 [M, 2], to x1, y1, x2, y2 in pixels."""
    crowd: Array
    """bool [M]"""
    areas: Array
    """float64 [M], NaN where none is given."""
    shapes: Shapes | None
    categories: tuple[str, ...]
    image_faults: dict[int, Fault] = field(default_factory=dict)
    faults: dict[int, Fault] = field(default_factory=dict)
    """Of annotations, by row."""
    stray: list[Problem] = field(default_factory=list)
    """Problems of what has no place here."""
    notes: list[str] = field(default_factory=list)
    shares: bool = False
    """Polygons are in shares of width and height."""

    def file(self, image: int) -> str:
        return self.files[image] if 0 <= image < len(self.files) else self.path


@dataclass
class Checked:
    """What of a split can be used, and what cannot."""

    split: AnnotatedSplit
    """Its labels count the listing's own categories."""
    categories: tuple[str, ...]
    problems: list[Problem]
    left_out: Counter[str]
    """Annotations by kind of problem."""
    images_out: Counter[str]
    """Images by kind of problem."""
    lost: int
    """Annotations of images that are left out."""
    notes: list[str]
    path: str
    file_of: Callable[[int], str]
    """The file that annotates an image of `split`."""


def check(listing: Listing) -> Checked:
    """Compare a listing with its images: what can be used, and every problem in the rest."""
    n = len(listing.names)
    bad = listing.image_faults
    _find_repeated_images(listing)
    sizes = listing.said.copy()
    unsized = 0
    looked = [i for i in range(n) if i not in bad]
    headers = in_threads(lambda i: header_of(listing.root, listing.names[i]), looked)
    for i, found in zip(looked, headers, strict=True):
        if isinstance(found, Fault):
            bad[i] = found
        elif not listing.said[i].any():
            unsized += 1
            sizes[i] = found.size
        elif tuple(listing.said[i].tolist()) != found.size:
            bad[i] = Fault("wrong-size", _sizes_differ(listing.said[i].tolist(), found.size))
    rows = _Rows(listing, sizes)
    there = np.ones(n, bool)
    there[list(bad)] = False
    problems = list(listing.stray)
    problems += [
        Problem(listing.file(i), None, listing.names[i], *fault) for i, fault in sorted(bad.items())
    ]
    told = rows.told()
    for row, fault in told:
        image = int(listing.image[row])
        name = listing.names[image] if image >= 0 else ""
        problems.append(Problem(listing.file(image), int(listing.ids[row]), name, *fault))
    fine = ~rows.bad
    usable = fine & (listing.image >= 0)
    usable[usable] = there[listing.image[usable]]
    kept = np.flatnonzero(there)
    place = np.cumsum(there) - 1
    order = np.flatnonzero(usable)
    order = order[np.argsort(listing.image[order], kind="stable")]
    images = place[listing.image[order]]
    table = Table(
        np.concatenate([[0], np.cumsum(np.bincount(images, minlength=len(kept)))]),
        rows.boxes[order],
        listing.labels[order].astype(np.int32),
        listing.crowd[order],
        rows.areas[order],
        listing.ids[order],
        None if rows.shapes is None else rows.shapes.take(order),
    )
    notes = list(listing.notes)
    if unsized:
        notes.append(f"{count(unsized, 'image')} without a size in the annotations: read from it")
    clipped = int(rows.clipped[order].sum())
    if clipped:
        reach = "reaches" if clipped == 1 else "reach"
        notes.append(f"{count(clipped, 'box', 'boxes')} {reach} past the image: clipped to it")
    split = AnnotatedSplit(
        FolderReader(listing.root),
        Names(listing.names[i] for i in kept),
        np.zeros(len(kept), np.int64),
        sizes=sizes[kept].astype(np.int32),
        table=table,
    )
    left_out = Counter(fault.kind for _, fault in told)
    images_out = Counter(fault.kind for fault in bad.values())
    return Checked(
        split,
        listing.categories,
        problems,
        left_out,
        images_out,
        int(fine.sum()) - len(order),
        notes,
        listing.path,
        lambda i: listing.file(int(kept[i])),
    )


def _find_repeated_images(listing: Listing) -> None:
    """Mark images whose file is listed before."""
    first: dict[str, int] = {}
    for i, name in enumerate(listing.names):
        if i in listing.image_faults:
            continue
        earlier = first.setdefault(os.path.normpath(name), i)
        if earlier != i:
            where = f" ({harmless(listing.file(earlier))})" if len(listing.files) > 1 else ""
            listing.image_faults[i] = Fault("image-twice", f"listed before{where}")


def find_repeated_ids(listing: Listing) -> None:
    """Mark annotations whose id another one before them has; for forms that have ids."""
    order = np.argsort(listing.ids, kind="stable")
    again = order[1:][np.diff(listing.ids[order]) == 0]
    for row in again.tolist():
        listing.faults.setdefault(row, Fault("duplicate-id", "another annotation has this id too"))


def _sizes_differ(said: list[int], found: tuple[int, int]) -> str:
    text = f"{said[1]} x {said[0]} px in the annotations, {found[1]} x {found[0]} in the file"
    if tuple(said) == found[::-1]:
        text += " as it is shown: drawn before an EXIF rotation, or width and height are swapped"
    return text


class _Rows:
    """The annotations of a listing, checked one and all; the first fault of each is told."""

    def __init__(self, listing: Listing, sizes: Array) -> None:
        self.listing = listing
        self.bad = np.zeros(len(listing.ids), bool)
        self.bad[list(listing.faults)] = True
        self.found: list[tuple[str, Array, Callable[[int], str]]] = []
        there = listing.image >= 0
        size = np.zeros((len(there), 2))
        size[there] = sizes[listing.image[there]]
        with np.errstate(all="ignore"):
            self._boxes(size)
            self.shapes = listing.shapes
            areas = listing.areas.astype(np.float32)
            if self.shapes is not None:
                if listing.shares:
                    self.shapes = self.shapes.scaled(size[:, ::-1])
                own = np.isfinite(areas) & (areas > 0)
                areas = np.where(own, areas, self._masks(self.shapes, size))
            # An area of more than the box, some rounding aside, is not that of the object.
            box = (self.corners[:, 2:] - self.corners[:, :2]).prod(axis=1)
            most = np.minimum(1.01 * box + 1, size.prod(axis=1))
            sound = (areas > 0) & (areas <= most)
            self.areas = np.where(sound, areas, _areas(self.boxes)).astype(np.float32)

    def _boxes(self, size: Array) -> None:
        listing = self.listing
        written = listing.written
        self.corners = corners = listing.corners(written, size)
        x1, y1, x2, y2 = corners.T
        height, width = size.T
        known = height > 0

        def box(row: int) -> str:
            return "box " + ", ".join(f"{v:g}" for v in written[row])

        def outside(row: int) -> str:
            h, w = size[row].astype(int)
            return f"outside its image of {w} x {h} px: {box(row)}"

        odd = np.asarray(~np.isfinite(written).all(axis=1))
        self._mark("not-finite", odd, lambda r: f"not finite: {box(r)}")
        self._mark(
            "not-finite",
            known & ~np.isfinite(corners).all(axis=1),
            lambda r: f"too large: {box(r)}",
        )
        self._mark(
            "reversed",
            (x2 < x1) | (y2 < y1),
            lambda r: f"reversed corners or a side below 0: {box(r)}",
        )
        self._mark("no-area", known & ((x2 == x1) | (y2 == y1)), lambda r: f"no area: {box(r)}")
        limits = np.stack([width, height, width, height], axis=1)
        beyond = (x2 <= 0) | (y2 <= 0) | (x1 >= width) | (y1 >= height)
        self._mark("outside", known & beyond, outside)
        clipped = np.clip(corners, 0, limits)
        self.clipped = (clipped != corners).any(axis=1)
        self.boxes = clipped.astype(np.float32)
        thin = np.asarray(_areas(self.boxes) == 0)  # of sides that float32 cannot tell apart too
        self._mark("no-area", known & thin, lambda r: f"no area within the image: {box(r)}")

    def _masks(self, shapes: Shapes, size: Array) -> Array:
        """Check the shapes; their areas."""
        known = size[:, 0] > 0
        areas = shapes.areas()
        self._mark("no-mask", shapes.kind == NONE, lambda r: "no mask")
        drawn = shapes.kind == POLYGONS
        extents = shapes.extents()
        self._mark(
            "broken-mask",
            drawn & ~np.isfinite(extents).all(axis=1),
            lambda r: "a polygon with NaN or infinity",
        )
        sides = size[:, ::-1]
        # Drawing takes memory by the length of an outline.
        far = (extents[:, :2] < -sides).any(axis=1) | (extents[:, 2:] > 2 * sides).any(axis=1)
        self._mark("broken-mask", drawn & known & far, lambda r: "a polygon far outside its image")
        run = shapes.kind == RUNS
        masks = np.zeros((len(run), 2), np.int64)
        masks[run] = shapes.run_sizes[shapes.at[run]]

        def other(row: int) -> str:
            h, w = size[row].astype(int)
            return f"a mask of {masks[row, 1]} x {masks[row, 0]} px, the image has {w} x {h}"

        self._mark("mask-size", run & known & (masks != size).any(axis=1), other)
        self._mark("broken-mask", known & (areas == 0), lambda r: "an empty mask")
        return areas

    def _mark(self, kind: str, rows: Array, what: Callable[[int], str]) -> None:
        new = rows & ~self.bad
        self.bad |= new
        if new.any():
            self.found.append((kind, np.flatnonzero(new), what))

    def told(self) -> list[tuple[int, Fault]]:
        """Row and fault of all that is bad, by row."""
        found = list(self.listing.faults.items())
        for kind, rows, what in self.found:
            found += [(row, Fault(kind, what(row))) for row in rows.tolist()]
        return sorted(found, key=lambda pair: pair[0])


def _areas(boxes: Array) -> Array:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
