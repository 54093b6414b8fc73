"""Images in, the class of each pixel out: a semantic segmenter with its card."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from skipway.card import Card
from skipway.data.ahead import read_ahead
from skipway.data.pixels import MaskedSplit
from skipway.drawing import painted, palette
from skipway.errors import InputError, harmless
from skipway.images import DecodeError, ImageLike, decode, write_png
from skipway.predictor import autocast, on_device, ready_torch
from skipway.tasks.maps import decided, strips
from skipway.tasks.segment import SegmentationEvaluator

Array = npt.NDArray[Any]

Engine = Callable[[Array], Tensor]
"""Model inputs, float32 [N, C, h, w], to logits, float32 [N, K, h, w] on the device that ran it."""

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Sizes of the input, over its own, that multi-scale inference averages: those of the evaluation of
DeepLabv3 (1706.05587) in its authors' code, tensorflow/models research/deeplab/eval.py."""
STRIDE = 2 / 3
"""Of a tile's side, how far the next tile is off at most; as in mmsegmentation's configurations of
sliding windows, with strides of 513 for tiles of 769 px and of 170 for 256."""
_AHEAD = 8
"""Images that are decoded before their turn: they may be large."""


class PixelViews(enum.StrEnum):
    """The views of an image whose scores are averaged to one answer."""

    one = "one"
    """All of it, within the size of the input."""
    flip = "flip"
    """And its mirror image: the mean of the probabilities."""
    scales = "scales"
    """All of it at `SCALES`, each mirrored too: the mean of the probabilities."""
    slide = "slide"
    """Tiles of the input's size, or squares of its short side where that has a limit, at the
    resolution of the image, which overlap: the mean of their logits, in which the middle of a tile
    counts more than its border."""


def pixel_views(name: str) -> PixelViews:
    """The views of that name. Raises InputError."""
    if name not in list(PixelViews):
        raise InputError(
            f"--views {harmless(name)}: of models of the task segment: {', '.join(PixelViews)}"
        )
    return PixelViews(name)


@dataclass(frozen=True)
class Share:
    """A class and the share of the pixels that are of it, 0..1."""

    label: str
    share: float


@dataclass(frozen=True)
class PixelPrediction:
    """What a model sees in each pixel of an image."""

    path: str
    labels: Array
    """uint8 [H, W]: positions in the classes, in the image as it is shown (EXIF applied)."""
    shares: tuple[Share, ...]
    """Of the classes that are there, the largest first."""
    error: str | None = None
    """Why there is no prediction, where the image could not be read; labels are then [0, 0]."""

    def to_json(self) -> dict[str, Any]:
        """All but the labels; `size` is height and width."""
        return {
            "path": self.path,
            "size": None if self.error else [*self.labels.shape],
            "classes": [{"label": s.label, "share": s.share} for s in self.shares],
            "error": self.error,
        }


class PixelPredictor:
    """A model that tells the class of each pixel, with its card; made by `load_pixel_predictor`.

    Takes paths, encoded bytes, PIL images and uint8 or uint16 arrays [H, W] or [H, W, C].
    """

    def __init__(self, engine: Engine, card: Card, origin: str) -> None:
        self.card, self.origin = card, origin
        self._engine = engine

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index of the labels."""
        return self.card.classes

    def in_order(self, classes: Sequence[str]) -> PixelPredictor:
        """The same where labels are positions in `classes`, which are its own in any order."""
        places = [self.classes.index(name) for name in classes]
        card = self.card.model_copy(update={"classes": tuple(classes)})
        return PixelPredictor(lambda inputs: self._engine(inputs)[:, places], card, self.origin)

    def found(self, images: Sequence[Array], views: PixelViews = PixelViews.one) -> list[Array]:
        """The class of each pixel of decoded images [H, W, C]: uint8 [H, W] each.

        Beside that it holds the scores of a part of one image at a time (see `strips`), and never
        those of all pixels.
        """
        return [decided(self.strips(image, views)) for image in images]

    def scores(self, image: Array, views: PixelViews = PixelViews.one) -> Array:
        """What decides the class, in pixels of a decoded image [H, W, C]: float32 [K, H, W].

        Logits, and with flip and scales probabilities. 1 GB for 24 million pixels of 11 classes.
        """
        return np.concatenate([s.cpu().numpy() for s in self.strips(image, views)], axis=1)

    def strips(self, image: Array, views: PixelViews = PixelViews.one) -> Iterator[Tensor]:
        """`scores` by and by, from top to bottom: float32 [K, rows, W]. With slide these are as
        high as a tile at most, else of 64 MiB. Raises InputError for scores that are no numbers."""
        if views is PixelViews.slide:
            return self._slide(image)
        return strips(self._whole(image, views), (image.shape[0], image.shape[1]))

    def _logits(self, frames: Sequence[Array]) -> Tensor:
        """Of frames [h, w, C] of one size: float32 [N, K, h, w]."""
        logits = self._engine(self.card.preprocess.normalise(np.stack(frames)))
        if not bool(logits.isfinite().all()):
            raise InputError(f"{harmless(self.origin)}: its outputs are not finite numbers")
        return logits

    def _whole(self, image: Array, views: PixelViews) -> Tensor:
        """Scores [K, h, w] of all of an image at the size at which the model sees it."""
        preprocess = self.card.preprocess
        frame, _ = preprocess.frame(image)
        if views is PixelViews.one:
            return self._logits([frame])[0]
        own = frame.shape[0], frame.shape[1]
        if views is PixelViews.flip:
            return self._with_mirror(frame, own)
        total = torch.zeros(())
        for ratio in SCALES:
            scaled, _ = preprocess.scaled(ratio).frame(image)
            seen = self._with_mirror(scaled, own)
            total = total.to(seen) + seen / len(SCALES)
        return total

    def _with_mirror(self, frame: Array, size: tuple[int, int]) -> Tensor:
        """The mean of the probabilities of a frame and its mirror image, [K, *size]."""
        logits = self._logits([frame, frame[:, ::-1]]) / self.card.temperature
        plain, mirrored = (
            torch.cat([*strips(seen, size)], dim=1).softmax(0)
            for seen in (logits[0], logits[1].flip(-1))
        )
        return (plain + mirrored) / 2

    def _tile(self) -> tuple[int, int]:
        """Height and width of a tile: the input's, and where its short side has a limit that, for
        then the size bounds long images alone."""
        preprocess = self.card.preprocess
        height, width = preprocess.size
        if preprocess.resize == "fit" and preprocess.short_side is not None:
            height, width = (min(side, preprocess.short_side) for side in preprocess.size)
        return height, width

    def _slide(self, image: Array) -> Iterator[Tensor]:
        """A row of tiles after the other; the rows of pixels that none of the next reaches are
        done. So float32 [K, height of a tile, W] is held."""
        height, width = self._tile()
        tops, of_rows = tiles(image.shape[0], height)
        lefts, of_columns = tiles(image.shape[1], width)
        height, width = of_rows.shape[1], of_columns.shape[1]
        held: Tensor | None = None
        for top, below, down in zip(tops, [*tops[1:], image.shape[0]], of_rows, strict=True):
            for left, across in zip(lefts, of_columns, strict=True):
                tile = self._logits([image[top : top + height, left : left + width]])[0]
                if held is None:
                    held = tile.new_zeros(len(tile), height, image.shape[1])
                weights = torch.from_numpy(np.outer(down, across)).to(tile)
                held[:, :, left : left + width].addcmul_(tile, weights)
            assert held is not None
            done = below - top
            yield held[:, :done].clone()
            held[:, : height - done] = held[:, done:].clone()
            held[:, height - done :] = 0

    def __call__(self, image: ImageLike, views: PixelViews = PixelViews.one) -> PixelPrediction:
        """The class of each pixel of one image. Raises DecodeError."""
        return next(self.stream([image], views, skip=False))

    def stream(
        self, images: Iterable[ImageLike], views: PixelViews = PixelViews.one, skip: bool = True
    ) -> Iterator[PixelPrediction]:
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
                yield PixelPrediction(name, np.zeros((0, 0), np.uint8), (), str(error))
                continue
            (labels,) = self.found([pixels], views)
            yield PixelPrediction(name, labels, self.shares(labels))

    def shares(self, labels: Array) -> tuple[Share, ...]:
        """The classes that are in a map, the largest first."""
        counts = np.bincount(labels.ravel(), minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        return tuple(Share(self.classes[k], float(counts[k] / labels.size)) for k in order)


def write_mask(prediction: PixelPrediction, folder: Path, classes: Sequence[str]) -> Path:
    """The class of each pixel of an image as an indexed PNG in the folder, which `write_png` names,
    with `drawing.palette`. Raises InputError where it cannot be written."""
    mask = Image.fromarray(prediction.labels)
    mask.putpalette(palette(len(classes)).tobytes())  # makes its mode P
    return write_png(mask, folder, Path(prediction.path).stem)


def write_painting(prediction: PixelPrediction, folder: Path, classes: Sequence[str]) -> Path:
    """The image of a prediction in the colours of its classes, as a PNG in the folder, which
    `write_png` names. Raises InputError where it cannot be written."""
    names = [harmless(name) for name in classes]
    picture = painted(decode(prediction.path, 3), prediction.labels, names)
    return write_png(Image.fromarray(picture), folder, Path(prediction.path).stem)


def tiles(length: int, tile: int) -> tuple[list[int], Array]:
    """Where tiles along a side of `length` pixels begin, and what each of their pixels counts:
    float32 [n, tile], or as long as the side where that is shorter.

    Each pixel is in a tile, and what the tiles say of it counts 1 together. They are as far apart
    as each other, `STRIDE` of a tile at most. Towards its ends a tile counts as a Hann window does,
    less and less, so that no seam is seen.
    """
    tile = min(tile, length)
    n = 1 + -(-(length - tile) // max(int(tile * STRIDE), 1))
    starts = np.rint(np.linspace(0, length - tile, n)).astype(np.int64)
    window = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
    places = starts[:, None] + np.arange(tile)
    total = np.bincount(places.ravel(), np.tile(window, n), length)
    return starts.tolist(), (window / total[places]).astype(np.float32)


def load_pixel_predictor(
    model: str | os.PathLike[str],
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> PixelPredictor:
    """A pixel predictor from a run or a weight file; the arguments are those of `predictor.load`.

    Raises InputError for a model of another task.
    """
    from skipway.weights import load_segmenter

    ready_torch(threads)
    segmenter, card = load_segmenter(model)
    if card.preprocess.resize not in ("fit", "squash"):
        raise InputError(
            f"{harmless(model)}: its card prepares images by {card.preprocess.resize}, and the "
            "class of each pixel needs all of an image: by fit or squash"
        )
    net, half = on_device(segmenter, device), autocast(device, precision)

    @torch.inference_mode()
    def run(inputs: Array) -> Tensor:
        batch = torch.from_numpy(inputs).to(device).contiguous(memory_format=torch.channels_last)
        with half:
            logits: Tensor = net(batch)["out"]
        return logits.float()

    return PixelPredictor(run, card, os.fspath(model))


def score_pixels(
    predictor: PixelPredictor,
    split: MaskedSplit,
    threads: int,
    on_bad: str = "error",
    views: PixelViews = PixelViews.one,
) -> tuple[SegmentationEvaluator, list[str]]:
    """What a model finds in a split with masks, and why each image that was skipped was.

    The masks of the split count the model's classes. threads: that decode. Raises DecodeError where
    `on_bad` is error, InputError where no image is left.
    """
    channels = predictor.card.preprocess.channels

    def read(i: int) -> tuple[Array, Array]:
        return split.image(i, channels), split.target(i)

    evaluator, skipped = SegmentationEvaluator(len(predictor.classes)), []
    for i, found in read_ahead(range(len(split)), read, threads, _AHEAD, on_bad):
        if isinstance(found, DecodeError):
            skipped.append(str(found))
            continue
        image, truth = found
        evaluator.add(i, predictor.found([image], views)[0], truth)
    if len(skipped) == len(split):
        raise InputError(skipped[0] if skipped else "no images to score")
    return evaluator, skipped
