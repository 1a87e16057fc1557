"""RedisRateLimiter: one limit for many machines, for threads."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, overload

from nanolimit import supervisor, telemetry
from nanolimit.clock import NS_PER_SECOND
from nanolimit.line import checked_timeout
from nanolimit.redis.dialog import Dialog, as_buffer, checked_timeout_s
from nanolimit.redis.lease import LEAST_TTL_S, clock_s
from nanolimit.redis.limit import Limited
from nanolimit.redis.slot import Slot
from nanolimit.redis.wire import Wire
from nanolimit.remote import RemoteRateLimiter

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from datetime import timedelta
    from types import TracebackType

    from typing_extensions import Buffer, Self

    from nanolimit._core import Decision
    from nanolimit.limiter import Key
    from nanolimit.quota import Quota
    from nanolimit.redis.lease import Lease, Loans
    from nanolimit.redis.policy import OnError

    R = TypeVar("R")

__all__ = ["RedisRateLimiter"]

# Who waits asks no sooner again than this. The store names the instant to the microsecond; but
# where its clock was set back, that instant does not come nearer.
LEAST_PAUSE_S = 0.001


class RedisRateLimiter(Dialog, RemoteRateLimiter):
    """An exact sliding-window limit for each of very many keys, kept by Redis or Valkey.

    What a `RateLimiter` counts for one process, this one counts for all that use the same store,
    `prefix`, and `name` (or, without one, the same quota). In any window of length `per`, at most
    `limit` units of a key are allowed, by the store's own clock.

    ```python
    limiter = RedisRateLimiter("100/minute", "redis://localhost:6379/0")
    if not limiter.allow("user:42"):
        ...  # come again later
    ```

    A call takes one round trip, and never more than `timeout`: a store that is gone, stalled,
    loading, out of memory or failing over gives no exception, and `on_error` says what is decided
    then. A request that may have been counted is never sent again.

    Args:
        quota: The limit as an int, to go with `per`; or a `Quota`, or text such as ``"5/minute"``;
            or several, up to 8: ``"10/second; 1000/hour"``. As for `RateLimiter`.
        client_or_url: A client of redis-py or valkey-py: `Redis`, `RedisCluster`, or what a
            Sentinel's ``master_for`` gives. Only where and how it connects is taken from it: the
            limiter has connections of its own, without retries. Or a URL, such as
            ``"redis://localhost:6379/0"``.
        per: The length of the window for a limit given as an int: seconds, or a `timedelta`.
        name: What telemetry and `repr` call it, ``limiter-1`` ... when left out. A name given also
            stands in the store's keys, in the place of the limit: limiters of one name share their
            counts even if their limits differ, so that a limit can be changed in service.
        prefix: What the names of all keys in the store begin with.
        on_error: What decides while the store can't be asked: ``"local"``, a limiter of this
            process with a share of the limit; ``"allow"``; ``"deny"``; or ``"raise"``, a
            `StoreUnavailableError`.
        timeout: Seconds, or a `timedelta`, that a call may take in all: above 0, at most 60.
        deny_cache: Whether a denial is repeated without asking, until the time that the store
            named, and for a second at most: by this limiter, and with `shared` by all of this
            machine that are alike.
        nodes: How many processes share the limit: with ``on_error="local"`` each enforces
            ``ceil(limit / nodes)``. With 1, the whole limit. With `shared`, how many machines.
        shared: A shared table, by its name or path as of `RateLimiter`, beside which all processes
            of this machine count together while ``on_error="local"`` decides, and keep what one of
            them was denied for `deny_cache` of all (4 MiB): ``web.api`` and ``web.api.denials``
            for ``shared="web", name="api"``. Both are made with the limiter. Another store takes
            another name. When left out, each process counts and remembers for itself.
        lease: How much of a hot key's limit may be taken at once, and served without asking: a
            `Lease`. None: nothing is. Of a limit below 20 nothing is, either.

    Raises:
        TypeError: An argument is of the wrong type: an asyncio client is for
            `AsyncRedisRateLimiter`.
        ValueError: An argument is out of range or is not understood.
        ImportError: A URL was given and neither redis-py nor valkey-py is installed.
        SharedTableError: A table of `shared` can't be used.

    Making one asks no server. Thread-safe. After a fork the child makes connections of its own. It
    can't be pickled: make one in each process.
    """

    __slots__ = ("_bell", "_gates", "_keeper", "_wire")

    _keeper: supervisor.Task | None

    _limited = Limited

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
        lease: Lease | None = None,
    ) -> None:
        wire = Wire(client_or_url, checked_timeout_s(timeout))
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
        self._keeper = None
        self._begin_waiting()

    def allow(self, key: Key, cost: int = 1) -> bool:
        """Say whether the request fits into the key's window, and count it if it does.

        Args:
            key: Who asks: as for `RateLimiter.allow`.
            cost: Units that the request takes, 0 to the limit, all or nothing. 0 always fits,
                counts nothing and asks nobody.

        Returns:
            True if it was allowed and counted; False if it was denied, which leaves no trace.

        Raises:
            TypeError: The key is of a type that is no key, or `cost` is no int.
            ValueError: `cost` is below 0 or above the limit.
            LimiterClosedError: The limiter is closed.
            StoreUnavailableError: Only with ``on_error="raise"``.

        One round trip; none where a denial is repeated, or units of the key are lent to this
        process. `timeout` at most.
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
        if denials is not None and denials.left_s(place, units, monotonic()):
            self._counters.count_repeated()
            if telemetry.is_wanted("denied"):
                telemetry.emit("denied", units, self._name, key)
            return False
        if not units:
            return True
        return self._hold(self._allowing(key, place, units))

    def check(self, key: Key, cost: int = 1) -> Decision:
        """Do what `allow` does, and tell more: what remains, and when to come again.

        Returns:
            A `Decision`. It is `degraded` if it was made without the store; its `quota` is then
            the share that this process enforces. One that repeats a denial is what the store said,
            up to a second ago, with its times counted down.

        Raises:
            TypeError: As `allow`.
            ValueError: As `allow`.
            LimiterClosedError: As `allow`.
            StoreUnavailableError: As `allow`.
        """
        place, units = self._asked(key, cost)
        if not units:
            return self._hold(self._peeking(key, 0))
        return self._hold(self._checking(key, place, units))

    def peek(self, key: Key, cost: int = 1) -> Decision:
        """Say what `check` would say now, and count nothing. The store is always asked.

        Returns:
            A `Decision`; its `remaining` is what fits now, before the request.

        Raises:
            TypeError: As `allow`.
            ValueError: As `allow`.
            LimiterClosedError: As `allow`.
            StoreUnavailableError: As `allow`.
        """
        _, units = self._asked(key, cost)
        return self._hold(self._peeking(key, units))

    @overload
    def allow_many(self, keys: Buffer, cost: int = 1) -> memoryview: ...
    @overload
    def allow_many(self, keys: Sequence[Key], cost: int = 1) -> list[bool]: ...
    def allow_many(self, keys: Buffer | Sequence[Key], cost: int = 1) -> memoryview | list[bool]:
        """Decide on many requests, in order, as if `allow` was called one by one.

        256 keys go in one call; of a Cluster, one pipelined write a node. A bad key changes
        nothing: all are looked at before the first is sent. If a call fails, `on_error` decides on
        its keys, and on all that come after them without asking; of a Cluster, on those that the
        failed nodes have.

        Args:
            keys: A sequence of keys; or a one-dimensional buffer of 64-bit integers, signed or
                not, such as a numpy array.
            cost: Units that each request takes, as in `allow`.

        Returns:
            A list of bools for a sequence. For a buffer a memoryview of format ``?`` and the same
            length.

        Raises:
            TypeError: `keys` is a str, bytes, generator or set; a key in it is none (the message
                names its index); a buffer holds something else than 64-bit integers.
            ValueError: A buffer has more than one dimension; or as `allow`.
            LimiterClosedError: As `allow`.
            StoreUnavailableError: As `allow`. Some of the keys may have been counted.

        Each call may take `timeout`.
        """
        units = self._units(cost)
        asked, is_buffer = self._batch(keys)
        answers = [True] * len(asked)
        if units:
            answers = self._hold(self._allowing_many(asked, units, self._wire.clustered))
        return as_buffer(answers) if is_buffer else answers

    def reset(self, key: Key) -> bool:
        """Forget what the key has used, for all. Its whole quota is free again.

        Other processes may repeat a denial for another second, where they have a cache; not those
        of this machine with the same `shared`. While the store can't be asked, only what was
        counted here meanwhile is forgotten.

        Returns:
            True if there was a log to forget.

        Raises:
            TypeError: The key is of a type that is no key.
            LimiterClosedError: As `allow`.
            StoreUnavailableError: As `allow`.
        """
        place, _ = self._asked(key, 0)
        return self._hold(self._resetting(key, place))

    def acquire(self, key: Key, cost: int = 1, timeout: float | timedelta | None = None) -> bool:
        """Wait until the request fits, and count it. For threads.

        The thread sleeps until the instant that the store names, and asks again then: others may
        have been quicker. Of the threads that wait for the same key of this limiter one asks, and
        the others wait for it; in which order they follow is not promised, here or among
        processes. A request that waits is not a denied one: neither `stats` nor telemetry counts it
        as such.

        Args:
            key: Who asks.
            cost: Units that the request takes, as in `allow`. 0 never waits.
            timeout: Seconds to wait at most, or a `timedelta`. 0 tries once, and fails where
                others wait. None waits for ever. What the store takes to answer comes on top of
                it, by the limiter's `timeout` at most.

        Returns:
            True if it was counted; False if the time was up, and nothing was counted.

        Raises:
            TypeError: As `allow`; or `timeout` is no span of time.
            ValueError: As `allow`; or `timeout` is negative, NaN or infinite.
            LimiterClosedError: The limiter is closed, or was while this one waited.
            StoreUnavailableError: As `allow`.
        """
        place, units = self._asked(key, cost)
        timeout_ns = checked_timeout(timeout)
        if not units:
            return True
        ask = partial(self._attempting, key, place, units)
        return bool(self._until_granted(place, timeout_ns, ask))

    def slot(self, key: Key, cost: int = 1, timeout: float | timedelta | None = None) -> Slot:
        """Return what waits where a block begins: ``with limiter.slot(key):``.

        Entering is `acquire`, and gives the `Decision` that allowed it. Leaving gives nothing back,
        for what was counted was used. It may be entered again: each entering is a request.

        Raises:
            RateLimitExceeded: On entering, when the time was up. It has the decision and the key.
            TypeError: As `acquire`.
            ValueError: As `acquire`.
        """
        return Slot(self, key, cost, timeout)

    def close(self) -> None:
        """Close the connections. Using the limiter afterwards raises `LimiterClosedError`.

        What was counted stays in the store until it is out of its window; what was lent and not
        used is given back, which takes `timeout` at most, twice that if it is a lot. Those who wait
        are told. Closing twice is fine.
        """
        if self._shut():
            self._bell.set()
            self._policy.close()
            try:
                if self._loans is not None:
                    until_s = monotonic() + self._timeout_s
                    self._hold(self._returning(self._loans.close(), until_s))
                    keeper = self._keeper
                    if keeper is not None:
                        # It may be giving something back just now.
                        keeper.stop(max(0.0, until_s - monotonic()))
            finally:
                self._wire.close()

    def __contains__(self, key: object) -> bool:
        """Say whether the key holds at least one request of its window now. Asks the store."""
        return self.peek(key, 0).refill_after > 0  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _hold(self, dialog: Generator[Any, Any, R]) -> R:
        """Hold a dialog with the store, and return what comes of it."""
        wire = self._wire
        try:
            asked = dialog.send(None)
            while True:
                try:
                    kind = type(asked)
                    if kind is tuple:
                        answer: Any = wire.run(*asked)
                    elif kind is list:
                        answer = wire.run_many(asked)
                    else:
                        answer = wire.run(*asked.request)
                except BaseException as fault:
                    asked = dialog.throw(fault)
                else:
                    asked = dialog.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    # What is lent is watched by a thread, as long as there is something.

    def _watch(self, loans: Loans) -> None:
        if not loans.watch():
            return
        try:
            self._keeper = supervisor.start(f"leases-{self._name}", self._keep, loans.after_fork)
        except RuntimeError:  # no room for a thread: the next loan tries it again
            loans.rest()

    def _keep(self, stopping: threading.Event) -> None:
        """Give back what is left of each loan when it ends. This is what the thread does."""
        loans = self._loans
        assert loans is not None
        while not stopping.is_set():
            next_s = loans.next_s()
            if next_s is None:
                return
            # One that comes meanwhile may end sooner.
            pause_s = min(next_s - clock_s(), max(loans.ttl_s / 8, LEAST_TTL_S))
            if not stopping.wait(max(pause_s, 0.0)):
                self._hold(self._returning(loans.over(clock_s())))
        # The limiter is closed, or the interpreter ends.
        self._hold(self._returning(loans.everything()))

    def _waited(
        self, key: Key, cost: int, timeout: float | timedelta | None
    ) -> tuple[Decision, bool]:
        """Do what `acquire` does; what was decided last, and whether it was counted."""
        place, units = self._asked(key, cost)
        timeout_ns = checked_timeout(timeout)
        if not units:
            return self._hold(self._peeking(key, 0)), True
        ask = partial(self._trying, key, place, units)
        decision: Decision | None = self._until_granted(place, timeout_ns, ask)
        if decision is None:  # others were before it in line
            return self._hold(self._peeking(key, units)), False
        return decision, decision.allowed

    def _until_granted(
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
        gate = self._gate(place)
        if not gate.acquire(timeout=_pause_s(None, over_s)):
            return None
        try:
            while True:
                self._refuse_if_closed()
                answer, wait_s = self._hold(ask())
                if answer or (over_s is not None and monotonic() >= over_s):
                    return answer
                self._bell.wait(_pause_s(max(wait_s, LEAST_PAUSE_S), over_s))
        finally:
            gate.release()

    def _gate(self, place: bytes) -> threading.Lock:
        """Return what those pass who wait for a key, one at a time. It goes with the last."""
        with self._changing:
            gate = self._gates.get(place)
            if gate is None:
                gate = self._gates[place] = threading.Lock()
            return gate

    def _begin_waiting(self) -> None:
        self._gates: weakref.WeakValueDictionary[bytes, threading.Lock] = (
            weakref.WeakValueDictionary()
        )
        self._bell = threading.Event()

    def after_fork(self) -> None:
        """In the child: nobody waits, for the threads that did are the parent's."""
        super().after_fork()
        self._begin_waiting()


def _pause_s(wait_s: float | None, over_s: float | None) -> float:
    """Return how long to sleep: so long, but not beyond the time-out. None, None: for ever."""
    most_s = threading.TIMEOUT_MAX
    if wait_s is not None:
        most_s = min(most_s, wait_s)
    return most_s if over_s is None else min(most_s, max(over_s - monotonic(), 0.0))
