"""Looking after tables: which there are, what they hold, removing them, how large one is."""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from nanolimit import ManualClock, Quota, RateLimiter, SharedTableError, _core, shared
from sharing import STRANGER, in_child, needs_root, needs_shared, put_field

pytestmark = needs_shared


# Looking


def test_what_a_table_tells(folder: Path) -> None:
    before = datetime.now(timezone.utc).replace(microsecond=0)
    limiter = RateLimiter(100, per=3600, shared="api", max_keys=50, typical=20, on_full="deny")
    limiter.allow_many(list(range(50)), 40)
    limiter.allow_many(list(range(51)), 61)
    info = shared.inspect("api")
    stats = limiter.stats()
    assert (info.name, info.path) == ("api", str(folder / "api"))
    assert (info.state, info.problem) == ("ready", None)
    assert info.bytes == (folder / "api").stat().st_size == stats.memory_bytes
    assert (info.quota, info.max_keys, info.typical) == (Quota(100, 3600), 50, 20)
    assert info.own_clock is False
    assert info.created is not None
    assert before <= info.created <= datetime.now(timezone.utc)
    assert (info.keys, info.live_keys) == (50, 50)
    assert (info.allowed, info.denied, info.evicted, info.overflowed) == (50, 51, 0, 1)
    assert info.stalled == 0
    assert (info.log_bytes, info.log_capacity_bytes) == (stats.log_bytes, stats.log_capacity_bytes)
    assert info.processes == (shared.Process(os.getpid(), True),)
    assert shared.tables() == [info]


def test_looking_changes_nothing_and_joins_nothing(folder: Path) -> None:
    limiter = RateLimiter(3, shared="api")
    limiter.allow("me")
    before, status = (folder / "api").read_bytes(), (folder / "api").stat()
    for _ in range(3):
        assert len(shared.inspect("api").processes) == 1
        shared.tables()
    assert (folder / "api").read_bytes() == before
    assert (folder / "api").stat().st_mtime_ns == status.st_mtime_ns
    (folder / "api").chmod(0o400)
    assert shared.inspect("api").allowed == 1


def test_idle_keys_are_not_live(folder: Path) -> None:
    limiter = RateLimiter(3, per=0.05, shared="api")
    limiter.allow_many(["a", "b"])
    time.sleep(0.06)
    info = shared.inspect("api")
    assert (info.keys, info.live_keys) == (2, 0)


def test_nobody_knows_the_time_of_a_clock_that_he_has_not(folder: Path) -> None:
    limiter = RateLimiter(3, shared="api", clock=ManualClock(7))
    limiter.allow("me")
    info = shared.inspect("api")
    assert (info.own_clock, info.keys, info.live_keys) == (True, 1, None)


def test_who_uses_it(folder: Path) -> None:
    limiters = [RateLimiter(3, shared="api"), RateLimiter(3, shared="api")]
    own = shared.Process(os.getpid(), True)

    def work() -> tuple[int, Any]:
        limiters[0].allow("me")
        return os.getpid(), shared.inspect("api").processes

    pid, processes = in_child(work)
    assert set(processes) == {own, shared.Process(pid, True)}
    assert sorted(process.pid for process in processes) == sorted([own.pid, own.pid, pid])
    # The child left without a word.
    dead = shared.Process(pid, False)
    assert set(shared.inspect("api").processes) == {own, dead}
    limiters.pop()
    assert sorted(shared.inspect("api").processes, key=str) == sorted([own, dead], key=str)
    limiters.pop()
    assert shared.inspect("api").processes == (dead,)


def test_all_of_the_directory(folder: Path) -> None:
    assert shared.tables() == []
    assert shared.directory() == folder
    RateLimiter(3, shared="good").close()
    RateLimiter(3, shared="bad").close()
    RateLimiter(3, shared="stale").close()
    RateLimiter(3, shared="replaced").close()
    RateLimiter(3, shared="newer").close()
    RateLimiter(3, shared="elsewhere").close()
    os.truncate(folder / "bad", 5000)
    put_field(folder / "stale", "boot_id", bytes(16))
    put_field(folder / "replaced", "state", 2)
    put_field(folder / "newer", "version", 4)
    put_field(folder / "elsewhere", "time_namespace", 5)
    (folder / "foreign").write_text("text")
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("good")
    (folder / ".good.new").write_text("half done")
    found = {info.name: info for info in shared.tables()}
    assert {name: info.state for name, info in found.items()} == {
        "bad": "unusable",
        "elsewhere": "unusable",
        "folder": "unusable",
        "foreign": "unusable",
        "good": "ready",
        "link": "unusable",
        "newer": "unusable",
        "replaced": "replaced",
        "stale": "stale",
    }
    assert list(found) == sorted(found)
    for name, says in {
        "bad": "its size is 5000, expected ",
        "elsewhere": "its time namespace is 5, expected ",
        "folder": "it is a directory, expected a regular file",
        "foreign": "it is no table of nanolimit",
        "link": "it is a symbolic link",
        "newer": "its layout version is 4, expected 3",
    }.items():
        assert says in (found[name].problem or "")
        assert found[name].quota is None or name == "elsewhere"
        assert found[name] == shared.inspect(name)
    assert found["foreign"].bytes == 4
    for name in ("good", "stale", "replaced"):
        assert found[name].problem is None
        assert found[name].quota == Quota(3)


def test_a_table_with_a_damaged_inside(folder: Path) -> None:
    RateLimiter(3, shared="api").close()
    with (folder / "api").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 2_000_000)
    info = shared.inspect("api")
    assert info.state == "unusable"
    assert f"nanolimit rm {folder / 'api'}" in (info.problem or "")


def test_what_is_not_there(folder: Path) -> None:
    with pytest.raises(SharedTableError, match=f"there is no table '{folder / 'api'}'"):
        shared.inspect("api")
    with pytest.raises(SharedTableError, match=f"there is no directory '{folder / 'no'}'"):
        shared.inspect(folder / "no" / "api")
    with pytest.raises(ValueError, match="shared must be a name"):
        shared.inspect(".api")
    with pytest.raises(TypeError, match="shared must be a name"):
        shared.inspect(True)  # type: ignore[arg-type]
    folder.rmdir()
    assert shared.tables() == []
    folder.mkdir()


@needs_root
def test_what_one_may_not_read(folder: Path) -> None:
    RateLimiter(3, shared="api").close()
    folder.chmod(0o755)

    def work() -> Any:
        return shared.tables()

    (info,) = in_child(work, uid=STRANGER)
    assert (info.name, info.state, info.bytes) == ("api", "unusable", shared.bytes_for(100_000, 3))
    assert "can't be read: Permission denied" in info.problem
    folder.chmod(0o711)
    said = str(in_child(work, uid=STRANGER))
    assert f"directory '{folder}' can't be read: Permission denied" in said


@needs_root
def test_root_may_look_after_everybody_s(folder: Path) -> None:
    os.chown(folder, STRANGER, STRANGER)
    in_child(lambda: RateLimiter(3, shared="api").allow("me"), uid=STRANGER)
    assert shared.inspect("api").allowed == 1
    shared.remove("api")
    assert shared.tables() == []


# Removing


def test_removed(folder: Path) -> None:
    with RateLimiter(3, shared="api") as limiter:
        assert limiter.allow("me", 3)
    del limiter
    shared.remove("api")
    assert not list(folder.iterdir())
    assert RateLimiter(3, shared=folder / "api").allow("me", 3)


def test_what_is_in_use_is_not_removed(folder: Path) -> None:
    limiter = RateLimiter(3, shared="api")
    limiter.allow("me")
    with pytest.raises(SharedTableError) as caught:
        shared.remove("api")
    assert f"is in use by {os.getpid()}: stop them first" in str(caught.value)
    assert f"nanolimit rm {folder / 'api'} --force" in str(caught.value)
    assert "me" in RateLimiter(3, shared="api")
    shared.remove("api", force=True)
    assert limiter.allow("you")
    assert "you" not in RateLimiter(3, shared="api")


def test_the_dead_use_nothing(folder: Path) -> None:
    def work() -> None:
        work.limiter = RateLimiter(3, shared="api")  # type: ignore[attr-defined]
        os._exit(0)  # without a word

    pid = os.fork()
    if pid == 0:
        work()
    # A zombie is dead.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    shared.remove("api")
    os.waitpid(pid, 0)
    assert not list(folder.iterdir())


def test_a_table_of_another_version_can_be_removed(folder: Path) -> None:
    """It is what the error of a limiter advises."""
    limiter = RateLimiter(3, shared="api")
    put_field(folder / "api", "version", 4)
    with pytest.raises(SharedTableError, match="is in use: stop them first"):
        shared.remove("api")
    del limiter
    shared.remove("api")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "grown", "header", "inside"])
def test_a_damaged_table_can_be_removed(folder: Path, damage: str) -> None:
    RateLimiter(3, shared="api").close()
    size = (folder / "api").stat().st_size
    if damage == "truncated":
        os.truncate(folder / "api", 20)
    elif damage == "grown":
        os.truncate(folder / "api", size + 1)
    else:
        with (folder / "api").open("r+b") as file:
            file.seek(20 if damage == "header" else 4096)
            file.write(b"\xff" * (100 if damage == "header" else size - 4096))
    with pytest.raises(SharedTableError):
        RateLimiter(3, shared="api")
    shared.remove("api")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("kind", ["text", "empty", "link", "folder"])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_table_is_never_removed(folder: Path, kind: str, force: bool) -> None:
    path = folder / "api"
    RateLimiter(3, shared="good").close()
    if kind == "link":
        path.symlink_to("good")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text("text" if kind == "text" else "")
    with pytest.raises(SharedTableError):
        shared.remove("api", force)
    assert sorted(each.name for each in folder.iterdir()) == ["api", "good"]
    with pytest.raises(SharedTableError, match="there is no table"):
        shared.remove("missing", force)


def test_what_a_dead_builder_left_goes_too(folder: Path) -> None:
    RateLimiter(3, shared="api").close()
    (folder / ".api.new").write_bytes(bytes(100))
    shared.remove("api")
    assert not list(folder.iterdir())


def test_what_only_looks_like_it_stays(folder: Path) -> None:
    RateLimiter(3, shared="api").close()
    (folder / ".api.new").write_text("somebody else's")
    shared.remove("api")
    assert [each.name for each in folder.iterdir()] == [".api.new"]


def test_a_removed_table_says_so(folder: Path) -> None:
    RateLimiter(3, shared="api").close()
    with (folder / "api").open("rb") as file:
        shared.remove("api")
        assert _core.read_header(file.fileno())["state"] == 2


@needs_root
def test_what_one_may_not_remove(folder: Path) -> None:
    RateLimiter(3, shared="api", mode=0o666).close()
    folder.chmod(0o755)
    with pytest.raises(SharedTableError, match="can't be removed: Permission denied"):
        raise in_child(lambda: shared.remove("api"), uid=STRANGER)
    with RateLimiter(3, shared="api", mode=0o666) as limiter:
        assert limiter.allow("me")


# Sizes


def test_bytes_are_the_file_s(folder: Path) -> None:
    for nth, (keys, limit, per, typical) in enumerate(
        [(1, 1, 1, None), (1000, 100, 60, 5), (100_000, 5, 60, None), (3000, 2047, 3600, 2047)]
    ):
        RateLimiter(limit, per, shared=f"{nth}", max_keys=keys, typical=typical).close()
        assert (folder / f"{nth}").stat().st_size == shared.bytes_for(keys, limit, per, typical)
        # All of it is there.
        assert (folder / f"{nth}").stat().st_blocks * 512 >= shared.bytes_for(
            keys, limit, per, typical
        )


def test_bytes_grow_with_what_is_asked_for() -> None:
    per_key = shared.bytes_for(1_000_000, 5) / 1_000_000
    assert 50 <= per_key <= 65
    assert shared.bytes_for(10_000, 100, typical=5) < shared.bytes_for(10_000, 100, typical=50)
    assert shared.bytes_for(10_000, 100) == shared.bytes_for(10_000, 100, typical=32)
    assert shared.bytes_for(10_000, 20) == shared.bytes_for(10_000, 20, typical=20)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((0, 5), ValueError, r"keys must be from 1 to 2\*\*30 for a shared table, not 0"),
        ((2**30 + 1, 5), ValueError, r"keys must be from 1 to 2\*\*30"),
        ((1.0, 5), TypeError, "keys must be an int, not float"),
        ((10, 0), ValueError, "limit must be from 1 to 16777216, not 0"),
        ((10, 5, 0), ValueError, "per must be"),
        ((10, 5, 60, 6), ValueError, "typical must be from 1 to the limit of 5, not 6"),
    ],
)
def test_sizes_that_may_not_be(arguments: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        shared.bytes_for(*arguments)


def test_a_platform_without_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "SHARED", False)
    for call in (shared.tables, lambda: shared.inspect("api"), lambda: shared.remove("api")):
        with pytest.raises(SharedTableError, match="needs Linux"):
            call()
