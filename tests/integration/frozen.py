"""Time that stands still until a test moves it, by each of the tools that people freeze it with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone

from tools import missing

# An odd instant: on no whole second, millisecond or window.
START = datetime(2026, 3, 1, 12, 34, 56, 789_013, tzinfo=timezone.utc)
START_S = START.timestamp()

Advance = Callable[[float], object]


@contextmanager
def freezegun() -> Iterator[Advance]:
    from freezegun import freeze_time

    with freeze_time(START) as frozen:
        yield lambda seconds: frozen.tick(timedelta(seconds=seconds))


@contextmanager
def time_machine() -> Iterator[Advance]:
    import time_machine as machine

    with machine.travel(START, tick=False) as traveller:
        yield lambda seconds: traveller.shift(timedelta(seconds=seconds))


@contextmanager
def hiro() -> Iterator[Advance]:
    if importlib.util.find_spec("hiro") is None:
        missing("hiro")
    import hiro as machine

    with machine.Timeline().freeze(START_S) as timeline:
        yield lambda seconds: timeline.forward(timedelta(seconds=seconds))


TOOLS = [freezegun, time_machine, hiro]
