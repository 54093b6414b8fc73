"""The page of a classification run: what it shows in its own way."""

from __future__ import annotations

from typing import Any

from skipway.report.commands import Line, loading, quoted
from skipway.report.course import course
from skipway.report.findings import in_words
from skipway.report.markup import fact_list, percent, plural, shown, tag
from skipway.report.mistakes import mistakes
from skipway.report.plot import gauge
from skipway.report.run import Run
from skipway.report.task_page import TaskPage
from skipway.report.values import dig, number


def _how_good(run: Run) -> list[object]:
    result, accuracy = dig(run.record, "result"), run.metric("accuracy")
    if accuracy is None:
        seen = run.series("val_accuracy")
        text = percent(seen[-1][1]) if seen else "–"
        said = f"validation accuracy after epoch {seen[-1][0]:g}" if seen else "not measured"
        return [tag("p", text, class_="big"), tag("p", said, class_="quiet")]
    places = 1 if (run.scored or 0) < 1000 else 2
    count = shown(run.scored, unit=" ") or ""
    said = f"accuracy on {count}{run.split} images"
    spread = None
    if run.interval:
        low, high = (percent(end, places) for end in run.interval)
        spread = tag("p", f"95 % interval: {low} to {high}", class_="quiet")
    facts = [
        ("By guessing", shown(run.guessing, ".1%", ", always the commonest class")),
        ("Top 5", shown(run.metric("top5"), f".{places}%")),
        ("Loss", shown(run.metric("loss"), ".3g", " nats")),
        ("Calibration error", shown(run.metric("ece"), ".1%")),
        ("Weights", dig(result, "chosen") or dig(result, "weights")),
    ]
    caution = (
        "The epoch was chosen on these images: expect a little less on new ones."
        if dig(result, "split") == "val" and dig(result, "best_epoch") is not None
        else None
    )
    leaked = (
        f"Too good: {plural(run.leaked, 'of these images was', 'of these images were')} trained on."
    )
    return [
        tag("p", percent(accuracy, places), class_="big"),
        tag("p", leaked, class_="warn") if run.leaked else None,
        gauge(accuracy, run.interval, run.guessing),
        tag("p", said, class_="quiet"),
        spread,
        fact_list(facts),
        tag("p", caution, class_="quiet") if caution else None,
    ]


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
    counted="Images",
    total="All",
)
