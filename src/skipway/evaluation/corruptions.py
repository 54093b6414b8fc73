"""Accuracy on damaged images: five corruptions at five severities.

In the spirit of 1903.12261 (section 3), with strengths of our own, so that numbers are not those of
ImageNet-C. They act on the framed pixels, as there. Noise, blur and compression grow with the root
of the frame's side up to 224 px: the details of a small image are fewer pixels wide, and fewer
pixels make up for what is lost.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from skipway.bootstrap import Interval, known_percentiles, mean_of, resampled
from skipway.data import Key, Split
from skipway.evaluation.scoring import Views, score
from skipway.metrics import Scored
from skipway.predictor import Predictor

Array = npt.NDArray[Any]

SEVERITIES = 5
_SIDE = 224
"""Of the frame, in pixels, for which strengths are given."""


def _gaussian_noise(x: Array, strength: float, key: Key) -> Array:
    noise = key.generator().standard_normal(x.shape, np.float32)
    return x + np.float32(strength) * noise


def _gaussian_blur(x: Array, strength: float, key: Key) -> Array:
    radius = int(4 * strength + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / strength) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (0, 1):
        around = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded = np.moveaxis(np.pad(x, around, mode="symmetric"), axis, 0)
        blurred = np.zeros_like(padded[: x.shape[axis]])
        for i, weight in enumerate(kernel):
            blurred += weight * padded[i : i + len(blurred)]
        x = np.moveaxis(blurred, 0, axis)
    return x


def _brightness(x: Array, strength: float, key: Key) -> Array:
    """The value of HSV is raised; hue and saturation stay."""
    value = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + np.float32(strength), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(value > 0, x * (raised / value), raised)


def _contrast(x: Array, strength: float, key: Key) -> Array:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return mean + (x - mean) * np.float32(1 - strength)


def _jpeg(x: Array, strength: float, key: Key) -> Array:
    pixels = np.rint(x * 255).astype(np.uint8)
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.save(buffer, "JPEG", quality=max(round(100 - strength), 1))
    back: Array = np.asarray(Image.open(buffer), np.float32).reshape(x.shape) / 255
    return back


@dataclass(frozen=True)
class Corruption:
    """What is done to float32 [H, W, 1 | 3] of 0..1 with a strength and a key."""

    apply: Callable[[Array, float, Key], Array]
    strengths: tuple[float, ...]
    """By severity, for a frame of 224 px."""
    by_size: bool = False
    """Whether the strength is in proportion to the root of the frame's side, up to 224 px."""

    def strength(self, severity: int, side: int) -> float:
        """Of severity 1 to 5 for a frame of that short side."""
        scale = math.sqrt(min(side / _SIDE, 1)) if self.by_size else 1.0
        return self.strengths[severity - 1] * scale


CORRUPTIONS = {
    "gaussian noise": Corruption(_gaussian_noise, (0.06, 0.1, 0.15, 0.22, 0.3), by_size=True),
    "gaussian blur": Corruption(_gaussian_blur, (1, 1.5, 2, 3, 4), by_size=True),
    "brightness": Corruption(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(_contrast, (0.3, 0.5, 0.65, 0.8, 0.9)),
    "jpeg": Corruption(_jpeg, (35, 55, 75, 88, 95), by_size=True),
}
"""Strengths are: the deviation of the noise and what brightness adds, of 0..1; the deviation of the
blur in pixels; the share of contrast that is taken away; 100 less JPEG's quality."""


def corrupted(image: Array, name: str, severity: int, key: Key) -> Array:
    """uint8 or uint16 [H, W, C] of 1, 3 or 4 channels, damaged; a fourth channel, alpha, is not.

    `key`: what noise is drawn from; the same at every severity.
    """
    levels = np.iinfo(image.dtype).max
    corruption = CORRUPTIONS[name]
    strength = corruption.strength(severity, min(image.shape[:2]))
    x = image[:, :, :3].astype(np.float32) / np.float32(levels)
    damaged = np.clip(corruption.apply(x, strength, key), 0, 1)
    colour = np.rint(damaged * np.float32(levels)).astype(image.dtype)
    return np.concatenate([colour, image[:, :, 3:]], axis=2)


def mean_accuracy(right: Array) -> tuple[float, Interval | None]:
    """The mean over corruptions and severities, and its 95 % interval over images
    (`bootstrap.known_percentiles`), from whether each image was right: [corruptions, severities,
    N]."""
    by_image = right.mean(axis=(0, 1))
    drawn = resampled({"mean": mean_of(by_image)}, len(by_image))
    return float(by_image.mean()), known_percentiles(drawn["mean"], len(by_image))


def scores_when_corrupted(
    predictor: Predictor,
    split: Split,
    threads: int,
    on_bad: str = "error",
    views: Views = Views.one,
    seed: int = 0,
) -> Iterator[tuple[str, list[Scored]]]:
    """Each corruption and `score` at its severities, one after another: they take 25 times as long
    as a score does."""

    def damage(name: str, severity: int, frame: Array, i: int) -> Array:
        return corrupted(frame, name, severity, Key(seed, 0, i))

    for name in CORRUPTIONS:
        changes = [partial(damage, name, severity) for severity in range(1, SEVERITIES + 1)]
        yield (
            name,
            [
                score(predictor, split, threads, on_bad, views, change=change)[0]
                for change in changes
            ],
        )
