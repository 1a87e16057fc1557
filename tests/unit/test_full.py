"""A full table: the first `max_keys` live keys always fit, and what happens to the next one."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from clocks import NS_PER_S, NanoClock
from doors import verify
from nanolimit import RateLimiter, telemetry

OnFull = Literal["allow", "deny", "evict"]

SIZES = [1, 2, 17, 10_000]


def make(max_keys: int, on_full: OnFull, *, limit: int = 1) -> tuple[RateLimiter, NanoClock]:
    clock = NanoClock(10**15)
    limiter = RateLimiter(limit, per=60, clock=clock, max_keys=max_keys, on_full=on_full)
    return limiter, clock


def assert_fit(limiter: RateLimiter, keys: range) -> None:
    """All of them get in, each is tracked, and none was let pass by `on_full`."""
    overflowed, evicted = limiter.stats().overflowed, limiter.stats().evicted
    assert all(limiter.allow_many(keys))
    assert not any(limiter.allow_many(keys)), "one that is not tracked would be allowed again"
    assert limiter.stats().overflowed == overflowed
    assert limiter.stats().evicted == evicted
    verify(limiter)


@pytest.mark.parametrize("on_full", ["allow", "deny", "evict"])
@pytest.mark.parametrize("max_keys", SIZES)
class TestTheFirstOnesFit:
    def test_into_an_empty_table(self, max_keys: int, on_full: OnFull) -> None:
        limiter, _ = make(max_keys, on_full)
        assert_fit(limiter, range(max_keys))
        assert len(limiter) == max_keys
        assert limiter.stats().keys == max_keys

    def test_after_everything_went_idle(self, max_keys: int, on_full: OnFull) -> None:
        """Idle slots are taken again without any sweep, as often as it happens."""
        limiter, clock = make(max_keys, on_full)
        for nth in range(4):
            assert_fit(limiter, range(nth * max_keys, (nth + 1) * max_keys))
            assert len(limiter) == max_keys
            assert limiter.stats().keys == max_keys
            clock.ns += 60 * NS_PER_S
            assert len(limiter) == 0

    def test_after_resets(self, max_keys: int, on_full: OnFull) -> None:
        """Every third slot is free, then all."""
        limiter, _ = make(max_keys, on_full)
        assert_fit(limiter, range(max_keys))
        gone = range(0, max_keys, 3)
        assert all(limiter.reset(key) for key in gone)
        assert len(limiter) == max_keys - len(gone)
        assert_fit(limiter, range(max_keys, max_keys + len(gone)))
        assert len(limiter) == max_keys

    def test_after_clear(self, max_keys: int, on_full: OnFull) -> None:
        limiter, _ = make(max_keys, on_full)
        for nth in range(3):
            assert_fit(limiter, range(nth * max_keys, (nth + 1) * max_keys))
            limiter.clear()

    def test_after_evict(self, max_keys: int, on_full: OnFull) -> None:
        limiter, clock = make(max_keys, on_full)
        assert all(limiter.allow_many(range(max_keys)))
        clock.ns += 60 * NS_PER_S
        assert limiter.evict() == max_keys
        assert_fit(limiter, range(max_keys, 2 * max_keys))

    @pytest.mark.parametrize("idle", ["first half", "last half", "every other", "all but one"])
    def test_where_only_some_went_idle(self, max_keys: int, on_full: OnFull, idle: str) -> None:
        """However the idle ones lie among the live ones, each newcomer finds one."""
        limiter, clock = make(max_keys, on_full, limit=2)
        assert all(limiter.allow_many(range(max_keys)))
        live = {
            "first half": range(max_keys // 2, max_keys),
            "last half": range(max_keys // 2),
            "every other": range(0, max_keys, 2),
            "all but one": range(max_keys - 1),
        }[idle]
        clock.ns += 30 * NS_PER_S
        assert all(limiter.allow_many(live))
        clock.ns += 30 * NS_PER_S
        assert len(limiter) == len(live)
        newcomers = range(max_keys, 2 * max_keys - len(live))
        answers = [limiter.check(key) for key in newcomers]
        assert all(answers)
        assert limiter.stats().overflowed == 0
        assert limiter.stats().evicted == 0
        assert [limiter.peek(key).remaining for key in newcomers] == [1] * len(newcomers)
        assert [limiter.peek(key).remaining for key in live] == [1] * len(live)
        assert len(limiter) == max_keys
        verify(limiter)

    def test_one_goes_idle_and_one_comes(self, max_keys: int, on_full: OnFull) -> None:
        """Always full to the last place: each newcomer takes the slot of the one that just left."""
        limiter, clock = make(max_keys, on_full)
        step = 60 * NS_PER_S // max_keys // 1_000 * 1_000
        admitted = []
        for key in range(3 * max_keys if max_keys < 10_000 else max_keys + 500):
            assert limiter.allow(key)
            admitted.append(clock.ns)
            clock.ns = admitted[0] + (key + 1) * step
            if key + 1 >= max_keys:  # until the oldest live one is a window old
                clock.ns = max(clock.ns, admitted[key + 1 - max_keys] + 60 * NS_PER_S)
        assert limiter.stats().overflowed == 0
        assert limiter.stats().evicted == 0
        verify(limiter)


@pytest.mark.parametrize("on_full", ["allow", "deny", "evict"])
@pytest.mark.parametrize(
    ("max_keys", "limit"), [(1, 2_047), (17, 2_047), (17, 300), (200, 100), (10_000, 7)]
)
def test_there_is_memory_for_all_their_stamps(max_keys: int, limit: int, on_full: OnFull) -> None:
    limiter, clock = make(max_keys, on_full, limit=limit)
    for _ in range(3):
        for key in range(max_keys):
            assert limiter.allow(key, limit // 2)
        for key in range(max_keys):
            assert limiter.allow(key, limit - limit // 2)
            assert not limiter.allow(key)
        assert len(limiter) == max_keys
        clock.ns += 60 * NS_PER_S
    assert limiter.stats().overflowed == 0
    verify(limiter)


@pytest.mark.parametrize("max_keys", SIZES)
def test_on_full_allow(max_keys: int) -> None:
    """An unknown key passes untracked, again and again; known ones are as exact as ever."""
    limiter, clock = make(max_keys, "allow", limit=2)
    assert all(limiter.allow_many(range(max_keys)))
    for nth in range(1, 6):
        assert limiter.allow("stranger")
        assert limiter.stats().overflowed == nth
    assert "stranger" not in limiter
    decision = limiter.check("stranger", 2)
    assert (decision.allowed, decision.limit, decision.remaining) == (True, 2, 0)
    assert decision.retry_after == 0.0
    assert decision.quota is limiter.quota
    assert limiter.check("stranger").remaining == 1
    stats = limiter.stats()
    assert (stats.allowed, stats.denied, stats.overflowed) == (max_keys + 7, 0, 7)
    assert all(limiter.allow_many(range(max_keys)))
    assert not any(limiter.allow_many(range(max_keys)))
    assert len(limiter) == limiter.stats().keys == max_keys
    assert limiter.reset("stranger") is False
    assert limiter.reset(0)
    assert [limiter.allow("stranger") for _ in range(3)] == [True, True, False], "now there is room"
    clock.ns += 60 * NS_PER_S
    assert_fit(RateLimiter(1, per=60, clock=clock, max_keys=max_keys), range(max_keys))


@pytest.mark.parametrize("max_keys", SIZES)
def test_on_full_deny(max_keys: int) -> None:
    limiter, clock = make(max_keys, "deny", limit=2)
    assert all(limiter.allow_many(range(max_keys)))
    for nth in range(1, 6):
        assert not limiter.allow("stranger")
        assert limiter.stats().overflowed == nth
    decision = limiter.check("stranger")
    assert (decision.allowed, decision.limit, decision.remaining) == (False, 2, 0)
    assert decision.retry_after == 60.0
    stats = limiter.stats()
    assert (stats.allowed, stats.denied, stats.overflowed) == (max_keys, 6, 6)
    assert all(limiter.allow_many(range(max_keys)))
    assert not any(limiter.allow_many(range(max_keys)))
    assert len(limiter) == limiter.stats().keys == max_keys
    clock.ns += 60 * NS_PER_S
    assert [limiter.allow("stranger") for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("max_keys", SIZES)
def test_on_full_evict(max_keys: int) -> None:
    """A newcomer takes the slot of somebody who asked long ago, and is tracked from then on."""
    limiter, clock = make(max_keys, "evict", limit=2)
    for key in range(max_keys):
        assert limiter.allow(key)
        clock.ns += 1_000
    for nth in range(1, 101):
        stranger, newest = f"stranger:{nth}", f"stranger:{nth - 1}" if nth > 1 else max_keys - 1
        assert limiter.check(stranger).remaining == 1
        clock.ns += 1_000
        assert stranger in limiter
        assert limiter.stats().evicted == nth
        assert len(limiter) == limiter.stats().keys == max_keys
        if max_keys > 1:
            assert newest in limiter, "the one that asked last is not the one idle longest"
    assert limiter.stats().allowed == max_keys + 100
    gone = sum(key not in limiter for key in range(max_keys))
    strangers = sum(f"stranger:{nth}" in limiter for nth in range(1, 101))
    assert gone == strangers, "one went for each that came and stayed"
    verify(limiter)


@pytest.mark.parametrize("on_full", ["allow", "deny", "evict"])
@pytest.mark.parametrize("max_keys", [1, 2, 17])
def test_a_check_of_a_known_key_is_never_decided_by_it(max_keys: int, on_full: OnFull) -> None:
    """A known key fills its log, is denied, waits and comes back, all while the table is full."""
    limiter, clock = make(max_keys, on_full, limit=40)
    for key in range(max_keys):
        assert limiter.allow(key)
    clock.ns += 30 * NS_PER_S
    known = max_keys - 1
    assert [limiter.allow(known) for _ in range(40)] == [True] * 39 + [False]
    clock.ns += 30 * NS_PER_S
    assert limiter.check(known).remaining == 0
    assert not limiter.allow(known)
    stats = limiter.stats()
    assert (stats.overflowed, stats.evicted) == (0, 0)


def test_peek_of_a_stranger_inserts_nothing() -> None:
    for on_full in ("allow", "deny", "evict"):
        limiter, _ = make(2, on_full)
        limiter.allow_many(["a", "b"])
        before = limiter.stats()
        limiter.peek("stranger")
        assert limiter.stats() == before
        assert "a" in limiter
        assert "b" in limiter


@pytest.mark.parametrize(
    ("on_full", "expected"),
    [
        ("allow", ["overflow", "allowed"]),
        ("deny", ["overflow", "denied"]),
        ("evict", ["evicted", "allowed"]),
    ],
)
def test_what_telemetry_hears(on_full: OnFull, expected: list[str]) -> None:
    limiter, _ = make(1, on_full)
    heard: list[tuple[str, dict[str, float], dict[str, Any]]] = []
    telemetry.attach(
        "test", ["allowed", "denied", "overflow", "evicted"], lambda *event: heard.append(event)
    )
    try:
        limiter.allow("a")
        limiter.allow("b")
    finally:
        telemetry.detach("test")
    assert [event for event, _, _ in heard if event == "allowed"] != []
    assert heard[0][0] == "allowed"
    assert heard[0][2]["key"] == "a"
    assert sorted(event for event, _, _ in heard[1:]) == sorted(expected)
    assert heard[-1][0] == expected[-1]
    for _, measurements, metadata in heard[1:]:
        assert measurements["count"] == 1
        assert metadata["key"] == "b"
        assert metadata["limiter"] == limiter.name


def test_stats_know_the_capacity() -> None:
    for max_keys in SIZES:
        limiter, _ = make(max_keys, "deny")
        assert limiter.stats().capacity == max_keys


@pytest.mark.parametrize("max_keys", [2, 17, 10_000])
def test_a_clock_that_goes_back_while_the_table_is_full(max_keys: int) -> None:
    """What the table remembers of having been full does not outlive a newer key's window."""
    limiter, clock = make(max_keys, "deny")
    assert all(limiter.allow_many(range(max_keys)))
    assert not limiter.allow("stranger")
    clock.ns -= 600 * NS_PER_S
    assert limiter.reset(0)
    assert limiter.allow("newcomer")
    assert not limiter.allow("stranger")
    clock.ns += 60 * NS_PER_S
    assert "newcomer" not in limiter
    assert len(limiter) == max_keys - 1
    assert limiter.allow("stranger")
    assert not limiter.allow("stranger")
    assert len(limiter) == max_keys
