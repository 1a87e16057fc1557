"""What a server advises: how long to wait before the next call.

Four kinds of fields tell it. An answer that refuses the call (429, 503) is heeded in this order, of
which the first that can be read counts; of any other answer the first is left out, for there it
means something else.

1. ``Retry-After``: seconds, or a date (RFC 9110, section 10.2.3).
2. ``RateLimit: "default";r=0;t=30`` (draft-ietf-httpapi-ratelimit-headers-11): nothing is left, for
   so many seconds. Of several, the longest that has nothing left. If a refusal does not say how
   long, the window of the policy of that name in ``RateLimit-Policy``.
3. ``RateLimit-Remaining`` and ``RateLimit-Reset``: drafts of it up to 06.
4. ``X-RateLimit-Remaining`` and ``X-RateLimit-Reset``, or ``X-Rate-Limit-...``. No standard says
   what is in them. Nothing is left if less than 1 remains. The reset is read as seconds from now
   up to a year, as seconds since 1970 from 10**9, as milliseconds since 1970 from 10**12.

Dates and times since 1970 are compared with the answer's own ``Date``, if it has one, so that a
clock that is wrong, here or there, does no harm. An answer from a cache (``Age`` above 0) tells
nothing of what is left, only its ``Retry-After`` counts.

What a server says is not to be trusted: whatever can't be read counts as not said, and nothing is
longer than a day. Nothing here raises.
"""

from __future__ import annotations

import re
import time
from calendar import timegm
from datetime import date
from typing import TYPE_CHECKING

from nanolimit.integrations.item import read_items

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Headers(Protocol):
        """A mapping that finds names in any case, and joins fields of one name with commas."""

        def get(self, key: str, /) -> str | None:
            """Return the value of a field, None if there is none."""


__all__ = ["LONGEST_S", "NAMES", "advised"]

#: No advice is longer, in seconds.
LONGEST_S = 86_400.0

# Where seconds from now end, and seconds and milliseconds since 1970 begin and end (in 5138).
_YEAR_S = 366 * 86_400
_EPOCH_S = (10**9, 10**11)
_EPOCH_MS = (10**12, 10**14)

_REMAINING = (
    ("ratelimit-remaining", "ratelimit-reset"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("x-rate-limit-remaining", "x-rate-limit-reset"),
)

#: The fields that are looked at, in lower case.
NAMES = frozenset(
    {"retry-after", "date", "age", "ratelimit", "ratelimit-policy"}.union(*_REMAINING)
)

# A fraction is not of the standard, but servers send it.
_SECONDS = re.compile(r"(?P<whole>[0-9]+)(?P<fraction>\.[0-9]*)?")
_NUMBER = re.compile(r"-?[0-9]{1,20}(?:\.[0-9]{0,20})?")

# RFC 9110, section 5.6.7: how a date is written now, and the two ways of before.
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = "|".join(_MONTHS)
_TIME = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES = tuple(
    # Of other alphabets, what lower() makes an "s" or a "k" is none.
    re.compile(form, re.I | re.A)
    for form in (
        rf"[a-z]{{3}}, (?P<day>[0-9]{{2}}) (?P<month>{_MONTH}) (?P<year>[0-9]{{4}}) {_TIME} GMT",
        rf"[a-z]{{6,9}}, (?P<day>[0-9]{{2}})-(?P<month>{_MONTH})-(?P<year>[0-9]{{2}}) {_TIME} GMT",
        rf"[a-z]{{3}} (?P<month>{_MONTH}) (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})",
    )
)


def advised(
    headers: Headers, refused: bool, clock: Callable[[], float] = time.time
) -> float | None:
    """Say how many seconds the server of an answer wants nobody to call.

    Args:
        headers: The answer's header fields.
        refused: Whether the answer refuses the call, as 429 and 503 do.
        clock: What shows the seconds since 1970, for an answer without a date.

    Returns:
        Seconds, 0.0 to 86,400.0. None if it does not say.

    Never raises, whatever the fields hold. A few microseconds.
    """
    if refused:
        seconds = _retry_after(headers, clock)
        if seconds is not None:
            return _bounded(seconds)
    age = _number(headers.get("age"))
    if age is not None and age > 0:
        return None
    seconds = _rate_limit(headers, refused)
    if seconds is None:
        seconds = _reset(headers, clock)
    return None if seconds is None else _bounded(seconds)


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_S)


def _retry_after(headers: Headers, clock: Callable[[], float]) -> float | None:
    field = headers.get("retry-after")
    if field is None:
        return None
    delay = _SECONDS.fullmatch(field.strip(" \t"))
    if delay is None:
        end = epoch(field)
        return None if end is None else end - _now(headers, clock)
    # A number of a megabyte is none that int() should see.
    whole = delay["whole"].lstrip("0")[:10] or "0"
    return int(whole) + float((delay["fraction"] or "")[:10].rstrip(".") or 0)


def _rate_limit(headers: Headers, refused: bool) -> float | None:
    field = headers.get("ratelimit")
    if field is None:
        return None
    items = read_items(field)
    if items is None:
        return None
    longest: float | None = None
    windows: dict[str, int] | None = None
    for item in items:
        left, seconds = item.parameters.get("r"), item.parameters.get("t")
        wrong = not isinstance(item.value, str) or not isinstance(left, int) or left < 0
        if wrong or ("t" in item.parameters and not (isinstance(seconds, int) and seconds >= 0)):
            return None  # one malformed item is a malformed field
        if left:
            continue
        if seconds is None and refused:
            windows = _windows(headers) if windows is None else windows
            seconds = windows.get(item.value) if isinstance(item.value, str) else None
        if isinstance(seconds, int) and (longest is None or seconds > longest):
            longest = seconds
    return longest


def _windows(headers: Headers) -> dict[str, int]:
    """Return the windows of the policies, in seconds."""
    items = read_items(headers.get("ratelimit-policy") or "") or ()
    return {
        item.value: window
        for item in items
        if isinstance(item.value, str)
        and isinstance(window := item.parameters.get("w"), int)
        and window > 0
    }


def _reset(headers: Headers, clock: Callable[[], float]) -> float | None:
    for remaining_name, reset_name in _REMAINING:
        remaining = _number(headers.get(remaining_name))
        reset = _number(headers.get(reset_name))
        if remaining is None or reset is None or remaining >= 1 or reset < 0:
            continue
        if reset <= _YEAR_S:
            return reset
        if _EPOCH_S[0] <= reset < _EPOCH_S[1]:
            return reset - _now(headers, clock)
        if _EPOCH_MS[0] <= reset < _EPOCH_MS[1]:
            return reset / 1000 - _now(headers, clock)
    return None


def _number(field: str | None) -> float | None:
    if field is None:
        return None
    text = field.strip(" \t")
    return float(text) if _NUMBER.fullmatch(text) else None


def _now(headers: Headers, clock: Callable[[], float]) -> float:
    """Return the time that the server's clock shows, as seconds since 1970."""
    field = headers.get("date")
    answered = None if field is None else epoch(field)
    return clock() if answered is None else answered


def epoch(field: str) -> int | None:
    """Return a date of HTTP as seconds since 1970; None if it is none.

    Source: RFC 9110, section 5.6.7. The day of the week is not looked at.
    """
    text = field.strip(" \t")
    for form in _DATES:
        found = form.fullmatch(text)
        if found is not None:
            break
    else:
        return None
    month = _MONTHS.index(found["month"].lower()) + 1
    year, day = int(found["year"]), int(found["day"])
    hour, minute, second = int(found["hour"]), int(found["minute"]), int(found["second"])
    if len(found["year"]) == 2:  # not more than 50 years ahead
        now = time.gmtime().tm_year
        year += now - now % 100
        if year > now + 50:
            year -= 100
    if hour > 23 or minute > 59 or second > 60:  # 60: a leap second
        return None
    try:
        date(year, month, day)
    except ValueError:
        return None
    return timegm((year, month, day, hour, minute, second))
