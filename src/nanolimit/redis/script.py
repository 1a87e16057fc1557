"""Scripts: what is asked of Redis, how it is asked, and what the answers mean.

Nothing here speaks to a server. Who does runs a `Script` by EVALSHA, with the names of one key's
lists (`Names.of`) as KEYS and `Arguments.of` as ARGV, and hands the reply to the function that
reads it. A limiter does not mix what it asks: for each verb there is one script.

=============  ========================  =====================  ==================================
script         ARGV                      read by                what it does
=============  ========================  =====================  ==================================
`TAKE`         ``of(cost)``              `wait_us`              counts, if the cost fits
`TELL`         ``of(cost)``              `decision`             the same, and tells how things are
`LOOK`         ``of(cost)``              `decision`             tells, counts nothing
`BATCH`        ``of(cost)``              `waits_us`             TAKE of many keys, one by one
`TAKE_SOME`    ``some(n)``               `some`                 n times TAKE of 1, in one
`GRANT`        ``lent(n, ttl_us)``       `grant`                lends up to n units
`RETURN`       ``returned(n, stamp)``    an int: how many       takes back what was not used
`RESET`        ``of(0)``                 an int: 1 if any       forgets
=============  ========================  =====================  ==================================

A reply holds integers, and BATCH's is one text, so that it does not matter whether the client
decodes replies. A script that raises has written nothing: what Redis may refuse, for want of memory
or as a replica, it refuses at the first write.
"""

from __future__ import annotations

import math
from hashlib import sha1
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from nanolimit import _core
from nanolimit.clock import shown
from nanolimit.redis import lua
from nanolimit.redis.fault import Unavailable, fault_of_reply
from nanolimit.redis.fork import renew_after_fork
from nanolimit.redis.name import window_us
from nanolimit.redis.resp import Packed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nanolimit._core import Decision
    from nanolimit.quota import Quota

R = TypeVar("R")

__all__ = [
    "BATCH", "GRANT", "LOOK", "RESET", "RETURN", "TAKE", "TAKE_ONE", "TAKE_SOME", "TELL",
    "Arguments", "Grant", "Script", "Some", "decision", "grant", "some", "understood", "wait_us",
    "waits_us",
]  # fmt: skip

#: The smallest limit of which units are lent: of less, a share is nothing.
LEAST_LENT_LIMIT = 20

#: Keys that BATCH should get at once: the server does nothing else meanwhile, about 2 us a key.
BATCH_KEYS = 256

# An index that no list has: a cost of 0 is never denied.
_NEVER = 1 << 53

# Arguments are made once for each cost. Programs have few; who has more makes them anew.
_MOST_KEPT = 256


class Script(NamedTuple):
    """What Redis runs, and what it knows that by."""

    name: str
    source: str
    sha: str

    @classmethod
    def of(cls, name: str, source: str) -> Script:
        """Make a script of its Lua."""
        source = "\n".join(line.strip() for line in source.splitlines() if line.strip())
        # Redis knows scripts by it; nothing is secured with it.
        return cls(name, source, sha1(source.encode(), usedforsecurity=False).hexdigest())


TAKE = Script.of("take", lua.TAKE)
#: TAKE for a limiter of one quota, cheaper.
TAKE_ONE = Script.of("take_one", lua.TAKE_ONE)
TELL = Script.of("tell", lua.TELL)
LOOK = Script.of("look", lua.LOOK)
BATCH = Script.of("batch", lua.BATCH)
TAKE_SOME = Script.of("take_some", lua.TAKE_SOME)
GRANT = Script.of("grant", lua.GRANT)
RETURN = Script.of("return", lua.RETURN)
RESET = Script.of("reset", lua.RESET)


class Arguments:
    """ARGV of a limiter's scripts: made once for each cost, and kept.

    Args:
        quotas: The limiter's quotas, in the order of the names of a key's lists.

    Thread-safe. What it hands out is shared: don't change it.
    """

    __slots__ = ("__weakref__", "_kept", "_least", "_quotas", "take")

    take: Script
    """The script that `TAKE` is for so many quotas."""

    def __init__(self, quotas: tuple[Quota, ...]) -> None:
        self._quotas = [(window_us(quota), quota.limit) for quota in quotas]
        self._least = min(quota.limit for quota in quotas)
        self._kept: dict[int, Packed] = {}
        self.take = TAKE_ONE if len(quotas) == 1 else TAKE
        renew_after_fork(self)

    def after_fork(self) -> None:
        """In the child: a thread of the parent may have held the dict's own lock."""
        self._kept = {}

    def of(self, cost: int) -> list[bytes]:
        """Return ARGV for a cost: it, and of each quota the window, the limit and limit - cost.

        Raises:
            ValueError: `cost` is below 0, or above a limit, so that it could never fit.
        """
        kept = self._kept.get(cost)
        if kept is None:
            if not 0 <= cost <= self._least:
                raise ValueError(
                    f"cost must be from 0 to the smallest limit, {self._least}, got {shown(cost)}"
                )
            kept = self._made(cost)
            if len(self._kept) < _MOST_KEPT:
                self._kept[cost] = kept
        return kept

    def some(self, number: int) -> list[bytes]:
        """Return ARGV of TAKE_SOME, for so many requests of one unit each.

        There may be more of them than fit into a limit.

        Raises:
            ValueError: `number` is below 1.
        """
        if number < 1:
            raise ValueError(f"the number of requests must be >= 1, got {shown(number)}")
        return self._kept.get(number) or self._made(number)

    def _made(self, units: int) -> Packed:
        made = [b"%d" % units]
        for window, limit in self._quotas:
            # A limit below is met in TAKE_SOME alone, which finds its indices by itself.
            index = max(limit - units, 0) if units else _NEVER
            made += (b"%d" % window, b"%d" % limit, b"%d" % index)
        return Packed(made)

    def lent(self, units: int, ttl_us: int) -> list[bytes]:
        """Return ARGV of GRANT: for up to `units`, to be used up within `ttl_us` microseconds.

        While they are lent, what others count for the key is put behind them in the list. That
        takes Redis longer, the more units lie before it: keep `units` to a thousand.

        Raises:
            ValueError: There is nothing to lend, or no time; or a limit is below 20.
        """
        if self._least < LEAST_LENT_LIMIT:
            raise ValueError(
                f"units are lent of limits from {LEAST_LENT_LIMIT} on, and one is {self._least}: "
                f"check each request"
            )
        if units < 1 or ttl_us < 1:
            raise ValueError(f"a lease needs units and time, got {units} for {ttl_us} us")
        return [*self.some(units), b"%d" % ttl_us]

    def returned(self, units: int, stamp: int) -> list[bytes]:
        """Return ARGV of RETURN: `units` of the lease that has this `Grant.stamp`.

        Never to be sent again where it may have run: it could take back what another lease has
        used that ends at the same microsecond.

        Raises:
            ValueError: There is nothing to return.
        """
        if units < 1 or stamp < 1:
            raise ValueError(f"nothing to return: {units} units of the lease that ends at {stamp}")
        return [b"%d" % units, b"-%d" % stamp]


class Some(NamedTuple):
    """What TAKE_SOME says: the answer to n requests of one unit each, in their order."""

    granted: int
    """The first so many of them are allowed."""

    wait_us: int
    """Microseconds until one more fits; 0 if all were allowed."""


class Grant(NamedTuple):
    """A lease: units that are counted already and may be used until it ends.

    They count for a window from its end on. So with K units lent at a time, for `ttl` each, no
    more than K * ttl / window of a limit are lost, and what was neither used nor returned.
    """

    units: int
    """How many there are; 0: none was free."""

    wait_us: int
    """Microseconds until one more could be had; 0 if it is as many as was asked for."""

    stamp: int
    """When it ends, in microseconds of the server's clock: what RETURN knows it by.

    Who holds it counts `ttl` from before it asked, on a clock of its own that never goes back.
    """


def understood(read: Callable[[Any], R], reply: Any) -> R:
    """Read a reply.

    Raises:
        Unavailable: It is not one of the script: who answers there is no Redis.
    """
    try:
        return read(reply)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise Unavailable(f"a reply that is not understood: {reply!r:.60}", True) from error


def _listed(reply: Sequence[int]) -> Sequence[int]:
    if isinstance(reply, bytes):
        raise TypeError("bytes are a list of numbers only by chance")
    return reply


def wait_us(reply: int) -> int:
    """Read TAKE: microseconds until the cost would fit; 0 if it did, and was counted."""
    return int(reply)


def waits_us(reply: bytes | str, number: int | None = None) -> list[int | Unavailable]:
    """Read BATCH: for each key what TAKE would have said, at most 10**14 - 1; or what is wrong.

    Raises:
        ValueError: It is not of so many keys.
    """
    text = reply if isinstance(reply, str) else reply.decode("utf-8", "replace")
    text, is_wrong, why = text.partition(" !")
    waits = list(map(int, text.split()))
    if number is not None and len(waits) != number:
        raise ValueError(f"{len(waits)} waits for {number} keys")
    if not is_wrong:
        return waits  # type: ignore[return-value]
    return [fault_of_reply(why) if wait < 0 else wait for wait in waits]


def some(reply: Sequence[int]) -> Some:
    """Read TAKE_SOME."""
    granted, wait = map(int, _listed(reply))
    return Some(granted, wait)


def grant(reply: Sequence[int]) -> Grant:
    """Read GRANT."""
    units, wait, stamp = map(int, _listed(reply))
    return Grant(units, wait, stamp)


def decision(
    quotas: tuple[Quota, ...], reply: Sequence[int], cost: int, degraded: bool = False
) -> Decision:
    """Read TELL or LOOK, for the cost that was asked with.

    The binding quota is, of those that deny, the one with the longest wait; else the one with the
    least remaining; the first of equals. Times in the decision go by the server's clock.
    """
    clock = _listed(reply)[0]
    views = [reply[at : at + 4] for at in range(1, len(reply), 4)]
    denied, binding, most, least = False, 0, 0, math.inf
    for nth, (quota, (used, _, _, deciding)) in enumerate(zip(quotas, views, strict=True)):
        if cost and deciding:
            out = deciding + window_us(quota)
            if out > most:
                denied, binding, most = True, nth, out
        elif not denied and quota.limit - used < least:
            binding, least = nth, quota.limit - used
    quota = quotas[binding]
    used, newest, oldest, deciding = views[binding]
    return _core._decision(
        not denied, False, quota, 1_000, window_us(quota), math.inf, clock * 1_000,
        newest, oldest, deciding, used, quota.limit, degraded=degraded,
    )  # fmt: skip
