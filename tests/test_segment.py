"""Semantic segmentation as a task: geometry, losses, scores and whole trainings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchmetrics.segmentation import DiceScore, MeanIoU

from commands import call
from skipway.architecture import architecture
from skipway.config import AugmentConfig
from skipway.data import Key
from skipway.data.feed import Batch
from skipway.errors import InputError
from skipway.heads import SegmenterConfig
from skipway.images import Preprocess
from skipway.segmentations import IGNORED
from skipway.tasks import Evaluator, Task
from skipway.tasks.classify import Loss, Mixed
from skipway.tasks.maps import class_map
from skipway.tasks.segment import PixelLoss, Segment, SegmentationEvaluator, dice
from skipway.training.clock import Clock
from skipway.training.plan import make_plan
from skipway.training.progress import TrainingProgress

PREPROCESS = Preprocess(
    size=(64, 64), resize="fit", interpolation="nearest", mean=(0.5,) * 3, std=(0.25,) * 3
)
CLASSES = 4


def task(loss: PixelLoss | None = None, **augment: Any) -> Segment:
    config = SegmenterConfig(head="unet")
    return Segment(PREPROCESS, AugmentConfig(**augment), config, CLASSES, loss)


def scene(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A map of random patches, some ignored, and an image whose levels tell the classes."""
    rng = np.random.default_rng(seed)
    patches = rng.choice([0, 1, 2, 3, IGNORED], (height // 6 + 1, width // 6 + 1)).astype(np.uint8)
    labels = np.kron(patches, np.ones((6, 6), np.uint8))[:height, :width]
    levels = np.where(labels == IGNORED, 250, labels * 50).astype(np.uint8)
    return np.repeat(levels[:, :, None], 3, axis=2), np.ascontiguousarray(labels)


def classes_of(levels: np.ndarray) -> np.ndarray:
    return np.where(levels == 250, IGNORED, levels // 50)


class Levels(nn.Module):
    """Knows the class of a pixel from its level."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = x[:, :1] * 0.25 + 0.5
        places = torch.arange(CLASSES).view(1, -1, 1, 1) * 50 / 255
        return {"out": -((levels - places) ** 2) * 1000}


def batch_of(asked: Segment, scenes: list[tuple[np.ndarray, np.ndarray]], key: bool) -> Batch:
    index = np.arange(len(scenes))
    keys = [Key(0, 0, i) if key else None for i in index.tolist()]
    samples = [asked.augment(*pair, own) for pair, own in zip(scenes, keys, strict=True)]
    batch = Batch(*asked.collate(samples), index)
    return asked.to_input(batch, Key(0, 0, index) if key else None)


def test_it_is_a_task_like_any_other() -> None:
    asked: Task = task()
    scores: Evaluator = asked.evaluator()
    batch = batch_of(task(), [scene(20, 30)], key=False)
    scores.update(asked.predict(Levels(), batch), batch)
    assert next(iter(scores.metrics().items())) == ("miou", 1.0)


# Geometry


@given(st.data())
@settings(max_examples=80)
def test_the_map_goes_where_the_pixels_go(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(20, 150)), data.draw(st.integers(20, 150))
    size = data.draw(st.none() | st.integers(8, 100))
    asked = task(flip=True, flip_up=True, scale=(0.5, 2.0), size=size)
    image, labels = scene(height, width)
    key = Key(data.draw(st.integers(0, 1000)), 0, 3)
    frame, target = asked.augment(image, labels, key)
    assert max(frame.shape[:2]) <= (size or 64)
    np.testing.assert_array_equal(target.labels.numpy(), classes_of(frame[:, :, 0]))
    np.testing.assert_array_equal(target.whole, labels)


def test_without_a_key_the_image_is_as_in_use() -> None:
    image, labels = scene(50, 90)
    frame, target = task(flip=True, scale=(0.5, 2.0), jitter=0.4, size=20).augment(
        image, labels, None
    )
    expected, geometry = PREPROCESS.frame(image)
    np.testing.assert_array_equal(frame, expected)
    assert target.geometry == geometry


@pytest.mark.parametrize("sizes", [[(64, 64), (64, 64)], [(32, 64), (64, 20), (48, 64)]])
def test_what_is_found_has_the_size_of_the_image(sizes: list[tuple[int, int]]) -> None:
    asked = task()
    scenes = [scene(*size, seed=i) for i, size in enumerate(sizes)]
    found = asked.predict(Levels(), batch_of(asked, scenes, key=False))
    for own, (_, labels) in zip(found, scenes, strict=True):
        known = labels != IGNORED
        np.testing.assert_array_equal(own[known], labels[known])


def test_a_map_is_decided_between_pixels() -> None:
    """Two pixels of which the one is surer: its class reaches further."""
    logits = torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]])
    found = class_map(logits, (1, 8))
    share = (np.arange(8) + 0.5) / 4 - 0.5
    share = np.clip(share, 0, 1)
    np.testing.assert_array_equal(found[0], (share > 3 * (1 - share)).astype(np.uint8))


# Losses


def random_case(seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, CLASSES, 5, 6, generator=rng, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (2, 5, 6), generator=rng)
    labels[torch.rand(2, 5, 6, generator=rng) < 0.3] = IGNORED
    return logits, labels


@pytest.mark.parametrize("weights", [None, (1.0, 0.2, 3.0, 0.0)])
def test_cross_entropy_and_focal_loss_by_hand(weights: tuple[float, ...] | None) -> None:
    logits, labels = random_case()
    (ce,) = PixelLoss("ce", weights=weights).terms(logits, labels).values()
    (focal,) = PixelLoss("focal", gamma=2.0, weights=weights).terms(logits, labels).values()
    (plain,) = PixelLoss("focal", gamma=0.0, weights=weights).terms(logits, labels).values()
    sums, shares = np.zeros(2), 0.0
    for n, y, x in np.ndindex(2, 5, 6):
        k = int(labels[n, y, x])
        if k == IGNORED:
            continue
        p = float(logits[n, :, y, x].softmax(0)[k])
        w = 1.0 if weights is None else weights[k]
        sums += [-w * np.log(p), -w * (1 - p) ** 2 * np.log(p)]
        shares += w
    assert ce.item() == pytest.approx(sums[0] / shares, rel=1e-9)
    assert plain.item() == pytest.approx(sums[0] / shares, rel=1e-9)
    assert focal.item() == pytest.approx(sums[1] / shares, rel=1e-9)


def test_dice_is_torchmetrics_where_scores_are_certain() -> None:
    _, labels = random_case()
    labels[labels == 3] = 0  # a class that is not there does not count
    found = torch.randint(0, 3, labels.shape, generator=torch.Generator().manual_seed(1))
    certain = 50.0 * F.one_hot(found, CLASSES).movedim(-1, 1).double()
    oracle = DiceScore(CLASSES, average="none", aggregation_level="global", input_format="index")
    known = labels != IGNORED
    oracle.update(found[known][None], labels[known][None])
    assert dice(certain, labels).item() == pytest.approx(
        1 - oracle.compute()[:3].mean().item(), abs=1e-5
    )


@pytest.mark.parametrize("kind", ["ce", "focal", "ce+dice"])
def test_ignored_pixels_have_no_gradient_and_no_loss(kind: Any) -> None:
    logits, labels = random_case()
    logits.requires_grad_()
    torch.stack([*PixelLoss(kind).terms(logits, labels).values()]).sum().backward()
    assert logits.grad is not None
    ignored = (labels == IGNORED)[:, None].expand_as(logits)
    assert not logits.grad[ignored].any()
    assert logits.grad[~ignored].all()
    nothing = torch.full_like(labels, IGNORED)
    logits.grad = None
    terms = PixelLoss(kind).terms(logits, nothing)
    assert terms.keys() == PixelLoss(kind).terms(logits, labels).keys()  # processes add them up
    loss = torch.stack([*terms.values()]).sum()
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_focal_loss_smooths_its_labels_as_a_classifiers_does() -> None:
    logits, labels = random_case()
    known = labels != IGNORED
    pixels, wanted = logits.movedim(1, -1)[known], labels[known]
    for smoothing in (0.0, 0.3):
        (loss,) = PixelLoss("focal", smoothing).terms(logits, labels).values()
        expected = Loss("focal", smoothing)(pixels, Mixed(wanted, wanted, 1.0))
        torch.testing.assert_close(loss, expected)


def test_a_batch_of_several_sizes_is_judged_on_its_pixels_alone() -> None:
    asked = task()
    scenes = [scene(32, 64, 1), scene(64, 20, 2)]
    batch = batch_of(asked, scenes, key=True)
    assert batch.images.shape == (2, 3, 64, 64)
    terms = asked.losses(Levels(), batch)
    parts = [asked.losses(Levels(), batch_of(asked, [pair], key=True)) for pair in scenes]
    pixels = [int((labels != IGNORED).sum()) for _, labels in scenes]
    together = np.average([part["loss_ce"].item() for part in parts], weights=pixels)
    assert terms["loss_ce"].item() == pytest.approx(together, rel=1e-5)
    assert terms["pixel_accuracy"] == 1


def test_shares_are_told_in_percent(capsys: pytest.CaptureFixture[str]) -> None:
    asked = task()
    terms = asked.losses(Levels(), batch_of(asked, [scene(32, 64, 1)], key=True))
    evaluator = SegmentationEvaluator(3)
    evaluator.add(0, np.uint8([[0, 0, 1], [0, 1, 1]]), np.uint8([[0, 0, 1], [0, 0, 1]]))
    row = {"epoch": 1, "step": 3, "images_per_second": 20.0, "waiting": 0.0}
    row |= {f"train_{name}": float(value) for name, value in terms.items()}
    row |= {f"val_{name}": value for name, value in evaluator.metrics().items()}
    progress = TrainingProgress()
    progress.begin(Clock(3, 6), 0)
    progress.epoch(row)
    said = capsys.readouterr().err
    assert "  pixel accuracy 100.00%  " in said
    for name in ("miou", "pixel_accuracy", "boundary_f1"):
        assert f"  val {name.replace('_', ' ')} {row[f'val_{name}']:.2%}  " in said


# Scores


def test_parts_merge_to_the_whole_and_are_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    truth = [scene(40, 30, i)[1] for i in range(7)]
    found = [
        np.where(rng.random(labels.shape) < 0.3, 1, labels % CLASSES).astype(np.uint8)
        for labels in truth
    ]
    whole, parts = SegmentationEvaluator(CLASSES), [SegmentationEvaluator(CLASSES) for _ in "ab"]
    oracle = MeanIoU(CLASSES, input_format="index", per_class=True)
    flat: list[np.ndarray] = []
    for i, pair in enumerate(zip(found, truth, strict=True)):
        whole.add(i, *pair)
        parts[i % 2].add(i, *pair)
        known = pair[1] != IGNORED
        flat.append(np.stack([labels[known] for labels in pair]))
    parts[1].merge(parts[0])
    assert parts[1].metrics() == whole.metrics()
    assert parts[1].interval() == whole.interval()
    low, high = whole.interval() or (0, 0)
    assert low < whole.metrics()["miou"] < high
    together = torch.from_numpy(np.concatenate(flat, axis=1).astype(np.int64))
    oracle.update(together[:1], together[1:])
    rows = whole.per_class(["a", "b", "c", "d"])
    np.testing.assert_allclose([row["iou"] for row in rows], oracle.compute(), rtol=1e-6)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    for row in rows:
        low, high = row["iou_interval"]
        assert 0 <= low <= row["iou"] <= high <= 1
    assert list(whole._worst) == list(parts[1]._worst)


def test_a_single_class_has_no_boundary_to_judge() -> None:
    scores = SegmentationEvaluator(CLASSES)
    scores.add(0, *(np.zeros((8, 8), np.uint8),) * 2)
    assert scores.metrics()["miou"] == 1
    assert "boundary_f1" not in scores.metrics()


# Trainings

QUICK = [
    "--threads=1",
    "--workers=0",
    "--batch-size=4",
    "--set=model.architecture.width=0.125",
    "--set=data.size=64",
    "--precision=float32",
]


def street(place: Path, n: int = 8, held: int = 4) -> Path:
    """Bright squares (1) on a dark floor (0), in images of two sizes; a border is ignored."""
    rng = np.random.default_rng(0)
    for split, images in (("train", n), ("val", held)):
        for part in ("images", "masks"):
            (place / split / part).mkdir(parents=True)
        for i in range(images):
            height, width = (48, 64) if i % 2 else (64, 56)
            labels = np.zeros((height, width), np.uint8)
            y, x = (int(rng.integers(0, side - 24)) for side in labels.shape)
            labels[y : y + 24, x : x + 24] = 1
            levels = 60 + 120 * labels + rng.integers(0, 20, labels.shape, dtype=np.uint8)
            labels[:2] = 2
            image = np.repeat(levels[:, :, None], 3, axis=2).astype(np.uint8)
            Image.fromarray(image).save(place / split / "images" / f"{i}.png")
            Image.fromarray(labels).save(place / split / "masks" / f"{i}.png")
    (place / "classes.json").write_text('["floor", "box", "unlabelled"]')
    return place


def test_a_training_from_folder_to_run(tmp_path: Path) -> None:
    data, run = street(tmp_path / "data", 16, held=5), tmp_path / "run"  # fewer: no interval
    flags = ["--task=segment", *QUICK, "--epochs=12", "--out", run, "--json"]
    found = call("train", data, *flags)
    assert found.code == 0, found.err
    assert found.value["metrics"]["miou"] > 0.9
    record = json.loads((run / "run.json").read_text())
    low, high = record["result"]["interval"]
    assert low <= found.value["metrics"]["miou"] <= high
    assert list(record["data"]["splits"]["train"]["counts"]) == ["floor", "box"]
    card = json.loads((run / "card.json").read_text())
    assert (card["task"], card["preprocess"]["resize"]) == ("segment", "fit")
    assert card["segmenter"]["head"] == "unet"
    assert card["detector"] is None
    shown = json.loads((run / "evaluation.json").read_text())
    assert [row["label"] for row in shown["per_class"]] == ["floor", "box"]
    assert len(shown["pictures"]) == 5
    assert len(json.loads((run / "samples.json").read_text())["images"]) == 4
    assert "box" in (run / "report.html").read_text()
    refused = call("export", run, "--out", tmp_path / "x.onnx")
    assert refused.code == 2
    assert "its task is segment" in refused.error[0]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resume_is_exact(workers: int, tmp_path: Path) -> None:
    """A training of four epochs, and one of the same that goes on from its second."""
    from skipway.training import checkpoint

    data, whole, cut = street(tmp_path / "data"), tmp_path / "whole", tmp_path / "cut"
    flags = ["--task=segment", *QUICK, "--epochs=4", "--set=keep_checkpoints=9"]
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


def test_colours_are_left_alone_where_there_are_four_channels(tmp_path: Path) -> None:
    data = street(tmp_path / "data")
    plan = make_plan(str(data), {"task": "segment", "data.channels": 4, "threads": 1})
    assert plan.config.augment.jitter == 0
    assert "augment.jitter" in {choice.key for choice in plan.choices}
    assert "augment.flip" in {choice.key for choice in plan.choices}
    assert make_plan(str(data), {"task": "segment"}).config.augment.jitter > 0
    asked = {"task": "segment", "data.channels": 4, "augment.jitter": 0.2}
    with pytest.raises(InputError, match="of 1 or 3 channels"):
        make_plan(str(data), asked)
    four, run = ["--set=data.channels=4", "--epochs=1"], tmp_path / "run"
    assert call("train", data, "--task=segment", *QUICK, *four, "--out", run).code == 0
    further = make_plan(str(data), {"task": "segment", "model.weights": str(run)})
    assert (further.config.data.channels, further.config.augment.jitter) == (4, 0)


def test_a_changed_mask_is_refused_on_resume(tmp_path: Path) -> None:
    data, run = street(tmp_path / "data"), tmp_path / "run"
    assert call("train", data, "--task=segment", *QUICK, "--epochs=2", "--out", run).code == 0
    record = json.loads((run / "run.json").read_text()) | {"status": "interrupted"}
    (run / "run.json").write_text(json.dumps(record))
    mask = data / "train" / "masks" / "3.png"
    Image.fromarray(1 - np.array(Image.open(mask)).clip(0, 1)).save(mask)
    found = call("train", "--resume", run)
    assert found.code == 2
    assert len(found.error) <= 3


def test_it_starts_from_a_classifiers_weights(tmp_path: Path) -> None:
    from skipway import create_model
    from skipway.weights import read_state, save_weights

    net = create_model("resnet18", 7, width=0.125)
    save_weights(tmp_path / "w.safetensors", net, None)
    flags = [flag for flag in QUICK if "precision" not in flag]
    found = call(
        "train", street(tmp_path / "data"), "--task=segment", *flags, "--model=resnet18",
        "--epochs=1", "--freeze=2", "--weights", tmp_path / "w.safetensors",
        "--set=segmenter.head=deeplabv3", "--out", tmp_path / "run",
    )  # fmt: skip
    assert found.code == 0, found.err
    state = read_state(tmp_path / "run")[0]
    (frozen,) = [name for name in state if name.endswith("layer1.0.conv1.weight")]
    assert torch.equal(state[frozen], net.state_dict()["layer1.0.conv1.weight"])
    (moved,) = [name for name in state if name.endswith("layer4.0.conv1.weight")]
    assert not torch.equal(state[moved], net.state_dict()["layer4.0.conv1.weight"])


@pytest.mark.parametrize("head", ["fcn", "deeplabv3", "deeplabv3plus", "unet"])
def test_a_network_of_every_head_learns_in_a_step(head: Any) -> None:
    asked = Segment(PREPROCESS, AugmentConfig(), SegmenterConfig(head=head), CLASSES)
    net = asked.build(architecture("resnet18", width=0.125)).train()
    batch = batch_of(asked, [scene(64, 48, i) for i in range(2)], key=True)
    terms = asked.losses(net, batch)
    torch.stack([t for t in terms.values() if t.requires_grad]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--set=loss=bce"], "loss = bce: segment has ce, focal, ce+dice"),
        (["--set=augment.mixup=0.2"], "augment.mixup = 0.2: not of the task segment"),
        (["--set=data.resize=crop"], "the task segment takes fit"),
        (["--set=segmenter.norm=frozen"], "segmenter.norm = frozen: only of a network"),
        (["--set=segmenter.head=unett"], "segmenter.head = unett"),
    ],
)
def test_settings_of_another_task_are_refused(flags: list[str], words: str, tmp_path: Path) -> None:
    found = call("train", street(tmp_path / "data"), "--task=segment", *flags, *QUICK)
    assert found.code == 2
    assert words in found.error[0]
    assert len(found.error) <= 3
