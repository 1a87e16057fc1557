"""Script calls from threads, to a real server: what comes back, and with what connections."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

redis = pytest.importorskip("redis")

from lua import COUNT, EMPTY, Lua  # noqa: E402
from nanolimit.redis.cluster import Address  # noqa: E402
from nanolimit.redis.fault import Unavailable  # noqa: E402
from nanolimit.redis.line import Line  # noqa: E402
from nanolimit.redis.wire import Wire  # noqa: E402
from redis_server import RedisSentinel, RedisServer, free_port  # noqa: E402

# Of calls that are to succeed: the machine may be busy.
PATIENT_S = 20.0


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.ask("FLUSHALL")
    return running


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
def test_replies_are_the_same_however_the_client_decodes(
    server: RedisServer, decode: bool, protocol: int
) -> None:
    script = Lua("return {1, -2, 'a\\r\\n', {}, {3, {false}}, redis.status_reply('OK')}")
    with redis.Redis.from_url(server.url, decode_responses=decode, protocol=protocol) as client:
        with Wire(client, PATIENT_S) as wire:
            assert wire.run(script, [b"k"]) == [1, -2, b"a\r\n", [], [3, [None]], b"OK"]
            assert wire.run(EMPTY, []) == 0
            assert wire.run(Lua("return false"), []) is None
            assert wire.run(Lua("return ARGV"), [], [b"\xff\r\n", "ü", -5, 2**62]) == [
                b"\xff\r\n", "ü".encode(), b"-5", b"%d" % 2**62,
            ]  # fmt: skip


def test_a_large_reply_and_a_large_request(server: RedisServer) -> None:
    size = 3_000_000
    with Wire(server.url, PATIENT_S) as wire:
        data = wire.run(Lua("return ARGV[1] .. KEYS[1]"), [b"k" * size], [b"a" * size])
        assert data == b"a" * size + b"k" * size


def test_the_source_goes_out_only_where_the_server_does_not_know_it(server: RedisServer) -> None:
    server.ask("SCRIPT", "FLUSH")
    before = server.calls("eval"), server.calls("evalsha")
    with Wire(server.url, PATIENT_S) as wire:
        assert [wire.run(COUNT, [b"k"], [1]) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert server.calls("eval") - before[0] == 1
    assert server.calls("evalsha") - before[1] == 5  # the first one was refused


def test_an_argument_of_another_type_is_refused_before_anything_is_sent(
    server: RedisServer,
) -> None:
    with Wire(server.url, PATIENT_S) as wire:
        with pytest.raises(TypeError, match="bytes, str or int, not float"):
            wire.run(COUNT, [b"k"], [1.5])  # type: ignore[list-item]
    assert server.ask("GET", "k") is None


def test_threads_share_few_connections_and_get_their_own_replies(server: RedisServer) -> None:
    wire = Wire(server.url, PATIENT_S, max_connections=3)
    wrong: list[object] = []
    echo = Lua("redis.call('INCR', KEYS[1]) return ARGV[1]")

    def work(number: int) -> None:
        for turn in range(200):
            sent = b"%d/%d" % (number, turn)
            if (got := wire.run(echo, [b"k"], [sent])) != sent:
                wrong.append(got)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, len(server.clients()))
    for thread in threads:
        thread.join()
    assert not wrong
    assert server.ask("GET", "k") == b"1600"
    assert 1 <= most <= 3
    wire.close()
    wire.close()
    with pytest.raises(Unavailable, match="closed"):
        wire.run(EMPTY, [])
    with pytest.raises(Unavailable, match="closed"):
        wire._pool_at(Address("127.0.0.1", 1))


def test_a_wire_that_is_forgotten_closes_its_connections(server: RedisServer) -> None:
    wire = Wire(server.url, PATIENT_S)
    wire.run(EMPTY, [])
    assert len(server.clients()) == 1
    del wire
    while server.clients():  # it learns of it a moment later
        pass


def test_many_calls_are_answered_one_by_one(server: RedisServer) -> None:
    server.ask("LPUSH", "list", "x")
    server.ask("SCRIPT", "FLUSH")
    with Wire(server.url, PATIENT_S) as wire:
        assert wire.run_many([]) == []
        calls = [(COUNT, [key], [1]) for key in (b"a", b"list", b"a", b"b")]
        first, refused, second, other = wire.run_many(calls)
        assert [first, second, other] == [1, 2, 1]
        assert isinstance(refused, Unavailable)
        assert refused.reason.startswith("WRONGTYPE")
        assert wire.run_many(calls[2:]) == [3, 2]
    assert server.calls("eval") >= 1


def test_many_calls_are_one_write_and_a_few_reads_of_the_server(server: RedisServer) -> None:
    with Wire(server.url, PATIENT_S) as wire:
        wire.run(COUNT, [b"k"], [1])
        before = int(server.info("stats")["total_reads_processed"])
        assert wire.run_many([(COUNT, [b"k"], [1])] * 100) == list(range(2, 102))
        after = int(server.info("stats")["total_reads_processed"])
    # Of these, two belong to each INFO: its request and the end of its connection.
    assert after - before <= 4


def test_what_could_not_be_sent_is_sent_on_another_connection(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if it broke between the look at it and the sending.
    monkeypatch.setattr(Line, "alive", lambda self: True)
    with Wire(server.url, PATIENT_S) as wire:
        for turn in range(3):
            assert wire.run(COUNT, [b"k"], [1]) == turn + 1
            (line,) = wire._pool._free
            line._socket.shutdown(socket.SHUT_WR)
        assert wire.run_many([(COUNT, [b"k"], [1])]) == [4]
        (line,) = wire._pool._free
        line._socket.shutdown(socket.SHUT_WR)
        # Of several the first may have gone out whole, for all one knows.
        for each in wire.run_many([(COUNT, [b"k"], [1])] * 2):
            assert isinstance(each, Unavailable)
            assert each.outcome_unknown
        assert wire.run(COUNT, [b"k"], [1]) == 5


# What survives of the client


def test_password_user_and_database_survive(tmp_path: Path) -> None:
    with RedisServer(password="sesame/@") as server:
        server.ask("ACL", "SETUSER", "limits", "on", ">pass:word", "~nl:*", "+@all")
        given = redis.Redis(
            port=server.port, username="limits", password="pass:word", db=3, client_name="me"
        )
        with given, Wire(given, PATIENT_S) as wire:
            assert wire.run(COUNT, [b"nl:k"], [1]) == 1
            (row,) = server.clients()
            assert (row["user"], row["db"], row["name"]) == ("limits", "3", "me")
            with pytest.raises(Unavailable, match="NOPERM"):
                wire.run(COUNT, [b"other"], [1])
        url = f"redis://limits:pass%3Aword@127.0.0.1:{server.port}/4"
        with Wire(url, PATIENT_S) as wire:
            assert wire.run(COUNT, [b"nl:k"], [5]) == 5
            assert "pass" not in repr(wire)
        with Wire(redis.Redis(port=server.port, password="wrong"), PATIENT_S) as wire:
            with pytest.raises(Unavailable, match=r"WRONGPASS|invalid") as caught:
                wire.run(COUNT, [b"nl:k"], [1])
            assert not caught.value.outcome_unknown
        with Wire(redis.Redis(port=server.port), PATIENT_S) as wire:
            with pytest.raises(Unavailable, match=r"NOAUTH|Authentication"):
                wire.run(COUNT, [b"nl:k"], [1])


def test_a_unix_socket(server: RedisServer) -> None:
    for given in (server.unix_url, redis.Redis(unix_socket_path=server.unix_path)):
        with Wire(given, PATIENT_S) as wire:
            assert wire.run(EMPTY, []) == 0
            assert server.unix_path in repr(wire)


@pytest.mark.filterwarnings("ignore:Call to '__init__' function:DeprecationWarning")
def test_tls_options_survive(tmp_path: Path, require_tool: Any) -> None:
    import subprocess

    certificate, key, port = tmp_path / "cert.pem", tmp_path / "key.pem", free_port()
    subprocess.run(
        [
            require_tool("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
            "-keyout", str(key), "-out", str(certificate),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    options = (
        "--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key),
        "--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no",
    )  # fmt: skip
    big = b"x" * 200_000
    with RedisServer(*options) as server:
        client = redis.Redis("localhost", port, ssl=True, ssl_ca_certs=str(certificate))
        with Wire(client, PATIENT_S) as wire:
            assert [wire.run(COUNT, [b"k"], [1]) for _ in range(5)] == [1, 2, 3, 4, 5]
            assert wire.run(Lua("return ARGV[1]"), [], [big]) == big
            assert wire.run_many([(COUNT, [b"k"], [1])] * 3) == [6, 7, 8]
            # The one that the server closed is seen before anything is sent on it.
            server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert wire.run(COUNT, [b"k"], [1]) == 9
        with Wire(f"rediss://localhost:{port}?ssl_ca_certs={certificate}", PATIENT_S) as wire:
            assert wire.run(COUNT, [b"k"], [1]) == 10
        # Nothing is said before the first call, so that TLS's own tickets come before it.
        silent = {"lib_name": None, "lib_version": None, "ssl_ca_certs": str(certificate)}
        pool = redis.ConnectionPool(
            connection_class=redis.SSLConnection, host="localhost", port=port, **silent
        )
        with Wire(redis.Redis(connection_pool=pool), 5.0) as wire:
            wire._pool.give(wire._pool.take(time.monotonic() + PATIENT_S))
            time.sleep(0.1)
            accepted = int(server.info("stats")["total_connections_received"])
            assert wire.run(COUNT, [b"k"], [0]) == 10
            assert int(server.info("stats")["total_connections_received"]) == accepted + 1  # INFO
        with Wire(f"rediss://localhost:{port}", PATIENT_S) as wire:
            with pytest.raises(Unavailable, match=r"(?i)certificate"):
                wire.run(COUNT, [b"k"], [1])


def test_a_sentinels_master_is_followed() -> None:
    from redis.sentinel import Sentinel

    with RedisServer() as old, RedisServer() as new, RedisSentinel() as watcher:
        watcher.watch(old)
        client = Sentinel([(watcher.host, watcher.port)]).master_for("main")
        with Wire(client, PATIENT_S) as wire:
            assert wire.run(COUNT, [b"k"], [1]) == 1
            assert "main" in repr(wire)
            watcher.watch(new)
            # The old one became a replica. The first to be told so has the master looked up.
            old.ask("REPLICAOF", new.host, new.port)
            with pytest.raises(Unavailable, match="READONLY") as caught:
                wire.run(COUNT, [b"k"], [10])
            assert not caught.value.outcome_unknown
            assert wire.run(COUNT, [b"k"], [100]) == 100
        assert new.ask("GET", "k") == b"100"


# Forks


def in_child(work: Any) -> bytes:
    """Run it in a forked child; what it returns."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, work())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_child_never_speaks_on_its_parents_connection(server: RedisServer) -> None:
    wire = Wire(server.url, PATIENT_S)
    echo = Lua("redis.call('INCR', KEYS[1]) return ARGV[1]")
    stop = threading.Event()
    wrong: list[object] = []

    def load() -> None:
        try:
            while not stop.is_set():
                if (got := wire.run(echo, [b"k"], [b"parent"])) != b"parent":
                    wrong.append(got)
        except Unavailable as fault:
            wrong.append(fault)

    def child() -> bytes:
        assert not wire._pool._lines
        for turn in range(50):
            assert wire.run(echo, [b"k"], [b"child%d" % turn]) == b"child%d" % turn
        own = {line._socket.getsockname() for line in wire._pool._lines}
        assert len(own) == 1
        return b"%d" % own.pop()[1]

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    wire.run(echo, [b"k"], [b"mine"])
    try:
        ports = [in_child(child) for _ in range(5)]
        # The ends of the children said nothing to the server on the parent's connections.
        assert wire.run(echo, [b"k"], [b"mine"]) == b"mine"
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert all(port.isdigit() for port in ports), ports
    parents = {b"%d" % line._socket.getsockname()[1] for line in wire._pool._lines}
    assert not parents & set(ports)
    wire.close()


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_childs_end_leaves_its_parents_connection_open(server: RedisServer) -> None:
    with Wire(server.url, PATIENT_S) as wire:
        wire.run(EMPTY, [])
        (own,) = server.clients()
        for _ in range(3):
            assert in_child(lambda: b"%d" % wire.run(EMPTY, [])) == b"0"
            assert in_child(lambda: b"nothing") == b"nothing"
        wire.run(EMPTY, [])
        assert own["id"] in [each["id"] for each in server.clients()]


def test_an_interrupt_after_the_replies_leaves_the_connection_to_the_next(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    calls = [(COUNT, [b"k"], [1])] * 2
    with Wire(server.url, PATIENT_S) as wire:
        wire.run_many(calls)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(wire, "_settle", interrupt)
            wire.run_many(calls)
        # It was handed back by then, and may be another thread's.
        assert [line.alive() for line in wire._pool._free] == [True]
        assert len(wire._pool) == 1
        # In the middle of the replies it is of no more use.
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Line, "read", interrupt)
            wire.run_many(calls)
        assert len(wire._pool) == 0
        assert wire.run_many(calls) == [7, 8]
