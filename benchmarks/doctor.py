"""The import doctor on mislabelled checkpoints: what it finds, and the accuracy each mistake costs.

The shipped CIFAR-10 ResNet-20 and four small nets that are trained here, on a fifth of the images,
are written with a card that is wrong in one trait (and twice in two), and as they are, as controls.
Accuracy as it should be, as mislabelled and as mended is that on every fifth test image; the doctor
sees 256 test images.

    python benchmarks/doctor.py --data CIFAR10
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from recorded import record, skipway
from skipway.architecture import replaced
from skipway.card import Card
from skipway.data import Split, open_split
from skipway.doctor import Diagnosis, check, correct
from skipway.evaluation import score
from skipway.machine import cores
from skipway.predictor import load
from skipway.weights import read_state, save_weights

SHIPPED = "cifar10-resnet20"
BOTTLENECK = ("depths=[1,1,1]", "widths=[16,32,64]", "stem_width=16", "shortcut=B")
NETS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "bottleneck-1x1": ("resnet50_cifar", (*BOTTLENECK, "stride_in=1x1"), 6),
    "bottleneck-3x3": ("resnet50_cifar", BOTTLENECK, 6),
    "plain8": ("plain20", ("depths=[1,1,1]",), 2),
    "epsilon": ("resnet20", ("bn_eps=0.01",), 2),
}
"""The nets that are trained here: row, fields and epochs. The last goes on from `shrunk`."""
SHRINK = 0.1
"""Of the convolutions, so that epsilon matters. With 0.2 the mistake costs 3.3 points, and the
doctor says of 256 images that they cannot tell."""


@dataclass(frozen=True)
class Mistake:
    """A net, what its card says wrongly, and by trait what the doctor must find."""

    name: str
    net: str
    expected: Mapping[str, Any]
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scale: float = 1.0
    """Of the values that the card has normalised: 255 is values of 0..255."""
    half: bool = False
    """The card says mean 0.5 and std 0.5."""
    bgr: bool = False
    """The net takes BGR."""


BGR, VALUES = {"colour": "BGR"}, {"scaling": "0..1"}
USUAL = {"normalisation": "CIFAR-10"}
MISTAKES = (
    Mistake("A declared A-split", SHIPPED, {"shortcut": "A"}, {"shortcut": "A-split"}),
    Mistake("BGR declared RGB", SHIPPED, BGR, bgr=True),
    Mistake("values of 0..1 declared 0..255", SHIPPED, VALUES, scale=255),
    Mistake("mean and std declared 0.5", SHIPPED, USUAL, half=True),
    Mistake("stride in 1x1 declared 3x3", "bottleneck-1x1", {"stride_in": "1x1"},
            {"stride_in": "3x3"}),
    Mistake("stride in 3x3 declared 1x1", "bottleneck-3x3", {"stride_in": "3x3"},
            {"stride_in": "1x1"}),
    Mistake("epsilon 1e-2 declared 1e-5", "epsilon", {"bn_eps": 0.01}, {"bn_eps": 1e-5}),
    Mistake("plain declared A", "plain8", {"shortcut": "none"}, {"shortcut": "A"}),
    Mistake("BGR declared RGB, and 0..255", SHIPPED, BGR | VALUES, scale=255, bgr=True),
    Mistake("BGR declared RGB, and A-split", SHIPPED, BGR | {"shortcut": "A"},
            {"shortcut": "A-split"}, bgr=True),
)  # fmt: skip
"""Eight single mistakes, then two that hide behind one another."""


def subset(data: str, each: int, place: Path) -> Path:
    """Class folders with every n-th training image."""
    _, train, classes = open_split(data, "train", None, 0, "none")
    for i in range(0, len(train), each):
        folder = place / classes[train.target(i)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(train.image(i, 3)).save(folder / f"{i}.png")
    return place


def shrunk(place: Path) -> Path:
    """The shipped net with every convolution made smaller, and its batch norms accordingly, as
    strong weight decay leaves a net: the same answers, but epsilon matters from then on."""
    state, card = read_state(SHIPPED)
    powers = {"running_var": 2, "running_mean": 1, "weight": 1}

    def smaller(key: str, tensor: Tensor) -> Tensor:
        ends = key.rpartition(".")[2]
        if ends not in powers or (ends == "weight" and "conv" not in key):
            return tensor
        return tensor * SHRINK ** powers[ends]

    save_weights(place, {key: smaller(key, tensor) for key, tensor in state.items()}, card)
    return place


def mislabel(mistake: Mistake, source: str | Path, place: Path) -> None:
    """The weights of `source` with a card that is wrong."""
    state, card = read_state(source)
    assert card is not None
    preprocess: dict[str, Any] = card.preprocess.model_dump()
    if mistake.half:
        preprocess |= {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    for key in ("mean", "std"):
        preprocess[key] = tuple(value / mistake.scale for value in preprocess[key])
    tensors = dict(state)
    if mistake.bgr:
        tensors["conv1.weight"] = tensors["conv1.weight"].flip(1)
    arch = dataclasses.asdict(replaced(card.architecture, **mistake.architecture))
    wrong = card.model_dump() | {"preprocess": preprocess, "architecture": arch}
    save_weights(place, tensors, Card.model_validate(wrong))


def accuracy(file: str | Path, images: Split) -> float:
    """Share of the images that the file gets right, read as its card says."""
    scored, _ = score(load(file, cores()), images, cores())
    return float(scored.correct.mean())


def found(diagnosis: Diagnosis, expected: Mapping[str, Any]) -> bool:
    """Whether the traits called wrong are the expected ones, with the right value (or one that the
    diagnosis says it cannot tell from it)."""
    wrong = {f.trait: (f.found, *f.undecided) for f in diagnosis.findings if f.state == "wrong"}
    return wrong.keys() == expected.keys() and all(v in wrong[t] for t, v in expected.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--each", type=int, default=5, help="train on every n-th image")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nets: dict[str, str | Path] = {SHIPPED: SHIPPED}
        some = subset(options.data, options.each, folder / "some")
        for net, (row, fields, epochs) in NETS.items():
            nets[net] = folder / net
            flags = [part for f in fields for part in ("--set", f"model.architecture.{f}")]
            if net == "epsilon":
                flags += ["--weights", str(shrunk(folder / "shrunk.safetensors"))]
                flags += ["--set", "optim.lr=0.01"]
            train = ("train", some, "--model", row, *flags, "--epochs", epochs, "--batch-size=64")
            skipway(*train, "--out", nets[net])
        predictor = load(SHIPPED)
        _, test, _ = open_split(options.data, "test", predictor.classes, 0, "auto")
        images = test.take(np.arange(0, len(test), 5))
        right = {net: accuracy(file, images) for net, file in nets.items()}
        cases, controls = [], []
        for mistake in MISTAKES:
            wrong, mended = folder / "wrong.safetensors", folder / "mended.safetensors"
            mislabel(mistake, nets[mistake.net], wrong)
            diagnosis = check(wrong, options.data, split="test", threads=cores())
            row_ = {
                "mistake": mistake.name,
                "net": mistake.net,
                "right_diagnosis": found(diagnosis, mistake.expected),
                "wrong_traits": {
                    f.trait: [f.declared, f.found] for f in diagnosis.findings if f.state == "wrong"
                },
                "accuracy_right": right[mistake.net],
                "accuracy_mislabelled": accuracy(wrong, images),
            }
            if diagnosis.verdict == "wrong" and not diagnosis.withheld:
                correct(diagnosis, mended)
                row_["accuracy_mended"] = accuracy(mended, images)
            print(row_, file=sys.stderr)  # a sign of life
            undecided = {f.trait: list(f.undecided) for f in diagnosis.findings if f.undecided}
            row_ |= {"undecided": undecided, "readings": diagnosis.readings}
            cases.append(row_ | {"images": diagnosis.passes})
        for net, file in nets.items():
            diagnosis = check(file, options.data, split="test", threads=cores())
            controls.append({"net": net, "verdict": diagnosis.verdict, "accuracy": right[net]})
    single = [case for case in cases[:8] if case["right_diagnosis"]]
    figures = {
        "n": len(images),
        "images_seen_by_the_doctor": 256,
        "nets_trained_here": {
            "epochs": {net: epochs for net, (*_, epochs) in NETS.items()},
            "on_every_nth_image": options.each,
        },
        "right_diagnoses": f"{len(single)} of 8",
        "mistakes": cases,
        "controls": controls,
        "bar": {"right_diagnoses": "8 of 8", "false_alarms": 0},
        "false_alarms": sum(control["verdict"] != "right" for control in controls),
    }
    record("doctor", figures)


if __name__ == "__main__":
    main()
