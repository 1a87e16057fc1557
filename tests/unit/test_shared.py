"""The contract on a shared table: what a private limiter does, for all processes together."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from array import array
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import nanolimit
from clocks import NanoClock
from nanolimit import (
    LimiterClosedError,
    ManualClock,
    NanolimitError,
    Quota,
    RateLimiter,
    SharedTableError,
    _core,
    telemetry,
)
from nanolimit.shared import inspect
from sharing import STRANGER, in_child, needs_root, needs_shared, python

pytestmark = needs_shared

NS = 1_000_000_000


def pair(*arguments: Any, **options: Any) -> tuple[RateLimiter, RateLimiter]:
    """Two limiters on one table, which two processes might as well have."""
    first = RateLimiter(*arguments, shared="api", **options)
    return first, RateLimiter(*arguments, shared="api", **options)


# Checks


def test_one_count_for_two_limiters(folder: Path) -> None:
    one, other = pair("5/minute")
    answers = [limiter.allow("me") for limiter in (one, other) * 4]
    assert answers == [True] * 5 + [False] * 3
    assert one.allow("you")
    assert "you" in other
    assert len(one) == len(other) == 2


def test_one_count_for_two_processes(folder: Path) -> None:
    limiter = RateLimiter(5, per=3600, shared="api")
    assert limiter.allow("me", 2)
    code = """
from nanolimit import RateLimiter
limiter = RateLimiter(5, per=3600, shared="api")
decision = limiter.check("me", 2)
print(decision.allowed, decision.remaining, limiter.allow("me", 2), limiter.allow("you"))
"""
    assert python(code).stdout.split() == ["True", "1", "False", "True"]
    decision = limiter.check("me", 2)
    assert not decision
    assert decision.remaining == 1
    assert 3500 < decision.retry_after <= 3600
    assert limiter.allow("me")
    assert "you" in limiter
    assert limiter.stats()[:3] == (4, 2, 2)


def test_costs(folder: Path) -> None:
    one, other = pair(10)
    assert one.allow("me", 7)
    assert not other.allow("me", 4)
    assert other.allow("me", cost=3)
    assert one.allow("me", 0)
    for cost in (-1, 11):
        with pytest.raises(ValueError, match="cost must be"):
            other.allow("me", cost)


@pytest.mark.parametrize("limit", [1, 5, 6, 7, 40, 700, 2047])
def test_a_log_of_any_length(folder: Path, limit: int, clock: NanoClock) -> None:
    one, other = pair(limit, per=1, clock=clock, max_keys=3)
    for turn in range(3):
        for nth in range(limit):
            assert (one if nth % 2 else other).allow("me"), (turn, nth)
        assert not one.allow("me")
        assert not other.allow("me")
        clock.ns += NS - 1
        assert not one.allow("me")
        clock.ns += 1
    assert one.stats()[:2] == (3 * limit, 9)


def test_decisions(folder: Path) -> None:
    clock = NanoClock(1000 * NS)  # on the grid of ticks, so that the seconds are whole
    one, other = pair(3, per=60, clock=clock)
    assert one.check("me").remaining == 2
    clock.ns += 10 * NS
    assert other.check("me", 2).remaining == 0
    decision = one.check("me")
    assert not decision
    assert (decision.limit, decision.remaining, decision.quota) == (3, 0, Quota(3))
    assert (decision.retry_after, decision.refill_after, decision.reset_after) == (50, 50, 60)
    peeked = other.peek("me", 2)
    assert (peeked.allowed, peeked.remaining, peeked.retry_after) == (False, 0, 60)
    assert other.peek("new").remaining == 3
    assert "new" not in one
    clock.ns += 50 * NS
    assert one.peek("me").remaining == other.peek("me").remaining == 1


def test_a_whole_window_of_real_time(folder: Path) -> None:
    """By the system's clock, which for shared tables is another one than for private."""
    one, other = pair(2, per=0.2)
    began = time.monotonic()
    assert [one.allow("me"), other.allow("me"), one.allow("me")] == [True, True, False]
    wait = other.check("me").retry_after
    assert 0 < wait <= 0.2
    while not other.allow("me"):
        time.sleep(0.001)
    assert 0.2 <= time.monotonic() - began < 5


def test_keys_of_every_kind(folder: Path) -> None:
    import ipaddress
    import uuid

    keys: list[Any] = [
        1, "1", b"1", ("1",), -1, 2**70, uuid.UUID(int=7), ipaddress.ip_address("192.0.2.1"),
        ("a", (b"b", 3)), "ä", "\U0001f600", "",
    ]  # fmt: skip
    one, other = pair(1, per=3600)
    assert [one.allow(key) for key in keys] == [True] * len(keys)
    assert [other.allow(key) for key in keys] == [False] * len(keys)
    with pytest.raises(TypeError):
        one.allow(1.5)  # type: ignore[arg-type]


def test_batches(folder: Path) -> None:
    one, other = pair(2, per=3600)
    assert one.allow_many(["a", "b", "a", "a"]) == [True, True, True, False]
    assert other.allow_many(("b", "b", "c")) == [True, False, True]
    assert list(one.allow_many(array("q", [1, 2, 1, 1]))) == [True, True, True, False]
    assert list(other.allow_many(array("Q", [2, 2, 3]), 1)) == [True, False, True]
    assert list(other.allow_many(array("q", range(1000)))) == [
        nth not in (1, 2) for nth in range(1000)
    ]
    assert one.stats().allowed == 5 + 5 + 998


def test_reset(folder: Path) -> None:
    one, other = pair(40, per=3600)
    assert one.allow("me", 40)
    assert other.reset("me") is True
    assert one.reset("me") is False
    assert "me" not in one
    assert one.allow("me", 40)


def test_clear(folder: Path) -> None:
    one, other = pair(40, per=3600, max_keys=2000)
    one.allow_many(list(range(2000)), 30)
    assert len(other) == 2000
    other.clear()
    assert len(one) == one.stats().keys == 0
    assert one.stats().allowed == 2000
    assert all(one.allow_many(list(range(2000)), 40))


def test_evict(folder: Path) -> None:
    clock = NanoClock(1000 * NS)
    one, other = pair(40, per=60, clock=clock, max_keys=500)
    one.allow_many(list(range(300)), 30)
    clock.ns += 30 * NS
    other.allow_many(list(range(300, 400)))
    clock.ns += 30 * NS
    assert (one.stats().keys, len(one)) == (400, 100)
    assert other.evict() == 300
    assert one.stats().keys == len(one) == 100
    assert one.stats().evicted == 300
    assert one.evict() == 0


@pytest.mark.parametrize(
    ("on_full", "allowed"), [("allow", True), ("deny", False), ("evict", True)]
)
@pytest.mark.parametrize("max_keys", [1, 2, 17, 2000])
def test_the_bound_of_keys(folder: Path, on_full: Any, allowed: bool, max_keys: int) -> None:
    limiter = RateLimiter(3, per=3600, shared="api", max_keys=max_keys, on_full=on_full)
    assert all(limiter.allow_many(list(range(max_keys))))
    assert len(limiter) == limiter.stats().capacity == max_keys
    # A known key is decided by its log.
    assert limiter.allow_many([max_keys - 1] * 3) == [True, True, False]
    assert limiter.allow("one more") is allowed
    stats = limiter.stats()
    assert (stats.overflowed, stats.evicted) == ((0, 1) if on_full == "evict" else (1, 0))
    assert stats.keys == len(limiter) == max_keys


def test_on_full_is_each_limiter_s_own(folder: Path) -> None:
    allowing = RateLimiter(3, shared="api", max_keys=1)
    denying = RateLimiter(3, shared="api", max_keys=1, on_full="deny")
    assert allowing.allow("me")
    assert allowing.allow("you") is True
    assert denying.allow("you") is False
    assert denying.stats().overflowed == 2


# Counters and telemetry


def test_counters_are_everybody_s(folder: Path) -> None:
    limiter = RateLimiter(3, per=3600, shared="api")

    def work() -> tuple[int, ...]:
        for _ in range(5):
            limiter.allow("child")
        return tuple(limiter.stats())

    assert limiter.allow("me")
    assert in_child(work)[:3] == (4, 2, 2)
    assert limiter.stats()[:3] == (4, 2, 2)


def test_what_stats_tell_besides(folder: Path) -> None:
    one, other = pair(100, per=3600, max_keys=50, typical=20)
    stats = one.stats()
    assert len(stats) == 7
    assert (stats.stalled, stats.log_bytes) == (0, 0)
    assert stats.log_capacity_bytes >= 50 * 20 * 4
    assert stats.memory_bytes == (folder / "api").stat().st_size
    assert one.allow("me", 100)
    assert other.stats().log_bytes >= 100 * 4
    assert other.stats().log_capacity_bytes == stats.log_capacity_bytes


def test_handlers_hear_what_their_own_process_decides(folder: Path) -> None:
    limiter = RateLimiter(1, per=3600, shared="api", name="front")
    seen: list[tuple[str, float, object]] = []
    telemetry.attach(
        "all", ["allowed", "denied"], lambda event, measured, about: seen.append(
            (event, measured["count"], (about["limiter"], about["key"]))
        )
    )  # fmt: skip
    try:
        assert in_child(lambda: limiter.allow("child")) is True
        assert seen == []
        limiter.allow("me")
        limiter.allow("child")
    finally:
        telemetry.detach("all")
    assert seen == [("allowed", 1, ("front", "me")), ("denied", 1, ("front", "child"))]


# Lifecycle


def test_counts_outlive_every_process(folder: Path) -> None:
    code = """
from nanolimit import RateLimiter
print(RateLimiter("3/hour", shared="api").allow("me"))
"""
    assert [python(code).stdout for _ in range(4)] == ["True\n"] * 3 + ["False\n"]


def test_counts_outlive_a_kill(folder: Path) -> None:
    def work() -> None:
        limiter = RateLimiter(3, per=3600, shared="api")
        limiter.allow("me", 2)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        work()
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    limiter = RateLimiter(3, per=3600, shared="api")
    assert limiter.check("me").remaining == 0
    assert limiter.stats().allowed == 2


def test_a_closed_limiter_leaves_the_table(folder: Path) -> None:
    one, other = pair(3)
    assert one.allow("me")
    one.close()
    one.close()
    for call in (one.stats, one.clear, lambda: one.allow("me"), lambda: len(one)):
        with pytest.raises(LimiterClosedError):
            call()
    assert repr(one) == f"<RateLimiter 'api' 3 per 60 s, shared at '{folder / 'api'}', closed>"
    assert other.allow("me")
    assert "me" in RateLimiter(3, shared="api")


def test_closing_signs_off_from_the_table(folder: Path) -> None:
    one = RateLimiter(3, shared="api")
    allow = one.allow
    assert len(inspect("api").processes) == 1
    one.close()
    assert len(inspect("api").processes) == 1, "a call may be under way in a method that is held"
    with pytest.raises(LimiterClosedError):
        allow("a")
    del allow
    gc.collect()
    assert inspect("api").processes == ()
    with pytest.raises(LimiterClosedError):
        len(one)
    assert (one.name, one.quota, one.closed) == ("api", Quota(3), True)
    one.close()


def test_the_file_may_go_while_it_is_used(folder: Path) -> None:
    limiter = RateLimiter(3, shared="api")
    assert limiter.allow("me")
    (folder / "api").unlink()
    assert limiter.allow("me")
    new = RateLimiter(3, shared="api")
    assert "me" not in new


def test_threads(folder: Path) -> None:
    one, other = pair(500, per=3600)
    answers: list[bool] = []

    def work(limiter: RateLimiter) -> None:
        answers.extend([limiter.allow("me") for _ in range(300)])

    threads = [threading.Thread(target=work, args=(each,)) for each in (one, other) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (answers.count(True), len(answers)) == (500, 1200)


# Forks


@pytest.mark.parametrize("shared", ["api", True])
def test_children_share_what_was_made_before_the_fork(folder: Path, shared: Any) -> None:
    limiter = RateLimiter(10, per=3600, shared=shared)
    assert limiter.allow("me")
    allow = limiter.allow
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                status = sum(allow("me") for _ in range(5))
            finally:
                os._exit(status)
        pids.append(pid)
    allowed = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert sum(allowed) == 9
    assert limiter.stats()[:2] == (10, 11)
    assert not allow("me")
    if shared is True:
        assert not list(folder.iterdir())


def test_memory_without_a_name_is_one_s_own(folder: Path) -> None:
    one, other = RateLimiter(1, shared=True), RateLimiter(1, shared=True)
    assert one.allow("me")
    assert other.allow("me")
    assert one.name != other.name


@needs_root
def test_children_that_become_somebody_else_share_memory_without_a_name() -> None:
    """A master that is root makes the limiter, and its workers drop their rights."""
    limiter = RateLimiter(2, per=3600, shared=True)
    assert limiter.allow("me")
    assert in_child(lambda: limiter.allow("me"), uid=STRANGER) is True
    assert in_child(lambda: limiter.allow("me"), uid=STRANGER) is False
    assert limiter.stats()[:2] == (2, 1)


def test_multiprocessing(folder: Path) -> None:
    code = """
import multiprocessing, sys
from nanolimit import RateLimiter

def work(nth):
    limiter = RateLimiter("5/hour", shared="api")
    return sum(limiter.allow("me") for _ in range(4))

if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(4) as pool:
        print(sum(pool.map(work, range(4), 1)))
"""
    path = folder / ".work.py"  # spawn needs a file that it can import
    path.write_text(code)
    for method in ("fork", "spawn", "forkserver"):
        done = subprocess.run(
            [sys.executable, path, method], capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.stdout, done.stderr) == ("5\n", "")
        (folder / "api").unlink()


# Clocks


def test_a_clock_of_one_s_own(folder: Path) -> None:
    clock = ManualClock(1000)
    one, other = pair(1, per=60, clock=clock)
    assert one.allow("me")
    assert not other.allow("me")
    clock.advance(other.check("me").retry_after)
    assert other.allow("me")
    assert not one.allow("me")


def test_clocks_that_differ_never_allow_too_much(folder: Path) -> None:
    """A key's time never runs backwards: who is behind, is taken to be where the key is."""
    ahead = RateLimiter(2, per=60, shared="api", clock=ManualClock(1000))
    behind = RateLimiter(2, per=60, shared="api", clock=ManualClock(10))
    assert ahead.allow("me")
    assert behind.allow("me")
    assert not behind.allow("me")
    assert not ahead.allow("me")


# What it is made of


def test_the_arguments_only_a_shared_table_knows() -> None:
    given: dict[str, Any] = {
        "on_mismatch": "adopt",
        "mode": 0o660,
        "group": 0,
        "stall_timeout": 1,
        "on_stall": "deny",
        "typical": 3,
    }
    for name, value in given.items():
        with pytest.raises(TypeError, match=f"^{name} needs shared=: a private limiter"):
            RateLimiter(**{name: value})
    with pytest.raises(TypeError, match=r"^on_mismatch and mode and group and stall_timeout and "):
        RateLimiter(**given)
    RateLimiter(on_mismatch="error", mode=0o600, group=None, on_stall="allow", typical=None)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"stall_timeout": 0}, ValueError, r"stall_timeout must be > 0 seconds, got 0"),
        ({"stall_timeout": -1}, ValueError, r"stall_timeout must be > 0 seconds, got -1"),
        ({"stall_timeout": 1e-10}, ValueError, r"stall_timeout must be > 0 seconds, got 1e-10"),
        ({"stall_timeout": timedelta(0)}, ValueError, "stall_timeout must be > 0 seconds, got "),
        ({"stall_timeout": 86_401}, ValueError, "stall_timeout must be <= 86400 seconds .*86401"),
        ({"stall_timeout": float("nan")}, ValueError, "stall_timeout must be a finite number"),
        ({"stall_timeout": float("inf")}, ValueError, "stall_timeout must be a finite number"),
        ({"stall_timeout": "1"}, TypeError, "stall_timeout must be seconds .* not str"),
        ({"stall_timeout": None}, TypeError, "stall_timeout must be seconds .* not NoneType"),
        ({"stall_timeout": True}, TypeError, "stall_timeout must be seconds .* not bool"),
        ({"on_stall": "panic"}, ValueError, "on_stall must be 'allow', 'deny' or 'wait', not 'pa"),
        ({"on_stall": None}, TypeError, "on_stall must be a str, not NoneType"),
        ({"typical": 0}, ValueError, "typical must be from 1 to the limit of 5, not 0"),
        ({"typical": 6}, ValueError, "typical must be from 1 to the limit of 5, not 6"),
        ({"typical": 2.0}, TypeError, "typical must be an int, not float"),
        ({"max_keys": 2**30 + 1}, ValueError, r"max_keys must be from 1 to 2\*\*30 for a shared"),
        ({"max_keys": 5.0}, TypeError, "max_keys must be an int, not float"),
        ({"mode": "600"}, TypeError, "mode must be an int, not str"),
        ({"mode": True}, TypeError, "mode must be an int, not bool"),
        ({"name": ""}, ValueError, "name must have 1 to 200 characters"),
        ({"on_full": "panic"}, ValueError, "on_full must be"),
        ({"clock": 5}, TypeError, "clock must be a callable"),
    ],
)
@pytest.mark.parametrize("shared", ["api", True])
def test_what_it_refuses(
    folder: Path, shared: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        RateLimiter(5, shared=shared, **options)
    assert not isinstance(caught.value, NanolimitError)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("stall_timeout", [1e-9, 1, 86_400, timedelta(milliseconds=5)])
@pytest.mark.parametrize("on_stall", ["allow", "deny", "wait"])
def test_what_it_takes(folder: Path, stall_timeout: Any, on_stall: Any) -> None:
    with RateLimiter(
        5, shared="api", stall_timeout=stall_timeout, on_stall=on_stall, max_keys=10
    ) as limiter:
        assert limiter.allow("me")


def test_what_the_core_is_told_of_stalls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[object, object]] = []
    make = _core.Limiter

    def seen(*args: Any, **options: Any) -> _core.Limiter:
        told.append((options["stall_ns"], options["on_stall"]))
        return make(*args, **options)

    monkeypatch.setattr(_core, "Limiter", seen)
    RateLimiter(3, shared="api").close()
    RateLimiter(3, shared="api", stall_timeout=1.5, on_stall="deny").close()
    RateLimiter(3, shared="api", stall_timeout=timedelta(days=1), on_stall="wait").close()
    assert told == [(50_000_000, "allow"), (1_500_000_000, "deny"), (86_400 * NS, "wait")]


def test_it_can_t_be_pickled(folder: Path) -> None:
    limiter = RateLimiter(3, shared="api")
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="Make one with the same shared= in each process"):
            way(limiter)


def test_the_default_limiter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default = sys.modules["nanolimit.default"]
    monkeypatch.setattr(default, "_limiter", None)
    limiter = nanolimit.configure("2/hour", shared="api", typical=1, max_keys=10)
    assert (limiter.name, limiter.stats().capacity) == ("default", 10)
    assert [nanolimit.allow("me") for _ in range(3)] == [True, True, False]
    assert "me" in RateLimiter("2/hour", shared="api")


@pytest.mark.parametrize("shared", ["api", True, Path("/nowhere/api")])
def test_a_platform_without_it(folder: Path, monkeypatch: pytest.MonkeyPatch, shared: Any) -> None:
    monkeypatch.setattr(_core, "SHARED", False)
    with pytest.raises(NanolimitError, match=r"needs Linux: .* private limiter .* Redis") as caught:
        RateLimiter(3, shared=shared)
    assert isinstance(caught.value, SharedTableError)
    assert not list(folder.iterdir())
    # A mistake is a mistake everywhere.
    with pytest.raises(ValueError, match="stall_timeout must be > 0"):
        RateLimiter(3, shared=shared, stall_timeout=0)


def test_nobody_learns_who_was_limited(folder: Path) -> None:
    limiter = RateLimiter(3, shared="api")
    assert limiter.allow("alice@example.org")
    assert limiter.allow(b"bob@example.org")
    assert limiter.allow(("tenant-seventeen", 1_234_567_890_123_456_789))
    data = (folder / "api").read_bytes()
    for secret in (b"alice", b"bob@", b"tenant-seventeen"):
        assert secret not in data
    assert (1_234_567_890_123_456_789).to_bytes(8, sys.byteorder) not in data
    # Nor does the same user look the same in two tables.
    other = RateLimiter(3, shared="other")
    assert limiter._engine._fingerprint("me") != other._engine._fingerprint("me")
