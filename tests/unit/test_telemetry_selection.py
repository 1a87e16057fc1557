"""Telemetry for a share of the events, and for some limiters only."""

from __future__ import annotations

import logging
import math
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest

from doors import is_heard
from nanolimit import Backoff, ManualClock, RateLimiter, telemetry


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    assert telemetry.handlers() == {}
    yield
    for handler_id in telemetry.handlers():
        telemetry.detach(handler_id)


class Recorder:
    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []

    def __call__(
        self, event: str, measurements: dict[str, float], metadata: dict[str, object]
    ) -> None:
        self.events.append((event, metadata["limiter"]))

    @property
    def limiters(self) -> list[object]:
        return [limiter for _, limiter in self.events]


@pytest.fixture
def thrown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make chance give these numbers, one for each event that is sampled."""

    def throw(*numbers: float) -> None:
        left = list(numbers)

        class Loaded:
            def random(self) -> float:
                return left.pop(0)

        monkeypatch.setattr(random, "Random", Loaded)

    return throw


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, frozenset[str] | None]]:
    """What the core is told, each time: the events that are wanted, and whose."""
    seen: list[tuple[int, frozenset[str] | None]] = []
    real = telemetry._core.set_routes

    def spy(mask: int, names: Any, *rest: Any) -> None:
        seen.append((mask, names))
        real(mask, names, *rest)

    monkeypatch.setattr(telemetry._core, "set_routes", spy)
    return seen


def limiter_of(limit: int = 1, **options: Any) -> RateLimiter:
    return RateLimiter(limit, per=60, clock=ManualClock(), **options)


def fail(*event: object) -> None:
    raise RuntimeError("the handler is broken")


# --- a share of the events


def test_chance_decides_for_each_event(thrown: Callable[..., None]) -> None:
    thrown(0.0, 0.2499, 0.25, 0.9999, 0.1)
    seen = Recorder()
    telemetry.attach("seen", ["allowed", "denied"], seen, sample=0.25)
    for _ in range(3):
        telemetry.emit("allowed", 1, "api", "me")
    assert len(seen.events) == 2  # 0 and 0.2499 are below the share, 0.25 is not
    telemetry.emit("denied", 1, "api", "me")
    assert len(seen.events) == 2
    telemetry.emit("denied", 1, "api", "me")
    assert seen.events[2:] == [("denied", "api")]


def test_the_share_that_comes_is_the_share_asked_for() -> None:
    seen: dict[float, Recorder] = {share: Recorder() for share in (1e-9, 0.1, 0.5, 0.9)}
    for share, recorder in seen.items():
        telemetry.attach(str(share), "allowed", recorder, sample=share)
    count = 20_000
    limiter_of(count).allow_many(["me"] * count)
    for share, recorder in seen.items():
        # Six standard deviations: by chance once in 500 million.
        spread = 6 * math.sqrt(count * share * (1 - share))
        assert abs(len(recorder.events) - count * share) <= max(spread, 1)
    # Each is thrown for by itself: of those that one got, the other got its share.
    assert len({len(recorder.events) for recorder in seen.values()}) == 4


def test_all_of_them_needs_no_chance(thrown: Callable[..., None]) -> None:
    thrown()  # an empty list: asking would raise
    seen = Recorder()
    telemetry.attach("one", "allowed", seen, sample=1)
    telemetry.attach("all", "allowed", seen, sample=1.0)
    limiter_of().allow("me")
    assert len(seen.events) == 2


def test_a_detached_handler_is_always_told_of(thrown: Callable[..., None]) -> None:
    thrown(0.99)
    seen = Recorder()
    telemetry.attach("seen", ["denied", "handler_detached"], seen, sample=0.01)
    telemetry.attach("broken", "denied", fail)
    telemetry.emit("denied", 1, "api", "me")
    assert seen.events == [("handler_detached", "api")]


def test_measurements_are_those_of_the_one_event() -> None:
    counts: list[float] = []

    def count(event: str, measurements: dict[str, float], metadata: dict[str, object]) -> None:
        counts.append(measurements["count"])

    telemetry.attach("count", "allowed", count, sample=0.5)
    limiter_of(700).allow_many(["me"] * 100, 7)
    assert set(counts) == {7}


def test_a_programs_own_chance_is_left_alone() -> None:
    random.seed(1)
    expected = [random.random() for _ in range(5)]
    random.seed(1)
    seen = Recorder()
    telemetry.attach("seen", "allowed", seen, sample=0.5)
    drawn: list[float] = []
    limiter = limiter_of(1000)
    for _ in range(5):
        limiter.allow_many(["me"] * 20)
        drawn.append(random.random())
    assert drawn == expected
    # Nor does a program's seed make the sample the same each time.
    assert len({pattern_after_a_seed() for _ in range(3)}) == 3


def pattern_after_a_seed() -> tuple[object, ...]:
    """Which of 200 events a new handler gets."""
    keys: list[object] = []
    random.seed(1)
    telemetry.detach("seen")
    telemetry.attach("seen", "allowed", lambda *event: keys.append(event[2]["key"]), sample=0.5)
    limiter_of().allow_many(range(200))
    return tuple(keys)


def test_a_failing_handler_that_is_sampled(
    thrown: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    thrown(0.9, 0.1)
    telemetry.attach("broken", "allowed", fail, sample=0.5)
    telemetry.emit("allowed", 1, "api", "me")
    assert list(telemetry.handlers()) == ["broken"]
    telemetry.emit("allowed", 1, "api", "me")
    assert telemetry.handlers() == {}
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("sample", "error", "said"),
    [
        (0, ValueError, "sample must be above 0 and at most 1, not 0"),
        (0.0, ValueError, "not 0.0"),
        (-1, ValueError, "not -1"),
        (1.5, ValueError, "not 1.5"),
        (100, ValueError, "not 100"),
        (1.0000000000000002, ValueError, "not 1.0000000000000002"),
        (math.nan, ValueError, "not nan"),
        (math.inf, ValueError, "not inf"),
        pytest.param(10**5000, ValueError, "not an integer of 16610 bits", id="huge"),
        (True, TypeError, "sample must be a number above 0 and at most 1, not bool"),
        (False, TypeError, "not bool"),
        ("0.5", TypeError, "not str"),
        ("x", TypeError, "not str"),
        (None, TypeError, "not NoneType"),
        (Fraction(1, 2), TypeError, "not Fraction"),
    ],
)
def test_bad_shares(sample: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        telemetry.attach("id", "allowed", fail, sample=sample)
    assert telemetry.handlers() == {}


@pytest.mark.parametrize("sample", [1, 1.0, 0.5, 5e-324, math.nextafter(1, 0)])
def test_good_shares(sample: float) -> None:
    telemetry.attach("id", "allowed", lambda *event: None, sample=sample)
    assert telemetry.handlers() == {"id": ("allowed",)}


# --- some limiters


def test_only_the_limiters_asked_for() -> None:
    api, web, other = (limiter_of(9, name=name) for name in ("api", "web", "other"))
    ways: dict[str, Any] = {
        "a limiter": (api, ["api"]),
        "a name": ("api", ["api"]),
        "a list": ([api, "web"], ["api", "web"]),
        "a tuple": (("web",), ["web"]),
        "a set": ({"web", "api"}, ["api", "web"]),
        "a frozenset": (frozenset({other}), ["other"]),
        "all": (None, ["api", "web", "other"]),
    }
    seen = {way: Recorder() for way in ways}
    for way, (limiter, _) in ways.items():
        telemetry.attach(way, "allowed", seen[way], limiter=limiter)
    for limiter in (api, web, other):
        limiter.allow("me")
    assert {way: recorder.limiters for way, recorder in seen.items()} == {
        way: names for way, (_, names) in ways.items()
    }


def test_a_name_that_does_not_exist_yet_and_two_of_one_name() -> None:
    seen = Recorder()
    telemetry.attach("seen", "allowed", seen, limiter="later")
    first, second, other = limiter_of(name="later"), limiter_of(name="later"), limiter_of()
    for limiter in (first, second, other):
        limiter.allow("me")
    assert seen.limiters == ["later", "later"]


def test_a_limiter_that_is_not_held_and_its_successor() -> None:
    limiter = limiter_of(name="api")
    seen = Recorder()
    telemetry.attach("seen", "allowed", seen, limiter=limiter)
    limiter.close()
    limiter_of(name="api").allow("me")
    assert seen.limiters == ["api"]


def test_all_kinds_of_events_are_of_the_limiters_asked_for() -> None:
    seen = Recorder()
    telemetry.attach("seen", telemetry.EVENTS, seen, limiter="wanted")
    clock = ManualClock()
    for name in ("other", "wanted"):
        limiter = RateLimiter(
            1, per=60, name=name, clock=clock, max_keys=1, on_full="deny", backoff=Backoff(after=1)
        )
        several = RateLimiter("1/minute; 5/hour", name=name, clock=clock)
        for each in (limiter, several):
            each.allow_many(["me"] * 3)
        number = 0
        while limiter.allow(number):
            number += 1
        clock.advance(7200)
        limiter.evict()
        several.evict()
    assert set(seen.limiters) == {"wanted"}
    assert {event for event, _ in seen.events} == {
        "allowed",
        "denied",
        "overflow",
        "evicted",
        "blocked",
    }


def test_handler_detached_is_of_the_limiter_whose_event_failed() -> None:
    mine, others = Recorder(), Recorder()
    telemetry.attach("mine", "handler_detached", mine, limiter="api")
    telemetry.attach("others", "handler_detached", others, limiter="web")
    telemetry.attach("broken", "allowed", fail)
    limiter_of(name="api").allow("me")
    assert mine.events == [("handler_detached", "api")]
    assert others.events == []


def test_both_a_share_and_some_limiters(thrown: Callable[..., None]) -> None:
    thrown(0.4, 0.6)  # events of others are not thrown for
    seen = Recorder()
    telemetry.attach("seen", "allowed", seen, sample=0.5, limiter="api")
    for name in ("web", "api", "web", "api"):
        telemetry.emit("allowed", 1, name, "me")
    assert seen.limiters == ["api"]


def test_the_core_is_told_whose_events_are_wanted(
    told: list[tuple[int, frozenset[str] | None]],
) -> None:
    bits = telemetry._core.EVENT_BITS
    denied, allowed = bits["denied"], bits["allowed"]
    telemetry.attach("1", "denied", print, limiter="api")
    telemetry.attach("2", ["allowed", "denied"], print, limiter=["web", "api"])
    # The core sends no handler_detached: it makes no limiter slower.
    telemetry.attach("3", "handler_detached", print)
    telemetry.attach("4", "denied", print)
    telemetry.detach("4")
    telemetry.detach("2")
    telemetry.detach("1")
    api, both = frozenset({"api"}), frozenset({"api", "web"})
    assert told == [
        (denied, api),
        (denied | allowed, both),
        (denied | allowed, both),
        (denied | allowed, None),
        (denied | allowed, both),
        (denied, api),
        (0, frozenset()),
    ]


def test_other_limiters_go_the_short_way() -> None:
    before, wanted = limiter_of(9, name="other"), limiter_of(9, name="wanted")
    telemetry.attach("seen", ["allowed", "denied"], Recorder(), limiter="wanted")
    later = limiter_of(9, name="other")
    everybody = (before, later, wanted, limiter_of(9, name="wanted"))
    assert [is_heard(limiter) for limiter in everybody] == [False, False, True, True]
    telemetry.attach("all", "allowed", Recorder())
    assert all(map(is_heard, everybody))
    telemetry.detach("all")
    assert [is_heard(limiter) for limiter in everybody] == [False, False, True, True]
    telemetry.detach("seen")
    assert not any(map(is_heard, everybody))


@pytest.mark.parametrize(
    ("limiter", "error", "said"),
    [
        (5, TypeError, "limiter must be a RateLimiter, a name, or a tuple, list or set of such"),
        (b"api", TypeError, "not bytes"),
        ({"api": 1}, TypeError, "not dict"),
        (iter(["api"]), TypeError, "not list_iterator"),
        (RateLimiter, TypeError, "not type"),
        ([5], TypeError, "limiter must be a RateLimiter or a name, not int among them"),
        ([None], TypeError, "not NoneType among them"),
        ([["api"]], TypeError, "not list among them"),
        ([], ValueError, "limiter must name at least one; leave it out for all"),
        (set(), ValueError, "at least one"),
        ("", ValueError, "limiter '' is no name that one can have: 1 to 200 characters"),
        (["api", ""], ValueError, "limiter '' is no name"),
        ("x" * 201, ValueError, "1 to 200 characters"),
    ],
)
def test_bad_limiters(limiter: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        telemetry.attach("id", "allowed", fail, limiter=limiter)
    assert len(str(caught.value)) < 250
    assert telemetry.handlers() == {}


def test_both_are_keywords_only() -> None:
    with pytest.raises(TypeError):
        telemetry.attach("id", "allowed", fail, 0.5)  # type: ignore[misc]


# --- what else may go wrong


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_who_failed_before_an_interrupt_is_detached_and_told_of(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted(*event: object) -> None:
        raise error

    seen = Recorder()
    telemetry.attach("broken", "allowed", fail)
    telemetry.attach("interrupted", "allowed", interrupted)
    telemetry.attach("seen", "handler_detached", seen)
    with pytest.raises(error):
        telemetry.emit("allowed", 1, "api", "me")
    assert list(telemetry.handlers()) == ["interrupted", "seen"]
    assert seen.events == [("handler_detached", "api")]
    [record] = caplog.records
    assert "'broken'" in record.getMessage()


def test_handlers_that_fail_together_are_told_of_in_their_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("first", "second", "third"):
        telemetry.attach(name, "allowed", fail)
    limiter_of().allow("me")
    assert [record.getMessage().split("'")[1] for record in caplog.records] == [
        "first",
        "second",
        "third",
    ]


def test_a_handler_that_fails_in_many_threads_at_once_is_logged_once_and_told_of_once(
    caplog: pytest.LogCaptureFixture, restless: None
) -> None:
    count = 8
    together = threading.Barrier(count)

    def fail_together(*event: object) -> None:
        together.wait(60)
        raise RuntimeError("together")

    seen = Recorder()
    telemetry.attach("broken", "allowed", fail_together, limiter="api")
    telemetry.attach("seen", "handler_detached", seen)
    limiter = limiter_of(name="api")
    answers: list[bool] = []
    with caplog.at_level(logging.ERROR, logger="nanolimit"):
        threads = [
            threading.Thread(target=lambda key=key: answers.append(limiter.allow(key)))
            for key in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert answers == [True] * count  # the decisions stand
    assert limiter.stats().allowed == count
    assert len(caplog.records) == 1
    assert seen.events == [("handler_detached", "api")]
    assert list(telemetry.handlers()) == ["seen"]


def test_an_error_whose_text_fails_is_detached_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    def fail_badly(*event: object) -> None:
        raise Unspeakable

    seen = Recorder()
    telemetry.attach("broken", "allowed", fail_badly)
    telemetry.attach("seen", "handler_detached", seen)
    assert limiter_of(name="api").allow("me") is True
    assert seen.events == [("handler_detached", "api")]
    assert list(telemetry.handlers()) == ["seen"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_children_throw_for_themselves() -> None:
    script = """
import os, sys
from nanolimit import RateLimiter, telemetry
keys = []
telemetry.attach("seen", "allowed", lambda *event: keys.append(event[2]["key"]), sample=0.5)
telemetry.attach("mine", "denied", print, limiter="api")
limiter = RateLimiter(1)
for _ in range(3):
    if os.fork() == 0:
        limiter.allow_many(range(64))
        os.write(1, (" ".join(map(str, keys)) + "\\n").encode())
        os._exit(0)
    os.wait()
limiter.allow_many(range(64))
os.write(1, (" ".join(map(str, keys)) + "\\n").encode())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=120, check=True, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert len(set(lines)) == 4
