"""Whoever holds a part of a shared table: dead, stopped, forked, exec'd, in another namespace.

Real processes, which a build with kill points stops or kills exactly while they hold a lock.
The dead are inherited from at once, and nothing is lost. Nobody who lives is robbed: others wait
for `stall_timeout`, and then `on_stall` answers.
"""

from __future__ import annotations

import mmap
import os
import select
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from puppet import Puppet
from sharing import needs_root, needs_shared
from tools import impossible, missing

pytestmark = needs_shared

#: A point at which a process holds each kind of lock, and what it is about there.
LOCKS = {
    "slot": ("slot_owned", "limiter.allow('known')"),
    "segment": ("segment_locked", "limiter.allow('new')"),
    "slab": ("slab_take_intent", "limiter.allow('new')"),
    "chunks": ("chunk_take_intent", "limiter.allow('known')"),
}
#: What another process asks that needs the same lock.
ASKS = {"slot": "known", "segment": "newer", "slab": "newer", "chunks": "other"}

LIMIT = 100  # logs of more than 4 stamps take chunks
TIMEOUT_S = 0.2
SOON_S = 1.0

Make = Callable[..., Puppet]


def open_table(each: Puppet, path: str, on_stall: str = "wait", **options: Any) -> Puppet:
    options = {"max_keys": 200, "typical": 50, "stall_timeout": TIMEOUT_S, **options}
    each.do(f"limiter = RateLimiter({LIMIT}, per=86400, shared={path!r}, on_stall={on_stall!r}, "
            f"**{options!r})")  # fmt: skip
    return each


def prepare(each: Puppet) -> None:
    """Two keys with as many stamps as fit into a slot, and a slot that was freed."""
    each.do("[limiter.allow('known') for _ in range(4)]")
    each.do("[limiter.allow('other') for _ in range(4)]")
    each.do("[limiter.allow('freed'), limiter.reset('freed')]")


def used(each: Puppet, key: str) -> int:
    return int(each.do(f"limiter.quota.limit - limiter.peek({key!r}).remaining"))


def use_up(each: Puppet, key: str, left: int) -> None:
    """As many as are left are allowed, and no more."""
    assert each.do(f"[limiter.allow({key!r}) for _ in range({left + 3})]") == (
        [True] * left + [False] * 3
    )


def is_sound(each: Puppet) -> None:
    each.do("limiter.core._verify()")
    assert each.do("limiter.stats().stalled") == 0


# --- stopped -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("on_stall", ["allow", "deny"])
def test_a_stopped_owner_is_waited_for_and_then_on_stall_answers(
    puppet: Make, table: str, lock: str, on_stall: str
) -> None:
    owner, other = open_table(puppet(), table), open_table(puppet(), table, on_stall)
    prepare(owner)
    point, line = LOCKS[lock]
    before = {key: used(other, key) for key in ("known", "other", "new", "newer")}
    owner.stop_at(point, line)

    answer, seconds = other.timed(f"limiter.allow({ASKS[lock]!r})")
    assert answer is (on_stall == "allow")
    assert TIMEOUT_S <= seconds < TIMEOUT_S + SOON_S
    assert other.do("limiter.stats().stalled") == 1

    decision, seconds = other.timed(
        f"(lambda d: (d.allowed, d.limit))(limiter.check({ASKS[lock]!r}))"
    )
    assert decision == (on_stall == "allow", LIMIT)
    assert TIMEOUT_S <= seconds < TIMEOUT_S + SOON_S
    assert other.do("limiter.stats().stalled") == 2

    # It lives: what it was about is done, and counted; what on_stall answered is not.
    assert owner.go_on() is True
    asked = "known" if "known" in line else "new"
    for key, units in before.items():
        assert used(other, key) == units + (key == asked)
    use_up(other, "known", LIMIT - used(owner, "known"))
    other.do("limiter.core._verify()")


@pytest.mark.parametrize("lock", LOCKS)
def test_on_stall_wait_waits_on(puppet: Make, table: str, lock: str) -> None:
    owner, other = open_table(puppet(), table), open_table(puppet(), table, "wait")
    prepare(owner)
    point, line = LOCKS[lock]
    units = used(other, ASKS[lock])
    owner.stop_at(point, line)
    other.tell(f"limiter.allow({ASKS[lock]!r})")
    with pytest.raises(TimeoutError):
        other.answer(5 * TIMEOUT_S)
    assert owner.go_on() is True
    answer, seconds = other.answer(SOON_S)
    assert answer is True
    assert seconds > 4 * TIMEOUT_S
    assert used(owner, ASKS[lock]) == units + 1 + (ASKS[lock] in line)
    is_sound(other)


def test_a_stopped_owner_is_in_nobody_elses_way(puppet: Make, table: str) -> None:
    """Other keys go on; and a key that is used up is denied without any lock."""
    owner, other = open_table(puppet(), table), open_table(puppet(), table)
    prepare(owner)
    use_up(owner, "full", LIMIT)
    for point in ("slot_owned", "segment_locked", "slab_take_intent"):
        key = "known" if point == "slot_owned" else f"new for {point}"
        owner.do("[limiter.allow('freed'), limiter.reset('freed')]")
        owner.stop_at(point, f"limiter.allow({key!r})")
        answers, seconds = other.timed("[limiter.allow('other'), limiter.allow('full')]")
        assert answers == [True, False]
        assert seconds < TIMEOUT_S
        owner.go_on()
    is_sound(other)


def test_one_who_was_stopped_for_long_goes_on_exactly(puppet: Make, table: str) -> None:
    """While it is stopped in the middle, others use up all but what it is about to take."""
    owner, other = open_table(puppet(), table), open_table(puppet(), table, "deny")
    owner.stop_at("insert_placed", "limiter.allow('new', 3)")
    assert other.do("limiter.allow('new')") is False  # stalled
    assert owner.go_on() is True
    use_up(other, "new", LIMIT - 3)
    assert owner.do("limiter.allow('new')") is False
    other.do("limiter.core._verify()")


@pytest.mark.parametrize("verb", ["clear()", "reset('known')"])
def test_verbs_that_on_stall_cannot_answer_say_so(puppet: Make, table: str, verb: str) -> None:
    owner, other = open_table(puppet(), table), open_table(puppet(), table, "allow")
    prepare(owner)
    owner.stop_at("segment_locked", "limiter.allow('new')")
    with pytest.raises(RuntimeError, match=r"SharedTableError: .* stopped .*call again"):
        other.do(f"limiter.{verb}")
    assert owner.go_on() is True
    other.do(f"limiter.{verb}")
    assert used(other, "known") == 0
    other.do("limiter.core._verify()")


def test_the_batch_goes_on_after_a_key_that_stalls(puppet: Make, table: str) -> None:
    owner, other = open_table(puppet(), table), open_table(puppet(), table, "deny")
    prepare(owner)
    owner.stop_at("slot_owned", "limiter.allow('known')")
    answers = other.do("limiter.allow_many(['other', 'known', 'other'])")
    assert answers == [True, False, True]
    assert other.do("limiter.stats().stalled") == 1
    assert owner.go_on() is True
    assert used(other, "known") == 5
    assert used(other, "other") == 6


# --- processes of processes -----------------------------------------------------------------------


@pytest.fixture
def orphans() -> Iterator[list[int]]:
    """Processes that a puppet forked and that outlive it."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


FORK = """
def forked():
    pid = os.fork()
    if not pid:
        os.dup2(os.open('/dev/null', os.O_RDWR), 1)
        time.sleep(300)
        os._exit(0)
    return pid
"""


# --- dead ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS)
def test_a_dead_owner_is_inherited_from(puppet: Make, table: str, lock: str) -> None:
    """Soon, although on_stall waits for ever; and a zombie is dead: nobody has waited for it."""
    owner, other = open_table(puppet(), table), open_table(puppet(), table)
    prepare(owner)
    point, line = LOCKS[lock]
    key = ASKS[lock]
    units = used(other, key)
    owner.die_at(point, line)
    assert owner.state() == "Z"
    answer, seconds = other.timed(f"limiter.allow({key!r})")
    assert answer is True
    assert seconds < SOON_S
    assert used(other, key) == units + 1
    use_up(other, "known", LIMIT - used(other, "known"))
    is_sound(other)


@pytest.mark.parametrize("lock", LOCKS)
def test_the_dead_do_not_stall_who_finds_out_late(puppet: Make, table: str, lock: str) -> None:
    """On a busy machine a waiter's time may be over before it has asked whether the owner lives."""
    owner = open_table(puppet(), table)
    other = open_table(puppet(), table, "deny", stall_timeout=1e-6)
    prepare(owner)
    point, line = LOCKS[lock]
    owner.die_at(point, line)
    assert other.do(f"limiter.allow({ASKS[lock]!r})") is True
    is_sound(other)


def test_one_who_dies_while_it_is_stopped(puppet: Make, table: str) -> None:
    owner, other = open_table(puppet(), table), open_table(puppet(), table)
    prepare(owner)
    owner.stop_at("slot_owned", "limiter.allow('known')")
    other.tell("limiter.allow('known')")
    with pytest.raises(TimeoutError):
        other.answer(2 * TIMEOUT_S)
    owner.kill()
    assert other.answer(SOON_S)[0] is True
    assert used(other, "known") == 5
    is_sound(other)


def test_the_heir_may_die_too(puppet: Make, table: str) -> None:
    """In the middle of the repair, one after the other."""
    first = open_table(puppet(), table)
    prepare(first)
    first.die_at("insert_tag", "limiter.allow('new')")
    for point in ("repair_began", "repair_entry", "repair_done"):
        heir = open_table(puppet(), table)
        heir.die_at(point, "limiter.allow('newer')")
    last = open_table(puppet(), table)
    answer, seconds = last.timed("limiter.allow('newer')")
    assert answer is True
    assert seconds < SOON_S
    use_up(last, "new", LIMIT)
    is_sound(last)


def test_a_place_that_was_given_away_does_not_pass_for_its_last_owner(
    puppet: Make, table: str
) -> None:
    """The successor has the dead one's place; its locks are the dead one's all the same."""
    owner, other = open_table(puppet(), table), open_table(puppet(), table)
    prepare(owner)
    place = {pid: at for at, pid, _ in processes(other, table)}
    owner.die_at("slot_owned", "limiter.allow('known')")
    successor = open_table(puppet(), table)
    assert {pid: at for at, pid, _ in processes(other, table)}[successor.pid] == place[owner.pid]
    for each in (other, successor):
        answer, seconds = each.timed("limiter.allow('known')")
        assert answer is True
        assert seconds < SOON_S
    assert used(other, "known") == 6
    is_sound(other)


DIE = """
def one_dies(key):
    pid = os.fork()
    if not pid:
        _core._kill_at('slot_owned')
        limiter.allow(key)
        os._exit(1)
    return os.waitpid(pid, 0)[1]
"""


def test_a_dead_owner_is_not_taken_for_one_of_32_deaths_later(
    puppet: Make, table: str, orphans: list[int]
) -> None:
    """Owner words hold 5 bits of a place's serial number, which come round."""
    other, parent = open_table(puppet(), table), open_table(puppet(), table)
    parent.do(DIE + FORK.replace("time.sleep", "limiter.allow('a child'), time.sleep"))
    stale = [f"stale {number}" for number in range(10)]
    parent.do(f"[limiter.allow(key) for key in {[*stale, 'a child']!r}]")
    for key in stale:
        assert parent.do(f"one_dies({key!r})") == signal.SIGKILL
    for _ in range(26):
        assert parent.do("one_dies('a child')") == signal.SIGKILL
    # If its place was that of the ten, its owner words would be those of one of them.
    orphans.append(parent.do("forked()"))
    while len(living(other, table)) < 3:
        pass
    answers, seconds = other.timed(f"[limiter.allow(key) for key in {stale!r}]")
    assert answers == [True] * 10
    assert seconds < SOON_S
    is_sound(other)


def test_when_all_places_are_worn_what_the_dead_left_is_cleared(puppet: Make, table: str) -> None:
    """As after 65,000 deaths: who comes next walks the table first."""
    other, owner = open_table(puppet(), table), open_table(puppet(), table)
    prepare(owner)
    place = {pid: at for at, pid, _ in processes(other, table)}[owner.pid]
    owner.die_at("slot_owned", "limiter.allow('known')")
    # A member is 128 bytes: serial << 3 | has one died << 2 | state (1: alive, 2: dead).
    with Path(table).open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        for at in range(1, 2_047):
            member = os.sysconf("SC_PAGE_SIZE") + 128 * at
            if memory[member] & 3 != 1 or at == place:
                memory[member : member + 8] = struct.pack("=Q", 31 << 3 | 1 << 2 | 2)
    for serial in (32, 33):  # the second one's low bits are those of the dead
        successor = open_table(puppet(), table)
        assert {pid: at for at, pid, _ in processes(other, table)}[successor.pid] == place, serial
        if serial == 32:
            successor.kill()
    answer, seconds = other.timed("limiter.allow('known')")
    assert answer is True
    assert seconds < SOON_S
    assert used(other, "known") == 5
    is_sound(other)


def processes(each: Puppet, path: str) -> list[tuple[int, int, bool]]:
    """The table's list of members: place, pid, whether alive."""
    each.do(f"fd = os.open({path!r}, os.O_RDONLY)")
    found: list[tuple[int, int, bool]] = each.do("_core.inspect_table(fd)['processes']")
    each.do("os.close(fd)")
    return found


def living(each: Puppet, path: str) -> list[int]:
    return [place for place, _, alive in processes(each, path) if alive]


# --- fork, exec, daemons -------------------------------------------------------------------------


@pytest.mark.parametrize("shared", ["by path", "without a name"])
def test_a_dead_parents_locks_are_taken_over_although_its_children_live(
    puppet: Make, table: str, orphans: list[int], shared: str
) -> None:
    """They have inherited its descriptors and its mappings, but not its life."""
    owner = open_table(puppet(), table)
    if shared == "without a name":
        owner.do(f"limiter = RateLimiter({LIMIT}, per=86400, shared=True, on_stall='wait')")
    prepare(owner)
    # A child that asks before its parent dies, and one that does so after.
    owner.do(FORK)
    orphans.append(owner.do("forked()"))
    owner.do("theirs, ours = os.pipe(), os.pipe()")
    owner.do("""
def heir():
    pid = os.fork()
    if not pid:
        os.read(theirs[0], 1)
        began = time.monotonic()
        told = limiter.allow('known')
        took = time.monotonic() - began
        left = limiter.peek('known').remaining
        os.write(ours[1], struct.pack('=?dq', told, took, left))
        os._exit(0)
    return pid
""")
    orphans.append(owner.do("heir()"))
    reader = os.open(f"/proc/{owner.pid}/fd/{owner.do('ours[0]')}", os.O_RDONLY)
    writer = os.open(f"/proc/{owner.pid}/fd/{owner.do('theirs[1]')}", os.O_WRONLY)
    try:
        owner.die_at("slot_owned", "limiter.allow('known')")
        os.write(writer, b"x")
        assert select.select([reader], [], [], SOON_S)[0], "the child waits for its dead parent"
        told, took, left = struct.unpack("=?dq", os.read(reader, 100))
    finally:
        os.close(reader)
        os.close(writer)
    assert told is True
    assert took < SOON_S
    assert left == LIMIT - 5
    if shared == "by path":
        other = open_table(puppet(), table)
        assert used(other, "known") == 5
        is_sound(other)


def test_a_child_of_multiprocessing_outlives_its_parent(
    puppet: Make, table: str, orphans: list[int]
) -> None:
    owner, other = open_table(puppet(), table), open_table(puppet(), table)
    prepare(owner)
    owner.do("import multiprocessing")
    owner.do("child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(300,))")
    owner.do("child.start()")
    orphans.append(owner.do("child.pid"))
    owner.die_at("segment_locked", "limiter.allow('new')")
    os.kill(orphans[0], 0)
    answer, seconds = other.timed("limiter.allow('newer')")
    assert answer is True
    assert seconds < SOON_S
    is_sound(other)


def test_a_child_is_a_process_of_its_own(puppet: Make, table: str, orphans: list[int]) -> None:
    """One that holds a lock and is stopped is not robbed when its parent dies."""
    parent, other = open_table(puppet(), table), open_table(puppet(), table, "deny")
    prepare(parent)
    parent.do("""
def stopped_child():
    pid = os.fork()
    if not pid:
        os.dup2(os.open('/dev/null', os.O_RDWR), 1)
        _core._stop_at('slot_owned')
        limiter.allow('known')
        time.sleep(300)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    return pid
""")
    orphans.append(parent.do("stopped_child()"))
    parent.kill()
    answer, seconds = other.timed("limiter.allow('known')")
    assert answer is False
    assert seconds >= TIMEOUT_S
    os.kill(orphans[0], signal.SIGCONT)
    use_up(other, "known", LIMIT - 5)


EXEC = """
@ctypes.CFUNCTYPE(None, ctypes.c_int)
def becomes_another_program(number):
    os.execv('/bin/sh', ['sh', '-c', 'echo >&2; exec sleep 300'])
ctypes.CDLL(None).signal(signal.SIGUSR1, becomes_another_program)
_core._signal_at('slot_owned', 1, signal.SIGUSR1)
"""


def test_one_who_execs_is_dead(puppet: Make, table: str) -> None:
    """The process goes on as another program, which knows nothing of the lock that it holds."""
    owner, other = open_table(puppet(), table), open_table(puppet(), table)
    prepare(owner)
    # Should anything have made the descriptors survive: it must not keep the lock.
    owner.do("[os.set_inheritable(int(fd), True) for fd in os.listdir('/proc/self/fd') "
             "if os.path.exists(f'/proc/self/fd/{fd}')]")  # fmt: skip
    owner.do(EXEC)
    owner.tell("limiter.allow('known')")
    owner.await_program("sleep")
    answer, seconds = other.timed("limiter.allow('known')")
    assert answer is True
    assert seconds < SOON_S
    assert used(other, "known") == 5
    is_sound(other)


def test_a_daemoniser_that_closes_all_descriptors_stays_alive(puppet: Make, table: str) -> None:
    owner, other = open_table(puppet(), table), open_table(puppet(), table, "deny")
    prepare(owner)
    owner.do("os.closerange(out.fileno() + 1, 4096)")
    assert not [fd for fd in owner.do("os.listdir('/proc/self/fd')") if is_table(owner, fd, table)]
    assert owner.do("limiter.allow('known')") is True
    owner.stop_at("slot_owned", "limiter.allow('known')")
    answer, seconds = other.timed("limiter.allow('known')")
    assert answer is False  # stalled, not robbed
    assert seconds >= TIMEOUT_S
    assert owner.go_on() is True
    assert used(other, "known") == 6
    owner.die_at("slot_owned", "limiter.allow('known')")
    answer, seconds = other.timed("limiter.allow('known')")
    assert answer is True
    assert seconds < TIMEOUT_S
    other.do("limiter.core._verify()")


def test_a_daemoniser_finds_out_who_is_dead(puppet: Make, table: str) -> None:
    """It has no descriptor left to ask with, and opens one; nor has its child to join with."""
    owner, daemon = open_table(puppet(), table), open_table(puppet(), table)
    prepare(owner)
    daemon.do("os.closerange(out.fileno() + 1, 4096)")
    owner.die_at("slot_owned", "limiter.allow('known')")
    answer, seconds = daemon.timed("limiter.allow('known')")
    assert answer is True
    assert seconds < SOON_S
    assert daemon.do("""[os.waitpid(pid, 0)[1] for pid in [os.fork()] if pid
                        or os._exit(not limiter.allow('known'))]""") == [0]
    assert used(daemon, "known") == 6
    is_sound(daemon)


def is_table(each: Puppet, fd: str, path: str) -> bool:
    try:
        return str(Path(f"/proc/{each.pid}/fd/{fd}").readlink()) == path
    except OSError:
        return False


# --- another PID namespace -----------------------------------------------------------------------


@pytest.fixture
def contained(puppet: Make) -> Callable[[], Puppet]:
    """contained(): a puppet that is process 2 or so of a PID namespace of its own."""
    unshare = shutil.which("unshare")
    if unshare is None:
        missing("unshare")
    prefix = [unshare, "--pid", "--fork", "--mount-proc", "--kill-child"]
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        impossible(f"no PID namespaces here: {tried.stderr.strip()}")
    # Process 1 would take no signals from itself.
    return lambda: puppet(*prefix, "sh", "-c", '"$@"; exit $?', "sh")


@needs_root
@pytest.mark.parametrize("owner_is", ["inside", "outside"])
def test_the_dead_of_another_pid_namespace(
    puppet: Make, contained: Callable[[], Puppet], table: str, owner_is: str
) -> None:
    """A pid says nothing there: the owner's is another process's here, or nobody's."""
    inside, outside = contained(), puppet()
    assert inside.own_pid != inside.pid
    owner, other = (inside, outside) if owner_is == "inside" else (outside, inside)
    open_table(owner, table)
    open_table(other, table)
    prepare(owner)
    owner.die_at("slot_owned", "limiter.allow('known')")
    answer, seconds = other.timed("limiter.allow('known')")
    assert answer is True
    assert seconds < SOON_S
    assert used(other, "known") == 5
    is_sound(other)


@needs_root
@pytest.mark.parametrize("owner_is", ["inside", "outside"])
def test_the_living_of_another_pid_namespace(
    puppet: Make, contained: Callable[[], Puppet], table: str, owner_is: str
) -> None:
    inside, outside = contained(), puppet()
    owner, other = (inside, outside) if owner_is == "inside" else (outside, inside)
    open_table(owner, table)
    open_table(other, table, "deny")
    prepare(owner)
    owner.stop_at("slot_owned", "limiter.allow('known')")
    answer, seconds = other.timed("limiter.allow('known')")
    assert answer is False
    assert seconds >= TIMEOUT_S
    assert owner.go_on() is True
    use_up(other, "known", LIMIT - 5)
