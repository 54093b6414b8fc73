"""Values from JSON whose shape nobody vouches for: what does not fit counts as absent."""

from __future__ import annotations

from typing import Any


def dig(value: Any, *keys: str) -> Any:
    """The value under nested keys; None where one of them is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def number(value: Any) -> float | None:
    """A finite number, or None for everything else (1e300 and beyond too: none can be drawn)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < 1e300 else None


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; nothing where there is no list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def mapping(value: Any) -> dict[str, Any]:
    """The object; an empty one where there is none."""
    return value if isinstance(value, dict) else {}


def ends(value: Any) -> tuple[float, float] | None:
    """An interval, where both of its ends are numbers."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = map(number, value)
    return None if low is None or high is None else (low, high)
