"""The page: four cards that answer at once, then the sections."""

from __future__ import annotations

import itertools

import numpy as np

from skipway.report.by_task import page_of
from skipway.report.commands import quoted, steps
from skipway.report.document import document
from skipway.report.gallery import gallery
from skipway.report.markup import (
    MOST_ROWS,
    OPEN_ROWS,
    Html,
    as_text,
    card,
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
    rate,
    shown,
    table,
    tag,
)
from skipway.report.plot import bar
from skipway.report.run import CACHED, SPLITS, Run
from skipway.report.signal import signal
from skipway.report.task_page import TaskPage
from skipway.report.values import dig, mapping, number, objects
from skipway.version import __version__


def build_page(run: Run) -> str:
    """The whole HTML document, its style sheet inside."""
    own = page_of(run)
    lines = ((tag("p", said, class_="quiet"), code_line(line)) for said, line in own.next(run))
    cards = (
        _what(run, own),
        card("How good", *own.how_good(run)),
        _how_long(run),
        card("What next", *itertools.chain(*lines)),
    )
    first = (_warning(run), tag("div", *cards, class_="cards"))
    sections = (
        ("In words", "words", own.words(run)),
        ("How it went", "course", own.course(run)),
        ("Where it errs", "errors", own.errors(run)),
        ("The signal through depth", "signal", signal(run)),
        ("The data", "data", _data(run, own)),
        ("What was chosen, and why", "choices", _choices(run)),
        ("How to use it", "use", _use(run, own)),
        ("How to reproduce it", "reproduce", _reproduce(run)),
    )
    return document(run.name, f"{run.name}: a Skipway run", first, sections, run.family)


def _warning(run: Run) -> Html | None:
    status = dig(run.record, "status")
    if status in (None, "finished"):
        return None
    said = {"interrupted": "was interrupted", "failed": "failed"}.get(str(status), f"is {status}")
    done = f" after epoch {run.epochs[-1]['epoch']:g}" if run.epochs else ""
    resume = f"skipway train --resume {quoted(run.path)}"
    return tag("p", f"This run {said}{done}. Go on with: ", tag("code", resume), class_="warn")


def _what(run: Run, own: TaskPage) -> Html:
    record, kept = run.record, run.card
    classes = dig(record, "data", "classes")
    recipe = dig(record, "config", "recipe")
    images = [f"{shown(s.get('n')) or '?'} {SPLITS.get(k, k)}" for k, s in run.splits.items()]
    facts = [
        ("Parameters", large(dig(record, "params"))),
        ("Multiply-adds", large(dig(record, "macs"))),
        ("Input", "{} × {} px".format(*kept.preprocess.size) if kept else None),
        ("Data", run.data),
        ("Classes", shown(len(classes)) if isinstance(classes, list) else None),
        ("Images", ", ".join(images) or None),
        ("Recipe", dig(recipe, "name") or recipe),
        ("Started from", dig(record, "config", "model", "weights") or "random weights"),
        *own.what(run),
    ]
    return card("What was trained", tag("p", run.model, class_="name"), fact_list(facts))


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
        ("Training images", rate(run.speed) + speed if run.speed is not None else None),
        ("Waiting for data", percent(float(np.mean(waiting))) if waiting else None),
        ("Peak memory", mebibytes(run.memory) if run.memory else None),
        ("Device", dig(environment, "device")),
        ("Processor", dig(environment, "cpu")),
        ("Threads", shown(dig(environment, "threads"))),
        ("Begun", begun.replace("T", " ")[:16] if isinstance(begun, str) else None),
    ]
    time = duration(run.seconds) if run.seconds else "–"
    return card("How long", tag("p", time, class_="big"), fact_list(facts))


def _data(run: Run, own: TaskPage) -> Html | None:
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
            own.seen,
            own.pictures,
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
        totals = (own.total, "", *(shown(split.get("n")) for split in run.splits.values()))
        head = ("Class", "", *(SPLITS.get(name, name).capitalize() for name in run.splits))
        more = len(names) > MOST_ROWS
        note = f"The first {MOST_ROWS} of {len(names):,}; run.json has all." if more else None
        content = table(head, [totals, *rows], words=2, caption=note)
        parts.append(details(f"{own.counted} by class and split", content, len(rows) <= OPEN_ROWS))
    files = [(row.get("path") or row.get("name"), row.get("reason")) for row in objects(skipped)]
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
    settings = list(flat(mapping(run.record.get("config"))))
    head = ("Setting", "Value", "Reason")
    parts = [
        table(head, rows, words=3, fixed=True) if rows else None,
        details("All settings", table(head[:2], settings, words=2)) if settings else None,
    ]
    return joined(parts) or None


def _use(run: Run, own: TaskPage) -> Html | None:
    """Commands to copy; None for a run that has no weights to use yet."""
    unfinished = dig(run.record, "status") not in (None, "finished")
    return None if unfinished else steps(own.use(run))


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
        code_line(f"pip install '.[train]'  # of Skipway {version}, in its own folder")
        if version
        else None,
        code_line(str(command)) if command else None,
        tag("p", promise),
        fact_list(told),
    ]
    return joined(parts) if command or environment else None
