"""`skipway models`, `recipes` and `settings`: what there is to choose from. None needs torch."""

from __future__ import annotations

import json
import shutil
import textwrap
from dataclasses import asdict
from typing import Annotated, Any

import typer

from skipway.cli.shared import Json, app, emit
from skipway.shares import percent


@app.command()
def models(as_json: Json = False) -> None:
    """List the networks and the models that ship.

    With parameters and multiply-adds of each network.
    """
    from skipway import shipped
    from skipway.architecture import ARCHITECTURES, count
    from skipway.card import read_card

    networks = []
    for name, arch in ARCHITECTURES.items():
        params, macs = count(arch)
        networks.append(
            {
                "name": name,
                "params": params,
                "macs": macs,
                "input_size": arch.input_size,
                "source": arch.source,
            }
        )
    trained: list[dict[str, Any]] = []
    for name in shipped.NAMES:
        card = read_card(shipped.file(name, ".safetensors"))
        assert card is not None
        accuracy = card.metrics[0]
        trained.append(
            {
                "name": name,
                "network": card.model,
                "classes": len(card.classes),
                "accuracy": accuracy.value,
                "data": accuracy.data,
                "split": accuracy.split,
                "n": accuracy.n,
                "licence": card.licence,
            }
        )
    if as_json:
        emit({"networks": networks, "shipped": trained})
        return
    print(f"{'name':<18}{'parameters':>14}{'multiply-adds':>17}{'pixels':>8}  source")
    for row in networks:
        print(
            f"{row['name']:<18}{row['params']:>14,}{row['macs']:>17,}{row['input_size']:>8}"
            f"  {row['source']}"
        )
    print("\nTrained, in place of a file:")
    for model in trained:
        print(
            f"{model['name']:<24}{model['network']}, accuracy {percent(model['accuracy'])} on "
            f"{model['data']} {model['split']} ({model['n']:,} images)"
        )


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="Of all, where none is named.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the recipes of `train`, or what one of them sets.

    With where each comes from and what it gives.
    """
    from skipway.recipes import RECIPES, recipe

    chosen = RECIPES if name is None else {name: recipe(name)}
    if as_json:
        emit([{"name": key, **asdict(one)} for key, one in chosen.items()])
        return
    for key, one in chosen.items():
        of = f" (--task {' or '.join(one.tasks)})" if one.tasks else ""
        print(f"{key}{of}")
        _paragraph(f"{one.source}.")
        _paragraph(f"Expected: {one.expected}.")
        if name is not None:
            print("\n".join(f"{k} = {_written(value)}" for k, value in one.settings.items()))


@app.command("settings")
def list_settings(
    key: Annotated[
        str, typer.Argument(metavar="[KEY]", help="A key or the beginning of keys, as optim.")
    ] = "",
    as_json: Json = False,
) -> None:
    """List what `train --set` takes: each key with its default, its values and what it does.

    Recipes, and what is chosen from the data, come before defaults: `plan` tells what a training
    would take.
    """
    from skipway.settings import settings

    found = settings(key)
    if as_json:
        emit([asdict(one) for one in found])
        return
    for one in found:
        value = f" = {_written(one.default)}"
        if one.decided_by is not None:
            value = f", by {one.decided_by}"
        print(one.key + value + (f"  (or {one.flag})" if one.flag else ""))
        _paragraph(f"takes {one.takes}")
        _paragraph(one.meaning)


def _written(value: Any) -> str:
    """A value as `--set` takes it."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def _paragraph(text: str) -> None:
    width = min(shutil.get_terminal_size().columns, 100)
    print(textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    "))
