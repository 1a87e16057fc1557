"""nanolimit top on tables that real processes use, and its live view in a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from nanolimit import RateLimiter, shared

pytest.importorskip("click", reason="the extra nanolimit[cli] is not installed")
pytest.importorskip("rich", reason="the extra nanolimit[cli] is not installed")

PATIENCE_S = 60.0
QUOTAS = "5/minute; 7/hour"
NANOLIMIT = [sys.executable, "-m", "nanolimit"]

# Does as many checks as each line of its stdin says, and answers when they are done.
WORKER = """
import sys
from nanolimit import RateLimiter
limiter = RateLimiter(sys.argv[2], shared=sys.argv[1], max_keys=1000, track_top=100)
print("ready", flush=True)
for line in sys.stdin:
    for number in range(int(line)):
        limiter.allow(f"user:{number % 7}")
    print("done", flush=True)
"""


class Worker:
    """A process that uses a table."""

    def __init__(self, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, name, QUOTAS],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._answer("ready")

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self, times: int) -> None:
        """Check so often, and wait until it is done."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{times}\n")
        self.process.stdin.flush()
        self._answer("done")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _answer(self, wanted: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{wanted}\n"


@pytest.fixture
def workers(tables: Path) -> Iterator[Callable[..., list[Worker]]]:
    """Start some on a table."""
    with ExitStack() as stack:

        def start(number: int, name: str = "api") -> list[Worker]:
            made = []
            for _ in range(number):
                worker = Worker(name)
                stack.callback(worker.close)
                made.append(worker)
            return made

        yield start


def told(*arguments: str) -> Any:
    done = subprocess.run(
        [*NANOLIMIT, "top", *arguments], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


# --once


def test_its_numbers_are_those_of_stats(workers: Callable[..., list[Worker]]) -> None:
    crew = workers(3)
    for worker in crew:
        worker.check(1000)
    crew[0].kill()
    (table,) = told("api", "--once", "--json", "--interval", "0.2", "-n", "5")["tables"]
    limiter = RateLimiter(QUOTAS, shared="api", max_keys=1000, track_top=100)
    stats = limiter.stats()
    assert (stats.allowed, stats.denied) == (35, 2965)
    assert {name: table[name] for name in stats._fields} == stats._asdict()
    for name in ("would_deny", "stalled", "log_bytes", "log_capacity_bytes"):
        assert table[name] == getattr(stats, name), name
    assert (table["allowed_per_s"], table["denied_per_s"], table["denied_share"]) == (0, 0, None)
    assert table["interval_s"] >= 0.2
    assert table["pids"] == sorted(worker.pid for worker in crew[1:]), "who looks is no user"
    assert table["dead_pids"] == [crew[0].pid]
    assert table["live_keys"] == 7
    top = limiter.top(5)
    assert [(each["key"], each["denied"], each["error"]) for each in table["top"]] == [
        (each.key, each.denied, each.error) for each in top
    ]
    # Unix time is told from another clock: two who look differ by a little.
    assert [each["last_denied"] for each in table["top"]] == pytest.approx(
        [each.last_denied for each in top], abs=1.0
    )
    kept = sum(each.denied for each in limiter.top(100))
    assert [each["share"] for each in table["top"]] == [each.denied / kept for each in top]
    assert all(0 <= each["last_denied_ago_s"] < PATIENCE_S for each in table["top"])


def test_a_line_for_each_interval(workers: Callable[..., list[Worker]]) -> None:
    (worker,) = workers(1)
    command = [*NANOLIMIT, "top", "api", "--json", "--interval", "0.3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            (first,) = json.loads(process.stdout.readline())["tables"]
            worker.check(700)
            lines = [first]
            while lines[-1]["denied"] + lines[-1]["allowed"] < 700:
                lines += json.loads(process.stdout.readline())["tables"]
            decided = sum(line["decisions_per_s"] * line["interval_s"] for line in lines)
            assert decided == pytest.approx(700)
            shared.remove("api", force=True)
            line = first
            while line["problem"] is None:
                (line,) = json.loads(process.stdout.readline())["tables"]
            assert "there is no table" in line["problem"]
            assert line["allowed_per_s"] is None
            process.send_signal(signal.SIGINT)
            process.stdout.read()
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


# The live view

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>()][0B]?")
_HOME = "\x1b[H"


class Terminal:
    """A pseudo-terminal in which `nanolimit top` runs, and what it has drawn there."""

    def __init__(
        self, *arguments: str, columns: int = 100, lines: int = 30, term: str = "xterm-256color"
    ) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(columns, lines)
        self.modes = termios.tcgetattr(self.slave)
        self.text = ""
        environment = {**os.environ, "TERM": term, "PYTHONUTF8": "1"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [*NANOLIMIT, "top", *arguments],
            stdin=self.slave, stdout=self.slave, stderr=self.slave, env=environment,
            start_new_session=True,
            # So that Ctrl-C and a resize come as signals.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    def resize(self, columns: int, lines: int) -> None:
        self.lines = lines
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    @property
    def picture(self) -> list[str]:
        """The lines of the last picture that is whole, without colours."""
        pictures = self.text.split(_HOME)
        last = pictures[-1].partition("\x1b[?1049l")[0]
        return _ESCAPE.sub("", last).replace("\r", "").split("\n")

    def wait_for(self, what: Callable[[list[str]], object]) -> list[str]:
        """Read on until the picture is whole, as high as the terminal, and so."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if len(self.picture) == self.lines and what(self.picture):
                return self.picture
            assert time.monotonic() < deadline, self.picture
            assert self.process.poll() is None, self.text
            self.read(0.5)

    def wait_for_text(self, *texts: str) -> list[str]:
        return self.wait_for(lambda lines: all(text in "\n".join(lines) for text in texts))

    def read(self, seconds: float) -> bool:
        """Read what there is, or comes in that time."""
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            self.text += os.read(self.master, 65536).decode()
        except OSError:
            return False
        return True

    def ended(self) -> int:
        """Wait for its end, see that the terminal is as it was, and return the exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.picture
            self.read(0.1)
        while self.read(0.1):
            pass
        self.check_left()
        return self.process.returncode

    def check_left(self) -> None:
        assert termios.tcgetattr(self.slave) == self.modes
        shown, hidden = self.text.rfind("\x1b[?25h"), self.text.rfind("\x1b[?25l")
        assert shown > hidden >= 0, "the cursor is hidden"
        left, entered = self.text.rfind("\x1b[?1049l"), self.text.rfind("\x1b[?1049h")
        assert left > entered >= 0, "the alternate screen is shown"

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        os.close(self.master)
        os.close(self.slave)


@contextmanager
def terminal(*arguments: str, **options: Any) -> Iterator[Terminal]:
    made = Terminal(*arguments, **options)
    try:
        yield made
    finally:
        made.close()


def test_it_draws_and_goes_on(workers: Callable[..., list[Worker]]) -> None:
    (worker,) = workers(1)
    with terminal("api", "--interval", "0.2") as screen:
        screen.wait_for_text(
            "5 per minute and 7 per hour", "in all 0", f"1: {worker.pid}", "q quits"
        )
        modes = termios.tcgetattr(screen.slave)
        assert not modes[3] & (termios.ECHO | termios.ICANON)
        worker.check(700)
        screen.wait_for_text("in all 700, denied 95.0 %", "7 of 1,000 (0.70 %), 7 live")
        lines = screen.wait_for_text("user:6 ", "14.3 %")
        counted = [line.split()[:2] for line in lines if line.startswith("user:")]
        assert sorted(counted) == [[f"user:{number}", "95"] for number in range(7)]
        assert screen.process.pid not in {
            process.pid for process in shared.inspect("api").processes
        }
        screen.type("xyz")
        screen.type("q")
        assert screen.ended() == 0


def test_the_only_table_needs_no_name(workers: Callable[..., list[Worker]]) -> None:
    workers(1)
    with terminal("--interval", "0.2") as screen:
        lines = screen.wait_for_text("5 per minute and 7 per hour", "q quits")
        assert "Esc" not in "\n".join(lines), "there are no others to go back to"
        screen.type("\x1bq")
        assert screen.ended() == 0


def test_it_follows_a_resize(workers: Callable[..., list[Worker]]) -> None:
    workers(1)
    # So long an interval that only the resize can be why it draws again.
    with terminal("api", "--interval", "3600", columns=100, lines=30) as screen:
        screen.wait_for(lambda lines: {len(line) for line in lines} == {100})
        screen.resize(70, 20)
        screen.wait_for(lambda lines: {len(line) for line in lines} == {70})
        screen.resize(5, 2)
        screen.wait_for(lambda lines: {len(line) for line in lines} == {5})
        screen.resize(150, 50)
        screen.wait_for(lambda lines: {len(line) for line in lines} == {150})
        screen.type("q")
        assert screen.ended() == 0


@pytest.mark.parametrize(
    ("how", "code"),
    [
        (lambda screen: screen.type("q"), 0),
        (lambda screen: screen.type("Q"), 0),
        (lambda screen: screen.type("\x03"), 0),
        (lambda screen: screen.process.send_signal(signal.SIGINT), 0),
        (lambda screen: screen.process.send_signal(signal.SIGTERM), 143),
    ],
    ids=["q", "Q", "ctrl-c", "sigint", "sigterm"],
)
def test_it_ends_cleanly(
    workers: Callable[..., list[Worker]], how: Callable[[Terminal], None], code: int
) -> None:
    workers(1)
    with terminal("api") as screen:
        screen.wait_for_text("q quits")
        how(screen)
        assert screen.ended() == code
        assert "Traceback" not in screen.text
        assert "interrupted" not in screen.text


# As a shell does: the command in a process group of its own, in the foreground; when it stops,
# whatever comes on fd 3 brings it back.
SHELL = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, "-m", "nanolimit", "top", "api"])
while True:
    _, status = os.waitpid(child, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    os.tcsetpgrp(0, os.getpgrp())
    print("STOPPED", flush=True)
    sys.stdin.readline()
    os.tcsetpgrp(0, child)
    os.kill(child, signal.SIGCONT)
"""


def test_it_can_be_suspended(
    workers: Callable[..., list[Worker]], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers(1)
    monkeypatch.setitem(globals(), "NANOLIMIT", [sys.executable, "-c", SHELL])
    with terminal("api") as screen:
        screen.wait_for_text("q quits")
        screen.type("\x1a")
        deadline = time.monotonic() + PATIENCE_S
        while "STOPPED" not in screen.text:
            assert time.monotonic() < deadline, screen.text
            screen.read(0.5)
        screen.check_left()
        screen.text = ""
        screen.type("\n")
        screen.wait_for_text("q quits")
        screen.type("q")
        assert screen.ended() == 0


def test_a_worker_is_killed_while_it_runs(workers: Callable[..., list[Worker]]) -> None:
    crew = workers(2)
    with terminal("api", "--interval", "0.2") as screen:
        screen.wait_for(lambda lines: any("processes   2:" in line for line in lines))
        crew[0].check(70)
        crew[0].kill()
        screen.wait_for_text(f"1: {crew[1].pid}", "1 died without signing off", "in all 70")
        crew[1].check(70)
        screen.wait_for_text("in all 140")
        screen.type("q")
        assert screen.ended() == 0


def test_a_table_is_removed_while_it_runs(workers: Callable[..., list[Worker]]) -> None:
    (worker,) = workers(1)
    worker.check(70)
    with terminal("api", "--interval", "0.2") as screen:
        screen.wait_for_text("in all 70")
        shared.remove("api", force=True)
        screen.wait_for_text("there is no table", "lost since", "in all 70")
        (other,) = workers(1)
        other.check(7)
        screen.wait_for_text("in all 7,", f"1: {other.pid}")
        shared.remove("api", force=True)
        (third,) = workers(1)
        third.check(14)
        screen.wait_for_text("in all 14,", f"1: {third.pid}")
        assert "waiting" not in "\n".join(screen.picture)
        screen.type("\x03")
        assert screen.ended() == 0


def test_all_tables_and_one_of_them(workers: Callable[..., list[Worker]]) -> None:
    workers(1, "api")
    (worker,) = workers(1, "logins")
    worker.check(70)
    with terminal("--interval", "0.2", columns=140) as screen:
        lines = screen.wait_for_text("api", "logins", "Enter: one table")
        assert [line.split()[:2] for line in lines[1:3]] == [[">", "api"], ["logins", "5/minute;"]]
        screen.type("\x1b[B")
        screen.wait_for(lambda lines: lines[2].startswith("> logins"))
        screen.type("\r")
        screen.wait_for_text("5 per minute and 7 per hour", "in all 70", "Esc: all tables")
        workers(1, "aaa")  # which comes before it
        screen.type("\x1b")
        screen.wait_for(lambda lines: lines[3].startswith("> logins"))
        screen.type("kkkkj\r")
        screen.wait_for_text("/api ", "in all 0")
        screen.type("q")
        assert screen.ended() == 0


def test_keys_that_would_steer_the_terminal(tables: Path) -> None:
    limiter = RateLimiter("5/minute", shared="api", max_keys=1000, track_top=10)
    for _ in range(7):
        limiter.allow("\x1b[?1049l\x1b[2Jboo\u202e\r\n\x07")
    with terminal("api", "--interval", "0.2") as screen:
        screen.wait_for_text(r"\x1b[?1049l\x1b[2Jboo\u202e\r\n\x07")
        assert "\x1b[?1049l" not in screen.text
        assert "\x1b[2J" not in screen.text
        assert "\x07" not in screen.text
        screen.type("q")
        assert screen.ended() == 0


def test_no_picture_of_what_is_no_table(tables: Path) -> None:
    (tables / "notes").write_text("text " * 2000)
    with terminal("notes") as screen:
        while screen.process.poll() is None:
            screen.read(0.1)
        while screen.read(0.1):
            pass
        assert screen.process.returncode == 1
        assert "it is no table of nanolimit" in " ".join(screen.text.split())
        assert "\x1b[?1049h" not in screen.text


@pytest.mark.parametrize(
    ("arguments", "term"), [(["--once"], "xterm-256color"), ([], "dumb")], ids=["once", "dumb"]
)
def test_one_picture_in_a_terminal(
    workers: Callable[..., list[Worker]], arguments: list[str], term: str
) -> None:
    workers(1)
    with terminal("api", "--interval", "0.1", *arguments, term=term) as screen:
        while screen.process.poll() is None:
            screen.read(0.1)
        while screen.read(0.1):
            pass
        assert screen.process.returncode == 0
        assert "\x1b[?1049h" not in screen.text
        assert "5 per minute and 7 per hour" in _ESCAPE.sub("", screen.text)
        assert ("no terminal to draw in" in screen.text) == (term == "dumb")
        assert termios.tcgetattr(screen.slave) == screen.modes
