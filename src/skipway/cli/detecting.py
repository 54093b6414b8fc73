"""`skipway eval` of a model that finds objects."""

from __future__ import annotations

import sys
from typing import Any, Literal

from skipway.cli.shared import emit
from skipway.errors import InputError, harmless


def evaluate_objects(
    model: str,
    data: str,
    split: str | None,
    on_bad: Literal["error", "skip"] | None,
    device: str,
    precision: str,
    threads: int,
    as_json: bool,
) -> None:
    """Score a detector on annotated images. Raises InputError."""
    from skipway.data.objects import AnnotatedSplit, open_objects
    from skipway.locator import load_locator, score_objects

    locator = load_locator(model, threads, device, precision)
    setting = locator.card.setting
    policy: Literal["error", "skip"] = on_bad or setting("data.on_bad", "error")
    opened = open_objects(
        data,
        setting("data.val", "auto"),
        setting("seed", 0),
        policy,
        masks=locator.card.task == "instance",
        classes=locator.classes,
    )
    name = split or next(n for n in ("test", "val", "train") if n in opened.splits)
    if name not in opened.splits:
        raise InputError(
            f"--split {harmless(name)}: {harmless(data)} has {', '.join(opened.splits)}"
        )
    for note in opened.notes:
        print(f"note: {note}", file=sys.stderr)
    images = opened.splits[name]
    assert isinstance(images, AnnotatedSplit)
    evaluator, skipped = score_objects(locator, images, threads, policy)
    for reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    metrics, n = evaluator.metrics(), len(images) - len(skipped)
    rows: list[dict[str, Any]] = evaluator.per_class(locator.classes)
    if as_json:
        emit({"metrics": metrics, "n": n, "split": name, "per_class": rows})
        return
    print(f"{harmless(model)} on {harmless(data)}, {name}: {n:,} images")
    print("  ".join(f"{key} {value:.2%}" for key, value in metrics.items()))
    for row in rows:
        print(
            f"  {row['label']}: AP {row['ap']:.2%}  AP50 {row['ap50']:.2%}  ({row['n']:,} objects)"
        )
