"""A fixture for the tests of those who use nanolimit.

pytest finds it by itself where nanolimit is installed::

    def test_the_sixth_is_denied(manual_clock):
        limiter = RateLimiter(5, per=60, clock=manual_clock)
        assert all(limiter.allow("me") for _ in range(5))
        assert not limiter.allow("me")
        manual_clock.advance(60)
        assert limiter.allow("me")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from nanolimit.clock import ManualClock


@pytest.fixture
def manual_clock() -> ManualClock:
    """A `nanolimit.ManualClock` that shows 0 and moves when it is told to."""
    # Imported here: pytest loads this module in every run, also of those who test something else.
    from nanolimit.clock import ManualClock

    return ManualClock()
