"""Training on features that were computed once, where the whole backbone is frozen.

A frozen backbone gives the same features for the same pixels. So each training image is augmented
in a few views, the backbone runs once on each, and an epoch is a pass of the classifier alone over
the features of one view. View v is augmented as epoch v of an ordinary training would be: over as
many epochs as there are views, both see the same images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from skipway.config import RunConfig
from skipway.data import Key
from skipway.data.feed import Batch, Feed, batches
from skipway.data.keyed import permutation
from skipway.errors import InputError
from skipway.machine import free_memory
from skipway.predictor import autocast
from skipway.resnet import ResNet
from skipway.tasks import Evaluator, Task

Array = npt.NDArray[Any]


class FeatureFeed:
    """Features in memory: views of a training split, or one view of another split.

    features: float32 [V, N, C]; labels: int64 [N].
    """

    def __init__(self, features: Tensor, labels: Tensor, batch_size: int, seed: int) -> None:
        self.features, self.labels = features, labels
        self.batch_size, self.seed = batch_size, seed

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def steps(self) -> int:
        return len(batches(len(self), self.batch_size))

    def _pass(self, order: Array, view: int, start: int) -> Iterator[Batch]:
        for low, high in batches(len(self), self.batch_size)[start:]:
            index = order[low:high]
            rows = torch.from_numpy(index)
            yield Batch(self.features[view, rows], self.labels[rows], index)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = permutation(len(self), self.seed, epoch)
        return self._pass(order, epoch % len(self.features), start)

    def shuffled(self, epoch: int) -> Iterator[Batch]:
        return self._pass(permutation(len(self), self.seed, epoch), 0, 0)

    def in_order(self) -> Iterator[Batch]:
        return self._pass(np.arange(len(self)), 0, 0)


class OnFeatures:
    """A task whose model is the classifier alone and whose images are features already."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def to_input(self, batch: Batch, key: Key | None) -> Batch:
        return batch

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return self.task.losses(model, batch)

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        return self.task.predict(model, batch)

    def evaluator(self) -> Evaluator:
        return self.task.evaluator()


def head(net: nn.Module) -> nn.Sequential:
    """The classifier of a network, [B, C] to [B, K], sharing its parameters."""
    assert isinstance(net, ResNet)
    classifier = nn.Sequential()
    classifier.add_module("fc", net.fc)
    return classifier


@torch.inference_mode()
def feature_feeds(
    net: ResNet,
    task: Task,
    feeds: Mapping[str, Feed],
    config: RunConfig,
    views: int,
    device: torch.device,
) -> dict[str, Feed]:
    """Feeds of features in place of feeds of images, for train and, where it is used, val.

    Training images are computed in so many views and the training's precision, the others as they
    are and in float32. Raises InputError where they would not fit into the memory that is free.
    """
    net.eval()
    made: dict[str, Feed] = {}
    held_out = ("val",) if config.data.val != "none" else ()
    for name in [n for n in ("train", *held_out) if n in feeds]:
        feed, precision = feeds[name], config.precision
        passes: list[tuple[int | None, Iterable[Batch]]] = [(None, feed.in_order())]
        if name == "train":
            passes = [(view, feed.epoch(view)) for view in range(views)]
        else:
            precision = "float32"
        features, labels = torch.empty(0), torch.empty(len(feed), dtype=torch.int64)
        for view, (epoch, found) in enumerate(passes):
            for batch in found:
                key = None if epoch is None else Key(config.seed, epoch, batch.index)
                batch = task.to_input(batch.to(device), key)
                with autocast(device, precision):
                    embedded = net.embed(batch.images).float().cpu()
                if not len(features):
                    shape = (len(passes), len(feed), embedded.shape[1])
                    _check_memory(4 * math.prod(shape), config.data.views)
                    features = torch.empty(shape)
                rows = torch.from_numpy(batch.index)
                features[view, rows], labels[rows] = embedded, batch.targets.cpu()
        made[name] = FeatureFeed(features, labels, config.batch_size, config.seed)
    return made


def _check_memory(needed: int, views: int) -> None:
    free = free_memory()
    if needed > free:
        raise InputError(
            f"data.views = {views}: the features take {needed / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are free\n"
            "Take fewer views, or 0 to compute them in each epoch."
        )
