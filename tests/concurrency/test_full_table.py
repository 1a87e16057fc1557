"""Many threads fill a table to the last place: exactly `max_keys` keys get in, and stay exact."""

from __future__ import annotations

import itertools
import threading

import pytest

from clocks import NS_PER_S, NanoClock
from crew import PATIENCE_S, Crew, run
from doors import verify
from nanolimit import RateLimiter

pytestmark = pytest.mark.usefixtures("restless")

THREADS = 4


@pytest.mark.parametrize("max_keys", [1, 2, 17, 1_000])
def test_exactly_as_many_as_fit(max_keys: int) -> None:
    """All ask for keys of their own; together twice as many as fit."""
    for nth in range(max(1, 150 // max_keys)):
        limiter = RateLimiter(1, per=86_400, max_keys=max_keys, on_full="deny")
        mine = -(-2 * max_keys // THREADS)
        admitted: list[list[tuple[int, int]]] = [[] for _ in range(THREADS)]

        def ask(
            number: int,
            limiter: RateLimiter = limiter,
            mine: int = mine,
            admitted: list[list[tuple[int, int]]] = admitted,
        ) -> None:
            admitted[number] = [
                (number, key) for key in range(mine) if limiter.allow((number, key))
            ]

        run(THREADS, ask)
        everybody = list(itertools.chain(*admitted))
        assert len(everybody) == len(limiter) == max_keys, f"run {nth}"
        assert not any(limiter.allow(key) for key in everybody)
        assert limiter.stats().allowed == max_keys
        assert limiter.stats().overflowed == THREADS * mine - max_keys
        verify(limiter)


def test_everybody_fits_again_when_all_went_idle() -> None:
    """Threads race for the same idle slots: each slot is taken once, and nobody is turned away."""
    max_keys, rounds = 400, 60
    clock = NanoClock(10**15)
    limiter = RateLimiter(1, per=60, clock=clock, max_keys=max_keys, on_full="deny")
    turn = itertools.count()

    def between() -> None:
        nth = next(turn)
        if nth > 0:
            assert len(limiter) == max_keys
            assert limiter.stats().overflowed == 0
            verify(limiter)
        clock.ns += 60 * NS_PER_S

    barrier = threading.Barrier(THREADS, action=between, timeout=PATIENCE_S)

    def ask(number: int) -> None:
        for nth in range(rounds):
            barrier.wait()
            for key in range(max_keys // THREADS):
                assert limiter.allow((nth, number, key))
                assert not limiter.allow((nth, number, key))
        barrier.wait()

    run(THREADS, ask)


def test_evicting_under_fire_keeps_the_table_sound() -> None:
    """Not exact, and says so; but never more keys than fit, and a hot key is not torn."""
    limiter = RateLimiter(3, per=86_400, max_keys=50, on_full="evict")
    done = threading.Event()

    def watch(_: int) -> None:
        while not done.is_set():
            assert len(limiter) <= 50

    def ask(number: int) -> None:
        for key in range(5_000):
            assert limiter.allow((number, key))

    with Crew(1, watch):
        try:
            run(THREADS, ask)
        finally:
            done.set()
    stats = limiter.stats()
    assert stats.allowed == THREADS * 5_000
    assert stats.keys == len(limiter) == 50
    assert stats.evicted == THREADS * 5_000 - 50
    verify(limiter)
