"""How training scales: with processes, and memory and time with depth.

- `processes`: images/s of ResNet-20 (batch 128) and resnet18_cifar (batch 64) in one process of one
  thread, in one of two threads, and in two processes of one thread under torchrun, each with half
  of the batch. In turns; the first epoch of each run is not counted.
- `depth`: peak memory of the process, torch included, and time of a step of the CIFAR nets from 20
  to 1,202 layers at one batch, with activations kept and computed anew (checkpointing). Each in a
  process of its own; of three epochs of two steps the first is not counted, and the faster of the
  others is taken. Drawn in docs/scaling.svg.
- `large`: peak memory of the deepest nets with checkpointing.

All are `skipway train` with its defaults on a few images. Parts that are not named keep their
results.

    python benchmarks/scaling.py --data CIFAR10 --photos IMAGENETTE
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recorded import RESULTS, record_case, spread
from skipway.report.markup import Html, tag
from skipway.report.plot import HEIGHT, WIDTH, Axis, Line, decades, plot
from train_speed import CASES, images_per_second, subset

DRAWING = RESULTS.parent / "docs" / "scaling.svg"
DEPTHS = (20, 56, 110, 1202)
LAYOUTS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes": (2, 1)}
"""Processes, and threads of each."""


@dataclass(frozen=True)
class Large:
    model: str
    batch: int
    size: int


LARGE = (
    Large("preresnet1001", 64, 32),
    Large("resnet152", 8, 224),
    Large("resnet152", 16, 224),
)


def train(
    data: Path, out: Path, model: str, batch: int, epochs: int, *more: str, layout: Sequence[int]
) -> None:
    """A run in so many processes of so many threads, which share each batch."""
    processes, threads = layout
    command = [sys.executable, "-m", "skipway"]
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", "-m", "skipway"]
    command += ["train", str(data), "--model", model, "--val", "none", "--epochs", str(epochs)]
    command += ["--batch-size", str(batch // processes), "--threads", str(threads)]
    command += ["--checkpoint-every", "1000 epochs", "--out", str(out), *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def processes(data: Path, rounds: int, folder: Path) -> dict[str, Any]:
    """Images/s by network and layout."""
    figures: dict[str, Any] = {}
    for model in ("resnet20", "resnet18_cifar"):
        case = CASES[model]
        images = subset(data, folder / model, case.steps * case.batch)
        rates: dict[str, list[float]] = {name: [] for name in LAYOUTS}
        for i in range(rounds):
            names = list(LAYOUTS)
            for name in names[i % 3 :] + names[: i % 3]:
                out = folder / f"{model}-{i}-{name}"
                train(images, out, model, case.batch, case.epochs + 1, layout=LAYOUTS[name])
                rates[name].append(images_per_second(out))
            shown = ", ".join(f"{name} {rates[name][-1]:.1f}" for name in LAYOUTS)
            print(f"{model}: {shown} images/s", file=sys.stderr)
        one, threads, two = rates.values()
        figures[model] = {
            "batch": case.batch,
            "counted_steps": case.steps * case.epochs,
            "images_per_second": {name: spread(found) for name, found in rates.items()},
            "two_processes_over_one_thread": ratio(two, one),
            "two_processes_over_two_threads": ratio(two, threads),
            "two_threads_over_one": ratio(threads, one),
        }
    return figures


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    return spread([a / b for a, b in zip(above, below, strict=True)])


def deep(
    data: Path, out: Path, model: str, batch: int, size: int, checkpointing: bool
) -> dict[str, Any]:
    """Peak memory in MiB, and seconds of a step of the faster counted epoch."""
    settings = [f"model.architecture.checkpointing={json.dumps(checkpointing)}"]
    settings.append(f"data.size={size}")
    more = [f"--set={setting}" for setting in settings]
    train(data, out, model, batch, 3, *more, layout=(1, 2))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = rows[0]["step"]
    figures = {
        "peak_memory_mib": rows[-1]["memory_mib"],
        "step_seconds": round(min(row["seconds"] for row in rows[1:]) / steps, 4),
        "precision": json.loads((out / "run.json").read_text())["config"]["precision"],
    }
    print(f"{model}, batch {batch}, checkpointing {checkpointing}: {figures}", file=sys.stderr)
    return figures


def depth(data: Path, batch: int, depths: Sequence[int], folder: Path) -> dict[str, Any]:
    """Memory and time by depth, kept and computed anew."""
    images = subset(data, folder / "images", 2 * batch)
    curve = [
        {"depth": n, "checkpointing": anew}
        | deep(images, folder / f"{n}-{anew}", f"resnet{n}", batch, 32, anew)
        for n in depths
        for anew in (False, True)
    ]
    return {"batch": batch, "size": 32, "curve": curve}


def large(data: Mapping[int, Path], folder: Path) -> dict[str, Any]:
    """Memory of the deepest nets, computed anew."""
    found = []
    for net in LARGE:
        images = subset(data[net.size], folder / f"images-{net.model}-{net.batch}", 2 * net.batch)
        out = folder / f"{net.model}-{net.batch}"
        figures = deep(images, out, net.model, net.batch, net.size, True)
        found.append({"model": net.model, "batch": net.batch, "size": net.size} | figures)
    return {"checkpointing": True, "nets": found}


def draw(figures: Mapping[str, Any]) -> None:
    """Memory and time by depth, side by side, in the look of the reports."""
    curve, batch = figures["curve"], figures["batch"]
    ends = min(r["depth"] for r in curve), max(r["depth"] for r in curve)
    layers = Axis("layers", *ends, [(r["depth"], f"{r['depth']:,}") for r in curve], log=True)
    panels = []
    for place, (key, title, label) in enumerate(
        (
            ("peak_memory_mib", "Peak memory of training", "MiB"),
            ("step_seconds", "Time of a step", "seconds"),
        )
    ):
        lines = [
            Line(
                "recomputed" if anew else "kept",
                [(r["depth"], r[key]) for r in curve if r["checkpointing"] is anew],
                "training" if anew else "validation",
            )
            for anew in (False, True)
        ]
        axis = decades(label, [r[key] for r in curve])
        figure = plot(title, f"CIFAR ResNets at batch {batch}.", layers, axis, lines)
        found = re.search(r"<svg.*</svg>", figure)
        assert found is not None
        at = {"x": 16 + place * (WIDTH + 40), "y": 44, "width": WIDTH, "height": HEIGHT}
        inner = found[0].replace("<svg", Html("<svg ") + attributes(at), 1)
        heading = tag("text", f"{title}, batch {batch}", class_="title", x=at["x"], y=24)
        panels.append(Html(heading + inner))
    width, height = 2 * WIDTH + 72, HEIGHT + 60
    css = importlib.resources.files("skipway.report").joinpath("page.css").read_text("utf-8")
    series = css[: css.index("* {")]  # the colours
    rules = [line for line in css.splitlines() if line.startswith("svg ")]
    more = [
        "svg { font-family: system-ui, sans-serif; font-variant-numeric: tabular-nums; }",
        "svg .title { font-size: 15px; font-weight: 600; }",
        "svg.plot { overflow: visible; }",  # the names of the lines
        "svg .ground { fill: var(--ground); }",
    ]
    drawn = tag(
        "svg",
        tag("style", Html("\n".join([series, *rules, *more]))),
        tag("rect", class_="ground", width=width, height=height),
        *panels,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        class_="residual",
        role="img",
        aria_label="Memory and time of training by depth",
    )
    DRAWING.write_text(drawn + "\n")


def attributes(values: Mapping[str, object]) -> str:
    return " ".join(f'{name}="{value}"' for name, value in values.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="CIFAR-10 as class folders")
    parser.add_argument("--photos", type=Path, help="photographs as class folders, for `large`")
    parts = ("processes", "depth", "large")
    parser.add_argument("--parts", nargs="+", choices=parts, help="by default those with data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64, help="of the curve")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--draw", action="store_true", help="only draw what is recorded")
    options = parser.parse_args()
    if not options.draw:
        asked = options.parts or (parts if options.photos else parts[:2])
        if options.data is None or ("large" in asked and options.photos is None):
            parser.error("--data, and for `large` --photos: missing")
        for part in asked:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                if part == "processes":
                    figures = processes(options.data, options.rounds, folder)
                elif part == "depth":
                    figures = depth(options.data, options.batch, options.depths, folder)
                else:
                    figures = large({32: options.data, 224: options.photos}, folder)
            record_case("scaling", part, figures)
    cases = json.loads((RESULTS / "scaling.json").read_text())["cases"]
    if "depth" in cases:
        draw(cases["depth"])


if __name__ == "__main__":
    main()
