"""slowapi, by its public face, on nanolimit:// in private memory and in a shared table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.middleware import SlowAPIASGIMiddleware, SlowAPIMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

import nanolimit.compat.limits  # noqa: F401  # registers nanolimit://
from crowd import statuses
from frozen import TOOLS, Advance, time_machine
from server import EXAMPLES, WORKERS, Server
from storages import still

URIS = {
    "memory": "memory://",
    "private": "nanolimit://?clock=python",
    "shared": "nanolimit:///{tables}/slow?clock=python&max_keys=1000",
}


@pytest.fixture
def advance(request: pytest.FixtureRequest) -> Iterator[Advance]:
    with getattr(request, "param", time_machine)() as advance:
        yield advance


every_tool = pytest.mark.parametrize(
    "advance", TOOLS, indirect=True, ids=lambda tool: tool.__name__
)


@pytest.fixture(params=sorted(URIS))
def uri(request: pytest.FixtureRequest, advance: Advance, tables: Path) -> str:
    return URIS[request.param].replace("/{tables}", str(tables))


@pytest.fixture(params=["fixed-window", "moving-window", "sliding-window-counter"])
def strategy(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def user(request: Request) -> str:
    return request.headers.get("User", "ann")


Made = tuple[FastAPI, Limiter]


@pytest.fixture
def made(uri: str) -> Callable[..., Made]:
    def make(middleware: Any = None, **options: Any) -> Made:
        options.setdefault("key_func", user)
        limiter = Limiter(storage_uri=uri, **options)
        still(limiter._storage)
        app = FastAPI()
        app.state.limiter = limiter
        handler: Any = _rate_limit_exceeded_handler
        app.add_exception_handler(RateLimitExceeded, handler)
        if middleware is not None:
            app.add_middleware(middleware)
        return app, limiter

    return make


def add(app: FastAPI, path: str, endpoint: Any) -> None:
    """Route to an endpoint of Starlette's kind: it gets the request."""
    app.router.routes.append(Route(path, endpoint, methods=["GET", "POST"]))


def codes(app: FastAPI, path: str, number: int, **headers: str) -> list[int]:
    client = TestClient(app)
    return [client.get(path, headers=headers).status_code for _ in range(number)]


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


def hello_sync(request: Request) -> Response:
    return PlainTextResponse("hello")


@pytest.mark.parametrize("endpoint", [hello, hello_sync])
def test_decorators_and_reset(made: Callable[..., Made], strategy: str, endpoint: Any) -> None:
    app, limiter = made(strategy=strategy)
    add(app, "/", limiter.limit("3/minute")(endpoint))
    assert codes(app, "/", 5) == [200] * 3 + [429] * 2
    assert codes(app, "/", 4, User="bob") == [200] * 3 + [429]
    limiter.reset()
    assert codes(app, "/", 5) == [200] * 3 + [429] * 2


def test_fastapis_own_endpoints(made: Callable[..., Made]) -> None:
    app, limiter = made(headers_enabled=True)

    def endpoint(request: Request, response: Response) -> dict[str, str]:
        return {"hello": "ann"}

    endpoint.__annotations__ = {"request": Request, "response": Response}
    app.get("/")(limiter.limit("2/minute")(endpoint))
    client = TestClient(app)
    answers = [client.get("/") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["X-RateLimit-Remaining"] for answer in answers] == ["1", "0", "0"]


@every_tool
def test_headers_and_windows(made: Callable[..., Made], advance: Advance) -> None:
    app, limiter = made(strategy="moving-window", headers_enabled=True)
    add(app, "/", limiter.limit("2/minute")(hello))
    client = TestClient(app)
    first = client.get("/")
    assert first.headers["X-RateLimit-Limit"] == "2"
    assert first.headers["X-RateLimit-Remaining"] == "1"
    assert float(first.headers["X-RateLimit-Reset"]) == pytest.approx(time.time() + 61, abs=1)
    assert 59 <= int(first.headers["Retry-After"]) <= 61
    advance(30)
    assert codes(app, "/", 2) == [200, 429]
    advance(30)
    assert codes(app, "/", 1) == [429]  # exactly a minute
    advance(0.001)
    assert codes(app, "/", 2) == [200, 429]


def test_several_limits(made: Callable[..., Made], advance: Advance) -> None:
    app, limiter = made(headers_enabled=True)
    add(app, "/", limiter.limit("2/second; 5 per minute; 10/hour")(hello))
    passed = 0
    for _ in range(4):
        passed += codes(app, "/", 3).count(200)
        advance(1)
    assert passed == 5
    response = TestClient(app).get("/")
    assert response.status_code == 429
    assert "5 per 1 minute" in response.text


@pytest.mark.parametrize("middleware", [SlowAPIMiddleware, SlowAPIASGIMiddleware])
def test_defaults_exemptions_and_shared_limits(
    made: Callable[..., Made], middleware: Any, strategy: str
) -> None:
    app, limiter = made(middleware, default_limits=["2/minute"], strategy=strategy)

    async def plain(request: Request) -> Response:
        return PlainTextResponse("plain")

    async def free(request: Request) -> Response:
        return PlainTextResponse("free")

    async def one(request: Request) -> Response:
        return PlainTextResponse("one")

    async def two(request: Request) -> Response:
        return PlainTextResponse("two")

    add(app, "/plain", plain)
    add(app, "/free", limiter.exempt(free))
    together = limiter.shared_limit("3/minute", scope="together")
    add(app, "/one", together(one))
    add(app, "/two", together(two))
    assert codes(app, "/plain", 3) == [200, 200, 429]
    assert codes(app, "/free", 9) == [200] * 9
    assert codes(app, "/one", 2) == [200, 200]
    assert codes(app, "/two", 2) == [200, 429]
    assert codes(app, "/one", 1) == [429]


def test_costs(made: Callable[..., Made], strategy: str) -> None:
    app, limiter = made(strategy=strategy)
    add(app, "/fixed", limiter.limit("50/minute", cost=15)(hello))

    async def by_header(request: Request) -> Response:
        return PlainTextResponse("hello")

    def cost(request: Request) -> int:
        return int(request.headers["Cost"])

    add(app, "/by-header", limiter.limit("50/minute", cost=cost)(by_header))
    assert codes(app, "/fixed", 4) == [200, 200, 200, 429]
    assert codes(app, "/by-header", 6, Cost="10") == [200] * 5 + [429]


def test_a_cost_may_be_computed_as_a_float(made: Callable[..., Made]) -> None:
    app, limiter = made()

    def cost(request: Request) -> Any:
        return int(request.headers["Cost"]) * 1.5

    add(app, "/", limiter.limit("50/minute", cost=cost)(hello))
    assert codes(app, "/", 8, Cost="5") == [200] * 6 + [429] * 2


def test_dynamic_limits_by_key(made: Callable[..., Made]) -> None:
    app, limiter = made(strategy="moving-window")

    def plan(key: str) -> str:
        return "4/minute" if key == "vip" else "2/minute"

    add(app, "/", limiter.limit(plan)(hello))
    assert codes(app, "/", 5, User="vip") == [200] * 4 + [429]
    assert codes(app, "/", 5, User="ann") == [200] * 2 + [429] * 3


@pytest.mark.parametrize("style", ["url", "endpoint"])
def test_keys_are_those_that_the_storage_knows(made: Callable[..., Made], style: str) -> None:
    app, limiter = made(key_style=style)
    add(app, "/t1", limiter.limit("1/minute")(hello))
    assert codes(app, "/t1", 1) == [200]
    where = "/t1" if style == "url" else f"{__name__}.hello"
    storage: Any = limiter._storage
    assert storage.get(f"LIMITER/ann/{where}/1/1/minute") == 1


def test_disabled(made: Callable[..., Made]) -> None:
    app, limiter = made(enabled=False)
    add(app, "/", limiter.limit("1/minute")(hello))
    assert codes(app, "/", 5) == [200] * 5


@pytest.mark.parametrize("strategy", ["fixed-window", "moving-window"])
def test_uvicorns_workers_admit_exactly_the_limit(
    strategy: str, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATEGY", strategy)
    with Server(
        "uvicorn", "--fd", "{fd}", "--workers", str(WORKERS), "--app-dir", str(EXAMPLES),
        "--no-access-log", "slowapi_app:app",
        limit="50 per 300 day", table="slow", log=tmp_path / "log", workers=WORKERS,
    ) as server:  # fmt: skip
        told, pids = statuses(server.port, "/ann", 300)
    assert told == {200: 50, 429: 250}
    assert len(pids) > 1
    assert [path.name.split("-")[0] for path in tables.iterdir()] == [
        f"slow.{strategy.split('-')[0]}"
    ]
