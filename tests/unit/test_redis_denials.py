"""Denials that all limiters of a machine repeat, in a shared table (denials.py, core/denial.h)."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanolimit import NanolimitError, Quota, RateLimiter, SharedTableError, _core, shared, telemetry
from nanolimit.redis import AsyncRedisRateLimiter, RedisRateLimiter, script
from nanolimit.redis import aio as aio_module
from nanolimit.redis import denials as denials_module
from nanolimit.redis import limiter as limiter_module
from nanolimit.redis.denials import Denials, SharedDenials, open_table
from nanolimit.redis.fault import Unavailable
from sharing import in_child, needs_shared
from store import AsyncStoreWire, Store, StoreWire

pytestmark = needs_shared

QUOTAS = (Quota(5, per=60.0),)
PLACE, OTHER = b"k" * 16, b"o" * 16
S = 1_000_000_000


def table_of(name: str = "api", cap_ns: int = S, salt: int = 7) -> _core.DenialTable:
    return _core.DenialTable(open_table(name, "test"), salt, cap_ns)


def shared_of(
    name: str = "api", quotas: tuple[Quota, ...] = QUOTAS, whose: bytes = b"whose"
) -> SharedDenials:
    return SharedDenials(open_table(name, "test"), quotas, whose)


def live(table: _core.DenialTable, cost: int = 1, place: bytes = PLACE) -> bool:
    return table.left_s(place, cost) > 0


# --- the table


def test_what_one_learns_the_others_repeat(folder: Path) -> None:
    one, other = table_of(), table_of()
    assert one.left_s(PLACE, 1) == other.left_s(PLACE, 1) == 0.0
    assert one.put(PLACE, 2, one.now_ns(), 30 * S)
    for each in (one, other):
        assert 0.9 < each.left_s(PLACE, 2) <= 1.0
        assert live(each, 5)
        assert live(each, 2**40)
        assert not live(each, 1)
        assert not live(each, 2, OTHER)


def test_it_lasts_until_what_was_sent_says_and_not_longer(folder: Path) -> None:
    table = table_of()
    rng = random.Random(1)
    for _ in range(300):
        now_ns = table.now_ns()
        sent_ns, retry_ns = now_ns - rng.randrange(2 * S), rng.randrange(1, 2 * S)
        until_ns = sent_ns + min(retry_ns, S)
        place = rng.randbytes(16)
        assert table.put(place, 1, sent_ns, retry_ns)
        now_ns = table.now_ns()
        left_s = table.left_s(place, 1)
        after_ns = table.now_ns()
        assert left_s <= max(0, until_ns - now_ns) / 1e9
        if left_s:  # to a microsecond
            assert left_s * 1e9 > until_ns - after_ns - 1_001
        else:
            assert until_ns <= after_ns + 1_000


def test_the_time_counts_from_before_it_was_sent(folder: Path) -> None:
    denials = shared_of()
    epoch = denials.epoch
    over_s = time.monotonic() + 0.05  # so long the reply takes
    while time.monotonic() < over_s:
        pass
    denials.put(PLACE, 1, 0.0, 0.9, epoch)
    assert denials.left_s(PLACE, 1, 0.0) <= 0.85


def test_what_ends_later_than_the_cap_is_not_believed(folder: Path) -> None:
    reckless, careful = table_of(cap_ns=100 * S), table_of()
    reckless.put(PLACE, 1, reckless.now_ns(), 50 * S)
    assert live(reckless)
    assert not live(careful)
    # and it does not stand in the way
    assert careful.put(PLACE, 1, careful.now_ns(), 50 * S)
    assert live(careful)


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_a_denial_of_less_is_not_replaced_by_one_of_more(kind: str, folder: Path) -> None:
    denials: Denials | SharedDenials = Denials() if kind == "private" else shared_of()

    def put(cost: int, retry_s: float) -> None:
        denials.put(PLACE, cost, 0.0, retry_s, denials.epoch)

    put(1, 0.8)
    put(3, 0.5)
    assert denials.left_s(PLACE, 1, 0.0) > 0.4
    put(3, 0.9)  # this one says more of 3, and nothing of 1
    assert denials.left_s(PLACE, 1, 0.0) == 0.0
    assert denials.left_s(PLACE, 3, 0.0) > 0.5
    put(1, 0.7)  # and this one of 1
    assert denials.left_s(PLACE, 1, 0.0) > 0.4
    put(1, 0.9)
    assert 0.7 < denials.left_s(PLACE, 1, 0.0) <= 0.9


def test_a_reset_is_seen_by_all_at_once(folder: Path) -> None:
    one, other = table_of(), table_of()
    before_ns = one.now_ns()
    one.put(PLACE, 1, before_ns, S)
    one.put(OTHER, 1, before_ns, S)
    assert other.forget(PLACE, S)
    assert not live(one)
    assert live(one, 1, OTHER)
    # What was asked for before it, and arrives after it, anywhere.
    assert one.put(PLACE, 1, before_ns, S)
    assert not live(one)
    assert not live(other)
    while one.now_ns() // 1000 == before_ns // 1000:
        pass
    after_ns = one.now_ns()
    while one.now_ns() < after_ns + 1000:
        pass
    one.put(PLACE, 1, one.now_ns(), S)
    assert live(other)


def test_a_later_reset_counts(folder: Path) -> None:
    one, other = table_of(), table_of()
    one.forget(PLACE, S)
    between_ns = one.now_ns() + 1000
    while one.now_ns() < between_ns:
        pass
    other.forget(PLACE, S)
    one.put(PLACE, 1, between_ns, S)
    assert not live(one)


@pytest.mark.parametrize("place", [b"", b"k" * 15, b"k" * 17])
def test_a_place_has_16_bytes(folder: Path, place: bytes) -> None:
    table = table_of()
    calls: list[Callable[[], object]] = [
        lambda: table.left_s(place, 1),
        lambda: table.decision(place, 1, QUOTAS),
        lambda: table.put(place, 1, 0, S),
        lambda: table.forget(place, S),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="a place has 16 bytes"):
            call()


def test_only_a_table_of_denials_keeps_denials(folder: Path) -> None:
    for options in ({}, {"shared": "logs"}, {"shared": "meters", "algorithm": "gcra"}):
        limiter = RateLimiter("5/minute", **options)  # type: ignore[arg-type]
        with pytest.raises(SharedTableError, match="does not keep denials"):
            _core.DenialTable(limiter._engine, 1, S)  # type: ignore[arg-type]
        limiter.close()
    RateLimiter("5/minute", shared="taken.denials").close()
    with pytest.raises(SharedTableError, match="was made for something else"):
        open_table("taken", "test")
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(table_of())


def test_a_table_of_another_size_is_as_good(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = table_of()
    monkeypatch.setattr(denials_module, "_TABLE_KEYS", 100)
    other = table_of()
    one.put(PLACE, 1, one.now_ns(), S)
    assert live(other)


# --- the whole answer


def an_answer(rng: random.Random, quotas: tuple[Quota, ...], cost: int) -> _core.Decision:
    """What TELL says of a request that is denied."""
    clock = 1_700_000_000_000_000 + rng.randrange(10**9)
    reply = [clock]
    for quota in quotas:
        window = -(-quota.window_ns // 1000)
        newest = clock - rng.randrange(window)
        oldest = rng.randrange(clock - window + 1, newest + 1)
        if rng.random() < 0.1:  # a lease's stamp: when it ends
            newest = clock + rng.randrange(1_000_000)
        deciding = rng.randrange(oldest, newest + 1) if rng.random() < 0.7 else 0
        reply += [rng.randint(1, quota.limit), newest, oldest, deciding]
    if not any(reply[4::4]):
        reply[4] = reply[3]
    decision = script.decision(quotas, reply, cost)
    assert not decision.allowed
    return decision


def told(decision: _core.Decision | None) -> tuple[Any, ...]:
    assert decision is not None
    assert not decision.allowed
    assert (decision.degraded, decision.blocked, decision.would_deny) == (False, False, False)
    assert decision.violated is decision.quota
    return decision.quota, decision.limit, decision.remaining


def times_s(decision: _core.Decision | None) -> list[float]:
    assert decision is not None
    return [decision.retry_after, decision.reset_after, decision.refill_after]


def test_another_process_tells_the_whole_answer(folder: Path) -> None:
    rng = random.Random(2)
    for quotas in (
        QUOTAS,
        (Quota(3, per=1.0), Quota(16_777_216, per=315_360_000.0), Quota(7, per=1e-5)),
    ):
        one, other = shared_of(quotas=quotas), shared_of(quotas=quotas)
        for _ in range(200):
            place, cost = rng.randbytes(16), rng.randint(1, 3)
            answer = an_answer(rng, quotas, cost)
            sent = one.epoch
            began_ns = sent[0]  # type: ignore[index]
            one.put(place, cost, 0.0, 0.9, sent, answer, 0.0)
            found = other.told(place, cost, 0.0)
            table = other._table
            assert table is not None
            passed_s = (table.now_ns() - began_ns) / 1e9
            assert told(found) == told(answer)
            for now_s, then_s in zip(times_s(found), times_s(answer), strict=True):
                assert then_s - passed_s - 1e-6 <= now_s or now_s == 0 >= then_s - passed_s - 1e-6
                assert now_s <= then_s + 1e-9
            assert other.told(place, cost + 1, 0.0) is None  # of this cost nothing was told
            assert other.left_s(place, cost + 1, 0.0) > 0
            assert pickle.loads(pickle.dumps(found)).retry_after == times_s(found)[0]


def test_an_answer_counts_down(folder: Path) -> None:
    one, other = shared_of(), shared_of()
    answer = an_answer(random.Random(3), QUOTAS, 1)
    one.put(PLACE, 1, 0.0, 0.9, one.epoch, answer, 0.0)
    first = times_s(other.told(PLACE, 1, 0.0))
    assert one._table is not None
    over_ns = one._table.now_ns() + 2_000_000
    while one._table.now_ns() < over_ns:
        pass
    for before_s, after_s in zip(first, times_s(other.told(PLACE, 1, 0.0)), strict=True):
        assert after_s <= before_s - 0.002 or after_s == 0


def test_of_the_same_cost_an_answer_is_better_than_none(folder: Path) -> None:
    one, other = shared_of(), shared_of()
    answer = an_answer(random.Random(4), QUOTAS, 2)
    other.put(PLACE, 2, 0.0, 0.9, other.epoch)
    assert one.told(PLACE, 2, 0.0) is None
    one.put(PLACE, 2, 0.0, 0.8, one.epoch, answer, 0.0)
    assert told(other.told(PLACE, 2, 0.0)) == told(answer)
    other.put(PLACE, 2, 0.0, 0.7, other.epoch)  # which says less
    assert told(other.told(PLACE, 2, 0.0)) == told(answer)
    other.put(PLACE, 2, 0.0, 0.9, other.epoch)  # it lasts longer, and how things are is not known
    assert one.told(PLACE, 2, 0.0) is None
    assert one.left_s(PLACE, 2, 0.0) > 0.8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_answers_of_two_are_not_mixed(folder: Path) -> None:
    """Two processes write answers for one key, each with numbers of its own; a third one reads."""
    denials = shared_of()

    def write(seed: int) -> None:
        rng = random.Random(seed)
        clock = 1_000_000_000_000
        while True:
            # All times are the same, and the least digit of them tells what is used.
            used = rng.randint(1, 5)
            stamp = clock - 10 * rng.randrange(1, 10**6) - used
            answer = script.decision(QUOTAS, [clock, used, stamp, stamp, stamp], 1)
            denials.put(PLACE, 1, 0.0, rng.uniform(0.5, 0.9), denials.epoch, answer, 0.0)
            if rng.random() < 0.3:
                denials.forget(PLACE)

    writers = []
    for seed in range(2):
        pid = os.fork()
        if not pid:
            try:
                write(seed)
            finally:
                os._exit(1)
        writers.append(pid)
    seen, wrong, over_s = 0, [], time.monotonic() + 60
    try:
        while seen < 5_000 and time.monotonic() < over_s:
            found = denials.told(PLACE, 1, 0.0)
            if found is None:
                continue
            seen += 1
            values: list[Any] = list(found.__reduce__()[1])  # type: ignore[call-overload]
            window, newest, oldest, deciding, used = values[4], *values[7:11]
            if not newest == oldest == deciding or (window - newest) % 10 != used:
                wrong.append(values)
    finally:
        for pid in writers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert not wrong, wrong[:3]
    assert seen > 100


# --- whose they are


def test_what_is_denied_to_other_limits_says_nothing(folder: Path) -> None:
    base = shared_of()
    others = [
        shared_of(quotas=(Quota(6, per=60.0),)),
        shared_of(quotas=(Quota(5, per=61.0),)),
        shared_of(quotas=(Quota(5, per=60.0), Quota(5, per=60.0))),
        shared_of(whose=b"another"),
        shared_of("api2"),
    ]
    base.put(PLACE, 1, 0.0, 0.9, base.epoch)
    assert shared_of().left_s(PLACE, 1, 0.0) > 0
    for other in others:
        assert other.left_s(PLACE, 1, 0.0) == 0
        other.put(PLACE, 1, 0.0, 0.9, other.epoch)
        other.forget(PLACE)
    assert base.left_s(PLACE, 1, 0.0) > 0


# --- without room, and without the table


def test_what_finds_no_room_its_own_process_keeps(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denials_module, "_TABLE_KEYS", 8)
    one, other = shared_of(), shared_of()
    places = [bytes([1 + i]) * 16 for i in range(20)]
    for place in places:
        one.put(place, 1, 0.0, 0.9, one.epoch)
    assert [one.left_s(place, 1, 0.1) > 0 for place in places] == [True] * 20
    assert [other.left_s(place, 1, 0.1) > 0 for place in places] == [True] * 8 + [False] * 12
    assert len(one._own) == 12
    for place in places:
        one.forget(place)
    assert not any(one.left_s(place, 1, 0.1) for place in places)
    assert not any(other.left_s(place, 1, 0.1) for place in places)


def test_an_answer_without_room_is_known_to_nobody(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denials_module, "_TABLE_KEYS", 3)
    one = shared_of()
    answer = an_answer(random.Random(5), QUOTAS, 1)
    one.put(PLACE, 1, 0.0, 0.9, one.epoch, answer, 0.0)
    assert one.left_s(PLACE, 1, 0.0) > 0
    assert one.told(PLACE, 1, 0.0) is None


def test_room_that_is_over_is_used_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denials_module, "_TABLE_KEYS", 8)
    table = table_of()
    number = 0
    for _ in range(50):
        end_ns = table.now_ns() + 300_000
        for _ in range(8):
            number += 1
            table.put(number.to_bytes(16, "big"), 1, end_ns - S, S)
        while table.now_ns() < end_ns:
            pass
    assert all(table.put(i.to_bytes(16, "little"), 1, table.now_ns(), S) for i in range(1, 5))


def test_a_table_that_cant_be_used_is_no_error(folder: Path) -> None:
    table = open_table("api", "test")
    denials = SharedDenials(table, QUOTAS, b"whose")
    epoch = denials.epoch
    table.close()
    denials.put(PLACE, 1, 0.0, 0.9, epoch)
    assert denials.left_s(PLACE, 1, 0.5) == pytest.approx(0.4)
    assert denials._table is None
    denials.put(OTHER, 1, 0.0, 0.9, epoch)  # sent before, by the table's clock
    denials.put(OTHER, 1, 0.0, 0.9, denials.epoch)
    assert denials.left_s(OTHER, 1, 0.5) == pytest.approx(0.4)
    answer = an_answer(random.Random(6), QUOTAS, 1)
    denials.put(OTHER, 1, 0.0, 0.9, denials.epoch, answer, 0.0)
    assert told(denials.told(OTHER, 1, 0.5)) == told(answer)
    denials.forget(PLACE)
    assert denials.left_s(PLACE, 1, 0.5) == 0

    table = open_table("api", "test")
    denials = SharedDenials(table, QUOTAS, b"whose")
    denials.put(PLACE, 1, 0.0, 0.9, denials.epoch)
    table.close()
    denials.forget(PLACE)  # which it could not tell the others, and so it asks them no more
    assert denials.left_s(PLACE, 1, 0.5) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_shares_and_one_that_finds_no_place_keeps_its_own(folder: Path) -> None:
    one = shared_of()
    one.put(PLACE, 1, 0.0, 0.9, one.epoch)

    def child() -> tuple[float, bool]:
        seen = one.left_s(PLACE, 1, 0.0)
        one.put(OTHER, 1, 0.0, 0.9, one.epoch)
        return seen, one._table is not None

    seen, shares = in_child(child)
    assert seen > 0
    assert shares
    assert one.left_s(OTHER, 1, 0.0) > 0

    def orphan() -> tuple[bool, float, float]:
        (folder / "api.denials").unlink()
        for path in list(Path("/proc/self/fd").iterdir()):
            if path.is_symlink() and "api.denials" in str(path.readlink()):
                os.close(int(path.name))
        one.put(b"c" * 16, 1, 0.0, 0.9, one.epoch)
        return one._table is None, one.left_s(b"c" * 16, 1, 0.5), one.left_s(PLACE, 1, 0.5)

    alone, own_s, _ = in_child(orphan)
    assert alone
    assert own_s == pytest.approx(0.4)


def test_close_leaves_the_others_theirs_and_signs_off(folder: Path) -> None:
    one, other = shared_of(), shared_of()
    one.put(PLACE, 1, 0.0, 0.9, one.epoch)
    assert len(shared.inspect("api.denials").processes) == 2
    one.close()
    assert len(shared.inspect("api.denials").processes) == 1
    assert one.left_s(PLACE, 1, 0.5) == 0
    assert one.told(PLACE, 1, 0.5) is None
    assert other.left_s(PLACE, 1, 0.5) > 0


# --- in a limiter


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose clock stands still: what is over goes by the machine's."""
    monkeypatch.setattr(limiter_module, "Wire", StoreWire)
    monkeypatch.setattr(aio_module, "AsyncWire", AsyncStoreWire)
    return Store()


def asks(store: Store, call: Callable[[], object]) -> tuple[object, int]:
    """What a call returns, and how often it asked the store."""
    before = len(store.calls)
    return call(), len(store.calls) - before


def test_all_verbs_repeat_what_another_limiter_learned(folder: Path, store: Store) -> None:
    one = RedisRateLimiter("2/minute", store, name="api", shared="api")
    two = RedisRateLimiter("2/minute", store, name="api", shared="api")
    assert one.allow_many(["k", "k", "k"]) == [True, True, False]
    assert asks(store, lambda: two.allow("k")) == (False, 0)
    assert asks(store, lambda: two.allow("k", 2)) == (False, 0)
    assert asks(store, lambda: two.acquire("k", timeout=0)) == (False, 0)
    assert asks(store, lambda: two.allow_many(["k", "j", "k"])) == ([False, True, False], 1)
    assert asks(store, lambda: one.check("k").allowed) == (False, 1)  # nobody knew the answer
    assert asks(store, lambda: two.check("k").limit) == (2, 0)
    assert asks(store, lambda: two.check("k").retry_after > 50) == (True, 0)
    assert asks(store, lambda: two.peek("k").allowed) == (False, 1)
    stats = two.stats()
    assert (stats.denied, stats.denied_locally, stats.allowed) == (6, 6, 1)

    async def run() -> None:
        async with AsyncRedisRateLimiter("2/minute", store, name="api", shared="api") as three:
            before = len(store.calls)
            assert not await three.allow("k")
            assert not await three.acquire("k", timeout=0)
            assert await three.allow_many(["k", "k"]) == [False, False]
            assert not (await three.check("k")).allowed
            assert len(store.calls) == before
            assert await three.reset("k")

    asyncio.run(run())
    assert asks(store, lambda: one.allow("k")) == (True, 1)
    assert asks(store, lambda: two.check("k").allowed) == (True, 1)


def test_several_quotas_and_keys_of_all_kinds(folder: Path, store: Store) -> None:
    limits = ["2/minute", "3/hour"]
    one, two = (RedisRateLimiter(limits, store, shared="api") for _ in range(2))
    keys: list[Any] = ["k", b"k", 1, "1", ("a", 1), -(2**70)]
    for key in keys:
        assert asks(store, lambda key=key: two.allow(key, 2)) == (True, 1)  # type: ignore[misc]
        assert not one.allow(key)
        assert asks(store, lambda key=key: two.allow(key)) == (False, 0)  # type: ignore[misc]


def test_a_deployment_with_another_limit_is_not_held_up(folder: Path, store: Store) -> None:
    old = RedisRateLimiter("1/minute", store, name="api", shared="api")
    new = RedisRateLimiter("2/minute", store, name="api", shared="api")
    assert old.allow("k")
    assert not old.allow("k")
    assert new.allow("k")  # though both count in one log
    assert asks(store, lambda: old.allow("k")) == (False, 0)


def test_a_block_by_hand_and_a_denial_are_two_things(folder: Path, store: Store) -> None:
    events: list[str] = []
    telemetry.attach("t", ["blocked"], lambda event, *_: events.append(event))
    try:
        one = RedisRateLimiter("1/minute", store, name="web", shared="api")
        assert one.allow("k")
        assert not one.allow("k")
        with shared.attach("api.web") as operator:
            assert not operator.peek("k").blocked
            assert operator.stats()[:3] == (0, 0, 0)
            operator.block("k", 60)
            assert one._denials is not None
            one._denials.forget(one._place("k"))
            assert operator.peek("k").blocked
            store.down = Unavailable("connection refused")
            assert not one.allow("k")  # "local" heeds the block
            store.down = None
            assert one.allow("j")
            assert operator.unblock("k")
    finally:
        telemetry.detach("t")
    assert events.count("blocked") <= 1  # the operator's
    info = shared.inspect("api.web")
    assert [part.name for part in info.parts] == ["api.web.records", "api.web.denials"]
    assert [part.keeps_denials for part in info.parts] == [False, True]
    assert info.parts[1].denied == 0
    assert info.missing_parts == ()


def test_each_on_error_shares_denials(folder: Path, store: Store) -> None:
    one = RedisRateLimiter("1/minute", store, name="web", shared="api", on_error="deny")
    two = RedisRateLimiter("1/minute", store, name="web", shared="api", on_error="raise")
    assert one.allow("k")
    assert not one.allow("k")
    assert asks(store, lambda: two.allow("k")) == (False, 0)
    assert [each.name for each in folder.iterdir()] == ["api.web.denials"]
    assert shared.inspect("api.web.denials").part_of == "api.web"
    RedisRateLimiter("1/minute", store, shared="no", deny_cache=False).close()
    assert not (folder / "no.denials").exists()


def test_memory_without_a_name_is_for_children(folder: Path, store: Store) -> None:
    limiter = RedisRateLimiter("1/minute", store, shared=True)  # type: ignore[arg-type]
    assert limiter.allow("k")

    def child() -> bool:
        return limiter.allow("k")

    assert not in_child(child)
    assert asks(store, lambda: limiter.allow("k")) == (False, 0)
    assert not list(folder.iterdir())


def test_what_is_wrong_with_the_table_is_told_at_once(folder: Path, store: Store) -> None:
    (folder / "api.web.denials").write_bytes(b"no table")
    with pytest.raises(NanolimitError, match=r"api\.web\.denials"):
        RedisRateLimiter("1/minute", store, name="web", shared="api")
    assert (folder / "api.web.denials").read_bytes() == b"no table"
    assert not shared.inspect("api.web").processes  # it has left that one
    with pytest.raises(ValueError, match="nodes"):
        RedisRateLimiter("1/minute", store, shared="other", nodes=0)
    assert not list(folder.glob("other*"))


def test_rm_removes_it_with_the_others(folder: Path, store: Store) -> None:
    limiter = RedisRateLimiter("1/minute; 2/hour", store, name="web", shared="api")
    assert {each.name for each in folder.iterdir()} == {"api.web", "api.web.2", "api.web.denials"}
    limiter.close()
    del limiter
    shared.remove("api.web")
    assert not list(folder.iterdir())
