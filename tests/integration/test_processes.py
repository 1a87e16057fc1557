"""Processes and threads on one table, without a server between them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest

from doors import verify
from load import now_ns
from nanolimit import RateLimiter
from windows import Span, false_denial, over_admission

pytestmark = pytest.mark.usefixtures("tables")

PROCESSES = 4
THREADS = 3
PATIENCE_S = 60.0


def crew(context: BaseContext, work: Any, *arguments: Any) -> list[Any]:
    """Run `work(number, barrier, *arguments)` in so many processes at once; what each returned."""
    barrier = context.Barrier(PROCESSES)
    pipes = [context.Pipe(duplex=False) for _ in range(PROCESSES)]
    processes = [
        context.Process(target=_report, args=(pipe[1], work, number, barrier, *arguments))
        for number, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        answers = []
        for reader, writer in pipes:
            writer.close()
            assert reader.poll(PATIENCE_S), "a process hangs"
            answers.append(reader.recv())
            reader.close()
    finally:
        for process in processes:
            process.join(5)
            if process.exitcode is None:
                process.kill()
                process.join()
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    return answers


def _report(writer: Connection, work: Any, *arguments: Any) -> None:
    writer.send(work(*arguments))


def in_threads(work: Any) -> list[Any]:
    """Run `work(number)` in so many threads at once; what each returned."""
    start = threading.Barrier(THREADS)

    def begin(number: int) -> Any:
        start.wait(PATIENCE_S)
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


def check_sums(limiter: RateLimiter, answers: list[list[int]]) -> None:
    limit = limiter.quota.limit
    assert [sum(column) for column in zip(*answers, strict=True)] == [USERS * limit] * 3
    threads = PROCESSES * THREADS
    assert len(limiter) == USERS * (3 + threads)
    stats = limiter.stats()
    # Counted in calls, some of which took three units.
    assert stats.allowed == USERS * ((2 + threads) * limit + limit // 3 + limit % 3)
    assert stats.allowed + stats.denied == USERS * threads * (4 * limit + 4)
    verify(limiter)


USERS = 10
LIMITS = {"inline": 6, "chunks": 700}


def use_up(number: int, barrier: Any, table: RateLimiter | Path, limit: int) -> list[int]:
    """Ask for much more than fits; how many units of each kind this process was allowed.

    Args:
        table: An inherited limiter, or where to find it. (A forkserver is of an earlier test, and
            its environment too: a name would mean another directory.)
    """
    limiter = RateLimiter(limit, per=3600, shared=table) if isinstance(table, Path) else table
    allow, allow_many = limiter.allow, limiter.allow_many
    barrier.wait(PATIENCE_S)

    def ask(thread: int) -> list[int]:
        taken = [0] * 4
        for user in range(USERS):
            taken[0] += sum(allow(("one by one", user)) for _ in range(limit))
            # Three at a time, and then what is left.
            taken[1] += sum(3 for _ in range(limit) if allow(("costly", user), 3))
            taken[1] += sum(allow(("costly", user)) for _ in range(3))
            taken[2] += sum(allow_many([("batch", user)] * limit))
            taken[3] += sum(allow((number, thread, user)) for _ in range(limit + 1))
        return taken

    answers = in_threads(ask)
    assert [own for *_, own in answers] == [USERS * limit] * THREADS
    return [sum(column) for column in zip(*answers, strict=True)][:3]


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_exactly_the_limit_over_all_processes(method: str, limit: int, tables: Path) -> None:
    path = tables / "crew"
    with RateLimiter(limit, per=3600, shared=path) as limiter:
        table = limiter if method == "fork" else path
        answers = crew(multiprocessing.get_context(method), use_up, table, limit)
        check_sums(limiter, answers)


def test_exactly_the_limit_in_memory_without_a_name() -> None:
    limit = 700
    with RateLimiter(limit, per=3600, shared=True) as limiter:
        answers = crew(multiprocessing.get_context("fork"), use_up, limiter, limit)
        check_sums(limiter, answers)


def hammer(
    number: int, barrier: Any, limiter: RateLimiter, seconds: float
) -> tuple[list[Span], list[Span]]:
    """Ask as fast as it goes; all that were allowed, and some of those that were denied."""
    allow = limiter.allow
    barrier.wait(PATIENCE_S)
    end_ns = now_ns() + int(seconds * 1e9)

    def ask(thread: int) -> tuple[list[Span], list[Span]]:
        allowed: list[Span] = []
        denied: list[Span] = []
        nth = after_ns = 0
        while after_ns < end_ns:
            before_ns = now_ns()
            fits = allow("hot")
            after_ns = now_ns()
            nth += 1
            if fits:
                allowed.append(Span(before_ns, after_ns))
            elif nth % 64 == 0:
                denied.append(Span(before_ns, after_ns))
        return allowed, denied

    answers = in_threads(ask)
    return [span for spans, _ in answers for span in spans], [
        span for _, spans in answers for span in spans
    ]


@pytest.mark.parametrize(("limit", "window_s"), [(5, 0.001), (200, 0.05)])
def test_windows_slide_for_all_processes(limit: int, window_s: float) -> None:
    """Thousands of windows, with an end and a beginning at every moment."""
    seconds = 0.8
    with RateLimiter(limit, per=window_s, shared=True) as limiter:
        answers = crew(multiprocessing.get_context("fork"), hammer, limiter, seconds)
        allowed = [span for spans, _ in answers for span in spans]
        denied = [span for _, spans in answers for span in spans]
        window_ns = round(window_s * 1e9)
        assert over_admission(allowed, limit, window_ns) is None
        assert false_denial(denied, allowed, limit, window_ns) is None
        assert len(allowed) > limit * seconds / window_s / 4
        assert len(denied) > 1_000
        verify(limiter)


@pytest.mark.parametrize("nth", range(10))
@pytest.mark.parametrize("has_name", [True, False], ids=["name", "memory"])
def test_children_outlive_the_parent_that_made_the_limiter(
    has_name: bool, nth: int, tables: Path
) -> None:
    """A master that preloaded the limiter is killed in the middle of using it."""
    limit, users = 500, 200
    shared = tables / "family" if has_name else True
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    counts = context.RawArray("q", 2)  # what each of the parent's threads was allowed so far
    parent = context.Process(target=_parent, args=(writer, counts, shared, limit, users))
    parent.start()
    writer.close()
    try:
        deadline = time.monotonic() + PATIENCE_S
        while sum(counts) < 2_000 + 1_000 * nth:
            assert time.monotonic() < deadline
            assert parent.is_alive()
            time.sleep(0.001)
        os.kill(parent.pid or 0, signal.SIGKILL)
        parent.join()
        by_children = 0
        while True:  # until the last child has closed its end
            assert reader.poll(PATIENCE_S), "a child hangs"
            try:
                by_children += reader.recv()
            except EOFError:
                break
    finally:
        parent.kill()
        parent.join()
        reader.close()
    # What the parent's two threads were doing at its end may have been counted and not noted.
    assert limit * users - 2 <= sum(counts) + by_children <= limit * users
    assert by_children > 0
    if has_name:
        with RateLimiter(limit, per=3600, shared=shared) as limiter:
            assert not any(limiter.allow(user) for user in range(users))
            verify(limiter)


def _parent(writer: Connection, counts: Any, shared: Any, limit: int, users: int) -> None:
    limiter = RateLimiter(limit, per=3600, shared=shared)
    for _ in range(3):
        if os.fork() == 0:
            _child(writer, limiter, users)
            os._exit(0)
    writer.close()
    threads = [
        threading.Thread(target=_take, args=(limiter, counts, limit, users, number))
        for number in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _take(limiter: RateLimiter, counts: Any, limit: int, users: int, number: int) -> None:
    for _ in range(limit):
        for user in range(users):
            if limiter.allow(user):
                counts[number] += 1
    time.sleep(PATIENCE_S)  # it is killed, and never ends by itself


def _child(writer: Connection, limiter: RateLimiter, users: int) -> None:
    """Take half of the users' units together with the parent; all that are left once it is dead."""
    signal.alarm(int(PATIENCE_S))  # nobody would end one that hangs
    parent = os.getppid()
    taken = 0
    while os.getppid() == parent:
        taken += sum(limiter.allow(user) for user in range(users // 2))
    while any(limiter.peek(user) for user in range(users)):
        taken += sum(limiter.allow(user) for user in range(users))
    writer.send(taken)
