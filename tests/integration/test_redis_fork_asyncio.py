"""Processes that fork while an AsyncRedisRateLimiter is in use: each has connections of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

pytest.importorskip("redis")

from redis_server import RedisServer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")

# What the processes have in common. Each program runs in a process of its own: pytest has threads,
# and a fork beside them is not what is tested.
HEAD = """
import asyncio, multiprocessing, os, signal, sys
from nanolimit.redis import AsyncRedisRateLimiter

url = sys.argv[1]
limiter = AsyncRedisRateLimiter("100000/hour", url, name="api", timeout=20, on_error="raise")
other = AsyncRedisRateLimiter("1/hour", url, name="other", timeout=20, on_error="raise")


async def ask(units, own):
    # Singly, together, merged, as a batch; and a denial that is known since before the fork.
    assert await limiter.allow("k")
    assert all(await asyncio.gather(*[limiter.allow("k") for _ in range(units - 4)]))
    assert all(await asyncio.gather(*[limiter.allow((own, n)) for n in range(20)]))
    assert await limiter.allow_many(["k", "k"]) == [True, True]
    assert await limiter.acquire("k")
    assert not (await other.check("full")).allowed
    assert await other.reset((own, "never used")) is False
    assert limiter.stats().failures == 0


def child(units):
    try:
        asyncio.run(ask(units, os.getpid()))
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def forked(units):
    pid = os.fork()
    if not pid:
        child(units)
    return pid


def ended_well(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def run(server: RedisServer, code: str) -> int:
    """Run a program; how many units of "k" were counted."""
    server.ask("FLUSHALL")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HEAD + textwrap.dedent(code), server.url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr
    assert ran.stdout == "done\n"
    counted = server.ask("LLEN", "nl:{s:k}:api:3600000000")
    assert isinstance(counted, int)
    return counted


def test_forked_between_two_loops(server: RedisServer) -> None:
    counted = run(
        server,
        """
        async def begin():
            assert await limiter.allow("k")
            assert await other.allow("full")
            assert not await other.allow("full")

        asyncio.run(begin())
        children = [forked(50) for _ in range(3)]
        asyncio.run(ask(50, 0))
        assert all(map(ended_well, children))
        asyncio.run(ask(50, 1))
        print("done")
        """,
    )
    assert counted == 1 + 3 * 50 + 2 * 50


def test_forked_in_a_loop_whose_tasks_go_on(server: RedisServer) -> None:
    counted = run(
        server,
        """
        async def main():
            assert await other.allow("full")
            assert not await other.allow("full")
            over, units = asyncio.Event(), 0

            async def load():
                nonlocal units
                while not over.is_set():
                    assert await limiter.allow("k")
                    units += 1

            line = asyncio.create_task(other.acquire("full"))  # waits in the parent, not there
            loads = [asyncio.create_task(load()) for _ in range(8)]
            while units < 50:
                await asyncio.sleep(0)
            before = limiter._wire._pool.line
            for _ in range(4):
                pid = forked(50)
                # What the parent had sent or left at that moment is the parent's to send.
                assert await asyncio.to_thread(ended_well, pid)
            over.set()
            await asyncio.gather(*loads)
            # It speaks on as before: no child closed the connection, or read from it.
            assert limiter._wire._pool.line is before
            assert limiter.stats().failures == 0
            line.cancel()
            sys.stdout.write("done\\n")
            await limiter.allow("k", 50_000 - units - 4 * 50)

        asyncio.run(main())
        """,
    )
    assert counted == 50_000


def test_processes_of_multiprocessing(server: RedisServer) -> None:
    counted = run(
        server,
        """
        context = multiprocessing.get_context("fork")

        def start():
            started = [context.Process(target=child, args=(50,)) for _ in range(2)]
            for process in started:
                process.start()
            return started

        def end(started):
            for process in started:
                process.join()
            assert [process.exitcode for process in started] == [0, 0]

        async def fill():
            async with AsyncRedisRateLimiter("1/hour", url, name="other", timeout=20) as first:
                assert await first.allow("full")

        async def main():
            assert not await other.allow("full")
            await limiter.allow("k")
            started = start()
            await ask(50, 0)
            await asyncio.to_thread(end, started)
            await ask(50, 1)

        # Before the early ones, which would be told yes if they were faster than main.
        asyncio.run(fill())
        early = start()  # of limiters that were not used yet
        asyncio.run(main())
        end(early)
        print("done")
        """,
    )
    assert counted == 2 * 50 + 1 + 2 * 50 + 2 * 50


def test_a_childs_close_or_end_leaves_the_parents_connection_open(server: RedisServer) -> None:
    counted = run(
        server,
        """
        import gc

        async def use():
            assert await limiter.allow("k")

        def end(uses, closes):
            # (A child must not go on with its parent's loop: that is asyncio's own rule.)
            global limiter
            if uses:
                asyncio.run(use())
            if closes:
                asyncio.run(limiter.close())
            del limiter
            gc.collect()
            os._exit(0)

        async def main():
            await use()
            before = limiter._wire._pool.line
            for uses in (True, False):
                for closes in (True, False):
                    pid = os.fork()
                    if not pid:
                        end(uses, closes)
                    assert await asyncio.to_thread(ended_well, pid)
                    await use()
            assert limiter._wire._pool.line is before
            assert limiter.stats().failures == 0

        asyncio.run(main())
        print("done")
        """,
    )
    assert counted == 1 + 2 + 4
