"""Several quotas of one limiter: all or nothing, and what a Decision says of them."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import pytest

from doors import verify
from nanolimit import ManualClock, Quota, RateLimiter, _core, shared, telemetry
from nanolimit.errors import LimiterClosedError, SharedTableError

BURST_AND_HOUR = "2/second; 5/hour"


@pytest.fixture
def manual() -> ManualClock:
    return ManualClock(1_000.0)


@pytest.mark.parametrize(
    "quotas",
    [
        "2/second; 5/hour",
        "2/second, 5/hour",
        " 2/second ;5 per hour ",
        ["2/second", "5/hour"],
        (Quota(2, 1), Quota(5, 3_600)),
        ["2/second", Quota(5, 3_600)],
    ],
)
def test_ways_to_say_it(quotas: object) -> None:
    limiter = RateLimiter(quotas)  # type: ignore[arg-type]
    assert limiter.quotas == (Quota(2, 1), Quota(5, 3_600))
    assert limiter.quota == Quota(2, 1)
    assert "2 per 1 s; 5 per 3600 s" in repr(limiter)


def test_one_quota_in_a_list_is_an_ordinary_limiter() -> None:
    limiter = RateLimiter(["5/minute"])
    assert isinstance(limiter._engine, _core.Limiter)
    assert limiter.quotas == (Quota(5, 60),)


def test_a_denial_counts_in_none(manual: ManualClock) -> None:
    limiter = RateLimiter(BURST_AND_HOUR, clock=manual)
    assert [limiter.allow("user") for _ in range(20)] == [True] * 2 + [False] * 18
    manual.advance(1)
    # Only two of the twenty count in the hour.
    assert [limiter.allow("user") for _ in range(3)] == [True, True, False]
    manual.advance(1)
    assert [limiter.allow("user") for _ in range(2)] == [True, False]
    assert limiter.stats()[:2] == (5, 20)


def test_the_decision_is_the_binding_quotas(manual: ManualClock) -> None:
    limiter = RateLimiter(BURST_AND_HOUR, clock=manual)
    second, hour = limiter.quotas
    decision = limiter.check("user")
    assert (decision.quota, decision.limit, decision.remaining) == (second, 2, 1)
    assert decision.violated is None
    limiter.check("user")
    decision = limiter.check("user")
    assert decision.violated is second
    assert decision.retry_after == 1.0
    manual.advance(1)
    assert limiter.allow("user", 2)
    # Both deny three: never mind the second, the hour takes longer.
    with pytest.raises(ValueError, match="limit of 2, got 3: it could never pass"):
        limiter.check("user", 3)
    decision = limiter.check("user", 2)
    assert decision.violated is hour
    assert decision.retry_after == 3_599.0
    assert decision.remaining == 1
    manual.advance(decision.retry_after)
    assert limiter.allow("user", 2)


def test_a_tie_goes_to_the_first_named(manual: ManualClock) -> None:
    limiter = RateLimiter(["3/minute", "3/hour"], clock=manual)
    assert limiter.check("user").quota == Quota(3, 60)
    assert limiter.peek("user").quota == Quota(3, 60)


def test_retry_after_holds_to_the_nanosecond(manual: ManualClock) -> None:
    limiter = RateLimiter(["3/second", "4/minute", "6/hour"], clock=manual)
    passed = 0
    while passed < 12:
        decision = limiter.check("user")
        if decision:
            passed += 1
            continue
        manual.advance(decision.retry_after - 1e-9)
        assert not limiter.peek("user")
        manual.advance(1e-9)
        assert limiter.peek("user")


@pytest.mark.parametrize("where", [None, True])
def test_every_verb(manual: ManualClock, where: bool | None) -> None:
    if where and not _core.SHARED:
        pytest.skip("shared tables are for Linux")
    options = {"shared": True, "max_keys": 100} if where else {}
    limiter = RateLimiter(BURST_AND_HOUR, clock=manual, **options)  # type: ignore[arg-type]
    assert limiter.allow_many(["a", "b", "a", "a"]) == [True, True, True, False]
    assert bytes(limiter.allow_many(memoryview(b"\x07" + bytes(7)).cast("q"))) == b"\x01"
    assert len(limiter) == 3
    assert "a" in limiter
    assert 7 in limiter
    manual.advance(1)
    assert "a" in limiter  # in its hour
    assert limiter.peek("a").remaining == 2
    assert limiter.allow("a", 0)
    assert limiter.check("a", 0).remaining == 2
    assert limiter.reset("a")
    assert not limiter.reset("a")
    assert limiter.stats().keys == 2
    manual.advance(3_600)
    assert limiter.evict() == 2
    assert limiter.stats().keys == 0
    limiter.allow("c")
    limiter.clear()
    assert "c" not in limiter
    verify(limiter)
    with pytest.raises(TypeError, match="several quotas"):
        _ = limiter.core
    limiter.close()
    limiter.close()
    assert limiter.closed
    for verb in (limiter.allow, limiter.check, limiter.peek, limiter.reset):
        with pytest.raises(LimiterClosedError):
            verb("a")
    with pytest.raises(LimiterClosedError):
        limiter.allow_many(["a"])
    assert limiter.quotas == (Quota(2, 1), Quota(5, 3_600))


def test_events_come_once(manual: ManualClock) -> None:
    told: list[tuple[str, float, object]] = []
    telemetry.attach(
        "here", ["allowed", "denied"], lambda e, m, d: told.append((e, m["count"], d["key"]))
    )
    try:
        limiter = RateLimiter(BURST_AND_HOUR, clock=manual)
        allow = limiter.allow
        allow("a", 2)
        allow("a")
        limiter.allow_many(["b"])
    finally:
        telemetry.detach("here")
    allow("a")
    assert told == [("allowed", 2, "a"), ("denied", 1, "a"), ("allowed", 1, "b")]


def test_a_bad_key_or_cost_changes_nothing() -> None:
    limiter = RateLimiter(BURST_AND_HOUR)
    for bad in (None, 1.5, ["a"]):
        with pytest.raises(TypeError, match="key must be"):
            limiter.allow(bad)  # type: ignore[arg-type]
    for cost in (-1, 3):
        with pytest.raises(ValueError, match="cost must be"):
            limiter.check("a", cost)
    assert limiter.stats()[:3] == (0, 0, 0)


@pytest.mark.parametrize(("on_full", "allowed"), [("allow", True), ("deny", False)])
def test_no_room(manual: ManualClock, on_full: str, allowed: bool) -> None:
    limiter = RateLimiter(
        BURST_AND_HOUR,
        clock=manual,
        max_keys=2,
        on_full=on_full,  # type: ignore[arg-type]
    )
    assert limiter.allow("a")
    assert limiter.allow("b")
    decision = limiter.check("c")
    assert bool(decision) == allowed
    assert limiter.stats().overflowed == 1
    assert "c" not in limiter
    # Idle in its second, live in its hour: no room in the one table is no room.
    manual.advance(2)
    assert limiter.allow("c") == allowed
    assert limiter.allow("a", 2)


def test_displaced(manual: ManualClock) -> None:
    limiter = RateLimiter(BURST_AND_HOUR, clock=manual, max_keys=2, on_full="evict")
    for key in ("a", "b", "c"):
        manual.advance(1e-3)
        assert limiter.allow(key)
    assert "a" not in limiter
    assert limiter.stats().evicted == 2  # in either table
    verify(limiter)


def test_decisions_pickle(manual: ManualClock) -> None:
    limiter = RateLimiter(BURST_AND_HOUR, clock=manual)
    limiter.allow("a", 2)
    decision = limiter.check("a")
    again = pickle.loads(pickle.dumps(decision))
    assert again.violated == decision.violated == Quota(2, 1)
    assert repr(again) == repr(decision)


def test_threads_get_exactly_the_tightest(restless: None) -> None:
    limiter = RateLimiter(["400/hour", "300/day", "2047/week"])
    start = threading.Barrier(4)
    counts: list[int] = []

    def work() -> None:
        start.wait()
        counts.append(sum(limiter.allow("hot") for _ in range(200)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 300
    verify(limiter)


@pytest.mark.skipif(not _core.SHARED, reason="shared tables are for Linux")
class TestFiles:
    """A file for each quota."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("NANOLIMIT_DIR", str(tmp_path))
        return tmp_path

    def test_one_count(self, folder: Path) -> None:
        first = RateLimiter(BURST_AND_HOUR, shared="api", max_keys=100)
        second = RateLimiter(BURST_AND_HOUR, shared="api", max_keys=100)
        assert first.name == "api"
        assert first.allow("a")
        assert second.allow("a")
        assert not first.check("a")
        assert sorted(path.name for path in folder.iterdir()) == ["api", "api.2"]

    def test_another_number_of_quotas_is_told(self) -> None:
        limiter = RateLimiter(BURST_AND_HOUR, shared="api", max_keys=100)
        with pytest.raises(SharedTableError, match="number 1 of 2, asked for 1 of 1"):
            RateLimiter("2/second", shared="api", max_keys=100)
        with pytest.raises(SharedTableError, match="number 1 of 2, asked for 1 of 1"):
            RateLimiter("2/second", shared="api", max_keys=100, on_mismatch="adopt")
        limiter.close()

    def test_removed_together(self, folder: Path) -> None:
        RateLimiter(BURST_AND_HOUR, shared="api", max_keys=100).close()
        RateLimiter("5/minute", shared="api.3", max_keys=100).close()
        shared.remove("api")
        assert [path.name for path in folder.iterdir()] == ["api.3"]

    def test_one_alone_is_no_part(self, folder: Path) -> None:
        RateLimiter("2/second", shared="api", max_keys=100).close()
        RateLimiter("5/hour", shared="api.2", max_keys=100).close()
        shared.remove("api")
        assert [path.name for path in folder.iterdir()] == ["api.2"]
