"""Detectors after the same short schedule: Skipway's AP against torchvision's own model and loop.

Faster R-CNN on ResNet-18 with FPN, from scratch, trained for the same epochs at the same size and
batch on the same images and objects of a COCO folder:
- Skipway: `skipway train --task detect`, all else the default: its recipe (AdamW, cosine, averaged
  weights, scale jitter, flips), bf16 where the machine has it, and the light heads that it chooses
  for small data; with `--heads full` torchvision's, in a case of its own.
- torchvision: the network and the loop of `detect_speed.py`: SGD with momentum, rate in proportion
  to the batch, warm-up, a tenth after 16 and 22 of 26 parts, flips, float32.

Both are scored on val and test by the same evaluator, with the weights after the last step
(Skipway's are averages), so that val chose nothing. Boxes are matched in original pixels by
pycocotools, of both the 100 most certain of an image above a score of 0.05, after suppression at an
IoU of 0.5. The difference of AP, ours less theirs, has an interval by a paired bootstrap over
images and a p by swaps. The bar: the interval is not all below 0.

Images/s are those of the two trainings, one after the other, without their first epochs where there
are more: `detect_speed.py` measures speed. What is trained already below --out is taken as it is.
With --limit it is a trial on so few images of each split, and nothing is recorded.

    python benchmarks/detect_schedule.py --data BLOOD-CELLS --out RUNS --seed 0
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detect_speed import classes_of, heads, network, precision_of, reference_loop, subset
from recorded import record_case, trained

SIZE = 416
EPOCHS = 12
SCORED = ("val", "test")
LEAST = 0.0
"""What the upper end of the difference's interval must reach."""


def torchvisions(data: Path, out: Path, settings: dict[str, Any], workers: int) -> dict[str, Any]:
    """torchvision's training in `out`: done now, or taken as it is. The images and the seconds of
    its epochs, its weights are beside them."""
    import torch

    record = out / "run.json"
    if record.exists():
        found: dict[str, Any] = json.loads(record.read_text())
        assert found["settings"] == settings, f"{out}: was trained with {found['settings']}"
        return found
    torch.manual_seed(settings["seed"])
    net = network("faster-rcnn", classes_of(data), settings["size"])
    epochs = []
    batch, length = settings["batch"], settings["epochs"]
    with tempfile.TemporaryDirectory() as folder:
        sound = subset(data, Path(folder) / "data", None)  # that on which Skipway trains too
        for row in reference_loop("faster-rcnn", net, sound, batch, length, workers):
            epochs.append(row)
            print(f"torchvision: epoch {len(epochs)}, {speed([row]):.2f} images/s", file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), out / "weights.pt")
    found = {"settings": settings, "workers": workers, "epochs": epochs}
    record.write_text(json.dumps(found))
    return found


def speed(epochs: Sequence[tuple[int, float]]) -> float:
    """Images/s of epochs, each its images and seconds; the first is left out where it can be."""
    counted = epochs[1:] or epochs
    return sum(images for images, _ in counted) / sum(seconds for _, seconds in counted)


def score(net: Any, split: Any, classes: int) -> Any:
    """What torchvision's network finds in a split, as Skipway scores it."""
    import numpy as np
    import torch

    from skipway.detections import Detections
    from skipway.tasks.detect import DetectionEvaluator

    evaluator = DetectionEvaluator(classes, ("box",))
    net.eval()
    for i in range(len(split)):
        image = split.image(i, 3)
        with torch.inference_mode():
            (found,) = net([torch.from_numpy(image).permute(2, 0, 1).float() / 255])
        boxes, scores = (found[key].numpy() for key in ("boxes", "scores"))
        labels = found["labels"].numpy().astype(np.int64) - 1  # its 0 is none
        evaluator.add(i, Detections(boxes, labels, scores), split.target(i), image.shape[:2])
    return evaluator


def compared(data: Path, ours: Path, theirs: Path, size: int, threads: int) -> dict[str, Any]:
    """Both on each split: their scores, the difference of AP, its interval, p and the bar."""
    import torch

    from skipway.data.objects import open_objects
    from skipway.locator import load_locator, score_objects

    locator = load_locator(ours / "last.safetensors", threads)
    net = network("faster-rcnn", len(locator.classes), size)
    net.load_state_dict(torch.load(theirs / "weights.pt"))
    kept, same = net.roi_heads, locator.card.detector
    assert same is not None
    assert kept.score_thresh == same.score_threshold
    assert (kept.nms_thresh, kept.detections_per_img) == (same.nms, same.detections)
    named = json.loads((data / "train.json").read_text())["categories"]
    assert [row["name"] for row in named] == [*locator.classes]
    opened = open_objects(str(data), on_bad="skip", classes=locator.classes)
    rows = {}
    for name in SCORED:
        if name not in opened.splits:
            continue
        split: Any = opened.splits[name]
        mine, _ = score_objects(locator, split, threads, "skip")
        found = score(net, split, len(locator.classes)).against(mine)
        ends, difference = found.intervals["ap"], found.differences["ap"]
        rows[name] = {
            "n": found.n,
            "skipway": found.second,
            "torchvision": found.first,
            "difference": difference,
            "interval": ends,
            "p": found.p["ap"],
            "met": (difference if ends is None else ends[1]) >= LEAST,
        }
    return rows


def measure(data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both trainings, and what they came to."""
    mine, theirs = options.out / f"skipway-{options.heads}", options.out / "torchvision"
    run, rows = trained(
        mine, str(data), "--task", "detect", "--model", "resnet18", "--on-bad", "skip",
        "--set", f"data.size={options.size}", "--epochs", options.epochs,
        "--seed", options.seed, *heads(options.heads == "full"),
    )  # fmt: skip
    config, images = run["config"], run["data"]["splits"]["train"]["n"]
    settings = {
        "epochs": options.epochs,
        "batch": config["batch_size"],
        "size": options.size,
        "seed": options.seed,
    }
    was = {"epochs": len(rows), "size": config["data"]["size"], "seed": config["seed"]}
    assert settings | was == settings, f"{mine}: was trained with {was}"
    peer = torchvisions(data, theirs, settings, options.workers)
    threads = run["environment"]["threads"]
    return {
        "splits": compared(data, mine, theirs, options.size, threads),
        "bar": {"difference": LEAST},
        "images_per_second": {
            "skipway": round(speed([(images, row["seconds"]) for row in rows]), 2),
            "torchvision": round(speed(peer["epochs"]), 2),
        },
        **settings,
        "heads": options.heads,
        "training_images": images,
        "precision": {"skipway": precision_of(mine), "torchvision": "float32"},
        "threads": threads,
        "workers": {"skipway": config["data"]["workers"], "torchvision": peer["workers"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a COCO folder with boxes")
    parser.add_argument("--out", type=Path, required=True, help="for the trainings of this seed")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--size", type=int, default=SIZE, help="long side of the input in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--heads", choices=("light", "full"), default="light", help="Skipway's")
    parser.add_argument("--workers", type=int, default=0, help="torchvision's")
    parser.add_argument("--limit", type=int, metavar="IMAGES", help="of each split, for a trial")
    options = parser.parse_args()
    if options.limit is None:
        told = f"{options.data.name}, {options.heads} heads, {options.epochs} epochs"
        figures = measure(options.data, options)
        record_case("detect_schedule", f"{told}, seed {options.seed}", figures)
        return
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", *SCORED):
            if (options.data / f"{split}.json").exists():
                subset(options.data, Path(folder), options.limit, split)
        print(json.dumps(measure(Path(folder), options), indent=1))


if __name__ == "__main__":
    main()
