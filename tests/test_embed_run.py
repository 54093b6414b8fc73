"""Metric learning from the command line: whole trainings, what they leave, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

import skipway
from commands import QUICK, call
from skipway.architecture import architecture
from skipway.card import Card, read_card
from skipway.config import AugmentConfig, OptimConfig, ScheduleConfig
from skipway.data import open_data
from skipway.data.feed import ResidentFeed
from skipway.embedders import build_embedder
from skipway.embedding import Embedder, load_embedder
from skipway.errors import InputError
from skipway.heads import EmbedderConfig
from skipway.images import Preprocess
from skipway.retrieval import retrieved
from skipway.tasks.embed import Embed
from skipway.training.clock import Clock, Schedule
from skipway.training.distributed import World
from skipway.training.loop import Loop, evaluate
from skipway.training.optim import make_optimizer
from skipway.weights import create_model, load_embedding, read_state, save_weights
from test_embed_task import tiny

SPLITS = {"train": "abcd", "val": "ef", "test": "fgh"}
"""Classes by split: the usual protocol, and one that two splits share."""


def birds(place: Path, n: int = 6) -> Path:
    """Each class a pattern of its own in noise."""
    rng = np.random.default_rng(0)
    for split, classes in SPLITS.items():
        for name in classes:
            folder = place / split / name
            folder.mkdir(parents=True)
            pattern = np.random.default_rng(ord(name)).integers(40, 216, (4, 4, 3))
            for i in range(n):
                pixels = np.kron(pattern, np.ones((4, 4, 1))) + rng.normal(0, 30, (16, 16, 3))
                image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
                image.save(folder / f"{i}.png")
    return place


TASK = ["--task=embed", *QUICK, "--set=embedder.dim=12"]
GEM = [*TASK, "--set=embedder.loss=triplet", "--set=embedder.pooling=gem"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return birds(tmp_path_factory.mktemp("birds") / "data")


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    place = data.parent / "run"
    found = call("train", data, *GEM, "--epochs=3", "--out", place, "--json")
    assert found.code == 0, found.err
    assert found.value["metrics"]["recall_at_1"] > 0.5
    return place


def test_a_run_and_its_card(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    assert record["data"]["classes"] == [*"abcdefgh"]
    assert record["data"]["splits"]["val"]["counts"]["e"] == 6
    assert "4 classes are trained on, 4 others are only measured on" in record["data"]["notes"]
    chosen = {choice["key"]: choice["value"] for choice in record["choices"]}
    assert (chosen["recipe"], chosen["batch_size"]) == ("embed", 24)
    assert record["result"]["interval"] is None  # of three classes
    card = read_card(run / "best.safetensors")
    assert card is not None
    assert (card.task, card.classes) == ("embed", (*"abcd",))
    assert card.embedder is not None
    assert (card.embedder.loss, card.embedder.margin, card.embedder.per_class) == (
        "triplet",
        0.2,
        4,
    )
    assert card.metrics[0].name == "recall_at_1"
    shown = json.loads((run / "evaluation.json").read_text())
    assert [row["label"] for row in shown["per_class"]] == [*"fgh"]
    assert shown["queries"] == 18
    report = (run / "report.html").read_text()
    assert "Recall@8" in report
    assert "None of the 3 classes" in report
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"val_recall_at_1", "val_map_at_r", "train_loss"} <= rows[0].keys()


def test_eval_measures_what_the_run_did(run: Path, data: Path, tmp_path: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    found = call("eval", run, data, "--json")
    assert found.value["split"] == "test"
    assert found.value["metrics"] == pytest.approx(record["result"]["metrics"])
    assert found.value["intervals"]["recall_at_1"] is None
    both = tmp_path / "both"
    for split in ("val", "train"):
        shutil.copytree(data / split, both, dirs_exist_ok=True)
    of_six = call("eval", run, both, "--split=all", "--json").value
    low, high = of_six["intervals"]["map_at_r"]
    assert low < of_six["metrics"]["map_at_r"] < high
    assert [row["label"] for row in found.value["per_class"]] == [*"fgh"]
    said = call("eval", run, data, "--split=val").out
    assert "val: 12 images" in said
    assert "recall@8" in said
    assert "mAP@R" in said


def test_other_classes_than_those_of_training_are_measured(run: Path, tmp_path: Path) -> None:
    for name, n in (("x", 3), ("y", 3), ("z", 1)):
        (tmp_path / name).mkdir()
        for i in range(n):
            pixels = np.full((20, 20, 3), 80 * (ord(name) - 119) - 20 + i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    found = call("eval", run, tmp_path, "--json")
    assert found.code == 0, found.err
    assert (found.value["split"], found.value["n"], found.value["queries"]) == ("all", 7, 6)
    assert "1 without another of their class" in call("eval", run, tmp_path).out
    assert (found.value["copies"], found.err) == (0, "")
    (tmp_path / "y" / "again.png").write_bytes((tmp_path / "y" / "0.png").read_bytes())
    copied = call("eval", run, tmp_path, "--json")
    assert (copied.value["copies"], copied.value["n"]) == (2, 8)
    assert copied.value["notes"][0].startswith("2 images have a copy among them")


def test_a_probe_needs_its_classes_in_train(run: Path, data: Path) -> None:
    refused = call("eval", run, data, "--probe=knn")
    assert refused.code == 2
    assert "--probe learns classes from train, and 4 of" in refused.error[0]
    assert "Without --probe" in refused.error[1]


def test_embed_and_search_use_the_learned_vectors(run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.parquet"
    assert call("embed", run, data, "--out", out).code == 0
    table = pq.read_table(out)
    vectors = np.stack(table.column("vector").to_numpy())
    assert vectors.shape == (9 * 6, 12)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    labels = np.array(table.column("label").to_pylist())
    test = np.array(table.column("split").to_pylist()) == "test"
    found = retrieved(vectors[test], np.unique(labels[test], return_inverse=True)[1])
    record = json.loads((run / "run.json").read_text())
    assert found.map_at_r() == pytest.approx(record["result"]["metrics"]["map_at_r"], abs=1e-3)
    place = 7
    answer = call("search", run, out, data / table.column("path")[place].as_py(), "--json")
    hits = answer.value[0]["hits"]
    order = np.argsort(-(vectors.astype(np.float64) @ vectors[place]), kind="stable")
    assert hits[0]["row"] == place
    assert [hit["row"] for hit in hits] == order[:10].tolist()
    loaded = skipway.load(run)
    assert isinstance(loaded, Embedder)
    path = data / table.column("path")[place].as_py()
    np.testing.assert_allclose(loaded([path])[0], vectors[place], atol=1e-5)


def test_a_stage_of_it_may_be_embedded_too(run: Path) -> None:
    learned, last = load_embedder(run), load_embedder(run, stage="c4", pooling="gem")
    assert (learned.made["stage"], learned.dimensions) == ("embedding", 12)
    assert (last.made["stage"], last.dimensions) == ("c4", 16)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert last([image]).shape == (1, 16)
    with pytest.raises(InputError, match="has its own"):
        load_embedder(run, pooling="average")
    with pytest.raises(InputError, match="c2, c3, c4, embedding"):
        load_embedder(run, stage="c5")


def test_vectors_do_not_depend_on_the_classes_directions(data: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    assert call("train", data, *TASK, "--out", place).code == 0
    weights = place / "best.safetensors"
    state, card = read_state(weights)
    assert state["directions"].shape == (4, 12)
    assert card is not None
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    before = load_embedder(weights)
    save_weights(weights, dict(state) | {"directions": torch.randn(4, 12)}, card)
    after = load_embedder(weights)
    assert before.made == after.made
    np.testing.assert_array_equal(before([image]), after([image]))
    changed = dict(state) | {"embedding.bias": state["embedding.bias"] + 1}
    save_weights(weights, changed, card)
    assert load_embedder(weights).made["weights"] != before.made["weights"]
    save_weights(weights, {k: v for k, v in state.items() if k != "directions"}, card)
    with pytest.raises(InputError, match="disagree: directions"):
        load_embedder(weights)


def test_files_that_give_no_vectors_say_what_to_do(tmp_path: Path) -> None:
    arch, config = architecture("resnet18", width=0.125, num_classes=2), EmbedderConfig(dim=4)
    net, place = build_embedder(arch, config, 2), tmp_path / "w.safetensors"
    card = Card(
        task="embed",
        model="custom",
        architecture=arch,
        classes=("a", "b"),
        embedder=config,
        preprocess=Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3),
    )

    def refused(state: dict[str, torch.Tensor], card: Card | None) -> list[str]:
        save_weights(place, state, card)
        with pytest.raises(InputError) as error:
            load_embedding(place)
        lines = str(error.value).split("\n")
        assert lines[0].startswith(f"{place}: ")
        assert len(lines) <= 3
        return lines

    state = net.state_dict()
    save_weights(place, state, card)
    assert load_embedding(place)[1] == card
    vectors = {key: tensor for key, tensor in state.items() if key != "embedding.bias"}
    assert refused(vectors, card)[1].endswith("take the file as it was saved then.")
    broken = state | {"embedding.bias": torch.full((4,), torch.nan)}
    assert refused(broken, card)[0].endswith("holds NaN or infinity; take an earlier checkpoint")
    classifier = card.model_copy(update={"task": "classify", "embedder": None})
    told = refused(create_model("resnet18", 2, width=0.125).state_dict(), classifier)
    assert told[0].endswith("no network for vectors; skipway train --task embed makes one")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resume_is_exact(workers: int, data: Path, tmp_path: Path) -> None:
    """Batches of groups, from the middle of an epoch on: it has three steps, four are kept."""
    from skipway.training import checkpoint

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = [*GEM, "--epochs=3", "--batch-size=8", "--checkpoint-every=1"]
    flags += ["--set=keep_checkpoints=99", "--set=data.resident=false"]
    flags[flags.index("--workers=0")] = f"--workers={workers}"
    for run in (whole, cut):
        assert call("train", data, *flags, "--out", run).code == 0
    record = json.loads((cut / "run.json").read_text()) | {"status": "interrupted"}
    (cut / "run.json").write_text(json.dumps(record))
    kept = sorted(path.name for path in (cut / "checkpoints").glob("step-*"))
    assert len(kept) == 10
    for name in kept[5:]:
        (cut / "checkpoints" / name).unlink()
    (cut / "report.html").unlink()
    resumed = call("train", "--resume", cut, "--json")
    assert resumed.code == 0, resumed.err
    assert "going on at step 4" in resumed.err
    states = [checkpoint.newest(run)[0]["loop"] for run in (whole, cut)]
    for part in ("model", "ema"):
        for name, tensor in states[0][part].items():
            assert torch.equal(tensor, states[1][part][name]), name
    rows = [(run / "metrics.jsonl").read_text().splitlines() for run in (whole, cut)]
    losses = [[json.loads(line)["train_loss"] for line in lines] for lines in rows]
    assert losses[0] == losses[1]


def test_it_starts_from_a_classifiers_weights(data: Path, tmp_path: Path) -> None:
    net = create_model("resnet20", 7, depths=(1, 1, 1), width=0.25, seed=1)
    save_weights(tmp_path / "w.safetensors", net, None)
    flags = ["--task=embed", "--threads=1", "--epochs=1", "--workers=0", "--set=data.size=16"]
    flags += ["--weights", str(tmp_path / "w.safetensors"), "--set=model.architecture.width=0.25"]
    flags += ["--model=resnet20", "--set=model.architecture.depths=[1,1,1]", "--freeze=3"]
    found = call("train", data, *flags, "--out", tmp_path / "run")
    assert found.code == 0, found.err
    assert "100.0% of the parameters before the classifier" in found.err
    assert "optim.head_lr = 10.0" in found.err
    state = read_state(tmp_path / "run" / "last.safetensors")[0]
    frozen, trained = "layer2.0.conv1.weight", "layer3.0.conv1.weight"
    assert torch.equal(state[f"body.{frozen}"], net.get_parameter(frozen))
    assert not torch.equal(state[f"body.{trained}"], net.get_parameter(trained))
    more = ["--task=embed", "--threads=1", "--epochs=1", "--workers=0", "--weights"]
    again = call("train", data, *more, tmp_path / "run", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert "embedder.loss = proxy-anchor  (the heads of " in again.err
    assert "made anew" not in again.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch-size=6", "--set=embedder.per_class=4"], "multiple of 4"),
        (["--set=embedder.loss=triplet", "--set=embedder.per_class=0"], "per_class"),
        (["--set=embedder.loss=softmax"], "embedder.loss"),
        (["--set=augment.mixup=0.2"], "not of the task embed"),
        (["--set=label_smoothing=0.1"], "not of the task embed"),
        (["--set=loss=bce"], "not of the task embed"),
        (["--set=augment.repeats=2"], "not of the task embed"),
        (["--set=data.resize=fit"], "data.resize"),
        (["--set=accumulate=2"], "proxy-anchor compares the images of a batch"),
        (["--set=embedder.loss=triplet", "--set=accumulate=2"], "compares the images of a batch"),
        (["--set=embedder.dims=3"], "Did you mean"),
    ],
)
def test_settings_that_do_not_fit_are_refused(data: Path, flags: list[str], said: str) -> None:
    found = call("train", data, *TASK, *flags)
    assert found.code == 2, found.err
    assert said in "\n".join(found.error)
    assert len(found.error) <= 3


def test_what_cannot_be_measured_is_refused(data: Path, tmp_path: Path) -> None:
    for split, names in (("train", "ab"), ("val", "ab")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4 if split == "train" else 1):
                pixels = np.full((16, 16, 3), 40 * i, np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    found = call("train", tmp_path, *TASK)
    assert found.code == 2
    assert "val has no two images of one class" in found.error[0]
    classifier = call("train", data, *QUICK)
    assert classifier.code == 2
    assert "unknown classes" in classifier.error[0]


def test_commands_of_other_tasks_say_so(run: Path, data: Path, tmp_path: Path) -> None:
    image = next(data.rglob("*.png"))
    for arguments, said in (
        (("predict", run, image), "skipway embed and search"),
        (("export", run, "--out", tmp_path / "x.onnx"), "its task is embed"),
        (("eval", run, data, "--calibrate"), "makes vectors"),
        (("eval", run, data, "--views", "flip"), "makes vectors"),
        (("embed", run, data, "--out", tmp_path / "v", "--pooling", "gem"), "has its own"),
    ):
        found = call(*arguments)
        assert found.code == 2, found.err
        assert said in "\n".join(found.error)


def test_check_data_takes_splits_of_their_own_classes(data: Path) -> None:
    found = call("check-data", data, "--task", "embed", "--json")
    assert found.code == 0, found.out
    assert call("check-data", data).code == 2


# Data


def test_classes_of_other_splits_come_after_those_of_training(data: Path) -> None:
    opened = open_data(str(data), unseen=True)
    assert (opened.classes, opened.unseen) == ((*"abcdefgh",), 4)
    assert opened.learned == (*"abcd",)
    for name, classes in SPLITS.items():
        split = opened.splits[name]
        labels = [Path(image).parts[-2] for image in split.names]
        assert [opened.classes[i] for i in split.labels] == labels
        assert {c for c, n in opened.counts(name).items() if n} == {*classes}
    with pytest.raises(InputError, match="unknown classes"):
        open_data(str(data))
    plain = open_data("digits", unseen=True)
    assert (plain.unseen, plain.learned) == (0, plain.classes)
    assert plain.digest() == open_data("digits").digest()


# Several processes


def _steps(rank: int, place: str, kind: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    world = World(rank, 2)
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 5
    frames = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    config = EmbedderConfig.model_validate({"loss": kind, "dim": 6, "per_class": 2})
    task = Embed(
        Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.2,) * 3), AugmentConfig(), config
    )
    torch.manual_seed(0)
    net = task.build(tiny(5))
    feed = ResidentFeed(frames, labels, 4, 1, world.part, per_class=2)
    clock = Clock(feed.steps, 6)
    loop = Loop(
        task, net, feed, make_optimizer(net, OptimConfig(kind="adamw", lr=1e-3)), clock,
        Schedule(ScheduleConfig(kind="constant"), clock, 1e-3), seed=2,
        device=torch.device("cpu"), world=world,
    )  # fmt: skip
    groups = [batch.targets.reshape(-1, 2).tolist() for batch in feed.epoch(0)]
    while not loop.finished:
        loop.epoch(lambda _: False)
    scored = evaluate(task, net, feed.in_order(), torch.device("cpu"), world)
    found: dict[str, Any] = {
        "state": net.state_dict(), "metrics": scored.metrics(), "groups": groups,
    }  # fmt: skip
    torch.save(found, f"{place}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["triplet", "proxy-anchor"])
def test_two_processes_train_one_network(tmp_path: Path, kind: str) -> None:
    mp.spawn(_steps, (str(tmp_path), kind), nprocs=2)
    one, other = (torch.load(tmp_path / str(rank), weights_only=False) for rank in (0, 1))
    assert one["metrics"] == other["metrics"]
    for name, tensor in one["state"].items():
        assert torch.equal(tensor, other["state"][name]), name
        assert torch.isfinite(tensor.float()).all()
    for found in (one, other):
        assert all(a == b for batch in found["groups"] for a, b in batch)
