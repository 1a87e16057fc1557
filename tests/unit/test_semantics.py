"""What a sliding window is: exact edges, costs all or nothing, a retry_after that holds."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from clocks import NS_PER_S, NanoClock
from doors import fingerprint, verify
from nanolimit import ManualClock, RateLimiter
from reference import Reference, seconds, tick_ns

#: Limits at which the log of a key changes its shape: in the slot, or in chunks of 8, 16 ... 2,048.
LIMITS = [1, 2, 5, 6, 7, 8, 9, 16, 17, 64, 100, 255, 256, 1_000, 1_024, 2_046, 2_047]

WINDOWS_S = [1e-6, 0.001, 1, 60, 3_600, 86_400, 7 * 86_400, 315_576_000]


@pytest.mark.parametrize("per", WINDOWS_S)
@pytest.mark.parametrize("limit", LIMITS)
def test_everybody_gets_all_and_nobody_more(limit: int, per: float, clock: NanoClock) -> None:
    limiter = RateLimiter(limit, per=per, clock=clock)
    for key in ("a", "b"):
        assert [limiter.allow(key) for _ in range(limit + 3)] == [True] * limit + [False] * 3


@pytest.mark.parametrize("per", WINDOWS_S)
@pytest.mark.parametrize("limit", LIMITS)
def test_exactly_one_window_old_is_out(limit: int, per: float) -> None:
    """On the grid the boundary is exact to the nanosecond."""
    window_ns = round(per * NS_PER_S)
    clock = NanoClock(5 * 10**17)  # a multiple of every tick
    assert clock.ns % tick_ns(window_ns) == 0
    assert window_ns % tick_ns(window_ns) == 0
    limiter = RateLimiter(limit, per=per, clock=clock)
    assert all(limiter.allow("user") for _ in range(limit))
    clock.ns += window_ns - 1
    assert not limiter.allow("user")
    assert "user" in limiter
    clock.ns += 1
    assert "user" not in limiter
    assert [limiter.allow("user") for _ in range(limit + 1)] == [True] * limit + [False]


@pytest.mark.parametrize("per", WINDOWS_S)
@pytest.mark.parametrize("limit", [1, 3, 6, 7, 40, 2_047])
def test_each_stamp_leaves_on_its_own(limit: int, per: float) -> None:
    """Stamps spread over the window come free one at a time, each at its own instant."""
    window_ns = round(per * NS_PER_S)
    tick = tick_ns(window_ns)
    start = 5 * 10**17
    clock = NanoClock(start)
    limiter = RateLimiter(limit, per=per, clock=clock)
    apart = max(1, window_ns // tick // (limit + 1)) * tick
    admitted = []
    for nth in range(min(limit, window_ns // apart)):
        clock.ns = start + nth * apart
        assert limiter.allow("user")
        admitted.append(clock.ns)
    while limiter.allow("user"):
        admitted.append(clock.ns)
    assert len(admitted) == limit
    for when in sorted(set(admitted)):
        units = admitted.count(when)
        clock.ns = when + window_ns - 1
        assert not limiter.allow("user")
        clock.ns += 1
        assert [limiter.allow("user") for _ in range(units + 1)] == [True] * units + [False]


@pytest.mark.parametrize("per", [*WINDOWS_S, 0.123456789, math.pi * 1e6])
@pytest.mark.parametrize("limit", [1, 5, 7, 300])
def test_retry_after_is_kept_and_not_a_nanosecond_early(limit: int, per: float) -> None:
    """Off the grid too: after clock.advance(retry_after) the same call is allowed."""
    clock = ManualClock(start=12_345.678_901_234)
    limiter = RateLimiter(limit, per=per, clock=clock)
    for _ in range(3 * limit):
        decision = limiter.check("user")
        if decision.allowed:
            clock.advance(per / (2 * limit + 1))
            continue
        assert decision.retry_after > 0
        clock.advance(decision.retry_after)
        assert limiter.allow("user")


@pytest.mark.parametrize("per", [1, 60, 86_400, 0.123456789])
@pytest.mark.parametrize("cost", [1, 2, 3])
def test_a_nanosecond_before_retry_after_is_too_early(per: float, cost: int) -> None:
    clock = NanoClock(10**15 + 7)
    limiter = RateLimiter(3, per=per, clock=clock)
    for _ in range(3):
        assert limiter.allow("user")
        clock.ns += round(per * NS_PER_S) // 7
    promised = limiter.check("user", cost).retry_after
    start = clock.ns
    first = start + math.ceil(Fraction(promised) * NS_PER_S)
    clock.ns = first - 2  # the float may be up to a nanosecond above the instant
    assert not limiter.peek("user", cost).allowed
    clock.ns = first
    assert limiter.allow("user", cost)


def test_costs_are_all_or_nothing(clock: NanoClock) -> None:
    limiter = RateLimiter(5, per=60, clock=clock)
    assert limiter.allow("user", cost=3)
    assert not limiter.allow("user", cost=3)
    assert limiter.peek("user").remaining == 2, "a refusal takes nothing"
    assert limiter.allow("user", 2)
    assert not limiter.allow("user", 1)
    clock.ns += 60 * NS_PER_S + 100
    assert limiter.allow("user", cost=5)
    assert limiter.peek("user").remaining == 0


@pytest.mark.parametrize("limit", [5, 7, 500])
def test_a_cost_waits_for_as_many_stamps_as_it_needs(limit: int) -> None:
    clock = NanoClock(10**18)
    limiter = RateLimiter(limit, per=60, clock=clock)
    for _ in range(limit):
        assert limiter.allow("user")
        clock.ns += NS_PER_S // 100
    for cost in range(1, limit + 1):
        due = 10**18 + (cost - 1) * NS_PER_S // 100 + 60 * NS_PER_S
        assert limiter.check("user", cost).retry_after == seconds(due - clock.ns)


def test_a_cost_of_nothing_is_allowed_and_leaves_no_trace(clock: NanoClock) -> None:
    limiter = RateLimiter(1, per=60, clock=clock)
    assert limiter.allow("user", cost=0)
    assert limiter.check("user", 0).allowed
    assert "user" not in limiter
    assert limiter.stats().keys == 0
    assert limiter.allow("user")
    assert limiter.allow("user", 0), "even to whom nothing is left"
    decision = limiter.check("user", 0)
    assert decision.allowed
    assert decision.remaining == 0
    assert decision.retry_after == 0.0
    stats = limiter.stats()
    assert (stats.allowed, stats.denied) == (1, 0)


def test_what_a_decision_says() -> None:
    clock = NanoClock(10**18)
    limiter = RateLimiter(3, per=60, clock=clock)

    unused = limiter.peek("user")
    assert (unused.allowed, unused.limit, unused.remaining) == (True, 3, 3)
    assert (unused.retry_after, unused.reset_after, unused.refill_after) == (0.0, 0.0, 0.0)

    first = limiter.check("user")
    assert (first.allowed, first.limit, first.remaining) == (True, 3, 2)
    assert (first.retry_after, first.reset_after, first.refill_after) == (0.0, 60.0, 60.0)

    clock.ns += 10 * NS_PER_S
    second = limiter.check("user", 2)
    assert (second.allowed, second.remaining) == (True, 0)
    assert (second.retry_after, second.reset_after, second.refill_after) == (0.0, 60.0, 50.0)

    clock.ns += 10 * NS_PER_S
    denied = limiter.check("user")
    assert (denied.allowed, denied.limit, denied.remaining) == (False, 3, 0)
    assert (denied.retry_after, denied.reset_after, denied.refill_after) == (40.0, 50.0, 40.0)
    assert limiter.check("user", 2).retry_after == 50.0
    assert limiter.peek("user", 3).retry_after == 50.0

    assert denied.quota is limiter.quota
    assert denied.limit == denied.quota.limit
    assert denied.quota.per == 60.0
    assert bool(first) is True
    assert bool(denied) is False

    clock.ns += 40 * NS_PER_S
    later = limiter.peek("user")
    assert (later.allowed, later.remaining) == (True, 1)
    assert (later.retry_after, later.reset_after, later.refill_after) == (0.0, 10.0, 10.0)


def test_a_denied_cost_still_tells_what_fits() -> None:
    clock = NanoClock(10**18)
    limiter = RateLimiter(5, per=60, clock=clock)
    assert limiter.allow("user", 3)
    denied = limiter.check("user", 3)
    assert not denied.allowed
    assert denied.remaining == 2


def test_peek_counts_nothing(clock: NanoClock) -> None:
    limiter = RateLimiter(2, per=60, clock=clock)
    for _ in range(5):
        assert limiter.peek("user").allowed
    assert "user" not in limiter
    assert limiter.stats().keys == 0
    assert [limiter.allow("user") for _ in range(3)] == [True, True, False]
    assert not limiter.peek("user").allowed
    stats = limiter.stats()
    assert (stats.allowed, stats.denied) == (2, 1)


@pytest.mark.parametrize("limit", [1, 5, 7, 100])
def test_a_refusal_writes_no_stamp(limit: int) -> None:
    """Who keeps asking is not punished: the window opens when it would have opened anyway."""
    clock = NanoClock(10**18)
    limiter = RateLimiter(limit, per=60, clock=clock)
    assert limiter.allow("user", limit)
    for _ in range(59):
        clock.ns += NS_PER_S
        assert not limiter.allow("user")
    clock.ns += NS_PER_S
    assert limiter.allow("user", limit)


def test_refusals_move_no_memory(clock: NanoClock) -> None:
    limiter = RateLimiter(1, per=60, clock=clock, max_keys=10)
    limiter.allow("user")
    before = limiter.stats()
    for _ in range(1_000):
        assert not limiter.allow("user")
    after = limiter.stats()
    assert after.denied == before.denied + 1_000
    assert (after.allowed, after.keys, after.memory_bytes) == (
        before.allowed,
        before.keys,
        before.memory_bytes,
    )


@pytest.mark.parametrize("limit", [1, 5, 7, 100])
@pytest.mark.parametrize("back_ns", [1, 99, NS_PER_S, 30 * NS_PER_S, 86_400 * NS_PER_S, 10**18])
def test_time_never_runs_backwards_inside_a_key(limit: int, back_ns: int) -> None:
    """A clock that goes back neither frees anything nor blocks longer than the clock is behind."""
    start = 10**18
    clock = NanoClock(start)
    limiter = RateLimiter(limit, per=60, clock=clock)
    reference = Reference(limit, 60 * NS_PER_S)
    assert limiter.allow("user", limit)
    assert reference.allow("user", start, limit)
    clock.ns = start - back_ns
    assert "user" in limiter
    assert not limiter.allow("user")
    decision = limiter.check("user")
    assert decision.retry_after == seconds(60 * NS_PER_S + back_ns)
    assert limiter.allow("newcomer"), "other keys have a time of their own"
    clock.ns = start + 60 * NS_PER_S
    assert limiter.allow("user")


def test_an_accept_behind_the_newest_stamp_is_stamped_with_it() -> None:
    clock = NanoClock(10**18)
    limiter = RateLimiter(2, per=60, clock=clock)
    assert limiter.allow("user")
    clock.ns -= 30 * NS_PER_S
    assert limiter.allow("user")
    clock.ns = 10**18 + 60 * NS_PER_S - 1
    assert not limiter.allow("user")
    clock.ns += 1
    assert limiter.allow("user", 2)


@pytest.mark.parametrize("limit", [1, 6, 7, 300, 2_047])
@pytest.mark.parametrize("per", [1e-6, 1, 86_400, 315_576_000])
def test_the_ends_of_time(limit: int, per: float) -> None:
    """From the first instant that a clock can show to the last."""
    clock = NanoClock(0)
    limiter = RateLimiter(limit, per=per, clock=clock)
    assert [limiter.allow("user") for _ in range(limit + 1)] == [True] * limit + [False]
    clock.ns = 2**62 - 1
    assert [limiter.allow("user") for _ in range(limit + 1)] == [True] * limit + [False]
    clock.ns = 0
    assert not limiter.allow("user")
    denied = limiter.check("user")
    assert denied.retry_after >= (2**62 - 1) / NS_PER_S


def test_reset_forgets_one_key(clock: NanoClock) -> None:
    limiter = RateLimiter(2, per=60, clock=clock)
    assert limiter.reset("user") is False
    assert limiter.allow_many(["user", "user", "user", "other"]) == [True, True, False, True]
    assert limiter.reset("user") is True
    assert "user" not in limiter
    assert limiter.reset("user") is False
    assert limiter.peek("other").remaining == 1
    assert [limiter.allow("user") for _ in range(3)] == [True, True, False]


def test_clear_forgets_all(clock: NanoClock) -> None:
    limiter = RateLimiter(1, per=60, clock=clock)
    keys = [f"user:{nth}" for nth in range(5_000)]
    assert all(limiter.allow_many(keys))
    assert not any(limiter.allow_many(keys))
    limiter.clear()
    assert len(limiter) == 0
    assert limiter.stats().keys == 0
    assert limiter.stats().allowed == 5_000, "counters go on"
    assert all(limiter.allow_many(keys))
    verify(limiter)


def test_len_counts_keys_that_hold_a_live_stamp(clock: NanoClock) -> None:
    limiter = RateLimiter(2, per=60, clock=clock)
    for nth in range(10):
        limiter.allow(nth)
        clock.ns += 10 * NS_PER_S
    # keys 0 .. 4 are a window old or more (off the grid, the stamp of key 4 is a tick late)
    assert len(limiter) == sum(nth in limiter for nth in range(10)) == 6
    clock.ns += 100
    assert len(limiter) == 5
    limiter.allow(0)
    assert len(limiter) == 6


def test_limiters_share_nothing(clock: NanoClock) -> None:
    one, other = (RateLimiter(1, per=60, clock=clock) for _ in range(2))
    assert one.allow("user")
    assert other.allow("user")
    assert not one.allow("user")
    assert fingerprint(one, "user") != fingerprint(other, "user"), "each has a secret"
    assert fingerprint(one, "user") == fingerprint(one, "user")
