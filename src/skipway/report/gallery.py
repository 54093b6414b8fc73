"""Pictures of images with their captions, on the report and on the comparison."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from skipway.report.markup import Html, tag

SMALL_IMAGE = 96
"""Pictures with both sides below this many pixels are enlarged without blur."""
PNG = re.compile(r"data:image/png;base64,(iVBORw0KGgo[A-Za-z0-9+/]+={0,2})")
"""The only images the page takes: inline PNGs, told by their signature."""
SHOWN_PAIRS = 24
MISSING = tag("div", "no picture", class_="missing")

Caption = Callable[[dict[str, Any]], list[Html | None]]


def gallery(
    title: str,
    note: str,
    rows: list[dict[str, Any]],
    caption: Caption,
    style: str = "pictures",
) -> Html | None:
    """Pictures under a title; None without any."""
    if not rows:
        return None
    shown = pictures(rows, caption, style)
    return tag("div", tag("h3", title), tag("p", note, class_="quiet"), shown)


def pictures(rows: list[dict[str, Any]], caption: Caption, style: str = "pictures") -> Html:
    """Pictures as a list, each above its caption and the name of its file.

    A row may have a map of its image too, as `heatmap.thumbnail` draws it: it is shown beside it.
    style: the class of the style sheet.
    """
    paired = any(inline(row.get("heat")) is not None for row in rows)
    items = (tag("li", _picture(row, caption(row))) for row in rows)
    return tag("ul", *items, class_=f"{style} pairs" if paired else style)


def _picture(row: dict[str, Any], caption: list[Html | None]) -> Html:
    """The row's image with its caption and, last, its file's name."""
    name = str(row.get("name", ""))
    said = " ".join(("class", str(row["label"]), name)) if "label" in row else name
    shown = inline(row.get("image"), said) or MISSING
    heat = inline(row.get("heat"), f"what spoke for {row.get('predicted')}")
    if heat is not None:
        shown = tag("div", shown, heat, class_="pair")
    return figure(shown, caption, name)


def figure(shown: Html, caption: Sequence[Html | None], name: str) -> Html:
    """What is shown above its caption and, last, its file's name."""
    file = tag("span", name, class_="file") if name else None
    return tag("figure", shown, tag("figcaption", *caption, file))


def truth_and_found(
    rows: list[dict[str, Any]],
    note: str,
    caption: Callable[[dict[str, Any]], str],
    said: tuple[str, str],
) -> Html | None:
    """Each row's `truth` beside its `image` and, where it has one, its map, in the order given;
    None without any.

    said: what the two show, in front of the name of the file.
    """
    if not rows:
        return None
    mapped = any(inline(row.get("heat")) is not None for row in rows)
    if mapped:
        note += " Beside both, in colour, what spoke for one answer (Grad-CAM)."
    items = []
    for row in rows[:SHOWN_PAIRS]:
        name = str(row.get("name", ""))
        pair = [
            tag("div", tag("span", word), inline(row.get(key), f"{alt} {name}") or MISSING)
            for key, word, alt in (("truth", "truth", said[0]), ("image", "found", said[1]))
        ]
        spoke = f"what spoke for {row.get('heat_of')}"
        heat = inline(row.get("heat"), f"{spoke} in {name}")
        if heat is not None:
            pair.append(tag("div", tag("span", spoke), heat))
        words = caption(row)
        content = tag("div", *pair, class_="pair" if heat is None else "pair three")
        items.append(tag("li", figure(content, [tag("b", words)] if words else [], name)))
    return tag(
        "div",
        tag("h3", "Truth and what was found"),
        tag("p", note, class_="quiet"),
        tag("ul", *items, class_="pictures wide threes" if mapped else "pictures wide"),
    )


def inline(image: object, said: str = "") -> Html | None:
    """An inline PNG as an image; None for anything else."""
    png = PNG.fullmatch(image) if isinstance(image, str) else None
    if png is None:
        return None
    size = np.frombuffer(base64.b64decode(png[1][:32])[16:24], ">u4")  # of the PNG's header
    style = "small" if size.max() < SMALL_IMAGE else None
    return tag("img", src=image, alt=said, class_=style, loading="lazy")
