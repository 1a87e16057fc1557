"""Limits of a real Redis in web applications and clients: in this process, and in real servers."""

from __future__ import annotations

import django_project  # noqa: F401 - first: it configures Django

# isort: split

import asyncio
import contextlib
import http.client
import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fastapi
import flask
import grpc
import grpc.aio
import httpx
import pytest
import requests
from django.core.exceptions import ImproperlyConfigured
from django.http import JsonResponse
from django.test import AsyncRequestFactory, RequestFactory, override_settings
from django.utils.decorators import method_decorator
from django.views import View
from rest_framework.response import Response as RestResponse
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse

from nanolimit import Decision
from nanolimit.integrations import django as for_django
from nanolimit.integrations import drf
from nanolimit.integrations import fastapi as for_fastapi
from nanolimit.integrations import flask as for_flask
from nanolimit.integrations import grpc as for_grpc
from nanolimit.integrations import httpx as for_httpx
from nanolimit.integrations import requests as for_requests
from nanolimit.integrations import starlette as for_starlette
from nanolimit.redis import AsyncRedisRateLimiter, RedisRateLimiter, StoreUnavailableError
from redis_server import RedisServer, free_port
from server import Server

HERE = Path(__file__).resolve().parent
# Nothing is to time out on a busy machine, but where a test is about that.
PATIENT_S = 10.0
LIMIT = 20


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.ask("FLUSHALL")
    return running


@pytest.fixture
def nowhere() -> str:
    """The URL of a port on which nobody listens."""
    return f"redis://127.0.0.1:{free_port()}/0"


made: list[RedisRateLimiter] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while made:
        made.pop().close()


def blocking(url: str, quota: str = "2/hour", **options: Any) -> RedisRateLimiter:
    """Make one that is closed at the end of the test."""
    made.append(RedisRateLimiter(quota, url, **{"name": "api", "timeout": PATIENT_S, **options}))
    return made[-1]


def awaited(url: str, quota: str = "2/hour", **options: Any) -> AsyncRedisRateLimiter:
    """Make one. Who uses it closes it, in the loop in which that is."""
    return AsyncRedisRateLimiter(quota, url, **{"name": "api", "timeout": PATIENT_S, **options})


def whose(_: Any) -> str:
    return "someone"


# --- Starlette


@contextlib.contextmanager
def served(app: Any, *limiters: AsyncRedisRateLimiter) -> Iterator[TestClient]:
    """One loop for all requests, as a server has it; the limiters are closed in it at the end."""
    with TestClient(app) as client:
        try:
            yield client
        finally:
            assert client.portal is not None
            for limiter in limiters:
                client.portal.call(limiter.close)


@pytest.mark.parametrize("late", [False, True])
def test_starlette_middleware(server: RedisServer, late: bool) -> None:
    def plain(request: Any) -> PlainTextResponse:
        return PlainTextResponse(str(request.state.ratelimit.remaining))

    limiter = awaited(server.url)
    arguments: dict[str, Any] = {"limiter": limiter, "key": whose}
    middleware = [Middleware(for_starlette.RateLimitMiddleware, **arguments)]
    app = Starlette(routes=[Route("/", plain)], middleware=[] if late else middleware)
    if late:
        app.add_middleware(for_starlette.RateLimitMiddleware, **arguments)
    with served(app, limiter) as client:
        assert [client.get("/").text for _ in range(2)] == ["1", "0"]
        answer = client.get("/")
    assert (answer.status_code, answer.headers["ratelimit-policy"]) == (429, '"api";q=2;w=3600')
    assert 3590 <= int(answer.headers["retry-after"]) <= 3600


def test_starlette_decorator(server: RedisServer) -> None:
    limiter = awaited(server.url)

    @for_starlette.limited(limiter, whose)
    async def coroutine(request: Any) -> PlainTextResponse:
        return PlainTextResponse("ok")

    @for_starlette.limited(blocking(server.url), whose)
    def plain(request: Any) -> PlainTextResponse:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/coroutine", coroutine), Route("/plain", plain)])
    with served(app, limiter) as client:
        # Of one name they count together.
        assert client.get("/coroutine").headers["ratelimit"].startswith('"api";r=1;')
        assert client.get("/plain").headers["ratelimit"].startswith('"api";r=0;')
        assert [client.get(path).status_code for path in ("/coroutine", "/plain")] == [429, 429]


def test_a_websocket(server: RedisServer) -> None:
    async def endpoint(websocket: Any) -> None:
        await websocket.accept()
        await websocket.close()

    limiter = awaited(server.url, "1/hour")
    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    app.add_middleware(for_starlette.RateLimitMiddleware, limiter=limiter, key=whose)
    with served(app, limiter) as client:
        with client.websocket_connect("/"):
            pass
        with pytest.raises(WebSocketDenialResponse) as found:
            with client.websocket_connect("/"):
                pass
    assert found.value.status_code == 429


def test_starlette_refuses_the_wrong_kind(nowhere: str) -> None:
    async def coroutine(request: Any) -> None: ...
    def plain(request: Any) -> None: ...

    with pytest.raises(TypeError, match=r"the event loop of the coroutine function .*coroutine"):
        for_starlette.limited(blocking(nowhere))(coroutine)
    with pytest.raises(TypeError, match=r"must be awaited, and the plain function .*plain does"):
        for_starlette.limited(awaited(nowhere))(plain)
    with pytest.raises(TypeError, match="shared goes with a quota"):
        for_starlette.limited(awaited(nowhere), shared="api")


# --- FastAPI


def test_fastapi_dependencies(server: RedisServer) -> None:
    limiter = awaited(server.url, "3/hour")
    app = fastapi.FastAPI()
    router = fastapi.APIRouter(dependencies=[fastapi.Depends(for_fastapi.limit(limiter, whose))])

    @router.get("/coroutine")
    async def coroutine() -> str:
        return "ok"

    @router.get("/plain")
    def plain() -> str:
        return "ok"

    asked = fastapi.Depends(for_fastapi.limit(limiter, whose))

    @app.get("/decision")
    async def told(decision: Decision = asked) -> int:
        return decision.remaining

    app.include_router(router)
    with served(app, limiter) as client:
        assert client.get("/coroutine").headers["ratelimit"].startswith('"api";r=2;')
        assert client.get("/plain").headers["ratelimit"].startswith('"api";r=1;')
        assert client.get("/decision").json() == 0
        for path in ("/coroutine", "/plain", "/decision"):
            answer = client.get(path)
            assert answer.status_code == 429
            assert answer.json()["violated-policies"] == ["api"]


def test_fastapi_without_a_store(nowhere: str) -> None:
    app = fastapi.FastAPI()
    local = for_fastapi.limit(awaited(nowhere, "1/hour", name="local"), whose)
    raising = for_fastapi.limit(awaited(nowhere, name="raising", on_error="raise"), whose)

    @app.get("/local", dependencies=[fastapi.Depends(local)])
    async def one(request: fastapi.Request) -> bool:
        degraded: bool = request.state.ratelimit.degraded
        return degraded

    @app.get("/raising", dependencies=[fastapi.Depends(raising)])
    async def two() -> None: ...

    client = TestClient(app)
    assert client.get("/local").json() is True
    assert client.get("/local").status_code == 429
    answer = client.get("/raising")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["title"] == "Service Unavailable"


def test_fastapi_refuses_the_wrong_kind(nowhere: str) -> None:
    with pytest.raises(TypeError, match="event loop of a FastAPI application"):
        for_fastapi.limit(blocking(nowhere))  # type: ignore[arg-type]


# --- Flask


def flask_app(limiter: Any, **options: Any) -> tuple[Any, for_flask.RateLimit]:
    app = flask.Flask(__name__)
    ratelimit = for_flask.RateLimit(app, limiter, whose, **options)
    app.get("/")(lambda: {"remaining": flask.g.ratelimit.remaining})
    return app, ratelimit


def test_flask(server: RedisServer) -> None:
    limiter = blocking(server.url)
    app, ratelimit = flask_app(limiter)

    @app.get("/view")
    @ratelimit.limit(blocking(server.url, "1/hour", name="view"))
    def view() -> str:
        return "ok"

    @app.get("/coroutine")
    async def coroutine() -> str:
        return "ok"

    client = app.test_client()
    assert client.get("/").json == {"remaining": 1}
    assert client.get("/coroutine").headers["RateLimit"].startswith('"api";r=0;')
    answer = client.get("/")
    assert (answer.status_code, answer.json["violated-policies"]) == (429, ["api"])
    assert [client.get("/view").status_code for _ in range(2)] == [200, 429]
    assert ratelimit.default_limiter(app) is limiter


def test_flask_settings(server: RedisServer) -> None:
    app = flask.Flask(__name__)
    app.config["NANOLIMIT_QUOTA"] = blocking(server.url, "1/hour")
    for_flask.RateLimit(app, key=whose)
    app.get("/")(lambda: "ok")
    client = app.test_client()
    assert [client.get("/").status_code for _ in range(2)] == [200, 429]
    app = flask.Flask(__name__)
    app.config.update(NANOLIMIT_QUOTA=blocking(server.url), NANOLIMIT_SHARED="web")
    with pytest.raises(TypeError, match="NANOLIMIT_SHARED goes with a default limit that is a qu"):
        for_flask.RateLimit(app)


def test_flask_without_a_store(nowhere: str) -> None:
    client = flask_app(blocking(nowhere, "1/hour"))[0].test_client()
    assert [client.get("/").status_code for _ in range(2)] == [200, 429]
    client = flask_app(blocking(nowhere, on_error="raise"))[0].test_client()
    answer = client.get("/")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json["title"] == "Service Unavailable"
    app = flask_app(blocking(nowhere, on_error="raise"), on_error="allow")[0]
    app.get("/other", endpoint="other")(lambda: "ok")
    assert app.test_client().get("/other").text == "ok"


def test_flask_refuses_the_wrong_kind(nowhere: str) -> None:
    said = "which must be awaited, and a Flask application does not await: give a RedisRateLimiter"
    with pytest.raises(TypeError, match=said):
        for_flask.RateLimit(None, awaited(nowhere))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=said):
        for_flask.RateLimit().limit(awaited(nowhere))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="shared goes with a quota"):
        for_flask.RateLimit().limit(blocking(nowhere), shared="web")


# --- Django


def seen(request: Any) -> JsonResponse:
    return JsonResponse({"remaining": request.ratelimit.remaining})


async def aseen(request: Any) -> JsonResponse:
    return JsonResponse({"remaining": request.ratelimit.remaining})


@contextlib.contextmanager
def nanolimit_setting(**entries: Any) -> Iterator[None]:
    with override_settings(NANOLIMIT={"KEY": whose, **entries}):
        yield


def test_django_middleware_in_both_stacks(server: RedisServer) -> None:
    with nanolimit_setting(LIMITER=blocking(server.url)):
        stack = for_django.RateLimitMiddleware(seen)
        first = stack(RequestFactory().get("/"))
    assert first.headers["RateLimit"].startswith('"api";r=1;')
    limiter = awaited(server.url)
    with nanolimit_setting(LIMITER=limiter):
        astack = for_django.RateLimitMiddleware(aseen)

        async def both() -> list[Any]:
            async with limiter:
                return [await astack(AsyncRequestFactory().get("/")) for _ in range(2)]

        second, third = asyncio.run(both())
    assert json.loads(second.content) == {"remaining": 0}
    assert (third.status_code, stack(RequestFactory().get("/")).status_code) == (429, 429)


def test_django_views(server: RedisServer) -> None:
    view = for_django.limit(blocking(server.url), key=whose)(seen)
    limiter = awaited(server.url)
    aview = for_django.limit(limiter, key=whose)(aseen)

    @method_decorator(for_django.limit(blocking(server.url), key=whose), name="dispatch")
    class Seen(View):
        def get(self, request: Any) -> JsonResponse:
            return seen(request)

    assert json.loads(view(RequestFactory().get("/")).content) == {"remaining": 1}

    async def once() -> Any:
        async with limiter:
            return await aview(AsyncRequestFactory().get("/"))

    answer = asyncio.run(once())
    assert json.loads(answer.content) == {"remaining": 0}
    assert Seen.as_view()(RequestFactory().get("/")).status_code == 429


def test_django_without_a_store(nowhere: str) -> None:
    view = for_django.limit(blocking(nowhere, on_error="raise"), key=whose)(seen)
    answer = view(RequestFactory().get("/"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    view = for_django.limit(blocking(nowhere, "1/hour"), key=whose)(seen)
    assert [view(RequestFactory().get("/")).status_code for _ in range(2)] == [200, 429]


def test_django_refuses_the_wrong_kind(nowhere: str) -> None:
    with nanolimit_setting(LIMITER=awaited(nowhere)):
        with pytest.raises(
            ImproperlyConfigured, match=r"NANOLIMIT: .* a synchronous stack does no"
        ):
            for_django.RateLimitMiddleware(seen)
    with nanolimit_setting(LIMITER=blocking(nowhere)):
        with pytest.raises(ImproperlyConfigured, match="event loop of an asynchronous stack while"):
            for_django.RateLimitMiddleware(aseen)
    with pytest.raises(TypeError, match="awaited, and the synchronous view 'seen' does not await"):
        for_django.limit(awaited(nowhere))(seen)
    with pytest.raises(TypeError, match="the event loop of the asynchronous view 'aseen'"):
        for_django.limit(blocking(nowhere))(aseen)


# --- Django REST framework


def rest_view(limiter: Any, base: Any = drf.UserRateThrottle, **more: Any) -> Any:
    throttle = type("Throttle", (base,), {"limiter": limiter, "scope": "api", **more})

    class Seen(APIView):
        throttle_classes = [throttle]  # noqa: RUF012
        throttle_scope = "api"

        def get(self, request: Any) -> RestResponse:
            return RestResponse("seen")

    return Seen.as_view()


@pytest.mark.parametrize("base", [drf.UserRateThrottle, drf.ScopedRateThrottle])
def test_drf(server: RedisServer, base: Any) -> None:
    view = rest_view(blocking(server.url), base)
    request = APIRequestFactory().get("/")
    assert [view(request).status_code for _ in range(2)] == [200, 200]
    answer = view(request)
    assert answer.status_code == 429
    assert 3590 <= int(answer.headers["Retry-After"]) <= 3600
    [name] = server.ask("KEYS", "*")
    assert b"throttle_api_127.0.0.1" in name


def test_drf_tells_the_history(server: RedisServer) -> None:
    class Throttle(drf.AnonRateThrottle):
        limiter = blocking(server.url, "3/hour")

    request = APIView().initialize_request(APIRequestFactory().get("/"))
    throttle = Throttle()
    assert (throttle.num_requests, throttle.duration) == (3, 3600)
    assert throttle.allow_request(request, None)
    assert throttle.decision is not None
    assert throttle.decision.remaining == 2
    assert throttle.history == [pytest.approx(throttle.now, abs=1)]
    assert throttle.cache.get(throttle.key) is None, "it is counted in Redis and nowhere else"


def test_drf_tells_the_history_of_the_quota_that_binds(server: RedisServer) -> None:
    class Throttle(drf.AnonRateThrottle):
        limiter = blocking(server.url, "9/minute; 3/hour")

    request = APIView().initialize_request(APIRequestFactory().get("/"))
    throttle = Throttle()
    assert throttle.allow_request(request, None)
    assert throttle.history == [pytest.approx(throttle.now, abs=1)]


def test_drf_without_a_store(nowhere: str) -> None:
    request = APIRequestFactory().get("/")
    answer = rest_view(blocking(nowhere, on_error="raise"))(request)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    view = rest_view(blocking(nowhere, "1/hour"))
    assert [view(request).status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize(
    ("limiter", "more", "said"),
    [
        (awaited, {}, "limiter of the throttle Throttle: .* a throttle does not await"),
        (blocking, {"rate": "5/min"}, "rate does not go with it"),
        (blocking, {"shared": "api"}, "shared does not go with it"),
        (lambda url: "5/min", {}, "it must be a RedisRateLimiter, not '5/min'"),
    ],
)
def test_what_a_throttle_refuses(nowhere: str, limiter: Any, more: Any, said: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=said):
        rest_view(limiter(nowhere), **more)(APIRequestFactory().get("/"))


# --- gRPC

OK = grpc.StatusCode.OK
METHOD = "/test.Service/Call"


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, handler: Any) -> None:
        self.handler = grpc.unary_unary_rpc_method_handler(handler)

    def service(self, details: Any) -> Any:
        return self.handler


def codes(port: int, number: int) -> list[Any]:
    found: list[Any] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD)
        for _ in range(number):
            try:
                call(b"", timeout=PATIENT_S)
                found.append(OK)
            except grpc.RpcError as error:
                found.append(error.code())
    return found


def grpc_codes(limiter: Any, number: int) -> list[Any]:
    interceptor = for_grpc.RateLimitInterceptor(limiter, whose)
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, interceptors=[interceptor])
        server.add_generic_rpc_handlers([Service(lambda request, context: b"ok")])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            return codes(port, number)
        finally:
            server.stop(None).wait()


def aio_grpc_codes(limiter: Any, number: int, coroutine: bool) -> list[Any]:
    async def answer(request: bytes, context: Any) -> bytes:
        return b"ok"

    async def run() -> list[Any]:
        interceptor = for_grpc.AioRateLimitInterceptor(limiter, whose)
        server = grpc.aio.server(
            migration_thread_pool=ThreadPoolExecutor(1), interceptors=[interceptor]
        )
        handler = answer if coroutine else (lambda request, context: b"ok")
        server.add_generic_rpc_handlers([Service(handler)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            return await asyncio.to_thread(codes, port, number)
        finally:
            await server.stop(None)
            await limiter.close()

    return asyncio.run(run())


EXHAUSTED, UNAVAILABLE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE


def test_grpc(server: RedisServer) -> None:
    assert grpc_codes(blocking(server.url), 3) == [OK, OK, EXHAUSTED]


@pytest.mark.parametrize("coroutine", [True, False])
def test_aio_grpc(server: RedisServer, coroutine: bool) -> None:
    assert aio_grpc_codes(awaited(server.url), 3, coroutine) == [OK, OK, EXHAUSTED]


def test_grpc_without_a_store(nowhere: str) -> None:
    assert grpc_codes(blocking(nowhere, "1/hour"), 2) == [OK, EXHAUSTED]
    assert grpc_codes(blocking(nowhere, on_error="raise"), 1) == [UNAVAILABLE]
    assert aio_grpc_codes(awaited(nowhere, on_error="raise"), 1, True) == [UNAVAILABLE]


def test_grpc_refuses_the_wrong_kind(nowhere: str) -> None:
    rules = [for_grpc.MethodRule("/a.B/*", awaited(nowhere))]
    for options in ({"limiter": awaited(nowhere)}, {"limiter": "5/s", "rules": rules}):
        with pytest.raises(TypeError, match=r"awaited, and a grpc.server does not await: give a R"):
            for_grpc.RateLimitInterceptor(**options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"the event loop of a grpc.aio.server while"):
        for_grpc.AioRateLimitInterceptor(blocking(nowhere))  # type: ignore[arg-type]


# --- clients


class Upstream(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers what it is told to, and says when it was asked."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.answers = list(answers)
        self.times_s: list[float] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.times_s.append(time.monotonic())
        return self.answers.pop(0) if self.answers else httpx.Response(200)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


class Adapter(requests.adapters.BaseAdapter):
    """The same for requests."""

    def __init__(self) -> None:
        super().__init__()
        self.times_s: list[float] = []

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        self.times_s.append(time.monotonic())
        response = requests.Response()
        response.status_code = 200
        return response

    def close(self) -> None:
        pass


PACE_S = 0.3


def check_pace(times_s: list[float]) -> None:
    """One in each window, by the server's clock: by ours, a reply's way apart."""
    for earlier, later in itertools.pairwise(times_s):
        assert later - earlier >= PACE_S - 0.05


def test_clients_are_paced_together(server: RedisServer) -> None:
    quota = f"1 per {PACE_S} s"
    upstream, adapter = Upstream(), Adapter()
    transport = for_httpx.RateLimitTransport(blocking(server.url, quota), upstream, key="api")
    session = requests.Session()
    session.mount(
        "https://", for_requests.RateLimitAdapter(blocking(server.url, quota), adapter, key="api")
    )
    with httpx.Client(transport=transport) as client:
        for _ in range(2):
            assert client.get("https://a.example/").status_code == 200
            assert session.get("https://a.example/").status_code == 200
    times_s = sorted(upstream.times_s + adapter.times_s)
    assert len(times_s) == 4
    check_pace(times_s)


def test_an_asynchronous_client_is_paced(server: RedisServer) -> None:
    upstream = Upstream()

    async def run() -> None:
        limiter = awaited(server.url, f"1 per {PACE_S} s")
        transport = for_httpx.AsyncRateLimitTransport(limiter, upstream)
        async with limiter, httpx.AsyncClient(transport=transport) as client:
            await asyncio.gather(*(client.get("https://a.example/") for _ in range(3)))

    asyncio.run(run())
    assert len(upstream.times_s) == 3
    check_pace(upstream.times_s)


def test_a_client_that_does_not_get_its_turn(server: RedisServer) -> None:
    transport = for_httpx.RateLimitTransport(
        blocking(server.url, "1/hour"), Upstream(), timeout=0.05
    )
    with httpx.Client(transport=transport) as client:
        client.get("https://a.example/")
        with pytest.raises(for_httpx.RateLimitTimeout, match="the limit of 1 per 3600 s has room"):
            client.get("https://a.example/")

    async def run() -> None:
        limiter = awaited(server.url, "1/hour")
        transport = for_httpx.AsyncRateLimitTransport(limiter, Upstream(), timeout=0.05)
        async with limiter, httpx.AsyncClient(transport=transport) as client:
            with pytest.raises(for_httpx.RateLimitTimeout):
                await client.get("https://a.example/")

    asyncio.run(run())


def test_a_client_obeys_what_a_server_says(server: RedisServer) -> None:
    """A remote limiter has no blocks: the transport keeps them."""
    upstream = Upstream(httpx.Response(429, headers={"Retry-After": "1"}))
    transport = for_httpx.RateLimitTransport(blocking(server.url, "100/s"), upstream, retries=1)
    with httpx.Client(transport=transport) as client:
        assert client.get("https://a.example/").status_code == 200
        assert client.get("https://b.example/").status_code == 200
    first, second, _ = upstream.times_s
    assert second - first >= 1

    async def run() -> list[float]:
        upstream = Upstream(httpx.Response(429, headers={"Retry-After": "1"}))
        limiter = awaited(server.url, "100/s")
        transport = for_httpx.AsyncRateLimitTransport(limiter, upstream, retries=1)
        async with limiter, httpx.AsyncClient(transport=transport) as client:
            assert (await client.get("https://a.example/")).status_code == 200
        return upstream.times_s

    first, second = asyncio.run(run())
    assert second - first >= 1


def test_a_turn_that_comes_while_a_block_begins_is_not_used(server: RedisServer) -> None:
    """Two wait; the first one's answer says to wait, and the other has its turn meanwhile."""
    upstream = Upstream(httpx.Response(429, headers={"Retry-After": "1"}))
    limiter = blocking(server.url, f"1 per {PACE_S} s")
    transport = for_httpx.RateLimitTransport(limiter, upstream, key="api")
    blocked = threading.Event()
    waited = limiter._waited

    def late(*args: Any) -> Any:
        # It has its turn only when the other one's answer was read.
        if threading.current_thread() is not threading.main_thread():
            found = waited(*args)
            assert blocked.wait(PATIENT_S)
            return found
        return waited(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RedisRateLimiter, "_waited", lambda limiter, *args: late(*args))
        with httpx.Client(transport=transport) as client, ThreadPoolExecutor(1) as pool:
            assert client.get("https://a.example/").status_code == 429
            transport._pacer.blocks.unblock("api")
            other = pool.submit(client.get, "https://a.example/")
            deadline = time.monotonic() + PATIENT_S
            while limiter.stats().allowed < 2:  # it has its turn
                assert time.monotonic() < deadline
            transport._pacer.heed("api", 1.0)
            began_s = time.monotonic()
            blocked.set()
            assert other.result(PATIENT_S).status_code == 200
    assert upstream.times_s[1] - began_s >= 0.95


def test_a_client_without_a_store(nowhere: str) -> None:
    transport = for_httpx.RateLimitTransport(blocking(nowhere, on_error="raise"), Upstream())
    with httpx.Client(transport=transport) as client:
        with pytest.raises(StoreUnavailableError):
            client.get("https://a.example/")
    transport = for_httpx.RateLimitTransport(blocking(nowhere), Upstream())
    with httpx.Client(transport=transport) as client:
        assert client.get("https://a.example/").status_code == 200


def test_clients_refuse_the_wrong_kind(nowhere: str) -> None:
    with pytest.raises(TypeError, match=r"awaited, and a session of requests does not await"):
        for_requests.RateLimitAdapter(awaited(nowhere))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"awaited, and an httpx.Client does not await"):
        for_httpx.RateLimitTransport(awaited(nowhere))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"event loop of an httpx.AsyncClient while"):
        for_httpx.AsyncRateLimitTransport(blocking(nowhere))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float"):
        for_requests.RateLimitAdapter(blocking(nowhere), key=1.5)  # type: ignore[arg-type]


# --- servers of several workers


def asgi_server(log: Path) -> Server:
    return Server(
        "uvicorn", "--fd", "{fd}", "--workers", "2", "--app-dir", str(HERE), "--no-access-log",
        "redis_apps:asgi_app", limit=f"{LIMIT}/hour", table="", log=log, workers=2,
    )  # fmt: skip


def wsgi_server(log: Path) -> Server:
    return Server(
        "gunicorn", "--bind", "fd://{fd}", "--workers", "2", "--chdir", str(HERE),
        "--worker-class", "gthread", "--threads", "4", "--keep-alive", "60",
        "--no-control-socket", "redis_apps:wsgi_app", limit=f"{LIMIT}/hour", table="", log=log,
        workers=2,
    )  # fmt: skip


class Line:
    """A connection that is kept, and so always comes to the same worker."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENT_S * 3)
        self.pid = self.ask("is-it-up")[1]["pid"]

    def ask(self, user: str) -> tuple[int, dict[str, Any]]:
        self._connection.request("GET", f"/{user}")
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def one_to_each_worker(port: int) -> Iterator[list[Line]]:
    lines: dict[int, Line] = {}
    deadline = time.monotonic() + 30
    spare: list[Line] = []
    try:
        while len(lines) < 2:
            assert time.monotonic() < deadline, "one worker takes all connections"
            line = Line(port)
            if lines.setdefault(line.pid, line) is not line:
                spare.append(line)  # held, so that the worker has more to do than the other
        yield list(lines.values())
    finally:
        for line in [*lines.values(), *spare]:
            line.close()


def statuses(line: Line, user: str, number: int) -> list[int]:
    return [line.ask(user)[0] for _ in range(number)]


@pytest.mark.parametrize("make", [asgi_server, wsgi_server], ids=["asgi", "wsgi"])
def test_a_limit_over_two_workers(make: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """It holds over both; while the store is dead each has its share; then it holds again."""
    with RedisServer() as redis:
        monkeypatch.setenv("REDIS_URL", redis.url)
        with make(tmp_path / "log") as web, one_to_each_worker(web.port) as lines:
            for turn in range(LIMIT):
                status, answer = lines[turn % 2].ask("in-turns")
                assert (status, answer["degraded"]) == (200, False)
            assert [line.ask("in-turns")[0] for line in lines] == [429, 429]
            with ThreadPoolExecutor(2) as pool:
                at_once = [
                    status
                    for found in pool.map(lambda line: statuses(line, "at-once", LIMIT), lines)
                    for status in found
                ]
            assert (at_once.count(200), at_once.count(429)) == (LIMIT, LIMIT)

            redis.kill()
            for line in lines:
                found = [line.ask("in-the-dark") for _ in range(LIMIT)]
                allowed = [answer["degraded"] for status, answer in found if status == 200]
                assert allowed == [True] * (LIMIT // 2)
                assert {status for status, _ in found} == {200, 429}

            redis.start()
            for number, line in enumerate(lines):
                deadline = time.monotonic() + 30
                while line.ask(f"again-{number}-{time.monotonic_ns()}")[1]["degraded"]:
                    assert time.monotonic() < deadline
            for turn in range(LIMIT):
                assert lines[turn % 2].ask("back")[0] == 200
            assert [line.ask("back")[0] for line in lines] == [429, 429]
            assert "Traceback" not in web.log()
