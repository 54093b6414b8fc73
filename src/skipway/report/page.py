"""The page: four cards that answer at once, then the sections."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import itertools
import json
import shlex
from collections.abc import Iterator
from typing import Any

import numpy as np

from skipway.report.course import course
from skipway.report.markup import (
    OPEN_ROWS,
    Html,
    as_text,
    code_line,
    details,
    duration,
    fact_list,
    joined,
    large,
    percent,
    plural,
    shown,
    table,
    tag,
)
from skipway.report.mistakes import mistakes
from skipway.report.plot import bar, gauge
from skipway.report.run import SPLITS, Run
from skipway.report.values import dig, mapping, number, objects


def build_page(run: Run) -> str:
    """The whole HTML document, its style sheet inside."""
    css = importlib.resources.files("skipway.report").joinpath("page.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    name = str(dig(run.record, "name") or run.path.name)
    sections = (
        ("How it went", "course", course(run)),
        ("Where it errs", "errors", mistakes(run)),
        ("The data", "data", _data(run)),
        ("What was chosen, and why", "choices", _choices(run)),
        ("How to reproduce it", "reproduce", _reproduce(run)),
    )
    links = [tag("li", tag("a", title, href=f"#{key}")) for title, key, part in sections if part]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{name}: a Skipway run"),
        tag("style", Html(css)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the results", class_="skip", href="#results"),
        tag("header", tag("h1", name), tag("nav", tag("ul", *links), aria_label="Sections")),
        tag(
            "main",
            _warning(run),
            tag("div", _what(run), _how_good(run), _how_long(run), _next(run), class_="cards"),
            *(
                tag("section", tag("h2", title), part, id=key)
                for title, key, part in sections
                if part
            ),
            id="results",
        ),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en', class_=run.family)}\n"


def _warning(run: Run) -> Html | None:
    status = dig(run.record, "status")
    if status in (None, "finished"):
        return None
    said = {"interrupted": "was interrupted", "failed": "failed"}.get(str(status), f"is {status}")
    done = f" after epoch {run.epochs[-1]['epoch']:g}" if run.epochs else ""
    resume = f"skipway train {_quoted(run.data)} --resume {_quoted(run.path)}"
    return tag("p", f"This run {said}{done}. Go on with: ", tag("code", resume), class_="warn")


def _card(title: str, *content: object) -> Html:
    return tag("section", tag("h2", title), *content, class_="card")


def _quoted(text: object) -> str:
    return shlex.quote(str(text))


def _what(run: Run) -> Html:
    record, card = run.record, run.card
    classes = dig(record, "data", "classes")
    recipe = dig(record, "config", "recipe")
    model = card.model if card else dig(record, "config", "model", "name") or "a model"
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
    return _card("What was trained", tag("p", model, class_="name"), fact_list(facts))


def _how_good(run: Run) -> Html:
    result, accuracy = dig(run.record, "result"), run.metric("accuracy")
    if accuracy is None:
        seen = run.series("val_accuracy")
        text = percent(seen[-1][1]) if seen else "–"
        said = f"validation accuracy after epoch {seen[-1][0]:g}" if seen else "not measured"
        return _card("How good", tag("p", text, class_="big"), tag("p", said, class_="quiet"))
    split = str(dig(result, "split"))
    places = 1 if (number(dig(result, "n")) or 0) < 1000 else 2
    count = shown(dig(result, "n"), unit=" ") or ""
    said = f"accuracy on {count}{SPLITS.get(split, split)} images"
    spread = None
    interval = _ends(dig(result, "interval"))
    if interval:
        low, high = (percent(end, places) for end in interval)
        spread = tag("p", f"95 % interval: {low} to {high}", class_="quiet")
    commonest = _commonest(run, split)
    facts = [
        ("By guessing", shown(commonest, ".1%", ", always the commonest class")),
        ("Top 5", shown(run.metric("top5"), f".{places}%")),
        ("Loss", shown(run.metric("loss"), ".3g", " nats")),
        ("Calibration error", shown(run.metric("ece"), ".1%")),
        ("Weights", dig(result, "chosen") or dig(result, "weights")),
    ]
    caution = (
        "The epoch was chosen on these images: expect a little less on new ones."
        if split == "val" and dig(result, "best_epoch") is not None
        else None
    )
    return _card(
        "How good",
        tag("p", percent(accuracy, places), class_="big"),
        gauge(accuracy, interval, commonest),
        tag("p", said, class_="quiet"),
        spread,
        fact_list(facts),
        tag("p", caution, class_="quiet") if caution else None,
    )


def _ends(value: Any) -> tuple[float, float] | None:
    """An interval, where both of its ends are numbers."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = map(number, value)
    return None if low is None or high is None else (low, high)


def _commonest(run: Run, split: str) -> float | None:
    """The accuracy of always naming the commonest class of the split."""
    counts = [number(n) or 0 for n in mapping(dig(run.splits, split, "counts")).values()]
    return max(counts) / sum(counts) if sum(counts) > 0 else None


def _how_long(run: Run) -> Html:
    result, environment = dig(run.record, "result"), dig(run.record, "environment")
    spent = sum(value for _, value in run.series("seconds"))
    seconds = number(dig(result, "seconds")) or spent
    waiting = [value for _, value in run.series("waiting")]
    begun = dig(run.record, "created")
    facts = [
        ("Epochs", shown(len(run.epochs) or None)),
        ("Best epoch", shown(dig(result, "best_epoch"))),
        ("Training images", shown(dig(result, "images_per_second"), unit=" a second")),
        ("Waiting for data", percent(float(np.mean(waiting))) if waiting else None),
        ("Device", dig(environment, "device")),
        ("Processor", dig(environment, "cpu")),
        ("Threads", shown(dig(environment, "threads"))),
        ("Begun", begun.replace("T", " ")[:16] if isinstance(begun, str) else None),
    ]
    time = duration(seconds) if seconds else "–"
    return _card("How long", tag("p", time, class_="big"), fact_list(facts))


def _next(run: Run) -> Html:
    where = _quoted(run.path)
    python = f"skipway.load({json.dumps(str(run.path), ensure_ascii=False)})"
    return _card(
        "What next",
        tag("p", "Measure it, here or on other data", class_="quiet"),
        code_line(f"skipway eval {where} {_quoted(run.data)}"),
        tag("p", "Name what is in an image", class_="quiet"),
        code_line(f"skipway predict {where} IMAGE…"),
        tag("p", "Use it in Python", class_="quiet"),
        code_line(python),
    )


def _data(run: Run) -> Html | None:
    notes, skipped = dig(run.record, "data", "notes"), dig(run.record, "data", "skipped")
    parts = [tag("ul", *(tag("li", note) for note in notes)) if isinstance(notes, list) else None]
    if run.splits:
        counts = [mapping(split.get("counts")) for split in run.splits.values()]
        largest = max([number(n) or 0 for n in counts[0].values()], default=0) or 1
        rows = [
            (name, bar((number(counts[0].get(name)) or 0) / largest),
             *(shown(count.get(name, 0)) for count in counts))
            for name in dict.fromkeys(itertools.chain(*counts))
        ]  # fmt: skip
        totals = ("All", "", *(shown(split.get("n")) for split in run.splits.values()))
        head = ("Class", "", *(SPLITS.get(name, name).capitalize() for name in run.splits))
        content = table(head, [totals, *rows], words=2)
        parts.append(details("Images by class and split", content, len(rows) <= OPEN_ROWS))
    files = [(row.get("path"), row.get("reason")) for row in objects(skipped)]
    if files:
        note = f"The first 100 of {len(files):,}." if len(files) > 100 else None
        content = table(("File", "Why"), files[:100], words=2, caption=note)
        parts.append(details(f"{plural(len(files), 'file', 'files')} left out", content))
    return joined(parts) or None


def _choices(run: Run) -> Html | None:
    rows = [
        (row.get("key"), as_text(row.get("value")), row.get("reason"))
        for row in objects(run.record.get("choices"))
    ]
    settings = list(_flat(mapping(run.record.get("config"))))
    head = ("Setting", "Value", "Reason")
    parts = [
        table(head, rows, words=3, fixed=True) if rows else None,
        details("All settings", table(head[:2], settings, words=2)) if settings else None,
    ]
    return joined(parts) or None


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted keys and values."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", as_text(value)


def _reproduce(run: Run) -> Html | None:
    command, version = run.record.get("command"), run.record.get("skipway")
    environment = mapping(run.record.get("environment"))
    licence = run.card.licence if run.card else None
    facts = [(key, as_text(value)) for key, value in environment.items()]
    promise = "Expect the same bits only with the same versions, threads and instruction set."
    parts = [
        code_line(f"pip install 'skipway[train]=={version}'") if version else None,
        code_line(str(command)) if command else None,
        tag("p", promise),
        fact_list([*facts, ("licence of the weights", licence)]),
    ]
    return joined(parts) if command or environment else None
