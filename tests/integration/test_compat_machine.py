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

from nanolimit.compat.epoch import tick_ns
from storages import MEMORY, PRIVATE, STRATEGIES, storage

ITEMS: list[RateLimitItem] = [
    RateLimitItemPerSecond(1),
    RateLimitItemPerSecond(4, 3),
    RateLimitItemPerMinute(7),
    RateLimitItemPerMinute(300),
    RateLimitItemPerHour(5),
    RateLimitItemPerDay(6),
    RateLimitItemPerMinute(3_000),
]

# The engine's ticks: of a day, in microseconds. Those of all shorter windows divide it.
TICK_US = 100

keys = st.sampled_from(["ann", "ann", "ann", "bob"])
nudges = st.sampled_from([-1, 0, 0, 0, 1])


class Beside(RuleBasedStateMachine):
    """One strategy and limit on both storages, at a time that stands still between the rules."""

    name = ""

    @initialize(
        start_us=st.integers(1_772_368_496_000_000, 1_772_368_496_000_000 + 86_400 * 10**6),
        item=st.sampled_from(ITEMS),
    )
    def begin(self, start_us: int, item: RateLimitItem) -> None:
        self.now_us = self.start_us = start_us
        self.item = item
        self.window_us = item.get_expiry() * 1_000_000
        self.tick_us = max(1.0, tick_ns(self.window_us * 1_000) / 1_000)
        self.patch = mock.patch.object(time, "time", self.now_s)
        self.patch.start()
        self.memory: Any = STRATEGIES[self.name](storage(MEMORY))
        self.ours: Any = STRATEGIES[self.name](storage(PRIVATE))
        # When who hit, to find the edges, and there what memory contradicts itself about.
        self.hits: dict[str, list[int]] = {}

    def now_s(self) -> float:
        return self.now_us / 1_000_000

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.stop()

    def at_the_edge(self, key: str) -> bool:
        """Whether one is exactly a window old: memory denies by it and does not tell of it."""
        edge = self.now_us - self.window_us
        return self.name == "moving-window" and edge in self.hits.get(key, [])

    def ask(self, key: str, cost: int) -> None:
        said = self.memory.hit(self.item, key, cost=cost)
        assert self.ours.hit(self.item, key, cost=cost) is said
        if said and cost:
            self.hits.setdefault(key, []).append(self.now_us)
        self.look(key)

    def look(self, key: str) -> None:
        if self.at_the_edge(key):
            return
        theirs = self.memory.get_window_stats(self.item, key)
        ours = self.ours.get_window_stats(self.item, key)
        assert ours.remaining == theirs.remaining
        if self.name != "moving-window" or theirs.remaining < self.item.amount:
            # To a tick. (Of an unused window memory tells when a forgotten one ended.)
            assert ours.reset_time == pytest.approx(theirs.reset_time, abs=self.tick_us / 1e6)

    @rule(key=keys, cost=st.integers(0, 8) | st.just(1))
    def hit(self, key: str, cost: int) -> None:
        if self.name == "fixed-window":
            cost = max(cost, 1)  # of nothing, memory begins a window, and ours does not
        self.ask(key, cost)

    @rule(key=keys, share=st.sampled_from([0.3, 0.5, 0.9, 1.0]))
    def hit_with_a_part_of_the_limit(self, key: str, share: float) -> None:
        self.ask(key, max(1, round(self.item.amount * share)))

    @rule(key=keys, cost=st.integers(1, 8))
    def test(self, key: str, cost: int) -> None:
        if not self.at_the_edge(key):
            said = self.memory.test(self.item, key, cost=cost)
            assert self.ours.test(self.item, key, cost=cost) is said

    @rule(key=keys)
    def clear(self, key: str) -> None:
        self.memory.clear(self.item, key)
        self.ours.clear(self.item, key)
        self.hits.pop(key, None)

    @rule(ticks=st.integers(1, 40_000))
    def wait(self, ticks: int) -> None:
        self.now_us += ticks * TICK_US

    @rule(parts=st.integers(1, 12), of=st.sampled_from([4, 5, 7, 8]), nudge=nudges)
    def wait_for_a_part_of_a_window(self, parts: int, of: int, nudge: int) -> None:
        """To such a part of a window of the epoch, or of one's own."""
        part_us = self.window_us // of // TICK_US * TICK_US
        self.now_us += max(1, parts * part_us + nudge * TICK_US)

    @rule(parts=st.integers(1, 12), of=st.sampled_from([4, 5, 8]), nudge=nudges, key=keys)
    def wait_for_a_part_of_the_epochs_window(
        self, parts: int, of: int, nudge: int, key: str
    ) -> None:
        """There the floats of the sliding counter are whole numbers, or nearly so."""
        part_us = self.window_us // of
        self.now_us = (self.now_us // part_us + parts) * part_us + nudge * TICK_US
        if self.tick_us > 1:  # keep off the grid by as much as all the others
            self.now_us += self.start_us % TICK_US
        self.ask(key, 1)

    @rule(key=keys, nudge=nudges)
    def ask_when_a_hit_is_a_window_old(self, key: str, nudge: int) -> None:
        edges = [hit_us + self.window_us + nudge * TICK_US for hit_us in self.hits.get(key, [])]
        self.now_us = min((edge for edge in edges if edge > self.now_us), default=self.now_us)
        self.ask(key, 1)

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


TestMoving = MovingBeside.TestCase
TestFixed = FixedBeside.TestCase
TestSliding = SlidingBeside.TestCase
for _case in (TestMoving, TestFixed, TestSliding):
    _case.settings = settings(max_examples=60)


@pytest.mark.parametrize("uri", [MEMORY, PRIVATE])
def test_a_weighted_count_that_only_floats_round_up(uri: str) -> None:
    """8.99999999988 of the previous window are 8, and with 2,000,000 of this one 2,000,009."""
    now_s = [1772363858.82353 - 86_400]
    with mock.patch.object(time, "time", lambda: now_s[0]):  # noqa: PT008
        limiter: Any = STRATEGIES["sliding-window-counter"](storage(uri))
        item = RateLimitItemPerDay(2_000_009)
        assert limiter.hit(item, cost=17)
        now_s[0] += 86_400
        assert limiter.get_window_stats(item).remaining == 2_000_001
        assert limiter.hit(item, cost=2_000_000)
        assert not limiter.hit(item)
        assert limiter.get_window_stats(item).remaining == 0
