"""Detectors: torchvision's own models as the oracle, one contract for all heads and all rows, and
targets that its kernels must never see."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.models.detection as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import FrozenBatchNorm2d, box_iou

from beside import AS_THEY_COME, pictures, randomise, same_detections
from skipway.architecture import ARCHITECTURES, Architecture, architecture, replaced
from skipway.detectors import Detector, build_detector
from skipway.errors import InputError
from skipway.heads import DetectorConfig, light, paste_masks
from skipway.norms import FrozenBatchNorm
from skipway.resnet import ResNet
from skipway.training.optim import freeze

Target = dict[str, Tensor]

SMALL: dict[str, Any] = {
    "channels": 16, "box_width": 32, "rois": 16, "proposals_train": 50, "proposals_test": 30,
    "detections": 20, "score_threshold": 0.0,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "faster-rcnn": {"head": "faster-rcnn"},
    "faster-rcnn-v2": {"head": "faster-rcnn", "version": 2},
    "faster-rcnn-c4": {"head": "faster-rcnn", "neck": "c4"},
    "mask-rcnn": {"head": "mask-rcnn"},
    "mask-rcnn-v2": {"head": "mask-rcnn", "version": 2},
    "mask-rcnn-v2-group": {"head": "mask-rcnn", "version": 2, "norm": "group"},
    "mask-rcnn-c4": {"head": "mask-rcnn", "neck": "c4"},
    "retinanet": {"head": "retinanet"},
    "retinanet-v2": {"head": "retinanet", "version": 2},
    "fcos": {"head": "fcos"},
}
CLASSES = 3


def tiny(row: str = "resnet18", **fields: Any) -> Architecture:
    """A row with at most one unit a stage and an eighth of its width."""
    arch = ARCHITECTURES[row]
    depths = tuple(min(depth, 1) for depth in arch.depths)
    return replaced(arch, **({"width": 0.125, "depths": depths} | fields))


def small(kind: str, arch: Architecture | None = None, seed: int = 0, **fields: Any) -> Detector:
    torch.manual_seed(seed)
    kept = DetectorConfig(**KINDS[kind])
    given = {name: value for name, value in SMALL.items() if kept.reads(name)}
    config = DetectorConfig(**(given | KINDS[kind] | fields))
    return build_detector(arch or tiny(), config, CLASSES)


def target(size: tuple[int, int], boxes: list[list[float]], labels: list[int]) -> Target:
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = 1
    where = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": where, "labels": torch.tensor(labels).long(), "masks": masks}


SIZES = ((64, 96), (80, 64))
TARGETS = [
    target(SIZES[0], [[5, 6, 40, 50], [60, 20, 90, 44]], [0, 2]),
    target(SIZES[1], [[10, 12, 50, 70]], [1]),
]


def losses_of(detector: Detector, sizes: Any = SIZES, targets: Any = TARGETS) -> dict[str, Tensor]:
    torch.manual_seed(1)
    found: dict[str, Tensor] = detector.train()(pictures(*sizes), targets)
    return found


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


# --- torchvision's own models -----------------------------------------------------------------

RCNN = {
    "box_detections_per_img": 10, "rpn_post_nms_top_n_test": 12, "rpn_post_nms_top_n_train": 20,
    "box_batch_size_per_image": 12,
}  # fmt: skip
OURS = {"detections": 10, "proposals_test": 12, "proposals_train": 20, "rois": 12}
ONE = {"detections_per_img": 30}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fasterrcnn_resnet50_fpn": ({"head": "faster-rcnn"} | OURS, RCNN),
    "fasterrcnn_resnet50_fpn_v2": ({"head": "faster-rcnn", "version": 2} | OURS, RCNN),
    "maskrcnn_resnet50_fpn": ({"head": "mask-rcnn"} | OURS, RCNN),
    "maskrcnn_resnet50_fpn_v2": ({"head": "mask-rcnn", "version": 2} | OURS, RCNN),
    "retinanet_resnet50_fpn": ({"head": "retinanet", "detections": 30}, ONE),
    "retinanet_resnet50_fpn_v2": ({"head": "retinanet", "version": 2, "detections": 30}, ONE),
    "fcos_resnet50_fpn": ({"head": "fcos", "detections": 30}, ONE),
}
_LONG = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")


@pytest.mark.parametrize(
    "name",
    [
        # what these have the others have too
        pytest.param(name, marks=[pytest.mark.slow] if name in _LONG else [])
        for name in MODELS
    ],
)
def test_torchvisions_models_load_and_find_and_learn_the_same(name: str) -> None:
    fields, kwargs = MODELS[name]
    shift = 1 if "rcnn" in name else 0  # for torchvision the background is a class
    torch.manual_seed(0)
    other = getattr(theirs, name)(
        weights=None, weights_backbone=None, num_classes=CLASSES + shift, **kwargs, **AS_THEY_COME
    )
    randomise(other)
    with torch.device("meta"):
        own = build_detector(architecture("resnet50"), DetectorConfig(**fields), CLASSES)
    own.load_state_dict(other.state_dict(), assign=True)
    assert list(own.state_dict()) == list(other.state_dict())
    same_detections(own, other, pictures(*SIZES), shift, 1e-4)
    targets = [t if "mask" in name else {k: t[k] for k in ("boxes", "labels")} for t in TARGETS]
    shifted = [t | {"labels": t["labels"] + shift} for t in targets]
    own.train()
    other.train()
    with torch.no_grad():
        torch.manual_seed(1)
        losses = own(pictures(*SIZES), targets)
        torch.manual_seed(1)
        expected = other(pictures(*SIZES), shifted)
    assert losses.keys() == expected.keys()
    for key, loss in losses.items():
        assert expected[key] > 0
        assert loss.item() == pytest.approx(expected[key].item(), rel=1e-5)


def test_torchvisions_frozen_norms_load_and_give_the_same() -> None:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=3)
    other = theirs.FasterRCNN(backbone, CLASSES + 1, **RCNN, **AS_THEY_COME)
    randomise(other)
    for module in other.modules():
        if isinstance(module, FrozenBatchNorm2d):  # eps must matter
            module.running_var.mul_(1e-4)
            module.weight.mul_(1e-2)
    overwrite_eps(other, 0.0)  # as torchvision does for its COCO files
    config = DetectorConfig(norm="frozen", frozen_eps=0.0, **OURS)
    own = build_detector(architecture("resnet18"), config, CLASSES)
    own.load_state_dict(other.state_dict())
    same_detections(own, other, pictures(*SIZES), 1, 1e-4)
    for module in own.modules():
        if isinstance(module, FrozenBatchNorm):
            module.eps = 1e-5
    with pytest.raises(AssertionError):
        same_detections(own, other, pictures(*SIZES), 1, 1e-4)


def test_strides_are_the_networks_and_not_a_guess_from_the_first_images() -> None:
    # torchvision's model takes 33 px in a batch of 64 for a map at half its stride, for good.
    image = pictures((64, 64))
    fresh, used = small("mask-rcnn").eval(), small("mask-rcnn").eval()
    with torch.no_grad():
        used(pictures((33, 33)))
        one, two = fresh(image)[0], used(image)[0]
    for key, value in one.items():
        assert torch.equal(value, two[key])


# --- one contract for all heads ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_what_the_docstring_says(kind: str) -> None:
    detector = small(kind).eval()
    with torch.no_grad():
        found = detector(pictures(*SIZES))
    assert len(found) == 2
    for one, (height, width) in zip(found, SIZES, strict=True):
        boxes, labels, scores = one["boxes"], one["labels"], one["scores"]
        count = len(boxes)
        assert 0 < count <= 20
        assert boxes.shape == (count, 4)
        assert labels.shape == scores.shape == (count,)
        assert labels.dtype == torch.int64
        assert labels.min() >= 0
        assert labels.max() < CLASSES
        assert (scores.diff() <= 0).all()
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert ("masks" in one) == kind.startswith("mask")
        if "masks" in one:
            cells = 14 if kind.endswith("c4") else 28
            assert one["masks"].shape == (count, cells, cells)
            assert one["masks"].min() >= 0
            assert one["masks"].max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_an_object_are_learned_from(kind: str) -> None:
    empty = target(SIZES[1], [], [])
    for targets in ([TARGETS[0], empty], [target(SIZES[0], [], []), empty]):
        detector = small(kind)
        losses = losses_of(detector, targets=targets)
        total(losses).backward()
        for name, parameter in detector.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        assert all(loss.isfinite() for loss in losses.values())
        assert all(tensor.isfinite().all() for tensor in detector.state_dict().values())
        assert all(p.grad.any() for p in detector.body.stages()[0].parameters() if p.ndim == 4)


@pytest.mark.parametrize("kind", ["mask-rcnn-c4", "retinanet", "mask-rcnn-v2-group"])
def test_copies_and_pickles_stand_for_themselves(kind: str) -> None:
    detector = small(kind).eval()
    image = pictures((64, 64))
    file = io.BytesIO()
    torch.save(detector, file)
    file.seek(0)
    others = [copy.deepcopy(detector), torch.load(file, weights_only=False)]
    with torch.no_grad():
        before = detector(image)[0]["scores"]
        for other in others:
            assert torch.equal(other(image)[0]["scores"], before)
        for parameter in detector.parameters():
            parameter.mul_(1.5)
        assert not torch.equal(detector(image)[0]["scores"], before)
        for other in others:
            assert torch.equal(other(image)[0]["scores"], before)


@pytest.mark.parametrize("kind", ["mask-rcnn", "faster-rcnn-c4", "fcos"])
def test_recomputed_activations_change_nothing(kind: str) -> None:
    grads = []
    for checkpointing in (False, True):
        detector = small(kind, tiny(checkpointing=checkpointing))
        total(losses_of(detector)).backward()
        grads.append([p.grad for p in detector.parameters()])
        statistics = [b for n, b in detector.named_buffers() if n.endswith("tracked")]
        assert max(statistics) == 1  # each batch counts once
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kind", ["mask-rcnn", "mask-rcnn-v2-group", "faster-rcnn-c4", "retinanet"])
def test_training_works_in_bfloat16_with_boxes_in_float32(kind: str) -> None:
    detector = small(kind).to(memory_format=torch.channels_last)
    exact = losses_of(detector)
    seen: list[Tensor] = []
    generator = next(m for m in detector.modules() if type(m).__name__ == "AnchorGenerator")
    generator.register_forward_hook(lambda _, __, found: seen.extend(found))
    losses_of(detector)
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(detector)
    total(losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], seen[-1])
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        if not key.startswith(("loss_classifier", "loss_box", "loss_mask")):  # other RoIs are drawn
            assert loss.item() == pytest.approx(exact[key].item(), rel=0.1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = detector.eval()(pictures(*SIZES))[0]
    assert all(v.dtype == torch.float32 for k, v in found.items() if k != "labels")


@pytest.mark.parametrize("kind", ["faster-rcnn", "mask-rcnn-c4", "retinanet", "fcos"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_weights_gone_wrong_do_not_take_the_process_down(kind: str, value: float) -> None:
    detector = small(kind)
    for name, parameter in detector.named_parameters():
        if "bbox" in name and name.endswith("weight"):
            nn.init.constant_(parameter, value)
    losses_of(detector)
    with torch.no_grad():
        detector.eval()(pictures(*SIZES))


# --- learning ---------------------------------------------------------------------------------


def learned(detector: Detector, steps: int, lr: float = 2e-3) -> None:
    """After some steps on two images, exactly their objects are found."""
    sizes = ((64, 64), (64, 64))
    targets = [
        target(sizes[0], [[8, 8, 40, 40], [44, 40, 60, 60]], [0, 2]),
        target(sizes[1], [[20, 16, 52, 44]], [1]),
    ]
    images = [0.1 * image for image in pictures(*sizes)]
    for image, one in zip(images, targets, strict=True):
        for mask, label in zip(one["masks"], one["labels"], strict=True):
            image[int(label)] += 2 * mask
    optimizer = torch.optim.Adam(detector.parameters(), lr)
    detector.train()
    for _ in range(steps):
        optimizer.zero_grad()
        total(detector(images, targets)).backward()
        optimizer.step()
    with torch.no_grad():
        found = detector.eval()(images)
    for one, two in zip(found, targets, strict=True):
        best = len(two["boxes"])
        order = box_iou(two["boxes"], one["boxes"][:best]).max(1)
        assert order.values.min() > 0.6
        assert torch.equal(one["labels"][order.indices], two["labels"])
        if "masks" in one:
            masks = paste_masks(one["masks"].numpy(), one["boxes"].numpy(), (64, 64))
            for mask, i in zip(two["masks"].bool().numpy(), order.indices, strict=True):
                assert (mask & masks[i]).sum() / (mask | masks[i]).sum() > 0.6


@pytest.mark.slow
def test_objects_are_learned() -> None:
    learned(small("mask-rcnn-c4", tiny(width=0.25), norm="group", channels=32), 90)


LEARNERS = [("resnet18", kind) for kind in KINDS if kind != "mask-rcnn-c4"]
LEARNERS += [("preresnet50", "faster-rcnn"), ("resnet20", "retinanet")]


@pytest.mark.slow
@pytest.mark.parametrize(("row", "kind"), LEARNERS)
def test_objects_are_learned_by_every_head(row: str, kind: str) -> None:
    width = 1.0 if row == "resnet20" else 0.25
    wide = {"channels": 32} if DetectorConfig(**KINDS[kind]).reads("channels") else {}
    learned(small(kind, tiny(row, width=width), norm="group", **wide), 240, lr=1e-3)


# --- architectures ----------------------------------------------------------------------------


@pytest.mark.parametrize("row", ARCHITECTURES)
def test_every_row_carries_every_head(row: str) -> None:
    arch = tiny(row, width=1.0)
    with torch.device("meta"):
        for kind in ("faster-rcnn", "mask-rcnn-c4", "retinanet", "fcos"):
            config = DetectorConfig(**KINDS[kind])
            detector = build_detector(arch, config, 5)
            if kind == "fcos":
                continue  # on RetinaNet's levels
            strides = list(detector.body.strides.values())
            maps = list(detector.backbone(torch.empty(2, arch.in_channels, 128, 128)).values())
            if kind == "mask-rcnn-c4":
                expected = strides[-2:-1]
                assert maps[0].shape[1] == list(detector.body.channels.values())[-2]
            else:
                after = strides[1:] if config.one_stage else strides
                more = [2, 4] if config.one_stage else [2]
                expected = after + [after[-1] * m for m in more]
                assert all(m.shape[1] == 256 for m in maps)
            assert [m.shape[2] for m in maps] == [128 // stride for stride in expected]
            (generator,) = {m for m in detector.modules() if type(m).__name__ == "AnchorGenerator"}
            smallest = [cells[0] for cells in generator.sizes]
            assert smallest == [int(s * config.anchor_scales[0]) for s in expected]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("preresnet50", "faster-rcnn"),
        ("preresnet164", "mask-rcnn-c4"),
        ("resnet20", "fcos"),
        ("resnet8_speedrun", "retinanet"),
        ("resnet50d", "mask-rcnn"),
        ("resnext50_32x4d", "faster-rcnn-c4"),
        ("seresnet50", "retinanet-v2"),
        ("plain34", "faster-rcnn-v2"),
    ],
)
def test_rows_of_each_sort_train(row: str, kind: str) -> None:
    detector = small(kind, tiny(row, width=0.5 if "20" in row else 0.125))
    optimizer = torch.optim.SGD(detector.parameters(), 1e-3)
    losses = losses_of(detector)
    total(losses).backward()
    for name, parameter in detector.named_parameters():
        if name == "backbone.body.conv1.weight" and row == "resnet8_speedrun":
            assert parameter.grad is None  # whitening is not learned
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    assert all(p.grad.any() for p in detector.body.stages()[0].parameters() if p.ndim == 4)
    optimizer.step()
    after = losses_of(detector)
    assert all(loss.isfinite() for loss in (losses | after).values())
    assert total(after) != total(losses)


def test_a_pre_activation_nets_stages_are_read_as_its_own_units_read_them() -> None:
    detector = small("faster-rcnn", tiny("preresnet50"))
    body, fpn = detector.body, detector.backbone.fpn
    seen: dict[str, Tensor] = {}
    for i in (2, 3, 4):
        norm = getattr(body, f"layer{i}")[0].bn1
        norm.register_forward_hook(lambda _, __, y, i=i: seen.update({f"{i - 2}": y.clone()}))
    body.norm.register_forward_hook(lambda _, __, y: seen.update({"3": y.clone()}))
    read: dict[str, Tensor] = {}
    fpn.register_forward_pre_hook(lambda _, inputs: read.update(inputs[0]))
    plain = copy.deepcopy(body)
    batch = torch.stack(pictures((64, 64), (64, 64)))
    for mode in (True, False):
        detector.train(mode)
        detector.backbone(batch)
        assert list(read) == ["0", "1", "2", "3"]
        for name, value in read.items():
            assert torch.allclose(value, seen[name].relu(), atol=1e-6)
    plain.train().features(batch)  # each batch counts once in the running statistics
    for (name, one), two in zip(
        body.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


def test_c4_runs_the_last_stage_on_rois_alone_and_keeps_it_once() -> None:
    detector = small("mask-rcnn-c4").eval()
    body = detector.body
    shapes: list[torch.Size] = []
    body.layer4.register_forward_pre_hook(lambda *_: shapes.append(torch.Size()))
    body.layer4[0].register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    with torch.no_grad():
        found = detector(pictures(*SIZES))
    kept = sum(len(one["boxes"]) for one in found)
    assert shapes == [(60, 32, 14, 14), (kept, 32, 14, 14)]  # 30 proposals an image
    names = [n.removeprefix("backbone.body.") for n in detector.state_dict() if ".body." in n]
    assert names == [n for n in ResNet(tiny()).state_dict() if not n.startswith("fc.")]
    assert not any("layer" in n for n in detector.state_dict() if "backbone" not in n)


def test_c4s_box_head_is_what_the_classifier_would_read() -> None:
    for row in ("resnet18", "preresnet50"):
        detector = small("faster-rcnn-c4", tiny(row)).eval()
        net = ResNet(tiny(row)).eval()
        state = {n: v for n, v in net.state_dict().items() if not n.startswith("fc.")}
        detector.body.load_state_dict(state)
        image = pictures((224, 224))[0][None]
        with torch.no_grad():
            (c4,) = detector.backbone(image).values()
            embedding = detector.roi_heads.box_head(c4)
        assert torch.allclose(embedding, net.embed(image), atol=1e-5)


def test_the_pyramid_begins_where_it_is_told_to() -> None:
    detector = small("faster-rcnn", finest="c4")
    maps = detector.backbone(torch.zeros(1, 3, 64, 64))
    assert [m.shape[-1] for m in maps.values()] == [4, 2, 1]
    with pytest.raises(InputError, match="no c5"):
        small("retinanet", tiny("resnet20"), finest="c5")
    with pytest.raises(InputError, match="stride 1"):
        small("fcos", tiny("resnet20"), finest="c2")
    with pytest.raises(InputError, match="two stages"):
        small("faster-rcnn-c4", tiny(depths=(1,)))
    assert losses_of(small("retinanet", tiny(depths=(1,))))


# --- norms and weights ------------------------------------------------------------------------


def test_frozen_norms_stay_frozen_when_their_stage_is_freed() -> None:
    detector = small("faster-rcnn", norm="frozen")
    randomise(detector.body)
    before = {n: v.clone() for n, v in detector.body.state_dict().items()}
    frozen = freeze(detector.body, 2, until=(1,))
    assert frozen.at(1)  # all parts train now
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], 0.1)
    total(losses_of(detector)).backward()
    optimizer.step()
    after = detector.body.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        norm = ".bn" in name or name.startswith("bn") or "downsample.1" in name
        assert torch.equal(after[name], value) == norm, name


def test_group_norms_take_the_place_of_all_batch_norms() -> None:
    detector = small("mask-rcnn-v2-group", tiny(zero_init_last=True))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in detector.modules())
    norms = [m for m in detector.modules() if isinstance(m, nn.GroupNorm)]
    assert all(m.num_channels % m.num_groups == 0 and m.num_groups <= 32 for m in norms)
    assert all(m.num_channels >= 2 * m.num_groups for m in norms)
    assert not detector.body.layer1[0].bn2.weight.any()
    wide = build_detector(architecture("resnet18"), DetectorConfig(norm="group"), 1)
    assert {m.num_groups for m in wide.modules() if isinstance(m, nn.GroupNorm)} == {32}


# --- targets ----------------------------------------------------------------------------------

BAD: dict[str, tuple[str, Any, str]] = {
    "not finite": ("boxes", torch.tensor([[1.0, 2, 9, 9], [1, 1, math.nan, 5]]), "not finite"),
    "infinite": ("boxes", torch.tensor([[1.0, 2, 9, 9], [1, 1, math.inf, 5]]), "not finite"),
    "no area": ("boxes", torch.tensor([[1.0, 2, 9, 9], [4, 4, 4, 9]]), "no area"),
    "reversed": ("boxes", torch.tensor([[1.0, 2, 9, 9], [9, 4, 4, 9]]), "no area"),
    "outside": ("boxes", torch.tensor([[1.0, 2, 9, 9], [4, 4, 9, 99]]), "96 x 64 pixels"),
    "left": ("boxes", torch.tensor([[1.0, 2, 9, 9], [-4, 4, 9, 9]]), "96 x 64 pixels"),
    "label": ("labels", torch.tensor([0, CLASSES]), "label from 0 to 2"),
    "negative label": ("labels", torch.tensor([0, -1]), "label from 0 to 2"),
    "labels": ("labels", torch.tensor([0]), "boxes"),
    "shape": ("boxes", torch.zeros(2, 5), "boxes"),
    "masks": ("masks", torch.zeros(2, 64, 95), "masks"),
    "no masks": ("masks", None, "masks"),
}


@pytest.mark.parametrize("case", BAD)
def test_targets_are_refused_by_image_before_any_kernel_sees_them(case: str) -> None:
    key, value, words = BAD[case]
    bad = TARGETS[0] | {key: value}
    if value is None:
        bad = {k: v for k, v in bad.items() if k != key}
    images = pictures(SIZES[1], SIZES[0])
    with pytest.raises(InputError, match=words) as error:
        small("mask-rcnn")(images, [TARGETS[1], bad])
    assert str(error.value).startswith("image 1 of the batch")
    assert len(str(error.value).splitlines()) <= 3


def test_a_pixel_beyond_the_image_is_rounding_and_passes() -> None:
    one = TARGETS[0] | {"boxes": torch.tensor([[-0.5, 0, 96.5, 64.5], [3, 3, 9, 9]])}
    assert total(losses_of(small("mask-rcnn"), targets=[one, TARGETS[1]])).isfinite()


def test_training_needs_a_target_for_each_image() -> None:
    with pytest.raises(ValueError, match="needs targets"):
        small("fcos")(pictures(*SIZES))
    with pytest.raises(ValueError, match="1 targets for 2 images"):
        small("fcos")(pictures(*SIZES), TARGETS[:1])


def test_targets_stay_as_they_were() -> None:
    targets = copy.deepcopy(TARGETS)
    losses_of(small("mask-rcnn"), targets=targets)
    for one, two in zip(targets, TARGETS, strict=True):
        assert all(torch.equal(one[key], two[key]) for key in two)


# --- configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_survives_json(kind: str) -> None:
    config = light(DetectorConfig(**KINDS[kind]))
    assert DetectorConfig.model_validate_json(config.model_dump_json()) == config


def test_what_is_not_given_is_what_the_head_usually_has() -> None:
    retina, fcos = DetectorConfig(head="retinanet"), DetectorConfig(head="fcos")
    assert (retina.detections, retina.score_threshold, retina.nms) == (300, 0.05, 0.5)
    assert (fcos.detections, fcos.score_threshold, fcos.nms) == (100, 0.2, 0.6)
    c4 = DetectorConfig(head="mask-rcnn", neck="c4")
    assert (c4.rois, c4.proposals_test) == (64, 300)
    assert DetectorConfig(head="fcos", nms=0.5).nms == 0.5


@pytest.mark.parametrize(
    "fields",
    [
        {"head": "fcos", "neck": "c4"},
        {"head": "mask-rcnn", "neck": "c4", "version": 2},
        {"neck": "c4", "finest": "c3"},
        {"head": "fcos", "version": 2},
        {"head": "fcos", "anchor_ratios": (0.5, 1)},
        {"frozen_eps": 0.0},
        {"anchor_scales": ()},
        {"anchor_scales": (0.0,)},
        {"nms": math.nan},
        {"head": "retinanet", "rois": 64},
        {"head": "retinanet", "version": 2, "proposals_test": 300},
        {"head": "fcos", "proposals_train": 500},
        {"head": "fcos", "candidates_train": 500},
        {"head": "fcos", "box_width": 256},
        {"head": "mask-rcnn", "neck": "c4", "box_width": 256},
        {"head": []},
        {"neck": {}},
        {"channel": 3},
    ],
)
def test_settings_that_contradict_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DetectorConfig(**fields)


NUMBERS = [
    name for name, field in DetectorConfig.model_fields.items()
    if isinstance(field.default, int) and name != "version"
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_heads_read_what_they_say_they_read(kind: str) -> None:
    """Each setting is set to a number that nothing else has, and looked for in the detector."""
    usual = DetectorConfig(**KINDS[kind])
    marked = {name: 5008 + 32 * i for i, name in enumerate(NUMBERS)}  # of whole groups of channels
    with torch.device("meta"):
        net: Any = build_detector(tiny(), usual.model_copy(update=marked), CLASSES)
    seen = [n for _, tensor in net.named_parameters() for n in tensor.shape]
    parts = [*net.rules] if usual.one_stage else [net.rpn, net.roi_heads]
    parts += [part.fg_bg_sampler for part in parts if hasattr(part, "fg_bg_sampler")]
    for part in parts:
        for value in vars(part).values():
            seen += value.values() if isinstance(value, dict) else [value]
    read = {name for name in NUMBERS if usual.reads(name)}
    assert {name for name in NUMBERS if marked[name] in seen} == read


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_head_does_not_read_cannot_be_set(kind: str) -> None:
    usual = DetectorConfig(**KINDS[kind])
    for name in NUMBERS:
        if usual.reads(name):
            assert getattr(DetectorConfig(**KINDS[kind], **{name: 96}), name) == 96
            continue
        with pytest.raises(ValidationError, match=f"{name}: is of head .*, not of {usual.kind}"):
            DetectorConfig(**KINDS[kind], **{name: 96})
    whole = usual.model_dump()  # as cards hold them
    assert DetectorConfig(**whole) == usual
    for name, value in light(usual).model_dump().items():
        assert value == whole[name] or usual.reads(name)


def test_light_heads_are_light() -> None:
    def heads(config: DetectorConfig) -> int:
        with torch.device("meta"):
            detector = build_detector(architecture("resnet18"), config, 5)
        return sum(p.numel() for n, p in detector.named_parameters() if ".body." not in n)

    for kind in KINDS:
        config = DetectorConfig(**KINDS[kind])
        usual, less = heads(config), heads(light(config))
        assert less <= usual if "c4" in kind else less < 0.35 * usual
    assert light(DetectorConfig()).rois == 64


# --- masks back into the image ----------------------------------------------------------------


def ellipse(size: int, x: float, y: float, a: float, b: float, angle: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] + 0.5
    u = (columns - x) * math.cos(angle) + (rows - y) * math.sin(angle)
    v = (rows - y) * math.cos(angle) - (columns - x) * math.sin(angle)
    return (u / a) ** 2 + (v / b) ** 2 < 1


@settings(max_examples=50)
@given(
    st.floats(16, 32), st.floats(16, 32), st.floats(2, 10), st.floats(2, 10), st.floats(0, math.pi)
)
def test_a_mask_that_was_learned_comes_back(
    x: float, y: float, a: float, b: float, angle: float
) -> None:
    mask = ellipse(48, x, y, a, b, angle)
    rows, columns = np.nonzero(mask)
    box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    learned = project_masks_on_boxes(
        torch.from_numpy(mask)[None].float(), torch.from_numpy(box), torch.zeros(1), 28
    )
    assert (paste_masks(learned.numpy(), box, (48, 48))[0] == mask).all()


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_pasting_is_bilinear_interpolation_within_the_box(seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    masks = random.random((3, 14, 14), np.float32)
    corners = np.sort(random.uniform(-4, 44, (3, 2, 2)), 1).reshape(3, 4)
    boxes = corners.astype(np.float32) + np.array([0, 0, 1, 1], np.float32)
    height, width = int(40 * scale), int(32 * scale)
    found = paste_masks(masks, boxes, (40, 32), (height, width))
    for mask, box, pixels in zip(masks, boxes.astype(np.float64), found, strict=True):
        grid, inside = [], []
        for low, high, count in ((box[0], box[2], width), (box[1], box[3], height)):
            centre = (np.arange(count) + 0.5) / scale
            grid.append(((centre - 0.5 - low) / (high - low)) * 2 - 1)
            inside.append((centre >= low) & (centre < high))
        points = np.stack(np.broadcast_arrays(grid[0][None, :], grid[1][:, None]), -1)
        expected = F.grid_sample(
            torch.from_numpy(mask).double()[None, None], torch.from_numpy(points)[None],
            padding_mode="border", align_corners=False,
        )[0, 0].numpy()  # fmt: skip
        where = inside[1][:, None] & inside[0][None, :]
        sure = np.abs(expected - 0.5) > 1e-6
        assert (pixels == (where & (expected >= 0.5)))[sure].all()
        assert not pixels[~where].any()


def test_no_masks_are_no_pixels_and_boxes_may_leave_the_image() -> None:
    none = paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), (5, 7))
    assert none.shape == (0, 5, 7)
    ones = np.ones((3, 28, 28))
    boxes = np.array([[-9, -9, -2, -2], [-1, -1, 99, 99], [4, 2, 4, 2]])
    found = paste_masks(ones, boxes, (5, 7))
    assert found.sum((1, 2)).tolist() == [0, 35, 0]
