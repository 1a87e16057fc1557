"""The limiters of a storage: one for each kind of counting and window, made when first asked for.

Whoever gives each customer limits of their own asks for any number of them. What that may cost is
bounded here: see `Shelf`.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from nanolimit.algorithm import most
from nanolimit.clock import NS_PER_SECOND
from nanolimit.compat.epoch import EpochClock, closed_window_s
from nanolimit.errors import NanolimitError
from nanolimit.limiter import RateLimiter
from nanolimit.place import place_of

if TYPE_CHECKING:
    from nanolimit._core import Decision
    from nanolimit.algorithm import Algorithm
    from nanolimit.compat.address import Address
    from nanolimit.limiter import Key
    from nanolimit.quota import Quota

MOST = most("sliding-log")
# A private storage's tables that are kept for good, and those that are beside them.
RESIDENT = 64
SPARE = 1024
# How many of the least recently used ones are looked at first for one that may go.
_LOOKED_AT = 16
# The limits up to which a table can keep its keys in less memory.
_CLASSES = (6, 2047, MOST)

# Directories whose newest change is younger than this may change again unseen: the file system's
# clock has steps of some milliseconds.
_UNSETTLED_NS = 1_000_000_000

# One for all storages: tables are made rarely. Reentrant, as a signal handler may hit a limit while
# one is made; renewed in a forked child, where the thread that held it does not exist.
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_lock)


def lock() -> threading.RLock:
    """Return the lock under which tables are made and dropped."""
    return _lock


Kind = Literal["fixed", "moving", "sliding"]


class Label(NamedTuple):
    """Which table: what its file's name ends with."""

    kind: Kind
    expiry: int
    # The largest limit that it can count.
    limit: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.expiry}-{self.limit}"


def class_of(limit: int) -> int:
    """Return the limit of the table that limits of this size share."""
    return next(most for most in _CLASSES if limit <= most)


class Spare:
    """A limiter that is there only while it holds something.

    Each call asks for it under the lock under which it may be dropped, so that no count is lost.
    """

    __slots__ = ("_label", "_shelf")

    def __init__(self, shelf: Shelf, label: Label) -> None:
        self._shelf = shelf
        self._label = label

    def allow(self, key: Key, cost: int = 1, *, quota: Quota | None = None) -> bool:
        with _lock:
            return self._shelf.borrowed(self._label).allow(key, cost, quota=quota)

    def check(self, key: Key, cost: int = 1, *, quota: Quota | None = None) -> Decision:
        with _lock:
            return self._shelf.borrowed(self._label).check(key, cost, quota=quota)

    def peek(self, key: Key, cost: int = 1, *, quota: Quota | None = None) -> Decision:
        with _lock:
            return self._shelf.borrowed(self._label).peek(key, cost, quota=quota)

    def reset(self, key: Key) -> bool:
        with _lock:
            return self._shelf.borrowed(self._label).reset(key)


class Shelf:
    """The tables of one storage.

    *Private* ones: the first 64 are kept. There may be 1,024 more at a time, of which those that
    hold no live request give way, least recently used first; each call of them takes a lock. With
    that many in use one more is a `NanolimitError`. An empty table takes 20 KB, so that this is
    20 MB in all.

    *Shared* ones: a file for each window and class of limits, made by the process that comes first
    and kept until it is removed. What bounds them is the room in their directory.

    Thread-safe.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._resident: dict[Label, RateLimiter] = {}
        self._spare: OrderedDict[Label, RateLimiter] = OrderedDict()
        # Those of fixed windows that are kept and at hand.
        self.fixed: tuple[RateLimiter, ...] = ()
        self._place = None
        if address.shared is not None:
            self._place = place_of(address.shared)
            self._file = re.compile(
                rf"{re.escape(self._place.name)}\.(fixed|moving|sliding)-([1-9]\d*)-([1-9]\d*)"
            )
        self._seen_ns = -1

    @property
    def is_shared(self) -> bool:
        """Whether other processes count in the same tables."""
        return self._place is not None

    @property
    def is_full(self) -> bool:
        """Whether further tables of a private storage may be dropped."""
        return not self.is_shared and len(self._resident) >= RESIDENT

    def limiter(self, label: Label) -> RateLimiter | Spare:
        """Return the table's limiter, made now if there is none."""
        limiter = self._resident.get(label)
        if limiter is not None:
            return limiter
        with _lock:
            limiter = self._resident.get(label)
            if limiter is None:
                if self.is_full:
                    return Spare(self, label)
                limiter = self._keep(label)
            return limiter

    def _keep(self, label: Label) -> RateLimiter:
        limiter = self._made(label)
        # In this order: a child that is forked in between makes another one, and misses none.
        if label.kind == "fixed":
            self.fixed = (*self.fixed, limiter)
        self._resident[label] = limiter
        return limiter

    @property
    def may_have_more(self) -> bool:
        """Whether there may be tables besides those that are kept and at hand."""
        return self.is_shared or bool(self._spare)

    def all(self) -> list[tuple[Label, RateLimiter]]:
        """Return all tables there are, also those that other processes have made.

        To whoever holds the lock, as some may be dropped otherwise.
        """
        self._look()
        return [*self._resident.items(), *self._spare.items()]

    def borrowed(self, label: Label) -> RateLimiter:
        """Return a spare limiter to whoever holds the lock, for as long as that."""
        limiter = self._spare.get(label)
        if limiter is None:
            if len(self._spare) >= SPARE:
                self._make_room()
            limiter = self._spare[label] = self._made(label)
        else:
            self._spare.move_to_end(label)
        return limiter

    def _make_room(self) -> None:
        # Mostly one of those that were not used for longest will do.
        self._drop_idle(list(self._spare)[:_LOOKED_AT])
        if len(self._spare) >= SPARE:
            self._drop_idle(list(self._spare))
        if len(self._spare) >= SPARE:
            raise NanolimitError(
                f"more than {RESIDENT + SPARE} different windows and limits are in use in this "
                f"storage at once: round what you make of your users' wishes, or use a shared "
                f"table, nanolimit:///path/of/a/table, which has no such bound"
            )

    def _drop_idle(self, labels: list[Label]) -> None:
        for label in labels:
            if not len(self._spare[label]):
                self._spare.pop(label).close()

    def _made(self, label: Label) -> RateLimiter:
        address = self._address
        if label.kind == "moving":
            per, algorithm = closed_window_s(label.expiry), "sliding-log"
        else:
            # A sliding counter's windows count in two, as the current and as the previous one.
            per = float(label.expiry if label.kind == "fixed" else 2 * label.expiry)
            algorithm = "fixed-window"
        more: dict[str, Any] = {}
        if self._place is not None:
            more = {
                "shared": f"{address.shared}.{label}",
                # A table that is there stays as large as it is.
                "on_mismatch": "adopt",
                "stall_timeout": address.stall_timeout,
                "on_stall": address.on_stall,
            }
            if label.kind == "moving":
                more["typical"] = min(address.typical, label.limit)
            if address.group is not None:
                more.update(mode=0o660, group=address.group)
        made_as: Algorithm = "sliding-log" if algorithm == "sliding-log" else "fixed-window"
        return RateLimiter(
            label.limit,
            per,
            name=f"limits.{label}",
            algorithm=made_as,
            max_keys=address.max_keys,
            on_full=address.on_full,
            clock=EpochClock(round(per * NS_PER_SECOND)) if address.clock == "python" else None,
            **more,
        )

    def _look(self) -> None:
        """Open the shared tables that other processes have made since we looked."""
        if self._place is None:
            return
        try:
            changed_ns = self._place.directory.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed_ns == self._seen_ns:
            return
        for path in self._place.directory.iterdir():
            found = self._file.fullmatch(path.name)
            if found is not None:
                kind: Any = found[1]
                label = Label(kind, int(found[2]), int(found[3]))
                if label not in self._resident:
                    self._keep(label)
        settled = time.time_ns() - changed_ns > _UNSETTLED_NS
        self._seen_ns = changed_ns if settled else -1
