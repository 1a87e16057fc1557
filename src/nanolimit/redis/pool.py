"""The connections to one server, of a process and all its threads."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from nanolimit import supervisor
from nanolimit.redis.fault import Unavailable, fault_of_connecting
from nanolimit.redis.fork import renew_after_fork
from nanolimit.redis.line import Line

if TYPE_CHECKING:
    from nanolimit.redis.cluster import Address

__all__ = ["Pool"]

# So many are made at a time. A server that is gone is not besieged, and a name server that hangs
# holds so many threads and no more.
_CONNECTING_MAX = 8


class Pool:
    """Lends lines; the one that was used last goes first. Who waits is served before who comes.

    A connection is made by a thread that ends with it: looking up a name, TLS and logging in can't
    be given a deadline, but waiting for them can. Whoever's time is up leaves; the connection, if
    it comes, serves the next. Thread-safe.

    Args:
        connect: Makes a line of the given age. May take its time.
        name: Whom they connect to, for messages.
        size: How many there are at most.
        address: The same, as a cluster knows it; None: nobody has to know.
    """

    name: str
    address: Address | None
    #: When a call to it failed last, in the clock's time: of several nodes, it is asked last.
    failed_s: float

    def __init__(
        self, connect: Callable[[int], Line], name: str, size: int, address: Address | None = None
    ) -> None:
        self._connect = connect
        self.name = name
        self.address = address
        self.failed_s = 0.0
        self._size = size
        self._closed = False
        self._age = 0
        self._begin()
        renew_after_fork(self)

    def _begin(self) -> None:
        # Reentrant, like every lock of the face: a signal handler may ask the limiter as well. It
        # is taken by itself and not by way of the condition, which does that in Python: a handler
        # that raises there would leave it held.
        self._lock = threading.RLock()
        self._change = threading.Condition(self._lock)
        self._free: list[Line] = []
        # The free ones and those that are lent. Weak: a signal handler may raise between two steps
        # here, and a line that was lost so must not take up a place for ever.
        self._lines: weakref.WeakSet[Line] = weakref.WeakSet()
        self._connecting: set[_Attempt] = set()
        self._waiting = 0
        # For those whose time is up before there is a line: who came before the first of them left
        # tells nothing new.
        self._lack = object()
        # Ends with the first of those lines that were lent in it to be of no more use: if others
        # of them break, that is the same event.
        self._period = object()

    def __len__(self) -> int:
        return len(self._lines)

    def take(self, deadline: float) -> Line:
        """Borrow a line; to be handed back by `give` or `drop`.

        Raises:
            Unavailable: There is none in time. Nothing was sent.
        """
        while True:
            with self._lock:
                line = None if self._waiting else self._idle()
            if line is None:
                line = self._wait(deadline)
            if line.alive():
                line.lent = self._period
                return line
            self.drop(line)

    def give(self, line: Line) -> None:
        """Hand back a line on which nothing is outstanding."""
        with self._lock:
            if line.age == self._age and not self._closed and line.clean:
                self._free.append(line)
                if self._waiting:
                    self._change.notify()
                return
        self.drop(line)

    def drop(self, line: Line) -> None:
        """Hand back a line that is of no more use."""
        line.close()
        with self._lock:
            if line.lent is self._period:
                self._period = object()
            self._lines.discard(line)
            self._change.notify()

    def flush(self) -> None:
        """Have all lines made anew: whoever answers on them is not the one whom we want."""
        with self._lock:
            self._age += 1
            idle, self._free = self._free, []
        for line in idle:
            self.drop(line)

    def close(self) -> None:
        """Close all, those that are lent when they come back."""
        with self._lock:
            self._closed = True
            self._change.notify_all()
        self.flush()

    def after_fork(self) -> None:
        """In the child: let go of the parent's sockets, without a word to the server."""
        lines = list(self._lines)
        self._age += 1
        self._begin()
        for line in lines:
            line.close()

    def _wait(self, deadline: float) -> Line:
        """Wait for a line that is made for this call or handed back by another."""
        with self._lock:
            own: _Attempt | None = None
            lack = self._lack
            # What is free is for those who came earlier, one of whom was told of it. Otherwise a
            # thread that asks in a loop would take the line that it has just handed back.
            is_first = not self._waiting
            self._waiting += 1
            try:
                while not is_first or (line := self._idle()) is None:
                    is_first = True
                    if self._closed:
                        raise Unavailable(f"the connection to {self.name} was closed")
                    if own is not None and own.fault is not None:
                        raise own.fault
                    if (own is None or own.done) and self._may_connect():
                        own = self._attempt()
                    left_s = deadline - time.monotonic()
                    if left_s <= 0:
                        if lack is self._lack:
                            self._lack = object()
                        raise Unavailable(self._why_none(), origin=lack)
                    self._change.wait(left_s)
                if time.monotonic() >= deadline:
                    self._free.append(line)  # too late to send anything
                    raise Unavailable(f"no connection to {self.name} in time")
                return line
            finally:
                self._waiting = max(self._waiting - 1, 0)  # a signal handler may have forked
                if self._free:  # the next one may have it
                    self._change.notify()
                own = None  # its fault's traceback holds this frame

    def _idle(self) -> Line | None:
        """Take one that is free. In one step: a signal handler takes one, too."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def _may_connect(self) -> bool:
        # One for each that waits: those whose callers have left serve the next ones.
        most = min(_CONNECTING_MAX, self._waiting, self._size - len(self._lines))
        return len(self._connecting) < most

    def _why_none(self) -> str:
        if len(self._lines) >= self._size:
            return f"all {self._size} connections to {self.name} were busy"
        return f"no connection to {self.name} in time"

    def _attempt(self) -> _Attempt:
        attempt = _Attempt()
        try:
            self._connecting.add(attempt)
            supervisor.once("nanolimit-connect", partial(self._make, attempt, self._age))
        except BaseException as error:
            # Where a signal handler raised, nobody knows whether there will be a thread.
            self._connecting.discard(attempt)
            if isinstance(error, RuntimeError):  # out of threads, or the interpreter ends
                raise fault_of_connecting(error, self.name) from error
            raise
        return attempt

    def _make(self, attempt: _Attempt, age: int) -> None:
        try:
            line = self._connect(age)
        except Exception as error:
            with self._lock:
                attempt.fault = fault_of_connecting(error, self.name)
                self._connecting.discard(attempt)
                self._change.notify_all()
            return
        with self._lock:
            attempt.done = True
            self._connecting.discard(attempt)
            if self._closed or age != self._age:
                line.close()
            else:
                self._lines.add(line)
                self._free.append(line)
            self._change.notify_all()


class _Attempt:
    """A connection in the making."""

    fault: Unavailable | None = None
    # It came; another may have taken it.
    done = False
