"""What a model says of each image of a labelled split, over the views that the papers average."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.data import Split
from skipway.data.ahead import batches, read_ahead
from skipway.errors import InputError, harmless
from skipway.images import DecodeError, Preprocess
from skipway.metrics import Scored
from skipway.predictor import Predictor

Array = npt.NDArray[Any]
Change = Callable[[Array, int], Array]
"""What is done to the framed pixels [H, W, C] of the image at that position of the split."""

SCALES = (224, 256, 384, 480, 640)
"""Short sides in pixels at which a network of 224 px sees an image for the papers' best results
(2015, section 3.4); one of another input size has them in proportion."""
PAPERS_SIZE = 224


class Views(enum.StrEnum):
    """The views of an image whose logits are averaged to one answer."""

    one = "one"
    flip = "flip"
    """The image and its mirror image."""
    shift = "shift"
    """These, and both moved by a pixel down and right and up and left, which count a half of them;
    the border is reflected (2404.00498, section 3.5)."""
    ten_crop = "ten-crop"
    """The four corners and the centre of the resized image, and their mirror images (2015, section
    3.4)."""
    scales = "scales"
    """All of the image at `SCALES`, the network used convolutionally (2015, section 3.4)."""


def frames_of(preprocess: Preprocess, image: Array, views: Views) -> list[Array]:
    """The parts of an image [H, W, C] that are looked at, each [h, w, C] before normalisation."""
    if views is Views.ten_crop:
        return preprocess.five_crops(image)
    if views is Views.scales:
        ratio = min(preprocess.size) / PAPERS_SIZE
        return [preprocess.whole(image, round(side * ratio)) for side in SCALES]
    return [preprocess.frame(image)[0]]


def views_of(x: Array, views: Views) -> Iterator[tuple[float, Array]]:
    """Views [B, C, H, W] of model inputs [B, C, H, W], each with its weight; these sum to 1."""
    crops = [(1.0, x)]
    if views is Views.shift:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
        crops = [(0.5, x), (0.25, padded[:, :, :-2, :-2]), (0.25, padded[:, :, 2:, 2:])]
    for weight, crop in crops:
        if views in (Views.one, Views.scales):
            yield weight, crop
        else:
            yield weight / 2, np.ascontiguousarray(crop)
            yield weight / 2, np.ascontiguousarray(crop[..., ::-1])


def require(predictor: Predictor, views: Views) -> None:
    """Raise InputError where the model cannot be shown those views."""
    preprocess, name = predictor.card.preprocess, harmless(predictor.origin)
    if views is Views.ten_crop:
        height, width = preprocess.size
        if preprocess.resize != "crop":
            raise InputError(
                f"--views ten-crop: {name} takes images by {preprocess.resize}, not by crops"
            )
        if (preprocess.short_side or min(preprocess.size)) <= min(preprocess.size):
            raise InputError(
                f"--views ten-crop: {name} resizes images to its input of {height} x {width} px, "
                "which leaves nothing to crop\nTake --views flip or shift."
            )
    if views is Views.scales:
        if not predictor.any_size:
            raise InputError(
                f"--views scales: {name} is ONNX, which runs at one size\n"
                "Give the run or the weight file that it was made from."
            )
        if preprocess.pixel_mean is not None:
            raise InputError(f"--views scales: {name}: its mean of each pixel has one size")


def score(
    predictor: Predictor,
    split: Split,
    threads: int,
    on_bad: str = "error",
    views: Views = Views.one,
    batch_size: int = 128,
    change: Change | None = None,
) -> tuple[Scored, list[str]]:
    """What a model says of a labelled split, and why each image that was skipped was.

    The labels of the split count the model's classes; probabilities are at the card's temperature.
    `change` is made to each part of an image that is looked at. Raises DecodeError where `on_bad`
    is error, InputError where no image is left or the model cannot be shown those `views`.
    """
    temperature = [predictor.card.temperature]
    found, skipped = scores(
        predictor, split, temperature, threads, on_bad, views, batch_size, change
    )
    return found[0], skipped


def scores(
    predictor: Predictor,
    split: Split,
    temperatures: Sequence[float],
    threads: int,
    on_bad: str = "error",
    views: Views = Views.one,
    batch_size: int = 128,
    change: Change | None = None,
) -> tuple[list[Scored], list[str]]:
    """As `score`, at each of the temperatures in place of the card's."""
    skipped: list[str] = []
    parts: list[list[Scored]] = [[] for _ in temperatures]
    for index, logits in outputs(
        predictor, split, threads, on_bad, views, batch_size, change, skipped
    ):
        labels = split.labels[index]
        for found, temperature in zip(parts, temperatures, strict=True):
            # In float64, where no two logits of float32 become one.
            scaled = np.asarray(logits, np.float64) / temperature
            found.append(Scored.from_logits(scaled, labels, index))
    if not parts[0]:
        raise InputError(skipped[0] if skipped else "no images to score")
    return [Scored.merge(found) for found in parts], skipped


def outputs(
    predictor: Predictor,
    split: Split,
    threads: int,
    on_bad: str,
    views: Views,
    batch_size: int,
    change: Change | None,
    skipped: list[str],
) -> Iterator[tuple[Array, Array]]:
    """Positions in the split and logits [B, K], batch by batch; `skipped` gets the reasons."""
    require(predictor, views)
    preprocess = predictor.card.preprocess

    def ready(i: int) -> list[Array]:
        frames = frames_of(preprocess, split.image(i, preprocess.channels), views)
        return [preprocess.normalise(f if change is None else change(f, i)) for f in frames]

    parts = {Views.ten_crop: 5, Views.scales: len(SCALES)}.get(views, 1)
    step = max(batch_size // parts, 1)
    for batch in batches(read_ahead(range(len(split)), ready, threads, step, on_bad), step):
        skipped += [str(x) for _, x in batch if isinstance(x, DecodeError)]
        inputs = {i: x for i, x in batch if not isinstance(x, DecodeError)}
        if inputs:
            seen = zip(*inputs.values(), strict=True)  # a part of all images at a time
            logits = [_averaged(predictor, part, views) for part in seen]
            yield np.array(list(inputs)), logits[0] if parts == 1 else np.mean(logits, axis=0)


def _averaged(predictor: Predictor, images: Sequence[Array], views: Views) -> Array:
    """Logits [B, K] of images [C, H, W] over the views that are made of model inputs."""
    if len({image.shape for image in images}) > 1:  # one by one, as they fit no batch
        return np.concatenate([_averaged(predictor, [image], views) for image in images])
    seen = views_of(np.stack(images), views)
    total: Array = np.sum([weight * predictor.run(view) for weight, view in seen], axis=0)
    return total
