"""A limit in front of an ASGI application: Starlette, FastAPI, Django, Quart, Litestar or none.

    from nanolimit import RateLimiter
    from nanolimit.integrations.asgi import RateLimitMiddleware, Rule, client_ip

    app = RateLimitMiddleware(app, RateLimiter("100/minute", shared="web"), client_ip())

A check is a call into C: it waits for nothing, so there is no task, no thread and no `await` for
it. That of an `AsyncRedisRateLimiter` is awaited. Answers are streamed as the application sends
them; their first message gets the header fields.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from nanolimit.integrations.answer import refusal
from nanolimit.integrations.gate import Gates, Refused, checked_exempt
from nanolimit.integrations.key import InvalidRequestError, client_ip, combine, header, user
from nanolimit.integrations.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping
    from typing import Literal

    from nanolimit._core import Decision
    from nanolimit.integrations.answer import Body, Kind
    from nanolimit.integrations.gate import Gate
    from nanolimit.integrations.key import KeyFunction
    from nanolimit.integrations.rule import AwaitedLimit

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

__all__ = [
    "InvalidRequestError",
    "RateLimitMiddleware",
    "Rule",
    "client_ip",
    "combine",
    "header",
    "user",
]

# The first message of an answer, of whatever kind.
_STARTS = frozenset(("http.response.start", "websocket.accept", "websocket.http.response.start"))


class RateLimitMiddleware:
    """Limits HTTP requests and WebSocket connects; everything else passes, `lifespan` too.

    A denied request is answered 429 and never reaches the application. A denied WebSocket is
    answered 429 where the server can do that (the extension ``websocket.http.response``), else it
    is closed before it was accepted, which servers turn into a 403. A preflight of CORS (OPTIONS
    with Origin and Access-Control-Request-Method) passes uncounted: a browser could not make the
    request that it asks for. To let a page of another origin read a 429, put the CORS middleware
    outside of this one.

    The decision is the application's to read: ``scope["state"]["ratelimit"]``, which Starlette
    calls ``request.state.ratelimit``.

    Safe for any number of tasks, threads and loops. Adds a few microseconds to a request.

    Args:
        app: The application.
        limiter: A `RateLimiter` or a quota that makes one. With ``shared=`` all workers count
            together, with an `AsyncRedisRateLimiter` all machines. None: only what a rule fits is
            limited.
        key: Whose request it is: a callable on the scope, or a coroutine function, or one of
            `client_ip`, `header`, `user`, `combine`.
        cost: Units per request, or a callable on the scope.
        exempt: A callable on the scope; what it says True to passes uncounted.
        on_denied: A callable ``(scope, decision)`` that gives the answer to a denied HTTP request:
            an ASGI application, such as a Response of Starlette, or a coroutine that gives one.
            The header fields are added to it.
        headers: ``"draft"``: RateLimit and RateLimit-Policy; ``"x"``: X-RateLimit-*; ``"both"``;
            None. Retry-After is sent with every denial.
        rules: Other limits for some requests: ``[Rule("POST /login", "5/minute"), ...]``. The first
            that fits counts.
        on_error: A key function that raises or gives None is logged, and the request is answered
            500 (``"deny"``) or let pass uncounted (``"allow"``). So is one for which a limiter of
            ``on_error="raise"`` raises `StoreUnavailableError`, but with 503 in the place of 500.
        name: What clients know the policy by; by default the limiter's name.

    Raises:
        ValueError, TypeError: An argument is wrong; it is named. A key function that raises
            `InvalidRequestError` for a request has it answered 400.
    """

    def __init__(
        self,
        app: ASGIApp,
        limiter: AwaitedLimit | None,
        key: KeyFunction | Callable[[Any], Awaitable[Any]],
        *,
        cost: int | Callable[[Any], int] = 1,
        exempt: Callable[[Any], object] | None = None,
        on_denied: Callable[[Any, Decision], Any] | None = None,
        headers: Kind | None = "draft",
        rules: Iterable[Rule] = (),
        on_error: Literal["deny", "allow"] = "deny",
        name: str | None = None,
    ) -> None:
        if on_denied is not None and not callable(on_denied):
            raise TypeError(
                "on_denied must be a callable (scope, decision) that returns an ASGI application, "
                f"not {type(on_denied).__name__}"
            )
        self.app = app
        self._gates = Gates(
            limiter,
            key,  # type: ignore[arg-type]
            cost,
            headers,
            rules,
            on_error,
            name,
            awaits=True,
            where="an ASGI application",
        )
        self._exempt = checked_exempt(exempt)
        self._on_denied = on_denied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            method = scope["method"]
            if method == "OPTIONS" and is_preflight(scope):
                return await self.app(scope, receive, send)
        elif kind == "websocket":
            method = "GET"
        else:
            return await self.app(scope, receive, send)
        gate = self._gates.find(method, _path(scope))
        if gate is None or (self._exempt is not None and self._exempt(scope)):
            return await self.app(scope, receive, send)
        try:
            decision = await gate.decided(scope) if gate.waits else gate.decide(scope)
        except Refused as refused:
            body = refusal(refused.status, refused.detail, accept_of(scope))
            return await respond(scope, receive, send, refused.status, body, refused.raw)
        if decision is None:
            return await self.app(scope, receive, send)
        scope.setdefault("state", {})["ratelimit"] = decision
        if not decision.allowed:
            return await self._deny(gate, decision, scope, receive, send)
        if not gate.announcement.silent:
            send = announced(send, gate.announcement.raw(decision))
        return await self.app(scope, receive, send)

    async def _deny(
        self, gate: Gate, decision: Decision, scope: Scope, receive: Receive, send: Send
    ) -> None:
        fields = gate.announcement.raw(decision)
        if self._on_denied is not None and scope["type"] == "http":
            answer = self._on_denied(scope, decision)
            if inspect.isawaitable(answer):
                answer = await answer
            if answer is not None:
                return await answer(scope, receive, announced(send, fields))  # type: ignore[no-any-return]
        body = gate.announcement.body(decision, accept_of(scope))
        return await respond(scope, receive, send, 429, body, fields)


def announced(send: Send, fields: list[tuple[bytes, bytes]]) -> Send:
    """Return a `send` that adds header fields to the first message of an answer.

    One that the application set itself stays as it is.
    """

    # No coroutine of its own: it hands out that of `send`, message by message.
    def announcing(message: Message) -> Awaitable[None]:
        if message["type"] in _STARTS:
            headers = message.get("headers", ())
            # The draft's fields are lists, and may be said again for another policy.
            said = [name.lower() for name, _ in headers if name.lower() in ONCE]
            more = fields if not said else [field for field in fields if field[0] not in said]
            message = {**message, "headers": [*headers, *more]}
        return send(message)

    return announcing


ONCE = frozenset(
    (b"retry-after", b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset")
)


def _path(scope: Scope) -> str:
    """Return the path within the application: a mounted one sees its own only."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("/", ""):
        return path[len(root) :] or "/"
    return path


def is_preflight(scope: Scope) -> bool:
    """Say whether an OPTIONS request is a preflight of CORS."""
    names = {name.lower() for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names


def accept_of(scope: Scope) -> str:
    """Return what a client accepts, '' if it does not say."""
    return ",".join(
        value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"accept"
    )


async def respond(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    body: Body,
    fields: list[tuple[bytes, bytes]],
) -> None:
    """Answer in the application's stead."""
    prefix = ""
    if scope["type"] == "websocket":
        message = await receive()
        if message["type"] != "websocket.connect":
            return  # it has gone away
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        prefix = "websocket."
    await send(
        {
            "type": f"{prefix}http.response.start",
            "status": status,
            "headers": [
                (b"content-type", body.content_type.encode()),
                (b"content-length", b"%d" % len(body.content)),
                *fields,
            ],
        }
    )
    head = scope.get("method") == "HEAD"
    await send({"type": f"{prefix}http.response.body", "body": b"" if head else body.content})
