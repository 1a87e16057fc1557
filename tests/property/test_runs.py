"""Limits above 2,047, where a log is kept in runs (core/run.h), against the plain-Python reference.

And `max_log`: what it admits an exact limiter admits, and what it denies would be too many if
requests counted a slot longer.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clocks import NS_PER_S, NanoClock
from doors import verify
from nanolimit import Decision, Quota, RateLimiter
from reference import Reference, Verdict, seconds, tick_ns

MINUTE_NS = 60 * NS_PER_S
DAY_NS = 86_400 * NS_PER_S
KEYS = ("a", "b")


def fewer(times: int) -> int:
    """Examples of a slow test: the reference keeps each unit for itself."""
    return max(1, settings.default.max_examples // times)  # type: ignore[union-attr]


limits = st.sampled_from([2_047, 2_048, 2_049, 3_000, 5_000])
windows = st.one_of(
    st.sampled_from([1_000, 10**6, NS_PER_S, MINUTE_NS, DAY_NS, 2**30 + 1]),
    st.integers(1_000, 315_576_000 * NS_PER_S),
)


def told(decision: Decision) -> tuple[object, ...]:
    return (
        decision.allowed,
        decision.remaining,
        decision.retry_after,
        decision.reset_after,
        decision.refill_after,
    )


def expected(verdict: Verdict | None) -> tuple[object, ...]:
    assert verdict is not None
    return (
        verdict.allowed,
        verdict.remaining,
        seconds(verdict.retry_after_ns),
        seconds(verdict.reset_after_ns),
        seconds(verdict.refill_after_ns),
    )


def steps(window_ns: int, wait_ns: int) -> st.SearchStrategy[int]:
    tick = tick_ns(window_ns)
    return st.one_of(
        st.just(0),
        st.sampled_from([1, tick, tick - 1, window_ns, window_ns - 1, window_ns + 1]),
        st.sampled_from([wait_ns, wait_ns - 1, 2 * window_ns, -1, -tick, -window_ns]),
        st.integers(0, window_ns // 8 + 1),
        st.integers(0, 2 * window_ns),
        st.integers(-2 * window_ns, 0),
    )


def costs(limit: int) -> st.SearchStrategy[int]:
    few = st.sampled_from([0, 1, 1, 2, limit, limit - 1])
    return st.one_of(few, st.integers(1, limit), st.integers(1, limit // 8))


@pytest.mark.parametrize("where", ["private", "shared"])
@settings(max_examples=fewer(5))
@given(st.data())
def test_every_answer_is_the_references(where: str, data: st.DataObject) -> None:
    limit, window_ns = data.draw(limits), data.draw(windows)
    shared: dict[str, Any] = {"shared": True, "typical": limit} if where == "shared" else {}
    if where == "shared":
        pytest.importorskip("fcntl")
    tick = tick_ns(window_ns)
    clock = NanoClock(data.draw(st.one_of(st.integers(0, 2 * window_ns), st.integers(0, 2**61))))
    reference = Reference(limit, window_ns)
    limiter = RateLimiter(Quota._of(limit, window_ns), clock=clock, max_keys=4, **shared)
    # Sometimes it can't: the reference lets go of what is out when it counts, wherever it counts.
    tokens: list[tuple[str, int, int]] = []
    wait_ns = 0
    for _ in range(data.draw(st.integers(1, 25))):
        clock.ns = min(max(0, clock.ns + data.draw(steps(window_ns, wait_ns))), 2**62 - 1)
        key, cost = data.draw(st.sampled_from(KEYS)), data.draw(costs(limit))
        verb = data.draw(
            st.sampled_from(
                ["check"] * 5 + ["stream"] * 3 + ["refund", "cancel", "peek", "many", "reset"]
            )
        )
        if verb == "check":
            verdict = reference.check(key, clock.ns, cost)
            assert told(limiter.check(key, cost)) == expected(verdict)
            assert verdict is not None
            wait_ns = verdict.retry_after_ns or verdict.refill_after_ns
            if verdict.allowed and cost:
                tokens.append((key, reference.newest(key), cost))
        elif verb == "stream":  # runs beyond what a root holds, now and then
            pace = data.draw(st.sampled_from([tick, 3 * tick, window_ns // 2_000 + 1]))
            for _ in range(data.draw(st.sampled_from([3, 30, 130, 1_100, 2_100]))):
                clock.ns = min(clock.ns + pace, 2**62 - 1)
                assert limiter.allow(key) == reference.allow(key, clock.ns)
        elif verb == "refund":
            assert limiter.refund(key, cost) == reference.refund(key, clock.ns, cost)
        elif verb == "cancel" and tokens:  # exactly what was stamped, if it still counts
            key, stamp, cost = data.draw(st.sampled_from(tokens))
            given = limiter._engine.give_back(key, cost, (stamp, tick))
            assert given == reference.refund(key, clock.ns, cost, stamp)
        elif verb == "peek":
            assert told(limiter.peek(key, cost)) == expected(reference.peek(key, clock.ns, cost))
        elif verb == "many":
            told_many = limiter.allow_many([key, "a", key], cost)
            assert told_many == [reference.allow(one, clock.ns, cost) for one in (key, "a", key)]
        elif verb == "reset":
            assert limiter.reset(key) == reference.contains(key, clock.ns)
            reference.forget(key)
        assert (key in limiter) == reference.contains(key, clock.ns)
    assert len(limiter) == len(reference.live_keys(clock.ns))
    verify(limiter)
    limiter.clear()
    verify(limiter)
    assert limiter.stats().log_bytes == 0


@settings(max_examples=fewer(20))
@given(st.data())
def test_a_hundred_thousand(data: st.DataObject) -> None:
    limit = 100_000
    clock = NanoClock(10**15)
    reference = Reference(limit, DAY_NS)
    limiter = RateLimiter(Quota._of(limit, DAY_NS), clock=clock)
    for _ in range(data.draw(st.integers(1, 12))):
        clock.ns = max(0, clock.ns + data.draw(steps(DAY_NS, 0)))
        cost = data.draw(costs(limit))
        assert told(limiter.check("a", cost)) == expected(reference.check("a", clock.ns, cost))
        units = data.draw(costs(limit))
        assert limiter.refund("a", units) == reference.refund("a", clock.ns, units)
    verify(limiter)


@settings(max_examples=fewer(4))
@given(st.data())
def test_several_quotas_count_in_all_or_in_none(data: st.DataObject) -> None:
    quotas = [(60, NS_PER_S), (2_500, MINUTE_NS), (6_000, 60 * MINUTE_NS)]
    clock = NanoClock(10**15)
    references = [Reference(*quota) for quota in quotas]
    limiter = RateLimiter([Quota._of(*quota) for quota in quotas], clock=clock, max_keys=4)
    for _ in range(data.draw(st.integers(1, 40))):
        clock.ns += data.draw(
            st.one_of(
                st.sampled_from([0, 1, NS_PER_S, MINUTE_NS, -NS_PER_S]), st.integers(0, MINUTE_NS)
            )
        )
        for cost in data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=60)):
            clock.ns += 100_000
            fits = all(each.peek("a", clock.ns, cost).allowed for each in references)
            assert limiter.allow("a", cost) == fits
            if fits:
                for each in references:
                    each.check("a", clock.ns, cost)
        peeks = [each.peek("a", clock.ns, 60) for each in references]
        decision = limiter.peek("a", 60)
        assert decision.allowed == all(peek.allowed for peek in peeks)
        if not decision.allowed:
            slowest = max(peek.retry_after_ns for peek in peeks)
            assert decision.retry_after == seconds(slowest)
    verify(limiter)


def test_two_hundred_thousand_runs_come_and_go() -> None:
    """Pieces are taken as the log grows, and given back as it leaves the window."""
    limit, requests, apart_ns = 150_000, 200_000, 1_000_000
    clock = NanoClock(10**15)
    limiter = RateLimiter(Quota._of(limit, DAY_NS), clock=clock)
    begin = clock.ns
    for i in range(requests):
        clock.ns = begin + i * apart_ns
        assert limiter.allow("a") == (i < limit)
    full = limiter.stats().log_bytes
    assert 8 * limit <= full < 9 * limit
    decision = limiter.check("a", 70_000)
    leaves_ns = begin + 69_999 * apart_ns + DAY_NS
    assert decision.retry_after == pytest.approx((leaves_ns - clock.ns) / NS_PER_S, abs=1e-6)
    for gone in (0, 1, 1_023, 1_024, 50_000):  # at the instant at which so many have left
        clock.ns = begin + (gone - 1) * apart_ns + DAY_NS if gone else begin + DAY_NS - 1
        assert limiter.peek("a").remaining == gone
    assert limiter.check("a", 50_000).allowed
    assert not limiter.allow("a")
    clock.ns = begin + (limit - 1) * apart_ns + DAY_NS
    assert limiter.peek("a").remaining == 100_000
    verify(limiter)
    for _ in range(200):
        clock.ns += apart_ns
        assert limiter.allow("a")
    assert limiter.stats().log_bytes <= 3 * 16_384  # spans: of a root, an index and its pieces
    clock.ns += 2 * DAY_NS
    assert "a" not in limiter
    assert limiter.evict() == 1
    assert limiter.stats().log_bytes == 0
    verify(limiter)


def test_a_refund_in_the_middle_of_many_pieces_is_exact() -> None:
    clock = NanoClock(10**15)
    limiter = RateLimiter(Quota._of(20_000, DAY_NS), clock=clock)
    reference = Reference(20_000, DAY_NS)
    reservations = []
    for i in range(5_000):
        clock.ns += 10**9
        cost = 1 + i % 3
        reservations.append((limiter.reserve("a", cost), cost))
        reference.check("a", clock.ns, cost)
        reservations[-1] += (reference.newest("a"),)  # type: ignore[assignment]
    for i in (0, 1, 1_016, 1_023, 1_024, 1_025, 2_047, 2_048, 3_333, 4_998, 4_999):
        reservation, cost, stamp = reservations[i]  # type: ignore[misc]
        reservation.cancel()
        reference.refund("a", clock.ns, cost, stamp)
        for asked in (1, 15_000, 20_000):
            verdict = reference.peek("a", clock.ns, asked)
            assert told(limiter.peek("a", asked)) == expected(verdict)
    verify(limiter)


# --- max_log -------------------------------------------------------------------------------------


class Admitted:
    """All that was admitted of one key: (tick of the stamp that it should have, units)."""

    def __init__(self) -> None:
        self.ticks: list[int] = []
        self.sums = [0]

    def add(self, tick: int, units: int) -> None:
        self.ticks.append(tick)
        self.sums.append(self.sums[-1] + units)

    def units(self, after: int) -> int:
        """Units whose stamps are later than so many ticks."""
        return self.sums[-1] - self.sums[bisect_left(self.ticks, after + 1)]

    def stamps(self, after: int) -> int:
        return len(set(self.ticks[bisect_left(self.ticks, after + 1) :]))


@settings(max_examples=fewer(2))
@given(st.data())
def test_max_log_is_never_one_too_many_and_late_by_less_than_a_slot(data: st.DataObject) -> None:
    max_log = data.draw(st.sampled_from([16, 17, 40, 100]))
    limit = data.draw(st.sampled_from([max_log, 150, 2_047, 5_000]).filter(lambda n: n >= max_log))
    window_ns = data.draw(st.sampled_from([1_000, NS_PER_S, DAY_NS, 7 * NS_PER_S + 1]))
    tick = tick_ns(window_ns)
    window = -(-window_ns // tick)
    slot = -(-window // (max_log // 2))
    clock = NanoClock(data.draw(st.sampled_from([0, 10**15 + 1, 2**30 * tick - 5])))
    limiter = RateLimiter(Quota._of(limit, window_ns), clock=clock, max_log=max_log)
    exact = Reference(limit, window_ns)
    admitted, is_exact = Admitted(), True
    for _ in range(data.draw(st.integers(1, 12))):
        pace = data.draw(st.sampled_from([0, tick, window_ns // 1_000, window_ns // 60, slot]))
        jump = data.draw(st.one_of(st.just(0), st.integers(0, 2 * window_ns)))
        clock.ns += jump
        for _ in range(data.draw(st.integers(1, 300))):
            clock.ns += pace
            now, up = clock.ns // tick, -(-clock.ns // tick)
            cost = data.draw(st.sampled_from([1, 1, limit // 50 or 1])) if pace else limit // 3 or 1
            # Exact while the log has no more entries than that.
            is_exact = is_exact and admitted.stamps(now - window) < max_log
            decision = limiter.check("a", cost)
            if is_exact:
                assert told(decision) == expected(exact.check("a", clock.ns, cost))
            if decision:
                assert admitted.units(now - window) + cost <= limit
                admitted.add(up, cost)
            else:
                assert admitted.units(now - window - slot) + cost > limit
                wait = decision.retry_after
                assert 0 < wait <= seconds(window_ns + slot * tick + 2 * tick)
    verify(limiter)  # which counts the entries, too


def test_max_log_bounds_the_memory_of_a_million_a_day() -> None:
    clock = NanoClock(10**15)
    limiter = RateLimiter("1000000/day", max_log=1_000, clock=clock)
    for _ in range(30_000):
        clock.ns += 5 * NS_PER_S
        assert limiter.allow("a")
    assert limiter.stats().log_bytes <= 3 * 16_384  # a root, an index and up to three pieces
    verify(limiter)
    # 17,280 requests a day: of a window and a slot at most are counted.
    counted = 1_000_000 - limiter.peek("a").remaining
    assert 17_280 <= counted <= 17_280 + 86_400 // 500 // 5 + 1


def test_max_log_never_takes_time_for_later_than_it_is() -> None:
    """A stamp that was moved up lies ahead of the clock; what is older must not leave for that."""
    clock = NanoClock(10**15)
    limiter = RateLimiter(Quota._of(100, 1_600), clock=clock, max_log=16)
    begin = clock.ns
    for i in range(16):
        clock.ns = begin + 50 + i
        assert limiter.allow("a")
    clock.ns = begin + 1_610
    assert limiter.allow("a")  # the 17th: moved up, to a multiple of 200
    assert limiter.peek("a").reset_after == seconds(190 + 1_600)
    assert limiter.peek("a").remaining == 100 - 17
    clock.ns = begin + 1_649
    assert limiter.peek("a").remaining == 100 - 17
    clock.ns = begin + 1_650
    assert limiter.peek("a").remaining == 100 - 16
    clock.ns = begin  # back: time stays where the 17th may have come at the earliest
    assert limiter.peek("a").remaining == 100 - 17
    verify(limiter)
