"""Waiting under load: real threads, real loops, storms of cancellation, signals, forks, close.

After every storm the lines are empty, what was granted is what was counted, and one who comes later
is served: no place was lost and none was given twice.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
import time
from types import FrameType

import pytest

from crew import Crew, run
from nanolimit import LimiterClosedError, ManualClock, RateLimiter
from waiters import PATIENCE_S, Waiting, lines, until

try:
    import trio
except ImportError:  # the other storms go on without it
    trio = None  # type: ignore[assignment]

pytestmark = pytest.mark.usefixtures("restless")


def calm(limiter: RateLimiter, granted: int, cost: int = 1) -> None:
    """Nothing is left of a storm."""
    until(lambda: lines(limiter) == 0)
    assert limiter.stats().allowed == granted, "each grant was counted once, and each count granted"
    assert limiter.acquire("user", cost, timeout=60) is True


def test_threads_are_served_in_the_order_in_which_they_came() -> None:
    limiter = RateLimiter(1, per=0.004)
    limiter.acquire("user")
    order: list[int] = []

    def come(number: int) -> None:
        assert limiter.acquire("user")
        order.append(number)

    stop = threading.Event()

    def others() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            limiter.acquire(("other", number % 50), timeout=0.001)

    load = threading.Thread(target=others)
    load.start()
    crew = []
    for number in range(40):
        crew.append(Waiting(limiter, lambda number=number: come(number)))  # type: ignore[misc]
    for waiter in crew:
        waiter.result()
    stop.set()
    load.join()
    # A thread that is granted may be overtaken on its way to its note, but only by the next ones.
    assert sorted(order) == list(range(40))
    assert all(abs(place - number) <= 3 for place, number in enumerate(order)), order


def test_a_line_that_nobody_can_pass_keeps_its_order() -> None:
    """Exactly: with a clock that moves when the one before has made its note."""
    clock = ManualClock()
    limiter = RateLimiter(1, per=1, clock=clock)
    limiter.allow("user")
    order: list[int] = []

    def come(number: int) -> None:
        assert limiter.acquire("user")
        order.append(number)

    crew = [Waiting(limiter, lambda number=number: come(number)) for number in range(100)]  # type: ignore[misc]
    for number in range(100):
        clock.advance(1)
        crew[number].result()
    assert order == list(range(100))


@pytest.mark.parametrize("limit", [1, 3])
def test_a_storm_of_threads(limit: int) -> None:
    limiter = RateLimiter(limit, per=0.003)
    granted = [0] * 6

    def work(number: int) -> None:
        dice = random.Random(number)
        for _ in range(60):
            timeout = dice.choice([None, 0, 0.0005, 0.003, 0.02])
            if limiter.acquire("user", dice.randint(1, limit), timeout):
                granted[number] += 1

    run(6, work)
    calm(limiter, sum(granted), limit)


async def storm(limiter: RateLimiter, seed: int, size: int) -> int:
    """Tasks that come, are cancelled, time out. How many were granted."""
    dice = random.Random(seed)
    granted = 0
    cost_most = limiter.quota.limit

    async def come() -> None:
        nonlocal granted
        timeout = dice.choice([None, 0, 0.001, 0.01, 1])
        if await limiter.acquire_async("user", dice.randint(1, cost_most), timeout):
            granted += 1

    tasks = [asyncio.create_task(come()) for _ in range(size)]
    while not all(task.done() for task in tasks):
        for task in dice.sample(tasks, size // 10):
            task.cancel()
        await asyncio.sleep(dice.choice([0, 0, 0.0005, 0.003]))
    return granted


@pytest.mark.parametrize("limit", [1, 7])
@pytest.mark.parametrize("seed", range(5))
def test_a_storm_of_cancellations(limit: int, seed: int) -> None:
    limiter = RateLimiter(limit, per=0.002)
    granted = asyncio.run(storm(limiter, seed, 200))
    calm(limiter, granted, limit)


@pytest.mark.parametrize("seed", range(3))
def test_a_storm_of_cancellations_with_a_clock_that_is_moved(seed: int) -> None:
    clock = ManualClock()
    limiter = RateLimiter(4, per=1, clock=clock)

    async def main() -> int:
        task = asyncio.create_task(storm(limiter, seed, 100))
        while not task.done():
            clock.advance(0.25)
            await asyncio.sleep(0)
        return await task

    granted = asyncio.run(main())
    clock.advance(1)
    calm(limiter, granted)


@pytest.mark.parametrize("seed", range(3))
def test_a_storm_of_threads_and_tasks_of_many_loops(seed: int) -> None:
    limiter = RateLimiter(5, per=0.002)
    granted = [0] * 6

    def work(number: int) -> None:
        if number % 3 == 0:
            dice = random.Random(seed * 100 + number)
            for _ in range(60):
                timeout = dice.choice([None, 0, 0.001, 0.02])
                granted[number] += limiter.acquire("user", dice.randint(1, 5), timeout)
        elif number % 3 == 1 or trio is None:
            granted[number] = asyncio.run(storm(limiter, seed * 100 + number, 60))
        else:
            granted[number] = trio.run(trio_storm, limiter, seed * 100 + number)

    run(6, work)
    calm(limiter, sum(granted))


async def trio_storm(limiter: RateLimiter, seed: int) -> int:
    dice = random.Random(seed)
    granted = 0

    async def come() -> None:
        nonlocal granted
        with trio.move_on_after(dice.choice([0.001, 0.005, 1])):
            timeout = dice.choice([None, 0, 0.001, 0.02])
            if await limiter.acquire_async("user", dice.randint(1, 5), timeout):
                granted += 1

    async with trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(come)
    return granted


def test_never_more_than_the_limit_in_a_window() -> None:
    """Counted at the instant of the grant, by a clock that tells when it was asked."""
    limiter = RateLimiter(5, per=0.05)
    at: list[float] = []

    def work(number: int) -> None:
        for _ in range(10):
            assert limiter.acquire("user")
            at.append(time.monotonic())

    async def task() -> None:
        await limiter.acquire_async("user")
        at.append(time.monotonic())

    async def main() -> None:
        await asyncio.gather(*[task() for _ in range(20)])

    start = time.monotonic()
    with Crew(3, work):
        asyncio.run(main())
    took_s = time.monotonic() - start
    assert len(at) == 50
    assert took_s >= 0.05 * 9, "ten windows' worth"
    # A note is taken late, never early: the k-th comes after so many whole windows.
    at.sort()
    for number, moment in enumerate(at):
        assert moment - start >= 0.05 * (number // 5) - 0.000_01


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such timers on this platform")
def test_a_storm_of_signals() -> None:
    """A handler raises at any instant, as Ctrl-C does; the place is given back each time."""

    class Interrupted(BaseException):
        pass

    armed = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupted

    limiter = RateLimiter(1, per=0.0005)
    limiter.acquire("user")  # an import that is interrupted can lock up: CPython's own lock
    dice = random.Random(1)
    before = signal.signal(signal.SIGALRM, interrupt)
    stop = threading.Event()

    def others() -> None:
        while not stop.is_set():
            limiter.acquire("user", timeout=0.01)

    def until_interrupted() -> None:  # no loop in a `try` of its own: see test_loops.py
        nonlocal armed
        armed = True
        signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-6, 1e-3))
        while armed:
            limiter.acquire("user", timeout=0.01)

    crew = [threading.Thread(target=others) for _ in range(2)]
    interrupted = 0
    try:
        for thread in crew:
            thread.start()
        for _ in range(600):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-6, 1e-3))
                while armed:
                    limiter.acquire("user", timeout=0.01)
            except Interrupted:
                interrupted += 1
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        stop.set()
        for thread in crew:
            thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in crew), "somebody was never woken"
    assert interrupted > 500
    assert lines(limiter) == 0
    assert limiter.acquire("user", timeout=10)


@pytest.mark.skipif(sys.platform == "win32", reason="a lock is not interrupted there")
def test_ctrl_c_while_it_sleeps() -> None:
    limiter = RateLimiter(1, per=3_600)
    limiter.allow("user")

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            limiter.acquire("user")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert lines(limiter) == 0


def test_close_under_fire() -> None:
    for turn in range(20):
        limiter = RateLimiter(2, per=0.002)
        counts = [0] * 4
        started = [threading.Event() for _ in range(4)]

        def work(
            number: int,
            limiter: RateLimiter = limiter,
            counts: list[int] = counts,
            started: list[threading.Event] = started,
        ) -> None:
            async def main() -> None:
                while True:
                    await asyncio.gather(*[limiter.acquire_async("user") for _ in range(3)])
                    counts[number] += 3
                    started[number].set()

            with pytest.raises(LimiterClosedError):
                if number % 2:
                    asyncio.run(main())
                while True:
                    limiter.acquire("user")
                    counts[number] += 1
                    started[number].set()

        with Crew(4, work):
            for event in started:
                assert event.wait(PATIENCE_S)
            time.sleep(turn * 0.0005)
            limiter.close()
        until(lambda limiter=limiter: lines(limiter) == 0)  # type: ignore[misc]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() on this platform")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_no_waiters() -> None:
    limiter = RateLimiter(1, per=0.2)
    limiter.acquire("user")
    crew = [Waiting(limiter, lambda: limiter.acquire("user")) for _ in range(3)]
    held, done = threading.Event(), threading.Event()
    waits = limiter._waits
    assert waits is not None

    def hold() -> None:  # a lock that the child's only thread does not hold
        with waits.lock:
            held.set()
            done.wait(PATIENCE_S)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(PATIENCE_S)
    try:
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            empty = not waits.lines
            served = limiter.acquire("user", timeout=10)
            os._exit(0 if empty and served and not waits.lines else 1)
        _, status = os.waitpid(pid, 0)
    finally:
        done.set()
        holder.join()
    assert os.WIFEXITED(status), "it hangs, or worse"
    assert os.WEXITSTATUS(status) == 0
    assert [waiter.result() for waiter in crew] == [True] * 3
    until(lambda: lines(limiter) == 0)


def test_advance_in_many_threads() -> None:
    """No step of the clock is missed by one who is just about to sleep."""
    clock = ManualClock()
    limiter = RateLimiter(3, per=1, clock=clock)
    left = threading.Semaphore(0)

    def work(number: int) -> None:
        if number == 0:
            for _ in range(4 * 50):
                while not left.acquire(timeout=0):
                    # One step for all who wait now; then nothing, until somebody was served.
                    clock.advance(1)
                    if left.acquire(timeout=0.2):
                        break
        else:
            for _ in range(50):
                assert limiter.acquire("user")
                left.release()

    run(5, work)
    assert lines(limiter) == 0
