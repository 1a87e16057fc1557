"""Slots: waiting for a place in the limit where a block of code begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanolimit.errors import RateLimitExceeded
from nanolimit.line import checked_timeout

if TYPE_CHECKING:
    from datetime import timedelta
    from types import TracebackType

    from nanolimit._core import Decision
    from nanolimit.limiter import Key
    from nanolimit.remote import AsyncRemoteRateLimiter, RemoteRateLimiter

__all__ = ["AsyncSlot", "Slot"]


class Slot:
    """A place in the limit, for threads: ``with limiter.slot(key):``."""

    __slots__ = ("_cost", "_key", "_limiter", "_timeout")

    def __init__(
        self, limiter: RemoteRateLimiter, key: Key, cost: int, timeout: float | timedelta | None
    ) -> None:
        checked_timeout(timeout)
        limiter._asked(key, cost)
        self._limiter = limiter
        self._key = key
        self._cost = cost
        self._timeout = timeout

    def __enter__(self) -> Decision:
        decision, granted = self._limiter._waited(self._key, self._cost, self._timeout)
        if not granted:
            raise RateLimitExceeded(decision, self._key)
        return decision

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing is to be given back."""

    def __repr__(self) -> str:
        # Without the key: keys are often personal data and reprs end up in logs.
        return f"<slot of {self._limiter!r}>"


class AsyncSlot:
    """A place in the limit, for tasks: ``async with limiter.slot(key):``."""

    __slots__ = ("_cost", "_key", "_limiter", "_timeout")

    def __init__(
        self,
        limiter: AsyncRemoteRateLimiter,
        key: Key,
        cost: int,
        timeout: float | timedelta | None,
    ) -> None:
        checked_timeout(timeout)
        limiter._asked(key, cost)
        self._limiter = limiter
        self._key = key
        self._cost = cost
        self._timeout = timeout

    async def __aenter__(self) -> Decision:
        decision, granted = await self._limiter._waited(self._key, self._cost, self._timeout)
        if not granted:
            raise RateLimitExceeded(decision, self._key)
        return decision

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing is to be given back."""

    def __repr__(self) -> str:
        return f"<slot of {self._limiter!r}>"
