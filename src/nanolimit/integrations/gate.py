"""Gates: what a middleware asks of one limiter, and what becomes of a request it can't ask for.

This is what the middlewares of all kinds share. It knows no protocol: a request is whatever the
key function understands.
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

from nanolimit.clock import shown
from nanolimit.integrations.address import InvalidRequestError
from nanolimit.integrations.answer import Announcement
from nanolimit.integrations.answer import check_kind as check_headers
from nanolimit.integrations.outage import Outage
from nanolimit.integrations.rule import Rule, limiter_of
from nanolimit.quota import whole_number
from nanolimit.remote import (
    AsyncRemoteRateLimiter,
    StoreUnavailableError,
    check_cost,
    check_kind,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Literal

    from nanolimit._core import Decision
    from nanolimit.integrations.answer import Kind
    from nanolimit.integrations.key import KeyFunction
    from nanolimit.integrations.rule import AnyLimit
    from nanolimit.remote import AnyLimiter

_log = logging.getLogger("nanolimit")


# When a store that could not be asked is asked again: a client need not come before.
_STORE_PAUSE_S = 1


class Refused(Exception):
    """A request is answered without having been counted: `status` is 400, 500 or 503.

    `retry_after_s`: when the client may come again, where that is known; `fields` are the header
    fields that tell it, `raw` the same as ASGI has them.
    """

    status: int
    detail: str
    retry_after_s: int | None

    def __init__(self, status: int, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s

    @property
    def fields(self) -> list[tuple[str, str]]:
        return [] if self.retry_after_s is None else [("Retry-After", str(self.retry_after_s))]

    @property
    def raw(self) -> list[tuple[bytes, bytes]]:
        return [(name.lower().encode(), value.encode()) for name, value in self.fields]


class Gate:
    """One limiter, how its keys and costs come from a request, and what is told of it.

    Args:
        limiter: The limiter, of any kind: its caller has seen to it that it goes with it.
        key: The key function. It may be a coroutine function where the caller is one: see
            `decided`.
        cost: Units, or a callable on the request.
        headers: See `Announcement`.
        on_error: What happens to a request for which the key function (or the limiter) raises or
            gives None: ``"deny"`` answers 500, ``"allow"`` lets it pass. Both log it.
        name: See `Announcement`.
    """

    __slots__ = (
        "_awaits", "_check", "_cost", "_key", "_outage", "_passes", "announcement", "key_waits",
        "limiter", "waits",
    )  # fmt: skip

    limiter: AnyLimiter
    announcement: Announcement

    key_waits: bool
    """Whether the key function is a coroutine function."""

    waits: bool
    """Whether only `decided` can ask: the key function is one, or the limiter is awaited."""

    def __init__(
        self,
        limiter: AnyLimiter,
        key: KeyFunction,
        cost: int | Callable[[Any], int] = 1,
        headers: Kind | None = "draft",
        on_error: Literal["deny", "allow"] = "deny",
        name: str | None = None,
    ) -> None:
        if not callable(key):
            raise TypeError(f"key must be a key function such as client_ip(), not {shown(key)}")
        if not callable(cost):
            cost = whole_number("cost", cost)
            check_cost(limiter, cost)  # one that could never pass shows here
        if on_error not in ("deny", "allow"):
            raise ValueError(f"on_error must be 'deny' or 'allow', not {shown(on_error)}")
        self.limiter = limiter
        self.announcement = Announcement(limiter, headers, name)
        self._check: Callable[[Any, int], Any] = limiter.check
        self._key: Any = key
        self._cost = cost
        self._passes = on_error == "allow"
        self._outage = Outage()
        self.key_waits = inspect.iscoroutinefunction(key) or inspect.iscoroutinefunction(
            type(key).__call__
        )
        self._awaits = isinstance(limiter, AsyncRemoteRateLimiter)
        self.waits = self.key_waits or self._awaits

    def decide(self, request: Any) -> Decision | None:
        """Count a request. None: it could not be, and may pass.

        Raises:
            Refused: It could not be, and may not pass.
        """
        try:
            key = self._key(request)
            return self._ask(request, key)  # type: ignore[no-any-return]
        except Exception as error:
            self._failed(error)
            return None

    async def decided(self, request: Any) -> Decision | None:
        """Count a request whose key function, or whose limiter, may have to wait."""
        try:
            key = self._key(request)
            if self.key_waits:
                key = await key
            asked = self._ask(request, key)
            return await asked if self._awaits else asked  # type: ignore[no-any-return]
        except Exception as error:
            self._failed(error)
            return None

    @property
    def key(self) -> Any:
        """The key function."""
        return self._key

    def _ask(self, request: Any, key: Any) -> Any:
        """Ask the limiter: its Decision, or what to await for it."""
        if key is None:
            raise TypeError(f"the key function {self._key!r} returned None")
        cost = self._cost
        return self._check(key, cost if cost.__class__ is int else cost(request))  # type: ignore[operator]

    def _failed(self, error: Exception) -> None:
        if isinstance(error, InvalidRequestError):
            raise Refused(400, str(error)) from None
        if isinstance(error, StoreUnavailableError):
            self._outage.tell(
                "a request could not be counted and was %s: %s",
                "let pass" if self._passes else "answered 503",
                error,
            )
            if self._passes:
                return
            raise Refused(
                503, "The server can't check its limits at the moment.", _STORE_PAUSE_S
            ) from None
        _log.error(
            "a request could not be counted and was %s: %r",
            "let pass" if self._passes else "answered 500",
            error,
            exc_info=error,
        )
        if not self._passes:
            raise Refused(500, "The server could not tell whose request this is.") from None


class Gates:
    """All gates of a middleware: one for each rule, and one for the requests that none fits.

    `awaits` and `where` say who asks: see `check_kind` of `nanolimit.remote`.
    """

    __slots__ = ("_default", "_rules")

    def __init__(
        self,
        limiter: AnyLimit | None,
        key: KeyFunction,
        cost: int | Callable[[Any], int],
        headers: Kind | None,
        rules: Iterable[Rule],
        on_error: Literal["deny", "allow"],
        name: str | None,
        *,
        awaits: bool,
        where: str,
    ) -> None:
        check_headers(headers)
        if not callable(key):
            raise TypeError(f"key must be a key function such as client_ip(), not {shown(key)}")
        self._default: Gate | None = None
        if limiter is not None:
            found = limiter_of(limiter)
            check_kind(found, awaits, where)
            self._default = Gate(found, key, cost, headers, on_error, name)
        self._rules: list[tuple[Rule, Gate | None]] = []
        for rule in rules:
            if not isinstance(rule, Rule):
                raise TypeError(
                    f"rules must be a list of Rule('POST /login', limiter), not of {shown(rule)}"
                )
            gate = None
            if rule.limiter is not None:
                check_kind(rule.limiter, awaits, where)
                gate = Gate(
                    rule.limiter,
                    rule.key or key,
                    cost if rule.cost is None else rule.cost,
                    headers,
                    on_error,
                    rule.name,
                )
            self._rules.append((rule, gate))
        if limiter is None and not self._rules:
            raise TypeError("limiter may be None only where there are rules: nothing is limited")

    def __iter__(self) -> Iterator[Gate]:
        """Walk over them all."""
        yield from (gate for _, gate in self._rules if gate is not None)
        if self._default is not None:
            yield self._default

    def find(self, method: str, path: str) -> Gate | None:
        """Return the gate of the first rule that fits, or the one for the rest. None: no limit."""
        for rule, gate in self._rules:
            if rule.fits(method, path):
                return gate
        return self._default


def checked_exempt(exempt: Any) -> Callable[[Any], Any] | None:
    """Refuse an `exempt` that can't be called."""
    if exempt is not None and not callable(exempt):
        raise TypeError(f"exempt must be a callable on the request, not {shown(exempt)}")
    return exempt  # type: ignore[no-any-return]
