"""Coalescing on a real redis-server: how much it is asked, and that it stays exact."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("redis")

import redis_journal
from nanolimit import Quota
from nanolimit.redis import AsyncRedisRateLimiter
from redis_load import RECORD, most_in_a_window, stamps
from redis_server import RedisCluster, RedisServer
from redis_tasks import crowd, hammer
from tcp_proxy import TcpProxy

#: What a busy machine may add: a task that is ready to run waits for a core.
SLACK_S = 0.8


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """A server that runs well; each test has it to itself."""
    shared_server.ask("FLUSHALL")
    return shared_server


class Writes(TcpProxy):
    """Counts what it receives at once. On loopback that is what was written at once."""

    received = 0

    def _requests(self, client: Any, server: Any) -> None:
        proxy = self

        class Counted:
            """The client's socket."""

            def recv(self, size: int) -> bytes:
                data = client.recv(size)
                proxy.received += bool(data)
                return data  # type: ignore[no-any-return]

            def __getattr__(self, name: str) -> Any:
                return getattr(client, name)

        super()._requests(Counted(), server)  # type: ignore[arg-type]


# --- how much is asked


@pytest.mark.parametrize(
    ("coalesce", "keys", "commands"), [(True, 1, 2), (True, 64, 2), (True, 8, 10), (False, 1, 64)]
)
def test_64_tasks_are_one_write(
    server: RedisServer, coalesce: bool, keys: int, commands: int
) -> None:
    async def run(port: int) -> None:
        url = f"redis://127.0.0.1:{port}/0"
        async with AsyncRedisRateLimiter(
            "48/hour", url, timeout=10, coalesce=coalesce, deny_cache=False
        ) as limiter:
            for each in ("aaa", "abc"):  # the scripts
                await asyncio.gather(*map(limiter.allow, each))
            before = proxy.received, server.calls("evalsha"), server.calls("eval")
            answers = await asyncio.gather(*[limiter.allow(i % keys) for i in range(64)])
            assert sum(answers) == min(64, 48 * keys)
            assert answers == [i // keys < 48 for i in range(64)]
            after = proxy.received, server.calls("evalsha"), server.calls("eval")
            assert [a - b for a, b in zip(after, before, strict=True)] == [1, commands, 0]

    with Writes(server.port) as proxy:
        asyncio.run(run(proxy.port))


@pytest.mark.parametrize("keys", [1, 64])
def test_64_tasks_that_ask_again_and_again_are_one_write_each_time(
    server: RedisServer, keys: int
) -> None:
    async def run(port: int) -> None:
        url = f"redis://127.0.0.1:{port}/0"
        async with AsyncRedisRateLimiter("1000/hour", url, timeout=10) as limiter:
            for each in ("aaa", "abc"):  # the scripts
                await asyncio.gather(*map(limiter.allow, each))
            before = proxy.received

            async def ask(number: int) -> None:
                for _ in range(5):
                    assert await limiter.allow(number % keys)

            await asyncio.gather(*map(ask, range(64)))
            assert proxy.received - before == 5

    with Writes(server.port) as proxy:
        asyncio.run(run(proxy.port))


def test_a_key_of_another_kind_is_the_trouble_of_who_asks_for_it(server: RedisServer) -> None:
    async def run() -> None:
        async with AsyncRedisRateLimiter(
            "2/hour", server.url, timeout=10, on_error="deny", deny_cache=False
        ) as limiter:
            for key in "bf":
                server.ask("SET", f"nl:{{s:{key}}}:2/3600000000", "no list")
            for turn in range(3):
                answers = await asyncio.gather(*map(limiter.allow, "abcdef"))
                assert answers == [turn < 2 and key not in "bf" for key in "abcdef"]
            stats = limiter.stats()
            assert (stats.failures, stats.degraded, stats.unknown) == (6, 6, 0)
            assert limiter.degraded is None

    asyncio.run(run())


def test_a_url_of_a_cluster_counts_each_request_once() -> None:
    async def run(cluster: RedisCluster) -> None:
        async with AsyncRedisRateLimiter(
            "9/hour", cluster.url, timeout=10, on_error="raise", deny_cache=False
        ) as limiter:
            for _ in range(3):
                assert all(await asyncio.gather(*[limiter.allow(i) for i in range(40)]))
            for i in range(40):
                assert (await limiter.peek(i)).remaining == 6

    with RedisCluster() as cluster:
        asyncio.run(run(cluster))


def test_a_cold_start_and_an_unknown_script(server: RedisServer) -> None:
    async def run() -> None:
        for _ in range(2):
            server.ask("SCRIPT", "FLUSH")
            async with AsyncRedisRateLimiter("10/hour", server.url, timeout=10) as limiter:
                for _ in range(2):
                    await limiter.reset("k")
                    answers = await asyncio.gather(*[limiter.allow("k") for _ in range(32)])
                    # Who is among the ten is open here: a script that was unknown is sent again.
                    assert sum(answers) == 10
                    assert server.ask("LLEN", b"nl:{s:k}:10/3600000000") == 10
                    server.ask("SCRIPT", "FLUSH")

    asyncio.run(run())


def test_one_write_to_each_node_of_a_cluster() -> None:
    async def run(cluster: RedisCluster) -> None:
        async with AsyncRedisRateLimiter("5/hour", client, timeout=10) as limiter:
            await asyncio.gather(*[limiter.allow(("before", i % 64)) for i in range(256)])
            before = [node.calls("evalsha") for node in cluster.nodes]
            reads = [reads_of(node) for node in cluster.nodes]
            own = [reads_of(node) - r for node, r in zip(cluster.nodes, reads, strict=True)]
            answers = await asyncio.gather(*[limiter.allow(i % 16) for i in range(128)])
            assert answers == [i // 16 < 5 for i in range(128)]
            # What a server reads at once was written at once.
            assert [
                reads_of(node) - r - 2 * each
                for node, r, each in zip(cluster.nodes, reads, own, strict=True)
            ] == [1, 1, 1]
            calls = [
                node.calls("evalsha") - b for node, b in zip(cluster.nodes, before, strict=True)
            ]
            assert sum(calls) == 32
            assert all(calls)

    import redis.asyncio

    with RedisCluster() as cluster:
        client = redis.asyncio.RedisCluster.from_url(cluster.url)
        asyncio.run(run(cluster))


def reads_of(node: RedisServer) -> int:
    """How often it has read from a connection; to look at it is to write to it."""
    return int(node.info("stats")["total_reads_processed"])


# --- exact


def test_eight_processes_merge_on_one_key(server: RedisServer) -> None:
    quota, seconds = Quota(50, per=0.5), 3.0
    context = multiprocessing.get_context("spawn")
    with context.Pool(8) as pool:
        told = pool.starmap(hammer, [(server.url, quota, seconds, 16)] * 8)
    assert [each.wrong for each in told] == [[]] * 8
    assert sum(each.degraded for each in told) == 0
    asked = sum(each.allowed + each.denied for each in told)
    # How many come together in a turn is up to chance; many did.
    assert asked > 1.3 * sum(each.sent for each in told)
    record = stamps(server, b"nl:{s:hot}:hot:3600000000")
    # Each that was allowed was counted once, and the fullest window is just full.
    assert len(record) == sum(each.allowed for each in told)
    assert most_in_a_window(record, 500_000) == 50
    # And nobody was denied who would have fitted: the windows follow one another.
    assert len(record) >= 50 * ((record[-1] - record[0]) // 550_000)


def test_a_crowd_of_tasks_against_a_model(server: RedisServer) -> None:
    """Four processes, all verbs, up to 24 at once: each answer is the one that a model gives."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        told = pool.starmap(crowd, [(server.url, seed, 150) for seed in range(4)])
    journal = server.ask("LRANGE", redis_journal.JOURNAL, 0, -1)
    model, mismatches = redis_journal.replay(journal)
    assert mismatches == []
    assert model.seen["take_some allowed"] > 20
    assert model.seen["take_some denied"] > 20
    # And who asked was told what the server counted.
    assert sum(told) == sum(map(counted, journal))


def counted(entry: bytes) -> int:
    """The units that a call counted, by its answer in the journal."""
    name, _, _, args, said = json.loads(entry)
    cost = int(args[0])
    if name == "take_some":
        return int(said[0])
    if name in ("take", "take_one"):
        return cost * (int(said[0]) == 0)
    if name == "batch":
        return cost * str(said[0]).split().count("0")
    return cost * (not any(map(int, said[4::4]))) if name == "tell" else 0


def test_a_storm_of_cancellations(server: RedisServer) -> None:
    quota = Quota(40, per=0.1)
    rng = random.Random(7)
    ends = {"allowed": 0, "denied": 0, "cancelled": 0, "else": 0}

    async def run() -> None:
        async with AsyncRedisRateLimiter(
            [quota, RECORD], server.url, timeout=10, deny_cache=False, on_error="raise"
        ) as limiter:
            for _ in range(150):
                tasks = [asyncio.create_task(limiter.allow("hot")) for _ in range(48)]
                for _ in range(rng.randrange(8)):
                    await asyncio.sleep(0)
                for task in rng.sample(tasks, rng.choice((5, 30, 48))):
                    task.cancel()
                for end in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(end, asyncio.CancelledError):
                        ends["cancelled"] += 1
                    elif isinstance(end, bool):
                        ends["allowed" if end else "denied"] += 1
                    else:
                        ends["else"] += 1
            await asyncio.sleep(0.2)
            assert await asyncio.gather(*[limiter.allow("hot") for _ in range(41)]) == [
                *[True] * 40, False,
            ]  # fmt: skip
            ends["allowed"] += 40
            assert len(asyncio.all_tasks()) == 1  # none of ours is left
            assert not limiter._sender._calls  # type: ignore[union-attr]

    asyncio.run(run())
    assert ends.pop("else") == 0
    assert all(ends.values())
    record = stamps(server, b"nl:{s:hot}:10000000/3600000000")
    assert ends["allowed"] <= len(record) <= ends["allowed"] + ends["cancelled"]
    assert most_in_a_window(record, 100_000) <= 40


def test_who_left_before_it_was_sent_is_not_counted(server: RedisServer) -> None:
    async def run() -> None:
        async with AsyncRedisRateLimiter("1000/hour", server.url, timeout=10) as limiter:
            tasks = [asyncio.create_task(limiter.allow("k")) for _ in range(50)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # they have asked, but there is no connection yet
            for task in tasks[1:40]:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert ends.count(True) == 11
        assert server.ask("LLEN", b"nl:{s:k}:1000/3600000000") == 11

    asyncio.run(run())


# --- what goes wrong


def test_a_server_killed_under_load() -> None:
    timeout_s = 0.2
    slowest_s = 0.0
    errors: list[BaseException] = []

    async def run(server: RedisServer) -> None:
        nonlocal slowest_s
        stop = asyncio.Event()
        async with AsyncRedisRateLimiter(
            [Quota(30, per=0.1), RECORD], server.url, timeout=timeout_s, deny_cache=False
        ) as limiter:

            async def ask(number: int) -> None:
                nonlocal slowest_s
                while not stop.is_set():
                    start_s = time.monotonic()
                    try:
                        await limiter.allow("hot" if number % 2 else number)
                    except BaseException as error:
                        errors.append(error)
                        return
                    slowest_s = max(slowest_s, time.monotonic() - start_s)
                    await asyncio.sleep(0.002)

            tasks = [asyncio.create_task(ask(number)) for number in range(32)]
            await asyncio.sleep(0.3)
            assert limiter.stats().degraded == 0
            await asyncio.to_thread(server.kill)
            while limiter.degraded is None:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(server.start)
            while limiter.degraded is not None:
                await asyncio.sleep(0.01)
            degraded, allowed = limiter.stats().degraded, limiter.stats().allowed
            while limiter.stats().allowed < allowed + 100:
                await asyncio.sleep(0.01)
            assert limiter.stats().degraded == degraded
            stop.set()
            await asyncio.wait_for(asyncio.gather(*tasks), 30)
            assert limiter.stats().failures >= 3

    with RedisServer() as server:
        asyncio.run(asyncio.wait_for(run(server), 60))
        record = stamps(server, b"nl:{s:hot}:10000000/3600000000")
    assert not errors
    assert slowest_s < timeout_s + SLACK_S
    assert most_in_a_window(record, 100_000) <= 30
    assert record


def test_replies_that_do_not_come(server: RedisServer) -> None:
    async def run() -> None:
        async with AsyncRedisRateLimiter(
            "20/hour", f"redis://127.0.0.1:{proxy.port}/0", timeout=0.3
        ) as limiter:
            await asyncio.gather(*[limiter.allow("before") for _ in range(3)])
            proxy.hold()
            start_s = time.monotonic()
            answers = await asyncio.gather(*[limiter.allow("k") for _ in range(32)])
            assert time.monotonic() - start_s < 0.3 + SLACK_S
            # Each is decided without the store; what the store has counted stays counted, once.
            assert sum(answers) == 20
            stats = limiter.stats()
            assert (stats.degraded, stats.unknown) == (32, 32)
            proxy.release()
        assert server.ask("LLEN", b"nl:{s:k}:20/3600000000") == 20

    with TcpProxy(server.port) as proxy:
        asyncio.run(run())
