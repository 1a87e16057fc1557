"""The scripts in a real server: exact, with few calls, and small in memory.

The server's own TIME decides, which no test can set. So instants are made by stamps that are
written into the lists by hand, ahead of time: the newest is then what a script takes for now.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import redis_journal
from nanolimit import Decision, Quota
from nanolimit.redis import RedisRateLimiter, StoreUnavailableError, lua, script
from nanolimit.redis.fault import Unavailable
from nanolimit.redis.name import Names
from nanolimit.redis.script import Arguments, Script
from redis_server import RedisServer, free_port, on_both
from waiters import until

redis = pytest.importorskip("redis")

pytestmark = on_both

TESTS = Path(__file__).parent.parent
PROCESSES = 4
OPERATIONS = 5_000
#: Far ahead, so that no clock gets there while a test runs: a day.
AHEAD_US = 86_400_000_000
MINUTE_US = 60_000_000


@pytest.fixture(scope="module")
def server(binary: str) -> Iterator[RedisServer]:
    with RedisServer(binary=binary) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[Any]:
    with redis.Redis(unix_socket_path=server.unix_path) as made:
        made.flushall()
        yield made


class Asked:
    """One limiter's verbs, spoken by a bare client."""

    def __init__(self, client: Any, *quotas: Quota, name: str | None = "t") -> None:
        self.client = client
        self.quotas = quotas
        self.names = Names("nl", name, quotas)
        self.arguments = Arguments(quotas)

    def run(self, which: Script, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
        return self.client.eval(which.source, len(keys), *keys, *args)

    def lists(self, key: Any = "k") -> list[bytes]:
        return self.names.of(key)

    def take(self, cost: int = 1, key: Any = "k", which: Script | None = None) -> int:
        which = which or self.arguments.take
        return script.wait_us(self.run(which, self.names.of(key), self.arguments.of(cost)))

    def tell(self, cost: int = 1, key: Any = "k") -> Decision:
        reply = self.run(script.TELL, self.names.of(key), self.arguments.of(cost))
        return script.decision(self.quotas, reply, cost)

    def look(self, cost: int = 1, key: Any = "k") -> Decision:
        reply = self.run(script.LOOK, self.names.of(key), self.arguments.of(cost))
        return script.decision(self.quotas, reply, cost)

    def view(self, cost: int = 1, key: Any = "k") -> list[int]:
        """LOOK's reply as it is: the clock; how many count, newest, oldest, deciding."""
        reply: list[int] = self.run(script.LOOK, self.names.of(key), self.arguments.of(cost))
        return reply

    def some(self, number: int, key: Any = "k") -> script.Some:
        return script.some(
            self.run(script.TAKE_SOME, self.names.of(key), self.arguments.some(number))
        )

    def batch(self, keys: Sequence[Any], cost: int = 1) -> list[Any]:
        names = [name for key in keys for name in self.names.of(key)]
        return script.waits_us(self.run(script.BATCH, names, self.arguments.of(cost)))

    def grant(self, units: int, ttl_us: int, key: Any = "k") -> script.Grant:
        args = self.arguments.lent(units, ttl_us)
        return script.grant(self.run(script.GRANT, self.names.of(key), args))

    def give_back(self, units: int, stamp: int, key: Any = "k") -> int:
        args = self.arguments.returned(units, stamp)
        found: int = self.run(script.RETURN, self.names.of(key), args)
        return found

    def reset(self, key: Any = "k") -> int:
        live: int = self.run(script.RESET, self.names.of(key), self.arguments.of(0))
        return live

    def write(self, *stamps: int, key: Any = "k", nth: int = 0) -> None:
        """Put stamps into a list by hand, the newest first, which is not before now."""
        self.client.delete(self.names.of(key)[nth])
        self.client.rpush(self.names.of(key)[nth], *stamps)
        self.client.expire(self.names.of(key)[nth], 2 * AHEAD_US // 1_000_000)

    def read(self, key: Any = "k", nth: int = 0) -> list[int]:
        return [int(stamp) for stamp in self.client.lrange(self.names.of(key)[nth], 0, -1)]


def server_us(client: Any) -> int:
    """The server's TIME."""
    seconds, microseconds = client.time()
    return int(seconds) * 1_000_000 + int(microseconds)


# Exactness


def crowd(server: RedisServer, seed: int) -> list[bytes]:
    """The journal of some processes that ask at random."""
    code = [sys.executable, redis_journal.__file__, server.unix_path]
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    processes = [
        subprocess.Popen([*code, str(seed + nth), str(OPERATIONS)], env=environment)
        for nth in range(PROCESSES)
    ]
    assert [process.wait(300) for process in processes] == [0] * PROCESSES
    with redis.Redis(unix_socket_path=server.unix_path) as client:
        journal: list[bytes] = client.lrange(redis_journal.JOURNAL, 0, -1)
        client.flushall()
    return journal


@pytest.fixture(scope="module")
def journal(server: RedisServer) -> list[bytes]:
    return crowd(server, 1)


@pytest.fixture(scope="module")
def replayed(journal: list[bytes]) -> tuple[redis_journal.Model, list[str]]:
    return redis_journal.replay(journal)


def test_four_processes_and_every_answer_is_right(
    journal: list[bytes], replayed: tuple[redis_journal.Model, list[str]]
) -> None:
    assert len(journal) == PROCESSES * OPERATIONS
    model, mismatches = replayed
    assert mismatches == []
    # It was no quiet day: each answer was often given.
    for verb in ("take_one", "take", "take_some", "grant"):
        assert model.seen[f"{verb} allowed"] > 100
        assert model.seen[f"{verb} denied"] > 100
    for verb in ("tell", "look", "batch", "return"):
        assert model.seen[verb] > 100
    assert model.seen["reset"] > 10


def test_never_one_too_many_whenever_leases_are_used(
    replayed: tuple[redis_journal.Model, list[str]],
) -> None:
    model, _ = replayed
    assert sum(lease.units for lease in model.leases.values()) > 1_000
    rng = random.Random(1)
    for when in (lambda start, _: start, lambda _, ends: ends, rng.randint):
        assert model.over_admitted(when) == []


def test_a_wrong_answer_in_the_journal_is_found(journal: list[bytes]) -> None:
    found = 0
    for at in range(0, 1_000, 50):
        name, time, keys, args, said = json.loads(journal[at])
        if name == "return":
            continue
        if name == "batch":
            said = [" ".join(str(int(wait) + 1) for wait in said[0].split())]
        else:
            said[0] = str(int(said[0]) + 1)
        changed = [*journal[:at], json.dumps([name, time, keys, args, said]).encode()]
        _, mismatches = redis_journal.replay(changed)
        assert len(mismatches) == 1
        found += 1
    assert found > 10


def test_units_used_after_their_lease_has_ended_would_be_too_many(
    replayed: tuple[redis_journal.Model, list[str]],
) -> None:
    """As if they were stamped when they are lent: the measure of over-admission sees it."""
    model, _ = replayed
    assert model.over_admitted(lambda _, ends: ends + 5_000)


# Instants


@pytest.mark.parametrize("which", [script.TAKE, script.TAKE_ONE, script.BATCH])
def test_a_stamp_exactly_one_window_old_is_out(client: Any, which: Script) -> None:
    asked = Asked(client, Quota(2, per=60))
    future = server_us(client) + AHEAD_US
    asked.write(future, future - MINUTE_US + 1)
    wait = asked.take(which=which)
    assert asked.read() == [future, future - MINUTE_US + 1]
    # Told from the clock, which has to get to that stamp's end.
    assert future + 1 - server_us(client) <= wait <= AHEAD_US + 1
    asked.write(future, future - MINUTE_US)
    assert asked.take(which=which) == 0
    assert asked.read()[:2] == [future, future]


@pytest.mark.parametrize("cost", [1, 2])
def test_the_clock_goes_back_and_now_does_not(client: Any, cost: int) -> None:
    asked = Asked(client, Quota(4, per=60))
    future = server_us(client) + AHEAD_US
    asked.write(future, future - 10)
    decision = asked.tell(cost)
    assert decision.allowed
    assert decision.remaining == 2 - cost
    assert asked.read() == [future] * (cost + 1) + [future - 10]
    clock, used, newest, oldest, deciding = asked.view(4)
    assert (used, newest, oldest) == (2 + cost, future, future - 10)
    assert deciding == future
    assert asked.look(4).retry_after == pytest.approx((future + MINUTE_US - clock) / 1e6, abs=2)


@pytest.mark.parametrize("script_", [script.TAKE, script.TELL, script.TAKE_SOME, script.BATCH])
def test_each_list_has_its_own_newest_stamp(client: Any, script_: Script) -> None:
    asked = Asked(client, Quota(4, per=60), Quota(5, per=120))
    future = server_us(client) + AHEAD_US
    asked.write(future)
    asked.run(script_, asked.lists(), asked.arguments.of(1))
    assert asked.read() == [future, future]
    assert asked.read(nth=1)[0] <= server_us(client)


def test_a_wait_is_over_when_it_says(client: Any) -> None:
    asked = Asked(client, Quota(2, per=0.02))
    assert [asked.take(), asked.take()] == [0, 0]
    first = min(asked.read())
    while wait := asked.take():
        assert wait >= 1
        assert server_us(client) - first >= 20_000 - wait
    assert server_us(client) - first >= 20_000


def test_windows_are_whole_microseconds_rounded_up(client: Any) -> None:
    asked = Asked(client, Quota(1, per=60.0000001))
    future = server_us(client) + AHEAD_US
    asked.write(future - MINUTE_US - 1, future - MINUTE_US - 2)
    asked.write(future, key="other")
    decision = asked.look(key="other")
    assert decision.quota == Quota(1, per=60.0000001)
    assert asked.lists()[0].endswith(b":60000001")
    assert asked.arguments.of(1)[1] == b"60000001"


# Verbs


def test_a_cost_is_all_or_nothing(client: Any) -> None:
    asked = Asked(client, Quota(5, per=60))
    assert asked.take(3) == 0
    assert asked.take(3) > 0
    assert len(asked.read()) == 3
    assert asked.take(2) == 0
    assert asked.take(1) > 0
    assert len(set(asked.read())) == 2


def test_several_quotas_count_all_or_none(client: Any) -> None:
    asked = Asked(client, Quota(3, per=10), Quota(5, per=60), Quota(9, per=600))
    assert [asked.take(), asked.take(2)] == [0, 0]
    wait = asked.take(3)
    # The first and the second quota deny; the second makes one wait longest.
    assert 50_000_000 < wait <= MINUTE_US
    assert [len(asked.read(nth=nth)) for nth in range(3)] == [3, 3, 3]
    decision = asked.tell(3)
    assert not decision
    assert decision.quota == decision.violated == Quota(5, per=60)
    assert decision.remaining == 2
    assert asked.look(1).quota == Quota(3, per=10)
    assert asked.look(0).allowed
    assert asked.look(0).quota == Quota(3, per=10)
    assert asked.reset() == 1
    assert asked.tell().quota == Quota(3, per=10)


def test_a_decision_tells_how_things_are(client: Any) -> None:
    asked = Asked(client, Quota(5, per=60))
    unused = asked.look()
    assert unused.allowed
    assert (unused.remaining, unused.reset_after, unused.refill_after) == (5, 0.0, 0.0)
    first = asked.tell(2)
    assert (first.limit, first.remaining, first.retry_after) == (5, 3, 0.0)
    assert first.reset_after == first.refill_after == 60.0
    second = asked.tell(3)
    assert second.remaining == 0
    assert second.refill_after < second.reset_after == 60.0
    third = asked.tell(3)
    assert not third
    assert third.refill_after < third.retry_after == third.reset_after < 60.0


@pytest.mark.parametrize("used", [0, 1, 2, 3, 7, 31, 99, 100])
@pytest.mark.parametrize("dead", [0, 1, 50, 100])
@pytest.mark.parametrize("cost", [0, 1, 60, 100])
def test_how_many_count_is_found(client: Any, used: int, dead: int, cost: int) -> None:
    asked = Asked(client, Quota(100, per=60))
    future = server_us(client) + AHEAD_US
    stamps = [future - 3 * nth for nth in range(used)]
    stamps += [future - MINUTE_US - nth for nth in range(dead)]
    if not stamps:
        return
    asked.write(*stamps)
    if not used:  # the newest stamp is now: it always counts
        stamps[0], used = future, 1
        asked.write(*stamps)
    _, found, newest, oldest, deciding = asked.view(cost)
    assert (found, newest, oldest) == (used, stamps[0], stamps[used - 1])
    short = used + cost - 100
    assert deciding == (stamps[used - short] if short > 0 and cost else 0)


def test_a_batch_is_as_if_one_by_one(client: Any) -> None:
    asked = Asked(client, Quota(2, per=60), Quota(3, per=600))
    waits = asked.batch(["a", "b", "a", "{a}", "a", "b", "b"])
    assert [wait == 0 for wait in waits] == [True, True, True, True, False, True, False]
    assert asked.batch(["c"] * 4, cost=2)[0] == 0
    assert len(asked.read("c", nth=1)) == 2
    assert asked.batch([]) == []
    single = Asked(client, Quota(5, per=60), name="single")
    assert [wait == 0 for wait in single.batch("aabab", cost=2)] == [True, True, True, False, True]
    assert [len(single.read(key)) for key in "ab"] == [4, 4]


SECOND_US = 1_000_000


@pytest.mark.parametrize(
    "ages_us",
    [
        [],
        [0],
        [SECOND_US] * 39,
        [SECOND_US] * 40,  # full
        [SECOND_US] * 39 + [55 * SECOND_US],
        [SECOND_US] * 39 + [70 * SECOND_US],  # the last is out
        [SECOND_US] * 20 + [70 * SECOND_US] * 22,  # too long with one more: cut to the limit
        [20 * SECOND_US] * 20,  # the expiry is written anew
        [20 * SECOND_US] * 5 + [70 * SECOND_US] * 35,  # and what is out is dropped
        [90 * SECOND_US] * 40,
        [-2 * SECOND_US, SECOND_US],  # the clock went back
        [-2 * SECOND_US] * 40,
        [-2j * SECOND_US] * 3 + [SECOND_US] * 2,  # a lease ahead
        [-2j * SECOND_US] * 40,
        [2j * SECOND_US] * 3,  # one that has ended
        [2j * SECOND_US] * 40,
        [70j * SECOND_US] * 40,
        [SECOND_US] * 30 + [2j * SECOND_US] * 10,  # one that has the last word
        [SECOND_US] * 30 + [70j * SECOND_US] * 10,
    ],
)
def test_a_key_of_a_batch_is_told_what_take_says(client: Any, ages_us: list[complex]) -> None:
    """Each list as it may be found; of a lease are those with an imaginary age."""
    asked = Asked(client, Quota(40, per=60))
    eighth_us, now = MINUTE_US // 8, server_us(client)
    stamps = [int(age.imag) - now if age.imag else now - int(age.real) for age in ages_us]
    for key in "bt" if stamps else "":
        asked.write(*stamps, key=key)
        # As it was set when the newest came; or longer, so that it lives until it is asked for.
        until_us = max(abs(stamps[0]) + MINUTE_US, now + 5 * SECOND_US)
        client.pexpireat(asked.lists(key)[0], -(-until_us // eighth_us) * eighth_us // 1_000)
    [told], single = asked.batch(["b"]), asked.take(key="t")
    assert (told == 0) == (single == 0)
    assert told == pytest.approx(single, abs=SECOND_US)
    assert len(asked.read("b")) == len(asked.read("t"))
    assert asked.read("b") == pytest.approx(asked.read("t"), rel=0, abs=SECOND_US)
    if told:
        assert asked.read("b") == stamps
    else:
        newest = max(map(abs, asked.read("b")))
        until_us = client.pexpiretime(asked.lists("b")[0]) * 1_000
        assert newest + MINUTE_US <= until_us <= newest + MINUTE_US + eighth_us + SECOND_US


def test_what_is_wrong_with_one_key_of_a_batch_leaves_the_others_alone(client: Any) -> None:
    asked = Asked(client, Quota(1, per=60), Quota(2, per=600))
    for key in ("first", "second", "last"):
        client.set(asked.lists(key)[1], "no list")
    keys = ["first", "second", "a", "b", "a", "last"]
    *faults, fitted, also, wait, fault = asked.batch(keys)
    assert (fitted, also) == (0, 0)
    assert 59_000_000 < wait <= MINUTE_US
    for each in (*faults, fault):
        assert isinstance(each, Unavailable)
        assert "WRONGTYPE" in each.reason
    # Of those, no other list was counted in either.
    assert sorted(client.keys("*")) == sorted(
        [*asked.lists("a"), *asked.lists("b"), *[asked.lists(key)[1] for key in keys[::5]],
         asked.lists("second")[1]]
    )  # fmt: skip
    assert [asked.read(key, 1).__len__() for key in "ab"] == [1, 1]


def test_no_key_of_a_batch_counts_in_vain(client: Any) -> None:
    asked = Asked(client, Quota(1, per=60))
    client.rpush(asked.lists("bad")[0], "no number")
    fitted, fault, wait = asked.batch(["a", "bad", "a"])
    assert fitted == 0
    assert isinstance(fault, Unavailable)
    assert wait > 0
    # Nothing is counted behind an error that ends it, either.
    with pytest.raises(redis.exceptions.ResponseError):
        asked.batch(["bad", "b"])
    assert asked.read("b") == []


def test_a_batch_without_memory_counts_nothing_and_says_so(client: Any) -> None:
    asked = Asked(client, Quota(1, per=60))
    assert asked.take(key="full") == 0
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(Exception, match="maxmemory"):
            asked.batch(["full", "a", "b"])
        [wait] = asked.batch(["full"])
        assert wait > 0
    finally:
        client.config_set("maxmemory", 0)
    assert client.keys("*") == asked.lists("full")


@pytest.mark.parametrize("code", ["OOM", "NOREPLICAS", "READONLY"])
def test_what_a_server_says_of_itself_is_understood_in_a_batch_too(
    server: RedisServer, client: Any, code: str
) -> None:
    with RedisRateLimiter("1/minute", server.url, timeout=20, on_error="raise") as limiter:
        assert limiter.allow("full")
        if code == "OOM":
            server.config_set("maxmemory", 1)
        elif code == "NOREPLICAS":
            server.config_set("min-replicas-to-write", 1)
        else:
            server.ask("REPLICAOF", "127.0.0.1", free_port())
        try:
            for keys in (["a"], ["full", "a", "b"]):
                with pytest.raises(StoreUnavailableError, match=rf": {code} ") as caught:
                    limiter.allow_many(keys)
                assert not caught.value.outcome_unknown
        finally:
            server.ask("REPLICAOF", "NO", "ONE")
            server.config_set("maxmemory", 0)
            server.config_set("min-replicas-to-write", 0)
        assert limiter.allow_many(["a", "b"]) == [True, True]


def test_a_batch_of_the_longest_window(client: Any) -> None:
    asked = Asked(client, Quota(1, per=315_576_000))
    assert asked.batch(["a", "a"]) == [0, lua.MOST_BATCH_WAIT_US]
    assert 0 < 315_576_000_000_000 - asked.take(key="a") < 60_000_000


def test_merged_requests_get_as_many_as_fit(client: Any) -> None:
    asked = Asked(client, Quota(5, per=60), Quota(7, per=600))
    assert asked.some(3) == (3, 0)
    granted, wait = asked.some(3)
    assert granted == 2
    assert MINUTE_US - 10_000_000 < wait <= MINUTE_US
    assert asked.some(1)[0] == 0
    assert len(asked.read()) == len(asked.read(nth=1)) == 5
    asked.reset()
    # More than the limit: the first of those that were just allowed has to leave.
    assert asked.some(50) == (5, MINUTE_US)
    assert asked.some(50, key="other") == (5, MINUTE_US)


@pytest.mark.parametrize("number", [1, 2, 5, 9, 10, 11, 30])
@pytest.mark.parametrize("used", [0, 1, 5, 9, 10])
def test_merged_requests_are_those_one_by_one(client: Any, used: int, number: int) -> None:
    asked = Asked(client, Quota(10, per=60))
    future = server_us(client) + AHEAD_US
    stamps = [future - 7 * nth for nth in range(used)] + [future - MINUTE_US] * 3
    stamps[0] = future
    for key in ("merged", "single"):
        asked.write(*stamps, key=key)
    granted, wait = asked.some(number, "merged")
    singles = [asked.take(key="single") for _ in range(number)]
    assert granted == singles.count(0)
    assert asked.read("merged")[:10] == asked.read("single")[:10]
    if granted == number:
        assert wait == 0
    else:
        assert singles[granted] <= wait <= singles[granted] + 5_000_000


def test_reset_says_whether_there_was_something(client: Any) -> None:
    asked = Asked(client, Quota(5, per=0.01), Quota(5, per=0.02))
    assert asked.reset() == 0
    asked.take()
    assert asked.reset() == 1
    assert client.dbsize() == 0
    asked.write(server_us(client) - 20_000, nth=1)
    asked.write(server_us(client) - 10_000, nth=0)
    assert asked.reset() == 0  # idle, as good as none
    assert client.dbsize() == 0


def test_what_counts_nothing_writes_nothing(client: Any) -> None:
    asked = Asked(client, Quota(1, per=60), Quota(5, per=600))
    asked.look(0)
    asked.look(1)
    asked.tell(0)
    asked.take(0)
    asked.batch(["a", "b"], cost=0)
    assert client.dbsize() == 0
    asked.take()
    before = client.info("persistence")["rdb_changes_since_last_save"]
    assert asked.take() > 0
    assert not asked.tell()
    assert asked.some(3)[0] == 0
    assert asked.batch(["k"])[0] > 0
    assert asked.take(0) == 0
    asked.look(1)
    assert client.info("persistence")["rdb_changes_since_last_save"] == before


def test_a_cost_of_nothing_passes_where_all_is_used(client: Any) -> None:
    higher, lower = Asked(client, Quota(5, per=60)), Asked(client, Quota(3, per=60))
    for _ in range(5):
        higher.take()
    assert lower.take(0) == 0
    assert lower.look(0).allowed
    assert lower.tell(0).allowed
    assert lower.look(0).remaining == 0
    assert len(lower.read()) == 5


@pytest.mark.parametrize("limits", [(10, 4), (4, 10)])
def test_a_limit_changes_and_what_was_used_stays(client: Any, limits: tuple[int, int]) -> None:
    before, after = (Asked(client, Quota(limit, per=60)) for limit in limits)
    assert before.lists() == after.lists()
    assert [before.take() == 0 for _ in range(12)].count(True) == limits[0]
    assert [after.take() == 0 for _ in range(12)].count(True) == max(0, limits[1] - limits[0])
    assert after.look(0).remaining == 0
    # Cut to the lower limit by one, the list is enough for the other.
    assert len(before.read()) == max(limits)


# What it costs


def calls(client: Any) -> dict[str, int]:
    """How often each command was called since the counts were set back, this one left out."""
    stats = client.info("commandstats")
    names = {name.removeprefix("cmdstat_").upper(): row["calls"] for name, row in stats.items()}
    for name in ("EVAL", "INFO", "CONFIG|RESETSTAT", "HELLO", "CLIENT|SETINFO"):
        names.pop(name, None)
    return names


def count_calls(client: Any, ask: Any) -> dict[str, int]:
    client.config_resetstat()
    ask()
    return calls(client)


@pytest.mark.parametrize("limit", [1, 5, 1_000])
@pytest.mark.parametrize("which", [script.TAKE, script.TAKE_ONE, script.BATCH])
def test_a_denial_is_two_looks_into_the_list(client: Any, limit: int, which: Script) -> None:
    asked = Asked(client, Quota(limit, per=60))
    for _ in range(2):
        asked.some(limit)
    assert count_calls(client, lambda: asked.take(which=which)) == {"TIME": 1, "LINDEX": 2}
    assert count_calls(client, lambda: asked.some(1)) == {"TIME": 1, "LINDEX": 2}
    few = {"TIME": 1, "LINDEX": 2, "LLEN": 1}
    assert count_calls(client, asked.tell) == few
    assert count_calls(client, asked.look) == few


@pytest.mark.parametrize("which", [script.TAKE, script.TAKE_ONE, script.BATCH])
def test_an_allowed_request_is_a_push_and_now_and_then_more(client: Any, which: Script) -> None:
    asked = Asked(client, Quota(100, per=6_000))

    def take() -> None:
        assert asked.take(which=which) == 0

    first = {"TIME": 1, "LINDEX": 1, "LPUSH": 1, "PEXPIREAT": 1}
    assert count_calls(client, take) == first
    # In the same eighth of a window: the expiry stays, except where the next one begins just now.
    following = [count_calls(client, take) for _ in range(10)]
    assert following.count({"TIME": 1, "LINDEX": 2, "LPUSH": 1}) >= 9
    # In the next eighth the expiry is written; a short list is not searched for what may go.
    later = {"TIME": 1, "LINDEX": 2, "LPUSH": 1, "PEXPIREAT": 1}
    asked.write(*[server_us(client) - 3_000_000_000] * 15)
    assert count_calls(client, take) == later
    asked.write(*[server_us(client) - 3_000_000_000] * 16)
    assert count_calls(client, take) == {**later, "LINDEX": 3}
    # Full of what does not count any more: cut once in so often.
    future = server_us(client) + AHEAD_US
    asked.write(*[future] + [future - 6_000_000_000] * 99)
    cuts = [count_calls(client, take).get("LTRIM", 0) for _ in range(24)]
    assert sum(cuts) == 3
    assert 100 <= client.llen(asked.lists()[0]) <= 106


def test_keys_expire_by_themselves(client: Any) -> None:
    asked = Asked(client, Quota(5, per=0.04), Quota(30, per=0.08))
    for nth in range(50):
        asked.take(key=nth)
        asked.tell(key=nth)
    asked.some(3, key="some")
    asked.batch(["batch", "batch2"])
    Asked(client, Quota(30, per=0.04), name="lent").grant(10, 5_000)
    assert client.dbsize() > 0
    until(lambda: bool(client.dbsize() == 0))


@pytest.mark.parametrize("per", [0.25, 60, 86_400, 315_576_000])
def test_a_list_lives_as_long_as_it_is_needed(client: Any, per: float) -> None:
    """And not an eighth of a window longer. A lease's end is an instant of one's choice."""
    asked = Asked(client, Quota(1_000, per=per))
    window_us = asked.quotas[0].window_ns // 1_000
    rng = random.Random(1)
    ttl_us, written = 3_600_000_000, 0
    for _ in range(100):
        ttl_us += rng.choice((0, 1, 999, 1_000, 1_001, window_us // 9, window_us // 8, window_us))
        client.config_resetstat()
        lease = asked.grant(1, ttl_us)
        written += calls(client).get("PEXPIREAT", 0)
        until_ms = client.pexpiretime(asked.lists()[0])
        assert (lease.stamp + window_us) / 1_000 <= until_ms
        assert until_ms <= (lease.stamp + window_us * 9 / 8) / 1_000 + 1
    assert 40 <= written <= 80
    # What comes behind a lease changes nothing.
    assert asked.take() == 0
    assert client.pexpiretime(asked.lists()[0]) == until_ms


@pytest.mark.parametrize("which", [script.TAKE_ONE, script.BATCH])
def test_a_list_of_a_key_seldom_used_stays_short(client: Any, which: Script) -> None:
    """What does not count goes long before the limit is reached."""
    asked = Asked(client, Quota(1_000, per=60))
    lengths = []
    for _ in range(200):
        # A sixth of a window passes: all that is there is made older.
        older = [stamp - MINUTE_US // 6 for stamp in asked.read()]
        if older:
            asked.write(*older)
        assert asked.take(which=which) == 0
        lengths.append(len(asked.read()))
        assert asked.view(0)[1] == min(len(lengths), 6)
    assert max(lengths) <= 17
    # A log that was long once is not long for long.
    asked.write(*[server_us(client) - MINUTE_US] * 900)
    lengths = []
    while not lengths or lengths[-1] > 16:
        asked.write(*[stamp - MINUTE_US // 6 for stamp in asked.read()])
        assert asked.take(which=which) == 0
        lengths.append(len(asked.read()))
    assert len(lengths) <= 7
    assert lengths[0] <= 900 - 512 + 1


def test_memory_per_key(client: Any) -> None:
    """The figures of docs/distributed.md; a name of 31 bytes is part of them."""
    bounds = {5: 216, 100: 1_176, 1_000: 11_000}
    used = {}
    for limit in bounds:
        asked = Asked(client, Quota(limit, per=60), name="api")
        for _ in range(limit):
            assert asked.take(key="user:1234") == 0
        used[limit] = client.memory_usage(asked.lists("user:1234")[0], samples=0)
        client.flushall()
    assert all(used[limit] <= bound for limit, bound in bounds.items()), used
    # And it stays so while requests go on coming for windows and windows.
    asked = Asked(client, Quota(1_000, per=0.002), name="api")
    longest = 0
    for _ in range(100):
        asked.some(1_000)
        longest = max(longest, client.llen(asked.lists()[0]))
    assert longest <= 1_062


def test_a_cost_above_what_lua_can_unpack(client: Any) -> None:
    asked = Asked(client, Quota(30_000, per=60))
    assert asked.take(8_001) == 0
    assert asked.take(20_000) == 0
    assert asked.take(2_000) > 0
    assert asked.look(0).remaining == 30_000 - 28_001
    assert asked.take(1_999) == 0
    assert asked.look(0).remaining == 0
    for cost in (1, 2, 3_999, 4_000, 4_001, 7_999, 8_000, 8_001, 12_000):
        assert asked.take(cost, key=cost) == 0
        assert len(asked.read(cost)) == cost


def test_the_largest_limit(client: Any) -> None:
    asked = Asked(client, Quota(1 << 24, per=3_600))
    assert asked.take(100_000) == 0
    assert asked.tell(1).remaining == (1 << 24) - 100_001
    assert asked.some(1_000) == (1_000, 0)
    assert not client.exists("other")
    assert asked.look(1 << 24).retry_after > 3_000


# Leases


def test_a_lease_counts_from_its_end(client: Any) -> None:
    asked = Asked(client, Quota(40, per=60), Quota(100, per=600))
    before = server_us(client)
    lease = asked.grant(30, 2_000_000)
    assert lease.units == 30
    assert lease.wait_us == 0
    assert before + 2_000_000 <= lease.stamp <= server_us(client) + 2_000_000
    assert asked.read() == asked.read(nth=1) == [-lease.stamp] * 30
    second = asked.grant(30, 1_000_000)
    assert second.units == 10
    assert 0 < second.wait_us <= MINUTE_US + 1_000_000
    assert asked.take() > MINUTE_US - 5_000_000
    assert asked.grant(30, 1_000_000)[0] == 0
    assert asked.look().reset_after > 60
    assert client.pexpiretime(asked.lists()[0]) >= (lease.stamp + MINUTE_US) // 1_000


def test_what_comes_while_a_lease_is_ahead_is_put_behind_it(client: Any) -> None:
    asked = Asked(client, Quota(40, per=60))
    assert [asked.take(2), asked.take()] == [0, 0]
    lease = asked.grant(5, 60_000_000)
    for cost in (1, 3):
        assert asked.take(cost) == 0
    shorter = asked.grant(5, 30_000_000)
    assert asked.tell().allowed
    assert asked.some(2) == (2, 0)
    stamps = asked.read()
    assert stamps[:10] == [-lease.stamp] * 5 + [-shorter.stamp] * 5
    assert all(0 < stamp <= server_us(client) for stamp in stamps[10:])
    assert stamps[10:] == sorted(stamps[10:], reverse=True)
    assert len(stamps) == 20
    asked.reset()
    asked.grant(5, 60_000_000)
    asked.take(2)  # behind all there is
    assert [stamp < 0 for stamp in asked.read()] == [True] * 5 + [False] * 2


@pytest.mark.parametrize("cost", [1, 8, 9, 4_001])
@pytest.mark.parametrize("lent", [1, 2, 100, 2_001])
@pytest.mark.parametrize("before", [0, 50])
def test_any_number_behind_any_number(client: Any, lent: int, cost: int, before: int) -> None:
    asked = Asked(client, Quota(20_000, per=60))
    if before:
        asked.take(before)
    leases = [asked.grant(lent, ttl_us) for ttl_us in (20_000_000, 30_000_000)]
    assert asked.take(cost) == 0
    stamps = asked.read()
    ends = [lease.stamp for lease in leases]
    assert stamps[: 2 * lent] == [-ends[1]] * lent + [-ends[0]] * lent
    assert len(stamps) == 2 * lent + cost + before
    counted = stamps[2 * lent :]
    assert counted[:cost] == [max(counted)] * cost
    assert client.pttl(asked.lists()[0]) > 80_000


def test_what_is_given_back_is_free_again(client: Any) -> None:
    asked = Asked(client, Quota(40, per=60), Quota(50, per=600))
    lease = asked.grant(40, 2_000_000)
    assert asked.take() > 0
    assert asked.give_back(3, lease.stamp) == 3
    assert asked.take(3) == 0
    assert asked.take() > 0
    assert asked.give_back(100, lease.stamp) == 37
    assert asked.give_back(1, lease.stamp) == 0
    assert [len(asked.read(nth=nth)) for nth in range(2)] == [3, 3]
    asked.reset()
    lease = asked.grant(40, 2_000_000)
    assert asked.give_back(40, lease.stamp) == 40
    assert client.dbsize() == 0
    assert asked.take(40) == 0


def test_a_lease_ends_after_now_where_the_clock_went_back(client: Any) -> None:
    asked = Asked(client, Quota(40, per=60), Quota(50, per=600))
    future = server_us(client) + AHEAD_US
    asked.write(future, nth=1)
    lease = asked.grant(4, 1_000)
    assert lease.stamp == future + 1_000
    assert asked.read() == [-lease.stamp] * 4
    assert asked.read(nth=1) == [-lease.stamp] * 4 + [future]


def test_a_lease_does_not_move_now(client: Any) -> None:
    """Stamps must not leave earlier because a lease ends later."""
    asked = Asked(client, Quota(20, per=0.05))
    assert asked.take(19) == 0
    assert asked.grant(1, 50_000).units == 1
    first = min(abs(stamp) for stamp in asked.read())
    while asked.take():
        pass
    assert server_us(client) >= first + 50_000


# The server


@pytest.mark.parametrize("each", redis_journal.SCRIPTS, ids=lambda each: each.name)
def test_a_script_is_known_by_its_sha(client: Any, each: Script) -> None:
    assert client.script_load(each.source) in (each.sha, each.sha.encode())
    client.script_flush()
    asked = Asked(client, Quota(30, per=60))
    args = asked.arguments.of(1)
    if each is script.GRANT:
        args = asked.arguments.lent(1, 1)
    if each is script.RETURN:
        args = asked.arguments.returned(1, 1)
    with pytest.raises(redis.exceptions.NoScriptError):
        client.evalsha(each.sha, 1, *asked.lists(), *args)
    assert client.dbsize() == 0
    first = client.eval(each.source, 1, *asked.lists(), *args)
    assert type(client.evalsha(each.sha, 1, *asked.lists(), *args)) is type(first)


def test_replies_are_read_whether_they_are_decoded_or_not(server: RedisServer) -> None:
    for decode in (False, True):
        with redis.Redis(unix_socket_path=server.unix_path, decode_responses=decode) as client:
            client.flushall()
            asked = Asked(client, Quota(30, per=60))
            assert asked.take() == 0
            assert asked.tell().remaining == 28
            assert asked.some(2) == (2, 0)
            assert asked.batch(["k", "l"]) == [0, 0]
            assert asked.grant(2, 1_000).units == 2
            assert asked.reset() == 1


@pytest.mark.parametrize(
    "key", ["{", "}", "{}", "{a}b", "a{b}", b"{\r\n\0}", ("{", b"}"), "", "é", -7, "x" * 1_000]
)
def test_keys_with_all_kinds_of_bytes(client: Any, key: Any) -> None:
    from redis.crc import key_slot

    asked = Asked(client, Quota(1, per=60), Quota(2, per=600), name="{x}")
    assert len({key_slot(name) for name in asked.lists(key)}) == 1
    assert asked.take(key=key) == 0
    assert asked.take(key=key) > 0
    assert sorted(client.keys()) == sorted(asked.lists(key))


def test_without_memory_a_denial_is_an_answer_and_nothing_is_counted(client: Any) -> None:
    asked = Asked(client, Quota(1, per=60), Quota(5, per=600))
    single = Asked(client, Quota(1, per=60), name="single")
    assert [asked.take(), single.take()] == [0, 0]
    client.config_set("maxmemory", 1)
    try:
        assert asked.take() > 0
        assert single.take() > 0
        assert not asked.tell()
        assert asked.look(key="new").allowed
        for ask in (asked.take, asked.tell, single.take):
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                ask(1, key="new")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            asked.some(3, key="new")
        assert asked.batch(["k"])[0] > 0
        assert client.dbsize() == 3
    finally:
        client.config_set("maxmemory", 0)


def test_a_key_of_another_kind_is_an_error_and_nothing_is_counted(client: Any) -> None:
    asked = Asked(client, Quota(5, per=60), Quota(5, per=600))
    client.set(asked.lists()[1], "not ours")
    for ask in (asked.take, asked.tell, asked.look, asked.some):
        with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
            ask(1)
    assert client.dbsize() == 1
