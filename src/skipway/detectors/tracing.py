"""What a detection came from: the maps of the stages, the logit of its class, and its gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from skipway.detectors.backbones import AllButLast, Pyramid
from skipway.detectors.model import Detector, OneStage, TwoStage


@dataclass
class Trace:
    """What a detector in evaluation mode computed of the one image it was called with last."""

    net: Detector
    stages: dict[str, Tensor] = field(default_factory=dict)
    """The maps that pyramid and heads read, [1, C, h, w], of the padded image."""
    outputs: dict[str, Any] = field(default_factory=dict)
    """Of the parts that tell boxes and classes."""

    def logit(self, box: Tensor, label: int, score: float, size: tuple[int, int]) -> Tensor:
        """The logit of its class of a detection: one number, before softmax or sigmoid.

        box, label, score: as the detector gave them; size: the image's height and width. A detector
        moves boxes, and keeps few of them; which of all of them this was is told by box and score.
        """
        logits, scores, boxes = self._of_class(label)
        at = clip_boxes_to_image(boxes.detach(), size)
        off = (at - box).abs().amax(dim=1) + (scores.detach() - score).abs()
        return logits[off.argmin()]

    def _of_class(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, scores and boxes that were told of the class: [n], [n], [n, 4]."""
        if isinstance(self.net, TwoStage):
            logits, moves = self.outputs["box"]
            (proposals,) = self.outputs["proposals"][0]
            k += 1  # torchvision's class 0 is the background
            boxes = self.net.roi_heads.box_coder.decode(moves, [proposals])[:, k]
            return logits[:, k], logits.softmax(1)[:, k], boxes
        assert isinstance(self.net, OneStage)
        (rules,), (where,) = self.net.rules, self.outputs["anchors"]
        told = {name: value[0] for name, value in self.outputs["head"].items()}
        logits, moves = told["cls_logits"][:, k], told["bbox_regression"]
        scores = logits.sigmoid()
        if "bbox_ctrness" in told:  # FCOS
            scores = (scores * told["bbox_ctrness"][:, 0].sigmoid()).sqrt()
            return logits, scores, rules.box_coder.decode(moves, where)
        return logits, scores, rules.box_coder.decode_single(moves, where)


@contextlib.contextmanager
def traced(net: Detector) -> Iterator[Trace]:
    """Keep what the detector computes while this is open, with gradients, be its weights frozen."""
    trace = Trace(net)

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, outputs: Any) -> None:
            trace.outputs[name] = outputs

        return hook

    def differentiable(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0].detach().requires_grad_(),)

    def keep_stages(_: nn.Module, inputs: Any) -> None:
        trace.stages = dict(zip(stage_strides(net), inputs[0].values(), strict=True))

    def keep_last_but_one(_: nn.Module, __: Any, outputs: dict[str, Tensor]) -> None:
        trace.stages = dict(zip(stage_strides(net), outputs.values(), strict=True))

    parts: dict[str, nn.Module] = {}
    if isinstance(net, TwoStage):
        parts = {"proposals": net.rpn, "box": net.roi_heads.box_predictor}
    elif isinstance(net, OneStage):
        parts = {"anchors": net.anchors, "head": net.head}
    handles = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
    backbone: Pyramid | AllButLast = net.backbone
    handles.append(backbone.register_forward_pre_hook(differentiable))
    if isinstance(backbone, AllButLast):
        handles.append(backbone.register_forward_hook(keep_last_but_one))
    else:
        handles.append(backbone.fpn.register_forward_pre_hook(keep_stages))
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def stage_strides(net: Detector) -> dict[str, int]:
    """The stages that `traced` keeps, with their strides."""
    backbone: Pyramid | AllButLast = net.backbone
    names = [backbone.name] if isinstance(backbone, AllButLast) else backbone.stages
    return {name: net.body.strides[name] for name in names}


def detection_maps(
    net: Detector, x: Tensor, found: dict[str, Tensor], chosen: list[int], stage: str
) -> tuple[Tensor, Tensor]:
    """The maps of a stage, [1, C, h, w], and the gradient there of the logit of each of the chosen
    detections, [n, C, h, w].

    x: the model's input, [C, H, W]. found: what the net, in evaluation mode, gives of it.
    """
    with torch.inference_mode(False), torch.enable_grad(), traced(net) as trace:
        net([x.clone()])  # of inference mode it cannot be
        cells, size = trace.stages[stage], (int(x.shape[1]), int(x.shape[2]))
        gradients = []
        for i in chosen:
            label, score = int(found["labels"][i]), float(found["scores"][i])
            logit = trace.logit(found["boxes"][i], label, score, size)
            gradients.append(torch.autograd.grad(logit, cells, retain_graph=True)[0])
    return cells.detach(), torch.cat(gradients)
