"""torchvision's detectors, and what trains from models with heads: files as torchvision saves them,
old and new, in every command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models.detection as theirs
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

import skipway
from beside import AS_THEY_COME, pictures, randomise, same_detections
from commands import call
from skipway.architecture import architecture
from skipway.card import Card
from skipway.detectors import build_detector
from skipway.dialects import State
from skipway.embedders import build_embedder
from skipway.errors import InputError
from skipway.heads import DetectorConfig, EmbedderConfig, SegmenterConfig
from skipway.images import plain_preprocess
from skipway.locator import Locator
from skipway.peer_heads import coco_classes, described
from skipway.predictor import task_of
from skipway.segmenters import build_segmenter
from skipway.training.plan import make_plan
from skipway.weights import load_detector, load_start, read_state, save_weights

FROZEN = {"norm": "frozen", "frozen_eps": 0.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "fasterrcnn_resnet50_fpn": ("detect", {"head": "faster-rcnn"}),
    "fasterrcnn_resnet50_fpn_v2": ("detect", {"head": "faster-rcnn", "version": 2}),
    "maskrcnn_resnet50_fpn": ("instance", {"head": "mask-rcnn"}),
    "maskrcnn_resnet50_fpn_v2": ("instance", {"head": "mask-rcnn", "version": 2}),
    "retinanet_resnet50_fpn": ("detect", {"head": "retinanet"}),
    "retinanet_resnet50_fpn_v2": ("detect", {"head": "retinanet", "version": 2}),
    "fcos_resnet50_fpn": ("detect", {"head": "fcos"}),
}


def as_before(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names that torchvision had until 0.12, those of its COCO files of version 1."""
    old = {}
    for key, tensor in state.items():
        key = re.sub(r"(rpn\.head\.conv|(?:inner|layer)_blocks\.\d)\.(?:0\.)?0\.", r"\1.", key)
        key = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key)
        key = re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", key)
        old[key] = tensor
    return old


def on_resnet18(kind: str, norm: Any = None, classes: int = 4) -> nn.Module:
    """torchvision's own of that kind on a ResNet-18, as after a training."""
    torch.manual_seed(0)
    more = {"norm_layer": norm} if norm else {}
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, **more)
    made: nn.Module = getattr(theirs, kind)(backbone, classes, **AS_THEY_COME)
    randomise(made)
    nn.init.normal_(made.roi_heads.box_predictor.cls_score.weight, 0, 0.5)  # of several classes
    return made


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_each_is_told_from_its_tensors(name: str, frozen: bool) -> None:
    task, fields = MODELS[name]
    with torch.device("meta"):
        model = getattr(theirs, name)(weights=None, weights_backbone=None, num_classes=91)
    state = State(model.state_dict())
    if frozen:
        state = State({k: v for k, v in state.items() if "num_batches" not in k or "body" not in k})
        fields = fields | (FROZEN if "fcos" not in name else {"norm": "frozen"})
    found = described(state)
    assert found is not None
    tensors, card = found
    assert (card.task, card.model, card.detector) == (task, "resnet50", DetectorConfig(**fields))
    assert list(tensors) == list(state)
    assert card.classes[-1] == "toothbrush"
    assert card.classes[0] == ("person" if "rcnn" in name else "__background__")
    assert len(card.classes) == (90 if "rcnn" in name else 91)
    # what torchvision's transform makes of them, to a pixel
    for size, expected in (((480, 640), (800, 1066)), ((300, 1000), (399, 1333))):
        assert np.abs(np.subtract(card.preprocess.fitted(*size), expected)).max() <= 1
    if name in ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn"):
        older = State(as_before(state))
        assert list(older) != list(state)
        assert described(older) is not None
        assert list(described(older)[0]) == list(state)  # type: ignore[index]


@pytest.mark.parametrize(
    ("kind", "old"),
    [
        ("FasterRCNN", False),
        ("MaskRCNN", True),
        pytest.param("FasterRCNN", True, marks=pytest.mark.slow),
        pytest.param("MaskRCNN", False, marks=pytest.mark.slow),
    ],
)
def test_a_file_finds_what_torchvision_finds(kind: str, old: bool, tmp_path: Path) -> None:
    other = on_resnet18(kind, nn.BatchNorm2d)
    state = as_before(other.state_dict()) if old else other.state_dict()
    path = tmp_path / "net.pth"
    held = {"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3} if old else state
    torch.save(held, path, _use_new_zipfile_serialization=not old)
    assert task_of(path) == ("instance" if kind == "MaskRCNN" else "detect")
    own, card = load_detector(path)
    assert card.classes == ("1", "2", "3")
    assert card.detector is not None
    assert card.detector.norm == "batch"
    same_detections(own, other, pictures((64, 96), (80, 64)), 1, 1e-4)


def test_frozen_norms_of_other_classes_than_cocos_have_torchvisions_epsilon(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = on_resnet18("FasterRCNN")
    for module in other.modules():
        if isinstance(module, FrozenBatchNorm2d):  # variances beside which it is not small
            module.running_var.mul_(1e-5)
            module.weight.mul_(3e-3)
    torch.save(other.state_dict(), tmp_path / "net.pth")
    own, card = load_detector(tmp_path / "net.pth")
    assert card.detector is not None
    assert (card.detector.norm, card.detector.frozen_eps) == ("frozen", None)
    same_detections(own, other, pictures((64, 96), (80, 64)), 1, 1e-4)
    (told,) = caplog.messages
    assert "net.pth: assumed, as the file does not say: classes: 3, '1' to '3'; prepro" in told
    assert "short side to 800 px, at most 1333 x 1333 (bilinear)" in told
    assert told.endswith("frozen_eps: 1e-05")


def test_a_kind_that_is_not_ours_is_told_by_its_parts(tmp_path: Path) -> None:
    other = on_resnet18("KeypointRCNN")
    torch.save(other.state_dict(), tmp_path / "net.pth")
    with pytest.raises(InputError) as refused:
        load_detector(tmp_path / "net.pth")
    first, second = str(refused.value).splitlines()
    assert "has parts that Skipway's detectors lack: roi_heads.keypoint_head.0.weight, " in first
    assert second.startswith("Of torchvision's detectors, Faster R-CNN, ")


@pytest.mark.slow
def test_a_file_in_every_command(tmp_path: Path) -> None:
    other = on_resnet18("MaskRCNN")
    path = tmp_path / "masks.pth"
    torch.save(other.state_dict(), path)
    rng = np.random.default_rng(0)
    (tmp_path / "val").mkdir()
    (tmp_path / "train").mkdir()
    held: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    held["categories"] = [{"id": k, "name": str(k)} for k in (1, 2)]
    for i in range(2):
        for split in ("train", "val"):
            pixels = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / f"{i}.png")
        held["images"].append({"id": i, "file_name": f"{i}.png", "height": 48, "width": 64})
        held["annotations"].append(
            {"id": i + 1, "image_id": i, "category_id": 1 + i, "bbox": [4, 5, 30, 20],
             "area": 600, "iscrowd": 0, "segmentation": [[4, 5, 34, 5, 34, 25, 4, 25]]}
        )  # fmt: skip
    for split in ("train", "val"):
        (tmp_path / f"{split}.json").write_text(json.dumps(held))
    image = tmp_path / "val" / "0.png"
    told = call("predict", path, image, "--json", "--threads=1")
    assert told.code == 0, told.err
    assert "objects" in json.dumps(told.value)
    told = call("eval", path, tmp_path, "--json", "--threads=1")
    assert told.code == 0, told.err
    assert told.value["n"] == 2
    assert "mask_ap" in told.value["metrics"]
    model = skipway.load(path)
    assert isinstance(model, Locator)
    assert model.card.task == "instance"
    told = call("export", path, "--out", tmp_path / "x.onnx")
    assert told.code == 2
    assert "its task is instance" in told.err
    run = tmp_path / "run"
    told = call(
        "train", tmp_path, "--task=instance", "--weights", path, "--epochs=1", "--set=data.size=64",
        "--out", run, "--threads=1",
    )  # fmt: skip
    assert told.code == 0, told.err
    assert "detector.head = mask-rcnn  (the heads of " in told.err
    assert "of another shape in the file" in told.err
    card = Card.model_validate_json((run / "card.json").read_text())
    assert card.detector == DetectorConfig(head="mask-rcnn", norm="frozen")
    assert card.classes == ("1", "2")


# --- training from models with heads --------------------------------------------------------------

ARCH = architecture("resnet18", num_classes=3, width=0.125)
SMALL: dict[str, Any] = {"channels": 16, "box_width": 32}


def saved(path: Path, task: str, net: nn.Module, classes: int = 3, **fields: Any) -> Path:
    card = Card(
        task=task,  # type: ignore[arg-type]
        model="custom",
        architecture=ARCH,
        classes=tuple("abcdefgh"[:classes]),
        preprocess=plain_preprocess(64, 3, "fit" if task != "embed" else "crop"),
        **fields,
    )
    save_weights(path, net, card)
    return path


def detector(classes: int = 3, seed: int = 0, **fields: Any) -> tuple[nn.Module, DetectorConfig]:
    torch.manual_seed(seed)
    config = DetectorConfig(**(SMALL | fields))
    return build_detector(ARCH, config, classes), config


def test_heads_come_along_but_for_what_counts_classes(tmp_path: Path) -> None:
    net, config = detector()
    path = saved(tmp_path / "a.safetensors", "detect", net, detector=config)
    other, _ = detector(classes=5, seed=1)
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    report = load_start(other, *read_state(path))
    after, source = other.state_dict(), net.state_dict()
    anew = {key for key in after if not torch.equal(after[key], source.get(key, torch.empty(0)))}
    parts = ("box_predictor.cls_score", "box_predictor.bbox_pred")
    assert {key.rpartition(".")[0] for key in anew} == {f"roi_heads.{part}" for part in parts}
    for key in anew:
        assert torch.equal(after[key], before[key])
    assert {key for key, _ in report.made_anew} == anew
    assert {why for _, why in report.made_anew} == {"of another shape in the file"}
    assert set(report.loaded) | anew >= {key for key in after if "backbone.body" not in key}
    masked, _ = detector(seed=1, head="mask-rcnn")
    report = load_start(masked, *read_state(path))
    assert torch.equal(
        masked.state_dict()["rpn.head.conv.0.0.weight"], source["rpn.head.conv.0.0.weight"]
    )
    absent = {key for key, why in report.made_anew if why == "not in the file"}
    assert absent
    assert all(".mask_" in key for key in absent)


def inside(state: dict[str, Tensor]) -> Tensor:
    """A tensor of the residual network."""
    return next(tensor for key, tensor in state.items() if key.endswith("layer3.0.conv1.weight"))


def test_any_task_starts_from_any(tmp_path: Path) -> None:
    """The residual network of each, in each."""
    made = {
        "detect": (detector()[0], {"detector": DetectorConfig(**SMALL)}),
        "segment": (build_segmenter(ARCH, SegmenterConfig(), 3), {"segmenter": SegmenterConfig()}),
        "embed": (build_embedder(ARCH, EmbedderConfig(), 3), {"embedder": EmbedderConfig()}),
    }
    for task, (net, fields) in made.items():
        path = saved(tmp_path / f"{task}.safetensors", task, net, **fields)
        state, card = read_state(path)
        source = next(
            tensor for key, tensor in state.items() if key.endswith("layer3.0.conv1.weight")
        )
        torch.manual_seed(9)
        others = [skipway.create_model("resnet18", 3, width=0.125), detector(5, 2)[0]]
        others.append(build_segmenter(ARCH, SegmenterConfig(head="fcn"), 4))
        others.append(build_embedder(ARCH, EmbedderConfig(loss="triplet"), 4))
        for other in others:
            report = load_start(other, state, card)
            own = next(
                t for k, t in other.state_dict().items() if k.endswith("layer3.0.conv1.weight")
            )
            assert torch.equal(own, source)
            assert report.share == 1


def test_a_broken_head_is_refused(tmp_path: Path) -> None:
    net, config = detector()
    net.state_dict()["rpn.head.conv.0.0.weight"][0, 0, 0, 0] = float("nan")
    path = saved(tmp_path / "a.safetensors", "detect", net, detector=config)
    with pytest.raises(InputError, match=r"rpn\.head\.conv\.0\.0\.weight holds NaN"):
        load_start(detector()[0], *read_state(path))


def cells(place: Path) -> Path:
    """COCO with boxes alone."""
    for split in ("train", "val"):
        (place / split).mkdir(parents=True)
        held: dict[str, Any] = {"images": [], "annotations": []}
        held["categories"] = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
        for i in range(2):
            Image.new("RGB", (64, 64), (90, 20, 40 * i)).save(place / split / f"{i}.png")
            held["images"].append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
            held["annotations"].append(
                {"id": i + 1, "image_id": i, "category_id": 1 + i, "bbox": [4, 5, 30, 20],
                 "area": 600, "iscrowd": 0, "segmentation": [[4, 5, 34, 5, 34, 25, 4, 25]]}
            )  # fmt: skip
        (place / f"{split}.json").write_text(json.dumps(held))
    return place


def test_settings_of_the_heads_come_with_the_weights(tmp_path: Path) -> None:
    data = str(cells(tmp_path / "cells"))
    own = {"channels": 24, "box_width": 40, "score_threshold": 0.1}
    net, config = detector(**own)
    path = str(saved(tmp_path / "a.safetensors", "detect", net, detector=config))

    def planned(**given: Any) -> DetectorConfig:
        keys = {key.replace("__", "."): value for key, value in given.items()}
        plan = make_plan(data, {"task": "detect", "model.weights": path} | keys)
        assert plan.architecture.width == 0.125
        return plan.config.detector

    assert planned() == DetectorConfig(**own, norm="frozen")
    assert planned(detector__channels=8).channels == 8
    # other heads than those of the file are chosen as without one
    assert planned(detector__head="fcos").channels == 128
    masks = planned(task="instance")
    assert (masks.head, masks.channels) == ("mask-rcnn", 24)
    grouped, config = detector(norm="group")
    path = str(saved(tmp_path / "g.safetensors", "detect", grouped, detector=config))
    assert planned().norm == "group"
    with pytest.raises(InputError, match="norms keep no running statistics"):
        load_start(detector()[0], *read_state(path))


def test_the_epsilon_of_frozen_norms_comes_along_where_they_stay_frozen(tmp_path: Path) -> None:
    """Under any heads; and is no one's setting where other norms are asked for."""
    data = str(cells(tmp_path / "cells"))
    net, config = detector(**FROZEN)
    path = str(saved(tmp_path / "a.safetensors", "detect", net, detector=config))

    def planned(**given: Any) -> tuple[str, float | None]:
        keys = {f"detector.{key}": value for key, value in given.items()}
        made = make_plan(data, {"task": "detect", "model.weights": path} | keys).config.detector
        return made.norm, made.frozen_eps

    assert planned() == ("frozen", 0.0)
    assert planned(norm="batch") == ("batch", None)
    for head in ("retinanet", "fcos"):
        assert planned(head=head) == ("frozen", 0.0)
        assert planned(head=head, norm="batch") == ("batch", None)
    assert planned(head="fcos", norm="frozen", frozen_eps=1e-3) == ("frozen", 1e-3)


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({}, {"channels", "box_width", "rois", "proposals_train", "proposals_test",
              "candidates_train", "candidates_test"}),
        ({"head": "retinanet"}, {"channels", "candidates_test"}),
        ({"head": "fcos"}, {"channels", "candidates_test"}),
        ({"neck": "c4"}, {"candidates_train", "candidates_test", "proposals_train"}),
        ({"neck": "c4", "head": "mask-rcnn"}, {"channels", "candidates_train", "candidates_test",
                                               "proposals_train"}),
    ],
)  # fmt: skip
def test_nothing_is_chosen_that_the_heads_do_not_read(
    given: dict[str, str], chosen: set[str], tmp_path: Path
) -> None:
    data = str(cells(tmp_path / "cells"))
    keys = {f"detector.{name}": value for name, value in given.items()}
    task = "instance" if "mask-rcnn" in given.values() else "detect"
    plan = make_plan(data, {"task": task} | keys)
    light = {choice.key for choice in plan.choices if choice.reason.startswith("light heads")}
    assert light == {f"detector.{name}" for name in chosen}
    if given.get("head") in ("retinanet", "fcos"):
        with pytest.raises(InputError, match=r"rois: is of head faster-rcnn, .*, not of "):
            make_plan(data, {"task": task, "detector.rois": 32} | keys)


@pytest.mark.parametrize("names", [["rpn.head.conv.0.0.weight"], ["fc.weight", "conv1.weight"], []])
def test_what_is_none_of_them_is_left_to_others(names: list[str]) -> None:
    assert described(State({name: torch.zeros(1) for name in names})) is None


def test_parts_that_torchvision_has_not_are_no_detector(tmp_path: Path) -> None:
    other = on_resnet18("FasterRCNN", nn.BatchNorm2d)
    state = other.state_dict()
    del state["roi_heads.box_head.fc6.weight"]
    torch.save(state, tmp_path / "net.pth")
    told = call("predict", tmp_path / "net.pth", tmp_path, "--threads=1")
    assert told.code == 2
    assert "no detector" in told.err
    assert len(told.err.strip().splitlines()) <= 3


def test_cocos_names_are_those_of_its_ids() -> None:
    names = coco_classes()
    assert (len(names), names[1], names[90]) == (91, "person", "toothbrush")
    assert len(set(names)) == 91
