"""The contract: names, signatures, types, and what an object of each kind lets one do."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import re
import weakref
from datetime import timedelta
from typing import Any

import pytest

import nanolimit
from clocks import NanoClock
from nanolimit import Decision, ManualClock, Quota, RateLimiter, telemetry


def test_the_public_names() -> None:
    for name in (
        "RateLimiter",
        "Quota",
        "Decision",
        "ManualClock",
        "RateLimitExceeded",
        "NanolimitError",
        "LimiterClosedError",
        "SharedTableError",
        "telemetry",
        "allow",
        "configure",
    ):
        assert hasattr(nanolimit, name), name
        assert name in nanolimit.__all__
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", nanolimit.__version__)


def test_the_signature_of_a_limiter() -> None:
    parameters = inspect.signature(RateLimiter).parameters
    assert list(parameters) == [
        "quota", "per", "name", "max_keys", "on_full", "algorithm", "max_log", "backoff", "exempt",
        "enforce", "track_top", "clock", "shared",
        "on_mismatch", "mode", "group", "stall_timeout", "on_stall", "typical",
        "max_limit",
    ]  # fmt: skip
    by_position = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert by_position == ["quota", "per"]
    defaults = {name: p.default for name, p in parameters.items()}
    assert RateLimiter().stats().capacity == 1_000_000
    assert defaults["on_full"] == "allow"
    assert defaults["algorithm"] == "sliding-log"
    assert defaults["clock"] is defaults["shared"] is defaults["name"] is None
    assert defaults["max_keys"] is defaults["group"] is defaults["typical"] is None
    assert defaults["on_mismatch"] == "error"
    assert (defaults["mode"], defaults["stall_timeout"]) == (0o600, 0.05)
    assert defaults["on_stall"] == "allow"


@pytest.mark.parametrize(
    ("arguments", "quota"),
    [
        ((), Quota(5, per=60)),
        ((7,), Quota(7, per=60)),
        ((7, 2.5), Quota(7, per=2.5)),
        ((7, timedelta(hours=1)), Quota(7, per=3_600)),
        (("5/minute",), Quota(5, per=60)),
        (("100/15m",), Quota(100, per=900)),
        (("10 per 2 hours",), Quota(10, per=7_200)),
        (("5/60s",), Quota(5, per=60)),
        (("3 / WEEK",), Quota(3, per=604_800)),
        ((Quota(5, per=60.0),), Quota(5, per=60)),
    ],
)
def test_ways_to_say_a_quota(arguments: tuple[Any, ...], quota: Quota) -> None:
    limiter = RateLimiter(*arguments, clock=NanoClock(10**15))
    assert limiter.quota == quota
    decision = limiter.check("user")
    assert decision.limit == quota.limit
    assert decision.reset_after == quota.per


def test_types_of_answers(clock: NanoClock) -> None:
    limiter = RateLimiter(2, per=60, clock=clock)
    assert type(limiter.allow("user")) is bool
    assert type(limiter.reset("user")) is bool
    assert type(limiter.reset("user")) is bool
    assert type(limiter.evict()) is int
    assert type(len(limiter)) is int
    limiter.clear()
    limiter.close()
    with pytest.raises(nanolimit.LimiterClosedError):
        limiter.allow("user")


def test_a_decision(clock: NanoClock) -> None:
    limiter = RateLimiter(2, per=60, clock=clock)
    for decision in (
        limiter.check("user"),
        limiter.check("user"),
        limiter.check("user"),
        limiter.peek("x"),
    ):
        assert type(decision) is Decision
        assert type(decision.allowed) is bool
        assert bool(decision) is decision.allowed
        assert type(decision.limit) is type(decision.remaining) is int
        for name in ("retry_after", "reset_after", "refill_after"):
            assert type(getattr(decision, name)) is float
        assert decision.quota is limiter.quota


@pytest.mark.parametrize(
    "name",
    ["allowed", "limit", "remaining", "retry_after", "reset_after", "refill_after", "quota", "new"],
)
def test_a_decision_does_not_change(name: str) -> None:
    decision = RateLimiter(2).check("user")
    with pytest.raises((AttributeError, TypeError)):
        setattr(decision, name, 1)
    with pytest.raises((AttributeError, TypeError)):
        delattr(decision, name)


def test_a_decision_lives_on_its_own(clock: NanoClock) -> None:
    limiter = RateLimiter(2, per=60, clock=clock)
    decision = limiter.check("user")
    limiter.clear()
    limiter.close()
    del limiter
    gc.collect()
    assert (decision.allowed, decision.remaining, decision.quota) == (True, 1, Quota(2, per=60))
    assert "remaining=1" in repr(decision)


def test_stats(clock: NanoClock) -> None:
    limiter = RateLimiter(2, per=60, clock=clock, max_keys=10)
    limiter.allow_many(["a", "a", "a", "b"])
    stats = limiter.stats()
    names = ["allowed", "denied", "keys", "evicted", "overflowed", "memory_bytes", "capacity"]
    assert [getattr(stats, name) for name in names] == list(stats)
    assert stats._asdict() == dict(zip(names, stats, strict=True))
    assert tuple(stats)[:5] == (3, 1, 2, 0, 0)
    allowed, denied, *_ = stats
    assert (allowed, denied) == (3, 1)
    assert stats == limiter.stats()
    assert stats == tuple(stats)
    limiter.allow("c")
    assert stats != limiter.stats()
    assert stats.allowed == 3, "a picture of its time"
    assert all(type(value) is int for value in stats)
    with pytest.raises((AttributeError, TypeError)):
        stats.allowed = 5  # type: ignore[misc]


def test_counters_count_requests_and_not_units(clock: NanoClock) -> None:
    limiter = RateLimiter(5, per=60, clock=clock)
    limiter.allow("user", 3)
    limiter.allow("user", 3)
    limiter.check("user", 2)
    limiter.peek("user")
    limiter.allow("user", 0)
    limiter.check("user", 0)
    assert limiter.allow_many(["user", "other"]) == [False, True]
    stats = limiter.stats()
    assert (stats.allowed, stats.denied) == (3, 2)


def test_bound_methods_are_the_engines_own() -> None:
    """No Python stands between a caller and the engine; a bound method sees every change."""
    limiter = RateLimiter(1)
    allow = limiter.allow
    assert inspect.isbuiltin(allow)
    assert allow("user")
    assert not limiter.allow("user")
    limiter.reset("user")
    assert allow("user")
    heard: list[object] = []
    telemetry.attach("test", "denied", lambda *event: heard.append(event))
    try:
        assert not allow("user")
    finally:
        telemetry.detach("test")
    assert heard == [("denied", {"count": 1}, {"limiter": limiter.name, "key": "user"})]
    limiter.close()
    with pytest.raises(nanolimit.LimiterClosedError):
        allow("user")


def test_names_and_repr(clock: NanoClock) -> None:
    one, two = RateLimiter(), RateLimiter()
    assert re.fullmatch(r"limiter-\d+", one.name)
    assert one.name != two.name
    limiter = RateLimiter(5, per=60, name="api", clock=clock)
    limiter.allow_many(range(12))
    assert repr(limiter) == "<RateLimiter 'api' 5 per 60 s, 12 of 1000000 keys>"
    limiter.close()
    assert repr(limiter) == "<RateLimiter 'api' 5 per 60 s, closed>"


@pytest.mark.parametrize("name", ["quota", "name", "closed"])
def test_what_is_read_only(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(RateLimiter(), name, 1)


@pytest.mark.parametrize("copier", [pickle.dumps, copy.copy, copy.deepcopy])
def test_limiters_do_not_pickle(copier: Any) -> None:
    with pytest.raises(TypeError, match=r"RateLimiter|pickle"):
        copier(RateLimiter())


def test_a_limiter_can_be_a_weak_reference() -> None:
    limiter = RateLimiter()
    reference = weakref.ref(limiter)
    assert reference() is limiter
    del limiter
    gc.collect()
    assert reference() is None


def test_a_limiter_in_a_cycle_goes_with_it() -> None:
    """A clock that holds its limiter: the collector sees through the engine."""

    class Clock:
        limiter: RateLimiter

        def __call__(self) -> float:
            return 1.0

    clock = Clock()
    clock.limiter = RateLimiter(5, per=60, clock=clock)
    assert clock.limiter.allow("user")
    reference = weakref.ref(clock)
    del clock
    gc.collect()
    assert reference() is None


def test_with_closes() -> None:
    with RateLimiter(1) as limiter:
        assert limiter.allow("user")
        assert not limiter.closed
    assert limiter.closed


def test_any_callable_will_do_as_a_clock() -> None:
    seconds = [0.0]
    limiter = RateLimiter(1, per=60, clock=lambda: seconds[0])
    assert limiter.allow("user")
    seconds[0] = 59.999999
    assert not limiter.allow("user")
    seconds[0] = 60.0
    assert limiter.allow("user")


def test_a_manual_clock() -> None:
    clock = ManualClock(start=10.0)
    limiter = RateLimiter(1, per=60, clock=clock)
    assert limiter.allow("user")
    clock.advance(59.999999999)
    assert not limiter.allow("user")
    clock.advance(1e-9)
    assert limiter.allow("user")
    assert clock() == 70.0


def test_the_system_clock_goes_on() -> None:
    """Without a clock of one's own: a window of a microsecond is soon over."""
    limiter = RateLimiter(1, per=1e-6)
    assert limiter.allow("user")
    while not limiter.allow("user"):
        pass
    decision = RateLimiter(1, per=3_600).check("user")
    assert 0 < decision.reset_after <= 3_600 + 5e-6, "a stamp is up to a tick late"


def test_a_thousand_limiters() -> None:
    limiters = [RateLimiter(1, per=60) for _ in range(1_000)]
    assert all(limiter.allow("user") for limiter in limiters)
    assert not any(limiter.allow("user") for limiter in limiters)
