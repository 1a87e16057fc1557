"""Django: middleware and decorator, in synchronous and asynchronous stacks; real servers."""

from __future__ import annotations

import django_project  # first: it configures Django

# isort: split

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import django
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View

from django_project import (
    AUTHENTICATION,
    LIMITING,
    Backend,
    ahello,
    hello,
    login_cookie,
    python_of_document,
    run_without,
)
from nanolimit import ManualClock, RateLimiter
from nanolimit.integrations.django import (
    InvalidRequestError,
    RateLimitMiddleware,
    Rule,
    client_ip,
    combine,
    header,
    limit,
    user,
)
from saturation import QUOTA, check_windows
from server import EXAMPLES, WORKERS, Server

POLICY = "RateLimit-Policy"


@contextmanager
def limited(middleware: list[str] | None = None, **entries: Any) -> Iterator[None]:
    """The project with the middleware, and these entries in NANOLIMIT."""
    chosen = [*AUTHENTICATION, LIMITING] if middleware is None else middleware
    with override_settings(NANOLIMIT=entries, MIDDLEWARE=chosen):
        yield


def ask(asynchronous: bool, *requests: dict[str, Any]) -> list[Any]:
    """Make some requests through a client of Django's; their answers."""
    if not asynchronous:
        client = Client()
        answers = []
        for request in requests:
            client.cookies.clear()
            client.cookies.load(request.get("cookies", {}))
            answers.append(
                client.generic(
                    request.get("method", "GET"),
                    request.get("path", "/hello"),
                    headers=request.get("headers"),
                    **request.get("extra", {}),
                )
            )
        return answers

    async def run() -> list[Any]:
        client = AsyncClient()
        answers = []
        for request in requests:
            client.cookies.clear()
            client.cookies.load(request.get("cookies", {}))
            answer = await client.generic(
                request.get("method", "GET"),
                request.get("path", "/async/hello"),
                headers=request.get("headers"),
                **request.get("extra", {}),
            )
            answers.append(answer)
        return answers

    return asyncio.run(run())


BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@BOTH
def test_middleware(asynchronous: bool) -> None:
    clock = ManualClock()
    with limited(LIMITER="2/minute", CLOCK=clock):
        first, second, third = ask(asynchronous, {}, {}, {})
        assert [first.status_code, second.status_code, third.status_code] == [200, 200, 429]
        assert [first.json()["remaining"], second.json()["remaining"]] == [1, 0]
        assert first.headers[POLICY] == '"default";q=2;w=60'
        assert first.headers["RateLimit"] == '"default";r=1;t=60'
        assert "Retry-After" not in first.headers
        assert third.headers["RateLimit"] == '"default";r=0;t=60'
        assert third.headers["Retry-After"] == "60"
        assert third.headers["Content-Type"] == "application/problem+json"
        assert third.headers["Content-Length"] == str(len(third.content))
        problem = json.loads(third.content)
        assert problem["type"].endswith("#quota-exceeded")
        assert problem["violated-policies"] == ["default"]
        # Another handler of the same project counts with the first.
        clock.advance(59)
        assert [each.status_code for each in ask(asynchronous, {})] == [429]
        clock.advance(1)
        assert [each.status_code for each in ask(asynchronous, {}, {}, {})] == [200, 200, 429]


@BOTH
def test_counts_begin_anew_with_other_settings(asynchronous: bool) -> None:
    for _ in range(2):
        with limited(LIMITER="1/minute"):
            assert [each.status_code for each in ask(asynchronous, {}, {})] == [200, 429]


@BOTH
def test_rules(asynchronous: bool) -> None:
    prefix = "/async" if asynchronous else ""
    rules = [
        ("POST /login", "1/minute"),
        ("/parts", None),
        Rule("/async/parts", None),
        ("/file", "1/hour", lambda request: request.headers["X-Who"]),
    ]
    with limited(LIMITER="3/minute", RULES=rules, HEADERS="both"):
        answers = ask(
            asynchronous,
            {"method": "POST", "path": "/login"},
            {"method": "POST", "path": "/login"},
            {"path": "/login"},
            *[{"path": f"{prefix}/parts"}] * 5,
        )
        assert [each.status_code for each in answers] == [200, 429, 200, 200, 200, 200, 200, 200]
        assert answers[0].headers["X-RateLimit-Limit"] == "1"
        assert answers[2].headers["X-RateLimit-Limit"] == "3"
        assert POLICY not in answers[3].headers
        answers = ask(
            asynchronous,
            {"path": "/file", "headers": {"X-Who": "a"}},
            {"path": "/file", "headers": {"X-Who": "b"}},
            {"path": "/file", "headers": {"X-Who": "a"}},
        )
        assert [each.status_code for each in answers] == [200, 200, 429]


@BOTH
def test_rules_alone(asynchronous: bool) -> None:
    with limited(RULES=[("/hello", "1/minute"), ("/async/hello", "1/minute")]):
        answers = ask(asynchronous, {}, {}, {"path": "/file"}, {"path": "/file"})
        assert [each.status_code for each in answers] == [200, 429, 200, 200]


@BOTH
def test_streams_files_head_and_preflight(asynchronous: bool) -> None:
    prefix = "/async" if asynchronous else ""
    preflight = {
        "method": "OPTIONS",
        "headers": {"Origin": "https://a.example", "Access-Control-Request-Method": "PUT"},
    }
    with limited(LIMITER="4/minute"):
        stream, file, head, *preflights, options, denied, text = ask(
            asynchronous,
            {"path": f"{prefix}/parts"},
            {"path": "/file"},
            {"method": "HEAD"},
            *[preflight] * 3,
            {"method": "OPTIONS"},
            {"method": "HEAD"},
            {"headers": {"Accept": "text/plain"}},
        )
        assert stream.headers["RateLimit"] == '"default";r=3;t=60'
        assert stream.streaming

        async def whole() -> bytes:
            return b"".join([part async for part in stream])

        assert (asyncio.run(whole()) if stream.is_async else stream.getvalue()) == b"one two"
        assert file.headers["RateLimit"] == '"default";r=2;t=60'
        assert 'filename="some.txt"' in file.headers["Content-Disposition"]
        assert head.status_code == 200
        assert [POLICY in each.headers for each in preflights] == [False] * 3
        assert options.headers["RateLimit"] == '"default";r=0;t=60'
        assert denied.status_code == 429
        assert int(denied.headers["Content-Length"]) > 100
        # (the clients take bodies from answers to HEAD themselves)
        straight = RateLimitMiddleware(django_project.hello)(RequestFactory().head("/"))
        assert (straight.status_code, straight.content) == (429, b"")
        assert text.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert text.content.startswith(b"At most 4 requests in 60 s; try again in ")
        file.close()
        stream.close()


@BOTH
def test_user(asynchronous: bool) -> None:
    Backend.threads.clear()
    with limited(LIMITER="1/minute", KEY="user"):
        answers = ask(
            asynchronous,
            {"cookies": login_cookie(1)},
            {"cookies": login_cookie(2)},
            {"cookies": login_cookie(1)},
            {},
            {},
        )
        assert [each.status_code for each in answers] == [200, 200, 429, 200, 429]
    # Asked in the thread of the view, be it the event loop's.
    if django.VERSION >= (5, 0) or not asynchronous:
        assert set(Backend.threads) == {threading.get_ident()}
    assert len(Backend.threads) == 3


def test_asynchronous_requests_take_no_thread() -> None:
    with limited(LIMITER="5/minute"):
        threads = threading.active_count()
        answers = ask(True, {}, {})
        assert {each.json()["thread"] for each in answers} == {threading.get_ident()}
        assert threading.active_count() == threads


def test_a_user_is_not_looked_up_for_other_keys() -> None:
    Backend.threads.clear()
    with limited(LIMITER="1/minute"):
        for asynchronous in (False, True):
            ask(asynchronous, {"cookies": login_cookie(1)})
    assert Backend.threads == []


@BOTH
def test_users_by_combine_and_header(asynchronous: bool) -> None:
    for key in (combine(user(), client_ip()), header("X-API-Key", user())):
        with limited(LIMITER="1/minute", KEY=key):
            answers = ask(
                asynchronous,
                {"cookies": login_cookie(1)},
                {"cookies": login_cookie(2)},
                {"cookies": login_cookie(1)},
            )
            assert [each.status_code for each in answers] == [200, 200, 429]


@BOTH
def test_trusted_proxies(asynchronous: bool) -> None:
    def by(chain: str) -> dict[str, Any]:
        return {"headers": {"X-Forwarded-For": chain}}

    for entries, statuses in (
        ({}, [200, 429, 429, 429]),
        ({"TRUSTED_PROXIES": ["127.0.0.0/8"]}, [200, 200, 429, 400]),
        ({"TRUSTED_PROXIES": 1, "KEY": "client_ip"}, [200, 200, 429, 400]),
        ({"TRUSTED_PROXIES": 1, "KEY": "user"}, [200, 200, 429, 400]),
    ):
        with limited(LIMITER="1/minute", **entries):
            answers = ask(
                asynchronous,
                by("192.0.2.1"),
                by("192.0.2.2"),
                by("192.0.2.99, 192.0.2.1"),
                by("no address"),
            )
            assert [each.status_code for each in answers] == statuses


def _nobody(request: Any) -> Any:
    return None


def _broken(request: Any) -> Any:
    raise RuntimeError("no key today")


def _unreadable(request: Any) -> Any:
    raise InvalidRequestError("this request makes no sense")


@BOTH
@pytest.mark.parametrize("key", [_nobody, _broken])
def test_keys_that_fail(asynchronous: bool, key: Any, caplog: pytest.LogCaptureFixture) -> None:
    with limited(LIMITER="1/minute", KEY=key):
        (answer,) = ask(asynchronous, {})
        assert answer.status_code == 500
        assert answer.headers["Content-Type"] == "application/problem+json"
    with limited(LIMITER="1/minute", KEY=key, ON_ERROR="allow"):
        assert [each.status_code for each in ask(asynchronous, {}, {})] == [200, 200]
    mine = [record.message for record in caplog.records if record.name == "nanolimit"]
    assert ["answered 500" in message for message in mine] == [True, False, False]


@BOTH
def test_requests_that_make_no_sense(asynchronous: bool) -> None:
    with limited(LIMITER="1/minute", KEY=_unreadable, ON_ERROR="allow"):
        (answer,) = ask(asynchronous, {})
        assert (answer.status_code, b"makes no sense" in answer.content) == (400, True)


@BOTH
def test_exempt_cost_and_on_denied(asynchronous: bool) -> None:
    def denied(request: Any, decision: Any) -> HttpResponse | None:
        assert request.ratelimit is decision
        if "plain" in request.headers:
            return None
        return HttpResponse(f"no: {decision.limit}", status=503)

    with limited(
        LIMITER="4/minute",
        COST=lambda request: int(request.headers.get("cost", 1)),
        EXEMPT=lambda request: "vip" in request.headers,
        ON_DENIED=denied,
        NAME="api",
    ):
        vip, three, two, plain = ask(
            asynchronous,
            {"headers": {"vip": "yes"}},
            {"headers": {"cost": "3"}},
            {"headers": {"cost": "2"}},
            {"headers": {"cost": "2", "plain": "yes"}},
        )
        assert POLICY not in vip.headers
        assert three.headers["RateLimit"] == '"api";r=1;t=60'
        assert (two.status_code, two.content) == (503, b"no: 4")
        assert (two.headers["Retry-After"], POLICY in two.headers) == ("60", True)
        assert plain.status_code == 429


def test_coroutine_functions_for_key_and_answer() -> None:
    async def key(request: Any) -> str:
        await asyncio.sleep(0)
        return str(request.headers["who"])

    async def denied(request: Any, decision: Any) -> HttpResponse:
        await asyncio.sleep(0)
        return HttpResponse("later", status=429)

    with limited(LIMITER="1/minute", KEY=key, ON_DENIED=denied):
        answers = ask(True, *({"headers": {"who": who}} for who in "aba"))
        assert [each.status_code for each in answers] == [200, 200, 429]
        assert answers[2].content == b"later"
        with pytest.raises(ImproperlyConfigured, match=r"NANOLIMIT\['KEY'\] is a coroutine func"):
            ask(False, {})
    with limited(LIMITER="1/minute", ON_DENIED=denied):
        with pytest.raises(ImproperlyConfigured, match=r"NANOLIMIT\['ON_DENIED'\] is a coroutine"):
            ask(False, {})


def test_a_limiter_of_the_project() -> None:
    limiter = RateLimiter("1/minute", name="mine")
    django_project.limiter = limiter  # type: ignore[attr-defined]
    for given in (limiter, "django_project.limiter"):
        limiter.clear()
        with limited(LIMITER=given, HEADERS=None):
            answers = ask(False, {}, {})
            assert [each.status_code for each in answers] == [200, 429]
            assert [POLICY in each.headers for each in answers] == [False, False]
            assert answers[1].headers["Retry-After"] == "60"
            assert not limiter.peek("127.0.0.1")


def test_views_keep_their_own_fields() -> None:
    def view(request: Any) -> HttpResponse:
        own = {"X-RateLimit-Limit": "7", "RateLimit": '"own";r=1;t=1'}
        return HttpResponse("", headers=own)

    with limited(LIMITER="1/minute", HEADERS="both"):
        answer = RateLimitMiddleware(view)(RequestFactory().get("/"))
        assert answer.headers["X-RateLimit-Limit"] == "7"
        assert answer.headers["X-RateLimit-Remaining"] == "0"
        assert answer.headers["RateLimit"] == '"own";r=1;t=1, "default";r=0;t=60'


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, r"needs a limit: set NANOLIMIT = \{'LIMITER': '100/minute'\}"),
        ({"LIMITER": "5/fortnight"}, r"NANOLIMIT\['LIMITER'\]: quota '5/fortnight'"),
        ({"LIMITER": 5}, r"NANOLIMIT\['LIMITER'\]: it must be a RateLimiter or a quota"),
        ({"LIMITER": "no.such.module"}, r"NANOLIMIT\['LIMITER'\] leads nowhere"),
        ({"LIMITER": "os.path"}, r"NANOLIMIT\['LIMITER'\]: it must be a RateLimiter"),
        ({"LIMIT": "5/minute"}, r"NANOLIMIT has no 'LIMIT': did you mean 'LIMITER'"),
        ({"limiter": "5/minute"}, r"NANOLIMIT has no 'limiter': did you mean 'LIMITER'"),
        ({"LIMITER": "5/minute", "KEY": 5}, r"NANOLIMIT\['KEY'\] must be a key function"),
        ({"LIMITER": "5/minute", "KEY": client_ip}, None),
        ({"LIMITER": "5/minute", "KEY": "address"}, r"NANOLIMIT\['KEY'\] must be a dotted path"),
        ({"LIMITER": "5/minute", "TRUSTED_PROXIES": "10.0.0.1"}, r"\['TRUSTED_PROXIES'\]: trusted"),
        (
            {"LIMITER": "5/minute", "KEY": client_ip(), "TRUSTED_PROXIES": 1},
            r"NANOLIMIT\['TRUSTED_PROXIES'\] goes with the KEY",
        ),
        ({"LIMITER": "5/minute", "COST": 6}, r"NANOLIMIT: .*6"),
        ({"LIMITER": "5/minute", "COST": "6"}, r"NANOLIMIT\['COST'\] must be a dotted path"),
        ({"LIMITER": "5/minute", "EXEMPT": ["a"]}, r"NANOLIMIT\['EXEMPT'\] must be a callable"),
        ({"LIMITER": "5/minute", "ON_DENIED": 1}, r"NANOLIMIT\['ON_DENIED'\] must be a callable"),
        ({"LIMITER": "5/minute", "HEADERS": "all"}, r"headers must be 'draft', 'x'"),
        ({"LIMITER": "5/minute", "ON_ERROR": "pass"}, r"on_error must be 'deny' or 'allow'"),
        ({"LIMITER": "5/minute", "RULES": "POST /"}, r"NANOLIMIT\['RULES'\] must be a list"),
        ({"RULES": [("login", "5/minute")]}, r"NANOLIMIT\['RULES'\]\[0\]: pattern must"),
        ({"RULES": [("/login", "5/min", 1)]}, r"NANOLIMIT\['RULES'\]\[0\] must be a key func"),
        ({"RULES": [("/a", None), "/b"]}, r"NANOLIMIT\['RULES'\]\[1\] must be a Rule"),
        ({"LIMITER": "5/minute", "SHARED": ""}, r"NANOLIMIT\['SHARED'\]: "),
        ({"LIMITER": "5/minute", "MODE": 0o600}, r"NANOLIMIT\['MODE'\] goes with NANOLIMIT\['SHA"),
        ({"LIMITER": "5/minute", "ALGORITHM": "best"}, r"NANOLIMIT\['ALGORITHM'\]: algorithm must"),
        ({"LIMITER": "5/minute", "MAX_KEYS": 0}, r"NANOLIMIT\['MAX_KEYS'\]: max_keys must"),
    ],
)
def test_wrong_settings(entries: dict[str, Any], said: str | None) -> None:
    with limited(**entries):
        if said is None:  # client_ip for client_ip(): it shows at the first request
            assert [each.status_code for each in ask(False, {})] == [500]
            return
        with pytest.raises(ImproperlyConfigured, match=said):
            ask(False, {})


def test_settings_that_are_no_dict() -> None:
    with override_settings(NANOLIMIT="5/minute", MIDDLEWARE=[LIMITING]):
        with pytest.raises(ImproperlyConfigured, match=r"NANOLIMIT must be a dict such as"):
            ask(False, {})


def test_users_before_they_are_known() -> None:
    with limited([LIMITING, *AUTHENTICATION], LIMITER="1/minute", KEY="user"):
        with pytest.raises(ImproperlyConfigured, match=r"must stand after .*Authentication"):
            ask(False, {})


# The decorator


@contextmanager
def views(*patterns: Any) -> Iterator[None]:
    """The project with other views, and without the middleware."""
    module = type("urls", (), {"urlpatterns": list(patterns)})
    with override_settings(ROOT_URLCONF=module, MIDDLEWARE=AUTHENTICATION, NANOLIMIT={}):
        yield


@BOTH
def test_decorator(asynchronous: bool) -> None:
    view = limit("2/minute")(ahello if asynchronous else hello)
    with views(path("hello", view), path("async/hello", view)):
        first, second, third = ask(asynchronous, {}, {}, {})
        assert [first.status_code, second.status_code, third.status_code] == [200, 200, 429]
        assert first.json()["remaining"] == 1
        assert first.headers[POLICY] == '"view";q=2;w=60'
        assert third.headers["Retry-After"] == "60"
        if asynchronous:
            assert first.json()["thread"] == threading.get_ident()
    assert view.__name__ == ("ahello" if asynchronous else "hello")


@BOTH
def test_decorators_stack(asynchronous: bool) -> None:
    burst = limit("2/minute", methods=["GET"])
    day = limit("3/day", name="day", headers="both")
    view = day(burst(ahello if asynchronous else hello))
    with views(path("hello", view), path("async/hello", view)):
        answers = ask(asynchronous, {}, {"method": "POST"}, {}, {"method": "HEAD"}, {})
        assert [each.status_code for each in answers] == [200, 200, 200, 429, 429]
        assert answers[0].headers[POLICY] == '"view";q=2;w=60, "day";q=3;w=86400'
        assert answers[1].headers[POLICY] == '"day";q=3;w=86400'
        assert answers[0].headers["X-RateLimit-Limit"] == "3"
        assert answers[3].headers["RateLimit"] == '"day";r=0;t=86400'
    with views(path("hello", limit("9/day")(burst(ahello if asynchronous else hello)))):
        (denied,) = ask(asynchronous, {"path": "/hello"})
        assert denied.status_code == 429
        assert denied.headers[POLICY] == '"view";q=2;w=60, "view-2";q=9;w=86400'
        assert denied.headers["Retry-After"] == "60"


@BOTH
def test_views_share_one_decorator(asynchronous: bool) -> None:
    both = limit("2/minute")
    one, two = (both(ahello if asynchronous else hello) for _ in range(2))
    with views(path("one", one), path("two", two)):
        answers = ask(asynchronous, {"path": "/one"}, {"path": "/two"}, {"path": "/one"})
        assert [each.status_code for each in answers] == [200, 200, 429]


@BOTH
@pytest.mark.parametrize("name", ["dispatch", "get"])
def test_class_based_views(asynchronous: bool, name: str) -> None:
    if asynchronous and name == "get" and django.VERSION < (5, 2):
        pytest.skip("Django's method_decorator takes asynchronous methods from 5.2 on")
    decorate = method_decorator([limit("9/day"), limit("1/minute", key=user())], name=name)

    class Sync(View):
        def get(self, request: HttpRequest) -> HttpResponse:
            return HttpResponse("seen")

    class Async(View):
        async def get(self, request: HttpRequest) -> HttpResponse:
            return HttpResponse("seen")

    view = decorate(Async if asynchronous else Sync).as_view()
    with views(path("hello", view)):
        answers = ask(
            asynchronous,
            {"path": "/hello", "cookies": login_cookie(1)},
            {"path": "/hello", "cookies": login_cookie(1)},
            {"path": "/hello", "cookies": login_cookie(2)},
        )
        assert [each.status_code for each in answers] == [200, 429, 200]
        assert answers[0].content == b"seen"
        assert answers[1].headers[POLICY] == '"view";q=1;w=60, "view-2";q=9;w=86400'


@BOTH
def test_decorator_key_cost_exempt_and_answer(asynchronous: bool) -> None:
    decorate = limit(
        "4/minute",
        key=header("X-API-Key"),
        cost=lambda request: 2,
        exempt=lambda request: "vip" in request.headers,
        on_denied=lambda request, decision: HttpResponse("no", status=420),
        headers=None,
    )
    view = decorate(ahello if asynchronous else hello)
    mine = {"path": "/hello", "headers": {"X-API-Key": "k"}}
    vip = {"path": "/hello", "headers": {"X-API-Key": "k", "vip": "1"}}
    with views(path("hello", view)):
        answers = ask(asynchronous, mine, vip, mine, mine, vip, {"path": "/hello"})
        assert [each.status_code for each in answers] == [200, 200, 200, 420, 200, 200]
        assert POLICY not in answers[3].headers
        assert answers[3].headers["Retry-After"] == "60"


@BOTH
def test_decorator_takes_what_the_settings_say(asynchronous: bool) -> None:
    with override_settings(NANOLIMIT={"TRUSTED_PROXIES": 1, "HEADERS": "x"}):
        view = limit("1/minute")(ahello if asynchronous else hello)
    with views(path("hello", view)):
        answers = ask(
            asynchronous,
            *(
                {"path": "/hello", "headers": {"X-Forwarded-For": f"192.0.2.{number}"}}
                for number in (1, 2, 1)
            ),
        )
        assert [each.status_code for each in answers] == [200, 200, 429]
        assert "X-RateLimit-Limit" in answers[0].headers
        assert POLICY not in answers[0].headers


def test_coroutine_function_as_key_of_a_view() -> None:
    async def key(request: Any) -> str:
        return "all"

    view = limit("1/minute", key=key)(ahello)
    with views(path("hello", view)):
        answers = ask(True, {"path": "/hello"}, {"path": "/hello"})
        assert [each.status_code for each in answers] == [200, 429]
    for arguments in ({"key": key}, {"on_denied": key}):
        (name,) = arguments
        decorate = limit("1/minute", **arguments)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=f"{name} is a coroutine .* view 'hello' is sync"):
            decorate(hello)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: limit("5/fortnight"), ValueError, "'5/fortnight'"),
        (lambda: limit("5/minute", key="ip"), TypeError, "key must be a key function"),  # type: ignore[arg-type]
        (lambda: limit("5/minute", cost=6), ValueError, "6"),
        (lambda: limit("5/minute", methods="post"), ValueError, "methods must hold methods"),
        (lambda: limit("5/minute", methods=[]), ValueError, "at least one method"),
        (lambda: limit("5/minute", headers="all"), ValueError, "headers must be"),  # type: ignore[arg-type]
        (lambda: limit("5/minute", on_error="pass"), ValueError, "on_error must be"),  # type: ignore[arg-type]
        (lambda: limit("5/minute", on_denied=5), TypeError, "on_denied must be a callable"),  # type: ignore[arg-type]
        (lambda: limit("5/minute", exempt=5), TypeError, "exempt must be a callable"),  # type: ignore[arg-type]
        (lambda: limit("5/minute", name=5), TypeError, "name must be a str"),  # type: ignore[arg-type]
        (lambda: limit("5/minute")(View), TypeError, "write @method_decorator"),
        (lambda: limit("5/minute")("hello"), TypeError, "decorates a view, not 'hello'"),
        (lambda: limit("5/minute")(hello)(View()), TypeError, "got View where a request"),
    ],
)
def test_wrong_decorators(make: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make()


def test_shared_limits_of_views_have_names(tables: Path) -> None:
    with override_settings(NANOLIMIT={"SHARED": "web"}):
        with pytest.raises(ImproperlyConfigured, match=r"@limit\('5/minute', name='login'\)"):
            limit("5/minute")
        one, two = (limit("2/minute", name="login") for _ in range(2))
        assert [one.limiter.allow("a"), two.limiter.allow("a"), one.limiter.allow("a")] == [
            True,
            True,
            False,
        ]
        with pytest.raises(ImproperlyConfigured, match="3/minute"):
            limit("3/minute", name="login")
        for each in (one, two):
            each.limiter.close()
    assert [each.name for each in tables.iterdir() if "web" in each.name]


def test_shared_rules_have_tables_of_their_own(tables: Path) -> None:
    rules = [("/a/b", "1/minute"), ("/a-b", "1/minute"), ("POST /a/b", "1/minute")]
    with limited(LIMITER="1/minute", RULES=rules, SHARED="web"):
        ask(False, {"path": "/a/b"}, {"path": "/file"})
        mine = [each.name for each in tables.iterdir() if each.name.startswith("web")]
        assert len(mine) == len(rules) + 1


def test_the_document(tables: Path) -> None:
    """The settings and views in docs/django.md are right."""
    said = python_of_document(0)
    nanolimit = {**said["NANOLIMIT"], "MAX_KEYS": 100}
    with limited(said["MIDDLEWARE"], **nanolimit):
        answers = ask(False, *[{"method": "POST", "path": "/login"}] * 6)
        assert [each.status_code for each in answers] == [200] * 5 + [429]
        shown = python_of_document(1)
        patterns = [
            path("login", shown["login"]),
            path("search", shown["search"]),
            path("report", shown["Report"].as_view()),
        ]
    with views(*patterns):
        assert [each.status_code for each in ask(False, *[{"path": "/login"}] * 9)] == [200] * 9
        answers = ask(False, *[{"method": "POST", "path": "/login"}] * 6)
        # (a fresh count: "login" is another table than that of the rule)
        assert [each.status_code for each in answers] == [200] * 5 + [429]
        (found,) = ask(True, {"path": "/search"})
        assert found.content == b"9 left"
        assert found.headers[POLICY] == '"search-second";q=10;w=1, "search-hour";q=100;w=3600'
        answers = ask(False, *[{"path": "/report", "headers": {"X-API-Key": "k"}}] * 21)
        assert [each.status_code for each in answers] == [200] * 20 + [429]
    assert {each.name for each in tables.iterdir()} >= {"web", "web.login", "web.report"}


def test_without_the_framework() -> None:
    said = run_without("django", "nanolimit.integrations.django")
    assert "pip install 'nanolimit[django]'" in said


# Real servers


def example(kind: str, log: Path) -> Server:
    options = {
        "gunicorn": [
            "gunicorn", "--bind", "fd://{fd}", "--workers", str(WORKERS), "--chdir", str(EXAMPLES),
            "--no-control-socket", "django_app:application",
        ],
        "uvicorn": [
            "uvicorn", "--fd", "{fd}", "--workers", str(WORKERS), "--app-dir", str(EXAMPLES),
            "--no-access-log", "--lifespan", "off", "--timeout-worker-healthcheck", "2",
            "django_app:asgi_application",
        ],
    }[kind]  # fmt: skip
    return Server(*options, limit=QUOTA, table="web", log=log, workers=WORKERS)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("kind", ["gunicorn", "uvicorn"])
def test_four_workers_admit_exactly_the_limit(kind: str, tmp_path: Path) -> None:
    names = ["alice", "bob"] if kind == "gunicorn" else ["async/alice", "async/bob"]
    with example(kind, tmp_path / "log") as server:
        check_windows(server, names)


def test_time_to_check_is_no_wait() -> None:
    """Whatever the limit says, nobody sleeps."""
    with limited(LIMITER="1/day"):
        begun = time.monotonic()
        ask(False, *[{}] * 50)
        assert time.monotonic() - begun < 30


def test_in_front_of_a_django_application() -> None:
    """The plain middlewares around what Django makes for servers."""
    from nanolimit.integrations import asgi, wsgi

    limiter = RateLimiter("2/minute")
    inner = wsgi.RateLimitMiddleware(django_project.application, limiter, client_ip())
    statuses: list[str] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc: Any = None) -> Any:
        statuses.append(status)
        assert any(name == "RateLimit" for name, _ in headers)

    for _ in range(3):
        closing: Any = inner(RequestFactory().get("/hello").environ, start_response)
        b"".join(closing)
        if hasattr(closing, "close"):
            closing.close()
    assert statuses == ["200 OK", "200 OK", "429 Too Many Requests"]

    outer = asgi.RateLimitMiddleware(django_project.asgi_application, limiter, client_ip())
    sent: list[Any] = []

    async def run() -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "method": "GET", "path": "/async/hello",
            "raw_path": b"/async/hello", "query_string": b"", "headers": [], "scheme": "http",
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "http_version": "1.1",
        }  # fmt: skip
        await outer(scope, receive, send)

    asyncio.run(run())
    assert sent[0]["status"] == 429
