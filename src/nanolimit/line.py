"""Lines of waiters: who waits for a key of a limiter, in the order in which they came.

A line is an `OrderedDict` of waiters: they enter at its end and leave from anywhere in no time, and
each of these steps is one that no signal can interrupt. Who waits alone is the line: ten thousand
keys with one waiter each then take less memory, which is less time as well. Each
limiter that somebody waits for has one `Waits`, a dict of its lines; a line goes when its last
waiter does.

Only the first of a line asks the limiter, and it asks in its own thread or task, at the moment at
which it can still say yes: a request is counted by the one who made it, while it is there, or not
at all. So there is no grant on its way to somebody who has just been cancelled, and none to be
given back. Who leaves, granted or not, sees to it that the next one looks: see `Waits.promote`.

`peek` comes before `check`: a request that waits is not a denied one. Telemetry is not told of it,
and a penalty for those who keep knocking does not hit those who stand in line.

This module knows no kind of waiter: threads stand in `waiting`, asyncio's tasks in `tasks`, all
other tasks in `anyio`. They may stand in one line.
"""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from itertools import islice
from operator import index
from time import monotonic
from typing import TYPE_CHECKING, Any

from nanolimit.clock import CLOCK_END_NS, NS_PER_SECOND, ManualClock, nanoseconds, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanolimit._core import Decision
    from nanolimit.limiter import Key, RateLimiter

    Line = OrderedDict["Waiter", None]

# All there are: for the child of a fork, which has none of their waiters, and for loops that close.
_all: weakref.WeakSet[Waits] = weakref.WeakSet()
# Reentrant, like every lock of the face: a signal handler may do what is just being done.
_making = threading.RLock()


def _forget_waiters() -> None:
    """Renew what a fork may have torn. The threads that waited are the parent's."""
    global _making
    _making = threading.RLock()
    for waits in list(_all):
        waits.lock = threading.RLock()
        waits.lines = {}


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_waiters)


def _no_loop() -> None:
    """Tell of no loop: in a thread's own name, or in somebody else's."""


class Waits:
    """All who wait for one limiter: a line for each key that somebody waits for.

    The limiter holds it, and it does not hold the limiter. Its lock is held for a few steps only,
    and never while the limiter is asked, which may run somebody's clock or telemetry handlers.
    """

    __slots__ = ("__weakref__", "clock", "closed", "lines", "lock")

    clock: ManualClock | None  # one that says when it moves: nobody needs a timer then
    closed: bool
    lines: dict[bytes, Line | Waiter]
    lock: threading.RLock

    def __init__(self, clock: object) -> None:
        self.clock = clock if isinstance(clock, ManualClock) else None
        self.closed = False
        self.lines = {}
        self.lock = threading.RLock()

    def enter(self, waiter: Waiter) -> None:
        """Stand behind all who wait for the same key."""
        place = waiter.place
        if self.clock is None and self.lines.setdefault(place, waiter) is waiter:
            waiter.first = True  # to come first is a single step of a dict: it needs no lock
            return
        with self.lock:
            # Others come first without the lock.
            line = self.lines.setdefault(place, waiter)
            if line is waiter:
                if self.clock is None:
                    waiter.first = True
                else:
                    self.clock._watch(self)
            elif isinstance(line, OrderedDict):
                line[waiter] = None
            else:
                self.lines[place] = OrderedDict.fromkeys((line, waiter))

    def leave(
        self, waiter: Waiter, running: Callable[[], object] = _no_loop, again: bool = False
    ) -> None:
        """Give the place back; if it was the first, see to it that the next one looks.

        `running` tells the loop that runs in this thread. Leaving twice is fine; a signal may have
        interrupted the first time, so that the second one has to promote in any case: `again`.
        """
        place = waiter.place
        with self.lock:
            line = self.lines.get(place)
            rest: Line | None = None  # who waited alone leaves nobody behind
            if line is not waiter:
                if not isinstance(line, OrderedDict):
                    return
                rest = line
                was_first = again or next(iter(rest), None) is waiter
                rest.pop(waiter, None)
                if rest and not was_first:
                    return
            if not rest:
                del self.lines[place]
                if self.clock is not None and not self.lines:
                    self.clock._unwatch(self)
                return
        self.promote(rest, running())

    def promote(self, line: Line, near: object) -> None:
        """Do for the first of a line what it needs, unless it is about to look by itself.

        If it stands in the loop that runs here, it is asked in its stead what it would be told:
        either it must sleep on, and gets its timer, without a switch to its task; or it is woken,
        and at once with it all behind it who fit as well. They run in that order, each as the
        first when its turn comes, and each asks for itself.

        A waiter elsewhere is woken, and looks.
        """
        while True:
            with self.lock:
                heir = next(iter(line), None)
                if heir is None or heir.awake:
                    return
                if near is None or heir.loop is not near:
                    if heir.wake():
                        return
                    line.pop(heir, None)  # its loop is closed
                    if not line and self.lines.get(heir.place) is line:
                        self.leave(heir)
                    continue
            room = heir.cost
            try:
                decision = heir.limiter.peek(heir.key, heir.cost)
            except Exception:
                pass  # it will meet the same when it looks, and tell those who wait for it
            else:
                if not decision.allowed:
                    with self.lock:
                        if not heir.awake:
                            if heir.gives_up(decision):
                                heir.wake()
                            elif self.clock is None:
                                heir.arm(decision.retry_after)
                    return
                room = max(room, decision.remaining)
            with self.lock:
                self._rouse(line, near, room)
            return

    def is_awaited(self, place: bytes) -> bool:
        """Say whether somebody waits for that key."""
        return bool(self.lines.get(place))

    def clock_moved(self) -> None:
        """Wake the first of each line, and those whose time is up."""
        with self.lock:
            clock = self.clock
            if clock is None:
                return
            self._wake_due(clock.now_ns())

    def close(self) -> None:
        """Wake all: the limiter is closed, and each of them is told so."""
        with self.lock:
            self.closed = True
            self._wake_all()

    # Each of the following runs with the lock held. They stand apart because a signal handler may
    # raise at the backward jump of a loop, which from 3.12 on CPython leaves out of the `with` or
    # `try` around it: the lock would be held for ever. What a call raises is always seen.

    def _rouse(self, line: Line, near: object, room: int) -> None:
        for waiter in tuple(islice(line, room)):
            if waiter.loop is not near or waiter.cost > room:
                return
            room -= waiter.cost
            if not waiter.awake:
                waiter.awake = True
                waiter.rouse()

    def _wake_due(self, now_ns: int) -> None:
        for line in self._lines():
            first = line[0]
            for waiter in line:
                over_ns = waiter.over_ns
                if waiter is first or (over_ns is not None and over_ns <= now_ns):
                    self._wake(waiter)

    def _wake_all(self) -> None:
        for line in self._lines():
            for waiter in line:
                # Even who is awake: it may have looked before the limiter was closed.
                if not waiter.wake():
                    self.leave(waiter)

    def _of(self, loop: object) -> list[Waiter]:
        return [waiter for line in self._lines() for waiter in line if waiter.loop is loop]

    def _lines(self) -> list[tuple[Waiter, ...]]:
        """Copy all lines."""
        lines = list(self.lines.values())
        return [tuple(line) if isinstance(line, OrderedDict) else (line,) for line in lines if line]

    def _wake(self, waiter: Waiter) -> None:
        if not waiter.awake and not waiter.wake():
            self.leave(waiter)

    def forget(self, loop: object) -> None:
        """Take the waiters of a loop out, which is closed."""
        with self.lock:
            gone = self._of(loop)
        for waiter in gone:
            self.leave(waiter)


def forget_loop(loop: object) -> None:
    """Take the waiters of a closed loop out of all lines."""
    with _making:
        everywhere = list(_all)
    for waits in everywhere:
        waits.forget(loop)


def waits_of(limiter: RateLimiter) -> Waits:
    """Return the limiter's lines, made now if nobody has waited for it before."""
    waits = limiter._waits
    if waits is None:
        with _making:
            waits = limiter._waits
            if waits is None:
                waits = Waits(limiter._clock)
                _all.add(waits)
                limiter._before_closing(waits)
                limiter._waits = waits
    return waits


def checked_timeout(timeout: object) -> int | None:
    """Return a time-out in nanoseconds, or None for none."""
    if timeout is None:
        return None
    timeout_ns = nanoseconds("timeout", timeout)
    if timeout_ns < 0:
        raise ValueError(
            f"timeout must be >= 0 seconds, or None to wait for ever, not {shown(timeout)}"
        )
    return min(timeout_ns, CLOCK_END_NS)  # 146 years


def too_long(decision: Decision, patience_s: float) -> bool:
    """Say whether that is a block for more than so many seconds.

    Not if the log denies for longer than the block, which then keeps nobody waiting.
    """
    if not decision.blocked or decision.retry_after <= patience_s:
        return False
    return decision.violated is None or decision.retry_after > decision.refill_after


def at_once(limiter: RateLimiter, key: Key, cost: int, decision: Decision) -> tuple[Decision, bool]:
    """Ask for somebody who comes, unless others wait. What is known, and whether it was granted.

    `decision` is what `peek` said just now, that it would fit. A cost of 0 overtakes nobody: it
    takes nothing.
    """
    if cost == 0:
        return decision, True
    waits = limiter._waits
    if waits is not None and waits.lines and waits.is_awaited(limiter._engine.place(key)):
        return decision, False
    decision = limiter.check(key, cost)
    return decision, decision.allowed


class Waiter(ABC):
    """One request that waits. The kinds of waiter say how one sleeps and is woken.

    `place` is the key's fingerprint: what the limiter takes for one key, stands in one line.
    """

    __slots__ = (
        "awake", "cost", "decision", "first", "granted", "key", "limiter", "over_ns", "over_s",
        "patience_s", "pause_s", "place", "stale", "waits",
    )  # fmt: skip

    limiter: RateLimiter
    key: Key
    cost: int
    place: bytes
    waits: Waits
    awake: bool  # its turn is coming by itself: it need not be woken
    first: bool  # it stands first, for certain
    decision: Decision  # what the limiter said last
    stale: bool  # that has to be asked for again
    granted: bool
    pause_s: float | None  # until it looks again; None: when it is woken
    # When its time is up, in the limiter's own clock or in the system's.
    over_ns: int | None
    over_s: float | None
    patience_s: float | None  # the longest block that it waits out; None: any

    #: What wakes it: an asyncio loop, or its like; None for a thread.
    loop: Any = None

    # Not __init__: a method that Python code calls costs half as much.
    def begin(
        self,
        limiter: RateLimiter,
        key: Key,
        cost: int,
        timeout_ns: int | None,
        decision: Decision,
        patience_s: float | None = None,
    ) -> Waits:
        """Set out, and return the lines to stand in: `decision` is what the limiter just said."""
        self.limiter = limiter
        self.key = key
        self.cost = index(cost)
        self.place = limiter._engine.place(key)
        self.waits = waits = limiter._waits or waits_of(limiter)
        clock = waits.clock
        self.awake = self.first = self.granted = False
        self.patience_s = patience_s
        # A clock of this kind may have moved since it was asked.
        self.decision = decision
        self.stale = clock is not None
        self.pause_s = self.over_ns = self.over_s = None
        if timeout_ns is not None:
            if clock is not None:
                self.over_ns = clock.now_ns() + timeout_ns
            else:
                self.over_s = monotonic() + timeout_ns / NS_PER_SECOND
        return waits

    def look(self) -> bool:
        """Ask, if it is this one's turn. True: it is over, granted or not. Else `pause_s` is set.

        At the last moment it asks first and gives up then: what fits just in time is granted.
        """
        first = self.first
        clock = None
        if not first:
            waits = self.waits
            clock = waits.clock
            with waits.lock:
                self.awake = False  # from now on it is woken anew
                line = waits.lines.get(self.place)
                # No line: a fork forgot it, and it asks for itself. If the limiter is closed, it
                # says so.
                first = (
                    not isinstance(line, OrderedDict)
                    or next(iter(line), None) is self
                    or waits.closed
                )
            # Once first, it is so until it leaves: nobody overtakes it. Only a clock that wakes
            # the first again and again must know that it is awake.
            self.first = first and clock is None
        decision = self.decision
        if first and (self.stale or decision.allowed):
            limiter = self.limiter
            decision = limiter.peek(self.key, self.cost)
            if decision.allowed:
                decision = limiter.check(self.key, self.cost)
            self.decision = decision
            if decision.allowed:
                self.granted = True
                return True
        self.stale = True
        if first and self.gives_up(decision):
            return True
        if clock is not None:
            over = self.over_ns is not None and clock.now_ns() >= self.over_ns
        else:
            pause_s = decision.retry_after if first else None
            over = False
            if self.over_s is not None:
                left_s = self.over_s - monotonic()
                over = left_s <= 0
                if pause_s is None or left_s < pause_s:
                    pause_s = left_s
            self.pause_s = pause_s
        if over and not first:
            self.decision = self.limiter.peek(self.key, self.cost)
        return over

    def gives_up(self, decision: Decision) -> bool:
        """Say whether the key is blocked for longer than this one waits out."""
        return self.patience_s is not None and too_long(decision, self.patience_s)

    @abstractmethod
    def wake(self) -> bool:
        """Wake it from any thread; the lock is held. False: its loop is closed."""

    def rouse(self) -> None:
        """Wake it in the thread of its loop, if that costs less than from another."""
        self.wake()

    def arm(self, pause_s: float) -> None:
        """Have it woken after so many seconds; or at once, and it looks how long it has to wait.

        It sleeps, in the loop that runs in this thread.
        """
        self.wake()


def closing(waits: Waits, close: Callable[[], None]) -> None:
    """Close a limiter, and tell those who wait for it."""
    close()
    waits.close()
