"""A breaker for each node of a Cluster: found by the map of slots, and gone with the node."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from typing import Any

import pytest

from nanolimit.redis.breaker import Breaker
from nanolimit.redis.breakers import BY_NODE, Breakers
from nanolimit.redis.cluster import SLOTS, Address, SlotMap, slot_of

A, B, C = (Address("10.0.0.1", port) for port in (7001, 7002, 7003))
PAUSE_S = 10.0


def slots_of(*nodes: Address | None) -> SlotMap:
    """A map in which they share the slots evenly, in this order."""
    slots = SlotMap()
    share = -(-SLOTS // len(nodes))
    slots.owners = [nodes[slot // share] for slot in range(SLOTS)]
    return slots


def name_at(slots: SlotMap, node: Address | None) -> bytes:
    """The name of a list that it serves."""
    return next(
        name
        for name in (b"nl:{s:%d}:1" % number for number in range(100_000))
        if slots.owners[slot_of(name)] == node
    )


class Wire:
    """As much of one as matters here."""

    slots: SlotMap | None = None


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def breakers(wire: Wire) -> Breakers:
    return Breakers(wire, partial(Breaker, 2, PAUSE_S, None))


def opened(breaker: Breaker, now_s: float = 0.0, reason: str = "refused") -> None:
    for _ in range(breaker.failures):
        breaker.reason = reason
        ticket = breaker.enter(now_s)
        assert ticket is not None
        breaker.failed(ticket, now_s)
    assert breaker.state == "open"


def at(breakers: Breakers, node: Address | None) -> Breaker:
    found = breakers.at(node)
    assert found is not None
    return found


def test_one_server_has_one(wire: Wire, breakers: Breakers) -> None:
    assert breakers.of(b"a") is breakers.of(b"b") is breakers.single
    assert breakers.single.node is None
    assert breakers.follow() == []
    assert breakers.why() is None
    opened(breakers.single)
    assert breakers.why() == "refused"


def test_each_node_has_its_own(wire: Wire, breakers: Breakers) -> None:
    wire.slots = slots_of(A, B, C)
    assert breakers.of(b"a") is None  # the map is to be followed first
    assert breakers.follow() == []
    for node in (A, B, C):
        breaker = breakers.of(name_at(wire.slots, node))
        assert breaker is breakers.at(node)
        assert breaker is not None
        assert breaker.node == node
        assert (breaker.failures, breaker.pause_s) == (2, PAUSE_S)
    opened(at(breakers, B))
    assert [at(breakers, node).enter(0.0) is None for node in (A, B, C)] == [False, True, False]


def test_slots_that_nobody_serves_have_one_together(wire: Wire, breakers: Breakers) -> None:
    wire.slots = slots_of(A, None, B, None)
    breakers.follow()
    assert breakers.of(name_at(wire.slots, None)) is breakers.single
    assert breakers.of(name_at(wire.slots, A)) is breakers.at(A)


def test_a_slot_that_has_moved_goes_to_the_breaker_of_its_new_node(
    wire: Wire, breakers: Breakers
) -> None:
    wire.slots = slots_of(A, B)
    breakers.follow()
    name = name_at(wire.slots, A)
    opened(at(breakers, A))
    wire.slots.owners[slot_of(name)] = B  # as MOVED tells
    assert breakers.of(name) is breakers.at(B)
    wire.slots.owners[slot_of(name)] = C  # of whom nobody has heard yet
    assert breakers.of(name) is None
    before = at(breakers, A), at(breakers, B)
    assert breakers.follow() == []
    assert breakers.of(name) is breakers.at(C) is not None
    assert (breakers.at(A), breakers.at(B)) == before
    assert before[0].state == "open"


def test_nodes_come_and_go_with_the_map(wire: Wire, breakers: Breakers) -> None:
    wire.slots = slots_of(A, B)
    breakers.follow()
    gone, kept = at(breakers, A), at(breakers, B)
    opened(gone)
    opened(kept)
    wire.slots = slots_of(B, C)
    assert breakers.of(name_at(wire.slots, B)) is None
    assert breakers.follow() == [gone]
    assert gone.state == "closed"
    assert breakers.at(A) is None
    assert breakers.at(B) is kept
    assert kept.state == "open"
    assert breakers.why() == "10.0.0.1:7002: refused"
    # One that was closed is no news; and one that comes back begins anew.
    wire.slots = slots_of(A, B)
    assert breakers.follow() == []
    assert breakers.at(A) is not gone
    for number in range(50):
        wire.slots = slots_of(*(Address("10.0.1.1", 10 * number + each) for each in range(1, 4)))
        breakers.follow()
        assert len(breakers._of) == 4


def test_what_one_had_for_all_is_over_when_there_is_a_map(wire: Wire, breakers: Breakers) -> None:
    opened(breakers.single)
    probe = breakers.single.enter(PAUSE_S)
    assert probe is not None
    wire.slots = slots_of(A)
    assert breakers.follow() == [breakers.single]
    assert breakers.why() is None
    assert not breakers.single.failed(probe, PAUSE_S)
    assert not breakers.single.succeeded(probe)
    opened(breakers.single)  # it may be needed again


def test_an_empty_map_tells_nothing_of_nodes(wire: Wire, breakers: Breakers) -> None:
    """As in a new event loop, or in a child of which the map is not asked for yet."""
    wire.slots = slots_of(A, B)
    breakers.follow()
    opened(at(breakers, A))
    wire.slots = SlotMap()
    assert breakers.follow() == []
    assert breakers.of(b"a") is breakers.single
    wire.slots = slots_of(A, B)
    breakers.follow()
    assert at(breakers, A).state == "open"
    wire.slots = None
    assert breakers.of(b"a") is breakers.single


def test_why_names_each_node_once(wire: Wire, breakers: Breakers) -> None:
    wire.slots = slots_of(A, B, C)
    breakers.follow()
    opened(at(breakers, A), reason="no reply from 10.0.0.1:7001 in time")
    opened(at(breakers, B), reason="OOM command not allowed")
    why = breakers.why()
    assert why is not None
    assert sorted(why.split("; ")) == [
        "10.0.0.1:7002: OOM command not allowed",
        "no reply from 10.0.0.1:7001 in time",
    ]


def test_a_breaker_for_all_of_a_cluster_lets_nobody_pass() -> None:
    for _ in range(3):
        assert BY_NODE.enter(0.0) is None
    assert BY_NODE.state == "closed"


def test_when_it_was_opened_last() -> None:
    breaker = Breaker(1, PAUSE_S)
    opened(breaker, 3.0)
    probe = breaker.enter(20.0)
    assert probe is not None
    breaker.failed(probe, 21.0)
    assert breaker.opened_s == 3.0  # a probe that fails does not open it
    probe = breaker.enter(40.0)
    assert probe is not None
    assert breaker.succeeded(probe)
    assert breaker.opened_s == 3.0
    opened(breaker, 50.0)
    assert breaker.opened_s == 50.0


@pytest.mark.parametrize("half_open", [False, True])
def test_what_is_forgiven_counts_no_more(half_open: bool) -> None:
    breaker = Breaker(2, PAUSE_S)
    early = breaker.enter(0.0)
    assert early is not None
    breaker.failed(early, 0.0)
    assert not breaker.forgive()  # it was not open
    assert not breaker.failed(early, 0.0)
    opened(breaker)
    ticket = breaker.enter(PAUSE_S) if half_open else early
    assert ticket is not None
    assert breaker.forgive()
    assert not breaker.forgive()
    assert breaker.state == "closed"
    assert not breaker.succeeded(ticket)
    assert not breaker.failed(ticket, PAUSE_S)
    assert not breaker.failed(ticket, PAUSE_S)
    assert breaker.enter(PAUSE_S) is not None
    opened(breaker)


def test_threads_find_one_breaker_for_a_node_while_maps_change(
    wire: Wire, breakers: Breakers
) -> None:
    maps = [slots_of(A, B, C), slots_of(A, B, C)]  # the same nodes, told twice
    wire.slots = maps[0]
    name = name_at(maps[0], B)
    gate = threading.Barrier(5)
    found: set[Breaker] = set()
    wrong: list[Any] = []

    def work() -> None:
        gate.wait()
        try:
            for _ in range(300):
                breaker = breakers.of(name)
                if breaker is None:
                    wrong.extend(breakers.follow())
                else:
                    found.add(breaker)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.wait()
    for number in range(100):
        wire.slots = maps[number % 2]
    for thread in threads:
        thread.join()
    assert not wrong
    assert found == {breakers.at(B)}


def test_an_open_node_that_goes_is_told_of_once(wire: Wire, breakers: Breakers) -> None:
    for _ in range(20):
        wire.slots = slots_of(A, B)
        breakers.follow()
        opened(at(breakers, A))
        wire.slots = slots_of(B)
        gate = threading.Barrier(4)
        told: list[Breaker] = []

        def work(gate: threading.Barrier = gate, told: list[Breaker] = told) -> None:
            gate.wait()
            told.extend(breakers.follow())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(told) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_child_does_not_wait_for_a_lock_of_its_parent(wire: Wire, breakers: Breakers) -> None:
    wire.slots = slots_of(A)
    with breakers._lock:
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            breakers.follow()
            os._exit(int(breakers.at(A) is None))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
