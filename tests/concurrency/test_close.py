"""close() while other threads call: every call is answered, or says that the limiter is closed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest

import nanolimit
from crew import Crew, run
from nanolimit import RateLimiter

pytestmark = pytest.mark.usefixtures("restless")

THREADS = 4


def call_until_closed(limiter: RateLimiter, number: int, started: threading.Event) -> None:
    """Every kind of call, until one says closed; then all of them must."""
    calls: list[Callable[[int], object]] = [
        lambda nth: limiter.allow((number, nth)),
        lambda nth: limiter.allow("hot"),
        lambda nth: limiter.check(nth, 2),
        lambda nth: limiter.peek(nth),
        lambda nth: limiter.allow_many(range(nth, nth + 200)),
        lambda nth: limiter.reset("hot"),
        lambda nth: "hot" in limiter,
        lambda nth: len(limiter),
        lambda nth: limiter.evict(),
        lambda nth: limiter.stats(),
        lambda nth: limiter.clear() if nth % 16 == 0 else None,
    ]
    with pytest.raises(nanolimit.LimiterClosedError):
        for nth in itertools.count():
            calls[(nth + number) % len(calls)](nth)
            if nth == 10:
                started.set()
    for call in calls:
        with pytest.raises(nanolimit.LimiterClosedError):
            call(16)


@pytest.mark.parametrize("rounds", [40])
def test_close_under_fire(rounds: int) -> None:
    for _ in range(rounds):
        limiter = RateLimiter(5, per=86_400)
        started = [threading.Event() for _ in range(THREADS)]

        def work(
            number: int,
            limiter: RateLimiter = limiter,
            started: list[threading.Event] = started,
        ) -> None:
            call_until_closed(limiter, number, started[number])

        with Crew(THREADS, work):
            for event in started:
                assert event.wait(60)
            limiter.close()
        limiter.close()


def test_many_close_at_once() -> None:
    """Each of them returns, and the memory goes once."""
    for _ in range(100):
        limiter = RateLimiter(5, per=86_400)
        limiter.allow_many(range(100))
        close = limiter.close
        run(THREADS, lambda _, close=close: close())  # type: ignore[misc]
        with pytest.raises(nanolimit.LimiterClosedError):
            limiter.allow("user")


def test_the_last_reference_goes_while_a_bound_method_stays() -> None:
    """The bound method keeps the table alive; nothing else has to."""
    allows = []
    for _ in range(50):
        allows.append(RateLimiter(2, per=86_400).allow)
    for allow in allows:
        assert [allow("user") for _ in range(3)] == [True, True, False]


def test_limiters_come_and_go_in_threads() -> None:
    def work(number: int) -> None:
        for nth in range(200):
            with RateLimiter(3, per=86_400) as limiter:
                assert sum(limiter.allow(("user", number)) for _ in range(5)) == 3
                assert limiter.allow_many([nth] * 4) == [True, True, True, False]

    run(THREADS, work)
