"""Reservations, attempts and refunds: what is given back is exactly what was stamped."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest

from doors import verify
from nanolimit import ManualClock, NanolimitError, RateLimiter, RateLimitExceeded, _core
from nanolimit.errors import LimiterClosedError, ReservationClosedError
from nanolimit.reservation import Reservation


@pytest.fixture
def manual() -> ManualClock:
    return ManualClock(1_000.0)


@pytest.fixture(params=["one", "several", "shared"])
def limiter(request: pytest.FixtureRequest, manual: ManualClock) -> RateLimiter:
    if request.param == "shared":
        if not _core.SHARED:
            pytest.skip("shared tables are for Linux")
        return RateLimiter("1000/minute", clock=manual, shared=True, max_keys=10, typical=1_000)
    return RateLimiter(
        "1000/minute" if request.param == "one" else "1000/minute; 1500/hour", clock=manual
    )


def left(limiter: RateLimiter) -> int:
    return limiter.peek("user", 0).remaining


def test_less_is_given_back(limiter: RateLimiter) -> None:
    reservation = limiter.reserve("user", 800)
    assert reservation.ok
    assert reservation.decision.remaining == left(limiter) == 200
    assert reservation.commit(300) == 0
    assert left(limiter) == 700
    verify(limiter)


def test_more_is_taken_as_far_as_it_goes(limiter: RateLimiter) -> None:
    limiter.allow("user", 100)
    reservation = limiter.reserve("user", cost=500)
    assert reservation.commit(700) == 0
    assert left(limiter) == 200
    reservation = limiter.reserve("user", cost=50)
    assert reservation.commit(10_000) == reservation.debt == 10_000 - 50 - 150
    assert left(limiter) == 0


def test_only_its_own_stamps(limiter: RateLimiter, manual: ManualClock) -> None:
    """Others counted before and after it keep their times."""
    limiter.allow("user", 1)
    manual.advance(10)
    reservation = limiter.reserve("user", 5)
    manual.advance(10)
    limiter.allow("user", 2)
    assert reservation.commit(1) == 0
    assert left(limiter) == 996
    for wait, remaining in ((40, 997), (10, 998), (10, 1_000)):
        manual.advance(wait - 1e-9)
        assert left(limiter) < remaining
        manual.advance(1e-9)
        assert left(limiter) == remaining


def test_what_has_left_is_not_given_back(limiter: RateLimiter, manual: ManualClock) -> None:
    reservation = limiter.reserve("user", 5)
    manual.advance(60)
    limiter.allow("user", 7)
    before = left(limiter)
    assert reservation.cancel() in (0, 5)  # 5: it still counts in the hour
    assert left(limiter) == before


def test_settled_once(limiter: RateLimiter) -> None:
    reservation = limiter.reserve("user", 5)
    for bad, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="actual_cost"):
            reservation.commit(bad)  # type: ignore[arg-type]
    assert reservation.commit() == 0
    for settle in (reservation.commit, reservation.cancel):
        with pytest.raises(ReservationClosedError, match="settled before"):
            settle()
    cancelled = limiter.reserve("user", 5)
    assert cancelled.cancel() == 5
    assert cancelled.cancel() == 0
    with pytest.raises(NanolimitError, match="can't commit"):
        cancelled.commit(3)
    assert left(limiter) == 995


def test_denied(limiter: RateLimiter) -> None:
    limiter.allow("user", 999)
    reservation = limiter.reserve("user", 2)
    assert not reservation.ok
    assert reservation.decision.retry_after == 60.0
    assert reservation.cancel() == 0
    with pytest.raises(ReservationClosedError, match="it was denied"):
        reservation.commit()
    assert left(limiter) == 1
    assert "denied" in repr(reservation)


def test_as_a_context(limiter: RateLimiter) -> None:
    with limiter.reserve("user", 10) as reservation:
        reservation.commit(4)
    assert left(limiter) == 996
    with limiter.reserve("user", 10):
        pass
    assert left(limiter) == 986
    with pytest.raises(ZeroDivisionError), limiter.reserve("user", 10):
        _ = 1 / 0
    assert left(limiter) == 986

    async def fails() -> None:
        async with limiter.reserve("user", 10):
            raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(fails())
    assert left(limiter) == 986


def test_two_threads_settle_once(limiter: RateLimiter) -> None:
    for _ in range(50):
        reservation = limiter.reserve("user", 10)
        errors: list[Exception] = []
        start = threading.Barrier(2)

        def settle(reservation: Any = reservation, start: Any = start) -> None:
            start.wait()
            try:
                reservation.commit(0)
            except ReservationClosedError as error:
                errors.append(error)  # noqa: B023

        threads = [threading.Thread(target=settle) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(errors) == 1
        assert left(limiter) == 1_000


def test_refund(limiter: RateLimiter, manual: ManualClock) -> None:
    limiter.allow("user", 3)
    manual.advance(10)
    limiter.allow("user", 3)
    assert limiter.refund("user", 4) == 4  # the last ones
    assert left(limiter) == 998
    assert limiter.refund("user", 0) == 0
    assert limiter.refund("user", 1_000) == 2
    assert limiter.refund("user") == 0
    assert limiter.refund("nobody") == 0
    assert "user" not in limiter
    for bad, error in ((-1, ValueError), (1_001, ValueError), (None, TypeError)):
        with pytest.raises(error, match="cost"):
            limiter.refund("user", bad)  # type: ignore[arg-type]


def test_cost_0(limiter: RateLimiter) -> None:
    reservation = limiter.reserve("user", 0)
    assert reservation.ok
    assert reservation.commit(5) == 0
    assert left(limiter) == 995


def test_untracked(manual: ManualClock) -> None:
    """No room for the key: it passed uncounted, and there is nothing to give back."""
    limiter = RateLimiter(5, clock=manual, max_keys=1)
    limiter.allow("somebody")
    reservation = limiter.reserve("user", 3)
    assert reservation.ok
    assert reservation.commit(1) == 0


class TestAttempt:
    def test_only_failures_count(self, manual: ManualClock) -> None:
        logins = RateLimiter("5/15m", clock=manual)
        for _ in range(20):
            with logins.attempt("ann") as attempt:
                assert attempt.decision
                assert attempt.success() == 1
                assert attempt.success() == 0
        for _ in range(5):
            with logins.attempt("ann"):
                pass
        with pytest.raises(RateLimitExceeded) as caught, logins.attempt("ann"):
            pytest.fail("it must not come in")
        assert caught.value.retry_after == 900.0
        assert caught.value.key == "ann"

    def test_an_exception_is_a_failure(self, manual: ManualClock) -> None:
        logins = RateLimiter("5/15m", clock=manual)
        with pytest.raises(LookupError), logins.attempt("ann"):
            raise LookupError
        assert logins.peek("ann").remaining == 4

    def test_counted_at_the_entry(self, manual: ManualClock) -> None:
        """As many at a time as there may be failures: peeking first would let all in."""
        logins = RateLimiter("5/15m", clock=manual)
        inside = [logins.attempt("ann") for _ in range(5)]
        for attempt in inside:
            attempt.__enter__()
        with pytest.raises(RateLimitExceeded), logins.attempt("ann"):
            pass
        inside[0].success()
        with logins.attempt("ann") as attempt:
            attempt.success()

    def test_outside_its_block(self) -> None:
        logins = RateLimiter("5/15m")
        attempt = logins.attempt("ann")
        for early in (attempt.success, lambda: attempt.decision):
            with pytest.raises(ReservationClosedError):
                early()
        with attempt:
            pass
        with pytest.raises(ReservationClosedError):
            attempt.success()

    def test_async(self) -> None:
        logins = RateLimiter("1/15m")

        async def login(right: bool) -> None:
            async with logins.attempt("ann") as attempt:
                if right:
                    attempt.success()

        asyncio.run(login(right=True))
        asyncio.run(login(right=False))
        with pytest.raises(RateLimitExceeded):
            asyncio.run(login(right=True))


def test_closed() -> None:
    limiter = RateLimiter(5)
    reservation = limiter.reserve("user", 2)
    limiter.close()
    for verb in (limiter.reserve, limiter.attempt, limiter.refund):
        with pytest.raises(LimiterClosedError):
            verb("user")
    with pytest.raises(LimiterClosedError):
        reservation.commit(1)


def cancelled_twice(reservation: Reservation, moment: int) -> list[int]:
    """Cancels, and once more before so many instructions of it are done; what each was told."""
    given: list[int] = []
    left_to_go = moment

    def look(frame: Any, event: str, _: Any) -> Any:
        nonlocal left_to_go
        if frame.f_code.co_filename != sys.modules[Reservation.__module__].__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left_to_go -= 1
            if left_to_go == 0:
                given.append(reservation.cancel())  # (nothing is traced in here)
        return look

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # 3.12 asks for it only when tracing begins
    sys.settrace(look)
    try:
        given.append(reservation.cancel())
    finally:
        sys.settrace(before)
    return given


def test_another_thread_cancels_at_any_moment(limiter: RateLimiter) -> None:
    """Between any two instructions of a cancel: who is late is told 0, as ever."""
    moments = 0
    while len(given := cancelled_twice(limiter.reserve("user", 3), moments + 1)) == 2:
        moments += 1
        assert sorted(given) == [0, 3]
        assert left(limiter) == 1_000
    assert given == [3]
    assert moments > 10
