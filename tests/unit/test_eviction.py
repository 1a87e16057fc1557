"""Idle keys: their slots are taken again by themselves, and evict() gives their memory back."""

from __future__ import annotations

import array
from pathlib import Path

import pytest

from clocks import NS_PER_S, NanoClock
from doors import verify
from nanolimit import RateLimiter, telemetry

MINUTE_NS = 60 * NS_PER_S


def make(limit: int = 5, **others: int) -> tuple[RateLimiter, NanoClock]:
    clock = NanoClock(10**15)
    return RateLimiter(limit, per=60, clock=clock, **others), clock  # type: ignore[arg-type]


def test_idle_slots_are_taken_again_without_a_sweep() -> None:
    """Ten generations of users in a table for one: nobody overflows, and memory stands still."""
    limiter, clock = make(max_keys=5_000)
    memory = []
    for generation in range(10):
        users = range(generation * 5_000, (generation + 1) * 5_000)
        assert all(limiter.allow_many(users))
        stats = limiter.stats()
        assert (stats.keys, stats.overflowed, stats.evicted) == (5_000, 0, 0)
        memory.append(stats.memory_bytes)
        clock.ns += MINUTE_NS
    assert max(memory[1:]) <= memory[0] * 1.1
    verify(limiter)


def test_a_key_that_was_idle_is_as_good_as_new() -> None:
    limiter, clock = make(limit=3)
    for _ in range(5):
        assert [limiter.allow("user") for _ in range(4)] == [True] * 3 + [False]
        clock.ns += MINUTE_NS
        assert "user" not in limiter
        assert len(limiter) == 0
        decision = limiter.peek("user")
        assert decision.remaining == 3
        assert (decision.reset_after, decision.refill_after) == (0.0, 0.0)


def test_evict_drops_the_idle_and_only_them() -> None:
    limiter, clock = make()
    limiter.allow_many(range(1_000))
    clock.ns += MINUTE_NS - 1
    limiter.allow_many(range(500, 1_500))
    assert limiter.evict() == 0
    assert limiter.stats().keys == 1_500
    clock.ns += 1
    assert limiter.stats().keys == 1_500, "idle keys stay where they are until somebody needs room"
    assert limiter.evict() == 500
    assert limiter.stats().keys == len(limiter) == 1_000
    assert limiter.stats().evicted == 500
    assert not any(key in limiter for key in range(500))
    # what the live ones have used is not forgotten
    assert [limiter.peek(key).remaining for key in range(500, 1_500)] == [4] * 1_000
    assert limiter.evict() == 0
    clock.ns += MINUTE_NS
    assert limiter.evict() == 1_000
    assert limiter.stats().evicted == 1_500
    assert limiter.stats().keys == 0
    verify(limiter)


def test_evict_tells_telemetry_once() -> None:
    limiter, clock = make()
    heard: list[tuple[object, ...]] = []
    telemetry.attach("test", "evicted", lambda *event: heard.append(event))
    try:
        limiter.evict()
        assert heard == []
        limiter.allow_many(range(7))
        clock.ns += MINUTE_NS
        limiter.evict()
    finally:
        telemetry.detach("test")
    assert heard == [("evicted", {"count": 7}, {"limiter": limiter.name, "key": None})]


@pytest.mark.parametrize(
    ("limit", "cost", "users"), [(5, 1, 200_000), (100, 40, 20_000), (1_000, 900, 2_000)]
)
def test_memory_is_handed_back(limit: int, cost: int, users: int) -> None:
    """Slots, index and out-of-line stamps: a tenth or less is left."""
    limiter, clock = make(limit=limit)
    empty = limiter.stats().memory_bytes
    assert all(limiter.allow_many(range(users), cost))
    before = limiter.stats().memory_bytes
    stamps_ns = 4 * cost if limit > 6 else 0
    assert before >= users * (48 + stamps_ns), "that much it holds at the least"
    clock.ns += MINUTE_NS
    assert limiter.evict() == users
    after = limiter.stats().memory_bytes
    assert after <= max(before // 10, empty)
    verify(limiter)
    # and all of it can be used again
    assert all(limiter.allow_many(range(users), cost))
    assert limiter.stats().memory_bytes <= before * 1.1
    verify(limiter)


def test_clear_hands_memory_back_too() -> None:
    limiter, _ = make()
    limiter.allow_many(range(100_000))
    before = limiter.stats().memory_bytes
    limiter.clear()
    assert limiter.stats().keys == 0
    assert limiter.stats().memory_bytes <= before // 10
    assert limiter.stats().evicted == 0, "cleared is not evicted"
    verify(limiter)


def test_what_is_handed_back_goes_to_the_system() -> None:
    """Not only on paper: the process's own resident memory shrinks."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc on this platform")

    def resident_pages() -> int:
        return int(statm.read_text().split()[1])

    limiter, clock = make()
    users = array.array("q", range(400_000))
    start = resident_pages()
    answers = limiter.allow_many(users)
    full = resident_pages()
    assert all(answers)
    clock.ns += MINUTE_NS
    limiter.evict()
    evicted = resident_pages()
    assert full - start > 400_000 * 48 // 16_384  # whatever the size of a page
    assert evicted - start <= (full - start) * 0.15  # the answers are still there


def test_growing_and_evicting_again_and_again_leaks_nothing() -> None:
    limiter, clock = make(limit=40)
    after: list[int] = []
    for generation in range(8):
        users = range(generation * 3_000, (generation + 1) * 3_000)
        assert all(limiter.allow_many(users, 1 + generation * 4))
        clock.ns += MINUTE_NS
        assert limiter.evict() == 3_000
        after.append(limiter.stats().memory_bytes)
        verify(limiter)
    assert after[-1] <= max(after[:2]) * 1.1


def test_resets_give_back_what_they_held() -> None:
    """A reset slot and its stamps serve the next one."""
    limiter, _ = make(limit=500, max_keys=100)
    assert all(limiter.allow_many(range(100), 500))
    memory = limiter.stats().memory_bytes
    for nth in range(1, 30):
        for key in range(100):
            assert limiter.reset((nth - 1) * 100 + key)
            assert limiter.allow(nth * 100 + key, 500)
    assert limiter.stats().memory_bytes <= memory * 1.1
    assert limiter.stats().overflowed == 0
    verify(limiter)


def test_an_empty_limiter_is_small() -> None:
    limiters = [RateLimiter(5) for _ in range(1_000)]
    assert max(limiter.stats().memory_bytes for limiter in limiters) <= 64 * 1024
    assert all(limiter.allow("user") for limiter in limiters)
