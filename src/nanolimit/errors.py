"""The exceptions that tell of the state of the world.

A bad argument is a ValueError or a TypeError as everywhere in Python. What stands here is the
rest: a limiter that was closed, a shared table that can't be used, a limit that somebody asked to
be raised as an exception.

This module is a leaf. It imports nothing of the package, because both sides stand on it: the face
above, and `nanolimit._core` below, which raises `LimiterClosedError` and `SharedTableError` and may
not import the face.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanolimit._core import Decision

__all__ = [
    "LimiterClosedError",
    "NanolimitError",
    "RateLimitExceeded",
    "ReservationClosedError",
    "SharedTableError",
]


class NanolimitError(Exception):
    """The base of everything that nanolimit raises about the state of the world.

    ``except NanolimitError`` catches all of it and no programming mistake: bad arguments are
    ``ValueError`` and ``TypeError``, which are not below this class.
    """


class LimiterClosedError(NanolimitError):
    """A limiter was used after `RateLimiter.close`.

    Its `name`, `quota`, `closed` and `repr` go on working; closing it again is no error.
    """


class ReservationClosedError(NanolimitError):
    """A reservation was settled twice, or one that was denied, or an attempt outside its block."""


class SharedTableError(NanolimitError):
    """The table that processes share can't be used, or not as it was asked for.

    The message names the file, what is wrong with it and what was expected, and the command or the
    argument that mends it. `RateLimiter` raises it when it is made; its methods raise it only where
    a process can't join the table after a fork (there are too many, or it has no right to the
    file), and `reset`, `clear` and `evict` where a stopped process holds a part of it.
    """


class RateLimitExceeded(NanolimitError):
    """A denial as an exception, for those who want to raise one.

    A denial is a value; it is raised only where that was asked for: by `RateLimiter.slot` when the
    time is up, by a function that `RateLimiter.limit` decorates, and by code of one's own that
    turns denials into exceptions. Those who catch it need to know one class.

    Args:
        decision: The `Decision` that denied.
        key: Whom it denied, if that is known. It is kept, but does not show in the message:
            keys are often personal data and messages end up in logs.

    Example:
        >>> decision = limiter.check("user:42")
        >>> if not decision:
        ...     raise RateLimitExceeded(decision, "user:42")
    """

    decision: Decision
    key: object

    def __init__(self, decision: Decision, key: object = None) -> None:
        # Both go to `args`, so that the exception can be copied like any other.
        super().__init__(decision, key)
        self.decision = decision
        self.key = key

    @property
    def retry_after(self) -> float:
        """Seconds until the same request would fit, as the decision has it."""
        return self.decision.retry_after

    def __str__(self) -> str:
        return f"limit of {self.decision.quota} exceeded, retry after {self.retry_after:.3f} s"
