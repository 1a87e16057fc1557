"""What stands of a key besides its log, in plain Python: quotas of its own, exemptions, penalties.

Times are whole nanoseconds; the engine keeps ends of blocks in microseconds, rounded up.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from nanolimit import Backoff, Quota
from reference import Reference, Verdict

TICK_NS = 1_000


def _up(ns: int) -> int:
    return -(-ns // TICK_NS)


@dataclass(frozen=True)
class Penalty:
    """Valid until `end`; a block lasts until `block_end`. In ticks."""

    end: int
    block_end: int
    level: int = 0
    strikes: int = 0
    by_hand: bool = False

    def blocks(self, now: int) -> bool:
        return now < self.block_end


@dataclass(frozen=True)
class Judgement:
    """What a Decision should say."""

    verdicts: list[Verdict]
    quotas: list[Quota]
    allowed: bool
    counted: bool = False
    blocked_ns: int = 0  # until when, by the clock; 0: it is not blocked
    blocks: bool = False  # this denial led to a block


@dataclass
class Policies:
    """A limiter with all its policies. Methods take the time as an argument."""

    quotas: list[Quota]
    backoff: Backoff | None = None
    own: dict[Hashable, dict[int, int]] = field(default_factory=dict)  # limit of quota i
    exempt: set[Hashable] = field(default_factory=set)
    penalties: dict[Hashable, Penalty] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.references = [Reference(each.limit, each.window_ns) for each in self.quotas]

    def named(self, key: Hashable, given: Sequence[Quota] | None) -> list[Quota]:
        """The quotas that hold for a request."""
        own = self.own.get(key, {})
        held = [
            Quota._of(own.get(number, each.limit), each.window_ns)
            for number, each in enumerate(self.quotas)
        ]
        for quota in given or ():
            for number, each in enumerate(self.quotas):
                if each.window_ns == quota.window_ns:
                    held[number] = quota
                    break
        return held

    def penalty(self, key: Hashable, now_ns: int) -> Penalty | None:
        penalty = self.penalties.get(key)
        return penalty if penalty is not None and now_ns // TICK_NS < penalty.end else None

    def peek(
        self, key: Hashable, now_ns: int, cost: int, given: Sequence[Quota] | None = None
    ) -> Judgement:
        named = self.named(key, given)
        verdicts = []
        for each, quota in zip(self.references, named, strict=True):
            each.limit = quota.limit
            verdicts.append(each.peek(key, now_ns, cost))
        allowed = all(verdict.allowed for verdict in verdicts) or key in self.exempt
        penalty = self.penalty(key, now_ns)
        blocked_ns = 0
        if penalty is not None and penalty.blocks(now_ns // TICK_NS):
            blocked_ns = penalty.block_end * TICK_NS
            allowed = allowed and cost == 0
        return Judgement(verdicts, named, allowed or cost == 0, blocked_ns=blocked_ns)

    def check(
        self, key: Hashable, now_ns: int, cost: int, given: Sequence[Quota] | None = None
    ) -> Judgement:
        seen = self.peek(key, now_ns, cost, given)
        if cost == 0:
            return seen
        if seen.blocked_ns:
            return self._prolonged(key, now_ns, seen)
        if key in self.exempt:
            return seen
        if not seen.allowed:
            return self._struck(key, now_ns, seen)
        verdicts = []
        for each, quota in zip(self.references, seen.quotas, strict=True):
            each.limit = quota.limit
            verdict = each.check(key, now_ns, cost)
            assert verdict is not None
            verdicts.append(verdict)
        penalty = self.penalty(key, now_ns)
        if penalty is not None and penalty.strikes:
            if penalty.level:
                self.penalties[key] = replace(penalty, strikes=0)
            else:
                del self.penalties[key]
        return replace(seen, verdicts=verdicts, counted=True)

    def _block_ticks(self, level: int) -> int:
        assert self.backoff is not None
        return _up(int(self.backoff.seconds(level) * 1e9 + 0.5))

    def _struck(self, key: Hashable, now_ns: int, seen: Judgement) -> Judgement:
        if self.backoff is None:
            return seen
        before = self.penalty(key, now_ns) or Penalty(0, 0)
        forgive = self.backoff.forgive_ms * 1_000
        now, strikes = _up(now_ns), before.strikes + 1
        if strikes < self.backoff.after:
            self.penalties[key] = Penalty(now + forgive, 0, before.level, strikes)
            return seen
        end = now + self._block_ticks(before.level)
        self.penalties[key] = Penalty(end + forgive, end, before.level + 1)
        return replace(seen, blocked_ns=end * TICK_NS, blocks=True)

    def _prolonged(self, key: Hashable, now_ns: int, seen: Judgement) -> Judgement:
        penalty = self.penalties[key]
        if self.backoff is None or not self.backoff.prolong or penalty.by_hand:
            return seen
        end = _up(now_ns) + self._block_ticks(penalty.level - 1)
        if end <= penalty.block_end:
            return seen
        more = end - penalty.block_end
        self.penalties[key] = replace(penalty, end=penalty.end + more, block_end=end)
        return replace(seen, blocked_ns=end * TICK_NS)

    # -- words on keys ---------------------------------------------------------------------------

    def block(self, key: Hashable, now_ns: int, duration_ns: int) -> None:
        before = self.penalty(key, now_ns)
        level = before.level if before is not None else 0
        end = _up(now_ns) + _up(duration_ns)
        forgive = self.backoff.forgive_ms * 1_000 if self.backoff is not None and level else 0
        self.penalties[key] = Penalty(end + forgive, end, level, by_hand=True)

    def unblock(self, key: Hashable, now_ns: int) -> bool:
        penalty = self.penalty(key, now_ns)
        self.penalties.pop(key, None)
        return penalty is not None and penalty.blocks(now_ns // TICK_NS)

    def set_quota(self, key: Hashable, quota: Quota | None) -> None:
        if quota is None:
            self.own.pop(key, None)
            return
        number = next(i for i, q in enumerate(self.quotas) if q.window_ns == quota.window_ns)
        self.own.setdefault(key, {})[number] = quota.limit

    def update(self, number: int, quota: Quota) -> None:
        """In place: only the limit is another one."""
        assert quota.window_ns == self.quotas[number].window_ns
        self.quotas[number] = quota

    def move(self, number: int, quota: Quota, now_ns: int) -> None:
        """To another table: what is live goes over, its stamps rounded up to the new ticks."""
        old, new = self.references[number], Reference(quota.limit, quota.window_ns)
        for key in old.logs:
            live = old.live(key, now_ns)
            new.logs[key] = [-(-stamp * old.tick // new.tick) for stamp in live]
            new.logs[key] = new.live(key, now_ns)
            if not new.logs[key]:
                del new.logs[key]
        self.references[number] = new
        self.quotas[number] = quota
