"""Counters: what one limiter of this process has decided so far."""

from __future__ import annotations

import threading
from typing import NamedTuple

from nanolimit.redis.fork import renew_after_fork

__all__ = ["Counters", "RedisStats"]


class RedisStats(NamedTuple):
    """What this object has decided so far: requests, not units.

    Other processes count for themselves; what a store holds of keys and memory, the store knows.
    """

    allowed: int
    """Requests allowed by allow, check, allow_many and acquire."""

    denied: int
    """Requests denied."""

    denied_locally: int
    """Among the denied: those that repeat a denial of the store, without asking it."""

    degraded: int
    """Among the allowed and the denied: those that `on_error` decided, without the store."""

    failures: int
    """Calls to the store that failed; one for a batch."""

    unknown: int
    """Among the failures: those after which nobody knows whether the request was counted."""

    leased: int
    """Among the allowed: those that were served from a lease, without asking the store."""


class Counters:
    """The numbers of `RedisStats`, counted by any thread."""

    __slots__ = (
        "__weakref__", "_lock", "allowed", "degraded", "denied", "denied_locally", "failures",
        "leased", "unknown",
    )  # fmt: skip

    allowed: int
    denied: int
    denied_locally: int
    degraded: int
    failures: int
    unknown: int
    leased: int

    def __init__(self) -> None:
        # Reentrant, like every lock of the face: a signal handler may ask the limiter as well.
        self._lock = threading.RLock()
        self.allowed = self.denied = self.denied_locally = self.degraded = 0
        self.failures = self.unknown = self.leased = 0
        renew_after_fork(self)

    def count(self, allowed: int, denied: int, *, degraded: bool = False) -> None:
        """Count so many decisions."""
        with self._lock:
            self.allowed += allowed
            self.denied += denied
            if degraded:
                self.degraded += allowed + denied

    def count_allowed(self) -> None:
        """Count a request that the store allowed."""
        with self._lock:
            self.allowed += 1

    def count_repeated(self, denied: int = 1) -> None:
        """Count denials that came out of the cache."""
        with self._lock:
            self.denied += denied
            self.denied_locally += denied

    def count_leased(self) -> None:
        """Count a request that was served from a lease."""
        with self._lock:
            self.allowed += 1
            self.leased += 1

    def count_failure(self, *, unknown: bool) -> None:
        """Count a call that the store did not answer."""
        with self._lock:
            self.failures += 1
            self.unknown += unknown

    def read(self) -> RedisStats:
        """Return all of them, as they were at one instant."""
        with self._lock:
            return RedisStats(
                self.allowed,
                self.denied,
                self.denied_locally,
                self.degraded,
                self.failures,
                self.unknown,
                self.leased,
            )

    def after_fork(self) -> None:
        """In the child: a thread of the parent may have held the lock."""
        self._lock = threading.RLock()
