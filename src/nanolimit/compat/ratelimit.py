"""The decorators of ratelimit 2.2.1: change the import, keep the code.

```python
from nanolimit.compat.ratelimit import limits, sleep_and_retry

@sleep_and_retry
@limits(calls=15, period=900)
def call_api(): ...
```

Without further arguments it decides as the original does, for any clock, also one that starts at 0,
is negative, goes back or is no float: a window begins where the decorator is made, and the first
call at which `period` has passed begins the next one. One decorator has one count, for all
functions and instances that it decorates; calls in a row that are denied change nothing; the
function runs outside the lock, and what it raises does not give its call back. A coroutine
function is counted when it is called, not when it is awaited. The clock is asked as often as
before: once when made, once a call, and once more where a window begins. That is a few lines of
arithmetic under a lock; nanolimit's engine has no part in it.

What the import gains are three arguments, by keyword only:

- ``algorithm="sliding-log"``: the exact window. The original's lets 2 * `calls` pass within a
  moment, at the edge of two windows; this one never more than `calls` in any stretch of `period`
  seconds. (Or any other algorithm of `nanolimit.RateLimiter`.)
- ``shared="name"``: one count for all processes of this machine that say this name. The algorithm
  is ``"fixed-window"`` then, unless another one is given. Its window begins with the first call
  that it counts, not where a decorator was made, for there are many of these.
- `on_mismatch`: what happens if the shared table was made for other `calls` or another `period`, as
  after a deployment; see `nanolimit.RateLimiter`.

What differs besides:

- A `period` that can't work is an error where the decorator is made; the original's comes with the
  first call, or (NaN) never.
- `RateLimitException` can be pickled, and so leaves a process pool as it is. The original's can't:
  ``pickle.loads(pickle.dumps(error))`` is a TypeError.
- A child that was forked while another thread was counting goes on; the original's may wait for
  ever.
- There are no modules below this one: ``ratelimit.decorators.RateLimitDecorator`` is
  `RateLimitDecorator` here. `time.sleep` is looked up at each pause, and may be patched there.

Thread-safe, with and without the GIL.
"""

from __future__ import annotations

import sys
import threading
import time
from functools import wraps
from math import floor
from typing import TYPE_CHECKING, Any

from nanolimit.algorithm import checked_algorithm, most
from nanolimit.clock import nanoseconds, shown
from nanolimit.compat.lock import give_lock
from nanolimit.limiter import RateLimiter
from nanolimit.quota import MAX_WINDOW_NS, MIN_WINDOW_NS, Quota

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from typing import Literal, ParamSpec, TypeVar

    from nanolimit.algorithm import Algorithm

    P = ParamSpec("P")
    R = TypeVar("R")

__all__ = ["RateLimitException", "limits", "rate_limited", "sleep_and_retry"]

__version__ = "2.2.1"  # of ratelimit, whose behaviour this is

# The key of the one count that a decorator has.
KEY = "ratelimit"

# In a tuple, because freezegun replaces the functions of `time` wherever they are in a module.
_DEFAULT_CLOCKS = (time.monotonic,)


class RateLimitException(Exception):
    """A call that was one too many.

    Args:
        message: What it says.
        period_remaining: Seconds until calls are let through again, in the clock's time.
    """

    period_remaining: float

    def __init__(self, message: str, period_remaining: float) -> None:
        super().__init__(message)
        self.period_remaining = period_remaining

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.period_remaining), self.__dict__


class RateLimitDecorator:
    """At most so many calls in a period. Known as `limits`.

    Args:
        calls: Calls that a period lets through: rounded down, and 1 at least.
        period: Seconds, in the clock's time. Without `algorithm` and `shared`, 0 or less is no
            limit.
        clock: Any callable that tells the time. `time.monotonic` when left out; with `algorithm`
            or `shared` then the engine's own clock, which no test can freeze. All who share a
            count give one or none of them does.
        raise_on_limit: Whether a call too many raises `RateLimitException`. If not, the function
            is not called, and None returned.
        algorithm: How nanolimit counts: ``"sliding-log"``, exact; or another one. When left out, as
            ratelimit does; with `shared`, ``"fixed-window"``.
        shared: The name of one count for all processes of this machine (Linux), or the path of its
            table: as for `nanolimit.RateLimiter`.
        on_mismatch: ``"error"``, ``"adopt"`` or ``"replace"``, with `shared` only: as for
            `nanolimit.RateLimiter`.

    Raises:
        TypeError: `calls`, `period`, `clock` or another argument is of the wrong type; or
            `on_mismatch` is given without `shared`.
        ValueError: `calls` is NaN; `period` is NaN; or one of them is out of the engine's range.
        OverflowError: `calls` is infinite.
        SharedTableError: As `nanolimit.RateLimiter`.

    Attributes:
        limiter: The `nanolimit.RateLimiter` that counts, under the key ``"ratelimit"``; None where
            ratelimit's arithmetic does. Only then there are `num_calls` and `last_reset`.

    Thread-safe. One call costs well under a microsecond.
    """

    limiter: RateLimiter | None
    clamped_calls: int
    period: float
    clock: Callable[[], float]
    raise_on_limit: bool
    last_reset: float
    num_calls: int
    lock: threading.RLock

    def __init__(
        self,
        calls: float = 15,
        period: float = 900,
        clock: Callable[[], float] = _DEFAULT_CLOCKS[0],
        raise_on_limit: bool = True,
        *,
        algorithm: Algorithm | None = None,
        shared: str | os.PathLike[str] | Literal[True] | None = None,
        on_mismatch: Literal["error", "adopt", "replace"] = "error",
    ) -> None:
        self.clamped_calls = max(1, min(sys.maxsize, floor(calls)))
        self.period = period
        self.clock = clock
        self.raise_on_limit = raise_on_limit
        if algorithm is not None or shared is not None:
            own = None if clock in _DEFAULT_CLOCKS else clock
            self.limiter = _limiter(self.clamped_calls, period, own, algorithm, shared, on_mismatch)
            return
        if on_mismatch != "error":
            raise TypeError("on_mismatch needs shared=: a count of one process has no such thing")
        self.limiter = None
        self.last_reset = clock()
        self.num_calls = 0
        _check_period(period, self.last_reset)
        give_lock(self)

    def __call__(self, func: Callable[P, R]) -> Callable[P, R]:
        """Return the function with the limit around it."""
        return self._around(func) if self.limiter is None else self._around_asking(func)

    def _around(self, func: Callable[P, R]) -> Callable[P, R]:
        """Count as ratelimit does. (In the wrapper itself: a call more would be a tenth more.)"""

        @wraps(func)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.lock:
                # The clock may be Python, so that a signal handler may run in it and count calls:
                # what is read of the state is read after it, and a new window has its count first.
                elapsed = self.clock() - self.last_reset
                remaining = self.period - elapsed
                if remaining <= 0:
                    self.num_calls = 0
                    self.last_reset = self.clock()
                self.num_calls += 1
                fits = self.num_calls <= self.clamped_calls
            if fits:
                return func(*args, **kwargs)
            self._deny(remaining)
            return None  # type: ignore[return-value]  # for those who asked for it

        return wrapper

    def _around_asking(self, func: Callable[P, R]) -> Callable[P, R]:
        """Count in nanolimit's engine."""
        assert self.limiter is not None
        check = self.limiter.check

        @wraps(func)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            decision = check(KEY)
            if decision.allowed:
                return func(*args, **kwargs)
            self._deny(decision.retry_after)
            return None  # type: ignore[return-value]  # for those who asked for it

        return wrapper

    def _deny(self, remaining: float) -> None:
        """Raise, unless nobody wants that."""
        if self.raise_on_limit:
            raise RateLimitException("too many calls", remaining)

    def _renew_lock(self) -> None:
        self.lock = threading.RLock()


limits = RateLimitDecorator
rate_limited = RateLimitDecorator


def sleep_and_retry(func: Callable[P, R]) -> Callable[P, R]:
    """Have a function that `limits` decorates sleep and try again, instead of raising.

    It blocks its thread, also under a coroutine function: those take `RateLimiter.limit` with
    ``wait=True``.

    Args:
        func: The function. Whichever of the functions that it calls raises `RateLimitException`,
            the whole of it is called again.
    """

    @wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        while True:
            try:
                return func(*args, **kwargs)
            except RateLimitException as denied:
                pause_s = denied.period_remaining
            time.sleep(pause_s)

    return wrapper


def _check_period(period: Any, start: Any) -> None:
    """See that the clock's times can be taken from the period, as the first call will."""
    if period != period:
        raise ValueError("period must be a number of seconds, not NaN")
    try:
        bool(period - (start - start) <= 0)
    except TypeError:
        raise TypeError(
            f"period must be a number of seconds, as the clock tells them "
            f"({type(start).__name__}), not {type(period).__name__}"
        ) from None


def _limiter(
    calls: int,
    period: Any,
    clock: Callable[[], float] | None,
    algorithm: Algorithm | None,
    shared: str | os.PathLike[str] | Literal[True] | None,
    on_mismatch: Literal["error", "adopt", "replace"],
) -> RateLimiter:
    """Make the engine's limiter, with errors that name the arguments of `limits`."""
    algorithm = "fixed-window" if algorithm is None else checked_algorithm(algorithm)
    largest = most(algorithm)
    if calls > largest:
        raise ValueError(
            f"calls must be <= {largest} with algorithm= or shared=, not {shown(calls)}"
        )
    if not MIN_WINDOW_NS <= nanoseconds("period", period) <= MAX_WINDOW_NS:
        raise ValueError(
            f"period must be from 1e-6 to 315576000 seconds (ten years) with algorithm= or "
            f"shared=, not {shown(period)}"
        )
    return RateLimiter(
        Quota(calls, period),
        max_keys=1,
        on_full="deny",
        algorithm=algorithm,
        clock=clock,
        shared=shared,
        on_mismatch=on_mismatch,
    )
