"""A limiter on a Cluster of which a node is away: only the keys there are without their store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nanolimit import telemetry
from nanolimit.redis import AsyncRedisRateLimiter, Lease, RedisRateLimiter, StoreUnavailableError
from nanolimit.redis import aio as aio_module
from nanolimit.redis import dialog as dialog_module
from nanolimit.redis import limiter as limiter_module
from nanolimit.redis.cluster import SLOTS, Address, SlotMap, slot_of
from nanolimit.redis.dialog import FAILURES, PAUSE_S
from nanolimit.redis.fault import Unavailable
from nanolimit.redis.lease import HOT
from nanolimit.redis.script import BATCH_KEYS
from store import AsyncStoreWire, Store, StoreWire

NODES = A, B, C = [Address("10.0.0.1", port) for port in (7001, 7002, 7003)]
REFUSED = Unavailable("connection refused")
TIMED_OUT = Unavailable("no reply in time", outcome_unknown=True)
OOM = Unavailable("OOM command not allowed")


def slots_of(*nodes: Address) -> SlotMap:
    slots = SlotMap()
    share = -(-SLOTS // len(nodes))
    slots.owners = [nodes[slot // share] for slot in range(SLOTS)]
    return slots


def keys_at(node: Address, many: int = 1, nodes: tuple[Address, ...] = tuple(NODES)) -> list[str]:
    """Some keys that a node serves."""
    slots = slots_of(*nodes)
    found = []
    for number in range(100_000):
        if slots.owners[slot_of(b"{s:%d}" % number)] == node:
            found.append(str(number))
            if len(found) == many:
                break
    return found


ONE, TWO, THREE = (keys_at(node)[0] for node in NODES)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    store.clustered, store.slots = True, slots_of(*NODES)
    monkeypatch.setattr(limiter_module, "Wire", StoreWire)
    monkeypatch.setattr(aio_module, "AsyncWire", AsyncStoreWire)
    for module in (limiter_module, aio_module, dialog_module):
        monkeypatch.setattr(module, "monotonic", store.monotonic)
        monkeypatch.setattr(module, "clock_s", store.monotonic, raising=False)
    return store


class Awaited:
    """An AsyncRedisRateLimiter that waits for what it returns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *args: Any, **kwargs: Any) -> None:
        self._loop = loop
        self._limiter = AsyncRedisRateLimiter(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._limiter, name)
        if name not in ("allow", "check", "peek", "allow_many", "reset", "acquire", "close"):
            return found
        return lambda *args, **kwargs: self._loop.run_until_complete(found(*args, **kwargs))


Make = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def make(request: pytest.FixtureRequest, store: Store) -> Iterator[Make]:
    """make(quota, ...) -> a limiter on `store`, of either kind, to be used the same way."""
    if request.param == "sync":
        yield lambda quota, **options: RedisRateLimiter(quota, store, **options)
        return
    loop = asyncio.new_event_loop()
    yield lambda quota, **options: Awaited(loop, quota, store, **options)
    loop.close()


@pytest.fixture
def told() -> Iterator[list[tuple[object, ...]]]:
    """What is told of outages: (event, node, count, reason)."""
    events: list[tuple[object, ...]] = []
    telemetry.attach(
        "outages",
        ["degraded", "recovered"],
        lambda event, measurements, metadata: events.append(
            (event, metadata.get("node"), measurements["count"], metadata["reason"])
        ),
    )
    yield events
    telemetry.detach("outages")


def fail(limiter: Any, key: str, times: int = FAILURES) -> None:
    for _ in range(times):
        assert limiter.check(key).degraded


def test_the_keys_are_where_the_tests_want_them() -> None:
    slots = slots_of(*NODES)
    for key, node in ((ONE, A), (TWO, B), (THREE, C)):
        assert slots.owners[slot_of(b"nl:{s:%b}:1/1" % key.encode())] == node


VERBS: list[Callable[[Any, str], object]] = [
    lambda limiter, key: limiter.allow(key),
    lambda limiter, key: limiter.check(key),
    lambda limiter, key: limiter.peek(key),
    lambda limiter, key: limiter.acquire(key),
    lambda limiter, key: limiter.reset(key),
    lambda limiter, key: limiter.allow_many([key]),
]


@pytest.mark.parametrize("verb", VERBS, ids=["allow", "check", "peek", "acquire", "reset", "many"])
@pytest.mark.parametrize("lease", [None, Lease()], ids=["plain", "leases"])
def test_only_the_node_that_is_away_is_left_alone(
    make: Make, store: Store, verb: Callable[[Any, str], object], lease: Lease | None
) -> None:
    limiter = make("1000/second", lease=lease)
    store.down_at[B] = TIMED_OUT
    for _ in range(FAILURES):
        verb(limiter, TWO)
        # They answer in between, and that does not make B's failures undone.
        assert not limiter.check(ONE).degraded
        assert not limiter.check(THREE).degraded
    assert limiter.stats().failures == FAILURES
    store.calls.clear()
    for _ in range(10):
        verb(limiter, TWO)
    assert store.calls == []
    assert limiter.stats().failures == FAILURES
    for key in (ONE, THREE):
        verb(limiter, key)
    assert len(store.calls) >= 2
    assert limiter.stats().failures == FAILURES
    # It is asked again after a while, by one, and is back.
    del store.down_at[B]
    store.calls.clear()
    verb(limiter, TWO)
    assert store.calls == []
    store.now_s += PAUSE_S
    verb(limiter, TWO)
    assert len(store.calls) == 1
    assert not limiter.check(TWO).degraded
    assert limiter.degraded is None


def test_what_is_told_of_each_node(
    make: Make, store: Store, told: list[tuple[object, ...]]
) -> None:
    limiter = make("1000/second")
    store.down_at[B] = OOM
    fail(limiter, TWO)
    assert limiter.degraded == f"{B}: OOM command not allowed"
    assert ", degraded>" in repr(getattr(limiter, "_limiter", limiter))
    store.now_s += 0.5
    store.down_at[C] = TIMED_OUT
    fail(limiter, THREE)
    assert limiter.degraded in (
        f"{B}: OOM command not allowed; {C}: no reply in time",
        f"{C}: no reply in time; {B}: OOM command not allowed",
    )
    store.down_at.clear()
    store.now_s += PAUSE_S
    assert not limiter.check(TWO).degraded
    assert limiter.degraded == f"{C}: no reply in time"
    store.now_s += 1.0
    assert not limiter.check(THREE).degraded
    assert limiter.degraded is None
    assert told == [
        ("degraded", str(B), 1, OOM.reason),
        ("degraded", str(C), 1, TIMED_OUT.reason),
        ("recovered", str(B), pytest.approx(0.5 + PAUSE_S), OOM.reason),
        ("recovered", str(C), pytest.approx(PAUSE_S + 1.0), TIMED_OUT.reason),
    ]


def test_why_a_node_was_not_asked(make: Make, store: Store) -> None:
    limiter = make("1000/second", on_error="raise")
    store.down_at[B] = OOM
    for _ in range(FAILURES):
        with pytest.raises(StoreUnavailableError, match="store: OOM command"):
            limiter.allow(TWO)
    with pytest.raises(StoreUnavailableError, match=f"{B} is left alone for now.*: OOM command"):
        limiter.allow(TWO)
    assert limiter.allow(ONE)


def test_a_node_that_is_left_alone_is_asked_for_no_loan(make: Make, store: Store) -> None:
    limiter = make("1000/minute", lease=Lease())
    for _ in range(4 * HOT):
        for key in (ONE, TWO, THREE):
            assert limiter.allow(key)
    assert limiter.stats().leased > 3 * HOT
    store.down_at[B] = REFUSED
    while limiter.degraded is None:  # what is in hand is used before
        assert limiter.allow(TWO)
    store.calls.clear()
    failures = limiter.stats().failures
    for _ in range(4 * HOT):
        assert limiter.allow(TWO)
    assert store.calls == []
    assert limiter.stats().failures == failures
    leased = limiter.stats().leased
    for _ in range(4 * HOT):
        assert limiter.allow(ONE)
    assert limiter.stats().leased > leased
    store.down_at.clear()
    limiter.close()


def test_it_is_degraded_until_a_probe_was_answered(make: Make, store: Store) -> None:
    limiter = make("1000/second")
    store.down_at[B] = OOM
    fail(limiter, TWO)
    store.down_at.clear()
    store.now_s += PAUSE_S
    seen: list[object] = []
    store.on_call = lambda: seen.append(limiter.degraded)
    assert not limiter.check(TWO).degraded
    assert seen == [f"{B}: OOM command not allowed"]
    assert limiter.degraded is None


# --- batches


def mixed(many: int) -> list[str]:
    """So many keys of each node in turn."""
    return [key for keys in zip(*(keys_at(node, many) for node in NODES), strict=True)
            for key in keys]  # fmt: skip


def test_of_a_batch_the_keys_of_the_other_nodes_are_answered(make: Make, store: Store) -> None:
    limiter = make("1/second", on_error="deny")
    store.down_at[B] = TIMED_OUT
    keys = mixed(2)
    assert limiter.allow_many(keys) == [True, False, True] * 2
    stats = limiter.stats()
    assert (stats.allowed, stats.denied, stats.degraded) == (4, 2, 2)
    assert (stats.failures, stats.unknown) == (1, 1)  # one for a batch
    assert limiter.allow_many(keys_at(A, 3)[2:] + keys_at(C, 3)[2:]) == [True, True]


def test_a_large_batch_goes_on_without_the_node_that_failed(make: Make, store: Store) -> None:
    limiter = make("1/second", on_error="deny")
    store.down_at[B] = TIMED_OUT
    many = BATCH_KEYS
    assert limiter.allow_many(mixed(many)) == [True, False, True] * many
    # B was asked for its keys of the first of three calls only.
    asked = len(store.calls)
    assert 2 * many < asked < 2 * many + BATCH_KEYS // 2
    assert limiter.stats().degraded == many
    assert limiter.stats().failures == 1
    assert limiter.degraded is None


def test_a_batch_asks_nothing_of_a_node_that_is_left_alone(make: Make, store: Store) -> None:
    limiter = make("10/second", on_error="deny")
    store.down_at[B] = TIMED_OUT
    keys = mixed(1)
    for _ in range(FAILURES):
        assert limiter.allow_many(keys) == [True, False, True]
    store.calls.clear()
    assert limiter.allow_many(keys) == [True, False, True]
    assert len(store.calls) == 2
    assert limiter.allow_many([TWO] * 3) == [False] * 3
    assert len(store.calls) == 2
    assert limiter.stats().failures == FAILURES
    # A batch of more than one call, of which the first has no key that can be asked.
    assert limiter.allow_many([*keys_at(B, BATCH_KEYS), ONE]) == [False] * BATCH_KEYS + [True]
    # And the probe is a part of a batch.
    del store.down_at[B]
    store.now_s += PAUSE_S
    assert limiter.allow_many(keys) == [True] * 3
    assert limiter.degraded is None


def test_a_batch_with_two_nodes_away(make: Make, store: Store) -> None:
    limiter = make("10/second", on_error="deny")
    store.down_at.update({B: TIMED_OUT, C: OOM})
    for _ in range(FAILURES):
        assert limiter.allow_many(mixed(1)) == [True, False, False]
    assert limiter.stats()[4:6] == (FAILURES, FAILURES)
    store.calls.clear()
    assert limiter.allow_many(mixed(1)) == [True, False, False]
    assert len(store.calls) == 1


def test_a_batch_goes_on_with_nodes_that_another_left_no_time(make: Make, store: Store) -> None:
    limiter = make("10/second", on_error="deny")
    first = mixed(BATCH_KEYS // 3)
    for nth in range(1, FAILURES + 1):
        origin = object()
        for _ in first:
            store.faults.append(redirected(B))
            store.faults[-1].origin = origin
        rest = keys_at(A, 20) + keys_at(C, 20)
        assert limiter.allow_many([*first, ONE, *rest]) == [False] * len(first) + [True] * 41
        assert limiter.degraded == (f"{B}: no reply in time" if nth == FAILURES else None)


def test_of_two_nodes_that_fail_one_may_have_counted(make: Make, store: Store) -> None:
    limiter = make("10/second", on_error="deny")
    store.down_at.update({A: REFUSED, B: TIMED_OUT})
    assert limiter.allow_many([ONE, TWO, THREE]) == [False, False, True]
    assert limiter.stats()[4:6] == (1, 1)


def test_a_batch_that_fails_as_a_whole_is_not_gone_on_with(
    make: Make, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = make("10/second", on_error="deny")

    # What the wire itself raises, as when it is closed meanwhile, is of all calls.
    def closed(self: StoreWire, calls: Any) -> Any:
        store.calls.append("many")
        raise Unavailable("it was closed")

    monkeypatch.setattr(StoreWire, "run_many", closed)
    assert limiter.allow_many(mixed(BATCH_KEYS)) == [False] * 3 * BATCH_KEYS
    assert store.calls == ["many"]
    assert limiter.stats().failures == 1
    for _ in range(FAILURES - 1):
        limiter.allow_many(mixed(1))
    assert limiter.allow_many(mixed(1)) == [False] * 3
    assert len(store.calls) == FAILURES


def test_in_a_batch_a_strange_key_is_no_fault_of_its_node(make: Make, store: Store) -> None:
    limiter = make("10/second", on_error="deny")
    for _ in range(FAILURES + 1):
        store.faults = [Unavailable("WRONGTYPE Operation against a key")]
        assert limiter.allow_many([ONE, ONE, TWO]) == [False, True, True]
    assert limiter.degraded is None
    # And does not hide one.
    for _ in range(FAILURES):
        store.faults = [Unavailable("WRONGTYPE Operation against a key"), REFUSED]
        assert limiter.allow_many([ONE, ONE]) == [False, False]
    assert limiter.degraded == f"{A}: connection refused"


def test_raise_in_a_batch(make: Make, store: Store) -> None:
    limiter = make("10/second", on_error="raise")
    store.down_at[B] = REFUSED
    with pytest.raises(StoreUnavailableError, match="connection refused"):
        limiter.allow_many(mixed(1))


def test_a_batch_that_is_broken_off_leaves_no_probe_behind(make: Make, store: Store) -> None:
    limiter = make("10/second")
    store.down_at[B] = REFUSED
    fail(limiter, TWO)
    store.down_at.clear()
    store.now_s += PAUSE_S

    def interrupt() -> None:
        raise KeyboardInterrupt

    store.on_call = interrupt
    with pytest.raises(KeyboardInterrupt):
        limiter.allow_many(mixed(1))
    store.on_call = lambda: None
    assert not limiter.check(TWO).degraded


# --- the map


def test_a_node_that_has_gone_with_its_slots_is_back_elsewhere(
    make: Make, store: Store, told: list[tuple[object, ...]]
) -> None:
    limiter = make("1000/second")
    store.down_at[B] = REFUSED
    fail(limiter, TWO)
    store.now_s += 0.25
    replica = Address("10.0.0.2", 7002)
    store.slots = slots_of(A, replica, C)
    assert not limiter.check(TWO).degraded  # at once
    assert limiter.degraded is None
    assert told == [
        ("degraded", str(B), 1, REFUSED.reason),
        ("recovered", str(B), pytest.approx(0.25), REFUSED.reason),
    ]
    # A probe that was on its way to it has nothing to say any more.
    store.now_s += PAUSE_S
    assert not limiter.check(TWO).degraded
    assert len(told) == 2


def test_a_probe_that_finds_the_keys_elsewhere_tells_of_it_once(
    make: Make, store: Store, told: list[tuple[object, ...]]
) -> None:
    limiter = make("1000/second")
    store.down_at[B] = REFUSED
    fail(limiter, TWO)
    store.now_s += PAUSE_S

    def learn() -> None:
        store.slots = slots_of(A, C)

    store.down_at.clear()
    store.on_call = learn
    assert not limiter.check(TWO).degraded
    assert not limiter.check(TWO).degraded
    assert [each[:2] for each in told] == [("degraded", str(B)), ("recovered", str(B))]


def redirected(node: Address) -> Unavailable:
    fault = Unavailable("no reply in time", outcome_unknown=True)
    fault.node = node
    return fault


def test_a_failure_counts_for_the_node_that_failed(
    make: Make, store: Store, told: list[tuple[object, ...]]
) -> None:
    """As of a slot that has moved, of which its old node still tells the new one."""
    limiter = make("1000/second")
    for key in keys_at(A, FAILURES):
        store.faults = [redirected(B)]
        assert limiter.check(key).degraded
    assert not limiter.check(ONE).degraded
    assert limiter.check(TWO).degraded
    assert [each[:2] for each in told] == [("degraded", str(B))]
    # What was sent to it before is old news: it is no probe, and does not prolong the pause.
    store.now_s += PAUSE_S
    store.faults = [redirected(B)]
    assert limiter.check(ONE).degraded
    assert not limiter.check(TWO).degraded


def test_of_a_node_that_has_gone_meanwhile_nothing_is_told(
    make: Make, store: Store, told: list[tuple[object, ...]]
) -> None:
    """Of requests that were let in before, more than it takes may fail after it has gone."""
    limiter = make("1000/second")
    assert not limiter.check(TWO).degraded
    gone = limiter._breakers.at(B)
    store.slots = slots_of(A, C)
    assert not limiter.check(ONE).degraded
    assert limiter._breakers.at(B) is None
    for _ in range(FAILURES + 1):
        ticket = gone.enter(store.now_s)
        if ticket is not None:
            limiter._failed(gone, ticket, TIMED_OUT)
    assert gone.state == "open"
    assert told == []
    assert limiter.degraded is None


def test_a_probe_that_is_sent_on_and_fails_leaves_the_next_one_its_turn(
    make: Make, store: Store
) -> None:
    limiter = make("1000/second")
    store.down_at[A] = REFUSED
    fail(limiter, ONE)
    store.now_s += PAUSE_S
    store.down_at.clear()
    store.faults = [redirected(B)]
    assert limiter.check(ONE).degraded
    assert not limiter.check(ONE).degraded


def test_a_failure_of_a_node_that_no_map_names_counts_for_who_had_the_key(
    make: Make, store: Store
) -> None:
    limiter = make("1000/second")
    for _ in range(FAILURES):
        store.faults = [redirected(Address("10.0.0.9", 1))]
        assert limiter.check(TWO).degraded
    assert limiter.degraded == f"{B}: no reply in time"


def test_a_url_that_leads_to_a_cluster(
    make: Make, store: Store, told: list[tuple[object, ...]]
) -> None:
    slots, store.slots = store.slots, None
    store.clustered = False
    limiter = make("1000/second")
    assert not limiter.check(ONE).degraded
    # With the first MOVED, it is known to be one; and the very first failure counts.
    store.clustered, store.slots = True, slots
    assert not limiter.check(TWO).degraded
    store.down_at[B] = REFUSED
    fail(limiter, TWO)
    store.calls.clear()
    assert limiter.check(TWO).degraded
    assert limiter.allow(TWO)
    assert store.calls == []
    assert not limiter.check(ONE).degraded
    assert told == [("degraded", str(B), 1, REFUSED.reason)]


@pytest.mark.parametrize("covered", [True, False])
def test_a_url_whose_server_was_away_before_it_was_known_to_be_a_clusters(
    make: Make, store: Store, told: list[tuple[object, ...]], covered: bool
) -> None:
    slots, store.slots = store.slots, None
    store.clustered = False
    limiter = make("1000/second")
    store.down = REFUSED
    fail(limiter, ONE)
    assert limiter.degraded == REFUSED.reason
    store.now_s += PAUSE_S
    store.down = None

    def learn() -> None:
        store.clustered = True
        store.slots = slots if covered else SlotMap()

    store.on_call = learn
    assert not limiter.check(ONE).degraded
    assert limiter.degraded is None
    store.slots = slots
    for key in (ONE, TWO, THREE):
        assert not limiter.check(key).degraded
    assert told == [
        ("degraded", None, 1, REFUSED.reason),
        ("recovered", None, pytest.approx(PAUSE_S), REFUSED.reason),
    ]


def test_a_cluster_of_which_no_node_tells_the_slots(make: Make, store: Store) -> None:
    store.slots = SlotMap()
    limiter = make("1000/second")
    store.down = REFUSED
    fail(limiter, ONE)
    store.calls.clear()
    for key in (ONE, TWO, THREE):
        assert limiter.check(key).degraded
    assert store.calls == []
    store.down = None
    store.slots = slots_of(*NODES)  # another has learned of them
    for key in (ONE, TWO, THREE):
        assert not limiter.check(key).degraded
    assert limiter.degraded is None


# --- tasks at once


@pytest.mark.parametrize("coalesce", [True, False])
def test_tasks_at_once(store: Store, coalesce: bool) -> None:
    async def run() -> None:
        limiter = AsyncRedisRateLimiter("1000/second", store, on_error="deny", coalesce=coalesce)
        store.down_at[B] = TIMED_OUT
        keys = mixed(3) * 2
        for _ in range(2):
            answers = await asyncio.gather(*(limiter.allow(key) for key in keys))
            assert answers == [True, False, True] * 6
        assert limiter.degraded == f"{B}: no reply in time"
        store.calls.clear()
        answers = await asyncio.gather(*(limiter.allow(key) for key in keys))
        assert answers == [True, False, True] * 6
        assert len(store.calls) <= 12
        store.down_at.clear()
        store.now_s += PAUSE_S
        answers = await asyncio.gather(*(limiter.allow(key) for key in keys))
        assert all(answers)

    asyncio.run(run())
