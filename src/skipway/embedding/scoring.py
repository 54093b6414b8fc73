"""How well a model's vectors find images of the same class among those of a split."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.data import Split
from skipway.data.ahead import batches, read_ahead
from skipway.data.preflight import content_digest
from skipway.embedding.embedder import Embedder
from skipway.errors import InputError
from skipway.images import DecodeError, decode
from skipway.tasks.embed import RetrievalEvaluator

Array = npt.NDArray[Any]


def score_vectors(
    embedder: Embedder, split: Split, threads: int, on_bad: str = "error", batch_size: int = 32
) -> tuple[RetrievalEvaluator, list[str], int]:
    """What each image of a split finds among the others; why each that was skipped was; and how
    many have another of the same content, which they find however the vectors are made.

    Raises DecodeError where `on_bad` is error, InputError where no two images of a class are left.
    """
    preprocess = embedder.card.preprocess

    def ready(i: int) -> tuple[Array, bytes]:
        name = split.names[i]
        source = split.reader.read(name)
        return preprocess(decode(source, preprocess.channels, name)), content_digest(source)

    evaluator, skipped = RetrievalEvaluator(), []
    contents: Counter[bytes] = Counter()
    decoded = read_ahead(range(len(split)), ready, threads, 2 * batch_size, on_bad)
    for batch in batches(decoded, batch_size):
        skipped += [str(x) for _, x in batch if isinstance(x, DecodeError)]
        read = [(i, x) for i, x in batch if not isinstance(x, DecodeError)]
        if read:
            index = np.array([i for i, _ in read])
            vectors = embedder.run(np.stack([x for _, (x, _) in read]))
            contents.update(content for _, (_, content) in read)
            evaluator.add(index, vectors, split.labels[index])
    if not len(evaluator.found):
        raise InputError(
            "no two images of one class, so there is nothing to find"
            + "".join(f"\n{reason}" for reason in skipped[:1])
        )
    return evaluator, skipped, sum(n for n in contents.values() if n > 1)
