"""The circuit breaker, against a model, and with threads."""

from __future__ import annotations

import math
import os
import signal
import threading
from typing import Any

import pytest

pytest.importorskip("hypothesis")

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nanolimit.redis.breaker import Breaker

FAILURES, PAUSE_S, PROBE_S = 3, 10.0, 4.0


def opened(breaker: Breaker, now: float = 0.0) -> None:
    for _ in range(breaker.failures):
        ticket = breaker.enter(now)
        assert ticket is not None
        breaker.failed(ticket, now)
    assert breaker.state == "open"


def test_it_opens_after_so_many_failures_in_a_row_and_says_so_once() -> None:
    breaker = Breaker(3, PAUSE_S)
    tickets = [breaker.enter(0.0) for _ in range(6)]
    assert None not in tickets
    told: list[bool] = []
    for ticket in tickets:
        assert ticket is not None
        told.append(breaker.failed(ticket, 0.0))
    assert told == [False, False, True, False, False, False]
    assert breaker.enter(9.99) is None


def test_a_success_in_between_begins_the_count_anew() -> None:
    breaker = Breaker(2, PAUSE_S)
    for _ in range(5):
        ticket = breaker.enter(0.0)
        assert ticket is not None
        assert not breaker.failed(ticket, 0.0)
        assert not breaker.succeeded(ticket)
    assert breaker.state == "closed"


def test_what_has_one_origin_is_one_failure() -> None:
    breaker = Breaker(3, PAUSE_S)
    first, second, third = object(), object(), object()
    tickets = [breaker.enter(0.0) or 0 for _ in range(200)]
    for nth, ticket in enumerate(tickets):
        assert not breaker.failed(ticket, 0.0, (first, second)[nth % 2])
    assert breaker.state == "closed"
    assert len(breaker._origins) == 2
    assert breaker.failed(tickets[0], 0.0, third)
    # Nothing is kept of it. And a probe fails whatever it was that failed.
    assert not breaker._origins
    probe = breaker.enter(PAUSE_S)
    assert probe is not None
    assert not breaker.failed(probe, PAUSE_S, third)
    assert breaker.state == "open"


def test_what_has_no_origin_or_an_equal_one_is_a_failure_by_itself() -> None:
    for origins in ([None] * 3, [[], [], []]):
        breaker = Breaker(3, PAUSE_S)
        ticket = breaker.enter(0.0) or 0
        assert [breaker.failed(ticket, 0.0, each) for each in origins] == [False, False, True]


def test_after_a_success_an_origin_counts_anew() -> None:
    breaker = Breaker(2, PAUSE_S)
    ticket, origin = breaker.enter(0.0) or 0, object()
    for _ in range(3):
        assert not breaker.failed(ticket, 0.0, origin)
        assert not breaker.succeeded(ticket)
        assert not breaker._origins
    assert not breaker.failed(ticket, 0.0)
    assert breaker.failed(ticket, 0.0, origin)


def test_one_probe_at_a_time() -> None:
    breaker = Breaker(1, PAUSE_S, PROBE_S)
    opened(breaker)
    probe = breaker.enter(10.0)
    assert probe is not None
    assert breaker.state == "half-open"
    assert breaker.enter(10.0) is None
    assert not breaker.failed(probe, 11.0)
    assert breaker.state == "open"
    assert breaker.enter(20.9) is None
    probe = breaker.enter(21.0)
    assert probe is not None
    assert breaker.succeeded(probe)
    assert breaker.state == "closed"
    assert breaker.enter(21.0) is not None


def test_who_asked_before_it_opened_neither_closes_it_nor_keeps_it_open() -> None:
    breaker = Breaker(1, PAUSE_S)
    early = breaker.enter(0.0)
    assert early is not None
    opened(breaker)
    assert not breaker.succeeded(early)
    assert breaker.state == "open"
    probe = breaker.enter(10.0)
    assert probe is not None
    assert not breaker.failed(early, 10.0)
    assert breaker.state == "half-open"
    assert breaker.succeeded(probe)


def test_a_probe_that_is_given_up_lets_the_next_go_at_once() -> None:
    breaker = Breaker(1, PAUSE_S)
    opened(breaker)
    probe = breaker.enter(10.0)
    assert probe is not None
    breaker.abandoned(probe)
    again = breaker.enter(10.0)
    assert again is not None
    assert not breaker.succeeded(probe)
    assert breaker.succeeded(again)


def test_a_silent_probe_is_replaced() -> None:
    breaker = Breaker(1, PAUSE_S, PROBE_S)
    opened(breaker)
    lost = breaker.enter(10.0)
    assert lost is not None
    assert breaker.enter(13.9) is None
    probe = breaker.enter(14.0)
    assert probe is not None
    assert not breaker.succeeded(lost)
    assert breaker.state == "half-open"


@pytest.mark.parametrize("failures", [0, -1])
def test_failures_out_of_range(failures: int) -> None:
    with pytest.raises(ValueError, match=f"failures must be at least 1, not {failures}"):
        Breaker(failures)


@pytest.mark.parametrize("failures", [1.0, True, "3", None])
def test_failures_of_another_type(failures: Any) -> None:
    with pytest.raises(TypeError, match="failures must be an int, not"):
        Breaker(failures)


@pytest.mark.parametrize("pause_s", [0, -1.0, math.inf, math.nan])
def test_pauses_out_of_range(pause_s: float) -> None:
    with pytest.raises(ValueError, match="pause_s must be a positive number of seconds"):
        Breaker(1, pause_s)
    with pytest.raises(ValueError, match="probe_timeout_s must be a positive number of seconds"):
        Breaker(1, 1.0, pause_s)


def test_threads_send_one_probe(restless: None) -> None:
    for _ in range(50):
        breaker = Breaker(1, PAUSE_S)
        opened(breaker)
        gate = threading.Barrier(4)
        tickets: list[int] = []

        def work(breaker: Breaker = breaker, gate: threading.Barrier = gate) -> None:
            gate.wait()
            ticket = breaker.enter(10.0)
            if ticket is not None:
                tickets.append(ticket)  # noqa: B023

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(tickets) == 1


def test_many_failures_at_once_open_it_once(restless: None) -> None:
    for _ in range(50):
        breaker = Breaker(3, PAUSE_S)
        gate = threading.Barrier(6)
        told: list[bool] = []

        def work(breaker: Breaker = breaker, gate: threading.Barrier = gate) -> None:
            ticket = breaker.enter(0.0)
            gate.wait()
            assert ticket is not None
            told.append(breaker.failed(ticket, 0.0))  # noqa: B023

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(told) == [False] * 5 + [True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_child_does_not_wait_for_a_lock_of_its_parent() -> None:
    breaker = Breaker(1, PAUSE_S)
    with breaker._lock:
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            opened(breaker)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Model(RuleBasedStateMachine):
    """A breaker beside a plain description of what it should do."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(FAILURES, PAUSE_S, PROBE_S)
        self.now = 100.0
        self.state = "closed"
        self.in_a_row = 0
        self.origins: set[str] = set()
        self.until = 0.0
        # Who asked and has not reported: ticket, and which period of the model it is of.
        self.period = 0
        self.out: list[tuple[int, int]] = []

    @rule(step=st.sampled_from([0.0, 0.5, 1.0, 3.5, 4.0, 9.5, 10.0]))
    def pass_time(self, step: float) -> None:
        self.now += step

    @rule()
    def enter(self) -> None:
        ticket = self.breaker.enter(self.now)
        if self.state != "closed":
            if self.now < self.until:
                assert ticket is None
                return
            self.state, self.until = "half-open", self.now + PROBE_S
            self.period += 1
        assert ticket is not None
        self.out.append((ticket, self.period))

    def _taken(self, data: Any) -> tuple[int, bool]:
        ticket, period = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        return ticket, period == self.period

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def succeed(self, data: Any) -> None:
        ticket, current = self._taken(data)
        closes = current and self.state == "half-open"
        assert self.breaker.succeeded(ticket) == closes
        if current:
            self.state, self.in_a_row = "closed", 0
            self.origins.clear()

    @precondition(lambda self: self.out)
    @rule(data=st.data(), origin=st.sampled_from([None, "a", "b", "c", "d"]))
    def fail(self, data: Any, origin: str | None) -> None:
        ticket, current = self._taken(data)
        if current and origin not in self.origins:
            self.in_a_row += 1
            if origin is not None:
                self.origins.add(origin)
        opens = current and (self.state == "half-open" or self.in_a_row >= FAILURES)
        assert self.breaker.failed(ticket, self.now, origin) == (opens and self.state == "closed")
        if opens:
            self.origins.clear()
            self.state, self.until = "open", self.now + PAUSE_S
            self.period += 1

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def abandon(self, data: Any) -> None:
        ticket, current = self._taken(data)
        self.breaker.abandoned(ticket)
        if current and self.state == "half-open":
            self.state, self.until = "open", -math.inf
            self.period += 1

    @invariant()
    def same_state(self) -> None:
        assert self.breaker.state == self.state


TestModel = Model.TestCase
