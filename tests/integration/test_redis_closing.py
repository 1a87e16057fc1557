"""An AsyncRedisRateLimiter at its end, or its loop's: nothing is lost, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("redis")

from nanolimit.redis import AsyncRedisRateLimiter, Lease
from nanolimit.redis.lease import HOT
from redis_server import RedisServer
from tcp_proxy import TcpProxy

PATIENT_S = 20.0


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.ask("FLUSHALL")
    return running


async def lend(limiter: AsyncRedisRateLimiter, key: str) -> int:
    """Have units of the key lent; how many of these are left."""
    assert limiter._loans is not None
    for _ in range(HOT):
        assert await limiter.allow(key)
    return len(limiter._loans._kept[limiter._place(key)].tokens)


def counted(server: RedisServer, key: str) -> int:
    length: int = server.ask("LLEN", f"nl:{{s:{key}}}:ends:60000000")
    return length


def test_what_was_asked_before_is_answered_before(server: RedisServer) -> None:
    async def main() -> None:
        limiter = AsyncRedisRateLimiter("5/minute", server.url, name="ends", timeout=PATIENT_S)
        await limiter.allow("other")
        server.ask("SCRIPT", "FLUSH")  # they are sent anew
        asked = [asyncio.create_task(limiter.allow("k")) for _ in range(8)]
        await asyncio.sleep(0)
        await limiter.close()
        assert await asyncio.gather(*asked) == [True] * 5 + [False] * 3
        assert limiter._counters.read().failures == 0

    asyncio.run(main())
    assert server.clients() == []


def test_who_still_waits_is_decided_on_before_the_policy_is_closed(server: RedisServer) -> None:
    async def main() -> None:
        with TcpProxy(server.port) as proxy:
            url = f"redis://127.0.0.1:{proxy.port}"
            limiter = AsyncRedisRateLimiter("5/minute", url, name="ends", timeout=0.3)
            await limiter.allow("other")
            proxy.hold()
            asked = asyncio.create_task(limiter.allow("k"))
            await asyncio.sleep(0)
            await limiter.close()
            assert await asked
            assert limiter._counters.read().degraded == 1
            assert limiter._policy._local is None
            proxy.release()

    asyncio.run(main())


@pytest.mark.parametrize("accepted", [False, True])
def test_closed_while_it_connects_no_task_is_left(server: RedisServer, accepted: bool) -> None:
    loop = asyncio.new_event_loop()
    told: list[object] = []
    loop.set_exception_handler(lambda _, what: told.append(what))

    async def main(proxy: TcpProxy) -> None:
        url = f"redis://127.0.0.1:{proxy.port}"
        limiter = AsyncRedisRateLimiter("5/minute", url, timeout=PATIENT_S)
        asked = asyncio.create_task(limiter.allow("k"))
        await asyncio.sleep(0)
        while accepted and not proxy.accepted:
            await asyncio.sleep(0.001)
        asked.cancel()
        await asyncio.wait((asked,))
        await limiter.close()

    with TcpProxy(server.port) as proxy:
        proxy.hold()
        loop.run_until_complete(main(proxy))
        assert asyncio.all_tasks(loop) == set()
        gc.collect()
        proxy.release()
    loop.close()
    assert told == []


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_loan_on_its_way_is_given_back_at_the_end(server: RedisServer, cancelled: bool) -> None:
    async def main() -> None:
        with TcpProxy(server.port) as proxy:
            url = f"redis://127.0.0.1:{proxy.port}"
            lease = Lease(0.5, 5.0)
            limiter = AsyncRedisRateLimiter(
                "100/minute", url, name="ends", lease=lease, timeout=PATIENT_S
            )
            await lend(limiter, "other")  # so that the server knows the script
            for _ in range(HOT - 1):
                await limiter.allow("k")
            proxy.hold()
            asked = asyncio.create_task(limiter.allow("k"))
            while counted(server, "k") == HOT - 1:
                await asyncio.sleep(0.001)
            if cancelled:
                asked.cancel()
            closing = asyncio.create_task(limiter.close())
            await asyncio.sleep(0)
            proxy.release()
            await closing
            assert cancelled or await asked

    asyncio.run(main())
    assert counted(server, "k") == HOT - cancelled


def test_what_is_just_given_back_arrives(server: RedisServer) -> None:
    async def main() -> None:
        limiter = AsyncRedisRateLimiter(
            "100/minute", server.url, name="ends", lease=Lease(0.5, 5.0), timeout=PATIENT_S
        )
        left = await lend(limiter, "k")
        assert counted(server, "k") == HOT + left
        assert limiter._loans is not None
        due = limiter._loans.everything()
        assert due
        limiter._start(limiter._hold(limiter._returning(due)))  # as its timer does
        await limiter.close()

    asyncio.run(main())
    assert counted(server, "k") == HOT


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")
@pytest.mark.filterwarnings("ignore:loop is closed:ResourceWarning")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore:unclosed resource:ResourceWarning")
def test_what_a_closed_loop_was_lent_the_next_one_gives_back(server: RedisServer) -> None:
    limiter = AsyncRedisRateLimiter(
        "100/minute", server.url, name="ends", lease=Lease(0.5, 0.5), timeout=PATIENT_S
    )

    async def next_one() -> None:
        await limiter.peek("other")  # which is lent nothing
        while counted(server, "k") > HOT:
            await asyncio.sleep(0.01)
        await limiter.close()

    left = asyncio.run(lend(limiter, "k"))
    assert counted(server, "k") == HOT + left
    asyncio.run(asyncio.wait_for(next_one(), PATIENT_S))
    gc.collect()  # what it warns of is ignored here


def test_closed_in_another_thread_its_own_loop_closes_the_connection(server: RedisServer) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)  # it would say so if another thread touched it
        limiter = AsyncRedisRateLimiter("5/minute", server.url, name="ends", timeout=PATIENT_S)
        await limiter.allow("k")
        wrong: list[BaseException] = []

        def close() -> None:
            try:
                asyncio.run(limiter.close())
            except BaseException as error:
                wrong.append(error)

        thread = threading.Thread(target=close)
        thread.start()
        await loop.run_in_executor(None, thread.join)
        while server.clients():
            await asyncio.sleep(0.01)
        assert wrong == []

    asyncio.run(asyncio.wait_for(main(), PATIENT_S))


def test_a_reset_that_is_cancelled_on_its_way_leaves_no_denial(server: RedisServer) -> None:
    async def main() -> None:
        with TcpProxy(server.port) as proxy:
            url = f"redis://127.0.0.1:{proxy.port}"
            async with AsyncRedisRateLimiter(
                "1/minute", url, name="ends", timeout=PATIENT_S
            ) as limiter:
                assert [await limiter.allow("k") for _ in range(2)] == [True, False]
                await limiter.reset("other")  # so that the server knows the script
                proxy.hold()
                reset = asyncio.create_task(limiter.reset("k"))
                while counted(server, "k"):
                    await asyncio.sleep(0.001)
                reset.cancel()
                await asyncio.wait((reset,))
                proxy.release()
                assert await limiter.allow("k")

    asyncio.run(main())
