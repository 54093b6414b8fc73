"""What detectors' heads are made of: torchvision's anchors, pooling and heads, of any width and on
levels of any stride.

What torchvision leaves untyped is Any here, and goes no further than this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.fcos import (
    FCOSClassificationHead,
    FCOSHead,
    FCOSRegressionHead,
)
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads

from skipway.detectors.backbones import AllButLast, LastStage, Pyramid, head_norm
from skipway.detectors.pooling import PyramidRoIAlign
from skipway.errors import InputError
from skipway.heads import DetectorConfig
from skipway.norms import group_norm


def in_float32(module: nn.Module) -> Any:
    """The module, with its outputs in float32 under autocast too: boxes and losses need it."""
    module.register_forward_hook(_to_float32)
    return module


def _to_float32(_: nn.Module, __: Any, outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {key: value.float() for key, value in outputs.items()}
    return type(outputs)(_to_float32(_, __, output) for output in outputs)


def anchors(strides: Sequence[int], config: DetectorConfig) -> Any:
    """The anchors of levels with these strides, in float32 whatever the maps are."""
    sizes = tuple(tuple(int(scale * s) for scale in config.anchor_scales) for s in strides)
    generator: Any = AnchorGenerator(sizes, (config.anchor_ratios,) * len(sizes))
    for stride, cells in zip(strides, generator.cell_anchors, strict=True):
        if bool((cells[:, 2:] <= cells[:, :2]).any()):
            raise InputError(
                f"anchor_scales: at stride {stride} an anchor is no pixel wide or high; take larger"
                " ones, or a later stage as finest"
            )

    generator.register_forward_pre_hook(_without_type)
    return generator


def _without_type(_: nn.Module, inputs: tuple[Any, list[Tensor]]) -> tuple[Any, list[Tensor]]:
    images, maps = inputs  # of the maps it wants shapes, device and type alone
    return images, [m.new_empty((), dtype=torch.float32).expand(m.shape) for m in maps]


def roi_heads(backbone: Pyramid | AllButLast, config: DetectorConfig, num_classes: int) -> Any:
    """Box head, and mask head where there is one; num_classes counts the background."""
    mask_head: Any = None
    if isinstance(backbone, Pyramid):
        width, norm = config.channels, head_norm(config)
        box_size, mask_size, outputs, masked = 7, 14, config.box_width, width
        if config.version == 1:
            box_head = TwoMLPHead(width * box_size**2, config.box_width)
        else:
            box_head = FastRCNNConvFCHead(
                (width, box_size, box_size), [width] * 4, [config.box_width], norm
            )
        if config.head == "mask-rcnn":
            mask_head = MaskRCNNHeads(width, [width] * 4, 1, norm)
    else:
        box_size = mask_size = 14
        outputs = masked = list(backbone.body.channels.values())[-1]
        box_head = LastStage(backbone.body, mean=True)
        if config.head == "mask-rcnn":
            mask_head = LastStage(backbone.body, mean=False)
    heads = RoIHeads(
        PyramidRoIAlign(backbone.pooled, box_size), box_head,
        in_float32(FastRCNNPredictor(outputs, num_classes)),
        fg_iou_thresh=0.5, bg_iou_thresh=0.5, batch_size_per_image=config.rois,
        positive_fraction=0.25, bbox_reg_weights=None, score_thresh=config.score_threshold,
        nms_thresh=config.nms, detections_per_img=config.detections,
    )  # fmt: skip
    if mask_head is not None:
        heads.mask_roi_pool = PyramidRoIAlign(backbone.pooled, mask_size)
        heads.mask_head = mask_head
        heads.mask_predictor = in_float32(MaskRCNNPredictor(masked, config.channels, num_classes))
    return heads


def fcos_head(channels: int, num_classes: int) -> Any:
    """FCOS's head of any width; torchvision's own divides its channels by 32."""
    head: Any = FCOSHead(32, 1, 1, 0)
    head.classification_head = FCOSClassificationHead(
        channels, 1, num_classes, norm_layer=group_norm
    )
    head.regression_head = FCOSRegressionHead(channels, 1, norm_layer=group_norm)
    return head
