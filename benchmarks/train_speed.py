"""Training images/s from class folders on disk: Skipway against the plain PyTorch loop.

The peer is what a tutorial writes: ImageFolder, RandomCrop(32, 4), RandomHorizontalFlip,
ToTensor and Normalize in workers that persist; a contiguous float32 network; SGD with Nesterov
momentum; PyTorch's default threads. It gets the number of workers (0, 1 or 2) that is fastest
here. Its networks: torchvision's resnet18 with a 3x3 stem and no pool, and, as torchvision has no
ResNet-20, ours. Skipway is its command line with everything but the length left to its defaults.

Each round runs both as processes of their own on the same images, in turns of who goes first.
Both train a first epoch that is not counted, then the counted ones, from the first batch's loading
to the last update; neither evaluates. Skipway decodes before its first epoch, the peer in each.

    python benchmarks/train_speed.py --data CIFAR10   # a folder with train/CLASS/*.png
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from recorded import record, skipway, spread

BATCH = 128


@dataclass(frozen=True)
class Case:
    """What is measured: steps an epoch, counted epochs, and the ratio to reach."""

    steps: int
    epochs: int
    bar: float


CASES = {"resnet20": Case(40, 1, 2.0), "resnet18_cifar": Case(6, 2, 1.8)}


def plain_loop(model: str, folder: str, epochs: int, workers: int) -> float:
    """Images/s of the tutorial's loop after its first epoch."""
    import torch
    import torchvision
    from torch import nn
    from torchvision import transforms

    from skipway import create_model

    if model == "resnet20":
        net: nn.Module = create_model("resnet20")
    else:
        net = torchvision.models.resnet18(num_classes=10)
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    augmentation = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        ]
    )
    images = torchvision.datasets.ImageFolder(folder, augmentation)
    loader = torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    criterion = nn.CrossEntropyLoss()
    net.train()
    begun = time.perf_counter()
    for epoch in range(epochs + 1):
        if epoch == 1:
            begun = time.perf_counter()
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = criterion(net(inputs), labels)
            loss.backward()
            optimizer.step()
    return epochs * len(images) / (time.perf_counter() - begun)


def peer(model: str, data: Path, epochs: int, workers: int) -> float:
    """`plain_loop` in a process of its own."""
    command = [sys.executable, __file__, "--plain", model, str(data / "train")]
    command += [str(epochs), str(workers)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def ours(model: str, data: Path, epochs: int, out: Path) -> float:
    """Skipway's images/s after its first epoch."""
    skipway(
        *("train", data, "--model", model, "--val", "none", "--batch-size", BATCH),
        *("--epochs", epochs + 1, "--out", out),
    )
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
    images = json.loads((out / "run.json").read_text())["data"]["splits"]["train"]["n"]
    return epochs * images / sum(row["seconds"] for row in rows)


def subset(data: Path, into: Path, images: int) -> Path:
    """Links to the first images of each class, as many as asked in all, as a data set."""
    classes = sorted(p for p in (data / "train").iterdir() if p.is_dir())
    found = zip(*(sorted(folder.iterdir()) for folder in classes), strict=False)
    flat = [image for row in found for image in row][:images]
    for image in flat:
        place = into / "train" / image.parent.name
        place.mkdir(parents=True, exist_ok=True)
        (place / image.name).symlink_to(image.resolve())
    return into


def measure(model: str, data: Path, rounds: int, folder: Path) -> dict[str, object]:
    """Both in turn, `rounds` times."""
    case = CASES[model]
    data = subset(data, folder / "data", case.steps * BATCH)
    by_workers = {w: peer(model, data, case.epochs, w) for w in (0, 1, 2)}
    workers = max(by_workers, key=by_workers.__getitem__)
    print(f"{model}: the peer by workers: {by_workers}", file=sys.stderr)
    pairs = []
    for i in range(rounds):
        run = folder / f"run{i}"
        if i % 2:
            mine = ours(model, data, case.epochs, run)
            theirs = peer(model, data, case.epochs, workers)
        else:
            theirs = peer(model, data, case.epochs, workers)
            mine = ours(model, data, case.epochs, run)
        pairs.append((mine, theirs))
        print(f"{model}: {mine:.1f} / {theirs:.1f} = {mine / theirs:.2f}", file=sys.stderr)
    return {
        "skipway_images_per_second": spread([mine for mine, _ in pairs]),
        "plain_images_per_second": spread([theirs for _, theirs in pairs]),
        "ratio": spread([mine / theirs for mine, theirs in pairs]),
        "bar": case.bar,
        "counted_steps": case.steps * case.epochs,
        "batch": BATCH,
        "peer_workers": workers,
        "peer_by_workers": {str(w): round(v, 1) for w, v in by_workers.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--models", nargs="+", default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", nargs=4, metavar=("MODEL", "FOLDER", "EPOCHS", "WORKERS"))
    options = parser.parse_args()
    if options.plain:
        model, folder, epochs, workers = options.plain
        print(json.dumps(plain_loop(model, folder, int(epochs), int(workers))))
        return
    if options.data is None:
        parser.error("--data is missing")
    figures = {}
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            figures[model] = measure(model, options.data, options.rounds, Path(folder))
    record("train_speed", {"models": figures})


if __name__ == "__main__":
    main()
