"""Outages: what is logged while requests can't be counted, because a limiter's store is away."""

from __future__ import annotations

import logging
from math import inf
from time import monotonic

__all__ = ["Outage"]

_PAUSE_S = 1.0

_log = logging.getLogger("nanolimit")


class Outage:
    """One place that tells of it: at the first request, and then once a second at most.

    All requests fail then, and each would say the same. Thread-safe; threads that come at the same
    instant may each say it.
    """

    __slots__ = ("_next_s",)

    def __init__(self) -> None:
        self._next_s = -inf

    def tell(self, message: str, *args: object) -> None:
        """Log it as an error, without a traceback, unless that was done just now."""
        now_s = monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _PAUSE_S
            _log.error(message, *args)
