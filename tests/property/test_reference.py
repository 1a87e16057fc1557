"""The reference itself against the law, told in as few words as possible.

A reference that is wrong in the same way as the engine would show nothing; so this one is held
against sums over the list of all that it admitted.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import MOST_TICKS, NS_PER_S, Reference, seconds, tick_ns

TEN_YEARS_NS = 315_576_000 * NS_PER_S

windows = st.one_of(
    st.integers(1_000, TEN_YEARS_NS),
    st.sampled_from([1_000, NS_PER_S, 60 * NS_PER_S, 3_600 * NS_PER_S, TEN_YEARS_NS]),
)


def units_in(admitted: list[tuple[int, int]], start: int, end: int) -> int:
    """Units admitted in [start, end)."""
    return sum(units for when, units in admitted if start <= when < end)


@pytest.mark.parametrize(
    ("window_ns", "tick"),
    [
        (1_000, 1),
        (2**30, 1),
        (2**30 + 1, 2),
        (2 * 2**30, 2),
        (2 * 2**30 + 1, 5),
        (5 * 2**30, 5),
        (5 * 2**30 + 1, 10),
        (NS_PER_S, 1),
        (60 * NS_PER_S, 100),
        (3_600 * NS_PER_S, 5_000),
        (86_400 * NS_PER_S, 100_000),
        (TEN_YEARS_NS, 500_000_000),
    ],
)
def test_tick_lengths(window_ns: int, tick: int) -> None:
    assert tick_ns(window_ns) == tick


@given(windows)
def test_tick_is_the_smallest_of_its_kind(window_ns: int) -> None:
    tick = tick_ns(window_ns)
    assert -(-window_ns // tick) <= MOST_TICKS
    digits = str(tick)
    assert digits[0] in "125"
    assert set(digits[1:]) <= {"0"}
    if tick > 1:
        smaller = {"1": tick // 2, "2": tick // 2, "5": tick * 2 // 5}[digits[0]]
        assert -(-window_ns // smaller) > MOST_TICKS
    assert Fraction(tick, window_ns) < Fraction(25, 10**10) or tick == 1


@given(st.integers(0, 2**62))
def test_seconds_round_up_to_the_next_float(ns: int) -> None:
    import math

    exact = Fraction(ns, NS_PER_S)
    assert Fraction(seconds(ns)) >= exact
    below = math.nextafter(seconds(ns), -math.inf)
    assert Fraction(below) < exact


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int]]]:
    """(limit, window, [(time, cost), ...]) with times that never go back and crowd at the edges."""
    limit = draw(st.integers(1, 8))
    window_ns = draw(windows)
    tick = tick_ns(window_ns)
    gaps = st.one_of(
        st.just(0),
        st.integers(0, 3 * tick),
        st.integers(0, window_ns // limit + 1),
        st.integers(max(0, window_ns - 2 * tick), window_ns + 2 * tick),
    )
    now = draw(st.integers(0, 2**61))
    requests = []
    for gap, cost in draw(st.lists(st.tuples(gaps, st.integers(1, limit)), max_size=40)):
        now += gap
        requests.append((now, cost))
    return limit, window_ns, requests


@given(histories())
def test_exact_mode_is_the_law(history: tuple[int, int, list[tuple[int, int]]]) -> None:
    limit, window_ns, requests = history
    reference = Reference(limit, window_ns, mode="exact")
    admitted: list[tuple[int, int]] = []
    for now, cost in requests:
        used = units_in(admitted, now - window_ns + 1, now + 1)
        before = reference.peek("key", now, cost)
        assert before.remaining == limit - used
        assert before.allowed == (used + cost <= limit)
        assert reference.allow("key", now, cost) == before.allowed
        if before.allowed:
            admitted.append((now, cost))
        else:
            retry = before.retry_after_ns
            assert reference.peek("key", now + retry, cost).allowed
            assert not reference.peek("key", now + retry - 1, cost).allowed


@given(histories())
def test_tick_mode_is_never_one_too_many_and_less_than_a_tick_late(
    history: tuple[int, int, list[tuple[int, int]]],
) -> None:
    limit, window_ns, requests = history
    reference = Reference(limit, window_ns)
    tick = reference.tick
    grid_window_ns = reference.window * tick  # less than a tick above window_ns
    assert 0 <= grid_window_ns - window_ns < tick
    admitted: list[tuple[int, int]] = []
    for now, cost in requests:
        if reference.allow("key", now, cost):
            admitted.append((now, cost))
            assert units_in(admitted, now - window_ns + 1, now + 1) <= limit
        else:
            late = units_in(admitted, now - grid_window_ns - tick + 1, now + 1)
            assert late + cost > limit
            retry = reference.peek("key", now, cost).retry_after_ns
            assert reference.peek("key", now + retry, cost).allowed
            assert not reference.peek("key", now + retry - 1, cost).allowed


@given(histories())
def test_both_modes_agree_on_the_grid(history: tuple[int, int, list[tuple[int, int]]]) -> None:
    limit, window_ns, requests = history
    tick = tick_ns(window_ns)
    window_ns = -(-window_ns // tick) * tick
    exact = Reference(limit, window_ns, mode="exact")
    ticks = Reference(limit, window_ns, mode="tick")
    for now, cost in requests:
        now -= now % tick
        assert exact.peek("key", now, cost) == ticks.peek("key", now, cost)
        assert exact.check("key", now, cost) == ticks.check("key", now, cost)
    assert exact.tally == ticks.tally
