"""`skipway eval --probe`: how good a model's features are."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from skipway.cli.shared import Remarks, emit, within
from skipway.errors import InputError, harmless
from skipway.shares import percent


def evaluate_features(
    model: str,
    data: str,
    kind: str,
    split: str | None,
    stage: str | None,
    neighbours: int | None,
    on_bad: Literal["error", "skip"] | None,
    device: str,
    precision: str,
    threads: int,
    as_json: bool,
) -> None:
    """Score a classifier on the features of a model. Raises InputError."""
    from skipway.embedding import load_embedder
    from skipway.evaluation import Labelled, trained_on
    from skipway.predictor import task_of
    from skipway.probing import open_splits, probe

    if kind not in ("knn", "linear"):
        raise InputError(f"--probe {harmless(kind)}: knn or linear")
    if neighbours is not None and kind != "knn":
        raise InputError("--neighbours: goes with --probe knn, not with linear")
    if (task := task_of(model)) not in ("classify", "embed"):
        raise InputError(
            f"{harmless(model)}: a model of the task {task}; --probe takes the features of those "
            "that classify or embed"
        )
    embedder = load_embedder(
        model, stage=stage, threads=threads, device=device, precision=precision
    )  # fmt: skip
    card = embedder.card
    splits = open_splits(card, data, split)
    remarks = Remarks()
    remarks.note(*splits.notes)
    remarks.trained(model, trained_on(card, Labelled(data, splits.name, splits.test)))
    found = probe(
        embedder,
        splits.train,
        splits.test,
        "knn" if kind == "knn" else "linear",
        neighbours=neighbours,
        seed=card.setting("seed", 0),
        on_bad=on_bad or card.setting("data.on_bad", "error"),
        threads=threads,
    )
    remarks.skip(found.skipped)
    if found.leaked:
        remarks.note(
            f"{found.leaked:,} of {found.n:,} {splits.name} images are in train too, so the "
            "accuracy is too good; skipway check-data lists them"
        )
    made = {name: embedder.made.get(name) for name in ("stage", "pooling")}
    if as_json:
        told = {name: value for name, value in asdict(found).items() if name != "skipped"}
        value = {"probe": told, "split": splits.name, "classes": len(splits.classes)}
        emit(value | made | remarks.to_json())
        return
    chosen = f"k-NN probe of {found.neighbours} neighbours"
    if found.strength is not None:
        chosen = f"linear probe of inverse penalty {found.strength:g}"
    print(
        f"{harmless(model)}, {embedder.dimensions:,} features of stage {made['stage']}: {chosen}, "
        f"trained on {found.trained_on:,} images of {harmless(data)}"
    )
    print(
        f"accuracy {percent(found.accuracy)}{within((found.low, found.high))}, "
        f"{found.n:,} images of {splits.name}, {len(splits.classes):,} classes"
    )
