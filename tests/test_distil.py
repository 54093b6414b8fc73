"""Distillation against its formula, and as a user runs it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from commands import QUICK, call, draw
from skipway.card import Card
from skipway.config import AugmentConfig
from skipway.data import Key
from skipway.data.feed import Batch
from skipway.errors import InputError
from skipway.images import Preprocess
from skipway.tasks.classify import Classify, Loss
from skipway.tasks.distil import Distilled, Teacher, divergence, read_teacher
from skipway.training import Interrupted, TrainingProgress, checkpoint, resume, start
from skipway.weights import create_model, load_model, read_state, save_weights

CLASSES = ("ant", "bee", "cat")
SIZE = (12, 12)
OWN = Preprocess(size=SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def outputs(seed: int, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(7, 5, generator=generator, dtype=dtype)


# --- the formula ------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_divergence_is_written_out(temperature: float) -> None:
    logits, wanted = outputs(0).requires_grad_(), outputs(1)
    found = divergence(logits, wanted, temperature)
    p, q = ((x / temperature).softmax(1) for x in (wanted, logits))
    by_hand = temperature**2 * (p * (p.log() - q.log())).sum() / 7
    peer = temperature**2 * F.kl_div(q.log(), p, reduction="batchmean")
    for expected in (by_hand, peer):
        torch.testing.assert_close(found, expected)
        pair = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (found, expected)]
        torch.testing.assert_close(*pair)


def test_at_a_high_temperature_logits_are_matched() -> None:
    """1503.02531, section 2.1: of logits with the mean 0 the gradient becomes (z - v) / N."""
    logits, wanted = (x - x.mean(1, keepdim=True) for x in (outputs(0), outputs(1)))
    logits, wanted = logits.double().requires_grad_(), wanted.double()
    (found,) = torch.autograd.grad(divergence(logits, wanted, 1e6), logits)
    torch.testing.assert_close(found, (logits - wanted).detach() / 5 / 7, rtol=1e-3, atol=1e-6)


def test_equal_outputs_have_no_divergence_and_half_precision_is_left() -> None:
    half = outputs(0).bfloat16()
    assert divergence(half, half, 4.0).item() == pytest.approx(0, abs=1e-6)
    assert divergence(half, half, 4.0).dtype == torch.float32
    double = outputs(0, dtype=torch.float64)
    assert divergence(double, double, 4.0).dtype == torch.float64


# --- the task ---------------------------------------------------------------------------------


def network(seed: int, classes: tuple[str, ...] = CLASSES) -> nn.Module:
    fields: dict[str, Any] = {"depths": (1, 1, 1), "width": 0.25, "input_size": SIZE[0]}
    net = create_model("resnet20", num_classes=len(classes), seed=seed, **fields)
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if trained
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


def write(
    path: Path,
    seed: int = 1,
    classes: tuple[str, ...] = CLASSES,
    preprocess: Preprocess = OWN,
    net: nn.Module | None = None,
) -> Path:
    net = net or network(seed, classes)
    arch: Any = net.arch
    card = Card(model="custom", architecture=arch, classes=classes, preprocess=preprocess)
    save_weights(path, net, card)
    return path


def frames(n: int = 6, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *size, 3), np.uint8)


def batch_of(images: np.ndarray) -> Batch:
    n = len(images)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    return Batch(tensor, torch.arange(n) % 3, np.arange(n))


def teacher_of(preprocess: Preprocess, net: nn.Module | None = None) -> Teacher:
    return Teacher(net or nn.Identity(), preprocess, (0, 1, 2), "")


def classify(preprocess: Preprocess = OWN, loss: Loss | None = None, **augment: Any) -> Classify:
    return Classify(preprocess, AugmentConfig(**augment), loss)


OTHER = Preprocess(size=SIZE, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.6))


@pytest.mark.parametrize("own_pixels", [False, True])
@pytest.mark.parametrize("other_pixels", [False, True])
def test_the_teacher_sees_the_same_pixels_as_it_is_used_to(
    own_pixels: bool, other_pixels: bool
) -> None:
    rng = np.random.default_rng(5)
    own, other = OWN, OTHER
    if own_pixels:
        own = own.with_pixel_mean(rng.random((3, *SIZE), np.float32))
    if other_pixels:
        other = other.with_pixel_mean(rng.random((3, *SIZE), np.float32))
    task = Distilled(classify(own), teacher_of(other))
    inputs = task.to_input(batch_of(frames()), None).images
    for _ in range(2):  # the second time from kept constants
        found = task.seen(inputs)
        np.testing.assert_allclose(found.numpy(), other.normalise(frames()), atol=1e-5)


def test_a_teacher_of_another_size_sees_them_resized() -> None:
    other = OTHER.model_copy(update={"size": (24, 20)})
    task = Distilled(classify(), teacher_of(other))
    found = task.seen(task.to_input(batch_of(frames()), None).images)
    levels = torch.from_numpy(frames()).permute(0, 3, 1, 2).double()
    resized = F.interpolate(levels, (24, 20), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(x)[:, None, None] for x in (other.mean, other.std))
    torch.testing.assert_close(found.double(), (resized / 255 - mean) / std, atol=1e-4, rtol=1e-4)


def test_the_teacher_sees_mixed_images_and_the_mean_where_they_are_padded() -> None:
    task = Distilled(classify(mixup=1.0), teacher_of(OTHER))
    key = Key(0, 0, np.arange(6))
    batch = task.to_input(batch_of(frames()), key)
    plain = torch.from_numpy(OTHER.normalise(frames()))
    share = batch.targets.share
    expected = share * plain + (1 - share) * plain.roll(-1, 0)
    torch.testing.assert_close(task.seen(batch.images), expected, atol=1e-5, rtol=1e-4)
    border = task.seen(torch.zeros(1, 3, *SIZE))[0, :, 0, 0]  # what padding puts in
    mean = (torch.tensor(OWN.mean) - torch.tensor(OTHER.mean)) / torch.tensor(OTHER.std)
    torch.testing.assert_close(border, mean)


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_the_loss_is_shared_between_labels_and_teacher(
    tmp_path: Path, kind: Any, weight: float
) -> None:
    teacher = read_teacher(write(tmp_path / "t.safetensors"), CLASSES, 3)
    task = Distilled(classify(loss=Loss(kind, 0.1)), teacher, weight, 3.0)
    student = network(2)
    batch = task.to_input(batch_of(frames()), None)
    terms = task.losses(student, batch)
    assert list(terms) == ["loss", "accuracy", "distill_loss"]
    assert not terms["accuracy"].requires_grad
    found = terms["loss"] + terms["distill_loss"]
    found_grads = torch.autograd.grad(found, list(student.parameters()))

    peer = network(1).eval()  # what was written
    logits = student(batch.images)
    with torch.no_grad():
        p = (peer(batch.images) / 3).softmax(1)
    soft = 9 * F.kl_div((logits / 3).log_softmax(1), p, reduction="batchmean")
    hard = task.task.losses(student, batch)["loss"]
    torch.testing.assert_close(terms["distill_loss"], weight * soft)
    torch.testing.assert_close(found, (1 - weight) * hard + weight * soft)
    expected = torch.autograd.grad((1 - weight) * hard + weight * soft, list(student.parameters()))
    for a, b in zip(found_grads, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_the_teacher_does_not_change(tmp_path: Path) -> None:
    """No gradients, no statistics of its batch norm."""
    teacher = read_teacher(write(tmp_path / "t.safetensors"), CLASSES, 3)
    before = {k: v.clone() for k, v in teacher.net.state_dict().items()}
    task, student = Distilled(classify(), teacher), network(2)
    for _ in range(2):
        terms = task.losses(student, task.to_input(batch_of(frames()), None))
        (terms["loss"] + terms["distill_loss"]).backward()
    assert not teacher.net.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.net.parameters())
    assert all(p.grad is not None for p in student.parameters())
    for key, value in teacher.net.state_dict().items():
        assert torch.equal(value, before[key])


def test_learning_from_oneself_changes_nothing() -> None:
    net = network(3).eval()
    task = Distilled(classify(), teacher_of(OWN, net), 1.0, 2.0)
    terms = task.losses(net, task.to_input(batch_of(frames()), None))
    assert terms["distill_loss"].item() == pytest.approx(0, abs=1e-5)
    assert terms["loss"].item() == 0


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    order = (2, 0, 1)
    net = network(1)
    shuffled = network(1)
    with torch.no_grad():
        shuffled.fc.weight.copy_(net.fc.weight[list(order)])
        shuffled.fc.bias.copy_(net.fc.bias[list(order)])
    names = tuple(CLASSES[i] for i in order)
    same = [
        read_teacher(write(tmp_path / "a.safetensors", net=net), CLASSES, 3),
        read_teacher(write(tmp_path / "b.safetensors", classes=names, net=shuffled), CLASSES, 3),
    ]
    terms = []
    for teacher in same:
        task = Distilled(classify(), teacher)
        terms.append(task.losses(network(2), task.to_input(batch_of(frames()), None)))
    assert torch.equal(terms[0]["distill_loss"], terms[1]["distill_loss"])
    wrong = dataclasses.replace(same[1], order=(0, 1, 2))
    task = Distilled(classify(), wrong)
    other = task.losses(network(2), task.to_input(batch_of(frames()), None))
    assert not torch.equal(terms[0]["distill_loss"], other["distill_loss"])


def test_evaluation_is_the_tasks_own() -> None:
    task = classify()
    distilled, net = Distilled(task, teacher_of(OTHER)), network(2).eval()
    batch = distilled.to_input(batch_of(frames()), None)
    with torch.inference_mode():
        assert np.array_equal(distilled.predict(net, batch), task.predict(net, batch))
    assert type(distilled.evaluator()) is type(task.evaluator())


# --- what cannot be a teacher -----------------------------------------------------------------


def refusal(path: Path | str, classes: tuple[str, ...] = CLASSES, channels: int = 3) -> str:
    with pytest.raises(InputError) as error:
        read_teacher(path, classes, channels)
    assert len(str(error.value).splitlines()) <= 3
    return str(error.value)


def test_a_teacher_must_fit(tmp_path: Path) -> None:
    path = write(tmp_path / "t.safetensors")
    assert "has no class dog" in refusal(path, (*CLASSES, "dog"))
    assert "It has 3 classes, the data 4" in refusal(path, (*CLASSES, "dog"))
    assert "has a class that the data lacks, bee" in refusal(path, ("ant", "cat"))
    assert "takes 3 channels, the network 1" in refusal(path, channels=1)
    odd = write(tmp_path / "odd.safetensors", classes=("ant", "bee", "\x1b[2J"))
    assert r"\x1b[2J" in refusal(odd)
    bare = tmp_path / "bare.safetensors"
    save_weights(bare, create_model("resnet20", num_classes=3), None)
    assert "it has no card" in refusal(bare)
    assert "no such file or run" in refusal("nowhere.safetensors")


def test_a_digest_is_of_all_that_a_teacher_says(tmp_path: Path) -> None:
    def digest(**about: Any) -> str:
        return read_teacher(write(tmp_path / "t.safetensors", **about), CLASSES, 3).digest

    first = digest()
    assert first == digest()
    changed = [digest(seed=2), digest(preprocess=OTHER), digest(classes=("bee", "ant", "cat"))]
    assert len({first, *changed}) == 4


# --- a run ------------------------------------------------------------------------------------


GIVEN: dict[str, Any] = {
    "model.name": "resnet20",
    "model.architecture.depths": [1, 1, 1],
    "model.architecture.width": 0.25,
    "schedule.length": "3 epochs",
    "threads": 1,
    "batch_size": 4,
    "checkpoint_every": "2 steps",
    "augment.mixup": 0.2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("images"), CLASSES, n=6)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Of another size, normalisation and order of classes than the data's."""
    preprocess = OTHER.model_copy(update={"size": (24, 24)})
    return write(tmp_path / "teacher.safetensors", 1, ("cat", "ant", "bee"), preprocess)


class Heard(TrainingProgress):
    """What was said; at a step, if asked, Ctrl-C."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__(quiet=True)
        self.stop, self.lines = stop, list[str]()

    def say(self, text: str) -> None:
        self.lines.append(text)

    def step(self, step: int, tally: Any) -> None:
        if step == self.stop:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_with_a_teacher_goes_on_as_if_it_had_not_stopped(
    data: Path, teacher: Path, tmp_path: Path, precision: str
) -> None:
    given = GIVEN | {"distill.model": str(teacher), "precision": precision}
    heard = Heard()
    whole = start(str(data), given, tmp_path / "whole", heard).run
    assert any(
        "50% of the loss; images of 16 px are resized to its 24 px" in x for x in heard.lines
    )
    with pytest.raises(Interrupted):
        start(str(data), given, tmp_path / "cut", Heard(5))
    cut = resume(tmp_path / "cut", Heard()).run
    one, two = (read_state(run / "last.safetensors")[0] for run in (whole, cut))
    assert all(torch.equal(one[key], two[key]) for key in one)
    timed = {"seconds", "images_per_second", "waiting", "memory_mib"}
    tables = [
        [
            {k: v for k, v in json.loads(line).items() if k not in timed}
            for line in (run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in (whole, cut)
    ]
    assert tables[0] == tables[1]
    assert all(row["train_distill_loss"] > 0 for row in tables[0])

    state, _ = checkpoint.newest(whole)
    net, card, _ = load_model(whole)
    assert state["loop"]["model"].keys() == net.state_dict().keys()  # the learner's alone
    assert card is not None
    assert card.provenance["teacher"] == read_teacher(teacher, card.classes, 3).digest
    plain = start(
        str(data),
        GIVEN | {"precision": precision},
        tmp_path / "plain",
        TrainingProgress(quiet=True),
    ).run
    without = read_state(plain / "last.safetensors")[0]
    assert not torch.equal(one["fc.weight"], without["fc.weight"])


def test_a_resume_with_another_teacher_is_refused(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    given = GIVEN | {"distill.model": str(teacher)}
    with pytest.raises(Interrupted):
        start(str(data), given, tmp_path / "run", Heard(3))
    kept = teacher.read_bytes()
    write(teacher, 2, ("cat", "ant", "bee"), OTHER.model_copy(update={"size": (24, 24)}))
    with pytest.raises(InputError, match="is another than when the run began"):
        resume(tmp_path / "run", Heard())
    teacher.unlink()
    with pytest.raises(InputError, match="no such file or run"):
        resume(tmp_path / "run", Heard())
    teacher.write_bytes(kept)
    assert resume(tmp_path / "run", Heard()).metrics


def test_a_run_is_a_teacher(data: Path, tmp_path: Path) -> None:
    first = call("train", data, *QUICK, "--out", tmp_path / "first")
    assert first.code == 0, first.err
    flags = [*QUICK, f"--set=distill.model={tmp_path / 'first'}", "--set=distill.weight=1"]
    second = call("train", data, *flags, "--out", tmp_path / "second", "--json")
    assert second.code == 0, second.err
    assert f"teacher {tmp_path / 'first'}: 100% of the loss" in second.err
    assert "resized" not in second.err.partition("teacher")[2].partition("\n")[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["distill.model=DATA/nothing"], "no such file or run"),
        (["distill.model=TEACHER", "data.channels=1"], "takes 3 channels, the network 1"),
        (["distill.model=TEACHER", "distill.weight=2"], "distill.weight = 2"),
        (["bce_threshold=0.2"], "bce_threshold: of the loss bce, not ce"),
        (["data.crop_ratio=0.9", "data.resize=squash"], "data.crop_ratio: of data.resize=crop"),
        (
            ["distill.model=TEACHER", "model.weights=TEACHER", "model.freeze=all"],
            "distill.model: kept features are no images for a teacher",
        ),
        (
            ["augment.repeats=3", "model.weights=TEACHER", "model.freeze=all"],
            "augment.repeats: kept features are of one view of each image",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_run_is_begun(
    data: Path, teacher: Path, tmp_path: Path, settings: list[str], said: str
) -> None:
    filled = [s.replace("TEACHER", str(teacher)).replace("DATA", str(data)) for s in settings]
    found = call(
        "train", data, "--threads=1", "--workers=0", *(f"--set={s}" for s in filled),
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert found.code == 2, found.err
    assert said in " ".join(found.error)
    assert len(found.error) <= 3
    assert not (tmp_path / "run").exists()


def test_copies_thresholds_and_another_crop_train(data: Path, tmp_path: Path) -> None:
    """And a model is used at the crop that its run asked for."""
    flags = [*QUICK, "--recipe=rsb-a2", "--batch-size=6", "--set=data.size=12"]
    found = call("train", data, *flags, "--out", tmp_path / "run")
    assert found.code == 0, found.err
    _, card, _ = load_model(tmp_path / "run")
    assert card is not None
    assert (card.preprocess.size, card.preprocess.short_side) == ((12, 12), 12)
    wider = call(
        "train", data, *QUICK, f"--weights={tmp_path / 'run'}", "--set=data.crop_ratio=0.75",
        "--out", tmp_path / "wider",
    )  # fmt: skip
    assert wider.code == 0, wider.err
    _, card, _ = load_model(tmp_path / "wider")
    assert card is not None
    assert card.preprocess.short_side == 16
