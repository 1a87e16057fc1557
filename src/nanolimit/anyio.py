"""Waiting in tasks that are not asyncio's: trio's, by way of anyio.

It is imported when such a task has to wait, and brings anyio, the extra ``nanolimit[anyio]``.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from nanolimit.line import Waiter

try:
    from anyio import Event, move_on_after
    from anyio.lowlevel import current_token
except ImportError as _error:
    raise ImportError(
        "waiting outside of asyncio needs anyio >= 4.11: pip install 'nanolimit[anyio]'"
    ) from _error

if TYPE_CHECKING:
    from nanolimit._core import Decision
    from nanolimit.limiter import Key, RateLimiter


class AnyWaiter(Waiter):
    """A task that waits. Its library ends with all its tasks, so that none is ever left in line."""

    __slots__ = ("event", "loop")

    # trio's token of this run: what other threads may call.
    loop: Any
    event: Event

    def rouse(self) -> None:
        self.event.set()

    async def stand(self) -> None:
        """Stand in line until it is over. (Not where it is called: see `Waits._rouse`.)"""
        while not self.look():
            self.event = Event()
            with move_on_after(inf if self.pause_s is None else self.pause_s):
                await self.event.wait()

    def wake(self) -> bool:
        self.awake = True
        try:
            self.loop.run_sync_soon(self.rouse)
        except RuntimeError:  # the run is over
            return False
        return True


async def wait(
    limiter: RateLimiter,
    key: Key,
    cost: int,
    timeout_ns: int | None,
    decision: Decision,
    patience_s: float | None,
) -> tuple[Decision, bool]:
    """Wait for the request to fit. What was decided last, and whether it was granted."""
    waiter = AnyWaiter()
    waits = waiter.begin(limiter, key, cost, timeout_ns, decision, patience_s)
    waiter.loop = current_token().native_token
    waiter.event = Event()
    try:
        waits.enter(waiter)
        await waiter.stand()
        return waiter.decision, waiter.granted
    finally:
        # To trio's tasks it says nothing of the loop it runs in: the next one is woken, and looks.
        try:
            waits.leave(waiter)
        except BaseException:  # a signal handler raised in the middle of it
            waits.leave(waiter, again=True)
            raise
