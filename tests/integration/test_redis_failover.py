"""A master that dies: who asks is told something in time, and little of the counts is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("redis")

from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.sentinel import Sentinel

from nanolimit import Quota
from nanolimit.redis import AsyncRedisRateLimiter, RedisRateLimiter
from redis_load import RECORD, eventually, most_in_a_window, stamps
from redis_server import REDIS, VALKEY, RedisSentinel, RedisServer
from tcp_proxy import TcpProxy

TIMEOUT_S = 0.2
#: What a busy machine may add: a thread or task that is ready to run waits for a core.
SLACK_S = 0.8
#: Within so many seconds after there is a new master, it is asked: the breaker's second, and a
#: connection; and on a busy machine some more of both.
RECOVERY_S = 15.0
QUOTA = Quota(200, per=0.5)
OPTIONS: dict[str, Any] = {
    # What is allowed was allowed by the store, then; and all is asked of it.
    "name": "api", "on_error": "deny", "deny_cache": False, "timeout": TIMEOUT_S,
}  # fmt: skip
LIST = b"nl:{s:hot}:api:3600000000"


class Crowd:
    """Four threads and sixteen tasks that ask for one key through a Sentinel."""

    def __init__(self, sentinel: RedisSentinel) -> None:
        self._addresses = [(sentinel.host, sentinel.port)]
        self._stop = threading.Event()
        self.limiters: list[Any] = []
        self.allowed = self.unknown = 0
        self.slowest_s = 0.0
        self.errors: list[BaseException] = []
        self._lock = threading.Lock()

    def _note(self, start_s: float, allowed: bool) -> None:
        with self._lock:
            self.allowed += allowed
            self.slowest_s = max(self.slowest_s, time.monotonic() - start_s)

    def _ask(self, limiter: RedisRateLimiter) -> None:
        try:
            while not self._stop.is_set():
                start_s = time.monotonic()
                self._note(start_s, limiter.allow("hot"))
                time.sleep(0.002)
        except BaseException as error:
            self.errors.append(error)

    async def _ask_all(self, ready: threading.Event) -> None:
        sentinel = AsyncSentinel(self._addresses)
        client = sentinel.master_for("main")

        async def ask(limiter: AsyncRedisRateLimiter) -> None:
            while not self._stop.is_set():
                start_s = time.monotonic()
                self._note(start_s, await limiter.allow("hot"))
                await asyncio.sleep(0.01)

        async with client, AsyncRedisRateLimiter([QUOTA, RECORD], client, **OPTIONS) as limiter:
            self.limiters.append(limiter)
            ready.set()
            await asyncio.gather(*[ask(limiter) for _ in range(16)])
            self.unknown += limiter.stats().unknown
        for each in sentinel.sentinels:
            await each.aclose()

    def _run_loop(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._ask_all(ready))
        except BaseException as error:
            self.errors.append(error)
            ready.set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let them ask while the ``with`` block runs; then assert that none met an exception."""
        sentinel = Sentinel(self._addresses)
        client = sentinel.master_for("main")
        ready = threading.Event()
        with RedisRateLimiter([QUOTA, RECORD], client, **OPTIONS) as limiter:
            self.limiters.append(limiter)
            threads = [threading.Thread(target=self._ask, args=(limiter,)) for _ in range(4)]
            threads.append(threading.Thread(target=self._run_loop, args=(ready,)))
            for thread in threads:
                thread.start()
            try:
                ready.wait()
                yield
            finally:
                self._stop.set()
                for thread in threads:
                    thread.join()
            self.unknown += limiter.stats().unknown
        for each in (client, *sentinel.sentinels):
            each.close()
        assert not self.errors, self.errors[:3]

    def all_are(self, holds: Callable[[Any], bool]) -> bool:
        return not self.errors and all(holds(limiter) for limiter in self.limiters)


def killed(master: RedisServer) -> None:
    master.kill()


def stopped(master: RedisServer) -> None:
    master.pause()


@pytest.mark.parametrize(
    ("end", "binary"), [(killed, REDIS), (stopped, VALKEY)], ids=["killed", "stopped"]
)
def test_a_replica_takes_over_under_load(binary: str, end: Callable[[RedisServer], None]) -> None:
    with (
        RedisServer(binary=binary) as master,
        RedisServer(binary=binary) as replica,
        RedisSentinel(binary=binary) as sentinel,
    ):
        replica.follow(master)
        sentinel.watch(master, down_after_ms=200)
        eventually(sentinel.knows_replica)
        crowd = Crowd(sentinel)
        with crowd.running():
            eventually(lambda: crowd.all_are(lambda each: each.stats().allowed > 100))
            end(master)
            eventually(lambda: crowd.all_are(lambda each: each.degraded is not None))
            eventually(lambda: sentinel.master_port() == replica.port)
            start_s = time.monotonic()
            eventually(lambda: crowd.all_are(lambda each: each.degraded is None))
            assert time.monotonic() - start_s < RECOVERY_S
            told = [limiter.stats() for limiter in crowd.limiters]
            eventually(
                lambda: all(
                    now.stats().allowed > before.allowed + 100 and now.degraded is None
                    for now, before in zip(crowd.limiters, told, strict=True)
                )
            )
        record = stamps(replica, LIST)
    assert crowd.slowest_s < TIMEOUT_S + SLACK_S
    # What the old master had not passed on is lost: no more than the limit. (What it had allowed
    # without the answer getting through may be there.)
    assert -crowd.unknown <= crowd.allowed - len(record) <= QUOTA.limit
    assert most_in_a_window(record, 500_000) <= QUOTA.limit


def test_a_master_without_its_replicas_refuses_and_little_is_lost() -> None:
    """`min-replicas-to-write` and `min-replicas-max-lag`, as docs/distributed.md advises."""
    with (
        RedisServer() as master,
        RedisServer() as replica,
        TcpProxy(master.port) as between,
        RedisRateLimiter([RECORD], master.url, **OPTIONS) as limiter,
    ):
        replica.follow(master, between.port)
        master.config_set("min-replicas-to-write", 1)
        master.config_set("min-replicas-max-lag", 1)
        for _ in range(100):
            assert limiter.allow("hot")
        eventually(lambda: len(stamps(replica, LIST)) == 100)
        # Nothing gets through, neither there nor back.
        between.hold()
        replica.pause()
        start_s = last_s = time.monotonic()
        lost = 0
        while not limiter.degraded:
            if limiter.allow("hot"):
                lost, last_s = lost + 1, time.monotonic()
        assert limiter.degraded.startswith("NOREPLICAS")
        # In whole seconds, of which the first is allowed, and it looks once a second.
        assert last_s - start_s < 3 + SLACK_S
        master.kill()
        between.cut()
        replica.resume()
        replica.ask("REPLICAOF", "NO", "ONE")
        assert lost > 100
        assert len(stamps(replica, LIST)) == 100
