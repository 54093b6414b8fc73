"""One way in for models of every task."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from skipway.errors import harmless, missing_part
from skipway.predictor import Predictor, task_of
from skipway.predictor import load as load_classifier

if TYPE_CHECKING:
    from skipway.embedding import Embedder
    from skipway.locator import Locator
    from skipway.pixel_predictor import PixelPredictor


def load(
    model: str | os.PathLike[str],
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Predictor | Locator | PixelPredictor | Embedder:
    """A `Predictor`, of a model that finds objects a `Locator`, of one for the class of each pixel
    a `PixelPredictor`, or of one for vectors an `Embedder`; from a run, a weight file, an exported
    ONNX file, or a name, see `predictor.load`.

    The first three are called with one image: a path, bytes, a PIL image, or an array [H, W] or [H,
    W, C] of uint8 or uint16. They give its `predictions`, `objects`, or `labels` [H, W]; `stream`
    takes many. An `Embedder` takes a list of N images and gives float32 [N, D]. threads: None
    leaves torch's as they are. device: cpu, cuda or cuda:N. precision: float32 or bf16. Raises
    InputError; calls raise DecodeError, which is one, for what cannot be read.

    The process stays as it is set here: numbers too small for float32's full precision count as 0.
    """
    task = task_of(model)
    if task == "classify":
        return load_classifier(model, threads, device, precision)
    with needing_torch(model):
        if task == "segment":
            from skipway.pixel_predictor import load_pixel_predictor

            return load_pixel_predictor(model, threads, device, precision)
        if task == "embed":
            from skipway.embedding import load_embedder

            return load_embedder(model, threads=threads, device=device, precision=precision)
        from skipway.locator import load_locator

        return load_locator(model, threads, device, precision)


@contextlib.contextmanager
def needing_torch(model: str | os.PathLike[str]) -> Iterator[None]:
    """Raise InputError, with what to install, where what runs a model of that task is not there."""
    try:
        yield
    except ImportError as error:
        raise missing_part(harmless(os.fspath(model)), "train", error) from None
