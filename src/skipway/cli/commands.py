"""The app with all its commands, and how one of them is run."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from skipway.cli import (
    benching,
    checking,
    comparing,
    doctoring,
    embedding,
    evaluating,
    explaining,
    exporting,
    finding,
    listing,
    planning,
    publishing,
    studying,
    training,
    using,
    xraying,
)
from skipway.cli.shared import app

__all__ = ["COMMANDS", "app", "run"]

COMMANDS = (
    training,
    planning,
    finding,
    evaluating,
    using,
    listing,
    embedding,
    explaining,
    xraying,
    comparing,
    exporting,
    checking,
    doctoring,
    publishing,
    studying,
    benching,
)
"""The modules whose commands the app has, in the order in which help lists them."""
_PLACES = {module.__name__: place for place, module in enumerate(COMMANDS)}
app.registered_commands.sort(key=lambda c: _PLACES[getattr(c.callback, "__module__", "")])


def run(arguments: Sequence[str]) -> int:
    """Run a command and give its exit code; what goes wrong is raised.

    Typer's own way to call an app would end at Ctrl-C without a word.
    """
    command = typer.main.get_command(app)
    try:
        with command.make_context("skipway", list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0
