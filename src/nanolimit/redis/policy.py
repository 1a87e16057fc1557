"""Policy: what a request is told when the store can't be asked.

``"local"`` decides by a limiter of this process, or of this machine, that has a share of the limit:
what it counts is never sent to the store later. That of a process is made when it is first needed;
a shared one at once, so that what is wrong with its table is told to who makes it, and not in the
middle of an outage.
"""

from __future__ import annotations

import math
import os
import threading
from typing import TYPE_CHECKING

from nanolimit import _core, telemetry
from nanolimit.clock import NS_PER_SECOND, shown
from nanolimit.errors import LimiterClosedError
from nanolimit.limiter import RateLimiter, hide
from nanolimit.quota import Quota
from nanolimit.redis.errors import StoreUnavailableError
from nanolimit.redis.fork import renew_after_fork

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from nanolimit._core import Decision
    from nanolimit.limiter import Key
    from nanolimit.redis.fault import Unavailable

    OnError = Literal["local", "allow", "deny", "raise"]

__all__ = ["CHOICES", "Policy", "checked_on_error", "share"]

CHOICES = ("local", "allow", "deny", "raise")

# Keys that the local limiter counts at a time, as a private RateLimiter does.
_MAX_KEYS = 1_000_000


def checked_on_error(on_error: object) -> str:
    """Return it, if it is one of `CHOICES`."""
    if not isinstance(on_error, str):
        raise TypeError(f"on_error must be a str, not {type(on_error).__name__}")
    if on_error not in CHOICES:
        raise ValueError(
            f"on_error must be 'local', 'allow', 'deny' or 'raise', not {shown(on_error)}"
        )
    return on_error


def share(quota: Quota, nodes: int) -> Quota:
    """Return what one of so many processes may allow by itself: rounded up, and so never nothing.

    By its integers: `per` as a float does not hold every nanosecond of a long window.
    """
    return Quota._of(-(-quota.limit // nodes), quota.window_ns)


class Policy:
    """The answers of one limiter while it is without its store. Thread-safe."""

    __slots__ = (
        "__weakref__", "_closed", "_local", "_making", "_most", "_name", "_shares", "_tightest",
        "on_error", "pause_s",
    )  # fmt: skip

    on_error: str
    """What was chosen."""

    pause_s: float
    """Seconds after which it is worth to ask again."""

    def __init__(
        self,
        on_error: str,
        quotas: tuple[Quota, ...],
        nodes: int,
        name: str,
        pause_s: float,
        shared: str | os.PathLike[str] | None = None,
    ) -> None:
        self.on_error = on_error
        self.pause_s = pause_s
        self._name = name
        self._tightest = min(quotas, key=lambda quota: quota.limit)
        self._shares = tuple(share(quota, nodes) for quota in quotas)
        # The largest cost that a share can ever hold.
        self._most = min(quota.limit for quota in self._shares)
        self._closed = False
        self._local: RateLimiter | None = None
        if shared is not None:
            # A deployment with another limit or `nodes` goes on with the table.
            self._local = RateLimiter(self._shares, name=name, shared=shared, on_mismatch="replace")
            hide(self._local)
        # Reentrant, like every lock of the face.
        self._making = threading.RLock()
        renew_after_fork(self)

    def allow(self, key: Key, cost: int, error: Unavailable) -> bool:
        """Decide, count it here if that is what `on_error` says, and tell those who listen.

        `error` is why the store was not asked, or did not answer.

        Raises:
            StoreUnavailableError: `on_error` is ``"raise"``.
        """
        self._raise_if_wanted(error)
        if self.on_error == "local" and cost <= self._most:
            return self._limiter().allow(key, cost)
        return self._told(self.on_error == "allow", key, cost)

    def check(self, key: Key, cost: int, error: Unavailable) -> Decision:
        """Do what `allow` does, and return a `Decision`."""
        self._raise_if_wanted(error)
        if self.on_error == "local" and cost <= self._most:
            return _degraded(self._limiter().check(key, cost))
        allowed = self.on_error == "allow"
        if cost:
            self._told(allowed, key, cost)
        return self._decision(allowed, cost)

    def peek(self, key: Key, cost: int, error: Unavailable) -> Decision:
        """Say what `check` would say, and count nothing."""
        self._raise_if_wanted(error)
        if self.on_error == "local" and cost <= self._most:
            return _degraded(self._limiter().peek(key, cost))
        # What fits now, before the request: as `RateLimiter.peek` has it.
        return self._decision(self.on_error == "allow", cost, used=0)

    def allow_many(self, keys: Sequence[Key], cost: int, error: Unavailable) -> list[bool]:
        """Do what `allow` does for each key, in order."""
        self._raise_if_wanted(error)
        if self.on_error == "local" and cost <= self._most:
            return self._limiter().allow_many(keys, cost)
        allowed = self.on_error == "allow"
        for key in keys:
            self._told(allowed, key, cost)
        return [allowed] * len(keys)

    def attempt(self, key: Key, cost: int, error: Unavailable) -> tuple[bool, float]:
        """Decide for somebody who waits: allowed, or after how many seconds to ask again.

        A request that waits is not a denied one: nobody is told of it.
        """
        decision = self.claim(key, cost, error)
        return decision.allowed, self.wait_s(decision)

    def claim(self, key: Key, cost: int, error: Unavailable) -> Decision:
        """Decide for somebody who waits."""
        self._raise_if_wanted(error)
        if self.on_error == "local" and cost <= self._most:
            limiter = self._limiter()
            decision = limiter.peek(key, cost)
            if decision.allowed:
                decision = limiter.check(key, cost)
            return _degraded(decision)
        allowed = self.on_error == "allow"
        if allowed:
            self._told(True, key, cost)
        return self._decision(allowed, cost)

    def wait_s(self, decision: Decision) -> float:
        """Return after how many seconds somebody who waits is to ask again."""
        # The store may be back before the share is free again.
        return 0.0 if decision.allowed else min(decision.retry_after, self.pause_s)

    def reset(self, key: Key, error: Unavailable | None = None) -> bool:
        """Forget what was counted here; whether there was something.

        Raises:
            StoreUnavailableError: There is an `error`, and `on_error` is ``"raise"``.
        """
        if error is not None:
            self._raise_if_wanted(error)
        local = self._local
        return local is not None and local.reset(key)

    def close(self) -> None:
        """Give the local limiter's memory back, and make no other one."""
        with self._making:
            self._closed = True
            local, self._local = self._local, None
        if local is not None:
            local.close()

    def after_fork(self) -> None:
        """In the child: a thread of the parent may have held the lock."""
        self._making = threading.RLock()

    def _raise_if_wanted(self, error: Unavailable) -> None:
        if self.on_error == "raise":
            raise StoreUnavailableError(self._name, error.reason, error.outcome_unknown) from error

    def _limiter(self) -> RateLimiter:
        local = self._local
        if local is None:
            with self._making:
                local = self._local
                if local is None:
                    if self._closed:
                        raise LimiterClosedError(
                            f"limiter {self._name!r} was closed while the store was asked"
                        )
                    # By its name, telemetry hears of what it decides as of the others.
                    local = RateLimiter(self._shares, name=self._name, max_keys=_MAX_KEYS)
                    hide(local)
                    self._local = local
        return local

    def _told(self, allowed: bool, key: Key, cost: int) -> bool:
        event = "allowed" if allowed else "denied"
        if telemetry.is_wanted(event):
            telemetry.emit(event, cost, self._name, key)
        return allowed

    def _decision(self, allowed: bool, cost: int, used: int | None = None) -> Decision:
        """Return a decision without a log: nothing is known of the key."""
        if not cost and not allowed:  # it always fits, but nothing else does
            return _made(self._tightest, True, 0, self._tightest.limit)
        if allowed:
            quota = self._tightest
            return _made(quota, True, 0, cost if used is None else used)
        # Of "local", the share is too small for this cost: its quota is what denies.
        quota = min(self._shares, key=lambda quota: quota.limit)
        if self.on_error != "local":
            quota = self._tightest
        return _made(quota, False, math.ceil(self.pause_s * NS_PER_SECOND), quota.limit)


def _made(quota: Quota, allowed: bool, retry_ns: int, used: int) -> Decision:
    # Ticks of one nanosecond. Denied, it is as if all was used, and fits again after `retry_ns`.
    window_ns = quota.window_ns
    return _core._decision(
        allowed,
        allowed,  # untracked: nothing is known of when it is free again
        quota,
        1,
        window_ns,
        math.inf,  # the time is known in nanoseconds
        window_ns,
        retry_ns,
        retry_ns,
        retry_ns,
        used,
        quota.limit,
        degraded=True,
    )


def _degraded(decision: Decision) -> Decision:
    """Return the same decision, marked as made without the store."""
    make, values = decision.__reduce__()
    return make(*values[:-1], True)  # type: ignore[operator, no-any-return, index]
