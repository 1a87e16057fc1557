"""What the dashboard's tests start: its server on a port of its own, and processes at work."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType

import pytest

PROGRAM = Path(__file__).with_name("dashboard_app.py")
LONG_S = 60.0

# `nanolimit dashboard`, of a checkout as of an installed package.
CODE = """
import sys
from nanolimit.cli.command import nanolimit, run
from nanolimit.cli.dashboard import dashboard_command

if "dashboard" not in nanolimit.commands:
    nanolimit.add_command(dashboard_command)
sys.exit(run())
"""
COMMAND = [sys.executable, "-c", CODE, "dashboard"]


class Served:
    """A process that serves on a port that it keeps over restarts."""

    def __init__(self, log: Path, *command: str, token: str = "") -> None:
        """Prepare one; in `command` ``{fd}`` and ``{port}`` are replaced."""
        self._log = log
        self._command = command or (sys.executable, str(PROGRAM), "serve", "{fd}")
        self._environment = {**os.environ, "TOKEN": token, "PYTHONUNBUFFERED": "1"}
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, path: str = "/") -> None:
        """Start it, and wait until it answers."""
        assert self.process is None
        pass_fds: tuple[int, ...] = ()
        listener = None
        command = [part.replace("{port}", str(self.port)) for part in self._command]
        if "{fd}" in command:
            listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            command[command.index("{fd}")] = str(listener.fileno())
            pass_fds = (listener.fileno(),)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=pass_fds, start_new_session=True,
            )  # fmt: skip
        if listener is not None:
            listener.close()
        deadline = time.monotonic() + LONG_S
        while True:
            try:
                urllib.request.urlopen(f"{self.address}{path}", timeout=LONG_S).close()
                return
            except urllib.error.HTTPError as error:
                error.close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the server did not start:\n{self.log()}")
                time.sleep(0.05)

    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")[-10_000:]

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: signal.Signals, within_s: float = LONG_S) -> int:
        """Send a signal, and wait until it has ended; its exit code."""
        assert self.process is not None
        self.signal(number)
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running {within_s:g} s after {number.name}:\n{self.log()}")
        self.process = None
        return code

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class Worker:
    """A process that checks keys of a shared table until it is ended."""

    def __init__(self, table: str, seed: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "work", table, str(seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "started\n"

    def end(self) -> tuple[int, int]:
        """Have it stop; how many requests of its own were allowed and denied."""
        out, _ = self._process.communicate(timeout=LONG_S)
        allowed, denied = map(int, out.split())
        return allowed, denied

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()
