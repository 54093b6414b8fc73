"""`skipway bench`."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipway.cli.shared import Json, app, emit, print_table
from skipway.errors import InputError, harmless, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

COLUMNS = ("name", "case", "ours", "peer", "ratio", "n", "spread", "bar", "")


def _path(words: str, metavar: str = "FOLDER") -> Any:
    return typer.Option(metavar=metavar, help=words)


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="By default all that can be run.")
    ] = None,
    data: Annotated[Path | None, _path("CIFAR-10 as class folders.")] = None,
    photos: Annotated[Path | None, _path("Imagenette as class folders.")] = None,
    boxes: Annotated[Path | None, _path("Blood cells with boxes, COCO.")] = None,
    masks: Annotated[Path | None, _path("Nuclei with masks, COCO.")] = None,
    pixels: Annotated[Path | None, _path("Streets with masks of classes.")] = None,
    few: Annotated[Path | None, _path("Some hundred photographs.")] = None,
    weights: Annotated[Path | None, _path("A third party's CIFAR-10 ResNet-20.", "FILE")] = None,
    run: Annotated[Path | None, _path("A run on Imagenette to fine-tune from.", "RUN")] = None,
    timm: Annotated[Path | None, _path("A checkout of timm, with its train.py.")] = None,
    folder: Annotated[Path | None, _path("The benchmarks; of the checkout else.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Say what there is, run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Measure what Skipway claims, beside its peers.

    Runs the files of a checkout's benchmarks folder; their results go to its results folder. Exit
    code 1 where a bar is not met or a benchmark breaks off.
    """
    place = _folder(folder)
    index = runpy.run_path(str(place / "index.py"))["BENCHMARKS"]
    named = {"data": data, "photos": photos, "boxes": boxes, "masks": masks}
    named |= {"pixels": pixels, "few": few, "weights": weights, "run": run}
    given = {key: path for key, path in (named | {"timm": timm}).items() if path is not None}
    for key, path in given.items():
        if not path.exists():
            raise InputError(f"--{key} {harmless(path)}: not found")
    for name in names or ():
        if name not in index:
            raise InputError(f"no benchmark {harmless(name)!r}.{nearest(name, index)}")
    chosen = {name: index[name] for name in dict.fromkeys(names or index)}
    lacking = {name: _lacking(found, given) for name, found in chosen.items()}
    if listed:
        _list(chosen, lacking, as_json)
        return
    unfit = {name: what for name, what in lacking.items() if what}
    if names and unfit:
        raise InputError("; ".join(f"{n} needs {' and '.join(w)}" for n, w in unfit.items()))
    for name, what in unfit.items():
        print(f"{name}: left out, it needs {' and '.join(what)}", file=sys.stderr)
    if len(unfit) == len(chosen):
        raise InputError("none of the benchmarks can be run with what is given; see --list")
    results = {n: _run(n, b, place, given) for n, b in chosen.items() if n not in unfit}
    rows = [
        {"name": name, "claim": index[name].claim} | row
        for name, (found, _) in results.items()
        for row in found
    ]
    if as_json:
        machines = {name: machine for name, (_, machine) in results.items()}
        emit({"rows": rows, "machines": machines})
    else:
        print_table([COLUMNS, *map(_cells, rows)])
    if any(row["met"] is False for row in rows):
        raise typer.Exit(1)


def _folder(given: Path | None) -> Path:
    """Where the benchmarks are: as given, of the checkout that is installed, or of this folder."""
    places = [Path(__file__).parents[3] / "benchmarks", Path("benchmarks")]
    for place in [given] if given else places:
        if (place / "index.py").is_file():
            return place.absolute()
    if given:
        raise InputError(f"--folder {harmless(given)}: has no benchmarks (no index.py)")
    raise InputError("the benchmarks are not in the package: name a checkout's with --folder")


def _lacking(benchmark: Any, given: Mapping[str, Path]) -> list[str]:
    """The options, and the GPU, that a benchmark needs and does not have."""
    parsed = (Formatter().parse(argument) for argument in benchmark.arguments)
    keys = dict.fromkeys(key for parts in parsed for _, key, _, _ in parts if key)
    lacking = [f"--{key}" for key in keys if key not in given and key != "at"]
    return lacking + ["a GPU"] * (benchmark.gpu and shutil.which("nvidia-smi") is None)


def _run(
    name: str, benchmark: Any, place: Path, given: Mapping[str, Path]
) -> tuple[list[dict[str, Any]], Any]:
    """Run one; its rows and its machine. One that breaks off gives a row that is not met."""
    at = subprocess.run(
        ["git", "-C", str(place), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    words = [*benchmark.arguments]
    for flag, value in benchmark.also:
        if value.strip("{}") in given:
            words += [flag, value]
    whole = {key: path.absolute() for key, path in given.items()}
    arguments = [word.format(**whole, at=at or "unknown") for word in words]
    print(f"{name}: {benchmark.claim}, about {benchmark.minutes:g} min", file=sys.stderr)
    file = place.parent / "results" / f"{benchmark.result or name}.json"
    before = file.stat().st_mtime_ns if file.exists() else None
    command = [sys.executable, str(place / benchmark.file), *arguments]
    code = subprocess.run(command, cwd=place.parent, stdout=subprocess.DEVNULL).returncode
    empty = dict.fromkeys(("ours", "peer", "ratio", "n", "spread", "bar"))
    broken = [{"case": f"broke off with exit code {code}"} | empty | {"met": False}]
    if not file.exists() or file.stat().st_mtime_ns == before:
        return broken, None
    result = json.loads(file.read_text("utf-8"))
    machine = result.get("machine") or {k: c["machine"] for k, c in result["cases"].items()}
    return [*benchmark.rows(result), *(broken if code else [])], machine


def _list(chosen: Mapping[str, Any], lacking: Mapping[str, list[str]], as_json: bool) -> None:
    if as_json:
        told = ((n, b.claim, b.minutes, lacking[n]) for n, b in chosen.items())
        emit([dict(zip(("name", "claim", "minutes", "lacking"), row, strict=True)) for row in told])
        return
    rows = ((n, f"{b.minutes:g}", b.claim, " ".join(lacking[n])) for n, b in chosen.items())
    print_table([("name", "min", "claim", "lacking"), *rows])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = [_shown(row[key]) for key in ("ours", "peer", "ratio", "n")]
    spread = " to ".join(map(_shown, row["spread"])) if row["spread"] else ""
    met = {True: "met", False: "NOT MET", None: ""}[row["met"]]
    return (row["name"], row["case"], *numbers, spread, _shown(row["bar"]), met)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}"
