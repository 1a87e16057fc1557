"""Limiters as their watchers see them, with any numbers and any behaviour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Counters(NamedTuple):
    """Like `nanolimit.Stats`, which only the core can make. Each number is another one."""

    allowed: int = 7
    denied: int = 3
    keys: int = 2
    evicted: int = 5
    overflowed: int = 4
    memory_bytes: int = 24_576
    capacity: int = 1_000
    would_deny: int = 1
    stalled: int = 6
    log_bytes: int = 512
    log_capacity_bytes: int = 8_192


class Offender(NamedTuple):
    """Like `nanolimit.TopKey`."""

    key: object
    denied: int
    error: int = 0
    last_denied: float = 0.0


class Table:
    """What `nanolimit.shared.watch` gives, as far as metrics are concerned."""

    quotas = ()
    algorithm = "sliding-log"

    def __init__(self, name: str = "table", *keys: tuple[object, int], track_top: int = 100):
        self.name = name
        self.closed = False
        self.counters = Counters()
        self.track_top = track_top
        self.offenders = [Offender(key, denied) for key, denied in keys]
        self.asked: list[int] = []
        self.reads = 0
        #: Called before anything is read, to raise what it likes.
        self.before: Callable[[], object] = lambda: None
        self.before_top: Callable[[], object] = lambda: None

    def stats(self) -> Any:
        self.reads += 1
        self.before()
        return self.counters

    def top(self, n: int = 10) -> Any:
        self.before_top()
        self.asked.append(n)
        return sorted(self.offenders, key=lambda each: -each.denied)[:n]
