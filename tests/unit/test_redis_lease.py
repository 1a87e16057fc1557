"""Leases: what they may be, how they follow a key's rate, and that no unit is handed out twice."""

from __future__ import annotations

import asyncio
import copy
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from nanolimit import LimiterClosedError, Quota, telemetry
from nanolimit.redis import AsyncRedisRateLimiter, Lease, RedisRateLimiter
from nanolimit.redis import aio as aio_module
from nanolimit.redis import dialog as dialog_module
from nanolimit.redis import lease as lease_module
from nanolimit.redis import limiter as limiter_module
from nanolimit.redis.fault import Unavailable
from nanolimit.redis.lease import GROWTH, HOT, MAX_UNITS, Loan, Loans, Order
from nanolimit.redis.script import GRANT, Arguments, Grant
from store import AsyncStoreWire, Store, StoreWire

TIMED_OUT = Unavailable("no reply in time", outcome_unknown=True)


# --- what a lease may be


def test_a_lease_as_it_is_when_nothing_is_said() -> None:
    lease = Lease()
    assert (lease.max_share, lease.ttl) == (0.25, 1.0)
    assert repr(lease) == "Lease(max_share=0.25, ttl=1.0)"


def test_a_lease_is_a_value() -> None:
    lease = Lease(1, timedelta(milliseconds=250))
    assert lease == Lease(max_share=1.0, ttl=0.25)
    assert hash(lease) == hash(Lease(1.0, 0.25))
    assert lease != Lease(1.0, 0.5)
    assert type(lease.max_share) is type(lease.ttl) is float
    for made in (copy.copy(lease), copy.deepcopy(lease), pickle.loads(pickle.dumps(lease))):
        assert made == lease
    with pytest.raises(AttributeError):
        lease.ttl = 2.0  # type: ignore[misc]


@pytest.mark.parametrize("share", [0, -0.1, 1.01, 2, float("nan"), float("inf"), 10**400])
def test_a_share_out_of_range(share: Any) -> None:
    with pytest.raises(ValueError, match=r"max_share must be above 0 and at most 1, .*, not "):
        Lease(max_share=share)


@pytest.mark.parametrize("share", ["0.5", None, True, 1j, [0.5]])
def test_a_share_that_is_no_number(share: Any) -> None:
    with pytest.raises(TypeError, match=rf"max_share must be a number.*not {type(share).__name__}"):
        Lease(max_share=share)


@pytest.mark.parametrize("ttl", [0, -1, 1e-10, timedelta(0), timedelta(-1), 86_401, 10**400])
def test_a_ttl_out_of_range(ttl: Any) -> None:
    with pytest.raises(
        ValueError, match=r"ttl must be above 0 and at most 86400 seconds, not .* leave lease out"
    ):
        Lease(ttl=ttl)


@pytest.mark.parametrize("ttl", [float("nan"), float("inf")])
def test_a_ttl_that_is_not_finite(ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl must be a finite number of seconds"):
        Lease(ttl=ttl)


@pytest.mark.parametrize("ttl", ["1s", None, True])
def test_a_ttl_that_is_no_time(ttl: Any) -> None:
    with pytest.raises(TypeError, match="ttl must be seconds as int or float, or a timedelta"):
        Lease(ttl=ttl)


# --- how loans follow a key's rate


def loans(
    *quotas: Quota, max_share: float = 0.25, ttl: float | timedelta = 1.0, limit: int = 40_000
) -> Loans:
    quotas = quotas or (Quota(limit, per=60.0),)
    return Loans(Lease(max_share, ttl), quotas, Arguments(quotas))


class Key:
    """A key that is asked for, in a store that has as much as is wanted or `room`."""

    def __init__(self, lent: Loans, place: bytes = b"k") -> None:
        self.loans = lent
        self.place = place
        self.orders: list[int] = []
        self.room: int | None = None
        self.now_s = 100.0

    def ask(self, units: int = 1, now_s: float | None = None) -> str:
        """One request: how it was served."""
        self.now_s = self.now_s if now_s is None else now_s
        if self.loans.take(self.place, units, self.now_s):
            return "here"
        order = self.loans.order(self.place, [b"name"], units, self.now_s)
        if order is None:
            return "store"
        wanted = units_of(order)
        self.orders.append(wanted)
        granted = wanted if self.room is None else min(wanted, self.room)
        taken = units if granted >= units else 0
        self.loans.lend(order, Grant(granted, 0, int(self.now_s * 1e6) + 1), taken)
        return "order"

    def run(self, rate: float, seconds: float) -> None:
        """Ask evenly, and sweep what is over."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.ask(now_s=self.now_s + 1 / rate)
            self.loans.over(self.now_s)


def units_of(order: Order) -> int:
    return int(order.request[2][0])


def test_a_key_that_is_seldom_asked_for_is_never_lent() -> None:
    key = Key(loans())
    key.run(rate=HOT - 1.5, seconds=50)
    assert key.orders == []
    assert not len(key.loans)


def test_a_key_is_hot_when_it_is_asked_for_often_enough() -> None:
    key = Key(loans())
    told = [key.ask(now_s=100 + nth / 10) for nth in range(HOT)]
    assert told == ["store"] * (HOT - 1) + ["order"]
    assert key.orders == [HOT]
    assert [key.ask() for _ in range(HOT)] == ["here"] * (HOT - 1) + ["order"]


def test_a_pause_makes_one_count_anew() -> None:
    key = Key(loans())
    assert [key.ask(now_s=100 + nth / 10) for nth in range(HOT - 1)] == ["store"] * (HOT - 1)
    assert key.ask(now_s=101.0) == "store"


@pytest.mark.parametrize("rate", [20.0, 100.0, 700.0])
def test_loans_come_to_last_for_one_ttl(rate: float) -> None:
    key = Key(loans())
    key.run(rate, seconds=10)
    assert len(key.orders) <= 20
    assert rate * 0.7 <= key.orders[-1] <= rate * 1.3


def test_loans_grow_quickly_and_not_at_once() -> None:
    key = Key(loans())
    key.run(rate=100_000, seconds=0.1)
    assert key.orders[:4] == [HOT * GROWTH**nth for nth in range(4)]
    assert set(key.orders[5:]) == {MAX_UNITS}


def test_a_loan_that_was_used_up_in_half_its_time_is_doubled() -> None:
    key = Key(loans())
    for nth in range(HOT):
        key.ask(now_s=100 + nth / 1_000)
    asked_s = key.now_s
    for nth in range(HOT - 1):
        key.ask(now_s=asked_s + nth / 10)
    assert key.ask(now_s=asked_s + 0.5) == "order"
    assert key.orders == [HOT, 2 * HOT]


def test_a_loan_that_was_left_over_shrinks_to_what_was_used() -> None:
    key = Key(loans())
    key.run(rate=500, seconds=5)
    before = key.orders[-1]
    assert before > 300
    loan = key.loans._kept[b"k"]
    used = loan.used
    for _ in range(10):
        assert key.ask(now_s=loan.until_s - 0.01) == "here"
    key.loans.over(loan.until_s)
    assert key.ask(now_s=loan.until_s) == "order"
    assert key.orders[-1] == pytest.approx(used + 10, abs=1)


def test_a_loan_that_was_hardly_used_makes_the_key_cold() -> None:
    key = Key(loans())
    for nth in range(2 * HOT + 1):
        key.ask(now_s=100 + nth / 1_000)
    loan = key.loans._kept[b"k"]
    assert loan.used < HOT < loan.units
    assert [key.ask(now_s=loan.until_s) for _ in range(HOT)] == ["store"] * (HOT - 1) + ["order"]
    assert key.orders[-1] == HOT


def test_after_a_long_pause_a_key_is_cold() -> None:
    key = Key(loans())
    key.run(rate=500, seconds=5)
    assert key.ask(now_s=key.now_s + 10) == "store"


def test_where_the_store_has_less_no_more_is_asked_for() -> None:
    key = Key(loans())
    key.room = 2
    key.run(rate=1_000, seconds=0.5)
    assert set(key.orders) == {HOT}
    # And it is no reason to ask for less.
    while key.loans.take(b"k", 1, key.now_s):
        pass
    assert key.ask(now_s=key.now_s + 0.9) == "order"
    assert key.orders[-1] == HOT


def test_where_the_store_has_nothing_a_key_may_be_ordered_again() -> None:
    key = Key(loans())
    key.room = 0
    assert [key.ask() for _ in range(HOT + 2)] == ["store"] * (HOT - 1) + ["order"] * 3
    assert not len(key.loans)
    assert key.loans.next_s() is None


def ttl_us_of(key: Key, now_s: float) -> int:
    """For how long the next order is."""
    order = key.loans.order(key.place, [b"name"], 1, now_s)
    assert order is not None
    key.loans.failed(order)
    return int(order.request[2][-1])


def test_units_that_last_are_lent_for_the_ttl() -> None:
    key = Key(loans())
    key.run(rate=100, seconds=5)
    loan = key.loans._kept[b"k"]
    assert loan.until_s - loan.sent_s == pytest.approx(0.999)


@pytest.mark.parametrize(("lasted_s", "ttl_s"), [(0.2, 0.5), (0.04, 0.1), (0.001, 0.01), (0.7, 1)])
def test_as_many_as_may_be_held_are_lent_for_twice_as_long_as_they_last(
    lasted_s: float, ttl_s: float
) -> None:
    key = Key(loans(limit=20))
    assert [key.ask() for _ in range(7)][3:] == ["order", *["here"] * 3]
    # Four have lasted for so long, and five may be held.
    assert ttl_us_of(key, key.now_s + lasted_s) == pytest.approx(ttl_s * 1e6, rel=0.01)


def test_where_the_store_had_no_more_it_is_lent_for_twice_as_long_as_that_lasted() -> None:
    key = Key(loans())
    key.room = 3
    while not key.orders:
        key.ask()
    began_s = key.now_s
    assert [key.ask(), key.ask()] == ["here", "here"]
    assert ttl_us_of(key, began_s + 0.05) == pytest.approx(100_000, rel=0.01)


def test_loans_that_are_too_short_get_longer_again() -> None:
    key = Key(loans(limit=400))
    key.run(rate=50_000, seconds=0.1)
    assert key.loans._kept[b"k"].until_s - key.loans._kept[b"k"].sent_s < 0.011
    key.run(rate=100, seconds=5)
    loan = key.loans._kept[b"k"]
    assert loan.until_s - loan.sent_s == pytest.approx(0.999)
    assert loan.units == pytest.approx(100, rel=0.3)


def test_the_next_end_is_told_first() -> None:
    lent = loans()
    assert lent.watch()
    late = lent_once(lent, 5, place=b"late")
    soon = Order(b"soon", [b"name"], [], 100.0, 0.5)
    lent._asked[b"soon"] = soon
    assert lent.lend(soon, Grant(5, 0, 8), 0)
    assert lent.next_s() == soon.until_s < late.until_s
    after = Order(b"after", [b"name"], [], 100.0, 0.7)
    lent._asked[b"after"] = after
    assert not lent.lend(after, Grant(5, 0, 8), 0)
    assert [loan.place for loan, _ in lent.over(200.0)] == [b"soon", b"after", b"late"]


def test_no_more_than_the_share() -> None:
    for share, limit, most in (
        (0.25, 100, 25),
        (1.0, 100, 100),
        (0.5, 21, 10),
        (1.0, 10**6, 1_000),
    ):
        key = Key(loans(max_share=share, limit=limit))
        assert key.loans.most == most
        key.run(rate=100_000, seconds=0.5)
        assert max(key.orders) == most


def test_of_several_quotas_the_smallest_limit_and_the_shortest_window_count() -> None:
    lent = loans(Quota(1_000, per=60), Quota(40, per=4.0), Quota(500, per=10.0))
    assert (lent.most, lent.ttl_s) == (10, 0.5)


@pytest.mark.parametrize(
    ("ttl", "per", "effective_s"),
    [(1.0, 60, 1.0), (1.0, 8, 1.0), (1.0, 4, 0.5), (timedelta(seconds=2), 60, 2.0), (10, 1, 0.125)],
)
def test_a_lease_is_no_longer_than_an_eighth_of_the_window(
    ttl: Any, per: float, effective_s: float
) -> None:
    lent = loans(Quota(100, per=per), ttl=ttl)
    assert lent.ttl_s == effective_s
    key = Key(lent)
    for nth in range(HOT):
        key.ask(now_s=100 + nth * 1e-6)
    until_s = lent._kept[b"k"].until_s
    # A little less, for a clock that is slower than the store's.
    assert until_s - key.now_s == pytest.approx(effective_s * 0.999)
    order = lent.order(b"k2", [b"name"], 4, 100.0)
    assert order is None


def test_the_store_is_asked_for_the_ttl() -> None:
    lent = loans(Quota(100, per=4.0), Quota(200, per=60.0))
    for _ in range(HOT - 1):
        assert lent.order(b"k", [b"a", b"b"], 1, 100.0) is None
    order = lent.order(b"k", [b"a", b"b"], 1, 100.0)
    assert order is not None
    what, names, arguments = order.request
    assert (what, names) == (GRANT, [b"a", b"b"])
    assert arguments == [b"4", b"4000000", b"100", b"96", b"60000000", b"200", b"196", b"500000"]


@pytest.mark.parametrize(("limit", "share"), [(19, 1.0), (1, 1.0), (100, 0.01), (20, 0.09)])
def test_where_a_share_is_nothing_nothing_is_lent(limit: int, share: float) -> None:
    key = Key(loans(limit=limit, max_share=share))
    key.run(rate=1_000, seconds=1)
    assert key.orders == []
    assert not key.loans._watched


def test_a_limit_of_twenty_is_lent() -> None:
    key = Key(loans(limit=20))
    key.run(rate=1_000, seconds=0.1)
    assert max(key.orders) == 5


def test_costs_are_counted_in_units_and_hot_in_requests() -> None:
    key = Key(loans())
    assert [key.ask(5) for _ in range(HOT + 3)] == [*["store"] * 3, "order", *["here"] * 3]
    assert key.orders == [5 * HOT]
    # A cost of which a loan holds not even two is for the store.
    few = Key(loans(limit=100))
    assert [few.ask(13) for _ in range(3 * HOT)] == ["store"] * 3 * HOT


def test_a_single_high_cost_does_not_make_a_key_cold() -> None:
    key = Key(loans())
    key.run(rate=100_000, seconds=0.00015)
    assert key.orders == [HOT, HOT * GROWTH]
    for _ in range(HOT * GROWTH):
        key.loans.take(b"k", 1, key.now_s)
    assert key.ask(500) == "store"
    assert key.ask() == "order"
    assert key.orders[-1] == HOT * GROWTH**2


def test_one_order_of_a_key_at_a_time() -> None:
    lent = loans()
    orders = [lent.order(b"k", [b"name"], 1, 100.0) for _ in range(3 * HOT)]
    assert sum(order is not None for order in orders) == 1
    order = orders[HOT - 1]
    assert order is not None
    lent.lend(order, Grant(HOT, 0, 7), HOT)
    assert lent.order(b"k", [b"name"], 1, 100.1) is not None


def test_an_order_that_failed_makes_the_key_cold() -> None:
    lent = loans()
    order = [lent.order(b"k", [b"name"], 1, 100.0) for _ in range(HOT)][-1]
    assert order is not None
    lent.failed(order)
    again = [lent.order(b"k", [b"name"], 1, 100.0) for _ in range(HOT)]
    assert [each is None for each in again] == [True] * (HOT - 1) + [False]
    # What comes of the first one after all is too late.
    assert not lent.lend(order, Grant(HOT, 0, 7), 0)
    assert not len(lent)
    lent.failed(order)
    assert lent.order(b"k", [b"name"], 1, 100.0) is None


# --- bounds


def test_so_many_keys_are_watched_and_no_more() -> None:
    lent = loans()
    for number in range(20_000):
        lent.order(b"%d" % number, [b"name"], 1, 100.0)
    assert len(lent._watched) + len(lent._older) <= lease_module.MAX_WATCHED
    # Those that were asked for last are known, as are those that are asked for again and again.
    assert b"19999" in lent._watched
    assert [lent.order(b"19000", [b"name"], 1, 100.0) is None for _ in range(3)] == [
        True, True, False,
    ]  # fmt: skip


def test_so_many_keys_are_lent_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "MAX_LOANS", 10)
    lent = loans()
    keys = [Key(lent, b"%d" % number) for number in range(15)]
    for key in keys:
        for _ in range(HOT):
            key.ask()
    assert len(lent) == 10
    assert [bool(key.orders) for key in keys] == [True] * 10 + [False] * 5
    lent.over(102.0)
    assert len(lent) == 0
    for _ in range(HOT):
        keys[-1].ask(now_s=103.0)
    assert len(lent) == 1


def test_loans_that_were_used_up_are_forgotten_with_their_ends() -> None:
    key = Key(loans())
    key.run(rate=50_000, seconds=3)
    # About 50 are used up within a second, and each lasts for twice as long as it should.
    assert len(key.orders) > 140
    assert 1 <= len(key.loans._ending) <= 4
    key.loans.over(key.now_s + 1)
    assert not key.loans._ending
    assert key.loans.next_s() is None


# --- each unit once, and in time


def lent_once(lent: Loans, units: int, taken: int = 0, place: bytes = b"k") -> Loan:
    """Lend so many of a key."""
    order = None
    for _ in range(HOT):
        order = lent.order(place, [b"name"], 1, 100.0)
    assert order is not None
    lent.lend(order, Grant(units, 0, 7), taken)
    return lent._kept[place]


def test_until_its_end_and_no_longer() -> None:
    lent = loans()
    loan = lent_once(lent, 5)
    assert loan.until_s == pytest.approx(100.999)
    assert lent.take(b"k", 1, 100.998)
    assert not lent.take(b"k", 1, loan.until_s)
    assert not lent.take(b"k", 2, loan.until_s)
    assert not lent.take(b"other", 1, 100.0)
    assert lent.over(100.998) == []
    assert lent.over(loan.until_s) == [(loan, 4)]
    assert not lent.take(b"k", 1, 100.5)
    assert lent.over(200.0) == []


def test_a_cost_is_taken_whole_or_not() -> None:
    lent = loans()
    loan = lent_once(lent, 5)
    assert not lent.take(b"k", 6, 100.0)
    assert lent.take(b"k", 3, 100.0)
    assert not lent.take(b"k", 3, 100.0)
    assert lent.take(b"k", 2, 100.0)
    assert not lent.take(b"k", 1, 100.0)
    assert loan.used == 5


def test_a_cost_that_others_interrupt_is_put_back() -> None:
    loan = lent_once(loans(), 5)

    class Interrupted(list[None]):
        """Another thread takes two units between two steps."""

        def pop(self, *args: Any) -> None:
            if len(self) == 4:
                super().pop()
                super().pop()
                self.append(None)
                del self[:]
            super().pop(*args)

    loan.tokens = Interrupted(loan.tokens)
    assert not loan.take(3)
    assert len(loan.tokens) == 1


def test_his_own_unit_is_taken_out() -> None:
    lent = loans()
    assert lent_once(lent, 5, taken=1).used == 1
    assert [lent.take(b"k", 1, 100.0) for _ in range(5)] == [True] * 4 + [False]


def race() -> tuple[Loan, list[int]]:
    """Threads take from one loan while it is called in; how many units each had."""
    lent = loans(max_share=1.0)
    loan = lent_once(lent, 1_000)
    had: list[int] = []
    ready = threading.Barrier(5)

    def work(cost: int) -> None:
        ready.wait()
        had.append(sum(cost for _ in range(400) if lent.take(b"k", cost, 100.0)))

    def sweep() -> None:
        ready.wait()
        while loan.used < 500:
            pass
        had.append(sum(left for _, left in lent.close()))

    threads = [threading.Thread(target=work, args=(cost,)) for cost in (1, 1, 2, 3)]
    threads.append(threading.Thread(target=sweep))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return loan, had


def test_threads_never_get_one_unit_twice() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            loan, had = race()
            # What was put back when the loan had been called in is lost: it stays there.
            assert sum(had) + len(loan.tokens) == 1_000
            assert len(loan.tokens) <= 5
    finally:
        sys.setswitchinterval(interval)


def test_reset_drops_what_is_lent_and_what_is_on_its_way() -> None:
    lent = loans()
    first = lent_once(lent, 5)
    order = None
    for _ in range(5):
        assert lent.take(b"k", 1, 100.0)
    order = lent.order(b"k", [b"name"], 1, 100.1)
    other = lent_once(lent, 5, place=b"other")
    assert order is not None
    lent.bar(b"k")
    assert not lent.lend(order, Grant(5, 0, 8), 1)
    assert not lent.take(b"k", 1, 100.1)
    assert [lent.order(b"k", [b"name"], 1, 100.2) for _ in range(10)] == [None] * 10
    lent.bar(b"k")  # another reset of the same key
    lent.unbar(b"k")
    assert [lent.order(b"k", [b"name"], 1, 100.2) for _ in range(10)] == [None] * 10
    lent.unbar(b"k")
    assert lent.order(b"k", [b"name"], 1, 100.3) is not None
    assert lent.take(b"other", 1, 100.1)
    assert lent.everything() == [(other, 4)]
    assert first.returned == 0


def test_reset_drops_also_the_rest_of_an_earlier_loan() -> None:
    lent = loans()
    first = lent_once(lent, 5)
    assert lent.take(b"k", 4, 100.0)
    order = lent.order(b"k", [b"name"], 2, 100.1)  # as one that is left is not enough
    assert order is not None
    lent.lend(order, Grant(20, 0, 8), 2)
    assert lent._kept[b"k"] is not first
    lent.bar(b"k")
    lent.unbar(b"k")
    assert lent.everything() == []


def test_closed_nothing_is_lent() -> None:
    lent = loans()
    loan = lent_once(lent, 5)
    order = [lent.order(b"j", [b"name"], 1, 100.0) for _ in range(HOT)][-1]
    assert order is not None
    assert lent.close() == [(loan, 5)]
    assert not lent.lend(order, Grant(5, 0, 8), 1)
    assert not lent.take(b"j", 1, 100.0)
    assert [lent.order(b"i", [b"name"], 1, 100.0) for _ in range(10)] == [None] * 10


def test_somebody_watches_as_long_as_there_are_loans() -> None:
    lent = loans()
    assert lent.watch()
    assert not lent.watch()
    lent_once(lent, 5)
    assert lent.next_s() == pytest.approx(100.999)
    assert not lent.watch()
    assert len(lent.over(101.0)) == 1
    assert lent.next_s() is None
    assert lent.watch()
    lent.rest()
    assert lent.watch()
    # Of what is used up at once nobody need know.
    order = [lent.order(b"j", [b"name"], 1, 100.0) for _ in range(HOT)][-1]
    assert order is not None
    assert not lent.lend(order, Grant(1, 0, 7), 1)
    assert lent.next_s() is None


def test_in_the_child_of_a_fork_nothing_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    lent = loans()
    lent_once(lent, 5)
    lent.after_fork()  # not in a child: told twice, it forgets once
    assert lent.take(b"k", 1, 100.0)
    order = [lent.order(b"j", [b"name"], 1, 100.0) for _ in range(HOT)][-1]
    lent.bar(b"i")
    monkeypatch.setattr(lease_module.os, "getpid", lambda: 0)
    lent.after_fork()
    assert not lent.take(b"k", 1, 100.0)
    assert lent.everything() == []
    assert order is not None
    assert not lent.lend(order, Grant(5, 0, 7), 1)
    lent.unbar(b"i")  # the parent's
    lent_once(lent, 5)
    lent.after_fork()
    assert lent.take(b"k", 1, 100.0)


def test_the_clock_goes_on_while_the_machine_sleeps() -> None:
    if sys.platform == "linux":
        assert lease_module.clock_s.args == (time.CLOCK_BOOTTIME,)  # type: ignore[attr-defined]
    first = lease_module.clock_s()
    assert lease_module.clock_s() >= first


# --- the limiters, on a store in memory


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(limiter_module, "Wire", StoreWire)
    monkeypatch.setattr(aio_module, "AsyncWire", AsyncStoreWire)
    for module in (limiter_module, aio_module, dialog_module):
        monkeypatch.setattr(module, "monotonic", store.monotonic)
        monkeypatch.setattr(module, "clock_s", store.monotonic)
    return store


VERBS = ("allow", "check", "peek", "allow_many", "reset", "acquire", "close")


class Awaited:
    """An AsyncRedisRateLimiter that waits for what it returns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *args: Any, **kwargs: Any) -> None:
        self._loop = loop
        self._limiter = AsyncRedisRateLimiter(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._limiter, name)
        if name not in VERBS:
            return found
        return lambda *args, **kwargs: self._loop.run_until_complete(found(*args, **kwargs))


Make = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def make(request: pytest.FixtureRequest, store: Store) -> Iterator[Make]:
    """make(quota, ...) -> a limiter with leases on `store`, of either kind."""
    made = []
    loop = asyncio.new_event_loop()

    def maker(quota: Any, **options: Any) -> Any:
        options = {"lease": Lease(), **options}
        if request.param == "sync":
            limiter: Any = RedisRateLimiter(quota, store, **options)
        else:
            limiter = Awaited(loop, quota, store, **options)
        made.append(limiter)
        return limiter

    yield maker
    for limiter in made:
        limiter.close()
    loop.close()


def hot(limiter: Any, key: Any = "k") -> None:
    """Ask until something is lent; HOT - 1 units are."""
    before = len(limiter._loans)
    for _ in range(HOT):
        assert limiter.allow(key)
    assert len(limiter._loans) == before + 1


def counted(store: Store) -> int:
    """The units that count in the store."""
    (log,) = store.logs.values()
    return len(log)


def test_without_a_lease_nothing_is_lent(make: Make, store: Store) -> None:
    limiter = make("100/minute", lease=None)
    assert all(limiter.allow("k") for _ in range(50))
    assert store.calls == ["take_one"] * 50
    assert limiter.lease is None
    assert limiter._loans is None
    assert limiter.stats().leased == 0
    assert "leases" not in repr(getattr(limiter, "_limiter", limiter))


@pytest.mark.parametrize("wrong", [0.25, "0.25", True, {"ttl": 1}, Lease])
def test_a_lease_that_is_none(make: Make, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"lease must be a Lease, such as .* not "):
        make("100/minute", lease=wrong)


def test_it_says_what_it_leases(make: Make) -> None:
    limiter = make("100/minute", name="api", lease=Lease(0.5, 2))
    assert limiter.lease == Lease(0.5, 2)
    assert "'api' 100 per 60 s, leases 0.5 of it for 2 s" in repr(
        getattr(limiter, "_limiter", limiter)
    )


def test_a_hot_key_is_served_without_asking(make: Make, store: Store) -> None:
    limiter = make("1000/minute")
    assert all(limiter.allow("k") for _ in range(100))
    assert store.calls == [*["take_one"] * 3, "grant", "grant", "grant", "grant"]
    stats = limiter.stats()
    assert (stats.allowed, stats.denied, stats.leased) == (100, 0, 100 - 7)
    assert counted(store) == 3 + 4 + 16 + 64 + 250
    assert all(limiter.allow("seldom") for _ in range(HOT - 1))
    assert limiter.allow("k", 0)
    assert limiter.stats().allowed == 100 + HOT - 1


def test_never_more_than_the_limit_and_no_less(make: Make, store: Store) -> None:
    limiter = make("100/minute")
    assert [limiter.allow("k") for _ in range(110)] == [True] * 100 + [False] * 10
    assert counted(store) == 100
    assert limiter.stats().denied == 10
    # The first is asked for, what follows repeats it.
    assert limiter.stats().denied_locally == 9


def test_a_denial_without_a_cache(make: Make, store: Store) -> None:
    limiter = make("20/minute", deny_cache=False)
    assert [limiter.allow("k") for _ in range(25)] == [True] * 20 + [False] * 5
    assert store.calls[-5:] == ["grant"] * 5


def test_a_denial_names_the_wait_of_the_store(make: Make, store: Store) -> None:
    limiter = make("20/8s", lease=Lease(1.0, 1.0))
    began_s = store.now_s
    assert [limiter.allow("k") for _ in range(21)] == [True] * 20 + [False]
    denial = limiter._denials.get(limiter._place("k"), 1, store.now_s)
    assert denial.until_s == began_s + 1.0
    store.now_s = began_s + 8
    # The first three, which were counted by themselves, are out; the others a second later.
    assert [limiter.allow("k") for _ in range(4)] == [True] * 3 + [False]
    store.now_s = began_s + 9
    assert limiter.allow("k")


def test_what_is_lent_goes_before_a_denial(make: Make, store: Store) -> None:
    limiter = make("20/minute")
    hot(limiter)
    assert not limiter.allow("k", 15)
    assert limiter._denials.get(limiter._place("k"), 15, store.now_s)
    limiter._denials.put(limiter._place("k"), 1, store.now_s, 60.0, limiter._denials.epoch)
    assert [limiter.allow("k") for _ in range(HOT)] == [True] * (HOT - 1) + [False]


def test_a_cost_from_a_loan(make: Make, store: Store) -> None:
    limiter = make("1000/minute")
    hot(limiter)
    calls = len(store.calls)
    assert limiter.allow("k", 3)
    assert len(store.calls) == calls
    assert limiter.stats().leased == 1
    assert limiter.allow("k", 3)
    assert store.calls[calls:] == ["grant"]


def test_a_cost_that_the_loan_does_not_cover_is_asked_for_by_itself(
    make: Make, store: Store
) -> None:
    limiter = make("100/minute")
    hot(limiter)
    for _ in range(HOT - 1):
        limiter.allow("k")
    store.logs[next(iter(store.logs))].extend([store.now_us] * 90)
    # 3 are free, of 16 that are asked for; 8 are wanted, and so denied.
    assert not limiter.allow("k", 8)
    assert store.calls[-2:] == ["grant", "take_one"]
    # What there was is here.
    calls = len(store.calls)
    assert limiter.allow("k", 3)
    assert len(store.calls) == calls
    assert counted(store) == 100


def test_two_calls_for_one_request_share_its_time(make: Make, store: Store) -> None:
    limiter = make("100/minute", timeout=0.1)
    hot(limiter)
    for _ in range(HOT - 1):
        limiter.allow("k")
    store.logs[next(iter(store.logs))].extend([store.now_us] * 90)
    store.latency_s = 0.02  # there, and back
    assert not limiter.allow("k", 8)
    assert store.calls[-2:] == ["grant", "take_one"]
    assert store.timeouts_s[-2] is None
    assert store.timeouts_s[-1] == pytest.approx(0.06)


def test_where_the_second_call_fails_it_is_known_that_it_did_not_fit(
    make: Make, store: Store
) -> None:
    limiter = make("100/minute", deny_cache=False, on_error="allow")
    hot(limiter)
    for _ in range(HOT - 1):
        limiter.allow("k")
    store.logs[next(iter(store.logs))].extend([store.now_us] * 90)
    store.on_call = lambda: store.faults.append(TIMED_OUT) if not store.faults else None
    assert not limiter.allow("k", 8)
    assert store.calls[-2:] == ["grant", "take_one"]
    assert limiter.stats()[1:6] == (1, 0, 0, 1, 1)


def test_where_the_second_call_fails_the_denial_is_as_old_as_the_first(
    make: Make, store: Store
) -> None:
    limiter = make("100/second")
    hot(limiter)
    for _ in range(HOT - 1):
        limiter.allow("k")
    log = store.logs[next(iter(store.logs))]
    log[:0] = [store.now_us] * 90
    free_s = store.now_s + 1.0  # when these leave
    store.latency_s = 0.02
    store.on_call = lambda: store.faults.append(TIMED_OUT) if not store.faults else None
    assert not limiter.allow("k", 8)
    assert store.calls[-2:] == ["grant", "take_one"]
    assert not limiter._denials.get(limiter._place("k"), 8, free_s)


def test_a_request_whose_time_is_up_is_not_asked_for_again(make: Make, store: Store) -> None:
    limiter = make("100/minute", timeout=0.1, deny_cache=False)
    hot(limiter)
    for _ in range(HOT - 1):
        limiter.allow("k")
    store.logs[next(iter(store.logs))].extend([store.now_us] * 90)
    store.latency_s = 0.06
    assert not limiter.allow("k", 8)
    assert store.calls[-1] == "grant"
    assert limiter.stats()[1:5] == (1, 0, 0, 0)  # denied by the store, not by `on_error`


def test_check_and_peek_ask_the_store(make: Make, store: Store) -> None:
    limiter = make("1000/minute")
    hot(limiter)
    assert limiter.check("k").remaining == 1_000 - 3 - 4 - 1
    assert limiter.peek("k").remaining == 1_000 - 8
    assert store.calls[-2:] == ["tell", "look"]
    assert len(limiter._loans._kept[limiter._place("k")].tokens) == HOT - 1


def test_allow_many_takes_what_is_here(make: Make, store: Store) -> None:
    limiter = make("20/minute")
    hot(limiter)
    keys = ["k", "other", "k", "k", "k", "other"]
    calls = len(store.calls)
    assert limiter.allow_many(keys) == [True] * 6
    assert store.calls[calls:] == ["batch"]
    assert sum(map(len, store.logs.values())) == 3 + 4 + 1 + 2
    assert limiter.stats().leased == HOT - 1
    limiter.allow("k", 12)
    assert limiter.allow_many(keys) == [False, True, False, False, False, True]
    stats = limiter.stats()
    assert (stats.allowed, stats.denied) == (4 + 6 + 1 + 2, 4)


def test_acquire_takes_what_is_here(make: Make, store: Store) -> None:
    limiter = make("1000/minute")
    for _ in range(HOT):
        assert limiter.acquire("k")
    calls = len(store.calls)
    assert store.calls[-1] == "grant"
    assert all(limiter.acquire("k", timeout=0) for _ in range(HOT - 1))
    assert len(store.calls) == calls
    assert limiter.stats().leased == HOT - 1


def test_acquire_that_can_have_nothing(make: Make, store: Store) -> None:
    limiter = make("20/minute")
    assert [limiter.acquire("k", timeout=0) for _ in range(21)] == [True] * 20 + [False]
    assert limiter.stats().denied == 0


def test_listeners_hear_of_what_is_leased(make: Make, store: Store) -> None:
    limiter = make("1000/minute", name="l")
    heard: list[Any] = []

    def handler(event: str, measurements: Any, metadata: Any) -> None:
        heard.append((event, measurements["count"], metadata["limiter"], metadata["key"]))

    telemetry.attach("leases", ["allowed", "denied"], handler)
    try:
        hot(limiter)
        limiter.allow("k", 2)
        limiter.acquire("k")
        limiter.allow_many(["k"])
    finally:
        telemetry.detach("leases")
    assert heard == [("allowed", units, "l", "k") for units in (1, 1, 1, 1, 2, 1, 1)]


def test_several_quotas_are_lent_together(make: Make, store: Store) -> None:
    limiter = make("100/minute; 1000/hour")
    assert [limiter.allow("k") for _ in range(101)] == [True] * 100 + [False]
    assert [len(log) for log in store.logs.values()] == [100, 100]
    assert "grant" in store.calls


def test_a_limit_below_twenty_works_without(make: Make, store: Store) -> None:
    limiter = make("19/minute")
    assert [limiter.allow("k") for _ in range(20)] == [True] * 19 + [False]
    assert set(store.calls) == {"take_one"}


def test_reset_drops_the_loan(make: Make, store: Store) -> None:
    limiter = make("100/minute")
    hot(limiter)
    calls = len(store.calls)
    assert limiter.reset("k")
    assert store.calls[calls:] == ["reset"]
    assert store.logs == {}
    assert [limiter.allow("k") for _ in range(101)] == [True] * 100 + [False]
    assert "return" not in store.calls


def test_while_a_reset_is_on_its_way_nothing_is_used(make: Make, store: Store) -> None:
    limiter = make("100/minute")
    hot(limiter)
    place = limiter._place("k")
    seen = []

    def look() -> None:
        seen.append((store.calls[-1], limiter._loans.take(place, 1, store.now_s)))
        seen.append(limiter._loans.order(place, [b"name"], 1, store.now_s))

    store.on_call = look
    limiter.reset("k")
    store.on_call = lambda: None
    assert seen == [("reset", False), None]
    hot(limiter)


def test_a_reset_that_failed_drops_the_loan_too(make: Make, store: Store) -> None:
    limiter = make("100/minute")
    hot(limiter)
    store.faults = [TIMED_OUT]
    limiter.reset("k")
    assert len(limiter._loans) == 0
    assert not limiter._loans._barred


def test_what_is_asked_for_during_a_reset_is_not_lent(make: Make, store: Store) -> None:
    limiter = make("100/minute")
    for _ in range(HOT - 1):
        limiter.allow("k")
    began = []

    def reset_now() -> None:
        store.on_call = lambda: None
        began.append(1)
        limiter._loans.bar(limiter._place("k"))
        limiter._loans.unbar(limiter._place("k"))

    store.on_call = reset_now
    assert limiter.allow("k")
    assert store.calls[-1] == "grant"
    assert began
    assert len(limiter._loans) == 0


def test_close_gives_back_what_is_left(make: Make, store: Store) -> None:
    limiter = make("100/minute")
    hot(limiter)
    hot_log = next(iter(store.logs))
    assert len(store.logs[hot_log]) == 7
    limiter.close()
    assert store.calls[-1] == "return"
    assert len(store.logs[hot_log]) == 4
    assert store.closed
    limiter.close()
    assert store.calls.count("return") == 1
    with pytest.raises(LimiterClosedError):
        limiter.allow("k")


def test_close_without_the_store(make: Make, store: Store) -> None:
    limiter = make("100/minute")
    hot(limiter)
    store.down = TIMED_OUT
    limiter.close()
    assert store.calls.count("return") == 1
    assert store.closed


def test_without_the_store_what_is_lent_is_used_until_its_end(make: Make, store: Store) -> None:
    limiter = make("100/minute", on_error="deny")
    hot(limiter)
    store.down = TIMED_OUT
    assert limiter.allow("k")
    assert limiter.acquire("k", timeout=0)
    stats = limiter.stats()
    assert (stats.leased, stats.degraded) == (2, 0)
    store.now_s += 0.9991
    assert not limiter.allow("k")
    assert limiter.stats().degraded == 1


def test_a_loan_of_which_nobody_knows(make: Make, store: Store) -> None:
    limiter = make("100/minute", on_error="allow")
    for _ in range(HOT - 1):
        limiter.allow("k")
    store.counts_before_fault = True
    store.faults = [TIMED_OUT]
    assert limiter.allow("k")
    assert store.calls[-1] == "grant"
    stats = limiter.stats()
    assert (stats.degraded, stats.failures, stats.unknown, stats.leased) == (1, 1, 1, 0)
    # It is lost, and not asked for again before the key is hot again.
    assert len(limiter._loans) == 0
    assert counted(store) == 3 + 4
    assert limiter.allow("k")
    assert store.calls[-1] == "take_one"


def test_a_reply_that_comes_after_the_end_is_given_back(make: Make, store: Store) -> None:
    limiter = make("100/minute")
    for _ in range(HOT - 1):
        limiter.allow("k")
    store.latency_s = 0.6
    assert limiter.allow("k")  # it was counted when the store was asked
    store.latency_s = 0.0
    calls = len(store.calls)
    limiter.allow("k")
    assert "take_one" in store.calls[calls:]
    assert limiter.stats().leased == 0


def test_what_was_refused_may_fit_when_a_loan_was_given_back(make: Make, store: Store) -> None:
    limiter = make("20/minute", lease=Lease(ttl=0.5))
    hot(limiter)
    assert not limiter.allow("k", 14)
    store.now_s += 0.5
    due = limiter._loans.over(store.now_s)
    assert [left for _, left in due] == [3]
    if isinstance(limiter, Awaited):
        inner = limiter._limiter
        limiter._loop.run_until_complete(inner._hold(inner._returning(due)))
    else:
        limiter._hold(limiter._returning(due))
    assert limiter.allow("k", 14)


# --- threads


def test_a_thread_gives_back_what_nobody_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    monkeypatch.setattr(limiter_module, "Wire", StoreWire)
    returned = threading.Event()
    store.on_call = lambda: returned.set() if store.calls[-1] == "return" else None
    with RedisRateLimiter("100/minute", store, lease=Lease(ttl=0.2), name="own") as limiter:
        hot(limiter)
        keeper = limiter._keeper
        assert keeper is not None
        # In the child of a fork it begins with nothing, whoever is told first.
        assert keeper._in_child == limiter._loans.after_fork  # type: ignore[union-attr]
        assert returned.wait(30)
        assert counted(store) == 4
        assert keeper.stop(30)  # it has nothing to do
        assert len(limiter._loans) == 0  # type: ignore[arg-type]
        hot(limiter)
        assert limiter._keeper is not keeper
        assert limiter._keeper is not None
        assert limiter._keeper.alive
        last = limiter._keeper
    assert last.stop(30)
    assert counted(store) == 8


def test_a_loan_that_ends_sooner_than_the_next_one_is_given_back_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Store()
    monkeypatch.setattr(limiter_module, "Wire", StoreWire)
    returned = threading.Event()
    store.on_call = lambda: returned.set() if store.calls[-1] == "return" else None
    with RedisRateLimiter("1000/minute", store, lease=Lease(ttl=7)) as limiter:
        hot(limiter, "slow")
        while store.calls.count("grant") < 3:  # of which the last is for a moment only
            limiter.allow("quick")
        began_s = time.monotonic()
        assert returned.wait(30)
        assert time.monotonic() - began_s < 5


def test_there_is_no_thread_without_a_loan(store: Store) -> None:
    before = threading.active_count()
    with RedisRateLimiter("100/minute", store, lease=Lease()) as limiter:
        for number in range(100):
            limiter.allow(number)
        assert threading.active_count() == before
        assert limiter._keeper is None


def test_without_room_for_a_thread_the_next_loan_tries_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Any:
        raise RuntimeError("can't start new thread")

    with RedisRateLimiter("100/minute", store, lease=Lease()) as limiter:
        with monkeypatch.context() as patch:
            patch.setattr(limiter_module.supervisor, "start", full)
            hot(limiter)
            with RedisRateLimiter("100/minute", store, name="other", lease=Lease()) as other:
                hot(other)
            assert store.calls[-1] == "return"  # close does it by itself
        assert limiter._keeper is None
        store.now_s += 0.5
        hot(limiter, "later")  # which ends after the first one
        assert limiter._keeper is not None


def test_the_end_of_the_interpreter_gives_back(store: Store) -> None:
    limiter = RedisRateLimiter("100/minute", store, lease=Lease())
    hot(limiter)
    assert limiter._keeper is not None
    assert limiter._keeper.stop(30)  # as the supervisor does at the end
    assert store.calls[-1] == "return"
    assert counted(store) == 4
    assert limiter.allow("k")
    limiter.close()


# --- tasks


class SlowWire(AsyncStoreWire):
    """Answers when it is told to."""

    opened: asyncio.Event

    async def run(self, what: Any, keys: Any, args: Any = ()) -> Any:
        reply = await super().run(what, keys, args)
        if what is GRANT:
            await self.opened.wait()
        return reply


def test_a_loan_is_kept_though_the_task_that_asked_has_left(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio_module, "AsyncWire", SlowWire)

    async def run() -> None:
        limiter = AsyncRedisRateLimiter("100/minute", store, lease=Lease(), coalesce=False)
        limiter._wire.opened = asyncio.Event()  # type: ignore[attr-defined]
        for _ in range(HOT - 1):
            await limiter.allow("k")
        task = asyncio.create_task(limiter.allow("k"))
        while store.calls[-1] != "grant":
            await asyncio.sleep(0)
        assert await limiter.allow("k")  # meanwhile others ask for themselves
        assert store.calls[-1] == "take_one"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await limiter.allow("k")
        assert store.calls[-1] == "take_one"
        limiter._wire.opened.set()  # type: ignore[attr-defined]
        while not limiter._loans:
            await asyncio.sleep(0)
        calls = len(store.calls)
        assert all([await limiter.allow("k") for _ in range(HOT)])
        assert len(store.calls) == calls
        assert counted(store) == 3 + 4 + 2
        await limiter.close()

    asyncio.run(run())


@pytest.mark.parametrize("fault", [TIMED_OUT, ValueError("a bug")])
def test_a_loan_that_fails_after_the_task_has_left(
    store: Store, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    class Failing(SlowWire):
        async def run(self, what: Any, keys: Any, args: Any = ()) -> Any:
            reply = await super().run(what, keys, args)
            if what is GRANT:
                raise fault
            return reply

    monkeypatch.setattr(aio_module, "AsyncWire", Failing)

    async def run() -> None:
        limiter = AsyncRedisRateLimiter("100/minute", store, lease=Lease(), coalesce=False)
        limiter._wire.opened = asyncio.Event()  # type: ignore[attr-defined]
        for _ in range(HOT - 1):
            await limiter.allow("k")
        task = asyncio.create_task(limiter.allow("k"))
        while store.calls[-1] != "grant":
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        limiter._wire.opened.set()  # type: ignore[attr-defined]
        assert limiter._loans is not None
        while limiter._loans._asked:
            await asyncio.sleep(0)
        assert len(limiter._loans) == 0
        await limiter.close()

    asyncio.run(run())


def test_a_timer_gives_back_what_nobody_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    monkeypatch.setattr(aio_module, "AsyncWire", AsyncStoreWire)

    async def run() -> None:
        limiter = AsyncRedisRateLimiter("100/minute", store, lease=Lease(ttl=0.05))
        returned = asyncio.Event()
        store.on_call = lambda: returned.set() if store.calls[-1] == "return" else None
        for _ in range(2):
            while store.calls[-1:] != ["grant"]:
                await limiter.allow("k")
            await asyncio.wait_for(returned.wait(), 30)
            returned.clear()
            assert len(limiter._loans) == 0  # type: ignore[arg-type]
        await limiter.close()

    asyncio.run(run())


def test_another_loop_watches_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    monkeypatch.setattr(aio_module, "AsyncWire", AsyncStoreWire)
    limiter = AsyncRedisRateLimiter("100/minute", store, lease=Lease(ttl=0.05))
    returned: list[int] = []
    store.on_call = lambda: returned.append(1) if store.calls[-1] == "return" else None

    async def lend(key: str) -> None:
        for _ in range(HOT):
            await limiter.allow(key)
        assert store.calls[-1] == "grant"

    async def wait() -> None:
        await lend("j")
        while len(returned) < 2:
            await asyncio.sleep(0.005)
        await limiter.close()

    asyncio.run(lend("k"))
    assert returned == []
    asyncio.run(asyncio.wait_for(wait(), 30))


def test_tasks_at_once_are_counted_once(store: Store) -> None:
    async def run() -> None:
        limiter = AsyncRedisRateLimiter("100/minute", store, lease=Lease())
        told: list[bool] = []
        for _ in range(4):
            told += await asyncio.gather(*[limiter.allow("k") for _ in range(32)])
        assert sum(told) == 100
        assert counted(store) == 100
        assert store.calls.count("grant") >= 2
        await limiter.close()
        assert counted(store) == 100

    asyncio.run(run())
