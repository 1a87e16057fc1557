"""The real limiter against the plain-Python reference, step by step, under any sequence of calls.

Two machines share their rules. `OpenTable` has room for everything and grows by thousands of keys;
`FullTable` holds one to thirty-two keys and is full most of the time, with each `on_full`.

Only one thing is left to the engine: *when* it takes the slot of an idle key again. Such a key
holds no information, so nobody sees the difference, unless the clock goes back: then a key that was
left alone has its stamps again, and one whose slot was taken is new. `self.doubtful` names the keys
for which both are right, and only these; going back finds out which it was.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Literal

from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from clocks import END_OF_TIME_NS, NanoClock
from doors import verify
from nanolimit import Decision, RateLimiter, _core
from neighbours import neighbours
from reference import NS_PER_S, OnFull, Reference, Verdict, seconds, tick_ns

TEN_YEARS_NS = 315_576_000 * NS_PER_S

#: Sizes at which the ring of stamps changes its shape, and some between.
LIMITS = st.one_of(
    st.sampled_from([1, 2, 3, 5, 6, 7, 8, 15, 16, 17, 22, 31, 32, 33, 63, 64, 100, 127, 128]),
    st.sampled_from([255, 256, 257, 511, 512, 1_000, 1_023, 1_024, 2_046, 2_047]),
    st.sampled_from([2_048, 2_500, 5_000]),  # kept in runs
    st.integers(1, 12),
    st.integers(1, 2_047),
)

#: From a microsecond to ten years: round ones, and every order of magnitude.
WINDOWS_NS = st.one_of(
    st.sampled_from([1_000, 10**6, NS_PER_S, 60 * NS_PER_S, 3_600 * NS_PER_S, 86_400 * NS_PER_S]),
    st.sampled_from([2**30, 2**30 + 1, 2**31, 5 * 2**30 - 1, TEN_YEARS_NS]),
    st.integers(3, 17).flatmap(lambda e: st.integers(10**e, min(10 ** (e + 1), TEN_YEARS_NS))),
)

#: Keys of every kind that have nothing to do with each other.
STRANGERS: list[Any] = [
    "a", "b", "user:42", "ä", "日本", "", "x" * 99, b"a", b"b", b"", 0, 1, -1, 2**63, 2**64,
    -(2**70), (), ("a", 1), ("a", "1"), ((), ("a",)),
]  # fmt: skip


def window_of(per: float) -> int:
    """What `per` means: the nearest nanosecond."""
    return round(Fraction(per) * NS_PER_S)


class Machine(RuleBasedStateMachine):
    """What both tables have in common."""

    max_keys_strategy: st.SearchStrategy[int]
    on_full_strategy: st.SearchStrategy[OnFull]
    limits: st.SearchStrategy[int] = LIMITS
    shared = False

    limiter: RateLimiter
    reference: Reference

    # -- set-up ----------------------------------------------------------------------------------

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        limit = data.draw(self.limits, "limit")
        per = data.draw(WINDOWS_NS, "window") / NS_PER_S
        max_keys = data.draw(self.max_keys_strategy, "max_keys")
        on_full = data.draw(self.on_full_strategy, "on_full")
        self.limit = limit
        self.window_ns = window_of(per)
        self.tick = tick_ns(self.window_ns)
        self.on_grid = data.draw(st.booleans(), "on_grid")
        self.clock = NanoClock(self.legal(data.draw(self.starts(), "start")))
        where: dict[str, Any] = {"shared": True, "typical": limit} if self.shared else {}
        self.limiter = RateLimiter(
            limit, per=per, clock=self.clock, max_keys=max_keys, on_full=on_full, **where
        )
        self.reference = Reference(limit, self.window_ns, max_keys=max_keys, on_full=on_full)
        self.doubtful: set[Any] = set()
        self.displaced = 0
        self.dropped = 0
        self.bulks = 0
        self.steps = 0
        # Keys are drawn by their number: neighbours are others in each run, as the secret is.
        shares: list[Literal["bucket", "tag"] | None] = [None, "bucket", "tag"]
        share = data.draw(st.sampled_from(shares), "keys share")
        self.keys = neighbours(self.limiter, share, len(STRANGERS)) if share else STRANGERS
        self.key = st.integers(0, len(STRANGERS) - 1).map(self.keys.__getitem__)

    def starts(self) -> st.SearchStrategy[int]:
        """Times at which a run may begin: among them the edges of 32-bit ticks and of epochs."""
        near = st.integers(-3 * self.tick, 3 * self.tick)
        last = END_OF_TIME_NS // self.tick
        edges = [
            st.builds(
                lambda k, d, bits=bits: (k << bits) * self.tick + d,
                st.integers(0, last >> bits),
                near,
            )
            for bits in (30, 32)
        ]
        return st.one_of(
            st.just(0), *edges, st.integers(0, END_OF_TIME_NS - 1), st.just(END_OF_TIME_NS - 1)
        )

    def teardown(self) -> None:
        if hasattr(self, "limiter"):
            verify(self.limiter)
            self.limiter.close()

    # -- time ------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        return self.clock.ns

    def legal(self, ns: int) -> int:
        """`ns` inside what a clock may show, and on the grid where this run keeps to it."""
        ns = max(0, min(ns, END_OF_TIME_NS - 1))
        return ns - ns % self.tick if self.on_grid else ns

    def set_clock(self, ns: int) -> None:
        back = ns < self.now
        self.clock.ns = ns
        if back:
            self.settle_doubts()

    def settle_doubts(self) -> None:
        """The clock went back: which of the idle keys had lost their slots?"""
        for key in list(self.doubtful):
            if self.reference.live(key, self.now) and key not in self.limiter:
                self.reference.forget(key)
                self.doubtful.discard(key)

    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        """A step of any size, most of them about as long as something that matters."""
        size = data.draw(
            st.one_of(
                st.integers(0, 5 * self.tick),
                st.integers(0, self.window_ns),
                st.integers(max(0, self.window_ns - 2 * self.tick), self.window_ns + 2 * self.tick),
                st.integers(self.window_ns, 5 * self.window_ns),
            ),
            "nanoseconds",
        )
        self.set_clock(self.legal(self.now + size))

    @rule(data=st.data())
    def go_to_an_expiry(self, data: st.DataObject) -> None:
        """To the instant at which a stamp leaves, or as near to it as time comes."""
        key = data.draw(self.key, "key")
        which = data.draw(st.integers(-1, 3), "stamp")
        off_ns = data.draw(st.sampled_from([-self.tick, -1, 0, 1]), "off by")
        stamps = sorted(set(self.reference.live(key, self.now)))
        if stamps:
            instant = (stamps[min(which, len(stamps) - 1)] + self.reference.window) * self.tick
            self.set_clock(self.legal(instant + off_ns))

    @rule(data=st.data())
    def go_back(self, data: st.DataObject) -> None:
        size = data.draw(
            st.one_of(
                st.integers(1, 5 * self.tick),
                st.integers(1, 2 * self.window_ns),
                st.integers(1, 10 * TEN_YEARS_NS),
            ),
            "nanoseconds",
        )
        self.set_clock(self.legal(self.now - size))

    @rule(data=st.data())
    def go_far(self, data: st.DataObject) -> None:
        """Years, or a whole number of turns of the 32-bit tick or of the epoch, and a bit."""
        turn = st.builds(
            lambda n, bits, d: n * (self.tick << bits) + d,
            st.integers(1, 5),
            st.integers(30, 58),
            st.integers(-2 * self.tick, 2 * self.tick),
        )
        size = data.draw(st.one_of(st.integers(0, 3 * TEN_YEARS_NS), turn), "nanoseconds")
        self.set_clock(self.legal(self.now + size))

    # -- decisions -------------------------------------------------------------------------------

    def cost(self, data: st.DataObject) -> int:
        limit = self.limit
        return data.draw(
            st.one_of(
                st.just(1), st.integers(0, min(3, limit)), st.integers(1, limit), st.just(limit)
            ),
            "cost",
        )

    def same(self, decision: Decision, verdict: Verdict) -> None:
        assert decision.allowed is verdict.allowed
        assert bool(decision) is verdict.allowed
        assert decision.limit == self.limit
        assert decision.quota == self.limiter.quota
        assert decision.remaining == verdict.remaining
        self.same_time(decision.retry_after, verdict.retry_after_ns)
        self.same_time(decision.reset_after, verdict.reset_after_ns)
        self.same_time(decision.refill_after, verdict.refill_after_ns)

    def same_time(self, answer: float, ns: int) -> None:
        """Rounded up to the next float; from 2^53 ns on, where they are coarse, or one more."""
        least = seconds(ns)
        assert answer == least or (ns >= 2**53 and answer == math.nextafter(least, math.inf))

    def untracked(self, decision: Decision, cost: int) -> None:
        """The table was full and `on_full` decided."""
        allowed = self.reference.on_full == "allow"
        assert decision.allowed is allowed
        assert decision.limit == self.limit
        assert decision.remaining == (self.limit - cost if allowed else 0)
        assert decision.retry_after == (0.0 if allowed else self.limiter.quota.per)

    def before_counting(self, key: Any, cost: int) -> bool:
        """Book what inserting `key` may do to others. Returns: it will displace a live key."""
        if cost == 0 or self.reference.contains(key, self.now):
            return False
        self.doubtful |= self.reference.idle_keys(self.now)
        return self.reference.on_full == "evict" and self.reference.is_full(key, self.now)

    def after_displacing(self, newcomer: Any) -> None:
        """Exactly one live key had to go: find out which."""
        live = self.reference.live_keys(self.now) - {newcomer}
        gone = [key for key in live if key not in self.limiter]
        assert len(gone) == 1, f"one key should have gone for {newcomer!r}, these went: {gone}"
        self.reference.forget(gone[0])
        self.displaced += 1

    def count(self, key: Any, cost: int, ask: str) -> None:
        """allow or check, in the limiter and in the reference."""
        displaces = self.before_counting(key, cost)
        answer: Any = getattr(self.limiter, ask)(key, cost)
        if displaces:
            self.after_displacing(key)
        if ask == "allow":
            assert answer is self.reference.allow(key, self.now, cost)
        else:
            verdict = self.reference.check(key, self.now, cost)
            if verdict is None:
                self.untracked(answer, cost)
            else:
                self.same(answer, verdict)
        if self.reference.live(key, self.now):
            self.doubtful.discard(key)

    @rule(data=st.data())
    def allow(self, data: st.DataObject) -> None:
        self.count(data.draw(self.key, "key"), self.cost(data), "allow")

    @rule(data=st.data())
    def check(self, data: st.DataObject) -> None:
        self.count(data.draw(self.key, "key"), self.cost(data), "check")

    @rule(data=st.data())
    def peek(self, data: st.DataObject) -> None:
        key, cost = data.draw(self.key, "key"), self.cost(data)
        decision = self.limiter.peek(key, cost)
        if not self.reference.is_full(key, self.now):
            self.same(decision, self.reference.peek(key, self.now, cost))

    @rule(data=st.data())
    def insist(self, data: st.DataObject) -> None:
        """One key, many calls in a row, a tick apart or none: fills rings and moves them on."""
        key = data.draw(self.key, "key")
        calls = data.draw(st.integers(1, min(2 * self.limit, 150)), "calls")
        cost = data.draw(st.integers(1, max(1, self.limit // 50)), "cost")
        step = data.draw(
            st.sampled_from([0, self.tick, self.window_ns // (self.limit + 1)]), "step"
        )
        for _ in range(calls):
            self.count(key, cost, "allow")
            self.set_clock(self.legal(self.now + step))

    @rule(data=st.data())
    def advance_by_retry_after(self, data: st.DataObject) -> None:
        """The promise of retry_after: allowed then, and not a nanosecond earlier."""
        key, cost = data.draw(self.key, "key"), max(1, self.cost(data))
        before = self.reference.peek(key, self.now, cost)
        promised = self.limiter.peek(key, cost).retry_after
        then = self.now + round(Fraction(promised) * NS_PER_S)
        if before.allowed or then >= END_OF_TIME_NS:
            return
        exactly = self.now + before.retry_after_ns
        assert exactly <= then
        self.set_clock(exactly - 1)
        assert not self.limiter.peek(key, cost).allowed
        self.set_clock(then)
        self.count(key, cost, "allow")

    @rule(data=st.data())
    def allow_many(self, data: st.DataObject) -> None:
        keys = data.draw(st.lists(self.key, max_size=20), "keys")
        cost = self.cost(data)
        if self.reference.on_full == "evict":
            # which key each displaces shows only one by one
            for key in keys:
                self.count(key, cost, "allow")
            return
        for key in keys:
            self.before_counting(key, cost)
        answers = self.limiter.allow_many(keys, cost)
        assert answers == [self.reference.allow(key, self.now, cost) for key in keys]
        self.doubtful -= self.reference.live_keys(self.now)

    # -- forgetting ------------------------------------------------------------------------------

    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        key = data.draw(self.key, "key")
        live = bool(self.reference.live(key, self.now))
        known = self.reference.forget(key)
        self.doubtful.discard(key)
        answer = self.limiter.reset(key)
        assert answer is live or (known and not live)
        assert key not in self.limiter
        assert self.limiter.reset(key) is False

    @rule()
    def evict(self) -> None:
        idle = self.reference.idle_keys(self.now)
        answer = self.limiter.evict()
        assert len(idle - self.doubtful) <= answer <= len(idle)
        self.reference.evict(self.now)
        self.doubtful.clear()
        self.dropped += answer
        assert self.limiter.stats().keys == len(self.reference)

    @rule()
    def clear(self) -> None:
        self.limiter.clear()
        self.reference.clear()
        self.doubtful.clear()
        assert self.limiter.stats().keys == 0

    # -- what must hold at any time --------------------------------------------------------------

    @rule(data=st.data())
    def contains(self, data: st.DataObject) -> None:
        key = data.draw(self.key, "key")
        assert (key in self.limiter) is self.reference.contains(key, self.now)

    @rule()
    def count_keys(self) -> None:
        assert len(self.limiter) == len(self.reference.live_keys(self.now))

    @invariant()
    def stats_agree(self) -> None:
        if not hasattr(self, "limiter"):
            return
        stats = self.limiter.stats()
        tally = self.reference.tally
        assert stats.allowed == tally.allowed
        assert stats.denied == tally.denied
        if self.reference.on_full != "evict":
            assert stats.overflowed == tally.overflowed
        assert stats.evicted == self.displaced + self.dropped
        known = len(self.reference)
        assert known - len(self.reference.idle_keys(self.now)) <= stats.keys <= known

    @invariant()
    def table_is_sound(self) -> None:
        self.steps += 1
        if hasattr(self, "limiter") and self.steps % 4 == 0:
            verify(self.limiter)

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0


class OpenTable(Machine):
    """Room for everything; grows by thousands of keys."""

    max_keys_strategy = st.just(1_000_000)
    on_full_strategy = st.sampled_from(["allow", "deny", "evict"])

    @precondition(lambda self: self.bulks < 3)
    @rule(size=st.integers(100, 3_000))
    def bulk(self, size: int) -> None:
        """New users by the thousand: segments split while the others stay what they are."""
        self.bulks += 1
        newcomers = range(10**6 * self.bulks, 10**6 * self.bulks + size)
        self.doubtful |= self.reference.idle_keys(self.now)
        assert self.limiter.allow_many(newcomers) == [True] * size
        for key in newcomers:
            assert self.reference.allow(key, self.now)
        note(f"{size} more keys")

    @precondition(lambda self: self.bulks > 0)
    @rule()
    def ask_the_bulk_again(self) -> None:
        """Nobody was lost while the table grew."""
        for nth in range(1, self.bulks + 1):
            keys = range(10**6 * nth, 10**6 * nth + 100)
            self.doubtful |= self.reference.idle_keys(self.now)
            answers = self.limiter.allow_many(keys)
            assert answers == [self.reference.allow(key, self.now) for key in keys]
            self.doubtful -= set(keys)


class FullTable(Machine):
    """A table so small that it is full most of the time."""

    max_keys_strategy = st.one_of(st.integers(1, 8), st.integers(1, 32))
    on_full_strategy = st.sampled_from(["allow", "deny", "evict"])
    limits = st.one_of(st.integers(1, 8), st.sampled_from([16, 33, 300]))

    @rule(data=st.data())
    def crowd(self, data: st.DataObject) -> None:
        """Everybody at once, in any order."""
        for number in data.draw(st.permutations(range(len(self.keys))), "order"):
            self.count(self.keys[number], 1, "allow")


class SharedOpenTable(OpenTable):
    """In shared memory, as large as it will be from the start."""

    max_keys_strategy = st.just(20_000)
    limits = st.one_of(st.integers(1, 12), st.sampled_from([15, 16, 31, 100, 255]))
    shared = True


class SharedFullTable(FullTable):
    """In shared memory, and full most of the time."""

    shared = True


# An example has up to 50 steps; `make soak` has the large numbers.
TestOpenTable = OpenTable.TestCase
TestOpenTable.settings = settings(max_examples=settings().max_examples * 3 // 5)
TestFullTable = FullTable.TestCase
TestFullTable.settings = settings(max_examples=settings().max_examples * 3 // 5)
if _core.SHARED:
    # The engine is the same: what differs is where it lies. Fewer examples find that out.
    FEWER = settings(max_examples=settings().max_examples // 3)
    TestSharedOpenTable = SharedOpenTable.TestCase
    TestSharedOpenTable.settings = FEWER
    TestSharedFullTable = SharedFullTable.TestCase
    TestSharedFullTable.settings = FEWER
