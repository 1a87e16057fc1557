"""Lists of limits on the command line, and limits as people write them."""

from __future__ import annotations

import re

from nanolimit import Quota

NS = 1_000_000_000
_UNITS = ((604_800, "week"), (86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))
_ENTRY = re.compile(r"\s*(\d+)\s*((?:/|\bper\b).*)?", re.ASCII | re.DOTALL | re.IGNORECASE)


def parse(text: str) -> Quota:
    """Read a limit that requests are to be checked against. ValueError: what is wrong."""
    return Quota.parse(text)


def parse_all(text: str) -> tuple[Quota, ...]:
    """Read a limit of one quota or several: ``10/second; 1000/hour``. ValueError: what is wrong."""
    return Quota.parse_all(text)


def of_window(limit: int, window_ns: int) -> Quota:
    """The quota of `limit` in a window of so many nanoseconds. ValueError: out of range.

    Not through ``per=`` alone: a float does not hold every nanosecond of a long window.
    """
    return parse(f"{limit}/{window_ns // NS}.{window_ns % NS:09d}s")


def parse_list(text: str, default: Quota) -> list[Quota]:
    """Read limits with commas between: ``1,5,10,50/minute``. One that is named twice counts once.

    A number without a window takes that of the next one that has one; the last ones take that of
    `default`. ValueError: what is wrong, and with which.
    """
    quotas: list[Quota] = []
    window: str | None = None
    for entry in reversed(text.split(",")):
        found = _ENTRY.fullmatch(entry)
        if found is None:
            raise ValueError(
                f"{entry.strip()!r} in {text!r} is not a limit; write for example 1,5,10,50/minute"
            )
        number, own = found.groups()
        window = own or window
        if window is None:
            quotas.append(of_window(int(number), default.window_ns))
        else:
            quotas.append(parse(f"{number} {window}"))
    quotas.reverse()
    return list(dict.fromkeys(quotas))


def text(quota: Quota) -> str:
    """The quota as one says it: ``5/minute``, ``5/15 minutes``, ``5/0.5 seconds``."""
    return f"{quota.limit:,}/{span(quota.window_ns)}"


def texts(quotas: tuple[Quota, ...]) -> str:
    """Quotas that hold together: ``10/second; 1,000/hour``."""
    return "; ".join(map(text, quotas))


def span(length_ns: int) -> str:
    """A length of time as one says it after "per": ``minute``, ``15 minutes``, ``0.5 seconds``."""
    for seconds, unit in _UNITS:
        number, rest = divmod(length_ns, seconds * NS)
        if number and not rest:
            return unit if number == 1 else f"{number:,} {unit}s"
    return f"{length_ns / NS:g} seconds"
