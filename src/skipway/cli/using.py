"""`skipway eval`, `predict` and `models`: none of them needs torch by itself."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipway.cli.shared import Device, Json, Model, OnBad, Precision, Threads, app, emit
from skipway.errors import InputError, harmless

if TYPE_CHECKING:
    from skipway.card import Card


@app.command("eval")
def evaluate(
    model: Model,
    data: Annotated[str, typer.Argument(metavar="DATA", help="As for train.")],
    split: Annotated[
        str | None,
        typer.Option(
            help="train, val, test or all; by default what the run held out, else test, val, all."
        ),
    ] = None,
    on_bad: Annotated[
        OnBad | None,
        typer.Option(help="error or skip: what to do with damaged images; by default as trained."),
    ] = None,
    views: Annotated[
        str,
        typer.Option(
            metavar="one|flip|shift",
            help="Views of an image that are averaged: it alone; its mirror image too; both moved "
            "by a pixel too.",
        ),
    ] = "one",
    device: Device = "cpu",
    precision: Annotated[Precision, typer.Option()] = Precision.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Score a model on labelled images."""
    from skipway.data import open_split
    from skipway.machine import cores
    from skipway.metrics import wilson_interval
    from skipway.predictor import Views, load, score

    if views not in list(Views):
        raise InputError(f"--views {harmless(views)}: one, flip or shift")
    threads = threads or cores()
    predictor = load(model, threads, device, precision.value)
    setting = predictor.card.setting
    seed, val = setting("seed", 0), setting("data.val", "auto")
    known = predictor.classes if predictor.classes_known else None
    split = split or held_out(predictor.card, data, seed, val)
    name, found, classes = open_split(data, split, known, seed, val)
    if len(classes) != len(predictor.classes):
        raise InputError(
            f"{harmless(model)} has {len(predictor.classes)} outputs without class names, "
            f"{harmless(data)} {len(classes)} classes\nScore it on all of its classes."
        )
    if not predictor.classes_known:
        note = "class names are not in the file: taken from the data in its order"
        print(note, file=sys.stderr)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    policy = on_bad.value if on_bad else setting("data.on_bad", "error")
    scored, skipped = score(predictor, found, threads, policy, Views(views))
    for reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    metrics, n = scored.metrics(), len(scored.label)
    if as_json:
        emit({"metrics": metrics, "n": n, "split": name, "views": views})
        return
    low, high = wilson_interval(int(scored.correct.sum()), n)
    of = "" if views == "one" else f", views: {views}"
    print(f"{harmless(model)} on {harmless(data)}, {name}: {n:,} images{of}")
    print(f"accuracy {metrics['accuracy']:.2%}  (95 % interval {low:.2%} to {high:.2%})")
    print(f"top-5 {metrics['top5']:.2%}  loss {metrics['loss']:.4f}  ECE {metrics['ece']:.4f}")


def held_out(card: Card, data: str, seed: int, val: Any) -> str | None:
    """The split that a training held out, where this is its data."""
    from skipway.data import open_data

    trained_on = card.provenance.get("data")
    if trained_on is None:
        return None
    with contextlib.suppress(InputError):  # not a set to train on: then not the run's
        made = open_data(data, val, seed)
        if made.digest() == trained_on:
            split = next((s for s in ("test", "val") if s in made.splits), None)
            if split is None:
                print("note: nothing was held out; these images were trained on", file=sys.stderr)
            return split
    if card.recipe.get("data_path") == data:
        note = "the images are not those of training; where there are no split folders, those "
        print(f"note: {note}that are scored may have been trained on", file=sys.stderr)
    return None


@app.command()
def predict(
    model: Model,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES…", help="Image files, or folders of them.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes an image.")] = 5,
    device: Device = "cpu",
    precision: Annotated[Precision, typer.Option()] = Precision.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Classify images."""
    from skipway.machine import cores
    from skipway.predictor import load

    predictor = load(model, threads or cores(), device, precision.value)
    paths = list(expand(images))
    predictions = predictor.stream(paths, top)
    if as_json:
        found = [asdict(p) for p in predictions]
        emit(found)
        failed = [p["path"] for p in found if p["error"]]
    else:
        failed = []
        for p in predictions:
            if p.error is not None:
                failed.append(p.path)
                print(f"skipway: {p.error}", file=sys.stderr)
                continue
            scores = "  ".join(f"{harmless(s.label)} {s.score:.1%}" for s in p.predictions)
            print(f"{harmless(p.path)}: {scores}")
    if failed:
        raise typer.Exit(2)


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
    trained = []
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
            f"{model['name']:<24}{model['network']}, accuracy {model['accuracy']:.2%} on "
            f"{model['data']} {model['split']} ({model['n']:,} images)"
        )


def expand(images: Iterable[str]) -> Iterable[str]:
    """The paths as given; a folder stands for the images in it, in the order of their names."""
    from skipway.data.forms.folders import walk

    for path in images:
        if os.path.isdir(path):
            names = walk(Path(path))
            if not names:
                raise InputError(f"{harmless(path)}: no images in this folder")
            yield from (os.path.join(path, name) for name in names)
        else:
            yield path
