"""`skipway train`."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from skipway.cli.shared import Json, Threads, app, emit
from skipway.errors import harmless, missing_part

if TYPE_CHECKING:
    from skipway.training import Result


@app.command()
def train(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="A folder, zip or tar of class folders, a CSV, a parquet or an .npz; or digits, "
            "mnist, fashion-mnist, cifar10 or cifar100.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="A name of `skipway models`.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="modern, finetune, he2015-cifar, he2016-preact, wrn, rsb-a3.")
    ] = None,
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
        str | None,
        typer.Option(help="Freeze the stem (1), stages too (2, 3, …), or all of --weights."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode images.")] = None,
    threads: Threads = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bf16, of training.")] = None,
    on_bad: Annotated[
        str | None, typer.Option(help="error or skip: what to do with damaged images.")
    ] = None,
    checkpoint_every: Annotated[
        str | None, typer.Option(help="5m (minutes), 200 (steps) or 1 epoch.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the run's configuration."),
    ] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with a run.")] = None,
    as_json: Json = False,
) -> None:
    """Train a classifier.

    Writes a run with weights, metrics and a report.
    """
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
            checkpoint_every=checkpoint_every,
        )
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
    from skipway.training.record import flat

    run, found = shlex.quote(harmless(result.run)), result.record["result"]
    on_features = resolve(flat(result.record["config"])).on_features
    of = f" ({CACHED})" if on_features else ""
    lines = []
    if found["metrics"]:
        low, high = found["interval"]
        lines.append(
            f"{found['split']} accuracy {found['metrics']['accuracy']:.2%}  "
            f"(95 % interval {low:.2%} to {high:.2%}, {found['n']:,} images)"
        )
    lines += [
        f"{result.seconds:.0f} s, {result.images_per_second:,.0f} images/s{of} in training",
        f"report   {harmless(result.run / 'report.html')}",
        "",
        f"skipway eval {run} {shlex.quote(harmless(result.record['data']['path']))}",
        f"skipway predict {run} IMAGE…",
        f"skipway.load({str(result.run)!r})  # in Python",
    ]
    Console(highlight=False).print(Panel(Text("\n".join(lines)), title="done", expand=False))
