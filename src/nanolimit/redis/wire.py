"""Script calls to Redis or Valkey for threads: bounded in time, and never sent twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nanolimit.redis.cluster import Address, SlotMap, redirect, slot_of
from nanolimit.redis.fault import Unavailable, code_of, fault_of_reply
from nanolimit.redis.fork import renew_after_fork
from nanolimit.redis.line import Cut, Line
from nanolimit.redis.pool import Pool
from nanolimit.redis.request import HOPS_MAX, TRY_AGAIN_S, Request
from nanolimit.redis.resp import ErrorReply, Reply, ScriptLike, Word, pack, pack_words
from nanolimit.redis.target import checked_timeout, target_of

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Call", "Wire"]

Call = tuple[ScriptLike, Sequence[bytes], Sequence[Word]]

POOL_MAX = 64
# A map that may be wrong is asked for anew, but not more often than this.
REFRESH_PAUSE_S = 0.2
# So says who is no longer, or not yet, the one that may write.
NOT_THE_MASTER = frozenset({"READONLY", "MASTERDOWN"})
_SLOTS = pack_words("CLUSTER", "SLOTS")


class Wire:
    """Runs scripts on the server, or cluster, that a client or URL points to.

    It makes connections of its own, as the given client would make them, without that client's
    retries: no call is sent again once it may have run. A call takes at most `timeout_s` in all,
    however the server, the network or the name server behaves. Connections are made at the first
    call. Thread-safe. After a fork, the child has its own connections.

    Args:
        client_or_url: A client of redis-py or valkey-py (also of a Cluster, or of a Sentinel's
            master), or a URL: redis://, rediss://, unix://, valkey://, valkeys://.
        timeout_s: Seconds that a call may take.
        max_connections: To each server; left out, as many as the client would make, 64 at most.

    Raises:
        TypeError: That is neither client nor URL, or an asyncio client.
        ValueError: The URL is wrong, or a number out of range.
        ImportError: A URL was given and no client library is installed.
    """

    def __init__(
        self, client_or_url: object, timeout_s: float = 0.1, *, max_connections: int | None = None
    ) -> None:
        self._timeout_s = checked_timeout(timeout_s)
        self._target = target_of(client_or_url, "sync", self._timeout_s)
        self._size = checked_size(max_connections, self._target.max_connections)
        self._closed = False
        self._pools: dict[Address, Pool] = {}
        # Of _pools. Reentrant, like every lock of the face.
        self._lock = threading.RLock()
        self._refreshing = threading.Lock()
        self._slots: SlotMap | None = SlotMap() if self._target.clustered else None
        self._stale_slots = self._target.clustered
        self._next_refresh = 0.0
        self._seed = self._target.seeds[0]
        # The only one, unless it is a cluster.
        self._pool = self._pool_at(self._seed)
        renew_after_fork(self)

    @property
    def name(self) -> str:
        """Whom it asks, for people; without a password."""
        return self._target.name

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
        return f"<Wire to {self._target.name}, timeout {self._timeout_s:g} s>"

    # Calls

    def run(
        self,
        script: ScriptLike,
        keys: Sequence[bytes],
        args: Sequence[Word] = (),
        timeout_s: float | None = None,
    ) -> Reply:
        """Run a script: EVALSHA, and EVAL if the server does not know it.

        Args:
            script: Has `source` and `sha`.
            keys: Its keys, in a cluster all of one slot.
            args: Its arguments.
            timeout_s: Seconds that this call may take, if not as many as others.

        Returns:
            The reply: int, bytes, None or a list of them, whatever `decode_responses` says.

        Raises:
            Unavailable: The server can't be asked, or gave an error, or no reply in time.
        """
        data = pack(script, keys, args)
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        if self._slots is None:
            pool = self._pool
        else:
            pool = self._pool_of(slot_of(keys[0]) if keys else None, deadline)
        reply = self._exchange(pool, data, deadline)
        if type(reply) is not ErrorReply:
            return reply
        request = Request(script, keys, args)
        where = self._settle(request, reply, pool)
        if where is not None:
            self._rounds([(where, request)], deadline, HOPS_MAX - 1)
        result = request.result
        if isinstance(result, Unavailable):
            raise result
        return result

    def run_many(self, calls: Iterable[Call]) -> list[Reply | Unavailable]:
        """Run many scripts: one write to each server, all replies read afterwards.

        They run in order on each server, but not as one: others may come in between. All of it
        takes at most `timeout_s`.

        Returns:
            For each call its reply, or the `Unavailable` that `run` would have raised.
        """
        deadline = time.monotonic() + self._timeout_s
        requests = [Request(*call) for call in calls]
        pending: list[tuple[Pool, Request]] = []
        for request in requests:
            try:
                pending.append((self._pool_for(request, deadline), request))
            except Unavailable as fault:
                request.result = fault
        self._rounds(pending, deadline, HOPS_MAX)
        return [request.result for request in requests]

    def close(self) -> None:
        """Close the connections; the given client's own stay as they are. Twice is no error."""
        with self._lock:
            self._closed = True
            pools = list(self._pools.values())
        for pool in pools:
            pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def after_fork(self) -> None:
        """In the child: threads of the parent may have held the locks."""
        self._lock = threading.RLock()
        self._refreshing = threading.Lock()
        self._pools = {self._seed: self._pool}

    # One exchange

    def _exchange(self, pool: Pool, data: bytes, deadline: float) -> Reply:
        try:
            line = pool.take(deadline)
        except Unavailable as fault:
            self._suspect(pool, fault)
            raise
        try:
            try:
                line.send(data, deadline)
            except Cut:
                # The server has not even the whole of it. Once more, on another connection.
                pool.drop(line)
                line = pool.take(deadline)
                line.send(data, deadline)
            reply = line.read(deadline)
        except BaseException as error:
            pool.drop(line)
            if isinstance(error, Unavailable):
                self._suspect(pool, error)
            raise
        pool.give(line)
        return reply

    # Many at a time, and those that have to be sent anew

    def _rounds(self, pending: list[tuple[Pool, Request]], deadline: float, hops: int) -> None:
        while pending and hops:
            hops -= 1
            pending = self._round(pending, deadline)

    def _round(
        self, pending: list[tuple[Pool, Request]], deadline: float
    ) -> list[tuple[Pool, Request]]:
        """Send all, read all; return what has to be sent anew, and where."""
        groups: dict[Pool, list[Request]] = {}
        for pool, request in pending:
            groups.setdefault(pool, []).append(request)
        # In one order for all threads, so that none waits for what another holds that waits too;
        # and who failed last, and may take all of the time, comes last. (Just when one fails the
        # order of two threads may differ: then the deadline ends it.)
        sent: list[tuple[Pool, Line, list[Request]]] = []
        slow: Unavailable | None = None
        try:
            for pool in sorted(groups, key=lambda each: (each.failed_s, each.name)):
                requests = groups[pool]
                fault = slow
                if fault is None or time.monotonic() < deadline:
                    try:
                        sent.append((pool, self._send(pool, requests, deadline), requests))
                        continue
                    except Unavailable as error:
                        self._suspect(pool, error)
                        fault = error
                        # Those for whom it leaves no time are not sent: it is no fault of theirs,
                        # and with its own it is one.
                        error.origin = error.origin or object()
                        slow = Unavailable(error.reason, origin=error.origin)
                        slow.node = error.node
                for request in requests:
                    request.result = fault.again()
            anew = []
            while sent:
                anew += self._receive(*sent.pop(0), deadline)
            return anew
        finally:
            for pool, line, _ in sent:  # broken off: replies may still come on these
                pool.drop(line)

    def _send(self, pool: Pool, requests: list[Request], deadline: float) -> Line:
        data = b"".join([request.packed() for request in requests])
        line = pool.take(deadline)
        try:
            try:
                line.send(data, deadline)
            except Cut:
                if len(requests) > 1:
                    raise  # the first of them may have run
                pool.drop(line)
                line = pool.take(deadline)
                line.send(data, deadline)
        except BaseException as error:
            pool.drop(line)
            if isinstance(error, Unavailable) and len(requests) > 1:
                raise Unavailable(error.reason, True, error.origin) from error
            raise
        return line

    def _receive(
        self, pool: Pool, line: Line, requests: list[Request], deadline: float
    ) -> list[tuple[Pool, Request]]:
        replies: list[Reply] = []
        fault: Unavailable | None = None
        try:
            for request in requests:
                if request.asking:
                    line.read(deadline)
                replies.append(line.read(deadline))
        except BaseException as error:
            pool.drop(line)
            if not isinstance(error, Unavailable):
                raise
            fault = error
            self._suspect(pool, fault)
            for request in requests[len(replies) :]:
                request.result = fault.again()
        else:
            pool.give(line)
        anew: list[tuple[Pool, Request]] = []
        pause = False
        for request, reply in zip(requests, replies, strict=False):
            where = self._settle(request, reply, pool)
            if where is not None:
                anew.append((where, request))
                pause = pause or (type(reply) is ErrorReply and reply.text.startswith("TRYAGAIN"))
        if pause:
            time.sleep(max(0.0, min(TRY_AGAIN_S, deadline - time.monotonic())))
        return anew

    def _settle(self, request: Request, reply: Reply, pool: Pool) -> Pool | None:
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
            slot, address = self._redirected(reply.text, pool)
            target = self._pool_at(address)
        except ValueError:
            return None
        except Unavailable as fault:
            request.result = fault
            return None
        request.asking = code == "ASK"
        if code == "MOVED":
            if self._slots is None:
                # Given by a URL, or a client for one server, it turns out to be of a cluster.
                self._slots = SlotMap()
                self._stale_slots = True
            self._slots.owners[slot] = address
        return target

    def _note(self, text: str, fault: Unavailable, pool: Pool) -> None:
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

    def _pool_for(self, request: Request, deadline: float) -> Pool:
        if self._slots is None:
            return self._pool
        return self._pool_of(request.slot, deadline)

    def _pool_of(self, slot: int | None, deadline: float) -> Pool:
        if self._stale_slots:
            self._refresh(deadline)
        assert self._slots is not None
        if slot is None:
            nodes = self._slots.nodes()
            return self._pool_at(nodes[0] if nodes else self._seed)
        address = self._slots.owners[slot]
        if address is None:
            self._stale_slots = True
            raise Unavailable(f"no node of {self._target.name} serves slot {slot}")
        return self._pool_at(address)

    def _pool_at(self, address: Address) -> Pool:
        pool = self._pools.get(address)
        if pool is None:
            with self._lock:
                if self._closed:
                    raise Unavailable(f"the connection to {self._target.name} was closed")
                pool = self._pools.get(address)
                if pool is None:
                    pool = self._pools[address] = self._make_pool(address)
        return pool

    def _make_pool(self, address: Address) -> Pool:
        target = self._target
        only = not target.clustered and address == target.seeds[0]
        name = target.name if only else str(address)

        def connect(age: int) -> Line:
            connection = target.connection(None if only else address)
            connection.connect()
            return Line(connection, name, age)

        return Pool(connect, name, self._size, address)

    def _redirected(self, text: str, pool: Pool) -> tuple[int, Address]:
        slot, address = redirect(text, pool.address or self._seed)
        return slot, self._remapped(address)

    def _remapped(self, address: Address) -> Address:
        remap = self._target.remap
        return address if remap is None else Address(*remap(address))

    def _suspect(self, pool: Pool, fault: Unavailable) -> None:
        """Something is wrong with a node: it may be that another serves the slot now."""
        if self._slots is not None:
            self._stale_slots = True
            fault.node = pool.address
            pool.failed_s = time.monotonic()

    def _refresh(self, deadline: float) -> None:
        """Ask who serves what. One thread does it; the others go by the old map, if there is one.

        Raises:
            Unavailable: There is no map yet, and nobody tells.
        """
        assert self._slots is not None
        known = self._slots.nodes()
        if known and time.monotonic() < self._next_refresh:
            return
        left_s = max(0.0, deadline - time.monotonic())
        if not self._refreshing.acquire(blocking=not known, timeout=-1 if known else left_s):
            if known:
                return
            raise Unavailable(f"{self._target.name} did not tell its slots in time")
        try:
            if not self._stale_slots:
                return
            self._ask_for_slots(list(dict.fromkeys((*known, *self._target.seeds))), deadline)
        except Unavailable:
            if not known:
                raise
        finally:
            self._next_refresh = time.monotonic() + REFRESH_PAUSE_S
            self._refreshing.release()

    def _ask_for_slots(self, nodes: list[Address], deadline: float) -> None:
        last: Unavailable | None = None
        pools = [(address, self._pool_at(address)) for address in nodes]
        # Whose call has failed is asked last: it may take half of the time.
        for address, pool in sorted(pools, key=lambda each: each[1].failed_s):
            # One that is silent must leave time for the next, and for the call itself.
            until = time.monotonic() + (deadline - time.monotonic()) / 2
            try:
                line = pool.take(until)
                try:
                    line.send(_SLOTS, until)
                    reply = line.read(until)
                except BaseException:
                    pool.drop(line)
                    raise
                pool.give(line)
                if isinstance(reply, ErrorReply):
                    raise fault_of_reply(reply.text)
                slots = SlotMap.read(reply, address)
            except Unavailable as fault:
                last = fault
                pool.failed_s = time.monotonic()
            except ValueError as error:
                last = Unavailable(f"{address} did not tell its slots: {error}")
            else:
                slots.owners = self._all_remapped(slots.owners)
                self._slots, self._stale_slots = slots, False
                self._forget_others(slots.nodes())
                return
        assert last is not None
        # To learn of the slots is not what was asked for: that has not been sent.
        raise Unavailable(last.reason, origin=last.origin)

    def _all_remapped(self, owners: list[Address | None]) -> list[Address | None]:
        if self._target.remap is None:
            return owners
        seen = {each: self._remapped(each) for each in set(owners) if each is not None}
        return [None if each is None else seen[each] for each in owners]

    def _forget_others(self, nodes: list[Address]) -> None:
        """Close the connections to nodes that serve nothing any more."""
        kept = {*nodes, self._seed}
        with self._lock:
            gone = [self._pools.pop(each) for each in list(self._pools) if each not in kept]
        for pool in gone:
            pool.close()


def checked_size(max_connections: object, of_client: int) -> int:
    """Return how many connections there may be.

    Raises:
        TypeError: It is no int.
        ValueError: It is below 1.
    """
    if max_connections is None:
        return max(1, min(POOL_MAX, of_client))
    if isinstance(max_connections, bool) or not isinstance(max_connections, int):
        raise TypeError(f"max_connections must be an int, not {type(max_connections).__name__}")
    if max_connections < 1:
        raise ValueError(f"max_connections must be at least 1, not {max_connections}")
    return max_connections
