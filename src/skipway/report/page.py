"""The page: four cards that answer at once, then the sections."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from skipway.report.course import course
from skipway.report.document import document
from skipway.report.findings import in_words
from skipway.report.gallery import gallery
from skipway.report.markup import (
    MOST_ROWS,
    OPEN_ROWS,
    Html,
    as_text,
    code_line,
    details,
    duration,
    fact_list,
    flat,
    joined,
    large,
    mebibytes,
    percent,
    plural,
    shown,
    table,
    tag,
)
from skipway.report.mistakes import mistakes
from skipway.report.plot import bar, gauge
from skipway.report.run import CACHED, SPLITS, Run
from skipway.report.signal import signal
from skipway.report.values import dig, mapping, number, objects
from skipway.version import __version__


def build_page(run: Run) -> str:
    """The whole HTML document, its style sheet inside."""
    first = (
        _warning(run),
        tag("div", _what(run), _how_good(run), _how_long(run), _next(run), class_="cards"),
    )
    sections = (
        ("In words", "words", in_words(run)),
        ("How it went", "course", course(run)),
        ("Where it errs", "errors", mistakes(run)),
        ("The signal through depth", "signal", signal(run)),
        ("The data", "data", _data(run)),
        ("What was chosen, and why", "choices", _choices(run)),
        ("How to use it", "use", _use(run)),
        ("How to reproduce it", "reproduce", _reproduce(run)),
    )
    return document(run.name, f"{run.name}: a Skipway run", first, sections, run.family)


def _warning(run: Run) -> Html | None:
    status = dig(run.record, "status")
    if status in (None, "finished"):
        return None
    said = {"interrupted": "was interrupted", "failed": "failed"}.get(str(status), f"is {status}")
    done = f" after epoch {run.epochs[-1]['epoch']:g}" if run.epochs else ""
    resume = f"skipway train --resume {_quoted(run.path)}"
    return tag("p", f"This run {said}{done}. Go on with: ", tag("code", resume), class_="warn")


def _card(title: str, *content: object) -> Html:
    return tag("section", tag("h2", title), *content, class_="card")


def _quoted(text: object) -> str:
    return shlex.quote(str(text))


def _what(run: Run) -> Html:
    record, card = run.record, run.card
    classes = dig(record, "data", "classes")
    recipe = dig(record, "config", "recipe")
    images = [f"{shown(s.get('n')) or '?'} {SPLITS.get(k, k)}" for k, s in run.splits.items()]
    facts = [
        ("Parameters", large(dig(record, "params"))),
        ("Multiply-adds", large(dig(record, "macs"))),
        ("Input", "{} × {} px".format(*card.preprocess.size) if card else None),
        ("Data", run.data),
        ("Classes", shown(len(classes)) if isinstance(classes, list) else None),
        ("Images", ", ".join(images) or None),
        ("Recipe", dig(recipe, "name") or recipe),
        ("Started from", dig(record, "config", "model", "weights") or "random weights"),
    ]
    return _card("What was trained", tag("p", run.model, class_="name"), fact_list(facts))


def _how_good(run: Run) -> Html:
    result, accuracy = dig(run.record, "result"), run.metric("accuracy")
    if accuracy is None:
        seen = run.series("val_accuracy")
        text = percent(seen[-1][1]) if seen else "–"
        said = f"validation accuracy after epoch {seen[-1][0]:g}" if seen else "not measured"
        return _card("How good", tag("p", text, class_="big"), tag("p", said, class_="quiet"))
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
    return _card(
        "How good",
        tag("p", percent(accuracy, places), class_="big"),
        tag("p", leaked, class_="warn") if run.leaked else None,
        gauge(accuracy, run.interval, run.guessing),
        tag("p", said, class_="quiet"),
        spread,
        fact_list(facts),
        tag("p", caution, class_="quiet") if caution else None,
    )


def _how_long(run: Run) -> Html:
    environment = dig(run.record, "environment")
    waiting = [] if run.on_features else [value for _, value in run.series("waiting")]
    speed = f" a second, {CACHED}" if run.on_features else " a second"
    begun, expected = dig(run.record, "created"), None
    if run.expected:
        expected = f"{duration(run.expected[0])}, {mebibytes(run.expected[1])}"
    facts = [
        ("Epochs", shown(len(run.epochs) or None)),
        ("Best epoch", shown(dig(run.record, "result", "best_epoch"))),
        ("Stopped early", run.stopped),
        ("Expected", expected),
        ("Training images", shown(run.speed, unit=speed)),
        ("Waiting for data", percent(float(np.mean(waiting))) if waiting else None),
        ("Peak memory", mebibytes(run.memory) if run.memory else None),
        ("Device", dig(environment, "device")),
        ("Processor", dig(environment, "cpu")),
        ("Threads", shown(dig(environment, "threads"))),
        ("Begun", begun.replace("T", " ")[:16] if isinstance(begun, str) else None),
    ]
    time = duration(run.seconds) if run.seconds else "–"
    return _card("How long", tag("p", time, class_="big"), fact_list(facts))


def _next(run: Run) -> Html:
    where = _quoted(run.path)
    return _card(
        "What next",
        tag("p", "Measure it, here or on other data", class_="quiet"),
        code_line(f"skipway eval {where} {_quoted(run.data)}"),
        tag("p", "Name what is in an image", class_="quiet"),
        code_line(f"skipway predict {where} IMAGE…"),
        tag("p", "Use it in Python", class_="quiet"),
        code_line(_loading(run.path)),
    )


def _data(run: Run) -> Html | None:
    notes, skipped = dig(run.record, "data", "notes"), dig(run.record, "data", "skipped")
    parts = [
        tag("ul", *(tag("li", note) for note in notes))
        if isinstance(notes, list) and notes
        else None,
        gallery(
            "What the network saw",
            "The first training batch, augmented and normalised as it was given to the network, "
            "and turned back into pictures.",
            run.samples,
            lambda row: [tag("b", _seen(row))],
        ),
    ]
    if run.splits:
        counts = [mapping(split.get("counts")) for split in run.splits.values()]
        largest = max([number(n) or 0 for n in counts[0].values()], default=0) or 1
        names = list(dict.fromkeys(itertools.chain(*counts)))
        rows = [
            (name, bar((number(counts[0].get(name)) or 0) / largest),
             *(shown(count.get(name, 0)) for count in counts))
            for name in names[:MOST_ROWS]
        ]  # fmt: skip
        totals = ("All", "", *(shown(split.get("n")) for split in run.splits.values()))
        head = ("Class", "", *(SPLITS.get(name, name).capitalize() for name in run.splits))
        more = len(names) > MOST_ROWS
        note = f"The first {MOST_ROWS} of {len(names):,}; run.json has all." if more else None
        content = table(head, [totals, *rows], words=2, caption=note)
        parts.append(details("Images by class and split", content, len(rows) <= OPEN_ROWS))
    files = [(row.get("path") or row.get("name"), row.get("reason")) for row in objects(skipped)]
    if files:
        note = f"The first 100 of {len(files):,}." if len(files) > 100 else None
        content = table(("File", "Why"), files[:100], words=2, caption=note)
        parts.append(details(f"{plural(len(files), 'file', 'files')} left out", content))
    return joined(parts) or None


def _seen(row: dict[str, Any]) -> object:
    """The class of a training image; of a mixture both, each with its share."""
    label, other, share = row.get("label"), row.get("other"), number(row.get("share"))
    if not isinstance(other, str) or share is None or not 0 <= share <= 1 or other == label:
        return label
    own = round(100 * share)
    return f"{label} {own} %, {other} {100 - own} %"


def _choices(run: Run) -> Html | None:
    rows = [
        (row.get("key"), as_text(row.get("value")), row.get("reason"))
        for row in objects(run.record.get("choices"))
    ]
    settings = list(flat(mapping(run.record.get("config"))))
    head = ("Setting", "Value", "Reason")
    parts = [
        table(head, rows, words=3, fixed=True) if rows else None,
        details("All settings", table(head[:2], settings, words=2)) if settings else None,
    ]
    return joined(parts) or None


def _use(run: Run) -> Html | None:
    """Commands to copy; None for a run that has no weights to use yet."""
    if dig(run.record, "status") not in (None, "finished"):
        return None
    where = _quoted(run.path)
    onnx = _quoted(run.path / "model.onnx")
    steps = (
        ("Name what is in images, or in folders of them", f"skipway predict {where} IMAGE…"),
        ("The same for programs, as JSON", f"skipway predict {where} IMAGE… --json"),
        ("Measure it on labelled images", f"skipway eval {where} {_quoted(run.data)}"),
        ("In Python", f'import skipway; print({_loading(run.path)}("image.jpg"))'),
        ("Export it to ONNX, proven equal on real images", f"skipway export {where} --to onnx"),
        ("Use the export, without torch", f"skipway predict {onnx} IMAGE…"),
        ("Train from these weights on other images", f"skipway train DATA --weights {where}"),
        ("Compare it with other runs", f"skipway compare {where} RUN --out compare.html"),
    )
    return tag(
        "div",
        *(tag("div", tag("p", said, class_="quiet"), code_line(line)) for said, line in steps),
        class_="steps",
    )


def _loading(path: Path) -> str:
    return f"skipway.load({json.dumps(str(path), ensure_ascii=False)})"


def _reproduce(run: Run) -> Html | None:
    command, version = run.record.get("command"), run.record.get("skipway")
    environment = mapping(run.record.get("environment"))
    licence = run.card.licence if run.card else None
    digest = run.card.provenance.get("data") if run.card else None
    facts = [(key, as_text(value)) for key, value in environment.items()]
    promise = "Expect the same bits only with the same versions, threads and instruction set."
    told = [
        (
            "seed",
            as_text(seed) if (seed := dig(run.record, "config", "seed")) is not None else None,
        ),
        ("images and labels, sha256", digest),
        *facts,
        ("licence of the weights", licence),
        ("this page by", f"skipway {__version__}"),
    ]
    parts = [
        code_line(f"pip install 'skipway[train]=={version}'") if version else None,
        code_line(str(command)) if command else None,
        tag("p", promise),
        fact_list(told),
    ]
    return joined(parts) if command or environment else None
