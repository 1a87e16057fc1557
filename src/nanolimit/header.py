"""The header of a shared table's file: what it must say before the core may map the rest.

A file that is no table, or one of another version of nanolimit, is told by its first bytes and
never written to. Of a table of this version every field must be in its range and agree with the
others; the first that is not is named.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from nanolimit import _core
from nanolimit.algorithm import ALGORITHMS, DEFAULT, most
from nanolimit.clock import shown
from nanolimit.errors import SharedTableError
from nanolimit.quota import MAX_WINDOW_NS, MIN_WINDOW_NS, Quota

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nanolimit.place import Handle, Place

MAX_KEYS = 1 << 30

# What the core writes. The first two mean the same in every version.
MAGIC = b"nanolim\0"
_BYTE_ORDER = 0x01020304
_WORD_BYTES = struct.calcsize("P")
READY = 1  # 0: it is still being laid out
REPLACED = 2


class Config(NamedTuple):
    """What a table is laid out for, and the limit in force."""

    quota: Quota
    max_keys: int
    typical: int
    own_clock: bool
    algorithm: str
    number: int = 0
    quotas: int = 1
    max_limit: int = 0  # the largest limit that there is room for, if above the one in force
    max_log: int = 0  # 0: there is no bound
    track_top: int = 0  # how many of the keys that are denied most there is room for

    @property
    def layout_limit(self) -> int:
        """The limit that it is laid out for."""
        return max(self.quota.limit, self.max_limit)

    @property
    def file_bytes(self) -> int:
        """The size of its file. ValueError: no table can be so large."""
        return _core.table_bytes(
            limit=self.layout_limit,
            window_ns=self.quota.window_ns,
            max_keys=self.max_keys,
            typical=self.typical,
            algorithm=self.algorithm,
            max_log=self.max_log,
            track_top=self.track_top,
        )


def fault(place: Place, field: str, value: object, expected: object, mend: str = "") -> NoReturn:
    """Raise the SharedTableError of a field that is not what it must be."""
    raise SharedTableError(
        f"table {place.path!r} can't be used: its {field} is {shown(value)}, expected {expected}; "
        f"{mend or f'it is damaged: remove it ({place.rm}), and its counts with it'}"
    )


def read_header(place: Place, handle: Handle, status: os.stat_result) -> Mapping[str, Any]:
    """Read the header of a file, and refuse it if this version did not write it.

    Such a file is never changed, whatever on_mismatch says.
    """
    magic = os.pread(handle.fd, len(MAGIC), 0)
    if magic != MAGIC:
        fault(
            place, "magic", magic, repr(MAGIC),
            "it is no table of nanolimit; give another name, or move it away",
        )  # fmt: skip
    try:
        header: Mapping[str, Any] = _core.read_header(handle.fd)
    except ValueError:
        fault(place, "size", status.st_size, f"at least the header's {_core.HEADER_BYTES} bytes")
    version = header["version"]
    if version != _core.LAYOUT_VERSION:
        if version == int.from_bytes(_core.LAYOUT_VERSION.to_bytes(4, "little"), "big"):
            fault(
                place, "byte order", "swapped", "this machine's",
                f"a machine of another kind made it: give another name, or remove it ({place.rm})",
            )  # fmt: skip
        fault(
            place, "layout version", version, _core.LAYOUT_VERSION,
            f"another version of nanolimit made it; go on with that one, or remove the table "
            f"({place.rm}), and its counts with it",
        )  # fmt: skip
    for field, expected in (
        ("byte_order", _BYTE_ORDER),
        ("word_bytes", _WORD_BYTES),
        ("page_bytes", os.sysconf("SC_PAGESIZE")),
        ("header_bytes", _core.HEADER_BYTES),
    ):
        if header[field] != expected:
            fault(place, field, header[field], expected)
    return header


def _number(place: Place, header: Mapping[str, Any], field: str, low: int, high: int) -> int:
    value = header[field]
    if not isinstance(value, int) or not low <= value <= high:
        fault(place, field, value, f"{low} to {high}")
    return value


def checked_config(place: Place, header: Mapping[str, Any], status: os.stat_result) -> Config:
    """Return what a header says that its table was laid out for.

    Every field is in its range, agrees with the others, and with the file's size.
    """
    window_ns = _number(place, header, "window_ns", MIN_WINDOW_NS, MAX_WINDOW_NS)
    algorithm = header["algorithm"]
    if algorithm not in ALGORITHMS:
        fault(place, "algorithm", algorithm, f"a number below {len(ALGORITHMS)}")
    layout_limit = _number(place, header, "layout_limit", 1, most(algorithm))
    limit = _number(place, header, "limit", 1, most(algorithm))
    max_keys = _number(place, header, "max_keys", 1, MAX_KEYS)
    typical = _number(place, header, "typical", 1, layout_limit)
    max_log: int = header["max_log"]
    if max_log:
        if algorithm != DEFAULT:
            fault(place, "max_log", max_log, f"0 with algorithm {algorithm!r}")
        max_log = _number(place, header, "max_log", _core.MAX_LOG_LEAST, layout_limit)
    track_top = _number(place, header, "track_top", 0, _core.MAX_TRACK_TOP)
    if status.st_size != header["file_bytes"]:
        fault(place, "size", status.st_size, f"{header['file_bytes']} bytes")
    if header["intact"] is not True:
        fault(place, "digest", "another", "that of its other fields")
    # The limit may have changed since it was laid out; the layout has not.
    if not _core.has_room(layout_limit, limit, window_ns, algorithm, max_log):
        fault(place, "limit", limit, f"one for which a layout for {layout_limit} has room")
    laid_out = Config(
        Quota._of(layout_limit, window_ns),
        max_keys,
        typical,
        header["own_clock"] is True,
        algorithm,
        header["number"],
        header["quotas"],
        max_log=max_log,
        track_top=track_top,
    )
    try:
        file_bytes = laid_out.file_bytes
    except ValueError:
        fault(place, "max_keys", max_keys, "one that the layout can hold")
    if header["file_bytes"] != file_bytes:
        fault(place, "file_bytes", header["file_bytes"], file_bytes)
    if header["state"] not in (READY, REPLACED):
        fault(place, "state", header["state"], f"{READY} (ready)")
    return laid_out._replace(quota=Quota._of(limit, window_ns), max_limit=layout_limit)


def check_time_namespace(place: Place, header: Mapping[str, Any]) -> None:
    """Refuse a table whose time stamps come from clocks that differ from this process's."""
    own = namespace("time")
    if header["time_namespace"] != own:
        fault(
            place, "time namespace", header["time_namespace"], own,
            f"the clocks of the two differ, so that time stamps can't be shared; run both in "
            f"one, give another name, or remove the table ({place.rm})",
        )  # fmt: skip


# The machine


def boot_id() -> bytes:
    """Return 16 bytes that are another after each start of the kernel."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        return bytes.fromhex(text.strip().replace("-", ""))
    except (OSError, ValueError) as error:
        raise SharedTableError(
            f"which boot this is can't be told, so that counts of the one before would go on: "
            f"mount /proc ({error})"
        ) from None


def namespace(kind: Literal["pid", "time"]) -> int:
    """Return the number of the namespace of that kind; 0 where the kernel has none."""
    try:
        return Path(f"/proc/self/ns/{kind}").stat().st_ino
    except FileNotFoundError:
        return 0
