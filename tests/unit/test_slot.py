"""slot(): with and async with."""

from __future__ import annotations

import asyncio

import pytest

from nanolimit import Decision, LimiterClosedError, ManualClock, RateLimiter, RateLimitExceeded
from waiters import Waiting, lines, waiting


@pytest.fixture
def manual() -> ManualClock:
    return ManualClock(1_000)


@pytest.fixture
def limiter(manual: ManualClock) -> RateLimiter:
    return RateLimiter(2, per=60, clock=manual)


def test_entering_counts_and_leaving_does_not(limiter: RateLimiter) -> None:
    with limiter.slot("user") as decision:
        assert type(decision) is Decision
        assert (decision.allowed, decision.remaining) == (True, 1)
    assert limiter.peek("user").remaining == 1
    with pytest.raises(KeyError), limiter.slot("user"):
        raise KeyError
    assert limiter.peek("user").remaining == 0, "it was used, whatever came of it"


def test_making_one_counts_nothing(limiter: RateLimiter) -> None:
    slot = limiter.slot("user", 2)
    assert limiter.peek("user").remaining == 2
    with slot:
        assert limiter.peek("user").remaining == 0
    limiter.reset("user")
    with slot:
        assert limiter.peek("user").remaining == 0, "it may be entered again"


def test_a_time_out_raises(limiter: RateLimiter, manual: ManualClock) -> None:
    limiter.allow("user", 2)
    with pytest.raises(RateLimitExceeded) as caught, limiter.slot("user", timeout=0):
        pytest.fail("it was let in")
    assert (caught.value.key, caught.value.retry_after) == ("user", 60.0)

    def enter() -> None:
        with limiter.slot("user", 2, timeout=20):
            pytest.fail("it was let in")

    waiter = Waiting(limiter, enter)
    manual.advance(20)
    with pytest.raises(RateLimitExceeded) as caught:
        waiter.result()
    assert not caught.value.decision.allowed
    assert caught.value.retry_after == 40.0
    assert lines(limiter) == 0


def test_it_waits(limiter: RateLimiter, manual: ManualClock) -> None:
    limiter.allow("user", 2)

    def enter() -> int:
        with limiter.slot("user") as decision:
            return decision.remaining

    waiter = Waiting(limiter, enter)
    manual.advance(60)
    assert waiter.result() == 1


def test_who_times_out_behind_others_is_told_what_holds_now(
    limiter: RateLimiter, manual: ManualClock
) -> None:
    limiter.allow("user", 2)
    first = Waiting(limiter, lambda: limiter.acquire("user", 2))

    def enter() -> None:
        with limiter.slot("user", timeout=20):
            pytest.fail("it was let in")

    second = Waiting(limiter, enter)
    manual.advance(20)
    with pytest.raises(RateLimitExceeded) as caught:
        second.result()
    assert caught.value.retry_after == 40.0
    manual.advance(40)
    assert first.result() is True


def test_in_tasks(limiter: RateLimiter, manual: ManualClock) -> None:
    async def enter(timeout: float | None) -> int:
        async with limiter.slot("user", 2, timeout) as decision:
            return decision.remaining

    async def main() -> None:
        assert await enter(0) == 0
        with pytest.raises(RateLimitExceeded) as caught:
            await enter(0)
        assert caught.value.key == "user"
        late = asyncio.create_task(enter(None))
        hasty = asyncio.create_task(enter(10))
        while waiting(limiter) < 2:
            await asyncio.sleep(0)
        manual.advance(10)
        with pytest.raises(RateLimitExceeded) as caught:
            await hasty
        assert caught.value.retry_after == 50.0
        manual.advance(50)
        assert await late == 0
        with pytest.raises(ZeroDivisionError):
            async with limiter.slot("other"):
                raise ZeroDivisionError

    asyncio.run(main())
    assert lines(limiter) == 0


def test_a_time_out_is_looked_at_at_once(limiter: RateLimiter) -> None:
    with pytest.raises(ValueError, match="timeout must be >= 0 seconds"):
        limiter.slot("user", timeout=-1)
    with pytest.raises(TypeError, match="timeout"):
        limiter.slot("user", timeout="1")  # type: ignore[arg-type]


def test_a_closed_limiter(limiter: RateLimiter) -> None:
    slot = limiter.slot("user")
    limiter.close()
    with pytest.raises(LimiterClosedError), slot:
        pass


def test_the_repr_keeps_the_key_to_itself(limiter: RateLimiter) -> None:
    text = repr(limiter.slot("secret@example.org"))
    assert "secret" not in text
    assert limiter.name in text
