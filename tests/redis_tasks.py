"""Tasks of one process that ask an AsyncRedisRateLimiter all at once, run in a process of its own.

What they were told comes back; what the server kept is looked at by who started them.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, NamedTuple

import redis_journal
from nanolimit import Quota
from nanolimit.redis import AsyncRedisRateLimiter
from redis_load import RECORD


class Sum(NamedTuple):
    """What the tasks of one process were told."""

    allowed: int
    denied: int
    degraded: int
    sent: int
    wrong: list[str]


def hammer(url: str, quota: Quota, seconds: float, tasks: int) -> Sum:
    """Have so many tasks ask for one hot key again and again."""
    return asyncio.run(_hammer(url, quota, seconds, tasks))


async def _hammer(url: str, quota: Quota, seconds: float, tasks: int) -> Sum:
    wrong: list[str] = []
    sent = 0
    async with AsyncRedisRateLimiter(
        [quota, RECORD], url, name="hot", timeout=10, deny_cache=False, on_error="raise"
    ) as limiter:
        over_s = time.monotonic() + seconds
        run, run_many = limiter._wire.run, limiter._wire.run_many

        async def counted(*call: Any) -> Any:
            nonlocal sent
            sent += 1
            return await run(*call)

        async def counted_many(calls: Any, tells: Any = ()) -> Any:
            nonlocal sent
            sent += len(calls)
            return await run_many(calls, tells)

        limiter._wire.run = counted  # type: ignore[method-assign]
        limiter._wire.run_many = counted_many  # type: ignore[method-assign]

        async def ask() -> None:
            while time.monotonic() < over_s:
                try:
                    await limiter.allow("hot")
                except Exception as error:
                    wrong.append(repr(error))
                    return

        await asyncio.gather(*[ask() for _ in range(tasks)])
        stats = limiter.stats()
    return Sum(stats.allowed, stats.denied, stats.degraded, sent, wrong)


def crowd(url: str, seed: int, rounds: int) -> int:
    """Ask at random, by all verbs, many at once, with a journal kept in the server.

    Returns:
        How many units it was told that were counted.
    """
    return asyncio.run(_crowd(url, random.Random(seed), rounds))


async def _crowd(url: str, rng: random.Random, rounds: int) -> int:
    units = 0
    quotas = [Quota(5, per=0.05), Quota(40, per=1.0)]
    async with AsyncRedisRateLimiter(
        quotas, url, timeout=20, on_error="raise", deny_cache=False
    ) as limiter:
        run, run_many = limiter._wire.run, limiter._wire.run_many
        limiter._wire.run = lambda what, keys, args=(): run(  # type: ignore[method-assign]
            redis_journal.journaled(what), keys, args
        )
        limiter._wire.run_many = lambda calls, tells=(): run_many(  # type: ignore[method-assign]
            [(redis_journal.journaled(what), keys, args) for what, keys, args in calls], tells
        )

        async def one() -> int:
            key, cost, verb = rng.randrange(3), rng.choice((1, 2, 5)), rng.random()
            if verb < 0.7:
                return await limiter.allow(key)
            if verb < 0.8:
                return cost * await limiter.allow(key, cost)
            if verb < 0.86:
                return cost * (await limiter.check(key, cost)).allowed
            if verb < 0.9:
                await limiter.peek(key)
                return 0
            if verb < 0.95:
                return sum(await limiter.allow_many([key, 1, key, "other"]))
            if verb < 0.98:
                return await limiter.acquire(key, timeout=0)
            await limiter.reset(key)
            return 0

        for _ in range(rounds):
            units += sum(await asyncio.gather(*[one() for _ in range(rng.randint(1, 24))]))
    return units
