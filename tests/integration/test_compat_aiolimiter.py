"""nanolimit.compat.aiolimiter beside aiolimiter 1.3: each expectation is asked of both.

Most of it runs in a loop whose time is not real: it stands still while anything is to be done, and
then goes to the next timer at once.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import re
import selectors
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any
from unittest import mock

import aiolimiter
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolimit import RateLimiter, SharedTableError
from nanolimit.compat import aiolimiter as compat

PEERS = [pytest.param(aiolimiter, id="original"), pytest.param(compat, id="ours")]
both = pytest.mark.parametrize("peer", PEERS)


class Loop(asyncio.SelectorEventLoop):
    """A loop in which waiting takes no time."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.idle = 0
        loop = self

        class Selector(selectors.DefaultSelector):  # type: ignore[valid-type,misc]
            def select(self, timeout: float | None = None) -> Any:
                assert timeout is not None, "nothing will ever happen"
                loop.idle = 0 if timeout > 0 else loop.idle + 1
                # Who comes back again and again because of a last bit sees the time move on.
                loop.now += timeout if loop.idle < 1_000 else 2**-30
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, Any], now: float = 0.0) -> Any:
    """Run it in a loop of its own, from that time on."""
    loop = Loop(now)
    try:
        return loop.run_until_complete(main)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def now() -> float:
    return asyncio.get_running_loop().time()


async def settle() -> None:
    """Let every task go on until it waits. No time passes."""
    for _ in range(20):
        await asyncio.sleep(0)


async def times(limiter: Any, amounts: list[float]) -> list[tuple[float, float]]:
    """Acquire all at once: (amount, when it passed), in the order in which they passed."""
    passed: list[tuple[float, float]] = []

    async def one(amount: float) -> None:
        await limiter.acquire(amount)
        passed.append((amount, now()))

    await asyncio.gather(*map(one, amounts))
    return passed


# What both do


@both
def test_names(peer: Any) -> None:
    assert peer.__all__ == ["AsyncLimiter"]
    assert peer.__version__.startswith("1.3.")
    assert isinstance(peer.AsyncLimiter(1), AbstractAsyncContextManager)


@both
def test_attributes(peer: Any) -> None:
    limiter = peer.AsyncLimiter(42, 81)
    assert (limiter.max_rate, limiter.time_period) == (42, 81)
    limiter = peer.AsyncLimiter(0.5)
    assert (limiter.max_rate, limiter.time_period) == (0.5, 60)
    limiter = peer.AsyncLimiter(time_period=2.5, max_rate=3)
    assert (limiter.max_rate, limiter.time_period) == (3, 2.5)


@both
def test_has_capacity_takes_nothing(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(3)
        for _ in range(10):
            assert limiter.has_capacity()
            assert limiter.has_capacity(3)
            assert limiter.has_capacity(amount=0)
            assert limiter.has_capacity(-1)
            assert not limiter.has_capacity(3.001)
            assert not limiter.has_capacity(42)
        await limiter.acquire(2)
        assert limiter.has_capacity()
        assert not limiter.has_capacity(2)
        await limiter.acquire()
        assert not limiter.has_capacity()
        assert limiter.has_capacity(0)

    run(main())


@both
@pytest.mark.parametrize("amount", [1.001, 42, -1, -0.001, float("nan"), float("inf")])
def test_an_amount_that_never_fits(peer: Any, amount: float) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(1)
        with pytest.raises(
            ValueError, match=r"^Amount must be a number between 0 and the maximum capacity$"
        ):
            await limiter.acquire(amount)
        assert limiter.has_capacity()

    run(main())


@both
def test_an_amount_that_is_no_number(peer: Any) -> None:
    async def main() -> None:
        with pytest.raises(TypeError):
            await peer.AsyncLimiter(1).acquire("1")

    run(main())


@both
def test_a_burst_and_then_one_by_one(peer: Any) -> None:
    async def main() -> None:
        assert await times(peer.AsyncLimiter(4, 8), [1] * 8) == [
            (1, when) for when in (0, 0, 0, 0, 2, 4, 6, 8)
        ]

    run(main())


@both
def test_it_leaks_while_nobody_looks(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(4, 8)
        await limiter.acquire(4)
        await asyncio.sleep(3)
        assert limiter.has_capacity(1.5)
        assert not limiter.has_capacity(1.501)
        await asyncio.sleep(100)
        assert limiter.has_capacity(4)
        assert not limiter.has_capacity(4.001)

    run(main())


@both
def test_async_with(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(1, 2)
        async with limiter as given:
            assert given is None
            assert now() == 0
        with pytest.raises(KeyError, match="mine"):
            async with limiter:
                assert now() == 2
                raise KeyError("mine")
        async with limiter:
            assert now() == 4
            async with limiter:
                assert now() == 6

    run(main())


@both
def test_nothing_is_acquired_at_once(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(1, 2)
        await limiter.acquire()
        for _ in range(5):
            await limiter.acquire(0)
        assert now() == 0
        await limiter.acquire(amount=1)
        assert now() == 2

    run(main())


@both
def test_fractions(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(0.75, 3)
        with pytest.raises(ValueError, match="Amount"):
            await limiter.acquire()
        assert await times(limiter, [0.25, 0.5, 0.5, 0.125]) == [
            (0.25, 0),
            (0.5, 0),
            (0.125, 0.5),
            (0.5, 2.5),
        ]

    run(main())


@both
def test_the_loops_time_is_asked_at_every_look(peer: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        limiter = peer.AsyncLimiter(2, 10)
        with mock.patch.object(loop, "time", return_value=500) as clock:
            await limiter.acquire(2)
            asked = clock.call_count
            assert asked >= 1
            assert not limiter.has_capacity()
            assert clock.call_count == asked + 1
            clock.return_value = 504
            assert not limiter.has_capacity()
            clock.return_value = 505
            assert limiter.has_capacity()
            assert not limiter.has_capacity(2)
            clock.return_value = 510
            assert limiter.has_capacity(2)

    asyncio.run(main())


@both
def test_a_clock_that_goes_back_fills_the_bucket(peer: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        limiter = peer.AsyncLimiter(4, 4)
        with mock.patch.object(loop, "time", return_value=100) as clock:
            await limiter.acquire(1)
            clock.return_value = 98
            assert limiter.has_capacity(1)
            assert not limiter.has_capacity(2)

    asyncio.run(main())


@both
def test_waiters_move_on_when_a_patched_time_does(peer: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        limiter = peer.AsyncLimiter(5, 10)
        passed: list[int] = []

        async def one(number: int) -> None:
            async with limiter:
                passed.append(number)

        with mock.patch.object(loop, "time", return_value=0) as clock:
            tasks = [asyncio.ensure_future(one(number)) for number in range(10)]
            for clock.return_value, number in ((0, 5), (3, 6), (3.75, 6), (7, 8), (11, 10)):
                await settle()
                assert len(passed) == number
            await asyncio.gather(*tasks)

    asyncio.run(main())


@both
def test_the_cheapest_is_first(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(4, 4)
        await limiter.acquire(4)
        assert await times(limiter, [3, 1, 2, 1, 0.5]) == [
            (0.5, 0.5),
            (1, 1.5),
            (1, 2.5),
            (2, 4.5),
            (3, 7.5),
        ]

    run(main())


@both
def test_who_came_first_among_equals(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(1, 1)
        await limiter.acquire()
        order: list[int] = []

        async def one(number: int) -> None:
            await limiter.acquire()
            order.append(number)

        await asyncio.gather(*(one(number) for number in range(50)))
        assert order == list(range(50))
        assert now() == 50

    run(main())


@both
def test_who_fits_passes_those_who_wait(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(3, 3)
        await limiter.acquire(1)
        task = asyncio.ensure_future(times(limiter, [3]))
        await settle()
        await limiter.acquire(1)
        assert now() == 0
        assert await task == [(3, 2)]

    run(main())


@both
def test_cancelled_while_waiting(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(3, 3)
        await limiter.acquire(1)
        first, second = (asyncio.ensure_future(times(limiter, [3])) for _ in range(2))
        await settle()
        first.cancel()
        assert await second == [(3, 1)]
        assert first.cancelled()

    run(main())


@both
def test_cancelled_in_the_instant_of_waking(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(1, 1)
        await limiter.acquire()
        first, second = (asyncio.ensure_future(times(limiter, [1])) for _ in range(2))
        await settle()
        asyncio.get_running_loop().call_at(1, first.cancel)
        assert await second == [(1, 1)]
        assert first.cancelled()
        assert not limiter.has_capacity(0.001)

    run(main())


@both
def test_times_out(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(1, 4)
        await limiter.acquire()
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(limiter.acquire(), 0.5)
        assert now() == 1.5
        await limiter.acquire()
        assert now() == 4

    run(main())


@both
def test_all_cancelled(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(1, 4)
        await limiter.acquire()
        tasks = [asyncio.ensure_future(limiter.acquire()) for _ in range(5)]
        await settle()
        for task in tasks:
            task.cancel()
        await settle()
        assert all(task.cancelled() for task in tasks)
        await asyncio.sleep(4)
        assert limiter.has_capacity()
        assert "waiters: 0" in repr(limiter)

    run(main())


@both
def test_many(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(16, 1)
        passed = await times(limiter, [1] * 2_000)
        assert [when for _, when in passed] == [max(0, n - 15) / 16 for n in range(2_000)]

    run(main())


@both
def test_the_level_is_kept_where_nobody_waits_for_long(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(10, 60)
        await asyncio.sleep(1_000)
        assert [when for _, when in await times(limiter, [1] * 12)][-2:] == [1_006, 1_012]

    run(main(), 1e6 - 1_000 * 1_000)


@both
def test_no_loop(peer: Any) -> None:
    limiter = peer.AsyncLimiter(1)
    with pytest.raises(RuntimeError, match="no running event loop"):
        limiter.has_capacity()
    run(limiter.acquire())
    with pytest.raises(RuntimeError, match="no running event loop"):
        limiter.has_capacity()


@both
def test_outside_its_loop_it_can_be_asked(peer: Any) -> None:
    limiter = peer.AsyncLimiter(1)
    loop = Loop()
    loop.run_until_complete(limiter.acquire())
    assert not limiter.has_capacity()
    loop.now = 60
    assert limiter.has_capacity()
    loop.close()


@both
def test_used_in_another_loop_it_warns(peer: Any) -> None:
    limiter = peer.AsyncLimiter(1, 1)

    async def crowd() -> None:
        tasks = [asyncio.ensure_future(limiter.acquire()) for _ in range(5)]
        await asyncio.wait(tasks, timeout=0)
        for task in tasks:
            task.cancel()

    asyncio.run(crowd())
    warned = pytest.warns(RuntimeWarning, match="^This AsyncLimiter instance is being re-used acro")
    with warned as seen:
        asyncio.run(crowd())
    assert len(seen) == 1


@both
def test_it_goes_on_in_the_other_loop(peer: Any) -> None:
    limiter = peer.AsyncLimiter(2, 2)

    async def crowd(number: int) -> list[tuple[float, float]]:
        return await times(limiter, [1] * number)

    async def left() -> None:
        await crowd(2)
        asyncio.ensure_future(limiter.acquire())  # noqa: RUF006
        await settle()

    loop = Loop(10)
    loop.run_until_complete(left())
    stranded = asyncio.all_tasks(loop)
    assert len(stranded) == 1
    loop.close()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert run(crowd(3), 11) == [(1, 11), (1, 12), (1, 13)]
    assert [each.category for each in seen] == [RuntimeWarning]
    for task in stranded:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        task.get_coro().close()  # type: ignore[union-attr]
    del stranded, task
    gc.collect()


@both
def test_one_loop_does_not_warn(peer: Any) -> None:
    limiter = peer.AsyncLimiter(2, 2)
    loop = Loop()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            loop.run_until_complete(limiter.acquire())
    loop.close()


@both
def test_repr(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(2, 4.0)
        head = rf"<AsyncLimiter\(max_rate=2, time_period=4.0\) at 0x{id(limiter):x} "
        assert re.fullmatch(rf"{head}\[level: 0\.000000, waiters: 0\]>", repr(limiter))
        await limiter.acquire(1.5)
        assert re.fullmatch(rf"{head}\[level: 1\.500000, waiters: 0\]>", repr(limiter))
        task = asyncio.ensure_future(limiter.acquire(2))
        await settle()
        assert re.fullmatch(
            rf"{head}\[level: 1\.500000, waiters: 1, waking in 3000000 \xb5s\]>", repr(limiter)
        )
        await task

    run(main())


@both
def test_max_rate_can_be_set(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(2, 2)
        await limiter.acquire(2)
        limiter.max_rate = 3
        await limiter.acquire()
        assert now() == 0
        assert limiter.max_rate == 3
        await limiter.acquire(1)
        assert now() == 1, "it leaks as before"

    run(main())


@both
def test_no_capacity_at_all(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(0)
        assert not limiter.has_capacity()
        await limiter.acquire(0)
        with pytest.raises(ValueError, match="Amount"):
            await limiter.acquire()

    run(main())


@both
def test_in_real_time(peer: Any) -> None:
    async def main() -> None:
        limiter = peer.AsyncLimiter(2, 0.1)
        before = now()
        passed = await times(limiter, [1] * 4)
        assert passed[-1][1] - before >= 0.0999

    asyncio.run(main())


# Side by side

eighths = st.integers(0, 64).map(lambda number: number / 8)
Step = tuple[float, float, "float | None"]


def history(
    peer: Any, max_rate: float, time_period: float, steps: list[Step]
) -> list[tuple[object, ...]]:
    """What becomes of tasks that begin, want so much and are perhaps cancelled, and when."""
    log: list[tuple[object, ...]] = []

    async def one(limiter: Any, number: int, delay: float, amount: float) -> None:
        await asyncio.sleep(delay)
        log.append((number, "asks", now(), limiter.has_capacity(amount)))
        try:
            await limiter.acquire(amount)
        except asyncio.CancelledError:
            log.append((number, "leaves", now()))
            raise
        except ValueError:
            log.append((number, "never", now()))
        else:
            log.append((number, "passes", now()))

    async def main() -> None:
        limiter = peer.AsyncLimiter(max_rate, time_period)
        loop = asyncio.get_running_loop()
        tasks = []
        for number, (delay, amount, patience) in enumerate(steps):
            task = asyncio.ensure_future(one(limiter, number, delay, amount))
            if patience is not None:
                loop.call_later(delay + patience, task.cancel)
            tasks.append(task)
        await asyncio.gather(*tasks, return_exceptions=True)
        log.append(("end", now(), limiter.has_capacity(), limiter.has_capacity(max_rate)))

    run(main())
    return log


@given(
    max_rate=st.sampled_from([0.5, 1, 2, 4, 8, 3, 5, 0.75, 0.3]),
    time_period=st.sampled_from([0.25, 1, 2, 4, 60, 3, 7]),
    steps=st.lists(
        st.tuples(eighths, eighths.map(lambda number: number / 2), st.none() | eighths),
        max_size=16,
    ),
)
def test_the_same_history(max_rate: float, time_period: float, steps: list[Step]) -> None:
    assert history(aiolimiter, max_rate, time_period, steps) == history(
        compat, max_rate, time_period, steps
    )


@given(
    max_rate=st.floats(0.001, 1_000),
    time_period=st.floats(0.001, 1_000),
    start=st.floats(-1e9, 1e9),
    steps=st.lists(st.tuples(st.floats(-1, 100), st.floats(0, 1.2)), max_size=30),
)
def test_the_same_capacity(
    max_rate: float, time_period: float, start: float, steps: list[tuple[float, float]]
) -> None:
    """Any floats at all, while nobody waits: bit by bit the same."""

    async def seen(peer: Any) -> list[tuple[bool, str]]:
        limiter = peer.AsyncLimiter(max_rate, time_period)
        loop: Any = asyncio.get_running_loop()
        answers: list[tuple[bool, str]] = []
        for step, share in steps:
            loop.now += step
            fits = limiter.has_capacity(share * max_rate)
            if fits:
                await limiter.acquire(share * max_rate)
            answers.append((fits, repr(limiter).split("[")[1]))
        return answers

    assert run(seen(aiolimiter), start) == run(seen(compat), start)


def test_the_same_with_many_waiters() -> None:
    draw = random.Random(7)
    for _ in range(5):
        steps: list[Step] = [
            (draw.randrange(80) / 8, draw.randrange(1, 17) / 4, draw.choice([None, 2.5, 20.0]))
            for _ in range(300)
        ]
        theirs = history(aiolimiter, 4, 2, steps)
        assert len(theirs) > 500
        assert history(compat, 4, 2, steps) == theirs


# What ours does besides


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), "max_rate must be >= 0, not -1"),
        ((float("nan"),), "max_rate must be >= 0, not nan"),
        ((1, 0), "time_period must be > 0 seconds, and finite, not 0"),
        ((1, -60), "time_period must be > 0 seconds, and finite, not -60"),
        ((1, float("nan")), "time_period must be > 0 seconds, and finite, not nan"),
        ((1, float("inf")), "time_period must be > 0 seconds, and finite, not inf"),
    ],
)
def test_bad_numbers(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        compat.AsyncLimiter(*arguments)


def test_bad_types() -> None:
    for arguments in (("1",), (None,), (1, "60")):
        with pytest.raises(TypeError):
            compat.AsyncLimiter(*arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="on_mismatch needs shared="):
        compat.AsyncLimiter(1, on_mismatch="adopt")


def test_no_limit() -> None:
    async def main() -> None:
        limiter = compat.AsyncLimiter(float("inf"))
        for _ in range(10):
            await limiter.acquire(1e300)
            assert limiter.has_capacity()
        assert now() == 0

    run(main())


@pytest.mark.usefixtures("tables")
def test_limiters_of_one_name_are_one_bucket() -> None:
    async def main() -> None:
        one, two = (compat.AsyncLimiter(4, 600, shared="api") for _ in range(2))
        assert (one.max_rate, one.time_period) == (4, 600)
        await one.acquire(3)
        assert two.has_capacity()
        assert two.has_capacity(0)
        assert two.has_capacity(-1)
        assert not two.has_capacity(2)
        assert not two.has_capacity(5)
        await two.acquire(1.0)
        assert not one.has_capacity()
        assert "level: 4.0" in repr(one)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(one.acquire(), 0.01)

    asyncio.run(main())


@pytest.mark.usefixtures("tables")
def test_a_shared_bucket_is_waited_for() -> None:
    async def main() -> None:
        one, two = (compat.AsyncLimiter(4, 0.2, shared="api") for _ in range(2))
        before = now()
        await one.acquire(4)
        passed, others = await asyncio.gather(times(one, [2, 1, 1]), times(two, [1, 2]))
        last = max(when for _, when in passed + others)
        assert last - before >= 0.2 * 7 / 4 - 0.001
        assert sorted(amount for amount, _ in passed) == [1, 1, 2]
        assert "waiters: 0" in repr(one)

    asyncio.run(main())


@pytest.mark.usefixtures("tables")
def test_the_cheapest_is_first_at_a_shared_bucket() -> None:
    async def main() -> None:
        limiter = compat.AsyncLimiter(4, 1, shared="api")
        await limiter.acquire(4)
        dear, cheap = (asyncio.ensure_future(limiter.acquire(amount)) for amount in (4, 1))
        await cheap
        assert not dear.done()
        dear.cancel()
        await settle()
        assert "waiters: 0" in repr(limiter)

    asyncio.run(main())


@pytest.mark.usefixtures("tables")
def test_loops_in_threads_share_a_bucket() -> None:
    passed: list[float] = []

    async def work() -> None:
        limiter = compat.AsyncLimiter(50, 1_000, shared="api")
        while limiter.has_capacity():
            try:
                await asyncio.wait_for(limiter.acquire(), 0.01)
            except asyncio.TimeoutError:
                return
            passed.append(1)

    threads = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passed) == 50


WORKER = """
import asyncio, json, sys
from nanolimit.compat.aiolimiter import AsyncLimiter

async def main():
    limiter = AsyncLimiter(60, 6_000, shared="api")
    sys.stdin.readline()
    passed = 0
    try:
        while True:
            await asyncio.wait_for(limiter.acquire(), 0.2)
            passed += 1
    except asyncio.TimeoutError:
        print(json.dumps(passed))

asyncio.run(main())
"""


@pytest.mark.usefixtures("tables")
def test_processes_share_a_bucket() -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    passed = [json.loads(worker.communicate(timeout=60)[0]) for worker in workers]
    assert sum(passed) == 60


@pytest.mark.usefixtures("tables")
def test_a_shared_bucket_refuses_what_it_can_not_do() -> None:
    def make(*arguments: float, **keywords: Any) -> Callable[[], object]:
        return lambda: compat.AsyncLimiter(*arguments, shared="api", **keywords)

    for work, message in (
        (make(2.5), "max_rate must be a whole number with shared=, not 2.5"),
        (make(0), "max_rate must be from 1 to 16777216 with shared=, not 0"),
        (make(2**25), "max_rate must be from 1 to 16777216 with shared=, not 33554432"),
        (make(float("inf")), "max_rate must be a whole number with shared=, not inf"),
        (make(1, 1e9), "time_period must be from 1e-6 to 315576000 seconds"),
        (make(1, 1e-7), "time_period must be from 1e-6 to 315576000 seconds"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            work()

    async def main() -> None:
        limiter = compat.AsyncLimiter(2, shared="api")
        with pytest.raises(ValueError, match=r"whole number with shared=, not 0\.5$"):
            await limiter.acquire(0.5)
        with pytest.raises(ValueError, match=r"^amount must be a whole number"):
            limiter.has_capacity(0.5)
        with pytest.raises(ValueError, match="Amount must be"):
            await limiter.acquire(3)
        await limiter.acquire(0)
        assert limiter.has_capacity(2)
        with pytest.raises(AttributeError, match="can't be set"):
            limiter.max_rate = 3

    asyncio.run(main())
    with pytest.raises(SharedTableError):
        compat.AsyncLimiter(3, shared="api")
    adopted = compat.AsyncLimiter(3, 1, shared="api", on_mismatch="adopt")
    assert (adopted.max_rate, adopted.time_period) == (2, 60)


@pytest.mark.usefixtures("tables")
def test_who_waits_for_more_than_there_is_room_for_by_now_is_told() -> None:
    async def main() -> None:
        limiter = compat.AsyncLimiter(6, 1, shared="api")
        await limiter.acquire(6)
        task = asyncio.ensure_future(limiter.acquire(6))
        await settle()
        RateLimiter(4, per=1, algorithm="gcra", max_keys=1, shared="api", on_mismatch="replace")
        assert limiter.max_rate == 4
        with pytest.raises(ValueError, match="could never pass"):
            await task

    asyncio.run(main())
