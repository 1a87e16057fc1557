"""Who may see the dashboard: hosts without a token, the token, the cookie that is given for it."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from typing import Any

import pytest

from dashboards import Answer, ask
from nanolimit import RateLimiter, dashboard
from nanolimit.dashboard import access

TOKEN = "correct-horse-battery-staple"
FORM = (b"content-type", b"application/x-www-form-urlencoded")
OWN = (b"x-nanolimit", b"1")


@pytest.fixture
def limiter() -> Iterator[RateLimiter]:
    with RateLimiter("2/minute", name="api", track_top=10) as made:
        yield made


@pytest.fixture
def guarded(limiter: RateLimiter) -> Any:
    return dashboard.app(limiter, token=TOKEN)


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {token}".encode())]


@pytest.mark.parametrize(
    "host",
    [b"localhost", b"localhost:8377", b"LocalHost", b"127.0.0.1:8377", b"127.1.2.3", b"[::1]:8377",
     b"api.localhost:1"],
)  # fmt: skip
def test_without_a_token_names_of_the_loopback_are_answered(
    limiter: RateLimiter, host: bytes
) -> None:
    assert ask(dashboard.app(limiter), path="/data.json", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [None, b"", b"rebound.example", b"rebound.example:8377", b"localhost.example", b"10.0.0.7",
     b"127.0.0.1.example", b"[::2]", b"0.0.0.0", b"notlocalhost"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/data.json", "/events", "/app.js", "/x", "/login"])
def test_without_a_token_no_other_name_is_answered(
    limiter: RateLimiter, host: bytes | None, path: str
) -> None:
    """A page of the web whose name was made to point here (DNS rebinding) gets nothing."""
    answer = ask(dashboard.app(limiter), path=path, host=host)
    assert answer.status == 403
    assert "localhost only" in answer.text


def test_a_host_that_is_named_twice_is_none(limiter: RateLimiter) -> None:
    more = [(b"host", b"localhost")]
    assert ask(dashboard.app(limiter), host=b"localhost", fields=more).status == 403


@pytest.mark.parametrize("client", [("10.0.0.7", 1), ("::2", 1), ("example", 1)])
def test_without_a_token_nobody_from_elsewhere_is_answered(
    limiter: RateLimiter, client: tuple[str, int]
) -> None:
    answer = ask(dashboard.app(limiter), client=client)
    assert answer.status == 403
    assert "this machine only" in answer.text


@pytest.mark.parametrize(
    "client", [("127.0.0.1", 1), ("::1", 1), ("::ffff:127.0.0.1", 1), None, ("", 0), ("/run/s", 0)]
)
def test_without_a_token_this_machine_is_answered(
    limiter: RateLimiter, client: tuple[str, int] | None
) -> None:
    assert ask(dashboard.app(limiter), client=client).status == 200


@pytest.mark.parametrize("name", [b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"via"])
def test_without_a_token_no_proxy_is_answered(limiter: RateLimiter, name: bytes) -> None:
    assert ask(dashboard.app(limiter), fields=[(name, b"10.0.0.7")]).status == 403


@pytest.mark.parametrize("client", [("10.0.0.7", 1), ("127.0.0.1", 1)])
def test_hosts_that_are_named_are_answered_wherever_from(
    limiter: RateLimiter, client: tuple[str, int]
) -> None:
    app = dashboard.app(limiter, allowed_hosts=["Limits.Example.com", "[2001:db8::1]"])
    for host in (b"limits.example.com", b"LIMITS.example.com:443", b"[2001:db8::1]:80"):
        assert ask(app, host=host, client=client).status == 200
    for host in (b"localhost", b"example.com", b"a.limits.example.com"):
        assert ask(app, host=host, client=client).status == 403
    anyone = dashboard.app(limiter, allowed_hosts=["*"])
    assert ask(anyone, host=b"whatever", client=client).status == 200


def test_named_hosts_narrow_a_token(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter, token=TOKEN, allowed_hosts=["a.example"])
    assert ask(app, host=b"a.example", fields=bearer(TOKEN)).status == 200
    assert ask(app, host=b"b.example", fields=bearer(TOKEN)).status == 403
    assert ask(app, host=b"b.example", query=f"token={TOKEN}".encode()).status == 403


def test_with_a_token_any_host_and_client_may_ask(guarded: Any) -> None:
    answer = ask(
        guarded, path="/data.json", host=b"a.example", client=("10.0.0.7", 1), fields=bearer(TOKEN)
    )
    assert answer.status == 200


@pytest.mark.parametrize("path", ["/data.json", "/events", "/"])
@pytest.mark.parametrize(
    "fields",
    [
        [],
        bearer("wrong"),
        bearer(""),
        bearer(TOKEN[:-1]),
        bearer(TOKEN + "x"),
        bearer(TOKEN.upper()),
        [(b"authorization", f"Basic {TOKEN}".encode())],
        [(b"authorization", TOKEN.encode())],
        bearer("wrong") + bearer(TOKEN),  # which of the two?
        [(b"cookie", f"token={TOKEN}".encode())],
    ],
)
def test_nothing_without_the_right_token(guarded: Any, path: str, fields: Any) -> None:
    answer = ask(guarded, path=path, fields=fields)
    assert answer.status == 401
    assert str(answer.field("www-authenticate")).startswith("Bearer")
    assert b"api" not in answer.content
    assert ("<form" in answer.text) is (path == "/")


@pytest.mark.parametrize("path", ["/reset", "/logout"])
def test_no_change_without_the_right_token(guarded: Any, path: str) -> None:
    fields = [OWN, (b"content-type", b"application/json")]
    assert ask(guarded, "POST", path, fields=fields).status == 401
    assert ask(guarded, "POST", path, fields=[*fields, *bearer("wrong")]).status == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_header(guarded: Any, scheme: str) -> None:
    fields = [(b"authorization", f"{scheme} {TOKEN}".encode())]
    assert ask(guarded, path="/data.json", fields=fields).status == 200


def cookie_of(answer: Answer) -> str:
    return str(answer.field("set-cookie")).partition(";")[0]


def test_the_address_with_the_token_gives_a_cookie_and_a_clean_address(guarded: Any) -> None:
    answer = ask(guarded, query=f"token={TOKEN}".encode(), root_path="/limits")
    assert (answer.status, answer.field("location")) == (303, "./")
    assert answer.field("cache-control") == "no-store"
    attributes = str(answer.field("set-cookie")).split("; ")[1:]
    assert sorted(attributes) == ["HttpOnly", "Path=/limits/", "SameSite=Strict"]
    assert TOKEN not in str(answer.fields)
    page = ask(guarded, fields=[(b"cookie", cookie_of(answer).encode())])
    assert (page.status, '<form method="post"' in page.text) == (200, False)


def test_over_https_the_cookie_goes_nowhere_else(guarded: Any) -> None:
    answer = ask(guarded, query=f"token={TOKEN}".encode(), scheme="https")
    assert "; Secure" in str(answer.field("set-cookie"))
    assert "Path=/;" in str(answer.field("set-cookie"))


@pytest.mark.parametrize("site", [b"cross-site", b"same-site"])
def test_a_link_in_a_chat_signs_in_as_well(guarded: Any, site: bytes) -> None:
    """A strict cookie does not go along with the redirect of a visit from another site."""
    answer = ask(guarded, query=f"token={TOKEN}".encode(), fields=[(b"sec-fetch-site", site)])
    assert answer.status == 200
    assert 'http-equiv="refresh"' in answer.text
    assert TOKEN not in answer.text
    assert cookie_of(answer)


@pytest.mark.parametrize(
    "query", [b"token=wrong", b"token=", f"token={TOKEN}&token={TOKEN}".encode(), b"&" * 100]
)
def test_an_address_with_a_wrong_token(guarded: Any, query: bytes) -> None:
    answer = ask(guarded, query=query)
    assert answer.status == 401
    assert answer.field("set-cookie") is None


@pytest.mark.parametrize(
    "change",
    [lambda value: value[:-1], lambda value: value + "0", lambda value: "", lambda value: TOKEN],
)
def test_a_cookie_that_we_did_not_give(guarded: Any, change: Any) -> None:
    cookie = cookie_of(ask(guarded, query=f"token={TOKEN}".encode()))
    name, _, value = cookie.partition("=")
    wrong = f"{name}={change(value)}".encode()
    assert ask(guarded, path="/data.json", fields=[(b"cookie", wrong)]).status == 401


def test_our_cookie_among_those_of_others(guarded: Any) -> None:
    own = cookie_of(ask(guarded, query=f"token={TOKEN}".encode()))
    for given in (f"a=b; {own}; c=d", f'bad[]=ä"; {own}', f"{own};"):
        fields = [(b"cookie", given.encode("latin-1"))]
        assert ask(guarded, path="/data.json", fields=fields).status == 200


def test_dashboards_on_other_ports_leave_each_others_cookies_alone(limiter: RateLimiter) -> None:
    names = {
        cookie_of(
            ask(dashboard.app(limiter, token=token), query=f"token={token}".encode())
        ).partition("=")[0]
        for token in ("one", "two", "three")
    }
    assert len(names) == 3


def test_a_worker_knows_the_cookie_of_another(limiter: RateLimiter, guarded: Any) -> None:
    own = cookie_of(ask(guarded, query=f"token={TOKEN}".encode()))
    other = dashboard.app(limiter, token=TOKEN)
    assert ask(other, fields=[(b"cookie", own.encode())]).status == 200
    changed = dashboard.app(limiter, token="another")
    assert ask(changed, fields=[(b"cookie", own.encode())]).status == 401


def test_the_form(guarded: Any) -> None:
    page = ask(guarded)
    assert page.status == 401
    assert 'action="login"' in page.text
    answer = ask(guarded, "POST", "/login", f"token={TOKEN}".encode(), fields=[FORM])
    assert (answer.status, answer.field("location")) == (303, "./")
    own = cookie_of(answer)
    assert ask(guarded, fields=[(b"cookie", own.encode())]).status == 200
    out = ask(guarded, "POST", "/logout", fields=[(b"cookie", own.encode()), OWN])
    assert out.status == 204
    assert f"{own.partition('=')[0]}=;" in str(out.field("set-cookie"))
    assert "Max-Age=0" in str(out.field("set-cookie"))


@pytest.mark.parametrize(
    ("body", "fields", "status"),
    [
        (b"token=wrong", [FORM], 401),
        (b"token=%ff%00%f0%9f%98%80", [FORM], 401),
        (b"other=1", [FORM], 400),
        (b"", [FORM], 400),
        (b"token=a&token=b", [FORM], 400),
        (b"&" * 4000, [FORM], 400),
        (b"token=" + b"x" * 5000, [FORM], 413),
        ([b"token=" + b"x" * 3000, b"x" * 3000], [FORM], 413),
        (b'{"token": "x"}', [(b"content-type", b"application/json")], 415),
        (b"token=wrong", [], 415),
    ],
)
def test_a_bad_login(guarded: Any, body: Any, fields: Any, status: int) -> None:
    answer = ask(guarded, "POST", "/login", body, fields=fields)
    assert answer.status == status
    assert answer.field("set-cookie") is None


def test_tokens_are_compared_in_constant_time(
    guarded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests of one length, by the one function that is made for it."""
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(access.hmac, "compare_digest", watched)
    assert ask(guarded, path="/data.json", fields=bearer("w")).status == 401
    assert ask(guarded, path="/data.json", fields=bearer(TOKEN)).status == 200
    cookie = access.Access(TOKEN, None).cookie_name
    ask(guarded, path="/data.json", fields=[(b"cookie", f"{cookie}=x".encode())])
    assert len(compared) == 3
    assert {(type(value), len(value)) for pair in compared for value in pair} == {(bytes, 32)}


def test_the_cookies_path_holds_nothing_that_would_end_it(guarded: Any) -> None:
    answer = ask(guarded, query=f"token={TOKEN}".encode(), root_path="/a; Domain=evil")
    assert "Path=/;" in str(answer.field("set-cookie"))
    assert "evil" not in str(answer.fields)


def test_where_a_change_may_come_from(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter)
    json_type = (b"content-type", b"application/json")

    def status(*fields: tuple[bytes, bytes]) -> int:
        return ask(app, "POST", "/reset", b"{}", fields=[json_type, *fields]).status

    good = 400  # it is no reset, but was looked at
    origin, site = b"origin", b"sec-fetch-site"
    assert status() == 403
    assert status(OWN) == good
    assert status(OWN, (site, b"same-origin")) == good
    assert status(OWN, (origin, b"http://127.0.0.1:8377")) == good
    assert status(OWN, (origin, b"https://127.0.0.1:8377")) == good  # a proxy speaks https
    assert status(OWN, (site, b"same-origin"), (origin, b"https://proxied.example")) == good
    for foreign in (b"cross-site", b"same-site", b"none", b""):
        assert status(OWN, (site, foreign)) == 403
        assert status(OWN, (site, foreign), (origin, b"http://127.0.0.1:8377")) == 403
    assert status(OWN, (site, b"same-origin"), (site, b"cross-site")) == 403
    for foreign in (
        b"null",
        b"",
        b"http://evil.example",
        b"http://127.0.0.1:9999",
        b"ftp://127.0.0.1:8377",
    ):
        assert status(OWN, (origin, foreign)) == 403
    assert status((site, b"same-origin"), (origin, b"http://127.0.0.1:8377")) == 403
