"""acquire_async() in asyncio's tasks: order, time, cancellation, loops that come and go."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from nanolimit import LimiterClosedError, ManualClock, RateLimiter
from waiters import PATIENCE_S, Waiting, lines, until, waiting


@pytest.fixture
def manual() -> ManualClock:
    return ManualClock(1_000)


@pytest.fixture
def limiter(manual: ManualClock) -> RateLimiter:
    """One request a minute, and that one is gone."""
    limiter = RateLimiter(1, per=60, clock=manual)
    assert limiter.allow("user")
    return limiter


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, PATIENCE_S))


async def settle() -> None:
    """Let everything happen that can happen now."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_what_fits_does_not_wait(manual: ManualClock) -> None:
    limiter = RateLimiter(2, per=60, clock=manual)

    async def main() -> None:
        assert await limiter.acquire_async("user") is True
        assert await limiter.acquire_async("user", 1, timeout=0) is True
        assert await limiter.acquire_async("user", timeout=0) is False
        assert await limiter.acquire_async("user", 0) is True

    run(main())
    assert lines(limiter) == 0


def test_in_order_at_the_instant(limiter: RateLimiter, manual: ManualClock) -> None:
    async def main() -> None:
        order: list[int] = []

        async def come(number: int) -> None:
            assert await limiter.acquire_async("user") is True
            order.append(number)

        crew = [asyncio.create_task(come(number)) for number in range(5)]
        await settle()
        assert (waiting(limiter), lines(limiter)) == (5, 1)
        for number in range(5):
            manual.advance(59.999_999_999)
            await settle()
            assert order == list(range(number))
            manual.advance(1e-9)
            await settle()
            assert order == list(range(number + 1))
        await asyncio.gather(*crew)

    run(main())
    assert lines(limiter) == 0


def test_as_many_as_fit_are_granted_in_one_go(manual: ManualClock) -> None:
    limiter = RateLimiter(10, per=60, clock=manual)
    limiter.allow("user", 10)

    async def main() -> None:
        costs = [3, 3, 4, 1]
        crew = [asyncio.create_task(limiter.acquire_async("user", cost)) for cost in costs]
        await settle()
        manual.advance(60)
        # The clock's word, the first task, those behind it: three turns of the loop, for any limit.
        for _ in range(3):
            await asyncio.sleep(0)
        assert [task.done() for task in crew] == [True, True, True, False]
        manual.advance(60)
        assert await crew[3] is True

    run(main())


def test_no_more_are_woken_than_fit(manual: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanolimit import tasks

    looked: list[int] = []
    look = tasks.TaskWaiter.look

    def counted(self: Any) -> bool:
        looked.append(1)
        return look(self)

    monkeypatch.setattr(tasks.TaskWaiter, "look", counted)
    limiter = RateLimiter(20, per=60, clock=manual)
    limiter.allow("user", 20)

    async def main() -> None:
        crew = [asyncio.create_task(limiter.acquire_async("user", 10)) for _ in range(100)]
        await settle()
        looked.clear()
        manual.advance(60)
        await settle()
        assert sum(task.done() for task in crew) == 2
        assert len(looked) == 2
        for task in crew:
            task.cancel()
        await settle()

    run(main())


def test_a_time_out(limiter: RateLimiter, manual: ManualClock) -> None:
    async def main() -> None:
        first = asyncio.create_task(limiter.acquire_async("user", timeout=60))
        second = asyncio.create_task(limiter.acquire_async("user", timeout=60))
        third = asyncio.create_task(limiter.acquire_async("user", timeout=61))
        await settle()
        manual.advance(60)
        assert (await first, await second) == (True, False), "the last moment is good for one"
        await settle()
        assert not third.done()
        manual.advance(1)
        assert await third is False

    run(main())
    assert lines(limiter) == 0
    manual.advance(59)
    assert limiter.allow("user"), "only one was counted"


def test_a_time_out_in_real_time() -> None:
    limiter = RateLimiter(1, per=0.2)

    async def main() -> None:
        start = time.monotonic()
        await limiter.acquire_async("user")
        first = asyncio.create_task(limiter.acquire_async("user", timeout=5))
        second = asyncio.create_task(limiter.acquire_async("user", timeout=0.05))
        third = asyncio.create_task(limiter.acquire_async("user", timeout=0.25))
        fourth = asyncio.create_task(limiter.acquire_async("user", timeout=5))
        assert await second is False
        assert 0.05 <= time.monotonic() - start < 0.2
        assert await first is True
        assert time.monotonic() - start >= 0.2
        assert await third is False, "its own time-out holds when it has become the first"
        assert 0.25 <= time.monotonic() - start < 0.4
        assert await fourth is True
        assert time.monotonic() - start >= 0.4

    run(main())


def test_cancellation_gives_the_place_back(limiter: RateLimiter, manual: ManualClock) -> None:
    async def main() -> None:
        crew = [asyncio.create_task(limiter.acquire_async("user")) for _ in range(4)]
        await settle()
        crew[0].cancel()
        crew[2].cancel()
        await settle()
        assert (crew[0].cancelled(), crew[2].cancelled(), waiting(limiter)) == (True, True, 2)
        manual.advance(60)
        assert await crew[1] is True
        crew[3].cancel()
        await settle()

    run(main())
    assert lines(limiter) == 0


def test_cancelled_when_it_was_just_woken(limiter: RateLimiter, manual: ManualClock) -> None:
    """Nothing was counted for it, and the next one gets the request."""

    async def main() -> None:
        first = asyncio.create_task(limiter.acquire_async("user"))
        second = asyncio.create_task(limiter.acquire_async("user"))
        await settle()
        manual.advance(60)
        await asyncio.sleep(0)  # the future has its result, the task has not run yet
        first.cancel()
        assert await second is True
        assert first.cancelled()

    run(main())
    assert limiter.stats().allowed == 2
    assert lines(limiter) == 0


@pytest.mark.parametrize("victims", [[0], [1], [0, 1], [0, 2], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("turns", range(5))
def test_cancelled_at_any_turn_of_the_loop(
    victims: list[int], turns: int, manual: ManualClock
) -> None:
    """Three may go at once: whoever is cancelled, the others and those behind them lose nothing."""
    limiter = RateLimiter(3, per=60, clock=manual)
    limiter.allow("user", 3)

    async def main() -> None:
        crew = [asyncio.create_task(limiter.acquire_async("user")) for _ in range(6)]
        await settle()
        manual.advance(60)
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled = [crew[number].cancel() for number in victims]
        await settle()
        granted = [task.done() and not task.cancelled() for task in crew]
        assert sum(granted) == 3, "no more than the limit, and no less"
        assert limiter.peek("user").remaining == 0
        assert waiting(limiter) == 6 - 3 - sum(cancelled)
        for task in crew:
            task.cancel()
        await settle()

    run(main())
    assert lines(limiter) == 0


def test_wait_for_and_task_groups(limiter: RateLimiter, manual: ManualClock) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(limiter.acquire_async("user"), 0.01)
        assert lines(limiter) == 0

        async def fail() -> None:
            await settle()
            raise RuntimeError("the group ends")

        crew = [asyncio.ensure_future(limiter.acquire_async("user")) for _ in range(3)]
        with pytest.raises(RuntimeError):
            await asyncio.gather(fail(), *crew)
        for task in crew:
            task.cancel()
        await settle()

    run(main())
    assert lines(limiter) == 0
    manual.advance(60)
    assert limiter.acquire("user", timeout=0)


def test_close(limiter: RateLimiter) -> None:
    limiter.allow("other")

    async def main() -> None:
        keys = ["user", "user", "user", "other"]
        crew = [asyncio.create_task(limiter.acquire_async(key, timeout=99)) for key in keys]
        await settle()
        limiter.close()
        for answer in await asyncio.gather(*crew, return_exceptions=True):
            assert isinstance(answer, LimiterClosedError)
        with pytest.raises(LimiterClosedError):
            await limiter.acquire_async("user")

    run(main())
    assert lines(limiter) == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("user", 2), ValueError),
        (("user", -1), ValueError),
        ((1.5,), TypeError),
        (("user", 1, -1), ValueError),
        (("user", 1, "1"), TypeError),
    ],
)
def test_bad_arguments(arguments: Any, error: type[Exception], limiter: RateLimiter) -> None:
    async def main() -> None:
        with pytest.raises(error):
            await limiter.acquire_async(*arguments)

    run(main())
    assert lines(limiter) == 0


def test_threads_and_tasks_of_two_loops_stand_in_one_line(
    limiter: RateLimiter, manual: ManualClock
) -> None:
    order: list[str] = []

    def thread(name: str) -> None:
        assert limiter.acquire("user")
        order.append(name)

    async def task(name: str) -> None:
        assert await limiter.acquire_async("user")
        order.append(name)

    crew = []
    for turn in range(3):
        for work in (
            lambda turn=turn: thread(f"thread {turn}"),  # type: ignore[misc]
            lambda turn=turn: asyncio.run(task(f"task {turn}")),  # type: ignore[misc]
        ):
            crew.append(Waiting(limiter, work))
    for number, waiter in enumerate(crew):
        assert len(order) == number
        manual.advance(60)
        waiter.result()
    assert order == [f"{kind} {turn}" for turn in range(3) for kind in ("thread", "task")]
    assert lines(limiter) == 0


def left_in_line(limiter: RateLimiter) -> tuple[asyncio.AbstractEventLoop, asyncio.Task[bool]]:
    """A loop that stopped while its task stands in line."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(limiter.acquire_async("user"))
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    return loop, task


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("clock", [ManualClock(), None])
def test_a_closed_loop_jams_nobody(clock: ManualClock | None) -> None:
    limiter = RateLimiter(1, per=0.3, clock=clock)
    limiter.allow("user")
    loops, tasks = zip(*[left_in_line(limiter) for _ in range(2)], strict=True)
    waiter = Waiting(limiter, lambda: limiter.acquire("user"))
    assert waiting(limiter) == 3
    for loop in loops:
        loop.close()
    assert waiting(limiter) == 1, "closing tells it, at once"
    if clock is not None:
        clock.advance(0.3)
    assert waiter.result() is True
    for task in tasks:
        task._log_destroy_pending = False
    del tasks
    gc.collect()
    assert lines(limiter) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_who_comes_after_a_closed_loop_stands_first(
    limiter: RateLimiter, manual: ManualClock
) -> None:
    loop, task = left_in_line(limiter)
    assert limiter.acquire("user", timeout=0) is False
    loop.close()
    manual.advance(60)
    assert limiter.acquire("user", timeout=0) is True
    assert lines(limiter) == 0
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_task_that_is_forgotten_leaves(limiter: RateLimiter) -> None:
    """Its coroutine is closed by hand, as the collector does: in another thread, without a loop."""
    waiter = Waiting(limiter, lambda: limiter.acquire("user"))
    coroutine = limiter.acquire_async("user")

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        future = coroutine.send(None)
        assert asyncio.isfuture(future)
        assert waiting(limiter) == 2

    run(main())
    thread = threading.Thread(target=coroutine.close)
    thread.start()
    thread.join()
    assert waiting(limiter) == 1
    limiter.close()
    with pytest.raises(LimiterClosedError):
        waiter.result()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_who_was_taken_out_takes_nobody_s_place(limiter: RateLimiter) -> None:
    loop, task = left_in_line(limiter)
    loop.close()
    waiter = Waiting(limiter, lambda: limiter.acquire("user"))
    coroutine: Any = task.get_coro()
    coroutine.close()
    assert waiting(limiter) == 1
    limiter.close()
    with pytest.raises(LimiterClosedError):
        waiter.result()
    task._log_destroy_pending = False  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_closed_loop_whose_bell_did_not_ring(limiter: RateLimiter, manual: ManualClock) -> None:
    """A loop of another make may keep its timers: it is found when its task is to be woken."""
    from nanolimit import tasks

    first = Waiting(limiter, lambda: limiter.acquire("user"))
    loop = asyncio.new_event_loop()
    tasks._have_bells.add(loop)
    task = loop.create_task(limiter.acquire_async("user"))
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    third = Waiting(limiter, lambda: limiter.acquire("user"))
    loop.close()
    tasks._have_bells.discard(loop)
    assert waiting(limiter) == 3
    manual.advance(60)
    assert first.result() is True
    assert waiting(limiter) == 1
    manual.advance(60)
    assert third.result() is True
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_task_that_is_forgotten_does_not_touch_a_loop_of_another_thread() -> None:
    limiter = RateLimiter(1, per=3_600)
    limiter.allow("user")

    async def main() -> None:
        asyncio.get_running_loop().set_debug(True)  # raises where a thread does what it must not
        forgotten = limiter.acquire_async("user")
        forgotten.send(None)
        heir = asyncio.create_task(limiter.acquire_async("user"))
        await settle()
        await asyncio.to_thread(forgotten.close)
        await settle()
        assert waiting(limiter) == 1
        heir.cancel()
        await settle()

    run(main())
    assert lines(limiter) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_closes_between_waking_and_running_jams_nobody(
    limiter: RateLimiter, manual: ManualClock
) -> None:
    loop, task = left_in_line(limiter)
    waiter = Waiting(limiter, lambda: limiter.acquire("user"))
    manual.advance(60)  # the task is woken, but its loop does not run
    loop.close()
    assert waiter.result() is True
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_only_the_first_has_a_timer() -> None:
    limiter = RateLimiter(1, per=3_600)
    limiter.allow("user")
    limiter.allow("other")

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        await limiter.acquire_async("user", timeout=0)  # the bell that tells when it is closed
        before = len(loop._scheduled)
        crew = [asyncio.create_task(limiter.acquire_async("user")) for _ in range(50)]
        crew += [asyncio.create_task(limiter.acquire_async("other")) for _ in range(50)]
        await settle()
        assert len(loop._scheduled) - before == 2
        crew[0].cancel()
        await settle()
        live = [handle for handle in loop._scheduled if not handle.cancelled()]
        assert len(live) - before == 2, "the next one has it now"
        for task in crew:
            task.cancel()
        await settle()
        assert not [handle for handle in loop._scheduled if not handle.cancelled()][before:]

    run(main())
    assert lines(limiter) == 0


def test_timers_go_with_those_who_had_them() -> None:
    limiter = RateLimiter(3, per=0.05)
    limiter.allow("user", 3)

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        crew = [limiter.acquire_async("user", timeout=1_000) for _ in range(7)]
        assert all(await asyncio.gather(*crew))
        live = [handle for handle in loop._scheduled if not handle.cancelled()]
        assert len(live) <= 2, "the bell, and the time-out around this test"

    run(main())


def test_a_manual_clock_needs_no_timer(limiter: RateLimiter) -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        await limiter.acquire_async("user", timeout=0)
        before = len(loop._scheduled)
        crew = [asyncio.create_task(limiter.acquire_async("user", timeout=9)) for _ in range(9)]
        await settle()
        assert len(loop._scheduled) == before
        for task in crew:
            task.cancel()
        await settle()

    run(main())


def test_the_clock_is_moved_in_another_thread(limiter: RateLimiter, manual: ManualClock) -> None:
    async def main() -> None:
        task = asyncio.create_task(limiter.acquire_async("user"))
        await settle()
        threading.Thread(target=manual.advance, args=(60,)).start()
        assert await task is True

    run(main())


def test_waiting_takes_no_processor_time() -> None:
    limiter = RateLimiter(1, per=0.5)

    async def main() -> None:
        crew = [asyncio.create_task(limiter.acquire_async("user")) for _ in range(3)]
        await settle()
        turns = 0
        loop: Any = asyncio.get_running_loop()
        once = loop._run_once

        def counted() -> None:
            nonlocal turns
            turns += 1
            once()

        loop._run_once = counted
        await asyncio.gather(*crew)
        assert turns < 20

    run(main())


def test_the_context_is_the_task_s(limiter: RateLimiter, manual: ManualClock) -> None:
    var = contextvars.ContextVar("var", default=0)

    async def main() -> None:
        async def come(number: int) -> int:
            var.set(number)
            await limiter.acquire_async("user")
            return var.get()

        crew = [asyncio.create_task(come(number)) for number in (1, 2)]
        await settle()
        manual.advance(60)
        await settle()
        manual.advance(60)
        assert await asyncio.gather(*crew) == [1, 2]

    run(main())


def test_it_returns_a_coroutine(limiter: RateLimiter) -> None:
    coroutine = limiter.acquire_async("user")
    assert inspect.iscoroutine(coroutine)
    coroutine.close()
    assert lines(limiter) == 0


def test_ten_thousand_tasks(manual: ManualClock) -> None:
    count = 10_000
    one = RateLimiter(2_000, per=60, clock=manual)
    one.allow("user", 2_000)
    each = RateLimiter(1, per=60, clock=manual)
    each.allow_many(range(count))

    async def main() -> None:
        order: list[int] = []

        async def come(number: int) -> None:
            await one.acquire_async("user")
            order.append(number)

        crew = [asyncio.create_task(come(number)) for number in range(count)]
        keyed = [asyncio.create_task(each.acquire_async(key)) for key in range(count)]
        await settle()
        assert (waiting(one), waiting(each), lines(each)) == (count, count, count)
        for _ in range(5):
            manual.advance(60)
            await settle()
        assert order == list(range(count))
        assert all(await asyncio.gather(*keyed))
        await asyncio.gather(*crew)

    run(main())
    assert lines(one) == lines(each) == 0


def test_real_time_is_kept() -> None:
    limiter = RateLimiter(2, per=0.05)

    async def main() -> None:
        start = time.monotonic()
        at: list[float] = []

        async def come() -> None:
            await limiter.acquire_async("user")
            at.append(time.monotonic() - start)

        await asyncio.gather(*[come() for _ in range(6)])
        for early, late in zip(at, at[2:], strict=False):
            assert late - early >= 0.05 - 0.001
        assert at[-1] < 2

    run(main())


def test_another_thread_s_loop_is_woken_when_a_thread_leaves(manual: ManualClock) -> None:
    limiter = RateLimiter(2, per=60, clock=manual)
    limiter.allow("user", 2)
    first = Waiting(limiter, lambda: limiter.acquire("user", 2, timeout=10))
    second = Waiting(limiter, lambda: asyncio.run(_acquire(limiter)))
    limiter.reset("user")
    limiter.allow("user")
    manual.advance(10)  # the first gives up, and its place is another loop's
    assert first.result() is False
    assert second.result() is True
    until(lambda: lines(limiter) == 0)


async def _acquire(limiter: RateLimiter) -> bool:
    return await limiter.acquire_async("user")
