"""Weights scored on ImageNet's validation images under the papers' test views, beside what is
published of their networks: He et al. 2015, Tables 2 and 3, and the authors' own single crops."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipway.architecture import Architecture, name_of
from skipway.errors import InputError, harmless
from skipway.metrics import wilson_interval
from skipway.peers import canonical
from skipway.report.markup import duration
from skipway.study.form import Cell, Expected, Finding, Given, Weights
from skipway.study.store import environment

if TYPE_CHECKING:
    from skipway.data import Split
    from skipway.predictor import Predictor

# What is published

TOLERANCE = 0.8
"""Points by which an error may miss what is published of its network: of top-1 the interval of
50,000 images takes up to 0.4 of them, and as much is left for what else differs."""
CLASSES, EACH = 1_000, 50
"""Of ImageNet's validation images, which the published errors are of: classes, and images of
each."""


@dataclass(frozen=True)
class Published:
    """What a network scored on ImageNet's validation images."""

    errors: tuple[float, float | None]
    """Top-1 and top-5 error in %; None where it is not told."""
    source: str


TABLES = "2015, Tables 2 and 3"
AUTHORS = "the authors' repository"
ERRORS: dict[tuple[str, str, str], Published] = {
    ("resnet50v1", "B", "one"): Published((24.7, 7.8), AUTHORS),
    ("resnet101v1", "B", "one"): Published((23.6, 7.1), AUTHORS),
    ("resnet152v1", "B", "one"): Published((23.0, 6.7), AUTHORS),
    ("resnet18", "none", "ten-crop"): Published((27.94, None), TABLES),
    ("resnet18", "A", "ten-crop"): Published((27.88, None), TABLES),
    ("resnet34", "none", "ten-crop"): Published((28.54, 10.02), TABLES),
    ("resnet34", "A", "ten-crop"): Published((25.03, 7.76), TABLES),
    ("resnet34", "B", "ten-crop"): Published((24.52, 7.46), TABLES),
    ("resnet34", "C", "ten-crop"): Published((24.19, 7.40), TABLES),
    ("resnet50v1", "B", "ten-crop"): Published((22.85, 6.71), TABLES),
    ("resnet101v1", "B", "ten-crop"): Published((21.75, 6.05), TABLES),
    ("resnet152v1", "B", "ten-crop"): Published((21.43, 5.71), TABLES),
}
"""By the row of `ARCHITECTURES`, its shortcuts, and the views."""
VIEWS = {"one": "1 crop", "ten-crop": "10 crops"}
"""The protocols, as `evaluation.Views` has them."""
CROPS = {"one": 1, "ten-crop": 10}
SIZE, SHORT_SIDE = 224, 256
"""Of a crop, and of the image that it is taken from, in pixels (2015, section 3.4)."""
NOTE = (
    "The published errors are of the same 50,000 images that are scored here. An interval of the "
    "images allows for others too, so that a verdict on these numbers is the more careful one; "
    f"±{TOLERANCE} points of tolerance were chosen before any weights were scored. Weights of "
    "another training may well score better or worse: what they do is told of them alone, and is "
    "no part of the verdict on the claim."
)


# Cells


def digest(given: Given) -> str:
    """Of the validation images; empty where there are no weights to be scored on them.

    Raises InputError where they cannot be: it opens each of the weights that are still there.
    """
    from skipway.data import DataSet

    if bool(given.weights) != (given.imagenet is not None):
        lacks = "--imagenet" if given.weights else "--weights"
        raise InputError(
            f"{lacks}: --weights and --imagenet go together: what is scored, and on which images"
        )
    if given.imagenet is None:
        return ""
    name, split, classes = _validation(given.imagenet)
    for weights in filter(_there, given.weights):
        predictor = _opened(weights.path, given)
        _require(predictor, weights.path, split, classes, given.imagenet)
        _as_tested(predictor, weights.path)
    return DataSet(given.imagenet, classes, {name: split}).digest()


def identified(path: str) -> Weights:
    """Weights with what tells them from others. Raises InputError where there are none."""
    from skipway.files import is_hub_name, weight_file

    if is_hub_name(path):
        return Weights(path, path)
    try:
        with weight_file(path).open("rb") as file:
            return Weights(path, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise InputError(f"--weights {harmless(path)}: {error.strerror}") from None
    except InputError as error:
        raise InputError(f"--weights {error}") from None


def _there(weights: Weights) -> bool:
    """Whether its file is still what it was."""
    try:
        return identified(weights.path) == weights
    except InputError:
        return False


def cells(given: Given) -> list[Cell]:
    """Each of the weights under each protocol; of one path, the last that was given."""
    # Files are known by their content: machines that share the work may have them elsewhere.
    last = {weights.path: weights.identity for weights in given.weights}
    paths = {identity: path for path, identity in last.items()}
    return [
        Cell(f"{harmless(path)}, {words}", {"weights": identity, "views": views}, CROPS[views])
        for identity, path in paths.items()
        for views, words in VIEWS.items()
    ]


def _path_of(cell: Cell, given: Given) -> str:
    """Where the weights of a cell are. Raises InputError where they are no longer."""
    same = [weights for weights in given.weights if weights.identity == cell.settings["weights"]]
    for weights in filter(_there, same):
        return weights.path
    raise InputError(
        f"--weights {harmless(same[0].path)}: is no longer the file that was to be scored\n"
        "Put it back as it was."
    )


def seconds(cell: Cell, given: Given) -> float:
    """About how long `score` takes on this machine for all images, from a few of them."""
    return _seconds(cell.settings["views"], _path_of(cell, given), given)


@functools.cache
def _seconds(views: str, weights: str, given: Given) -> float:
    import numpy as np

    from skipway.evaluation import Views
    from skipway.evaluation.scoring import outputs
    from skipway.machine import cores

    assert given.imagenet is not None
    _, split, _ = _validation(given.imagenet)
    predictor = _as_tested(_opened(weights, given), weights)
    some = split.take(np.arange(min(_TIMED, len(split))))
    for _ in range(2):  # the first makes what is made once
        began = time.perf_counter()
        for _ in outputs(
            predictor, some, given.threads or cores(), "skip", Views(views), _BATCH, None, []
        ):
            pass
        spent = time.perf_counter() - began
    return spent / len(some) * len(split)


_TIMED = 8
"""Images that are timed."""


# Images and weights


def _validation(imagenet: str) -> tuple[str, Split, tuple[str, ...]]:
    """The validation images of a folder with their name there, and the classes that their labels
    count. Raises InputError."""
    from skipway.data import open_split

    try:
        name, split, classes = open_split(imagenet, None, None, 0, "auto")
    except InputError as error:
        raise InputError(f"--imagenet {error}") from None
    if name not in ("val", "all"):
        raise InputError(
            f"--imagenet {harmless(imagenet)}: has {name} but no val; give the folder that holds "
            "val, or val itself with its class folders"
        )
    return name, split, classes


def _is_whole(split: Split) -> bool:
    """Whether these can be ImageNet's own validation images, by their numbers."""
    import numpy as np

    _, counts = np.unique(split.labels, return_counts=True)
    return counts.tolist() == [EACH] * CLASSES


def _opened(weights: str, given: Given) -> Predictor:
    """The weights as a classifier. Raises InputError."""
    from skipway.machine import cores
    from skipway.predictor import load

    return load(weights, given.threads or cores(), _device(weights, given))


def _as_tested(predictor: Predictor, weights: str) -> Predictor:
    """A classifier that sees images as the papers' tests show them: their sizes, its own mean,
    deviation and interpolation. Raises InputError."""
    from skipway.images import Preprocess
    from skipway.predictor import Predictor

    own = predictor.card.preprocess
    if not predictor.any_size and own.size != (SIZE, SIZE):
        raise InputError(
            f"--weights {harmless(weights)}: ONNX of {own.size[0]} x {own.size[1]} px; the papers' "
            f"tests take {SIZE} x {SIZE}"
        )
    fields = {"size": (SIZE, SIZE), "short_side": SHORT_SIDE, "resize": "crop"}
    try:
        shown = Preprocess.model_validate(own.model_dump() | fields)
    except ValueError:  # a mean of each pixel has one size
        raise InputError(
            f"--weights {harmless(weights)}: its mean of each pixel is of {own.size[0]} x "
            f"{own.size[1]} px; the papers' tests take {SIZE} x {SIZE}"
        ) from None
    card = predictor.card.model_copy(update={"preprocess": shown})
    return Predictor(predictor.run, card, predictor.origin, predictor.any_size)


def _device(weights: str, given: Given) -> str:
    """Where weights are run: ONNX on the CPU, if nothing else is asked for."""
    from skipway.files import is_hub_name, weight_file
    from skipway.predictor import is_onnx

    onnx = not is_hub_name(weights) and is_onnx(weight_file(weights))
    return "cpu" if onnx and given.device == "auto" else given.chosen_device()


def _require(
    predictor: Predictor, weights: str, split: Split, classes: Sequence[str], imagenet: str
) -> None:
    """Raise InputError where the images are not of all classes that the weights tell apart, and of
    no others."""
    from skipway.data.forms.imagenet import in_models_order

    shown, folder = f"--weights {harmless(weights)}", f"--imagenet {harmless(imagenet)}"
    there = {classes[i] for i in set(split.labels.tolist())}
    n, known = len(predictor.classes), set(predictor.classes)
    by_name = predictor.classes_known and not known.isdisjoint(there)
    if len(there) > n:
        raise InputError(f"{shown}: tells {n:,} classes apart, {folder} has {len(there):,}")
    lacking = sorted((known if by_name else set(classes)) - there)
    if len(there) < n or lacking:
        few = ", ".join(map(harmless, lacking[:3])) + (", …" if len(lacking) > 3 else "")
        few = few or f"{n - len(there):,} class folders"
        raise InputError(
            f"{folder}: validation images of {len(there):,} of the {n:,} classes that "
            f"{harmless(weights)} tells apart; it lacks {few}"
        )
    if predictor.classes_known and not by_name and not in_models_order(classes, predictor.classes):
        raise InputError(
            f"{shown}: its classes, as {harmless(predictor.classes[0])!r}, are not those of "
            f"{folder}, as {harmless(classes[0])!r}"
        )


# The score

_BATCH = 64
"""Crops at once: of the deepest network on two cores a batch is below half a minute's work."""
KEPT_EVERY = 20.0
"""Seconds after which what was scored is written down."""


def reached(place: Path) -> str | None:
    """How many images `score` has scored there."""
    state = _kept(place / "scored.json")
    return None if state is None else f"{state['done']:,} of {state['of']:,} images"


def _kept(path: Path) -> dict[str, Any] | None:
    """What `score` wrote there; None where that is nothing, or damaged."""
    try:
        state = json.loads(path.read_text("utf-8"))
        whole = {"done": int(state["done"]), "of": int(state["of"])}
        first, five = map(int, state["wrong"])
        return whole | {"wrong": (first, five), "seconds": float(state["seconds"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def score(cell: Cell, place: Path, given: Given, say: Callable[[str], None]) -> dict[str, Any]:
    """A weight file under one protocol, gone on with where it stopped, as JSON."""
    import numpy as np

    from skipway.evaluation import Views, open_labelled
    from skipway.evaluation.scoring import outputs
    from skipway.files import atomic_write
    from skipway.machine import cores
    from skipway.metrics import Scored

    assert given.imagenet is not None
    began = time.monotonic()
    weights = _path_of(cell, given)
    predictor = _as_tested(_opened(weights, given), weights)
    name, _, _ = _validation(given.imagenet)
    images = open_labelled(predictor, weights, given.imagenet, name)
    n, kept = len(images.split), place / "scored.json"
    state = _kept(kept) or {"done": 0, "wrong": (0, 0), "seconds": 0.0}
    done, (first, five), before = state["done"], state["wrong"], state["seconds"]
    if done:
        say(f"{cell.name}: going on after {done:,} of {n:,} images")

    def spent() -> float:
        return float(before + time.monotonic() - began)

    def keep() -> None:
        row = {"done": done, "of": n, "wrong": [first, five], "seconds": spent()}
        with atomic_write(kept) as file:
            file.write(json.dumps(row).encode())

    rest = images.split.take(np.arange(done, n))
    last = time.monotonic()
    for index, logits in outputs(
        predictor,
        rest,
        given.threads or cores(),
        "error",
        Views(cell.settings["views"]),
        _BATCH,
        None,
        [],
    ):
        found = Scored.from_logits(logits, rest.labels[index], index)
        done += len(index)
        first += int((~found.correct).sum())
        five += int((~found.in_top5).sum())
        if time.monotonic() - last >= KEPT_EVERY:
            keep()
            last, left = time.monotonic(), spent() / done * (n - done)
            say(f"{cell.name}: {done:,} of {n:,} images, {duration(left)} left")
    return {
        "weights": weights,
        "net": _net_of(predictor.card.architecture),
        "views": cell.settings["views"],
        "n": n,
        "whole": _is_whole(images.split),
        "wrong": [first, five],
        "stated": _stated(_digest_of(cell, predictor)),
        "told_by_card": predictor.classes_known,
        "notes": list(images.notes),
        "seconds": spent(),
        "environment": environment(_device(weights, given)),
    }


def _net_of(arch: Architecture) -> list[str]:
    """The row of `ARCHITECTURES` with shortcut B, and the shortcut that it has; what only training
    sees does not count."""
    plain = dataclasses.replace(canonical(arch), shortcut="B")
    return [name_of(plain), "A" if arch.shortcut == "A-split" else arch.shortcut]


def _digest_of(cell: Cell, predictor: Predictor) -> str:
    """The sha256 of the weights, as their hub gave it where they come from one."""
    return str(predictor.card.provenance.get("sha256", cell.settings["weights"]))


def _stated(digest: str) -> list[Any] | None:
    """What torchvision states of weights of its own with that sha256: their name, and top-1 and
    top-5 error in % on ImageNet's validation images; None for all others."""
    from torch.hub import HASH_REGEX
    from torchvision.models import get_model_weights

    from skipway.peers import torchvision_names

    for model in torchvision_names():
        for member in get_model_weights(model):
            marked = HASH_REGEX.search(os.path.basename(member.url))
            if marked and marked[1] and digest.startswith(marked[1]):
                found = member.meta["_metrics"]["ImageNet-1K"]
                return [f"{model}.{member.name}", 100 - found["acc@1"], 100 - found["acc@5"]]
    return None


# What follows


def findings(result: Any) -> list[Finding]:
    """Top-1 and top-5 error of one score. They are judged by what is published of the network and
    the views, where the images are those that it is published of."""
    published = _published(result)
    found = []
    for place, top in enumerate(("top-1", "top-5")):
        figure = published.errors[place] if published else None
        expected = None
        if published and figure is not None:
            words = f"{figure:g} % ± {TOLERANCE} ({published.source})"
            expected = Expected(words, figure - TOLERANCE, figure + TOLERANCE)
        found.append(
            Finding(
                name=f"{harmless(result['weights'])}, {VIEWS[result['views']]}, {top} error",
                values=(100 * result["wrong"][place] / result["n"],),
                expected=expected,
                unit="%",
                drawn=False,
                aside=True,
                sampled=_interval(result, place),
                note="; ".join(_said(result, place)),
            )
        )
    return found


def _published(result: Any) -> Published | None:
    """Of the network and the views; None where nothing is, or of other images."""
    row, shortcut = result["net"]
    return ERRORS.get((row, shortcut, result["views"])) if result["whole"] else None


def _interval(result: Any, place: int) -> tuple[float, float]:
    """Of the images, in %."""
    low, high = wilson_interval(result["wrong"][place], result["n"])
    return 100 * low, 100 * high


def _said(result: Any, place: int) -> list[str]:
    """What a reader must know beside an error."""
    if not result["whole"]:
        return [
            f"another set of {result['n']:,} images than the {CLASSES * EACH:,} that what is "
            "published is of"
        ]
    said = [f"of {result['n']:,} images"]
    row, shortcut = result["net"]
    if result["stated"] and result["views"] == "one":
        name, *errors = result["stated"]
        said.append(f"torchvision states {errors[place]:.2f} % of {name}, at its own sizes")
    if first := ERRORS.get((f"{row}v1", shortcut, result["views"])):
        said.append(f"published for the network that strides in the 1x1: {first.errors[place]:g} %")
        if not result["told_by_card"]:
            said.append("that this one strides in the 3x3 is assumed: the file does not tell")
    return said


def table(scored: Sequence[Any]) -> tuple[str, Sequence[str], Sequence[Sequence[object]]]:
    """All scores, as a table of `form.Told`."""
    rows = []
    for result in scored:
        row, shortcut = result["net"]
        published = _published(result)
        rows.append(
            (
                harmless(result["weights"]),
                f"{row}, option {shortcut}",
                VIEWS[result["views"]],
                f"{result['n']:,}",
                *(
                    part
                    for place, figure in enumerate(published.errors if published else (None, None))
                    for part in (
                        f"{100 * result['wrong'][place] / result['n']:.2f}",
                        "{:.2f} to {:.2f}".format(*_interval(result, place)),
                        None if figure is None else f"{figure:g}",
                    )
                ),
                published.source if published else None,
            )
        )
    return (
        "Weights on ImageNet's validation images: error in %, with its 95 % interval of the images",
        (
            "weights", "network", "view", "images", "top-1", "interval", "published", "top-5",
            "interval", "published", "where",
        ),
        rows,
    )  # fmt: skip
