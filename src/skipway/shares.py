"""Shares as people read them."""

from __future__ import annotations

_ROUNDING = 1e-6
"""From 0 or 1, within which a share is that: some are float32."""


def hundredths(share: float, places: int) -> str:
    """A share of 0 to 1 in percent, with so many places and without a sign: "98.9".

    Only what is all is told as 100, and only what is nothing as 0: what would be rounded to either
    is the last figure beside it.
    """
    figure = 100 * share
    if _ROUNDING < share < 1 - _ROUNDING:
        figure = min(max(figure, 10**-places), 100 - 10**-places)
    return f"{figure:.{places}f}"


def percent(share: float) -> str:
    """The same with two places, as in terminals: "98.90%"."""
    return f"{hundredths(share, 2)}%"
