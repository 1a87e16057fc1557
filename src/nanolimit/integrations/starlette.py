"""Limits for Starlette: a decorator of endpoints, and the middleware of all ASGI applications.

    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from nanolimit.integrations.starlette import RateLimitMiddleware, client_ip, limited

    @limited("5/minute")
    async def login(request): ...

    app = Starlette(
        routes=[Route("/login", login, methods=["POST"])],
        middleware=[Middleware(RateLimitMiddleware, limiter="100/minute", key=client_ip())],
    )

`Guard` is what this module and `nanolimit.integrations.fastapi` share.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import TYPE_CHECKING, Any

try:
    from starlette.exceptions import HTTPException
    from starlette.requests import HTTPConnection
    from starlette.responses import Response
    from starlette.websockets import WebSocket, WebSocketState
except ImportError as _error:
    raise ImportError(
        "nanolimit.integrations.starlette needs Starlette: pip install 'nanolimit[starlette]'"
    ) from _error

from nanolimit.clock import shown
from nanolimit.integrations.answer import Body, refusal
from nanolimit.integrations.asgi import (
    ONCE,
    RateLimitMiddleware,
    accept_of,
    announced,
    is_preflight,
    respond,
)
from nanolimit.integrations.gate import Gate, Refused, checked_exempt
from nanolimit.integrations.key import InvalidRequestError, client_ip, combine, header, user
from nanolimit.integrations.rule import Rule, limiter_of
from nanolimit.limiter import RateLimiter
from nanolimit.remote import check_kind, is_limiter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from os import PathLike
    from typing import Literal, TypeVar

    from nanolimit._core import Decision
    from nanolimit.integrations.answer import Kind
    from nanolimit.integrations.asgi import ASGIApp, Receive, Scope, Send
    from nanolimit.integrations.key import KeyFunction
    from nanolimit.integrations.rule import AnyLimit
    from nanolimit.remote import AnyLimiter

    F = TypeVar("F", bound=Callable[..., Any])
    Fields = list[tuple[bytes, bytes]]

__all__ = [
    "InvalidRequestError",
    "RateLimitHTTPException",
    "RateLimitHeaders",
    "RateLimitMiddleware",
    "RateLimitResponse",
    "Rule",
    "client_ip",
    "combine",
    "header",
    "limited",
    "user",
]

# In the scope: the header fields of all that allowed this request, and whether `RateLimitHeaders`
# is going to send them.
_FIELDS = "nanolimit.fields"
_SENT = "nanolimit.sent"
_OF_BODY = (b"content-type", b"content-length")


class RateLimitResponse(Response):
    """The answer to a request that was not let through: 429, or 400, 500 or 503.

    It is an ASGI application for WebSockets too, which were not accepted yet: they are answered
    429 where the server can do that, else closed.
    """

    def __init__(self, status_code: int, body: Body, fields: Fields) -> None:
        super().__init__(body.content, status_code, media_type=body.content_type)
        self._said = body
        self.raw_headers += fields

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fields = [field for field in self.raw_headers if field[0] not in _OF_BODY]
        await respond(scope, receive, send, self.status_code, self._said, fields)


class RateLimitHTTPException(HTTPException):
    """A request is answered without having reached its endpoint: `limit` of FastAPI raises it.

    It needs no handler: it answers for itself. An application that has a handler for it, or for
    the status 429, has the last word.

    Attributes:
        status_code: 429; 400 if the key function could not tell whose request it is, 500 if it
            failed; 503 if the store of the limiter is away and that raises it.
        detail: What happened, in a sentence.
        headers: All header fields, Retry-After among them.
        decision: The decision; None if there was none (400, 500 and 503).
        response: The answer that it gives for itself: an ASGI application.
    """

    def __init__(
        self,
        status_code: int,
        detail: str,
        headers: dict[str, str],
        decision: Decision | None,
        response: ASGIApp,
    ) -> None:
        super().__init__(status_code, detail, headers)
        self.decision = decision
        self.response: ASGIApp = response


class RateLimitHeaders:
    """Middleware that tells of every answer what the limits behind it said.

    The limits of endpoints, `limited` and FastAPI's `limit`, reach the answers that come from
    there. With this they also reach those that come from elsewhere: errors that an endpoint raises
    (`HTTPException`), Responses that an endpoint of FastAPI makes itself, and the handshake of a
    WebSocket. It limits nothing itself.

        app.add_middleware(RateLimitHeaders)

    Adds a microsecond or two to a request. Safe for any number of tasks, threads and loops.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and _SENT not in scope:
            scope[_SENT] = True
            # They come into this list while the request is on its way.
            send = announced(send, scope.setdefault(_FIELDS, []))
        await self.app(scope, receive, send)


class Guard:
    """A limit in front of endpoints: asks, remembers what is to be told, and answers denials.

    Args:
        limit: A limiter of any kind, or a quota that makes one.
        key: A key function: a callable on the request, or a coroutine function.
        cost: Units, or a callable on the request.
        headers: ``"draft"``, ``"x"``, ``"both"`` or None.
        exempt: A callable on the request; what it says True to passes uncounted.
        on_denied: A callable ``(request, decision)`` that gives the answer: a Response, or a
            coroutine that gives one.
        on_error: ``"deny"`` or ``"allow"``.
        name: What clients know the policy by.
        shared: The table of a limiter that is made here: see `RateLimiter`.
    """

    __slots__ = ("_exempt", "_gate", "_on_denied")

    def __init__(
        self,
        limit: AnyLimit,
        key: KeyFunction | Callable[[Any], Awaitable[Any]],
        cost: int | Callable[[Any], int],
        headers: Kind | None,
        exempt: Callable[[Any], object] | None,
        on_denied: Callable[[Any, Decision], Any] | None,
        on_error: Literal["deny", "allow"],
        name: str | None,
        shared: str | PathLike[str] | Literal[True] | None,
    ) -> None:
        if on_denied is not None and not callable(on_denied):
            raise TypeError(
                "on_denied must be a callable (request, decision) that returns a Response, "
                f"not {shown(on_denied)}"
            )
        self._exempt = checked_exempt(exempt)
        self._on_denied = on_denied
        if shared is None:
            limiter = limiter_of(limit)
        elif is_limiter(limit):
            raise TypeError("shared goes with a quota; a limiter is given its table itself")
        else:
            limiter = RateLimiter(limit, shared=shared)  # type: ignore[arg-type]
        self._gate = Gate(limiter, key, cost, headers, on_error, name)  # type: ignore[arg-type]

    @property
    def limiter(self) -> AnyLimiter:
        """The limiter."""
        return self._gate.limiter

    @property
    def waits(self) -> bool:
        """Whether only a coroutine can ask: the key function or `on_denied` is one."""
        return self._gate.key_waits or inspect.iscoroutinefunction(self._on_denied)

    def passes(self, connection: HTTPConnection) -> bool:
        """Say whether a request is not to be counted: exempt, or a preflight of CORS."""
        scope = connection.scope
        if scope.get("method") == "OPTIONS" and is_preflight(scope):
            return True
        return self._exempt is not None and bool(self._exempt(connection))

    def ask(self, connection: HTTPConnection) -> Decision | None:
        """Count a request. None: it could not be, and may pass.

        Raises:
            RateLimitHTTPException: It could not be, and may not pass.
        """
        try:
            return self._remembered(connection, self._gate.decide(connection))
        except Refused as refused:
            raise self._refusal(connection, refused) from None

    def goes_with(self, awaits: bool, where: str) -> None:
        """Refuse a limiter that blocks where it should be awaited, and the other way round.

        Raises:
            TypeError: As `check_kind` of `nanolimit.remote`.
        """
        check_kind(self._gate.limiter, awaits, where)

    async def asked(self, connection: HTTPConnection) -> Decision | None:
        """Count a request whose key function or limiter may have to wait."""
        if not self._gate.waits:
            return self.ask(connection)
        try:
            return self._remembered(connection, await self._gate.decided(connection))
        except Refused as refused:
            raise self._refusal(connection, refused) from None

    def _remembered(self, connection: HTTPConnection, decision: Decision | None) -> Decision | None:
        if decision is not None:
            connection.scope.setdefault("state", {})["ratelimit"] = decision
        return decision

    def told(self, connection: HTTPConnection, decision: Decision) -> Fields:
        """Return the header fields of an allowed request that are left to its caller to send."""
        if self._gate.announcement.silent:
            return []
        said = connection.scope.setdefault(_FIELDS, [])
        new = _unsaid(said, self._gate.announcement.raw(decision))
        said += new
        return [] if _SENT in connection.scope else new

    def denial(self, connection: HTTPConnection, decision: Decision) -> RateLimitHTTPException:
        """Return what answers a denied request."""
        return self._denial(connection, decision, self._answer(connection, decision))

    async def denied(
        self, connection: HTTPConnection, decision: Decision
    ) -> RateLimitHTTPException:
        """Return what answers a denied request, where `on_denied` may have to wait."""
        answer = self._answer(connection, decision)
        if inspect.isawaitable(answer):
            answer = await answer
        return self._denial(connection, decision, answer)

    def _answer(self, connection: HTTPConnection, decision: Decision) -> Any:
        if self._on_denied is None or connection.scope["type"] != "http":
            return None
        return self._on_denied(connection, decision)

    def _denial(
        self, connection: HTTPConnection, decision: Decision, answer: Any
    ) -> RateLimitHTTPException:
        announcement = self._gate.announcement
        fields = announcement.raw(decision)
        response: ASGIApp
        if answer is None:
            body = announcement.body(decision, accept_of(connection.scope))
            response = RateLimitResponse(429, body, fields)
        else:
            response = _told(answer, fields)
        detail = announcement.body(decision, "text/plain").content.decode().strip()
        return RateLimitHTTPException(429, detail, _joined(fields), decision, response)

    def _refusal(self, connection: HTTPConnection, refused: Refused) -> RateLimitHTTPException:
        body = refusal(refused.status, refused.detail, accept_of(connection.scope))
        response = RateLimitResponse(refused.status, body, refused.raw)
        return RateLimitHTTPException(
            refused.status, refused.detail, dict(refused.fields), None, response
        )


def _unsaid(said: Fields, fields: Fields) -> Fields:
    """Return those fields that may be added to others: some stand in an answer once."""
    names = {name for name, _ in said if name in ONCE}
    return fields if not names else [field for field in fields if field[0] not in names]


def _joined(fields: Fields) -> dict[str, str]:
    """Return fields as a mapping: the values of lists in one line."""
    joined: dict[str, str] = {}
    for raw, value in fields:
        name = raw.decode()
        text = value.decode()
        joined[name] = f"{joined[name]}, {text}" if name in joined else text
    return joined


def limited(
    limit: AnyLimit,
    key: KeyFunction | Callable[[Any], Awaitable[Any]] = client_ip(),  # noqa: B008
    *,
    cost: int | Callable[[Any], int] = 1,
    headers: Kind | None = "draft",
    exempt: Callable[[Any], object] | None = None,
    on_denied: Callable[[Any, Decision], Any] | None = None,
    on_error: Literal["deny", "allow"] = "deny",
    name: str | None = None,
    shared: str | PathLike[str] | Literal[True] | None = None,
) -> Callable[[F], F]:
    """Limit an endpoint of Starlette: a function, sync or async, or a method of an HTTPEndpoint.

        @limited("5/minute")
        async def login(request): ...

        class Reports(HTTPEndpoint):
            @limited("10/hour", user())
            async def post(self, request): ...

    A denied request is answered 429 and does not reach the endpoint. Allowed ones are told of the
    limit in the header fields of the Response that the endpoint returns, and the endpoint reads
    the decision as ``request.state.ratelimit``. An endpoint of a WebSocket can be limited too: it
    is asked before it was accepted. A preflight of CORS passes uncounted.

    One decorator is one limit: the functions that it decorates share its counts, and so do
    decorators that are given the same `RateLimiter` or table. Where several stand above a
    function the outermost is asked first, and has counted when an inner one denies; to count in
    all or in none give several quotas to one: ``limited("10/second; 1000/hour")``.

    A whole route, class or mounted application is limited by its own
    ``middleware=[Middleware(RateLimitMiddleware, limiter="5/minute", key=client_ip())]``.

    Safe for any number of tasks, threads and loops. Adds a few microseconds to a request.

    Args:
        limit: A `RateLimiter`, or a quota that makes one: ``"5/minute"``. Around a coroutine
            function also an `AsyncRedisRateLimiter`; around a plain one, which Starlette runs in
            a thread, a `RedisRateLimiter`.
        key: Whose request it is: a callable on the request, or a coroutine function, or one of
            `client_ip`, `header`, `user`, `combine`. By default the client's address.
        cost: Units per request, or a callable on the request.
        headers: ``"draft"``: RateLimit and RateLimit-Policy; ``"x"``: X-RateLimit-*; ``"both"``;
            None. Retry-After is sent with every denial.
        exempt: A callable on the request; what it says True to passes uncounted.
        on_denied: A callable ``(request, decision)`` that gives the answer to a denied HTTP
            request: a Response, or a coroutine that gives one. The header fields are added to it.
        on_error: A key function that raises or gives None is logged, and the request is answered
            500 (``"deny"``) or let pass uncounted (``"allow"``). So is one for which a limiter of
            ``on_error="raise"`` raises `StoreUnavailableError`, but with 503 in the place of 500.
        name: What clients know the policy by; by default the limiter's name.
        shared: The table that all workers share, where `limit` is a quota: see `RateLimiter`.

    Raises:
        ValueError, TypeError: An argument is wrong; it is named.
    """
    guard = Guard(limit, key, cost, headers, exempt, on_denied, on_error, name, shared)

    def decorate(endpoint: F) -> F:
        return _around(endpoint, guard)

    return decorate


def _around(endpoint: F, guard: Guard) -> F:
    """Put a guard around an endpoint."""
    found: Any = endpoint
    if inspect.isclass(found) or not callable(found):
        what = "a class: decorate its methods" if inspect.isclass(found) else shown(found)
        raise TypeError(f"@limited decorates an endpoint, a function of a request, not {what}")
    name = getattr(found, "__qualname__", found)
    if inspect.iscoroutinefunction(found):
        guard.goes_with(True, f"the coroutine function {name}")
        return _around_coroutine(found, guard)  # type: ignore[return-value]
    guard.goes_with(False, f"the plain function {name}")
    if guard.waits:
        raise TypeError(
            "a key function or on_denied that is a coroutine function needs an endpoint that is "
            f"one too: {name} is not"
        )
    return _around_function(found, guard)  # type: ignore[return-value]


def _around_coroutine(endpoint: Callable[..., Any], guard: Guard) -> Callable[..., Any]:
    @functools.wraps(endpoint)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        connection = _connection(args, kwargs)
        if guard.passes(connection):
            return await endpoint(*args, **kwargs)
        try:
            decision = await guard.asked(connection)
            if decision is not None and not decision.allowed:
                raise await guard.denied(connection, decision)
        except RateLimitHTTPException as error:
            # Starlette sends what an endpoint returns, if it is one of HTTP.
            return await handle(connection, error)
        if decision is None:
            return await endpoint(*args, **kwargs)
        fields = guard.told(connection, decision)
        return _told(await endpoint(*args, **kwargs), fields)

    return wrapper


def _around_function(endpoint: Callable[..., Any], guard: Guard) -> Callable[..., Any]:
    @functools.wraps(endpoint)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        connection = _connection(args, kwargs)
        if guard.passes(connection):
            return endpoint(*args, **kwargs)
        try:
            decision = guard.ask(connection)
            if decision is not None and not decision.allowed:
                raise guard.denial(connection, decision)
        except RateLimitHTTPException as error:
            return error.response
        if decision is None:
            return endpoint(*args, **kwargs)
        fields = guard.told(connection, decision)
        return _told(endpoint(*args, **kwargs), fields)

    return wrapper


def _connection(args: tuple[Any, ...], kwargs: dict[str, Any]) -> HTTPConnection:
    for value in (*args[:2], *kwargs.values()):
        if isinstance(value, HTTPConnection):
            return value
    raise TypeError(
        "@limited found no request among the arguments of the endpoint; it goes around functions "
        "that Starlette calls with one (of FastAPI's, use Depends(limit(...)))"
    )


def _told(response: Any, fields: Fields) -> Any:
    """Add header fields to what an endpoint returned."""
    if not fields or not callable(response):
        return response
    if isinstance(response, Response):
        # It may be one that is returned each time.
        response = copy.copy(response)
        response.__dict__.pop("_headers", None)
        response.raw_headers = [
            *response.raw_headers,
            *_unsaid(response.raw_headers, fields),
        ]
        return response
    application: Any = response

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await application(scope, receive, announced(send, fields))

    return app


async def handle(connection: HTTPConnection, error: Exception) -> Any:
    """Answer for an exception: a handler as Starlette has them."""
    assert isinstance(error, RateLimitHTTPException)
    if not isinstance(connection, WebSocket):
        return error.response
    if connection.application_state is WebSocketState.CONNECTING:
        await error.response(connection.scope, connection.receive, connection.send)
    else:  # somebody has accepted it before the limit was asked
        await connection.close(1008)
    return None


def prepare(connection: HTTPConnection, error: RateLimitHTTPException) -> None:
    """See to it that the application answers `RateLimitHTTPException` as that wants to be.

    Starlette looks handlers up in a dict of the application's, which stands in the scope; one
    entry more, before the first denial, spares the user a line. It is no one's who has his own.
    Where a version has no such dict the exception is answered as any HTTPException: with the
    status and all header fields, and another body.

    What earlier limits said who allowed the request is added to its answer.
    """
    if _SENT not in connection.scope and error.decision is not None:
        error.response = _told(error.response, connection.scope.get(_FIELDS, []))
    handlers = connection.scope.get("starlette.exception_handlers")
    if handlers:
        handlers[0].setdefault(RateLimitHTTPException, handle)
