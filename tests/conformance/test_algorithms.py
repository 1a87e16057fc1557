"""What all algorithms share, each statement for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from clocks import NanoClock
from doors import verify
from nanolimit import ManualClock, Quota, RateLimiter, _core

S = 1_000_000_000
ALGORITHMS = _core.ALGORITHMS
METERS = ALGORITHMS[1:]

#: (limit, window in seconds): on the grid of ticks, off it, and with limits no window divides by.
QUOTAS = [(1, 1), (5, 60), (6, 60), (7, 0.7), (100, 3_600), (2_047, 1), (13, 86_400), (9, 1e-6)]


@pytest.fixture(params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=QUOTAS, ids=lambda quota: f"{quota[0]} per {quota[1]} s")
def quota(request: pytest.FixtureRequest) -> Quota:
    return Quota(*request.param)


@pytest.fixture
def limiter(algorithm: Any, quota: Quota, clock: NanoClock) -> Iterator[RateLimiter]:
    made = RateLimiter(quota, algorithm=algorithm, clock=clock, max_keys=100)
    yield made
    verify(made)


def in_ns(seconds: float) -> int:
    """A wait in the whole nanoseconds that it was made of: floats tell them apart up to 48 days."""
    return round(seconds * S)


def test_a_burst_passes_up_to_the_limit(limiter: RateLimiter, quota: Quota) -> None:
    assert [limiter.allow("user") for _ in range(quota.limit + 3)] == (
        [True] * quota.limit + [False] * 3
    )
    assert limiter.allow("another")
    assert (limiter.stats().allowed, limiter.stats().denied) == (quota.limit + 1, 3)


def test_costs_pass_whole_or_not_at_all(limiter: RateLimiter, quota: Quota) -> None:
    limit = quota.limit
    first = limit // 2 + 1
    assert limiter.allow("user", first)
    if limit - first + 1 <= limit:
        assert not limiter.allow("user", limit - first + 1)
    assert limiter.peek("user").remaining == limit - first
    assert limiter.allow("user", limit - first)
    assert not limiter.allow("user")
    with pytest.raises(ValueError, match=f"cost must be <= the limit of {limit}"):
        limiter.allow("user", limit + 1)


def test_the_whole_limit_at_once(limiter: RateLimiter, quota: Quota) -> None:
    decision = limiter.check("user", quota.limit)
    assert (decision.allowed, decision.remaining, decision.retry_after) == (True, 0, 0.0)
    assert decision.limit == quota.limit
    assert decision.quota == quota
    assert not limiter.check("user")


def test_cost_0_passes_and_counts_nothing(limiter: RateLimiter, quota: Quota) -> None:
    assert limiter.allow("user", 0)
    assert "user" not in limiter
    limiter.allow("user", quota.limit)
    assert limiter.check("user", 0).allowed
    assert limiter.check("user", 0).remaining == 0


def test_peek_counts_nothing(limiter: RateLimiter, quota: Quota) -> None:
    fresh = limiter.peek("user", quota.limit)
    assert (fresh.allowed, fresh.remaining) == (True, quota.limit)
    assert fresh.reset_after == fresh.refill_after == fresh.retry_after == 0.0
    assert (len(limiter), limiter.stats().keys) == (0, 0)
    limiter.allow("user", quota.limit)
    for _ in range(3):
        assert not limiter.peek("user")
    assert limiter.stats().denied == 0


def test_retry_after_is_exact(limiter: RateLimiter, quota: Quota, clock: NanoClock) -> None:
    limit = quota.limit
    limiter.allow("user", limit)
    for cost in (1, (limit + 1) // 2, limit, 1, 1):
        waits = 0
        while not (decision := limiter.check("user", cost)):
            assert decision.retry_after > 0
            clock.ns += in_ns(decision.retry_after) - 1
            assert not limiter.peek("user", cost), "one nanosecond before it"
            clock.ns += 1
            assert limiter.peek("user", cost)
            waits += 1
        assert waits <= 1, "denied at the instant that was named"


def test_retry_after_is_exact_with_float_seconds(algorithm: Any) -> None:
    clock = ManualClock(12_345.678)
    limiter = RateLimiter(7, per=0.3, clock=clock, algorithm=algorithm)
    for cost in (7, 1, 3, 7, 2, 7, 1, 1, 5):
        decision = limiter.check("user", cost)
        if not decision:
            clock.advance(decision.retry_after)
            assert limiter.allow("user", cost)


def test_reset_after_is_when_all_is_back(
    limiter: RateLimiter, quota: Quota, clock: NanoClock
) -> None:
    limiter.allow("user", quota.limit)
    limiter.allow("user")
    wait = in_ns(limiter.peek("user").reset_after)
    clock.ns += wait - 1
    assert not limiter.peek("user", quota.limit)
    assert "user" in limiter
    clock.ns += 1
    assert limiter.peek("user", quota.limit)
    assert "user" not in limiter
    assert len(limiter) == 0


def test_refill_after_is_when_one_more_is_free(
    limiter: RateLimiter, quota: Quota, clock: NanoClock
) -> None:
    limiter.allow("user", quota.limit)
    for _ in range(3):
        before = limiter.peek("user")
        clock.ns += in_ns(before.refill_after) - 1
        assert limiter.peek("user").remaining == before.remaining
        clock.ns += 1
        assert limiter.peek("user").remaining > before.remaining
        if "user" not in limiter:
            break


def test_a_clock_that_goes_back_frees_nothing(
    limiter: RateLimiter, quota: Quota, clock: NanoClock
) -> None:
    limiter.allow("user", quota.limit)
    window_ns = quota.window_ns
    for back in (1, window_ns // 2, 3 * window_ns, 10**12):
        back = min(back, clock.ns)
        clock.ns -= back
        assert not limiter.allow("user")
        assert limiter.peek("user").remaining == 0
        assert "user" in limiter
        clock.ns += back
    assert not limiter.allow("user")


def test_at_the_beginning_of_time(algorithm: Any) -> None:
    clock = NanoClock(0)
    limiter = RateLimiter(5, per=60, clock=clock, algorithm=algorithm, max_keys=3, on_full="deny")
    assert [limiter.allow("a") for _ in range(6)] == [True] * 5 + [False]
    assert limiter.allow("b")
    assert limiter.allow("c", 2)
    assert not limiter.allow("d")
    assert len(limiter) == 3
    clock.ns = 120 * S
    assert len(limiter) == 0
    assert limiter.allow("d", 5)


def test_a_clock_that_goes_back_where_a_tick_has_room_for_several(algorithm: Any) -> None:
    """More units than ticks: what is denied without a division must be denied with one."""
    clock = NanoClock(0)
    limiter = RateLimiter(Quota._of(2_047, 1_000), algorithm=algorithm, clock=clock, max_keys=3)
    assert limiter.allow("a", 2_047)
    clock.ns = 1
    refilled = [limiter.allow("a") for _ in range(3)]
    assert refilled == ([True, True, False] if algorithm == "gcra" else [False] * 3)
    limiter.reset("a")
    clock.ns = 0
    assert limiter.allow("a", 2_047)
    clock.ns = 1
    assert limiter.allow("a") == (algorithm == "gcra")
    clock.ns = 0  # to the key it is still 1
    assert [limiter.allow("a") for _ in range(2)] == [algorithm == "gcra", False]


def test_reset_and_clear(limiter: RateLimiter, quota: Quota) -> None:
    limiter.allow("user", quota.limit)
    assert limiter.reset("user") is True
    assert limiter.reset("user") is False
    assert limiter.allow("user", quota.limit)
    limiter.clear()
    assert len(limiter) == 0
    assert limiter.allow("user", quota.limit)


def test_idle_keys_are_dropped_and_live_ones_kept(
    limiter: RateLimiter, quota: Quota, clock: NanoClock
) -> None:
    for key in range(50):
        limiter.allow(key, quota.limit)
    assert (len(limiter), limiter.evict()) == (50, 0)
    clock.ns += in_ns(limiter.peek(0).reset_after)
    limiter.allow("live", quota.limit)
    assert (len(limiter), limiter.evict()) == (1, 50)
    assert "live" in limiter
    assert not limiter.allow("live")


@pytest.mark.parametrize("max_keys", [1, 2, 17])
def test_the_first_max_keys_live_keys_fit(algorithm: Any, max_keys: int, clock: NanoClock) -> None:
    """Also when slots fall idle one after another in a table that was found full."""
    limiter = RateLimiter(
        10, per=60, algorithm=algorithm, clock=clock, max_keys=max_keys, on_full="deny"
    )
    for key in range(max_keys):
        assert limiter.allow(key, 1 + key % 10)
        clock.ns += S // 100
    for newcomer in range(100, 140):
        live = len(limiter)
        assert limiter.allow(newcomer) == (live < max_keys)
        clock.ns += 3 * S
    verify(limiter)


def test_full_tables_do_as_they_are_told(algorithm: Any, clock: NanoClock) -> None:
    def full(on_full: Any) -> RateLimiter:
        made = RateLimiter(5, algorithm=algorithm, clock=clock, max_keys=3, on_full=on_full)
        for key in range(3):
            made.allow(key, 5)
            clock.ns += 1_000
        return made

    allowing, denying, evicting = full("allow"), full("deny"), full("evict")
    decision = allowing.check("new", 2)
    assert (decision.allowed, decision.remaining, allowing.stats().overflowed) == (True, 3, 1)
    decision = denying.check("new")
    assert (decision.allowed, decision.retry_after, denying.stats().overflowed) == (False, 60.0, 1)
    assert evicting.check("new", 5).allowed
    assert not evicting.allow("new")
    assert 0 not in evicting, "it was idle longest"
    assert evicting.stats().evicted == 1
    for limiter in (allowing, denying):
        assert not limiter.allow(0), "a known key is decided by what it has"


def test_a_batch_is_as_one_by_one(algorithm: Any, clock: NanoClock) -> None:
    from array import array

    batch = RateLimiter(3, algorithm=algorithm, clock=clock)
    single = RateLimiter(3, algorithm=algorithm, clock=clock)
    keys = [key % 7 for key in range(100)]
    assert batch.allow_many(keys) == [single.allow(key) for key in keys]
    clock.ns += 61 * S
    got = batch.allow_many(array("q", keys), 2)
    assert list(got) == [single.allow(key, 2) for key in keys]


def test_the_short_ways_are_the_long_ones(algorithm: Any) -> None:
    limiter = RateLimiter(3, per=3_600, algorithm=algorithm)
    assert [limiter.allow("a") for _ in range(4)] == [True, True, True, False]
    assert [bool(limiter.check("b")) for _ in range(4)] == [True, True, True, False]
    assert [limiter.allow(b"c", 1) for _ in range(4)] == [True, True, True, False]
    assert [limiter.allow(7) for _ in range(4)] == [True, True, True, False]
    denied = limiter.check("a")
    assert (denied.remaining, denied.allowed) == (0, False)
    assert 0 < denied.retry_after <= 2 * 3_600
    assert limiter.stats()[:2] == (12, 5)
    with pytest.raises(TypeError, match="key must be a str"):
        limiter.allow(1.5)
    with pytest.raises(TypeError, match="key must be a str"):
        limiter.check(None)
    limiter.close()
    with pytest.raises(Exception, match="is closed"):
        limiter.allow("a")


def test_handlers_hear_of_it(algorithm: Any) -> None:
    from nanolimit import telemetry

    heard: list[tuple[str, object]] = []
    telemetry.attach(
        "conformance",
        ["allowed", "denied"],
        lambda event, _, meta: heard.append((event, meta["key"])),
    )
    try:
        limiter = RateLimiter(1, algorithm=algorithm)
        limiter.allow("a")
        limiter.check("a")
    finally:
        telemetry.detach("conformance")
    assert heard == [("allowed", "a"), ("denied", "a")]


def test_a_limit_that_changes_holds_at_once(algorithm: Any, clock: NanoClock) -> None:
    limiter = RateLimiter(6, algorithm=algorithm, clock=clock)
    limiter.allow("user", 4)
    limiter._engine.set_limit(3)
    assert not limiter.allow("user", 2)
    limiter._engine.set_limit(6)
    assert limiter.peek("user").remaining == 2
    limiter._engine.set_limit(5)
    assert limiter.allow("other", 5)
    assert not limiter.allow("other")
    verify(limiter)


@pytest.mark.parametrize("limit", [2_048, 1_000_003, 2**24])
@pytest.mark.parametrize("algorithm", METERS)
def test_large_limits(algorithm: Any, limit: int, clock: NanoClock) -> None:
    limiter = RateLimiter(limit, per=86_400, algorithm=algorithm, clock=clock)
    assert limiter.allow("user", limit - 1)
    assert limiter.peek("user").remaining == 1
    assert limiter.allow("user")
    denied = limiter.check("user")
    assert (denied.allowed, denied.remaining) == (False, 0)
    clock.ns += in_ns(denied.retry_after) - 1
    assert not limiter.peek("user")
    clock.ns += 1
    assert limiter.allow("user")
    verify(limiter)


def test_what_it_is_called(algorithm: Any) -> None:
    limiter = RateLimiter(5, algorithm=algorithm, name="api")
    assert limiter.algorithm == algorithm
    assert (f", {algorithm}, 0 of" in repr(limiter)) == (algorithm != "sliding-log")


@pytest.mark.parametrize("algorithm", METERS)
def test_twice_the_limit_is_never_reached_in_a_window(algorithm: Any) -> None:
    """The bound of docs/algorithms.md, by a user who tries at every instant, and by one who waits.

    And it is reached, so that the bound is no smaller.
    """
    limit, window = 10, 1_000
    most = 0
    for start in range(0, 2 * window, 37):
        clock = NanoClock(5_000)
        limiter = RateLimiter(Quota._of(limit, window), algorithm=algorithm, clock=clock)
        passed: list[int] = []
        if limiter.allow("user"):  # opens a window; the rest waits for its end
            passed.append(clock.ns)
        clock.ns += start
        for _ in range(3 * window):
            while limiter.allow("user"):
                passed.append(clock.ns)
            clock.ns += 1
        for first, begins in enumerate(passed):
            within = sum(1 for when in passed[first:] if when < begins + window)
            most = max(most, within)
    assert most == 2 * limit - (2 if algorithm == "sliding-counter" else 1)
