"""Training images/s from class folders on disk: Skipway against the plain PyTorch loop and timm.

Three cases: `resnet20` and `resnet18_cifar` on CIFAR-10, `resnet50` on photographs at 224 px.
- Skipway: its command line with everything but the length left to its defaults (bf16 where the
  processor has it). Checkpoints are written at the end only, as epochs are a few steps here.
- The plain loop, what a tutorial writes: ImageFolder, the usual crop and flip, ToTensor and
  Normalize; torchvision's network, contiguous and in float32 (resnet18_cifar: its resnet18 with a
  3x3 stem and no pool; resnet20: ours, as torchvision has none); SGD with Nesterov momentum;
  PyTorch's default threads; the number of workers (0, 1 or 2) that is fastest here.
- The plain loop in bf16, as its user could make it faster by three lines: channels_last and
  autocast. It shows how much of the difference is precision and layout.
- timm's train.py on the CPU: its defaults, but no colour jitter, which no one else here has, and
  the number of workers (1, 2 or its default 4) that is fastest here. Its networks: its own
  resnet50, its own resnet18 with the stem of resnet18_cifar, and our ResNet-20 (`timm_nets.py`).

Each round runs all of them as processes of their own on the same images, in turns of who goes
first. All train a first epoch that is not counted, then the counted ones; none evaluates, and
checkpoints are not counted. Skipway decodes small images before its first epoch, the others in
each. Cases that are not named keep their results. The photographs' case counts fewer epochs where
it would take longer than its minutes.

    python benchmarks/train_speed.py --data CIFAR10 --photos IMAGENETTE --timm TIMM

CIFAR10 and IMAGENETTE hold train/CLASS/*, TIMM is a checkout of timm with its train.py.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recorded import record_case, skipway, spread


@dataclass(frozen=True)
class Case:
    """What is measured, how long, and the ratio to the plain loop to reach."""

    batch: int
    size: int
    """Height and width of the input in pixels; above 32 the data are the photographs."""
    timm: str
    """What timm calls the network, or `timm_nets.py` for it."""
    steps: int
    """Of an epoch."""
    epochs: int
    """Counted ones."""
    bar: float
    minutes: float = 9
    """What all rounds may take; before them, workers are tried."""


CASES = {
    "resnet20": Case(128, 32, "skipway_resnet20", steps=20, epochs=2, bar=2.2),
    "resnet18_cifar": Case(64, 32, "skipway_resnet18_cifar", steps=6, epochs=2, bar=1.8),
    "resnet50": Case(8, 224, "resnet50", steps=4, epochs=3, bar=1.8),
}
Side = Callable[[int], float]
"""Trains so many counted epochs, and gives images/s."""


def plain_loop(model: str, folder: str, epochs: int, workers: int, bf16: bool) -> float:
    """Images/s of the tutorial's loop after its first epoch."""
    import torch
    import torchvision
    from torch import nn
    from torchvision import transforms

    from skipway import create_model

    case = CASES[model]
    if model == "resnet20":
        net: nn.Module = create_model("resnet20")
    elif model == "resnet18_cifar":
        net = torchvision.models.resnet18(num_classes=10)
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    else:
        net = torchvision.models.get_model(model, num_classes=10)
    if case.size == 32:
        crop = transforms.RandomCrop(32, padding=4)
        mean, deviation = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    else:
        crop = transforms.RandomResizedCrop(case.size)
        mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    augmentation = transforms.Compose(
        [
            crop,
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, deviation),
        ]
    )
    images = torchvision.datasets.ImageFolder(folder, augmentation)
    loader = torch.utils.data.DataLoader(
        images, case.batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    criterion = nn.CrossEntropyLoss()
    precision: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if bf16:
        net = net.to(memory_format=torch.channels_last)
        precision = torch.autocast("cpu", torch.bfloat16)
    net.train()
    begun = time.perf_counter()
    for epoch in range(epochs + 1):
        if epoch == 1:
            begun = time.perf_counter()
        for inputs, labels in loader:
            if bf16:
                inputs = inputs.to(memory_format=torch.channels_last)
            optimizer.zero_grad()
            with precision:
                loss = criterion(net(inputs), labels)
            loss.backward()
            optimizer.step()
    return epochs * len(images) / (time.perf_counter() - begun)


def plain(model: str, data: Path, workers: int, bf16: bool) -> Side:
    """`plain_loop` in a process of its own."""

    def run(epochs: int) -> float:
        command = [sys.executable, __file__, "--plain", model, str(data / "train")]
        command += [str(epochs), str(workers), str(int(bf16))]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    return run


def ours(model: str, data: Path, folder: Path) -> Side:
    """Skipway's command line; its runs are put below `folder`."""
    case, number = CASES[model], itertools.count()

    def run(epochs: int) -> float:
        out = folder / f"run{next(number)}"
        skipway(
            *("train", data, "--model", model, "--val", "none", "--batch-size", case.batch),
            *("--epochs", epochs + 1, "--checkpoint-every", "1000 epochs", "--out", out),
        )
        rate = images_per_second(out)
        size = json.loads((out / "run.json").read_text())["config"]["data"]["size"]
        assert size == case.size, f"{data}: its images are trained at {size} px"
        return rate

    return run


def images_per_second(run: Path) -> float:
    """Of a finished run of Skipway, its first epoch left out."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    images = json.loads((run / "run.json").read_text())["data"]["splits"]["train"]["n"]
    return len(rows) * images / sum(row["seconds"] for row in rows)


LAST = re.compile(r"Train: (\d+) \[.*\(100%\)\].*\([\d.]+s, +([\d.]+)/s\)")
"""The line that timm logs after the last step of an epoch: its number, and images/s over it."""


def timms(model: str, data: Path, timm: Path, workers: int, folder: Path) -> Side:
    """timm's train.py as a process of its own; its checkpoints are put below `folder`."""
    case = CASES[model]

    def run(epochs: int) -> float:
        command = [sys.executable, str(timm / "train.py"), str(data), "--device", "cpu"]
        command += ["--device-modules", "timm_nets", "--model", case.timm, "--num-classes", "10"]
        command += ["--input-size", "3", str(case.size), str(case.size)]
        command += ["--batch-size", str(case.batch), "--workers", str(workers)]
        command += ["--epochs", str(epochs + 1), "--val-split", "", "--color-jitter", "0"]
        command += ["--output", str(folder / "timm")]
        paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
        )
        rates = {int(n): float(rate) for n, rate in LAST.findall(done.stdout + done.stderr)}
        assert done.returncode == 0, done.stderr[-2000:]
        assert set(rates) == set(range(epochs + 1)), f"timm logs otherwise: {done.stderr[-2000:]}"
        del rates[0]
        return epochs / sum(1 / rate for rate in rates.values())  # epochs are of equal length

    return run


def subset(data: Path, into: Path, images: int) -> Path:
    """Links to the first images of each class, as many as asked in all, as a data set."""
    classes = sorted(p for p in (data / "train").iterdir() if p.is_dir())
    found = zip(*(sorted(folder.iterdir()) for folder in classes), strict=False)
    flat = [image for row in found for image in row][:images]
    assert len(flat) == images, f"{data}: too few images"
    for image in flat:
        place = into / "train" / image.parent.name
        place.mkdir(parents=True, exist_ok=True)
        (place / image.name).symlink_to(image.resolve())
    return into


def fastest(name: str, by_workers: dict[int, Side]) -> tuple[int, dict[str, float]]:
    """The number of workers with the most images/s in one epoch, and images/s by all of them."""
    tried = {workers: side(1) for workers, side in by_workers.items()}
    print(f"{name} by workers: {tried}", file=sys.stderr)
    best = max(tried, key=tried.__getitem__)
    return best, {str(workers): round(rate, 1) for workers, rate in tried.items()}


def measure(model: str, data: Path, timm: Path | None, rounds: int, folder: Path) -> dict[str, Any]:
    """All sides in turn, `rounds` times."""
    case = CASES[model]
    data = subset(data, folder / "data", case.steps * case.batch)
    workers: dict[str, Any] = {}
    best, workers["plain"] = fastest(
        f"{model}: the plain loop", {n: plain(model, data, n, False) for n in (0, 1, 2)}
    )
    sides = {
        "skipway": ours(model, data, folder),
        "plain": plain(model, data, best, False),
        "plain_bf16": plain(model, data, best, True),
    }
    if timm is not None:
        best, workers["timm"] = fastest(
            f"{model}: timm", {n: timms(model, data, timm, n, folder) for n in (1, 2, 4)}
        )
        sides["timm"] = timms(model, data, timm, best, folder)
    begun = time.perf_counter()
    for side in sides.values():  # caches are warm after it
        side(1)
    two_epochs = time.perf_counter() - begun
    fitting = 2 * 60 * case.minutes / (rounds * two_epochs) - 1  # starts are counted as training
    epochs = min(max(int(fitting), 1), case.epochs)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        names = list(sides)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            rates[name].append(sides[name](epochs))
        shown = ", ".join(f"{name} {rates[name][-1]:.1f}" for name in sides)
        print(f"{model}, round {i + 1}: {shown} images/s", file=sys.stderr)
    mine = rates["skipway"]
    return {
        "images_per_second": {name: spread(found) for name, found in rates.items()},
        "ratio": {
            name: spread([a / b for a, b in zip(mine, theirs, strict=True)])
            for name, theirs in rates.items()
            if name != "skipway"
        },
        "bar": case.bar,
        "counted_steps": case.steps * epochs,
        "steps_before": case.steps,
        "batch": case.batch,
        "size": case.size,
        "images_per_second_by_workers": workers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="CIFAR-10 as class folders")
    parser.add_argument("--photos", type=Path, help="photographs as class folders, for resnet50")
    parser.add_argument("--timm", type=Path, help="a checkout of timm; without it timm is left out")
    parser.add_argument("--models", nargs="+", choices=CASES, help="by default those with data")
    parser.add_argument("--rounds", type=int, default=5)
    names = ("MODEL", "FOLDER", "EPOCHS", "WORKERS", "BF16")
    parser.add_argument("--plain", nargs=5, metavar=names, help="the peer's process")
    options = parser.parse_args()
    if options.plain:
        model, folder, epochs, workers, bf16 = options.plain
        print(json.dumps(plain_loop(model, folder, int(epochs), int(workers), bf16 == "1")))
        return
    data = {name: options.data if c.size == 32 else options.photos for name, c in CASES.items()}
    models = options.models or [name for name in CASES if data[name] is not None]
    missing = [name for name in models if data[name] is None]
    if missing or not models:
        parser.error("--data and --photos: the images of a case are missing")
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(model, data[model], options.timm, options.rounds, Path(folder))
        record_case("train_speed", model, figures, *(["timm"] if options.timm else []))


if __name__ == "__main__":
    main()
