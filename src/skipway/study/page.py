"""All studies that have been run as one page: the story in order for a reader who is new to it, the
tables for an expert."""

from __future__ import annotations

import base64
import html
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from skipway.report.document import check_place, document, write_document
from skipway.report.markup import (
    OPEN_ROWS,
    Html,
    card,
    code_line,
    details,
    duration,
    fact_list,
    joined,
    marked_list,
    plural,
    scroll,
    table,
    tag,
)
from skipway.study import STUDIES
from skipway.study.form import (
    WORDS,
    Finding,
    Scale,
    Study,
    Told,
    Verdict,
    claim_of,
    claimed,
    tally,
)
from skipway.study.primer import corrections, introduction
from skipway.study.store import Outcome

SIGNS: Mapping[Verdict, str] = {"reproduced": "✓", "contradicted": "✗", "inconclusive": "?"}
TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.DOTALL)
CAPTION = re.compile(r"<desc[^>]*>(.*?)</desc>", re.DOTALL)
"""Of an SVG document."""
FIGURE_LIKE = re.compile(r"[-+−±]?[\d.,]+.*|–|")
"""A cell that stands as a number in a table: it begins with a digit."""
METHOD = (
    "The study says in which range a number must lie: where the paper gives a number, around it; "
    "else where the paper’s words or theory put it, as the notes tell. A number is drawn once a "
    "seed; its 95 % interval is that of the mean by Student’s t. It is reproduced where all of the "
    "interval lies in the range, contradicted where none of it does, and otherwise inconclusive at "
    "this budget: more seeds or a longer training may tell, unless the truth lies at the bound. So "
    "is a number of one seed, which has no interval. Where a deviation between seeds is published, "
    "fewer than five are given it, unless they differ by more, two by nearly twice as much.",
    "An interval tells of other seeds, not of other images, which are the same for all; of three "
    "seeds it may reach past 0 or 100 %. It has two sides, so that a bound on one side is tested "
    "at 2.5 %. Each stands alone: none is corrected for how many numbers a study has, nor for "
    "seeds that were added after a look.",
    "A study is contradicted where one of its numbers is, and reproduced where all are of which "
    "something was expected and nothing is missing. A control tests the experiment, as whether a "
    "net has learned anything: it must hold too, and is not counted among the numbers. In the "
    "small drawings the grey range is what was expected, the dot the mean, and the line through it "
    "the interval.",
)


def write_page(outcomes: Sequence[Outcome], path: Path, left_out: Sequence[str] = ()) -> Path:
    """Write the page to `path`, which is returned. Raises InputError where it cannot be written, or
    is a folder."""
    check_place(path, "studies.html")
    return write_document(page(outcomes, left_out), path)


def page(outcomes: Sequence[Outcome], left_out: Sequence[str] = ()) -> str:
    """The whole HTML document. Studies stand in the order of `STUDIES`; those of which nothing is
    computed are listed with their command. left_out: why each is that cannot be used."""
    order = {name: place for place, name in enumerate(STUDIES)}
    begun = sorted((o for o in outcomes if o.done), key=lambda o: order.get(o.study.NAME, math.inf))
    studies = {outcome.study.NAME: outcome.study for outcome in begun}
    lacking = [tag("p", f"Left out: {reason}", class_="warn") for reason in left_out]
    first = (introduction(), *lacking, _cards(begun), _not_run(outcomes))
    told = [
        (study.TITLE, name, _story(study, [o for o in begun if o.study is study]))
        for name, study in studies.items()
    ]
    method = joined(tag("p", text) for text in METHOD) if begun else None
    sections = (
        *told,
        ("Where popular texts err", "popular-texts", corrections()),
        ("How a verdict is reached", "verdicts", method),
    )
    title = "Why residual networks? Claims of the papers, checked by Skipway"
    return document("Why residual networks?", title, first, sections, "residual")


# The first screen


def _cards(begun: Sequence[Outcome]) -> Html:
    if not begun:
        return tag("p", "Nothing has been run yet.", class_="warn")
    counts = Counter(outcome.verdict for outcome in begun if outcome.expects)
    said = [f"{counts[v]} {words}" for v, words in WORDS.items() if counts[v]]
    said += [f"nothing expected of {free}"] if (free := len(begun) - counts.total()) else []
    summary = f"{plural(len(begun), 'study', 'studies')} so far: {', '.join(said)}."
    cards = tag("div", *map(_card, begun), class_="cards studies")
    return joined([tag("p", summary, class_="summary"), cards])


def _card(outcome: Outcome) -> Html:
    """One study at one scale: its claim, the verdict, the number that decides it or, where only
    some are open, the first that is settled, and what is open."""
    study, found, still_open = outcome.study, _deciding(outcome), _open(outcome)
    counts = f": {told}" if (told := tally(outcome.told.findings)) else ""
    number: list[Html | None] = []
    if found is not None:
        facts = (
            ("Expected", found.expected.words if found.expected else None),
            ("Obtained", tag("b", found.obtained)),
            (_certainty_name(found), _certainty(found)),
        )
        due = [f for f in claimed(outcome.told.findings) if not f.control]
        one_of = f" (one of {len(due)})" if len(due) > 1 and found in due else ""
        number = [tag("p", found.name, one_of, class_="quiet"), _strip(found), fact_list(facts)]
    more = tag("a", f"The story and the numbers: {study.TITLE}", href=f"#{study.NAME}")
    return card(
        study.TITLE,
        tag("p", _whole_badge(outcome)),
        tag("p", f"at scale “{outcome.scale.name}”{counts}{_missing(outcome)}", class_="quiet"),
        tag("p", outcome.claim, class_="claim"),
        *number,
        *(tag("p", f"Open: {f.name}: {f.obtained}", class_="quiet") for f in still_open),
        tag("p", more),
    )


def _deciding(outcome: Outcome) -> Finding | None:
    """The first number with the verdict of the study or, where what is missing decides, the first
    of which something was expected; of a study that expects nothing, the first. Where only some are
    open, the first that is settled."""
    found = outcome.told.findings
    due = claimed(found) or found
    due = sorted(due, key=lambda finding: finding.control)
    sought = "reproduced" if _open(outcome) else outcome.verdict
    return next((f for f in due if f.verdict == sought), due[0] if due else None)


def _open(outcome: Outcome) -> list[Finding]:
    """What is inconclusive, where all is computed and other numbers are reproduced."""
    due = claimed(outcome.told.findings)
    told = {f.verdict for f in due}
    if outcome.done < outcome.cells or told != {"reproduced", "inconclusive"}:
        return []
    return [f for f in due if f.verdict == "inconclusive"]


def _missing(outcome: Outcome) -> str:
    """What is said of a study that is not computed wholly."""
    if outcome.done == outcome.cells:
        return ""
    return f", {outcome.done:,} of {outcome.cells:,} results computed"


def _reached(outcome: Outcome) -> Html | None:
    """How far what is begun is."""
    return tag("span", "; ".join(outcome.reached), class_="note") if outcome.reached else None


def _whole_badge(outcome: Outcome) -> Html:
    """Of a study; quiet where nothing is expected of it."""
    if not outcome.expects:
        return tag("span", outcome.judged, class_="quiet")
    return _badge(outcome.verdict, outcome.judged)


def _badge(verdict: Verdict, words: str) -> Html:
    sign = tag("span", SIGNS[verdict], class_="sign", aria_hidden="true")
    return tag("span", sign, f" {words}", class_=f"verdict {verdict}")


def _not_run(outcomes: Sequence[Outcome]) -> Html | None:
    """What nothing is computed of, with the command that does."""
    items = []
    for name, study in STUDIES.items():
        asked = [outcome for outcome in outcomes if outcome.study is study]
        items += [_to_run(study, o.scale, o.command, _reached(o)) for o in asked if not o.done]
        if not asked:
            items.append(_to_run(study, study.SCALES[0], f"skipway study {name}"))
    return tag("div", tag("h2", "Still to come"), marked_list(items)) if items else None


def _to_run(
    study: Study, scale: Scale, command: str, so_far: Html | None = None
) -> tuple[str, None, Html]:
    about = f" About {duration(60 * scale.minutes)} on 2 cores at scale “{scale.name}”."
    said = tag("p", tag("b", study.TITLE), ". ", claim_of(study, scale), tag("span", about))
    return "…", None, tag("div", said, so_far, code_line(command))


# A study


def _story(study: Study, found: Sequence[Outcome]) -> Html:
    paragraphs = (tag("p", text) for text in study.STORY.split("\n\n"))
    several = len(found) > 1
    return joined(
        [
            tag("div", *paragraphs, class_="lead"),
            tag("p", study.SOURCE, class_="quiet"),
            *(tag("div", _at_scale(outcome, several), class_="story") for outcome in found),
        ]
    )


def _at_scale(outcome: Outcome, several: bool) -> Html:
    """All that was found at one scale; `several`: whether it must be told from others."""
    told = outcome.told
    incomplete = None
    if outcome.done < outcome.cells:
        incomplete = tag(
            "p",
            f"{outcome.done:,} of {outcome.cells:,} results are computed, and what is said is of "
            "these. Go on with: ",
            tag("code", outcome.command),
            _reached(outcome),
            class_="warn",
        )
    return joined(
        [
            tag("h3", f"At scale “{outcome.scale.name}”") if several else None,
            tag("p", tag("b", "The claim: "), outcome.claim),
            tag("p", _whole_badge(outcome)),
            incomplete,
            _shown(told),
            _decided(told.findings),
            tag("h3", "Notes") if told.notes else None,
            *(tag("p", note) for note in told.notes),
            tag("h3", "Remarks on this run") if outcome.remarks else None,
            *(tag("p", remark) for remark in outcome.remarks),
            _further(told),
            _protocol(outcome),
        ]
    )


def _shown(told: Told) -> Html | None:
    """The pictures, then what moves."""
    figures = [_wide(p.figure, p.name) if p.wide else p.figure for p in told.pictures]
    moving = [_animation(name, drawing) for name, drawing in told.animations.items()]
    return tag("div", *figures, *moving, class_="plots") if figures or moving else None


def _wide(figure: Html, name: str) -> Html:
    return tag("div", scroll(figure, name), class_="broad")


def _animation(name: str, drawing: str) -> Html:
    """An SVG document as an image, in which nothing of it can reach the page."""
    title, caption = TITLE.search(drawing), CAPTION.search(drawing)
    said = html.unescape(title[1]) if title else name.replace("-", " ")
    data = base64.b64encode(drawing.encode("utf-8")).decode("ascii")
    picture = tag("img", src=f"data:image/svg+xml;base64,{data}", alt=said, class_="moving")
    below = tag("figcaption", html.unescape(caption[1])) if caption else None
    return _wide(tag("figure", picture, below), said)


def _decided(findings: Sequence[Finding]) -> Html | None:
    """Expected beside obtained, and the verdict on each."""
    due = [finding for finding in findings if finding.expected is not None]
    rows = [
        (
            _named(finding),
            finding.expected.words if finding.expected else None,
            tag("div", tag("b", finding.obtained), _strip(finding), _sure(finding)),
            _badge(finding.verdict or "inconclusive", finding.judged),
        )
        for finding in due
    ]
    head = ("Number", "Expected", "Obtained", "Verdict")
    content = tag("div", table(head, rows, len(head)), class_="stacked")
    return _folded("Expected beside obtained", content, len(rows))


def _further(told: Told) -> Html | None:
    """Numbers that decide nothing, the tables of the study, and every value as it was obtained."""
    free = [finding for finding in told.findings if finding.expected is None]
    rows = [(_named(finding), finding.obtained, finding.between, finding.n) for finding in free]
    head = ("Number", "Obtained", "95 % interval", "n")
    parts = [_folded("Other numbers", table(head, rows), len(rows), most=12)]
    for title, names, content in told.tables:
        shown = [tuple(map(_cell, row)) for row in content]
        parts.append(_folded(title, table(names, shown, _wordy(shown)), len(shown)))
    parts.append(_values(told.findings))
    return joined(parts)


def _folded(title: str, content: Html, rows: int, most: int = OPEN_ROWS) -> Html | None:
    """A table under its title, closed where it is long; None without rows."""
    if not rows:
        return None
    if rows > most:
        return details(f"{title} ({rows:,} rows)", content)
    return tag("div", tag("h3", title), content, class_="titled")


def _values(findings: Sequence[Finding]) -> Html | None:
    """Each number with all its values, to six digits."""
    rows = [
        (
            finding.name,
            finding.unit or None,
            finding.n,
            *(_full(value) for value in (finding.mean, finding.deviation)),
            *(_full(end) for end in (not finding.exact and finding.interval) or (None, None)),
            ", ".join(filter(None, map(_full, finding.values))),
        )
        for finding in findings
    ]
    if not rows:
        return None
    head = ("Number", "Unit", "n", "Mean", "Standard deviation", "95 %, from", "to", "Values")
    return details("Every value", table(head, rows, 2))


def _protocol(outcome: Outcome) -> Html:
    """How it was run here, what is not the paper's in it, and what it took."""
    scale = outcome.scale
    differs: object = "none"
    if outcome.deviations:
        differs = tag("ul", *(tag("li", text) for text in outcome.deviations))
    facts = (
        ("Scale", scale.name),
        ("Protocol", scale.protocol),
        ("Precision", ", ".join(outcome.precisions) or None),
        ("Deviations from the paper’s", differs),
        ("Seeds", f"{outcome.seeds:,}"),
        ("Data", outcome.data or None),
        ("Computed", f"{outcome.done:,} of {outcome.cells:,} results"),
        ("Time", f"{duration(outcome.seconds)} for all of them"),
        ("Machines", tag("ul", *(tag("li", text) for text in outcome.environments))),
    )
    title, command = tag("h3", "How it was run"), code_line(outcome.command)
    return tag("div", title, fact_list(facts), tag("p", "Run it:"), command, class_="card")


# Numbers


def _named(finding: Finding) -> Html:
    note = tag("span", finding.note, class_="note") if finding.note else None
    return tag("span", finding.name, note)


def _certainty_name(finding: Finding) -> str:
    return "Certainty" if finding.exact else "95 % interval"


def _certainty(finding: Finding) -> str:
    """The interval with n, or why there is none."""
    if finding.exact:
        return "exact: counted or computed"
    drawn = (
        f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{finding.n}" if finding.drawn else "of the images"
    )
    return f"{finding.between or 'none'}, {drawn}"


def _sure(finding: Finding) -> Html:
    said = _certainty(finding) if finding.exact else f"95 % interval: {_certainty(finding)}"
    return tag("span", said, class_="note")


def _full(value: float | None) -> str | None:
    return None if value is None or not math.isfinite(value) else f"{value:.6g}"


def _cell(value: object) -> object:
    """A cell of a study's table; numbers with separators, others with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else None
    return f"{value:,}" if isinstance(value, int) else value


def _wordy(rows: Iterable[Sequence[object]]) -> int:
    """How many of the first columns hold words: all up to the last in which one is no number."""
    return max(
        (
            column
            for row in rows
            for column, value in enumerate(row, 1)
            if value is not None and not FIGURE_LIKE.fullmatch(str(value))
        ),
        default=1,
    )


def _strip(finding: Finding) -> Html | None:
    """The obtained mean and interval on the expected range; None where there is nothing to draw."""
    if finding.expected is None or not finding.values or not math.isfinite(finding.mean):
        return None
    bounds = finding.expected.low, finding.expected.high
    ends = finding.interval or (finding.mean, finding.mean)
    seen = [value for value in (*bounds, *ends, finding.mean) if math.isfinite(value)]
    low, high = min(seen), max(seen)
    margin = 0.15 * (high - low) or 0.15 * abs(high) or 1.0

    def at(value: float) -> float:
        return round(200 * min(max((value - low + margin) / (high - low + 2 * margin), 0), 1), 1)

    left, right = map(at, bounds)
    start, end = map(at, ends)
    parts = (
        tag("rect", class_="track", x=0, y=8, width=200, height=2),
        tag("rect", class_="expected", x=left, y=2, width=max(right - left, 2), height=14),
        tag("rect", class_="obtained", x=start, y=7, width=max(end - start, 1), height=4),
        tag("circle", class_="obtained", cx=at(finding.mean), cy=9, r=4.5),
    )
    return tag("svg", *parts, class_="strip", viewBox="-5 0 210 18", aria_hidden="true")
