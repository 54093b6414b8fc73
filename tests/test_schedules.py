"""What the validation metric decides, and parts that are frozen for a time."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bits import same
from commands import QUICK, call, draw
from skipway.architecture import architecture
from skipway.config import AugmentConfig, OptimConfig, ScheduleConfig
from skipway.data.feed import Batch, ResidentFeed
from skipway.data.keyed import permutation
from skipway.errors import InputError
from skipway.images import Preprocess
from skipway.resnet import ResNet
from skipway.tasks.classify import Classify
from skipway.training import Interrupted, TrainingProgress, checkpoint, resume, start, trainer
from skipway.training.clock import Clock, Schedule
from skipway.training.loop import Loop
from skipway.training.optim import Frozen, freeze, make_optimizer
from skipway.weights import read_state

ACCURACIES = st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=40)
UNTIMED = ("epoch", "step", "lr", "train_loss", "val_loss", "val_accuracy")

# --- the schedules themselves ------------------------------------------------------------------


def torchs_rates(metrics: list[float], lr: float, **options: Any) -> list[float]:
    """The rate after each of the epochs."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr)
    peer = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", eps=0, **options)
    rates = []
    for metric in metrics:
        peer.step(metric)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def plateau(patience: int, epochs: int, **fields: Any) -> Schedule:
    config = ScheduleConfig(kind="plateau", plateau_patience=patience, **fields)
    return Schedule(config, Clock(10, 10 * epochs), 0.3)


@given(
    ACCURACIES,
    st.integers(0, 4),
    st.sampled_from([0.1, 0.5]),
    st.sampled_from([0.0, 1e-4, 0.2]),
    st.integers(0, 3),
)
def test_plateau_is_torchs(
    metrics: list[float], patience: int, factor: float, threshold: float, warmup: int
) -> None:
    """After a warm-up, whose epochs do not count."""
    fields = {"factor": factor, "threshold": threshold, "warmup": f"{warmup} epochs"}
    schedule = plateau(patience, warmup + len(metrics) + 1, **fields)
    for epoch in range(warmup):
        before = [schedule(s) for s in range(10 * warmup)]
        assert before == pytest.approx([0.3 * (s + 1) / (10 * warmup) for s in range(10 * warmup)])
        assert schedule.seen(10 * (epoch + 1), 1.0) == []
    expected = torchs_rates(metrics, 0.3, factor=factor, patience=patience, threshold=threshold)
    rate = 0.3
    for i, metric in enumerate(metrics):
        step = 10 * (warmup + i + 1)
        assert schedule(step - 1) == pytest.approx(rate, rel=1e-9)
        said = schedule.seen(step, metric)
        assert bool(said) == (expected[i] < rate)
        rate = expected[i]
        assert schedule(step) == pytest.approx(rate, rel=1e-9)


@given(ACCURACIES, st.integers(1, 4), st.data())
def test_the_run_stops_after_so_many_epochs_without_a_better_one(
    metrics: list[float], patience: int, data: st.DataObject
) -> None:
    """And a state taken anywhere goes on as if nothing had happened."""
    config = ScheduleConfig(kind="plateau", plateau_patience=1, stop_patience=patience)
    schedule = Schedule(config, Clock(10, 1000), 0.3)
    cut = data.draw(st.integers(0, len(metrics)))
    for i, metric in enumerate(metrics):
        if i == cut:
            state, schedule = schedule.state(), Schedule(config, Clock(10, 1000), 0.3)
            schedule.load_state(copy.deepcopy(state))
        schedule.seen(10 * (i + 1), metric)
        best = int(np.argmax(metrics[: i + 1]))  # the first of equals
        assert (schedule.stopped is not None) == (i - best >= patience)
        expected = torchs_rates(metrics[: i + 1], 0.3, patience=1)[-1]
        assert schedule(10 * (i + 1)) == pytest.approx(expected)
        if schedule.stopped:
            return


def test_frozen_epochs_do_not_count_and_the_last_one_stops_nothing() -> None:
    config = ScheduleConfig(kind="plateau", plateau_patience=0, stop_patience=1)
    schedule = Schedule(config, Clock(10, 60), 0.3, settled=30)
    for epoch in (1, 2, 3, 4):  # the fourth is the first that counts, and the best
        assert schedule.seen(10 * epoch, 0.5) == []
    last = Schedule(config, Clock(10, 20), 0.3)
    assert last.seen(10, 0.5) == last.seen(20, 0.5) == []
    assert last.stopped is None
    assert schedule.seen(50, 0.5) == [
        "the learning rate falls from 0.3 to 0.03: 0.5 is still the best after 1 epoch more",
        "stopped early: 0.5 is still the best after 1 epoch more",
    ]


# --- frozen parts ------------------------------------------------------------------------------

SMALL = architecture(
    "resnet20", depths=(1, 1, 1), widths=(8, 8, 16), stem_width=8, num_classes=3, in_channels=1
)


def tiny(**fields: Any) -> ResNet:
    torch.manual_seed(0)
    return ResNet(architecture("resnet20", **(vars(SMALL) | fields)))


def task() -> Classify:
    return Classify(Preprocess(size=(8, 8), channels=1, mean=(0.4,), std=(0.3,)), AugmentConfig())


def feed() -> ResidentFeed:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (22, 8, 8, 1), dtype=np.uint8)
    return ResidentFeed(frames, rng.integers(0, 3, 22), 4, 3)


def frozen_loop(
    net: ResNet, parts: Any, until: tuple[int, ...], optim: OptimConfig | None = None
) -> Loop:
    """Twelve steps, two epochs."""
    optim = optim or OptimConfig(lr=0.05)
    keep, clock = freeze(net, parts, until), Clock(6, 12)
    return Loop(
        task(), net, feed(), make_optimizer(net, optim, keep.later()), clock,
        Schedule(ScheduleConfig(kind="constant"), clock, optim.lr), seed=3,
        device=torch.device("cpu"), keep_frozen=keep,
    )  # fmt: skip


def go(loop: Loop) -> Loop:
    while not loop.finished:
        loop.epoch(lambda _: False)
    return loop


@pytest.mark.parametrize(
    ("parts", "until", "training"),
    [
        (2, (), ["", ""]),
        (2, (5,), ["", "conv1 bn1 layer1"]),
        ("all", (5, 9), ["", "layer3 norm", "conv1 bn1 layer1 layer2 layer3 norm"]),
        ("all", (1, 2, 3), ["", "layer3 norm", "layer2 layer3 norm", "all"]),
        (3, (2, 3, 4), ["", "layer2", "layer1 layer2", "conv1 bn1 layer1 layer2"]),
    ],
)
def test_parts_are_freed_from_the_last_one_on(
    parts: Any, until: tuple[int, ...], training: list[str]
) -> None:
    net = tiny(order="post")
    keep = freeze(net, parts, until)
    held = {"conv1", "bn1", *("layer1", "layer2", "layer3")[: 3 if parts == "all" else parts - 1]}
    for step in (0, 20, 7, *range(12)):  # in any order
        net.train()
        keep.at(step)
        passed = sum(step >= border for border in until)
        freed = "conv1 layer1 layer2 layer3" if training[passed] == "all" else training[passed]
        for name, parameter in net.named_parameters():
            part = name.split(".")[0]
            free = (
                part not in held or part in freed.split() or (freed and training[passed] == "all")
            )
            assert parameter.requires_grad == bool(free), (name, step)
        for name, module in net.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.training == module.weight.requires_grad, (name, step)
    expected = [p for m in keep.parts for x in m for p in x.parameters()] if until else []
    assert list(map(id, keep.later())) == list(map(id, expected))
    assert Frozen().at(3) is False


def test_freezing_for_a_time_equals_a_textbook_loop() -> None:
    """The stem and the first stage frozen for four steps: statistics, weights and momentum."""
    loop = go(frozen_loop(tiny(), 2, (4,)))
    net, images = tiny(), feed()
    held = [net.conv1, net.bn1, net.layer1]
    optimizer = torch.optim.SGD(net.parameters(), 0.05, 0.9, weight_decay=1e-4)
    step = 0
    for epoch in range(2):
        order = permutation(22, 3, epoch)
        for low in range(0, 22, 4):
            net.train()
            if step < 4:
                for module in held:
                    module.eval()
            index = order[low : low + 4]
            batch = Batch(images.frames[index].permute(0, 3, 1, 2), images.labels[index], index)
            optimizer.zero_grad()
            F.cross_entropy(net(task().to_input(batch, None).images), batch.targets).backward()
            if step < 4:
                for module in held:
                    for parameter in module.parameters():
                        parameter.grad = None
            optimizer.step()
            step += 1
    assert loop.step == step
    before = tiny().state_dict()
    for name, expected in net.state_dict().items():
        found = loop.net.state_dict()[name]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)
        assert not torch.equal(found, before[name]), name


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lamb", "muon"])
@pytest.mark.parametrize("stop", [3, 4, 5, 6, 7, 9])
def test_a_resume_across_a_border_is_exact(stop: int, kind: Any, tmp_path: Path) -> None:
    optim = OptimConfig(kind=kind, lr=0.01)

    def loop() -> Loop:
        net = tiny(block_dropout=0.2)
        torch.manual_seed(9)
        return frozen_loop(net, "all", (4, 6, 8), optim)

    whole, first, second = go(loop()), loop(), loop()
    while first.step < stop:
        first.epoch(lambda at: at.step == stop)
    checkpoint.write(tmp_path / "step-1", first.state())
    second.load_state(checkpoint.load(tmp_path / "step-1"))
    go(second)
    one, two = whole.state(), second.state()
    for timed in ("tally", "signal"):
        del one[timed], two[timed]
    assert same(one, two)
    assert whole.tally.means() == second.tally.means()


# --- runs --------------------------------------------------------------------------------------

PLATEAU = {
    "schedule.kind": "plateau", "schedule.plateau_patience": 0, "schedule.stop_patience": 3,
    "schedule.length": "30 epochs", "schedule.factor": 0.5, "batch_size": 8, "threads": 1,
    "model.name": "resnet20", "data.workers": 0, "schedule.warmup": "0 steps",
    "model.architecture": {"depths": [1, 1, 1], "width": 0.25, "block_dropout": 0.2},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("colours")
    draw(root / "train", ["blue", "green", "red"], 8)
    draw(root / "val", ["blue", "green", "red"], 4, seed=1)
    return root


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(data, tmp_path_factory.mktemp("runs") / "whole")


def train(data: Path, out: Path, **given: Any) -> Path:
    return start(str(data), PLATEAU | given, out, TrainingProgress(quiet=True)).run


def rows(of: Path) -> list[dict[str, Any]]:
    found = map(json.loads, (of / "metrics.jsonl").read_text().splitlines())
    return [{key: row[key] for key in UNTIMED} for row in found]


def result(of: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((of / "run.json").read_text())["result"]
    return found


def assert_alike(one: Path, two: Path) -> None:
    assert rows(one) == rows(two)
    assert result(one)["stopped"] == result(two)["stopped"]
    for name in ("best", "last"):
        a, b = (read_state(path / f"{name}.safetensors")[0] for path in (one, two))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_follows_its_metric_and_stops(whole: Path) -> None:
    table = rows(whole)
    metrics = [row["val_accuracy"] for row in table]
    rates = torchs_rates(metrics, table[0]["lr"], factor=0.5, patience=0)
    assert [row["lr"] for row in table[1:]] == pytest.approx(rates[:-1])
    assert rates[-1] < rates[0]
    best = int(np.argmax(metrics))
    assert len(table) == best + 4 < 30
    stopped = result(whole)["stopped"]
    assert (stopped["epoch"], stopped["of"]) == (len(table), 30)
    assert stopped["why"].endswith("is still the best after 3 epochs more")


@pytest.mark.parametrize("before_the_end", [1, 4, 8])
def test_a_stopped_plateau_goes_on_to_the_bit(
    data: Path, whole: Path, tmp_path: Path, before_the_end: int
) -> None:
    at = 3 * len(rows(whole)) - before_the_end

    class Stopping(TrainingProgress):
        def step(self, step: int, tally: Any) -> None:
            if step == at:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        start(str(data), PLATEAU, tmp_path / "cut", Stopping(quiet=True))
    assert json.loads((tmp_path / "cut/run.json").read_text())["status"] == "interrupted"
    assert_alike(whole, resume(tmp_path / "cut", TrainingProgress(quiet=True)).run)


def test_a_run_that_died_after_its_stop_ends_there(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(Exception):
        pass

    def die(_: Any) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_finish", die)
        with pytest.raises(Died):
            train(data, tmp_path / "died")
    assert_alike(whole, resume(tmp_path / "died", TrainingProgress(quiet=True)).run)


def test_falls_and_the_stop_are_said(data: Path, tmp_path: Path) -> None:
    flags = [*QUICK, "--epochs=30", "--lr=1e-12", "--set=model.architecture.bn_momentum=1e-9"]
    found = call(
        "train", data, *flags, "--set=schedule.plateau_patience=1", "--set=schedule.kind=plateau",
        "--set=schedule.stop_patience=3", "--set=schedule.warmup=0 steps",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert found.code == 0, found.err
    assert len(rows(tmp_path / "run")) == 4  # nothing is learned: the first is the best
    said = [line.strip() for line in found.err.splitlines() if line.startswith("  val accuracy: ")]
    first = rows(tmp_path / "run")[0]["val_accuracy"]
    assert said == [
        "val accuracy: the learning rate falls from 1e-12 to 1e-13: "
        f"{first:.4g} is still the best after 2 epochs more",
        f"val accuracy: stopped early: {first:.4g} is still the best after 3 epochs more",
    ]


def test_a_rate_that_does_not_get_to_0_is_said_once(data: Path, tmp_path: Path) -> None:
    patience = "--set=schedule.stop_patience=9"
    said = "  note: stopped early, the rate of cosine does not reach 0"
    cosine = call(
        "train", data, *QUICK, patience, "--set=schedule.kind=cosine", "--out", tmp_path / "a"
    )
    assert cosine.err.count(said) == 1
    assert result(tmp_path / "a")["stopped"] is None
    constant = call(
        "train", data, *QUICK, patience, "--set=schedule.kind=constant", "--out", tmp_path / "b"
    )
    assert (constant.code, "stopped early" in constant.err) == (0, False)


@pytest.mark.parametrize(
    "given", [{"schedule.kind": "plateau"}, {"schedule.stop_patience": 3}, PLATEAU]
)
def test_a_metric_needs_validation(data: Path, tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"schedule\.\w+ = \w+.*: needs validation images") as at:
        start(str(data), given | {"data.val": "none"}, tmp_path / "run", TrainingProgress(True))
    assert len(str(at.value).splitlines()) <= 3
    assert not (tmp_path / "run").exists()


OF_PLATEAU = ("schedule.factor", "schedule.plateau_patience")
FROZEN = {key: value for key, value in PLATEAU.items() if key not in OF_PLATEAU} | {
    "schedule.kind": "constant", "schedule.stop_patience": None, "schedule.length": "3 epochs",
    "model.freeze": 3, "model.unfreeze": ["1 epoch", "5 steps"], "exact_norm": True,
    "model.name": "auto",
}  # fmt: skip


def test_a_run_unfreezes_step_by_step(
    data: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Steps 3 and 5 of 9; an interruption between them changes no bit."""
    given = FROZEN | {"model.weights": str(whole)}
    start(str(data), given, tmp_path / "run", TrainingProgress())
    assert "  frozen parts begin to train after 3, 5 steps\n" in capfd.readouterr().err
    before, after = (read_state(of / "last.safetensors")[0] for of in (whole, tmp_path / "run"))
    assert all(not torch.equal(after[k], v) for k, v in before.items() if k.endswith("weight"))

    class Stopping(TrainingProgress):
        def step(self, step: int, tally: Any) -> None:
            if step == 4:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        start(str(data), given, tmp_path / "cut", Stopping(quiet=True))
    assert_alike(tmp_path / "run", resume(tmp_path / "cut", TrainingProgress(quiet=True)).run)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model.freeze": 0}, "nothing is frozen; say what with --freeze"),
        ({"model.freeze": 1}, "2 durations for 1 frozen part; give 1 at most"),
        ({"model.freeze": "all"}, "never trains\nCompute them in each epoch: --set data.views=0"),
        ({"model.unfreeze": ["5 steps", "1 epoch"]}, "5, 3 steps: each must be above the one"),
    ],
)
def test_what_cannot_be_unfrozen_is_refused(
    data: Path, whole: Path, tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    settings = FROZEN | {"model.weights": str(whole)} | given
    with pytest.raises(InputError) as error:
        start(str(data), settings, tmp_path / "run", TrainingProgress(quiet=True))
    assert str(error.value).startswith("model.unfreeze: ")
    assert said in str(error.value)
    assert not (tmp_path / "run").exists()


def test_exact_statistics_are_those_of_what_had_trained(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """Weights of an epoch in which a part was frozen keep that part's statistics."""
    given = FROZEN | {"model.weights": str(whole), "model.freeze": 1, "optim.lr": 1e-12}
    given |= {"model.unfreeze": "6 steps", "schedule.length": "2 epochs"}  # past the end
    start(str(data), given, tmp_path / "run", TrainingProgress(quiet=True))
    before, after = (read_state(of / "best.safetensors")[0] for of in (whole, tmp_path / "run"))
    assert torch.equal(before["bn1.running_mean"], after["bn1.running_mean"])
    key = "layer1.0.bn1.running_mean"
    assert not torch.equal(before[key], after[key])


def test_the_rate_of_a_run_that_sees_nothing_better_is_finite() -> None:
    schedule = plateau(0, 2000)
    for epoch in range(1000):
        schedule.seen(10 * (epoch + 1), 0.0)
    assert math.isfinite(schedule(9999))
