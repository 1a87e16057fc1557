"""A log, decided by a Redis or Valkey: by the limiter's own scripts, at the log's own times.

Each decision is compared with the local engine's. The lists have names of their own and are deleted
at the end, also after Ctrl-C; nothing else on the server is touched.
"""

from __future__ import annotations

import math
import secrets
from array import array
from bisect import insort
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from nanolimit import NanolimitError
from nanolimit.cli import replay
from nanolimit.cli.account import Account, Difference, Host, Rate, Rehearsed
from nanolimit.cli.interrupt import deferred
from nanolimit.redis.denials import CAP_S
from nanolimit.redis.fault import Unavailable
from nanolimit.redis.rehearsal import AT_ONCE, Expiry, Stage
from nanolimit.redis.server import Server, servers
from nanolimit.redis.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nanolimit import Quota
    from nanolimit.cli.interrupt import Interrupt
    from nanolimit.cli.log import Requests
    from nanolimit.cli.replay import Advance, Outcome

__all__ = ["Rehearsal", "RehearsalError"]

# Nobody waits for a rehearsal's answer: a server that is slow now and then must not end it.
TIMEOUT_S = 5.0

# So many requests are asked one by one, spread over the log, and for so long at most: where a round
# trip takes long, a few tell it as well.
_SINGLE_MAX = 2_048
_SINGLE_S = 5.0
_ROUND_TRIPS = 100
_ROUND_TRIPS_S = 1.0
# Of so many keys the memory is asked for.
_SAMPLED_KEYS = 1_000
_DIFFERENCES_SHOWN = 5
# Calls that a look at a server takes at most.
_LOOKS = 5

# The log begins so long after the server's now: its lists must not expire before the log has got as
# far. They also live for so long if nobody is left to delete them.
_AHEAD_US = 600_000_000
_AHEAD_US_PER_REQUEST = 2_000

_NS_PER_US = 1_000
_CAP_US = round(CAP_S * 1e6)
# Of a window there are at most so many ticks in the engine.
_MOST_TICKS = 1 << 30


class RehearsalError(NanolimitError):
    """The server could not be asked to the end."""


class Rehearsal:
    """A server on which limits are tried. Use it in a ``with`` block.

    Args:
        url: Of the server: redis://, rediss://, unix://, valkey://, valkeys://.

    Raises:
        ValueError: The URL is wrong.
        ImportError: No client library is installed.
    """

    def __init__(self, url: str) -> None:
        self._wire = Wire(url, TIMEOUT_S, max_connections=1)
        # Within the pattern nl:* that the user of a limiter may be bound to.
        self._prefix = f"nl:replay-{secrets.token_hex(4)}"
        self._servers: list[Server] = []
        self._round_trip_us: float | None = None

    def __enter__(self) -> Rehearsal:
        return self

    def __exit__(self, *exc: object) -> None:
        self._wire.close()

    @property
    def prefix(self) -> str:
        """What the names of all lists begin with."""
        return self._prefix

    def open(self, quotas: tuple[Quota, ...]) -> None:
        """Look at the server and try one check, so that what is wrong shows before a long read.

        Raises:
            RehearsalError: It can't be asked.
        """
        stage = Stage(self._wire, quotas, self._prefix)
        with deferred() as interrupt:
            try:
                self._servers = servers(self._wire, self._prefix)
                lists = stage.lists("first")
                try:
                    stage.take("first", stage.clock_us())
                finally:
                    stage.drop(lists)
                times_s: list[float] = []
                while len(times_s) < _ROUND_TRIPS and sum(times_s) < _ROUND_TRIPS_S:
                    interrupt.check()
                    began_s = perf_counter()
                    stage.empty()
                    times_s.append(perf_counter() - began_s)
            except Unavailable as fault:
                raise RehearsalError(f"--redis: {fault.reason}") from None
            self._round_trip_us = median(times_s) * 1e6
            interrupt.check()

    def account(self, runs: list[Rehearsed]) -> Account:
        """Return what was found."""
        hosts = [
            Host(each.software, each.version, each.maxmemory_bytes, each.policy)
            for each in self._servers
        ]
        where = self._wire.name
        return Account(where, hosts, self._wire.clustered, self._round_trip_us, runs)

    def run(
        self, requests: Requests, outcome: Outcome, advance: Advance | None = None
    ) -> Rehearsed:
        """Check all requests there, at their times, and compare.

        Args:
            requests: In the order of their times.
            outcome: What the local engine does to them.
            advance: Is told the number of requests done, now and then.

        Raises:
            RehearsalError: The server was lost, or refuses to count.
            KeyboardInterrupt: One was asked to stop. The lists are deleted.
        """
        total = len(requests)
        quotas = outcome.quotas
        if not total:
            return _nothing(quotas)
        spans_us, flags = _as_both_count(requests, outcome)
        with deferred() as interrupt:
            run = _Run(self._wire, self._prefix, requests, quotas, flags, interrupt)
            why: str | None = None
            try:
                run.begin(spans_us)
                run.all(advance)
            except Unavailable as error:
                why = error.reason
            except BaseException:
                left = run.clean()
                if left is not None:
                    raise RehearsalError(self._lost(run.done, total, "broken off", left)) from None
                raise
            left = run.clean()
            if why is None and left is not None:
                why = left.reason
            if why is not None:
                raise RehearsalError(self._lost(run.done, total, why, left))
            interrupt.check()
        return run.result()

    def _lost(self, done: int, total: int, why: str, left: Unavailable | None) -> str:
        text = f"--redis: after {done:,} of {total:,} requests: {why}"
        if left is not None:
            text += (
                f". The lists {self._prefix}:* could not be deleted; they expire by themselves, "
                f"a window after the log would have come to its end"
            )
        return text


class _Run:
    """One limit on its way through the log."""

    def __init__(
        self,
        wire: Wire,
        prefix: str,
        requests: Requests,
        quotas: tuple[Quota, ...],
        flags: bytearray,
        interrupt: Interrupt,
    ) -> None:
        self._wire = wire
        self._prefix = prefix
        self._stage = Stage(wire, quotas, prefix)
        self._requests = requests
        self._quotas = quotas
        self._flags = flags
        self._interrupt = interrupt
        self._stamps_us: array[int] = array("q")
        self._began_s = perf_counter()
        self._began_us = 0
        self._before: list[Server] = []
        self._since: list[Server] = []
        self._calls_before = 0
        self._expiry = Expiry(quotas)
        # Users of the requests that are on their way: they may have lists when something fails.
        self._asked: set[int] = set()
        self.done = 0
        self._denied = 0
        self._differences = 0
        self._first: list[Difference] = []
        self._cached = 0
        # Until when the deny cache repeats a user's denial.
        self._repeated_us: dict[int, int] = {}
        self._singles_s: list[float] = []
        self._pipelined = 0
        self._pipelined_s = 0.0
        self._peak = 0
        self._keys = self._lists = 0
        self._bytes_per_key: float | None = None
        self._used_bytes: int | None = None
        self._after: list[Server] = []
        # What the server did for checks and expiry: microseconds of so many calls. None: others
        # had scripts run there too, or nobody tells.
        self._calls = 0
        self._calls_us: int | None = 0

    def begin(self, spans_us: array[int]) -> None:
        """Put the log on the server's clock, and find its busiest moment."""
        self._before = servers(self._wire, self._prefix)
        self._since = self._before
        self._calls_before = self._stage.calls
        self._began_us = self._stage.clock_us()
        self._began_s = perf_counter()
        start_us = self._began_us + _AHEAD_US + _AHEAD_US_PER_REQUEST * len(spans_us)
        self._stamps_us = array("q", (start_us + span_us for span_us in spans_us))
        self._peak = _busiest(self._stamps_us, self._requests.users, self._flags, self._quotas)

    def all(self, advance: Advance | None) -> None:
        """Ask for all requests."""
        total = len(self._stamps_us)
        step = min(AT_ONCE, max(16, total // 16))
        part = min(0.5, _SINGLE_MAX / total)
        singly_s = 0.0
        for nth, (begin, end) in enumerate(_blocks(total, step, self._peak + 1)):
            self._interrupt.check()
            self._drop_expired(self._stamps_us[begin])
            self._stay_ahead(self._stamps_us[begin])
            # Spread evenly: what a check costs depends on how full the lists are.
            if singly_s < _SINGLE_S and int((nth + 1) * part) > int(nth * part):
                waits_us = self._singly(begin, end)
                singly_s = sum(self._singles_s)
            else:
                waits_us = self._together(begin, end)
            self._take(begin, end, waits_us)
            if end == self._peak + 1:
                self._measure()
            if advance is not None:
                advance(end - begin)
        self._after = servers(self._wire, self._prefix)
        self._add_up(self._after)

    def _add_up(self, now: list[Server]) -> None:
        """Add what the server did since it was looked at last."""
        calls = sum(each.calls for each in now) - sum(each.calls for each in self._since)
        took_us = sum(each.calls_us for each in now) - sum(each.calls_us for each in self._since)
        own = self._stage.calls - self._calls_before
        known = len(now) == len(self._since) > 0
        # A script that is new to the server is asked for twice, and each look is a call.
        if not known or not own <= calls <= own + 0.02 * own + 2 * _LOOKS * len(now):
            self._calls_us = None
        elif self._calls_us is not None:
            self._calls += own
            self._calls_us += took_us

    def _asking(self, begin: int, end: int) -> list[tuple[str, int]]:
        users = self._requests.users[begin:end]
        self._asked.update(users)
        names = self._requests.names
        return [
            (names[user], stamp_us)
            for user, stamp_us in zip(users, self._stamps_us[begin:end], strict=True)
        ]

    def _singly(self, begin: int, end: int) -> list[int]:
        take = self._stage.take
        waits_us = []
        for name, stamp_us in self._asking(begin, end):
            self._interrupt.check()
            began_s = perf_counter()
            waits_us.append(take(name, stamp_us))
            self._singles_s.append(perf_counter() - began_s)
        return waits_us

    def _together(self, begin: int, end: int) -> list[int]:
        asked = self._asking(begin, end)
        began_s = perf_counter()
        waits_us = self._stage.take_many(asked)
        self._pipelined_s += perf_counter() - began_s
        self._pipelined += end - begin
        return waits_us

    def _take(self, begin: int, end: int, waits_us: Sequence[int]) -> None:
        """Make sense of the answers to a block."""
        users, flags, repeated_us = self._requests.users, self._flags, self._repeated_us
        for i, wait_us in zip(range(begin, end), waits_us, strict=True):
            user, stamp_us = users[i], self._stamps_us[i]
            if wait_us:
                self._denied += 1
                if stamp_us < repeated_us.get(user, 0):
                    self._cached += 1
                else:
                    repeated_us[user] = stamp_us + min(wait_us, _CAP_US)
            else:
                self._expiry.count(user, stamp_us)
            if bool(wait_us) != bool(flags[i]):
                self._differ(i, bool(wait_us))
        self.done = end
        self._asked.clear()

    def _differ(self, i: int, denied: bool) -> None:
        self._differences += 1
        if len(self._first) < _DIFFERENCES_SHOWN:
            requests = self._requests
            user = requests.names[requests.users[i]]
            self._first.append(Difference(i + 1, requests.times_ns[i], user, denied))

    def _stay_ahead(self, stamp_us: int) -> None:
        now_us = self._began_us + (perf_counter() - self._began_s) * 1e6
        if now_us > stamp_us:
            raise Unavailable("it takes so long that lists expire before the log has got as far")

    def _drop_expired(self, now_us: int) -> None:
        """Delete what would have expired by the log's clock."""
        gone = self._expiry.gone(now_us)
        if gone:
            names, lists = self._requests.names, self._stage.lists
            self._stage.drop([lists(names[user])[nth] for user, nth in gone])

    def _measure(self) -> None:
        """Look at the memory in the busiest moment."""
        self._drop_expired(self._stamps_us[self._peak])
        then = servers(self._wire, self._prefix)
        self._add_up(then)
        users = sorted(self._expiry.keys())
        self._keys, self._lists = len(users), len(self._expiry)
        sampled = users[:: max(1, -(-len(users) // _SAMPLED_KEYS))]
        names, lists = self._requests.names, self._stage.lists
        sizes = self._stage.usage_bytes([each for user in sampled for each in lists(names[user])])
        if sizes is not None and sampled:
            self._bytes_per_key = sum(sizes) / len(sampled)
        if len(then) == len(self._before) > 0:
            self._used_bytes = sum(each.used_bytes for each in then) - sum(
                each.used_bytes for each in self._before
            )
        self._since = servers(self._wire, self._prefix)
        self._calls_before = self._stage.calls

    def clean(self) -> Unavailable | None:
        """Delete all lists; return why that failed, if it did."""
        names, lists = self._requests.names, self._stage.lists
        users = self._asked | self._expiry.keys()
        try:
            self._stage.drop([each for user in sorted(users) for each in lists(names[user])])
        except Unavailable as fault:
            return fault
        return None

    def result(self) -> Rehearsed:
        """Return what was found."""
        singles_s = sorted(self._singles_s)
        single = single_us = None
        if singles_s:
            single = Rate(len(singles_s), sum(singles_s))
            most_s = singles_s[math.ceil(0.99 * len(singles_s)) - 1]
            single_us = (median(singles_s) * 1e6, most_s * 1e6, singles_s[-1] * 1e6)
        evicted = sum(each.evicted for each in self._after) - sum(
            each.evicted for each in self._before
        )
        return Rehearsed(
            quotas=self._quotas,
            requests=self.done,
            denied=self._denied,
            differences=self._differences,
            first=self._first,
            cached=self._cached,
            single=single,
            single_us=single_us,
            pipelined=Rate(self._pipelined, self._pipelined_s) if self._pipelined else None,
            at_once=AT_ONCE,
            server_us=self._calls_us / self._calls if self._calls_us and self._calls else None,
            keys=self._keys,
            lists=self._lists,
            peak_ns=self._requests.times_ns[self._peak],
            bytes_per_key=self._bytes_per_key,
            used_bytes=self._used_bytes,
            evicted=max(0, evicted),
        )


def _as_both_count(requests: Requests, outcome: Outcome) -> tuple[array[int], bytearray]:
    """Return microseconds since the first request, and whom the local engine denies.

    The server counts in microseconds, the local engine in ticks: 100 ns for a window of a minute,
    5 us for one of an hour. Both are exact on times that are multiples of both, and so they are
    compared on these; other times are rounded down to them. Logs have seconds or milliseconds.
    """
    grid_ns = math.lcm(_NS_PER_US, *(tick_ns(quota.window_ns) for quota in outcome.quotas))
    start_ns = requests.times_ns[0]
    spans_ns = array("q", ((ns - start_ns) // grid_ns * grid_ns for ns in requests.times_ns))
    flags = outcome.denied_flags
    if any((ns - start_ns) % grid_ns for ns in requests.times_ns):
        rounded = replay.run(spans_ns, requests.users, requests.names, outcome.quotas)
        flags = rounded.denied_flags
    return array("q", (ns // _NS_PER_US for ns in spans_ns)), flags


def tick_ns(window_ns: int) -> int:
    """Return the length of the engine's ticks for a window, in nanoseconds."""
    ten = 1
    while True:
        for tick in (ten, 2 * ten, 5 * ten):
            if -(-window_ns // tick) <= _MOST_TICKS:
                return tick
        ten *= 10


def _busiest(
    stamps_us: array[int], users: array[int], flags: bytearray, quotas: tuple[Quota, ...]
) -> int:
    """Return the request at which there are the most lists, the first of equals."""
    expiry = Expiry(quotas)
    most = at = 0
    for i, (stamp_us, user, flag) in enumerate(zip(stamps_us, users, flags, strict=True)):
        if not flag:
            expiry.gone(stamp_us)
            expiry.count(user, stamp_us)
            if len(expiry) > most:
                most, at = len(expiry), i
    return at


def _blocks(total: int, step: int, cut: int) -> Iterable[tuple[int, int]]:
    """Ranges of up to `step` requests; one of them ends at `cut`."""
    edges = list(range(0, total, step))
    if cut not in edges and cut < total:
        insort(edges, cut)
    edges.append(total)
    return pairwise(edges)


def _nothing(quotas: tuple[Quota, ...]) -> Rehearsed:
    return Rehearsed(
        quotas, 0, 0, 0, [], 0, None, None, None, AT_ONCE, None, 0, 0, None, None, None, 0
    )
