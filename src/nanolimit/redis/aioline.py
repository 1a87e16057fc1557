"""A connection that all tasks of an event loop speak on at once."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from nanolimit import supervisor
from nanolimit.redis.fault import Unavailable, fault_of_connecting
from nanolimit.redis.line import Cut
from nanolimit.redis.resp import NOTHING, ErrorReply, ProtocolError, Reader, Reply

if TYPE_CHECKING:
    from nanolimit.redis.cluster import Address

__all__ = ["AsyncLine", "AsyncPool", "Tell"]

#: Is told of a reply; it does not raise.
Tell = Callable[[Reply], None]

# The client library bounds each step of connecting, but not what a provider of passwords does.
_MAKING_MAX_S = 30.0

# What is given up ends within some turns of the loop; else it is told again, after these pauses.
_ENDING_S = (0.01, 0.1, 1.0)

# A timer that rings later than this: something blocked the loop.
_LATE_S = 0.005


class _Told(asyncio.Future[Reply]):
    """The reply to come, of which somebody is told at once.

    Those who wait on a future run with the next turn of the loop; were what they hand on to others
    one turn later still, those who have asked together would come in two crowds from then on.
    """

    _tell: Tell

    def set_result(self, result: Reply) -> None:
        super().set_result(result)
        if type(result) is not ErrorReply:
            self._tell(result)


class _Waiter:
    """Who waits for one reply; replies come in the order of the requests."""

    __slots__ = ("deadline", "future", "write")

    def __init__(
        self, future: asyncio.Future[Reply] | None, deadline: float, write: object
    ) -> None:
        # None for a reply that nobody wants.
        self.future = future
        self.deadline = deadline
        # With which write the request goes out: those of one that is not answered are one event.
        self.write = write


class AsyncLine(asyncio.Protocol):
    """A connected transport, logged in by the client library.

    What tasks send within one turn of the loop goes out as one write. A task that leaves early,
    cancelled or out of time, leaves its place in the queue: the reply is dropped when it comes.

    Args:
        connection: The client library's, connected. Its transport is taken out of it.
        name: Whom it connects to, for messages.
        ended: Called when it should be used no more.
    """

    def __init__(self, connection: Any, name: str, ended: Callable[[AsyncLine], None]) -> None:
        self._loop = asyncio.get_running_loop()
        # Kept: a stream that is collected closes its transport.
        self._streams = connection._reader, connection._writer
        transport = connection._writer.transport
        # It warns when it is collected with an open connection.
        connection._reader = connection._writer = None
        self.name = name
        self._ended: Callable[[AsyncLine], None] | None = ended
        self._reader = Reader()
        self._out: list[bytes] = []
        self._unsent: list[_Waiter] = []  # those of _out
        self._write = object()  # stands for the write to come
        self._asked_s = 0.0  # when the first of it was asked for, in the loop's time
        self._was_late = False  # was it too late when the timer rang?
        # When it rings. Not every loop's timer tells that: if it is at once, uvloop's is none.
        self._rings_s = 0.0
        self._waiters: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._lost: str | None = None
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            self._break("it was closed at once")

    @property
    def usable(self) -> bool:
        """Whether a request may go out on it."""
        return self._lost is None and self._ended is not None

    def call(
        self, data: bytes, deadline: float, skip: bool = False, tell: Tell | None = None
    ) -> asyncio.Future[Reply]:
        """Send a request with this turn of the loop.

        Args:
            data: Its bytes.
            deadline: In the loop's time.
            skip: Two replies will come, of which the first is not wanted.
            tell: Is told of the reply when it comes, unless it is an error or nobody waits for it.

        Returns:
            The reply to come. It raises Cut where nothing was sent, Unavailable where the outcome
            is unknown.
        """
        future: asyncio.Future[Reply]
        if tell is None:
            future = self._loop.create_future()
        else:
            future = told = _Told(loop=self._loop)
            told._tell = tell
        if self._lost is not None:
            future.set_exception(Cut(self._lost))
            return future
        if not self._out:
            self._loop.call_soon(self._flush)
            self._asked_s = self._loop.time()
        self._out.append(data)
        if skip:
            self._unsent.append(_Waiter(None, deadline, self._write))
        self._unsent.append(_Waiter(future, deadline, self._write))
        if self._timer is None:
            self._ring(deadline)
        elif deadline < self._rings_s:
            # It has waited for something else before.
            self._timer.cancel()
            self._ring(deadline)
        return future

    def _ring(self, when_s: float) -> None:
        """Have the timer ring."""
        self._rings_s = when_s
        self._timer = self._loop.call_at(when_s, self._expire)

    def _flush(self) -> None:
        if self._lost is not None or not self._out:
            return
        now = self._loop.time()
        late_s = now - self._asked_s
        if late_s > self._unsent[0].deadline - now:
            # Something blocked the loop for most of their time. Nobody has waited for the server
            # yet, and it is not what failed: they get their time from now on.
            for waiter in self._unsent:
                waiter.deadline += late_s
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self._waiters += self._unsent
        self._unsent.clear()
        self._write = object()
        self._transport.write(data)

    def _expire(self) -> None:
        """Give up those whose time is over, and the line with the first of them."""
        now = self._loop.time()
        self._timer = None
        if not self._was_late and now - self._rings_s > _LATE_S:
            # Something blocked the loop: it has yet to write what was asked for, and to read what
            # has come meanwhile. (asyncio does so before its timers ring, uvloop does not.)
            self._was_late = True
            self._ring(now + _LATE_S)
            return
        self._was_late = False
        next_deadline: float | None = None
        overdue = False
        for waiter in (*self._waiters, *self._unsent):
            if waiter.deadline <= now:
                overdue = True
                _fail(waiter, Unavailable(f"no reply from {self.name} in time", True, waiter.write))
            elif next_deadline is None or waiter.deadline < next_deadline:
                next_deadline = waiter.deadline
        if overdue:
            # Who comes now should not stand behind a server that is stuck, or a connection that is
            # dead without having said so.
            self._retire()
        if next_deadline is not None:
            self._ring(next_deadline)
        elif not self.usable:
            self.close()

    def expected(self) -> list[asyncio.Future[Reply]]:
        """Return the replies that somebody waits for."""
        futures = (waiter.future for waiter in (*self._waiters, *self._unsent))
        return [future for future in futures if future is not None and not future.done()]

    def _retire(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self)

    def retire(self) -> None:
        """Send nothing more on it; close it when the last reply has come or is overdue."""
        self._retire()
        if not self._waiters and not self._unsent:
            self.close()

    def close(self) -> None:
        """Close it now."""
        self._transport.abort()
        self._break("it was closed")

    # What the transport calls

    def data_received(self, data: bytes) -> None:
        """Hand the replies to those who wait."""
        reader, waiters = self._reader, self._waiters
        reader.feed(data)
        while True:
            try:
                reply = reader.next()
            except ProtocolError as error:
                self._transport.abort()
                self._break(str(error))
                return
            if reply is NOTHING:
                break
            if not waiters:
                self._transport.abort()
                self._break("it sent what nobody asked for")
                return
            future = waiters.popleft().future
            if future is not None and not future.done():
                future.set_result(cast("Reply", reply))
        if not waiters and not self._unsent:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._ended is None:
                self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell those who wait."""
        self._break(str(exc) if exc is not None else "the server closed it")

    def _break(self, why: str) -> None:
        if self._lost is not None:
            return
        self._lost = f"the connection to {self.name} broke: {why}"
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        origin = object()
        for waiter in self._waiters:
            _fail(waiter, Unavailable(self._lost, True, origin))
        for waiter in self._unsent:
            _fail(waiter, Cut(self._lost, origin=origin))
        self._waiters.clear()
        self._unsent.clear()
        self._out.clear()
        self._retire()


def _fail(waiter: _Waiter, fault: Unavailable) -> None:
    if waiter.future is not None and not waiter.future.done():
        waiter.future.set_exception(fault)


def _abort(connection: Any) -> None:
    """Close a connection of the client library that is only half made."""
    writer = getattr(connection, "_writer", None)
    if writer is not None:
        writer.transport.abort()
        connection._reader = connection._writer = None


async def _give_up(connection: Any, connecting: asyncio.Task[None] | None) -> None:
    """End the making of a connection, also where what runs there does not heed a cancel."""
    if connecting is None:
        return

    def end(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # it was seen, so that nobody logs it
        _abort(connection)  # it may have been made after all

    if connecting.done():
        end(connecting)
        return
    connecting.add_done_callback(end)
    for pause_s in _ENDING_S:
        # As long as it runs, it keeps its writer: without one it would connect anew.
        writer = getattr(connection, "_writer", None)
        if writer is not None:
            writer.transport.abort()
        connecting.cancel()
        await asyncio.wait((connecting,), timeout=pause_s)
        if connecting.done():
            return


async def _connect(connection: Any) -> None:
    """Have a connection of the client library connect, without a halt of the loop."""
    context = getattr(connection, "ssl_context", None)
    if context is not None:
        # It keeps what it made. To read all certificates of the system takes tens of milliseconds,
        # before a byte is sent: with a server that is gone, at each probe.
        await _in_thread(context.get)
    await connection.connect()


async def _in_thread(work: Callable[[], object]) -> None:
    """Do it in a thread that ends with it; raise what it raises."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def tell(error: Exception | None) -> None:
        if over.done():
            return  # cancelled
        if error is None:
            over.set_result(None)
        else:
            over.set_exception(error)

    def run() -> None:
        fault: Exception | None = None
        try:
            work()
        except Exception as error:
            fault = error
        try:
            loop.call_soon_threadsafe(tell, fault)
        except RuntimeError:
            pass  # the loop was closed meanwhile

    supervisor.once("nanolimit-connect", run)
    await over


class AsyncPool:
    """The one line to a server, made anew when it breaks.

    Making it goes on when those who wait for it have left, for a call's time may be too short for a
    far server and its TLS; the next ones find it ready.

    Args:
        connection: Returns a connection of the client library, not connected.
        name: Whom it connects to, for messages.
        address: The same, as a cluster knows it; None: nobody has to know.
    """

    name: str
    address: Address | None
    #: When a call to it failed last, in the loop's time: of several nodes, it is asked last.
    failed_s: float

    def __init__(
        self, connection: Callable[[], Any], name: str, address: Address | None = None
    ) -> None:
        self._connection = connection
        self.name = name
        self.address = address
        self.failed_s = 0.0
        self._line: AsyncLine | None = None
        self._making: asyncio.Task[AsyncLine | Unavailable] | None = None
        # Also those that are given up, while somebody still waits on them.
        self._lines: weakref.WeakSet[AsyncLine] = weakref.WeakSet()
        self._closed = False
        # For those whose time is up before there is a line: who came before the first of them left
        # tells nothing new.
        self._lack = object()

    @property
    def line(self) -> AsyncLine | None:
        """It, if it is ready."""
        return self._line

    async def take(self, deadline: float) -> AsyncLine:
        """Return the line; wait for it if need be.

        Raises:
            Unavailable: There is none in time.
        """
        if self._line is not None:
            return self._line
        if self._closed:
            raise Unavailable(f"the connection to {self.name} was closed")
        loop = asyncio.get_running_loop()
        making = self._making
        if making is None:
            making = self._making = loop.create_task(self._make())
        lack = self._lack
        await asyncio.wait({making}, timeout=max(0.0, deadline - loop.time()))
        if not making.done():
            if lack is self._lack:
                self._lack = object()
            raise Unavailable(f"no connection to {self.name} in time", origin=lack)
        if making.cancelled():
            raise Unavailable(f"the connection to {self.name} was closed")
        line = making.result()
        if isinstance(line, Unavailable):
            raise line.again()
        return line

    async def _make(self) -> AsyncLine | Unavailable:
        connection: Any = None
        connecting: asyncio.Task[None] | None = None
        try:
            connection = self._connection()
            connecting = asyncio.get_running_loop().create_task(_connect(connection))
            await asyncio.wait((connecting,), timeout=_MAKING_MAX_S)
            if not connecting.done():
                raise asyncio.TimeoutError
            connecting.result()
            line = AsyncLine(connection, self.name, self._ended)
        except Exception as error:
            await _give_up(connection, connecting)
            return fault_of_connecting(error, self.name)
        except asyncio.CancelledError:
            await _give_up(connection, connecting)
            raise
        finally:
            self._making = None
        self._lines.add(line)
        if line.usable:
            self._line = line
        return line

    def _ended(self, line: AsyncLine) -> None:
        if self._line is line:
            self._line = None

    def expected(self) -> list[asyncio.Future[Reply]]:
        """Return the replies that somebody waits for."""
        return [future for line in list(self._lines) for future in line.expected()]

    def flush(self) -> None:
        """Have it made anew: whoever answers on it is not the one whom we want."""
        if self._line is not None:
            self._line.retire()

    async def aclose(self, wait_s: float) -> None:
        """Close all, and wait for the end of what was being made, but not longer than that."""
        making = self._making
        self.close()
        if making is not None:
            await asyncio.wait({making}, timeout=wait_s)

    def close(self) -> None:
        """Close all; those who wait are told."""
        if self._making is not None and not self._closed:
            # Once: while it ends what it has begun, it must not be cancelled again.
            self._making.cancel()
        self._closed = True
        for line in list(self._lines):
            line.close()

    def forsake(self) -> None:
        """Let go of the lines of a loop that is no more."""
        self._making = self._line = None
        self._lines = weakref.WeakSet()
