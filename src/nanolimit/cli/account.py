"""What a rehearsal found, as tables for people or as one JSON object for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from nanolimit.cli import quota as quotas
from nanolimit.cli import timestamp
from nanolimit.cli.report import clipped, printable, share, table_of, title
from nanolimit.cli.table import binary

if TYPE_CHECKING:
    from rich.console import Console

    from nanolimit import Quota

# The policy by which no list is dropped.
_KEEPS_ALL = "noeviction"


@dataclass(frozen=True)
class Host:
    """A server, or a node of a cluster, as it describes itself. An empty text: not told."""

    software: str
    version: str
    maxmemory_bytes: int
    policy: str

    @property
    def warning(self) -> str | None:
        """What should be changed before it counts for a service."""
        if self.policy in ("", _KEEPS_ALL):
            return None
        when = (
            "once its memory is used up"
            if self.maxmemory_bytes
            else "as soon as it is given a maxmemory"
        )
        return (
            f"maxmemory-policy is {self.policy}: {when}, it drops lists that still count, and with "
            f"them what users have used. Set it to {_KEEPS_ALL}"
        )


@dataclass(frozen=True)
class Rate:
    """Requests that were checked in one way, and how long that took in all."""

    requests: int
    seconds: float

    @property
    def per_s(self) -> float:
        """Checks per second."""
        return self.requests / self.seconds


@dataclass(frozen=True)
class Difference:
    """A request on which the server and the local engine do not agree."""

    request: int
    """Its number in the order of the times, from 1 on."""

    time_ns: int
    user: str
    denied: bool
    """What the server says."""


@dataclass(frozen=True)
class Rehearsed:
    """What a limit did and cost on the server. None: not known, or there was nothing to measure."""

    quotas: tuple[Quota, ...]
    requests: int
    denied: int
    differences: int
    """Requests on which the server and the local engine do not agree."""

    first: list[Difference]
    """The first of them."""

    cached: int
    """Requests that the deny cache of one process would have answered without asking."""

    single: Rate | None
    """One call after the other."""

    single_us: tuple[float, float, float] | None
    """What a single call took: the median, what 99 in 100 did not exceed, and the longest."""

    pipelined: Rate | None
    at_once: int
    """Calls in one write."""

    server_us: float | None
    """The server's time for a check."""

    keys: int
    """Users that have a list at the busiest moment, by the log's clock."""

    lists: int
    peak_ns: int | None
    """When that was."""

    bytes_per_key: float | None
    """MEMORY USAGE of all lists of a key, at that moment."""

    used_bytes: int | None
    """How much the server's used_memory was larger then than before."""

    evicted: int
    """Keys that the server evicted meanwhile, of anybody's."""

    @property
    def bytes(self) -> int | None:
        """MEMORY USAGE of all lists at the busiest moment."""
        return None if self.bytes_per_key is None else round(self.keys * self.bytes_per_key)

    def as_json(self) -> dict[str, object]:
        """One entry of ``runs``."""
        single, pipelined = self.single, self.pipelined
        median, most, longest = self.single_us or (None, None, None)
        return {
            "quotas": [{"limit": quota.limit, "per": quota.per} for quota in self.quotas],
            "requests": self.requests,
            "denied": self.denied,
            "differences": self.differences,
            "first_differences": [
                {
                    "request": each.request,
                    "time": timestamp.iso(each.time_ns),
                    "user": each.user,
                    "redis": "denied" if each.denied else "allowed",
                    "local": "allowed" if each.denied else "denied",
                }
                for each in self.first
            ],
            "cached": self.cached,
            "single": {
                "requests": single.requests if single else 0,
                "per_s": single.per_s if single else None,
                "median_us": median,
                "p99_us": most,
                "longest_us": longest,
            },
            "pipelined": {
                "requests": pipelined.requests if pipelined else 0,
                "per_s": pipelined.per_s if pipelined else None,
                "at_once": self.at_once,
            },
            "server_us": self.server_us,
            "peak": {
                "time": None if self.peak_ns is None else timestamp.iso(self.peak_ns),
                "keys": self.keys,
                "lists": self.lists,
                "bytes_per_key": self.bytes_per_key,
                "bytes": self.bytes,
                "used_memory_bytes": self.used_bytes,
            },
            "evicted_keys": self.evicted,
        }


@dataclass(frozen=True)
class Account:
    """All that was found on a server. ``runs`` has the limit first, then those of the sweep."""

    where: str
    hosts: list[Host]
    clustered: bool
    round_trip_us: float | None
    """What an empty script takes, the median."""

    runs: list[Rehearsed]

    @property
    def differences(self) -> int:
        """Requests on which the server and the local engine do not agree, of all runs."""
        return sum(run.differences for run in self.runs)

    @property
    def warnings(self) -> list[str]:
        """What should be changed, each once."""
        found = (host.warning for host in self.hosts)
        return list(dict.fromkeys(each for each in found if each is not None))

    def as_json(self) -> dict[str, object]:
        """The object ``redis`` that ``--json`` prints."""
        return {
            "server": self.where,
            "cluster": self.clustered,
            "nodes": [
                {
                    "software": host.software,
                    "version": host.version,
                    "maxmemory_bytes": host.maxmemory_bytes,
                    "maxmemory_policy": host.policy or None,
                }
                for host in self.hosts
            ],
            "warnings": self.warnings,
            "round_trip_us": self.round_trip_us,
            "runs": [run.as_json() for run in self.runs],
        }

    def show(self, console: Console) -> None:
        """Print the tables."""
        title(console, "On the server")
        console.print(self._facts())
        if len(self.runs) > 1:
            title(console, "What other limits do and cost there")
            console.print(self._others())
        for run in self.runs:
            if run.differences:
                title(console, f"Where it differs from the local engine, {_limit(run)}")
                console.print(_differences(run))
        for warning in self.warnings:
            console.print()
            console.print(Text(f"Warning: {warning}", style="yellow"), soft_wrap=True)

    def _facts(self) -> Table:
        run = self.runs[0]
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        table.add_row("server", Text(f"{printable(self.where)}, {self._server()}"))
        if self.round_trip_us is not None:
            table.add_row("round trip", f"{_time(self.round_trip_us)} (an empty script)")
        table.add_row("decisions", _agreement(run))
        if run.single is not None and run.single_us is not None:
            median, most, longest = map(_time, run.single_us)
            table.add_row(
                "single calls",
                f"{run.single.per_s:,.0f} checks/s: {median} (median), {most} (99 %), {longest} "
                f"(longest) of {run.single.requests:,}",
            )
        if run.pipelined is not None:
            table.add_row(
                "pipelined",
                f"{run.pipelined.per_s:,.0f} checks/s, up to {run.at_once} in one write",
            )
        if run.server_us is not None:
            table.add_row(
                "server's time", f"{run.server_us:.1f} us a check ({1e6 / run.server_us:,.0f}/s)"
            )
        table.add_row(
            "deny cache",
            f"answers {run.cached:,} requests ({share(run.cached, run.requests)}) without asking",
        )
        if run.peak_ns is not None:
            table.add_row("memory", _memory(run))
        if run.used_bytes is not None and run.used_bytes > 0:
            table.add_row("used_memory", f"{binary(run.used_bytes)} more at that time")
        return table

    def _server(self) -> str:
        if not self.hosts:
            return "which does not let this user ask what it is (INFO)"
        kinds = ", ".join(dict.fromkeys(f"{each.software} {each.version}" for each in self.hosts))
        if self.clustered:
            kinds = f"a Cluster, {len(self.hosts)} nodes of it: {kinds}"
        policies = ", ".join(dict.fromkeys(each.policy for each in self.hosts if each.policy))
        most = sum(each.maxmemory_bytes for each in self.hosts)
        bound = f"maxmemory {binary(most)}" if most else "no maxmemory"
        return f"{kinds}, {bound}, {policies}" if policies else f"{kinds}, {bound}"

    def _others(self) -> Table:
        table = table_of(
            ("limit", "denied", "differ", "single/s", "pipelined/s", "by the cache", "keys at most",
             "bytes a key", "memory")
        )  # fmt: skip
        for run in self.runs[1:]:
            table.add_row(
                _limit(run),
                f"{run.denied:,}",
                Text(f"{run.differences:,}", style="bold red" if run.differences else ""),
                f"{run.single.per_s:,.0f}" if run.single else "",
                f"{run.pipelined.per_s:,.0f}" if run.pipelined else "",
                share(run.cached, run.requests),
                f"{run.keys:,}",
                "" if run.bytes_per_key is None else f"{run.bytes_per_key:,.0f}",
                "" if run.bytes is None else binary(run.bytes),
            )
        return table


def _limit(run: Rehearsed) -> str:
    return quotas.texts(run.quotas)


def _agreement(run: Rehearsed) -> Text:
    if not run.differences:
        return Text(f"the same as the local engine's, all {run.requests:,}")
    text = f"{run.differences:,} of {run.requests:,} differ from the local engine's"
    if run.evicted:
        text += f"; the server evicted {run.evicted:,} keys meanwhile"
    return Text(text, style="bold red")


def _differences(run: Rehearsed) -> Table:
    table = table_of(("user", "request", "time (UTC)", "server", "local engine"))
    for each in run.first:
        told = ("denied", "allowed") if each.denied else ("allowed", "denied")
        when = timestamp.iso(each.time_ns)
        table.add_row(Text(clipped(printable(each.user))), f"{each.request:,}", when, *told)
    return table


def _memory(run: Rehearsed) -> str:
    assert run.peak_ns is not None
    text = f"at most {run.keys:,} keys at a time ({timestamp.moment(run.peak_ns):%Y-%m-%d %H:%M})"
    if run.lists != run.keys:
        text += f" in {run.lists:,} lists"
    if run.bytes is not None and run.bytes_per_key is not None:
        text += f", {run.bytes_per_key:,.0f} bytes each: {binary(run.bytes)}"
    return text


def _time(us: float) -> str:
    return f"{us / 1000:,.2f} ms"
