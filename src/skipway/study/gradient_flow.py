"""When gradients vanish, and what batch norm and the shortcut each do about it.

He et al. 2015, section 4.1, on plain nets; the theory is of others, named at each number.
"""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from skipway.architecture import architecture, count
from skipway.study import trainings
from skipway.study.flow_findings import NOTES, at_first, later, tables
from skipway.study.flow_nets import NETS, TRAINED, Flow, Net, Number
from skipway.study.flow_pictures import courses, films, stills
from skipway.study.form import Cell, Done, Given, Scale, Told
from skipway.study.store import environment

if TYPE_CHECKING:
    from torch import Tensor

NAME = "gradient-flow"
TITLE = "Where gradients vanish, and where they do not"
SOURCE = (
    "He et al. 2015 (1512.03385), section 4.1; Glorot and Bengio 2010; He et al. 2015 "
    "(1502.01852), section 2.2; Yang et al. 2019 (1902.08129); De and Smith 2020 (2002.10444)"
)
CLAIM = (
    "Plain nets without batch norm lose their gradient from layer to layer, three tenths of it "
    "where the first weights are not scaled for ReLU, a few percent where they are; with batch "
    "norm it does not vanish but grows, exponentially; with the shortcut as well, it grows as a "
    "power of the depth."
)
STORY = (
    "A net learns from the gradient, which runs back through every layer from the output to the "
    "input. If each layer takes a third of it, nothing is left after a hundred: that is the "
    "vanishing gradient, and the reason that is most often given for residual nets. Their authors "
    "say otherwise: batch norm keeps gradients from vanishing. A wrong scale of the first weights "
    "makes it vanish at once. The right scale slows the loss to a few percent a layer: enough for "
    "twenty layers, not for a thousand. With batch norm nothing vanishes, and plain nets have the "
    "contrary: at the start the gradient grows from layer to layer, exponentially. The shortcut "
    "lets it pass each unit as it is, and turns that into slow growth."
)
REVISION = 2 + trainings.REVISION

DEPTHS = (20, 56, 110, 290, 998)
"""Layers, 6n + 2 (2015, section 4.2)."""
DATA = "digits"
SIZE = 32
"""Pixels of the images at initialisation, as in 2015, section 4.2."""
IMAGES = 16
"""In the batch that is measured on, at initialisation."""
BATCH = 64
"""Of training; as many are measured on there."""
STATISTICS = ("activation_rms", "gradient_rms")
"""Of `probes.flow`, those that are kept."""

_PROTOCOL = (
    "Nets of 20 to 998 layers of the paper's CIFAR family (6n + 2, widths 16, 32 and 64) at their "
    "first weights: plain, residual (option A) and pre-activation, with batch norm and without, He "
    "and Xavier, on {images} handwritten digits at 32 px, one forward and one backward pass each. "
    "Then {depth} layers at {size} px trained with 64 digits a step for {steps} steps of SGD at "
    "0.1 (2015), the gradient clipped to norm 1, and measured every {every} steps."
)
_SHARED = (
    "handwritten digits (8 px, enlarged) in place of CIFAR-10: they come with the package, are "
    "images as noise is not, and the same that is then trained on",
    "Xavier's initialisation drawn from the normal distribution, so that it is He's draw, scaled",
    "the gradient clipped to norm 1 in training, without which nets whose gradient explodes leave "
    "the range of float32 at the first step",
    "64 images a step in place of 128, neither moved nor mirrored, each channel of mean 0 in place "
    "of each pixel, and only the first steps of a training",
)
_TRAINING: Mapping[str, Mapping[str, int]] = {
    "small": {"depth": 56, "size": 16, "steps": 96, "every": 8},
    "full": {"depth": 110, "size": 32, "steps": 400, "every": 20},
}
"""What is trained, by scale; steps are a multiple of `every`."""
SCALES = (
    Scale(
        name="small",
        protocol=_PROTOCOL.format(images=IMAGES, **_TRAINING["small"]),
        deviations=(*_SHARED, "16 px in training, so a quarter of the work"),
        seeds=3,
        minutes=15,
    ),
    Scale(
        name="full",
        protocol=_PROTOCOL.format(images=IMAGES, **_TRAINING["full"]),
        deviations=(*_SHARED, "no slow start, as the paper has it for 110 layers"),
        seeds=5,
        minutes=500,
    ),
)


def data(given: Given) -> str:
    return trainings.digest(_given(given))


def cells(scale: Scale, seeds: int, given: Given) -> Sequence[Cell]:
    found = []
    course = _TRAINING[scale.name]
    measured = course["steps"] // course["every"] + 1
    usual = trainings.told_apart(architecture("resnet20"))
    for seed in range(seeds):
        for depth in DEPTHS:
            settings = {"layers": depth, "size": SIZE, "images": IMAGES, "seed": seed}
            name = f"{depth} layers at initialisation, seed {seed}"
            cost = len(NETS) * _cost(depth, SIZE, IMAGES)
            found.append(Cell(name, settings, cost, {"network": usual}))
        for net in TRAINED:
            name = f"{net.named}, in training, seed {seed}"
            settings = _training(net, seed, given.precision, **course)
            step = _cost(course["depth"], course["size"], BATCH)
            cost = (course["steps"] + measured) * step
            found.append(Cell(name, settings, cost, trainings.stands_for(settings)))
    return found


def _cost(layers: int, size: int, images: int) -> float:
    """10^9 multiply-adds of a pass of so many images, whatever the kind of net."""
    arch = architecture("resnet20", input_size=size, **NETS[0].fields(layers))
    return count(arch)[1] * images / 1e9


def _given(given: Given) -> Given:
    return replace(given, data=given.data or DATA)


def _training(
    net: Net, seed: int, precision: str, *, depth: int, size: int, steps: int, every: int
) -> dict[str, Any]:
    """Settings of a training whose checkpoints are what is measured."""
    return {
        "model.name": "resnet20",
        "model.architecture": net.fields(depth),
        "data.size": size,
        "data.channels": 3,
        "data.val": "none",
        "recipe": "he2015-cifar",
        "schedule.length": f"{steps} steps",
        "schedule.milestones": (),
        "augment.flip": False,
        "augment.pad_crop": 0,
        "augment.pixel_mean": False,
        "batch_size": BATCH,
        "optim.clip": 1.0,
        "checkpoint_every": f"{every} steps",
        "keep_checkpoints": steps // every + 1,
        "precision": precision,
        "seed": seed,
    }


# What is computed


def compute(cell: Cell, place: Path, given: Given, say: Callable[[str], None]) -> Any:
    import torch

    torch.set_flush_denormal(True)  # as training does: what is below 1.2e-38 is 0
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    given = _given(given)
    if "layers" in cell.settings:
        return _initial(given, **cell.settings)
    return _through_training(cell, place, given, say)


def _initial(given: Given, *, layers: int, size: int, images: int, seed: int) -> dict[str, Any]:
    """The flow through a net of each kind at its first weights, by what it is called."""
    batch = _batch(given, size, images, seed)
    device = given.chosen_device()
    flows = {net.key: _flow(net.fields(layers), seed, None, batch, device) for net in NETS}
    return {**flows, "environment": environment(device)}


def _through_training(
    cell: Cell, place: Path, given: Given, say: Callable[[str], None]
) -> dict[str, Any]:
    """The flow in each checkpoint, the first of which is of step 0, on one batch, with the log of
    the training. One that diverges is a result too, as far as it came."""
    from skipway.training import checkpoint
    from skipway.training.loop import Diverged

    settings, run = cell.settings, place / "run"
    try:
        trainings.trained(cell, run, given, say)
    except Diverged as error:
        say(f"{cell.name}: {error}")
    begun = time.perf_counter()
    batch = _batch(given, settings["data.size"], settings["batch_size"], settings["seed"])
    fields, seed = settings["model.architecture"], settings["seed"]
    device = given.chosen_device()
    frames = []
    for path in checkpoint.saved(run / "checkpoints"):
        weights = checkpoint.load(path)["loop"]["model"]
        flow = _flow(fields, seed, weights, batch, device)
        frames.append({"step": checkpoint.step_of(path), **flow})
    log = trainings.logged(run)
    return {
        "frames": frames,
        "losses": [[row["step"], row["train_loss"]] for row in log["rows"]],
        "diverged": log["diverged"],
        "seed": seed,
        "classes": log["classes"],
        "data": log["data"],
        "precision": log["precision"],
        "seconds": log["seconds"] + time.perf_counter() - begun,
        "environment": log["environment"],
    }


class Batch(NamedTuple):
    """What a flow is measured on."""

    images: Tensor
    """[N, 3, H, W], of mean 0 and deviation 1 in each channel."""
    labels: Tensor
    """[N], positions in the classes."""
    classes: int


def _flow(
    fields: Mapping[str, Any],
    seed: int,
    weights: Mapping[str, Tensor] | None,
    batch: Batch,
    device: str,
) -> dict[str, list[Number]]:
    """`probes.flow` of a net, by statistic the values of its parts from input to output, to four
    digits; None where one overflowed. weights: None takes those it starts a training with."""
    import torch

    from skipway.probes import flow
    from skipway.resnet import ResNet

    arch = architecture("resnet20", input_size=batch.images.shape[-1], **fields)
    arch = replace(arch, num_classes=batch.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ResNet(arch)
    if weights is not None:
        net.load_state_dict(weights)
    found = flow(net.to(device), batch.images.to(device), batch.labels.to(device))
    return {
        statistic: [
            float(f"{value:.4g}") if math.isfinite(value) else None
            for value in found[statistic].values()
        ]
        for statistic in STATISTICS
    }


def _batch(given: Given, size: int, images: int, seed: int) -> Batch:
    """So many training images of size x size px, drawn by seed."""
    import numpy as np
    import torch

    from skipway.data import open_data
    from skipway.data.keyed import permutation
    from skipway.images import plain_preprocess

    assert given.data is not None
    opened = open_data(given.data, "none", 0)
    split = opened.splits["train"]
    chosen = permutation(len(split), seed, 0)[:images]
    preprocess = plain_preprocess(size, 3)
    frames = np.stack([preprocess.frame(split.image(int(i), 3))[0] for i in chosen])
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    mean, deviation = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(1)
    x = (pixels - mean[:, None, None]) / deviation[:, None, None]
    return Batch(x.contiguous(), torch.from_numpy(split.labels[chosen]), len(opened.classes))


def seconds(cell: Cell, given: Given) -> float:
    if "layers" in cell.settings:
        return _seconds_a_layer(_given(given)) * cell.settings["layers"]
    return trainings.training_seconds(cell, _given(given)) * _MEASURING


_MEASURING = 1.2
"""Time of a training with the passes that measure it, over that of the training: one pass of as
many images as a step has every eight steps or less."""


@functools.cache
def _seconds_a_layer(given: Given) -> float:
    """Of `_initial`, by that of shallow nets: all but their depth is alike."""
    shallow = {"layers": DEPTHS[0], "size": SIZE, "images": IMAGES, "seed": 0}
    _initial(given, **shallow)  # what is made once is made
    begun = time.perf_counter()
    _initial(given, **shallow)
    return (time.perf_counter() - begun) / DEPTHS[0]


# What follows


def reached(cell: Cell, place: Path, given: Given, data: str) -> str | None:
    return trainings.step_reached(place / "run")


def told(done: Sequence[Done], scale: Scale) -> Told:
    initial: dict[int, dict[int, Mapping[str, Flow]]] = {}
    through: dict[str, list[Mapping[str, Any]]] = {}
    diverged: Counter[str] = Counter()
    deviations: dict[str, None] = {}
    for one in done:
        settings, result = one.cell.settings, one.result
        if "layers" in settings:
            initial.setdefault(settings["layers"], {})[settings["seed"]] = result
            continue
        if result["data"] != DATA:
            deviations[f"{result['data']} in place of the handwritten digits"] = None
        if result["precision"] == "bf16":
            deviations[trainings.HALVED] = None
        net = Net.of(settings["model.architecture"])
        if result["diverged"]:
            diverged[net.key] += 1
            deviations[f"{one.cell.name}: diverged, so that its numbers are none"] = None
        else:
            through.setdefault(net.key, []).append(result)
    depth = _TRAINING[scale.name]["depth"]
    found = [*at_first(initial), *later(through, diverged, depth)]
    return Told(
        [finding for finding in found if finding.values or finding.expected],
        [*stills(initial), *courses(through, depth)],
        NOTES,
        deviations=tuple(deviations),
        tables=tables(initial),
        animations=films(through, depth),
    )
