"""What a limit would have done: every request of a log through the real limiter, at its own time.

The clock of the limiter is set to the time stamp of each request before the request is checked.
Nothing is simulated and nothing waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanolimit import Quota, RateLimiter
from nanolimit.algorithm import DEFAULT, most
from nanolimit.cli import quota as quotas

if TYPE_CHECKING:
    from array import array

    from nanolimit.cli.log import Requests

# Requests between two calls of `advance`.
_STEP = 1 << 16
_MINUTE_NS = 60_000_000_000

Advance = Callable[[int], None]


class LogClock:
    """A clock that stands at the time stamp of the request at hand: integer nanoseconds, set from
    outside.
    """

    __slots__ = ("ns",)

    def __init__(self) -> None:
        self.ns = 0

    def now_ns(self) -> int:
        """The time in nanoseconds since the first request of the log. The limiter prefers this to
        the float.
        """
        return self.ns

    def __call__(self) -> float:
        return self.ns / 1e9


@dataclass(frozen=True)
class Outcome:
    """What a limit does to a list of requests. ``denied_flags[i]`` is 1 where request i is
    denied.
    """

    quotas: tuple[Quota, ...]
    denied_flags: bytearray
    denied: int
    denied_of_user: dict[int, int]

    @property
    def quota(self) -> Quota:
        """The limit; of several quotas, the first."""
        return self.quotas[0]

    @property
    def users_denied(self) -> int:
        """Users of whom at least one request is denied."""
        return len(self.denied_of_user)


def run(
    times_ns: array[int],
    users: array[int],
    names: list[str],
    quota: Quota | tuple[Quota, ...],
    advance: Advance | None = None,
) -> Outcome:
    """Check the requests, which must be in the order of their times, against a limiter made for
    this run.

    Several quotas are one limit: a request is allowed if it fits into all. `advance` is told the
    number of requests done, now and then. ValueError: a quota that the engine does not take. Some
    0.2 microseconds a request.
    """
    several = (quota,) if isinstance(quota, Quota) else quota
    total = len(times_ns)
    flags = bytearray(total)
    denied_of_user: dict[int, int] = {}
    clock = LogClock()
    # Every user fits at the same time: nobody's request is decided by a full table.
    with RateLimiter(
        several, name="replay", clock=clock, max_keys=max(1, len(names)), on_full="deny"
    ) as limiter:
        allow = limiter.allow
        start_ns = times_ns[0] if total else 0
        for begin in range(0, total, _STEP):
            end = min(begin + _STEP, total)
            for i, time_ns, user in zip(
                range(begin, end), times_ns[begin:end], users[begin:end], strict=True
            ):
                clock.ns = time_ns - start_ns
                if not allow(names[user]):
                    flags[i] = 1
                    denied_of_user[user] = denied_of_user.get(user, 0) + 1
            if advance is not None:
                advance(end - begin)
        stats = limiter.stats()
    denied = sum(denied_of_user.values())
    if stats.overflowed or stats.allowed != total - denied or stats.denied != denied:
        raise RuntimeError(
            f"the engine's own counts differ from the replay's: {stats}, {denied} of {total} denied"
        )
    return Outcome(several, flags, denied, denied_of_user)


@dataclass(frozen=True)
class Count:
    """How many requests, and requests of how many users, a quota denies."""

    quota: Quota
    denied: int
    users_denied: int


class Sweep:
    """Counts for several limits with one window, each from the engine, none taken twice.

    A user whom a limit never denies is not denied by a larger one either, so only the others'
    requests are run. (Why: a window of fixed length occupies a place for that long, and taking
    whoever comes while a place is free serves the most that `limit` places can; more places never
    serve fewer.)
    """

    def __init__(self, requests: Requests, window_ns: int) -> None:
        self._window_ns = window_ns
        self._requests = requests
        self._counts = requests.counts()
        self.busiest = max(self._counts, default=0)
        self._denied_users: dict[int, frozenset[int]] = {}
        self._done: dict[int, Count] = {}

    def add(self, outcome: Outcome) -> None:
        """Make use of a run over all requests with this window."""
        if len(outcome.quotas) > 1:
            raise ValueError("a run of several quotas tells nothing of one")
        if outcome.quota.window_ns != self._window_ns:
            raise ValueError(f"{outcome.quota} has another window")
        self._keep(outcome)

    def _keep(self, outcome: Outcome) -> Count:
        limit = outcome.quota.limit
        count = Count(outcome.quota, outcome.denied, outcome.users_denied)
        self._done[limit] = count
        self._denied_users[limit] = frozenset(outcome.denied_of_user)
        return count

    def count(self, limit: int) -> Count:
        """What `limit` denies. ValueError: a limit that the engine does not take."""
        done = self._done.get(limit)
        if done is not None:
            return done
        quota = quotas.of_window(limit, self._window_ns)
        names, counts = self._requests.names, self._counts
        smaller = max((known for known in self._denied_users if known < limit), default=None)
        candidates = range(len(names)) if smaller is None else self._denied_users[smaller]
        # Who has no more requests than the limit can't be denied one.
        chosen = bytearray(len(names))
        for user in candidates:
            chosen[user] = counts[user] > limit
        times_ns, users = self._requests.only(chosen)
        return self._keep(run(times_ns, users, names, quota))

    def lowest(self, parts: int, whole: int) -> Count | None:
        """The lowest limit that denies fewer than parts/whole of all requests, or None if the
        engine takes no such limit.

        Bisection: what a limit denies never grows with the limit (see above). It ends with two
        neighbours that were both counted: the one denies too many, the other doesn't.
        """
        total = len(self._requests)

        def enough(limit: int) -> bool:
            return self.count(limit).denied * whole < parts * total

        if total == 0:
            return None
        high = min(self.busiest, largest_limit())
        # What is known already narrows the search.
        high = min((known for known in self._done if known <= high and enough(known)), default=high)
        if not enough(high):
            return None
        low = max((known for known in self._done if known < high), default=0)
        while high - low > 1:
            middle = (low + high) // 2
            if enough(middle):
                high = middle
            else:
                low = middle
        return self.count(high)


def largest_limit() -> int:
    """The largest limit that the engine takes, counting as it does here."""
    return most(DEFAULT)


@dataclass(frozen=True)
class Hit:
    """A user whom the limit hits: totals, and the minute of the clock in which most requests were
    denied.
    """

    user: int
    name: str
    requests: int
    denied: int
    minute_ns: int
    minute_requests: int
    minute_denied: int


def hardest_hit(requests: Requests, outcome: Outcome, number: int) -> list[Hit]:
    """The users with the most denied requests, most first; of equals, the one with more requests,
    then by name.

    The worst minute of a user is the one with the most denied; of equals, the first.
    """
    counts = requests.counts()
    names = requests.names
    ranked = sorted(
        outcome.denied_of_user.items(),
        key=lambda item: (-item[1], -counts[item[0]], names[item[0]]),
    )[:number]
    chosen = bytearray(len(names))
    for user, _ in ranked:
        chosen[user] = 1
    minutes: dict[int, dict[int, list[int]]] = {user: {} for user, _ in ranked}
    for time_ns, user, flag in zip(
        requests.times_ns, requests.users, outcome.denied_flags, strict=True
    ):
        if chosen[user]:
            tally = minutes[user].setdefault(time_ns // _MINUTE_NS, [0, 0])
            tally[0] += 1
            tally[1] += flag
    hits = []
    for user, denied in ranked:
        minute, (seen, refused) = max(
            minutes[user].items(), key=lambda item: (item[1][1], -item[0])
        )
        hits.append(
            Hit(user, names[user], counts[user], denied, minute * _MINUTE_NS, seen, refused)
        )
    return hits
