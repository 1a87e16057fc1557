"""Was a limit kept? Judged from outside, by when each decision was made at the earliest and latest.

Whoever asks a limiter knows the time before and after the call; the decision was made somewhere in
between. What is reported here is certain: whatever the true times were, they break the limit. So
there is no false alarm, however busy the machine is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """A decision was made at some time from `before_ns` to `after_ns`."""

    before_ns: int
    after_ns: int


def over_admission(allowed: Sequence[Span], limit: int, window_ns: int) -> str | None:
    """Say where more than `limit` were allowed in less than a window; None if nowhere for sure."""
    afters: list[int] = []
    for first in sorted(allowed, reverse=True):
        insort(afters, first.after_ns)
        # All from here on were made later than this, and these before the window was over.
        count = bisect_left(afters, first.before_ns + window_ns)
        if count > limit:
            return f"{count} allowed within {window_ns} ns from {first.before_ns} on, not {limit}"
    return None


def false_denial(
    denied: Sequence[Span], allowed: Sequence[Span], limit: int, window_ns: int
) -> str | None:
    """Say which one was denied although less than `limit` can have been in its window; or None.

    Args:
        denied: Those to judge.
        allowed: All that were allowed, and all that may have been: calls that were not answered.
    """
    befores = sorted(span.before_ns for span in allowed)
    afters = sorted(span.after_ns for span in allowed)
    # Time stamps are rounded up to a tick, of which 2**28 or more make a window.
    tick_ns = (window_ns >> 28) + 1
    for span in denied:
        began = bisect_left(befores, span.after_ns)
        ended = bisect_right(afters, span.before_ns - window_ns - tick_ns)
        if began - ended < limit:
            return f"denied at {span} with {began - ended} in the window, not {limit}"
    return None


def tiles(allowed: Sequence[Span], window_ns: int, end_ns: int) -> list[int]:
    """Count how many were allowed in each window, laid end to end from the first one on.

    A window begins with one that was allowed, the first after the window before. Only those that
    were over at `end_ns` are counted.
    """
    counts = []
    left = sorted(allowed, key=lambda span: span.after_ns)
    while left and left[0].before_ns + window_ns <= end_ns:
        over = left[0].before_ns + window_ns
        inside = [span for span in left if span.after_ns < over]
        counts.append(len(inside))
        left = left[len(inside) :]
    return counts
