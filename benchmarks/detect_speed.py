"""Training images/s of detectors: Skipway against torchvision's own model and reference loop.

Faster R-CNN (`--task detect`) and Mask R-CNN (`--task instance`), both on ResNet-18 with FPN, from
scratch, all of it trained, with batch norms, 3 anchors a place from 32 to 512 pixels, at the same
input size and batch, on the same images and objects:
- Skipway: its command line with defaults but for network, size, batch and length, so in bf16 where
  the machine has it. Its recipe scales images by 0.7 to 1.4 and crops them to their size in use, so
  that a batch has about as many pixels as torchvision's. It averages weights and clips gradients.
  `skipway` has the light heads that it chooses for small data (64 RoIs an image of 500 proposals,
  narrower layers), `full_heads` torchvision's (512 of 2,000).
- torchvision: FasterRCNN and MaskRCNN as its builders make them without weights, and what its
  references/detection do: CocoDetection, boxes clipped to the image, flips, SGD with momentum and
  warm-up, a loss that is looked at in each step, float32; resizing and normalising are its
  network's. Workers that stay, as many (0 or 2) as are fastest here, or as are given. Batches by
  aspect ratio are left out: where all images have one, as here, they change nothing.

Each round runs all as processes of their own, in turns of who goes first. The first epoch, which
has the warm-up, is not counted, and none evaluates. The bar is for light and for full heads.

    python benchmarks/detect_speed.py --boxes BLOOD-CELLS --masks NUCLEI
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
    steps: int = 8
    """Of an epoch."""
    epochs: int = 1
    """Counted ones of a round."""
    bar: float = 1.5


CASES = {
    "faster-rcnn": Case("detect", 416),
    "mask-rcnn": Case("instance", 256),
}
FULL_HEADS = {
    "channels": 256, "box_width": 1024, "rois": 512, "candidates_train": 2000,
    "proposals_train": 2000, "candidates_test": 1000, "proposals_test": 1000,
}  # fmt: skip
"""torchvision's, as settings of a detector."""
WARMUP = 1000
"""Steps in which torchvision's rate rises, as in its references on COCO. Over one epoch of so few
images it rises too fast: Mask R-CNN's loss became NaN."""
Side = Callable[[int], float]


def network(head: str, classes: int, size: int) -> Any:
    """torchvision's detector as its builders make one without weights, on ResNet-18 in place of 50:
    the backbone's norms are no frozen ones, which need weights, and all of it is trained."""
    from torch import nn
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    build = {"faster-rcnn": detection.FasterRCNN, "mask-rcnn": detection.MaskRCNN}[head]
    return build(backbone, classes + 1, min_size=size, max_size=size)


def together(rows: Any) -> Any:
    """A batch as torchvision takes it: images, and targets."""
    return tuple(zip(*rows, strict=True))


def reference_loop(
    head: str,
    net: Any,
    data: Path,
    batch: int,
    epochs: int,
    workers: int = 0,
    warmup: int | None = None,
) -> Iterator[tuple[int, float]]:
    """Trains as torchvision's references do; gives images and seconds of each epoch.

    Their rate is 0.02 for a batch of 16, in proportion, and falls to a tenth after 16 and after 22
    of 26 epochs, here after the same shares. It rises over the first 1,000 steps, but at most the
    first epoch, or over `warmup` steps.
    """
    import torch
    from torchvision import datasets
    from torchvision.transforms import v2

    kinds = ["boxes", "labels"] + (["masks"] if head == "mask-rcnn" else [])
    changes = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )
    with contextlib.redirect_stdout(sys.stderr):  # pycocotools tells of its index
        found = datasets.CocoDetection(data / "train", data / "train.json", transforms=changes)
    images = datasets.wrap_dataset_for_transforms_v2(found, target_keys=kinds)
    loader: Any = torch.utils.data.DataLoader(
        images, batch, shuffle=True, num_workers=workers, drop_last=True, collate_fn=together,
        persistent_workers=workers > 0,
    )  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), 0.02 * batch / 16, 0.9, weight_decay=1e-4)
    falls = [round(epochs * share / 26) for share in (16, 22)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, 0.1)
    steps = warmup or min(1000, len(loader) - 1)
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 1000, total_iters=steps)
    net.train()
    for epoch in range(epochs):
        begun, seen = time.perf_counter(), 0
        for inputs, targets in loader:
            loss = sum(net(list(inputs), list(targets)).values())
            if not math.isfinite(loss.item()):
                raise SystemExit(f"torchvision: the loss is {loss.item()}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if epoch == 0 or warmup:
                rising.step()
            seen += len(inputs)
        schedule.step()
        yield seen, time.perf_counter() - begun


def classes_of(data: Path) -> int:
    """How many classes there are; labels are their ids, of which torchvision's 0 is none."""
    ids = [row["id"] for row in json.loads((data / "train.json").read_text())["categories"]]
    assert ids == [*range(1, len(ids) + 1)], f"{data}: ids of categories are not 1, 2, …"
    return len(ids)


def torchvisions(head: str, data: Path, epochs: int, workers: int) -> float:
    """Images/s of torchvision's model and reference loop after the first epoch."""
    case = CASES[head]
    net = network(head, classes_of(data), case.size)
    loop = reference_loop(head, net, data, case.batch, epochs + 1, workers, WARMUP)
    counted = [*loop][1:]
    return sum(images for images, _ in counted) / sum(seconds for _, seconds in counted)


def torchvision_side(head: str, data: Path, workers: int) -> Side:
    """`torchvisions` in a process of its own."""

    def run(epochs: int) -> float:
        command = [sys.executable, __file__, "--peer", head, str(data), str(epochs), str(workers)]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    return run


def heads(full: bool) -> list[str]:
    """Flags for torchvision's heads; none leaves them to Skipway."""
    chosen = FULL_HEADS if full else {}
    return [f"--set=detector.{key}={value}" for key, value in chosen.items()]


def ours(head: str, data: Path, folder: Path, full: bool) -> Side:
    """Skipway's command line; its runs are put below `folder`."""
    case, number = CASES[head], itertools.count()

    def run(epochs: int) -> float:
        out = folder / f"{'full' if full else 'light'}{next(number)}"
        skipway(
            *("train", data, "--task", case.task, "--model", "resnet18", "--val", "none"),
            *("--set", f"data.size={case.size}", "--batch-size", case.batch),
            *("--epochs", epochs + 1, "--checkpoint-every", "1000 epochs", "--out", out),
            *heads(full),
        )
        return images_per_second(out)

    return run


def precision_of(run: Path) -> str:
    """Of a run of Skipway, which chose it."""
    return str(json.loads((run / "run.json").read_text())["config"]["precision"])


def subset(data: Path, into: Path, images: int | None, split: str = "train") -> Path:
    """The first images of a split that have an object, or all, with their sound annotations."""
    held = json.loads((data / f"{split}.json").read_text())
    sound = [a for a in held["annotations"] if min(a["bbox"][2:]) > 0 and not a.get("iscrowd")]
    with_objects = {a["image_id"] for a in sound}
    chosen = [i for i in held["images"] if i["id"] in with_objects][:images]
    assert images in (None, len(chosen)), f"{data}: too few images"
    ids = {i["id"] for i in chosen}
    (into / split).mkdir(parents=True)
    for image in chosen:
        place = data / split / image["file_name"]
        (into / split / image["file_name"]).symlink_to(place.resolve())
    held |= {"images": chosen, "annotations": [a for a in sound if a["image_id"] in ids]}
    (into / f"{split}.json").write_text(json.dumps(held))
    return into


def measure(
    head: str, data: Path, rounds: int, folder: Path, workers: int | None = None
) -> dict[str, Any]:
    """All sides in turn, `rounds` times; torchvision with the faster number of workers, or this."""
    case = CASES[head]
    data = subset(data, folder / "data", case.steps * case.batch)
    best, tried = workers, {}
    if best is None:
        best, tried = fastest(
            f"{head}: torchvision", {n: torchvision_side(head, data, n) for n in (0, 2)}
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
        "counted_steps": case.steps * case.epochs * rounds,
        "batch": case.batch,
        "size": case.size,
        "precision": {"skipway": precision_of(folder / "light0"), "torchvision": "float32"},
        "workers": best,
        "images_per_second_by_workers": tried,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boxes", type=Path, help="COCO boxes: train/ and train.json")
    parser.add_argument("--masks", type=Path, help="the same with masks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--workers", type=int, help="torchvision's, in place of the faster of 0 and 2"
    )
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
                figures = measure(head, data, options.rounds, Path(folder), options.workers)
            record_case("detect_speed", head, figures)


if __name__ == "__main__":
    main()
