"""Detection and instance segmentation: the objects in an image, as boxes or as masks too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from skipway.accumulation import by_class, figures, holding, interval, resamples_of, scores_of
from skipway.architecture import Architecture
from skipway.bootstrap import ComparedFigures, Interval, swapped
from skipway.config import AugmentConfig
from skipway.data import Key, Split
from skipway.data.augment import JITTER
from skipway.data.feed import Batch
from skipway.data.objects import Objects
from skipway.data.objects.shapes import decoded
from skipway.data.policy import jittered
from skipway.detections import (
    Detections,
    Judged,
    Kind,
    OutOfReach,
    judged,
    matched,
    pixels_of,
    runs_of,
)
from skipway.drawing import drawn
from skipway.errors import InputError, harmless
from skipway.heads import DetectorConfig, paste_masks
from skipway.images import Geometry, Preprocess, thumbnail
from skipway.tasks.framing import Normaliser, view_of

Array = npt.NDArray[Any]

_LEAST = 1.0
"""Pixels of input below which a side of a box is too small to be learned."""
_SEEN = 0.3
"""Share of an object's box that a crop must leave for it to be learned, …"""
_FILLED = 0.5
"""… or of the crop that it must fill."""
SHOWN, _SHOWN_SIDE = 8, 320
"""Images in the report, and the pixels of their longer sides."""


@dataclass(frozen=True)
class Target:
    """What is in an image as the network sees it, and in the image as it was."""

    boxes: Array
    """float32 [n, 4] in pixels of the input."""
    labels: Array
    """int64 [n]"""
    masks: Array | None
    """bool [n, h, w]"""
    whole: Objects
    geometry: Geometry


class DetectionEvaluator:
    """COCO's average precision over images; see `tasks.Evaluator`."""

    def __init__(
        self, classes: int, kinds: tuple[Kind, ...], detections: int | None = None
    ) -> None:
        """detections: the most that the detector gives of an image, where that is known."""
        self.classes, self.kinds, self.detections = classes, kinds, detections
        self._seen: dict[int, tuple[Detections, Objects, tuple[int, int]]] = {}
        """By position in the split."""

    def update(self, outputs: Sequence[Detections], batch: Batch) -> None:
        for i, found, target in zip(batch.index.tolist(), outputs, batch.targets, strict=True):
            self.add(i, found, target["target"].whole, target["target"].geometry.size)

    def add(self, i: int, found: Detections, truth: Objects, size: tuple[int, int]) -> None:
        """Take what was found in image i of the split, and what is there; size: height, width."""
        self._seen[i] = found, truth, size
        self._forget()

    def merge(self, other: DetectionEvaluator) -> None:
        self._seen |= other._seen
        self._forget()

    def _forget(self) -> None:
        for name in ("judgements", "intervals", "_drawn"):
            self.__dict__.pop(name, None)

    @cached_property
    def judgements(self) -> dict[Kind, Judged]:
        """COCO's figures, of masks before those of boxes."""
        rows = [self._seen[i] for i in sorted(self._seen)]
        found, truth, sizes = zip(*rows, strict=True) if rows else ((), (), ())
        return {kind: judged(found, truth, sizes, self.classes, kind) for kind in self.kinds}

    def metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for kind, of_kind in self.judgements.items():
            named = {"ap": of_kind.ap, "ap50": of_kind.ap50, "ap75": of_kind.ap75}
            named |= {f"ap_{size}": ap for size, ap in of_kind.by_size.items()}
            named |= {"ar": of_kind.ar, "ar_1": of_kind.ar_1, "ar_10": of_kind.ar_10}
            named |= {f"ar_{size}": ar for size, ar in of_kind.ar_by_size.items()}
            metrics |= {self._before(kind) + name: value for name, value in named.items()}
        return metrics

    def _before(self, kind: Kind) -> str:
        """What stands before a metric's name."""
        return "" if len(self.kinds) == 1 else f"{kind}_"

    @cached_property
    def _drawn(self) -> dict[Kind, Array]:
        """`accumulation.scores_of`."""
        return scores_of({kind: of_kind.matches for kind, of_kind in self.judgements.items()})

    @cached_property
    def intervals(self) -> dict[str, Interval | None]:
        """Of each metric, 95 %, by a bootstrap over images; None where that tells nothing."""
        found, n, held = self._resampled(self._drawn), len(self._seen), self._holding()
        return {
            name: interval(found[name], n, value, held[name])
            for name, value in self.metrics().items()
        }

    def _holding(self) -> dict[str, int]:
        """Of each metric, in how many images there is an object that it is of."""
        return {
            self._before(kind) + name: n
            for kind, of_kind in self.judgements.items()
            for name, n in holding(of_kind.matches).items()
        }

    def _resampled(self, drawn: Mapping[Kind, Array]) -> dict[str, Array]:
        """Each metric in each resample."""
        return {
            self._before(kind) + name: values
            for kind, of_kind in drawn.items()
            for name, values in figures(of_kind).items()
        }

    def interval(self) -> Interval | None:
        return next(iter(self.intervals.values()))

    def against(self, other: DetectionEvaluator) -> ComparedFigures:
        """Both on the images that both saw, and of what both find. Labels must count the same
        classes (see `relabelled`). Raises InputError where there is no such image."""
        images = self._seen.keys() & other._seen.keys()
        if not images:
            raise InputError("no image was read by both models")
        kinds: tuple[Kind, ...] = tuple(kind for kind in self.kinds if kind in other.kinds)
        pair = [DetectionEvaluator(self.classes, kinds) for _ in range(2)]
        for one, whole in zip(pair, (self, other), strict=True):
            one._seen = {i: whole._seen[i] for i in images}
        # The same resamples of both, for they depend on how many images there are alone.
        drawn_of = [one._resampled(one._drawn) for one in pair]
        first, second = (one.metrics() for one in pair)
        ours, theirs = (one.judgements for one in pair)
        both = {kind: ours[kind].matches.beside(theirs[kind].matches) for kind in kinds}
        n = len(images)
        chance = [pair[0]._resampled(found) for found in swapped(both, n, resamples_of(n))]
        drawn, swaps = (drawn_of[0], drawn_of[1]), (chance[0], chance[1])
        return ComparedFigures.of(n, (first, second), drawn, swaps, pair[0]._holding())

    def relabelled(self, places: Sequence[int]) -> DetectionEvaluator:
        """The same where label k is `places[k]`."""
        moved, made = np.array(places, np.int64), DetectionEvaluator(self.classes, self.kinds)
        for i, (found, truth, size) in self._seen.items():
            there = replace(truth, labels=moved[truth.labels])
            made.add(i, replace(found, labels=moved[found.labels]), there, size)
        return made

    def out_of_reach(self) -> OutOfReach:
        """The objects that cannot be found, as there are more than detections that count."""
        return OutOfReach.of((truth for _, truth, _ in self._seen.values()), self.detections)

    def per_class(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Objects, AP with its interval, AP50 and recall of each class that has an object."""
        first, boxes = self.judgements[self.kinds[0]], self.judgements["box"]
        resampled = {kind: by_class(drawn) for kind, drawn in self._drawn.items()}
        counts, held = np.zeros((2, self.classes), int)
        for _, truth, _ in self._seen.values():
            here = np.bincount(truth.labels[~truth.crowd], minlength=self.classes)
            counts, held = counts + here, held + (here > 0)
        rows = []
        for k, (ap, ap50) in boxes.by_class.items():
            row: dict[str, Any] = {"label": harmless(classes[k]), "n": int(counts[k])}
            row |= {"ap": ap, "ap50": ap50, "recall": boxes.recall[k]}
            n, images = len(self._seen), int(held[k])
            row["ap_interval"] = interval(resampled["box"][:, k], n, ap, images)
            if len(self.kinds) > 1 and k in first.by_class:
                row["mask_ap"], row["mask_ap50"] = first.by_class[k]
                of_masks = resampled["mask"][:, k]
                row["mask_ap_interval"] = interval(of_masks, n, row["mask_ap"], images)
            rows.append(row)
        return rows

    def details(self, split: Split, classes: Sequence[str]) -> dict[str, Any]:
        first = self.judgements[self.kinds[0]]
        return {
            "classes": [*classes],
            "per_class": self.per_class(classes),
            "out_of_reach": asdict(self.out_of_reach()),
            "intervals": self.intervals,
            "resamples": resamples_of(len(self._seen)),
            "curves": [
                {
                    "label": harmless(classes[k]),
                    "precision": np.round(curve, 4).tolist(),
                    "scores": np.round(first.scores[k], 4).tolist(),
                }
                for k, curve in first.curves.items()
            ],
            "sizes": {
                size: {"n": first.objects[size], "ap": ap} for size, ap in first.by_size.items()
            },
            "pictures": self._pictures(split, classes),
        }

    def _pictures(self, split: Split, classes: Sequence[str]) -> list[dict[str, Any]]:
        """The images with the most mistakes: what was found in them, beside what is there."""
        outcomes = {i: matched(found, truth) for i, (found, truth, _) in self._seen.items()}
        mistakes = {i: len(m.extra) + len(m.missed) for i, m in outcomes.items()}
        worst = sorted(outcomes, key=lambda i: (-mistakes[i], i))[:SHOWN]
        rows = []
        for i in worst:
            found, truth, size = self._seen[i]
            outcome, image = outcomes[i], split.image(i, 3)
            shown = np.sort(np.concatenate([outcome.right, outcome.extra]))
            masks = None
            if found.masks is not None and len(shown):
                masks = np.stack([pixels_of(found.masks[j]) for j in shown])
            texts = [f"{harmless(classes[found.labels[j]])} {found.scores[j]:.0%}" for j in shown]
            pictures = {
                "image": drawn(
                    image,
                    found.boxes[shown],
                    texts,
                    found.labels[shown].tolist(),
                    masks,
                    side=_SHOWN_SIDE,
                ),
                "truth": drawn(
                    image,
                    truth.boxes,
                    [harmless(classes[k]) for k in truth.labels],
                    truth.labels.tolist(),
                    truth.masks(*size) if "mask" in self.kinds and len(truth) else None,
                    dashed=truth.crowd,
                    side=_SHOWN_SIDE,
                ),
            }
            rows.append(
                {
                    "index": i,
                    "name": harmless(split.names[i]),
                    "right": len(outcome.right),
                    "missed": len(outcome.missed),
                    "extra": len(outcome.extra),
                }
                | {name: thumbnail(picture, _SHOWN_SIDE) for name, picture in pictures.items()}
            )
        return rows


class Detect:
    """`tasks.Task` for objects; images are decoded arrays, targets `Objects`."""

    def __init__(
        self,
        preprocess: Preprocess,
        augmentation: AugmentConfig,
        detector: DetectorConfig,
        classes: int,
    ) -> None:
        self.preprocess, self.augmentation = preprocess, augmentation
        self.detector, self.classes = detector, classes
        self.kinds: tuple[Kind, ...] = ("box",)
        if detector.head == "mask-rcnn":
            self.kinds = ("mask", "box")
        self.normalise = Normaliser(preprocess)

    def build(self, architecture: Architecture) -> nn.Module:
        from skipway.detectors import build_detector  # torchvision's detection takes a second

        return build_detector(architecture, self.detector, self.classes)

    def augment(self, image: Array, target: Objects, key: Key | None) -> tuple[Array, Target]:
        """An image of at most the input's size: as in use, or scaled, cropped and mirrored."""
        size = (image.shape[0], image.shape[1])
        view = view_of(size, self.preprocess, self.augmentation, key)
        shape, geometry = view.shape, view.geometry
        frame = view.cut(image, self.preprocess.interpolation)
        kept = target if key is None else target.take(~target.crowd)
        corners = geometry.to_model(kept.boxes.reshape(-1, 2, 2)).reshape(-1, 4)
        boxes = np.clip(corners, 0, [shape[1], shape[0]] * 2)
        if key is not None:
            large = _sides(boxes).min(axis=1, initial=np.inf) >= _LEAST
            area, least = _sides(boxes).prod(axis=1), _SEEN * _sides(corners).prod(axis=1)
            seen = area >= np.minimum(least, _FILLED * shape[0] * shape[1])
            kept, boxes = kept.take(large & seen), boxes[large & seen]
        masks = None
        if "mask" in self.kinds and key is not None:
            masks = np.zeros((len(kept), *shape), bool)
            for i, own in enumerate(kept.shapes):  # one by one: an image may be large
                mask = decoded((own,), *size)[0]
                levels = mask[:, :, None].astype(np.uint8) * 255
                masks[i] = _shown(view.cut(levels, "bilinear")[:, :, 0])
        if key is not None and self.augmentation.jitter:
            frame = jittered(frame, self.augmentation.jitter, key.uniform(6, JITTER))
        frame = view.mirror(frame)
        masks = None if masks is None else view.mirror(masks, 1)
        for axis in view.mirrored:
            boxes = _mirrored(boxes, shape, axis)
        boxes = boxes.astype(np.float32)
        return np.require(frame, requirements=["C", "W"]), Target(
            boxes, kept.labels, masks, target, geometry
        )

    def collate(self, samples: list[tuple[Array, Target]]) -> tuple[list[Tensor], list[Any]]:
        images = [torch.from_numpy(image).permute(2, 0, 1) for image, _ in samples]
        targets = []
        for _, target in samples:
            tensors: dict[str, Any] = {
                "boxes": torch.from_numpy(target.boxes),
                "labels": torch.from_numpy(target.labels),
            }
            if target.masks is not None:
                masks = np.ascontiguousarray(target.masks)
                tensors["masks"] = torch.from_numpy(masks).to(torch.uint8)
            targets.append(tensors | {"target": replace(target, masks=None)})
        return images, targets

    def to_input(self, batch: Batch, key: Key | None) -> Batch:
        return replace(batch, images=[self.normalise(image) for image in batch.images])

    def shown(self, batch: Batch, classes: Sequence[str]) -> list[dict[str, Any]]:
        rows = []
        for image, target in zip(batch.images, batch.targets, strict=True):
            picture = self.preprocess.pixels(image.cpu().numpy())
            labels, masks = target["labels"].tolist(), target.get("masks")
            drawing = drawn(
                picture,
                target["boxes"].numpy(),
                [harmless(classes[k]) for k in labels],
                labels,
                None if masks is None else masks.numpy().astype(bool),
                side=_SHOWN_SIDE,
            )
            counts = Counter(labels)
            told = ", ".join(f"{n} {harmless(classes[k])}" for k, n in sorted(counts.items()))
            rows.append({"label": told or "nothing", "image": thumbnail(drawing, _SHOWN_SIDE)})
        return rows

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        wanted = [
            {name: value for name, value in target.items() if name != "target"}
            for target in batch.targets
        ]
        terms: Mapping[str, Tensor] = model(batch.images, wanted)
        return {f"loss_{name.removeprefix('loss_')}": term.float() for name, term in terms.items()}

    def predict(self, model: nn.Module, batch: Batch) -> list[Detections]:
        # one by one, as in use: beside a larger one an image is padded, which changes scores
        return [
            detections(model([image])[0], tuple(image.shape[1:]), target["target"].geometry)
            for image, target in zip(batch.images, batch.targets, strict=True)
        ]

    def evaluator(self) -> DetectionEvaluator:
        return DetectionEvaluator(self.classes, self.kinds, self.detector.detections)


def detections(
    found: Mapping[str, Any], source: tuple[int, int], geometry: Geometry, threshold: float = 0.0
) -> Detections:
    """What a detector gives of one input of that height and width, in the image as it was, with a
    score of the threshold at least."""
    enough = found["scores"] >= threshold  # first: a mask takes as long as its image is large
    arrays = {name: value[enough].detach().float().cpu().numpy() for name, value in found.items()}
    boxes = geometry.to_original(arrays["boxes"].reshape(-1, 2, 2)).reshape(-1, 4)
    masks = None
    if "masks" in arrays:
        masks = tuple(
            runs_of(paste_masks(mask[None], box[None], source, geometry.size)[0])
            for mask, box in zip(arrays["masks"], arrays["boxes"], strict=True)
        )
    labels = arrays["labels"].astype(np.int64)
    return Detections(boxes.astype(np.float32), labels, arrays["scores"], masks)


def _shown(levels: Array) -> Array:
    """Where an object is in a view: bool of the shape of `levels`, uint8, its share of each pixel.

    That is half a pixel or more. What is thinner than a pixel of the view has few such pixels or
    none, and would be learned as a box of nothing: there half of the largest share in 3 x 3 pixels
    is enough, which keeps it in its place and up to two pixels thick. torchvision takes the nearest
    pixel, by which most lines along the axes are lost.
    """
    padded = np.pad(levels, 1).astype(np.int16)
    rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
    most = np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])
    shown: Array = 2 * padded[1:-1, 1:-1] >= np.maximum(most, 2)
    return shown


def _sides(boxes: Array) -> Array:
    return boxes[:, 2:] - boxes[:, :2]


def _mirrored(boxes: Array, shape: tuple[int, int], axis: int) -> Array:
    """Boxes in an image whose rows (0) or columns (1) are reversed."""
    low, high = (0, 2) if axis == 1 else (1, 3)
    boxes = boxes.copy()
    boxes[:, low], boxes[:, high] = shape[axis] - boxes[:, high], shape[axis] - boxes[:, low]
    return boxes
