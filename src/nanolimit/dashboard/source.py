"""One limiter as the dashboard sees it: what was read of it, second by second, and its keys."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from nanolimit.clock import shown
from nanolimit.dashboard import label, words
from nanolimit.errors import LimiterClosedError, NanolimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nanolimit.watched import Watched

#: How often the counters are read.
PERIOD_S = 1.0
#: How much of the past there is to see.
SPAN_S = 600.0
#: How many of the top offenders the page shows.
SHOWN_KEYS = 20
# A longer pause between two readings is a gap in the chart: nobody knows what was in it.
_GAP_S = 3.5
# `top` looks back ten minutes: a denial that seems longer ago was told by a clock of one's own.
_HORIZON_S = 700.0
_WATCHED = ("name", "quotas", "algorithm", "track_top", "stats", "top")

_logger = logging.getLogger("nanolimit")


class Reading(NamedTuple):
    """What happened in one period; rates are None where nobody looked or it can't be known."""

    at_s: float
    allowed_per_s: float | None
    denied_per_s: float | None
    allowed: int
    denied: int


def check_watched(limiters: Sequence[object]) -> None:
    """Raise TypeError or ValueError for what can't be shown together."""
    if not limiters:
        raise TypeError(
            "dashboard.app() needs at least one limiter: dashboard.app(limiter), or "
            "dashboard.app(nanolimit.shared.watch('api'))"
        )
    names: set[str] = set()
    for place, limiter in enumerate(limiters, 1):
        if isinstance(limiter, type) or not all(hasattr(limiter, name) for name in _WATCHED):
            raise TypeError(
                f"argument {place} must be a RateLimiter or what nanolimit.shared.watch() returns, "
                f"not {shown(limiter) if isinstance(limiter, type) else type(limiter).__name__}"
            )
        name: str = limiter.name  # type: ignore[attr-defined]
        if name in names:
            raise ValueError(
                f"two limiters are named {shown(name)}: give each a name=, or nobody could tell "
                f"them apart"
            )
        names.add(name)


class Source:
    """Reads one limiter. Not safe from two threads at once: its sampler sees to that."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        self.name: str = watched.name
        self.readings: deque[Reading] = deque(maxlen=int(SPAN_S / PERIOD_S))
        # Of a table that is gone they can't be asked for any more.
        self._quotas = watched.quotas
        self._algorithm = watched.algorithm
        self._track_top = watched.track_top
        self._last: tuple[float, int, int] | None = None
        self._counts: dict[str, int] | None = None
        self._state = "open"
        self._problem = ""
        self._logged = False

    @property
    def can_reset(self) -> bool:
        """Whether there is a method that resets a key: a watch only looks."""
        return callable(getattr(self.watched, "reset", None))

    def read(self, now_s: float) -> None:
        """Take one reading, at this time of the monotonic clock. A fixed amount of work."""
        try:
            stats = self.watched.stats()
            # A limit may be changed at any time, and a table made anew for another one.
            self._quotas, self._algorithm = self.watched.quotas, self.watched.algorithm
            self._track_top = self.watched.track_top
        except Exception as error:
            self._fail(error)
            self._gap(now_s)
            return
        self._state, self._problem = "open", ""
        allowed, denied = stats.allowed, stats.denied
        last, self._last = self._last, (now_s, allowed, denied)
        self._counts = {
            "allowed": allowed,
            "denied": denied,
            "keys": stats.keys,
            "capacity": stats.capacity,
            "memory_bytes": stats.memory_bytes,
            "evicted": stats.evicted,
            "overflowed": stats.overflowed,
            "would_deny": stats.would_deny,
            "stalled": stats.stalled,
            "log_bytes": stats.log_bytes,
            "log_capacity_bytes": stats.log_capacity_bytes,
        }
        if last is None:
            return  # a rate needs two
        elapsed_s = now_s - last[0]
        more_allowed, more_denied = allowed - last[1], denied - last[2]
        if elapsed_s <= 0 or more_allowed < 0 or more_denied < 0:
            self._gap(now_s)  # the table was made anew, and counts from zero again
            self._last = (now_s, allowed, denied)
            return
        if elapsed_s > _GAP_S:
            # Nobody looked for a while: how many is known, and not when.
            known = elapsed_s <= SPAN_S
            self.readings.append(
                Reading(now_s, None, None, more_allowed * known, more_denied * known)
            )
            return
        self.readings.append(
            Reading(
                now_s, more_allowed / elapsed_s, more_denied / elapsed_s, more_allowed, more_denied
            )
        )

    def _gap(self, now_s: float) -> None:
        self._last = None
        if self.readings and self.readings[-1].allowed_per_s is not None:
            self.readings.append(Reading(now_s, None, None, 0, 0))

    def _fail(self, error: Exception) -> None:
        if isinstance(error, LimiterClosedError):
            self._state, self._problem = "closed", f"{error}; these are the last figures."
        else:
            self._state, self._problem = "unreadable", str(error) or type(error).__name__
        if not isinstance(error, NanolimitError) and not self._logged:
            self._logged = True
            _logger.error("dashboard: limiter %r can't be read", self.name, exc_info=error)

    def now(self, now_s: float) -> dict[str, Any]:
        """Return the newest state as JSON has it. O(K) for top offenders among K keys."""
        recent = [each for each in self.readings if now_s - each.at_s <= SPAN_S]
        allowed = sum(each.allowed for each in recent)
        denied = sum(each.denied for each in recent)
        # Only while it is read: a rate of a limiter that is closed would be one of the past.
        newest = recent[-1] if recent and self._state == "open" else None
        return {
            "name": label.parts(self.name),
            "quota": words.sentences(self._quotas, self._algorithm),
            "algorithm": self._algorithm,
            "track_top": self._track_top,
            "can_reset": self.can_reset,
            "state": self._state,
            "problem": label.parts(self._problem) if self._problem else [],
            "counts": self._counts,
            "sample": None if newest is None else [newest.at_s, *newest[1:3]],
            "recent": {"allowed": allowed, "denied": denied},
            "top": self._top(),
        }

    def history(self, now_s: float) -> list[list[float | None]]:
        """Return times and rates of the last ten minutes, oldest first, as the chart takes them."""
        recent = [each for each in self.readings if now_s - each.at_s <= SPAN_S]
        return [
            [each.at_s for each in recent],
            [each.allowed_per_s for each in recent],
            [each.denied_per_s for each in recent],
        ]

    def _top(self) -> list[dict[str, Any]] | None:
        if not self._track_top or self._state != "open":
            return None
        try:
            found = self.watched.top(SHOWN_KEYS)
        except NanolimitError:
            return None  # closed, or gone, since it was read: the next reading says so
        moment_s = time.time()
        rows = []
        for each in found:
            ago_s = moment_s - each.last_denied
            rows.append(
                {
                    "id": self._id(each.key) if each.exact else None,
                    "key": label.parts(label.text(each.key)),
                    "kind": label.kind(each.key),
                    "exact": each.exact,
                    "denied": each.denied,
                    "error": each.error,
                    # Two clocks of one machine may differ by a tick.
                    "ago_s": round(max(ago_s, 0.0), 3) if -2 <= ago_s <= _HORIZON_S else None,
                    "last_denied": each.last_denied,
                }
            )
        return rows

    def find(self, entry_id: str) -> tuple[Any] | None:
        """Return the key that has this id, in a tuple, if it is among the top offenders.

        The server goes by its own list: no key is ever made of what a client sent. O(K).

        Raises:
            NanolimitError: The limiter is closed, or its table gone.
        """
        most = self.watched.track_top
        if not most:
            return None
        for each in self.watched.top(most):
            if each.exact and self._id(each.key) == entry_id:
                return (each.key,)
        return None

    def reset(self, key: Any) -> bool:
        """Reset a key; return whether there was a log to forget. May wait for a stopped process."""
        reset: Callable[[Any], bool] = self.watched.reset  # type: ignore[attr-defined]
        return bool(reset(key))

    def _id(self, key: object) -> str:
        """Name a key of this limiter. The same in every worker that shares its table.

        Python's own notation keeps ``1``, ``"1"``, ``b"1"`` and ``("1",)`` apart.
        """
        notation = f"{self.name}\0{label.kind(key)}\0{key!r}"
        digest = hashlib.blake2b(notation.encode("utf-8", "surrogatepass"), digest_size=16)
        return digest.hexdigest()
