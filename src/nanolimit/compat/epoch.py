"""Seconds since 1970: the clock that tests freeze, and the grid that the engine's times lie on."""

from __future__ import annotations

import time

from nanolimit.clock import NS_PER_SECOND

# The engine counts in ticks of 1, 2 or 5 times a power of ten nanoseconds, the smallest of which
# no more than this many make a window (docs/algorithms.md).
_MOST_TICKS = 1 << 30


class EpochClock:
    """A limiter's clock that asks ``time.time()`` at every call, by that name.

    So whoever replaces ``time.time``, as freezegun, time-machine and hiro do, governs it. It counts
    the nearest whole microseconds, which is what those tools and `datetime` count in; or, for
    windows above 17 minutes, the engine's ticks. So the time that passes between two calls is
    exact whenever it is a whole number of those, at whichever instant it began.
    """

    __slots__ = ("_half", "_step")

    def __init__(self, window_ns: int) -> None:
        # In microseconds, of which ticks are either a multiple or a fraction.
        self._step = max(1, tick_ns(window_ns) // 1_000)
        self._half = self._step // 2

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now_ns() / NS_PER_SECOND

    def now_ns(self) -> int:
        """Return the time in nanoseconds. This is what a limiter asks."""
        step = self._step
        return (int(time.time() * 1_000_000 + 0.5) + self._half) // step * step * 1_000


def tick_ns(window_ns: int) -> int:
    """Return the engine's unit of time for a window of that length."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            tick = digit * power
            if -(-window_ns // tick) <= _MOST_TICKS:
                return tick
        power *= 10


def closed_window_s(expiry_s: int) -> float:
    """Return the window of a limiter in which a request exactly `expiry_s` old still counts.

    The engine's own windows are half open: there it is out. In a longer one it is in, until the
    next tick, the next instant that there is. Half a tick will do, as the engine rounds windows up,
    and is on the safe side of a float's rounding.
    """
    window_ns = expiry_s * NS_PER_SECOND
    return (window_ns + (tick_ns(window_ns) + 1) // 2) / NS_PER_SECOND


def counted_s(expiry_s: int) -> float:
    """Return for how many seconds a request counts in such a window: what that is rounded up to."""
    window_ns = expiry_s * NS_PER_SECOND
    return (window_ns + tick_ns(window_ns)) / NS_PER_SECOND


def moment(seconds: float) -> float:
    """Return a sum of times as whole microseconds, as the nearest float.

    So a sum is what it would be if the times were added exactly.
    """
    return int(seconds * 1_000_000 + 0.5) / 1_000_000
