"""Handlers that come and go while threads decide: each event reaches whoever stays, once."""

from __future__ import annotations

import threading

import pytest

from doors import verify
from nanolimit import RateLimiter, telemetry

THREADS, CALLS, KEYS = 4, 15_000, 200


@pytest.mark.parametrize("algorithm", ["sliding-log", "gcra"])
def test_handlers_that_come_and_go_while_threads_decide(algorithm: str) -> None:
    limiter = RateLimiter("1/day", track_top=50, algorithm=algorithm)  # type: ignore[arg-type]
    denied: list[object] = []
    passing: list[object] = []
    over = threading.Event()
    problems: list[BaseException] = []

    def steady(event: str, measurements: dict[str, float], metadata: dict[str, object]) -> None:
        denied.append(metadata["key"])

    def other(event: str, measurements: dict[str, float], metadata: dict[str, object]) -> None:
        assert (measurements, set(metadata)) == ({"count": 1}, {"limiter", "key"})
        passing.append(event)

    def churn() -> None:
        try:
            while not over.is_set():
                telemetry.attach("a", "denied", other)
                telemetry.attach("b", ["allowed", "denied"], other, sample=0.5, limiter=limiter)
                telemetry.detach("a")
                telemetry.detach("b")
        except BaseException as error:
            problems.append(error)

    def decide() -> None:
        try:
            allow = limiter.allow
            for number in range(CALLS):
                allow(number % KEYS)
        except BaseException as error:
            problems.append(error)

    telemetry.attach("steady", "denied", steady)
    try:
        churning = threading.Thread(target=churn)
        deciding = [threading.Thread(target=decide) for _ in range(THREADS)]
        churning.start()
        for thread in deciding:
            thread.start()
        for thread in deciding:
            thread.join(60)
        over.set()
        churning.join(60)
    finally:
        over.set()
        for handler_id in ("steady", "a", "b"):
            telemetry.detach(handler_id)
    assert problems == []
    assert len(denied) == limiter.stats().denied == THREADS * CALLS - KEYS
    verify(limiter)
