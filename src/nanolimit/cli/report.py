"""What a replay found, as tables for people or as one JSON object for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from nanolimit.cli import quota as quotas
from nanolimit.cli import timestamp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from nanolimit.cli.account import Account
    from nanolimit.cli.log import Requests
    from nanolimit.cli.replay import Count, Hit, Outcome

# The shares of denied requests for which the lowest limit is looked for: (parts, whole, text).
SHARES: tuple[tuple[int, int, str], ...] = ((1, 1000, "0.1 %"), (1, 100, "1 %"), (5, 100, "5 %"))
_NAME_CHARS = 48


@dataclass(frozen=True)
class Report:
    """Everything a replay found. ``lowest`` stands in the order of SHARES; None: the engine takes
    no limit so large.
    """

    files: Sequence[str]
    key: str
    requests: Requests
    outcome: Outcome
    top: list[Hit]
    sweep: list[Count]
    lowest: list[Count | None]
    plot: str | None
    account: Account | None = None

    def as_json(self) -> dict[str, object]:
        """The object that ``--json`` prints. Fields are added to it, never renamed or removed (see
        docs/cli.md).
        """
        requests, outcome = self.requests, self.outcome
        return {
            "files": list(self.files),
            "key": self.key,
            "limit": outcome.quota.limit,
            "per": outcome.quota.per,
            "quotas": [{"limit": quota.limit, "per": quota.per} for quota in outcome.quotas],
            "requests": len(requests),
            "allowed": len(requests) - outcome.denied,
            "denied": outcome.denied,
            "users": len(requests.names),
            "users_denied": outcome.users_denied,
            "lines": requests.lines,
            "bad_lines": requests.bad_lines,
            "bad": [
                {"file": bad.file, "line": bad.line, "reason": bad.reason, "text": bad.text}
                for bad in requests.bad
            ],
            "no_key": requests.no_key,
            "first": timestamp.iso(requests.times_ns[0]) if len(requests) else None,
            "last": timestamp.iso(requests.times_ns[-1]) if len(requests) else None,
            "top": [
                {
                    "user": hit.name,
                    "requests": hit.requests,
                    "denied": hit.denied,
                    "worst_minute": {
                        "minute": timestamp.iso(hit.minute_ns),
                        "requests": hit.minute_requests,
                        "denied": hit.minute_denied,
                    },
                }
                for hit in self.top
            ],
            "sweep": [
                {
                    "limit": count.quota.limit,
                    "per": count.quota.per,
                    "denied": count.denied,
                    "users_denied": count.users_denied,
                }
                for count in self.sweep
            ],
            "lowest": [
                {
                    "under": parts / whole,
                    "limit": count.quota.limit if count else None,
                    "per": outcome.quota.per,
                    "denied": count.denied if count else None,
                    "users_denied": count.users_denied if count else None,
                }
                for (parts, whole, _), count in zip(SHARES, self.lowest, strict=True)
            ],
            "plot": self.plot,
            "redis": None if self.account is None else self.account.as_json(),
        }

    def show(self, console: Console) -> None:
        """Print the tables."""
        requests, outcome = self.requests, self.outcome
        total, users = len(requests), len(requests.names)
        console.print(self._summary())
        if self.top:
            title(console, "The users hit hardest")
            console.print(self._top())
        if self.sweep:
            title(console, "What other limits would deny")
            table = table_of(("limit", "denied", "share", "users denied", "share"))
            for count in self.sweep:
                table.add_row(*_count_row(count, total, users))
            console.print(table)
        if total:
            alone = ", alone," if len(outcome.quotas) > 1 else ""
            title(
                console,
                f"The lowest limit{alone} that denies less than a given share of the requests",
            )
            table = table_of(("under", "limit", "denied", "share", "users denied", "share"))
            for (_, _, text), lowest in zip(SHARES, self.lowest, strict=True):
                if lowest is None:
                    table.add_row(text, "beyond what the engine takes", "", "", "", "")
                else:
                    table.add_row(text, *_count_row(lowest, total, users))
            console.print(table)
        if self.account is not None:
            self.account.show(console)
        self._show_bad(console)
        if self.plot is not None:
            console.print()
            console.print(Text(f"Picture: {self.plot}"), soft_wrap=True)
        if not outcome.denied and total:
            console.print(f"Nobody is denied at {quotas.texts(outcome.quotas)}.")

    def _summary(self) -> Table:
        requests, outcome = self.requests, self.outcome
        total, users = len(requests), len(requests.names)
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        table.add_row("log", Text(", ".join(printable(file) for file in self.files)))
        if total:
            first, last = (
                timestamp.moment(requests.times_ns[0]),
                timestamp.moment(requests.times_ns[-1]),
            )
            table.add_row("time", f"{first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC")
        table.add_row("requests", f"{total:,} of {users:,} users (key: {printable(self.key)})")
        table.add_row("limit", Text(quotas.texts(outcome.quotas), style="bold"))
        table.add_row(
            "denied",
            Text(
                f"{outcome.denied:,} requests ({share(outcome.denied, total)})",
                style="bold red" if outcome.denied else "",
            ),
        )
        table.add_row(
            "users denied",
            f"{outcome.users_denied:,} of {users:,} ({share(outcome.users_denied, users)})",
        )
        if requests.no_key:
            table.add_row("left out", f"{requests.no_key:,} lines that name no user")
        return table

    def _top(self) -> Table:
        table = table_of(
            ("user", "requests", "denied", "share", "worst minute (UTC)", "requests", "denied")
        )
        for hit in self.top:
            table.add_row(
                Text(clipped(printable(hit.name))),
                f"{hit.requests:,}",
                Text(f"{hit.denied:,}", style="red"),
                share(hit.denied, hit.requests),
                f"{timestamp.moment(hit.minute_ns):%Y-%m-%d %H:%M}",
                f"{hit.minute_requests:,}",
                f"{hit.minute_denied:,}",
            )
        return table

    def _show_bad(self, console: Console) -> None:
        requests = self.requests
        if not requests.bad_lines:
            return
        console.print()
        console.print(
            Text(f"Bad lines: {requests.bad_lines:,} of {requests.lines:,}", style="yellow")
        )
        for bad in requests.bad:
            console.print(Text("  " + printable(str(bad))), soft_wrap=True)
        if requests.bad_lines > len(requests.bad):
            console.print(Text(f"  and {requests.bad_lines - len(requests.bad):,} more"))


def share(part: int, whole: int) -> str:
    """A percentage that is never rounded to none or to all."""
    if not part or not whole:
        return "0 %"
    if part == whole:
        return "100 %"
    percent = 100 * part / whole
    if percent < 0.01:
        return "< 0.01 %"
    text = f"{percent:.2f}" if percent < 1 else f"{percent:.1f}"
    return "> 99.9 %" if text == "100.0" else f"{text} %"


def printable(text: str) -> str:
    """The text with control characters escaped: a log line must not steer the terminal."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def clipped(text: str, chars: int = _NAME_CHARS) -> str:
    """The text, cut to `chars` characters."""
    return text if len(text) <= chars else text[: chars - 1] + "…"


def title(console: Console, text: str) -> None:
    """Print the headline of a table."""
    console.print()
    console.print(Text(text, style="bold"))


def table_of(columns: Sequence[str]) -> Table:
    """A table of figures; the first column says what of."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        right = number > 0 and not column.startswith(("worst", "limit"))
        table.add_column(
            column,
            justify="right" if right else "left",
            style="" if number else "cyan",
            header_style="dim",
            no_wrap=number > 0,
            overflow="fold",
        )
    return table


def _count_row(count: Count, total: int, users: int) -> tuple[str, ...]:
    return (
        quotas.text(count.quota),
        f"{count.denied:,}",
        share(count.denied, total),
        f"{count.users_denied:,}",
        share(count.users_denied, users),
    )
