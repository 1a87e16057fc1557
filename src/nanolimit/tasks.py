"""Waiting in asyncio's tasks.

The first of a line has one timer of its loop; those behind it have none, but for a time-out of
their own. When the first is granted, the next is given its timer or woken in the same step.
"""

from __future__ import annotations

import asyncio
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

from nanolimit.line import Waiter, at_once, checked_timeout, forget_loop, too_long

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from nanolimit.limiter import Key, RateLimiter

_running_loop = asyncio._get_running_loop
_current_task = asyncio.current_task

# As good as never, for a timer.
_FAR_S = 10 * 365 * 86_400.0
# The loops in which a task has waited, until they are closed.
_have_bells: set[asyncio.AbstractEventLoop] = set()


class TaskWaiter(Waiter):
    """A task of asyncio that waits."""

    __slots__ = ("alarm", "future", "loop")

    loop: Any  # the asyncio.AbstractEventLoop that it runs in
    future: asyncio.Future[None]
    alarm: asyncio.TimerHandle | None

    def ring(self) -> None:
        """Wake it because it is time."""
        self.alarm = None  # to cancel one that went off costs as much as a timer
        if not self.future.done():
            self.future.set_result(None)

    def rouse(self) -> None:
        future = self.future
        if not future.done():
            future.set_result(None)

    def wake(self) -> bool:
        self.awake = True
        try:
            self.loop.call_soon_threadsafe(self.rouse)
        except RuntimeError:  # closed
            return False
        return True

    def arm(self, pause_s: float) -> None:
        if self.alarm is not None:  # for its time-out
            self.alarm.cancel()
        if self.over_s is not None:
            pause_s = min(pause_s, self.over_s - monotonic())
        self.alarm = self.loop.call_at(self.loop.time() + pause_s, self.ring)


class _Bell:
    """Rings when its loop is closed, which nothing else tells.

    A closed loop wakes nobody: its own tasks are lost with it, but others must not wait behind
    them. The bell hangs on a timer that never goes off, and goes when the loop drops its timers:
    closing does. It is made in the loop's own thread: on a free-threaded build the last reference
    is soonest seen in the thread that made the object.
    """

    __slots__ = ("loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        _have_bells.add(loop)

    def __call__(self) -> None:
        self.loop.call_later(_FAR_S, self)

    def __del__(self, _at_the_end: Callable[[], bool] = sys.is_finalizing) -> None:
        if _at_the_end():
            return
        _have_bells.discard(self.loop)
        forget_loop(self.loop)


async def waited(
    limiter: RateLimiter,
    key: Key,
    cost: int,
    timeout: float | timedelta | None,
    whole: bool,
    patience_s: float | None = None,
) -> Any:
    """Wait for the request to fit. Was it granted, or the `whole`: and what was decided last?

    One coroutine for both, because each one around it costs at every wake-up. `patience_s` is
    that of `waiting.wait`.
    """
    timeout_ns = None if timeout is None else checked_timeout(timeout)
    # (Python is quicker to call a slot's method by a name of its own)
    peek = limiter.peek
    decision = peek(key, cost)  # raises, if anything is wrong with key or cost
    if decision.allowed:
        decision, granted = at_once(limiter, key, cost, decision)
        if granted:
            return (decision, True) if whole else True
    elif patience_s is not None and too_long(decision, patience_s):
        return (decision, False) if whole else False
    loop = _running_loop()
    # Trio can be a guest in asyncio's loop: then that runs, but no task of it.
    if loop is None or _current_task(loop) is None:
        from nanolimit import anyio

        decision, granted = await anyio.wait(limiter, key, cost, timeout_ns, decision, patience_s)
        return (decision, granted) if whole else granted
    if loop not in _have_bells:
        _Bell(loop)()
    waiter = TaskWaiter()
    waits = waiter.begin(limiter, key, cost, timeout_ns, decision, patience_s)
    waiter.loop = loop
    waiter.alarm = None
    try:
        waits.enter(waiter)
        if waiter.first and timeout_ns is None and patience_s is None and not decision.allowed:
            # So most of them come. This is `look`, less what it has to find out: who is first, and
            # whether time is up. Nobody reads the decision while it sleeps: with ten thousand
            # asleep, what is kept costs more than what is done.
            del waiter.decision
            while True:
                waiter.future = future = loop.create_future()
                waiter.alarm = loop.call_at(loop.time() + decision.retry_after, waiter.ring)
                del decision
                await future
                if waiter.alarm is not None:
                    waiter.alarm.cancel()
                    waiter.alarm = None
                peek = limiter.peek
                decision = peek(key, cost)
                if decision.allowed:
                    check = limiter.check
                    decision = check(key, cost)
                    if decision.allowed:
                        return (decision, True) if whole else True
        while not waiter.look():
            if waiter.pause_s is not None:
                waiter.alarm = loop.call_at(loop.time() + waiter.pause_s, waiter.ring)
            waiter.future = future = loop.create_future()
            await future
            if waiter.alarm is not None:
                waiter.alarm.cancel()
                waiter.alarm = None
        return (waiter.decision, waiter.granted) if whole else waiter.granted
    finally:
        if waiter.alarm is not None:
            waiter.alarm.cancel()
        # Whoever closes a coroutine that was forgotten may do it in another thread.
        try:
            waits.leave(waiter, _running_loop)
        except BaseException:  # a signal handler raised in the middle of it
            waits.leave(waiter, _running_loop, again=True)
            raise
