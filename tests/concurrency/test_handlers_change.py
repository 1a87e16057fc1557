"""Handlers that come and go while threads send events: each event finds whole lists of them."""

from __future__ import annotations

import threading
from time import monotonic

import pytest

from crew import Crew
from nanolimit import RateLimiter, telemetry

# How long it goes on. Without the GIL, a list that was freed too early is found in a fifth of it.
WORK_S = 2.0


@pytest.mark.parametrize("name", ["all", "some"])
def test_handlers_change_under_load(name: str) -> None:
    limiter = RateLimiter("1/hour", name="busy", track_top=2)
    limiter.allow("k")
    whose = limiter if name == "some" else None
    over_s = monotonic() + WORK_S
    ended = threading.Event()

    def handler(event: str, measurements: object, metadata: object) -> None:
        assert event == "denied"

    def work(number: int) -> None:
        if number == 0:
            try:
                while monotonic() < over_s:
                    telemetry.attach(
                        "comes and goes",
                        "denied",
                        handler,
                        limiter=whose,
                    )
                    telemetry.detach("comes and goes")
            finally:
                ended.set()
        while not ended.is_set():
            assert not limiter.allow("k")
            assert not limiter.check("k").allowed

    with Crew(4, work):
        pass
    assert telemetry.handlers() == {}
    assert not limiter.allow("k")


def test_handlers_change_while_limiters_come_and_go() -> None:
    """Who attaches tells all limiters, and walks through them while one may go."""
    over_s = monotonic() + WORK_S

    def work(number: int) -> None:
        while monotonic() < over_s:
            if number == 0:
                telemetry.attach("comes and goes", "denied", print, limiter="nobody's")
                assert telemetry.detach("comes and goes")
            else:
                kept = [RateLimiter(1, name=f"brief {number}") for _ in range(20)]
                del kept

    with Crew(3, work):
        pass
    assert telemetry.handlers() == {}
