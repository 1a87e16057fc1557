"""Threads that start together, and whose failures are not lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

#: A thread that is not back after this long hangs. Nothing here takes a tenth of it.
PATIENCE_S = 120.0


class Crew:
    """Runs `work(number)` in `size` threads at once; leaving the block joins them.

    The first failure of any of them is raised again at the end, and a thread that never comes back
    is a failure too.
    """

    def __init__(self, size: int, work: Callable[[int], None]) -> None:
        self._failures: list[BaseException] = []
        self._start = threading.Barrier(size)
        self._work = work
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(size)
        ]

    def _run(self, number: int) -> None:
        try:
            self._start.wait(PATIENCE_S)
            self._work(number)
        except threading.BrokenBarrierError:
            pass  # another one failed and says why
        except BaseException as failure:
            self._failures.append(failure)

    @property
    def failed(self) -> bool:
        return bool(self._failures)

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)
        if error is not None:
            return
        if self._failures:
            raise self._failures[0]
        hanging = [thread.name for thread in self._threads if thread.is_alive()]
        assert not hanging, f"still running: {hanging}"


def run(size: int, work: Callable[[int], None]) -> None:
    """Run `work(number)` in `size` threads and wait for all of them."""
    with Crew(size, work):
        pass
