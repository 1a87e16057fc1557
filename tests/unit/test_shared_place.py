"""Where tables lie, and who may put something there: names, paths, directories, owners, modes."""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from nanolimit import RateLimiter, SharedTableError, shared, table
from sharing import GROUP, OTHER, STRANGER, in_child, memory_folder, needs_root, needs_shared

pytestmark = needs_shared


def refused(where: Any = "api", **options: Any) -> str:
    with pytest.raises(SharedTableError) as caught:
        RateLimiter(3, shared=where, **options)
    return str(caught.value)


def works(where: Any = "api", **options: Any) -> Any:
    """For a child: whether a limiter counts there, or the error's text."""

    def work() -> bool | str:
        try:
            with RateLimiter(3, shared=where, **options) as limiter:
                return limiter.allow("me")
        except SharedTableError as error:
            return str(error)

    return work


# Names and paths


def test_a_name_lies_in_the_directory_that_the_environment_names(folder: Path) -> None:
    with RateLimiter(3, shared="api") as limiter:
        assert limiter.name == "api"
        assert repr(limiter) == (
            f"<RateLimiter 'api' 3 per 60 s, shared at '{folder / 'api'}', 0 of 100000 keys>"
        )
    assert stat.S_IMODE((folder / "api").stat().st_mode) == 0o600


@needs_root
def test_without_it_each_user_has_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user whom nobody else is, so that no real directory is touched."""
    monkeypatch.delenv("NANOLIMIT_DIR", raising=False)
    path = Path(f"/dev/shm/nanolimit-{STRANGER}")
    assert not path.exists()

    def work() -> tuple[int, int, list[str], str]:
        with RateLimiter(3, shared="api"), RateLimiter(3, shared="other"):
            status = path.stat()
            names = sorted(each.name for each in path.iterdir())
            return stat.S_IMODE(status.st_mode), status.st_uid, names, str(shared.directory())

    try:
        assert in_child(work, uid=STRANGER) == (0o700, STRANGER, ["api", "other"], str(path))
        path.chmod(0o755)
        said = in_child(works(), uid=STRANGER)
        assert f"'{path}' is open to others (mode 0o755, expected 0o700): chmod 700 {path}" in said
        path.chmod(0o700)
        said = in_child(works(group=GROUP, mode=0o660), uid=STRANGER)
        assert "group= is of no use in" in said
        assert "NANOLIMIT_DIR" in said
        # Somebody made it first, to see what others count.
        os.chown(path, OTHER, OTHER)
        said = in_child(works(), uid=STRANGER)
        assert f"'{path}' belongs to uid {OTHER}, not to uid {STRANGER} or root" in said
        assert "set NANOLIMIT_DIR to a directory of your own" in said
        assert f"rm -r {path}" in said
    finally:
        for each in path.iterdir():
            each.unlink()
        path.rmdir()


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLIMIT_DIR", "")
    assert shared.directory() == Path(f"/dev/shm/nanolimit-{os.geteuid()}")


def test_a_relative_directory_would_split_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLIMIT_DIR", "tables")
    assert "NANOLIMIT_DIR must be an absolute path, not 'tables'" in refused()


def test_the_directory_is_made_for_oneself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLIMIT_DIR", str(folder / "tables"))
    old = os.umask(0)
    try:
        RateLimiter(3, shared="api").close()
    finally:
        os.umask(old)
    assert stat.S_IMODE((folder / "tables").stat().st_mode) == 0o700
    monkeypatch.setenv("NANOLIMIT_DIR", str(folder / "no" / "tables"))
    said = refused()
    assert f"can't be made, for there is no '{folder / 'no'}'" in said
    assert f"mkdir -p -m 700 {folder / 'no' / 'tables'}" in said


@pytest.mark.parametrize("name", ["a", "api-limits", "API_2.v1", "-x", "x" * 200, "0"])
def test_names_that_may_be(folder: Path, name: str) -> None:
    with RateLimiter(3, shared=name) as limiter:
        assert limiter.name == name
    assert (folder / name).is_file()


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "x" * 201, "a b", "a\n", "a\0", "ä", "a:b", "~", "*"]
)
def test_names_that_may_not_be(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="shared must be a name of 1 to 200 letters"):
        RateLimiter(3, shared=name)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("path", ["/", "./", "a/", "a/.", "a/..", "./a\0b"])
def test_paths_that_may_not_be(path: str) -> None:
    with pytest.raises(ValueError, match="shared must be the path of a file, not "):
        RateLimiter(3, shared=path)


@pytest.mark.parametrize("value", [False, 0, 1, b"api", ["api"], object()])
def test_what_is_neither(value: Any) -> None:
    with pytest.raises(TypeError, match="shared must be a name, a path or True, not "):
        RateLimiter(3, shared=value)


def test_a_path_of_bytes() -> None:
    class Bytes:
        def __fspath__(self) -> bytes:
            return b"/dev/shm/api"

    with pytest.raises(TypeError, match="shared must be a path of str, not of bytes"):
        RateLimiter(3, shared=Bytes())  # type: ignore[arg-type]


def test_a_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NANOLIMIT_DIR", "/nowhere")
    spellings = ["./a.b", folder / "a.b", f"{folder}/./a.b", Path("a.b")]
    limiters = [RateLimiter(3, shared=where) for where in spellings]
    assert [limiter.allow("me") for limiter in limiters] == [True, True, True, False]
    assert {limiter.name for limiter in limiters} == {"a.b"}
    # By the whole path, for a child that was forked elsewhere and joins by it.
    assert all(f"shared at '{folder}/a.b'" in repr(limiter) for limiter in limiters)
    for limiter in limiters:
        limiter.close()


def test_a_name_of_one_s_own(folder: Path) -> None:
    with RateLimiter(3, shared="api", name="front") as limiter:
        assert limiter.name == "front"
    with RateLimiter(3, shared=folder / ("x" * 210)) as limiter:
        assert limiter.name == "x" * 200
    with RateLimiter(3, shared=True) as limiter:
        assert re.fullmatch("limiter-[0-9]+", limiter.name)
        assert ", shared, 0 of 100000 keys>" in repr(limiter)


def test_a_path_that_is_too_long(folder: Path) -> None:
    assert "File name too long; give a shorter name" in refused(folder / ("x" * 251))
    assert "File name too long; give a shorter name" in refused(folder / ("x" * 256))


# Directories


def test_the_directory_of_a_path_must_exist(folder: Path) -> None:
    said = refused(folder / "a b" / "api")
    assert f"there is no directory '{folder / 'a b'}': make it first" in said
    assert f"mkdir -p -m 700 '{folder / 'a b'}'" in said


def test_a_directory_that_is_a_symbolic_link(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "real").mkdir()
    (folder / "link").symlink_to("real")
    said = refused(folder / "link" / "api")
    assert f"'{folder / 'link'}' is a symbolic link" in said
    assert f"give the directory itself, '{folder / 'real'}'" in said
    monkeypatch.setenv("NANOLIMIT_DIR", str(folder / "link"))
    assert "is a symbolic link" in refused()
    (folder / "link").unlink()
    (folder / "link").symlink_to("nowhere")
    assert "is a symbolic link" in refused()
    assert not list((folder / "real").iterdir())


def test_a_directory_that_is_a_file(folder: Path) -> None:
    (folder / "file").touch()
    assert "Not a directory; give a path whose parts are directories" in refused(
        folder / "file" / "api"
    )


def test_a_directory_that_everybody_may_write_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.chmod(0o777)
    said = refused()
    assert f"'{folder}' lets everybody replace the files in it (mode 0o777)" in said
    assert f"chmod o-w {folder}, or set NANOLIMIT_DIR to {folder}/nanolimit, which is" in said
    said = refused(folder / "api")
    assert f"give a path in a private directory, such as {folder}/nanolimit" in said
    with monkeypatch.context() as patched:
        patched.setenv("NANOLIMIT_DIR", f"{folder}/nanolimit")
        RateLimiter(3, shared="api").close()
        assert stat.S_IMODE((folder / "nanolimit").stat().st_mode) == 0o700
    folder.chmod(0o1777)  # as /tmp: only owners may remove and replace
    RateLimiter(3, shared="api").close()


@needs_root
def test_a_directory_of_somebody_else(folder: Path) -> None:
    os.chown(folder, OTHER, OTHER)
    said = refused()
    assert f"'{folder}' belongs to uid {OTHER}, not to root (uid 0)" in said
    said = refused(folder / "api")
    assert "give a path in a directory of your own" in said
    assert not list(folder.iterdir())


@needs_root
def test_a_directory_of_root_that_one_may_not_enter(folder: Path) -> None:
    said = in_child(works(folder / "api"), uid=STRANGER)
    assert "Permission denied; run as the user who made it" in said


@needs_root
def test_a_directory_of_root_that_one_may_not_write_to(folder: Path) -> None:
    folder.chmod(0o755)
    said = in_child(works(), uid=STRANGER)
    assert f"table '{folder / 'api'}' can't be made: Permission denied" in said
    with RateLimiter(3, shared="api", mode=0o666):
        # A table that is there needs no more than the way to it.
        folder.chmod(0o711)
        assert in_child(works(mode=0o666), uid=STRANGER) is True


# Files


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("link", "a symbolic link"),
        ("folder", "a directory"),
        ("pipe", "a named pipe"),
        ("socket", "a socket"),
    ],
)
@pytest.mark.parametrize("on_mismatch", ["error", "replace"])
def test_what_is_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, says: str, on_mismatch: str
) -> None:
    RateLimiter(3, shared="real").close()
    path = folder / "api"
    if kind == "link":
        path.symlink_to("real")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        monkeypatch.chdir(folder)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("api")
    before = path.lstat()
    said = refused(on_mismatch=on_mismatch)
    assert f"table '{path}' can't be used: it is {says}, expected a regular file" in said
    assert path.lstat().st_ino == before.st_ino


def test_a_link_that_is_put_there_after_a_look(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RateLimiter(3, shared="api").close()
    RateLimiter(3, shared="victim").close()
    check = table._check_file

    def slow(*args: Any) -> None:
        check(*args)
        if not (folder / "api").is_symlink():
            (folder / "api").unlink()
            (folder / "api").symlink_to("victim")

    monkeypatch.setattr(table, "_check_file", slow)
    assert "Too many levels of symbolic links; give the file itself" in refused()
    assert shared.inspect("victim").processes == ()


def test_a_link_to_nowhere(folder: Path) -> None:
    (folder / "api").symlink_to(folder / "victim")
    assert "it is a symbolic link" in refused()
    assert not (folder / "victim").exists()


@needs_root
def test_a_device(folder: Path) -> None:
    os.mknod(folder / "api", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert "it is a device" in refused()


def test_a_second_name(folder: Path) -> None:
    RateLimiter(3, shared="api").close()
    os.link(folder / "api", folder / "other")
    said = refused()
    assert "it has 2 names (hard links), expected 1" in said
    (folder / "other").unlink()
    RateLimiter(3, shared="api").close()


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o666, 0o700, 0o4600])
def test_a_mode_that_is_too_wide(folder: Path, mode: int) -> None:
    RateLimiter(3, shared="api").close()
    (folder / "api").chmod(mode)
    said = refused()
    assert f"its mode is {mode:#o}, which is wider than mode=0o600" in said
    assert f"chmod 600 {folder / 'api'}" in said


def test_a_mode_that_is_narrower_is_fine(folder: Path) -> None:
    RateLimiter(3, shared="api").close()
    with RateLimiter(3, shared="api", mode=0o660) as limiter:
        assert limiter.allow("me")
    assert stat.S_IMODE((folder / "api").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660, 0o666])
def test_the_mode_is_the_one_asked_for(folder: Path, mode: int) -> None:
    old = os.umask(0o777)
    try:
        RateLimiter(3, shared="api", mode=mode).close()
    finally:
        os.umask(old)
    assert stat.S_IMODE((folder / "api").stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0, 0o400, 0o060, 0o700, 0o601, 0o1600, -1, 10**30])
def test_modes_that_may_not_be(mode: int) -> None:
    with pytest.raises(ValueError, match="mode must let the owner read and write and nobody"):
        RateLimiter(3, shared="api", mode=mode)


@needs_root
def test_a_file_of_somebody_else(folder: Path) -> None:
    RateLimiter(3, shared="api").close()
    os.chown(folder / "api", OTHER, OTHER)
    said = refused(on_mismatch="replace")
    assert f"its owner is uid {OTHER}, expected root (uid 0)" in said
    said = refused(group=GROUP, mode=0o660)
    assert f"its owner is uid {OTHER}, expected root (uid 0)" in said


@needs_root
def test_a_file_of_root_is_trusted(folder: Path) -> None:
    folder.chmod(0o755)
    with RateLimiter(3, shared="api", mode=0o666) as limiter:
        assert in_child(works(mode=0o666), uid=STRANGER) is True
        assert limiter.stats().allowed == 1
        said = in_child(works(), uid=STRANGER)
        assert "its mode is 0o666, which is wider than mode=0o600" in said


@needs_root
def test_a_file_of_root_that_one_may_not_open(folder: Path) -> None:
    folder.chmod(0o755)
    with RateLimiter(3, shared="api"):
        said = in_child(works(), uid=STRANGER)
        assert f"table '{folder / 'api'}' can't be opened: Permission denied" in said
        assert "group= and mode=" in said


# A master that is root, and workers that are not


@needs_root
def test_a_group(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.chmod(0o755)
    monkeypatch.setenv("NANOLIMIT_DIR", str(folder / "tables"))
    options: dict[str, Any] = {"group": GROUP, "mode": 0o660}
    with RateLimiter(3, shared="api", **options) as limiter:
        status = (folder / "tables").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o770, 0, GROUP)
        status = (folder / "tables" / "api").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o660, 0, GROUP)
        members = (GROUP,)
        assert in_child(works(**options), uid=STRANGER, groups=members) is True
        assert in_child(works(**options), uid=OTHER, groups=members) is True
        assert limiter.stats().allowed == 2
        # Who does not say that the group may, is told that it may.
        assert "wider than mode=0o600" in in_child(works(), uid=STRANGER, groups=members)
        assert "Permission denied" in in_child(works(**options), uid=STRANGER)
        # A child that was forked before it became somebody else.
        assert in_child(lambda: limiter.allow("me"), uid=STRANGER, groups=members) is True
        assert in_child(lambda: limiter.allow("me"), uid=STRANGER, groups=members) is False


@needs_root
def test_members_of_a_group_share_what_one_of_them_made(folder: Path) -> None:
    os.chown(folder, 0, GROUP)
    folder.chmod(0o770)
    options: dict[str, Any] = {"group": GROUP, "mode": 0o660}
    assert in_child(works(**options), uid=STRANGER, groups=(GROUP,)) is True
    assert (folder / "api").stat().st_uid == STRANGER
    assert in_child(works(**options), uid=OTHER, groups=(GROUP,)) is True
    with RateLimiter(3, shared="api", **options) as limiter:
        assert limiter.stats().allowed == 2
    # Root does not trust a stranger's file that he does not name the group of.
    assert f"its owner is uid {STRANGER}, expected root (uid 0)" in refused(mode=0o660)


@needs_root
def test_what_a_member_left_who_died_another_removes(folder: Path) -> None:
    os.chown(folder, 0, GROUP)
    folder.chmod(0o770)
    options: dict[str, Any] = {"group": GROUP, "mode": 0o660}

    def dies() -> None:
        table._format = lambda *_: os.kill(os.getpid(), 9)  # type: ignore[assignment]
        RateLimiter(3, shared="api", **options)

    with pytest.raises(AssertionError, match="the child died"):
        in_child(dies, uid=STRANGER, groups=(GROUP,))
    assert [each.name for each in folder.iterdir()] == [".api.new"]
    assert in_child(works(**options), uid=OTHER, groups=(GROUP,)) is True
    assert [each.name for each in folder.iterdir()] == ["api"]


@needs_root
def test_the_wrong_group(folder: Path) -> None:
    RateLimiter(3, shared="api", group=GROUP, mode=0o660).close()
    said = refused(group=GROUP + 1, mode=0o660)
    assert f"its group is {GROUP}, expected {GROUP + 1}; chgrp {GROUP + 1} " in said


@needs_root
def test_a_group_that_one_is_no_member_of(folder: Path) -> None:
    os.chown(folder, STRANGER, STRANGER)
    said = in_child(works(group=GROUP, mode=0o660), uid=STRANGER)
    assert f"can't be given to group {GROUP}: uid {STRANGER} is no member of it" in said
    assert not list(folder.iterdir())


def test_a_group_by_name(folder: Path) -> None:
    grp = pytest.importorskip("grp")
    try:
        own = grp.getgrgid(os.getegid()).gr_name
    except KeyError:
        pytest.skip("the group that the tests run as has no name")
    with RateLimiter(3, shared="api", group=own, mode=0o660):
        assert (folder / "api").stat().st_gid == os.getegid()
    assert "there is no group 'no such'" in refused(group="no such", mode=0o660)


@pytest.mark.parametrize(
    ("group", "error", "says"),
    [
        (1.5, TypeError, "group must be a name or a number, not float"),
        (True, TypeError, "not bool"),
        (-1, ValueError, "group must be from 0 to 4294967294, not -1"),
        (2**32 - 1, ValueError, "group must be from 0 to 4294967294"),
    ],
)
def test_groups_that_may_not_be(group: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        RateLimiter(3, shared="api", group=group, mode=0o660)


def test_a_group_that_the_mode_keeps_out() -> None:
    with pytest.raises(ValueError, match="mode must let the group in if group is given"):
        RateLimiter(3, shared="api", group=0)


def test_no_file_no_owner() -> None:
    with pytest.raises(TypeError, match="mode and group go with a table that has a name"):
        RateLimiter(3, shared=True, mode=0o660)
    with pytest.raises(TypeError, match="mode and group go with a table that has a name"):
        RateLimiter(3, shared=True, mode=0o660, group=0)


def test_directories_do_not_mix() -> None:
    with memory_folder() as one, memory_folder() as other:
        limiters = [RateLimiter(1, shared=where / "api") for where in (one, other)]
        assert [limiter.allow("me") for limiter in limiters] == [True, True]
        for limiter in limiters:
            limiter.close()
