"""The limiter once more, in plain Python: what the engine is compared with.

It keeps a list of whole-number stamps per key and does nothing clever. Two ways of measuring time:

- `exact`: stamps in nanoseconds, a clock that went back is taken for the newest stamp. That is
  what the contract promises for windows and times on the grid.
- `tick`: stamps in ticks, as the engine keeps them. A stamp rounds up to a tick, now rounds down,
  and a now behind the newest stamp means one tick before it: never one too many, and less than a
  tick late.

Both are the same code with another tick length and another step back.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

NS_PER_S = 1_000_000_000

#: A window is at most this many ticks long.
MOST_TICKS = 2**30

OnFull = Literal["allow", "deny", "evict"]


def tick_ns(window_ns: int) -> int:
    """The smallest 1-2-5 x 10^k nanoseconds of which at most 2^30 make a window of `window_ns`."""
    decade = 1
    while True:
        for digit in (1, 2, 5):
            tick = digit * decade
            if -(-window_ns // tick) <= MOST_TICKS:
                return tick
        decade *= 10


def seconds(ns: int) -> float:
    """The smallest float of seconds that is not below `ns` nanoseconds."""
    nearest = ns / NS_PER_S
    if Fraction(nearest) * NS_PER_S < ns:
        return math.nextafter(nearest, math.inf)
    return nearest


@dataclass(frozen=True)
class Verdict:
    """What a Decision should say; times in nanoseconds from the clock's own reading."""

    allowed: bool
    remaining: int
    retry_after_ns: int
    reset_after_ns: int
    refill_after_ns: int


@dataclass
class Tally:
    """What stats() should say."""

    allowed: int = 0
    denied: int = 0
    overflowed: int = 0


class Reference:
    """One quota, any number of keys. Methods take the time, in nanoseconds, as an argument."""

    def __init__(
        self,
        limit: int,
        window_ns: int,
        *,
        mode: Literal["exact", "tick"] = "tick",
        max_keys: int | None = None,
        on_full: OnFull = "allow",
    ) -> None:
        self.limit = limit
        self.window_ns = window_ns
        self.tick = 1 if mode == "exact" else tick_ns(window_ns)
        self.step_back = 0 if mode == "exact" else 1
        self.window = -(-window_ns // self.tick)
        self.max_keys = max_keys
        self.on_full: OnFull = on_full
        self.logs: dict[Hashable, list[int]] = {}
        self.tally = Tally()

    # -- time ------------------------------------------------------------------------------------

    def _now(self, log: list[int], now_ns: int) -> int:
        """Now in ticks, rounded down; never before the newest stamp (less the step back)."""
        now = now_ns // self.tick
        return max(now, log[-1] - self.step_back) if log and now < log[-1] else now

    def _stamp(self, log: list[int], now_ns: int) -> int:
        """A new stamp in ticks, rounded up; never before the newest one."""
        stamp = -(-now_ns // self.tick)
        return max(stamp, log[-1]) if log else stamp

    def _until(self, stamp: int, now_ns: int) -> int:
        """Nanoseconds from the clock's reading until `stamp` is out of the window."""
        return (stamp + self.window) * self.tick - now_ns

    def live(self, key: Hashable, now_ns: int) -> list[int]:
        """The stamps of `key` that count now, oldest first."""
        log = self.logs.get(key, [])
        now = self._now(log, now_ns)
        return [stamp for stamp in log if now - stamp < self.window]

    # -- questions -------------------------------------------------------------------------------

    def peek(self, key: Hashable, now_ns: int, cost: int = 1) -> Verdict:
        """Would `cost` fit? Counts nothing."""
        live = self.live(key, now_ns)
        missing = len(live) + cost - self.limit  # so many stamps must leave first
        return Verdict(
            allowed=missing <= 0 or cost == 0,
            remaining=self.limit - len(live),
            retry_after_ns=self._until(live[missing - 1], now_ns) if missing > 0 and cost else 0,
            reset_after_ns=self._until(live[-1], now_ns) if live else 0,
            refill_after_ns=self._until(live[0], now_ns) if live else 0,
        )

    def contains(self, key: Hashable, now_ns: int) -> bool:
        """Does `key` have a live stamp? If any is, its newest one is."""
        log = self.logs.get(key)
        return log is not None and self._now(log, now_ns) - log[-1] < self.window

    def live_keys(self, now_ns: int) -> set[Hashable]:
        return {key for key in self.logs if self.contains(key, now_ns)}

    def __len__(self) -> int:
        """Keys that have a log, live or idle."""
        return len(self.logs)

    # -- decisions -------------------------------------------------------------------------------

    def is_full(self, key: Hashable, now_ns: int) -> bool:
        """No room for `key`: it has no live log, and as many others as fit do."""
        if self.max_keys is None or len(self.logs) < self.max_keys or self.contains(key, now_ns):
            return False
        return len(self.live_keys(now_ns)) >= self.max_keys

    def check(self, key: Hashable, now_ns: int, cost: int = 1) -> Verdict | None:
        """Decide and count. None if there is no room for the key and `on_full` decided.

        With on_full="evict" the caller finds out which key had to go, calls `forget` with it and
        checks again: the reference does not guess.
        """
        if cost == 0:
            return self.peek(key, now_ns, 0)
        if self.is_full(key, now_ns):
            if self.on_full == "evict":
                raise LookupError("full: forget() the displaced key first")
            self.tally.overflowed += 1
            if self.on_full == "allow":
                self.tally.allowed += 1
            else:
                self.tally.denied += 1
            return None
        before = self.peek(key, now_ns, cost)
        if not before.allowed:
            self.tally.denied += 1
            return before
        log = self.live(key, now_ns)  # what is expired is gone, even if the clock goes back
        log += [self._stamp(self.logs.get(key, []), now_ns)] * cost
        self.logs[key] = log
        self.tally.allowed += 1
        return Verdict(
            allowed=True,
            remaining=self.limit - len(log),
            retry_after_ns=0,
            reset_after_ns=self._until(log[-1], now_ns),
            refill_after_ns=self._until(log[0], now_ns),
        )

    def allow(self, key: Hashable, now_ns: int, cost: int = 1) -> bool:
        verdict = self.check(key, now_ns, cost)
        return self.on_full == "allow" if verdict is None else verdict.allowed

    # -- giving back -----------------------------------------------------------------------------

    def newest(self, key: Hashable) -> int:
        """The tick at which `key` was counted last."""
        return self.logs[key][-1]

    def refund(self, key: Hashable, now_ns: int, units: int, stamp: int | None = None) -> int:
        """Take back up to `units` counted at tick `stamp`, or last. Returns how many."""
        live = self.live(key, now_ns)
        mine = [at for at in live if stamp is None or at == stamp]
        gone = mine[len(mine) - min(units, len(mine)) :]
        for at in gone:
            live.remove(at)
        if gone:  # else nothing is written, and what is expired may come back with the clock
            self.logs[key] = live
            if not live:
                del self.logs[key]
        return len(gone)

    # -- forgetting ------------------------------------------------------------------------------

    def forget(self, key: Hashable) -> bool:
        return self.logs.pop(key, None) is not None

    def idle_keys(self, now_ns: int) -> set[Hashable]:
        return set(self.logs) - self.live_keys(now_ns)

    def evict(self, now_ns: int) -> int:
        """Forget the idle keys; returns how many there were."""
        idle = self.idle_keys(now_ns)
        for key in idle:
            del self.logs[key]
        return len(idle)

    def clear(self) -> None:
        self.logs.clear()
