"""Metrics of retrieval, in NumPy: each image is a query against all others of its split.

Images of the query's class are what it should find. Similarity is the dot product, of unit vectors
the cosine, in float64. A tie counts against the vectors: what is of another class, and not less
similar by more than `TIE`, comes first. So vectors that are all alike find nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

TIE = 1e-6
"""Similarities that are no further apart are tied: float32 says no more of vectors of length 1."""
_AT_ONCE = 1 << 23
"""Similarities that are held at a time: 64 MiB."""


@dataclass(frozen=True)
class Retrieved:
    """What each query found; an image without another of its class asks for nothing and is none."""

    index: Array
    """Position of each query among the images, rising: int64 [Q]."""
    first: Array
    """Rank of the first image of its class, 1 for the nearest of all: int64 [Q]."""
    precision: Array
    """Average precision over the R nearest, where R others are of its class (2003.08505, section
    3.2): float64 [Q], 0..1."""

    def __len__(self) -> int:
        """Queries."""
        return len(self.index)

    def found_at(self, k: int) -> Array:
        """Whether one of the k nearest is of the query's class: bool [Q]."""
        return self.first <= k

    def recall_at_k(self, k: int) -> float:
        """The share of the queries that find their class among the k nearest, 0..1 (1511.06452,
        section 5); NaN without queries."""
        return float(self.found_at(k).mean()) if len(self) else float("nan")

    def map_at_r(self) -> float:
        """The mean of `precision`, 0..1 (2003.08505, section 3.2); NaN without queries."""
        return float(self.precision.mean()) if len(self) else float("nan")


def retrieved(vectors: Array, labels: Array) -> Retrieved:
    """What each image finds among all others.

    vectors: finite float [N, D]; labels: whole numbers [N]. So many queries at a time that their
    similarities take 64 MiB: 60,000 images never need the 29 GB of all.
    """
    order = np.argsort(labels, kind="stable")  # the images of a class lie side by side
    wide = vectors[order].astype(np.float64)
    _, start, size = np.unique(labels[order], return_index=True, return_counts=True)
    low, high = np.repeat(start, size), np.repeat(start + size, size)
    first = np.zeros(len(order), np.int64)
    precision = np.zeros(len(order))
    asking = np.flatnonzero(high - low > 1)
    for rows in np.array_split(asking, max(-(-asking.size * len(order) // _AT_ONCE), 1)):
        similar = wide[rows] @ wide.T
        for i, line in zip(rows.tolist(), similar, strict=True):
            own = np.delete(line[low[i] : high[i]], i - low[i])
            line[low[i] : high[i]] = -np.inf
            first[i], precision[i] = _ranked(own, line)
    back = np.argsort(order[asking])
    chosen = asking[back]
    return Retrieved(order[chosen], first[chosen], precision[chosen])


def _ranked(own: Array, others: Array) -> tuple[int, float]:
    """The rank of the first of a query's class, and its average precision at R.

    own: similarities of the R images of its class; others: those of more than R images, -inf for
    what is none of another class.
    """
    relevant = len(own)
    own = np.sort(own)[::-1]
    rank = 1 + int(np.count_nonzero(others >= own[0] - TIE))
    # what comes behind the R nearest of the others keeps none out of the R nearest of all
    nearest = np.sort(np.partition(others, -relevant)[-relevant:])
    count = np.arange(1, relevant + 1)
    ranks = count + relevant - np.searchsorted(nearest, own - TIE, side="left")
    inside = ranks <= relevant
    return rank, float((count[inside] / ranks[inside]).sum() / relevant)


def neighbours(vectors: Array, queries: Array, top: int) -> tuple[Array, Array]:
    """The `top` images that are most similar to each of those, itself left out; equal ones in the
    order of the images.

    vectors: float [N, D]; queries: positions [Q]. Positions, int64 [Q, min(top, N - 1)], and their
    similarities, float64.
    """
    wide = vectors.astype(np.float64)
    top = min(top, len(wide) - 1)
    similar = wide[queries] @ wide.T
    similar[np.arange(len(queries)), queries] = -np.inf
    found = np.argsort(-similar, axis=1, kind="stable")[:, :top]
    return found, np.take_along_axis(similar, found, axis=1)
