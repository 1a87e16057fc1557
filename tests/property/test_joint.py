"""Several quotas, several limiters, reservations: against references in plain Python.

A limiter with several quotas is as many references; a request passes if it passes in each, and is
then counted in each. Nothing else is known here of how the engine does it.
"""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from clocks import END_OF_TIME_NS, NanoClock
from doors import verify
from nanolimit import Decision, Quota, RateLimiter, RateLimitExceeded, _core, check_all
from nanolimit.reservation import Reservation
from reference import NS_PER_S, Reference, Verdict, seconds

KEYS = ["a", "b", 7]
MOST = 4  # quotas of a limiter here

quotas = st.builds(
    Quota,
    st.one_of(st.integers(1, 9), st.sampled_from([17, 40, 100, 2_047])),
    st.sampled_from([1e-6, 0.001, 1.0, 1.073741825, 60.0, 3_600.0, 86_400.0]),
)
sets = st.lists(quotas, min_size=1, max_size=MOST)
keys = st.sampled_from(KEYS)


class Joint:
    """A limiter and its references, one for each quota."""

    def __init__(self, quotas: list[Quota], limiter: RateLimiter) -> None:
        self.limiter = limiter
        self.references = [Reference(quota.limit, quota.window_ns) for quota in quotas]
        self.quotas = quotas
        self.least = min(quota.limit for quota in quotas)

    def peek(self, key: Any, now_ns: int, cost: int) -> list[Verdict]:
        return [each.peek(key, now_ns, cost) for each in self.references]

    def count(self, key: Any, now_ns: int, cost: int) -> list[Verdict]:
        return [each.check(key, now_ns, cost) or pytest.fail("full") for each in self.references]

    def tokens(self, key: Any) -> list[int]:
        return [each.newest(key) for each in self.references]

    def refund(self, key: Any, now_ns: int, units: int, tokens: list[int] | None = None) -> int:
        return max(
            each.refund(key, now_ns, units, tokens[number] if tokens else None)
            for number, each in enumerate(self.references)
        )


def binding(verdicts: list[Verdict]) -> int:
    """The first of those that deny longest; else the first of those with the least left."""
    if all(verdict.allowed for verdict in verdicts):
        left = [verdict.remaining for verdict in verdicts]
        return left.index(min(left))
    waits = [-1 if verdict.allowed else verdict.retry_after_ns for verdict in verdicts]
    return waits.index(max(waits))


def agree(decision: Decision, verdicts: list[Verdict], named: list[Quota]) -> None:
    allowed = all(verdict.allowed for verdict in verdicts)
    at = binding(verdicts)
    assert decision.allowed == allowed
    assert decision.quota == named[at]
    assert decision.violated == (None if allowed else named[at])
    assert decision.limit == named[at].limit
    assert decision.remaining == verdicts[at].remaining
    assert decision.retry_after == seconds(verdicts[at].retry_after_ns)
    assert decision.reset_after == seconds(verdicts[at].reset_after_ns)
    assert decision.refill_after == seconds(verdicts[at].refill_after_ns)


class Several(RuleBasedStateMachine):
    options: ClassVar[dict[str, Any]] = {}

    @initialize(first=sets, second=sets, start=st.integers(0, 2**60))
    def begin(self, first: list[Quota], second: list[Quota], start: int) -> None:
        self.clock = NanoClock(start)
        self.joints = [
            Joint(each, RateLimiter(each, clock=self.clock, **self.options))
            for each in (first, second)
        ]
        self.open: list[tuple[Joint, Reservation, list[int]]] = []

    def teardown(self) -> None:
        for joint in getattr(self, "joints", ()):
            joint.limiter.close()

    @rule(which=st.integers(0, 1), key=keys, cost=st.integers(0, 30), counts=st.booleans())
    def check(self, which: int, key: Any, cost: int, counts: bool) -> None:
        joint, now = self.joints[which], self.clock.ns
        cost = min(cost, joint.least)
        verdicts = joint.peek(key, now, cost)
        if not counts:
            agree(joint.limiter.peek(key, cost), verdicts, joint.quotas)
            return
        if cost and all(verdict.allowed for verdict in verdicts):
            verdicts = joint.count(key, now, cost)
        agree(joint.limiter.check(key, cost), verdicts, joint.quotas)

    @rule(which=st.integers(0, 1), n=st.integers(1, 60), key=keys)
    def burst(self, which: int, n: int, key: Any) -> None:
        joint, now = self.joints[which], self.clock.ns
        expected = []
        for _ in range(n):
            fits = all(verdict.allowed for verdict in joint.peek(key, now, 1))
            if fits:
                joint.count(key, now, 1)
            expected.append(fits)
        half = n // 2
        told = [joint.limiter.allow(key) for _ in range(half)]
        told += joint.limiter.allow_many([key] * (n - half))
        assert told == expected

    @rule(
        items=st.lists(
            st.tuples(st.integers(0, 1), keys, st.integers(0, 5)), min_size=1, max_size=6
        )
    )
    def together(self, items: list[tuple[int, Any, int]]) -> None:
        """The same key of the same limiter twice: the costs add up."""
        now = self.clock.ns
        sums: dict[tuple[int, Any], int] = {}
        for which, key, cost in items:
            sums[which, key] = sums.get((which, key), 0) + min(cost, self.joints[which].least)
        if any(cost > self.joints[which].least for (which, _), cost in sums.items()):
            return
        asked = [
            (self.joints[which].limiter, key, min(cost, self.joints[which].least))
            for which, key, cost in items
        ]
        verdicts, named = [], []
        for (which, key), cost in sums.items():
            verdicts += self.joints[which].peek(key, now, cost)
            named += self.joints[which].quotas
        if all(verdict.allowed for verdict in verdicts):
            verdicts = []
            for (which, key), cost in sums.items():
                joint = self.joints[which]
                verdicts += joint.count(key, now, cost) if cost else joint.peek(key, now, 0)
        agree(check_all(asked), verdicts, named)

    @rule(which=st.integers(0, 1), key=keys, cost=st.integers(1, 30))
    def reserve(self, which: int, key: Any, cost: int) -> None:
        joint, now = self.joints[which], self.clock.ns
        cost = min(cost, joint.least)
        verdicts = joint.peek(key, now, cost)
        if fits := all(verdict.allowed for verdict in verdicts):
            verdicts = joint.count(key, now, cost)
        reservation = joint.limiter.reserve(key, cost)
        assert reservation.ok == fits
        agree(reservation.decision, verdicts, joint.quotas)
        if fits:
            self.open.append((joint, reservation, joint.tokens(key)))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), actual=st.integers(0, 60))
    def settle(self, data: st.DataObject, actual: int) -> None:
        at = data.draw(st.integers(0, len(self.open) - 1))
        joint, reservation, tokens = self.open.pop(at)
        key, now = reservation.key, self.clock.ns
        if actual == 0:
            assert reservation.cancel() == joint.refund(key, now, reservation.cost, tokens)
            return
        debt = reservation.commit(actual)
        if actual <= reservation.cost:
            joint.refund(key, now, reservation.cost - actual, tokens)
            assert debt == 0
            return
        more = actual - reservation.cost
        fitting = min(more, *(each.peek(key, now, 0).remaining for each in joint.references), 2_047)
        fitting = max(fitting, 0)
        if fitting:
            joint.count(key, now, fitting)
        assert debt == more - fitting

    @rule(which=st.integers(0, 1), key=keys, units=st.integers(0, 5))
    def refund(self, which: int, key: Any, units: int) -> None:
        joint = self.joints[which]
        units = min(units, joint.least)
        expected = joint.refund(key, self.clock.ns, units)
        assert joint.limiter.refund(key, units) == expected

    @rule(which=st.integers(0, 1), key=keys, succeeds=st.booleans())
    def attempt(self, which: int, key: Any, succeeds: bool) -> None:
        joint, now = self.joints[which], self.clock.ns
        fits = all(verdict.allowed for verdict in joint.peek(key, now, 1))
        if fits:
            joint.count(key, now, 1)
            if succeeds:
                joint.refund(key, now, 1, joint.tokens(key))
        with contextlib.ExitStack() as stack:
            if not fits:
                stack.enter_context(pytest.raises(RateLimitExceeded))
            with joint.limiter.attempt(key) as attempt:
                assert fits
                if succeeds:
                    assert attempt.success() == 1

    @rule(which=st.integers(0, 1), key=keys)
    def reset(self, which: int, key: Any) -> None:
        joint, now = self.joints[which], self.clock.ns
        live = any(each.contains(key, now) for each in joint.references)
        assert joint.limiter.reset(key) == live
        for each in joint.references:
            each.forget(key)

    @rule(which=st.integers(0, 1), key=keys)
    def to_the_promise(self, which: int, key: Any) -> None:
        """One nanosecond before retry_after it is denied, at it allowed: so the rules will see."""
        decision = self.joints[which].limiter.peek(key, 1)
        if not decision and self.clock.ns < END_OF_TIME_NS // 2:
            self.clock.ns += round(decision.retry_after * NS_PER_S)

    @rule(step=st.one_of(st.integers(0, 2_000), st.integers(0, 2 * 10**9), st.integers(0, 10**14)))
    def move_on(self, step: int) -> None:
        self.clock.ns = min(self.clock.ns + step, END_OF_TIME_NS // 2)

    @rule(step=st.integers(0, 10**9))
    def step_back(self, step: int) -> None:
        self.clock.ns = max(0, self.clock.ns - step)

    @invariant()
    def sound(self) -> None:
        for joint in getattr(self, "joints", ()):
            verify(joint.limiter)


class SeveralShared(Several):
    """Each quota in a file of its own, with a secret of its own."""

    options: ClassVar[dict[str, Any]] = {"shared": True, "max_keys": 50}


TestSeveral = Several.TestCase
TestSeveral.settings = settings(max_examples=settings().max_examples // 4)
TestSeveralShared = pytest.mark.skipif(not _core.SHARED, reason="shared tables are for Linux")(
    SeveralShared.TestCase
)
TestSeveralShared.settings = settings(max_examples=settings().max_examples // 8)
