"""A shared table's file, from the asking to the attaching: found and checked, or made.

What is inside belongs to the core, which lays a table out and maps it. This module gives it a file
descriptor of which everything that can be asked from outside has been asked: directory, owner,
mode, kind, size, and each field of the header. Whatever is wrong is a `SharedTableError` that names
it and says what mends it, and a file that is not ours to replace is never written to.

A table comes into being under a lock on its directory: built aside, as ``.name.new``, allocated
whole, laid out, and then linked into place. So who finds a table by its name finds a whole one, and
of a hundred processes that come at once one builds and all attach to the same. Who dies while it
builds leaves a file that the next one removes.

``shared=True`` is memory without a name, which forked children inherit.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from nanolimit import _core
from nanolimit.algorithm import DEFAULT
from nanolimit.clock import NS_PER_SECOND, shown
from nanolimit.errors import SharedTableError
from nanolimit.header import (
    MAGIC,
    MAX_KEYS,
    REPLACED,
    Config,
    boot_id,
    check_time_namespace,
    checked_config,
    namespace,
    read_header,
)
from nanolimit.place import (
    Handle,
    Place,
    check_kind,
    group_id,
    is_trusted,
    kind_of,
    locked,
    opened,
    place_of,
    quoted,
    refuse,
    spelled,
    trusted_directory,
    trusted_users,
    user,
)
from nanolimit.quota import MAX_QUOTAS, Quota, whole_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

OnMismatch = Literal["error", "adopt", "replace"]

DEFAULT_MAX_KEYS = 100_000

# Every table that has a name has room for so many of the keys that are denied most (core/top.h), 89
# KiB: so that track_top can be turned on, by a rolling deploy, without a new table.
LEAST_TRACK_TOP = 100

# What stands of a limiter's keys besides their logs has a table too (core/record.h). It is no
# quota's, and says so by its number; each record is one that a limit of one unit has.
RECORDS = "records"
RECORDS_NUMBER = MAX_QUOTAS
RECORDS_QUOTA = Quota(1, per=_core.RECORD_WINDOW_NS / NS_PER_SECOND)

# And what a Redis has refused to the limiters of this machine, kept for a second (core/denial.h);
# in records too.
DENIALS = "denials"
DENIALS_NUMBER = MAX_QUOTAS + 1

# Stamps that a live key holds on average, unless the caller knows better: the whole limit where it
# is small, and not more than this of a large one, which few keys use up.
_DEFAULT_TYPICAL = 32
# Above this limit logs are kept in runs, which take twice the room and a little more: so many fill
# 256 bytes (core/run.h).
_MOST_STAMPS = 2047
_DEFAULT_TYPICAL_RUNS = 26

# How often one starts over because others replaced the table in the middle of it.
_ATTEMPTS = 100


class Wanted(NamedTuple):
    """The table that a limiter asks for. None: no opinion, the file's will do."""

    quota: Quota
    max_keys: int | None
    typical: int | None
    own_clock: bool
    algorithm: str = DEFAULT
    number: int = 0  # which of its limiter's quotas it counts
    quotas: int = 1
    max_limit: int | None = None  # the largest limit that it must have room for
    sparse: bool = False  # without a name, and perhaps never used: memory is taken when it is
    max_log: int | None = None
    track_top: int = 0  # how many of the keys that are denied most are to be kept
    named: bool = True

    def config(self) -> Config:
        """Return what a new table is laid out for."""
        typical = self.typical
        if typical is None:
            in_runs = self.max_log is not None or self.quota.limit > _MOST_STAMPS
            typical = min(self.quota.limit, _DEFAULT_TYPICAL_RUNS if in_runs else _DEFAULT_TYPICAL)
        max_keys = DEFAULT_MAX_KEYS if self.max_keys is None else self.max_keys
        return Config(
            self.quota,
            max_keys,
            typical,
            self.own_clock,
            self.algorithm,
            self.number,
            self.quotas,
            self.max_limit or 0,
            self.max_log or 0,
            self._room_for_top(),
        )

    def _room_for_top(self) -> int:
        if self.number:
            return 0  # the first of a limiter's tables keeps them
        return max(self.track_top, LEAST_TRACK_TOP) if self.named else self.track_top


class Access(NamedTuple):
    """Who may use the file, and what happens if it was made for another limit."""

    on_mismatch: OnMismatch = "error"
    mode: int = 0o600
    group: int | str | None = None


class Attached:
    """A table whose file was opened and checked: what the core needs to map it.

    The core duplicates `fd`; leaving the ``with`` block closes it.
    """

    __slots__ = ("_handle", "max_keys", "new_limit", "path", "quota")

    path: str | None  # None for memory without a name
    quota: Quota  # the table's own: the one asked for, unless it was adopted or is to change
    max_keys: int
    new_limit: int | None  # to set once it is mapped, for all who use the table

    def __init__(
        self,
        handle: Handle,
        path: str | None,
        quota: Quota,
        max_keys: int,
        new_limit: int | None = None,
    ) -> None:
        self._handle = handle
        self.path = path
        self.quota = quota
        self.max_keys = max_keys
        self.new_limit = new_limit

    @property
    def fd(self) -> int:
        """The file's descriptor."""
        return self._handle.fd

    def is_replaced(self) -> bool:
        """Say whether it was removed, or another table took its name, since it was checked."""
        return self.path is not None and os.fstat(self.fd).st_nlink == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._handle.close()


def table_name(shared: str | os.PathLike[str]) -> str:
    """Return what a limiter on this table is called if it is given no name: the file's last part.

    Raises:
        TypeError: It is neither a name nor a path.
        ValueError: It is one that no table can have.
    """
    return Path(spelled(shared)[0]).name[:200]


def require_platform() -> None:
    """Raise the SharedTableError of a platform without shared tables."""
    if not _core.SHARED:
        raise SharedTableError(
            "shared= needs Linux: on this platform make a private limiter in each process (leave "
            "shared= out), or count in Redis for all of them"
        )


# Making a table


def attach(
    shared: str | os.PathLike[str] | Literal[True], wanted: Wanted, access: Access
) -> Attached:
    """Open the table that is asked for, and make it if it is not there.

    Raises:
        TypeError: `shared` is no name, path or True.
        ValueError: `shared` is a name that no table can have; or no table can be so large.
        SharedTableError: There is something wrong with the file, its directory or its header; it
            was made for something else and `on_mismatch` is "error"; or this platform has no
            shared tables.
    """
    require_platform()
    if shared is True:
        return _anonymous(wanted._replace(named=False).config(), wanted.sparse)
    place = place_of(shared)
    gid = group_id(access.group)
    if gid is not None and place.kind == "default":
        raise SharedTableError(
            f"group= is of no use in {str(place.directory)!r}, which is private to "
            f"{user(os.geteuid())}: set NANOLIMIT_DIR to a directory that the group can enter, "
            f"or give a path in one"
        )
    with trusted_directory(place, gid, access.mode) as directory:
        for _ in range(_ATTEMPTS):
            found = _look(directory, place, wanted, access, gid, alone=False)
            if isinstance(found, Attached):
                return found
            # Others may have made it by the time that the lock is ours: look again.
            found.close()
            with locked(directory, place):
                finish(directory, place)
                found = _look(directory, place, wanted, access, gid, alone=True)
                if isinstance(found, Attached):
                    return found
                made = _make(directory, place, found, access, gid)
                if made is not None:
                    return made
    raise SharedTableError(
        f"table {place.path!r} was replaced {_ATTEMPTS} times while it was opened: two programs "
        f"take turns with on_mismatch='replace' and different arguments; give both the same"
    )


class _Missing(NamedTuple):
    """A table that must be made: as what, and the file that has its name until then, if any."""

    config: Config
    old: Handle | None

    def close(self) -> None:
        if self.old is not None:
            self.old.close()


def _look(
    directory: Handle,
    place: Place,
    wanted: Wanted,
    access: Access,
    gid: int | None,
    *,
    alone: bool,
) -> Attached | _Missing:
    """Open and check what has the table's name. Changes nothing.

    Args:
        alone: Whether the directory is locked, so that nobody is in the middle of something.

    Returns:
        The table. Or that it must be made, because there is no file, or one of another boot, one
        that was replaced or removed, or one that on_mismatch="replace" has to make anew.
    """
    asked = wanted.config()
    try:
        status = os.stat(place.name, dir_fd=directory.fd, follow_symlinks=False)
        # Asked before it is opened: to open a device or a pipe can do something.
        _check_file(place, status, access, gid)
        handle = opened(directory, place.name, os.O_RDWR)
    except FileNotFoundError:
        return _Missing(asked, None)
    except OSError as error:
        refuse(f"table {place.path!r} can't be opened", error)
    try:
        status = os.fstat(handle.fd)
        _check_file(place, status, access, gid)
        if status.st_nlink != 1 and not (alone and status.st_nlink):
            # Somebody has just removed it, or is about to link it into place: see `_make`.
            handle.close()
            return _Missing(asked, None)
        if status.st_nlink != 1:
            raise SharedTableError(
                f"table {place.path!r} can't be used: it has {status.st_nlink} names (hard "
                f"links), expected 1; remove it ({place.rm}) or the other names"
            )
        header = read_header(place, handle, status)
        config = checked_config(place, header, status)
        if header["state"] == REPLACED or header["boot_id"] != boot_id():
            return _Missing(asked, handle)
        check_time_namespace(place, header)
        new_limit = _settled(place, header, config, wanted, access)
        if new_limit == _REMAKE:
            # The file's max_keys, if the caller has none in mind. But not its `typical`: that of a
            # small limit would leave a larger one short of memory.
            keys = config.max_keys if wanted.max_keys is None else wanted.max_keys
            return _Missing(wanted._replace(max_keys=keys).config(), handle)
        _fill_holes(place, handle, status)
        quota = wanted.quota if config.quota == wanted.quota else config.quota
        return Attached(handle, place.path, quota, config.max_keys, new_limit)
    except BaseException:
        handle.close()
        raise


def finish(directory: Handle, place: Place) -> None:
    """Remove what somebody left who died while he built a table. Under the directory's lock.

    He may have died between linking it into place and taking away its first name.

    Raises:
        SharedTableError: What is there is somebody else's, or the caller may not remove it.
    """
    aside = str(place.directory / place.aside)
    try:
        status = os.stat(place.aside, dir_fd=directory.fd, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise SharedTableError(
                f"{aside!r} is in the way: it is {kind_of(status.st_mode)}; move it away"
            )
        with opened(directory, place.aside, os.O_RDONLY) as left:
            begins = os.pread(left.fd, len(MAGIC), 0)
        # A table that was begun: nothing, zeros, or a header.
        if begins.strip(b"\0") and begins != MAGIC:
            raise SharedTableError(
                f"{aside!r} is in the way: it is no table that was begun; move it away"
            )
        os.unlink(place.aside, dir_fd=directory.fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        refuse(f"{aside!r} is in the way", error)


def _make(
    directory: Handle, place: Place, missing: _Missing, access: Access, gid: int | None
) -> Attached | None:
    """Build a table and put it in place of the old one or of none. Under the directory's lock.

    Returns:
        The new table; None if something else has taken the name meanwhile.
    """
    config, old = missing
    with closing(missing):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            handle = Handle(os.open(place.aside, flags, 0o600, dir_fd=directory.fd))
        except OSError as error:
            refuse(f"table {place.path!r} can't be made", error)
        try:
            # First of all, so that others of the group can remove it should we die here.
            _set_group(place, handle, gid)
            os.fchmod(handle.fd, access.mode)
            _allocate(place, handle, config)
            _format(handle, config)
            if old is None:
                # Unlike a rename, a link never takes the place of something else.
                os.link(place.aside, place.name, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
                os.unlink(place.aside, dir_fd=directory.fd)
            else:
                os.rename(place.aside, place.name, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
                # Who has the old table mapped goes on with it. Who has only opened it sees that it
                # has no name any more, and whoever holds a copy, this.
                _core.mark_replaced(old.fd)
        except BaseException as error:
            handle.close()
            try:
                os.unlink(place.aside, dir_fd=directory.fd)
            except OSError:
                pass  # the next one who builds removes it
            if isinstance(error, FileExistsError):
                return None
            if isinstance(error, OSError):
                refuse(f"table {place.path!r} can't be made", error)
            raise
        return Attached(handle, place.path, config.quota, config.max_keys)


def _set_group(place: Place, handle: Handle, gid: int | None) -> None:
    if gid is None:
        return
    try:
        os.fchown(handle.fd, -1, gid)
    except PermissionError:
        raise SharedTableError(
            f"table {place.path!r} can't be given to group {gid}: {user(os.geteuid())} is no "
            f"member of it; let root make the table, or add the user to the group"
        ) from None


def _allocate(place: Place | None, handle: Handle, config: Config) -> None:
    """Take all of the memory now: a tmpfs that fills up later must not kill who writes to it."""
    size = config.file_bytes
    if place is None and size > _available_bytes():
        # A tmpfs has a bound of its own. Memory without a name ends where the kernel kills.
        _refuse_size(config, "this machine", _available_bytes())
    try:
        os.posix_fallocate(handle.fd, 0, size)
    except OSError as error:
        if error.errno != errno.ENOSPC or place is None:
            raise
        os.ftruncate(handle.fd, 0)
        _refuse_size(config, repr(str(place.directory)), _free_bytes(handle))


def _refuse_size(config: Config, where: str, free: int) -> NoReturn:
    raise SharedTableError(
        f"a table for max_keys={config.max_keys} needs {config.file_bytes:,} bytes, and {where} "
        f"has {free:,} free: {_what_fits(config, free)}"
    )


def _free_bytes(handle: Handle) -> int:
    room = os.fstatvfs(handle.fd)
    return room.f_bavail * room.f_frsize


def _available_bytes() -> int:
    """Return how much memory the kernel could find."""
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return sys.maxsize  # a kernel before 3.14 does not tell


def _what_fits(config: Config, free: int) -> str:
    """Say which `max_keys` a table of so many bytes has room for."""
    low, high = 0, config.max_keys  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        if config._replace(max_keys=middle).file_bytes <= free:
            low = middle
        else:
            high = middle
    larger = "make room, or mount a larger tmpfs (docker run --shm-size)"
    if not low:
        least = config._replace(max_keys=1).file_bytes
        return f"even max_keys=1 needs {least:,} bytes; {larger}"
    # Two digits are enough, and leave some room.
    digits = 10 ** max(0, len(str(low)) - 2)
    return f"max_keys={low // digits * digits} fits; or {larger}"


def _format(handle: Handle, config: Config) -> None:
    _core.format_table(
        handle.fd,
        limit=config.layout_limit,
        in_force=config.quota.limit,
        window_ns=config.quota.window_ns,
        max_keys=config.max_keys,
        typical=config.typical,
        own_clock=config.own_clock,
        boot_id=boot_id(),
        pid_namespace=namespace("pid"),
        time_namespace=namespace("time"),
        number=config.number,
        quotas=config.quotas,
        algorithm=config.algorithm,
        max_log=config.max_log,
        track_top=config.track_top,
    )


def _anonymous(config: Config, sparse: bool) -> Attached:
    """Make a table without a name."""
    import fcntl  # not at the top: Windows has none

    try:
        handle = Handle(
            os.memfd_create("nanolimit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING),
        )
        try:
            if sparse:
                os.ftruncate(handle.fd, config.file_bytes)
            else:
                _allocate(None, handle, config)
            _format(handle, config)
            # Whoever gets the descriptor can't take the mapped pages away.
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(handle.fd, fcntl.F_ADD_SEALS, seals)
        except BaseException:
            handle.close()
            raise
    except OSError as error:
        refuse("shared memory can't be made", error)
    return Attached(handle, None, config.quota, config.max_keys)


def _check_file(place: Place, status: os.stat_result, access: Access, gid: int | None) -> None:
    """Refuse a file that others may have put there or may write to."""
    check_kind(place, status)
    if not is_trusted(status, gid):
        raise SharedTableError(
            f"table {place.path!r} can't be used: its owner is {user(status.st_uid)}, expected "
            f"{trusted_users()}; run as that user, give another name, or share it by "
            f"group= and mode="
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & ~access.mode:
        raise SharedTableError(
            f"table {place.path!r} can't be used: its mode is {mode:#o}, which is wider than "
            f"mode={access.mode:#o}; chmod {access.mode:o} {quoted(place.path)}, or give that mode"
        )
    if gid is not None and status.st_gid != gid:
        raise SharedTableError(
            f"table {place.path!r} can't be used: its group is {status.st_gid}, expected {gid}; "
            f"chgrp {gid} {quoted(place.path)}"
        )


def _fill_holes(place: Place, handle: Handle, status: os.stat_result) -> None:
    """Take the memory of pages that somebody punched out, or that a copy left out.

    Without it a write to one would be a SIGBUS when the tmpfs is full.
    """
    if status.st_blocks * 512 >= status.st_size:
        return
    try:
        os.posix_fallocate(handle.fd, 0, status.st_size)
    except OSError as error:
        missing = status.st_size - status.st_blocks * 512
        refuse(
            f"table {place.path!r} has holes: {missing:,} of its {status.st_size:,} bytes have "
            f"no memory, and {_free_bytes(handle):,} are free",
            error,
        )


# Stands for a limit that can't be set in place: the table must be made anew.
_REMAKE = -1


def _settled(
    place: Place,
    header: Mapping[str, Any],
    config: Config,
    wanted: Wanted,
    access: Access,
) -> int | None:
    """Compare a table with what is asked for, and do as on_mismatch says.

    Returns:
        The limit to set in place, None if there is nothing to change, or _REMAKE.
    """
    asked, have = wanted.quota, config.quota
    differences = []
    if have.limit != asked.limit:
        differences.append(f"limit is {have.limit}, asked for {asked.limit}")
    if have.window_ns != asked.window_ns:
        differences.append(f"per is {have.per!r}, asked for {asked.per!r}")
    if wanted.max_keys is not None and config.max_keys != wanted.max_keys:
        differences.append(f"max_keys is {config.max_keys}, asked for {wanted.max_keys}")
    if wanted.typical is not None and config.typical != wanted.typical:
        differences.append(f"typical is {config.typical}, asked for {wanted.typical}")
    if config.algorithm != wanted.algorithm:
        differences.append(f"algorithm is {config.algorithm!r}, asked for {wanted.algorithm!r}")
    if wanted.max_log is not None and config.max_log != wanted.max_log:
        differences.append(f"max_log is {config.max_log or None}, asked for {wanted.max_log}")
    if config.track_top < wanted.track_top:
        differences.append(f"track_top is {config.track_top} at most, asked for {wanted.track_top}")
    clocks = ("the system's", "one of its own")
    if config.own_clock != wanted.own_clock:
        differences.append(
            f"clock is {clocks[config.own_clock]}, asked for {clocks[wanted.own_clock]}"
        )
    if (config.number, config.quotas) != (wanted.number, wanted.quotas):
        differences.append(
            f"quota is number {config.number + 1} of {config.quotas}, "
            f"asked for {wanted.number + 1} of {wanted.quotas}"
        )
    if wanted.max_limit is not None and not _core.has_room(
        header["layout_limit"],
        wanted.max_limit,
        have.window_ns,
        config.algorithm,
        config.max_log,
    ):
        differences.append(f"max_limit is {header['layout_limit']}, asked for {wanted.max_limit}")
    if not differences:
        return None
    if access.on_mismatch == "replace":
        limit_only = len(differences) == 1 and have.limit != asked.limit
        if limit_only and _core.has_room(
            header["layout_limit"],
            asked.limit,
            asked.window_ns,
            config.algorithm,
            config.max_log,
        ):
            return asked.limit
        return _REMAKE
    # The stamps of one clock mean nothing to another; nor does one quota to another.
    adoptable = (config.own_clock, config.number, config.quotas) == (
        wanted.own_clock,
        wanted.number,
        wanted.quotas,
    )
    if access.on_mismatch == "adopt" and adoptable:
        return None
    adopt = "on_mismatch='adopt' takes the table as it is, " if adoptable else ""
    raise SharedTableError(
        f"table {place.path!r} was made for something else: its {'; its '.join(differences)}. "
        f"{adopt}on_mismatch='replace' changes it for all, and {place.rm} removes it and its "
        f"counts"
    )


def checked_max_keys(value: object, parameter: str = "max_keys") -> int:
    """Return `value` as the number of keys of a shared table.

    Raises:
        TypeError: It is no int.
        ValueError: It is out of range.
    """
    number = whole_number(parameter, value)
    if not 1 <= number <= MAX_KEYS:
        raise ValueError(
            f"{parameter} must be from 1 to 2**30 for a shared table, not {shown(number)}"
        )
    return number


def checked_typical(value: object, quota: Quota) -> int | None:
    """Return `value` as the number of stamps that a key of this quota holds on average.

    Raises:
        TypeError: It is no int.
        ValueError: It is out of range.
    """
    if value is None:
        return None
    number = whole_number("typical", value)
    if not 1 <= number <= quota.limit:
        raise ValueError(
            f"typical must be from 1 to the limit of {quota.limit}, not {shown(number)}"
        )
    return number
