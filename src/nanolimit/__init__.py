"""Exact per-key rate limits, a sliding-window log in C at the price of a function call.

    >>> from nanolimit import RateLimiter
    >>> limiter = RateLimiter(5, per=60)
    >>> limiter.allow("user:42")
    True

The public names stand here and nothing else does. `nanolimit.telemetry` is a public module, and so
is `nanolimit.shared`, which looks after shared tables.
"""

from __future__ import annotations

from nanolimit import telemetry
from nanolimit._core import Decision, Stats
from nanolimit.backoff import Backoff
from nanolimit.claim import check_all
from nanolimit.clock import ManualClock
from nanolimit.default import allow, configure
from nanolimit.errors import (
    LimiterClosedError,
    NanolimitError,
    RateLimitExceeded,
    ReservationClosedError,
    SharedTableError,
)
from nanolimit.limiter import RateLimiter
from nanolimit.quota import Quota
from nanolimit.top import TopKey

# The one source of the version; the build reads it from here.
__version__ = "0.1.0"

__all__ = [
    "Backoff",
    "Decision",
    "LimiterClosedError",
    "ManualClock",
    "NanolimitError",
    "Quota",
    "RateLimitExceeded",
    "RateLimiter",
    "ReservationClosedError",
    "SharedTableError",
    "Stats",
    "TopKey",
    "__version__",
    "allow",
    "check_all",
    "configure",
    "get_include",
    "telemetry",
]


def get_include() -> str:
    """Return the directory of the C headers that come with the package.

    For `include_dirs` of an extension whose Cython code says ``cimport nanolimit``; the `.pxd`
    itself is found without it.
    """
    return __path__[0]
