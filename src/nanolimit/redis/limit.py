"""`limit`: the limit of a store around a function."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, ClassVar, overload

from nanolimit import decorator
from nanolimit.errors import RateLimitExceeded
from nanolimit.remote import AsyncRemoteRateLimiter, Remote, RemoteRateLimiter, check_key

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from datetime import timedelta
    from typing import ParamSpec, TypeVar

    from nanolimit._core import Decision
    from nanolimit.decorator import LimitedOr
    from nanolimit.limiter import Key

    P = ParamSpec("P")
    R = TypeVar("R")

__all__ = ["AsyncLimited", "Limited", "Limiting"]


class Limited(decorator.Limited):
    """The decorator of a limiter that blocks. It may decorate many functions."""

    __slots__ = ()

    _limiter: RemoteRateLimiter

    def _look(self, key: Any, cost: Any) -> None:
        check_key(self._limiter, key, cost)

    def _decider(self) -> Callable[..., tuple[Decision, bool]]:
        if not self._wait:
            return super()._decider()

        def wait(
            limiter: RemoteRateLimiter, key: Key, cost: int, timeout: float | timedelta | None
        ) -> tuple[Decision, bool]:
            return limiter._waited(key, cost, timeout)

        return wait

    def _around_coroutine(
        self, function: Callable[..., Any], ask: Callable[..., tuple[Key, int]]
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        raise TypeError(
            f"@limit of a RedisRateLimiter decorates no coroutine function, as "
            f"{decorator.named(function)} is: it would block the event loop while the store is "
            f"asked. Use an AsyncRedisRateLimiter"
        )


class AsyncLimited(decorator.Limited):
    """The decorator of a limiter that is awaited. It may decorate many coroutine functions."""

    __slots__ = ()

    _limiter: AsyncRemoteRateLimiter

    def _look(self, key: Any, cost: Any) -> None:
        check_key(self._limiter, key, cost)

    def _around(
        self, function: Callable[P, R], ask: Callable[..., tuple[Key, int]]
    ) -> Callable[P, R]:
        raise TypeError(
            f"@limit of an AsyncRedisRateLimiter decorates coroutine functions only, which "
            f"{decorator.named(function)} is not: nothing awaits the store there. Use a "
            f"RedisRateLimiter"
        )

    def _around_coroutine(
        self, function: Callable[..., Any], ask: Callable[..., tuple[Key, int]]
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        limiter, on_denied, timeout = self._limiter, self._on_denied, self._timeout
        waits = self._wait

        @functools.wraps(function)
        async def limited(*args: Any, **kwargs: Any) -> Any:
            key, cost = ask(args, kwargs)
            if waits:
                decision, granted = await limiter._waited(key, cost, timeout)
            else:
                decision = await limiter.check(key, cost)
                granted = decision.allowed
            if granted:
                return await function(*args, **kwargs)
            if on_denied is None:
                raise RateLimitExceeded(decision, key)
            answer = on_denied(decision, *args, **kwargs)
            return await answer if inspect.isawaitable(answer) else answer

        return limited


class Limiting(Remote):
    """What gives a limiter its `limit`."""

    __slots__ = ()

    _limited: ClassVar[type[Limited | AsyncLimited]]

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
    ) -> decorator.Limited: ...
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
        """Limit the calls of a function. A decorator, as `RateLimiter.limit`.

        A `RedisRateLimiter` decorates functions and methods, an `AsyncRedisRateLimiter` coroutine
        functions. Without a key, that is the function's name, module and all: one limit for the
        function, in all processes that have the store and the limiter's name in common.

        Args:
            function: What is decorated, where nothing else is said.
            key: A key for all calls, or a callable that gets the call's arguments.
            cost: Units that a call takes, or a callable that gets the call's arguments.
            on_denied: A callable ``on_denied(decision, *args, **kwargs)`` whose result takes the
                place of the function's. Of a coroutine function it may be one itself. When left
                out, `RateLimitExceeded` is raised.
            wait: Whether to wait until the call fits, as `acquire` does.
            timeout: Seconds to wait at most; the call is denied then.

        Raises:
            RateLimitExceeded: From the decorated function, when a call is denied.
            TypeError: What is decorated is no function, a generator, or a function of the other
                kind; an argument is of the wrong type; `timeout` without `wait`.
            ValueError: `cost` or `timeout` is out of range.
            StoreUnavailableError: From the decorated function, only with ``on_error="raise"``.
        """
        made: Any = self._limited(self, key, cost, on_denied, wait, timeout)
        return made if function is None else made(function)
