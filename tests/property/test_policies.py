"""All policies together, against plain Python, with a clock that steps both ways.

A limiter with one quota or two, with or without a penalty, that enforces or only watches; keys with
limits of their own, exempt ones and blocked ones; quotas that are given to a call; limits and
windows that change at run time, so that all logs move to another table.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from clocks import END_OF_TIME_NS, NanoClock
from doors import verify
from nanolimit import Backoff, Decision, Quota, RateLimiter, _core, check_all
from reference import NS_PER_S, Verdict, seconds
from reference_policies import Judgement, Policies

KEYS = ["a", "b", 7]
WINDOWS = [0.001, 1.0, 1.073741825, 60.0, 86_400.0]
keys = st.sampled_from(KEYS)
# The last one is kept in runs: all logs change their kind on the way.
limits = st.one_of(st.integers(1, 9), st.sampled_from([17, 40, 100, 3_000]))
costs = st.one_of(st.integers(0, 4), st.integers(0, 50))
backoffs = st.builds(
    Backoff,
    after=st.integers(1, 4),
    base=st.sampled_from([0.0000015, 0.5, 1.0, 30.0]),
    factor=st.sampled_from([1.0, 1.5, 2.0, 10.0]),
    maximum=st.sampled_from([30.0, 100.0, 3_600.0]),
    forgive=st.sampled_from([0.001, 1.0, 60.0, 600.0]),
    prolong=st.booleans(),
)


def binding(verdicts: list[Verdict], fits: bool) -> int:
    if fits:
        left = [max(verdict.remaining, 0) for verdict in verdicts]
        return left.index(min(left))
    waits = [-1 if verdict.allowed else verdict.retry_after_ns for verdict in verdicts]
    return waits.index(max(waits))


class Together(RuleBasedStateMachine):
    options: ClassVar[dict[str, Any]] = {"max_keys": 50}

    @initialize(
        data=st.data(),
        number=st.integers(1, 2),
        backoff=st.none() | backoffs,
        enforce=st.sampled_from([True, True, True, False]),
        start=st.integers(0, 2**60),
    )
    def begin(
        self, data: st.DataObject, number: int, backoff: Backoff | None, enforce: bool, start: int
    ) -> None:
        windows = data.draw(st.permutations(WINDOWS))[:number]
        quotas = [Quota(data.draw(limits), per) for per in windows]
        self.clock = NanoClock(start)
        self.enforce = enforce
        self.limiter = RateLimiter(
            quotas, backoff=backoff, enforce=enforce, clock=self.clock, **self.options
        )
        self.policies = Policies(quotas, backoff)
        self.decisions = [0, 0, 0]  # allowed, denied, would_deny

    def teardown(self) -> None:
        if hasattr(self, "limiter"):
            self.limiter.close()

    # -- requests

    def agree(self, decision: Decision, expected: Judgement, now: int, exempt: bool) -> None:
        fits = all(verdict.allowed for verdict in expected.verdicts) or exempt
        at = binding(expected.verdicts, fits)
        verdict, quota = expected.verdicts[at], expected.quotas[at]
        allowed = expected.allowed or not self.enforce
        assert decision.allowed == allowed
        assert decision.would_deny == (allowed and not expected.allowed)
        assert decision.blocked == (expected.blocked_ns != 0)
        assert decision.quota == quota
        assert decision.limit == quota.limit
        assert decision.violated == (None if fits or expected.allowed else quota)
        blocked = bool(expected.blocked_ns) and not allowed
        assert decision.remaining == (0 if blocked else max(verdict.remaining, 0))
        wait_ns = 0 if fits else verdict.retry_after_ns
        wait_ns = max(wait_ns, expected.blocked_ns - now if expected.blocked_ns else 0)
        assert decision.retry_after == (0.0 if allowed else seconds(wait_ns))
        assert decision.reset_after == seconds(verdict.reset_after_ns)
        assert decision.refill_after == seconds(verdict.refill_after_ns)

    def tell(self, expected: Judgement) -> None:
        self.decisions[0] += expected.allowed or not self.enforce
        self.decisions[1] += not expected.allowed and self.enforce
        self.decisions[2] += not expected.allowed and not self.enforce

    @rule(key=keys, cost=costs, counts=st.booleans(), data=st.data())
    def check(self, key: Any, cost: int, counts: bool, data: st.DataObject) -> None:
        now, given = self.clock.ns, None
        if data.draw(st.integers(0, 4)) == 0:
            chosen = data.draw(st.sampled_from(self.policies.quotas))
            given = (Quota._of(data.draw(limits), chosen.window_ns),)
            self.room(self.policies.quotas.index(chosen), given[0])
        least = min(quota.limit for quota in self.policies.named(key, given))
        exempt = key in self.policies.exempt
        ask = self.limiter.check if counts else self.limiter.peek
        if cost > least and not exempt:
            with pytest.raises(ValueError, match="<= the limit of "):
                ask(key, cost, quota=given)
            return
        cost = min(cost, least)
        if counts:
            expected = self.policies.check(key, now, cost, given)
            if cost:
                self.tell(expected)
        else:
            expected = self.policies.peek(key, now, cost, given)
        self.agree(ask(key, cost, quota=given), expected, now, exempt)

    @rule(key=keys, n=st.integers(1, 20))
    def burst(self, key: Any, n: int) -> None:
        now = self.clock.ns
        expected = [self.policies.check(key, now, 1) for _ in range(n)]
        for each in expected:
            self.tell(each)
        half = n // 2
        told = [self.limiter.allow(key) for _ in range(half)]
        told += self.limiter.allow_many([key] * (n - half))
        assert told == [each.allowed or not self.enforce for each in expected]

    @rule(key=keys, cost=st.integers(1, 4))
    def reserve_and_cancel(self, key: Any, cost: int) -> None:
        now = self.clock.ns
        cost = min(cost, *(quota.limit for quota in self.policies.named(key, None)))
        expected = self.policies.check(key, now, cost)
        self.tell(expected)
        reservation = self.limiter.reserve(key, cost)
        assert reservation.ok == (expected.allowed or not self.enforce)
        assert reservation.cancel() == (cost if expected.counted else 0)
        if expected.counted:
            for each in self.policies.references:
                each.refund(key, now, cost, each.newest(key))

    @rule(first=keys, second=keys)
    def both(self, first: Any, second: Any) -> None:
        """Two keys of one limiter: all or nothing; who denied is charged."""
        if first == second or not self.enforce:
            return
        now = self.clock.ns
        seen = [self.policies.peek(key, now, 1) for key in (first, second)]
        passes = all(each.allowed for each in seen)
        assert check_all([(self.limiter, first), (self.limiter, second)]).allowed == passes
        for key, each in zip((first, second), seen, strict=True):
            if passes:
                self.tell(self.policies.check(key, now, 1))
            elif not each.allowed:
                self.tell(each)
                if not each.blocked_ns and key not in self.policies.exempt:
                    self.policies._struck(key, now, each)

    # -- words on keys

    def room(self, number: int, quota: Quota) -> None:
        """Where there is no room for a limit, the engine moves all logs to another table."""
        if quota.limit > self.limiter._engine.limiters[number].max_limit:
            self.policies.move(number, self.policies.quotas[number], self.clock.ns)

    @rule(key=keys, limit=limits, data=st.data())
    def set_quota(self, key: Any, limit: int, data: st.DataObject) -> None:
        quota = data.draw(st.none() | st.sampled_from(self.policies.quotas))
        if quota is not None:
            number = self.policies.quotas.index(quota)
            quota = Quota._of(limit, quota.window_ns)
            self.room(number, quota)
        self.limiter.set_quota(key, quota)
        self.policies.set_quota(key, quota)

    @rule(key=keys, exempt=st.booleans())
    def set_exempt(self, key: Any, exempt: bool) -> None:
        self.limiter.set_exempt(key, exempt)
        (self.policies.exempt.add if exempt else self.policies.exempt.discard)(key)

    @rule(key=keys, duration_ns=st.one_of(st.integers(1, 5_000), st.integers(1, 10**11)))
    def block(self, key: Any, duration_ns: int) -> None:
        duration_s = duration_ns / NS_PER_S
        self.limiter.block(key, duration_s)
        self.policies.block(key, self.clock.ns, duration_ns)

    @rule(key=keys)
    def unblock(self, key: Any) -> None:
        assert self.limiter.unblock(key) == self.policies.unblock(key, self.clock.ns)

    @rule(key=keys)
    def reset(self, key: Any) -> None:
        now = self.clock.ns
        live = any(each.contains(key, now) for each in self.policies.references)
        assert self.limiter.reset(key) == live
        for each in self.policies.references:
            each.forget(key)
        self.policies.penalties.pop(key, None)

    @rule()
    def clear(self) -> None:
        self.limiter.clear()
        for each in self.policies.references:
            each.clear()
        self.policies.penalties.clear()

    @rule()
    def evict(self) -> None:
        now = self.clock.ns
        self.limiter.evict()
        for each in self.policies.references:
            each.evict(now)
        for key in [key for key in self.policies.penalties if not self.policies.penalty(key, now)]:
            del self.policies.penalties[key]

    @rule(data=st.data(), limit=limits, per=st.sampled_from(WINDOWS))
    def update(self, data: st.DataObject, limit: int, per: float) -> None:
        number = data.draw(st.integers(0, len(self.policies.quotas) - 1))
        quota = Quota(limit, per)
        if "shared" in self.options or any(
            i != number and each.window_ns == quota.window_ns
            for i, each in enumerate(self.policies.quotas)
        ):
            quota = Quota(limit, self.policies.quotas[number].per)
        same = quota.window_ns == self.policies.quotas[number].window_ns
        if same and limit <= self.limiter._engine.limiters[number].max_limit:
            self.policies.update(number, quota)
        else:
            self.policies.move(number, quota, self.clock.ns)
        quotas = list(self.policies.quotas)
        self.limiter.update(quotas)
        assert self.limiter.quotas == tuple(quotas)

    # -- time

    @rule(key=keys)
    def to_the_promise(self, key: Any) -> None:
        decision = self.limiter.peek(key, 1)
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
        if hasattr(self, "limiter"):
            verify(self.limiter)
            stats = self.limiter.stats()
            assert [stats.allowed, stats.denied, stats.would_deny] == self.decisions


class TogetherShared(Together):
    options: ClassVar[dict[str, Any]] = {"shared": True, "max_keys": 50, "max_limit": 3_000}


TestTogether = Together.TestCase
TestTogether.settings = settings(max_examples=settings().max_examples // 2)
TestTogetherShared = pytest.mark.skipif(not _core.SHARED, reason="shared tables are for Linux")(
    TogetherShared.TestCase
)
TestTogetherShared.settings = settings(max_examples=settings().max_examples // 4)
