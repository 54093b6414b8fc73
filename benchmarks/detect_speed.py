"""Training images/s of detectors: Skipway against torchvision's own model and reference loop.

Faster R-CNN (`--task detect`) and Mask R-CNN (`--task instance`), both on ResNet-18 with FPN, from
scratch, at the same input size and batch, on the same images:
- Skipway: its command line with defaults but for network, size, batch and length; once more with
  torchvision's full heads (`full_heads`), as its own defaults for small data are lighter.
- torchvision: its network with its defaults, its CocoDetection, resizing and normalising, the loop
  of its references (SGD, float32), and the number of workers (0, 1 or 2) that is fastest here.

Each round runs all as processes of their own, in turns of who goes first. The first epoch is not
counted, and none evaluates.

    python benchmarks/detect_speed.py --boxes BLOOD-CELLS --masks NUCLEI
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recorded import record_case, skipway, spread
from train_speed import fastest, images_per_second


@dataclass(frozen=True)
class Case:
    """What is measured, and the ratio to torchvision to reach."""

    task: str
    size: int
    """The long side of the input in pixels."""
    batch: int = 4
    steps: int = 10
    """Of an epoch."""
    epochs: int = 2
    """Counted ones."""
    bar: float = 1.5


CASES = {
    "faster-rcnn": Case("detect", 416),
    "mask-rcnn": Case("instance", 256),
}
FULL_HEADS = {
    "channels": 256, "box_width": 1024, "rois": 512, "candidates_train": 2000,
    "proposals_train": 2000,
}  # fmt: skip
Side = Callable[[int], float]


def torchvisions(head: str, data: Path, epochs: int, workers: int) -> float:
    """Images/s of torchvision's model and reference loop after the first epoch."""
    import torch
    from torchvision import datasets
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.transforms import v2

    case = CASES[head]
    kinds = ["boxes", "labels"] + (["masks"] if case.task == "instance" else [])
    changes = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomHorizontalFlip(0.5),
            v2.SanitizeBoundingBoxes(),
            v2.ToDtype(torch.float32, scale=True),
            v2.ToPureTensor(),
        ]
    )
    found = datasets.CocoDetection(data / "train", data / "train.json", transforms=changes)
    images = datasets.wrap_dataset_for_transforms_v2(found, target_keys=kinds)
    classes = len(json.loads((data / "train.json").read_text())["categories"]) + 1
    net = {"faster-rcnn": detection.FasterRCNN, "mask-rcnn": detection.MaskRCNN}[head](
        resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5),
        classes,
        min_size=case.size,
        max_size=case.size,
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02 * case.batch / 16, momentum=0.9,
                                weight_decay=1e-4)  # fmt: skip
    loader = torch.utils.data.DataLoader(
        images, case.batch, shuffle=True, num_workers=workers, drop_last=True,
        collate_fn=lambda rows: tuple(zip(*rows, strict=True)), persistent_workers=workers > 0,
    )  # fmt: skip
    begun, seen = 0.0, 0
    for epoch in range(epochs + 1):
        if epoch == 1:
            begun = time.perf_counter()
        for inputs, targets in loader:
            losses = net(inputs, list(targets))
            loss = sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(inputs) if epoch else 0
    return seen / (time.perf_counter() - begun)


def torchvision_side(head: str, data: Path, workers: int) -> Side:
    """`torchvisions` in a process of its own."""

    def run(epochs: int) -> float:
        command = [sys.executable, __file__, "--peer", head, str(data), str(epochs), str(workers)]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    return run


def ours(head: str, data: Path, folder: Path, full: bool) -> Side:
    """Skipway's command line; its runs are put below `folder`."""
    case, number = CASES[head], itertools.count()

    def run(epochs: int) -> float:
        out = folder / f"{'full' if full else 'light'}{next(number)}"
        heads = FULL_HEADS if full else {}
        skipway(
            *("train", data, "--task", case.task, "--model", "resnet18", "--val", "none"),
            *("--set", f"data.size={case.size}", "--batch-size", case.batch),
            *("--epochs", epochs + 1, "--checkpoint-every", "1000 epochs", "--out", out),
            *(f"--set=detector.{key}={value}" for key, value in heads.items()),
        )
        return images_per_second(out)

    return run


def subset(data: Path, into: Path, images: int) -> Path:
    """The first training images that have an object, with their sound annotations."""
    held = json.loads((data / "train.json").read_text())
    sound = [a for a in held["annotations"] if min(a["bbox"][2:]) > 0 and not a.get("iscrowd")]
    with_objects = {a["image_id"] for a in sound}
    chosen = [i for i in held["images"] if i["id"] in with_objects][:images]
    assert len(chosen) == images, f"{data}: too few images"
    ids = {i["id"] for i in chosen}
    (into / "train").mkdir(parents=True)
    for image in chosen:
        place = data / "train" / image["file_name"]
        (into / "train" / image["file_name"]).symlink_to(place.resolve())
    held |= {"images": chosen, "annotations": [a for a in sound if a["image_id"] in ids]}
    (into / "train.json").write_text(json.dumps(held))
    return into


def measure(head: str, data: Path, rounds: int, folder: Path) -> dict[str, Any]:
    """All sides in turn, `rounds` times."""
    case = CASES[head]
    data = subset(data, folder / "data", case.steps * case.batch)
    best, workers = fastest(
        f"{head}: torchvision", {n: torchvision_side(head, data, n) for n in (0, 1, 2)}
    )
    sides = {
        "skipway": ours(head, data, folder, full=False),
        "full_heads": ours(head, data, folder, full=True),
        "torchvision": torchvision_side(head, data, best),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        names = list(sides)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            rates[name].append(sides[name](case.epochs))
        shown = ", ".join(f"{name} {rates[name][-1]:.2f}" for name in sides)
        print(f"{head}, round {i + 1}: {shown} images/s", file=sys.stderr)
    peer = rates.pop("torchvision")
    return {
        "images_per_second": {n: spread(r) for n, r in (rates | {"torchvision": peer}).items()},
        "ratio": {
            name: spread([a / b for a, b in zip(mine, peer, strict=True)])
            for name, mine in rates.items()
        },
        "bar": case.bar,
        "counted_steps": case.steps * case.epochs,
        "batch": case.batch,
        "size": case.size,
        "images_per_second_by_workers": workers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boxes", type=Path, help="COCO boxes: train/ and train.json")
    parser.add_argument("--masks", type=Path, help="the same with masks")
    parser.add_argument("--rounds", type=int, default=5)
    names = ("HEAD", "FOLDER", "EPOCHS", "WORKERS")
    parser.add_argument("--peer", nargs=4, metavar=names, help="the peer's process")
    options = parser.parse_args()
    if options.peer:
        head, folder, epochs, workers = options.peer
        print(json.dumps(torchvisions(head, Path(folder), int(epochs), int(workers))))
        return
    for head, data in (("faster-rcnn", options.boxes), ("mask-rcnn", options.masks)):
        if data is not None:
            with tempfile.TemporaryDirectory() as folder:
                figures = measure(head, data, options.rounds, Path(folder))
            record_case("detect_speed", head, figures)


if __name__ == "__main__":
    main()
