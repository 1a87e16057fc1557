"""Denials: what the store has refused just now is refused here, without asking it again.

A denial says when the request could fit: ``r`` seconds later for a cost of ``c``. The store's clock
was read after the request had been sent, and so, at ``sent + r`` by the clock of this process, no
more than ``r`` has passed there. Until then nothing that costs as much can fit, whoever else comes:
others only fill the log. So the cache never allows what the store would not, and denies too long
only where capacity is freed before its time: by a reset or a higher limit in another process. That
is bounded by `cap_s`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nanolimit._core import Decision

__all__ = ["CAP_S", "MAX_KEYS", "Denial", "Denials"]

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
    fork could tear. Threads that put at the same time may pass the bound by one entry each.
    """

    __slots__ = ("_cap_s", "_kept", "_max_keys", "epoch")

    epoch: object
    """Another one each time that something was forgotten. What was asked before is not kept."""

    def __init__(self, cap_s: float = CAP_S, max_keys: int = MAX_KEYS) -> None:
        self._cap_s = cap_s
        self._max_keys = max_keys
        self._kept: dict[bytes, Denial] = {}
        self.epoch = object()

    def get(self, place: bytes, cost: int, now_s: float) -> Denial | None:
        """Return the denial that holds for this cost now, or None: the store must be asked."""
        denial = self._kept.get(place)
        if denial is None or cost < denial.cost or now_s >= denial.until_s:
            return None
        return denial

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

    def __len__(self) -> int:
        return len(self._kept)
