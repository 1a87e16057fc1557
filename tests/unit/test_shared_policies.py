"""What one process says of a key holds in all that share the table."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanolimit import Backoff, Quota, RateLimiter, SharedTableError, shared
from sharing import in_child, memory_folder, needs_shared, python

pytestmark = needs_shared


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with memory_folder() as path:
        monkeypatch.setenv("NANOLIMIT_DIR", str(path))
        yield path


def in_another(code: str) -> list[str]:
    """What another process prints, that has the same table."""
    start = "from nanolimit import *\nlimiter = RateLimiter('2/hour', shared='api', max_limit=60)\n"
    return python(start + code, env=os.environ | {"PYTHONWARNINGS": "error"}).stdout.split()


def test_a_block_holds_for_those_who_knew_of_none(folder: Path) -> None:
    limiter = RateLimiter("2/hour", shared="api", max_limit=60)
    allow = limiter.allow  # a method that was taken before
    assert allow("me")
    assert in_another("limiter.block('me', 100); print(limiter.allow('me'))") == ["False"]
    assert not allow("me")
    decision = limiter.check("me")
    assert decision.blocked
    assert 99 < decision.retry_after <= 100
    assert allow("you")
    assert in_another("print(limiter.unblock('me'))") == ["True"]
    assert allow("me")
    assert not limiter.check("me").blocked
    # Whoever comes later finds it.
    limiter.block("them", 100)
    assert in_another("print(limiter.allow('them'), limiter.allow('new'))") == ["False", "True"]


@pytest.mark.parametrize("quota", ["2/hour", "2/hour; 100/day"])
def test_quotas_and_exemptions(folder: Path, quota: str) -> None:
    limiter = RateLimiter(quota, shared="api", max_limit=60)
    assert limiter.allow("me")

    def work() -> list[int]:
        limiter.set_quota("me", Quota(60, per=3_600))
        limiter.set_exempt("boss")
        return [sum(limiter.allow(key) for _ in range(100)) for key in ("me", "boss", "you")]

    assert in_child(work) == [59, 100, 2]
    assert not limiter.allow("me")
    assert limiter.check("me").limit == 60
    assert limiter.allow("boss")
    limiter.set_quota("me", None)
    assert in_child(lambda: limiter.check("me").limit) == 2
    assert sorted(each.name for each in folder.iterdir())[0] == "api"


def test_penalties_are_counted_by_all(folder: Path) -> None:
    backoff = Backoff(after=4, base=100)
    limiter = RateLimiter("1/hour", shared="api", backoff=backoff)
    limiter.allow("me")

    def work() -> list[bool]:
        return [limiter.check("me").blocked for _ in range(2)]

    assert in_child(work) == [False, False]
    assert in_child(work) == [False, True]
    assert limiter.check("me").blocked
    # Also by one that has no penalty of its own.
    with RateLimiter("1/hour", shared="api") as other:
        assert other.check("me").blocked


def test_words_outlive_all_processes(folder: Path) -> None:
    code = "limiter.set_quota('me', '5/hour'); limiter.block('you', 1000)"
    in_another(code)
    answers = "print(sum(limiter.allow('me') for _ in range(9)), limiter.allow('you'))"
    assert in_another(answers) == ["5", "False"]
    with RateLimiter("2/hour", shared="api") as limiter:
        assert not limiter.allow("you")
    del limiter
    gc.collect()
    assert {each.name for each in shared.tables()} == {"api", "api.records"}
    shared.remove("api")
    assert list(folder.iterdir()) == []
    assert in_another(answers) == ["2", "True"]


def test_a_table_without_a_name(folder: Path) -> None:
    limiter = RateLimiter("2/hour", shared=True, max_limit=60)

    def work() -> int:
        limiter.block("me", 100)
        limiter.set_quota("you", "60/hour")
        return sum(limiter.allow("you") for _ in range(40))

    assert in_child(work) == 40
    assert limiter.check("me").blocked
    assert sum(limiter.allow("you") for _ in range(40)) == 20


def test_there_must_be_room(folder: Path) -> None:
    limiter = RateLimiter("2/hour", shared="api")
    calls: list[Any] = [
        lambda: limiter.set_quota("me", "60/hour"),
        lambda: limiter.allow("me", quota=Quota(60, per=3_600)),
        lambda: limiter.update("60/hour"),
    ]
    for call in calls:
        with pytest.raises(SharedTableError, match=r"no room for 60 per 3600 s: .* max_limit=60"):
            call()
    with pytest.raises(SharedTableError, match=r"windows of 3600\.0 s"):
        limiter.update("2/minute")
    limiter.set_quota("me", "6/hour")
    limiter.update("5/hour")
    assert sum(limiter.allow("me") for _ in range(9)) == 6
    assert in_child(lambda: limiter.quota.limit) == 5


def test_an_update_of_several_changes_all_or_none(folder: Path) -> None:
    limiter = RateLimiter("2/hour; 3/day", shared="api")
    with pytest.raises(SharedTableError, match="no room for 100 per 86400 s"):
        limiter.update("5/hour; 100/day")
    assert limiter.quotas == (Quota(2, per=3_600), Quota(3, per=86_400))
    limiter.update("5/hour; 6/day")
    assert in_child(lambda: limiter.quotas) == (Quota(5, per=3_600), Quota(6, per=86_400))


def test_shadow_is_each_ones_own(folder: Path) -> None:
    watching = RateLimiter("1/hour", shared="api", enforce=False)
    enforcing = RateLimiter("1/hour", shared="api")
    assert [watching.allow("me") for _ in range(3)] == [True] * 3
    assert not enforcing.allow("me")
    assert enforcing.stats().would_deny == 2
    assert enforcing.stats()[:2] == (3, 1)


def test_a_bad_max_limit(folder: Path) -> None:
    with pytest.raises(ValueError, match="max_limit must be >= 1, got 0"):
        RateLimiter(5, shared="api", max_limit=0)
    with pytest.raises(TypeError, match="max_limit must be an int"):
        RateLimiter(5, shared="api", max_limit="6")  # type: ignore[arg-type]
    assert list(folder.iterdir()) == []
