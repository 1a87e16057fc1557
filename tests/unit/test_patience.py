"""Waiting with patience: blocks of up to so many seconds are waited out, and no longer ones.

It is what HTTP clients wait with (`nanolimit.integrations`): a server may ask for some patience,
and may not put callers to sleep for a day.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from nanolimit import Decision, ManualClock, RateLimiter
from nanolimit.tasks import waited
from nanolimit.waiting import wait
from tools import missing
from waiters import PATIENCE_S, Waiting, lines, waiting

PATIENT_S = 30.0

Turn = tuple[Decision, bool]


@pytest.fixture
def manual() -> ManualClock:
    return ManualClock(1_000)


@pytest.fixture
def limiter(manual: ManualClock) -> RateLimiter:
    """One request a minute, and that one is gone."""
    limiter = RateLimiter(1, per=60, clock=manual)
    assert limiter.allow("user")
    return limiter


def come(limiter: RateLimiter, timeout: float | None = None, key: str = "user") -> Turn:
    return wait(limiter, key, 1, timeout, PATIENT_S)


async def come_async(limiter: RateLimiter, timeout: float | None = None) -> Turn:
    turn: Turn = await waited(limiter, "user", 1, timeout, True, PATIENT_S)
    return turn


def result(waiter: Waiting) -> Turn:
    turn: Any = waiter.result()
    return turn[0], turn[1]


def test_a_longer_block_is_not_waited_out(limiter: RateLimiter) -> None:
    limiter.block("user", 61)
    decision, granted = come(limiter)
    assert not granted
    assert decision.blocked
    assert decision.retry_after == 61.0
    assert lines(limiter) == 0


def test_a_block_alone(manual: ManualClock) -> None:
    """The log has room: it is the block that one would wait for, whatever stamps there are."""
    limiter = RateLimiter(2, per=3600, clock=manual)
    limiter.allow("user")
    limiter.block("user", 30.5)
    assert limiter.peek("user").refill_after > 30.5
    assert not come(limiter)[1]
    manual.advance(0.5)
    waiter = Waiting(limiter, lambda: come(limiter))
    manual.advance(30)
    assert result(waiter)[1]


def test_a_shorter_one_is(limiter: RateLimiter, manual: ManualClock) -> None:
    manual.advance(60)
    limiter.block("user", 30)
    waiter = Waiting(limiter, lambda: come(limiter))
    manual.advance(30)
    assert result(waiter)[1]


def test_the_log_is_waited_for_however_long_it_takes(
    limiter: RateLimiter, manual: ManualClock
) -> None:
    """A minute, which is more than the patience; the block ends before, and delays nobody."""
    limiter.block("user", 59)
    waiter = Waiting(limiter, lambda: come(limiter))
    assert waiting(limiter) == 1
    manual.advance(60)
    assert result(waiter)[1]


def test_no_patience_is_needed_where_nobody_is_blocked(limiter: RateLimiter) -> None:
    assert come(limiter, key="another")[1]
    limiter.block("user", 86_400)
    assert come(limiter, key="a third")[1]


def test_others_wait_on(limiter: RateLimiter, manual: ManualClock) -> None:
    """Who said nothing of patience waits out whatever comes."""
    waiter = Waiting(limiter, lambda: limiter.acquire("user"))
    impatient = Waiting(limiter, lambda: come(limiter))
    limiter.block("user", 3600)
    manual.advance(1)
    assert not impatient.done, "it is not its turn"
    manual.advance(3600)
    assert waiter.result() is True
    manual.advance(60)
    assert result(impatient)[1]


def test_who_is_in_line_learns_of_it(limiter: RateLimiter, manual: ManualClock) -> None:
    waiters = [Waiting(limiter, lambda: come(limiter)) for _ in range(5)]
    limiter.block("user", 3600)
    manual.advance(1)
    for waiter in waiters:
        decision, granted = result(waiter)
        assert not granted
        assert decision.retry_after == 3599.0
    assert lines(limiter) == 0


def test_who_comes_later_does_not_stand_in_line(limiter: RateLimiter, manual: ManualClock) -> None:
    """Those who stand there do not know of the block yet."""
    waiter = Waiting(limiter, lambda: come(limiter))
    limiter.block("user", 3600)
    assert not result(Waiting(limiter, lambda: come(limiter)))[1]
    assert not asyncio.run(asyncio.wait_for(come_async(limiter), PATIENCE_S))[1]
    assert waiting(limiter) == 1
    manual.advance(1)
    assert not result(waiter)[1]


def test_a_line_without_a_clock_of_its_own() -> None:
    limiter = RateLimiter(1, per=1)
    assert limiter.allow("user")
    waiters = [Waiting(limiter, lambda: come(limiter)) for _ in range(5)]
    limiter.block("user", 3600)
    for waiter in waiters:
        assert not result(waiter)[1]
    assert lines(limiter) == 0


@pytest.mark.parametrize("timeout", [None, PATIENCE_S])
@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_tasks_in_line(library: str, timeout: float | None) -> None:
    limiter = RateLimiter(1, per=1)
    assert limiter.allow("user")
    turns: list[Turn] = []

    async def one() -> None:
        turns.append(await come_async(limiter, timeout))

    run_in_line(library, limiter, partial(limiter.block, "user", 3600), one)
    assert [granted for _, granted in turns] == [False] * 5
    assert lines(limiter) == 0


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_tasks_with_a_clock_that_is_told(
    library: str, limiter: RateLimiter, manual: ManualClock
) -> None:
    turns: list[Turn] = []

    async def one() -> None:
        turns.append(await come_async(limiter))

    def strike() -> None:
        limiter.block("user", 3600)
        manual.advance(1)

    run_in_line(library, limiter, strike, one)
    assert [granted for _, granted in turns] == [False] * 5
    assert lines(limiter) == 0


def run_in_line(library: str, limiter: RateLimiter, strike: Any, one: Any) -> None:
    """Have five tasks in line, then strike, and wait for them all."""
    if library == "asyncio":

        async def main() -> None:
            tasks = [asyncio.create_task(one()) for _ in range(5)]
            while waiting(limiter) < 5:
                await asyncio.sleep(0)
            strike()
            await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)

        asyncio.run(main())
        return
    try:
        import trio
    except ImportError:
        missing("trio")

    async def trio_main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(one)
                while waiting(limiter) < 5:
                    await trio.sleep(0)
                strike()

    trio.run(trio_main)


def test_a_time_out_is_still_one(limiter: RateLimiter, manual: ManualClock) -> None:
    manual.advance(60)
    limiter.block("user", 20)
    waiter = Waiting(limiter, lambda: come(limiter, timeout=10.0))
    manual.advance(10)
    decision, granted = result(waiter)
    assert not granted
    assert decision.blocked
