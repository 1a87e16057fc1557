"""Coalescing: what the tasks of an event loop ask within one turn of it goes out together.

A task that asks does not send: it leaves its call and waits. With the next turn of the loop all
calls that were left go to the wire as one, which makes one write to each server of them. No timer
is set, so that a call that is alone waits for no more than that turn. Requests of one unit for the
same key become one call, `TAKE_SOME`: of n it grants the first k, in the order in which they came.

What a task is told is what it would have been told without it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nanolimit.redis import script
from nanolimit.redis.fault import Unavailable
from nanolimit.redis.fork import renew_after_fork

if TYPE_CHECKING:
    from nanolimit.redis.aiowire import AsyncWire
    from nanolimit.redis.resp import Reply, ScriptLike, Word
    from nanolimit.redis.wire import Call

__all__ = ["MOST_CALLS", "MOST_MERGED", "Coalescer"]

#: Calls in one write; more go out with the turns that follow. The loop packs them in about 2 ms,
#: and the server's other clients wait while it runs them.
MOST_CALLS = 512

#: Requests in one call: the server counts so many in about 0.2 ms.
MOST_MERGED = 1_024


class Coalescer:
    """Sends the calls of one limiter's tasks together, by its wire.

    Calls go out in the order in which they came, and a request is merged only with those for which
    no other call for the key came in between: to each key's log it is as if they had come singly.

    A task that is cancelled before its call goes out counts nothing. If the call has gone out, or
    is on its way, it may have counted, also where it was merged with others: the place that it had
    among them is lost, as a request without an answer is. Those that are left get their own.

    It belongs to the event loop that uses it first, as the wire does; when that is closed, or in
    the child of a fork, what was left there is forgotten. Not thread-safe.

    Args:
        wire: What sends.
        arguments: Of the limiter: only what is asked with its ARGV for a cost of 1 is merged.
        most_calls: Calls in one write.
        most_merged: Requests in one call.
    """

    __slots__ = (
        "__weakref__", "_arguments", "_calls", "_loop", "_most_calls", "_most_merged", "_next",
        "_one", "_open", "_starting", "_take", "_tasks", "_wire",
    )  # fmt: skip

    def __init__(
        self,
        wire: AsyncWire,
        arguments: script.Arguments,
        most_calls: int = MOST_CALLS,
        most_merged: int = MOST_MERGED,
    ) -> None:
        self._wire = wire
        self._arguments = arguments
        self._take = arguments.take
        # The first that is made is kept: what costs 1 is known by it.
        self._one = arguments.of(1)
        self._most_calls = most_calls
        self._most_merged = most_merged
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begin()
        renew_after_fork(self)

    def _begin(self) -> None:
        self._calls: deque[_Call] = deque()
        # The last call for a key, by its first list, while others may join it.
        self._open: dict[bytes, _Call] = {}
        # Will somebody take what is left? A task that has not begun, or one that makes it.
        self._starting = False
        self._next: asyncio.Task[None] | None = None
        # The loop itself does not keep its tasks alive.
        self._tasks: set[asyncio.Task[None]] = set()

    def after_fork(self) -> None:
        """In the child: what was left to be sent is the parent's to send."""
        self._loop = None
        self._begin()

    async def run(
        self, what: ScriptLike, keys: Sequence[bytes], args: Sequence[Word] = ()
    ) -> Reply:
        """Run a script, as `AsyncWire.run` does; a merged request gets a reply of its own.

        Raises:
            Unavailable: The server can't be asked, or gave an error, or no reply in time.
            RuntimeError: The wire belongs to another event loop.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None and not self._loop.is_closed():
                return await self._wire.run(what, keys, args)  # which says what is wrong with it
            self._begin()
            self._loop = loop
        waiter: asyncio.Future[Any] = loop.create_future()
        if args is self._one and what is self._take:
            self._join(keys, waiter)
        else:
            if self._open:
                for key in keys:
                    self._open.pop(key, None)
            self._calls.append(_Call(what, keys, args, waiter, self._arguments))
        if not self._starting:
            self._start()
        answer = await waiter
        if type(answer) is _Lost:
            raise answer.fault()
        return answer  # type: ignore[no-any-return]

    async def run_many(self, calls: Sequence[Call]) -> list[Reply | Unavailable]:
        """Run many scripts, as `AsyncWire.run_many` does. They are one write by themselves."""
        return await self._wire.run_many(calls)

    def _join(self, keys: Sequence[bytes], waiter: asyncio.Future[Any]) -> None:
        """Ask for one unit: with others of the same key, or as the first of them."""
        place = keys[0]
        call = self._open.get(place)
        if call is None:
            call = _Call(self._take, keys, self._one, waiter, self._arguments)
            self._open[place] = call
            self._calls.append(call)
            return
        call.waiters.append(waiter)
        if len(call.waiters) >= self._most_merged:
            del self._open[place]

    def _start(self) -> None:
        """Have what is left sent with the next turn of the loop: that is when a task begins."""
        assert self._loop is not None
        self._starting = True
        self._next = task = self._loop.create_task(self._send())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _go_on(self) -> None:
        self._starting = False
        if self._calls:
            self._start()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task is not self._next:
            return
        # Whoever cancels all tasks of a loop may meet one that has not begun. Another one takes its
        # calls over, if somebody still waits for them.
        self._next = None
        if not any(call.wanted for call in self._calls):
            self._calls.clear()
            self._open.clear()
        self._go_on()

    async def _send(self) -> None:
        self._next = None
        calls = self._collected()
        if self._calls:
            # Not as a task at once: that would begin before the wire has written.
            asyncio.get_running_loop().call_soon(self._go_on)
        else:
            self._starting = False
        if not calls:
            return
        try:
            replies = await self._wire.run_many([(call.what, call.keys, call) for call in calls])
        except (Exception, asyncio.CancelledError) as fault:
            # If somebody cancels this task, those who wait are not cancelled by that.
            lost = _Lost(fault)
            for call in calls:
                call.lose(lost)
            if not isinstance(fault, Exception):
                raise
            return
        except BaseException:  # the end of the program
            for call in calls:
                call.drop()
            raise
        for call, reply in zip(calls, replies, strict=True):
            if isinstance(reply, Unavailable):
                call.lose(_Lost(reply))
            else:
                call.answer(reply)

    def _collected(self) -> list[_Call]:
        """Return the calls of the next write: those that came first, without the unwanted."""
        calls: list[_Call] = []
        while self._calls and len(calls) < self._most_calls:
            call = self._calls.popleft()
            if call.keys and self._open.get(call.keys[0]) is call:
                del self._open[call.keys[0]]
            if call.wanted:
                call.seal()
                calls.append(call)
        return calls


class _Call(Sequence[Any]):
    """A call that is to be sent, for one waiter or for several that want one unit each.

    It is its own ARGV. The wire reads that when it writes the call, which is later where it must
    connect first: who has left by then is not counted.
    """

    __slots__ = ("_args", "_arguments", "_counted", "keys", "waiters", "what")

    def __init__(
        self,
        what: ScriptLike,
        keys: Sequence[bytes],
        args: Sequence[Word],
        waiter: asyncio.Future[Any],
        arguments: script.Arguments,
    ) -> None:
        self.what = what
        self.keys = keys
        self.waiters = [waiter]
        self._args = args
        self._arguments = arguments
        self._counted: list[asyncio.Future[Any]] = []

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for it."""
        return any(not waiter.done() for waiter in self.waiters)

    def seal(self) -> None:
        """Nobody joins any more: decide on the script."""
        if len(self.waiters) > 1:
            self.waiters = [waiter for waiter in self.waiters if not waiter.done()]
            if len(self.waiters) > 1:
                self.what = script.TAKE_SOME

    def __len__(self) -> int:
        return len(self._args)

    def __getitem__(self, index: Any) -> Any:
        return self._read()[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._read())

    def _read(self) -> Sequence[Word]:
        self._counted = [waiter for waiter in self.waiters if not waiter.done()]
        if not self._counted:
            # It can't be taken out of the write any more. With a cost of 0 it counts nothing.
            return self._arguments.of(0)
        if self.what is script.TAKE_SOME:
            return self._arguments.some(len(self._counted))
        return self._args

    def answer(self, reply: Reply) -> None:
        """Hand the reply to those who wait; of several, each gets what `TAKE` would have said."""
        if self.what is not script.TAKE_SOME:
            _settle(self.waiters[0], reply)
            return
        granted, wait_us = script.some(reply)  # type: ignore[arg-type]
        for nth, waiter in enumerate(self._counted):
            _settle(waiter, 0 if nth < granted else wait_us)

    def lose(self, lost: _Lost) -> None:
        """Tell those who wait that there is no reply."""
        for waiter in self.waiters:
            _settle(waiter, lost)

    def drop(self) -> None:
        """Cancel those who wait."""
        for waiter in self.waiters:
            waiter.cancel()


class _Lost:
    """Why there is no reply. As an exception of a future, it would be logged if nobody looked."""

    __slots__ = ("_fault",)

    def __init__(self, fault: BaseException) -> None:
        self._fault = fault

    def fault(self) -> BaseException:
        """Return what is to be raised: one of his own for everybody, with his own traceback."""
        fault = self._fault
        if isinstance(fault, Unavailable):
            own = Unavailable(fault.reason, fault.outcome_unknown)
            own.__cause__ = fault.__cause__
            return own
        if isinstance(fault, Exception):
            return fault
        return Unavailable("the task that had sent it was cancelled", outcome_unknown=True)


def _settle(waiter: asyncio.Future[Any], answer: object) -> None:
    if not waiter.done():
        waiter.set_result(answer)
