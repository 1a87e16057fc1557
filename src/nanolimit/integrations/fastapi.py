"""Limits for FastAPI: a dependency for a route, a router or an application.

    from fastapi import APIRouter, Depends, FastAPI
    from nanolimit.integrations.fastapi import limit

    app = FastAPI(dependencies=[Depends(limit("100/minute"))])

    @app.post("/login", dependencies=[Depends(limit("5/minute"))])
    async def login(): ...

Nothing is to be registered. `RateLimitHeaders` is for applications whose endpoints return
Responses of their own: see there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from fastapi import Response
    from fastapi.requests import HTTPConnection
except ImportError as _error:
    raise ImportError(
        "nanolimit.integrations.fastapi needs FastAPI: pip install 'nanolimit[fastapi]'"
    ) from _error

from nanolimit._core import Decision
from nanolimit.integrations.answer import QUOTA_EXCEEDED
from nanolimit.integrations.starlette import (
    Guard,
    InvalidRequestError,
    RateLimitHeaders,
    RateLimitHTTPException,
    RateLimitMiddleware,
    Rule,
    client_ip,
    combine,
    header,
    prepare,
    user,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from os import PathLike
    from typing import Literal

    from nanolimit.integrations.answer import Kind
    from nanolimit.integrations.key import KeyFunction
    from nanolimit.integrations.rule import AwaitedLimit

__all__ = [
    "RESPONSES",
    "InvalidRequestError",
    "RateLimitHTTPException",
    "RateLimitHeaders",
    "RateLimitMiddleware",
    "Rule",
    "client_ip",
    "combine",
    "header",
    "limit",
    "user",
]

#: What a denial looks like, for OpenAPI: ``@app.get("/", responses=RESPONSES)``, or of a whole
#: router or application.
RESPONSES: dict[int | str, dict[str, Any]] = {
    429: {
        "description": "Too Many Requests",
        "headers": {
            "Retry-After": {
                "description": "Seconds until the request would be allowed.",
                "schema": {"type": "integer", "minimum": 1},
            },
            "RateLimit-Policy": {
                "description": "The quotas, as in draft-ietf-httpapi-ratelimit-headers.",
                "schema": {"type": "string"},
                "example": '"default";q=5;w=60',
            },
            "RateLimit": {
                "description": "What is left of the binding one, and seconds until it is whole.",
                "schema": {"type": "string"},
                "example": '"default";r=0;t=42',
            },
        },
        "content": {
            "application/problem+json": {
                "schema": {
                    "title": "QuotaExceeded",
                    "type": "object",
                    "required": ["type", "title", "status", "detail", "violated-policies"],
                    "properties": {
                        "type": {"type": "string", "const": QUOTA_EXCEEDED},
                        "title": {"type": "string"},
                        "status": {"type": "integer", "const": 429},
                        "detail": {"type": "string"},
                        "violated-policies": {"type": "array", "items": {"type": "string"}},
                    },
                }
            }
        },
    }
}


def limit(
    limit: AwaitedLimit,
    key: KeyFunction | Callable[[Any], Awaitable[Any]] = client_ip(),  # noqa: B008
    *,
    cost: int | Callable[[Any], int] = 1,
    headers: Kind | None = "draft",
    exempt: Callable[[Any], object] | None = None,
    on_denied: Callable[[Any, Decision], Any] | None = None,
    on_error: Literal["deny", "allow"] = "deny",
    name: str | None = None,
    shared: str | PathLike[str] | Literal[True] | None = None,
) -> Callable[[HTTPConnection, Response], Awaitable[Decision | None]]:
    """Make a dependency that limits: ``Depends(limit("5/minute"))``.

    It goes wherever a dependency goes: of a route, of a router, of an application, or as a
    parameter, which then is the decision: ``decision: Annotated[Decision, Depends(limit(...))]``.
    Endpoints may be sync or async; the limit itself never uses the thread pool. The decision is
    also ``request.state.ratelimit``, the last one if there were several.

    A denied request is answered 429 and does not reach the endpoint: a `RateLimitHTTPException` is
    raised that needs no handler. A denied WebSocket is answered 429 where the server can do that
    (uvicorn can), else closed. A preflight of CORS passes uncounted. Allowed requests are told of
    the limit in the header fields of the answer that FastAPI builds from what the endpoint
    returns. Where the endpoint returns a Response of its own, or raises, FastAPI leaves out what
    dependencies have set: `RateLimitHeaders` sees to it.

    One dependency is one limit. On a router, its routes share the counts; so do dependencies that
    are given the same `RateLimiter` or table. The same dependency counts a request once, even if
    it stands in several places of it. Of several, FastAPI asks the application's first, then the
    router's, then the route's; the earlier ones have counted when a later one denies. To count in
    all or in none give several quotas to one: ``limit("10/second; 1000/hour")``.

    FastAPI asks dependencies after it has read the body, and before it refuses parameters that
    are wrong: a request that ends in a 422 has counted. What is to be refused before its body is
    read is the middleware's to refuse, `RateLimitMiddleware`.

    Safe for any number of tasks, threads and loops. Adds a few microseconds to a request, besides
    what a dependency costs.

    Args:
        limit: A `RateLimiter`, or a quota that makes one: ``"5/minute"``; or an
            `AsyncRedisRateLimiter`, also where the endpoint is a plain function.
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

    Returns:
        The dependency. It gives the `Decision`, None for a request that passed uncounted. It can be
        a key of ``app.dependency_overrides``.

    Raises:
        ValueError, TypeError: An argument is wrong; it is named.
    """
    guard = Guard(limit, key, cost, headers, exempt, on_denied, on_error, name, shared)
    guard.goes_with(True, "a FastAPI application")

    # FastAPI reads this signature: no parameter of it is one of the request's.
    async def ratelimit(connection: HTTPConnection, response: Response) -> Decision | None:
        if guard.passes(connection):
            return None
        try:
            decision = await guard.asked(connection)
            if decision is None:
                return None
            if not decision.allowed:
                raise await guard.denied(connection, decision)
        except RateLimitHTTPException as error:
            prepare(connection, error)
            raise
        for field, value in guard.told(connection, decision):
            response.headers.append(field.decode(), value.decode())
        return decision

    return ratelimit
