"""What the tests of waiting share: threads that wait, and lines that must be gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from nanolimit import RateLimiter

#: What is not there after this long never comes. Nothing here takes a tenth of it.
PATIENCE_S = 60.0


def until(happened: Callable[[], bool]) -> None:
    """Wait for another thread; fail if it takes for ever."""
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.0005)


def waiting(limiter: RateLimiter) -> int:
    """How many wait for the limiter, all keys together."""
    if limiter._waits is None:
        return 0
    with limiter._waits.lock:
        return sum(map(len, limiter._waits._lines()))


def lines(limiter: RateLimiter) -> int:
    """How many keys are waited for."""
    return 0 if limiter._waits is None else len(limiter._waits.lines)


class Waiting:
    """A thread that calls `work` and keeps what came of it; it is in line when this is made."""

    def __init__(self, limiter: RateLimiter, work: Callable[[], object]) -> None:
        self.answer: object = None
        self.error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        before = waiting(limiter)
        self._thread.start()
        until(lambda: waiting(limiter) == before + 1 or not self._thread.is_alive())

    def _run(self) -> None:
        try:
            self.answer = self._work()
        except BaseException as error:
            self.error = error

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> object:
        self._thread.join(PATIENCE_S)
        assert self.done, "it still waits"
        if self.error is not None:
            raise self.error
        return self.answer
