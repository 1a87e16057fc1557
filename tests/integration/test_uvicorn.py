"""uvicorn: one limit for all of its workers, which import the application each for itself."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from load import Load
from saturation import LIMIT, QUOTA, USERS, check, check_windows
from server import WORKERS, uvicorn

pytestmark = pytest.mark.usefixtures("tables")


def test_exactly_the_limit_in_each_window(tmp_path: Path) -> None:
    with uvicorn(limit=QUOTA, log=tmp_path / "log") as server:
        check_windows(server)


def test_workers_that_end_and_are_killed(tmp_path: Path) -> None:
    """Recycled after some requests, one after the other by a HUP, and killed with -9."""
    kills = 4
    recycle = ["--limit-max-requests", "600", "--limit-max-requests-jitter", "600"]
    with uvicorn(*recycle, limit=QUOTA, log=tmp_path / "log") as server:
        load = Load(server.port, USERS, seconds=5.0)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(load.run)
            for nth in range(kills):
                time.sleep(1.0)
                server.kill_a_worker()
                if nth == 1:
                    server.signal(signal.SIGHUP)
            records = running.result()
    for record in records.values():
        check(record)
        assert len(record.allowed) > 2 * LIMIT
        assert len(record.denied) > LIMIT
        assert len(record.pids) > WORKERS
