"""The learning-rate range test: on a problem whose stable rates are known, and as a command."""

from __future__ import annotations

import json
import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from commands import SMALL, call
from skipway.config import OptimConfig, ScheduleConfig
from skipway.data.feed import Batch
from skipway.errors import InputError
from skipway.training import find_rate
from skipway.training.clock import Clock, Schedule
from skipway.training.finder import RateTest, judged, range_test
from skipway.training.loop import Loop
from skipway.training.optim import make_optimizer

CURVATURE = 4.0
"""Gradient descent on a parabola of that second derivative is stable below the rate 2 / 4."""


class Parabola(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.full((3, 2), 1.0))


class Descent:
    """A task without images: CURVATURE / 2 times the squares of all six parameters, and 0.1."""

    def to_input(self, batch: Batch, key: Any) -> Batch:
        return batch

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        at: Any = model.at
        return {"loss": 0.5 * CURVATURE * at.square().sum() + 0.1}


class OneBatch:
    steps = 7

    def __len__(self) -> int:
        return 4

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for _ in range(start, self.steps):
            yield Batch(torch.zeros(4, 1), torch.zeros(4), np.arange(4))


def descent(rate: float = 0.1) -> Loop:
    net, clock = Parabola(), Clock(OneBatch.steps, 50)
    optim = OptimConfig(lr=rate, momentum=0, weight_decay=0)
    task: Any = Descent()
    feed: Any = OneBatch()
    schedule = Schedule(ScheduleConfig(), clock, rate)
    optimizer, cpu = make_optimizer(net, optim), torch.device("cpu")
    return Loop(task, net, feed, optimizer, clock, schedule, seed=0, device=cpu)


@pytest.mark.parametrize("steps", [60, 100, 250])
def test_the_edge_of_stability_of_a_parabola_is_found(steps: int) -> None:
    test = range_test(descent(), 1e-4, 1e3, steps)
    edge = 2 / CURVATURE
    assert test.diverged is not None
    assert edge < test.diverged < 20 * edge  # it takes some steps to rise again
    assert edge / 20 < test.least < test.diverged
    assert test.suggested is not None
    assert test.suggested == test.steepest < edge
    assert not test.at_the_end
    assert len(test.losses) < steps == test.planned
    assert test.losses[0] == pytest.approx(0.5 * CURVATURE * 6 + 0.1)
    by = np.diff(np.log(test.rates))
    assert by == pytest.approx(np.full(len(by), np.log(1e7) / (steps - 1)))


def test_each_step_has_the_rate_that_it_is_said_to_have() -> None:
    """The losses are those of a descent written out here."""
    test = range_test(descent(), 1e-3, 0.3, 30)
    at, expected = 1.0, []
    for rate in test.rates:
        expected.append(0.5 * CURVATURE * 6 * at**2 + 0.1)
        at -= rate * CURVATURE * at
    assert test.losses == pytest.approx(expected, rel=1e-4)
    assert test.diverged is None
    assert len(test.losses) == 30


def test_rates_that_are_all_too_high_or_too_low_suggest_nothing() -> None:
    high = range_test(descent(), 1e3, 1e12, 40)
    assert high.diverged is not None
    assert high.suggested is None
    assert len(high.losses) < 10
    low = range_test(descent(), 1e-9, 1e-8, 40)
    assert low.diverged is None
    assert low.suggested is not None  # without noise any fall is one
    assert low.at_the_end


def curve(edge: float, noise: float, n: int = 120, seed: int = 0) -> RateTest:
    """Losses that fall smoothly to `edge` / 3 and rise beyond `edge`."""
    x = np.linspace(-5, 1, n)
    rng = np.random.default_rng(seed)
    fall = 2.3 - 1.5 / (1 + np.exp(-4 * (x - np.log10(edge) + 1)))
    y = fall + 10 * np.maximum(x - np.log10(edge), 0) ** 2 + noise * rng.standard_normal(n)
    return judged((10**x).tolist(), y.tolist(), None, n, 0)


@given(st.floats(-3, -0.5), st.floats(0, 0.05), st.integers(0, 99))
@settings(max_examples=25)
def test_the_suggestion_is_where_the_curve_falls(where: float, noise: float, seed: int) -> None:
    edge = 10**where
    test = curve(edge, noise, seed=seed)
    assert test.suggested is not None
    assert test.interval is not None
    low, high = test.interval
    assert low <= test.suggested <= high
    assert edge / 40 < test.suggested < edge / 2.5  # steepest by construction: edge / 10
    assert edge / 4 < test.least < 3 * edge


def test_noise_makes_the_interval_wider_and_then_the_suggestion_vanish() -> None:
    def width(noise: float) -> float:
        found = [curve(0.1, noise, seed=s).interval for s in range(8)]
        return float(np.mean([np.log10(f[1] / f[0]) for f in found if f is not None]))

    assert width(0.0) < width(0.1) < width(0.3)
    rates = np.geomspace(1e-4, 1, 100).tolist()
    flat = [
        judged(rates, (2.3 + 0.2 * np.random.default_rng(s).standard_normal(100)).tolist(), None,
               100, 0).suggested
        for s in range(20)
    ]  # fmt: skip
    assert sum(f is not None for f in flat) <= 2


def test_a_loss_that_is_no_number_ends_the_test_or_is_told() -> None:
    loop, calls = descent(), iter(range(99))
    losses = loop.task.losses

    def broken(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        factor = float("nan") if next(calls) == 25 else 1.0
        return {"loss": losses(model, batch)["loss"] * factor}

    task: Any = loop.task
    task.losses = broken
    test = range_test(loop, 1e-4, 0.1, 40)
    assert len(test.losses) == 25
    assert test.diverged == pytest.approx(1e-4 * 1e3 ** (25 / 39))
    first = descent()
    task = first.task
    task.losses = lambda model, batch: {"loss": losses(model, batch)["loss"] * float("nan")}
    with pytest.raises(InputError, match="before the first step"):
        range_test(first, 1e-4, 0.1, 40)


# On images


def little(**more: Any) -> dict[str, Any]:
    return {
        "model.name": "resnet20",
        "model.architecture.depths": [1, 1, 1],
        "model.architecture.width": 0.25,
        "threads": 1,
        "precision": "float32",
    } | more


def loss_after(rate: float) -> float:
    """Of the training images of the last of a few epochs at a constant rate."""
    import skipway

    plain = little(**{"schedule.kind": "constant", "schedule.warmup": "0 steps", "optim.lr": rate})
    try:
        result = skipway.train("digits", epochs=2, quiet=True, settings=plain)
    except InputError:  # it diverged
        return float("inf")
    rows = (result.run / "metrics.jsonl").read_text().splitlines()
    return float(json.loads(rows[-1])["train_loss"])


@pytest.mark.slow
def test_the_suggested_rate_trains_better_than_far_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    test = find_rate("digits", little())
    assert list(tmp_path.iterdir()) == []  # nothing was written
    assert test.suggested is not None
    good = loss_after(test.suggested)
    assert good < 0.8 * loss_after(test.suggested / 30)
    assert good < 0.8 * loss_after(test.suggested * 30)


def test_it_is_the_same_twice_and_begins_as_training_does(tmp_path: Path) -> None:
    import skipway

    first, second = (find_rate("digits", little(), steps=12) for _ in range(2))
    assert first == second
    # the first step's loss is before any update: that of a training of one step
    run = skipway.train(
        "digits", out=tmp_path / "run", quiet=True, settings=little(**{"schedule.length": "1 step"})
    ).run
    row = json.loads((run / "metrics.jsonl").read_text())
    assert first.losses[0] == pytest.approx(row["train_loss"], rel=1e-6)


# The command


def test_the_command_says_what_to_run_next_and_draws(tmp_path: Path) -> None:
    page = tmp_path / "lr.html"
    quick = ["--steps=40", "--set", "optim.lr=0.5"]
    answer = call("lr", "digits", *SMALL, *quick, "--seed=4", "--out", page)
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    assert re.fullmatch(r"\d+ of 40 steps, each at a higher rate; it d.*", lines[0])
    words = shlex.split(lines[-1])
    assert words[:3] == ["skipway", "train", "digits"]
    rate = float(words[words.index("--lr") + 1])
    assert words[words.index("--seed") + 1] == "4"
    assert "model.architecture.depths=[1,1,1]" in words
    assert not any(w.startswith("optim.lr=") for w in words)
    assert f"suggested: {rate:.2g}" in answer.out
    text = page.read_text("utf-8")
    assert text.count("<svg") == 1
    assert f"--lr {rate:.2g}" in text
    assert "<script" not in text
    assert [p.name for p in tmp_path.iterdir()] == ["lr.html"]


def test_json_and_a_drawing_of_its_own_with_muon(tmp_path: Path) -> None:
    drawing = tmp_path / "lr.svg"
    ratio = ["--set=optim.kind=muon", "--set=optim.lr=0.1", "--set=optim.muon_lr=0.02"]
    answer = call("lr", "digits", *SMALL, "--steps=40", *ratio, "--out", drawing, "--json")
    assert answer.code == 0, answer.err
    found = answer.value
    assert found["muon_lr"] == pytest.approx(found["lr"] * 0.2)
    assert f"optim.muon_lr={found['muon_lr']:.2g}" in found["command"]
    assert found["command"].count("optim.muon_lr") == 1
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"]) <= 40
    assert found["rates"][0] == pytest.approx(0.1 / 1000)
    root = ET.parse(drawing).getroot()
    circles = root.findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(circles) == len(found["losses"]) + 1  # and the end of the curve


def test_where_nothing_is_learned_the_gate_is_not_met(tmp_path: Path) -> None:
    out = tmp_path / "lr.svg"
    flags = ["--steps=20", "--low=1e-12", "--high=1e-11", "--out", out]
    answer = call("lr", "digits", *SMALL, *flags, "--json")
    assert answer.code == 1
    assert answer.value["lr"] is None
    assert answer.value["command"] is None
    assert (
        answer.error[0] == "skipway: no rate is suggested: the loss did not fall beyond its noise"
    )
    assert "higher --high" in answer.error[1]
    assert out.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "DATA is missing"),
        (["digits", "--low=0"], "give rates above 0, the lower one first"),
        (["digits", "--low=1", "--high=0.1"], "give rates above 0, the lower one first"),
        (["digits", "--low=nan"], "give rates above 0, the lower one first"),
        (["digits", "--high=inf"], "give rates above 0, the lower one first"),
        (["digits", "--steps=9"], "--steps 9: a test needs 10 at least"),
        (["digits", "--out=lr.png"], "--out lr.png: name a file that ends in .html or .svg"),
        (["digits", "--out=nowhere/lr.svg"], "--out nowhere/lr.svg: there is no folder nowhere"),
        (["nowhere"], "nowhere"),
        (["digits", "--set=optim.lrr=1"], "optim.lrr"),
    ],
)
def test_bad_input(
    flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call("lr", *flags)
    assert answer.code == 2
    assert said in answer.error[0]
    assert len(answer.error) <= 3
    assert list(tmp_path.iterdir()) == []
