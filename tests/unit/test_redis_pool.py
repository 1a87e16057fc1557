"""The pool of connections: who is served when, and signal handlers that ask or raise meanwhile."""

from __future__ import annotations

import sys
import threading
import time
from types import FrameType
from typing import Any

import pytest

from nanolimit.redis.breaker import Breaker
from nanolimit.redis.fault import Unavailable
from nanolimit.redis.pool import Pool

PATIENT_S = 30.0


class Stub:
    """In the place of a `Line`."""

    clean = True
    lent: object = None

    def __init__(self, age: int) -> None:
        self.age = age
        self.is_open = True

    def alive(self) -> bool:
        return self.is_open

    def close(self) -> None:
        self.is_open = False


def pool_of(size: int = 4) -> Pool:
    return Pool(Stub, "nowhere", size)  # type: ignore[arg-type]


def borrow(pool: Pool) -> None:
    pool.give(pool.take(time.monotonic() + PATIENT_S))


def ends(work: Any) -> bool:
    """Say whether it comes to an end: what hangs does so in a thread of its own."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENT_S / 3)
    return not thread.is_alive()


def test_who_waits_is_served_before_who_has_just_handed_it_back() -> None:
    pool = pool_of(size=1)
    served: list[str] = []

    def work(name: str, times: int) -> None:
        for _ in range(times):
            line = pool.take(time.monotonic() + PATIENT_S)
            served.append(name)
            pool.give(line)

    line = pool.take(time.monotonic() + PATIENT_S)
    waiter = threading.Thread(target=work, args=("waiter", 1))
    waiter.start()
    while not pool._change._waiters:  # type: ignore[attr-defined]
        time.sleep(0)
    pool.give(line)
    work("busy", 3)
    waiter.join()
    assert served == ["waiter", "busy", "busy", "busy"]


def test_no_line_lies_idle_while_somebody_waits() -> None:
    pool = pool_of(size=2)
    served: list[int] = []

    def work(nth: int) -> None:
        for _ in range(200):
            borrow(pool)
        served.append(nth)

    threads = [threading.Thread(target=work, args=(nth,)) for nth in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(served) == list(range(8))
    assert pool._waiting == 0
    assert len(pool._free) == len(pool)


@pytest.mark.parametrize("connected", [False, True])
def test_a_signal_handler_may_borrow_where_its_thread_holds_the_lock(connected: bool) -> None:
    pool = pool_of()
    if connected:
        borrow(pool)

    def interrupted() -> None:
        with pool._lock:
            borrow(pool)

    assert ends(interrupted)


def test_a_signal_handler_may_report_where_its_thread_holds_the_breakers_lock() -> None:
    breaker = Breaker(failures=1)

    def interrupted() -> None:
        with breaker._lock:
            assert breaker.failed(0, 1.0)

    assert ends(interrupted)
    assert breaker.state == "open"


def test_who_waited_when_a_signal_handler_forked_leaves_nothing_behind_in_the_child() -> None:
    pool = pool_of(size=1)
    lent = pool.take(time.monotonic() + PATIENT_S)
    waiter = threading.Thread(target=impatient, args=(pool,))
    waiter.start()
    while waiter.is_alive() and not pool._change._waiters:  # type: ignore[attr-defined]
        time.sleep(0)
    pool.after_fork()  # as if this was the child, and the waiter its only thread
    waiter.join()
    assert pool._waiting == 0
    assert not lent.alive()
    assert ends(lambda: borrow(pool))


def impatient(pool: Pool) -> None:
    with pytest.raises(Unavailable):
        pool.take(time.monotonic() + 0.3)


class Interrupted(Exception):
    """What the handler raises."""


class InterruptAt:
    """Raises at the nth call or return of a function of the pool, or of `threading`.

    There Python looks for signals. (It looks in more places, but not in all lines: where a ``with``
    ends it does not.)
    """

    def __init__(self, nth: int) -> None:
        self.left = nth

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._called)

    def __exit__(self, *exc: object) -> None:
        sys.settrace(self._before)

    def _called(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.endswith(("pool.py", "threading.py", "supervisor.py")):
            return None
        frame.f_trace_lines = False
        self._count()
        return self._returned

    def _returned(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "return":
            self._count()
        return self._returned

    def _count(self) -> None:
        self.left -= 1
        if not self.left:
            raise Interrupted


@pytest.mark.parametrize("connected", [False, True])
def test_a_signal_handler_that_raises_anywhere_leaves_the_pool_as_good_as_new(
    connected: bool,
) -> None:
    nth = 0
    was_interrupted = True
    # One for all: what each of them leaves behind adds up.
    pool = pool_of(size=2)
    while was_interrupted:
        nth += 1
        if connected:
            borrow(pool)
        else:
            pool.flush()
        was_interrupted = False
        try:
            with InterruptAt(nth):
                borrow(pool)
        except (Interrupted, Unavailable, RuntimeError):
            # `threading` itself makes a RuntimeError of it where it was about to let go of a lock.
            was_interrupted = True
        assert ends(lambda: borrow(pool)), nth
    assert nth > 5
