"""What does each policy cost, beside a plain limiter with one quota?

One hot user, from Python, denied and allowed: one quota, three quotas, `check_all` over three
limiters, the other algorithms, a blocked key, quotas of keys, penalties, a limiter that only
watches, a reservation that is settled, an attempt that succeeds. Limits are
such that the tightest quota decides; users who are allowed are fresh ones.

Beside them, in the same run, throttled-py and aiolimiter on the same work: the same limits and
users, and that algorithm of nanolimit's which is theirs, or the nearest to it. One that is not
installed has a row that says so.

  python benchmarks/policies.py
  python benchmarks/policies.py --rounds 7 --launches 1
  python benchmarks/policies.py --quick
  python benchmarks/policies.py --peers none

That one quota costs what it cost before is counted, not timed: benchmarks/instructions.py --check.
Waiting has a script of its own: benchmarks/waiting.py.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from functools import partial
from typing import Any

import peers as peers_module
from check import FRESH_USERS, WIDE_LIMIT, allowed_row, denied_row, make_key
from harness import (
    Progress,
    Results,
    Row,
    Sample,
    Verdict,
    emit,
    environment,
    make_parser,
    print_environment,
    print_table,
    print_verdicts,
    run_rounds,
    tables_shown,
    time_hot,
    time_hot_empty,
    version_of,
)

NL = "nanolimit"
# What a peer is, what makes it, and with which of nanolimit's rows it is compared.
PEERS = {
    "throttled fixed_window": ("throttled-py", "fixed-window", "windows by the clock"),
    "throttled sliding_window": ("throttled-py", "sliding-counter", "the same estimate"),
    "throttled gcra": ("throttled-py", "gcra", ""),
    "throttled token_bucket": ("throttled-py", "gcra", "a bucket that fills evenly"),
    "aiolimiter": (
        "aiolimiter",
        "acquire_async",
        "a limiter per user, in a dict; denied: has_capacity; one Python function around it",
    ),
}
METERS = ("gcra", "fixed-window", "sliding-counter")
# Only the first of each three is ever reached.
TIGHT = ("5/hour", "2000/day", "2047/week")
WIDE = (f"{WIDE_LIMIT}/hour", "2030/day", "2047/week")


def setup(calls: int) -> dict[str, Row]:
    nanolimit = importlib.import_module("nanolimit")
    control = importlib.import_module("nanolimit._core").Control()
    make, check_all = nanolimit.RateLimiter, nanolimit.check_all
    hot = make_key("str", 0)
    first = iter(range(10**9, 10**12, 10**9))
    rows: dict[str, Row] = {
        "loop": lambda _: Sample(time_hot_empty(calls), calls),
        "empty method": lambda _: Sample(time_hot(control.empty, hot, calls), calls),
        "method + clock": lambda _: Sample(time_hot(control.clock, hot, calls), calls),
    }

    def both(name: str, tight: Any, wide: Any) -> None:
        rows[f"denied, {name}"] = denied_row(tight, bool, hot, calls)
        rows[f"allowed, {name}"] = allowed_row(wide, bool, "str", next(first))

    def in_all(quotas: tuple[str, ...]) -> Any:
        limiters = [make(quota) for quota in quotas]

        def call(key: object) -> Any:
            return check_all([(limiter, key) for limiter in limiters])

        return call

    both("one quota", make(TIGHT[0]).allow, make(WIDE[0]).allow)
    both("one quota, check", make(TIGHT[0]).check, make(WIDE[0]).check)
    both("three quotas", make("; ".join(TIGHT)).allow, make("; ".join(WIDE)).allow)
    both("three quotas, check", make("; ".join(TIGHT)).check, make("; ".join(WIDE)).check)
    both("check_all of one", in_all(TIGHT[:1]), in_all(WIDE[:1]))
    both("check_all of three", in_all(TIGHT), in_all(WIDE))
    for meter in METERS:
        both(meter, make(TIGHT[0], algorithm=meter).allow, make(WIDE[0], algorithm=meter).allow)

    # As aiolimiter is asked: who is denied does not wait.
    tight = make(TIGHT[0])
    tight_wait, wide_wait = tight.acquire_async, make(WIDE[0]).acquire_async

    def waits_not(key: object) -> bool:
        return bool(tight.peek(key)) and bool(awaited(tight_wait(key)))

    both("acquire_async", waits_not, lambda key: awaited(wide_wait(key)))

    # What stands of a key besides its log. Blocked: beside a plain denial.
    blocking, tiers = make(TIGHT[0]), make(TIGHT[0])
    blocking.block(hot, 10**6)
    rows["denied, blocked"] = denied_row(blocking.allow, bool, hot, calls)
    tiers.set_quota("somebody", WIDE[0])
    wide_tiers = make(WIDE[0])
    wide_tiers.set_quota("somebody", TIGHT[0])
    both("quotas of keys", tiers.allow, wide_tiers.allow)
    backoff = nanolimit.Backoff(after=60_000, forgive=0.001)
    both("backoff", make(TIGHT[0], backoff=backoff).allow, make(WIDE[0], backoff=backoff).allow)
    watched = make(TIGHT[0], enforce=False).allow
    rows["denied, watched"] = denied_row(watched, lambda passes: not passes, hot, calls)

    settled = make(WIDE[0])

    def reserve(key: object) -> bool:
        reservation = settled.reserve(key, 2)
        reservation.commit(1)
        return bool(reservation.ok)

    def attempt(key: object) -> bool:
        with settled.attempt(key) as attempt:
            attempt.success()
        return True

    rows["reserve 2, commit 1"] = allowed_row(reserve, bool, "str", next(first))
    rows["attempt, success"] = allowed_row(attempt, bool, "str", next(first))
    return rows


def awaited(coroutine: Any) -> Any:
    """What a coroutine returns that has nothing to wait for: no loop's time is measured."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("it waits, and should not")


def aiolimiter_subject(limit: int, per_s: int, loop: asyncio.AbstractEventLoop) -> Any:
    """has_capacity() where it is denied: who acquires would wait."""
    make = importlib.import_module("aiolimiter").AsyncLimiter
    limiters: dict[object, Any] = {}

    async def known(key: object) -> Any:  # a limiter asks for its loop once
        limiters[key] = limiter = make(limit, per_s)
        await limiter.acquire()
        return limiter

    def call(key: object) -> bool:
        limiter = limiters.get(key)
        if limiter is None:
            loop.run_until_complete(known(key))
            return True
        if not limiter.has_capacity():
            return False
        awaited(limiter.acquire())
        return True

    return call


def setup_peer(name: str, calls: int) -> dict[str, Row]:
    """The rows of a peer: str keys."""
    if name == "aiolimiter":
        loop = asyncio.new_event_loop()
        tight, wide, admits = (*(aiolimiter_subject(n, 3600, loop) for n in (5, WIDE_LIMIT)), bool)
    else:
        make = partial(peers_module.subject_of_throttled, name.split()[1])
        (tight, admits), (wide, _) = make(5, 3600), make(WIDE_LIMIT, 3600)
    answers = [admits(tight("self-check")) for _ in range(8)]
    if answers != [True] * 5 + [False] * 3:
        raise AssertionError(f"{name}: expected five allowed, three denied; got {answers}")
    return {
        "loop": lambda _: Sample(time_hot_empty(calls), calls),
        "denied": denied_row(tight, admits, make_key("str", 0), calls),
        "allowed": allowed_row(wide, admits, "str", 1),
    }


def beside(results: Results, missing: dict[str, str]) -> list[list[object]]:
    """The peers' table."""
    table: list[list[object]] = []
    for name, (_, ours, note) in PEERS.items():
        if not (results.has(name, "denied") and results.has(name, "allowed")):
            if name in missing or name in results.troubles:
                why = missing.get(name) or results.troubles[name]
                table.append([name, ours, None, None, None, None, why])
            continue
        line: list[object] = [name, ours]
        for how in ("denied", "allowed"):
            line.append(results.net_ns(name, how, "loop"))
            line.append(results.ratio((name, how), (NL, f"{how}, {ours}"), "loop", "loop"))
        table.append([*line, note])
    return table


def over(results: Results, row: str, other: str) -> float:
    return results.ratio((NL, row), (NL, other), "loop", "loop")


def verdicts_of(results: Results) -> list[Verdict]:
    lines = []
    for how in ("denied", "allowed"):
        one, each = f"{how}, one quota", f"{how}, check_all of one"
        lines += [
            Verdict(f"three quotas over one, {how}", over(results, f"{how}, three quotas", one),
                    1.9, 1.6),
            Verdict(f"check_all of three limiters over one, {how}",
                    over(results, f"{how}, check_all of three", each), 2.5, 2.0),
            Verdict(f"gcra over the log, {how}", over(results, f"{how}, gcra", one), 1.0, 0.95),
        ]  # fmt: skip
    blocked = over(results, "denied, blocked", "denied, one quota")
    lines.append(Verdict("denied while blocked over a plain denial", blocked, 1.1, 1.0))
    return lines


def main() -> int:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=21, help="rounds per launch")
    parser.add_argument("--launches", type=int, default=3, help="fresh processes")
    parser.add_argument("--peers", default="all", choices=("all", "none"))
    options = parser.parse_args()
    rounds, launches, calls = options.rounds, options.launches, 20_000
    if options.quick:
        rounds, launches, calls = 3, 1, 2_000
    facts = environment()
    subjects: dict[str, tuple[Any, ...]] = {NL: (setup, calls)}
    missing: dict[str, str] = {}
    for name, (distribution, _, _) in PEERS.items() if options.peers == "all" else ():
        facts[distribution] = version_of(distribution) or "not installed"
        if version_of(distribution):
            subjects[name] = (setup_peer, name, calls)
        else:
            missing[name] = f"not installed (pip install {distribution})"
    results = run_rounds(subjects, rounds=rounds, launches=launches, seed=options.seed,
                         progress=Progress(rounds * launches, "policies"))  # fmt: skip
    if NL in results.troubles:
        print(f"nanolimit: {results.troubles[NL]}", file=sys.stderr)
        return 1
    names = [row for row in results.row_names(NL) if row != "loop"]
    with tables_shown(options.json):
        if options.quick:
            print("--quick: these figures show that it runs, nothing else\n")
        print_environment(facts)
        table = [[row, results.net_ns(NL, row, "loop"), over(results, row, "method + clock"),
                  over(results, row, f"{row.split(',')[0]}, one quota")
                  if row.startswith(("denied", "allowed")) else None]
                 for row in names]  # fmt: skip
        print_table(
            f"One hot user ({FRESH_USERS} fresh users a round where they are allowed)",
            ("what", "ns a call", "over method + clock", "over one quota"), table,
        )  # fmt: skip
        others = beside(results, missing)
        if others:
            print_table(
                "Peers, one hot user, str key (ns a call, empty loop taken off)",
                ("peer", "against", "denied", "x nanolimit", "allowed", "x nanolimit", "note"),
                others,
            )
        lines = verdicts_of(results)
        print_verdicts(lines)
    emit(
        options.json,
        facts,
        {"table": table, "peers": others, "verdicts": lines, "quick": options.quick},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
