"""The meters once more, in plain Python with fractions: what core/meter.h is compared with.

Time is measured as the engine does it (`tick_ns`): an event's instant rounds up to a tick, now
rounds down. Everything else is written as the algorithms are defined, not as the engine computes:
instants are found by asking whether it would fit then.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor

from reference import Verdict, tick_ns


class Meter(ABC):
    """One quota, any number of keys. Methods take the time, in nanoseconds, as an argument."""

    def __init__(self, limit: int, window_ns: int) -> None:
        self.limit = limit
        self.tick = tick_ns(window_ns)
        self.window = -(-window_ns // self.tick)
        self.states: dict[Hashable, object] = {}

    # What an algorithm says: of a state (or None) at a tick.

    @abstractmethod
    def now(self, state: object, tick: int) -> int:
        """The tick, or if the clock went back, the earliest at which the state can be."""

    @abstractmethod
    def used(self, state: object, tick: int) -> Fraction:
        """Units that count. Never rising while nobody comes."""

    @abstractmethod
    def counted(self, state: object, down: int, up: int, cost: int) -> object:
        """The state after so many units more, at a time between two ticks or at one."""

    @abstractmethod
    def instants(self, state: object, free: int) -> list[int]:
        """Ticks of which one is the first at which so many units are free."""

    @abstractmethod
    def idle_from(self, state: object) -> int:
        """The tick from which on the state says nothing any more."""

    # What follows from it.

    def live(self, key: Hashable, now_ns: int) -> object:
        state = self.states.get(key)
        if state is None or self.now(state, now_ns // self.tick) >= self.idle_from(state):
            return None
        return state

    def first_free(self, state: object, free: int, tick: int) -> int:
        """The first tick from which on so many units are free."""
        if self.limit - self.used(state, tick) >= free:
            return tick
        found = min(
            instant
            for instant in self.instants(state, free)
            if instant > tick and self.limit - self.used(state, instant) >= free
        )
        assert self.limit - self.used(state, found - 1) < free
        return found

    def verdict(self, state: object, now_ns: int, cost: int, *, counts: bool = False) -> Verdict:
        if state is None:
            return Verdict(cost <= self.limit, self.limit, 0, 0, 0)
        tick = self.now(state, now_ns // self.tick)
        used = self.used(state, tick)
        allowed = counts or cost == 0 or used + cost <= self.limit
        remaining = max(0, floor(self.limit - used))

        def until(instant: int) -> int:
            return max(0, instant * self.tick - now_ns)

        return Verdict(
            allowed,
            remaining,
            0 if allowed else until(self.first_free(state, cost, tick)),
            until(self.first_free(state, self.limit, tick)),
            until(self.first_free(state, remaining + 1, tick)),
        )

    def peek(self, key: Hashable, now_ns: int, cost: int = 1) -> Verdict:
        return self.verdict(self.live(key, now_ns), now_ns, cost)

    def check(self, key: Hashable, now_ns: int, cost: int = 1) -> Verdict:
        before = self.peek(key, now_ns, cost)
        if cost == 0 or not before.allowed:
            return before
        state = self.live(key, now_ns)
        down, up = now_ns // self.tick, -(-now_ns // self.tick)
        self.states[key] = after = self.counted(state, down, up, cost)
        return self.verdict(after, now_ns, cost, counts=True)

    def contains(self, key: Hashable, now_ns: int) -> bool:
        return self.live(key, now_ns) is not None

    def holds(self, key: Hashable, now_ns: int) -> bool:
        """Is its slot live? With a raised limit a bucket may be full before that ends."""
        state = self.states.get(key)
        return state is not None and self.now(state, now_ns // self.tick) < self.idle_from(state)

    def live_keys(self, now_ns: int) -> set[Hashable]:
        return {key for key in self.states if self.holds(key, now_ns)}

    def forget(self, key: Hashable) -> None:
        self.states.pop(key, None)

    def set_limit(self, limit: int) -> None:
        self.limit = limit


@dataclass(frozen=True)
class Bucket:
    """A bucket that was full at `start`, and `units` since; `idle_from`: as the limit was then."""

    start: int
    units: int
    spent: bool  # more than the limit was taken: start is no instant of the past any more
    idle_from: int


class Gcra(Meter):
    """A bucket that fills evenly. TAT is when it will be full again: a Fraction of ticks."""

    def tat(self, state: Bucket) -> Fraction:
        return state.start + Fraction(state.units * self.window, self.limit)

    def now(self, state: Bucket, tick: int) -> int:  # type: ignore[override]
        return max(tick, state.idle_from - self.window)

    def used(self, state: Bucket, tick: int) -> Fraction:  # type: ignore[override]
        if tick >= state.idle_from:
            return Fraction(0)  # by the limit that it was counted with, it is full again
        missing = max(Fraction(0), (self.tat(state) - tick) * self.limit / self.window)
        return missing if state.spent else min(missing, Fraction(state.units))

    def counted(  # type: ignore[override]
        self, state: Bucket | None, down: int, up: int, cost: int
    ) -> Bucket:
        start, units, spent = up, cost, False
        if state is not None and self.tat(state) > up:
            start, units, spent = state.start, state.units + cost, state.spent
        while units > self.limit:
            start, units, spent = start + self.window, units - self.limit, True
        made = Bucket(start, units, spent, 0)
        return replace(made, idle_from=ceil(self.tat(made)))

    def instants(self, state: Bucket, free: int) -> list[int]:  # type: ignore[override]
        left = (self.limit - free) * Fraction(self.window, self.limit)
        return [ceil(self.tat(state) - left), state.idle_from]

    def idle_from(self, state: Bucket) -> int:  # type: ignore[override]
        return state.idle_from

    def live(self, key: Hashable, now_ns: int) -> object:
        state = super().live(key, now_ns)
        if state is None:
            return None
        assert isinstance(state, Bucket)
        return state if self.tat(state) > self.now(state, now_ns // self.tick) else None


@dataclass(frozen=True)
class Window:
    start: int
    units: int
    before: int = 0


class FixedWindow(Meter):
    def now(self, state: Window, tick: int) -> int:  # type: ignore[override]
        return max(tick, state.start)

    def used(self, state: Window, tick: int) -> Fraction:  # type: ignore[override]
        return Fraction(state.units if tick < state.start + self.window else 0)

    def counted(  # type: ignore[override]
        self, state: Window | None, down: int, up: int, cost: int
    ) -> Window:
        if state is None:
            return Window(up, cost)
        return replace(state, units=state.units + cost)

    def instants(self, state: Window, free: int) -> list[int]:  # type: ignore[override]
        return [state.start + self.window]

    def idle_from(self, state: Window) -> int:  # type: ignore[override]
        return state.start + self.window


class SlidingCounter(Meter):
    def now(self, state: Window, tick: int) -> int:  # type: ignore[override]
        return max(tick, state.start)

    def at(self, state: Window, tick: int) -> Window:
        """The window that the tick is in, or the last that anybody counted in and one more."""
        if tick < state.start + self.window:
            return state
        return Window(state.start + self.window, 0, state.units)

    def used(self, state: Window, tick: int) -> Fraction:  # type: ignore[override]
        window = self.at(state, tick)
        left = max(0, window.start + self.window - tick)
        return window.units * (left > 0) + Fraction(window.before * left, self.window)

    def counted(  # type: ignore[override]
        self, state: Window | None, down: int, up: int, cost: int
    ) -> Window:
        if state is None:
            return Window(up, cost)
        window = self.at(state, self.now(state, down))
        return replace(window, units=window.units + cost)

    def instants(self, state: Window, free: int) -> list[int]:  # type: ignore[override]
        found = []
        for window in (state, Window(state.start + self.window, 0, state.units)):
            end = window.start + self.window
            found += [window.start, end]
            if window.before and self.limit - free >= window.units:
                left = Fraction((self.limit - free - window.units) * self.window, window.before)
                found.append(max(window.start, end - floor(left)))
        return found

    def idle_from(self, state: Window) -> int:  # type: ignore[override]
        return state.start + 2 * self.window


METERS: dict[str, type[Meter]] = {
    "gcra": Gcra,
    "fixed-window": FixedWindow,
    "sliding-counter": SlidingCounter,
}
