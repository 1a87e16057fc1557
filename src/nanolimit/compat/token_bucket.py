"""The token buckets of token-bucket 0.4: change the import, keep the code.

```python
from nanolimit.compat.token_bucket import Limiter, MemoryStorage

limiter = Limiter(10, 100, MemoryStorage())         # 10 tokens a second, 100 at most
limiter.consume("user:42")
```

`Limiter`, `StorageBase` and `MemoryStorage` do what the original's do: the same formula in floats,
the time from `time.monotonic`, looked up at each call so that tests can freeze it, the same errors,
and a storage of one's own has to have the same three methods. Any key will do that a dict takes and
that is not empty, as there. The engine has no part in it.

`MemoryStorage` is exact under threads. The original names two races of its own: two threads may
take the same last token, so that the count goes below zero, and a bucket may be refilled from an
older count. (Four threads of a free-threaded Python took up to 2,761 tokens of 1,000.) This one
does each step under a lock, with the clock read inside. That is its price: a call takes 1.5 to 1.7
times as long.

What the import gains is `TableStorage`, in whose place a table of nanolimit's engine holds the
buckets:

- ``Limiter(10, 100, TableStorage())``: a call takes less than half of the original's time, a bucket
  about 60 bytes, and buckets that are full again make room for others. (`MemoryStorage` forgets
  none, as the original.)
- ``Limiter(10, 100, TableStorage("name"))``: one table for all processes of this machine.

What differs besides:

- A rate of NaN is a ValueError. In the original it is no limit at all.
- There are no modules below this one: what is patched at ``token_bucket.storage.time`` is at
  ``nanolimit.compat.token_bucket.time``.

The figures are in docs/replacements.md, each with its command.

Thread-safe, with and without the GIL.
"""

from __future__ import annotations

import abc
import threading
import time
from typing import TYPE_CHECKING, Any

from nanolimit.algorithm import most
from nanolimit.clock import NS_PER_SECOND, shown
from nanolimit.compat.lock import give_lock
from nanolimit.errors import NanolimitError
from nanolimit.limiter import RateLimiter
from nanolimit.quota import MAX_WINDOW_NS, MIN_WINDOW_NS, Quota

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from typing import Literal

__all__ = ["Limiter", "MemoryStorage", "StorageBase", "TableStorage"]

__version__ = "0.4.0"  # of token-bucket, whose behaviour this is


class StorageBase(abc.ABC):
    """Where the buckets are. A storage of one's own inherits from it and has these methods."""

    @abc.abstractmethod
    def get_token_count(self, key: str | bytes) -> float:
        """Return how many tokens the bucket held when it was last replenished, less what was taken.

        0 for a bucket that there is not.
        """

    @abc.abstractmethod
    def replenish(self, key: str | bytes, rate: float, capacity: int) -> None:
        """Put in what has come since the last time. A new bucket is full.

        Args:
            key: Whose bucket.
            rate: Tokens a second.
            capacity: What the bucket holds; what is above that is lost.
        """

    @abc.abstractmethod
    def consume(self, key: str | bytes, num_tokens: int) -> bool:
        """Take so many tokens, all or none.

        Returns:
            Whether there were so many.
        """


class Limiter:
    """Token buckets of one rate and capacity, one for each key.

    Args:
        rate: Tokens a second that each bucket gets.
        capacity: What a bucket holds, and has at first.
        storage: Where the buckets are: a `MemoryStorage`, a `TableStorage` or one's own.

    Raises:
        TypeError: One of them is of the wrong type.
        ValueError: `rate` is not above 0, or `capacity` below 1; or one of them is not for a
            `TableStorage`.
        SharedTableError: As `nanolimit.RateLimiter`, with a `TableStorage`.

    Thread-safe, if the storage is.
    """

    __slots__ = ("_capacity", "_rate", "_storage", "_take")

    _rate: float
    _capacity: int
    _storage: StorageBase
    # What does both steps, where the storage has it.
    _take: Callable[[str | bytes, int], bool] | None

    def __init__(self, rate: float, capacity: int, storage: StorageBase) -> None:
        if not isinstance(rate, (float, int)):
            raise TypeError("rate must be an int or float")
        if not rate > 0:
            raise ValueError("rate must be > 0")
        if not isinstance(capacity, int):
            raise TypeError("capacity must be an int")
        if capacity < 1:
            raise ValueError("capacity must be >= 1")
        if not isinstance(storage, StorageBase):
            raise TypeError("storage must be a subclass of StorageBase")
        self._rate = rate
        self._capacity = capacity
        self._storage = storage
        self._take = None
        if type(storage) is TableStorage:
            storage.replenish(None, rate, capacity)
            self._take = storage.consume

    def consume(self, key: str | bytes, num_tokens: int = 1) -> bool:
        """Take so many tokens out of the key's bucket, all or none.

        Args:
            key: Whose bucket; not empty.
            num_tokens: How many, 1 at least.

        Returns:
            Whether there were so many. More than `capacity` there never are.

        Raises:
            TypeError: `key` or `num_tokens` is None, or of the wrong type.
            ValueError: `key` is empty, or `num_tokens` below 1.
        """
        if not key:
            if key is None:
                raise TypeError("key may not be None")
            # The words of the original, which tests look for; they mean the opposite.
            raise ValueError("key must not be a non-empty string or bytestring")
        if num_tokens is None:
            raise TypeError("num_tokens may not be None")
        if num_tokens < 1:
            raise ValueError("num_tokens must be >= 1")
        if self._take is not None:
            return self._take(key, num_tokens)
        self._storage.replenish(key, self._rate, self._capacity)
        return self._storage.consume(key, num_tokens)


class MemoryStorage(StorageBase):
    """Buckets in a dict of this process. They are never forgotten.

    Thread-safe: no schedule of threads takes a token twice, or loses one. It can be pickled and
    copied; a copy has buckets of its own.
    """

    def __init__(self) -> None:
        # What a bucket holds, and when it was last replenished.
        self._buckets: dict[str | bytes, list[float]] = {}
        give_lock(self)

    def get_token_count(self, key: str | bytes) -> float:
        """Return what the bucket held when it was last replenished, less what was taken."""
        bucket = self._buckets.get(key)
        return 0 if bucket is None else bucket[0]

    # In both of these nothing is called between reading and writing a bucket, so that no signal
    # handler, which the lock would let in, can take tokens in between.

    def replenish(self, key: str | bytes, rate: float, capacity: int) -> None:
        """Put in what has come since the last time. A new bucket is full."""
        with self._lock:
            now_s = time.monotonic()
            try:
                bucket = self._buckets[key]
            except KeyError:
                self._buckets[key] = [capacity, now_s]
                return
            since_s = now_s - bucket[1]
            if since_s < 0:
                return  # a clock that goes back gives nothing, and takes nothing away
            tokens = bucket[0] + rate * since_s
            bucket[0] = tokens if tokens < capacity else capacity
            bucket[1] = now_s

    def consume(self, key: str | bytes, num_tokens: int) -> bool:
        """Take so many tokens, all or none. The bucket must have been replenished once."""
        with self._lock:
            bucket = self._buckets[key]
            if bucket[0] < num_tokens:
                return False
            bucket[0] -= num_tokens
            return True

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        state = vars(self).copy()
        del state["_lock"]
        with self._lock:
            state["_buckets"] = {key: bucket.copy() for key, bucket in self._buckets.items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        give_lock(self)


class TableStorage(StorageBase):
    """Buckets in a table of nanolimit's engine: of this process, or shared by all of this machine.

    All `Limiter`s with this storage have the rate and the capacity of the first.

    Tokens are taken whole, and the rate is kept as the time in which an empty bucket fills, to the
    nanosecond: that is the engine's ``algorithm="gcra"``. The time is the engine's own clock, or
    the one that is given. Keys are those of `nanolimit.RateLimiter`: str, bytes, int, UUIDs,
    addresses, and tuples of these.

    Args:
        shared: The name of a table for all processes of this machine (Linux), or its path: as for
            `nanolimit.RateLimiter`. When left out, the table is this process's own.
        max_keys: How many buckets may be other than full at a time: 1,000,000 when left out, and
            100,000 of a shared table.
        on_full: What happens to others then: as for `nanolimit.RateLimiter`.
        on_mismatch: What happens if the shared table was made for another rate or capacity: as for
            `nanolimit.RateLimiter`.
        clock: Any callable that returns seconds, such as a `nanolimit.ManualClock`.

    Thread-safe. It neither pickles nor copies.
    """

    def __init__(
        self,
        shared: str | os.PathLike[str] | Literal[True] | None = None,
        *,
        max_keys: int | None = None,
        on_full: Literal["allow", "deny", "evict"] = "allow",
        on_mismatch: Literal["error", "adopt", "replace"] = "error",
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "shared": shared,
            "max_keys": max_keys,
            "on_full": on_full,
            "on_mismatch": on_mismatch,
            "clock": clock,
        }
        self._limiter: RateLimiter | None = None
        self._asked_for: tuple[float, int] | None = None
        give_lock(self)

    @property
    def limiter(self) -> RateLimiter | None:
        """The engine's limiter, for `reset`, `stats` and the rest; None before the first use."""
        return self._limiter

    def limiter_of(self, rate: float, capacity: int) -> RateLimiter:
        """Return the engine's limiter, made now if it is not there yet.

        Raises:
            ValueError: This storage has buckets of another rate or capacity, or the engine can't
                have such.
            SharedTableError: As `nanolimit.RateLimiter`.
        """
        with self._lock:
            if self._limiter is None:
                self._limiter = RateLimiter(
                    _quota(rate, capacity), algorithm="gcra", **self._arguments
                )
                self._asked_for = (rate, capacity)
            elif self._asked_for != (rate, capacity):
                assert self._asked_for is not None
                raise ValueError(
                    "this TableStorage has buckets with rate={!r} and capacity={!r}, so another "
                    "one is needed for rate={!r} and capacity={!r}".format(
                        *self._asked_for, rate, capacity
                    )
                )
            return self._limiter

    def get_token_count(self, key: str | bytes) -> float:
        """Return how many tokens the bucket holds now, fractions included.

        The engine does not know a bucket that is full from one that was never used, so that both
        have the capacity. 0 before there is a rate.
        """
        limiter = self._limiter
        if limiter is None:
            return 0
        decision = limiter.peek(key)
        whole = decision.remaining
        if whole >= decision.limit:
            return whole
        token_s = decision.quota.per / decision.limit
        return whole + max(0.0, 1.0 - decision.refill_after / token_s)

    def replenish(self, key: str | bytes | None, rate: float, capacity: int) -> None:
        """See that the buckets have this rate and capacity. (They fill by themselves.)"""
        self.limiter_of(rate, capacity)

    def consume(self, key: str | bytes, num_tokens: int) -> bool:
        """Take so many tokens, all or none.

        Raises:
            NanolimitError: There is no rate yet.
        """
        limiter = self._limiter
        if limiter is None:
            raise NanolimitError(
                "this TableStorage has no rate yet: make a Limiter with it, or call replenish first"
            )
        try:
            return limiter.allow(key, num_tokens)
        except TypeError:
            if not isinstance(num_tokens, int):
                raise TypeError(
                    f"num_tokens must be an int with a TableStorage, "
                    f"not {type(num_tokens).__name__}"
                ) from None
            raise
        except ValueError:
            if num_tokens > limiter.quota.limit:
                return False
            raise

    def close(self) -> None:
        """Give the memory back, or sign off from the shared table: as `RateLimiter.close`."""
        if self._limiter is not None:
            self._limiter.close()

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()


def _quota(rate: float, capacity: int) -> Quota:
    """Return the engine's quota for a bucket, with errors that name the arguments of `Limiter`."""
    largest = most("gcra")
    if capacity > largest:
        raise ValueError(
            f"capacity must be <= {largest} with a TableStorage, not {shown(capacity)}"
        )
    fill_s = capacity / rate
    if not MIN_WINDOW_NS <= fill_s * NS_PER_SECOND <= MAX_WINDOW_NS:
        raise ValueError(
            f"capacity / rate, the time in which a bucket fills, must be from 1e-6 to 315576000 "
            f"seconds (ten years) with a TableStorage, not {fill_s!r}"
        )
    return Quota(capacity, fill_s)
