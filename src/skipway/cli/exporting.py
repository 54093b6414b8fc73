"""`skipway export`."""

from __future__ import annotations

import enum
import sys
from typing import Annotated

import typer

from skipway.cli.shared import Json, Threads, Weights, app, emit
from skipway.errors import harmless, missing_part


class Form(enum.StrEnum):
    onnx = "onnx"


@app.command()
def export(
    model: Weights,
    to: Annotated[Form, typer.Option(help="What to make.")] = Form.onnx,
    out: Annotated[
        str | None,
        typer.Option(help="A file that is not there; by default beside the weights."),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(
            help="Images of the proof: a file, a folder or DATA as for train; can be repeated. By "
            "default a run's own, else the photographs that come with scikit-learn."
        ),
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write a model as ONNX, proven equal to torch.

    On real images, at batch 1 and 3; exit code 1 and no file where it is not.
    """
    from skipway.machine import cores

    try:
        from skipway import export as making
    except ImportError as error:
        raise missing_part("export", "export", error) from None
    made = making.export(model, out, on or (), threads or cores())
    parity = made.parity
    if as_json:
        emit(
            {
                "file": str(made.path),
                "format": to.value,
                "bytes": made.size,
                "parity": {
                    "images": parity.images,
                    "source": parity.source,
                    "batches": making.BATCHES,
                    "score": parity.score,
                    "limit": making.LIMIT,
                    "logit": parity.logit,
                    "relative": parity.relative,
                    "changed": parity.changed,
                    "saturated": parity.saturated,
                },
            }
        )
        return
    print(
        f"{parity.images} images of {harmless(parity.source)}, in batches of "
        f"{' and '.join(map(str, making.BATCHES))}, in ONNX Runtime and in torch:"
    )
    print(
        f"largest difference of a score {parity.score:.1e}, of a logit {parity.logit:.1e} or "
        f"{parity.relative:.1e} of the largest (at most {making.LIMIT:g} of a score, and of the "
        "largest logit); same top-1 in all"
    )
    print(f"{harmless(made.path)} ({made.size:,} bytes)")
    if parity.saturated:
        print(
            f"note: the best score of {parity.saturated} of {parity.images} images is within "
            f"{making.LIMIT:g} of 1: there scores prove little, and the logits count",
            file=sys.stderr,
        )
