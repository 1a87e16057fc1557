"""A limit in front of a WSGI application: Flask, Django, Pyramid, Bottle or none.

from nanolimit import RateLimiter
from nanolimit.integrations.wsgi import RateLimitMiddleware, Rule, client_ip

app = RateLimitMiddleware(app, RateLimiter("100/minute", shared="web"), client_ip())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanolimit.integrations.answer import refusal
from nanolimit.integrations.gate import Gates, Refused, checked_exempt
from nanolimit.integrations.key import InvalidRequestError, client_ip, combine, header, user
from nanolimit.integrations.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Literal

    from nanolimit._core import Decision
    from nanolimit.integrations.answer import Body, Kind
    from nanolimit.integrations.gate import Gate
    from nanolimit.integrations.key import KeyFunction
    from nanolimit.integrations.rule import Limit

    # (wsgiref.types came with 3.11)
    WSGIEnvironment = dict[str, Any]
    StartResponse = Callable[..., Any]
    WSGIApplication = Callable[[Any, Any], Iterable[bytes]]

__all__ = [
    "InvalidRequestError",
    "RateLimitMiddleware",
    "Rule",
    "client_ip",
    "combine",
    "header",
    "user",
]

_STATUS = {
    400: "400 Bad Request",
    429: "429 Too Many Requests",
    500: "500 Internal Server Error",
    503: "503 Service Unavailable",
}
_ONCE = frozenset(
    ("retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
)


class RateLimitMiddleware:
    """Limits requests; a denied one is answered 429 and never reaches the application.

    A preflight of CORS (OPTIONS with Origin and Access-Control-Request-Method) passes uncounted.
    The application reads the decision as ``environ["nanolimit.decision"]``. Answers are not
    touched beyond their header fields: what streams goes on streaming.

    Safe for any number of threads. Adds a few microseconds to a request.

    Args:
        app: The application.
        limiter: A `RateLimiter` or a quota that makes one. With ``shared=`` all workers count
            together, with a `RedisRateLimiter` all machines. None: only what a rule fits is
            limited.
        key: Whose request it is: a callable on the environ, or one of `client_ip`, `header`,
            `user`, `combine`.
        cost: Units per request, or a callable on the environ.
        exempt: A callable on the environ; what it says True to passes uncounted.
        on_denied: A callable ``(environ, decision)`` that gives the answer to a denied request: a
            WSGI application, such as a Response of Werkzeug. The header fields are added to it.
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
        app: WSGIApplication,
        limiter: Limit | None,
        key: KeyFunction,
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
                "on_denied must be a callable (environ, decision) that returns a WSGI application, "
                f"not {type(on_denied).__name__}"
            )
        self.app = app
        self._gates = Gates(
            limiter,
            key,
            cost,
            headers,
            rules,
            on_error,
            name,
            awaits=False,
            where="a WSGI application",
        )
        self._exempt = checked_exempt(exempt)
        self._on_denied = on_denied

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if method == "OPTIONS" and _is_preflight(environ):
            return self.app(environ, start_response)
        gate = self._gates.find(method, _path(environ))
        if gate is None or (self._exempt is not None and self._exempt(environ)):
            return self.app(environ, start_response)
        try:
            decision = gate.decide(environ)
        except Refused as refused:
            body = refusal(refused.status, refused.detail, environ.get("HTTP_ACCEPT", ""))
            return _answer(environ, start_response, refused.status, body, refused.fields)
        if decision is None:
            return self.app(environ, start_response)
        environ["nanolimit.decision"] = decision
        if not decision.allowed:
            return self._deny(gate, decision, environ, start_response)
        if not gate.announcement.silent:
            start_response = announced(start_response, gate.announcement.fields(decision))
        return self.app(environ, start_response)

    def _deny(
        self,
        gate: Gate,
        decision: Decision,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        fields = gate.announcement.fields(decision)
        if self._on_denied is not None:
            answer = self._on_denied(environ, decision)
            if answer is not None:
                return answer(environ, announced(start_response, fields))  # type: ignore[no-any-return]
        body = gate.announcement.body(decision, environ.get("HTTP_ACCEPT", ""))
        return _answer(environ, start_response, 429, body, fields)


def announced(start_response: StartResponse, fields: list[tuple[str, str]]) -> StartResponse:
    """Return a `start_response` that adds header fields.

    One that the application set itself stays as it is.
    """

    def announcing(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        # The draft's fields are lists, and may be said again for another policy.
        said = {name.lower() for name, _ in headers if name.lower() in _ONCE}
        more = fields if not said else [field for field in fields if field[0].lower() not in said]
        if exc_info is None:
            return start_response(status, [*headers, *more])
        return start_response(status, [*headers, *more], exc_info)

    return announcing


def _path(environ: WSGIEnvironment) -> str:
    """Return the path within the application, as text: PEP 3333 has its bytes as Latin-1."""
    path: str = environ.get("PATH_INFO") or "/"
    return path if path.isascii() else path.encode("latin-1").decode("utf-8", "replace")


def _is_preflight(environ: WSGIEnvironment) -> bool:
    return "HTTP_ORIGIN" in environ and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ


def _answer(
    environ: WSGIEnvironment,
    start_response: StartResponse,
    status: int,
    body: Body,
    fields: list[tuple[str, str]],
) -> Iterable[bytes]:
    """Answer in the application's stead."""
    start_response(
        _STATUS[status],
        [
            ("Content-Type", body.content_type),
            ("Content-Length", str(len(body.content))),
            *fields,
        ],
    )
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body.content]
