"""nanolimit.compat.ratelimit beside ratelimit 2.2.1: each expectation is asked of both."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any
from unittest import mock

import freezegun
import pytest
import ratelimit
import time_machine
from hypothesis import given
from hypothesis import strategies as st

from nanolimit import ManualClock, RateLimiter, SharedTableError
from nanolimit.compat import ratelimit as compat

PEERS = [pytest.param(ratelimit, id="original"), pytest.param(compat, id="ours")]
both = pytest.mark.parametrize("peer", PEERS)


class Clock:
    """A clock that counts how often it is asked."""

    def __init__(self, now: Any = 0) -> None:
        self.now = now
        self.asked = 0

    def __call__(self) -> Any:
        self.asked += 1
        return self.now


def outcome(function: Callable[[], object]) -> object:
    """What a call gives: its result, or what the exception says."""
    try:
        return function()
    except (ratelimit.RateLimitException, compat.RateLimitException) as denied:
        return (str(denied), denied.period_remaining)


def outcomes(function: Callable[[], object], number: int) -> list[object]:
    return [outcome(function) for _ in range(number)]


# What both do


@both
def test_names(peer: Any) -> None:
    assert peer.rate_limited is peer.limits
    assert peer.__version__ == "2.2.1"
    assert inspect.isclass(peer.limits)
    assert set(peer.__all__) == {"RateLimitException", "limits", "rate_limited", "sleep_and_retry"}
    assert issubclass(peer.RateLimitException, Exception)


@both
def test_fifteen_calls_in_fifteen_minutes_by_default(peer: Any) -> None:
    clock = Clock()
    made = peer.limits(clock=clock)
    assert (made.clamped_calls, made.period, made.raise_on_limit) == (15, 900, True)
    call = made(lambda: "done")
    assert outcomes(call, 16) == ["done"] * 15 + [("too many calls", 900)]


@both
def test_arguments_by_position(peer: Any) -> None:
    call = peer.limits(1, 10, Clock(), False)(lambda: "done")
    assert outcomes(call, 2) == ["done", None]


@both
def test_a_window_ends_when_exactly_a_period_has_passed(peer: Any) -> None:
    clock = Clock()
    call = peer.limits(2, 10, clock)(lambda: "done")
    assert outcomes(call, 3) == ["done", "done", ("too many calls", 10)]
    clock.now = 9.5
    assert outcome(call) == ("too many calls", 0.5)
    clock.now = 10
    assert outcomes(call, 3) == ["done", "done", ("too many calls", 10)]
    clock.now = 19.75
    assert outcome(call) == ("too many calls", 0.25)


@both
def test_a_late_call_begins_a_whole_window(peer: Any) -> None:
    clock = Clock()
    call = peer.limits(1, 10, clock)(lambda: "done")
    clock.now = 25
    assert outcomes(call, 2) == ["done", ("too many calls", 10)]


@both
def test_the_first_window_begins_where_the_decorator_is_made(peer: Any) -> None:
    clock = Clock(100)
    call = peer.limits(1, 10, clock)(lambda: "done")
    clock.now = 109
    assert outcomes(call, 2) == ["done", ("too many calls", 1)]
    clock.now = 110
    assert outcome(call) == "done"
    clock.now = 119
    assert outcome(call) == ("too many calls", 1)


@both
def test_denied_calls_change_nothing(peer: Any) -> None:
    clock = Clock()
    call = peer.limits(1, 10, clock)(lambda: "done")
    call()
    for clock.now in range(1, 10):
        assert outcome(call) == ("too many calls", 10 - clock.now)
    clock.now = 10
    assert outcome(call) == "done"


@both
@pytest.mark.parametrize(
    ("calls", "clamped"),
    [(0, 1), (-3, 1), (1, 1), (2.9, 2), (-0.5, 1), (True, 1), (10**30, sys.maxsize), (0.2, 1)],
)
def test_calls_are_rounded_down_and_one_at_least(peer: Any, calls: float, clamped: int) -> None:
    assert peer.limits(calls, 1, Clock()).clamped_calls == clamped


@both
@pytest.mark.parametrize(
    ("calls", "error"),
    [
        ("3", TypeError),
        (None, TypeError),
        (float("nan"), ValueError),
        (float("inf"), OverflowError),
    ],
)
def test_calls_that_are_no_number(peer: Any, calls: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        peer.limits(calls, 1)


@both
def test_a_clock_that_is_none(peer: Any) -> None:
    with pytest.raises(TypeError):
        peer.limits(1, 1, clock=3)


@both
@pytest.mark.parametrize("period", [0, -1, 0.0])
def test_no_period_is_no_limit(peer: Any, period: float) -> None:
    assert outcomes(peer.limits(1, period, Clock())(lambda: "done"), 5) == ["done"] * 5


@both
def test_without_an_exception(peer: Any) -> None:
    called: list[int] = []
    clock = Clock()
    call = peer.limits(2, 10, clock, raise_on_limit=False)(lambda: called.append(1) or "done")
    assert outcomes(call, 4) == ["done", "done", None, None]
    assert len(called) == 2
    clock.now = 10
    assert outcome(call) == "done"


@both
def test_one_decorator_has_one_count(peer: Any) -> None:
    limit = peer.limits(3, 10, Clock())
    one, two = limit(lambda: "one"), limit(lambda: "two")
    assert [one(), two(), one()] == ["one", "two", "one"]
    assert outcome(two) == ("too many calls", 10)
    other = peer.limits(3, 10, Clock())(lambda: "other")
    assert outcome(other) == "other"


@both
def test_methods_share_the_count_of_their_class(peer: Any) -> None:
    class Client:
        def __init__(self, name: str) -> None:
            self.name = name

        @peer.limits(2, 10, Clock())
        def fetch(self, path: str, *, times: int = 1) -> str:
            return f"{self.name} {path * times}"

        @classmethod
        @peer.limits(1, 10, Clock())
        def make(cls) -> str:
            return cls.__name__

        @staticmethod
        @peer.limits(1, 10, Clock())
        def tell() -> int:
            return 7

    one, two = Client("one"), Client("two")
    assert one.fetch("a", times=2) == "one aa"
    assert two.fetch(path="b") == "two b"
    for client in (one, two):
        with pytest.raises(peer.RateLimitException):
            client.fetch("c")
    assert (Client.make(), Client.tell()) == ("Client", 7)
    for call in (one.make, Client.make, one.tell):
        assert outcome(call) == ("too many calls", 10)


@both
@pytest.mark.parametrize("decorator", ["limits", "sleep_and_retry"])
def test_what_is_decorated_keeps_its_looks(peer: Any, decorator: str) -> None:
    def add(one: int, two: int = 2) -> int:
        """Add."""
        return one + two

    add.mark = "mine"  # type: ignore[attr-defined]
    decorated = (peer.limits(5, 10) if decorator == "limits" else peer.sleep_and_retry)(add)
    assert (decorated.__name__, decorated.__doc__, decorated.mark) == ("add", "Add.", "mine")
    assert decorated.__wrapped__ is add
    assert list(inspect.signature(decorated).parameters) == ["one", "two"]
    assert (decorated(1), decorated(1, two=5)) == (3, 6)


@both
def test_any_callable_is_decorated(peer: Any) -> None:
    class Adder:
        def __call__(self, one: int) -> int:
            return one + 1

    assert peer.limits(1, 10)(Adder())(1) == 2
    assert peer.limits(1, 10)(functools.partial(int, "12"))() == 12


@both
def test_a_call_that_fails_counts(peer: Any) -> None:
    @peer.limits(2, 10, Clock())
    def fail() -> None:
        raise KeyError("mine")

    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            fail()
    with pytest.raises(peer.RateLimitException):
        fail()


@both
def test_a_function_that_calls_itself_counts_each_call(peer: Any) -> None:
    depth = 0

    @peer.limits(3, 10, Clock())
    def down() -> None:
        nonlocal depth
        depth += 1
        down()

    with pytest.raises(peer.RateLimitException):
        down()
    assert depth == 3


@both
def test_the_function_runs_outside_the_lock(peer: Any) -> None:
    inside, leave = threading.Event(), threading.Event()

    @peer.limits(2, 10, Clock())
    def call(wait: bool) -> None:
        if wait:
            inside.set()
            assert leave.wait(10)

    other = threading.Thread(target=call, args=(True,))
    other.start()
    try:
        assert inside.wait(10)
        call(False)
        assert other.is_alive()
    finally:
        leave.set()
        other.join()


@both
def test_coroutine_functions_are_counted_when_they_are_called(peer: Any) -> None:
    @peer.limits(1, 10, Clock())
    async def fetch() -> int:
        return 7

    coroutine = fetch()
    assert outcome(fetch) == ("too many calls", 10)
    assert asyncio.run(coroutine) == 7
    assert not inspect.iscoroutinefunction(fetch)


@both
def test_a_clock_that_goes_back(peer: Any) -> None:
    clock = Clock(100)
    call = peer.limits(1, 10, clock)(lambda: "done")
    call()
    clock.now = 50
    assert outcome(call) == ("too many calls", 60)
    clock.now = 109
    assert outcome(call) == ("too many calls", 1)
    clock.now = 110
    assert outcome(call) == "done"


@both
@pytest.mark.parametrize("start", [0, -1_000, 1e9, Fraction(1, 3)])
def test_a_clock_may_start_anywhere(peer: Any, start: Any) -> None:
    clock = Clock(start)
    call = peer.limits(1, Fraction(1, 2), clock)(lambda: "done")
    assert outcomes(call, 2) == ["done", ("too many calls", 0.5)]
    clock.now += Fraction(1, 2)
    assert outcome(call) == "done"


@both
def test_how_often_the_clock_is_asked(peer: Any) -> None:
    clock = Clock()
    limit = peer.limits(1, 10, clock)
    assert clock.asked == 1
    call = limit(lambda: "done")
    assert clock.asked == 1
    outcomes(call, 2)
    assert clock.asked == 3
    clock.now = 10
    outcome(call)
    assert clock.asked == 5, "once to look, once for the window that begins"


@both
def test_a_window_begins_with_the_second_look_at_the_clock(peer: Any) -> None:
    call = peer.limits(1, 10, iter([0, 12, 13, 22, 23, 24]).__next__)(lambda: "done")
    assert outcomes(call, 3) == ["done", ("too many calls", 1), "done"]


@both
def test_a_clock_that_fails_counts_nothing(peer: Any) -> None:
    clock = mock.Mock(side_effect=[0, OSError("no time"), 1, 2])
    call = peer.limits(1, 10, clock)(lambda: "done")
    with pytest.raises(OSError, match="no time"):
        call()
    assert outcomes(call, 2) == ["done", ("too many calls", 8)]


@both
def test_the_state_is_open(peer: Any) -> None:
    clock = Clock(5)
    limit = peer.limits(1, 10, clock)
    call = limit(lambda: "done")
    outcomes(call, 3)
    assert (limit.num_calls, limit.last_reset, limit.clock) == (3, 5, clock)
    limit.num_calls = 0
    assert outcome(call) == "done"
    with limit.lock:
        assert outcome(call) == ("too many calls", 10)
    limit.clamped_calls = 100
    limit.period = 1_000
    limit.raise_on_limit = False
    assert outcome(call) == "done"


@both
def test_the_exception(peer: Any) -> None:
    error = peer.RateLimitException("mine", 1.5)
    assert (str(error), error.args, error.period_remaining) == ("mine", ("mine",), 1.5)
    error = peer.RateLimitException(message="mine", period_remaining=2)
    assert error.period_remaining == 2


# sleep_and_retry


@both
def test_sleep_and_retry_sleeps_what_remains(peer: Any) -> None:
    clock = Clock()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds

    @peer.sleep_and_retry
    @peer.limits(2, 10, clock)
    def call(value: int, *, twice: bool = False) -> int:
        return value * (2 if twice else 1)

    with mock.patch("time.sleep", sleep):
        assert [call(1), call(2, twice=True)] == [1, 4]
        clock.now = 4
        assert [call(3), call(4), call(5, twice=True)] == [3, 4, 10]
    assert slept == [6, 10]


@both
def test_sleep_and_retry_goes_on_until_it_passes(peer: Any) -> None:
    clock = Clock()
    slept: list[float] = []

    def nap(seconds: float) -> None:
        slept.append(seconds)
        clock.now += 4  # wakes early

    @peer.sleep_and_retry
    @peer.limits(1, 10, clock)
    def call() -> str:
        return "done"

    with mock.patch("time.sleep", nap):
        assert [call(), call()] == ["done", "done"]
    assert slept == [10, 6, 2]


@both
def test_sleep_and_retry_calls_the_whole_function_again(peer: Any) -> None:
    steps: list[str] = []
    clock = Clock()

    @peer.limits(1, 10, clock)
    def request() -> None:
        steps.append("request")

    @peer.sleep_and_retry
    def work() -> None:
        steps.append("work")
        request()

    def sleep(seconds: float) -> None:
        steps.append("sleep")
        clock.now += seconds

    with mock.patch("time.sleep", sleep):
        work()
        work()
    assert steps == ["work", "request", "work", "sleep", "work", "request"]


@both
def test_sleep_and_retry_lets_other_exceptions_through(peer: Any) -> None:
    @peer.sleep_and_retry
    def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()


@both
def test_sleep_and_retry_in_real_time(peer: Any) -> None:
    before = time.monotonic()
    call = peer.sleep_and_retry(peer.limits(1, 0.05)(lambda: "done"))
    assert [call(), call(), call()] == ["done"] * 3
    assert time.monotonic() - before >= 0.0999


# Frozen time


@both
def test_freezegun(peer: Any) -> None:
    with freezegun.freeze_time("2030-01-01 12:00:00") as frozen:
        call = peer.limits(1, 60, clock=time.time)(lambda: "done")
        assert outcomes(call, 2) == ["done", ("too many calls", 60)]
        frozen.tick(59)
        assert outcome(call) == ("too many calls", 1)
        frozen.tick(1)
        assert outcome(call) == "done"


@both
def test_freezegun_with_a_decorator_that_was_made_before(peer: Any) -> None:
    with freezegun.freeze_time("2030-01-01 12:00:00"):
        call = peer.limits(1, 60, clock=lambda: time.time())(lambda: "done")
    with freezegun.freeze_time("2030-01-01 12:00:30", auto_tick_seconds=0) as frozen:
        assert outcomes(call, 2) == ["done", ("too many calls", 30)]
        frozen.move_to("2030-01-01 12:01:00")
        assert outcome(call) == "done"


@both
def test_time_machine(peer: Any) -> None:
    with time_machine.travel(1_000_000.0, tick=False) as traveller:
        call = peer.limits(1, 60, clock=time.time)(lambda: "done")
        assert outcomes(call, 2) == ["done", ("too many calls", 60)]
        traveller.shift(59)
        assert outcome(call) == ("too many calls", 1)
        traveller.shift(1)
        assert outcome(call) == "done"


# Side by side

seconds = st.floats(-5, 25, allow_nan=False) | st.integers(-5, 25) | st.sampled_from([0, 10, 10.0])


@given(
    calls=st.integers(-1, 5) | st.floats(-1, 5),
    period=st.sampled_from([10, 0.1, 7.3, 0]) | st.floats(-1, 20),
    raises=st.booleans(),
    start=st.sampled_from([0, -3.5, 1e9]),
    steps=st.lists(st.tuples(seconds, st.integers(1, 4)), max_size=30),
)
def test_the_same_decisions(
    calls: float, period: float, raises: bool, start: float, steps: list[tuple[float, int]]
) -> None:
    clock = Clock(start)
    made = [peer.limits(calls, period, clock, raises) for peer in (ratelimit, compat)]
    theirs, ours = (limit(lambda: "done") for limit in made)
    for step, number in steps:
        clock.now += step
        assert outcomes(theirs, number) == outcomes(ours, number)
        assert made[0].last_reset == made[1].last_reset
        assert made[0].num_calls == made[1].num_calls


@both
@pytest.mark.usefixtures("restless")
def test_threads_pass_no_call_too_many(peer: Any) -> None:
    passed: list[int] = []
    call = peer.limits(500, 10, Clock(), raise_on_limit=False)(lambda: passed.append(1))

    def work() -> None:
        for _ in range(200):
            call()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passed) == 500


class Remaining(float):
    """What remains of a period; whoever looks whether it is over lets another thread come."""

    meanwhile: Callable[[], None] | None = None

    def __le__(self, other: float) -> bool:
        answer = float(self) <= other
        meanwhile, Remaining.meanwhile = Remaining.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return answer


class Period(float):
    def __sub__(self, elapsed: float) -> Remaining:
        return Remaining(float(self) - elapsed)


@both
def test_two_that_find_a_window_over(peer: Any) -> None:
    """One looks, another one comes and takes the only call of the new window, the first goes on."""
    clock = Clock()
    call = peer.limits(1, Period(10), clock)(lambda: "done")
    clock.now = 10
    seen: list[object] = []
    other = threading.Thread(target=lambda: seen.append(outcome(call)))

    def meanwhile() -> None:
        other.start()
        other.join(0.2)  # it waits for the lock

    Remaining.meanwhile = meanwhile
    seen.append(outcome(call))
    other.join()
    assert sorted(seen, key=str) == [("too many calls", 10), "done"]


# What ours does besides


def test_ours_says_at_once_that_a_period_is_none() -> None:
    for period in ("3", None, [1]):
        with pytest.raises(TypeError, match="period must be a number of seconds, as the clock"):
            compat.limits(1, period)
    with pytest.raises(ValueError, match="period must be a number of seconds, not NaN"):
        compat.limits(1, float("nan"))


def test_our_exception_can_be_pickled() -> None:
    error = compat.RateLimitException("mine", 1.5)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.args, again.period_remaining) == ("mine", ("mine",), 1.5)
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(ratelimit.RateLimitException("theirs", 1.5)))


def test_the_exact_window() -> None:
    """Ten calls just before the edge of a window, ten just after it."""

    def passed(limit: Any, clock: Clock) -> int:
        call = limit(lambda: "done")
        clock.now = 59.9
        before = outcomes(call, 20).count("done")
        clock.now = 60.1
        return before + outcomes(call, 20).count("done")

    clock = Clock()
    assert passed(ratelimit.limits(10, 60, clock), clock) == 20
    clock = Clock()
    assert passed(compat.limits(10, 60, clock), clock) == 20
    clock = Clock(0.0)
    assert passed(compat.limits(10, 60, clock, algorithm="sliding-log"), clock) == 10


@pytest.mark.parametrize(
    ("algorithm", "remaining"),
    [("sliding-log", 56.0), ("fixed-window", 56.0), ("gcra", 26.0), ("sliding-counter", 86.0)],
)
def test_the_algorithms(algorithm: Any, remaining: float) -> None:
    clock = ManualClock()
    limit = compat.limits(2, 60, clock, algorithm=algorithm)
    call = limit(lambda: "done")
    assert outcomes(call, 2) == ["done", "done"]
    clock.advance(4)
    assert outcome(call) == ("too many calls", remaining)
    clock.advance(remaining)
    assert outcome(call) == "done"
    limiter = limit.limiter
    assert isinstance(limiter, RateLimiter)
    assert (limiter.algorithm, limiter.quota.limit) == (algorithm, 2)
    assert (limiter.stats().allowed, limiter.stats().denied) == (3, 1)


def test_the_engine_sleeps_and_retries() -> None:
    clock = ManualClock()
    with mock.patch("time.sleep", clock.advance):
        call = compat.sleep_and_retry(
            compat.limits(2, 60, clock, algorithm="sliding-log")(clock.__call__)
        )
        assert [call() for _ in range(5)] == [0, 0, 60, 60, 120]


def test_the_engine_returns_none() -> None:
    limit = compat.limits(1, 60, raise_on_limit=False, algorithm="gcra")
    assert outcomes(limit(lambda: "done"), 2) == ["done", None]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"calls": 2**25, "algorithm": "gcra"}, ValueError, "calls must be <= 16777216 with"),
        ({"period": 0, "algorithm": "gcra"}, ValueError, "period must be from 1e-6 to 315576000"),
        ({"period": -1, "shared": "x"}, ValueError, "period must be from 1e-6 to 315576000"),
        ({"period": "1", "algorithm": "gcra"}, TypeError, "period must be seconds"),
        ({"algorithm": "log"}, ValueError, "algorithm must be"),
        ({"algorithm": 3}, TypeError, "algorithm must be"),
        ({"on_mismatch": "adopt"}, TypeError, "on_mismatch needs shared="),
        ({"on_mismatch": "adopt", "algorithm": "gcra"}, TypeError, "on_mismatch needs shared="),
        ({"clock": 3, "algorithm": "gcra"}, TypeError, "clock must be a callable"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compat.limits(**arguments)


@pytest.mark.usefixtures("tables")
def test_decorators_of_one_name_have_one_count() -> None:
    one = compat.limits(3, 60, shared="api")(lambda: "one")
    two = compat.limits(3, 60, shared="api")(lambda: "two")
    assert [one(), two(), one()] == ["one", "two", "one"]
    denied: Any = outcome(two)
    assert denied[0] == "too many calls"
    assert 0 < denied[1] <= 60
    with pytest.raises(SharedTableError):
        compat.limits(4, 60, shared="api")
    more = compat.limits(4, 60, shared="api", on_mismatch="replace")(lambda: "more")
    assert outcome(more) == "more"


@pytest.mark.usefixtures("tables")
def test_a_shared_count_made_in_frozen_time_has_the_engines_clock() -> None:
    first = compat.limits(1, 60, shared="api")(lambda: "done")
    with freezegun.freeze_time("2030-01-01"):
        second = compat.limits(1, 60, shared="api")(lambda: "done")
    assert outcome(first) == "done"
    assert outcome(second) != "done"


WORKER = """
import json, sys
from nanolimit.compat.ratelimit import limits
call = limits(100, 600, raise_on_limit=False, shared="api", algorithm=sys.argv[1])(lambda: 1)
sys.stdin.readline()
print(json.dumps(sum(call() or 0 for _ in range(80))))
"""


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("algorithm", ["fixed-window", "sliding-log"])
def test_processes_have_one_count(algorithm: str) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, algorithm],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    passed = [json.loads(worker.communicate(timeout=60)[0]) for worker in workers]
    assert sum(passed) == 100


def in_child(work: Callable[[], bool]) -> bool:
    """Whether `work` says so in a forked child."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_finds_the_lock_open() -> None:
    limit = compat.limits(2, 60, Clock())
    call = limit(lambda: "done")
    call()
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with limit.lock:
            held.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        assert in_child(lambda: outcomes(call, 2) == ["done", ("too many calls", 60)])
    finally:
        leave.set()
        thread.join()
