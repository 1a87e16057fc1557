"""The short benchmark: what a check costs on this machine, beside calls that do nothing.

Every row is a loop in Python over the same number of calls. The rows take turns, round by round, so
that a machine that gets slower in between slows all of them. The empty loop of the same round is
subtracted, and a row's ratio to the floor (a call into C that only reads the clock) is the median
of the rounds' ratios.
"""

from __future__ import annotations

import gc
import platform
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from random import Random
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from nanolimit import RateLimiter, __version__
from nanolimit._core import Control

if TYPE_CHECKING:
    from rich.console import Console

USERS = 100_000
FLOOR = "an empty call into C that reads the clock"
EMPTY = "an empty call into C"

# A window so short that every call finds the former ones gone: for rows in which all are allowed.
_SHORT_WINDOW_S = 1e-6
# More than there can be calls in a microsecond.
_SHORT_LIMIT = 100
# For rows in which all are denied, after the first.
_LONG_WINDOW_S = 3_600.0

Advance = Callable[[int], None]


class DequeLimiter:
    """What people write themselves: a deque of times for each user, in a dict, under a lock."""

    def __init__(self, limit: int, per: float) -> None:
        self._limit = limit
        self._per = per
        self._times: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def allow(self, key: str) -> bool:
        """Count the request of `key` if it fits."""
        now = time.monotonic()
        with self._lock:
            times = self._times.get(key)
            if times is None:
                times = self._times[key] = deque()
            while times and now - times[0] >= self._per:
                times.popleft()
            if len(times) >= self._limit:
                return False
            times.append(now)
            return True


@dataclass(frozen=True)
class Row:
    """One line of the result: nanoseconds a call without the loop, and the ratio to the floor."""

    name: str
    ns: float
    ratio: float
    control: bool


@dataclass(frozen=True)
class Result:
    """All rows, and what they were measured with."""

    rows: list[Row]
    loop_ns: float
    rounds: int
    calls: int

    def as_json(self) -> dict[str, object]:
        """The object that ``nanolimit bench --json`` prints."""
        return {
            "nanolimit": __version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "system": platform.system(),
            "rounds": self.rounds,
            "calls": self.calls,
            "empty_loop_ns": round(self.loop_ns, 2),
            "rows": [
                {
                    "name": row.name,
                    "ns": round(row.ns, 2),
                    "ratio_to_floor": round(row.ratio, 3),
                    "control": row.control,
                }
                for row in self.rows
            ],
        }

    def show(self, console: Console) -> None:
        """Print the table."""
        console.print(
            Text(
                f"nanolimit {__version__}, {platform.python_implementation()} "
                f"{platform.python_version()}, {platform.system()} {platform.machine()}: "
                f"{self.rounds} rounds of {self.calls:,} calls"
            )
        )
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("", no_wrap=True)
        table.add_column("ns a call", justify="right")
        table.add_column("of the floor", justify="right")
        table.add_row(
            "control: the empty loop (subtracted below)", f"{self.loop_ns:.1f}", "", style="dim"
        )
        for row in self.rows:
            name = f"control: {row.name}" if row.control else row.name
            if row.name == FLOOR:
                name += " (the floor)"
            table.add_row(
                name, f"{row.ns:.1f}", f"{row.ratio:.2f}", style="dim" if row.control else ""
            )
        console.print(table)
        console.print(
            Text(
                "Medians. A ratio is the median of the rounds' ratios.",
                style="dim",
            )
        )


@dataclass(frozen=True)
class _Task:
    name: str
    call: Callable[[str], object]
    # The keys to call with, one after the other; one key: the same again and again.
    keys: Sequence[str]
    control: bool = False


def _loop(call: Callable[[str], object] | None, keys: Sequence[str], calls: int) -> int:
    """Nanoseconds of `calls` calls. call=None: of the loop alone."""
    clock = time.perf_counter_ns
    if len(keys) > 1:
        # The keys as they come, so that looking them up costs what it costs in a service.
        if call is None:
            began = clock()
            for _ in keys:
                pass
            return clock() - began
        began = clock()
        for key in keys:
            call(key)
        return clock() - began
    key = keys[0]
    if call is None:
        began = clock()
        for _ in repeat(None, calls):
            pass
        return clock() - began
    began = clock()
    for _ in repeat(None, calls):
        call(key)
    return clock() - began


def measure(rounds: int, calls: int, advance: Advance | None = None) -> Result:
    """Measure all rows. `advance` is told of each round. RuntimeError: a row did not do what its
    name says.
    """
    random = Random(1)
    names = [f"user:{number}" for number in range(USERS)]
    several = random.choices(names, k=calls)
    one = ("user:42",)
    control = Control()
    denying = RateLimiter(5, per=_LONG_WINDOW_S, name="bench-denied")
    allowing = RateLimiter(_SHORT_LIMIT, per=_SHORT_WINDOW_S, name="bench-allowed")
    checking = RateLimiter(5, per=_LONG_WINDOW_S, name="bench-check")
    # All of the many stay in the table, as the short window would not have it.
    many = RateLimiter(5, per=_LONG_WINDOW_S, name="bench-many")
    deque_denying = DequeLimiter(5, _LONG_WINDOW_S)
    deque_allowing = DequeLimiter(_SHORT_LIMIT, _SHORT_WINDOW_S)
    deque_many = DequeLimiter(5, _LONG_WINDOW_S)
    for _ in range(5):
        for key in names:
            many.allow(key)
            deque_many.allow(key)
        denying.allow(one[0])
        checking.allow(one[0])
        deque_denying.allow(one[0])
    tasks = [
        _Task(EMPTY, control.empty, one, control=True),
        _Task(FLOOR, control.clock, one, control=True),
        _Task("allow, one user, denied", denying.allow, one),
        _Task("allow, one user, allowed", allowing.allow, one),
        _Task("check, one user, denied", checking.check, one),
        _Task(f"allow, {USERS:,} users at random, denied", many.allow, several),
        _Task("deque + dict + lock, one user, denied", deque_denying.allow, one),
        _Task("deque + dict + lock, one user, allowed", deque_allowing.allow, one),
        _Task(f"deque + dict + lock, {USERS:,} users at random, denied", deque_many.allow, several),
    ]
    loops: list[float] = []
    spent: list[list[float]] = [[] for _ in tasks]
    collecting = gc.isenabled()
    gc.disable()
    try:
        # The first round warms everything up and is thrown away.
        for number in range(-1, rounds):
            loop_one = _loop(None, one, calls) / calls
            loop_several = _loop(None, several, calls) / calls
            # Every other round backwards, so that no row always follows the same one.
            order = range(len(tasks)) if number % 2 else range(len(tasks) - 1, -1, -1)
            for index in order:
                task = tasks[index]
                ns = _loop(task.call, task.keys, calls) / calls
                if number >= 0:
                    spent[index].append(ns - (loop_one if len(task.keys) == 1 else loop_several))
            if number >= 0:
                loops.append(loop_one)
                if advance is not None:
                    advance(1)
    finally:
        if collecting:
            gc.enable()
    _check(denying.stats().allowed == 5, "allow, denied")
    _check(checking.stats().allowed == 5, "check, denied")
    _check(allowing.stats().denied == 0, "allow, allowed")
    _check(many.stats().allowed == 5 * USERS and not many.stats().overflowed, "allow at random")
    floor = spent[[task.name for task in tasks].index(FLOOR)]
    rows = [
        Row(
            task.name,
            statistics.median(times),
            statistics.median(ns / base for ns, base in zip(times, floor, strict=True)),
            task.control,
        )
        for task, times in zip(tasks, spent, strict=True)
    ]
    for limiter in (denying, allowing, checking, many):
        limiter.close()
    return Result(rows, statistics.median(loops), rounds, calls)


def _check(held: bool, row: str) -> None:
    if not held:
        raise RuntimeError(f"the row {row!r} measured something else than it says")
