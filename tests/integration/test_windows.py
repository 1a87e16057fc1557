"""The judge that the other tests ask finds what is wrong, and only that."""

from __future__ import annotations

import pytest

from windows import Span, false_denial, over_admission, tiles


def at(*times_ns: int, unsure_ns: int = 0) -> list[Span]:
    return [Span(time - unsure_ns, time + unsure_ns) for time in times_ns]


@pytest.mark.parametrize(
    ("allowed", "is_over"),
    [
        (at(0, 10, 20, 100), False),  # at 100, the first is exactly one window old
        (at(0, 10, 20, 99), True),
        (at(99, 20, 0, 10), True),  # in whatever order
        (at(0, 10, 20, 100, 110, 120, 200), False),
        (at(0, 50, 60, 100, 140, 160), True),  # 50 to 140: four, not at an edge of anything
        (at(0, 10, 20, 99, unsure_ns=1), False),  # it may have been 100
        (at(0, 10, 20, 97, unsure_ns=1), True),
        ([Span(0, 1_000_000), *at(10, 20, 30)], False),
        (at(), False),
    ],
)
def test_over_admission(allowed: list[Span], is_over: bool) -> None:
    assert (over_admission(allowed, 3, 100) is not None) is is_over


@pytest.mark.parametrize(
    ("denied", "allowed", "is_false"),
    [
        (at(98), at(0, 10, 20), False),
        (at(105), at(0, 10, 20), True),  # the first had left
        (at(30), at(0, 10, 40), True),  # the third had not come
        (at(30), at(0, 10, 30, unsure_ns=1), False),
        (at(105), at(0, 10, 20, unsure_ns=10), False),
        (at(30), at(0, 10), True),
        (at(30), [*at(0, 10), Span(5, 1_000)], False),  # one that was never answered
    ],
)
def test_false_denial(denied: list[Span], allowed: list[Span], is_false: bool) -> None:
    assert (false_denial(denied, allowed, 3, 100) is not None) is is_false


def test_tiles() -> None:
    # The second begins at 103, where the first one after the window came; the last is not over.
    assert tiles(at(1, 2, 3, 103, 104, 205, 206, 207), 100, 304) == [3, 2]
    assert tiles(at(1, 2, 3, 103, 104, 205, 206, 207), 100, 305) == [3, 2, 3]
    assert tiles([], 100, 1_000) == []
