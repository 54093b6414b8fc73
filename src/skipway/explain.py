"""Where in an image a classifier sees a class: Grad-CAM and occlusion.

Sources: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via
Gradient-based Localization" (1610.02391); Zeiler and Fergus 2014, "Visualizing and Understanding
Convolutional Networks" (1311.2901), section 4.2.
"""

from __future__ import annotations

import enum
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from skipway import heatmap
from skipway.answers import Score, softmax
from skipway.errors import InputError, harmless, missing_part, nearest
from skipway.images import Geometry, ImageLike, Preprocess, decode
from skipway.predictor import Predictor, load, open_network, torch_predictor, torch_source

if TYPE_CHECKING:
    from torch import Tensor

    from skipway.data import Split
    from skipway.resnet import ResNet

Array = npt.NDArray[Any]


class Method(enum.StrEnum):
    """How a map is made."""

    grad_cam = "grad-cam"
    occlusion = "occlusion"


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
    """How much of class `k` is lost where x is covered: float32 [H, W], below 0 where it gains.

    A square of `window` pixels, filled with 0, which is the mean after normalisation, is moved in
    steps of `stride` over x, float32 [C, H, W], and cut at its right and bottom edge. A pixel gets
    the mean over the squares that cover it of what the class's probability (in 0..1) or logit
    falls by. stride: at most `window`, else pixels would never be covered.
    """
    height, width = x.shape[1:]
    places = list(itertools.product(*(_starts(n, window, stride) for n in (height, width))))

    def covered() -> Iterator[Array]:
        for top, left in places:
            view = x.copy()
            view[:, top : top + window, left : left + window] = 0
            yield view

    views, values = itertools.chain([x], covered()), list[float]()
    while batch := list(itertools.islice(views, batch_size)):
        logits = predictor.run(np.stack(batch))
        values += _measured(predictor, logits, of)[:, k].tolist()
    total, times = np.zeros((height, width)), np.zeros((height, width))
    for (top, left), value in zip(places, values[1:], strict=True):
        at = slice(top, top + window), slice(left, left + window)
        total[at] += values[0] - value
        times[at] += 1
    found: Array = (total / times).astype(np.float32)
    return found


def _measured(predictor: Predictor, logits: Array, of: Of) -> Array:
    return softmax(predictor.calibrated(logits)) if of is Of.probability else logits


def _starts(size: int, window: int, stride: int) -> range:
    """Where windows begin along a side: the first that reaches its end is the last."""
    return range(0, max(size - window, 0) + stride, stride)


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
        stages = list(net.strides)
        if stage is not None and stage not in stages:
            raise InputError(
                f"--stage {harmless(stage)}: this network has {', '.join(stages)}."
                f"{nearest(stage, stages)}"
            )
        self.net, self.stage = net, stage or stages[-1]

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
        side = min(predictor.card.preprocess.size)
        self.window = window or max(round(side / 7), min(8, side))
        self.stride = stride or max(self.window // 2, 1)
        self.predictor, self.of = predictor, of
        if self.window > side:
            height, width = predictor.card.preprocess.size
            raise InputError(
                f"--window {self.window}: larger than the model's input, {height} x {width} pixels"
            )
        if self.stride > self.window:
            raise InputError(
                f"--stride {self.stride}: larger than the window of {self.window} pixels, which "
                "would leave pixels uncovered"
            )

    def __call__(self, x: Array, k: int) -> Array:
        return occlusion(self.predictor, x, k, self.window, self.stride, self.of)

    def said(self, heat: Array) -> str:
        most = max(float(heat.max()), 0.0) * (100 if self.of is Of.probability else 1)
        fall = f"{most:.1f}" if most >= 0.1 else f"{most:.1g}"
        fall += " points" if self.of is Of.probability else ""
        return (
            f"occlusion, {self.window} px squares every {self.stride} px of the model's input: "
            f"the {self.of} falls by up to {fall}"
        )


# One image


@dataclass(frozen=True)
class Explanation:
    """Where a model sees a class in an image."""

    image: Array
    """uint8 or uint16 [H, W, 3], as decoded."""
    heat: Array
    """float32 [h, w] over the model's input."""
    geometry: Geometry
    asked: Score
    """The class that the map is of."""
    best: Score
    """The model's answer."""
    said: str
    """How the map was made."""

    @property
    def peak(self) -> tuple[int, int] | None:
        """The pixel (x, y) of the image where the map is highest; None where it is empty."""
        return heatmap.peak(self.heat, self.geometry)

    def over_image(self) -> Array:
        """The map over the image, float32 [H, W]; NaN where the model did not see it."""
        return heatmap.over_original(self.heat, self.geometry)

    def picture(self) -> bytes:
        """The image and the map on it with a caption, as PNG; see `heatmap.picture`."""
        title = _shown(self.asked)
        if self.best.label != self.asked.label:
            title += f" (the answer is {_shown(self.best)})"
        notes = [self.said]
        if self.peak is None:
            notes.append("nothing in the image speaks for the class")
        (right, bottom), scale = self.geometry.size[::-1], self.geometry.scale
        share = np.prod(self.heat.shape) / (right * scale[0] * bottom * scale[1])
        if share < 0.995:
            notes.append(f"hatched: cut off before the model, {1 - share:.0%} of the image")
        return heatmap.picture(self.image, self.heat, self.geometry, title, notes)


def _shown(answer: Score) -> str:
    label = answer.label if len(answer.label) <= 60 else answer.label[:59] + "…"
    return f"{label} {answer.score:.1%}"


class Explainer:
    """A model with a way to look into it; made by `open_explainer`."""

    def __init__(self, predictor: Predictor, look: Look) -> None:
        self.predictor, self.look = predictor, look

    def index(self, name: str) -> int:
        """The output of a class. Raises InputError where the model has none of this name."""
        classes = self.predictor.classes
        if name in classes:
            return classes.index(name)
        few = f"\nIt has {', '.join(map(harmless, classes))}" if len(classes) <= 20 else ""
        raise InputError(
            f"--class {harmless(name)}: {harmless(self.predictor.origin)} has no such class."
            f"{harmless(nearest(name, classes))}{few}"
        )

    def __call__(self, source: ImageLike, k: int | None = None) -> Explanation:
        """Of class `k`, None of the most probable. Raises DecodeError."""
        preprocess, classes = self.predictor.card.preprocess, self.predictor.classes
        image = decode(source, 3)
        own = image if preprocess.channels == 3 else decode(source, preprocess.channels)
        framed, geometry = preprocess.frame(own)
        x = preprocess.normalise(framed)
        scores = softmax(self.predictor.calibrated(self.predictor.run(x[None])))[0]
        best = int(scores.argmax())
        k = best if k is None else k
        heat = self.look(x, k)
        asked, answer = (Score(classes[i], float(scores[i])) for i in (k, best))
        return Explanation(image, heat, geometry, asked, answer, self.look.said(heat))


def open_explainer(
    model: str | os.PathLike[str],
    method: Method = Method.grad_cam,
    stage: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    of: Of = Of.probability,
    threads: int | None = None,
    device: str = "cpu",
) -> Explainer:
    """An explainer from what `predictor.load` takes.

    Grad-CAM takes weights alone, for it needs gradients; stage: None is the last. Occlusion takes
    any model and needs no torch where predicting needs none; window, stride: in pixels of the
    model's input, None is about a seventh of its side, 8 at least, and half the window. Raises
    InputError.
    """
    if method is Method.occlusion:
        predictor = _classifier(load(model, threads, device))
        return Explainer(predictor, Occlusion(predictor, window, stride, of))
    source = torch_source(
        model,
        "an ONNX file has no gradients, which Grad-CAM needs\n"
        "Give the run or the weights that it was made from, or --method occlusion.",
    )
    try:
        net, card = open_network(source, threads)
        predictor = _classifier(torch_predictor(net, card, str(source), device))
    except ImportError as error:
        raise missing_part("--method grad-cam", "train", error) from None
    return Explainer(predictor, GradCam(net, stage))


def _classifier(predictor: Predictor) -> Predictor:
    if predictor.card.task != "classify":
        raise InputError(
            f"{harmless(predictor.origin)}: a model of the task {predictor.card.task}; explain "
            "takes classifiers"
        )
    return predictor


def add_maps(
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
