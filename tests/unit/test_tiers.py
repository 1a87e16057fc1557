"""Limits of a key's own and of a call, exempt keys, limits that change at run time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from doors import verify
from nanolimit import LimiterClosedError, ManualClock, Quota, RateLimiter, check_all
from nanolimit.algorithm import ALGORITHMS

FREE = Quota(2, per=60)
PAID = Quota(50, per=60)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def allowed(limiter: RateLimiter, key: Any, n: int = 100, **options: Any) -> int:
    return sum(limiter.allow(key, **options) for _ in range(n))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_with_a_limit_of_its_own(clock: ManualClock, algorithm: Any) -> None:
    limiter = RateLimiter(FREE, clock=clock, algorithm=algorithm)
    bound = limiter.allow  # taken before
    assert allowed(limiter, "me") == 2
    limiter.set_quota("me", PAID)
    assert sum(bound("me") for _ in range(100)) == 48  # what it has used still counts
    decision = limiter.check("me")
    assert (decision.limit, decision.quota, decision.violated) == (50, PAID, PAID)
    assert allowed(limiter, "you") == 2
    limiter.set_quota("me", None)
    decision = limiter.check("me")
    assert (decision.limit, decision.remaining, decision.quota) == (2, 0, FREE)
    limiter.set_quota("you", "1 per 60s")
    assert limiter.peek("you").remaining == 0
    with pytest.raises(ValueError, match="cost must be <= the limit of 1, got 2"):
        limiter.allow("you", 2)
    verify(limiter)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_limit_for_one_call(clock: ManualClock, algorithm: Any) -> None:
    limiter = RateLimiter(FREE, clock=clock, algorithm=algorithm)
    assert allowed(limiter, "me", quota=PAID) == 50
    assert limiter.check("me", quota=PAID).quota == PAID
    assert not limiter.allow("me")
    assert limiter.peek("me").limit == 2
    assert limiter.peek("me").remaining == 0
    assert limiter.allow("you", 30, quota=PAID)
    limiter.set_quota("them", Quota(1, per=60))
    assert limiter.peek("them", quota=PAID).remaining == 50
    assert limiter.peek("them", quota=(PAID,)).remaining == 50
    assert limiter.peek("them").remaining == 1


def test_a_batch_has_one_time() -> None:
    asked = []

    def clock() -> float:
        asked.append(None)
        return 1_000.0 + len(asked)

    limiter = RateLimiter(FREE, clock=clock)
    limiter.set_quota("paid", PAID)
    asked.clear()
    assert (
        limiter.allow_many(["me", "paid", "me", "me"] * 2)
        == [True] * 3 + [False, False, True] + [False] * 2
    )
    assert len(asked) == 1
    assert limiter.allow_many([]) == []
    with pytest.raises(ValueError, match=r"keys\[1\]: cost must be <= the limit of 2, got 3"):
        limiter.allow_many(["paid", "me"], 3)
    assert limiter.peek("paid").remaining == 48


def test_of_several_quotas(clock: ManualClock) -> None:
    limiter = RateLimiter("2/second; 5/minute", clock=clock)
    limiter.set_quota("me", "10/minute")
    assert allowed(limiter, "me") == 2
    clock.advance(1)
    assert allowed(limiter, "me", quota=Quota(100, per=1)) == 8  # the key's own minute holds
    limiter.set_quota("you", "20/second; 20/minute")
    assert allowed(limiter, "you") == 20
    limiter.set_quota("you", None)
    assert limiter.check("you").quota == limiter.quotas[1]
    with pytest.raises(ValueError, match=r"1\.0 s or 60\.0 s, got 5 per 3600 s"):
        limiter.set_quota("me", "5/hour")


def test_bad_limits(clock: ManualClock) -> None:
    limiter = RateLimiter(FREE, clock=clock)
    with pytest.raises(ValueError, match=r"the window of one of .*, 60\.0 s, got 5 per 1 s"):
        limiter.allow("me", quota=Quota(5, per=1))
    with pytest.raises(TypeError, match=r"quota must be a Quota, .* not str"):
        limiter.allow("me", quota="5/minute")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not understood"):
        limiter.set_quota("me", "5")
    with pytest.raises(TypeError, match="key must be"):
        limiter.set_quota(1.5, PAID)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="exempt must be a bool, not int"):
        limiter.set_exempt("me", 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="exempt must be a list of keys, not str"):
        RateLimiter(5, exempt="me")
    with pytest.raises(ValueError, match=r"as many quotas as the limiter has \(1\), got 2"):
        limiter.update("1/second; 2/minute")
    with pytest.raises(ValueError, match="limit must be from 1 to"):
        limiter.update(0)
    with pytest.raises(TypeError, match="max_limit needs shared="):
        RateLimiter(5, max_limit=10)
    assert allowed(limiter, "me") == 2
    assert limiter.quota == FREE
    limiter.close()
    calls: list[Callable[[], object]] = [
        lambda: limiter.set_quota("me", PAID),
        lambda: limiter.update(3),
        lambda: limiter.block("me", 1),
        lambda: limiter.unblock("me"),
        lambda: limiter.set_exempt("me"),
        lambda: limiter.allow("me", quota=PAID),
    ]
    for call in calls:
        with pytest.raises(LimiterClosedError):
            call()


def test_exempt_keys(clock: ManualClock) -> None:
    limiter = RateLimiter(FREE, clock=clock, exempt=["boss", 7])
    assert allowed(limiter, "boss") == allowed(limiter, 7) == 100
    assert allowed(limiter, "me") == 2
    assert "boss" not in limiter
    decision = limiter.check("boss", 1_000)
    assert (decision.allowed, decision.remaining, decision.quota) == (True, 2, FREE)
    assert limiter.allow_many(["boss"] * 5) == [True] * 5
    limiter.set_exempt("boss", False)
    assert allowed(limiter, "boss") == 2
    limiter.set_exempt("boss")
    assert allowed(limiter, "boss") == 100
    assert check_all([(limiter, "boss"), (limiter, "you")])
    assert check_all([(limiter, "boss"), (limiter, 7)])
    limiter.set_quota("boss", PAID)
    assert limiter.peek("boss").limit == 50
    limiter.set_exempt("boss", False)
    assert allowed(limiter, "boss") == 48
    with limiter.reserve(7, 30) as reservation:
        assert reservation.ok
    assert limiter.stats().denied == 2 * 98 + 52


# update


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_limit_at_once(clock: ManualClock, algorithm: Any) -> None:
    limiter = RateLimiter(4, clock=clock, algorithm=algorithm)
    assert allowed(limiter, "me", 3) == 3
    limiter.update(2)
    assert limiter.quota == Quota(2)
    assert not limiter.allow("me")
    limiter.update(6)
    assert allowed(limiter, "me") == 3
    limiter.update(1_500)
    assert allowed(limiter, "me", 2_000) == 1_494
    limiter.update("3 per 60 s")
    assert limiter.check("me").remaining == 0
    assert allowed(limiter, "you") == 3
    assert limiter.quota == Quota(3)
    verify(limiter)


def test_another_window_loses_no_log(clock: ManualClock) -> None:
    limiter = RateLimiter(5, per=60, clock=clock)
    for _ in range(3):
        limiter.allow("me")
        clock.advance(10)
    limiter.update(5, per=3_600)
    assert limiter.quota == Quota(5, per=3_600)
    assert limiter.check("me").remaining == 1
    assert limiter.check("me").refill_after == 3_600 - 30
    clock.advance(3_600 - 30)
    assert limiter.check("me").remaining == 0
    limiter.update(5, per=15)
    assert limiter.peek("me").remaining == 4  # all but the newest are out of that window
    assert limiter.peek("me").reset_after == 15
    assert limiter.stats().allowed == 6
    assert limiter.stats().keys == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS[1:])
def test_a_meter_keeps_what_it_knows(clock: ManualClock, algorithm: Any) -> None:
    limiter = RateLimiter(10, per=60, clock=clock, algorithm=algorithm)
    assert allowed(limiter, "me", 8) == 8
    limiter.update(10, per=600)
    assert allowed(limiter, "me") == 2
    clock.advance(1_200)
    assert allowed(limiter, "me") == 10


def test_several_quotas_change_together(clock: ManualClock) -> None:
    limiter = RateLimiter("2/second; 5/minute", clock=clock)
    assert allowed(limiter, "me") == 2
    limiter.update("30/second; 40/hour")
    assert limiter.quotas == (Quota(30, per=1), Quota(40, per=3_600))
    assert allowed(limiter, "me") == 28
    clock.advance(1)
    assert allowed(limiter, "me") == 10
    verify(limiter)


def test_reservations_outlive_an_update(clock: ManualClock) -> None:
    limiter = RateLimiter(10, per=60, clock=clock)
    clock.advance(1)
    held = limiter.reserve("me", 6)
    limiter.allow("me", 2)
    limiter.update(10, per=86_400)
    assert held.commit(1) == 0
    assert limiter.peek("me").remaining == 7


def test_who_waits_is_let_in_by_the_new_limit(clock: ManualClock) -> None:
    limiter = RateLimiter(1, per=60, clock=clock)
    limiter.allow("me")
    done = threading.Event()
    thread = threading.Thread(target=lambda: (limiter.acquire("me"), done.set()))
    thread.start()
    limiter.update(2)
    clock.advance(0.001)  # a waiter looks when its clock moves, or its time has come
    assert done.wait(60)
    thread.join()


def test_nothing_is_lost_while_others_go_on() -> None:
    """Threads ask while the table is replaced again and again: exactly the limit gets in."""
    clock = ManualClock(1_000.0)
    limiter = RateLimiter(300, per=60, clock=clock, max_keys=5_000)
    counted = [0] * 20
    stop = threading.Event()
    lock = threading.Lock()

    def ask(self: int) -> None:
        mine = [0] * 20
        n = self
        while not stop.is_set() or n < 2_000:
            n += 1
            mine[n % 20] += limiter.allow(n % 20)
            limiter.allow(1_000 + n % 900)
            assert limiter.peek(n % 20).remaining < 300
        with lock:
            for key, units in enumerate(mine):
                counted[key] += units

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for per in (3_600, 60, 90, 86_400, 30, 60):
        limiter.update(300, per=per)
    stop.set()
    for thread in threads:
        thread.join(120)
    for key in range(20):
        counted[key] += allowed(limiter, key, 400)
    assert counted == [300] * 20
    verify(limiter)


def test_no_key_looks_empty_while_it_moves() -> None:
    """Whoever looks at a key just then finds it in one table or in the other."""
    clock = ManualClock(1_000.0)
    empty: list[object] = []
    pause_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(15):
            limiter = RateLimiter(300, per=60, clock=clock, max_keys=5_000)
            stop = threading.Event()

            def ask(n: int, limiter: RateLimiter = limiter, stop: threading.Event = stop) -> None:
                while not stop.is_set():
                    n += 1
                    limiter.allow(n % 20)
                    if limiter.peek(n % 20).remaining == 300:
                        empty.append(n % 20)
                        return

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for per in (3_600, 60, 90, 86_400, 30, 60) * 6:
                limiter.update(300, per=per)
            stop.set()
            for thread in threads:
                thread.join(120)
    finally:
        sys.setswitchinterval(pause_s)
    assert empty == []
