"""Script calls from tasks: what asyncio adds."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

redis = pytest.importorskip("redis")

from redis.asyncio import Redis  # noqa: E402
from redis.asyncio.sentinel import Sentinel  # noqa: E402

from lua import COUNT, EMPTY, Lua  # noqa: E402
from nanolimit.redis.aiowire import AsyncWire  # noqa: E402
from nanolimit.redis.fault import Unavailable  # noqa: E402
from nanolimit.redis.resp import ErrorReply, pack  # noqa: E402
from redis_server import RedisSentinel, RedisServer, free_port  # noqa: E402
from tcp_proxy import TcpProxy  # noqa: E402

PATIENT_S = 20.0


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.ask("FLUSHALL")
    return running


def with_wire(
    given: object, work: Callable[[AsyncWire], Awaitable[Any]], timeout_s: float = PATIENT_S
) -> Any:
    """Run a coroutine with a wire, in a loop of its own."""

    async def main() -> Any:
        async with AsyncWire(given, timeout_s) as wire:
            return await work(wire)

    return asyncio.run(main())


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
def test_replies_are_the_same_however_the_client_decodes(
    server: RedisServer, decode: bool, protocol: int
) -> None:
    async def main() -> None:
        client = Redis.from_url(server.url, decode_responses=decode, protocol=protocol)
        async with client, AsyncWire(client, PATIENT_S) as wire:
            script = Lua("return {1, 'a\\r\\n', {3, {false}}}")
            assert await wire.run(script, [b"k"]) == [1, b"a\r\n", [3, [None]]]
            big = b"x" * 3_000_000
            assert await wire.run(Lua("return ARGV[1]"), [], [big]) == big

    asyncio.run(main())


def test_what_tasks_send_in_one_turn_is_one_write_on_one_connection(server: RedisServer) -> None:
    async def work(wire: AsyncWire) -> None:
        await wire.run(COUNT, [b"k"], [1])
        before = int(server.info("stats")["total_reads_processed"])
        replies = await asyncio.gather(*(wire.run(COUNT, [b"k"], [1]) for _ in range(64)))
        assert replies == list(range(2, 66))
        after = int(server.info("stats")["total_reads_processed"])
        assert after - before <= 4  # of which two belong to INFO
        assert len(server.clients()) == 1

    with_wire(server.url, work)


def test_a_cancelled_task_disturbs_nobody(server: RedisServer) -> None:
    echo = Lua("redis.call('INCR', KEYS[1]) return ARGV[1]")

    async def work(wire: AsyncWire) -> None:
        await wire.run(EMPTY, [])
        tasks = [asyncio.create_task(wire.run(echo, [b"k"], [number])) for number in range(30)]
        many = asyncio.create_task(wire.run_many([(echo, [b"k"], [99])] * 5))
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        many.cancel()
        found = await asyncio.gather(*tasks, many, return_exceptions=True)
        for number, reply in enumerate(found[:-1]):
            if number % 3:
                assert reply == b"%d" % number
            else:
                assert isinstance(reply, asyncio.CancelledError)
        assert await wire.run(echo, [b"k"], [7]) == b"7"
        assert len(server.clients()) == 1

    with_wire(server.url, work)


def test_what_breaks_before_it_was_written_is_sent_on_another_connection(
    server: RedisServer,
) -> None:
    async def work(wire: AsyncWire) -> None:
        assert await wire.run(COUNT, [b"k"], [1]) == 1
        calls = [asyncio.create_task(wire.run(COUNT, [b"k"], [1])) for _ in range(3)]
        many = asyncio.create_task(wire.run_many([(COUNT, [b"k"], [1])] * 3))
        await asyncio.sleep(0)
        # They wait for the write at the end of this turn.
        line = wire._pool.line
        assert line is not None
        assert len(line._unsent) == 6
        line.close()
        found = [*await asyncio.gather(*calls), *await many]
        assert sorted(found) == list(range(2, 8))

    with_wire(server.url, work)


def test_nobody_is_told_of_faults_that_nobody_waits_for(server: RedisServer) -> None:
    with TcpProxy(server.port) as proxy:

        async def work(wire: AsyncWire) -> None:
            told: list[Any] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what))
            await wire.run(EMPTY, [])
            proxy.hold()
            many = asyncio.create_task(wire.run_many([(COUNT, [b"k"], [1])] * 5))
            one = asyncio.create_task(wire.run(COUNT, [b"k"], [1]))
            await asyncio.sleep(0.01)
            many.cancel()
            one.cancel()
            await asyncio.wait({many, one})
            line = wire._pool.line
            assert line is not None
            line.close()
            del many, one, line
            gc.collect()
            await asyncio.sleep(0)
            assert not told

        with_wire(f"redis://127.0.0.1:{proxy.port}", work)


def test_another_process_in_the_same_loop_starts_afresh(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(wire: AsyncWire) -> None:
        await wire.run(EMPTY, [])
        parents = wire._pool.line
        assert parents is not None
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            assert await wire.run(EMPTY, []) == 0
            assert wire._pool.line is not parents
            assert parents.usable
            await wire.aclose()
        parents.close()

    with_wire(server.url, work)


def test_cancelled_while_it_connects(server: RedisServer) -> None:
    with TcpProxy(server.port) as proxy:

        async def work(wire: AsyncWire) -> None:
            proxy.hold()
            first = asyncio.create_task(wire.run(COUNT, [b"k"], [1]))
            second = asyncio.create_task(wire.run(COUNT, [b"k"], [1]))
            while not proxy.accepted:
                await asyncio.sleep(0.001)
            first.cancel()
            await asyncio.wait({first})
            proxy.release()
            assert await second == 1
            assert proxy.accepted == 1

        with_wire(f"redis://127.0.0.1:{proxy.port}", work)


def test_closed_while_it_connects_and_while_it_waits(server: RedisServer) -> None:
    async def main() -> None:
        with TcpProxy(server.port) as proxy:
            wire = AsyncWire(f"redis://127.0.0.1:{proxy.port}", PATIENT_S)
            for warm in (False, True):
                wire = AsyncWire(f"redis://127.0.0.1:{proxy.port}", PATIENT_S)
                if warm:
                    await wire.run(EMPTY, [])
                proxy.hold()
                waiting = asyncio.create_task(wire.run(EMPTY, []))
                await asyncio.sleep(0.05)
                await wire.aclose()
                with pytest.raises(Unavailable, match="closed") as caught:
                    await waiting
                assert caught.value.outcome_unknown == warm
                with pytest.raises(Unavailable, match="closed"):
                    await wire.run(EMPTY, [])
                await wire.aclose()
                proxy.release()

    asyncio.run(main())


def test_after_a_timeout_the_next_call_does_not_stand_behind_the_stuck_one(
    server: RedisServer,
) -> None:
    with TcpProxy(server.port) as proxy:

        async def work(wire: AsyncWire) -> None:
            assert await wire.run(COUNT, [b"k"], [1]) == 1
            proxy.hold()
            with pytest.raises(Unavailable, match="in time") as caught:
                await wire.run(COUNT, [b"k"], [1])
            assert caught.value.outcome_unknown
            proxy.release()
            assert await wire.run(COUNT, [b"k"], [1]) == 3
            assert proxy.accepted == 2

        with_wire(f"redis://127.0.0.1:{proxy.port}", work, 1.0)


def test_who_comes_later_with_less_time_left_leaves_first(server: RedisServer) -> None:
    with TcpProxy(server.port) as proxy:

        async def work(wire: AsyncWire) -> None:
            await wire.run(EMPTY, [])
            proxy.hold()
            line, now = wire._pool.line, asyncio.get_running_loop().time()
            assert line is not None
            patient = line.call(pack(COUNT, [b"k"], [1]), now + PATIENT_S)
            hasty = line.call(pack(COUNT, [b"k"], [1]), now + 0.1)
            with pytest.raises(Unavailable, match="in time"):
                await asyncio.wait_for(hasty, PATIENT_S / 2)
            # The line is given up, but not those who still wait on it.
            assert wire._pool.line is None
            proxy.release()
            assert await patient == 1

        with_wire(f"redis://127.0.0.1:{proxy.port}", work)


def test_closing_ends_also_the_lines_that_were_given_up(server: RedisServer) -> None:
    with TcpProxy(server.port) as proxy:

        async def work(wire: AsyncWire) -> None:
            await wire.run(EMPTY, [])
            proxy.hold()
            line, now = wire._pool.line, asyncio.get_running_loop().time()
            assert line is not None
            patient = line.call(pack(COUNT, [b"k"], [1]), now + PATIENT_S)
            with pytest.raises(Unavailable, match="in time"):
                await line.call(pack(COUNT, [b"k"], [1]), now + 0.1)
            await wire.aclose()
            assert patient.done()
            assert isinstance(patient.exception(), Unavailable)

        with_wire(f"redis://127.0.0.1:{proxy.port}", work)


def test_a_blocked_loop_loses_no_reply_that_has_come(server: RedisServer) -> None:
    async def work(wire: AsyncWire) -> None:
        await wire.run(EMPTY, [])
        calls = [asyncio.create_task(wire.run(COUNT, [b"k"], [1])) for _ in range(10)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # now it is sent
        time.sleep(0.5)
        assert await asyncio.gather(*calls) == list(range(1, 11))

    with_wire(server.url, work, 0.3)


@pytest.mark.parametrize("known", [True, False])
def test_a_loop_that_is_blocked_before_it_writes_is_no_fault_of_the_server(
    server: RedisServer, known: bool
) -> None:
    async def work(wire: AsyncWire) -> None:
        await wire.run(COUNT if known else EMPTY, [b"before"], [1])
        line = wire._pool.line
        calls = [asyncio.create_task(wire.run(COUNT, [b"k"], [1])) for _ in range(10)]
        await asyncio.sleep(0)  # it is asked for, and will be sent with the next turn
        time.sleep(0.5)
        assert await asyncio.gather(*calls) == list(range(1, 11))
        assert wire._pool.line is line

    server.ask("SCRIPT", "FLUSH")
    with_wire(server.url, work, 0.3)


def test_a_reply_that_came_while_the_loop_was_blocked_is_read_first(server: RedisServer) -> None:
    async def work(wire: AsyncWire) -> None:
        await wire.run(COUNT, [b"k"], [1])
        line, loop = wire._pool.line, asyncio.get_running_loop()
        assert line is not None
        reply = line.call(pack(COUNT, [b"k"], [1]), loop.time() + PATIENT_S)
        await asyncio.sleep(0)  # now it is sent
        assert server.ask("GET", "k") == b"2"
        assert line._timer is not None
        line._timer.cancel()
        line._rings_s = loop.time() - 1.0
        line._waiters[0].deadline = line._rings_s
        line._expire()  # as uvloop does, whose timers ring before it reads
        assert await reply == 2
        assert line.usable

    with_wire(server.url, work)


def test_who_could_not_be_sent_gets_his_time_when_he_is(server: RedisServer) -> None:
    async def work(wire: AsyncWire) -> None:
        await wire.run(COUNT, [b"k"], [1])
        line, loop = wire._pool.line, asyncio.get_running_loop()
        assert line is not None
        reply = line.call(pack(COUNT, [b"k"], [1]), loop.time() + 0.2)
        time.sleep(0.3)
        assert line._unsent
        await asyncio.sleep(0)
        assert [each.deadline > loop.time() for each in line._waiters] == [True]
        assert await reply == 2

    with_wire(server.url, work)


def test_a_loop_that_is_always_late_gives_up_in_the_end(server: RedisServer) -> None:
    with TcpProxy(server.port) as proxy:

        async def work(wire: AsyncWire) -> None:
            await wire.run(EMPTY, [])
            proxy.hold()
            line, loop = wire._pool.line, asyncio.get_running_loop()
            assert line is not None
            reply = line.call(pack(EMPTY, [], []), loop.time() + PATIENT_S)
            await asyncio.sleep(0)
            for gone in (False, True):
                assert line._timer is not None
                line._timer.cancel()
                line._rings_s = line._waiters[0].deadline = loop.time() - 1.0
                line._expire()
                assert reply.done() == gone
            assert isinstance(reply.exception(), Unavailable)

        with_wire(f"redis://127.0.0.1:{proxy.port}", work)


def test_a_loop_whose_timers_do_not_tell_when_they_ring(server: RedisServer) -> None:
    async def work(wire: AsyncWire) -> None:
        await wire.run(COUNT, [b"k"], [1])
        line, loop = wire._pool.line, asyncio.get_running_loop()
        assert line is not None
        # uvloop's are no timers, if it is at once.
        at_once = line.call(pack(COUNT, [b"k"], [1]), loop.time())
        assert line._timer is not None
        line._timer.cancel()
        line._timer = loop.call_soon(line._expire)  # type: ignore[assignment]
        other = line.call(pack(COUNT, [b"k"], [1]), loop.time() + PATIENT_S)
        with pytest.raises(Unavailable, match="in time"):
            await at_once
        assert await other == 3

    with_wire(server.url, work)


def test_a_slot_that_stays_on_the_move_is_not_asked_for_beyond_the_time(
    server: RedisServer,
) -> None:
    async def work(wire: AsyncWire) -> None:
        await wire.run(EMPTY, [])
        now_s, sent = 100.0, 0

        async def exchange(*_: object) -> ErrorReply:
            nonlocal now_s, sent
            now_s += 0.4 * PATIENT_S
            sent += 1
            return ErrorReply("TRYAGAIN Multiple keys request during rehashing of slot")

        wire._clock = lambda: now_s
        wire._exchange = exchange  # type: ignore[assignment, method-assign]
        with pytest.raises(Unavailable, match="TRYAGAIN"):
            await wire.run(EMPTY, [])
        assert sent == 3

    with_wire(server.url, work)


def test_another_loop_is_refused_while_the_first_is_open(server: RedisServer) -> None:
    wire = AsyncWire(server.url, PATIENT_S)
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(wire.run(COUNT, [b"k"], [1])) == 1
    with pytest.raises(RuntimeError, match=r"another event loop.*one for each loop"):
        asyncio.run(wire.run(COUNT, [b"k"], [1]))
    assert loop.run_until_complete(wire.run(COUNT, [b"k"], [1])) == 2
    loop.run_until_complete(wire.aclose())
    loop.close()


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")
@pytest.mark.filterwarnings("ignore:loop is closed:ResourceWarning")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore:unclosed resource:ResourceWarning")  # so says uvloop
def test_a_loop_that_is_closed_hands_over_to_the_next(server: RedisServer) -> None:
    wire = AsyncWire(server.url, PATIENT_S)
    for turn in range(3):
        assert asyncio.run(wire.run(COUNT, [b"k"], [1])) == turn + 1
    del wire
    gc.collect()


def test_a_wire_that_is_forgotten_closes_its_connection(server: RedisServer) -> None:
    async def main() -> None:
        wire = AsyncWire(server.url, PATIENT_S)
        await wire.run(EMPTY, [])
        assert len(server.clients()) == 1
        del wire
        deadline = time.monotonic() + PATIENT_S
        while server.clients():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_child_never_speaks_on_its_parents_connection(server: RedisServer) -> None:
    echo = Lua("redis.call('INCR', KEYS[1]) return ARGV[1]")

    async def main() -> bytes:
        wire = AsyncWire(server.url, PATIENT_S)
        assert await wire.run(echo, [b"k"], [b"parent"]) == b"parent"
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            said = b"nothing"
            try:
                # The loop that runs is the parent's; another has to be used here.
                asyncio.events._set_running_loop(None)
                loop = asyncio.new_event_loop()
                for turn in range(5):
                    work = wire.run(echo, [b"k"], [b"child%d" % turn])
                    assert loop.run_until_complete(work) == b"child%d" % turn
                said = b"well"
            except BaseException as error:
                said = repr(error).encode()
            finally:
                os.write(write, said)
                os._exit(0)
        os.close(write)
        for turn in range(50):
            assert await wire.run(echo, [b"k"], [b"%d" % turn]) == b"%d" % turn
        with os.fdopen(read, "rb") as file:
            said = file.read()
        os.waitpid(pid, 0)
        assert await wire.run(echo, [b"k"], [b"parent"]) == b"parent"
        assert len(server.clients()) == 1
        await wire.aclose()
        return said

    assert asyncio.run(main()) == b"well"


def test_a_unix_socket_a_password_and_a_database(server: RedisServer) -> None:
    async def work(wire: AsyncWire) -> None:
        assert await wire.run(COUNT, [b"k"], [1]) >= 1

    with_wire(server.unix_url, work)
    with_wire(Redis(unix_socket_path=server.unix_path), work)
    with RedisServer(password="sesame") as locked:
        with_wire(Redis(port=locked.port, password="sesame", db=2), work)
        assert locked.info("keyspace")["db2"].startswith("keys=1")
        with pytest.raises(Unavailable, match=r"NOAUTH|Authentication"):
            with_wire(Redis(port=locked.port), work)


def test_a_sentinels_master_is_followed() -> None:
    with RedisServer() as old, RedisServer() as new, RedisSentinel() as watcher:
        watcher.watch(old)

        async def main() -> None:
            sentinel = Sentinel([(watcher.host, watcher.port)])
            client = sentinel.master_for("main")
            async with client, AsyncWire(client, PATIENT_S) as wire:
                assert await wire.run(COUNT, [b"k"], [1]) == 1
                watcher.watch(new)
                old.ask("REPLICAOF", new.host, new.port)
                with pytest.raises(Unavailable, match="READONLY"):
                    await wire.run(COUNT, [b"k"], [10])
                assert await wire.run(COUNT, [b"k"], [100]) == 100
            for each in sentinel.sentinels:
                await each.aclose()

        asyncio.run(main())
        assert new.ask("GET", "k") == b"100"


def test_tls(tmp_path: Any, require_tool: Any) -> None:
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
    with RedisServer(*options):

        async def work(wire: AsyncWire) -> None:
            assert [await wire.run(COUNT, [b"k"], [1]) for _ in range(5)] == [1, 2, 3, 4, 5]
            big = b"x" * 200_000
            assert await wire.run(Lua("return ARGV[1]"), [], [big]) == big
            assert await wire.run_many([(COUNT, [b"k"], [1])] * 3) == [6, 7, 8]

        with_wire(Redis(host="localhost", port=port, ssl=True, ssl_ca_certs=str(certificate)), work)
        with pytest.raises(Unavailable, match=r"(?i)certificate"):
            with_wire(f"rediss://localhost:{port}", work)
