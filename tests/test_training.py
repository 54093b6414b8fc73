"""The loop and its parts, against textbook PyTorch and with a task that is nothing like ours."""

from __future__ import annotations

import copy
import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bits import same
from skipway.architecture import Architecture, architecture
from skipway.config import AugmentConfig, OptimConfig, ScheduleConfig
from skipway.data.feed import Batch, DecodedFeed, ResidentFeed, batches
from skipway.data.keyed import Key, permutation
from skipway.data.split import ArrayReader, Split
from skipway.errors import InputError
from skipway.images import Preprocess
from skipway.resnet import ResNet
from skipway.tasks import Task
from skipway.tasks.classify import Classify
from skipway.training import checkpoint
from skipway.training.clock import Clock, Schedule
from skipway.training.loop import Loop, evaluate
from skipway.training.optim import freeze, make_ema, make_optimizer, set_exact_statistics

CPU = torch.device("cpu")
TINY = architecture(
    "resnet20", depths=(1, 1, 1), widths=(8, 8, 16), stem_width=8, num_classes=3, in_channels=1
)


def tiny(seed: int = 0, **fields: Any) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(architecture("resnet20", **(vars(TINY) | fields)))


def tiny_feed(n: int = 22, batch_size: int = 4, seed: int = 3) -> ResidentFeed:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
    return ResidentFeed(frames, rng.integers(0, 3, n), batch_size, seed)


def tiny_task(**augmentation: Any) -> Classify:
    preprocess = Preprocess(size=(8, 8), channels=1, mean=(0.4,), std=(0.3,))
    return Classify(preprocess, AugmentConfig(**augmentation))


def make_loop(
    net: nn.Module,
    task: Task | None = None,
    feed: Any = None,
    epochs: int = 2,
    ema: float = 0.0,
    optim: OptimConfig | None = None,
    **kwargs: Any,
) -> Loop:
    feed = feed or tiny_feed()
    optim = optim or OptimConfig(lr=0.05, nesterov=True)
    clock = Clock.of(f"{epochs} epochs", len(batches(len(feed), feed.batch_size)))
    schedule = Schedule(ScheduleConfig(kind="cosine", warmup="2 steps"), clock, optim.lr)
    return Loop(
        task or tiny_task(pad_crop=1, flip=True),
        net,
        feed,
        make_optimizer(net, optim),
        clock,
        schedule,
        seed=3,
        device=CPU,
        ema=make_ema(net, ema) if ema else None,
        **kwargs,
    )


def go(loop: Loop) -> Loop:
    while not loop.finished:
        loop.epoch(lambda _: False)
    return loop


# The clock


def test_durations_become_steps() -> None:
    clock = Clock.of("2.5 epochs", 40)
    assert (clock.total, clock.epochs) == (100, 3)
    assert [clock.steps(d) for d in ("1 epoch", "7 steps", "10 %", "0 steps")] == [40, 7, 10, 0]
    assert clock.position(39) == (0, 39)
    assert clock.position(40) == (1, 0)
    with pytest.raises(ValueError, match="cannot be"):
        Clock.of("50 %", 40)


def test_cosine_equals_torch() -> None:
    schedule = Schedule(ScheduleConfig(kind="cosine"), Clock(10, 50), 0.3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], 0.3)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for step in range(50):
        assert schedule(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        peer.step()


def test_one_cycle_equals_torch() -> None:
    """PyTorch divides its last rate by 1e4 and ends one step later; ours goes to zero."""
    schedule = Schedule(ScheduleConfig(kind="one-cycle", warmup="20 steps"), Clock(10, 100), 0.3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], 0.3)
    peer = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.3, 101, pct_start=21 / 101, cycle_momentum=False, final_div_factor=1e9
    )
    for step in range(100):
        assert schedule(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        peer.step()


def test_the_paper_steps_down_at_32k_and_48k() -> None:
    config = ScheduleConfig(
        kind="step",
        milestones=("32000 steps", "48000 steps"),
        warmup="400 steps",
        warmup_lr=0.01,
    )
    schedule = Schedule(config, Clock(390, 64000), 0.1)
    rates = [schedule(s) for s in (0, 399, 400, 31999, 32000, 47999, 48000, 63999)]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@given(
    st.sampled_from(["constant", "step", "cosine", "one-cycle"]),
    st.integers(1, 500),
    st.integers(0, 100),
)
def test_the_rate_is_never_above_its_highest(kind: Any, total: int, warmup: int) -> None:
    config = ScheduleConfig(kind=kind, warmup=f"{warmup} %", milestones=("50 %",))
    schedule = Schedule(config, Clock(10, total), 0.3)
    rates = [schedule(s) for s in range(total)]
    assert all(0 <= r <= 0.3 + 1e-12 for r in rates)


# The loop


def test_equals_a_textbook_loop() -> None:
    """Same batches, SGD with Nesterov momentum, weight decay and cosine: the same weights."""
    loop = go(make_loop(tiny(), tiny_task(pad_crop=1, flip=True)))
    net, feed, task = tiny(), tiny_feed(), tiny_task(pad_crop=1, flip=True)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, 0.9, weight_decay=1e-4, nesterov=True)
    step = 0
    net.train()
    for epoch in range(2):
        order = permutation(22, 3, epoch)
        for low in range(0, 22, 4):
            index = order[low : low + 4]
            images = feed.frames[index].permute(0, 3, 1, 2)
            batch = Batch(images, feed.labels[index], index)
            x = task.to_input(batch, Key(3, epoch, index)).images
            for group in optimizer.param_groups:
                group["lr"] = loop.schedule(step)
            optimizer.zero_grad()
            F.cross_entropy(net(x), feed.labels[index]).backward()
            optimizer.step()
            step += 1
    assert loop.step == step == 12
    for (name, ours), theirs in zip(
        loop.net.state_dict().items(), net.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7, msg=name)


def decisive(state: dict[str, Any]) -> dict[str, Any]:
    """A loop's state without its times."""
    tally = {k: state["tally"][k] for k in ("images", "sums")}
    return state | {"tally": tally}


@pytest.mark.parametrize(("kind", "power"), [("linear", 1.0), ("polynomial", 1.7)])
def test_linear_and_polynomial_are_torchs(kind: Any, power: float) -> None:
    config = ScheduleConfig(kind=kind, power=power if kind == "polynomial" else 2.0)
    schedule = Schedule(config, Clock(10, 50), 0.3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    peer = torch.optim.lr_scheduler.PolynomialLR(optimizer, 50, power)
    for step in range(50):
        assert schedule(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        peer.step()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("stop", [1, 5, 6, 7, 11])
def test_resume_is_exact_to_the_bit(stop: int, precision: Any, tmp_path: Path) -> None:
    def loop() -> Loop:
        net = tiny(drop_path=0.3, dropout=0.2, block_dropout=0.2)
        torch.manual_seed(9)  # of what is dropped
        return make_loop(net, ema=0.9, precision=precision)

    whole = go(loop())
    first = loop()
    while first.step < stop:
        first.epoch(lambda at: at.step == stop)
    checkpoint.write(tmp_path / "step-1", first.state())
    second = loop()
    second.load_state(checkpoint.load(tmp_path / "step-1"))
    torch.rand(3)  # what happened between does not matter
    second.load_state(checkpoint.load(tmp_path / "step-1"))
    go(second)
    assert same(decisive(second.state()), decisive(whole.state()))
    assert second.tally.means() == whole.tally.means()


def test_pause_is_asked_after_every_step_and_ends_at_its_boundary() -> None:
    loop = make_loop(tiny())
    seen: list[int] = []
    assert not loop.epoch(lambda at: bool(seen.append(at.step)) or at.step == 3)
    assert seen == [1, 2, 3]
    assert loop.epoch(lambda at: bool(seen.append(at.step)))
    assert seen == [1, 2, 3, 4, 5, 6]


def test_clip_bounds_the_whole_gradient() -> None:
    net = tiny()
    before = {k: v.clone() for k, v in net.named_parameters()}
    loop = make_loop(
        net, epochs=1, optim=OptimConfig(lr=1.0, momentum=0, weight_decay=0), clip=1e-3
    )
    loop.schedule = Schedule(ScheduleConfig(kind="constant"), loop.clock, 1.0)
    loop.epoch(lambda _: True)
    moved = torch.stack([(v - before[k]).norm() for k, v in net.named_parameters()]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    net = tiny()
    loop = make_loop(net)
    loop.epoch(lambda at: at.step == 2)
    with torch.no_grad():
        net.fc.weight.fill_(float("inf"))
    with pytest.raises(InputError, match="not finite after step 2"):
        loop.state()
    with pytest.raises(InputError, match=r"loss became .* at step 3[\s\S]*--lr"):
        loop.epoch(lambda _: False)


# A task with images of different sizes, lists of targets, and losses in training mode only


class RaggedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        means = torch.stack([self.conv(image[None]).mean() for image in images])
        if not self.training:
            return [m.item() for m in means]
        assert targets is not None
        goals = torch.stack([t["boxes"].float().mean() for t in targets])
        return {"near": F.mse_loss(means, goals), "small": 1e-3 * means.square().mean()}


class RaggedEvaluator:
    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def update(self, outputs: list[float], batch: Batch) -> None:
        self.seen |= dict(zip(batch.index.tolist(), outputs, strict=True))

    def merge(self, other: RaggedEvaluator) -> None:
        self.seen |= other.seen

    def metrics(self) -> dict[str, float]:
        return {"images": float(len(self.seen))}

    def interval(self) -> None:
        return None

    def details(self, split: Split, classes: Sequence[str]) -> dict[str, Any]:
        return {}


class RaggedTask:
    def build(self, architecture: Architecture) -> nn.Module:
        return RaggedNet()

    def augment(self, image: Any, target: Any, key: Key | None) -> tuple[Any, Any]:
        flip = key is not None and key.uniform(1)[0] < 0.5
        return (image.flip(-1), target) if flip else (image, target)

    def collate(self, samples: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        return [image for image, _ in samples], [target for _, target in samples]

    def to_input(self, batch: Batch, key: Key | None) -> Batch:
        return batch

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = model(batch.images, batch.targets)
        return losses

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        return model(batch.images)

    def evaluator(self) -> RaggedEvaluator:
        return RaggedEvaluator()


class RaggedSplit:
    """What `DecodedFeed` asks of a split, with tensors of different sizes and boxes as targets."""

    def __len__(self) -> int:
        return 8

    def image(self, i: int, channels: int) -> Tensor:
        return torch.rand(1, 8 + i, 11 + 2 * i, generator=torch.Generator().manual_seed(i))

    def target(self, i: int) -> dict[str, Tensor]:
        return {"boxes": torch.ones(i, 4) if i else torch.zeros(1, 4)}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loop_carries_a_ragged_task(workers: int) -> None:
    task: Task = RaggedTask()
    torch.manual_seed(0)
    net = task.build(TINY)
    split: Any = RaggedSplit()
    feed = DecodedFeed(split, 1, task.augment, task.collate, 3, 0, workers)
    loop = make_loop(net, task, feed, epochs=12, ema=0.9)
    loop.epoch(lambda _: False)
    begun = loop.tally.means()
    assert set(begun) == {"near", "small"}
    assert set(loop.signal.means()["gradient_norm"]) == {"conv"}
    go(loop)
    assert loop.tally.means()["near"] < begun["near"] / 2
    halves = [evaluate(task, loop.weights, feed.in_order(), CPU) for _ in range(2)]
    halves[0].merge(halves[1])
    assert halves[0].metrics() == {"images": 8.0}


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_is_exact_with_decoded_images_and_dropped_paths(workers: int) -> None:
    def loop() -> Loop:
        torch.manual_seed(1)
        pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
        names = [f"{i}.png" for i in range(12)]
        split = Split(ArrayReader(pixels), names, np.arange(12) % 3)
        task = tiny_task(
            pad_crop=1, flip=True, policy="trivial", jitter=0.3, erase=0.5, mixup=0.3, cutmix=1.0
        )
        feed = DecodedFeed(split, 1, task.augment, task.collate, 4, 3, workers)
        return make_loop(tiny(drop_path=0.5), task, feed, epochs=3)

    whole = loop()
    torch.manual_seed(9)
    go(whole)
    first = loop()
    torch.manual_seed(9)
    first.epoch(lambda at: at.step == 2)
    kept = copy.deepcopy(first.state())
    second = loop()
    second.load_state(kept)
    go(second)
    assert same(decisive(second.state()), decisive(whole.state()))


def test_every_image_is_evaluated_once_in_float32() -> None:
    net, feed, task = tiny(), tiny_feed(21, 4), tiny_task(pad_crop=1, flip=True)
    scored = evaluate(task, net, feed.in_order(), CPU).scored()  # type: ignore[attr-defined]
    assert scored.index.tolist() == list(range(21))
    net.eval()
    x = task.preprocess.normalise(feed.frames.numpy())
    logits = net(torch.from_numpy(x)).softmax(1)
    np.testing.assert_allclose(scored.confidence, logits.max(1).values.detach().numpy(), rtol=1e-5)


# Its parts


def test_norms_and_biases_are_spared_from_decay() -> None:
    net = tiny()
    optimizer = make_optimizer(net, OptimConfig(decay_all=False, weight_decay=0.1, head_lr=10))
    names = {id(p): n for n, p in net.named_parameters()}
    found = {
        names[id(p)]: (g["weight_decay"], g["scale"])
        for g in optimizer.param_groups
        for p in g["params"]
    }
    assert found.keys() == dict(net.named_parameters()).keys()
    for name, (decay, scale) in found.items():
        assert decay == (0.1 if name.endswith("weight") and "bn" not in name else 0.0), name
        assert scale == (10 if name.startswith("fc.") else 1), name


@pytest.mark.parametrize("kind", ["sgd", "muon"])
def test_without_momentum_a_step_is_the_gradient(kind: Any) -> None:
    weight = nn.Linear(3, 2)
    config = OptimConfig(kind=kind, lr=0.5, momentum=0.0, nesterov=True, weight_decay=0.0)
    optimizer = make_optimizer(weight, config)
    expected, gradient = weight.weight.detach().clone(), torch.randn(2, 3)
    for _ in range(2):
        weight.weight.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(weight.weight, expected - 2 * 0.5 * gradient)


def test_ema_warms_up_and_carries_the_buffers() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    ema = make_ema(net, 0.9)
    expected = {k: v.clone() for k, v in net.state_dict().items()}
    for t in range(30):
        with torch.no_grad():
            for value in net.state_dict().values():
                value.add_(1 if value.dtype == torch.int64 else 0.1 * (t + 1))
        ema.update_parameters(net)
        now = min(0.9, (1 + t) / (10 + t)) if t else 0.0  # the first is taken whole
        for key, value in net.state_dict().items():
            if value.dtype == torch.int64:
                expected[key] = value.clone()
            else:
                expected[key] = now * expected[key] + (1 - now) * value
    for key, value in ema.module.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)


def test_frozen_parts_do_not_move() -> None:
    net = tiny()
    keep = freeze(net, 2)
    before = copy.deepcopy(net.state_dict())
    go(make_loop(net, keep_frozen=keep, epochs=1))
    for name, value in net.state_dict().items():
        frozen = name.split(".")[0] in ("conv1", "bn1", "layer1")
        assert torch.equal(value, before[name]) == frozen, name


def test_exact_statistics_are_those_of_all_images() -> None:
    """In one batch they are plain; and dropped paths have no part in them."""
    torch.manual_seed(0)
    net = tiny(drop_path=0.9)
    x = torch.randn(24, 1, 8, 8) * torch.linspace(0.5, 2, 24)[:, None, None, None]
    set_exact_statistics(net, [x])
    assert not net.training
    mean, var = {}, {}
    with torch.no_grad():
        y = net.conv1(x)
        mean["bn1"], var["bn1"] = y.mean((0, 2, 3)), y.var((0, 2, 3))
        y = net.relu(
            (y - mean["bn1"][:, None, None])
            / (y.var((0, 2, 3), False) + 1e-5).sqrt()[:, None, None]
        )
        y = net.layer1[0].conv1(y)  # type: ignore[index,union-attr,operator]
        mean["layer1.0.bn1"], var["layer1.0.bn1"] = y.mean((0, 2, 3)), y.var((0, 2, 3))
    for name in mean:
        norm = net.get_submodule(name)
        torch.testing.assert_close(norm.running_mean, mean[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, var[name], rtol=1e-4, atol=1e-5)
        assert norm.momentum == 0.1


def test_exact_statistics_leave_frozen_norms_alone() -> None:
    net = tiny()
    freeze(net, 2)
    before = copy.deepcopy(net.state_dict())
    set_exact_statistics(net, [torch.randn(24, 1, 8, 8) + 1])
    for name, value in net.state_dict().items():
        if "running" in name:
            frozen = name.split(".")[0] in ("bn1", "layer1")
            assert torch.equal(value, before[name]) == frozen, name


def test_exact_statistics_average_over_batches() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=0.1))
    x = torch.randn(24, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    x[8:] += 3  # batches of different means
    set_exact_statistics(net, x.split(8))
    norm = net[0]
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))


# Checkpoints


def test_old_checkpoints_go_after_the_new_one_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    with checkpoint.Writer(folder, keep=2) as writer:
        for step in (10, 20, 30):
            writer.save(step, {"step": step})
        writer.wait()
        assert [p.name for p in checkpoint.saved(folder)] == ["step-00000020", "step-00000030"]
        monkeypatch.setattr(os, "fsync", refuse)
        writer.save(40, {"step": 40})
        with pytest.raises(InputError, match="step-00000040: cannot be written: No space"):
            writer.wait()
    assert [p.name for p in folder.iterdir()] == ["step-00000020", "step-00000030"]
    assert checkpoint.newest(tmp_path) == ({"step": 30}, ())


def refuse(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    """What is written in the background is a copy: training goes on and changes the tensors."""
    weights = torch.zeros(100_000)
    with checkpoint.Writer(tmp_path, keep=2) as writer:
        writer.save(1, {"w": weights})
        weights += 1
    assert not checkpoint.load(tmp_path / "step-00000001")["w"].any()


def test_a_write_that_failed_is_told_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match="cannot be written"), checkpoint.Writer(tmp_path, 2) as to:
        to.save(1, {})
    to = checkpoint.Writer(tmp_path, 2)
    to.save(1, {})
    to.__exit__(KeyError, KeyError(), None)  # the first error is told


def test_the_one_before_a_damaged_checkpoint_is_taken_and_it_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        checkpoint.write(folder / f"step-{step:08}", {"step": step})
    whole = (folder / "step-00000003").read_bytes()
    (folder / "step-00000003").write_bytes(whole[:-100])
    state, said = checkpoint.newest(tmp_path)
    assert (state, len(said)) == ({"step": 2}, 1)
    assert "step-00000003: damaged checkpoint" in said[0]
    for step in (1, 2):
        (folder / f"step-{step:08}").write_bytes(b"")
    with pytest.raises(InputError, match=r"step-00000003: damaged .*\nNo other is left"):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("step", [25, 35])
def test_a_damaged_checkpoint_takes_no_sound_ones_place(
    tmp_path: Path, keep: int, step: int
) -> None:
    """Found damaged, it is of a later step than the run has gone on from, and goes."""
    folder = tmp_path / "checkpoints"
    for earlier in (10, 20, 30):
        checkpoint.write(folder / f"step-{earlier:08}", {"step": earlier})
    (folder / "step-00000030").write_bytes(b"skipway")
    with checkpoint.Writer(folder, keep, start=20) as writer:
        writer.save(step, {"step": step})
    names = ["step-00000020", f"step-{step:08}"][-keep:]
    assert [p.name for p in checkpoint.saved(folder)] == names
    assert checkpoint.newest(tmp_path) == ({"step": step}, ())


def test_training_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, fsync = threading.Event(), os.fsync

    def slow(handle: int) -> None:
        assert gate.wait(60)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", slow)
    with checkpoint.Writer(tmp_path, 1) as writer:
        writer.save(1, {"step": 1})
        assert not checkpoint.saved(tmp_path)  # it returned, and nothing is written yet
        gate.set()
    assert len(checkpoint.saved(tmp_path)) == 1


@pytest.fixture(scope="module")
def whole_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    loop = make_loop(tiny(), ema=0.9)
    loop.epoch(lambda at: at.step == 3)
    path = tmp_path_factory.mktemp("damage") / "step-1"
    checkpoint.write(path, loop.state())
    return path, path.read_bytes()


@given(data=st.data())
@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_flipped_bit_is_detected(
    whole_checkpoint: tuple[Path, bytes], data: st.DataObject
) -> None:
    path, whole = whole_checkpoint
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    with pytest.raises(InputError, match="damaged checkpoint"):
        checkpoint.load(path)


@given(data=st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_cut_is_detected(whole_checkpoint: tuple[Path, bytes], data: st.DataObject) -> None:
    path, whole = whole_checkpoint
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(InputError, match="damaged checkpoint"):
        checkpoint.load(path)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    checkpoint.write(tmp_path / "step-1", {"x": Harm()})
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(tmp_path / "step-1")
    assert not (tmp_path / "ran").exists()


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoint.newest(tmp_path)
