"""A run as one self-contained HTML file: what was trained, how good, how long, what next.

It reads only what the run directory holds (`run.json`, `metrics.jsonl`, `evaluation.json`,
`card.json`) and needs no torch. Names of files and classes come from outside, so markup is built
by `tag`, which escapes everything that is not markup itself; the page runs no script and its
content policy refuses every other source.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import importlib.resources
import itertools
import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.card import Card, read_card
from skipway.errors import InputError, harmless
from skipway.files import atomic_write

Counts = npt.NDArray[np.float64]

MATRIX_CLASSES = 30
"""Up to this many classes the confusion matrix is shown whole, beyond it the worst pairs."""
OPEN_ROWS = 30
"""Tables with more rows than this start closed."""
SHOWN_EPOCHS = 60
"""Rows of the table of epochs; longer runs are sampled evenly."""
SPLITS = {"train": "training", "val": "validation", "test": "test"}
SHOWN_MISTAKES = 24
SMALL_IMAGE = 96
"""Pictures with both sides below this many pixels are enlarged without blur."""
PNG = re.compile(r"data:image/png;base64,(iVBORw0KGgo[A-Za-z0-9+/]+={0,2})")
"""The only images the page takes: inline PNGs, told by their signature."""


def write_report(run: Path) -> Path:
    """Write `run`/report.html from the files of the run and return its path.

    Parts whose file is absent are left out; only `run.json` must be there. The page appears whole
    or not at all. Raises InputError where a file of the run is damaged or cannot be written.
    """
    run = Path(run)
    text = _page(_read(run))
    path = run / "report.html"
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))
    return path


# What the run holds


@dataclass(frozen=True)
class _Run:
    path: Path
    record: dict[str, Any]
    epochs: list[dict[str, Any]]
    evaluation: dict[str, Any]
    card: Card | None

    @property
    def family(self) -> str:
        """The class of the page that gives the palette its meaning."""
        if self.card is None:
            return "residual"
        if self.card.architecture.shortcut == "none":
            return "plain"
        return "preactivation" if self.card.architecture.order == "pre" else "residual"

    @property
    def data(self) -> str:
        """The data set as the user named it."""
        return str(_dig(self.record, "data", "path") or "DATA")

    @property
    def splits(self) -> dict[str, dict[str, Any]]:
        """What is known of each split, by name."""
        splits = _table_of(_dig(self.record, "data", "splits"))
        return {name: split for name, split in splits.items() if isinstance(split, dict)}

    def metric(self, key: str) -> float | None:
        """A metric of the run's result."""
        return _number(_dig(self.record, "result", "metrics", key))

    def series(self, key: str) -> list[tuple[float, float]]:
        """(epoch, value) wherever the value is a finite number."""
        return [
            (row["epoch"], value)
            for row in self.epochs
            if (value := _number(row.get(key))) is not None
        ]


def _read(run: Path) -> _Run:
    record = _json(run / "run.json")
    if record is None:
        raise InputError(f"{harmless(run)}: not a run: it holds no run.json")
    card = run / "card.json"
    return _Run(
        path=run,
        record=record,
        epochs=_epochs(run / "metrics.jsonl"),
        evaluation=_json(run / "evaluation.json") or {},
        card=read_card(card) if card.exists() else None,
    )


def _json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no such file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{harmless(path)}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{harmless(path)}: not valid JSON") from None
    if not isinstance(value, dict):
        raise InputError(f"{harmless(path)}: holds no JSON object")
    return value


def _epochs(path: Path) -> list[dict[str, Any]]:
    """Rows by rising epoch. An epoch that a resume ran again counts once, by its last row."""
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{harmless(path)}: cannot be read: {error.strerror}") from None
    rows: dict[float, dict[str, Any]] = {}
    for count, line in enumerate(lines, 1):
        with contextlib.suppress(ValueError, RecursionError):  # a run cut off tears its last line
            row = json.loads(line)
            if isinstance(row, dict):
                epoch = _number(row.get("epoch"))
                epoch = count if epoch is None else epoch
                rows[epoch] = row | {"epoch": epoch}
    return [rows[epoch] for epoch in sorted(rows)]


def _dig(value: Any, *keys: str) -> Any:
    """The value under nested keys; None where one of them is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _number(value: Any) -> float | None:
    """A finite number, or None for everything else (1e300 and beyond too: none can be drawn)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < 1e300 else None


def _rows(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; nothing where there is no list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _table_of(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# Markup


class Html(str):
    """Markup that is safe to put on the page; any other value becomes escaped, harmless text."""

    __slots__ = ()


def _safe(value: object) -> str:
    return value if isinstance(value, Html) else html.escape(harmless(value))


def tag(element: str, *children: object, **attributes: object) -> Html:
    """An element. `_` in attribute names stands for `-`, a closing one is dropped (`class_`).

    Children and attribute values that are not `Html` are escaped; None leaves either out.
    """
    opening = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_safe(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if element in ("meta", "link", "img", "br"):
        return Html(f"<{element}{opening}>")
    return Html(f"<{element}{opening}>{_all(children)}</{element}>")


def _all(parts: Iterable[object]) -> Html:
    return Html("".join(_safe(part) for part in parts if part is not None))


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    words: int = 1,
    caption: object = None,
    fixed: bool = False,
) -> Html:
    """A table that scrolls by itself; columns past the first `words` hold numbers or bars."""

    def cells(element: str, row: Sequence[object]) -> Html:
        return _all(
            tag(
                "th" if column == 0 else element,
                "–" if value is None else value,
                class_="class" if column == 0 else None if column < words else "number",
                scope="row" if column == 0 and element == "td" else None,
            )
            for column, value in enumerate(row)
        )

    table = tag(
        "table",
        tag("thead", tag("tr", cells("th", head))),
        tag("tbody", *(tag("tr", cells("td", row)) for row in rows)),
        class_="fixed" if fixed else None,
    )
    return _all([_scroll(table, head[0]), tag("p", caption, class_="quiet") if caption else None])


def _scroll(content: Html, label: str) -> Html:
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def _details(summary: str, content: object, opened: bool = False) -> Html:
    return tag("details", tag("summary", summary), content, open="" if opened else None)


def _command(text: str) -> Html:
    return tag("code", text, class_="command")


def _facts(facts: Iterable[tuple[str, object]]) -> Html | None:
    """A list of names and values; None values are left out."""
    pairs = [(tag("dt", name), tag("dd", value)) for name, value in facts if value is not None]
    return tag("dl", *itertools.chain(*pairs)) if pairs else None


def _bar(share: float) -> Html:
    """A horizontal bar, `share` of its track long."""
    parts = (_rect("track", 0, 0, 100, 8), _rect("dot", 0, 0, 100 * share, 8))
    shape = {"class_": "bar", "viewBox": "0 0 100 8", "preserveAspectRatio": "none"}
    return tag("svg", *parts, **shape, aria_hidden="true")


# Numbers in words


def _shown(value: Any, form: str = ",.0f", unit: str = "") -> str | None:
    """A number in that format with its unit, "98.9 %" for ``.1%``; None where it is no number."""
    number = _number(value)
    return None if number is None else f"{number:{form}}".replace("%", " %") + unit


def _percent(value: float, places: int = 1) -> str:
    return f"{100 * value:.{places}f} %"


def _large(value: Any) -> str | None:
    """269,722 as it is, more as millions and billions with three digits."""
    number = _number(value) or 0
    for scale, unit in ((1e9, " billion"), (1e6, " million")):
        if number >= scale:
            return _shown(number / scale, ".3g", unit)
    return _shown(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# Plots

WIDTH, HEIGHT = 380, 244
LEFT, RIGHT, TOP, BOTTOM = 48, WIDTH - 74, 34, HEIGHT - 38
"""The plotting area; the labels of the lines stand to its right."""


@dataclass(frozen=True)
class _Axis:
    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def share(self, value: float) -> float:
        """Where on the axis, 0 to 1."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low)

    def x(self, value: float) -> float:
        return round(LEFT + self.share(value) * (RIGHT - LEFT), 1)

    def y(self, value: float) -> float:
        return round(BOTTOM - self.share(value) * (BOTTOM - TOP), 1)


def _linear(label: str, top: float, whole: bool = False) -> _Axis:
    """From 0, so that no difference looks larger than it is, to the tick at or above `top`.

    `whole`: only integer ticks, and the axis ends at `top`.
    """
    top = top if top > 1e-300 else 1
    power = 10.0 ** math.floor(math.log10(top / 5))
    step = next(s * power for s in (1, 2, 5, 10) if top / (s * power) <= 5.0001)
    step = max(step, 1) if whole else step
    count = math.floor(top / step) if whole else math.ceil(top / step - 1e-9)
    ticks = [(n * step, f"{n * step:,.12g}") for n in range(count + 1)]
    return _Axis(label, 0, top if whole else ticks[-1][0], ticks)


def _shares(label: str) -> _Axis:
    """0 to 100 %."""
    return _Axis(label, 0, 1, [(n / 4, f"{25 * n} %") for n in range(5)])


def _decades(label: str, values: Sequence[float]) -> _Axis:
    """Whole powers of ten around the values, which are positive."""
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)
    every = math.ceil((high - low) / 6)
    low = high - every * math.ceil((high - low) / every)
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    ticks = [
        (10.0**n, f"{10.0**n:g}" if -3 <= n <= 3 else f"10{str(n).translate(raised)}")
        for n in range(low, high + 1, every)
    ]
    return _Axis(label, 10.0**low, 10.0**high, ticks, log=True)


@dataclass(frozen=True)
class _Line:
    name: str
    points: Sequence[tuple[float, float]]
    style: str = "validation"


def _words(text: str, x: float, y: float, anchor: str = "start", style: str = "tick") -> Html:
    return tag("text", text, class_=style, x=x, y=round(y, 1), text_anchor=anchor)


def _rule(style: str, x1: float, y1: float, x2: float, y2: float) -> Html:
    return tag("line", class_=style, x1=x1, y1=y1, x2=x2, y2=y2)


def _dot(style: str, x: float, y: float, radius: float) -> Html:
    return tag("circle", class_=style, cx=x, cy=y, r=round(radius, 1))


def _rect(style: str, x: float, y: float, width: float, height: float) -> Html:
    return tag("rect", class_=style, x=round(x, 1), y=y, width=round(width, 1), height=height)


def _plot(
    title: str,
    caption: str,
    x: _Axis,
    y: _Axis,
    lines: Sequence[_Line] = (),
    marks: Sequence[tuple[float, str]] = (),
    extra: Iterable[Html] = (),
) -> Html:
    """A figure: lines labelled at their end, `marks` as thin upright lines, `extra` on top."""
    parts = [_words(y.label, 0, 12), _words(x.label, (LEFT + RIGHT) / 2, HEIGHT - 5, "middle")]
    for value, text in y.ticks:
        parts.append(_rule("grid", LEFT, y.y(value), RIGHT, y.y(value)))
        parts.append(_words(text, LEFT - 6, y.y(value) + 4, "end"))
    edge = -math.inf
    for value, text in x.ticks:
        half = 3.4 * len(text)  # about half the width of the text
        if x.x(value) - half > edge + 4:  # else it would run into the label before it
            parts.append(_words(text, x.x(value), BOTTOM + 16, "middle"))
            edge = x.x(value) + half
    for value, text in marks:
        parts.append(_rule("mark", x.x(value), TOP, x.x(value), BOTTOM))
        parts.append(_words(text, x.x(value), TOP - 4, "middle"))
    ends = []
    for line in lines:
        at = [(x.x(a), y.y(b)) for a, b in line.points]
        path = "M" + "L".join(f"{a} {b}" for a, b in at)
        parts.append(tag("path", class_=f"line {line.style}", d=path))
        parts.append(_dot(f"dot {line.style}", *at[-1], radius=2.5))
        ends.append((at[-1][1], line.name))
    ends.sort()
    for at_y, (_, name) in zip(_apart([end for end, _ in ends]), ends, strict=True):
        parts.append(_words(name, RIGHT + 7, at_y + 4, style="name"))
    svg = tag(
        "svg", *parts, *extra, class_="plot", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img",
        aria_label=f"{title}. {caption}",
    )  # fmt: skip
    return tag("figure", tag("h3", title), svg, tag("figcaption", caption))


def _apart(places: Sequence[float], gap: float = 15) -> list[float]:
    """Rising places moved until they are `gap` apart, none below the x axis."""
    placed: list[float] = []
    for place in places:
        placed.append(max(place, placed[-1] + gap) if placed else place)
    limit = float(BOTTOM)
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


# The page


def _page(run: _Run) -> str:
    css = importlib.resources.files("skipway").joinpath("page.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    name = str(_dig(run.record, "name") or run.path.name)
    sections = (
        ("How it went", "course", _course(run)),
        ("Where it errs", "errors", _errors(run)),
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


def _warning(run: _Run) -> Html | None:
    status = _dig(run.record, "status")
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


def _what(run: _Run) -> Html:
    record, card = run.record, run.card
    classes = _dig(record, "data", "classes")
    recipe = _dig(record, "config", "recipe")
    model = card.model if card else _dig(record, "config", "model", "name") or "a model"
    images = [f"{_shown(s.get('n')) or '?'} {SPLITS.get(k, k)}" for k, s in run.splits.items()]
    facts = [
        ("Parameters", _large(_dig(record, "params"))),
        ("Multiply-adds", _large(_dig(record, "macs"))),
        ("Input", "{} × {} px".format(*card.preprocess.size) if card else None),
        ("Data", run.data),
        ("Classes", _shown(len(classes)) if isinstance(classes, list) else None),
        ("Images", ", ".join(images) or None),
        ("Recipe", _dig(recipe, "name") or recipe),
        ("Started from", _dig(record, "config", "model", "weights") or "random weights"),
    ]
    return _card("What was trained", tag("p", model, class_="name"), _facts(facts))


def _how_good(run: _Run) -> Html:
    result, accuracy = _dig(run.record, "result"), run.metric("accuracy")
    if accuracy is None:
        seen = run.series("val_accuracy")
        text = _percent(seen[-1][1]) if seen else "–"
        said = f"validation accuracy after epoch {seen[-1][0]:g}" if seen else "not measured"
        return _card("How good", tag("p", text, class_="big"), tag("p", said, class_="quiet"))
    split = str(_dig(result, "split"))
    places = 1 if (_number(_dig(result, "n")) or 0) < 1000 else 2
    count = _shown(_dig(result, "n"), unit=" ") or ""
    said = f"accuracy on {count}{SPLITS.get(split, split)} images"
    spread = None
    interval = _ends(_dig(result, "interval"))
    if interval:
        low, high = (_percent(end, places) for end in interval)
        spread = tag("p", f"95 % interval: {low} to {high}", class_="quiet")
    commonest = _commonest(run, split)
    facts = [
        ("By guessing", _shown(commonest, ".1%", ", always the commonest class")),
        ("Top 5", _shown(run.metric("top5"), f".{places}%")),
        ("Loss", _shown(run.metric("loss"), ".3g", " nats")),
        ("Calibration error", _shown(run.metric("ece"), ".1%")),
        ("Weights", _dig(result, "weights")),
    ]
    caution = (
        "The epoch was chosen on these images: expect a little less on new ones."
        if split == "val" and _dig(result, "best_epoch") is not None
        else None
    )
    return _card(
        "How good",
        tag("p", _percent(accuracy, places), class_="big"),
        _interval(accuracy, interval, commonest),
        tag("p", said, class_="quiet"),
        spread,
        _facts(facts),
        tag("p", caution, class_="quiet") if caution else None,
    )


def _ends(value: Any) -> tuple[float, float] | None:
    """An interval, where both of its ends are numbers."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = map(_number, value)
    return None if low is None or high is None else (low, high)


def _commonest(run: _Run, split: str) -> float | None:
    """The accuracy of always naming the commonest class of the split."""
    counts = [_number(n) or 0 for n in _table_of(_dig(run.splits, split, "counts")).values()]
    return max(counts) / sum(counts) if sum(counts) > 0 else None


def _interval(value: float, ends: tuple[float, float] | None, commonest: float | None) -> Html:
    """Accuracy on a line from 0 to 100 %, its interval as a band, the commonest class as a tick."""
    parts = [_rect("track", 0, 8, 300, 6)]
    if ends:
        parts.append(_rect("band", 300 * ends[0], 4, max(300 * (ends[1] - ends[0]), 1), 14))
    if commonest is not None:
        parts.append(_rule("mark", round(300 * commonest, 1), 2, round(300 * commonest, 1), 20))
    parts.append(_dot("dot", round(300 * value, 1), 11, 5))
    parts += [_words("0 %", 0, 32), _words("100 %", 300, 32, "end")]
    return tag("svg", *parts, class_="interval", viewBox="-6 0 312 36", aria_hidden="true")


def _how_long(run: _Run) -> Html:
    result, environment = _dig(run.record, "result"), _dig(run.record, "environment")
    spent = sum(value for _, value in run.series("seconds"))
    seconds = _number(_dig(result, "seconds")) or spent
    waiting = [value for _, value in run.series("waiting")]
    begun = _dig(run.record, "created")
    facts = [
        ("Epochs", _shown(len(run.epochs) or None)),
        ("Best epoch", _shown(_dig(result, "best_epoch"))),
        ("Training images", _shown(_dig(result, "images_per_second"), unit=" a second")),
        ("Waiting for data", _percent(float(np.mean(waiting))) if waiting else None),
        ("Device", _dig(environment, "device")),
        ("Processor", _dig(environment, "cpu")),
        ("Threads", _shown(_dig(environment, "threads"))),
        ("Begun", begun.replace("T", " ")[:16] if isinstance(begun, str) else None),
    ]
    time = _duration(seconds) if seconds else "–"
    return _card("How long", tag("p", time, class_="big"), _facts(facts))


def _next(run: _Run) -> Html:
    where = _quoted(run.path)
    python = f"skipway.load({json.dumps(str(run.path), ensure_ascii=False)})"
    return _card(
        "What next",
        tag("p", "Measure it, here or on other data", class_="quiet"),
        _command(f"skipway eval {where} {_quoted(run.data)}"),
        tag("p", "Name what is in an image", class_="quiet"),
        _command(f"skipway predict {where} IMAGE…"),
        tag("p", "Use it in Python", class_="quiet"),
        _command(python),
    )


# How it went


def _course(run: _Run) -> Html | None:
    if not run.epochs:
        return None
    epochs = _linear("epoch", run.epochs[-1]["epoch"], whole=True)
    best = _number(_dig(run.record, "result", "best_epoch"))
    marks = [(best, "best")] if best is not None and 0 <= best <= epochs.high else []
    plots = (
        _losses(run, epochs, marks),
        _accuracies(run, epochs, marks),
        _single(run, epochs, "lr"),
        _gradients(run),
        _single(run, epochs, "images_per_second"),
        _single(run, epochs, "waiting"),
    )
    return _all([tag("div", *plots, class_="plots"), _numbers(run)])


def _numbers(run: _Run) -> Html:
    columns = (
        ("Training loss", "train_loss", ".4g"),
        ("Validation loss", "val_loss", ".4g"),
        ("Training accuracy", "train_accuracy", ".2%"),
        ("Validation accuracy", "val_accuracy", ".2%"),
        ("Learning rate", "lr", ".3g"),
        ("Seconds", "seconds", ".1f"),
    )
    step = math.ceil(len(run.epochs) / SHOWN_EPOCHS)
    rows = [
        (f"{row['epoch']:g}", *(_shown(row.get(key), form) for _, key, form in columns))
        for row in run.epochs[::-step][::-1]  # the last epoch is always among them
    ]
    note = (
        f"1 in {step} of {len(run.epochs):,} epochs; metrics.jsonl has all." if step > 1 else None
    )
    head = ("Epoch", *(name for name, _, _ in columns))
    return _details("The numbers by epoch", _table(head, rows, caption=note))


def _pair(run: _Run, what: str) -> list[_Line]:
    lines = (
        _Line("training", run.series(f"train_{what}"), "training"),
        _Line("validation", run.series(f"val_{what}")),
    )
    return [line for line in lines if line.points]


def _losses(run: _Run, epochs: _Axis, marks: Sequence[tuple[float, str]]) -> Html | None:
    lines = _pair(run, "loss")
    if not lines:
        return None
    at, lowest = min(lines[-1].points, key=lambda point: point[1])
    caption = f"Lowest {lines[-1].name} loss: {lowest:.3g}, at epoch {at:g}."
    broken = sum("train_loss" in r and _number(r["train_loss"]) is None for r in run.epochs)
    if broken:
        caption += f" Training loss was not finite in {_plural(broken, 'epoch', 'epochs')}."
    top = max(value for line in lines for _, value in line.points)
    return _plot("Loss", caption, epochs, _linear("nats an image", top), lines, marks)


def _accuracies(run: _Run, epochs: _Axis, marks: Sequence[tuple[float, str]]) -> Html | None:
    lines = _pair(run, "accuracy")
    if not lines:
        return None
    at, highest = max(lines[-1].points, key=lambda point: point[1])
    caption = f"Highest {lines[-1].name} accuracy: {_percent(highest)}, at epoch {at:g}."
    return _plot("Accuracy", caption, epochs, _shares("of the images"), lines, marks)


def _single(run: _Run, epochs: _Axis, key: str) -> Html | None:
    """The plot of one quantity by epoch: learning rate, speed or the share of time waiting."""
    points = run.series(key)
    if not points:
        return None
    values = [value for _, value in points]
    if key == "lr":
        title, name, axis = "Learning rate", "rate", _linear("step size", max(values))
        caption = f"Highest {max(values):.3g}, {values[-1]:.3g} at the end."
    elif key == "waiting":
        title, name, axis = "Waiting for data", "waiting", _shares("of the training time")
        caption = f"{_percent(float(np.mean(values)))} on average."
    else:
        title, name, axis = "Speed", "speed", _linear("training images a second", max(values))
        caption = f"Median {np.median(values):,.0f} a second, loading and augmentation included."
    return _plot(title, caption, epochs, axis, [_Line(name, points)])


def _gradients(run: _Run) -> Html | None:
    rows = [row for row in run.epochs if _table_of(row.get("gradient_norms"))]
    if not rows:
        return None
    chosen = {0: "early", len(rows) // 2: "middle", len(rows) - 1: "late"}
    names = list(rows[-1]["gradient_norms"])
    lines = []
    for position, style in chosen.items():
        norms = [_number(rows[position]["gradient_norms"].get(name)) for name in names]
        points = [(block, norm) for block, norm in enumerate(norms) if norm and norm > 1e-300]
        if points:
            lines.append(_Line(f"epoch {rows[position]['epoch']:g}", points, style))
    if not lines:
        return None
    blocks = [harmless(name) for name in names]
    smallest, low = min(lines[-1].points, key=lambda point: point[1])
    largest, high = max(lines[-1].points, key=lambda point: point[1])
    caption = (
        f"L2 norm, mean over {lines[-1].name}: largest in {blocks[int(largest)]} ({high:.2g}), "
        f"smallest in {blocks[int(smallest)]} ({low:.2g})."
    )
    ticks, start = [], 0
    for stage, group in itertools.groupby(name.split(".")[0] for name in blocks):
        length = len(list(group))
        ticks.append((start + (length - 1) / 2, stage))
        start += length
    x = _Axis("block, from the input to the output", 0, max(start - 1, 1), ticks)
    y = _decades("norm, log scale", [norm for line in lines for _, norm in line.points])
    return _plot("Gradient by block", caption, x, y, lines)


# Where it errs


def _errors(run: _Run) -> Html | None:
    confusion = _confusion(run)
    pictures = [_matrix(*confusion) if confusion else None, _calibration(run)]
    parts = [
        tag("div", *pictures, class_="row") if any(pictures) else None,
        _mistakes(run),
        _by_class(*confusion) if confusion else None,
    ]
    if not any(parts):
        return None
    split = str(_dig(run.evaluation, "split"))
    count = _shown(_dig(run.evaluation, "n"), unit=" ") or ""
    said = f"Measured on {count}{SPLITS.get(split, split)} images."
    return _all([tag("p", said, class_="quiet"), *parts])


def _confusion(run: _Run) -> tuple[list[str], Counts] | None:
    """Class names and counts [truth, predicted]; None where they are absent or do not fit."""
    names = _dig(run.evaluation, "classes")
    classes = [harmless(name) for name in names] if isinstance(names, list) else []
    try:
        counts = np.asarray(_dig(run.evaluation, "confusion"), dtype=float)
    except (TypeError, ValueError):
        return None
    if not classes or counts.shape != (len(classes), len(classes)):
        return None
    return (classes, counts) if np.isfinite(counts).all() and (counts >= 0).all() else None


def _matrix(classes: list[str], counts: Counts) -> Html:
    if len(classes) > MATRIX_CLASSES:
        return _confused(classes, counts)
    turned = "tall" if max(map(len, classes)) > 3 else None
    head = [
        tag("th", tag("span", name), scope="col", class_=turned, title=name) for name in classes
    ]
    rows = []
    for truth, name in enumerate(classes):
        cells = []
        for predicted, count in enumerate(counts[truth]):
            share = count / max(counts[truth].sum(), 1)
            # The root lets a mistake of one in a hundred be seen beside the diagonal.
            level = math.ceil(5 * (share if truth == predicted else share**0.5))
            style = f"{'right' if truth == predicted else 'wrong'}{level}" if level else None
            cells.append(tag("td", f"{count:.0f}" if count else "", class_=style))
        rows.append(tag("tr", tag("th", name, scope="row", title=name), *cells))
    table = tag(
        "table",
        tag("thead", tag("tr", tag("td", "truth ↓ answer →"), *head)),
        tag("tbody", *rows),
        class_="confusion",
    )
    caption = (
        "Images by true class (rows) and answer (columns). Blue is right, pink is wrong; "
        "the stronger, the larger the share of the row."
    )
    title = "Confusion matrix"
    content = (tag("h3", title), _scroll(table, title), tag("figcaption", caption))
    return tag("figure", *content, class_="grow")


def _confused(classes: list[str], counts: Counts) -> Html:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:20]
    rows = []
    for truth, answer in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if count := wrong[truth, answer]:
            share = count / counts[truth].sum()
            bar, text = _bar(share), _percent(share)
            rows.append((classes[truth], classes[answer], bar, text, _shown(count)))
    table = _table(("Truth", "Answer", "Share of the class", "", "Images"), rows, words=3)
    return tag("div", tag("h3", "Most confused pairs"), table, class_="grow")


def _by_class(classes: list[str], counts: Counts) -> Html:
    hits, truths, answers = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore"):  # a class without images has no recall: it shows a dash
        recall, precision = hits / truths, hits / answers
    rows = [
        (
            classes[index],
            _bar(np.nan_to_num(recall[index])),
            _shown(recall[index], ".1%"),
            _shown(precision[index], ".1%"),
            _shown(truths[index]),
        )
        for index in np.argsort(recall, kind="stable")
    ]
    caption = (
        "Recall: of the images of the class, those found. Precision: of the images given this "
        "class, those that are of it. The worst recall comes first."
    )
    head = ("Class", "", "Recall", "Precision", "Images")
    table = _table(head, rows, words=2, caption=caption)
    return _details("Class by class", table, opened=len(rows) <= OPEN_ROWS)


def _calibration(run: _Run) -> Html | None:
    bins = [
        [_number(row.get(key)) or 0 for key in ("confidence", "accuracy", "n")]
        for row in _rows(run.evaluation.get("calibration"))
        if _number(row.get("n"))
    ]
    if not bins:
        return None
    x, y = _shares("confidence of the answer"), _shares("of these answers are right")
    largest = max(n for _, _, n in bins)
    dots = [
        _dot("bin", x.x(confidence), y.y(accuracy), 2 + 8 * math.sqrt(n / largest))
        for confidence, accuracy, n in bins
    ]
    diagonal = _rule("mark", x.x(0), y.y(0), x.x(1), y.y(1))
    ece = _shown(run.metric("ece"), ".1%")
    caption = f"Expected calibration error {ece}. " if ece else ""
    caption += "Below the dotted line: surer than right. The larger the dot, the more images."
    return _plot("Calibration", caption, x, y, extra=[diagonal, *dots])


def _mistakes(run: _Run) -> Html | None:
    rows = _rows(run.evaluation.get("mistakes"))[:SHOWN_MISTAKES]
    if not rows:
        return None
    pictures = [tag("li", _mistake(row)) for row in rows]
    title = tag("h3", "The worst mistakes: truth → answer")
    return tag("div", title, tag("ul", *pictures, class_="mistakes"))


def _mistake(row: dict[str, Any]) -> Html:
    label, answer, image = row.get("label"), row.get("predicted"), row.get("image")
    sure, truth = _shown(row.get("score"), ".0%"), _shown(row.get("true_score"), ".0%")
    picture = tag("div", "no picture", class_="missing")
    if isinstance(image, str) and (png := PNG.fullmatch(image)):
        size = np.frombuffer(base64.b64decode(png[1][:32])[16:24], ">u4")  # of the PNG's header
        style = "small" if size.max() < SMALL_IMAGE else None
        picture = tag("img", src=image, alt=f"truth {label}, answer {answer}", class_=style)
    caption = tag(
        "figcaption",
        tag("b", f"{label} → {answer}"),
        tag("span", f"{sure} sure") if sure else None,
        tag("span", f"the truth: {truth}") if truth else None,
        tag("span", row.get("name", "")),
    )
    return tag("figure", picture, caption)


# What it was made of


def _data(run: _Run) -> Html | None:
    notes, skipped = _dig(run.record, "data", "notes"), _dig(run.record, "data", "skipped")
    parts = [tag("ul", *(tag("li", note) for note in notes)) if isinstance(notes, list) else None]
    if run.splits:
        counts = [_table_of(split.get("counts")) for split in run.splits.values()]
        largest = max([_number(n) or 0 for n in counts[0].values()], default=0) or 1
        rows = [
            (name, _bar((_number(counts[0].get(name)) or 0) / largest),
             *(_shown(count.get(name, 0)) for count in counts))
            for name in dict.fromkeys(itertools.chain(*counts))
        ]  # fmt: skip
        totals = ("All", "", *(_shown(split.get("n")) for split in run.splits.values()))
        head = ("Class", "", *(SPLITS.get(name, name).capitalize() for name in run.splits))
        table = _table(head, [totals, *rows], words=2)
        parts.append(_details("Images by class and split", table, len(rows) <= OPEN_ROWS))
    files = [(row.get("path"), row.get("reason")) for row in _rows(skipped)]
    if files:
        note = f"The first 100 of {len(files):,}." if len(files) > 100 else None
        table = _table(("File", "Why"), files[:100], words=2, caption=note)
        parts.append(_details(f"{_plural(len(files), 'file', 'files')} left out", table))
    return _all(parts) or None


def _choices(run: _Run) -> Html | None:
    rows = [
        (row.get("key"), _value(row.get("value")), row.get("reason"))
        for row in _rows(run.record.get("choices"))
    ]
    settings = list(_flat(_table_of(run.record.get("config"))))
    head = ("Setting", "Value", "Reason")
    parts = [
        _table(head, rows, words=3, fixed=True) if rows else None,
        _details("All settings", _table(head[:2], settings, words=2)) if settings else None,
    ]
    return _all(parts) or None


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted keys and values."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _value(value)


def _reproduce(run: _Run) -> Html | None:
    command, version = run.record.get("command"), run.record.get("skipway")
    environment = _table_of(run.record.get("environment"))
    licence = run.card.licence if run.card else None
    facts = [*((key, _value(value)) for key, value in environment.items())]
    promise = "Expect the same bits only with the same versions, threads and instruction set."
    parts = [
        _command(f"pip install 'skipway[train]=={version}'") if version else None,
        _command(str(command)) if command else None,
        tag("p", promise),
        _facts([*facts, ("licence of the weights", licence)]),
    ]
    return _all(parts) if command or environment else None
