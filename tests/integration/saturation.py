"""What must hold of the answers under more requests than the limit lets through."""

from __future__ import annotations

from itertools import pairwise

import pytest

from load import Load, Record
from server import WORKERS, Server
from windows import false_denial, over_admission, tiles

LIMIT = 40
WINDOW_S = 1.0
WINDOW_NS = 1_000_000_000
QUOTA = f"{LIMIT}/{WINDOW_S:g}s"

USERS = ["alice", "bob"]

_WINDOWS = 3
# Demand is no longer saturating when nobody was answered for so long.
_PAUSE_NS = WINDOW_NS // 4
_ATTEMPTS = 4


def check(record: Record) -> None:
    """Never one too many, and never one denied that had room.

    A request that got no answer may have been counted before its worker died. It is taken for
    allowed where that excuses a denial, and for never made where it would accuse. So what is
    missing of the limit is at most what was in flight at the kills.
    """
    assert over_admission(record.allowed, LIMIT, WINDOW_NS) is None
    possible = record.allowed + record.unanswered
    assert false_denial(record.denied, possible, LIMIT, WINDOW_NS) is None


def check_windows(server: Server, names: list[str] = USERS) -> None:
    """Exactly the limit in each window, laid end to end, and every worker had a part in it."""
    counts: list[list[int]] = []
    for attempt in range(_ATTEMPTS):
        # Other users each time: what the ones before have used would count in their first window.
        users = [f"{user}-{attempt}" for user in names]
        records = Load(server.port, users, _WINDOWS * WINDOW_S + 0.6).run().values()
        for record in records:
            check(record)
            assert record.unanswered == []
        if max(_longest_pause_ns(record) for record in records) < _PAUSE_NS:
            # Where one window ends and the next begins is blurred by how long an answer took; that
            # none has one too many is certain by now.
            counts = [tiles(record.allowed, WINDOW_NS, record.end_ns) for record in records]
            if all(count == [LIMIT] * _WINDOWS for count in counts):
                assert all(len(record.pids) == WORKERS for record in records)
                return
    pytest.fail(f"paused for {_PAUSE_NS / 1e9:g} s each time, or windows of {counts}")


def _longest_pause_ns(record: Record) -> int:
    times = sorted(span.after_ns for span in record.allowed + record.denied)
    times.append(record.end_ns)
    return max(later - earlier for earlier, later in pairwise(times))
