"""The dashboard's application: what it is made of, its paths and the fields of its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from dashboards import ask, scope_of
from nanolimit import RateLimiter, dashboard

PUBLIC = ["/app.js", "/style.css", "/icon.svg", "/uplot.js", "/uplot.css"]
GUARDED = ["/", "/data.json", "/events"]
POSTED = ["/reset", "/login", "/logout"]


@pytest.fixture
def limiter() -> Iterator[RateLimiter]:
    with RateLimiter("2/minute", name="api", track_top=10) as made:
        yield made


@pytest.mark.parametrize(
    ("arguments", "keywords", "kind", "said"),
    [
        ((), {}, TypeError, "at least one limiter"),
        (("api",), {}, TypeError, "argument 1 must be a RateLimiter .*, not str"),
        ((None,), {}, TypeError, "not NoneType"),
        ((RateLimiter,), {}, TypeError, "not <class 'nanolimit"),
        (("good", "5/minute"), {}, TypeError, "argument 2 must be .* not str"),
        (("good", "good"), {}, ValueError, "two limiters are named 'api'"),
        (("good",), {"token": ""}, ValueError, "token is empty"),
        (("good",), {"token": b"secret"}, TypeError, "token must be a str or None, not bytes"),
        (("good",), {"token": 7}, TypeError, "not int"),
        (("good",), {"token": "two words"}, ValueError, "printable ASCII without spaces"),
        (("good",), {"token": "schlüssel"}, ValueError, "printable ASCII"),
        (("good",), {"token": "a\nb"}, ValueError, "printable ASCII"),
        (("good",), {"allowed_hosts": "example.com"}, TypeError, "a list of names .* not str"),
        (("good",), {"allowed_hosts": 5}, TypeError, "not int"),
        (("good",), {"allowed_hosts": []}, ValueError, "allowed_hosts is empty"),
        (("good",), {"allowed_hosts": [b"a"]}, TypeError, "must hold strs, not bytes"),
        (("good",), {"allowed_hosts": ["https://a"]}, ValueError, "'https://a'"),
        (("good",), {"allowed_hosts": ["a:8377"]}, ValueError, "without scheme and port"),
        (("good",), {"allowed_hosts": [""]}, ValueError, "has ''"),
    ],
)
def test_bad_arguments(
    limiter: RateLimiter,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    kind: type[Exception],
    said: str,
) -> None:
    given = [limiter if argument == "good" else argument for argument in arguments]
    with pytest.raises(kind, match=said) as caught:
        dashboard.app(*given, **keywords)
    token = keywords.get("token")
    if isinstance(token, str) and token:
        assert token not in str(caught.value), "a secret in a message"


def test_its_repr_tells_names_and_no_token(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter, token="secret")
    assert repr(app) == "<Dashboard of 'api', a token>"


@pytest.mark.parametrize("path", [*PUBLIC, *GUARDED])
def test_what_is_there_to_read(limiter: RateLimiter, path: str) -> None:
    app = dashboard.app(limiter)
    head = ask(app, "HEAD", path)
    assert (head.status, head.content) == (200, b"")
    if path != "/events":
        answer = ask(app, "GET", path)
        assert answer.status == 200
        assert answer.content
        if path != "/data.json":  # whose times have more digits or fewer
            assert answer.field("content-length") == head.field("content-length")


@pytest.mark.parametrize("path", [*PUBLIC, *GUARDED])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_what_is_read_can_be_done_nothing_else_with(
    limiter: RateLimiter, path: str, method: str
) -> None:
    answer = ask(dashboard.app(limiter), method, path)
    assert (answer.status, answer.field("allow")) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", POSTED)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS"])
def test_a_change_is_a_post(limiter: RateLimiter, path: str, method: str) -> None:
    answer = ask(dashboard.app(limiter), method, path)
    assert (answer.status, answer.field("allow")) == (405, "POST")


@pytest.mark.parametrize("path", ["/x", "/events/", "//", "/page/app.js", "/../application.py"])
def test_what_is_not_there(limiter: RateLimiter, path: str) -> None:
    assert ask(dashboard.app(limiter), "GET", path).status == 404


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [(path, "GET", 200) for path in PUBLIC]
    + [("/", "GET", 200), ("/data.json", "GET", 200), ("/events", "HEAD", 200)]
    + [("/x", "GET", 404), ("/reset", "GET", 405), ("/reset", "POST", 403)],
)
def test_every_answer_keeps_the_browser_short(
    limiter: RateLimiter, path: str, method: str, status: int
) -> None:
    answer = ask(dashboard.app(limiter), method, path)
    assert answer.status == status
    policy = dict(
        part.strip().split(" ", 1)
        for part in str(answer.field("content-security-policy")).split(";")
    )
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
        "trusted-types": "'none'",
    }
    assert answer.field("x-content-type-options") == "nosniff"
    assert answer.field("x-frame-options") == "DENY"
    assert answer.field("referrer-policy") == "no-referrer"
    assert answer.field("cross-origin-opener-policy") == "same-origin"
    assert answer.field("cross-origin-resource-policy") == "same-origin"
    assert answer.field("cache-control") == ("no-cache" if path in PUBLIC else "no-store")


def test_a_file_that_is_known_is_not_sent_again(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter)
    tag = ask(app, "GET", "/app.js").field("etag")
    assert tag
    again = ask(app, "GET", "/app.js", fields=[(b"if-none-match", tag.encode())])
    assert (again.status, again.content, again.field("etag")) == (304, b"", tag)
    assert ask(app, "GET", "/app.js", fields=[(b"if-none-match", b'"old"')]).status == 200


@pytest.mark.parametrize("root", ["/limits", "/a/b/limits"])
def test_it_is_at_home_below_a_prefix(limiter: RateLimiter, root: str) -> None:
    app = dashboard.app(limiter)
    assert ask(app, path="/data.json", root_path=root).json["limiters"][0]["name"] == ["api"]
    # relative: right also behind a proxy that takes a prefix off
    answer = ask(app, path="", root_path=root)
    assert (answer.status, answer.field("location")) == (308, "limits/")


def test_a_server_that_gives_the_path_below_the_prefix_only(limiter: RateLimiter) -> None:
    scope = scope_of("GET", "/data.json")
    scope["root_path"] = "/limits"
    app = dashboard.app(limiter)
    from dashboards import asked

    assert asyncio.run(asked(app, scope)).status == 200


def test_data_are_those_of_stats_and_top(limiter: RateLimiter) -> None:
    for _ in range(5):
        limiter.allow("ann")
    limiter.allow("bob")
    stats = limiter.stats()
    (told,) = ask(dashboard.app(limiter), path="/data.json").json["limiters"]
    counts = told["counts"]
    for name in ("allowed", "denied", "keys", "capacity", "memory_bytes", "evicted", "overflowed"):
        assert counts[name] == getattr(stats, name)
    assert (counts["allowed"], counts["denied"]) == (3, 3)
    assert told["quota"] == ["2 requests in any 60 seconds, counted exactly"]
    assert (told["state"], told["track_top"], told["can_reset"]) == ("open", 10, True)
    (top,) = told["top"]
    assert (top["key"], top["kind"], top["denied"], top["error"]) == (["ann"], "", 3, 0)
    assert top["exact"] is True
    assert 0 <= top["ago_s"] < 60


def test_a_limiter_that_keeps_no_account_of_offenders() -> None:
    with RateLimiter("1/minute") as limiter:
        limiter.allow("a")
        limiter.allow("a")
        (told,) = ask(dashboard.app(limiter), path="/data.json").json["limiters"]
    assert (told["track_top"], told["top"]) == (0, None)


def test_only_so_many_offenders_are_shown() -> None:
    with RateLimiter("1/minute", track_top=100) as limiter:
        for number in range(30):
            limiter.allow(f"u{number}")
            limiter.allow(f"u{number}")
        (told,) = ask(dashboard.app(limiter), path="/data.json").json["limiters"]
    assert len(told["top"]) == 20


def test_a_denial_by_a_clock_of_ones_own_was_not_ago() -> None:
    with RateLimiter("1/minute", track_top=10, clock=lambda: 1000.5) as limiter:
        limiter.allow("a")
        limiter.allow("a")
        (told,) = ask(dashboard.app(limiter), path="/data.json").json["limiters"]
    (top,) = told["top"]
    assert top["ago_s"] is None
    assert top["last_denied"] == pytest.approx(1000.5)


def test_a_closed_limiter_is_told_of(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter)
    limiter.close()
    (told,) = ask(app, path="/data.json").json["limiters"]
    assert (told["state"], told["counts"], told["top"]) == ("closed", None, None)
    assert "".join(told["problem"]) == "limiter 'api' is closed; these are the last figures."


def test_websockets_are_closed_and_other_kinds_refused(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({"type": "websocket", "path": "/", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008, "reason": ""}]
    with pytest.raises(ValueError, match="not 'pigeon'"):
        asyncio.run(app({"type": "pigeon"}, receive, send))


def test_the_core_does_not_know_it() -> None:
    from sharing import python

    python(
        "import sys, nanolimit\n"
        "assert not any(name.startswith('nanolimit.dashboard') for name in sys.modules)\n"
        "from nanolimit import dashboard\n"
        "foreign = {'uvicorn', 'starlette', 'click'} & set(sys.modules)\n"
        "assert not foreign, foreign\n"
    )
