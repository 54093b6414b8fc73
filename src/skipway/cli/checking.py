"""`skipway check-data`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from skipway.cli.shared import Json, Threads, app, emit


@app.command("check-data")
def check_data(
    data: Annotated[str, typer.Argument(metavar="DATA", help="As for train.")],
    val: Annotated[
        str, typer.Option(help="Share of train held out for validation, or none; as for train.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Decides what is held out; as for train.")] = 0,
    task: Annotated[
        str | None, typer.Option(help="instance: the masks of annotations too; as for train.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find what is wrong with labelled or annotated images.

    Exit code 1 where train should wait.

    Problems, which give 1: files that cannot be read, classes without a training image, the same
    file in two splits, or with two labels; of annotations (COCO, VOC, YOLO) boxes, masks, ids and
    classes that cannot be. Data that train cannot even open gives 2.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from skipway.check import check
    from skipway.check_objects import check_objects
    from skipway.config import resolve
    from skipway.data import open_data
    from skipway.machine import cores

    settings = {"data_path": data, "recipe": "modern", "data.val": val, "seed": seed}
    settings |= {"task": task} if task else {}
    config = resolve(settings)  # told as train tells it
    threads = threads or cores()
    masks = config.task == "instance"
    annotated = check_objects(data, config.data.val, config.seed, threads, masks)
    if annotated is not None:
        if as_json:
            emit(annotated.to_json())
        else:
            print("\n".join(annotated.lines()))
        if not annotated.ok:
            raise typer.Exit(1)
        return
    opened = open_data(data, config.data.val, config.seed)
    console = Console(file=sys.stderr)
    columns = (TextColumn("reading"), BarColumn(24), MofNCompleteColumn())
    quiet = as_json or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        bar = progress.add_task("", total=sum(map(len, opened.splits.values())))
        report = check(opened, threads, lambda: progress.advance(bar))
    if as_json:
        emit(report.to_json())
    else:
        print("\n".join(report.lines()))
    if not report.ok:
        raise typer.Exit(1)
