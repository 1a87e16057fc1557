"""nanolimit:// beside memory://: what users of `limits` expect, of both.

Each test states an expectation and holds for limits' own storage as well as for ours, in private
memory and in a shared table, whichever tool freezes the time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from limits import (
    RateLimitItemPerDay,
    RateLimitItemPerHour,
    RateLimitItemPerMinute,
    RateLimitItemPerMonth,
    RateLimitItemPerSecond,
    RateLimitItemPerYear,
    parse,
)
from limits.storage import MemoryStorage

from frozen import START_S, TOOLS, Advance
from storages import ALL, STRATEGIES, storage

FIVE = RateLimitItemPerMinute(5)

ITEMS = [
    RateLimitItemPerSecond(3),
    RateLimitItemPerMinute(3),
    RateLimitItemPerMinute(3, 20),
    RateLimitItemPerHour(3),
    RateLimitItemPerDay(3),
    RateLimitItemPerMonth(3),
    RateLimitItemPerYear(3),
]


@pytest.fixture(params=TOOLS, ids=lambda tool: tool.__name__)
def advance(request: pytest.FixtureRequest) -> Iterator[Advance]:
    with request.param() as advance:
        yield advance


@pytest.fixture(params=ALL, ids=["memory", "private", "shared"])
def store(request: pytest.FixtureRequest, advance: Advance, tables: Path) -> Any:
    return storage(request.param)


@pytest.fixture
def moving(store: Any) -> Any:
    return STRATEGIES["moving-window"](store)


@pytest.fixture
def fixed(store: Any) -> Any:
    return STRATEGIES["fixed-window"](store)


@pytest.fixture
def sliding(store: Any) -> Any:
    return STRATEGIES["sliding-window-counter"](store)


@pytest.fixture(params=sorted(STRATEGIES))
def strategy(request: pytest.FixtureRequest, store: Any) -> Any:
    return STRATEGIES[request.param](store)


def hits(strategy: Any, item: Any, number: int, *key: str, cost: int = 1) -> int:
    """Hit so often; how many passed."""
    return sum(strategy.hit(item, *key, cost=cost) for _ in range(number))


# All strategies


def test_the_limit_passes_and_no_more(strategy: Any) -> None:
    assert [strategy.hit(FIVE, "ann") for _ in range(8)] == [True] * 5 + [False] * 3


def test_keys_namespaces_and_limits_are_apart(strategy: Any) -> None:
    assert hits(strategy, FIVE, 9, "ann") == 5
    assert hits(strategy, FIVE, 9, "bob") == 5
    assert hits(strategy, FIVE, 9, "ann", "upload") == 5
    assert hits(strategy, FIVE, 9) == 5
    assert hits(strategy, RateLimitItemPerMinute(5, namespace="OTHER"), 9, "ann") == 5
    assert hits(strategy, RateLimitItemPerMinute(6), 9, "ann") == 6
    assert hits(strategy, RateLimitItemPerMinute(5, 2), 9, "ann") == 5
    assert hits(strategy, RateLimitItemPerHour(5), 9, "ann") == 5


@pytest.mark.parametrize("key", ["", "/", "näme", "名前", "\0", "x" * 10_000, "a b", "%2F"])
def test_any_text_is_a_key(strategy: Any, key: str) -> None:
    assert hits(strategy, FIVE, 9, key) == 5
    strategy.clear(FIVE, key)
    assert strategy.hit(FIVE, key)


def test_asking_counts_nothing(strategy: Any) -> None:
    for _ in range(20):
        assert strategy.test(FIVE, "ann")
        assert strategy.test(FIVE, "ann", cost=5)
        assert not strategy.test(FIVE, "ann", cost=6)
        assert strategy.get_window_stats(FIVE, "ann").remaining == 5
    assert hits(strategy, FIVE, 3, "ann") == 3
    assert strategy.test(FIVE, "ann", cost=2)
    assert not strategy.test(FIVE, "ann", cost=3)
    assert hits(strategy, FIVE, 2, "ann") == 2
    assert not strategy.test(FIVE, "ann")


def test_a_cost_is_all_or_nothing(strategy: Any) -> None:
    assert strategy.hit(FIVE, "ann", cost=3)
    assert strategy.get_window_stats(FIVE, "ann").remaining == 2
    assert strategy.hit(FIVE, "ann", cost=2)
    assert not strategy.hit(FIVE, "ann")
    assert strategy.hit(FIVE, "bob", cost=5)
    assert not strategy.hit(FIVE, "bob")


def test_a_cost_above_the_limit_never_passes(strategy: Any) -> None:
    assert not strategy.hit(FIVE, "ann", cost=6)
    assert not strategy.hit(FIVE, "ann", cost=600)


@pytest.mark.parametrize("name", ["moving-window", "sliding-window-counter"])
def test_a_cost_that_does_not_fit_consumes_nothing(store: Any, name: str) -> None:
    strategy: Any = STRATEGIES[name](store)
    assert not strategy.hit(FIVE, "ann", cost=6)
    assert strategy.get_window_stats(FIVE, "ann").remaining == 5
    assert strategy.hit(FIVE, "ann", cost=4)
    assert not strategy.hit(FIVE, "ann", cost=2)
    assert strategy.get_window_stats(FIVE, "ann").remaining == 1
    assert strategy.hit(FIVE, "ann")


def test_nothing_passes_a_limit_of_zero(strategy: Any) -> None:
    none = RateLimitItemPerMinute(0)
    assert hits(strategy, none, 3, "ann") == 0
    assert not strategy.test(none, "ann")
    assert strategy.get_window_stats(none, "ann").remaining == 0
    strategy.clear(none, "ann")


def test_a_cost_of_zero_passes_where_something_is_free(strategy: Any) -> None:
    assert strategy.hit(FIVE, "ann", cost=0)
    assert strategy.get_window_stats(FIVE, "ann").remaining == 5
    assert hits(strategy, FIVE, 5, "ann") == 5
    assert strategy.hit(FIVE, "ann", cost=0)


def test_clearing_forgets_one_key(strategy: Any) -> None:
    assert hits(strategy, FIVE, 9, "ann") == hits(strategy, FIVE, 9, "bob") == 5
    strategy.clear(FIVE, "ann")
    assert strategy.get_window_stats(FIVE, "ann").remaining == 5
    assert hits(strategy, FIVE, 9, "ann") == 5
    assert not strategy.hit(FIVE, "bob")
    strategy.clear(FIVE, "nobody")
    strategy.clear(RateLimitItemPerHour(9), "nobody")


def test_reset_forgets_all_and_says_how_many(strategy: Any, store: Any) -> None:
    assert store.reset() == 0
    for user in range(20):
        assert hits(strategy, FIVE, 2, f"user-{user}") == 2
    assert strategy.hit(RateLimitItemPerHour(7), "ann")
    assert store.reset() == 21
    assert store.reset() == 0
    assert hits(strategy, FIVE, 9, "user-7") == 5


def test_reset_counts_each_limit_of_many(strategy: Any, store: Any) -> None:
    for limit in range(1, 301):
        assert strategy.hit(RateLimitItemPerMinute(limit), "ann")
    assert store.reset() == 300
    for limit in range(1, 301):
        assert strategy.get_window_stats(RateLimitItemPerMinute(limit), "ann").remaining == limit


def test_it_is_healthy(store: Any) -> None:
    assert store.check() is True


# Moving window


@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_a_request_exactly_a_window_old_still_counts(
    moving: Any, advance: Advance, item: Any
) -> None:
    assert hits(moving, item, 4, "ann") == 3
    advance(item.get_expiry())
    assert not moving.hit(item, "ann")
    if not isinstance(moving.storage, MemoryStorage):
        # At that instant memory alone says that it is free, and denies it; redis says as we do.
        assert not moving.test(item, "ann")
        assert moving.get_window_stats(item, "ann").remaining == 0
    # The engine's grid is a 2 ** 30th of the window, at the coarsest: 50 ms of a year.
    advance(max(1e-6, item.get_expiry() / 2**29))
    assert moving.get_window_stats(item, "ann").remaining == 3
    assert hits(moving, item, 4, "ann") == 3


def test_requests_leave_the_moving_window_one_by_one(moving: Any, advance: Advance) -> None:
    for second in range(5):
        assert moving.hit(FIVE, "ann", cost=1), second
        advance(1)
    assert not moving.hit(FIVE, "ann")
    advance(55)  # the first is 60 s old
    assert not moving.hit(FIVE, "ann")
    for _ in range(5):
        advance(0.5)
        assert moving.hit(FIVE, "ann")
        assert not moving.hit(FIVE, "ann")
        advance(0.5)
        assert not moving.hit(FIVE, "ann")


def test_stats_of_a_moving_window_tell_when_the_oldest_leaves(
    moving: Any, store: Any, advance: Advance
) -> None:
    assert moving.get_window_stats(FIVE, "ann") == pytest.approx((START_S + 60, 5), abs=1e-6)
    assert moving.hit(FIVE, "ann", cost=2)
    advance(10)
    assert moving.hit(FIVE, "ann")
    advance(10)
    assert moving.get_window_stats(FIVE, "ann") == pytest.approx((START_S + 60, 2), abs=1e-6)
    key = FIVE.key_for("ann")
    assert store.get_moving_window(key, 5, 60) == pytest.approx((START_S, 3), abs=1e-6)
    advance(40.5)
    assert moving.get_window_stats(FIVE, "ann") == pytest.approx((START_S + 70, 4), abs=1e-6)
    advance(10)
    assert moving.get_window_stats(FIVE, "ann").remaining == 5
    assert store.get_moving_window("unknown", 5, 60) == pytest.approx((time.time(), 0), abs=1e-6)


def test_a_large_cost_of_a_large_limit(moving: Any, advance: Advance) -> None:
    million = RateLimitItemPerSecond(1_000_000, 2)
    assert moving.hit(million)
    advance(1)
    assert moving.hit(million, cost=999_999)
    assert not moving.hit(million)
    advance(1.001)
    assert moving.get_window_stats(million).remaining == 1
    moving.clear(million)
    assert moving.get_window_stats(million).remaining == 1_000_000


# Fixed window


@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_a_fixed_window_is_over_after_exactly_its_length(
    fixed: Any, store: Any, advance: Advance, item: Any
) -> None:
    assert hits(fixed, item, 4, "ann") == 3
    advance(item.get_expiry() - 0.1)
    assert not fixed.hit(item, "ann")
    assert store.get(item.key_for("ann")) == 5
    advance(0.1)
    assert store.get(item.key_for("ann")) == 0
    assert fixed.test(item, "ann")
    assert fixed.get_window_stats(item, "ann").remaining == 3
    assert hits(fixed, item, 4, "ann") == 3


def test_a_fixed_window_begins_with_the_first_request(
    fixed: Any, store: Any, advance: Advance
) -> None:
    key = FIVE.key_for("ann")
    assert store.get_expiry(key) == pytest.approx(START_S, abs=1e-6)
    advance(7)
    assert fixed.hit(FIVE, "ann")
    advance(50)
    assert fixed.hit(FIVE, "ann")
    assert store.get_expiry(key) == pytest.approx(START_S + 67, abs=1e-6)
    assert fixed.get_window_stats(FIVE, "ann") == pytest.approx((START_S + 67, 3), abs=1e-6)
    advance(10)
    assert store.get(key) == 0
    advance(1)
    assert fixed.hit(FIVE, "ann")
    assert store.get_expiry(key) == pytest.approx(START_S + 128, abs=1e-6)


def test_incr_tells_the_total_beyond_any_limit(store: Any) -> None:
    assert [store.incr("key", 60) for _ in range(4)] == [1, 2, 3, 4]
    assert store.incr("key", 60, 10) == 14
    assert store.incr("key", 60, amount=100_000) == 100_014
    assert store.get("key") == 100_014
    assert store.get("other") == 0
    store.clear("key")
    assert store.get("key") == 0
    assert store.incr("key", 60) == 1


def test_a_denied_cost_counts_in_a_fixed_window(fixed: Any, store: Any) -> None:
    """So it is in limits, whose fixed window counts first and compares then."""
    assert fixed.hit(FIVE, "ann", cost=4)
    assert not fixed.hit(FIVE, "ann", cost=4)
    assert store.get(FIVE.key_for("ann")) == 8
    assert fixed.get_window_stats(FIVE, "ann").remaining == 0
    assert not fixed.hit(FIVE, "ann")


def test_a_cost_may_be_a_fraction_in_a_fixed_window(fixed: Any) -> None:
    """As with slowapi, where it may be computed: 6 of 7.5 fit into 50, and 7 don't."""
    fifty: Any = RateLimitItemPerMinute(50)
    assert [fixed.hit(fifty, cost=7.5) for _ in range(8)] == [True] * 6 + [False] * 2


# Sliding window counter


def test_sliding_windows_are_those_of_the_epoch(sliding: Any, store: Any, advance: Advance) -> None:
    """12:34:56.789013: the current minute has 3.210987 s to go."""
    assert sliding.hit(FIVE, "ann", cost=5)
    assert not sliding.hit(FIVE, "ann")
    key = FIVE.key_for("ann")
    expected = (0, 0.0, 5, 63.210987)
    assert store.get_sliding_window(key, 60) == pytest.approx(expected, abs=1e-5)
    stats = sliding.get_window_stats(FIVE, "ann")
    assert stats == pytest.approx((START_S + 3.210987, 0), abs=1e-5)
    advance(3.210987 + 12)  # a fifth of the next minute: 4 of the 5 count
    expected = (5, 48.0, 0, 108.0)
    assert store.get_sliding_window(key, 60) == pytest.approx(expected, abs=1e-5)
    advance(1e-3)
    assert sliding.get_window_stats(FIVE, "ann").remaining == 2
    assert hits(sliding, FIVE, 4, "ann") == 2
    advance(12)
    assert hits(sliding, FIVE, 4, "ann") == 1
    advance(36)
    assert store.get_sliding_window(key, 60)[0] == 3
    sliding.clear(FIVE, "ann")
    assert store.get_sliding_window(key, 60)[:3] == (0, 0.0, 0)
    assert hits(sliding, FIVE, 9, "ann") == 5


def test_two_sliding_windows_later_all_is_forgotten(
    sliding: Any, store: Any, advance: Advance
) -> None:
    assert hits(sliding, FIVE, 9, "ann") == 5
    advance(120)
    assert sliding.get_window_stats(FIVE, "ann") == pytest.approx((time.time(), 5), abs=1e-3)
    assert store.get_sliding_window(FIVE.key_for("ann"), 60)[:3] == (0, 0.0, 0)
    assert hits(sliding, FIVE, 9, "ann") == 5


# Several strategies on one storage


def test_strategies_share_a_storage_and_count_apart(
    moving: Any, fixed: Any, sliding: Any, store: Any
) -> None:
    for strategy in (moving, fixed, sliding):
        assert hits(strategy, FIVE, 9, "ann") == 5
    store.clear(FIVE.key_for("ann"))
    for strategy in (moving, fixed):
        assert hits(strategy, FIVE, 9, "ann") == 5


@pytest.mark.parametrize("text", ["2/second;5/minute", "3 per 10 second, 100/hour | 7/day"])
def test_limits_as_text(strategy: Any, text: str) -> None:
    from limits import parse_many

    for item in parse_many(text):
        assert hits(strategy, item, item.amount + 2, "ann") == item.amount
    assert strategy.hit(parse("9/minute"), "ann")
