"""The forecast of a training: it changes nothing, adds up, and fits runs into time and memory."""

from __future__ import annotations

import gc
import json
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from commands import SMALL, call, draw
from skipway.config import RunConfig, resolve
from skipway.data.feed import Batch, ResidentFeed
from skipway.tasks.classify import Classify
from skipway.training import setup
from skipway.training.clock import Clock, Schedule
from skipway.training.forecast import _REPORT, Forecast, Living, Pace, forecast, over, steps_within

CONFIG = resolve({"data_path": "d", "recipe": "modern"})
EMPTY = {
    name: ResidentFeed(torch.zeros(n, 8, 8, 3).byte().numpy(), torch.zeros(n).long().numpy(), 4, 0)
    for name, n in (("train", 40), ("val", 8), ("test", 20))
}


def seconds(steps: int, config: RunConfig = CONFIG) -> Forecast:
    pace = Pace(step=0.5, cold=1.0, image=0.01, evaluation=0.1, checkpoint=0.2, steps=9)
    return forecast(pace, Clock(10, steps), config, EMPTY, passed=3.0, memory_mib=100.0)


def test_a_forecast_adds_up() -> None:
    found = seconds(25)  # three epochs
    assert found.training == pytest.approx(1 + 25 * 0.5 + (2.5 + 1) * 0.2)
    assert found.evaluating == pytest.approx(3 * (0.1 + 8 * 0.01))
    assert found.ending == pytest.approx(0.1 + 20 * 0.01 + _REPORT)
    assert found.seconds == pytest.approx(3 + found.training + found.evaluating + found.ending)
    without = resolve({"data_path": "d", "recipe": "modern", "data.val": "none"})
    assert seconds(25, without).evaluating == 0
    often = resolve({"data_path": "d", "recipe": "modern", "checkpoint_every": "5 steps"})
    assert seconds(25, often).training == pytest.approx(found.training + 2.5 * 0.2)
    exact = resolve({"data_path": "d", "recipe": "modern", "exact_norm": True})
    assert seconds(25, exact).ending == pytest.approx(found.ending + 40 * 0.01)


@given(st.floats(0.1, 1e5))
def test_the_most_steps_that_end_in_time(budget: float) -> None:
    steps = steps_within(budget, seconds, most=10**6)
    assert steps == 0 or seconds(steps).seconds <= budget
    if steps < 10**6:
        assert seconds(steps + 1).seconds > 0.9 * budget


@given(st.integers(10, 5000), st.integers(10, 5000))
def test_a_schedule_over_other_steps_has_its_shape(before: int, after: int) -> None:
    settings = {"schedule.length": f"{before} steps", "schedule.kind": "step"}
    settings |= {"schedule.warmup": f"{before // 10} steps", "optim.lr": 1.0}
    settings |= {"schedule.milestones": ["50 %", f"{before * 3 // 4} steps"]}
    config = resolve({"data_path": "d", "recipe": "modern"}, settings)
    clock = Clock(7, before)
    other = over(config, clock, after)
    assert Clock.of(other.schedule.length, 7).total == after
    old, new = (
        Schedule(c.schedule, k, 1.0) for c, k in ((config, clock), (other, Clock(7, after)))
    )
    for share in (0.3, 0.45, 0.6, 0.9):  # away from the borders, which are rounded to steps
        assert new(round(share * after)) == old(round(share * before)) or min(before, after) < 40


def test_living_counts_what_is_held_and_not_what_has_gone() -> None:
    with Living() as living:
        a = torch.zeros(1000)
        b = a.view(10, 100)  # no memory of its own
        for _ in range(5):
            (a + 1).sum()
            gc.collect()
    assert 8000 <= living.most < 8200
    assert b.shape == (10, 100)


@pytest.mark.parametrize(
    "more",
    [
        ["--set=model.architecture.drop_path=0.3"],
        ["--set=data.resident=false", "--workers=2", "--set=augment.repeats=2"],
        ["--set=schedule.kind=plateau", "--set=optim.kind=muon", "--set=augment.mixup=0.2"],
    ],
)
def test_a_forecast_changes_no_bit(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "data", ["a", "b"], n=20)
    flags = [*SMALL, "--epochs=2", "--batch-size=8", *more]
    said = call("train", tmp_path / "data", *flags, "--out", tmp_path / "with")
    assert said.code == 0, said.err
    assert "in all, until" in said.err
    monkeypatch.setattr(setup.Setup, "_settle", lambda self, measure: None)
    assert call("train", tmp_path / "data", *flags, "--out", tmp_path / "without").code == 0
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("with", "without")
    ]
    for one, other in zip(*rows, strict=True):
        for key in ("seconds", "images_per_second", "waiting", "memory_mib"):
            del one[key], other[key]
        assert one == other
    record = json.loads((tmp_path / "with" / "run.json").read_text())
    assert record["expected"]["seconds"] > 0
    assert ">Expected<" in (tmp_path / "with" / "report.html").read_text()
    assert ">Expected<" not in (tmp_path / "without" / "report.html").read_text()


def test_plan_answers_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "data", ["a", "b"], n=20)
    monkeypatch.chdir(tmp_path)
    answer = call("plan", "data", *SMALL, "--epochs=3", "--batch-size=8", "--measure=1", "--json")
    assert answer.code == 0, answer.err
    value = answer.value
    assert value["seconds"] == pytest.approx(sum(value["parts"].values()), abs=0.3)
    assert value["length"] == "3 epochs"
    assert value["accumulate"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_recipes_warmup_that_is_longer_than_the_run_is_told(tmp_path: Path) -> None:
    draw(tmp_path / "data", ["a", "b"], n=20)
    flags = ["--recipe=rsb-a3", "--epochs=1", "--batch-size=8", "--measure=1"]
    answer = call("plan", tmp_path / "data", *SMALL, *flags)
    assert answer.code == 0, answer.err
    assert "the warm-up takes 20 steps and the run 4: the rate does not" in answer.err


def test_minutes_plan_the_length(tmp_path: Path) -> None:
    draw(tmp_path / "data", ["a", "b"], n=20)
    answer = call(
        "train", tmp_path / "data", *SMALL, "--minutes=0.1", "--out", tmp_path / "r", "--json"
    )
    assert answer.code == 0, answer.err
    config = json.loads((tmp_path / "r" / "run.json").read_text())["config"]
    assert config["schedule"]["minutes"] == 0.1
    assert config["schedule"]["length"].endswith(" steps")
    assert config["schedule"]["warmup"] == "15 %"
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert record["result"]["seconds"] < 30  # of 6 planned: a machine may be busy
    assert "--minutes" not in record["command"]
    words = shlex.split(record["command"])
    assert f"schedule.length={config['schedule']['length']}" in words
    assert {"schedule.length", "schedule.warmup"} <= {c["key"] for c in record["choices"]}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--minutes=0.0001"], "Give more time"),
        (["--minutes=5", "--epochs=2"], "leave out --epochs"),
        (["--minutes=0"], "schedule.minutes"),
        (["--minutes=1", "--lr=1e30"], "lower --lr"),
    ],
)
def test_minutes_that_cannot_be(flags: list[str], said: str, tmp_path: Path) -> None:
    draw(tmp_path / "data", ["a", "b"])
    answer = call("train", tmp_path / "data", *SMALL, *flags, "--out", tmp_path / "r")
    assert answer.code == 2
    assert said in "\n".join(answer.error)
    assert len(answer.error) <= 3
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize("lr", ["1000", "1e6"])
def test_outputs_that_are_no_numbers_raise_no_warning(
    command: str, lr: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while the pace is measured nor when the training is scored."""
    draw(tmp_path / "data/train", ["a", "b", "c"], n=8)
    draw(tmp_path / "data/test", ["a", "b", "c"], n=4, seed=1)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = call(command, "data", *SMALL, f"--lr={lr}", "--epochs=4", "--batch-size=8")
    assert answer.code == 2, answer.err
    assert "lower --lr" in "\n".join(answer.error)
    assert "Warning" not in answer.err


def test_a_plan_past_the_end_of_the_calendar(tmp_path: Path) -> None:
    draw(tmp_path / "data", ["a", "b"])
    answer = call("plan", tmp_path / "data", *SMALL, "--epochs=1e17", "--measure=1")
    assert answer.code == 0, answer.err
    assert "--epochs 100000000000000000 " in answer.out


def test_a_plan_that_diverges_says_so(tmp_path: Path) -> None:
    draw(tmp_path / "data", ["a", "b"], n=20)
    answer = call("plan", tmp_path / "data", *SMALL, "--lr=1e30", "--batch-size=4", "--epochs=9")
    assert answer.code == 2
    assert "lower --lr" in "\n".join(answer.error)


def test_a_batch_that_memory_does_not_hold_goes_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "data", ["a", "b"], n=40)
    flags = ["train", tmp_path / "data", *SMALL, "--epochs=1", "--batch-size=32"]
    monkeypatch.setattr(setup, "free_memory", lambda: 1 << 20)
    scored, predict = [], Classify.predict

    def counting(self: Classify, net: torch.nn.Module, batch: Batch) -> Any:
        scored.append(len(batch))
        return predict(self, net, batch)

    monkeypatch.setattr(Classify, "predict", counting)
    answer = call(*flags, "--out", tmp_path / "r")
    assert answer.code == 0, answer.err
    assert "batch norm sees" in answer.err
    accumulate = json.loads((tmp_path / "r" / "run.json").read_text())["config"]["accumulate"]
    assert 1 < accumulate <= 32
    assert 0 < max(scored) <= -(-32 // accumulate)  # what is scored has to fit too
    monkeypatch.setattr(setup, "free_memory", lambda: 1 << 16)
    answer = call(*flags, "--out", tmp_path / "none")
    assert answer.code == 2
    assert "are free" in answer.error[0]
    assert not (tmp_path / "none").exists()
