"""The distributed limiters on a real redis-server: exact, bounded in time, whatever happens."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import subprocess
import sys
import textwrap
import threading
import time
from array import array
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("redis")

import redis
import redis.asyncio

import redis_journal
from nanolimit import Quota, telemetry
from nanolimit.redis import AsyncRedisRateLimiter, RedisRateLimiter, StoreUnavailableError
from redis_load import RECORD, Load, crowd, eventually, hammer, most_in_a_window, stamps
from redis_server import RedisCluster, RedisServer, on_both
from tcp_proxy import TcpProxy

TIMEOUT_S = 0.2
#: What a busy machine may add: a thread that is ready to run waits for a core.
SLACK_S = 0.8

HUGE = Quota(1_000_000, per=3600.0)


@pytest.fixture(scope="module")
def shared_server(binary: str) -> Iterator[RedisServer]:
    with RedisServer(binary=binary) as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """A server that runs well; each test has it to itself."""
    shared_server.ask("FLUSHALL")
    return shared_server


@pytest.fixture
def own(binary: str) -> Iterator[RedisServer]:
    """A server that the test may treat badly."""
    with RedisServer(binary=binary) as server:
        yield server


# --- as a RateLimiter


def test_all_verbs(server: RedisServer) -> None:
    with RedisRateLimiter("3/second; 5/minute", server.url) as limiter:
        assert [limiter.allow("k") for _ in range(4)] == [True, True, True, False]
        decision = limiter.check("k")
        assert (decision.allowed, decision.limit, decision.remaining) == (False, 3, 0)
        assert 0 < decision.retry_after <= 1
        assert limiter.peek("k").quota == Quota(3, per=1.0)
        start_s = time.monotonic()
        assert limiter.acquire("k", 2, timeout=10)
        assert time.monotonic() - start_s >= decision.retry_after - 0.05
        assert limiter.check("k").quota == Quota(5, per=60.0)
        assert not limiter.acquire("k", timeout=0.01)
        assert "k" in limiter
        assert limiter.reset("k")
        assert "k" not in limiter
        assert not limiter.reset("k")
        assert limiter.allow_many(["a", "a", "b", "a", "a"]) == [True, True, True, True, False]
        assert limiter.allow_many(array("q", [1, 1, -1])).tolist() == [True, True, True]
        assert limiter.stats().degraded == 0


def test_all_verbs_awaited(server: RedisServer) -> None:
    async def run() -> None:
        async with AsyncRedisRateLimiter("3/second; 5/minute", server.url) as limiter:
            assert [await limiter.allow("k") for _ in range(4)] == [True, True, True, False]
            assert not await limiter.check("k")
            assert (await limiter.peek("k")).quota == Quota(3, per=1.0)
            waits = [limiter.acquire("k", timeout=10) for _ in range(2)]
            assert await asyncio.gather(*waits) == [True, True]
            assert not await limiter.acquire("k", timeout=0.01)
            assert await limiter.reset("k")
            assert await limiter.allow_many(["a"] * 4) == [True, True, True, False]
            answers = await asyncio.gather(*[limiter.allow("many") for _ in range(50)])
            assert sum(answers) == 3
            assert limiter.stats().degraded == 0

    asyncio.run(run())


def test_a_peek_and_a_cost_of_0_leave_no_trace(server: RedisServer) -> None:
    with RedisRateLimiter("3/second", server.url) as limiter:
        limiter.peek("k")
        limiter.allow("k", 0)
        limiter.check("k", 0)
        limiter.allow_many(["k"], 0)
    assert server.ask("DBSIZE") == 0


def test_names_in_the_store(server: RedisServer) -> None:
    with RedisRateLimiter("3/second; 5/minute", server.url, prefix="app") as limiter:
        limiter.allow("user:{42}")
        limiter.allow(7)
    found = sorted(server.ask("KEYS", "*"))
    assert all(name.startswith(b"app:{") for name in found)
    assert len(found) == 4
    assert {name.split(b"}")[0] for name in found} == {b"app:{i:7", b"app:{s:user:%7B42%7D"}


@pytest.mark.parametrize("decode", [False, True])
def test_clients(server: RedisServer, decode: bool) -> None:
    client = redis.Redis(host=server.host, port=server.port, decode_responses=decode)
    with RedisRateLimiter("2/minute", client) as limiter:
        assert limiter.allow_many([b"\xff{", "é}", b"\xff{", b"\xff{"]) == [True, True, True, False]
        assert limiter.check("é}").remaining == 0
    client.ping()  # the given client is as it was
    client.close()

    async def run() -> None:
        client = redis.asyncio.Redis(host=server.host, port=server.port, decode_responses=decode)
        async with AsyncRedisRateLimiter("2/minute", client) as limiter:
            assert not await limiter.allow(b"\xff{")
            assert (await limiter.check("new")).remaining == 1
        await client.ping()
        await client.aclose()

    asyncio.run(run())


def test_clients_with_manners_of_their_own(server: RedisServer) -> None:
    """Retries, caches, pools that wait: none of it is the limiter's."""
    from redis.backoff import ExponentialBackoff
    from redis.retry import Retry

    caching: dict[str, Any] = {}
    try:
        from redis.cache import CacheConfig
    except ModuleNotFoundError:  # redis-py 5.0
        pass
    else:
        caching = {"cache_config": CacheConfig()}
    where: dict[str, Any] = {"host": server.host, "port": server.port}
    shut = redis.Redis(**where)
    shut.ping()
    shut.close()
    clients = [
        shut,  # the limiter's connections are its own
        redis.Redis(**where, retry=Retry(ExponentialBackoff(), 5), retry_on_error=[ValueError]),
        redis.Redis(**where, protocol=3, **caching),
        redis.Redis(**where, protocol=3, decode_responses=True),
        redis.Redis(**where, single_connection_client=True, health_check_interval=1),
        redis.Redis(connection_pool=redis.BlockingConnectionPool(**where, max_connections=1)),
        redis.Redis(unix_socket_path=server.unix_path, socket_timeout=0.001),
    ]
    for left, client in enumerate(reversed(clients)):
        with RedisRateLimiter("9/hour", client, timeout=5, on_error="raise") as limiter:
            assert limiter.allow("k")
            assert limiter.peek("k").remaining == 9 - left - 1
        client.close()

    async def run() -> None:
        from redis.asyncio.retry import Retry as AsyncRetry

        for client in (
            redis.asyncio.Redis(**where, retry=AsyncRetry(ExponentialBackoff(), 5), protocol=3),
            redis.asyncio.Redis(
                connection_pool=redis.asyncio.BlockingConnectionPool(**where, max_connections=1)
            ),
        ):
            async with AsyncRedisRateLimiter(
                "9/hour", client, timeout=5, on_error="raise"
            ) as limiter:
                assert await limiter.allow("k")
            await client.aclose()
        assert server.ask("LLEN", "nl:{s:k}:9/3600000000") == 9

    asyncio.run(run())


def test_who_may_not_log_in_is_told_why() -> None:
    with RedisServer(password="sesame") as locked:
        at = f"127.0.0.1:{locked.port}"
        for url, why in (
            # From Redis 7.2 on the library is told so while it connects, and drops the code.
            (f"redis://{at}/0", "NOAUTH|Authentication required"),
            (f"redis://:guess@{at}/0", "invalid username-password pair"),
            (f"redis://me:guess@{at}/0", "invalid username-password pair"),
            (f"redis://:sesame@{at}/99", "DB index is out of range"),
        ):
            with RedisRateLimiter("5/hour", url, timeout=5, on_error="deny") as limiter:
                assert [limiter.allow("k") for _ in range(3)] == [False] * 3
                assert re.search(why, str(limiter.degraded))
                assert limiter.stats().unknown == 0
            with RedisRateLimiter("5/hour", url, timeout=5, on_error="raise") as limiter:
                with pytest.raises(StoreUnavailableError, match=why) as caught:
                    limiter.allow("k")
                assert "guess" not in str(caught.value)

            async def run(url: str = url, why: str = why) -> None:
                async with AsyncRedisRateLimiter("5/hour", url, timeout=5) as limiter:
                    assert (await limiter.check("k")).degraded
                    assert [await limiter.allow("k") for _ in range(5)] == [True] * 4 + [False]
                    assert re.search(why, str(limiter.degraded))

            asyncio.run(run())


def test_wrong_clients_and_urls() -> None:
    client, async_client = redis.Redis(), redis.asyncio.Redis()
    for kind, given, error, words in (
        (RedisRateLimiter, async_client, TypeError, "AsyncRedisRateLimiter"),
        (AsyncRedisRateLimiter, client, TypeError, "RedisRateLimiter"),
        (RedisRateLimiter, None, TypeError, "client_or_url"),
        (RedisRateLimiter, client.pipeline(), TypeError, "pipeline"),
        (RedisRateLimiter, "localhost:6379", ValueError, "redis://"),
        (RedisRateLimiter, "http://localhost", ValueError, "redis://"),
        (AsyncRedisRateLimiter, "redis://localhost/zero", ValueError, "redis://"),
    ):
        with pytest.raises(error, match=words):
            kind("1/second", given)


@on_both
def test_a_cluster(binary: str) -> None:
    with RedisCluster(binary=binary) as cluster:
        client = redis.RedisCluster(host=cluster.nodes[0].host, port=cluster.nodes[0].port)
        keys = [f"user:{number}" for number in range(60)]
        for given in (client, cluster.url):
            with RedisRateLimiter("2/hour; 100/day", given, timeout=2) as limiter:
                assert limiter.allow_many(keys) == [True] * 60
                assert all(limiter.check(key).degraded is False for key in keys[:5])
                assert limiter.stats().degraded == 0
                answers = limiter.allow_many(keys)
                assert answers == [False] * 5 + [True] * 55
                assert all(limiter.reset(key) for key in keys)
        client.close()

        async def run() -> None:
            async with AsyncRedisRateLimiter("2/hour", cluster.url, timeout=2) as limiter:
                assert (
                    await limiter.allow_many([*keys, *keys, *keys]) == [True] * 120 + [False] * 60
                )
                assert limiter.stats().degraded == 0

        asyncio.run(run())


# --- exact


def test_four_processes_on_one_key(server: RedisServer) -> None:
    quota, seconds = Quota(50, per=0.5), 2.5
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        told = pool.starmap(hammer, [(server.url, quota, "hot", seconds, 5.0)] * 4)
    assert not any(each.errors for each in told)
    assert sum(each.degraded for each in told) == 0
    record = stamps(server, b"nl:{s:hot}:hot:3600000000")
    # Each that was allowed was counted once, and the fullest window is just full.
    assert len(record) == sum(each.allowed for each in told)
    assert most_in_a_window(record, 500_000) == 50
    # And nobody was denied who would have fitted: the windows follow one another.
    assert len(record) >= 50 * ((record[-1] - record[0]) // 550_000)
    assert all(each.denied for each in told)


@on_both
def test_a_crowd_against_a_model(server: RedisServer) -> None:
    """Four processes, 5,000 times any verb: each answer is the one that a model gives."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        told = pool.starmap(crowd, [(server.url, seed, 5_000) for seed in range(4)])
    journal = server.ask("LRANGE", redis_journal.JOURNAL, 0, -1)
    assert len(journal) > 1_000
    _, mismatches = redis_journal.replay(journal)
    assert mismatches == []
    # And who asked was told what the server counted.
    assert sum(told) == sum(map(counted, journal))


def counted(entry: bytes) -> int:
    """The units that a call counted, by its answer in the journal."""
    name, _, _, args, said = json.loads(entry)
    cost = int(args[0])
    if name in ("take", "take_one"):
        return cost * (int(said[0]) == 0)
    if name == "batch":
        return cost * str(said[0]).split().count("0")
    # No quota has a stamp that would have to leave first.
    return cost * (not any(map(int, said[4::4]))) if name == "tell" else 0


def test_threads_that_wait_for_one_key(server: RedisServer) -> None:
    quota = Quota(20, per=0.3)
    with (
        RedisRateLimiter([quota, RECORD], server.url, timeout=2) as one,
        RedisRateLimiter([quota, RECORD], server.url, timeout=2) as two,
        ThreadPoolExecutor(8) as pool,
    ):
        asked = server.calls("evalsha")
        granted = list(pool.map(lambda i: (one, two)[i % 2].acquire("hot", timeout=30), range(80)))
        asked = server.calls("evalsha") - asked
        assert granted == [True] * 80
        record = stamps(server, b"nl:{s:hot}:10000000/3600000000")
    assert len(record) == 80
    assert most_in_a_window(record, 300_000) == 20
    assert record[-1] - record[0] < 10_000_000
    # Nobody polls: of each limiter one asks, once for each unit, and when it is told to come again.
    assert asked < 80 + 80


# --- faults


@on_both
def test_killed_and_restarted_under_load(own: RedisServer) -> None:
    events: list[str] = []
    telemetry.attach("test", ["degraded", "recovered"], lambda event, *_: events.append(event))
    try:
        with (
            RedisRateLimiter([HUGE], own.url, timeout=TIMEOUT_S) as limiter,
            Load(limiter).running() as load,
        ):
            eventually(lambda: limiter.stats().allowed > 50)
            own.kill()
            eventually(lambda: limiter.degraded is not None)
            time.sleep(0.5)
            own.start()
            eventually(lambda: limiter.degraded is None)
            before = limiter.stats()
            eventually(lambda: limiter.stats().allowed > before.allowed + 50)
            assert limiter.stats().degraded == before.degraded
            assert not limiter.check("k").degraded
    finally:
        telemetry.detach("test")
    assert load.slowest_s < TIMEOUT_S + SLACK_S
    assert events == ["degraded", "recovered"]


def test_stopped_for_three_seconds_under_load(own: RedisServer) -> None:
    with RedisRateLimiter([HUGE], own.url, timeout=TIMEOUT_S, name="api") as limiter:
        with Load(limiter).running() as load:
            eventually(lambda: limiter.stats().allowed > 50)
            with own.paused():
                eventually(lambda: limiter.degraded is not None)
                time.sleep(3)
                assert limiter.degraded is not None
                # Open but for one probe a second: nobody waits.
                start_s = time.monotonic()
                for _ in range(200):
                    limiter.allow("while it is stopped")
                assert time.monotonic() - start_s < TIMEOUT_S + SLACK_S
            eventually(lambda: limiter.degraded is None)
        stats = limiter.stats()
    assert load.slowest_s < TIMEOUT_S + SLACK_S
    assert stats.unknown > 0


@on_both
def test_a_lost_reply_is_counted_once(own: RedisServer) -> None:
    with RedisRateLimiter([HUGE], own.url, timeout=TIMEOUT_S, name="api") as limiter:
        assert limiter.allow("k")
        with own.paused():
            assert limiter.allow("k")  # it reaches the server, which answers too late
            assert (limiter.stats().unknown, limiter.stats().degraded) == (1, 1)
        eventually(lambda: not limiter.check("other").degraded)
        assert limiter.allow("k")
        record = stamps(own, b"nl:{s:k}:api:3600000000")
    assert len(record) == 3


@on_both
def test_the_scripts_are_forgotten_under_load(server: RedisServer) -> None:
    with RedisRateLimiter([Quota(100, per=0.2), RECORD], server.url, timeout=2) as limiter:
        with Load(limiter).running():
            for _ in range(100):
                server.ask("SCRIPT", "FLUSH")
                time.sleep(0.005)
        stats = limiter.stats()
        units = sum(len(stamps(server, name)) for name in server.ask("KEYS", "*/3600000000"))
    assert stats.failures == 0
    # What was checked costs two.
    assert stats.allowed < units <= 2 * stats.allowed


@on_both
def test_clients_are_killed_under_load(server: RedisServer) -> None:
    with RedisRateLimiter([HUGE], server.url, timeout=TIMEOUT_S) as limiter:
        with Load(limiter).running() as load:
            for _ in range(20):
                server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                time.sleep(0.02)
        assert load.slowest_s < TIMEOUT_S + SLACK_S
        eventually(lambda: not limiter.check("k").degraded)


async def asks(limiter: AsyncRedisRateLimiter, keys: Iterable[Any]) -> list[bool]:
    """Ask for all keys in one turn of the loop: one write."""
    return await asyncio.gather(*[limiter.allow(key) for key in keys])


@on_both
def test_a_connection_killed_under_64_tasks_is_one_failure(server: RedisServer) -> None:
    async def run() -> None:
        async with AsyncRedisRateLimiter(
            [HUGE], server.url, timeout=20, on_error="deny", deny_cache=False
        ) as limiter:
            for keys in (range(64), ["hot"] * 64):
                assert await limiter.allow("before")
                (own,) = server.clients()
                server.ask("CLIENT", "PAUSE", 30_000, "WRITE")
                try:
                    asking = asyncio.create_task(asks(limiter, keys))
                    while server.info("clients")["blocked_clients"] == "0":
                        await asyncio.sleep(0.005)
                    server.ask("CLIENT", "KILL", "ID", own["id"])
                    assert await asking == [False] * 64
                finally:
                    server.ask("CLIENT", "UNPAUSE")
                assert limiter.degraded is None
                assert await asks(limiter, keys) == [True] * 64
            stats = limiter.stats()
            assert (stats.failures, stats.unknown, stats.degraded) == (128, 128, 128)

    asyncio.run(run())


@on_both
def test_connections_killed_under_16_threads_are_one_failure(server: RedisServer) -> None:
    with (
        RedisRateLimiter(
            [HUGE], server.url, timeout=20, on_error="deny", deny_cache=False
        ) as limiter,
        ThreadPoolExecutor(16) as pool,
    ):
        for _ in range(2):
            server.ask("CLIENT", "PAUSE", 30_000, "WRITE")
            try:
                asking = [pool.submit(limiter.allow, number) for number in range(16)]
                eventually(lambda: int(server.info("clients")["blocked_clients"]) == 16)
                server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                assert [each.result() for each in asking] == [False] * 16
            finally:
                server.ask("CLIENT", "UNPAUSE")
            assert limiter.degraded is None
        stats = limiter.stats()
        assert (stats.failures, stats.unknown, stats.degraded) == (32, 32, 32)
        assert list(pool.map(limiter.allow, range(16))) == [True] * 16


def test_connections_that_break_one_after_the_other_are_failures(own: RedisServer) -> None:
    with RedisRateLimiter([HUGE], own.url, timeout=20) as limiter:
        for turn in range(3):
            assert limiter.degraded is None, turn
            own.ask("CLIENT", "PAUSE", 30_000, "WRITE")
            with ThreadPoolExecutor(1) as pool:
                asking = pool.submit(limiter.allow, "k")
                eventually(lambda: own.info("clients")["blocked_clients"] == "1")
                own.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                asking.result()
            own.ask("CLIENT", "UNPAUSE")
        assert limiter.degraded is not None


def test_a_silent_server_is_left_alone_after_three_writes(own: RedisServer) -> None:
    async def one_after_the_other(limiter: AsyncRedisRateLimiter) -> None:
        # The first write, and two times that no connection came about: each in its time.
        for turn in range(3):
            assert limiter.degraded is None, turn
            await asks(limiter, range(64))
        assert limiter.degraded is not None
        assert limiter.stats().failures == 3 * 64

    async def in_turns_of_the_loop(limiter: AsyncRedisRateLimiter) -> None:
        waiting = []
        for key in range(3):
            waiting.append(asyncio.create_task(asks(limiter, [key] * 8)))
            for _ in range(3):  # all is written before the next come
                await asyncio.sleep(0)
        await asyncio.gather(*waiting[:2])
        await waiting[2]
        assert limiter.degraded is not None

    async def run(work: Callable[[AsyncRedisRateLimiter], Awaitable[None]]) -> None:
        async with AsyncRedisRateLimiter([HUGE], own.url, timeout=TIMEOUT_S) as limiter:
            assert await limiter.allow("before")
            with own.paused():
                await work(limiter)

    for work in (one_after_the_other, in_turns_of_the_loop):
        asyncio.run(run(work))


@pytest.mark.parametrize("keys", [["one"], range(64), ["hot"] * 64], ids=["1", "64", "merged"])
def test_a_refused_connection_is_one_failure(keys: Sequence[Any]) -> None:
    with RedisServer() as gone:
        url = gone.url

    async def run() -> None:
        async with AsyncRedisRateLimiter([HUGE], url, timeout=20) as limiter:
            for turn in range(3):
                assert limiter.degraded is None, turn
                await asks(limiter, keys)
            assert limiter.degraded is not None

    asyncio.run(run())


def test_threads_that_wait_for_a_connection_are_one_failure() -> None:
    with (
        TcpProxy(0) as nowhere,
        RedisRateLimiter(
            [HUGE], f"redis://127.0.0.1:{nowhere.port}", timeout=0.5, on_error="deny"
        ) as limiter,
        ThreadPoolExecutor(16) as pool,
    ):
        gate = threading.Barrier(16)

        def ask(number: int) -> bool:
            gate.wait()
            return limiter.allow(number)

        assert list(pool.map(ask, range(16))) == [False] * 16
        assert limiter.degraded is None
        assert limiter.stats().failures == 16
        eventually(lambda: limiter.allow("k") or limiter.degraded is not None)


@on_both
def test_out_of_memory(own: RedisServer) -> None:
    with RedisRateLimiter("5/minute", own.url, on_error="local") as limiter:
        assert limiter.allow("k")
        assert limiter.allow("full", 5)
        own.config_set("maxmemory", 1)
        answers = [limiter.check("k") for _ in range(6)]
        assert [each.allowed for each in answers] == [True] * 5 + [False]
        assert all(each.degraded for each in answers)
        own.config_set("maxmemory", 0)
        eventually(lambda: not limiter.check("other").degraded)
        # Nothing of it was counted.
        assert limiter.peek("k").remaining == 4


def test_read_only(own: RedisServer) -> None:
    with RedisRateLimiter("5/minute", own.url, on_error="deny") as limiter:
        assert limiter.allow("k")
        own.ask("REPLICAOF", "127.0.0.1", "1")
        assert [limiter.allow("k") for _ in range(6)] == [False] * 6
        assert limiter.degraded
        own.ask("REPLICAOF", "NO", "ONE")
        eventually(lambda: limiter.allow("k"))


def test_raise_and_nobody_there() -> None:
    with RedisServer() as server:
        url = server.url
    start_s = time.monotonic()
    with RedisRateLimiter("5/minute", url, on_error="raise", timeout=TIMEOUT_S) as limiter:
        for _ in range(5):
            with pytest.raises(StoreUnavailableError, match="refused"):
                limiter.allow("k")
    with RedisRateLimiter("5/minute", url, timeout=TIMEOUT_S) as limiter:
        assert limiter.acquire("k", 5, timeout=1)
        assert not limiter.acquire("k", timeout=0)
    assert time.monotonic() - start_s < 10


def test_faults_awaited(own: RedisServer) -> None:
    async def run() -> None:
        async with AsyncRedisRateLimiter([HUGE], own.url, timeout=TIMEOUT_S) as limiter:
            slowest_s = 0.0

            async def one(number: int) -> None:
                nonlocal slowest_s
                loop = asyncio.get_running_loop()
                while not over.is_set():
                    start_s = loop.time()
                    await limiter.allow(number)
                    slowest_s = max(slowest_s, loop.time() - start_s)
                    await asyncio.sleep(0.002)

            async def until(holds: Any) -> None:
                for _ in range(1_500):
                    if holds():
                        return
                    await asyncio.sleep(0.02)
                raise AssertionError("it never came about")

            over = asyncio.Event()
            tasks = [asyncio.create_task(one(number)) for number in range(16)]
            await until(lambda: limiter.stats().allowed > 100)
            own.pause()
            await until(lambda: limiter.degraded is not None)
            await asyncio.sleep(1.5)
            own.resume()
            await until(lambda: limiter.degraded is None)
            await asyncio.to_thread(own.restart)
            await until(lambda: limiter.degraded is None)
            before = limiter.stats()
            await until(lambda: limiter.stats().allowed > before.allowed + 100)
            over.set()
            await asyncio.gather(*tasks)
            assert slowest_s < TIMEOUT_S + SLACK_S

    asyncio.run(run())


def test_forked_after_connecting(server: RedisServer) -> None:
    # In a process of its own: pytest has threads, and a fork beside them is not what is tested.
    code = """
        import os, sys
        from nanolimit.redis import RedisRateLimiter

        limiter = RedisRateLimiter("100000/hour", sys.argv[1], name="api", timeout=5)
        assert limiter.allow("k")
        assert not limiter.allow_many(["full"] * 2, 100000)[1]
        children = []
        for _ in range(3):
            child = os.fork()
            if not child:
                ok = all(limiter.allow("k") for _ in range(200))
                ok = ok and not limiter.check("full").allowed and limiter.stats().degraded == 0
                os._exit(0 if ok else 1)
            children.append(child)
        assert all(limiter.allow("k") for _ in range(200))
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        assert limiter.stats().degraded == 0
        print(100000 - limiter.peek("k").remaining)
    """
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), server.url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "801"
