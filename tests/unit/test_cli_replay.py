"""The replay against an oracle in plain Python: a deque of times for each user."""

from __future__ import annotations

import random
from array import array
from collections import Counter, defaultdict, deque

import pytest

from nanolimit import Quota, RateLimiter
from nanolimit.cli import quota as quotas
from nanolimit.cli import replay
from nanolimit.cli.log import Requests

NS = 1_000_000_000


def oracle(times_ns: list[int], users: list[int], limit: int, window_ns: int) -> list[bool]:
    """Whether each request is denied; the requests in the order of their times."""
    logs: dict[int, deque[int]] = defaultdict(deque)
    denied = []
    for now, user in zip(times_ns, users, strict=True):
        log = logs[user]
        while log and now - log[0] >= window_ns:
            log.popleft()
        denied.append(len(log) >= limit)
        if not denied[-1]:
            log.append(now)
    return denied


def generated(seed: int, number: int = 3000, unit_ns: int = NS) -> Requests:
    """Requests in order, in multiples of `unit_ns`: ties, bursts and pauses, and a busy user."""
    generator = random.Random(seed)
    now, times_ns, users = generator.randrange(10**9) * NS, [], []
    for _ in range(number):
        now += unit_ns * generator.choice((0, 0, 0, 1, 1, 2, 5, 30))
        times_ns.append(now)
        users.append(min(int(generator.expovariate(0.15)), 49))
    names = [f"user {user}" for user in range(50)]
    return Requests(array("q", times_ns), array("I", users), names, lines=number)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("limit", "window_ns", "unit_ns"),
    [
        (1, 60 * NS, NS),
        (5, 60 * NS, NS),
        (6, 60 * NS, NS),
        (40, 3600 * NS, NS),
        (2, NS, NS // 1000),
        (3, 7 * 86_400 * NS, 60 * NS),
    ],
)
def test_run_is_what_the_oracle_says(seed: int, limit: int, window_ns: int, unit_ns: int) -> None:
    requests = generated(seed, unit_ns=unit_ns)
    quota = quotas.of_window(limit, window_ns)
    outcome = replay.run(requests.times_ns, requests.users, requests.names, quota)
    expected = oracle(list(requests.times_ns), list(requests.users), limit, window_ns)
    assert [bool(flag) for flag in outcome.denied_flags] == expected
    assert outcome.denied == sum(expected)
    per_user = Counter(user for user, no in zip(requests.users, expected, strict=True) if no)
    assert outcome.denied_of_user == dict(per_user)
    assert outcome.users_denied == len(per_user)
    assert 0 < outcome.denied < len(requests)


@pytest.mark.parametrize("seed", range(4))
def test_run_of_several_quotas(seed: int) -> None:
    """A request is counted by all of them or by none."""
    requests = generated(seed)
    limits = [(3, 60 * NS), (20, 3600 * NS)]
    quotas_ = tuple(quotas.of_window(limit, window_ns) for limit, window_ns in limits)
    outcome = replay.run(requests.times_ns, requests.users, requests.names, quotas_)
    logs: dict[int, list[int]] = defaultdict(list)
    for i, (now, user) in enumerate(zip(requests.times_ns, requests.users, strict=True)):
        log = logs[user]
        fits = all(
            sum(now - stamp < window_ns for stamp in log) < limit for limit, window_ns in limits
        )
        assert bool(outcome.denied_flags[i]) is not fits
        if fits:
            log.append(now)
    assert (outcome.quotas, outcome.quota) == (quotas_, quotas_[0])
    with pytest.raises(ValueError, match="several quotas"):
        replay.Sweep(requests, 60 * NS).add(outcome)


def test_run_tells_of_its_progress() -> None:
    requests = generated(1, number=150_000)
    told: list[int] = []
    replay.run(requests.times_ns, requests.users, requests.names, Quota(5), told.append)
    assert sum(told) == 150_000
    assert len(told) > 1


def test_run_of_nothing() -> None:
    outcome = replay.run(array("q"), array("I"), [], Quota(5))
    assert (outcome.denied, outcome.users_denied, outcome.denied_flags) == (0, 0, bytearray())


def test_one_user_more_than_fit_is_no_matter() -> None:
    """Every user is live at the same time, and the table is made for just so many."""
    number = 5000
    times_ns = array("q", [NS] * (3 * number))
    users = array("I", [*range(number)] * 3)
    outcome = replay.run(times_ns, users, [str(user) for user in range(number)], Quota(2))
    assert outcome.denied == outcome.users_denied == number


@pytest.mark.parametrize("seed", range(4))
def test_sweep_is_what_the_oracle_says(seed: int) -> None:
    requests = generated(seed)
    window_ns = 600 * NS
    for known in (None, 4):
        sweep = replay.Sweep(requests, window_ns)
        if known is not None:
            quota = quotas.of_window(known, window_ns)
            sweep.add(replay.run(requests.times_ns, requests.users, requests.names, quota))
        for limit in (9, 1, 4, 30, 200, 5, 4):
            count = sweep.count(limit)
            denied = oracle(list(requests.times_ns), list(requests.users), limit, window_ns)
            affected = {user for user, no in zip(requests.users, denied, strict=True) if no}
            assert (count.denied, count.users_denied) == (sum(denied), len(affected))
            assert (count.quota.limit, count.quota.window_ns) == (limit, window_ns)


def test_sweep_of_another_window_is_refused() -> None:
    requests = generated(1)
    outcome = replay.run(requests.times_ns, requests.users, requests.names, Quota(5, per=60))
    with pytest.raises(ValueError, match="another window"):
        replay.Sweep(requests, 61 * NS).add(outcome)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("parts", "whole"), [(1, 1000), (1, 100), (5, 100), (1, 2)])
def test_lowest_limit(seed: int, parts: int, whole: int) -> None:
    """By trying every limit in turn with the oracle."""
    requests = generated(seed, number=1500)
    window_ns = 300 * NS
    times_ns, users = list(requests.times_ns), list(requests.users)
    limit = 1
    while sum(oracle(times_ns, users, limit, window_ns)) * whole >= parts * len(requests):
        limit += 1
    assert limit > 1
    found = replay.Sweep(requests, window_ns).lowest(parts, whole)
    assert found is not None
    assert found.quota.limit == limit
    # What is known already must not change the answer.
    for known in (1, limit - 1, limit, limit + 1, 400):
        sweep = replay.Sweep(requests, window_ns)
        sweep.count(known)
        assert sweep.lowest(parts, whole) == found


def test_lowest_limit_may_be_one_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Requests(array("q", [1, 2]), array("I", [0, 1]), ["a", "b"])
    found = replay.Sweep(alone, NS).lowest(1, 1000)
    assert found is not None
    assert (found.quota.limit, found.denied) == (1, 0)
    nothing = replay.Sweep(Requests(), NS)
    assert nothing.lowest(1, 1000) is None
    # More in one window than the engine's largest limit.
    most = 2_047
    monkeypatch.setattr(replay, "largest_limit", lambda: most)
    number = 2 * most + 10
    flood = Requests(array("q", [NS] * number), array("I", bytes(4 * number)), ["a"])
    sweep = replay.Sweep(flood, NS)
    assert sweep.lowest(1, 100) is None
    half = sweep.lowest(51, 100)
    assert half is not None
    assert half.quota.limit == number - (51 * number + 99) // 100 + 1


def test_largest_limit_is_the_engines() -> None:
    most = replay.largest_limit()
    with RateLimiter(most) as limiter:
        assert limiter.quota.limit == most
    with pytest.raises(ValueError, match="limit"):
        RateLimiter(most + 1)


@pytest.mark.parametrize("seed", range(4))
def test_hardest_hit(seed: int) -> None:
    requests = generated(seed)
    limit, window_ns = 1, 60 * NS
    outcome = replay.run(requests.times_ns, requests.users, requests.names, Quota(limit))
    times_ns, users = list(requests.times_ns), list(requests.users)
    denied = oracle(times_ns, users, limit, window_ns)
    seen: dict[int, Counter[int]] = defaultdict(Counter)
    refused: dict[int, Counter[int]] = defaultdict(Counter)
    for now, user, no in zip(times_ns, users, denied, strict=True):
        seen[user][now // (60 * NS)] += 1
        refused[user][now // (60 * NS)] += no
    hits = replay.hardest_hit(requests, outcome, 7)
    assert len(hits) == 7
    totals = sorted((sum(minutes.values()) for minutes in refused.values()), reverse=True)
    assert [hit.denied for hit in hits] == totals[:7]
    for hit in hits:
        minutes = refused[hit.user]
        worst = max(minutes.values())
        first = min(minute for minute, number in minutes.items() if number == worst)
        assert hit.name == requests.names[hit.user]
        assert hit.requests == sum(seen[hit.user].values())
        assert hit.denied == sum(minutes.values())
        assert hit.minute_ns == first * 60 * NS
        assert (hit.minute_denied, hit.minute_requests) == (worst, seen[hit.user][first])


def test_hardest_hit_of_equals_are_ordered() -> None:
    times_ns = array("q", [NS] * 9)
    users = array("I", [2, 2, 1, 1, 0, 0, 0, 3, 4])
    requests = Requests(times_ns, users, ["c", "b", "a", "d", "e"])
    outcome = replay.run(times_ns, users, requests.names, Quota(1))
    assert [hit.name for hit in replay.hardest_hit(requests, outcome, 10)] == ["c", "a", "b"]
    assert replay.hardest_hit(requests, outcome, 0) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,5,10,50/minute", [(1, 60), (5, 60), (10, 60), (50, 60)]),
        ("1, 5 per 2 hours", [(1, 7200), (5, 7200)]),
        ("5/s,100/minute,2,7/h", [(5, 1), (100, 60), (2, 3600), (7, 3600)]),
        ("5/s,100", [(5, 1), (100, 900)]),
        ("3,4", [(3, 900), (4, 900)]),
        ("5,5,5/m,5/60s", [(5, 60)]),
    ],
)
def test_list_of_limits(text: str, expected: list[tuple[int, float]]) -> None:
    found = quotas.parse_list(text, Quota(1, per=900))
    assert [(quota.limit, quota.per) for quota in found] == expected


@pytest.mark.parametrize(
    "text", ["", ",", "5/minute,", "x", "5/fortnight", "-1/minute", "0/minute"]
)
def test_list_of_limits_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"limit|quota"):
        quotas.parse_list(text, Quota(1))


@pytest.mark.parametrize(
    ("limit", "per", "text"),
    [
        (5, 60, "5/minute"),
        (1000, 3600, "1,000/hour"),
        (5, 900, "5/15 minutes"),
        (5, 0.5, "5/0.5 seconds"),
        (5, 90, "5/90 seconds"),
        (1, 604_800, "1/week"),
    ],
)
def test_text_of_a_quota(limit: int, per: float, text: str) -> None:
    assert quotas.text(Quota(limit, per=per)) == text


def test_window_to_the_nanosecond() -> None:
    """A float of seconds holds no such window."""
    window_ns = 300_000_000 * NS + 1
    assert quotas.of_window(5, window_ns).window_ns == window_ns
