"""FastAPI: `limit` as a dependency, of applications in this process and of real servers."""

from __future__ import annotations

import asyncio
import http.client
import importlib
import json
import logging
import re
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.testclient import TestClient, WebSocketDenialResponse
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from nanolimit import Decision, RateLimiter
from nanolimit.integrations.fastapi import (
    RESPONSES,
    RateLimitHeaders,
    RateLimitHTTPException,
    client_ip,
    combine,
    header,
    limit,
    user,
)
from server import EXAMPLES, WORKERS, Server

QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"


def app_of(*limits: Any, **options: Any) -> FastAPI:
    """An application with one route that answers "ok", under such limits."""
    app = FastAPI(**options)

    @app.get("/", dependencies=[Depends(one) for one in limits])
    async def root() -> str:
        return "ok"

    return app


def statuses(client: TestClient, path: str, times: int, **options: Any) -> list[int]:
    return [client.get(path, **options).status_code for _ in range(times)]


# Routes, routers, applications


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_route_of_either_kind(kind: str) -> None:
    app = FastAPI()
    seen = []

    def endpoint(request: Request) -> dict[str, int]:
        seen.append(request.state.ratelimit)
        return {"remaining": request.state.ratelimit.remaining}

    async def coroutine(request: Request) -> dict[str, int]:
        return endpoint(request)

    app.get("/", dependencies=[Depends(limit("2/minute"))])(
        coroutine if kind == "async" else endpoint
    )
    client = TestClient(app)
    answers = [client.get("/") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.json()["remaining"] for answer in answers[:2]] == [1, 0]
    assert len(seen) == 2, "the endpoint ran although it was denied"
    assert all(isinstance(decision, Decision) for decision in seen)
    assert answers[0].headers["RateLimit-Policy"] == '"default";q=2;w=60'
    assert answers[0].headers["RateLimit"] == '"default";r=1;t=60'


def test_the_limit_itself_uses_no_thread() -> None:
    threads = []

    def key(request: Request) -> str:
        threads.append(threading.get_ident())
        return "me"

    app = app_of(limit("5/minute", key))

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/")).status_code == 200

    asyncio.run(run())
    assert threads == [threading.get_ident()]


def test_what_a_denial_says() -> None:
    client = TestClient(app_of(limit("1/minute", name="logins")))
    client.get("/")
    denied = client.get("/")
    assert denied.status_code == 429
    assert denied.headers["Content-Type"] == "application/problem+json"
    assert 1 <= int(denied.headers["Retry-After"]) <= 60
    assert denied.headers["RateLimit-Policy"] == '"logins";q=1;w=60'
    assert denied.headers["RateLimit"] == f'"logins";r=0;t={denied.headers["Retry-After"]}'
    problem = denied.json()
    assert problem["type"] == QUOTA_EXCEEDED
    assert problem["status"] == 429
    assert problem["violated-policies"] == ["logins"]

    text = client.get("/", headers={"Accept": "text/plain"})
    assert text.status_code == 429
    assert text.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert text.text.startswith("At most 1 request in 60 s; try again in ")
    assert "Retry-After" in text.headers


def test_the_first_denial_of_an_application_is_answered_like_the_others() -> None:
    """The handler comes with it: nothing is registered before."""
    limiter = RateLimiter("1/minute")
    assert limiter.allow("testclient")
    denied = TestClient(app_of(limit(limiter))).get("/")
    assert denied.json()["type"] == QUOTA_EXCEEDED


def test_a_router_has_one_count_and_the_application_its_own() -> None:
    app = FastAPI(dependencies=[Depends(limit("4/minute", name="all"))])
    router = APIRouter(prefix="/r", dependencies=[Depends(limit("2/minute", name="router"))])

    @router.get("/a")
    async def a() -> str:
        return "a"

    @router.get("/b")
    def b() -> str:
        return "b"

    app.include_router(router)

    @app.get("/alone")
    async def alone() -> str:
        return "alone"

    client = TestClient(app)
    first = client.get("/r/a")
    assert first.headers.get_list("RateLimit-Policy") == [
        '"all";q=4;w=60',
        '"router";q=2;w=60',
    ]
    assert client.get("/r/b").status_code == 200
    denied = client.get("/r/a")
    assert denied.status_code == 429
    # The application's limit was asked first and has counted.
    assert denied.json()["violated-policies"] == ["router"]
    assert denied.headers["RateLimit"].startswith('"router";r=0;')
    assert '"all";r=1;' in denied.headers["RateLimit"]
    assert client.get("/alone").status_code == 200
    denied = client.get("/alone")
    assert denied.json()["violated-policies"] == ["all"]
    assert denied.headers.get_list("RateLimit-Policy") == ['"all";q=4;w=60']


def test_dependencies_of_one_limiter_share_its_counts() -> None:
    limiter = RateLimiter("3/minute")
    app = FastAPI()
    for path in ("/a", "/b"):
        app.get(path, dependencies=[Depends(limit(limiter))])(lambda: "ok")
    client = TestClient(app)
    assert statuses(client, "/a", 2) == [200, 200]
    assert statuses(client, "/b", 2) == [200, 429]


def test_one_dependency_counts_a_request_once() -> None:
    one = limit("2/minute")
    app = FastAPI(dependencies=[Depends(one)])
    app.get("/", dependencies=[Depends(one)])(lambda: "ok")
    client = TestClient(app)
    assert statuses(client, "/", 3) == [200, 200, 429]
    assert client.get("/").headers.get_list("RateLimit-Policy") == ['"default";q=2;w=60']


not_vips = limit("5/minute", exempt=lambda request: "vip" in request.query_params)


def test_the_decision_is_the_value_of_the_dependency() -> None:
    app = FastAPI()

    @app.get("/")
    async def root(decision: Annotated[Decision | None, Depends(not_vips)]) -> int | None:
        return None if decision is None else decision.remaining

    client = TestClient(app)
    assert client.get("/").json() == 4
    exempt = client.get("/?vip=1")
    assert exempt.json() is None
    assert "RateLimit" not in exempt.headers


def test_two_quotas_of_one_limiter_count_in_all_or_in_none() -> None:
    limiter = RateLimiter("2/hour; 5/minute")
    client = TestClient(app_of(limit(limiter)))
    assert statuses(client, "/", 4) == [200, 200, 429, 429]
    assert limiter.peek("testclient", cost=0).limit == 2
    limiter.update(("9/hour", "5/minute"))
    assert statuses(client, "/", 4) == [200, 200, 200, 429]


@pytest.mark.usefixtures("tables")
def test_a_quota_with_a_name_for_its_table_counts_with_all_who_say_that_name() -> None:
    client = TestClient(app_of(limit("2/hour", shared="both")))
    other = TestClient(app_of(limit("2/hour", shared="both")))
    assert statuses(client, "/", 1) == [200]
    assert statuses(other, "/", 2) == [200, 429]
    assert client.get("/").headers["RateLimit"].startswith('"both";r=0;')


# Arguments


def test_keys_see_the_request() -> None:
    app = FastAPI()
    by_path = limit("1/minute", lambda request: request.path_params["name"])
    app.get("/by/{name}", dependencies=[Depends(by_path)])(lambda: "ok")
    by_key = limit("1/minute", combine(client_ip(), header("X-API-Key")))
    app.get("/header", dependencies=[Depends(by_key)])(lambda: "ok")
    app.get("/user", dependencies=[Depends(limit("1/minute", user()))])(lambda: "ok")
    client = TestClient(app)
    assert statuses(client, "/by/a", 2) == [200, 429]
    assert statuses(client, "/by/b", 2) == [200, 429]
    assert statuses(client, "/header", 2, headers={"X-API-Key": "1"}) == [200, 429]
    assert statuses(client, "/header", 2, headers={"X-API-Key": "2"}) == [200, 429]
    # Nobody is logged in: the address.
    assert statuses(client, "/user", 2) == [200, 429]
    assert statuses(TestClient(app, client=("192.0.2.7", 1)), "/user", 2) == [200, 429]


def test_a_key_that_is_awaited() -> None:
    async def key(request: Request) -> str:
        await asyncio.sleep(0)
        return (await request.body()).decode()

    app = FastAPI()

    @app.post("/", dependencies=[Depends(limit("1/minute", key))])
    async def root(request: Request) -> str:
        return (await request.body()).decode()

    client = TestClient(app)
    answers = [client.post("/", content=content) for content in ("a", "a", "b")]
    assert [answer.status_code for answer in answers] == [200, 429, 200]
    assert answers[2].json() == "b"


def test_costs() -> None:
    cost = limit("10/minute", cost=lambda request: int(request.query_params["n"]))
    client = TestClient(app_of(cost))
    assert client.get("/?n=7").headers["RateLimit"].startswith('"default";r=3;')
    assert client.get("/?n=4").status_code == 429
    assert client.get("/?n=3").status_code == 200


@pytest.mark.parametrize("kind", ["x", "both", None])
def test_other_kinds_of_header_fields(kind: Any) -> None:
    client = TestClient(app_of(limit("1/minute", headers=kind)))
    for status in (200, 429):
        answer = client.get("/")
        assert answer.status_code == status
        assert ("X-RateLimit-Remaining" in answer.headers) == (kind in ("x", "both"))
        assert ("RateLimit" in answer.headers) == (kind == "both")
        assert ("Retry-After" in answer.headers) == (status == 429)


@pytest.mark.parametrize("middleware", [False, True])
def test_fields_that_stand_in_an_answer_once(middleware: bool) -> None:
    app = app_of(
        limit("5/minute", headers="both", name="a"), limit("1/minute", headers="both", name="b")
    )
    if middleware:
        app.add_middleware(RateLimitHeaders)
    client = TestClient(app)
    allowed, denied = client.get("/"), client.get("/")
    assert allowed.headers.get_list("X-RateLimit-Limit") == ["5"]
    assert denied.status_code == 429
    # Of a denial they are those of who denied.
    assert denied.headers.get_list("X-RateLimit-Limit") == ["1"]
    assert len(denied.headers.get_list("Retry-After")) == 1
    for answer in (allowed, denied):
        named = re.findall(r'"(.)";q', answer.headers["RateLimit-Policy"])
        assert sorted(named) == ["a", "b"]


def test_a_denial_can_be_answered_by_the_application() -> None:
    async def on_denied(request: Request, decision: Decision) -> JSONResponse:
        return JSONResponse({"slow down": decision.limit}, 420, {"Retry-After": "7"})

    denied = TestClient(app_of(limit("1/minute", lambda _: 1, on_denied=on_denied)))
    denied.get("/")
    answer = denied.get("/")
    assert (answer.status_code, answer.json()) == (420, {"slow down": 1})
    assert answer.headers.get_list("Retry-After") == ["7"]
    assert answer.headers["RateLimit-Policy"] == '"default";q=1;w=60'


@pytest.mark.parametrize("what", [RateLimitHTTPException, 429])
def test_an_exception_handler_of_the_application_has_the_last_word(what: Any) -> None:
    app = app_of(limit("1/minute"))

    @app.exception_handler(what)
    async def handler(request: Request, error: RateLimitHTTPException) -> JSONResponse:
        assert error.decision is not None
        return JSONResponse(
            {"detail": error.detail, "limit": error.decision.limit}, 429, error.headers
        )

    client = TestClient(app)
    client.get("/")
    answer = client.get("/")
    assert answer.status_code == 429
    assert answer.json()["limit"] == 1
    assert answer.json()["detail"].startswith("At most 1 request in 60 s")
    assert answer.headers["RateLimit-Policy"] == '"default";q=1;w=60'
    assert int(answer.headers["Retry-After"]) >= 1


def test_other_exceptions_go_to_their_own_handlers() -> None:
    app = app_of(limit("1/minute"))

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "short and stout")

    client = TestClient(app)
    assert statuses(client, "/", 2) == [200, 429]
    assert client.get("/teapot").json() == {"detail": "short and stout"}


@pytest.mark.parametrize("key", [lambda request: None, lambda request: 1 / 0])
def test_a_key_function_that_fails(key: Any, caplog: pytest.LogCaptureFixture) -> None:
    answer = TestClient(app_of(limit("1/minute", key))).get("/")
    assert answer.status_code == 500
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.ERROR
    caplog.clear()
    client = TestClient(app_of(limit("1/minute", key, on_error="allow")))
    assert statuses(client, "/", 3) == [200, 200, 200]
    assert len(caplog.records) == 3


def test_a_request_that_contradicts_itself_is_answered_400() -> None:
    by_address = client_ip(["192.0.2.1"])
    client = TestClient(app_of(limit("1/minute", by_address)), client=("192.0.2.1", 1))
    answer = client.get("/", headers={"X-Forwarded-For": "nonsense"})
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    # Who is not trusted may write what he likes.
    client = TestClient(app_of(limit("1/minute", by_address)), client=("192.0.2.2", 1))
    answers = [client.get("/", headers={"X-Forwarded-For": f"192.0.2.{n}"}) for n in (8, 9)]
    assert [answer.status_code for answer in answers] == [200, 429]


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        (("5 a day",), {}, ValueError, "5 a day"),
        ((5,), {}, TypeError, "limiter must be"),
        (("5/minute", "X-API-Key"), {}, TypeError, "key must be"),
        (("5/minute",), {"cost": 6}, ValueError, "cost"),
        (("5/minute",), {"headers": "all"}, ValueError, "headers must be"),
        (("5/minute",), {"exempt": "monitor"}, TypeError, "exempt must be"),
        (("5/minute",), {"on_denied": 429}, TypeError, "on_denied must be"),
        (("5/minute",), {"on_error": "raise"}, ValueError, "on_error must be"),
        ((RateLimiter("5/minute"),), {"shared": "web"}, TypeError, "shared goes with a quota"),
    ],
)
def test_bad_arguments_show_where_they_stand(
    arguments: Any, options: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        limit(*arguments, **options)


@pytest.mark.parametrize("framework", ["fastapi", "starlette"])
def test_without_the_framework_it_names_the_extra(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = [name for name in sys.modules if name.split(".")[0] == framework]
    for name in loaded:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"nanolimit.integrations.{framework}")
    with pytest.raises(ImportError, match=rf"pip install 'nanolimit\[{framework}\]'"):
        importlib.import_module(f"nanolimit.integrations.{framework}")


# What FastAPI does around it


def test_what_has_counted_and_what_not() -> None:
    limiter = RateLimiter("9/minute")
    app = FastAPI()

    @app.post("/", dependencies=[Depends(limit(limiter))])
    async def root(body: dict[str, int], number: Annotated[int, Query()] = 0) -> str:
        return "ok"

    client = TestClient(app)

    def used() -> int:
        return 9 - limiter.peek("testclient", cost=0).remaining

    assert client.post("/?number=x", json={}).status_code == 422
    assert used() == 1
    assert client.post("/", content=b"{", headers={"Content-Type": "application/json"})
    assert used() == 1, "a body that can't be read is refused before any dependency"
    assert client.get("/").status_code == 405
    assert client.get("/nowhere").status_code == 404
    assert used() == 1


def test_dependencies_can_be_overridden() -> None:
    one = limit("1/minute")
    app = app_of(one)
    app.dependency_overrides[one] = lambda: None
    assert statuses(TestClient(app), "/", 3) == [200, 200, 200]


def test_openapi_shows_no_parameter_and_what_a_denial_is() -> None:
    app = app_of(limit("1/minute"), responses=RESPONSES)
    schema = app.openapi()
    operation = schema["paths"]["/"]["get"]
    assert "parameters" not in operation
    assert "requestBody" not in operation
    denial = operation["responses"]["429"]
    assert {"Retry-After", "RateLimit", "RateLimit-Policy"} == denial["headers"].keys()
    properties = denial["content"]["application/problem+json"]["schema"]["properties"]
    client = TestClient(app)
    assert client.get("/openapi.json").status_code == 200
    client.get("/")
    problem = client.get("/").json()
    assert problem.keys() == properties.keys()
    assert problem["type"] == properties["type"]["const"]
    json.dumps(schema)


def own_answers() -> FastAPI:
    """Answers that FastAPI does not build: it leaves out what dependencies have set."""
    app = FastAPI(dependencies=[Depends(limit("3/minute", name="own"))])

    async def pieces() -> AsyncIterator[str]:
        for number in range(3):
            yield str(number)

    @app.get("/own")
    async def own() -> PlainTextResponse:
        return PlainTextResponse("own")

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(pieces())

    @app.get("/error")
    async def error() -> None:
        raise HTTPException(418)

    @app.get("/invalid")
    async def invalid(number: int) -> None: ...

    return app


@pytest.mark.parametrize(
    ("path", "status"), [("/own", 200), ("/stream", 200), ("/error", 418), ("/invalid", 422)]
)
def test_answers_that_are_not_built_by_fastapi(path: str, status: int) -> None:
    client = TestClient(own_answers())
    assert "RateLimit" not in client.get(path).headers, "then RateLimitHeaders is not needed"
    app = own_answers()
    app.add_middleware(RateLimitHeaders)
    client = TestClient(app)
    for remaining in (2, 1, 0):
        answer = client.get(path)
        assert answer.status_code == status
        assert answer.headers.get_list("RateLimit-Policy") == ['"own";q=3;w=60']
        assert answer.headers["RateLimit"].startswith(f'"own";r={remaining};')
    denied = client.get(path)
    assert denied.status_code == 429
    assert denied.headers.get_list("RateLimit-Policy") == ['"own";q=3;w=60']


def test_the_middleware_of_the_headers_changes_nothing_else() -> None:
    plain, told = app_of(limit("2/minute")), app_of(limit("2/minute"))
    told.add_middleware(RateLimitHeaders)
    told.add_middleware(RateLimitHeaders)
    for _ in range(3):
        one, other = TestClient(plain).get("/"), TestClient(told).get("/")
        assert one.status_code == other.status_code
        assert one.content == other.content
        assert sorted(one.headers.multi_items()) == sorted(other.headers.multi_items())


def test_mounted_applications_answer_each_for_itself() -> None:
    inner = app_of(limit("1/minute", name="inner"))
    outer = FastAPI()
    outer.mount("/inner", inner)
    outer.add_middleware(RateLimitHeaders)
    client = TestClient(outer)
    assert client.get("/inner/").headers["RateLimit-Policy"] == '"inner";q=1;w=60'
    denied = client.get("/inner/")
    assert denied.status_code == 429
    assert denied.json()["type"] == QUOTA_EXCEEDED
    assert denied.headers.get_list("RateLimit-Policy") == ['"inner";q=1;w=60']


def test_a_preflight_passes_and_a_page_reads_the_denial() -> None:
    app = app_of(limit("1/minute"))
    app.add_middleware(
        CORSMiddleware, allow_origins=["https://shop.test"], expose_headers=["Retry-After"]
    )
    client = TestClient(app)
    origin = {"Origin": "https://shop.test"}
    for _ in range(3):
        preflight = client.options("/", headers={**origin, "Access-Control-Request-Method": "GET"})
        assert preflight.status_code == 200
    assert client.get("/", headers=origin).status_code == 200
    denied = client.get("/", headers=origin)
    assert denied.status_code == 429
    assert denied.headers["Access-Control-Allow-Origin"] == "https://shop.test"
    assert denied.headers["Access-Control-Expose-Headers"] == "Retry-After"


def test_a_preflight_that_the_application_answers_itself() -> None:
    app = FastAPI()
    app.options("/", dependencies=[Depends(limit("1/minute"))])(lambda: "ok")
    client = TestClient(app)
    preflight = {"Origin": "https://shop.test", "Access-Control-Request-Method": "GET"}
    assert [client.options("/", headers=preflight).status_code for _ in range(3)] == [200] * 3
    assert [client.options("/").status_code for _ in range(2)] == [200, 429]


# WebSockets


def chat(*limits: Callable[..., Any]) -> FastAPI:
    app = FastAPI()

    @app.websocket("/", dependencies=[Depends(one) for one in limits])
    async def echo(websocket: WebSocket) -> None:
        if websocket.application_state.name == "CONNECTING":
            await websocket.accept()
        await websocket.send_text(str(websocket.state.ratelimit.remaining))
        await websocket.close()

    return app


def test_a_websocket_is_denied_with_a_429() -> None:
    app = chat(limit("1/minute"))
    client = TestClient(app)
    with client.websocket_connect("/") as websocket:
        assert websocket.receive_text() == "0"
    with pytest.raises(WebSocketDenialResponse) as denial:
        with client.websocket_connect("/"):
            pass
    assert denial.value.status_code == 429
    assert denial.value.json()["type"] == QUOTA_EXCEEDED
    assert int(denial.value.headers["Retry-After"]) >= 1


def connect_twice(app: FastAPI) -> list[Any]:
    """Connect to a server that can't answer a handshake; all that it is told to send."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        for _ in range(2):
            scope = {
                "type": "websocket", "path": "/", "headers": [], "query_string": b"",
                "client": ("testclient", 1), "root_path": "", "scheme": "ws", "subprotocols": [],
            }  # fmt: skip
            messages = [{"type": "websocket.connect"}, {"type": "websocket.disconnect"}]

            async def receive(messages: Any = messages) -> Any:
                return messages.pop(0)

            await app(scope, receive, send)

    asyncio.run(run())
    return [(message["type"].removeprefix("websocket."), message.get("code")) for message in sent]


def test_a_websocket_that_was_accepted_already_is_closed() -> None:
    async def accept(websocket: WebSocket) -> None:
        await websocket.accept()

    assert connect_twice(chat(accept, limit("1/minute"))) == [
        ("accept", None), ("send", None), ("close", 1000),
        ("accept", None), ("close", 1008),
    ]  # fmt: skip


def test_a_server_that_can_not_answer_a_handshake_closes_it() -> None:
    assert connect_twice(chat(limit("1/minute"))) == [
        ("accept", None), ("send", None), ("close", 1000),
        ("close", 1008),
    ]  # fmt: skip


# The example under uvicorn


def example(limit: str, log: Path, table: str = "web", workers: int = WORKERS) -> Server:
    return Server(
        "uvicorn", "--fd", "{fd}", "--workers", str(workers), "--app-dir", str(EXAMPLES),
        "--no-access-log", "--timeout-worker-healthcheck", "2",
        "fastapi_app:app", limit=limit, table=table, log=log, workers=workers,
    )  # fmt: skip


LIMIT = 120
CLIENTS = 24
REQUESTS = 10
_PER_CONNECTION = 2


def hammer(port: int, path: str) -> tuple[Counter[int], set[int]]:
    """Ask from many threads; how often each status was answered, and by which workers."""
    barrier = threading.Barrier(CLIENTS)

    def client(_: int) -> list[tuple[int, int | None]]:
        barrier.wait()
        told = []
        for _ in range(REQUESTS // _PER_CONNECTION):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            for _ in range(_PER_CONNECTION):
                connection.request("GET", path)
                answer = connection.getresponse()
                told.append((answer.status, json.loads(answer.read()).get("pid")))
            connection.close()
        return told

    with ThreadPoolExecutor(CLIENTS) as pool:
        told = [one for some in pool.map(client, range(CLIENTS)) for one in some]
    return Counter(status for status, _ in told), {pid for _, pid in told if pid is not None}


@pytest.mark.usefixtures("tables")
def test_four_workers_admit_exactly_the_limit(tmp_path: Path) -> None:
    with example(f"{LIMIT}/hour", tmp_path / "log") as server:
        told, pids = hammer(server.port, "/items/7")
        assert told == {200: LIMIT, 429: CLIENTS * REQUESTS - LIMIT}
        assert len(pids) > 1, "one worker did it all"


@pytest.mark.usefixtures("tables")
def test_a_real_server_and_real_clients(tmp_path: Path) -> None:
    with example("6/hour", tmp_path / "log", workers=2) as server:
        url = f"http://127.0.0.1:{server.port}"
        with httpx.Client(base_url=url) as client:
            allowed = client.get("/items/1")
            assert allowed.json()["remaining"] == 5
            assert re.fullmatch(r'"web";r=5;t=\d+', allowed.headers["RateLimit"])
            assert allowed.headers["RateLimit-Policy"] == '"web";q=6;w=3600'

            with client.stream("GET", "/report") as report:
                assert report.headers["RateLimit"].startswith('"web";r=4;')
                assert report.headers["Transfer-Encoding"] == "chunked"
                assert "".join(report.iter_text()) == "line 0\nline 1\nline 2\n"

            # FastAPI has no HEAD for a GET route: a 405 is not counted.
            assert client.head("/items/1").status_code == 405
            invalid = client.get("/items/x")
            assert invalid.status_code == 422
            assert invalid.headers["RateLimit"].startswith('"web";r=3;')

            with connect(f"ws://127.0.0.1:{server.port}/chat") as websocket:
                websocket.send("hello")
                assert websocket.recv() == "hello"
                assert websocket.response is not None
                assert websocket.response.headers["RateLimit"].startswith('"web";r=2;')

            assert [client.get("/items/1").status_code for _ in range(3)] == [200, 200, 429]
            denied = client.get("/report", headers={"Accept": "text/plain"})
            assert denied.status_code == 429
            assert denied.text.startswith("At most 6 requests in 3600 s")
            assert 3500 < int(denied.headers["Retry-After"]) <= 3600

            with pytest.raises(InvalidStatus) as refused:
                connect(f"ws://127.0.0.1:{server.port}/chat")
            answer = refused.value.response
            assert answer.status_code == 429
            assert 3500 < int(answer.headers["Retry-After"]) <= 3600
            assert json.loads(answer.body or b"")["type"] == QUOTA_EXCEEDED

            logins = [client.post("/login").status_code for _ in range(6)]
            assert logins == [200] * 5 + [429]
            assert client.get("/is-it-up").status_code == 200
            schema = client.get("/openapi.json").json()
            parameters = schema["paths"]["/items/{number}"]["get"]["parameters"]
            assert [one["name"] for one in parameters] == ["number"]
