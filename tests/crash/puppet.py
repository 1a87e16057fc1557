"""A process that does what it is told, line by line: the other side of the tests of locks."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

#: A puppet that has not answered after this long never will.
PATIENCE_S = 10.0

_LIFE = """
import ctypes, os, pickle, signal, struct, sys, time
from nanolimit import RateLimiter, SharedTableError, _core
out = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # what is printed is not an answer
scope = dict(globals())
out.write(pickle.dumps(("value", os.getpid(), 0.0)))
out.flush()
while True:
    try:
        line = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    began = time.monotonic()
    try:
        try:
            code = compile(line, "<told>", "eval")
        except SyntaxError:
            exec(line, scope)
            value = None
        else:
            value = eval(code, scope)
        answer = ("value", value)
    except Exception as error:
        answer = ("error", f"{type(error).__name__}: {error}")
    out.write(pickle.dumps((*answer, time.monotonic() - began)))
    out.flush()
"""


class Puppet:
    """A Python with `RateLimiter` and `_core` at hand."""

    def __init__(self, source: Path, *prefix: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(source)}
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-c", _LIFE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )
        #: As it calls itself, in its own PID namespace.
        self.own_pid: int = self.answer()[0]
        #: As the test knows it: a prefix may have started others in between.
        self.pid = self._process.pid
        while children := Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            self.pid = int(children[0])

    def tell(self, line: str) -> None:
        """Have it run a line, and don't wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps(line))

    def answer(self, patience_s: float = PATIENCE_S) -> tuple[Any, float]:
        """What the line gave, and how many seconds it took.

        Raises:
            TimeoutError: It is still at it.
            RuntimeError: The line raised; the text is that of the error.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], patience_s)[0]:
            raise TimeoutError(f"no answer within {patience_s} s")
        kind, value, seconds = pickle.load(self._process.stdout)
        if kind == "error":
            raise RuntimeError(value)
        return value, seconds

    def do(self, line: str, patience_s: float = PATIENCE_S) -> Any:
        """Have it run a line, and give what came of it."""
        return self.timed(line, patience_s)[0]

    def timed(self, line: str, patience_s: float = PATIENCE_S) -> tuple[Any, float]:
        """The same, with the seconds that it took."""
        self.tell(line)
        return self.answer(patience_s)

    def stop_at(self, point: str, line: str) -> None:
        """Have it run a line in which it stops (SIGSTOP) at a point."""
        self.do(f"_core._stop_at({point!r})")
        self.tell(line)
        self._await("T")

    def go_on(self) -> Any:
        """After stop_at: go on, and give what came of the line."""
        os.kill(self.pid, signal.SIGCONT)
        return self.answer()[0]

    def die_at(self, point: str, line: str) -> None:
        """Have it run a line in which it dies (SIGKILL) at a point. It stays a zombie."""
        self.do(f"_core._kill_at({point!r})")
        self.tell(line)
        self._await("Z")

    def kill(self) -> None:
        """End it; it stays a zombie."""
        os.kill(self.pid, signal.SIGKILL)
        self._await("Z")

    def await_program(self, name: str) -> None:
        """Wait until the process has become that program (exec)."""
        deadline = time.monotonic() + PATIENCE_S
        while Path(f"/proc/{self.pid}/comm").read_text().strip() != name:
            if time.monotonic() > deadline:
                raise TimeoutError(f"it has not become {name}")
            time.sleep(0.001)

    def state(self) -> str:
        """As the kernel has it: R, S, T (stopped), Z (a zombie) ...; Z too when it is gone."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return "Z"
        return text.rpartition(")")[2].split()[0]

    def end(self) -> None:
        """Whatever it is at."""
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass

    def _await(self, state: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.state() != state:
            if time.monotonic() > deadline:
                raise TimeoutError(f"in state {self.state()}, not {state}")
            time.sleep(0.001)
