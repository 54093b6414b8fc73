"""Semantic segmentation: the class of every pixel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway import segmentations
from skipway.architecture import Architecture
from skipway.bootstrap import ComparedFigures, Interval
from skipway.config import AugmentConfig
from skipway.data import Key, Split
from skipway.data.augment import JITTER
from skipway.data.feed import Batch
from skipway.data.policy import jittered
from skipway.drawing import painted
from skipway.errors import InputError, harmless
from skipway.heads import SegmenterConfig
from skipway.images import Geometry, Preprocess, thumbnail
from skipway.segmentations import (
    IGNORED,
    boundary_counts,
    confusion,
    iou,
    mean_boundary_f1,
    mean_iou,
    precision,
    recall,
)
from skipway.tasks.framing import Normaliser, padded, view_of
from skipway.tasks.maps import class_map

Array = npt.NDArray[Any]

SHOWN, _SHOWN_SIDE = 8, 320
"""Images in the report, and the pixels of their longer sides."""
_AUXILIARY = 0.5
"""Share of the loss of an auxiliary head, as torchvision's reference has it."""
_LEAST = 1e-6
"""Added to both sides of Dice's fraction, for a class without a pixel."""


@dataclass(frozen=True)
class PixelLoss:
    """The loss of logits [N, K, H, W] against classes; ignored pixels have none."""

    kind: Literal["ce", "focal", "ce+dice"] = "ce"
    smoothing: float = 0.0
    gamma: float = 2.0
    """Of focal (1708.02002)."""
    weights: tuple[float, ...] | None = None
    """Factor of the cross-entropy of a pixel, by class."""

    def terms(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss by part, of float32 logits and int64 labels [N, H, W] with `IGNORED`."""
        known = labels != IGNORED
        if not known.any():  # its mean is no number; the network still has a gradient, of zeros
            return {f"loss_{part}": 0 * logits.sum() for part in self.kind.split("+")}
        weights = None if self.weights is None else logits.new_tensor(self.weights)
        if self.kind == "focal":
            log = logits.log_softmax(1)
            wanted = labels.where(known, labels.new_zeros(()))
            each = self._focal(log.gather(1, wanted[:, None]))[:, 0]
            if self.smoothing:
                each = torch.lerp(each, self._focal(log).mean(1), self.smoothing)
            share = known.to(logits) if weights is None else weights[wanted] * known
            return {"loss_focal": (each * share).sum() / share.sum()}
        ce = F.cross_entropy(
            logits, labels, weights, ignore_index=IGNORED, label_smoothing=self.smoothing
        )
        return {"loss_ce": ce} | (
            {"loss_dice": dice(logits, labels)} if "dice" in self.kind else {}
        )

    def _focal(self, log: Tensor) -> Tensor:
        """The loss of classes by the logarithm of their probability."""
        return -log * (1 - log.exp()).clamp_min(1e-12) ** self.gamma


def dice(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - the soft Dice coefficient of the batch, the mean over the classes that are there.

    V-Net, 1606.04797, section 3, with its squares left out: 2 sum(p g) / (sum(p) + sum(g)).
    """
    known = (labels != IGNORED)[:, None]
    classes = logits.shape[1]
    wanted = F.one_hot(labels.where(known[:, 0], labels.new_zeros(())), classes)
    truth = wanted.movedim(-1, 1).to(logits) * known
    shares = logits.softmax(1) * known
    both, sums = ((shares * truth).sum((0, 2, 3)), (shares + truth).sum((0, 2, 3)))
    there = truth.sum((0, 2, 3)) > 0
    return 1 - ((2 * both + _LEAST) / (sums + _LEAST))[there].mean()


@dataclass(frozen=True)
class PixelTarget:
    """What an image's pixels are."""

    labels: Tensor
    """uint8 [h, w] as the network sees the image; in evaluation empty."""
    whole: Array
    """uint8 [H, W] as they are in the image."""
    geometry: Geometry


class SegmentationEvaluator:
    """Intersection over union of each class, over all pixels; see `tasks.Evaluator`."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._seen: dict[int, tuple[Array, Array]] = {}
        """By position in the split: confusion int64 [K, K], and the counts at boundaries."""
        self._worst: dict[int, tuple[Array, Array]] = {}
        """Of the images with the largest shares of wrong pixels: found and truth."""

    def update(self, outputs: Sequence[Array], batch: Batch) -> None:
        for i, found, target in zip(batch.index.tolist(), outputs, batch.targets, strict=True):
            self.add(i, found, target.whole)

    def add(self, i: int, found: Array, truth: Array) -> None:
        """Take what was found in image i of the split, and what is there: uint8 [H, W]."""
        counts = confusion(found, truth, self.classes)
        self._seen[i] = counts, boundary_counts(found, truth, self.classes)
        self._keep({i: (found, truth)})

    def merge(self, other: SegmentationEvaluator) -> None:
        self._seen |= other._seen
        self._keep(other._worst)

    def _keep(self, maps: dict[int, tuple[Array, Array]]) -> None:
        together = self._worst | maps
        wrong = {i: self.wrong(i) for i in together}
        order = sorted(together, key=lambda i: (-wrong[i], i))[:SHOWN]
        self._worst = {i: together[i] for i in order}
        for name in ("confusions", "_boundaries", "intervals"):
            self.__dict__.pop(name, None)

    def wrong(self, i: int) -> float:
        """Share of an image's judged pixels that are another class; 0 where none is judged."""
        counts = self._seen[i][0]
        return 1 - float(np.trace(counts)) / max(int(counts.sum()), 1)

    @cached_property
    def confusions(self) -> Array:
        """int64 [N, K, K] of the images in the order of the split: rows are truth."""
        rows = [self._seen[i][0] for i in sorted(self._seen)]
        return np.stack(rows) if rows else np.zeros((0, self.classes, self.classes), np.int64)

    @cached_property
    def _boundaries(self) -> Array:
        """int64 [N, 4, K], as `confusions`."""
        rows = [self._seen[i][1] for i in sorted(self._seen)]
        return np.stack(rows) if rows else np.zeros((0, 4, self.classes), np.int64)

    def metrics(self) -> dict[str, float]:
        found = segmentations.metrics(self.confusions, self._boundaries)
        # where every image is of one class, no boundary can be judged
        return {name: v for name, v in found.items() if name == "miou" or not np.isnan(v)}

    @cached_property
    def intervals(self) -> dict[str, Interval | None]:
        """Of each metric, by a bootstrap over images."""
        return segmentations.intervals(self.confusions, self._boundaries)

    def interval(self) -> Interval | None:
        return self.intervals["miou"]

    def against(self, other: SegmentationEvaluator) -> ComparedFigures:
        """Both on the images that both saw. Labels must count the same classes. Raises InputError
        where there is no such image, or nothing in them is judged."""
        images = self._seen.keys() & other._seen.keys()
        if not images:
            raise InputError("no image was read by both models")
        pair = [SegmentationEvaluator(self.classes) for _ in range(2)]
        for one, whole in zip(pair, (self, other), strict=True):
            one._seen = {i: whole._seen[i] for i in images}
        ours, theirs = ((one.confusions, one._boundaries) for one in pair)
        found = segmentations.compare(ours, theirs)
        if not found.first:
            raise InputError("no pixel is judged in the images that both models read")
        return found

    def per_class(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Pixels, IoU with its interval, accuracy, precision and boundary F1 of each class that is
        there or found."""
        counts = self.confusions.sum(axis=0)
        _, sharpness = mean_boundary_f1(self._boundaries)
        pixels = counts.sum(axis=1)
        columns = {
            "share": pixels / max(pixels.sum(), 1),
            "iou": iou(counts),
            "accuracy": recall(counts),
            "precision": precision(counts),
            "boundary_f1": sharpness,
        }
        ends = segmentations.iou_intervals(self.confusions)
        return [
            {"label": harmless(name), "n": int(pixels[k])}
            | {key: None if np.isnan(of[k]) else float(of[k]) for key, of in columns.items()}
            | {"iou_interval": ends[k]}
            for k, name in enumerate(classes)
            if not np.isnan(columns["iou"][k])
        ]

    def details(self, split: Split, classes: Sequence[str]) -> dict[str, Any]:
        return {
            "classes": [*classes],
            "per_class": self.per_class(classes),
            "confusion": self.confusions.sum(axis=0).tolist(),
            "intervals": self.intervals,
            "pictures": [self._picture(i, split, classes) for i in self._worst],
        }

    def _picture(self, i: int, split: Split, classes: Sequence[str]) -> dict[str, Any]:
        """What was found in an image beside what is there."""
        image, names = split.image(i, 3), [harmless(name) for name in classes]
        found, truth = self._worst[i]
        shown = np.where(truth == IGNORED, np.uint8(IGNORED), found)  # the rest is not judged
        pictures = {
            key: thumbnail(painted(image, labels, names, side=_SHOWN_SIDE), _SHOWN_SIDE)
            for key, labels in (("image", shown), ("truth", truth))
        }
        row = {"index": i, "name": harmless(split.names[i]), "wrong": self.wrong(i)}
        return row | {"miou": float(mean_iou(self._seen[i][0]))} | pictures


class Segment:
    """`tasks.Task` for the class of every pixel; images are decoded arrays, targets class maps,
    uint8 [H, W] with `IGNORED`."""

    def __init__(
        self,
        preprocess: Preprocess,
        augmentation: AugmentConfig,
        segmenter: SegmenterConfig,
        classes: int,
        loss: PixelLoss | None = None,
    ) -> None:
        self.preprocess, self.augmentation = preprocess, augmentation
        self.segmenter, self.classes = segmenter, classes
        self.loss = loss or PixelLoss()
        self.normalise = Normaliser(preprocess)

    def build(self, architecture: Architecture) -> nn.Module:
        from skipway.segmenters import build_segmenter  # torchvision takes a second

        return build_segmenter(architecture, self.segmenter, self.classes)

    def augment(self, image: Array, target: Array, key: Key | None) -> tuple[Array, PixelTarget]:
        """An image of at most the input's size: as in use, or scaled, cropped and mirrored."""
        c = self.augmentation
        limit = None if key is None or c.size is None else (c.size, c.size)
        size = (image.shape[0], image.shape[1])
        view = view_of(size, self.preprocess, c, key, limit)
        frame = view.cut(image, self.preprocess.interpolation)
        if key is None:
            frame = np.require(frame, requirements=["C", "W"])
            return frame, PixelTarget(torch.empty(0, 0, dtype=torch.uint8), target, view.geometry)
        if c.jitter:
            frame = jittered(frame, c.jitter, key.uniform(6, JITTER))
        labels = view.mirror(view.cut(target[:, :, None], "nearest")[:, :, 0])
        frame = np.require(view.mirror(frame), requirements=["C", "W"])
        seen = torch.from_numpy(np.require(labels, requirements=["C", "W"]))
        return frame, PixelTarget(seen, target, view.geometry)

    def collate(
        self, samples: list[tuple[Array, PixelTarget]]
    ) -> tuple[list[Tensor], list[PixelTarget]]:
        images = [torch.from_numpy(image).permute(2, 0, 1) for image, _ in samples]
        return images, [target for _, target in samples]

    def to_input(self, batch: Batch, key: Key | None) -> Batch:
        images = [self.normalise(image) for image in batch.images]
        if key is None:
            return replace(batch, images=images)
        # smaller images are filled up with the mean, and judged nowhere there
        return replace(batch, images=padded(images))

    def shown(self, batch: Batch, classes: Sequence[str]) -> list[dict[str, Any]]:
        rows, names = [], [harmless(name) for name in classes]
        for image, target in zip(batch.images, batch.targets, strict=True):
            labels = target.labels.numpy()
            pixels = self.preprocess.pixels(image.cpu().numpy())
            picture = pixels[: labels.shape[0], : labels.shape[1]]
            drawing = painted(picture, labels, names, side=_SHOWN_SIDE)
            there = [names[k] for k in np.unique(labels[labels != IGNORED])]
            told = ", ".join(there) or "nothing"
            rows.append({"label": told, "image": thumbnail(drawing, _SHOWN_SIDE)})
        return rows

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        maps = padded([target.labels for target in batch.targets], IGNORED)
        labels = maps.to(batch.images.device, torch.int64)
        outputs = model(batch.images)
        terms = self.loss.terms(outputs["out"], labels)
        if "aux" in outputs:
            auxiliary = self.loss.terms(outputs["aux"], labels).values()
            terms["loss_aux"] = _AUXILIARY * torch.stack([*auxiliary]).sum()
        with torch.no_grad():
            known = labels != IGNORED
            right = (outputs["out"].argmax(1) == labels) & known
            terms["pixel_accuracy"] = right.sum() / known.sum().clamp_min(1)
        return terms

    def predict(self, model: nn.Module, batch: Batch) -> list[Array]:
        found: list[Array] = []
        pairs = zip(batch.images, batch.targets, strict=True)
        for _, group in itertools.groupby(pairs, key=lambda pair: pair[0].shape):
            images, targets = zip(*group, strict=True)
            logits = model(torch.stack(images))["out"]
            found += [
                class_map(own, target.geometry.size)
                for own, target in zip(logits, targets, strict=True)
            ]
        return found

    def evaluator(self) -> SegmentationEvaluator:
        return SegmentationEvaluator(self.classes)
