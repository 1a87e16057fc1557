"""A web server of several workers, started as one starts it from a shell."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tools import at_hand, missing

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

START_S = 30.0
STOP_S = 30.0
WORKERS = 4


class Server:
    """Runs while the ``with`` block does. Ends with all of its workers, whatever happens in it."""

    def __init__(self, *arguments: str, limit: str, table: str, log: Path, workers: int) -> None:
        """Prepare one.

        Args:
            arguments: The server's module and what it is given; ``{fd}`` stands for the
                descriptor of the listening socket.
            limit: LIMIT of the examples.
            table: TABLE of the examples.
            log: Where its output goes, to be shown if it fails.
            workers: How many are to answer before it counts as started.
        """
        if importlib.util.find_spec(arguments[0]) is None:
            missing(arguments[0])
        at_hand(EXAMPLES)
        self._arguments = arguments
        self._environment = {**os.environ, "LIMIT": limit, "TABLE": table}
        self._log = log
        self._workers = workers
        self.port = 0

    def __enter__(self) -> Server:
        # The server gets the socket itself: nobody else can take the port meanwhile.
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            self.port = listener.getsockname()[1]
            listener.set_inheritable(True)
            command = [part.format(fd=listener.fileno()) for part in self._arguments]
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", *command],
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[listener.fileno()],
                    start_new_session=True,
                )
        try:
            self._wait_for_workers()
        except BaseException:
            self._kill()
            raise
        return self

    def _wait_for_workers(self) -> None:
        seen: set[int] = set()
        deadline = time.monotonic() + START_S
        while len(seen) < self._workers:
            if self._process.poll() is not None:
                pytest.fail(f"the server ended while it started:\n{self.log()}")
            if time.monotonic() > deadline:
                pytest.fail(f"only {len(seen)} workers in {START_S:g} s:\n{self.log()}")
            seen.add(self.ask("is-it-up", timeout_s=START_S)["pid"])

    def ask(self, user: str, timeout_s: float = 10.0) -> Any:
        """Ask once, through a connection of its own; the body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("GET", f"/{user}", headers={"Connection": "close"})
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def signal(self, number: signal.Signals) -> None:
        """Send the master a signal."""
        self._process.send_signal(number)

    def kill_a_worker(self) -> int:
        """Kill one with -9, whichever answers first; its pid."""
        pid = self.ask("who-is-there")["pid"]
        assert isinstance(pid, int)
        assert pid != self._process.pid
        os.kill(pid, signal.SIGKILL)
        return pid

    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")[-10_000:]

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            if exc[0] is None:
                pytest.fail(f"still running {STOP_S:g} s after SIGTERM:\n{self.log()}")
        finally:
            self._kill()

    def _kill(self) -> None:
        """End what is left of it: master and workers are one process group, and nobody else is."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()


def gunicorn(
    *options: str, limit: str, log: Path, table: str = "web", workers: int = WORKERS
) -> Server:
    """Prepare gunicorn with the WSGI example."""
    return Server(
        "gunicorn", "--bind", "fd://{fd}", "--workers", str(workers), "--chdir", str(EXAMPLES),
        "--no-control-socket",  # it would lie in the user's home
        # Who was forked just before the master got its SIGTERM may miss his: he is killed then.
        "--graceful-timeout", "10",
        *options, "wsgi:app", limit=limit, table=table, log=log, workers=workers,
    )  # fmt: skip


def uvicorn(
    *options: str, limit: str, log: Path, table: str = "web", workers: int = WORKERS
) -> Server:
    """Prepare uvicorn with the ASGI example."""
    return Server(
        "uvicorn", "--fd", "{fd}", "--workers", str(workers), "--app-dir", str(EXAMPLES),
        "--no-access-log",
        "--timeout-worker-healthcheck", "2",  # of a worker that is on its way out: 5 if left out
        *options, "asgi:app", limit=limit, table=table, log=log, workers=workers,
    )  # fmt: skip
