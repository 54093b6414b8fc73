"""The configuration: every key, every refusal, and the recipes."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from torchvision.models import ResNet50_Weights

from commands import call
from skipway.config import (
    FLAGS,
    RunConfig,
    flag_of,
    from_flags,
    keys,
    merge,
    minutes_of,
    parse_setting,
    parse_settings,
    plain,
    resolve,
    split_duration,
)
from skipway.errors import InputError
from skipway.images import plain_preprocess
from skipway.recipes import RECIPES, recipe
from skipway.training.clock import Clock, Schedule
from skipway.training.plan import _check_effect, make_plan

BASE: dict[str, Any] = {"data_path": "x", "recipe": "modern"}

# Every key with a value that is not its default, as a user writes it, and what it becomes.
EXAMPLES: dict[str, tuple[str, Any]] = {
    "recipe": ("finetune", "finetune"),
    "task": ("instance", "instance"),
    "detector.head": ("fcos", "fcos"),
    "detector.neck": ("c4", "c4"),
    "detector.version": ("2", 2),
    "detector.norm": ("group", "group"),
    "detector.frozen_eps": ("0", 0.0),
    "detector.finest": ("c3", "c3"),
    "detector.channels": ("128", 128),
    "detector.anchor_scales": ("[4, 8]", (4.0, 8.0)),
    "detector.anchor_ratios": ("[1, 2]", (1.0, 2.0)),
    "detector.candidates_train": ("500", 500),
    "detector.candidates_test": ("400", 400),
    "detector.proposals_train": ("300", 300),
    "detector.proposals_test": ("200", 200),
    "detector.rois": ("64", 64),
    "detector.box_width": ("256", 256),
    "detector.score_threshold": ("0.1", 0.1),
    "detector.nms": ("0.6", 0.6),
    "detector.detections": ("50", 50),
    "segmenter.head": ("fcn", "fcn"),
    "segmenter.norm": ("group", "group"),
    "segmenter.output_stride": ("16", 16),
    "segmenter.channels": ("128", 128),
    "segmenter.rates": ("[3, 6]", (3, 6)),
    "segmenter.auxiliary": ("true", True),
    "segmenter.widths": ("[64, 32, 16, 16, 8]", (64, 32, 16, 16, 8)),
    "model.name": ("resnet18", "resnet18"),
    "model.weights": ("w.safetensors", "w.safetensors"),
    "model.freeze": ("2", 2),
    "model.unfreeze": ("3 epochs", ("3 epochs",)),
    "model.architecture": ('{"width": 0.5}', {"width": 0.5}),
    "embedder.loss": ("arcface", "arcface"),
    "embedder.dim": ("64", 64),
    "embedder.pooling": ("gem", "gem"),
    "embedder.gem_p": ("4", 4.0),
    "embedder.margin": ("0.3", 0.3),
    "embedder.scale": ("16", 16.0),
    "embedder.per_class": ("8", 8),
    "data.val": ("0.2", 0.2),
    "data.on_bad": ("skip", "skip"),
    "data.size": ("64", 64),
    "data.take": ("500", 500),
    "data.channels": ("1", 1),
    "data.resize": ("letterbox", "letterbox"),
    "data.crop_ratio": ("0.95", 0.95),
    "data.resident": ("true", True),
    "data.views": ("2", 2),
    "data.preflight": ("false", False),
    "data.workers": ("0", 0),
    "augment.flip": ("true", True),
    "augment.flip_up": ("true", True),
    "augment.scale": ("[0.5, 2]", (0.5, 2.0)),
    "augment.pad_crop": ("4", 4),
    "augment.area": ("[0.25, 1]", (0.25, 1.0)),
    "augment.size": ("112", 112),
    "augment.repeats": ("3", 3),
    "augment.policy": ("rand", "rand"),
    "augment.operations": ("3", 3),
    "augment.magnitude": ("12", 12.0),
    "augment.magnitude_std": ("1.5", 1.5),
    "augment.operation_probability": ("0.5", 0.5),
    "augment.jitter": ("0.4", 0.4),
    "augment.erase": ("0.25", 0.25),
    "augment.mixup": ("0.2", 0.2),
    "augment.cutmix": ("1", 1.0),
    "augment.pixel_mean": ("true", True),
    "optim.kind": ("muon", "muon"),
    "optim.lr": ("1e-3", 1e-3),
    "optim.muon_lr": ("0.1", 0.1),
    "optim.muon_norm": ("true", True),
    "optim.betas": ("[0.8, 0.99]", (0.8, 0.99)),
    "optim.eps": ("1e-8", 1e-8),
    "optim.momentum": ("0", 0.0),
    "optim.nesterov": ("true", True),
    "optim.weight_decay": ("0", 0.0),
    "optim.decay_all": ("false", False),
    "optim.head_lr": ("10", 10.0),
    "optim.stage_decay": ("0.5", 0.5),
    "optim.clip": ("1", 1.0),
    "schedule.kind": ("one-cycle", "one-cycle"),
    "schedule.length": ("5 epochs", "5 epochs"),
    "schedule.minutes": ("40", 40.0),
    "schedule.warmup": ("10 %", "10 %"),
    "schedule.warmup_lr": ("0.01", 0.01),
    "schedule.milestones": ('["10 steps", "50 %"]', ("10 steps", "50 %")),
    "schedule.factor": ("0.2", 0.2),
    "schedule.power": ("3", 3.0),
    "schedule.plateau_patience": ("4", 4),
    "schedule.threshold": ("0.01", 0.01),
    "schedule.stop_patience": ("10", 10),
    "ema.decay": ("0.99", 0.99),
    "distill.model": ("runs/large", "runs/large"),
    "distill.weight": ("1", 1.0),
    "distill.temperature": ("2", 2.0),
    "batch_size": ("64", 64),
    "accumulate": ("4", 4),
    "label_smoothing": ("0.1", 0.1),
    "loss": ("bce", "bce"),
    "bce_threshold": ("0.2", 0.2),
    "focal_gamma": ("1.5", 1.5),
    "class_weights": ("balanced", "balanced"),
    "exact_norm": ("true", True),
    "seed": ("5", 5),
    "device": ("cuda:1", "cuda:1"),
    "precision": ("bf16", "bf16"),
    "compile": ("true", True),
    "threads": ("2", 2),
    "checkpoint_every": ("100 steps", "100 steps"),
    "keep_checkpoints": ("1", 1),
}


NEEDS: dict[str, dict[str, Any]] = {"detector.frozen_eps": {"detector.norm": "frozen"}} | {
    f"segmenter.{name}": {"segmenter.head": "deeplabv3"}
    for name in ("output_stride", "channels", "rates", "auxiliary")
}
"""What else must be set for a key to be."""


def value_at(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def refused(*layers: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        resolve(BASE, *layers)
    text = str(error.value)
    assert len(text.splitlines()) <= 3
    return text


def test_there_is_an_example_of_every_key() -> None:
    assert set(keys()) == EXAMPLES.keys() | {"data_path"}
    assert len(list(keys())) == len(set(keys()))


@pytest.mark.parametrize("key", EXAMPLES)
def test_every_key_can_be_set(key: str) -> None:
    text, expected = EXAMPLES[key]
    found_key, value = parse_setting(f"{key}={text}")
    assert found_key == key
    found = value_at(resolve(BASE | NEEDS.get(key, {}), {key: value}), key)
    assert found == expected
    assert type(found) is type(expected)
    if key not in ("task", "recipe"):
        assert value_at(resolve(BASE), key) != expected


@pytest.mark.parametrize("key", EXAMPLES)
def test_the_record_of_a_run_gives_the_same_configuration(key: str) -> None:
    """Through JSON, as run.json keeps it."""
    given = dict([parse_setting(f"{key}={EXAMPLES[key][0]}")])
    before = resolve(BASE | NEEDS.get(key, {}), given)
    assert RunConfig.model_validate_json(json.dumps(before.model_dump(mode="json"))) == before


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        resolve(BASE).__setattr__("seed", 3)


# --- parse_setting ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim.lr=0.05", ("optim.lr", 0.05)),
        (" optim.lr =0.05", ("optim.lr", 0.05)),
        ("optim.clip=none", ("optim.clip", None)),
        ("optim.clip=None", ("optim.clip", None)),
        ("optim.clip=null", ("optim.clip", None)),
        ("data.val=none", ("data.val", "none")),
        ("data.val=auto", ("data.val", "auto")),
        ("class_weights=none", ("class_weights", "none")),
        ("augment.policy=none", ("augment.policy", "none")),
        ("model.weights=a=b.pth", ("model.weights", "a=b.pth")),
        ("model.architecture.shortcut=B", ("model.architecture.shortcut", "B")),
        ("model.architecture.shortcut=none", ("model.architecture.shortcut", "none")),
        ("model.architecture.depths=[1, 2]", ("model.architecture.depths", [1, 2])),
        ("model.architecture.squeeze=16", ("model.architecture.squeeze", 16)),
    ],
)
def test_settings_are_parsed(text: str, expected: tuple[str, Any]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim.lr", "write key=value"),
        ("lr=0.1", "unknown key 'lr'. Did you mean 'optim.lr'?"),
        ("optimizer=adamw", "unknown key 'optimizer'. Did you mean 'optim.kind'?"),
        ("scheduler=step", "unknown key 'scheduler'. Did you mean 'schedule.kind'?"),
        ("optim.learning_rate=1", "unknown key 'optim.learning_rate'. Keys of optim: kind, lr,"),
        ("optim.name=adamw", "unknown key 'optim.name'. Keys of optim: kind, lr,"),
        ("schedule.name=cosine", "unknown key 'schedule.name'. Keys of schedule: kind,"),
        ("warmup=5 epochs", "Did you mean 'schedule.warmup'?"),
        ("kind=adamw", "Did you mean 'optim.kind' or 'schedule.kind'?"),
        ("foo=1", "unknown key 'foo'. Keys: recipe, task, model.…, detector.…,"),
        ("optim.nestrov=true", "Did you mean 'optim.nesterov'?"),
        ("batchsize=3", "Did you mean 'batch_size'?"),
        ("schedule.warm_up=1", "Did you mean 'schedule.warmup'?"),
        ("model=resnet20", "Did you mean 'model.name'?"),
        ("=5", "unknown key ''"),
        ("data_path=y", "DATA"),
        ("\x1b[31m=1", r"\x1b[31m"),
        ("a\nb", r"a\nb"),
    ],
)
def test_wrong_settings_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        parse_setting(text)
    assert said in str(error.value)
    assert "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)


# --- refusals ---------------------------------------------------------------------------------

BAD: list[tuple[str, Any]] = [
    ("model.freeze", 7),
    ("model.freeze", "most"),
    ("model.name", None),
    ("data.val", "abc"),
    ("data.val", "nan"),
    ("data.val", None),
    ("data.on_bad", "ignore"),
    ("data.size", 4),
    ("data.channels", 2),
    ("data.workers", -1),
    ("augment.flip", "perhaps"),
    ("augment.pad_crop", 1.5),
    ("augment.area", [0.9, 0.1]),
    ("augment.area", [0.0, 1.0]),
    ("augment.area", [0.5, 1.5]),
    ("augment.area", [0.5]),
    ("augment.area", 0.5),
    ("augment.size", 4),
    ("augment.repeats", 0),
    ("augment.operation_probability", 0),
    ("augment.magnitude_std", -1),
    ("data.crop_ratio", 1.1),
    ("data.crop_ratio", 0),
    ("bce_threshold", 1),
    ("distill.weight", 0),
    ("distill.weight", 1.5),
    ("distill.temperature", 0),
    ("distill.model", 5),
    ("optim.kind", "adam"),
    ("optim.stage_decay", 0),
    ("optim.lr", 0),
    ("optim.lr", math.nan),
    ("optim.lr", math.inf),
    ("optim.weight_decay", math.inf),
    ("optim.momentum", 1),
    ("optim.clip", 0),
    ("schedule.kind", "fast"),
    ("schedule.plateau_patience", -1),
    ("schedule.threshold", 1),
    ("schedule.stop_patience", 0),
    ("model.unfreeze", "0 epochs"),
    ("model.unfreeze", 3),
    ("model.unfreeze", ["1 epoch", "soon"]),
    ("schedule.length", 40),
    ("schedule.length", "40"),
    ("schedule.milestones", ["1 step", "x"]),
    ("schedule.milestones", "5 epochs"),
    ("ema.decay", 1),
    ("batch_size", 0),
    ("batch_size", 1e99),
    ("label_smoothing", 1),
    ("seed", -1),
    ("seed", 2**63),
    ("device", "cpux"),
    ("device", "gpu"),
    ("device", "xcuda:0"),
    ("device", "cuda:"),
    ("device", "cpu\n"),
    ("precision", "fp16"),
    ("threads", 0),
    ("checkpoint_every", "often"),
    ("checkpoint_every", "0m"),
    ("checkpoint_every", "0"),
    ("optim.betas", [0.9, 1]),
    ("task", "detec"),
    ("augment.scale", [2, 1]),
    ("detector.rois", 0),
    ("model.architecture", 5),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_a_bad_value_names_its_key(key: str, value: Any) -> None:
    text = refused({key: value})
    named, _, rest = text.partition(" = ")
    assert named in (key, f"{key}.1")  # a member of a list has a number
    assert ": " in rest
    assert "Value error" not in text


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optim.betas", [1], "[1]: give two numbers, from 0 to below 1, as [0.9,0.999]"),
        ("optim.betas", 0.9, "0.9: give two numbers, from 0 to below 1, as [0.9,0.999]"),
        ("augment.area", 0.25, "0.25: write the smallest and the largest, as [0.25,1]"),
        ("augment.area", [0.25], "[0.25]: write the smallest and the largest, as [0.25,1]"),
        ("augment.area", "all", "all: write the smallest and the largest, as [0.5,1]"),
        ("augment.scale", 2, "2: write the smallest and the largest, as [0.5,1]"),
        ("device", "mps", "mps: give cpu, cuda or cuda:N"),
        ("model.freeze", 9, "9: give 1 to 6, or all"),
        ("schedule.warmup", "100.5 %", "100.5 %: longer than the run; give 100 % at most"),
    ],
)
def test_what_to_give_is_told(key: str, value: Any, said: str) -> None:
    assert refused({key: value}) == f"{key} = {said}"


@pytest.mark.parametrize("name", ["multi-step", "MultiStepLR", "multistep"])
def test_multi_step_is_step(name: str) -> None:
    assert refused({"schedule.kind": name}) == (
        f"schedule.kind = {name}: its name here is step, with several schedule.milestones"
    )


def test_keys_of_a_group_that_do_not_fit_together_are_named() -> None:
    with pytest.raises(InputError, match=r"^detector\.rois: is of head faster-rcnn, "):
        resolve(BASE, {"detector.head": "retinanet", "detector.rois": 7})


def test_numbers_of_numpy_are_plain_ones() -> None:
    given = {"seed": np.int64(3), "optim.lr": np.float32(0.5), "augment.scale": (np.float32(1), 2)}
    found = plain(given | {"recipe": "x", "flag": np.bool_(True), "depths": np.arange(2)})
    assert json.loads(json.dumps(found)) == {
        "seed": 3, "optim.lr": 0.5, "augment.scale": [1.0, 2], "recipe": "x", "flag": True,
        "depths": [0, 1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"embedder.loss": "arcface"}, "embedder.loss: does nothing with task = classify; it is of "
         "embed\nLeave it out, or add --task embed."),
        ({"detector.rois": 7}, "it is of detect and instance\nLeave it out, or add --task detect."),
        ({"optim.muon_lr": 0.1}, "optim.kind = sgd; it is of muon\nLeave it out, or add --set "
         "optim.kind=muon."),
        ({"schedule.milestones": ["50 %"]}, "it is of step\nLeave it out, or add --set schedule."),
        ({"focal_gamma": 3.0}, "add --set loss=focal"),
        ({"schedule.kind": "step"}, "the rate never falls without schedule.milestones\nAdd --set"),
        ({"distill.weight": 0.7}, "does nothing without distill.model\nLeave it out, or add --set"),
        ({"optim.betas": [0.8, 0.9]}, "it is of adamw and lamb"),
        ({"task": ["detect"]}, "task = "),
        ({"optim.kind": ["adamw"]}, "optim.kind = "),
    ],
)  # fmt: skip
def test_what_would_do_nothing_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        make_plan("digits", given)


def test_parts_of_a_recipe_that_are_another_optimizers_go_with_it() -> None:
    plan = make_plan("digits", {"recipe": "speedrun-cifar", "optim.kind": "sgd"})
    assert plan.config.optim.kind == "sgd"


def test_what_is_as_usual_is_not_refused() -> None:
    make_plan("digits", {"embedder.loss": "proxy-anchor", "schedule.milestones": []})
    make_plan("digits", {"recipe": "he2015-cifar", "schedule.milestones": []})


def test_muon_keeps_norms_of_what_makes_vectors() -> None:
    given = {"task": "embed", "optim.kind": "muon", "optim.muon_norm": True}
    assert make_plan("digits", given).config.optim.muon_norm


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": "embed", "embedder.gem_p": 7.0}, "embedder.pooling = average; it is of gem"),
        ({"task": "embed", "embedder.loss": "triplet", "embedder.scale": 9.0}, "loss = triplet"),
        ({"task": "detect", "optim.head_lr": 3.0}, "it is of classify and embed"),
    ],
)
def test_what_would_do_nothing_for_a_task_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        _check_effect(resolve(BASE, given), given)


def test_several_parts_unfreeze_one_by_one() -> None:
    config = resolve(BASE, {"model.unfreeze": ["1 epoch", "10 %"]})
    assert config.model.unfreeze == ("1 epoch", "10 %")


def test_all_that_a_key_takes_is_told() -> None:
    text = refused({"data.val": "abc"})
    assert "number" in text
    assert "'auto' or 'none'" in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("5m", "5 minutes"),
        ("0.5 min", "0.5 minutes"),
        (200, "200 steps"),
        ("200", "200 steps"),
        ("2 epochs", "2 epochs"),
        ("5 %", "5 %"),
        ("1234567m", "1234567 minutes"),
        ("0.00001m", "0.00001 minutes"),
    ],
)
def test_checkpoints_by_time_steps_or_epochs(given: Any, expected: str) -> None:
    found = resolve(BASE, {"checkpoint_every": given}).checkpoint_every
    assert found == expected
    assert resolve(BASE, {"checkpoint_every": found}).checkpoint_every == found  # on a resume
    assert minutes_of(found) == (float(expected.split()[0]) if "minutes" in expected else None)


def test_a_number_alone_is_told_the_units() -> None:
    assert "5 epochs, 400 steps or 10 %" in refused({"schedule.length": 40})


def test_a_bad_value_is_shown_harmless_and_short() -> None:
    text = refused({"precision": "\x1b[2J" + "x" * 10_000})
    assert r"\x1b[2J" in text
    assert len(text) < 300


@pytest.mark.parametrize("key", ["optim.foo", "optim", "lr", "data", "model.architectures.width"])
def test_unknown_keys_are_refused_in_layers_too(key: str) -> None:
    """A mapping for a whole slice would silently drop what the recipe says of it."""
    assert f"unknown key {key!r}" in refused({key: {"lr": 1.0}})


# --- layers -----------------------------------------------------------------------------------


def test_later_layers_win() -> None:
    config = resolve(BASE, {"optim.lr": 1.0, "seed": 1}, {"optim.lr": 2.0, "optim.clip": 3.0})
    assert (config.optim.lr, config.optim.clip, config.seed) == (2.0, 3.0, 1)


def test_merging_leaves_the_layers_as_they_are() -> None:
    recipe_layer = {"model.architecture": {"width": 0.5}}
    found = merge(recipe_layer, {"model.architecture.squeeze": 16})
    assert found == {"model": {"architecture": {"width": 0.5, "squeeze": 16}}}
    assert recipe_layer == {"model.architecture": {"width": 0.5}}


@given(st.dictionaries(st.sampled_from(list(keys())), st.integers(), max_size=8))
def test_merging_nests_by_dots(layer: dict[str, int]) -> None:
    nested = merge(layer)
    for key, value in layer.items():
        place: Any = nested
        for part in key.split("."):
            place = place[part]
        assert place == value


# --- durations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5 epochs", (5.0, "epoch")),
        ("1 epoch", (1.0, "epoch")),
        ("0.5 epochs", (0.5, "epoch")),
        ("64000 steps", (64000.0, "step")),
        ("1step", (1.0, "step")),
        (" 10 % ", (10.0, "%")),
        ("2.5%", (2.5, "%")),
    ],
)
def test_durations(text: str, expected: tuple[float, str]) -> None:
    assert split_duration(text) == expected
    assert resolve(BASE, {"schedule.length": text}).schedule.length == text


@pytest.mark.parametrize(
    "text",
    ["", "5", "epochs", "-5 epochs", "5 minutes", "1e3 steps", "5 epochs 3 steps", "nan %", ".5 %"],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="write 5 epochs, 400 steps or 10 %"):
        split_duration(text)
    assert refused({"schedule.warmup": text}).startswith("schedule.warmup = ")


# --- flags ------------------------------------------------------------------------------------

GIVEN: dict[str, Any] = {
    "model": "resnet18",
    "recipe": "finetune",
    "epochs": 2.5,
    "minutes": 40.0,
    "batch_size": 8,
    "lr": 0.5,
    "seed": 3,
    "val": "0.25",
    "weights": "w.pth",
    "freeze": 1,
    "device": "cpu",
    "workers": 0,
    "threads": 1,
    "precision": "float32",
    "on_bad": "skip",
    "checkpoint_every": "5 minutes",
    "patience": 7,
    "task": "detect",
}


def test_every_flag_is_a_key() -> None:
    assert set(FLAGS.values()) <= set(keys())
    assert GIVEN.keys() == FLAGS.keys()
    config = resolve(BASE, from_flags(GIVEN))
    found = {flag: value_at(config, key) for flag, key in FLAGS.items()}
    assert found == GIVEN | {"epochs": "2.5 epochs", "val": 0.25}


@pytest.mark.parametrize(
    ("number", "length"),
    [(2.0, "2 epochs"), (3, "3 epochs"), ("4", "4 epochs"), (0.5, "0.5 epochs"),
     (1e-5, "0.00001 epochs"), (1e16, f"1{16 * '0'} epochs")],
)  # fmt: skip
def test_epochs_are_a_length(number: Any, length: str) -> None:
    given = from_flags({"epochs": number})
    assert given == {"schedule.length": length}
    assert resolve(BASE, given).schedule.length == length


@pytest.mark.parametrize("number", [0, -1.0, math.nan, math.inf, "2 epochs", []])
def test_epochs_that_are_none(number: Any) -> None:
    with pytest.raises(InputError, match=r"^--epochs .*: give a number above 0, without a unit$"):
        from_flags({"epochs": number})


def test_a_key_is_given_once() -> None:
    assert parse_settings(["seed=1", "optim.lr=2"]) == {"seed": 1, "optim.lr": 2}
    with pytest.raises(InputError, match=r"^--set optim\.lr: given twice"):
        parse_settings(["optim.lr=1", "seed=1", "optim.lr = 1"])


@pytest.mark.parametrize(
    ("key", "flag"),
    [
        ("schedule.length", "--epochs"),
        ("batch_size", "--batch-size"),
        ("ema.decay", "--set ema.decay"),
    ],
)
def test_keys_by_their_flags(key: str, flag: str) -> None:
    assert flag_of(key) == flag


def test_flags_that_were_not_given_say_nothing() -> None:
    assert from_flags(dict.fromkeys(FLAGS)) == {}
    assert from_flags({"seed": 0, "workers": 0}) == {"seed": 0, "data.workers": 0}


def test_val_as_text_or_number() -> None:
    for val, expected in (("none", "none"), ("auto", "auto"), ("0.1", 0.1), (0.1, 0.1), (1, 1.0)):
        assert resolve(BASE, from_flags({"val": val})).data.val == expected


def test_an_unknown_flag_suggests_the_nearest() -> None:
    with pytest.raises(InputError) as error:
        from_flags({"batchsize": 3})
    assert str(error.value) == "unknown setting 'batchsize'. Did you mean 'batch_size'?"


# --- recipes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_resolves(name: str) -> None:
    found = recipe(name)
    assert found.settings.keys() <= set(keys())
    config = resolve({"data_path": "x", "recipe": name}, found.settings)
    for key, value in found.settings.items():
        assert value_at(config, key) == value
    assert found.source
    assert found.expected


def test_the_recipe_of_2015_is_that_of_the_paper() -> None:
    """Section 4.2: batch 128, rate 0.1 divided by 10 at 32k and 48k, ended at 64k iterations,
    decay 1e-4, momentum 0.9, pad 4, crop, flip, per-pixel mean."""
    config = resolve({"data_path": "x", "recipe": "he2015-cifar"}, recipe("he2015-cifar").settings)
    assert config.batch_size == 128
    optim, schedule = config.optim, config.schedule
    assert (optim.lr, optim.momentum, optim.weight_decay) == (0.1, 0.9, 1e-4)
    assert optim.decay_all
    assert not optim.nesterov
    assert (schedule.kind, schedule.factor, schedule.length) == ("step", 0.1, "64000 steps")
    assert schedule.milestones == ("32000 steps", "48000 steps")
    augment = config.augment
    assert (augment.pad_crop, augment.flip, augment.pixel_mean) == (4, True, True)
    assert config.label_smoothing == config.ema.decay == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 2016, appendix: 400 iterations at 0.01, then as in 2015
        ("he2016-preact", {0: 0.01, 399: 0.01, 400: 0.1, 32_000: 0.01, 48_000: 0.001}),
        # 1605.07146, section 3: times 0.2 at 60, 120 and 160 of 200 epochs
        ("wrn", {0: 0.1, 60 * 390: 0.02, 120 * 390: 0.004, 160 * 390: 0.0008}),
        # 2110.00476, table 2: cosine after 5 epochs of warm-up
        ("rsb-a1", {5 * 390: 0.005, 600 * 390 - 1: 0.0}),
        ("rsb-a2", {5 * 390: 0.005, 300 * 390 - 1: 0.0}),
        ("rsb-a3", {5 * 390: 0.008, 39_000 - 1: 0.0}),
        # 2015, section 3.4, at the epochs of its reproductions
        ("he2015-imagenet", {0: 0.1, 30 * 390: 0.01, 60 * 390: 0.001}),
        # 1812.01187, section 3.1: 0.1 for 256 in proportion, from 0
        ("bag-of-tricks", {5 * 195 - 1: 0.2, 5 * 390: 0.4, 200 * 390 - 1: 0.0}),
        ("torchvision-v2", {5 * 390: 0.5, 600 * 390 - 1: 0.0}),
    ],
)
def test_a_recipe_has_the_papers_rates(name: str, expected: dict[int, float]) -> None:
    config = resolve({"data_path": "x", "recipe": name}, recipe(name).settings)
    clock = Clock.of(config.schedule.length, 390)
    schedule = Schedule(config.schedule, clock, config.optim.lr)
    epochs = {
        "wrn": 200, "rsb-a1": 600, "rsb-a2": 300, "rsb-a3": 100, "he2015-imagenet": 90,
        "bag-of-tricks": 200, "torchvision-v2": 600,
    }  # fmt: skip
    assert clock.total == (64_000 if name == "he2016-preact" else 390 * epochs[name])
    for step, rate in expected.items():
        assert schedule(step) == pytest.approx(rate, abs=1e-9), step


def settings_of(name: str) -> RunConfig:
    return resolve({"data_path": "x", "recipe": name}, recipe(name).settings)


@pytest.mark.parametrize(
    ("name", "decay", "smoothing", "threshold", "randaugment", "mixup", "repeats", "drop", "size"),
    [
        ("rsb-a1", 0.01, 0.1, None, "rand-m7-mstd0.5-inc1", 0.2, 3, 0.05, None),
        ("rsb-a2", 0.02, 0.0, 0.2, "rand-m7-mstd0.5-inc1", 0.1, 3, 0.05, None),
        ("rsb-a3", 0.02, 0.0, 0.2, "rand-m6-mstd0.5-inc1", 0.1, 1, 0.0, 160),
    ],
)
def test_strikes_back_is_its_table_2(
    name: str,
    decay: float,
    smoothing: float,
    threshold: float | None,
    randaugment: str,
    mixup: float,
    repeats: int,
    drop: float,
    size: int | None,
) -> None:
    config = settings_of(name)
    optim, augment = config.optim, config.augment
    assert (optim.kind, optim.weight_decay, optim.decay_all) == ("lamb", decay, False)
    assert (config.batch_size, config.loss, config.ema.decay) == (2048, "bce", 0)
    assert (config.label_smoothing, config.bce_threshold) == (smoothing, threshold)
    assert (augment.mixup, augment.cutmix, augment.repeats) == (mixup, 1.0, repeats)
    assert (augment.area, augment.flip, augment.erase) == ((0.08, 1.0), True, 0)
    assert config.model.architecture.get("drop_path", 0.0) == drop
    assert (config.data.size, augment.size) == (224, size)
    peer = rand_augment_transform(randaugment, {"img_mean": (124, 116, 104)})
    assert (augment.policy, augment.operations) == ("rand", peer.num_layers)
    for operation in peer.ops:
        assert augment.magnitude == 3 * operation.magnitude
        assert augment.magnitude_std == 3 * operation.magnitude_std
        assert augment.operation_probability == operation.prob


def test_torchvisions_recipe_is_that_of_its_weights() -> None:
    """references/classification of torchvision, as the blog and the weights' entry tell."""
    config = settings_of("torchvision-v2")
    optim, augment = config.optim, config.augment
    assert (optim.kind, optim.momentum, optim.nesterov) == ("sgd", 0.9, False)
    assert (optim.weight_decay, optim.decay_all, config.batch_size) == (2e-5, False, 1024)
    assert (config.loss, config.label_smoothing) == ("ce", 0.1)
    assert (augment.mixup, augment.cutmix, augment.erase) == (0.2, 1.0, 0.1)
    assert (augment.policy, augment.repeats, augment.size) == ("trivial", 4, 176)
    # its utils: alpha = (1 - 0.99998) * batch * steps / epochs, every 32 steps
    alpha = (1 - 0.99998) * 1024 * 32 / 600
    assert 1 - config.ema.decay**32 == pytest.approx(alpha, rel=0.01)


def test_bag_of_tricks_is_that_of_the_paper() -> None:
    config = settings_of("bag-of-tricks")
    optim, augment = config.optim, config.augment
    assert (optim.lr, config.batch_size) == (0.1 * 1024 / 256, 1024)
    assert (optim.nesterov, optim.decay_all, optim.weight_decay) == (True, False, 1e-4)
    assert (config.label_smoothing, augment.mixup) == (0.1, 0.2)
    assert config.model.architecture == {"zero_init_last": True}


def test_images_are_cut_as_by_their_authors() -> None:
    """The short side of which the centre is taken, by timm and torchvision."""
    shorts = {}
    for name in ("rsb-a2", "torchvision-v2", "he2015-imagenet"):
        data = settings_of(name).data
        assert data.size is not None
        shorts[name] = plain_preprocess(data.size, 3, crop_ratio=data.crop_ratio).short_side
    assert shorts["rsb-a2"] == create_transform(224, crop_pct=0.95).transforms[0].size == 235
    weights = ResNet50_Weights.IMAGENET1K_V2
    assert [shorts["torchvision-v2"]] == weights.transforms().resize_size == [232]
    assert [shorts["he2015-imagenet"]] == ResNet50_Weights.IMAGENET1K_V1.transforms().resize_size


@pytest.mark.parametrize("size", [32, 64, 65, 160, 224, 299])
@pytest.mark.parametrize("ratio", [0.1, 0.6, 0.875, 0.95, 1.0])
def test_the_crop_ratio_is_timms(size: int, ratio: float) -> None:
    peer = create_transform(size, crop_pct=ratio).transforms[0].size
    found = plain_preprocess(size, 3, crop_ratio=ratio).short_side
    assert found == (peer if isinstance(peer, int) else max(peer))


def test_a_crop_ratio_of_two_sides_gives_both_back() -> None:
    for short in range(224, 512):
        assert plain_preprocess(224, 3, crop_ratio=224 / short).short_side == short


def test_the_help_names_every_recipe() -> None:
    found = call("train", "--help")
    told = re.sub(r"[^a-z0-9-]+", " ", found.out).split()
    assert set(RECIPES) <= set(told)


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(InputError) as error:
        recipe("he2015-cifer")
    assert "Did you mean 'he2015-cifar'?" in str(error.value)
    assert "finetune" in str(error.value)
