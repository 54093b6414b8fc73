"""Images in, objects out: a detector or instance segmenter with its card."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from skipway.card import Card
from skipway.data.ahead import read_ahead
from skipway.data.objects import AnnotatedSplit
from skipway.data.objects.shapes import Runs
from skipway.detections import Detections, Kind, pixels_of
from skipway.drawing import drawn
from skipway.errors import InputError, harmless
from skipway.images import DecodeError, Geometry, ImageLike, decode, write_png
from skipway.predictor import autocast, on_device, ready_torch
from skipway.tasks.detect import DetectionEvaluator, detections

Array = npt.NDArray[Any]

Engine = Callable[[Sequence[Array]], list[dict[str, Any]]]
"""Model inputs, float32 [C, h, w] of any sizes, to boxes, labels, scores and masks of each."""


_AHEAD = 16
"""Images that are decoded before their turn: they may be large."""


@dataclass(frozen=True)
class Located:
    """One object: its class, the score, 0..1, and where it is in pixels of the image."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2."""
    mask: dict[str, list[int]] | None = None
    """COCO's uncompressed runs, of instance segmentation: `size` (height, width), `counts`."""


@dataclass(frozen=True)
class ObjectPrediction:
    """What a model finds in one image, the most certain first."""

    path: str
    objects: tuple[Located, ...]
    error: str | None = None
    """Why there is no prediction, where the image could not be read."""


class Locator:
    """A model that finds objects, with its card; made by `load_locator`.

    Takes paths, encoded bytes, PIL images and uint8 or uint16 arrays [H, W] or [H, W, C].
    """

    def __init__(self, engine: Engine, card: Card, origin: str) -> None:
        self.card, self.origin = card, origin
        self._engine = engine

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index of the labels."""
        return self.card.classes

    def found(self, images: Sequence[Array], threshold: float = 0.0) -> list[Detections]:
        """What is in decoded images [H, W, C], down to that score and the one the card keeps."""
        inputs: list[Array] = []
        places: list[Geometry] = []
        for image in images:
            frame, geometry = self.card.preprocess.frame(image)
            inputs.append(self.card.preprocess.normalise(frame))
            places.append(geometry)
        outputs = self._engine(inputs)
        return [
            detections(output, (x.shape[1], x.shape[2]), geometry, threshold)
            for output, x, geometry in zip(outputs, inputs, places, strict=True)
        ]

    def __call__(self, image: ImageLike, threshold: float = 0.5) -> ObjectPrediction:
        """The objects of one image whose score is the threshold at least. Raises DecodeError."""
        return next(self.stream([image], threshold, skip=False))

    def stream(
        self, images: Iterable[ImageLike], threshold: float = 0.5, skip: bool = True
    ) -> Iterator[ObjectPrediction]:
        """Predictions in the order of the images.

        An image that cannot be read gives a prediction with `error` where `skip`, else raises
        DecodeError.
        """
        for image in images:
            name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""
            try:
                pixels = decode(image, self.card.preprocess.channels)
            except DecodeError as error:
                if not skip:
                    raise
                yield ObjectPrediction(name, (), str(error))
                continue
            (found,) = self.found([pixels], threshold)
            yield ObjectPrediction(name, self.named(found))

    def named(self, found: Detections) -> tuple[Located, ...]:
        """Detections with the names of their classes."""
        rows = []
        for i in range(len(found.scores)):
            x1, y1, x2, y2 = found.boxes[i].tolist()
            mask = None if found.masks is None else _as_json(found.masks[i])
            label = self.classes[int(found.labels[i])]
            rows.append(Located(label, float(found.scores[i]), (x1, y1, x2, y2), mask))
        return tuple(rows)


def _as_json(mask: Runs) -> dict[str, list[int]]:
    return {"size": [*mask.size], "counts": mask.counts.tolist()}


class _Unpacked:
    """Masks from JSON as `drawn` takes them, one at a time."""

    def __init__(self, masks: Sequence[dict[str, list[int]]]) -> None:
        self._masks = masks

    def __getitem__(self, i: int) -> Array:
        height, width = self._masks[i]["size"]
        return pixels_of(Runs(np.array(self._masks[i]["counts"]), (height, width)))


def write_drawing(prediction: ObjectPrediction, folder: Path, classes: Sequence[str]) -> Path:
    """The image of a prediction with its objects, as a PNG in the folder, which `write_png` names.
    Raises InputError where it cannot be written."""
    objects = prediction.objects
    kept = [found.mask for found in objects if found.mask is not None]
    picture = drawn(
        decode(prediction.path, 3),
        np.array([found.box for found in objects], np.float32).reshape(-1, 4),
        [f"{harmless(found.label)} {found.score:.0%}" for found in objects],
        [classes.index(found.label) for found in objects],
        _Unpacked(kept) if kept else None,
    )
    return write_png(Image.fromarray(picture), folder, Path(prediction.path).stem)


def load_locator(
    model: str | os.PathLike[str],
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Locator:
    """A locator from a run or a weight file; the arguments are those of `predictor.load`.

    Raises InputError for a model of another task.
    """
    import torch

    from skipway.weights import load_detector

    ready_torch(threads)
    net, card = load_detector(model)
    net, half = on_device(net, device), autocast(device, precision)

    @torch.inference_mode()
    def run(inputs: Sequence[Array]) -> list[dict[str, Any]]:
        with half:
            found: list[dict[str, Any]] = net([torch.from_numpy(x).to(device) for x in inputs])
        return found

    return Locator(run, card, os.fspath(model))


def score_objects(
    locator: Locator, split: AnnotatedSplit, threads: int, on_bad: str = "error"
) -> tuple[DetectionEvaluator, list[str]]:
    """What a model finds in an annotated split, and why each image that was skipped was.

    The labels of the split count the model's classes. Raises DecodeError where `on_bad` is error,
    InputError where no image is left.
    """
    channels = locator.card.preprocess.channels

    def read(i: int) -> Array:
        return split.image(i, channels)

    kinds: tuple[Kind, ...] = ("mask", "box") if locator.card.task == "instance" else ("box",)
    config, skipped = locator.card.detector, []
    given = None if config is None else config.detections
    evaluator = DetectionEvaluator(len(locator.classes), kinds, given)
    for i, image in read_ahead(range(len(split)), read, threads, _AHEAD, on_bad):
        if isinstance(image, DecodeError):
            skipped.append(str(image))
            continue
        (found,) = locator.found([image])
        evaluator.add(i, found, split.target(i), (image.shape[0], image.shape[1]))
    if len(skipped) == len(split):
        raise InputError(skipped[0] if skipped else "no images to score")
    return evaluator, skipped
