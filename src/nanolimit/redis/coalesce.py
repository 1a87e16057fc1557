"""Coalescing: what the tasks of an event loop ask within one turn of it goes out together.

The wire writes what it is handed with the next turn of the loop, all in one. So the first request
of a turn goes to the wire at once, as if there was nothing here. Those of one unit that come behind
it leave their requests, which are handed over just before the wire writes. Those for different keys
are one call, `BATCH`, which decides on one key after the other; to a Cluster, a call for each key,
at once. Further ones for a key that was asked for in this turn are one call, `TAKE_SOME`: of n it
grants the first k, in the order in which they came. No timer is set, and nobody waits for longer
than he would by himself. All of them are told in the step of the loop in which the replies come, so
that those who ask again are one crowd still.

What a task is told is what it would have been told without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import types
from abc import abstractmethod
from collections import deque
from collections.abc import Coroutine, Generator, Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from nanolimit.redis import script
from nanolimit.redis.fault import Unavailable
from nanolimit.redis.fork import renew_after_fork

if TYPE_CHECKING:
    from nanolimit.redis.aiowire import AsyncWire
    from nanolimit.redis.resp import Reply, ScriptLike, Word
    from nanolimit.redis.wire import Call

__all__ = ["MOST_CALLS", "MOST_MERGED", "Coalescer", "answered"]

#: Calls in one write, or keys of a call for many; more go out with the turns that follow. While the
#: loop packs them and reads their replies, some milliseconds, it does nothing else.
MOST_CALLS = 512

#: Requests in one call: the server does nothing else while it counts them, below a millisecond.
MOST_MERGED = 1_024

# Of these a cost is the whole of ARGV, beside the quotas.
_COUNT = frozenset(
    each.sha for each in (script.TAKE, script.TAKE_ONE, script.TAKE_SOME, script.TELL, script.BATCH)
)


class Coalescer:
    """Sends the calls of one limiter's tasks together, by its wire.

    Calls for a key go out in the order in which they came, and a request is merged only with those
    for which no other call for the key came in between: to each key's log it is as if they had come
    singly.

    A task that is cancelled before its call goes out counts nothing. If the call has gone out, it
    has counted as far as there was room, also where it was merged with others: the place that it
    had among them is lost, as that of a request without a reply is. Those that are left get theirs.

    It belongs to the event loop that uses it first, as the wire does; when that is closed, or in
    the child of a fork, what was left there is forgotten. Not thread-safe.

    Args:
        wire: What sends.
        arguments: Of the limiter: only what is asked with its ARGV for a cost of 1 is merged.
        most_calls: Calls in one write.
        most_merged: Requests in one call.
    """

    __slots__ = (
        "__weakref__", "_arguments", "_batch", "_begun", "_calls", "_direct", "_is_behind", "_last",
        "_loop", "_most_calls", "_most_keys", "_most_merged", "_one", "_one_node", "_take",
        "_tasks", "_wire",
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
        self._most_calls = most_calls
        self._most_merged = most_merged
        self._most_keys = min(script.BATCH_KEYS, most_calls)
        # A server that was given by a URL may turn out to be of a cluster.
        self._one_node = True
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begin()
        renew_after_fork(self)

    def _begin(self) -> None:
        # The first that is made is kept, in each process: what costs 1 is known by it.
        self._one = self._arguments.of(1)
        # What was left, in the order in which it goes out.
        self._calls: deque[_Call | _Batch] = deque()
        # Of them, the one that takes further keys.
        self._batch: _Batch | None = None
        # Of each list of a key that was asked for in this turn: the last call that was left for it,
        # or None if the wire has all of them.
        self._last: dict[bytes, _Call | _Batch | None] = {}
        # Will `_turn` be called?
        self._begun = False
        # How many calls of this turn the wire has.
        self._direct = 0
        # Is there more than what goes out in one turn?
        self._is_behind = False
        # The loop itself does not keep its tasks alive.
        self._tasks: set[asyncio.Task[None]] = set()

    def after_fork(self) -> None:
        """In the child: what was left is the parent's to send, and it begins anew."""
        self._loop = None

    async def run(
        self,
        what: ScriptLike,
        keys: Sequence[bytes],
        args: Sequence[Word] = (),
        timeout_s: float | None = None,
    ) -> Reply:
        """Run a script, as `AsyncWire.run` does; a merged request gets a reply of its own.

        One with a time of its own goes to the wire at once.

        Raises:
            Unavailable: The server can't be asked, or gave an error, or no reply in time.
            RuntimeError: The wire belongs to another event loop.
        """
        loop = asyncio.get_running_loop()
        if timeout_s is not None:
            return await self._wire.run(what, keys, args, timeout_s)
        if loop is not self._loop:
            if self._loop is not None and not self._loop.is_closed():
                return await self._wire.run(what, keys, args)  # which says what is wrong with it
            self._begin()
            self._loop = loop
        merges = args is self._one and what is self._take
        joined = self.join(keys) if merges else None
        if joined is not None:
            return answered(await joined)  # type: ignore[no-any-return]
        last = self._last
        if not self._begun:
            # Before the wire hears of it: so that what is left goes to it before it writes.
            self._begun = True
            loop.call_soon(self._turn)
        joins = merges and self._one_node and keys[0] not in last and not self._wire.clustered
        if not (joins and self._direct) and self._may_go(keys, merges):
            self._direct += 1
            if merges:
                last[keys[0]] = None
            return await self._wire.run(what, keys, args)
        waiter: asyncio.Future[Any] = asyncio.Future(loop=loop)
        call: _Call | _Batch
        if joins:
            call = self._batch = _Batch(self._arguments, keys, waiter)
        else:
            call = _Call(what, keys, args, waiter, self._arguments, merges)
        self._calls.append(call)
        for key in keys:
            last[key] = call
        return answered(await waiter)  # type: ignore[no-any-return]

    def join(self, keys: Sequence[bytes]) -> asyncio.Future[Any] | None:
        """Add a request of one unit to a call that was left, if there is one that takes it.

        It is the short way of `run`, and in a crowd that of all but the first.

        Returns:
            What is to come, for `answered`; None: there is none, `run` it.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            return None
        first, last = keys[0], self._last
        if first in last:
            call = last[first]
            if type(call) is not _Call or not call.merges or len(call.waiters) >= self._most_merged:
                return None
            waiter: asyncio.Future[Any] = asyncio.Future(loop=loop)
            call.waiters.append(waiter)
            return waiter
        batch = self._batch
        if batch is None or len(batch.waiters) >= self._most_keys:
            return None
        waiter = asyncio.Future(loop=loop)
        batch.waiters.append(waiter)
        batch.keys += keys
        for key in keys:
            last[key] = batch
        return waiter

    async def run_many(self, calls: Sequence[Call]) -> list[Reply | Unavailable]:
        """Run many scripts, as `AsyncWire.run_many` does. They are one write by themselves."""
        return await self._wire.run_many(calls)

    def _may_go(self, keys: Sequence[bytes], merges: bool) -> bool:
        """Whether a call may go to the wire at once: it overtakes nothing, nor could be merged."""
        if self._is_behind or self._direct >= self._most_calls:
            return False
        last = self._last
        if merges:
            return keys[0] not in last
        return not self._calls or all(last.get(key) is None for key in keys)

    def _turn(self) -> None:
        """Hand over what was left: called before the wire writes what it got in the turn before."""
        gone: list[_Call | _Batch] = []
        room = self._most_calls - self._direct
        while self._calls and self._calls[0].weight <= room:
            call = self._calls.popleft()
            room -= call.weight
            gone.append(call)
        self._direct = 0
        self._begun = self._is_behind = bool(self._calls)
        if self._is_behind:
            # Nobody joins what goes out now; who comes for one of its keys stands behind no other.
            for call in gone:
                if call is self._batch:
                    self._batch = None
                for key in call.left_for():
                    if self._last.get(key) is call:
                        del self._last[key]
        else:
            self._batch = None
            self._last.clear()
        calls = [sealed for sealed in [call.seal() for call in gone] if sealed is not None]
        try:
            if self._wire.clustered:
                # Of calls to several nodes together, the wire would write with its next turn only.
                for call in calls:
                    self._hand_over([call])
            elif calls:
                self._hand_over(calls)
        except BaseException:  # an interrupt: all else was told to those who wait
            for call in calls:
                call.drop()
            raise
        finally:
            if self._is_behind:
                # After the wire's own turn. Until all have gone, who comes stands behind them.
                asyncio.get_running_loop().call_soon(self._turn)

    def _hand_over(self, calls: list[_Call | _Batch]) -> None:
        """Send them: the first step now, for a task would take it in the next turn only."""
        sending = self._send(calls)
        try:
            blocker = sending.send(None)
        except StopIteration:
            return
        task = asyncio.get_running_loop().create_task(_finish(sending, blocker))
        self._tasks.add(task)

        def end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                # If that was before it began, it did not tell anybody.
                lost = _Lost(asyncio.CancelledError())
                for call in calls:
                    call.lose(lost)
                sending.close()

        task.add_done_callback(end)

    async def _send(self, calls: list[_Call | _Batch]) -> None:
        try:
            replies = await self._wire.run_many(
                [call.packs() for call in calls], [call.tell for call in calls]
            )
        except (Exception, asyncio.CancelledError) as fault:
            # If somebody cancels this task, those who wait are not cancelled by that.
            lost = _Lost(fault)
            for call in calls:
                call.lose(lost)
            if not isinstance(fault, Exception):
                raise
            return
        except (KeyboardInterrupt, SystemExit):
            for call in calls:
                call.drop()
            raise
        singly: list[_Call | _Batch] = []
        for call, reply in zip(calls, replies, strict=True):
            if not isinstance(reply, Unavailable):
                call.tell(reply)
            elif type(call) is _Batch and reply.reason.startswith("CROSSSLOT"):
                # It is a cluster. Nothing ran; once, and this takes a call's time anew.
                self._one_node = False
                singly += call.singly()
            else:
                call.lose(_Lost(reply))
        if singly:
            await self._send(singly)


async def _finish(coroutine: Coroutine[Any, Any, None], blocker: object) -> None:
    """Run a coroutine to its end that has yielded `blocker` just now."""
    await _resumed(coroutine, blocker)


@types.coroutine
def _resumed(
    coroutine: Coroutine[Any, Any, None], blocker: object
) -> Generator[object, object, None]:
    with contextlib.suppress(StopIteration):
        while True:
            try:
                answer = yield blocker
            except BaseException as fault:
                blocker = coroutine.throw(fault)
            else:
                blocker = coroutine.send(answer)


class _Left:
    """What was left."""

    __slots__ = ("_is_told",)

    def __init__(self) -> None:
        self._is_told = False

    def tell(self, reply: Reply) -> None:
        """Hand the reply to those who wait, the first time that it comes here."""
        if not self._is_told:
            self._is_told = True
            try:
                script.understood(self.answer, reply)
            except Unavailable as fault:
                self.lose(_Lost(fault))

    @abstractmethod
    def answer(self, reply: Reply) -> None:
        """Hand the reply to those who wait."""

    @abstractmethod
    def lose(self, lost: _Lost) -> None:
        """Tell those who wait that there is no reply."""


class _Call(_Left, Sequence[Any]):
    """A call that was left, by one waiter or by several that want one unit each.

    It is its own ARGV. The wire reads that when it packs the call, which is later where it must
    connect first: who has left by then is not counted.
    """

    __slots__ = ("_args", "_arguments", "_counted", "keys", "merges", "waiters", "what")

    def __init__(
        self,
        what: ScriptLike,
        keys: Sequence[bytes],
        args: Sequence[Word],
        waiter: asyncio.Future[Any],
        arguments: script.Arguments,
        merges: bool,
    ) -> None:
        super().__init__()
        self.what = what
        self.keys = keys
        self.merges = merges
        self.waiters = self._counted = [waiter]
        self._args = args
        self._arguments = arguments

    weight = 1

    def left_for(self) -> Iterable[bytes]:
        """Return the lists that it is for."""
        return self.keys

    def seal(self) -> _Call | None:
        """Decide on the script, as nobody joins any more; None: nobody waits for it any more."""
        self.waiters = _waiting(self.waiters)
        if len(self.waiters) > 1:
            self.what = script.TAKE_SOME
        return self if self.waiters else None

    def packs(self) -> Call:
        """Return what the wire is to send."""
        return self.what, self.keys, self

    def __len__(self) -> int:
        return len(self._args)

    def __getitem__(self, index: Any) -> Any:
        return self._read()[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._read())

    def _read(self) -> Sequence[Word]:
        self._counted = _waiting(self.waiters)
        if not self._counted and self.what.sha in _COUNT:
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
        _settle_all(self._counted, chain(repeat(0, granted), repeat(wait_us)))

    def lose(self, lost: _Lost) -> None:
        """Tell those who wait that there is no reply."""
        for waiter in self.waiters:
            _settle(waiter, lost)

    def drop(self) -> None:
        """Cancel those who wait."""
        for waiter in self.waiters:
            waiter.cancel()


class _Batch(_Left, Sequence[bytes]):
    """A call that was left for different keys, each by one waiter who wants one unit.

    It is its own KEYS, those of whoever still waits when the wire packs it.
    """

    __slots__ = ("_arguments", "_width", "keys", "waiters")

    def __init__(
        self, arguments: script.Arguments, keys: Sequence[bytes], waiter: asyncio.Future[Any]
    ) -> None:
        super().__init__()
        # The lists of all of them, one after the other, of each as many as there are quotas.
        self.keys = [*keys]
        self.waiters = [waiter]
        self._width = len(keys)
        self._arguments = arguments

    @property
    def weight(self) -> int:
        """How many keys there are."""
        return len(self.waiters)

    def left_for(self) -> Iterable[bytes]:
        """Return the lists that it is for."""
        return self.keys

    def seal(self) -> _Call | _Batch | None:
        """Return what is to be sent, as nobody joins any more; None: nobody waits any more."""
        self._forget_who_left()
        if len(self.waiters) > 1:
            return self
        return next(iter(self.singly()), None)

    def singly(self) -> list[_Call]:
        """Return a call for each key."""
        arguments = self._arguments
        return [
            _Call(arguments.take, keys, arguments.of(1), waiter, arguments, True)
            for keys, waiter in self._members()
            if not waiter.done()
        ]

    def packs(self) -> Call:
        """Return what the wire is to send."""
        return script.BATCH, self, self._arguments.of(1)

    def __len__(self) -> int:
        # Asked for first, in the step of the loop in which the keys are read.
        self._forget_who_left()
        return len(self.keys)

    def __getitem__(self, index: Any) -> Any:
        return self.keys[index]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.keys)

    def _members(self) -> Iterator[tuple[list[bytes], asyncio.Future[Any]]]:
        width = self._width
        for nth, waiter in enumerate(self.waiters):
            yield self.keys[nth * width : (nth + 1) * width], waiter

    def _forget_who_left(self) -> None:
        if any(map(_is_done, self.waiters)):
            left = [(keys, waiter) for keys, waiter in self._members() if not waiter.done()]
            self.keys = [key for keys, _ in left for key in keys]
            self.waiters = [waiter for _, waiter in left]

    def answer(self, reply: Reply) -> None:
        """Hand to each who waits what `TAKE` would have said."""
        _settle_all(self.waiters, script.waits_us(reply, len(self.waiters)))  # type: ignore[arg-type]

    def lose(self, lost: _Lost) -> None:
        """Tell those who wait that there is no reply."""
        for waiter in self.waiters:
            _settle(waiter, lost)

    def drop(self) -> None:
        """Cancel those who wait."""
        for waiter in self.waiters:
            waiter.cancel()


def answered(answer: Any) -> Any:
    """Return an answer, or raise why there is none."""
    if type(answer) is _Lost:
        raise answer.fault()
    if type(answer) is Unavailable:
        raise answer  # it is nobody else's
    return answer


class _Lost:
    """Why there is no reply. As an exception of a future, it would be logged if nobody looked."""

    __slots__ = ("_fault",)

    def __init__(self, fault: BaseException) -> None:
        self._fault = fault

    def fault(self) -> BaseException:
        """Return what is to be raised: one of his own for everybody, with his own traceback."""
        fault = self._fault
        if isinstance(fault, Unavailable):
            return fault.again()
        if isinstance(fault, Exception):
            return fault
        return Unavailable("the task that had sent it was cancelled", outcome_unknown=True)


# Of asyncio's own futures: so that a loop over all who wait is one in C.
_is_done = asyncio.Future.done
_set_result = asyncio.Future.set_result


def _waiting(waiters: list[asyncio.Future[Any]]) -> list[asyncio.Future[Any]]:
    if any(map(_is_done, waiters)):
        return [waiter for waiter in waiters if not waiter.done()]
    return waiters


def _settle(waiter: asyncio.Future[Any], answer: object) -> None:
    if not waiter.done():
        waiter.set_result(answer)


def _settle_all(waiters: list[asyncio.Future[Any]], answers: Iterable[object]) -> None:
    if any(map(_is_done, waiters)):
        for waiter, answer in zip(waiters, answers, strict=False):
            _settle(waiter, answer)
    else:
        for _ in map(_set_result, waiters, answers):
            pass
