"""The pacer: what the HTTP clients share. It knows no client, and sends nothing itself.

A call waits for its turn, is sent, and its answer is read for advice. Advice becomes a block of the
key in the limiter: so it holds for every thread, task and transport that shares the limiter, and
for every process where the limiter's table is shared.

A remote limiter has turns and no blocks. Beside it stands a limiter of this process which is never
full and keeps them: so advice holds for all that share the pacer, and not for other machines.
"""

from __future__ import annotations

import logging
import os
import threading
from functools import partial
from http import HTTPStatus
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from nanolimit.clock import NS_PER_SECOND, nanoseconds, shown
from nanolimit.errors import NanolimitError
from nanolimit.integrations.advice import LONGEST_S, advised
from nanolimit.limiter import RateLimiter, hide
from nanolimit.line import checked_timeout, too_long
from nanolimit.quota import Quota, whole_number
from nanolimit.remote import (
    AsyncRemoteRateLimiter,
    Remote,
    RemoteRateLimiter,
    check_key,
    check_kind,
    is_limiter,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import timedelta

    from nanolimit._core import Decision
    from nanolimit.integrations.advice import Headers
    from nanolimit.limiter import Key
    from nanolimit.remote import AnyLimiter

    # `nanolimit.waiting.wait`, or `nanolimit.tasks.waited` to be awaited: gives what was decided
    # last, and whether there is a turn.
    Take = Callable[..., Any]

__all__ = ["IDEMPOTENT", "Call", "Pacer", "origin"]

#: The methods that may be sent twice (RFC 9110, section 9.2.2).
IDEMPOTENT = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"})

_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_RETRIES = 1_000
_LEAST_S = 1e-9  # the shortest block there is

_logger = logging.getLogger("nanolimit")

# Two answers at once: the longer block must win. One lock for all, since answers with advice are
# few; reentrant, like every lock of the face.
_heeding = threading.RLock()


def _renew_lock() -> None:
    global _heeding
    _heeding = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_lock)


def origin(scheme: str, host: str, port: int | None) -> str:
    """Return where a request goes, as a key: ``"https://api.example.org"``.

    In lower case, without the port that the scheme implies (RFC 6454, section 6.2). The same for
    every client, so that they may share a limiter.
    """
    scheme, host = scheme.lower(), host.lower()
    if ":" in host:
        host = f"[{host}]"
    if port is None or port == _DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}"


class Pacer:
    """A limiter, and how calls wait for it and obey servers. See `RateLimitTransport`.

    `take` is how a turn of a `RateLimiter` is waited for, `awaits` whether that is awaited, and
    `where` who waits.

    Thread-safe. It can be pickled if it made its limiter itself, from a quota or from nothing; the
    copy counts for itself.
    """

    __slots__ = (
        "_arguments", "blocks", "key", "limiter", "max_wait_s", "methods", "obey", "retries",
        "statuses", "take", "timeout_s",
    )  # fmt: skip

    limiter: Any
    take: Take
    blocks: RateLimiter
    """What keeps the servers' advice: the limiter itself, unless it is a remote one."""

    key: Callable[[Any], Key]
    timeout_s: float | None
    retries: int
    max_wait_s: float | None
    statuses: frozenset[int]
    methods: frozenset[str]
    obey: bool

    def __init__(
        self,
        limiter: AnyLimiter | Quota | str | None,
        key: Key | Callable[[Any], Key],
        timeout: float | timedelta | None,
        retries: int,
        max_wait: float | timedelta | None,
        statuses: Iterable[int],
        methods: Iterable[str],
        obey: bool,
        take: Take,
        awaits: bool,
        where: str,
    ) -> None:
        if not isinstance(obey, bool):
            raise TypeError(f"obey must be True or False, not {type(obey).__name__}")
        timeout_ns = checked_timeout(timeout)
        self.timeout_s = None if timeout_ns is None else timeout_ns / NS_PER_SECOND
        self.retries = _checked_retries(retries, obey)
        self.max_wait_s = _checked_wait(max_wait)
        self.statuses = _checked_statuses(statuses)
        self.methods = _checked_methods(methods)
        self.obey = obey
        self.limiter = found = _limiter_of(limiter)
        check_kind(found, awaits, where)
        self.take = take
        self.blocks = found
        if isinstance(found, Remote):
            self.blocks = _never_full()
            hide(self.blocks)
            self.take = partial(_awaited_turn if awaits else _turn, self.blocks, take)
        self.key = _key_of(key, self.limiter)
        self._arguments = (
            limiter, key, timeout, self.retries, max_wait, self.statuses, self.methods, obey, take,
            awaits, where,
        )  # fmt: skip

    def call(self, request: Any, method: str, replayable: bool) -> Call:
        """Begin a call. `replayable` says whether its body can be sent again."""
        key = self.key(request)
        again = self.retries if replayable and method.upper() in self.methods else 0
        return Call(self, key, again)

    def heed(self, key: Key, seconds: float) -> bool:
        """Let nobody call for so long; a block that lasts longer stays.

        Returns:
            Whether it holds. It does not in a limiter that only watches, nor in one that has no
            room for more blocks.
        """
        limiter = self.blocks
        try:
            with _heeding:
                before = limiter.peek(key)
                if not before.blocked or before.retry_after < seconds:
                    limiter.block(key, max(seconds, _LEAST_S))
            after = limiter.peek(key)
        except NanolimitError as error:  # the answer is there all the same
            _logger.warning("a server's advice to wait %.3f s is lost: %s", seconds, error)
            return False
        return not (after.blocked and after.allowed)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def __repr__(self) -> str:
        return f"<pacer of {self.limiter!r}>"


class Call:
    """One call of a client, with all its attempts. Each attempt needs a turn of its own."""

    __slots__ = ("_left", "_pacer", "key")

    def __init__(self, pacer: Pacer, key: Key, again: int) -> None:
        self._pacer = pacer
        self._left = again
        self.key: Key = key

    def is_over(self, status: int, headers: Headers) -> bool:
        """Read an answer: heed what it advises, and say whether it is the caller's.

        If it is not, it must be closed, and another attempt made in its turn: which comes when the
        advice is over, because the key is blocked until then.
        """
        pacer = self._pacer
        if not pacer.obey:
            return True
        refused = status in pacer.statuses
        seconds = advised(headers, refused)
        again = refused and self._left > 0
        if seconds is None:
            if not again:
                return True
            # It does not say when: after 1 second, then 2, 4, 8 ...
            seconds = min(2.0 ** (pacer.retries - self._left), LONGEST_S)
        holds = pacer.heed(self.key, seconds) if seconds > 0 else True
        if not again or not holds or seconds > self._patience_s():
            return True
        self._left -= 1
        return False

    def _patience_s(self) -> float:
        """Return how long an attempt may wait, at most."""
        pacer = self._pacer
        bounds = (pacer.max_wait_s, pacer.timeout_s)
        return min((bound for bound in bounds if bound is not None), default=inf)

    def late(self, decision: Decision) -> str:
        """Return what is to be said when the turn does not come in time."""
        pacer = self._pacer
        wait = f"{decision.retry_after:.3f} s"
        most = pacer.max_wait_s
        if most is not None and too_long(decision, most):
            return f"not sent: the server is to be left alone for {wait}, max_wait is {most:g} s"
        if decision.blocked:
            why = f"the server is to be left alone for another {wait}"
        elif decision.allowed:  # it would fit by itself, but others wait
            why = "others were before it in line"
        else:
            why = f"the limit of {decision.quota} has room in {wait}"
        return f"not sent: its turn did not come within timeout={pacer.timeout_s:g} s; {why}"


def _turn(
    blocks: RateLimiter,
    take: Take,
    limiter: RemoteRateLimiter,
    key: Key,
    cost: int,
    timeout_s: float | None,
    patience_s: float | None,
) -> tuple[Decision, bool]:
    """Wait until nothing blocks the key and the store gives a turn: `take` of a remote limiter.

    A turn that is given while a block begins is lost: who sent then would not do as the server
    says.
    """
    over_s = None if timeout_s is None else monotonic() + timeout_s
    decision: Decision
    while True:
        decision, granted = take(blocks, key, cost, _left_s(over_s), patience_s)
        if granted:
            decision, granted = limiter._waited(key, cost, _left_s(over_s))
        if not granted or not blocks.peek(key).blocked:
            return decision, granted


async def _awaited_turn(
    blocks: RateLimiter,
    take: Take,
    limiter: AsyncRemoteRateLimiter,
    key: Key,
    cost: int,
    timeout_s: float | None,
    whole: bool,
    patience_s: float | None,
) -> tuple[Decision, bool]:
    """Do what `_turn` does, for tasks."""
    over_s = None if timeout_s is None else monotonic() + timeout_s
    decision: Decision
    while True:
        decision, granted = await take(blocks, key, cost, _left_s(over_s), whole, patience_s)
        if granted:
            decision, granted = await limiter._waited(key, cost, _left_s(over_s))
        if not granted or not blocks.peek(key).blocked:
            return decision, granted


def _left_s(over_s: float | None) -> float | None:
    return None if over_s is None else max(over_s - monotonic(), 0.0)


def _never_full() -> RateLimiter:
    """Return a bucket that is never empty, for the sake of its blocks and its lines."""
    return RateLimiter(1 << 24, per=1e-6, algorithm="gcra")


def _limiter_of(limiter: object) -> Any:
    if is_limiter(limiter):
        return limiter
    if isinstance(limiter, (str, Quota)):
        return RateLimiter(limiter)
    if limiter is None:
        return _never_full()
    raise TypeError(
        f"limiter must be a RateLimiter, a quota such as '10/second', or None to do only what "
        f"servers say, not {type(limiter).__name__}"
    )


def _key_of(key: Any, limiter: AnyLimiter) -> Callable[[Any], Key]:
    if callable(key):
        return cast("Callable[[Any], Key]", key)
    check_key(limiter, key)  # raises, if it is none
    return lambda request: key


def _checked_retries(retries: object, obey: bool) -> int:
    number = whole_number("retries", retries)
    if not 0 <= number <= _MAX_RETRIES:
        raise ValueError(f"retries must be from 0 to {_MAX_RETRIES}, not {shown(number)}")
    if number and not obey:
        raise ValueError("retries needs obey=True: it is the answer that says when to come again")
    return number


def _checked_wait(max_wait: object) -> float | None:
    if max_wait is None:
        return None
    wait_ns = nanoseconds("max_wait", max_wait)
    if wait_ns < 0:
        raise ValueError(
            f"max_wait must be >= 0 seconds, or None to wait as long as a server says, "
            f"not {shown(max_wait)}"
        )
    return wait_ns / NS_PER_SECOND


def _checked_statuses(statuses: object) -> frozenset[int]:
    if isinstance(statuses, (str, bytes)) or not hasattr(type(statuses), "__iter__"):
        raise TypeError(
            f"statuses must be several numbers such as (429, 503), not {type(statuses).__name__}"
        )
    numbers = [whole_number("statuses", status) for status in statuses]  # type: ignore[attr-defined]
    for number in numbers:
        if not HTTPStatus.BAD_REQUEST <= number <= 599:
            raise ValueError(f"statuses must be from 400 to 599, not {shown(number)}")
    return frozenset(numbers)


def _checked_methods(methods: object) -> frozenset[str]:
    if isinstance(methods, (str, bytes)) or not hasattr(type(methods), "__iter__"):
        raise TypeError(
            f"methods must be several names such as ('GET', 'PUT'), not {type(methods).__name__}"
        )
    names = list(methods)  # type: ignore[call-overload]
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"methods must be strs such as 'GET', not {type(name).__name__}")
    return frozenset(name.upper() for name in names)
