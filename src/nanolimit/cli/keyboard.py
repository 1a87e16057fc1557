"""Keys and signals for a command that fills the terminal: as they come, and nothing left behind.

Signals only note that they came. So none of them ends the program in the middle of a write to the
terminal, and what was changed there is always put back.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_KEY = re.compile(rb"\x1b[\[O][A-D]|.", re.DOTALL)
_NAMES = {
    b"\x1b[A": "up", b"\x1bOA": "up", b"k": "up",
    b"\x1b[B": "down", b"\x1bOB": "down", b"j": "down",
    b"\x1b[C": "enter", b"\x1bOC": "enter", b"\r": "enter", b"\n": "enter",
    b"\x1b[D": "back", b"\x1bOD": "back", b"\x1b": "back", b"\x7f": "back", b"\x08": "back",
    b"q": "quit", b"Q": "quit", b"\x03": "quit",
}  # fmt: skip


class Keyboard:
    """Reads single keys while its ``with`` block lasts, if stdin is a terminal; and signals.

    Only in the main thread, which is where signals arrive.
    """

    def __init__(self) -> None:
        self._input: int | None = None
        self._modes: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._came: list[int] = []
        self._wake: tuple[int, int] | None = None
        self._old_wake = -1

    def __enter__(self) -> Keyboard:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._wake = reader, writer
        self._old_wake = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for name in ("SIGINT", "SIGTERM", "SIGWINCH", "SIGTSTP"):
            number = getattr(signal, name, None)
            # What whoever started this wants ignored stays so (nohup, a shell's background job).
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._note)
        try:
            self._input = sys.stdin.fileno() if sys.stdin.isatty() else None
        except (AttributeError, ValueError, OSError):
            self._input = None  # it is closed
        self.take()
        return self

    def __exit__(self, *exc: object) -> None:
        self.give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        signal.set_wakeup_fd(self._old_wake)
        if self._wake is not None:
            for fd in self._wake:
                os.close(fd)
            self._wake = None

    def _note(self, number: int, frame: object) -> None:
        self._came.append(number)

    def take(self) -> None:
        """Have the terminal hand over each key at once and unseen. Ctrl-C still is a signal."""
        if self._input is None or self._modes is not None:
            return
        import termios  # not at the top: Windows has none

        try:
            modes = termios.tcgetattr(self._input)
            mine = list(modes)
            mine[3] &= ~(termios.ICANON | termios.ECHO)
            mine[6] = list(modes[6])
            mine[6][termios.VMIN], mine[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self._input, termios.TCSADRAIN, mine)
        except termios.error:
            self._input = None
            return
        self._modes = modes

    def give_back(self) -> None:
        """Put the terminal's modes back as they were."""
        if self._input is None or self._modes is None:
            return
        import termios  # not at the top: Windows has none

        modes, self._modes = self._modes, None
        try:
            # What was typed and not read is not for the shell.
            termios.tcsetattr(self._input, termios.TCSAFLUSH, modes)
        except termios.error:
            pass  # the terminal has gone

    def wait(self, seconds: float) -> list[str]:
        """Wait for keys or signals, at most so long.

        Returns:
            What came: up, down, enter, back, quit for keys; terminate, resize, suspend for
            signals, and quit for Ctrl-C. Empty when the time is over.
        """
        if self._wake is None:
            raise RuntimeError("wait() belongs into the with block")
        reader = self._wake[0]
        sources = [reader] + ([self._input] if self._input is not None else [])
        ready = select.select(sources, [], [], max(0.0, seconds))[0]
        came: list[str] = []
        if reader in ready:
            os.read(reader, 4096)
        if self._input is not None and self._input in ready:
            try:
                typed = os.read(self._input, 1024)
            except OSError:
                typed = b""
            if not typed:
                self._input = None  # nobody types any more
            came += [_NAMES[key] for key in _KEY.findall(typed) if key in _NAMES]
        numbers, self._came = self._came, []
        for number in numbers:
            came.append(_SIGNALS.get(signal.Signals(number).name, ""))
        return [each for each in came if each]

    def suspend(self, leave: Callable[[], None], enter: Callable[[], None]) -> None:
        """Stop, as Ctrl-Z asks, with the terminal as it was before; and come back.

        Args:
            leave: Puts back what else was changed in the terminal.
            enter: Changes it again.
        """
        leave()
        self.give_back()
        mine = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # Here it stands until somebody says fg.
        signal.signal(signal.SIGTSTP, mine)
        self.take()
        enter()


_SIGNALS = {
    "SIGINT": "quit",
    "SIGTERM": "terminate",
    "SIGWINCH": "resize",
    "SIGTSTP": "suspend",
}
