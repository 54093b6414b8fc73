"""Where in an image a model for the class of each pixel sees a class.

By gradients: Seg-Grad-CAM (Vinogradova et al. 2020, 2002.11434, section 2), which is Grad-CAM
(1610.02391) of the sum of the class's logits over a set of pixels: those that are found to be of
the class, or all where none is. By occlusion (1311.2901): the mean of the class's probability over
the same pixels, as squares cover the input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from skipway import heatmap
from skipway.answers import Score
from skipway.card import Card
from skipway.explain.covering import Windows
from skipway.explain.explanation import Explanation, as_input, checked_stage, class_index
from skipway.images import ImageLike

if TYPE_CHECKING:
    from torch import Tensor

    from skipway.resnet import ResNet
    from skipway.segmenters import Segmenter

Array = npt.NDArray[Any]


class PixelLook(Protocol):
    """Makes a map: x float32 [C, H, W], a class and bool [H, W], its pixels, to float32 [H, W]."""

    def __call__(self, x: Array, k: int, pixels: Array) -> Array: ...

    def said(self, heat: Array) -> str:
        """How the map was made, for its caption."""
        ...


@contextlib.contextmanager
def kept_stages(body: ResNet) -> Iterator[dict[str, Tensor]]:
    """What the stages put out while this is open, by name, as `ResNet.after` gives it."""
    kept: dict[str, Tensor] = {}
    after = body.after

    def keeping(stem: Tensor) -> dict[str, Tensor]:
        kept.update(after(stem))
        return dict(kept)

    vars(body)["after"] = keeping
    try:
        yield kept
    finally:
        del vars(body)["after"]


def segmenter_cam(net: Segmenter, x: Tensor, k: int, pixels: Tensor, stage: str) -> Tensor:
    """A map over the cells of a stage, [H / stride, W / stride], 0 or more.

    net: in evaluation mode. x: a model input [C, H, W]. pixels: bool [H, W], whose logits of class
    `k` are summed.
    """
    import torch

    with torch.inference_mode(False), torch.enable_grad(), kept_stages(net.body) as stages:
        logits = net(x.detach().clone().requires_grad_()[None])["out"][
            0, k
        ]  # weights may be frozen
        cells = stages[stage]
        (gradient,) = torch.autograd.grad(logits[pixels].sum(), cells)
    return (gradient.mean((2, 3), keepdim=True) * cells.detach()).sum(1)[0].relu()


class PixelCam:
    """Seg-Grad-CAM on a stage of the residual network."""

    def __init__(self, net: Segmenter, stage: str | None) -> None:
        """Raises InputError where the network has no such stage."""
        self.net, self.stage = net, checked_stage(stage, list(net.body.strides))

    def __call__(self, x: Array, k: int, pixels: Array) -> Array:
        import torch

        device = next(self.net.parameters()).device
        inputs, chosen = (torch.from_numpy(a).to(device) for a in (x, pixels))
        cells = segmenter_cam(self.net, inputs, k, chosen, self.stage)
        height, width = x.shape[1:]
        return heatmap.enlarged(cells.float().cpu().numpy(), (height, width))

    def said(self, heat: Array) -> str:
        h, w = (-(-n // self.net.body.strides[self.stage]) for n in heat.shape)
        return f"Grad-CAM of these pixels, stage {self.stage} ({h} x {w} cells)"


class PixelOcclusion:
    """The mean probability of the class over the pixels, as squares cover the input."""

    def __init__(self, net: Segmenter, window: int | None, stride: int | None) -> None:
        """window, stride: as `Squares.of` takes them, of each input: they differ in size."""
        self.net, self.windows = net, Windows(window, stride)

    def __call__(self, x: Array, k: int, pixels: Array) -> Array:
        """Raises InputError where the windows do not fit x."""

        def measure(views: Array) -> Array:
            found: Array = logits_of(self.net, views).softmax(1)[:, k].numpy()
            return found[:, pixels].mean(axis=1, dtype=np.float64)[:, None]

        return self.windows.on(x[0]).falls(x, measure, batch_size=4)[0]

    def said(self, heat: Array) -> str:
        return self.windows.on(heat).said(heat, "the mean probability of these pixels")


def logits_of(net: Segmenter, views: Array) -> Tensor:
    """Of model inputs [B, C, H, W]: float32 [B, K, H, W] on the CPU."""
    import torch

    device = next(net.parameters()).device
    with torch.inference_mode():
        logits: Tensor = net(torch.from_numpy(views).to(device))["out"].float().cpu()
    return logits


class PixelExplainer:
    """A segmenter with a way to look into it; made by `open_explainer`."""

    def __init__(self, net: Segmenter, card: Card, origin: str, look: PixelLook) -> None:
        self.net, self.card, self.origin, self.look = net, card, origin, look

    def index(self, name: str) -> int:
        """The label of a class. Raises InputError where the model has none of this name."""
        return class_index(name, self.card.classes, self.origin)

    def __call__(self, source: ImageLike, k: int | None = None) -> Explanation:
        """Of class `k`, None of the one with the most pixels. Raises DecodeError."""
        from skipway.tasks.maps import best as best_of
        from skipway.tasks.maps import class_map

        preprocess, classes = self.card.preprocess, self.card.classes
        image, geometry, x = as_input(preprocess, source)
        logits = logits_of(self.net, x[None])[0]
        labels = class_map(logits, geometry.size)  # as `predict` tells them
        shares = np.bincount(labels.ravel(), minlength=len(classes)) / labels.size
        best = int(shares.argmax())
        k = best if k is None else k
        pixels = best_of(logits).numpy() == k
        there = bool(pixels.any())
        heat = self.look(x, k, pixels if there else np.ones_like(pixels))
        asked, answer = (Score(classes[i], float(shares[i])) for i in (k, best))
        what = " of the pixels" if there else " of the pixels: the map is of all of them"
        mark = _outlined(labels == k) if there else None
        return Explanation(
            image, heat, geometry, asked, answer, self.look.said(heat), what, {}, mark
        )  # fmt: skip


def _outlined(pixels: Array) -> Callable[[Array], Array]:
    """Draws the edge of pixels of the image, bool [H, W], white between black."""

    def mark(panel: Array) -> Array:
        size = (panel.shape[0], panel.shape[1])
        inside = heatmap.enlarged(pixels.astype(np.float32), size) >= 0.5
        line = max(1, round(max(size) / 640))
        marked = panel.copy()
        for by, ink in ((2 * line, 0), (line, 255)):
            grown = Image.fromarray(inside).convert("L").filter(ImageFilter.MaxFilter(2 * by + 1))
            marked[(np.asarray(grown) > 0) & ~inside] = ink
        return marked

    return mark
