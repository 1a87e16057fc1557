"""The default limiter, for the impatient: ``nanolimit.allow(key)`` and nothing else.

It is made when it is first needed, 5 per minute, or by `configure` as one likes. Libraries should
make limiters of their own: this one belongs to the application.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Literal

from nanolimit.limiter import RateLimiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import timedelta

    from nanolimit.algorithm import Algorithm
    from nanolimit.backoff import Backoff
    from nanolimit.limiter import Key
    from nanolimit.quota import Quota

__all__ = ["allow", "configure"]

_limiter: RateLimiter | None = None
_making = threading.RLock()


def _renew_lock() -> None:
    global _making
    _making = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_lock)


def allow(key: Key, cost: int = 1) -> bool:
    """Say whether the request fits, by the default limiter, and count it if it does.

    The limiter is made at the first call: 5 per minute for each key, unless `configure` said
    otherwise. Arguments, result and errors are those of `RateLimiter.allow`. Thread-safe.
    """
    limiter = _limiter
    if limiter is None:
        limiter = _first()
    return limiter.allow(key, cost)


def configure(
    quota: int | str | Quota = 5,
    per: float | timedelta | None = None,
    *,
    name: str | None = "default",
    max_keys: int | None = None,
    on_full: Literal["allow", "deny", "evict"] = "allow",
    algorithm: Algorithm = "sliding-log",
    max_log: int | None = None,
    backoff: Backoff | None = None,
    exempt: Iterable[Key] = (),
    enforce: bool = True,
    track_top: int = 0,
    clock: Callable[[], float] | None = None,
    shared: str | os.PathLike[str] | Literal[True] | None = None,
    on_mismatch: Literal["error", "adopt", "replace"] = "error",
    mode: int = 0o600,
    group: int | str | None = None,
    stall_timeout: float | timedelta = 0.05,
    on_stall: Literal["allow", "deny", "wait"] = "allow",
    typical: int | None = None,
    max_limit: int | None = None,
) -> RateLimiter:
    """Make the default limiter anew, and return it.

    Call it once, at the start. Later calls are fine too: from then on `allow` asks the new
    limiter, which knows nothing of what was counted before. A bad argument changes nothing.

    Arguments and errors are those of `RateLimiter`. Thread-safe.
    """
    global _limiter
    made = RateLimiter(
        quota,
        per,
        name=name,
        max_keys=max_keys,
        on_full=on_full,
        algorithm=algorithm,
        max_log=max_log,
        backoff=backoff,
        exempt=exempt,
        enforce=enforce,
        track_top=track_top,
        clock=clock,
        shared=shared,
        on_mismatch=on_mismatch,
        mode=mode,
        group=group,
        stall_timeout=stall_timeout,
        on_stall=on_stall,
        typical=typical,
        max_limit=max_limit,
    )
    # The one before is not closed: another thread may be inside its allow() and would get an
    # error. It goes when the last one lets go of it.
    with _making:
        _limiter = made
    return made


def _first() -> RateLimiter:
    """Return the default limiter, made now if nobody was faster."""
    global _limiter
    # Made outside the lock, which is held for two lines only. Who comes second forgets his.
    made = RateLimiter(name="default")
    with _making:
        if _limiter is None:
            _limiter = made
        return _limiter
