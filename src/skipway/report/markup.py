"""HTML that cannot be broken from outside: elements, tables, and numbers in words.

`tag` escapes every value that is not `Html`; nothing else here writes angle brackets.
"""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from skipway.errors import harmless
from skipway.report.values import ends, number
from skipway.shares import hundredths

OPEN_ROWS = 30
"""Tables with more rows than this start closed."""
MOST_ROWS = 200
"""Classes that a table shows at most; of more, those that matter most."""


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
    return Html(f"<{element}{opening}>{joined(children)}</{element}>")


def joined(parts: Iterable[object]) -> Html:
    """The parts one after the other, escaped as in `tag`; None is left out."""
    return Html("".join(_safe(part) for part in parts if part is not None))


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    words: int = 1,
    caption: object = None,
    fixed: bool = False,
) -> Html:
    """A table that scrolls by itself; columns past the first `words` hold numbers or bars."""

    def cells(element: str, row: Sequence[object]) -> Html:
        return joined(
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
    return joined([scroll(table, head[0]), tag("p", caption, class_="quiet") if caption else None])


def scroll(content: Html, label: str) -> Html:
    """Content that scrolls by itself, from the keyboard too, where it is wider than the page."""
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def details(summary: str, content: object, opened: bool = False) -> Html:
    """Content that opens and closes under its summary."""
    return tag("details", tag("summary", summary), content, open="" if opened else None)


def marked_list(items: Iterable[tuple[str, str | None, Html]]) -> Html:
    """Sentences, each behind a sign in a circle: sign, class of the style sheet, and paragraph."""
    return tag(
        "ul",
        *(
            tag("li", tag("span", sign, class_="sign", aria_hidden="true"), said, class_=style)
            for sign, style, said in items
        ),
        class_="findings",
    )


def card(title: str, *content: object) -> Html:
    """A panel of the first screen."""
    return tag("section", tag("h2", title), *content, class_="card")


def code_line(text: str) -> Html:
    """A line to copy into a terminal or program."""
    return tag("code", text, class_="command")


def fact_list(facts: Iterable[tuple[str, object]]) -> Html | None:
    """A list of names and values; None values are left out."""
    pairs = [(tag("dt", name), tag("dd", value)) for name, value in facts if value is not None]
    return tag("dl", *itertools.chain(*pairs)) if pairs else None


# Numbers in words


def shown(value: Any, form: str = ",.0f", unit: str = "") -> str | None:
    """A number in that format with its unit, of ``.1%`` as `percent`; None where it is no
    number."""
    figure = number(value)
    if figure is None:
        return None
    if form.endswith("%"):
        return percent(figure, int(form[1:-1])) + unit
    return f"{figure:{form}}{unit}"


def percent(value: float, places: int = 1) -> str:
    """A share of 0 to 1 as "98.9 %"; see `hundredths`."""
    return f"{hundredths(value, places)} %"


def within(value: Any, interval: Any) -> str | None:
    """A share with its interval, "45.3 % (39.2 to 51.7 %)"; without one where there is none."""
    text, spread = shown(value, ".1%"), ends(interval)
    if text is None or spread is None:
        return text
    return f"{text} ({hundredths(spread[0], 1)} to {percent(spread[1])})"


def large(value: Any) -> str | None:
    """269,722 as it is, more as millions and billions with three digits."""
    figure = number(value) or 0
    for scale, unit in ((1e9, " billion"), (1e6, " million")):
        if figure >= scale:
            return shown(figure / scale, ".3g", unit)
    return shown(value)


def rate(value: float) -> str:
    """So many a second, below ten with three digits: what detectors train at."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.3g}"


def mebibytes(value: float) -> str:
    """Memory as "812 MiB" or "1.43 GiB"."""
    return f"{value / 1024:.3g} GiB" if value >= 1024 else f"{value:,.0f} MiB"


def duration(seconds: float) -> str:
    """Below a minute "31.4 s", then "1 min 1 s", from an hour on "2 h 5 min"; "2 h" if even."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min")) if hours else ((minutes, "min"), (rest, "s"))
    return " ".join(f"{number:,} {unit}" for number, unit in parts if number)


def plural(count: int, one: str, many: str) -> str:
    """The count with the word that it takes: "1 file", "2 files"."""
    return f"{count:,} {one if count == 1 else many}"


def flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted keys and text."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", as_text(value)


def as_text(value: Any) -> str:
    """Text as it is, any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
