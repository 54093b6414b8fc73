"""Metric learning: images as vectors, close where their classes are the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.architecture import Architecture
from skipway.bootstrap import Interval
from skipway.config import AugmentConfig
from skipway.data import Key, Split
from skipway.data.feed import Batch
from skipway.embedders import build_embedder
from skipway.errors import harmless
from skipway.heads import EmbedderConfig
from skipway.images import Preprocess, thumbnail
from skipway.metrics import grouped_interval
from skipway.retrieval import Retrieved, neighbours, retrieved
from skipway.tasks.classify import Classify

Array = npt.NDArray[Any]

KS = (1, 2, 4, 8)
"""Neighbours among which a query's class is looked for."""
SHOWN, SHOWN_NEIGHBOURS = 12, 4
"""Queries in the report, and what each found."""
_SINE = 1e-6
"""Least squared sine that has a gradient: that of the sine itself is infinite at 0."""


def batch_hard(vectors: Tensor, labels: Tensor, margin: float) -> Tensor:
    """The triplet loss of the hardest triplet of each image (1703.07737, eq. 5), the mean over
    images that have one: of those that share the class with another and not with all.

    vectors: float [B, D]; labels: int64 [B]. The distance is Euclidean, not squared. 0, with a
    gradient of zeros, where no image has a triplet.
    """
    distance = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels
    own = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    some = own.any(1) & ~same.all(1)
    if not some.any():
        return 0 * vectors.sum()
    farthest = distance.where(own, -math.inf).amax(1)[some]
    nearest = distance.where(~same, math.inf).amin(1)[some]
    return F.relu(margin + farthest - nearest).mean()


def proxy_anchor(
    vectors: Tensor, directions: Tensor, labels: Tensor, margin: float, scale: float
) -> Tensor:
    """2003.13911, eq. 4: each class's direction, its proxy, pulls the hardest of its images most
    and pushes the hardest of the others.

    vectors: float [B, D]; directions: [K, D], both of length 1; labels: int64 [B]. The images of a
    class that is not in the batch are pushed only.
    """
    cosine = vectors @ directions.T
    own = F.one_hot(labels, len(directions)).bool()
    one = cosine.new_zeros(1, len(directions))  # the 1 in log(1 + ...)
    pull = torch.cat((one, (-scale * (cosine - margin)).where(own, -math.inf))).logsumexp(0)
    push = torch.cat((one, (scale * (cosine + margin)).where(~own, -math.inf))).logsumexp(0)
    return pull[own.any(0)].mean() + push.mean()


def arcface(
    vectors: Tensor, directions: Tensor, labels: Tensor, margin: float, scale: float
) -> Tensor:
    """1801.07698, eq. 3: cross-entropy of scaled cosines to the classes' directions, where the
    angle to the own one counts as wider by the margin.

    vectors: float [B, D]; directions: [K, D], both of length 1; labels: int64 [B]; margin in
    radians. Past an angle of pi - margin, where the cosine of the sum would rise again, the cosine
    itself, less margin * sin(margin), takes its place, as in the authors' code.
    """
    cosine = vectors @ directions.T
    own = F.one_hot(labels, len(directions)).bool()
    sine = (1 - cosine.square()).clamp_min(_SINE).sqrt()
    wider = cosine * math.cos(margin) - sine * math.sin(margin)
    wider = wider.where(cosine > -math.cos(margin), cosine - margin * math.sin(margin))
    return F.cross_entropy(scale * wider.where(own, cosine), labels)


class RetrievalEvaluator:
    """Each image a query against all others of its split; see `tasks.Evaluator`."""

    def __init__(self) -> None:
        self._parts: list[tuple[Array, Array, Array]] = []

    def update(self, outputs: Array, batch: Batch) -> None:
        self.add(batch.index, outputs, batch.targets.cpu().numpy())

    def add(self, index: Array, vectors: Array, labels: Array) -> None:
        """Take the vectors, float32 [B, D], and labels, int64 [B], of those positions of the
        split."""
        self._keep([(index, vectors, labels)])

    def merge(self, other: RetrievalEvaluator) -> None:
        self._keep(other._parts)

    def _keep(self, parts: list[tuple[Array, Array, Array]]) -> None:
        self._parts = self._parts + parts
        for name in ("seen", "found"):
            self.__dict__.pop(name, None)

    @cached_property
    def seen(self) -> tuple[Array, Array, Array]:
        """Position in the split, vector and label of each image, in the order of the split."""
        if not self._parts:
            return np.zeros(0, np.int64), np.zeros((0, 1), np.float32), np.zeros(0, np.int64)
        index, vectors, labels = map(np.concatenate, zip(*self._parts, strict=True))
        _, once = np.unique(index, return_index=True)
        return index[once], vectors[once], labels[once]

    @cached_property
    def found(self) -> Retrieved:
        """What each query found; vectors that are no numbers find nothing."""
        _, vectors, labels = self.seen
        finite = bool(np.isfinite(vectors).all())
        return retrieved(vectors, labels) if finite else retrieved(vectors[:0], labels[:0])

    def metrics(self) -> dict[str, float]:
        found = self.found
        return {f"recall_at_{k}": found.recall_at_k(k) for k in KS} | {"map_at_r": found.map_at_r()}

    def intervals(self) -> dict[str, Interval | None]:
        """The 95 % interval of each metric over classes, `grouped_interval`: the queries of one
        share what they look for, and rise and fall together."""
        found = self.found
        own = self.seen[2][found.index]
        values = {f"recall_at_{k}": found.found_at(k) for k in KS} | {"map_at_r": found.precision}
        return {name: grouped_interval(of, own) for name, of in values.items()}

    def interval(self) -> Interval | None:
        return self.intervals()["recall_at_1"]

    def per_class(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Queries, recall at 1 and mAP@R of each class that has a query."""
        found, labels = self.found, self.seen[2]
        own = labels[found.index]
        n = np.bincount(own)
        sums = [np.bincount(own, values) for values in (found.found_at(1), found.precision)]
        return [
            {
                "label": harmless(classes[k]),
                "n": int(n[k]),
                "recall_at_1": float(sums[0][k] / n[k]),
                "map_at_r": float(sums[1][k] / n[k]),
            }
            for k in np.flatnonzero(n).tolist()
        ]

    def details(self, split: Split, classes: Sequence[str]) -> dict[str, Any]:
        return {
            "classes": [*classes],
            "queries": len(self.found),
            "per_class": self.per_class(classes),
            "worst": self._worst(split, classes),
        }

    def _worst(self, split: Split, classes: Sequence[str]) -> list[dict[str, Any]]:
        """The queries of the least precision below 1, of equal ones those that look farthest for
        their class, with their nearest images."""
        index, vectors, labels = self.seen
        found = self.found

        def named(i: int) -> dict[str, Any]:
            place = int(index[i])
            return {
                "name": harmless(split.names[place]),
                "label": harmless(classes[labels[i]]),
                "image": thumbnail(split.image(place, 3)),
            }

        order = np.lexsort((-found.first, found.precision))[:SHOWN]
        order = order[found.precision[order] < 1]
        asked = found.index[order]
        near, similarity = neighbours(vectors, asked, SHOWN_NEIGHBOURS)
        rows = []
        for i, k, others, cosines in zip(asked, order, near, similarity, strict=True):
            hits = [
                named(int(j)) | {"similarity": float(cosine), "right": bool(labels[j] == labels[i])}
                for j, cosine in zip(others, cosines, strict=True)
            ]
            of_query = {"first": int(found.first[k]), "map_at_r": float(found.precision[k])}
            rows.append(named(int(i)) | of_query | {"neighbours": hits})
        return rows


class Embed:
    """`tasks.Task` for vectors; images are decoded arrays, targets whole numbers."""

    def __init__(
        self, preprocess: Preprocess, augmentation: AugmentConfig, embedder: EmbedderConfig
    ) -> None:
        self.preprocess, self.embedder = preprocess, embedder
        self._images = Classify(preprocess, augmentation)  # images are made ready as for it

    def build(self, architecture: Architecture) -> nn.Module:
        return build_embedder(architecture, self.embedder, architecture.num_classes)

    def augment(self, image: Array, target: int, key: Key | None) -> tuple[Array, int]:
        return self._images.augment(image, target, key)

    def collate(self, samples: list[tuple[Array, int]]) -> tuple[Tensor, Tensor]:
        return self._images.collate(samples)

    def to_input(self, batch: Batch, key: Key | None) -> Batch:
        return self._images.to_input(batch, key)

    def shown(self, batch: Batch, classes: Sequence[str]) -> list[dict[str, Any]]:
        return self._images.shown(batch, classes)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        outputs = model(batch.images)
        c, vectors = self.embedder, outputs["vectors"]
        with torch.autocast(vectors.device.type, enabled=False):
            if c.loss == "triplet":
                return {"loss": batch_hard(vectors, batch.targets, c.margin)}
            against = proxy_anchor if c.loss == "proxy-anchor" else arcface
            directions = outputs["directions"]
            return {"loss": against(vectors, directions, batch.targets, c.margin, c.scale)}

    def predict(self, model: nn.Module, batch: Batch) -> Array:
        vectors: Array = model(batch.images).cpu().numpy()
        return vectors

    def evaluator(self) -> RetrievalEvaluator:
        return RetrievalEvaluator()
