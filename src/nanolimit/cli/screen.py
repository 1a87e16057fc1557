"""What `nanolimit top` draws: a table in detail, or a line for each of several.

Only texts are made here, for so many columns and lines; where they go and when is not known. What
others chose, keys above all, is escaped before it gets into one.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nanolimit.cli import quota as quotas
from nanolimit.cli.pulse import clock_text
from nanolimit.cli.report import printable, share
from nanolimit.cli.table import binary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from nanolimit.cli.pulse import Offender, Rate, Reading

_LABEL_COLUMNS = 12
# How many beats may make a column of the picture of the rates.
_BEATS = (1, 2, 5, 10, 20, 50, 100)
_FULL_SHARE = 0.9
_MOST_MARKS = 2


@dataclass(frozen=True)
class Frame:
    """How large a picture may be, and what it may be made of."""

    columns: int
    lines: int | None = None
    """None: as many as it takes."""

    ascii_only: bool = False
    """For terminals that can't show blocks: other signs, and escapes for what is not ASCII."""

    interval_s: float = 1.0
    """From beat to beat."""

    def safe(self, text: str) -> str:
        """A text that somebody else chose, harmless to a terminal and in its place."""
        text = _few_marks(printable(text))
        return text.encode("ascii", "backslashreplace").decode() if self.ascii_only else text

    def clipped(self, text: str, columns: int) -> str:
        """A text cut to so many columns of the terminal; some characters take two."""
        if cell_len(text) <= columns:
            return text
        end = "..." if self.ascii_only else "…"
        return set_cell_size(text, max(0, columns - len(end))).rstrip() + end

    def bar(self, part: float, columns: int) -> str:
        """A bar that is filled to this share, 0 to 1; neither empty nor full if it isn't."""
        full, empty = "#." if self.ascii_only else "█░"
        filled = round(min(1.0, max(0.0, part)) * columns)
        if part > 0:
            filled = max(1, filled)
        if part < 1:
            filled = min(columns - 1, filled)
        return full * filled + empty * (columns - filled)

    def sparkline(self, values: Sequence[float | None], top: float) -> str:
        """A sign for each value, the higher the more; a space where there is none."""
        steps = "_.-=+*#@" if self.ascii_only else "▁▂▃▄▅▆▇█"
        line = []
        for value in values:
            if value is None:
                line.append(" ")
            else:
                step = int(value / top * len(steps)) if top > 0 else 0
                # The lowest sign is for nothing at all.
                step = max(step, 1) if value > 0 else 0
                line.append(steps[min(step, len(steps) - 1)])
        return "".join(line)


def _few_marks(text: str) -> str:
    """The text with marks escaped that would pile up on a letter, into the lines above."""
    kept, run = [], 0
    for char in text:
        run = run + 1 if unicodedata.category(char) in ("Mn", "Me") else 0
        kept.append(char if run <= _MOST_MARKS else char.encode("unicode_escape").decode("ascii"))
    return "".join(kept)


# A table in detail


def detail(reading: Reading, frame: Frame, footer: str = "") -> RenderableType:
    """A table, and as many of its offenders as there is room for."""
    lines = [*_title(reading, frame), *_rates(reading, frame), *_fill(reading, frame)]
    ending = [Text(footer, style="dim")] if footer else []
    room = None if frame.lines is None else frame.lines - len(lines) - len(ending) - 1
    lines += [Text(), *_offenders(reading, frame, room), *ending]
    return Group(*(_fitted(line, frame) for line in lines))


def _fitted(line: Text, frame: Frame) -> Text:
    line.no_wrap, line.overflow = True, "crop" if frame.ascii_only else "ellipsis"
    return line


def _line(label: str, *parts: str | tuple[str, str]) -> Text:
    return Text.assemble((f"{label:<{_LABEL_COLUMNS}}", "dim"), *parts)


def _title(reading: Reading, frame: Frame) -> list[Text]:
    now = clock_text(reading.time)
    name = frame.clipped(
        frame.safe(reading.name), max(8, frame.columns - _LABEL_COLUMNS - len(now) - 2)
    )
    gap = " " * max(2, frame.columns - _LABEL_COLUMNS - cell_len(name) - len(now))
    limits = " and ".join(
        f"{quota.limit:,} per {quotas.span(quota.window_ns)}" for quota in reading.quotas
    )
    lines = [
        _line("table", (name, "bold cyan"), gap, (now, "dim")),
        _line("", (frame.safe(reading.path), "dim")),
        _line("limit", (limits, "bold"), (f"  {reading.algorithm or ''}", "dim")),
    ]
    if reading.own_clock:
        lines.append(_line("clock", "its limiters bring one of their own: live keys can't be told"))
    if reading.info is not None and reading.info.state == "stale":
        lines.append(_line("state", ("of another boot: the next limiter makes it anew", "yellow")))
    if reading.note:
        lines.append(_line("note", (frame.safe(reading.note), "yellow")))
    if reading.problem:
        lines.append(_line("waiting", (frame.safe(reading.problem), "bold yellow")))
    lines.append(Text())
    return lines


def _rates(reading: Reading, frame: Frame) -> list[Text]:
    stats, rate = reading.stats, reading.rate
    if stats is None:
        return []
    decided = stats.allowed + stats.denied
    in_all = f"   in all {decided:,}, denied {share(stats.denied, decided)}"
    if reading.problem:
        return [_line("decisions", "none to see", (in_all, "dim"))]
    if rate is None:
        return [_line("decisions", "counting ...", (in_all, "dim"))]
    room = max(8, frame.columns - _LABEL_COLUMNS - 12)
    each, allowed = _columns(reading, frame, room, lambda rate: rate.allowed_per_s)
    _, denied = _columns(reading, frame, room, lambda rate: rate.denied_per_s)
    # One scale for both, so that they can be compared.
    top = max((value for value in (*allowed, *denied) if value is not None), default=0.0)
    spanned = f"the last {span(len(allowed) * each)}, {each:g} s a column"
    return [
        _line(
            "decisions",
            (f"{per_second(rate.decisions_per_s)}, ", "bold"),
            (f"denied {percent(rate.denied_share)}", "bold red" if rate.denied_per_s else "bold"),
            (in_all, "dim"),
        ),
        _line(
            "allowed",
            f"{per_second(rate.allowed_per_s):<12}",
            (frame.sparkline(allowed, top), "green"),
        ),
        _line(
            "denied",
            f"{per_second(rate.denied_per_s):<12}",
            (frame.sparkline(denied, top), "red"),
        ),
        _line("", (f"{spanned}, up to {per_second(top)}", "dim")),
    ]


def _columns(
    reading: Reading, frame: Frame, columns: int, value: Callable[[Rate], float]
) -> tuple[float, list[float | None]]:
    """Means of as many beats as make a column: how many seconds it spans, and the columns.

    All that is kept is shown: a column spans the more, the longer one has looked.
    """
    beats = len(reading.history)
    each = next((each for each in _BEATS if beats // each + 2 <= columns), _BEATS[-1])
    # Beats are numbered from the first on, so that a column stays what it is until it leaves.
    first = reading.beats - len(reading.history)
    sums: dict[int, list[float]] = {}
    for number, rate in enumerate(reading.history, first):
        values = sums.setdefault(number // each, [])
        if rate is not None:
            values.append(value(rate))
    means = [sum(values) / len(values) if values else None for values in sums.values()]
    while means and means[0] is None:
        del means[0]  # before there was anything to see
    return each * frame.interval_s, means


def _fill(reading: Reading, frame: Frame) -> list[Text]:
    stats, info = reading.stats, reading.info
    if stats is None:
        return []
    full = stats.keys / stats.capacity if stats.capacity else 0.0
    columns = min(30, max(6, frame.columns - _LABEL_COLUMNS - 50))
    keys = [f"{stats.keys:,} of {stats.capacity:,} ({share(stats.keys, stats.capacity)})"]
    if full >= 1:
        keys.append("full")
    elif full >= _FULL_SHARE:
        keys.append("nearly full")
    if reading.live_keys is not None:
        keys.append(f"{reading.live_keys:,} live")
    style = "red" if full >= _FULL_SHARE else "cyan"
    lines = [_line("keys", (frame.bar(full, columns), style), "  ", ", ".join(keys))]
    memory = binary(stats.memory_bytes)
    if stats.log_capacity_bytes:
        memory += (
            f", long logs {binary(stats.log_bytes)} of {binary(stats.log_capacity_bytes)} "
            f"({share(stats.log_bytes, stats.log_capacity_bytes)})"
        )
    lines.append(_line("memory", memory))
    counted: list[tuple[str, str]] = []
    for name in ("evicted", "overflowed", "stalled"):
        number = getattr(stats, name)
        counted.append((f"{number:,} {name}   ", "bold yellow" if number else ""))
    if stats.would_deny:
        counted.append((f"{stats.would_deny:,} would be denied if it enforced", ""))
    lines.append(_line("besides", *counted))
    if info is not None:
        pids = reading.pids
        listed = f": {', '.join(map(str, pids[:10]))}{', ...' * (len(pids) > 10)}" if pids else ""
        dead = len(reading.dead)
        died = f"   {dead:,} died without signing off" if dead else ""
        lines.append(_line("processes", f"{len(pids):,}{listed}", (died, "yellow")))
    return lines


def _offenders(reading: Reading, frame: Frame, room: int | None) -> list[Text]:
    title = Text("Denied most, in the last 8 to 10 minutes", style="bold")
    if reading.problem:
        return []
    if not reading.track_top:
        text = "It has no room for who is denied most: make its limiters with track_top=100."
        return [Text(text, style="dim")]
    if not reading.top:
        # Any table has room for them.
        text = "nobody (limiters that were made without track_top=100 don't tell)"
        return [title, Text(text, style="dim")]
    shown = reading.top if room is None else reading.top[: max(0, room - 2)]
    head = f"{'denied':>11}  {'error':>9}  {'share':>8}  {'last':>9}"
    columns = max(8, frame.columns - len(head) - 2)
    rows = [(_key(each, frame, columns), each) for each in shown]
    widest = max((key.cell_len for key, _ in rows), default=3)
    columns = min(columns, max(3, widest))
    lines = [title, Text(f"{'key':<{columns}}  {head}", style="dim")]
    for key, each in rows:
        key.pad_right(columns - key.cell_len)
        error = f"-{each.error:,}" if each.error else "0"
        lines.append(
            Text.assemble(
                key,
                (f"  {each.denied:>11,}", "red"),
                f"  {error:>9}  {percent(each.share):>8}  {_last(reading, each):>9}",
            )
        )
    return lines


def _key(each: Offender, frame: Frame, columns: int) -> Text:
    """The key, and of what type if it is no text."""
    kind = "" if isinstance(each.key, str | bytes | tuple) else f" {type(each.key).__name__}"
    text = frame.clipped(frame.safe(each.text), max(4, columns - len(kind)))
    return Text.assemble((text, "cyan"), (kind, "dim"))


def _last(reading: Reading, each: Offender) -> str:
    seconds = reading.ago_s(each)
    # By a clock of the limiters' own it is told as that clock has it.
    return f"at {each.last_denied:.6g}" if seconds is None else ago(seconds)


# Several tables


def overview(
    readings: Sequence[Reading],
    frame: Frame,
    footer: str = "",
    *,
    chosen: int | None = None,
    unusable: Sequence[str] = (),
) -> RenderableType:
    """A line for each table; the chosen one is marked."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    wide = frame.columns >= 100
    for name in _COLUMNS:
        if not wide and name not in _NARROW:
            continue
        left = name in ("table", "limit", "last minutes", "most")
        grid.add_column(
            name,
            justify="left" if left else "right",
            header_style="dim",
            style="red" if name == "denied" else "cyan" if name == "table" else "",
            no_wrap=True,
            overflow="crop" if frame.ascii_only else "ellipsis",
        )
    # The head, how many more there are, those that can't be watched, a blank line and the footer.
    others = 2 + bool(unusable) + 2 * bool(footer)
    room = len(readings) if frame.lines is None else max(1, frame.lines - others)
    first = 0 if chosen is None else max(0, min(chosen - room // 2, len(readings) - room))
    for number, reading in enumerate(readings[first : first + room], first):
        mark = "" if chosen is None else "> " if number == chosen else "  "
        cells = _row(reading, frame, mark)
        row = [cells[name] for name in _COLUMNS if wide or name in _NARROW]
        grid.add_row(*row, style="bold" if number == chosen else "")
    lines: list[RenderableType] = [grid]
    if len(readings) > room:
        lines.append(_fitted(Text(f"{len(readings) - room:,} more", style="dim"), frame))
    if unusable:
        listed = ", ".join(frame.safe(name) for name in unusable[:5])
        more = ", ..." if len(unusable) > 5 else ""
        text = f"not to be watched: {listed}{more} (nanolimit ls says why)"
        lines.append(_fitted(Text(text, style="yellow"), frame))
    if footer:
        lines += [Text(), _fitted(Text(footer, style="dim"), frame)]
    return Group(*lines)


_COLUMNS = ("table", "limit", "decisions", "denied", "last minutes", "full", "processes", "most")
_NARROW = ("table", "decisions", "denied", "full", "most")


def _row(reading: Reading, frame: Frame, mark: str) -> dict[str, Text]:
    stats, rate = reading.stats, reading.rate
    cells: dict[str, str] = dict.fromkeys(_COLUMNS, "")
    cells["table"] = mark + frame.clipped(frame.safe(reading.name), 30)
    cells["limit"] = frame.clipped("; ".join(map(quotas.text, reading.quotas)), 24)
    if rate is not None:
        cells["decisions"] = per_second(rate.decisions_per_s)
        cells["denied"] = percent(rate.denied_share)
        _, columns = _columns(reading, frame, 20, lambda rate: rate.decisions_per_s)
        top = max((value for value in columns if value is not None), default=0.0)
        cells["last minutes"] = frame.sparkline(columns, top)
    if stats is not None:
        cells["full"] = share(stats.keys, stats.capacity)
    if reading.info is not None:
        cells["processes"] = f"{len(reading.pids):,}"
    if reading.problem:
        cells["most"] = "lost: waiting for it"
    elif reading.top:
        cells["most"] = frame.clipped(frame.safe(reading.top[0].text), 24)
    return {name: Text(text) for name, text in cells.items()}


# Words


def per_second(rate: float) -> str:
    """A rate as one says it: ``0/s``, ``0.25/s``, ``12.5/s``, ``1,234/s``."""
    if rate >= 100:
        return f"{rate:,.0f}/s"
    if rate >= 10:
        return f"{rate:.1f}/s"
    return f"{rate:.2f}/s" if rate else "0/s"


def percent(part: float | None) -> str:
    """A share, 0 to 1, as a percentage that is never rounded to none or to all."""
    if part is None:
        return "-"
    if 0 < part < 1:
        # In parts per billion: what `share` is told must be whole.
        return share(max(1, min(10**9 - 1, round(part * 10**9))), 10**9)
    return share(round(part), 1)


def ago(seconds: float) -> str:
    """How long something is ago: ``now``, ``12 s``, ``3 min``, ``2 h``."""
    if seconds < 1:
        return "now"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def span(seconds: float) -> str:
    """A length of time: ``45 s``, ``5 min``."""
    return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:.3g} min"
