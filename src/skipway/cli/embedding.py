"""`skipway embed` and `search`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from skipway.cli.shared import Device, Json, OnBad, Precision, Threads, Weights, app, bar, emit
from skipway.cli.using import expand
from skipway.errors import harmless


@app.command()
def embed(
    model: Weights,
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="As for train, or a folder of images without labels."),
    ],
    out: Annotated[str, typer.Option(help="A parquet file that is not there.")],
    stage: Annotated[
        str | None,
        typer.Option(
            help="c2 to c5, or embedding of a model that was trained for it; by default the last "
            "that there is."
        ),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            metavar="average|gem",
            help="Of a stage's pixels; gem: generalised mean. By default average.",
        ),
    ] = None,
    gem_p: Annotated[float, typer.Option(help="The power of gem, 1 or more.")] = 3.0,
    no_normalise: Annotated[
        bool, typer.Option("--no-normalise", help="Leave vectors at the length that they have.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that the net runs at once.")] = 32,
    on_bad: Annotated[
        OnBad, typer.Option(help="error or skip: what to do with damaged images.")
    ] = OnBad.error,
    device: Device = "cpu",
    precision: Annotated[Precision, typer.Option(help="float32 or bf16.")] = Precision.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write images as vectors, to search or to learn from.

    A parquet with path, label, split and vector. Started again after it was stopped it goes on.
    """
    from skipway.embedding import load_embedder
    from skipway.embedding.index import Images, write_index
    from skipway.files import check_new
    from skipway.machine import cores

    check_new(Path(out))
    threads = threads or cores()
    images = Images.of(data)
    embedder = load_embedder(
        model,
        stage=stage,
        pooling=pooling,
        gem_p=gem_p,
        normalised=not no_normalise,
        threads=threads,
        device=device,
        precision=precision.value,
    )
    for note in images.notes:
        print(f"note: {note}", file=sys.stderr)
    with bar("embedding", len(images), as_json) as progress:
        try:
            written = write_index(
                embedder,
                images,
                out,
                {"model": model, "device": device, "precision": precision.value},
                batch_size=batch_size,
                threads=threads,
                on_bad=on_bad.value,
                tell=progress.reach,
                warn=progress.say,
            )
        except KeyboardInterrupt:
            if Path(f"{out}.parts").exists():
                progress.say("the same command goes on after the last whole part")
            raise
    if as_json:
        emit(
            {
                "file": str(written.path),
                "images": written.rows,
                "skipped": written.skipped,
                "kept": written.kept,
                "dimensions": embedder.dimensions,
                "stage": embedder.made["stage"],
                "bytes": written.path.stat().st_size,
            }
        )
        return
    skipped = f", {written.skipped:,} skipped" if written.skipped else ""
    print(
        f"{harmless(written.path)}: {written.rows:,} vectors of {embedder.dimensions:,} numbers, "
        f"stage {embedder.made['stage']}{skipped} ({written.path.stat().st_size:,} bytes)"
    )
    names = " ".join(shlex.quote(harmless(name)) for name in (model, out))
    print(f"\nskipway search {names} IMAGE… --sheet found.png")


@app.command()
def search(
    model: Weights,
    index: Annotated[str, typer.Argument(metavar="INDEX", help="What embed wrote.")],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES…", help="Image files, or folders of them.")
    ],
    top: Annotated[
        int,
        typer.Option(min=1, help="Images to find for each; one of the index finds itself first."),
    ] = 10,
    sheet: Annotated[
        str | None, typer.Option(metavar="PNG", help="Show them as one picture, in a new file.")
    ] = None,
    device: Device = "cpu",
    precision: Annotated[
        Precision | None, typer.Option(help="float32 or bf16; by default that of the index.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find the most similar images of an index.

    By the cosine of their vectors, exactly; by the dot product where they are not normalised.
    """
    from skipway.embedding import load_embedder
    from skipway.embedding.index import Index
    from skipway.embedding.search import find_similar, write_found
    from skipway.files import check_new
    from skipway.machine import cores

    if sheet is not None:
        check_new(Path(sheet), "--sheet")
    opened = Index(index)
    embedder = load_embedder(
        model,
        **opened.settings,
        threads=threads or cores(),
        device=device,
        precision=opened.precision if precision is None else precision.value,
    )
    opened.refuse_other(embedder)
    found = find_similar(embedder, opened, list(expand(images)), top)
    if sheet is not None and any(one.error is None for one in found):
        width, height = write_found(sheet, found, opened)
        print(f"{harmless(sheet)}: {width:,} x {height:,} pixels", file=sys.stderr)
    if as_json:
        emit([one.to_json(opened.folder) for one in found])
    for one in found:
        if one.error is not None:
            print(f"skipway: {one.error}", file=sys.stderr)
        elif not as_json:
            print("\n".join(one.lines()))
    if any(one.error is not None for one in found):
        raise typer.Exit(2)
