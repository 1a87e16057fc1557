"""The user that docs/distributed.md describes may do all that a limiter does, and little else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

redis = pytest.importorskip("redis")

from redis.cluster import ClusterNode  # noqa: E402

from nanolimit import Quota  # noqa: E402
from nanolimit.redis import AsyncRedisRateLimiter, RedisRateLimiter, lua, script  # noqa: E402
from nanolimit.redis.name import Names  # noqa: E402
from nanolimit.redis.wire import Wire  # noqa: E402
from redis_server import RedisCluster, RedisError, RedisServer  # noqa: E402
from tools import at_hand  # noqa: E402

PATIENT_S = 30.0
DOCUMENT = Path(__file__).parents[2] / "docs" / "distributed.md"


@pytest.fixture(scope="module")
def document() -> str:
    return at_hand(DOCUMENT).read_text("utf-8")


@pytest.fixture(scope="module")
def rights(document: str) -> list[str]:
    """What stands after ACL SETUSER and the user's name."""
    found = re.search(r"ACL SETUSER limits (.*?)```", document, re.DOTALL)
    assert found is not None
    return found[1].split()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


def url_of(server: RedisServer, database: int = 0) -> str:
    return f"redis://limits:secret@{server.host}:{server.port}/{database}"


def use(server_or_node: RedisServer, database: int = 0) -> None:
    """Every verb, of threads and of tasks."""
    url = url_of(server_or_node, database)
    for name in ("api", None):
        with RedisRateLimiter(
            "30/minute; 400/hour", url, name=name, on_error="raise", timeout=PATIENT_S
        ) as limiter:
            for key in ("user", 42, b"user", ("user", 42)):
                assert limiter.allow(key)
                assert limiter.check(key, cost=9)
                assert limiter.peek(key)
                assert key in limiter
            limiter.allow_many(["many"] * 40)
            assert limiter.acquire("other", timeout=0)
            assert limiter.reset("user")

    async def tasks() -> None:
        async with AsyncRedisRateLimiter(
            "30/minute", url, on_error="raise", timeout=PATIENT_S
        ) as limiter:
            granted = await asyncio.gather(*(limiter.allow("hot") for _ in range(60)))
            assert sum(granted) == 30
            assert await limiter.check("cold")

    asyncio.run(tasks())


def refused(server: RedisServer) -> list[bytes]:
    """The commands that the user was refused."""
    found = [entry[7] for entry in server.ask("ACL", "LOG")]
    # Servers from 7.2 on know it, and the client library does without if it must.
    return [each for each in found if each != b"client|setinfo"]


def test_the_commands_are_those_of_the_scripts(rights: list[str], document: str) -> None:
    sources = [each for each in vars(lua).values() if isinstance(each, str)]
    used = {found for text in sources for found in re.findall(r"call\('([A-Z]+)'", text)}
    used |= {"LPUSH", "RPUSH"} & {
        found for text in sources for found in re.findall(r"push\('([A-Z]+)'", text)
    }
    given = {word[1:].upper() for word in rights if word.startswith("+")}
    assert given == used | {"EVAL", "EVALSHA"}
    assert {"LPUSH", "RPUSH", "LREM", "LRANGE"} <= used


def test_a_limiter_needs_no_more(server: RedisServer, rights: list[str]) -> None:
    server.ask("ACL", "SETUSER", "limits", "reset", *rights)
    server.ask("ACL", "LOG", "RESET")
    use(server)
    quotas = (Quota(300, 60.0),)
    arguments, lists = script.Arguments(quotas), Names("nl", "lent", quotas).of("user")
    with Wire(url_of(server), PATIENT_S) as wire:
        _, _, stamp = wire.run(script.GRANT, lists, arguments.lent(100, 60_000_000))
        # Behind what is lent: a few one by one, then many at once, and after the oldest.
        for cost in (1, 1, 20):
            assert wire.run(arguments.take, lists, arguments.of(cost)) == 0
        assert wire.run(script.RETURN, lists, arguments.returned(5, stamp)) == 5
        for _ in range(20):
            wire.run(arguments.take, lists, arguments.of(12))
    assert refused(server) == []


def test_it_may_do_nothing_else(server: RedisServer, rights: list[str]) -> None:
    server.ask("ACL", "SETUSER", "limits", "reset", *rights)
    with server.line() as line:
        line.ask("AUTH", "limits", "secret")
        line.ask("LPUSH", "nl:mine", 1)
        for words in (
            ("LPUSH", "other", 1), ("GET", "nl:mine"), ("FLUSHALL",), ("KEYS", "*"),
            ("CONFIG", "GET", "*"), ("SELECT", 1), ("ACL", "LIST"), ("PUBLISH", "nl:", "x"),
            ("EVAL", "return redis.call('LPUSH', KEYS[1], 1)", 1, "other"),
        ):  # fmt: skip
            with pytest.raises(RedisError, match="NOPERM"):
                line.ask(*words)


def test_another_database_needs_one_more(server: RedisServer, rights: list[str]) -> None:
    server.ask("ACL", "SETUSER", "limits", "reset", *rights, "+select")
    server.ask("ACL", "LOG", "RESET")
    use(server, 3)
    assert refused(server) == []


def test_a_cluster_needs_one_more(rights: list[str]) -> None:
    with RedisCluster() as cluster:
        for node in cluster.nodes:
            node.ask("ACL", "SETUSER", "limits", "reset", *rights, "+cluster|slots")
        use(cluster.nodes[0])
        assert [refused(node) for node in cluster.nodes] == [[], [], []]
        for node in cluster.nodes:
            node.ask("ACL", "SETUSER", "limits", "+command")
        first = ClusterNode(cluster.nodes[0].host, cluster.nodes[0].port)
        client = redis.RedisCluster(startup_nodes=[first], username="limits", password="secret")
        with RedisRateLimiter("5/minute", client, on_error="raise", timeout=PATIENT_S) as limiter:
            assert all(limiter.allow(user) for user in range(50))
        client.close()
