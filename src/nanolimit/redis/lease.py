"""Leases: units of hot keys that were counted ahead, and are handed out here without asking.

The store lends units of a key until an instant of its clock, `ttl` after it was asked, and counts
them from that instant on. Here they may be used until ``sent + ttl``, less a thousandth, by a clock
of this machine: that is not later, as the request was sent before the store's clock was read. So
each unit is used before the stamp by which it counts, and never is there one too many. For so much
longer than its window, `ttl` at most, a unit counts: that is the price.

What is lent to this process is a list with an entry for each unit. Who takes an entry out of it may
use one unit; to take one is a single step of a list, whole with the GIL and without, and so is what
a signal handler does in between. What is left when it ends is taken out in the same way, and what
was taken out, and nothing else, is given back to the store.

A key is lent when it is hot: when it was asked for `HOT` times within one ttl. Then as many units
are asked for at first; later as many as last for one ttl at the rate at which the last ones were
used, up to `GROWTH` times as many as these. Where fewer must do, for they are all that may be held
or all that the store has, they are lent for twice as long as they should last, and not for a whole
ttl: units that are used at once would count too long for nothing.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from nanolimit.clock import NS_PER_SECOND, nanoseconds, shown
from nanolimit.redis import script
from nanolimit.redis.fork import renew_after_fork
from nanolimit.redis.name import window_us

if TYPE_CHECKING:
    from datetime import timedelta

    from nanolimit.quota import Quota

__all__ = [
    "GROWTH", "HOT", "MAX_LOANS", "MAX_UNITS", "MAX_WATCHED", "Due", "Lease", "Loan", "Loans",
    "Order", "checked_lease", "clock_s",
]  # fmt: skip

#: So many requests within one ttl make a key hot.
HOT = 4

#: How many times as many units are asked for, at most, where the last were soon used up.
GROWTH = 4

#: Seconds: a lease is not made shorter than this because its units should be used up sooner.
LEAST_TTL_S = 0.01

#: Units in one loan at most: others' requests are put behind them in the store's list.
MAX_UNITS = 1_000

#: A lease lasts for this part of the shortest window at most. What lent units count too long is at
#: most a ninth of the limit then.
SHORTEST_WINDOWS_PART = 8

#: A lease lasts for a day at most.
MAX_TTL_S = 86_400

#: By so much of itself a lease is over earlier here: the two clocks may go at different rates.
#: Clocks that are slewed differ by 500 parts in a million.
DRIFT = 0.001

#: Keys of which units are lent to one limiter at a time: up to 8 MiB, if all are of `MAX_UNITS`.
MAX_LOANS = 1_024

#: Keys whose rate is watched: about 2 MiB. Those that were not asked for longest are forgotten.
MAX_WATCHED = 8_192

_US_PER_SECOND = 1_000_000


def _clock() -> Callable[[], float]:
    # One that goes on while the machine is asleep: the store's does. `time.monotonic` stands still
    # then, on Linux and macOS.
    number = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
    if number is None:
        return time.monotonic
    return partial(time.clock_gettime, number)


#: Seconds of the clock by which leases end here. It never goes back.
clock_s: Callable[[], float] = _clock()


@dataclass(frozen=True, init=False)
class Lease:
    """How much of a hot key's limit a limiter may take at once, and for how long.

    Args:
        max_share: The part of the smallest limit that one limiter takes of a key at once, above 0
            and at most 1. It never takes more than 1,000 units.
        ttl: Seconds, or a `timedelta`, for which it may hold them: above 0, at most a day. Of more
            than an eighth of the shortest window, that eighth counts.

    Raises:
        TypeError: `max_share` is no number, or `ttl` no span of time.
        ValueError: One of them is out of range.

    Immutable, and equal to one of the same numbers.
    """

    max_share: float
    """The part of the smallest limit."""

    ttl: float
    """Seconds."""

    def __init__(self, max_share: float = 0.25, ttl: float | timedelta = 1.0) -> None:
        if isinstance(max_share, bool) or not isinstance(max_share, (int, float)):
            raise TypeError(
                f"max_share must be a number, such as 0.25 for a quarter of the limit, "
                f"not {type(max_share).__name__}"
            )
        if not 0 < max_share <= 1:
            raise ValueError(
                f"max_share must be above 0 and at most 1, the whole limit, not {shown(max_share)}"
            )
        ttl_ns = nanoseconds("ttl", ttl)
        if not 0 < ttl_ns <= MAX_TTL_S * NS_PER_SECOND:
            raise ValueError(
                f"ttl must be above 0 and at most {MAX_TTL_S} seconds, not {shown(ttl)}: "
                f"to have no leases, leave lease out"
            )
        object.__setattr__(self, "max_share", float(max_share))
        object.__setattr__(self, "ttl", ttl_ns / NS_PER_SECOND)


def checked_lease(lease: object) -> Lease | None:
    """Return it, if it is a `Lease` or None."""
    if lease is None or isinstance(lease, Lease):
        return lease
    raise TypeError(
        f"lease must be a Lease, such as Lease(max_share=0.25, ttl=1.0), or None, "
        f"not {type(lease).__name__}"
    )


class Order:
    """A GRANT on its way."""

    __slots__ = ("is_kept", "names", "place", "request", "sent_s", "until_s")

    def __init__(
        self, place: bytes, names: list[bytes], arguments: list[bytes], sent_s: float, ttl_s: float
    ) -> None:
        self.place: bytes = place
        self.names: list[bytes] = names
        self.request: tuple[script.Script, list[bytes], list[bytes]] = (
            script.GRANT,
            names,
            arguments,
        )
        # Until when that which comes of it may be used, by the same clock.
        self.until_s: float = sent_s + ttl_s * (1 - DRIFT)
        # Before it was sent, by `clock_s`.
        self.sent_s: float = sent_s
        # Whether somebody takes the answer though who asked has left.
        self.is_kept: bool = False


class Loan:
    """Units of one key that were lent to this process."""

    __slots__ = ("names", "place", "returned", "sent_s", "stamp", "tokens", "units", "until_s")

    def __init__(self, order: Order, grant: script.Grant, taken: int) -> None:
        self.place: bytes = order.place
        self.names: list[bytes] = order.names
        self.units: int = grant.units
        self.stamp: int = grant.stamp
        self.sent_s: float = order.sent_s
        self.until_s: float = order.until_s
        self.returned: int = 0
        # One entry for each unit that may still be used.
        self.tokens: list[None] = [None] * (grant.units - taken)

    def take(self, units: int) -> bool:
        """Take so many units, all or none. Who is told True may use them, and nobody else."""
        tokens = self.tokens
        if len(tokens) < units:
            return False
        taken = 0
        try:
            while taken < units:
                tokens.pop()
                taken += 1
        except IndexError:  # others were at it
            # Where the loan was called in meanwhile, nobody uses them any more.
            tokens.extend([None] * taken)
            return False
        return True

    def call_in(self) -> int:
        """Take out all that nobody has taken; how many these are."""
        tokens, found = self.tokens, 0
        try:
            while True:
                tokens.pop()
                found += 1
        except IndexError:
            self.returned += found
            return found

    def __lt__(self, other: Loan) -> bool:
        """Say whether it ends earlier."""
        return self.until_s < other.until_s

    @property
    def used(self) -> int:
        """How many were used up to now."""
        return self.units - self.returned - len(self.tokens)


#: A loan that is over, and how many units of it are to be given back.
Due = tuple[Loan, int]


class _Heat:
    """How much one key is asked for."""

    __slots__ = ("asked", "loan", "requests", "since_s", "units")

    def __init__(self, now_s: float) -> None:
        self.loan: Loan | None = None
        # How many it was that were asked for at that time.
        self.asked = 0
        self.begin(now_s)

    def begin(self, now_s: float) -> None:
        """Count anew how much the store is asked for."""
        self.loan = None
        self.since_s = now_s
        self.requests = self.units = 0

    def count(self, units: int) -> None:
        """Count a request."""
        self.requests += 1
        self.units += units


class Loans:
    """What is lent to one limiter, by the places of its keys. Time is an argument.

    Args:
        lease: What may be held.
        quotas: Of the limiter.
        arguments: Of the limiter.

    Thread-safe. `take` is without a lock; all else happens on the way to the store, and is bounded
    in time whatever the number of keys. A forked child has no loans: they are its parent's.
    """

    __slots__ = (
        "__weakref__", "_arguments", "_asked", "_barred", "_closed", "_ending", "_kept", "_lock",
        "_older", "_pid", "_watched", "_watching", "most", "ttl_s",
    )  # fmt: skip

    most: int
    """Units in one loan at most."""

    ttl_s: float
    """Seconds for which the store is asked to lend at most."""

    def __init__(
        self, lease: Lease, quotas: tuple[Quota, ...], arguments: script.Arguments
    ) -> None:
        least = min(quota.limit for quota in quotas)
        self.most = min(int(lease.max_share * least), MAX_UNITS)
        ttl_us = int(nanoseconds("ttl", lease.ttl) // 1_000)
        shortest = min(map(window_us, quotas)) // SHORTEST_WINDOWS_PART
        self.ttl_s = max(1, min(ttl_us, shortest)) / _US_PER_SECOND
        if least < script.LEAST_LENT_LIMIT or self.most < 2:
            self.most = 0  # a share of it is nothing
        self._arguments = arguments
        self._closed = False
        self._begin()
        renew_after_fork(self)

    def _begin(self) -> None:
        self._pid = os.getpid()
        # Reentrant, like every lock of the face.
        self._lock = threading.RLock()
        self._kept: dict[bytes, Loan] = {}
        # All of which something may be left: a heap, the one that ends first in front.
        self._ending: list[Loan] = []
        self._watching = False
        self._asked: dict[bytes, Order] = {}
        self._barred: dict[bytes, int] = {}
        # Two halves: when the one is full, it takes the other's place, and that is forgotten.
        self._watched: dict[bytes, _Heat] = {}
        self._older: dict[bytes, _Heat] = {}

    def after_fork(self) -> None:
        """In the child: what was lent was lent to the parent, and is not used here."""
        if self._pid != os.getpid():
            self._begin()

    # -- on each request

    def take(self, place: bytes, units: int, now_s: float) -> bool:
        """Use so many units that are here, if there are as many and it is not too late."""
        loan = self._kept.get(place)
        if loan is None or now_s >= loan.until_s:
            return False
        if units == 1:
            try:
                loan.tokens.pop()
            except IndexError:
                return False
            return True
        return loan.take(units)

    # -- on the way to the store

    def order(self, place: bytes, names: list[bytes], units: int, now_s: float) -> Order | None:
        """Decide on a request that was not served: what to ask for, or None: for itself alone.

        Of the requests for a key one at a time gets an order. It is to be ended by `lend` or
        `failed`, once.
        """
        if not self.most:
            return None
        with self._lock:
            if self._closed or place in self._asked or place in self._barred:
                return None
            heat = self._heat(place, now_s)
            wanted, ttl_s = self._wanted(heat, units, now_s)
            if wanted < 2 * units or len(self._kept) + len(self._asked) >= MAX_LOANS:
                return None
            heat.asked = wanted
            ttl_us = max(1, int(ttl_s * _US_PER_SECOND))
            arguments = self._arguments.lent(wanted, ttl_us)
            order = Order(place, names, arguments, now_s, ttl_us / _US_PER_SECOND)
            self._asked[place] = order
            return order

    def _heat(self, place: bytes, now_s: float) -> _Heat:
        heat = self._watched.get(place)
        if heat is None:
            heat = self._older.pop(place, None) or _Heat(now_s)
            if len(self._watched) >= MAX_WATCHED // 2:
                self._watched, self._older = {}, self._watched
            self._watched[place] = heat
        return heat

    def _wanted(self, heat: _Heat, units: int, now_s: float) -> tuple[int, float]:
        """Return how many units to ask for, and for how long; 0: the key is not hot."""
        loan, ttl_s = heat.loan, self.ttl_s
        if loan is None:
            if now_s - heat.since_s >= ttl_s:
                heat.begin(now_s)
            heat.count(units)
            return (min(heat.units, self.most), ttl_s) if heat.requests >= HOT else (0, 0.0)
        used, most = loan.used, loan.units * GROWTH
        if now_s >= loan.until_s and used < loan.units:
            most = loan.units
        is_cold = most == loan.units and used < min(HOT, self.most)
        if is_cold or now_s - loan.until_s >= ttl_s:
            heat.begin(now_s)
            heat.count(units)
            return 0, 0.0
        # Where all were used and it is over since, it is not known how soon that was.
        lasted_s = max(min(now_s, loan.until_s) - loan.sent_s, 1e-6)
        if used == loan.units < heat.asked:  # the store had no more
            wanted, expected = heat.asked, loan.units
        else:
            wanted = expected = min(round(used * ttl_s / lasted_s), most, self.most)
        lasts_s = expected * lasted_s / used if used else ttl_s
        return wanted, min(ttl_s, max(2 * lasts_s, LEAST_TTL_S))

    def lend(self, order: Order, grant: script.Grant, taken: int) -> bool:
        """Take what the store has lent, of which `taken` are used already.

        Returns:
            Whether its end is the next one: who watches has to know.
        """
        place = order.place
        with self._lock:
            if self._asked.get(place) is not order:
                return False  # it was reset meanwhile, or this is the child of a fork
            del self._asked[place]
            if not grant.units:
                return False
            loan = Loan(order, grant, taken)
            heat = self._watched.get(place) or self._older.get(place)
            if heat is not None:
                heat.loan = loan
            if not loan.tokens:
                return False
            if not self._closed:
                self._kept[place] = loan
            heappush(self._ending, loan)
            return self._ending[0] is loan and not self._closed

    def failed(self, order: Order) -> None:
        """An order came to nothing, or nobody knows to what.

        If the store has lent it, it is lost for a window. So the key has to get hot anew.
        """
        with self._lock:
            if self._asked.get(order.place) is not order:
                return
            del self._asked[order.place]
            self._watched.pop(order.place, None)
            self._older.pop(order.place, None)

    # -- when they end

    def watch(self) -> bool:
        """Say whether nobody watched until now; from now on somebody does, by `next_s`."""
        with self._lock:
            was_watched, self._watching = self._watching, True
            return not was_watched

    def next_s(self) -> float | None:
        """Return when the next loan ends; None: there is none, and who watches may rest."""
        with self._lock:
            if not self._ending:
                self._watching = False
                return None
            return self._ending[0].until_s

    def rest(self) -> None:
        """Nobody watches any more."""
        with self._lock:
            self._watching = False

    def over(self, now_s: float) -> list[Due]:
        """Take out of use what has ended; what is left of it is to be given back, once."""
        with self._lock:
            due = []
            while self._ending and self._ending[0].until_s <= now_s:
                due += self._called_in(heappop(self._ending))
            return due

    def everything(self) -> list[Due]:
        """Take out of use all there is. It is to be given back, once."""
        return self.over(math.inf)

    def close(self) -> list[Due]:
        """As `everything`; and nothing is lent any more."""
        with self._lock:
            self._closed = True
            return self.everything()

    def _called_in(self, loan: Loan) -> list[Due]:
        if self._kept.get(loan.place) is loan:
            del self._kept[loan.place]
        left = loan.call_in()
        return [(loan, left)] if left else []

    # -- reset

    def bar(self, place: bytes) -> None:
        """Drop what is lent of a key, and lend nothing of it until `unbar`.

        It is not given back: the store forgets it.
        """
        with self._lock:
            self._barred[place] = self._barred.get(place, 0) + 1
            self._drop(place)

    def unbar(self, place: bytes) -> None:
        """The store has forgotten the key, or could not be asked."""
        with self._lock:
            left = self._barred.pop(place, 1) - 1  # in the child of a fork it is not there
            if left:
                self._barred[place] = left
            self._drop(place)

    def _drop(self, place: bytes) -> None:
        self._asked.pop(place, None)
        self._kept.pop(place, None)
        # There may be several that are not over yet.
        for loan in self._ending:
            if loan.place == place:
                loan.call_in()

    def __len__(self) -> int:
        return len(self._kept)
