"""`skipway check-data`."""

from __future__ import annotations

from typing import Annotated

import typer

from skipway.cli.shared import Json, Threads, app, bar, emit


@app.command("check-data")
def check_data(
    data: Annotated[str, typer.Argument(metavar="DATA", help="As for train.")],
    val: Annotated[
        str, typer.Option(help="Share of train held out for validation, or none; as for train.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Decides what is held out; as for train.")] = 0,
    task: Annotated[
        str | None,
        typer.Option(
            help="As for train. classify: class folders, whatever lies beside. instance: the masks "
            "of annotations too. segment: the masks where there are annotations as well. embed: "
            "splits may have classes of their own."
        ),
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find what is wrong with labelled or annotated images, or with masks.

    Exit code 1 where train should wait.

    Problems, which give 1: files that cannot be read, classes without a training image, the same
    file in two splits, or with two labels; of annotations (COCO, VOC, YOLO) boxes, masks, ids and
    classes that cannot be; of masks of classes (train/images and train/masks, images/ and masks/,
    Pascal VOC) values and colours that are no class, other sizes, and images without one. What
    values mean stands in classes.json, classes.txt or class_dict.csv. Data that train cannot even
    open gives 2.
    """
    from skipway.check import check
    from skipway.check_objects import ObjectReport, check_objects
    from skipway.check_pixels import PixelReport, check_pixels
    from skipway.config import resolve
    from skipway.data import open_data
    from skipway.data.labels import task_of_data
    from skipway.machine import cores

    settings = {"data_path": data, "recipe": "modern", "data.val": val, "seed": seed}
    settings |= {"task": task} if task else {}
    config = resolve(settings)  # told as train tells it
    threads = threads or cores()
    asked = data, config.data.val, config.seed, threads
    annotated: ObjectReport | PixelReport | None = None
    kind = config.task if task else task_of_data(data)
    if kind in ("detect", "instance"):
        annotated = check_objects(*asked, masks=kind == "instance")
    elif kind == "segment":
        annotated = check_pixels(*asked)
    if annotated is not None:
        if as_json:
            emit(annotated.to_json())
        else:
            print("\n".join(annotated.lines()))
        if not annotated.ok:
            raise typer.Exit(1)
        return
    opened = open_data(data, config.data.val, config.seed, unseen=config.task == "embed")
    with bar("reading", sum(map(len, opened.splits.values())), as_json) as progress:
        report = check(opened, threads, progress.advance, config.task == "embed")
    if as_json:
        emit(report.to_json())
    else:
        print("\n".join(report.lines()))
    if not report.ok:
        raise typer.Exit(1)
