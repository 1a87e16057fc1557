"""What is handed to the scripts and read from them, without a server."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from functools import partial
from types import SimpleNamespace

import pytest

from nanolimit import Quota
from nanolimit.redis import lua, resp, script
from nanolimit.redis.cluster import Address, SlotMap, redirect
from nanolimit.redis.denials import Denials
from nanolimit.redis.fault import Unavailable
from nanolimit.redis.line import Line
from nanolimit.redis.script import Arguments, understood, waits_us

CLOCK = 1_700_000_000_000_000


def test_the_binding_quota_of_equals_is_the_first() -> None:
    quotas = Quota(5, per=60), Quota(5, per=60), Quota(4, per=60)
    live = [4, CLOCK - 5, CLOCK - 7, 0]
    assert script.decision(quotas, [CLOCK, *live, *live, *live], 1).quota is quotas[2]
    assert script.decision(quotas[:2], [CLOCK, *live, *live], 1).quota is quotas[0]
    full = [5, CLOCK - 5, CLOCK - 9, CLOCK - 8]
    made = script.decision(quotas, [CLOCK, *live, *full, *full], 1)
    assert not made.allowed
    assert made.quota is quotas[1]
    assert made.retry_after == pytest.approx(59.999992, abs=1e-12)
    assert made.reset_after == pytest.approx(59.999995, abs=1e-12)
    assert made.refill_after == pytest.approx(59.999991, abs=1e-12)
    assert made.remaining == 0
    assert not made.degraded
    assert script.decision(quotas, [CLOCK, *live, *full, *full], 1, degraded=True).degraded


def test_no_lease_of_a_small_limit() -> None:
    with pytest.raises(ValueError, match="from 20 on, and one is 19"):
        Arguments((Quota(100, 60), Quota(19, 60))).lent(1, 1)
    with pytest.raises(ValueError, match="needs units and time"):
        Arguments((Quota(20, 60),)).lent(0, 1)
    with pytest.raises(ValueError, match="needs units and time"):
        Arguments((Quota(20, 60),)).lent(1, 0)
    with pytest.raises(ValueError, match="nothing to return"):
        Arguments((Quota(20, 60),)).returned(0, 1)


def test_arguments_are_made_once() -> None:
    arguments = Arguments((Quota(5, 60), Quota(7, 0.5)))
    assert arguments.of(2) == [b"2", b"60000000", b"5", b"3", b"500000", b"7", b"5"]
    assert arguments.of(2) is arguments.of(2)
    for number in range(1, 10):
        assert arguments.some(number)[0] == b"%d" % number
    for cost in (-1, 6):
        with pytest.raises(ValueError, match=f"from 0 to the smallest limit, 5, got {cost}$"):
            arguments.of(cost)
    with pytest.raises(ValueError, match="number of requests must be >= 1, got 0"):
        arguments.some(0)


def test_not_more_arguments_are_kept_than_programs_have_costs() -> None:
    arguments = Arguments((Quota(10_000, 60),))
    for cost in range(10_000):
        assert arguments.of(cost)[0] == b"%d" % cost
    assert len(arguments._kept) == 256


def test_windows_are_whole_microseconds_rounded_up() -> None:
    quota = Quota(1, per=60.0000001)
    assert Arguments((quota,)).of(1) == [b"1", b"60000001", b"1", b"0"]
    made = script.decision((quota,), [CLOCK, 1, CLOCK, CLOCK, CLOCK], 1)
    assert made.quota is quota
    assert made.retry_after == pytest.approx(60.000001, abs=1e-12)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_child_has_dicts_of_its_own() -> None:
    """Without the GIL they have locks, one of which a thread of the parent may hold for ever."""
    arguments, denials = Arguments((Quota(5, 60),)), Denials()
    argv = arguments.of(1)
    resp.pack(script.TAKE_ONE, [b"k"], argv)
    denials.put(b"k", 1, 0.0, 1.0, denials.epoch)

    def dicts() -> list[object]:
        return [resp._heads, arguments._kept, denials._kept]

    before = dicts()
    pid = os.fork()
    if pid == 0:
        same = [one is other for one, other in zip(before, dicts(), strict=True)]
        works = arguments.of(1) == argv and denials.get(b"k", 1, 0.5) is None
        os._exit(any(same) or not works)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert all(one is other for one, other in zip(before, dicts(), strict=True))


def test_a_cost_beyond_the_limit_asks_for_no_negative_index() -> None:
    """Which would count from the other end: TAKE_SOME may ask for more than the limit."""
    assert Arguments((Quota(5, 60), Quota(50, 60))).some(20)[1:] == [
        b"60000000", b"5", b"0", b"60000000", b"50", b"30",
    ]  # fmt: skip


def test_nothing_costs_nothing() -> None:
    made = script.decision((Quota(5, 60),), [CLOCK, 7, CLOCK, CLOCK - 9, 0], 0)
    assert made.allowed
    assert made.remaining == 0


def test_replies_are_read() -> None:
    assert script.wait_us(7) == 7
    assert script.waits_us(b"0 17 0") == script.waits_us("0 17 0") == [0, 17, 0]
    assert script.waits_us(b"") == []
    for reply in (b"0 -1 17 !WRONGTYPE Operation", "0 -1 17 !WRONGTYPE Operation"):
        fitted, fault, wait = script.waits_us(reply)
        assert (fitted, wait) == (0, 17)
        assert isinstance(fault, Unavailable)
        assert (fault.reason, fault.outcome_unknown) == ("WRONGTYPE Operation", False)
    assert script.some([3, 17]) == (3, 17)
    assert script.grant([3, 17, CLOCK]) == script.Grant(units=3, wait_us=17, stamp=CLOCK)


def test_scripts_differ_and_are_known_by_what_they_say() -> None:
    scripts = [getattr(script, name) for name in lua.__all__]
    assert len({each.sha for each in scripts}) == len({each.name for each in scripts}) == 9
    for each in scripts:
        assert each.source.isascii()
        assert each.sha == hashlib.sha1(each.source.encode()).hexdigest()
        assert "{" + "_" not in each.source, "a piece was not put in"


def test_a_batch_of_another_number_of_keys_is_not_understood() -> None:
    assert understood(partial(waits_us, number=2), b"0 5") == [0, 5]
    for reply in (b"0", b"0 5 0", b"", b"0 5 x"):
        with pytest.raises(Unavailable, match="not understood") as caught:
            understood(partial(waits_us, number=2), reply)
        assert caught.value.outcome_unknown


@pytest.mark.parametrize("where", ["16384 a:1", "-1 a:1", "5 a", "5", "x a:1", "5 a:1 b"])
def test_a_redirection_to_nowhere(where: str) -> None:
    asked = Address("a", 1)
    assert redirect("MOVED 16383 :7", asked) == (16_383, Address("a", 7))
    with pytest.raises(ValueError):  # noqa: PT011
        redirect(f"MOVED {where}", asked)


@pytest.mark.parametrize(
    "row",
    [
        [0, 1],
        [0, 1, []],
        [0, 1, [b"a"]],
        [0, 1, [b"a", b"1"]],
        [0, 1, b"a"],
        [0, 99_999, [b"a", 1]],
    ],
)
def test_a_map_that_is_none(row: list[object]) -> None:
    asked = Address("a", 1)
    assert SlotMap.read([[5, 6, [None, 7]]], asked).owners[4:7] == [None, *[Address("a", 7)] * 2]
    with pytest.raises(ValueError, match=r"^(no|slots beyond)"):
        SlotMap.read([row], asked)  # type: ignore[list-item]


@pytest.mark.parametrize("said", [b":x\r\n", b":\r\n", b"?5\r\n"])
def test_a_number_that_is_none_ends_the_line(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    line = Line(SimpleNamespace(_sock=ours), "there", 0)
    with theirs:
        theirs.sendall(said)
        with pytest.raises(Unavailable, match="there: ") as caught:
            line.read(time.monotonic() + 30)
    line.close()
    assert caught.value.outcome_unknown
