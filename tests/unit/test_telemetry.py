"""Telemetry: who is told what, what a failing handler does, and that nobody waits for anybody."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nanolimit import ManualClock, RateLimiter, telemetry

Event = tuple[str, dict[str, float], dict[str, object]]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    assert telemetry.handlers() == {}
    yield
    for handler_id in telemetry.handlers():
        telemetry.detach(handler_id)


class Recorder:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(
        self, event: str, measurements: dict[str, float], metadata: dict[str, object]
    ) -> None:
        self.events.append((event, measurements, metadata))

    @property
    def names(self) -> list[str]:
        return [event for event, _, _ in self.events]


def limiter_of(limit: int = 1, **options: Any) -> RateLimiter:
    return RateLimiter(limit, per=60, clock=ManualClock(), **options)


def fail(event: str, measurements: dict[str, float], metadata: dict[str, object]) -> None:
    raise RuntimeError("the handler is broken")


def errors_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "nanolimit"]


def test_allowed_and_denied() -> None:
    seen = Recorder()
    telemetry.attach("seen", ["allowed", "denied"], seen)
    limiter = limiter_of(5, name="api")
    assert limiter.allow("me", 3)
    assert limiter.check(("me", 1), 5)
    assert not limiter.allow("me", 4)
    assert seen.events == [
        ("allowed", {"count": 3}, {"limiter": "api", "key": "me"}),
        ("allowed", {"count": 5}, {"limiter": "api", "key": ("me", 1)}),
        ("denied", {"count": 4}, {"limiter": "api", "key": "me"}),
    ]


def test_only_the_events_asked_for() -> None:
    seen = Recorder()
    telemetry.attach("seen", "denied", seen)
    limiter = limiter_of()
    limiter.allow("me")
    assert seen.names == []
    limiter.allow("me")
    assert seen.names == ["denied"]


def test_allow_many_tells_of_each_request_in_order() -> None:
    seen = Recorder()
    telemetry.attach("seen", ["allowed", "denied"], seen)
    limiter_of().allow_many(["a", "b", "a"])
    assert [(event, metadata["key"]) for event, _, metadata in seen.events] == [
        ("allowed", "a"),
        ("allowed", "b"),
        ("denied", "a"),
    ]


def test_peek_and_no_cost_and_errors_send_nothing() -> None:
    seen = Recorder()
    telemetry.attach("seen", telemetry.EVENTS, seen)
    limiter = limiter_of()
    limiter.peek("me")
    limiter.allow("me", 0)
    with pytest.raises(ValueError, match="cost"):
        limiter.allow("me", 2)
    with pytest.raises(TypeError):
        limiter.allow(None)  # type: ignore[arg-type]
    assert seen.names == []


def test_overflow_comes_before_the_decision() -> None:
    seen = Recorder()
    limiter = limiter_of(1, max_keys=1, on_full="deny")
    limiter.allow("first")
    # max_keys is a lower bound on what fits; fill until it is full.
    for number in range(100_000):
        if not limiter.allow(number):
            break
    else:
        pytest.fail("the table never was full")
    telemetry.attach("seen", ["overflow", "allowed", "denied"], seen)
    assert not limiter.allow("newcomer")
    assert [(event, metadata["key"]) for event, _, metadata in seen.events] == [
        ("overflow", "newcomer"),
        ("denied", "newcomer"),
    ]


def test_evict_tells_how_many() -> None:
    seen = Recorder()
    telemetry.attach("seen", "evicted", seen)
    clock = ManualClock()
    limiter = RateLimiter(1, per=60, clock=clock, name="api")
    limiter.allow_many(["a", "b", "c"])
    assert limiter.evict() == 0
    assert seen.events == []
    clock.advance(60)
    assert limiter.evict() == 3
    assert seen.events == [("evicted", {"count": 3}, {"limiter": "api", "key": None})]


def test_handlers_are_called_in_the_order_of_attaching_each_with_its_own_dicts() -> None:
    order: list[str] = []

    def spoil(event: str, measurements: dict[str, float], metadata: dict[str, object]) -> None:
        order.append("spoil")
        measurements.clear()
        metadata.clear()

    seen = Recorder()
    telemetry.attach("z", "allowed", spoil)
    telemetry.attach("a", "allowed", lambda *event: (order.append("a"), seen(*event)))
    limiter_of(name="api").allow("me")
    assert order == ["spoil", "a"]
    assert seen.events == [("allowed", {"count": 1}, {"limiter": "api", "key": "me"})]


def test_a_limiter_that_was_there_before_and_a_method_taken_earlier_see_the_handler() -> None:
    limiter = limiter_of(5)
    allow = limiter.allow
    seen = Recorder()
    telemetry.attach("seen", "allowed", seen)
    allow("me")
    assert seen.names == ["allowed"]
    telemetry.detach("seen")
    allow("me")
    assert seen.names == ["allowed"]


def test_detach_and_handlers() -> None:
    assert telemetry.detach("nobody") is False
    telemetry.attach("b", "denied", fail)
    telemetry.attach("a", iter(["allowed", "denied", "allowed"]), fail)
    assert telemetry.handlers() == {"b": ("denied",), "a": ("allowed", "denied")}
    assert list(telemetry.handlers()) == ["b", "a"]
    assert telemetry.detach("b") is True
    assert telemetry.detach("b") is False
    assert telemetry.handlers() == {"a": ("allowed", "denied")}


def test_one_event_named_twice_is_sent_once() -> None:
    seen = Recorder()
    telemetry.attach("seen", ["allowed", "allowed"], seen)
    limiter_of().allow("me")
    assert seen.names == ["allowed"]


def test_a_taken_id() -> None:
    seen = Recorder()
    telemetry.attach("same", "allowed", seen)
    with pytest.raises(ValueError, match="handler_id 'same' is taken"):
        telemetry.attach("same", "denied", fail)
    assert telemetry.handlers() == {"same": ("allowed",)}
    telemetry.detach("same")
    telemetry.attach("same", "denied", seen)


@pytest.mark.parametrize(
    "events", ["refused", ["allowed", "refused"], "", ["x" * 10**6], "ALLOWED"]
)
def test_an_unknown_event(events: Any) -> None:
    with pytest.raises(
        ValueError, match="is unknown; there are allowed, denied, overflow,"
    ) as caught:
        telemetry.attach("id", events, fail)
    assert "handler_detached" in str(caught.value)
    assert len(str(caught.value)) < 400
    assert telemetry.handlers() == {}


@pytest.mark.parametrize(
    ("handler_id", "events", "handler", "error", "said"),
    [
        (1, "allowed", fail, TypeError, "handler_id must be a str, not int"),
        (None, "allowed", fail, TypeError, "handler_id must be a str, not NoneType"),
        ("", "allowed", fail, ValueError, "handler_id must not be empty"),
        ("id", [], fail, ValueError, "at least one of allowed"),
        ("id", 5, fail, TypeError, "events must be a str or strs, not int"),
        ("id", None, fail, TypeError, "events must be a str or strs, not NoneType"),
        ("id", ["allowed", 5], fail, TypeError, "not int among them"),
        ("id", b"allowed", fail, TypeError, "not int among them"),
        ("id", "allowed", None, TypeError, "handler must be callable, not NoneType"),
        ("id", "allowed", "print", TypeError, "handler must be callable, not str"),
    ],
)
def test_bad_arguments(
    handler_id: Any, events: Any, handler: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        telemetry.attach(handler_id, events, handler)
    assert telemetry.handlers() == {}


def test_detach_of_something_that_is_no_id() -> None:
    with pytest.raises(TypeError, match="handler_id must be a str, not int"):
        telemetry.detach(1)  # type: ignore[arg-type]


def test_events_that_the_core_does_not_send_can_be_attached() -> None:
    for event in telemetry.EVENTS:
        telemetry.attach(event, event, Recorder())
    assert tuple(telemetry.handlers()) == telemetry.EVENTS


def test_the_core_is_told_what_is_wanted_and_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = telemetry._core.EVENT_BITS
    assert {"allowed", "denied", "overflow", "evicted"} <= set(bits) <= set(telemetry.EVENTS)
    assert all(bit and bit & (bit - 1) == 0 for bit in bits.values())
    assert len(set(bits.values())) == len(bits)
    masks: list[int] = []
    real = telemetry._core.set_routes

    def spy(mask: int, *rest: Any) -> None:
        masks.append(mask)
        real(mask, *rest)

    monkeypatch.setattr(telemetry._core, "set_routes", spy)
    telemetry.attach("1", "denied", fail)
    telemetry.attach("2", ["denied", "evicted"], fail)
    telemetry.attach("3", "handler_detached", fail)
    telemetry.detach("1")
    telemetry.detach("2")
    telemetry.detach("3")
    denied, evicted = bits["denied"], bits["evicted"]
    # handler_detached is not the core's to send.
    assert masks == [
        denied,
        denied | evicted,
        denied | evicted,
        denied | evicted,
        0,
        0,
    ]


def test_a_failing_handler_is_logged_once_and_detached_and_the_decision_stands(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before, after, told = Recorder(), Recorder(), Recorder()
    telemetry.attach("before", "denied", before)
    telemetry.attach("broken", ["allowed", "denied"], fail)
    telemetry.attach("after", "denied", after)
    telemetry.attach("told", "handler_detached", told)
    limiter = limiter_of(name="api")
    with caplog.at_level(logging.ERROR, logger="nanolimit"):
        assert limiter.allow("me") is True
        assert limiter.allow("me") is False
        assert limiter.allow("me") is False

    assert limiter.stats()[:2] == (1, 2)
    assert before.names == after.names == ["denied", "denied"]
    assert "broken" not in telemetry.handlers()

    [record] = errors_in(caplog)
    assert record.levelno == logging.ERROR
    assert (
        record.getMessage()
        == "telemetry handler 'broken' raised on event 'allowed' and was detached"
    )
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the handler is broken"
    assert "in fail" in caplog.text  # the traceback leads into the handler

    [(event, measurements, metadata)] = told.events
    assert (event, measurements) == ("handler_detached", {"count": 1})
    error = metadata.pop("error")
    assert metadata == {"limiter": "api", "key": "me", "handler_id": "broken", "event": "allowed"}
    assert isinstance(error, RuntimeError)


def test_handlers_of_handler_detached_that_fail_go_one_after_the_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    last = Recorder()
    for number in range(300):  # far more than would fit if each went one call deeper
        telemetry.attach(f"broken {number}", ["allowed", "handler_detached"], fail)
    telemetry.attach("last", "handler_detached", last)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200)
    try:
        assert limiter_of().allow("me") is True
    finally:
        sys.setrecursionlimit(limit)
    assert list(telemetry.handlers()) == ["last"]
    assert sorted(str(metadata["handler_id"]) for _, _, metadata in last.events) == sorted(
        f"broken {number}" for number in range(300)
    )
    assert len(errors_in(caplog)) == 300


def test_a_broken_logging_set_up_does_not_undo_a_decision() -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise OSError("the disk is full")

    logger = logging.getLogger("nanolimit")
    logger.addFilter(refuse)
    try:
        telemetry.attach("broken", "allowed", fail)
        assert limiter_of().allow("me") is True
    finally:
        logger.removeFilter(refuse)
    assert telemetry.handlers() == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_passes_through_and_detaches_nobody(
    error: type[BaseException],
) -> None:
    def interrupted(*event: object) -> None:
        raise error

    telemetry.attach("id", "allowed", interrupted)
    with pytest.raises(error):
        telemetry.emit("allowed", 1, "api", "me")
    assert list(telemetry.handlers()) == ["id"]
    # Nor does the thread stay marked as being inside of the handler.
    with pytest.raises(error):
        telemetry.emit("allowed", 1, "api", "me")


def test_a_handler_may_use_the_limiter_and_is_not_called_for_what_it_causes() -> None:
    limiter = limiter_of(3)
    answers: list[bool] = []

    def ask_again(event: str, measurements: dict[str, float], metadata: dict[str, object]) -> None:
        answers.append(limiter.allow("me"))

    other = Recorder()
    telemetry.attach("again", ["allowed", "denied"], ask_again)
    telemetry.attach("other", ["allowed", "denied"], other)
    assert limiter.allow("me") is True
    assert answers == [True]
    assert other.names == ["allowed", "allowed"]  # another handler hears of both
    assert limiter.allow("me") is True
    assert limiter.allow("me") is False
    assert answers == [True, False, False]
    assert list(telemetry.handlers()) == ["again", "other"]


def test_handlers_that_set_each_other_off_come_to_an_end() -> None:
    limiter = limiter_of()
    calls: list[str] = []

    def asking(name: str) -> telemetry.Handler:
        def ask(event: str, measurements: dict[str, float], metadata: dict[str, object]) -> None:
            calls.append(name)
            limiter.allow("me")

        return ask

    limiter.allow("me")
    for name in "abc":
        telemetry.attach(name, "denied", asking(name))
    assert limiter.allow("me") is False
    # Every order of a, b and c that has no one twice: 3 + 6 + 6 calls.
    assert len(calls) == 15
    assert len(telemetry.handlers()) == 3


def test_a_handler_may_attach_and_detach() -> None:
    seen = Recorder()

    def once(event: str, measurements: dict[str, float], metadata: dict[str, object]) -> None:
        telemetry.detach("once")
        telemetry.attach("seen", "allowed", seen)

    telemetry.attach("once", "allowed", once)
    limiter = limiter_of(5)
    limiter.allow("a")
    assert seen.names == []  # it came too late for the event that was under way
    limiter.allow("a")
    assert seen.names == ["allowed"]
    assert list(telemetry.handlers()) == ["seen"]


def test_a_handler_that_closes_its_limiter() -> None:
    limiter = limiter_of()
    telemetry.attach("close", "allowed", lambda *event: limiter.close())
    assert limiter.allow("me") is True
    assert limiter.closed
    assert list(telemetry.handlers()) == ["close"]


def test_a_failing_handler_that_was_replaced_meanwhile_leaves_its_successor() -> None:
    seen = Recorder()

    def replace(event: str, measurements: dict[str, float], metadata: dict[str, object]) -> None:
        telemetry.detach("id")
        telemetry.attach("id", "allowed", seen)
        raise RuntimeError("too late")

    telemetry.attach("id", "allowed", replace)
    limiter = limiter_of(5)
    limiter.allow("me")
    limiter.allow("me")
    assert seen.names == ["allowed"]


def test_a_handler_at_work_in_one_thread_is_called_in_another() -> None:
    inside, leave = threading.Event(), threading.Event()
    keys: list[object] = []

    def slow(event: str, measurements: dict[str, float], metadata: dict[str, object]) -> None:
        keys.append(metadata["key"])
        if metadata["key"] == "slow":
            inside.set()
            assert leave.wait(60)

    telemetry.attach("slow", "allowed", slow)
    limiter = limiter_of()
    thread = threading.Thread(target=limiter.allow, args=("slow",))
    thread.start()
    assert inside.wait(60)
    # Neither the limiter nor attach and detach wait for the handler in the other thread.
    assert limiter.allow("quick") is True
    telemetry.attach("other", "denied", slow)
    telemetry.detach("other")
    leave.set()
    thread.join(60)
    assert keys == ["slow", "quick"]


def test_a_handler_that_fails_in_two_threads_at_once_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    both = threading.Barrier(2)
    told = Recorder()

    def fail_together(*event: object) -> None:
        both.wait(60)
        raise RuntimeError("together")

    telemetry.attach("broken", "allowed", fail_together)
    telemetry.attach("told", "handler_detached", told)
    limiter = limiter_of()
    threads = [threading.Thread(target=limiter.allow, args=(key,)) for key in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(errors_in(caplog)) == 1
    assert told.names == ["handler_detached"]


def test_attaching_while_others_decide(restless: None) -> None:
    limiter = limiter_of(1)
    problems: list[BaseException] = []
    steady = Recorder()
    telemetry.attach("steady", "denied", steady)
    limiter.allow("hot")

    def decide() -> None:
        try:
            for _ in range(3_000):
                assert limiter.allow("hot") is False
        except BaseException as error:
            problems.append(error)

    def change(name: str) -> None:
        try:
            for number in range(500):
                telemetry.attach(name, ["allowed", "denied"][: 1 + number % 2], Recorder())
                assert telemetry.detach(name)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=decide) for _ in range(2)]
    threads += [threading.Thread(target=change, args=(name,)) for name in ("x", "y")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    assert list(telemetry.handlers()) == ["steady"]
    assert len(steady.events) == 6_000  # whoever comes and goes, who stays misses nothing


def test_a_detach_in_the_middle_of_an_attach_is_not_lost() -> None:
    """As when the garbage collector runs a finalizer that detaches."""
    telemetry.attach("dying", "allowed", fail)
    telemetry.attach("kept", "allowed", Recorder())
    new = telemetry._core.Attachment("new", ("allowed",), Recorder())
    times = 0

    def added(attachments: Any) -> Any:
        nonlocal times
        times += 1
        telemetry.detach("dying")
        return (*attachments, new)

    assert telemetry._change(added) is True
    assert list(telemetry.handlers()) == ["kept", "new"]
    assert times == 2


def test_a_detach_while_the_core_is_told_is_not_overwritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when the collector runs a finalizer inside of the core."""
    telemetry.attach("dying", "allowed", fail)
    masks: list[int] = []
    real = telemetry._core.set_routes

    def interrupted(mask: int, *rest: Any) -> None:
        telemetry.detach("dying")
        masks.append(mask)
        real(mask, *rest)

    monkeypatch.setattr(telemetry._core, "set_routes", interrupted)
    telemetry.attach("kept", "denied", Recorder())
    assert masks[-1] == telemetry._core.EVENT_BITS["denied"]
    assert list(telemetry.handlers()) == ["kept"]


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run in an interpreter of its own, which is ended if it hangs."""
    return subprocess.run(
        [sys.executable, "-c", script], timeout=120, check=False, capture_output=True, text=True
    )


def test_a_finalizer_that_detaches_in_the_middle_of_an_attach() -> None:
    # The collector is made to run at each of the first hundred allocations of attach() in turn.
    script = """
import faulthandler, gc
faulthandler.dump_traceback_later(60, exit=True)
from nanolimit import RateLimiter, telemetry
class Owner:
    def __init__(self):
        self.cycle = self
        telemetry.attach("dying", "denied", print)
    def __del__(self):
        telemetry.detach("dying")
kept = [RateLimiter() for _ in range(10)]
for allocations in range(1, 100):
    gc.disable()
    gc.collect()
    Owner()
    gc.set_threshold(gc.get_count()[0] + allocations)
    gc.enable()
    telemetry.attach("kept", "denied", print)
    gc.disable()
    gc.collect()
    assert list(telemetry.handlers()) == ["kept"], (allocations, telemetry.handlers())
    telemetry.detach("kept")
"""
    done = run(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forks_while_another_thread_attaches() -> None:
    # The many limiters keep attach() inside the core's registry for most of the time.
    script = """
import os, signal, sys, threading, warnings
warnings.simplefilter("ignore")
# The first hook to run in a child: if a later one hangs, the alarm ends it.
os.register_at_fork(after_in_child=lambda: signal.alarm(30))
from nanolimit import RateLimiter, telemetry
sys.setswitchinterval(1e-6)
kept = [RateLimiter() for _ in range(500)]
stop = False
def churn():
    while not stop:
        telemetry.attach("x", "denied", print)
        telemetry.detach("x")
thread = threading.Thread(target=churn)
thread.start()
bad = 0
for _ in range(25):
    child = os.fork()
    if child == 0:
        seen = []
        telemetry.attach("child", "allowed", lambda *event: seen.append(event))
        kept[0].allow("me")
        RateLimiter().allow("me")
        os._exit(0 if len(seen) == 2 else 1)
    bad += os.waitpid(child, 0)[1] != 0
    if bad:
        break
stop = True
thread.join(60)
sys.exit(bad)
"""
    assert run(script).returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_while_another_thread_holds_the_lock() -> None:
    # In a process of its own: a fork beside threads would make pytest's own threads a problem.
    script = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
from nanolimit import RateLimiter, telemetry
events = []
telemetry.attach("first", "allowed", lambda *event: events.append(event))
held, done = threading.Event(), threading.Event()
def hold():
    with telemetry._changing:
        held.set()
        done.wait(60)
thread = threading.Thread(target=hold)
thread.start()
assert held.wait(60)
child = os.fork()
if child == 0:
    telemetry.attach("second", "denied", lambda *event: events.append(event))
    limiter = RateLimiter(1)
    limiter.allow("me"); limiter.allow("me")
    os._exit(0 if [event for event, _, _ in events] == ["allowed", "denied"] else 1)
_, status = os.waitpid(child, 0)
done.set()
thread.join(60)
assert events == []
sys.exit(os.waitstatus_to_exitcode(status))
"""
    assert run(script).returncode == 0


def test_handlers_at_interpreter_shutdown() -> None:
    script = """
from nanolimit import RateLimiter, telemetry
class Late:
    def __init__(self):
        self.limiter = RateLimiter(5)
    def __del__(self):
        self.limiter.allow("late")
telemetry.attach("id", "allowed", lambda *event: None)
late = Late()
late.me = late
import builtins
builtins.late = late
"""
    done = run(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
