"""Watch: a shared table that is looked at from outside, again and again.

`shared.inspect` tells everything once, and walks the table for it. A `Watch` keeps the file mapped,
read-only, and each look is a fixed amount of work, whatever the number of keys.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, NamedTuple

from nanolimit import _core
from nanolimit.errors import LimiterClosedError, NanolimitError, SharedTableError
from nanolimit.header import REPLACED, check_time_namespace, checked_config, read_header
from nanolimit.place import (
    Place,
    check_kind,
    more_of,
    open_directory,
    opened,
    place_of,
    refuse,
)
from nanolimit.quota import Quota
from nanolimit.table import require_platform
from nanolimit.top import checked_n, merged

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from nanolimit._core import Stats
    from nanolimit.top import TopKey

__all__ = ["Watch"]


class _View(NamedTuple):
    """One file, mapped. By its path it is known to be there still: descriptors can be lost."""

    reader: _core.Reader
    window_ns: int
    algorithm: str
    quotas: int
    path: str
    device: int
    inode: int
    bytes: int

    def is_stale(self) -> bool:
        """Say whether the file has no name any more, another one has taken it, or it was cut.

        To read what was cut off would be the end of this process (SIGBUS).
        """
        try:
            status = os.lstat(self.path)
        except OSError:
            return True
        found = (status.st_dev, status.st_ino, status.st_size)
        return found != (self.device, self.inode, self.bytes) or self.reader.replaced


def _opened_all(shared: str | os.PathLike[str]) -> tuple[_View, ...]:
    """Map a limiter's tables: one, or one for each of its quotas."""
    first = _opened(place_of(shared), 0)
    return first, *(_opened(place_of(more_of(shared, i)), i) for i in range(1, first.quotas))


def _opened(place: Place, number: int) -> _View:
    """Map the table of a limiter's quota of this number.

    Raises:
        SharedTableError: There is none, or none that can be read.
    """
    with open_directory(place) as folder:
        try:
            check_kind(place, os.stat(place.name, dir_fd=folder.fd, follow_symlinks=False))
            handle = opened(folder, place.name, os.O_RDONLY)
        except FileNotFoundError:
            raise SharedTableError(f"there is no table {place.path!r}") from None
        except OSError as error:
            refuse(f"table {place.path!r} can't be read", error)
    with handle:
        status = os.fstat(handle.fd)
        header = read_header(place, handle, status)
        config = checked_config(place, header, status)
        check_time_namespace(place, header)
        if header["state"] == REPLACED:
            raise SharedTableError(
                f"table {place.path!r} was replaced by another that is not there: the next "
                f"limiter makes it anew"
            )
        if config.number != number:
            raise SharedTableError(
                f"table {place.path!r} is a part of another limiter's: it holds its quota number "
                f"{config.number + 1}; give the name of the first"
            )
        try:
            reader = _core.Reader(handle.fd)
        except ValueError as error:
            raise SharedTableError(
                f"table {place.path!r} can't be used: {error}; it is damaged: remove it "
                f"({place.rm}), and its counts with it"
            ) from None
        return _View(
            reader,
            config.quota.window_ns,
            config.algorithm,
            config.quotas,
            place.path,
            status.st_dev,
            status.st_ino,
            status.st_size,
        )


class Watch:
    """A shared table, seen from outside. `shared.watch` makes one.

    Nothing in the table is changed, and who watches does not become one of its users. If another
    table takes its name, the watch goes on with that one. Thread-safe. After a fork the child goes
    on with it.
    """

    __slots__ = ("_lock", "_pid", "_shared", "_views", "name", "path")

    name: str
    """The name of the table."""

    path: str
    """The whole path of its file."""

    def __init__(self, shared: str | os.PathLike[str]) -> None:
        require_platform()
        place = place_of(shared)
        self.name = place.name
        self.path = place.path
        self._shared = shared
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._views: tuple[_View, ...] | None = _opened_all(shared)

    def _current(self) -> tuple[_View, ...]:
        """Return the tables that have the names now."""
        views = self._views
        if views is None:
            raise LimiterClosedError(f"the watch of table {self.path!r} is closed")
        if not any(view.is_stale() for view in views):
            return views
        with self._changing():
            if self._views is views:
                # The old ones go with their last reader.
                self._views = _opened_all(self._shared)
        return self._current()

    def _changing(self) -> threading.Lock:
        """Return the lock; in the child of a fork a new one, for a thread may have held the old."""
        if self._pid != os.getpid():
            self._lock = threading.Lock()
            self._pid = os.getpid()
        return self._lock

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """The quotas in force."""
        return tuple(Quota._of(view.reader.limit, view.window_ns) for view in self._current())

    @property
    def algorithm(self) -> str:
        """How its limiters count."""
        return self._current()[0].algorithm

    @property
    def own_clock(self) -> bool:
        """Whether its limiters bring a clock of their own, so that nobody here knows the time."""
        return self._current()[0].reader.own_clock

    @property
    def track_top(self) -> int:
        """How many of the keys that are denied most the table has room for.

        Its limiters keep them only if they were made with `track_top`.
        """
        return self._current()[0].reader.track_top

    def stats(self) -> Stats:
        """Return the counters and sizes, as `RateLimiter.stats` of one of its limiters does.

        Raises:
            SharedTableError: The table is gone, and there is no other of its name.
        """
        return _core.stats_of([view.reader.stats() for view in self._current()])

    def top(self, n: int = 10) -> list[TopKey]:
        """Return the keys that were denied most in the last ten minutes, as `RateLimiter.top`.

        Raises:
            TypeError: `n` is no int.
            ValueError: `n` is below 1.
            SharedTableError: As `stats`.
        """
        number = checked_n(n)
        reader = self._current()[0].reader
        panes, now_ns = reader.denied_most()
        if not reader.track_top:
            raise NanolimitError(f"table {self.path!r} has no room for whom it denies most")
        return merged(panes, number, now_ns, reader._fingerprint)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._views is None

    def close(self) -> None:
        """Let go of the file. Closing twice is fine."""
        with self._changing():
            self._views = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Watch of {self.path!r}{', closed' if self.closed else ''}>"
