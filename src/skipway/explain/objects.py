"""Where in an image a detector sees an object, a map for each detection.

By gradients: those of the logit of the detection's class times the maps of a stage, cell by cell,
summed over channels and cut at 0. Grad-CAM (1610.02391) takes the mean of a channel's gradient over
all cells; of a detection, which few cells made, that tells where the net sees the class anywhere,
and highlights cells that it did not use. So each cell keeps its own gradient, as in HiResCAM
(Draelos and Carin, 2011.08891) and, of detectors, in ODAM (Zhao and Chan, 2304.06354), whose
smoothing of the gradient is left out.

By occlusion (1311.2901): of the detections in a covered image, the best match counts, by its score
times its IoU with the object, as in D-RISE (Petsiuk et al., 2006.03204, section 3.2), with squares
in place of random masks, and of the same class in place of similar probabilities of all classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from skipway import heatmap
from skipway.answers import Score
from skipway.card import Card
from skipway.drawing import drawn
from skipway.explain.covering import Windows
from skipway.explain.explanation import Explanation, as_input, checked_stage, class_index
from skipway.images import ImageLike

if TYPE_CHECKING:
    from torch import Tensor

    from skipway.detectors import Detector

Array = npt.NDArray[Any]
Found = dict[str, Array]
"""What a detector gives of an input: boxes [n, 4] in its pixels, labels [n], falling scores [n]."""

SHOWN = 3
"""Objects that are explained where none is asked for."""
SURE = 0.5
"""Their least score; where none has it, the most certain one is explained."""


class ObjectLook(Protocol):
    """Makes a map for each chosen detection: x float32 [C, H, W] to float32 [n, H, W]."""

    def __call__(self, x: Array, found: Found, chosen: Sequence[int]) -> Array: ...

    def said(self, heat: Array) -> str:
        """How a map was made, for its caption."""
        ...


class ObjectCam:
    """Gradient times maps of a stage of the residual network, cell by cell."""

    def __init__(self, net: Detector, stage: str | None) -> None:
        """Raises InputError where heads and pyramid read no such stage."""
        from skipway.detectors.tracing import stage_strides

        strides = stage_strides(net)
        self.net, self.stage = net, checked_stage(stage, list(strides))
        self.stride = strides[self.stage]

    def __call__(self, x: Array, found: Found, chosen: Sequence[int]) -> Array:
        import torch

        device = next(self.net.parameters()).device
        tensors = {name: torch.from_numpy(value).to(device) for name, value in found.items()}
        maps = object_cam(
            self.net, torch.from_numpy(x).to(device), tensors, list(chosen), self.stage
        )
        height, width = x.shape[1:]
        spread = []
        for cells in maps.float().cpu().numpy():
            padded = cells.shape[0] * self.stride, cells.shape[1] * self.stride
            spread.append(heatmap.enlarged(cells, padded)[:height, :width])
        return np.stack(spread)

    def said(self, heat: Array) -> str:
        h, w = (-(-n // self.stride) for n in heat.shape)
        return f"Grad-CAM, each cell by its own gradient, stage {self.stage} ({h} x {w} cells)"


def object_cam(
    net: Detector, x: Tensor, found: dict[str, Tensor], chosen: list[int], stage: str
) -> Tensor:
    """Maps over the cells of a stage, [n, h, w], 0 or more: one for each chosen detection.

    x: the model's input [C, H, W]; the cells are those of the image as the detector pads it, at the
    right and below. found: what the net, in evaluation mode, gives of it. stage: of
    `tracing.stage_strides`.
    """
    from skipway.detectors.tracing import detection_maps

    cells, gradients = detection_maps(net, x, found, chosen, stage)
    return (gradients * cells).sum(1).relu()


class ObjectOcclusion:
    """The best match's score times IoU, as squares cover the input."""

    def __init__(self, net: Detector, window: int | None, stride: int | None) -> None:
        """window, stride: as `Squares.of` takes them, of each input: they differ in size."""
        self.net, self.windows = net, Windows(window, stride)

    def __call__(self, x: Array, found: Found, chosen: Sequence[int]) -> Array:
        """Raises InputError where the windows do not fit x."""

        def measure(views: Array) -> Array:
            return np.stack([similarity(seen, found, chosen) for seen in run(self.net, views)])

        return self.windows.on(x[0]).falls(x, measure, batch_size=4)

    def said(self, heat: Array) -> str:
        return self.windows.on(heat).said(heat, "score x IoU of the best match")


def similarity(seen: Found, found: Found, chosen: Sequence[int]) -> Array:
    """How well each chosen one of the detections in `found` is found again among those `seen`: the
    largest score times IoU of one of its class, float64 [n]; 0 where there is none."""
    best = np.zeros(len(chosen))
    for row, i in enumerate(chosen):
        same = seen["labels"] == found["labels"][i]
        boxes, box = seen["boxes"][same].astype(np.float64), found["boxes"][i].astype(np.float64)
        low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
        common = (high - low).clip(0).prod(axis=1)
        areas = [(b[..., 2:] - b[..., :2]).prod(axis=-1) for b in (boxes, box)]
        iou = common / np.maximum(areas[0] + areas[1] - common, 1e-9)
        best[row] = (iou * seen["scores"][same]).max(initial=0)
    return best


def run(net: Detector, views: Array) -> list[Found]:
    """What the detector, in evaluation mode, finds in each of model inputs [B, C, H, W]."""
    import torch

    device = next(net.parameters()).device
    with torch.inference_mode():
        outputs = [net([torch.from_numpy(view).to(device)])[0] for view in views]
    return [
        {name: one[name].float().cpu().numpy() for name in ("boxes", "scores")}
        | {"labels": one["labels"].cpu().numpy()}
        for one in outputs
    ]


class ObjectExplainer:
    """A detector with a way to look into it; made by `open_explainer`."""

    def __init__(self, net: Detector, card: Card, origin: str, look: ObjectLook) -> None:
        self.net, self.card, self.origin, self.look = net, card, origin, look

    def index(self, name: str) -> int:
        """The label of a class. Raises InputError where the model has none of this name."""
        return class_index(name, self.card.classes, self.origin)

    def __call__(
        self, source: ImageLike, k: int | None = None, number: int | None = None
    ) -> list[Explanation]:
        """Of the `SHOWN` most certain objects that are sure, those of class `k` where it is given;
        or of object `number` alone, which counts the same from the most certain, 1, on, and may not
        be there. Raises DecodeError.
        """
        preprocess, classes = self.card.preprocess, self.card.classes
        image, geometry, x = as_input(preprocess, source)
        (found,) = run(self.net, x[None])
        those = (
            np.arange(len(found["labels"])) if k is None else np.flatnonzero(found["labels"] == k)
        )
        sure = int((found["scores"][those] >= SURE).sum())
        first, last = (1, min(max(sure, 1), SHOWN)) if number is None else (number, number)
        chosen = range(first, min(last, len(those)) + 1)
        if not chosen:
            return []
        heats = self.look(x, found, [int(those[n - 1]) for n in chosen])
        made = []
        for n, heat in zip(chosen, heats, strict=True):
            i = those[n - 1]
            label = int(found["labels"][i])
            box = geometry.to_original(found["boxes"][i].reshape(2, 2)).ravel()
            answer = Score(classes[label], float(found["scores"][i]))
            facts = {"object": n, "objects": len(those), "box": box.tolist()}
            made.append(
                Explanation(
                    image,
                    heat,
                    geometry,
                    answer,
                    answer,
                    self.look.said(heat),
                    f", object {n}",
                    facts,
                    _framed(box, label, geometry.size),
                )
            )
        return made


def _framed(box: Array, label: int, size: tuple[int, int]) -> Callable[[Array], Array]:
    """Draws a box, which is in pixels of an image of that height and width."""

    def mark(panel: Array) -> Array:
        height, width = panel.shape[:2]
        scaled = box * (np.array([width, height] * 2) / np.array([*size[::-1]] * 2))
        return drawn(panel, scaled[None], [""], [label], side=max(height, width))

    return mark
