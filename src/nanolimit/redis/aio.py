"""AsyncRedisRateLimiter: one limit for many machines, for tasks of asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine, Generator
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, overload

from nanolimit import telemetry
from nanolimit.clock import NS_PER_SECOND
from nanolimit.line import checked_timeout
from nanolimit.redis import script
from nanolimit.redis.aiowire import AsyncWire
from nanolimit.redis.coalesce import Coalescer, answered
from nanolimit.redis.dialog import Dialog, as_buffer, checked_timeout_s
from nanolimit.redis.fault import Unavailable
from nanolimit.redis.lease import Loans, Order, clock_s
from nanolimit.redis.limit import AsyncLimited
from nanolimit.redis.limiter import LEAST_PAUSE_S
from nanolimit.redis.slot import AsyncSlot
from nanolimit.remote import AsyncRemoteRateLimiter

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from datetime import timedelta
    from types import TracebackType

    from typing_extensions import Buffer, Self

    from nanolimit._core import Decision
    from nanolimit.limiter import Key
    from nanolimit.quota import Quota
    from nanolimit.redis.lease import Lease
    from nanolimit.redis.policy import OnError

    R = TypeVar("R")
    Line = deque[asyncio.Future[None]]

__all__ = ["AsyncRedisRateLimiter"]


def _alone(keys: Sequence[bytes]) -> None:
    """Join nobody."""


class AsyncRedisRateLimiter(Dialog, AsyncRemoteRateLimiter):
    """A `RedisRateLimiter` whose verbs are awaited, for tasks of asyncio.

    ```python
    limiter = AsyncRedisRateLimiter("100/minute", "redis://localhost:6379/0")
    if not await limiter.allow("user:42"):
        ...  # come again later
    ```

    It counts together with every `RedisRateLimiter` of the same store, `prefix`, and `name` or
    quota. Its arguments are the same, but that a client is one of asyncio: `redis.asyncio.Redis`,
    `redis.asyncio.RedisCluster`, or their valkey-py twins.

    What its tasks ask within one turn of the loop goes out as one write to each server; and of
    what they `allow` or `acquire` at a cost of 1, all behind the first go as one call for different
    keys (not to a Cluster), and one for each key that is asked for again. What they are told is the
    same. Where such a call fails, `RedisStats` counts a failure for each of its requests.
    `coalesce=False` makes a call of each.

    It belongs to the event loop that first uses it, until that is closed. A task that is cancelled
    while the store is asked may have been counted: nothing is sent again, and nothing is taken
    back. But what is lent to it is kept for others.

    Raises:
        TypeError: An argument is of the wrong type: a client that blocks is for
            `RedisRateLimiter`.
        ValueError: An argument is out of range or is not understood.
        ImportError: A URL was given and neither redis-py nor valkey-py is installed.
    """

    __slots__ = (
        "_asleep", "_join", "_lines", "_loop", "_sender", "_tasks", "_timer", "_watcher", "_wire",
    )  # fmt: skip

    _limited = AsyncLimited

    _join: Callable[[Sequence[bytes]], asyncio.Future[Any] | None]
    _loop: asyncio.AbstractEventLoop | None
    _sender: Coalescer | AsyncWire
    _tasks: set[asyncio.Task[Any]]
    _timer: asyncio.TimerHandle | None
    _watcher: asyncio.AbstractEventLoop | None

    def __init__(
        self,
        quota: int | str | Quota | Sequence[str | Quota],
        client_or_url: object,
        *,
        per: float | timedelta | None = None,
        name: str | None = None,
        prefix: str = "nl",
        on_error: OnError = "local",
        timeout: float | timedelta = 0.1,
        deny_cache: bool = True,
        nodes: int = 1,
        shared: str | os.PathLike[str] | None = None,
        coalesce: bool = True,
        lease: Lease | None = None,
    ) -> None:
        if not isinstance(coalesce, bool):
            raise TypeError(f"coalesce must be a bool, not {type(coalesce).__name__}")
        wire = AsyncWire(client_or_url, checked_timeout_s(timeout))
        super().__init__(
            quota,
            per,
            wire,
            name=name,
            prefix=prefix,
            on_error=on_error,
            timeout=timeout,
            deny_cache=deny_cache,
            nodes=nodes,
            shared=shared,
            lease=lease,
        )
        self._wire = wire
        self._begin_watching()
        if coalesce:
            self._sender = sender = Coalescer(wire, self._arguments)
            self._join = sender.join
        else:
            self._sender, self._join = wire, _alone
        self._loop = None
        self._begin_waiting()

    async def allow(self, key: Key, cost: int = 1) -> bool:
        """Say whether the request fits into the key's window, and count it if it does.

        As `RedisRateLimiter.allow`.
        """
        units = cost if type(cost) is int and 0 <= cost <= self._least else self._units(cost)
        place = self._place(key)
        denials = self._denials
        if self._closed:
            self._refuse_if_closed()
        loans = self._loans
        if loans is not None and units and loans.take(place, units, clock_s()):
            self._counters.count_leased()
            if telemetry.is_wanted("allowed"):
                telemetry.emit("allowed", units, self._name, key)
            return True
        sent_s = monotonic()
        if denials is not None and denials.left_s(place, units, sent_s):
            self._counters.count_repeated()
            if telemetry.is_wanted("denied"):
                telemetry.emit("denied", units, self._name, key)
            return False
        if not units:
            return True
        if loans is not None:
            return await self._hold(self._allowing(key, place, units))
        # What `_allowing` does, without its generators: nothing is done more often in a loop.
        epoch = None if denials is None else denials.epoch
        arguments, breaker = self._arguments, self._breaker
        ticket = breaker.enter(sent_s)
        try:
            if ticket is None:
                breaker, ticket = self._entered(self._names.of(key)[0], sent_s)
            try:
                names = self._names.of(key)
                joined = self._join(names) if units == 1 else None
                if joined is None:
                    reply = await self._sender.run(arguments.take, names, arguments.of(units))
                else:
                    reply = await joined
                wait_us = reply if type(reply) is int else script.understood(int, answered(reply))
            except Unavailable as fault:
                self._failed(breaker, ticket, fault)
                raise
            except BaseException:  # cancelled, or a signal handler raised
                breaker.abandoned(ticket)
                raise
        except Unavailable as fault:
            return self._decided_without(key, units, fault)
        if breaker.succeeded(ticket):
            self._recovered(breaker)
        return self._decided(key, place, units, sent_s, wait_us, epoch)

    async def check(self, key: Key, cost: int = 1) -> Decision:
        """Do what `allow` does, and tell more. As `RedisRateLimiter.check`."""
        place, units = self._asked(key, cost)
        if not units:
            return await self._hold(self._peeking(key, 0))
        return await self._hold(self._checking(key, place, units))

    async def peek(self, key: Key, cost: int = 1) -> Decision:
        """Say what `check` would say now, and count nothing. As `RedisRateLimiter.peek`."""
        _, units = self._asked(key, cost)
        return await self._hold(self._peeking(key, units))

    @overload
    async def allow_many(self, keys: Buffer, cost: int = 1) -> memoryview: ...
    @overload
    async def allow_many(self, keys: Sequence[Key], cost: int = 1) -> list[bool]: ...
    async def allow_many(
        self, keys: Buffer | Sequence[Key], cost: int = 1
    ) -> memoryview | list[bool]:
        """Decide on many requests, in order. As `RedisRateLimiter.allow_many`."""
        units = self._units(cost)
        asked, is_buffer = self._batch(keys)
        answers = [True] * len(asked)
        if units:
            answers = await self._hold(self._allowing_many(asked, units, self._wire.clustered))
        return as_buffer(answers) if is_buffer else answers

    async def reset(self, key: Key) -> bool:
        """Forget what the key has used, for all. As `RedisRateLimiter.reset`."""
        place, _ = self._asked(key, 0)
        return await self._hold(self._resetting(key, place))

    async def acquire(
        self, key: Key, cost: int = 1, timeout: float | timedelta | None = None
    ) -> bool:
        """Wait until the request fits, and count it.

        As `RedisRateLimiter.acquire`; and tasks that wait for the same key of this limiter are
        served in the order in which they came. One that is cancelled gives its place back.
        """
        place, units = self._asked(key, cost)
        timeout_ns = checked_timeout(timeout)
        if not units:
            return True
        ask = partial(self._attempting, key, place, units)
        return bool(await self._until_granted(place, timeout_ns, ask))

    def slot(self, key: Key, cost: int = 1, timeout: float | timedelta | None = None) -> AsyncSlot:
        """Return what waits where a block begins: ``async with limiter.slot(key):``.

        As `RedisRateLimiter.slot`.
        """
        return AsyncSlot(self, key, cost, timeout)

    async def close(self) -> None:
        """Close the connections. Using the limiter afterwards raises `LimiterClosedError`.

        As `RedisRateLimiter.close`. What was asked before is answered before.
        """
        if self._shut():
            loop = asyncio.get_running_loop()
            over_s = loop.time() + self._timeout_s
            for alarm in list(self._asleep):
                if alarm.get_loop() is loop and not alarm.done():
                    alarm.set_result(None)
            try:
                await self._wire.drain()
                if self._loans is not None:
                    await self._give_back(self._loans, over_s)
            finally:
                await self._wire.aclose()
                self._policy.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _hold(self, dialog: Generator[Any, Any, R]) -> R:
        """Hold a dialog with the store, and return what comes of it."""
        sender = self._sender
        if self._loans is not None:
            self._take_over(self._loans)
        try:
            asked = dialog.send(None)
            while True:
                try:
                    kind = type(asked)
                    if kind is tuple:
                        answer: Any = await sender.run(*asked)
                    elif kind is list:
                        answer = await sender.run_many(asked)
                    else:
                        answer = await self._kept(asked)
                except BaseException as fault:
                    asked = dialog.throw(fault)
                else:
                    asked = dialog.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    # What is lent is asked for, watched and given back by the loop: whoever wanted it may leave.

    def _take_over(self, loans: Loans) -> None:
        """Watch what is left of the loans of a loop that is closed: its timer does not ring."""
        loop = asyncio.get_running_loop()
        if loop is not self._watcher and (self._watcher is None or self._watcher.is_closed()):
            self._watcher = loop
            self._timer = None
            self._watch(loans)

    async def _kept(self, order: Order) -> Any:
        """Ask for a loan. If the task is cancelled meanwhile, the answer is kept for others."""
        task = self._start(self._sender.run(*order.request))
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            order.is_kept = True
            task.add_done_callback(partial(self._keep, order))
            raise
        if task.cancelled():
            raise Unavailable("the task that had sent it was cancelled", outcome_unknown=True)
        return task.result()

    def _keep(self, order: Order, task: asyncio.Task[Any]) -> None:
        assert self._loans is not None
        if task.cancelled() or task.exception() is not None:
            self._loans.failed(order)
            return
        try:
            grant = script.understood(script.grant, task.result())
        except Unavailable:
            self._loans.failed(order)
        else:
            self._lend(order, grant, 0)

    def _watch(self, loans: Loans) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        next_s = loans.next_s()
        if next_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(next_s - clock_s(), 0.0), self._end, loans)

    def _end(self, loans: Loans) -> None:
        """Give back what is left of those that are over."""
        due = loans.over(clock_s())
        if due:
            self._start(self._hold(self._returning(due)))
        self._watch(loans)

    async def _give_back(self, loans: Loans, over_s: float) -> None:
        """Give back all there is, by that time of the loop."""
        due = loans.close()
        if self._timer is not None:
            self._timer.cancel()
        if due:
            returned = self._hold(self._returning(due))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(returned, over_s - asyncio.get_running_loop().time())

    def _start(self, work: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _begin_watching(self) -> None:
        # Whose timer it is.
        self._watcher = None
        self._timer = None
        # The loop itself does not keep its tasks alive.
        self._tasks = set()

    async def _waited(
        self, key: Key, cost: int, timeout: float | timedelta | None
    ) -> tuple[Decision, bool]:
        """Do what `acquire` does; what was decided last, and whether it was counted."""
        place, units = self._asked(key, cost)
        timeout_ns = checked_timeout(timeout)
        if not units:
            return await self._hold(self._peeking(key, 0)), True
        ask = partial(self._trying, key, place, units)
        decision: Decision | None = await self._until_granted(place, timeout_ns, ask)
        if decision is None:  # others were before it in line
            return await self._hold(self._peeking(key, units)), False
        return decision, decision.allowed

    async def _until_granted(
        self,
        place: bytes,
        timeout_ns: int | None,
        ask: Callable[[], Generator[Any, Any, tuple[R, float]]],
    ) -> R | None:
        """Ask, and again after as many seconds as were told, until the answer is yes.

        Returns:
            The last answer; None: the time was up before it could ask.
        """
        over_s = None if timeout_ns is None else monotonic() + timeout_ns / NS_PER_SECOND
        if not await self._queue(place, over_s):
            return None
        try:
            while True:
                self._refuse_if_closed()
                answer, wait_s = await self._hold(ask())
                if answer:
                    return answer
                wait_s = max(wait_s, LEAST_PAUSE_S)
                if over_s is not None:
                    left_s = over_s - monotonic()
                    if left_s <= 0:
                        return answer
                    wait_s = min(wait_s, left_s)
                await self._sleep(wait_s)
        finally:
            self._step_out(place)

    # A line for each key that somebody waits for: the first asks, those behind it wait until it
    # has gone. All in one loop, and so without a lock.

    async def _queue(self, place: bytes, over_s: float | None) -> bool:
        """Stand in line until one is the first; False: the time was up."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None and not self._loop.is_closed():
                raise RuntimeError(
                    f"{self!r} belongs to another event loop, which is still open: make one for "
                    f"each loop"
                )
            # Those of a loop that is closed are lost with it.
            self._begin_waiting()
            self._loop = loop
        line = self._lines.get(place)
        if line is None:
            self._lines[place] = deque()
            return True
        turn = loop.create_future()
        line.append(turn)
        try:
            left_s = None if over_s is None else max(over_s - monotonic(), 0.0)
            if left_s != 0:
                await asyncio.wait((turn,), timeout=left_s)
        except BaseException:
            self._leave(place, line, turn)
            raise
        if turn.done():
            return True
        self._leave(place, line, turn)
        return False

    def _leave(self, place: bytes, line: Line, turn: asyncio.Future[None]) -> None:
        if turn.done():  # it was just made the first
            self._step_out(place)
        else:
            line.remove(turn)

    def _step_out(self, place: bytes) -> None:
        """Let the next one be the first."""
        line = self._lines.get(place)
        if not line:
            self._lines.pop(place, None)
            return
        line.popleft().set_result(None)

    async def _sleep(self, wait_s: float) -> None:
        """Sleep so long, or until the limiter is closed."""
        alarm = asyncio.get_running_loop().create_future()
        self._asleep.add(alarm)
        try:
            await asyncio.wait((alarm,), timeout=wait_s)
        finally:
            self._asleep.discard(alarm)

    def _begin_waiting(self) -> None:
        self._lines: dict[bytes, Line] = {}
        self._asleep: set[asyncio.Future[None]] = set()

    def after_fork(self) -> None:
        """In the child: nobody waits, for the tasks that did are the parent's."""
        super().after_fork()
        self._loop = None
        self._begin_waiting()
        self._begin_watching()
