"""RateLimiter: what a user holds.

It validates what it is made of, makes the core's limiter, and hands out that one's own bound
methods: ``limiter.allow`` *is* the method of the core, so a check is one C call and no Python runs
on its way. That is why the verbs stand in a class of their own: `Verbs` gives their signatures and
documentation, `RateLimiter` has a slot of the same name for each.
"""

from __future__ import annotations

import os
import threading
from textwrap import dedent
from typing import TYPE_CHECKING, Literal, NoReturn, overload

from nanolimit import _core
from nanolimit.clock import shown
from nanolimit.errors import LimiterClosedError, NanolimitError
from nanolimit.quota import Quota, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
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
    from uuid import UUID

    from typing_extensions import Buffer, Self

    from nanolimit._core import Decision, Stats

    IPObject = IPv4Address | IPv4Interface | IPv4Network | IPv6Address | IPv6Interface | IPv6Network
    Key = str | bytes | int | UUID | IPObject | tuple["Key", ...]

__all__ = ["RateLimiter"]

MAX_KEYS = 1 << 31
_ON_FULL = ("allow", "deny", "evict")
_MAX_NAME = 200

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


class Verbs:
    """What a limiter does. The methods of a `RateLimiter`, with their documentation.

    A key says who asks: a str, bytes, int, `uuid.UUID`, an address of `ipaddress`, or a tuple of
    keys. ``1``, ``"1"``, ``b"1"`` and ``("1",)`` are four different users; ``True`` is ``1``, as
    in a dict. Every verb is thread-safe, and raises `LimiterClosedError` after `close`.
    """

    __slots__ = ("_engine",)

    _engine: _core.Limiter

    def allow(self, key: Key, cost: int = 1) -> bool:
        """Say whether the request fits into the key's window, and count it if it does.

        Args:
            key: Who asks.
            cost: Units that the request takes, 0 to the limit, all or nothing. 0 always fits and
                counts nothing.

        Returns:
            True if it was allowed and counted; False if it was denied, which leaves no trace in
            the key's log.

        Raises:
            TypeError: The key is of a type that is no key, or `cost` is no int.
            ValueError: `cost` is below 0 or above the limit, so that it could never fit; or a
                clock of one's own gave a time out of range.

        A bounded amount of work, whatever the number of keys: well under a microsecond.
        """
        return self._engine.allow(key, cost)

    def check(self, key: Key, cost: int = 1) -> Decision:
        """Do what `allow` does, and tell more: what remains, and when to come again.

        Returns:
            A `Decision`. It is true if the request was allowed.

        Raises:
            TypeError: As `allow`.
            ValueError: As `allow`.
        """
        return self._engine.check(key, cost)

    def peek(self, key: Key, cost: int = 1) -> Decision:
        """Say what `check` would say now, and count nothing.

        Returns:
            A `Decision`; its `remaining` is what fits now, before the request.

        Raises:
            TypeError: As `allow`.
            ValueError: As `allow`.
        """
        return self._engine.peek(key, cost)

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

        A fixed amount of work. Under load, each counter is right, but they are not all read at
        the same instant.
        """
        return self._engine.stats()

    def close(self) -> None:
        """Give the memory back. Using the limiter afterwards raises `LimiterClosedError`.

        Calls that other threads have under way are finished first. Closing twice is fine. A
        limiter that is forgotten gives its memory back as well; this is for saying when.
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
    names = method.__code__.co_varnames[1 : method.__code__.co_argcount]
    arguments = ", ".join("cost=1" if name == "cost" else name for name in names)
    head = f"{verb}({arguments}) -> {method.__annotations__['return']}"
    # Python 3.13 takes the indentation off by itself; with -OO there is no text.
    first, _, rest = (method.__doc__ or "").partition("\n")
    return f"{head}\n\n{first}\n{dedent(rest)}"


class RateLimiter(Verbs):
    """An exact sliding-window limit for each of very many keys.

    In any window of length `per`, at most `limit` units of a key are allowed, and a request is
    denied only if allowing it would break that. A request counts until exactly `per` has passed.

    ```python
    limiter = RateLimiter(5, per=60)
    limiter = RateLimiter("5/minute", name="api")
    if not limiter.allow("user:42"):
        ...  # come again later
    ```

    Args:
        quota: The limit as an int, to go with `per`; or the whole quota as a `Quota` or as text:
            ``"5/minute"``, ``"100/15m"``, ``"10 per 2 hours"``. 5 when left out.
        per: The length of the window for a limit given as an int: seconds, or a `timedelta`.
            A minute when left out.
        name: What telemetry and `repr` call it. ``limiter-1``, ``limiter-2``, ... when left out.
        max_keys: How many keys may be live at a time, 1 to 2**31. Memory is taken as keys come,
            about 60 bytes for each.
        on_full: What happens to an unknown key when there is no room: ``"allow"`` lets it pass
            uncounted, ``"deny"`` refuses it, ``"evict"`` forgets the key that was idle longest
            among a few, so that the limit is not exact any more for that one. A known key is
            decided by its log.
        clock: Any callable that returns float seconds, such as a `ManualClock`. The system's
            monotonic clock when left out, which is fastest.
        shared: For the shared table of several processes, which is still to come: leave it out.

    Raises:
        TypeError: An argument is of the wrong type, or `per` is given besides a quota that has it.
        ValueError: An argument is out of range or is not understood.
        NanolimitError: `shared` is given.

    Thread-safe, with and without the GIL. After a fork the child goes on with a copy of its own.
    It can be weakly referenced, but not pickled or copied. On a free-threaded build, threads that
    each take the method once, ``allow = limiter.allow``, scale better than those that go through a
    shared global, above all before 3.14; from 3.14t on, a limiter that is forgotten goes at the
    next garbage collection: `close` it to give its memory back at once.
    """

    # The slots are named like the verbs and so come before them. `help` shows their text.
    __slots__ = {
        **{verb: _slot_text(verb) for verb in _VERBS},
        "__weakref__": "Weak references to the limiter.",
        "_max_keys": "The bound of live keys, for repr.",
    }

    _max_keys: int

    def __init__(
        self,
        quota: int | str | Quota = 5,
        per: float | timedelta | None = None,
        *,
        name: str | None = None,
        max_keys: int = 1_000_000,
        on_full: Literal["allow", "deny", "evict"] = "allow",
        clock: Callable[[], float] | None = None,
        shared: None = None,
    ) -> None:
        checked_quota = _checked_quota(quota, per)
        self._max_keys = _checked_max_keys(max_keys)
        _check_on_full(on_full)
        if clock is not None and not callable(clock):
            raise TypeError(
                f"clock must be a callable that returns seconds, not {type(clock).__name__}"
            )
        if shared is not None:
            raise NanolimitError(
                "shared= is not there yet: the table that processes share is still to come; "
                "leave it out to make a limiter of this process"
            )
        self._engine = engine = _core.Limiter(
            checked_quota,
            limit=checked_quota.limit,
            window_ns=checked_quota.window_ns,
            name=_checked_name(name),
            max_keys=self._max_keys,
            on_full=on_full,
            clock=clock,
        )
        # Through the slots themselves, not setattr: a subclass that overrides a verb keeps its
        # own, and reaches this one with super().
        # Where Python is free-threaded, threads that share the limiter need not pass its reference
        # count and the method's to and fro between their cores; elsewhere this does nothing.
        for verb, slot in _SLOTS:
            method = getattr(engine, verb)
            _core._defer_refcount(method)
            slot.__set__(self, method)
        _core._defer_refcount(self)

    @property
    def quota(self) -> Quota:
        """The `Quota` that holds for every key."""
        return self._engine.quota

    @property
    def name(self) -> str:
        """What telemetry calls this limiter."""
        return self._engine.name

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._engine.closed

    @property
    def core(self) -> _core.Limiter:
        """The core's limiter, which Cython code takes (``cimport nanolimit``)."""
        return self._engine

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
        head = f"<{type(self).__name__} {engine.name!r} {engine.quota}"
        try:
            return f"{head}, {engine.stats().keys} of {self._max_keys} keys>"
        except LimiterClosedError:
            return f"{head}, closed>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled or copied: its counts live in this "
            f"process. Make one in each process"
        )


_SLOTS = tuple((verb, vars(RateLimiter)[verb]) for verb in _VERBS)


def _checked_quota(quota: object, per: float | timedelta | None) -> Quota:
    if isinstance(quota, (Quota, str)):
        if per is not None:
            raise TypeError(
                f"per goes with a limit given as an int; {shown(quota)} says its window itself"
            )
        return quota if isinstance(quota, Quota) else Quota.parse(quota)
    if isinstance(quota, bool) or not hasattr(type(quota), "__index__"):
        raise TypeError(
            f"the limit must be an int, a str such as '5/minute' or a Quota, "
            f"not {type(quota).__name__}"
        )
    return Quota(whole_number("limit", quota), 60.0 if per is None else per)


def _checked_max_keys(max_keys: object) -> int:
    number = whole_number("max_keys", max_keys)
    if not 1 <= number <= MAX_KEYS:
        raise ValueError(f"max_keys must be from 1 to 2**31, not {shown(number)}")
    return number


def _check_on_full(on_full: object) -> None:
    if not isinstance(on_full, str):
        raise TypeError(f"on_full must be a str, not {type(on_full).__name__}")
    if on_full not in _ON_FULL:
        raise ValueError(f"on_full must be 'allow', 'deny' or 'evict', not {shown(on_full)}")


def _checked_name(name: object) -> str:
    if name is None:
        return _next_name()
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    if not 1 <= len(name) <= _MAX_NAME:
        raise ValueError(f"name must have 1 to {_MAX_NAME} characters, not {len(name)}")
    return name
