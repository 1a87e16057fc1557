"""The engine's doors for tests: what no user needs, behind one name each."""

from __future__ import annotations

from typing import Any

from nanolimit import RateLimiter


def verify(limiter: RateLimiter) -> None:
    """Walk the whole table; AssertionError names the invariant that does not hold."""
    limiter._engine._verify()


def fingerprint(limiter: RateLimiter, key: Any) -> int:
    """The 128 bits that stand for the key in this table."""
    return limiter._engine._fingerprint(key)


def is_heard(limiter: RateLimiter) -> bool:
    """Whether its checks go by way of the handlers, for somebody wants its events."""
    return limiter._engine._is_heard()
