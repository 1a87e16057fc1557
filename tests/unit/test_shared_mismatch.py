"""A table that was made for something else: refused, adopted or replaced."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from nanolimit import ManualClock, Quota, RateLimiter, SharedTableError, _core, shared, table
from sharing import in_child, needs_shared, put_field

pytestmark = needs_shared

MADE: dict[str, Any] = {"quota": 100, "per": 60, "max_keys": 1000, "typical": 10}


@pytest.fixture
def limiter(folder: Path) -> RateLimiter:
    """A limiter with a table for 100 a minute, and one request counted in it."""
    limiter = RateLimiter(**MADE, shared="api")
    assert limiter.allow("me")
    return limiter


def refused(**options: Any) -> str:
    with pytest.raises(SharedTableError) as caught:
        RateLimiter(**options, shared="api")
    return str(caught.value)


DIFFERENT = [
    ({"quota": 50}, "its limit is 100, asked for 50"),
    ({"per": 30}, "its per is 60.0, asked for 30.0"),
    ({"per": 60.000000001}, "its per is 60.0, asked for 60.000000001"),
    ({"max_keys": 999}, "its max_keys is 1000, asked for 999"),
    ({"typical": 9}, "its typical is 10, asked for 9"),
    ({"clock": ManualClock()}, "its clock is the system's, asked for one of its own"),
    (
        {"quota": 50, "per": 1, "max_keys": 7, "typical": 3, "clock": ManualClock()},
        (
            "its limit is 100, asked for 50; its per is 60.0, asked for 1.0; its max_keys is 1000, "
            "asked for 7; its typical is 10, asked for 3; its clock is the system's, asked for one"
        ),
    ),
]


# error


@pytest.mark.parametrize(("options", "says"), DIFFERENT)
def test_each_field_that_differs_is_named(
    limiter: RateLimiter, folder: Path, options: dict[str, Any], says: str
) -> None:
    before = (folder / "api").read_bytes()
    said = refused(**MADE | options)
    assert f"table '{folder / 'api'}' was made for something else: {says}" in said
    assert "on_mismatch='replace' changes it for all" in said
    assert ("on_mismatch='adopt'" in said) == ("clock" not in options)
    assert f"nanolimit rm {folder / 'api'} removes it" in said
    for same in set(MADE) - set(options) - {"quota"}:
        assert f"its {same} " not in said
    # Nothing has changed, and no process has joined.
    assert (folder / "api").read_bytes() == before


@pytest.mark.parametrize("left_out", ["max_keys", "typical"])
@pytest.mark.parametrize("on_mismatch", ["error", "adopt", "replace"])
def test_what_is_not_asked_for_is_no_mismatch(
    limiter: RateLimiter, left_out: str, on_mismatch: str
) -> None:
    options = {name: value for name, value in MADE.items() if name != left_out}
    with RateLimiter(**options, shared="api", on_mismatch=on_mismatch) as other:
        assert "me" in other
        assert other.stats().capacity == 1000


def test_the_same_by_other_words(limiter: RateLimiter) -> None:
    quota = Quota(100, per=60)
    for same in ("100/minute", "100 per 60 s", quota):
        with RateLimiter(same, shared="api") as other:
            assert "me" in other
    assert RateLimiter(quota, shared="api").quota is quota
    assert "its limit is 100, asked for 5" in refused()  # which RateLimiter() means


# adopt


@pytest.mark.parametrize(("options", "says"), [each for each in DIFFERENT if len(each[0]) == 1][:5])
def test_adopted(limiter: RateLimiter, options: dict[str, Any], says: str) -> None:
    with RateLimiter(**MADE | options, shared="api", on_mismatch="adopt") as other:
        assert other.quota == Quota(100, per=60)
        assert other.stats().capacity == 1000
        assert "0 per 60 s" in repr(other)
        assert "of 1000 keys" in repr(other)
        decision = other.check("me")
        assert (decision.limit, decision.remaining, decision.quota) == (100, 98, other.quota)
    assert limiter.stats().allowed == 2


def test_adopting_with_no_opinion_at_all(limiter: RateLimiter) -> None:
    with RateLimiter(shared="api", on_mismatch="adopt") as other:
        assert other.quota == limiter.quota


def test_another_kind_of_clock_can_t_be_adopted(limiter: RateLimiter) -> None:
    said = refused(**MADE, clock=ManualClock(), on_mismatch="adopt")
    assert "its clock is the system's, asked for one of its own" in said
    assert "adopt" not in said
    with RateLimiter(3, shared="own", clock=ManualClock()) as own:
        assert own.allow("me")
        with pytest.raises(SharedTableError, match="clock is one of its own, asked for the system"):
            RateLimiter(3, shared="own", on_mismatch="adopt")


def test_adopting_nothing_makes_it_as_asked(folder: Path) -> None:
    with RateLimiter(7, shared="api", on_mismatch="adopt", max_keys=70) as limiter:
        assert (limiter.quota, limiter.stats().capacity) == (Quota(7), 70)


# replace


def test_a_limit_changes_in_place_for_all(limiter: RateLimiter, folder: Path) -> None:
    inode = (folder / "api").stat().st_ino
    assert limiter.allow("me", 99)
    assert not limiter.allow("me")
    with RateLimiter(110, shared="api", on_mismatch="replace") as other:
        assert other.quota == limiter.quota == Quota(110)
        assert limiter.check("me").limit == 110
        assert limiter.allow("me", 9)
        assert not other.allow("me")
    with RateLimiter(70, shared="api", on_mismatch="replace") as other:
        assert limiter.quota == Quota(70)
        assert not limiter.allow("me")
        assert limiter.allow("you", 70)
        with pytest.raises(ValueError, match="cost must be <= the limit of 70, got 71"):
            limiter.allow("you", 71)
    assert (folder / "api").stat().st_ino == inode
    # Who comes later asks for the new one.
    assert "its limit is 70, asked for 100" in refused(**MADE)
    with RateLimiter(70, shared="api") as other:
        assert other.quota == Quota(70)


def test_the_quota_that_was_given_comes_back(folder: Path) -> None:
    quota = Quota(100, per=60)
    limiter = RateLimiter(quota, shared="api")
    for limit in (110, 100):
        RateLimiter(limit, shared="api", on_mismatch="replace").close()
        assert limiter.quota == limiter.check("me").quota == Quota(limit)
    assert limiter.quota is quota


def test_a_child_sees_the_change(limiter: RateLimiter) -> None:
    def work() -> tuple[int, int]:
        with RateLimiter(120, shared="api", on_mismatch="replace"):
            return limiter.quota.limit, limiter.check("me").limit

    assert in_child(work) == (120, 120)
    assert limiter.check("me").quota == limiter.quota == Quota(120)


@pytest.mark.parametrize(
    "options",
    [{"quota": 2000}, *(each[0] for each in DIFFERENT[1:])],
    ids=str,
)
def test_a_new_table_where_the_layout_must_change(
    limiter: RateLimiter, folder: Path, options: dict[str, Any]
) -> None:
    options = MADE | options
    if options["quota"] < options["typical"]:
        del options["typical"]
    inode = (folder / "api").stat().st_ino
    with RateLimiter(**options, shared="api", on_mismatch="replace") as other:
        assert (folder / "api").stat().st_ino != inode
        assert other.quota == Quota(options["quota"], options["per"])
        assert other.stats().capacity == options["max_keys"]
        assert "me" not in other
        # Who has the old one goes on with it, apart.
        assert limiter.quota == Quota(100)
        assert "me" in limiter
        assert limiter.allow("you")
        assert "you" not in other
        assert other.allow("them")
        assert "them" not in limiter
        # Who comes now gets the new one.
        with RateLimiter(**options, shared="api") as third:
            assert "them" in third
    assert [each.name for each in folder.iterdir()] == ["api"]


def test_a_table_that_was_replaced_says_so(limiter: RateLimiter, folder: Path) -> None:
    with (folder / "api").open("rb") as file:
        RateLimiter(500, shared="api", on_mismatch="replace").close()
        assert _core.read_header(file.fileno())["state"] == 2
    assert shared.inspect("api").state == "ready"


def test_a_new_table_keeps_what_nobody_has_another_opinion_of(limiter: RateLimiter) -> None:
    with RateLimiter(5, per=50, shared="api", on_mismatch="replace") as other:
        assert other.stats().capacity == 1000
        info = shared.inspect("api")
        assert (info.quota, info.max_keys, info.typical) == (Quota(5, 50), 1000, 5)
    with RateLimiter(1500, shared="api", on_mismatch="replace"):
        # Not the small limit's `typical`, which would leave the large one short of memory.
        info = shared.inspect("api")
        assert (info.quota, info.max_keys, info.typical) == (Quota(1500), 1000, 32)


def test_a_smaller_limit_needs_no_new_table(limiter: RateLimiter, folder: Path) -> None:
    inode = (folder / "api").stat().st_ino
    with RateLimiter(5, shared="api", on_mismatch="replace") as other:
        assert (folder / "api").stat().st_ino == inode
        assert "me" in other
        assert limiter.quota == other.quota == Quota(5)


def test_room_for_more_is_asked_for(folder: Path) -> None:
    with RateLimiter(5, shared="wide", max_limit=50) as limiter:
        assert limiter.quota == Quota(5)
        assert [limiter.allow("me") for _ in range(6)] == [True] * 5 + [False]
        limiter.update(50)
        assert [limiter.allow("me") for _ in range(46)] == [True] * 45 + [False]
        with pytest.raises(SharedTableError, match="its max_limit is 50, asked for 500"):
            RateLimiter(50, shared="wide", max_limit=500)
        with RateLimiter(50, shared="wide") as other:
            assert other.quota == Quota(50)


def test_replacing_with_the_same_changes_nothing(limiter: RateLimiter, folder: Path) -> None:
    inode = (folder / "api").stat().st_ino
    with RateLimiter(**MADE, shared="api", on_mismatch="replace") as other:
        assert "me" in other
    assert (folder / "api").stat().st_ino == inode


def test_many_replace_at_once_and_end_up_on_one_table(limiter: RateLimiter, folder: Path) -> None:
    start = threading.Barrier(8)
    limiters: list[RateLimiter] = []

    def deploy() -> None:
        start.wait(60)
        limiters.append(RateLimiter(5, per=3600, shared="api", on_mismatch="replace"))

    threads = [threading.Thread(target=deploy) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(each.allow("me") for each in limiters) == [False] * 3 + [True] * 5
    assert [each.name for each in folder.iterdir()] == ["api"]


@pytest.mark.parametrize("way", ["replaced", "removed"])
def test_who_opened_a_table_that_goes_before_it_is_mapped_takes_the_next(
    limiter: RateLimiter, folder: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    attach = table.attach
    others: list[RateLimiter] = []

    def slow(*args: Any) -> Any:
        found = attach(*args)
        if not others:
            monkeypatch.setattr(table, "attach", attach)
            if way == "replaced":
                others.append(
                    RateLimiter(**MADE | {"per": 61}, shared="api", on_mismatch="replace")
                )
                others.append(RateLimiter(**MADE, shared="api", on_mismatch="replace"))
            else:
                shared.remove("api", force=True)
                others.append(RateLimiter(**MADE, shared="api"))
        return found

    monkeypatch.setattr(table, "attach", slow)
    with RateLimiter(**MADE, shared="api") as late:
        assert "me" not in late
        assert others[-1].allow("you")
        assert "you" in late


def test_a_tug_of_war_is_told(limiter: RateLimiter, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can't be won, but it ends."""
    monkeypatch.setattr(table, "_make", lambda *_: None)
    said = refused(**MADE | {"per": 1}, on_mismatch="replace")
    assert "was replaced 100 times while it was opened" in said


def test_a_replacement_that_does_not_fit_leaves_the_old_one(
    limiter: RateLimiter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    said = refused(**MADE | {"max_keys": 2000}, on_mismatch="replace")
    assert f"a table for max_keys=2000 needs {shared.bytes_for(2000, 100, 60, 10):,} bytes" in said
    monkeypatch.undo()
    monkeypatch.setenv("NANOLIMIT_DIR", str(folder))
    with RateLimiter(**MADE, shared="api") as other:
        assert "me" in other
    assert [each.name for each in folder.iterdir()] == ["api"]


def test_a_stale_table_counts_as_none(limiter: RateLimiter, folder: Path) -> None:
    """Of another boot: nothing that is in it matters, not even what it was made for."""
    put_field(folder / "api", "boot_id", bytes(16))
    with RateLimiter(3, per=1, shared="api") as other:
        assert (other.quota, other.stats().capacity) == (Quota(3, per=1), 100_000)


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        ("retry", ValueError, "on_mismatch must be 'error', 'adopt' or 'replace', not 'retry'"),
        (None, TypeError, "on_mismatch must be a str, not NoneType"),
        (True, TypeError, "on_mismatch must be a str, not bool"),
    ],
)
def test_what_on_mismatch_may_not_be(value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        RateLimiter(3, shared="api", on_mismatch=value)
