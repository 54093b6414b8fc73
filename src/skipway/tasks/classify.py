"""Classification: one label an image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.architecture import Architecture
from skipway.config import AugmentConfig
from skipway.data import Key, Split
from skipway.data.augment import (
    JITTER,
    POLICY,
    erased,
    mixed,
    pad_crop_flip,
    partner,
    random_resized_crop,
)
from skipway.data.feed import Batch
from skipway.data.policy import augmented, jittered
from skipway.errors import harmless
from skipway.images import Preprocess, thumbnail
from skipway.metrics import Scored, calibration, wilson_interval
from skipway.resnet import ResNet
from skipway.tasks.framing import Normaliser

Array = npt.NDArray[Any]

SHOWN_MISTAKES, SHOWN_DOUBTFUL = 24, 12
"""Pictures of a kind in the report."""
NAMED_DOUBTED, NAMED_WRONG = 200, 2000
"""Images that are named at most: those with doubted labels, and the mistakes."""
MATRIX_CLASSES = 100
"""Classes up to which the confusion matrix is kept."""


class ClassificationEvaluator:
    """Scores logits [B, K] against labels; see `tasks.Evaluator`."""

    def __init__(self) -> None:
        self._parts: list[Scored] = []

    def update(self, outputs: Array, batch: Batch) -> None:
        labels = batch.targets.cpu().numpy()
        self._parts.append(Scored.from_logits(outputs, labels, batch.index))

    def merge(self, other: ClassificationEvaluator) -> None:
        self._parts += other._parts

    def scored(self) -> Scored:
        """The outcome of each image, in the order of the split."""
        return Scored.merge(self._parts)

    def metrics(self) -> dict[str, float]:
        return self.scored().metrics()

    def interval(self) -> tuple[float, float]:
        correct = self.scored().correct
        return wilson_interval(int(correct.sum()), len(correct))

    def details(self, split: Split, classes: Sequence[str]) -> dict[str, Any]:
        scored = self.scored()

        def named(i: int, picture: bool = True) -> dict[str, Any]:
            place = int(scored.index[i])
            row = {
                "index": i,
                "name": harmless(split.names[place]),
                "label": classes[scored.label[i]],
                "predicted": classes[scored.predicted[i]],
                "score": float(scored.confidence[i]),
                "true_score": float(scored.true_score[i]),
            }
            return row | ({"image": thumbnail(split.image(place, 3))} if picture else {})

        wrong = np.flatnonzero(~scored.correct)
        worst = wrong[np.argsort(scored.true_score[wrong], kind="stable")][:SHOWN_MISTAKES]
        lead = scored.best_score[:, 0] - scored.best_score[:, 1:2].sum(axis=1)
        doubtful = np.argsort(lead, kind="stable")[:SHOWN_DOUBTFUL]
        doubted, likelier = scored.doubted_labels(len(classes))
        pictured = [*doubted[~np.isin(doubted, worst)][:SHOWN_DOUBTFUL]]
        found: dict[str, Any] = {
            "classes": classes,
            "calibration": calibration(scored.confidence, scored.correct),
            "mistakes": [named(i) for i in worst.tolist()],
            "doubtful": [
                named(i)
                | {"second": classes[scored.best[i, 1]], "second_score": scored.best_score[i, 1]}
                for i in doubtful.tolist()
                if len(classes) > 1
            ],
            "doubted_labels": {
                "n": len(doubted),
                "rows": [
                    named(i, i in pictured) | {"likelier": classes[k]}
                    for i, k in zip(
                        doubted[:NAMED_DOUBTED].tolist(), likelier.tolist(), strict=False
                    )
                ],
            },
            "images": scored.outcomes.packed(len(classes))
            | {
                "digest": _digest(split, scored, classes),
                "wrong": [harmless(split.names[int(scored.index[i])]) for i in wrong[:NAMED_WRONG]],
            },
        }
        if len(classes) <= MATRIX_CLASSES:  # of more it would be mostly zeros: images hold it too
            found["confusion"] = scored.confusion(len(classes)).tolist()
        return found


def _digest(split: Split, scored: Scored, classes: Sequence[str]) -> str:
    """sha256 of which images were scored, with which labels."""
    digest = hashlib.sha256(repr(tuple(classes)).encode("utf-8", "surrogateescape"))
    digest.update(np.ascontiguousarray(scored.label, "<i8").tobytes())
    for place in scored.index.tolist():
        digest.update(split.names[place].encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


@dataclass(frozen=True)
class Mixed:
    """Targets of mixed images: `share` of the one label, the rest of the other."""

    labels: Tensor
    others: Tensor
    share: float


@dataclass(frozen=True)
class Loss:
    """A classification loss, the mean over a batch; `config.RunConfig` says where each is from."""

    kind: Literal["ce", "bce", "focal"] = "ce"
    smoothing: float = 0.0
    gamma: float = 2.0
    """Of focal."""
    weights: tuple[float, ...] | None = None
    """Factor of the loss of an image, by class."""
    threshold: float | None = None
    """Of bce: smoothed targets above it are 1, all others 0 (2110.00476)."""

    def __call__(self, logits: Tensor, targets: Mixed) -> Tensor:
        """Of logits [B, K], float32 or float64."""
        if self.kind == "ce" and self.weights is None and targets.share == 1:  # the fastest
            return F.cross_entropy(logits, targets.labels, label_smoothing=self.smoothing)
        classes = logits.shape[1]
        own, other = (F.one_hot(t, classes).to(logits) for t in (targets.labels, targets.others))
        wanted = torch.lerp(other, own, targets.share)  # [B, K], rows that sum to 1
        smooth = wanted * (1 - self.smoothing) + self.smoothing / classes
        if self.kind == "bce":
            if self.threshold is not None:
                smooth = (smooth > self.threshold).to(smooth)
            each = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(1)
        else:
            log = logits.log_softmax(1)
            if self.kind == "focal":
                # where p rounds to 1 the slope of a power below 1 would be infinite
                log = log * (1 - log.exp()).clamp_min(1e-12) ** self.gamma
            each = -(smooth * log).sum(1)
        if self.weights is not None:
            each = each * (wanted @ logits.new_tensor(self.weights))
        return each.mean()


class Classify:
    """`tasks.Task` for labels; images are decoded arrays, targets whole numbers."""

    def __init__(
        self,
        preprocess: Preprocess,
        augmentation: AugmentConfig,
        loss: Loss | None = None,
    ) -> None:
        self.preprocess = preprocess
        self.augmentation = augmentation
        self.loss = loss or Loss()
        self.normalise = Normaliser(preprocess)

    def build(self, architecture: Architecture) -> nn.Module:
        return ResNet(architecture)

    def augment(self, image: Array, target: int, key: Key | None) -> tuple[Array, int]:
        c = self.augmentation
        if key is None:
            return self.preprocess.frame(image)[0], target
        if c.area is None:
            image = self.preprocess.frame(image)[0]
        else:
            size = self.preprocess.size if c.size is None else (c.size, c.size)
            image = random_resized_crop(image, size, key, c.area, self.preprocess.interpolation)
        if c.jitter:
            image = jittered(image, c.jitter, key.uniform(6, JITTER))
        if c.policy != "none":
            operations = c.operations if c.policy == "rand" else 1
            draws = key.uniform(4 * operations, POLICY)
            draws = np.column_stack((draws[: 3 * operations].reshape(-1, 3), draws[-operations:]))
            fill = tuple(round(255 * mean) for mean in self.preprocess.mean)
            chance, noise = c.operation_probability, c.magnitude_std
            image = augmented(image, c.policy, c.magnitude, fill, draws, chance, noise)
        return image, target

    def collate(self, samples: list[tuple[Array, int]]) -> tuple[Tensor, Tensor]:
        frames = np.stack([image for image, _ in samples])
        labels = torch.tensor([target for _, target in samples])
        return torch.from_numpy(frames).permute(0, 3, 1, 2), labels

    def to_input(self, batch: Batch, key: Key | None) -> Batch:
        images = self.normalise(batch.images)
        if key is not None:
            pad, flip = self.augmentation.pad_crop, self.augmentation.flip
            images = pad_crop_flip(images, key, pad, flip)
            if self.augmentation.erase:
                images = erased(images, key, self.augmentation.erase)
            alphas = self.augmentation.mixup, self.augmentation.cutmix
            if any(alphas) and len(batch) > 1:
                shift = partner(batch.index)
                images, share = mixed(images, key, *alphas, shift)
                targets = Mixed(batch.targets, batch.targets.roll(-shift), share)
                return replace(batch, images=images, targets=targets)
        return replace(batch, images=images)

    def shown(self, batch: Batch, classes: Sequence[str]) -> list[dict[str, Any]]:
        pictures, targets = self.preprocess.pixels(batch.images.numpy()), batch.targets
        labels = targets.labels if isinstance(targets, Mixed) else targets
        rows: list[dict[str, Any]] = [
            {"label": classes[k], "image": thumbnail(picture)}
            for k, picture in zip(labels.tolist(), pictures, strict=True)
        ]
        if isinstance(targets, Mixed):
            for row, other in zip(rows, targets.others.tolist(), strict=True):
                row |= {"other": classes[other], "share": targets.share}
        return rows

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return self.terms(model(batch.images), batch.targets)

    def terms(self, logits: Tensor, targets: Tensor | Mixed) -> dict[str, Tensor]:
        """What `losses` gives, of a network's outputs [B, K]."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        whole = targets if isinstance(targets, Mixed) else Mixed(targets, targets, 1.0)
        larger = whole.labels if whole.share >= 0.5 else whole.others
        with torch.no_grad():
            accuracy = (logits.argmax(1) == larger).float().mean()
        return {"loss": self.loss(logits, whole), "accuracy": accuracy}

    def predict(self, model: nn.Module, batch: Batch) -> Array:
        logits: Array = model(batch.images).float().cpu().numpy()
        return logits

    def evaluator(self) -> ClassificationEvaluator:
        return ClassificationEvaluator()
