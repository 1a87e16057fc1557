"""Top offenders: who was denied most, through every verb that denies, as the key that it was."""

from __future__ import annotations

import ipaddress
import os
import pickle
import time
import uuid
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from doors import verify
from nanolimit import (
    Backoff,
    LimiterClosedError,
    ManualClock,
    NanolimitError,
    RateLimiter,
    TopKey,
    check_all,
    shared,
)
from nanolimit.quota import Quota
from nanolimit.top import HORIZON_S
from sharing import needs_shared

PANE_S = 120


def limiter_of(**options: Any) -> RateLimiter:
    return RateLimiter("1/day", **{"clock": ManualClock(), "track_top": 10, **options})


def denied(limiter: RateLimiter, n: int = 100) -> dict[Any, int]:
    found = limiter.top(n)
    verify(limiter)
    return {each.key: each.denied for each in found}


def test_most_come_first() -> None:
    limiter = limiter_of()
    for key in ["b"] * 4 + ["a"] * 11 + ["c"] * 2 + ["once"]:
        limiter.allow(key)
    assert limiter.top() == [
        TopKey("a", 10, 0, 0.0), TopKey("b", 3, 0, 0.0), TopKey("c", 1, 0, 0.0),
    ]  # fmt: skip
    assert limiter.top(2) == limiter.top()[:2]
    assert limiter.track_top == 10
    assert all(each.exact for each in limiter.top())


VERBS: dict[str, Callable[[RateLimiter], object]] = {
    "allow": lambda limiter: limiter.allow("k"),
    "allow with a cost": lambda limiter: limiter.allow("k", 1),
    "check": lambda limiter: limiter.check("k"),
    "check with a cost": lambda limiter: limiter.check("k", 1),
    "a list": lambda limiter: limiter.allow_many(["k"]),
    "check_all": lambda limiter: check_all([(limiter, "k")]),
    "reserve": lambda limiter: limiter.reserve("k"),
    "a quota of the call": lambda limiter: limiter.allow("k", quota=Quota(1, 86_400)),
}


@pytest.mark.parametrize("algorithm", ["sliding-log", "gcra", "fixed-window", "sliding-counter"])
@pytest.mark.parametrize("kind", ["plain", "own clock", "policies", "several quotas", "large"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_denies(verb: str, kind: str, algorithm: Any) -> None:
    options: dict[str, Any] = {"algorithm": algorithm, "clock": None}
    quota: Any = "1/day"
    if kind == "own clock":
        options["clock"] = ManualClock()
    elif kind == "policies":
        options["backoff"] = Backoff(after=100)
    elif kind == "several quotas":
        quota = "1/day; 5/week"
    elif kind == "large":
        quota = "5000/day"
    limiter = RateLimiter(quota, track_top=3, **options)
    if kind == "large":
        limiter.allow("k", 5_000)
        limiter.allow("other", 5_000)
    else:
        limiter.allow("k")
        limiter.allow("other")
    act = VERBS[verb]
    for _ in range(3):
        if verb == "a quota of the call" and kind == "large":
            limiter.allow("k", quota=Quota(1, 86_400))
        else:
            act(limiter)
    limiter.allow("other")
    assert denied(limiter) == {"k": 3, "other": 1}
    assert limiter.stats().denied == 4


def test_a_buffer() -> None:
    limiter = limiter_of()
    limiter.allow_many(array("q", [7, -7, 7, 7, -7]))
    assert denied(limiter) == {7: 2, -7: 1}
    limiter.allow_many(array("Q", [2**64 - 1] * 3))
    assert denied(limiter) == {7: 2, -7: 1, 2**64 - 1: 2}


def test_what_is_blocked_and_what_is_not_enforced_counts() -> None:
    limiter = limiter_of()
    limiter.block("blocked", 60)
    limiter.allow("blocked")
    limiter.check("blocked")
    assert denied(limiter) == {"blocked": 2}
    for blocked in (limiter_of(clock=None, backoff=Backoff(after=1, base=60)),):
        for _ in range(4):
            blocked.allow("k")
        assert denied(blocked) == {"k": 3}
    watching = limiter_of(enforce=False)
    for _ in range(3):
        assert watching.allow("k")
    assert denied(watching) == {"k": 2}


def test_what_is_not_a_denial() -> None:
    limiter = limiter_of()
    limiter.allow("k")
    limiter.peek("k")
    limiter.allow("k", 0)
    limiter.check("k", 0)
    assert not limiter.acquire("k", timeout=0)
    assert limiter.top() == []
    with pytest.raises(ValueError, match="cost must be <= the limit"):
        limiter.allow("k", 2)
    full = limiter_of()
    full.allow("new")
    assert not check_all([(limiter, "new"), (full, "new")])
    assert limiter.top() == [], "only who denied it counts it"
    assert denied(full) == {"new": 1}


def test_keys_that_do_not_fit() -> None:
    limiter = limiter_of(max_keys=1, on_full="deny")
    limiter.allow("first")
    limiter.allow("second")
    assert limiter.stats().overflowed == 1
    assert denied(limiter) == {"second": 1}


KEYS: list[Any] = [
    "text", "", "\u00fc\u2028\0<script>", "\U0001f600" * 32, "\udc80", "1", b"1", 1, -1, 0, True,
    10**30, -(10**30), 10**120, b"", b"\xff\0", "x" * 128, b"x" * 128, uuid.UUID(int=5), (),
    ("a", 1, b"x", ("deep", uuid.UUID(int=6))), ("UUID('1')",), ipaddress.ip_address("10.0.0.1"),
    ipaddress.ip_address("::1"), ipaddress.ip_network("10.0.0.0/8"),
    ipaddress.ip_interface("10.0.0.1/8"), ("net", ipaddress.ip_network("::/64")),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=lambda key: repr(key)[:40])
def test_the_key_comes_back(key: Any) -> None:
    limiter = limiter_of()
    limiter.allow(key)
    limiter.allow(key)
    [found] = limiter.top()
    assert (found.key, found.denied) == (key, 1) or not found.exact
    assert found.exact == (key != ("UUID('1')",))
    if found.exact:
        assert limiter.reset(found.key)
        assert type(found.key) is type(int(key) if key is True else key)


class Odd(str):
    def __repr__(self) -> str:
        return "'another'"


class Bad(str):
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("x" * 129, "x" * 128 + "…"),
        ("\u00fc" * 65, "\u00fc" * 64 + "…"),
        ("a" + "\u00fc" * 64, "a" + "\u00fc" * 63 + "…"),
        (b"x" * 129, "x" * 128 + "…"),
        (b"\xff" * 129, r"\xff" * 128 + "…"),
        (10**150, "1" + "0" * 127 + "…"),
        (2**1025, None),
        (("x" * 200, 1), "('" + "x" * 126 + "…"),
        ((Odd("mine"),), None),
        ((Bad("mine"),), "a key of type tuple…"),
    ],
    ids=lambda each: "",
)
def test_a_key_that_can_only_be_shown(key: Any, shown: str | None) -> None:
    limiter = limiter_of()
    for _ in range(3):
        limiter.allow(key)
    [found] = limiter.top()
    assert not found.exact
    assert found.denied == 2
    if shown is not None:
        assert found.key == shown


def test_equal_text_is_not_an_equal_key() -> None:
    limiter = limiter_of()
    for key, times in ((1, 2), ("1", 3), (b"1", 4), (("1",), 5)):
        for _ in range(times):
            limiter.allow(key)
    assert denied(limiter) == {1: 1, "1": 2, b"1": 3, ("1",): 4}


def test_it_forgets_by_panes() -> None:
    clock = ManualClock()
    limiter = limiter_of(clock=clock)
    for _ in range(3):
        limiter.allow("old")
    clock.advance(PANE_S)
    for _ in range(5):
        limiter.allow("new")
    assert denied(limiter) == {"new": 4, "old": 2}
    assert {each.key: each.last_denied for each in limiter.top()} == {"old": 0.0, "new": 120.0}
    clock.advance(HORIZON_S - PANE_S - 0.001)
    assert denied(limiter) == {"new": 4, "old": 2}
    clock.advance(0.001)
    assert denied(limiter) == {"new": 4}
    clock.advance(PANE_S)
    assert limiter.top() == []
    limiter.allow("old")
    assert denied(limiter) == {"old": 1}
    clock.advance(-HORIZON_S)
    limiter.allow("old")
    assert denied(limiter) == {"old": 2}, "a clock that goes back counts in the newest pane"
    clock.advance(1e9)
    assert limiter.top() == []


def test_more_keys_than_there_is_room_for() -> None:
    limiter = limiter_of(track_top=2)
    for key in ["a", "b", "c"]:
        limiter.allow(key)
    for key in ["a"] * 5 + ["b"] * 3 + ["c"]:
        limiter.allow(key)
    assert limiter.top() == [TopKey("a", 5, 0, 0.0), TopKey("c", 4, 3, 0.0)]
    limiter.allow("b")
    assert limiter.top() == [TopKey("a", 5, 0, 0.0), TopKey("b", 5, 4, 0.0)]


def test_times_are_unix_times() -> None:
    limiter = limiter_of(clock=None)
    limiter.allow("k")
    before = time.time()
    limiter.allow("k")
    after = time.time()
    [found] = limiter.top()
    assert before - 0.01 <= found.last_denied <= after + 0.01
    assert all(limiter.top() == [found] for _ in range(20)), "the same denial has the same time"


def test_another_quota_at_run_time_keeps_them() -> None:
    limiter = limiter_of()
    limiter.allow("k")
    limiter.allow("k")
    limiter.update("5000/week")
    assert denied(limiter) == {"k": 1}
    limiter.allow("k", 4_999)
    limiter.allow("k")
    assert denied(limiter) == {"k": 2}
    limiter.clear()
    limiter.evict()
    assert denied(limiter) == {"k": 2}, "they are a history, as the counters are"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_goes_on_with_its_own() -> None:
    limiter = limiter_of()
    limiter.allow("k")
    limiter.allow("k")
    pid = os.fork()
    if not pid:
        limiter.allow("k")
        limiter.allow("child")
        limiter.allow("child")
        os._exit(denied(limiter) != {"k": 2, "child": 1})
    assert os.waitpid(pid, 0)[1] == 0
    assert denied(limiter) == {"k": 1}


def test_a_result_travels() -> None:
    found = TopKey(b"k", 3, 1, 2.5, exact=False)
    again = pickle.loads(pickle.dumps(found))
    assert again == found == (b"k", 3, 1, 2.5)
    assert not again.exact
    assert repr(found) == "TopKey(key=b'k', denied=3, error=1, last_denied=2.5)"
    key, count, error, last_denied = found
    assert (key, count, error, last_denied) == tuple(found)


def test_a_result_that_is_changed() -> None:
    """By a named tuple's own ways, which make one without its constructor."""
    assert TopKey._make(["k", 3, 1, 2.5]).exact
    cut = TopKey("k…", 3, 1, 2.5, exact=False)._replace(denied=4)
    assert (cut, cut.exact) == (("k…", 4, 1, 2.5), False)
    assert TopKey("k", 3, 1, 2.5)._replace(denied=4).exact


# --- what is wrong


@pytest.mark.parametrize("value", [-1, 1_001, 10**30])
def test_a_number_to_track_out_of_range(value: int) -> None:
    with pytest.raises(
        ValueError, match="track_top must be from 1 to 1000 keys, or 0 for none, got"
    ):
        RateLimiter(track_top=value)


@pytest.mark.parametrize("value", [True, 1.5, "10", None])
def test_a_number_to_track_of_the_wrong_type(value: Any) -> None:
    with pytest.raises(TypeError, match="track_top must be an int, not"):
        RateLimiter(track_top=value)


@pytest.mark.parametrize("value", [0, -1])
def test_a_number_of_keys_out_of_range(value: int) -> None:
    with pytest.raises(ValueError, match=f"n must be >= 1, got {value}"):
        limiter_of().top(value)


@pytest.mark.parametrize("value", [True, 1.5, "1"])
def test_a_number_of_keys_of_the_wrong_type(value: Any) -> None:
    with pytest.raises(TypeError, match="n must be an int, not"):
        limiter_of().top(value)


def test_a_limiter_that_tracks_none() -> None:
    limiter = RateLimiter(name="api")
    assert limiter.track_top == 0
    with pytest.raises(
        NanolimitError, match="limiter 'api' does not keep whom it denies most: mak"
    ):
        limiter.top()


def test_a_closed_one() -> None:
    limiter = limiter_of()
    limiter.close()
    with pytest.raises(LimiterClosedError):
        limiter.top()


def test_it_costs_what_it_says() -> None:
    plain, tracking = RateLimiter().stats(), RateLimiter(track_top=100).stats()
    assert 64 << 10 < tracking.memory_bytes - plain.memory_bytes < 100 << 10


# --- shared tables


@needs_shared
def test_those_of_a_shared_table(folder: Any) -> None:
    one = RateLimiter("1/day", shared="api", track_top=10)
    other = RateLimiter("1/day", shared="api", track_top=100)
    silent = RateLimiter("1/day", shared="api")
    for limiter in (one, other, one, silent):
        limiter.allow("k")
    assert denied(one) == denied(other) == {"k": 2}
    assert (one.track_top, other.track_top, silent.track_top) == (100, 100, 0)
    with pytest.raises(NanolimitError, match="does not keep whom it denies most"):
        silent.top()
    one.close()
    with pytest.raises(LimiterClosedError):
        one.top()
    assert denied(other) == {"k": 2}


@needs_shared
def test_a_table_without_the_room(folder: Any) -> None:
    RateLimiter(5, shared="api")
    with pytest.raises(NanolimitError, match="its track_top is 100 at most, asked for 101"):
        RateLimiter(5, shared="api", track_top=101)
    adopted = RateLimiter(5, shared="api", track_top=101, on_mismatch="adopt")
    assert adopted.track_top == 100
    with RateLimiter(5, shared="api", track_top=101, on_mismatch="replace") as replaced:
        assert replaced.track_top == 101


@needs_shared
@pytest.mark.parametrize("track_top", [0, 7])
def test_a_table_without_a_name(track_top: int) -> None:
    limiter = RateLimiter("1/day", shared=True, track_top=track_top)
    assert limiter.track_top == track_top
    limiter.allow("k")
    pid = os.fork()
    if not pid:
        limiter.allow("k")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert limiter.stats().denied == 1
    if track_top:
        assert denied(limiter) == {"k": 1}


@needs_shared
def test_one_that_is_watched(folder: Any) -> None:
    limiter = RateLimiter("1/day; 3/week", shared="api", track_top=10)
    for _ in range(3):
        limiter.allow("k")
    with shared.watch("api") as watch:
        [found] = watch.top()
        assert found[:3] == ("k", 2, 0)
        assert found.exact
        assert [each[:3] for each in watch.top()] == [each[:3] for each in limiter.top()]
        assert watch.stats() == limiter.stats()
        assert vars(watch.stats()) == vars(limiter.stats())
