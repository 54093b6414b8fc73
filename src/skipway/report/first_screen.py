"""The second card of a page, the same for all tasks: the main figure, how sure it is, and what
belongs to it."""

from __future__ import annotations

from collections.abc import Sequence

from skipway.report.markup import fact_list, percent, plural, shown, tag
from skipway.report.plot import gauge
from skipway.report.run import Run
from skipway.report.values import dig


def how_good(
    run: Run,
    key: str,
    name: str,
    facts: Sequence[tuple[str, object]],
    said: str | None = None,
    places: int = 1,
    commonest: float | None = None,
    over: str = "",
) -> list[object]:
    """The content of the card.

    key: of a share of 0..1 in the run's result; in its rows ``val_`` stands before it. name: what
    it is, in a sentence; said: the same in full. places: decimals of its per cent. commonest: what
    guessing gets. over: of what others the interval speaks, where that is more than other images.
    """
    value, result = run.metric(key), dig(run.record, "result")
    if value is None:
        seen = run.series(f"val_{key}")
        text = percent(seen[-1][1]) if seen else "–"
        when = f"validation {name} after epoch {seen[-1][0]:g}" if seen else "not measured"
        return [tag("p", text, class_="big"), tag("p", when, class_="quiet")]
    spread = caution = leaked = None
    if run.interval:
        low, high = (percent(end, places) for end in run.interval)
        of = f" over {over}" if over else ""
        spread = tag("p", f"95 % interval{of}: {low} to {high}", class_="quiet")
    if dig(result, "split") == "val" and dig(result, "best_epoch") is not None:
        warning = "The epoch was chosen on these images: expect a little less on new ones."
        caution = tag("p", warning, class_="quiet")
    if run.leaked:
        images = plural(run.leaked, "of these images was", "of these images were")
        leaked = tag("p", f"Too good: {images} trained on.", class_="warn")
    count = shown(run.scored, unit=" ") or ""
    return [
        tag("p", percent(value, places), class_="big"),
        leaked,
        gauge(min(max(value, 0), 1), run.interval, commonest),
        tag("p", f"{said or name} on {count}{run.split} images", class_="quiet"),
        spread,
        fact_list([*facts, ("Weights", dig(result, "chosen") or dig(result, "weights"))]),
        caution,
    ]
