"""Script calls to Redis or Valkey for asyncio: bounded in time, and never sent twice."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nanolimit.redis.aioline import AsyncPool, Tell
from nanolimit.redis.cluster import Address, SlotMap, redirect, slot_of
from nanolimit.redis.fault import Unavailable, code_of, fault_of_reply
from nanolimit.redis.line import Cut
from nanolimit.redis.request import HOPS_MAX, TRY_AGAIN_S, Request
from nanolimit.redis.resp import ErrorReply, Reply, ScriptLike, Word, pack, pack_words
from nanolimit.redis.target import Target, checked_timeout, target_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from nanolimit.redis.wire import Call

__all__ = ["AsyncWire"]

# A map that may be wrong is asked for anew, but not more often than this.
REFRESH_PAUSE_S = 0.2
# Within so many turns of the loop goes out what was collected, and a reply has led to what it leads
# to: it may be another request.
_QUIET_TURNS = 5
NOT_THE_MASTER = frozenset({"READONLY", "MASTERDOWN"})
_SLOTS = pack_words("CLUSTER", "SLOTS")


class AsyncWire:
    """Runs scripts on the server, or cluster, that an asyncio client or URL points to.

    One connection to each server serves all tasks: what they send within one turn of the loop goes
    out as one write. It is made as the given client would make it, without that client's retries:
    no call is sent again once it may have run. A call takes at most `timeout_s` in all.

    It belongs to the event loop that uses it first; when that loop is closed, or in the child of a
    fork, the next one that uses it starts afresh. Not thread-safe.

    Args:
        client_or_url: An asyncio client of redis-py or valkey-py (also of a Cluster, or of a
            Sentinel's master), or a URL.
        timeout_s: Seconds that a call may take.

    Raises:
        TypeError: That is neither client nor URL, or a client for threads.
        ValueError: The URL is wrong, or a number out of range.
        ImportError: A URL was given and no client library is installed.
    """

    def __init__(self, client_or_url: object, timeout_s: float = 0.1) -> None:
        self._timeout_s = checked_timeout(timeout_s)
        self._target = target_of(client_or_url, "async", self._timeout_s)
        self._closed = False
        self._seed = self._target.seeds[0]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clock: Callable[[], float] = time.monotonic
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._pools: dict[Address, AsyncPool] = {}
        self._slots: SlotMap | None = SlotMap() if self._target.clustered else None
        self._stale_slots = self._target.clustered
        self._next_refresh = 0.0
        self._refreshing: asyncio.Task[Unavailable | None] | None = None
        self._pool = self._pool_at(self._seed)

    @property
    def timeout_s(self) -> float:
        """Seconds that a call may take."""
        return self._timeout_s

    @property
    def clustered(self) -> bool:
        """Whether keys of several slots can't go in one call. A URL's server tells by its reply."""
        return self._slots is not None

    @property
    def slots(self) -> SlotMap | None:
        """Who serves what, as far as it is known; None: there is one server."""
        return self._slots

    def __repr__(self) -> str:
        return f"<AsyncWire to {self._target.name}, timeout {self._timeout_s:g} s>"

    # Calls

    async def run(
        self,
        script: ScriptLike,
        keys: Sequence[bytes],
        args: Sequence[Word] = (),
        timeout_s: float | None = None,
    ) -> Reply:
        """Run a script: EVALSHA, and EVAL if the server does not know it.

        A task that is cancelled meanwhile does not disturb the others; its call may have run.

        Args:
            script: Has `source` and `sha`.
            keys: Its keys, in a cluster all of one slot.
            args: Its arguments.
            timeout_s: Seconds that this call may take, if not as many as others.

        Returns:
            The reply: int, bytes, None or a list of them, whatever `decode_responses` says.

        Raises:
            Unavailable: The server can't be asked, or gave an error, or no reply in time.
            RuntimeError: The wire belongs to another event loop.
        """
        data = pack(script, keys, args)
        self._enter()
        deadline = self._clock() + (self._timeout_s if timeout_s is None else timeout_s)
        if self._slots is None:
            pool = self._pool
        else:
            pool = await self._pool_of(slot_of(keys[0]) if keys else None, deadline)
        reply = await self._exchange(pool, data, deadline, False)
        if type(reply) is not ErrorReply:
            return reply
        request = Request(script, keys, args)
        where = self._settle(request, reply, pool)
        if where is not None:
            await self._send_anew(where, request, deadline)
        if isinstance(request.result, Unavailable):
            raise request.result
        return request.result

    async def run_many(
        self, calls: Iterable[Call], tells: Iterable[Tell | None] = ()
    ) -> list[Reply | Unavailable]:
        """Run many scripts: one write to each server.

        They run in order on each server, but not as one: others may come in between. All of it
        takes at most `timeout_s`.

        Args:
            calls: Each a script, its keys and its arguments.
            tells: For each call, who is told of its reply as soon as it comes, if it comes as one
                should: the tasks that wait for this run a turn of the loop later.

        Returns:
            For each call its reply, or the `Unavailable` that `run` would have raised.
        """
        self._enter()
        deadline = self._clock() + self._timeout_s
        requests = [Request(*call) for call in calls]
        for request, tell in zip(requests, tells, strict=False):
            request.tell = tell
        groups: dict[AsyncPool, list[Request]] = {}
        for request in requests:
            try:
                pool = self._pool
                if self._slots is not None:
                    pool = await self._pool_of(request.slot, deadline)
            except Unavailable as fault:
                request.result = fault
            else:
                groups.setdefault(pool, []).append(request)
        if len(groups) == 1:
            begun = [await self._begin_all(*each, deadline) for each in groups.items()]
        else:
            begun = await asyncio.gather(
                *(self._begin_all(*each, deadline) for each in groups.items())
            )
        anew: list[tuple[AsyncPool, Request]] = []
        try:
            for (pool, group), futures in zip(groups.items(), begun, strict=True):
                for request, future in zip(group, futures, strict=True):
                    where = await self._finish(pool, request, future, deadline)
                    if where is not None:
                        anew.append((where, request))
        except BaseException:
            _leave(begun)
            raise
        if anew:
            await asyncio.gather(*(self._send_anew(*each, deadline) for each in anew))
        return [request.result for request in requests]

    def close(self) -> None:
        """Close the connections; the given client's own stay as they are. Twice is no error."""
        self._closed = True
        if self._pid != os.getpid() or self._loop is None or self._loop.is_closed():
            return
        here = _running_loop() is self._loop
        for pool in self._pools.values():
            if here:
                pool.close()
            else:  # its loop may run in another thread
                self._loop.call_soon_threadsafe(pool.close)

    async def drain(self) -> None:
        """Wait for the replies to what was asked for. Takes at most `timeout_s`."""
        loop = asyncio.get_running_loop()
        over = loop.time() + self._timeout_s
        quiet = 0
        while quiet < _QUIET_TURNS and loop is self._loop and self._pid == os.getpid():
            await asyncio.sleep(0)
            replies = [reply for pool in self._pools.values() for reply in pool.expected()]
            left = over - loop.time()
            if left <= 0:
                return
            if replies:
                await asyncio.wait(replies, timeout=left)
            quiet = 0 if replies else quiet + 1

    async def aclose(self) -> None:
        """The same, and let the loop carry it out. Takes at most `timeout_s`."""
        pools = list(self._pools.values())
        owned = self._pid == os.getpid() and self._loop is asyncio.get_running_loop()
        self.close()
        if owned and pools:
            await asyncio.gather(*(pool.aclose(self._timeout_s) for pool in pools))
        await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __del__(self, getpid: Callable[[], int] = os.getpid) -> None:
        # Of a wire that nobody closed; the collector may run in any thread, and at the end of the
        # interpreter, when modules are empty.
        loop = getattr(self, "_loop", None)
        if loop is None or self._pid != getpid():
            return
        for pool in self._pools.values():
            try:
                loop.call_soon_threadsafe(pool.close)
            except RuntimeError:
                return  # the loop is closed

    def _enter(self) -> None:
        """Make sure that this is the loop to which the connections belong."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop or self._pid != os.getpid():
            if self._loop is not None:
                if self._pid == os.getpid() and not self._loop.is_closed():
                    raise RuntimeError(
                        f"{self!r} belongs to another event loop, which is still open: make one "
                        f"for each loop"
                    )
                self._forsake()
                self._begin()
            self._loop, self._clock = loop, loop.time
        if self._closed:
            raise Unavailable(f"the connection to {self._target.name} was closed")

    def _forsake(self) -> None:
        if self._pid != os.getpid():
            # Closing a transport here would take it out of the parent's selector.
            _of_parents.extend(self._pools.values())
            return
        for pool in self._pools.values():
            pool.forsake()

    # One exchange

    async def _exchange(self, pool: AsyncPool, data: bytes, deadline: float, asking: bool) -> Reply:
        try:
            line = pool.line or await pool.take(deadline)
            try:
                return await line.call(data, deadline, asking)
            except Cut:
                # Not a byte of it was sent. Once more, on another connection.
                line = await pool.take(deadline)
                return await line.call(data, deadline, asking)
        except Unavailable as fault:
            self._suspect(pool, fault)
            raise

    async def _begin_all(
        self, pool: AsyncPool, requests: list[Request], deadline: float
    ) -> list[asyncio.Future[Reply] | Unavailable]:
        try:
            line = pool.line or await pool.take(deadline)
        except Unavailable as fault:
            self._suspect(pool, fault)
            return [fault.again() for _ in requests]
        # Nothing is awaited between them, so that they are one write.
        return [
            line.call(request.packed(), deadline, request.asking, request.tell)
            for request in requests
        ]

    async def _finish(
        self,
        pool: AsyncPool,
        request: Request,
        future: asyncio.Future[Reply] | Unavailable,
        deadline: float,
    ) -> AsyncPool | None:
        if isinstance(future, Unavailable):
            request.result = future
            return None
        try:
            try:
                reply = await future
            except Cut:
                reply = await self._exchange(pool, request.packed(), deadline, request.asking)
        except Unavailable as fault:
            self._suspect(pool, fault)
            request.result = fault
            return None
        return self._settle(request, reply, pool)

    async def _send_anew(self, pool: AsyncPool, request: Request, deadline: float) -> None:
        """Send a request that did not run until it does."""
        where: AsyncPool | None = pool
        for _ in range(HOPS_MAX - 1):
            now = self._clock()
            if now >= deadline:  # a reply came in time, and something has blocked the loop
                deadline = now + self._timeout_s
            try:
                reply = await self._exchange(pool, request.packed(), deadline, request.asking)
            except Unavailable as fault:
                request.result = fault
                return
            where = self._settle(request, reply, pool)
            if where is None:
                return
            pool = where
            if type(reply) is ErrorReply and reply.text.startswith("TRYAGAIN"):
                await asyncio.sleep(max(0.0, min(TRY_AGAIN_S, deadline - self._clock())))
                if self._clock() >= deadline:
                    return

    def _settle(self, request: Request, reply: Reply, pool: AsyncPool) -> AsyncPool | None:
        """Take a reply; return where to send the request anew, None if it is over."""
        code = request.settle(reply)
        if code is None:
            if isinstance(request.result, Unavailable) and isinstance(reply, ErrorReply):
                self._note(reply.text, request.result, pool)
            return None
        if code == "NOSCRIPT":
            request.by_source = True
            return pool
        if code == "TRYAGAIN":
            return pool
        assert isinstance(reply, ErrorReply)
        try:
            slot, address = redirect(reply.text, pool.address or self._seed)
        except ValueError:
            return None
        address = self._remapped(address)
        request.asking = code == "ASK"
        if code == "MOVED":
            if self._slots is None:
                # Given by a URL, or a client for one server, it turns out to be of a cluster.
                self._slots = SlotMap()
                self._stale_slots = True
            self._slots.owners[slot] = address
        return self._pool_at(address)

    def _note(self, text: str, fault: Unavailable, pool: AsyncPool) -> None:
        """Learn what an error says of the server."""
        if self._slots is not None:
            fault.node = pool.address
        code = code_of(text)
        if code in NOT_THE_MASTER:
            # There was a failover: whoever asks for the name, or the Sentinel, gets another.
            pool.flush()
            self._suspect(pool, fault)
        elif code == "CLUSTERDOWN":
            self._suspect(pool, fault)

    # Where

    async def _pool_of(self, slot: int | None, deadline: float) -> AsyncPool:
        if self._stale_slots:
            await self._refresh(deadline)
        assert self._slots is not None
        if slot is None:
            nodes = self._slots.nodes()
            return self._pool_at(nodes[0] if nodes else self._seed)
        address = self._slots.owners[slot]
        if address is None:
            self._stale_slots = True
            raise Unavailable(f"no node of {self._target.name} serves slot {slot}")
        return self._pool_at(address)

    def _pool_at(self, address: Address) -> AsyncPool:
        pool = self._pools.get(address)
        if pool is None:
            target = self._target
            only = not target.clustered and address == target.seeds[0]
            name = target.name if only else str(address)
            pool = AsyncPool(_maker(target, None if only else address), name, address)
            self._pools[address] = pool
        return pool

    def _remapped(self, address: Address) -> Address:
        remap = self._target.remap
        return address if remap is None else Address(*remap(address))

    def _suspect(self, pool: AsyncPool, fault: Unavailable) -> None:
        """Something is wrong with a node: it may be that another serves the slot now."""
        if self._slots is not None:
            self._stale_slots = True
            fault.node = pool.address
            pool.failed_s = self._clock()

    async def _refresh(self, deadline: float) -> None:
        """Ask who serves what; all tasks wait for the same answer.

        Raises:
            Unavailable: There is no map yet, and nobody tells.
        """
        assert self._slots is not None
        known = self._slots.nodes()
        if known and self._clock() < self._next_refresh:
            return
        task = self._refreshing
        if task is None:
            nodes = list(dict.fromkeys((*known, *self._target.seeds)))
            task = asyncio.get_running_loop().create_task(self._ask_for_slots(nodes, deadline))
            self._refreshing = task
        await asyncio.wait({task}, timeout=max(0.0, deadline - self._clock()))
        if known:
            return
        if not task.done() or task.cancelled():
            raise Unavailable(f"{self._target.name} did not tell its slots in time", origin=task)
        fault = task.result()
        if fault is not None:
            # To learn of the slots is not what was asked for: that has not been sent.
            raise Unavailable(fault.reason, origin=task)

    async def _ask_for_slots(self, nodes: list[Address], deadline: float) -> Unavailable | None:
        last: Unavailable | None = None
        try:
            pools = [(address, self._pool_at(address)) for address in nodes]
            # Whose call has failed is asked last: it may take half of the time.
            for address, pool in sorted(pools, key=lambda each: each[1].failed_s):
                # One that is silent must leave time for the next, and for the call itself.
                until = self._clock() + (deadline - self._clock()) / 2
                try:
                    line = await pool.take(until)
                    reply = await line.call(_SLOTS, until)
                    if isinstance(reply, ErrorReply):
                        raise fault_of_reply(reply.text)
                    slots = SlotMap.read(reply, address)
                except Unavailable as fault:
                    last = fault
                    pool.failed_s = self._clock()
                except ValueError as error:
                    last = Unavailable(f"{address} did not tell its slots: {error}")
                else:
                    if self._target.remap is not None:
                        seen = {each: self._remapped(each) for each in slots.nodes()}
                        slots.owners = [each and seen[each] for each in slots.owners]
                    self._slots, self._stale_slots = slots, False
                    self._forget_others(slots.nodes())
                    return None
            return last
        finally:
            self._next_refresh = self._clock() + REFRESH_PAUSE_S
            self._refreshing = None

    def _forget_others(self, nodes: list[Address]) -> None:
        """Close the connections to nodes that serve nothing any more."""
        kept = {*nodes, self._seed}
        for address in [each for each in self._pools if each not in kept]:
            self._pools.pop(address).flush()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _maker(target: Target, address: Address | None) -> Callable[[], Any]:
    return lambda: target.connection(address)


def _leave(begun: list[list[asyncio.Future[Reply] | Unavailable]]) -> None:
    """Wait no more for any of these."""
    for futures in begun:
        for future in futures:
            if isinstance(future, Unavailable) or future.cancel() or future.cancelled():
                continue
            future.exception()  # it was seen, so that nobody logs it


# The connections of a forked process's parent, so that nothing closes them by collecting them.
_of_parents: list[AsyncPool] = []
