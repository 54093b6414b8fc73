"""Training on features computed once equals training through the frozen backbone."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from commands import QUICK, call, draw
from skipway.config import OptimConfig
from skipway.errors import InputError
from skipway.training import Interrupted, TrainingProgress, expect, forecast, resume, setup, start
from skipway.training.features import FeatureFeed
from skipway.training.optim import make_optimizer
from skipway.training.plan import make_plan
from skipway.training.setup import FROZEN
from skipway.weights import create_model, read_state

GIVEN = {
    "model.freeze": "all",
    "schedule.length": "4 epochs",
    "data.views": 4,
    "precision": "float32",
    "threads": 1,
    "batch_size": 4,
    "ema.decay": 0.5,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("images"), ("ant", "bee", "cat"), n=8)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pretrained")
    other = draw(root / "images", ("x", "y"), seed=1)
    assert call("train", other, *QUICK, "--out", root / "run").code == 0
    return root / "run"


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def train(data: Path, pretrained: Path, out: Path, **given: Any) -> Path:
    settings = GIVEN | {"model.weights": str(pretrained)} | given
    return start(str(data), settings, out, TrainingProgress(quiet=True)).run


def test_the_last_score_is_forecast_by_the_whole_network(
    data: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which runs on all of its images, where training runs the classifier alone."""
    told: list[float | None] = []

    def seen(*arguments: Any) -> Any:
        told.append(arguments[-1])
        return forecast.forecast(*arguments)

    monkeypatch.setattr(setup, "forecast", seen)
    given = GIVEN | {"model.weights": str(pretrained)}
    expect(str(data), given, 0.5, TrainingProgress(quiet=True))
    expect(str(data), given | {"data.views": 0}, 0.5, TrainingProgress(quiet=True))
    assert told[0] is not None
    assert told[0] > 0
    assert told[-1] is None


class Stopping(TrainingProgress):
    """Ctrl-C after the seventh step."""

    def step(self, step: int, tally: Any) -> None:
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("resident", [True, False])
def test_features_of_each_epochs_view_train_as_the_images_do(
    data: Path, pretrained: Path, tmp_path: Path, resident: bool
) -> None:
    area = {} if resident else {"augment.area": [0.3, 1.0], "augment.pad_crop": 0}
    given = {"data.resident": resident} | area
    cached = train(data, pretrained, tmp_path / "cached", **given)
    anew = train(data, pretrained, tmp_path / "anew", **given, **{"data.views": 0})
    for a, b in zip(rows(cached), rows(anew), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-4)
    one, two = (read_state(run / "last.safetensors")[0] for run in (cached, anew))
    before = read_state(pretrained)[0]
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)
        if not name.startswith("fc."):
            assert torch.equal(one[name], before[name]), name


def test_an_epoch_past_the_views_takes_them_in_turn() -> None:
    features = torch.arange(3.0)[:, None, None].expand(3, 5, 2)
    feed = FeatureFeed(features, torch.arange(5), 2, seed=0)
    seen = [{float(v) for b in feed.epoch(e) for v in b.images.flatten()} for e in range(7)]
    assert seen == [{0.0}, {1.0}, {2.0}, {0.0}, {1.0}, {2.0}, {0.0}]
    orders = [np.concatenate([b.index for b in feed.epoch(e)]) for e in (0, 3)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(5))
    assert orders[0].tolist() != orders[1].tolist()
    batch = next(iter(feed.in_order()))
    assert batch.targets.tolist() == batch.index.tolist() == [0, 1]


def test_a_stopped_run_goes_on_to_the_bit_without_the_first_weights(
    data: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes((pretrained / "best.safetensors").read_bytes())
    whole = train(data, weights, tmp_path / "whole")

    settings = GIVEN | {"model.weights": str(weights)}
    with pytest.raises(Interrupted):
        start(str(data), settings, tmp_path / "stopped", Stopping(quiet=True))
    weights.unlink()
    stopped = resume(tmp_path / "stopped", TrainingProgress(quiet=True)).run
    for name in ("best", "last"):
        one, two = (read_state(run / f"{name}.safetensors")[0] for run in (whole, stopped))
        assert all(torch.equal(one[key], two[key]) for key in one)
    untimed = ("step", "train_loss", "val_loss", "val_accuracy", "lr")
    assert [[r[k] for k in untimed] for r in rows(whole)] == [
        [r[k] for k in untimed] for r in rows(stopped)
    ]


def test_a_run_whose_frozen_network_is_gone_does_not_go_on(
    data: Path, pretrained: Path, tmp_path: Path
) -> None:
    settings = GIVEN | {"model.weights": str(pretrained)}
    with pytest.raises(Interrupted):
        start(str(data), settings, tmp_path / "run", Stopping(quiet=True))
    (tmp_path / "run" / FROZEN).unlink()
    with pytest.raises(InputError, match="frozen"):
        resume(tmp_path / "run", TrainingProgress(quiet=True))


def test_no_more_views_than_epochs_are_computed(
    data: Path, pretrained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = GIVEN | {"model.weights": str(pretrained), "schedule.length": "2 epochs"}
    start(str(data), settings | {"data.views": 9}, tmp_path / "nine", TrainingProgress())
    assert "its features of 2 views once" in capfd.readouterr().err
    two = train(data, pretrained, tmp_path / "two", **settings | {"data.views": 2})
    losses = [[row["train_loss"] for row in rows(run)] for run in (tmp_path / "nine", two)]
    assert losses[0] == losses[1]
    record = json.loads((tmp_path / "nine" / "run.json").read_text())
    assert record["config"]["data"]["views"] == 2  # a resume computes as many
    assert "data.views=2" in record["command"]


def test_exact_norm_leaves_the_frozen_network_as_it_was(
    data: Path, pretrained: Path, tmp_path: Path
) -> None:
    run = train(data, pretrained, tmp_path / "run", exact_norm=True)
    before, after = (read_state(path)[0] for path in (pretrained, run / "best.safetensors"))
    assert all(torch.equal(after[k], v) for k, v in before.items() if not k.startswith("fc."))


def test_features_that_do_not_fit_are_told(
    data: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skipway.training.features.free_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"data\.views = 4: .* GiB are free"):
        train(data, pretrained, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "length"),
    [
        ({"model.freeze": "all"}, "60 epochs"),
        ({"model.freeze": "all", "data.views": 0}, "15 epochs"),
        ({"model.freeze": 2}, "15 epochs"),
        ({"model.freeze": "all", "schedule.length": "3 epochs"}, "3 epochs"),
    ],
)
def test_epochs_on_kept_features_are_many(
    data: Path, pretrained: Path, given: dict[str, Any], length: str
) -> None:
    plan = make_plan(str(data), {"model.weights": str(pretrained)} | given)
    assert plan.config.recipe == "finetune"
    assert plan.config.schedule.length == length


def test_each_stage_learns_slower_than_the_next() -> None:
    net = create_model("preresnet110", depths=(1, 1, 1), seed=0)
    optimizer = make_optimizer(net, OptimConfig(lr=1.0, stage_decay=0.5, head_lr=3.0))
    scale = {p: g["scale"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in net.named_parameters():
        expected = {"conv1": 0.125, "layer1": 0.25, "layer2": 0.5, "layer3": 1, "norm": 1, "fc": 3}
        assert scale[parameter] == expected[name.split(".")[0]], name
    plain = make_optimizer(nn.Sequential(nn.Linear(2, 2)), OptimConfig(stage_decay=0.5))
    assert [g["scale"] for g in plain.param_groups] == [1.0]
