"""What a storage of `limits` counts, in the engine's tables. `limits.py` gives it its faces.

*Moving window*: the engine's exact log, in a window one tick longer, as there a request counts
while it is exactly a window old. A private storage has a table for each limit and window; further
ones, and those of a shared storage, have one for each window, and the limit comes with the call.

*Fixed window*: the engine's fixed window with the largest limit that it can count, so that it goes
on counting beyond the caller's.

*Sliding window counter*: two such fixed windows, under the key and the number of the window since
1970, as all of limits' storages without a server have it. The limit that comes with the call is
what the previous window leaves.
"""

from __future__ import annotations

import sys
import time
import weakref
from functools import lru_cache
from math import ceil, floor, isfinite
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from nanolimit.clock import shown
from nanolimit.compat.epoch import closed_window_s, counted_s, moment
from nanolimit.compat.shelf import MOST, Label, Shelf, Spare, class_of, lock
from nanolimit.quota import Quota

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanolimit._core import Decision
    from nanolimit.compat.address import Address
    from nanolimit.limiter import RateLimiter

# What is kept of limits and windows beside their tables: some 500 bytes for each.
_REMEMBERED = 4096

# Sums of floats that should be whole numbers are off by less.
_DUST = 1e-6

K = TypeVar("K")
V = TypeVar("V")

_quota = lru_cache(_REMEMBERED)(Quota)


class Memo(dict[K, V]):
    """A dict that makes what it has not."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[K], V]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: K) -> V:
        return self._make(key)


class Counts:
    """All that one storage has counted. Thread-safe."""

    address: Address
    token: str
    # By limit and window: allow(key, amount).
    moving: Memo[tuple[int, int], Callable[[str, int], bool]]

    def __init__(self, address: Address, token: str | None = None) -> None:
        self.address = address
        self._shelf = Shelf(address)
        self.moving = Memo(self._allow)
        # By limit and window too: the limiter, and for how long a request counts.
        self._looks = Memo(self._look)
        # By window.
        self._fixed = Memo(self._fixed_table)
        self._sliding = Memo(self._sliding_table)
        self._own: dict[tuple[int, int], Callable[[str, int], bool]] = {}
        self.token = uuid4().hex if token is None else token
        with lock():
            _counting[self.token] = self

    # Moving windows

    def _allow(self, pair: tuple[int, int]) -> Callable[[str, int], bool]:
        limit, expiry = pair
        with lock():
            label = self._label(limit, expiry)
            known = self.moving.get(pair)
            if known is not None:
                return known
            limiter = self._shelf.limiter(label)
            if (
                label.limit == limit
                and not self._shelf.is_shared
                and not isinstance(limiter, Spare)
            ):
                self._own[pair] = self.moving[pair] = limiter.allow
                return limiter.allow
            _make_room(self.moving, self._own)
            made = self.moving[pair] = _within(limiter, Quota(limit, closed_window_s(expiry)))
            return made

    def _label(self, limit: int, expiry: int) -> Label:
        """Return which table counts a limit's moving window: its own, or that of its class."""
        _check_expiry(expiry)
        if not 1 <= limit <= MOST:
            raise ValueError(f"limit must be from 1 to {MOST}, not {shown(limit)}")
        if (limit, expiry) in self._own or not (self._shelf.is_shared or self._shelf.is_full):
            return Label("moving", expiry, limit)
        return Label("moving", expiry, class_of(limit))

    def _look(self, pair: tuple[int, int]) -> tuple[RateLimiter | Spare, float]:
        with lock():
            self.moving[pair]  # so that both are of the same table
            label = self._label(*pair)
            _make_room(self._looks)
            made = self._looks[pair] = self._shelf.limiter(label), counted_s(label.expiry)
            return made

    def moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Return the epoch of the oldest request that counts, and how many do; or now, and 0."""
        if limit >= 1:
            limiter, counted = self._looks[limit, expiry]
            decision = limiter.peek(key, 0)
            used = decision.limit - decision.remaining
            if used:
                return moment(time.time() + decision.refill_after - counted), used
        return time.time(), 0

    # Fixed windows

    def _fixed_table(self, expiry: int) -> RateLimiter | Spare:
        return self._table(self._fixed, Label("fixed", expiry, MOST))

    def _sliding_table(self, expiry: int) -> RateLimiter | Spare:
        return self._table(self._sliding, Label("sliding", expiry, MOST))

    def _table(self, memo: Memo[int, RateLimiter | Spare], label: Label) -> RateLimiter | Spare:
        _check_expiry(label.expiry)
        with lock():
            limiter = self._shelf.limiter(label)
            _make_room(memo)
            memo[label.expiry] = limiter
            return limiter

    def incr(self, key: str, expiry: int, amount: int) -> int:
        """Count, and return how many there are in the window that a key's first request began."""
        limiter = self._fixed[expiry]
        if amount.__class__ is not int:
            amount = _whole(amount)
        decision = limiter.check(key, amount) if amount <= MOST else limiter.peek(key, 0)
        if amount <= MOST and decision:
            return MOST - decision.remaining
        # More than it can count: it is filled, and above any limit until the window ends. (A key
        # that there is no room for has nothing remaining.)
        while decision.remaining and not (decision := limiter.check(key, decision.remaining)):
            pass
        return sys.maxsize

    def get(self, key: str) -> int:
        """Return how many requests a key's fixed window has."""
        decision = self._found(key)
        return 0 if decision is None else MOST - decision.remaining

    def get_expiry(self, key: str) -> float:
        """Return the epoch at which a key's fixed window ends, or now."""
        decision = self._found(key)
        now = time.time()
        return now if decision is None else moment(now + decision.reset_after)

    def _found(self, key: str) -> Decision | None:
        """Look for a key in the fixed windows of all lengths."""
        at_hand = self._shelf.fixed
        for limiter in at_hand:
            decision = limiter.peek(key, 0)
            if decision.remaining < MOST:
                return decision
        if self._shelf.may_have_more:
            with lock():
                for label, limiter in self._shelf.all():
                    if label.kind == "fixed" and limiter not in at_hand:
                        decision = limiter.peek(key, 0)
                        if decision.remaining < MOST:
                            return decision
        return None

    # Sliding window counters

    def acquire_sliding(self, key: str, limit: int, expiry: int, amount: int) -> bool:
        """Count, if the current window and what is left of the previous one leave room for it."""
        if amount.__class__ is not int:
            amount = _whole(amount)
        if amount > limit:
            return False
        if limit > MOST:
            raise ValueError(f"limit must be <= {MOST}, not {shown(limit)}")
        limiter = self._sliding[expiry]
        now = time.time()
        previous = MOST - limiter.peek((key, int((now - expiry) / expiry)), 0).remaining
        current_key = key, int(now / expiry)
        left = 0
        if previous:
            weighted = previous * _previous_ttl(expiry, now) / expiry
            left = floor(weighted)
            if weighted - left > 1 - _DUST:
                # limits adds the current window's count before it rounds, which may round up.
                current = MOST - limiter.peek(current_key, 0).remaining
                left = floor(weighted + current) - current
        free = limit - left
        if amount > free:
            return False
        if not amount:
            return True
        return limiter.allow(current_key, amount, quota=_quota(free, 2 * expiry))

    def sliding(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Return the previous and the current window's count, each with the seconds it has left."""
        now = time.time()
        limiter = self._sliding[expiry]
        previous = MOST - limiter.peek((key, int((now - expiry) / expiry)), 0).remaining
        current = MOST - limiter.peek((key, int(now / expiry)), 0).remaining
        previous_ttl = _previous_ttl(expiry, now) if previous else 0.0
        return previous, previous_ttl, current, (1 - ((now / expiry) % 1)) * expiry + expiry

    def clear_sliding(self, key: str, expiry: int) -> None:
        """Forget a key's windows of that length."""
        limiter = self._sliding[expiry]
        now = time.time()
        limiter.reset((key, int((now - expiry) / expiry)))
        limiter.reset((key, int(now / expiry)))

    # All of them

    def clear(self, key: str) -> None:
        """Forget a key wherever it is counted."""
        with lock():
            for label, limiter in self._shelf.all():
                if label.kind == "sliding":
                    self.clear_sliding(key, label.expiry)
                else:
                    limiter.reset(key)

    def reset(self) -> int:
        """Forget all keys, and return how many counts that were."""
        total = 0
        with lock():
            for _, limiter in self._shelf.all():
                total += len(limiter)
                limiter.clear()
        return total


# Those of this process, by what their pickles say.
_counting: weakref.WeakValueDictionary[str, Counts] = weakref.WeakValueDictionary()


def counts_of(address: Address, token: str) -> Counts:
    """Return what a pickled storage counted, if it is in this process, or a new one."""
    with lock():
        counts = _counting.get(token)
        return Counts(address, token) if counts is None else counts


def _whole(amount: float) -> int:
    """Return the units to count of an amount that may be a fraction, as slowapi's costs may be."""
    if not isinstance(amount, float):
        return amount
    if not isfinite(amount):
        raise ValueError(f"amount must be a finite number, not {amount!r}")
    return ceil(amount)


def _within(limiter: RateLimiter | Spare, quota: Quota) -> Callable[[str, int], bool]:
    ask = limiter.allow

    def allow(key: str, amount: int) -> bool:
        return ask(key, amount, quota=quota)

    return allow


def _make_room(memo: Memo[K, V], keep: dict[K, V] | None = None) -> None:
    """Forget what can be made again, where there is much of it."""
    if len(memo) >= _REMEMBERED:
        memo.clear()
        memo.update(keep or {})


def _previous_ttl(expiry: int, now: float) -> float:
    """Return how many seconds the previous window has left, in the arithmetic of limits."""
    return (1 - (((now - expiry) / expiry) % 1)) * expiry


def _check_expiry(expiry: object) -> None:
    if isinstance(expiry, bool) or not isinstance(expiry, int) or expiry < 1:
        raise ValueError(f"expiry must be whole seconds, 1 or more, not {shown(expiry)}")
