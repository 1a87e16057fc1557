"""What the end of a gRPC call tells of its limit, as metadata.

A denial says three times when to come again, each for other readers: ``retry-after`` in seconds, as
in HTTP; ``grpc-retry-pushback-ms``, which gRPC's own clients obey if their retry policy names
RESOURCE_EXHAUSTED (gRPC proposal A6); and google.rpc.RetryInfo, of which `Denial` has the numbers.
All three are rounded up, and none is ever 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nanolimit._core import Decision
    from nanolimit.integrations.answer import Announcement
    from nanolimit.quota import Quota

    Metadata = tuple[tuple[str, str | bytes], ...]

__all__ = ["Denial", "fields", "no_details"]

# A6: a signed 32-bit number of milliseconds; any below 0 says not to retry at all.
_MAX_PUSHBACK_MS = (1 << 31) - 1
_NEVER = "-1"


class Denial(NamedTuple):
    """What a denied call is told."""

    message: str
    quota: Quota
    retry_ms: int

    @classmethod
    def of(cls, decision: Decision) -> Denial:
        """Return the denial of a decision that denied."""
        retry_ms = max(1, math.ceil(decision.retry_after * 1_000))
        quota = decision.quota
        return cls(
            f"rate limit of {quota} exceeded, retry after {retry_ms / 1_000:.3f} s",
            quota,
            retry_ms,
        )

    @property
    def metadata(self) -> Metadata:
        """``retry-after`` and ``grpc-retry-pushback-ms``."""
        pushback = str(self.retry_ms) if self.retry_ms <= _MAX_PUSHBACK_MS else _NEVER
        return (
            ("retry-after", str(-(-self.retry_ms // 1_000))),
            ("grpc-retry-pushback-ms", pushback),
        )


def no_details(denial: Denial, subject: str) -> Metadata:
    """Return nothing, in the place of what `nanolimit.integrations.googleapis` has to tell."""
    return ()


def fields(decision: Decision, announcement: Announcement) -> Metadata:
    """Return ``ratelimit-policy`` and ``ratelimit``, with the values that they have in HTTP."""
    return tuple(
        (name.decode(), value.decode())
        for name, value in announcement.raw(decision)
        if name.startswith(b"ratelimit")
    )
