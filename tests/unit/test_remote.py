"""What takes a RateLimiter takes a limiter of a store: middlewares, decorators, slots, metrics."""

from __future__ import annotations

import asyncio
import copy
import gc
import io
import json
import logging
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanolimit import (
    LimiterClosedError,
    Quota,
    RateLimiter,
    RateLimitExceeded,
    check_all,
    telemetry,
)
from nanolimit.integrations import asgi, wsgi
from nanolimit.integrations import outage as outage_module
from nanolimit.integrations.pace import Pacer
from nanolimit.limiter import live_limiters
from nanolimit.metrics.measure import ALL, MEASURES, REMOTE_MEASURES
from nanolimit.metrics.roster import Roster
from nanolimit.redis import AsyncRedisRateLimiter, RedisRateLimiter, StoreUnavailableError
from nanolimit.redis import aio as aio_module
from nanolimit.redis import dialog as dialog_module
from nanolimit.redis import errors as errors_module
from nanolimit.redis import limiter as limiter_module
from nanolimit.redis.fault import Unavailable
from nanolimit.remote import live_remotes
from nanolimit.tasks import waited
from nanolimit.waiting import wait
from sharing import needs_shared
from store import AsyncStoreWire, Store, StoreWire

REFUSED = Unavailable("connection refused")
TIMED_OUT = Unavailable("no reply in time", outcome_unknown=True)

Sync = RedisRateLimiter
Async = AsyncRedisRateLimiter


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(limiter_module, "Wire", StoreWire)
    monkeypatch.setattr(aio_module, "AsyncWire", AsyncStoreWire)
    for module in (limiter_module, aio_module, dialog_module):
        monkeypatch.setattr(module, "monotonic", store.monotonic)
    return store


@pytest.fixture
def asleep(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those who wait for room sleep on the store's clock; how long they did."""
    slept: list[float] = []

    def pass_by(seconds: float) -> None:
        slept.append(seconds)
        store.now_s += seconds

    class Bell(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            pass_by(timeout)
            return self.is_set()

    async def sleep(limiter: Async, wait_s: float) -> None:
        pass_by(wait_s)

    begin = Sync._begin_waiting

    def begin_on_the_stores_clock(limiter: Sync) -> None:
        begin(limiter)
        limiter._bell = Bell()

    monkeypatch.setattr(Sync, "_begin_waiting", begin_on_the_stores_clock)
    monkeypatch.setattr(Async, "_sleep", sleep)
    return slept


# --- middlewares

OUR_PEER = "192.0.2.1"


class Answer:
    def __init__(self, status: int, fields: dict[str, str], body: bytes) -> None:
        self.status, self.fields, self.body = status, fields, body


class WsgiSide:
    """One application behind the WSGI middleware."""

    Limiter: Any = Sync
    Other: Any = Async
    module: Any = wsgi

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.served = 0
        self.app = wsgi.RateLimitMiddleware(self._serve, *args, **kwargs)

    def _serve(self, environ: Any, start_response: Any) -> Any:
        self.served += 1
        self.decision = environ.get("nanolimit.decision")
        start_response("200 OK", [])
        return [b"ok"]

    def request(self, path: str = "/") -> Answer:
        started: list[Any] = []
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "REMOTE_ADDR": OUR_PEER}
        body = b"".join(self.app(environ, lambda *args: started.append(args)))
        [(status, fields)] = started
        return Answer(int(status.split()[0]), {name.lower(): value for name, value in fields}, body)


class AsgiSide:
    """One application behind the ASGI middleware; every request has a loop of its own."""

    Limiter: Any = Async
    Other: Any = Sync
    module: Any = asgi

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.served = 0
        self.app = asgi.RateLimitMiddleware(self._serve, *args, **kwargs)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        self.served += 1
        self.decision = scope.get("state", {}).get("ratelimit")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    def request(self, path: str = "/") -> Answer:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "GET", "path": path, "client": (OUR_PEER, 1), "headers": [],
        }  # fmt: skip
        asyncio.run(self.app(scope, None, send))  # type: ignore[arg-type]
        start, *rest = sent
        return Answer(
            start["status"],
            {name.decode(): value.decode() for name, value in start["headers"]},
            b"".join(message["body"] for message in rest),
        )


Side = Any
BOTH = pytest.mark.parametrize("side", [WsgiSide, AsgiSide])


@BOTH
def test_a_middleware_counts_in_the_store(side: Side, store: Store) -> None:
    web = side(side.Limiter("2/minute", store, name="api"), side.module.client_ip())
    for remaining in (1, 0):
        answer = web.request()
        assert (answer.status, answer.body) == (200, b"ok")
        assert answer.fields["ratelimit"] == f'"api";r={remaining};t=60'
        assert answer.fields["ratelimit-policy"] == '"api";q=2;w=60'
        assert web.decision.remaining == remaining
    answer = web.request()
    assert (answer.status, web.served) == (429, 2)
    assert answer.fields["retry-after"] == "60"
    assert answer.fields["ratelimit"] == '"api";r=0;t=60'
    assert json.loads(answer.body)["violated-policies"] == ["api"]
    assert store.calls == ["tell"] * 3


@BOTH
def test_a_denied_client_costs_no_call(side: Side, store: Store) -> None:
    web = side(side.Limiter("1/minute", store), side.module.client_ip())
    assert [web.request().status for _ in range(5)] == [200, 429, 429, 429, 429]
    assert len(store.calls) == 2


@BOTH
def test_several_middlewares_of_a_name_count_together(side: Side, store: Store) -> None:
    webs = [side(side.Limiter("3/minute", store, name="api"), lambda _: "k") for _ in range(2)]
    assert [webs[turn % 2].request().status for turn in range(4)] == [200, 200, 200, 429]


@BOTH
def test_without_the_store_a_middleware_goes_on(side: Side, store: Store) -> None:
    store.down = REFUSED
    limiter = side.Limiter("4/minute", store, name="api", nodes=2)
    web = side(limiter, side.module.client_ip())
    answers = [web.request() for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    # What is told is the share that is enforced.
    assert answers[0].fields["ratelimit-policy"] == '"api";q=2;w=60'
    assert answers[0].fields["ratelimit"] == '"api";r=1;t=60'
    assert answers[2].fields["retry-after"] == "60"
    assert web.decision.degraded
    assert limiter.stats().degraded == 3


@BOTH
def test_without_the_store_all_may_be_denied(side: Side, store: Store) -> None:
    store.down = REFUSED
    web = side(side.Limiter("4/minute", store, on_error="deny"), side.module.client_ip())
    answer = web.request()
    assert (answer.status, answer.fields["retry-after"]) == (429, "1")


@BOTH
def test_an_unavailable_store_is_a_503(
    side: Side, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.down = REFUSED
    limiter = side.Limiter("4/minute", store, name="api", on_error="raise")
    web = side(limiter, side.module.client_ip())
    answer = web.request()
    assert (answer.status, web.served) == (503, 0)
    assert answer.fields["retry-after"] == "1"
    assert json.loads(answer.body) == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "The server can't check its limits at the moment.",
    }
    [record] = caplog.records
    assert "answered 503: limiter 'api' can't ask its store" in record.getMessage()
    assert record.exc_info is None
    # It is not the client's fault, and its cause is none of its business.
    assert b"refused" not in answer.body


@BOTH
def test_an_outage_does_not_flood_the_log(
    side: Side, store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage_module, "monotonic", store.monotonic)
    store.down = REFUSED
    web = side(side.Limiter("4/minute", store, on_error="raise"), side.module.client_ip())
    for seconds, lines in ((0.0, 1), (0.5, 1), (0.49, 1), (0.01, 2), (0.99, 2)):
        store.now_s += seconds
        assert [web.request().status for _ in range(5)] == [503] * 5
        assert len(caplog.records) == lines


@BOTH
def test_an_unavailable_store_may_let_pass(side: Side, store: Store) -> None:
    store.down = REFUSED
    limiter = side.Limiter("4/minute", store, on_error="raise")
    web = side(limiter, side.module.client_ip(), on_error="allow")
    answer = web.request()
    assert (answer.status, answer.fields) == (200, {})


@BOTH
def test_rules_take_them_too(side: Side, store: Store) -> None:
    rules = [
        side.module.Rule("/login", side.Limiter("1/minute", store, name="login")),
        side.module.Rule("/private", "1/minute"),
    ]
    web = side(side.Limiter("2/minute", store, name="rest"), side.module.client_ip(), rules=rules)
    assert [web.request("/login").status for _ in range(2)] == [200, 429]
    assert [web.request("/private").status for _ in range(2)] == [200, 429]
    assert [web.request("/").status for _ in range(3)] == [200, 200, 429]
    assert len(store.logs) == 2, "a quota counts in this process"


@BOTH
def test_costs_and_keys(side: Side, store: Store) -> None:
    web = side(side.Limiter("5/minute", store), lambda request: ("all", 1), cost=lambda request: 3)
    assert [web.request().status for _ in range(2)] == [200, 429]
    with pytest.raises(ValueError, match="cost must be <= the limit of 5, got 6"):
        side(side.Limiter("5/minute", store), side.module.client_ip(), cost=6)


def test_a_key_function_may_be_awaited_as_well(store: Store) -> None:
    async def key(scope: Any) -> str:
        await asyncio.sleep(0)
        return "someone"

    web = AsgiSide(Async("1/minute", store), key)
    assert [web.request().status for _ in range(2)] == [200, 429]
    assert [name for name in store.logs if b"someone" in name]


@BOTH
def test_of_the_wrong_kind_they_are_refused(side: Side, store: Store) -> None:
    other = side.Other("5/minute", store, name="api")
    mend = {
        WsgiSide: "limiter 'api' is an AsyncRedisRateLimiter, which must be awaited, and a WSGI "
        "application does not await: give a RedisRateLimiter",
        AsgiSide: "limiter 'api' is a RedisRateLimiter, which would block the event loop of an "
        "ASGI application while its store is asked: give an AsyncRedisRateLimiter",
    }[side]
    for arguments, more in (
        ((other, side.module.client_ip()), {}),
        (("1/s", side.module.client_ip()), {"rules": [side.module.Rule("/login", other)]}),
    ):
        with pytest.raises(TypeError) as found:
            side(*arguments, **more)
        assert str(found.value) == mend
    assert store.calls == []


@BOTH
def test_making_a_middleware_asks_nobody(side: Side, store: Store) -> None:
    store.down = TIMED_OUT
    side(side.Limiter("5/minute", store), side.module.client_ip(), cost=5)
    assert store.calls == []


@BOTH
def test_a_closed_limiter_is_refused(side: Side, store: Store) -> None:
    limiter = side.Limiter("5/minute", store)
    closing = limiter.close()
    if closing is not None:
        asyncio.run(closing)
    with pytest.raises(LimiterClosedError):
        side(limiter, side.module.client_ip())


def test_an_application_with_one_is_not_copied(store: Store) -> None:
    app = WsgiSide(Sync("5/minute", store), lambda _: "k").app
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be pickled or copied: it has connections"):
            copied(app)


# --- limit, the decorator


def test_limit_decorates_functions(store: Store) -> None:
    limiter = Sync("2/minute", store)

    @limiter.limit
    def fetch(what: str) -> str:
        """Fetch it."""
        return what.upper()

    assert (fetch("a"), fetch(what="b"), fetch.__doc__) == ("A", "B", "Fetch it.")
    with pytest.raises(RateLimitExceeded) as found:
        fetch("c")
    assert found.value.key == f"{__name__}.test_limit_decorates_functions.<locals>.fetch"
    assert found.value.decision.retry_after == 60


def test_limit_decorates_coroutine_functions(store: Store) -> None:
    limiter = Async("2/minute", store)

    @limiter.limit(key=lambda what: what, cost=2)
    async def fetch(what: str) -> str:
        return what.upper()

    async def both() -> None:
        assert await fetch("a") == "A"
        assert await fetch("b") == "B"
        with pytest.raises(RateLimitExceeded) as found:
            await fetch("a")
        assert found.value.key == "a"

    asyncio.run(both())


def test_on_denied_answers_in_the_place_of_the_function(store: Store) -> None:
    blocking, awaited = Sync("1/minute", store, name="a"), Async("1/minute", store, name="b")

    @blocking.limit(on_denied=lambda decision, word: (word, decision.allowed))
    def said(word: str) -> Any:
        return word

    async def later(decision: Any, word: str) -> Any:
        return word, decision.allowed

    @awaited.limit(on_denied=later)
    async def told(word: str) -> Any:
        return word

    assert [said("x"), said("x")] == ["x", ("x", False)]

    async def twice() -> Any:
        return [await told("x"), await told("x")]

    assert asyncio.run(twice()) == ["x", ("x", False)]


def test_limit_may_wait(store: Store, asleep: list[float]) -> None:
    blocking, awaited = Sync("1/second", store, name="a"), Async("1/second", store, name="b")

    @blocking.limit(wait=True)
    def plain() -> float:
        return store.now_s

    @awaited.limit(wait=True, timeout=5)
    async def coroutine() -> float:
        return store.now_s

    async def thrice() -> list[float]:
        return [await coroutine() for _ in range(3)]

    start = store.now_s
    assert [plain() for _ in range(3)] == pytest.approx([start, start + 1, start + 2])
    start = store.now_s
    assert asyncio.run(thrice()) == pytest.approx([start, start + 1, start + 2])
    assert len(asleep) == 4
    # A request that waits is not a denied one.
    assert (blocking.stats().denied, awaited.stats().denied) == (0, 0)


def test_limit_waits_no_longer_than_it_may(store: Store, asleep: list[float]) -> None:
    limiter = Sync("1/minute", store)

    @limiter.limit(key="k", wait=True, timeout=5)
    def plain() -> None: ...

    plain()
    with pytest.raises(RateLimitExceeded) as found:
        plain()
    assert asleep == [5.0]
    assert found.value.retry_after == pytest.approx(55)

    awaited = Async("1/minute", store, name="b")

    @awaited.limit(key="k", wait=True, timeout=5)
    async def coroutine() -> None: ...

    async def twice() -> None:
        await coroutine()
        with pytest.raises(RateLimitExceeded) as found:
            await coroutine()
        assert found.value.retry_after == pytest.approx(55)

    asyncio.run(twice())
    assert asleep == [5.0, 5.0]


def test_limit_of_the_wrong_kind_is_refused(store: Store) -> None:
    async def coroutine() -> None: ...
    def plain() -> None: ...

    with pytest.raises(TypeError, match=r"coroutine function, as .*coroutine is: it would block"):
        Sync("1/s", store).limit(coroutine)
    with pytest.raises(TypeError, match=r"only, which .*plain is not: .* Use a RedisRateLimiter"):
        Async("1/s", store).limit(plain)


@pytest.mark.parametrize("kind", [Sync, Async])
@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"cost": 6}, ValueError, "cost must be <= the limit of 5, got 6"),
        ({"key": 1.5}, TypeError, "float"),
        ({"timeout": 1}, TypeError, "timeout goes with wait=True"),
        ({"wait": 1}, TypeError, "wait must be True or False, not int"),
        ({"on_denied": 5}, TypeError, "on_denied must be a callable"),
    ],
)
def test_what_limit_refuses(
    kind: Any, options: Any, error: type[Exception], said: str, store: Store
) -> None:
    with pytest.raises(error, match=said):
        kind("5/s", store).limit(**options)
    assert store.calls == []


def test_limit_tells_of_the_store_where_that_is_wanted(store: Store) -> None:
    store.down = REFUSED
    limiter = Sync("5/s", store, on_error="raise")
    with pytest.raises(StoreUnavailableError):
        limiter.limit(lambda: None)()


# --- slot


def test_a_slot_gives_the_decision_that_allowed_it(store: Store) -> None:
    limiter = Sync("3/minute", store)
    with limiter.slot("k", cost=2) as decision:
        assert (decision.allowed, decision.remaining, decision.degraded) == (True, 1, False)
    assert store.calls == ["tell"]
    assert limiter.stats().allowed == 1


def test_a_slot_waits(store: Store, asleep: list[float]) -> None:
    limiter = Sync("1/second", store)
    slot = limiter.slot("k")
    start = store.now_s
    for turn in range(3):
        with slot as decision:
            assert decision.allowed
            assert store.now_s == pytest.approx(start + turn)
    assert len(asleep) == 2
    assert limiter.stats().denied == 0


def test_an_awaited_slot_waits(store: Store, asleep: list[float]) -> None:
    limiter = Async("1/second", store)

    async def enter() -> None:
        start = store.now_s
        for turn in range(3):
            async with limiter.slot("k") as decision:
                assert decision.allowed
                assert store.now_s == pytest.approx(start + turn)

    asyncio.run(enter())
    assert len(asleep) == 2


def test_a_slot_that_does_not_come_in_time(store: Store, asleep: list[float]) -> None:
    blocking, awaited = Sync("1/minute", store, name="a"), Async("1/minute", store, name="b")
    blocking.allow("k")
    with pytest.raises(RateLimitExceeded) as found:
        with blocking.slot("k", timeout=2):
            pytest.fail("it entered")
    assert found.value.key == "k"
    assert found.value.decision.retry_after == pytest.approx(58)

    async def enter() -> None:
        await awaited.allow("k")
        with pytest.raises(RateLimitExceeded):
            async with awaited.slot("k", timeout=2):
                pytest.fail("it entered")

    asyncio.run(enter())
    assert asleep == [2.0, 2.0]


def test_a_slot_that_others_wait_for(store: Store) -> None:
    """It never came to ask: the decision is what the store says then."""
    limiter = Sync("1/minute", store)
    with limiter._gate(limiter._place("k")):  # somebody else is the first in line
        with pytest.raises(RateLimitExceeded) as found:
            with limiter.slot("k", timeout=0):
                pytest.fail("it entered")
    assert found.value.decision.allowed, "it would fit, but for those before it"
    assert store.calls == ["look"]
    assert limiter.stats().allowed == 0


def test_an_awaited_slot_that_others_wait_for(store: Store) -> None:
    limiter = Async("1/minute", store)

    async def enter() -> None:
        place = limiter._place("k")
        assert await limiter._queue(place, None)  # somebody else is the first in line
        with pytest.raises(RateLimitExceeded) as found:
            async with limiter.slot("k", timeout=0):
                pytest.fail("it entered")
        assert found.value.decision.allowed
        limiter._step_out(place)

    asyncio.run(enter())
    assert (store.calls, limiter.stats().allowed) == (["look"], 0)


def test_a_slot_without_the_store(store: Store) -> None:
    store.down = REFUSED
    limiter = Sync("2/minute", store, nodes=2)
    with limiter.slot("k") as decision:
        assert (decision.allowed, decision.degraded, decision.limit) == (True, True, 1)
    with pytest.raises(RateLimitExceeded) as found:
        with limiter.slot("k", timeout=0):
            pytest.fail("it entered")
    assert found.value.decision.degraded
    assert (limiter.stats().allowed, limiter.stats().degraded) == (1, 1)


def test_a_slot_repeats_a_denial_without_asking(store: Store) -> None:
    limiter = Sync("1/minute", store)
    limiter.check("k")
    assert not limiter.check("k")
    calls = len(store.calls)
    store.now_s += 0.5
    with pytest.raises(RateLimitExceeded) as found:
        with limiter.slot("k", timeout=0):
            pytest.fail("it entered")
    assert len(store.calls) == calls
    assert found.value.retry_after == pytest.approx(59.5)


def test_a_slot_of_no_cost_never_waits(store: Store) -> None:
    limiter = Sync("1/minute", store)
    limiter.allow("k")
    with limiter.slot("k", 0, timeout=0) as decision:
        assert decision.allowed


@pytest.mark.parametrize("kind", [Sync, Async])
def test_what_a_slot_refuses(kind: Any, store: Store) -> None:
    limiter = kind("5/s", store)
    with pytest.raises(ValueError, match="cost must be <= the limit of 5, got 6"):
        limiter.slot("k", 6)
    with pytest.raises(TypeError, match="float"):
        limiter.slot(1.5)
    with pytest.raises(ValueError, match="timeout"):
        limiter.slot("k", timeout=-1)
    assert "'k'" not in repr(limiter.slot("k"))


def test_a_slot_is_told_when_the_limiter_is_closed(store: Store) -> None:
    limiter = Sync("5/s", store)
    slot = limiter.slot("k")
    limiter.close()
    with pytest.raises(LimiterClosedError):
        with slot:
            pytest.fail("it entered")


# --- what can't be all or none


def test_check_all_refuses_them(store: Store) -> None:
    with pytest.raises(TypeError, match=r"items\[1\] must begin with a RateLimiter, not Redis"):
        check_all([(RateLimiter(5), "k"), (Sync("5/s", store), "k")])  # type: ignore[list-item]
    assert store.calls == []


# --- metrics


def told(*limiters: Any) -> dict[tuple[str, ...], int]:
    roster = Roster()
    roster.add(limiters)
    return {
        (measure.name, *labels): number
        for measure, points in zip(ALL, roster.read(*ALL), strict=True)
        for labels, number in points
    }


def test_metrics_tell_what_it_decided(store: Store) -> None:
    limiter = Sync("2/minute", store, name="api", on_error="deny")
    for _ in range(4):  # two allowed, two denied, of these one locally
        limiter.allow("k")
    store.faults = [REFUSED, TIMED_OUT]
    assert not limiter.allow("other")
    assert not limiter.allow("another")
    assert told(limiter) == {
        ("nanolimit.decisions", "api", "allowed"): 2,
        ("nanolimit.decisions", "api", "denied"): 4,
        ("nanolimit.denied_locally", "api"): 1,
        ("nanolimit.leased", "api"): 0,
        ("nanolimit.degraded", "api"): 2,
        ("nanolimit.store.failures", "api", "uncounted"): 1,
        ("nanolimit.store.failures", "api", "unknown"): 1,
    }


def test_metrics_of_both_kinds_and_of_others_together(store: Store) -> None:
    blocking, awaited = Sync("1/m", store, name="a"), Async("1/m", store, name="b")
    local = RateLimiter("1/m", name="c")
    for limiter in (blocking, local):
        limiter.allow("k")
    found = told(blocking, awaited, local)
    allowed = {name[1]: number for name, number in found.items() if name[2:] == ("allowed",)}
    assert allowed == {"a": 1, "b": 0, "c": 1}
    names = {measure.name for measure in MEASURES}
    assert {name[1] for name in found if name[0] in names - {"nanolimit.decisions"}} == {"c"}
    theirs = {measure.name for measure in REMOTE_MEASURES}
    assert {name[1] for name in found if name[0] in theirs} == {"a", "b"}


def test_metrics_hold_no_limiter_and_forget_closed_ones(store: Store) -> None:
    roster = Roster()
    limiter = Sync("1/m", store, name="api")
    roster.add([limiter])
    limiter.close()
    assert roster.read(*ALL) == [[] for _ in ALL]
    assert len(roster) == 0
    with pytest.raises(LimiterClosedError):
        roster.add([limiter])
    another = Sync("1/m", store, name="api")
    roster.add([another])
    held = weakref.ref(another)
    del another
    gc.collect()
    assert held() is None
    assert roster.read(*ALL) == [[] for _ in ALL]


def test_two_of_one_name_can_not_be_told_apart(store: Store) -> None:
    with pytest.raises(ValueError, match="another limiter named 'api'"):
        told(Sync("1/m", store, name="api"), Async("1/m", store, name="api"))


# --- the console reporter


@pytest.fixture
def reporters() -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(stream: Any, **options: Any) -> Any:
        made.append(telemetry.ConsoleReporter(3_600, stream, **options))
        return made[-1]

    yield make
    for reporter in made:
        reporter.stop()


def test_the_reporter_tells_what_it_decided(
    store: Store, reporters: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nanolimit")
    limiter = Sync("2/minute", store, name="api")
    limiter.allow("before")
    stream = io.StringIO()
    reporter = reporters(stream, limiters=[limiter])
    for _ in range(4):
        limiter.allow("k")
    store.faults = [REFUSED, TIMED_OUT]
    limiter.allow("other")
    limiter.allow("another")
    reporter.report()
    [line] = stream.getvalue().splitlines()
    head, _, text = line.partition(" api: ")
    assert head.startswith("nanolimit[")
    allowed, denied = text.split("), denied ")
    assert allowed.startswith("allowed 4 (")
    assert denied.startswith("2 (")
    assert denied.endswith(
        ", 33.3 %, 1 of them locally), without the store 2, failed calls 2 (1 of unknown outcome)"
    )
    [record] = caplog.records
    assert vars(record)["degraded"] == 2
    assert vars(record)["denied_locally"] == 1
    # And of the time since, nothing.
    reporter.report()
    [_, line] = stream.getvalue().splitlines()
    assert line.endswith(" api: allowed 0 (0.0/s), denied 0 (0.0/s, 0.0 %)")


def test_the_reporter_finds_those_that_are_open(
    store: Store, reporters: Callable[..., Any]
) -> None:
    stream = io.StringIO()
    reporter = reporters(stream)
    blocking, awaited = Sync("1/m", store, name="one"), Async("1/m", store, name="two")
    blocking.allow("k")
    reporter.report()
    text = stream.getvalue()
    assert " one: allowed 1 (" in text
    assert " two: allowed 0 (" in text
    asyncio.run(awaited.close())
    stream.truncate(0)
    reporter.report()
    assert " one: " in stream.getvalue()
    assert " two: " not in stream.getvalue()


def test_the_local_limiter_of_an_outage_is_none_of_its_own(
    store: Store, reporters: Callable[..., Any]
) -> None:
    stream = io.StringIO()
    reporter = reporters(stream)
    limiter = Sync("5/minute", store, name="alone")
    store.down = REFUSED
    assert limiter.allow("k")
    assert limiter._policy._local is not None, "it was not made"
    reporter.report()
    lines = [line for line in stream.getvalue().splitlines() if " alone: " in line]
    assert len(lines) == 1
    assert "allowed 1 (" in lines[0]
    assert "alone" not in [each.name for each in live_limiters()]


def test_they_are_listed_while_somebody_holds_them(store: Store) -> None:
    limiter = Sync("5/minute", store, name="mine")
    other = Async("5/minute", store, name="another")
    assert [each for each in live_remotes() if each in (limiter, other)] == [limiter, other]
    limiter.close()
    assert limiter not in live_remotes()
    del other
    gc.collect()
    assert "another" not in [each.name for each in live_remotes()]


def test_what_was_leased_is_told(store: Store, reporters: Callable[..., Any]) -> None:
    limiter = Sync("100/minute", store, name="api")
    stream = io.StringIO()
    reporter = reporters(stream, limiters=[limiter], log=False)
    limiter._counters.count(3, 0)
    limiter._counters.leased += 2
    assert told(limiter)["nanolimit.leased", "api"] == 2
    reporter.report()
    assert "/s, 2 of them leased), denied 0 (" in stream.getvalue()


# --- telemetry


@pytest.mark.parametrize("several", [False, True])
def test_telemetry_of_one_limiter(store: Store, several: bool) -> None:
    mine, other = Sync("1/m", store, name="mine"), Async("1/m", store, name="other")
    heard: list[tuple[str, object]] = []
    telemetry.attach(
        "one",
        ["allowed", "denied"],
        lambda event, measurements, metadata: heard.append((event, metadata["limiter"])),
        limiter=[mine, "third"] if several else mine,
    )
    try:
        mine.allow("k")
        mine.allow("k")
        asyncio.run(other.allow("k"))
        store.down = REFUSED
        mine.allow("another")
    finally:
        telemetry.detach("one")
    assert heard == [("allowed", "mine"), ("denied", "mine"), ("allowed", "mine")]


# --- the exception of both sides


def test_the_exception_is_one_and_the_same() -> None:
    assert errors_module.StoreUnavailableError is StoreUnavailableError
    error = pickle.loads(pickle.dumps(StoreUnavailableError("api", "it is away", True)))
    assert (error.reason, error.outcome_unknown) == ("it is away", True)


def test_what_a_limiter_enforces_is_a_quota_of_its_own(store: Store) -> None:
    limiter = Sync("10/second; 100/hour", store, name="api")
    web = WsgiSide(limiter, lambda _: "k")
    answer = web.request()
    assert answer.fields["ratelimit-policy"] == '"api-10/1s";q=10;w=1, "api-100/3600s";q=100;w=3600'
    assert limiter.quotas == (Quota(10, per=1), Quota(100, per=3600))


# --- exporters


def test_prometheus_tells_of_them(store: Store) -> None:
    pytest.importorskip("prometheus_client")
    from prometheus_client import CollectorRegistry, generate_latest

    from nanolimit.metrics import prometheus

    registry = CollectorRegistry()
    local, limiter = RateLimiter(5, name="local"), Sync("1/minute", store, name="remote")
    prometheus.register(local, registry=registry)
    assert b"degraded" not in generate_latest(registry), "nobody here has a store"
    prometheus.register(limiter, registry=registry)
    store.faults = [TIMED_OUT]
    limiter.allow("k")
    limiter.allow("k")
    text = generate_latest(registry).decode()
    for line in (
        'nanolimit_decisions_total{limiter="remote",result="allowed"} 2.0',
        'nanolimit_degraded_total{limiter="remote"} 1.0',
        'nanolimit_denied_locally_total{limiter="remote"} 0.0',
        'nanolimit_leased_total{limiter="remote"} 0.0',
        'nanolimit_store_failures_total{limiter="remote",outcome="unknown"} 1.0',
        'nanolimit_store_failures_total{limiter="remote",outcome="uncounted"} 0.0',
        'nanolimit_keys{limiter="local"} 0.0',
    ):
        assert line in text.splitlines()
    assert prometheus.unregister(limiter, registry=registry) == 1
    assert b"remote" not in generate_latest(registry)


def test_opentelemetry_tells_of_them(store: Store) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from nanolimit.metrics import otel

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    limiter = Async("1/minute", store, name="remote")
    otel.register(limiter, meter_provider=provider)
    store.faults = [TIMED_OUT]
    asyncio.run(limiter.allow("k"))
    data = reader.get_metrics_data()
    assert data is not None
    found = {
        (metric.name, *dict(point.attributes or {}).values()): point.value  # type: ignore[union-attr]
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
    }
    provider.shutdown()
    assert found == {
        ("nanolimit.decisions", "remote", "allowed"): 1,
        ("nanolimit.decisions", "remote", "denied"): 0,
        ("nanolimit.denied_locally", "remote"): 0,
        ("nanolimit.leased", "remote"): 0,
        ("nanolimit.degraded", "remote"): 1,
        ("nanolimit.store.failures", "remote", "uncounted"): 0,
        ("nanolimit.store.failures", "remote", "unknown"): 1,
    }


# --- parts of others


def test_the_blocks_of_a_client_are_no_limiter_of_their_own(store: Store) -> None:
    pacer = Pacer(
        Sync("5/s", store), "k", None, 0, None, (429,), ("GET",), True, wait, False, "a client"
    )
    assert pacer.heed("k", 5.0)
    assert not any(each is pacer.blocks for each in live_limiters())


@needs_shared
def test_the_shared_table_of_an_outage_is_no_limiter_of_its_own(store: Store, folder: Path) -> None:
    limiter = Sync("5/s", store, name="tabled", shared="outage")
    assert limiter._policy._local is not None
    assert "tabled" not in [each.name for each in live_limiters()]


def test_those_who_wait_in_an_outage_ask_again_when_the_store_may_be_back(
    store: Store, asleep: list[float]
) -> None:
    limiter = Sync("1/minute", store, nodes=1)
    store.down = REFUSED
    assert limiter.allow("k")
    assert not limiter.acquire("k", timeout=3)
    assert max(asleep) <= dialog_module.PAUSE_S
    with pytest.raises(RateLimitExceeded) as found:
        with limiter.slot("k", timeout=3):
            pytest.fail("it entered")
    assert max(asleep) <= dialog_module.PAUSE_S
    assert found.value.decision.degraded


@pytest.mark.parametrize("kind", [Sync, Async])
def test_a_turn_in_which_a_block_begins_is_not_used(
    kind: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[bool] = []

    def begin_block() -> None:
        turns.append(True)
        if len(turns) == 1:  # the answer to somebody else's request comes in
            pacer.heed("k", 0.05)

    if kind is Sync:
        was = Sync._waited

        def waited_then(limiter: Any, *args: Any) -> Any:
            found = was(limiter, *args)
            begin_block()
            return found
    else:
        awas = Async._waited

        async def waited_then(limiter: Any, *args: Any) -> Any:
            found = await awas(limiter, *args)
            begin_block()
            return found

    monkeypatch.setattr(kind, "_waited", waited_then)
    pacer = Pacer(
        kind("5/s", store), "k", None, 0, None, (429,), ("GET",), True,
        wait if kind is Sync else waited, kind is Async, "a client",
    )  # fmt: skip
    if kind is Sync:
        _, granted = pacer.take(pacer.limiter, "k", 1, None, None)
    else:
        _, granted = asyncio.run(pacer.take(pacer.limiter, "k", 1, None, True, None))
    assert granted
    assert len(turns) == 2
    assert not pacer.blocks.peek("k").blocked
