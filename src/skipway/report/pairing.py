"""Which image of one run is which of another's: told from what both kept, or not at all."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skipway.report.run import Run
from skipway.report.values import dig

WITNESSES = 5
"""Images that both runs name, at least, where names alone shall show that the images are the
same."""
TAIL = 3
"""Parts of a path, from its end, that are looked at."""

LETTER = re.compile(r"[^\W\d_]")

By = Literal["path", "content", "file name"]

PAIRED = {
    "content": "Images were paired by content: the runs have them at other paths.",
    "file name": "Images were paired by order, label and file name: the runs have them at other "
    "paths.",
}
"""How images were paired, where it was not by their path inside the data."""
UNVERIFIED = (
    "Images were taken for the same by their paths alone; that their content is the same was not "
    "checked."
)


@dataclass(frozen=True)
class Pairing:
    """Image i of the first run is image `order[i]` of the second."""

    by: By
    order: npt.NDArray[np.int64]
    verified: bool
    """Whether the contents were compared. Else paths tell that images are the same, which those of
    two data sets that are laid out and numbered alike do too."""

    @property
    def note(self) -> str | None:
        """What a reader must know of it; None for equal paths with equal content."""
        said = [PAIRED.get(self.by), None if self.verified else UNVERIFIED]
        return " ".join(text for text in said if text) or None


def pair_images(a: Run, b: Run) -> Pairing | str:
    """How the images of two runs that kept their outcomes belong together, or why nobody knows.

    The path inside the data comes first; where it differs, the content; where a run kept no digest
    of that, the order of the split with the labels and file names in it, if those are more than
    numbers.
    """
    assert a.outcomes is not None
    assert b.outcomes is not None
    n, others = len(a.outcomes.label), len(b.outcomes.label)
    digests = [dig(run.evaluation, "images", "digest") for run in (a, b)]
    if a.contents is not None and b.contents is not None:
        if digests[0] != digests[1]:
            return _by_content(a, b)
        if n == others and (a.contents != b.contents).any():
            differ = int((a.contents != b.contents).sum())
            return f"under the same paths {differ:,} of {n:,} images have other bytes"
    if digests[0] == digests[1]:
        if n != others:
            return "their records of the same images do not fit together"
        compared = a.contents is not None and b.contents is not None
        return Pairing("path", np.arange(n), compared)
    same = a.classes == b.classes and np.array_equal(a.outcomes.label, b.outcomes.label)
    if same and (end := _common_end(a.names, b.names)):
        if _only_numbers(a, end):
            return (
                "nothing shows that their images are the same: their paths differ, their names "
                "are only numbers, and no digests of their content were kept"
            )
        return Pairing("file name", np.arange(n), verified=False)
    return "they were scored on other images, or with other labels"


def _by_content(a: Run, b: Run) -> Pairing | str:
    """Equal digests are equal images: which of several is taken makes no difference."""
    names = sorted({*a.classes, *b.classes})
    columns = [_sortable(run, names) for run in (a, b)]
    (content, label, first), (other_content, other_label, second) = columns
    if not np.array_equal(content, other_content):
        shared = int(np.isin(other_content, content).sum())
        return (
            f"{shared:,} of the {len(content):,} and {len(other_content):,} images have the same "
            "bytes; the same pictures in another format count as others"
        )
    if not np.array_equal(label, other_label):
        return "they were scored with other labels"
    order = np.empty(len(first), np.int64)
    order[first] = second
    return Pairing("content", order, verified=True)


def _sortable(run: Run, names: list[str]) -> tuple[Any, Any, Any]:
    """Content and label of each image, sorted, and the places that they had."""
    assert run.outcomes is not None
    assert run.contents is not None
    label = np.array([names.index(name) for name in run.classes])[run.outcomes.label]
    order = np.lexsort((label, run.contents))
    return run.contents[order], label[order], order


def _common_end(a: dict[int, str], b: dict[int, str]) -> int:
    """How many parts, from the end of their paths, show that the images that both name are the same
    files, moved: these ends are equal and stand for one image alone on either side, their
    beginnings are not. 0 where none do."""
    both = sorted(a.keys() & b.keys())
    if len(both) < WITNESSES or any(a[i] == b[i] for i in both):
        return 0
    for parts in range(1, TAIL + 1):
        ends = [
            {i: "/".join(name.split("/")[-parts:]) for i, name in names.items()} for names in (a, b)
        ]
        if any(ends[0][i] != ends[1][i] for i in both):
            return 0
        if all(len(set(found.values())) == len(found) for found in ends):
            # An end at two places would be one file twice, or two files that cannot be told apart.
            places = {end: i for i, end in ends[0].items()}
            return parts if all(places.get(end, i) == i for i, end in ends[1].items()) else 0
    return 0


def _only_numbers(run: Run, parts: int) -> bool:
    """Whether the ends of the paths hold nothing but numbers and folders that follow from the
    label, as any two data sets of as many images have them: raw/3/17.png, other/3/17.png."""
    assert run.outcomes is not None
    folders = defaultdict(set)  # by label and how far up they are
    for i, name in run.names.items():
        *above, file = name.split("/")[-parts:]
        if LETTER.search(PurePosixPath(file).stem):
            return False
        for level, folder in enumerate(reversed(above)):
            folders[int(run.outcomes.label[i]), level].add(folder)
    return not any(len(found) > 1 and any(map(LETTER.search, found)) for found in folders.values())
