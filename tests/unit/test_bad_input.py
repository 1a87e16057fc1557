"""Every kind of nonsense has an answer that says what is wrong, and changes nothing."""

from __future__ import annotations

import array
import ctypes
import decimal
import fractions
import itertools
import math
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

import nanolimit
from clocks import NanoClock
from doors import verify
from nanolimit import LimiterClosedError, ManualClock, NanolimitError, Quota, RateLimiter, telemetry

numpy: Any
try:
    import numpy
except ImportError:
    numpy = None

needs_numpy = pytest.mark.skipif(numpy is None, reason="numpy is not installed")

#: No user's own types: the tests pass them where the type checker would not let them through.
Make: Any = RateLimiter


class Index:
    """Something that is a whole number without being an int."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


class BadIndex:
    def __index__(self) -> int:
        raise ZeroDivisionError("no index today")


@pytest.fixture
def limiter(clock: NanoClock) -> Iterator[Any]:
    """5 per minute, with one request of "user" in it; afterwards still sound."""
    limiter = RateLimiter(5, per=60, clock=clock)
    assert limiter.allow("user")
    yield limiter
    if not limiter.closed:
        verify(limiter)


@pytest.fixture
def unchanged(limiter: RateLimiter) -> Iterator[None]:
    """The test may provoke what it likes: nothing is counted, nothing appears, nothing is lost."""
    before = limiter.stats()
    yield
    assert limiter.stats() == before
    assert len(limiter) == 1
    assert limiter.peek("user").remaining == 4
    assert limiter.allow("user")


# -- making one -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"quota": 0}, ValueError, "limit.*1 to 16777216.*0"),
        ({"quota": -1}, ValueError, "limit.*1 to 16777216.*-1"),
        ({"quota": 2.5}, TypeError, "limit.*int.*float"),
        ({"quota": 5.0}, TypeError, "limit.*int.*float"),
        ({"quota": True}, TypeError, "limit.*int.*bool"),
        ({"quota": None}, TypeError, "limit.*NoneType"),
        ({"quota": b"5/minute"}, TypeError, "limit.*bytes"),
        ({"quota": 2**24 + 1}, ValueError, "limit.*16777217"),
        ({"quota": 10**100}, ValueError, "limit"),
        ({"quota": "5/fortnight"}, ValueError, "5/fortnight"),
        ({"quota": ""}, ValueError, "''"),
        ({"quota": "5"}, ValueError, "'5'"),
        ({"quota": "/minute"}, ValueError, "/minute"),
        ({"quota": "0/minute"}, ValueError, "0/minute"),
        ({"quota": "-5/minute"}, ValueError, "-5/minute"),
        ({"quota": "5/month"}, ValueError, "5/month"),
        ({"quota": "5/0s"}, ValueError, "5/0s"),
        ({"quota": "10/second; 1000/hour;"}, ValueError, "one of them is empty"),
        ({"quota": "; ".join(["1/s"] * 9)}, ValueError, "at most 8 quotas, got more"),
        ({"quota": ["1/s"] * 9}, ValueError, "at most 8 quotas, got more"),
        ({"quota": []}, ValueError, "at least one quota, got none"),
        ({"quota": ["1/s", 5]}, TypeError, "a list of quotas must hold .* not int"),
        ({"quota": ["1/s; 2/m"]}, ValueError, "holds several quotas: give one"),
        ({"quota": ["1/s"], "per": 5}, TypeError, "quotas say their windows"),
        ({"quota": "5/minute", "per": 60}, TypeError, "per"),
        ({"per": 0}, ValueError, "per.*1e-6.*0"),
        ({"per": -1}, ValueError, "per.*-1"),
        ({"per": math.nan}, ValueError, "per.*nan"),
        ({"per": math.inf}, ValueError, "per.*inf"),
        ({"per": -math.inf}, ValueError, "per.*inf"),
        ({"per": 0.9e-6}, ValueError, "per.*1e-6"),
        ({"per": 1e-9}, ValueError, "per.*1e-6"),
        ({"per": timedelta(0)}, ValueError, "per"),
        ({"per": 315_576_001}, ValueError, "per.*ten years"),
        ({"per": 1e300}, ValueError, "per"),
        ({"per": True}, TypeError, "per.*bool"),
        ({"per": "60"}, TypeError, "per.*str"),
        ({"per": 1j}, TypeError, "per.*complex"),
        ({"max_keys": 0}, ValueError, "max_keys.*1.*0"),
        ({"max_keys": -1}, ValueError, "max_keys.*-1"),
        ({"max_keys": 2**31 + 1}, ValueError, r"max_keys.*2\*\*31"),
        ({"max_keys": 10.0}, TypeError, "max_keys.*float"),
        ({"max_keys": True}, TypeError, "max_keys.*bool"),
        ({"max_keys": "10"}, TypeError, "max_keys.*str"),
        ({"quota": 5000, "max_log": 15}, ValueError, "max_log.*16 to the limit of 5000.*15"),
        ({"quota": 5000, "max_log": 5001}, ValueError, "max_log.*5000.*5001.*leave it out"),
        ({"quota": 5000, "max_log": -1}, ValueError, "max_log.*-1"),
        ({"quota": 15, "max_log": 16}, ValueError, "max_log.*limit of 15"),
        ({"quota": "5/s; 100/h", "max_log": 101}, ValueError, "max_log.*limit of 100.*101"),
        ({"quota": 5000, "max_log": 100.0}, TypeError, "max_log.*float"),
        ({"quota": 5000, "max_log": True}, TypeError, "max_log.*bool"),
        ({"quota": 5000, "max_log": "100"}, TypeError, "max_log.*str"),
        (
            {"quota": 5000, "max_log": 100, "algorithm": "gcra"},
            TypeError,
            "max_log.*sliding-log.*'gcra' keeps no log.*leave it out",
        ),
        ({"on_full": "panic"}, ValueError, "on_full.*allow.*deny.*evict.*panic"),
        ({"on_full": ""}, ValueError, "on_full"),
        ({"on_full": None}, TypeError, "on_full.*NoneType"),
        ({"clock": 5.0}, TypeError, "clock.*callable.*float"),
        ({"name": 5}, TypeError, "name.*int"),
        ({"name": ""}, ValueError, "name"),
        ({"shared": 1}, TypeError, "shared.*name.*path.*True.*int 1"),
        ({"colour": "red"}, TypeError, "colour"),
    ],
)
def test_a_limiter_that_cannot_be(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=f"(?s){says}"):
        Make(**arguments)


def test_only_quota_and_per_go_by_position() -> None:
    assert RateLimiter(5, 60).quota == Quota(5, per=60)
    with pytest.raises(TypeError):
        Make(5, 60, "name")


LONGEST_S = 315_576_000  # ten years


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            (limit, per)
            for limit in (1, 2_047)
            for per in (1e-6, LONGEST_S, timedelta(microseconds=1))
        ),
        (Index(7), Index(5)),
        ("1/s",),
        ("2047/d",),
        (Quota(3, per=1),),
    ],
    ids=repr,
)
def test_the_ends_of_what_is_allowed(arguments: tuple[Any, ...], clock: NanoClock) -> None:
    limiter = Make(*arguments, clock=clock)
    limit = limiter.quota.limit
    assert [limiter.allow("user") for _ in range(limit + 1)] == [True] * limit + [False]


# -- keys -----------------------------------------------------------------------------------------

NOT_KEYS: list[Any] = [
    None, [], {}, set(), frozenset(), object(), 1.5, 1j, float("nan"), bytearray(b"a"),
    memoryview(b"a"), range(3), int, print, Ellipsis, decimal.Decimal(1), fractions.Fraction(1),
    timedelta(1), iter(()), Index(1), (None,), ("a", []), ("a", ("b", 1.0)), (("a",), {"b": 1}),
]  # fmt: skip


@pytest.mark.parametrize("call", ["allow", "check", "peek", "reset", "__contains__"])
@pytest.mark.parametrize("key", NOT_KEYS, ids=repr)
@pytest.mark.usefixtures("unchanged")
def test_what_is_no_key(limiter: Any, key: Any, call: str) -> None:
    """The error names the type, of the part that is to blame."""
    blame = key
    while isinstance(blame, tuple):
        blame = next(part for part in blame if not isinstance(part, str) and part != ("a",))
    with pytest.raises(TypeError, match=type(blame).__name__):
        if call == "__contains__":
            key in limiter  # noqa: B015
        else:
            getattr(limiter, call)(key)


@pytest.mark.parametrize("call", ["allow", "check", "peek", "reset", "allow_many"])
@pytest.mark.usefixtures("unchanged")
def test_wrong_numbers_of_arguments(limiter: Any, call: str) -> None:
    method = getattr(limiter, call)
    with pytest.raises(TypeError):
        method()
    with pytest.raises(TypeError):
        method("user", 1, 1)
    with pytest.raises(TypeError):
        method("user", colour=1)
    with pytest.raises(TypeError):
        method("user", cost=1, colour=1)
    with pytest.raises(TypeError):
        method(cost=1)
    if call != "reset":
        with pytest.raises(TypeError):
            method(["user"] if call == "allow_many" else "user", 1, cost=1)


@pytest.mark.parametrize("call", ["clear", "evict", "stats", "close"])
@pytest.mark.usefixtures("unchanged")
def test_arguments_where_there_are_none(limiter: Any, call: str) -> None:
    with pytest.raises(TypeError):
        getattr(limiter, call)("user")


def test_keys_by_name(limiter: Any) -> None:
    """`cost` goes by position and by name; `key` by position, and by name where it is accepted."""
    assert limiter.allow("other", 2) is True
    assert limiter.allow("other", cost=3) is True
    assert limiter.allow("other") is False


def test_a_lone_surrogate_is_a_key_like_any_other(limiter: Any) -> None:
    assert [limiter.allow("\ud800") for _ in range(6)] == [True] * 5 + [False]
    assert limiter.allow("\udfff")
    assert limiter.allow("?")
    assert limiter.allow("")


def test_a_key_of_ten_megabytes_is_a_key_like_any_other(limiter: Any) -> None:
    key = "x" * 10_000_000
    assert [limiter.allow(key) for _ in range(6)] == [True] * 5 + [False]
    assert limiter.allow(key[:-1])


# -- costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["allow", "check", "peek", "allow_many"])
@pytest.mark.parametrize(
    ("cost", "error", "says"),
    [
        (-1, ValueError, "cost.*0.*-1"),
        (6, ValueError, "cost.*5.*6|cost.*6.*5"),
        (2_048, ValueError, "cost"),
        (2**31, ValueError, "cost"),
        (2**32 + 1, ValueError, "cost"),
        (2**63, ValueError, "cost"),
        (2**64 + 1, ValueError, "cost"),
        (10**100, ValueError, "cost"),
        (-(10**100), ValueError, "cost"),
        (Index(6), ValueError, "cost"),
        (2.5, TypeError, "cost.*float"),
        (1.0, TypeError, "cost.*float"),
        (True, TypeError, "cost.*bool"),
        (False, TypeError, "cost.*bool"),
        (None, TypeError, "cost.*NoneType"),
        ("1", TypeError, "cost.*str"),
        ([], TypeError, "cost.*list"),
        (BadIndex(), ZeroDivisionError, "no index today"),
    ],
    ids=repr,
)
@pytest.mark.usefixtures("unchanged")
def test_what_is_no_cost(
    limiter: Any, call: str, cost: Any, error: type[Exception], says: str
) -> None:
    keys = ["user", "other"] if call == "allow_many" else "user"
    with pytest.raises(error, match=says):
        getattr(limiter, call)(keys, cost)
    with pytest.raises(error, match=says):
        getattr(limiter, call)(keys, cost=cost)


@pytest.mark.usefixtures("unchanged")
def test_a_bad_cost_of_an_empty_batch(limiter: Any) -> None:
    with pytest.raises(ValueError, match="cost"):
        limiter.allow_many([], 6)


def test_costs_that_are_whole_numbers(limiter: Any) -> None:
    assert limiter.allow("other", Index(2))
    assert limiter.allow("other", cost=Index(3))
    assert not limiter.allow("other", Index(1))
    assert limiter.allow("other", 0)


# -- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        (key for key in ["a"]), iter(["a"]), {"a"}, {"a": 1}, frozenset("a"), "abc", b"abc",
        bytearray(b"abc"), None, 5, object(), map(str, [1]), {"a": 1}.keys(),
    ],
    ids=lambda keys: type(keys).__name__,
)  # fmt: skip
@pytest.mark.usefixtures("unchanged")
def test_what_is_no_batch(limiter: Any, keys: Any) -> None:
    """A generator could be read only once, and so not be looked through before counting."""
    with pytest.raises(TypeError, match=type(keys).__name__):
        limiter.allow_many(keys)


BAD_BUFFERS: list[tuple[str, Any, type[Exception], str]] = [
    ("float", array.array("d", [1.0]), TypeError, "'d'"),
    ("int32", array.array("i", [1]), TypeError, "'i'"),
    ("int8", array.array("b", [1]), TypeError, "'b'"),
    ("chars", memoryview(b"12345678"), TypeError, "'B'"),
    ("pointers", (ctypes.c_void_p * 2)(), TypeError, "P"),
    ("2-D", memoryview(bytes(32)).cast("q", [2, 2]), ValueError, "dimension|1-D|2-D"),
    ("0-D", memoryview(bytes(8)).cast("q", []), ValueError, "dimension|1-D|0-D"),
]
if numpy is not None:
    BAD_BUFFERS += [
        ("numpy float", numpy.array([1.0]), TypeError, "'d'"),
        ("numpy 2-D", numpy.zeros((2, 2), dtype=numpy.int64), ValueError, "dimension|1-D|2-D"),
        (
            "numpy other endian",
            numpy.array([1]).astype(numpy.dtype("int64").newbyteorder()),
            TypeError,
            "[<>]",
        ),
        ("numpy bool", numpy.array([True]), TypeError, r"'\?'"),
        ("numpy structured", numpy.zeros(2, dtype=[("a", "i8")]), TypeError, "format"),
    ]


@pytest.mark.parametrize(
    ("name", "buffer", "error", "says"), BAD_BUFFERS, ids=[row[0] for row in BAD_BUFFERS]
)
@pytest.mark.usefixtures("unchanged")
def test_buffers_of_something_else(
    limiter: Any, name: str, buffer: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        limiter.allow_many(buffer)


@needs_numpy
@pytest.mark.usefixtures("unchanged")
def test_an_array_of_objects(limiter: Any) -> None:
    with pytest.raises(TypeError):
        limiter.allow_many(numpy.array(["a", 1], dtype=object))


def test_read_only_and_strided_buffers_are_fine(limiter: Any) -> None:
    numbers = memoryview(array.array("q", [1, 0, 2, 0, 1, 0])).toreadonly()
    assert limiter.allow_many(numbers[::2]).tolist() == [True, True, True]
    assert limiter.peek(1).remaining == 3
    assert 0 not in limiter


@pytest.mark.usefixtures("unchanged")
def test_a_released_memoryview(limiter: Any) -> None:
    view = memoryview(array.array("q", [1]))
    view.release()
    with pytest.raises(ValueError, match="released"):
        limiter.allow_many(view)


@pytest.mark.parametrize("make", [list, tuple])
@pytest.mark.parametrize("at", [0, 1, 3, 31, 32, 99])
@pytest.mark.parametrize("bad", [None, 1.5, [], ("fine", None)], ids=repr)
@pytest.mark.usefixtures("unchanged")
def test_a_bad_key_in_the_middle(
    limiter: Any, bad: Any, at: int, make: Callable[[list[Any]], Any]
) -> None:
    """Nothing is counted, and the error says which index."""
    keys: list[Any] = [f"user:{nth}" for nth in range(100)]
    keys[at] = bad
    with pytest.raises(TypeError, match=rf"keys\[{at}\].*(NoneType|float|list)"):
        limiter.allow_many(make(keys))
    assert "user:50" not in limiter


def test_a_list_that_another_thread_changes() -> None:
    """Whatever is in the list when it is looked at is decided, and nothing breaks."""
    limiter = RateLimiter(3, per=86_400)
    keys: list[str] = [f"user:{nth}" for nth in range(500)]
    done = threading.Event()

    def change() -> None:
        for nth in itertools.count():
            if done.is_set():
                return
            keys.append(f"user:{nth % 700}")
            del keys[: nth % 3]
            keys[0:0] = ["user:1"] * (nth % 2)
            if len(keys) > 2_000:
                keys.clear()
                keys.extend(f"user:{nth}" for nth in range(500))

    thread = threading.Thread(target=change)
    thread.start()
    admitted = 0
    try:
        for _ in range(300):
            answers = limiter.allow_many(keys)
            assert all(type(answer) is bool for answer in answers)
            admitted += sum(answers)
    finally:
        done.set()
        thread.join()
    assert limiter.stats().allowed == admitted
    assert sum(3 - limiter.peek(f"user:{nth}").remaining for nth in range(700)) == admitted
    verify(limiter)


def test_a_list_that_changes_itself(limiter: Any) -> None:
    """A sequence whose items run code: it may shrink while it is read."""

    class Sly(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            self.clear()
            return "user"

        def __len__(self) -> int:
            return 7

    answers = limiter.allow_many(Sly(["a", "b", "a"]))
    assert answers == [True, True, True], "a list is read as the list that it is"


# -- clocks ---------------------------------------------------------------------------------------


class Broken(Exception):
    pass


def raising() -> float:
    raise Broken("no time")


BAD_CLOCKS: list[tuple[str, Callable[[], Any], type[Exception]]] = [
    ("raises", raising, Broken),
    ("str", lambda: "12:00", TypeError),
    ("None", lambda: None, TypeError),
    ("complex", lambda: 1j, TypeError),
    ("nan", lambda: math.nan, ValueError),
    ("inf", lambda: math.inf, ValueError),
    ("-inf", lambda: -math.inf, ValueError),
    ("negative", lambda: -1.0, ValueError),
    ("a little negative", lambda: -1e-6, ValueError),
    ("2**62 ns", lambda: 2**62 / 1e9, ValueError),
    ("1e300", lambda: 1e300, ValueError),
    ("a huge int", lambda: 10**400, ValueError),
]


@pytest.mark.parametrize(("name", "bad", "error"), BAD_CLOCKS, ids=[row[0] for row in BAD_CLOCKS])
@pytest.mark.parametrize(
    "call", ["allow", "check", "peek", "allow_many", "buffer", "in", "len", "evict"]
)
def test_a_clock_that_is_broken(
    name: str, bad: Callable[[], Any], error: type[Exception], call: str
) -> None:
    """The error comes out; nothing was changed; with the clock mended all goes on."""
    mended: list[Callable[[], Any]] = [lambda: 100.0]
    limiter: Any = RateLimiter(5, per=60, clock=lambda: mended[0]())
    assert limiter.allow("user")
    before = limiter.stats()
    mended[0] = bad
    calls: dict[str, Callable[[], object]] = {
        "allow": lambda: limiter.allow("user"),
        "check": lambda: limiter.check("new"),
        "peek": lambda: limiter.peek("user"),
        "allow_many": lambda: limiter.allow_many(["user", "new"]),
        "buffer": lambda: limiter.allow_many(array.array("q", [1, 2])),
        "in": lambda: "user" in limiter,
        "len": lambda: len(limiter),
        "evict": lambda: limiter.evict(),
    }
    for _ in range(3):
        with pytest.raises(error):
            calls[call]()
    mended[0] = lambda: 100.0
    assert limiter.stats() == before
    assert limiter.peek("user").remaining == 4
    assert len(limiter) == 1
    verify(limiter)


def test_a_nanosecond_clock_out_of_range() -> None:
    clock = NanoClock(5)
    limiter = RateLimiter(1, per=1, clock=clock)
    for ns in (-1, -(2**70), 2**62, 2**63, 2**64 + 5, 2**100):
        clock.ns = ns
        with pytest.raises(ValueError, match="clock"):
            limiter.allow("user")
    clock.ns = 2**62 - 1
    assert limiter.allow("user")


@pytest.mark.parametrize("number", [100, 100.0, True + 99])
def test_clocks_may_give_ints(number: Any) -> None:
    limiter = RateLimiter(1, per=1, clock=lambda: number)
    assert limiter.allow("user")


def test_a_clock_that_runs_backwards() -> None:
    times = iter([100.0, 50.0, 99.0, 0.0, 160.0, 0.0])
    limiter = RateLimiter(2, per=60, clock=lambda: next(times))
    assert [limiter.allow("user") for _ in range(6)] == [True, True, False, False, True, True]


def test_a_clock_that_calls_the_limiter() -> None:
    """It is asked before anything is held, so it may."""
    busy = False

    def clock() -> float:
        nonlocal busy
        if not busy:
            busy = True
            assert asking.allow("clock")
            asking.reset("clock")
            asking.evict()
            asking.clear()
            busy = False
        return 100.0

    asking: Any = RateLimiter(1, per=60, clock=clock)
    assert asking.allow("user")
    assert asking.allow_many(["user", "other"]) == [True, True]
    verify(asking)


@pytest.mark.parametrize("call", ["allow", "allow_many", "buffer", "len", "evict"])
def test_a_clock_that_closes_the_limiter(call: str) -> None:
    """The call in progress is answered or says closed; the next ones say closed."""

    def clock() -> float:
        asking.close()
        return 100.0

    asking: Any = RateLimiter(1, per=60, clock=clock)
    calls: dict[str, Callable[[], object]] = {
        "allow": lambda: asking.allow("user"),
        "allow_many": lambda: asking.allow_many(["user"] * 100),
        "buffer": lambda: asking.allow_many(array.array("q", range(100))),
        "len": lambda: len(asking),
        "evict": lambda: asking.evict(),
    }
    try:
        calls[call]()
    except LimiterClosedError:
        pass
    with pytest.raises(LimiterClosedError):
        calls[call]()


# -- after close ----------------------------------------------------------------------------------


def test_use_after_close(clock: NanoClock) -> None:
    limiter: Any = RateLimiter(5, per=60, clock=clock, name="api")
    allow = limiter.allow
    assert allow("user")
    limiter.close()
    limiter.close()
    assert limiter.closed
    calls: list[Callable[[], object]] = [
        lambda: allow("user"),
        lambda: limiter.allow("user", 0),
        lambda: limiter.check("user"),
        lambda: limiter.peek("user"),
        lambda: limiter.allow_many(["user"]),
        lambda: limiter.allow_many([]),
        lambda: limiter.allow_many(array.array("q", [1])),
        lambda: limiter.reset("user"),
        lambda: limiter.clear(),
        lambda: limiter.evict(),
        lambda: limiter.stats(),
        lambda: len(limiter),
        lambda: "user" in limiter,
    ]
    for call in calls:
        with pytest.raises(LimiterClosedError, match="api"):
            call()
    assert issubclass(LimiterClosedError, NanolimitError)
    assert limiter.name == "api"
    assert limiter.quota == Quota(5, per=60)
    assert "closed" in repr(limiter)


def test_a_context_manager_closes_even_after_an_error() -> None:
    with pytest.raises(Broken), RateLimiter(5) as limiter:
        raise Broken
    assert limiter.closed
    with pytest.raises(LimiterClosedError):
        limiter.allow("user")


# -- handlers -------------------------------------------------------------------------------------


@pytest.fixture
def attach() -> Iterator[Callable[..., None]]:
    """telemetry.attach, undone at the end."""
    ids: list[str] = []

    def attach(handler: Callable[..., object], *events: str) -> None:
        ids.append(f"test-{len(ids)}")
        telemetry.attach(ids[-1], events, handler)

    yield attach
    for handler_id in ids:
        telemetry.detach(handler_id)


def test_a_handler_may_use_the_limiter(attach: Callable[..., None], clock: NanoClock) -> None:
    """No lock is held while it runs: every verb, on the same key, from inside an event."""
    limiter = RateLimiter(2, per=60, clock=clock, max_keys=3, on_full="evict")
    inside: list[object] = []

    def handler(event: str, measurements: dict[str, float], metadata: dict[str, object]) -> None:
        key: Any = metadata["key"] or "nobody"
        inside.append((event, limiter.peek(key).remaining))
        limiter.allow(key)
        limiter.allow_many([key, "other"])
        limiter.allow_many(array.array("q", [1, 2]))
        limiter.reset(key)
        limiter.evict()
        len(limiter)
        limiter.stats()
        limiter.clear()
        verify(limiter)

    attach(handler, "allowed", "denied", "evicted", "overflow")
    for nth in range(20):
        assert limiter.allow(f"user:{nth}")
        assert limiter.allow_many(["a", "a", "a", "b", "c", "d"])[0]
        clock.ns += 30_000_000_000
    assert inside
    verify(limiter)


def test_a_handler_may_close_the_limiter(attach: Callable[..., None]) -> None:
    """The decision that it is told of stands; the rest of the batch says closed, or is answered."""
    limiter = RateLimiter(1, per=60)
    attach(lambda *_: limiter.close(), "allowed")
    assert limiter.allow("user") is True
    with pytest.raises(LimiterClosedError):
        limiter.allow("user")

    limiter = RateLimiter(1, per=60)
    attach(lambda *_: limiter.close(), "denied")
    try:
        assert limiter.allow_many(["a", "a", "a", "b"]) == [True, False, False, True]
    except LimiterClosedError:
        pass
    assert limiter.closed


def test_a_handler_may_fork_the_recursion_no_deeper_than_itself(
    attach: Callable[..., None],
) -> None:
    """It is not called for events that it causes itself."""
    limiter = RateLimiter(100, per=60)
    calls = []

    def handler(*event: object) -> None:
        calls.append(event)
        limiter.allow("inside")

    attach(handler, "allowed")
    limiter.allow("user")
    assert len(calls) == 1
    assert limiter.peek("inside").remaining == 99


def test_a_handler_that_raises_changes_no_decision(
    attach: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    limiter = RateLimiter(1, per=60)

    def handler(*_: object) -> None:
        raise Broken("the handler's fault")

    attach(handler, "allowed", "denied")
    with caplog.at_level("ERROR", logger="nanolimit"):
        assert limiter.allow("user") is True
        assert limiter.allow("user") is False
    (record,) = (record for record in caplog.records if record.name == "nanolimit")
    assert "was detached" in record.getMessage(), "logged once"
    assert "the handler's fault" in caplog.text
    assert limiter.stats().allowed == 1


# -- the end --------------------------------------------------------------------------------------


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(
            """
            import nanolimit
            limiter = nanolimit.RateLimiter(5)
            allow = limiter.allow
            class Late:
                def __del__(self):
                    allow("late"); limiter.allow_many([1, 2]); limiter.stats()
            late = Late()
            late.itself = late
            allow("user")
            """,
            id="a finalizer that asks",
        ),
        pytest.param(
            """
            import atexit, threading, nanolimit
            limiter = nanolimit.RateLimiter(5, per=3600, max_keys=100_000)
            started = threading.Event()
            def work(number):
                nth = 0
                while True:
                    limiter.allow((number, nth))
                    limiter.allow_many(range(nth, nth + 100))
                    limiter.evict()
                    nth += 1
                    if nth == 20: started.set()
            for number in range(3):
                threading.Thread(target=work, args=(number,), daemon=True).start()
            assert started.wait(60)
            """,
            id="daemon threads in the middle of calls",
        ),
        pytest.param(
            """
            import atexit, nanolimit
            from nanolimit import telemetry
            limiter = nanolimit.RateLimiter(5)
            telemetry.attach("h", ["allowed", "denied"], lambda e, m, d: limiter.peek(d["key"]))
            atexit.register(lambda: limiter.allow("late"))
            class Late:
                def __del__(self): limiter.allow("later")
            nanolimit.keep = Late()
            limiter.allow("user")
            """,
            id="a handler attached",
        ),
        pytest.param(
            """
            import sys, nanolimit
            limiter = nanolimit.RateLimiter(5, clock=nanolimit.ManualClock())
            limiter.allow("user")
            sys.modules["keep"] = limiter
            del limiter
            """,
            id="kept by another module",
        ),
        pytest.param(
            """
            import nanolimit
            nanolimit.allow("user")
            limiters = [nanolimit.RateLimiter(5) for _ in range(1000)]
            cycle = [limiters[0]]; cycle.append(cycle)
            """,
            id="the default limiter, and a thousand",
        ),
    ],
)
def test_interpreter_shutdown(script: str) -> None:
    result = run_script(script)
    assert result.returncode == 0, result.stderr
    assert "Fatal" not in result.stderr
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_the_public_errors_are_one_family() -> None:
    assert issubclass(nanolimit.NanolimitError, Exception)
    assert not issubclass(nanolimit.NanolimitError, ValueError)
    assert issubclass(nanolimit.RateLimitExceeded, nanolimit.NanolimitError)


def test_manual_clock_refuses_what_no_clock_shows() -> None:
    clock = ManualClock(start=1.0)
    with pytest.raises(ValueError, match="2"):
        clock.advance(-2)
    assert clock() == 1.0
