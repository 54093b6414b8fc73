"""`skipway xray`."""

from __future__ import annotations

from typing import Annotated

import typer

from skipway.cli.shared import (
    Device,
    Json,
    OnBad,
    Remarks,
    Threads,
    Weights,
    app,
    bar,
    emit,
    print_table,
    within,
)
from skipway.errors import harmless, missing_part
from skipway.shares import percent
from skipway.xray import IMAGES


@app.command()
def xray(
    model: Weights,
    data: Annotated[str, typer.Argument(metavar="DATA", help="As for train.")],
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all; by default as for eval.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Images that are looked at, at most.")] = IMAGES,
    out: Annotated[
        str,
        typer.Option(metavar="FILE", help="The picture, .svg or .html; a file there is replaced."),
    ] = "xray.svg",
    on_bad: Annotated[
        OnBad | None,
        typer.Option(help="error or skip: what to do with damaged images; by default as trained."),
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Delete each block of a classifier in turn and see what it costs.

    By block, as one picture: the norms of its branch and its shortcut, its gradients, and the
    accuracy without it (Veit et al. 2016). Weights are needed, in ONNX nothing can be deleted.
    """
    try:
        from skipway.report.rates import check_plot_place
        from skipway.report.xray_picture import HEAD, rows, write_picture
        from skipway.xray.measuring import open_classifier, sample
        from skipway.xray.measuring import xray as look_into
    except ImportError as error:
        raise missing_part("xray", "train", error) from None
    from skipway.evaluation import open_labelled
    from skipway.machine import cores

    check_plot_place(out)
    threads = threads or cores()
    net, predictor = open_classifier(model, threads, device)
    images = open_labelled(predictor, model, data, split)
    remarks = Remarks()
    remarks.note(*images.notes)
    some = sample(images.split, limit)
    with bar("images", len(some), as_json) as progress:
        found = look_into(
            net, predictor, some,
            threads=threads,
            on_bad=on_bad.value if on_bad else predictor.card.setting("data.on_bad", "error"),
            seen=progress.advance,
        )  # fmt: skip
    remarks.skip(found.skipped)
    lines = [
        f"{harmless(model)} on {harmless(data)}, {images.name}: {found.n:,} images",
        f"accuracy {percent(found.accuracy)}{within(found.interval)}",
        *([found.caveat] if found.caveat else []),
        found.summary,
    ]
    path = write_picture(found, out, f"Block X-ray of {harmless(model)}", lines)
    if as_json:
        told = {"model": model, "data": data, "split": images.name}
        emit(told | found.to_json() | remarks.to_json() | {"picture": str(path)})
        return
    print("\n".join(lines[:2]))
    print_table([HEAD, *rows(found)])
    print("\n".join([*lines[2:], f"the picture: {harmless(path)}"]))
