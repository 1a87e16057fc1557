"""ConsoleReporter: what every limiter did, a line each, every few seconds.

It reads the counters that limiters keep anyway, so that no check pays for it. Its thread is a task
of the supervisor's: restarted if it crashes, stopped at the interpreter's end, started anew in a
forked child.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from nanolimit import supervisor
from nanolimit.clock import NS_PER_SECOND, nanoseconds, shown
from nanolimit.errors import NanolimitError
from nanolimit.limiter import RateLimiter, live_limiters
from nanolimit.remote import Remote, is_limiter, live_remotes

if TYPE_CHECKING:
    from datetime import timedelta
    from types import TracebackType
    from typing import Protocol

    from typing_extensions import Self

    from nanolimit._core import Stats
    from nanolimit.remote import RemoteStats
    from nanolimit.watched import Watched

    Reported = Watched | Remote

    class Writable(Protocol):
        """What a report can be written to: a text stream, or whatever has this method of one."""

        def write(self, text: str, /) -> object: ...


__all__ = ["ConsoleReporter"]

_LEAST_PERIOD_S = 0.01
_MOST_PERIOD_S = 7 * 86_400
# How long stop() waits for a stream that blocks.
_STOP_PATIENCE_S = 5.0
# How long a fork waits for a stream to be let go of.
_FORK_PATIENCE_S = 0.1

_logger = logging.getLogger("nanolimit")
# All reporters of this process, for forks. Copy on write: a fork reads it without the lock.
_all: tuple[weakref.ref[ConsoleReporter], ...] = ()
_adding = threading.RLock()


class _Counted(NamedTuple):
    """What a limiter had counted when it was looked at last."""

    watched: Callable[[], Reported | None]
    stats: Any


class _Line(NamedTuple):
    """What one limiter did in one period. The fields are those of the log record."""

    limiter: str
    allowed: int
    denied: int
    would_deny: int
    overflowed: int
    evicted: int
    allowed_per_s: float
    denied_per_s: float
    denied_percent: float
    keys: int
    capacity_keys: int
    memory_bytes: int
    period_s: float
    all_processes: bool

    def __str__(self) -> str:
        # A name is somebody's choice; it must not look like a second line, nor recolour a terminal.
        name = self.limiter if self.limiter.isprintable() else repr(self.limiter)
        parts = [
            f"allowed {self.allowed:,} ({_rate(self.allowed_per_s)})",
            f"denied {self.denied:,} ({_rate(self.denied_per_s)}, {self.denied_percent:.1f} %)",
            f"keys {self.keys:,} of {self.capacity_keys:,}",
            f"memory {_size(self.memory_bytes)}",
        ]
        if self.would_deny:
            parts.append(f"would deny {self.would_deny:,}")
        if self.overflowed:
            parts.append(f"overflowed {self.overflowed:,}")
        where = " (all processes)" if self.all_processes else ""
        return f"{name}{where}: {', '.join(parts)}"


class _RemoteLine(NamedTuple):
    """What one remote limiter of this process did in one period."""

    limiter: str
    allowed: int
    denied: int
    denied_locally: int
    degraded: int
    failures: int
    unknown: int
    leased: int
    allowed_per_s: float
    denied_per_s: float
    denied_percent: float
    period_s: float

    def __str__(self) -> str:
        name = self.limiter if self.limiter.isprintable() else repr(self.limiter)
        denied = f"{_rate(self.denied_per_s)}, {self.denied_percent:.1f} %"
        if self.denied_locally:
            denied += f", {self.denied_locally:,} of them locally"
        allowed = _rate(self.allowed_per_s)
        if self.leased:
            allowed += f", {self.leased:,} of them leased"
        parts = [
            f"allowed {self.allowed:,} ({allowed})",
            f"denied {self.denied:,} ({denied})",
        ]
        if self.degraded:
            parts.append(f"without the store {self.degraded:,}")
        if self.failures:
            unknown = f" ({self.unknown:,} of unknown outcome)" if self.unknown else ""
            parts.append(f"failed calls {self.failures:,}{unknown}")
        return f"{name}: {', '.join(parts)}"


class ConsoleReporter:
    """Writes a line for each limiter every `period` seconds: what it did in them, what it holds.

    ```python
    reporter = telemetry.ConsoleReporter(period=10)
    ...
    reporter.stop()
    ```

    ::

        nanolimit[4711] api: allowed 1,234 (123/s), denied 56 (5.6/s, 4.3 %), keys 904 of 1,000,000,
        memory 96.0 KiB

    (on one line). The number in brackets is the process. Of a shared table the line says ``(all
    processes)``: its counters count what all of them did. ``would deny`` (of a limiter that only
    watches) and ``overflowed`` are added where there were such requests. Of a `RedisRateLimiter`
    the line says what this process decided; how many keys there are, Redis knows::

        nanolimit[4711] api: allowed 1,234 (123/s), denied 56 (5.6/s, 4.3 %, 12 of them locally),
        without the store 7, failed calls 3 (1 of unknown outcome)

    It runs from the moment that it is made until `stop`, whether or not somebody holds it; at the
    interpreter's end it is stopped. Stopping writes what was counted since the last report.

    Args:
        period: Seconds between two reports, 0.01 to a week, or a `timedelta`.
        stream: What the lines are written to: a text stream. What ``sys.stderr`` is at the time of
            writing when left out. One that is closed, or fails otherwise, is told of once in the
            log, and nothing is written to it any more.
        limiters: Whose lines, in this order, which the reporter holds: limiters, or shared tables
            seen from outside (`shared.watch`). All limiters that are open in this process when
            left out. One that is closed has no line any more.
        log: Whether every line is a record as well: of the logger ``nanolimit``, level INFO, with
            the numbers as attributes (`limiter`, `allowed`, `denied`, `allowed_per_s`,
            `denied_percent`, `keys`, `capacity_keys`, `memory_bytes`, `period_s`, ...; of a
            `RedisRateLimiter` `denied_locally`, `leased`, `degraded`, `failures` and `unknown` in
            the place of sizes).

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: `period` is out of range, or `limiters` is empty.
        RuntimeError: The system has no room for a thread.

    Thread-safe. A report costs some microseconds a limiter, in a thread of its own, and checks are
    not slowed down. After a fork the child has a reporter of its own, which writes to the
    same stream what the child did since.
    """

    def __init__(
        self,
        period: float | timedelta = 10.0,
        stream: Writable | None = None,
        *,
        limiters: Iterable[Watched | Remote] | None = None,
        log: bool = True,
    ) -> None:
        self._period_s = _checked_period(period)
        if stream is not None and not callable(getattr(stream, "write", None)):
            raise TypeError(f"stream must be a text stream, not {type(stream).__name__}")
        if not isinstance(log, bool):
            raise TypeError(f"log must be a bool, not {type(log).__name__}")
        self._stream = stream
        self._limiters = _checked_limiters(limiters)
        self._log = log
        self._failed: object = None  # the stream that failed last: nothing is written to it
        self._task: supervisor.Task | None = None
        self._stopped = False
        self._pid = os.getpid()
        # Held while it counts. All are reentrant: a signal handler, or a log handler that this
        # very report calls, may report.
        self._reporting = threading.RLock()
        # Held while foreign code writes or logs, which may hold locks of its own meanwhile.
        self._writing = threading.RLock()
        self._recording = threading.RLock()
        self._counted: dict[int, _Counted] = {}
        self._since_s = monotonic()
        _remember(self)
        self.start()

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<ConsoleReporter every {self._period_s:g} s, {state}>"

    @property
    def running(self) -> bool:
        """Whether it reports by itself."""
        task = self._task
        return task is not None and task.alive

    def start(self) -> None:
        """Report again, after `stop`. Counts from now on. Nothing if it runs.

        Raises:
            RuntimeError: The system has no room for a thread.
        """
        with self._reporting:
            if self.running and not self._stopped:
                return
            self._look()
            self._stopped = False
            self._task = supervisor.start("console-reporter", self._run, self._in_child)

    def stop(self, timeout: float = _STOP_PATIENCE_S) -> None:
        """Write a last report, of the time since the one before, and end. Twice is fine.

        Args:
            timeout: Seconds that it waits at most, for a stream that blocks.
        """
        timeout_s = _checked_timeout(timeout)
        self._stopped = True
        task = self._task
        if task is not None:
            task.stop(timeout_s)

    def report(self) -> None:
        """Write a report now: of the time since the last one, or since it was made.

        The next one comes when it would have come, and is of the time since this one.
        """
        with self._reporting:
            lines = self._lines()
        if lines:
            # Not with the other lock held: a stream that blocks must keep nobody from start().
            with self._writing:
                self._write(lines)
            with self._recording:
                self._record(lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self, stopping: threading.Event) -> None:
        """What the thread does."""
        next_s = monotonic() + self._period_s
        while not stopping.wait(max(0.0, next_s - monotonic())):
            self.report()
            # On a grid, so that reports don't drift; but never one for each that was missed.
            next_s = max(next_s + self._period_s, monotonic())
        self.report()

    def _in_child(self) -> None:
        """Count from the fork on: what was before, the parent reports."""
        self._renew()
        self._look()

    def _renew(self) -> None:
        """Renew in a forked child, once, what a thread that it does not have may have held."""
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._reporting = threading.RLock()
        self._writing = threading.RLock()
        self._recording = threading.RLock()
        stream = self._sink()
        if self in _fork.stuck and stream is not None and _line_file(stream) is None:
            self._failed = stream
            _say(
                "the console reporter was writing to %s when this process was forked; "
                "the child writes nothing there",
                stream,
            )

    # Counting

    def _open(self) -> Iterable[Reported]:
        if self._limiters is None:
            return [*live_limiters(), *live_remotes()]
        return self._limiters

    def _look(self) -> None:
        """Begin to count now."""
        with self._reporting:
            self._counted, self._since_s = {}, monotonic()
            self._count()

    def _count(self) -> list[tuple[Reported, Any]]:
        """Read the counters of those that are open, and remember them."""
        read: list[tuple[Reported, Any]] = []
        for limiter in self._open():
            try:
                stats: Any = limiter.stats()
            except NanolimitError:  # it is closed, or its shared table is gone
                continue
            # A limiter of the process's own is not held: whoever forgets it is rid of it.
            held = weakref.ref(limiter) if is_limiter(limiter) else _holding(limiter)
            self._counted[id(limiter)] = _Counted(held, stats)
            read.append((limiter, stats))
        return read

    def _lines(self) -> list[_Line | _RemoteLine]:
        """Return a line for each that is open, and count anew from here."""
        before, since_s = self._counted, self._since_s
        self._counted, self._since_s = {}, monotonic()
        period_s = self._since_s - since_s
        lines: list[_Line | _RemoteLine] = []
        for limiter, stats in self._count():
            known = before.get(id(limiter))
            if isinstance(limiter, Remote):
                last = None if known is None or known.watched() is not limiter else known.stats
                lines.append(_remote_line(limiter, last, stats, period_s))
            elif known is not None and known.watched() is limiter:
                lines.append(_line(limiter, known.stats, stats, period_s))
            elif not _is_shared(limiter):
                # It was made since: all that it ever did belongs to this period.
                lines.append(_line(limiter, None, stats, period_s))
            # What others did with a shared table before it was looked at is of no known period.
        return lines

    # Writing

    def _sink(self) -> Writable | None:
        stream = sys.stderr if self._stream is None else self._stream
        return None if stream is self._failed else stream

    def _write(self, lines: list[_Line | _RemoteLine]) -> None:
        stream = self._sink()
        if stream is None:
            return
        text = "".join(f"nanolimit[{os.getpid()}] {line}\n" for line in lines)
        try:
            file = _line_file(stream)
            if file is None:
                _write_to(stream, text)
            else:
                _write_past(file.descriptor, text.encode(file.encoding, "backslashreplace"))
        except Exception as error:
            self._failed = stream
            _say(
                "the console reporter can't write to %s, and does so no more",
                stream,
                error=error,
            )

    def _record(self, lines: list[_Line | _RemoteLine]) -> None:
        if not self._log:
            return
        for line in lines:
            try:
                if not _logger.isEnabledFor(logging.INFO):
                    return
                _logger.info("%s", line, extra=line._asdict())
            except Exception:  # a broken logging set-up must not end the reporter
                return


def _checked_period(period: object) -> float:
    period_ns = nanoseconds("period", period)
    if not _LEAST_PERIOD_S * NS_PER_SECOND <= period_ns <= _MOST_PERIOD_S * NS_PER_SECOND:
        raise ValueError(
            f"period must be {_LEAST_PERIOD_S} to {_MOST_PERIOD_S} seconds, not {shown(period)}"
        )
    return period_ns / NS_PER_SECOND


def _checked_timeout(timeout: object) -> float:
    timeout_ns = nanoseconds("timeout", timeout)
    if timeout_ns < 0:
        raise ValueError(f"timeout must be >= 0 seconds, not {shown(timeout)}")
    return min(timeout_ns, _MOST_PERIOD_S * NS_PER_SECOND) / NS_PER_SECOND


def _checked_limiters(limiters: object) -> tuple[Reported, ...] | None:
    if limiters is None:
        return None
    if _is_watched(limiters) or isinstance(limiters, str) or not isinstance(limiters, Iterable):
        raise TypeError(f"limiters must be limiters in a list, not {shown(limiters)}")
    found: dict[int, Reported] = {}
    for limiter in limiters:
        if not _is_watched(limiter):
            raise TypeError(f"limiters must be limiters, not {shown(limiter)} among them")
        found[id(limiter)] = limiter
    if not found:
        raise ValueError("limiters must hold at least one; leave it out for all")
    return tuple(found.values())


def _is_watched(limiter: object) -> bool:
    return callable(getattr(limiter, "stats", None)) and hasattr(limiter, "name")


def _is_shared(limiter: Watched) -> bool:
    return not isinstance(limiter, RateLimiter) or limiter._shared is not None


def _holding(limiter: Reported) -> Callable[[], Reported]:
    return lambda: limiter


def _line(limiter: Watched, before: Stats | None, now: Stats, period_s: float) -> _Line:
    def since(counter: str) -> int:
        # A table that was made anew under its name begins at 0: what it has is of this period.
        past = 0 if before is None else getattr(before, counter)
        new: int = getattr(now, counter)
        return new - past if new >= past else new

    allowed, denied = since("allowed"), since("denied")
    # Two reports may follow each other within one tick of the clock.
    seconds = max(period_s, 1e-9)
    decided = allowed + denied
    return _Line(
        limiter=limiter.name,
        allowed=allowed,
        denied=denied,
        would_deny=since("would_deny"),
        overflowed=since("overflowed"),
        evicted=since("evicted"),
        allowed_per_s=allowed / seconds,
        denied_per_s=denied / seconds,
        denied_percent=100 * denied / decided if decided else 0.0,
        keys=now.keys,
        capacity_keys=now.capacity,
        memory_bytes=now.memory_bytes,
        period_s=period_s,
        all_processes=_is_shared(limiter),
    )


def _remote_line(
    limiter: Remote, before: RemoteStats | None, now: RemoteStats, period_s: float
) -> _RemoteLine:
    def since(counter: str) -> int:
        new: int = getattr(now, counter)
        return new if before is None else new - int(getattr(before, counter))

    allowed, denied = since("allowed"), since("denied")
    seconds = max(period_s, 1e-9)
    decided = allowed + denied
    return _RemoteLine(
        limiter=limiter.name,
        allowed=allowed,
        denied=denied,
        denied_locally=since("denied_locally"),
        degraded=since("degraded"),
        failures=since("failures"),
        unknown=since("unknown"),
        leased=since("leased"),
        allowed_per_s=allowed / seconds,
        denied_per_s=denied / seconds,
        denied_percent=100 * denied / decided if decided else 0.0,
        period_s=period_s,
    )


def _rate(per_s: float) -> str:
    """A rate with three digits or more, and none that mean nothing."""
    return f"{per_s:,.0f}/s" if per_s >= 100 else f"{per_s:.1f}/s"


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    if size < 1024:
        return f"{size_bytes} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1023.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:,.1f} TiB"


class _File(NamedTuple):
    """The file that a stream writes to."""

    descriptor: int
    encoding: str


def _line_file(stream: object) -> _File | None:
    """Return the file of a stream that is written line by line, such as sys.stderr; else None.

    Lines go there past the stream, since nothing of them would stay in it anyway. The stream has a
    lock that CPython does not renew in a forked child, and that makes the interpreter abort if a
    daemon thread holds it at the end: one that is stuck in a pipe nobody reads, for instance. And
    no child inherits half a report. Only for streams of Python's own whose every layer is known.
    """
    if os.name != "posix" or type(stream) is not io.TextIOWrapper:
        return None
    if stream.closed or not (stream.line_buffering or stream.write_through):
        return None
    layer = stream.buffer
    raw = layer.raw if type(layer) is io.BufferedWriter else layer
    if type(raw) is not io.FileIO or stream.encoding.lower() not in ("utf-8", "ascii"):
        return None
    return _File(raw.fileno(), stream.encoding)


def _write_past(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            return  # it was made non-blocking and is full: the next report finds more room, or not


def _write_to(stream: Writable, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:  # a limiter's name that the stream's encoding does not know
        stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
    flush = getattr(stream, "flush", None)
    if callable(flush):
        flush()


def _say(message: str, stream: object, error: BaseException | None = None) -> None:
    with suppress(Exception):  # a broken logging set-up must not end the reporter
        name = getattr(stream, "name", None)
        what = name if isinstance(name, str) else f"a {type(stream).__name__}"
        _logger.warning(message, what, exc_info=error)


def _remember(reporter: ConsoleReporter) -> None:
    global _all
    with _adding:
        _all = (*[each for each in _all if each() is not None], weakref.ref(reporter))


def _reporters() -> list[ConsoleReporter]:
    found = [each() for each in _all]
    return [each for each in found if each is not None]


class _Fork(threading.local):
    """What a fork that is under way holds, in the thread that forks."""

    def __init__(self) -> None:
        self.held: list[threading.RLock] = []
        self.stuck: list[ConsoleReporter] = []  # those that would not let go of their stream


_fork = _Fork()


def _before_fork() -> None:
    # A fork waits for reports that are being written, but not for ever. A child that has copied the
    # held lock of a stream could never write there, nor even end, and both would write what the
    # stream has buffered.
    _fork.held, _fork.stuck = [], []
    for reporter in _reporters():
        if not _held(reporter._writing):
            _fork.stuck.append(reporter)
        _held(reporter._recording)  # logging renews its own locks in the child


def _held(lock: threading.RLock) -> bool:
    """Hold a lock for the fork, if it can be had soon."""
    if not lock.acquire(timeout=_FORK_PATIENCE_S):
        return False
    _fork.held.append(lock)
    return True


def _after_in_parent() -> None:
    held, _fork.held, _fork.stuck = _fork.held, [], []
    for lock in held:
        lock.release()


def _after_in_child() -> None:
    global _adding
    _adding = threading.RLock()
    for reporter in _reporters():
        reporter._renew()  # those that run were renewed when the supervisor started them
    _fork.held, _fork.stuck = [], []


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
