"""Rate limits for gRPC servers: an interceptor for `grpc.server`, one for `grpc.aio.server`.

```python
server = grpc.server(pool, interceptors=[RateLimitInterceptor("100/minute")])
server = grpc.aio.server(interceptors=[AioRateLimitInterceptor("100/minute")])
```

A call is checked once, when its handler is about to run: that is the first moment at which gRPC
tells who is at the other end. So each handler gets a function around it, made at the first call of
its method and kept. Messages within a stream are not counted.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from nanolimit.clock import shown
from nanolimit.errors import NanolimitError
from nanolimit.integrations.answer import Announcement
from nanolimit.integrations.call import (
    Call,
    InvalidCall,
    check_key_function,
    combine,
    is_async,
    metadata,
    peer,
    user,
)
from nanolimit.integrations.method import (
    MethodRule,
    checked_cost,
    checked_exempt,
    checked_limiter,
    checked_rules,
    matches,
)
from nanolimit.integrations.outage import Outage
from nanolimit.integrations.trailer import Denial, fields
from nanolimit.remote import AsyncRemoteRateLimiter, StoreUnavailableError, check_kind

try:
    import grpc  # type: ignore[import-untyped]
    import grpc.aio  # type: ignore[import-untyped]
except ImportError as _error:
    raise ImportError(
        "nanolimit.integrations.grpc needs grpcio >= 1.60: pip install 'nanolimit[grpc]'"
    ) from _error

try:
    from nanolimit.integrations.googleapis import details
except ImportError:  # a server may do without
    from nanolimit.integrations.trailer import no_details as details

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from nanolimit._core import Decision
    from nanolimit.integrations.call import AnyKeyFunction, KeyFunction
    from nanolimit.integrations.method import AnyLimit, AwaitedLimit, Cost, Limit
    from nanolimit.integrations.trailer import Metadata
    from nanolimit.remote import AnyLimiter

__all__ = [
    "AioRateLimitInterceptor",
    "Call",
    "InvalidCall",
    "MethodRule",
    "RateLimitInterceptor",
    "combine",
    "metadata",
    "peer",
    "user",
]

_logger = logging.getLogger("nanolimit")

# A handler that serves any method whatever may be asked for ever new names.
_MOST_KEPT = 4096

_KINDS = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}

# What grpc reads off a handler's function.
_MARKS = ("experimental_thread_pool", "experimental_non_blocking")


_NOT_ABORTED = "abort() of the context returned: the call would go on"


class _Refusal(NamedTuple):
    """How a call ends instead of being handled."""

    code: Any
    details: str
    metadata: Metadata = ()


class _Gate:
    """What stands before the handler of one method."""

    __slots__ = (
        "_awaits",
        "_check",
        "_cost",
        "_cost_of",
        "_exempt",
        "_key",
        "_limiter",
        "_method",
        "_outage",
        "_passes_errors",
        "_subject",
        "_told",
        "is_async",
    )

    _key: Any
    _cost: Any
    _cost_of: Any
    _exempt: Any
    _check: Any
    #: Whether something must be awaited to decide.
    is_async: bool

    def __init__(
        self,
        method: str,
        limiter: AnyLimiter,
        key: Any,
        cost: Any,
        exempt: Any,
        passes_errors: bool,
        headers: Any,
    ) -> None:
        self._method = method
        self._limiter = limiter
        self._check = limiter.check
        self._key = key
        self._cost = 1 if callable(cost) else cost
        self._cost_of = cost if callable(cost) else None
        self._exempt = exempt
        self._passes_errors = passes_errors
        self._told = None if headers is None else Announcement(limiter, headers)
        self._subject = limiter.name.encode("utf-8", "replace").decode()
        self._outage = Outage()
        self._awaits = isinstance(limiter, AsyncRemoteRateLimiter)
        self.is_async = self._awaits or any(is_async(each) for each in (key, cost, exempt))

    # The two that decide are the same but for the awaiting, which the first can't afford.

    def decide(self, context: Any) -> _Refusal | None:
        """Count a call. None if it may go on."""
        cost = self._cost
        try:
            call = Call(self._method, context)
            if self._exempt is not None and self._exempt(call):
                return None
            key = self._key(call)
            if self._cost_of is not None:
                cost = self._cost_of(call)
            decision = self._check(key, cost)
        except Exception as error:
            return self._failed(error)
        if decision.allowed and self._told is None:
            return None
        return self._answer(decision, context)

    async def decide_async(self, context: Any) -> _Refusal | None:
        """Count a call. None if it may go on."""
        cost = self._cost
        try:
            call = Call(self._method, context)
            if self._exempt is not None:
                free = self._exempt(call)
                if await free if hasattr(type(free), "__await__") else free:
                    return None
            key = self._key(call)
            if hasattr(type(key), "__await__"):
                key = await key
            if self._cost_of is not None:
                cost = self._cost_of(call)
                if hasattr(type(cost), "__await__"):
                    cost = await cost
            decision = self._check(key, cost)
            if self._awaits:
                decision = await decision
        except Exception as error:
            return self._failed(error)
        if decision.allowed and self._told is None:
            return None
        return self._answer(decision, context)

    def _answer(self, decision: Decision, context: Any) -> _Refusal | None:
        told = () if self._told is None else fields(decision, self._told)
        if decision.allowed:
            _tell(context, told)
            return None
        denial = Denial.of(decision)
        return _Refusal(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            denial.message,
            (*denial.metadata, *told, *details(denial, self._subject)),
        )

    def _failed(self, error: Exception) -> _Refusal | None:
        """Say what becomes of a call that could not be decided."""
        if isinstance(error, InvalidCall):
            return _Refusal(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if isinstance(error, StoreUnavailableError):
            self._outage.tell(
                "the rate limit of %s could not be checked, the call is denied: %s",
                self._method,
                error,
            )
            return _Refusal(
                grpc.StatusCode.UNAVAILABLE,
                "the server can't check its limits at the moment",
                (("retry-after", "1"),),
            )
        # A limiter that is closed is no matter of keys.
        passes = self._passes_errors and not isinstance(error, NanolimitError)
        _logger.error(
            "the rate limit of %s could not be checked, the call is %s",
            self._method,
            "let pass" if passes else "denied",
            exc_info=error,
        )
        if passes:
            return None
        return _Refusal(grpc.StatusCode.INTERNAL, "the rate limit could not be checked")


def _tell(context: Any, told: Metadata) -> None:
    """Add to the trailing metadata; what others have set stays."""
    # The context of a synchronous handler in an aio server does not say what was set.
    before: Any = getattr(context, "trailing_metadata", tuple)() or ()
    context.set_trailing_metadata((*before, *told))


def _refuse(context: Any, refusal: _Refusal) -> None:
    """End a call. gRPC raises in it, most of the time: its caller does not go on in any case."""
    if refusal.metadata:
        _tell(context, refusal.metadata)
    context.abort(refusal.code, refusal.details)


async def _refuse_async(context: Any, refusal: _Refusal) -> NoReturn:
    if refusal.metadata:
        _tell(context, refusal.metadata)
    await context.abort(refusal.code, refusal.details)
    raise RuntimeError(_NOT_ABORTED)


# The functions around a handler's own


def _around(inner: Any, gate: _Gate) -> Any:
    """Return the function of a handler in a `grpc.server`, with the gate before it."""
    decide = gate.decide

    # A stream's function that is marked as not blocking gets a third argument.
    def limited(request: Any, context: Any, *callback: Any) -> Any:
        refusal = decide(context)
        if refusal is not None:
            _refuse(context, refusal)
            raise RuntimeError(_NOT_ABORTED)
        return inner(request, context, *callback)

    return limited


def _around_async(inner: Any, gate: _Gate, streams: bool, loop: Any) -> Any:
    """Return the function of a handler in a `grpc.aio.server`, with the gate before it.

    It is of the same kind as the handler's own, because grpc looks at that.
    """
    decide_async = gate.decide_async

    if inspect.iscoroutinefunction(inner):

        async def limited(request: Any, context: Any) -> Any:
            refusal = await decide_async(context)
            if refusal is not None:
                await _refuse_async(context, refusal)
            return await inner(request, context)

        return limited

    if inspect.isasyncgenfunction(inner):

        async def limited_messages(request: Any, context: Any) -> Any:
            refusal = await decide_async(context)
            if refusal is not None:
                await _refuse_async(context, refusal)
            messages = inner(request, context)
            try:
                async for message in messages:
                    yield message
            finally:
                await messages.aclose()

        return limited_messages

    # A synchronous handler. It runs in a thread of the server's pool, and so does its check. The
    # abort() of its context returns at once in grpcio 1.60, and the loop does the rest.
    decide = _in_loop(gate, loop) if gate.is_async else gate.decide

    if not streams:

        def limited_sync(request: Any, context: Any) -> Any:
            refusal = decide(context)
            if refusal is not None:
                _refuse(context, refusal)
                return None
            return inner(request, context)

        return limited_sync

    # grpc calls it in the loop, where abort() would wait for itself; only its steps are taken in
    # the pool. So the check is the first step.
    def limited_sync_messages(request: Any, context: Any) -> Any:
        refusal = decide(context)
        if refusal is not None:
            _refuse(context, refusal)
            return
        yield from inner(request, context)

    return limited_sync_messages


def _in_loop(gate: _Gate, loop: Any) -> Callable[[Any], _Refusal | None]:
    """Return what decides in a thread by awaiting in the server's loop."""

    def decide(context: Any) -> _Refusal | None:
        return asyncio.run_coroutine_threadsafe(gate.decide_async(context), loop).result()

    return decide


class _Limits:
    """What both interceptors are made of: which gate stands before which method."""

    _AWAITS: bool
    _WHERE: str

    def __init__(
        self,
        limiter: AnyLimit | None = None,
        key: AnyKeyFunction | None = None,
        *,
        cost: Cost = 1,
        rules: Iterable[MethodRule] = (),
        exempt: str | Iterable[str] | Callable[[Call], Any] | None = None,
        on_key_error: Literal["deny", "allow"] = "deny",
        headers: Literal["draft"] | None = None,
    ) -> None:
        self._limiter = checked_limiter(limiter)
        self._rules = checked_rules(rules)
        if self._limiter is None and not self._rules:
            raise ValueError("there is no limit: give limiter, such as '100/minute', or rules")
        for each in (self._limiter, *(rule.limiter for rule in self._rules)):
            check_kind(each, self._AWAITS, self._WHERE)
        if key is not None:
            check_key_function("key", key)
        self._key = peer() if key is None else key
        self._cost = checked_cost(cost, self._limiter)
        for rule in self._rules:
            if rule.cost is None:
                checked_cost(self._cost, rule.limiter)
        self._exempt_methods, self._exempt = checked_exempt(exempt)
        _check_choice("on_key_error", on_key_error, ("deny", "allow"))
        _check_choice("headers", headers, ("draft", None))
        self._passes_errors = on_key_error == "allow"
        self._headers = headers
        # By method: the handler, the loop that it runs in, and what took the handler's place.
        # Threads may set an entry at the same time: it is the same to all but for its address.
        self._kept: dict[str, tuple[Any, Any, Any]] = {}

    @property
    def limiter(self) -> AnyLimiter | None:
        """The limiter of the methods without a rule; None if they have no limit."""
        return self._limiter

    def _functions(self) -> list[tuple[str, Any]]:
        """Return all that is called with a call, by the name of the argument."""
        found = [("key", self._key), ("cost", self._cost), ("exempt", self._exempt)]
        for rule in self._rules:
            found += [("key", rule.key), ("cost", rule.cost)]
        return found

    def _limited(self, method: str, handler: Any, loop: Any = None) -> Any:
        """Return the handler with the method's limit around it."""
        kept = self._kept.get(method)
        if kept is not None and kept[0] is handler and kept[1] is loop:
            return kept[2]
        gate = self._gate(method)
        limited = handler if gate is None else _handler(handler, gate, loop)
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[method] = (handler, loop, limited)
        return limited

    def _gate(self, method: str) -> _Gate | None:
        if any(matches(pattern, method) for pattern in self._exempt_methods):
            return None
        limiter, key, cost = self._limiter, self._key, self._cost
        for rule in self._rules:
            if rule.matches(method):
                limiter = rule.limiter
                key = key if rule.key is None else rule.key
                cost = cost if rule.cost is None else rule.cost
                break
        if limiter is None:
            return None
        return _Gate(method, limiter, key, cost, self._exempt, self._passes_errors, self._headers)


def _handler(handler: Any, gate: _Gate, loop: Any) -> Any:
    """Return a handler of the same kind, with the same serializers and the gate before it."""
    streams = bool(handler.response_streaming)
    kind, make = _KINDS[bool(handler.request_streaming), streams]
    inner = getattr(handler, kind)
    limited = _around(inner, gate) if loop is None else _around_async(inner, gate, streams, loop)
    functools.update_wrapper(limited, inner, updated=())
    for mark in _MARKS:
        if hasattr(inner, mark):
            setattr(limited, mark, getattr(inner, mark))
    return make(
        limited,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _check_choice(parameter: str, value: object, choices: tuple[object, ...]) -> None:
    if not any(value is choice or value == choice for choice in choices):
        raise ValueError(
            f"{parameter} must be {' or '.join(map(repr, choices))}, not {shown(value)}"
        )


class RateLimitInterceptor(_Limits, grpc.ServerInterceptor):  # type: ignore[misc]
    """Limits the calls of a `grpc.server`.

    A call that does not fit ends with RESOURCE_EXHAUSTED before its handler runs. The message names
    the limit and when to come again; so do, in the trailing metadata, ``retry-after`` (seconds,
    rounded up), ``grpc-retry-pushback-ms``, which gRPC clients with a retry policy for
    RESOURCE_EXHAUSTED obey, and google.rpc.RetryInfo and QuotaFailure in
    ``grpc-status-details-bin`` if googleapis-common-protos is installed.

    A call counts once, at its start; messages within a stream do not count. Calls of methods that
    the server does not have are answered by gRPC, and do not count.

    Args:
        limiter: A `RateLimiter`, or what one is made of: ``"100/minute"``, a `Quota` or several.
            None: only `rules` limit. For one limit of several processes give a limiter with
            `shared`, for one of several machines a `RedisRateLimiter`.
        key: Gets the `Call`, returns whose call it is. `peer` when left out; `metadata`, `user` and
            `combine` make others. It runs in the server's thread pool.
        cost: Units that a call takes, or a callable that gets the `Call` and returns them.
        rules: `MethodRule` for methods with a limit of their own. The first that matches holds, in
            the place of `limiter`.
        exempt: Methods that have no limit, as ``"/grpc.health.v1.Health/*"``, one or several; or a
            callable that gets the `Call` and says whether it has none.
        on_key_error: What happens if `key`, `cost` or `exempt` raises, or gives no key: ``"deny"``
            ends the call with INTERNAL, ``"allow"`` lets it pass uncounted. The logger
            ``nanolimit`` gets the traceback either way, once a call. An `InvalidCall` ends with
            INVALID_ARGUMENT, a limiter that is closed with INTERNAL, and one of
            ``on_error="raise"`` that can't ask its store with UNAVAILABLE, in any case.
        headers: ``"draft"`` adds ``ratelimit`` and ``ratelimit-policy`` to the trailing metadata of
            calls, allowed or denied. A handler that sets trailing metadata itself replaces them,
            unless it keeps what ``context.trailing_metadata()`` has.

    Raises:
        TypeError: An argument is of the wrong type; a function is a coroutine function.
        ValueError: An argument is out of range or is not understood; or there is no limit at all.

    Example:
        >>> interceptor = RateLimitInterceptor(
        ...     "100/minute",
        ...     metadata("x-api-key"),
        ...     rules=[MethodRule("/shop.Orders/Export", "2/hour")],
        ...     exempt="/grpc.health.v1.Health/*",
        ... )
        >>> server = grpc.server(pool, interceptors=[interceptor])

    Thread-safe; one interceptor may serve several servers. Starts no thread. Adds a few
    microseconds to a call, and more to one that it denies.
    """

    _AWAITS = False
    _WHERE = "a grpc.server"

    def __init__(
        self,
        limiter: Limit | None = None,
        key: KeyFunction | None = None,
        *,
        cost: Cost = 1,
        rules: Iterable[MethodRule] = (),
        exempt: str | Iterable[str] | Callable[[Call], Any] | None = None,
        on_key_error: Literal["deny", "allow"] = "deny",
        headers: Literal["draft"] | None = None,
    ) -> None:
        super().__init__(
            limiter,
            key,
            cost=cost,
            rules=rules,
            exempt=exempt,
            on_key_error=on_key_error,
            headers=headers,
        )
        for name, function in self._functions():
            if is_async(function):
                raise TypeError(
                    f"{name} must not be a coroutine function in a grpc.server, which has no loop "
                    f"to await it: give a function, or use AioRateLimitInterceptor"
                )

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> Any:
        """Return the call's handler with the limit around it. grpc calls it."""
        handler = continuation(handler_call_details)
        if handler is None:  # there is no such method
            return None
        return self._limited(handler_call_details.method, handler)


class AioRateLimitInterceptor(_Limits, grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Limits the calls of a `grpc.aio.server`.

    All is as with `RateLimitInterceptor`, but that `key`, `cost` and `exempt` may be coroutine
    functions. They and the check run in the server's loop; a check waits for nothing. Handlers that
    are plain functions, which grpc runs in a thread pool, have them there; if one of the three is a
    coroutine function, they are awaited in the loop, in a task for the call. So is the check of an
    `AsyncRedisRateLimiter`, which is for this interceptor what `RedisRateLimiter` is for the other.

    Args:
        limiter: As of `RateLimitInterceptor`, like all that follow.
        key: A function or coroutine function.
        cost: Units, or a function or coroutine function.
        rules: `MethodRule` for methods with a limit of their own.
        exempt: Methods that have no limit, or a function or coroutine function.
        on_key_error: ``"deny"`` or ``"allow"``.
        headers: ``"draft"`` or None.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range or is not understood; or there is no limit at all.

    One interceptor may serve several servers, in several loops. Starts no thread, and no task but
    as said. Adds a few microseconds to a call, and more to one that it denies.
    """

    _AWAITS = True
    _WHERE = "a grpc.aio.server"

    def __init__(
        self,
        limiter: AwaitedLimit | None = None,
        key: AnyKeyFunction | None = None,
        *,
        cost: Cost = 1,
        rules: Iterable[MethodRule] = (),
        exempt: str | Iterable[str] | Callable[[Call], Any] | None = None,
        on_key_error: Literal["deny", "allow"] = "deny",
        headers: Literal["draft"] | None = None,
    ) -> None:
        super().__init__(
            limiter,
            key,
            cost=cost,
            rules=rules,
            exempt=exempt,
            on_key_error=on_key_error,
            headers=headers,
        )

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Return the call's handler with the limit around it. grpc calls it."""
        handler = await continuation(handler_call_details)
        if handler is None:  # there is no such method
            return None
        loop = asyncio.get_running_loop()
        return self._limited(handler_call_details.method, handler, loop)
