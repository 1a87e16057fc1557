"""Time stamps of log lines: text or number to integer nanoseconds since the epoch, and back to
text.

All functions raise ValueError with a message fit for a list of bad lines.
"""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta, timezone

NS = 1_000_000_000
# What the engine's clock accepts: [0, 2^62) ns, which is 1970 to 2116.
_END_NS = 1 << 62

_MONTHS = {
    name: number
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), 1
    )
}
# The form of Apache's %t and nginx's $time_local; reused by the expression that reads whole lines.
APACHE = r"\d{2}/[A-Za-z]{3}/\d{4}:\d{2}:\d{2}:\d{2}(?:\.\d{1,9})? [+-]\d{4}"
_APACHE = re.compile(
    r"(\d{2})/([A-Za-z]{3})/(\d{4}):(\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,9}))? ([+-])(\d{2})(\d{2})",
    re.ASCII,
)
_ISO = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2})(?::(\d{2})(?:[.,](\d+))?)?"
    r"\s*(?:([Zz])|(?:([+-])(\d{2}):?(\d{2})?))?",
    re.ASCII,
)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _checked(ns: int, text: object) -> int:
    if not 0 <= ns < _END_NS:
        raise ValueError(f"time {str(text)[:40]!r} is not between the years 1970 and 2116")
    return ns


def _civil_ns(
    year: int,
    month: int,
    day: int,
    hour: int,
    minute: int,
    second: int,
    fraction: str | None,
    zone_s: int,
) -> int:
    """Nanoseconds of a date with the given offset from UTC. A leap second (60) is the second after
    59.
    """
    if second > 60:
        raise ValueError("second must be in 0..60")
    moment = datetime(year, month, day, hour, minute, tzinfo=timezone.utc)
    seconds = (moment - _EPOCH) // timedelta(seconds=1) + second - zone_s
    return seconds * NS + (int(fraction[:9].ljust(9, "0")) if fraction else 0)


def _zone_s(sign: str | None, hours: str | None, minutes: str | None) -> int:
    if sign is None:
        return 0
    offset = int(hours or 0) * 3600 + int(minutes or 0) * 60
    if offset >= 86_400 or int(minutes or 0) > 59:
        raise ValueError("no such offset from UTC")
    return -offset if sign == "-" else offset


def apache_ns(text: str) -> int:
    """Nanoseconds of ``17/May/2015:10:05:03 +0000``."""
    found = _APACHE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:40]!r} is not a time stamp")
    day, name, year, hour, minute, second, fraction, sign, zone_h, zone_m = found.groups()
    month = _MONTHS.get(name.capitalize())
    try:
        if month is None:
            raise ValueError(f"no month is called {name!r}")
        ns = _civil_ns(
            int(year),
            month,
            int(day),
            int(hour),
            int(minute),
            int(second),
            fraction,
            _zone_s(sign, zone_h, zone_m),
        )
    except ValueError as error:
        raise ValueError(f"time {text[:40]!r}: {error}") from None
    return _checked(ns, text)


def iso_ns(text: str) -> int:
    """Nanoseconds of an ISO 8601 date and time. Without an offset it is taken as UTC."""
    found = _ISO.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:40]!r} is not a time stamp")
    year, month, day, hour, minute, second, fraction, _, sign, zone_h, zone_m = found.groups()
    try:
        ns = _civil_ns(
            int(year),
            int(month),
            int(day),
            int(hour),
            int(minute),
            int(second or 0),
            fraction,
            _zone_s(sign, zone_h, zone_m),
        )
    except ValueError as error:
        raise ValueError(f"time {text[:40]!r}: {error}") from None
    return _checked(ns, text)


def epoch_ns(number: float) -> int:
    """Nanoseconds of a count since the epoch in seconds, milliseconds, microseconds or nanoseconds.

    The unit is told by the size: below 1e11 it is seconds (until the year 5138), below 1e14
    milliseconds, and so on. A float is taken to the nearest microsecond: that is all a float holds
    at today's date.
    """
    size = abs(number)
    if size < 1e11:
        scale = NS
    elif size < 1e14:
        scale = 1_000_000
    elif size < 1e17:
        scale = 1_000
    else:
        scale = 1
    if isinstance(number, int):
        return _checked(number * scale, number)
    if not math.isfinite(number):
        raise ValueError(f"time {number!r} is not a finite number")
    return _checked(round(number * (scale / 1_000)) * 1_000, number)


def value_ns(value: object) -> int:
    """Nanoseconds of a JSON value: a number, a number in a string, ISO 8601 or Apache's form."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"time {str(value)[:40]!r} is not a time stamp")
    if not isinstance(value, str):
        return epoch_ns(value)
    text = value.strip()
    if _NUMBER.fullmatch(text):
        return epoch_ns(
            int(text) if text.lstrip("+-").isdigit() and len(text) <= 20 else float(text)
        )
    if text[2:3] == "/":
        return apache_ns(text)
    return iso_ns(text)


def moment(ns: int) -> datetime:
    """The moment as an aware datetime in UTC, to the microsecond."""
    return _EPOCH + timedelta(microseconds=ns // 1_000)


def iso(ns: int) -> str:
    """ISO 8601 in UTC, as short as it is exact: ``2015-05-17T10:05:03Z``."""
    text = moment(ns).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{ns % NS:09d}".rstrip("0")
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"
