"""What one worker was denied by a real redis-server, all workers of the machine repeat."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("redis")

import redis_journal
from nanolimit import Quota, shared
from nanolimit.redis import RedisRateLimiter
from nanolimit.redis.denials import open_table
from redis_denials import CONTEXT, Worker, crowd, denied_too_long
from redis_load import eventually
from redis_server import RedisServer
from sharing import memory_folder, needs_shared
from tcp_proxy import TcpProxy

pytestmark = needs_shared

#: A denial outlives the instant that the store named by no more than this: a microsecond that both
#: clocks round, and what is between two readings of different clocks.
SLACK_US = 2_000


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """A server that runs well; each test has it to itself."""
    shared_server.ask("FLUSHALL")
    return shared_server


@pytest.fixture
def api() -> Iterator[str]:
    """The path of a shared table that is not there yet."""
    with memory_folder() as folder:
        yield str(folder / "api")


def asked(server: RedisServer) -> int:
    """How often the server was asked by a script."""
    return server.calls("evalsha") + server.calls("eval")


@pytest.fixture(scope="module")
def crew(shared_server: RedisServer) -> Iterator[list[Worker]]:
    """Three workers of one machine; each test has keys of its own."""
    with memory_folder() as folder:
        limits = {"quota": ["2/minute", "5/hour"], "url": shared_server.url}
        options = {"name": "api", "shared": str(folder / "api"), "timeout": 20, "on_error": "raise"}
        one, two, three = (
            Worker(kind, **limits, **options)  # type: ignore[arg-type]
            for kind in ("sync", "async", "sync")
        )
        with one, two, three:
            yield [one, two, three]


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 2), (2, 0)])
def test_one_learns_and_the_others_repeat_it_without_asking(
    server: RedisServer, crew: list[Worker], first: int, second: int
) -> None:
    one, other, key = crew[first], crew[second], ("learn", first)
    assert other.do("allow", ("else", first))
    assert one.do("allow", key, 2)
    said = other.do("stats").denied_locally
    over_s = time.monotonic() + 0.8  # from here on it may be over
    answer = one.do("check", key)  # learns, with the whole answer
    assert not answer.allowed
    before = asked(server)
    told = [
        other.do("allow", key),
        other.do("allow", key, 2),
        *other.do("allow_many", [key, key]),
        other.do("acquire", key, timeout=0),
    ]
    repeated = other.do("check", key)
    in_time = time.monotonic() < over_s
    assert told == [False] * 5
    assert (repeated.allowed, repeated.quota, repeated.limit) == (False, answer.quota, answer.limit)
    assert answer.retry_after - 1 < repeated.retry_after < answer.retry_after
    if in_time:  # a machine that stood still for so long has to ask
        assert asked(server) == before
        assert other.do("stats").denied_locally == said + 5
    before = asked(server)
    other.do("peek", key)
    assert asked(server) > before


def test_a_reset_in_one_is_seen_in_the_others_at_once(
    server: RedisServer, crew: list[Worker]
) -> None:
    for turn in range(30):
        first, second, third = (crew[(turn + i) % 3] for i in range(3))
        assert first.do("allow", "k", 2)
        assert not second.do("allow", "k", 2)
        assert not third.do("check", "k").allowed
        assert not first.do("check", "k").allowed
        assert first.do("reset", "k")
        assert second.do("allow", "k", 2)
        assert not third.do("allow", "k")
        assert third.do("reset", "k")
        assert third.do("check", "k").allowed
        assert second.do("reset", "k")


def test_a_denial_that_came_late_lasts_no_longer(server: RedisServer, api: str) -> None:
    """The reply is held for 0.4 s: it says what the store said before that."""
    with (
        TcpProxy(server.port) as proxy,
        Worker(
            "sync", "1/hour", f"redis://127.0.0.1:{proxy.port}/0", shared=api, timeout=20
        ) as slow,
        Worker("sync", "1/hour", server.url, shared=api, timeout=20) as other,
    ):
        assert slow.do("allow", "k")
        before = asked(server)
        proxy.hold()
        slow.tell("allow", "k")
        eventually(lambda: asked(server) > before)
        sent_ns = time.monotonic_ns()  # or a little earlier
        while time.monotonic_ns() < sent_ns + 400_000_000:
            time.sleep(0.01)
        proxy.release()
        assert slow.answer() is False
        left_s, now_ns = other.do("left_s", "k")
        assert left_s * 1e9 <= sent_ns + 1_000_000_000 - now_ns or left_s == 0.0
        if now_ns < sent_ns + 700_000_000:
            assert left_s > 0.1


def test_a_denial_that_is_over_when_it_comes_is_not_kept(server: RedisServer, api: str) -> None:
    quota = Quota(1, per=0.2)
    with (
        TcpProxy(server.port) as proxy,
        Worker("async", quota, f"redis://127.0.0.1:{proxy.port}/0", shared=api, timeout=20) as slow,
        Worker("sync", quota, server.url, shared=api, timeout=20) as other,
    ):
        while True:  # until it was denied, which a machine that stands still may miss
            slow.do("allow", "k")
            before = asked(server)
            proxy.hold()
            slow.tell("allow", "k")
            eventually(lambda before=before: asked(server) > before)  # type: ignore[misc]
            began_s = time.monotonic()
            while time.monotonic() < began_s + 0.25:
                time.sleep(0.01)
            proxy.release()
            if not slow.answer():
                break
        assert other.do("left_s", "k")[0] == 0.0
        assert other.do("allow", "k")


def test_a_crowd_with_shared_denials_is_exact(server: RedisServer, api: str) -> None:
    """Four processes ask at random. Each answer of the store is right, none denied too long."""
    with CONTEXT.Pool(4) as pool:
        told = pool.starmap(crowd, [(server.url, api, seed, 2_000) for seed in range(4)])
    journal = server.ask("LRANGE", redis_journal.JOURNAL, 0, -1)
    _, mismatches = redis_journal.replay(journal)
    assert mismatches == []
    records = [json.loads(entry) for entry in journal]
    assert denied_too_long(records, told, SLACK_US) == []
    repeated = sum(len(each.locals) for each in told)
    assert repeated > 300
    # The measure is one: denials that are not there would be found.
    late = [
        each._replace(locals=[a._replace(before_us=a.before_us + 60_000_000) for a in each.locals])
        for each in told
    ]
    assert len(denied_too_long(records, late, SLACK_US)) == repeated


def test_killed_workers_leave_the_others_whole(server: RedisServer, api: str) -> None:
    keys = 12
    options = {"name": "web", "shared": api, "timeout": 20, "on_error": "raise"}
    with (
        Worker("sync", Quota(1, per=0.5), server.url, **options) as one,
        Worker("async", Quota(1, per=0.5), server.url, **options) as other,
    ):
        for death in range(4):
            victims = [
                Worker(kind, Quota(1, per=0.5), server.url, **options) for kind in ("sync", "async")
            ]
            for victim in victims:
                victim.do("hammer", death, keys)
            for key in range(3 * keys):
                one.do("check", key % keys)
                other.do("allow", key % keys)
                if key % 7 == 0:
                    one.do("reset", key % keys)
            for victim in victims:
                victim.kill()
        for key in range(keys):  # each is known to both, whoever held it
            for _ in range(3):
                one.do("reset", key)
                other.do("allow", key)
                assert not other.do("allow", key)
                before = asked(server)
                answer = one.do("allow", key)
                if asked(server) == before and not answer:
                    break
            else:
                raise AssertionError(f"{key} is not shared")
    assert not any(process.alive for process in shared.inspect(f"{api}.web.denials").processes)
    open_table(f"{api}.web", "test")._verify()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_that_were_forked_share(server: RedisServer, api: str) -> None:
    with RedisRateLimiter("1/hour", server.url, name="web", shared=api, timeout=20) as limiter:
        for key in range(3):
            assert limiter.allow(key)
        assert not limiter.allow(0)
        readers, writers = zip(*(os.pipe() for _ in range(2)), strict=True)
        pids = []
        for number in range(2):
            pid = os.fork()
            if not pid:
                try:
                    limiter.allow(1 + number)
                    first = limiter.stats().denied_locally
                    os.write(writers[number], bytes([limiter.allow(0), first]))
                finally:
                    os._exit(0)
            pids.append(pid)
        for reader in readers:
            assert os.read(reader, 2)[0] == 0
        for pid in pids:
            os.waitpid(pid, 0)
        for end in (*readers, *writers):
            os.close(end)
        before = asked(server)
        began_s = time.monotonic()
        answers = [limiter.allow(1), limiter.allow(2)]
        assert answers == [False, False]
        if time.monotonic() < began_s + 0.5:
            assert asked(server) <= before + 2
    assert Path(f"{api}.web.denials").exists()
