"""acquire() in threads: who waits, in which order, until when, and what is left behind."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import threading
import time
import weakref
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from clocks import NanoClock
from nanolimit import LimiterClosedError, ManualClock, RateLimiter, telemetry
from waiters import Waiting, lines, until, waiting


@pytest.fixture
def manual() -> ManualClock:
    return ManualClock(1_000)


@pytest.fixture
def limiter(manual: ManualClock) -> RateLimiter:
    """One request a minute, and that one is gone."""
    limiter = RateLimiter(1, per=60, clock=manual)
    assert limiter.allow("user")
    return limiter


def test_what_fits_does_not_wait(manual: ManualClock) -> None:
    limiter = RateLimiter(5, per=60, clock=manual)
    assert limiter.acquire("user") is True
    assert limiter.acquire("user", 3) is True
    assert limiter.acquire("user", cost=1, timeout=0) is True
    assert limiter.acquire("user", timeout=0) is False
    assert limiter.peek("user").remaining == 0
    assert limiter._waits is not None
    assert lines(limiter) == 0


def test_it_waits_for_the_instant_and_no_longer(limiter: RateLimiter, manual: ManualClock) -> None:
    waiter = Waiting(limiter, lambda: limiter.acquire("user"))
    manual.advance(59.999_999_999)
    time.sleep(0.01)
    assert not waiter.done
    manual.advance(1e-9)
    assert waiter.result() is True
    assert limiter.peek("user").retry_after == 60.0, "it was counted at that instant"
    assert lines(limiter) == 0


def test_a_time_out_counts_in_the_clock_s_time(limiter: RateLimiter, manual: ManualClock) -> None:
    waiter = Waiting(limiter, lambda: limiter.acquire("user", timeout=timedelta(seconds=30)))
    manual.advance(29.999_999_999)
    time.sleep(0.01)
    assert not waiter.done
    manual.advance(1e-9)
    assert waiter.result() is False
    manual.advance(30)
    assert limiter.allow("user"), "nothing was counted"
    assert lines(limiter) == 0


def test_at_the_last_moment_it_asks_first(limiter: RateLimiter, manual: ManualClock) -> None:
    waiter = Waiting(limiter, lambda: limiter.acquire("user", timeout=60))
    manual.advance(60)
    assert waiter.result() is True


def test_nobody_overtakes(limiter: RateLimiter, manual: ManualClock) -> None:
    order: list[int] = []

    def come(number: int) -> None:
        assert limiter.acquire("user")
        order.append(number)

    crew = [Waiting(limiter, lambda number=number: come(number)) for number in range(6)]  # type: ignore[misc]
    assert (waiting(limiter), lines(limiter)) == (6, 1)
    for number in range(6):
        manual.advance(60)
        crew[number].result()
        assert order == list(range(number + 1))
    assert lines(limiter) == 0


def test_a_small_request_does_not_overtake_a_large_one(manual: ManualClock) -> None:
    limiter = RateLimiter(5, per=60, clock=manual)
    assert limiter.allow("user", 2)
    large = Waiting(limiter, lambda: limiter.acquire("user", 4))
    assert limiter.peek("user", 1), "it would fit"
    assert limiter.acquire("user", 1, timeout=0) is False
    small = Waiting(limiter, lambda: limiter.acquire("user", 1, timeout=1_000))
    time.sleep(0.01)
    assert not small.done
    manual.advance(60)
    assert (large.result(), small.result()) == (True, True)
    assert limiter.peek("user").remaining == 0


def test_who_does_not_wait_may_take_what_is_free(limiter: RateLimiter, manual: ManualClock) -> None:
    waiter = Waiting(limiter, lambda: limiter.acquire("user"))
    limiter.reset("user")
    assert limiter.allow("user")
    manual.advance(59)
    time.sleep(0.01)
    assert not waiter.done
    manual.advance(1)
    assert waiter.result() is True


def test_a_time_out_in_the_middle_gives_the_place_back(
    limiter: RateLimiter, manual: ManualClock
) -> None:
    first = Waiting(limiter, lambda: limiter.acquire("user"))
    second = Waiting(limiter, lambda: limiter.acquire("user", timeout=10))
    third = Waiting(limiter, lambda: limiter.acquire("user"))
    manual.advance(10)
    assert second.result() is False
    assert waiting(limiter) == 2
    manual.advance(50)
    assert first.result() is True
    assert not third.done
    manual.advance(60)
    assert third.result() is True


def test_when_the_first_gives_up_the_next_is_first(manual: ManualClock) -> None:
    """The large one leaves; what it waited for is enough for the small one behind it, at once."""
    limiter = RateLimiter(5, per=60, clock=manual)
    limiter.allow("user", 3)
    large = Waiting(limiter, lambda: limiter.acquire("user", 5, timeout=10))
    small = Waiting(limiter, lambda: limiter.acquire("user", 2))
    manual.advance(10)
    assert large.result() is False
    assert small.result() is True
    assert limiter.peek("user").remaining == 0


def test_a_waiting_key_delays_no_other(limiter: RateLimiter, manual: ManualClock) -> None:
    waiter = Waiting(limiter, lambda: limiter.acquire("user"))
    assert limiter.acquire("other", timeout=0)
    later = Waiting(limiter, lambda: limiter.acquire("other"))
    limiter.reset("other")
    manual.advance(0)
    assert later.result() is True
    assert not waiter.done
    manual.advance(60)
    assert waiter.result() is True


@pytest.mark.parametrize("same", [(True, 1), (b"x" * 3, b"xxx"), (("a", 1), ("a", True))])
def test_keys_that_count_together_stand_in_one_line(same: Any, manual: ManualClock) -> None:
    limiter = RateLimiter(1, per=60, clock=manual)
    one, two = same
    limiter.allow(one)
    waiter = Waiting(limiter, lambda: limiter.acquire(one))
    limiter.reset(two)
    assert limiter.peek(two)
    assert limiter.acquire(two, timeout=0) is False
    manual.advance(0)
    assert waiter.result() is True


def test_cost_0_is_granted_at_once(limiter: RateLimiter) -> None:
    assert limiter.acquire("user", 0, timeout=0) is True
    waiter = Waiting(limiter, lambda: limiter.acquire("user"))
    assert limiter.acquire("user", 0) is True
    limiter.close()
    with pytest.raises(LimiterClosedError):
        waiter.result()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("user", 2), ValueError, "cost must be <= the limit of 1, got 2: it could never pass"),
        (("user", -1), ValueError, "cost must be >= 0, got -1"),
        (("user", 1.0), TypeError, "cost must be an int"),
        ((None,), TypeError, "NoneType"),
        (("user", 1, -0.5), ValueError, "timeout must be >= 0 seconds, or None .*, not -0.5"),
        (("user", 1, timedelta(days=-1)), ValueError, "timeout must be >= 0 seconds"),
        (("user", 1, math.nan), ValueError, "timeout must be a finite number of seconds"),
        (("user", 1, math.inf), ValueError, "timeout must be a finite number of seconds"),
        (("user", 1, "1"), TypeError, "timeout must be seconds as int or float, .* not str"),
        (("user", 1, True), TypeError, "timeout must be seconds"),
    ],
)
def test_bad_arguments(
    arguments: Any, error: type[Exception], message: str, limiter: RateLimiter
) -> None:
    for call in (limiter.acquire, lambda *args: limiter.slot(*args).__enter__()):
        with pytest.raises(error, match=message):
            call(*arguments)
    waiter = Waiting(limiter, lambda: limiter.acquire("user", timeout=1))
    with pytest.raises(error, match=message):  # even where it would have to stand in line
        limiter.acquire(*arguments)
    assert waiting(limiter) == 1
    limiter.close()
    with pytest.raises(LimiterClosedError):
        waiter.result()


@pytest.mark.parametrize("timeout", [10**400, 1e308])
def test_a_time_out_of_any_length(timeout: float, manual: ManualClock) -> None:
    for limiter in (RateLimiter(1, per=60, clock=manual), RateLimiter(1, per=0.02)):
        limiter.allow("user")
        waiter = Waiting(limiter, lambda limiter=limiter: limiter.acquire("user", timeout=timeout))  # type: ignore[misc]
        manual.advance(60)
        assert waiter.result() is True


def test_who_waits_is_not_denied(limiter: RateLimiter, manual: ManualClock) -> None:
    heard: list[tuple[str, object]] = []
    telemetry.attach(
        "test", ["allowed", "denied"], lambda event, _, data: heard.append((event, data["key"]))
    )
    try:
        before = limiter.stats()
        waiter = Waiting(limiter, lambda: limiter.acquire("user"))
        manual.advance(10)
        assert limiter.acquire("user", timeout=0) is False
        manual.advance(50)
        assert waiter.result() is True
    finally:
        telemetry.detach("test")
    assert heard == [("allowed", "user")]
    after = limiter.stats()
    assert (after.allowed - before.allowed, after.denied - before.denied) == (1, 0)


def test_close_tells_those_who_wait(limiter: RateLimiter) -> None:
    crew = [Waiting(limiter, lambda: limiter.acquire("user")) for _ in range(3)]
    limiter.allow("other")
    crew.append(Waiting(limiter, lambda: limiter.acquire("other", timeout=1e6)))
    limiter.close()
    for waiter in crew:
        with pytest.raises(LimiterClosedError):
            waiter.result()
    assert lines(limiter) == 0
    with pytest.raises(LimiterClosedError):
        limiter.acquire("user")
    limiter.close()


def test_close_in_real_time(manual: ManualClock) -> None:
    with RateLimiter(1, per=3_600) as limiter:
        limiter.allow("user")
        crew = [Waiting(limiter, lambda: limiter.acquire("user")) for _ in range(3)]
    for waiter in crew:
        with pytest.raises(LimiterClosedError):
            waiter.result()


def test_a_subclass_with_a_close_of_its_own() -> None:
    closed: list[int] = []

    class Own(RateLimiter):
        def close(self) -> None:
            closed.append(1)
            super().close()

    limiter = Own(1, per=3_600)
    limiter.allow("user")
    waiter = Waiting(limiter, lambda: limiter.acquire("user"))
    limiter.close()
    with pytest.raises(LimiterClosedError):
        waiter.result()
    assert closed == [1]


def test_an_error_of_the_clock_reaches_the_one_who_waits_and_the_next_is_first() -> None:
    clock = NanoClock(10**12)
    limiter = RateLimiter(1, per=0.02, clock=clock)
    limiter.allow("user")
    first = Waiting(limiter, lambda: limiter.acquire("user"))
    second = Waiting(limiter, lambda: limiter.acquire("user"))
    clock.ns = -1
    with pytest.raises(ValueError, match="clock"):
        first.result()
    with pytest.raises(ValueError, match="clock"):
        second.result()
    assert lines(limiter) == 0


def test_any_other_clock_is_asked_again_in_real_time() -> None:
    clock = NanoClock(10**12)
    limiter = RateLimiter(1, per=0.02, clock=clock)
    limiter.allow("user")
    waiter = Waiting(limiter, lambda: limiter.acquire("user"))
    time.sleep(0.05)
    assert not waiter.done, "its clock stands still"
    clock.ns += 10**9
    assert waiter.result() is True
    assert limiter.acquire("user", timeout=0.03) is False


def test_advance_without_waiters_knows_of_nobody(manual: ManualClock) -> None:
    limiter = RateLimiter(1, per=60, clock=manual)
    assert limiter.acquire("user")
    assert not manual._watchers
    waiter = Waiting(limiter, lambda: limiter.acquire("user"))
    assert manual._watchers
    manual.advance(60)
    waiter.result()
    assert not manual._watchers


def test_a_limiter_that_was_waited_for_is_forgotten_like_any_other(manual: ManualClock) -> None:
    limiter = RateLimiter(1, per=60, clock=manual)
    limiter.allow("user")
    waiter = Waiting(limiter, partial(limiter.acquire, "user"))
    manual.advance(60)
    waiter.result()
    gone = weakref.ref(limiter)
    del limiter, waiter
    gc.collect()
    assert gone() is None


def test_real_time_is_kept() -> None:
    limiter = RateLimiter(1, per=0.05)
    start = time.monotonic()
    assert [limiter.acquire("user") for _ in range(4)] == [True] * 4
    took_s = time.monotonic() - start
    assert 0.15 <= took_s < 0.15 + 1
    limiter = RateLimiter(1, per=3_600)
    limiter.allow("user")
    start = time.monotonic()
    assert limiter.acquire("user", timeout=0.01) is False
    assert time.monotonic() - start >= 0.01


def test_it_sleeps_and_does_not_ask_again_and_again() -> None:
    asked: list[int] = []

    class Counting(RateLimiter):
        def peek(self, key: Any, cost: int = 1) -> Any:
            asked.append(1)
            return super().peek(key, cost)

    limiter = Counting(1, per=0.3)
    limiter.allow("user")
    crew = [Waiting(limiter, lambda: limiter.acquire("user")) for _ in range(3)]
    for waiter in crew:
        waiter.result()
    # Each: when it comes, when it is first, and when it is time; a little more if a sleep is short.
    assert len(asked) <= 3 * 3 + 6


def test_a_clock_that_moves_before_one_has_lain_down(manual: ManualClock) -> None:
    class Moving(RateLimiter):
        def peek(self, key: Any, cost: int = 1) -> Any:
            decision = super().peek(key, cost)
            if not decision:
                manual.advance(60)
            return decision

    limiter = Moving(1, per=60, clock=manual)
    limiter.allow("user")
    assert Waiting(limiter, lambda: limiter.acquire("user")).result() is True


def test_a_signal_while_it_leaves(
    limiter: RateLimiter, manual: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is gone, and nobody was told yet: it must not end so."""
    first = Waiting(limiter, lambda: limiter.acquire("user", timeout=10))
    second = Waiting(limiter, lambda: limiter.acquire("user", timeout=70))
    kind = type(limiter._waits)
    promote = kind.promote
    calls: list[int] = []

    def interrupted(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        promote(*args)

    monkeypatch.setattr(kind, "promote", interrupted)
    manual.advance(10)
    with pytest.raises(KeyboardInterrupt):
        first.result()
    assert len(calls) == 2
    manual.advance(50)
    assert second.result() is True


def test_no_thread_is_started(limiter: RateLimiter, manual: ManualClock) -> None:
    before = threading.active_count()
    waiter = Waiting(limiter, lambda: limiter.acquire("user"))
    assert threading.active_count() == before + 1, "the one that waits"
    manual.advance(60)
    waiter.result()


def test_waiting_in_threads_imports_no_asyncio() -> None:
    code = """
import sys
from nanolimit import RateLimiter
assert "nanolimit.line" not in sys.modules
limiter = RateLimiter(1, per=0.01)
assert limiter.acquire("me") and limiter.acquire("me")
with limiter.slot("me"):
    pass
limiter.close()
print([name for name in ("asyncio", "anyio", "nanolimit.tasks") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"],
        timeout=120, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_lower_limit_tells_who_can_never_pass(manual: ManualClock, folder: object) -> None:
    limiter = RateLimiter(3, per=60, clock=manual, shared="waiting")
    limiter.allow("user", 3)
    waiter = Waiting(limiter, lambda: limiter.acquire("user", 3))
    limiter._engine.set_limit(2)
    manual.advance(0)
    with pytest.raises(ValueError, match="it could never pass"):
        waiter.result()
    limiter.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="shared tables are Linux's")
def test_a_shared_table(folder: object) -> None:
    one = RateLimiter(1, per=0.05, shared="waiting")
    two = RateLimiter(1, per=0.05, shared="waiting")
    start = time.monotonic()
    assert one.acquire("user")
    assert two.acquire("user")
    assert one.acquire("user")
    assert time.monotonic() - start >= 0.1
    waiter = Waiting(one, lambda: one.acquire("user"))
    one.close()
    with pytest.raises(LimiterClosedError):
        waiter.result()
    with pytest.raises(LimiterClosedError):
        one.acquire("user")
    two.close()


def test_the_line_is_gone_when_nobody_waits(limiter: RateLimiter, manual: ManualClock) -> None:
    for key in ("a", "b", "c"):
        limiter.allow(key)
    crew = [Waiting(limiter, lambda key=key: limiter.acquire(key, timeout=5)) for key in "abc"]  # type: ignore[misc]
    assert lines(limiter) == 3
    manual.advance(5)
    assert [waiter.result() for waiter in crew] == [False] * 3
    until(lambda: lines(limiter) == 0)
