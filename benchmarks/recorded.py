"""How a measurement is recorded: what was run, on what, and the figures with their spread."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from skipway.card import parse_card
from skipway.machine import cores, cpu_name
from skipway.weights import read_state, save_weights

RESULTS = Path(__file__).parents[1] / "results"


def machine(*more: str) -> dict[str, Any]:
    """The computer and the versions that a figure depends on; `more` packages beside the usual."""
    names = ("skipway", "torch", "torchvision", "numpy", "pillow", *more)
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def commit() -> str:
    """The commit that was measured, marked where files other than results were changed since."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(RESULTS.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    found = git("describe", "--always", "--abbrev=12") or "unknown"
    others = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return f"{found}-dirty" if others else found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least, largest and number of repeated measurements."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "n": len(values),
    }


def stamp(*more: str) -> dict[str, Any]:
    """What was run, when, on which commit and machine; see `machine`."""
    shown = [Path(a).name if Path(a).exists() else a for a in sys.argv[1:]]
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *shown])
    row = {"command": command, "commit": commit(), "date": date.today().isoformat()}
    return row | {"machine": machine(*more)}


def record(name: str, figures: dict[str, Any]) -> None:
    """Write ``results/NAME.json`` with command, date and machine, and print it."""
    _write(name, stamp() | figures)


def record_case(name: str, case: str, figures: dict[str, Any], *more: str) -> None:
    """Put one case, with a stamp of its own, into the "cases" of ``results/NAME.json``.

    The other cases there stay as they are: long measurements are made in several sittings.
    """
    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    cases = found.get("cases", {}) | {case: stamp(*more) | figures}
    _write(name, found | {"cases": dict(sorted(cases.items()))})


def _write(name: str, row: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(row, indent=1) + "\n")
    print(json.dumps(row, indent=1))


def skipway(*arguments: object) -> Any:
    """The JSON answer of one skipway command, run as its user would; its log goes to stderr."""
    command = [sys.executable, "-m", "skipway", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def trained(out: Path, data: str, *flags: object) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record and the log of a training in `out`: done now, gone on with, or taken as it is."""
    record = out / "run.json"
    if not record.exists():
        skipway("train", data, "--out", out, *flags)
    elif json.loads(record.read_text())["status"] != "finished":
        skipway("train", "--resume", out)
    rows = (out / "metrics.jsonl").read_text().splitlines()
    return json.loads(record.read_text()), [json.loads(row) for row in rows]


def keep(run: Path, name: str, folder: Path) -> None:
    """Copy weights, card and log of a run to ``results/NAME``; paths lose `folder`."""
    place = RESULTS / name
    place.mkdir(parents=True, exist_ok=True)

    def bare(text: str) -> str:
        return text.replace(f"{run.parent}/", "").replace(f"{folder}/", "")

    for file in ("card.json", "metrics.jsonl", "run.json"):
        (place / file).write_text(bare((run / file).read_text()))
    state, card = read_state(run / "best.safetensors")
    assert card is not None
    save_weights(place / "best.safetensors", state, parse_card(bare(card.to_json()), "card"))


def tested(run: dict[str, Any], rows: list[dict[str, Any]], answer: Any) -> dict[str, Any]:
    """The figures of a training of one seed, scored on its test images by `skipway eval`."""
    return {
        "accuracy": answer["metrics"]["accuracy"],
        "interval": run["result"]["interval"],
        "n": answer["n"],
        "split": answer["split"],
        "epochs": len(rows),
        "training_images": run["data"]["splits"]["train"]["n"],
        "seconds_of_training": round(sum(row["seconds"] for row in rows)),
        "precision": run["config"]["precision"],
        "trained_with_threads": run["environment"]["threads"],
        "seeds": [run["config"]["seed"]],
    }
