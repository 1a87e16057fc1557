"""How requests are counted: the names of the algorithms, and how large a limit each can count.

docs/algorithms.md says when to use which. The names are the core's (core/log.h, core/meter.h).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from nanolimit import _core
from nanolimit.clock import shown
from nanolimit.quota import whole_number

if TYPE_CHECKING:
    Algorithm = Literal["sliding-log", "gcra", "fixed-window", "sliding-counter"]

ALGORITHMS = _core.ALGORITHMS
DEFAULT: Algorithm = "sliding-log"


def checked_algorithm(value: object) -> Algorithm:
    """Return `value` as the name of an algorithm.

    Raises:
        TypeError: It is no str.
        ValueError: There is none of that name.
    """
    if not isinstance(value, str):
        raise TypeError(f"algorithm must be a str, not {type(value).__name__}")
    if value not in ALGORITHMS:
        *names, last = map(repr, ALGORITHMS)
        raise ValueError(f"algorithm must be {', '.join(names)} or {last}, not {shown(value)}")
    return cast("Algorithm", value)


def most(algorithm: str) -> int:
    """Return the largest limit that it can count."""
    return _core.MAX_LOG_LIMIT if algorithm == DEFAULT else _core.MAX_METER_LIMIT


def checked_max_log(value: object, limit: int, algorithm: str) -> int | None:
    """Return `value` as a bound of the entries in a key's log.

    Args:
        value: What was given; None for no bound.
        limit: The largest limit that it is to go with.
        algorithm: Whose log it is to bound.

    Raises:
        TypeError: It is no int, or the algorithm keeps no log.
        ValueError: It is out of range.
    """
    if value is None:
        return None
    number = whole_number("max_log", value)
    if algorithm != DEFAULT:
        raise TypeError(
            f"max_log goes with algorithm={DEFAULT!r}: {algorithm!r} keeps no log; leave it out"
        )
    if not _core.MAX_LOG_LEAST <= number <= limit:
        raise ValueError(
            f"max_log must be from {_core.MAX_LOG_LEAST} to the limit of {limit}, "
            f"not {shown(number)}: leave it out for a log that is exact throughout"
        )
    return number
