"""What only nanolimit:// has: its URI, its errors, its bounds, its pickles, its clocks."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from freezegun import freeze_time
from limits import RateLimitItemPerHour, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string
from limits.storage.base import (
    MovingWindowSupport,
    SlidingWindowCounterSupport,
    Storage,
    TimestampedSlidingWindow,
)
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

from nanolimit import NanolimitError, RateLimiter, SharedTableError
from nanolimit.compat import counts, shelf
from nanolimit.compat.epoch import EpochClock, closed_window_s, counted_s, tick_ns
from nanolimit.compat.limits import AsyncNanolimitStorage, NanolimitStorage
from sharing import in_child, python
from storages import STRATEGIES
from tools import at_hand

FIVE = RateLimitItemPerMinute(5)
MOST = 16_777_216


def files(tables: Path) -> list[str]:
    return sorted(path.name for path in tables.iterdir())


# The documentation


def test_the_code_in_the_documentation_runs(tables: Path) -> None:
    document = at_hand(Path(__file__).resolve().parents[2] / "docs" / "limits.md")
    codes = re.findall(r"^```python\n(.*?)^```", document.read_text("utf-8"), re.M | re.S)
    assert len(codes) == 4
    for code in codes:
        python(code)


# The URI


def test_one_import_registers_both_schemes() -> None:
    code = """
import nanolimit.compat.limits
from limits.storage import storage_from_string
for uri in ("nanolimit://", "async+nanolimit://"):
    print(type(storage_from_string(uri)).__name__)
"""
    assert python(code).stdout.split() == ["NanolimitStorage", "AsyncNanolimitStorage"]


def test_without_limits_the_error_names_the_extra() -> None:
    code = """
import sys
sys.modules["limits"] = None
try:
    import nanolimit.compat.limits
except ImportError as error:
    print(error)
"""
    assert python(code).stdout.strip() == (
        "nanolimit.compat.limits needs limits >= 5: pip install 'nanolimit[limits]'"
    )


def test_it_is_all_that_strategies_ask_for() -> None:
    storage = storage_from_string("nanolimit://")
    assert type(storage) is NanolimitStorage
    for kind in (
        Storage,
        MovingWindowSupport,
        SlidingWindowCounterSupport,
        TimestampedSlidingWindow,
    ):
        assert isinstance(storage, kind)
    assert type(NanolimitStorage()) is NanolimitStorage
    assert NanolimitStorage().check()
    assert type(storage_from_string("async+nanolimit://")) is AsyncNanolimitStorage


@pytest.mark.parametrize(
    ("uri", "names"),
    [
        ("nanolimit://", []),
        ("nanolimit://web", ["web.fixed-60-16777216", "web.moving-60-6"]),
        (
            "nanolimit://{tables}/deeper%20one/a.b",
            ["a.b.fixed-60-16777216", "a.b.moving-60-6"],
        ),
    ],
)
def test_where_the_tables_are(uri: str, names: list[str], tables: Path) -> None:
    (tables / "deeper one").mkdir()
    storage = storage_from_string(uri.format(tables=tables))
    assert MovingWindowRateLimiter(storage).hit(FIVE)
    assert FixedWindowRateLimiter(storage).hit(FIVE)
    found = files(tables / "deeper one") if "deeper" in uri else files(tables)
    assert [name for name in found if name != "deeper one"] == names


@pytest.mark.parametrize("way", ["query", "keyword"])
def test_options_by_query_and_by_keyword(way: str, tables: Path) -> None:
    given: dict[str, Any] = {
        "max_keys": 123,
        "clock": "python",
        "on_full": "deny",
        "typical": 3,
        "stall_timeout": 0.5,
        "on_stall": "wait",
    }
    if way == "query":
        query = "&".join(f"{name}={value}" for name, value in given.items())
        storage = storage_from_string(f"nanolimit://web?{query}")
    else:
        storage = storage_from_string("nanolimit://web", **given)
    address: Any = storage._counts.address  # type: ignore[union-attr]
    assert address._asdict() == {"shared": "web", "group": None, **given}


@pytest.mark.parametrize(
    ("uri", "options", "words"),
    [
        ("nanolimit://?max_keys=many", {}, ["max_keys", "'many'", "max_keys=10000"]),
        ("nanolimit://?max_keys=-5", {}, ["max_keys", "'-5'"]),
        ("nanolimit://?max_keys=0", {}, ["max_keys", "0"]),
        ("nanolimit://", {"max_keys": 2**40}, ["max_keys", str(2**40)]),
        ("nanolimit://", {"max_keys": True}, ["max_keys", "True"]),
        ("nanolimit://", {"max_keys": 1.5}, ["max_keys", "1.5"]),
        ("nanolimit://web?max_keys=0", {}, ["max_keys", "2**30", "0"]),
        ("nanolimit://?clock=quartz", {}, ["clock", "'python'", "'quartz'"]),
        ("nanolimit://?clock=", {}, ["clock", "''"]),
        ("nanolimit://?on_full=panic", {}, ["on_full", "'evict'", "'panic'"]),
        ("nanolimit://web?typical=0", {}, ["typical", "0"]),
        ("nanolimit://web?stall_timeout=soon", {}, ["stall_timeout", "'soon'"]),
        ("nanolimit://web?stall_timeout=0", {}, ["stall_timeout", "0"]),
        ("nanolimit://web?stall_timeout=nan", {}, ["stall_timeout", "nan"]),
        ("nanolimit://web?on_stall=panic", {}, ["on_stall", "'panic'"]),
        ("nanolimit://?typical=3", {}, ["typical", "shared", "nanolimit://name"]),
        ("nanolimit://?max_key=3", {}, ["'max_key'", "max_keys"]),
        ("nanolimit://", {"ssl": True}, ["'ssl'", "max_keys"]),
        ("nanolimit://?max_keys=3", {"max_keys": 4}, ["max_keys", "twice", "'3'", "4"]),
        ("nanolimit://?max_keys=3&max_keys=4", {}, ["max_keys", "twice"]),
        ("nanolimit://run/limits", {}, ["'run'", "'/limits'", "third slash"]),
        ("nanolimit:run/limits", {}, ["absolute path"]),
        ("nanolimit:///", {}, ["path of a file", "'/'"]),
        ("nanolimit:///dev/shm/", {}, ["path of a file", "'/dev/shm/'"]),
        ("nanolimit:///no/such/folder/at/all", {}, ["/no/such/folder/at", "make it"]),
        ("nanolimit://.hidden", {}, ["'.hidden'"]),
        ("nanolimit://user@host:80", {}, ["'user@host:80'"]),
        ("nanolimit://web#1", {}, ["'#'", "%23"]),
        ("nanolimit://" + "x" * 151, {}, ["150"]),
    ],
)
def test_what_is_not_understood_is_said_at_once(
    uri: str, options: dict[str, Any], words: list[str], tables: Path
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        storage_from_string(uri, **options)
    for word in words:
        assert word in str(raised.value)
    assert files(tables) == []


def test_a_group_needs_a_place_that_it_can_reach(
    tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SharedTableError, match="no group 'no-such-group'"):
        storage_from_string(f"nanolimit://{tables}/web?group=no-such-group")
    storage = storage_from_string(f"nanolimit://{tables}/web?group=0")
    assert MovingWindowRateLimiter(storage).hit(FIVE)
    assert (tables / "web.moving-60-6").stat().st_mode & 0o777 == 0o660
    monkeypatch.delenv("NANOLIMIT_DIR")
    with pytest.raises(ConfigurationError, match="give a path"):
        storage_from_string("nanolimit://web?group=0")


def test_errors_are_wrapped_if_that_was_asked_for(tables: Path) -> None:
    for name in ("web.moving-60-6", f"web.fixed-60-{MOST}", f"web.sliding-60-{MOST}"):
        (tables / name).write_bytes(b"no table")
    calls: list[Callable[[Any], object]] = [
        lambda storage: storage.acquire_entry("key", 5, 60),
        lambda storage: storage.get_moving_window("key", 5, 60),
        lambda storage: storage.incr("key", 60),
        lambda storage: storage.get("key"),
        lambda storage: storage.get_expiry("key"),
        lambda storage: storage.acquire_sliding_window_entry("key", 5, 60),
        lambda storage: storage.get_sliding_window("key", 60),
        lambda storage: storage.clear_sliding_window("key", 60),
        lambda storage: storage.clear("key"),
        lambda storage: storage.reset(),
    ]
    for call in calls:
        with pytest.raises(SharedTableError):
            call(storage_from_string(f"nanolimit://{tables}/web"))
        with pytest.raises(StorageError) as raised:
            call(storage_from_string(f"nanolimit://{tables}/web", wrap_exceptions=True))
        assert isinstance(raised.value.storage_error, SharedTableError)


def test_a_table_that_is_there_keeps_its_size(tables: Path) -> None:
    for max_keys in (100, 5_000):
        storage: Any = storage_from_string(f"nanolimit://web?max_keys={max_keys}")
        for user in range(50):
            assert storage.acquire_entry(f"user-{user}", 2, 60)
    assert not storage.acquire_entry("user-7", 2, 60)
    size = RateLimiter("2/minute", shared=tables / "alone", max_keys=100).stats().memory_bytes
    assert (tables / "web.moving-60-6").stat().st_size < 2 * size


# What it refuses


@pytest.mark.parametrize("expiry", [0, -1, 1.5, "60", None, True])
def test_a_window_is_whole_seconds(expiry: Any) -> None:
    storage = NanolimitStorage()
    for call in (
        lambda: storage.acquire_entry("key", 5, expiry),
        lambda: storage.get_moving_window("key", 5, expiry),
        lambda: storage.incr("key", expiry),
        lambda: storage.acquire_sliding_window_entry("key", 5, expiry),
        lambda: storage.get_sliding_window("key", expiry),
    ):
        with pytest.raises(ValueError, match="expiry must be whole seconds"):
            call()
    assert storage.reset() == 0


def test_limits_beyond_what_can_be_counted_are_said_and_not_passed() -> None:
    storage = NanolimitStorage()
    assert storage.acquire_entry("key", MOST, 60, MOST)
    assert not storage.acquire_entry("key", MOST, 60)
    with pytest.raises(ValueError, match=f"limit must be from 1 to {MOST}, not {MOST + 1}"):
        storage.acquire_entry("key", MOST + 1, 60)
    with pytest.raises(ValueError, match=f"limit must be <= {MOST}, not {MOST + 1}"):
        storage.acquire_sliding_window_entry("key", MOST + 1, 60)


def test_a_fixed_window_that_is_full_is_above_any_limit() -> None:
    storage = NanolimitStorage()
    fixed = FixedWindowRateLimiter(storage)
    assert storage.incr("key", 60, MOST - 1) == MOST - 1
    assert storage.incr("key", 60) == MOST
    assert storage.incr("key", 60) == sys.maxsize
    assert storage.get("key") == MOST
    assert storage.incr("other", 60, 10**12) == sys.maxsize
    assert storage.get("other") == MOST
    billion = RateLimitItemPerMinute(10**9)
    assert fixed.hit(billion, cost=MOST)
    assert not fixed.hit(billion)


@pytest.mark.parametrize("amount", [-1, -0.5 - 1, float("nan"), float("inf")])
def test_an_amount_is_no_less_than_nothing(amount: Any) -> None:
    storage = NanolimitStorage()
    with pytest.raises(ValueError, match=r"cost|amount"):
        storage.incr("key", 60, amount)
    assert storage.get("key") == 0


@pytest.mark.parametrize("on_full", ["allow", "deny"])
def test_more_keys_than_there_is_room_for(on_full: str) -> None:
    for name, strategy in STRATEGIES.items():
        storage: Any = storage_from_string(f"nanolimit://?max_keys=10&on_full={on_full}")
        limiter: Any = strategy(storage)
        for user in range(10):
            assert limiter.hit(FIVE, f"user-{user}"), name
        passed = [limiter.hit(FIVE, "one too many") for _ in range(9)]
        assert passed == [on_full == "allow"] * 9
        assert limiter.hit(FIVE, "user-3", cost=4)
        assert not limiter.hit(FIVE, "user-3")


# Clocks


def test_without_the_python_clock_a_frozen_time_stops_nothing() -> None:
    item = RateLimitItemPerSecond(1)
    storage: Any = storage_from_string("nanolimit://")
    moving = MovingWindowRateLimiter(storage)
    with freeze_time("2026-03-01 12:00:00"):
        assert moving.hit(item)
        assert not moving.hit(item)
        end = time.perf_counter() + 30
        while not moving.hit(item):
            assert time.perf_counter() < end


def test_stats_are_epoch_seconds_with_either_clock() -> None:
    for uri in ("nanolimit://", "nanolimit://?clock=python"):
        storage: Any = storage_from_string(uri)
        for name in STRATEGIES:
            limiter: Any = STRATEGIES[name](storage)
            before = time.time()
            assert limiter.hit(RateLimitItemPerHour(5), "ann")
            reset_s = limiter.get_window_stats(RateLimitItemPerHour(5), "ann").reset_time
            after = time.time()
            if name == "sliding-window-counter":
                assert (before // 3600 + 1) * 3600 - 0.1 <= reset_s <= after + 3600
            else:
                assert before + 3600 - 0.1 <= reset_s <= after + 3600 + 0.1


@pytest.mark.parametrize("seconds", [1, 7, 60, 900, 1_800, 3_600, 86_400, 2_592_000, 31_104_000])
def test_the_grid_is_the_engines(seconds: int) -> None:
    """A request counts for its window and one tick, by the engine's own arithmetic."""
    window_ns = seconds * 10**9
    tick = tick_ns(window_ns)
    now_ns = [1_772_368_496 * 10**9 // tick * tick]

    class Clock:
        def __call__(self) -> float:
            return now_ns[0] / 1e9

        def now_ns(self) -> int:
            return now_ns[0]

    limiter = RateLimiter(1, closed_window_s(seconds), clock=Clock())
    assert limiter.allow("key")
    assert limiter.peek("key").refill_after == pytest.approx(counted_s(seconds), abs=1e-9)
    now_ns[0] += window_ns
    assert not limiter.peek("key")
    now_ns[0] += tick
    assert limiter.peek("key")


def test_the_python_clock_counts_whole_microseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    minute, day = EpochClock(60 * 10**9), EpochClock(86_400 * 10**9)
    for micros in (0, 1, 999_999, 1_772_368_496_789_013, 2**42 * 1_000):
        monkeypatch.setattr(time, "time", lambda micros=micros: micros / 1e6)
        assert minute.now_ns() == micros * 1_000
        assert minute() == micros / 1e6
        assert abs(day.now_ns() - micros * 1_000) <= 50_000
        assert day.now_ns() % 100_000 == 0


# Bounds


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small bounds, so that they are reached soon."""
    monkeypatch.setattr(shelf, "RESIDENT", 3)
    monkeypatch.setattr(shelf, "SPARE", 6)
    monkeypatch.setattr(counts, "_REMEMBERED", 8)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_any_number_of_limits_in_some_windows(name: str) -> None:
    """A thousand limits, three windows: all are exact, and hold together few tables."""
    storage: Any = storage_from_string("nanolimit://?clock=python")
    limiter: Any = STRATEGIES[name](storage)
    with freeze_time("2026-03-01 12:00:10") as frozen:
        for limit in range(1, 1001):
            item = RateLimitItemPerMinute(limit, 1 + limit % 3)
            assert limiter.hit(item, "ann", cost=limit)
        for limit in range(1, 1001):
            item = RateLimitItemPerMinute(limit, 1 + limit % 3)
            assert not limiter.hit(item, "ann")
            assert limiter.get_window_stats(item, "ann").remaining == 0
        counted: Any = storage._counts
        assert len(counted._shelf._resident) + len(counted._shelf._spare) <= 3 + 6
        for memo in (counted.moving, counted._looks, counted._fixed, counted._sliding):
            assert len(memo) <= 8
        frozen.tick(400)
        assert limiter.hit(RateLimitItemPerMinute(1000, 2), "ann", cost=1000)
        assert storage.reset() == 1


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_any_number_of_windows_one_after_the_other(name: str) -> None:
    """Tables of windows that are over give way; those that hold something don't."""
    storage: Any = storage_from_string("nanolimit://?clock=python")
    limiter: Any = STRATEGIES[name](storage)
    lasting = RateLimitItemPerHour(2)
    with freeze_time("2026-03-01 12:00:00") as frozen:
        for item in (RateLimitItemPerSecond(1, seconds) for seconds in (1, 2, 3)):
            assert limiter.hit(item)
        assert limiter.hit(lasting, cost=2)  # in a table that may be dropped
        for seconds in range(4, 60):
            item = RateLimitItemPerSecond(3, seconds)
            assert limiter.hit(item, cost=2)
            assert limiter.get_window_stats(item).remaining == 1
            assert not limiter.hit(item, cost=2)
            assert not limiter.hit(lasting)
            assert limiter.get_window_stats(lasting).remaining == 0
            if seconds % 3 == 0:
                frozen.tick(130)
                # Enough of the hour for the sliding counter too.
                if frozen().minute > 40:
                    break
        tables: Any = storage._counts._shelf
        assert len(tables._resident) == 3
        assert len(tables._spare) <= 6
        limiter.clear(lasting)
        assert limiter.hit(lasting)


@pytest.mark.usefixtures("few")
def test_more_windows_at_once_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrap, error in ((False, NanolimitError), (True, StorageError)):
        storage = NanolimitStorage(wrap_exceptions=wrap)
        for seconds in range(100, 109):
            assert storage.acquire_entry("key", 1, seconds)
        with pytest.raises(error) as raised:
            storage.acquire_entry("key", 1, 109)
        cause = raised.value if not wrap else raised.value.storage_error  # type: ignore[attr-defined]
        assert "more than 9 different windows" in str(cause)
        # What is counted stays so, and is there for all verbs.
        for seconds in range(100, 109):
            assert not storage.acquire_entry("key", 1, seconds)
        storage.clear("key")
        assert storage.acquire_entry("key", 1, 109)


@pytest.mark.usefixtures("few")
def test_any_table_that_is_over_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if those that were made before it, or used before it, are all in use."""
    monkeypatch.setattr(shelf, "_LOOKED_AT", 1)
    storage: Any = storage_from_string("nanolimit://?clock=python")
    with freeze_time("2026-03-01 12:00:00") as frozen:
        for seconds in (1000, 1001, 1002, 1003, 1004, 5, 1005, 1006, 1007):
            assert storage.acquire_entry("key", 1, seconds)
        frozen.tick(10)
        assert storage.acquire_entry("key", 1, 1008)
        for seconds in range(1000, 1009):
            assert not storage.acquire_entry("key", 1, seconds)
        labels = [label.expiry for label in storage._counts._shelf._spare]
        assert labels == [1003, 1004, 1005, 1006, 1007, 1008]
        # The least recently used one is looked at first.
        assert not storage.acquire_entry("key", 1, 1003)
        assert [label.expiry for label in storage._counts._shelf._spare][-1] == 1003


@pytest.mark.usefixtures("few")
def test_threads_and_tables_that_come_and_go_lose_no_count() -> None:
    storage: Any = storage_from_string("nanolimit://")
    limiter = MovingWindowRateLimiter(storage)
    for seconds in (1, 2, 3):  # take the places that are kept
        limiter.hit(RateLimitItemPerSecond(1, seconds))
    item = RateLimitItemPerHour(500)
    start = threading.Barrier(4)
    passed: list[int] = []

    def work(number: int) -> None:
        start.wait()
        mine = 0
        for turn in range(300):
            mine += limiter.hit(item, "ann")
            # Others' tables, which hold nothing: they are made and dropped at once.
            storage.get_moving_window("nobody", 5, 1000 + (turn * 4 + number) % 50)
        passed.append(mine)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(passed) == 500
    assert limiter.get_window_stats(item, "ann").remaining == 0


def test_a_storage_that_is_forgotten_gives_its_tables_back() -> None:
    gc.collect()
    before = len(counts._counting)
    storage = NanolimitStorage()
    assert storage.incr("key", 60) == 1
    assert len(counts._counting) == before + 1
    del storage
    gc.collect()
    assert len(counts._counting) == before


# Threads, forks, pickles, subclasses


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("uri", ["nanolimit://", "nanolimit://web"])
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_threads_admit_exactly_the_limit(name: str, uri: str, tables: Path) -> None:
    limiter: Any = STRATEGIES[name](storage_from_string(uri))
    item = RateLimitItemPerHour(1_000, 24 * 300)  # no window of the epoch ends meanwhile
    start = threading.Barrier(8)
    passed: list[int] = []

    def work() -> None:
        start.wait()
        passed.append(sum(limiter.hit(item, "ann", cost=1 + turn % 3) for turn in range(300)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limiter.get_window_stats(item, "ann").remaining == 0
    if name != "fixed-window":  # which counts what it denies
        assert not limiter.hit(item, "ann")


@pytest.mark.parametrize("uri", ["nanolimit://", "nanolimit://web"])
def test_a_forked_child_goes_on(uri: str, tables: Path) -> None:
    storage: Any = storage_from_string(uri)
    limiter = MovingWindowRateLimiter(storage)
    assert limiter.hit(FIVE, "ann", cost=3)
    with shelf.lock():  # held by the parent while the child is made
        assert in_child(lambda: [limiter.hit(FIVE, "ann") for _ in range(4)]) == [
            True,
            True,
            False,
            False,
        ]
        assert in_child(lambda: storage.incr("key", 7)) == 1
    assert limiter.get_window_stats(FIVE, "ann").remaining == (2 if uri == "nanolimit://" else 0)
    assert storage.get("key") == (0 if uri == "nanolimit://" else 1)


def test_a_child_forked_while_a_thread_holds_the_lock_is_not_stuck() -> None:
    storage = NanolimitStorage()
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        with shelf.lock():
            holding.set()
            done.wait(60)

    def hit() -> bool:
        signal.alarm(20)  # which ends the child: it is stuck
        return storage.acquire_entry("key", 1, 60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert holding.wait(60)
        assert in_child(hit) is True
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("kind", [NanolimitStorage, AsyncNanolimitStorage])
@pytest.mark.parametrize("uri", ["nanolimit://?clock=python&max_keys=99", "nanolimit://web"])
def test_a_pickle_counts_where_its_storage_does(kind: Any, uri: str, tables: Path) -> None:
    storage = kind(uri, wrap_exceptions=True)
    storage._counts.incr("key", 60, 1)
    for other in (pickle.loads(pickle.dumps(storage)), copy.copy(storage), copy.deepcopy(storage)):
        assert type(other) is kind
        assert other.wrap_exceptions is True
        assert other._counts.address == storage._counts.address
        other._counts.incr("key", 60, 1)
    assert storage._counts.get("key") == 4


@pytest.mark.parametrize("uri", ["nanolimit://", "nanolimit://web"])
def test_a_pickle_in_another_process(uri: str, tables: Path) -> None:
    """It begins anew there, unless the tables are the machine's."""
    storage: Any = storage_from_string(uri)
    assert storage.incr("key", 60) == 1
    assert storage.acquire_entry("key", 2, 60)
    code = """
import pickle, sys
first = pickle.loads(bytes.fromhex(sys.argv[1]))
again = pickle.loads(bytes.fromhex(sys.argv[1]))
print(first.incr("key", 60), again.incr("key", 60), first.acquire_entry("key", 2, 60))
"""
    said = python(code, pickle.dumps(storage).hex()).stdout.split()
    assert said == (["1", "2", "True"] if uri == "nanolimit://" else ["2", "3", "True"])
    assert storage.acquire_entry("key", 2, 60) is (uri == "nanolimit://")


def test_a_subclass_keeps_what_it_overrides() -> None:
    class Mine(NanolimitStorage):
        STORAGE_SCHEME = ["mine"]  # noqa: RUF012

        def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
            return super().acquire_entry(key.lower(), limit, expiry, amount)

    storage: Any = storage_from_string("mine://")
    assert type(storage) is Mine
    assert storage.acquire_entry("Ann", 1, 60)
    assert not storage.acquire_entry("ANN", 1, 60)
    assert storage.get_moving_window("ann", 1, 60)[1] == 1


def test_a_hit_runs_no_wrapper_of_limits() -> None:
    for kind in (NanolimitStorage, AsyncNanolimitStorage):
        for verb in ("incr", "acquire_entry", "acquire_sliding_window_entry", "get_moving_window"):
            assert not hasattr(getattr(kind, verb), "__wrapped__"), verb
