"""The page of a classification run: what it shows in its own way."""

from __future__ import annotations

from typing import Any

from skipway.metrics import class_scores
from skipway.report.commands import Line, loading, quoted
from skipway.report.course import course
from skipway.report.findings import in_words
from skipway.report.first_screen import how_good
from skipway.report.markup import percent, shown, tag
from skipway.report.mistakes import mistakes
from skipway.report.run import Run
from skipway.report.task_page import ByClass, TaskPage
from skipway.report.values import number


def _how_good(run: Run) -> list[object]:
    places = 1 if (run.scored or 0) < 1000 else 2
    facts = [
        ("By guessing", shown(run.guessing, ".1%", ", always the commonest class")),
        ("Loss", shown(run.metric("loss"), ".3g", " nats")),
        ("Calibration error", shown(run.metric("ece"), ".1%")),
    ]
    if not 0 < len(run.classes) <= 5:  # any answer is among the top 5
        facts.insert(1, ("Top 5", shown(run.metric("top5"), f".{places}%")))
    return how_good(run, "accuracy", "accuracy", facts, places=places, commonest=run.guessing)


def _next(run: Run) -> list[Line]:
    where = quoted(run.path)
    return [
        ("Measure it, here or on other data", f"skipway eval {where} {quoted(run.data)}"),
        ("Name what is in an image", f"skipway predict {where} IMAGE…"),
        ("Use it in Python", loading(run.path)),
    ]


def _use(run: Run) -> list[Line]:
    where, onnx = quoted(run.path), quoted(run.path / "model.onnx")
    return [
        ("Name what is in images, or in folders of them", f"skipway predict {where} IMAGE…"),
        ("The same for programs, as JSON", f"skipway predict {where} IMAGE… --json"),
        ("Measure it on labelled images", f"skipway eval {where} {quoted(run.data)}"),
        ("In Python", f'import skipway; print({loading(run.path)}("image.jpg"))'),
        ("Export it to ONNX, proven equal on real images", f"skipway export {where} --to onnx"),
        ("Use the export, without torch", f"skipway predict {onnx} IMAGE…"),
        ("Train from these weights on other images", f"skipway train DATA --weights {where}"),
        ("Compare it with other runs", f"skipway compare {where} RUN --out compare.html"),
    ]


def _scores(run: Run) -> list[tuple[str, str | None]]:
    places, spread = 1 if (run.scored or 0) < 1000 else 2, None
    if run.interval:
        spread = "{} to {}".format(*(percent(end, places) for end in run.interval))
    accuracy = shown(run.metric("accuracy"), f".{places}%")
    return [("Accuracy", accuracy), ("95 % interval", spread)]


def _recalls(run: Run) -> list[float | None]:
    if run.confusion is None:
        return [None] * len(run.classes)
    return [
        None if value != value else value for value in class_scores(run.confusion).recall.tolist()
    ]


def _share(row: dict[str, Any]) -> object:
    """The class of a training image; of a mixture both, each with its share."""
    label, other, share = row.get("label"), row.get("other"), number(row.get("share"))
    if not isinstance(other, str) or share is None or not 0 <= share <= 1 or other == label:
        return label
    own = round(100 * share)
    return f"{label} {own} %, {other} {100 - own} %"


PAGE = TaskPage(
    what=lambda run: [],
    how_good=_how_good,
    next=_next,
    words=in_words,
    course=course,
    errors=mistakes,
    use=_use,
    seen=lambda row: [tag("b", _share(row))],
    scores=_scores,
    measure="accuracy",
    value=lambda run: run.metric("accuracy"),
    by_class=ByClass("Recall", "recall", "of the images of the class, those found", _recalls),
    counted="Images",
    total="All",
)
