"""Where in an image a classifier sees a class."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from skipway import heatmap
from skipway.answers import Score, softmax
from skipway.explain.covering import Squares
from skipway.explain.explanation import Explanation, as_input, checked_stage, class_index
from skipway.images import ImageLike, Preprocess, decode
from skipway.predictor import Predictor

if TYPE_CHECKING:
    from torch import Tensor

    from skipway.data import Split
    from skipway.resnet import ResNet

Array = npt.NDArray[Any]


class Of(enum.StrEnum):
    """What is measured as parts of the image are covered."""

    probability = "probability"
    logit = "logit"


# The methods


def grad_cam(net: ResNet, x: Tensor, classes: Sequence[int], stage: str | None = None) -> Tensor:
    """Maps over the cells of a stage, [B, H / stride, W / stride], 0 or more, in the type of x.

    Each channel of the stage counts by the mean, over the cells, of the gradient of the class's
    logit (eq. 1); what speaks against the class is cut (eq. 2). net: in evaluation mode. x: model
    inputs [B, C, H, W]. classes: one an image. stage: of `net.strides`, None is the last.
    """
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        features = net.features(x.detach().clone().requires_grad_())  # weights may be frozen
        *_, last = features.values()
        cells = last if stage is None else features[stage]
        scores = net.fc(last.mean((2, 3)))[torch.arange(len(x)), list(classes)]
        (gradient,) = torch.autograd.grad(scores.sum(), cells)
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * cells.detach()).sum(1).relu()


def occlusion(
    predictor: Predictor,
    x: Array,
    k: int,
    window: int,
    stride: int,
    of: Of = Of.probability,
    batch_size: int = 32,
) -> Array:
    """How much of class `k` is lost where x is covered: float32 [H, W], by `Squares.falls`.

    x: float32 [C, H, W]. of: the class's probability, in 0..1, or its logit.
    """

    def measure(views: Array) -> Array:
        logits = predictor.run(views)
        found = softmax(predictor.calibrated(logits)) if of is Of.probability else logits
        return found[:, [k]]

    return Squares(window, stride).falls(x, measure, batch_size)[0]


class Look(Protocol):
    """Makes the map of one image: x float32 [C, H, W] and a class to float32 [H, W]."""

    def __call__(self, x: Array, k: int) -> Array: ...

    def said(self, heat: Array) -> str:
        """How the map was made, for its caption."""
        ...


class GradCam:
    """Grad-CAM on a stage of a network in torch."""

    def __init__(self, net: ResNet, stage: str | None) -> None:
        """Raises InputError where the network has no such stage."""
        self.net, self.stage = net, checked_stage(stage, list(net.strides))

    def __call__(self, x: Array, k: int) -> Array:
        import torch

        device = next(self.net.parameters()).device
        cells = grad_cam(self.net, torch.from_numpy(x[None]).to(device), [k], self.stage)
        # A cell's first tap is at its upper left, yet the gradients of trained networks are centred
        # on their cells, as this enlargement is: most are trained on mirror images too.
        height, width = x.shape[1:]
        return heatmap.enlarged(cells[0].float().cpu().numpy(), (height, width))

    def said(self, heat: Array) -> str:
        h, w = (-(-n // self.net.strides[self.stage]) for n in heat.shape)
        return f"Grad-CAM, stage {self.stage} ({h} x {w} cells)"


class Occlusion:
    """Occlusion with any engine."""

    def __init__(
        self, predictor: Predictor, window: int | None, stride: int | None, of: Of
    ) -> None:
        """Raises InputError where the windows do not fit the model's input."""
        self.squares = Squares.of(predictor.card.preprocess.size, window, stride)
        self.predictor, self.of = predictor, of

    def __call__(self, x: Array, k: int) -> Array:
        return occlusion(self.predictor, x, k, self.squares.window, self.squares.stride, self.of)

    def said(self, heat: Array) -> str:
        return self.squares.said(heat, f"the {self.of}", self.of is Of.probability)


# One image


class Explainer:
    """A model with a way to look into it; made by `open_explainer`."""

    def __init__(self, predictor: Predictor, look: Look) -> None:
        self.predictor, self.look = predictor, look

    def index(self, name: str) -> int:
        """The output of a class. Raises InputError where the model has none of this name."""
        return class_index(name, self.predictor.classes, self.predictor.origin)

    def __call__(self, source: ImageLike, k: int | None = None) -> Explanation:
        """Of class `k`, None of the most probable. Raises DecodeError."""
        preprocess, classes = self.predictor.card.preprocess, self.predictor.classes
        image, geometry, x = as_input(preprocess, source)
        scores = softmax(self.predictor.calibrated(self.predictor.run(x[None])))[0]
        best = int(scores.argmax())
        k = best if k is None else k
        heat = self.look(x, k)
        asked, answer = (Score(classes[i], float(scores[i])) for i in (k, best))
        return Explanation(image, heat, geometry, asked, answer, self.look.said(heat))


def mistake_maps(
    rows: Iterable[dict[str, Any]],
    net: ResNet,
    preprocess: Preprocess,
    split: Split,
    classes: Sequence[str],
) -> None:
    """Give rows of an evaluation (`Evaluator.details`) a map of what spoke for the answer.

    Each gets ``heat``: a picture for the report, from Grad-CAM on the last stage. A row counts by
    its index the images of the split, all of which were scored.
    """
    look = GradCam(net.eval(), None)
    for row in rows:
        image = split.image(row["index"], preprocess.channels)
        framed, geometry = preprocess.frame(image)
        heat = look(preprocess.normalise(framed), classes.index(row["predicted"]))
        shown = image if image.shape[2] == 3 else decode(image, 3)
        row["heat"] = heatmap.thumbnail(shown, heat, geometry)
