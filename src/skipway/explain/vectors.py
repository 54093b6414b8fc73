"""Where in an image a network for vectors sees what makes its vector like another image's, or what
its own vector is made of.

By gradients: behind the last stage the cosine of two vectors is a sum of what each place gives to
it (Stylianou et al. 2019, 1901.00536). A cell's part is its values times their own gradient, as in
HiResCAM (2011.08891), of the cosine with the length of the image's vector held: with that it is
linear in the vector, and the parts of the last stage's cells, average or generalised mean alike,
add up to the cosine less what the layer's bias gives. Of the image's own vector, whose cosine is 1,
they are what it is made of; with the length free they would all be 0.

By occlusion (1311.2901): what the cosine falls by, as squares cover the input.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from skipway import heatmap
from skipway.answers import Score
from skipway.card import Card
from skipway.explain.covering import Windows
from skipway.explain.explanation import Explanation, as_input, checked_stage
from skipway.images import ImageLike

if TYPE_CHECKING:
    from torch import Tensor

    from skipway.embedders import EmbeddingNet

Array = npt.NDArray[Any]


class VectorLook(Protocol):
    """Makes a map: x float32 [C, H, W] and a unit vector, float32 [D], to float32 [H, W]."""

    def __call__(self, x: Array, like: Array) -> Array: ...

    def said(self, heat: Array) -> str:
        """How the map was made, for its caption."""
        ...


def cosine_parts(net: EmbeddingNet, x: Tensor, like: Tensor, stage: str) -> Tensor:
    """What each cell of a stage gives to the cosine of the vector of x to `like`, below 0 where it
    takes from it: [H / stride, W / stride].

    net: in evaluation mode. x: a model input [C, H, W]. like: of length 1, [D].
    """
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        stages = net.body.features(x.detach().clone().requires_grad_()[None])
        *_, last = stages.values()  # weights may be frozen
        vector, cells = net.embedding(net.pool(last))[0], stages[stage]
        cosine = vector @ like.clone() / vector.detach().norm().clamp_min(1e-12)
        (gradient,) = torch.autograd.grad(cosine, cells)
    return (gradient * cells.detach()).sum(1)[0]


class VectorCam:
    """What speaks for the cosine in the cells of a stage of the residual network."""

    def __init__(self, net: EmbeddingNet, stage: str | None) -> None:
        """Raises InputError where the network has no such stage."""
        self.net, self.stage = net, checked_stage(stage, list(net.body.strides))

    def __call__(self, x: Array, like: Array) -> Array:
        import torch

        device = next(self.net.parameters()).device
        inputs, target = (torch.from_numpy(a).to(device) for a in (x, like))
        cells = cosine_parts(self.net, inputs, target, self.stage).relu()
        return heatmap.enlarged(cells.float().cpu().numpy(), (x.shape[1], x.shape[2]))

    def said(self, heat: Array) -> str:
        h, w = (-(-n // self.net.body.strides[self.stage]) for n in heat.shape)
        return f"Grad-CAM, each cell by its own gradient, stage {self.stage} ({h} x {w} cells)"


class VectorOcclusion:
    """The cosine, as squares cover the input."""

    def __init__(self, net: EmbeddingNet, window: int | None, stride: int | None) -> None:
        """window, stride: as `Squares.of` takes them, of the input."""
        self.net, self.windows = net, Windows(window, stride)

    def __call__(self, x: Array, like: Array) -> Array:
        """Raises InputError where the windows do not fit x."""

        def measure(views: Array) -> Array:
            cosines: Array = vectors_of(self.net, views) @ like
            return cosines[:, None]

        return self.windows.on(x[0]).falls(x, measure)[0]

    def said(self, heat: Array) -> str:
        return self.windows.on(heat).said(heat, "the cosine", points=False)


def vectors_of(net: EmbeddingNet, views: Array) -> Array:
    """Of model inputs [B, C, H, W]: float32 [B, D] of length 1."""
    import torch

    device = next(net.parameters()).device
    with torch.inference_mode():
        vectors: Array = net(torch.from_numpy(views).to(device)).float().cpu().numpy()
    return vectors


class VectorExplainer:
    """A network for vectors with a way to look into it; made by `open_explainer`."""

    def __init__(self, net: EmbeddingNet, card: Card, origin: str, look: VectorLook) -> None:
        self.net, self.card, self.origin, self.look = net, card, origin, look

    def vector(self, source: ImageLike) -> Array:
        """Of an image: float32 [D] of length 1. Raises DecodeError."""
        found: Array = vectors_of(self.net, self.card.preprocess(source)[None])[0]
        return found

    def __call__(
        self, source: ImageLike, like: Array | None = None, name: str | None = None
    ) -> Explanation:
        """Of the cosine to `like`, a unit vector, and what the image of that is called; None is the
        image's own. Raises DecodeError."""
        preprocess = self.card.preprocess
        image, geometry, x = as_input(preprocess, source)
        vector = vectors_of(self.net, x[None])[0]
        target = vector if like is None else like
        cosine = float(np.dot(vector.astype(np.float64), target))
        title = "what its vector is made of"
        if like is not None:
            title = f"what makes the cosine of {cosine:.3f} to {_short(name)}"
        heat = self.look(x, target)
        answer = Score(name or "", cosine)
        facts = {"like": name, "cosine": cosine}
        return Explanation(
            image, heat, geometry, answer, answer, self.look.said(heat), facts=facts, title=title
        )


def _short(name: str | None) -> str:
    """The file's name alone, cut."""
    last = os.path.basename(name or "") or "another image"
    return last if len(last) <= 60 else last[:59] + "…"
