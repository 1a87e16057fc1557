"""The dashboard's one button: which key it resets, and for whom."""

from __future__ import annotations

import ipaddress
import json
import logging
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from dashboards import Answer, ask
from nanolimit import RateLimiter, SharedTableError, dashboard

FIELDS = [(b"content-type", b"application/json"), (b"x-nanolimit", b"1")]


@pytest.fixture
def limiter() -> Iterator[RateLimiter]:
    with RateLimiter("2/minute", name="api", track_top=100) as made:
        yield made


def use_up(limiter: RateLimiter, *keys: Any) -> None:
    for key in keys:
        for _ in range(4):
            limiter.allow(key)


def reset(app: Any, entry_id: object, limiter: object = 0, **more: Any) -> Answer:
    body = json.dumps({"limiter": limiter, "id": entry_id}).encode()
    return ask(app, "POST", "/reset", body, fields=FIELDS, **more)


def entries(app: Any, limiter: int = 0) -> list[dict[str, Any]]:
    top: list[dict[str, Any]] = ask(app, path="/data.json").json["limiters"][limiter]["top"]
    return top


KEYS = [
    "1", 1, b"1", ("1",), (1,), -1, "", " ", "<script>alert(1)</script>", "a\nb", "a\0b", "\u2028",
    "\u202eabc", "ключ", b"\xff\x00", 2**70, uuid.UUID(int=5), ipaddress.ip_address("10.0.0.1"),
    "10.0.0.1", ipaddress.ip_address("::1"), ("acme", ("bob", 7)), "a" * 128,
]  # fmt: skip


def test_keys_that_look_alike_are_told_apart(limiter: RateLimiter) -> None:
    """Each button resets the very key of its row, and no other."""
    app = dashboard.app(limiter)
    use_up(limiter, *KEYS)
    shown = entries(app)
    assert len(shown) == 20
    by_id = {app._sources[0]._id(key): key for key in KEYS}
    assert len(by_id) == len(KEYS)
    left = set(map(repr, KEYS))
    for entry_id, key in by_id.items():
        answer = reset(app, entry_id)
        assert (answer.status, answer.json) == (200, {"reset": True})
        left.discard(repr(key))
        for other in KEYS:
            assert limiter.peek(other).allowed is (repr(other) not in left), (key, other)
    assert left == set()
    assert {entry["id"] for entry in shown} <= set(by_id)


def test_what_is_shown_tells_keys_apart_too(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter)
    use_up(limiter, *KEYS[:5], "10.0.0.1", ipaddress.ip_address("10.0.0.1"))
    shown = {(*entry["key"], entry["kind"]) for entry in entries(app)}
    assert len(shown) == 7
    assert {("1", ""), ("1", "int"), ("b'1'", "bytes"), ("10.0.0.1", "address")} <= shown


def test_a_lone_surrogate(limiter: RateLimiter) -> None:
    """Of a file name or a header, decoded with surrogateescape."""
    key = "caf\udce9"
    use_up(limiter, key)
    app = dashboard.app(limiter)
    (entry,) = entries(app)
    assert entry["key"] == ["caf", "U+DCE9", ""]
    assert reset(app, entry["id"]).json == {"reset": True}
    assert limiter.peek(key).remaining == 2


def test_a_key_whose_text_was_cut_has_no_button(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter)
    use_up(limiter, "x" * 129)
    (entry,) = entries(app)
    assert (entry["id"], entry["exact"]) == (None, False)
    assert "".join(entry["key"]).endswith("…")
    # nor can the id that its text would have be made up
    text = "".join(entry["key"])
    limiter.allow(text)
    assert reset(app, app._sources[0]._id(text)).status == 404
    assert limiter.peek(text).remaining == 1


def test_a_second_reset_finds_nothing_to_forget(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter)
    use_up(limiter, "ann")
    (entry,) = entries(app)
    assert reset(app, entry["id"]).json == {"reset": True}
    assert reset(app, entry["id"]).json == {"reset": False}


def test_an_id_is_good_in_another_worker_and_for_its_limiter_only() -> None:
    with (
        RateLimiter("2/minute", name="a", track_top=10) as a,
        RateLimiter("2/minute", name="b", track_top=10) as b,
    ):
        use_up(a, "ann")
        use_up(b, "ann")
        app, worker = dashboard.app(a, b), dashboard.app(a, b)
        first, second = entries(app, 0)[0]["id"], entries(app, 1)[0]["id"]
        assert first != second
        assert reset(worker, second, limiter=0).status == 404
        assert reset(worker, second, limiter=-1).status == 404
        assert reset(worker, second, limiter=2).status == 404
        assert reset(worker, second, limiter=1).json == {"reset": True}
        assert not a.peek("ann").allowed
        assert b.peek("ann").remaining == 2


@pytest.mark.parametrize("entry_id", ["", "ann", "0" * 32, "x" * 1000, "\0", "<b>"])
def test_a_client_cannot_name_a_key(limiter: RateLimiter, entry_id: str) -> None:
    app = dashboard.app(limiter)
    use_up(limiter, "ann")
    answer = reset(app, entry_id)
    assert answer.status == 404
    assert "no longer among the top offenders" in answer.json["error"]
    assert not limiter.peek("ann").allowed


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"x"', 400),
        (b"{}", 400),
        (b'{"limiter": 0}', 400),
        (b'{"id": "x"}', 400),
        (b'{"limiter": "0", "id": "x"}', 400),
        (b'{"limiter": true, "id": "x"}', 400),
        (b'{"limiter": 0.0, "id": "x"}', 400),
        (b'{"limiter": 0, "id": 7}', 400),
        (b'{"limiter": 0, "id": null}', 400),
        (b'{"limiter": 0, "id": ["x"]}', 400),
        (b"\xff\xfe", 400),
        (b"[" * 4000, 400),
        (b'{"limiter": ' + b"9" * 4000 + b', "id": "x"}', 404),
        (b'{"limiter": 1, "id": "x"}', 404),
        (b'{"limiter": -1, "id": "x"}', 404),
        (b'{"limiter": 0, "id": "' + b"x" * 5000 + b'"}', 413),
        ([b'{"limiter": 0, "id": "', b"x" * 3000, b"x" * 3000], 413),
    ],
)
def test_bad_bodies(limiter: RateLimiter, body: Any, status: int) -> None:
    app = dashboard.app(limiter)
    use_up(limiter, "ann")
    answer = ask(app, "POST", "/reset", body, fields=FIELDS)
    assert answer.status in ((status, 400) if status == 404 else (status,))
    assert "error" in answer.json
    assert not limiter.peek("ann").allowed


@pytest.mark.parametrize("kind", [None, b"text/plain", b"application/x-www-form-urlencoded"])
def test_what_a_form_can_send_is_no_reset(limiter: RateLimiter, kind: bytes | None) -> None:
    app = dashboard.app(limiter)
    use_up(limiter, "ann")
    body = json.dumps({"limiter": 0, "id": entries(app)[0]["id"]}).encode()
    fields = [FIELDS[1], *([(b"content-type", kind)] if kind else [])]
    assert ask(app, "POST", "/reset", body, fields=fields).status == 415
    assert ask(app, "POST", "/reset", body, fields=[FIELDS[0]]).status == 403
    assert not limiter.peek("ann").allowed


def test_a_client_that_goes_before_its_body_is_whole(limiter: RateLimiter) -> None:
    import asyncio

    from dashboards import scope_of

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there")

    scope = scope_of("POST", "/reset", fields=FIELDS)
    asyncio.run(dashboard.app(limiter)(scope, receive, send))


def test_a_limiter_that_is_closed(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter)
    use_up(limiter, "ann")
    (entry,) = entries(app)
    limiter.close()
    answer = reset(app, entry["id"])
    assert answer.status == 409
    assert "closed" in answer.json["error"]


class Looked:
    """A limiter that is only looked at, as through `shared.watch`."""

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter

    def __getattr__(self, name: str) -> Any:
        if name == "reset":
            raise AttributeError(name)
        return getattr(self._limiter, name)


def test_what_is_only_looked_at_offers_no_button(limiter: RateLimiter) -> None:
    app = dashboard.app(Looked(limiter))
    use_up(limiter, "ann")
    (told,) = ask(app, path="/data.json").json["limiters"]
    assert told["can_reset"] is False
    answer = reset(app, told["top"][0]["id"])
    assert answer.status == 409
    assert "only looked at" in answer.json["error"]
    assert not limiter.peek("ann").allowed


class Slow(Looked):
    """One whose reset can't be done, and says so after a while."""

    thread: threading.Thread | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._limiter, name)

    def reset(self, key: Any) -> bool:
        self.thread = threading.current_thread()
        raise SharedTableError("a process was stopped")


def test_a_reset_waits_outside_of_the_loop_and_tells_why_it_failed(limiter: RateLimiter) -> None:
    slow = Slow(limiter)
    app = dashboard.app(slow)
    use_up(limiter, "ann")
    answer = reset(app, entries(app)[0]["id"])
    assert (answer.status, answer.json) == (409, {"error": "a process was stopped"})
    assert slow.thread is not threading.main_thread()


def test_who_did_it_is_logged(limiter: RateLimiter, caplog: pytest.LogCaptureFixture) -> None:
    app = dashboard.app(limiter)
    use_up(limiter, "a\nb")
    with caplog.at_level(logging.INFO, "nanolimit"):
        reset(app, entries(app)[0]["id"])
    (record,) = [each for each in caplog.records if each.name == "nanolimit"]
    assert record.getMessage() == ("dashboard: key 'a\\nb' of limiter 'api' was reset by 127.0.0.1")
