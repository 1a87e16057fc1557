"""What the end of a gRPC call tells of its limit, as metadata.

A denial says three times when to come again, each for other readers: ``retry-after`` in seconds, as
in HTTP; ``grpc-retry-pushback-ms``, which gRPC's own clients obey if their retry policy names
RESOURCE_EXHAUSTED (gRPC proposal A6); and google.rpc.RetryInfo, of which `Denial` has the numbers.
All three are rounded up, and none is ever 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from nanolimit.clock import NS_PER_SECOND

if TYPE_CHECKING:
    from nanolimit._core import Decision
    from nanolimit.limiter import RateLimiter
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


def fields(decision: Decision, limiter: RateLimiter) -> Metadata:
    """Return ``ratelimit`` and ``ratelimit-policy`` (draft-ietf-httpapi-ratelimit-headers-11).

    Of the binding quota, what remains and for how many seconds: until a unit more is free, or the
    request that was denied would fit. Of all the limiter's quotas, how many units in how many
    seconds. A policy's name is that of the limiter; of several quotas, with the window behind it.
    A window that is not of whole seconds is rounded up.
    """
    quota = decision.quota
    quotas = limiter.quotas
    if len(quotas) == 1:
        # The one that decided, which for some keys is another than the limiter's.
        quotas = (quota,)
    else:
        quotas = tuple(quota if each.window_ns == quota.window_ns else each for each in quotas)
    policies = ", ".join(
        f"{_policy(limiter, each, len(quotas))};q={each.limit};w={_window_s(each)}"
        for each in quotas
    )
    after = decision.refill_after if decision.allowed else decision.retry_after
    left = f"r={decision.remaining};t={math.ceil(after)}"
    return (
        ("ratelimit", f"{_policy(limiter, quota, len(quotas))};{left}"),
        ("ratelimit-policy", policies),
    )


def _window_s(quota: Quota) -> int:
    return -(-quota.window_ns // NS_PER_SECOND)


def _policy(limiter: RateLimiter, quota: Quota, quotas: int) -> str:
    """Return the name of a policy as a string of RFC 9651, which has printable ASCII only."""
    name = limiter.name
    if quotas > 1:
        name += str(quota).removeprefix(str(quota.limit))
    printable = "".join(letter if " " <= letter <= "~" else "?" for letter in name)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
