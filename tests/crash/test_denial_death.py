"""Who keeps denials for all is killed or stopped in the middle of it: the others go on, at once."""

from __future__ import annotations

import signal
from collections.abc import Callable

from puppet import Puppet
from sharing import needs_shared

pytestmark = needs_shared

Make = Callable[..., Puppet]

#: Seconds. Nobody waits for a stopped process for longer than some milliseconds; what a busy
#: machine adds to that.
SOON_S = 2.0

OPEN = """
from nanolimit import Quota
from nanolimit.redis import denials, script
denials._TABLE_KEYS = 60
table = denials.open_table({path!r}, 'test')
denied = _core.DenialTable(table, 7, 10**9)
quotas = (Quota(5, per=60.0),)
answer = script.decision(quotas, [10**15, 5, 10**15 - 3, 10**15 - 9, 10**15 - 9], 1)
places = [bytes([1 + number]) * 16 for number in range(10)]
late = [bytes([101 + number]) * 16 for number in range(40)]

def put(place, left_ns=10**9, known=None):
    now_ns = denied.now_ns()
    return denied.put(place, 1, now_ns + left_ns - 10**9, 10**9, known)

def all_of_it():
    for place in late:  # until the table is full; they are over at once
        put(place, 200_000)
    for place in places:
        put(place)
        put(place, 10**9, answer)
        denied.forget(place, 10**9)
        put(place, 10**9, answer)

def one_dies(point):
    pid = os.fork()
    if not pid:
        try:
            _core._kill_at(point)
            all_of_it()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def goes_on():
    fresh = denied.now_ns().to_bytes(16, 'little')
    def one(place):
        known = answer if place != fresh else None
        kept, seen = put(place, 10**9, known), denied.left_s(place, 1) > 0
        told = known is None or denied.decision(place, 1, quotas) is not None
        return kept, seen, told, denied.forget(place, 1000), denied.left_s(place, 1)
    return set(map(one, [*places, fresh]))
"""


def test_killed_at_every_point(puppet: Make, table: str) -> None:
    other = puppet()
    other.do(OPEN.format(path=table))
    died = []
    for point in other.do("_core._kill_points()"):
        exit_code = other.do(f"one_dies({point!r})")
        assert exit_code in (0, -signal.SIGKILL)
        if exit_code:
            died.append(point)
        # All can be kept, seen and forgotten at once, whatever the dead had in hand.
        said, seconds = other.timed("goes_on()")
        assert said == {(True, True, True, True, 0.0)}, point
        assert seconds < SOON_S
    assert {"registered", "slot_owned", "segment_locked", "insert_fingerprint"} <= set(died)
    assert len(died) > 8
    other.do("table._verify()")


def test_half_an_answer_is_none(puppet: Make, table: str) -> None:
    """It dies when it has said that it is denied and not yet how things are."""
    other = puppet()
    other.do(OPEN.format(path=table))
    other.do("put(places[0], 8 * 10**8, answer)")
    other.do(
        """
def half(passings):
    pid = os.fork()
    if not pid:
        try:
            _core._kill_at('slot_owned', passings)
            put(places[0], 10**9, answer)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
    )
    for passings in (2, 3, 4):
        assert other.do(f"half({passings})") == -signal.SIGKILL
        assert other.do("denied.left_s(places[0], 1) > 0.8")
        assert other.do("denied.decision(places[0], 1, quotas)") is None
    assert other.do("half(5)") == 0
    assert other.do("denied.decision(places[0], 1, quotas)") is not None


def test_nobody_waits_for_a_stopped_one(puppet: Make, table: str) -> None:
    owner, other = puppet(), puppet()
    for each in (owner, other):
        each.do(OPEN.format(path=table))
    assert owner.do("put(places[0], 10**9, answer), put(places[1])") == (True, True)
    owner.stop_at("slot_owned", "put(places[0], 10**9)")
    # What it had told is read as before; all else goes on.
    assert other.do("denied.left_s(places[0], 1) > 0")
    assert other.do("denied.decision(places[0], 1, quotas) is not None")
    assert other.do("put(places[1], 10**9, answer), put(places[2])") == (True, True)
    # What is in its hand is not kept, and it is waited for once in a second.
    first = [other.timed("denied.put(places[0], 1, denied.now_ns() + 10**8, 10**9)")]
    more = [
        other.timed("denied.put(places[0], 1, denied.now_ns() + 10**8, 10**9)") for _ in range(20)
    ]
    assert {value for value, _ in first + more} == {False}
    assert sorted(seconds for _, seconds in more)[10] < 0.002
    assert first[0][1] < SOON_S
    said, seconds = other.timed("denied.forget(places[0], 10**9)")
    assert said is False
    assert seconds < SOON_S
    owner.go_on()
    assert other.do("denied.forget(places[0], 10**9)")
    assert other.do("denied.left_s(places[0], 1)") == 0.0
    assert other.do("put(places[1])")
