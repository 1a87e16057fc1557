"""The middlewares for ASGI and WSGI: what they let pass, deny, tell and refuse.

Both are driven by one set of tests, each by its own protocol and without a server; real servers
stand in tests/integration.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from nanolimit import LimiterClosedError, ManualClock, RateLimiter
from nanolimit.integrations import InvalidRequestError, Rule, client_ip, header
from nanolimit.integrations.asgi import RateLimitMiddleware as Asgi
from nanolimit.integrations.wsgi import RateLimitMiddleware as Wsgi


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        found = [value for field, value in self.headers if field.lower() == name.lower()]
        assert len(found) <= 1, f"{name} stands there {len(found)} times"
        return found[0] if found else None


class AsgiSide:
    middleware: Any = Asgi

    def __init__(self, *args: Any, own: list[tuple[str, str]] | None = None, **kwargs: Any) -> None:
        self.served = 0
        self.decisions: list[Any] = []
        self.app = Asgi(self._serve, *args, **kwargs)
        self.own = own or []

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        self.served += 1
        self.decisions.append(scope.get("state", {}).get("ratelimit"))
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(name.lower().encode(), value.encode()) for name, value in self.own],
            }
        )
        for piece in (b"one ", b"two"):
            await send({"type": "http.response.body", "body": piece, "more_body": piece != b"two"})

    def request(
        self, method: str = "GET", path: str = "/", peer: str = "192.0.2.1", **headers: str
    ) -> Answer:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "client": (peer, 1),
            "headers": [
                (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
            ],
        }
        asyncio.run(self.app(scope, _never, send))
        start, *rest = sent
        assert start["type"] == "http.response.start"
        assert all(message["type"] == "http.response.body" for message in rest)
        return Answer(
            start["status"],
            [(name.decode(), value.decode()) for name, value in start["headers"]],
            b"".join(message["body"] for message in rest),
        )

    @staticmethod
    def answering(body: bytes) -> Any:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 418, "headers": []})
            await send({"type": "http.response.body", "body": body})

        return answer


async def _never() -> Any:
    raise AssertionError("nobody reads the request")


class WsgiSide:
    middleware: Any = Wsgi

    def __init__(self, *args: Any, own: list[tuple[str, str]] | None = None, **kwargs: Any) -> None:
        self.served = 0
        self.decisions: list[Any] = []
        self.app = Wsgi(self._serve, *args, **kwargs)
        self.own = own or []

    def _serve(self, environ: Any, start_response: Any) -> Any:
        self.served += 1
        self.decisions.append(environ.get("nanolimit.decision"))
        start_response("200 OK", list(self.own))
        return iter([b"one ", b"two"])

    def request(
        self, method: str = "GET", path: str = "/", peer: str = "192.0.2.1", **headers: str
    ) -> Answer:
        started: list[Any] = []
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "REMOTE_ADDR": peer,
            **{"HTTP_" + name.upper(): value for name, value in headers.items()},
        }
        pieces = self.app(environ, lambda *args: started.append(args))
        body = b"".join(pieces)
        [(status, fields)] = started
        return Answer(int(status.split()[0]), fields, body)

    @staticmethod
    def answering(body: bytes) -> Any:
        def answer(environ: Any, start_response: Any) -> Any:
            start_response("418 I'm a Teapot", [])
            return [body]

        return answer


Side = Callable[..., Any]
BOTH = pytest.mark.parametrize("side", [AsgiSide, WsgiSide])


@BOTH
def test_it_allows_then_denies(side: Side) -> None:
    web = side(RateLimiter("2/minute", clock=ManualClock()), client_ip())
    for remaining in (1, 0):
        answer = web.request()
        assert (answer.status, answer.body) == (200, b"one two")
        assert answer.get("ratelimit") == f'"default";r={remaining};t=60'
        assert answer.get("ratelimit-policy") == '"default";q=2;w=60'
        assert answer.get("retry-after") is None
    answer = web.request()
    assert answer.status == 429
    assert web.served == 2
    assert answer.get("retry-after") == "60"
    assert answer.get("ratelimit") == '"default";r=0;t=60'
    assert answer.get("content-type") == "application/problem+json"
    assert answer.get("content-length") == str(len(answer.body))
    assert json.loads(answer.body)["status"] == 429
    assert web.request(peer="192.0.2.2").status == 200
    assert [decision.remaining for decision in web.decisions] == [1, 0, 1]


@BOTH
def test_a_denied_head_has_no_body(side: Side) -> None:
    web = side("1/minute", client_ip())
    web.request()
    answer = web.request("HEAD", accept="text/plain")
    assert (answer.status, answer.body) == (429, b"")
    assert answer.get("content-type") == "text/plain; charset=utf-8"
    assert int(answer.get("content-length")) > 0


@BOTH
def test_a_preflight_passes_uncounted(side: Side) -> None:
    web = side("1/minute", client_ip())
    asks = {"origin": "https://a.example", "access_control_request_method": "PUT"}
    for _ in range(3):
        answer = web.request("OPTIONS", **asks)
        assert answer.status == 200
        assert answer.get("ratelimit") is None
    assert web.request("OPTIONS", origin="https://a.example").status == 200
    # What is no preflight counts like anything else.
    assert web.request("OPTIONS").status == 429
    assert web.request("GET", **asks).status == 429


@BOTH
@pytest.mark.parametrize(("headers", "told"), [("draft", 2), ("x", 3), ("both", 5), (None, 0)])
def test_the_kinds_of_headers(side: Side, headers: Any, told: int) -> None:
    web = side("1/minute", client_ip(), headers=headers)
    assert len(web.request().headers) == told
    assert len(web.request().headers) == told + 3  # retry-after, content-type, content-length


@BOTH
def test_what_the_application_says_itself_stays(side: Side) -> None:
    own = [("X-RateLimit-Limit", "7"), ("RateLimit-Policy", '"own";q=7'), ("Other", "1")]
    web = side("1/minute", client_ip(), headers="both", own=own)
    answer = web.request()
    assert answer.get("x-ratelimit-limit") == "7"
    assert answer.get("x-ratelimit-remaining") == "0"
    assert answer.get("other") == "1"
    # The draft's field is a list, and a limit further in has a policy of its own.
    policies = [value for name, value in answer.headers if name.lower() == "ratelimit-policy"]
    assert policies == ['"own";q=7', '"default";q=1;w=60']


@BOTH
def test_the_first_rule_that_fits(side: Side) -> None:
    rules = [
        Rule("GET /health", None),
        Rule("POST /login", "1/minute", name="login"),
        Rule("/**", RateLimiter("3/minute"), key=lambda request: "all", cost=2),
    ]
    web = side(None, client_ip(), rules=rules)
    assert all(web.request(path="/health").status == 200 for _ in range(9))
    answer = web.request("POST", "/login/")
    assert answer.get("ratelimit-policy") == '"login";q=1;w=60'
    assert web.request("POST", "/login").status == 429
    # A rule with a limiter of its own leaves the others alone.
    assert web.request("GET", "/login").get("ratelimit") == '"default";r=1;t=60'
    assert web.request("GET", "/", peer="192.0.2.9").status == 429


@BOTH
def test_the_rest_has_the_limiter_of_the_middleware(side: Side) -> None:
    web = side("1/minute", client_ip(), rules=[Rule("/login", "2/minute")])
    assert [web.request(path="/").status for _ in range(2)] == [200, 429]
    assert [web.request(path="/login").status for _ in range(3)] == [200, 200, 429]


@BOTH
def test_costs_and_exemptions(side: Side) -> None:
    def cost(request: Any) -> int:
        return 3 if header("x-big")(request) != "192.0.2.1" else 1

    web = side(
        "4/minute",
        client_ip(),
        cost=cost,
        exempt=lambda request: header("x-free", missing=lambda r: "")(request) != "",
    )
    assert web.request(x_big="yes").get("ratelimit") == '"default";r=1;t=60'
    assert web.request(x_free="yes").get("ratelimit") is None
    assert web.request(x_big="yes").status == 429
    assert web.request().status == 200


@BOTH
def test_an_answer_of_ones_own(side: Side) -> None:
    seen = []

    def on_denied(request: Any, decision: Any) -> Any:
        seen.append(decision)
        return side.answering(b"slow down") if len(seen) == 1 else None  # type: ignore[attr-defined]

    web = side("1/minute", client_ip(), on_denied=on_denied)
    web.request()
    answer = web.request()
    assert (answer.status, answer.body) == (418, b"slow down")
    assert answer.get("retry-after") == "60"
    assert answer.get("ratelimit") == '"default";r=0;t=60'
    assert not seen[0].allowed
    assert web.request().status == 429  # None: the usual one


@BOTH
@pytest.mark.parametrize("broken", ["raises", "none", "float", "closed"])
def test_who_it_is_cannot_be_told(
    side: Side, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = RateLimiter("1/minute")

    def key(request: Any) -> Any:
        if broken == "raises":
            raise KeyError("tenant")
        return {"none": None, "float": 1.5}.get(broken, "me")

    denying = side(limiter, key)
    allowing = side(limiter, key, on_error="allow")
    if broken == "closed":
        limiter.close()
    with caplog.at_level(logging.ERROR, "nanolimit"):
        answer = denying.request(accept="text/plain")
        assert (answer.status, denying.served) == (500, 0)
        assert answer.body == b"The server could not tell whose request this is.\n"
        assert allowing.request().status == 200
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert all(record.exc_info for record in caplog.records)
    error = caplog.records[0].exc_info[1]  # type: ignore[index]
    assert isinstance(error, LimiterClosedError if broken == "closed" else (KeyError, TypeError))
    if broken == "none":
        assert "returned None" in str(error)


@BOTH
def test_a_request_that_can_be_nobodys(side: Side, caplog: pytest.LogCaptureFixture) -> None:
    web = side("1/minute", client_ip(["192.0.2.0/24"]), on_error="allow")
    answer = web.request(x_forwarded_for="<garbage>")
    assert (answer.status, web.served) == (400, 0)
    assert json.loads(answer.body)["title"] == "Bad Request"
    assert not caplog.records, "anybody can send one: it is no error of ours"


@BOTH
def test_a_key_with_a_line_break_gets_nowhere(side: Side) -> None:
    web = side("1/minute", lambda request: "a\r\nSet-Cookie: x=1", headers="both", name="a\r\nb")
    for answer in (web.request(), web.request()):
        for name, value in answer.headers:
            assert "\r" not in name + value
            assert "\n" not in name + value
            assert "Set-Cookie" not in name + value


@BOTH
@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        (("5/fortnight", client_ip()), {}, ValueError, "'fortnight' is no unit"),
        ((5, client_ip()), {}, TypeError, "limiter must be a RateLimiter or a quota such as"),
        ((None, client_ip()), {}, TypeError, "limiter may be None only where there are rules"),
        (("5/minute", "ip"), {}, TypeError, "key must be a key function such as client_ip"),
        (("5/minute", None), {}, TypeError, "key must be a key function .* not None"),
        (("5/minute", client_ip()), {"cost": 6}, ValueError, "cost .*6"),
        (("5/minute", client_ip()), {"cost": -1}, ValueError, "cost .*-1"),
        (("5/minute", client_ip()), {"cost": 1.5}, TypeError, "cost .*float"),
        (("5/minute", client_ip()), {"headers": "X"}, ValueError, "headers must be .* not 'X'"),
        (("5/minute", client_ip()), {"exempt": ["/"]}, TypeError, "exempt must be a callable"),
        (("5/minute", client_ip()), {"on_denied": "no"}, TypeError, "on_denied must be a callable"),
        (("5/minute", client_ip()), {"on_error": "no"}, ValueError, "'deny' or 'allow', not 'no'"),
        (("5/minute", client_ip()), {"rules": ["/"]}, TypeError, "rules must be a list of Rule"),
        (
            ("5/minute", client_ip()),
            {"rules": [Rule("/", "5/minute", cost=6)]},
            ValueError,
            "cost .*6",
        ),
    ],
)
def test_bad_input(
    side: Side,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    error: type[Exception],
    said: str,
) -> None:
    with pytest.raises(error, match=said):
        side(*arguments, **options)


# ASGI alone


def test_a_key_function_that_waits() -> None:
    async def key(scope: Any) -> str:
        await asyncio.sleep(0)
        return "me"

    web = AsgiSide("1/minute", key)
    assert [web.request().status for _ in range(2)] == [200, 429]


def test_an_answer_that_waits() -> None:
    async def on_denied(scope: Any, decision: Any) -> Any:
        await asyncio.sleep(0)
        return AsgiSide.answering(b"later")

    web = AsgiSide("1/minute", client_ip(), on_denied=on_denied)
    assert [web.request().status for _ in range(2)] == [200, 418]


def test_lifespan_passes() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(Asgi(app, "1/minute", client_ip())({"type": "lifespan"}, _never, _never))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


def connect(app: Any, extensions: Any, first: str = "websocket.connect") -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": first}

    scope = {
        "type": "websocket",
        "path": "/ws",
        "client": ("192.0.2.1", 1),
        "headers": [],
        "extensions": extensions,
    }
    asyncio.run(app(scope, receive, send))
    return sent


def test_websockets() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "hi"})

    limited = Asgi(app, "1/minute", client_ip())
    accepted, message = connect(limited, None)
    assert (b"ratelimit", b'"default";r=0;t=60') in accepted["headers"]
    assert message == {"type": "websocket.send", "text": "hi"}
    assert connect(limited, None) == [{"type": "websocket.close", "code": 1008, "reason": ""}]
    start, body = connect(limited, {"websocket.http.response": {}})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 429)
    assert (b"retry-after", b"60") in start["headers"]
    assert body["type"] == "websocket.http.response.body"
    assert json.loads(body["body"])["status"] == 429
    assert connect(limited, None, "websocket.disconnect") == []


def test_a_mounted_application_sees_its_own_paths() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])

    limited = Asgi(app, None, client_ip(), rules=[Rule("/login", "1/minute")])

    def call(path: str, root: str) -> None:
        scope = {
            "type": "http", "method": "GET", "path": path, "root_path": root,
            "client": ("192.0.2.1", 1), "headers": [],
        }  # fmt: skip

        async def send(message: Any) -> None:
            seen.append(message.get("status"))

        asyncio.run(limited(scope, _never, send))

    call("/api/login", "/api")
    call("/api/login", "/api")
    call("/apilogin", "/api")
    call("/api/login", "")
    assert seen == ["/api/login", 429, None, "/apilogin", "/api/login"]


def test_the_error_has_a_name() -> None:
    assert issubclass(InvalidRequestError, Exception)
