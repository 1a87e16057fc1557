"""valkey-py's clients do what redis-py's do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

valkey = pytest.importorskip("valkey")

from valkey.asyncio import Valkey as AsyncValkey  # noqa: E402
from valkey.asyncio import ValkeyCluster as AsyncValkeyCluster  # noqa: E402

from lua import COUNT  # noqa: E402
from nanolimit.redis.aiowire import AsyncWire  # noqa: E402
from nanolimit.redis.fault import Unavailable  # noqa: E402
from nanolimit.redis.wire import Wire  # noqa: E402
from redis_server import VALKEY, RedisCluster, RedisServer, on_both  # noqa: E402

PATIENT_S = 20.0


@pytest.fixture(scope="module")
def server(binary: str) -> Iterator[RedisServer]:
    with RedisServer(password="sesame", binary=binary) as server:
        yield server


@on_both
@pytest.mark.parametrize("decode", [False, True])
def test_threads(server: RedisServer, decode: bool) -> None:
    server.ask("FLUSHALL")
    client = valkey.Valkey(port=server.port, password="sesame", db=3, decode_responses=decode)
    for given in (client, f"valkey://:sesame@127.0.0.1:{server.port}/3"):
        with Wire(given, PATIENT_S) as wire:
            before = int(server.ask("DBSIZE") or 0)
            assert isinstance(wire.run(COUNT, [b"k"], [1]), int)
            assert all(isinstance(each, int) for each in wire.run_many([(COUNT, [b"k"], [1])] * 3))
            assert server.ask("DBSIZE") == before
            server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            wire.run(COUNT, [b"k"], [1])
    with Wire(client, PATIENT_S) as wire:
        assert wire.run(COUNT, [b"k"], [0]) == 10
    with pytest.raises(TypeError, match=r"valkey's Valkey, which would block the event loop"):
        AsyncWire(client)
    client.close()


@on_both
@pytest.mark.parametrize("decode", [False, True])
def test_tasks(server: RedisServer, decode: bool) -> None:
    async def main() -> None:
        server.ask("FLUSHALL")
        client = AsyncValkey(port=server.port, password="sesame", db=3, decode_responses=decode)
        for given in (client, f"valkey://:sesame@127.0.0.1:{server.port}/3"):
            async with AsyncWire(given, PATIENT_S) as wire:
                await asyncio.gather(*(wire.run(COUNT, [b"k"], [1]) for _ in range(10)))
        async with AsyncWire(client, PATIENT_S) as wire:
            assert await wire.run(COUNT, [b"k"], [0]) == 20
        with pytest.raises(TypeError, match=r"valkey.asyncio's Valkey, which only async code"):
            Wire(client)
        await client.aclose()

    asyncio.run(main())


def test_clusters() -> None:
    with RedisCluster(binary=VALKEY) as cluster:
        calls = [(COUNT, [b"%d" % number], [1]) for number in range(20)]
        client = valkey.ValkeyCluster.from_url(cluster.url)
        with Wire(client, PATIENT_S) as wire:
            assert wire.clustered
            assert wire.run_many(calls) == [1] * 20

        async def main() -> None:
            async with AsyncWire(AsyncValkeyCluster.from_url(cluster.url), PATIENT_S) as wire:
                assert wire.clustered
                assert await wire.run_many(calls) == [2] * 20

        asyncio.run(main())


@on_both
def test_a_stopped_server(server: RedisServer) -> None:
    server.ask("FLUSHALL")
    with valkey.Valkey(port=server.port, password="sesame") as client, Wire(client, 0.2) as wire:
        wire.run(COUNT, [b"k"], [1])
        with server.paused(), pytest.raises(Unavailable) as caught:
            wire.run(COUNT, [b"k"], [1])
        assert caught.value.outcome_unknown
        assert server.ask("GET", "k") in (b"1", b"2")
