"""Shared tables from outside: which there are, what they hold, how to remove one, how large one is.

For limiters a shared table is one argument, ``RateLimiter("5/minute", shared="api")``. This is for
those who look after tables; ``nanolimit ls``, ``inspect``, ``rm`` and ``size`` call it. Looking
changes nothing in a table, and who looks does not become one of its users.
"""

from __future__ import annotations

import os
import struct
import uuid
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from nanolimit import _core
from nanolimit.algorithm import checked_algorithm, checked_max_log
from nanolimit.clock import NS_PER_SECOND
from nanolimit.errors import SharedTableError
from nanolimit.header import (
    MAGIC,
    REPLACED,
    boot_id,
    check_time_namespace,
    checked_config,
    read_header,
)
from nanolimit.place import (
    Handle,
    Place,
    check_kind,
    locked,
    open_directory,
    opened,
    own_directory,
    place_of,
    refuse,
)
from nanolimit.process import Process, described
from nanolimit.quota import MAX_QUOTAS, Quota
from nanolimit.table import (
    DENIALS,
    DENIALS_NUMBER,
    RECORDS,
    RECORDS_NUMBER,
    Wanted,
    checked_max_keys,
    checked_typical,
    finish,
    require_platform,
)
from nanolimit.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta

    from nanolimit.algorithm import Algorithm
    from nanolimit.limiter import RateLimiter

__all__ = [
    "Process",
    "TableInfo",
    "Watch",
    "attach",
    "bytes_for",
    "directory",
    "inspect",
    "remove",
    "tables",
    "watch",
]


# The tables of a limiter that count no quota, by their numbers, and how their names end.
_BESIDE = {RECORDS_NUMBER: RECORDS, DENIALS_NUMBER: DENIALS}


@dataclass(frozen=True)
class TableInfo:
    """What a shared table is and holds, seen from outside: nothing in it was changed.

    Everything after `problem` is None or empty if the file can't be read as a table.
    """

    name: str
    path: str

    bytes: int
    """The size of the file: all the memory that the table takes, now and later."""

    problem: str | None = None
    """Why no limiter can attach to it as it is; None: one can."""

    state: Literal["ready", "replaced", "stale", "unusable"] = "ready"
    """ready: in use or usable. replaced: a new table has taken its name. stale: of another boot,
    so that the next limiter makes it anew. unusable: see `problem`."""

    quota: Quota | None = None

    algorithm: str | None = None
    """How its limiters count: ``"sliding-log"``, ``"gcra"``, ..."""

    max_keys: int | None = None
    typical: int | None = None

    max_log: int | None = None
    """The bound of a key's log that its limiters were given, or None."""

    own_clock: bool | None = None
    """Whether its limiters were given a clock."""

    created: datetime | None = None
    """When it was made, in UTC."""

    keys: int | None = None
    """Slots in use; some may be idle."""

    live_keys: int | None = None
    """Keys that hold a request of their window now. None if its limiters bring their own clock."""

    allowed: int | None = None
    denied: int | None = None
    evicted: int | None = None
    overflowed: int | None = None
    """The counters of all processes, as in `Stats`."""

    stalled: int | None = None
    """Calls that `on_stall` decided, because a stopped process was in the way."""

    log_bytes: int | None = None
    log_capacity_bytes: int | None = None
    """Memory for logs that are too long for a slot: in use, and in all."""

    processes: tuple[Process, ...] = ()
    """Who has it open; one that has two limiters on it stands here twice. What they run is told
    by `inspect` alone."""

    layout_version: int | None = None
    """The version of the layout; a nanolimit of another one can't use it."""

    boot_id: str | None = None
    """Which start of the machine it is of, as in ``/proc/sys/kernel/random/boot_id``."""

    pid_namespace: int | None = None
    time_namespace: int | None = None
    """The numbers of the namespaces it was made in, as in ``/proc/self/ns``; 0: it had none."""

    max_limit: int | None = None
    """The limit that it was laid out for: how far `set_limit` may go, or a little more."""

    track_top: int | None = None
    """How many of the keys that are denied most it has room for; they are kept by those of its
    limiters that were made with `track_top`."""

    number: int | None = None
    """Which of its limiter's quotas it counts, from 0 on. None for the table of what else there is
    of its keys: blocks, penalties, quotas of their own; and for that of what a Redis has refused
    (docs/distributed.md)."""

    keeps_denials: bool = False
    """Whether it keeps what a Redis has refused to this machine's limiters, for a second."""

    part_of: str | None = None
    """The name of the limiter's first table, where this is a further one of it: ``"api"`` for
    ``api.2``, which counts the second quota, for ``api.records`` and ``api.denials``."""

    parts: tuple[TableInfo, ...] = ()
    """The further tables of the limiter whose first one this is."""

    missing_parts: tuple[str, ...] = ()
    """Names of those that are not there, though they should be: their counts are lost, and the
    next limiter makes them anew."""

    _quotas: int = field(default=1, repr=False)  # how many its limiter has

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """The limiter's quotas, as far as their tables are there; empty where `quota` is None."""
        every = (self, *self.parts)
        return tuple(each.quota for each in every if each.quota and each.number is not None)

    @property
    def problems(self) -> tuple[str, ...]:
        """Why no limiter can attach to it: its own problem, and those of its parts."""
        every = (self, *self.parts)
        return tuple(each.problem for each in every if each.problem)


def directory() -> Path:
    """Return where tables that are called by a bare name lie: it need not exist.

    Raises:
        SharedTableError: NANOLIMIT_DIR is no absolute path.
    """
    return own_directory()[0]


def inspect(name: str | os.PathLike[str]) -> TableInfo:
    """Look at a table. Nothing in it is changed, and the caller does not become one of its users.

    Args:
        name: The name or the path, as for `RateLimiter`.

    Returns:
        What it is and holds. For a file that is damaged or no table, `problem` says why.

    Raises:
        TypeError: `name` is neither a name nor a path.
        ValueError: It is a name that no table can have.
        SharedTableError: There is no such file, or the caller may not read it; or this platform
            has no shared tables.
    """
    require_platform()
    place = place_of(name)
    with open_directory(place) as folder:
        table = _inspected(folder, place, described)
        parts = {}
        for part in _part_names(table):
            try:
                parts[part] = _inspected(folder, place._replace(name=part), described)
            except SharedTableError:
                continue  # it is not there, or not to be read
        return _with_parts(table, parts)


def tables() -> list[TableInfo]:
    """Look at all tables in ``$NANOLIMIT_DIR``, or in ``/dev/shm/nanolimit-<uid>``.

    Files that are damaged, no tables or not readable are among them; their `problem` says why.

    Raises:
        SharedTableError: The directory can't be read; or this platform has no shared tables.
    """
    require_platform()
    path, kind = own_directory()
    place = Place(path, "", kind)
    if not os.path.lexists(path):
        return []
    found = []
    with open_directory(place) as folder:
        try:
            with Handle(os.open(".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder.fd)) as own:
                names = sorted(os.listdir(own.fd))  # noqa: PTH208 (of a descriptor)
        except OSError as error:
            refuse(f"directory {str(path)!r} can't be read", error)
        for name in names:
            if not name.startswith("."):
                each = place._replace(name=name)
                try:
                    found.append(_inspected(folder, each))
                except SharedTableError as error:
                    # It may be gone since it was listed.
                    try:
                        size = os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_size
                    except FileNotFoundError:
                        continue
                    found.append(TableInfo(name, each.path, size, str(error), "unusable"))
    by_name = {table.name: table for table in found}
    found = [_with_parts(table, by_name) for table in found]
    first_of = {part.name: table.name for table in found for part in table.parts}
    return [replace(table, part_of=first_of.get(table.name, table.part_of)) for table in found]


def _part_names(table: TableInfo) -> list[str]:
    """What the further tables of a limiter are called; those of `_BESIDE` need not be there."""
    if table.number != 0:
        return []
    return [
        *(f"{table.name}.{number + 1}" for number in range(1, table._quotas)),
        *(f"{table.name}.{ending}" for ending in _BESIDE.values()),
    ]


def _with_parts(table: TableInfo, others: Mapping[str, TableInfo]) -> TableInfo:
    """The table with those that belong to it, of the others of its directory."""
    parts, missing = [], []
    for name in _part_names(table):
        part = others.get(name)
        # One that can't be read stands in the limiter's way, whatever it is.
        if part is not None and (part.quota is None or part.part_of == table.name):
            parts.append(replace(part, part_of=table.name))
        elif name.removeprefix(f"{table.name}.") not in _BESIDE.values():
            missing.append(name)
    return replace(table, parts=tuple(parts), missing_parts=tuple(missing))


def _part_of(name: str, number: int) -> str | None:
    """The name of the first table, where a table's own says that it is a further one."""
    ending = f".{_BESIDE.get(number, number + 1)}"
    return name.removesuffix(ending) if number and name.endswith(ending) else None


def _inspected(
    folder: Handle,
    place: Place,
    describe: Callable[[Process, os.stat_result], Process] | None = None,
) -> TableInfo:
    try:
        status = os.stat(place.name, dir_fd=folder.fd, follow_symlinks=False)
    except FileNotFoundError:
        raise SharedTableError(f"there is no table {place.path!r}") from None
    except OSError as error:
        refuse(f"table {place.path!r} can't be read", error)
    try:
        check_kind(place, status)
    except SharedTableError as error:
        return TableInfo(place.name, place.path, status.st_size, str(error), "unusable")
    try:
        handle = opened(folder, place.name, os.O_RDONLY)
    except OSError as error:
        refuse(f"table {place.path!r} can't be read", error)
    with handle:
        status = os.fstat(handle.fd)
        try:
            header = read_header(place, handle, status)
            config = checked_config(place, header, status)
            inside = _inside(place, handle)
            if describe is not None:
                inside["processes"] = tuple(describe(p, status) for p in inside["processes"])
        except SharedTableError as error:
            return TableInfo(place.name, place.path, status.st_size, str(error), "unusable")
        problem: str | None = None
        state: Literal["ready", "replaced", "stale", "unusable"] = "ready"
        if header["state"] == REPLACED:
            state = "replaced"
        elif header["boot_id"] != boot_id():
            state = "stale"
        else:
            try:
                check_time_namespace(place, header)
            except SharedTableError as error:
                problem, state = str(error), "unusable"
        return TableInfo(
            place.name,
            place.path,
            status.st_size,
            problem,
            state,
            quota=config.quota,
            algorithm=config.algorithm,
            max_keys=config.max_keys,
            typical=config.typical,
            max_log=config.max_log or None,
            own_clock=config.own_clock,
            created=_moment(header["created_ns"]),
            layout_version=header["version"],
            boot_id=str(uuid.UUID(bytes=header["boot_id"])),
            pid_namespace=header["pid_namespace"],
            time_namespace=header["time_namespace"],
            max_limit=header["layout_limit"],
            track_top=config.track_top,
            number=None if config.number in _BESIDE else config.number,
            keeps_denials=config.number == DENIALS_NUMBER,
            part_of=_part_of(place.name, config.number),
            _quotas=config.quotas,
            **inside,
        )


def _inside(place: Place, handle: Handle) -> dict[str, Any]:
    """What the core counts in a table without becoming its user."""
    try:
        found = _core.inspect_table(handle.fd)
    except ValueError as error:
        raise SharedTableError(
            f"table {place.path!r} can't be used: {error}; it is damaged: remove it ({place.rm}), "
            f"and its counts with it"
        ) from None
    counted = (
        "keys", "live_keys", "allowed", "denied", "evicted", "overflowed", "stalled",
        "log_bytes", "log_capacity_bytes",
    )  # fmt: skip
    inside = {field: found[field] for field in counted}
    if found["own_clock"]:
        inside["live_keys"] = None  # nobody here knows what time it is
    inside["processes"] = tuple(Process(pid, alive) for _, pid, alive in found["processes"])
    return inside


def _moment(epoch_ns: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(epoch_ns // NS_PER_SECOND, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return None  # the clock was wrong when it was made


def watch(name: str | os.PathLike[str]) -> Watch:
    """Return what looks at a table again and again, at a fixed cost each time.

    Nothing in the table is changed, and the caller does not become one of its users.

    Args:
        name: The name or the path, as for `RateLimiter`.

    Raises:
        TypeError: `name` is neither a name nor a path.
        ValueError: It is a name that no table can have.
        SharedTableError: There is no such table, or it can't be read; or this platform has no
            shared tables.
    """
    return Watch(name)


def attach(name: str | os.PathLike[str]) -> RateLimiter:
    """Return a limiter on a table that is there, whatever it was made for.

    For those who look after tables: to `reset` a key, say. The caller becomes one of the table's
    users until he closes the limiter. No table is made.

    Args:
        name: The name or the path, as for `RateLimiter`.

    Raises:
        TypeError: `name` is neither a name nor a path.
        ValueError: It is a name that no table can have.
        SharedTableError: There is no such table, or it can't be used; or its limiters bring a clock
            of their own, so that nobody here knows the time.
    """
    from nanolimit.limiter import RateLimiter  # here: a limiter needs nothing of this module

    place = place_of(name)
    with watch(name) as seen:
        if seen.own_clock:
            raise SharedTableError(
                f"table {place.path!r} goes by a clock that its limiters bring along: make a "
                f"RateLimiter with that clock"
            )
        info = inspect(name)
        if info.problem is not None:
            raise SharedTableError(info.problem)
        status = Path(place.path).stat()
        mode = status.st_mode & 0o666
        return RateLimiter(
            seen.quotas,
            max_keys=info.max_keys,
            algorithm=cast("Algorithm", seen.algorithm),
            shared=name if isinstance(name, str) else Path(name),
            on_mismatch="adopt",
            mode=mode,
            group=status.st_gid if mode & 0o060 and place.kind != "default" else None,
        )


def remove(name: str | os.PathLike[str], force: bool = False) -> None:
    """Remove a table and its counts. The next limiter that asks for it makes it anew.

    Args:
        name: The name or the path, as for `RateLimiter`.
        force: Remove it although processes use it. They go on with the old table, apart from
            those that come later, until they are restarted.

    Raises:
        TypeError: `name` is neither a name nor a path.
        ValueError: It is a name that no table can have.
        SharedTableError: There is no such file, it is no table of nanolimit, the caller may not
            remove it, or processes use it and `force` is not given; or this platform has no
            shared tables.
    """
    require_platform()
    place = place_of(name)
    others = range(_remove(place, force) - 1, 0, -1)
    for number, ending in _BESIDE.items():
        try:
            _remove(place._replace(name=f"{place.name}.{ending}"), force, number)
        except FileNotFoundError:
            continue
    for number in others:
        # Of a limiter with several quotas, which has a table for each.
        try:
            _remove(place._replace(name=f"{place.name}.{number + 1}"), force, number)
        except FileNotFoundError:
            continue


def _remove(place: Place, force: bool, number: int = 0) -> int:
    """Remove one table, if it is that of the quota of this number; return of how many.

    Raises:
        FileNotFoundError: One for a quota beyond the first is not there, or is another limiter's.
    """
    with open_directory(place) as folder, locked(folder, place):
        try:
            status = os.stat(place.name, dir_fd=folder.fd, follow_symlinks=False)
            check_kind(place, status)
            handle = opened(folder, place.name, os.O_RDWR)
        except FileNotFoundError:
            if number:
                raise
            raise SharedTableError(f"there is no table {place.path!r}") from None
        except OSError as error:
            refuse(f"table {place.path!r} can't be opened", error)
        with handle:
            quotas = 1
            if _is_ours(place, handle):
                header = read_header(place, handle, os.fstat(handle.fd))
                quotas = header["quotas"]
                if number and header["number"] != number:
                    raise FileNotFoundError(place.path)
            if os.pread(handle.fd, len(MAGIC), 0) != MAGIC:
                raise SharedTableError(
                    f"{place.path!r} is no table of nanolimit: if it is to go, remove it by hand"
                )
            if not force and _is_in_use(handle):
                raise SharedTableError(
                    f"table {place.path!r} is in use{_users(place, handle)}: stop them first; or "
                    f"remove it all the same ({place.rm} --force), and they count apart until "
                    f"they are restarted"
                )
            try:
                # Who has opened it and not yet mapped it, sees that it has no name any more.
                os.unlink(place.name, dir_fd=folder.fd)
            except OSError as error:
                refuse(f"table {place.path!r} can't be removed", error)
            if _is_ours(place, handle):
                _core.mark_replaced(handle.fd)
        try:
            finish(folder, place)
        except SharedTableError:
            pass  # that name is somebody else's, and no part of the table
    return quotas if quotas <= MAX_QUOTAS else 1


def _is_ours(place: Place, handle: Handle) -> bool:
    try:
        header = read_header(place, handle, os.fstat(handle.fd))
    except SharedTableError:
        return False
    return header["intact"] is True


# struct flock of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")


def _is_in_use(handle: Handle) -> bool:
    """Whether any process is alive that has it open.

    Each locks a byte past the end of the file, so this needs nothing of the inside, which may be
    damaged or of another version.
    """
    import fcntl  # not at the top: Windows has none

    size = os.fstat(handle.fd).st_size
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, size, 0, 0)
    answer = fcntl.fcntl(handle.fd, fcntl.F_OFD_GETLK, asked)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _users(place: Place, handle: Handle) -> str:
    try:
        found = _inside(place, handle)["processes"]
    except (SharedTableError, KeyError):
        return ""
    assert isinstance(found, tuple)
    pids = sorted({process.pid for process in found if process.alive})
    more = f" and {len(pids) - 10} more" if len(pids) > 10 else ""
    return f" by {', '.join(map(str, pids[:10]))}{more}" if pids else ""


def bytes_for(
    keys: int,
    limit: int,
    per: float | timedelta = 60.0,
    typical: int | None = None,
    algorithm: Algorithm = "sliding-log",
    max_log: int | None = None,
) -> int:
    """Return how many bytes the table of so many keys takes, all of them at once.

    Args:
        keys: Its `max_keys`: how many keys may be live at a time, 1 to 2**30.
        limit: Units that fit into one window.
        per: The length of the window.
        typical: Requests that a live key holds on average. The limit, but at most 32, when left
            out; 26 at most where the limit is above 2,047.
        algorithm: How its limiters count. All but the sliding log need a slot a key, no more.
        max_log: Its limiters' `max_log`.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or no table can be so large.
    """
    quota = Quota(limit, per)
    algorithm = checked_algorithm(algorithm)
    bound = checked_max_log(max_log, quota.limit, algorithm)
    wanted = Wanted(
        quota,
        checked_max_keys(keys, "keys"),
        checked_typical(typical, quota),
        own_clock=False,
        algorithm=algorithm,
        max_log=bound,
    )
    return wanted.config().file_bytes
