"""`skipway convert` and `push`."""

from __future__ import annotations

import enum
import shlex
from typing import Annotated

import typer

from skipway.cli.shared import Json, Weights, app, emit
from skipway.errors import harmless, missing_part


class Form(enum.StrEnum):
    torchvision = "torchvision"
    timm = "timm"
    huggingface = "huggingface"
    skipway = "skipway"


class HubForm(enum.StrEnum):
    huggingface = "huggingface"
    timm = "timm"
    skipway = "skipway"


@app.command()
def convert(
    model: Weights,
    to: Annotated[Form, typer.Option(help="Who is to load it.")],
    out: Annotated[
        str | None, typer.Option(help="A file or folder that is not there; by default here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model for torchvision, timm, transformers."""
    try:
        from skipway import publish
    except ImportError as error:
        raise missing_part("convert", "train", error) from None
    made = publish.convert(model, to.value, out)
    if as_json:
        emit(
            {
                "path": str(made.path),
                "form": to.value,
                "files": [str(file) for file in made.files],
                "load": made.load,
            }
        )
        return
    for file in made.files:
        print(f"{harmless(file)} ({file.stat().st_size:,} bytes)")
    print(f"\n{harmless_lines(made.load)}")


@app.command()
def push(
    model: Weights,
    name: Annotated[str, typer.Argument(metavar="hf:USER/NAME", help="The repository.")],
    to: Annotated[HubForm, typer.Option(help="Whose form the files have.")] = HubForm.skipway,
    private: Annotated[bool, typer.Option("--private", help="If it is made: not public.")] = False,
    as_json: Json = False,
) -> None:
    """Send a model and its card to the Hugging Face hub."""
    try:
        from skipway import publish
    except ImportError as error:
        raise missing_part("push", "train", error) from None
    sent = publish.push(model, name, to.value, private)
    if as_json:
        told = {"files": [*sent.files], "readme_kept": sent.readme_kept, "removed": [*sent.removed]}
        emit({"url": sent.url} | told)
        return
    print(f"{harmless(sent.url)}: {', '.join(sent.files)}")
    for name in sent.removed:
        print(f"{name} of another form was there, and is not any more")
    if sent.readme_kept:
        print("its README.md was there before and is as it was")
    print(f"\nskipway predict {shlex.quote(harmless(name))} IMAGE…")


def harmless_lines(text: str) -> str:
    """`harmless`, line by line."""
    return "\n".join(harmless(line) for line in text.splitlines())
