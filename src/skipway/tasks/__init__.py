"""The task seam: what the loop, which is the same for all, asks of a task.

A task is classification, detection, segmentation or embedding. There is one protocol and no base
class. Detection fits as it is: images may be a list of different sizes, targets a list, and the
losses may exist in training mode only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from skipway.architecture import Architecture
from skipway.data import Key, Split
from skipway.data.feed import Batch
from skipway.images import Preprocess


class Evaluator(Protocol):
    """Collects outputs over a split; parts from several processes merge into the same result."""

    def update(self, outputs: Any, batch: Batch) -> None:
        """Take the outputs of `Task.predict` for this batch."""
        ...

    def merge(self, other: Any) -> None:
        """Take what another evaluator saw; an image that both saw counts once."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Every metric by name. The first decides which checkpoint is best (higher is better)."""
        ...

    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the first metric, where it has one."""
        ...

    def details(self, split: Split, classes: Sequence[str]) -> dict[str, Any]:
        """What the report shows of the split beside the metrics, pictures included."""
        ...


class Task(Protocol):
    """One kind of work for a network."""

    def to_input(self, batch: Batch, key: Key | None) -> Batch:
        """The batch as model input, on the device: the numeric and the batched part of
        augmentation; no key: as in evaluation."""
        ...

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Named scalars of a training batch, of the same names for every batch. Those with a
        gradient are summed and minimised; the others are shown."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs of a batch in NumPy, the model in evaluation mode."""
        ...

    def evaluator(self) -> Evaluator:
        """A new, empty evaluator."""
        ...


class ImageTask(Task, Protocol):
    """A task on images as they are read, not on what was computed of them."""

    def build(self, architecture: Architecture) -> nn.Module:
        """A network with this task's head, newly initialised."""
        ...

    def augment(self, image: Any, target: Any, key: Key | None) -> tuple[Any, Any]:
        """One decoded image and its target made ready together; no key: as in evaluation.

        Runs in the workers.
        """
        ...

    def collate(self, samples: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        """What `augment` gave, as the images and targets of one batch."""
        ...

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes model input."""
        ...

    def shown(self, batch: Batch, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Each image of an augmented batch on the CPU as the report shows it: `image`, a picture
        in a data: URL, and `label`, what is in it."""
        ...
