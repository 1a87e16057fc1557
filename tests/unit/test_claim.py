"""check_all: several limiters and keys, all or nothing."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from nanolimit import ManualClock, Quota, RateLimiter, _core, check_all, telemetry
from nanolimit.errors import LimiterClosedError
from sharing import needs_shared


@pytest.fixture
def manual() -> ManualClock:
    return ManualClock(1_000.0)


def test_all_or_nothing(manual: ManualClock) -> None:
    users = RateLimiter("2/minute", clock=manual)
    addresses = RateLimiter("3/minute", clock=manual)
    assert check_all([(users, "ann"), (addresses, "1.2.3.4")])
    assert check_all([(users, "ann"), (addresses, "1.2.3.4")])
    denied = check_all([(users, "ann"), (addresses, "1.2.3.4")])
    assert not denied
    assert denied.violated == Quota(2, 60)
    assert denied.retry_after == 60.0
    assert addresses.peek("1.2.3.4").remaining == 1
    assert check_all([(users, "bob"), (addresses, "1.2.3.4")])
    assert not check_all([(users, "bob"), (addresses, "1.2.3.4")])
    assert users.peek("bob").remaining == 1


def test_who_counts_what(manual: ManualClock) -> None:
    """A request counts for those who let it pass when all did, else for those who denied it."""
    first = RateLimiter(1, clock=manual, name="first")
    second = RateLimiter(5, clock=manual, name="second")
    told: list[tuple[str, object, object]] = []
    telemetry.attach(
        "here", ["allowed", "denied"], lambda e, m, d: told.append((e, d["limiter"], d["key"]))
    )
    try:
        check_all([(first, "a"), (second, "b", 2)])
        check_all([(first, "a"), (second, "b", 2)])
    finally:
        telemetry.detach("here")
    assert told == [("allowed", "first", "a"), ("allowed", "second", "b"), ("denied", "first", "a")]
    assert first.stats()[:2] == (1, 1)
    assert second.stats()[:2] == (1, 0)


def test_the_longest_wait_binds() -> None:
    slow, fast = ManualClock(50.0), ManualClock(7.0)
    hour = RateLimiter("1/hour", clock=slow)
    minute = RateLimiter("1/minute", clock=fast)
    check_all([(minute, "a"), (hour, "a")])
    assert check_all([(minute, "a"), (hour, "a")]).retry_after == 3_600.0
    slow.advance(3_590)
    assert check_all([(minute, "a"), (hour, "a")]).violated == Quota(1, 60)


def test_the_same_key_twice_adds_up(manual: ManualClock) -> None:
    limiter = RateLimiter("5/minute", clock=manual)
    assert check_all([(limiter, "a", 2), (limiter, "a", 2), (limiter, "b")])
    assert limiter.peek("a").remaining == 1
    assert not check_all([(limiter, "a"), (limiter, "a")])
    with pytest.raises(ValueError, match="add up to 6, above the limit of 5"):
        check_all([(limiter, "a", 3), (limiter, "a", 3)])
    assert limiter.peek("a").remaining == 1


@needs_shared
def test_several_quotas_and_shared_tables(manual: ManualClock) -> None:
    several = RateLimiter("2/second; 3/hour", clock=manual, shared=True, max_keys=10)
    one = RateLimiter("9/hour", clock=manual)
    assert check_all([(one, "a", 3), (several, "a", 2)])
    manual.advance(1)
    decision = check_all([(one, "a", 3), (several, "a", 2)])
    assert decision.violated == Quota(3, 3_600)
    assert one.peek("a").remaining == 6


@needs_shared
def test_two_limiters_on_one_file(tmp_path: Any) -> None:
    """The same log under two addresses is one log."""
    both = [RateLimiter("5/minute", shared=tmp_path / "one", max_keys=10) for _ in range(2)]
    assert check_all([(both[0], "a", 2), (both[1], "a", 2)])
    assert both[0].peek("a").remaining == 1


@pytest.mark.parametrize(
    "shared",
    [pytest.param(False, id="private"), pytest.param(True, id="shared", marks=needs_shared)],
)
@pytest.mark.parametrize("algorithm", _core.ALGORITHMS)
@pytest.mark.parametrize("on_full", ["allow", "deny", "evict"])
def test_more_new_keys_than_there_is_room_for(
    manual: ManualClock, on_full: Any, algorithm: Any, shared: bool
) -> None:
    """None of them is given the place that another of them was just given."""
    made = {"shared": True} if shared else {}
    limiter = RateLimiter(
        5, per=60, clock=manual, max_keys=3, on_full=on_full, algorithm=algorithm, **made
    )
    assert limiter.allow("old")
    assert limiter.allow("older")
    new = [f"new-{nth}" for nth in range(5)]
    counted = {"deny": 0, "allow": 1, "evict": 3}[on_full]
    for round_ in range(1, 4):
        assert bool(check_all([(limiter, key) for key in new])) is (on_full != "deny")
        used = sorted(5 - limiter.peek(key).remaining for key in new)
        assert used.count(0) == 5 - counted
        assert on_full == "evict" or used[5 - counted :] == [round_] * counted
    assert check_all([(limiter, "old"), (limiter, "one more")])
    limiter.core._verify()
    manual.advance(121)  # all are idle: there is room for three, and not for four
    assert check_all([(limiter, key) for key in ("a", "b", "c")])
    assert len(limiter) == 3
    manual.advance(121)
    assert bool(check_all([(limiter, key) for key in "abcd"])) is (on_full != "deny")
    limiter.core._verify()


def test_cost_0(manual: ManualClock) -> None:
    limiter = RateLimiter(1, clock=manual)
    assert check_all([(limiter, "a", 0)])
    assert "a" not in limiter
    assert limiter.stats()[:2] == (0, 0)


@pytest.mark.parametrize(
    ("items", "error", "said"),
    [
        ([], ValueError, "at least one"),
        (7, TypeError, "items must be .* tuples, got one int"),
        (["a"], TypeError, r"items\[0\] must be a tuple .*, not str"),
        ([("a",)], TypeError, "not tuple of 1"),
        ([("a", "b", 1)], TypeError, "must begin with a RateLimiter, not str"),
    ],
)
def test_bad_items(items: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        check_all(items)


def test_an_error_changes_nothing() -> None:
    limiter, closed = RateLimiter(5), RateLimiter(5)
    closed.close()
    for bad, error in (
        ((limiter, None), TypeError),
        ((limiter, "b", -1), ValueError),
        ((limiter, "b", 6), ValueError),
        ((limiter, "b", 1.5), TypeError),
        ((closed, "b"), LimiterClosedError),
    ):
        with pytest.raises(error):
            check_all([(limiter, "a"), bad])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="64 quotas in all"):
        check_all([(limiter, number) for number in range(65)])
    assert limiter.stats()[:3] == (0, 0, 0)


def test_no_circle_of_waiting(restless: None) -> None:
    """Threads that want the same keys in other orders; each unit is counted in all or in none."""
    limiters = [RateLimiter(2_000, per=3_600) for _ in range(4)]
    allowed = []
    start = threading.Barrier(4)

    def work(turn: int) -> None:
        mine = limiters[turn:] + limiters[:turn]
        start.wait()
        allowed.append(sum(bool(check_all([(one, "k") for one in mine])) for _ in range(700)))

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(allowed) == 2_000
    assert [one.peek("k").remaining for one in limiters] == [0] * 4
