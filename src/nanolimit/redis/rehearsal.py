"""Rehearsals: the limiter's scripts at times that the caller names, on lists that nobody else uses.

A server's TIME can't be set. So the scripts are taken as they are, but for the one expression that
asks for it: the time is the last of ARGV, in microseconds. All that decides is what decides in
service.

Lists expire by the server's clock. So the times that are named have to be ahead of it: lists would
be gone too early. As they are, lists live too long, and who rehearses drops those that would be
gone (`Expiry`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from nanolimit.redis.fault import Unavailable
from nanolimit.redis.name import Names, window_us
from nanolimit.redis.script import Arguments, Script

if TYPE_CHECKING:
    from nanolimit.limiter import Key
    from nanolimit.quota import Quota
    from nanolimit.redis.wire import Call, Wire

__all__ = ["AT_ONCE", "Expiry", "Stage", "timed"]

#: Calls in one write, at most.
AT_ONCE = 256

_ASKED = "call('TIME')"
# Seconds and microseconds, as TIME says them; ARGV is then what the rest of the script expects.
_NAMED = "{0, table.remove(ARGV)}"
_CLOCK = re.compile(r"\bTIME\b")


def timed(plain: Script) -> Script:
    """Return the same script with one argument more, the last: the time in microseconds.

    Raises:
        ValueError: The script does not ask for the time, or more than once.
    """
    number = plain.source.count(_ASKED)
    if number != 1 or len(_CLOCK.findall(plain.source)) != 1:
        raise ValueError(
            f"the script {plain.name!r} does not ask for the time once, by {_ASKED}: it can't be "
            f"given another"
        )
    return Script.of(f"timed_{plain.name}", plain.source.replace(_ASKED, _NAMED))


_EMPTY = Script.of("empty", "return 0")
_TIME = Script.of("time", "local time = redis.call('TIME') return time[1] * 1000000 + time[2]")
_UNLINK = Script.of("unlink", "return redis.call('UNLINK', unpack(KEYS))")
# One may not be allowed to ask for it: then nobody knows.
_USAGE = Script.of(
    "usage",
    """
    local bytes = redis.pcall('MEMORY', 'USAGE', KEYS[1])
    return type(bytes) == 'number' and bytes or false
    """,
)


class Stage:
    """Lists of its own on a server, checked at times that are named.

    Args:
        wire: What sends; its time-out holds for each call here.
        quotas: The quotas of a limiter.
        prefix: What the names of the lists begin with. Nothing else on the server is touched.

    All raise `Unavailable` if the server can't be asked. For one thread.
    """

    __slots__ = ("_args", "_names", "_take", "_wire", "calls")

    calls: int
    """Scripts that it had run so far."""

    def __init__(self, wire: Wire, quotas: tuple[Quota, ...], prefix: str) -> None:
        self.calls = 0
        arguments = Arguments(quotas)
        self._wire = wire
        self._names = Names(prefix, None, quotas)
        self._take = timed(arguments.take)
        self._args = arguments.of(1)

    def lists(self, key: Key) -> list[bytes]:
        """Return the names of a key's lists."""
        return self._names.of(key)

    def clock_us(self) -> int:
        """Return the server's TIME in microseconds."""
        return self._number((_TIME, (), ()))

    def empty(self) -> None:
        """Run a script that does nothing: what is left is the way there and back."""
        self._number((_EMPTY, (), ()))

    def take(self, key: Key, now_us: int) -> int:
        """Check one unit at a time: microseconds until it would fit, 0 if it did and was counted.

        One round trip.
        """
        return self._number(self._call(key, now_us))

    def take_many(self, asked: Sequence[tuple[Key, int]]) -> list[int]:
        """Check (key, time) one after the other, in one write: what `take` would have said."""
        return self._numbers([self._call(key, now_us) for key, now_us in asked])

    def usage_bytes(self, lists: Sequence[bytes]) -> list[int] | None:
        """Return the server's MEMORY USAGE of each list, 0 where there is none.

        None: one is not allowed to ask.
        """
        sizes: list[int] = []
        for start in range(0, len(lists), AT_ONCE):
            calls: list[Call] = [(_USAGE, (each,), ()) for each in lists[start : start + AT_ONCE]]
            for reply in self._replies(calls):
                sizes.append(reply if isinstance(reply, int) else 0)
        return sizes if any(sizes) or not lists else None

    def drop(self, lists: Sequence[bytes]) -> None:
        """Delete lists."""
        if self._wire.clustered:
            for start in range(0, len(lists), AT_ONCE):
                self._replies([(_UNLINK, (each,), ()) for each in lists[start : start + AT_ONCE]])
            return
        for start in range(0, len(lists), AT_ONCE):
            self._number((_UNLINK, lists[start : start + AT_ONCE], ()))

    def _call(self, key: Key, now_us: int) -> Call:
        return self._take, self._names.of(key), [*self._args, b"%d" % now_us]

    def _number(self, call: Call) -> int:
        self.calls += 1
        return _checked(self._wire.run(*call))

    def _numbers(self, calls: list[Call]) -> list[int]:
        return [_checked(reply) for reply in self._replies(calls)]

    def _replies(self, calls: list[Call]) -> list[Any]:
        self.calls += len(calls)
        replies = self._wire.run_many(calls)
        for reply in replies:
            if isinstance(reply, Unavailable):
                raise reply
        return replies


def _checked(reply: object) -> int:
    if isinstance(reply, int):
        return reply
    raise Unavailable(f"no reply of such a script: {reply!r}"[:200])


class Expiry:
    """Which lists a server has at a time, if it goes by the clock of the stamps.

    The scripts let a list live until its newest stamp is out of the window, and up to an eighth of
    it longer (lua.py). Stamps must come in order.

    Args:
        quotas: The quotas of a limiter.
    """

    __slots__ = ("_dues", "_rules")

    def __init__(self, quotas: tuple[Quota, ...]) -> None:
        windows = [window_us(quota) for quota in quotas]
        self._rules = [(window, max(1, window // 8_000)) for window in windows]
        # Of each quota: key -> when its list is gone, in microseconds, those that go first first.
        self._dues: list[OrderedDict[int, int]] = [OrderedDict() for _ in quotas]

    def __len__(self) -> int:
        """Lists that are there."""
        return sum(map(len, self._dues))

    def keys(self) -> set[int]:
        """Those that have a list."""
        return set(chain.from_iterable(self._dues))

    def count(self, key: int, stamp_us: int) -> None:
        """A request of the key is counted: all of its lists are there from now on."""
        for (window, step_ms), dues in zip(self._rules, self._dues, strict=True):
            step_us = 1_000 * step_ms
            dues[key] = -(-(stamp_us + window) // step_us) * step_us
            dues.move_to_end(key)

    def gone(self, now_us: int) -> list[tuple[int, int]]:
        """Take out the lists that are gone by now: (key, number of the quota)."""
        found: list[tuple[int, int]] = []
        for nth, dues in enumerate(self._dues):
            while dues:
                key = next(iter(dues))
                if dues[key] > now_us:
                    break
                del dues[key]
                found.append((key, nth))
        return found
