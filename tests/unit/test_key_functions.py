"""`header`, `user`, `combine`: on scopes, environs and the objects around them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nanolimit.integrations import InvalidRequestError, client_ip, combine, header, user


def scope(*fields: tuple[bytes, bytes], **more: Any) -> dict[str, Any]:
    return {"type": "http", "client": ("192.0.2.1", 1), "headers": fields, **more}


def environ(**more: Any) -> dict[str, Any]:
    return {"REQUEST_METHOD": "GET", "REMOTE_ADDR": "192.0.2.1", **more}


def test_a_header() -> None:
    key = header("X-API-Key")
    assert key(scope((b"x-api-key", b"abc"))) == "x-api-key=abc"
    assert key(scope((b"X-Api-Key", b"abc"))) == "x-api-key=abc"
    assert key(environ(HTTP_X_API_KEY="abc")) == "x-api-key=abc"
    assert key(scope((b"x-api-key", b"\xff" * 65_536))) == "x-api-key=" + "\xff" * 65_536


def test_without_the_header_it_is_the_address() -> None:
    for request in (scope(), environ(), scope((b"x-api-key", b"")), environ(HTTP_X_API_KEY="")):
        assert header("X-API-Key")(request) == "192.0.2.1"
        assert header("X-API-Key", missing=lambda request: "nobody")(request) == "nobody"


def test_a_header_that_stands_there_twice() -> None:
    with pytest.raises(InvalidRequestError, match="x-api-key stands in the request twice"):
        header("X-API-Key")(scope((b"x-api-key", b"mine"), (b"x-api-key", b"other")))


class Person:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    ("who", "key"),
    [
        (Person(pk=7, id=8), "user=7"),
        (Person(id=8, is_authenticated=True), "user=8"),
        (Person(identity="ann", display_name="Ann"), "user=ann"),
        (Person(username="ann"), "user=ann"),
        ("ann", "user=ann"),
        (Person(id=8, is_authenticated=False), "192.0.2.1"),
        (None, "192.0.2.1"),
        ("", "192.0.2.1"),
    ],
)
def test_a_user(who: object, key: str) -> None:
    assert user()(scope(user=who)) == key
    assert user()(SimpleNamespace(META=environ(), user=who)) == key


def test_a_user_of_wsgi() -> None:
    assert user()(environ(REMOTE_USER="ann")) == "user=ann"
    assert user(anonymous=lambda request: "guest")(environ()) == "guest"


def test_a_user_whose_identity_is_not_implemented() -> None:
    class Simple:
        is_authenticated = True
        display_name = "Ann"

        @property
        def identity(self) -> str:
            raise NotImplementedError

    assert user()(scope(user=Simple())) == "user=Ann"


def test_a_user_without_a_name() -> None:
    with pytest.raises(TypeError, match="type object has no pk, id"):
        user()(scope(user=object()))


def test_several() -> None:
    key = combine(client_ip(), header("X-Tenant"))
    assert key(scope((b"x-tenant", b"a"))) == ("192.0.2.1", "x-tenant=a")
    with pytest.raises(TypeError, match="returned None"):
        combine(client_ip(), lambda request: None)(scope())  # type: ignore[arg-type, return-value]


def test_what_is_no_request() -> None:
    with pytest.raises(TypeError, match=r"no ASGI scope, no WSGI environ .*: int"):
        client_ip()(5)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: header(""), ValueError, "must be a header's name such as 'X-API-Key', not ''"),
        (lambda: header("a\r\nb"), ValueError, "must be a header's name"),
        (lambda: header(5), TypeError, "not int"),
        (lambda: header("a", missing="nobody"), TypeError, "missing must be a key function"),
        (lambda: user(anonymous=None), TypeError, "anonymous must be a key function"),
        (lambda: combine(), TypeError, "at least one"),
        (lambda: combine("user"), TypeError, "each argument of combine must be a key function"),
    ],
)
def test_bad_input(make: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make()


def test_they_tell_what_they_are() -> None:
    key = combine(client_ip(), header("X-Tenant"), user())
    assert repr(key) == "combine(client_ip(...), header('x-tenant'), user())"
