"""What every test leaves behind as it found it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """Training flushes denormals for the rest of its process; hypothesis needs them."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
