"""Celery's and RQ's workers, with one limit for all of their processes: the examples at work."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server import EXAMPLES
from tools import at_hand, missing
from waiters import until
from windows import Span, over_admission

STOP_S = 30.0
LIMIT = 4
WINDOW_NS = 500_000_000
WORKERS = 4

pytestmark = pytest.mark.usefixtures("tables")


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process group of its own, of which nothing is left behind."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_S)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


@pytest.fixture
def redis(
    tmp_path: Path, require_tool: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A server of this test alone, on a socket in its directory; the path of that."""
    for name in ("redis", "celery", "rq"):
        if importlib.util.find_spec(name) is None:
            missing(name)
    at_hand(EXAMPLES)
    path = tmp_path / "redis.sock"
    monkeypatch.setenv("LIMIT", f"{LIMIT}/{WINDOW_NS / 1e9:g}s")
    monkeypatch.setenv("BROKER", f"redis+socket://{path}")
    monkeypatch.setenv("REDIS", f"unix://{path}")
    monkeypatch.setenv("RQ_REDIS_URL", f"unix://{path}")
    command = [
        require_tool("redis-server"), "--port", "0", "--unixsocket", str(path),
        "--save", "", "--appendonly", "no", "--dir", str(tmp_path),
    ]  # fmt: skip
    with running(command, tmp_path / "redis.log"):
        until(lambda: listens(path))
        yield str(path)


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def perform(example: str, number: int, *how: str) -> tuple[int, list[dict[str, int]]]:
    """Send tasks and wait for all of them; the time before, and what they say."""
    began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example), str(number), *how],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return began_ns, [json.loads(line) for line in done.stdout.splitlines()]


def check(began_ns: int, records: list[dict[str, int]], number: int) -> None:
    """All ran, once each, in several processes, and no more than the limit in any window."""
    assert sorted(record["number"] for record in records) == list(range(number))
    assert len({record["pid"] for record in records}) > 1
    spans = [Span(record["before_ns"], record["after_ns"]) for record in records]
    assert over_admission(spans, LIMIT, WINDOW_NS) is None
    # Of those that waited it is not known when the wait ended, only that it had: the n-th to begin
    # was not granted before n // LIMIT windows had passed.
    for nth, after_ns in enumerate(sorted(span.after_ns for span in spans)):
        assert after_ns - began_ns >= nth // LIMIT * WINDOW_NS


@pytest.mark.usefixtures("redis")
@pytest.mark.parametrize("how", [[], ["later"]], ids=["in-place", "later"])
def test_celery(how: list[str], tmp_path: Path) -> None:
    log = tmp_path / "celery.log"
    command = [
        sys.executable, "-m", "celery", "--workdir", str(EXAMPLES),
        "-A", "celery_app", "worker", "--concurrency", str(WORKERS), "--loglevel", "INFO",
        "--without-mingle",
    ]  # fmt: skip
    with running(command, log):
        # More rounds than Celery's three retries.
        number = 5 * LIMIT + 1
        began_ns, records = perform("celery_app.py", number, *how)
    assert "Traceback" not in log.read_text("utf-8")
    check(began_ns, records, number)


@pytest.mark.usefixtures("redis")
@pytest.mark.parametrize("how", [[], ["later"]], ids=["in-place", "later"])
def test_rq(how: list[str], tmp_path: Path) -> None:
    log = tmp_path / "rq.log"
    command = [
        sys.executable, "-m", "rq.cli", "worker-pool", "--num-workers", "2",
        "--path", str(EXAMPLES), "api",
    ]  # fmt: skip
    with running(command, log):
        number = 3 * LIMIT + 1
        began_ns, records = perform("rq_jobs.py", number, *how)
    assert "Traceback" not in log.read_text("utf-8")
    check(began_ns, records, number)
