"""Starlette: `limited` around endpoints, and the middleware as an application takes it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import http.client
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    SimpleUser,
)
from starlette.background import BackgroundTask
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket

from nanolimit import Decision, RateLimiter
from nanolimit.integrations.starlette import (
    RateLimitHeaders,
    RateLimitMiddleware,
    RateLimitResponse,
    Rule,
    client_ip,
    limited,
    user,
)
from server import Server

QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"


async def ok(request: Request) -> Response:
    return PlainTextResponse("ok")


def client_of(*routes: BaseRoute, middleware: Any = (), **options: Any) -> TestClient:
    return TestClient(Starlette(routes=list(routes), middleware=list(middleware)), **options)


def statuses(client: TestClient, path: str, times: int, **options: Any) -> list[int]:
    return [client.get(path, **options).status_code for _ in range(times)]


# The decorator


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_an_endpoint_of_either_kind(kind: str) -> None:
    ran = []

    def function(request: Request) -> Response:
        ran.append(request.state.ratelimit)
        return PlainTextResponse("ok")

    async def coroutine(request: Request) -> Response:
        return function(request)

    endpoint = limited("2/minute", name="api")(coroutine if kind == "async" else function)
    assert endpoint.__name__ == ("coroutine" if kind == "async" else "function")
    client = client_of(Route("/", endpoint))
    answers = [client.get("/") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["RateLimit"] for answer in answers[:2]] == [
        '"api";r=1;t=60',
        '"api";r=0;t=60',
    ]
    assert [decision.remaining for decision in ran] == [1, 0]
    denied = answers[2]
    assert denied.headers["RateLimit-Policy"] == '"api";q=2;w=60'
    assert 1 <= int(denied.headers["Retry-After"]) <= 60
    assert denied.headers["Content-Type"] == "application/problem+json"
    assert denied.json()["type"] == QUOTA_EXCEEDED
    text = client.get("/", headers={"Accept": "text/plain"})
    assert text.text.startswith("At most 2 requests in 60 s")


def test_methods_of_an_endpoint() -> None:
    class Endpoint(HTTPEndpoint):
        @limited("1/minute")
        async def get(self, request: Request) -> Response:
            return PlainTextResponse("got")

        @limited("2/minute")
        def post(self, request: Request) -> Response:
            return PlainTextResponse("posted")

    client = client_of(Route("/", Endpoint))
    assert statuses(client, "/", 2) == [200, 429]
    assert [client.post("/").status_code for _ in range(3)] == [200, 200, 429]


def test_one_decorator_is_one_limit() -> None:
    limit = limited("2/minute")
    shared = RateLimiter("1/minute")
    client = client_of(
        Route("/a", limit(ok)),
        Route("/b", limit(lambda request: PlainTextResponse("b"))),
        Route("/c", limited(shared)(ok)),
        Route("/d", limited(shared)(ok)),
    )
    assert [client.get(path).status_code for path in ("/a", "/b", "/a")] == [200, 200, 429]
    assert [client.get(path).status_code for path in ("/c", "/d")] == [200, 429]


def test_decorators_on_top_of_each_other() -> None:
    outer, inner = RateLimiter("3/minute", name="outer"), RateLimiter("1/minute", name="inner")
    client = client_of(Route("/", limited(outer)(limited(inner)(ok))))
    allowed, denied = client.get("/"), client.get("/")
    assert sorted(allowed.headers.get_list("RateLimit-Policy")) == [
        '"inner";q=1;w=60',
        '"outer";q=3;w=60',
    ]
    assert denied.status_code == 429
    assert denied.json()["violated-policies"] == ["inner"]
    assert sorted(denied.headers.get_list("RateLimit-Policy")) == [
        '"inner";q=1;w=60',
        '"outer";q=3;w=60',
    ]
    assert outer.peek("testclient", cost=0).remaining == 1


def test_a_response_that_is_returned_each_time_stays_as_it_is() -> None:
    response = PlainTextResponse("ok", headers={"X-RateLimit-Limit": "mine"})
    before = list(response.raw_headers)

    @limited("5/minute", headers="both")
    async def endpoint(request: Request) -> Response:
        return response

    client = client_of(Route("/", endpoint))
    for remaining in (4, 3, 2):
        answer = client.get("/")
        assert answer.headers.get_list("RateLimit") == [f'"default";r={remaining};t=60']
        assert answer.headers.get_list("X-RateLimit-Limit") == ["mine"]
        assert answer.headers["X-RateLimit-Remaining"] == str(remaining)
    assert response.raw_headers == before


def test_what_an_endpoint_returns_may_be_any_application() -> None:
    @limited("1/minute")
    async def endpoint(request: Request) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await PlainTextResponse("any")(scope, receive, send)

        return app

    answer = client_of(Route("/", endpoint)).get("/")
    assert answer.text == "any"
    assert answer.headers["RateLimit"] == '"default";r=0;t=60'


def test_streams_and_background_tasks() -> None:
    done = []

    @limited("1/minute")
    async def endpoint(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for number in range(3):
                yield b"%d" % number

        return StreamingResponse(pieces(), background=BackgroundTask(done.append, 1))

    client = client_of(Route("/", endpoint))
    answer = client.get("/")
    assert answer.text == "012"
    assert answer.headers["RateLimit"] == '"default";r=0;t=60'
    assert done == [1]
    assert client.get("/").status_code == 429
    assert done == [1]


def test_costs_exemptions_and_other_answers() -> None:
    async def on_denied(request: Request, decision: Decision) -> Response:
        return JSONResponse({"limit": decision.limit}, 503)

    @limited(
        "10/minute",
        lambda request: request.path_params["who"],
        cost=lambda request: int(request.query_params["n"]),
        exempt=lambda request: request.path_params["who"] == "vip",
        on_denied=on_denied,
    )
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    client = client_of(Route("/{who}", endpoint))
    assert statuses(client, "/me?n=6", 2) == [200, 503]
    assert statuses(client, "/you?n=6", 1) == [200]
    assert statuses(client, "/vip?n=6", 3) == [200] * 3
    denied = client.get("/me?n=6")
    assert denied.json() == {"limit": 10}
    assert int(denied.headers["Retry-After"]) >= 1
    assert client.get("/me?n=4").status_code == 200


def test_a_key_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    def key(request: Request) -> Any:
        raise LookupError("nobody")

    for endpoint in (ok, lambda request: PlainTextResponse("ok")):
        caplog.clear()
        answer = client_of(Route("/", limited("1/minute", key)(endpoint))).get("/")  # type: ignore[type-var]
        assert answer.status_code == 500
        assert answer.headers["Content-Type"] == "application/problem+json"
        client = client_of(
            Route("/", limited("1/minute", key, on_error="allow")(endpoint))  # type: ignore[type-var]
        )
        assert statuses(client, "/", 2) == [200, 200]
        assert len(caplog.records) == 3


def test_a_head_is_a_get_without_its_body() -> None:
    app = Starlette(routes=[Route("/", limited("1/minute")(ok))])
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http", "method": "HEAD", "path": "/", "headers": [], "query_string": b"",
        "client": ("testclient", 1), "root_path": "", "http_version": "1.1",
    }  # fmt: skip
    for _ in range(2):
        asyncio.run(app(dict(scope), receive, send))
    assert [one["status"] for one in sent if "status" in one] == [200, 429]
    assert sent[-1] == {"type": "http.response.body", "body": b""}
    assert int(dict(sent[-2]["headers"])[b"content-length"]) > 100


def test_errors_that_an_endpoint_raises() -> None:
    @limited("2/minute")
    async def endpoint(request: Request) -> Response:
        raise HTTPException(418)

    client = client_of(Route("/", endpoint))
    assert "RateLimit" not in client.get("/").headers
    client = client_of(Route("/", endpoint), middleware=[Middleware(RateLimitHeaders)])
    answer = client.get("/")
    assert answer.status_code == 418
    assert answer.headers["RateLimit"] == '"default";r=0;t=60'
    denied = client.get("/")
    assert denied.headers.get_list("RateLimit-Policy") == ['"default";q=2;w=60']


def test_a_websocket() -> None:
    @limited("1/minute")
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(str(websocket.state.ratelimit.remaining))
        await websocket.close()

    client = client_of(WebSocketRoute("/", endpoint))
    with client.websocket_connect("/") as websocket:
        assert websocket.receive_text() == "0"
    with pytest.raises(WebSocketDenialResponse) as denial:
        with client.websocket_connect("/"):
            pass
    assert denial.value.status_code == 429
    assert denial.value.json()["type"] == QUOTA_EXCEEDED


def test_decorators_around_it_see_a_response() -> None:
    seen = []

    @limited("1/minute")
    async def endpoint(request: Request) -> Response:
        response = PlainTextResponse("ok")
        response.headers["X-Inside"] = "seen"
        return response

    async def outside(request: Request) -> Response:
        response = await endpoint(request)
        seen.append(response.status_code)
        response.headers["X-Outside"] = "seen"
        return response

    client = client_of(Route("/", outside))
    for _ in range(2):
        assert client.get("/").headers["X-Outside"] == "seen"
    assert seen == [200, 429]


async def _key(request: Request) -> str:
    return "me"


def test_what_can_not_be_decorated() -> None:
    with pytest.raises(TypeError, match="decorate its methods"):
        limited("1/minute")(HTTPEndpoint)
    with pytest.raises(TypeError, match="not 5"):
        limited("1/minute")(5)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="coroutine function needs an endpoint"):
        limited("1/minute", _key)(lambda request: None)
    with pytest.raises(TypeError, match="coroutine function needs an endpoint"):
        limited("1/minute", on_denied=_key)(lambda request: None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="found no request"):
        limited("1/minute")(lambda number: number)(5)
    with pytest.raises(ValueError, match="headers must be"):
        limited("1/minute", headers="all")  # type: ignore[arg-type]


def test_a_key_that_is_awaited() -> None:
    client = client_of(Route("/", limited("1/minute", _key)(ok)))
    assert statuses(client, "/", 2) == [200, 429]


# The middleware


def limiting(quota: str = "1/minute", **options: Any) -> Middleware:
    return Middleware(RateLimitMiddleware, limiter=quota, key=client_ip(), **options)


def test_the_middleware_takes_its_arguments_by_name() -> None:
    seen = []

    async def endpoint(request: Request) -> Response:
        seen.append(request.state.ratelimit)
        return PlainTextResponse("ok")

    client = client_of(
        Route("/", endpoint),
        middleware=[
            limiting("2/minute", headers="both", rules=[Rule("GET /free", None)], name="web")
        ],
    )
    assert statuses(client, "/", 3) == [200, 200, 429]
    assert client.get("/free").status_code == 404
    assert [decision.remaining for decision in seen] == [1, 0]
    assert client.get("/").headers["X-RateLimit-Limit"] == "2"


def test_a_route_and_a_mount_have_limits_of_their_own() -> None:
    inner = Starlette(routes=[Route("/page", ok)], middleware=[limiting("2/minute")])
    client = client_of(
        Route("/route", ok, middleware=[limiting()]),
        Mount("/mount", routes=[Route("/page", ok)], middleware=[limiting()]),
        Mount("/sub", inner),
        Route("/free", ok),
    )
    assert statuses(client, "/route", 2) == [200, 429]
    assert statuses(client, "/mount/page", 2) == [200, 429]
    assert statuses(client, "/sub/page", 3) == [200, 200, 429]
    assert statuses(client, "/free", 3) == [200] * 3


@pytest.mark.parametrize("root_path", ["", "/behind/a/proxy"])
def test_rules_see_the_path_within_the_application(root_path: str) -> None:
    rules = [Rule("/page", "1/minute")]
    inner = Starlette(
        routes=[Route("/page", ok), Route("/other", ok)],
        middleware=[Middleware(RateLimitMiddleware, limiter=None, key=client_ip(), rules=rules)],
    )
    client = client_of(Mount("/sub", inner), root_path=root_path)
    # ASGI has the whole path in the scope, whatever of it is the root's.
    assert statuses(client, f"{root_path}/sub/page", 2) == [200, 429]
    assert statuses(client, f"{root_path}/sub/other", 2) == [200, 200]


def test_streams_are_zipped_and_limited_in_either_order() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 1000

    def endpoint(request: Request) -> Response:
        return StreamingResponse(pieces(), media_type="text/plain")

    zipping = Middleware(GZipMiddleware, minimum_size=100)
    for middleware in ([zipping, limiting()], [limiting(), zipping]):
        client = client_of(Route("/", endpoint), middleware=middleware)
        with client.stream("GET", "/", headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert answer.headers["RateLimit"] == '"default";r=0;t=60'
            assert gzip.decompress(b"".join(answer.iter_raw())) == b"x" * 3000
        denied = client.get("/", headers={"Accept-Encoding": "gzip"})
        assert denied.status_code == 429
        assert denied.json()["type"] == QUOTA_EXCEEDED


def test_background_tasks_run_after_the_answer() -> None:
    done = []

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok", background=BackgroundTask(done.append, 1))

    client = client_of(Route("/", endpoint), middleware=[limiting()])
    assert statuses(client, "/", 2) == [200, 429]
    assert done == [1]


@pytest.mark.parametrize("outermost", [True, False])
def test_pages_of_another_origin(outermost: bool) -> None:
    cors = Middleware(
        CORSMiddleware, allow_origins=["https://shop.test"], expose_headers=["Retry-After"]
    )
    order = [cors, limiting()] if outermost else [limiting(), cors]
    client = client_of(Route("/", ok), middleware=order)
    origin = {"Origin": "https://shop.test"}
    for _ in range(3):
        preflight = client.options("/", headers={**origin, "Access-Control-Request-Method": "GET"})
        assert preflight.status_code == 200
        assert preflight.headers["Access-Control-Allow-Origin"] == "https://shop.test"
    assert client.get("/", headers=origin).status_code == 200
    denied = client.get("/", headers=origin)
    assert denied.status_code == 429
    # The page may read the denial only if CORS stands outside.
    assert ("Access-Control-Allow-Origin" in denied.headers) == outermost


class Basic(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        if "Authorization" not in conn.headers:
            return None
        name = base64.b64decode(conn.headers["Authorization"].removeprefix("Basic "))
        return AuthCredentials(["authenticated"]), SimpleUser(name.decode().partition(":")[0])


@pytest.mark.parametrize("kind", ["middleware", "decorator"])
def test_users_who_log_in(kind: str) -> None:
    login = Middleware(AuthenticationMiddleware, backend=Basic())
    if kind == "middleware":
        limit = Middleware(RateLimitMiddleware, limiter="1/minute", key=user())
        client = client_of(Route("/", ok), middleware=[login, limit])
    else:
        client = client_of(Route("/", limited("1/minute", user())(ok)), middleware=[login])
    assert statuses(client, "/", 2, auth=("ann", "")) == [200, 429]
    assert statuses(client, "/", 2, auth=("bob", "")) == [200, 429]
    assert statuses(client, "/", 2) == [200, 429]


def test_sessions() -> None:
    async def login(request: Request) -> Response:
        request.session["user"] = request.path_params["name"]
        return PlainTextResponse("ok")

    limit = limited("1/minute", lambda request: request.session.get("user", ""))
    middleware = [Middleware(SessionMiddleware, secret_key="secret"), limiting("9/minute")]
    app = Starlette(
        routes=[Route("/login/{name}", login), Route("/", limit(ok))], middleware=middleware
    )
    for name in ("ann", "bob"):
        client = TestClient(app)
        assert "session" in client.get(f"/login/{name}").cookies
        assert statuses(client, "/", 2) == [200, 429]


def test_both_of_them() -> None:
    """What the decorator says and what the middleware says both stand in the answer."""
    client = client_of(
        Route("/", limited("1/minute", name="route", headers="both")(ok)),
        middleware=[limiting("5/minute", name="web", headers="both"), Middleware(RateLimitHeaders)],
    )
    allowed, denied = client.get("/"), client.get("/")
    for answer in (allowed, denied):
        assert sorted(answer.headers.get_list("RateLimit-Policy")) == [
            '"route";q=1;w=60',
            '"web";q=5;w=60',
        ]
        assert answer.headers.get_list("X-RateLimit-Limit") == ["1"]
    assert denied.status_code == 429


def test_a_denial_is_a_response() -> None:
    seen = []

    async def outside(request: Request) -> Response:
        seen.append(await limited(RateLimiter("1/minute"), lambda _: 1)(ok)(request))
        limiter = RateLimiter("1/minute")
        limiter.check(1)
        seen.append(await limited(limiter, lambda _: 1)(ok)(request))
        return PlainTextResponse("ok")

    client_of(Route("/", outside)).get("/")
    assert isinstance(seen[1], RateLimitResponse)
    assert seen[1].headers["RateLimit-Policy"] == '"default";q=1;w=60'


# A real server

APPLICATION = """
import os

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from nanolimit import RateLimiter
from nanolimit.integrations.starlette import RateLimitMiddleware, client_ip, limited

limiter = RateLimiter(os.environ["LIMIT"], shared=os.environ["TABLE"])


async def up(request):
    return JSONResponse({"pid": os.getpid()})


@limited("2/hour", shared="page")
def page(request):
    return JSONResponse({"remaining": request.state.ratelimit.remaining})


async def stream(request):
    async def pieces():
        for number in range(3):
            yield str(number)

    return StreamingResponse(pieces())


app = Starlette(
    routes=[
        Route("/is-it-up", up),
        Route("/page", page),
        Route("/stream", stream),
    ],
    middleware=[
        Middleware(CORSMiddleware, allow_origins=["https://shop.test"]),
        Middleware(
            RateLimitMiddleware,
            limiter=limiter,
            key=client_ip(),
            exempt=lambda scope: scope["path"] == "/is-it-up",
        ),
    ],
)
"""


@pytest.mark.usefixtures("tables")
def test_a_real_server_and_a_real_client(tmp_path: Path) -> None:
    (tmp_path / "starlette_app.py").write_text(textwrap.dedent(APPLICATION))
    with Server(
        "uvicorn", "--fd", "{fd}", "--workers", "2", "--app-dir", str(tmp_path),
        "--timeout-worker-healthcheck", "2", "starlette_app:app",
        limit="6/hour", table="web", log=tmp_path / "log", workers=2,
    ) as server:  # fmt: skip
        origin = {"Origin": "https://shop.test"}
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", headers=origin) as client:
            assert [client.get("/page").status_code for _ in range(3)] == [200, 200, 429]
            with client.stream("GET", "/stream") as answer:
                assert answer.headers["RateLimit"].startswith('"web";r=2;')
                assert "".join(answer.iter_text()) == "012"
            head = client.head("/stream")
            assert head.status_code == 200
            assert head.headers["RateLimit"].startswith('"web";r=1;')
            preflight = {"Access-Control-Request-Method": "GET"}
            for _ in range(5):
                assert client.options("/page", headers=preflight).status_code == 200
            assert [client.get("/stream").status_code for _ in range(2)] == [200, 429]
            denied = client.get("/page")
            assert denied.json()["violated-policies"] == ["web"]
            assert denied.headers["Access-Control-Allow-Origin"] == "https://shop.test"

            # The body that a HEAD leaves out must not be taken for the next answer.
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            for method in ("HEAD", "GET"):
                connection.request(method, "/stream")
                response = connection.getresponse()
                assert response.status == 429
                assert int(response.headers["Content-Length"]) > 100
                assert bool(response.read()) == (method == "GET")
            connection.close()
