"""Storages of the `limits` package on nanolimit's engine; Flask-Limiter and slowapi stand on it.

One import registers them, and a URI takes them:

```python
import nanolimit.compat.limits
from limits.storage import storage_from_string

storage = storage_from_string("nanolimit://")                   # counts for this process
storage = storage_from_string("async+nanolimit://")             # the same for limits.aio
```

Where a table is named, all processes of the machine count together (Linux):

- ``nanolimit://`` is private memory.
- ``nanolimit:///run/app/limits`` is the path that the shared tables' names begin with.
- ``nanolimit://name`` is such a name in the user's own directory, ``$NANOLIMIT_DIR`` or
  ``/dev/shm/nanolimit-<uid>``.

docs/limits.md has the options that may follow, and how to use it with Flask-Limiter and slowapi.

What differs from ``memory://`` of limits 5.8; all else is compared call by call, at any times, in
tests/integration/test_compat_machine.py, and limits' own tests pass:

- A hit costs the same whatever the number of users, and no thread sweeps through them
  (``python benchmarks/web.py`` measures it).
- At the instant at which a request is exactly a window old it counts, for `test` and the stats of
  a moving window too. ``memory://`` denies by it and tells that its place is free; redis does as
  we do.
- Threads, tasks and processes never get one too many, nor are two denied where one fits. (But a
  request that reads the time just before a sliding window of the epoch ends, and is counted just
  after, may not be seen by those of the next window.)
- Limits go up to 16,777,216. Above, `acquire_entry` and `acquire_sliding_window_entry` raise a
  ValueError, and `incr` tells `sys.maxsize`.
- A key's moving window is that of its limit and window, and its fixed window that of its window:
  limits' own keys contain both, so only direct calls of a storage can tell.
- ``incr(key, expiry, 0)`` begins no window. Fractions of a unit are rounded up to one.
- With the engine's clock, stats are computed from two clocks read one after the other: they are
  some microseconds off. With ``clock=python`` time is counted in whole microseconds, and in
  windows above 1,073 s in ticks (5 us of an hour, 100 us of a day); it may not be before 1970.
- `clear` forgets the key's sliding windows too.
- A pickle holds no counts. Where the tables are, it counts in them; elsewhere it begins anew.
"""

from __future__ import annotations

from inspect import unwrap
from typing import TYPE_CHECKING, Any

from nanolimit.compat.address import parsed
from nanolimit.compat.counts import Counts, counts_of
from nanolimit.errors import NanolimitError

try:
    from limits.aio import storage as aio
    from limits.errors import ConfigurationError, StorageError
    from limits.storage.base import (
        MovingWindowSupport,
        SlidingWindowCounterSupport,
        Storage,
        TimestampedSlidingWindow,
    )
except ImportError as _error:
    raise ImportError(
        "nanolimit.compat.limits needs limits >= 5: pip install 'nanolimit[limits]'"
    ) from _error

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["AsyncNanolimitStorage", "NanolimitStorage"]


class _Face:
    """What the two storages have in common: how they are made, pickled and wrapped."""

    wrap_exceptions: bool
    _counts: Counts
    # allow(key, amount) by limit and window: the way of a hit.
    _moving: Any

    def __init__(
        self,
        uri: str | None = None,
        wrap_exceptions: bool = False,
        **options: float | str | bool,
    ) -> None:
        try:
            counts = Counts(parsed("nanolimit://" if uri is None else uri, options))
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        self._count_in(counts)
        super().__init__(uri, wrap_exceptions=wrap_exceptions)  # type: ignore[call-arg]

    def _count_in(self, counts: Counts) -> None:
        self._counts = counts
        self._moving = counts.moving

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        """What is wrapped in a `limits.errors.StorageError` if that was asked for."""
        return NanolimitError

    def _raise(self, error: NanolimitError) -> NoReturn:
        """Raise the error as limits would, for the methods that do without its wrapper."""
        if self.wrap_exceptions:
            raise StorageError(error) from error
        raise error

    def __getstate__(self) -> dict[str, Any]:
        # Tables don't travel: what does is where they are, and which of this process they are.
        state = self.__dict__.copy()
        del state["_moving"]
        state["_counts"] = (self._counts.address, self._counts.token)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._count_in(counts_of(*state["_counts"]))


class NanolimitStorage(
    _Face, Storage, MovingWindowSupport, SlidingWindowCounterSupport, TimestampedSlidingWindow
):
    """The storage of ``nanolimit://``, for the strategies of `limits.strategies`.

    Args:
        uri: Where it counts; see the module. ``nanolimit://`` when left out.
        wrap_exceptions: Whether a `NanolimitError` is raised as a `limits.errors.StorageError`.
        options: The options of the URI by keyword.

    Raises:
        ConfigurationError: The URI or an option is not understood. The message names it.
        SharedTableError: This platform has no shared tables.

    Thread-safe. After a fork the child goes on with a copy of its own, or with the same tables if
    they are shared. A pickle of it says where it counts and not what: unpickled where the tables
    are (in the same process, or anywhere on the machine if they are shared) it counts in them, and
    elsewhere it begins anew.
    """

    STORAGE_SCHEME: list[str] | None = ["nanolimit"]  # noqa: RUF012  # limits declares it so

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count in the key's fixed window, and return how many there are now.

        It goes on counting beyond any limit, up to 16,777,216; more is `sys.maxsize`.
        """
        try:
            return self._counts.incr(key, expiry, amount)
        except NanolimitError as error:
            self._raise(error)

    def get(self, key: str) -> int:
        """Return how many requests are counted in the key's fixed window."""
        return self._counts.get(key)

    def get_expiry(self, key: str) -> float:
        """Return the epoch at which the key's fixed window ends; now, if there is none."""
        return self._counts.get_expiry(key)

    def check(self) -> bool:
        """Return True: there is no server that could be down."""
        return True

    def reset(self) -> int | None:
        """Forget all keys, of all processes if they share tables, and return how many there were.

        Walks the tables in small steps without the GIL.
        """
        return self._counts.reset()

    def clear(self, key: str) -> None:
        """Forget what the key has used, by whichever strategy."""
        self._counts.clear(key)

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count `amount` in the key's moving window if that many fit.

        Raises:
            ValueError: `limit` is above 16,777,216, or `expiry` no whole number of seconds.
        """
        try:
            return self._moving[limit, expiry](key, amount)  # type: ignore[no-any-return]
        except ValueError:
            if amount > limit:
                return False
            raise
        except NanolimitError as error:
            self._raise(error)

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Return the epoch of the oldest request that counts, and how many do; or now, and 0."""
        try:
            return self._counts.moving_window(key, limit, expiry)
        except NanolimitError as error:
            self._raise(error)

    def acquire_sliding_window_entry(
        self, key: str, limit: int, expiry: int, amount: int = 1
    ) -> bool:
        """Count `amount` if the current and the weighted previous window leave room for it."""
        try:
            return self._counts.acquire_sliding(key, limit, expiry, amount)
        except NanolimitError as error:
            self._raise(error)

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Return previous count, seconds that it has left, current count, and its seconds."""
        return self._counts.sliding(key, expiry)

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget the key's sliding window counters of that length."""
        try:
            self._counts.clear_sliding(key, expiry)
        except NanolimitError as error:  # limits 5.0 does not wrap this one
            self._raise(error)


class AsyncNanolimitStorage(
    _Face,
    aio.Storage,
    aio.MovingWindowSupport,
    aio.SlidingWindowCounterSupport,
    TimestampedSlidingWindow,
):
    """The storage of ``async+nanolimit://``, for the strategies of `limits.aio.strategies`.

    As `NanolimitStorage`. Nothing is waited for: a call is done when it is made, in the event
    loop's thread, and takes a microsecond or two.
    """

    STORAGE_SCHEME: list[str] | None = ["async+nanolimit"]  # noqa: RUF012  # limits declares it so

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Do as `NanolimitStorage.incr`."""
        try:
            return self._counts.incr(key, expiry, amount)
        except NanolimitError as error:
            self._raise(error)

    async def get(self, key: str) -> int:
        """Do as `NanolimitStorage.get`."""
        return self._counts.get(key)

    async def get_expiry(self, key: str) -> float:
        """Do as `NanolimitStorage.get_expiry`."""
        return self._counts.get_expiry(key)

    async def check(self) -> bool:
        """Do as `NanolimitStorage.check`."""
        return True

    async def reset(self) -> int | None:
        """Do as `NanolimitStorage.reset`."""
        return self._counts.reset()

    async def clear(self, key: str) -> None:
        """Do as `NanolimitStorage.clear`."""
        self._counts.clear(key)

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Do as `NanolimitStorage.acquire_entry`."""
        try:
            return self._moving[limit, expiry](key, amount)  # type: ignore[no-any-return]
        except ValueError:
            if amount > limit:
                return False
            raise
        except NanolimitError as error:
            self._raise(error)

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Do as `NanolimitStorage.get_moving_window`."""
        try:
            return self._counts.moving_window(key, limit, expiry)
        except NanolimitError as error:
            self._raise(error)

    async def acquire_sliding_window_entry(
        self, key: str, limit: int, expiry: int, amount: int = 1
    ) -> bool:
        """Do as `NanolimitStorage.acquire_sliding_window_entry`."""
        try:
            return self._counts.acquire_sliding(key, limit, expiry, amount)
        except NanolimitError as error:
            self._raise(error)

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Do as `NanolimitStorage.get_sliding_window`."""
        return self._counts.sliding(key, expiry)

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Do as `NanolimitStorage.clear_sliding_window`."""
        try:
            self._counts.clear_sliding(key, expiry)
        except NanolimitError as error:
            self._raise(error)


# limits wraps each method of a storage in one that wraps its errors. That costs a frame of Python
# a call; these do it themselves. A subclass is wrapped again.
for _storage in (NanolimitStorage, AsyncNanolimitStorage):
    for _verb in (
        "incr",
        "acquire_entry",
        "get_moving_window",
        "acquire_sliding_window_entry",
    ):
        setattr(_storage, _verb, unwrap(vars(_storage)[_verb]))
