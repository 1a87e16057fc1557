"""Flask-Limiter, by its public face, on nanolimit:// in private memory and in a shared table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, make_response, request
from flask.views import MethodView
from flask_limiter import Limiter, MetaLimit, RequestLimit
from flask_limiter.constants import ConfigVars

import nanolimit.compat.limits  # noqa: F401  # registers nanolimit://
from crowd import statuses
from frozen import TOOLS, Advance, time_machine
from server import EXAMPLES, WORKERS, Server
from storages import still

URIS = {
    "memory": "memory://",
    "private": "nanolimit://?clock=python",
    "shared": "nanolimit:///{tables}/flask?clock=python&max_keys=1000",
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


Made = tuple[Flask, Limiter]


@pytest.fixture
def made(uri: str) -> Callable[..., Made]:
    def make(config: dict[str, Any] | None = None, **options: Any) -> Made:
        app = Flask("an_app")
        app.config.update(config or {})
        options.setdefault("key_func", lambda: request.headers.get("User", "ann"))
        options.setdefault("storage_uri", uri)
        limiter = Limiter(app=app, **options)
        still(limiter.storage)
        return app, limiter

    return make


def codes(app: Flask, path: str, number: int, method: str = "get", **headers: str) -> list[int]:
    """Ask so often; the status codes."""
    with app.test_client() as client:
        return [getattr(client, method)(path, headers=headers).status_code for _ in range(number)]


def test_a_decorated_route_and_reset(made: Callable[..., Made], strategy: str) -> None:
    app, limiter = made(strategy=strategy)

    @app.get("/")
    @limiter.limit("3/minute")
    def hello() -> str:
        return "hello"

    assert codes(app, "/", 5) == [200] * 3 + [429] * 2
    assert codes(app, "/", 4, User="bob") == [200] * 3 + [429]
    limiter.reset()
    assert codes(app, "/", 5) == [200] * 3 + [429] * 2


def test_it_is_configured_by_the_apps_config(uri: str, advance: Advance) -> None:
    app = Flask("an_app")
    app.config[ConfigVars.STORAGE_URI] = uri
    app.config[ConfigVars.STRATEGY] = "moving-window"
    app.config[ConfigVars.DEFAULT_LIMITS] = "2/minute"
    if uri.startswith("nanolimit"):
        app.config[ConfigVars.STORAGE_OPTIONS] = {"on_full": "deny"}
    limiter = Limiter(lambda: "ann")
    limiter.init_app(app)
    still(limiter.storage)

    @app.get("/")
    def hello() -> str:
        return "hello"

    assert codes(app, "/", 3) == [200, 200, 429]


@every_tool
def test_windows_end(made: Callable[..., Made], advance: Advance) -> None:
    app, limiter = made(strategy="moving-window")

    @app.get("/")
    @limiter.limit("2/minute")
    def hello() -> str:
        return "hello"

    assert codes(app, "/", 1) == [200]
    advance(30)
    assert codes(app, "/", 2) == [200, 429]
    advance(30)
    assert codes(app, "/", 1) == [429]  # the first is exactly a minute old
    advance(0.001)
    assert codes(app, "/", 2) == [200, 429]
    advance(30)
    assert codes(app, "/", 2) == [200, 429]


@every_tool
@pytest.mark.parametrize("limit", ["1/hour", "1/day", "1 per 2 hour"])
def test_a_fixed_window_is_over_on_the_dot(
    made: Callable[..., Made], advance: Advance, limit: str
) -> None:
    app, _ = made(default_limits=[limit])

    @app.get("/")
    def hello() -> str:
        return "hello"

    seconds = {"1/hour": 3600, "1/day": 86_400, "1 per 2 hour": 7200}[limit]
    assert codes(app, "/", 2) == [200, 429]
    advance(seconds)
    assert codes(app, "/", 2) == [200, 429]


@every_tool
def test_headers(made: Callable[..., Made], advance: Advance, strategy: str) -> None:
    app, limiter = made(strategy=strategy, headers_enabled=True)

    @app.get("/")
    @limiter.limit("2/minute")
    def hello() -> str:
        return "hello"

    now_s = datetime(2026, 3, 1, 12, 34, 56, tzinfo=timezone.utc).timestamp()
    # The sliding counter's window is the minute of the clock.
    reset_s = now_s + 4 if strategy == "sliding-window-counter" else now_s + 61
    with app.test_client() as client:
        for remaining, status in (("1", 200), ("0", 200), ("0", 429)):
            response = client.get("/")
            assert response.status_code == status
            assert response.headers["X-RateLimit-Limit"] == "2"
            assert response.headers["X-RateLimit-Remaining"] == remaining
            assert abs(int(response.headers["X-RateLimit-Reset"]) - reset_s) <= 1
            assert abs(int(response.headers["Retry-After"]) - (reset_s - now_s)) <= 1
        wait_s = int(response.headers["Retry-After"])
        if strategy != "sliding-window-counter":  # which says when one of the counter's steps is
            advance(wait_s + 1)
            assert client.get("/").status_code == 200


def test_several_limits_and_the_one_that_is_told(made: Callable[..., Made]) -> None:
    app, limiter = made(headers_enabled=True, strategy="moving-window")

    @app.get("/")
    @limiter.limit("10/hour; 2/minute")
    def hello() -> str:
        return "hello"

    with app.test_client() as client:
        answers = [client.get("/") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].headers["X-RateLimit-Limit"] == "2"
    assert b"2 per 1 minute" in answers[2].data


def test_defaults_exemptions_and_application_limits(made: Callable[..., Made]) -> None:
    app, limiter = made(default_limits=["2/minute"], application_limits=["6/minute"])

    @app.get("/a")
    def a() -> str:
        return "a"

    @app.get("/b")
    @limiter.limit("3/minute")
    def b() -> str:
        return "b"

    @app.get("/free")
    @limiter.exempt
    def free() -> str:
        return "free"

    assert codes(app, "/free", 9) == [200] * 9
    assert codes(app, "/a", 3) == [200, 200, 429]
    assert codes(app, "/b", 3) == [200, 200, 200]  # its own in the place of the default
    assert codes(app, "/b", 1) == [429]  # by the application's: seven by now
    assert codes(app, "/a", 1, User="bob") == [200]


def test_exempt_when_and_request_filters(made: Callable[..., Made]) -> None:
    app, limiter = made()

    @app.get("/")
    @limiter.limit("1/minute", exempt_when=lambda: request.headers.get("Vip") == "1")
    def hello() -> str:
        return "hello"

    @limiter.request_filter
    def health() -> bool:
        return request.headers.get("Health") == "1"

    assert codes(app, "/", 5, Vip="1") == [200] * 5
    assert codes(app, "/", 5, Health="1") == [200] * 5
    assert codes(app, "/", 2) == [200, 429]


def test_blueprints(made: Callable[..., Made]) -> None:
    app, limiter = made(default_limits=["1/minute"])
    limited, free, plain = (Blueprint(name, name) for name in ("limited", "free", "plain"))
    for blueprint in (limited, free, plain):
        blueprint.add_url_rule("/one", "one", lambda: "one")
        blueprint.add_url_rule("/two", "two", lambda: "two")
    limiter.limit("3/minute")(limited)
    limiter.exempt(free)
    for blueprint in (limited, free, plain):
        app.register_blueprint(blueprint, url_prefix=f"/{blueprint.name}")

    assert codes(app, "/limited/one", 4) == [200] * 3 + [429]
    assert codes(app, "/limited/two", 4) == [200] * 3 + [429]
    assert codes(app, "/free/one", 9) == [200] * 9
    assert codes(app, "/plain/one", 2) == [200, 429]
    assert codes(app, "/plain/two", 2) == [200, 429]


def test_shared_limits(made: Callable[..., Made], strategy: str) -> None:
    app, limiter = made(strategy=strategy)
    together = limiter.shared_limit("3/minute", scope="together")
    for name in ("a", "b"):
        app.add_url_rule(f"/{name}", name, together(lambda: "hello"))
    assert codes(app, "/a", 2) == [200, 200]
    assert codes(app, "/b", 2) == [200, 429]
    assert codes(app, "/a", 1) == [429]
    assert codes(app, "/b", 1, User="bob") == [200]


def test_costs(made: Callable[..., Made], strategy: str) -> None:
    app, limiter = made(strategy=strategy)

    @app.get("/fixed")
    @limiter.limit("10/minute", cost=4)
    def fixed() -> str:
        return "fixed"

    @app.get("/by-header")
    @limiter.limit("10/minute", cost=lambda: int(request.headers["Cost"]))
    def by_header() -> str:
        return "by header"

    assert codes(app, "/fixed", 3) == [200, 200, 429]
    assert codes(app, "/by-header", 1, Cost="9") == [200]
    if strategy != "fixed-window":  # which counts what it denies
        assert codes(app, "/by-header", 1, Cost="2") == [429]
    assert codes(app, "/by-header", 2, Cost="1") == [200, 429]


def test_deduct_when(made: Callable[..., Made], strategy: str) -> None:
    app, limiter = made(strategy=strategy)

    @app.get("/")
    @limiter.limit("2/minute", deduct_when=lambda response: response.status_code == 400)
    def hello() -> Any:
        return make_response("hello", int(request.headers.get("Status", "200")))

    assert codes(app, "/", 9) == [200] * 9
    assert codes(app, "/", 3, Status="400") == [400, 400, 429]
    assert codes(app, "/", 1) == [429]


def test_methods_and_views(made: Callable[..., Made]) -> None:
    app, limiter = made(default_limits=["1/minute"], default_limits_per_method=True)

    class View(MethodView):
        decorators = [limiter.limit("2/minute", per_method=True)]  # noqa: RUF012

        def get(self) -> str:
            return "get"

        def post(self) -> str:
            return "post"

    app.add_url_rule("/view", view_func=View.as_view("view"))
    app.add_url_rule("/plain", "plain", lambda: "plain", methods=["GET", "POST"])
    assert codes(app, "/view", 3) == codes(app, "/view", 3, "post") == [200, 200, 429]
    assert codes(app, "/plain", 2) == codes(app, "/plain", 2, "post") == [200, 429]


def test_dynamic_limits(made: Callable[..., Made]) -> None:
    app, limiter = made(strategy="moving-window")

    @app.get("/")
    @limiter.limit(lambda: request.headers["Plan"])
    def hello() -> str:
        return "hello"

    for limit in range(1, 100):
        assert codes(app, "/", limit + 1, Plan=f"{limit}/hour")[-2:] == [200, 429]


def test_the_context_manager_and_functions_that_are_no_routes(made: Callable[..., Made]) -> None:
    app, limiter = made()

    @app.get("/context")
    def context() -> str:
        with limiter.limit("2/minute"):
            return "hello"

    @limiter.limit("2/minute")
    def helper() -> str:
        return "hello"

    @app.get("/helper")
    def helped() -> str:
        return helper()

    assert codes(app, "/context", 3) == [200, 200, 429]
    assert codes(app, "/helper", 3) == [200, 200, 429]


def test_breaches_and_meta_limits(made: Callable[..., Made], advance: Advance) -> None:
    breached: list[RequestLimit] = []
    app, _ = made(
        default_limits=["2/second"],
        meta_limits=[MetaLimit("2/hour")],
        on_breach=breached.append,
        on_meta_breach=lambda limit: make_response("no more", 429),
    )

    @app.get("/")
    def hello() -> str:
        return "hello"

    for _ in range(2):
        assert codes(app, "/", 3) == [200, 200, 429]
        advance(1)
    assert [limit.limit.amount for limit in breached] == [2, 2]
    with app.test_client() as client:
        response = client.get("/")
        assert (response.status_code, response.text) == (429, "no more")
    advance(3598)
    assert codes(app, "/", 3) == [200, 200, 429]


def test_two_limiters_by_key_prefix(uri: str, advance: Advance) -> None:
    apps = []
    for prefix in ("one", "two"):
        app = Flask(prefix)
        limiter = Limiter(lambda: "ann", app=app, storage_uri=uri, key_prefix=prefix)
        still(limiter.storage)
        app.add_url_rule("/", "hello", limiter.limit("2/minute")(lambda: "hello"))
        apps.append(app)
    for app in apps:
        assert codes(app, "/", 3) == [200, 200, 429]


def test_current_limit_tells_where_one_stands(made: Callable[..., Made]) -> None:
    app, limiter = made(strategy="moving-window")

    @app.get("/")
    @limiter.limit("5/minute")
    def hello() -> str:
        current = limiter.current_limit
        assert current is not None
        assert current.reset_at == int(time.time() + 61) or current.reset_at == int(
            time.time() + 60
        )
        return str(current.remaining)

    with app.test_client() as client:
        assert [client.get("/").text for _ in range(3)] == ["4", "3", "2"]


def test_errors_of_a_table_are_swallowed_if_that_was_asked_for(tables: Path) -> None:
    for swallows, status in ((True, 200), (False, 500)):
        name = f"broken-{swallows}"
        (tables / f"{name}.moving-60-6").write_bytes(b"no table")
        app = Flask("an_app")
        limiter = Limiter(
            lambda: "ann",
            app=app,
            storage_uri=f"nanolimit://{name}",
            strategy="moving-window",
            swallow_errors=swallows,
        )
        app.add_url_rule("/", "hello", limiter.limit("2/minute")(lambda: "hello"))
        assert codes(app, "/", 2) == [status] * 2


@pytest.mark.parametrize("strategy", ["fixed-window", "moving-window"])
def test_gunicorns_workers_admit_exactly_the_limit(
    strategy: str, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATEGY", strategy)
    with Server(
        "gunicorn", "--bind", "fd://{fd}", "--workers", str(WORKERS), "--chdir", str(EXAMPLES),
        "--no-control-socket", "flask_limiter_app:app",
        limit="50 per 300 day", table="flask", log=tmp_path / "log", workers=WORKERS,
    ) as server:  # fmt: skip
        told, pids = statuses(server.port, "/ann", 300)
    assert told == {200: 50, 429: 250}
    assert len(pids) > 1
    assert [path.name.split("-")[0] for path in tables.iterdir()] == [
        f"flask.{strategy.split('-')[0]}"
    ]
