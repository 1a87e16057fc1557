"""Load on a distributed limiter: who was told what, how long it took, and what the server kept."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from nanolimit import Quota
from nanolimit.redis import RedisRateLimiter
from redis_server import RedisServer

#: A second quota that never denies: its list is the server's record of all that it counted.
RECORD = Quota(10_000_000, per=3600.0)


class Told(NamedTuple):
    """What one thread or process was told."""

    allowed: int
    denied: int
    degraded: int
    unknown: int
    slowest_s: float
    errors: list[str]


def hammer(url: str, quota: Quota, name: str, seconds: float, timeout_s: float) -> Told:
    """Ask for one hot key as fast as it goes: what a process of its own does."""
    with RedisRateLimiter([quota, RECORD], url, name=name, timeout=timeout_s) as limiter:
        slowest_s = 0.0
        errors: list[str] = []
        over_s = time.monotonic() + seconds
        while time.monotonic() < over_s:
            start_s = time.monotonic()
            try:
                limiter.allow("hot")
            except Exception as error:
                errors.append(repr(error))
            slowest_s = max(slowest_s, time.monotonic() - start_s)
        stats = limiter.stats()
    return Told(stats.allowed, stats.denied, stats.degraded, stats.unknown, slowest_s, errors)


class Load:
    """Threads that ask one limiter, each for a key of its own and a common one."""

    def __init__(self, limiter: RedisRateLimiter, threads: int = 4) -> None:
        self.limiter = limiter
        self.errors: list[BaseException] = []
        self.slowest_s = 0.0
        self.calls = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(threads)]

    def _run(self, number: int) -> None:
        slowest_s, calls = 0.0, 0
        verbs: list[Callable[[], Any]] = [
            lambda: self.limiter.allow("hot"),
            lambda: self.limiter.allow(number),
            lambda: self.limiter.check(("user", number), 2),
            lambda: self.limiter.allow_many(["hot", number, "hot"]),
        ]
        while not self._stop.is_set():
            start_s = time.monotonic()
            try:
                verbs[calls % len(verbs)]()
            except BaseException as error:
                self.errors.append(error)
            slowest_s = max(slowest_s, time.monotonic() - start_s)
            calls += 1
            # As many requests as a service has; else those that are answered locally would be all.
            time.sleep(0.001)
        self.slowest_s = max(self.slowest_s, slowest_s)
        self.calls += calls

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Run them while the ``with`` block does; then assert that none met an exception."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(60)
        assert not self.errors, self.errors[:3]
        assert self.calls > 20


def stamps(server: RedisServer, key: bytes) -> list[int]:
    """The stamps of a list of the server's, in order."""
    return sorted(abs(int(stamp)) for stamp in server.ask("LRANGE", key, 0, -1))


def most_in_a_window(found: list[int], window_us: int) -> int:
    """How many stamps the fullest window holds."""
    most = first = 0
    for last, stamp in enumerate(found):
        while stamp - found[first] >= window_us:
            first += 1
        most = max(most, last - first + 1)
    return most


def eventually(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Return when it holds."""
    over_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < over_s, "it never came about"
        time.sleep(0.02)


def crowd(url: str, seed: int, number: int) -> int:
    """Ask at random, by all verbs, with a journal kept in the server: a process of its own.

    Returns:
        How many units it was told that were counted.
    """
    import redis_journal

    rng = random.Random(seed)
    quotas = [Quota(5, per=0.05), Quota(40, per=1.0)]
    units = 0
    with RedisRateLimiter(quotas, url, timeout=20, on_error="raise") as limiter:
        run = limiter._wire.run

        def written_down(what: Any, keys: Any, args: Any = ()) -> Any:
            return run(redis_journal.journaled(what), keys, args)

        limiter._wire.run = written_down  # type: ignore[method-assign]
        for _ in range(number):
            key, cost = rng.randrange(4), rng.choice((1, 1, 1, 2, 5))
            verb = rng.random()
            if verb < 0.5:
                units += cost * limiter.allow(key, cost)
            elif verb < 0.7:
                units += cost * limiter.check(key, cost).allowed
            elif verb < 0.8:
                limiter.peek(key, cost)
            elif verb < 0.9:
                units += cost * sum(limiter.allow_many([key, 1, key, "other"], cost))
            elif verb < 0.98:
                units += cost * limiter.acquire(key, cost, timeout=0)
            else:
                limiter.reset(key)
    return units
