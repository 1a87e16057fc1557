"""The leaky bucket of aiolimiter 1.3: change the import, keep the code.

```python
from nanolimit.compat.aiolimiter import AsyncLimiter

limiter = AsyncLimiter(10, 60)

async def call_api():
    async with limiter:
        ...
```

Without further arguments it decides as the original does: amounts and rates are floats, the time is
`loop.time()`, asked at each look, and the level leaks by the same formula, to the last bit. Whoever
asks while there is room gets it, also past those who wait. Of those who wait the cheapest is woken
first, and among equals who came first (who is woken and finds the room taken goes behind his
equals, as there). Who is cancelled leaves nothing behind. nanolimit's engine has no part in it, for
that counts whole units and asks no event loop for the time.

What the import gains are two arguments, by keyword only:

- ``shared="name"``: one bucket for all processes of this machine that say this name. The engine's
  ``"gcra"`` counts then, which is the same bucket in whole numbers: `max_rate` and amounts are
  whole, the time is the engine's own clock, and each process wakes its own cheapest first: there is
  no line across processes. Event loops in several threads share a bucket in the same way, each with
  a limiter of its own by that name.
- `on_mismatch`: what happens if the table was made for another rate, as after a deployment; see
  `nanolimit.RateLimiter`.

What differs besides:

- A `time_period` that is not above 0, or not finite, and a `max_rate` that is below 0 or NaN are a
  ValueError where the limiter is made (the original's next release has the first of these as well).
  In 1.3 they are a ZeroDivisionError, or a limiter that never lets anybody pass, or everybody.
- An infinite `max_rate` is no limit. In 1.3 it is one that hangs as soon as two acquire within
  one tick of the clock.
- An acquire that need not wait is cheaper; `docs/replacements.md` has the figures.
- There is no module ``leakybucket`` below this one.

For one event loop, as the original: a limiter that is used in another one after the first was
closed warns and goes on there; `asyncio.run` in a test closes its loop.
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from contextlib import AbstractAsyncContextManager
from functools import partial
from heapq import heappop, heappush
from math import inf, isfinite
from typing import TYPE_CHECKING

from nanolimit.algorithm import most
from nanolimit.clock import nanoseconds, shown
from nanolimit.limiter import RateLimiter
from nanolimit.quota import MAX_WINDOW_NS, MIN_WINDOW_NS, Quota

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Literal

__all__ = ["AsyncLimiter"]

__version__ = "1.3.0"  # of aiolimiter, whose behaviour this is

# The key of the one bucket that a limiter has.
KEY = "aiolimiter"

_REUSED = (
    "This AsyncLimiter instance is being re-used across loops. "
    "The loop that it was made for is closed; make a limiter for each loop."
)


class AsyncLimiter(AbstractAsyncContextManager[None]):
    """A bucket that leaks: room for `max_rate`, all of which leaks out in `time_period`.

    ``async with limiter:`` acquires 1.

    Args:
        max_rate: What the bucket holds, and what passes at once when it is empty.
        time_period: Seconds in which a full bucket runs empty.
        shared: The name of one bucket for all processes of this machine (Linux), or the path of its
            table: as for `nanolimit.RateLimiter`.
        on_mismatch: ``"error"``, ``"adopt"`` or ``"replace"``, with `shared` only: as for
            `nanolimit.RateLimiter`.

    Raises:
        TypeError: One of them is of the wrong type, or `on_mismatch` is given without `shared`.
        ValueError: `max_rate` is below 0 or NaN, `time_period` is not above 0 or infinite; or one
            of them is not for a shared bucket.
        SharedTableError: As `nanolimit.RateLimiter`.

    Attributes:
        max_rate: As given.
        time_period: As given.

    For one thread and its event loop.
    """

    __slots__ = ("_bucket", "_event_loop", "_next_count", "_waiters", "_waker", "time_period")

    _bucket: _Level | _Table
    _event_loop: asyncio.AbstractEventLoop | None
    # A heap of (amount, number, future): the cheapest first, and among equals who came first.
    _waiters: list[tuple[float, int, asyncio.Future[None]]]
    _next_count: int
    # What wakes the next one when there will be room.
    _waker: asyncio.TimerHandle | None
    time_period: float

    def __init__(
        self,
        max_rate: float,
        time_period: float = 60,
        *,
        shared: str | os.PathLike[str] | Literal[True] | None = None,
        on_mismatch: Literal["error", "adopt", "replace"] = "error",
    ) -> None:
        if not max_rate >= 0:
            raise ValueError(f"max_rate must be >= 0, not {shown(max_rate)}")
        if not (time_period > 0 and isfinite(time_period)):
            raise ValueError(
                f"time_period must be > 0 seconds, and finite, not {shown(time_period)}"
            )
        self.time_period = time_period
        if shared is not None:
            self._bucket = table = _Table(max_rate, time_period, shared, on_mismatch)
            if on_mismatch == "adopt":
                self.time_period = table.period
        elif on_mismatch != "error":
            raise TypeError("on_mismatch needs shared=: a bucket of one loop has no such thing")
        else:
            self._bucket = _Level(max_rate, time_period)
        self._event_loop = None
        self._waiters = []
        self._next_count = 0
        self._waker = None

    @property
    def max_rate(self) -> float:
        """What the bucket holds.

        Set another one, and it holds that; it leaks as before. That of a shared bucket is fixed.
        """
        return self._bucket.most

    @max_rate.setter
    def max_rate(self, max_rate: float) -> None:
        bucket = self._bucket
        if isinstance(bucket, _Table):
            raise AttributeError(
                "max_rate of a shared bucket can't be set: make it anew with on_mismatch='replace'"
            )
        bucket.most = max_rate

    def has_capacity(self, amount: float = 1) -> bool:
        """Say whether there is room for so much now. Takes nothing.

        Raises:
            RuntimeError: Nobody has used the limiter yet, and no event loop runs.
        """
        return self._bucket.fits(self._loop(), amount)

    async def acquire(self, amount: float = 1) -> None:
        """Wait until there is room for so much, and take it.

        Args:
            amount: From 0 to `max_rate`.

        Raises:
            ValueError: It is anything else, and so would never fit.
        """
        bucket = self._bucket
        if not 0 <= amount <= bucket.most:
            raise ValueError("Amount must be a number between 0 and the maximum capacity")
        loop = self._loop()
        while not bucket.take(loop, amount):
            waiter = loop.create_future()
            # Whoever is woken takes what he wants in the loop's next step. So the next one is
            # looked at in the step after that.
            waiter.add_done_callback(partial(loop.call_soon, self._wake_next))
            heappush(self._waiters, (amount, self._next_count, waiter))
            self._next_count += 1
            self._wake_next()
            await waiter
        if self._waiters:
            self._wake_next()  # later, as there is less room

    def _loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that the limiter belongs to: the first that it was used in."""
        loop = self._event_loop
        if loop is None:
            loop = self._event_loop = asyncio.get_running_loop()
        elif loop.is_closed():
            loop = self._event_loop = asyncio.get_running_loop()
            # Those who waited in the closed one will never run.
            self._waiters = [each for each in self._waiters if each[2].get_loop() is loop]
            _warn()
        return loop

    def _wake_next(self, *_: object) -> None:
        """Wake who is first, or see that it is done when there is room."""
        waiters = self._waiters
        if self._waker is not None:
            self._waker.cancel()
            self._waker = None
        while waiters and waiters[0][2].done():
            heappop(waiters)  # was cancelled
        if not waiters:
            return
        amount, _number, waiter = waiters[0]
        loop = self._loop()
        wait_s = self._bucket.lacks(loop, amount)
        if wait_s <= 0:
            heappop(waiters)
            waiter.set_result(None)
        elif wait_s < inf:
            self._waker = loop.call_at(self._bucket.seen_s + wait_s, self._wake_next)

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """What was taken was used."""

    def __repr__(self) -> str:
        state = f"level: {self._bucket.level():f}, waiters: {len(self._waiters)}"
        waker, loop = self._waker, self._event_loop
        if waker is not None and loop is not None and not waker.cancelled():
            microseconds = int((waker.when() - loop.time()) * 1_000_000)
            if microseconds > 0:
                state += f", waking in {microseconds} \N{MICRO SIGN}s"
        given = f"max_rate={self.max_rate!r}, time_period={self.time_period!r}"
        return f"<AsyncLimiter({given}) at {id(self):#x} [{state}]>"


class _Level:
    """A bucket of this process, in floats, with aiolimiter's formula."""

    __slots__ = ("_level", "_per_second", "most", "seen_s")

    def __init__(self, max_rate: float, time_period: float) -> None:
        self.most = max_rate
        self._per_second = max_rate / time_period
        self._level = 0.0
        self.seen_s = 0.0  # when it was looked at last, in the loop's time

    def _leak(self, now_s: float) -> float:
        level = self._level
        if level:
            level -= (now_s - self.seen_s) * self._per_second
            # So that NaN, of an infinite rate, is an empty bucket.
            self._level = level = level if level > 0 else 0.0
        self.seen_s = now_s
        return level

    def take(self, loop: asyncio.AbstractEventLoop, amount: float) -> bool:
        level = self._leak(loop.time()) + amount
        if level > self.most:
            return False
        self._level = level
        return True

    def fits(self, loop: asyncio.AbstractEventLoop, amount: float) -> bool:
        return self._leak(loop.time()) + amount <= self.most

    def lacks(self, loop: asyncio.AbstractEventLoop, amount: float) -> float:
        """Return the seconds until there is room: 0 or less if there is, infinity if never."""
        # In this order, so that it is the original's to the last bit. That bit may differ from what
        # `fits` says; then somebody looks once too often.
        level = self._leak(loop.time())
        if not self._per_second:
            return inf
        return 1 / self._per_second * (amount - self.most + level)

    def level(self) -> float:
        return self._level


class _Table:
    """A bucket of the engine, which processes share."""

    __slots__ = ("_limiter", "seen_s")

    def __init__(
        self,
        max_rate: float,
        time_period: float,
        shared: str | os.PathLike[str] | Literal[True],
        on_mismatch: Literal["error", "adopt", "replace"],
    ) -> None:
        limit = _whole("max_rate", max_rate)
        largest = most("gcra")
        if not 1 <= limit <= largest:
            raise ValueError(
                f"max_rate must be from 1 to {largest} with shared=, not {shown(max_rate)}"
            )
        if not MIN_WINDOW_NS <= nanoseconds("time_period", time_period) <= MAX_WINDOW_NS:
            raise ValueError(
                f"time_period must be from 1e-6 to 315576000 seconds (ten years) with shared=, "
                f"not {shown(time_period)}"
            )
        self._limiter = RateLimiter(
            Quota(limit, time_period),
            algorithm="gcra",
            max_keys=1,
            on_full="deny",
            shared=shared,
            on_mismatch=on_mismatch,
        )
        self.seen_s = 0.0

    @property
    def most(self) -> int:
        return self._limiter.quota.limit  # other processes may change it

    @property
    def period(self) -> float:
        return self._limiter.quota.per

    def take(self, loop: asyncio.AbstractEventLoop, amount: float) -> bool:
        return self._limiter.allow(KEY, _whole("amount", amount))

    def fits(self, loop: asyncio.AbstractEventLoop, amount: float) -> bool:
        units = _whole("amount", amount)
        if units > self.most:
            return False
        return self._limiter.peek(KEY, max(units, 0)).allowed

    def lacks(self, loop: asyncio.AbstractEventLoop, amount: float) -> float:
        self.seen_s = loop.time()
        units = int(amount)
        if units > self.most:
            return 0.0  # another process has lowered it: `take` will say so
        return self._limiter.peek(KEY, units).retry_after

    def level(self) -> float:
        decision = self._limiter.peek(KEY, 0)
        return decision.limit - decision.remaining


def _whole(parameter: str, value: float) -> int:
    """Return a number as the int that it is."""
    number = int(value) if isfinite(value) else 0
    if number != value:
        raise ValueError(f"{parameter} must be a whole number with shared=, not {shown(value)}")
    return number


def _warn() -> None:
    """Warn of a closed loop: where the limiter was used, as far as Python can tell."""
    if sys.version_info >= (3, 12):
        here = os.path.dirname(__file__)  # noqa: PTH120
        warnings.warn(_REUSED, RuntimeWarning, skip_file_prefixes=(here,))
    else:
        warnings.warn(_REUSED, RuntimeWarning, stacklevel=4)
