"""How a table comes into being: by one of many, whole, and only where there is room for it."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from nanolimit import RateLimiter, SharedTableError, place, shared, table
from sharing import in_child, in_namespace, needs_shared, python

fcntl = pytest.importorskip("fcntl", reason="this platform has no shared tables")

pytestmark = needs_shared

ATTACH = """
import os, sys
from nanolimit import RateLimiter, table
print("ready", flush=True)
os.read(int(sys.argv[1]), 1)  # until all are
limiter = RateLimiter("10/hour", shared="api", max_keys=1000)
print(limiter.allow("me"), flush=True)
sys.stdin.read()
"""


def refused(**options: Any) -> str:
    with pytest.raises(SharedTableError) as caught:
        RateLimiter(3, shared="api", **options)
    return str(caught.value)


def test_a_hundred_processes_at_once(folder: Path) -> None:
    reader, writer = os.pipe()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ATTACH, str(reader)],
            pass_fds=[reader],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(100)
    ]
    try:
        outputs = [process.stdout for process in processes if process.stdout]
        assert [output.readline() for output in outputs] == ["ready\n"] * 100
        os.close(writer)
        answers = [output.readline() for output in outputs]
        # All are attached, to one table.
        assert [each.name for each in folder.iterdir()] == ["api"]
        assert len(shared.inspect("api").processes) == 100
        said = [process.communicate(timeout=60)[1] for process in processes]
        assert set(said) == {""}
        assert answers.count("True\n") == 10
        assert answers.count("False\n") == 90
        assert shared.inspect("api").processes == ()
    finally:
        os.close(reader)
        for process in processes:
            process.kill()
            process.wait(60)


def test_many_forks_at_once(folder: Path) -> None:
    """Without an interpreter's start in between: all of them find nothing, or each other."""
    for nth in range(20):
        reader, writer = os.pipe()
        pids = []
        for _ in range(12):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    os.close(writer)
                    os.read(reader, 1)  # until all are there
                    limiter = RateLimiter(3, shared=f"api-{nth}", max_keys=10)
                    status = 10 + limiter.allow("me")
                finally:
                    os._exit(status)
            pids.append(pid)
        os.close(reader)
        os.close(writer)
        answers = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert sorted(answers) == [10] * 9 + [11] * 3
        assert shared.inspect(f"api-{nth}").allowed == 3


def test_threads_at_once(folder: Path) -> None:
    limiters: list[RateLimiter] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait(60)
        limiters.append(RateLimiter(3, shared="api"))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [limiter.allow("me") for limiter in limiters] == [True] * 3 + [False] * 5


def test_no_descriptor_is_left_behind(folder: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    RateLimiter(3, shared="warm").close()
    before = descriptors()
    for nth in range(5):
        RateLimiter(3, shared=f"api-{nth}").close()
        with pytest.raises(SharedTableError):
            RateLimiter(4, shared=f"api-{nth}")
        RateLimiter(400, shared=f"api-{nth}", on_mismatch="replace").close()
        RateLimiter(3, shared=True).close()
        shared.remove(f"api-{nth}")
        with pytest.raises(SharedTableError):
            RateLimiter(3, shared=folder)
        shared.tables()
    gc.collect()
    assert descriptors() == before
    assert not place._handles


def test_descriptors_are_not_inherited(folder: Path) -> None:
    with RateLimiter(3, shared="api"), RateLimiter(3, shared=True):
        for each in Path("/proc/self/fd").iterdir():
            try:
                target = str(each.readlink())
                flags = fcntl.fcntl(int(each.name), fcntl.F_GETFD)
            except OSError:
                continue  # the one that listed them
            if "nanolimit" in target:
                assert flags & fcntl.FD_CLOEXEC, target


@pytest.mark.parametrize("name", ["api", True])
def test_descriptors_are_not_inherited_while_it_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    allocate = table._allocate
    inheritable: list[bool] = []

    def seen(*args: Any) -> None:
        inheritable.extend(os.get_inheritable(handle.fd) for handle in place._handles)
        allocate(*args)

    monkeypatch.setattr(table, "_allocate", seen)
    RateLimiter(3, shared=name).close()
    assert inheritable == [False] * (1 if name is True else 3)


# Who dies while it builds


@pytest.mark.parametrize("point", ["_allocate", "_format", "os.link", "os.unlink"])
def test_a_builder_that_dies_leaves_nothing_that_lasts(folder: Path, point: str) -> None:
    name = point.rpartition(".")[2]

    def die(*args: object, **kwargs: object) -> None:
        if point != "os.unlink" or (folder / "api").exists():
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        setattr(table.os if point.startswith("os.") else table, name, die)
        RateLimiter(3, shared="api")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert (folder / ".api.new").exists()
    assert (folder / "api").exists() == (point == "os.unlink")
    assert [each.name for each in shared.tables()] == (["api"] if point == "os.unlink" else [])
    with RateLimiter(3, shared="api") as limiter:
        assert limiter.allow("me")
    assert [each.name for each in folder.iterdir()] == ["api"]


def test_what_is_in_the_way_of_building(folder: Path) -> None:
    aside = folder / ".api.new"
    aside.mkdir()
    assert f"'{aside}' is in the way: it is a directory; move it away" in refused()
    aside.rmdir()
    (folder / "victim").touch()
    aside.symlink_to("victim")
    assert f"'{aside}' is in the way: it is a symbolic link; move it away" in refused()
    aside.unlink()
    aside.write_text("text")
    assert f"'{aside}' is in the way: it is no table that was begun; move it away" in refused()
    assert aside.read_text() == "text"
    aside.unlink()
    assert [each.name for each in folder.iterdir()] == ["victim"]


@pytest.mark.parametrize("left", [b"", bytes(7), bytes(5000), b"nanolim\0" + bytes(3)])
def test_what_a_dead_builder_left_is_removed(folder: Path, left: bytes) -> None:
    (folder / ".api.new").write_bytes(left)
    RateLimiter(3, shared="api").close()
    assert [each.name for each in folder.iterdir()] == ["api"]


def test_a_name_that_is_taken_in_the_middle_is_not_overwritten(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def slow(*args: Any, **kwargs: Any) -> None:
        (folder / "api").write_text("somebody else's")
        (folder / "api").chmod(0o600)
        link(*args, **kwargs)

    monkeypatch.setattr(os, "link", slow)
    assert "it is no table of nanolimit" in refused()
    assert (folder / "api").read_text() == "somebody else's"
    assert [each.name for each in folder.iterdir()] == ["api"]


def test_an_error_while_building_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(table, "_format", fails)
    with pytest.raises(RuntimeError):
        RateLimiter(3, shared="api")
    assert not list(folder.iterdir())


# The lock


def test_who_waits_for_the_lock_gives_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "_LOCK_TIMEOUT_S", 0.2)
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        began = time.monotonic()
        said = refused()
        assert 0.15 < time.monotonic() - began < 5
        assert f"'{folder}' has been locked by another process for 0.2 s" in said
        fcntl.flock(fd, fcntl.LOCK_UN)
        RateLimiter(3, shared="api").close()
        # Who finds the table needs no lock.
        fcntl.flock(fd, fcntl.LOCK_EX)
        with RateLimiter(3, shared="api") as limiter:
            assert limiter.allow("me")
    finally:
        os.close(fd)


def test_a_child_that_another_thread_forks_holds_no_lock(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    allocate = table._allocate

    def slow(*args: Any) -> None:
        inside.set()
        assert go_on.wait(60)
        allocate(*args)

    monkeypatch.setattr(table, "_allocate", slow)
    thread = threading.Thread(target=lambda: RateLimiter(3, shared="api").close())
    thread.start()
    assert inside.wait(60)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking while threads run
        pid = os.fork()
    if pid == 0:
        os.close(writer)
        held = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.exists()]
        os.read(reader, 1)
        os._exit(any(str(folder) in target for target in held))
    go_on.set()
    thread.join(60)
    try:
        shared.remove("api")
        RateLimiter(3, shared="other").close()
    finally:
        os.close(writer)
        os.close(reader)
        assert os.waitpid(pid, 0)[1] == 0


def test_a_child_that_is_forked_in_the_middle_of_it_holds_no_lock(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler may fork one, in the very thread that builds."""
    format_table = table._format
    reader, writer = os.pipe()
    pids: list[int] = []

    def forks(*args: Any) -> None:
        pids.append(os.fork())
        if pids[-1] == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        format_table(*args)

    monkeypatch.setattr(table, "_format", forks)
    monkeypatch.setattr(place, "_LOCK_TIMEOUT_S", 0.5)
    RateLimiter(3, shared="api").close()
    try:
        shared.remove("api")
    finally:
        os.close(writer)
        os.close(reader)
        assert os.waitpid(pids[0], 0)[1] == 0


# Room

SMALL = """
import os, sys
from nanolimit import RateLimiter, SharedTableError
folder = sys.argv[1]
os.system(f"mount -t tmpfs -o size={sys.argv[2]} none {folder}")
try:
    RateLimiter(*map(int, sys.argv[3:5]), shared="api", max_keys=int(sys.argv[5])).close()
except SharedTableError as error:
    print(error)
print(os.listdir(folder))
if len(sys.argv) > 6:
    print(RateLimiter(*map(int, sys.argv[3:5]), shared="api", max_keys=int(sys.argv[6])))
"""


def test_a_full_tmpfs(folder: Path) -> None:
    said, left = in_namespace("mount", SMALL, folder, "4M", 5, 60, 100_000)
    told = re.search(
        rf"a table for max_keys=100000 needs ([0-9,]+) bytes, and '{folder}' has ([0-9,]+) free: "
        r"max_keys=([0-9]+) fits; or make room, or mount a larger tmpfs \(docker run --shm-size\)",
        said,
    )
    assert told is not None, said
    needed, free, fits = (int(number.replace(",", "")) for number in told.groups())
    assert needed == shared.bytes_for(100_000, 5)
    assert free == 4 << 20
    assert left == "[]"
    # What it says is so, and not much more would do.
    assert shared.bytes_for(fits, 5) <= free < shared.bytes_for(fits + fits // 9, 5)
    *_, made = in_namespace("mount", SMALL, folder, "4M", 5, 60, 100_000, fits)
    assert f"0 of {fits} keys" in made


def test_a_tmpfs_that_is_too_small_for_anything(folder: Path) -> None:
    said, left = in_namespace("mount", SMALL, folder, "16k", 5, 60, 10)
    assert f"even max_keys=1 needs {shared.bytes_for(1, 5):,} bytes" in said
    assert left == "[]"


def test_a_container_s_64_mib_hold_the_default(folder: Path) -> None:
    left, made = in_namespace("mount", SMALL, folder, "64M", 2047, 3600, 100_000, 100_000)
    assert left == "['api']"
    assert "2047 per 3600 s" in made


HOLES = """
import os, sys
from nanolimit import RateLimiter, SharedTableError
folder = sys.argv[1]
os.system(f"mount -t tmpfs -o size=4M none {folder}")
limiter = RateLimiter(5, shared="api", max_keys=20_000)
assert limiter.allow("me")
limiter.close()
data = open(folder + "/api", "rb").read()
os.unlink(folder + "/api")
with open(folder + "/api", "wb") as file:
    for offset in range(0, len(data), 4096):
        page = data[offset : offset + 4096]
        if page.strip(b"\\0"):
            file.seek(offset)
            file.write(page)
    file.truncate(len(data))
os.chmod(folder + "/api", 0o600)
with open(folder + "/ballast", "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
try:
    RateLimiter(5, shared="api", max_keys=20_000)
except SharedTableError as error:
    print(error)
"""


def test_holes_in_a_full_tmpfs_are_an_error_and_no_sigbus(folder: Path) -> None:
    (said,) = in_namespace("mount", HOLES, folder)
    assert re.search(
        rf"table '{folder}/api' has holes: [0-9,]+ of its [0-9,]+ bytes have no memory, and 0 are "
        r"free: No space left on device; make room",
        said,
    )


READ_ONLY = """
import os, sys
from nanolimit import RateLimiter, SharedTableError, shared
folder = sys.argv[1]
os.system(f"mount -t tmpfs -o mode=700 none {folder}")
RateLimiter(5, shared="api").close()
os.system(f"mount -o remount,bind,ro {folder}")
for name in ("api", "other"):
    try:
        RateLimiter(5, shared=name)
    except SharedTableError as error:
        print(error)
print(shared.inspect("api").problem)
try:
    shared.remove("api")
except SharedTableError as error:
    print(error)
os.environ["NANOLIMIT_DIR"] = folder + "/missing"
try:
    RateLimiter(5, shared="api")
except SharedTableError as error:
    print(error)
"""


def test_a_read_only_mount(folder: Path) -> None:
    attaching, making, looking, removing, directory = in_namespace("mount", READ_ONLY, folder)
    mend = "mount the file system writable, or set NANOLIMIT_DIR to a directory on a tmpfs"
    assert f"table '{folder}/api' can't be opened: Read-only file system; {mend}" in attaching
    assert f"table '{folder}/other' can't be made: Read-only file system; {mend}" in making
    assert looking == "None"
    assert f"table '{folder}/api' can't be opened: Read-only file system; {mend}" in removing
    assert f"directory '{folder}/missing' can't be used: Read-only file system; {mend}" in directory


def test_a_limit_of_file_sizes(folder: Path) -> None:
    code = """
import resource, signal
from nanolimit import RateLimiter, SharedTableError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    RateLimiter(5, shared="api")
except SharedTableError as error:
    print(error)
"""
    said = python(code).stdout
    assert "can't be made: File too large; ask for a smaller max_keys" in said
    assert not list(folder.iterdir())


def test_no_descriptor_to_be_had(folder: Path) -> None:
    def work() -> str:
        import resource

        RateLimiter(3, shared="api").close()
        used = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))
        with contextlib.suppress(OSError):
            while True:
                os.open("/dev/null", os.O_RDONLY)
        return refused()

    said = in_child(work)
    assert "Too many open files; close files that are not needed" in said, said


def test_no_table_can_be_so_large() -> None:
    for max_keys in (0, -1, 2**30 + 1, 10**40):
        with pytest.raises(ValueError, match=r"max_keys must be from 1 to 2\*\*30 for a shared"):
            RateLimiter(3, shared="api", max_keys=max_keys)


# Without a name


def test_memory_that_the_machine_has_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would find it by killing somebody."""
    assert 1 << 20 < table._available_bytes() < 1 << 50
    with pytest.raises(SharedTableError) as caught:
        monkeypatch.setattr(table, "_available_bytes", lambda: 1_000_000)
        RateLimiter(5, shared=True)
    told = re.fullmatch(
        "a table for max_keys=100000 needs [0-9,]+ bytes, and this machine has 1,000,000 free: "
        "max_keys=([0-9]+) fits; or make room, or .*",
        str(caught.value),
    )
    assert told is not None, caught.value
    RateLimiter(5, shared=True, max_keys=int(told[1])).close()
    assert not place._handles


def test_memory_without_a_name_is_sealed() -> None:
    with RateLimiter(3, shared=True) as limiter:
        assert limiter.allow("me")
        for each in Path("/proc/self/fd").iterdir():
            try:
                target = str(each.readlink())
            except OSError:
                continue
            if "memfd:nanolimit" in target:
                seals = fcntl.fcntl(int(each.name), fcntl.F_GET_SEALS)
                assert seals & fcntl.F_SEAL_SHRINK
                assert seals & fcntl.F_SEAL_GROW
                break
        else:
            pytest.fail("the table's descriptor was not found")
