"""The page of all studies, told by parsing it. No training: outcomes are made up."""

from __future__ import annotations

import base64
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pages import HOSTILE, Page, assert_self_contained
from skipway.architecture import ARCHITECTURES, count
from skipway.errors import InputError
from skipway.report.document import as_svg
from skipway.report.plot import Axis, Line, decades, linear, plot
from skipway.study import STUDIES
from skipway.study.form import Expected, Finding, Picture, Scale, Told
from skipway.study.page import page, write_page
from skipway.study.store import Outcome

SVG = "{http://www.w3.org/2000/svg}"
SCALE = Scale(
    name="tiny",
    protocol="Ten steps on made-up images.",
    deviations=("10 steps in place of 64,000", "made-up images"),
    seeds=3,
    minutes=7,
)
DRAWING = (
    '<svg xmlns="http://www.w3.org/2000/svg"><title>A &amp; B move</title>'
    "<desc>What &lt;moves&gt;.</desc><script>alert(1)</script></svg>"
)


def study(name: str = "made-up", **fields: Any) -> Any:
    texts = {
        "TITLE": f"Title of {name}",
        "SOURCE": f"Paper of {name}, Table 6",
        "CLAIM": f"Claim of {name}.",
        "STORY": f"First of {name}.\n\nSecond of {name}.",
    }
    return SimpleNamespace(NAME=name, SCALES=(SCALE,), **(texts | fields))


def finding(*values: float, low: float = 8.35, high: float = 9.15, **fields: Any) -> Finding:
    expected = Expected("8.75 % ± 0.4", low, high)
    return Finding(**({"name": "test error", "values": values, "expected": expected} | fields))


def figure(**fields: Any) -> Any:
    x, y = linear("step", 100, whole=True), linear("error, %", 20)
    lines = [Line("plain20", [(0, 20), (100, 9)], "plain"), Line("", [(0, 18), (100, 2)])]
    return plot("Error & training", "What is seen.", x, y, lines, **fields)


def outcome(told: Told, of: Any = None, **fields: Any) -> Outcome:
    row: dict[str, Any] = {
        "study": of or study(),
        "scale": SCALE,
        "seeds": 3,
        "told": told,
        "done": 6,
        "cells": 6,
        "reached": [],
        "seconds": 3723.0,
        "environments": ["Some CPU, 2 cores", "Some GPU, 16 cores"],
        "data": "photos (digest 0123456789ab)",
        "command": "skipway study made-up --budget tiny --seeds 3",
    }
    return Outcome(**(row | fields))


def read(*outcomes: Outcome) -> Page:
    return Page(page(outcomes))


def section(read: Page, name: str) -> str:
    """The markup of one section of the page."""
    return re.split(r'</main>|<section id="', read.raw.split(f'<section id="{name}">')[1])[0]


# What a study says of itself


def test_the_card_tells_what_is_settled_and_what_is_open() -> None:
    settled = finding(8.7, 8.8, 8.75, name="the rate", unit="%")
    unsure = finding(8.0, 9.5, 8.9, name="the power", unit="%")
    found = read(outcome(Told([unsure, settled])))
    card = found.raw.split('class="cards studies"')[1].split("</section>")[0]
    assert "the rate (one of 2)" in card
    assert "Open: the power: 8.80 ± 0.75 %" in card
    for told in (Told([unsure]), Told([settled]), Told([unsure, finding(12.1, 12.2, 12.0)])):
        assert "Open: " not in read(outcome(told)).text
    assert "Open: " not in read(outcome(Told([unsure, settled]), done=5)).text


def test_a_study_that_expects_nothing_has_no_verdict() -> None:
    free = finding(8.7, 8.8, 8.9, expected=None)
    told = outcome(Told([free]))
    found = read(told)
    assert told.judged == "nothing is expected at this scale"
    assert "1 study so far: nothing expected of 1." in found.text
    assert "inconclusive at this budget" not in section(found, "made-up")
    begun = outcome(Told([free]), done=5)
    assert begun.judged == "inconclusive at this budget"
    aside = replace(finding(20.0, 20.1, 20.2), aside=True)
    assert outcome(Told([finding(8.7, 8.8, 8.75), aside])).judged == "reproduced"


@pytest.mark.parametrize(
    ("values", "sign", "words"),
    [
        ((8.7, 8.8, 8.75), "✓", "reproduced"),
        ((12.1, 12.2, 12.0), "✗", "contradicted"),
        ((8.0, 9.5, 8.9), "?", "inconclusive at this budget"),
        ((8.75,), "?", "inconclusive at this budget"),
    ],
)
def test_each_verdict_has_a_sign_and_words_in_card_story_and_table(
    values: tuple[float, ...], sign: str, words: str
) -> None:
    found = read(outcome(Told([finding(*values, unit="%")])))
    badges = re.findall(
        r'<span class="verdict (\w+)"><span class="sign" aria-hidden="true">(.)</span> ([^<]+)<',
        found.raw,
    )
    assert badges == [(words.split()[0], sign, words)] * 3
    assert f"1 study so far: 1 {words}." in found.text
    assert_self_contained(found)


def test_numbers_are_the_outcomes_with_their_digits_and_units() -> None:
    told = Told(
        [
            finding(8.6, 8.8, 8.9, unit="%", note="at half the width"),
            finding(1234.5, low=0, name="parameters", drawn=False, places=0, unit=""),
            finding(-0.5, -0.25, -0.75, expected=None, name="less", unit="points", places=3),
            finding(expected=None, name="nothing yet"),
        ]
    )
    found = read(outcome(told))
    text = re.sub(r"\s+", " ", found.text)
    # the mean of 8.6, 8.8, 8.9 is 8.7667, their deviation 0.1528, and t(2) at 0.975 is 4.3027
    half = 4.302653 * 0.152753 / math.sqrt(3)
    ends = f"{8.766667 - half:.2f} to {8.766667 + half:.2f}"
    for shown in ("8.75 % ± 0.4", "8.77 ± 0.15 %", f"95 % interval: {ends}, n = 3",
                  "at half the width", "1,234", "exact: counted or computed",
                  "−0.500 ± 0.250 points", "−1.121 to 0.121", "8.6, 8.8, 8.9"):  # fmt: skip
        assert shown in text, shown
    assert "nan" not in text
    assert "inf" not in re.findall(r"\w+", text)


def test_a_card_shows_the_number_that_decides() -> None:
    told = Told([finding(8.7, 8.8, 8.75, name="fine"), finding(12.1, 12.2, 12.0, name="wrong")])
    cards = read(outcome(told)).raw.split('<section class="card">')[1].split("</section>")[0]
    assert "contradicted" in cards
    assert "wrong" in cards
    assert "fine" not in cards


def test_a_card_counts_the_numbers_of_each_verdict() -> None:
    fine, doubtful = (8.7, 8.8, 8.75), (8.0, 9.5, 8.9)
    told = Told([finding(*fine), finding(*doubtful), finding(*fine), finding(expected=None)])
    cards = read(outcome(told)).raw.split('<section class="card">')[1].split("</section>")[0]
    assert "2 of 3 numbers reproduced, 1 inconclusive" in cards
    assert "numbers reproduced" not in read(outcome(Told([finding(*fine)]))).text


def test_each_scale_is_told_of() -> None:
    """One that is begun, beside another of the same study that has results; each with its claim."""
    paper = replace(SCALE, name="paper", claim="All of it.")
    of = next(iter(STUDIES.values()))
    at = ["net20, seed 0: step 12,000 of 64,000"]
    known = outcome(Told([finding(8.7, 8.8, 8.75)]), of)
    begun = outcome(Told([]), of, scale=paper, done=0, reached=at, command="skipway go on")
    text = read(known, begun).text
    assert of.CLAIM in text.split("Still to come")[0]
    coming = text.split("Still to come")[1]
    for said in ("All of it.", "at scale “paper”", *at, "skipway go on"):
        assert said in coming, said
    alone = read(outcome(Told([finding(8.7)]), of, scale=paper))
    assert "All of it." in section(alone, of.NAME)
    assert of.CLAIM not in alone.text


def test_what_has_begun_says_how_far_it_is() -> None:
    at = ["net20, seed 0: step 12,000 of 64,000", "net20, seed 1: step 400 of 64,000"]
    begun = read(outcome(Told([]), next(iter(STUDIES.values())), done=0, reached=at))
    assert "; ".join(at) in begun.text.split("Still to come")[1]
    partly = read(outcome(Told([finding(8.7)]), done=1, reached=at[1:]))
    assert at[1] in section(partly, "made-up")


def test_story_protocol_deviations_notes_machines_and_command_are_told() -> None:
    told = Told(
        [finding(8.7, 8.8, 8.75)],
        pictures=[Picture("one", figure()), Picture("two", figure(wide=True), wide=True)],
        notes=["A note."],
        tables=[
            ("Nets", ("Net", "Units", "Count"), [("a", "3-3-3", 269722), ("b", "x", 0.123456)]),
            ("Long", ("Row", "n"), [(f"row {n}", n) for n in range(40)]),
        ],
        animations={"it-moves": DRAWING},
    )
    found = read(outcome(told))
    story = section(found, "made-up")
    for text in ("First of made-up.", "Second of made-up.", "Claim of made-up.",
                 "Paper of made-up, Table 6", "Ten steps on made-up images.",
                 "<li>10 steps in place of 64,000</li>", "A note.", "1 h 2 min",
                 "<li>Some GPU, 16 cores</li>", "6 of 6 results", "269,722", "0.1235",
                 "skipway study made-up --budget tiny --seeds 3"):  # fmt: skip
        assert text in story, text
    assert "<p>First of made-up.</p><p>Second of made-up.</p>" in story
    assert story.count("<figure>") == 3
    assert "<summary>Long (40 rows)</summary>" in story
    (moving,) = found.all("img")
    assert moving["alt"] == "A & B move"
    assert "<figcaption>What &lt;moves&gt;.</figcaption>" in story
    kind, data = (moving["src"] or "").split(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).decode() == DRAWING
    assert_self_contained(found, pictures=r"svg\+xml")


def test_what_is_missing_is_said_with_how_to_go_on() -> None:
    found = read(outcome(Told([finding(8.7, 8.8, 8.75)]), done=2))
    assert found.text.count("2 of 6 results") == 3  # card, warning, protocol
    assert "inconclusive at this budget" in found.text
    (warned,) = re.findall(r'<p class="warn">(.*?)</p>', found.raw)
    assert "<code>skipway study made-up --budget tiny --seeds 3</code>" in warned
    assert "Go on with" not in read(outcome(Told([finding(8.7, 8.8, 8.75)]))).text


def test_studies_stand_in_order_and_the_others_have_their_command() -> None:
    names = list(STUDIES)
    assert len(names) > 1
    told = Told([finding(8.7, 8.8, 8.75)])
    both = [outcome(told, STUDIES[name]) for name in (names[1], names[0])]
    found = read(outcome(told), *both)
    links = [link["href"] for link in found.all("a")]
    assert links[1:4] == [f"#{name}" for name in (names[0], names[1], "made-up")]
    only = read(outcome(told, STUDIES[names[0]]))
    commands = [data for tag, data in only.texts if tag == "code"]
    assert [c for c in commands if c.count(" ") == 2] == [f"skipway study {n}" for n in names[1:]]
    planned = read(outcome(Told([]), STUDIES[names[2]], done=0))
    assert "Nothing has been run yet." in planned.text
    assert "skipway study made-up --budget tiny --seeds 3" in planned.text
    assert "About 7 min" in planned.text
    assert_self_contained(planned)


def test_two_scales_of_a_study_share_its_story() -> None:
    told = Told([finding(8.7, 8.8, 8.75)])
    of, other = study(), Scale(name="paper", protocol="All of it.", minutes=9000)
    found = read(outcome(told, of), outcome(told, of, scale=other))
    assert found.text.count("First of made-up.") == 1
    assert "At scale “tiny”" in found.text
    assert "At scale “paper”" in found.text
    ids = [attributes["id"] for _, attributes in found.elements if attributes.get("id")]
    assert len(set(ids)) == len(ids)


def test_hostile_text_is_escaped() -> None:
    told = Told(
        [finding(8.7, 8.8, 8.75, name=HOSTILE, note=HOSTILE, expected=Expected(HOSTILE))],
        notes=[HOSTILE],
        tables=[(HOSTILE, (HOSTILE, "n"), [(HOSTILE, 1)])],
        animations={HOSTILE: "<svg/>"},
    )
    found = read(outcome(told, environments=[HOSTILE], command=HOSTILE))
    assert_self_contained(found, pictures=r"svg\+xml")
    assert found.text.count("<script>alert(1)</script>") >= 8
    assert "\x1b" not in found.raw
    assert "\u202e" not in found.raw


def test_popular_errors_are_told_with_counted_numbers() -> None:
    text = read().text
    for words in ("ResNet-34 has 3-4-6-3", "ResNet-101 has 3-4-23-3", "ResNet-152 has 3-8-36-3",
                  "7×7 convolution of stride 2"):  # fmt: skip
        assert words in text
    (popular, more), (paper, fewer) = (
        count(ARCHITECTURES[name]) for name in ("resnet18_cifar", "resnet20")
    )
    assert (f"{popular / paper:.0f}", f"{more / fewer:.1f}") == ("41", "13.7")
    assert "41 times the parameters and 13.7 times the multiply-adds" in text


def test_the_page_is_written_whole_and_never_over_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "studies.html"
    assert write_page([outcome(Told([finding(8.75)]))], path) == path
    assert [p.name for p in tmp_path.iterdir()] == ["studies.html"]
    with pytest.raises(InputError, match=r"is a folder; name a file in it, as studies\.html"):
        write_page([], tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        write_page([], tmp_path / "nowhere" / "studies.html")


# Plots


def drawn(figure: str) -> ET.Element:
    return ET.fromstring(re.search(r"<svg.*</svg>", figure)[0])


def test_a_band_is_cut_at_the_axis_and_lies_behind_its_line() -> None:
    x, y = linear("step", 100, whole=True), decades("gradient", [1e-2, 1])
    band = ("plain", [(0, 0.0, 0.1), (100, 0.1, 50.0)])
    svg = drawn(plot("t", "c", x, y, [Line("a", [(0, 0.1), (100, 1)], "plain")], bands=[band]))
    first, second = svg.findall("path")
    assert (first.get("class"), second.get("class")) == ("area plain", "line plain")
    corners = [tuple(map(float, p.split())) for p in first.get("d")[1:-1].split("L")]
    # over 0.1 and the upper end, back under 0.1 and the lower end; two decades, 34 to 206
    assert corners == [(48, 120), (306, 34), (306, 120), (48, 206)]


def test_levels_cross_the_plot_and_their_names_do_not_touch() -> None:
    levels = [(8.75, "paper: 8.75 %"), (8.0, "paper: 8 %"), (7.9, "third"), (1, "low")]
    svg = drawn(figure(levels=levels))
    rules = [line for line in svg.findall("line") if line.get("class") == "level"]
    assert [float(r.get("y1")) for r in rules] == [round(206 - v / 20 * 172, 1) for v, _ in levels]
    assert all((r.get("x1"), r.get("x2")) == ("48", "306") for r in rules)
    names = [t for t in svg.findall("text") if "halo" in t.get("class")]
    boxes = [(float(t.get("x")), float(t.get("y")), 6 * len(t.text)) for t in names]
    assert len(boxes) == 4
    for i, (x, y, width) in enumerate(boxes):
        for a, b, other in boxes[:i]:
            assert abs(y - b) >= 11 or x >= a + other or a >= x + width


def test_nameless_lines_have_no_label_and_long_names_have_room() -> None:
    axis = Axis("", 0, 1, [(0, "0"), (1, "1")])
    name = "a network with a long name"
    svg = drawn(plot("t", "c", axis, axis, [Line(name, [(0, 0), (1, 1)]), Line("", [(0, 0)])]))
    labels = [t for t in svg.findall("text") if t.get("class") == "name"]
    assert [t.text for t in labels] == [name]
    width = float(svg.get("viewBox").split()[2])
    assert width >= float(labels[0].get("x")) + 6 * len(name)
    assert drawn(figure()).get("viewBox") == "0 0 380 244"
    assert drawn(figure(wide=True)).get("viewBox") == "0 0 780 350"


@pytest.mark.parametrize("wide", [False, True])
def test_a_drawing_stands_alone(wide: bool) -> None:
    root = ET.fromstring(as_svg(figure(wide=wide), "plain"))
    assert root.tag == f"{SVG}svg"
    assert root.get("class") == "plain"
    assert root.find(f"{SVG}title").text == "Error & training"
    assert root.find(f"{SVG}desc").text == "What is seen."
    assert root.find(f"{SVG}text").text == "Error & training"
    css = root.find(f"{SVG}style").text
    assert "prefers-color-scheme: dark" in css
    assert not re.search(r"url\(|@import", css)
    inner = root.find(f"{SVG}svg")
    outer = [float(v) for v in root.get("viewBox").split()]
    for side, at in (("width", "x"), ("height", "y")):
        room = outer[2 if side == "width" else 3]
        assert float(inner.get(at)) + float(inner.get(side)) <= room


def test_a_long_heading_of_a_drawing_is_broken_into_lines() -> None:
    axis = Axis("", 0, 1, [])
    title = "A heading that says in many words what the lines of this figure are about, and why"
    root = ET.fromstring(as_svg(plot(title, "c", axis, axis)))
    lines = [text.text for text in root.findall(f"{SVG}text")]
    assert " ".join(lines) == title
    assert max(map(len, lines)) <= 380 / 8
