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
from nanolimit.integrations.answer import Announcement, check_kind
from nanolimit.integrations.rule import Rule, limiter_of
from nanolimit.quota import whole_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Literal

    from nanolimit._core import Decision
    from nanolimit.integrations.answer import Kind
    from nanolimit.integrations.key import KeyFunction
    from nanolimit.integrations.rule import Limit
    from nanolimit.limiter import RateLimiter

_log = logging.getLogger("nanolimit")


class Refused(Exception):
    """A request is answered without having been counted: `status` is 400 or 500."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class Gate:
    """One limiter, how its keys and costs come from a request, and what is told of it.

    Args:
        limiter: The limiter.
        key: The key function. It may be a coroutine function where the caller is one: see
            `decided`.
        cost: Units, or a callable on the request.
        headers: See `Announcement`.
        on_error: What happens to a request for which the key function (or the limiter) raises or
            gives None: ``"deny"`` answers 500, ``"allow"`` lets it pass. Both log it.
        name: See `Announcement`.
    """

    __slots__ = ("_check", "_cost", "_key", "_passes", "_waits", "announcement", "limiter")

    def __init__(
        self,
        limiter: RateLimiter,
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
            limiter.peek("", cost)  # a cost that could never pass shows here
        if on_error not in ("deny", "allow"):
            raise ValueError(f"on_error must be 'deny' or 'allow', not {shown(on_error)}")
        self.limiter: RateLimiter = limiter
        self.announcement: Announcement = Announcement(limiter, headers, name)
        self._check = limiter.check
        self._key: Any = key
        self._cost = cost
        self._passes = on_error == "allow"
        self._waits = inspect.iscoroutinefunction(key) or inspect.iscoroutinefunction(
            type(key).__call__
        )

    def decide(self, request: Any) -> Decision | None:
        """Count a request. None: it could not be, and may pass.

        Raises:
            Refused: It could not be, and may not pass.
        """
        try:
            key = self._key(request)
            return self._ask(request, key)
        except Exception as error:
            self._failed(error)
            return None

    async def decided(self, request: Any) -> Decision | None:
        """Count a request whose key function may have to wait; it waits for nothing else."""
        try:
            key = self._key(request)
            if self._waits:
                key = await key
            return self._ask(request, key)
        except Exception as error:
            self._failed(error)
            return None

    @property
    def key(self) -> Any:
        """The key function."""
        return self._key

    @property
    def waits(self) -> bool:
        """Whether the key function is a coroutine function."""
        return self._waits

    def _ask(self, request: Any, key: Any) -> Decision:
        if key is None:
            raise TypeError(f"the key function {self._key!r} returned None")
        cost = self._cost
        return self._check(key, cost if cost.__class__ is int else cost(request))  # type: ignore[operator]

    def _failed(self, error: Exception) -> None:
        if isinstance(error, InvalidRequestError):
            raise Refused(400, str(error)) from None
        _log.error(
            "a request could not be counted and was %s: %r",
            "let pass" if self._passes else "answered 500",
            error,
            exc_info=error,
        )
        if not self._passes:
            raise Refused(500, "The server could not tell whose request this is.") from None


class Gates:
    """All gates of a middleware: one for each rule, and one for the requests that none fits."""

    __slots__ = ("_default", "_rules")

    def __init__(
        self,
        limiter: Limit | None,
        key: KeyFunction,
        cost: int | Callable[[Any], int],
        headers: Kind | None,
        rules: Iterable[Rule],
        on_error: Literal["deny", "allow"],
        name: str | None,
    ) -> None:
        check_kind(headers)
        if not callable(key):
            raise TypeError(f"key must be a key function such as client_ip(), not {shown(key)}")
        self._default = (
            None
            if limiter is None
            else Gate(limiter_of(limiter), key, cost, headers, on_error, name)
        )
        self._rules: list[tuple[Rule, Gate | None]] = []
        for rule in rules:
            if not isinstance(rule, Rule):
                raise TypeError(
                    f"rules must be a list of Rule('POST /login', limiter), not of {shown(rule)}"
                )
            gate = None
            if rule.limiter is not None:
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
