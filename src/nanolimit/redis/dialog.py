"""Dialogs with the store: what is asked of it, and what an answer means. No I/O stands here.

Each verb is a generator: it yields what is to be sent, is handed the reply or has the fault thrown
into it, and returns what the caller is told. `RedisRateLimiter` drives it with a wire that blocks,
`AsyncRedisRateLimiter` with one that is awaited; so both mean the same.

Time here is that of this process, and tells only how long something lasts. What counts is the
store's.
"""

from __future__ import annotations

import math
import threading
from abc import abstractmethod
from array import array
from collections.abc import Generator
from functools import partial
from operator import index
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from nanolimit import _core, telemetry
from nanolimit.clock import NS_PER_SECOND, nanoseconds, shown
from nanolimit.errors import LimiterClosedError
from nanolimit.limiter import _checked_name
from nanolimit.place import table_of
from nanolimit.quota import checked_quotas, whole_number
from nanolimit.redis import script
from nanolimit.redis.breaker import Breaker
from nanolimit.redis.breakers import BY_NODE, Breakers
from nanolimit.redis.counters import Counters
from nanolimit.redis.denials import Denials, SharedDenials, open_table
from nanolimit.redis.fault import Unavailable, code_of
from nanolimit.redis.fork import renew_after_fork
from nanolimit.redis.lease import Lease, Loans, Order, checked_lease, clock_s
from nanolimit.redis.limit import Limiting
from nanolimit.redis.name import Names
from nanolimit.redis.policy import Policy, checked_on_error
from nanolimit.remote import enlist

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from typing_extensions import Buffer

    from nanolimit._core import Decision
    from nanolimit.limiter import Key
    from nanolimit.quota import Quota
    from nanolimit.redis.aiowire import AsyncWire
    from nanolimit.redis.counters import RedisStats
    from nanolimit.redis.lease import Due
    from nanolimit.redis.wire import Wire

R = TypeVar("R")

#: What is sent: one script with its keys and arguments; or several, of which each has its answer.
Request = tuple[Any, list[bytes], list[Any]]
#: The same, with the seconds that it may take.
HastyRequest = tuple[Any, list[bytes], list[Any], float]

__all__ = ["Dialog", "Request", "as_buffer", "checked_timeout_s"]

# Failures in a row after which the store, or a node of a Cluster, is left alone, and for how many
# seconds.
FAILURES = 3
PAUSE_S = 1.0

#: What the names of all keys in the store begin with, if nothing else is given.
PREFIX = "nl"

MAX_TIMEOUT_S = 60
MAX_NODES = 1_000_000
_MAX_PREFIX = 200

# What is given back goes out with so many in one write.
RETURNS = 256

_US_PER_SECOND = 1_000_000


class Dialog(Limiting):
    """What the two limiters have in common: all but how one waits for a reply."""

    __slots__ = (
        "__weakref__", "_arguments", "_breaker", "_breakers", "_changing", "_closed", "_counters",
        "_denials", "_guard", "_lease", "_least", "_loans", "_name", "_names", "_place", "_policy",
        "_quotas", "_timeout_s",
    )  # fmt: skip

    def __init__(
        self,
        quota: int | str | Quota | Sequence[str | Quota],
        per: float | timedelta | None,
        wire: Wire | AsyncWire,
        *,
        name: str | None,
        prefix: str,
        on_error: str,
        timeout: float | timedelta,
        deny_cache: bool,
        nodes: int,
        shared: str | os.PathLike[str] | None,
        lease: Lease | None,
    ) -> None:
        self._quotas = quotas = checked_quotas(quota, per)
        self._arguments = script.Arguments(quotas)
        self._names = Names(_checked_prefix(prefix), _given_name(name), quotas)
        self._name = _checked_name(name)
        on_error = checked_on_error(on_error)
        self._timeout_s = checked_timeout_s(timeout)
        if not isinstance(deny_cache, bool):
            raise TypeError(f"deny_cache must be a bool, not {type(deny_cache).__name__}")
        self._lease = checked_lease(lease)
        make = partial(Breaker, FAILURES, PAUSE_S, max(PAUSE_S, 2 * self._timeout_s))
        self._breakers = Breakers(wire, make)
        # Of one server, the only one. What a URL names may turn out to be of a Cluster.
        self._breaker = BY_NODE if wire.clustered else self._breakers.single
        if shared is not None and on_error != "local" and not deny_cache:
            raise TypeError(
                f"shared goes with on_error='local', which counts in it, or with deny_cache=True, "
                f"which keeps denials beside it, not on_error={on_error!r} with deny_cache=False"
            )
        nodes = _checked_nodes(nodes)
        # What is wrong with a shared table is told now, to who makes the limiter.
        if shared is not None:
            shared = _own_table(shared, prefix, _given_name(name), quotas)
        counted_in = shared if on_error == "local" else None
        self._policy = Policy(on_error, quotas, nodes, self._name, PAUSE_S, counted_in)
        self._denials: Denials | SharedDenials | None = Denials() if deny_cache else None
        table: _core.Limiter | None = None
        if deny_cache and shared is not None:
            try:
                table = open_table(shared, self._name)
                self._denials = SharedDenials(table, quotas, self._names.whose)
            except BaseException:
                self._policy.close()
                raise
        self._loans = None if lease is None else Loans(lease, quotas, self._arguments)
        self._counters = Counters()
        # A limiter of the core that never counts. It knows what is a key, and which keys are the
        # same one, what is a cost and what is a batch; so these mean here what they mean there.
        # Its places are those of the table in which denials are shared, if there is one.
        self._guard = _guard(quotas, self._name, table)
        self._place = self._guard.place
        self._least = min(quota.limit for quota in quotas)
        self._closed = False
        # Reentrant, like every lock of the face.
        self._changing = threading.RLock()
        renew_after_fork(self)
        enlist(self)

    # -- what is known without the store

    @property
    def name(self) -> str:
        """What telemetry calls this limiter."""
        return self._name

    @property
    def quota(self) -> Quota:
        """The `Quota` that holds for every key; of several, the first."""
        return self._quotas[0]

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """All quotas that hold for every key, as they were named."""
        return self._quotas

    @property
    def algorithm(self) -> str:
        """How requests are counted: ``"sliding-log"``, exact."""
        return "sliding-log"

    @property
    def on_error(self) -> str:
        """What decides while the store can't be asked."""
        return self._policy.on_error

    @property
    def lease(self) -> Lease | None:
        """What it may take of a hot key at once; None: nothing."""
        return self._lease

    @property
    def degraded(self) -> str | None:
        """Why the store, or a node of a Cluster, is not asked at the moment; None: it is."""
        return self._breakers.why()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def stats(self) -> RedisStats:
        """Return what this object has decided so far: `RedisStats`.

        Raises:
            LimiterClosedError: The limiter is closed.
        """
        self._refuse_if_closed()
        return self._counters.read()

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        head = f"<{type(self).__name__} {self._name!r} {'; '.join(map(str, self._quotas))}"
        if self._lease is not None:
            head += f", leases {self._lease.max_share:.3g} of it for {self._lease.ttl:g} s"
        if self._closed:
            return f"{head}, closed>"
        return f"{head}>" if self.degraded is None else f"{head}, degraded>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled or copied: it has connections. "
            f"Make one in each process, with the same arguments: its counts live in the store"
        )

    # -- arguments

    def _units(self, cost: Any) -> int:
        """Return `cost`; or raise what a `RateLimiter` raises of it."""
        if type(cost) is int and 0 <= cost <= self._least:
            return cost
        self._guard.allow_many((), cost)
        return int(index(cost))

    def _asked(self, key: Key, cost: object) -> tuple[bytes, int]:
        """Return a key's place and the cost, checked. (What `allow` does in a line of its own.)"""
        units = self._units(cost)
        place = self._place(key)
        self._refuse_if_closed()
        return place, units

    def _batch(self, keys: Buffer | Sequence[Key]) -> tuple[tuple[Key, ...], bool]:
        """Return the keys of a batch, all of which are keys; and whether they were a buffer."""
        if isinstance(keys, (list, tuple)):
            keys = tuple(keys)  # other threads may change a list
        self._guard.allow_many(keys, 0)  # a cost of 0 is looked at, and counts nothing
        self._refuse_if_closed()
        if isinstance(keys, tuple):
            return keys, False
        try:
            view = memoryview(keys)  # type: ignore[arg-type]
        except TypeError:
            return tuple(keys), False  # type: ignore[arg-type]
        words = array("Q" if view.format[-1] in "QLN" else "q")
        words.frombytes(view.tobytes())
        return tuple(words), True

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise LimiterClosedError(f"limiter {self._name!r} is closed")

    # -- dialogs

    def _taking(
        self, key: Key, place: bytes, units: int
    ) -> Generator[Request | HastyRequest | Order, Any, tuple[float, int]]:
        """Count a request: when it was asked, and for how long it has to wait then; 0: counted."""
        arguments = self._arguments
        names = self._names.of(key)
        loans = self._loans
        if loans is not None:
            order = loans.order(place, names, units, clock_s())
            if order is not None:
                sent_s = monotonic()
                grant = yield from self._borrowing(order, loans, units)
                if grant.units >= units:
                    return sent_s, 0
                # Less than it wants is all there was: it is denied, and when it fits is asked for
                # within what is left of the time. Where not one fits, more don't.
                left_s = sent_s + self._timeout_s - monotonic()
                if not grant.units or left_s <= 0:
                    return sent_s, grant.wait_us
                again_s = monotonic()
                request = arguments.take, names, arguments.of(units), left_s
                try:
                    wait_us = yield from self._asking(request, again_s, script.wait_us)
                except Unavailable:
                    return sent_s, grant.wait_us  # that it did not fit is known
                return again_s, wait_us
        sent_s = monotonic()
        asked = arguments.take, names, arguments.of(units)
        wait_us = yield from self._asking(asked, sent_s, script.wait_us)
        return sent_s, wait_us

    def _borrowing(
        self, order: Order, loans: Loans, units: int
    ) -> Generator[Order, Any, script.Grant]:
        """Have units lent. He who asks takes his own out of them, if it is enough for him."""
        try:
            grant: script.Grant = yield from self._asking(order, monotonic(), script.grant)
        except BaseException:
            if not order.is_kept:
                loans.failed(order)
            raise
        self._lend(order, grant, units if grant.units >= units else 0)
        return grant

    def _lend(self, order: Order, grant: script.Grant, taken: int) -> None:
        loans = self._loans
        if loans is not None and loans.lend(order, grant, taken):
            self._watch(loans)

    @abstractmethod
    def _watch(self, loans: Loans) -> None:
        """See to it that what is left of the loans is given back at their ends."""

    def _returning(
        self, due: list[Due], until_s: float = math.inf
    ) -> Generator[list[Request], Any, None]:
        """Give back what nobody uses any more. Nothing is sent twice: else it is lost.

        `until_s`: when nothing more is sent, by `monotonic`.
        """
        while due and monotonic() < until_s:
            part, due = due[:RETURNS], due[RETURNS:]
            requests: list[Request] = [
                (script.RETURN, loan.names, self._arguments.returned(units, loan.stamp))
                for loan, units in part
            ]
            try:
                yield from self._asking_each(requests, monotonic())
            except Unavailable:
                return
            for loan, _ in part:
                self._forget(loan.place)  # what was refused may fit now

    def _allowing(
        self, key: Key, place: bytes, units: int
    ) -> Generator[Request | HastyRequest | Order, Any, bool]:
        """Of `allow`, past the cache."""
        denials = self._denials
        epoch = None if denials is None else denials.epoch
        try:
            sent_s, wait_us = yield from self._taking(key, place, units)
        except Unavailable as fault:
            return self._decided_without(key, units, fault)
        return self._decided(key, place, units, sent_s, wait_us, epoch)

    def _decided_without(self, key: Key, units: int, fault: Unavailable) -> bool:
        """Have the policy decide on an `allow`."""
        allowed = self._policy.allow(key, units, fault)
        self._counters.count(allowed, not allowed, degraded=True)
        return allowed

    def _decided(
        self, key: Key, place: bytes, units: int, sent_s: float, wait_us: int, epoch: object
    ) -> bool:
        """Tell of what the store has decided on an `allow`, and keep it if it was denied."""
        if not wait_us:
            self._counters.count_allowed()
            if telemetry.is_wanted("allowed"):
                telemetry.emit("allowed", units, self._name, key)
            return True
        if self._denials is not None:
            self._denials.put(place, units, sent_s, wait_us / _US_PER_SECOND, epoch)
        self._tell(False, key, units)
        return False

    def _checking(self, key: Key, place: bytes, units: int) -> Generator[Request, Any, Decision]:
        """Of `check`, with a cost."""
        denials = self._denials
        epoch: object = None
        sent_s = monotonic()
        if denials is not None:
            epoch = denials.epoch
            # To repeat it, all of the answer must be known, and for this cost.
            told = denials.told(place, units, sent_s)
            if told is not None:
                self._repeat(key, units)
                return told
        request = script.TELL, self._names.of(key), self._arguments.of(units)
        sent_s = monotonic()
        read = partial(script.decision, self._quotas, cost=units)
        try:
            decision: Decision = yield from self._asking(request, sent_s, read)
        except Unavailable as fault:
            decision = self._policy.check(key, units, fault)
            self._counters.count(decision.allowed, not decision.allowed, degraded=True)
            return decision
        if denials is not None and not decision.allowed:
            retry_s = decision.retry_after
            denials.put(place, units, sent_s, retry_s, epoch, decision, monotonic())
        self._tell(decision.allowed, key, units)
        return decision

    def _peeking(self, key: Key, units: int) -> Generator[Request, Any, Decision]:
        """Of `peek`, and of `check` with a cost of 0."""
        request = script.LOOK, self._names.of(key), self._arguments.of(units)
        read = partial(script.decision, self._quotas, cost=units)
        try:
            decision: Decision = yield from self._asking(request, monotonic(), read)
        except Unavailable as fault:
            return self._policy.peek(key, units, fault)
        return decision

    def _resetting(self, key: Key, place: bytes) -> Generator[Request, Any, bool]:
        """Of `reset`."""
        request = script.RESET, self._names.of(key), self._arguments.of(0)
        loans = self._loans
        if loans is not None:
            # Before it is sent: what is used afterwards would be counted nowhere.
            loans.bar(place)
        try:
            was_there = yield from self._asking(request, monotonic(), bool)
        except Unavailable as fault:
            return self._policy.reset(key, fault)
        finally:
            # Also where nobody waits for the reply any more.
            if loans is not None:
                loans.unbar(place)
            self._forget(place)
        # What was counted here in the meantime goes as well.
        was_here = self._policy.reset(key)
        return was_there or was_here

    def _attempting(
        self, key: Key, place: bytes, units: int
    ) -> Generator[Request | HastyRequest | Order, Any, tuple[bool, float]]:
        """Of `acquire`: counted, or after how many seconds to ask again.

        A request that waits is not a denied one: nobody is told of it.
        """
        loans = self._loans
        if loans is not None and loans.take(place, units, clock_s()):
            self._tell_leased(key, units)
            return True, 0.0
        denials = self._denials
        epoch: object = None
        sent_s = monotonic()
        if denials is not None:
            epoch = denials.epoch
            left_s = denials.left_s(place, units, sent_s)
            if left_s:
                return False, left_s
        try:
            sent_s, wait_us = yield from self._taking(key, place, units)
        except Unavailable as fault:
            allowed, wait_s = self._policy.attempt(key, units, fault)
            if allowed:
                self._counters.count(1, 0, degraded=True)
            return allowed, wait_s
        if not wait_us:
            self._tell(True, key, units)
            return True, 0.0
        wait_s = wait_us / _US_PER_SECOND
        if denials is not None:
            denials.put(place, units, sent_s, wait_s, epoch)
        # From when it was sent: what the reply took is over already.
        return False, sent_s + wait_s - monotonic()

    def _trying(
        self, key: Key, place: bytes, units: int
    ) -> Generator[Request, Any, tuple[Decision, float]]:
        """Of `slot`, and of `limit` with ``wait=True``: as `_attempting`, but with a Decision."""
        denials = self._denials
        epoch: object = None
        sent_s = monotonic()
        if denials is not None:
            epoch = denials.epoch
            told = denials.told(place, units, sent_s)
            if told is not None:
                return told, denials.left_s(place, units, sent_s)
        request = script.TELL, self._names.of(key), self._arguments.of(units)
        sent_s = monotonic()
        read = partial(script.decision, self._quotas, cost=units)
        try:
            decision: Decision = yield from self._asking(request, sent_s, read)
        except Unavailable as fault:
            decision = self._policy.claim(key, units, fault)
            if decision.allowed:
                self._counters.count(1, 0, degraded=True)
            return decision, self._policy.wait_s(decision)
        if decision.allowed:
            self._tell(True, key, units)
            return decision, 0.0
        retry_s = decision.retry_after
        if denials is not None:
            denials.put(place, units, sent_s, retry_s, epoch, decision, monotonic())
        return decision, sent_s + retry_s - monotonic()

    def _allowing_many(
        self, keys: tuple[Key, ...], units: int, clustered: bool
    ) -> Generator[Request | list[Request], Any, list[bool]]:
        """Of `allow_many`. In order, and all keys are looked at before anything is sent.

        `clustered`: keys of several slots can't go in one call. Then a node that fails takes only
        its own keys along.
        """
        names = [self._names.of(key) for key in keys]
        args = self._arguments.of(units)
        answers = [True] * len(keys)
        places = [self._place(key) for key in keys]
        denials = self._denials
        epoch: object = None
        left: Sequence[int] = range(len(keys))
        loans = self._loans
        if loans is not None and len(loans):
            now_s = clock_s()
            left = [i for i in left if not loans.take(places[i], units, now_s)]
            for i in sorted(set(range(len(keys))).difference(left)):
                self._tell_leased(keys[i], units)
        if denials is not None:
            now_s = monotonic()
            for i in left:
                answers[i] = not denials.left_s(places[i], units, now_s)
                if not answers[i]:
                    self._repeat(keys[i], units)
            left = [i for i in left if answers[i]]
        at_once = script.BATCH_KEYS
        failed: set[Breaker] = set()
        start = 0
        while start < len(left):
            part = left[start : start + at_once]
            if denials is not None:
                epoch = denials.epoch
            sent_s = monotonic()
            try:
                if clustered:
                    calls = [(self._arguments.take, names[i], args) for i in part]
                    waits_us = yield from self._asking_each(calls, sent_s, script.wait_us, failed)
                else:
                    flat = [name for i in part for name in names[i]]
                    read = partial(script.waits_us, number=len(part))
                    waits_us = yield from self._asking((script.BATCH, flat, args), sent_s, read)
                    if any(isinstance(wait_us, Unavailable) for wait_us in waits_us):
                        # Something is wrong with a key, and nothing with the store.
                        self._counters.count_failure(unknown=False)
            except Unavailable as fault:
                if not clustered and fault.reason.startswith("CROSSSLOT"):
                    clustered = True  # what a URL names turns out to be one; nothing ran
                    continue
                # The rest is not asked for either: a batch does not wait for the store again and
                # again. Of a Cluster, that is left to those of the nodes that have failed.
                if clustered:
                    self._decide_many(part, keys, units, fault, answers)
                    start += at_once
                    continue
                self._decide_many(left[start:], keys, units, fault, answers)
                return answers
            start += at_once
            lost: list[int] = []
            fault_of_part = None
            for i, wait_us in zip(part, waits_us, strict=True):
                if isinstance(wait_us, Unavailable):
                    fault_of_part = wait_us
                    lost.append(i)
                    continue
                answers[i] = not wait_us
                if wait_us and denials is not None:
                    wait_s = wait_us / _US_PER_SECOND
                    denials.put(places[i], units, sent_s, wait_s, epoch)
                self._tell(answers[i], keys[i], units)
            if fault_of_part is not None:
                if not clustered:
                    lost.extend(left[start:])
                self._decide_many(lost, keys, units, fault_of_part, answers)
                if not clustered:
                    return answers
        return answers

    def _decide_many(
        self,
        which: Sequence[int],
        keys: tuple[Key, ...],
        units: int,
        fault: Unavailable,
        answers: list[bool],
    ) -> None:
        """Have the policy decide on some keys of a batch."""
        decided = self._policy.allow_many([keys[i] for i in which], units, fault)
        for i, allowed in zip(which, decided, strict=True):
            answers[i] = allowed
        allowed_count = sum(decided)
        self._counters.count(allowed_count, len(decided) - allowed_count, degraded=True)

    # -- the store, as it is

    def _asking(
        self, request: R, now_s: float, read: Callable[[Any], Any]
    ) -> Generator[R, Any, Any]:
        """Send one request, unless the store is left alone now. It is sent once, or not at all.

        Raises:
            Unavailable: It was not asked, or has not answered, or not what `read` understands.
        """
        breaker = self._breaker
        ticket = breaker.enter(now_s)
        if ticket is None:
            asked: Any = request
            names = (asked if type(asked) is tuple else asked.request)[1]
            breaker, ticket = self._entered(names[0], now_s)
        try:
            reply = script.understood(read, (yield request))
        except Unavailable as fault:
            self._failed(breaker, ticket, fault)
            raise
        except BaseException:  # cancelled, or a signal handler raised
            breaker.abandoned(ticket)
            raise
        if breaker.succeeded(ticket):
            self._recovered(breaker)
        return reply

    def _asking_each(
        self,
        requests: list[Request],
        now_s: float,
        read: Callable[[Any], Any] = int,
        failed: set[Breaker] | None = None,
    ) -> Generator[list[Request], Any, list[Any]]:
        """Send several requests at once, of which each has a reply or a fault of its own.

        `failed`: those of nodes that are not to be asked; those that fail are added.

        Raises:
            Unavailable: None of them was asked, or answered.
        """
        failed = set() if failed is None else failed
        breakers = [self._breaker_of(names[0]) for _, names, _ in requests]
        tickets: dict[Breaker, int] = {}
        for breaker in dict.fromkeys(breakers):
            ticket = None if breaker in failed else breaker.enter(now_s)
            if ticket is not None:
                tickets[breaker] = ticket
        if not tickets:
            raise self._not_asked(breakers[0])
        sent = [i for i, breaker in enumerate(breakers) if breaker in tickets]
        try:
            replies: list[Any] = yield [requests[i] for i in sent]
        except Unavailable as fault:
            self._counters.count_failure(unknown=fault.outcome_unknown)
            for breaker, ticket in tickets.items():
                self._charge(breaker, ticket, fault)
            failed.update(tickets)
            raise
        except BaseException:
            for breaker, ticket in tickets.items():
                breaker.abandoned(ticket)
            raise
        answers: list[Any] = [None] * len(requests)
        if len(sent) < len(requests):
            answers = [self._not_asked(breaker) for breaker in breakers]
        faults: list[Unavailable] = []
        lost: dict[Breaker, Unavailable] = {}
        for i, reply in zip(sent, replies, strict=True):
            answers[i] = reply
            if not isinstance(reply, Unavailable):
                try:
                    answers[i] = script.understood(read, reply)
                    continue
                except Unavailable as fault:
                    answers[i] = fault
            faults.append(answers[i])
            if not _is_of_key(answers[i]):
                lost.setdefault(breakers[i], answers[i])
        if faults:
            self._counters.count_failure(unknown=any(each.outcome_unknown for each in faults))
        for breaker, ticket in tickets.items():
            if breaker in lost:
                failed.add(self._charge(breaker, ticket, lost[breaker]))
            elif breaker.succeeded(ticket):
                self._recovered(breaker)
        return answers

    # -- whom to leave alone

    def _breaker_of(self, name: bytes) -> Breaker:
        """Return the breaker of whoever has the list of this name."""
        breakers = self._breakers
        while True:
            breaker = breakers.of(name)
            if breaker is not None:
                return breaker
            self._follow()

    def _follow(self) -> None:
        """Go by the map of slots, which has changed."""
        self._breaker = BY_NODE
        for gone in self._breakers.follow():
            self._recovered(gone)

    def _entered(self, name: bytes, now_s: float) -> tuple[Breaker, int]:
        """Ask for leave where there was none for all: of a Cluster, each node has a breaker.

        Raises:
            Unavailable: It is left alone, or there is just one.
        """
        breaker = self._breaker_of(name)
        ticket = None if breaker is self._breaker else breaker.enter(now_s)
        if ticket is None:
            raise self._not_asked(breaker)
        return breaker, ticket

    def _not_asked(self, breaker: Breaker) -> Unavailable:
        who = "it" if breaker.node is None else breaker.node
        return Unavailable(f"{who} is left alone for now, as it failed before: {breaker.reason}")

    def _failed(self, breaker: Breaker, ticket: int, fault: Unavailable) -> None:
        self._counters.count_failure(unknown=fault.outcome_unknown)
        self._charge(breaker, ticket, fault)

    def _charge(self, breaker: Breaker, ticket: int, fault: Unavailable) -> Breaker:
        """Report a failure to the breaker of whom it is a failure, and return that."""
        if _is_of_key(fault):
            if breaker.succeeded(ticket):
                self._recovered(breaker)
            return breaker
        now_s = monotonic()
        if fault.node is not None and fault.node != breaker.node:
            # Sent on; or not sent, as another had taken the time; or let in before it was known who
            # serves what.
            other = self._breakers.at(fault.node)
            if other is None:
                self._follow()
                other = self._breakers.at(fault.node)
            if other is not None:
                breaker.abandoned(ticket)
                current = other.enter(now_s) if other.state == "closed" else None
                if current is None:
                    return other
                breaker, ticket = other, current
        # Not the exception, which would hold on to keys.
        breaker.reason = fault.reason
        if (
            breaker.failed(ticket, now_s, fault.origin)
            and self._breakers.at(breaker.node) is breaker  # its node still serves something
            and telemetry.is_wanted("degraded")
        ):
            more: dict[str, object] = {"reason": fault.reason, "on_error": self._policy.on_error}
            self._tell_of(breaker, "degraded", 1, more)
        return breaker

    def _recovered(self, breaker: Breaker) -> None:
        if telemetry.is_wanted("recovered"):
            lasted_s = monotonic() - breaker.opened_s
            self._tell_of(breaker, "recovered", lasted_s, {"reason": breaker.reason})

    def _tell_of(self, breaker: Breaker, event: str, count: float, more: dict[str, object]) -> None:
        if breaker.node is not None:
            more["node"] = str(breaker.node)
        telemetry.emit(event, count, self._name, None, more)

    # -- what is told of a decision

    def _tell(self, allowed: bool, key: Key, units: int) -> None:
        self._counters.count(allowed, not allowed)
        event = "allowed" if allowed else "denied"
        if telemetry.is_wanted(event):
            telemetry.emit(event, units, self._name, key)

    def _repeat(self, key: Key, units: int) -> None:
        """Tell of a denial that came out of the cache."""
        self._counters.count_repeated()
        if telemetry.is_wanted("denied"):
            telemetry.emit("denied", units, self._name, key)

    def _tell_leased(self, key: Key, units: int) -> None:
        """Tell of a request that was served from a lease."""
        self._counters.count_leased()
        if telemetry.is_wanted("allowed"):
            telemetry.emit("allowed", units, self._name, key)

    def _forget(self, place: bytes) -> None:
        if self._denials is not None:
            self._denials.forget(place)

    def _shut(self) -> bool:
        """Close what is here; whether it was open."""
        with self._changing:
            if self._closed:
                return False
            self._closed = True
        if self._denials is not None:
            self._denials.close()
        return True

    def after_fork(self) -> None:
        """In the child: a thread of the parent may have held a lock."""
        self._changing = threading.RLock()


def _is_of_key(fault: Unavailable) -> bool:
    """Whether the server is well: something else stands under a key's name."""
    return code_of(fault.reason) == "WRONGTYPE"


def as_buffer(answers: list[bool]) -> memoryview:
    """Return the answers to a buffer of keys, as `RateLimiter.allow_many` does."""
    buffer: Any = memoryview(bytearray(answers)).cast("?")
    return buffer  # type: ignore[no-any-return]


def _own_table(
    shared: str | os.PathLike[str], prefix: str, name: str | None, quotas: tuple[Quota, ...]
) -> str | os.PathLike[str]:
    """Return the shared table of those who count together in the store: nobody else's.

    Not the one of that very name, nor another limiter's: the limits there may be others.
    """
    what = "; ".join(map(str, quotas)) if name is None else name
    return table_of(shared, what if prefix == PREFIX else f"{prefix} {what}")  # type: ignore[no-any-return]


def _guard(
    quotas: tuple[Quota, ...], name: str, kin: _core.Limiter | None
) -> _core.Limiter | _core.Bundle:
    """Make the guard; `kin`: by whose secret keys have their places, if that matters."""
    engines: list[_core.Limiter] = []
    for quota in quotas:
        engines.append(
            _core.Limiter(
                quota,
                limit=quota.limit,
                window_ns=quota.window_ns,
                name=name,
                max_keys=1,
                on_full="allow",
                clock=None,
                kin=engines[0] if engines else kin,
            )
        )
    return engines[0] if len(engines) == 1 else _core.Bundle(engines)


def _given_name(name: object) -> str | None:
    return None if name is None else _checked_name(name)


def _checked_prefix(prefix: object) -> str:
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a str, not {type(prefix).__name__}")
    if not 1 <= len(prefix) <= _MAX_PREFIX:
        raise ValueError(f"prefix must have 1 to {_MAX_PREFIX} characters, not {len(prefix)}")
    return prefix


def checked_timeout_s(timeout: object) -> float:
    timeout_ns = nanoseconds("timeout", timeout)
    if not 0 < timeout_ns <= MAX_TIMEOUT_S * NS_PER_SECOND:
        raise ValueError(
            f"timeout must be above 0 and at most {MAX_TIMEOUT_S} seconds, not {shown(timeout)}"
        )
    return timeout_ns / NS_PER_SECOND


def _checked_nodes(nodes: object) -> int:
    number = whole_number("nodes", nodes)
    if not 1 <= number <= MAX_NODES:
        raise ValueError(f"nodes must be from 1 to {MAX_NODES}, not {shown(number)}")
    return number
