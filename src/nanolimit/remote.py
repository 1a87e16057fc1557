"""Remote limiters: what integrations and metrics need of one whose counts are in a store elsewhere.

They take a `RateLimiter` or one of the two kinds here, and import no store for it. What keeps its
counts in one, as `nanolimit.redis` does, is derived from these classes.
"""

from __future__ import annotations

import itertools
import weakref
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from nanolimit.errors import NanolimitError
from nanolimit.limiter import RateLimiter

if TYPE_CHECKING:
    from datetime import timedelta
    from typing import Protocol

    from nanolimit._core import Decision
    from nanolimit.limiter import Key
    from nanolimit.quota import Quota

    class RemoteStats(Protocol):
        """What metrics read of `Remote.stats`: requests, not units."""

        @property
        def allowed(self) -> int: ...
        @property
        def denied(self) -> int: ...
        @property
        def denied_locally(self) -> int: ...
        @property
        def degraded(self) -> int: ...
        @property
        def failures(self) -> int: ...
        @property
        def unknown(self) -> int: ...
        @property
        def leased(self) -> int: ...


__all__ = [
    "AsyncRemoteRateLimiter",
    "Remote",
    "RemoteRateLimiter",
    "StoreUnavailableError",
    "check_cost",
    "check_key",
    "check_kind",
    "enlist",
    "is_limiter",
    "live_remotes",
]


class StoreUnavailableError(NanolimitError):
    """The store could not be asked, or did not answer in time; only with ``on_error="raise"``.

    Args:
        name: What the limiter is called.
        reason: What went wrong.
        outcome_unknown: Whether the request may have been counted none the less.
    """

    reason: str
    """What went wrong, in a few words."""

    outcome_unknown: bool
    """Whether the store may have counted the request: it was sent, and no answer came."""

    def __init__(self, name: str, reason: str, outcome_unknown: bool = False) -> None:
        # All go to `args`, so that the exception can be copied and pickled like any other.
        super().__init__(name, reason, outcome_unknown)
        self.reason = reason
        self.outcome_unknown = outcome_unknown

    def __str__(self) -> str:
        text = f"limiter {self.args[0]!r} can't ask its store: {self.reason}"
        if self.outcome_unknown:
            text += "; whether the request was counted is not known, and it was not sent again"
        return text


class Remote(ABC):
    """What the two kinds have in common: all that is known without the store."""

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """What telemetry calls it."""

    @property
    @abstractmethod
    def quotas(self) -> tuple[Quota, ...]:
        """All quotas that hold for every key."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether it was closed; then `stats` raises."""

    @abstractmethod
    def stats(self) -> RemoteStats:
        """Return what this object has decided so far."""

    @abstractmethod
    def _asked(self, key: Key, cost: object) -> tuple[bytes, int]:
        """Return a key's place and the cost; or raise what a `RateLimiter` raises of them."""


class RemoteRateLimiter(Remote):
    """One whose verbs block the thread while the store is asked: `RedisRateLimiter`."""

    __slots__ = ()

    @abstractmethod
    def check(self, key: Key, cost: int = 1) -> Decision:
        """Decide, and count the request if it fits."""

    @abstractmethod
    def peek(self, key: Key, cost: int = 1) -> Decision:
        """Say what `check` would say, and count nothing."""

    @abstractmethod
    def _waited(
        self, key: Key, cost: int, timeout: float | timedelta | None
    ) -> tuple[Decision, bool]:
        """Wait until the request fits; what was decided last, and whether it was counted."""


class AsyncRemoteRateLimiter(Remote):
    """One whose verbs are awaited: `AsyncRedisRateLimiter`."""

    __slots__ = ()

    @abstractmethod
    async def check(self, key: Key, cost: int = 1) -> Decision:
        """Decide, and count the request if it fits."""

    @abstractmethod
    async def peek(self, key: Key, cost: int = 1) -> Decision:
        """Say what `check` would say, and count nothing."""

    @abstractmethod
    async def _waited(
        self, key: Key, cost: int, timeout: float | timedelta | None
    ) -> tuple[Decision, bool]:
        """Wait until the request fits; what was decided last, and whether it was counted."""


if TYPE_CHECKING:
    # What stands where a limiter is asked for: by threads, by tasks, by either.
    BlockingLimiter = RateLimiter | RemoteRateLimiter
    AwaitedLimiter = RateLimiter | AsyncRemoteRateLimiter
    AnyLimiter = RateLimiter | RemoteRateLimiter | AsyncRemoteRateLimiter


def is_limiter(found: object) -> bool:
    """Say whether it is a limiter of any kind."""
    return isinstance(found, (RateLimiter, Remote))


def check_kind(limiter: object, awaits: bool, where: str) -> None:
    """Refuse a remote limiter that does not go with its caller.

    Args:
        limiter: Of any kind; a `RateLimiter` goes with all.
        awaits: Whether the caller awaits what may take a while, in an event loop that others need
            meanwhile.
        where: Who the caller is, such as ``"a WSGI application"``.

    Raises:
        TypeError: It blocks where others wait for the loop, or is to be awaited where no loop is.
    """
    if isinstance(limiter, AsyncRemoteRateLimiter) and not awaits:
        kind = type(limiter).__name__
        raise TypeError(
            f"limiter {limiter.name!r} is an {kind}, which must be awaited, and {where} does not "
            f"await: give a {kind.removeprefix('Async')}"
        )
    if isinstance(limiter, RemoteRateLimiter) and awaits:
        kind = type(limiter).__name__
        raise TypeError(
            f"limiter {limiter.name!r} is a {kind}, which would block the event loop of {where} "
            f"while its store is asked: give an Async{kind}"
        )


def check_cost(limiter: AnyLimiter, cost: Any) -> None:
    """Refuse a cost that could never pass, and a limiter that is closed. No store is asked.

    Raises:
        TypeError: It is no int.
        ValueError: It is out of range.
        LimiterClosedError: The limiter is closed.
    """
    check_key(limiter, "", cost)


def check_key(limiter: AnyLimiter, key: Any, cost: Any = 1) -> None:
    """Refuse a key that is none, or a cost: see `check_cost`."""
    if isinstance(limiter, Remote):
        limiter._asked(key, cost)
    else:
        limiter.peek(key, cost)


# Those that somebody holds, by the order in which they were made: for whoever reports on them.
_open: weakref.WeakValueDictionary[int, Remote] = weakref.WeakValueDictionary()
_serials = itertools.count()


def enlist(limiter: Remote) -> None:
    """Have `live_remotes` tell of it, for as long as somebody holds it."""
    _open[next(_serials)] = limiter


def live_remotes() -> list[Remote]:
    """Return the remote limiters of this process that are open, in the order of their making.

    Thread-safe.
    """
    while True:
        try:
            found = sorted(_open.items())
        except RuntimeError:  # another thread made or forgot one meanwhile
            continue
        return [limiter for _, limiter in found if not limiter.closed]
