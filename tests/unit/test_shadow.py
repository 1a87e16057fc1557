"""enforce=False: decides and counts, and lets everybody pass."""

from __future__ import annotations

from typing import Any

import pytest

from nanolimit import Backoff, ManualClock, RateLimiter, check_all, telemetry


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.mark.parametrize("quota", ["2/minute", "2/minute; 3/hour"])
def test_everybody_passes_and_is_counted(clock: ManualClock, quota: str) -> None:
    limiter = RateLimiter(quota, clock=clock, enforce=False)
    assert [limiter.allow("me") for _ in range(5)] == [True] * 5
    assert limiter.allow_many(["me", "you"]) == [True, True]
    decision = limiter.check("me")
    assert (decision.allowed, decision.would_deny, decision.retry_after) == (True, True, 0.0)
    assert decision.violated == limiter.quotas[0]
    assert decision.remaining == 0
    assert "would_deny=True" in repr(decision)
    fits = limiter.check("you")
    assert (fits.allowed, fits.would_deny, fits.violated) == (True, False, None)
    assert limiter.peek("me").would_deny
    stats = limiter.stats()
    assert (stats.allowed, stats.denied, stats.would_deny) == (9, 0, 5)
    clock.advance(60)
    assert not limiter.check("me").would_deny  # what would be denied leaves no log


def test_one_that_enforces_denies_nobody_in_its_name() -> None:
    assert RateLimiter(1).stats().would_deny == 0


def test_blocks_are_watched_too(clock: ManualClock) -> None:
    limiter = RateLimiter(1, clock=clock, enforce=False, backoff=Backoff(after=2, base=100))
    assert all(limiter.allow("me") for _ in range(4))
    clock.advance(60)
    decision = limiter.check("me")
    assert (decision.allowed, decision.would_deny, decision.blocked) == (True, True, True)
    assert decision.violated is None


def test_it_has_no_say_among_others(clock: ManualClock) -> None:
    watched = RateLimiter(1, clock=clock, enforce=False)
    enforced = RateLimiter(2, clock=clock)
    items = [(watched, "me"), (enforced, "me")]
    assert [bool(check_all(items)) for _ in range(3)] == [True, True, False]
    assert watched.stats()[:2] == (2, 0)
    assert watched.stats().would_deny == 1
    assert check_all([(watched, "me")]).would_deny


def test_reservations_and_waiters_pass(clock: ManualClock) -> None:
    limiter = RateLimiter(3, clock=clock, enforce=False)
    assert limiter.allow("me", 3)
    held = limiter.reserve("me", 3)
    assert held.ok
    assert held.cancel() == 0  # nothing was counted
    assert limiter.acquire("me", timeout=0)
    with limiter.attempt("me") as attempt:
        assert attempt.success() == 0


def test_events_say_that_it_was_not_enforced(clock: ManualClock) -> None:
    seen: list[tuple[str, Any]] = []
    telemetry.attach("test", ["allowed", "denied"], lambda event, _, at: seen.append((event, at)))
    try:
        limiter = RateLimiter(1, name="api", clock=clock, enforce=False)
        limiter.allow("me")
        limiter.allow("me")
        enforced = RateLimiter(1, name="web", clock=clock)
        enforced.allow_many(["me", "me"])
    finally:
        telemetry.detach("test")
    assert seen == [
        ("allowed", {"limiter": "api", "key": "me"}),
        ("denied", {"limiter": "api", "key": "me", "enforced": False}),
        ("allowed", {"limiter": "web", "key": "me"}),
        ("denied", {"limiter": "web", "key": "me"}),
    ]


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="enforce must be a bool, not int"):
        RateLimiter(1, enforce=0)  # type: ignore[arg-type]
    limiter = RateLimiter(2, enforce=False)
    with pytest.raises(ValueError, match="cost must be <= the limit of 2, got 3"):
        limiter.allow("me", 3)
