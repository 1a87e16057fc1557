"""Where a shared table's file lies: its directory, who is to be trusted there, and the lock on it.

A bare name lies in ``$NANOLIMIT_DIR``, else in ``/dev/shm/nanolimit-<uid>``: one place for each
user, so that counts never split. A path is a path. Once a directory is open and was checked, all
goes by its handle: whoever renames or replaces it meanwhile puts nothing of his in between.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import time
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from nanolimit.clock import shown
from nanolimit.errors import SharedTableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_UNSAFE = re.compile(r"[^A-Za-z0-9]+")
_MOST_OF_A_NAME = 40
_MEMORY = "/dev/shm"

# How long one waits for others that build a table in the same directory. Building takes
# milliseconds; a gigabyte takes about a second.
_LOCK_TIMEOUT_S = 10.0
_LOCK_POLL_S = 0.002


class Handle:
    """A file descriptor that is closed for sure, also in a child that another thread forks.

    Such a child would hold the lock on the directory as long as it lives, and knows nothing of it.
    """

    __slots__ = ("fd", "thread")

    fd: int
    thread: int

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.thread = threading.get_ident()
        _handles.add(self)

    def close(self) -> None:
        _handles.discard(self)
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_handles: set[Handle] = set()


def _close_handles() -> None:
    # Those of the thread that forked go on here: it may have forked in a signal handler.
    for handle in [each for each in _handles if each.thread != threading.get_ident()]:
        handle.close()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_close_handles)


class Place(NamedTuple):
    """A directory, and a file in it."""

    directory: Path
    name: str
    # Whose directory it is: nanolimit's own default, the one that NANOLIMIT_DIR names, or that of
    # a path. Only the first two are made if they are missing.
    kind: Literal["default", "variable", "path"]

    @property
    def path(self) -> str:
        """The whole path of the file."""
        return str(self.directory / self.name)

    @property
    def aside(self) -> str:
        """Where it is built. No name begins with a dot, so no table is in the way."""
        return f".{self.name}.new"

    @property
    def rm(self) -> str:
        """The command that removes the table, whoever types it and wherever."""
        return f"nanolimit rm {quoted(self.path)}"


def own_directory() -> tuple[Path, Literal["default", "variable"]]:
    """Return the directory of tables that are called by a bare name."""
    named = os.environ.get("NANOLIMIT_DIR")
    if not named:
        return Path(f"{_MEMORY}/nanolimit-{os.geteuid()}"), "default"
    if not Path(named).is_absolute():
        raise SharedTableError(
            f"NANOLIMIT_DIR must be an absolute path, not {shown(named)}: processes that start "
            f"elsewhere would count apart"
        )
    return Path(named), "variable"


def spelled(shared: object) -> tuple[str, bool]:
    """Return the text of a name or path, and whether it is a path.

    Raises:
        TypeError: It is neither.
        ValueError: It is one that no table can have.
    """
    if isinstance(shared, str):
        text, is_path = shared, "/" in shared
    elif isinstance(shared, os.PathLike):
        text, is_path = os.fspath(shared), True
        if not isinstance(text, str):
            raise TypeError(f"shared must be a path of str, not of {type(text).__name__}")
    else:
        raise TypeError(
            f"shared must be a name, a path or True, not {type(shared).__name__} {shown(shared)}"
        )
    if is_path:
        if "\0" in text or text.endswith(("/", "/.")) or Path(text).name in ("", ".."):
            raise ValueError(f"shared must be the path of a file, not {shown(text)}")
    elif not _NAME.fullmatch(text):
        raise ValueError(
            f"shared must be a name of 1 to 200 letters, digits, '.', '_' and '-' that does "
            f"not begin with '.', or a path with a '/', not {shown(text)}"
        )
    return text, is_path


def place_of(shared: str | os.PathLike[str]) -> Place:
    """Return where the table of a name or path lies.

    Raises:
        TypeError: It is neither.
        ValueError: It is one that no table can have.
        SharedTableError: NANOLIMIT_DIR is no absolute path.
    """
    text, is_path = spelled(shared)
    if not is_path:
        directory, kind = own_directory()
        return Place(directory, text, kind)
    path = Path(text)
    # Made absolute, but not otherwise: '..' after a symbolic link is not what it seems.
    directory = path.parent if path.is_absolute() else Path.cwd() / path.parent
    return Place(directory, path.name, "path")


def more_of(shared: str | os.PathLike[str], what: int | str) -> str | Path:
    """Return the name or path of a limiter's table besides its first one.

    That of its quota of the number `what`, from 1 on; or that of what else there is of its keys.
    """
    text, is_path = spelled(shared)
    text += f".{what if isinstance(what, str) else what + 1}"
    return Path(text) if is_path else text


def table_of(shared: Any, what: str) -> Any:
    """Return the name or path of the table that stands beside `shared` for this purpose."""
    if shared is True:
        return True
    text = _UNSAFE.sub("-", what).strip("-")[:_MOST_OF_A_NAME]
    if text != what:  # two texts may be alike but for their punctuation
        text = f"{text}-{zlib.crc32(what.encode()):08x}"
    return more_of(shared, text)


def group_id(group: int | str | None) -> int | None:
    """Return the number of a group that is given by name or number.

    Raises:
        SharedTableError: There is no such group here.
    """
    if not isinstance(group, str):
        return group
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise SharedTableError(
            f"there is no group {shown(group)} here: make it (groupadd {quoted(group)}), or give "
            f"another name or a number"
        ) from None


# Directories


def open_directory(place: Place) -> Handle:
    """Open the directory of a table. All that follows goes by the handle.

    So whoever renames or replaces the directory meanwhile puts nothing of his in between.
    """
    # O_PATH: to attach one must be able to pass through the directory, not to read it.
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return Handle(os.open(place.directory, flags))
    except OSError as error:
        _refuse_directory(place, error)


def trusted_directory(place: Place, gid: int | None, mode: int) -> Handle:
    """Open the directory of a table that is to be trusted. nanolimit's own is made if need be."""
    if place.kind != "path" and not os.path.lexists(place.directory):
        try:
            _make_directory(place.directory, gid, mode)
        except OSError as error:
            _refuse_directory(place, error)
    directory = open_directory(place)
    try:
        _check_directory(place, os.fstat(directory.fd), gid)
    except BaseException:
        directory.close()
        raise
    return directory


def _make_directory(path: Path, gid: int | None, mode: int) -> None:
    try:
        path.mkdir(0o700)
    except FileExistsError:
        return  # another process was faster, and opens it to others if it must be
    if gid is None:
        return
    with Handle(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)) as own:
        os.fchown(own.fd, -1, gid)
        # Who may write to tables may make them too, and replace them.
        group, others = 0o070 if mode & 0o060 else 0, 0o005 if mode & 0o006 else 0
        os.fchmod(own.fd, 0o700 | group | others)


def _refuse_directory(place: Place, error: OSError) -> NoReturn:
    path, parent = str(place.directory), place.directory.parent
    if error.errno in (errno.ENOTDIR, errno.ELOOP) and place.directory.is_symlink():
        raise SharedTableError(
            f"directory {path!r} is a symbolic link, which others may point elsewhere: give the "
            f"directory itself, {str(place.directory.resolve())!r}"
        ) from None
    if error.errno == errno.ENOENT and place.kind == "path":
        raise SharedTableError(
            f"there is no directory {path!r}: make it first (mkdir -p -m 700 {quoted(path)})"
        ) from None
    if error.errno == errno.ENOENT:
        mend = f"make it (mkdir -p -m 700 {quoted(path)})"
        if place.kind == "default":
            mend = "mount a tmpfs there, or set NANOLIMIT_DIR to a private directory on another"
        if not parent.is_dir():
            raise SharedTableError(
                f"directory {path!r} can't be made, for there is no {str(parent)!r}: {mend}"
            ) from None
    refuse(f"directory {path!r} can't be used", error)


def _check_directory(place: Place, status: os.stat_result, gid: int | None) -> None:
    path = str(place.directory)
    shell_path = quoted(path)
    if not is_trusted(status, gid):
        elsewhere = "give a path in a directory of your own"
        if place.kind != "path":
            elsewhere = "set NANOLIMIT_DIR to a directory of your own"
        raise SharedTableError(
            f"directory {path!r} belongs to {user(status.st_uid)}, not to {trusted_users()}: "
            f"{elsewhere}, or let {user(status.st_uid)} or root remove it "
            f"(rm -r {shell_path})"
        )
    mode = stat.S_IMODE(status.st_mode)
    if place.kind == "default" and mode & 0o077:
        raise SharedTableError(
            f"directory {path!r} is open to others (mode {mode:#o}, expected 0o700): "
            f"chmod 700 {shell_path}"
        )
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        # Such as a volume of Kubernetes, whose mode one can't change.
        inside = f"give a path in a private directory, such as {path}/nanolimit"
        if place.kind != "path":
            inside = f"set NANOLIMIT_DIR to {path}/nanolimit, which is then made private"
        raise SharedTableError(
            f"directory {path!r} lets everybody replace the files in it (mode {mode:#o}): "
            f"chmod o-w {shell_path}, or {inside}"
        )


def is_trusted(status: os.stat_result, gid: int | None) -> bool:
    """Say whether a file is the caller's own or root's, or belongs to the group that he named."""
    return status.st_uid in (os.geteuid(), 0) or (gid is not None and status.st_gid == gid)


@contextmanager
def locked(directory: Handle, place: Place) -> Iterator[None]:
    """Be the only one who makes, replaces or removes tables in the directory."""
    import fcntl  # not at the top: Windows has none

    try:
        own = Handle(os.open(".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory.fd))
    except OSError as error:
        refuse(f"directory {str(place.directory)!r} can't be locked", error)
    with own:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(own.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
                    refuse(f"directory {str(place.directory)!r} can't be locked", error)
            if time.monotonic() >= deadline:
                raise SharedTableError(
                    f"directory {str(place.directory)!r} has been locked by another process for "
                    f"{_LOCK_TIMEOUT_S:g} s: it builds a table there or was stopped meanwhile; "
                    f"see who it is (lsof {quoted(str(place.directory))}), and try again"
                )
            time.sleep(_LOCK_POLL_S)
        try:
            yield
        finally:
            # By name, not only by closing: a child forked meanwhile has the same description.
            fcntl.flock(own.fd, fcntl.LOCK_UN)


# Files


def opened(directory: Handle, name: str, how: int) -> Handle:
    """Open a file of a directory, but never another one through a symbolic link."""
    flags = how | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    return Handle(os.open(name, flags, dir_fd=directory.fd))


def check_kind(place: Place, status: os.stat_result) -> None:
    """Refuse what is no regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise SharedTableError(
            f"table {place.path!r} can't be used: it is {kind_of(status.st_mode)}, expected a "
            f"regular file; give another name, or move it away"
        )


# Words


def user(uid: int) -> str:
    """Return a user as people know him, and his number."""
    import pwd

    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def trusted_users() -> str:
    """Return whom a file may belong to that is to be trusted."""
    return user(os.geteuid()) + (" or root" if os.geteuid() else "")


def kind_of(mode: int) -> str:
    """Return what a file is that is no regular one."""
    for is_kind, text in (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if is_kind(mode):
            return text
    return "a device"


def quoted(text: str) -> str:
    """Return a text as a shell takes it for one word."""
    import shlex

    return shlex.quote(text)


_MENDS = {
    errno.EACCES: "run as the user who made it, or open it to a group with group= and mode=",
    errno.EPERM: "run as the user who made it, or give another name",
    errno.EROFS: "mount the file system writable, or set NANOLIMIT_DIR to a directory on a tmpfs",
    errno.ENOSPC: "make room, or mount a larger tmpfs (docker run --shm-size)",
    errno.EDQUOT: "make room, or let the quota be raised",
    errno.ENOMEM: "make room, or ask for a smaller max_keys",
    errno.EFBIG: "ask for a smaller max_keys, or raise the limit (ulimit -f)",
    errno.EMFILE: "close files that are not needed, or raise the limit (ulimit -n)",
    errno.ENFILE: "the whole system has too many files open: raise fs.file-max",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EISDIR: "give another name, or move the directory away",
    errno.ELOOP: "give the file itself, not a symbolic link",
    errno.ENOTDIR: "give a path whose parts are directories",
    errno.EOPNOTSUPP: "the file system can't hold tables: use a tmpfs",
    errno.ENOSYS: "the kernel is too old, or a sandbox forbids it",
}


def refuse(what: str, error: OSError) -> NoReturn:
    """Turn the system's refusal into the SharedTableError that says what mends it."""
    mend = _MENDS.get(error.errno or 0)
    raise SharedTableError(
        f"{what}: {error.strerror or error}{f'; {mend}' if mend else ''}"
    ) from error
