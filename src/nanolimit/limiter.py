"""RateLimiter: what a user holds.

It validates what it is made of, makes the core's limiter, and hands out that one's own bound
methods: ``limiter.allow`` *is* the method of the core, so a check is one C call and no Python runs
on its way. That is why the verbs stand in a class of their own: `Verbs` gives their signatures and
documentation, `RateLimiter` has a slot of the same name for each.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterable
from functools import partial
from textwrap import dedent
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

from nanolimit import _core
from nanolimit.algorithm import DEFAULT, checked_algorithm, checked_max_log
from nanolimit.backoff import Backoff
from nanolimit.clock import NS_PER_SECOND, nanoseconds, shown
from nanolimit.errors import LimiterClosedError
from nanolimit.policy import Policies, maker
from nanolimit.quota import Quota, checked_quotas, whole_number
from nanolimit.top import Offenders, checked_track_top

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from datetime import timedelta
    from ipaddress import (
        IPv4Address,
        IPv4Interface,
        IPv4Network,
        IPv6Address,
        IPv6Interface,
        IPv6Network,
    )
    from types import TracebackType
    from typing import ParamSpec, TypeVar
    from uuid import UUID

    from typing_extensions import Buffer, Self

    from nanolimit._core import Decision, Stats
    from nanolimit.algorithm import Algorithm
    from nanolimit.decorator import Limited, LimitedOr
    from nanolimit.line import Waits
    from nanolimit.reservation import Attempt, Reservation
    from nanolimit.table import Access, Attached, Wanted
    from nanolimit.waiting import Slot

    IPObject = IPv4Address | IPv4Interface | IPv4Network | IPv6Address | IPv6Interface | IPv6Network
    P = ParamSpec("P")
    R = TypeVar("R")
    Key = str | bytes | int | UUID | IPObject | tuple["Key", ...]

__all__ = ["RateLimiter"]

MAX_KEYS = 1 << 31
_ON_FULL = ("allow", "deny", "evict")
_MAX_NAME = 200
_DEFAULT_MAX_KEYS = 1_000_000

# The arguments that only a shared table knows, as they stand in the signature: what is given
# without shared= differs from these.
_SHARED_DEFAULTS = {
    "on_mismatch": "error",
    "mode": 0o600,
    "group": None,
    "stall_timeout": 0.05,
    "on_stall": "allow",
    "typical": None,
    "max_limit": None,
}
_ON_MISMATCH = ("error", "adopt", "replace")
_ON_STALL = ("allow", "deny", "wait")
_MAX_STALL_S = 86_400
_MAX_GROUP = 2**32 - 2

# Reentrant, like every lock of the face: a signal handler may make a limiter while one is made.
_naming = threading.RLock()
_named = 0


def _renew_lock() -> None:
    global _naming
    _naming = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_lock)


def _next_name() -> str:
    global _named
    with _naming:
        _named += 1
        return f"limiter-{_named}"


def _max_log_of(quota: Quota, max_log: int | None) -> int | None:
    """Return the bound for one of several quotas; a log that can't be so long needs none."""
    return max_log if max_log is not None and max_log <= quota.limit else None


class Verbs:
    """What a limiter does. The methods of a `RateLimiter`, with their documentation.

    A key says who asks: a str, bytes, int, `uuid.UUID`, an address of `ipaddress`, or a tuple of
    keys. ``1``, ``"1"``, ``b"1"`` and ``("1",)`` are four different users; ``True`` is ``1``, as
    in a dict. Every verb is thread-safe, and raises `LimiterClosedError` after `close`.

    Of a shared table, a process that was stopped (SIGSTOP, a debugger) may hold a part. Requests
    then wait, and are answered as `on_stall` says; `reset`, `clear` and `evict` raise
    `SharedTableError` when they have waited that long, and may be called again.
    """

    __slots__ = ("_engine",)

    _engine: _core.Limiter | _core.Bundle

    def allow(
        self, key: Key, cost: int = 1, *, quota: Quota | tuple[Quota, ...] | None = None
    ) -> bool:
        """Say whether the request fits into the key's window, and count it if it does.

        Args:
            key: Who asks.
            cost: Units that the request takes, 0 to the limit, all or nothing. 0 always fits and
                counts nothing.
            quota: The limit that holds for this request, in the place of the limiter's own or the
                key's: a `Quota` that was made before, with the window of one of the limiter's; or
                a tuple of them.

        Returns:
            True if it was allowed and counted; False if it was denied, which leaves no trace in
            the key's log.

        Raises:
            TypeError: The key is of a type that is no key, or `cost` is no int.
            ValueError: `cost` is below 0 or above the limit, so that it could never fit; or a
                clock of one's own gave a time out of range; or none of the limiter's quotas has
                the window of `quota`.

        A bounded amount of work, whatever the number of keys: well under a microsecond.
        """
        return self._engine.allow(key, cost, quota=quota)

    def check(
        self, key: Key, cost: int = 1, *, quota: Quota | tuple[Quota, ...] | None = None
    ) -> Decision:
        """Do what `allow` does, and tell more: what remains, and when to come again.

        Returns:
            A `Decision`. It is true if the request was allowed.

        Raises:
            TypeError: As `allow`.
            ValueError: As `allow`.
        """
        return self._engine.check(key, cost, quota=quota)

    def peek(
        self, key: Key, cost: int = 1, *, quota: Quota | tuple[Quota, ...] | None = None
    ) -> Decision:
        """Say what `check` would say now, and count nothing.

        Returns:
            A `Decision`; its `remaining` is what fits now, before the request.

        Raises:
            TypeError: As `allow`.
            ValueError: As `allow`.
        """
        return self._engine.peek(key, cost, quota=quota)

    @overload
    def allow_many(self, keys: Buffer, cost: int = 1) -> memoryview: ...
    @overload
    def allow_many(self, keys: Sequence[Key], cost: int = 1) -> list[bool]: ...
    def allow_many(self, keys: Buffer | Sequence[Key], cost: int = 1) -> memoryview | list[bool]:
        """Decide on many requests in one call, in order, as if `allow` was called one by one.

        The whole batch has one time: the clock is read once. An error changes nothing: all keys
        are looked at before the first is counted.

        Args:
            keys: A sequence of keys; or a one-dimensional buffer of 64-bit integers, signed or
                not, such as a numpy array, which is several times faster and runs without the
                GIL.
            cost: Units that each request takes, as in `allow`.

        Returns:
            A list of bools for a sequence. For a buffer a memoryview of format ``?`` and the same
            length, which ``numpy.asarray`` takes without a copy.

        Raises:
            TypeError: `keys` is a str, bytes, generator or set; a key in it is none (the message
                names its index); a buffer holds something else than 64-bit integers.
            ValueError: A buffer has more than one dimension; or as `allow`.
        """
        return self._engine.allow_many(keys, cost)

    def reset(self, key: Key) -> bool:
        """Forget what the key has used. Its whole quota is free again.

        Returns:
            True if there was a log to forget.

        Raises:
            TypeError: The key is of a type that is no key.
        """
        return self._engine.reset(key)

    def clear(self) -> None:
        """Forget all keys. The counters of `stats` go on.

        Walks the table in small steps without the GIL; other threads go on meanwhile, and a key
        that they use during the walk may be forgotten or not.
        """
        self._engine.clear()

    def evict(self) -> int:
        """Drop the keys whose newest request has left the window, and hand memory back.

        Nobody needs to call it for correctness: idle slots are taken again by themselves. It is
        for handing memory back to the system after a peak.

        Returns:
            How many keys it dropped.

        Walks the table in small steps without the GIL; other threads go on meanwhile.
        """
        return self._engine.evict()

    def stats(self) -> Stats:
        """Return the counters: allowed, denied, keys, evicted, overflowed, memory_bytes, capacity.

        `allowed` and `denied` count requests, not units, decided by allow, check and allow_many;
        `overflowed` those among them that `on_full` decided. `keys` is the number of occupied
        slots, some of which may be idle; ``len(limiter)`` counts exactly, but walks the table.

        Of a shared table they count what all processes did since it was made. Its fill shows in
        three attributes besides: `stalled`, the requests that `on_stall` decided; `log_bytes` and
        `log_capacity_bytes`, the memory for long logs, in use and in all.

        A fixed amount of work. Under load, each counter is right, but they are not all read at
        the same instant.
        """
        return self._engine.stats()

    def close(self) -> None:
        """Give the memory back. Using the limiter afterwards raises `LimiterClosedError`.

        Calls that other threads have under way are finished first. Closing twice is fine. A
        limiter that is forgotten gives its memory back as well; this is for saying when. A shared
        table stays, with its counts, until it is removed or the machine starts anew; this process
        signs off from it, as soon as nobody holds one of the limiter's methods any more.
        """
        self._engine.close()


_VERBS = (
    "allow",
    "check",
    "peek",
    "allow_many",
    "reset",
    "clear",
    "evict",
    "stats",
    "close",
)


def _slot_text(verb: str) -> str:
    """Return what `help` shows for a verb's slot: its signature, which a slot has not, and text."""
    method = vars(Verbs)[verb]
    code = method.__code__
    names = code.co_varnames[1 : code.co_argcount]
    arguments = ", ".join("cost=1" if name == "cost" else name for name in names)
    if code.co_kwonlyargcount:
        arguments += ", *, quota=None"
    head = f"{verb}({arguments}) -> {method.__annotations__['return']}"
    # Python 3.13 takes the indentation off by itself; with -OO there is no text.
    first, _, rest = (method.__doc__ or "").partition("\n")
    return f"{head}\n\n{first}\n{dedent(rest)}"


class RateLimiter(Verbs, Policies, Offenders):
    """An exact sliding-window limit for each of very many keys.

    In any window of length `per`, at most `limit` units of a key are allowed, and a request is
    denied only if allowing it would break that. A request counts until exactly `per` has passed.
    (So it is with the default algorithm; the others take less memory.)

    ```python
    limiter = RateLimiter(5, per=60)
    limiter = RateLimiter("5/minute", name="api")
    if not limiter.allow("user:42"):
        ...  # come again later
    ```

    Args:
        quota: The limit as an int, to go with `per`; or the whole quota as a `Quota` or as text:
            ``"5/minute"``, ``"100/15m"``, ``"10 per 2 hours"``. 5 when left out. Several, up to 8,
            as text ``"10/second; 1000/hour"`` or as a list: then a request must fit into all of
            them, and counts in all or in none.
        per: The length of the window for a limit given as an int: seconds, or a `timedelta`.
            A minute when left out.
        name: What telemetry and `repr` call it. When left out, the name of its shared table, else
            ``limiter-1``, ``limiter-2``, ...
        max_keys: How many keys may be live at a time, 1 to 2**31; 1,000,000 when left out. Memory
            is taken as keys come, about 60 bytes for each. Of a shared table all of it is taken at
            once, so that there it is 100,000 when left out, and 2**30 at most.
        on_full: What happens to an unknown key when there is no room: ``"allow"`` lets it pass
            uncounted, ``"deny"`` refuses it, ``"evict"`` forgets the key that was idle longest
            among a few, so that the limit is not exact any more for that one. A known key is
            decided by its log.
        algorithm: How requests are counted; see "Algorithms" in the documentation.
            ``"sliding-log"``: exact, each request for itself; 4 bytes for each unit of the window,
            or, of limits above 2,047, 8 bytes for each request. The others keep a few words a key
            whatever the limit. ``"gcra"``: a bucket of `limit`
            units that fills evenly, all of it within `per`. ``"fixed-window"``: a window begins
            with a key's first request and ends after exactly `per`. ``"sliding-counter"``: such
            windows follow one another, and what was counted in the one before fades away.
        max_log: A bound for a key's log, where a limit is too large for one entry a request: 16 to
            the limit. The log is exact while it has no more entries than that; further requests
            are put together in slots of time, ``per / (max_log // 2)`` long at most, so that it
            never has more than half as many again. A request leaves such a slot up to its length
            late, and never early: never one too many. Of several quotas it bounds those whose
            limits are larger. No bound when left out.
        backoff: The penalty of a key for denials in a row: a `Backoff`.
        exempt: Keys that have no limit, from the start; `set_exempt` does it later.
        enforce: False only watches: every request is allowed, and those that would have been
            denied are counted (``stats().would_deny``) and told of (`Decision.would_deny`).
        track_top: Keep that many of the keys that are denied most, 1 to 1,000, for `top`; 0, none.
            It costs about 1 KiB for each, and a look at every denial. A shared table has room for
            100 of them, or for more if whoever makes it asks for more, and keeps so many; they are
            counted by those processes that have it on, all together. `clear` and `reset` leave
            them: they are a history.
        clock: Any callable that returns float seconds, such as a `ManualClock`. The system's
            monotonic clock when left out, which is fastest. All who share a table give one or
            none of them does, and theirs must show the same time.
        shared: One count for all processes of this machine (Linux). A name: the table of that name
            in the user's own directory, ``$NANOLIMIT_DIR`` or ``/dev/shm/nanolimit-<uid>``. A str
            with a slash or a `PathLike`: that file, best on a tmpfs. Who comes first makes it,
            the others attach. True: a table without a name, for children that are forked. When
            left out, the limiter counts for this process alone.

            The arguments that follow are for shared tables only.
        on_mismatch: What happens if the table was made for another limit, window, algorithm,
            `max_keys`, `typical` or kind of clock. ``"error"``: a `SharedTableError` that names
            each. ``"adopt"``: the limiter takes the table's (but not another kind of clock).
            ``"replace"``: the new ones hold. If only the limit differs, and the table has room
            for it, then at once and for all; else a new table takes the name, and processes that
            use the old one go on with that until they are restarted.
        mode: Who may open the table's file: ``0o600``, or ``0o660`` with `group`.
        group: The name or number of a group whose members may share the table: for a master that
            is root and workers that are not. It needs ``NANOLIMIT_DIR`` or a path.
        stall_timeout: Seconds, above 0, that a request waits for a process that was stopped in the
            middle of one (SIGSTOP, a debugger). Nobody waits for one that was killed.
        on_stall: What happens then: ``"allow"`` or ``"deny"``, uncounted; or ``"wait"`` on.
        max_limit: The largest limit that there is to be room for: what `update`, `set_quota` and
            the `quota` of a call may ask for. That of `quota` when left out. (A private limiter
            makes room when it is needed.)
        typical: How many requests of its window a live key holds on average: that much memory is
            taken for long logs. The limit, but at most 32 (26 above a limit of 2,047), when left
            out.

    Raises:
        TypeError: An argument is of the wrong type, `per` is given besides a quota that has it, or
            an argument that only a shared table knows without `shared`.
        ValueError: An argument is out of range or is not understood.
        SharedTableError: The shared table can't be used, or not as it was asked for; or this
            platform has none.

    Thread-safe, with and without the GIL. After a fork the child goes on with a copy of its own, or
    with the same table if that is shared. It can be weakly referenced, but not pickled or copied.
    On a free-threaded build, threads that each take the method once, ``allow = limiter.allow``,
    scale better than those that go through a shared global, above all before 3.14; from 3.14t on, a
    limiter that is forgotten goes at the next garbage collection: `close` it to give its memory
    back at once.
    """

    # The slots are named like the verbs and so come before them. `help` shows their text.
    __slots__ = {
        **{verb: _slot_text(verb) for verb in _VERBS},
        "__weakref__": "Weak references to the limiter.",
        "_max_keys": "The bound of live keys, for repr.",
        "_shared": "The path of its shared table, True: it has none, None: it is private.",
        "_clock": "The clock of one's own, for those who wait.",
        "_waits": "The lines of those who wait; None while nobody ever has.",
    }

    _max_keys: int
    _shared: str | Literal[True] | None
    _clock: Callable[[], float] | None
    _waits: Waits | None

    def __init__(
        self,
        quota: int | str | Quota | Sequence[str | Quota] = 5,
        per: float | timedelta | None = None,
        *,
        name: str | None = None,
        max_keys: int | None = None,
        on_full: Literal["allow", "deny", "evict"] = "allow",
        algorithm: Algorithm = "sliding-log",
        max_log: int | None = None,
        backoff: Backoff | None = None,
        exempt: Iterable[Key] = (),
        enforce: bool = True,
        track_top: int = 0,
        clock: Callable[[], float] | None = None,
        shared: str | os.PathLike[str] | Literal[True] | None = None,
        on_mismatch: Literal["error", "adopt", "replace"] = "error",
        mode: int = 0o600,
        group: int | str | None = None,
        stall_timeout: float | timedelta = 0.05,
        on_stall: Literal["allow", "deny", "wait"] = "allow",
        typical: int | None = None,
        max_limit: int | None = None,
    ) -> None:
        quotas = checked_quotas(quota, per)
        algorithm = checked_algorithm(algorithm)
        max_log = checked_max_log(max_log, max(each.limit for each in quotas), algorithm)
        _check_choice("on_full", on_full, _ON_FULL)
        if clock is not None and not callable(clock):
            raise TypeError(
                f"clock must be a callable that returns seconds, not {type(clock).__name__}"
            )
        given = {
            "on_mismatch": on_mismatch,
            "mode": mode,
            "group": group,
            "stall_timeout": stall_timeout,
            "on_stall": on_stall,
            "typical": typical,
            "max_limit": max_limit,
        }
        exempt = _checked_exempt(exempt)
        track_top = checked_track_top(track_top)
        if not isinstance(enforce, bool):
            raise TypeError(f"enforce must be a bool, not {type(enforce).__name__}")
        if backoff is not None and not isinstance(backoff, Backoff):
            raise TypeError(f"backoff must be a Backoff, not {type(backoff).__name__}")
        if shared is None:
            _refuse_without_shared(given)
            self._shared = None
            self._max_keys = _checked_max_keys(max_keys)
            name = _checked_name(name)
            engines: list[_core.Limiter] = []
            for each in quotas:
                engines.append(
                    _core.Limiter(
                        each,
                        limit=each.limit,
                        window_ns=each.window_ns,
                        name=name,
                        max_keys=self._max_keys,
                        on_full=on_full,
                        clock=clock,
                        algorithm=algorithm,
                        make_quota=maker(each),
                        kin=engines[0] if engines else None,
                        max_log=_max_log_of(each, max_log) or 0,
                        track_top=0 if engines else track_top,
                    )
                )
        else:
            engines = self._shared_engines(
                quotas,
                name,
                max_keys,
                on_full,
                algorithm,
                clock,
                shared,
                max_log,
                track_top,
                **given,
            )
        engine = engines[0] if len(engines) == 1 else _core.Bundle(engines)
        self._engine = engine
        if backoff is not None:
            engine.governing().govern(
                after=backoff.after,
                base=nanoseconds("base", backoff.base) / NS_PER_SECOND,
                factor=float(backoff.factor),
                maximum=nanoseconds("maximum", backoff.maximum) / NS_PER_SECOND,
                forgive_ms=backoff.forgive_ms,
                prolong=backoff.prolong,
            )
        if not enforce:
            engine.governing().govern(enforces=False)
        for key in exempt:
            engine.governing().exempt(key, True)
        # Through the slots themselves, not setattr: a subclass that overrides a verb keeps its
        # own, and reaches this one with super().
        # Where Python is free-threaded, threads that share the limiter need not pass its reference
        # count and the method's to and fro between their cores; elsewhere this does nothing.
        for verb, slot in _SLOTS:
            method = getattr(engine, verb)
            _core._defer_refcount(method)
            slot.__set__(self, method)
        if shared is not None:
            _CLOSE.__set__(self, partial(_leave, weakref.ref(self), engine.close))
        self._clock = clock
        self._waits = None
        _core._defer_refcount(self)
        _open[next(_serials)] = self

    def _shared_engines(
        self,
        quotas: tuple[Quota, ...],
        name: str | None,
        max_keys: int | None,
        on_full: str,
        algorithm: Algorithm,
        clock: Callable[[], float] | None,
        shared: str | os.PathLike[str] | Literal[True],
        max_log: int | None,
        track_top: int,
        *,
        on_mismatch: Any,
        mode: Any,
        group: Any,
        stall_timeout: Any,
        on_stall: Any,
        typical: Any,
        max_limit: Any,
    ) -> list[_core.Limiter]:
        """Attach to the shared tables, one for each quota, made now if they are not there."""
        # Here, because few limiters need it.
        from nanolimit import table as tables
        from nanolimit.place import more_of

        if shared is not True:
            called = tables.table_name(shared)
            name = called if name is None else name
        _check_choice("on_mismatch", on_mismatch, _ON_MISMATCH)
        _check_choice("on_stall", on_stall, _ON_STALL)
        access = tables.Access(on_mismatch, _checked_mode(mode, group), _checked_group(group))
        if shared is True and (group is not None or access.mode != 0o600):
            raise TypeError("mode and group go with a table that has a name; shared=True has none")
        stall_ns = _checked_stall(stall_timeout)
        # `typical` goes with the largest limit; the smaller ones hold no more than theirs.
        most = max(quotas, key=lambda quota: quota.limit)
        checked_typical = tables.checked_typical(typical, most)
        wanted = [
            tables.Wanted(
                quota,
                None if max_keys is None else tables.checked_max_keys(max_keys),
                None if checked_typical is None else min(checked_typical, quota.limit),
                own_clock=clock is not None,
                algorithm=algorithm,
                number=number,
                quotas=len(quotas),
                max_limit=_checked_max_limit(max_limit, quota),
                max_log=_max_log_of(quota, max_log),
                track_top=0 if number else track_top,
            )
            for number, quota in enumerate(quotas)
        ]
        tables.require_platform()
        name = _checked_name(name)
        engines: list[_core.Limiter] = []
        for each in wanted:
            place = shared
            if shared is not True and each.number:
                place = more_of(shared, each.number)
            engine, table = _attached(place, each, access, name, on_full, clock, stall_ns, on_stall)
            engines.append(engine)
            if not each.number:
                self._shared = table.path or True
                self._max_keys = table.max_keys

        records = tables.Wanted(
            tables.RECORDS_QUOTA,
            self._max_keys,
            None,
            own_clock=clock is not None,
            algorithm="gcra",
            number=tables.RECORDS_NUMBER,
            sparse=True,
        )

        def open_records() -> _core.Limiter:
            place = shared if shared is True else more_of(shared, tables.RECORDS)
            adopting = access._replace(on_mismatch="adopt")
            return _attached(place, records, adopting, name, "deny", None, stall_ns, on_stall)[0]

        if shared is True:  # children have to find it: now, in case that it is needed
            made = open_records()
            engines[0].open_records = lambda: made
        else:
            engines[0].open_records = open_records
        return engines

    def refund(self, key: Key, cost: int = 1) -> int:
        """Give back units that were counted last, such as those of a request that failed.

        Args:
            key: Whose.
            cost: Units, 0 to the limit.

        Returns:
            How many of them still counted. Units that have left the window are not there to be
            given back.

        Raises:
            TypeError: As `allow`.
            ValueError: As `allow`.
            SharedTableError: A stopped process holds the key.

        Whoever wants exactly the units of one request back takes `reserve`.
        """
        return self._engine.give_back(key, cost)

    def reserve(self, key: Key, cost: int = 1) -> Reservation:
        """Count units whose real number is known only later.

        Returns:
            A `Reservation`: its `ok` says whether they fitted; then `commit` with the real number,
            or `cancel`.

        Raises:
            TypeError: As `allow`.
            ValueError: As `allow`.
        """
        from nanolimit.reservation import Reservation

        return Reservation(self._open_engine(), key, cost)

    def attempt(self, key: Key, cost: int = 1) -> Attempt:
        """Count only failures: a with block that is counted at its entry, unless it succeeds.

        Returns:
            An `Attempt`, for ``with``. Entering it raises `RateLimitExceeded` if it does not fit.
        """
        from nanolimit.reservation import Attempt

        return Attempt(self._open_engine(), key, cost)

    def _open_engine(self) -> _core.Limiter | _core.Bundle:
        engine = self._engine
        if engine.closed:
            raise LimiterClosedError(f"limiter {engine.name!r} is closed")
        return engine

    @property
    def quota(self) -> Quota:
        """The `Quota` that holds for every key; of several, the first.

        Others may change that of a shared table.
        """
        return self._engine.quota

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """All quotas that hold for every key, as they were named: mostly one."""
        return self._engine.quotas

    @property
    def name(self) -> str:
        """What telemetry calls this limiter."""
        return self._engine.name

    @property
    def algorithm(self) -> str:
        """How requests are counted: ``"sliding-log"``, ``"gcra"``, ..."""
        return self._engine.algorithm

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._engine.closed

    @property
    def core(self) -> _core.Limiter:
        """The core's limiter, which Cython code takes (``cimport nanolimit``).

        Raises:
            TypeError: This limiter has several quotas, which Cython code can't ask at once.
        """
        if isinstance(self._engine, _core.Bundle):
            raise TypeError(f"{self!r} has several quotas: the Cython API takes limiters with one")
        return self._engine

    def acquire(self, key: Key, cost: int = 1, timeout: float | timedelta | None = None) -> bool:
        """Wait until the request fits, and count it. For threads.

        Who waits for a key stands in line: nobody overtakes another one, be it a thread or a task,
        that waits for the same key of this limiter. Other keys are not delayed. `allow` and `check`
        stand in no line and may take what is free. A request that waits is not a denied one:
        neither `stats` nor telemetry counts it as such.

        The thread sleeps until the instant at which the request fits. A signal handler may raise
        meanwhile, as Ctrl-C does (not on Windows); the place in line is given back then.

        Args:
            key: Who asks.
            cost: Units that the request takes, as in `allow`. 0 never waits.
            timeout: Seconds to wait at most, or a `timedelta`. 0 tries once, and fails where
                others wait. None waits for ever. A `ManualClock` measures it in its own time.

        Returns:
            True if it was counted; False if the time was up, and nothing was counted.

        Raises:
            TypeError: As `allow`; or `timeout` is no span of time.
            ValueError: As `allow`; or `timeout` is negative, NaN or infinite.
            LimiterClosedError: The limiter is closed, or was while this one waited.
        """
        granted: bool = (_waiting or _import_waiting()).acquire(self, key, cost, timeout)
        return granted

    def acquire_async(
        self, key: Key, cost: int = 1, timeout: float | timedelta | None = None
    ) -> Coroutine[Any, Any, bool]:
        """Wait until the request fits, and count it. For tasks of asyncio, and of trio.

        It is `acquire` to be awaited, and tasks and threads stand in the same line. A task that is
        cancelled gives its place back and has counted nothing. What fits at once is counted without
        a switch to another task.

        Trio needs the extra ``nanolimit[anyio]``.
        """
        coroutine: Coroutine[Any, Any, bool] = (_tasks or _import_tasks()).waited(
            self, key, cost, timeout, False
        )
        return coroutine

    def slot(self, key: Key, cost: int = 1, timeout: float | timedelta | None = None) -> Slot:
        """Return what waits where a block begins: ``with limiter.slot(key):``, or ``async with``.

        Entering is `acquire` (`acquire_async`), and gives the `Decision` that allowed it.

        Raises:
            RateLimitExceeded: On entering, when the time was up. It has the decision and the key.
        """
        from nanolimit.waiting import Slot

        return Slot(self, key, cost, timeout)

    @overload
    def limit(self, function: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def limit(
        self,
        /,
        *,
        key: Key | Callable[..., Key] | None = None,
        cost: int | Callable[..., int] = 1,
        on_denied: None = None,
        wait: bool = False,
        timeout: float | timedelta | None = None,
    ) -> Limited: ...
    @overload
    def limit(
        self,
        /,
        *,
        key: Key | Callable[..., Key] | None = None,
        cost: int | Callable[..., int] = 1,
        on_denied: Callable[..., Coroutine[Any, Any, R]],
        wait: bool = False,
        timeout: float | timedelta | None = None,
    ) -> LimitedOr[R]: ...
    @overload
    def limit(
        self,
        /,
        *,
        key: Key | Callable[..., Key] | None = None,
        cost: int | Callable[..., int] = 1,
        on_denied: Callable[..., R],
        wait: bool = False,
        timeout: float | timedelta | None = None,
    ) -> LimitedOr[R]: ...
    def limit(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        key: Key | Callable[..., Key] | None = None,
        cost: int | Callable[..., int] = 1,
        on_denied: Callable[..., Any] | None = None,
        wait: bool = False,
        timeout: float | timedelta | None = None,
    ) -> Any:
        """Limit the calls of a function, method or coroutine function. A decorator.

        ```python
        @limiter.limit
        def fetch(): ...

        @limiter.limit(key=lambda user, text: user.id, cost=lambda user, text: len(text))
        async def translate(user, text): ...
        ```

        Args:
            function: What is decorated, where nothing else is said.
            key: Who asks: a key for all calls, or a callable that gets the call's arguments and
                returns the key. When left out, the function's name, module and all: one limit for
                the function.
            cost: Units that a call takes, or a callable that gets the call's arguments.
            on_denied: A callable ``on_denied(decision, *args, **kwargs)`` whose result takes the
                place of the function's. Of a coroutine function it may be one itself. When left
                out, `RateLimitExceeded` is raised.
            wait: Whether to wait until the call fits, as `acquire` or `acquire_async` does.
            timeout: Seconds to wait at most; the call is denied then.

        On a method, the first argument is ``self``. It stands below ``@classmethod`` and
        ``@staticmethod``.

        Raises:
            RateLimitExceeded: From the decorated function, when a call is denied.
            TypeError: What is decorated is no function, or a generator; an argument is of the
                wrong type; `timeout` without `wait`.
            ValueError: `cost` or `timeout` is out of range.
        """
        from nanolimit.decorator import Limited

        limited = Limited(self, key, cost, on_denied, wait, timeout)
        return limited if function is None else limited(function)

    def _before_closing(self, waits: Waits) -> None:
        """Have `close` tell those who wait, from now on."""
        from nanolimit.line import closing

        _CLOSE.__set__(self, partial(closing, waits, _CLOSE.__get__(self)))

    def __len__(self) -> int:
        """Count the keys that hold at least one request of their window now; walks the table."""
        return len(self._engine)

    def __bool__(self) -> bool:
        """Be true: an empty limiter is a limiter, and `if limiter` must not walk a table."""
        return True

    def __contains__(self, key: object) -> bool:
        """Say whether the key holds at least one request of its window now."""
        return key in self._engine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        engine = self._engine
        head = f"<{type(self).__name__} {engine.name!r} {'; '.join(map(str, engine.quotas))}"
        if engine.algorithm != DEFAULT:
            head += f", {engine.algorithm}"
        if self._shared is not None:
            head += ", shared" if self._shared is True else f", shared at {self._shared!r}"
        try:
            return f"{head}, {engine.stats().keys} of {self._max_keys} keys>"
        except LimiterClosedError:
            return f"{head}, closed>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        where, mend = "in this process", "Make one in each process"
        if self._shared is not None:
            where = "in a table that this process has open"
            mend = "Make one with the same shared= in each process"
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled or copied: its counts live {where}. {mend}"
        )


# Those that somebody holds, by the order in which they were made: for whoever reports on them.
_open: weakref.WeakValueDictionary[int, RateLimiter] = weakref.WeakValueDictionary()
_serials = itertools.count()


def live_limiters() -> list[RateLimiter]:
    """Return the limiters of this process that are open, in the order in which they were made.

    Thread-safe.
    """
    while True:
        try:
            found = sorted(_open.items())
        except RuntimeError:  # another thread made or forgot one meanwhile
            continue
        return [limiter for _, limiter in found if not limiter.closed]


def hide(limiter: RateLimiter) -> None:
    """Leave it out of `live_limiters`: it is a part of another one, which tells what it decides."""
    while True:
        try:
            serials = [serial for serial, found in _open.items() if found is limiter]
        except RuntimeError:  # as there
            continue
        for serial in serials:
            _open.pop(serial, None)
        return


# What few limiters need, imported when it is. An `import` in the methods would take as long as
# a check at every call.
_waiting: Any = None
_tasks: Any = None


def _import_waiting() -> Any:
    global _waiting
    from nanolimit import waiting

    _waiting = waiting
    return waiting


def _import_tasks() -> Any:
    global _tasks
    from nanolimit import tasks

    _tasks = tasks
    return tasks


def _attached(
    shared: str | os.PathLike[str] | Literal[True],
    wanted: Wanted,
    access: Access,
    name: str,
    on_full: str,
    clock: Callable[[], float] | None,
    stall_ns: int,
    on_stall: str,
) -> tuple[_core.Limiter, Attached]:
    """Attach to one table, made now if it is not there. The limiter, and what its file says."""
    from nanolimit import table as tables

    quota = wanted.quota
    while True:
        with tables.attach(shared, wanted, access) as table:
            same = table.quota.window_ns == quota.window_ns
            engine = _core.Limiter(
                table.quota,
                limit=table.quota.limit,
                window_ns=table.quota.window_ns,
                name=name,
                max_keys=table.max_keys,
                on_full=on_full,
                clock=clock,
                table=table.fd,
                path=table.path,
                stall_ns=stall_ns,
                on_stall=on_stall,
                algorithm=wanted.algorithm,
                make_quota=maker(quota if same else table.quota),
                track_top=wanted.track_top,
            )
            if table.is_replaced():
                # Others put a new table in its place before this one was mapped.
                engine.close()
                continue
            if table.new_limit is not None:
                engine.set_limit(table.new_limit)
            return engine, table


_SLOTS = tuple((verb, vars(RateLimiter)[verb]) for verb in _VERBS)
_CLOSE = vars(RateLimiter)["close"]


class _Closed:
    """What a shared limiter holds in its engine's place once it is closed."""

    __slots__ = ("algorithm", "name", "quota", "quotas", "track_top")

    closed = True

    def __init__(self, engine: _core.Limiter | _core.Bundle) -> None:
        self.name = engine.name
        self.quota = engine.quota
        self.quotas = engine.quotas
        self.algorithm = engine.algorithm
        self.track_top = engine.track_top

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise LimiterClosedError(f"limiter {self.name!r} is closed")

    allow = check = peek = allow_many = reset = clear = evict = stats = give_back = _refuse
    count = governing = denied_most = _refuse
    __len__ = __contains__ = place = _verify = _fingerprint = _refuse

    def close(self) -> None:
        """Nothing is left to close."""


def _leave(limiter: weakref.ref[RateLimiter], close: Callable[[], None]) -> None:
    """Close a shared limiter: without its engine, so that this process is the table's no longer.

    The engine signs off when its last reference goes. Calls that are under way hold one, and so
    they end before that.
    """
    close()
    left = limiter()
    if left is not None and not isinstance(left._engine, _Closed):
        left._engine = closed = _Closed(left._engine)  # type: ignore[assignment]
        for verb, slot in _SLOTS:
            slot.__set__(left, getattr(closed, verb))


def _checked_max_keys(max_keys: object) -> int:
    if max_keys is None:
        return _DEFAULT_MAX_KEYS
    number = whole_number("max_keys", max_keys)
    if not 1 <= number <= MAX_KEYS:
        raise ValueError(f"max_keys must be from 1 to 2**31, not {shown(number)}")
    return number


def _check_choice(parameter: str, value: object, choices: tuple[str, str, str]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{parameter} must be a str, not {type(value).__name__}")
    if value not in choices:
        first, second, third = choices
        raise ValueError(
            f"{parameter} must be {first!r}, {second!r} or {third!r}, not {shown(value)}"
        )


def _refuse_without_shared(given: Mapping[str, object]) -> None:
    if given == _SHARED_DEFAULTS:
        return
    names = [name for name, value in given.items() if value != _SHARED_DEFAULTS[name]]
    need = "needs" if len(names) == 1 else "need"
    raise TypeError(f"{' and '.join(names)} {need} shared=: a private limiter has no such thing")


def _checked_exempt(exempt: object) -> tuple[Any, ...]:
    if isinstance(exempt, (str, bytes)) or not isinstance(exempt, Iterable):
        raise TypeError(f"exempt must be a list of keys, not {type(exempt).__name__}")
    return tuple(exempt)


def _checked_max_limit(max_limit: object, quota: Quota) -> int | None:
    """Return what there is to be room for, as far as this quota is concerned."""
    if max_limit is None:
        return None
    number = whole_number("max_limit", max_limit)
    if number < 1:
        raise ValueError(f"max_limit must be >= 1, got {shown(number)}")
    return Quota(max(number, quota.limit), quota.per).limit


def _checked_mode(mode: object, group: object) -> int:
    number = whole_number("mode", mode)
    if not 0 <= number <= 0o777 or number & 0o600 != 0o600 or number & 0o111:
        raise ValueError(
            f"mode must let the owner read and write and nobody execute, such as 0o600 or 0o660, "
            f"not {shown(number) if number < 0 else oct(number)}"
        )
    if group is not None and not number & 0o040:
        raise ValueError(
            f"mode must let the group in if group is given, such as 0o660, not {oct(number)}"
        )
    return number


def _checked_group(group: object) -> int | str | None:
    if group is None or isinstance(group, str):
        return group
    if isinstance(group, bool) or not hasattr(type(group), "__index__"):
        raise TypeError(f"group must be a name or a number, not {type(group).__name__}")
    number = whole_number("group", group)
    if not 0 <= number <= _MAX_GROUP:
        raise ValueError(f"group must be from 0 to {_MAX_GROUP}, not {shown(number)}")
    return number


def _checked_stall(stall_timeout: object) -> int:
    stall_ns = nanoseconds("stall_timeout", stall_timeout)
    if stall_ns <= 0:
        raise ValueError(f"stall_timeout must be > 0 seconds, got {shown(stall_timeout)}")
    if stall_ns > _MAX_STALL_S * NS_PER_SECOND:
        raise ValueError(
            f"stall_timeout must be <= {_MAX_STALL_S} seconds (a day), got {shown(stall_timeout)}; "
            f"on_stall='wait' waits on"
        )
    return stall_ns


def _checked_name(name: object) -> str:
    if name is None:
        return _next_name()
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    if not 1 <= len(name) <= _MAX_NAME:
        raise ValueError(f"name must have 1 to {_MAX_NAME} characters, not {len(name)}")
    return name
