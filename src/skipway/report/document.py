"""The document around a page (head, style sheet, content policy, navigation) or a drawing."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from skipway.errors import InputError, harmless
from skipway.files import atomic_write
from skipway.report.markup import Html, joined, tag

Section = tuple[str, str, Html | None]
"""Title, id and content; without content it is left out."""


def document(
    heading: str, title: str, first: Sequence[Html | None], sections: Sequence[Section], family: str
) -> str:
    """The whole page: what is seen `first`, then the sections, each linked from the top.

    `family` is the class that gives the palette its meaning (`run.Run.family`). The page runs no
    script and its policy refuses every source but its own style sheet and inline pictures.
    """
    css = _style_sheet()
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


def check_place(path: Path, example: str) -> None:
    """Raise InputError where no file can be written to `path`, as --out gives it; `example`: a name
    to propose."""
    if path.is_dir():
        raise InputError(f"--out {harmless(path)}: is a folder; name a file in it, as {example}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--out {harmless(path)}: there is no folder {harmless(path.parent)}")


def write_document(text: str, path: Path) -> Path:
    """Write a page or a drawing, whole or not at all; the path is returned."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))
    return path


SVG = "http://www.w3.org/2000/svg"
MARGIN = 14
"""Around a drawing, in the units of its figure."""
WIDTH = 760
"""Pixels that a drawing is wide at least."""
LINE = 19
"""Height of a line of a drawing's heading; a character is about 8 wide."""
FIGURE = re.compile(
    r"<figure[^>]*><h3[^>]*>(?P<title>.*?)</h3>"
    r'.*?(?P<drawn><svg[^>]* viewBox="0 0 (?P<width>[\d.]+) (?P<height>[\d.]+)".*</svg>).*?'
    r"<figcaption[^>]*>(?P<caption>.*)</figcaption></figure>",
    re.DOTALL,
)


def as_svg(figure: Html, family: str = "residual") -> str:
    """A figure of `report.plot` as an SVG document of its own, with heading, ground and style
    sheet, light and dark; the caption is its description. `family`: as in `document`."""
    found = FIGURE.fullmatch(figure)
    assert found is not None, "not a figure with heading, drawing and caption"
    width, height = float(found["width"]), float(found["height"])
    title = html.unescape(found["title"])
    lines = textwrap.wrap(title, max(int(width / 8), 1))
    top = MARGIN + LINE * len(lines)
    styles = (
        f"{_style_sheet()}svg {{ background: var(--ground); font-family: system-ui, sans-serif; "
        "font-variant-numeric: tabular-nums; }\n"
        "svg .heading { font-size: 15px; font-weight: 600; }\n"
        f"svg > svg[viewBox] {{ width: {width:g}px; height: {height:g}px; max-width: none; }}\n"
    )
    heading = joined(
        tag("text", line, class_="heading", x=MARGIN, y=MARGIN + LINE * number - 6)
        for number, line in enumerate(lines, 1)
    )
    drawn = found["drawn"].replace(
        "<svg", f'<svg x="{MARGIN}" y="{top + 4}" width="{width:g}" height="{height:g}"', 1
    )
    document = tag(
        "svg",
        tag("title", title),
        tag("desc", Html(found["caption"])),
        tag("style", Html(styles)),
        heading,
        Html(drawn),
        xmlns=SVG,
        class_=family,
        viewBox=f"0 0 {width + 2 * MARGIN:g} {top + 4 + height + MARGIN:g}",
        width=f"{max(width + 2 * MARGIN, WIDTH):g}",
    )
    return f"{document}\n"


def _style_sheet() -> str:
    return importlib.resources.files("skipway.report").joinpath("page.css").read_text("utf-8")
