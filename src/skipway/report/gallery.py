"""Pictures of images with their captions, on the report and on the comparison."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from skipway.report.markup import Html, tag

SMALL_IMAGE = 96
"""Pictures with both sides below this many pixels are enlarged without blur."""
PNG = re.compile(r"data:image/png;base64,(iVBORw0KGgo[A-Za-z0-9+/]+={0,2})")
"""The only images the page takes: inline PNGs, told by their signature."""

Caption = Callable[[dict[str, Any]], list[Html | None]]


def gallery(title: str, note: str, rows: list[dict[str, Any]], caption: Caption) -> Html | None:
    """Pictures under a title; None without any."""
    if not rows:
        return None
    return tag("div", tag("h3", title), tag("p", note, class_="quiet"), pictures(rows, caption))


def pictures(rows: list[dict[str, Any]], caption: Caption) -> Html:
    """Pictures as a list, each above its caption and the name of its file."""
    return tag("ul", *(tag("li", _picture(row, caption(row))) for row in rows), class_="pictures")


def _picture(row: dict[str, Any], caption: list[Html | None]) -> Html:
    """The row's image with its caption and, last, its file's name."""
    image, name = row.get("image"), str(row.get("name", ""))
    picture = tag("div", "no picture", class_="missing")
    if isinstance(image, str) and (png := PNG.fullmatch(image)):
        size = np.frombuffer(base64.b64decode(png[1][:32])[16:24], ">u4")  # of the PNG's header
        style = "small" if size.max() < SMALL_IMAGE else None
        said = " ".join(("class", str(row.get("label")), name))
        picture = tag("img", src=image, alt=said, class_=style, loading="lazy")
    file = tag("span", name, class_="file") if name else None
    return tag("figure", picture, tag("figcaption", *caption, file))
