"""Penalties and blocks: who keeps knocking waits ever longer."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from nanolimit import (
    Backoff,
    ManualClock,
    NanolimitError,
    RateLimiter,
    RateLimitExceeded,
    check_all,
    telemetry,
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def events() -> Iterator[list[tuple[str, Any, Any]]]:
    seen: list[tuple[str, Any, Any]] = []
    telemetry.attach(
        "test", ["allowed", "denied", "blocked"],
        lambda event, measurements, metadata: seen.append((event, measurements, metadata)),
    )  # fmt: skip
    yield seen
    telemetry.detach("test")


def deny(limiter: RateLimiter, key: Any, times: int) -> list[bool]:
    """The answers to so many denied requests: was the key blocked after each?"""
    decisions = [limiter.check(key) for _ in range(times)]
    assert not any(decisions)
    return [decision.blocked for decision in decisions]


def test_each_block_is_longer_than_the_one_before(clock: ManualClock) -> None:
    backoff = Backoff(after=3, base=10, factor=2, maximum=30, forgive=10_000)
    limiter = RateLimiter("1/day", clock=clock, backoff=backoff)
    limiter.allow("me")
    for length in (10, 20, 30, 30):
        assert deny(limiter, "me", 3) == [False, False, True]
        clock.advance(length - 0.001)
        assert limiter.peek("me").blocked
        clock.advance(0.001)
        assert not limiter.peek("me").blocked


def test_an_allowed_request_ends_the_row(clock: ManualClock) -> None:
    limiter = RateLimiter("1/minute", clock=clock, backoff=Backoff(after=3, forgive=1_000))
    for _ in range(4):
        assert limiter.allow("me")
        assert deny(limiter, "me", 2) == [False, False]
        clock.advance(60)
    assert limiter.allow("me")
    assert deny(limiter, "me", 3) == [False, False, True]


def test_all_is_forgiven_in_time(clock: ManualClock) -> None:
    backoff = Backoff(after=2, base=10, factor=10, maximum=1_000, forgive=50)
    limiter = RateLimiter("1/day", clock=clock, backoff=backoff)
    limiter.allow("me")
    deny(limiter, "me", 1)
    clock.advance(50)  # the row is over
    assert deny(limiter, "me", 2) == [False, True]
    clock.advance(10 + 49)
    assert deny(limiter, "me", 2) == [False, True]  # ... and the block is the second
    assert limiter.unblock("me")
    assert deny(limiter, "me", 2) == [False, True]
    clock.advance(10 + 50)
    assert deny(limiter, "me", 2) == [False, True]
    clock.advance(10)
    assert not limiter.peek("me").blocked


def test_retry_after_is_the_later_of_both(clock: ManualClock) -> None:
    limiter = RateLimiter("1/minute", clock=clock)
    limiter.block("me", 5)
    fresh = limiter.check("me")
    assert (fresh.allowed, fresh.blocked, fresh.violated) == (False, True, None)
    assert (fresh.retry_after, fresh.remaining, fresh.reset_after) == (5, 0, 0)
    clock.advance(5)
    assert limiter.check("me").allowed
    limiter.block("me", 5)
    full = limiter.check("me")
    assert (full.retry_after, full.violated) == (60, limiter.quota)
    limiter.block("me", 100)
    assert limiter.check("me").retry_after == 100
    assert "blocked=True" in repr(limiter.check("me"))


def test_a_block_by_hand(clock: ManualClock) -> None:
    limiter = RateLimiter(5, clock=clock)
    assert limiter.allow("me")
    limiter.block("me", timedelta(seconds=10))
    assert not limiter.allow("me")
    assert limiter.allow_many(["me", "you", "me"]) == [False, True, False]
    assert not limiter.reserve("me").ok
    with pytest.raises(RateLimitExceeded) as caught, limiter.attempt("me"):
        pass
    assert caught.value.decision is not None
    assert caught.value.decision.blocked
    assert limiter.check("me", 0).allowed  # costs nothing, is denied nothing
    assert "me" in limiter  # its log is not touched
    limiter.block("me", 2)  # the newer word counts
    clock.advance(2)
    assert limiter.check("me").remaining == 3
    assert not limiter.unblock("me")
    limiter.block("me", 2)
    assert limiter.unblock("me")
    assert limiter.allow("me")


def test_reset_and_clear_lift_blocks(clock: ManualClock) -> None:
    limiter = RateLimiter(5, clock=clock, exempt=["boss"])
    limiter.set_quota("paid", "50/minute")
    for key in ("me", "you", "boss"):
        limiter.block(key, 10)
    limiter.reset("me")
    assert limiter.allow("me")
    assert not limiter.allow("you")
    assert not limiter.allow("boss")
    assert not limiter.check("boss")
    limiter.clear()
    assert limiter.allow("you")
    assert [limiter.allow("boss") for _ in range(20)] == [True] * 20
    assert limiter.peek("paid").limit == 50


def test_requests_in_a_block_may_prolong_it(clock: ManualClock) -> None:
    backoff = Backoff(after=1, base=10, maximum=10, prolong=True)
    limiter = RateLimiter("1/minute", clock=clock, backoff=backoff)
    limiter.allow("me")
    assert deny(limiter, "me", 1) == [True]
    for _ in range(5):
        clock.advance(9)
        assert not limiter.allow("me")
        assert limiter.peek("me").blocked
    clock.advance(9.5)
    assert limiter.peek("me").blocked  # a peek is no request
    clock.advance(0.5)
    assert not limiter.peek("me").blocked
    limiter.block("me", 10)  # by hand: stays as it is
    clock.advance(5)
    limiter.allow("me")
    clock.advance(5)
    assert not limiter.peek("me").blocked


def test_who_waits_is_not_charged(clock: ManualClock) -> None:
    limiter = RateLimiter("1/minute", clock=clock, backoff=Backoff(after=1, base=100))
    limiter.allow("me")
    assert not limiter.acquire("me", timeout=0)
    assert not limiter.peek("me").blocked
    limiter.block("me", 90)
    got: list[bool] = []
    thread = threading.Thread(target=lambda: got.append(limiter.acquire("me")))
    thread.start()
    for _ in range(9):
        clock.advance(10)
    thread.join(60)
    assert got == [True]


def test_events(clock: ManualClock, events: list[tuple[str, Any, Any]]) -> None:
    limiter = RateLimiter("1/minute", name="api", clock=clock, backoff=Backoff(after=2, base=10))
    for _ in range(4):
        limiter.allow("me")
    limiter.block("you", 3)
    assert [(event, measured["count"], at["key"]) for event, measured, at in events] == [
        ("allowed", 1, "me"),
        ("denied", 1, "me"),
        ("denied", 1, "me"),
        ("blocked", 10, "me"),
        ("denied", 1, "me"),
        ("blocked", 3, "you"),
    ]
    assert all(at == {"limiter": "api", "key": at["key"]} for _, _, at in events)


def test_check_all_knows_of_blocks(clock: ManualClock) -> None:
    users = RateLimiter("1/minute", clock=clock, backoff=Backoff(after=2, base=10))
    everybody = RateLimiter("100/minute", clock=clock)
    items = [(users, "me"), (everybody, "all")]
    assert check_all(items)
    for blocked in (False, True, True):
        decision = check_all(items)
        assert (decision.allowed, decision.blocked) == (False, blocked)
    assert users.peek("me").blocked
    assert everybody.peek("all").remaining == 99
    decision = check_all([(users, "me"), (everybody, "all")])
    assert (decision.blocked, decision.retry_after) == (True, 60)
    everybody.block("all", 500)
    assert check_all([(users, "you"), (everybody, "all")]).retry_after == 500
    assert users.peek("you").remaining == 1


def test_several_quotas_have_one_penalty(clock: ManualClock) -> None:
    limiter = RateLimiter("2/second; 3/minute", clock=clock, backoff=Backoff(after=2, base=5))
    assert [limiter.allow("me") for _ in range(2)] == [True, True]
    assert deny(limiter, "me", 2) == [False, True]
    assert limiter.check("me").retry_after == 5
    clock.advance(5)
    assert limiter.check("me").remaining == 0
    assert limiter.check("me").violated == limiter.quotas[1]


def test_a_penalty_needs_no_log(clock: ManualClock) -> None:
    """A blocked key stays blocked although its slot is idle, and evict() keeps it."""
    limiter = RateLimiter("1/second", clock=clock)
    limiter.block("me", 1_000)
    limiter.allow("you")
    clock.advance(500)
    assert limiter.evict() == 1
    assert len(limiter) == 0
    assert not limiter.allow("me")


def test_where_there_is_no_room(clock: ManualClock) -> None:
    limiter = RateLimiter(
        "1/minute", clock=clock, max_keys=2, backoff=Backoff(after=1, base=10, forgive=10)
    )
    limiter.block("a", 10)
    limiter.block("b", 20)
    with pytest.raises(NanolimitError, match=r"no room to keep more .* max_keys is 2"):
        limiter.block("c", 10)
    with pytest.raises(NanolimitError, match="no room"):
        limiter.set_quota("c", "1/minute")
    assert limiter.allow("c")
    assert not limiter.check("c").blocked  # denied, and not charged
    clock.advance(10)
    limiter.block("c", 10)


def test_a_forgotten_limiter_goes() -> None:
    import weakref

    limiter = RateLimiter(5)
    limiter.block("me", 10)
    gone = weakref.ref(limiter._engine)
    del limiter
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"after": 0}, ValueError, "after must be from 1 to 65535, got 0"),
        ({"after": 70_000}, ValueError, "after must be from 1 to 65535, got 70000"),
        ({"after": 1.5}, TypeError, "after must be an int, not float"),
        ({"base": 0}, ValueError, "base must be > 0 and <= 315576000 seconds"),
        ({"base": -1}, ValueError, "base must be > 0 .*, got -1"),
        ({"base": "1"}, TypeError, "base must be"),
        ({"factor": 0.5}, ValueError, "factor must be >= 1 and finite, got 0.5"),
        ({"factor": float("nan")}, ValueError, "factor must be >= 1 and finite, got nan"),
        ({"factor": float("inf")}, ValueError, "factor must be >= 1 and finite, got inf"),
        ({"factor": "2"}, TypeError, "factor must be a number, not str"),
        ({"factor": True}, TypeError, "factor must be a number, not bool"),
        ({"base": 10, "maximum": 5}, ValueError, "maximum must be from base=10 to .*, got 5"),
        ({"forgive": 0}, ValueError, "forgive must be > 0 and <= 4294967 seconds"),
        ({"forgive": 1e9}, ValueError, "forgive must be > 0 and <= 4294967 seconds"),
        ({"prolong": 1}, TypeError, "prolong must be a bool, not int"),
    ],
)
def test_bad_penalties(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Backoff(**arguments)


def test_bad_blocks(clock: ManualClock) -> None:
    limiter = RateLimiter(5, clock=clock)
    for seconds in (0, -1, 1e12):
        with pytest.raises(ValueError, match="seconds must be > 0 and <= 315576000"):
            limiter.block("me", seconds)
    with pytest.raises(ValueError, match="seconds must be"):
        limiter.block("me", float("nan"))
    with pytest.raises(TypeError, match="seconds must be"):
        limiter.block("me", "5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="key must be"):
        limiter.block(1.5, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="backoff must be a Backoff, not int"):
        RateLimiter(5, backoff=3)  # type: ignore[arg-type]
    assert limiter.allow("me")


def test_blocks_end_when_they_say(clock: ManualClock) -> None:
    """After retry_after it is allowed; a nanosecond before it is not."""
    for nth, seconds in enumerate((0.0000011, 0.5, 1 / 3, 7.000001)):
        limiter = RateLimiter(5, clock=clock)
        limiter.block("me", seconds)
        wait = limiter.check("me").retry_after
        assert seconds <= wait <= seconds + 2e-6, nth
        clock.advance(wait)
        assert limiter.check("me").allowed


def test_the_lengths_are_those_of_seconds(clock: ManualClock) -> None:
    backoff = Backoff(after=1, base=0.3, factor=1.7, maximum=50, forgive=1_000)
    limiter = RateLimiter("1/week", clock=clock, backoff=backoff)
    limiter.allow("me")
    for level in range(15):
        limiter.allow("me")
        blocked_s = 0.0
        while limiter.peek("me").blocked:
            clock.advance(0.001)
            blocked_s += 0.001
        assert blocked_s == pytest.approx(backoff.seconds(level), abs=0.0011)
