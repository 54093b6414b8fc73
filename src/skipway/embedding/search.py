"""The nearest vectors of an index, exactly: block by block, memory does not grow with it."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.embedding.embedder import Embedder
from skipway.embedding.index import Entry, Index
from skipway.embedding.sheet import Layout, Tile, fitted, write_sheet
from skipway.errors import harmless
from skipway.images import DecodeError, decode

Array = npt.NDArray[Any]

WITH_FAISS = 100_000
"""Vectors from which on faiss is taken, where it is installed."""
_AT_A_TIME = 64
"""Queries whose products with a block are held."""
_SLACK = 64
"""More candidates than are asked for, which faiss gives of a block."""

Propose = Callable[[Array, int, Array], list[Array]]
"""Queries [Q, D], how many of a block are wanted, and the largest error of each query's products,
[Q], to the positions in the block that may be among them, of each query."""


def nearest_rows(
    blocks: Iterable[tuple[int, Array]], queries: Array, top: int, faiss: bool = False
) -> tuple[Array, Array]:
    """The `top` largest dot products of each query, largest first, equal ones in the order of rows.

    blocks: vectors, float32 [n, D], each block with the number of its first row. queries: float32
    [Q, D]. Returns scores, float64 [Q, k], and rows, int64 [Q, k], with k of `top` or, where they
    are fewer, of all vectors.

    Products in float32 only propose: whatever could be among the best, by the largest error that
    they can have, is computed again in float64. So the result depends neither on the blocks nor on
    what proposes, NumPy or faiss.
    """
    of_block = _by_faiss if faiss else _by_numpy
    scores = [np.zeros(0) for _ in queries]
    rows = [np.zeros(0, np.int64) for _ in queries]
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
    for start, block in blocks:
        longest = math.sqrt(np.einsum("nd,nd->n", block, block, dtype=np.float64).max())
        # n products summed in any order are off by at most n u / (1 - n u) times those of lengths.
        n = (block.shape[1] + 1) * 2.0**-24
        error = n / (1 - n) * lengths * longest + 1e-30
        propose = of_block(block)
        proposed = (
            positions
            for low in range(0, len(queries), _AT_A_TIME)
            for positions in propose(
                queries[low : low + _AT_A_TIME], top, error[low : low + _AT_A_TIME]
            )
        )
        for i, found in enumerate(proposed):
            exact = (block[found].astype(np.float64) * queries[i].astype(np.float64)).sum(axis=1)
            all_scores = np.concatenate([scores[i], exact])
            all_rows = np.concatenate([rows[i], found + start])
            best = np.lexsort((all_rows, -all_scores))[:top]
            scores[i], rows[i] = all_scores[best], all_rows[best]
    return np.array(scores), np.array(rows, np.int64)


def _by_numpy(block: Array) -> Propose:
    """From all products of the block."""
    return functools.partial(_large_products, block)


def _large_products(block: Array, queries: Array, top: int, error: Array) -> list[Array]:
    everything = np.arange(len(block))
    if top >= len(block):
        return [everything] * len(queries)
    with np.errstate(over="ignore", invalid="ignore"):
        products = queries @ block.T
        least = np.partition(products, len(block) - top, axis=1)[:, len(block) - top] - 2 * error
    return [
        np.flatnonzero(p >= limit) if np.isfinite(p).all() else everything
        for p, limit in zip(products, least, strict=True)
    ]


def _by_faiss(block: Array) -> Propose:
    """From an index of faiss, which is made once of the block."""
    import faiss

    index = faiss.IndexFlatIP(block.shape[1])
    index.add(np.ascontiguousarray(block))

    def propose(queries: Array, top: int, error: Array) -> list[Array]:
        products, found = index.search(np.ascontiguousarray(queries), min(top + _SLACK, len(block)))
        if len(block) > top + _SLACK:
            # Where even the last is as good as one of the best, others not given may be too.
            enough = products[:, -1] < products[:, top - 1] - 2 * error
            if not (enough & np.isfinite(products).all(axis=1)).all():
                return _large_products(block, queries, top, error)
        return [np.sort(positions) for positions in found]

    return propose


@dataclass(frozen=True)
class Hit:
    """An image of the index; `score` is the cosine, or the dot product of other vectors."""

    row: int
    score: float
    entry: Entry


@dataclass(frozen=True)
class Similar:
    """What is most similar to an image, the most similar first."""

    path: str
    hits: tuple[Hit, ...]
    error: str | None = None
    """Why there are none, where the image could not be read."""

    def to_json(self, folder: str | None) -> dict[str, Any]:
        """folder: what the paths of the index are relative to."""
        hits = [
            {
                "row": hit.row,
                "score": hit.score,
                **asdict(hit.entry),
                "file": None if folder is None else os.path.join(folder, hit.entry.path),
            }
            for hit in self.hits
        ]
        return {"path": self.path, "hits": hits, "error": self.error}

    def lines(self) -> list[str]:
        """As a person reads it."""
        labels = [harmless(hit.entry.label or "") for hit in self.hits]
        width = max(map(len, labels), default=0)
        return [
            harmless(self.path),
            *(
                f"{i:>4}  {hit.score:.4f}  {label:<{width}}  {harmless(hit.entry.path)}"
                for i, (hit, label) in enumerate(zip(self.hits, labels, strict=True), 1)
            ),
        ]


def find_similar(
    embedder: Embedder, index: Index, paths: Sequence[str], top: int = 10
) -> list[Similar]:
    """The `top` images of the index that are most similar to each; see `nearest_rows`.

    An image that cannot be read has an `error`. Raises InputError where the index is damaged.
    """
    vectors = list(embedder.stream(paths))
    queries = [v for v in vectors if not isinstance(v, DecodeError)]
    faiss = len(index) > WITH_FAISS and _has_faiss()
    scores, rows = nearest_rows(
        index.blocks(), np.array(queries, np.float32).reshape(-1, index.dimensions), top, faiss
    )
    entries = index.entries(np.unique(rows).tolist())
    found = iter(
        tuple(Hit(row, score, entries[row]) for row, score in zip(*pair, strict=True))
        for pair in zip(rows.tolist(), scores.tolist(), strict=True)
    )
    return [
        Similar(path, (), str(v)) if isinstance(v, DecodeError) else Similar(path, next(found))
        for path, v in zip(paths, vectors, strict=True)
    ]


def _has_faiss() -> bool:
    try:
        import faiss
    except ImportError:
        return False
    return hasattr(faiss, "IndexFlatIP")


def write_found(
    path: str | os.PathLike[str], found: Sequence[Similar], index: Index
) -> tuple[int, int]:
    """A contact sheet of what was found; an image that is gone or damaged is shown as such.

    Returns width and height in pixels; see `write_sheet`.
    """
    known = [one for one in found if one.error is None]
    Layout.of([len(one.hits) for one in known])  # refused before the images are read
    rows = []
    for one in known:
        hits = [
            Tile(
                None if (image := index.image(hit.entry)) is None else fitted(image),
                f"{i}. {hit.entry.label or ''}",
                f"{hit.score:.3f}",
                hit.entry.path,
            )
            for i, hit in enumerate(one.hits, 1)
        ]
        rows.append((Tile(fitted(decode(one.path)), "query", "", one.path), hits))
    return write_sheet(path, rows)
