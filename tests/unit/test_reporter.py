"""ConsoleReporter: what its lines say, what it does with streams that fail, and that it lets go.

What needs a fork or the interpreter's end stands in tests/concurrency/test_background.py.
"""

from __future__ import annotations

import gc
import io
import logging
import math
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nanolimit import ManualClock, RateLimiter, Stats, supervisor, telemetry
from nanolimit import reporter as reporter_module
from nanolimit.telemetry import ConsoleReporter
from sharing import needs_shared

WAIT_S = 60.0
HEAD = f"nanolimit[{os.getpid()}] "


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    assert list(supervisor._tasks) == []
    yield
    left = list(supervisor._tasks)
    for task in left:
        task.stop(WAIT_S)
    assert left == []


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The reporter's clock: a list whose one number is now."""
    time = [1000.0]
    monkeypatch.setattr(reporter_module, "monotonic", lambda: time[0])
    return time


class Lines(io.StringIO):
    """A stream whose lines a test can take, and wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.came = threading.Condition()

    def write(self, text: str) -> int:
        with self.came:
            self.came.notify_all()
            return super().write(text)

    def wait(self, text: str) -> None:
        with self.came:
            assert self.came.wait_for(lambda: text in self.getvalue(), WAIT_S), self.getvalue()

    def take(self) -> list[str]:
        """What was written since; without the process, which begins every line."""
        lines = self.getvalue().splitlines()
        self.seek(0)
        self.truncate()
        assert all(line.startswith(HEAD) for line in lines), lines
        return [line[len(HEAD) :] for line in lines]


def reporting(
    stream: Any, *limiters: Any, period: float = 600, log: bool = False
) -> ConsoleReporter:
    """A reporter whose period does not come by itself."""
    return ConsoleReporter(period, stream, limiters=limiters or None, log=log)


def limiter_of(limit: int = 5, **options: Any) -> RateLimiter:
    return RateLimiter(limit, per=60, clock=ManualClock(), **options)


def records_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "nanolimit"]


def test_a_line_tells_what_was_done_since_the_last_one(now: list[float]) -> None:
    stream = Lines()
    limiter = limiter_of(5, name="api", max_keys=1000)
    limiter.allow("before")
    with reporting(stream, limiter) as reporter:
        limiter.allow_many(["me"] * 8)
        now[0] += 2
        reporter.report()
        memory = f"{limiter.stats().memory_bytes / 1024:.1f} KiB"
        assert stream.take() == [
            f"api: allowed 5 (2.5/s), denied 3 (1.5/s, 37.5 %), keys 2 of 1,000, memory {memory}"
        ]
        now[0] += 10
        limiter.allow("you")
        reporter.report()
        assert stream.take() == [
            f"api: allowed 1 (0.1/s), denied 0 (0.0/s, 0.0 %), keys 3 of 1,000, memory {memory}"
        ]
        now[0] += 1
        reporter.report()
        assert stream.take()[0].startswith("api: allowed 0 (0.0/s), denied 0 (0.0/s, 0.0 %), ")
        limiter.allow_many(["me"] * 2)
        now[0] += 4
    # Stopping tells of the rest.
    assert stream.take()[0].startswith("api: allowed 0 (0.0/s), denied 2 (0.5/s, 100.0 %), ")


def test_numbers_are_readable(now: list[float]) -> None:
    stream = Lines()
    limiter = RateLimiter(1, per=60, name="api")
    with reporting(stream, limiter) as reporter:
        limiter.allow_many(range(30_000))
        now[0] += 0.25
        reporter.report()
        [line] = stream.take()
        assert line.startswith("api: allowed 30,000 (120,000/s), denied 0 (0.0/s, 0.0 %), ")
        assert f"memory {limiter.stats().memory_bytes / 2**20:.1f} MiB" in line
        assert "keys 30,000 of 1,000,000" in line


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1.0 MiB"),  # not 1024.0 KiB
        (2**20, "1.0 MiB"),
        (5 * 2**30, "5.0 GiB"),
        (2**40, "1.0 TiB"),
        (3000 * 2**40, "3,000.0 TiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert reporter_module._size(size) == text


def test_what_is_rare_is_told_of_where_it_happens(now: list[float]) -> None:
    stream = Lines()
    watching = limiter_of(1, name="watching", enforce=False)
    full = limiter_of(1, name="full", max_keys=1, on_full="deny")
    with reporting(stream, watching, full) as reporter:
        watching.allow_many(["me"] * 3)
        while full.allow(full.stats().allowed):
            pass
        now[0] += 1
        reporter.report()
        first, second = stream.take()
        assert first.startswith("watching: allowed 3 (3.0/s), denied 0 (0.0/s, 0.0 %)")
        assert first.endswith(", would deny 2")
        assert second.endswith(", overflowed 1")
        reporter.report()
        assert all("would deny" not in line and "overflow" not in line for line in stream.take())


def test_all_limiters_in_the_order_in_which_they_were_made_and_no_closed_one(
    now: list[float],
) -> None:
    stream = Lines()
    gc.collect()  # limiters of other tests
    first, second = limiter_of(name="unit-1"), limiter_of(name="unit-2")
    with reporting(stream) as reporter:
        third = limiter_of(name="unit-3")  # made later: all that it did was in this period
        for limiter in (first, second, third):
            limiter.allow("me")

        def names() -> list[str]:
            now[0] += 1
            reporter.report()
            lines = [line for line in stream.take() if line.startswith("unit-")]
            return [line.partition(", denied")[0] for line in lines]

        assert names() == [f"unit-{number}: allowed 1 (1.0/s)" for number in (1, 2, 3)]
        second.close()
        assert names() == [f"unit-{number}: allowed 0 (0.0/s)" for number in (1, 3)]
        first.close()
        third.close()
        assert names() == []


def test_the_limiters_given_and_no_others(now: list[float]) -> None:
    stream = Lines()
    wanted, other = limiter_of(name="wanted"), limiter_of(name="other")
    with reporting(stream, wanted, wanted) as reporter:
        wanted.allow("me")
        other.allow("me")
        reporter.report()
        assert [line.partition(":")[0] for line in stream.take()] == ["wanted"]


def test_two_of_one_name_have_a_line_each(now: list[float]) -> None:
    stream = Lines()
    one, two = limiter_of(name="same"), limiter_of(name="same")
    with reporting(stream, one, two) as reporter:
        two.allow("me")
        now[0] += 1
        reporter.report()
        assert [line.partition(" (")[0] for line in stream.take()] == [
            "same: allowed 0",
            "same: allowed 1",
        ]


def test_a_limiter_closed_in_the_middle_of_a_report(now: list[float]) -> None:
    stream = Lines()

    class Closing(RateLimiter):
        def stats(self) -> Stats:
            if closing:
                self.close()
            return super().stats()

    closing = False
    limiter, after = Closing(5, name="closing"), limiter_of(name="after")
    with reporting(stream, limiter, after) as reporter:
        closing = True
        reporter.report()
        assert [line.partition(":")[0] for line in stream.take()] == ["after"]


def test_counters_that_go_back_give_no_negative_rate(now: list[float]) -> None:
    class Table:
        name = "made anew"
        numbers = (100, 50)

        def stats(self) -> Any:
            return Stats(*self.numbers, 1, 0, 0, 1024, 10)

    stream, table = Lines(), Table()
    with reporting(stream, table) as reporter:
        now[0] += 1
        table.numbers = (7, 60)
        reporter.report()
        [line] = stream.take()
        assert line.startswith(
            "made anew (all processes): allowed 7 (7.0/s), denied 10 (10.0/s, 58.8 %), "
        )


def test_a_name_cannot_look_like_a_line_or_recolour_a_terminal() -> None:
    stream = Lines()
    limiter = limiter_of(name="api\nnanolimit[1] \x1b[31madmin")
    with reporting(stream, limiter) as reporter:
        reporter.report()
        [line] = stream.take()
        assert line.startswith("'api\\nnanolimit[1] \\x1b[31madmin': allowed 0 ")


def test_no_time_at_all_between_two_reports(now: list[float]) -> None:
    stream = Lines()
    limiter = limiter_of(name="api")
    with reporting(stream, limiter) as reporter:
        limiter.allow("me")
        reporter.report()
        assert stream.take()[0].startswith("api: allowed 1 (")


def test_it_reports_by_itself_every_period() -> None:
    stream = Lines()
    limiter = limiter_of(500, name="api")
    with ConsoleReporter(timedelta(milliseconds=10), stream, limiters=[limiter]):
        for cost in (101, 102):
            limiter.allow("me", cost)
            stream.wait("api: allowed 1 ")
            stream.seek(0)
            stream.truncate()
        stream.wait("\n" + HEAD + "api: allowed 0 ")  # a line also where nothing happened


def test_a_report_that_took_long_is_not_made_up_for(now: list[float]) -> None:
    waits: list[float] = []

    class Stopping:
        def wait(self, timeout: float) -> bool:
            waits.append(timeout)
            now[0] += timeout + (35 if len(waits) == 2 else 1)  # the second report takes 35 s
            return len(waits) == 5

    stream = Lines()
    with reporting(stream, limiter_of(name="api"), period=10) as reporter:
        reporter._run(Stopping())  # type: ignore[arg-type]
    assert waits == [10, 9, 0, 9, 9]


def test_start_and_stop() -> None:
    stream = Lines()
    limiter = limiter_of(name="api")
    reporter = reporting(stream, limiter)
    assert reporter.running
    assert repr(reporter) == "<ConsoleReporter every 600 s, running>"
    [task] = supervisor._tasks
    reporter.start()  # it runs: nothing
    assert list(supervisor._tasks) == [task]
    limiter.allow("me")
    reporter.stop()
    assert not reporter.running
    assert repr(reporter) == "<ConsoleReporter every 600 s, stopped>"
    assert len(stream.take()) == 1
    reporter.stop()
    assert stream.take() == []
    limiter.allow("me")
    reporter.start()
    assert reporter.running
    limiter.allow("me")
    reporter.stop()
    [line] = stream.take()
    assert line.startswith("api: allowed 1 ")  # not what came while it was stopped


def test_report_of_one_that_is_stopped() -> None:
    stream = Lines()
    limiter = limiter_of(name="api")
    reporter = reporting(stream, limiter)
    reporter.stop()
    stream.take()
    limiter.allow("me")
    reporter.report()
    assert stream.take()[0].startswith("api: allowed 1 ")


def test_it_goes_on_when_nobody_holds_it_and_holds_no_limiter() -> None:
    stream = Lines()
    reference = weakref.ref(ConsoleReporter(0.01, stream, log=False))
    gc.collect()
    limiter = RateLimiter(5, name="unit-forgotten")
    stream.wait("unit-forgotten")
    gone = weakref.ref(limiter)
    del limiter
    for _ in range(1000):
        gc.collect()
        if gone() is None:  # the report that was being written held it
            break
        threading.Event().wait(0.01)
    assert gone() is None
    reporter = reference()
    assert reporter is not None
    reporter.stop()


def test_one_that_was_stopped_and_forgotten_is_gone() -> None:
    reporter = reporting(Lines(), limiter_of())
    reporter.stop()
    gone = weakref.ref(reporter)
    del reporter
    gc.collect()
    assert gone() is None
    reporting(Lines(), limiter_of()).stop()
    assert sum(each() is None for each in reporter_module._all) == 0  # made room


def test_standard_error_is_looked_up_at_each_report(monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = limiter_of(name="api")
    reporter = reporting(None, limiter)
    for _ in range(2):
        stream = Lines()
        monkeypatch.setattr(sys, "stderr", stream)
        reporter.report()
        assert len(stream.take()) == 1
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    reporter.report()
    reporter.stop()


def test_records_have_the_numbers(now: list[float], caplog: pytest.LogCaptureFixture) -> None:
    limiter = limiter_of(5, name="api", max_keys=1000)
    stream = Lines()
    with caplog.at_level(logging.INFO, logger="nanolimit"):
        reporter = reporting(stream, limiter, log=True)
        limiter.allow_many(["me"] * 8)
        now[0] += 2
        reporter.report()
    [record] = records_in(caplog)
    assert record.levelno == logging.INFO
    assert [record.getMessage()] == stream.take()
    extra = {name: getattr(record, name) for name in reporter_module._Line._fields}
    assert extra == {
        "limiter": "api",
        "allowed": 5,
        "denied": 3,
        "would_deny": 0,
        "overflowed": 0,
        "evicted": 0,
        "allowed_per_s": 2.5,
        "denied_per_s": 1.5,
        "denied_percent": 37.5,
        "keys": 1,
        "capacity_keys": 1000,
        "memory_bytes": limiter.stats().memory_bytes,
        "period_s": 2.0,
        "all_processes": False,
    }
    reporter.stop()


def test_no_records_if_not_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="nanolimit"):
        reporting(Lines(), limiter_of(), log=False).stop()
    assert records_in(caplog) == []


class Broken:
    name = "broken"

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.calls = 0

    def write(self, text: str) -> None:
        self.calls += 1
        raise self.error


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(32, "Broken pipe"), ValueError("closed"), OSError(28, "full"), TypeError("x")],
)
def test_a_stream_that_fails_is_told_of_once_and_records_go_on(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    stream = Broken(error)
    limiter = limiter_of(name="api")
    with caplog.at_level(logging.INFO, logger="nanolimit"):
        reporter = reporting(stream, limiter, log=True)
        for _ in range(3):
            reporter.report()
        assert reporter.running
        reporter.stop()
    warnings = [record for record in records_in(caplog) if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warnings] == [
        "the console reporter can't write to broken, and does so no more"
    ]
    assert warnings[0].exc_info is not None
    assert warnings[0].exc_info[1] is error
    assert stream.calls == 1
    lines = [record for record in records_in(caplog) if record.levelno == logging.INFO]
    assert len(lines) == 4


def test_a_closed_stream_and_a_binary_one(caplog: pytest.LogCaptureFixture) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (closed, io.BytesIO()):
        reporter = reporting(stream, limiter_of())
        for _ in range(2):
            reporter.report()
        reporter.stop()
    assert [record.getMessage() for record in records_in(caplog)] == [
        "the console reporter can't write to a StringIO, and does so no more",
        "the console reporter can't write to a BytesIO, and does so no more",
    ]


def test_a_stream_that_only_writes_needs_no_flush() -> None:
    class Plain:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

    stream = Plain()
    reporting(stream, limiter_of(name="api")).stop()
    assert stream.text.startswith(f"{HEAD}api: allowed 0 ")


@pytest.mark.parametrize("buffering", [1, -1])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1", "utf-16"])
def test_a_file_gets_whole_lines_at_once_in_its_encoding(
    encoding: str, buffering: int, tmp_path: Path
) -> None:
    path = tmp_path / "reports"
    with path.open("w", buffering, encoding=encoding) as stream:
        reporter = reporting(stream, limiter_of(name="größe ☃"))
        reporter.report()
        text = path.read_text(encoding)
        reporter.stop()
    name = {"ascii": "gr\\xf6\\xdfe \\u2603", "latin-1": "gr\\xf6\\xdfe \\u2603"}
    assert text.startswith(f"{HEAD}{name.get(encoding, 'größe ☃')}: allowed 0 ")
    assert text.endswith("iB\n")


@pytest.mark.skipif(os.name != "posix", reason="it is about pipes that block")
def test_a_pipe_that_is_full_and_does_not_block_loses_a_report(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(writer, "w", buffering=1, encoding="utf-8") as stream:
        reporter = reporting(stream, limiter_of(name="api"))
        try:
            while True:
                os.write(writer, b"\n")
        except BlockingIOError:
            pass
        reporter.report()  # lost
        os.set_blocking(reader, False)
        try:
            while True:
                os.read(reader, 2**16)
        except BlockingIOError:
            pass
        reporter.report()
        assert HEAD.encode() + b"api: allowed 0 " in os.read(reader, 2**16)
        reporter.stop()
        os.close(reader)
    assert records_in(caplog) == []


def test_a_broken_logging_set_up_does_not_end_it() -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise OSError("the disk is full")

    stream = Lines()
    logger = logging.getLogger("nanolimit")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addFilter(refuse)
    try:
        reporter = reporting(stream, limiter_of(name="api"), log=True)
        reporter.report()
        assert reporter.running
        reporter.stop()
        assert len(stream.take()) == 2
        broken = reporting(Broken(OSError("no")), limiter_of(), log=True)
        broken.report()
        assert broken.running
        broken.stop()
    finally:
        logger.removeFilter(refuse)
        logger.setLevel(level)


def test_a_log_handler_may_report_and_stop_it() -> None:
    stream = Lines()

    class Meddling(logging.Handler):
        depth = 0

        def emit(self, record: logging.LogRecord) -> None:
            if self.depth < 2:
                self.depth += 1
                reporter.report()
                reporter.stop()

    handler = Meddling()
    logger = logging.getLogger("nanolimit")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        reporter = ConsoleReporter(600, stream, limiters=[limiter_of(name="api")])
        reporter.stop(WAIT_S)
        assert not reporter.running
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    # Newer Pythons drop what a log handler logs, so that it is not called again.
    assert len(stream.take()) in (2, 3)


def test_a_stream_that_blocks_is_not_waited_for_longer_than_told() -> None:
    inside, let_go = threading.Event(), threading.Event()

    class Slow:
        def write(self, text: str) -> None:
            inside.set()
            let_go.wait(WAIT_S)

    reporter = ConsoleReporter(0.01, Slow(), limiters=[limiter_of()])
    assert inside.wait(WAIT_S)
    reporter.stop(timeout=0)
    reporter.stop(timeout=0.01)
    assert reporter.running
    let_go.set()
    reporter.stop(WAIT_S)
    assert not reporter.running


def test_it_may_be_started_again_while_its_stream_still_blocks() -> None:
    inside, let_go = threading.Event(), threading.Event()

    class Slow(Lines):
        def write(self, text: str) -> int:
            inside.set()
            let_go.wait(WAIT_S)
            return super().write(text)

    stream, limiter = Slow(), limiter_of(name="api")
    reporter = ConsoleReporter(0.01, stream, limiters=[limiter])
    assert inside.wait(WAIT_S)
    [old] = supervisor._tasks
    reporter.stop(timeout=0)
    reporter.start()
    [new] = supervisor._tasks
    assert new is not old
    assert old.alive
    limiter.allow("me")
    let_go.set()
    assert old.stop(WAIT_S)
    assert reporter.running
    stream.wait("api: allowed 1 ")
    reporter.stop(WAIT_S)
    assert not reporter.running


def test_another_limiter_that_is_where_a_forgotten_one_was(now: list[float]) -> None:
    stream = Lines()
    old, new = limiter_of(name="old"), limiter_of(name="new")
    with reporting(stream, new) as reporter:
        # As when memory, and so the id, is taken again between two reports.
        old.allow("me")
        reporter._counted = {id(new): reporter_module._Counted(weakref.ref(old), old.stats())}
        new.allow_many(["a", "b", "c"])
        reporter.report()
        assert stream.take()[0].startswith("new: allowed 3 ")


def test_a_stream_that_raises_what_is_no_exception_is_a_crash(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stream = Broken(KeyboardInterrupt())
    reporter = ConsoleReporter(0.01, stream, limiters=[limiter_of()], log=False)
    [task] = supervisor._tasks
    assert task._thread is not None
    task._thread.join(WAIT_S)
    assert not reporter.running
    messages = [record.getMessage() for record in records_in(caplog)]
    assert len(messages) == 4
    assert "given up" in messages[-1]


@pytest.mark.parametrize(
    ("period", "error", "said"),
    [
        (0, ValueError, "period must be 0.01 to 604800 seconds, not 0"),
        (-1, ValueError, "not -1"),
        (0.001, ValueError, "not 0.001"),
        (604_801, ValueError, "not 604801"),
        (10**400, ValueError, "not an integer of"),
        (timedelta(0), ValueError, "period must be 0.01 to"),
        (math.nan, ValueError, "period must be a finite number of seconds, not nan"),
        (math.inf, ValueError, "finite"),
        (True, TypeError, "period must be seconds as int or float, or a timedelta, not bool"),
        ("10", TypeError, "not str"),
        (None, TypeError, "not NoneType"),
    ],
)
def test_bad_periods(period: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        ConsoleReporter(period)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"stream": 5}, TypeError, "stream must be a text stream, not int"),
        ({"stream": "stderr"}, TypeError, "stream must be a text stream, not str"),
        ({"log": 1}, TypeError, "log must be a bool, not int"),
        ({"log": None}, TypeError, "log must be a bool, not NoneType"),
        ({"limiters": []}, ValueError, "limiters must hold at least one; leave it out for all"),
        ({"limiters": 5}, TypeError, "limiters must be limiters in a list, not 5"),
        ({"limiters": "api"}, TypeError, "limiters must be limiters in a list, not 'api'"),
        ({"limiters": ["api"]}, TypeError, "limiters must be limiters, not 'api' among them"),
        ({"limiters": [RateLimiter]}, TypeError, "not <class 'nanolimit.limiter.RateLimiter'>"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        ConsoleReporter(**options)


def test_a_limiter_that_stands_alone() -> None:
    with pytest.raises(TypeError, match=r"in a list, not <RateLimiter 'api'"):
        ConsoleReporter(limiters=limiter_of(name="api"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("timeout", "error"), [(-1, ValueError), (math.nan, ValueError), ("1", TypeError)]
)
def test_bad_timeouts_of_stop(timeout: Any, error: type[Exception]) -> None:
    reporter = reporting(Lines(), limiter_of())
    with pytest.raises(error, match="timeout must be"):
        reporter.stop(timeout)
    assert reporter.running
    reporter.stop()


@needs_shared
def test_a_shared_table_counts_what_all_do(folder: Path, now: list[float]) -> None:
    from nanolimit import shared

    stream = Lines()
    with RateLimiter(5, per=60, shared="unit") as one:
        one.allow_many(["me"] * 8)
        with RateLimiter(5, per=60, shared="unit") as two, shared.watch("unit") as watch:
            reporter = reporting(stream, two, watch)
            one.allow_many(["me"] * 4)
            now[0] += 1
            reporter.report()
            head = "unit (all processes): allowed 0 (0.0/s), denied 4 (4.0/s, 100.0 %), "
            assert [line.startswith(head) for line in stream.take()] == [True, True]
        reporter.stop()
        assert stream.take() == []  # both are closed


@needs_shared
def test_a_shared_table_that_comes_later_begins_at_what_it_has(
    folder: Path, now: list[float]
) -> None:
    stream = Lines()
    with RateLimiter(5, per=60, shared="unit") as one:
        one.allow_many(["me"] * 8)
        reporter = reporting(stream)
        with RateLimiter(5, per=60, shared="unit", name="late") as _late:
            reporter.report()  # what the table counted before is of no known period
            assert [line for line in stream.take() if line.startswith("late")] == []
            one.allow("me")
            now[0] += 1
            reporter.report()
            [line] = [line for line in stream.take() if line.startswith("late")]
            assert line.startswith("late (all processes): allowed 0 (0.0/s), denied 1 ")
    reporter.stop()


def test_it_is_a_name_of_telemetry_and_costs_nothing_until_it_is_used() -> None:
    assert telemetry.ConsoleReporter is reporter_module.ConsoleReporter
    assert "ConsoleReporter" in telemetry.__all__
    with pytest.raises(AttributeError, match=r"'nanolimit.telemetry' has no attribute 'Reporter'"):
        _ = telemetry.Reporter  # type: ignore[attr-defined]
