"""Which part of a line names the user."""

from __future__ import annotations

import pytest

from nanolimit.cli import key


@pytest.mark.parametrize(
    ("text", "record", "user"),
    [
        ("ip", {"remote_addr": "10.0.0.1"}, "10.0.0.1"),
        ("ip", {"clientip": "10.0.0.2", "ip": "10.0.0.3"}, "10.0.0.3"),
        ("ip", {"request": {"remote_ip": "10.0.0.4"}}, "10.0.0.4"),
        ("remote_addr", {"ip": "10.0.0.5", "remote_addr": "10.0.0.6"}, "10.0.0.6"),
        ("user", {"user_id": 42}, "42"),
        ("User-Agent", {"http_user_agent": "curl/8"}, "curl/8"),
        ("referrer", {"http_referer": "https://a.example/"}, "https://a.example/"),
        ("account", {"account": "a"}, "a"),
        ("Account", {"account": "a"}, None),
        ("http.headers.x-user", {"http": {"headers": {"x-user": "u"}}}, "u"),
        ("http.user", {"http.user": "flat", "http": {"user": "deep"}}, "flat"),
        ("http.user", {"http": "text"}, None),
        ("account", {"account": None}, None),
        ("account", {"account": True}, None),
        ("account", {"account": ["a"]}, None),
        ("account", {}, None),
        ("account", {"account": 1.5}, "1.5"),
    ],
)
def test_field(text: str, record: dict[str, object], user: str | None) -> None:
    assert key.parse(text).of_record(record) == user


def test_expression() -> None:
    parsed = key.parse(r"/users/(\d+)")
    assert parsed.of_line("GET /users/17/posts") == "17"
    assert parsed.of_line("GET /posts") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("(", "does not compile"),
        ("(a)(b)", "2 groups"),
        ("(?:a)", "0 groups"),
        (r"\d+", "no group"),
        ("a*", "no group"),
        ("two words", "no group"),
    ],
)
def test_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        key.parse(text)
