"""async+nanolimit:// beside async+memory://: what users of `limits.aio` expect, of both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import storage_from_string

from frozen import START_S, TOOLS, Advance
from storages import AIO_STRATEGIES

FIVE = RateLimitItemPerMinute(5)
URIS = {
    "memory": "async+memory://",
    "private": "async+nanolimit://?clock=python",
    "shared": "async+nanolimit://side-by-side?clock=python&max_keys=1000",
}

Work = Callable[[Any], Coroutine[Any, Any, None]]


class Asleep:
    """In the place of memory's task, which drops what is exactly a window old at some time."""

    def done(self) -> bool:
        return False

    def cancel(self) -> None:
        pass


@pytest.fixture(params=TOOLS, ids=lambda tool: tool.__name__)
def advance(request: pytest.FixtureRequest) -> Iterator[Advance]:
    with request.param() as advance:
        yield advance


@pytest.fixture(params=sorted(URIS))
def store(request: pytest.FixtureRequest, advance: Advance, tables: Path) -> Any:
    made: Any = storage_from_string(URIS[request.param])
    if request.param == "memory":
        made.timer = Asleep()
    return made


def limiter_of(name: str, store: Any) -> Any:
    return AIO_STRATEGIES[name](store)


async def hits(limiter: Any, item: Any, number: int, *key: str, cost: int = 1) -> int:
    return sum([await limiter.hit(item, *key, cost=cost) for _ in range(number)])


@pytest.mark.parametrize("name", sorted(AIO_STRATEGIES))
def test_limits_costs_stats_and_clearing(name: str, store: Any) -> None:
    async def work() -> None:
        limiter = limiter_of(name, store)
        assert await store.check() is True
        assert await limiter.test(FIVE, "ann", cost=5)
        assert not await limiter.test(FIVE, "ann", cost=6)
        assert (await limiter.get_window_stats(FIVE, "ann")).remaining == 5
        assert await limiter.hit(FIVE, "ann", cost=3)
        assert (await limiter.get_window_stats(FIVE, "ann")).remaining == 2
        assert await hits(limiter, FIVE, 5, "ann") == 2
        assert await hits(limiter, FIVE, 9, "bob") == 5
        assert not await limiter.hit(RateLimitItemPerHour(5), "ann", cost=6)
        await limiter.clear(FIVE, "ann")
        assert await hits(limiter, FIVE, 9, "ann") == 5
        assert not await limiter.hit(FIVE, "bob")

    asyncio.run(work())


@pytest.mark.parametrize("name", sorted(AIO_STRATEGIES))
def test_reset_says_how_many(name: str, store: Any) -> None:
    async def work() -> None:
        limiter = limiter_of(name, store)
        for user in range(20):
            assert await limiter.hit(FIVE, f"user-{user}")
        assert await store.reset() == 20
        assert await store.reset() == 0
        assert await hits(limiter, FIVE, 9, "user-7") == 5

    asyncio.run(work())


def test_the_moving_windows_boundary_and_stats(store: Any, advance: Advance) -> None:
    async def work() -> None:
        limiter = limiter_of("moving-window", store)
        assert await hits(limiter, FIVE, 9, "ann") == 5
        stats = await limiter.get_window_stats(FIVE, "ann")
        assert stats == pytest.approx((START_S + 60, 0), abs=1e-6)
        advance(60)
        assert not await limiter.hit(FIVE, "ann")
        advance(0.001)
        assert await hits(limiter, FIVE, 9, "ann") == 5
        assert await store.get_moving_window("unknown", 5, 60) == pytest.approx((time.time(), 0))

    asyncio.run(work())


def test_the_fixed_windows_boundary_and_totals(store: Any, advance: Advance) -> None:
    async def work() -> None:
        assert await store.get_expiry("key") == pytest.approx(START_S, abs=1e-6)
        assert [await store.incr("key", 60) for _ in range(3)] == [1, 2, 3]
        assert await store.incr("key", 60, amount=10) == 13
        assert await store.get_expiry("key") == pytest.approx(START_S + 60, abs=1e-6)
        advance(59.999)
        assert await store.get("key") == 13
        advance(0.001)
        assert await store.get("key") == 0
        assert await store.incr("key", 60) == 1
        await store.clear("key")
        assert await store.get("key") == 0

    asyncio.run(work())


def test_the_sliding_windows_of_the_epoch(store: Any, advance: Advance) -> None:
    async def work() -> None:
        limiter = limiter_of("sliding-window-counter", store)
        assert await hits(limiter, FIVE, 9, "ann") == 5
        advance(3.210987 + 12.001)
        found = await store.get_sliding_window(FIVE.key_for("ann"), 60)
        assert found == pytest.approx((5, 47.999, 0, 107.999), abs=1e-5)
        assert await hits(limiter, FIVE, 9, "ann") == 2
        await limiter.clear(FIVE, "ann")
        assert (await store.get_sliding_window(FIVE.key_for("ann"), 60))[:3] == (0, 0.0, 0)

    asyncio.run(work())


@pytest.mark.parametrize("uri", ["async+nanolimit://", "async+nanolimit://web"])
@pytest.mark.parametrize("name", sorted(AIO_STRATEGIES))
def test_tasks_admit_exactly_the_limit(name: str, uri: str, tables: Path) -> None:
    async def work() -> None:
        limiter = limiter_of(name, storage_from_string(uri))
        item = RateLimitItemPerHour(50, 24 * 300)
        passed = await asyncio.gather(*(limiter.hit(item, "ann") for _ in range(500)))
        assert sum(passed) == 50

    asyncio.run(work())
