"""Waiting in threads: `acquire`, and `slot`, which is for threads and tasks alike.

A thread sleeps on a lock of its own until another one opens it or the time has come: no thread
watches over it, and nothing is asked in between.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from nanolimit.errors import RateLimitExceeded
from nanolimit.line import Waiter, at_once, checked_timeout, too_long

if TYPE_CHECKING:
    from datetime import timedelta
    from types import TracebackType

    from nanolimit._core import Decision
    from nanolimit.limiter import Key, RateLimiter


class ThreadWaiter(Waiter):
    """A thread that waits."""

    __slots__ = ("gate",)

    gate: threading.Lock

    def stand(self) -> None:
        """Stand in line until it is over. (Not where it is called: see `Waits._rouse`.)"""
        while not self.look():
            self.sleep()

    def sleep(self) -> None:
        """Sleep until woken, or for `pause_s`. A signal handler runs meanwhile, and may raise."""
        if self.pause_s is None:
            self.gate.acquire()
        else:
            self.gate.acquire(timeout=min(self.pause_s, threading.TIMEOUT_MAX))

    def wake(self) -> bool:
        self.awake = True
        # It may be open still: if it was opened in the instant in which the time was up.
        if self.gate.locked():
            self.gate.release()
        return True


def wait(
    limiter: RateLimiter,
    key: Key,
    cost: int,
    timeout: float | timedelta | None,
    patience_s: float | None = None,
) -> tuple[Decision, bool]:
    """Wait for the request to fit. What was decided last, and whether it was granted.

    A block for more than `patience_s` is not waited out, neither by who comes nor by who stands in
    line when it begins: he learns of it when he comes first.
    """
    timeout_ns = None if timeout is None else checked_timeout(timeout)
    decision = limiter.peek(key, cost)  # raises, if anything is wrong with key or cost
    if decision.allowed:
        decision, granted = at_once(limiter, key, cost, decision)
        if granted:
            return decision, True
    elif patience_s is not None and too_long(decision, patience_s):
        return decision, False
    waiter = ThreadWaiter()
    waits = waiter.begin(limiter, key, cost, timeout_ns, decision, patience_s)
    waiter.gate = threading.Lock()
    waiter.gate.acquire()
    try:
        waits.enter(waiter)
        waiter.stand()
        return waiter.decision, waiter.granted
    finally:
        try:
            waits.leave(waiter)
        except BaseException:  # a signal handler raised in the middle of it
            waits.leave(waiter, again=True)
            raise


def acquire(limiter: RateLimiter, key: Key, cost: int, timeout: float | timedelta | None) -> bool:
    """See `RateLimiter.acquire`."""
    return wait(limiter, key, cost, timeout)[1]


class Slot:
    """A place in the limit: ``with limiter.slot(key):`` or ``async with limiter.slot(key):``.

    Entering waits as `RateLimiter.acquire` does and gives the `Decision` that allowed it; leaving
    does nothing, for what was counted was used. It may be entered again, and by several at a time:
    each entering is a request of its own.
    """

    __slots__ = ("_cost", "_key", "_limiter", "_timeout")

    def __init__(
        self, limiter: RateLimiter, key: Key, cost: int, timeout: float | timedelta | None
    ) -> None:
        checked_timeout(timeout)
        self._limiter = limiter
        self._key = key
        self._cost = cost
        self._timeout = timeout

    def __enter__(self) -> Decision:
        decision, granted = wait(self._limiter, self._key, self._cost, self._timeout)
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

    async def __aenter__(self) -> Decision:
        from nanolimit import tasks

        decision: Decision
        decision, granted = await tasks.waited(
            self._limiter, self._key, self._cost, self._timeout, True
        )
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
        # Without the key: keys are often personal data and reprs end up in logs.
        return f"<slot of {self._limiter!r}>"
