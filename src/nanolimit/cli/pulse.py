"""What a shared table does just now: samples of its counters, and the rates between them.

A `Pulse` follows one table that other processes use. Each `beat` reads its counters, which costs
the same for every table, and gives a `Reading`. Who uses the table and how many keys are live takes
a walk through it, so that is asked less often the larger it is.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nanolimit import NanolimitError, shared
from nanolimit.errors import SharedTableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nanolimit import Quota, Stats
    from nanolimit.shared import TableInfo, Watch

# How many beats are kept for the picture: ten minutes of one a second.
KEPT_BEATS = 600
# A walk through the table takes at most this share of the time.
_WALK_SHARE = 0.01
# The most offenders that a table can keep (track_top).
MOST_OFFENDERS = 1000


class Rate(NamedTuple):
    """What was decided between two beats, per second."""

    allowed_per_s: float
    denied_per_s: float

    @property
    def decisions_per_s(self) -> float:
        """Both together."""
        return self.allowed_per_s + self.denied_per_s

    @property
    def denied_share(self) -> float | None:
        """The share that was denied, 0 to 1; None if nothing was decided."""
        decisions = self.decisions_per_s
        return self.denied_per_s / decisions if decisions else None


class Offender(NamedTuple):
    """A key that is denied much, and which share of all denials that are kept it has."""

    key: object
    denied: int
    error: int
    last_denied: float
    exact: bool
    share: float

    @property
    def text(self) -> str:
        """The key as text, unescaped: somebody else chose it. Bytes and tuples as in Python."""
        # repr: str() of bytes is an error where Python is told so (-bb).
        return repr(self.key) if isinstance(self.key, bytes) else str(self.key)


@dataclass(frozen=True)
class Reading:
    """A table at one moment. Where it is gone, `problem` says so, and the numbers are the last."""

    name: str
    path: str
    time: float
    """Unix time in seconds."""

    problem: str | None = None
    """Why there is nothing to read just now; None: there is."""

    note: str | None = None
    """What happened to it since it is looked at, such as that it was made anew."""

    quotas: tuple[Quota, ...] = ()
    algorithm: str | None = None
    own_clock: bool | None = None
    """Whether the table's limiters bring a clock of their own."""

    track_top: int = 0
    """How many offenders it has room for."""

    stats: Stats | None = None
    interval_s: float | None = None
    """Seconds since the beat before; None for the first one, and the first of a new table."""

    rate: Rate | None = None
    top: tuple[Offender, ...] | None = None
    """The keys denied most, the first one most. None: it keeps none, or they can't be read."""

    info: TableInfo | None = None
    """Live keys, processes and the like, of not long ago."""

    history: tuple[Rate | None, ...] = field(default=(), repr=False)
    """The rates of the beats up to now; None where there was none."""

    beats: int = 0
    """How many there were in all: `history` is the last of them."""

    @property
    def live_keys(self) -> int | None:
        """Keys that hold a request of a window now, where that can be told."""
        every = (self.info, *self.info.parts) if self.info else ()
        live = [each.live_keys for each in every if each.number is not None]
        return max((number for number in live if number is not None), default=None)

    @property
    def pids(self) -> list[int]:
        """Who lives and has the table open, each named once."""
        processes = self.info.processes if self.info else ()
        return sorted({process.pid for process in processes if process.alive})

    @property
    def dead(self) -> list[int]:
        """Who died and has not been replaced."""
        processes = self.info.processes if self.info else ()
        return sorted({process.pid for process in processes if not process.alive})

    def as_json(self) -> dict[str, object]:
        """The object that ``top --json`` has for a table. Fields are added to it, never renamed or
        removed (see docs/cli.md).
        """
        stats, rate = self.stats, self.rate
        return {
            "name": self.name,
            "path": self.path,
            "problem": self.problem,
            "note": self.note,
            "quotas": [{"limit": quota.limit, "per": quota.per} for quota in self.quotas],
            "algorithm": self.algorithm,
            "own_clock": self.own_clock,
            "allowed": stats.allowed if stats else None,
            "denied": stats.denied if stats else None,
            "would_deny": stats.would_deny if stats else None,
            "keys": stats.keys if stats else None,
            "live_keys": self.live_keys,
            "capacity": stats.capacity if stats else None,
            "evicted": stats.evicted if stats else None,
            "overflowed": stats.overflowed if stats else None,
            "stalled": stats.stalled if stats else None,
            "memory_bytes": stats.memory_bytes if stats else None,
            "log_bytes": stats.log_bytes if stats else None,
            "log_capacity_bytes": stats.log_capacity_bytes if stats else None,
            "interval_s": self.interval_s,
            "allowed_per_s": rate.allowed_per_s if rate else None,
            "denied_per_s": rate.denied_per_s if rate else None,
            "decisions_per_s": rate.decisions_per_s if rate else None,
            "denied_share": rate.denied_share if rate else None,
            "pids": self.pids,
            "dead_pids": self.dead,
            "track_top": self.track_top,
            "top": None if self.top is None else [self._offender(each) for each in self.top],
        }

    def _offender(self, each: Offender) -> dict[str, object]:
        return {
            "key": each.text,
            "key_type": type(each.key).__name__,
            "exact": each.exact,
            "denied": each.denied,
            "error": each.error,
            "last_denied": each.last_denied,
            "last_denied_ago_s": self.ago_s(each),
            "share": each.share,
        }

    @property
    def denied_share(self) -> float | None:
        """The share of all decisions since the table was made that were denied, 0 to 1."""
        if self.stats is None or not self.stats.allowed + self.stats.denied:
            return None
        return self.stats.denied / (self.stats.allowed + self.stats.denied)

    def ago_s(self, offender: Offender) -> float | None:
        """Seconds since its last denial; None if that is told by a clock of the limiters' own."""
        if self.own_clock or not math.isfinite(offender.last_denied):
            return None
        return max(0.0, self.time - offender.last_denied)


class Clocks(Protocol):
    """The two clocks that a `Pulse` reads, of the ``time`` module or of a test."""

    def monotonic(self) -> float:
        """Seconds that never go back: for rates."""
        ...

    def time(self) -> float:
        """Unix seconds: to tell."""
        ...


class Pulse:
    """Follows one shared table, as a reader: it becomes no user of it and changes nothing.

    It goes on when the table is replaced by a new one, and waits for one when it is removed. Not
    thread-safe.

    Args:
        name: The table's name or path.
        offenders: How many of the keys denied most to tell, from 1 to 1000.

    Raises:
        ValueError: It is a name that no table can have.
        SharedTableError: There is no such table, or it can't be used.
    """

    def __init__(
        self,
        name: str | os.PathLike[str],
        offenders: int = 10,
        *,
        clocks: Clocks = time,
        watch: Callable[[str | os.PathLike[str]], Watch] | None = None,
        look: Callable[[str | os.PathLike[str]], TableInfo] | None = None,
    ) -> None:
        self._name = name
        self._offenders = offenders
        self._clocks = clocks
        self._open = watch if watch is not None else shared.watch
        self._look = look if look is not None else shared.inspect
        self._history: deque[Rate | None] = deque(maxlen=KEPT_BEATS)
        self._beats = 0
        self._last: tuple[float, tuple[int, int] | None, Stats] | None = None
        self._info: TableInfo | None = None
        self._next_look_s = -math.inf
        self._note: str | None = None
        self._watch: Watch | None = self._open(name)
        self._reading = Reading(self._watch.name, str(self._watch.path), clocks.time())

    def beat(self) -> Reading:
        """Read the table once. A table that is gone is a reading too, with its `problem`."""
        now_s = self._clocks.monotonic()
        self._beats += 1
        try:
            reading = self._read(now_s)
        except (NanolimitError, OSError) as error:
            reading = self._missed(str(error))
        self._reading = reading
        return reading

    def close(self) -> None:
        """Look at it no more. Safe to call twice."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def _read(self, now_s: float) -> Reading:
        if self._watch is None:
            self._watch = self._open(self._name)
        watch = self._watch
        before = _identity(str(watch.path))
        stats = watch.stats()
        after = _identity(str(watch.path))
        # Which one was read is known only if the name stood for the same file all the while.
        identity = before if before == after else None
        rate, interval_s = self._rate(now_s, identity, stats)
        self._history.append(rate)
        self._last = (now_s, identity, stats)
        self._inspect(now_s)
        top = self._top(watch)
        return Reading(
            watch.name,
            str(watch.path),
            self._clocks.time(),
            note=self._note,
            quotas=tuple(watch.quotas),
            algorithm=watch.algorithm,
            own_clock=watch.own_clock,
            track_top=watch.track_top,
            stats=stats,
            interval_s=interval_s,
            rate=rate,
            top=top,
            info=self._info,
            history=tuple(self._history),
            beats=self._beats,
        )

    def _rate(
        self, now_s: float, identity: tuple[int, int] | None, stats: Stats
    ) -> tuple[Rate | None, float | None]:
        if self._last is None:
            return None, None
        then_s, other, before = self._last
        allowed, denied = stats.allowed - before.allowed, stats.denied - before.denied
        if identity != other or allowed < 0 or denied < 0:
            # Of two tables, or one cannot tell: a difference would mean nothing.
            if identity is not None:
                self._note = f"made anew, seen at {self._clock_text()}"
                self._next_look_s = -math.inf
            return None, None
        interval_s = now_s - then_s
        if interval_s <= 0:
            return None, None
        return Rate(allowed / interval_s, denied / interval_s), interval_s

    def _inspect(self, now_s: float) -> None:
        if now_s < self._next_look_s:
            return
        started_s = self._clocks.monotonic()
        try:
            self._info = self._look(self._name)
        except SharedTableError:
            self._info = None  # it has just been removed; the next beat says so
        ended_s = self._clocks.monotonic()
        self._next_look_s = ended_s + (ended_s - started_s) / _WALK_SHARE

    def _top(self, watch: Watch) -> tuple[Offender, ...] | None:
        if not watch.track_top:
            return None
        # All that are kept: the share is of their denials.
        kept = watch.top(MOST_OFFENDERS)
        total = sum(each.denied for each in kept)
        return tuple(
            Offender(
                each.key,
                each.denied,
                each.error,
                each.last_denied,
                each.exact,
                each.denied / total if total else 0.0,
            )
            for each in kept[: self._offenders]
        )

    def _missed(self, problem: str) -> Reading:
        """Give the numbers of the last reading, and why there are no new ones."""
        self.close()
        self._history.append(None)
        self._last = None
        self._info = None
        self._next_look_s = -math.inf
        last = self._reading
        if last.problem is None:
            self._note = f"lost since {self._clock_text()}"
        return Reading(
            last.name,
            last.path,
            self._clocks.time(),
            problem=problem,
            note=self._note,
            quotas=last.quotas,
            algorithm=last.algorithm,
            own_clock=last.own_clock,
            track_top=last.track_top,
            stats=last.stats,
            top=None,
            history=tuple(self._history),
            beats=self._beats,
        )

    def _clock_text(self) -> str:
        return clock_text(self._clocks.time())


class Board:
    """Follows all tables of this user, each with a `Pulse`; tables come and go.

    A limiter with several quotas has several tables: its first one speaks for all.

    Raises:
        SharedTableError: The directory can't be read, or this platform has no shared tables.
    """

    def __init__(self, offenders: int = 10, *, clocks: Clocks = time) -> None:
        self._offenders = offenders
        self._clocks = clocks
        self._pulses: dict[str, Pulse] = {}
        self._next_look_s = -math.inf
        self.unusable: tuple[str, ...] = ()
        """Names of files there that can't be watched: damaged, stale or no tables."""

    def beat(self) -> list[Reading]:
        """Read each table once, in the order of their names."""
        self._find()
        return [self._pulses[name].beat() for name in sorted(self._pulses)]

    def close(self) -> None:
        """Look at them no more. Safe to call twice."""
        for pulse in self._pulses.values():
            pulse.close()
        self._pulses.clear()

    def _find(self) -> None:
        """Take up new tables, as seldom as to list them asks for."""
        started_s = self._clocks.monotonic()
        if started_s < self._next_look_s:
            return
        unusable = []
        for table in firsts(shared.tables()):
            if table.name in self._pulses:
                continue
            try:
                # By its path: that is which file was found, whatever NANOLIMIT_DIR becomes.
                self._pulses[table.name] = Pulse(
                    os.fspath(table.path), self._offenders, clocks=self._clocks
                )
            except NanolimitError:
                unusable.append(table.name)
        self.unusable = tuple(unusable)
        ended_s = self._clocks.monotonic()
        self._next_look_s = ended_s + (ended_s - started_s) / _WALK_SHARE


def clock_text(time_s: float) -> str:
    """The time of day of a Unix time: ``12:34:56 UTC``."""
    return f"{datetime.fromtimestamp(time_s, timezone.utc):%H:%M:%S} UTC"


def firsts(tables: Sequence[TableInfo]) -> list[TableInfo]:
    """Those that are no further table of one that is there as well."""
    named = {table.name for table in tables}
    return [table for table in tables if table.part_of not in named]


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
