"""The preflight: what is wrong with labelled images, told before a training is spent on them.

A finding is a problem where training would stop at it, or where its numbers could not be trusted;
the others are worth knowing and stop nothing. Only the same file is found twice: an image that was
saved anew, at another size or quality, is another file.
"""

from __future__ import annotations

import contextlib
import itertools
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len, set_cell_size

from skipway.data import DataSet, Split
from skipway.data.preflight import (
    UNEVEN,
    Copies,
    Scan,
    default_size,
    find_copies,
    readable_counts,
    scan,
)
from skipway.data.split import image_sizes
from skipway.errors import harmless
from skipway.images import DecodeError, ImageLike, header, opened, verify

Array = npt.NDArray[Any]

FEW = 10
"""Training images below which a class is told to be very small."""
FAR_SMALLER = 2
"""Input size over an image's short side from above which it is told to be small."""
WIDTH = 80
"""Columns of the terminal that prose is wrapped to; names are never cut apart."""
SHOWN = 5
"""Examples of a finding in the terminal; JSON has all."""
LISTED = 20
"""Classes up to which each has its row in the terminal."""
TRAITS = {
    "sixteen_bit": "16 bits",
    "alpha": "transparent",
    "animated": "many frames",
    "rotated": "turned by EXIF",
}
"""What is counted of images beside mode and size, and what the terminal calls it."""


class Look(NamedTuple):
    """What the header of an image says."""

    size: tuple[int, int]
    """Height and width as `images.decode` gives them."""
    mode: str
    traits: frozenset[str]
    """Keys of `TRAITS`."""


def look(source: ImageLike, name: str) -> Look:
    """Decode an image as cheaply as can be and read its header. Raises DecodeError."""
    verify(source, name)
    if not isinstance(source, bytes):
        pixels = np.asarray(source)
        channels = pixels.shape[2] if pixels.ndim == 3 else 1
        found = {"sixteen_bit": pixels.dtype == np.uint16, "alpha": channels == 4}
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        size = pixels.shape[0], pixels.shape[1]
    else:
        with opened(source, name) as image:
            mode, wide = image.mode, image.mode.startswith(("I", "F"))
            if image.format in ("PNG", "TIFF"):  # colours of 16 bits, which Pillow cuts to 8
                wide |= any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
            found = {"sixteen_bit": wide}
            with contextlib.suppress(Exception):  # what is damaged here hinders no decoding
                found["alpha"] = image.has_transparency_data
            with contextlib.suppress(Exception):
                # a JPEG of the format MPO holds previews, and no animation
                found["animated"] = image.format != "MPO" and getattr(image, "is_animated", False)
            size, found["rotated"] = header(image, name)
    return Look(size, mode, frozenset(key for key, there in found.items() if there))


@dataclass
class Looks:
    """What was found in the images of one split."""

    sizes: Array
    """int32 [N, 2], height and width; 0 for what cannot be read."""
    modes: Counter[str] = field(default_factory=Counter)
    traits: Counter[str] = field(default_factory=Counter)

    def add(self, i: int, one: Look) -> None:
        self.sizes[i] = one.size
        self.modes[one.mode] += 1
        self.traits.update(one.traits)

    def summary(self) -> dict[str, list[int] | None]:
        """[width, height] of the image of fewest and of most pixels, and the median of each."""
        there = self.sizes[self.sizes.any(axis=1)].astype(np.int64)
        if not len(there):
            return dict.fromkeys(("smallest", "median", "largest"))
        pixels = there.prod(axis=1)
        median = np.median(there, axis=0).astype(np.int64)
        rows = (there[pixels.argmin()], median, there[pixels.argmax()])
        named = zip(("smallest", "median", "largest"), rows, strict=True)
        return {name: [int(row[1]), int(row[0])] for name, row in named}


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found, and where."""

    kind: str
    problem: bool
    """Whether training would stop at it, or its numbers could not be trusted."""
    count: int
    text: str
    """One sentence or two, to be shown where the count is not 0."""
    items: Iterator[dict[str, Any]]
    """One object for each place, made when it is asked for."""


@dataclass(frozen=True)
class Report:
    """All that `check` found in a data set."""

    data: DataSet
    looks: dict[str, Looks]
    scans: dict[str, Scan]
    copies: Copies
    counts: dict[str, Array]
    """Images of each class by split, without those that cannot be read: int64 [classes]."""
    input_size: int | None
    """Side in pixels that training would choose for its input; None where no image is left."""
    queries: bool = False
    """Whether each image is to find others of its class, as with vectors."""

    @property
    def ok(self) -> bool:
        return not any(f.count for f in self.findings() if f.problem)

    def findings(self) -> list[Finding]:
        """One of each kind, the problems first; their count is 0 where nothing was found."""
        return [
            self._unreadable(),
            self._missing("missing_in_train", ["train"], True),
            self._leaks(),
            self._conflicts(),
            self._without_pairs(),
            self._missing("missing_elsewhere", [n for n in self.counts if n != "train"], False),
            self._duplicates(),
            self._uneven(),
            self._small_classes(),
            self._small_images(),
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, as one object with the same keys for all data."""
        splits = {}
        for name, split in self.data.splits.items():
            found = self.looks[name]
            splits[name] = {
                "images": len(split),
                "unreadable": len(self.scans[name].failed),
                "counts": self.data.counts(name),
                "modes": dict(found.modes.most_common()),
                **{key: found.traits[key] for key in TRAITS},
                **found.summary(),
            }
        return {
            "data": self.data.path,
            "ok": self.ok,
            "classes": list(self.data.classes),
            "notes": list(self.data.notes),
            "input_size": self.input_size,
            "imbalance": self._imbalance(),
            "splits": splits,
            "findings": {
                f.kind: {"problem": f.problem, "count": f.count, "items": list(f.items)}
                for f in self.findings()
            },
        }

    def lines(self) -> Iterator[str]:
        """The report for a terminal of 80 columns."""
        data = self.data
        yield f"{harmless(data.path)}: {len(data.classes):,} classes"
        yield from (line for note in data.notes for line in wrapped(harmless(note), "  "))
        yield ""
        yield from table(list(self._rows()))
        found = [f for f in self.findings() if f.count]
        for title, problem in (("Problems", True), ("Worth knowing", False)):
            chosen = [f for f in found if f.problem is problem]
            if chosen:
                yield from ("", title)
            for finding in chosen:
                yield from wrapped(finding.text, "  ")
                for item in itertools.islice(finding.items, SHOWN):
                    yield f"    {_shown(finding.kind, item)}"
                if finding.count > SHOWN:
                    yield f"    and {finding.count - SHOWN:,} more (--json lists all)"
        n = sum(f.problem for f in found)
        yield ""
        yield f"{n} {'problem' if n == 1 else 'problems'} to mend" if n else "No problems found."

    def _rows(self) -> Iterator[tuple[str, ...]]:
        """The table: a title, and a cell for each split."""
        looks, splits = list(self.looks.values()), self.data.splits
        yield ("", *splits)
        yield ("images", *(f"{len(s):,}" for s in splits.values()))
        if any(found.failed for found in self.scans.values()):
            yield ("unreadable", *(f"{len(found.failed):,}" for found in self.scans.values()))
        counts = [self.data.counts(name) for name in splits]
        if len(self.data.classes) <= LISTED:
            for c in self.data.classes:
                yield (f"  {harmless(c)}", *(f"{count[c]:,}" for count in counts))
        else:
            values = [np.array(list(count.values())) for count in counts]
            for title, of in (("fewest", np.min), ("median", np.median), ("most", np.max)):
                yield (f"  {title} of a class", *(f"{int(of(v)):,}" for v in values))
        yield from size_rows(looks)
        for mode in dict.fromkeys(mode for found in looks for mode in found.modes):
            yield (f"mode {mode}", *(f"{found.modes[mode]:,}" for found in looks))
        for key, title in TRAITS.items():
            if any(found.traits[key] for found in looks):
                yield (title, *(f"{found.traits[key]:,}" for found in looks))

    # The findings

    def _name(self, split: str, i: int) -> str:
        return self.data.splits[split].names[i]

    def _labelled(self, split: str, i: int) -> dict[str, str]:
        label = self.data.splits[split].labels[i]
        return {"split": split, "name": self._name(split, i), "class": self.data.classes[label]}

    def _unreadable(self) -> Finding:
        items = (
            {"split": name, "name": self._name(name, i), "reason": reason}
            for name, found in self.scans.items()
            for i, reason in found.failed
        )
        n = sum(len(found.failed) for found in self.scans.values())
        text = (
            f"{_images(n)} unreadable. Training stops at the first; train --on-bad skip leaves "
            "such files out."
        )
        return Finding("unreadable", True, n, text, items)

    def _missing(self, kind: str, splits: Sequence[str], problem: bool) -> Finding:
        # where splits have classes of their own, training needs its own, and they none of these
        learned = len(self.data.learned) if self.data.unseen else None
        places = {
            name: np.flatnonzero(self.counts[name][:learned] == 0)
            for name in splits
            if learned is None or name == "train"
        }
        items = (
            {"split": name, "class": self.data.classes[i]}
            for name, found in places.items()
            for i in found
        )
        n = sum(map(len, places.values()))
        where = " and ".join(name for name, found in places.items() if len(found))
        text = f"{_classes(n)} without a readable image in {where}."
        return Finding(kind, problem, n, text, items)

    def _leaks(self) -> Finding:
        leaks = self.copies.leaks()
        items = (
            {
                "splits": [leak.first, leak.second],
                "names": [self._name(leak.first, int(a)), self._name(leak.second, int(b))],
            }
            for leak in leaks
            for a, b in leak.pairs
        )
        told = [
            f"{len(leak.pairs):,} of {len(self.data.splits[leak.second]):,} {leak.second} images "
            f"are in {leak.first} too"
            for leak in leaks
        ]
        text = f"{', '.join(told)}: scores will be too good. Keep one of each."
        return Finding("leak", True, sum(len(leak.pairs) for leak in leaks), text, items)

    def _conflicts(self) -> Finding:
        found = self.copies.conflicts()
        items = (
            {"images": [self._labelled(split, i) for split, i in members]}
            for members in found.members()
        )
        text = f"{_images(found.groups)} with more than one label. Keep the right one."
        return Finding("label_conflict", True, found.groups, text, items)

    def _duplicates(self) -> Finding:
        found = self.copies.repeats()
        items = (
            {
                "split": members[0][0],
                "class": self._labelled(*members[0])["class"],
                "names": [self._name(*member) for member in members],
            }
            for members in found.members()
        )
        extra = len(found) - found.groups
        text = (
            f"{_images(found.groups)} more than once in one class of one split, "
            f"{extra:,} {'copy' if extra == 1 else 'copies'} in all: each counts again."
        )
        return Finding("duplicate", False, found.groups, text, items)

    def _imbalance(self) -> float | None:
        """Largest over smallest class of train; None where a class is missing."""
        counts = self.counts["train"]
        return round(float(counts.max() / counts.min()), 2) if counts.min() else None

    def _uneven(self) -> Finding:
        counts = self.counts["train"]
        there = np.flatnonzero(counts)
        uneven = len(there) > 0 and counts.max() >= UNEVEN * counts[there].min()
        chosen = [there[counts[there].argmin()], counts.argmax()] if uneven else []
        ends = [(self.data.classes[i], int(counts[i])) for i in chosen]
        items = ({"class": name, "images": n} for name, n in ends)
        ratio = f"{ends[1][1] / ends[0][1]:,.0f} to 1" if ends else ""
        text = f"Uneven classes in train, {ratio}: accuracy tells mostly of the large ones."
        return Finding("uneven", False, len(ends), text, items)

    def _without_pairs(self) -> Finding:
        """Splits at which `train --task embed` stops."""
        names = [n for n, of in self.counts.items() if n != "train" and of.max(initial=0) < 2]
        names = names if self.queries else []
        text = (
            f"{' and '.join(names)}: no two images of one class, so there is nothing to find. Hold "
            "out more images, for instance --val 0.3, or none: --val none."
        )
        return Finding("no_pair", True, len(names), text, ({"split": name} for name in names))

    def _small_classes(self) -> Finding:
        counts = self.counts["train"]
        few = np.flatnonzero((counts > 0) & (counts < FEW))
        items = ({"class": self.data.classes[i], "images": int(counts[i])} for i in few)
        text = f"{_classes(len(few))} with fewer than {FEW} training images."
        return Finding("small_class", False, len(few), text, items)

    def _small_images(self) -> Finding:
        least = (self.input_size or 0) / FAR_SMALLER
        small = {}
        for name, found in self.looks.items():
            shorter = found.sizes.min(axis=1)
            small[name] = np.flatnonzero((shorter > 0) & (shorter < least))
        items = (
            {
                "split": name,
                "name": self._name(name, int(i)),
                "width": int(self.looks[name].sizes[i, 1]),
                "height": int(self.looks[name].sizes[i, 0]),
            }
            for name, found in small.items()
            for i in found
        )
        n = sum(map(len, small.values()))
        text = (
            f"{_images(n)} with a short side below half of {self.input_size} px, the input size "
            "that train chooses: enlarging blurs."
        )
        return Finding("small_image", False, n, text, items)


def check(
    data: DataSet,
    threads: int,
    tick: Callable[[], None] | None = None,
    queries: bool = False,
) -> Report:
    """Read every image of a data set once and say what is wrong with it.

    `tick` is called once for each image, by one of the threads. queries: as of `Report`.
    """

    def examine(source: ImageLike, name: str) -> Look:
        if tick is not None:
            tick()
        return look(source, name)

    looks, scans = {}, {}
    for name, split in data.splits.items():
        looks[name] = Looks(np.zeros((len(split), 2), np.int32))
        scans[name] = scan(split, threads, examine, looks[name].add)
    counts = readable_counts(data, scans)
    size = _input_size(data.splits["train"])
    return Report(data, looks, scans, find_copies(data, scans), counts, size, queries)


def _input_size(split: Split) -> int | None:
    """Of the images that `train` looks at, so that both say the same."""
    try:
        return default_size(int(np.median(image_sizes(split).min(axis=1))))
    except DecodeError:
        return None


def _images(n: int) -> str:
    return "1 image" if n == 1 else f"{n:,} images"


def _classes(n: int) -> str:
    return "1 class" if n == 1 else f"{n:,} classes"


def _shown(kind: str, item: dict[str, Any]) -> str:
    """One place of a finding, in the terminal."""
    if kind == "unreadable":
        return str(item["reason"])
    if kind == "leak":
        return " = ".join(map(harmless, item["names"]))
    if kind == "duplicate":
        return _few([harmless(name) for name in item["names"]])
    if kind == "label_conflict":
        return _few([f"{harmless(i['name'])} ({harmless(i['class'])})" for i in item["images"]])
    if kind == "small_image":
        return f"{harmless(item['name'])}: {item['width']:,} x {item['height']:,}"
    if kind == "no_pair":
        return str(item["split"])
    if "images" in item:
        return f"{harmless(item['class'])}: {item['images']:,}"
    return f"{item['split']}: {harmless(item['class'])}"


def _few(names: Sequence[str]) -> str:
    """Equal ones, the first three of them."""
    more = f" = … {len(names) - 3:,} more" if len(names) > 3 else ""
    return " = ".join(names[:3]) + more


def size_rows(looks: Sequence[Looks]) -> Iterator[tuple[str, ...]]:
    """Rows of a table: the size of the images of each split, or its range."""
    summaries = [found.summary() for found in looks]
    if all(summary["smallest"] == summary["largest"] for summary in summaries):
        rows = {"size": "median"}
    else:
        rows = {f"{key} size": key for key in ("smallest", "median", "largest")}
    for title, key in rows.items():
        sizes = [summary[key] for summary in summaries]
        yield (title, *(f"{s[0]:,} x {s[1]:,}" if s else "-" for s in sizes))


def wrapped(text: str, indent: str) -> list[str]:
    """Prose in lines of a terminal, all but the first indented by two more."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns side by side: the first to the left, cut at 36 cells, the others to the right."""
    first = min(max(cell_len(row[0]) for row in rows), 36)
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[1:]]
    for row in rows:
        title = row[0]
        if cell_len(title) > first:
            title = set_cell_size(title, first - 1) + "…"
        cells = (f"{cell:>{w}}" for cell, w in zip(row[1:], widths, strict=True))
        yield "   ".join((set_cell_size(title, first), *cells)).rstrip()
