"""Training images/s from class folders on disk: Skipway against the plain PyTorch loop.

The peer is what a tutorial writes: ImageFolder, RandomCrop(32, 4), RandomHorizontalFlip,
ToTensor and Normalize in two workers; a contiguous float32 network; SGD with Nesterov momentum;
PyTorch's default threads. Its networks: torchvision's resnet18 with a 3x3 stem and no pool, and,
as torchvision has no ResNet-20, ours. Skipway is its command line with everything left to its
defaults but the number of steps. Each round runs both in turn as processes of their own on the
same images; both count the same number of steps, from the first batch to the last update.

    python benchmarks/train_speed.py --data CIFAR10   # a folder with train/CLASS/*.png
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recorded import record, skipway, spread

STEPS = {"resnet20": 40, "resnet18_cifar": 12}
BATCH = 128
BARS = {"resnet20": 2.0, "resnet18_cifar": 1.8}


def plain_loop(model: str, folder: str, steps: int) -> float:
    """Images/s of the tutorial's loop over that many batches."""
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
    loader = torch.utils.data.DataLoader(images, BATCH, shuffle=True, num_workers=2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    criterion = nn.CrossEntropyLoss()
    net.train()
    batches = iter(itertools.chain.from_iterable(itertools.repeat(loader)))
    begun = time.perf_counter()
    for _ in range(steps):
        inputs, labels = next(batches)
        optimizer.zero_grad()
        loss = criterion(net(inputs), labels)
        loss.backward()
        optimizer.step()
    return steps * BATCH / (time.perf_counter() - begun)


def subset(data: Path, into: Path, images: int) -> Path:
    """Links to the first images of each class, as a data set of its own."""
    classes = sorted(p for p in (data / "train").iterdir() if p.is_dir())
    for folder in classes:
        place = into / "train" / folder.name
        place.mkdir(parents=True)
        for image in sorted(folder.iterdir())[: images // len(classes)]:
            (place / image.name).symlink_to(image.resolve())
    return into


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", nargs=3, metavar=("MODEL", "FOLDER", "STEPS"))
    options = parser.parse_args()
    if options.plain:
        model, folder, steps = options.plain
        print(json.dumps(plain_loop(model, folder, int(steps))))
        return
    figures = {}
    for model in options.models:
        steps = STEPS[model]
        ours, peer, ratios = [], [], []
        with tempfile.TemporaryDirectory() as folder:
            data = subset(options.data, Path(folder) / "data", 40 * BATCH)
            for i in range(options.rounds):
                command = [sys.executable, __file__, "--data", str(options.data), "--plain"]
                command += [model, str(data / "train"), str(steps)]
                peer.append(float(subprocess.run(command, check=True, capture_output=True).stdout))
                answer = skipway(
                    *("train", data, "--model", model, "--val", "none"),
                    *("--out", f"{folder}/run{i}", "--set", f"schedule.length={steps} steps"),
                    *("--batch-size", BATCH),
                )
                ours.append(answer["images_per_second"])
                ratios.append(ours[-1] / peer[-1])
                print(
                    f"{model}: {ours[-1]:.1f} / {peer[-1]:.1f} = {ratios[-1]:.2f}", file=sys.stderr
                )
        figures[model] = {
            "skipway_images_per_second": spread(ours),
            "plain_images_per_second": spread(peer),
            "ratio": spread(ratios),
            "bar": BARS[model],
            "steps": steps,
            "batch": BATCH,
        }
    record("train_speed", {"models": figures})


if __name__ == "__main__":
    main()
