"""Reads all limiters once a second, while somebody watches and for ten minutes after that."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

from nanolimit.dashboard.response import encoded
from nanolimit.dashboard.source import PERIOD_S, SPAN_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanolimit.dashboard.source import Source


class Sampler:
    """Keeps the sources fresh; tells what they say, made into JSON once for all who watch.

    There is no thread and no task. Every stream asks for a reading at the full second and the first
    one takes it, on whatever loop it runs. Between streams a timer of the loop does that, so that
    a page that is opened later finds the past; it stops when nobody has asked for ten minutes,
    because then nothing that it reads would be on a page any more.
    """

    def __init__(self, sources: Sequence[Source], facts: dict[str, Any]) -> None:
        self.sources = sources
        self._facts = facts  # what stays as it is, and is told with every state
        self._lock = threading.Lock()
        self._period = -1
        self._snapshot: tuple[int, bytes] = (-1, b"")
        self._asked_s = float("-inf")
        self._kept = False
        self._timer: tuple[asyncio.AbstractEventLoop, asyncio.TimerHandle] | None = None

    def poll(self) -> int:
        """Take a reading if this second has none yet; return the second's number."""
        now_s = time.monotonic()
        period = int(now_s / PERIOD_S)
        if period > self._period:
            with self._lock:
                if period > self._period:
                    for source in self.sources:
                        source.read(now_s)
                    self._period = period
        return self._period

    async def next(self) -> None:
        """Wait for the beginning of the next second."""
        await asyncio.sleep(_pause_s())

    def snapshot(self) -> bytes:
        """Return the newest state of all limiters as JSON, at most a second old."""
        self.ask()
        period = self.poll()
        with self._lock:
            if self._snapshot[0] != period:
                self._snapshot = (period, encoded(self._state()))
            return self._snapshot[1]

    def history(self) -> bytes:
        """Return the last ten minutes of all limiters as JSON."""
        self.ask()
        self.poll()
        now_s = time.monotonic()
        with self._lock:
            return encoded([source.history(now_s) for source in self.sources])

    def _state(self) -> dict[str, Any]:
        now_s = time.monotonic()
        return {
            # Readings have times of a clock that never goes back; these two tell what they mean.
            "monotonic_s": now_s,
            "epoch_s": time.time(),
            **self._facts,
            "limiters": [source.now(now_s) for source in self.sources],
        }

    def ask(self) -> None:
        """Note that somebody wants to see something, and see to it that readings go on."""
        self._asked_s = time.monotonic()
        loop = asyncio.get_running_loop()
        timer = self._timer
        if timer is None or timer[0].is_closed() or timer[1].cancelled():
            self._schedule(loop)

    def keep(self) -> None:
        """Read all the time from now on: the server told of its start and will tell of its end."""
        self._kept = True
        self.ask()

    def stop(self) -> None:
        """Read no more; whoever asks starts it again."""
        self._kept = False
        timer, self._timer = self._timer, None
        if timer is not None:
            timer[1].cancel()

    @property
    def running(self) -> bool:
        """Whether the timer is set."""
        return self._timer is not None

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = (loop, loop.call_later(_pause_s(), self._tick, loop))

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._kept and time.monotonic() - self._asked_s > SPAN_S:
            self._timer = None
            return
        self._schedule(loop)
        self.poll()


def _pause_s() -> float:
    """How long it is to the next full second; a little more, so that it has begun by then."""
    return PERIOD_S - time.monotonic() % PERIOD_S + 0.002
