"""RedisRateLimiter and its async twin, over a store in memory: what they ask, say and keep."""

from __future__ import annotations

import asyncio
import copy
import gc
import ipaddress
import pickle
import subprocess
import sys
import threading
import uuid
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanolimit import LimiterClosedError, NanolimitError, Quota, RateLimiter, telemetry
from nanolimit.redis import (
    AsyncRedisRateLimiter,
    Lease,
    RedisRateLimiter,
    StoreUnavailableError,
)
from nanolimit.redis import aio as aio_module
from nanolimit.redis import denials as denials_module
from nanolimit.redis import dialog as dialog_module
from nanolimit.redis import limiter as limiter_module
from nanolimit.redis.denials import Denials
from nanolimit.redis.fault import Unavailable
from nanolimit.redis.lease import HOT
from nanolimit.redis.policy import Policy
from store import AsyncStoreWire, Store, StoreWire

TIMED_OUT = Unavailable("no reply in time", outcome_unknown=True)
REFUSED = Unavailable("connection refused")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(limiter_module, "Wire", StoreWire)
    monkeypatch.setattr(aio_module, "AsyncWire", AsyncStoreWire)
    for module in (limiter_module, aio_module, dialog_module):
        monkeypatch.setattr(module, "monotonic", store.monotonic)
    return store


class Awaited:
    """An AsyncRedisRateLimiter that waits for what it returns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *args: Any, **kwargs: Any) -> None:
        self._loop = loop
        self._limiter = AsyncRedisRateLimiter(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._limiter, name)
        if name not in ("allow", "check", "peek", "allow_many", "reset", "acquire", "close"):
            return found
        return lambda *args, **kwargs: self._loop.run_until_complete(found(*args, **kwargs))


Make = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def make(request: pytest.FixtureRequest, store: Store) -> Iterator[Make]:
    """make(quota, ...) -> a limiter on `store`, of either kind, to be used the same way."""
    if request.param == "sync":
        yield lambda quota, **options: RedisRateLimiter(quota, store, **options)
        return
    loop = asyncio.new_event_loop()
    yield lambda quota, **options: Awaited(loop, quota, store, **options)
    loop.close()


@pytest.fixture
def heard() -> Iterator[list[tuple[str, float, object]]]:
    """All events, as (event, count, key)."""
    events: list[tuple[str, float, object]] = []
    telemetry.attach(
        "test",
        telemetry.EVENTS,
        lambda event, measurements, metadata: events.append(
            (event, measurements["count"], metadata["key"])
        ),
    )
    yield events
    telemetry.detach("test")


# --- the verbs


def test_allow_counts_and_denies(make: Make, store: Store) -> None:
    limiter = make("3/second")
    assert [limiter.allow("k") for _ in range(4)] == [True, True, True, False]
    assert limiter.allow("other")
    store.now_s += 1
    assert limiter.allow("k")


def test_a_request_is_asked_for_once(make: Make, store: Store) -> None:
    limiter = make("3/second")
    limiter.allow("k")
    limiter.check("k")
    limiter.peek("k")
    assert store.calls == ["take_one", "tell", "look"]


def test_check_tells_more(make: Make, store: Store) -> None:
    limiter = make("3/second")
    first = limiter.check("k", 2)
    assert (first.allowed, first.remaining, first.retry_after) == (True, 1, 0.0)
    store.now_s += 0.25
    second = limiter.check("k", 2)
    assert (second.allowed, second.remaining, second.degraded) == (False, 1, False)
    assert second.retry_after == pytest.approx(0.75)
    assert second.quota == Quota(3, per=1.0)


def test_a_policy_that_is_closed_makes_no_limiter_any_more() -> None:
    policy = Policy("local", (Quota(5, per=60),), 1, "ends", 1.0)
    assert policy.allow("k", 1, REFUSED)
    policy.close()
    with pytest.raises(LimiterClosedError, match="'ends' was closed while the store was asked"):
        policy.allow("k", 1, REFUSED)
    assert policy._local is None


def test_closing_is_possible_though_somebody_waited_in_a_loop_that_is_closed(store: Store) -> None:
    limiter = AsyncRedisRateLimiter("1/minute", store)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(limiter.allow("k"))
    task = loop.create_task(limiter.acquire("k"))
    while not limiter._asleep:
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    asyncio.run(limiter.close())
    assert store.closed


def test_peek_counts_nothing(make: Make, store: Store) -> None:
    limiter = make("2/second")
    assert limiter.peek("k", 2).allowed
    assert limiter.peek("k", 2).remaining == 2
    assert store.logs == {}


def test_cost_zero_is_allowed_and_asks_nobody(make: Make, store: Store) -> None:
    limiter = make("1/second")
    limiter.allow("k")
    assert limiter.allow("k", 0)
    assert limiter.acquire("k", 0)
    assert limiter.allow_many(["k", "k"], 0) == [True, True]
    assert store.calls == ["take_one"]
    assert limiter.check("k", 0).allowed
    assert store.calls == ["take_one", "look"]
    assert limiter.stats().allowed == 1


def test_several_quotas_count_in_all_or_in_none(make: Make, store: Store) -> None:
    limiter = make("2/second; 3/minute")
    assert [limiter.allow("k") for _ in range(3)] == [True, True, False]
    assert limiter.check("k").quota == Quota(2, per=1.0)
    store.now_s += 1
    assert limiter.allow("k")
    denied = limiter.check("k")
    assert denied.quota == Quota(3, per=60.0)
    assert limiter.quotas == (Quota(2, per=1.0), Quota(3, per=60.0))
    assert limiter.quota == Quota(2, per=1.0)


def test_allow_many_is_one_call_in_order(make: Make, store: Store) -> None:
    limiter = make("2/second")
    assert limiter.allow_many(["a", "b", "a", "a", "b"]) == [True, True, True, False, True]
    assert store.calls == ["batch"]
    assert limiter.allow_many([]) == []
    assert limiter.allow_many(("c",)) == [True]


def test_a_large_batch_goes_in_parts(make: Make, store: Store) -> None:
    limiter = make("1/second")
    keys = list(range(600))
    assert limiter.allow_many(keys) == [True] * 600
    assert store.calls == ["batch"] * 3
    assert limiter.allow_many(keys) == [False] * 600
    store.calls.clear()
    assert limiter.allow_many([*keys, 600]) == [*[False] * 600, True]  # denied ones by the cache
    assert store.calls == ["batch"]


def test_a_batch_of_a_cluster_is_one_call_a_key(make: Make, store: Store) -> None:
    store.clustered = True
    limiter = make("2/second")
    assert limiter.allow_many(["a", "b", "a", "a", "b"]) == [True, True, True, False, True]
    assert store.calls == ["take_one"] * 5


def test_a_url_may_turn_out_to_be_a_cluster(make: Make, store: Store) -> None:
    limiter = make("2/second")
    store.faults = [Unavailable("CROSSSLOT Keys in request don't hash to the same slot")]
    assert limiter.allow_many(["a", "b", "a", "a"]) == [True, True, True, False]
    assert limiter.stats().degraded == 0


@pytest.mark.parametrize("code", ["q", "Q"])
def test_allow_many_of_a_buffer(make: Make, store: Store, code: str) -> None:
    limiter = make("1/second")
    top = 2**64 - 1 if code == "Q" else -5
    answers = limiter.allow_many(array(code, [7, 7, top]))
    assert isinstance(answers, memoryview)
    assert (answers.format, answers.tolist()) == ("?", [True, False, True])
    assert not limiter.allow(7)
    assert not limiter.allow(top)


def test_a_buffer_with_strides(make: Make, store: Store) -> None:
    limiter = make("1/second")
    assert limiter.allow_many(memoryview(array("q", [1, 2, 1, 2]))[::2]).tolist() == [True, False]


def test_reset(make: Make, store: Store) -> None:
    limiter = make("1/second")
    assert not limiter.reset("k")
    limiter.allow("k")
    assert not limiter.allow("k")
    assert limiter.reset("k")
    assert limiter.allow("k")  # the cached denial went too


def test_in(store: Store) -> None:
    limiter = RedisRateLimiter("1/second", store)
    limiter.allow("k")
    assert "k" in limiter
    assert "other" not in limiter


KEYS = [
    "user:42", "", "{", "}", "{}", "a{b}c", "\x00\n%", "é", "x" * 5_000, b"user:42", b"\xff{", b"",
    1, -1, 0, 2**70, uuid.UUID(int=5), ipaddress.ip_address("10.0.0.1"),
    ipaddress.ip_network("10.0.0.0/8"), ("user", 42), (("a",), b"b"), (),
]  # fmt: skip


def test_every_kind_of_key_is_a_user_of_its_own(make: Make, store: Store) -> None:
    limiter = make("1/second")
    assert [limiter.allow(key) for key in KEYS] == [True] * len(KEYS)
    assert limiter.allow_many(KEYS) == [False] * len(KEYS)
    assert not any(limiter.check(key).allowed for key in KEYS)
    assert all(limiter.reset(key) for key in KEYS)


def test_equal_keys_are_one_user(make: Make, store: Store) -> None:
    limiter = make("1/second")
    assert limiter.allow(True)
    assert not limiter.allow(1)
    assert not limiter.allow(True)
    assert limiter.reset(True)
    assert limiter.allow(1)


# --- bad input: as a RateLimiter has it, and nothing is sent

BAD_CALLS = [
    ("allow", (1.5,)), ("allow", (None,)), ("allow", (["k"],)), ("allow", (("k", 1.5),)),
    ("allow", ("k", True)), ("allow", ("k", 1.0)), ("allow", ("k", "1")), ("allow", ("k", -1)),
    ("allow", ("k", 4)), ("allow", ("k", 10**50)), ("check", ("k", 4)), ("peek", ("k", 4)),
    ("check", (1.5,)), ("peek", (1.5,)), ("reset", (1.5,)), ("acquire", ("k", 4)),
    ("acquire", (1.5,)), ("acquire", ("k", 1, -1)), ("acquire", ("k", 1, "1")),
    ("acquire", ("k", 1, float("nan"))), ("allow_many", ("keys",)), ("allow_many", (b"keys",)),
    ("allow_many", ({"k"},)), ("allow_many", (["a", 1.5],)), ("allow_many", (["a"], 4)),
    ("allow_many", (["a"], True)), ("allow_many", (array("i", [1]),)), ("allow_many", (7,)),
    ("allow_many", (iter(["a"]),)), ("allow_many", (memoryview(bytes(16)).cast("q", (1, 2)),)),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "args"), BAD_CALLS)
def test_bad_input_is_refused_as_by_a_rate_limiter(
    make: Make, store: Store, verb: str, args: tuple[Any, ...]
) -> None:
    with pytest.raises((TypeError, ValueError)) as expected:
        getattr(RateLimiter("3/second"), verb)(*args)
    limiter = make("3/second")
    with pytest.raises(expected.type) as found:
        getattr(limiter, verb)(*args)
    assert str(found.value) == str(expected.value)
    assert store.calls == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"on_error": "open"}, ValueError, "on_error must be 'local', 'allow', 'deny' or 'raise'"),
        ({"on_error": None}, TypeError, "on_error must be a str"),
        ({"timeout": 0}, ValueError, "timeout must be above 0"),
        ({"timeout": -1.0}, ValueError, "-1.0"),
        ({"timeout": 61}, ValueError, "at most 60 seconds, not 61"),
        ({"timeout": float("nan")}, ValueError, "timeout"),
        ({"timeout": "1"}, TypeError, "timeout must be seconds"),
        ({"deny_cache": 1}, TypeError, "deny_cache must be a bool, not int"),
        ({"nodes": 0}, ValueError, "nodes must be from 1 to"),
        ({"nodes": 2.0}, TypeError, "nodes must be an int"),
        ({"prefix": ""}, ValueError, "prefix must have 1 to 200 characters"),
        ({"prefix": b"nl"}, TypeError, "prefix must be a str"),
        ({"name": ""}, ValueError, "name must have"),
        ({"name": 5}, TypeError, "name must be a str"),
        ({"per": 5}, TypeError, "per goes with"),
    ],
)
def test_bad_options(
    make: Make, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make("3/second", **options)


def test_bad_quotas(make: Make) -> None:
    quotas: list[Any] = ["3/month", 0, 1.5, [], "1/s;" * 9]
    for quota in quotas:
        with pytest.raises((TypeError, ValueError)):
            make(quota)


def test_a_limit_as_an_int(make: Make) -> None:
    assert make(5, per=2.0).quota == Quota(5, per=2.0)
    assert make(5).quota == Quota(5, per=60.0)


# --- names in the store


def test_limiters_of_one_quota_share_their_counts(make: Make, store: Store) -> None:
    one, two = make("2/second"), make("2/second")
    assert one.allow("k")
    assert two.allow("k")
    assert not one.allow("k")
    assert make("3/second").allow("k")
    assert make("2/second", prefix="other").allow("k")


def test_limiters_of_one_name_share_their_counts_whatever_the_limit(
    make: Make, store: Store
) -> None:
    assert [make("2/second", name="api").allow("k") for _ in range(3)] == [True, True, False]
    assert make("3/second", name="api").allow("k")
    assert not make("1/second", name="api").allow("k")


# --- the deny cache


def test_a_denial_is_repeated_until_it_is_over(make: Make, store: Store) -> None:
    limiter = make("1/second")
    limiter.allow("k")
    store.now_s += 0.25
    assert not limiter.allow("k")
    asked = len(store.calls)
    store.now_s += 0.5
    assert not limiter.allow("k")
    assert len(store.calls) == asked
    assert limiter.stats().denied_locally == 1
    store.now_s += 0.25
    assert limiter.allow("k")


def test_never_longer_than_the_store_says_counted_from_the_sending(
    make: Make, store: Store
) -> None:
    limiter = make("1/second")
    limiter.allow("k")
    store.latency_s = 0.1  # each way
    sent_s = store.now_s
    assert not limiter.allow("k")  # decided at +0.1: 0.9 left
    store.latency_s = 0.0
    store.now_s = sent_s + 0.89
    asked = len(store.calls)
    assert not limiter.allow("k")
    assert len(store.calls) == asked
    store.now_s = sent_s + 0.91
    limiter.allow("k")
    assert len(store.calls) == asked + 1


def test_a_second_at_most(make: Make, store: Store) -> None:
    limiter = make("1/hour")
    limiter.allow("k")
    limiter.allow("k")
    asked = len(store.calls)
    store.now_s += 0.999
    limiter.allow("k")
    assert len(store.calls) == asked
    store.now_s += 0.002
    limiter.allow("k")
    assert len(store.calls) == asked + 1


def test_a_lower_cost_is_asked_for(make: Make, store: Store) -> None:
    limiter = make("3/second")
    limiter.allow("k", 2)
    assert not limiter.allow("k", 2)
    asked = len(store.calls)
    assert not limiter.allow("k", 3)
    assert not limiter.allow_many(["k"], 2)[0]
    assert len(store.calls) == asked
    assert limiter.allow("k", 1)


def test_a_check_is_repeated_with_its_time_counted_down(make: Make, store: Store) -> None:
    limiter = make("3/second")
    limiter.allow("k", 3)
    first = limiter.check("k")
    store.now_s += 0.4
    asked = len(store.calls)
    second = limiter.check("k")
    assert len(store.calls) == asked
    assert second.retry_after == pytest.approx(first.retry_after - 0.4, abs=1e-6)
    assert second.remaining == 0
    assert not second.degraded
    assert not limiter.check("k", 2).allowed  # its time is another one
    assert len(store.calls) == asked + 1


def test_a_check_is_not_answered_by_what_allow_was_told(make: Make, store: Store) -> None:
    limiter = make("1/second")
    limiter.allow("k")
    limiter.allow("k")
    asked = len(store.calls)
    assert limiter.check("k").retry_after == pytest.approx(1.0)
    assert len(store.calls) == asked + 1


def test_peek_always_asks(make: Make, store: Store) -> None:
    limiter = make("1/second")
    limiter.allow("k")
    limiter.check("k")
    asked = len(store.calls)
    limiter.peek("k")
    assert len(store.calls) == asked + 1


def test_a_denial_that_was_under_way_when_a_reset_came_is_not_kept(
    make: Make, store: Store
) -> None:
    limiter = make("1/second")
    limiter.allow("k")
    inner = limiter._limiter if isinstance(limiter, Awaited) else limiter
    store.on_call = lambda: inner._forget(inner._place("k"))
    assert not limiter.allow("k")
    store.on_call = lambda: None
    store.logs.clear()
    assert limiter.allow("k")


def test_without_the_cache_the_store_is_always_asked(make: Make, store: Store) -> None:
    limiter = make("1/second", deny_cache=False)
    for _ in range(4):
        limiter.allow("k")
        limiter.check("k")
    assert len(store.calls) == 8
    assert limiter.stats().denied_locally == 0
    assert limiter.reset("k")


def test_the_cache_is_bounded() -> None:
    denials = Denials(max_keys=10)
    for number in range(100):
        denials.put(number.to_bytes(16, "big"), 1, 0.0, 0.5, denials.epoch)
        assert len(denials) <= 10
    assert denials.get((99).to_bytes(16, "big"), 1, 0.1) is not None
    assert denials.get((0).to_bytes(16, "big"), 1, 0.1) is None


def test_a_denial_of_less_is_not_replaced_by_one_of_more() -> None:
    denials = Denials()
    denials.put(b"k", 1, 0.0, 0.5, denials.epoch)
    denials.put(b"k", 3, 0.0, 0.4, denials.epoch)
    assert denials.get(b"k", 1, 0.45) is not None
    denials.put(b"k", 3, 0.0, 0.9, denials.epoch)  # this one says more of 3, and nothing of 1
    assert denials.get(b"k", 1, 0.45) is None
    assert denials.get(b"k", 3, 0.8) is not None
    denials.put(b"k", 1, 0.1, 0.3, denials.epoch)  # and this one of 1
    assert denials.get(b"k", 1, 0.3) is not None


def test_a_forgotten_denial_is_forgotten() -> None:
    denials = Denials()
    before = denials.epoch
    denials.put(b"k", 1, 0.0, 0.5, before)
    denials.forget(b"k")
    assert denials.get(b"k", 1, 0.1) is None
    denials.put(b"k", 1, 0.0, 0.5, before)  # asked for before
    assert denials.get(b"k", 1, 0.1) is None
    denials.put(b"k", 1, 0.0, 0.5, denials.epoch)
    assert denials.get(b"k", 1, 0.1) is not None
    denials.clear()
    assert len(denials) == 0
    assert denials_module.CAP_S == 1.0


# --- acquire


def test_acquire_waits_until_the_store_says(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = RedisRateLimiter("2/second", store)
    pauses: list[float] = []

    def wait(pause_s: float) -> bool:
        pauses.append(pause_s)
        store.now_s += pause_s
        return False

    monkeypatch.setattr(limiter._bell, "wait", wait)
    assert limiter.acquire("k", 2)
    store.now_s += 0.25
    assert limiter.acquire("k")
    assert pauses == [pytest.approx(0.75)]
    assert limiter.stats()[:2] == (2, 0)  # who waits was not denied
    assert not limiter.acquire("k", 2, timeout=0.5)
    assert pauses[1:] == [pytest.approx(0.5)]
    assert limiter.acquire("k", 2, timeout=5)
    assert store.calls == ["take_one"] * (1 + 2 + 1 + 1)  # the cache knows the rest
    assert not limiter._gates


def test_acquire_async_waits_until_the_store_says(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        limiter = AsyncRedisRateLimiter("1/second", store)
        pauses: list[float] = []

        async def sleep(self: object, pause_s: float) -> None:
            pauses.append(pause_s)
            store.now_s += pause_s

        monkeypatch.setattr(AsyncRedisRateLimiter, "_sleep", sleep)
        assert await limiter.acquire("k")
        store.now_s += 0.25
        assert await limiter.acquire("k")
        assert not await limiter.acquire("k", timeout=0.5)
        assert pauses == [pytest.approx(0.75), pytest.approx(0.5)]
        assert limiter.stats()[:2] == (2, 0)
        assert not limiter._lines

    asyncio.run(run())


def test_acquire_with_a_timeout_of_0_tries_once(make: Make, store: Store) -> None:
    limiter = make("1/second")
    assert limiter.acquire("k", timeout=0)
    assert not limiter.acquire("k", timeout=0)
    assert len(store.calls) == 2


def test_tasks_are_served_in_the_order_in_which_they_came(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> list[int]:
        limiter = AsyncRedisRateLimiter("1/second", store)
        served: list[int] = []
        woken = asyncio.Event()

        async def sleep(self: object, pause_s: float) -> None:
            await woken.wait()
            store.now_s += pause_s

        monkeypatch.setattr(AsyncRedisRateLimiter, "_sleep", sleep)

        async def one(number: int) -> None:
            assert await limiter.acquire("k")
            served.append(number)

        tasks = [asyncio.create_task(one(number)) for number in range(6)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the second one's request goes out with the next turn of the loop
        asked = len(store.calls)
        await asyncio.sleep(0)
        assert len(store.calls) == asked  # one of them asks
        tasks[2].cancel()
        woken.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not limiter._lines
        return served

    assert asyncio.run(run()) == [0, 1, 3, 4, 5]


def test_a_first_task_that_is_cancelled_lets_the_next_one_go(store: Store) -> None:
    async def run() -> AsyncRedisRateLimiter:
        limiter = AsyncRedisRateLimiter("1/second", store)
        await limiter.allow("k")
        first = asyncio.create_task(limiter.acquire("k"))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(limiter.acquire("k"))
        await asyncio.sleep(0)
        first.cancel()
        store.now_s += 1
        assert await second
        assert not limiter._lines
        # Its place in line is all that a loop leaves behind, and goes with it.
        limiter._lines[limiter._place("k")] = deque()
        return limiter

    limiter = asyncio.run(run())
    store.now_s += 1
    assert asyncio.run(limiter.acquire("k"))


def test_a_task_that_is_cancelled_when_its_turn_comes_lets_the_next_one_go(store: Store) -> None:
    async def run() -> None:
        limiter = AsyncRedisRateLimiter("1/second", store)
        place = limiter._place("k")
        assert await limiter._queue(place, None)
        second, third = (asyncio.create_task(limiter.acquire("k")) for _ in range(2))
        await asyncio.sleep(0)
        limiter._step_out(place)
        second.cancel()
        assert await third
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not limiter._lines

    asyncio.run(run())


def test_a_task_whose_time_is_up_leaves_the_line(store: Store) -> None:
    async def run() -> None:
        limiter = AsyncRedisRateLimiter("1/second", store)
        place = limiter._place("k")
        assert await limiter._queue(place, None)
        assert not await limiter.acquire("k", timeout=0)
        assert not await limiter.acquire("k", timeout=0.001)
        limiter._step_out(place)
        assert await limiter.acquire("k", timeout=0)

    asyncio.run(run())


def test_another_loop_is_refused_and_changes_nothing(store: Store) -> None:
    async def run() -> list[bool]:
        limiter = AsyncRedisRateLimiter("2/second", store)
        place = limiter._place("k")
        assert await limiter._queue(place, None)
        waiting = [asyncio.create_task(limiter.acquire("k")) for _ in range(2)]
        await asyncio.sleep(0)

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match=r"another event loop.*one for each loop"):
                asyncio.run(limiter.acquire("k", timeout=0))

        await asyncio.to_thread(elsewhere)
        limiter._step_out(place)
        return await asyncio.wait_for(asyncio.gather(*waiting), 30)

    assert asyncio.run(run()) == [True, True]


def test_in_the_child_of_a_fork_nobody_waits(store: Store) -> None:
    limiter = RedisRateLimiter("1/second", store)
    gate = limiter._gate(limiter._place("k"))
    with gate:
        assert not limiter.acquire("k", timeout=0)
        limiter.after_fork()
        assert limiter.acquire("k", timeout=0)

    async def run() -> None:
        twin = AsyncRedisRateLimiter("2/second", store)
        assert await twin._queue(twin._place("k"), None)
        assert not await twin.acquire("k", timeout=0)
        twin.after_fork()
        assert await twin.acquire("k", timeout=0)
        # The parent's loop never closes there.
        twin.after_fork()
        assert await asyncio.to_thread(asyncio.run, twin.acquire("k", timeout=0))

    asyncio.run(run())


def test_close_tells_those_who_wait(store: Store) -> None:
    limiter = RedisRateLimiter("1/hour", store)
    limiter.allow("k")
    outcome: list[object] = []

    def wait() -> None:
        try:
            outcome.append(limiter.acquire("k"))
        except LimiterClosedError as error:
            outcome.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    limiter.close()
    for thread in threads:
        thread.join(30)
    assert len(outcome) == 3
    assert all(isinstance(each, LimiterClosedError) for each in outcome)

    async def run() -> None:
        limiter = AsyncRedisRateLimiter("1/hour", store)
        await limiter.allow("j")
        waiting = [asyncio.create_task(limiter.acquire("j")) for _ in range(3)]
        await asyncio.sleep(0.01)
        await limiter.close()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(end) for end in ends] == [LimiterClosedError] * 3

    asyncio.run(run())


# --- without the store


def test_local_enforces_a_share_and_says_so(make: Make, store: Store) -> None:
    limiter = make("10/second", nodes=4)
    store.down = REFUSED
    assert [limiter.allow("k") for _ in range(4)] == [True, True, True, False]
    decision = limiter.check("k")
    assert (decision.allowed, decision.degraded, decision.limit) == (False, True, 3)
    assert limiter.peek("k").degraded
    assert limiter.allow_many(["a", "a", "a", "a"]) == [True, True, True, False]
    assert limiter.stats()[:4] == (6, 3, 0, 9)


def test_a_share_is_never_more_than_the_limit(make: Make, store: Store) -> None:
    store.down = REFUSED
    one, many = make("3/second"), make("3/second", nodes=100)
    assert [one.allow("k") for _ in range(4)] == [True, True, True, False]
    assert [many.allow("k") for _ in range(2)] == [True, False]


def test_a_shared_share(make: Make, store: Store, folder: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("shared tables are for Linux")
    limiters = [make("10/minute; 100/hour", name="api", nodes=4, shared="here") for _ in range(2)]
    store.down = REFUSED
    assert [limiters[i % 2].allow("k") for i in range(4)] == [True, True, True, False]
    assert limiters[1].check("k").degraded
    assert [limiter.stats().denied for limiter in limiters] == [0, 2]
    # A deployment.
    changed = make("20/minute; 100/hour", name="api", nodes=4, shared="here")
    assert [changed.allow("k") for _ in range(3)] == [True, True, False]
    for limiter in limiters:
        limiter.close()


def test_a_shared_share_is_nobody_elses(make: Make, store: Store, folder: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("shared tables are for Linux")
    plain = RateLimiter("3/minute", shared="here")
    small, large = make("2/minute", shared="here"), make("5/minute", shared="here")
    same = make("5/minute", shared="here")
    store.down = REFUSED
    assert sum(small.allow("k") for _ in range(9)) == 2
    assert sum(large.allow("k") for _ in range(4)) == 4
    assert sum(same.allow("k") for _ in range(9)) == 1
    assert sum(plain.allow("k") for _ in range(9)) == 3
    assert plain.quota.limit == 3
    plain.close()


def test_what_is_wrong_with_a_shared_table_is_told_at_once(make: Make, folder: Path) -> None:
    with pytest.raises(TypeError, match=r"on_error='local'.* not on_error='deny'"):
        make("10/minute", on_error="deny", deny_cache=False, shared="here")
    assert not list(folder.iterdir())
    if sys.platform != "linux":
        return
    make("10/minute", name="web", prefix="app", shared="here").close()
    outage, denials = sorted(folder.iterdir())
    assert outage.name.startswith("here.app-web-")
    assert denials.name == f"{outage.name}.denials"
    for table in (outage, denials):
        table.write_bytes(b"no table")
        with pytest.raises(NanolimitError, match=table.name):
            make("10/minute", name="web", prefix="app", shared="here")
        table.unlink()


def test_another_type_under_a_keys_name_is_no_outage(make: Make, store: Store) -> None:
    limiter = make("3/second", on_error="deny")
    store.down = Unavailable("WRONGTYPE Operation against a key holding the wrong kind of value")
    assert [limiter.allow("k") for _ in range(9)] == [False] * 9
    assert limiter.degraded is None
    store.down = None
    assert limiter.allow("other")


def test_a_cost_above_the_share_is_denied(make: Make, store: Store, heard: list[Any]) -> None:
    limiter = make("10/second", nodes=4)
    store.down = REFUSED
    assert not limiter.allow("k", 4)
    decision = limiter.check("k", 10)
    assert (decision.allowed, decision.degraded, decision.remaining) == (False, True, 0)
    assert 0 < decision.retry_after <= 1
    assert not limiter.peek("k", 10).allowed
    assert limiter.allow_many(["k", "k"], 4) == [False, False]
    assert [each for each in heard if each[0] == "denied"] == [
        ("denied", 4, "k"), ("denied", 10, "k"), ("denied", 4, "k"), ("denied", 4, "k"),
    ]  # fmt: skip


@pytest.mark.parametrize("allows", [True, False])
def test_allow_and_deny(make: Make, store: Store, heard: list[Any], allows: bool) -> None:
    limiter = make("3/second", on_error="allow" if allows else "deny")
    store.down = REFUSED
    assert [limiter.allow("k") for _ in range(5)] == [allows] * 5
    decision = limiter.check("k", 2)
    assert (decision.allowed, decision.degraded, decision.limit) == (allows, True, 3)
    assert decision.remaining == (1 if allows else 0)
    assert (decision.retry_after == 0) is allows
    assert limiter.peek("k").remaining == (3 if allows else 0)
    assert limiter.allow_many(["k", "j"]) == [allows] * 2
    assert limiter.acquire("k", timeout=0) is allows
    word = "allowed" if allows else "denied"
    assert {each[0] for each in heard} == {word, "degraded"}
    assert limiter.stats().degraded == (9 if allows else 8)
    assert pickle.loads(pickle.dumps(decision)).degraded


@pytest.mark.parametrize("on_error", ["local", "allow", "deny"])
def test_cost_zero_is_allowed_without_the_store_too(
    make: Make, store: Store, heard: list[Any], on_error: str
) -> None:
    limiter = make("3/second", on_error=on_error)
    store.down = REFUSED
    for decision in (limiter.check("k", 0), limiter.peek("k", 0)):
        assert (decision.allowed, decision.degraded) == (True, True)
        assert (decision.retry_after, decision.refill_after) == (0, 0)
        assert decision.remaining == (0 if on_error == "deny" else 3)
    assert limiter.allow("k", 0)
    assert not [each for each in heard if each[0] != "degraded"]


def test_raise(make: Make, store: Store) -> None:
    limiter = make("3/second", on_error="raise", name="api")
    store.faults = [TIMED_OUT]
    with pytest.raises(StoreUnavailableError, match="limiter 'api' can't ask its store") as found:
        limiter.allow("k")
    assert found.value.outcome_unknown
    assert "not sent again" in str(found.value)
    assert isinstance(found.value, NanolimitError)
    assert str(pickle.loads(pickle.dumps(found.value))) == str(found.value)
    store.down = REFUSED
    calls: list[Callable[[], object]] = [
        lambda: limiter.check("k"),
        lambda: limiter.peek("k"),
        lambda: limiter.allow_many(["k"]),
        lambda: limiter.reset("k"),
        lambda: limiter.acquire("k"),
        lambda: limiter.allow("k"),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailableError) as found:
            call()
        assert not found.value.outcome_unknown
    assert limiter.stats()[:2] == (0, 0)


def test_nothing_is_sent_again_and_a_lost_reply_goes_to_the_policy(
    make: Make, store: Store
) -> None:
    limiter = make("2/second")
    store.faults = [TIMED_OUT]
    store.counts_before_fault = True  # it ran; nobody heard of it
    assert limiter.allow("k")
    assert len(store.calls) == 1
    assert limiter.stats()[4:6] == (1, 1)
    store.counts_before_fault = False
    assert limiter.allow("k")  # the second one, for the store counted the first
    assert not limiter.allow("k")


def test_while_the_breaker_is_open_nobody_is_asked(
    make: Make, store: Store, heard: list[Any]
) -> None:
    limiter = make("1000/second")
    store.down = REFUSED
    for _ in range(10):
        assert limiter.allow("k")
    assert len(store.calls) == dialog_module.FAILURES
    assert limiter.degraded == "connection refused"
    assert "degraded" in repr(limiter if not isinstance(limiter, Awaited) else limiter._limiter)
    store.now_s += dialog_module.PAUSE_S
    assert limiter.allow("k")  # the probe, which fails
    assert limiter.allow("k")
    assert len(store.calls) == dialog_module.FAILURES + 1
    store.down = None
    store.now_s += dialog_module.PAUSE_S
    assert limiter.allow("k")
    assert limiter.degraded is None
    assert not limiter.check("k").degraded
    told = [each for each in heard if each[0] in ("degraded", "recovered")]
    assert told == [
        ("degraded", 1, None),
        ("recovered", pytest.approx(2 * dialog_module.PAUSE_S), None),
    ]


def test_what_is_told_of_an_outage(make: Make, store: Store) -> None:
    told: list[tuple[str, dict[str, object]]] = []
    telemetry.attach(
        "outages",
        ["degraded", "recovered"],
        lambda event, measurements, metadata: told.append((event, metadata)),
        limiter="api",
    )
    try:
        for name in ("api", "other"):
            limiter = make("1000/second", name=name, on_error="deny")
            store.down = REFUSED
            for _ in range(dialog_module.FAILURES):
                limiter.allow("k")
            store.down = None
            store.now_s += dialog_module.PAUSE_S
            assert limiter.allow("k")
    finally:
        telemetry.detach("outages")
    head = {"limiter": "api", "key": None, "reason": "connection refused"}
    assert told == [("degraded", {**head, "on_error": "deny"}), ("recovered", head)]


def test_one_failure_does_not_open_the_breaker(make: Make, store: Store, heard: list[Any]) -> None:
    limiter = make("1000/second")
    for _ in range(10):
        store.faults = [REFUSED, REFUSED]
        for _ in range(3):
            limiter.allow("k")
    assert len(store.calls) == 30
    assert limiter.stats().degraded == 20
    assert {each[0] for each in heard} == {"allowed"}


def test_a_batch_that_fails_does_not_go_on(make: Make, store: Store) -> None:
    limiter = make("1/second", on_error="deny")
    store.faults = [REFUSED]
    assert limiter.allow_many(range(1_000)) == [False] * 1_000
    assert len(store.calls) == 1
    assert limiter.stats().degraded == 1_000


def test_of_a_batch_of_a_cluster_the_policy_decides_what_was_lost(make: Make, store: Store) -> None:
    store.clustered = True
    limiter = make("1/second", on_error="deny", deny_cache=False)
    store.faults = [REFUSED]
    assert limiter.allow_many(["a", "b", "b"]) == [False, True, False]
    stats = limiter.stats()
    assert (stats.allowed, stats.denied, stats.degraded) == (1, 2, 1)


def test_a_large_batch_of_a_cluster_does_not_go_on_after_a_fault(make: Make, store: Store) -> None:
    store.clustered = True
    limiter = make("1/second", on_error="deny")
    store.faults = [REFUSED]
    answers = limiter.allow_many(range(1_000))
    asked = len(store.calls)
    assert 1 < asked < 1_000
    assert answers == [False] + [True] * (asked - 1) + [False] * (1_000 - asked)
    assert limiter.stats().degraded == 1_001 - asked


STRANGE = [None, b"hi", b"hello", [], [1], [1] * 4, [None] * 5, [10**30] * 5, [[1]], {}, object()]


@pytest.mark.parametrize("reply", STRANGE, ids=str)
@pytest.mark.parametrize("clustered", [False, True])
def test_who_answers_and_is_no_redis_is_a_store_that_is_away(
    make: Make, store: Store, monkeypatch: pytest.MonkeyPatch, reply: Any, clustered: bool
) -> None:
    monkeypatch.setattr(store, "ask", lambda *args: reply)
    store.clustered = clustered
    limiter = make("100/minute", on_error="deny", lease=Lease())
    verbs: list[tuple[Callable[[], Any], Any]] = [
        (lambda: limiter.allow("k", 2), False),
        (lambda: limiter.check("k").degraded, True),
        (lambda: limiter.peek("k").degraded, True),
        (lambda: limiter.acquire("k", timeout=0), False),
        (lambda: limiter.allow_many(["a", "b"]), [False, False]),
    ]
    for verb, answer in verbs:
        limiter._breakers.single._until = 0
        assert verb() == answer
    for _ in range(2 * HOT):  # a loan is asked for as well
        breaker = limiter._breakers.single
        breaker.succeeded(breaker.enter(store.now_s + 100))
        assert limiter.allow("k") is False
    assert limiter.reset("k") in (True, False)
    assert limiter.stats().unknown == limiter.stats().failures > 5


@pytest.mark.parametrize("reply", STRANGE, ids=str)
def test_tasks_at_once_that_are_answered_strangely_do_not_wait_for_ever(
    store: Store, monkeypatch: pytest.MonkeyPatch, reply: Any
) -> None:
    monkeypatch.setattr(store, "ask", lambda *args: reply)

    async def run() -> None:
        limiter = AsyncRedisRateLimiter("100/minute", store, on_error="deny")
        tasks = [limiter.allow(key) for key in "aaabbcde"]
        assert await asyncio.wait_for(asyncio.gather(*tasks), 30) == [False] * len(tasks)

    asyncio.run(run())


def test_an_interrupted_probe_does_not_keep_the_breaker_open(make: Make, store: Store) -> None:
    limiter = make("1000/second")
    store.down = REFUSED
    for _ in range(dialog_module.FAILURES):
        limiter.allow("k")
    store.down = None
    store.now_s += dialog_module.PAUSE_S

    def interrupt() -> None:
        raise KeyboardInterrupt

    store.on_call = interrupt
    with pytest.raises(KeyboardInterrupt):
        limiter.allow("k")
    store.on_call = lambda: None
    assert not limiter.check("k").degraded


def test_reset_without_the_store_forgets_what_was_counted_here(make: Make, store: Store) -> None:
    limiter = make("1/second")
    store.down = REFUSED
    assert not limiter.reset("k")
    assert limiter.allow("k")
    assert not limiter.allow("k")
    assert limiter.reset("k")
    assert limiter.allow("k")


def test_reset_forgets_what_was_counted_here_in_an_outage_before(make: Make, store: Store) -> None:
    limiter = make("1/second")
    store.faults = [REFUSED]
    assert limiter.allow("k")
    assert limiter.reset("k")  # the store knows nothing of it
    store.faults = [REFUSED]
    assert limiter.allow("k")


def test_acquire_without_the_store(make: Make, store: Store, heard: list[Any]) -> None:
    limiter = make("2/second")
    store.down = REFUSED
    assert limiter.acquire("k", 2, timeout=0)
    assert not limiter.acquire("k", timeout=0)
    assert limiter.stats()[:2] == (1, 0)
    assert heard == [("allowed", 2, "k")]  # who waits is not told of as denied


# --- telemetry, counters and the rest


def test_events(make: Make, store: Store, heard: list[Any]) -> None:
    limiter = make("3/second", name="api")
    limiter.allow("k", 2)
    limiter.allow("k", 2)
    limiter.allow("k", 2)  # of the cache
    limiter.check("k")
    limiter.check("k")
    limiter.check("k")  # of the cache
    limiter.peek("k")
    limiter.allow_many(["j", "k"])
    limiter.reset("k")
    assert heard == [
        ("allowed", 2, "k"), ("denied", 2, "k"), ("denied", 2, "k"), ("allowed", 1, "k"),
        ("denied", 1, "k"), ("denied", 1, "k"), ("denied", 1, "k"), ("allowed", 1, "j"),
    ]  # fmt: skip


def test_what_is_decided_locally_is_told_once(make: Make, store: Store, heard: list[Any]) -> None:
    limiter = make("1/second", name="api")
    store.down = REFUSED
    limiter.allow("k")
    limiter.allow("k")
    limiter.check("k")
    assert [each for each in heard if each[0] != "degraded"] == [
        ("allowed", 1, "k"), ("denied", 1, "k"), ("denied", 1, "k"),
    ]  # fmt: skip


def test_stats(make: Make, store: Store) -> None:
    limiter = make("2/second")
    for _ in range(4):
        limiter.allow("k")
    stats = limiter.stats()
    assert (stats.allowed, stats.denied, stats.denied_locally) == (2, 2, 1)
    assert (stats.degraded, stats.failures, stats.unknown) == (0, 0, 0)


def test_close(make: Make, store: Store) -> None:
    limiter = make("2/second")
    limiter.allow("k")
    limiter.close()
    limiter.close()
    assert limiter.closed
    assert store.closed
    calls: list[Callable[[], object]] = [
        lambda: limiter.allow("k"),
        lambda: limiter.allow("k", 0),
        lambda: limiter.check("k"),
        lambda: limiter.peek("k"),
        lambda: limiter.allow_many(["k"]),
        lambda: limiter.allow_many([]),
        lambda: limiter.reset("k"),
        lambda: limiter.acquire("k"),
        lambda: limiter.stats(),
    ]
    for call in calls:
        with pytest.raises(LimiterClosedError, match="is closed"):
            call()
    assert limiter.name
    assert limiter.quota == Quota(2, per=1.0)


def test_close_gives_memory_back(store: Store) -> None:
    limiter = RedisRateLimiter("1/second", store)
    limiter.allow("k")
    limiter.allow("k")
    store.down = REFUSED
    limiter.allow("j")
    limiter.close()
    assert limiter._denials is not None
    assert len(limiter._denials) == 0
    assert limiter._policy._local is None


def test_with(store: Store) -> None:
    with RedisRateLimiter("2/second", store) as limiter:
        assert limiter.allow("k")
    assert limiter.closed

    async def run() -> None:
        async with AsyncRedisRateLimiter("2/second", store) as limiter:
            assert await limiter.allow("k")
        assert limiter.closed

    asyncio.run(run())


def test_repr_and_the_like(store: Store) -> None:
    for kind in (RedisRateLimiter, AsyncRedisRateLimiter):
        limiter = kind("2/second; 5/minute", store, name="api")
        assert repr(limiter) == f"<{kind.__name__} 'api' 2 per 1 s; 5 per 60 s>"
        assert bool(limiter)
        assert limiter.algorithm == "sliding-log"
        assert limiter.on_error == "local"
        for copied in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled or copied"):
                copied(limiter)
    assert RedisRateLimiter("2/second", store).name.startswith("limiter-")


def test_a_forgotten_limiter_goes(store: Store) -> None:
    limiter = RedisRateLimiter("2/second", store)
    limiter.allow("k")
    gone = weakref.ref(limiter)
    del limiter
    gc.collect()
    assert gone() is None


def test_importing_it_brings_no_client_library_and_no_asyncio() -> None:
    code = (
        "import sys, nanolimit.redis; "
        "print([name for name in ('redis', 'valkey', 'asyncio') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "[]"


def test_an_unknown_name_of_the_package() -> None:
    import nanolimit.redis

    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        nanolimit.redis.Nothing  # noqa: B018
