"""The statistics of the signal against the same sums written out; and looking changes nothing."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.architecture import architecture
from skipway.config import AugmentConfig, OptimConfig, ScheduleConfig
from skipway.data.feed import ResidentFeed, batches
from skipway.detectors import build_detector
from skipway.heads import DetectorConfig, SegmenterConfig
from skipway.images import Preprocess
from skipway.probes import Signal, dead_channels, flow, parts, rms
from skipway.resnet import ResNet
from skipway.segmenters import build_segmenter
from skipway.tasks.classify import Classify
from skipway.training.clock import Clock, Schedule
from skipway.training.loop import Loop
from skipway.training.optim import freeze, make_ema, make_optimizer

NETS: dict[str, dict[str, Any]] = {
    "post": {},
    "plain": {"shortcut": "none"},
    "projections": {"shortcut": "C"},
    "pre": {"order": "pre"},
    "bottleneck": {"block": "bottleneck", "shortcut": "B"},
    "pre bottleneck": {"block": "bottleneck", "shortcut": "B", "order": "pre"},
    "squeeze": {"squeeze": 4},
}


def tiny(**fields: Any) -> ResNet:
    fields = {"depths": (1, 2, 1), "widths": (8, 8, 16), "stem_width": 8, "num_classes": 3} | fields
    torch.manual_seed(0)
    return ResNet(architecture("resnet20", in_channels=1, **fields))


def looked_at(net: nn.Module, steps: int = 1, lr: float = 0.1) -> Signal:
    """Steps of plain gradient descent on noise, all of them looked at."""
    signal, generator = Signal(net), torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr)
    for _ in range(steps):
        x = torch.randn(6, 1, 8, 8, generator=generator)
        with signal.forward():
            loss = F.cross_entropy(net(x), torch.tensor([0, 1, 2, 0, 1, 2]))
        loss.backward()
        signal.backward()
        optimizer.step()
        signal.stepped()
        optimizer.zero_grad()
    return signal


def share_of_dead(x: Tensor) -> float:
    return float(np.mean([not x[:, c].any() for c in range(x.shape[1])]))


def root_mean_square(x: Tensor) -> float:
    return math.sqrt(float(np.mean(np.square(x.detach().double().numpy()))))


@pytest.mark.parametrize("kind", NETS)
def test_activations_branches_and_dead_channels_are_those_of_the_units(kind: str) -> None:
    """Each unit worked through by hand, input by input, as the papers write it."""
    net = tiny(**NETS[kind])
    with torch.no_grad():  # some channels die, in every place
        for name, p in net.named_parameters():
            if name.endswith("bias") and "fc" not in name and p.ndim == 1:
                p[::3] = -10.0
    reference = copy.deepcopy(net)
    means = looked_at(net).means()

    pre = net.arch.order == "pre"
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found: dict[str, dict[str, float]] = {"rms": {}, "mean": {}, "dead": {}, "ratio": {}}

    def note(name: str, y: Tensor) -> None:
        found["rms"][name] = root_mean_square(y)
        found["mean"][name] = y.abs().double().mean().item()

    reference.train()
    with torch.no_grad():
        x = reference.conv1(x)
        if not pre:
            x = F.relu(reference.bn1(x))
            found["dead"]["conv1"] = share_of_dead(x)
        note("conv1", x)
        for name, unit in reference.units().items():
            count = 3 if net.arch.block == "bottleneck" else 2
            convs = [unit.get_submodule(f"conv{i + 1}") for i in range(count)]
            norms = [unit.get_submodule(f"bn{i + 1}") for i in range(count)]
            dead, side = [], x
            if pre:
                y = x
                for i in range(count):
                    y = F.relu(norms[i](y))
                    dead.append(share_of_dead(y))
                    side = y if i == 0 and unit.shared else side
                    y = convs[i](y)
            else:
                y = x
                for i in range(count):
                    y = norms[i](convs[i](y))
                    if i < count - 1:
                        y = F.relu(y)
                        dead.append(share_of_dead(y))
            y = unit.se(y)
            if not unit.plain:
                side = unit.downsample(side)
                found["ratio"][name] = root_mean_square(y) / root_mean_square(side)
                y = y + side
            if not pre:
                y = F.relu(y)
                dead.append(share_of_dead(y))
            found["dead"][name] = max(dead)
            note(name, y)
            x = y
        x = F.relu(reference.norm(x)) if pre else x
        pooled = x.mean((2, 3))
        if pre:
            found["dead"]["fc"] = share_of_dead(pooled)
        note("fc", reference.fc(pooled))
    assert means["activation_rms"] == pytest.approx(found["rms"], rel=2e-3)
    assert means["activation_mean"] == pytest.approx(found["mean"], rel=2e-3)
    assert means["dead_channels"] == pytest.approx(found["dead"], rel=2e-3)
    assert max(found["dead"].values()) >= 0.3
    assert means.get("residual_ratio", {}) == pytest.approx(found["ratio"], rel=2e-3)
    assert bool(found["ratio"]) == (kind != "plain")


def test_gradients_weights_and_updates_by_part() -> None:
    net = tiny()
    steps, lr = 3, 0.1
    sums: dict[str, dict[str, float]] = {"gradient_norm": {}, "weight_norm": {}, "update_ratio": {}}
    twin = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(6, 1, 8, 8, generator=generator)
        twin.zero_grad()
        F.cross_entropy(twin(x), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
        for part, group in parts(twin).items():
            gradient = math.sqrt(
                sum(p.grad.square().sum().item() for p in group if p.grad is not None)
            )
            weight = math.sqrt(sum(p.square().sum().item() for p in group))
            # without momentum and decay the step is lr times the gradient
            for key, value in zip(sums, (gradient, weight, lr * gradient / weight), strict=True):
                sums[key][part] = sums[key].get(part, 0) + value / steps
        with torch.no_grad():
            for p in twin.parameters():
                p -= lr * p.grad
    means = looked_at(net, steps, lr).means()
    for key, by_part in sums.items():
        assert list(means[key]) == ["conv1", "layer1.0", "layer2.0", "layer2.1", "layer3.0", "fc"]
        assert means[key] == pytest.approx(by_part, rel=2e-3), key


def test_parts_hold_every_parameter_once() -> None:
    for fields in NETS.values():
        net = tiny(**fields)
        held = [id(p) for group in parts(net).values() for p in group]
        assert sorted(held) == sorted(id(p) for p in net.parameters())


def test_sums_are_float32_whatever_the_values() -> None:
    x = torch.full((4, 3, 50, 50), 100.0).to(torch.bfloat16)
    assert rms(x).item() == pytest.approx(100)
    assert rms(x).dtype == torch.float32
    x[:, 1] = 0
    x[3, 2] = 0
    assert dead_channels(x).item() == pytest.approx(1 / 3)
    assert dead_channels(x.mean((2, 3))).item() == pytest.approx(1 / 3)


def test_what_is_not_finite_is_none_and_what_is_frozen_is_absent() -> None:
    net = tiny()
    freeze(net, 2)
    with torch.no_grad():
        net.layer3[0].bn2.weight.fill_(math.inf)  # type: ignore[index,union-attr]
    means = looked_at(net).means()
    assert means["activation_rms"]["layer3.0"] is None
    assert means["activation_rms"]["layer2.1"] is not None
    assert list(means["gradient_norm"]) == ["layer2.0", "layer2.1", "layer3.0", "fc"]
    assert list(means["activation_rms"])[:2] == ["conv1", "layer1.0"]


class Other(nn.Module):
    """No ResNet: a child is called twice, another gives no tensor, a third is not called at all."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 3, 3)
        self.pair = nn.Linear(3, 3)
        self.unused = nn.Linear(2, 2)
        self.flat = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        halves = [self.flat(self.body(half).mean((2, 3))) for half in (x[:2], 10 * x[2:])]
        return self.pair(torch.cat(halves))


def test_another_network_gives_its_children() -> None:
    net = Other()
    twin = copy.deepcopy(net)
    means = looked_at(net).means()
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    both = [root_mean_square(twin.body(half)) for half in (x[:2], 10 * x[2:])]
    assert means["activation_rms"]["body"] == pytest.approx(sum(both) / 2, rel=2e-3)
    assert set(means["activation_rms"]) == set(means["gradient_norm"]) == {"body", "pair"}
    assert not {"residual_ratio", "dead_channels"} & means.keys()
    assert means["gradient_norm"]["pair"] > 0


@pytest.mark.parametrize("name", ["resnet18", "preresnet110"])
def test_heads_stand_behind_the_units_of_their_network(name: str) -> None:
    arch = architecture(name, width=0.125, in_channels=1)
    body, classifier = ResNet(arch), SegmenterConfig(head="unet")
    net = build_segmenter(arch, classifier, 3)
    signal, labels = Signal(net), torch.zeros(2, 32, 32, dtype=torch.int64)
    with signal.forward():
        loss = F.cross_entropy(net(torch.randn(2, 1, 32, 32))["out"], labels)
    loss.backward()
    signal.backward()
    means = signal.means()
    units = list(body.units())
    assert list(parts(net))[: len(units) + 1] == ["conv1", *units]
    assert list(parts(net))[-1] == "classifier"
    assert set(units) <= means["residual_ratio"].keys() & means["dead_channels"].keys()
    assert {"conv1", *units, "classifier"} <= means["activation_rms"].keys()
    assert means["gradient_norm"].keys() == parts(net).keys()


@pytest.mark.parametrize("heads", [{}, {"neck": "c4"}, {"head": "retinanet"}])
def test_every_parameter_of_a_detector_is_of_one_part(heads: dict[str, Any]) -> None:
    small = {} if "neck" in heads else {"channels": 16}
    config = DetectorConfig(**small, **heads)
    net = build_detector(architecture("resnet18", width=0.125), config, 3)
    found = [parameter for group in parts(net).values() for parameter in group]
    assert len(found) == len(set(found))
    assert set(found) == set(net.parameters())
    assert {"conv1", "layer4.1"} < parts(net).keys()


# In the loop


def make_loop(
    net: ResNet, epochs: int = 2, batch: int = 4, optim: OptimConfig | None = None, **options: Any
) -> Loop:
    """Training on 17 batches of noise with a brighter band, whose place is the class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 17 * batch)
    frames = rng.integers(0, 100, (17 * batch, 12, 12, 1), dtype=np.uint8)
    for frame, label in zip(frames, labels, strict=True):
        frame[4 * label : 4 * label + 4] += 100
    feed = ResidentFeed(frames, labels, batch, 3)
    preprocess = Preprocess(size=(12, 12), channels=1, mean=(0.4,), std=(0.3,))
    optim = optim or OptimConfig(lr=0.05, nesterov=True, weight_decay=5e-4)
    clock = Clock.of(f"{epochs} epochs", len(batches(len(feed), batch)))
    return Loop(
        Classify(preprocess, AugmentConfig(pad_crop=1)),
        net,
        feed,
        make_optimizer(net, optim),
        clock,
        Schedule(ScheduleConfig(kind="cosine"), clock, optim.lr),
        seed=3,
        device=torch.device("cpu"),
        **options,
    )


class Blind(Signal):
    """Looks at nothing: what the loop does without probes."""

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        yield

    def backward(self) -> None:
        pass

    def stepped(self) -> None:
        pass


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    "fields",
    [
        {"drop_path": 0.3},
        {"order": "pre", "drop_path": 0.3},
        {"block": "bottleneck", "shortcut": "D", "stem": "deep", "squeeze": 4, "antialias": True},
        {"checkpointing": True, "zero_init_last": True, "drop_path": 0.3},
    ],
)
def test_looking_changes_no_bit(
    fields: dict[str, Any], precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained() -> tuple[dict[str, Any], int]:
        net = tiny(**fields)
        net = net.to(memory_format=torch.channels_last)
        torch.manual_seed(9)
        options = {"keep_frozen": freeze(net, 2), "ema": make_ema(net, 0.9), "clip": 0.5}
        loop = make_loop(net, epochs=1, precision=precision, **options)
        while not loop.finished:
            loop.epoch(lambda _: False)
        state = loop.state()
        looks = len(state.pop("signal")["names"])
        state.pop("tally")  # holds times
        return state, looks

    seen, looks = trained()
    monkeypatch.setattr("skipway.training.loop.Signal", Blind)
    unseen, no_looks = trained()
    assert looks > 30
    assert no_looks == 0
    for key in ("model", "ema"):
        assert all(torch.equal(seen[key][name], unseen[key][name]) for name in unseen[key])
    for mine, other in zip(
        seen["optimizer"]["state"].values(), unseen["optimizer"]["state"].values(), strict=True
    ):
        assert torch.equal(mine["momentum_buffer"], other["momentum_buffer"])
    assert torch.equal(seen["generators"][0][0], unseen["generators"][0][0])


def test_an_epoch_is_looked_at_a_few_times_and_left_alone_between() -> None:
    net = tiny()
    loop = make_loop(net, epochs=2)
    assert loop.clock.steps_per_epoch == 17
    counted: list[int] = []
    hooks: list[int] = []

    def between(at: Loop) -> bool:
        counted.append(max(at.signal.state()["counts"], default=0))
        hooks.append(sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()))
        return False

    loop.epoch(between)
    loop.epoch(between)
    assert counted == [1] * 17 + [0] * 3 + [1] * 14  # at most one step in twenty
    assert not any(hooks)


def test_a_recomputed_pass_is_seen_once() -> None:
    assert looked_at(tiny(checkpointing=True)).means() == looked_at(tiny()).means()


@pytest.mark.parametrize("stop", [1, 17, 30])
def test_an_interrupted_epoch_gives_the_same_means(stop: int) -> None:
    whole = make_loop(tiny())
    first, second = make_loop(tiny()), make_loop(tiny())
    rows: list[Any] = []
    for loop in (whole, first):
        while not loop.finished:
            if loop.epoch(lambda at: at is first and at.step == stop):
                rows.append(loop.signal.means())
            if loop is first and loop.step == stop:
                break
    second.load_state(copy.deepcopy(first.state()))
    while not second.finished:
        second.epoch(lambda _: False)
        rows.append(second.signal.means())
    assert len(rows) == 4
    assert rows[2:] == rows[:2]


# One pass, on its own


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("kind", ["post", "plain", "pre", "pre bottleneck"])
def test_the_flow_is_that_of_the_units_worked_through_by_hand(kind: str, norm: str) -> None:
    net = tiny(**NETS[kind], norm=norm)
    x, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    found = flow(net, x, labels)

    outputs = {"conv1": net.stem(x)}
    y = outputs["conv1"] * 1  # what follows may write into it
    for name, unit in net.units().items():
        outputs[name] = unit(y)
        y = outputs[name] * 1
    if net.arch.order == "pre":
        y = F.relu(net.norm(y))
    outputs["fc"] = net.fc(y.mean((2, 3)))
    for output in outputs.values():
        output.retain_grad()
    F.cross_entropy(outputs["fc"], labels).backward()

    assert found.keys() == {"activation_rms", "gradient_rms", "weight_gradient_norm"}
    for values in found.values():
        assert list(values) == list(outputs)
    for name, output in outputs.items():
        assert found["activation_rms"][name] == pytest.approx(root_mean_square(output), rel=1e-5)
        assert output.grad is not None
        gradient = 6 * root_mean_square(output.grad)
        assert found["gradient_rms"][name] == pytest.approx(gradient, rel=1e-4)
    for name, group in parts(net).items():
        squares = [float(p.grad.double().square().sum()) for p in group if p.grad is not None]
        expected = math.sqrt(sum(squares))
        assert found["weight_gradient_norm"][name] == pytest.approx(expected, rel=1e-4)


def test_the_flow_leaves_all_as_it_was() -> None:
    net = tiny(dropout=0.5, drop_path=0.5).eval()
    net.fc.train()
    net.conv1.weight.requires_grad_(False)
    x, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    random = torch.get_rng_state()
    flow(net, x, labels)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert gradients.keys() == {"fc.weight"}
    assert bool((gradients["fc.weight"] == 1).all())
    assert not any(m._forward_hooks for m in net.modules())


def test_what_is_small_is_told_from_what_is_0_and_from_what_overflows() -> None:
    """Squares of these gradients are 0 in float32."""
    net = tiny(shortcut="none", norm="none")
    x, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    usual = flow(net, x, labels)["gradient_rms"]
    with torch.no_grad():
        net.fc.weight.mul_(1e-30)
    small = flow(net, x, labels)["gradient_rms"]
    assert 0 < small["layer1.0"] < 1e-28 * usual["layer1.0"]
    with torch.no_grad():
        net.units()["layer2.0"].conv1.weight.zero_()
    silent = flow(net, x, labels)["gradient_rms"]
    assert silent["layer1.0"] == 0 < silent["fc"]
    with torch.no_grad():
        net.conv1.weight.fill_(3e38)
    assert not math.isfinite(flow(net, x.abs(), labels)["activation_rms"]["conv1"])
