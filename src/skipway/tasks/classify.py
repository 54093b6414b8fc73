"""Classification: one label an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.architecture import Architecture
from skipway.config import AugmentConfig
from skipway.data import Key, Split
from skipway.data.augment import pad_crop_flip, random_resized_crop
from skipway.data.feed import Batch
from skipway.errors import harmless
from skipway.images import Preprocess, thumbnail
from skipway.metrics import Scored, calibration, wilson_interval
from skipway.resnet import ResNet

Array = npt.NDArray[Any]

SHOWN_MISTAKES = 24


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
        wrong = np.flatnonzero(~scored.correct)
        worst = wrong[np.argsort(scored.true_score[wrong], kind="stable")][:SHOWN_MISTAKES]
        return {
            "classes": classes,
            "confusion": scored.confusion(len(classes)).tolist(),
            "calibration": calibration(scored.confidence, scored.correct),
            "mistakes": [
                {
                    "name": harmless(split.names[int(scored.index[i])]),
                    "label": classes[scored.label[i]],
                    "predicted": classes[scored.predicted[i]],
                    "score": float(scored.confidence[i]),
                    "true_score": float(scored.true_score[i]),
                    "image": thumbnail(split.image(int(scored.index[i]), 3)),
                }
                for i in worst
            ],
        }


class Classify:
    """`tasks.Task` for labels; images are decoded arrays, targets whole numbers."""

    def __init__(
        self, preprocess: Preprocess, augmentation: AugmentConfig, label_smoothing: float = 0.0
    ) -> None:
        self.preprocess = preprocess
        self.augmentation = augmentation
        self.label_smoothing = label_smoothing
        self._constants: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def build(self, architecture: Architecture) -> nn.Module:
        return ResNet(architecture)

    def augment(self, image: Array, target: int, key: Key | None) -> tuple[Array, int]:
        area = self.augmentation.area
        if key is None or area is None:
            return self.preprocess.frame(image)[0], target
        size, filter_name = self.preprocess.size, self.preprocess.interpolation
        return random_resized_crop(image, size, key, area, filter_name), target

    def collate(self, samples: list[tuple[Array, int]]) -> tuple[Tensor, Tensor]:
        frames = np.stack([image for image, _ in samples])
        labels = torch.tensor([target for _, target in samples])
        return torch.from_numpy(frames).permute(0, 3, 1, 2), labels

    def to_input(self, batch: Batch, key: Key | None) -> Batch:
        images = self.normalise(batch.images)
        if key is not None:
            pad, flip = self.augmentation.pad_crop, self.augmentation.flip
            images = pad_crop_flip(images, key, pad, flip)
        return Batch(images, batch.targets, batch.index)

    def normalise(self, frames: Tensor) -> Tensor:
        """`Preprocess.normalise` on any device: uint8 or uint16 [B, C, H, W] to float32."""
        at = (frames.device, frames.dtype)
        if at not in self._constants:
            dtype = np.uint8 if frames.dtype == torch.uint8 else np.uint16
            constants = self.preprocess.scale_shift(dtype)
            on_device = [torch.from_numpy(c).to(frames.device) for c in constants]
            self._constants[at] = (on_device[0], on_device[1])
        scale, shift = self._constants[at]
        return frames.float().mul_(scale).add_(shift)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = model(batch.images).float()
        loss = F.cross_entropy(logits, batch.targets, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            accuracy = (logits.argmax(1) == batch.targets).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    def predict(self, model: nn.Module, batch: Batch) -> Array:
        logits: Array = model(batch.images).float().cpu().numpy()
        return logits

    def evaluator(self) -> ClassificationEvaluator:
        return ClassificationEvaluator()
