"""nanolimit:// and memory:// are asked the same at the same times, and say the same."""

from __future__ import annotations

import time
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from limits import (
    RateLimitItem,
    RateLimitItemPerDay,
    RateLimitItemPerHour,
    RateLimitItemPerMinute,
    RateLimitItemPerSecond,
)

from storages import MEMORY, PRIVATE, STRATEGIES, storage

ITEMS: list[RateLimitItem] = [
    RateLimitItemPerSecond(1),
    RateLimitItemPerSecond(4, 3),
    RateLimitItemPerMinute(2),
    RateLimitItemPerMinute(7),
    RateLimitItemPerMinute(300),
    RateLimitItemPerHour(5),
    RateLimitItemPerDay(6),
    RateLimitItemPerMinute(3_000),
]
KEYS = ["ann", "bob"]

# The engine's ticks: of a day, and the microsecond. Windows of an hour and less are on the first.
TICK_US = 100

items = st.sampled_from(ITEMS)
keys = st.sampled_from(KEYS)


class Beside(RuleBasedStateMachine):
    """One strategy on both storages, at a time that stands still between the rules."""

    name = ""

    @initialize(start_us=st.integers(1_772_368_496_000_000, 1_772_368_496_000_000 + 86_400 * 10**6))
    def begin(self, start_us: int) -> None:
        self.now_us = start_us
        self.patch = mock.patch.object(time, "time", self.now_s)
        self.patch.start()
        self.memory: Any = STRATEGIES[self.name](storage(MEMORY))
        self.ours: Any = STRATEGIES[self.name](storage(PRIVATE))
        # When what was hit, to know the instants at which memory contradicts itself.
        self.hits: dict[tuple[str, str], list[int]] = {}

    def now_s(self) -> float:
        return self.now_us / 1_000_000

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.stop()

    def at_the_edge(self, item: RateLimitItem, key: str) -> bool:
        """Whether one is exactly a window old: memory denies by it and does not tell of it."""
        edge = self.now_us - item.get_expiry() * 1_000_000
        return self.name == "moving-window" and edge in self.hits.get((str(item), key), [])

    @rule(item=items, key=keys, cost=st.integers(0, 8) | st.sampled_from([299, 2_999, 3_001]))
    def hit(self, item: RateLimitItem, key: str, cost: int) -> None:
        if self.name == "fixed-window":
            cost = max(cost, 1)  # of nothing, memory begins a window, and ours does not
        said = self.memory.hit(item, key, cost=cost)
        assert self.ours.hit(item, key, cost=cost) is said
        if said and cost:
            self.hits.setdefault((str(item), key), []).append(self.now_us)

    @rule(item=items, key=keys, cost=st.integers(1, 8))
    def test(self, item: RateLimitItem, key: str, cost: int) -> None:
        if not self.at_the_edge(item, key):
            said = self.memory.test(item, key, cost=cost)
            assert self.ours.test(item, key, cost=cost) is said

    @rule(item=items, key=keys)
    def stats(self, item: RateLimitItem, key: str) -> None:
        if self.at_the_edge(item, key):
            return
        theirs = self.memory.get_window_stats(item, key)
        ours = self.ours.get_window_stats(item, key)
        assert ours.remaining == theirs.remaining
        if self.name != "moving-window" or theirs.remaining < item.amount:
            # To a tick of a day. (Of an unused window memory tells when a forgotten one ended.)
            assert ours.reset_time == pytest.approx(theirs.reset_time, abs=2 * TICK_US / 1e6)

    @rule(item=items, key=keys)
    def clear(self, item: RateLimitItem, key: str) -> None:
        self.memory.clear(item, key)
        self.ours.clear(item, key)
        self.hits.pop((str(item), key), None)

    @rule()
    def reset(self) -> None:
        self.memory.storage.reset()
        self.ours.storage.reset()
        self.hits.clear()

    @rule(ticks=st.integers(1, 40_000) | st.integers(1, 3_000_000))
    def wait(self, ticks: int) -> None:
        self.now_us += ticks * TICK_US

    @rule(item=items, quarters=st.integers(1, 9), nudge=st.sampled_from([-1, 0, 0, 0, 1]))
    def wait_for_a_part_of_a_window(self, item: RateLimitItem, quarters: int, nudge: int) -> None:
        self.now_us += item.get_expiry() * 250_000 * quarters + nudge * TICK_US

    @rule(item=items, key=keys, nudge=st.sampled_from([-1, 0, 0, 0, 1]))
    def wait_until_a_hit_is_a_window_old(self, item: RateLimitItem, key: str, nudge: int) -> None:
        window_us = item.get_expiry() * 1_000_000
        for hit_us in self.hits.get((str(item), key), []):
            if hit_us + window_us + nudge * TICK_US > self.now_us:
                self.now_us = hit_us + window_us + nudge * TICK_US
                break

    @invariant()
    def the_clock_is_whole(self) -> None:
        if hasattr(self, "now_us"):
            assert round(time.time() * 1_000_000) == self.now_us


class MovingBeside(Beside):
    name = "moving-window"


class FixedBeside(Beside):
    name = "fixed-window"


class SlidingBeside(Beside):
    name = "sliding-window-counter"


class TestMoving(MovingBeside.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=100)


class TestFixed(FixedBeside.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=100)


class TestSliding(SlidingBeside.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=100)
