"""Which image of one run is which of another's: told from what both kept, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
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

By = Literal["path", "content", "file name"]


@dataclass(frozen=True)
class Pairing:
    """Image i of the first run is image `order[i]` of the second."""

    by: By
    order: npt.NDArray[np.int64]


def pair_images(a: Run, b: Run) -> Pairing | str:
    """How the images of two runs that kept their outcomes belong together, or why nobody knows.

    The path inside the data comes first; where it differs, the content; where a run kept no digest
    of that, the order of the split with the labels and file names in it.
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
            return f"under the same paths {differ:,} of {n:,} images have other content"
    if digests[0] == digests[1]:
        if n != others:
            return "their records of the same images do not fit together"
        return Pairing("path", np.arange(n))
    same = a.classes == b.classes and np.array_equal(a.outcomes.label, b.outcomes.label)
    if same and _names_agree(a.names, b.names):
        return Pairing("file name", np.arange(n))
    return "they were scored on other images, or with other labels"


def _by_content(a: Run, b: Run) -> Pairing | str:
    """Equal digests are equal images: which of several is taken makes no difference."""
    names = sorted({*a.classes, *b.classes})
    columns = [_sortable(run, names) for run in (a, b)]
    (content, label, first), (other_content, other_label, second) = columns
    if not np.array_equal(content, other_content):
        shared = int(np.isin(other_content, content).sum())
        return f"{shared:,} of the {len(content):,} and {len(other_content):,} images are the same"
    if not np.array_equal(label, other_label):
        return "they were scored with other labels"
    order = np.empty(len(first), np.int64)
    order[first] = second
    return Pairing("content", order)


def _sortable(run: Run, names: list[str]) -> tuple[Any, Any, Any]:
    """Content and label of each image, sorted, and the places that they had."""
    assert run.outcomes is not None
    assert run.contents is not None
    label = np.array([names.index(name) for name in run.classes])[run.outcomes.label]
    order = np.lexsort((label, run.contents))
    return run.contents[order], label[order], order


def _names_agree(a: dict[int, str], b: dict[int, str]) -> bool:
    """Whether the images that both name are the same files, moved: the ends of their paths are
    equal and stand for one image alone on either side, their beginnings are not."""
    both = sorted(a.keys() & b.keys())
    if len(both) < WITNESSES or any(a[i] == b[i] for i in both):
        return False
    for parts in range(1, TAIL + 1):
        ends = [
            {i: "/".join(name.split("/")[-parts:]) for i, name in names.items()} for names in (a, b)
        ]
        if any(ends[0][i] != ends[1][i] for i in both):
            return False
        if all(len(set(found.values())) == len(found) for found in ends):
            # An end at two places would be one file twice, or two files that cannot be told apart.
            places = {end: i for i, end in ends[0].items()}
            return all(places.get(end, i) == i for i, end in ends[1].items())
    return False
