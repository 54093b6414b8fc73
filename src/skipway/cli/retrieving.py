"""`skipway eval` of models that make vectors."""

from __future__ import annotations

from typing import Literal

from skipway.cli.shared import Remarks, emit, within
from skipway.errors import harmless
from skipway.shares import percent

WEAKEST = 5
"""Classes that are named in the terminal."""


def evaluate_vectors(
    model: str,
    data: str,
    split: str | None,
    on_bad: Literal["error", "skip"] | None,
    device: str,
    precision: str,
    threads: int,
    as_json: bool,
) -> None:
    """Score what a model finds: each image of a split among all others of it. Raises InputError."""
    from skipway.embedding import load_embedder
    from skipway.embedding.scoring import score_vectors
    from skipway.evaluation.labelled import open_as_labelled

    embedder = load_embedder(model, threads=threads, device=device, precision=precision)
    images, classes = open_as_labelled(embedder.card, data, split)
    remarks = Remarks()
    remarks.note(*images.notes)
    policy = on_bad or embedder.card.setting("data.on_bad", "error")
    evaluator, skipped, copies = score_vectors(embedder, images.split, threads, policy)
    remarks.skip(skipped)
    if copies:
        remarks.note(
            f"{copies:,} images have a copy among them, which they find whatever the vectors are: "
            "what is found is too good; skipway check-data lists them"
        )
    metrics, ends = evaluator.metrics(), evaluator.intervals()
    rows = evaluator.per_class(classes)
    n, queries = len(images.split) - len(skipped), len(evaluator.found)
    if as_json:
        emit(
            {
                "metrics": metrics,
                "intervals": ends,
                "n": n,
                "queries": queries,
                "copies": copies,
                "split": images.name,
                "per_class": rows,
            }
            | remarks.to_json()
        )
        return
    alone = f", {n - queries:,} without another of their class" if queries < n else ""
    print(f"{harmless(model)} on {harmless(data)}, {images.name}: {n:,} images{alone}")
    for name, value in metrics.items():
        print(f"{in_words(name)} {percent(value)}{within(ends[name])}")
    rows.sort(key=lambda row: row["recall_at_1"])
    if len(rows) > 1:
        told = (f"{row['label']} {percent(row['recall_at_1'])}" for row in rows[:WEAKEST])
        print(f"lowest recall@1 of a class: {', '.join(told)}")


def in_words(metric: str) -> str:
    """recall@4 or mAP@R."""
    return "mAP@R" if metric == "map_at_r" else metric.replace("_at_", "@")
