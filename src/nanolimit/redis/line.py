"""A connection that a thread speaks on, with one deadline for all that a call does."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from nanolimit.redis.fault import Unavailable
from nanolimit.redis.resp import NOTHING, Reader, Reply

__all__ = ["Cut", "Line"]

_CHUNK = 65_536
_AGAIN = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Cut(Unavailable):
    """The connection broke before the request was sent whole: a server runs no half of one."""


class Line:
    """A connected socket, logged in by the client library. One thread at a time uses it.

    Args:
        connection: The client library's, connected. Its socket is taken out of it.
        name: Whom it connects to, for messages.
        age: Which generation of the pool it is of.
    """

    __slots__ = ("__weakref__", "_poll", "_reader", "_secure", "_socket", "age", "lent", "name")

    def __init__(self, connection: Any, name: str, age: int) -> None:
        sock = connection._sock
        # It closes its socket when it is collected.
        connection._sock = None
        self._socket: socket.socket = sock
        self._secure = isinstance(sock, ssl.SSLSocket)
        self._reader = Reader()
        self.name: str = name
        self.age: int = age
        # When it was lent, as the pool has it: what breaks those that are lent together is one
        # event.
        self.lent: object = None
        sock.setblocking(False)
        self._poll = _poll_of(sock)

    @property
    def clean(self) -> bool:
        """Whether it holds nothing of a call that is over."""
        return self._reader.empty

    def alive(self) -> bool:
        """Whether the other end has not closed it while nobody looked. Costs one system call."""
        if self._secure:
            # A session ticket may have come, which is not for us: only TLS itself can tell.
            try:
                self._socket.recv(1)
            except _AGAIN:
                return True
            except OSError:
                pass
            return False
        try:
            return not self._poll(0, False)
        except OSError:
            return False

    def send(self, data: bytes, deadline: float) -> None:
        """Send a request.

        Raises:
            Cut: It was not sent whole. The line is of no more use.
        """
        try:
            try:
                sent = self._socket.send(data)
            except _AGAIN:
                sent = 0
            if sent != len(data):
                self._send_rest(memoryview(data)[sent:], deadline)
        except OSError as error:
            raise Cut(f"the connection to {self.name} broke: {error}") from error

    def _send_rest(self, rest: memoryview, deadline: float) -> None:
        while rest:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not self._poll(left_s, True):
                raise Unavailable(f"{self.name} took no request in time")
            try:
                rest = rest[self._socket.send(rest) :]
            except _AGAIN as error:
                if isinstance(error, ssl.SSLWantReadError):
                    self._poll(deadline - time.monotonic(), False)

    def read(self, deadline: float) -> Reply:
        """Read the next reply.

        Raises:
            Unavailable: None came in time, or the connection broke: the outcome is unknown. The
                line is of no more use.
        """
        reply = self._reader.next()
        while reply is NOTHING:
            left_s = deadline - time.monotonic()
            # TLS may have decrypted more than was read.
            pending = self._secure and self._socket.pending()  # type: ignore[attr-defined]
            try:
                # What has come already counts, though others took all of the time.
                if not pending and not self._poll(left_s, False):
                    raise Unavailable(f"no reply from {self.name} in time", outcome_unknown=True)
                data = self._socket.recv(_CHUNK)
            except _AGAIN:
                continue
            except OSError as error:
                why = f"the connection to {self.name} broke: {error}"
                raise Unavailable(why, True, self.lent) from error
            if not data:
                raise Unavailable(f"{self.name} closed the connection", True, self.lent)
            # What nearly always comes: one integer, whole.
            try:
                if data[0] == 58 and len(data) < 24 and self._reader.empty and data.find(b"\n") == (
                    len(data) - 1
                ):  # fmt: skip
                    return int(data[1:])
                self._reader.feed(data)
                reply = self._reader.next()
            except ValueError as error:
                raise Unavailable(f"{self.name}: {error}", outcome_unknown=True) from error
        return reply  # type: ignore[return-value]

    def close(self) -> None:
        """Close it. In the child of a fork that does not end the parent's connection."""
        try:
            self._socket.close()
        except OSError:
            pass

    def __del__(self) -> None:
        # Of a wire that nobody closed: no reason to warn.
        self._socket.close()


def _poll_of(sock: socket.socket) -> Callable[[float, bool], object]:
    """Return a function that waits some seconds until one can read (or write)."""
    if not hasattr(select, "poll"):  # Windows

        def by_select(wait_s: float, write: bool) -> object:
            reads, writes = ([], [sock]) if write else ([sock], [])
            ready = select.select(reads, writes, writes, max(wait_s, 0))
            return any(ready)

        return by_select
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    ask = poller.poll
    fd = sock.fileno()

    def by_poll(wait_s: float, write: bool) -> object:
        # Rounded up: half a millisecond must not become a busy loop.
        wait_ms = int(wait_s * 1e3) + 1 if wait_s > 0 else 0
        if not write:
            return ask(wait_ms)
        poller.modify(fd, select.POLLOUT)
        try:
            return ask(wait_ms)
        finally:
            poller.modify(fd, select.POLLIN)

    return by_poll
