"""Limits above 2,047 and `max_log`, through the whole face: claims, reservations, shared tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from clocks import NS_PER_S, NanoClock
from doors import verify
from nanolimit import Quota, RateLimiter, SharedTableError, check_all, shared
from sharing import in_child, needs_shared


def test_a_million_a_day_at_once_and_one_by_one(clock: NanoClock) -> None:
    clock.ns = 10**15  # on the grid of ticks
    limiter = RateLimiter("1000000/day", clock=clock)
    assert limiter.quota == Quota(1_000_000, per=86_400)
    assert limiter.algorithm == "sliding-log"
    assert limiter.allow("user", 999_999)
    assert limiter.allow_many(["user", "user", "other"]) == [True, False, True]
    decision = limiter.check("user", 800)
    assert (decision.allowed, decision.remaining) == (False, 0)
    assert decision.retry_after == 86_400
    assert limiter.stats().log_bytes == 0, "two units at one instant are one run"
    clock.ns += 86_400 * NS_PER_S
    assert limiter.allow("user", 1_000_000)
    assert len(limiter) == 1
    verify(limiter)


def test_the_largest_limit() -> None:
    limiter = RateLimiter(2**24, per=3_600)
    assert limiter.allow("user", 2**24)
    assert not limiter.allow("user")
    assert limiter.refund("user", 2**24 - 1) == 2**24 - 1
    assert limiter.allow("user", 2**24 - 1)
    assert not limiter.allow("user")


def test_several_limiters_and_reservations(clock: NanoClock) -> None:
    tokens = RateLimiter("100000/minute", clock=clock)
    requests = RateLimiter("5/minute", clock=clock)
    assert check_all([(tokens, "user", 99_000), (requests, "user", 1)])
    assert not check_all([(tokens, "user", 1_001), (requests, "user", 1)])
    assert requests.peek("user").remaining == 4
    clock.ns += NS_PER_S
    reservation = tokens.reserve("user", 1_000)
    assert reservation.ok
    clock.ns += NS_PER_S
    assert not tokens.allow("user")
    reservation.commit(400)
    assert tokens.peek("user").remaining == 600
    assert tokens.allow("user", 600)
    verify(tokens)


def test_a_limit_changes_at_run_time(clock: NanoClock) -> None:
    clock.ns = 10**15
    limiter = RateLimiter(5_000, per=60, clock=clock)
    assert limiter.allow("user", 4_000)
    limiter._engine.set_limit(100_000)
    assert limiter.allow("user", 96_000)
    limiter._engine.set_limit(7)
    decision = limiter.check("user")
    assert (decision.allowed, decision.limit, decision.remaining) == (False, 7, 0)
    clock.ns += 60 * NS_PER_S
    assert limiter.allow("user", 7)
    assert not limiter.allow("user")


def test_max_log_bounds_the_large_ones_of_several_quotas(clock: NanoClock) -> None:
    limiter = RateLimiter("30/second; 3000/minute; 100000/hour", max_log=40, clock=clock)
    for _ in range(2_000):
        clock.ns += NS_PER_S // 20
        assert limiter.allow("user")
    assert limiter.stats().log_bytes <= 3 * 16_384
    verify(limiter)


@needs_shared
def test_processes_share_a_large_log(folder: Path) -> None:
    limiter = RateLimiter(100_000, per=3_600, shared="tokens", max_keys=100, typical=2_000)
    for _ in range(1_500):
        assert limiter.allow("user", 10)

    def spend() -> list[str]:
        mine = RateLimiter(100_000, per=3_600, shared="tokens")
        return [str(sum(mine.allow("user", 10) for _ in range(9_000)))]

    assert in_child(spend) == ["8500"]
    assert not limiter.allow("user")
    verify(limiter)
    assert limiter.reset("user")
    assert limiter.stats().log_bytes == 0
    verify(limiter)


@needs_shared
def test_memory_for_so_many_runs(folder: Path) -> None:
    """`typical` bounds the runs; a call that finds no room is decided by on_full."""
    clock = NanoClock(10**15)
    limiter = RateLimiter(
        1_000_000, per=3_600, shared="tokens", max_keys=4, typical=26, on_full="deny", clock=clock
    )
    counted = 0
    while limiter.allow("user"):
        clock.ns += 10_000
        counted += 1
    assert counted > 4 * 26
    assert limiter.stats().overflowed == 1
    assert limiter.peek("user").remaining == 1_000_000 - counted
    clock.ns += 3_600 * NS_PER_S
    assert limiter.allow("user")
    verify(limiter)


@needs_shared
def test_max_log_is_part_of_the_table(folder: Path) -> None:
    limiter = RateLimiter(5_000, per=60, shared="tokens", max_log=100)
    assert limiter.allow("user", 800)
    info = shared.inspect("tokens")
    assert (info.max_log, info.algorithm, info.problem) == (100, "sliding-log", None)
    size = shared.bytes_for(100_000, 5_000, 60, max_log=100)
    assert info.bytes == size == shared.bytes_for(100_000, 5_000, 60)
    with pytest.raises(SharedTableError, match="its max_log is 100, asked for 200"):
        RateLimiter(5_000, per=60, shared="tokens", max_log=200)
    assert RateLimiter(5_000, per=60, shared="tokens").peek("user").remaining == 4_200
    adopted = RateLimiter(5_000, per=60, shared="tokens", max_log=200, on_mismatch="adopt")
    assert adopted.peek("user").remaining == 4_200
    plain = RateLimiter(5_000, per=60, shared="plain")
    assert shared.inspect("plain").max_log is None
    with pytest.raises(SharedTableError, match="its max_log is None, asked for 100"):
        RateLimiter(5_000, per=60, shared="plain", max_log=100)
    assert plain.allow("user")


@needs_shared
def test_a_large_limit_is_changed_in_place(folder: Path) -> None:
    old = RateLimiter(5_000, per=60, shared="tokens")
    assert old.allow("user", 800)
    new = RateLimiter(900, per=60, shared="tokens", on_mismatch="replace")
    assert new.peek("user").remaining == 100
    assert old.quota.limit == 900
    large = RateLimiter(2**24, per=60, shared="tokens", on_mismatch="replace")
    assert large.peek("user").remaining == old.peek("user").remaining == 2**24 - 800
