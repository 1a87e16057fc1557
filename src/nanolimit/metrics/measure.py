"""What is told of a limiter: each measure once, for all exporters.

Names and units are OpenTelemetry's. Prometheus' follow from them by OpenTelemetry's own rule, so
that a limiter reads the same however its numbers travel: ``nanolimit.memory`` in ``By`` is
``nanolimit_memory_bytes``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanolimit._core import Stats
    from nanolimit.remote import RemoteStats

    # The values of a point's labels that come after the limiter's, and its number.
    Row = tuple[tuple[str, ...], int]

__all__ = ["ALL", "MEASURES", "REMOTE_MEASURES", "Measure"]


@dataclass(frozen=True)
class Measure:
    """One thing that is told of limiters."""

    name: str
    """In OpenTelemetry's form, with dots."""

    kind: Literal["counter", "amount", "gauge"]
    """counter: only grows, until a limiter is made anew. amount: goes up and down, and those of
    several limiters add up. gauge: goes up and down, and adding them means nothing."""

    unit: str
    """As UCUM writes it: ``By`` are bytes, what stands in braces is counted."""

    text: str
    """What it is, in one sentence."""

    rows: Callable[[Stats], tuple[Row, ...]] | None
    """Takes its numbers from the counters. None: they are those of the keys denied most."""

    labels: tuple[str, ...] = ("limiter",)
    """What tells its points apart."""

    remote: Callable[[RemoteStats], tuple[Row, ...]] | None = None
    """Takes its numbers from the counters of a remote limiter. None: those don't have it."""


MEASURES = (
    Measure(
        "nanolimit.decisions",
        "counter",
        "{decision}",
        "Requests decided.",
        lambda stats: ((("allowed",), stats.allowed), (("denied",), stats.denied)),
        ("limiter", "result"),
        lambda stats: ((("allowed",), stats.allowed), (("denied",), stats.denied)),
    ),
    Measure(
        "nanolimit.would_deny",
        "counter",
        "{decision}",
        "Requests among the allowed ones that would have been denied, had the limiter enforced.",
        lambda stats: (((), stats.would_deny),),
    ),
    Measure(
        "nanolimit.overflows",
        "counter",
        "{decision}",
        "Requests that on_full decided, because the table had no room.",
        lambda stats: (((), stats.overflowed),),
    ),
    Measure(
        "nanolimit.stalled",
        "counter",
        "{decision}",
        "Requests that on_stall decided, because a stopped process held what they needed.",
        lambda stats: (((), stats.stalled),),
    ),
    Measure(
        "nanolimit.evictions",
        "counter",
        "{key}",
        "Keys displaced while they were live, and keys that evict() dropped.",
        lambda stats: (((), stats.evicted),),
    ),
    Measure(
        "nanolimit.keys",
        "amount",
        "{key}",
        "Keys in the table; some may be idle, their places are taken again by themselves.",
        lambda stats: (((), stats.keys),),
    ),
    Measure(
        "nanolimit.capacity.keys",
        "amount",
        "{key}",
        "Keys that may be live at a time.",
        lambda stats: (((), stats.capacity),),
    ),
    Measure(
        "nanolimit.memory",
        "amount",
        "By",
        "Memory of the table.",
        lambda stats: (((), stats.memory_bytes),),
    ),
    Measure(
        "nanolimit.log",
        "amount",
        "By",
        "Memory for logs that are too long for a key's own place: in use.",
        lambda stats: (((), stats.log_bytes),),
    ),
    Measure(
        "nanolimit.log.capacity",
        "amount",
        "By",
        "Memory for logs that are too long for a key's own place: what there can be.",
        lambda stats: (((), stats.log_capacity_bytes),),
    ),
    Measure(
        "nanolimit.top_denied",
        "gauge",
        "{decision}",
        "Denials of the keys denied most, in the last 8 to 10 minutes; if the limiter tracks them.",
        None,
        ("limiter", "key"),
    ),
)

# Of remote limiters only. What these have in common with others, the decisions, stands above.
REMOTE_MEASURES = (
    Measure(
        "nanolimit.denied_locally",
        "counter",
        "{decision}",
        "Requests among the denied ones whose denial was repeated without asking the store.",
        lambda stats: (),
        remote=lambda stats: (((), stats.denied_locally),),
    ),
    Measure(
        "nanolimit.leased",
        "counter",
        "{decision}",
        "Requests among the allowed ones that were served from a lease without asking the store.",
        lambda stats: (),
        remote=lambda stats: (((), stats.leased),),
    ),
    Measure(
        "nanolimit.degraded",
        "counter",
        "{decision}",
        "Requests that on_error decided, because the store could not be asked.",
        lambda stats: (),
        remote=lambda stats: (((), stats.degraded),),
    ),
    Measure(
        "nanolimit.store.failures",
        "counter",
        "{call}",
        "Calls to the store that failed, by whether it may have counted the request nevertheless.",
        lambda stats: (),
        ("limiter", "outcome"),
        lambda stats: (
            (("uncounted",), stats.failures - stats.unknown),
            (("unknown",), stats.unknown),
        ),
    ),
)

ALL = (*MEASURES, *REMOTE_MEASURES)
