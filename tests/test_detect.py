"""Detection and instance segmentation as a task: geometry, scores and whole trainings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchmetrics.detection import MeanAveragePrecision

import skipway
from commands import call
from skipway.architecture import architecture
from skipway.config import AugmentConfig
from skipway.data import Key
from skipway.data.feed import Batch
from skipway.data.objects import Objects, Runs
from skipway.detections import Detections, judged, runs_of
from skipway.heads import DetectorConfig
from skipway.images import Preprocess
from skipway.tasks import Evaluator, Task
from skipway.tasks.detect import Detect, DetectionEvaluator
from skipway.training.setup import memory_format

PREPROCESS = Preprocess(size=(64, 64), resize="fit", mean=(0.5,) * 3, std=(0.25,) * 3)
MASKS = DetectorConfig(head="mask-rcnn")


def objects(boxes: Any, labels: Any, size: tuple[int, int], crowd: Any = None) -> Objects:
    """Objects that fill their boxes, whose corners are whole pixels."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    shapes = []
    for x1, y1, x2, y2 in boxes.astype(int):
        mask = np.zeros(size, bool)
        mask[y1:y2, x1:x2] = True
        shapes.append(runs_of(mask))
    n = len(boxes)
    return Objects(
        boxes,
        np.asarray(labels, np.int64).reshape(n),
        np.zeros(n, bool) if crowd is None else np.asarray(crowd, bool),
        ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).astype(np.float32),
        np.arange(n),
        tuple(shapes),
    )


def task(detector: DetectorConfig = MASKS, classes: int = 3, **augment: Any) -> Detect:
    return Detect(PREPROCESS, AugmentConfig(**augment), detector, classes)


def extent(mask: np.ndarray) -> list[int]:
    """x1, y1, x2, y2 of what is true."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_it_is_a_task_like_any_other() -> None:
    asked: Task = task()
    scores: Evaluator = asked.evaluator()
    assert dict(scores.metrics())["mask_ap"] == 0


# Geometry


@given(st.data())
@settings(max_examples=80)
def test_boxes_and_masks_go_where_the_pixels_go(data: st.DataObject) -> None:
    """A bright rectangle on black, whatever is done to the image."""
    height, width = data.draw(st.integers(30, 150)), data.draw(st.integers(30, 150))
    x1, y1 = data.draw(st.integers(0, width - 12)), data.draw(st.integers(0, height - 12))
    x2, y2 = data.draw(st.integers(x1 + 12, width)), data.draw(st.integers(y1 + 12, height))
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    asked = task(flip=True, flip_up=True, scale=(0.5, 2.0))
    key = Key(data.draw(st.integers(0, 1000)), 0, 3)
    frame, target = asked.augment(image, objects([[x1, y1, x2, y2]], [1], (height, width)), key)
    assert max(frame.shape[:2]) <= 64
    if not len(target.boxes):  # cut off by the crop, or too small
        return
    bright = frame[..., 0] >= 128
    np.testing.assert_allclose(target.boxes[0], extent(bright), atol=1.01)
    assert target.masks is not None
    assert target.masks.shape == (1, *frame.shape[:2])
    assert (target.masks[0] != bright).sum() < 0.2 * bright.sum()
    assert target.labels.tolist() == [1]


@pytest.mark.parametrize("times", [2, 3, 4, 6])
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("kind", ["diagonal", "row"])
def test_thin_objects_keep_their_masks(kind: str, width: int, times: int) -> None:
    """Shrunk below a pixel's half they would be boxes without a mask."""
    side = 60 * times
    mask = np.zeros((side, side), bool)
    at = np.arange(side - width + 1)
    for k in range(width):
        mask[(at, at + k) if kind == "diagonal" else (7 * times + k, at)] = True
    image = np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255
    thin = replace(objects([[0, 0, side, side]], [1], mask.shape), shapes=(runs_of(mask),))
    preprocess = PREPROCESS.model_copy(update={"size": (60, 60)})
    asked = Detect(preprocess, AugmentConfig(scale=(1, 1)), MASKS, 3)
    _, target = asked.augment(image, thin, Key(0, 0, 0))
    assert target.masks is not None
    rows, columns = np.nonzero(target.masks[0])
    assert len(set(columns)) >= 58  # all along
    off = rows - (columns if kind == "diagonal" else 7)
    assert np.abs(off).max() <= 1 + (width > times)
    assert len(rows) <= 60 * (1 + -(-width // times))  # and no thicker than it was


def test_alternate_mirrors_each_image_in_every_other_epoch() -> None:
    image = np.zeros((50, 90, 3), np.uint8)
    image[:, :45] = 255
    asked = task(flip="alternate")

    def mirrored(index: int, epoch: int) -> bool:
        truth = objects([[2, 3, 40, 50]], [0], (50, 90))
        frame = asked.augment(image, truth, Key(3, epoch, index))[0]
        return bool(frame[0, 0, 0] == 0)

    seen = [[mirrored(index, epoch) for epoch in range(4)] for index in range(20)]
    assert all(each[0] == each[2] != each[1] == each[3] for each in seen)
    assert {each[0] for each in seen} == {True, False}


def test_without_a_key_the_image_is_as_in_use() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    asked = task(flip=True, flip_up=True, scale=(0.5, 2.0), jitter=0.4)
    frame, target = asked.augment(image, objects([[2, 3, 40, 50]], [0], (50, 90)), None)
    expected, geometry = PREPROCESS.frame(image)
    np.testing.assert_array_equal(frame, expected)
    assert target.geometry == geometry
    np.testing.assert_allclose(target.boxes, [[2 * 64 / 90, 3 * 36 / 50, 40 * 64 / 90, 36]], 1e-5)


def test_no_image_is_larger_in_training_than_in_use() -> None:
    image, truth = np.zeros((50, 90, 3), np.uint8), objects([[2, 3, 40, 50]], [0], (50, 90))
    asked = task(flip=True, scale=(0.5, 2.0))
    shapes = [asked.augment(image, truth, Key(0, 0, i))[0].shape[:2] for i in range(40)]
    assert max(shapes) == (36, 64)
    assert max(width for _, width in shapes) == 64
    assert min(shapes) < (30, 54)


def test_crowds_and_what_is_cut_off_are_not_learned() -> None:
    truth = objects([[0, 0, 20, 20], [30, 30, 60, 60]], [0, 1], (64, 64), crowd=[False, True])
    image = np.zeros((64, 64, 3), np.uint8)
    _, target = task().augment(image, truth, Key(0, 0, 0))
    assert target.labels.tolist() == [0]
    assert len(target.whole) == 2
    sizes = {
        len(task(scale=(4.0, 4.0)).augment(image, truth.take([0]), Key(0, 0, i))[1].boxes)
        for i in range(40)
    }
    assert sizes == {0, 1}
    whole, large = objects([[0, 0, 64, 64]], [0], (64, 64)), task(scale=(4.0, 4.0))
    assert all(len(large.augment(image, whole, Key(0, 0, i))[1].boxes) for i in range(40))


class Known(nn.Module):
    """Finds what it is told is there, in pixels of the input, image by image."""

    def __init__(self, found: Sequence[dict[str, Any]]) -> None:
        super().__init__()
        self.found = iter(found)

    def forward(self, images: Any) -> Any:
        assert len(images) == 1
        return [next(self.found)]


def batch_of(asked: Detect, images: Sequence[np.ndarray], truth: Sequence[Objects]) -> Batch:
    samples = [asked.augment(i, t, None) for i, t in zip(images, truth, strict=True)]
    return asked.to_input(Batch(*asked.collate(samples), np.arange(len(samples))), None)


@pytest.mark.parametrize("sizes", [[(50, 90)], [(64, 64), (200, 31), (17, 30)]])
def test_what_is_found_comes_back_to_the_original_pixels(sizes: list[tuple[int, int]]) -> None:
    asked = task(classes=2)
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    truth = [objects([[2, 3, w - 4, h - 1]], [1], (h, w)) for h, w in sizes]
    batch = batch_of(asked, images, truth)
    found = [
        {
            "boxes": target["boxes"],
            "labels": target["labels"],
            "scores": torch.ones(1),
            "masks": torch.ones(1, 28, 28),
        }
        for target in batch.targets
    ]
    outputs = asked.predict(Known(found), batch)
    for output, true, size in zip(outputs, truth, sizes, strict=True):
        np.testing.assert_allclose(output.boxes, true.boxes, atol=1e-3)
        assert output.masks is not None
        assert output.masks[0].size == size
    evaluator = asked.evaluator()
    evaluator.update(outputs, batch)
    metrics = evaluator.metrics()
    assert metrics["box_ap"] == pytest.approx(1)
    assert metrics["mask_ap50"] == pytest.approx(1)


# Scores


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Objects], list[Detections]]:
    """Objects of three classes, and detections near and far from them."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    truth, found = [], []
    for _ in range(draw(st.integers(1, 4))):
        n, extra = int(rng.integers(0, 6)), int(rng.integers(0, 4))
        corners = rng.integers(0, 70, (n, 2))
        boxes = np.concatenate([corners, corners + rng.integers(4, 30, (n, 2))], 1)
        labels = rng.integers(0, 3, n)
        truth.append(objects(boxes, labels, (100, 100)))
        moved = np.clip(boxes + rng.integers(-3, 4, (n, 4)), 0, [95, 95, 100, 100])
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        odd = rng.integers(0, 60, (extra, 2))
        every = np.concatenate([moved, np.concatenate([odd, odd + 25], 1)]).astype(np.float32)
        scores = rng.permutation(len(every) * 7)[: len(every)].astype(np.float32) / 100
        guessed = np.concatenate(
            [np.where(rng.random(n) < 0.8, labels, 0), rng.integers(0, 3, extra)]
        )
        order = np.argsort(-scores)
        masks = tuple(objects(every[order], guessed[order], (100, 100)).shapes)
        found.append(Detections(every[order], guessed[order], scores[order], masks))
    return truth, found


@given(scenes())
@settings(max_examples=25)
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_average_precision_is_torchmetrics(
    kind: Any, scene: tuple[list[Objects], list[Detections]]
) -> None:
    truth, found = scene
    if kind == "mask":  # torchmetrics loses count of images without a mask
        both = [(t, f) for t, f in zip(truth, found, strict=True) if len(t) and len(f)]
        truth, found = [t for t, _ in both], [f for _, f in both]
    peer = MeanAveragePrecision(
        iou_type="bbox" if kind == "box" else "segm",
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),  # its own are rounded to float32
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
    )

    def as_tensors(boxes: Any, labels: Any, masks: Any) -> dict[str, torch.Tensor]:
        pixels = np.zeros((len(labels), 100, 100), bool)
        for i, runs in enumerate(masks):
            turns = np.arange(len(runs.counts)) % 2 == 1
            pixels[i] = np.repeat(turns, runs.counts).reshape(100, 100).T
        return {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(np.asarray(labels)),
            "masks": torch.from_numpy(pixels),
        }

    peer.update(
        [
            as_tensors(f.boxes, f.labels, f.masks) | {"scores": torch.from_numpy(f.scores)}
            for f in found
        ],
        [as_tensors(t.boxes, t.labels, t.shapes) for t in truth],
    )
    expected = peer.compute()
    got = judged(found, truth, [(100, 100)] * len(truth), 3, kind)
    if not sum(map(len, truth)):
        assert got.ap == 0
        return
    for name, key in (("ap", "map"), ("ap50", "map_50"), ("ap75", "map_75")):
        assert getattr(got, name) == pytest.approx(float(expected[key]), abs=1e-6)
    for name in ("small", "medium", "large"):
        for kind_of, sizes in (("map", got.by_size), ("mar", got.ar_by_size)):
            peers = float(expected[f"{kind_of}_{name}"])
            assert sizes.get(name, -1) == pytest.approx(peers, abs=1e-6)
    for name, key in (("ar_1", "mar_1"), ("ar_10", "mar_10"), ("ar", "mar_100")):
        assert getattr(got, name) == pytest.approx(float(expected[key]), abs=1e-6)


@given(scenes(), st.integers(0, 100))
@settings(max_examples=15)
def test_parts_merge_to_the_whole_in_any_order(
    scene: tuple[list[Objects], list[Detections]], seed: int
) -> None:
    truth, found = scene
    asked = task()
    images = [np.zeros((100, 100, 3), np.uint8)] * len(truth)
    batch = batch_of(asked, images, truth)
    whole = asked.evaluator()
    whole.update(found, batch)
    merged = asked.evaluator()
    for i in np.random.default_rng(seed).permutation(len(truth)).tolist():
        part = DetectionEvaluator(3, asked.kinds)
        one = Batch([batch.images[i]], [batch.targets[i]], batch.index[i : i + 1])
        part.update([found[i]], one)
        merged.merge(part)
    merged.merge(part)  # what both saw counts once
    assert merged.metrics() == whole.metrics()


def test_runs_are_those_of_the_columns() -> None:
    mask = np.array([[True, False], [True, True]])
    assert runs_of(mask).counts.tolist() == [0, 2, 1, 1]
    assert runs_of(~mask).counts.tolist() == [2, 1, 1]
    assert isinstance(runs_of(mask), Runs)


# Trainings

QUICK = [
    "--threads=1",
    "--workers=0",
    "--batch-size=4",
    "--set=model.architecture.width=0.125",
    "--set=detector.channels=16",
    "--set=detector.box_width=16",
    "--set=data.size=64",
    "--precision=float32",
]


def scene_folder(place: Path, n: int = 8) -> Path:
    """COCO: bright squares and dark ones on grey, in images of two sizes."""
    rng = np.random.default_rng(0)
    for split, images in (("train", n), ("val", 4)):
        (place / split).mkdir(parents=True)
        rows, annotations = [], []
        for i in range(images):
            height, width = (48, 64) if i % 2 else (64, 56)
            pixels = np.full((height, width, 3), 128, np.uint8)
            for _ in range(int(rng.integers(0, 3)) if i else 0):
                side, kind = int(rng.integers(12, 24)), int(rng.integers(0, 2))
                x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
                pixels[y : y + side, x : x + side] = 255 * kind
                corners = [x, y, x + side, y, x + side, y + side, x, y + side]
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": i, "category_id": 3 + 4 * kind,
                        "bbox": [x, y, side, side], "segmentation": [corners],
                        "area": side * side, "iscrowd": 0,
                    }
                )  # fmt: skip
            Image.fromarray(pixels).save(place / split / f"{i}.png")
            rows.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        held = {
            "images": rows,
            "annotations": annotations,
            "categories": [{"id": 3, "name": "dark"}, {"id": 7, "name": "bright"}],
        }
        (place / f"{split}.json").write_text(json.dumps(held))
    return place


@pytest.mark.parametrize("given_task", ["detect", "instance"])
def test_a_training_from_folder_to_run(given_task: str, tmp_path: Path) -> None:
    data = scene_folder(tmp_path / "data")
    run = tmp_path / "run"
    found = call("train", data, "--task", given_task, *QUICK, "--epochs=2", "--out", run, "--json")
    assert found.code == 0, found.err
    first = "ap" if given_task == "detect" else "mask_ap"
    assert next(iter(found.value["metrics"])) == first
    record = json.loads((run / "run.json").read_text())
    assert record["config"]["task"] == given_task
    assert list(record["data"]["splits"]["train"]["counts"]) == ["dark", "bright"]
    card = json.loads((run / "card.json").read_text())
    assert card["task"] == given_task
    assert card["preprocess"]["resize"] == "fit"
    assert card["detector"]["rois"] == 64
    shown = json.loads((run / "evaluation.json").read_text())
    assert shown["classes"] == ["dark", "bright"]
    assert (run / "report.html").exists()
    assert len(json.loads((run / "samples.json").read_text())["images"]) == 4
    assert len(shown["pictures"]) == 4
    image, odd = data / "val" / "1.png", tmp_path / "odd.png"
    odd.write_bytes(b"no image")
    told = call("predict", run, image, odd, "--threshold=0", "--draw", tmp_path / "drawn", "--json")
    assert told.code == 2  # as one of them cannot be read
    first, second = told.value
    assert second["error"]
    assert first["objects"]
    assert first["objects"][0]["label"] in ("dark", "bright")
    assert ("counts" in (first["objects"][0]["mask"] or {})) == (given_task == "instance")
    assert [str(path) for path in (tmp_path / "drawn").iterdir()] == [first["drawing"]]
    assert first["drawing"].endswith("1.png")
    assert second["drawing"] is None
    loaded = skipway.load(run)
    again = asdict(loaded(image, threshold=0.0))["objects"]
    middle = sorted(one["score"] for one in again)[len(again) // 2]
    few = asdict(loaded(image, threshold=middle))["objects"]
    assert [*few] == [one for one in again if one["score"] >= middle]
    assert json.loads(json.dumps(again)) == first["objects"]
    for command in (
        ["export", run, "--out", tmp_path / "x.onnx"],
        ["embed", run, data, "--out", tmp_path / "x.parquet"],
    ):
        refused = call(*command)
        assert refused.code == 2
        assert f"its task is {given_task}" in refused.error[0]


def test_a_detector_starts_from_a_classifiers_weights(tmp_path: Path) -> None:
    from skipway import create_model
    from skipway.weights import save_weights

    net = create_model("resnet18", 7, width=0.125)
    save_weights(tmp_path / "w.safetensors", net, None)
    data = scene_folder(tmp_path / "data")
    flags = [flag for flag in QUICK if "precision" not in flag]
    found = call(
        "train", data, "--task=detect", *flags, "--model=resnet18", "--epochs=1", "--freeze=2",
        "--weights", tmp_path / "w.safetensors", "--out", tmp_path / "run",
    )  # fmt: skip
    assert found.code == 0, found.err
    assert "detector.norm = frozen  (the weights saw more images)" in found.err
    state = skipway.weights.read_state(tmp_path / "run")[0]
    for name in ("conv1.weight", "layer1.0.conv1.weight", "bn1.running_mean"):
        assert torch.equal(state[f"backbone.body.{name}"], net.state_dict()[name]), name
    moved = state["backbone.body.layer4.0.conv1.weight"]
    assert not torch.equal(moved, net.state_dict()["layer4.0.conv1.weight"])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resume_is_exact(workers: int, tmp_path: Path) -> None:
    """A training of four epochs, and one of the same that goes on from its second."""
    from skipway.training import checkpoint

    data, whole, cut = scene_folder(tmp_path / "data"), tmp_path / "whole", tmp_path / "cut"
    flags = ["--task=instance", *QUICK, "--epochs=4", "--set=keep_checkpoints=9"]
    flags[flags.index("--workers=0")] = f"--workers={workers}"
    assert call("train", data, *flags, "--out", whole).code == 0
    assert call("train", data, *flags, "--out", cut).code == 0
    record = json.loads((cut / "run.json").read_text()) | {"status": "interrupted"}
    (cut / "run.json").write_text(json.dumps(record))
    for step in (6, 8):
        (cut / "checkpoints" / f"step-{step:08}").unlink()
    (cut / "report.html").unlink()
    resumed = call("train", "--resume", cut, "--json")
    assert resumed.code == 0, resumed.err
    assert "going on at step 4" in resumed.err
    states = [checkpoint.newest(run)[0]["loop"] for run in (whole, cut)]
    for name, tensor in states[0]["model"].items():
        assert torch.equal(tensor, states[1]["model"][name]), name
    assert torch.equal(states[0]["generators"][0][0], states[1]["generators"][0][0])


@pytest.mark.parametrize("head", ["faster-rcnn", "retinanet", "fcos"])
def test_the_rate_finder_sees_the_losses(head: str, tmp_path: Path) -> None:
    from skipway.training.run import find_rate

    given = {
        "task": "detect", "detector.head": head, "threads": 1, "batch_size": 4, "data.size": 64,
        "model.architecture": {"width": 0.125}, "detector.channels": 16, "precision": "float32",
    }  # fmt: skip
    found = find_rate(str(scene_folder(tmp_path / "data")), given, steps=10)
    assert min(found.losses) > 0


def test_scores_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    """Images of other sizes in one batch are padded in training alone."""
    asked = task(DetectorConfig(channels=16, box_width=16), classes=2)
    net = asked.build(architecture("resnet18", width=0.125)).eval()
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (30, 64), (64, 20)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    truth = [objects(np.zeros((0, 4)), [], size) for size in sizes]
    with torch.no_grad():
        together = asked.predict(net, batch_of(asked, images, truth))
        alone = [
            asked.predict(net, batch_of(asked, [image], [true]))[0]
            for image, true in zip(images, truth, strict=True)
        ]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.scores, b.scores)


def test_a_damaged_image_is_a_problem_of_annotated_data(tmp_path: Path) -> None:
    data = scene_folder(tmp_path / "data")
    for name in ("0.png", "2.png"):  # else as empty as train/0.png, and the same file
        Image.new("RGB", (56, 64), "black").save(data / "val" / name)
    assert call("check-data", data).code == 0
    image = data / "train" / "3.png"
    image.write_bytes(image.read_bytes()[:-40])
    found = call("check-data", data, "--json")
    assert found.code == 1
    (problem,) = found.value["problems"]
    assert (problem["kind"], problem["file"]) == ("unreadable-image", str(image))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--task=detect", "--model=resnet8_speedrun"], "a whitened stem"),
        (["--task=detect", "--set=augment.mixup=0.2"], "augment.mixup = 0.2: not of the task"),
        (["--task=detect", "--set=detector.head=mask-rcnn"], "detector.head = mask-rcnn"),
        (["--task=instance", "--set=detector.head=fcos"], "instance needs mask-rcnn"),
        (["--task=detect", "--set=data.resize=crop"], "the task detect takes fit"),
        (["--task=detect", "--set=detector.norm=frozen"], "detector.norm = frozen"),
        (["--task=detec"], "task = detec"),
    ],
)
def test_settings_of_another_task_are_refused(flags: list[str], words: str, tmp_path: Path) -> None:
    small = [flag for flag in QUICK if "box_width" not in flag]  # not every head has it
    found = call("train", scene_folder(tmp_path / "data"), *flags, *small, "--epochs=1")
    assert found.code == 2
    assert words in found.error[0]
    assert len(found.error) <= 3


def test_weights_lie_in_memory_as_is_fastest() -> None:
    cpu, plain = torch.device("cpu"), torch.contiguous_format
    assert memory_format(task(), cpu, "float32") is plain
    assert memory_format(task(), cpu, "bf16") is torch.channels_last
    assert memory_format(task(), torch.device("cuda"), "float32") is torch.channels_last
