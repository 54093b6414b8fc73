"""What stands on a backbone to detect or segment: its settings, as a card keeps them, and a
detector's masks put back into an image. No torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

Array = npt.NDArray[Any]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Overlap = Annotated[float, Field(ge=0, le=1)]

HEADS = {
    "detect": "detector", "instance": "detector", "segment": "segmenter", "embed": "embedder",
}  # fmt: skip
"""By task: what stands on the network, as configuration and card call its settings."""
STANDS_ON = {"detector": "backbone.body.", "segmenter": "backbone.", "embedder": "body."}
"""What the names of the network's tensors begin with, below each."""

_USUAL: dict[str, dict[str, Any]] = {
    "retinanet": {
        "anchor_scales": (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)), "detections": 300,
    },
    "fcos": {
        "anchor_scales": (1.0,), "anchor_ratios": (1.0,), "score_threshold": 0.2, "nms": 0.6,
    },
    "c4": {
        "anchor_scales": (2.0, 4.0, 8.0, 16.0, 32.0), "candidates_train": 12000,
        "candidates_test": 6000, "proposals_test": 300, "rois": 64,
    },
}  # fmt: skip
"""What is not given, where it is not the default of the fields: RetinaNet's after 1708.02002,
section 4, FCOS's after 1904.01355 (both as torchvision has them), C4's after Mask R-CNN, section
3.1, and the candidates of Faster R-CNN's code."""
_ON_FPN = ("faster-rcnn", "mask-rcnn")
_TWO_STAGES = (*_ON_FPN, "faster-rcnn with c4", "mask-rcnn with c4")
_OF_DETECTORS = {
    "channels": (*_ON_FPN, "mask-rcnn with c4", "retinanet", "fcos"),
    "candidates_train": _TWO_STAGES,
    "proposals_train": _TWO_STAGES,
    "proposals_test": _TWO_STAGES,
    "rois": _TWO_STAGES,
    "box_width": _ON_FPN,
}
"""Settings that not every head has a use for, and whose they are, as `DetectorConfig.kind`."""


class DetectorConfig(BaseModel):
    """A detector on a residual network: which heads, how wide, and what they keep.

    Names and defaults are those of Faster R-CNN with FPN in torchvision; what other heads usually
    have takes their place where a setting is not given. Sources: Faster R-CNN 1506.01497; FPN
    1612.03144; Mask R-CNN 1703.06870; RetinaNet 1708.02002; FCOS 1904.01355.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    head: Literal["faster-rcnn", "mask-rcnn", "retinanet", "fcos"] = "faster-rcnn"
    """faster-rcnn: proposals, then a second look at each. mask-rcnn: and a mask of each object.
    retinanet, fcos: one look everywhere, from anchors or from points."""
    neck: Literal["fpn", "c4"] = "fpn"
    """A feature pyramid; or for the R-CNNs the form of 2015 (appendix A), where proposals and RoIs
    come from the last stage but one, and the last stage is the head of each RoI."""
    version: Literal[1, 2] = 1
    """With fpn, torchvision's first form or its `_v2`: a second convolution in the RPN, a box head
    of four convolutions and one layer, norms in pyramid and heads; in RetinaNet GIoU loss too."""
    norm: Literal["frozen", "batch", "group"] = "batch"
    """The backbone's norms. frozen: batch norms that keep their statistics and weights; only for a
    backbone that is trained already. group: group norms (1803.08494), for training from the
    beginning with few images a batch; they take the place of version 2's batch norms too."""
    frozen_eps: float | None = Field(None, ge=0, le=1)
    """With norm frozen, what is added to the variances in place of the architecture's bn_eps: 0 for
    torchvision's COCO files of Faster R-CNN, Mask R-CNN and RetinaNet, all of version 1."""
    finest: Literal["c2", "c3", "c4", "c5"] | None = None
    """The stage at which the pyramid begins; it has all that follow. None: c2 for the R-CNNs, c3
    for RetinaNet and FCOS. Strides are the network's: a CIFAR stem's c2 has stride 1."""
    channels: Count = 256
    """Channels of the pyramid, and of the convolutions of the heads on it; of C4, of the mask head
    alone."""
    anchor_scales: tuple[Positive, ...] = Field((8.0,), min_length=1)
    """Sides of the square anchors, over the stride of their level; cut to whole pixels. RetinaNet:
    4, 5.04, 6.35; C4: 2 to 32; FCOS: its points' reach, one."""
    anchor_ratios: tuple[Positive, ...] = Field((0.5, 1.0, 2.0), min_length=1)
    """Heights of the anchors over their widths."""
    candidates_train: Count = 2000
    """Boxes per level that non-maximum suppression in the RPN sees in training."""
    candidates_test: Count = 1000
    """The same in use; in RetinaNet and FCOS the boxes per level that theirs sees."""
    proposals_train: Count = 2000
    """Boxes per image that the RPN passes on in training. This and what follows up to `box_width`
    is of the R-CNNs alone."""
    proposals_test: Count = 1000
    """The same in use; C4: 300."""
    rois: Count = 512
    """Proposals per image that the second stage trains on, at most a quarter of them objects; C4:
    64."""
    box_width: Count = 1024
    """Width of the box head's hidden layers; with c4 that is the last stage, of its own width."""
    score_threshold: Overlap = 0.05
    """Detections at or below this score are left out; FCOS: 0.2."""
    nms: Overlap = 0.5
    """Of two detections of a class that overlap by more than this IoU one stays; FCOS: 0.6."""
    detections: Count = 100
    """Most detections per image; RetinaNet: 300."""

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kind = "c4" if given.get("neck") == "c4" else str(given.get("head"))
        return _USUAL.get(kind, {}) | given

    @model_validator(mode="after")
    def _consistent(self) -> DetectorConfig:
        if self.neck == "c4" and (self.one_stage or self.version == 2 or self.finest):
            raise ValueError("neck: c4 is of Faster and Mask R-CNN, version 1, without finest")
        if self.head == "fcos" and self.version == 2:
            raise ValueError("version: FCOS has one alone, 1")
        if self.head == "fcos" and (len(self.anchor_scales), self.anchor_ratios) != (1, (1.0,)):
            raise ValueError("anchor_scales, anchor_ratios: FCOS has one scale and the ratio 1")
        if self.frozen_eps is not None and self.norm != "frozen":
            raise ValueError("frozen_eps: is of norm frozen alone")
        own = _USUAL.get("c4" if self.neck == "c4" else self.head, {})
        for name, kinds in _OF_DETECTORS.items():
            usual = own.get(name, type(self).model_fields[name].default)
            if not self.reads(name) and getattr(self, name) != usual:
                raise ValueError(f"{name}: is of head {', '.join(kinds)}, not of {self.kind}")
        return self

    @property
    def kind(self) -> str:
        """The head, and its neck where that is not a pyramid."""
        return self.head if self.neck == "fpn" else f"{self.head} with {self.neck}"

    def reads(self, name: str) -> bool:
        """Whether a setting of that name is one of these heads."""
        return self.kind in _OF_DETECTORS.get(name, (self.kind,))

    @property
    def one_stage(self) -> bool:
        """Whether boxes come straight from the pyramid, without proposals."""
        return self.head in ("retinanet", "fcos")


def light(config: DetectorConfig) -> DetectorConfig:
    """The same detector with light heads, for small data and small computers.

    64 RoIs per image, as in Fast R-CNN (1504.08083, section 2.3); 300 proposals in use, as Faster
    R-CNN has (1506.01497, section 3.3); a box head 256 wide instead of 1024 and a pyramid of 128
    channels instead of 256, chosen here. Of these a head gets what it reads.
    """
    lighter = {
        "channels": 128, "box_width": 256, "rois": 64, "candidates_train": 500,
        "candidates_test": 500, "proposals_train": 500, "proposals_test": 300,
    }  # fmt: skip
    read = {name: value for name, value in lighter.items() if config.reads(name)}
    return config.model_copy(update=read)


_SEGMENTERS: dict[str, dict[str, int]] = {
    "unet": {"output_stride": 32},
    "deeplabv3plus": {"output_stride": 16},
    "deeplabv3": {"output_stride": 8},
    "fcn": {"output_stride": 8},
}
"""The output stride that is not given: DeepLabV3+'s is that of its training (1802.02611, section
4.1), FCN's and DeepLabV3's are torchvision's."""
_OF_SEGMENTERS = {
    "output_stride": ("fcn", "deeplabv3", "deeplabv3plus"),
    "auxiliary": ("fcn", "deeplabv3", "deeplabv3plus"),
    "channels": ("deeplabv3", "deeplabv3plus"),
    "rates": ("deeplabv3", "deeplabv3plus"),
    "widths": ("unet",),
}
"""Settings that not every head has, and whose they are."""


class SegmenterConfig(BaseModel):
    """What tells the class of each pixel on a residual network: which head, and how wide.

    Sources: U-Net 1505.04597; FCN 1411.4038; DeepLabV3 1706.05587; DeepLabV3+ 1802.02611. FCN's and
    DeepLabV3's details are torchvision's.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    head: Literal["unet", "deeplabv3plus", "deeplabv3", "fcn"] = "unet"
    """unet: a decoder back to the finest map of the network, for small data. fcn: two convolutions
    on the last stage. deeplabv3: a pyramid of dilated convolutions on it. deeplabv3plus: that, and
    two convolutions at the first stage's size."""
    norm: Literal["frozen", "batch", "group"] = "batch"
    """As a detector's. frozen: the network's batch norms keep statistics and weights, the head's do
    not; only for a network that is trained already. group: group norms (1803.08494) everywhere."""
    output_stride: Literal[8, 16, 32] = 32
    """The network's stride at its end, at most: stages that would go beyond keep their size, and
    their convolutions are dilated instead (1706.05587, section 3.1). fcn and deeplabv3: 8,
    deeplabv3plus: 16. A U-Net dilates nothing."""
    channels: Count = 256
    """Channels of the DeepLabs' heads."""
    rates: tuple[Count, ...] = Field((6, 12, 18), min_length=1)
    """Dilations in the DeepLabs' pyramid, in pixels of a map of stride 16; twice as many at stride
    8 and below, half as many at 32 (1706.05587, section 3.3)."""
    auxiliary: bool = False
    """In training an FCN head on the last stage but one gives logits too (1612.01105, section
    3.3)."""
    widths: tuple[Count, Count, Count, Count, Count] = (128, 64, 32, 32, 16)
    """Channels of a U-Net's decoder at strides 16, 8, 4, 2 and 1, where the network has such maps;
    at coarser ones as at 16. They are half of ResNet-18's, which costs half of what it does."""

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return _SEGMENTERS.get(str(given.get("head")), {}) | given

    @model_validator(mode="after")
    def _consistent(self) -> SegmenterConfig:
        for name, heads in _OF_SEGMENTERS.items():
            usual = _SEGMENTERS[self.head].get(name, type(self).model_fields[name].default)
            if self.head not in heads and getattr(self, name) != usual:
                raise ValueError(f"{name}: is of head {', '.join(heads)}, not of {self.head}")
        return self


def paste_masks(
    masks: Array,
    boxes: Array,
    source: tuple[int, int],
    size: tuple[int, int] | None = None,
    threshold: float = 0.5,
) -> npt.NDArray[np.bool_]:
    """The masks of detections as pixels of the image: bool [n, H, W].

    masks: probabilities [n, m, m] over the boxes [n, 4], which are in pixels of an image of
    `source` (height, width). size: (H, W) of the same image at another size; None is `source`.

    A pixel belongs to an object if its centre is in the box and the probability there is at least
    `threshold`. Heads learn their masks with RoIAlign's first convention, in which a pixel's value
    is at its upper left corner, so they are read half a pixel of `source` before each centre: what
    was learned comes back exactly. torchvision's paste_masks_in_image cuts boxes to whole pixels
    and lays masks over one pixel more, by which small objects lose their shape.
    """
    height, width = size or source
    found = np.zeros((len(masks), height, width), bool)
    for mask, (x0, y0, x1, y1), pixels in zip(masks, boxes, found, strict=True):
        rows, down = _samples(y0, y1, source[0], height, mask.shape[0])
        columns, across = _samples(x0, x1, source[1], width, mask.shape[1])
        pixels[rows, columns] = down @ mask @ across.T >= threshold
    return found


def _samples(low: float, high: float, source: int, size: int, cells: int) -> tuple[slice, Array]:
    """The pixels along one side whose centres are between low and high, and the weights [pixels,
    cells] by which each is interpolated between the cells' centres, level beyond the outermost."""
    scale = size / source
    first, end = (int(np.clip(np.ceil(edge * scale - 0.5), 0, size)) for edge in (low, high))
    at = (np.arange(first, end) + 0.5) / scale - 0.5
    at = np.clip((at - low) / max(high - low, 1e-6) * cells - 0.5, 0, cells - 1)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells)))
    return slice(first, max(first, end)), weights


_OF_LOSS: dict[str, dict[str, Any]] = {
    "proxy-anchor": {"margin": 0.1, "scale": 32.0},
    "arcface": {"margin": 0.5, "scale": 64.0},
    "triplet": {"margin": 0.2, "per_class": 4},
}
"""What is not given: 2003.13911, section 4.2; 1801.07698, section 3.1; and FaceNet's margin
(1503.03832) with the K of 1703.07737."""


class EmbedderConfig(BaseModel):
    """Images as unit vectors, close where their classes are the same: how they are made of a
    network's last stage, and the loss by which they are learned.

    Sources: batch-hard triplets 1703.07737; proxy-anchor 2003.13911; ArcFace 1801.07698; GeM
    1711.02512. What a setting is for the loss, where it is not given, is that of its paper.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    loss: Literal["proxy-anchor", "arcface", "triplet"] = "proxy-anchor"
    """proxy-anchor, arcface: against a learned direction of each class. triplet: against the
    farthest image of its class and the nearest of another, in the batch."""
    dim: int = Field(128, ge=1, le=65536)
    """Numbers of a vector."""
    pooling: Literal["average", "gem"] = "average"
    """Of the last stage's pixels. gem: the generalised mean, whose power is learned."""
    gem_p: float = Field(3.0, ge=1, le=100)
    """Of gem: the power that training begins with; 1 is the average."""
    margin: float = Field(0.1, ge=0)
    """proxy-anchor: of the cosine, both ways (0.1). arcface: of the angle, in radians (0.5).
    triplet: of the distance of unit vectors, which is 2 at most (0.2)."""
    scale: float = Field(32.0, gt=0)
    """Of proxy-anchor (32) and arcface (64): multiplies the cosine."""
    per_class: int = Field(0, ge=0)
    """Images of a class that come together in a batch, the K of P classes x K images (4 with
    triplet), all classes equally often; 0: each image once, in any order."""

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return _OF_LOSS.get(str(given.get("loss", "proxy-anchor")), {}) | given

    @model_validator(mode="after")
    def _consistent(self) -> EmbedderConfig:
        if self.per_class == 1 or (self.loss == "triplet" and not self.per_class):
            raise ValueError("per_class: a class needs two images at least in a batch")
        if self.loss == "arcface" and self.margin >= np.pi:
            raise ValueError("margin: of arcface an angle, below pi")
        return self
