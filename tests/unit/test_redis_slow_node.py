"""The wires, where one node of a Cluster takes all of the time: what is left to the others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("redis")

from lua import COUNT
from nanolimit.redis import wire as wire_module
from nanolimit.redis.aiowire import AsyncWire
from nanolimit.redis.cluster import SLOTS, Address, SlotMap, slot_of
from nanolimit.redis.fault import Unavailable
from nanolimit.redis.line import Cut
from nanolimit.redis.resp import ErrorReply
from nanolimit.redis.wire import Wire

A, B, C = NODES = [Address("10.0.0.1", port) for port in (7001, 7002, 7003)]
SHARE = SLOTS // 3 + 1


def slots_of() -> SlotMap:
    slots = SlotMap()
    slots.owners = [NODES[slot // SHARE] for slot in range(SLOTS)]
    return slots


def name_at(node: Address) -> bytes:
    return next(
        name
        for name in (b"%d" % number for number in range(1_000))
        if NODES[slot_of(name) // SHARE] == node
    )


CALLS = [(COUNT, [name_at(node)], [1]) for node in NODES]
TOLD: list[Any] = [
    [SHARE * number, min(SHARE * (number + 1), SLOTS) - 1, [node.host.encode(), node.port, b"id"]]
    for number, node in enumerate(NODES)
]


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s

    monotonic = __call__

    def sleep(self, pause_s: float) -> None:
        self.now_s += pause_s


class Node:
    """Stands in for the pool of a node, and for its line."""

    def __init__(self, clock: Clock, address: Address, asked: list[Address]) -> None:
        self.clock = clock
        self.address = address
        self.name = str(address)
        self.failed_s = 0.0
        self.asked = asked
        self.hangs_in = ""
        self.reply: Any = 1

    @property
    def line(self) -> Any:
        return None

    def take(self, deadline: float) -> Any:
        self.asked.append(self.address)
        return self.wait("take", deadline, Unavailable(f"no connection to {self.name}"))

    def send(self, data: bytes, deadline: float) -> None:
        self.slots_wanted = b"SLOTS" in data
        self.wait("send", deadline, Cut(f"{self.name} took nothing"))

    def read(self, deadline: float) -> Any:
        self.wait("read", deadline, Unavailable(f"no reply from {self.name}", True))
        if self.clock.now_s >= deadline and self.hangs_in == "late":
            raise Unavailable(f"no reply from {self.name}", True)
        return TOLD if self.slots_wanted else self.reply

    def wait(self, what: str, deadline: float, fault: Unavailable) -> Any:
        if self.hangs_in == what:
            self.clock.now_s = max(self.clock.now_s, deadline)
            raise fault
        return self

    def give(self, line: Any) -> None:
        pass

    drop = give

    def close(self) -> None:
        pass

    flush = close


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(wire_module, "time", clock)
    return clock


@pytest.fixture
def asked() -> list[Address]:
    return []


@pytest.fixture
def wire(clock: Clock, asked: list[Address]) -> Any:
    wire: Any = Wire("redis://10.0.0.1:7001", 1.0)
    wire._pools = {node: Node(clock, node, asked) for node in NODES}
    wire._slots = slots_of()
    return wire


@pytest.mark.parametrize("step", ["take", "read"])
def test_who_hangs_is_asked_last_from_then_on(
    wire: Any, clock: Clock, asked: list[Address], step: str
) -> None:
    wire.run_many(CALLS)
    assert asked == NODES  # in one order, for all threads
    wire._pools[A].hangs_in = step
    wire.run_many(CALLS)
    asked.clear()
    wire._stale_slots = False
    found = wire.run_many(CALLS)
    assert asked == [B, C, A]
    assert [type(each) for each in found] == [Unavailable, int, int]
    assert (found[0].node, found[0].outcome_unknown) == (A, step == "read")


def test_those_for_whom_no_time_is_left_are_not_sent_and_not_to_blame(
    wire: Any, clock: Clock, asked: list[Address]
) -> None:
    wire._pools[A].hangs_in = "take"
    for node in (B, C):
        wire._pools[node].hangs_in = "late"
    found = wire.run_many(CALLS)
    assert asked == [A]
    assert [each.node for each in found] == [A, A, A]
    assert found[0].origin is found[1].origin is found[2].origin is not None
    assert not any(each.outcome_unknown for each in found)
    assert [wire._pools[node].failed_s > 0 for node in NODES] == [True, False, False]


def test_what_was_sent_in_part_may_have_counted_there_and_nowhere_else(
    wire: Any, clock: Clock
) -> None:
    wire._pools[A].hangs_in = "send"
    found = wire.run_many([*CALLS, CALLS[0]])
    assert [each.outcome_unknown for each in found] == [True, False, False, True]


def test_one_that_fails_at_once_leaves_the_others_their_time(wire: Any, clock: Clock) -> None:
    def refuse(deadline: float) -> Any:
        raise Unavailable("connection refused")

    wire._pools[A].take = refuse
    assert [isinstance(each, int) for each in wire.run_many(CALLS)] == [False, True, True]


@pytest.mark.parametrize("step", ["take", "send", "read"])
def test_the_map_is_asked_of_those_that_answer(
    wire: Any, clock: Clock, asked: list[Address], step: str
) -> None:
    wire._pools[A].hangs_in = step
    with pytest.raises(Unavailable) as caught:
        wire.run(*CALLS[0])
    assert caught.value.node == A
    asked.clear()
    start_s = clock.now_s
    assert wire.run(*CALLS[1]) == 1
    assert asked == [B, B]  # the map of it, and the call
    assert clock.now_s == start_s
    # If all have failed, it is he whose failure is the longest ago; and a map that is not told is
    # a failure as well.
    wire._stale_slots, wire._next_refresh = True, 0.0
    for node, failed_s in ((A, 3.0), (B, 2.0), (C, 1.0)):
        wire._pools[node].failed_s = failed_s
    wire._pools[C].hangs_in = "take"
    asked.clear()
    assert wire.run(*CALLS[1]) == 1
    assert asked == [C, B, B]
    assert wire._pools[C].failed_s == clock.now_s


@pytest.mark.parametrize("text", ["OOM x", "READONLY x", "MASTERDOWN x", "CLUSTERDOWN x"])
@pytest.mark.parametrize("many", [False, True])
def test_of_an_error_it_is_known_who_said_it(
    wire: Any, clock: Clock, text: str, many: bool
) -> None:
    wire._pools[B].reply = ErrorReply(text)
    if many:
        fault = wire.run_many(CALLS)[1]
    else:
        with pytest.raises(Unavailable) as caught:
            wire.run(*CALLS[1])
        fault = caught.value
    assert (fault.node, fault.again().node) == (B, B)


def test_one_server_is_no_node(wire: Any, clock: Clock) -> None:
    wire._slots, wire._pool = None, wire._pools[A]
    wire._pools[A].reply = ErrorReply("OOM x")
    with pytest.raises(Unavailable) as caught:
        wire.run(*CALLS[0])
    assert caught.value.node is None
    wire._pools[A].hangs_in = "read"
    with pytest.raises(Unavailable) as caught:
        wire.run(*CALLS[0])
    assert caught.value.node is None
    assert wire.slots is None


# --- the same in asyncio


class AsyncNode(Node):
    """Stands in for the pool of a node, and for its line."""

    async def take(self, deadline: float) -> Any:
        return super().take(deadline)

    def call(self, data: bytes, deadline: float, *_: object) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        try:
            self.send(data, deadline)
            future.set_result(self.read(deadline))
        except Unavailable as fault:
            future.set_exception(fault)
        return future


def in_a_loop(asked: list[Address], test: Any) -> None:
    async def run() -> None:
        wire: Any = AsyncWire("redis://10.0.0.1:7001", 1.0)
        wire._enter()
        clock = wire._clock = Clock()
        wire._pools = {node: AsyncNode(clock, node, asked) for node in NODES}
        wire._slots = slots_of()
        await test(wire)
        wire._pools.clear()

    asyncio.run(run())


@pytest.mark.parametrize("step", ["take", "send", "read"])
def test_in_asyncio_the_map_is_asked_of_those_that_answer(asked: list[Address], step: str) -> None:
    async def test(wire: Any) -> None:
        wire._pools[A].hangs_in = step
        with pytest.raises(Unavailable) as caught:
            await wire.run(*CALLS[0])
        assert caught.value.node == A
        asked.clear()
        start_s = wire._clock.now_s
        assert await wire.run(*CALLS[1]) == 1
        assert asked == [B, B]
        assert wire._clock.now_s == start_s
        wire._stale_slots, wire._next_refresh = True, 0.0
        for node, failed_s in ((A, 3.0), (B, 2.0), (C, 1.0)):
            wire._pools[node].failed_s = failed_s
        wire._pools[C].hangs_in = "take"
        asked.clear()
        assert await wire.run(*CALLS[1]) == 1
        assert asked == [C, B, B]
        assert wire._pools[C].failed_s == wire._clock.now_s

    in_a_loop(asked, test)


@pytest.mark.parametrize("step", ["take", "read"])
def test_in_asyncio_of_many_it_is_known_who_failed(asked: list[Address], step: str) -> None:
    async def test(wire: Any) -> None:
        wire._pools[B].hangs_in = step
        wire._pools[C].reply = ErrorReply("OOM x")
        found = await wire.run_many(CALLS)
        assert found[0] == 1
        assert [each.node for each in found[1:]] == [B, C]
        assert wire._pools[B].failed_s > 0

    in_a_loop(asked, test)


def test_in_asyncio_one_server_is_no_node(asked: list[Address]) -> None:
    async def test(wire: Any) -> None:
        wire._slots, wire._pool = None, wire._pools[A]
        wire._pools[A].reply = ErrorReply("OOM x")
        with pytest.raises(Unavailable) as caught:
            await wire.run(*CALLS[0])
        assert caught.value.node is None
        wire._pools[A].hangs_in = "read"
        with pytest.raises(Unavailable) as caught:
            await wire.run(*CALLS[0])
        assert caught.value.node is None

    in_a_loop(asked, test)
