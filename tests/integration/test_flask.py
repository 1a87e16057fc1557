"""The Flask extension: in Flask's own test client, and in gunicorn with four workers."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flask
import httpx
import pytest
import requests
from flask import Blueprint, Flask, Response, abort, g
from flask.testing import FlaskClient
from flask.views import MethodView, View
from werkzeug.exceptions import TooManyRequests

from nanolimit import ManualClock, Quota, RateLimiter
from nanolimit.integrations.flask import (
    InvalidRequestError,
    RateLimit,
    RateLimited,
    Rule,
    client_ip,
    combine,
    header,
    user,
)
from saturation import QUOTA, check_windows
from server import EXAMPLES, WORKERS, Server
from tools import at_hand


def make_app(name: str = "app", **config: Any) -> Flask:
    app = Flask(name, static_folder=None)
    app.config.update(config)
    return app


def add(place: Flask | Blueprint, path: str, *decorators: Any, **options: Any) -> None:
    """Add a view that answers "ok" below some decorators, the first of which is the outermost."""

    def view(**parts: str) -> str:
        return "ok"

    view.__name__ = path.strip("/").replace("/", "_") or "root"
    found: Any = view
    for decorator in reversed(decorators):
        found = decorator(found)
    place.add_url_rule(path, view.__name__, found, **options)


def statuses(client: FlaskClient, path: str, times: int, **more: Any) -> list[int]:
    return [client.open(path, **{"method": "GET", **more}).status_code for _ in range(times)]


def remaining(response: Any) -> dict[str, int]:
    """What is left of each policy that an answer tells of."""
    told = {}
    for line in response.headers.getlist("RateLimit"):
        name, left, _ = line.split(";")
        told[json.loads(name)] = int(left.removeprefix("r="))
    return told


# The default limit


def test_a_default_limit_holds_for_all_views() -> None:
    app = make_app()
    RateLimit(app, "3/minute", client_ip())
    add(app, "/a")
    add(app, "/b")
    client = app.test_client()
    first = client.get("/a")
    assert first.text == "ok"
    assert first.headers["RateLimit-Policy"] == '"default";q=3;w=60'
    assert first.headers["RateLimit"].startswith('"default";r=2;t=')
    assert "Retry-After" not in first.headers
    assert statuses(client, "/b", 3) == [200, 200, 429]
    denied = client.get("/a")
    assert denied.status_code == 429
    assert denied.content_type == "application/problem+json"
    assert denied.json is not None
    assert denied.json["type"].endswith("#quota-exceeded")
    assert denied.json["violated-policies"] == ["default"]
    assert denied.headers.getlist("Retry-After") == [denied.headers["RateLimit"].rpartition("=")[2]]
    assert client.get("/a", environ_overrides={"REMOTE_ADDR": "192.0.2.7"}).status_code == 200


def test_the_window_is_exact() -> None:
    clock = ManualClock()
    app = make_app()
    RateLimit(app, RateLimiter("2/10s", clock=clock))
    add(app, "/")
    client = app.test_client()
    client.get("/")
    clock.advance(4)
    assert statuses(client, "/", 2) == [200, 429]
    assert client.get("/").headers["Retry-After"] == "6"
    clock.advance(5.9)
    assert statuses(client, "/", 1) == [429]
    assert client.get("/").headers["Retry-After"] == "1"
    clock.advance(0.1)
    assert statuses(client, "/", 2) == [200, 429]


def test_a_denied_request_reaches_no_view_and_no_later_function() -> None:
    reached: list[str] = []
    app = make_app()
    app.before_request(lambda: reached.append("earlier"))
    RateLimit(app, "1/minute")
    app.before_request(lambda: reached.append("later"))
    app.add_url_rule("/", "root", lambda: reached.append("view") or "ok")
    client = app.test_client()
    client.get("/")
    assert reached == ["earlier", "later", "view"]
    client.get("/")
    assert reached == ["earlier", "later", "view", "earlier"]


def test_what_scans_for_pages_is_counted() -> None:
    app = make_app()
    RateLimit(app, "3/minute")
    add(app, "/there/")
    client = app.test_client()
    assert client.get("/nothing").status_code == 404
    assert client.post("/there/").status_code == 405
    answer = client.get("/there")  # a redirect to /there/
    assert answer.status_code == 308
    assert remaining(answer) == {"default": 0}
    assert client.get("/nothing/else").status_code == 429


def test_static_files_are_not_counted_unless_asked_for(tmp_path: Path) -> None:
    (tmp_path / "style.css").write_text("body {}")
    for counted in (False, True):
        app = Flask("app", static_folder=str(tmp_path), static_url_path="/files")
        app.config["NANOLIMIT_STATIC"] = counted
        blueprint = Blueprint("inner", "inner", url_prefix="/inner", static_folder=str(tmp_path))
        app.register_blueprint(blueprint)
        RateLimit(app, "2/minute")
        client = app.test_client()
        told = [
            client.get(path, buffered=True).status_code
            for path in ("/files/style.css", f"/inner/{tmp_path.name}/style.css") * 2
        ]
        assert told == ([200, 200, 429, 429] if counted else [200] * 4)


def test_a_view_that_is_called_static_is_no_file() -> None:
    app = make_app()
    RateLimit(app, "1/minute")
    add(app, "/static")
    assert statuses(app.test_client(), "/static", 2) == [200, 429]


def test_automatic_options_and_preflights_are_not_counted() -> None:
    app = make_app()
    ratelimit = RateLimit(app, "1/minute")
    add(app, "/auto")
    add(app, "/own", methods=["GET", "OPTIONS"])
    add(app, "/limited", ratelimit.limit("1/minute"), methods=["GET", "OPTIONS"])
    client = app.test_client()
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "PUT"}
    assert statuses(client, "/auto", 3, method="OPTIONS") == [200] * 3
    assert statuses(client, "/own", 3, method="OPTIONS", headers=asked) == [200] * 3
    assert statuses(client, "/limited", 3, method="OPTIONS", headers=asked) == [200] * 3
    assert statuses(client, "/limited", 2, method="OPTIONS") == [200, 429]
    # Not even these find out which pages there are.
    assert statuses(client, "/nothing", 2, method="OPTIONS", headers=asked) == [404, 429]
    assert statuses(client, "/own", 1, method="OPTIONS") == [429]


def test_rules_are_other_defaults() -> None:
    app = make_app()
    RateLimit(
        app,
        "2/minute",
        rules=[Rule("/health", None), Rule("GET /api/**", "1/minute", name="api")],
    )
    for path in ("/health", "/api/x", "/rest"):
        add(app, path, methods=["GET", "POST"])
    client = app.test_client()
    assert statuses(client, "/health", 5) == [200] * 5
    assert remaining(client.get("/api/x")) == {"api": 0}
    assert client.head("/api/x").status_code == 429
    assert statuses(client, "/api/x", 2, method="POST") == [200, 200]
    assert statuses(client, "/rest", 1) == [429]


def test_exempt_callable_and_cost() -> None:
    app = make_app()
    ratelimit = RateLimit(
        app,
        "10/minute",
        cost=lambda request: int(request.args.get("cost", 1)),
        exempt=lambda request: request.headers.get("X-Internal") == "yes",
    )
    add(app, "/")
    add(app, "/own", ratelimit.limit("4/minute", cost=2))
    add(app, "/same", ratelimit.limit("9/minute"))
    client = app.test_client()
    assert remaining(client.get("/?cost=7")) == {"default": 3}
    assert client.get("/?cost=4").status_code == 429
    assert remaining(client.get("/same?cost=5")) == {"same": 4}
    inside = {"X-Internal": "yes"}
    assert remaining(client.get("/?cost=4", headers=inside)) == {}
    assert statuses(client, "/own", 5, headers=inside) == [200] * 5
    assert statuses(client, "/own", 3) == [200, 200, 429]


# Views


def test_a_view_s_limit_stands_in_the_place_of_the_default() -> None:
    app = make_app()
    ratelimit = RateLimit(app, "1/minute")
    add(app, "/own", ratelimit.limit("2/minute"))
    add(app, "/both", ratelimit.limit("2/hour", override_defaults=False, name="hourly"))
    client = app.test_client()
    assert statuses(client, "/own", 3) == [200, 200, 429]
    answer = client.get("/both")
    assert remaining(answer) == {"default": 0, "hourly": 1}
    assert client.get("/both").status_code == 429
    # The default was asked first; the view's limit has not counted what never came to it.
    assert remaining(client.get("/both")) == {"default": 0}


def test_several_on_a_view_must_all_let_it_pass() -> None:
    app = make_app()
    ratelimit = RateLimit(app)
    outer = RateLimiter("3/minute", name="outer")
    inner = RateLimiter("2/minute", name="inner")
    add(app, "/", ratelimit.limit(outer), ratelimit.limit(inner))
    client = app.test_client()
    answer = client.get("/")
    assert remaining(answer) == {"outer": 2, "inner": 1}
    # The tightest is the first: clients may read no further.
    assert answer.headers.getlist("RateLimit-Policy") == ['"inner";q=2;w=60', '"outer";q=3;w=60']
    assert statuses(client, "/", 2) == [200, 429]
    # The outer one counted all three of them; now it denies by itself.
    assert remaining(client.get("/")) == {"outer": 0}
    assert (outer.stats().allowed, inner.stats().allowed) == (3, 2)


def test_stacked_limits_have_names_of_their_own() -> None:
    app = make_app()
    ratelimit = RateLimit(app)
    add(app, "/page", ratelimit.limit("3/minute"), ratelimit.limit("9/hour"))
    assert remaining(app.test_client().get("/page")) == {"page": 8, "page-2": 2}


def test_one_decorator_on_two_views_is_one_limit() -> None:
    app = make_app()
    ratelimit = RateLimit(app)
    together = ratelimit.limit("3/minute")
    add(app, "/a", together)
    add(app, "/b", together)
    add(app, "/c", ratelimit.limit("3/minute"))
    client = app.test_client()
    assert statuses(client, "/a", 2) == [200, 200]
    assert statuses(client, "/b", 2) == [200, 429]
    assert statuses(client, "/c", 3) == [200] * 3


def test_methods_and_per_method() -> None:
    app = make_app()
    ratelimit = RateLimit(app, "2/minute")
    add(app, "/post", ratelimit.limit("1/minute", methods=["post"]), methods=["GET", "POST"])
    add(app, "/each", ratelimit.limit("1/minute", per_method=True), methods=["GET", "POST"])
    client = app.test_client()
    assert statuses(client, "/post", 2, method="POST") == [200, 429]
    # What it does not hold for counts under the default.
    assert statuses(client, "/post", 3) == [200, 200, 429]
    assert statuses(client, "/each", 2) == [200, 429]
    assert statuses(client, "/each", 1, method="HEAD") == [429]
    assert statuses(client, "/each", 2, method="POST") == [200, 429]


def test_a_limit_for_get_is_one_for_head() -> None:
    app = make_app()
    ratelimit = RateLimit(app)
    add(app, "/", ratelimit.limit("1/minute", methods=["GET"]))
    assert statuses(app.test_client(), "/", 2, method="HEAD") == [200, 429]


def test_keys_cost_and_exemption_of_a_limit() -> None:
    app = make_app()
    ratelimit = RateLimit(app, key=lambda request: "everyone")
    add(
        app,
        "/",
        ratelimit.limit(
            "4/minute",
            combine(header("X-Key"), lambda request: request.args.get("tenant", "")),
            cost=lambda request: 2,
            exempt=lambda request: request.args.get("tenant") == "free",
        ),
    )
    add(app, "/default-key", ratelimit.limit("1/minute"))
    client = app.test_client()
    assert statuses(client, "/?tenant=a", 3, headers={"X-Key": "k"}) == [200, 200, 429]
    assert statuses(client, "/?tenant=b", 1, headers={"X-Key": "k"}) == [200]
    assert statuses(client, "/?tenant=a", 1, headers={"X-Key": "l"}) == [200]
    assert statuses(client, "/?tenant=free", 5) == [200] * 5
    client.get("/default-key")
    elsewhere = {"REMOTE_ADDR": "192.0.2.7"}
    assert client.get("/default-key", environ_overrides=elsewhere).status_code == 429


def test_coroutines() -> None:
    app = make_app()
    ratelimit = RateLimit(app)

    @app.get("/")
    @ratelimit.limit("2/minute")
    async def view() -> str:
        await asyncio.sleep(0)
        return str(g.ratelimit.remaining)

    client = app.test_client()
    assert [client.get("/").text for _ in range(2)] == ["1", "0"]
    assert client.get("/").status_code == 429

    app = make_app()
    ratelimit = RateLimit(app, on_denied=lambda request, decision: "denied")
    add(app, "/", ratelimit.limit("1/minute"))

    @app.get("/coroutine")
    @ratelimit.limit("1/minute")
    async def other() -> str:
        return "ok"

    client = app.test_client()
    assert [client.get("/coroutine").text for _ in range(2)] == ["ok", "denied"]


def test_classes() -> None:
    app = make_app()
    ratelimit = RateLimit(app, "1/minute")

    class Whole(MethodView):
        decorators = [ratelimit.limit("2/minute")]  # noqa: RUF012

        def get(self) -> str:
            return "get"

        def post(self) -> str:
            return "post"

    class Part(MethodView):
        @ratelimit.limit("3/minute")
        def get(self) -> str:
            return "get"

        def post(self) -> str:
            return "post"

        @ratelimit.limit("2/minute")
        async def put(self) -> str:
            return "put"

    @ratelimit.exempt
    class Free(View):
        def dispatch_request(self) -> str:
            return "free"

    for kind in (Whole, Part, Free):
        app.add_url_rule(f"/{kind.__name__}", view_func=kind.as_view(kind.__name__))
    client = app.test_client()
    assert client.post("/Whole").text == "post"
    assert statuses(client, "/Whole", 2) == [200, 429]
    assert statuses(client, "/Part", 2) == [200, 200]
    assert statuses(client, "/Part", 2, method="HEAD") == [200, 429]
    assert statuses(client, "/Part", 3, method="PUT") == [200, 200, 429]
    assert statuses(client, "/Part", 2, method="POST") == [200, 429]
    assert statuses(client, "/Free", 3) == [200] * 3


def test_exempt_views() -> None:
    app = make_app()
    ratelimit = RateLimit(app, "1/minute")
    add(app, "/free", ratelimit.exempt)
    add(app, "/free-but", ratelimit.exempt, ratelimit.limit("2/minute"))
    add(app, "/free-below", ratelimit.limit("2/minute", override_defaults=False), ratelimit.exempt)
    client = app.test_client()
    assert statuses(client, "/free", 3) == [200] * 3
    assert "RateLimit" not in client.get("/free").headers
    assert statuses(client, "/free-but", 3) == [200, 200, 429]
    assert statuses(client, "/free-below", 3) == [200, 200, 429]


def test_a_request_that_a_decorator_sends_away_is_not_counted_below_it() -> None:
    app = make_app()
    ratelimit = RateLimit(app)

    def login_required(view: Any) -> Any:
        def guarded() -> Any:
            return view() if "Authorization" in flask.request.headers else abort(401)

        return guarded

    add(app, "/", login_required, ratelimit.limit("1/minute"))
    client = app.test_client()
    assert statuses(client, "/", 2) == [401, 401]
    assert statuses(client, "/", 2, headers={"Authorization": "x"}) == [200, 429]


# Blueprints


def test_blueprints() -> None:
    app = make_app()
    ratelimit = RateLimit(app, "1/minute")
    limited, free, other = (Blueprint(name, name) for name in ("limited", "free", "other"))
    add(limited, "/a")
    add(limited, "/b")
    add(limited, "/own", ratelimit.limit("1/minute"))
    add(limited, "/both", ratelimit.limit("9/minute", override_defaults=False))
    add(limited, "/exempt", ratelimit.exempt)
    add(free, "/x")
    add(free, "/own", ratelimit.limit("2/minute"))
    add(other, "/x")
    assert ratelimit.limit("2/minute")(limited) is limited
    assert ratelimit.exempt(free) is free
    for blueprint in (limited, free, other):
        app.register_blueprint(blueprint, url_prefix=f"/{blueprint.name}")
    client = app.test_client()
    assert remaining(client.get("/limited/a")) == {"limited": 1}
    assert remaining(client.get("/limited/both")) == {"limited": 0, "both": 8}
    assert statuses(client, "/limited/b", 1) == [429]
    assert statuses(client, "/limited/own", 2) == [200, 429]
    assert statuses(client, "/limited/exempt", 3) == [200] * 3
    assert statuses(client, "/free/x", 3) == [200] * 3
    assert statuses(client, "/free/own", 3) == [200, 200, 429]
    assert statuses(client, "/other/x", 2) == [200, 429]


def test_nested_blueprints() -> None:
    app = make_app()
    ratelimit = RateLimit(app, "100/minute")
    outer, inner, both, free = (
        Blueprint(name, name) for name in ("outer", "inner", "both", "free")
    )
    add(outer, "/x")
    for blueprint in (inner, both, free):
        add(blueprint, "/x")
        outer.register_blueprint(blueprint, url_prefix=f"/{blueprint.name}")
    ratelimit.limit_blueprint(outer, "5/minute", methods=["GET"])
    ratelimit.limit_blueprint(inner, "3/minute", client_ip())
    ratelimit.limit_blueprint(both, "3/minute", override_defaults=False)
    ratelimit.exempt(free)
    app.register_blueprint(outer, url_prefix="/outer")
    client = app.test_client()
    assert remaining(client.get("/outer/x")) == {"outer": 4}
    assert remaining(client.get("/outer/inner/x")) == {"inner": 2}
    assert remaining(client.get("/outer/both/x")) == {"outer": 3, "both": 2}
    assert remaining(client.get("/outer/free/x")) == {}


def test_limits_are_asked_from_the_outermost_on() -> None:
    app = make_app()
    ratelimit = RateLimit(app, RateLimiter("3/minute", name="default"))
    outer, inner = Blueprint("outer", "outer"), Blueprint("inner", "inner")
    below = {"override_defaults": False}
    ratelimit.limit_blueprint(inner, RateLimiter("1/minute", name="inner"), **below)
    ratelimit.limit_blueprint(outer, RateLimiter("2/minute", name="outer"), **below)
    add(inner, "/", ratelimit.limit(RateLimiter("9/minute", name="view"), **below))
    outer.register_blueprint(inner)
    app.register_blueprint(outer)
    client = app.test_client()
    assert remaining(client.get("/")) == {"default": 2, "outer": 1, "inner": 0, "view": 8}
    # The one that denies ends it; those that let it pass have counted it.
    assert remaining(client.get("/")) == {"default": 1, "outer": 0, "inner": 0}
    assert remaining(client.get("/")) == {"default": 0, "outer": 0}
    assert remaining(client.get("/")) == {"default": 0}


def test_a_blueprint_s_limit_for_get_is_one_for_head() -> None:
    app = make_app()
    ratelimit = RateLimit(app, "1/minute")
    blueprint = Blueprint("blueprint", "blueprint")
    ratelimit.limit_blueprint(blueprint, "2/minute", methods=["HEAD"])
    add(blueprint, "/", methods=["GET", "POST"])
    app.register_blueprint(blueprint)
    client = app.test_client()
    assert statuses(client, "/", 1) == [200]
    assert statuses(client, "/", 2, method="HEAD") == [200, 429]
    assert statuses(client, "/", 2, method="POST") == [200, 429]


# What is answered


@pytest.fixture
def limited() -> Flask:
    app = make_app()
    app.config["PROPAGATE_EXCEPTIONS"] = False
    RateLimit(app, "2/minute")
    add(app, "/")
    return app


def test_an_error_handler_sees_the_denial(limited: Flask) -> None:
    seen: list[RateLimited] = []

    @limited.errorhandler(429)
    def too_many(error: RateLimited) -> tuple[str, int]:
        seen.append(error)
        return f"wait {error.retry_after}", 429

    client = limited.test_client()
    assert statuses(client, "/", 2) == [200, 200]
    denied = client.get("/")
    assert denied.status_code == 429
    assert denied.text == f"wait {denied.headers['Retry-After']}"
    assert remaining(denied) == {"default": 0}
    (error,) = seen
    assert isinstance(error, TooManyRequests)
    assert not error.decision.allowed
    assert error.decision.limit == 2
    assert error.description is not None
    assert error.description.startswith("At most 2 requests in 60 s; try again in ")


def test_an_error_handler_may_change_the_answer(limited: Flask) -> None:
    """The one that Flask's documentation has for all HTTPExceptions."""

    @limited.errorhandler(TooManyRequests)
    def too_many(error: TooManyRequests) -> Any:
        response = error.get_response()
        response.data = json.dumps({"code": error.code, "name": error.name})  # type: ignore[attr-defined]
        response.content_type = "application/json"
        response.headers["Retry-After"] = "99"
        return response

    client = limited.test_client()
    statuses(client, "/", 2)
    denied = client.get("/")
    assert denied.json == {"code": 429, "name": "Too Many Requests"}
    assert denied.headers.getlist("Retry-After") == ["99"]


def test_plain_text_for_who_asks_for_it(limited: Flask) -> None:
    client = limited.test_client()
    statuses(client, "/", 2)
    denied = client.get("/", headers={"Accept": "text/plain"})
    assert denied.content_type == "text/plain; charset=utf-8"
    assert denied.text.startswith("At most 2 requests in 60 s; ")
    head = client.head("/")
    assert (head.status_code, head.data) == (429, b"")
    assert "Retry-After" in head.headers


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("slow down", 429),
        ({"slow": "down"}, 429),
        (("slow down", 503), 503),
        (("slow down", {"X-A": "b"}), 429),
        (Response("slow down", 200), 200),
        (None, 429),
    ],
)
def test_on_denied(answer: Any, status: int) -> None:
    app = make_app()
    asked: list[Any] = []

    def on_denied(request: Any, decision: Any) -> Any:
        asked.append((request.path, decision.allowed))
        return answer

    ratelimit = RateLimit(app, "1/minute", on_denied=on_denied)
    add(app, "/")
    add(app, "/own", ratelimit.limit("1/minute"))
    add(app, "/other", ratelimit.limit("1/minute", on_denied=lambda request, decision: "other"))
    app.register_error_handler(429, lambda error: ("handled", 429))
    client = app.test_client()
    for path in ("/", "/own"):
        client.get(path)
        denied = client.get(path)
        assert denied.status_code == status
        assert (denied.text == "handled") == (answer is None)
        assert denied.headers.getlist("Retry-After") != []
        assert len(denied.headers.getlist("RateLimit")) == 1
    assert asked == [("/", False), ("/own", False)]
    client.get("/other")
    assert client.get("/other").text == "other"


def test_answers_of_all_kinds_have_the_fields() -> None:
    app = make_app(PROPAGATE_EXCEPTIONS=False)
    RateLimit(app, "100/minute")
    again = Response("again")

    def stream() -> Iterator[str]:
        yield from "abc"

    def boom() -> str:
        raise RuntimeError("boom")

    views: dict[str, Callable[[], Any]] = {
        "stream": stream,
        "file": lambda: flask.send_file(io.BytesIO(b"file"), "text/plain"),
        "boom": boom,
        "teapot": lambda: abort(418),
        "again": lambda: again,
        "redirect": lambda: flask.redirect("/stream"),
    }
    for name, view in views.items():
        app.add_url_rule(f"/{name}", name, view)

    @app.after_request
    def other(response: Response) -> Any:
        # One that makes another response of it, before the extension's function runs? After: it
        # was registered later, and Flask calls them from the last one on.
        return (
            Response(response.get_data(), response.status_code) if flask.request.args else response
        )

    client = app.test_client()
    told = {}
    for nth, name in enumerate([*views, "again", "again", "stream?copied=1"], 1):
        answer = client.get(f"/{name}")
        assert remaining(answer) == {"default": 100 - nth}, name
        assert answer.headers.getlist("RateLimit-Policy") == ['"default";q=100;w=60']
        told[name] = answer.status_code, answer.text
    assert told["stream"] == (200, "abc")
    assert told["stream?copied=1"] == (200, "abc")
    assert told["file"] == (200, "file")
    assert told["again"] == (200, "again")
    assert [told[name][0] for name in ("boom", "teapot", "redirect")] == [500, 418, 302]


@pytest.mark.parametrize("kind", ["draft", "x", "both", None])
def test_kinds_of_fields(kind: Any) -> None:
    app = make_app()
    ratelimit = RateLimit(app, "1/minute", headers=kind)
    add(app, "/")
    add(app, "/own", ratelimit.limit("5/minute", override_defaults=False))
    client = app.test_client()
    for path, status, limit in (("/own", 200, "1"), ("/", 429, "1")):
        answer = client.get(path)
        names = {name for name, _ in answer.headers if "RateLimit" in name}
        assert ("RateLimit" in names) == (kind in ("draft", "both"))
        assert ("RateLimit-Policy" in names) == (kind in ("draft", "both"))
        # Of these there is one line; it is about the tightest.
        own = ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"]
        assert names - {"RateLimit", "RateLimit-Policy"} == (
            set(own) if kind in ("x", "both") else set()
        )
        assert answer.status_code == status
        assert all(len(answer.headers.getlist(name)) == 1 for name in own if name in names)
        assert answer.headers.get("X-RateLimit-Limit", limit) == limit
        assert ("Retry-After" in answer.headers) == (status == 429)


def test_g_has_the_tightest_decision() -> None:
    app = make_app()
    ratelimit = RateLimit(app, "9/minute")
    seen: list[int] = []

    @app.get("/")
    @ratelimit.limit("5/minute", override_defaults=False)
    @ratelimit.limit("7/minute", override_defaults=False)
    def view() -> str:
        seen.append(g.ratelimit.limit)
        return "ok"

    add(app, "/free", ratelimit.exempt)
    client = app.test_client()
    with client:
        client.get("/")
        assert seen == [5]
        assert g.ratelimit.limit == 5
    with app.app_context():
        # One context for several requests, and so one `g`: what one says is not for the next.
        client.get("/")
        assert g.ratelimit.remaining == 3
        client.get("/free")
        assert "ratelimit" not in g


def test_the_denial_is_the_tightest() -> None:
    """Even if something fits into what denied, and nothing into what let it pass."""
    app = make_app()
    ratelimit = RateLimit(app, "1/minute", name="one", headers="both")
    add(app, "/", ratelimit.limit("5/minute", cost=3, override_defaults=False))
    client = app.test_client()
    client.get("/")
    limiter = ratelimit.default_limiter(app)
    assert limiter is not None
    limiter.reset("127.0.0.1")
    with client:
        denied = client.get("/")
        assert remaining(denied) == {"root": 2, "one": 0}
        assert denied.headers["X-RateLimit-Remaining"] == "2"
        assert not g.ratelimit.allowed


def test_two_extensions_in_one_application() -> None:
    app = make_app()
    first = RateLimit(app, "3/minute", client_ip(), name="address")
    second = RateLimit(app, "2/minute", header("X-Key"), name="key")
    add(app, "/")
    add(app, "/own", first.limit("1/minute"))
    client = app.test_client()
    assert remaining(client.get("/")) == {"address": 2, "key": 1}
    # A view's limit overrides the default of its own extension only.
    assert remaining(client.get("/own")) == {"own": 0, "key": 0}
    assert client.get("/").status_code == 429
    assert client.get("/", headers={"X-Key": "k"}).status_code == 200
    assert second.default_limiter(app) is not first.default_limiter(app)


# Applications


def test_several_applications_of_one_extension() -> None:
    ratelimit = RateLimit(limiter="1/minute")
    blueprint = Blueprint("blueprint", "blueprint")
    add(blueprint, "/own", ratelimit.limit("2/minute"))
    together = RateLimiter("2/minute")
    add(blueprint, "/together", ratelimit.limit(together))

    def create_app(**config: Any) -> Flask:
        app = make_app(**config)
        app.register_blueprint(blueprint)
        add(app, "/")
        ratelimit.init_app(app)
        return app

    first = create_app().test_client()
    second = create_app(NANOLIMIT_QUOTA="3/minute", NANOLIMIT_HEADERS="x").test_client()
    assert statuses(first, "/", 2) == [200, 429]
    assert statuses(second, "/", 4) == [200, 200, 200, 429]
    assert "X-RateLimit-Limit" in second.get("/").headers
    assert "X-RateLimit-Limit" not in first.get("/").headers
    # A quota is a limiter of its own in each, a RateLimiter is one for both.
    assert statuses(first, "/own", 3) == [200, 200, 429]
    assert statuses(second, "/own", 3) == [200, 200, 429]
    assert statuses(first, "/together", 1) == [200]
    assert statuses(second, "/together", 2) == [200, 429]
    app = create_app()
    limiter = ratelimit.default_limiter(app)
    assert limiter is not None
    assert limiter.quota == Quota(1, per=60)
    client = app.test_client()
    assert statuses(client, "/", 2) == [200, 429]
    assert limiter.reset("127.0.0.1")
    assert statuses(client, "/", 1) == [200]
    with app.app_context():
        assert ratelimit.default_limiter() is limiter


def test_an_application_that_is_forgotten_is_freed() -> None:
    ratelimit = RateLimit(limiter="1/minute")
    limit = ratelimit.limit("1/minute")

    def use() -> weakref.ref[Flask]:
        app = make_app()
        add(app, "/", limit)
        ratelimit.init_app(app)
        assert statuses(app.test_client(), "/", 2) == [200, 429]
        return weakref.ref(app)

    gone = use()
    gc.collect()
    assert gone() is None


def test_enabled_is_read_at_each_request() -> None:
    app = make_app(NANOLIMIT_ENABLED=False)
    ratelimit = RateLimit(app, "1/minute")
    add(app, "/")
    add(app, "/own", ratelimit.limit("1/minute"))
    client = app.test_client()
    for path in ("/", "/own"):
        app.config["NANOLIMIT_ENABLED"] = False
        assert statuses(client, path, 3) == [200] * 3
        app.config["NANOLIMIT_ENABLED"] = True
        assert statuses(client, path, 2) == [200, 429]


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_NANOLIMIT_QUOTA", "2/minute")
    monkeypatch.setenv("FLASK_NANOLIMIT_HEADERS", "null")
    monkeypatch.setenv("FLASK_NANOLIMIT_STATIC", "true")
    app = make_app()
    app.config.from_prefixed_env()
    RateLimit(app)
    add(app, "/")
    client = app.test_client()
    assert statuses(client, "/", 3) == [200, 200, 429]
    assert "RateLimit" not in client.get("/").headers


def test_a_shared_table_from_the_settings(tables: Path) -> None:
    """Two applications stand for two processes."""
    clients = []
    for _ in range(2):
        app = make_app(NANOLIMIT_QUOTA="3/minute", NANOLIMIT_SHARED="flask")
        ratelimit = RateLimit(app)
        add(app, "/")
        add(app, "/own", ratelimit.limit("1/minute", shared="own"))
        clients.append(app.test_client())
    assert {path.name for path in tables.iterdir()} >= {"flask", "own"}
    assert statuses(clients[0], "/", 2) == [200, 200]
    assert statuses(clients[1], "/", 2) == [200, 429]
    assert statuses(clients[0], "/own", 1) == [200]
    assert statuses(clients[1], "/own", 1) == [429]
    assert list(remaining(clients[0].get("/"))) == ["flask"]
    # A deployment with other limits: they hold, instead of a server that does not start.
    app = make_app(NANOLIMIT_QUOTA="5/minute", NANOLIMIT_SHARED="flask")
    ratelimit = RateLimit(app)
    add(app, "/")
    add(app, "/own", ratelimit.limit("3/minute", shared="own"))
    assert statuses(app.test_client(), "/", 3) == [200, 200, 429]
    assert statuses(app.test_client(), "/own", 3) == [200, 200, 429]


def test_contexts_of_tests() -> None:
    app = make_app()
    ratelimit = RateLimit(app, "1/minute")

    @app.post("/login")
    @ratelimit.limit("1/hour")
    def login() -> str:
        return "in"

    add(app, "/")
    with app.test_request_context("/login", method="POST"):
        assert login() == "in"
        assert g.ratelimit.remaining == 0
        with pytest.raises(RateLimited):
            login()
    with app.test_request_context("/"):
        assert app.preprocess_request() is None
        assert g.ratelimit.allowed
    with app.test_request_context("/"):
        with pytest.raises(RateLimited) as caught:
            app.preprocess_request()
        assert caught.value.decision is g.ratelimit
        assert app.process_response(Response()).headers["RateLimit"].startswith('"default";r=0;')


def test_threads_get_exactly_the_limit_together() -> None:
    """They meet in the first request, too, where the limiter of a view is made."""
    limit, crew = 50, 8
    app = make_app()
    ratelimit = RateLimit(app)
    add(app, "/", ratelimit.limit(f"{limit}/hour"))
    start = threading.Barrier(crew)

    def ask(_: int) -> list[int]:
        client = app.test_client()
        start.wait(20)
        return statuses(client, "/", 15)

    with ThreadPoolExecutor(crew) as pool:
        told = [status for part in pool.map(ask, range(crew)) for status in part]
    assert (told.count(200), told.count(429)) == (limit, crew * 15 - limit)


# Errors


def broken_key(request: Any) -> str:
    raise LookupError("no such tenant")


@pytest.mark.parametrize("key", [broken_key, lambda request: None])
def test_a_key_function_that_fails(key: Any, caplog: pytest.LogCaptureFixture) -> None:
    def make_client(on_error: Any, *, handled: bool = False) -> FlaskClient:
        app = make_app()
        ratelimit = RateLimit(app, "1/minute", key, on_error=on_error)
        add(app, "/")
        add(app, "/own", ratelimit.limit("1/minute"))
        if handled:
            app.register_error_handler(500, lambda error: ("handled", 500))
        return app.test_client()

    for path in ("/", "/own"):
        for on_error, status in (("deny", 500), ("allow", 200)):
            caplog.clear()
            assert statuses(make_client(on_error), path, 2) == [status] * 2
            assert caplog.text.count("could not be counted") == 2
        assert make_client("deny").get(path).content_type == "application/problem+json"
        assert make_client("deny", handled=True).get(path).text == "handled"


def test_a_request_that_contradicts_itself() -> None:
    def torn(request: Any) -> str:
        raise InvalidRequestError("two tenants")

    app = make_app()
    RateLimit(app, "1/minute", torn)
    add(app, "/")
    answer = app.test_client().get("/")
    assert answer.status_code == 400
    assert answer.json is not None
    assert answer.json["detail"] == "two tenants"


def test_a_forgotten_init_app_is_no_missing_limit() -> None:
    ratelimit = RateLimit()
    app = make_app()
    app.testing = True
    add(app, "/own", ratelimit.limit("1/minute"))
    blueprint = Blueprint("blueprint", "blueprint")
    add(blueprint, "/blueprint")
    ratelimit.limit_blueprint(blueprint, "1/minute")
    app.register_blueprint(blueprint)
    for path in ("/own", "/blueprint"):
        with pytest.raises(RuntimeError, match=r"call ratelimit.init_app\(app\)"):
            app.test_client().get(path)
    with pytest.raises(RuntimeError, match="init_app"):
        ratelimit.default_limiter(app)


def test_init_app_twice() -> None:
    app = make_app()
    ratelimit = RateLimit(app, "1/minute")
    with pytest.raises(RuntimeError, match="before"):
        ratelimit.init_app(app)


async def coroutine_key(request: Any) -> str:
    return "x"


@pytest.mark.parametrize(
    ("arguments", "more", "error", "text"),
    [
        ((None, "5/fortnight"), {}, ValueError, "fortnight"),
        ((None, 5), {}, TypeError, "limiter must be"),
        ((None, "5/minute", "ip"), {}, TypeError, "key must be a key function"),
        ((None, "5/minute", coroutine_key), {}, TypeError, "plain function"),
        ((None, "5/minute"), {"cost": 6}, ValueError, "cost"),
        ((None, "5/minute"), {"headers": "new"}, ValueError, "headers must be"),
        ((None,), {"headers": "new"}, ValueError, "headers must be"),
        ((None,), {"rules": ["/x"]}, TypeError, "rules must be"),
        ((None,), {"rules": [Rule("/x", "1/s", coroutine_key)]}, TypeError, "plain function"),
        ((None,), {"exempt": True}, TypeError, "exempt must be a callable"),
        ((None,), {"on_denied": "x"}, TypeError, "on_denied must be a callable"),
        ((None,), {"on_error": "raise"}, ValueError, "on_error must be"),
        (("app",), {}, TypeError, "app must be a Flask application, not 'app'"),
    ],
)
def test_bad_arguments(arguments: Any, more: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        RateLimit(*arguments, **more)


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        ({"NANOLIMIT_QUOTA": "5/fortnight"}, ValueError, "NANOLIMIT_QUOTA: .*fortnight"),
        ({"NANOLIMIT_QUOTA": 5}, TypeError, "NANOLIMIT_QUOTA: "),
        ({"NANOLIMIT_HEADERS": "new"}, ValueError, "headers must be"),
        ({"NANOLIMIT_HEADERS": 1}, TypeError, "NANOLIMIT_HEADERS"),
        ({"NANOLIMIT_ENABLED": "no"}, TypeError, "NANOLIMIT_ENABLED must be True or False"),
        ({"NANOLIMIT_STATIC": None}, TypeError, "NANOLIMIT_STATIC must be True or False"),
        ({"NANOLIMIT_SHARED": "web"}, TypeError, "NANOLIMIT_SHARED goes with"),
        (
            {"NANOLIMIT_SHARED": "web", "NANOLIMIT_QUOTA": RateLimiter("1/s")},
            TypeError,
            "NANOLIMIT_SHARED goes with",
        ),
    ],
)
def test_bad_settings(config: Any, error: Any, text: str) -> None:
    app = make_app(**config)
    with pytest.raises(error, match=text):
        RateLimit(app)
    assert "nanolimit" not in app.extensions
    assert app.before_request_funcs == {}


@pytest.mark.parametrize(
    ("arguments", "more", "error", "text"),
    [
        (("5/fortnight",), {}, ValueError, "fortnight"),
        ((5,), {}, TypeError, "limiter must be"),
        (("5/minute", "ip"), {}, TypeError, "key must be"),
        (("5/minute", coroutine_key), {}, TypeError, "plain function"),
        (("5/minute",), {"cost": 6}, ValueError, "cost"),
        (("5/minute",), {"methods": "POST"}, TypeError, "methods must be a list"),
        (("5/minute",), {"methods": [1]}, TypeError, "methods must hold strs"),
        (("5/minute",), {"methods": []}, ValueError, "methods must name at least one"),
        (("5/minute",), {"exempt": 1}, TypeError, "exempt must be"),
        (("5/minute",), {"on_denied": 1}, TypeError, "on_denied must be"),
        ((RateLimiter("5/minute"),), {"shared": "x"}, TypeError, "shared goes with a quota"),
    ],
)
def test_bad_limits(arguments: Any, more: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        RateLimit().limit(*arguments, **more)


def test_bad_places() -> None:
    ratelimit = RateLimit()
    limit = ratelimit.limit("1/minute")
    with pytest.raises(TypeError, match=r"decorators = \["):
        limit(MethodView)
    for place in (make_app(), 5, staticmethod(broken_key)):
        with pytest.raises(TypeError, match="limit"):
            limit(place)
    for place in (make_app(), 5):
        with pytest.raises(TypeError, match="exempt decorates views and blueprints"):
            ratelimit.exempt(place)
    with pytest.raises(TypeError, match="blueprint must be a Blueprint, not Flask"):
        ratelimit.limit_blueprint(make_app(), "1/minute")  # type: ignore[arg-type]


def test_without_flask_the_extra_is_named() -> None:
    code = "import sys; sys.modules['flask'] = None; import nanolimit.integrations.flask"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("needs Flask: pip install nanolimit[flask]")


def test_user_of_the_server() -> None:
    app = make_app()
    RateLimit(app, "1/minute", user())
    add(app, "/")
    client = app.test_client()
    told = [
        client.get("/", environ_overrides={"REMOTE_USER": name}).status_code
        for name in ("ann", "bob", "ann")
    ]
    assert told == [200, 200, 429]


def test_the_code_in_the_documentation_runs(tables: Path) -> None:
    document = at_hand(EXAMPLES.parent / "docs" / "flask.md")
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text("utf-8"), re.M | re.S)
    assert len(blocks) > 6
    for block in blocks:
        exec(compile(block, str(document), "exec"), {"__name__": "document"})


# gunicorn


def gunicorn(*options: str, limit: str, log: Path, table: str = "web") -> Server:
    return Server(
        "gunicorn", "--bind", "fd://{fd}", "--workers", str(WORKERS), "--chdir", str(EXAMPLES),
        "--no-control-socket", *options, "flask_app:app",
        limit=limit, table=table, log=log, workers=WORKERS,
    )  # fmt: skip


def test_four_workers_admit_exactly_the_limit_in_each_window(tables: Path, tmp_path: Path) -> None:
    with gunicorn(limit=QUOTA, log=tmp_path / "log") as server:
        check_windows(server)


@pytest.mark.parametrize(
    ("options", "table"),
    [
        pytest.param([], "web", id="name"),
        pytest.param(["--preload", "--threads", "4"], "web", id="name-preload-threads"),
        pytest.param(["--preload"], "", id="memory-preload"),
    ],
)
def test_four_workers_admit_exactly_the_limit(
    options: list[str], table: str, tables: Path, tmp_path: Path
) -> None:
    limit, crew = 97, 8
    with gunicorn(*options, limit=f"{limit}/hour", table=table, log=tmp_path / "log") as server:
        url = f"http://127.0.0.1:{server.port}"

        def ask(nth: int) -> list[tuple[int, int]]:
            answers = []
            with requests.Session() if nth % 2 else httpx.Client(verify=False) as client:
                # A connection for each request, so that no worker keeps a client to itself.
                client.headers["Connection"] = "close"
                for _ in range(25):
                    answer = client.get(f"{url}/ann", timeout=20)
                    assert answer.headers["RateLimit-Policy"].endswith(f";q={limit};w=3600")
                    assert ("Retry-After" in answer.headers) == (answer.status_code == 429)
                    answers.append((answer.status_code, answer.json()["pid"]))
            return answers

        with ThreadPoolExecutor(crew) as pool:
            told = [answer for part in pool.map(ask, range(crew)) for answer in part]
        codes = [status for status, _ in told]
        assert (codes.count(200), codes.count(429)) == (limit, crew * 25 - limit)
        assert len({pid for _, pid in told}) > 1

        # A view's own limit, in a table of its own.
        logins = [requests.post(f"{url}/login", timeout=20).status_code for _ in range(12)]
        assert logins == [200] * 5 + [429] * 7
