"""From a plan to what the loop needs: images that were looked at, preprocessing, feeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.config import RunConfig
from skipway.data import DataSet, Skipped
from skipway.data.feed import WHOLE, DecodedFeed, ImageFeed, Part, ResidentFeed, pixel_mean
from skipway.data.preflight import remarks
from skipway.errors import InputError, harmless
from skipway.images import Preprocess, plain_preprocess
from skipway.tasks import ImageTask
from skipway.tasks.classify import Classify, Loss
from skipway.tasks.detect import Detect
from skipway.tasks.embed import Embed
from skipway.tasks.segment import PixelLoss, Segment
from skipway.training.plan import Plan
from skipway.training.reading import Reading, read_images

Array = npt.NDArray[Any]

SHOWN_DAMAGED = 5


@dataclass(frozen=True)
class Prepared:
    """The data of a run, ready for the loop."""

    data: DataSet
    """Without the images that were skipped, and with the preflight's remarks after the notes."""
    task: ImageTask
    feeds: dict[str, ImageFeed]
    """By split."""
    contents: dict[str, Array]
    """By split that was read: a digest of each image's content, uint8 [N, 8]."""
    reading: Reading | None
    """Of all images, the damaged ones too; None once it is kept with the run."""


def prepare(plan: Plan, part: Part = WHOLE, run: Path | None = None) -> Prepared:
    """Read each image once, apply the policy for damaged ones, settle the preprocessing.

    part: what of each batch the feeds give. run: the folder of a run that goes on, see
    `read_images`. Raises InputError naming the first damaged image where the policy is ``error``,
    or where a class or a split has none left, or an image that is another than in `run`.
    """
    config, data = plan.config, plan.data
    size = plan.architecture.input_size
    preprocess = plan.preprocess or plain_preprocess(
        size, config.data.channels, config.data.resize, config.data.crop_ratio
    )
    reading = read_images(data, config, preprocess, run)
    frames, scans = reading.frames, reading.scans
    failed = {name: found.failed for name, found in scans.items()}
    data, kept = _without_damaged(data, failed, config.data.on_bad)
    data = replace(data, notes=data.notes + remarks(plan.data, scans))
    frames = {name: f if name not in kept else f[kept[name]] for name, f in frames.items()}
    contents = {
        name: found.digests[kept.get(name, slice(None)), :8] for name, found in scans.items()
    }
    if frames and plan.preprocess is None:
        preprocess = _measured(preprocess, frames["train"], config)
    task = _task(config, preprocess, data)
    per_class = config.embedder.per_class if config.task == "embed" else 0
    feeds: dict[str, ImageFeed] = {}
    for name, split in data.splits.items():
        if frames:
            feeds[name] = ResidentFeed(
                frames[name],
                split.labels,
                config.batch_size,
                config.seed,
                part,
                config.augment.repeats,
                per_class,
            )
        else:
            feeds[name] = DecodedFeed(
                split,
                config.data.channels,
                task.augment,
                task.collate,
                config.batch_size,
                config.seed,
                config.data.workers or 0,
                persistent=name == "train",
                part=part,
                repeats=config.augment.repeats,
                per_class=per_class,
            )
    return Prepared(data, task, feeds, contents, reading)


def _task(config: RunConfig, preprocess: Preprocess, data: DataSet) -> ImageTask:
    k = len(data.classes)
    if config.task in ("detect", "instance"):
        return Detect(preprocess, config.augment, config.detector, k)
    if config.task == "embed":
        return Embed(preprocess, config.augment, config.embedder)
    weights = class_weights([*data.counts("train").values()], config.class_weights)
    smoothing, gamma = config.label_smoothing, config.focal_gamma
    if config.task == "segment":
        assert config.loss != "bce"
        of_pixels = PixelLoss(config.loss, smoothing, gamma, weights)
        return Segment(preprocess, config.augment, config.segmenter, k, of_pixels)
    assert config.loss != "ce+dice"
    loss = Loss(config.loss, smoothing, gamma, weights, config.bce_threshold)
    return Classify(preprocess, config.augment, loss)


def class_weights(counts: Sequence[int], kind: str) -> tuple[float, ...] | None:
    """Of each class, from its training images or pixels; 1 on average over those. 0 for a class
    that has none, None where `kind` (`config.RunConfig.class_weights`) is none."""
    if kind == "none":
        return None
    power = -1.0 if kind == "balanced" else -0.5
    rarer = [n**power if n else 0.0 for n in counts]
    mean = sum(w * n for w, n in zip(rarer, counts, strict=True)) / sum(counts)
    return tuple(w / mean for w in rarer)


def _measured(preprocess: Preprocess, frames: Array, config: RunConfig) -> Preprocess:
    """With mean and deviation of the training images, per channel or (2015) per pixel."""
    levels = np.iinfo(frames.dtype).max
    if config.augment.pixel_mean:
        mean = pixel_mean(frames)
        ones = (1.0,) * preprocess.channels
        zeros = (0.0,) * preprocess.channels
        return preprocess.model_copy(update={"mean": zeros, "std": ones}).with_pixel_mean(mean)
    flat = frames.reshape(-1, preprocess.channels)
    mean = flat.mean(axis=0, dtype=np.float64) / levels
    # E[x^2] - E[x]^2 over counts of each level: exact, and no copy of the frames in float.
    deviation = []
    for channel, centre in enumerate(mean):
        counts = np.bincount(flat[:, channel], minlength=levels + 1)
        values = np.arange(levels + 1) / levels
        deviation.append(float(np.sqrt((counts * (values - centre) ** 2).sum() / counts.sum())))
    update = {
        "mean": tuple(round(float(m), 6) for m in mean),
        "std": tuple(round(max(s, 1e-3), 6) for s in deviation),
    }
    return preprocess.model_copy(update=update)


def _without_damaged(
    data: DataSet, failed: dict[str, list[tuple[int, str]]], policy: str
) -> tuple[DataSet, dict[str, Array]]:
    """The data set without its damaged images, and the positions that stay where any went."""
    reasons = [(name, i, reason) for name, found in failed.items() for i, reason in found]
    if not reasons:
        return data, {}
    if policy == "error":
        others = [harmless(data.splits[name].names[i]) for name, i, _ in reasons[1:]]
        more = f"\nalso damaged: {', '.join(others[:SHOWN_DAMAGED])}" if others else ""
        if len(others) > SHOWN_DAMAGED:
            more += f" and {len(others) - SHOWN_DAMAGED:,} more"
        raise InputError(f"{reasons[0][2]}{more}\nAdd --on-bad skip to leave such files out.")
    kept, splits = {}, dict(data.splits)
    for name, found in failed.items():
        if found:
            kept[name] = np.setdiff1d(np.arange(len(splits[name])), [i for i, _ in found])
            splits[name] = splits[name].take(kept[name])
        if not len(splits[name]):
            raise InputError(f"{found[0][1]}\nNo image of {name} can be read.")
    k = len(data.classes)
    before, after = (split.per_class(k) for split in (data.splits["train"], splits["train"]))
    for label, n, left in zip(data.classes, before, after, strict=True):
        if n and not left:
            raise InputError(f"{reasons[0][2]}\nNo training image of class {label!r} can be read.")
    skipped = tuple(Skipped(data.splits[name].names[i], reason) for name, i, reason in reasons)
    return replace(data, splits=splits, skipped=data.skipped + skipped), kept
