"""What can be looked at: a limiter of this process, or a shared table seen from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from nanolimit._core import Stats
    from nanolimit.quota import Quota
    from nanolimit.top import TopKey

__all__ = ["Watched"]


class Watched(Protocol):
    """What metrics and dashboards ask for; `RateLimiter` and `shared.Watch` have it."""

    @property
    def name(self) -> str:
        """What telemetry calls it; of a table, its name."""
        ...

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """The quotas in force."""
        ...

    @property
    def algorithm(self) -> str:
        """How requests are counted."""
        ...

    @property
    def track_top(self) -> int:
        """How many of the keys that are denied most are kept; 0: none, and `top` raises."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it was closed; then `stats` raises."""
        ...

    def stats(self) -> Stats:
        """Return the counters and sizes."""
        ...

    def top(self, n: int = 10) -> list[TopKey]:
        """Return the keys that were denied most."""
        ...
