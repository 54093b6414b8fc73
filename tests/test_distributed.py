"""Several processes against one: the same images, the same numbers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from commands import QUICK, call, draw, environment
from skipway.config import AugmentConfig, OptimConfig, ScheduleConfig
from skipway.data.feed import Part, ResidentFeed, batches
from skipway.errors import InputError, SkipwayError
from skipway.images import Preprocess
from skipway.tasks.classify import Classify
from skipway.training.clock import Clock, Schedule
from skipway.training.distributed import ALONE, Elsewhere, World, starter, synchronise
from skipway.training.loop import Loop, evaluate
from skipway.training.optim import freeze, make_optimizer
from skipway.training.plan import make_plan
from skipway.weights import create_model


def _enter(rank: int, size: int, place: str, work: Callable[..., Any], *arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=size)
    found = work(World(rank, size), *arguments)
    torch.save(found, f"{place}/{rank}")
    dist.destroy_process_group()


def together(size: int, place: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(world, *arguments)` gives in each of so many processes."""
    mp.spawn(_enter, (size, str(place), work, *arguments), nprocs=size)
    return [torch.load(place / str(rank), weights_only=False) for rank in range(size)]


# --- images ------------------------------------------------------------------------------------


@given(st.integers(2, 60), st.integers(1, 9), st.integers(1, 4))
def test_processes_see_together_what_one_sees(n: int, size: int, processes: int) -> None:
    frames = np.arange(n, dtype=np.uint8)[:, None, None, None]
    labels = np.arange(n)
    one = ResidentFeed(frames, labels, size * processes, 3)
    several = [ResidentFeed(frames, labels, size, 3, Part(r, processes)) for r in range(processes)]
    if batches(n, size * processes) == batches(n, size, processes):
        for whole, *parts in zip(one.epoch(2), *(f.epoch(2) for f in several), strict=True):
            woven = np.full(len(whole), -1)
            for rank, part in enumerate(parts):
                woven[rank::processes] = part.index
            assert np.array_equal(woven, whole.index)
    assert len({feed.steps for feed in several}) == 1
    if n >= processes:
        assert all(len(batch) for feed in several for batch in feed.epoch(0))
        evaluated = [i for feed in several for batch in feed.in_order() for i in batch.index]
        assert sorted(evaluated) == list(range(n))
    trained = [i for feed in several for batch in feed.epoch(1) for i in batch.index]
    assert sorted(trained) == list(range(n))


# --- numbers -----------------------------------------------------------------------------------


def steps(
    world: World, batch_size: int, accumulate: int, double: bool, norm: bool, again: bool = False
) -> Any:
    """Losses of 20 steps, and the weights after them. Dropped paths would differ by process."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (41, 12, 12, 3), dtype=np.uint8)
    task = Classify(
        Preprocess(size=(12, 12), mean=(0.5,) * 3, std=(0.2,) * 3),
        AugmentConfig(flip=True, pad_crop=2, erase=0.3),
    )
    net = create_model(
        "resnet20", num_classes=3, depths=(1, 1, 1), width=0.5, seed=0, checkpointing=again
    )
    if not norm:  # parts of a batch would each have statistics of their own
        for module in list(net.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, nn.Identity())
    if double:
        net = net.double()
        normalise = task.normalise
        task.normalise = lambda x: normalise(x).double()  # type: ignore[method-assign]
    feed = ResidentFeed(frames, rng.integers(0, 3, 41), batch_size, 1, world.part)
    clock = Clock(feed.steps, 20)
    config = OptimConfig(lr=0.05, weight_decay=1e-3)
    loop = Loop(
        task, net, feed, make_optimizer(net, config), clock,
        Schedule(ScheduleConfig(kind="constant"), clock, config.lr), seed=2,
        device=torch.device("cpu"), clip=1.0, world=world,
        at_once=-(-batch_size // accumulate) if accumulate > 1 else None,
    )  # fmt: skip
    losses: list[float] = []
    sums = [0.0]

    def seen(at: Loop) -> bool:
        total = (at.tally.sums or {})["loss"]
        images = at.tally.images
        before = sums[-1] if at.clock.position(at.step - 1)[1] else 0.0
        losses.append((total - before) / len_of(feed, at.clock.position(at.step - 1)[1]))
        sums.append(total)
        assert images
        return False

    while not loop.finished:
        loop.epoch(seen)
    scored = evaluate(task, net, feed.in_order(), torch.device("cpu"), world)
    return losses, {k: v.clone() for k, v in net.state_dict().items()}, scored.metrics()


def len_of(feed: ResidentFeed, step: int) -> int:
    low, high = batches(len(feed), feed.batch_size, feed.part.size)[step]
    return high - low


@pytest.mark.parametrize(
    ("double", "again"),
    [
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
        (True, True),
    ],
)
def test_two_processes_take_the_steps_of_one(tmp_path: Path, double: bool, again: bool) -> None:
    """Uneven last batches, clipping, augmentation and batch norm over all images of a batch;
    again: with activations that are computed again."""
    expected, weights, metrics = steps(ALONE, 8, 1, double, True)
    found = together(2, tmp_path, steps, 4, 1, double, True, again)
    rtol = 1e-9 if double else 1e-4
    for losses, state, scored in found:
        assert len(losses) == 20
        np.testing.assert_allclose(losses, expected, rtol=rtol)
        for name, value in state.items():
            if name.endswith("num_batches_tracked"):
                assert torch.equal(value, weights[name])
            elif double:
                torch.testing.assert_close(value, weights[name], rtol=1e-8, atol=1e-9, msg=name)
        if double:
            assert scored == pytest.approx(metrics, rel=1e-6)
    for name, value in found[0][1].items():
        assert torch.equal(value, found[1][1][name]), name  # to the bit in all processes
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_batch_in_parts_is_the_batch(tmp_path: Path, processes: int) -> None:
    expected, weights, _ = steps(ALONE, 8, 1, True, False)
    if processes == 1:
        found = [steps(ALONE, 8, 3, True, False)]
    else:
        found = together(2, tmp_path, steps, 4, 2, True, False)
    for losses, state, _ in found:
        np.testing.assert_allclose(losses, expected, rtol=1e-9)
        for name, value in state.items():
            torch.testing.assert_close(value, weights[name], rtol=1e-8, atol=1e-10, msg=name)


def thawing(world: World, batch_size: int) -> Any:
    """Weights after eight steps, of parts that begin to train at the third and the fifth; and
    whether those of a resume from the fourth, and from the third, are the same to the bit."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (41, 12, 12, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, 41)
    task = Classify(Preprocess(size=(12, 12), mean=(0.5,) * 3, std=(0.2,) * 3), AugmentConfig())

    def loop() -> Loop:
        net = create_model("resnet20", num_classes=3, depths=(1, 1, 1), width=0.5, seed=0)
        feed = ResidentFeed(frames, labels, batch_size, 1, world.part)
        clock, config = Clock(feed.steps, 8), OptimConfig(lr=0.05)
        keep = freeze(net, "all", (3, 5))
        return Loop(
            task, net, feed, make_optimizer(net, config, keep.later()), clock,
            Schedule(ScheduleConfig(kind="constant"), clock, config.lr), seed=2,
            device=torch.device("cpu"), keep_frozen=keep, world=world,
        )  # fmt: skip

    whole, alike = loop(), []
    while not whole.finished:
        whole.epoch(lambda _: False)
    for stop in (3, 4):
        first, second = loop(), loop()
        first.epoch(lambda at, stop=stop: at.step == stop)
        second.load_state(first.state())
        while not second.finished:
            second.epoch(lambda _: False)
        pairs = zip(second.net.state_dict().values(), whole.net.state_dict().values(), strict=True)
        alike.append(all(torch.equal(a, b) for a, b in pairs))
    return {k: v.clone() for k, v in whole.net.state_dict().items()}, alike


@pytest.mark.slow
def test_two_processes_unfreeze_as_one(tmp_path: Path) -> None:
    """Gradients of what begins to train later are averaged too."""
    expected, alike = thawing(ALONE, 8)
    assert alike == [True, True]
    one, two = together(2, tmp_path, thawing, 4)
    assert one[1] == two[1] == [True, True]
    for name, value in expected.items():
        assert torch.equal(one[0][name], two[0][name]), name
        torch.testing.assert_close(one[0][name], value, rtol=1e-3, atol=1e-5, msg=name)


def normed(world: World, x: Tensor, gradient: Tensor) -> Any:
    norm = nn.BatchNorm2d(3, dtype=x.dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0]))
        norm.bias.copy_(torch.tensor([0.5, 0.0, 1.0]))
    if world.size > 1:
        synchronise(norm)
    mine = x[world.rank :: world.size].clone().requires_grad_()
    y = norm(mine)
    y.backward(gradient[world.rank :: world.size])
    weights = [world.sum(p.grad) for p in norm.parameters() if p.grad is not None]
    return y.detach(), mine.grad, weights, norm.state_dict()


@pytest.mark.parametrize(
    "shape",
    [(7, 3, 4, 5), pytest.param((3, 3, 1, 1), marks=pytest.mark.slow)],
    ids=["uneven", "one value"],
)
def test_batch_norm_over_processes_is_that_over_the_batch(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = torch.randn(*shape, dtype=torch.float64) * 3 + 100  # far from 0
    gradient = torch.randn(*shape, dtype=torch.float64)
    y, grad, weights, state = normed(ALONE, x, gradient)
    for rank, (own, own_grad, own_weights, own_state) in enumerate(
        together(3, tmp_path, normed, x, gradient)
    ):
        torch.testing.assert_close(own, y[rank::3])
        torch.testing.assert_close(own_grad, grad[rank::3])
        torch.testing.assert_close(own_weights, weights)
        torch.testing.assert_close(own_state, state)


def disagreeing(world: World, failing: int) -> str:

    def make() -> int:
        if world.rank >= failing:
            raise InputError(f"process {world.rank} cannot")
        return world.rank

    try:
        return str(world.agreed(make))
    except Elsewhere as error:
        return f"elsewhere {error.exit_code}"
    except InputError as error:
        return str(error)


def test_one_failure_ends_all_and_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert together(2, tmp_path / "a", disagreeing, 9) == ["0", "1"]
    assert together(3, tmp_path / "b", disagreeing, 1) == [
        "elsewhere 2", "process 1 cannot", "elsewhere 2",
    ]  # fmt: skip


# --- torchrun ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("colours")
    draw(root / "train", ["blue", "green", "red"], 13)
    draw(root / "val", ["blue", "green", "red"], 5, seed=1)
    return root


def torchrun(*arguments: object, restarts: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            f"--max-restarts={restarts}", "--monitor-interval=0.1",
            "-m", "skipway", "train", *map(str, arguments),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip


LONG = [*QUICK[:-1], "--workers=0", "--batch-size=4", "--epochs=12"]
LONG += ["--set=model.architecture.drop_path=0.2", "--checkpoint-every=3", "--threads=1"]


def untimed(run: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    times = {"seconds", "images_per_second", "waiting", "memory_mib"}
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


def weights_of(run: Path) -> bytes:
    from safetensors.numpy import load_file

    return b"".join(v.tobytes() for _, v in sorted(load_file(run / "last.safetensors").items()))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    process = torchrun(data, *LONG, "--out", run, "--json")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert json.loads(out)["run"] == str(run)  # one of two speaks
    assert err.count("epoch  12/12") == 1
    return run


def test_torchrun_trains_and_the_run_is_as_any_other(whole: Path) -> None:
    record = json.loads((whole / "run.json").read_text())
    assert record["environment"]["processes"] == 2
    assert record["result"]["n"] == 15
    assert len(untimed(whole)) == 12
    assert (whole / "report.html").exists()


def test_a_resume_needs_as_many_processes(whole: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    record = json.loads((cut / "run.json").read_text()) | {"status": "interrupted"}
    (cut / "run.json").write_text(json.dumps(record))
    found = call("train", "--resume", cut)
    assert found.code == 2
    assert "2 processes trained it, not 1" in found.err


def wait_for_rows(run: Path, n: int, process: subprocess.Popen[str]) -> None:
    table, patience = run / "metrics.jsonl", time.monotonic() + 180
    while not table.exists() or table.read_text().count("\n") < n:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < patience
        time.sleep(0.02)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The training processes of a torchrun, by rank."""
    found: dict[int, int] = {}
    for place in Path("/proc").iterdir():
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid:
                words = (place / "environ").read_bytes().split(b"\0")
                ranks = [int(w[5:]) for w in words if w.startswith(b"RANK=")]
                found |= dict.fromkeys(ranks, int(place.name))
        except (OSError, ValueError, IndexError):
            continue
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_started_again_to_the_same_result(
    data: Path, whole: Path, tmp_path: Path, rank: int
) -> None:
    run = tmp_path / "run"
    process = torchrun(data, *LONG, "--out", run, restarts=3)
    wait_for_rows(run, 4, process)
    os.kill(workers_of(process)[rank], signal.SIGKILL)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "going on at step" in err
    assert untimed(run) == untimed(whole)
    assert weights_of(run) == weights_of(whole)


def test_what_is_wrong_with_the_data_is_said_once(tmp_path: Path) -> None:
    process = torchrun(tmp_path / "none", *LONG, "--out", tmp_path / "run")
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert err.count("skipway: ") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_a_restart_takes_up_its_own_run_alone(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: bool,
    checkpoint: bool,
) -> None:  # fmt: skip
    """A place that the first start refused is not another training's to go on with, or to clear."""
    for key, value in (("RUN_ID", "x"), ("RESTART_COUNT", "1"), ("MAX_RESTARTS", "3")):
        monkeypatch.setenv(f"TORCHELASTIC_{key}", value)
    monkeypatch.setenv("WORLD_SIZE", "1")
    place = tmp_path / "run"
    shutil.copytree(whole, place)
    record = json.loads((place / "run.json").read_text())
    record["launch"] = [starter() if ours else f"{starter()}0"]
    (place / "run.json").write_text(json.dumps(record))
    if not checkpoint:
        shutil.rmtree(place / "checkpoints")
    before = sorted(place.rglob("*"))
    found = call("train", data, *QUICK, "--out", place, "--json")
    if not ours:
        assert found.code == 2
        assert "exists and is not empty" in found.err
        assert sorted(place.rglob("*")) == before
    else:
        assert found.code == 0, found.err
        now = json.loads((place / "run.json").read_text())
        assert (now["created"] == record["created"]) is checkpoint


def test_a_recipes_batch_is_that_of_all_processes(data: Path) -> None:
    given = {"recipe": "he2015-cifar", "model.name": "resnet20"}
    alone = make_plan(str(data), given)
    shared = make_plan(str(data), given, World(0, 2, 2))
    assert alone.config.batch_size == 128
    assert shared.config.batch_size == 64
    assert shared.config.optim.lr == alone.config.optim.lr == 0.1
    (choice,) = [c for c in shared.choices if c.key == "batch_size"]
    assert choice.reason == "128 of the recipe, over 2 processes"
    asked = make_plan(str(data), given | {"batch_size": 32}, World(0, 2, 2))
    assert asked.config.batch_size == 32


def test_a_lost_process_is_told_wherever_it_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise RuntimeError("[gloo] Connection closed by peer")

    monkeypatch.setattr("torch.distributed.all_gather_object", gone)
    monkeypatch.setattr("torch.distributed.all_reduce", gone)
    world = World(1, 2)
    for exchange in (lambda: world.gather(1), lambda: world.any(True), lambda: world.agreed(int)):
        with pytest.raises(SkipwayError, match="another process of this training has gone"):
            exchange()
