"""Which requests a rule fits."""

from __future__ import annotations

from typing import Any

import pytest

from nanolimit import Quota, RateLimiter
from nanolimit.integrations import Rule


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("POST /login", ["POST /login", "POST /login/"], ["GET /login", "POST /", "POST /login/x"]),
        ("/login", ["GET /login", "DELETE /login"], ["GET /Login", "GET /login2"]),
        ("GET /x", ["GET /x", "HEAD /x"], ["POST /x"]),
        ("GET,POST /x", ["GET /x", "POST /x", "HEAD /x"], ["PUT /x"]),
        ("* /x", ["GET /x", "PUT /x"], ["GET /y"]),
        ("/", ["GET /"], ["GET /x"]),
        ("/users/{id}", ["GET /users/7", "GET /users/7/"], ["GET /users/", "GET /users/7/x"]),
        ("/users/{id}/posts", ["GET /users/7/posts"], ["GET /users/7/8/posts"]),
        ("/static/**", ["GET /static/", "GET /static/a/b.css"], ["GET /stat"]),
        ("**", ["GET /", "GET /a/b"], []),
        ("/a*.css", ["GET /a.css", "GET /abc.css"], ["GET /a/b.css"]),
        ("/a.b", ["GET /a.b"], ["GET /axb"]),
        ("/a/**/z", ["GET /a/b/c/z"], ["GET /a/b/c"]),
        ("/line", [], ["GET /line\nbreak"]),
        ("/line**", ["GET /line\nbreak"], []),
    ],
)
def test_what_it_fits(pattern: str, fits: list[str], fits_not: list[str]) -> None:
    rule = Rule(pattern, "5/minute")
    for request in fits:
        assert rule.fits(*request.split(" ", 1)), request
    for request in fits_not:
        assert not rule.fits(*request.split(" ", 1)), request


def test_its_limiter() -> None:
    limiter = RateLimiter("5/minute")
    assert Rule("/", limiter).limiter is limiter
    assert Rule("/", None).limiter is None
    for quota in ("5/minute", Quota(5, per=60), ["5/minute"]):
        made = Rule("/", quota).limiter
        assert made is not None
        assert made.quota == Quota(5, per=60)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("login", "5/minute"), ValueError, "pattern must be a path, or methods and a path"),
        (("post /login", "5/minute"), ValueError, "'GET,POST /search', not 'post /login'"),
        (("POST GET /login", "5/minute"), ValueError, "not 'POST GET /login'"),
        (("", "5/minute"), ValueError, "not ''"),
        (("/users/{}", "5/minute"), ValueError, "a whole name in braces"),
        (("/users/{id", "5/minute"), ValueError, "a whole name in braces"),
        ((5, "5/minute"), TypeError, "pattern must be a str, not int"),
        (("/", "5/fortnight"), ValueError, "'fortnight' is no unit"),
        (("/", 5), TypeError, "limiter must be a RateLimiter or a quota such as '5/minute', not 5"),
        (("/", "5/minute", "ip"), TypeError, "key must be a key function .* not 'ip'"),
    ],
)
def test_bad_input(arguments: tuple[Any, ...], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Rule(*arguments)
