"""What a client or URL points to, and how those are refused that point nowhere."""

from __future__ import annotations

import sys
from typing import Any

import pytest

redis = pytest.importorskip("redis")

from redis.asyncio import Redis as AsyncRedis  # noqa: E402
from redis.sentinel import Sentinel  # noqa: E402

from nanolimit.redis.aiowire import AsyncWire  # noqa: E402
from nanolimit.redis.target import target_of  # noqa: E402
from nanolimit.redis.wire import Wire  # noqa: E402


class Own(redis.Redis):  # type: ignore[misc, name-defined]
    """A client's subclass, as applications have them."""


def test_nothing_is_sent_and_no_thread_started_when_it_is_made() -> None:
    import threading

    before = threading.active_count()
    with Wire("redis://192.0.2.1:6379"):
        assert threading.active_count() == before


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://localhost", "localhost:6379"),
        ("redis://me:secret@example.org:7000/3", "example.org:7000"),
        ("rediss://[2001:db8::1]:7000", "[2001:db8::1]:7000"),
        ("unix:///run/redis.sock?db=2", "/run/redis.sock"),
    ],
)
def test_urls(url: str, name: str) -> None:
    for wire in (Wire(url), AsyncWire(url)):
        assert name in repr(wire)
        assert "secret" not in repr(wire)
        assert not wire.clustered


def test_retries_and_timeouts_are_our_own_and_the_rest_survives() -> None:
    client = Own(
        "example.org", 7000, db=3, password="x", socket_timeout=99, health_check_interval=5,
        decode_responses=True, client_name="me", max_connections=7,
    )  # fmt: skip
    target = target_of(client, "sync", 0.1)
    connection = target.connection(None)
    assert (connection.host, connection.port, connection.db) == ("example.org", 7000, 3)
    assert (connection.password, connection.client_name) == ("x", "me")
    assert connection.retry._retries == 0
    assert connection.health_check_interval == 0
    assert connection.socket_timeout == connection.socket_connect_timeout == 1.0
    assert target.max_connections == 7


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "client of redis-py or valkey-py, or a URL such as '.*', not None$"),
        (5, "not int$"),
        (b"redis://localhost", "not bytes: give the URL as str, 'redis://localhost'"),
        (b"redis://:secret@localhost", r"give the URL as str, 'redis://\*\*\*@localhost'$"),
        (redis.Redis, r"not the class Redis: make a client of it, Redis\(\.\.\.\)"),
        (redis.Redis().pipeline(), "not Pipeline: give the client of which the pipeline was made"),
        (AsyncRedis().pipeline(), "not Pipeline: give the client of which the pipeline was made"),
        (Sentinel([("localhost", 1)]), r"not Sentinel: give the client of the master, sentinel\.m"),
        (redis.ConnectionPool(), r"not ConnectionPool: give a client, Redis\(connection_pool="),
    ],
)
def test_what_is_no_client(given: Any, says: str) -> None:
    for make in (Wire, AsyncWire):
        with pytest.raises(TypeError, match=says):
            make(given)


def test_a_client_of_replicas() -> None:
    client = Sentinel([("localhost", 1)]).slave_for("main")
    with pytest.raises(TypeError, match=r"replicas of 'main', which can't count: give "):
        Wire(client)


@pytest.mark.parametrize("port", [0, -1, 65_536, "x", None])
def test_a_clients_port(port: Any) -> None:
    says = f"client_or_url is a client of the port {port!r}, and ports are from 1 to 65535"
    for make, kind in ((Wire, redis.Redis), (AsyncWire, AsyncRedis)):
        with pytest.raises(ValueError, match=says):
            make(kind(port=port))
        assert "localhost:7000" in repr(make(kind(port="7000")))


def test_a_client_without_a_server() -> None:
    class FakeConnection:
        __module__ = "fakeredis"

    client = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=FakeConnection))
    with pytest.raises(TypeError, match=r"fakeredis client, which has no server: use nanolimit\."):
        Wire(client)


def test_a_client_of_the_other_style() -> None:
    with pytest.raises(TypeError, match=r"is redis.asyncio's Redis, .*use AsyncRedisRateLimiter"):
        Wire(AsyncRedis())
    with pytest.raises(TypeError, match=r"is redis's Own, which would block the event loop: .*"):
        AsyncWire(Own())


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "a URL such as 'redis://localhost:6379/0'.*, not ''"),
        ("localhost:6379", "not 'localhost:6379'"),
        ("http://localhost", "not 'http://localhost'"),
        ("redis:/localhost", "not 'redis:/localhost'"),
        ("redis://localhost:port", "is no URL of a server: Port could not be cast"),
        ("redis://localhost:99999", "out of range"),
        ("redis://localhost:0", "the port is 0"),
        ("redis://localhost/main", "the number of a database, such as '/0', not '/main'"),
        ("redis://localhost/0?db=x", "for .db. in"),
        ("redis://localhost?no_such=1", "no_such"),
        ("rediss://localhost?ssl_cert_reqs=maybe", "can't be used: Invalid SSL Certificate"),
        ("unix://", "names no path"),
        ("redis://me:secret@localhost:port", r"'redis://\*\*\*@localhost:port'"),
        ("http://me:secret@localhost", r"not 'http://\*\*\*@localhost'"),
        ("unix://run/redis.sock", "begins with a third slash, as in 'unix:///run/redis.sock'"),
        # Generated passwords have such characters, and most people don't escape them.
        ("redis://me:secret/7@localhost:6379/0", "'/' is written as %2F"),
        ("redis://me:7/secret@localhost:6379/0", "'/' is written as %2F"),
        ("redis://me:secret?7@localhost:6379/0", "'[?]' as %3F"),
        ("redis://me:secret#7@localhost:6379/0", "'#' as %23"),
        ("redis://me:7#secret@localhost:6379/0", "'#' as %23"),
        ("redis://me:secret[7@localhost:6379/0", r"'\[' as %5B"),
        ("me:secret@localhost:6379", r"not '\*\*\*@localhost:6379'"),
        ("redis://localhost?Password=secret", r"'redis://localhost\?\*\*\*'"),
    ],
)
def test_urls_that_are_wrong(url: str, says: str) -> None:
    for make in (Wire, AsyncWire):
        with pytest.raises(ValueError, match=says) as caught:
            make(url)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), 3601])
def test_timeouts_out_of_range(timeout_s: float) -> None:
    for make in (Wire, AsyncWire):
        with pytest.raises(ValueError, match="timeout_s must be above 0 and at most 3600 s, not"):
            make("redis://localhost", timeout_s)


@pytest.mark.parametrize("timeout_s", [None, "1", True])
def test_timeouts_of_another_type(timeout_s: Any) -> None:
    with pytest.raises(TypeError, match="timeout_s must be a number of seconds, not"):
        Wire("redis://localhost", timeout_s)


def test_max_connections() -> None:
    with pytest.raises(ValueError, match="max_connections must be at least 1, not 0"):
        Wire("redis://localhost", max_connections=0)
    with pytest.raises(TypeError, match="max_connections must be an int, not float"):
        Wire("redis://localhost", max_connections=1.5)  # type: ignore[arg-type]


def test_without_a_client_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setitem(sys.modules, "valkey", None)
    with pytest.raises(ImportError, match=r"needs redis or valkey: pip install 'nanolimit\[redis"):
        Wire("redis://localhost")
    with pytest.raises(ImportError, match=r"needs valkey: pip install 'nanolimit\[valkey\]'"):
        Wire("valkey://localhost")
