"""check_all: one decision for several limiters and keys, all or nothing.

Per user and per address and for everybody; requests and tokens: a request that must fit into all of
them is counted in all, or in none. The core owns all the logs at once, in one order that is the
same in every thread and process, so that no two calls can wait for each other in a circle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanolimit import _core

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nanolimit._core import Decision
    from nanolimit.limiter import Key, RateLimiter

__all__ = ["check_all"]


def check_all(
    items: Iterable[tuple[RateLimiter, Key] | tuple[RateLimiter, Key, int]],
) -> Decision:
    """Decide on all of ``(limiter, key, cost)`` at once: count in all, or in none.

    ```python
    decision = check_all([(per_user, user), (per_address, address), (tokens, user, 800)])
    ```

    Args:
        items: Tuples of a limiter, a key and a cost, which is 1 when left out. Limiters may be
            private, shared, have several quotas and clocks of their own. If the same key of the
            same limiter stands there twice, the costs add up.

    Returns:
        The `Decision` of the quota that binds: of those that deny, the one with the longest
        `retry_after`; else the one with the least left. Its `quota` says which.

    Raises:
        TypeError: An item is no such tuple; or as `RateLimiter.allow`.
        ValueError: There is no item, there are more than 64 quotas in all; or as `allow`. An error
            changes nothing.
        LimiterClosedError: One of the limiters is closed.

    Thread-safe. A bounded amount of work for each quota. The counters of a limiter count a request
    that was allowed, or that this limiter denied; one that others denied it does not count.
    """
    return _core.check_together(items)
