"""A live page about limiters: an ASGI application of its own, or a part of yours.

    from nanolimit import RateLimiter, dashboard

    limiter = RateLimiter("100/minute", name="api", shared="api", track_top=100)
    app.mount("/limits", dashboard.app(limiter, token="a long random text"))

It needs nothing but an ASGI server: no framework, and no other host than its own. What it shows
and how it is guarded stands in docs/dashboard.md. ``nanolimit dashboard SHARED_FILE`` runs it
beside a service (extra ``nanolimit[dashboard]``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanolimit.dashboard.access import Access
from nanolimit.dashboard.application import Dashboard
from nanolimit.dashboard.source import Source, check_watched

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nanolimit.watched import Watched

__all__ = ["Dashboard", "app"]


def app(
    *limiters: Watched,
    token: str | None = None,
    allowed_hosts: Iterable[str] | None = None,
) -> Dashboard:
    """Return an ASGI application that shows what limiters do, live.

    Args:
        limiters: At least one: a `RateLimiter`, or what `nanolimit.shared.watch` returns. Their
            names differ. Top offenders are shown of those with ``track_top``. A button resets a
            key where the limiter has a method for it; a watch has none.
        token: Who opens the page must know it: printable ASCII without spaces, such as
            ``secrets.token_urlsafe(32)`` gives. None: only requests from this machine are
            answered, and only under a name of the loopback (``localhost``, ``127.0.0.1``,
            ``::1``), so that no page of the web can reach it by a name that it controls.
        allowed_hosts: The names (``"limits.example.com"``, without a port) that a request's Host
            may have; ``"*"`` is any. For those who guard the page themselves and give no token, or
            who want it narrower than a token makes it.

    Raises:
        TypeError: There is no limiter, one is of another type, `token` is no str, or
            `allowed_hosts` is no list of strs.
        ValueError: Two limiters have one name; `token` is empty or has characters that no header
            can carry; `allowed_hosts` is empty or has a name that is none.

    The limiters' counters are read once a second, from the first request on until ten minutes
    after the last one, and all the time where the server tells the application of its start
    (`lifespan`). A reading costs microseconds, with the top offenders of a thousand keys under a
    millisecond; it takes no thread. Needs asyncio; safe with any number of loops.
    """
    check_watched(limiters)
    return Dashboard([Source(limiter) for limiter in limiters], Access(token, allowed_hosts))
