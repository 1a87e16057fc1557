"""Files that are no sound tables: each is refused with the reason, and left as it is."""

from __future__ import annotations

import os
import re
import struct
import uuid
from pathlib import Path
from typing import Any

import pytest

from nanolimit import RateLimiter, SharedTableError, _core
from sharing import FIELDS, field, in_namespace, needs_shared, put_field

pytestmark = needs_shared


@pytest.fixture
def table(folder: Path) -> Path:
    """A table for 3 a minute that has been used."""
    with RateLimiter(3, shared="api", max_keys=100) as limiter:
        assert limiter.allow("me")
    return folder / "api"


def refused(name: str = "api", **options: Any) -> str:
    with pytest.raises(SharedTableError) as caught:
        RateLimiter(3, shared=name, **options)
    return str(caught.value)


def test_the_fields_lie_where_these_tests_look(table: Path) -> None:
    with table.open("rb") as file:
        header = _core.read_header(file.fileno())
    names = [name for name in FIELDS if name not in ("secret", "digest")]
    found = {name: field(table, name) for name in names}
    found["algorithm"] = _core.ALGORITHMS[found["algorithm"]]
    assert found == {name: header[name] for name in names}
    assert header["intact"] is True
    put_field(table, "created_ns", 5)
    with table.open("rb") as file:
        assert _core.read_header(file.fileno())["intact"] is True


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (
            "magic",
            b"NANOLIM\0",
            r"its magic is b'NANOLIM\\x00', expected b'nanolim\\x00'; it is no",
        ),
        ("version", 0, "its layout version is 0, expected 3; another version of nanolimit made it"),
        ("version", 4, "its layout version is 4, expected 3; another version of nanolimit made it"),
        ("version", 3 << 24, "its byte order is 'swapped', expected this machine's"),
        ("byte_order", 0x04030201, "its byte_order is 67305985, expected 16909060"),
        ("word_bytes", 4, "its word_bytes is 4, expected 8"),
        ("page_bytes", 1, "its page_bytes is 1, expected "),
        ("header_bytes", 4097, "its header_bytes is 4097, expected "),
        ("state", 0, r"its state is 0, expected 1 \(ready\)"),
        ("state", 3, r"its state is 3, expected 1 \(ready\)"),
        ("file_bytes", 4096, "its size is [0-9]+, expected 4096 bytes"),
        ("window_ns", 999, "its window_ns is 999, expected 1000 to 315576000000000000"),
        ("window_ns", 2**63, "its window_ns is 9223372036854775808, expected "),
        ("max_keys", 0, r"its max_keys is 0, expected 1 to 1073741824"),
        ("max_keys", 2**30 + 1, r"its max_keys is 1073741825, expected 1 to 1073741824"),
        ("max_keys", 10**6, "its file_bytes is [0-9]+, expected [0-9]+"),
        ("layout_limit", 0, "its layout_limit is 0, expected 1 to 16777216"),
        ("layout_limit", 2**24 + 1, "its layout_limit is 16777217, expected 1 to 16777216"),
        ("max_log", 2, "its max_log is 2, expected 16 to 3"),
        ("track_top", 1001, "its track_top is 1001, expected 0 to 1000"),
        ("track_top", 500, "its file_bytes is [0-9]+, expected [0-9]+"),
        ("layout_limit", 2, "its typical is 3, expected 1 to 2"),
        ("typical", 0, "its typical is 0, expected 1 to 3"),
        ("algorithm", 4, "its algorithm is 4, expected a number below 4"),
        ("typical", 4, "its typical is 4, expected 1 to 3"),
    ],
)
@pytest.mark.parametrize("on_mismatch", ["error", "adopt", "replace"])
def test_a_field_that_cannot_be(
    table: Path, name: str, value: Any, says: str, on_mismatch: str
) -> None:
    put_field(table, name, value)
    before = table.read_bytes()
    said = refused(on_mismatch=on_mismatch)
    assert re.search(says, said), said
    assert said.startswith(f"table '{table}' can't be used: ")
    if name == "magic":
        assert "give another name" in said
    else:
        assert f"nanolimit rm {table}" in said
    assert table.read_bytes() == before


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("magic", "version")])
def test_a_bit_that_turned_anywhere_in_the_header(table: Path, name: str) -> None:
    offset, form = FIELDS[name]
    sound = table.read_bytes()
    for byte in range(offset, offset + struct.calcsize(form)):
        damaged = bytearray(sound)
        damaged[byte] ^= 1 << (byte % 8)
        if name == "state" and damaged[28:32] == struct.pack("=I", 2):
            continue  # "replaced", which is sound
        table.write_bytes(damaged)
        said = refused()
        assert "it is damaged" in said, (name, byte, said)
        assert table.read_bytes() == damaged


def test_the_limit_in_force_must_fit_the_layout(table: Path) -> None:
    with table.open("rb") as file:
        assert _core.read_header(file.fileno())["limit"] == 3
    data = bytearray(table.read_bytes())
    # It lies in the head, not in the header: found by changing it by way of a limiter.
    with RateLimiter(4, shared="api", on_mismatch="replace"):
        pass
    changed = table.read_bytes()
    places = [i for i in range(4096, len(data)) if data[i] == 3 and changed[i] == 4]
    for offset in places:
        damaged = bytearray(changed)
        damaged[offset : offset + 4] = struct.pack("=I", 2040)
        table.write_bytes(damaged)
        with table.open("rb") as file:
            if _core.read_header(file.fileno())["limit"] == 2040:
                break
    else:
        pytest.fail("the limit in force was not found")
    assert "its limit is 2040, expected one for which a layout for 3 has room" in refused()
    damaged[offset : offset + 4] = bytes(4)
    table.write_bytes(damaged)
    assert "its limit is 0, expected 1 to 16777216" in refused()


@pytest.mark.parametrize("kept", [0, 1, 7])
def test_a_file_too_short_to_be_anything(table: Path, kept: int) -> None:
    os.truncate(table, kept)
    assert "its magic is b" in refused()
    assert table.stat().st_size == kept


@pytest.mark.parametrize("kept", [8, 100, 4096, -1])
def test_a_truncated_table(table: Path, kept: int) -> None:
    whole = table.stat().st_size
    kept = kept if kept > 0 else whole - 1
    os.truncate(table, kept)
    said = refused(on_mismatch="replace")
    assert f"its size is {kept}, expected " in said
    assert f"nanolimit rm {table}" in said
    assert table.stat().st_size == kept


def test_a_grown_table(table: Path) -> None:
    whole = table.stat().st_size
    os.truncate(table, whole + 1)
    assert f"its size is {whole + 1}, expected {whole} bytes" in refused()


@pytest.mark.parametrize(
    "content", [b"", b"#!/bin/sh\n", b"SQLite format 3\0" + bytes(5000), os.urandom(100_000)]
)
@pytest.mark.parametrize("on_mismatch", ["error", "adopt", "replace"])
def test_a_file_of_somebody_else_is_never_touched(
    folder: Path, content: bytes, on_mismatch: str
) -> None:
    path = folder / "api"
    path.write_bytes(content)
    path.chmod(0o600)
    before = path.stat()
    said = refused(on_mismatch=on_mismatch)
    assert "it is no table of nanolimit; give another name, or move it away" in said
    assert path.read_bytes() == content
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [each.name for each in folder.iterdir()] == ["api"]


def test_another_boot_makes_it_anew(table: Path) -> None:
    put_field(table, "boot_id", uuid.uuid4().bytes)
    inode = table.stat().st_ino
    with RateLimiter(3, shared="api") as limiter:
        assert limiter.stats()[:3] == (0, 0, 0)
        assert "me" not in limiter
        assert limiter._max_keys == 100_000  # what it asks for, not what the old one had
    assert table.stat().st_ino != inode
    assert list(table.parent.iterdir()) == [table]


def test_another_boot_does_not_excuse_another_version(table: Path) -> None:
    put_field(table, "boot_id", uuid.uuid4().bytes)
    put_field(table, "version", 4)
    before = table.read_bytes()
    assert "another version of nanolimit made it" in refused(on_mismatch="replace")
    assert table.read_bytes() == before


def test_another_time_namespace_is_refused(table: Path) -> None:
    own = field(table, "time_namespace")
    put_field(table, "time_namespace", own + 1)
    said = refused(on_mismatch="replace")
    assert f"its time namespace is {own + 1}, expected {own}; the clocks of the two differ" in said


def test_a_real_time_namespace_is_refused(table: Path) -> None:
    """As a container with its own idea of the time since the start has one."""
    code = """
from nanolimit import RateLimiter, SharedTableError
try:
    RateLimiter(3, shared="api")
except SharedTableError as error:
    print(error)
RateLimiter(3, shared="other").close()
"""
    (said,) = in_namespace("time", code)
    assert re.search(r"its time namespace is [0-9]+, expected [0-9]+; the clocks of the two", said)
    assert "its time namespace is" in refused("other")


def test_another_pid_namespace_is_fine(table: Path) -> None:
    put_field(table, "pid_namespace", field(table, "pid_namespace") + 1)
    with RateLimiter(3, shared="api") as limiter:
        assert "me" in limiter


def test_a_removed_or_replaced_table_that_still_has_the_name_is_made_anew(table: Path) -> None:
    """Who marked it died before he could unlink it or rename another over it."""
    put_field(table, "state", 2)
    inode = table.stat().st_ino
    with RateLimiter(3, shared="api") as limiter:
        assert "me" not in limiter
    assert table.stat().st_ino != inode


def test_holes_are_filled(table: Path) -> None:
    data = table.read_bytes()
    table.unlink()
    with table.open("wb") as file:  # as `cp --sparse` leaves it
        for offset in range(0, len(data), 4096):
            page = data[offset : offset + 4096]
            if page.strip(b"\0"):
                file.seek(offset)
                file.write(page)
        file.truncate(len(data))
    table.chmod(0o600)
    assert table.stat().st_blocks * 512 < len(data)
    with RateLimiter(3, shared="api") as limiter:
        assert "me" in limiter
        assert table.stat().st_blocks * 512 >= len(data)


def test_the_inside_is_the_core_s_to_refuse(table: Path) -> None:
    """All behind the header page: an error or a limiter that works, never a crash."""
    data = bytearray(table.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    table.write_bytes(data)
    with pytest.raises(SharedTableError):
        RateLimiter(3, shared="api")


# The machine


def test_which_boot_it_is_must_be_known(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the counts of the one before would go on."""
    read_text = Path.read_text

    def unreadable(path: Path, *args: Any, **options: Any) -> str:
        if path.name == "boot_id":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return read_text(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", unreadable)
    said = refused()
    assert "which boot this is can't be told" in said
    assert "mount /proc" in said


def test_a_kernel_without_time_namespaces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = Path.stat

    def missing(path: Path, **options: Any) -> os.stat_result:
        if path.name == "time" and path.parent.name == "ns":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return status(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", missing)
        for _ in range(2):
            RateLimiter(3, shared="api").close()
    assert field(folder / "api", "time_namespace") == 0
    assert "its time namespace is 0, expected " in refused()


def test_a_size_that_the_core_can_t_lay_out(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = _core.table_bytes

    def none(*, max_keys: int, **options: Any) -> int:
        if max_keys == 100:
            raise ValueError("too large")
        return sizes(max_keys=max_keys, **options)

    monkeypatch.setattr(_core, "table_bytes", none)
    assert "its max_keys is 100, expected one that the layout can hold" in refused()
