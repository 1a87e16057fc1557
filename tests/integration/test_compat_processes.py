"""nanolimit:// with a shared table: processes count together, whatever they were started for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import storage_from_string

from storages import STRATEGIES

PROCESSES = 4
LIMIT = 1_000

WORKER = """
import sys, threading
import nanolimit.compat.limits
from limits import RateLimitItemPerHour
from limits.storage import storage_from_string
from limits.strategies import STRATEGIES
uri, name, limit, hits = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
limiter = STRATEGIES[name](storage_from_string(uri))
item = RateLimitItemPerHour(limit, 24 * 300)
passed = []
def work():
    passed.append(sum(limiter.hit(item, "ann") for _ in range(hits // 2)))
print("ready", flush=True)
sys.stdin.readline()
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sum(passed))
"""


def passed_by_all(uri: str, name: str, limit: int = LIMIT, hits: int = LIMIT) -> list[int]:
    """Start processes that hit one key at the same time; how many passed in each."""
    crew = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, uri, name, str(limit), str(hits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    try:
        for process in crew:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in crew:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        return [int(process.communicate(timeout=60)[0]) for process in crew]
    finally:
        for process in crew:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize(
    "uri",
    ["nanolimit://web", "nanolimit://{tables}/web", "nanolimit://web?clock=python"],
    ids=["name", "path", "python"],
)
def test_processes_admit_exactly_the_limit(name: str, uri: str, tables: Path) -> None:
    uri = uri.format(tables=tables)
    passed = passed_by_all(uri, name)
    assert sum(passed) == LIMIT
    # Those who come later find what others have counted.
    limiter: Any = STRATEGIES[name](storage_from_string(uri))
    item = RateLimitItemPerHour(LIMIT, 24 * 300)
    assert limiter.get_window_stats(item, "ann").remaining == 0
    assert not limiter.test(item, "ann")


@pytest.mark.parametrize("name", ["moving-window"])
def test_a_large_limit_too(name: str, tables: Path) -> None:
    assert sum(passed_by_all("nanolimit://web", name, limit=3_000, hits=2_000)) == 3_000


def test_private_storages_count_each_for_itself(tables: Path) -> None:
    assert passed_by_all("nanolimit://", "moving-window", limit=10, hits=20) == [10] * PROCESSES
    assert list(tables.iterdir()) == []


def test_what_one_process_made_another_finds_clears_and_resets(tables: Path) -> None:
    """Tables of windows that this process has never asked for."""
    fixed, moving, sliding = (
        RateLimitItemPerMinute(5, multiples) for multiples in (2, 3, 24 * 60 * 300)
    )
    here: Any = storage_from_string("nanolimit://web")
    assert here.reset() == 0
    code = """
import sys
import nanolimit.compat.limits
from limits.storage import storage_from_string
storage = storage_from_string("nanolimit://web")
for key in sys.argv[1:]:
    assert storage.incr(key, 120, 3) == 3
    assert storage.acquire_entry(key, 5, 180, 5)
    assert storage.acquire_sliding_window_entry(key, 5, 24 * 60 * 300 * 60, 5)
"""
    subprocess.run([sys.executable, "-c", code, "ann", "bob", "cid"], check=True, timeout=60)
    assert here.get("ann") == 3
    assert here.get_expiry("ann") > here.get_expiry("nobody") + 60
    assert not here.acquire_entry("ann", 5, 180)
    here.clear("ann")
    assert here.get("ann") == 0
    assert here.acquire_entry("ann", 5, 180)
    assert here.acquire_sliding_window_entry("ann", 5, sliding.get_expiry())
    assert not here.acquire_sliding_window_entry("bob", 5, sliding.get_expiry())
    assert here.reset() == 8  # two of ann by now, three of each of the others
    assert here.get("bob") == 0
    assert here.acquire_entry("bob", 5, moving.get_expiry(), 5)
    assert here.incr("bob", fixed.get_expiry()) == 1


def test_two_storages_of_other_names_count_apart(tables: Path) -> None:
    (tables / "deeper").mkdir()
    for uri in (
        "nanolimit://web",
        "nanolimit://web.moving-60",
        "nanolimit://Web",
        f"nanolimit://{tables}/deeper/web",
    ):
        storage: Any = storage_from_string(uri)
        assert storage.incr("key", 60) == 1
        assert storage.reset() == 1
        assert storage.incr("key", 60) == 1
