"""Interrupts that wait: what was begun is put in order before the program goes."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

# By the user, by whoever ends the program, and by a terminal that was closed.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupt:
    """Whether one was asked to stop."""

    def __init__(self) -> None:
        self._asked = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if so. Where it is called, all is in order."""
        if self._asked:
            raise KeyboardInterrupt

    def take(self, number: int, frame: FrameType | None) -> None:
        """Take a signal. The second one does not wait: whoever asks twice means it."""
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


@contextmanager
def deferred() -> Iterator[Interrupt]:
    """Have Ctrl-C, SIGTERM and SIGHUP wait for the next `Interrupt.check`.

    In another thread than the main one, where signals do not come, nothing is changed.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {}
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        # One that is ignored, as under nohup, stays so.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, interrupt.take)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            # None: it was not set by Python, and can't be set back by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
