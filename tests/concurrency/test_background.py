"""Background threads at a fork and at the interpreter's end: supervisor and console reporter.

Each test runs a script in a Python of its own, since it is that one's end which matters; a script
that hangs is ended and fails its test.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sharing import needs_shared

posix_only = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() on this platform")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="it sets the size of a pipe")

#: A line of a report: the process, the limiter, and what was allowed.
LINE = re.compile(
    r"nanolimit\[(?P<pid>\d+)\] (?P<name>\w+): allowed (?P<allowed>[\d,]+) \([\d.,]+/s\), "
    r"denied (?P<denied>[\d,]+) \([\d.,]+/s, [\d.]+ %\), "
    r"keys [\d,]+ of [\d,]+, memory [\d.]+ [KM]iB"
)

HEAD = """
import atexit, io, logging, os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore")  # of forks beside threads: they are what this is about
if hasattr(os, "register_at_fork"):
    # The first hook to run in a child: if a later one hangs, the alarm ends it.
    os.register_at_fork(after_in_child=lambda: signal.alarm(40))
from nanolimit import RateLimiter, supervisor, telemetry
from nanolimit.telemetry import ConsoleReporter

def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

class Stream:
    "Keeps what is written, and lets a test wait for it."
    def __init__(self):
        self.text, self.came = "", threading.Condition()
    def write(self, text):
        with self.came:
            self.text += text
            self.came.notify_all()
    def wait(self, text):
        with self.came:
            assert self.came.wait_for(lambda: text in self.text, 30), self.text

"""


def run(script: str, *, stderr: int | None = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-c", HEAD + script],
        timeout=90,
        check=False,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=environment,
    )


def reported(text: str) -> dict[int, int]:
    """How many requests each process says that it allowed. Nothing but reports may be there."""
    allowed: dict[int, int] = {}
    for line in text.splitlines():
        found = LINE.fullmatch(line)
        assert found is not None, text
        pid = int(found["pid"])
        allowed[pid] = allowed.get(pid, 0) + int(found["allowed"].replace(",", ""))
    return allowed


@pytest.mark.parametrize(
    ("end", "code"),
    [("", 0), ("sys.exit(3)", 3), ("raise SystemExit(0)", 0)],
)
def test_leaving_while_it_runs_writes_a_last_report_and_nothing_else(end: str, code: int) -> None:
    done = run(f"""
limiter = RateLimiter(5, per=60, name="api")
ConsoleReporter(period=600)
for _ in range(7): limiter.allow("me")
print(os.getpid())
{end}
""")
    assert done.returncode == code, done.stderr
    assert reported(done.stderr) == {int(done.stdout): 5}
    assert "denied 2 " in done.stderr


def test_leaving_in_the_middle_of_many_reports() -> None:
    done = run("""
limiters = [RateLimiter(5, per=60, name=f"api{n}") for n in range(20)]
for _ in range(5): ConsoleReporter(period=0.01, log=False)
limiters[0].allow("me")
time.sleep(0.05)
""")
    assert done.returncode == 0
    assert set(reported(done.stderr).values()) == {5}  # one request, told by five reporters


def test_leaving_with_an_error() -> None:
    done = run("""
limiter = RateLimiter(5, per=60, name="api")
ConsoleReporter(period=600)
limiter.allow("me")
raise RuntimeError("mine")
""")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-2] == "RuntimeError: mine"
    assert list(reported(lines[-1]).values()) == [1]


def test_its_last_report_goes_to_the_log_as_well() -> None:
    done = run("""
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(allowed)d")
limiter = RateLimiter(5, per=60, name="api")
ConsoleReporter(period=600, stream=io.StringIO())
limiter.allow("me")
""")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "nanolimit 1\n")


def test_starting_while_the_interpreter_ends_is_quiet() -> None:
    done = run("""
def late(where):
    print(where, supervisor.start("late", lambda stopping: stopping.wait(60)).name)
    ConsoleReporter(period=600, stream=sys.stdout, limiters=[limiter]).stop()
limiter = RateLimiter(5, per=60, name="api")
atexit.register(late, "last")  # after the supervisor's own, if that is registered later
import importlib; importlib.reload(supervisor)
atexit.register(late, "first")
def work():
    threading.main_thread().join(60)
    late("thread")
threading.Thread(target=work).start()
""")
    assert (done.returncode, done.stderr) == (0, "")
    said = [line for line in done.stdout.splitlines() if not LINE.fullmatch(line)]
    assert said == ["thread late", "first late", "last late"]


@linux_only
@pytest.mark.parametrize("stream", ["sys.stderr", "os.fdopen(writer, 'w')"])
def test_a_stream_that_blocks_does_not_keep_the_interpreter_from_ending(stream: str) -> None:
    reader, writer = os.pipe()  # nobody reads
    try:
        done = run(
            f"""
import fcntl
supervisor.EXIT_PATIENCE_S = 0.2
reader, writer = os.pipe()
for pipe in (2, writer):
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(pipe, False)
    try:
        while True: os.write(pipe, b"x")
    except BlockingIOError:
        os.set_blocking(pipe, True)
limiter = RateLimiter(5, per=60, name="api")
stream = {stream}
reporter = ConsoleReporter(period=0.01, stream=stream)
inside = False
while not inside:
    time.sleep(0.01)
    frame = sys._current_frames()[reporter._task._thread.ident]
    inside = frame.f_code.co_name in ("_write_to", "_write_past")
print("end")
""",
            stderr=writer,
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert (done.returncode, done.stdout) == (0, "end\n")


def test_a_closed_stream_is_told_of_once_and_the_log_goes_on() -> None:
    done = run("""
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
stream = io.StringIO()
limiter = RateLimiter(5, per=60, name="api")
reporter = ConsoleReporter(period=600, stream=stream)
stream.close()
for _ in range(3):
    limiter.allow("me")
    reporter.report()
""")
    assert done.returncode == 0
    assert done.stdout == ""
    assert done.stderr.count("WARNING the console reporter can't write to a StringIO") == 1
    assert done.stderr.count("ValueError: I/O operation on closed file") == 1
    assert done.stderr.count("INFO api: allowed 1 ") == 3


def test_standard_error_that_was_closed() -> None:
    done = run("""
limiter = RateLimiter(5, per=60, name="api")
reporter = ConsoleReporter(period=0.01)
sys.stderr.close()
while reporter._failed is None: time.sleep(0.01)
reporter.report()
assert reporter.running
sys.stderr = stream = Stream()  # one that works is written to again
limiter.allow("me")
stream.wait("allowed 1 ")
sys.stderr = None  # as under pythonw
reporter.report()
print("end")
""")
    assert (done.returncode, done.stdout) == (0, "end\n")


@posix_only
@pytest.mark.parametrize("buffering", [1, 1000])
def test_a_broken_pipe(buffering: int) -> None:
    done = run(f"""
reader, writer = os.pipe()
os.close(reader)
limiter = RateLimiter(5, per=60, name="api")
reporter = ConsoleReporter(period=0.01, stream=os.fdopen(writer, "w", buffering={buffering}))
while reporter._failed is None: time.sleep(0.01)
for _ in range(3): reporter.report()
reporter.stop()
os._exit(0)  # what a broken stream does at its own end is another matter
""")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("the console reporter can't write to ") == 1
    assert done.stderr.count("BrokenPipeError: ") == 1


FORKS = """
limiter = RateLimiter(1000, per=600, name="api")
reporter = ConsoleReporter(period=0.05)
for _ in range(10): limiter.allow("me")
reporter.report()
for _ in range(20): limiter.allow("me")
print(os.getpid(), 30, flush=True)
child = os.fork()
if child == 0:
    for _ in range(3): limiter.allow("me")
    print(os.getpid(), 3, flush=True)
    grandchild = os.fork()
    if grandchild == 0:
        RateLimiter(9, per=600, name="other").allow("me")
        for _ in range(4): limiter.allow("me")
        print(os.getpid(), 4, flush=True)
        assert reporter.running
        sys.exit(5)
    assert status_of(grandchild) == 5
    sys.exit(6)
assert status_of(child) == 6
assert reporter.running
"""


@posix_only
def test_after_a_fork_each_process_reports_what_it_did_itself() -> None:
    done = run(FORKS)
    assert done.returncode == 0, done.stderr
    said = dict(map(int, line.split()) for line in done.stdout.splitlines())  # type: ignore[misc]
    assert len(said) == 3
    assert reported(done.stderr) == said


@needs_shared
def test_after_a_fork_a_shared_table_is_reported_by_each(tmp_path: Path) -> None:
    done = run(f"""
from nanolimit import shared
limiter = RateLimiter(5, per=600, shared={str(tmp_path / "api")!r})
watch = shared.watch({str(tmp_path / "api")!r})
reporter = ConsoleReporter(period=600, limiters=[limiter, watch])
for _ in range(7): limiter.allow("me")
reporter.report()
child = os.fork()
if child == 0:
    for _ in range(3): limiter.allow("you")
    reporter.stop()
    os._exit(0)
assert status_of(child) == 0
print(child)
""")
    assert done.returncode == 0, done.stderr
    lines = [line.split(", denied")[0] for line in done.stderr.splitlines()]
    name = "api (all processes)"
    parent, child = lines[0].partition(" ")[0], f"nanolimit[{int(done.stdout)}]"
    # The parent's reports count what the child did as well.
    expected = [(parent, 5), (child, 3), (parent, 3)]
    assert [line.partition(" (all")[0] for line in lines] == [
        f"{who} api" for who, _ in expected for _ in range(2)
    ]
    assert [line.partition(f"{name}: allowed ")[2].partition(" ")[0] for line in lines] == [
        str(count) for _, count in expected for _ in range(2)
    ]


@posix_only
def test_a_stopped_reporter_stays_stopped_in_a_child_and_may_be_started_there() -> None:
    done = run("""
stream = Stream()
limiter = RateLimiter(1000, per=600, name="api")
reporter = ConsoleReporter(period=0.05, stream=stream)
reporter.stop()
child = os.fork()
if child == 0:
    assert threading.active_count() == 1
    assert not reporter.running
    limiter.allow("me")
    reporter.start()
    limiter.allow("me")
    stream.wait(f"[{os.getpid()}] api: allowed 1 ")
    reporter.stop()
    os._exit(0)
sys.exit(status_of(child))
""")
    assert (done.returncode, done.stderr) == (0, "")


@posix_only
def test_a_fork_while_other_threads_hold_all_locks_that_it_meets() -> None:
    done = run("""
stream = Stream()
limiter = RateLimiter(1000, per=600, name="api")
reporter = ConsoleReporter(period=0.05, stream=stream)
logger = logging.getLogger("nanolimit")
logger.setLevel(logging.INFO)
handler = logging.StreamHandler(io.StringIO())
logger.addHandler(handler)
stream.wait("api")
locks = [
    reporter._reporting, reporter._task._stopping._cond, handler.lock,
    threading._active_limbo_lock, sys.modules["nanolimit.reporter"]._adding,
]
held, done = threading.Event(), threading.Event()
def hold():
    for lock in locks: lock.acquire()
    held.set()
    done.wait(60)
    for lock in locks: lock.release()
threading.Thread(target=hold, daemon=True).start()
assert held.wait(60)
child = os.fork()
if child == 0:
    limiter.allow("me")
    stream.wait(f"[{os.getpid()}] api: allowed 1 ")
    reporter.report()
    ConsoleReporter(period=600, stream=stream).stop()
    reporter.stop()
    assert not reporter.running
    os._exit(0)
done.set()
sys.exit(status_of(child))
""")
    assert (done.returncode, done.stderr) == (0, "")


@posix_only
def test_a_fork_while_a_log_handler_blocks() -> None:
    """That is no reason to give up the stream in the child."""
    done = run("""
stream = Stream()
limiter = RateLimiter(1000, per=600, name="api")
inside, let_go, parent = threading.Event(), threading.Event(), os.getpid()
class Blocking(logging.Handler):
    def emit(self, record):
        if os.getpid() == parent:
            inside.set()
            let_go.wait(60)
logger = logging.getLogger("nanolimit")
logger.setLevel(logging.INFO)
logger.addHandler(Blocking())
reporter = ConsoleReporter(period=0.01, stream=stream)
assert inside.wait(60)
child = os.fork()
if child == 0:
    limiter.allow("me")
    reporter.stop()
    assert f"[{os.getpid()}] api: allowed 1 " in stream.text
    os._exit(0)
status = status_of(child)
let_go.set()
sys.exit(status)
""")
    assert (done.returncode, done.stderr) == (0, "")


@linux_only
def test_a_fork_while_it_writes_to_a_stream_that_blocks() -> None:
    """The stream's lock is held in the child for ever: it must not be touched there."""
    done = run("""
import fcntl
reader, writer = os.pipe()
fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
os.write(writer, b"x" * 4096)
limiter = RateLimiter(1000, per=600, name="api")
stream = os.fdopen(writer, "w")
reporter = ConsoleReporter(period=0.01, stream=stream)
inside = False
while not inside:
    time.sleep(0.01)
    frame = sys._current_frames()[reporter._task._thread.ident]
    inside = frame.f_code.co_name == "_write_to"
begun = time.monotonic()
child = os.fork()
if child == 0:
    reporter.report()
    assert reporter.running
    reporter.stop()
    assert not reporter.running
    os._exit(0)
assert time.monotonic() - begun < 30
print(status_of(child))
os.close(reader)  # which ends the write of the parent's
while reporter._failed is not stream: time.sleep(0.01)
os._exit(0)
""")
    assert (done.returncode, done.stdout) == (0, "0\n")
    assert "was writing to a TextIOWrapper when this process was forked" in done.stderr


@posix_only
def test_many_forks_while_it_writes() -> None:
    """No child inherits half a report, nor a lock of the stream's: each line is there once."""
    done = run("""
import tempfile
sys.setswitchinterval(1e-5)
limiter = RateLimiter(10**6, per=600, name="api")
with tempfile.NamedTemporaryFile("a") as stream:
    reporter = ConsoleReporter(period=0.01, stream=stream, log=False)
    stop = False
    def churn():
        while not stop:
            reporter.report()
    thread = threading.Thread(target=churn)
    thread.start()
    bad = 0
    for nth in range(40):
        child = os.fork()
        if child == 0:
            limiter.allow("me")
            reporter.stop()
            stream.flush()
            os._exit(0)
        limiter.allow("me")
        bad += status_of(child) != 0
        if bad: break
    stop = True
    thread.join(60)
    reporter.stop()
    with open(stream.name) as written:
        sys.stdout.write(written.read())
sys.exit(bad)
""")
    assert (done.returncode, done.stderr) == (0, "")
    allowed = sorted(reported(done.stdout).values())
    assert allowed == [1] * 40 + [40]


@posix_only
def test_a_task_that_forks() -> None:
    done = run("""
forked, ended = threading.Event(), []
def body(stopping):
    if not ended:
        ended.append("once")
        child = os.fork()
        if child == 0:
            # This thread is the child's only one, and its work is another thread's now.
            assert stopping.is_set()
            os.write(1, b"returns\\n")
            return
        os.write(1, b"child %d\\n" % status_of(child))
        forked.set()
    else:
        os.write(1, b"anew\\n")
    stopping.wait(60)
task = supervisor.start("forking", body)
assert forked.wait(60)
assert task.alive
assert task.stop(60)
""")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["anew", "child 0", "returns"]


@posix_only
def test_multiprocessing() -> None:
    done = run("""
import multiprocessing
def work(limiter, reporter):
    for _ in range(4): limiter.allow("me")
    reporter.stop()
limiter = RateLimiter(1000, per=600, name="api")
reporter = ConsoleReporter(period=600)
limiter.allow("me")
context = multiprocessing.get_context("fork")
children = [context.Process(target=work, args=(limiter, reporter)) for _ in range(2)]
for child in children: child.start()
for child in children: child.join(60)
assert [child.exitcode for child in children] == [0, 0]
print(os.getpid(), *[child.pid for child in children])
""")
    assert done.returncode == 0, done.stderr
    parent, *children = map(int, done.stdout.split())
    assert reported(done.stderr) == {parent: 1, **dict.fromkeys(children, 4)}


@posix_only
def test_a_program_that_is_started_by_a_fork_is_left_alone() -> None:
    done = run("""
import subprocess
ConsoleReporter(period=600)
made = subprocess.run([sys.executable, "-c", "print(1)"], preexec_fn=lambda: None, stdout=-1)
print(made.returncode, made.stdout.decode(), end="")
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 1\n", "")


def test_a_task_that_crashes_and_is_given_up_while_the_interpreter_goes_on() -> None:
    done = run("""
def body(stopping):
    raise ValueError("broken")
task = supervisor.start("broken", body)
task._thread.join(60)
assert not task.alive
print("goes on")
""")
    assert (done.returncode, done.stdout) == (0, "goes on\n")
    assert done.stderr.count("background task broken crashed and is restarted") == 3
    assert done.stderr.count("it is given up") == 1
    assert done.stderr.count("ValueError: broken") == 4


def test_the_source_starts_threads_in_one_place_only() -> None:
    import nanolimit

    package = Path(nanolimit.__file__).parent
    starting = re.compile(r"\bThread\(|start_new_thread|\bTimer\(|ThreadPoolExecutor\(")
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if starting.search(path.read_text("utf-8"))
    }
    assert found == {"supervisor.py"}
