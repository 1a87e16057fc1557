"""gunicorn: one limit for all of its workers, however they were made and however they end."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from load import Load
from saturation import LIMIT, QUOTA, USERS, check, check_windows
from server import WORKERS, gunicorn

pytestmark = pytest.mark.usefixtures("tables")


@pytest.mark.parametrize(
    ("options", "table"),
    [
        pytest.param([], "web", id="name"),
        pytest.param(["--preload", "--threads", "4"], "web", id="name-preload-threads"),
        pytest.param(["--preload"], "", id="memory-preload"),
    ],
)
def test_exactly_the_limit_in_each_window(options: list[str], table: str, tmp_path: Path) -> None:
    with gunicorn(*options, limit=QUOTA, table=table, log=tmp_path / "log") as server:
        check_windows(server)


@pytest.mark.parametrize(
    ("options", "table"),
    [pytest.param([], "web", id="name"), pytest.param(["--preload"], "", id="memory-preload")],
)
def test_workers_that_end_and_are_killed(options: list[str], table: str, tmp_path: Path) -> None:
    """Recycled after some requests, all at once by a HUP, and killed with -9, under full load."""
    kills = 6
    recycle = ["--max-requests", "150", "--max-requests-jitter", "100"]
    with gunicorn(*options, *recycle, limit=QUOTA, table=table, log=tmp_path / "log") as server:
        load = Load(server.port, USERS, seconds=5.0)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(load.run)
            for nth in range(kills):
                time.sleep(0.7)
                server.kill_a_worker()
                if nth % 3 == 2:
                    server.signal(signal.SIGHUP)
            records = running.result()
    # A worker of this kind has one request at a time, and finishes it unless it is killed.
    assert sum(len(record.unanswered) for record in records.values()) <= kills
    for record in records.values():
        check(record)
        assert len(record.allowed) > 2 * LIMIT
        assert len(record.denied) > LIMIT
        assert len(record.pids) > WORKERS + kills
