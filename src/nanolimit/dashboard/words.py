"""A limiter's quota in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanolimit.quota import Quota

_NS = 1_000_000_000
# No minute: "any 60 seconds" says better than "any minute" that it is not one of the clock's.
_UNITS = ((604_800, "week"), (86_400, "day"), (3_600, "hour"))


def span(length_ns: int) -> str:
    """Return a length of time as one says it after "any": ``60 seconds``, ``hour``, ``2 days``."""
    for seconds, unit in _UNITS:
        number, rest = divmod(length_ns, seconds * _NS)
        if number and not rest:
            return unit if number == 1 else f"{number:,} {unit}s"
    minutes, rest = divmod(length_ns, 60 * _NS)
    if minutes > 1 and not rest:
        return f"{minutes:,} minutes"
    seconds_text = _decimal(length_ns, _NS)
    return "second" if seconds_text == "1" else f"{seconds_text} seconds"


def _decimal(number: int, unit: int) -> str:
    whole, rest = divmod(number, unit)
    return f"{whole:,}.{rest:09d}".rstrip("0") if rest else f"{whole:,}"


def _pace(quota: Quota) -> str:
    """How often a bucket gives one unit back."""
    each_ns, rest = divmod(quota.window_ns, quota.limit)
    if rest == 0 and each_ns >= _NS:
        return f"one every {span(each_ns)}"
    rate = quota.limit * _NS / quota.window_ns
    return f"{rate:,.4g} a second" if rate >= 1 else f"one every {1 / rate:,.4g} seconds"


def _requests(number: int) -> str:
    return f"{number:,} {'request' if number == 1 else 'requests'}"


def sentence(quota: Quota, algorithm: str) -> str:
    """Say what a limiter of one quota lets pass."""
    requests, window = _requests(quota.limit), span(quota.window_ns)
    if algorithm == "sliding-log":
        return f"{requests} in any {window}, counted exactly"
    if algorithm == "gcra":
        return f"{requests} at once, then {_pace(quota)}: a bucket that fills in {_a(window)}"
    if algorithm == "fixed-window":
        return f"{requests} in {_a(window)} that begins with a key's first request"
    if algorithm == "sliding-counter":
        return f"{requests} in {_a(window)}, estimated from two windows that follow one another"
    return f"{requests} in {_a(window)} ({algorithm})"


def _a(window: str) -> str:
    if window[0].isdigit():
        return f"{window}"
    return f"{'an' if window.startswith('hour') else 'a'} {window}"


def sentences(quotas: Sequence[Quota], algorithm: str) -> list[str]:
    """Say it of each quota; a request must fit into all of them."""
    return [sentence(quota, algorithm) for quota in quotas]
