"""torchvision's detectors and segmenters on residual networks: told apart, and described by a card,
from the names and shapes of their tensors.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from skipway.architecture import Architecture
from skipway.card import Card
from skipway.dialects import State, guess_architecture, translate
from skipway.heads import HEADS, STANDS_ON, DetectorConfig, SegmenterConfig
from skipway.images import LONGEST, plain_preprocess
from skipway.peers import distinct
from skipway.tensor_names import task_of_names

_SHORT, _LONG = 800, 1333
"""Pixels of the short side of what torchvision's detectors see, and of the long side at most."""
_SEGMENTED = 520
"""Pixels of the short side of what its segmenters see; of the long side four times as many are
taken at most, where torchvision has no limit."""


def described(state: State) -> tuple[State, Card] | None:
    """The tensors, under the names of our detectors and segmenters, and the card of torchvision's
    Faster R-CNN, Mask R-CNN, RetinaNet or FCOS with FPN, or its FCN or DeepLabV3, on a residual
    network; None where the tensors are of none of them.

    What tensors do not show is taken to be as torchvision has it: preprocessing, dilations, what of
    the boxes is kept, and of as many classes as COCO and Pascal VOC have their names.
    """
    task = task_of_names(state)
    if task == "classify":
        return None
    on = STANDS_ON[HEADS[task]]
    first = f"{on}conv1.weight"
    prefix = next((key.removesuffix(first) for key in state if key.endswith(first)), "")
    bare = State(
        {_renamed(key.removeprefix(prefix), state): tensor for key, tensor in state.items()}
    )
    bare.origin, bare.notes = state.origin, state.notes
    guess = guess_architecture(
        translate({key.removeprefix(on): bare[key] for key in bare if key.startswith(on)})
    )
    if guess is None:
        return None
    name, arch = guess
    try:
        card = _segmenter(bare, name, arch) if task == "segment" else _detector(bare, name, arch)
    except (LookupError, ValueError):  # as torchvision's, but with parts that it has not
        return None
    return bare, card


# --- detectors -----------------------------------------------------------------------------------

_OLDER = (
    (r"(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2"),
    (r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
)
"""How names of torchvision before 0.13 are spelt since; its COCO files of version 1 have them."""


def _renamed(name: str, state: State) -> str:
    for before, after in _OLDER:
        name = re.sub(before, after, name)
    if found := re.search(r"mask_head\.mask_fcn(\d+)\.(\w+)$", name):
        name = f"{name[: found.start()]}mask_head.{int(found[1]) - 1}.0.{found[2]}"
    found = re.search(r"(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)$", name)
    if found and not any("bbox_ctrness" in key for key in state):  # FCOS counts as before
        name = f"{name[: found.start()]}{found[1]}.{int(found[2]) // 2}.0.{found[3]}"
    return name


def _detector(state: State, name: str, arch: Architecture) -> Card:
    """Raises LookupError where a tensor is not there, ValueError where another shape was needed."""
    levels = len({key.split(".")[3] for key in state if key.startswith("backbone.fpn.inner_")})
    width = len(state["backbone.fpn.layer_blocks.0.0.weight"])
    fields: dict[str, Any] = {"channels": width}
    frozen = not any(
        key.startswith("backbone.body.") and key.endswith("num_batches_tracked") for key in state
    )
    two_stage = "roi_heads.box_predictor.cls_score.weight" in state
    if levels != (4 if two_stage else 3):
        fields["finest"] = f"c{6 - levels}"
    if two_stage:
        masks = "roi_heads.mask_predictor.mask_fcn_logits.weight" in state
        fields["head"] = "mask-rcnn" if masks else "faster-rcnn"
        fields["version"] = 2 if "rpn.head.conv.1.0.weight" in state else 1
        layer = "fc6" if fields["version"] == 1 else "5"
        fields["box_width"] = len(state[f"roi_heads.box_head.{layer}.weight"])
        count = len(state["roi_heads.box_predictor.cls_score.weight"]) - 1  # the background
        ids = range(1, count + 1)
    else:
        fcos = "head.regression_head.bbox_ctrness.weight" in state
        fields["head"] = "fcos" if fcos else "retinanet"
        if "head.classification_head.conv.0.1.weight" in state:
            fields["version"] = 2
        config = DetectorConfig(**fields)
        each = len(config.anchor_scales) * len(config.anchor_ratios)
        count = len(state["head.classification_head.cls_logits.weight"]) // each
        ids = range(count)
    coco, assumed = coco_classes(), ["classes", "preprocess"]
    known = ids[-1] == len(coco) - 1
    if frozen:
        fields["norm"] = "frozen"
        assumed.append("frozen_eps")
        # torchvision has no epsilon in its COCO files of version 1 but FCOS's
        if known and fields["head"] != "fcos":
            fields["frozen_eps"] = 0.0
    names = tuple(coco[i] for i in ids) if known else tuple(str(i) for i in ids)
    preprocess = plain_preprocess(_LONG, arch.in_channels, "fit")
    return Card(
        task="instance" if fields["head"] == "mask-rcnn" else "detect",
        model=name,
        architecture=dataclasses.replace(arch, num_classes=count),
        classes=names,
        detector=DetectorConfig(**fields),
        preprocess=preprocess.model_copy(update={"short_side": _SHORT}),
        provenance={"assumed": [*assumed]},
    )


def coco_classes() -> tuple[str, ...]:
    """The names of COCO's categories by id, 0 the background, as torchvision has them; ids that
    COCO does not use are called N/A, each in a way of its own."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return distinct(FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"])


# --- segmenters ----------------------------------------------------------------------------------


def _segmenter(state: State, name: str, arch: Architecture) -> Card:
    """Raises LookupError where a tensor is not there, ValueError where another shape was needed."""
    last, project = state["classifier.4.weight"], state.get("classifier.0.project.0.weight")
    if last.ndim != 4:
        raise ValueError("not of maps")
    count, auxiliary = len(last), "aux_classifier.4.weight" in state
    config = SegmenterConfig(head="fcn", auxiliary=auxiliary)
    if project is not None:
        config = SegmenterConfig(head="deeplabv3", auxiliary=auxiliary, channels=len(project))
    voc = voc_classes()
    preprocess = plain_preprocess(LONGEST * _SEGMENTED, arch.in_channels, "fit")
    return Card(
        task="segment",
        model=name,
        architecture=dataclasses.replace(arch, num_classes=count),
        classes=voc if count == len(voc) else tuple(str(i) for i in range(count)),
        segmenter=config,
        preprocess=preprocess.model_copy(update={"short_side": _SEGMENTED}),
        provenance={"assumed": ["classes", "preprocess"] + ["rates"] * (project is not None)},
    )


def voc_classes() -> tuple[str, ...]:
    """The names of Pascal VOC's 20 classes in the usual order, behind the background, as
    torchvision has them."""
    from torchvision.models.segmentation import FCN_ResNet50_Weights

    names = FCN_ResNet50_Weights.DEFAULT.meta["categories"]
    return tuple(name.strip("_") for name in names)
