"""Shared tables that count by another algorithm: two processes, the header, mismatches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clocks import NanoClock
from doors import verify
from nanolimit import Quota, RateLimiter, SharedTableError, _core, shared
from sharing import field, in_child, needs_shared, put_field

pytestmark = needs_shared

METERS = _core.ALGORITHMS[1:]


@pytest.fixture(params=METERS)
def algorithm(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_processes_count_together(algorithm: Any, folder: Path) -> None:
    limiter = RateLimiter(100_000, per=3_600, shared="api", algorithm=algorithm)

    def work() -> int:
        own = RateLimiter(100_000, per=3_600, shared="api", algorithm=algorithm)
        own.allow("user", 40_000)
        return own.peek("user").remaining

    assert limiter.allow("user", 10_000)
    assert 50_000 <= in_child(work) < 50_100  # the bucket leaks meanwhile
    assert limiter.allow("user", 50_000)
    assert not limiter.allow("user", 20_000)
    in_child(lambda: limiter.allow("forked", 99_999))  # the same table, joined anew
    assert limiter.peek("forked").remaining < 100
    verify(limiter)


def test_the_file_says_how_it_counts(algorithm: Any, folder: Path) -> None:
    limiter = RateLimiter(5_000, per=60, shared="api", algorithm=algorithm, max_keys=300)
    assert _core.ALGORITHMS[field(folder / "api", "algorithm")] == algorithm
    info = shared.inspect("api")
    assert (info.algorithm, info.quota, info.problem) == (algorithm, Quota(5_000, 60), None)
    assert info.bytes == shared.bytes_for(300, 5_000, 60, algorithm=algorithm)
    assert info.log_capacity_bytes == 0, "a slot a key, and no more"
    assert limiter.stats().memory_bytes == info.bytes
    assert [table.algorithm for table in shared.tables()] == [algorithm]


def test_another_algorithm_is_refused_by_name(algorithm: Any, folder: Path) -> None:
    RateLimiter(5, shared="api", algorithm=algorithm)
    with pytest.raises(
        SharedTableError, match=f"its algorithm is '{algorithm}', asked for 'sliding-log'"
    ):
        RateLimiter(5, shared="api")


def test_adopting_takes_the_tables(algorithm: Any, folder: Path) -> None:
    RateLimiter(4_000, shared="api", algorithm=algorithm)
    adopted = RateLimiter(5, shared="api", on_mismatch="adopt")
    assert (adopted.algorithm, adopted.quota.limit) == (algorithm, 4_000)
    assert adopted.allow("user", 4_000)
    assert not adopted.allow("user", 2_000)
    adopted.close()
    assert adopted.algorithm == algorithm


def test_replacing_makes_a_table_anew(algorithm: Any, folder: Path) -> None:
    old = RateLimiter(5, shared="api", algorithm=algorithm)
    old.allow("user", 5)
    new = RateLimiter(5, shared="api", on_mismatch="replace")
    assert new.algorithm == "sliding-log"
    assert new.allow("user", 5)
    assert old.algorithm == algorithm
    assert not old.allow("user", 4)


def test_a_new_limit_holds_at_once_and_for_all(algorithm: Any, folder: Path) -> None:
    """Any limit fits in the same table."""
    old = RateLimiter(6, per=3_600, shared="api", algorithm=algorithm)
    old.allow("user", 4)
    new = RateLimiter(
        1_000_000, per=3_600, shared="api", algorithm=algorithm, on_mismatch="replace"
    )
    assert new.stats().allowed == 1, "the same table"
    assert old.quota.limit == 1_000_000
    assert old.allow("user", 999_000)
    assert not new.allow("user", 999_000)
    RateLimiter(3, per=3_600, shared="api", algorithm=algorithm, on_mismatch="replace")
    assert not old.allow("user")
    assert old.allow("other", 3)
    verify(old)


def test_a_bucket_that_displaced_another_is_full_again_first(folder: Path) -> None:
    """One limiter has found the table full for a minute; then another displaces a key."""
    clock = NanoClock(10**12)
    denying, evicting = (
        RateLimiter(
            10, per=60, shared="api", algorithm="gcra", max_keys=2, on_full=on_full, clock=clock
        )
        for on_full in ("deny", "evict")
    )
    assert denying.allow("a", 10)
    assert denying.allow("b", 10)
    assert not denying.allow("c")
    assert evicting.allow("d")
    assert evicting.stats().evicted == 1
    assert not denying.allow("e")
    clock.ns += 7_000_000_000
    assert denying.allow("e"), "what displaced the key is idle again"


def test_a_header_that_contradicts_itself(folder: Path) -> None:
    """A bound for logs that there are not."""
    RateLimiter(5, shared="api", algorithm="gcra").close()
    put_field(folder / "api", "max_log", 100)
    with pytest.raises(SharedTableError, match="its max_log is 100, expected 0 with algorithm 'gc"):
        RateLimiter(5, shared="api", algorithm="gcra")


def test_sizes_for_limits_that_cannot_be(folder: Path) -> None:
    with pytest.raises(ValueError, match="max_log must be from 16 to the limit of 5000, not 5001"):
        shared.bytes_for(10, 5_000, max_log=5_001)
    with pytest.raises(TypeError, match="max_log goes with algorithm='sliding-log'"):
        shared.bytes_for(10, 5_000, algorithm="gcra", max_log=20)
    with pytest.raises(ValueError, match="algorithm must be"):
        shared.bytes_for(10, 5, algorithm="no such")  # type: ignore[arg-type]
