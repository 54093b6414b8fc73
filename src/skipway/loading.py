"""One way in for models of every task."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from skipway.predictor import Predictor, task_of
from skipway.predictor import load as load_classifier

if TYPE_CHECKING:
    from skipway.locator import Locator


def load(
    model: str | os.PathLike[str],
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Predictor | Locator:
    """A `Predictor`, or of a model that finds objects a `Locator`, from a run, a weight file, an
    exported ONNX file, or a name; see `predictor.load`. Raises InputError."""
    if task_of(model) == "classify":
        return load_classifier(model, threads, device, precision)
    from skipway.locator import load_locator

    return load_locator(model, threads, device, precision)
