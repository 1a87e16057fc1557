"""Backoff: whoever keeps knocking waits ever longer.

The core keeps score (core/record.h): a key's denials in a row, and how often it was blocked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanolimit.clock import NS_PER_SECOND, nanoseconds, shown
from nanolimit.quota import MAX_WINDOW_NS, whole_number

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["Backoff"]

_MAX_AFTER = 0xFFFF
_MAX_FORGIVE_S = 0xFFFF_FFFF // 1000  # the core counts it in milliseconds, in 32 bits


@dataclass(frozen=True)
class Backoff:
    """The penalty for denials in a row: blocks, each longer than the one before.

    A key that is denied `after` times in a row is blocked for `base` seconds. Once that is over it
    is decided by its log again; after as many denials in a row it is blocked for
    ``base * factor``, then ``base * factor**2``, and so on, `maximum` at most. A request that is
    allowed ends a row. When `forgive` seconds have passed since the last denial, or since the end
    of the last block, all is forgotten.

    Args:
        after: Denials in a row that lead to a block, 1 to 65,535.
        base: The first block, in seconds above 0; or a `timedelta`.
        factor: How many times as long the next block is, 1 or more.
        maximum: The longest block, in seconds: `base` or more, and ten years at most.
        forgive: Seconds without a denial, above 0 and at most 4,294,967 (49 days).
        prolong: Whether each request of a blocked key begins its block anew. It costs more than a
            plain denial then, for it writes.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.
    """

    after: int = 3
    base: float | timedelta = 1.0
    factor: float = 2.0
    maximum: float | timedelta = 3600.0
    forgive: float | timedelta = 600.0
    prolong: bool = False

    def __post_init__(self) -> None:
        after = whole_number("after", self.after)
        if not 1 <= after <= _MAX_AFTER:
            raise ValueError(f"after must be from 1 to {_MAX_AFTER}, got {shown(after)}")
        base_ns = nanoseconds("base", self.base)
        if not 0 < base_ns <= MAX_WINDOW_NS:
            raise ValueError(
                f"base must be > 0 and <= 315576000 seconds (ten years), got {shown(self.base)}"
            )
        if isinstance(self.factor, bool) or not isinstance(self.factor, (int, float)):
            raise TypeError(f"factor must be a number, not {type(self.factor).__name__}")
        if not (self.factor >= 1 and math.isfinite(self.factor)):
            raise ValueError(f"factor must be >= 1 and finite, got {shown(self.factor)}")
        maximum_ns = nanoseconds("maximum", self.maximum)
        if not base_ns <= maximum_ns <= MAX_WINDOW_NS:
            raise ValueError(
                f"maximum must be from base={shown(self.base)} to 315576000 seconds (ten years), "
                f"got {shown(self.maximum)}"
            )
        if not 0 < nanoseconds("forgive", self.forgive) <= _MAX_FORGIVE_S * NS_PER_SECOND:
            raise ValueError(
                f"forgive must be > 0 and <= {_MAX_FORGIVE_S} seconds (49 days), "
                f"got {shown(self.forgive)}"
            )
        if not isinstance(self.prolong, bool):
            raise TypeError(f"prolong must be a bool, not {type(self.prolong).__name__}")

    @property
    def forgive_ms(self) -> int:
        """`forgive` in whole milliseconds, rounded up."""
        return -(-nanoseconds("forgive", self.forgive) // 1_000_000)

    def seconds(self, level: int) -> float:
        """Return how long a key is blocked that was blocked `level` times before."""
        longest = nanoseconds("maximum", self.maximum) / NS_PER_SECOND
        try:
            block = nanoseconds("base", self.base) / NS_PER_SECOND * self.factor**level
        except OverflowError:
            return longest
        return min(block, longest)
