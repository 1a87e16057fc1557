"""A log on a server, as far as there is no server in it: times, blocks, interrupts, errors."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click", reason="the extra nanolimit[cli] is not installed")
pytest.importorskip("rich", reason="the extra nanolimit[cli] is not installed")

from rich.console import Console

from nanolimit import ManualClock, Quota, RateLimiter
from nanolimit.cli import rehearsal, replay
from nanolimit.cli.account import Account, Difference, Host, Rate, Rehearsed
from nanolimit.cli.command import run
from nanolimit.cli.interrupt import deferred
from nanolimit.cli.log import Requests

NS = 1_000_000_000
LINE = '{"time": 1700000000, "ip": "192.0.2.1"}\n'


# Times


@pytest.mark.parametrize("per", [1e-6, 0.001, 1.0, 1.1, 60.0, 3600.0, 86_400.0, 315_360_000.0])
def test_ticks_are_the_engines(per: float) -> None:
    """A stamp rounds up to the next tick: that much later the place is free again."""
    tick_ns = rehearsal.tick_ns(Quota(1, per).window_ns)
    for offset_ns in {1, tick_ns, tick_ns + 1, 7 * tick_ns - 1}:
        clock = Clock()
        clock.ns = offset_ns
        with RateLimiter(1, per=per, clock=clock) as limiter:
            assert limiter.allow("user")
            expected_ns = -(-offset_ns // tick_ns) * tick_ns
            expected_ns += -(-Quota(1, per).window_ns // tick_ns) * tick_ns
            clock.ns = expected_ns - 1
            assert not limiter.allow("user")
            clock.ns = expected_ns
            assert limiter.allow("user")


class Clock(ManualClock):
    ns = 0

    def now_ns(self) -> int:
        return self.ns

    def __call__(self) -> float:
        return self.ns / 1e9


def of(times_ns: list[int]) -> Requests:
    return Requests(array("q", times_ns), array("I", bytes(4 * len(times_ns))), ["user"])


def test_times_on_the_grid_are_taken_as_they_are() -> None:
    requests = of([5 * NS + 1_000 * ms for ms in (0, 10, 25)])
    outcome = replay.run(requests.times_ns, requests.users, requests.names, Quota(1))
    spans_us, flags = rehearsal._as_both_count(requests, outcome)
    assert list(spans_us) == [0, 10, 25]
    assert flags is outcome.denied_flags


def test_other_times_are_rounded_down_for_both() -> None:
    # Ticks of an hour are 5 us: what comes 4 us too early by them is denied there alone.
    hour_ns = 3600 * NS
    requests = of([0, 1_000, hour_ns + 1_000])
    outcome = replay.run(requests.times_ns, requests.users, requests.names, Quota(2, 3600.0))
    spans_us, flags = rehearsal._as_both_count(requests, outcome)
    assert list(spans_us) == [0, 0, 3_600_000_000]
    assert list(flags) == [0, 0, 0]
    one = replay.run(requests.times_ns, requests.users, requests.names, Quota(1, 3600.0))
    assert list(rehearsal._as_both_count(requests, one)[1]) == [0, 1, 0]


@pytest.mark.parametrize(
    ("total", "step", "cut", "expected"),
    [
        (5, 2, 1, [(0, 1), (1, 2), (2, 4), (4, 5)]),
        (5, 2, 4, [(0, 2), (2, 4), (4, 5)]),
        (5, 2, 5, [(0, 2), (2, 4), (4, 5)]),
        (4, 4, 4, [(0, 4)]),
        (1, 16, 1, [(0, 1)]),
    ],
)
def test_blocks(total: int, step: int, cut: int, expected: list[tuple[int, int]]) -> None:
    assert list(rehearsal._blocks(total, step, cut)) == expected


def test_the_busiest_moment_is_the_first_with_the_most_lists() -> None:
    users = array("I", [0, 1, 0, 2, 0, 1, 2])
    stamps_us = array("q", [second * 1_000_000 for second in (0, 1, 2, 100, 101, 102, 103)])
    quotas = (Quota(5, 60.0),)
    assert rehearsal._busiest(stamps_us, users, bytearray(7), quotas) == 5
    # Denied requests make no lists.
    assert rehearsal._busiest(stamps_us, users, bytearray([0, 0, 0, 0, 0, 1, 0]), quotas) == 1


# Interrupts


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Where the tests run in the background, the shell has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_for_the_check() -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    for number in (signal.SIGINT, signal.SIGTERM):
        with deferred() as interrupt:
            interrupt.check()
            signal.raise_signal(number)
            with pytest.raises(KeyboardInterrupt):
                interrupt.check()
            with pytest.raises(KeyboardInterrupt):
                interrupt.check()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.usefixtures("interruptible")
def test_the_second_interrupt_does_not_wait() -> None:
    with deferred():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            interrupt.check()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_nothing_is_changed() -> None:
    seen: list[Any] = []

    def look() -> None:
        with deferred() as interrupt:
            interrupt.check()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


# What is said


def host(policy: str, maxmemory_bytes: int = 0) -> Host:
    return Host("Redis", "7.0.15", maxmemory_bytes, policy)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
def test_a_policy_that_drops_lists_is_warned_of(policy: str) -> None:
    warning = host(policy, 1 << 20).warning
    assert warning is not None
    assert f"maxmemory-policy is {policy}: once its memory is used up, it drops lists" in warning
    assert warning.endswith("Set it to noeviction")
    later = host(policy).warning
    assert later is not None
    assert "as soon as it is given a maxmemory" in later


@pytest.mark.parametrize("policy", ["noeviction", ""])
def test_others_are_not(policy: str) -> None:
    assert host(policy, 1 << 20).warning is None


def rehearsed(differences: int = 0, **given: Any) -> Rehearsed:
    values: dict[str, Any] = {
        "quotas": (Quota(5),), "requests": 1_000, "denied": 100, "differences": differences,
        "first": [Difference(3, 1_700_000_000 * NS, "\x1b[31mred", True)] * min(1, differences),
        "cached": 50, "single": Rate(100, 0.01), "single_us": (90.0, 200.0, 1_000.0),
        "pipelined": Rate(900, 0.03), "at_once": 256, "server_us": 8.0, "keys": 20, "lists": 20,
        "peak_ns": 1_700_000_000 * NS, "bytes_per_key": 216.0, "used_bytes": 8_192, "evicted": 0,
    }  # fmt: skip
    return Rehearsed(**{**values, **given})


def shown(account: Account) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    account.show(console)
    return console.export_text()


def test_tables() -> None:
    account = Account("host:6379", [host("noeviction")], False, 60.0, [rehearsed()])
    text = shown(account)
    for part in (
        "host:6379, Redis 7.0.15, no maxmemory, noeviction",
        "0.06 ms (an empty script)",
        "the same as the local engine's, all 1,000",
        "10,000 checks/s: 0.09 ms (median), 0.20 ms (99 %), 1.00 ms (longest) of 100",
        "30,000 checks/s, up to 256 in one write",
        "8.0 us a check (125,000/s)",
        "answers 50 requests (5.0 %) without asking",
        "at most 20 keys at a time (2023-11-14 22:13), 216 bytes each: 4.2 KiB",
        "8.0 KiB more at that time",
    ):
        assert part in text
    assert "Warning" not in text
    assert account.differences == 0


def test_tables_of_differences_and_of_other_limits() -> None:
    several = rehearsed(quotas=(Quota(5), Quota(100, 3600.0)), lists=31, differences=2)
    evicting = rehearsed(differences=1, evicted=7)
    account = Account(
        "host:6379", [host("allkeys-lru"), host("allkeys-lru")], True, None, [several, evicting]
    )
    text = shown(account)
    assert "2 of 1,000 differ from the local engine's" in text
    assert "a Cluster, 2 nodes of it: Redis 7.0.15" in text
    assert "in 31 lists" in text
    assert "What other limits do and cost there" in text
    assert "Where it differs from the local engine, 5/minute; 100/hour" in text
    # Nothing of a log steers the terminal.
    assert "\\x1b[31mred" in text
    assert "\x1b[31mred" not in text
    assert text.count("Warning: maxmemory-policy is allkeys-lru") == 1
    assert account.differences == 3
    assert "the server evicted 7 keys meanwhile" in shown(Account("h", [], False, None, [evicting]))


def test_nothing_known_is_said_to_be_so() -> None:
    nothing = rehearsal._nothing((Quota(5),))
    account = Account("host:6379", [], False, None, [nothing])
    text = shown(account)
    assert "does not let this user ask what it is (INFO)" in text
    assert "memory" not in text
    (told,) = json.loads(json.dumps(account.as_json()))["runs"]
    assert told["single"] == {
        "requests": 0, "per_s": None, "median_us": None, "p99_us": None, "longest_us": None
    }  # fmt: skip
    assert told["peak"] == {
        "time": None, "keys": 0, "lists": 0, "bytes_per_key": None, "bytes": None,
        "used_memory_bytes": None,
    }  # fmt: skip


def test_json_names_each_difference() -> None:
    account = Account("h", [host("noeviction")], False, 60.0, [rehearsed(1)])
    told = json.loads(json.dumps(account.as_json()))
    assert told["nodes"] == [
        {"software": "Redis", "version": "7.0.15", "maxmemory_bytes": 0,
         "maxmemory_policy": "noeviction"}
    ]  # fmt: skip
    assert told["runs"][0]["first_differences"] == [
        {"request": 3, "time": "2023-11-14T22:13:20Z", "user": "\x1b[31mred", "redis": "denied",
         "local": "allowed"}
    ]  # fmt: skip
    assert told["runs"][0]["peak"]["bytes"] == 4_320


# Errors


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "app.jsonl"
    path.write_text(LINE)
    return path


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:6379", "must be a URL such as 'redis://localhost:6379/0'"),
        ("", "must be a URL"),
        ("http://localhost", "must be a URL"),
        ("redis://localhost:0", "the port is 0"),
        ("redis://localhost/zero", "the path is the number of a database"),
        ("redis://me:secret@localhost/x", "***@localhost"),
    ],
)
def test_a_wrong_url_is_wrong_usage(
    log: Path, capsys: pytest.CaptureFixture[str], url: str, said: str
) -> None:
    pytest.importorskip("redis")
    assert run(["replay", str(log), "--redis", url]) == 2
    _, err = capsys.readouterr()
    assert "Invalid value for '--redis'" in err
    assert said in err
    assert "secret" not in err
    assert "client_or_url" not in err


def test_without_a_client_library(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("redis", "valkey"):
        monkeypatch.setitem(sys.modules, name, None)
    # None in sys.modules raises without a name's module: that is how "not installed" looks.
    assert run(["replay", str(log), "--redis", "redis://localhost"]) == 3
    _, err = capsys.readouterr()
    assert "pip install 'nanolimit[redis]'" in err
    assert len(err.splitlines()) == 1


def test_no_server(log: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("redis")
    nowhere = tmp_path / "nowhere.sock"
    # Also where the log could not be read: the server is looked at before.
    assert run(["replay", str(log), "--redis", f"unix://{nowhere}"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: --redis: ")
    assert str(nowhere) in err
    assert len(err.splitlines()) == 1
