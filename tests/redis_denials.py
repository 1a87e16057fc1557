"""Workers of one machine that share what a Redis has denied them, each a process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import time
from collections import defaultdict
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import redis_journal
from nanolimit import Quota
from nanolimit.redis import AsyncRedisRateLimiter, RedisRateLimiter

START_S = 60.0
VERBS = ("allow", "check", "peek", "allow_many", "reset", "acquire")

#: A process of it begins at once: what it needs is imported already where it is forked from.
CONTEXT: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
CONTEXT.set_forkserver_preload(["redis_denials", "redis", "redis.asyncio"])


class Worker:
    """A process with one limiter, which does what it is told. Ends with the ``with`` block.

    Args:
        kind: "sync" or "async".
        quota: The limiter's.
        url: Where its store is.
        options: Its other arguments.
    """

    def __init__(self, kind: str, quota: Any, url: str, **options: Any) -> None:
        self._line, other = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_work, args=(other, kind, quota, url, options))
        self.process.start()
        other.close()

    def tell(self, verb: str, *args: Any, **named: Any) -> None:
        """Have it call a verb, and don't wait for the answer."""
        self._line.send((verb, args, named))

    def answer(self) -> Any:
        """What came of the last one.

        Raises:
            RuntimeError: It raised.
        """
        assert self._line.poll(START_S), "the worker does not answer"
        failed, value = self._line.recv()
        if failed:
            raise RuntimeError(value)
        return value

    def do(self, verb: str, *args: Any, **named: Any) -> Any:
        """Have it call a verb, and give the answer."""
        self.tell(verb, *args, **named)
        return self.answer()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.join(START_S)
        assert self.process.exitcode == -signal.SIGKILL

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self._line.close()
        self.process.join(START_S)
        if self.process.is_alive():
            self.process.kill()


def _work(line: Connection, kind: str, quota: Any, url: str, options: dict[str, Any]) -> None:
    loop = asyncio.new_event_loop()
    make = RedisRateLimiter if kind == "sync" else AsyncRedisRateLimiter
    limiter = make(quota, url, **options)

    def hammered(seed: int, keys: int) -> None:
        """Ask for ever: who is asked to do this is killed."""
        rng = random.Random(seed)
        line.send((False, None))
        while True:
            key = rng.randrange(keys)
            if rng.random() < 0.2:
                done: Any = limiter.reset(key)
            elif rng.random() < 0.5:
                done = limiter.check(key)
            else:
                done = limiter.allow(key)
            if kind == "async":
                loop.run_until_complete(done)

    while True:
        try:
            verb, args, named = line.recv()
        except EOFError:
            break
        try:
            if verb == "hammer":
                hammered(*args)
            if verb == "left_s":
                assert limiter._denials is not None
                value: Any = limiter._denials.left_s(limiter._place(args[0]), 1, time.monotonic())
                value = value, time.monotonic_ns()
            else:
                value = getattr(limiter, verb)(*args, **named)
            if kind == "async" and verb in VERBS:
                value = loop.run_until_complete(value)
            line.send((False, value))
        except Exception as error:
            line.send((True, f"{type(error).__name__}: {error}"))
    if kind == "async":
        loop.run_until_complete(limiter.close())  # type: ignore[arg-type]
    else:
        limiter.close()


# A crowd, and what its denials are measured by

QUOTAS = [Quota(5, per=0.05), Quota(40, per=1.0)]


class Local(NamedTuple):
    """A denial without the store, between two readings of the server's clock, in microseconds."""

    key: int
    cost: int
    before_us: int
    after_us: int


class Told(NamedTuple):
    """What a process of the crowd was told."""

    units: int
    locals: list[Local]
    resets: list[tuple[int, int, int]]  # key, from, to


def crowd(url: str, shared: str, seed: int, number: int) -> Told:
    """Ask at random, by all verbs, with a journal kept in the server: a process of its own."""
    rng = random.Random(seed)
    units, found, resets = 0, [], []
    with RedisRateLimiter(
        QUOTAS, url, name="crowd", timeout=20, on_error="raise", shared=shared
    ) as limiter:
        run = limiter._wire.run

        def written_down(what: Any, keys: Any, args: Any = ()) -> Any:
            return run(redis_journal.journaled(what), keys, args)

        limiter._wire.run = written_down  # type: ignore[assignment, method-assign]
        for _ in range(number):
            key, cost = rng.randrange(3), rng.choice((1, 1, 1, 2, 5))
            verb = rng.random()
            said = limiter.stats().denied_locally
            before_us = time.time_ns() // 1_000
            if verb < 0.5:
                units += cost * limiter.allow(key, cost)
            elif verb < 0.75:
                units += cost * limiter.check(key, cost).allowed
            elif verb < 0.85:
                limiter.allow_many([key, (key + 1) % 3], cost)
            elif verb < 0.97:
                units += cost * limiter.acquire(key, cost, timeout=0)
            else:
                limiter.reset(key)
                resets.append((key, before_us, time.time_ns() // 1_000))
            after_us = time.time_ns() // 1_000
            if verb < 0.75 and limiter.stats().denied_locally > said:
                found.append(Local(key, cost, before_us, after_us))
        units = limiter.stats().allowed
    return Told(units, found, resets)


def denied_too_long(journal: list[list[Any]], told: list[Told], slack_us: int) -> list[Local]:
    """Denials that were repeated when the request would have fitted, by the server's record.

    Args:
        journal: The records: name, time, keys, args, said.
        told: What the crowd was told.
        slack_us: How much later than the server's instant one still may be denied.
    """
    logs: dict[str, list[tuple[int, int]]] = defaultdict(list)  # (time, units); units 0: a reset
    for name, time_of, names, args, said in journal:
        now_us = int(time_of[0]) * 1_000_000 + int(time_of[1])
        cost = int(args[0])
        granted: list[bool] = []
        if name in ("take", "take_one"):
            granted = [int(said[0]) == 0]
        elif name == "batch":
            granted = [wait == "0" for wait in str(said[0]).split()]
        elif name == "tell":
            granted = [not any(map(int, said[4::4]))]
        elif name == "reset":
            logs[names[0]].append((now_us, 0))
        for nth, fits in enumerate(granted):
            if fits:
                logs[names[nth * len(QUOTAS)]].append((now_us, cost))
    resets = [each for one in told for each in one.resets]
    wrong = []
    for each in (local for one in told for local in one.locals):
        if any(
            key == each.key and begun <= each.after_us and each.before_us <= done
            for key, begun, done in resets
        ):
            continue  # while a reset is on its way, it may be this or that
        name = f"nl:{{i:{each.key}}}:crowd:{QUOTAS[0].window_ns // 1_000}"
        assert name in logs, (name, list(logs))
        stamps: list[tuple[int, int]] = []
        for now_us, units in logs[name]:
            if now_us > each.before_us:
                break
            if units:
                stamps.append((now_us, units))
            else:
                stamps.clear()
        if not any(
            sum(units for now_us, units in stamps
                if each.before_us - slack_us - now_us < quota.window_ns // 1_000)
            + each.cost > quota.limit
            for quota in QUOTAS
        ):  # fmt: skip
            wrong.append(each)
    return wrong
