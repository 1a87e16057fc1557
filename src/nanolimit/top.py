"""Top offenders: the keys that a limiter denies most.

The core keeps them, in a memory of fixed size (core/top.h); this module puts its panes together and
turns what it kept of a key's text into the key again.
"""

from __future__ import annotations

import re
import time
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from nanolimit import _core
from nanolimit.clock import NS_PER_SECOND, shown
from nanolimit.errors import NanolimitError
from nanolimit.quota import whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from nanolimit.limiter import Key

__all__ = ["HORIZON_S", "TopKey"]

MAX_TRACK_TOP: int = _core.MAX_TRACK_TOP

#: Seconds that `top` looks back at most; a fifth less at least.
HORIZON_S: int = _core.TOP_PANES * _core.TOP_PANE_NS // NS_PER_SECOND

Pane = tuple[int, int, list[tuple[tuple[int, int], int, int, int, int, bool, bytes]]]


class _TopKey(NamedTuple):
    key: Key
    """The key itself. A str that ends in ``…`` if its text had more than 128 bytes."""

    denied: int
    """Requests denied in the last 8 to 10 minutes; as many as that, or up to `error` fewer."""

    error: int
    """How many of `denied` may have been other keys', that were forgotten for this one."""

    last_denied: float
    """When it was denied last: Unix time in seconds; with a clock of one's own, its seconds."""


class TopKey(_TopKey):
    """One of the keys that a limiter denied most: ``key, denied, error, last_denied``.

    `denied` counts the requests of the last 8 to 10 minutes, and is too high by `error` at most; it
    is never too low. `last_denied` is Unix time in seconds; with a clock of one's own, its seconds.
    """

    exact: bool = True
    """Whether `key` is the whole key, so that it can be asked for; False: its text was cut."""

    def __new__(
        cls, key: Key, denied: int, error: int, last_denied: float, exact: bool = True
    ) -> TopKey:
        made = super().__new__(cls, key, denied, error, last_denied)
        made.exact = exact
        return made

    def _replace(self, **changes: Any) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        made = super()._replace(**changes)
        made.exact = self.exact  # a tuple's own knows the fields only
        return made

    def __replace__(self, **changes: Any) -> Self:  # what copy.replace() calls
        return self._replace(**changes)

    def __getnewargs__(self) -> tuple[Key, int, int, float, bool]:
        return self.key, self.denied, self.error, self.last_denied, self.exact

    def __repr__(self) -> str:
        return (
            f"TopKey(key={self.key!r}, denied={self.denied}, error={self.error}, "
            f"last_denied={self.last_denied!r})"
        )


class Offenders:
    """The part of a `RateLimiter` that tells whom it denies most."""

    __slots__ = ()

    _engine: _core.Limiter | _core.Bundle

    @property
    def track_top(self) -> int:
        """How many of the keys that are denied most it keeps; 0: none, see `RateLimiter`."""
        return self._engine.track_top

    def top(self, n: int = 10) -> list[TopKey]:
        """Return the keys that were denied most in the last ten minutes, most first.

        It takes `track_top`. Of a shared table they are those of all processes that have it on.
        Requests that were let pass only because of ``enforce=False`` count as denied.

        Args:
            n: How many at most.

        Returns:
            A list of `TopKey`. The counts are those of Space-Saving: never too low, and too high by
            no more than their `error`, which is 0 while no more keys were denied than are tracked.

        Raises:
            TypeError: `n` is no int.
            ValueError: `n` is below 1.
            NanolimitError: The limiter does not track them.

        The work depends on `track_top` alone: about a millisecond for 100. Thread-safe.
        """
        number = checked_n(n)
        engine = self._engine
        panes, now_ns = engine.denied_most()
        if not engine.track_top:
            raise NanolimitError(
                f"limiter {engine.name!r} does not keep whom it denies most: make it with "
                f"track_top=100"
            )
        return merged(panes, number, now_ns, engine._fingerprint)


def checked_n(n: object) -> int:
    """Return `n` as the number of keys that are asked for."""
    number = whole_number("n", n)
    if number < 1:
        raise ValueError(f"n must be >= 1, got {shown(number)}")
    return number


def checked_track_top(track_top: object) -> int:
    """Return `track_top` as the number of keys to keep; 0: none."""
    number = whole_number("track_top", track_top)
    if not 0 <= number <= MAX_TRACK_TOP:
        raise ValueError(
            f"track_top must be from 1 to {MAX_TRACK_TOP} keys, or 0 for none, got {shown(number)}"
        )
    return number


_offset_s = 0.0


def _unix_offset_s(now_ns: int) -> float:
    """Return what makes a Unix time of a time of the clock that says `now_ns` now.

    The one of last time, unless the clocks have moved against each other: else the same denial
    would be told of with another time at each look.
    """
    global _offset_s
    offset_s = time.time() - now_ns / NS_PER_SECOND
    if abs(offset_s - _offset_s) > 0.001:
        _offset_s = offset_s
    return _offset_s


def merged(
    panes: list[Pane], n: int, now_ns: int | None, fingerprint_of: Callable[[Key], int]
) -> list[TopKey]:
    """Put the panes together. A key that a pane has no entry for may have been one of its least.

    Args:
        panes: As the core keeps them.
        n: How many keys at most.
        now_ns: What the system's clock says that the table goes by; None: it goes by another one.
        fingerprint_of: What the table knows a key by.
    """
    offset_s = 0.0 if now_ns is None else _unix_offset_s(now_ns)
    counts: dict[tuple[int, int], int] = {}
    unsure: dict[tuple[int, int], int] = {}
    last_ns: dict[tuple[int, int], int] = {}
    texts: dict[tuple[int, int], tuple[int, bool, bytes]] = {}
    everybody = 0  # what any key may have been denied without an entry
    for missed, least, entries in panes:
        everybody += missed + least
        for fingerprint, denied, error, at_ns, kind, cut, text in entries:
            counts[fingerprint] = counts.get(fingerprint, 0) + denied - least
            unsure[fingerprint] = unsure.get(fingerprint, 0) + error - least
            last_ns[fingerprint] = max(at_ns, last_ns.get(fingerprint, 0))
            texts[fingerprint] = kind, cut, text
    # Those that were denied for sure come before those that only may have been.
    order = sorted(
        ((counts[each] + everybody, counts[each] - unsure[each], each) for each in counts),
        key=itemgetter(0, 1),
        reverse=True,
    )
    found = []
    for denied, _, each in order[:n]:
        key, exact = key_of(*texts[each])
        # What a text says it is, may be another key: a class of one's own has any repr it likes.
        exact = exact and fingerprint_of(key) == each[0] | each[1] << 64
        last_s = last_ns[each] / NS_PER_SECOND + offset_s
        found.append(TopKey(key, denied, unsure[each] + everybody, last_s, exact))
    return found


_STR, _BYTES, _INT = 0, 1, 2
_ADDRESS = re.compile(r"(UUID|IPv[46](?:Address|Network|Interface))\('([^'\\]*)'\)")


def key_of(kind: int, cut: bool, text: bytes) -> tuple[Key, bool]:
    """Return the key of a kept text, and whether it is the whole key."""
    if kind == _BYTES and not cut:
        return text, True
    if kind == _INT and not cut:
        return int(text), True
    if kind == _BYTES:  # cut: what is no text is shown as well, or nothing may be left
        return f"{text.decode('utf-8', 'backslashreplace')}…", False
    words = text.decode("utf-8", "surrogatepass" if kind == _STR and not cut else "ignore")
    if cut:
        return f"{words}…", False
    if kind == _STR:
        return words, True
    try:
        return _read(words), True
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return words, False  # a key that does not show its value, such as a str of one's own


def _read(words: str) -> Key:
    """Return what the `repr` of a key says; ValueError if that is no key."""
    # Here, because few keys need them.
    import ast
    import ipaddress
    from uuid import UUID

    named = _ADDRESS.fullmatch(words)
    if named is None:
        # In a tuple: as a text that no key can begin with, so that literals are left.
        return _filled(ast.literal_eval(_ADDRESS.sub(_marked, words)))
    kind, text = named.groups()
    key: Key = UUID(text) if kind == "UUID" else getattr(ipaddress, kind)(text)
    return key


def _marked(found: re.Match[str]) -> str:
    return f"[{found[0]!r}]"


def _filled(value: object) -> Key:
    if isinstance(value, tuple):
        return tuple(map(_filled, value))
    if isinstance(value, list) and len(value) == 1:
        return _read(value[0])
    if isinstance(value, (str, bytes, int)):
        return value
    raise ValueError("no key")
