"""A model as an embedder: the net up to a stage, pooled, and made unit vectors."""

from __future__ import annotations

import enum
import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from skipway.architecture import UNSEEN
from skipway.card import Card
from skipway.errors import InputError, harmless, missing_part, nearest
from skipway.images import DecodeError, ImageLike
from skipway.predictor import (
    Engine,
    open_network,
    ready_torch,
    task_of,
    torch_engine,
    torch_source,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from skipway.embedders import EmbeddingNet
    from skipway.resnet import ResNet

Array = npt.NDArray[Any]


class Pooling(enum.StrEnum):
    """How the pixels of a stage become one vector."""

    average = "average"
    gem = "gem"
    """The generalised mean: the p-th root of the mean of p-th powers (1711.02512, eq. 3)."""


LEARNED = "embedding"
"""What a network that was trained for vectors has beyond its stages."""


class Embedder:
    """A network up to a stage, pooled, or all of one for vectors; made by `load_embedder`.

    Takes what a `Predictor` takes. `dimensions` is the length of a vector; `made` says what else
    the vectors depend on, besides the images: vectors are comparable where it is equal.
    """

    def __init__(
        self, engine: Engine, card: Card, origin: str, dimensions: int, made: dict[str, Any]
    ) -> None:
        self.card, self.origin, self.dimensions, self.made = card, origin, dimensions, made
        self._engine = engine

    def run(self, x: Array) -> Array:
        """Vectors, float32 [B, dimensions], from what the card's preprocessing gave: float32
        [B, C, H, W].

        Raises InputError where they are not finite.
        """
        vectors = self._engine(x)
        if not np.isfinite(vectors).all():
            raise InputError(f"{harmless(self.origin)}: its outputs are not finite numbers")
        return unit_vectors(vectors) if self.made["normalised"] else vectors

    def __call__(self, images: Sequence[ImageLike]) -> Array:
        """Vectors, float32 [N, dimensions]. Raises DecodeError."""
        found = [v for v in self.stream(images, skip=False) if not isinstance(v, DecodeError)]
        return np.stack(found) if found else np.zeros((0, self.dimensions), np.float32)

    def stream(
        self, images: Iterable[ImageLike], batch_size: int = 32, skip: bool = True
    ) -> Iterator[Array | DecodeError]:
        """Vectors, float32 [dimensions], in the order of the images.

        An image that cannot be read gives its DecodeError where `skip`, else raises it.
        """
        waiting = iter(images)
        while batch := list(itertools.islice(waiting, batch_size)):
            yield from self.batch([self._ready(image, skip) for image in batch])

    def _ready(self, image: ImageLike, skip: bool) -> Array | DecodeError:
        try:
            return self.card.preprocess(image)
        except DecodeError as error:
            if not skip:
                raise
            return error

    def batch(self, inputs: Sequence[Array | DecodeError]) -> list[Array | DecodeError]:
        """The vector of each model input [C, H, W], the errors among them as they are."""
        whole = [x for x in inputs if not isinstance(x, DecodeError)]
        vectors = iter(self.run(np.stack(whole)) if whole else ())
        return [x if isinstance(x, DecodeError) else next(vectors) for x in inputs]


def unit_vectors(vectors: Array) -> Array:
    """float32 [N, D] of length 1; vectors of zeros, which have no direction, stay as they are."""
    wide = vectors.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return (wide / np.where(length > 0, length, 1)).astype(np.float32)


def load_embedder(
    model: str | os.PathLike[str],
    *,
    stage: str | None = None,
    pooling: Pooling | str | None = None,
    gem_p: float = 3.0,
    normalised: bool = True,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Embedder:
    """An embedder from a run, a weight file, a shipped name or a hub's name; it runs in torch.

    stage: c2 to c5 as `ResNet.features` has them, None the last; what lies behind it is not run. A
    model of the task embed has an ``embedding`` too, which is its last: the vectors that it was
    trained for. pooling: of a stage's pixels, None is average; an embedding has its own.
    gem_p: of the generalised mean, at least 1 (the average) and finite; towards infinity it becomes
    the maximum. normalised: vectors of length 1. threads, device, precision: as for
    `predictor.load`. Raises InputError, for an ONNX file too: it has no stages.
    """
    if pooling is not None and pooling not in list(Pooling):
        raise InputError(f"pooling {harmless(pooling)}: {' or '.join(Pooling)}")
    if not (math.isfinite(gem_p) and gem_p >= 1):
        raise InputError(f"gem_p {gem_p}: give a number of 1 or more")
    source = torch_source(
        model,
        "an ONNX file gives classes, not the stages that are embedded\n"
        "Give the run or the weight file that it was made from.",
    )
    whole: EmbeddingNet | None = None
    try:
        if task_of(model) == "embed":
            whole, card = _open_learned(source, threads)
            net = whole.body
        else:
            net, card = open_network(source, threads)
    except ImportError as error:
        raise missing_part(f"embedding with {harmless(model)}", "train", error) from None
    last = [*net.channels][-1]
    known = [*net.channels] + [LEARNED] * (whole is not None)
    stage = stage or known[-1]
    if stage not in known:
        raise InputError(
            f"stage {harmless(stage)}: {harmless(model)} has {', '.join(known)}"
            f".{nearest(stage, known)}"
        )
    common = {"normalised": normalised, "preprocess": card.preprocess.model_dump(mode="json")}
    if whole is not None and stage == LEARNED:
        if pooling is not None:
            raise InputError(
                f"pooling {harmless(pooling)}: the embedding of {harmless(model)} has its own, "
                f"{whole.config.pooling}\nLeave it out, or give a stage: {', '.join(net.channels)}."
            )
        made: dict[str, Any] = {"weights": _digest(net, whole), "stage": stage}
        engine = torch_engine(whole, device, precision)
        return Embedder(engine, card, str(source), whole.config.dim, made | common)
    pooling = Pooling(pooling or Pooling.average)
    if pooling is Pooling.gem and net.arch.order == "pre" and stage != last:
        raise InputError(
            f"stage {stage}: GeM takes values that a ReLU has left, which in a pre-activation net "
            f"{last} only has\nTake pooling average, or stage {last}."
        )
    dimensions = net.channels[stage]
    _cut(net, stage)
    made = {
        "weights": _digest(net, net),
        "stage": stage,
        "pooling": pooling.value,
        "gem_p": float(gem_p) if pooling is Pooling.gem else None,
    }
    pooled = _pooled(net, stage, gem_p if pooling is Pooling.gem else 1.0)
    engine = torch_engine(pooled, device, precision)
    return Embedder(engine, card, str(source), dimensions, made | common)


def _open_learned(source: str | os.PathLike[str], threads: int | None) -> tuple[EmbeddingNet, Card]:
    """A network for vectors, in evaluation mode, with its card."""
    from skipway.weights import load_embedding

    ready_torch(threads)
    return load_embedding(source)


def _cut(net: ResNet, stage: str) -> None:
    """Take out the later stages, whose outputs are those of `stage` then."""
    from torch import nn

    names = [*net.channels]
    for i in range(names.index(stage) + 1, len(names)):
        setattr(net, f"layer{i + 1}", nn.Sequential())
        net.norm = nn.Identity()  # a batch norm of the last stage's channels


_OF_CLASSES = ("fc.", "directions")
"""How the tensors begin that no vector depends on."""


def _digest(net: ResNet, whole: nn.Module) -> str:
    """sha256 of what is computed without the classifier: floating-point tensors by name, and what
    they do not show. The same network in another form of file has the same.

    whole: the network itself, or what stands on it."""
    digest = hashlib.sha256(repr([getattr(net.arch, field) for field in UNSEEN]).encode())
    for name, tensor in sorted(whole.state_dict().items()):
        if tensor.is_floating_point() and not name.startswith(_OF_CLASSES):
            digest.update(f"{name} {[*tensor.shape]} ".encode())
            digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _pooled(net: ResNet, stage: str, p: float) -> nn.Module:
    """The net as a module that gives vectors, [B, C, H, W] to float32 [B, D]."""
    from torch import nn

    from skipway.embedders import generalised_mean

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return generalised_mean(self.net.features(x)[stage].float(), p)

    return Pooled()
