"""The dashboard's stream: rates, history, limiters that close, clients and servers that go."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dashboards import Stream, asked, run, scope_of
from nanolimit import ManualClock, Quota, RateLimiter, SharedTableError, dashboard
from nanolimit.dashboard import application, sampler, shutdown
from nanolimit.dashboard.source import SPAN_S, Source


@pytest.fixture
def limiter() -> Iterator[RateLimiter]:
    with RateLimiter("2/minute", name="api", track_top=10) as made:
        yield made


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings each hundredth of a second instead of each second."""
    monkeypatch.setattr(sampler, "PERIOD_S", 0.01)


def test_rates_are_differences_by_the_time_between(limiter: RateLimiter) -> None:
    source = Source(limiter)
    source.read(100.0)
    assert source.history(100.0) == [[], [], []]  # a rate needs two readings
    for _ in range(6):
        limiter.allow("ann")
    source.read(101.0)
    source.read(103.0)
    limiter.allow("ann")
    source.read(103.5)
    assert source.history(103.5) == [[101.0, 103.0, 103.5], [2.0, 0.0, 0.0], [4.0, 0.0, 2.0]]
    assert source.now(103.5)["sample"] == [103.5, 0.0, 2.0]
    assert source.now(103.5)["recent"] == {"allowed": 2, "denied": 5}


def test_what_is_older_than_ten_minutes_is_gone(limiter: RateLimiter) -> None:
    source = Source(limiter)
    for second in range(700):
        limiter.allow("ann")
        source.read(float(second))
    times, allowed, denied = source.history(699.0)
    assert len(times) == len(allowed) == len(denied) == SPAN_S
    assert times[0] == 100.0
    assert source.now(699.0)["recent"] == {"allowed": 0, "denied": 600}
    # later readings need not have been taken for that
    assert source.history(1100.0)[0][0] == 500.0
    assert source.now(1100.0)["recent"]["denied"] == 200


def test_a_time_in_which_nobody_looked_is_a_gap(limiter: RateLimiter) -> None:
    source = Source(limiter)
    source.read(0.0)
    source.read(1.0)
    for _ in range(10):
        limiter.allow("ann")
    source.read(60.0)
    source.read(61.0)
    assert source.history(61.0) == [[1.0, 60.0, 61.0], [0.0, None, 0.0], [0.0, None, 0.0]]
    # how many is known all the same, if they were within the ten minutes
    assert source.now(61.0)["recent"] == {"allowed": 2, "denied": 8}
    limiter.allow("ann")
    source.read(1000.0)
    source.read(1001.0)
    assert source.now(1001.0)["recent"] == {"allowed": 0, "denied": 0}


class Table:
    """A watched thing whose figures are set by hand."""

    name, quotas, algorithm, track_top, closed = "t", (Quota(5, 60),), "sliding-log", 0, False

    def __init__(self) -> None:
        self.allowed = self.denied = 0
        self.error: Exception | None = None

    def stats(self) -> Any:
        if self.error is not None:
            raise self.error
        zeros = (
            "keys", "capacity", "memory_bytes", "evicted", "overflowed", "would_deny", "stalled",
            "log_bytes", "log_capacity_bytes",
        )  # fmt: skip
        return SimpleNamespace(allowed=self.allowed, denied=self.denied, **dict.fromkeys(zeros, 0))

    def top(self, n: int = 10) -> list[Any]:
        raise AssertionError("nobody asked for it")


def test_a_table_that_was_made_anew_counts_from_zero() -> None:
    """A rate below zero would be nonsense."""
    table = Table()
    source = Source(table)
    table.allowed = 1000
    source.read(0.0)
    table.allowed = 1010
    source.read(1.0)
    table.allowed = 7
    source.read(2.0)
    table.allowed = 9
    source.read(3.0)
    assert source.history(3.0)[1] == [10.0, None, 2.0]


def test_a_table_that_is_gone_and_comes_back() -> None:
    table = Table()
    table.allowed = 3
    source = Source(table)
    source.read(0.0)
    source.read(1.0)
    table.error = SharedTableError("there is no table 't'")
    for second in range(2, 10):
        source.read(float(second))
    told = source.now(9.0)
    assert (told["state"], told["problem"]) == ("unreadable", ["there is no table 't'"])
    assert told["counts"]["allowed"] == 3, "the last figures stay"
    assert told["sample"] is None
    assert told["quota"]
    table.error = None
    source.read(10.0)
    source.read(11.0)
    assert source.now(11.0)["state"] == "open"
    assert source.history(11.0) == [[1.0, 2.0, 11.0], [0.0, None, 0.0], [0.0, None, 0.0]]


def test_what_should_not_raise_and_does_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    table = Table()
    table.error = RuntimeError("broken <b>")
    source = Source(table)
    for second in range(5):
        source.read(float(second))
    assert source.now(5.0)["problem"] == ["broken <b>"]
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("nanolimit", "ERROR")
    assert "'t'" in record.getMessage()
    assert record.exc_info


def test_a_limit_that_changes_is_told(limiter: RateLimiter) -> None:
    source = Source(limiter)
    source.read(0.0)
    limiter.update("7/minute")
    source.read(1.0)
    assert source.now(1.0)["quota"] == ["7 requests in any 60 seconds, counted exactly"]


@pytest.mark.usefixtures("fast")
def test_a_stream_tells_the_past_and_then_each_reading(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter)

    async def main() -> None:
        async with Stream(app) as stream:
            fields = dict(stream.start["headers"])
            assert stream.start["status"] == 200
            assert fields[b"content-type"] == b"text/event-stream; charset=utf-8"
            assert fields[b"cache-control"] == b"no-store"
            assert fields[b"x-accel-buffering"] == b"no"
            assert b"content-security-policy" in fields
            assert await stream.event() == ("history", [[[], [], []]])
            for _ in range(3):
                limiter.allow("ann")
            now = await stream.until(lambda now: now["limiters"][0]["counts"]["denied"] == 1)
            assert now["limiters"][0]["counts"]["allowed"] == 2
            await stream.until(lambda now: now["limiters"][0]["recent"]["allowed"] == 2)
        async with Stream(app) as later:
            event = await later.event()
            assert event is not None
            assert event[0] == "history"
            ((times, allowed, _),) = event[1]
            assert len(times) >= 2
            assert max(allowed) > 0, "who comes later sees the past"

    run(main)


@pytest.mark.usefixtures("fast")
def test_a_limiter_that_closes_while_its_stream_runs(limiter: RateLimiter) -> None:
    with RateLimiter("1/minute", name="other") as other:

        async def main() -> None:
            async with Stream(dashboard.app(limiter, other)) as stream:
                await stream.until(lambda now: now["limiters"][0]["state"] == "open")
                limiter.close()
                now = await stream.until(lambda now: now["limiters"][0]["state"] == "closed")
                assert "closed" in "".join(now["limiters"][0]["problem"])
                assert now["limiters"][1]["state"] == "open"
                other.allow("x")
                await stream.until(lambda now: now["limiters"][1]["counts"]["allowed"] == 1)

        run(main)


@pytest.mark.usefixtures("fast")
def test_a_client_that_goes_leaves_nothing(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter)

    async def main() -> None:
        before = asyncio.all_tasks()
        streams = [Stream(app) for _ in range(5)]
        for stream in streams:
            await stream.__aenter__()
            await stream.event()
        assert app._streams == 5
        for stream in streams:
            await stream.__aexit__()
        assert app._streams == 0
        assert asyncio.all_tasks() == before

    run(main)


@pytest.mark.usefixtures("fast")
def test_a_client_that_reads_nothing_is_let_go(limiter: RateLimiter) -> None:
    """The server holds `send` back; the client closes meanwhile."""

    async def main() -> None:
        stuck = asyncio.Event()

        async def never() -> None:
            stuck.set()
            await asyncio.Event().wait()

        async with Stream(dashboard.app(limiter)) as stream:
            await stream.event()
            stream.before_send = never
            await asyncio.wait_for(stuck.wait(), 30)

    run(main)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("error", [OSError("gone"), ValueError("broken")])
def test_a_server_that_cannot_send(limiter: RateLimiter, error: Exception) -> None:
    """An OSError is how servers say that nobody is there any more; anything else is a fault."""

    async def main() -> None:
        async def fails() -> None:
            raise error

        stream = Stream(dashboard.app(limiter))
        await stream.__aenter__()
        stream.before_send = fails
        (end,) = await asyncio.gather(stream.task, return_exceptions=True)
        assert end is (None if isinstance(error, OSError) else error)

    run(main)


@pytest.mark.usefixtures("fast")
def test_a_stream_that_is_cancelled_leaves_nothing(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter)

    async def main() -> None:
        stream = Stream(app)
        await stream.__aenter__()
        stream.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream.task
        assert app._streams == 0

    run(main)


@pytest.mark.usefixtures("fast")
def test_so_many_streams_and_no_more(limiter: RateLimiter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "MAX_STREAMS", 2)
    app = dashboard.app(limiter)

    async def main() -> None:
        async with Stream(app), Stream(app):
            answer = await asked(app, scope_of("GET", "/events"))
            assert (answer.status, answer.field("retry-after")) == (503, "5")
        async with Stream(app) as stream:
            assert stream.start["status"] == 200

    run(main)


def lifespan(app: Any) -> tuple[Any, Any, Any]:
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def send(message: dict[str, Any]) -> None:
        said.put_nowait(message)

    return asyncio.ensure_future(app({"type": "lifespan"}, told.get, send)), told, said


@pytest.mark.usefixtures("fast")
def test_from_start_to_end_of_the_server_it_reads(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter)

    async def main() -> None:
        task, told, said = lifespan(app)
        told.put_nowait({"type": "lifespan.startup"})
        assert await said.get() == {"type": "lifespan.startup.complete"}
        source = app._sources[0]
        deadline = time.monotonic() + 30
        while not source.readings:  # nobody has asked for anything
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        async with Stream(app) as stream:
            await stream.event()
            told.put_nowait({"type": "lifespan.shutdown"})
            assert await said.get() == {"type": "lifespan.shutdown.complete"}
            await stream.ended()
        await task
        assert not app._sampler.running

    run(main)


@pytest.mark.usefixtures("fast")
def test_a_stream_ends_when_uvicorn_is_told_to(
    limiter: RateLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Server:
        should_exit = False

        def handle_exit(self, number: int, frame: object) -> None:
            self.should_exit = True

    server = Server()
    before = signal.signal(signal.SIGTERM, server.handle_exit)
    try:

        async def main() -> None:
            async with Stream(dashboard.app(limiter)) as stream:
                await stream.event()
                assert not shutdown.is_stopping()
                signal.raise_signal(signal.SIGTERM)
                await stream.ended()

        run(main)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not shutdown.is_stopping()


def test_readings_end_ten_minutes_after_the_last_who_asked(
    limiter: RateLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = dashboard.app(limiter)
    at = [1000.25]
    monkeypatch.setattr(sampler, "time", SimpleNamespace(monotonic=lambda: at[0], time=time.time))
    monkeypatch.setattr(sampler, "_pause_s", lambda: 0.0)
    readings = app._sources[0].readings

    async def until_read(seconds: float) -> None:
        at[0] += seconds
        before = len(readings)
        for _ in range(1000):
            await asyncio.sleep(0)
            if len(readings) > before or not app._sampler.running:
                return

    async def main() -> None:
        assert not app._sampler.running
        await asked(app, scope_of("GET", "/data.json"))
        assert app._sampler.running
        for _ in range(599):
            await until_read(1.0)
        assert len(readings) == 599
        assert app._sampler.running
        await until_read(2.0)
        assert not app._sampler.running
        await asked(app, scope_of("GET", "/data.json"))
        assert app._sampler.running
        # but where the server tells of its start and end, they go on without anybody
        app._sampler.keep()
        for _ in range(5):
            await until_read(300.0)
        assert app._sampler.running
        app._sampler.stop()
        assert not app._sampler.running

    run(main)


def test_of_two_threads_one_reads(limiter: RateLimiter) -> None:
    made = dashboard.app(limiter)._sampler

    class Lock:
        """Another thread had it, and has read meanwhile."""

        def __enter__(self) -> None:
            made._period = 2**40

        def __exit__(self, *exc: object) -> None:
            pass

    made._lock = Lock()  # type: ignore[assignment]
    made.poll()
    assert made.sources[0].now(0.0)["counts"] is None


def test_who_may_not_see_it_starts_nothing(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter, token="secret")

    async def main() -> None:
        for path in ("/", "/events", "/data.json", "/app.js"):
            await asked(app, scope_of("GET", path))
        assert not app._sampler.running

    run(main)


def test_it_goes_on_in_another_loop(limiter: RateLimiter) -> None:
    """A test client has a loop for each request; a server may be started twice."""
    app = dashboard.app(limiter)

    async def main() -> None:
        await asked(app, scope_of("GET", "/data.json"))
        timer = app._sampler._timer
        assert timer is not None
        assert timer[0] is asyncio.get_running_loop()

    run(main)
    run(main)


@pytest.mark.usefixtures("fast")
def test_streams_on_loops_of_several_threads(limiter: RateLimiter) -> None:
    app = dashboard.app(limiter)
    failures: list[BaseException] = []

    async def main() -> None:
        async with Stream(app) as stream:
            for _ in range(20):
                limiter.allow("ann")
                assert await stream.event() is not None
        app._sampler.stop()

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    times = [reading.at_s for reading in app._sources[0].readings]
    assert times == sorted(set(times))


def test_offenders_are_looked_for_only_while_somebody_watches() -> None:
    table = Table()
    table.track_top = 100  # type: ignore[misc]
    source = Source(table)
    source.read(0.0)
    source.read(1.0)  # `top` raises


def test_a_manual_clock_has_no_say_in_the_rates() -> None:
    with RateLimiter("5/minute", clock=ManualClock()) as limiter:
        source = Source(limiter)
        source.read(0.0)
        limiter.allow("a")
        source.read(1.0)
        assert source.now(1.0)["sample"] == [1.0, 1.0, 0.0]
