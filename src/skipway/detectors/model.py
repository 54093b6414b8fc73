"""Two-stage and one-stage detectors, and the way to build them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RegionProposalNetwork

from skipway.architecture import Architecture
from skipway.detectors.backbones import AllButLast, Pyramid
from skipway.detectors.batch import Target, checked, padded
from skipway.detectors.parts import anchors, fcos_head, in_float32, roi_heads
from skipway.detectors.rpn import rpn_head
from skipway.heads import DetectorConfig
from skipway.norms import convert_norms, group_norm
from skipway.resnet import ResNet, as_read


class Detector(nn.Module):
    """A residual network that finds objects; `build_detector` makes one.

    images: a list of float [C, H, W], normalised as the card says, of any sizes; they are padded at
    the right and below with 0 to one size, a multiple of 32. targets: one dict an image of boxes
    [n, 4] (float; x0, y0, x1, y1 in pixels of that image), labels int64 [n] from 0 to
    num_classes - 1, and for Mask R-CNN masks [n, H, W] (bool or 0 and 1). An image may have none.

    In training mode: the losses by name, to be added up. Else one dict an image: boxes float
    [n, 4] inside the image, labels int64 [n] counted as above, scores float [n], falling, and for
    Mask R-CNN masks float [n, m, m], the probabilities over each box (m is 28, with c4 14), for
    `heads.paste_masks`. Which boxes are trained on is drawn from torch's global generator.

    Raises InputError for targets that torchvision's kernels would not survive, naming the image.
    """

    def __init__(
        self, backbone: Pyramid | AllButLast, config: DetectorConfig, num_classes: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.config, self.num_classes = config, num_classes
        self.multiple = max(32, *self.body.strides.values())

    @property
    def body(self) -> ResNet:
        """The residual network, without its classifier."""
        return self.backbone.body

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[Target]:
        batch, usable = padded(images, self.multiple), None
        if self.training:
            if targets is None:
                raise ValueError("a detector in training mode needs targets")
            masks = self.config.head == "mask-rcnn"
            usable = checked(targets, batch.image_sizes, self.num_classes, masks)
        return self.found(batch, usable)

    def found(self, batch: Any, targets: list[Target] | None) -> dict[str, Tensor] | list[Target]:
        """The losses with targets, else the detections."""
        raise NotImplementedError


class TwoStage(Detector):
    """Faster R-CNN and Mask R-CNN."""

    def __init__(
        self, backbone: Pyramid | AllButLast, config: DetectorConfig, num_classes: int
    ) -> None:
        super().__init__(backbone, config, num_classes)
        per_cell = len(config.anchor_scales) * len(config.anchor_ratios)
        self.rpn = RegionProposalNetwork(
            anchors(backbone.strides, config),
            in_float32(rpn_head(backbone.out_channels, per_cell, config.version)),
            fg_iou_thresh=0.7, bg_iou_thresh=0.3, batch_size_per_image=256, positive_fraction=0.5,
            pre_nms_top_n={"training": config.candidates_train, "testing": config.candidates_test},
            post_nms_top_n={"training": config.proposals_train, "testing": config.proposals_test},
            nms_thresh=0.7,
        )  # fmt: skip
        self.roi_heads = roi_heads(backbone, config, num_classes + 1)

    def found(self, batch: Any, targets: list[Target] | None) -> dict[str, Tensor] | list[Target]:
        if targets is not None:  # torchvision's class 0 is the background
            targets = [t | {"labels": t["labels"] + 1} for t in targets]
        features = self.backbone(batch.tensors)
        read = features
        if isinstance(self.backbone, AllButLast):
            read = {"0": as_read(self.body, self.backbone.name, features["0"])}
        proposals, losses = self.rpn(batch, read, targets)
        found, more = self.roi_heads(features, proposals, batch.image_sizes, targets)
        if targets is not None:
            return losses | more
        for one in found:
            one["labels"] = one["labels"] - 1
            if "masks" in one:
                one["masks"] = one["masks"][:, 0]
        return found


class OneStage(Detector):
    """RetinaNet and FCOS."""

    def __init__(self, backbone: Pyramid, config: DetectorConfig, num_classes: int) -> None:
        super().__init__(backbone, config, num_classes)
        self.per_cell = len(config.anchor_scales) * len(config.anchor_ratios)
        self.anchors = anchors(backbone.strides, config)
        build: Any = RetinaNet
        if config.head == "fcos":
            build, head = FCOS, fcos_head(config.channels, num_classes)
        else:
            norm = group_norm if config.version == 2 else None
            head = RetinaNetHead(config.channels, self.per_cell, num_classes, norm)
            head.regression_head._loss_type = "giou" if config.version == 2 else "l1"
        self.head = in_float32(head)
        # In a tuple, no child: it lends how anchors are matched and what is kept.
        self.rules = (
            build(
                backbone, num_classes, anchor_generator=self.anchors, head=self.head,
                score_thresh=config.score_threshold, nms_thresh=config.nms,
                detections_per_img=config.detections, topk_candidates=config.candidates_test,
            ),
        )  # fmt: skip

    def found(self, batch: Any, targets: list[Target] | None) -> dict[str, Tensor] | list[Target]:
        (rules,) = self.rules
        maps = list(self.backbone(batch.tensors).values())
        outputs, where = self.head(maps), self.anchors(batch, maps)
        cells = [m.shape[2] * m.shape[3] * self.per_cell for m in maps]
        if targets is not None:
            levels = (cells,) if self.config.head == "fcos" else ()
            return rules.compute_loss(targets, outputs, where, *levels)
        by_level = {key: list(value.split(cells, 1)) for key, value in outputs.items()}
        split = [list(one.split(cells)) for one in where]
        return rules.postprocess_detections(by_level, split, batch.image_sizes)


def build_detector(arch: Architecture, config: DetectorConfig, num_classes: int) -> Detector:
    """The detector of that configuration on that architecture, in training mode.

    num_classes: objects' classes, the background not counted. torchvision's COCO files count theirs
    by COCO's ids: 90 here for its R-CNNs, whose label 0 here is id 1, and 91 for its RetinaNet and
    FCOS, whose labels are the ids.

    `detector.body` takes weights and is frozen in parts like any `ResNet`, but has no classifier.
    Its norms are frozen where the configuration says so, which it must only where weights follow.

    Raises InputError where architecture and configuration do not fit.
    """
    body = ResNet(arch)
    del body.fc
    convert_norms(body, config.norm, config.frozen_eps)
    if config.one_stage:
        return OneStage(Pyramid(body, config), config, num_classes)
    backbone = AllButLast(body) if config.neck == "c4" else Pyramid(body, config)
    return TwoStage(backbone, config, num_classes)
