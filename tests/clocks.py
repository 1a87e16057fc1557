"""A clock for tests: whole nanoseconds that a test sets at will, forwards and backwards."""

from __future__ import annotations

NS_PER_S = 1_000_000_000

#: The first nanosecond that no clock may show.
END_OF_TIME_NS = 2**62


class NanoClock:
    """Shows `ns`. A limiter asks `now_ns()`, which is exact; calling the clock gives float seconds.

    It is not `nanolimit.ManualClock`: that one belongs to the package and is tested itself.
    """

    def __init__(self, ns: int = 0) -> None:
        self.ns = ns

    def now_ns(self) -> int:
        return self.ns

    def __call__(self) -> float:
        return self.ns / NS_PER_S
