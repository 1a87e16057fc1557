"""Space-Saving's promise, for whatever comes: no count too low, none too high beyond its error.

Against a model that keeps every denial with its pane.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from doors import verify
from nanolimit import ManualClock, RateLimiter

PANES, PANE_S = 5, 120

# A key is denied so many times, then the time goes on (or, once in a while, back).
steps = st.lists(
    st.tuples(
        st.integers(0, 40).map(lambda n: n * n // 60),  # small numbers often
        st.integers(1, 12),
        st.sampled_from([0.0, 0.0, 0.0, 0.0, 1.0, 59.9, 120.0, 300.0, 700.0, -50.0]),
    ),
    max_size=120,
)


@given(steps, st.sampled_from([1, 2, 3, 8, 100]))
def test_no_count_is_wrong_by_more_than_its_error(
    steps: list[tuple[int, int, float]], track_top: int
) -> None:
    clock = ManualClock(start=1_000.0)
    limiter = RateLimiter(1, per=315_576_000, track_top=track_top, clock=clock)
    panes: dict[int, Counter[int]] = {}
    newest = 0
    seen: set[int] = set()
    for key, times, pause_s in steps:
        newest = max(newest, int(clock() // PANE_S))
        for _ in range(times):
            if not limiter.allow(key):
                panes.setdefault(newest, Counter())[key] += 1
        seen.add(key)
        if pause_s >= 0 or clock() > 100:
            clock.advance(pause_s)
    verify(limiter)
    now_s = max(newest, int(clock() // PANE_S))
    true: Counter[int] = Counter()
    for pane in range(now_s - PANES + 1, now_s + 1):
        true.update(panes.get(pane, Counter()))
    top = limiter.top(1_000)
    found = {each.key: each for each in top}
    assert len(found) == len(top)
    for key, each in found.items():
        assert isinstance(key, int)
        assert each.denied - each.error <= true[key] <= each.denied
        assert each.exact
    assert [each.denied for each in top] == sorted((each.denied for each in top), reverse=True)
    # Whoever is not named was denied no more often than those who are may have been.
    if track_top >= len(seen):
        assert {key: each.denied for key, each in found.items()} == dict(+true)
    elif found:
        assert max((true[key] for key in seen - set(found)), default=0) <= top[0].denied
