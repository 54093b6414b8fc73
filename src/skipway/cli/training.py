"""`skipway train`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipway.cli.settings import with_settings
from skipway.cli.shared import Json, app, emit
from skipway.errors import harmless, missing_part
from skipway.shares import percent

if TYPE_CHECKING:
    from skipway.training import Result


@app.command()
@with_settings()
def train(
    data: str | None,
    given: Mapping[str, Any],
    out: Annotated[str | None, typer.Option(help="The run's folder: new, or empty.")] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write event files in RUN/tensorboard too.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Go on with a run; DATA where that has moved."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a network for a task, by default classify.

    The tasks: classify (the class of an image), detect (objects as boxes), instance (objects as
    masks too), segment (the class of each pixel) and embed (vectors, near where images are alike).

    Writes a run with weights, metrics and a report.
    """
    try:
        import skipway
        from skipway.training import Interrupted, TensorBoard
    except ImportError as error:
        raise missing_part("train", "train", error) from None
    callbacks = [TensorBoard()] if tensorboard else ()
    try:
        result = skipway.train(data, out=out, resume=resume, callbacks=callbacks, settings=given)
    except Interrupted as stop:
        print(f"skipway: {stop}", file=sys.stderr)
        raise typer.Exit(stop.exit_code) from None
    if result.rank > 0:
        return
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


def show_result(result: Result) -> None:
    """The closing panel: how good, how long, where the report is, and what next."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    from skipway.config import resolve
    from skipway.report.run import CACHED
    from skipway.training.progress import speed
    from skipway.training.record import flat

    run, found = shlex.quote(harmless(result.run)), result.record["result"]
    on_features = resolve(flat(result.record["config"])).on_features
    of = f" ({CACHED})" if on_features else ""
    lines = []
    if found["metrics"]:
        name, value = next(iter(found["metrics"].items()))
        if "accuracy" in found["metrics"]:
            name, value = "accuracy", found["metrics"]["accuracy"]
        scored = f"{found['n']:,} images"
        if found["interval"] is not None:
            low, high = found["interval"]
            scored = f"95 % interval {percent(low)} to {percent(high)}, {scored}"
        lines.append(f"{found['split']} {name} {percent(value)}  ({scored})")
    lines += [
        f"{result.seconds:.0f} s, {speed(result.images_per_second)}{of} in training",
        f"report   {harmless(result.run / 'report.html')}",
        "",
        f"skipway eval {run} {shlex.quote(harmless(result.record['data']['path']))}",
        *_uses(run, result),
    ]
    Console(highlight=False).print(Panel(Text("\n".join(lines)), title="done", expand=False))


def _uses(run: str, result: Result) -> list[str]:
    """Two lines to copy that use the model."""
    if result.record["config"]["task"] == "embed":
        data = shlex.quote(harmless(result.record["data"]["path"]))
        return [
            f"skipway embed {run} {data} --out vectors.parquet",
            f"skipway search {run} vectors.parquet IMAGE… --sheet found.png",
        ]
    return [
        f"skipway predict {run} IMAGE…",
        f"skipway.load({str(result.run)!r})  # in Python",
    ]
