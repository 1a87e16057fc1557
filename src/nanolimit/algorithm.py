"""How requests are counted: the names of the algorithms, and how large a limit each can count.

docs/algorithms.md says when to use which. The names are the core's (core/log.h, core/meter.h).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from nanolimit import _core
from nanolimit.clock import shown

if TYPE_CHECKING:
    from nanolimit.quota import Quota

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


def require_limit(quota: Quota, algorithm: str) -> None:
    """Raise a ValueError if the quota's limit is more than the algorithm can count."""
    if quota.limit > most(algorithm):
        meters = " or ".join(repr(name) for name in ALGORITHMS if name != DEFAULT)
        raise ValueError(
            f"limit must be from 1 to {most(algorithm)} for algorithm={algorithm!r}, "
            f"not {quota.limit}: for larger ones take algorithm={meters} "
            f"(up to {_core.MAX_METER_LIMIT})"
        )
