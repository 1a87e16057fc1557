"""Limits that hold for many machines: Redis or Valkey keeps the logs, scripts there decide.

    >>> from nanolimit.redis import RedisRateLimiter
    >>> limiter = RedisRateLimiter("100/minute", "redis://localhost:6379/0")
    >>> limiter.allow("user:42")
    True

A client library, redis-py or valkey-py, is imported when a URL is given, and not before: clients
bring their own. It is the extra ``nanolimit[redis]``, or ``nanolimit[valkey]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanolimit.redis.counters import RedisStats
from nanolimit.redis.errors import StoreUnavailableError
from nanolimit.redis.lease import Lease
from nanolimit.redis.limiter import RedisRateLimiter

if TYPE_CHECKING:
    from nanolimit.redis.aio import AsyncRedisRateLimiter

__all__ = [
    "AsyncRedisRateLimiter",
    "Lease",
    "RedisRateLimiter",
    "RedisStats",
    "StoreUnavailableError",
]


def __getattr__(name: str) -> Any:
    # It brings asyncio, which threads have no use for.
    if name == "AsyncRedisRateLimiter":
        from nanolimit.redis.aio import AsyncRedisRateLimiter

        return AsyncRedisRateLimiter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
