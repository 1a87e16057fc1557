"""Denials: what the store has refused just now is refused here, without asking it again.

A denial says when the request could fit: ``r`` seconds later for a cost of ``c``. The store's clock
was read after the request had been sent, and so, at ``sent + r`` by the clock of this process, no
more than ``r`` has passed there. Until then nothing that costs as much can fit, whoever else comes:
others only fill the log. So the cache never allows what the store would not, and denies too long
only where capacity is freed before its time: by a reset or a higher limit in another process. That
is bounded by `cap_s`.

`Denials` are those of one process. `SharedDenials` are those of all processes of a machine that
give the same shared table.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple, cast

from nanolimit import _core
from nanolimit.clock import NS_PER_SECOND
from nanolimit.errors import NanolimitError
from nanolimit.redis.fork import renew_after_fork

if TYPE_CHECKING:
    import os
    from typing import Literal

    from nanolimit._core import Decision
    from nanolimit.quota import Quota

__all__ = ["CAP_S", "MAX_KEYS", "Denial", "Denials", "SharedDenials", "open_table"]

#: Seconds for which a denial is repeated at most.
CAP_S = 1.0

#: How many keys are kept at most: about 5 MiB if all of them are full decisions.
MAX_KEYS = 16_384


class Denial(NamedTuple):
    """One denial that is repeated."""

    until_s: float
    """Until when, by the clock of this process."""

    cost: int
    """What was refused, and with it all that costs more."""

    decision: Decision | None
    """What `check` was told; `allow` is told less."""

    told_s: float
    """When that was: a decision is counted down from when it came, not from when it was made."""


class Denials:
    """The denials of one limiter, by the places of their keys. Time is an argument.

    Thread-safe without a lock: each step is one operation of a dict. So there is nothing that a
    fork could tear; but without the GIL the dict has a lock, and a child begins with another one.
    Threads that put at the same time may pass the bound by one entry each.
    """

    __slots__ = ("__weakref__", "_cap_s", "_kept", "_max_keys", "epoch")

    epoch: object
    """Another one each time that something was forgotten. What was asked before is not kept."""

    def __init__(self, cap_s: float = CAP_S, max_keys: int = MAX_KEYS) -> None:
        self._cap_s = cap_s
        self._max_keys = max_keys
        self._kept: dict[bytes, Denial] = {}
        self.epoch = object()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """In the child: a thread of the parent may have held the dict's own lock."""
        self._kept = {}

    def get(self, place: bytes, cost: int, now_s: float) -> Denial | None:
        """Return the denial that holds for this cost now, or None: the store must be asked."""
        denial = self._kept.get(place)
        if denial is None or cost < denial.cost or now_s >= denial.until_s:
            return None
        return denial

    def left_s(self, place: bytes, cost: int, now_s: float) -> float:
        """Return for how many seconds this cost is denied yet; 0.0: the store must be asked."""
        denial = self._kept.get(place)
        if denial is None or cost < denial.cost or now_s >= denial.until_s:
            return 0.0
        return denial.until_s - now_s

    def told(self, place: bytes, cost: int, now_s: float) -> Decision | None:
        """Return what the store said of exactly this cost, as it is now; None: ask it."""
        denial = self.get(place, cost, now_s)
        if denial is None or denial.decision is None or denial.cost != cost:
            return None
        return _later(denial.decision, now_s - denial.told_s)

    def put(
        self,
        place: bytes,
        cost: int,
        sent_s: float,
        retry_s: float,
        epoch: object,
        decision: Decision | None = None,
        told_s: float = 0.0,
    ) -> None:
        """Keep what the store has refused.

        Args:
            place: Whom.
            cost: How much he asked for.
            sent_s: The time just *before* it was asked.
            retry_s: After how many seconds it would fit, as the store says.
            epoch: `epoch` as it was at that time.
            decision: The whole answer, if there is one.
            told_s: When that came.
        """
        if epoch is not self.epoch:
            return
        kept = self._kept
        denial = Denial(sent_s + min(retry_s, self._cap_s), cost, decision, told_s)
        former = kept.pop(place, None)
        if former is not None and former.until_s >= denial.until_s and former.cost <= cost:
            # That one says it already, and for more. But of the same cost, a whole answer is
            # better than half of one.
            if decision is None or former.decision is not None or former.cost < cost:
                denial = former
        elif former is None and len(kept) >= self._max_keys:
            # The oldest one, which is over soonest: none lasts for more than `cap_s`.
            try:
                kept.pop(next(iter(kept)), None)
            except (StopIteration, RuntimeError):  # other threads were at it
                pass
        kept[place] = denial
        if epoch is not self.epoch:  # forgotten meanwhile
            kept.pop(place, None)

    def forget(self, place: bytes) -> None:
        """Forget the key's denial, and those that are on their way here."""
        self.epoch = object()
        self._kept.pop(place, None)

    def clear(self) -> None:
        """Forget all."""
        self.epoch = object()
        self._kept.clear()

    close = clear

    def __len__(self) -> int:
        return len(self._kept)


# What a place has room for: a denial with its whole answer takes four of the table's keys, a reset
# one. About 4 MiB; a table of more than 16,384 keys is never searched whole when it is full.
_TABLE_KEYS = 4 * MAX_KEYS

# Who writes asks after 2 ms whether the process that is in the way lives, and leaves it after this.
_STALL_NS = 5_000_000


class SharedDenials:
    """The denials of all limiters of this machine that have the same table and the same limits.

    One learns, all repeat. They stand in a table of their own, beside the one in which
    ``on_error="local"`` counts (`core/denial.h` has the reasons), until an instant on the machine's
    clock, which was read before the store was asked. A reset forgets the denial for all, and those
    that are on their way to any of them.

    What the table has no room for, or can't take because a stopped process is in the way, its own
    process keeps, as if there was no table; and so it does altogether in the child of a fork that
    finds no place at the table. Nothing of that is an error to who asks.

    Thread-safe. Looking takes no lock and makes no system call.
    """

    __slots__ = ("_cap_ns", "_own", "_quotas", "_table")

    def __init__(
        self, table: _core.Limiter, quotas: tuple[Quota, ...], whose: bytes, cap_s: float = CAP_S
    ) -> None:
        """Make them of an open table.

        Args:
            table: What `open_table` gave.
            quotas: The limiter's.
            whose: What else tells the limiter from others, such as its prefix and name.
            cap_s: Seconds for which a denial is repeated at most.
        """
        # Of a deployment that changes the limit, the denials of the old one are not the new one's:
        # it would deny too long as long as old workers go on.
        limits = repr([(quota.limit, quota.window_ns) for quota in quotas]).encode()
        digest = blake2b(limits, key=blake2b(whose).digest(), digest_size=8).digest()
        self._cap_ns = int(cap_s * NS_PER_SECOND)
        self._table: _core.DenialTable | None = _core.DenialTable(
            table, int.from_bytes(digest, "little"), self._cap_ns
        )
        self._own = Denials(cap_s)
        self._quotas = quotas

    @property
    def epoch(self) -> object:
        """What `put` needs of a request, taken before it is sent: when that was, by the table."""
        table = self._table
        return None if table is None else table.now_ns(), self._own.epoch

    def left_s(self, place: bytes, cost: int, now_s: float) -> float:
        """Return for how many seconds this cost is denied yet; 0.0: the store must be asked."""
        table, own = self._table, self._own
        if table is not None:
            left_s = table.left_s(place, cost)
            if left_s or not own._kept:
                return left_s
        return own.left_s(place, cost, now_s)

    def told(self, place: bytes, cost: int, now_s: float) -> Decision | None:
        """Return what the store said of exactly this cost, as it is now; None: ask it."""
        table = self._table
        decision = None if table is None else table.decision(place, cost, self._quotas)
        return self._own.told(place, cost, now_s) if decision is None else decision

    def put(
        self,
        place: bytes,
        cost: int,
        sent_s: float,
        retry_s: float,
        epoch: object,
        decision: Decision | None = None,
        told_s: float = 0.0,
    ) -> None:
        """Keep what the store has refused. As `Denials.put`; `epoch`: as it was before that."""
        sent_ns, own_epoch = cast("tuple[int | None, object]", epoch)
        table = self._table
        if table is not None and sent_ns is not None:
            nth = 0 if decision is None else self._quotas.index(decision.quota)
            retry_ns = int(retry_s * NS_PER_SECOND)
            try:
                if table.put(place, cost, sent_ns, retry_ns, decision, nth):
                    return
            except NanolimitError:  # closed meanwhile, or a child's that is not one of its users
                self._table = None
        self._own.put(place, cost, sent_s, retry_s, own_epoch, decision, told_s)

    def forget(self, place: bytes) -> None:
        """Forget the key's denial, for all, and those that are on their way to any of them."""
        self._own.forget(place)
        table = self._table
        if table is None:
            return
        try:
            # What was asked for before now is over by then.
            table.forget(place, self._cap_ns)
        except NanolimitError:
            self._table = None

    def close(self) -> None:
        """Leave the table, and what is in it to the others."""
        self._table = None
        self._own.clear()


def open_table(shared: str | os.PathLike[str] | Literal[True], name: str) -> _core.Limiter:
    """Open the table that keeps denials beside the shared table of this name, or make it.

    Raises:
        TypeError, ValueError, SharedTableError: As `RateLimiter` with ``shared``.
    """
    # Here, because few limiters need it.
    from nanolimit import table as tables
    from nanolimit.limiter import _attached
    from nanolimit.place import more_of

    tables.require_platform()
    wanted = tables.Wanted(
        tables.RECORDS_QUOTA,
        _TABLE_KEYS,
        None,
        own_clock=False,
        algorithm="gcra",
        number=tables.DENIALS_NUMBER,
    )
    beside = shared if shared is True else more_of(shared, tables.DENIALS)
    # One that another version made with another size is as good.
    access = tables.Access(on_mismatch="adopt")
    return _attached(beside, wanted, access, name, "deny", None, _STALL_NS, "deny")[0]


def _later(decision: Decision, passed_s: float) -> Decision:
    """Return a decision as it is so many seconds later, if nobody else came."""
    make, values = decision.__reduce__()
    now = _NOW
    passed_ns = int(passed_s * NS_PER_SECOND)  # rounded down: it never promises too early
    return make(*values[:now], values[now] + passed_ns, *values[now + 1 :])  # type: ignore[operator, index, no-any-return]


# Where `_core._decision` takes the time.
_NOW = 6
