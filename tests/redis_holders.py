"""Limiters that hold leases, in processes of their own, and a record of each unit that they used.

Together with the journal that the server kept it tells whether there was one unit too many. A unit
was used when the limiter decided so: at the time that it had read, on the clock of this machine,
which is the server's as well.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import redis_journal
from nanolimit import Quota
from nanolimit.redis import AsyncRedisRateLimiter, Lease, RedisRateLimiter
from nanolimit.redis import lease as lease_module
from nanolimit.redis.lease import Loan, Loans, Order, clock_s
from nanolimit.redis.script import Grant

KEY = "hot"
LEASE = Lease(max_share=0.25, ttl=1.0)


class Use(NamedTuple):
    """One unit of a lease that was used."""

    at_us: int | None
    """When, by the server's clock. None: when it was lent, to him who had asked for it."""

    stamp: int
    """Of which lease: that which ends then."""


class Held(NamedTuple):
    """What one process was told, and used."""

    allowed: int
    denied: int
    leased: int
    failures: int
    uses: list[Use]
    wrong: list[str]


class Record:
    """Writes down each unit of a lease that is used in this process, once `install` was called."""

    def __init__(self) -> None:
        self.uses: list[Use] = []
        self._now = threading.local()
        self._ahead_us = min(_ahead() for _ in range(50))[1]

    def install(self) -> Record:
        """Replace what hands out units by the same that writes it down."""
        record, now = self, self._now
        begin, call_in, lend, take = Loan.__init__, Loan.call_in, Loans.lend, Loans.take

        class Tokens(list[None]):
            stamp: int

            def pop(self, *args: Any) -> None:
                super().pop(*args)
                if now.us is not None:
                    record.uses.append(Use(now.us, self.stamp))

            def extend(self, back: Iterable[None]) -> None:
                given = list(back)
                if now.us is not None:
                    for _ in given:
                        record.uses.remove(Use(now.us, self.stamp))
                super().extend(given)

        def recorded_begin(loan: Loan, *args: Any) -> None:
            begin(loan, *args)
            tokens = Tokens(loan.tokens)
            tokens.stamp = loan.stamp
            loan.tokens = tokens

        def recorded_call_in(loan: Loan) -> int:
            now.us = None
            return call_in(loan)

        def recorded_take(loans: Loans, place: bytes, units: int, now_s: float) -> bool:
            now.us = int(now_s * 1e6) + record._ahead_us
            return take(loans, place, units, now_s)

        def recorded_lend(loans: Loans, order: Order, grant: Grant, taken: int) -> bool:
            record.uses.extend([Use(None, grant.stamp)] * taken)
            return lend(loans, order, grant, taken)

        lease_module.Loan.__init__ = recorded_begin  # type: ignore[method-assign]
        lease_module.Loan.call_in = recorded_call_in  # type: ignore[method-assign]
        lease_module.Loans.lend = recorded_lend  # type: ignore[method-assign]
        lease_module.Loans.take = recorded_take  # type: ignore[method-assign]
        return self


def _ahead() -> tuple[int, int]:
    """How far the wall clock is ahead of that of the leases, in microseconds; the best is least."""
    before_s = clock_s()
    wall_us = time.time_ns() // 1_000
    after_s = clock_s()
    return int((after_s - before_s) * 1e9), wall_us - int(before_s * 1e6)


def journal(wire: Any) -> None:
    """Have a wire's scripts write down in the server what they did."""
    run, run_many = wire.run, wire.run_many
    wire.run = lambda what, *more: run(redis_journal.journaled(what), *more)
    wire.run_many = lambda calls, *tells: run_many(
        [(redis_journal.journaled(what), keys, args) for what, keys, args in calls], *tells
    )


# Processes


def pause_s(over_s: float) -> float:
    """Seconds between two requests at most: by turns more are asked for than fit, and less."""
    return (0.004, 0.1, 0.3)[int(over_s - time.monotonic()) % 3]


def hold(url: str, quotas: list[Quota], seconds: float, seed: int, tasks: int = 8) -> Held:
    """Have tasks ask for one hot key, by all verbs, now often and now seldom; some leave."""
    record = Record().install()
    return asyncio.run(_hold(record, url, quotas, seconds, random.Random(seed), tasks))


async def _hold(
    record: Record, url: str, quotas: list[Quota], seconds: float, rng: random.Random, tasks: int
) -> Held:
    wrong: list[str] = []
    told = Counter[bool]()
    over_s = time.monotonic() + seconds

    async def ask(limiter: AsyncRedisRateLimiter) -> None:
        while time.monotonic() < over_s:
            verb = rng.random()
            if verb < 0.75:
                told[await limiter.allow(KEY)] += 1
            elif verb < 0.8:
                told[await limiter.allow(KEY, 3)] += 3
            elif verb < 0.85:
                told[await limiter.acquire(KEY, timeout=rng.choice((0, 0.05)))] += 1
            elif verb < 0.9:
                for allowed in await limiter.allow_many([KEY, "other", KEY]):
                    told[allowed] += 1
            elif verb < 0.93:
                told[(await limiter.check(KEY)).allowed] += 1
            elif verb < 0.95:
                await limiter.peek(KEY)
            elif verb < 0.955:
                time.sleep(0.15)  # the loop is stuck until leases are over, and rings no timer
                told[await limiter.allow(KEY)] += 1
            else:
                task = asyncio.create_task(limiter.allow(KEY))
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.sleep(rng.random() * pause_s(over_s))

    async def watched(limiter: AsyncRedisRateLimiter) -> None:
        try:
            await ask(limiter)
        except Exception as error:
            wrong.append(repr(error))

    async with AsyncRedisRateLimiter(
        quotas, url, name="hot", timeout=10, on_error="raise", lease=LEASE
    ) as limiter:
        journal(limiter._wire)
        await asyncio.gather(*[watched(limiter) for _ in range(tasks)])
        stats = limiter.stats()
    return Held(told[True], told[False], stats.leased, stats.failures, record.uses, wrong)


def hold_in_threads(
    url: str, quotas: list[Quota], seconds: float, seed: int, threads: int = 4
) -> Held:
    """The same with threads."""
    record = Record().install()
    wrong: list[str] = []
    told = Counter[bool]()
    with RedisRateLimiter(
        quotas, url, name="hot", timeout=10, on_error="raise", lease=LEASE
    ) as limiter:
        journal(limiter._wire)
        over_s = time.monotonic() + seconds

        def ask(rng: random.Random) -> None:
            mine = Counter[bool]()
            while time.monotonic() < over_s:
                verb = rng.random()
                if verb < 0.8:
                    mine[limiter.allow(KEY)] += 1
                elif verb < 0.85:
                    mine[limiter.allow(KEY, 3)] += 3
                elif verb < 0.9:
                    mine[limiter.acquire(KEY, timeout=rng.choice((0, 0.05)))] += 1
                elif verb < 0.95:
                    for allowed in limiter.allow_many([KEY, "other", KEY]):
                        mine[allowed] += 1
                else:
                    mine[limiter.check(KEY).allowed] += 1
                time.sleep(rng.random() * pause_s(over_s))
            told.update(mine)

        def watched(nth: int) -> None:
            try:
                ask(random.Random(seed * 100 + nth))
            except Exception as error:
                wrong.append(repr(error))

        running = [threading.Thread(target=watched, args=(nth,)) for nth in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        stats = limiter.stats()
    return Held(told[True], told[False], stats.leased, stats.failures, record.uses, wrong)


# The proof


class Proof:
    """What the server's record and those of all who held leases say together.

    What was lent and neither given back nor used, by the records, counts as used when it was lent.

    Args:
        entries: The server's journal.
        uses: Of all processes.
    """

    faults: list[str]
    """What was wrong; nothing, it is hoped."""

    fullest: dict[str, int]
    """Of each list, how many units were used in one window at most."""

    seen: Counter[str]
    """How often the server was asked what."""

    def __init__(self, entries: Sequence[bytes], uses: Sequence[Use]) -> None:
        model, self.faults = redis_journal.replay(entries)
        for key, (window, limit) in model.bounds.items():
            if key.startswith(f"nl:{{s:{KEY}}}"):
                most = redis_journal.most_in_a_window(instants_of(key, entries, uses), window)
                if most > limit:
                    self._find(f"too many were told yes: {most} in {window} us, limit {limit}")
        self.fullest = {}
        self.seen = model.seen
        used_at: dict[int, list[int | None]] = {}
        for use in uses:
            used_at.setdefault(use.stamp, []).append(use.at_us)
        times = {life: list(taken) for life, taken in model.uses.items()}
        given = {end for _, _, end in model.leases}
        self._find(*[f"a lease until {end} was never given" for end in used_at if end not in given])
        for (name, life, end), lease in model.leases.items():
            if not name.startswith(f"nl:{{s:{KEY}}}"):
                continue
            # A thread that had read the time before that, and has not gone on until now, used it
            # when it was there.
            at = [max(lease.start, each or 0) for each in used_at.get(end, ())]
            rest = lease.units - len(at)
            if rest < 0:
                self._find(f"handed out twice: {len(at)} of {lease.units}, lent until {end}")
            late = [each - end for each in at if each > end]
            self._find(*[f"used {us} us after the end" for us in late])
            times.setdefault((name, life), []).extend([*at, *[lease.start] * rest])
        for (name, _), instants in times.items():
            window, limit = model.bounds[name]
            most = redis_journal.most_in_a_window(instants, window)
            self.fullest[name] = max(most, self.fullest.get(name, 0))
            if most > limit:
                self._find(f"too many: {name}: {most} units in {window} us, limit {limit}")

    def _find(self, *faults: str) -> None:
        self.faults.extend(faults)


def instants_of(key: str, entries: Iterable[bytes], uses: Iterable[Use]) -> list[int]:
    """When each unit of a key was counted by the server, or used of a lease: without any model."""
    instants: list[int] = []
    granted_us: dict[int, int] = {}
    for entry in entries:
        name, time_, keys, args, said = json.loads(entry)
        if key not in keys:
            continue
        clock_us = int(time_[0]) * 1_000_000 + int(time_[1])
        units = 0
        if name in ("take", "take_one"):
            units = int(args[0]) * (int(said[0]) == 0)
        elif name == "take_some":
            units = int(said[0])
        elif name == "tell":
            units = int(args[0]) * (not any(map(int, said[4::4])))
        elif name == "batch":
            told = said[0].split()
            asked = keys[keys.index(key) % (len(keys) // len(told)) :: len(keys) // len(told)]
            units = int(args[0]) * sum(
                each == key and wait == "0" for each, wait in zip(asked, told, strict=True)
            )
        elif name == "grant" and int(said[0]):
            granted_us[int(said[2])] = clock_us
        instants += [clock_us] * units
    for use in uses:
        instants.append(max(use.at_us or 0, granted_us[use.stamp]))
    return instants
