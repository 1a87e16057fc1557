"""Script calls to a cluster of three nodes: slots that move, and nodes that are gone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

redis = pytest.importorskip("redis")

from redis.asyncio import RedisCluster as AsyncCluster  # noqa: E402
from redis.asyncio.cluster import ClusterNode as AsyncNode  # noqa: E402
from redis.cluster import ClusterNode  # noqa: E402

from blocking import Blocking  # noqa: E402
from lua import COUNT, EMPTY, Lua  # noqa: E402
from nanolimit import telemetry  # noqa: E402
from nanolimit.redis import AsyncRedisRateLimiter, RedisRateLimiter  # noqa: E402
from nanolimit.redis import dialog as dialog_module  # noqa: E402
from nanolimit.redis.cluster import Address, slot_of  # noqa: E402
from nanolimit.redis.fault import Unavailable  # noqa: E402
from nanolimit.redis.wire import Wire  # noqa: E402
from redis_server import RedisCluster, RedisServer, on_both  # noqa: E402

PATIENT_S = 20.0
# What a busy machine of two cores may add, in a test that looks at the clock.
SLACK_S = 1.5
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def running(binary: str) -> Iterator[RedisCluster]:
    with RedisCluster(binary=binary) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: RedisCluster) -> RedisCluster:
    for node in running.nodes:
        node.ask("FLUSHALL")
        node.ask("SCRIPT", "FLUSH")
    return running


def client_for_threads(cluster: RedisCluster) -> Any:
    nodes = [ClusterNode(node.host, node.port) for node in cluster.nodes]
    return redis.RedisCluster(startup_nodes=nodes)


def client_for_asyncio(cluster: RedisCluster) -> Any:
    nodes = [AsyncNode(node.host, node.port) for node in cluster.nodes]
    return AsyncCluster(startup_nodes=nodes)


@pytest.fixture(
    params=[(Wire, client_for_threads), (Blocking, client_for_asyncio)], ids=["threads", "asyncio"]
)
def make(request: pytest.FixtureRequest, cluster: RedisCluster) -> Iterator[Make]:
    """Make a wire from a cluster's client, or from what is given; closed at the end."""
    wire_class, client = request.param
    made: list[Any] = []

    def one(given: object = None, timeout_s: float = PATIENT_S) -> Any:
        made.append(wire_class(given or client(cluster), timeout_s))
        return made[-1]

    yield one
    for wire in made:
        wire.close()


def keys_of(cluster: RedisCluster, node: RedisServer, many: int) -> list[bytes]:
    """Some keys that a node serves."""
    found: list[bytes] = []
    number = 0
    while len(found) < many:
        key = b"nl:{%d}:1" % number
        number += 1
        if cluster.node_of(slot_of(key)) is node:
            found.append(key)
    return found


def other_than(cluster: RedisCluster, node: RedisServer) -> RedisServer:
    return next(each for each in cluster.nodes if each is not node)


def address_of(node: RedisServer) -> Address:
    return Address(node.host, node.port)


def total(cluster: RedisCluster, key: bytes) -> int:
    return int(cluster.node_of(slot_of(key)).ask("GET", key) or 0)


@pytest.mark.parametrize(
    "key", [b"", b"user", b"{user}:1", b"a{}b", b"a{b", b"}a{b}c{d}", b"{{a}}", b"\xff{\x00\xfe}"]
)
def test_slots_are_those_of_the_server(cluster: RedisCluster, key: bytes) -> None:
    assert slot_of(key) == cluster.slot_of(key)


def test_each_call_goes_to_the_node_that_has_the_key(cluster: RedisCluster, make: Make) -> None:
    wire = make()
    keys = [key for node in cluster.nodes for key in keys_of(cluster, node, 5)]
    before = [node.calls("cluster|slots") for node in cluster.nodes]
    assert [wire.run(COUNT, [key], [1]) for key in keys] == [1] * 15
    assert wire.run_many([(COUNT, [key], [1]) for key in keys * 2]) == [2] * 15 + [3] * 15
    assert wire.run(EMPTY, []) == 0  # without a key: anywhere
    errors = [node.info("errorstats") for node in cluster.nodes]
    assert not any("MOVED" in name for each in errors for name in each)
    assert sum(node.calls("cluster|slots") for node in cluster.nodes) == sum(before) + 1


def test_a_url_of_one_node_leads_to_all(cluster: RedisCluster, make: Make) -> None:
    wire = make(cluster.url)
    keys = [key for node in cluster.nodes for key in keys_of(cluster, node, 5)]
    assert wire.run_many([(COUNT, [key], [1]) for key in keys]) == [1] * 15
    assert [wire.run(COUNT, [key], [1]) for key in keys] == [2] * 15


def test_keys_of_two_slots_in_one_call_are_an_error(cluster: RedisCluster, make: Make) -> None:
    with pytest.raises(Unavailable, match="CROSSSLOT") as caught:
        make().run(COUNT, [b"a", b"b"], [1])
    assert not caught.value.outcome_unknown


@on_both
def test_a_slot_that_has_moved_costs_one_more_trip_once(cluster: RedisCluster, make: Make) -> None:
    wire = make()
    key = keys_of(cluster, cluster.nodes[0], 1)[0]
    wire.run(COUNT, [key], [1])
    source = cluster.node_of(slot_of(key))
    cluster.move_slot(slot_of(key), other_than(cluster, source))
    ran, rejected = source.calls("evalsha"), source.calls("evalsha", "rejected_calls")
    assert [wire.run(COUNT, [key], [1]) for _ in range(3)] == [2, 3, 4]
    assert wire.run_many([(COUNT, [key], [1])] * 3) == [5, 6, 7]
    assert source.calls("evalsha") == ran
    assert source.calls("evalsha", "rejected_calls") == rejected + 1


@on_both
def test_a_slot_on_the_move_is_asked_for_at_both_ends(cluster: RedisCluster, make: Make) -> None:
    wire = make()
    here, there, *_ = keys_of(cluster, cluster.nodes[1], 200)
    slot = slot_of(here)
    there = b"nl:{%b}:2" % here[4 : here.index(b"}")]  # of the same slot
    assert slot_of(there) == slot
    source = cluster.node_of(slot)
    target = other_than(cluster, source)
    wire.run(COUNT, [here], [1])
    cluster.begin_move(slot, source, target)
    # The one is still here, the other is made over there, also many at a time.
    assert wire.run(COUNT, [here], [1]) == 2
    assert wire.run(COUNT, [there], [1]) == 1
    found = wire.run_many([(COUNT, [key], [1]) for key in (here, there, here, there)])
    assert found == [3, 2, 4, 3]
    # A script that needs both can't run now, and is tried again until they are together.
    both = Lua("return {redis.call('INCR', KEYS[1]), redis.call('INCR', KEYS[2])}")
    with pytest.raises(Unavailable, match="TRYAGAIN") as caught:
        make(timeout_s=1.0).run(both, [here, there])
    assert not caught.value.outcome_unknown
    cluster.move_keys(slot, source, target)
    cluster.end_move(slot, source, target)
    assert wire.run(both, [here, there]) == [5, 4]


@on_both
def test_a_slot_moved_to_and_fro_under_load(cluster: RedisCluster, make: Make) -> None:
    wire = make()
    key = keys_of(cluster, cluster.nodes[0], 1)[0]
    slot = slot_of(key)
    stop = threading.Event()
    faults: list[BaseException] = []
    done = [0] * 4

    def work(number: int) -> None:
        while not stop.is_set():
            try:
                wire.run(COUNT, [key], [1])
                done[number] += 1
            except BaseException as fault:
                faults.append(fault)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(6):
            before, deadline = sum(done), time.monotonic() + PATIENT_S
            while sum(done) < before + 20 and time.monotonic() < deadline:
                time.sleep(0.001)
            cluster.move_slot(slot, other_than(cluster, cluster.node_of(slot)))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not faults
    assert total(cluster, key) == sum(done)


def test_one_node_that_is_stopped_or_gone_takes_only_its_own_keys_along(make: Make) -> None:
    with RedisCluster("--cluster-require-full-coverage", "no") as own:
        keys = [keys_of(own, node, 2) for node in own.nodes]
        wire = make(own.url, 1.0)
        calls = [(COUNT, [key], [1]) for pair in keys for key in pair]
        wire.run_many(calls)
        # Now it knows the map. On a busy machine a second is little for that and the connections.
        deadline = time.monotonic() + PATIENT_S
        while not all(isinstance(each, int) for each in wire.run_many(calls)):
            assert time.monotonic() < deadline
        with own.nodes[1].paused():
            start = time.monotonic()
            found = wire.run_many(calls)
            assert time.monotonic() - start < 1.0 + SLACK_S
        lost = [isinstance(each, Unavailable) for each in found]
        assert lost == [False, False, True, True, False, False]
        assert all(each.outcome_unknown for each in found[2:4])
        assert {each.node for each in found[2:4]} == {address_of(own.nodes[1])}
        own.nodes[0].kill()  # the seed
        deadline = time.monotonic() + PATIENT_S
        while time.monotonic() < deadline:
            found = wire.run_many(calls)
            if [isinstance(each, Unavailable) for each in found] == [True, True] + [False] * 4:
                break
        else:
            raise AssertionError(found)
        assert not any(each.outcome_unknown for each in found[:2])
        assert {each.node for each in found[:2]} == {address_of(own.nodes[0])}


def test_a_map_is_found_while_the_first_seed_is_silent(cluster: RedisCluster, make: Make) -> None:
    wire = make(timeout_s=1.0)
    key = keys_of(cluster, cluster.nodes[2], 1)[0]
    with cluster.nodes[0].paused():
        start = time.monotonic()
        assert wire.run(COUNT, [key], [1]) == 1
        assert time.monotonic() - start < 1.0 + SLACK_S


def test_slots_that_nobody_serves(make: Make) -> None:
    with RedisServer(cluster=True) as alone:
        alone.ask("CLUSTER", "ADDSLOTSRANGE", 0, 10)
        wire = make(alone.url, 1.0)
        with pytest.raises(Unavailable, match="CLUSTERDOWN") as caught:
            wire.run(COUNT, [b"k"], [1])
        assert not caught.value.outcome_unknown


def test_addresses_are_mapped_as_the_client_maps_them(cluster: RedisCluster) -> None:
    seen: list[tuple[str, int]] = []

    def remap(address: tuple[str, int]) -> tuple[str, int]:
        seen.append(address)
        return "localhost", address[1]

    client = redis.RedisCluster.from_url(cluster.url, address_remap=remap)
    key = keys_of(cluster, cluster.nodes[0], 1)[0]
    with Wire(client, PATIENT_S) as wire:
        assert wire.run(COUNT, [key], [1]) == 1
        assert {address.host for address in wire._slots.nodes()} == {"localhost"}
    assert seen


# A limiter on it


class Awaited:
    """An AsyncRedisRateLimiter that waits for what it returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._limiter = AsyncRedisRateLimiter(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._limiter, name)
        if name not in ("allow", "check", "allow_many"):
            return found
        return lambda *args: self._loop.run_until_complete(found(*args))

    def close(self) -> None:
        self._loop.run_until_complete(self._limiter.close())
        self._loop.close()


@pytest.mark.parametrize("kind", [RedisRateLimiter, Awaited], ids=["threads", "asyncio"])
def test_a_node_that_hangs_is_left_alone_and_the_others_are_not(
    cluster: RedisCluster, kind: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing here waits for a second to be over.
    monkeypatch.setattr(dialog_module, "FAILURES", 2)
    monkeypatch.setattr(dialog_module, "PAUSE_S", 600.0)
    # The first one by its name is the one that a batch asks first, if it knows no better.
    stopped = min(cluster.nodes, key=lambda node: str(address_of(node)))
    keys: dict[int, list[str]] = {node.port: [] for node in cluster.nodes}
    for number in range(40):
        slot = slot_of(b"{s:%d}" % number)
        keys[cluster.node_of(slot).port].append(str(number))
    lost = keys.pop(stopped.port)
    well = [key for each in keys.values() for key in each]
    every = lost + well
    told: list[tuple[str, object]] = []
    telemetry.attach(
        "outages",
        ["degraded", "recovered"],
        lambda event, measurements, metadata: told.append((event, metadata["node"])),
    )
    limiter = kind("1000/minute", cluster.url, timeout=PATIENT_S / 25, on_error="deny")
    try:
        # Who makes connections on a busy machine may need more time than a call has.
        deadline = time.monotonic() + PATIENT_S
        while not all(limiter.allow_many(every)):
            assert time.monotonic() < deadline
        before = limiter.stats()
        assert limiter.degraded is None
        told.clear()
        with stopped.paused():
            # It takes the time of a reply, and then, for it is asked anew, that of a connection.
            for nth in (1, 2):
                assert limiter.allow_many(every) == [False] * len(lost) + [True] * len(well)
                assert limiter.stats().failures - before.failures == nth
            # Now it is asked no more. (Each of these would take a time-out else, and be one.)
            for key in lost * 10:
                assert not limiter.allow(key)
            assert limiter.allow_many(every) == [False] * len(lost) + [True] * len(well)
            assert not any(limiter.check(key).degraded for key in well)
            assert limiter.stats().failures - before.failures == 2
            assert str(address_of(stopped)) in limiter.degraded
        breaker = limiter._breakers.at(address_of(stopped))
        deadline = time.monotonic() + PATIENT_S
        breaker._until = 0.0
        while limiter.check(lost[0]).degraded:
            assert time.monotonic() < deadline
            breaker._until = 0.0
        assert limiter.degraded is None
        assert not any(limiter.check(key).degraded for key in every)
        name = str(address_of(stopped))
        assert told == [("degraded", name), ("recovered", name)]
    finally:
        telemetry.detach("outages")
        limiter.close()
