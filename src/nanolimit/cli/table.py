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
from nanolimit.cli.report import printable, share

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
    }


def show_list(console: Console, directory: Path, tables: Sequence[TableInfo]) -> None:
    """Print a line for each table, and what is wrong with those that can't be used."""
    if not tables:
        console.print(Text(f"No tables in {printable(str(directory))}."))
        return
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
        grid.add_row(
            Text(printable(table.name)),
            quotas.text(table.quota) if table.quota else "",
            _count(table.keys),
            _full(table.keys, table.max_keys),
            _count(table.allowed),
            _count(table.denied),
            binary(table.bytes),
            f"{len(pids(table)):,}" if table.quota else "",
            Text(table.state, style="" if table.state == "ready" else "yellow"),
        )
    console.print(grid)
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
        grid.add_row("limit", Text(quotas.text(table.quota), style="bold"))
        grid.add_row("algorithm", table.algorithm)
        if table.created is not None:
            grid.add_row("made", f"{table.created:%Y-%m-%d %H:%M:%S} UTC")
        if table.own_clock:
            grid.add_row("clock", "its limiters bring one of their own")
        keys = f"{_count(table.keys)} of {_count(table.max_keys)}"
        grid.add_row("keys", f"{keys} ({_full(table.keys, table.max_keys)})")
        if table.live_keys is not None:
            grid.add_row("live keys", _count(table.live_keys))
        if table.log_capacity_bytes:
            logs = f"{binary(table.log_bytes or 0)} of {binary(table.log_capacity_bytes)}"
            grid.add_row(
                "long logs", f"{logs} ({_full(table.log_bytes, table.log_capacity_bytes)})"
            )
        if table.algorithm == DEFAULT:
            grid.add_row("typical", f"room for {_count(table.typical)} requests a key on average")
        for name in ("allowed", "denied", "evicted", "overflowed", "stalled"):
            grid.add_row(name, _count(getattr(table, name)))
        users = pids(table)
        listed = ", ".join(map(str, users[:20])) + (", ..." if len(users) > 20 else "")
        grid.add_row("processes", f"{len(users):,}" + (f": {listed}" if users else ""))
    console.print(grid)
    if table.problem:
        console.print(Text(printable(table.problem), style="yellow"), soft_wrap=True)


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
