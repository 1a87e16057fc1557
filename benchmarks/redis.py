"""What does a check cost that a Redis keeps? nanolimit.redis beside `limits` and throttled-py.

  python benchmarks/redis.py                             a redis-server of its own
  python benchmarks/redis.py --rounds 5 --only single,lease
  python benchmarks/redis.py --program valkey-server     another server
  python benchmarks/redis.py --server redis://10.0.0.5:6379/0

What is compared: nanolimit's exact log; the moving window of `limits`, which is a log as well, with
times of the client's clock; throttled-py's GCRA, which keeps one number a key. All of them on one
server, over TCP (loopback, if the server is this script's own), in interleaved rounds of one run.
Each contender lives in a process of its own; only one of them is at work at any time, and the
server besides, which needs a second processor that nobody else uses.

  single      one blocking check: allowed (users of "100/hour" in turn, one hot user), and denied,
              with nanolimit's deny cache off. Beside it, redis-py's PING, its EVALSHA of a script
              that does nothing, and that script sent by nanolimit's own connection.
  concurrent  64 tasks of one event loop, each of which asks for one check after the other: for 64
              keys, and for one key. Beside it, one task alone.
  denied      a denied user who asks again and again, with the deny cache.
  lease       one hot user of a large limit, with a lease.
  batch       allow_many of 64 and 256 keys, beside redis-py pipelines (without MULTI) of the same
              script, of limits' script, and of one that does nothing.
  memory      MEMORY USAGE of one user's log with the limit used up, and of a sorted set as it is
              often written by hand: the time in microseconds as score and as member.

What is the same for all: the server; redis-py makes the connections; blocking, there is one
connection each. Of 64 tasks, redis-py's pool opens 64 connections and nanolimit one, so `limits`
is measured with one connection as well (a BlockingConnectionPool). `limits` takes coredis for
asyncio unless it is told otherwise: both are measured, where coredis is installed (its pool is
entered here, for `limits` does not do that). Where hiredis is installed, redis-py parses replies
with it; `pip install 'nanolimit[redis]'` does not bring it, so that it is a row of its own:
nanolimit parses by itself. Musts hold against the fastest of these. Each contender first shows
that it limits: of 8 requests to "5/hour" 5 pass, and 20 of 64 at once to "20/hour". In every timed
block it is counted how many passed, and that nothing was decided without the server. No telemetry
handler or hook is attached anywhere; the garbage collector is off in the timed blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness import (
    Progress,
    Results,
    Row,
    Sample,
    ask,
    emit,
    environment,
    make_parser,
    print_environment,
    print_table,
    run_rounds,
    tables_shown,
    time_keys,
    version_of,
)

PARTS = ("single", "concurrent", "denied", "lease", "batch", "memory")
OURS, FLOOR, LIMITS, THROTTLED = "nanolimit", "redis-py", "limits", "throttled-py"
HIREDIS, COREDIS, LONE = ", hiredis", ", coredis", ", one connection"
PEERS = (LIMITS, LIMITS + HIREDIS, LIMITS + COREDIS, LIMITS + LONE)

TASKS = 64
BATCHES = (64, 256)
LIMIT, TIGHT, WIDE = 100, 5, 100_000
LIMITS_IN_MEMORY = (1, 5, 100, 1_000)
HOUR_S = 3_600
# So that a machine that stalls for a moment spoils no run. It costs the same as a shorter one.
TIMEOUT_S = 10.0
NOTHING = "return 0"


# --- The server -----------------------------------------------------------------------------------
class NoServerError(Exception):
    """There is no server to measure with; `str` of it says why."""


@contextlib.contextmanager
def own_server(program: str) -> Iterator[str]:
    """The URL of a server that keeps nothing on disk, on a free port; ended and gone afterwards."""
    path = shutil.which(program)
    if path is None:
        raise NoServerError(
            f"{program} is not installed (Debian: apt-get install redis-server); name another by "
            f"--program, or one that runs by --server"
        )
    folder = tempfile.mkdtemp(prefix="nanolimit-bench-")
    process: subprocess.Popen[bytes] | None = None
    try:
        for _ in range(5):  # another may take the port between the look and the start
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = listener.getsockname()[1]
            with Path(folder, "log").open("ab") as log:
                process = subprocess.Popen(
                    [path, "--port", str(port), "--bind", "127.0.0.1", "--save", "",
                     "--appendonly", "no", "--daemonize", "no", "--dir", folder],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            if answers(process, port):
                break
            end(process)
        else:
            text = Path(folder, "log").read_text("utf-8", "replace")[-2_000:]
            raise NoServerError(f"{path} did not start:\n{text}")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        if process is not None:
            end(process)
        shutil.rmtree(folder, ignore_errors=True)


def answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until it answers a PING; False: it ended, or took longer than 30 seconds."""
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=5) as line,
        ):
            line.sendall(b"PING\r\n")
            if line.recv(64).startswith(b"+PONG"):
                return True
        time.sleep(0.01)
    return False


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def cleaned(url: str, space: str) -> Iterator[dict[str, str]]:
    """What the server says of itself; afterwards, what was left in it under `space` is removed."""
    redis = importlib.import_module("redis")
    client = redis.Redis.from_url(url)
    try:
        told = client.info("server")
    except redis.RedisError as error:
        raise NoServerError(f"the server at {shown(url)} does not answer: {error}") from error
    name = "valkey" if "valkey_version" in told else "redis"
    try:
        yield {
            "server": f"{name} {told.get(f'{name}_version')}, pid {told.get('process_id')}",
            "connections": "a unix socket" if url.startswith("unix") else f"TCP to {shown(url)}",
        }
    finally:
        with contextlib.suppress(redis.RedisError):
            for key in client.scan_iter(match=f"{space}*", count=1_000):
                client.unlink(key)
        client.close()


def shown(url: str) -> str:
    """A URL without its password."""
    parts = urlsplit(url)
    return f"{parts.hostname or parts.path}:{parts.port or 6379}"


# --- What every contender does --------------------------------------------------------------------
@dataclasses.dataclass
class Sizes:
    """How much a timed block does."""

    users: int
    turns: int  # of each user, in a block of one blocking check after the other
    checks: int  # of each task
    repeats: int  # of what asks no server
    parts: tuple[str, ...]


Check = Callable[[Any], Any]
Asked = Callable[[Any], Awaitable[Any]]


class Users:
    """Keys that nobody had before."""

    def __init__(self) -> None:
        self._next = 0

    def fresh(self, number: int) -> list[str]:
        first, self._next = self._next, self._next + number
        return [f"user:{each}" for each in range(first, first + number)]


def is_true(answer: Any) -> bool:
    return bool(answer)


def not_limited(answer: Any) -> bool:
    return not answer.limited


def no_fault() -> None:
    """Of the peers: who can't ask the server raises."""


class Contender:
    """What asks for a check, blocking and in asyncio, and what is made of the answer.

    Args:
        check, asked: Make the call that counts one request of a key, for a limit an hour.
        admits: Reads what the call returned.
        verify: Raises if anything was decided without the server.
    """

    def __init__(
        self,
        check: Callable[[int], Check] | None,
        asked: Callable[[int], Asked] | None,
        admits: Callable[[Any], bool],
        verify: Callable[[], None] = no_fault,
    ) -> None:
        self.check, self.asked, self.admits, self.verify = check, asked, admits, verify
        self.users = Users()
        self.loop = asyncio.new_event_loop()

    def prove(self) -> None:
        """See that it limits, before anything is timed."""
        if self.check is not None:
            check, (user,) = self.check(TIGHT), self.users.fresh(1)
            told = [self.admits(check(user)) for _ in range(8)]
            expect(told, [True] * TIGHT + [False] * 3, f"8 requests of {TIGHT} an hour")
        if self.asked is not None:
            ask, (user,) = self.asked(20), self.users.fresh(1)

            async def crowd() -> list[Any]:
                return await asyncio.gather(*(ask(user) for _ in range(TASKS)))

            told = [self.admits(each) for each in self.loop.run_until_complete(crowd())]
            expect(sum(told), 20, f"of {TASKS} requests at once of 20 an hour, passed")
        self.verify()

    def passed(self, check: Check, keys: Sequence[Any], want: int) -> Sample:
        """Time one check for each of the keys, of which so many must pass."""
        kept: list[Any] = []
        keep = kept.append
        elapsed = time_keys(lambda key: keep(check(key)), keys)
        return self.counted(elapsed, kept, want)

    def counted(self, elapsed_ns: int, kept: list[Any], want: int) -> Sample:
        admitted = sum(map(self.admits, kept))
        expect(admitted, want, f"of {len(kept)} requests, passed")
        self.verify()
        return Sample(elapsed_ns, len(kept), admitted)

    def together(self, ask: Asked, keys: Sequence[str], checks: int) -> Sample:
        """Time a task for each of the keys, which asks so often."""
        kept: list[Any] = []

        async def task(key: str) -> None:
            for _ in range(checks):
                kept.append(await ask(key))

        async def crowd() -> int:
            start = time.perf_counter_ns()
            await asyncio.gather(*map(task, keys))
            return time.perf_counter_ns() - start

        return self.counted(self.loop.run_until_complete(crowd()), kept, len(keys) * checks)

    def rows(self, sizes: Sizes) -> dict[str, Row]:
        """The rows that all contenders have."""
        self.prove()
        users, turns, checks = self.users, sizes.turns, sizes.checks
        rows: dict[str, Row] = {}
        if self.check is not None:
            rows |= self.blocking_rows(sizes)
        if self.asked is not None and "concurrent" in sizes.parts:
            ask, ask_wide = self.asked(LIMIT), self.asked(WIDE)
            rows["one task"] = lambda _: self.together(ask, users.fresh(1), min(turns * 5, LIMIT))
            rows["64 keys"] = lambda _: self.together(ask, users.fresh(TASKS), checks)
            rows["one key"] = lambda _: self.together(ask_wide, users.fresh(1) * TASKS, checks)
            for row in rows.values():
                row(-1)
        return rows

    def blocking_rows(self, sizes: Sizes) -> dict[str, Row]:
        assert self.check is not None
        users, calls = self.users, sizes.users * sizes.turns
        rows: dict[str, Row] = {}
        tight, wide, usual = self.check(TIGHT), self.check(WIDE), self.check(LIMIT)
        if "single" in sizes.parts:
            rows["allowed"] = lambda _: self.passed(
                usual, users.fresh(sizes.users) * sizes.turns, calls
            )
        if {"single", "lease"} & {*sizes.parts}:
            rows["hot"] = lambda _: self.passed(wide, users.fresh(1) * calls, calls)
        if {"single", "denied"} & {*sizes.parts}:
            (user,) = users.fresh(1)
            for _ in range(TIGHT):
                tight(user)
            rows["denied"] = lambda _: self.passed(tight, [user] * calls, 0)
        for row in rows.values():  # warm: connected, the script loaded
            row(-1)
        if rows:
            rows["loop"] = lambda _: loop_of(calls)
        return rows


def loop_of(calls: int) -> Sample:
    """What the measuring takes: the loop, and keeping the answer."""
    kept: list[Any] = []
    keep = kept.append
    return Sample(time_keys(lambda key: keep(key), [None] * calls), calls)


def expect(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise RuntimeError(f"{what}: {found}, not {wanted}")


def begin(hiredis: bool) -> None:
    """Of a worker: redis-py reads replies by itself, unless this is about hiredis."""
    if not hiredis:
        sys.modules["hiredis"] = None  # type: ignore[assignment]


# --- The contenders -------------------------------------------------------------------------------
def setup_ours(url: str, space: str, sizes: Sizes) -> dict[str, Row]:
    begin(False)
    nanolimit = importlib.import_module("nanolimit.redis")
    made: list[Any] = []

    def new(kind: Any, limit: int, **more: Any) -> Any:
        limiter = kind(f"{limit}/hour", url, prefix=space, timeout=TIMEOUT_S, **more)
        made.append(limiter)
        return limiter

    def verify() -> None:
        for limiter in made:
            expect(limiter.stats().degraded, 0, "decided without the server")

    both = nanolimit.RedisRateLimiter, nanolimit.AsyncRedisRateLimiter
    contender = Contender(
        lambda limit: new(both[0], limit, deny_cache=False).allow,
        lambda limit: new(both[1], limit, deny_cache=False).allow,
        is_true,
        verify,
    )
    rows = contender.rows(sizes)
    users = contender.users
    if "single" in sizes.parts:
        wire = new(both[0], LIMIT)._wire
        nothing = importlib.import_module("nanolimit.redis.script").Script.of("nothing", NOTHING)
        calls = sizes.users * sizes.turns

        def empty(key: str) -> object:
            return wire.run(nothing, [key.encode()])

        rows["empty"] = lambda _: contender.passed(empty, users.fresh(1) * calls, 0)
        rows["empty"](-1)
    if "denied" in sizes.parts:
        cached, (user,) = new(both[0], TIGHT), users.fresh(1)

        def repeated(_: int) -> Sample:
            for _ in range(TIGHT + 1):  # the cache knows it for a second at most
                cached.allow(user)
            before = cached.stats()
            sample = contender.passed(cached.allow, [user] * sizes.repeats, 0)
            asked = sizes.repeats - (cached.stats().denied_locally - before.denied_locally)
            if asked > 1 + sample.elapsed_ns / 5e8:
                raise RuntimeError(f"the server was asked {asked} times for a cached denial")
            return sample

        rows["repeated"] = repeated
        repeated(-1)
    lease = getattr(nanolimit, "Lease", None)
    if "lease" in sizes.parts and lease is not None:
        leased = new(both[0], WIDE, lease=lease(max_share=0.25, ttl=1.0))

        def lent(_: int) -> Sample:
            # A new hot user each round, met while he is hot: how much is lent follows his rate.
            user = users.fresh(1)
            for key in user * sizes.repeats:
                leased.allow(key)
            return contender.passed(leased.allow, user * sizes.repeats, sizes.repeats)

        rows["leased"] = lent
        lent(-1)
    if "batch" in sizes.parts:
        many = new(both[0], LIMIT, deny_cache=False)
        for size in BATCHES:
            rows[f"batch {size}"] = batch_row(contender, many.allow_many, size, sizes)
    return rows


def batch_row(
    contender: Contender, call: Callable[[list[str]], Sequence[Any]], size: int, sizes: Sizes
) -> Row:
    """One call for so many keys at once, some times over; per key."""

    def row(_: int) -> Sample:
        keys = contender.users.fresh(size)
        kept: list[Any] = []
        start = time.perf_counter_ns()
        for _ in range(sizes.turns):
            kept += call(keys)
        elapsed = time.perf_counter_ns() - start
        return contender.counted(elapsed, kept, len(kept))

    row(-1)
    return row


def setup_floor(url: str, space: str, sizes: Sizes, hiredis: bool) -> dict[str, Row]:
    """redis-py by itself: what a call to the server costs, and a pipeline of calls."""
    begin(hiredis)
    client = importlib.import_module("redis").Redis.from_url(url)
    contender = Contender(None, None, is_true)
    rows: dict[str, Row] = {}
    calls = sizes.users * sizes.turns
    sha = client.script_load(NOTHING)
    if {"single", "denied", "lease"} & {*sizes.parts}:
        keys = [f"{space}:user"] * calls
        rows["ping"] = lambda _: contender.passed(lambda key: client.ping(), keys, calls)
        rows["empty"] = lambda _: contender.passed(partial(client.evalsha, sha, 1), keys, 0)
        rows["loop"] = lambda _: loop_of(calls)
        for row in rows.values():
            row(-1)
    if "batch" in sizes.parts:
        ours = importlib.import_module("nanolimit.redis.script")
        named = importlib.import_module("nanolimit.redis.name")
        quotas = (importlib.import_module("nanolimit").Quota(LIMIT, per=HOUR_S),)
        arguments = ours.Arguments(quotas)
        names = named.Names(space, None, quotas)
        take = client.script_load(arguments.take.source)
        args = arguments.of(1)

        def piped(of: str, words: Callable[[str], list[Any]]) -> Callable[[list[str]], list[Any]]:
            def call(keys: list[str]) -> list[Any]:
                pipeline = client.pipeline(transaction=False)
                for key in keys:
                    pipeline.evalsha(of, 1, *words(key))
                return [not each for each in pipeline.execute()]

            return call

        pipes = {
            "pipe": piped(take, lambda key: [*names.of(key), *args]),
            "empty pipe": piped(sha, lambda key: [key]),
        }
        for size in BATCHES:
            for name, call in pipes.items():
                rows[f"{name} {size}"] = batch_row(contender, call, size, sizes)
    return rows


def setup_limits(
    url: str, space: str, sizes: Sizes, client: str, hiredis: bool, lone: bool
) -> dict[str, Row]:
    """The moving window of `limits`; `client` is what its asyncio storage stands on."""
    begin(hiredis)
    limits = importlib.import_module("limits")
    strategies = importlib.import_module("limits.strategies")
    aio = importlib.import_module("limits.aio.strategies")
    # limits writes a unix socket in its own way.
    place = url.replace("unix://", "redis+unix://") if url.startswith("unix") else url
    if client == "coredis" or lone:
        storage = None
    else:
        storage = importlib.import_module("limits.storage").RedisStorage(place, key_prefix=space)
    more: dict[str, Any] = {}
    if lone:
        pools = importlib.import_module("redis.asyncio")
        more["connection_pool"] = pools.BlockingConnectionPool.from_url(url, max_connections=1)
    later = importlib.import_module("limits.aio.storage").RedisStorage(
        f"async+{place}", implementation=client, key_prefix=space, **more
    )

    def check(limit: int) -> Check:
        strategy = strategies.MovingWindowRateLimiter(storage)
        item = limits.RateLimitItemPerHour(limit)
        return partial(strategy.hit, item)

    def asked(limit: int) -> Asked:
        strategy = aio.MovingWindowRateLimiter(later)
        item = limits.RateLimitItemPerHour(limit)
        return partial(strategy.hit, item)

    contender = Contender(None if storage is None else check, asked, is_true)
    if client == "coredis":
        # coredis 6 wants it, and `limits` 5.8 does not do it.
        contender.loop.run_until_complete(later.bridge.storage.__aenter__())
    rows = contender.rows(sizes)
    if "batch" in sizes.parts and storage is not None:
        script = storage.lua_acquire_moving_window
        connection = storage.get_connection()
        connection.script_load(script.script)

        def piped(keys: list[str]) -> list[Any]:
            pipeline = connection.pipeline(transaction=False)
            now = time.time()
            for key in keys:
                pipeline.evalsha(script.sha, 1, f"{space}:{key}", now, LIMIT, HOUR_S, 1)
            return pipeline.execute()  # type: ignore[no-any-return]

        for size in BATCHES:
            rows[f"pipe {size}"] = batch_row(contender, piped, size, sizes)
    return rows


def setup_throttled(url: str, space: str, sizes: Sizes, hiredis: bool) -> dict[str, Row]:
    begin(hiredis)
    blocking = importlib.import_module("throttled")
    awaited = importlib.import_module("throttled.asyncio")

    def new(module: Any, limit: int) -> Any:
        return module.Throttled(
            using="gcra", quota=module.per_hour(limit, burst=limit), key_prefix=space,
            store=module.RedisStore(server=url),
        ).limit  # fmt: skip

    contender = Contender(
        lambda limit: new(blocking, limit), lambda limit: new(awaited, limit), not_limited
    )
    return contender.rows(sizes)


# --- Memory ---------------------------------------------------------------------------------------
def setup_memory(url: str, space: str, who: str) -> dict[str, Callable[[int], Any]]:
    """Bytes of one user's log in the server, the whole limit used, for each limit."""
    client = importlib.import_module("redis").Redis.from_url(url)
    found = {}
    for limit in LIMITS_IN_MEMORY:
        place = f"{space}-{limit:04}"  # as long for all
        fill(url, client, place, who, limit)
        keys = list(client.scan_iter(match=f"{place}*", count=1_000))
        found[limit] = sum(client.memory_usage(key, samples=0) for key in keys)
        client.unlink(*keys)
    return {"bytes": lambda _: found}


def fill(url: str, client: Any, place: str, who: str, limit: int) -> None:
    """Have one user use his whole limit."""
    user = "user:42"
    if who == OURS:
        limiter = importlib.import_module("nanolimit.redis").RedisRateLimiter(
            f"{limit}/hour", url, prefix=place, timeout=TIMEOUT_S
        )
        told = [limiter.allow(user) for _ in range(limit + 1)]
        expect(limiter.stats().degraded, 0, "decided without the server")
    elif who == LIMITS:
        limits = importlib.import_module("limits")
        storage = importlib.import_module("limits.storage").RedisStorage(url, key_prefix=place)
        strategy = importlib.import_module("limits.strategies").MovingWindowRateLimiter(storage)
        item = limits.RateLimitItemPerHour(limit)
        told = [strategy.hit(item, user) for _ in range(limit + 1)]
    elif who == THROTTLED:
        module = importlib.import_module("throttled")
        throttled = module.Throttled(
            using="gcra", quota=module.per_hour(limit, burst=limit), key_prefix=place,
            store=module.RedisStore(server=url),
        )  # fmt: skip
        told = [not throttled.limit(user).limited for _ in range(limit + 1)]
    else:
        start = time.time_ns() // 1_000
        members = {str(start + 1_000 * nth): start + 1_000 * nth for nth in range(limit)}
        client.zadd(f"{place}:{user}", members)
        told = [True] * limit
    expect(sum(told), limit, f"of {limit + 1} requests of {limit} an hour, passed")


def memory_table(url: str, space: str, whom: Sequence[str]) -> tuple[list[list[object]], list[str]]:
    """A line for each: the bytes at each limit. And who dropped out, and why."""
    lines: list[list[object]] = []
    troubles = []
    for who in whom:
        found, trouble = ask(who, setup_memory, url, space, who, budget_s=120)
        if found is None:
            troubles.append(f"memory of {who}: {trouble}")
        else:
            lines.append([who, *(found[limit] for limit in LIMITS_IN_MEMORY)])
    return lines, troubles


# --- Reporting ------------------------------------------------------------------------------------
At = tuple[int, int]


@dataclasses.dataclass
class Figure:
    """A median of ratios, or of times, with the quartiles: what lies between them is half."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure | None:
        if not values:
            return None
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)

    @property
    def spread(self) -> str:
        return f"{self.low:.3g} - {self.high:.3g}"


@dataclasses.dataclass
class Must:
    """What the issue asks for, beside what was measured."""

    what: str
    figure: Figure
    must: float
    higher_is_better: bool = True

    @property
    def ok(self) -> bool:
        if self.higher_is_better:
            return self.figure.median >= self.must
        return self.figure.median <= self.must

    def row(self) -> list[object]:
        sign = ">=" if self.higher_is_better else "<="
        word = "ok" if self.ok else "SHORT"
        return [self.what, f"{sign} {self.must:g}", self.figure.median, self.figure.spread, word]


# Rows from which the loop is taken off: those that go through `Contender.passed`.
LOOPED = ("ping", "empty", "allowed", "hot", "denied", "repeated", "leased")


def times_of(results: Results, who: str, row: str) -> dict[At, float]:
    """Microseconds of one check, or of one key, by round."""
    samples = results.samples.get((who, row), {})
    loops = results.samples.get((who, "loop"), {}) if row in LOOPED else {}
    return {
        at: (sample.per_call_ns - (loops[at].per_call_ns if at in loops else 0)) / 1_000
        for at, sample in samples.items()
    }


def time_of(results: Results, who: str, row: str) -> Figure | None:
    return Figure.of([*times_of(results, who, row).values()])


def over(results: Results, top: tuple[str, str], bottom: tuple[str, str]) -> Figure | None:
    """How many times as long one takes as another does, in the same round."""
    upper, lower = times_of(results, *top), times_of(results, *bottom)
    return Figure.of([upper[at] / lower[at] for at in upper if lower.get(at, 0) > 0])


def fastest(results: Results, whom: Sequence[str], row: str) -> str | None:
    """Who of them takes least time for it; None: nobody does it."""
    times = {who: time_of(results, who, row) for who in whom}
    done = {who: time.median for who, time in times.items() if time is not None}
    return min(done, key=done.__getitem__) if done else None


def beside(figure: Figure | None) -> list[object]:
    return [None, None] if figure is None else [figure.median, figure.spread]


LABELS = {
    "ping": "PING",
    "empty": "empty EVALSHA",
    "allowed": "allowed, users in turn",
    "hot": "allowed, one hot user",
    "denied": "denied",
    "one task": "one task alone",
    "64 keys": "64 tasks, 64 keys",
    "one key": "64 tasks, one key",
    "repeated": "denied, deny cache",
    "leased": "one hot user, lease",
}


def lines_of(
    results: Results, rows: Sequence[str], base: Callable[[str, str], tuple[str, str] | None]
) -> list[list[object]]:
    """A line for each row of each contender: what it takes, and how many times what."""
    lines: list[list[object]] = []
    workers = dict.fromkeys(who for who, _ in results.samples)
    for row in rows:
        for who in sorted(workers, key=CONTENDERS.index):
            took = time_of(results, who, row)
            if took is None:
                continue
            other = base(who, row)
            ratio = None if other is None else over(results, (who, row), other)
            lines.append([LABELS.get(row, row), who, took.median, took.spread, *beside(ratio)])
    return lines


CONTENDERS = (
    FLOOR, FLOOR + HIREDIS, OURS, LIMITS, LIMITS + HIREDIS, LIMITS + COREDIS, LIMITS + LONE,
    THROTTLED, THROTTLED + HIREDIS,
)  # fmt: skip


def floor_of(who: str, row: str) -> tuple[str, str] | None:
    """What a blocking call is held against: an empty EVALSHA of redis-py, with the same parser."""
    floor = FLOOR + HIREDIS if who.endswith(HIREDIS) else FLOOR
    return None if (who, row) == (floor, "empty") else (floor, "empty")


def musts_of(results: Results) -> list[Must]:
    """The lines of the issue that this script answers."""
    lines: list[Must] = []

    def add(what: str, figure: Figure | None, must: float, higher: bool = True) -> None:
        if figure is not None:
            lines.append(Must(what, figure, must, higher))

    for row in ("allowed", "hot", "denied"):
        for floor in (FLOOR, FLOOR + HIREDIS):
            figure = over(results, (OURS, row), (floor, "empty"))
            add(f"one check over an empty EVALSHA of {floor}: {LABELS[row]}", figure, 1.15, False)
    for row in ("64 keys", "one key"):
        peer = fastest(results, PEERS, row)
        if peer is not None:
            add(f"{peer} over ours: {LABELS[row]}", over(results, (peer, row), (OURS, row)), 5)
    for row, other in (("repeated", "denied"), ("leased", "hot")):
        peer = fastest(results, PEERS, other)
        if peer is not None:
            figure = over(results, (peer, other), (OURS, row))
            add(f"{peer}, {LABELS[other]}, over ours: {LABELS[row]}", figure, 50)
    return lines


def report(results: Results, sizes: Sizes) -> dict[str, list[list[object]]]:
    """Print the tables; return them."""
    tables: dict[str, list[list[object]]] = {}

    def table(name: str, title: str, of: str, lines: list[list[object]]) -> None:
        if lines:
            head = ("what", "who", "us", "quartiles", of, "quartiles")
            print_table(title, head, lines)
            tables[name] = lines

    if "single" in sizes.parts:
        rows = ("ping", "empty", "allowed", "hot", "denied")
        table("single", "One blocking check (microseconds; quartiles behind)", "x empty EVALSHA",
              lines_of(results, rows, floor_of))  # fmt: skip
    if "concurrent" in sizes.parts:
        rows = ("one task", "64 keys", "one key")
        table("concurrent", f"asyncio, {TASKS} tasks (microseconds a check)", "x its one task",
              lines_of(results, rows, lambda who, row: (who, "one task")))  # fmt: skip
        table("concurrent_over_ours", "The same, over ours", "x ours",
              lines_of(results, rows[1:], lambda who, row: (OURS, row)))  # fmt: skip
        if results.has(OURS, "allowed"):
            figure = over(results, (OURS, "allowed"), (OURS, "64 keys"))
            if figure is not None:
                print(f"Ours: a blocking check takes {figure.median:.2f} times (quartiles "
                      f"{figure.spread}) as long as one of {TASKS} tasks does\n")  # fmt: skip
    for part, row, other in (("denied", "repeated", "denied"), ("lease", "leased", "hot")):
        if part in sizes.parts and results.has(OURS, row):
            ours = (OURS, row)
            lines = lines_of(results, (row,), lambda who, name: None)
            lines += lines_of(results, (other,), lambda who, name, ours=ours: ours)
            table(part, f"{LABELS[row]} (microseconds)", "x that", lines)
    if "batch" in sizes.parts:
        lines = []
        for size in BATCHES:
            ours = (OURS, f"batch {size}")
            names = {
                f"batch {size}": "allow_many",
                f"pipe {size}": "pipeline",
                f"empty pipe {size}": "pipeline of nothing",
            }
            for row, label in names.items():
                found = lines_of(results, (row,), lambda who, name, ours=ours: ours)
                lines += [[f"{size} keys, {label}", *line[1:]] for line in found]
        table("batch", "Batches (microseconds a key; a pipeline of redis-py is of our script)",
              "x allow_many", lines)  # fmt: skip
    return tables


# --- The program ----------------------------------------------------------------------------------
def contenders(url: str, space: str, sizes: Sizes) -> tuple[dict[str, tuple[Any, ...]], list[str]]:
    """The workers to be run, and what is left out and why."""
    subjects: dict[str, tuple[Any, ...]] = {}
    notices = []

    def add(who: str, setup: Callable[..., dict[str, Row]], *more: Any) -> None:
        # Keys of its own: nobody counts for another.
        subjects[who] = (setup, url, f"{space}-{len(subjects):02}", sizes, *more)

    hiredis = version_of("hiredis") is not None
    if not hiredis:
        notices.append("hiredis is not installed: no rows with it")
    add(FLOOR, setup_floor, False)
    add(OURS, setup_ours)
    if hiredis:
        add(FLOOR + HIREDIS, setup_floor, True)
    if version_of("limits") is None:
        notices.append("limits is not installed: what is held against it is missing")
    else:
        add(LIMITS, setup_limits, "redispy", False, False)
        if hiredis:
            add(LIMITS + HIREDIS, setup_limits, "redispy", True, False)
        if "concurrent" in sizes.parts:
            add(LIMITS + LONE, setup_limits, "redispy", hiredis, True)
            if version_of("coredis") is None:
                notices.append("coredis is not installed: limits is not measured on it")
            else:
                add(LIMITS + COREDIS, setup_limits, "coredis", False, False)
    if version_of("throttled-py") is None:
        notices.append("throttled-py is not installed: its rows are missing")
    else:
        add(THROTTLED, setup_throttled, False)
        if hiredis:
            add(THROTTLED + HIREDIS, setup_throttled, True)
    if "lease" in sizes.parts and not hasattr(importlib.import_module("nanolimit.redis"), "Lease"):
        notices.append("nanolimit.redis has no Lease: the row of a leased hot key is missing")
    return subjects, notices


def chosen_parts(text: str, parser: Any) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        parser.error(f"--only takes some of {', '.join(PARTS)}, not {text!r}")
    return parts


def main() -> int:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=21, help="rounds (21)")
    parser.add_argument("--only", default=",".join(PARTS), metavar="PARTS",
                        help=f"comma-separated, of {', '.join(PARTS)}")  # fmt: skip
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--server", metavar="URL",
                       help="a server that runs: redis://, rediss:// or unix://; what is written "
                            "there begins with nlbench and is removed at the end")  # fmt: skip
    where.add_argument("--program", default="redis-server",
                       help="the server to start (redis-server)")  # fmt: skip
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    parts = chosen_parts(options.only, parser)
    if options.server and not options.server.startswith(("redis://", "rediss://", "unix://")):
        parser.error("--server must begin with redis://, rediss:// or unix:// (of Valkey too)")
    if version_of("redis") is None:
        print("redis.py: redis-py is missing: pip install 'nanolimit[redis]'", file=sys.stderr)
        return 2
    sizes = Sizes(users=25, turns=20, checks=16, repeats=20_000, parts=parts)
    if options.quick:
        sizes = Sizes(users=5, turns=4, checks=2, repeats=1_000, parts=parts)
    rounds = min(options.rounds, 3) if options.quick else options.rounds
    # Ended from outside, it ends its server as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    space = f"nlbench{secrets.token_hex(3)}"  # short: MEMORY USAGE counts it
    try:
        with contextlib.ExitStack() as stack:
            url = options.server or stack.enter_context(own_server(options.program))
            told = stack.enter_context(cleaned(url, space))
            return compare(options, url, space, sizes, rounds, told)
    except NoServerError as error:
        print(f"redis.py: {error}", file=sys.stderr)
        return 2


def compare(
    options: Any, url: str, space: str, sizes: Sizes, rounds: int, told: dict[str, str]
) -> int:
    """Run it all, and print what was found."""
    facts = environment()
    for name in ("redis", "hiredis", "coredis"):
        facts[name] = version_of(name) or "not installed"
    facts |= told
    if not options.server:
        facts["connections"] += " (loopback), a server of its own"
    if hasattr(os, "getloadavg"):
        facts["load before"] = f"{os.getloadavg()[0]:.2f} (one minute)"
    subjects, notices = contenders(url, space, sizes)
    results = Results()
    if set(sizes.parts) - {"memory"}:
        results = run_rounds(subjects, rounds=rounds, seed=options.seed,
                             progress=Progress(rounds, "redis"))  # fmt: skip
    if OURS in results.troubles or FLOOR in results.troubles:
        for name, trouble in results.troubles.items():
            print(f"{name}: {trouble}", file=sys.stderr)
        return 1
    memory: list[list[object]] = []
    if "memory" in sizes.parts:
        whom = [OURS, *(who for who in (LIMITS, THROTTLED) if who in subjects), "a sorted set"]
        memory, troubles = memory_table(url, f"{space}m", whom)
        notices += troubles
    musts = musts_of(results)
    with tables_shown(options.json):
        if options.quick:
            print("--quick: these figures show that it runs, nothing else\n")
        print_environment(facts)
        for notice in notices:
            print(f"notice: {notice}")
        if notices:
            print()
        tables = report(results, sizes)
        if memory:
            head = ("who", *(f"limit {limit:,}" for limit in LIMITS_IN_MEMORY))
            print_table("One user's log, the limit used up (bytes, MEMORY USAGE)", head, memory)
            tables["memory"] = memory
        if results.troubles:
            print_table("Did not run", ("who", "why"), sorted(results.troubles.items()))
        if musts:
            head = ("what", "must", "measured", "quartiles", "")
            print_table("Against what it must show (the fastest of limits' rows)", head,
                        [must.row() for must in musts])  # fmt: skip
    emit(
        options.json,
        facts,
        {
            "tables": tables,
            "musts": [dataclasses.asdict(must) | {"ok": must.ok} for must in musts],
            "notices": notices, "troubles": results.troubles, "rounds": rounds,
            "quick": options.quick,
        },
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
