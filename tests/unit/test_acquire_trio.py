"""acquire_async() in trio's tasks, by way of anyio."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Any

import pytest

from nanolimit import LimiterClosedError, ManualClock, RateLimiter, RateLimitExceeded
from tools import missing
from waiters import PATIENCE_S, Waiting, lines, waiting

try:
    import anyio
    import trio
except ImportError:
    trio = None  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _need_trio() -> None:
    if trio is None:
        missing("trio")


@pytest.fixture
def manual() -> ManualClock:
    return ManualClock(1_000)


@pytest.fixture
def limiter(manual: ManualClock) -> RateLimiter:
    limiter = RateLimiter(1, per=60, clock=manual)
    assert limiter.allow("user")
    return limiter


def test_in_order_and_at_the_instant(limiter: RateLimiter, manual: ManualClock) -> None:
    order: list[int] = []

    async def come(number: int) -> None:
        assert await limiter.acquire_async("user")
        order.append(number)

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(come, number)
                    await trio.testing.wait_all_tasks_blocked()
                for number in range(4):
                    manual.advance(59.999_999_999)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    assert order == list(range(number))
                    manual.advance(1e-9)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    assert order == list(range(number + 1))

    trio.run(main)
    assert lines(limiter) == 0


def test_real_time() -> None:
    limiter = RateLimiter(1, per=0.05)

    async def main() -> None:
        start = time.monotonic()
        for _ in range(3):
            assert await limiter.acquire_async("user")
        assert time.monotonic() - start >= 0.1
        assert await limiter.acquire_async("user", timeout=0.01) is False
        async with limiter.slot("user") as decision:
            assert decision.allowed

    trio.run(main)


def test_time_out_and_cancel_scope(limiter: RateLimiter, manual: ManualClock) -> None:
    async def main() -> None:
        with trio.move_on_after(0.01) as scope:
            await limiter.acquire_async("user")
        assert scope.cancelled_caught
        assert lines(limiter) == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(limiter.acquire_async, "user")
            await trio.testing.wait_all_tasks_blocked()
            assert waiting(limiter) == 1
            assert await limiter.acquire_async("user", timeout=0) is False
            with pytest.raises(RateLimitExceeded):
                async with limiter.slot("user", timeout=0):
                    pass
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert lines(limiter) == 0
    manual.advance(60)
    assert limiter.allow("user")


def test_close(limiter: RateLimiter) -> None:
    async def main() -> None:
        async def come() -> None:
            with pytest.raises(LimiterClosedError):
                await limiter.acquire_async("user")

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(come)
            await trio.testing.wait_all_tasks_blocked()
            limiter.close()

    trio.run(main)


def test_threads_tasks_and_trio_s_tasks_in_one_line(
    limiter: RateLimiter, manual: ManualClock
) -> None:
    order: list[int] = []

    async def come(number: int) -> None:
        assert await limiter.acquire_async("user")
        order.append(number)

    def thread(number: int) -> None:
        assert limiter.acquire("user")
        order.append(number)

    crew = []
    for number in range(9):
        work = [
            lambda number=number: trio.run(come, number),  # type: ignore[misc]
            lambda number=number: asyncio.run(come(number)),  # type: ignore[misc]
            lambda number=number: thread(number),  # type: ignore[misc]
        ][number % 3]
        crew.append(Waiting(limiter, work))
    for number, waiter in enumerate(crew):
        assert order == list(range(number))
        manual.advance(60)
        waiter.result()
    assert lines(limiter) == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_under_anyio(backend: str, limiter: RateLimiter, manual: ManualClock) -> None:
    async def main() -> None:
        with anyio.move_on_after(0.01) as scope:
            await limiter.acquire_async("user")
        assert scope.cancelled_caught
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(limiter.acquire_async, "user")
            await anyio.wait_all_tasks_blocked()
            assert waiting(limiter) == 3
            group.cancel_scope.cancel()
        assert lines(limiter) == 0

    anyio.run(main, backend=backend)


def test_as_a_guest_in_asyncio_s_loop() -> None:
    limiter = RateLimiter(1, per=0.05)

    async def guest() -> list[bool]:
        return [await limiter.acquire_async("user") for _ in range(3)]

    async def host() -> list[bool]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        answers: list[bool] = (await done).unwrap()
        return answers

    assert asyncio.run(host()) == [True] * 3


def test_without_anyio_the_error_names_the_extra() -> None:
    code = """
import sys
sys.modules["anyio"] = None
import trio
from nanolimit import RateLimiter
limiter = RateLimiter(1, per=60)
async def main():
    assert await limiter.acquire_async("user")
    try:
        await limiter.acquire_async("user")
    except ImportError as error:
        print(error)
trio.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"],
        timeout=120, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "pip install 'nanolimit[anyio]'" in done.stdout


def test_asyncio_imports_no_anyio() -> None:
    code = """
import asyncio, sys
from nanolimit import RateLimiter
limiter = RateLimiter(1, per=0.01)
async def main():
    for _ in range(3):
        assert await limiter.acquire_async("user")
asyncio.run(main())
print([name for name in ("anyio", "trio", "nanolimit.anyio") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"],
        timeout=120, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"
