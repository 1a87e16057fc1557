"""Time for the face: seconds as people write them, nanoseconds as the core counts them.

A limiter asks the system's monotonic clock by itself. A clock of one's own is any callable that
returns float seconds; if it also has a method ``now_ns() -> int``, that one is asked, because it
is exact. `ManualClock` has both, and stands still until it is told to move: tests need no sleep.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Protocol

    class Watcher(Protocol):
        """What is told that a clock has moved."""

        def clock_moved(self) -> None:
            """Be told, in the thread that moved it."""


__all__ = ["ManualClock"]

NS_PER_SECOND = 1_000_000_000

# The core counts in signed 64-bit integers and keeps one bit back, so that the sum of a clock
# reading and a window never overflows.
CLOCK_END_NS = 1 << 62

# Integers beyond this many bits are described, not printed: str() of a very long one is slow, and
# above 4,300 digits an error of its own.
_PRINTABLE_BITS = 128


def shown(value: object) -> str:
    """Return `value` as an error message shows it: its repr, kept short."""
    if isinstance(value, int) and value.bit_length() > _PRINTABLE_BITS:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def divided(numerator: int, denominator: int) -> int:
    """Return the quotient of two integers rounded to nearest, halves to even, exactly.

    The denominator is positive.
    """
    quotient, rest = divmod(numerator, denominator)
    twice = 2 * rest
    if twice > denominator or (twice == denominator and quotient & 1):
        quotient += 1
    return quotient


def nanoseconds(parameter: str, seconds: object) -> int:
    """Return a span of time as the nearest whole number of nanoseconds.

    Args:
        parameter: The name of the argument, for the error message.
        seconds: Seconds as int (or anything with ``__index__``), float, or a `timedelta`.

    Raises:
        TypeError: It is none of these, or a bool.
        ValueError: It is NaN or infinite.
    """
    if isinstance(seconds, timedelta):
        whole_seconds = seconds.days * 86_400 + seconds.seconds
        return whole_seconds * NS_PER_SECOND + seconds.microseconds * 1_000
    if isinstance(seconds, float):
        if not math.isfinite(seconds):
            raise ValueError(f"{parameter} must be a finite number of seconds, not {seconds!r}")
        numerator, denominator = float(seconds).as_integer_ratio()
        return divided(numerator * NS_PER_SECOND, denominator)
    index = getattr(type(seconds), "__index__", None)
    if index is None or isinstance(seconds, bool):
        raise TypeError(
            f"{parameter} must be seconds as int or float, or a timedelta, "
            f"not {type(seconds).__name__}"
        )
    return int(index(seconds)) * NS_PER_SECOND


# One lock for all clocks: advance() is rare, and so a fork has one lock to renew, not many. It is
# reentrant, because a signal handler may advance the clock that is just being advanced.
_advancing = threading.RLock()


def _renew_lock() -> None:
    global _advancing
    _advancing = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_lock)


class ManualClock:
    """A clock that moves when it is told to.

    Give it to a limiter, ``RateLimiter(5, per=60, clock=clock)``, and a test passes a minute in no
    time at all. It counts whole nanoseconds, so many small steps add up exactly.

    Args:
        start: The time that it shows at first, in seconds: int, float or `timedelta`, from 0 up to
            2**62 nanoseconds (146 years).

    Raises:
        TypeError: `start` is no span of time.
        ValueError: `start` is NaN, infinite or out of range.

    Thread-safe. One clock may serve many limiters.
    """

    __slots__ = ("__weakref__", "_now_ns", "_watchers")

    _now_ns: int
    # Those who wait for a limiter with this clock.
    _watchers: weakref.WeakSet[Watcher] | None

    def __init__(self, start: float | timedelta = 0.0) -> None:
        now_ns = nanoseconds("start", start)
        if not 0 <= now_ns < CLOCK_END_NS:
            raise ValueError(
                f"start must be from 0 s to less than 2**62 ns (146 years), not {shown(start)}"
            )
        self._now_ns = now_ns
        self._watchers = None

    def __call__(self) -> float:
        """Return the time in seconds, as a float."""
        return self._now_ns / NS_PER_SECOND

    def now_ns(self) -> int:
        """Return the time in nanoseconds, exactly. This is what a limiter asks."""
        return self._now_ns

    def advance(self, seconds: float | timedelta) -> None:
        """Move on by so many seconds, to the nearest nanosecond.

        After ``clock.advance(decision.retry_after)`` the denied request fits, if nobody else came.
        Those who wait for a limiter with this clock (`RateLimiter.acquire`) are woken, and look.

        Args:
            seconds: int, float or `timedelta`. Below zero it steps back, as real clocks sometimes
                do; a limiter then goes on as if no time had passed.

        Raises:
            TypeError: It is no span of time.
            ValueError: It is NaN or infinite, or the clock would leave 0 .. 2**62 ns. The clock
                keeps its time then.
        """
        step_ns = nanoseconds("seconds", seconds)
        with _advancing:
            now_ns = self._now_ns + step_ns
            if not 0 <= now_ns < CLOCK_END_NS:
                raise ValueError(
                    f"seconds would take the clock out of 0 .. 2**62 ns (146 years): "
                    f"it shows {self._now_ns} ns and was to advance by {shown(seconds)}"
                )
            self._now_ns = now_ns
            watchers = tuple(self._watchers) if self._watchers else ()
        for watcher in watchers:
            watcher.clock_moved()

    def _watch(self, watcher: Watcher) -> None:
        """Tell it of each step, as long as it lives."""
        with _advancing:
            if self._watchers is None:
                self._watchers = weakref.WeakSet()
            self._watchers.add(watcher)

    def _unwatch(self, watcher: Watcher) -> None:
        with _advancing:
            if self._watchers is not None:
                self._watchers.discard(watcher)

    def __repr__(self) -> str:
        return f"ManualClock({self._now_ns / NS_PER_SECOND!r})"
