"""Scripts at times that are named, when their lists expire, and what a server says of itself."""

from __future__ import annotations

import random
import re

import pytest

from nanolimit import Quota
from nanolimit.redis import script
from nanolimit.redis.rehearsal import Expiry, timed
from nanolimit.redis.script import Script
from nanolimit.redis.server import Server

CLOCKED = [
    each for each in vars(script).values() if isinstance(each, Script) and "TIME'" in each.source
]
MINUTE_US = 60_000_000


def test_these_are_all_scripts_but_one() -> None:
    names = {each.name for each in CLOCKED}
    assert names == {"take", "take_one", "tell", "look", "batch", "take_some", "grant", "reset"}
    with pytest.raises(ValueError, match="'return' does not ask"):
        timed(script.RETURN)


@pytest.mark.parametrize("plain", CLOCKED, ids=lambda each: each.name)
def test_a_script_differs_in_the_time_alone(plain: Script) -> None:
    rehearsed = timed(plain)
    lines = list(zip(plain.source.split("\n"), rehearsed.source.split("\n"), strict=True))
    differing = [(before, after) for before, after in lines if before != after]
    assert differing == [("local time = call('TIME')", "local time = {0, table.remove(ARGV)}")]
    # It is taken out of ARGV before anybody counts what stands there.
    before, _, _ = rehearsed.source.partition("table.remove(ARGV)")
    assert "ARGV" not in before
    assert not re.search(r"\bTIME\b", rehearsed.source)
    assert (rehearsed.sha, rehearsed.name) != (plain.sha, plain.name)


@pytest.mark.parametrize(
    "source",
    [
        "local a = call('TIME') local b = call('TIME')",
        "local a = redis.call('LPUSH', KEYS[1], ARGV[1])",
        "local a = call('TIME') local b = redis.pcall('TIME')",
        "local a = call('TIME') local b = redis.call(\"TIME\")",
        "local a = redis.call('TIME', 'x')",
    ],
)
def test_a_script_with_another_clock_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="'odd' does not ask for the time once"):
        timed(Script.of("odd", source))


# Expiry


def test_lists_live_as_long_as_their_newest_stamp_and_up_to_an_eighth_longer() -> None:
    expiry = Expiry((Quota(5, 60.0),))
    start_us = 1_700_000_000_000_123
    expiry.count(7, start_us)
    assert (len(expiry), expiry.keys()) == (1, {7})
    assert expiry.gone(start_us + MINUTE_US - 1) == []
    assert expiry.gone(start_us + MINUTE_US + MINUTE_US // 8) == [(7, 0)]
    assert (len(expiry), expiry.keys()) == (0, set())
    assert expiry.gone(start_us + 10 * MINUTE_US) == []


@pytest.mark.parametrize("seed", range(5))
def test_expiry_of_many_is_what_a_table_says(seed: int) -> None:
    rng = random.Random(seed)
    windows = [1, 1_000, 999_999, 60_000_000, 3_600_000_000]
    chosen = rng.sample(windows, 2)
    quotas = tuple(Quota.parse(f"5/{window / 1e6:.6f}s") for window in chosen)
    expiry = Expiry(quotas)
    due_us: dict[tuple[int, int], int] = {}
    now_us = 1_700_000_000_000_000 + rng.randrange(10**9)
    for _ in range(3_000):
        now_us += rng.choice((0, 1, 1_000, 400_000, rng.randrange(20_000_000)))
        gone = {each for each, due in due_us.items() if due <= now_us}
        assert set(expiry.gone(now_us)) == gone
        for each in gone:
            del due_us[each]
        key = rng.randrange(20)
        expiry.count(key, now_us)
        for nth, window in enumerate(chosen):
            step_us = max(1, window // 8_000) * 1_000
            due = now_us + window
            due_us[key, nth] = due + -due % step_us
        assert len(expiry) == len(due_us)
        assert expiry.keys() == {key for key, _ in due_us}


# What a server says

REDIS = """# Server\r
redis_version:7.0.15\r
run_id:3f1c\r
# Memory\r
used_memory:1048576\r
maxmemory:2097152\r
maxmemory_policy:allkeys-lru\r
evicted_keys:12\r
# Commandstats\r
cmdstat_evalsha:calls=40,usec=400,usec_per_call=10.00,rejected_calls=0,failed_calls=1\r
# Cluster\r
cluster_enabled:1\r
"""


def test_what_redis_says() -> None:
    assert Server.read(REDIS) == Server(
        "3f1c", "Redis", "7.0.15", True, 2_097_152, "allkeys-lru", 1_048_576, 12, 40, 400
    )


def test_what_valkey_says() -> None:
    told = Server.read(
        "redis_version:7.2.4\nserver_name:valkey\nvalkey_version:9.1.0\ncluster_enabled:0\n"
    )
    assert (told.software, told.version, told.clustered) == ("Valkey", "9.1.0", False)


@pytest.mark.parametrize("text", ["", "\n\n", "no colon", "used_memory:many\ncmdstat_evalsha:x"])
def test_what_is_missing_is_nothing(text: str) -> None:
    assert Server.read(text) == Server("", "Redis", "", False, 0, "", 0, 0, 0, 0)
