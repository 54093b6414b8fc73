"""The command line: one command, one function. What a command needs is imported inside it."""

from __future__ import annotations

import contextlib
import enum
import errno
import io
import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from skipway.errors import InputError, SkipwayError, harmless, missing_part

if TYPE_CHECKING:
    from skipway.card import Card
    from skipway.training import Result

app = typer.Typer(
    name="skipway",
    help="Residual networks, from the paper to production.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON value on one line on stdout.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A run's folder or a weight file.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of computation.")]


class OnBad(enum.StrEnum):
    error = "error"
    skip = "skip"


class Precision(enum.StrEnum):
    float32 = "float32"
    bf16 = "bf16"


def version(asked: bool) -> None:
    if asked:
        from skipway.version import __version__

        print(__version__)
        raise typer.Exit()


@app.callback()
def skipway(
    version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (anywhere).")] = False,
) -> None:
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)


@app.command()
def train(
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="digits, or a folder or zip of class folders."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="A name of `skipway models`.")] = None,
    recipe: Annotated[str | None, typer.Option(help="modern, finetune, he2015-cifar.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Length of the training.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides every draw; 0 by default.")] = None,
    val: Annotated[
        str | None, typer.Option(help="Share of train held out for validation, or none.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; must not exist.")] = None,
    weights: Annotated[str | None, typer.Option(help="A weight file to start from.")] = None,
    freeze: Annotated[
        int | None, typer.Option(help="Freeze the stem (1), and stages (2, 3, …) of --weights.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode images.")] = None,
    threads: Threads = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bf16, of training.")] = None,
    on_bad: Annotated[
        str | None, typer.Option(help="error or skip: what to do with damaged images.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the run's configuration."),
    ] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with a run.")] = None,
    as_json: Json = False,
) -> None:
    """Train a classifier; writes a run with weights, metrics and a report."""
    from skipway.config import parse_setting

    try:
        import skipway
        from skipway.training import Interrupted
    except ImportError as error:
        raise missing_part("train", "train", error) from None
    try:
        result = skipway.train(
            data,
            out=out,
            resume=resume,
            settings=dict(map(parse_setting, settings or ())),
            model=model,
            recipe=recipe,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            val=val,
            weights=weights,
            freeze=freeze,
            device=device,
            workers=workers,
            threads=threads,
            precision=precision,
            on_bad=on_bad,
        )
    except Interrupted as stop:
        print(f"skipway: {stop}", file=sys.stderr)
        raise typer.Exit(stop.exit_code) from None
    if as_json:
        emit(
            {
                "run": str(result.run),
                "metrics": result.metrics,
                "split": result.split,
                "weights": str(result.weights),
                "seconds": round(result.seconds, 2),
                "images_per_second": round(result.images_per_second, 1),
            }
        )
        return
    show_result(result)


@app.command("eval")
def evaluate(
    model: Model,
    data: Annotated[str, typer.Argument(metavar="DATA", help="As for train.")],
    split: Annotated[
        str | None,
        typer.Option(
            help="train, val, test or all; by default what the run held out, else test, val, all."
        ),
    ] = None,
    on_bad: Annotated[
        OnBad | None,
        typer.Option(help="error or skip: what to do with damaged images; by default as trained."),
    ] = None,
    device: Device = "cpu",
    precision: Annotated[Precision, typer.Option()] = Precision.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Score a model on labelled images."""
    from skipway.data import open_split
    from skipway.machine import cores
    from skipway.metrics import wilson_interval
    from skipway.predictor import load, score

    threads = threads or cores()
    predictor = load(model, threads, device, precision.value)
    recipe: Any = predictor.card.recipe
    seed, val = recipe.get("seed", 0), recipe.get("data", {}).get("val", "auto")
    known = predictor.classes if predictor.classes_known else None
    split = split or held_out(predictor.card, data, seed, val)
    name, found, classes = open_split(data, split, known, seed, val)
    if len(classes) != len(predictor.classes):
        raise InputError(
            f"{harmless(model)} has {len(predictor.classes)} outputs without class names, "
            f"{harmless(data)} {len(classes)} classes\nScore it on all of its classes."
        )
    if not predictor.classes_known:
        note = "class names are not in the file: taken from the data in alphabetical order"
        print(note, file=sys.stderr)
    policy = on_bad.value if on_bad else recipe.get("data", {}).get("on_bad", "error")
    scored, skipped = score(predictor, found, threads, policy)
    for reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    metrics, n = scored.metrics(), len(scored.label)
    if as_json:
        emit({"metrics": metrics, "n": n, "split": name})
        return
    low, high = wilson_interval(int(scored.correct.sum()), n)
    print(f"{harmless(model)} on {harmless(data)}, {name}: {n:,} images")
    print(f"accuracy {metrics['accuracy']:.2%}  (95 % interval {low:.2%} to {high:.2%})")
    print(f"top-5 {metrics['top5']:.2%}  loss {metrics['loss']:.4f}  ECE {metrics['ece']:.4f}")


def held_out(card: Card, data: str, seed: int, val: Any) -> str | None:
    """The split that a training held out, where this is its data."""
    from skipway.data import open_data

    trained_on = card.provenance.get("data")
    if trained_on is None:
        return None
    with contextlib.suppress(InputError):  # not a set to train on: then not the run's
        made = open_data(data, val, seed)
        if made.digest() == trained_on:
            split = next((s for s in ("test", "val") if s in made.splits), None)
            if split is None:
                print("note: nothing was held out; these images were trained on", file=sys.stderr)
            return split
    if card.recipe.get("data_path") == data:
        note = "the images are not those of training; where there are no split folders, those "
        print(f"note: {note}that are scored may have been trained on", file=sys.stderr)
    return None


@app.command()
def predict(
    model: Model,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES…", help="Image files, or folders of them.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes an image.")] = 5,
    device: Device = "cpu",
    precision: Annotated[Precision, typer.Option()] = Precision.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Classify images."""
    from skipway.machine import cores
    from skipway.predictor import load

    predictor = load(model, threads or cores(), device, precision.value)
    paths = list(expand(images))
    predictions = predictor.stream(paths, top)
    if as_json:
        found = [asdict(p) for p in predictions]
        emit(found)
        failed = [p["path"] for p in found if p["error"]]
    else:
        failed = []
        for p in predictions:
            if p.error is not None:
                failed.append(p.path)
                print(f"skipway: {p.error}", file=sys.stderr)
                continue
            scores = "  ".join(f"{harmless(s.label)} {s.score:.1%}" for s in p.predictions)
            print(f"{harmless(p.path)}: {scores}")
    if failed:
        raise typer.Exit(2)


@app.command()
def models(as_json: Json = False) -> None:
    """List the networks: parameters, multiply-adds at the native size, source."""
    from skipway.architecture import ARCHITECTURES

    try:
        from skipway.resnet import count
    except ImportError as error:
        raise missing_part("models", "train", error) from None
    rows = []
    for name, arch in ARCHITECTURES.items():
        params, macs = count(arch)
        rows.append(
            {
                "name": name,
                "params": params,
                "macs": macs,
                "input_size": arch.input_size,
                "source": arch.source,
            }
        )
    if as_json:
        emit(rows)
        return
    print(f"{'name':<18}{'parameters':>14}{'multiply-adds':>17}{'pixels':>8}  source")
    for row in rows:
        print(
            f"{row['name']:<18}{row['params']:>14,}{row['macs']:>17,}{row['input_size']:>8}"
            f"  {row['source']}"
        )


def expand(images: Iterable[str]) -> Iterable[str]:
    """The paths as given; a folder stands for the images in it, in the order of their names."""
    from skipway.data.sources import walk

    for path in images:
        if os.path.isdir(path):
            names = walk(Path(path))
            if not names:
                raise InputError(f"{harmless(path)}: no images in this folder")
            yield from (os.path.join(path, name) for name in names)
        else:
            yield path


def emit(value: Any) -> None:
    """One JSON value on one line on stdout."""
    print(json.dumps(value, ensure_ascii=True))


def show_result(result: Result) -> None:
    """The closing panel: how good, how long, where the report is, and what next."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    run, found = shlex.quote(harmless(result.run)), result.record["result"]
    lines = []
    if found["metrics"]:
        low, high = found["interval"]
        lines.append(
            f"{found['split']} accuracy {found['metrics']['accuracy']:.2%}  "
            f"(95 % interval {low:.2%} to {high:.2%}, {found['n']:,} images)"
        )
    lines += [
        f"{result.seconds:.0f} s, {result.images_per_second:,.0f} images/s in training",
        f"report   {harmless(result.run / 'report.html')}",
        "",
        f"skipway eval {run} {shlex.quote(harmless(result.record['data']['path']))}",
        f"skipway predict {run} IMAGE…",
        f"skipway.load({str(result.run)!r})  # in Python",
    ]
    Console(highlight=False).print(Panel(Text("\n".join(lines)), title="done", expand=False))


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch has a type for that on a GPU only."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in said or "can't allocate memory" in said)
    )


def fail(text: str, code: int) -> NoReturn:
    """Print an error of at most three lines and leave."""
    print("skipway: " + "\n".join(text.splitlines()[:3]), file=sys.stderr)
    sys.exit(code)


def main() -> None:
    """Run the command line and leave with its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that its encoding lacks are escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = app(arguments or ["--help"], standalone_mode=False)
        sys.stdout.flush()  # here, where a reader that has gone is met
    except SkipwayError as error:
        if debug:
            traceback.print_exc()
        fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        fail("stopped", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            fail(f"the output cannot be written: {error.strerror}", 2)
        explain: Callable[[], str] | None = getattr(error, "format_message", None)
        if explain is not None:  # a usage error of Typer's parser
            fail(f"{harmless(explain())}\nSee skipway --help", 2)
        if debug:
            raise
        if out_of_memory(error):
            fail("out of memory: take a smaller --batch-size, data.size or model", 2)
        fail(
            f"internal error: {type(error).__name__}: {harmless(error)[:200]}\n"
            "This is a defect of Skipway; --debug shows where.",
            3,
        )
    sys.exit(code if isinstance(code, int) else 0)
