"""The HTML document around a page: head, style sheet, content policy, navigation."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Sequence

from skipway.report.markup import Html, tag

Section = tuple[str, str, Html | None]
"""Title, id and content; without content it is left out."""


def document(
    heading: str, title: str, first: Sequence[Html | None], sections: Sequence[Section], family: str
) -> str:
    """The whole page: what is seen `first`, then the sections, each linked from the top.

    `family` is the class that gives the palette its meaning (`run.Run.family`). The page runs no
    script and its policy refuses every source but its own style sheet and inline pictures.
    """
    css = importlib.resources.files("skipway.report").joinpath("page.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    shown = [(name, key, part) for name, key, part in sections if part]
    links = [tag("li", tag("a", name, href=f"#{key}")) for name, key, _ in shown]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(css)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the results", class_="skip", href="#results"),
        tag("header", tag("h1", heading), tag("nav", tag("ul", *links), aria_label="Sections")),
        tag(
            "main",
            *first,
            *(tag("section", tag("h2", name), part, id=key) for name, key, part in shown),
            id="results",
        ),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en', class_=family)}\n"
