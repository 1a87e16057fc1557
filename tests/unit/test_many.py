"""allow_many: as if one by one, in order; lists, tuples, and buffers of whole numbers."""

from __future__ import annotations

import array
import ctypes
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from clocks import NS_PER_S, NanoClock
from doors import verify
from nanolimit import RateLimiter

numpy: Any
try:
    import numpy
except ImportError:
    numpy = None

needs_numpy = pytest.mark.skipif(numpy is None, reason="numpy is not installed")


def crowd(size: int, users: int, seed: int = 1) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(users) for _ in range(size)]


def one_by_one(limit: int, keys: Sequence[Any], cost: int = 1) -> list[bool]:
    clock = NanoClock(10**15)
    limiter = RateLimiter(limit, per=60, clock=clock)
    return [limiter.allow(key, cost) for key in keys]


def fresh(limit: int) -> RateLimiter:
    return RateLimiter(limit, per=60, clock=NanoClock(10**15))


@pytest.mark.parametrize("make", [list, tuple])
@pytest.mark.parametrize("size", [0, 1, 2, 7, 8, 9, 31, 32, 33, 64, 100, 5_000])
@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_a_sequence_as_if_one_by_one(
    limit: int, size: int, make: Callable[[list[str]], Sequence[str]]
) -> None:
    keys = [f"user:{nth}" for nth in crowd(size, size // 4 + 1)]
    limiter = fresh(limit)
    answers = limiter.allow_many(make(keys))
    assert type(answers) is list
    assert all(type(answer) is bool for answer in answers)
    assert answers == one_by_one(limit, keys)
    stats = limiter.stats()
    assert (stats.allowed, stats.denied) == (sum(answers), size - sum(answers))
    verify(limiter)


def test_a_range_is_a_sequence() -> None:
    limiter = fresh(1)
    assert limiter.allow_many(range(10)) == [True] * 10
    assert limiter.allow_many(range(12)) == [False] * 10 + [True] * 2


def test_duplicates_inside_one_batch() -> None:
    assert fresh(2).allow_many(["a", "a", "b", "a", "b", "b"]) == [
        True,
        True,
        True,
        False,
        True,
        False,
    ]
    assert fresh(2).allow_many([7] * 100) == [True, True] + [False] * 98
    answers = fresh(2).allow_many(array.array("q", [7] * 100))
    assert answers.tolist() == [True, True] + [False] * 98


@pytest.mark.parametrize("cost", [0, 1, 2, 5])
def test_cost_holds_for_each_key(cost: int) -> None:
    keys = crowd(300, 40)
    expected = one_by_one(5, keys, cost)
    assert fresh(5).allow_many(keys, cost) == expected
    assert fresh(5).allow_many(keys, cost=cost) == expected
    assert fresh(5).allow_many(array.array("q", keys), cost).tolist() == expected


def test_one_clock_reading_serves_a_batch() -> None:
    readings = []

    def clock() -> float:
        readings.append(1)
        return float(len(readings))

    limiter = RateLimiter(2, per=60, clock=clock)
    before = len(readings)
    assert limiter.allow_many(["a", "b", "a"]) == [True] * 3
    assert len(readings) - before == 1


BUFFERS: list[tuple[str, Callable[[list[int]], Any]]] = [
    ("array q", lambda keys: array.array("q", keys)),
    ("array Q", lambda keys: array.array("Q", keys)),
    ("memoryview", lambda keys: memoryview(array.array("q", keys))),
    ("read-only memoryview", lambda keys: memoryview(array.array("q", keys)).toreadonly()),
    ("bytes cast", lambda keys: memoryview(array.array("q", keys).tobytes()).cast("q")),
    ("ctypes int64", lambda keys: (ctypes.c_int64 * len(keys))(*keys)),
    ("ctypes uint64", lambda keys: (ctypes.c_uint64 * len(keys))(*keys)),
]
if array.array("l").itemsize == 8:
    BUFFERS += [
        ("array l", lambda keys: array.array("l", keys)),
        ("array L", lambda keys: array.array("L", keys)),
    ]
if numpy is not None:
    BUFFERS += [
        ("numpy int64", lambda keys: numpy.array(keys, dtype=numpy.int64)),
        ("numpy uint64", lambda keys: numpy.array(keys, dtype=numpy.uint64)),
        ("numpy strided", lambda keys: numpy.repeat(numpy.array(keys, dtype=numpy.int64), 3)[::3]),
        ("numpy backwards", lambda keys: numpy.array(keys[::-1], dtype=numpy.int64)[::-1]),
        (
            "numpy column",
            lambda keys: numpy.array([[key, -1] for key in keys], dtype=numpy.int64).reshape(-1, 2)[
                :, 0
            ],
        ),
    ]


@pytest.mark.parametrize(("name", "make"), BUFFERS, ids=[name for name, _ in BUFFERS])
@pytest.mark.parametrize("size", [0, 1, 2, 31, 32, 33, 1_000, 20_000])
def test_a_buffer_as_if_one_by_one(name: str, make: Callable[[list[int]], Any], size: int) -> None:
    keys = crowd(size, size // 3 + 1)
    limiter = fresh(2)
    answers = limiter.allow_many(make(keys))
    view = memoryview(answers)
    assert view.format == "?"
    assert view.ndim == 1
    assert view.itemsize == 1
    assert len(answers) == size
    assert view.tolist() == one_by_one(2, keys)
    stats = limiter.stats()
    assert (stats.allowed, stats.denied) == (sum(view.tolist()), size - sum(view.tolist()))
    verify(limiter)


def test_a_strided_memoryview() -> None:
    keys = crowd(999, 100)
    limiter = fresh(2)
    assert limiter.allow_many(memoryview(array.array("q", keys))[::3]).tolist() == one_by_one(
        2, keys[::3]
    )
    limiter = fresh(2)
    assert limiter.allow_many(memoryview(array.array("q", keys))[::-1]).tolist() == one_by_one(
        2, keys[::-1]
    )


@pytest.mark.parametrize(
    ("typecode", "numbers"),
    [
        ("q", [0, 1, -1, 2**31, -(2**31), 2**62, -(2**62), 2**63 - 1, -(2**63)]),
        ("Q", [0, 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1]),
    ],
)
def test_numbers_in_a_buffer_are_the_same_users_as_ints(typecode: str, numbers: list[int]) -> None:
    """-1 of an int64 and 2**64 - 1 of a uint64 are the same bytes and different users."""
    buffer = array.array(typecode, numbers)
    limiter = fresh(1)
    assert all(limiter.allow_many(buffer).tolist())
    assert not any(limiter.allow(number) for number in numbers)
    assert len(limiter) == len(numbers)
    for number in numbers:
        if number >= 2**63:
            assert number - 2**64 not in limiter
        if -(2**63) <= number < 0:
            assert number + 2**64 not in limiter
    limiter = fresh(1)
    assert all(limiter.allow(number) for number in numbers)
    assert not any(limiter.allow_many(buffer).tolist())


def test_the_answer_belongs_to_the_caller() -> None:
    limiter = fresh(1)
    first = limiter.allow_many(array.array("q", [1, 2]))
    second = limiter.allow_many(array.array("q", [1, 3]))
    limiter.close()
    assert first.tolist() == [True, True]
    assert second.tolist() == [False, True]


@needs_numpy
def test_the_answer_is_a_mask_for_numpy() -> None:
    limiter = fresh(1)
    keys = numpy.array([5, 6, 5, 7, 6], dtype=numpy.int64)
    mask = numpy.asarray(limiter.allow_many(keys))
    assert mask.dtype == numpy.bool_
    assert keys[mask].tolist() == [5, 6, 7]


@needs_numpy
def test_numpy_scalars_have_the_value_of_their_ints() -> None:
    """A numpy integer is no int: it may be refused as a key, but must not be another user."""
    limiter = fresh(1)
    assert limiter.allow(5)
    try:
        again = limiter.allow(numpy.int64(5))
    except TypeError:
        return
    assert again is False


def test_lists_and_buffers_and_single_calls_share_their_counts() -> None:
    limiter = fresh(3)
    assert limiter.allow(5)
    assert limiter.allow_many([5]) == [True]
    assert limiter.allow_many(array.array("Q", [5])).tolist() == [True]
    assert not limiter.allow(5)


@pytest.mark.parametrize("as_buffer", [False, True])
def test_a_batch_that_makes_the_table_grow(as_buffer: bool) -> None:
    """50,000 new users in one call, each twice: every one gets exactly one."""
    keys = [nth // 2 for nth in range(100_000)]
    random.Random(3).shuffle(keys)
    limiter = fresh(1)
    answers = list(limiter.allow_many(array.array("q", keys) if as_buffer else keys))
    assert sum(answers) == 50_000
    seen: set[int] = set()
    for key, answer in zip(keys, answers, strict=True):
        assert answer is (key not in seen)
        seen.add(key)
    assert len(limiter) == 50_000
    verify(limiter)


@pytest.mark.parametrize("as_buffer", [False, True])
@pytest.mark.parametrize("on_full", ["allow", "deny", "evict"])
def test_a_batch_that_fills_the_table(on_full: Any, as_buffer: bool) -> None:
    limiter = RateLimiter(2, per=60, clock=NanoClock(10**15), max_keys=10, on_full=on_full)
    keys = [*range(10), *range(10, 15), *range(5)]
    answers = list(limiter.allow_many(array.array("q", keys) if as_buffer else keys))
    assert answers[:10] == [True] * 10
    if on_full == "evict":
        assert answers[10:15] == [True] * 5
        assert limiter.stats().evicted >= 5
    else:
        assert answers[10:15] == [on_full == "allow"] * 5
        assert answers[15:] == [True] * 5, "known keys are never decided by it"
        assert limiter.allow_many(range(5)) == [False] * 5
        assert limiter.stats().overflowed == 5
    assert len(limiter) == 10
    verify(limiter)


def test_idle_users_come_back_within_a_batch() -> None:
    clock = NanoClock(10**15)
    limiter = RateLimiter(1, per=60, clock=clock)
    keys = array.array("q", range(2_000))
    for _ in range(3):
        assert all(limiter.allow_many(keys).tolist())
        assert not any(limiter.allow_many(keys).tolist())
        clock.ns += 60 * NS_PER_S
