"""httpx's clients with our transports, against a server that tells them to wait."""

from __future__ import annotations

import asyncio
import importlib
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest

from nanolimit import Backoff, ManualClock, Quota, RateLimiter, RateLimitExceeded
from nanolimit.integrations.httpx import (
    IDEMPOTENT,
    AsyncRateLimitTransport,
    RateLimitTimeout,
    RateLimitTransport,
    by_host,
)
from origin import Answer, Origin, always, check_pace, first
from server import EXAMPLES
from tools import at_hand
from waiters import PATIENCE_S, Waiting, lines, until, waiting

Library = Callable[[Callable[[], Any]], None]


def refused(seconds: object, status: int = 429) -> Answer:
    return Answer(status, [("Retry-After", str(seconds))], b"too many")


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        yield server


@pytest.fixture
def manual() -> ManualClock:
    return ManualClock(1_000)


def in_asyncio(main: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def in_trio(main: Callable[[], Any]) -> None:
    import trio

    async def patient() -> None:
        with trio.fail_after(PATIENCE_S):
            await main()

    trio.run(patient)


@pytest.fixture(params=[in_asyncio, in_trio], ids=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Library:
    library: Library = request.param
    return library


async def together(*tasks: Callable[[], Any]) -> None:
    """Run them all, in the library that runs."""
    import anyio

    async with anyio.create_task_group() as group:
        for task in tasks:
            group.start_soon(task)


# Pacing


def test_threads_share_one_pace(origin: Origin) -> None:
    limit, per = 5, 0.1
    began_s = time.monotonic()
    with httpx.Client(transport=RateLimitTransport(Quota(limit, per))) as client:
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda n: client.get(f"{origin.url}/{n}"), range(23)))
    assert [answer.status_code for answer in answers] == [200] * 23
    assert len(origin.arrivals) == 23
    check_pace(origin.arrivals, began_s, limit, per)


def test_tasks_share_one_pace(origin: Origin, run: Library) -> None:
    limit, per = 5, 0.1
    began_s = time.monotonic()

    async def main() -> None:
        transport = AsyncRateLimitTransport(Quota(limit, per))
        async with httpx.AsyncClient(transport=transport) as client:

            async def get() -> None:
                assert (await client.get(origin.url)).status_code == 200

            await together(*[get] * 23)

    run(main)
    assert len(origin.arrivals) == 23
    check_pace(origin.arrivals, began_s, limit, per)


def test_clients_of_both_kinds_share_a_limiter(origin: Origin) -> None:
    limit, per = 4, 0.1
    limiter = RateLimiter(limit, per=per)
    began_s = time.monotonic()

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncRateLimitTransport(limiter)) as client:
            await asyncio.gather(*[client.get(origin.url) for _ in range(9)])

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    with httpx.Client(transport=RateLimitTransport(limiter)) as client:
        for _ in range(9):
            client.get(origin.url)
    thread.join(PATIENCE_S)
    assert len(origin.arrivals) == 18
    check_pace(origin.arrivals, began_s, limit, per)


def test_in_the_order_in_which_they_came(origin: Origin, manual: ManualClock) -> None:
    limiter = RateLimiter(1, per=60, clock=manual)
    with httpx.Client(transport=RateLimitTransport(limiter)) as client:
        client.get(f"{origin.url}/0")
        waiters = []
        for number in range(1, 4):
            url = f"{origin.url}/{number}"
            waiters.append(Waiting(limiter, lambda url=url: client.get(url)))  # type: ignore[misc]
        for number, waiter in enumerate(waiters, 1):
            manual.advance(59.999_999_999)
            assert len(origin.arrivals) == number
            manual.advance(1e-9)
            waiter.result()
    assert [arrival.path for arrival in origin.arrivals] == ["/0", "/1", "/2", "/3"]


def test_every_host_has_a_pace_of_its_own(origin: Origin, manual: ManualClock) -> None:
    transport = RateLimitTransport(RateLimiter(1, per=60, clock=manual), timeout=0)
    with Origin() as another, httpx.Client(transport=transport) as client:
        client.get(origin.url)
        client.get(another.url)
        for server in (origin, another):
            with pytest.raises(RateLimitTimeout):
                client.get(server.url)
    assert transport.limiter.peek(origin.url).remaining == 0
    assert len(transport.limiter) == 2


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("HTTPS://User:Secret@API.Example.ORG:443/v1?q=1#x", "https://api.example.org"),
        ("http://api.example.org:443/", "http://api.example.org:443"),
        ("http://api.example.org:80/", "http://api.example.org"),
        ("http://[2001:DB8::1]:8080/", "http://[2001:db8::1]:8080"),
        ("https://b\u00fccher.example/", "https://xn--bcher-kva.example"),
    ],
)
def test_by_host(url: str, key: str) -> None:
    assert by_host(httpx.Request("GET", url)) == key


def test_a_key_of_one_s_own(origin: Origin, manual: ManualClock) -> None:
    limiter = RateLimiter(1, per=60, clock=manual)
    transport = RateLimitTransport(
        limiter, key=lambda request: request.headers["X-Token"], timeout=0
    )
    with httpx.Client(transport=transport) as client:
        client.get(origin.url, headers={"X-Token": "a"})
        client.get(origin.url, headers={"X-Token": "b"})
        with pytest.raises(RateLimitTimeout):
            client.get(origin.url, headers={"X-Token": "a"})
        with pytest.raises(KeyError):
            client.get(origin.url)
    with httpx.Client(transport=RateLimitTransport(limiter, key=lambda request: None)) as client:  # type: ignore[arg-type, return-value]
        with pytest.raises(TypeError, match="NoneType"):
            client.get(origin.url)
    with httpx.Client(transport=RateLimitTransport(limiter, key="all", timeout=0)) as client:
        client.get(origin.url)
        with pytest.raises(RateLimitTimeout):
            client.get(origin.url.replace("127.0.0.1", "localhost"))
    assert len(origin.arrivals) == 3


def test_each_hop_of_a_redirect_takes_its_turn(origin: Origin, manual: ManualClock) -> None:
    with Origin() as goal:
        origin.script = first(Answer(302, [("Location", f"{goal.url}/there")]))
        limiter = RateLimiter(5, per=60, clock=manual)
        with httpx.Client(transport=RateLimitTransport(limiter), follow_redirects=True) as client:
            assert client.get(origin.url).url == f"{goal.url}/there"
        assert limiter.peek(origin.url).remaining == 4
        assert limiter.peek(goal.url).remaining == 4
        assert len(goal.arrivals) == 1


# Time-outs


def test_a_time_out_is_httpx_s_and_ours(origin: Origin, manual: ManualClock) -> None:
    limiter = RateLimiter(1, per=60, clock=manual)
    transport = RateLimitTransport(limiter, timeout=timedelta(seconds=30))
    with httpx.Client(transport=transport) as client:
        client.get(origin.url)
        waiter = Waiting(limiter, lambda: client.get(origin.url))
        manual.advance(30)
        with pytest.raises(httpx.TimeoutException) as caught:
            waiter.result()
    error = caught.value
    assert isinstance(error, httpx.PoolTimeout)
    assert isinstance(error, RateLimitExceeded)
    assert isinstance(error, RateLimitTimeout)
    assert "30.000 s" in str(error)
    assert "within timeout=30 s" in str(error)
    assert "limit of 1 per 60 s" in str(error)
    assert error.retry_after == 30.0
    assert error.key == origin.url
    assert error.key not in str(error)
    assert error.request.url == origin.url
    assert len(origin.arrivals) == 1
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.key, copied.retry_after) == (str(error), error.key, 30.0)


def test_a_task_that_is_cancelled_gives_its_place_back(origin: Origin, manual: ManualClock) -> None:
    limiter = RateLimiter(1, per=60, clock=manual)

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncRateLimitTransport(limiter)) as client:
            await client.get(origin.url)
            task = asyncio.create_task(client.get(origin.url))
            while waiting(limiter) == 0:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert lines(limiter) == 0
            manual.advance(60)
            await client.get(origin.url)

    in_asyncio(main)
    assert len(origin.arrivals) == 2


# What servers say


@pytest.mark.parametrize(
    "answer",
    [
        refused(100),
        refused(100, 503),
        Answer(429, [("RateLimit", '"a";r=0;t=100, "b";r=3;t=5000')]),
        Answer(200, [("RateLimit", '"a";r=0;t=100'), ("RateLimit", '"b";r=3;t=5000')]),
        Answer(404, [("X-RateLimit-Remaining", "0"), ("X-RateLimit-Reset", "100")]),
        Answer(429, [("RateLimit", '"a";r=0'), ("RateLimit-Policy", '"a";q=5;w=100')]),
    ],
)
def test_advice_holds_for_all(origin: Origin, manual: ManualClock, answer: Answer) -> None:
    """Of the same host; for every thread, task and transport with that limiter, and for itself."""
    origin.script = first(answer)
    limiter = RateLimiter(50, per=60, clock=manual)
    with httpx.Client(transport=RateLimitTransport(limiter, max_wait=100)) as client:
        assert client.get(origin.url).status_code == answer.status
        assert not limiter.allow(origin.url), "nor for who asks the limiter itself"
        waiter = Waiting(limiter, lambda: client.get(origin.url))
        another = RateLimitTransport(limiter, timeout=0, max_wait=None)
        with httpx.Client(transport=another) as second, pytest.raises(RateLimitTimeout) as caught:
            second.get(origin.url)
        assert caught.value.retry_after == 100.0
        assert "left alone for another 100.000 s" in str(caught.value)

        async def main() -> None:
            transport = AsyncRateLimitTransport(limiter, timeout=0, max_wait=None)
            async with httpx.AsyncClient(transport=transport) as third:
                with pytest.raises(RateLimitTimeout):
                    await third.get(origin.url)

        in_asyncio(main)
        manual.advance(99.999_999_999)
        assert len(origin.arrivals) == 1
        assert not waiter.done
        manual.advance(1e-9)
        assert waiter.result().status_code == 200  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(429),
        Answer(200, [("Retry-After", "100")]),
        Answer(301, [("Retry-After", "100"), ("Location", "/")]),
        Answer(500, [("Retry-After", "100")]),
        refused(0),
        # a tenth of a nanosecond
        Answer(200, [("X-RateLimit-Remaining", "0"), ("X-RateLimit-Reset", "0.0000000001")]),
        refused("Sun, 06 Nov 1994 08:49:37 GMT"),
        refused("never"),
        Answer(200, [("RateLimit", '"a";r=1;t=100')]),
        Answer(200, [("RateLimit", '"a";r=0;t=100'), ("RateLimit", "nonsense;;")]),
        Answer(200, [("RateLimit", '"a";r=0;t=100'), ("Age", "5")]),
    ],
)
def test_what_is_no_advice_delays_nobody(origin: Origin, answer: Answer) -> None:
    origin.script = first(answer)
    with httpx.Client(transport=RateLimitTransport(None, timeout=0, max_wait=None)) as client:
        assert client.get(origin.url).status_code == answer.status
        assert client.get(origin.url).status_code == 200


def test_not_if_it_is_not_to_obey(origin: Origin) -> None:
    origin.script = first(refused(100))
    with httpx.Client(transport=RateLimitTransport(None, timeout=0, obey=False)) as client:
        assert client.get(origin.url).status_code == 429
        assert client.get(origin.url).status_code == 200


def test_statuses_of_one_s_own(origin: Origin) -> None:
    origin.script = first(refused(100), refused(100, 403))
    transport = RateLimitTransport(None, timeout=0, statuses=iter([403]))
    with httpx.Client(transport=transport) as client:
        assert client.get(origin.url).status_code == 429
        assert client.get(origin.url).status_code == 403
        with pytest.raises(RateLimitTimeout):
            client.get(origin.url)


def test_the_longer_of_two_blocks_stays(origin: Origin, manual: ManualClock) -> None:
    """Three requests are under way at once; each is answered when the answer before was read."""
    limiter = RateLimiter(50, per=60, clock=manual)
    came: list[int] = []
    told: list[float] = []

    def script(number: int, method: str, path: str) -> Answer:
        nth = int(path.strip("/"))
        came.append(nth)
        until(lambda: len(came) == 3 and len(told) == nth)
        return refused((20, 40, 9)[nth])

    def get(nth: int) -> None:
        client.get(f"{origin.url}/{nth}")
        told.append(limiter.peek(origin.url).retry_after)

    origin.script = script
    with httpx.Client(transport=RateLimitTransport(limiter)) as client:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(get, range(3)))
    assert told == [20.0, 40.0, 40.0]


def test_real_time(origin: Origin, run: Library) -> None:
    """What is asked after the refusal was read comes when the server's time is over."""
    origin.script = first(refused(1))

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncRateLimitTransport(None)) as client:
            assert (await client.get(origin.url)).status_code == 429

            async def get() -> None:
                assert (await client.get(origin.url)).status_code == 200

            await together(*[get] * 5)

    run(main)
    told, *rest = origin.arrivals
    assert len(rest) == 5
    for arrival in rest:
        assert arrival.came_s - told.answered_s >= 1.0


@pytest.mark.parametrize("max_wait", [60, 0, timedelta(seconds=60)])
def test_more_than_max_wait_is_not_waited_out(
    origin: Origin, manual: ManualClock, max_wait: Any
) -> None:
    """Who is in line when it begins is told when its turn comes; who comes later at once."""
    limiter = RateLimiter(1, per=10, clock=manual)
    transport = RateLimitTransport(limiter, max_wait=max_wait, retries=5)
    reply = threading.Event()

    def script(number: int, method: str, path: str) -> Answer:
        assert reply.wait(PATIENCE_S)
        return refused(3600) if number == 0 else Answer()

    origin.script = script
    with httpx.Client(transport=transport) as client, ThreadPoolExecutor(1) as pool:
        told = pool.submit(client.get, origin.url)
        until(lambda: limiter.peek(origin.url).remaining == 0)
        early = [Waiting(limiter, lambda: client.get(origin.url)) for _ in range(3)]
        reply.set()
        assert told.result(PATIENCE_S).status_code == 429, "and it is not sent again"
        with pytest.raises(RateLimitTimeout, match=r"left alone for 3600\.000 s, max_wait is"):
            client.get(origin.url)
        manual.advance(10)
        for waiter in early:
            with pytest.raises(RateLimitTimeout, match=r"left alone for 3590\.000 s, max_wait is"):
                waiter.result()
        assert len(origin.arrivals) == 1
        manual.advance(3590)
        assert client.get(origin.url).status_code == 200
        assert lines(limiter) == 0


def test_tasks_wait_out_no_more_either(run: Library, origin: Origin) -> None:
    origin.script = first(refused(3600))

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncRateLimitTransport(None, retries=5)) as client:
            assert (await client.get(origin.url)).status_code == 429
            with pytest.raises(RateLimitTimeout, match=r"max_wait is 60 s"):
                await client.get(origin.url)

    run(main)
    assert len(origin.arrivals) == 1


@pytest.mark.parametrize(
    "answer",
    [
        refused("9" * 60_000),
        refused("9" * 19),
        refused("Fri, 31 Dec 9999 23:59:59 GMT"),
        Answer(200, [("RateLimit", '"a";r=0;t=999999999999999')]),
        Answer(200, [("X-RateLimit-Remaining", "-1"), ("X-RateLimit-Reset", "31000000")]),
    ],
)
def test_no_server_is_believed_to_mean_more_than_a_day(
    origin: Origin, manual: ManualClock, answer: Answer
) -> None:
    origin.script = first(answer)
    transport = RateLimitTransport(RateLimiter(50, per=60, clock=manual))
    with httpx.Client(transport=transport) as client:
        assert client.get(origin.url).status_code == answer.status
        with pytest.raises(RateLimitTimeout) as caught:
            client.get(origin.url)
        assert caught.value.retry_after == 86_400.0
        manual.advance(86_400)
        client.get(origin.url)


@pytest.mark.parametrize(
    "value", ["", " ", "\xfc\xff", "-5", "NaN", "0" * 15_000, "\u20ac".encode().decode("latin-1")]
)
def test_headers_that_make_no_sense(origin: Origin, value: str) -> None:
    names = ("Retry-After", "RateLimit", "RateLimit-Policy", "Date", "Age", "X-RateLimit-Reset")
    fields = [(name, value) for name in names]
    origin.script = first(*[Answer(status, fields) for status in (429, 200)])
    with httpx.Client(transport=RateLimitTransport(None, timeout=0)) as client:
        assert [client.get(origin.url).status_code for _ in range(3)] == [429, 200, 200]


# Sending again


def test_a_refused_request_is_not_sent_again_unless_asked_for(origin: Origin) -> None:
    origin.script = first(refused(0))
    with httpx.Client(transport=RateLimitTransport(None)) as client:
        answer = client.get(origin.url)
        assert answer.status_code == 429
        assert answer.content == b"too many"
    assert len(origin.arrivals) == 1


def test_again_when_the_time_is_over(origin: Origin, manual: ManualClock) -> None:
    limiter = RateLimiter(50, per=60, clock=manual)
    origin.script = first(refused(30), refused(7, 503))
    with httpx.Client(transport=RateLimitTransport(limiter, retries=2)) as client:
        waiter = Waiting(limiter, lambda: client.get(f"{origin.url}/path", headers={"X-Me": "1"}))
        assert origin.statuses == [429]
        assert limiter.peek(origin.url).retry_after == 30.0
        manual.advance(30)
        until(lambda: len(origin.arrivals) == 2 and waiting(limiter) == 1)
        manual.advance(7)
        assert waiter.result().status_code == 200  # type: ignore[attr-defined]
    assert origin.statuses == [429, 503, 200]
    assert {(one.path, one.headers["X-Me"]) for one in origin.arrivals} == {("/path", "1")}
    assert limiter.peek(origin.url).remaining == 47, "each attempt counts"


def test_real_time_again(origin: Origin, run: Library) -> None:
    origin.script = first(refused(1), refused(0))

    async def main() -> None:
        transport = AsyncRateLimitTransport("100/second", retries=3)
        async with httpx.AsyncClient(transport=transport) as client:
            assert (await client.get(origin.url)).status_code == 200

    run(main)
    told, second, third = origin.arrivals
    assert second.came_s - told.answered_s >= 1.0
    assert third.status == 200


def test_no_more_often_than_asked_for(origin: Origin) -> None:
    origin.script = lambda number, method, path: refused(0)
    with httpx.Client(transport=RateLimitTransport(None, retries=3)) as client:
        assert client.get(origin.url).status_code == 429
    assert len(origin.arrivals) == 4


def test_without_a_time_after_one_second_then_two(origin: Origin, manual: ManualClock) -> None:
    limiter = RateLimiter(50, per=60, clock=manual)
    origin.script = first(Answer(429), Answer(503), Answer(429))
    with httpx.Client(transport=RateLimitTransport(limiter, retries=3)) as client:
        waiter = Waiting(limiter, lambda: client.get(origin.url))
        for attempts, pause_s in enumerate((1, 2, 4), 1):
            until(lambda attempts=attempts: len(origin.arrivals) == attempts)  # type: ignore[misc]
            until(lambda: waiting(limiter) == 1)
            assert limiter.peek(origin.url).retry_after == pause_s
            manual.advance(pause_s)
        assert waiter.result().status_code == 200  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "POST"])
def test_what_may_be_sent_twice(origin: Origin, method: str) -> None:
    origin.script = first(refused(0))
    with httpx.Client(transport=RateLimitTransport(None, retries=1)) as client:
        again = client.request(method, origin.url, headers={"Content-Length": "0"})
    assert again.status_code == (200 if method in IDEMPOTENT else 429)


def test_others_if_the_caller_says_so(origin: Origin) -> None:
    origin.script = first(refused(0))
    transport = RateLimitTransport(None, retries=1, methods=[*IDEMPOTENT, "post"])
    with httpx.Client(transport=transport) as client:
        assert client.post(origin.url, json={"a": 1}).status_code == 200
    assert [arrival.body for arrival in origin.arrivals] == [b'{"a":1}'] * 2


def test_a_body_that_is_used_up_is_not_sent_again(origin: Origin) -> None:
    origin.script = lambda number, method, path: refused(0)

    def parts() -> Iterator[bytes]:
        yield b"one, "
        yield b"two"

    with httpx.Client(transport=RateLimitTransport(None, retries=5)) as client:
        assert client.put(origin.url, content=parts()).status_code == 429
    assert [arrival.body for arrival in origin.arrivals] == [b"one, two"]


def test_not_if_it_would_have_to_wait_longer_than_it_may(
    origin: Origin, manual: ManualClock
) -> None:
    limiter = RateLimiter(50, per=60, clock=manual)
    origin.script = first(refused(30))
    with httpx.Client(transport=RateLimitTransport(limiter, retries=5, timeout=29)) as client:
        answer = client.get(origin.url)
        assert (answer.status_code, answer.content) == (429, b"too many")


def test_a_limiter_that_only_watches_sends_nothing_too_soon(origin: Origin) -> None:
    """It denies nobody, and so nothing keeps a second attempt waiting."""
    limiter = RateLimiter(50, per=60, enforce=False)
    origin.script = first(refused(30))
    with httpx.Client(transport=RateLimitTransport(limiter, retries=5)) as client:
        assert client.get(origin.url).status_code == 429
        assert client.get(origin.url).status_code == 200


def test_no_room_for_another_block(origin: Origin, caplog: pytest.LogCaptureFixture) -> None:
    limiter = RateLimiter(50, per=60, max_keys=1)
    limiter.set_quota("another", Quota(1, per=60))
    origin.script = first(refused(30))
    with httpx.Client(transport=RateLimitTransport(limiter, retries=5)) as client:
        assert client.get(origin.url).status_code == 429
    assert "30.000 s is lost" in caplog.text


def test_penalties_are_not_for_those_who_wait(origin: Origin, manual: ManualClock) -> None:
    limiter = RateLimiter(1, per=60, clock=manual, backoff=Backoff(after=1, base=1000))
    with httpx.Client(transport=RateLimitTransport(limiter)) as client:
        client.get(origin.url)
        waiter = Waiting(limiter, lambda: client.get(origin.url))
        manual.advance(60)
        waiter.result()


# Around it


def test_a_streamed_answer(origin: Origin) -> None:
    body = bytes(range(256)) * 1024
    origin.script = lambda number, method, path: Answer(body=body)
    with httpx.Client(transport=RateLimitTransport("100/second")) as client:
        with client.stream("GET", origin.url) as answer:
            parts = list(answer.iter_raw(10_000))
    assert len(parts) > 10
    assert b"".join(parts) == body

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncRateLimitTransport("100/second")) as client:
            async with client.stream("GET", origin.url) as answer:
                assert b"".join([part async for part in answer.aiter_raw(10_000)]) == body

    in_asyncio(main)


class Inner(httpx.MockTransport):
    """Notes what it is asked, and which of its answers were closed."""

    def __init__(self) -> None:
        super().__init__(self.answer)
        self.calls: list[str] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.calls.append("send")
        return httpx.Response(429, headers={"Retry-After": "0"}, stream=_Body(self.calls))

    def __enter__(self) -> Inner:
        self.calls.append("enter")
        return self

    def close(self) -> None:
        self.calls.append("close")

    async def __aenter__(self) -> Inner:
        self.calls.append("enter")
        return self

    async def aclose(self) -> None:
        self.calls.append("close")


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def __iter__(self) -> Iterator[bytes]:
        yield b"x"

    async def __aiter__(self) -> Any:
        yield b"x"

    def close(self) -> None:
        self._calls.append("closed")

    async def aclose(self) -> None:
        self._calls.append("closed")


WITHIN = ["enter", "send", "closed", "send", "closed", "close"]


def test_any_transport_within() -> None:
    """The answer that is not the caller's is closed before the next attempt."""
    inner = Inner()
    with httpx.Client(transport=RateLimitTransport(None, inner, retries=1)) as client:
        assert client.get("https://example.org").text == "x"
    assert inner.calls == WITHIN


def test_any_asynchronous_transport_within(run: Library) -> None:
    inner = Inner()

    async def main() -> None:
        transport = AsyncRateLimitTransport(None, inner, retries=1)
        async with httpx.AsyncClient(transport=transport) as client:
            assert (await client.get("https://example.org")).text == "x"

    run(main)
    assert inner.calls == WITHIN


def test_for_some_hosts_only() -> None:
    """By httpx's own mounts."""
    paced = RateLimitTransport("1/hour", Inner(), timeout=0)
    client = httpx.Client(transport=Inner(), mounts={"https://slow.example": paced})
    with client:
        for _ in range(3):
            client.get("https://fast.example")
        client.get("https://slow.example")
        with pytest.raises(RateLimitTimeout):
            client.get("https://slow.example")


@pytest.mark.parametrize("kind", [RateLimitTransport, AsyncRateLimitTransport])
@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"limiter": 10}, TypeError, "limiter must be a RateLimiter"),
        ({"limiter": "ten a second"}, ValueError, "ten a second"),
        ({"transport": object()}, TypeError, "transport must be an httpx"),
        ({"transport": httpx.Client}, TypeError, "transport must be an httpx"),
        ({"key": None}, TypeError, "NoneType"),
        ({"key": 1.5}, TypeError, "float"),
        ({"timeout": -1}, ValueError, "timeout must be >= 0"),
        ({"timeout": "1"}, TypeError, "timeout must be seconds"),
        ({"retries": -1}, ValueError, "retries must be from 0 to 1000, not -1"),
        ({"retries": 1001}, ValueError, "retries must be from 0 to 1000"),
        ({"retries": 1.0}, TypeError, "retries must be an int"),
        ({"retries": 1, "obey": False}, ValueError, "retries needs obey=True"),
        ({"max_wait": -1}, ValueError, "max_wait must be >= 0 seconds"),
        ({"max_wait": float("nan")}, ValueError, "max_wait must be a finite"),
        ({"max_wait": "60"}, TypeError, "max_wait must be seconds"),
        ({"statuses": 429}, TypeError, "statuses must be several numbers"),
        ({"statuses": "429"}, TypeError, "statuses must be several numbers"),
        ({"statuses": ["429"]}, TypeError, "statuses must be an int"),
        ({"statuses": [200]}, ValueError, "statuses must be from 400 to 599, not 200"),
        ({"methods": "GET"}, TypeError, "methods must be several names"),
        ({"methods": [1]}, TypeError, "methods must be strs"),
        ({"obey": 1}, TypeError, "obey must be True or False"),
    ],
)
def test_bad_arguments(
    kind: Any, arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        kind(**{"limiter": None, **arguments})


def test_they_say_what_they_are() -> None:
    text = repr(RateLimitTransport(RateLimiter("10/second", name="github")))
    assert text.startswith("<RateLimitTransport of <RateLimiter 'github' 10 per 1 s")
    assert "AsyncRateLimitTransport of" in repr(AsyncRateLimitTransport("10/second"))


def test_the_example() -> None:
    """Those that are sent again are all served. (How the others fare, is the machine's affair.)"""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(at_hand(EXAMPLES / "client.py"))],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == 4
    assert all("8 served, 0 refused" in line for line in told[2:]), told


def test_the_script_of_this_test_is_heard(origin: Origin) -> None:
    """The server answers what it is told, so that the tests above do not pass by themselves."""
    assert origin.script is always
    origin.script = first(refused(5))
    with httpx.Client() as client:
        assert client.get(origin.url).headers["Retry-After"] == "5"
        assert client.get(origin.url).status_code == 200


def test_without_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "nanolimit.integrations.httpx")
    with pytest.raises(ImportError, match=r"pip install 'nanolimit\[httpx\]'"):
        importlib.import_module("nanolimit.integrations.httpx")
