"""`RateLimiter.limit`: a limit around a function."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from nanolimit.errors import RateLimitExceeded
from nanolimit.line import checked_timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from datetime import timedelta
    from typing import Generic, ParamSpec, Protocol, TypeVar, overload

    from nanolimit._core import Decision
    from nanolimit.limiter import Key, RateLimiter
    from nanolimit.remote import Remote

    P = ParamSpec("P")
    R = TypeVar("R")
    D = TypeVar("D", covariant=True)

    class LimitedOr(Protocol, Generic[D]):
        """The decorator where `on_denied` answers a denied call: with its result, or awaited."""

        @overload
        def __call__(
            self, function: Callable[P, Coroutine[Any, Any, R]], /
        ) -> Callable[P, Coroutine[Any, Any, R | D]]: ...
        @overload
        def __call__(self, function: Callable[P, R], /) -> Callable[P, R | D]: ...


def _decide(
    limiter: RateLimiter,
    key: Key,
    cost: int,
    timeout: float | timedelta | None,
    patience_s: float | None = None,
) -> tuple[Decision, bool]:
    """Decide at once, where others would wait."""
    decision = limiter.check(key, cost)
    return decision, decision.allowed


class Limited:
    """The decorator: a limiter, and what is to be asked of it. It may decorate many functions."""

    __slots__ = ("_cost", "_key", "_limiter", "_on_denied", "_timeout", "_wait")

    def __init__(
        self,
        limiter: RateLimiter | Remote,
        key: Key | Callable[..., Key] | None,
        cost: int | Callable[..., int],
        on_denied: Callable[..., Any] | None,
        wait: bool,
        timeout: float | timedelta | None,
    ) -> None:
        if on_denied is not None and not callable(on_denied):
            raise TypeError(
                f"on_denied must be a callable (decision, *args, **kwargs), "
                f"not {type(on_denied).__name__}"
            )
        if not isinstance(wait, bool):
            raise TypeError(f"wait must be True or False, not {type(wait).__name__}")
        if timeout is not None and not wait:
            raise TypeError("timeout goes with wait=True: without it, no call waits")
        checked_timeout(timeout)
        self._limiter: Any = limiter
        self._key = key
        self._cost = cost
        self._on_denied = on_denied
        self._wait = wait
        self._timeout = timeout
        # What is fixed is looked at here, so that a mistake shows where it stands.
        self._look("" if key is None or callable(key) else key, 1 if callable(cost) else cost)

    def _look(self, key: Any, cost: Any) -> None:
        """Raise what is wrong with a key or a cost."""
        self._limiter.peek(key, cost)

    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]:
        """Return the function with the limit around it."""
        found: Any = function  # whatever the types say
        if isinstance(found, (classmethod, staticmethod)):
            raise TypeError(f"@limit must stand below @{type(found).__name__}, not above it")
        if inspect.isclass(found) or not callable(found):
            what = "a class" if inspect.isclass(found) else type(found).__name__
            raise TypeError(f"@limit decorates a function, not {what}")
        if inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found):
            raise TypeError(
                f"@limit decorates no generator, as {found.__name__} is: it is not clear which of "
                f"its steps is the request. Use limiter.slot(key) where that is made"
            )
        ask = self._asker(found)
        if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(
            getattr(type(found), "__call__", None)  # noqa: B004
        ):
            around: Any = self._around_coroutine(found, ask)
            return around  # type: ignore[no-any-return]
        return self._around(function, ask)

    def _asker(self, function: Callable[..., Any]) -> Callable[..., tuple[Key, int]]:
        """Return what tells the key and the cost of a call."""
        key, cost = self._key, self._cost
        if key is None:
            name = getattr(function, "__qualname__", None)
            if name is None:
                raise TypeError(f"a {type(function).__name__} has no name to be its key: give key=")
            key = f"{function.__module__}.{name}"
        key_of: Any = key if callable(key) else None
        cost_of: Any = cost if callable(cost) else None

        def ask(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            return (
                key if key_of is None else key_of(*args, **kwargs),
                cost if cost_of is None else cost_of(*args, **kwargs),
            )

        return ask

    def _decider(self) -> Callable[..., tuple[Decision, bool]]:
        """Return what decides about a call: ``decide(limiter, key, cost, timeout)``."""
        if not self._wait:
            return _decide
        from nanolimit.waiting import wait

        return wait

    def _around(
        self, function: Callable[P, R], ask: Callable[..., tuple[Key, int]]
    ) -> Callable[P, R]:
        limiter, on_denied, timeout = self._limiter, self._on_denied, self._timeout
        decide = self._decider()

        @functools.wraps(function)
        def limited(*args: P.args, **kwargs: P.kwargs) -> R:
            key, cost = ask(args, kwargs)
            decision, granted = decide(limiter, key, cost, timeout)
            if granted:
                return function(*args, **kwargs)
            if on_denied is None:
                raise RateLimitExceeded(decision, key)
            return on_denied(decision, *args, **kwargs)  # type: ignore[no-any-return]

        return limited

    def _around_coroutine(
        self,
        function: Callable[..., Any],
        ask: Callable[..., tuple[Key, int]],
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        limiter, on_denied, timeout = self._limiter, self._on_denied, self._timeout
        waits = self._wait

        @functools.wraps(function)
        async def limited(*args: Any, **kwargs: Any) -> Any:
            key, cost = ask(args, kwargs)
            if waits:
                from nanolimit.tasks import waited

                decision, granted = await waited(limiter, key, cost, timeout, True)
            else:
                decision = limiter.check(key, cost)
                granted = decision.allowed
            if granted:
                return await function(*args, **kwargs)
            if on_denied is None:
                raise RateLimitExceeded(decision, key)
            answer = on_denied(decision, *args, **kwargs)
            return await answer if inspect.isawaitable(answer) else answer

        return limited


def named(function: Callable[..., Any]) -> str:
    """Return what a function is called, for messages."""
    return str(getattr(function, "__qualname__", type(function).__name__))
