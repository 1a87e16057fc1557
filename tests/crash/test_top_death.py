"""The most denied of a shared table, when one who counts there dies or is stopped in the middle.

Counting them is no part of a decision: nobody waits for anybody, nothing that was counted before is
lost, and who comes after the dead finds chains and heap whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puppet import Puppet
from sharing import needs_shared

pytestmark = needs_shared

Make = Callable[..., Puppet]
POINTS = ("top_locked", "top_ousted", "top_written", "top_linked")
ROOM = 101  # more than any table has, so that it is the one asked for


def joined(each: Puppet, path: str) -> Puppet:
    each.do(f"limiter = RateLimiter(1, per=86400, shared={path!r}, max_keys=500, "
            f"on_stall='wait', track_top={ROOM})")  # fmt: skip
    each.do("deny = lambda *keys: [limiter.allow(key) for key in keys for _ in range(2)]")
    return each


def top(each: Puppet) -> dict[str, tuple[int, int]]:
    found: Any = each.do("[(t.key, t.denied, t.error) for t in limiter.top(1000)]")
    return {key: (denied, error) for key, denied, error in found}


def verified(each: Puppet) -> None:
    each.do("limiter._engine._verify()")


@pytest.fixture
def pair(puppet: Make, tmp_path: Path) -> tuple[Puppet, Puppet]:
    """Two at one table, where `known` was denied once by the second, after the first."""
    path = str(tmp_path / "table")
    one, other = joined(puppet(), path), joined(puppet(), path)
    other.do("deny('known')")
    return one, other


@pytest.mark.parametrize("point", POINTS)
def test_death_with_room_for_more(pair: tuple[Puppet, Puppet], point: str) -> None:
    one, other = pair
    one.die_at(point, "deny('new')")
    other.do("deny('known', 'newer')")
    found = top(other)
    assert found["known"][0] == 3
    assert found["newer"] == (1, 0)
    assert found.get("new", (1, 0)) == (1, 0)
    other.do("limiter.allow('new')")
    assert top(other)["new"][0] in (1, 2)
    verified(other)


@pytest.mark.parametrize("point", POINTS)
def test_death_while_another_is_ousted(pair: tuple[Puppet, Puppet], point: str) -> None:
    one, other = pair
    other.do(f"deny(*[f'key {{i}}' for i in range({ROOM - 1})], 'known', 'known')")
    before = top(other)
    assert len(before) == ROOM
    one.die_at(point, "deny('new')")
    after = top(other)
    assert len(set(before) - set(after)) <= 1, "only the entry that was being given away"
    assert {key: before[key] for key in after if key in before} == {
        key: after[key] for key in after if key in before
    }
    other.do("deny('newer')")
    found = top(other)
    denied, error = found["newer"]
    assert denied - error <= 1 <= denied
    assert found["known"][0] == before["known"][0]
    verified(other)
    assert len(top(other)) == ROOM


@pytest.mark.parametrize("point", POINTS)
def test_who_comes_after_the_dead_finds_it_whole(pair: tuple[Puppet, Puppet], point: str) -> None:
    one, other = pair
    other.do(f"deny(*[f'key {{i}}' for i in range({ROOM - 1})])")
    one.die_at(point, "deny('new')")
    verified(other)  # as the heir


def test_death_in_a_new_pane(puppet: Make, tmp_path: Path) -> None:
    """The first denial of all empties the pane; who dies there leaves it as nobody's."""
    path = str(tmp_path / "table")
    one, other = joined(puppet(), path), joined(puppet(), path)
    one.die_at("top_emptied", "deny('new')")
    assert top(other) == {}
    other.do("deny('known')")
    assert top(other) == {"known": (1, 0)}
    verified(other)


@pytest.mark.parametrize("point", POINTS)
def test_nobody_waits_for_who_is_stopped(pair: tuple[Puppet, Puppet], point: str) -> None:
    one, other = pair
    one.stop_at(point, "deny('new')")
    answers, seconds = other.timed("deny('known', 'newer', 'newest')")
    assert answers == [False, False, True, False, True, False]
    assert seconds < 1.0
    found = top(other)
    # Two denials are nobody's, so each of those that are shown may have had them.
    assert found["known"] == (5, 2)
    assert one.go_on() == [True, False]
    other.do("deny('newer')")
    found = top(other)
    assert found["known"] == (5, 2)
    assert found["newer"] == (4, 2)
    assert found["new"] == (3, 2)
    verified(other)


def test_counts_of_many_who_are_killed(puppet: Make, tmp_path: Path) -> None:
    """Each death loses one denial at most: the one that was under way."""
    path = str(tmp_path / "table")
    judge = joined(puppet(), path)
    deaths = 12
    for nth in range(deaths):
        victim = joined(puppet(), path)
        victim.tell("[deny('a', 'b', 'c', f'own {i}') for i in range(10**6)]")
        time.sleep(0.02)
        if nth % 2:
            judge.do("deny('judge')")
        victim.kill()
    judge.do("deny('judge')")
    denied: int = judge.do("limiter.stats().denied")
    panes: Any = judge.do("limiter._engine.denied_most()[0]")
    counted = sum(missed + sum(entry[1] for entry in entries) for missed, _, entries in panes)
    assert abs(denied - counted) <= deaths
    verified(judge)
