"""What the user left open is chosen here from the data and the machine, each with its reason."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from skipway.architecture import (
    FIELDS_FROM_DATA,
    Architecture,
    architecture,
    count,
    name_of,
    replaced,
)
from skipway.card import Card
from skipway.config import RunConfig, flag_of, resolve
from skipway.data import DataSet, open_data
from skipway.data.feed import batches
from skipway.data.labels import check_classes
from skipway.data.objects import AnnotatedSplit, open_objects
from skipway.data.pixels import open_pixels
from skipway.data.split import taken
from skipway.dialects import State, guess_architecture, translate
from skipway.errors import InputError, harmless, nearest
from skipway.heads import HEADS
from skipway.images import SMALL_IMAGE, Preprocess, plain_preprocess
from skipway.machine import free_memory, free_shared_memory
from skipway.recipes import recipe
from skipway.tasks.distil import Teacher, read_teacher
from skipway.training.choices import CHOICES, Choice
from skipway.training.clock import Clock
from skipway.training.distributed import ALONE, World
from skipway.weights import read_state

_FIELDS = "model.architecture."


@dataclass(frozen=True)
class Plan:
    """A run that has not begun: its configuration, data, network, and what was chosen."""

    config: RunConfig
    data: DataSet
    architecture: Architecture
    preprocess: Preprocess | None
    """That of the weights that the run starts from; None is settled by the images."""
    choices: tuple[Choice, ...]
    teacher: Teacher | None = None
    """The network that is learned from, where there is one."""


def make_plan(data_path: str, given: Mapping[str, Any], world: World = ALONE) -> Plan:
    """Resolve a run from the data's path and the settings that were given, by dotted key.

    world: the processes that will train it, each with a batch of its own.
    Given settings always win over the recipe, the recipe over what is chosen here. Raises
    InputError for data, weights or settings that cannot be used.
    """
    given = {key: value for key, value in given.items() if value != "auto"}
    resolve({"recipe": ""}, given, {"data_path": data_path})  # before any of it is looked at
    weights = given.get("model.weights")
    choices = [_recipe_for(given.get("task", "classify"), weights is not None)]
    name = str(given.get("recipe", choices[0].value))
    if "schedule.minutes" in given and "schedule.length" in given:
        raise InputError("--minutes: plans the length of the run; leave out --epochs")
    of_recipe = _fitting(recipe(name).settings, given)
    shared: list[Choice] = []
    if world.size > 1 and "batch_size" in of_recipe and "batch_size" not in given:
        whole = of_recipe.pop("batch_size")
        why = f"{whole:,} of the recipe, over {world.size} processes"
        shared = [Choice("batch_size", -(-whole // world.size), why)]
    settings = of_recipe | given | {"data_path": data_path}

    def config() -> RunConfig:
        return resolve({c.key: c.value for c in choices}, settings)

    opening = config()  # wrong settings are told before the data is looked at
    _check_recipe(name, opening.task)
    _check_fields(opening.model.architecture)
    check_device(opening.device)
    if "task" not in given:
        check_classes(data_path)
    data = opened(opening)
    if opening.task == "embed":
        _check_queries(data)
    card, base = None, None
    if weights is not None:
        state, card = read_state(weights)
        base = _base(opening, state, card)
        choices += _from_weights(str(weights), card, base, opening.task)
    heads = _heads_of(str(weights), card, opening)
    choices += heads + shared
    # heads that come with weights are taken whole
    settled = {choice.key.partition(".")[0] for choice in [*heads, *shared]}
    for choose in CHOICES[opening.task]:
        chosen = choose(data, config(), world)
        choices += [choice for choice in chosen if choice.key.partition(".")[0] not in settled]
    choices += _epsilon_of(str(weights), card, config())
    jitters = of_recipe.get("augment.jitter") and "augment.jitter" not in given
    if jitters and config().data.channels == 4:
        del settings["augment.jitter"]
        why = "of colours, and 4 channels are not colours alone"
        choices.append(Choice("augment.jitter", 0.0, why))
    final = config()
    kept = tuple(c for c in choices if c.key not in settings)
    _check_augment(final)
    _check_targets(final)
    _check_task(final, card)
    _check_effect(final, given)
    check_compile(final, world)
    if world.size > 1:
        _check_alone(final, len(data.splits["train"]), world.size)
    arch = _architecture(final, base, len(data.learned))
    if final.task not in _WHOLE and arch.stem == "whitened" and base is None:
        raise InputError(
            f"--model: a whitened stem is made from images of one size, {final.task} has others\n"
            "Take another --model."
        )
    if "schedule.warmup" in given:  # a recipe's may be of a longer run
        _check_warmup(final, len(data.splits["train"]), world)
    _check_watched(final, data)
    _check_unfreeze(final, len(arch.depths))
    _check_optimizer(final, arch)
    check_batch(final, arch, len(data.splits["train"]))
    check_workers(final, data, world)
    _check_memory(arch)
    preprocess = _preprocess(final, arch, card) if base is not None else None
    return Plan(final, data, arch, preprocess, kept, teacher_of(final, data))


def _recipe_for(task: Any, pretrained: bool) -> Choice:
    """The recipe where none was given."""
    if task in HEADS:
        name = "detect" if task in _OBJECTS else task
        return Choice("recipe", name, f"the task is {task}")
    if pretrained:
        return Choice("recipe", "finetune", "starts from given weights")
    return Choice("recipe", "modern", "starts from scratch")


def opened(config: RunConfig) -> DataSet:
    """The data of a run, as its task reads it. Raises InputError."""
    if config.task in _WHOLE:
        unseen = config.task == "embed"
        found = open_data(config.data_path, config.data.val, config.seed, unseen)
        return taken(found, config.data.take, config.seed) if config.data.take else found
    if config.task == "segment":
        return open_pixels(config.data_path, config.data.val, config.seed, config.data.on_bad)
    return open_objects(
        config.data_path,
        config.data.val,
        config.seed,
        config.data.on_bad,
        masks=config.task == "instance",
    )


def teacher_of(config: RunConfig, data: DataSet) -> Teacher | None:
    """The network that the run learns from, where it has one. Raises InputError."""
    if config.distill.model is None:
        return None
    return read_teacher(config.distill.model, data.classes, config.data.channels)


def _check_recipe(name: str, task: str) -> None:
    """Raise InputError for a recipe of another task."""
    tasks = recipe(name).tasks
    if tasks and task not in tasks:
        raise InputError(
            f"--recipe {name}: is for --task {' or '.join(tasks)}, not {task}\n"
            "Give that --task too, or leave out --recipe."
        )


def _check_fields(fields: Mapping[str, Any]) -> None:
    """Raise InputError for fields of the architecture that are not there, or come from the data."""
    known = [f.name for f in dataclasses.fields(Architecture) if f.name not in FIELDS_FROM_DATA]
    for key in fields:
        if key in FIELDS_FROM_DATA:
            raise InputError(f"model.architecture.{key}: comes from the data and cannot be set")
        if key not in known:
            hint = nearest(key, known, _FIELDS) or f" Its keys: {', '.join(known)}."
            raise InputError(f"--set: unknown key {harmless(_FIELDS + key)!r}.{hint}")


def _check_warmup(config: RunConfig, images: int, world: World) -> None:
    """Raise InputError for a warm-up that the run is too short for."""
    length, warmup = config.schedule.length, config.schedule.warmup
    with contextlib.suppress(ValueError):  # of a length in %, which is refused where it is used
        clock = Clock.of(length, len(batches(images, config.batch_size, world.size)))
        if (steps := clock.steps(warmup)) > clock.total:
            raise InputError(
                f"schedule.warmup = {warmup}: longer than the run; it takes {steps:,} steps, "
                f"the run has {clock.total:,}\nGive a shorter one, such as 10 %, or more --epochs."
            )


def _check_augment(config: RunConfig) -> None:
    """Raise InputError for augmentation that the other settings do not allow."""
    if config.data.resident and config.augment.area is not None:
        raise InputError(
            "data.resident: random crops (augment.area) need the whole images; drop one"
        )
    one_by_one = config.augment.policy != "none" or config.augment.jitter > 0
    if config.data.resident and one_by_one:
        raise InputError(
            "data.resident: augment.policy and augment.jitter change image by image\n"
            "Leave out data.resident, or these two."
        )
    if config.data.channels == 4 and one_by_one:
        raise InputError("augment.policy, augment.jitter: for images of 1 or 3 channels")
    if config.on_features and (config.augment.mixup or config.augment.cutmix):
        raise InputError(
            "augment.mixup, augment.cutmix: kept features are of single images\n"
            "Drop them, or compute the features in each epoch: --set data.views=0"
        )
    whole = config.task in _WHOLE  # a segmenter's crops are of the scaled image
    if config.augment.size is not None and config.augment.area is None and whole:
        raise InputError("augment.size: the size of random crops; set augment.area too")
    if config.augment.pixel_mean and config.model.weights is not None:
        raise InputError("augment.pixel_mean: the weights come with a preprocessing of their own")
    if config.augment.pixel_mean and not config.data.resident:
        raise InputError("augment.pixel_mean: only for images held in memory (data.resident=true)")


def _check_targets(config: RunConfig) -> None:
    """Raise InputError for what is learned, or shown, in a way that other settings do not allow."""
    if config.on_features:
        for key, asked, why in (
            ("augment.repeats", config.augment.repeats > 1, "are of one view of each image"),
            ("distill.model", config.distill.model is not None, "are no images for a teacher"),
        ):
            if asked:
                raise InputError(
                    f"{key}: kept features {why}\n"
                    "Drop it, or compute the features in each epoch: --set data.views=0"
                )
    if config.bce_threshold is not None and config.loss != "bce":
        raise InputError(f"bce_threshold: of the loss bce, not {config.loss}; set loss=bce too")
    if config.data.crop_ratio is not None and config.data.resize != "crop":
        raise InputError(
            f"data.crop_ratio: of data.resize=crop; {config.data.resize} cuts nothing off"
        )


_LABELS, _PIXELS, _OBJECTS = ("classify",), ("segment",), ("detect", "instance")
_WHOLE = (*_LABELS, "embed")
"""Tasks of an image as a whole."""
_TASKS = {
    "loss": _LABELS + _PIXELS,
    "focal_gamma": _LABELS + _PIXELS,
    "class_weights": _LABELS + _PIXELS,
    "label_smoothing": _LABELS + _PIXELS,
    "augment.size": _WHOLE + _PIXELS,
    "augment.scale": _OBJECTS + _PIXELS,
    "augment.flip_up": _OBJECTS + _PIXELS,
} | dict.fromkeys(
    (
        "bce_threshold", "distill.model", "augment.repeats", "augment.mixup", "augment.cutmix",
        "compile",
    ),
    _LABELS,
) | dict.fromkeys(
    (
        "exact_norm", "augment.area", "augment.pad_crop", "augment.policy", "augment.erase",
        "augment.pixel_mean", "data.resident", "data.take",
    ),
    _WHOLE,
)  # fmt: skip
"""Settings that not every task has, and whose they are."""
_LOSSES = {"classify": ("ce", "bce", "focal"), "segment": ("ce", "focal", "ce+dice")}


def _check_task(config: RunConfig, card: Card | None) -> None:
    """Raise InputError for settings that the task does not have."""
    task = config.task
    for key, tasks in _TASKS.items():
        value, usual = _setting(config, key), _setting(_USUAL, key)
        if task not in tasks and value not in (usual, False):
            raise InputError(f"{key} = {harmless(value)}: not of the task {task}")
    losses = _LOSSES.get(task, (config.loss,))
    if config.loss not in losses:
        raise InputError(f"loss = {config.loss}: {task} has {', '.join(losses)}")
    if task in HEADS and config.on_features:
        raise InputError(f"--freeze all: the heads of {task} train on features of each image anew")
    if task in _WHOLE:
        if config.data.resize == "fit":
            raise InputError(f"data.resize: the task {task} takes crop, letterbox or squash")
        k, batch = config.embedder.per_class, config.batch_size
        if task == "embed" and k and (batch % k or batch < 2 * k):
            raise InputError(
                f"batch_size = {batch}: of {k} images of each class (embedder.per_class); take a "
                f"multiple of {k}, {2 * k} at least"
            )
        if config.accumulate > 1 and compares_images(config):
            raise InputError(
                f"accumulate = {config.accumulate}: {config.embedder.loss} compares the images of "
                "a batch with one another\nLeave it out, and take a smaller --batch-size where "
                "memory asks for it."
            )
        return
    if config.data.resize != "fit":
        raise InputError(f"data.resize = {config.data.resize}: the task {task} takes fit")
    masks = config.detector.head == "mask-rcnn"
    if task in _OBJECTS and (task == "instance") != masks:
        needs = "mask-rcnn" if task == "instance" else "a head without masks"
        raise InputError(f"detector.head = {config.detector.head}: {task} needs {needs}")
    head = HEADS[task]
    norm = getattr(config, head).norm
    if norm == "group" and config.model.weights is not None and _norm_of(card) != "group":
        raise InputError(
            f"{head}.norm = group: the weights' network was trained with batch norms\n"
            "Leave it out, or train from scratch, without --weights."
        )
    if norm == "frozen" and config.model.weights is None:
        raise InputError(f"{head}.norm = frozen: only of a network that starts from --weights")


_EFFECT = (
    ("detector", "task", _OBJECTS),
    ("segmenter", "task", _PIXELS),
    ("embedder", "task", ("embed",)),
    ("embedder.gem_p", "embedder.pooling", ("gem",)),
    ("embedder.scale", "embedder.loss", ("proxy-anchor", "arcface")),
    ("schedule.milestones", "schedule.kind", ("step",)),
    ("schedule.factor", "schedule.kind", ("step", "plateau")),
    ("schedule.power", "schedule.kind", ("polynomial",)),
    ("schedule.plateau_patience", "schedule.kind", ("plateau",)),
    ("schedule.threshold", "schedule.kind", ("plateau",)),
    ("schedule.warmup_lr", "schedule.warmup", ()),
    ("optim.muon_lr", "optim.kind", ("muon",)),
    ("optim.momentum", "optim.kind", ("sgd", "muon")),
    ("optim.nesterov", "optim.kind", ("sgd",)),
    ("optim.betas", "optim.kind", ("adamw", "lamb")),
    ("optim.eps", "optim.kind", ("adamw", "lamb")),
    ("optim.head_lr", "task", _WHOLE),
    ("focal_gamma", "loss", ("focal",)),
    ("augment.operations", "augment.policy", ("rand",)),
    ("augment.magnitude", "augment.policy", ("rand",)),
    ("augment.magnitude_std", "augment.policy", ("rand",)),
    ("augment.operation_probability", "augment.policy", ("rand",)),
    ("distill.weight", "distill.model", ()),
    ("distill.temperature", "distill.model", ()),
)
"""Settings, or groups of them, and the values of another one beside which they do something; () is
any but the usual one."""


def _check_effect(config: RunConfig, given: Mapping[str, Any]) -> None:
    """Raise InputError for a given setting that would do nothing, alone or beside others."""
    named = "schedule.milestones" in given  # none are a choice too
    if config.schedule.kind == "step" and not config.schedule.milestones and not named:
        raise InputError(
            "schedule.kind = step: the rate never falls without schedule.milestones\n"
            """Add --set 'schedule.milestones=["50 %","75 %"]'."""
        )
    alone = config.model.freeze == "all" and not config.model.unfreeze
    if alone and config.optim.stage_decay != _USUAL.optim.stage_decay:
        raise InputError(
            "optim.stage_decay: does nothing with --freeze all, as no stage trains\nLeave it out."
        )
    for name, other, values in _EFFECT:
        now = _setting(config, other)
        if now in values or (not values and now != _setting(_USUAL, other)):
            continue
        for key in given:
            of_it = key == name or key.startswith(f"{name}.")
            if not of_it or _setting(config, key) == _setting(_USUAL, key):
                continue
            flag = flag_of(other)
            if not values:
                raise InputError(
                    f"{key}: does nothing without {other}\nLeave it out, or add {flag}."
                )
            raise InputError(
                f"{key}: does nothing with {other} = {now}; it is of {' and '.join(values)}\n"
                f"Leave it out, or add {flag}{'=' if ' ' in flag else ' '}{values[0]}."
            )


def compares_images(config: RunConfig) -> bool:
    """Whether the loss of an image is another among other images of the batch."""
    return config.task == "embed" and config.embedder.loss in ("triplet", "proxy-anchor")


_USUAL = RunConfig(data_path="", recipe="")


def _setting(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _check_queries(data: DataSet) -> None:
    """Raise InputError for a split in which no image could find another of its class."""
    for name in ("val", "test"):
        if name in data.splits and data.splits[name].per_class(len(data.classes)).max() < 2:
            raise InputError(
                f"{harmless(data.path)}: {name} has no two images of one class, so there is "
                "nothing to find\nHold out more images, for instance --val 0.3, or none: --val none"
            )


def _check_watched(config: RunConfig, data: DataSet) -> None:
    """Raise InputError where a validation metric should decide and there is none."""
    asked = []
    if config.schedule.kind == "plateau":
        asked.append("schedule.kind = plateau")
    if config.schedule.stop_patience is not None:
        asked.append(f"schedule.stop_patience = {config.schedule.stop_patience}")
    if asked and ("val" not in data.splits or config.data.val == "none"):
        raise InputError(
            f"{', '.join(asked)}: needs validation images, and no image is held out\n"
            "Hold some out, for instance --val 0.1, or take a schedule that needs none."
        )


def _check_unfreeze(config: RunConfig, stages: int) -> None:
    """Raise InputError where nothing is frozen that could begin to train, or too little."""
    durations, frozen = config.model.unfreeze, config.model.freeze
    if not durations:
        return
    if not frozen:
        raise InputError("model.unfreeze: nothing is frozen; say what with --freeze")
    if config.on_features:
        raise InputError(
            "model.unfreeze: kept features are of a network that never trains\n"
            "Compute them in each epoch: --set data.views=0"
        )
    parts = 1 + stages if frozen == "all" else min(frozen, 1 + stages)
    if len(durations) > parts:
        raise InputError(
            f"model.unfreeze: {len(durations)} durations for {parts} frozen "
            f"part{'s' if parts > 1 else ''}; give {parts} at most"
        )


def _check_optimizer(config: RunConfig, arch: Architecture) -> None:
    """Raise InputError where weights would be held at norms that mean something."""
    if not config.optim.muon_norm:
        return
    if config.optim.kind != "muon":
        raise InputError(f"optim.muon_norm: of optim.kind=muon, not of {config.optim.kind}")
    normed = config.task not in _WHOLE  # heads with norms of their own
    frozen = normed and getattr(config, HEADS[config.task]).norm == "frozen"
    if arch.order == "pre" or arch.squeeze or arch.norm == "none" or frozen:
        raise InputError(
            "optim.muon_norm: for nets whose convolutions are all followed by batch norm\n"
            "Leave it out with order pre, squeeze-and-excitation, and norms none and frozen."
        )


def check_compile(config: RunConfig, world: World) -> None:
    """Raise InputError where the network cannot be compiled."""
    if not config.compile:
        return
    if world.size > 1 or config.on_features:
        raise InputError("compile: for one process that trains the network; leave it out")
    compiler = os.environ.get("CXX", "g++")
    if config.device == "cpu" and shutil.which(compiler) is None:
        raise InputError(
            f"compile: {harmless(compiler)}, the C++ compiler, is not there; leave it out"
        )


def _check_alone(config: RunConfig, images: int, processes: int) -> None:
    """Raise InputError for what only one process can do."""
    if config.on_features:
        raise InputError(
            "--freeze all: the classifier on kept features trains in one process, in seconds\n"
            "Start it without torchrun, or compute features in each epoch: --set data.views=0"
        )
    heads = config.detector
    second = heads.version == 2 and not heads.one_stage  # its heads have norms of their own
    of_rois = heads.norm != "group" if second else heads.neck == "c4" and heads.norm == "batch"
    if config.task in _OBJECTS and of_rois:
        advice = "Take --set detector.norm=group, or train in one process."
        if second and config.model.weights is not None:  # whose norms are what they are
            advice = "Train in one process, without torchrun."
        elif not second:
            advice = "Take --set detector.norm=group, or frozen, with --weights."
        raise InputError(
            f"detector.norm = {heads.norm}: norms of these heads would count one process's RoIs "
            f"alone\n{advice}"
        )
    if images < 2 * processes:
        raise InputError(
            f"{processes} processes, {images} training images: there must be two for each"
        )


_ADAPTIVE = {"adamw", "lamb"}
_OF_OPTIMIZER = ("optim.lr", "optim.head_lr", "optim.weight_decay")


def _fitting(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings, without the rates and the decay that are another optimizer's."""
    own = settings.get("optim.kind", "sgd")
    asked = given.get("optim.kind", own)
    if asked == own:
        return dict(settings)
    left_out = _OF_OPTIMIZER if {asked, own} & _ADAPTIVE else ()
    return {
        key: value
        for key, value in settings.items()
        if key not in left_out and not key.startswith(f"optim.{own}_")
    }


def check_device(device: str) -> None:
    """Raise InputError for a GPU that is not there; a run may go on on another machine."""
    if device.startswith("cuda"):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= found:
            raise InputError(f"--device {device}: torch finds {found} GPUs here; try --device cpu")


def check_batch(config: RunConfig, arch: Architecture, images: int) -> None:
    """Raise InputError where batch norm would meet a single value of a channel."""
    stride = arch.stem_stride * 2 ** sum(arch.halves(i) for i in range(len(arch.depths)))
    batch = -(-min(config.batch_size, images) // config.accumulate)
    if batch == 1 and arch.input_size <= stride:
        raise InputError(
            f"batch_size = {config.batch_size}, accumulate = {config.accumulate}: batch norm needs "
            f"more than one image of {arch.input_size} px at a time; take 2 or more"
        )


_AHEAD = 2
"""Batches that PyTorch has each worker make ahead."""


def check_workers(config: RunConfig, data: DataSet, world: World) -> None:
    """Raise InputError where the batches of the decoding workers of one machine do not fit into
    what they are handed over through: they would die of it in the middle of a step."""
    if not config.data.workers or config.data.resident:
        return
    layers: float = config.data.channels
    training = data.splits["train"]
    if config.task == "instance" and isinstance(training, AnnotatedSplit):
        layers += len(training.table) / len(training)  # a mask of each object
    batch = int(config.batch_size * (config.data.size or SMALL_IMAGE) ** 2 * layers)
    needed = world.local_size * config.data.workers * _AHEAD * batch
    if needed > (free := free_shared_memory()):
        raise InputError(
            f"data.workers = {config.data.workers}: their batches take {needed >> 20:,} MiB of "
            f"shared memory, {free >> 20:,} MiB are free in /dev/shm\n"
            "Take fewer --workers, or give the container more, as with docker run --shm-size=2g."
        )


def _check_memory(arch: Architecture) -> None:
    """Raise InputError for a network whose weights alone would not fit: with gradients, momentum
    and average they are there four times."""
    parameters, free = count(arch)[0], free_memory()
    if 16 * parameters > free:
        raise InputError(
            f"model.architecture: {parameters:,} parameters take {16 * parameters / 2**30:.0f} GiB "
            f"to train, {free / 2**30:.0f} GiB are free\n"
            "Take a smaller network; width multiplies all widths."
        )


def _base(config: RunConfig, state: State, card: Card | None) -> Architecture:
    """The architecture to fine-tune: the one that was asked for by name, else the weights' own.

    Whether the weights fit is told when they are loaded.
    """
    found = card.architecture if card else None
    if found is None:
        file = translate(state)
        guess = guess_architecture(file)
        found = guess[1] if guess else None
    name = config.model.name
    if name == "auto" or (card is not None and card.model == name):
        if found is None:
            raise InputError(
                f"{harmless(config.model.weights)}: its tensors fit no known network\n"
                "Say with --model what they are; skipway models lists the names."
            )
        return found
    row = architecture(name)
    if found is not None and (row.shortcut, found.shortcut) == ("A", "A-split"):
        return replaced(row, shortcut="A-split")  # as these weights were trained
    return row


def _preprocess(config: RunConfig, arch: Architecture, card: Card | None) -> Preprocess:
    """That of the weights, at the size, with the channels and the resizing of the run."""
    ratio = config.data.crop_ratio
    plain = plain_preprocess(arch.input_size, arch.in_channels, config.data.resize, ratio)
    own = card.preprocess if card is not None else plain
    if own.channels != plain.channels:
        return plain
    cut = ratio is None or (own.short_side or min(own.size)) == plain.short_side
    if (own.size, own.resize) == (plain.size, plain.resize) and cut:
        return own
    if own.pixel_mean is not None:
        if config.task not in _WHOLE:
            raise InputError("--weights: they subtract a mean image, of one size; take others")
        raise InputError(
            "data.size, data.resize, data.crop_ratio: the weights subtract a mean image of "
            f"{own.size[0]} px, {own.resize}; keep them"
        )
    kept = {key: getattr(own, key) for key in ("mean", "std", "interpolation")}
    return plain.model_copy(update=kept)


def _architecture(config: RunConfig, base: Architecture | None, classes: int) -> Architecture:
    fields = dict(config.model.architecture)
    fields |= {"num_classes": classes, "in_channels": config.data.channels}
    fields |= {"input_size": config.data.size}
    if config.model.freeze and config.model.weights is None:
        raise InputError("--freeze: only a network that starts from --weights can be frozen")
    if base is None:
        return architecture(config.model.name, **fields)
    return replaced(base, **fields)


def _from_weights(path: str, card: Card | None, arch: Architecture, task: str) -> list[Choice]:
    name = card.model if card else name_of(arch)
    of = f"of {harmless(path)}"
    if task not in _WHOLE or (card is not None and card.task not in _WHOLE):
        return [
            Choice("model.name", name, f"the architecture {of}"),
            Choice("data.channels", arch.in_channels, f"the input {of}"),
        ]
    size = card.preprocess.size[0] if card else arch.input_size
    return [
        Choice("model.name", name, f"the architecture {of}"),
        Choice("data.size", size, f"the input {of}"),
        Choice("data.channels", arch.in_channels, f"the input {of}"),
        Choice("data.resize", card.preprocess.resize if card else "crop", f"the input {of}"),
    ]


def _heads_of(path: str, card: Card | None, config: RunConfig) -> list[Choice]:
    """Settings of the heads that come with the weights of a model of the same kind, unless others
    were asked for; the first says which heads."""
    kind = HEADS.get(config.task)
    if card is None or kind is None or HEADS.get(card.task) != kind:
        return []
    theirs, asked = getattr(card, kind), getattr(config, kind)
    which = "loss" if kind == "embedder" else "head"
    head = getattr(theirs, which)
    if {head, config.task} == {"faster-rcnn", "instance"}:
        head = "mask-rcnn"
    elif {head, config.task} == {"mask-rcnn", "detect"}:
        head = "faster-rcnn"
    if which in asked.model_fields_set and getattr(asked, which) != head:
        return []
    values = theirs.model_dump() | {which: head}
    if kind == "detector" and theirs.norm == "batch":
        values["norm"] = "frozen"  # the weights saw more images
    if kind == "detector":
        neck = asked.neck if "neck" in asked.model_fields_set else theirs.neck
        other = theirs.model_copy(update={which: head, "neck": neck})
        values = {name: value for name, value in values.items() if other.reads(name)}
        if "norm" in asked.model_fields_set and asked.norm != "frozen":
            del values["frozen_eps"]
    usual = type(theirs)(**{which: head})
    of = f"the heads of {harmless(path)}"
    return [Choice(f"{kind}.{which}", head, of)] + [
        Choice(f"{kind}.{name}", value, of)
        for name, value in values.items()
        if value != getattr(usual, name)
    ]


def _epsilon_of(path: str, card: Card | None, config: RunConfig) -> list[Choice]:
    """The epsilon of frozen norms that come with the weights, whatever heads stand on them now."""
    theirs, own = card.detector if card is not None else None, config.detector
    if theirs is None or theirs.frozen_eps is None or config.task not in _OBJECTS:
        return []
    if own.norm != "frozen" or own.frozen_eps is not None:
        return []
    of = f"the norms of {harmless(path)}"
    return [Choice("detector.frozen_eps", theirs.frozen_eps, of)]


def _norm_of(card: Card | None) -> str:
    """The norms of a weight file's network."""
    heads = getattr(card, HEADS.get(card.task, ""), None) if card is not None else None
    return str(getattr(heads, "norm", "batch"))
