"""`skipway lr`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipway.cli.settings import with_settings
from skipway.cli.shared import Json, app, emit
from skipway.errors import GateNotMet, InputError, harmless, missing_part

if TYPE_CHECKING:
    from skipway.training.finder import RateTest


@app.command("lr")
@with_settings("epochs", "minutes", "patience", "lr", "checkpoint_every")
def find_learning_rate(
    data: str | None,
    given: Mapping[str, Any],
    low: Annotated[
        float | None, typer.Option(help="The first rate; the planned one over 1,000 by default.")
    ] = None,
    high: Annotated[
        float | None, typer.Option(help="The last rate; the planned one times 1,000 by default.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps, at most.")] = 100,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the plot: .html or .svg.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find a learning rate for `train` with the same options.

    Trains for some steps at rising rates until the loss diverges, and writes nothing but the plot.
    """
    try:
        from skipway.report.rates import check_plot_place, write_rate_plot
        from skipway.training import find_rate
        from skipway.training.record import setting_flags
    except ImportError as error:
        raise missing_part("lr", "train", error) from None
    if not data:
        raise InputError("DATA is missing; see skipway lr --help")
    if out is not None:
        check_plot_place(out)
    test = find_rate(data, given, low=low, high=high, steps=steps)
    if test.rank > 0:
        return
    command = None
    if test.suggested is not None:
        rates = {"optim.lr": float(f"{test.suggested:.2g}")}
        if test.muon is not None:
            rates["optim.muon_lr"] = float(f"{test.muon:.2g}")
        command = shlex.join(["skipway", "train", data, *setting_flags({**given, **rates})])
    lines = in_words(test)
    page = write_rate_plot(test, out, lines, command) if out is not None else None
    if as_json:
        emit(summary(test) | {"command": command, "plot": None if page is None else str(page)})
    else:
        print("\n".join(lines))
        if page is not None:
            print(f"the plot: {harmless(page)}")
        if command is not None:
            print(f"\n{harmless(command)}")
    if test.suggested is None:
        raise GateNotMet(NOTHING + "\n" + elsewhere(test))


NOTHING = "no rate is suggested: the loss did not fall beyond its noise"


def elsewhere(test: RateTest) -> str:
    """Where to look when nothing was found."""
    if test.diverged is not None:
        return "Take a lower --low, more --steps or a larger --batch-size."
    return "Take a higher --high, more --steps or a larger --batch-size."


def in_words(test: RateTest) -> list[str]:
    """What was done and found, a line each."""
    ended = "it did not diverge"
    if test.diverged is not None:
        ended = f"it diverged at {test.diverged:.2g}"
    lines = [
        f"{len(test.losses)} of {test.planned} steps, each at a higher rate; {ended}",
    ]
    if test.suggested is None or test.interval is None:
        return [*lines, NOTHING]
    low, high = test.interval
    lines += [
        f"loss falls fastest at {test.suggested:.2g}, is least at {test.least:.2g} (a tenth of "
        f"that: {test.least / 10:.2g})",
        f"suggested: {test.suggested:.2g}, where it falls fastest; {low:.2g} to {high:.2g} in 90 % "
        "of redraws of the batches' noise",
        "One short test of one seed gives the order of magnitude; a tenth of the least is the "
        "careful choice, for a constant rate.",
    ]
    if test.at_the_end:
        lines.append("The loss was still falling at the last rate: try a higher --high.")
    if test.muon is not None:
        lines.append(
            f"Muon's own rate rose in proportion: optim.muon_lr = {test.muon:.2g} goes with it."
        )
    return lines


def summary(test: RateTest) -> dict[str, Any]:
    """The test for programs."""
    return {
        "lr": test.suggested,
        "interval": test.interval,
        "steepest": test.steepest,
        "least": test.least,
        "diverged": test.diverged,
        "muon_lr": test.muon,
        "planned_steps": test.planned,
        "rates": test.rates,
        "losses": test.losses,
        "smoothed": test.curve,
    }
