"""`skipway explain`: occlusion of a classifier needs no torch by itself, all else does."""

from __future__ import annotations

import enum
import itertools
import re
import sys
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from skipway.cli.shared import Device, Json, Model, Threads, app, emit
from skipway.cli.using import expand
from skipway.errors import InputError, harmless, nearest

if TYPE_CHECKING:
    from skipway.explain import Explanation

E = TypeVar("E", bound=enum.StrEnum)


@app.command()
def explain(
    model: Model,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES…", help="Image files, or folders of them.")
    ],
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="Which; by default each image's answer."),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            "--object",
            min=1,
            metavar="N",
            help="Of a detector: the N-th most certain object; by default the first three that "
            "are sure.",
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE",
            help="Of a model of the task embed: what makes each image like this one; by default "
            "what its own vector is made of.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="grad-cam|occlusion",
            help="From gradients, which takes weights; or by covering parts of the image, which "
            "takes any model and longer.",
        ),
    ] = "grad-cam",
    stage: Annotated[
        str | None,
        typer.Option(help="For grad-cam: c2 onwards, earlier ones finer; by default the last."),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="For occlusion: side of the square that covers, in pixels of the model's input; "
            "by default a seventh of it, 8 at least.",
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="For occlusion: its steps; by default half of it."),
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(
            metavar="probability|logit",
            help="For occlusion of a classifier: what is measured; by default the probability.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The folder for the pictures; those of the same name are replaced.")
    ] = Path("explained"),
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Show where in images a model sees a class.

    For each image a PNG: the image, and beside it in colour what spoke for the class; of a detector
    one for each of its objects, of a segmenter what spoke for the class's pixels, of a model of the
    task embed what makes its vector.
    """
    from skipway.explain import Explainer, Method, Of, open_explainer
    from skipway.explain.objects import ObjectExplainer
    from skipway.explain.vectors import VectorExplainer
    from skipway.files import atomic_write
    from skipway.images import DecodeError
    from skipway.machine import cores

    chosen, measured = one_of("--method", method, Method), one_of("--of", of or "probability", Of)
    for name, value, its in (
        ("--stage", stage, Method.grad_cam),
        ("--window", window, Method.occlusion),
        ("--stride", stride, Method.occlusion),
        ("--of", of, Method.occlusion),
    ):
        if value is not None and its is not chosen:
            raise InputError(f"{name}: goes with --method {its}, not with {chosen}")
    explainer = open_explainer(
        model, chosen, stage, window, stride, measured, threads or cores(), device
    )
    objects, vectors = (isinstance(explainer, kind) for kind in (ObjectExplainer, VectorExplainer))
    for name, given, has in (
        ("--object", number, objects),
        ("--of", of, isinstance(explainer, Explainer)),
        ("--class", class_name, not vectors),
        ("--like", like, vectors),
    ):
        if given is not None and not has:
            raise InputError(f"{name}: not of a model of this task, {harmless(model)}")
    measure = "probability" if isinstance(explainer, Explainer) else "score" if objects else "share"
    k: int | None = None
    target: Any = None
    if isinstance(explainer, VectorExplainer):
        if like is not None:
            try:
                target = explainer.vector(like)
            except InputError as error:
                raise InputError(f"--like {error}") from None
    elif class_name is not None:
        k = explainer.index(class_name)

    def explained(path: str) -> list[Explanation]:
        if isinstance(explainer, VectorExplainer):
            return [explainer(path, target, like)]
        if isinstance(explainer, ObjectExplainer):
            return explainer(path, k, number)
        return [explainer(path, k)]

    rows: list[dict[str, Any]] = []
    for path in expand(images):
        row: dict[str, Any] = {"path": path, "method": chosen.value, "error": None}
        try:
            found = explained(path)
        except InputError as error:  # as of a window that another image may be large enough for
            named = isinstance(error, DecodeError)
            row["error"] = str(error) if named else f"{harmless(path)}: {error}"
            found = []
        if not found:
            if number is not None and row["error"] is None:
                row["error"] = f"{harmless(path)}: has no object {number}, as far as the model sees"
            rows.append(row)
            if row["error"] is not None and not as_json:
                print(f"skipway: {row['error']}", file=sys.stderr)
            elif not as_json:
                print(f"{harmless(path)}: nothing is found")
        for one in found:
            stem = f"{Path(path).stem}-{chosen}"
            if class_name is not None:
                stem += f"-{_in_name(class_name)}"
            if like is not None:
                stem += f"-like-{_in_name(Path(like).stem)}"
            for name, given in (("", stage), ("", of), ("window-", window), ("stride-", stride)):
                stem += "" if given is None else f"-{name}{_in_name(str(given))}"
            if objects:
                stem += f"-object-{one.facts['object']}"
            file = free_name(out, stem, {row.get("file") for row in rows})
            with atomic_write(file) as picture:
                picture.write(one.picture())
            rows.append(row | _told(one, measure) | {"file": str(file)})
            if not as_json:
                most = "nowhere" if one.peak is None else "most at {}, {}".format(*one.peak)
                asked = one.title or f"{one.asked.label} {one.asked.score:.1%}{one.what}"
                print(f"{harmless(path)}: {harmless(asked)}, {most}: {harmless(file)}")
    if as_json:
        emit(rows)
    if any(row["error"] for row in rows):
        raise typer.Exit(2)


def _in_name(text: str) -> str:
    """What the user named, as part of a file's name: answers to two questions are two files."""
    return re.sub(r"[^\w-]+", "-", text)[:40]


def _told(found: Explanation, measure: str) -> dict[str, Any]:
    told: dict[str, Any] = {
        "class": found.asked.label,
        measure: found.asked.score,
        "answer": found.best.label,
    }
    return ({} if found.title else told) | {"peak": found.peak, **found.facts}


def one_of(flag: str, value: str, choices: type[E]) -> E:
    names = [choice.value for choice in choices]
    if value not in names:
        raise InputError(f"{flag} {harmless(value)}: {' or '.join(names)}.{nearest(value, names)}")
    return choices(value)


def free_name(folder: Path, stem: str, taken: Container[str | None]) -> Path:
    """A file for a picture, in a folder that is made where it is not there; numbered where this
    call has written one of that name. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {harmless(folder)}: {error.strerror}") from None
    names = (folder / f"{stem}{f'-{n}' if n > 1 else ''}.png" for n in itertools.count(1))
    return next(path for path in names if str(path) not in taken)
