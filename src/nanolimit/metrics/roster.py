"""Rosters: the limiters that an exporter tells of, and how they are read.

A limiter is held by a weak reference: watching it must not keep its table in memory when the
application has forgotten it. What is no limiter, a `nanolimit.shared.watch`, exists only to be
read, and nobody else need hold it; so it stays until it is closed or taken out.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from nanolimit.errors import LimiterClosedError
from nanolimit.metrics.label import denials, plain
from nanolimit.quota import whole_number
from nanolimit.remote import Remote, is_limiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nanolimit.metrics.measure import Measure, Row
    from nanolimit.watched import Watched

    Told = Watched | Remote

Part = TypeVar("Part")

__all__ = ["Roster", "lock"]

MAX_TOP = 1000

_logger = logging.getLogger("nanolimit")

# One for all rosters: they change seldom. Reentrant, because a finalizer or a signal handler may
# change one in the middle of a change; what it guards is bound anew and never changed in place.
_changing = threading.RLock()


def _renew_lock() -> None:
    global _changing
    _changing = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_lock)


def lock() -> threading.RLock:
    """Return what is held while anything about rosters changes: another one after a fork."""
    return _changing


class _Entry:
    """A limiter that is told of, and how."""

    __slots__ = ("complaints", "key_text", "label", "limiter", "top")

    def __init__(self, limiter: Told, top: int, key_text: Callable[[Any], str] | None) -> None:
        self.label = plain(limiter.name)
        self.limiter: Callable[[], Told | None] = (
            weakref.ref(limiter) if is_limiter(limiter) else lambda: limiter
        )
        self.top = top
        self.key_text = key_text
        # What could not be read when it was last tried.
        self.complaints: frozenset[str] = frozenset()

    def is_over(self) -> bool:
        """Whether there is nothing to be read any more, now and later."""
        limiter = self.limiter()
        return limiter is None or _is_closed(limiter)


class Roster:
    """The limiters that one registry, or one meter, tells of.

    Thread-safe. A reading takes no lock, unless a limiter has gone since the last one.
    """

    def __init__(self) -> None:
        # Copy on write: bound to a new tuple under the lock, and read without it.
        self._entries: tuple[_Entry, ...] = ()

    def __len__(self) -> int:
        return len(self._entries)

    def add(
        self,
        limiters: Iterable[Told],
        top: int = 10,
        key_text: Callable[[Any], str] | None = None,
    ) -> None:
        """Tell of these limiters as well: of all, or of none if there is anything wrong.

        One that is in it already stays once, and what is said of it now holds.

        Raises:
            TypeError: One is no limiter; `top` is no int; `key_text` can't be called.
            ValueError: `top` is out of range; or another limiter of this name is in it.
            LimiterClosedError: One is closed.
        """
        top = whole_number("top", top)
        if not 0 <= top <= MAX_TOP:
            raise ValueError(f"top must be from 0 (none) to {MAX_TOP}, not {top}")
        if key_text is not None and not callable(key_text):
            raise TypeError(
                f"key_text must be a callable that returns a str, not {type(key_text).__name__}"
            )
        fresh: list[_Entry] = []
        for limiter in limiters:
            _check(limiter)
            fresh.append(_Entry(limiter, top, key_text))
        with _changing:
            # A name is free again when its limiter has gone.
            entries = {each.label: each for each in self._entries if not each.is_over()}
            for entry in fresh:
                other = entries.get(entry.label)
                if other is not None and other.limiter() is not entry.limiter():
                    raise ValueError(
                        f"another limiter named {entry.label!r} is registered, and metrics can't "
                        f"tell two of one name apart: give each a name, RateLimiter(..., "
                        f"name='...'), or unregister the other one"
                    )
                entries[entry.label] = entry
            self._entries = tuple(entries.values())

    def drop(self, limiters: Iterable[Told]) -> int:
        """Tell of these no longer; return how many of them were in it.

        Raises:
            TypeError: One is no limiter.
        """
        leaving = list(limiters)
        for limiter in leaving:
            _check_kind(limiter)
        with _changing:
            before = self._entries
            self._entries = tuple(
                each for each in before if not any(each.limiter() is gone for gone in leaving)
            )
            return len(before) - len(self._entries)

    def read(self, *measures: Measure) -> list[list[Row]]:
        """Read all limiters now; return the points of each measure, with the labels of each.

        A limiter that was closed, or is closed meanwhile, is not in it and is forgotten. Counters
        or keys that can't be read for another reason are left out, and the log says so once until
        they can be read again. Nothing is raised: a limiter must not take the other metrics of the
        process with it.

        A fixed amount of work for each limiter, and where keys are asked for, one that depends on
        its `track_top`.
        """
        found: list[list[Row]] = [[] for _ in measures]
        counts = any(each.rows is not None for each in measures)
        keys = any(each.rows is None for each in measures)
        for entry in self._entries:
            limiter = entry.limiter()
            if limiter is None:
                self._forget(entry)
                continue
            stats: Any = self._part(entry, limiter, "counters", limiter.stats) if counts else None
            if counts and stats is None:
                continue
            remote = isinstance(limiter, Remote)
            top: dict[str, int] | None = None
            if keys and not isinstance(limiter, Remote):
                top = self._part(entry, limiter, "keys", partial(_top, entry, limiter))
            more: Iterable[Row]
            for rows, measure in zip(found, measures, strict=True):
                if remote:
                    take = measure.remote
                    more = () if take is None or stats is None else take(stats)
                elif measure.rows is None:
                    more = (((text,), count) for text, count in (top or {}).items())
                else:
                    more = () if stats is None else measure.rows(stats)
                rows.extend(((entry.label, *labels), number) for labels, number in more)
        return found

    def _part(
        self, entry: _Entry, limiter: Told, part: str, read: Callable[[], Part]
    ) -> Part | None:
        """Read a part of what a limiter tells, or see to it that somebody hears why not."""
        try:
            found = read()
        except Exception as error:
            if isinstance(error, LimiterClosedError) or _is_closed(limiter):
                self._forget(entry)
            elif part not in entry.complaints:
                entry.complaints |= {part}
                _complain(entry, part, error)
            return None
        if entry.complaints:
            entry.complaints -= {part}
        return found

    def _forget(self, entry: _Entry) -> None:
        with _changing:
            self._entries = tuple(each for each in self._entries if each is not entry)


def _top(entry: _Entry, limiter: Watched) -> dict[str, int]:
    most = min(entry.top, limiter.track_top)
    return denials(limiter.top(most), entry.key_text) if most > 0 else {}


def _is_closed(limiter: Told) -> bool:
    return bool(getattr(limiter, "closed", False))


def _check_kind(limiter: object) -> None:
    # By hand, because isinstance() of a protocol would read its properties, and one of a table
    # that has gone may raise.
    if not isinstance(limiter, Remote) and not (
        isinstance(getattr(limiter, "name", None), str)
        and callable(getattr(limiter, "stats", None))
        and callable(getattr(limiter, "top", None))
    ):
        raise TypeError(
            f"limiter must be a RateLimiter or a nanolimit.shared.watch(), "
            f"not {type(limiter).__name__}"
        )


def _check(limiter: Told) -> None:
    _check_kind(limiter)
    if _is_closed(limiter):
        raise LimiterClosedError(f"limiter {limiter.name!r} is closed: it has nothing to tell")


def _complain(entry: _Entry, part: str, error: Exception) -> None:
    try:
        _logger.warning(
            "the %s of limiter %r can't be read and are left out of its metrics: %s",
            part,
            entry.label,
            error,
            exc_info=error,
        )
    except Exception:  # a broken logging set-up must not break a scrape
        return
