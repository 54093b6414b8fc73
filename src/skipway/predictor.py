"""Images in, predictions out, whatever the model is kept in."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from skipway.answers import Prediction, best_classes
from skipway.architecture import Architecture, name_of
from skipway.card import Card
from skipway.data import Split
from skipway.errors import InputError, harmless, missing_part
from skipway.files import weight_file
from skipway.images import DecodeError, ImageLike, plain_preprocess
from skipway.metrics import Scored

log = logging.getLogger("skipway")

Array = npt.NDArray[Any]


class Engine(Protocol):
    """Runs a model: float32 [B, C, H, W] to logits [B, K]."""

    def __call__(self, x: Array) -> Array: ...


class Predictor:
    """A model with its card; made by `load`.

    Takes paths, encoded bytes, PIL images and uint8 or uint16 arrays [H, W] or [H, W, C].
    """

    def __init__(self, engine: Engine, card: Card, origin: str, *, classes_known: bool = True):
        self.card, self.origin = card, origin
        self.classes_known = classes_known
        """Whether the class names came with the model; without, they are numbers."""
        self._engine = engine

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index of the output."""
        return self.card.classes

    def run(self, x: Array) -> Array:
        """Logits, float32 [B, K], from what the card's preprocessing gave: float32 [B, C, H, W]."""
        logits = self._engine(x)
        if not np.isfinite(logits).all():
            raise InputError(f"{harmless(self.origin)}: its outputs are not finite numbers")
        return logits

    def __call__(self, image: ImageLike, top: int = 5) -> Prediction:
        """The `top` most probable classes of one image. Raises DecodeError."""
        return next(self.stream([image], top, skip=False))

    def stream(
        self, images: Iterable[ImageLike], top: int = 5, batch_size: int = 32, skip: bool = True
    ) -> Iterator[Prediction]:
        """Predictions in the order of the images.

        An image that cannot be read gives a prediction with `error` where `skip`, else raises
        DecodeError.
        """
        batch: list[tuple[str, Array | DecodeError]] = []
        for image in images:
            name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""
            try:
                batch.append((name, self.card.preprocess(image)))
            except DecodeError as error:
                if not skip:
                    raise
                batch.append((name, error))
            if len(batch) == batch_size:
                yield from self._answers(batch, top)
                batch = []
        yield from self._answers(batch, top)

    def _answers(self, batch: list[tuple[str, Array | DecodeError]], top: int) -> list[Prediction]:
        inputs = [x for _, x in batch if not isinstance(x, DecodeError)]
        logits = self.run(np.stack(inputs)) if inputs else np.zeros((0, len(self.classes)))
        scores = iter(best_classes(logits, self.classes, top))
        return [
            Prediction(name, (), str(x))
            if isinstance(x, DecodeError)
            else Prediction(name, next(scores))
            for name, x in batch
        ]


def load(
    model: str | os.PathLike[str],
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Predictor:
    """A predictor from a run or a weight file.

    threads: of computation, for the whole process; None leaves them as they are. device: cpu,
    cuda or cuda:N. precision: float32 or bf16.
    A weight file without a card gets ImageNet's normalisation and numbers for class names; see
    `Predictor.classes_known`. Raises InputError.
    """
    path = weight_file(model)
    try:
        return _torch_predictor(path, threads, device, precision)
    except ImportError as error:
        raise missing_part("a weight file", "train", error) from None


def _torch_predictor(path: Path, threads: int | None, device: str, precision: str) -> Predictor:
    import torch

    from skipway.weights import load_model

    torch.set_flush_denormal(True)  # before the thread pools start: they inherit it
    if threads is not None:
        torch.set_num_threads(threads)
    net, card, report = load_model(path)
    known = card is not None
    if card is None:
        for line in report.lines():
            log.warning("%s", line)
        card = _bare_card(net.arch)
    try:
        net = net.to(device).to(memory_format=torch.channels_last)
    except (RuntimeError, AssertionError) as error:
        reason = harmless(str(error).splitlines()[0])[:100]
        raise InputError(f"--device {harmless(device)}: {reason}") from None
    half = torch.autocast(torch.device(device).type, torch.bfloat16, precision == "bf16")

    @torch.inference_mode()
    def engine(x: Array) -> Array:
        batch = torch.from_numpy(x).contiguous(memory_format=torch.channels_last).to(device)
        with half:
            logits: Array = net(batch).float().cpu().numpy()
        return logits

    return Predictor(engine, card, str(path), classes_known=known)


def _bare_card(arch: Architecture) -> Card:
    """For weights that came without one."""
    size, channels = arch.input_size, arch.in_channels
    return Card(
        model=name_of(arch),
        architecture=arch,
        classes=tuple(str(i) for i in range(arch.num_classes)),
        preprocess=plain_preprocess(size, channels),
    )


def score(
    predictor: Predictor,
    split: Split,
    threads: int,
    on_bad: str = "error",
    batch_size: int = 128,
) -> tuple[Scored, list[str]]:
    """What a model says of a labelled split, and why each image that was skipped was.

    The labels of the split count the model's classes. Raises DecodeError where `on_bad` is error,
    InputError where no image is left.
    """
    channels, preprocess = predictor.card.preprocess.channels, predictor.card.preprocess

    def ready(i: int) -> Array | DecodeError:
        try:
            return preprocess(split.image(i, channels))
        except DecodeError as error:
            if on_bad == "error":
                raise
            return error

    parts, skipped = [], []
    with ThreadPoolExecutor(threads) as pool:
        for low in range(0, len(split), batch_size):
            window = range(low, min(low + batch_size, len(split)))
            found = dict(zip(window, pool.map(ready, window), strict=True))
            skipped += [str(x) for x in found.values() if isinstance(x, DecodeError)]
            inputs = {i: x for i, x in found.items() if not isinstance(x, DecodeError)}
            if inputs:
                index = np.array(list(inputs))
                logits = predictor.run(np.stack(list(inputs.values())))
                parts.append(Scored.from_logits(logits, split.labels[index], index))
    if not parts:
        raise InputError(skipped[0] if skipped else "no images to score")
    return Scored.merge(parts), skipped
