"""The way to an explainer of any model."""

from __future__ import annotations

import enum
import os
from typing import TYPE_CHECKING, Any

from skipway.errors import InputError, harmless, missing_part
from skipway.explain.classes import Explainer, GradCam, Occlusion, Of
from skipway.loading import needing_torch
from skipway.predictor import (
    Predictor,
    load,
    on_device,
    open_network,
    ready_torch,
    task_of,
    torch_predictor,
    torch_source,
)

if TYPE_CHECKING:
    from skipway.explain.objects import ObjectExplainer
    from skipway.explain.pixels import PixelExplainer
    from skipway.explain.vectors import VectorExplainer


class Method(enum.StrEnum):
    """How a map is made."""

    grad_cam = "grad-cam"
    occlusion = "occlusion"


def open_explainer(
    model: str | os.PathLike[str],
    method: Method = Method.grad_cam,
    stage: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    of: Of = Of.probability,
    threads: int | None = None,
    device: str = "cpu",
) -> Explainer | ObjectExplainer | PixelExplainer | VectorExplainer:
    """An explainer from what `predictor.load` takes, or from a model that finds objects, tells the
    class of each pixel, or makes vectors.

    Grad-CAM takes weights alone, for it needs gradients; stage: None is the last. Occlusion takes
    any model and of a classifier needs no torch where predicting needs none; window, stride: in
    pixels of the model's input, None is about a seventh of its side, 8 at least, and half the
    window. of: of classifiers. Raises InputError; where windows do not fit an input whose size is
    the image's, the call does.
    """
    squares = (window, stride) if method is Method.occlusion else None
    task = task_of(model)
    if task != "classify":
        with needing_torch(model):
            return _of_task(task, model, squares, stage, threads, device)
    if squares is not None:
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


def _of_task(
    task: str,
    model: str | os.PathLike[str],
    squares: tuple[int | None, int | None] | None,
    stage: str | None,
    threads: int | None,
    device: str,
) -> ObjectExplainer | PixelExplainer | VectorExplainer:
    """Of all but classifiers. squares: window and stride of occlusion, None is by gradients."""
    from skipway.explain import objects, pixels, vectors
    from skipway.weights import load_detector, load_embedding, load_segmenter

    ways: dict[str, tuple[Any, Any, Any, Any]] = {
        "segment": (
            *(load_segmenter, pixels.PixelExplainer),
            *(pixels.PixelCam, pixels.PixelOcclusion),
        ),
        "embed": (
            *(load_embedding, vectors.VectorExplainer),
            *(vectors.VectorCam, vectors.VectorOcclusion),
        ),
    }
    of_objects = (
        *(load_detector, objects.ObjectExplainer),
        *(objects.ObjectCam, objects.ObjectOcclusion),
    )
    load_network, explainer, by_gradients, by_covering = ways.get(task, of_objects)
    ready_torch(threads)
    loaded, card = load_network(model)
    net = on_device(loaded, device)
    look = by_gradients(net, stage) if squares is None else by_covering(net, *squares)
    found: ObjectExplainer | PixelExplainer | VectorExplainer
    found = explainer(net, card, os.fspath(model), look)
    return found


def _classifier(predictor: Predictor) -> Predictor:
    if predictor.card.task != "classify":
        raise InputError(
            f"{harmless(predictor.origin)}: a model of the task {predictor.card.task}; of ONNX "
            "files explain takes those that classify\n"
            "Give the run or the weight file that it was made from."
        )
    return predictor
