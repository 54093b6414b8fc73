"""Make a run one of the models that come with the package.

    python scripts/ship.py RUN NAME --data cifar10 --licence "weights: Apache-2.0. ..."

writes NAME.safetensors (float16), NAME.onnx (the same weights, proven equal) and NAME.jsonl (the
training's rows) into the package, with a card that names no place of this computer. Stops without
writing where the accuracy falls by more than 0.1 points, or where all that ships would weigh more
than 4 MB. A new name is then entered in `skipway.shipped.NAMES`.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from skipway import shipped
from skipway.card import Card
from skipway.data import open_split
from skipway.errors import SkipwayError
from skipway.evaluation import score
from skipway.export import export
from skipway.files import weight_file
from skipway.machine import cores
from skipway.predictor import load, open_network
from skipway.weights import save_weights

MOST = 4_000_000
"""Bytes of everything that ships."""


def public(card: Card, name: str, data: str, licence: str) -> Card:
    """The card with the data's name for its place, the model's for the run's, and the licence."""
    here = card.recipe["data_path"]
    words = shlex.split(str(card.provenance["command"]))
    words = [data if word == here else word for word in words]
    if "--out" in words:
        words[words.index("--out") + 1] = name
    return card.model_copy(
        update={
            "recipe": card.recipe | {"data_path": data},
            "provenance": card.provenance | {"command": shlex.join(words)},
            "metrics": tuple(m.model_copy(update={"data": data}) for m in card.metrics),
            "licence": licence,
        }
    )


def ship(run: Path, name: str, data: str, licence: str, folder: Path) -> None:
    """Write the three files into `folder`, or say in SystemExit why not."""
    net, card = open_network(weight_file(run))
    place = str(card.recipe["data_path"])
    told = public(card, name, data, licence)
    if found := re.search(r'["\s=]/[^"]*', told.to_json()):
        sys.exit(f"the card would name a place of this computer: {found[0]}")
    with tempfile.TemporaryDirectory() as aside:
        weights = Path(aside) / f"{name}.safetensors"
        save_weights(weights, net, told, torch.float16)
        made = export(weights, on=[place], threads=cores(), store="float16")
        shutil.copyfile(run / "metrics.jsonl", Path(aside) / f"{name}.jsonl")
        print(f"ONNX and torch: scores {made.parity.score:.1e}, logits {made.parity.logit:.1e}")
        then = card.metrics[0]
        recipe: Any = card.recipe
        held = open_split(place, then.split, card.classes, recipe["seed"], recipe["data"]["val"])[1]
        now = score(load(made.path, cores()), held, cores())[0].metrics()["accuracy"]
        print(f"accuracy on {then.split}: {now:.2%}, of the run {then.value:.2%}")
        if now < then.value - 0.001:
            sys.exit("float16 costs more than 0.1 points")
        new = {path.name: path for path in Path(aside).iterdir()}
        old = [p for p in folder.iterdir() if p.is_file() and p.name not in new]
        total = sum(p.stat().st_size for p in [*old, *new.values()])
        if total > MOST:
            sys.exit(f"all that ships would be {total:,} bytes, more than {MOST:,}")
        for path in new.values():
            shutil.copyfile(path, folder / path.name)
    print(f"{', '.join(sorted(new))} in {folder}; {total:,} bytes in all")
    if name not in shipped.NAMES:
        print(f"now add {name!r} to skipway.shipped.NAMES")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--data", required=True, help="the data set's public name")
    parser.add_argument("--licence", required=True)
    parser.add_argument("--out", type=Path, default=Path(shipped.__file__).parent)
    asked = parser.parse_args()
    try:
        ship(asked.run, asked.name, asked.data, asked.licence, asked.out)
    except SkipwayError as error:
        sys.exit(str(error))
