"""The supervisor: restarts within bounds, ends when told, and stays out of everybody's way.

What needs an interpreter's end or a fork stands in tests/concurrency/test_background.py.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nanolimit import supervisor

WAIT_S = 60.0


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
    """The supervisor's clock: a list whose one number is now."""
    time = [1000.0]
    monkeypatch.setattr(supervisor, "monotonic", lambda: time[0])
    return time


def records_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "nanolimit"]


def wait_for_end(task: supervisor.Task) -> None:
    thread = task._thread
    assert thread is not None
    thread.join(WAIT_S)
    assert not task.alive


def test_a_task_runs_in_a_daemon_thread_until_it_is_stopped() -> None:
    running = threading.Event()
    threads: list[threading.Thread] = []

    def run(stopping: threading.Event) -> None:
        threads.append(threading.current_thread())
        running.set()
        assert stopping.wait(WAIT_S)

    task = supervisor.start("worker", run)
    assert running.wait(WAIT_S)
    assert task.alive
    assert repr(task) == "<Task 'worker', alive>"
    [thread] = threads
    assert thread.daemon
    assert thread.name == "nanolimit-worker"
    assert list(supervisor._tasks) == [task]
    assert task.stop(WAIT_S) is True
    assert not task.alive
    assert not thread.is_alive()
    assert repr(task) == "<Task 'worker', ended>"
    assert task.stop() is True  # twice is fine


def test_a_task_that_returns_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    runs: list[int] = []
    task = supervisor.start("brief", lambda stopping: runs.append(1))
    wait_for_end(task)
    assert runs == [1]
    assert records_in(caplog) == []
    assert list(supervisor._tasks) == []
    assert task.stop() is True


def test_a_task_that_is_stopped_before_it_begins_runs_nevertheless() -> None:
    told: list[bool] = []
    task = supervisor.Task("early", lambda stopping: told.append(stopping.is_set()), None)
    task._stopping.set()
    assert task._start()
    wait_for_end(task)
    assert told == [True]


def crashing(times: int, now: list[float], pause_s: float) -> Callable[[threading.Event], None]:
    """A body that raises so many times, `pause_s` apart, and then waits to be stopped."""
    count = 0

    def run(stopping: threading.Event) -> None:
        nonlocal count
        count += 1
        if count <= times:
            now[0] += pause_s
            raise RuntimeError(f"crash {count}")
        ran.set()
        stopping.wait(WAIT_S)

    ran = threading.Event()
    run.ran = ran  # type: ignore[attr-defined]
    return run


def test_three_crashes_in_five_seconds_are_survived(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    run: Any = crashing(3, now, 0.1)
    task = supervisor.start("shaky", run)
    assert run.ran.wait(WAIT_S)
    assert task.alive
    records = records_in(caplog)
    assert [record.getMessage() for record in records] == [
        "background task shaky crashed and is restarted"
    ] * 3
    for number, record in enumerate(records, 1):
        assert record.levelno == logging.ERROR
        assert record.exc_info is not None
        assert str(record.exc_info[1]) == f"crash {number}"
        assert "in run" in "".join(traceback.format_exception(record.exc_info[1]))
    assert task.stop(WAIT_S)
    assert len(records_in(caplog)) == 3


def test_the_fourth_within_five_seconds_ends_it(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    run: Any = crashing(1_000, now, 1.6)  # the fourth is 4.8 s after the first
    task = supervisor.start("broken", run)
    wait_for_end(task)
    messages = [record.getMessage() for record in records_in(caplog)]
    assert messages == ["background task broken crashed and is restarted"] * 3 + [
        "background task broken crashed again after 3 restarts in 4.8 s; it is given up"
    ]
    last = records_in(caplog)[-1]
    assert last.exc_info is not None
    assert str(last.exc_info[1]) == "crash 4"
    assert list(supervisor._tasks) == []
    assert not run.ran.is_set()
    assert task.stop() is True


@pytest.mark.parametrize("pause_s", [5 / 3, 2.0, 60.0])
def test_crashes_that_are_far_enough_apart_go_on(
    pause_s: float, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    now[0] = 0.0  # thirds must add up to no less than 5
    run: Any = crashing(40, now, pause_s + 1e-9)
    task = supervisor.start("shaky", run)
    assert run.ran.wait(WAIT_S)
    assert task.alive
    assert len(records_in(caplog)) == 40
    task.stop(WAIT_S)


def test_a_restart_comes_with_the_same_event_and_in_the_same_thread() -> None:
    seen: list[tuple[int, int]] = []
    again = threading.Event()

    def run(stopping: threading.Event) -> None:
        seen.append((id(stopping), threading.get_ident()))
        if len(seen) == 1:
            raise ValueError("once")
        again.set()
        stopping.wait(WAIT_S)

    task = supervisor.start("again", run)
    assert again.wait(WAIT_S)
    assert seen[0] == seen[1]
    assert task.stop(WAIT_S)


def test_a_crash_while_it_is_stopped_is_logged_and_not_restarted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs: list[int] = []

    def run(stopping: threading.Event) -> None:
        runs.append(1)
        stopping.wait(WAIT_S)
        raise RuntimeError("on the way out")

    task = supervisor.start("late", run)
    assert task.stop(WAIT_S)
    assert runs == [1]
    [record] = records_in(caplog)
    assert record.getMessage() == "background task late crashed while it was stopped"


def test_system_exit_ends_it_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    def run(stopping: threading.Event) -> None:
        raise SystemExit(3)

    task = supervisor.start("leaving", run)
    wait_for_end(task)
    assert records_in(caplog) == []
    assert list(supervisor._tasks) == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, MemoryError])
def test_whatever_else_is_raised_is_a_crash(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    again = threading.Event()
    raised: list[int] = []

    def run(stopping: threading.Event) -> None:
        if not raised:
            raised.append(1)
            raise kind
        again.set()
        stopping.wait(WAIT_S)

    task = supervisor.start("hit", run)
    assert again.wait(WAIT_S)
    [record] = records_in(caplog)
    assert record.exc_info is not None
    assert record.exc_info[0] is kind
    assert task.stop(WAIT_S)


def test_a_broken_logging_set_up_does_not_end_it() -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise OSError("the disk is full")

    again = threading.Event()
    raised: list[int] = []

    def run(stopping: threading.Event) -> None:
        if not raised:
            raised.append(1)
            raise RuntimeError
        again.set()
        stopping.wait(WAIT_S)

    logger = logging.getLogger("nanolimit")
    logger.addFilter(refuse)
    try:
        task = supervisor.start("unheard", run)
        assert again.wait(WAIT_S)
        assert task.stop(WAIT_S)
    finally:
        logger.removeFilter(refuse)


def test_a_task_may_stop_itself() -> None:
    answers: list[bool] = []
    known = threading.Event()

    def run(stopping: threading.Event) -> None:
        assert known.wait(WAIT_S)
        answers.append(tasks[0].stop())
        assert stopping.is_set()

    tasks: list[supervisor.Task] = []
    tasks.append(supervisor.start("self", run))
    known.set()
    wait_for_end(tasks[0])
    assert answers == [False]  # it could not wait for itself


def test_a_task_may_start_and_stop_another() -> None:
    inner: list[supervisor.Task] = []

    def run(stopping: threading.Event) -> None:
        inner.append(supervisor.start("inner", lambda stopping: stopping.wait(WAIT_S)))
        assert inner[0].stop(WAIT_S)

    task = supervisor.start("outer", run)
    wait_for_end(task)
    assert not inner[0].alive


def test_a_task_that_does_not_listen_is_not_waited_for_longer_than_told() -> None:
    let_go = threading.Event()
    inside = threading.Event()

    def run(stopping: threading.Event) -> None:
        inside.set()
        let_go.wait(WAIT_S)

    task = supervisor.start("deaf", run)
    assert inside.wait(WAIT_S)
    assert task.stop(0) is False
    assert task.stop(0.01) is False
    assert task.alive
    assert list(supervisor._tasks) == []  # no child would start it anew
    let_go.set()
    assert task.stop(WAIT_S) is True


def test_all_are_told_before_any_is_waited_for() -> None:
    both = threading.Barrier(2)

    def run(stopping: threading.Event) -> None:
        stopping.wait(WAIT_S)
        both.wait(WAIT_S)  # ends only together with the other

    tasks = [supervisor.start(name, run) for name in "ab"]
    supervisor._stop_all()
    assert not any(task.alive for task in tasks)


def test_the_end_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "EXIT_PATIENCE_S", 0.05)
    let_go = threading.Event()
    tasks = [supervisor.start(name, lambda stopping: let_go.wait(WAIT_S)) for name in "abc"]
    supervisor._stop_all()
    assert all(task.alive for task in tasks)
    let_go.set()
    assert all(task.stop(WAIT_S) for task in tasks)


def test_starting_while_the_interpreter_ends_is_quiet(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_ending", True)
    task = supervisor.start("late", lambda stopping: None)
    assert not task.alive
    assert task.stop() is True
    assert records_in(caplog) == []


@pytest.mark.parametrize(
    "text", ["can't create new thread at interpreter shutdown", "can't start new thread"]
)
def test_no_room_for_a_thread_is_told_and_an_end_is_not(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    if "shutdown" in text:
        assert not supervisor.start("none", lambda stopping: None).alive
    else:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            supervisor.start("none", lambda stopping: None)
    assert list(supervisor._tasks) == []


def test_a_child_starts_anew_what_was_alive_and_nothing_else() -> None:
    """The hook that a forked child runs, in this process: real forks stand elsewhere."""
    ran: list[str] = []
    at_work = {name: threading.Event() for name in ("on", "off")}

    def running(name: str) -> Callable[[threading.Event], None]:
        def run(stopping: threading.Event) -> None:
            ran.append(name)
            at_work[name].set()
            stopping.wait(WAIT_S)

        return run

    on = supervisor.start("on", running("on"), lambda: ran.append("in child"))
    off = supervisor.start("off", running("off"), lambda: ran.append("never"))
    for event in at_work.values():
        assert event.wait(WAIT_S)
        event.clear()
    assert off.stop(WAIT_S)
    old_thread, old_event = on._thread, on._stopping
    assert old_thread is not None
    ran.clear()
    supervisor._after_fork()
    assert at_work["on"].wait(WAIT_S)
    assert ran == ["in child", "on"]
    assert list(supervisor._tasks) == [on]
    assert on._thread is not old_thread
    assert on._stopping is not old_event
    assert on.stop(WAIT_S)
    # Only here, the old thread is still there. It takes itself for one that forked, and ends all.
    old_event.set()
    old_thread.join(WAIT_S)
    assert not old_thread.is_alive()


def test_a_task_that_cannot_be_started_in_a_child_is_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse() -> None:
        raise OSError("no")

    task = supervisor.start("sad", lambda stopping: stopping.wait(WAIT_S), refuse)
    thread, event = task._thread, task._stopping
    assert thread is not None
    supervisor._after_fork()
    assert not task.alive
    [record] = records_in(caplog)
    assert record.getMessage() == "background task sad can't be started in a forked child"
    event.set()
    thread.join(WAIT_S)


def test_many_threads_start_and_stop(restless: None) -> None:
    problems: list[BaseException] = []

    def churn() -> None:
        try:
            for _ in range(50):
                task = supervisor.start("churn", lambda stopping: stopping.wait(WAIT_S))
                assert task.alive
                assert task.stop(WAIT_S)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert problems == []
