"""A slot keeps 32 bits of a tick and an epoch of 2^30: nobody may notice when they turn over."""

from __future__ import annotations

import pytest

from clocks import END_OF_TIME_NS, NS_PER_S, NanoClock
from nanolimit import RateLimiter
from reference import MOST_TICKS, Reference, tick_ns

#: Windows that are exactly 2^30 ticks long, with the tick in front; and ordinary ones.
WINDOWS_NS = [1_000, NS_PER_S, 2**30, 2 * 2**30, 5 * 2**30, 60 * NS_PER_S, 86_400 * NS_PER_S]

LIMITS = [1, 2, 6, 7, 15, 16, 100, 300, 2_047]


def both(limit: int, window_ns: int, now_ns: int) -> tuple[RateLimiter, Reference, NanoClock]:
    clock = NanoClock(now_ns)
    limiter = RateLimiter(limit, per=window_ns / NS_PER_S, clock=clock)
    return limiter, Reference(limit, window_ns), clock


@pytest.mark.parametrize("bits", [30, 31, 32, 33, 40])
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("window_ns", WINDOWS_NS)
def test_walking_over_an_edge(window_ns: int, limit: int, bits: int) -> None:
    """Begin half a window before the turn, go on to one and a half after it."""
    tick = tick_ns(window_ns)
    edge = tick << bits
    assert edge < END_OF_TIME_NS - 2 * window_ns
    start = max(0, edge - window_ns // 2)
    limiter, reference, clock = both(limit, window_ns, start)
    for nth in range(33):
        now = start + nth * window_ns // 16
        for clock.ns in (now, now + 1):
            cost = max(1, limit // 9)
            assert limiter.allow("user", cost) is reference.allow("user", clock.ns, cost)
            assert limiter.peek("user").remaining == reference.peek("user", clock.ns).remaining


@pytest.mark.parametrize("turns", [1, 2, 3, 4, 5, 8, 1_000])
@pytest.mark.parametrize("bits", [30, 31, 32])
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("window_ns", WINDOWS_NS)
def test_idle_for_whole_turns(window_ns: int, limit: int, bits: int, turns: int) -> None:
    """After whole turns of the 32-bit tick the stamps look new, and must not be taken for it."""
    tick = tick_ns(window_ns)
    limiter, _, clock = both(limit, window_ns, 7 * tick)
    assert limiter.allow("user", limit)
    for off in (-1, 0, 1):
        later = 7 * tick + turns * (tick << bits) + off * tick
        if later < 7 * tick + window_ns + tick or later >= END_OF_TIME_NS:
            continue
        clock.ns = later
        assert "user" not in limiter
        assert limiter.peek("user").remaining == limit
    clock.ns = min(later, END_OF_TIME_NS - 1)
    if clock.ns >= 7 * tick + window_ns:
        assert [limiter.allow("user") for _ in range(limit + 1)] == [True] * limit + [False]


@pytest.mark.parametrize("turns", [1, 2, 4, 5, 1_000])
@pytest.mark.parametrize("bits", [30, 32])
@pytest.mark.parametrize("limit", LIMITS)
def test_back_by_whole_turns(limit: int, bits: int, turns: int) -> None:
    """A clock that falls back by whole turns of the tick is behind, and not a little ahead."""
    window_ns = 60 * NS_PER_S
    tick = tick_ns(window_ns)
    start = 2**61
    limiter, reference, clock = both(limit, window_ns, start)
    assert limiter.allow("user", limit)
    assert reference.allow("user", start, limit)
    for off in (-1, 0, 1):
        clock.ns = start - turns * (tick << bits) + off * tick
        if clock.ns >= 0:
            assert "user" in limiter
            assert not limiter.allow("user")
    clock.ns = start + window_ns + tick
    assert limiter.allow("user", limit)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("window_ns", [2**31, 5 * 2**30])
@pytest.mark.parametrize("into", [0, 1, MOST_TICKS // 2, MOST_TICKS - 1])
def test_the_longest_distance_that_32_bits_hold(window_ns: int, limit: int, into: int) -> None:
    """The oldest stamp a whole window before the newest, and now at the end of the next epoch."""
    tick = tick_ns(window_ns)
    assert window_ns == tick * MOST_TICKS
    newest = 5 * MOST_TICKS  # the first tick of an epoch
    limiter, reference, clock = both(limit, window_ns, (newest - MOST_TICKS) * tick)
    half = max(1, limit // 2)
    assert limiter.allow("user", half)
    assert reference.allow("user", clock.ns, half)
    clock.ns = newest * tick - 1  # rounds up to `newest`, and down to a tick before it
    assert limiter.allow("user", half) is reference.allow("user", clock.ns, half)
    for epochs in (0, 1, 2, 3):
        clock.ns = (newest + epochs * MOST_TICKS + into) * tick
        assert limiter.peek("user").remaining == reference.peek("user", clock.ns).remaining
        assert ("user" in limiter) is reference.contains("user", clock.ns)
    clock.ns = (newest + 2 * MOST_TICKS - 1) * tick
    assert limiter.allow("user", limit)


@pytest.mark.parametrize("bits", range(33, 62))
@pytest.mark.parametrize("limit", [6, 63, 64, 255, 1_000, 2_047])
@pytest.mark.parametrize("window_ns", [1_000, 10**6, NS_PER_S, 60 * NS_PER_S])
def test_idle_for_as_long_as_the_epoch_turns(window_ns: int, limit: int, bits: int) -> None:
    """A slot keeps as many bits of the epoch as fit; nobody may notice how many they are.

    The log is short before and outgrows the slot after, so that it moves as time turns over.
    """
    idle_ns = tick_ns(window_ns) << bits
    few, many = min(2, limit), min(5, limit)
    if idle_ns >= END_OF_TIME_NS - 10 * window_ns:
        return
    for off_ns in (-window_ns // 2, -1, 0, 7, window_ns // 2):
        limiter, reference, clock = both(limit, window_ns, 5 * window_ns)
        assert limiter.allow("user", few)
        assert reference.allow("user", clock.ns, few)
        start = clock.ns
        for later in (idle_ns + off_ns, 2 * idle_ns, idle_ns):
            clock.ns = min(start + later, END_OF_TIME_NS - 1)
            assert limiter.peek("user").remaining == reference.peek("user", clock.ns).remaining
            expected = reference.check("user", clock.ns, many)
            assert expected is not None
            decision = limiter.check("user", many)
            assert (decision.allowed, decision.remaining) == (expected.allowed, expected.remaining)
