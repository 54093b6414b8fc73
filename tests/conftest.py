"""What every test leaves behind as it found it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy is no failure.
settings.register_profile("skipway", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("skipway")


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    """One thread, for the tests are small; and denormals, which training flushes for the rest of
    its process and hypothesis needs."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
