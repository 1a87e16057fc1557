"""ManualClock: exact nanoseconds, bounds, threads; and the fixture for users."""

from __future__ import annotations

import threading
import weakref
from datetime import timedelta

import pytest

from nanolimit import ManualClock, RateLimiter
from nanolimit.clock import divided, nanoseconds, shown

END_NS = 2**62


def test_it_starts_at_zero_and_stands_still() -> None:
    clock = ManualClock()
    assert [clock(), clock(), clock.now_ns()] == [0.0, 0.0, 0]
    assert type(clock()) is float
    assert type(clock.now_ns()) is int


@pytest.mark.parametrize(
    ("start", "ns"),
    [
        (0, 0),
        (1.5, 1_500_000_000),
        (10**9, 10**18),
        (timedelta(seconds=2, microseconds=3), 2_000_003_000),
        (0.1, 100_000_000),
        (4e-10, 0),
    ],
)
def test_start(start: float | timedelta, ns: int) -> None:
    assert ManualClock(start).now_ns() == ns
    assert ManualClock(start=start)() == ns / 1e9


def test_steps_add_up_exactly() -> None:
    clock = ManualClock()
    for _ in range(100_000):
        clock.advance(0.1)
    assert clock.now_ns() == 10_000 * 10**9
    clock.advance(timedelta(days=1))
    clock.advance(3)
    assert clock() == 10_000 + 86_400 + 3


def test_it_steps_back() -> None:
    clock = ManualClock(10)
    clock.advance(-2.5)
    assert clock() == 7.5
    clock.advance(timedelta(seconds=-7.5))
    assert clock.now_ns() == 0


@pytest.mark.parametrize(
    "step",
    [
        -1e-9,
        -1,
        pytest.param(-(10**5000), id="-huge"),
        1e10,
        pytest.param(10**5000, id="huge"),
        -1e300,
        timedelta.max,
    ],
)
def test_out_of_range_changes_nothing(step: float) -> None:
    clock = ManualClock()
    with pytest.raises(ValueError, match=r"out of 0 \.\. 2\*\*62 ns.*it shows 0 ns") as caught:
        clock.advance(step)
    assert clock.now_ns() == 0
    assert len(str(caught.value)) < 300


def test_the_last_nanosecond() -> None:
    clock = ManualClock((END_NS - 1) // 10**9)
    clock.advance(timedelta(microseconds=427_387))
    clock.advance(9.03e-7)
    assert clock.now_ns() == END_NS - 1
    with pytest.raises(ValueError, match="seconds would take"):
        clock.advance(1e-9)
    assert clock.now_ns() == END_NS - 1


@pytest.mark.parametrize("start", [-1, -1e-9, 2**62, 1e10, timedelta(-1)])
def test_start_out_of_range(start: float) -> None:
    with pytest.raises(ValueError, match="start must be from 0 s"):
        ManualClock(start)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="start must be a finite number of seconds"):
        ManualClock(value)
    clock = ManualClock(1)
    with pytest.raises(ValueError, match="seconds must be a finite number of seconds"):
        clock.advance(value)
    assert clock() == 1.0


@pytest.mark.parametrize("value", [None, "1", True, False, b"1", [1], 1j])
def test_not_a_time(value: object) -> None:
    with pytest.raises(TypeError, match=f"start must be seconds .*not {type(value).__name__}"):
        ManualClock(value)  # type: ignore[arg-type]
    clock = ManualClock(1)
    with pytest.raises(TypeError, match=f"seconds must be seconds .*not {type(value).__name__}"):
        clock.advance(value)  # type: ignore[arg-type]
    assert clock() == 1.0


def test_threads_lose_no_step(restless: None) -> None:
    clock = ManualClock()
    start = threading.Barrier(4)

    def step() -> None:
        start.wait(60)
        for _ in range(30_000):
            clock.advance(1e-9)

    threads = [threading.Thread(target=step) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert clock.now_ns() == 120_000


def test_repr_weakref_and_slots() -> None:
    clock = ManualClock(1.5)
    assert repr(clock) == "ManualClock(1.5)"
    assert weakref.ref(clock)() is clock
    assert not hasattr(clock, "__dict__")


def test_the_fixture_for_users(manual_clock: ManualClock) -> None:
    assert type(manual_clock) is ManualClock
    assert manual_clock.now_ns() == 0
    limiter = RateLimiter(5, per=60, clock=manual_clock)
    assert [limiter.allow("me") for _ in range(6)] == [True] * 5 + [False]
    manual_clock.advance(60)
    assert limiter.allow("me")


def test_one_clock_serves_many_limiters() -> None:
    clock = ManualClock()
    minute, hour = RateLimiter("1/minute", clock=clock), RateLimiter("1/hour", clock=clock)
    assert [minute.allow(1), hour.allow(1), minute.allow(1), hour.allow(1)] == [
        True,
        True,
        False,
        False,
    ]
    clock.advance(60)
    assert [minute.allow(1), hour.allow(1)] == [True, False]


@pytest.mark.parametrize("per", [1e-6, 0.1, 1 / 3, 1, 60, 86_400, 315_576_000])
def test_advancing_by_retry_after_is_enough_and_not_too_much(per: float) -> None:
    clock = ManualClock(123.456789)
    limiter = RateLimiter(2, per=per, clock=clock)
    limiter.allow("k")
    clock.advance(per / 4)
    limiter.allow("k")
    clock.advance(per / 4)
    denied = limiter.check("k")
    assert not denied
    assert denied.retry_after == pytest.approx(per / 2, rel=1e-3)
    before = clock.now_ns()
    clock.advance(denied.retry_after)
    assert limiter.allow("k")
    assert clock.now_ns() - before <= per * 1e9 / 2 + max(2, per * 5)


@pytest.mark.parametrize(
    ("numerator", "denominator", "quotient"),
    [(5, 2, 2), (7, 2, 4), (-5, 2, -2), (-7, 2, -4), (1, 3, 0), (2, 3, 1), (-1, 3, 0), (-2, 3, -1)],
)
def test_division_rounds_to_nearest_and_halves_to_even(
    numerator: int, denominator: int, quotient: int
) -> None:
    assert divided(numerator, denominator) == quotient


def test_nanoseconds_of_a_float_are_exact() -> None:
    # 0.1 + 0.2 as a float is 0.3000000000000000444: 300000000 ns and nothing else.
    assert nanoseconds("x", 0.1 + 0.2) == 300_000_000
    # Multiplying as floats gives 9007199254740992000 here; the exact product is what counts.
    assert nanoseconds("x", 9_007_199_254.740_993) == round_exactly(9_007_199_254.740_993)


def round_exactly(seconds: float) -> int:
    from fractions import Fraction

    return round(Fraction(seconds) * 10**9)


def test_shown_is_short_for_anything() -> None:
    assert shown(5) == "5"
    assert shown("a") == "'a'"
    assert shown(10**5000) == "an integer of 16610 bits"
    assert shown(-(10**5000)) == "an integer of 16610 bits"
    assert len(shown("x" * 10**6)) < 150
