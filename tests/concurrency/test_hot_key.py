"""Many threads on one key admit exactly `limit`: not one more, and not one fewer.

10,000 rounds in all, spread over sizes of the ring (inline, chunks), over ways in which a round can
begin (a key nobody knows, one whose stamps ran out, one that was reset) and over what else goes on
in the table. Works on GIL and on free-threaded builds; on the latter the threads really meet.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from clocks import NS_PER_S, NanoClock
from crew import PATIENCE_S, Crew, run
from doors import verify
from nanolimit import RateLimiter

pytestmark = pytest.mark.usefixtures("restless")

WINDOW_S = 60


class Rounds:
    """`threads` threads ask for one key at once, `rounds` times; every round must admit `limit`."""

    def __init__(self, limiter: RateLimiter, limit: int, threads: int, rounds: int) -> None:
        self.limiter = limiter
        self.limit = limit
        self.threads = threads
        self.rounds = rounds
        self.calls = -(-2 * limit // threads) + 1  # together at least twice what fits
        self.admitted = [0] * threads
        self.key: Any = None

    def play(self, next_key: Callable[[int], Any]) -> None:
        turn = itertools.count()

        def judge() -> None:
            """Between two rounds, in one thread, while the others wait."""
            nth = next(turn)
            if nth > 0:
                assert sum(self.admitted) == self.limit, f"round {nth}: {self.admitted}"
            self.key = next_key(nth)

        barrier = threading.Barrier(self.threads, action=judge, timeout=PATIENCE_S)

        def ask(number: int) -> None:
            allow = self.limiter.allow
            for _ in range(self.rounds):
                barrier.wait()
                key = self.key
                self.admitted[number] = sum(allow(key) for _ in range(self.calls))
            barrier.wait()

        run(self.threads, ask)

    def assert_counted(self, others: int = 0) -> None:
        """stats() agrees and the table is sound; `others` were admitted beside the rounds."""
        verify(self.limiter)
        stats = self.limiter.stats()
        assert stats.allowed == self.rounds * self.limit + others
        assert stats.denied == self.rounds * (self.calls * self.threads - self.limit)
        assert stats.overflowed == 0


@pytest.mark.parametrize(
    ("limit", "threads", "rounds"),
    [
        (1, 2, 1_000),
        (1, 8, 500),
        (5, 2, 2_000),
        (5, 4, 1_000),
        (7, 4, 500),
        (100, 4, 250),
        (700, 2, 50),
    ],
)
def test_a_key_that_nobody_knows(limit: int, threads: int, rounds: int) -> None:
    """The threads also race to insert it."""
    limiter = RateLimiter(limit, per=86_400)
    hot = Rounds(limiter, limit, threads, rounds)
    hot.play(lambda nth: f"user:{nth}")
    hot.assert_counted()
    assert len(limiter) == rounds


@pytest.mark.parametrize(
    ("limit", "threads", "rounds"), [(1, 4, 500), (5, 2, 1_000), (6, 4, 500), (40, 3, 500)]
)
def test_a_key_whose_stamps_ran_out(limit: int, threads: int, rounds: int) -> None:
    """Each round finds a full ring, all of it expired, and goes round it."""
    clock = NanoClock((2**32 - 3) * 100)  # ticks of 100 ns: the 32-bit tick turns over soon
    limiter = RateLimiter(limit, per=WINDOW_S, clock=clock)

    def next_key(_: int) -> Any:
        clock.ns += WINDOW_S * NS_PER_S
        return "user"

    hot = Rounds(limiter, limit, threads, rounds)
    hot.play(next_key)
    hot.assert_counted()
    assert limiter.stats().keys == 1


@pytest.mark.parametrize(("limit", "threads", "rounds"), [(5, 4, 750), (20, 2, 250)])
def test_a_key_that_was_reset(limit: int, threads: int, rounds: int) -> None:
    limiter = RateLimiter(limit, per=86_400)

    def next_key(nth: int) -> Any:
        assert limiter.reset("user") is (nth > 0)
        return "user"

    hot = Rounds(limiter, limit, threads, rounds)
    hot.play(next_key)
    hot.assert_counted()


@pytest.mark.parametrize(("limit", "threads", "rounds"), [(5, 3, 500), (33, 2, 250)])
def test_while_the_table_grows(limit: int, threads: int, rounds: int) -> None:
    """Another thread brings new users all the time: segments split under the hot key's feet."""
    limiter = RateLimiter(limit, per=86_400)
    hot = Rounds(limiter, limit, threads, rounds)
    blocks_due = threading.Semaphore(0)
    blocks = (rounds + 1) * 20

    def bring(_: int) -> None:
        for block in range(blocks):
            assert blocks_due.acquire(timeout=PATIENCE_S)
            assert all(limiter.allow_many([("new", block, nth) for nth in range(50)]))

    def next_key(nth: int) -> Any:
        blocks_due.release(20)
        return f"user:{nth}"

    with Crew(1, bring):
        hot.play(next_key)
    hot.assert_counted(others=blocks * 50)
    assert len(limiter) == rounds + blocks * 50


@pytest.mark.parametrize(("limit", "threads", "rounds"), [(5, 4, 250), (50, 2, 200)])
def test_while_idle_keys_are_evicted(limit: int, threads: int, rounds: int) -> None:
    """Another thread drops idle keys meanwhile: never one that has just been asked for."""
    clock = NanoClock()
    limiter = RateLimiter(limit, per=WINDOW_S, clock=clock)
    hot = Rounds(limiter, limit, threads, rounds)
    sweeps_due = threading.Semaphore(0)

    def sweep(_: int) -> None:
        for _ in range(5 * (rounds + 1)):
            assert sweeps_due.acquire(timeout=PATIENCE_S)
            limiter.evict()

    def next_key(nth: int) -> Any:
        clock.ns += WINDOW_S * NS_PER_S
        sweeps_due.release(5)
        return f"user:{nth % 3}"

    with Crew(1, sweep):
        hot.play(next_key)
    hot.assert_counted()


@pytest.mark.parametrize("threads", [2, 4])
def test_costs_are_all_or_nothing_under_fire(threads: int) -> None:
    """Threads ask for 1 to 5 units at once; what is granted adds up to the limit in the end."""
    limit, keys = 60, 100
    limiter = RateLimiter(limit, per=86_400)
    granted = [[0] * keys for _ in range(threads)]

    def ask(number: int) -> None:
        for key in range(keys):
            for cost in [5, 3, 4, 2] * 5 + [1] * limit:
                if limiter.allow(key, cost):
                    granted[number][key] += cost

    run(threads, ask)
    assert [sum(column) for column in zip(*granted, strict=True)] == [limit] * keys
    verify(limiter)
