"""Shared tables on the command line: which there are, what is in one, how large one would be."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from nanolimit import Quota, shared
from nanolimit.algorithm import DEFAULT
from nanolimit.cli import quota as quotas
from nanolimit.cli.report import clipped, printable, share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from nanolimit.algorithm import Algorithm
    from nanolimit.shared import TableInfo

_COUNT = re.compile(r"(?P<number>\d+(?:\.\d+)?(?:e\d{1,2})?)(?P<unit>[km]?)", re.ASCII)
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
_BYTE_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def parse_count(text: str) -> int:
    """Read a number as people write it: ``1000000``, ``1_000_000``, ``1e6``, ``100k``, ``1.5M``.

    ValueError: it is none, or no whole one.
    """
    found = _COUNT.fullmatch(text.strip().replace("_", "").replace(",", "").lower())
    if found is None:
        raise ValueError(f"{text!r} is no number: write it like 1000000, 1e6, 100k or 1.5M")
    number = Fraction(found["number"]) * _UNITS[found["unit"]]
    if number.denominator != 1:
        raise ValueError(f"{text!r} is no whole number")
    return int(number)


def parse_quota(limit: str, per: str | None) -> Quota:
    """Read a limit, ``100`` with seconds beside it, or a whole quota, ``100/minute``.

    ValueError: what is wrong.
    """
    if limit.strip().isdecimal():
        return Quota.parse(f"{limit}/{per or '60'}s")
    if per is not None:
        raise ValueError(f"{limit!r} says its window itself; --per goes with a number alone")
    return Quota.parse(limit)


@dataclass(frozen=True)
class Size:
    """How much memory a table takes. ``free``: what there is where it would lie, if known."""

    keys: int
    quota: Quota
    typical: int | None
    algorithm: Algorithm
    bytes: int
    directory: Path
    free: int | None

    def as_json(self) -> dict[str, object]:
        """The object that ``--json`` prints."""
        return {
            "keys": self.keys,
            "limit": self.quota.limit,
            "per": self.quota.per,
            "typical": self.typical,
            "algorithm": self.algorithm,
            "bytes": self.bytes,
            "directory": str(self.directory),
            "free_bytes": self.free,
        }

    def show(self, console: Console) -> None:
        """Print the table's size, and whether there is room for it."""
        grid = _grid()
        grid.add_row("keys", f"{self.keys:,}")
        grid.add_row("limit", quotas.text(self.quota))
        if self.algorithm != DEFAULT:
            grid.add_row("algorithm", self.algorithm)
        if self.typical is not None:
            grid.add_row("typical", f"{self.typical:,} requests a key")
        each = f"{self.bytes / self.keys:,.1f} a key"
        grid.add_row("bytes", f"{self.bytes:,} ({binary(self.bytes)}), {each}")
        if self.free is not None:
            fits = self.bytes <= self.free
            grid.add_row(
                "room",
                Text(
                    f"{'it fits' if fits else 'it does not fit'}: {binary(self.free)} free in "
                    f"{printable(str(self.directory))}",
                    style="" if fits else "bold red",
                ),
            )
        console.print(grid)


def size(keys: int, quota: Quota, typical: int | None, algorithm: Algorithm = DEFAULT) -> Size:
    """Compute the size of a table, and look how much room there is. ValueError: out of range."""
    table_bytes = shared.bytes_for(keys, quota.limit, quota.per, typical, algorithm)
    directory = shared.directory() if hasattr(os, "statvfs") else Path()
    return Size(keys, quota, typical, algorithm, table_bytes, directory, _free_bytes(directory))


def _free_bytes(directory: Path) -> int | None:
    """What is free there, or where the directory would be made."""
    for path in (directory, directory.parent):
        try:
            room = os.statvfs(path)
        except (AttributeError, OSError):
            continue
        return room.f_bavail * room.f_frsize
    return None


def pids(table: TableInfo) -> list[int]:
    """Who lives and has the table open, each named once."""
    return sorted({process.pid for process in table.processes if process.alive})


def as_json(table: TableInfo) -> dict[str, object]:
    """The object that ``inspect --json`` prints, and ``ls --json`` a list of. Fields are added to
    it, never renamed or removed (see docs/cli.md).
    """
    return {
        "name": table.name,
        "path": table.path,
        "state": table.state,
        "problem": table.problem,
        "bytes": table.bytes,
        "limit": table.quota.limit if table.quota else None,
        "per": table.quota.per if table.quota else None,
        "max_keys": table.max_keys,
        "typical": table.typical,
        "algorithm": table.algorithm,
        "own_clock": table.own_clock,
        "created": table.created.isoformat() if table.created else None,
        "keys": table.keys,
        "live_keys": table.live_keys,
        "allowed": table.allowed,
        "denied": table.denied,
        "evicted": table.evicted,
        "overflowed": table.overflowed,
        "stalled": table.stalled,
        "log_bytes": table.log_bytes,
        "log_capacity_bytes": table.log_capacity_bytes,
        "pids": pids(table),
        "quotas": [{"limit": quota.limit, "per": quota.per} for quota in table.quotas],
        "max_log": table.max_log,
        "max_limit": table.max_limit,
        "track_top": table.track_top,
        "layout_version": table.layout_version,
        "boot_id": table.boot_id,
        "pid_namespace": table.pid_namespace,
        "time_namespace": table.time_namespace,
        "number": table.number,
        "part_of": table.part_of,
        "parts": [part.name for part in table.parts],
        "missing_parts": list(table.missing_parts),
        "processes": [
            {
                "pid": process.pid,
                "alive": process.alive,
                "command": process.command,
                "started": process.started.isoformat() if process.started else None,
            }
            for process in table.processes
        ],
    }


def show_list(
    console: Console, directory: Path, tables: Sequence[TableInfo], every: bool = False
) -> None:
    """Print a line for each limiter's table, and what is wrong with those that can't be used.

    every: a line for its further tables as well, which are those of a limiter with several quotas.
    """
    if not tables:
        console.print(Text(f"No tables in {printable(str(directory))}."))
        return
    named = {table.name for table in tables}
    hidden = [table for table in tables if table.part_of in named and not (every or table.problem)]
    tables = [table for table in tables if table not in hidden]
    columns = ("name", "limit", "keys", "full", "allowed", "denied", "size", "processes", "state")
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        left = column in ("name", "limit", "state")
        grid.add_column(
            column,
            justify="left" if left else "right",
            style="" if number else "cyan",
            header_style="dim",
            no_wrap=number > 0,
            overflow="fold",
        )
    for table in tables:
        # The first table of a limiter speaks for all of it, unless each has a line of its own.
        parts = () if every else tuple(part for part in table.parts if not part.problem)
        is_first = table.part_of is None
        grid.add_row(
            Text(printable(table.name)),
            _counts(table) if every else _limits(table),
            _count(table.keys),
            _full(table.keys, table.max_keys),
            _count(table.allowed) if is_first else "",
            _count(table.denied) if is_first else "",
            binary(table.bytes + sum(part.bytes for part in parts)),
            f"{len(pids(table)):,}" if table.quota else "",
            Text(table.state, style="" if table.state == "ready" else "yellow"),
        )
    console.print(grid)
    if hidden:
        console.print(
            Text(
                f"{len(hidden):,} further tables of these limiters are counted with them: --all "
                f"lists each."
                if len(hidden) > 1
                else "A further table of these limiters is counted with it: --all lists each.",
                style="dim",
            ),
            soft_wrap=True,
        )
    problems = [table for table in tables if table.problem]
    if problems:
        console.print()
    for table in problems:
        console.print(
            Text(printable(f"{table.name}: {table.problem}"), style="yellow"), soft_wrap=True
        )


def show(console: Console, table: TableInfo) -> None:
    """Print all that is known of a table."""
    grid = _grid()
    grid.add_row("table", Text(printable(table.path)))
    grid.add_row("state", Text(table.state, style="" if table.state == "ready" else "yellow"))
    more = f" ({binary(table.bytes)})" if table.bytes >= 1024 else ""
    grid.add_row("size", f"{table.bytes:,} bytes{more}")
    if table.quota is not None:
        _add_header(grid, table)
        _add_config(grid, table)
        _add_fill(grid, table)
        users = pids(table)
        listed = ", ".join(map(str, users[:20])) + (", ..." if len(users) > 20 else "")
        grid.add_row("processes", f"{len(users):,}" + (f": {listed}" if users else ""))
    console.print(grid)
    if table.problem:
        console.print(Text(printable(table.problem), style="yellow"), soft_wrap=True)
    if table.processes:
        console.print()
        console.print(_processes(table, console.width))
    if table.parts or table.missing_parts:
        console.print()
        console.print(_parts(table))
    for part in table.parts:
        if part.problem:
            text = printable(f"{part.name}: {part.problem}")
            console.print(Text(text, style="yellow"), soft_wrap=True)


def _add_header(grid: Table, table: TableInfo) -> None:
    boot = "another boot" if table.state == "stale" else "this boot"
    grid.add_row("layout", f"version {table.layout_version}, of {boot} ({table.boot_id})")
    grid.add_row(
        "namespaces", f"PID {table.pid_namespace or 'none'}, time {table.time_namespace or 'none'}"
    )
    if table.created is not None:
        grid.add_row("made", f"{table.created:%Y-%m-%d %H:%M:%S} UTC")
    if table.part_of is not None:
        what = f"{_part(table)} of the limiter of table {table.part_of!r}"
        grid.add_row("part", Text(printable(what)))


def _add_config(grid: Table, table: TableInfo) -> None:
    grid.add_row("limit", Text(_limits(table), style="bold"))
    if table.quota is not None and table.max_limit != table.quota.limit:
        grid.add_row("laid out for", f"limits up to {_count(table.max_limit)}")
    grid.add_row("algorithm", table.algorithm)
    if table.algorithm == DEFAULT:
        grid.add_row("typical", f"room for {_count(table.typical)} requests a key on average")
    if table.max_log is not None:
        grid.add_row("max_log", f"{_count(table.max_log)} requests a key")
    if table.track_top:
        grid.add_row("offenders", f"room for the {_count(table.track_top)} keys denied most")
    clock = "its limiters bring one of their own" if table.own_clock else "the system's"
    grid.add_row("clock", clock)


def _add_fill(grid: Table, table: TableInfo) -> None:
    keys = f"{_count(table.keys)} of {_count(table.max_keys)}"
    grid.add_row("keys", f"{keys} ({_full(table.keys, table.max_keys)})")
    if table.live_keys is not None:
        grid.add_row("live keys", _count(table.live_keys))
    if table.log_capacity_bytes:
        logs = f"{binary(table.log_bytes or 0)} of {binary(table.log_capacity_bytes)}"
        grid.add_row("long logs", f"{logs} ({_full(table.log_bytes, table.log_capacity_bytes)})")
    for name in ("allowed", "denied", "evicted", "overflowed", "stalled"):
        grid.add_row(name, _count(getattr(table, name)))


def _processes(table: TableInfo, columns: int) -> Table:
    """A line for each process; one that has several limiters on the table is named once."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column("process", justify="right", header_style="dim")
    grid.add_column("started", header_style="dim", no_wrap=True)
    grid.add_column("command", header_style="dim", no_wrap=True, overflow="ellipsis")
    # Cut here: rich would take the room for a long one from the other columns.
    room = max(10, columns - 36)
    for process in dict.fromkeys(table.processes):
        if not process.alive:
            started = "has died"
        elif process.started is None:
            started = "not known"
        else:
            started = f"{process.started:%Y-%m-%d %H:%M:%S} UTC"
        grid.add_row(
            str(process.pid),
            Text(started, style="" if process.alive else "yellow"),
            Text(clipped(printable(process.command or ""), room)),
        )
    return grid


def _parts(table: TableInfo) -> Table:
    """A line for each further table of the limiter."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(("part", "counts", "keys", "full", "size", "state")):
        left = column in ("part", "counts", "state")
        grid.add_column(
            column,
            justify="left" if left else "right",
            style="" if number else "cyan",
            header_style="dim",
            overflow="fold",
        )
    for part in table.parts:
        grid.add_row(
            Text(printable(part.name)),
            _counts(part),
            _count(part.keys),
            _full(part.keys, part.max_keys),
            binary(part.bytes),
            Text(part.state, style="" if part.state == "ready" else "yellow"),
        )
    for name in table.missing_parts:
        grid.add_row(Text(printable(name)), "", "", "", "", Text("missing", style="yellow"))
    return grid


def _part(table: TableInfo) -> str:
    """What a further table of a limiter is for."""
    if table.number is not None:
        return f"quota {table.number + 1}"
    return "what Redis has refused" if table.keeps_denials else "what stands of keys"


def _counts(table: TableInfo) -> str:
    """What one table counts."""
    if table.quota is None:
        return ""
    if table.keeps_denials:
        return "denials of a Redis"
    if table.number is None:
        return "blocks, penalties, quotas of keys"
    return quotas.text(table.quota)


def _limits(table: TableInfo) -> str:
    """The quotas of a table's limiter; of a further table, what it counts."""
    if table.number is None:
        return _counts(table)
    return "; ".join(map(quotas.text, table.quotas))


def binary(number: int) -> str:
    """A number of bytes as one says it: ``5.6 MiB``."""
    for unit, name in _BYTE_UNITS:
        if number >= unit:
            return f"{number / unit:,.1f} {name}"
    return f"{number} bytes"


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    return grid


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _full(part: int | None, whole: int | None) -> str:
    return "" if part is None or whole is None else share(part, whole)
