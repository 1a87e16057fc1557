"""What a broken server or network costs: never more than the time-out, and never a call run twice.

Every test runs with both wires; COUNT counts on the server what really ran.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("redis")

from blocking import Blocking
from lua import COUNT, EMPTY, LOOP, Lua
from nanolimit.redis.fault import Unavailable
from nanolimit.redis.wire import Wire
from redis_server import RedisError, RedisServer, free_port, on_both
from tcp_proxy import TcpProxy

PATIENT_S = 20.0
TIMEOUT_S = 0.2
# What a busy machine of two cores may add, in a test that looks at the clock.
SLACK_S = 1.5

AnyWire = Wire | Blocking
Make = Callable[..., Any]


@pytest.fixture(params=[Wire, Blocking], ids=["threads", "asyncio"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Make a wire, closed at the end."""
    made: list[AnyWire] = []

    def one(client_or_url: object, timeout_s: float = PATIENT_S) -> AnyWire:
        made.append(request.param(client_or_url, timeout_s))
        return made[-1]

    yield one
    for wire in made:
        wire.close()


@pytest.fixture(scope="module")
def running(binary: str) -> Iterator[RedisServer]:
    with RedisServer(binary=binary) as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.ask("FLUSHALL")
    return running


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[TcpProxy]:
    with TcpProxy(server.port) as proxy:
        yield proxy


def url(port: int) -> str:
    return f"redis://127.0.0.1:{port}"


def refused(wire: AnyWire, timeout_s: float = TIMEOUT_S) -> Unavailable:
    """Count once; the fault that came, in time."""
    start = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        wire.run(COUNT, [b"k"], [1])
    assert time.monotonic() - start < timeout_s + SLACK_S
    return caught.value


def recovered(wire: AnyWire) -> object:
    """Count until it works; the reply. What came before did not run."""
    deadline = time.monotonic() + PATIENT_S
    while time.monotonic() < deadline:
        try:
            return wire.run(COUNT, [b"k"], [1])
        except Unavailable as fault:
            last = fault
        assert not last.outcome_unknown
    raise last


def counted(server: RedisServer) -> int:
    return int(server.ask("GET", "k") or 0)


# Time


@on_both
def test_a_stopped_server_costs_one_timeout_and_runs_the_script_once(
    server: RedisServer, make: Make
) -> None:
    wire = make(server.url, TIMEOUT_S)
    patient = make(server.url)
    wire.run(COUNT, [b"k"], [1])
    patient.run(EMPTY, [])
    with server.paused():
        fault = refused(wire)
        assert fault.outcome_unknown
        assert "in time" in fault.reason
        # Now there is no connection: its making takes longer than the call may.
        assert not refused(wire).outcome_unknown
    # The server reads what it was sent before; the marker comes behind that.
    assert patient.run(EMPTY, []) == 0
    assert counted(server) == 2
    assert recovered(wire) == 3


def test_no_reply_from_the_first_byte_on(make: Make) -> None:
    with TcpProxy(0) as nowhere:
        wire = make(url(nowhere.port), TIMEOUT_S)
        for _ in range(3):
            assert not refused(wire).outcome_unknown


def test_a_dead_port_is_told_at_once(make: Make) -> None:
    wire = make(url(free_port()))
    start = time.monotonic()
    for _ in range(3):
        fault = refused(wire, PATIENT_S)
        assert not fault.outcome_unknown
        assert "refused" in fault.reason or "Connect call failed" in fault.reason
    assert time.monotonic() - start < PATIENT_S / 2


def test_a_name_server_that_hangs(
    server: RedisServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, go = socket.getaddrinfo, threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        go.wait()
        return real(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    wire = make(f"redis://localhost:{server.port}", TIMEOUT_S)
    try:
        for _ in range(3):
            assert not refused(wire).outcome_unknown
    finally:
        go.set()
    assert recovered(wire) == 1


def test_a_connection_that_takes_longer_than_a_call_may_serves_the_next_one(
    server: RedisServer, proxy: TcpProxy, make: Make
) -> None:
    wire = make(url(proxy.port), TIMEOUT_S)
    proxy.hold()
    assert not refused(wire).outcome_unknown
    proxy.release()
    assert recovered(wire) == 1
    assert proxy.accepted == 1


def test_a_reply_that_drips(server: RedisServer, proxy: TcpProxy, make: Make) -> None:
    wire = make(url(proxy.port), TIMEOUT_S)
    wire.run(EMPTY, [])
    # Each byte comes well within the time-out, all of them together don't.
    proxy.drip(TIMEOUT_S / 2)
    with pytest.raises(Unavailable) as caught:
        start = time.monotonic()
        wire.run(Lua("return ARGV[1]"), [], ["x" * 100])
    assert time.monotonic() - start < TIMEOUT_S + SLACK_S
    assert caught.value.outcome_unknown


def test_many_threads_wait_for_few_connections_no_longer_than_one(server: RedisServer) -> None:
    wire = Wire(server.url, TIMEOUT_S, max_connections=2)
    wire.run(COUNT, [b"k"], [1])
    faults: list[Unavailable] = []
    took: list[float] = []

    def work() -> None:
        start = time.monotonic()
        try:
            wire.run(COUNT, [b"k"], [1])
        except Unavailable as fault:
            faults.append(fault)
        took.append(time.monotonic() - start)

    with server.paused():
        threads = [threading.Thread(target=work) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(faults) == 40
    assert max(took) < TIMEOUT_S + SLACK_S
    # Only those that had a connection can have run.
    assert 1 <= sum(fault.outcome_unknown for fault in faults) <= 2
    wire.close()


def test_threads_in_front_of_a_black_hole_start_few_others() -> None:
    with TcpProxy(0) as nowhere:
        wire = Wire(url(nowhere.port), TIMEOUT_S)
        threads = [threading.Thread(target=refused, args=(wire,)) for _ in range(30)]
        before = set(threading.enumerate())  # of a server before this one, some may still connect
        for thread in threads:
            thread.start()
        names = [thread.name for thread in threading.enumerate() if thread not in before]
        for thread in threads:
            thread.join()
        # Eight at a time, and on a busy machine some that are just ending.
        assert 1 <= names.count("nanolimit-connect") <= 16
        assert nowhere.accepted <= 16
        wire.close()


# Cuts


def test_a_connection_cut_in_the_middle_of_a_reply(
    server: RedisServer, proxy: TcpProxy, make: Make
) -> None:
    wire = make(url(proxy.port))
    for size in (0, 1, 2):  # of ":1\r\n"
        server.ask("SET", "k", 0)
        wire.run(EMPTY, [])
        proxy.cut_replies_after(size)
        assert refused(wire, PATIENT_S).outcome_unknown
        assert counted(server) == 1
        proxy.mend()
    assert wire.run(COUNT, [b"k"], [1]) == 2


def test_a_connection_cut_while_nobody_used_it_costs_nothing(
    server: RedisServer, proxy: TcpProxy, make: Make
) -> None:
    wire = make(url(proxy.port))
    for turn in range(5):
        assert wire.run(COUNT, [b"k"], [1]) == turn + 1
        proxy.cut()
        time.sleep(0.02)  # an event loop learns of it in its next turn
    assert counted(server) == 5


def test_killed_by_client_kill(server: RedisServer, make: Make) -> None:
    wire = make(server.url)
    for turn in range(5):
        assert wire.run(COUNT, [b"k"], [1]) == turn + 1
        server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        time.sleep(0.02)


class Load:
    """Threads that count as long as the ``with`` block runs, and take note of what they got."""

    def __init__(self, wire: AnyWire, key: bytes = b"k") -> None:
        self._wire = wire
        self._key = key
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.counted = self.unknown = self.not_run = 0
        self.longest_s = 0.0
        self.wrong: list[BaseException] = []
        self._threads = [threading.Thread(target=self._work) for _ in range(4)]

    def _work(self) -> None:
        while not self._stop.is_set():
            start = time.monotonic()
            fault: Unavailable | None = None
            try:
                self._wire.run(COUNT, [self._key], [1])
            except Unavailable as error:
                fault = error
            except BaseException as error:
                self.wrong.append(error)
                return
            took = time.monotonic() - start
            with self._lock:
                self.longest_s = max(self.longest_s, took)
                if fault is None:
                    self.counted += 1
                elif fault.outcome_unknown:
                    self.unknown += 1
                else:
                    self.not_run += 1

    def wait_for(self, more: int) -> None:
        """Return when so many more calls were answered."""
        until, deadline = self.counted + more, time.monotonic() + PATIENT_S
        while self.counted < until and not self.wrong:
            assert time.monotonic() < deadline, vars(self)
            time.sleep(0.001)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait_for(20)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if exc[0] is None:
            assert not self.wrong


@on_both
def test_clients_killed_under_load_count_nothing_twice(server: RedisServer, make: Make) -> None:
    wire = make(server.url)
    with Load(wire) as load:
        for _ in range(20):
            server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            load.wait_for(5)
    # Some were killed while they logged in: those did not run.
    assert load.counted <= counted(server) <= load.counted + load.unknown


@on_both
def test_scripts_flushed_under_load(server: RedisServer, make: Make) -> None:
    with Load(make(server.url)) as load:
        for _ in range(30):
            server.ask("SCRIPT", "FLUSH")
            load.wait_for(5)
    assert load.unknown == load.not_run == 0
    assert counted(server) == load.counted


@on_both
def test_killed_with_9_under_load_and_restarted(make: Make, binary: str) -> None:
    with RedisServer(binary=binary) as server:
        with Load(make(server.url, 1.0)) as load:
            for _ in range(3):
                server.kill()
                time.sleep(0.05)
                server.start()
                load.wait_for(20)
            before = load.counted
        assert load.longest_s < 1.0 + SLACK_S
        assert load.not_run >= 1
        assert 20 <= counted(server) <= before


@on_both
def test_stopped_under_load_counts_nothing_twice(server: RedisServer, make: Make) -> None:
    with Load(make(server.url, TIMEOUT_S)) as load:
        with server.paused():
            time.sleep(3 * TIMEOUT_S)
        load.wait_for(20)
    assert load.unknown >= 1
    assert load.longest_s < TIMEOUT_S + SLACK_S
    assert load.counted <= counted(server) <= load.counted + load.unknown


# What the server says


@on_both
def test_out_of_memory(server: RedisServer, make: Make) -> None:
    wire = make(server.url)
    assert wire.run(COUNT, [b"k"], [1]) == 1
    server.config_set("maxmemory", 1)
    try:
        fault = refused(wire, PATIENT_S)
    finally:
        server.config_set("maxmemory", 0)
    assert fault.reason.startswith("OOM")
    assert not fault.outcome_unknown
    assert wire.run(COUNT, [b"k"], [1]) == 2


@on_both
@pytest.mark.parametrize(("stale", "code"), [("yes", "READONLY"), ("no", "MASTERDOWN")])
def test_a_replica(server: RedisServer, make: Make, stale: str, code: str) -> None:
    wire = make(server.url)
    assert wire.run(COUNT, [b"k"], [1]) == 1
    server.config_set("replica-serve-stale-data", stale)
    server.ask("REPLICAOF", "127.0.0.1", free_port())
    try:
        fault = refused(wire, PATIENT_S)
    finally:
        server.ask("REPLICAOF", "NO", "ONE")
    assert fault.reason.startswith(code)
    assert not fault.outcome_unknown
    assert wire.run(COUNT, [b"k"], [1]) == 2


def says_busy(server: RedisServer) -> bool:
    try:
        server.ask("PING")
    except RedisError as error:
        return str(error).startswith("BUSY")
    return False


@on_both
def test_busy_with_a_script_that_loops(server: RedisServer, make: Make) -> None:
    wire = make(server.url)
    assert wire.run(COUNT, [b"k"], [1]) == 1
    server.config_set("lua-time-limit", 10)
    with server.line() as line:
        line.send("EVAL", LOOP.source, 0)
        try:
            while not says_busy(server):
                pass
            fault = refused(wire, PATIENT_S)
        finally:
            server.ask("SCRIPT", "KILL")
        with pytest.raises(RedisError):
            line.read()
    server.config_set("lua-time-limit", 5000)
    assert fault.reason.startswith("BUSY")
    assert not fault.outcome_unknown
    assert wire.run(COUNT, [b"k"], [1]) == 2


def test_loading(make: Make) -> None:
    options = ("--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024")
    with RedisServer(*options) as server:
        for number in range(1000):
            with server.line() as line:
                if number % 500 == 0:
                    for each in range(500):
                        line.send("SET", f"{number + each}", "x" * 20)
                    for _ in range(500):
                        line.read()
        server.ask("SAVE")
        server.kill()
        server.start(while_loading=True)
        wire = make(server.url)
        fault = refused(wire, PATIENT_S)
        assert "LOADING" in fault.reason or "loading" in fault.reason
        assert not fault.outcome_unknown
        assert recovered(wire) == 1


def test_an_error_in_the_middle_of_a_script_leaves_the_outcome_unknown(
    server: RedisServer, make: Make
) -> None:
    wire = make(server.url)
    half = Lua("redis.call('INCR', KEYS[1]) return redis.call('LINDEX', KEYS[1], 0)")
    with pytest.raises(Unavailable, match="WRONGTYPE") as caught:
        wire.run(half, [b"k"])
    assert caught.value.outcome_unknown
    assert "may have counted" in str(caught.value)
    assert counted(server) == 1


def test_too_many_clients(make: Make) -> None:
    with RedisServer("--maxclients", "1") as server:
        wire = make(server.url)
        with server.line():
            assert not refused(wire, PATIENT_S).outcome_unknown


def test_a_server_of_another_protocol(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            client, _ = listener.accept()
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            client.close()

        thread = threading.Thread(target=answer)
        thread.start()
        wire = make(url(listener.getsockname()[1]))
        assert not refused(wire, PATIENT_S).outcome_unknown
        thread.join()


# Many at a time


def test_many_calls_to_a_stopped_server(server: RedisServer, make: Make) -> None:
    wire = make(server.url, TIMEOUT_S)
    wire.run(COUNT, [b"k"], [1])
    with server.paused():
        start = time.monotonic()
        found = wire.run_many([(COUNT, [b"k"], [1])] * 10)
        assert time.monotonic() - start < TIMEOUT_S + SLACK_S
    assert all(isinstance(each, Unavailable) and each.outcome_unknown for each in found)
    assert len({id(each) for each in found}) == 10


def test_many_calls_cut_in_the_middle_of_the_replies(
    server: RedisServer, proxy: TcpProxy, make: Make
) -> None:
    wire = make(url(proxy.port))
    wire.run(EMPTY, [])
    wire.run(COUNT, [b"k"], [0])
    proxy.cut_replies_after(len(b":1\r\n:2\r\n:3\r\n:4"))
    found = wire.run_many([(COUNT, [b"k"], [1])] * 10)
    assert found[:3] == [1, 2, 3]
    assert all(isinstance(each, Unavailable) and each.outcome_unknown for each in found[3:])
    assert counted(server) == 10
    proxy.mend()
    assert wire.run_many([(COUNT, [b"k"], [1])] * 2) == [11, 12]


def test_many_calls_to_a_server_that_is_gone(make: Make) -> None:
    wire = make(url(free_port()))
    found = wire.run_many([(COUNT, [b"k"], [1])] * 3)
    assert all(isinstance(each, Unavailable) and not each.outcome_unknown for each in found)


def test_many_calls_after_the_scripts_were_flushed(server: RedisServer, make: Make) -> None:
    wire = make(server.url)
    wire.run(COUNT, [b"k"], [1])
    server.ask("SCRIPT", "FLUSH")
    found = wire.run_many([(COUNT, [b"k"], [1])] * 50)
    assert sorted(found) == list(range(2, 52))
    assert counted(server) == 51
