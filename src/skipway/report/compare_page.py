"""The page of a comparison: who is better and whether that is more than chance, then why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from skipway.report.by_task import page_of
from skipway.report.comparison import Comparison, Pair, disagreements, facts
from skipway.report.course import QUANTITIES, clipped, most_val_loss, off_scale, training_loss
from skipway.report.document import document
from skipway.report.gallery import gallery
from skipway.report.markup import (
    MOST_ROWS,
    OPEN_ROWS,
    Html,
    details,
    duration,
    joined,
    large,
    marked_list,
    mebibytes,
    plural,
    rate,
    shown,
    table,
    tag,
)
from skipway.report.pairing import Pairing, pair_images
from skipway.report.plot import Axis, Line, intervals, linear, plot
from skipway.report.run import CACHED, LOSSES, Run

TONES = 4
"""Shades of one kind of network; the letters tell more than that apart."""
SHOWN_IMAGES = 12
NAMED_IMAGES = 100


def build_comparison(comparison: Comparison) -> str:
    """The whole HTML document."""
    names = " and ".join(run.name for run in comparison.runs.values())
    first = (_runs(comparison), _verdicts(comparison))
    sections = (
        (comparison.page.title, "accuracy", _accuracy(comparison)),
        ("How it went", "course", _curves(comparison)),
        ("Settings that differ", "settings", _settings(comparison)),
        ("Class by class", "classes", _classes(comparison)),
        ("One right, the other wrong", "images", _images(comparison)),
    )
    title = f"{plural(len(comparison.runs), 'run', 'runs')} compared"
    return document(title, f"{names}: compared by Skipway", first, sections, "residual")


def _styles(comparison: Comparison) -> dict[str, str]:
    """By letter, the classes of the style sheet: the kind of network and its shade."""
    seen: dict[str, int] = {}
    styles = {}
    for letter, run in comparison.runs.items():
        tone = seen.get(run.family, 0)
        seen[run.family] = tone + 1
        styles[letter] = f"{run.family} tone{tone % TONES}"
    return styles


def _short(letter: str, run: Run) -> str:
    """As much of the name as stands beside a plot."""
    return f"{letter} {run.name if len(run.name) <= 7 else run.name[:6] + '…'}"


def _badge(letter: str, style: str) -> Html:
    return tag("span", letter, class_=f"badge {style}")


def _runs(comparison: Comparison) -> Html:
    styles = _styles(comparison)
    known_scores = {letter: page_of(run).scores(run) for letter, run in comparison.runs.items()}
    columns = list(dict.fromkeys(name for row in known_scores.values() for name, _ in row))
    head = ("Run", "Network", *columns, "Images", "Parameters", "Epochs", "Time", "Images/s",
            "Memory", "Device")  # fmt: skip
    rows = []
    for letter, run in comparison.runs.items():
        known = facts(run)
        status = known["status"]
        unfinished = f" ({status})" if status not in (None, "finished") else ""
        rows.append(
            (
                joined([_badge(letter, styles[letter]), f" {run.name}{unfinished}"]),
                run.model,
                *(dict(known_scores[letter]).get(column) for column in columns),
                f"{run.scored:,} {run.split}" if run.scored else None,
                large(known["params"]) if known["params"] else None,
                shown(known["epochs"]),
                duration(known["seconds"]) if known["seconds"] else None,
                None if run.speed is None else rate(run.speed) + (" *" if run.on_features else ""),
                mebibytes(known["memory_mib"]) if known["memory_mib"] else None,
                known["device"],
            )
        )
    cached = any(run.on_features for run in comparison.runs.values())
    return table(head, rows, 2, f"Images/s with *: {CACHED}." if cached else None)


def _verdicts(comparison: Comparison) -> Html:
    signs = {True: "≠", False: "≈", None: "i"}
    said = marked_list((signs[clear], None, tag("p", text)) for clear, text in verdicts(comparison))
    caution = (
        "The test asks whether these weights differ on these images. Training again with another "
        "seed moves the accuracy as well; to compare recipes, compare several seeds of each."
    )
    return tag(
        "div",
        said,
        tag("p", caution, class_="quiet") if any(p.p is not None for p in comparison.pairs) else "",
        class_="verdicts",
    )


def verdicts(comparison: Comparison) -> list[tuple[bool | None, str]]:
    """Each pair in a sentence, and whether it clearly differs; then, with None, the pairs that
    cannot be tested, together where the reason is the same, and accuracies that are too good."""
    found: list[tuple[bool | None, str]] = []
    reasons: dict[str, list[str]] = {}
    tested = sum(pair.p is not None for pair in comparison.pairs)
    for pair in comparison.pairs:
        if pair.reason is not None:
            reasons.setdefault(pair.reason, []).append(f"{pair.first} and {pair.second}")
        else:
            found.append((pair.clear, _verdict(pair, tested)))
    for reason, pairs in reasons.items():
        found.append((None, f"Not tested: {', '.join(pairs)}: {reason}."))
    for letter, run in comparison.runs.items():
        if run.leaked:
            images = plural(run.leaked, f"{run.split} image", f"{run.split} images")
            said = f"{letter} was trained on {images} too: its {page_of(run).measure} is too good."
            found.append((None, said))
    return found


def _verdict(pair: Pair, tested: int) -> str:
    """tested: how many pairs were."""
    first, second = pair.first, pair.second
    difference, p = pair.difference or 0.0, 1.0 if pair.p_adjusted is None else pair.p_adjusted
    low, high = pair.interval or (0.0, 0.0)
    paired = f" {pair.note}" if pair.note else ""
    if not pair.only_first and not pair.only_second:
        return f"{first} and {second} are right on the same images.{paired}"
    adjusted = f", adjusted for {tested:,} pairs by Holm's method" if tested > 1 else ""
    numbers = (
        f"{second} minus {first}: {100 * difference:+.2f} points "
        f"(95 % interval {100 * low:+.2f} to {100 * high:+.2f}). Only {first} is right on "
        f"{plural(pair.only_first or 0, 'image', 'images')}, only {second} on "
        f"{plural(pair.only_second or 0, 'image', 'images')} ("
        f"{'p < 0.0001' if p < 1e-4 else f'p = {p:.2g}'}{adjusted}).{paired}"
    )
    if pair.clear:
        better, worse = (second, first) if difference > 0 else (first, second)
        return f"{better} is better than {worse}, and chance alone hardly explains it. {numbers}"
    return f"{first} and {second} do not differ clearly: chance alone may do this. {numbers}"


def _accuracy(comparison: Comparison) -> Html | None:
    """The main metric of each run with its interval; None where fewer than two have one."""
    styles, page = _styles(comparison), comparison.page
    scored = {
        letter: value
        for letter, run in comparison.runs.items()
        if (value := page.value(run)) is not None
    }
    runs = {letter: comparison.runs[letter] for letter in scored}
    if len(runs) < 2 or not any(run.interval for run in runs.values()):
        return None
    rows = [(_short(a, run), scored[a], run.interval, styles[a]) for a, run in runs.items()]
    splits = {run.split for run in runs.values()}
    caption = f"{page.title} on {' and '.join(sorted(splits))} images with its 95 % interval."
    if len(splits) > 1:
        caption += " These are not the same images."
    tested = [pair for pair in comparison.pairs if pair.difference is not None]
    cells = [
        (
            f"{pair.second} − {pair.first}",
            f"{100 * (pair.difference or 0):+.2f}",
            "{:+.2f} to {:+.2f}".format(*(100 * end for end in pair.interval or (0, 0))),
            shown(pair.both),
            shown(pair.only_first),
            shown(pair.only_second),
            f"{pair.p:.2g}",
            f"{pair.p_adjusted:.2g}",
        )
        for pair in tested
    ]
    head = ("Pair", "Points", "95 % interval", "Both right", "Only first", "Only second",
            "p", "p, adjusted")  # fmt: skip
    note = (
        "On the same images: McNemar's exact test, p adjusted for the number of pairs (Holm); the "
        "interval is Newcombe's of paired shares (1998, method 10)."
    )
    return tag(
        "div",
        intervals("With intervals", caption, rows),
        tag("div", table(head, cells, caption=note), class_="grow") if cells else None,
        class_="row",
    )


def _curves(comparison: Comparison) -> Html | None:
    longest = max((r["epoch"] for run in comparison.runs.values() for r in run.epochs), default=0)
    if not longest:
        return None
    epochs = linear("epoch", longest, whole=True)
    kinds = {
        letter: run.training_loss
        for letter, run in comparison.runs.items()
        if run.series("train_loss")
    }
    apart = len(set(kinds.values())) > 1
    left_out = {"memory_mib", "train_loss"} if apart else {"memory_mib"}
    plots = [_panel(comparison, epochs, key) for key in QUANTITIES if key not in left_out]
    if not apart:
        return tag("div", *plots, class_="plots") if any(plots) else None
    each = "; ".join(f"{letter}: {kind or LOSSES['ce']}" for letter, kind in kinds.items())
    note = f"Training loss is left out, as it is not the same quantity in all runs. {each}."
    return joined([tag("div", *plots, class_="plots"), tag("p", note, class_="quiet")])


def _panel(comparison: Comparison, epochs: Axis, key: str) -> Html | None:
    quantity, styles = QUANTITIES[key], _styles(comparison)
    dashed = " training" if key.startswith("train_") else ""
    series = {letter: run.series(key) for letter, run in comparison.runs.items()}
    known = {letter: points for letter, points in series.items() if points}
    cached = [letter for letter in known if comparison.runs[letter].on_features]
    said = ""
    if key in ("images_per_second", "waiting") and cached:
        said = f" {', '.join(cached)}: {CACHED}"
        if len(cached) < len(known):  # of another order, and no measure of the same work
            known = {letter: points for letter, points in known.items() if letter not in cached}
            said += ", left out here"
        said += "."
    if not known:
        return None
    kind = comparison.runs[next(iter(known))].training_loss
    if key == "train_loss" and kind is not None:  # of all of them: `_curves`
        quantity = training_loss(kind)
    each = [[value for _, value in points] for points in known.values()]
    values = [value for run in each for value in run]
    tops = map(most_val_loss, comparison.runs.values()) if key == "val_loss" else ()
    axis = quantity.axis(*each, top=max(filter(math.isfinite, tops), default=math.inf))
    lines = [
        Line(
            _short(letter, comparison.runs[letter]),
            clipped(points, axis),
            f"{styles[letter]}{dashed}",
            letter,
        )
        for letter, points in known.items()
    ]
    ends = (f"{at} {shown(points[-1][1], quantity.form)}" for at, points in known.items())
    caption = f"At the end: {', '.join(ends)}.{off_scale(values, axis)}{said}"
    if key == "lr":
        highest = (f"{at} {max(v for _, v in points):.3g}" for at, points in known.items())
        caption = f"Highest: {', '.join(highest)}."
    return plot(quantity.title, caption, epochs, axis, lines)


def _settings(comparison: Comparison) -> Html | None:
    if not comparison.settings:
        return tag("p", "None: the runs were configured alike.", class_="quiet")
    head = ("Setting", *comparison.runs)
    rows = [(key, *values) for key, values in comparison.settings]
    return table(head, rows, words=len(head), fixed=True)


def _classes(comparison: Comparison) -> Html | None:
    found, kind = comparison.by_class(), comparison.page.by_class
    if kind is None or len(comparison.scored_by_class) < 2:
        return None
    if not found:
        return tag("p", "The runs do not have the same classes.", class_="quiet")
    rows = []
    for name, values in found[:MOST_ROWS]:
        known = [value for value in values if value is not None]
        apart = f"{100 * (max(known) - min(known)):.1f}" if known else None
        rows.append((name, *(shown(value, ".1%") for value in values), apart))
    note = f"{kind.name}: {kind.said}. The largest difference comes first."
    if len(found) > MOST_ROWS:
        note += f" {MOST_ROWS} of {len(found):,} classes."
    content = table(("Class", *comparison.runs, "Points apart"), rows, caption=note)
    if len(rows) <= OPEN_ROWS:
        return content
    return details(f"{kind.name} by class", content)


def _images(comparison: Comparison) -> Html | None:
    """Of the first run against each of the others."""
    parts = []
    first = next(iter(comparison.runs))
    for pair in comparison.pairs:
        if pair.first != first or pair.difference is None:
            continue
        a, b = comparison.runs[first], comparison.runs[pair.second]
        pairing = pair_images(a, b)
        assert isinstance(pairing, Pairing)
        for rows, winner, loser in zip(
            disagreements(a, b, pairing), (first, pair.second), (pair.second, first), strict=True
        ):
            if rows:
                parts.append(_one_right(rows, pair, winner, loser))
    return joined(parts) or None


def _one_right(rows: Sequence[dict[str, Any]], pair: Pair, winner: str, loser: str) -> Html:
    place = 1 if winner == pair.first else 0
    title = f"Only {winner} is right, not {loser}: {plural(len(rows), 'image', 'images')}"
    pictured = [row for row in rows if row["image"] is not None][:SHOWN_IMAGES]
    pictures = gallery(
        title,
        f"Truth → the answer of {loser}, of the worst mistakes that it kept as pictures.",
        pictured,
        lambda row: [tag("b", f"{row['label']} → {row['answers'][place]}")],
    )
    listed = [
        (row["name"] or f"image {row['index']:,} of the split", row["label"], row["answers"][place])
        for row in rows[:NAMED_IMAGES]
    ]
    more = len(rows) > NAMED_IMAGES
    note = f"The {NAMED_IMAGES} of which {loser} was the surest." if more else None
    files = table(("File", "Truth", f"Answer of {loser}"), listed, 3, note)
    heading = None if pictures else tag("h3", title)
    return tag("div", heading, pictures, details("The files", files))
