"""Each meter against its definition in fractions (reference_meters.py), request by request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clocks import NS_PER_S, NanoClock
from doors import verify
from nanolimit import Quota, RateLimiter
from reference import seconds, tick_ns
from reference_meters import METERS, Meter

KEYS = ("a", "b", "c")
TEN_YEARS_NS = 315_576_000 * NS_PER_S

limits = st.one_of(
    st.integers(1, 12),
    st.sampled_from([2_047, 2_048, 2**20 - 1, 2**24 - 1, 2**24]),
    st.integers(1, 2**24),
)
windows = st.one_of(
    st.integers(1_000, TEN_YEARS_NS),
    st.integers(1_000, 1_100),
    st.sampled_from([1_000, NS_PER_S, 60 * NS_PER_S, 3_600 * NS_PER_S, TEN_YEARS_NS]),
)


def agrees(limiter: RateLimiter, meter: Meter, decision: object, verdict: object) -> None:
    told = (
        decision.allowed,  # type: ignore[attr-defined]
        decision.remaining,  # type: ignore[attr-defined]
        decision.retry_after,  # type: ignore[attr-defined]
        decision.reset_after,  # type: ignore[attr-defined]
        decision.refill_after,  # type: ignore[attr-defined]
    )
    expected = (
        verdict.allowed,  # type: ignore[attr-defined]
        verdict.remaining,  # type: ignore[attr-defined]
        seconds(verdict.retry_after_ns),  # type: ignore[attr-defined]
        seconds(verdict.reset_after_ns),  # type: ignore[attr-defined]
        seconds(verdict.refill_after_ns),  # type: ignore[attr-defined]
    )
    assert told == expected


@pytest.mark.parametrize("algorithm", list(METERS))
@given(st.data())
def test_every_answer_is_the_definitions(algorithm: str, data: st.DataObject) -> None:
    limit, window_ns = data.draw(limits), data.draw(windows)
    tick = tick_ns(window_ns)
    clock = NanoClock(data.draw(st.one_of(st.integers(0, 2 * window_ns), st.integers(0, 2**61))))
    meter = METERS[algorithm](limit, window_ns)
    limiter = RateLimiter(
        Quota._of(limit, window_ns), clock=clock, max_keys=10, algorithm=algorithm
    )  # type: ignore[arg-type]
    last_wait_ns = 0
    for _ in range(data.draw(st.integers(1, 25))):
        share = max(1, window_ns // limit)
        step = data.draw(
            st.one_of(
                st.just(0),
                st.sampled_from(
                    [1, tick, tick - 1, share, window_ns, window_ns - 1, window_ns + 1]
                ),
                st.sampled_from([last_wait_ns, last_wait_ns - 1, 2 * window_ns, -1, -tick]),
                st.integers(0, 2 * window_ns),
                st.integers(-3 * window_ns, 0),
            )
        )
        clock.ns = min(max(0, clock.ns + step), 2**62 - 1)
        key = data.draw(st.sampled_from(KEYS))
        costs = st.one_of(st.sampled_from([0, 1, 1, 1, meter.limit]), st.integers(1, meter.limit))
        cost = data.draw(costs)
        verb = data.draw(
            st.sampled_from(["check"] * 6 + ["peek", "allow", "many", "limit", "reset"])
        )
        if verb == "check":
            verdict = meter.check(key, clock.ns, cost)
            agrees(limiter, meter, limiter.check(key, cost), verdict)
            last_wait_ns = verdict.retry_after_ns or verdict.refill_after_ns
        elif verb == "peek":
            agrees(limiter, meter, limiter.peek(key, cost), meter.peek(key, clock.ns, cost))
        elif verb == "allow":
            assert limiter.allow(key, cost) == meter.check(key, clock.ns, cost).allowed
        elif verb == "many":
            expected = [meter.check(one, clock.ns, cost).allowed for one in (key, "a", key)]
            assert limiter.allow_many([key, "a", key], cost) == expected
        elif verb == "limit":
            new = data.draw(
                st.one_of(limits, st.integers(max(1, limit - 2), min(2**24, limit + 2)))
            )
            meter.set_limit(new)
            limiter._engine.set_limit(new)
        else:
            assert limiter.reset(key) == meter.holds(key, clock.ns)
            meter.forget(key)
        assert (key in limiter) == meter.contains(key, clock.ns)
    assert len(limiter) == len(meter.live_keys(clock.ns))
    verify(limiter)
