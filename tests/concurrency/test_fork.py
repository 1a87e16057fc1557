"""fork() while threads insert, accept and deny: the child goes on with its own copy.

A child has only the thread that forked. Whatever the others were doing inside the table at that
instant must not make it wait for ever, count wrongly or find the table torn. Each child has an
alarm: one that hangs dies of it and fails the test.

What a child works with is handed to it as an argument, and threads bind their methods once. A
variable that a child shares with running threads as a closure's cell would hang it on a
free-threaded 3.13: the interpreter may hand the cell's lock to a waiting thread that the child does
not have (PyCell_GetRef, PyMutex_Lock). Nothing of that is ours.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from crew import Crew, run
from doors import verify
from nanolimit import RateLimiter

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() on this platform"),
    pytest.mark.usefixtures("restless"),
    # forking with threads running is what this is about
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

CHILD_S = 60


def in_child(work: Callable[[RateLimiter], None], limiter: RateLimiter) -> None:
    """Run `work(limiter)` in a forked child; fail with its traceback, or if it hangs."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            faulthandler.register(signal.SIGALRM, file=writer, chain=True)  # where it hangs
            signal.alarm(CHILD_S)
            os.close(reader)
            work(limiter)
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[:60_000])
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        complaint = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    assert not os.WIFSIGNALED(status), f"killed by {os.WTERMSIG(status)}: {complaint}"
    assert os.WEXITSTATUS(status) == 0, complaint


def use_up(limiter: RateLimiter, key: Any, limit: int) -> None:
    """What peek says still fits is what fits: nobody else is here."""
    left = limiter.peek(key).remaining
    answers = [limiter.allow(key) for _ in range(limit + 1)]
    assert answers == [True] * left + [False] * (limit + 1 - left)


@pytest.mark.parametrize(("limit", "forks"), [(5, 60), (40, 40)])
def test_fork_while_threads_insert_and_accept(limit: int, forks: int) -> None:
    limiter = RateLimiter(limit, per=86_400)
    done = threading.Event()
    hot = [f"hot:{nth}" for nth in range(4)]

    def work(number: int) -> None:
        """New keys come, old ones go: some 30,000 at a time, and a hot one in between."""
        allow, reset, stop = limiter.allow, limiter.reset, done.is_set
        mine = hot[number % len(hot)]
        for nth in itertools.count():
            allow(("new", number, nth))
            allow(mine)
            reset(("new", number, nth - 10_000))
            if nth % 100 == 0:
                reset(mine)
                if stop():
                    return

    def child(nth: int) -> Callable[[RateLimiter], None]:
        def go_on(limiter: RateLimiter) -> None:
            verify(limiter)
            for key in hot:
                use_up(limiter, key, limit)
            for fresh in range(50):
                use_up(limiter, ("child", nth, fresh), limit)
            assert limiter.allow("mine") is (limit > nth % (limit + 1))
            limiter.evict()
            verify(limiter)
            limiter.clear()
            assert len(limiter) == 0
            use_up(limiter, "mine", limit)
            verify(limiter)
            limiter.close()

        return go_on

    with Crew(3, work):
        try:
            for nth in range(forks):
                limiter.reset("mine")
                for _ in range(nth % (limit + 1)):
                    assert limiter.allow("mine")
                in_child(child(nth), limiter)
                assert limiter.peek("mine").remaining == limit - nth % (limit + 1)
        finally:
            done.set()
    verify(limiter)


def test_fork_while_threads_evict_and_clear() -> None:
    """The slow paths walk the whole table; fork lets them finish or leaves nothing half done."""
    limit = 5
    limiter = RateLimiter(limit, per=0.001)
    done = threading.Event()

    def bring(number: int) -> None:
        allow_many, stop = limiter.allow_many, done.is_set
        for block in itertools.count():
            allow_many([(number, block, nth) for nth in range(500)])
            if stop():
                return

    def sweep(_: int) -> None:
        clear, evict, count, stop = limiter.clear, limiter.evict, limiter.__len__, done.is_set
        for nth in itertools.count():
            if nth % 50 == 49:
                clear()
            evict()
            count()
            if stop():
                return

    def child(limiter: RateLimiter) -> None:
        verify(limiter)
        limiter.allow_many(range(2_000))
        limiter.evict()
        verify(limiter)
        limiter.clear()
        assert len(limiter) == 0
        verify(limiter)

    with Crew(2, lambda number: (bring, sweep)[number](number)):
        try:
            for _ in range(60):
                in_child(child, limiter)
        finally:
            done.set()
    verify(limiter)


def test_threads_of_the_child() -> None:
    """A child may start threads of its own, and they are exact as well."""
    limit = 50
    limiter = RateLimiter(limit, per=86_400)
    done = threading.Event()

    def work(number: int) -> None:
        allow, stop = limiter.allow, done.is_set
        for nth in itertools.count():
            allow(("new", number, nth % 100_000))
            if stop():
                return

    def child(limiter: RateLimiter) -> None:
        admitted = [0, 0]

        def ask(number: int) -> None:
            admitted[number] = sum(limiter.allow("hot") for _ in range(limit))

        run(2, ask)
        assert sum(admitted) == limit
        verify(limiter)

    with Crew(2, work):
        try:
            for _ in range(20):
                in_child(child, limiter)
        finally:
            done.set()


def test_children_of_children() -> None:
    """Ten generations, each with what the one before had counted."""
    limiter = RateLimiter(10, per=86_400)

    def generation(limiter: RateLimiter, nth: int) -> None:
        assert limiter.peek("line").remaining == 10 - nth
        assert limiter.allow("line") is (nth < 10)
        verify(limiter)
        if nth < 10:
            in_child(lambda limiter: generation(limiter, nth + 1), limiter)
        assert limiter.peek("line").remaining == max(0, 10 - nth - 1)

    generation(limiter, 0)
    assert limiter.peek("line").remaining == 9


def test_fork_from_many_threads_at_once() -> None:
    limiter = RateLimiter(3, per=86_400)

    def fork(number: int) -> None:
        for nth in range(15):
            key = (number, nth)
            assert limiter.allow(key)

            def child(limiter: RateLimiter, key: Any = key) -> None:
                verify(limiter)
                assert [limiter.allow(key) for _ in range(3)] == [True, True, False]

            in_child(child, limiter)
            assert limiter.peek(key).remaining == 2

    run(3, fork)
    verify(limiter)
