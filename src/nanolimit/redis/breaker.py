"""A circuit breaker: after some failures in a row nobody tries for a while, then one does."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Literal

from nanolimit.redis.fork import renew_after_fork

if TYPE_CHECKING:
    from nanolimit.redis.cluster import Address

__all__ = ["Breaker", "State"]

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Says whether the server may be asked, and is told how that went.

    Closed, everybody asks. After `failures` in a row it is open: nobody asks for `pause_s`, which
    costs no I/O. Then it is half-open: one asks, the others don't; if that goes well it is
    closed, if not it is open for another `pause_s`. A probe of which nothing is heard for
    `probe_timeout_s` is given up, and another may go.

    What has one origin is one failure, whoever reports it: a connection that breaks takes along
    all requests that wait on it, and the next one may be well.

    Thread-safe. Time is an argument: seconds of any clock that does not run backwards.

    Args:
        failures: How many in a row open it.
        pause_s: Seconds that it is open.
        probe_timeout_s: Seconds after which a silent probe counts as lost; left out, `pause_s`.
        node: Whom it is for, of a cluster.

    Raises:
        ValueError: A number is out of range.
    """

    __slots__ = (
        "__weakref__", "_failed", "_lock", "_origins", "_probe_timeout_s", "_state", "_ticket",
        "_until", "failures", "node", "opened_s", "pause_s", "reason",
    )  # fmt: skip

    failures: int
    pause_s: float
    node: Address | None

    opened_s: float
    """When it was opened last, by whatever clock `failed` was told."""

    reason: str
    """Why the server failed last, as far as who reports has said it here."""

    def __init__(
        self,
        failures: int = 5,
        pause_s: float = 1.0,
        probe_timeout_s: float | None = None,
        node: Address | None = None,
    ) -> None:
        if isinstance(failures, bool) or not isinstance(failures, int):
            raise TypeError(f"failures must be an int, not {type(failures).__name__}")
        if failures < 1:
            raise ValueError(f"failures must be at least 1, not {failures}")
        if not (math.isfinite(pause_s) and pause_s > 0):
            raise ValueError(f"pause_s must be a positive number of seconds, not {pause_s!r}")
        if probe_timeout_s is None:
            probe_timeout_s = pause_s
        if not (math.isfinite(probe_timeout_s) and probe_timeout_s > 0):
            raise ValueError(
                f"probe_timeout_s must be a positive number of seconds, not {probe_timeout_s!r}"
            )
        self.failures = failures
        self.pause_s = float(pause_s)
        self._probe_timeout_s = float(probe_timeout_s)
        self.node = node
        self.opened_s = 0.0
        self.reason = ""
        # Reentrant, like every lock of the face: a signal handler may ask the limiter as well.
        self._lock = threading.RLock()
        self._state: State = "closed"
        # Grows whenever it opens or a probe goes: what earlier callers report is old news then.
        self._ticket = 0
        self._failed = 0
        # Of those failures, as far as they have one: fewer than `failures`.
        self._origins: list[object] = []
        self._until = 0.0
        renew_after_fork(self)

    @property
    def state(self) -> State:
        """As of the last call; an open one whose pause is over is half-open with the next."""
        return self._state

    @property
    def why(self) -> str:
        """The reason, and of a node its name as well."""
        name = str(self.node)
        if self.node is None or name in self.reason:
            return self.reason
        return f"{name}: {self.reason}"

    def enter(self, now: float) -> int | None:
        """Ask for leave to ask the server.

        Returns:
            A ticket to report with, or None: not now. Whoever has a ticket reports exactly once,
            by `succeeded`, `failed` or `abandoned`.
        """
        # Unlocked, in this order: if another opens it in between, the ticket is out of date.
        ticket = self._ticket
        if self._state == "closed":
            return ticket
        with self._lock:
            if self.state == "closed":  # another was faster
                return self._ticket
            if now < self._until:
                return None
            self._state = "half-open"
            self._until = now + self._probe_timeout_s
            self._ticket += 1
            return self._ticket

    def succeeded(self, ticket: int) -> bool:
        """Report that the server answered.

        Returns:
            Whether this closed it.
        """
        if self._state == "closed" and not self._failed:
            return False
        with self._lock:
            if ticket != self._ticket:
                return False
            self._failed = 0
            self._origins.clear()
            if self._state == "closed":
                return False
            self._state = "closed"
            return True

    def failed(self, ticket: int, now: float, origin: object = None) -> bool:
        """Report that it did not.

        Args:
            ticket: What `enter` gave.
            now: The time.
            origin: Of what the failure is a part, by its identity; None: of nothing.

        Returns:
            Whether this opened it: not for a probe that failed, for it was open before.
        """
        with self._lock:
            if ticket != self._ticket:
                return False
            was = self._state
            if was == "closed":
                if origin is not None:
                    if any(each is origin for each in self._origins):
                        return False
                    self._origins.append(origin)
                self._failed += 1
                if self._failed < self.failures:
                    return False
            self._origins.clear()
            self._state = "open"
            self._until = now + self.pause_s
            self._ticket += 1
            if was == "closed":
                self.opened_s = now
            return was == "closed"

    def abandoned(self, ticket: int) -> None:
        """Report that nothing is known, as of a cancelled call. After a probe, the next may go."""
        with self._lock:
            if ticket == self._ticket and self._state == "half-open":
                self._state = "open"
                self._until = -math.inf
                self._ticket += 1

    def forgive(self) -> bool:
        """Close it: nobody asks there any more. Whoever still has a ticket is not heard.

        Returns:
            Whether this closed it.
        """
        with self._lock:
            was = self._state
            self._failed = 0
            self._origins.clear()
            self._state = "closed"
            self._ticket += 1
            return was != "closed"

    def after_fork(self) -> None:
        """In the child: another thread of the parent may have held the lock."""
        self._lock = threading.RLock()
        self._origins = []
