"""Leases on a real redis-server: never one unit too many, and what is not used comes back."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

pytest.importorskip("redis")

import redis_journal
from nanolimit import Quota
from nanolimit.redis import AsyncRedisRateLimiter, Lease, RedisRateLimiter
from nanolimit.redis.dialog import RETURNS
from nanolimit.redis.lease import HOT
from redis_holders import Held, Proof, Use, hold, hold_in_threads
from redis_load import eventually
from redis_server import RedisCluster, RedisServer
from tcp_proxy import TcpProxy

PATIENT_S = 20.0


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """A server that runs well; each test has it to itself."""
    shared_server.ask("FLUSHALL")
    return shared_server


def processes(work: Callable[..., Held], arguments: Sequence[tuple[Any, ...]]) -> list[Held]:
    """Run it once in a process for each of `arguments`."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(len(arguments)) as pool:
        told = pool.starmap(work, arguments)
    assert [each.wrong for each in told] == [[]] * len(told)
    assert sum(each.failures for each in told) == 0
    return told


def uses_of(told: Sequence[Held]) -> list[Use]:
    return [use for each in told for use in each.uses]


def journal(server: RedisServer) -> list[bytes]:
    entries: list[bytes] = server.ask("LRANGE", redis_journal.JOURNAL, 0, -1, timeout_s=60)
    return entries


# --- never one too many


def test_eight_clients_with_leases_and_merging_for_thirty_seconds(server: RedisServer) -> None:
    told = processes(hold, [(server.url, [Quota(400, per=1.0)], 30.0, seed) for seed in range(8)])
    proof = Proof(journal(server), uses_of(told))
    assert proof.faults == []
    # It was no quiet time: windows were full, or nearly, and all was done that can be.
    assert proof.fullest["nl:{s:hot}:hot:1000000"] > 300
    assert sum(each.leased for each in told) > 500
    assert sum(each.denied for each in told) > 500
    for verb in ("take_one", "take_some", "grant", "return", "batch", "tell", "look"):
        assert proof.seen[verb] > 50
    assert proof.seen["grant denied"] > 10
    assert sum(each.allowed for each in told) > 30 * 100


def test_threads_and_two_quotas(server: RedisServer) -> None:
    quotas = [Quota(60, per=0.4), Quota(250, per=2.0)]
    told = processes(hold_in_threads, [(server.url, quotas, 4.0, seed) for seed in range(4)])
    proof = Proof(journal(server), uses_of(told))
    assert proof.faults == []
    assert proof.fullest["nl:{s:hot}:hot:400000"] > 40
    assert proof.fullest["nl:{s:hot}:hot:2000000"] > 150
    assert sum(each.leased for each in told) > 20
    assert proof.seen["return"] > 0


# --- what is not used comes back


class Awaited:
    """An AsyncRedisRateLimiter in a loop that runs in a thread of its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._limiter = AsyncRedisRateLimiter(*args, **options)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._limiter, name)
        if name not in ("allow", "check", "allow_many", "reset", "acquire"):
            return found
        return lambda *args, **options: self._wait(found(*args, **options))

    def close(self) -> None:
        self._wait(self._limiter.close())
        self._wait(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


Make = Callable[..., Any]


@pytest.fixture(params=[RedisRateLimiter, Awaited], ids=["threads", "asyncio"])
def make(request: pytest.FixtureRequest) -> Make:
    """make(quota, url, ...) -> a limiter with leases, of either kind."""

    def maker(quota: Any, where: Any, **options: Any) -> Any:
        options = {"name": "own", "timeout": PATIENT_S, "lease": Lease(), **options}
        return request.param(quota, where, **options)

    return maker


def hot(limiter: Any, key: Any = "k") -> int:
    """Ask until something is lent; how often that was."""
    for asked in range(1, 1_000):
        assert limiter.allow(key)
        if limiter._loans.take(limiter._place(key), 0, 0.0):
            return asked
    raise AssertionError("nothing is lent")


def counted(server: RedisServer, key: str = "s:k", per_us: int = 60_000_000) -> int:
    """The units that stand in the store."""
    found: int = server.ask("LLEN", f"nl:{{{key}}}:own:{per_us}")
    return found


def test_close_gives_back(make: Make, server: RedisServer) -> None:
    limiter = make("1000/minute", server.url)
    asked = hot(limiter)
    assert limiter.allow("k")
    assert counted(server) > asked + 1
    limiter.close()
    assert counted(server) == asked + 1


def test_close_does_not_wait_again_and_again(server: RedisServer) -> None:
    limiter = RedisRateLimiter("1000/hour", server.url, lease=Lease(ttl=60.0), timeout=0.5)
    for _ in range(HOT + 1):
        for key in range(300):
            limiter.allow(key)
    assert len(limiter._loans) > RETURNS
    before = limiter.stats().failures
    with server.paused():
        limiter.close()
    # One write was not answered; what else there was to give back was not even sent.
    assert limiter._counters.read().failures == before + 1


def test_a_limiter_that_is_silent_gives_back(make: Make, server: RedisServer) -> None:
    with closing(make("1000/minute", server.url, lease=Lease(ttl=0.3))) as limiter:
        asked = hot(limiter)
        assert counted(server) > asked
        eventually(lambda: counted(server) == asked)
        assert not len(limiter._loans)
        if isinstance(limiter, RedisRateLimiter):
            keeper = limiter._keeper
            eventually(lambda: not keeper.alive)
        assert limiter.stats().failures == 0


def test_a_process_that_ends_without_close_gives_back(server: RedisServer) -> None:
    code = """
        import sys
        from nanolimit.redis import Lease, RedisRateLimiter

        limiter = RedisRateLimiter(
            "1000/minute", sys.argv[1], name="own", timeout=20, lease=Lease(ttl=7)
        )
        assert all(limiter.allow("k", 10) for _ in range(5))
        assert limiter.stats().leased == 1
        assert len(limiter._loans) == 1
    """
    run_alone(code, server.url)
    assert counted(server) == 50


def run_alone(code: str, *arguments: str) -> str:
    """Run it in a process of its own; what it says."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_reset_forgets_what_is_lent(make: Make, server: RedisServer) -> None:
    with closing(make("100/minute", server.url)) as limiter:
        hot(limiter)
        assert limiter.reset("k")
        assert counted(server) == 0
        assert [limiter.allow("k") for _ in range(101)] == [True] * 100 + [False]
        assert counted(server) == 100


def test_a_reset_elsewhere_is_seen_when_the_lease_is_over(make: Make, server: RedisServer) -> None:
    with closing(make("100/hour", server.url, lease=Lease(ttl=60))) as limiter:
        hot(limiter)
        held = sum(len(loan.tokens) for loan in limiter._loans._kept.values())
        with closing(make("100/hour", server.url, lease=None)) as other:
            assert other.reset("k")
            assert other.allow("k", 100)
        assert [limiter.allow("k") for _ in range(held + 1)] == [True] * held + [False]


# --- what goes wrong


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_a_forked_child_has_none_of_its_parents_leases(server: RedisServer, kind: str) -> None:
    code = """
        import asyncio, os, sys
        from nanolimit.redis import AsyncRedisRateLimiter, Lease, RedisRateLimiter

        threads = sys.argv[2] == "threads"
        made = RedisRateLimiter if threads else AsyncRedisRateLimiter
        limiter = made("100000/hour", sys.argv[1], name="own", timeout=20, lease=Lease(ttl=30))
        loop = asyncio.new_event_loop()

        def wait(answer):
            return answer if threads else loop.run_until_complete(answer)

        def ask(number, cost=1):
            return all([wait(limiter.allow("k", cost)) for _ in range(number)])

        assert ask(4, 25)
        held = sum(len(loan.tokens) for loan in limiter._loans._kept.values())
        assert held == 75
        assert not threads or limiter._keeper.alive
        children = []
        for _ in range(2):
            child = os.fork()
            if not child:
                loop = asyncio.new_event_loop()
                ok = not len(limiter._loans) and ask(5, 25) and limiter.stats().leased == 1
                ok = ok and len(limiter._loans) == 1
                wait(limiter.close())  # the child's own rest goes back, the parent's does not
                os._exit(0 if ok else 1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        assert ask(held)
        assert limiter.stats().leased == held
        wait(limiter.close())
        print(100 + 2 * 125 + held)
    """
    allowed = int(run_alone(code, server.url, kind))
    assert counted(server, per_us=3_600_000_000) == allowed


def test_a_holder_that_is_killed_costs_what_it_held_for_a_window(server: RedisServer) -> None:
    code = """
        import sys
        from nanolimit.redis import Lease, RedisRateLimiter

        limiter = RedisRateLimiter(
            "40/4s", sys.argv[1], name="own", timeout=20, lease=Lease(max_share=0.5)
        )
        while not len(limiter._loans):
            assert limiter.allow("k")
        print("held", flush=True)
        sys.stdin.read()
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"held"
        holder.kill()
    with RedisRateLimiter(
        "40/4s", server.url, name="own", timeout=PATIENT_S, deny_cache=False
    ) as limiter:
        stamps = [abs(int(stamp)) for stamp in server.ask("LRANGE", "nl:{s:k}:own:4000000", 0, -1)]
        # All of the limit is there again when what was held has left the window, and not before.
        assert limiter.acquire("k", 40, timeout=60)
        assert time.time() * 1e6 >= max(stamps, default=0) + 4_000_000
        assert len(stamps) != HOT - 1


def test_a_server_that_stands_still_while_units_are_held(make: Make, server: RedisServer) -> None:
    lease = Lease(ttl=60)
    with closing(
        make("1000/hour", server.url, timeout=0.5, on_error="deny", lease=lease)
    ) as limiter:
        for _ in range(HOT):
            limiter.allow("k", 10)
        held = 3 * 10
        before = limiter.stats()
        with server.paused():
            assert all(limiter.allow("k") for _ in range(held))
            assert limiter.stats().leased == before.leased + held
            assert limiter.stats().failures == before.failures
            assert not limiter.allow("k")
            assert limiter.stats().degraded == before.degraded + 1
    # Each was counted; perhaps also the one of which nobody knows.
    assert counted(server, per_us=3_600_000_000) >= HOT * 10 + held


def test_the_reply_to_a_grant_is_lost(make: Make, server: RedisServer) -> None:
    with (
        TcpProxy(server.port) as proxy,
        closing(
            make(
                "1000/minute",
                f"redis://127.0.0.1:{proxy.port}/0",
                on_error="allow",
                lease=Lease(ttl=7),
            )
        ) as limiter,
    ):
        place = limiter._place("k")
        while not is_hot(limiter, place):
            limiter.allow("k")
        asked = counted(server)
        proxy.cut_replies_after(0)
        assert limiter.allow("k")
        proxy.mend()
        stats = limiter.stats()
        assert (stats.failures, stats.unknown, stats.degraded) == (1, 1, 1)
        # It ran, once, and nobody uses what it lent.
        eventually(lambda: counted(server) == asked + HOT)
        assert not len(limiter._loans)
        assert limiter.allow("k")
        assert limiter.stats().leased == 0
        assert counted(server) == asked + HOT + 1


def is_hot(limiter: Any, place: bytes) -> bool:
    """Whether the next request will be for a loan."""
    heat = limiter._loans._watched.get(place)
    return heat is not None and heat.requests == HOT - 1


def test_the_reply_to_a_return_is_lost(make: Make, server: RedisServer) -> None:
    with TcpProxy(server.port) as proxy:
        limiter = make("1000/minute", f"redis://127.0.0.1:{proxy.port}/0")
        asked = hot(limiter)
        assert counted(server) > asked
        proxy.cut_replies_after(0)
        limiter.close()
        # It ran, and was not sent again.
        eventually(lambda: counted(server) == asked)
        assert proxy.requests.count(b"-" + b"1") == 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as running:
        yield running


def test_a_cluster(make: Make, cluster: RedisCluster) -> None:
    for node in cluster.nodes:
        node.ask("FLUSHALL")
    with closing(make("1000/minute", cluster.url)) as limiter:
        keys = list(range(12))
        asked = {key: hot(limiter, key) for key in keys}
        assert len({cluster.slot_of(f"i:{key}") * 3 // 16_384 for key in keys}) == 3
        assert limiter.allow_many(keys) == [True] * 12
        assert limiter.stats().leased >= 12
        eventually(lambda: not len(limiter._loans))
        eventually(
            lambda: (
                [counted(cluster.node_of(cluster.slot_of(f"i:{key}")), f"i:{key}") for key in keys]
                == [asked[key] + 1 for key in keys]
            )
        )
        assert limiter.stats().failures == 0
