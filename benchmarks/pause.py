"""How long does the slowest call take while the table grows?

A tight loop calls `allow` once for each of ten million new users and times every single call. It
counts the calls over 50 us and over 2 ms, twice, in fresh processes at the same sizes: what is the
table's own doing comes again at the same size, what is the machine's does not. Control row: the
same loop with an empty METH_O method; what shows there is the machine's noise, and the figures of
`allow` contain it. The peers grow too, to fewer users and within a budget.

  python benchmarks/pause.py
  python benchmarks/pause.py --users 2_000_000 --peers none
  python benchmarks/pause.py --quick

Garbage collection is on, as in a service. The clock is read before and after each call; the two
reads are part of every figure (about 25 ns each).
"""

from __future__ import annotations

import importlib
import sys
import time
from array import array
from typing import Any

import peers as peers_module
from harness import (
    Progress,
    Verdict,
    add_peer_option,
    ask,
    emit,
    environment,
    make_parser,
    print_environment,
    print_table,
    print_verdicts,
    tables_shown,
)

SLOW_NS = 50_000
STALL_NS = 2_000_000
SAME_SIZE = 0.005  # two stalls within half a percent of the users count as the same size
CHUNK = 100_000


def grow(name: str, users: int, budget_s: float) -> dict[str, Any]:
    """Worker: time each of `users` first calls; returns (done, slow calls, durations by power)."""
    if name == "control":
        call: Any = importlib.import_module("nanolimit._core").Control().empty
    elif name == "nanolimit":
        nanolimit = importlib.import_module("nanolimit")
        call = nanolimit.RateLimiter(5, per=3600, max_keys=users + 1_000).allow
    else:
        call = peers_module.subject(name, 5, 3600).call
    clock = time.perf_counter_ns
    textual = name not in ("control", "nanolimit")
    for number in range(1_000):
        call(f"warm:{number}")
    slow: list[tuple[int, int]] = []
    powers = [0] * 64
    deadline = time.monotonic() + budget_s
    done = 0
    times = array("q", bytes(8 * CHUNK))
    while done < users and time.monotonic() < deadline:
        count = min(CHUNK, users - done)
        # Keys are made beforehand: making one may pause too, and is not the limiter's doing.
        numbers = range(done, done + count)
        keys: Any = [f"user:{number}" for number in numbers] if textual else list(numbers)
        for place, key in enumerate(keys):
            start = clock()
            call(key)
            times[place] = clock() - start
        for place in range(count):
            took = times[place]
            powers[took.bit_length()] += 1
            if took > SLOW_NS:
                slow.append((done + place, took))
        done += count
    return {"growth": lambda _: (done, slow, powers)}


def percentile(powers: list[int], share: float) -> float:
    """The duration, in ns, below which `share` of the calls stay: to a power of two."""
    wanted, seen = share * sum(powers), 0
    for bits, count in enumerate(powers):
        seen += count
        if seen >= wanted:
            return float(1 << bits)
    return float("nan")


def repeated(first: list[tuple[int, int]], second: list[tuple[int, int]], users: int) -> int:
    """How many calls over 2 ms of one run have a twin in the other at the same size."""
    reach = SAME_SIZE * users
    others = [at for at, took in second if took > STALL_NS]
    return sum(
        1 for at, took in first
        if took > STALL_NS and any(abs(at - other) <= reach for other in others)
    )  # fmt: skip


def main() -> int:
    parser = make_parser(__doc__ or "")
    add_peer_option(parser)
    parser.add_argument("--users", type=int, default=10_000_000, help="how far nanolimit grows")
    parser.add_argument("--peer-users", type=int, default=1_000_000, help="how far the peers grow")
    parser.add_argument("--runs", type=int, default=2, help="runs of nanolimit and the control")
    parser.add_argument("--budget", type=float, default=45.0, metavar="SECONDS",
                        help="how long a peer may take")  # fmt: skip
    options = parser.parse_args()
    try:
        chosen, missing = peers_module.choose(options.peers)
    except ValueError as error:
        parser.error(str(error))
    users, peer_users = options.users, options.peer_users
    if options.quick:
        users, peer_users = min(users, 100_000), min(peer_users, 20_000)
    facts = environment()
    plan = [(name, users, 600.0) for _ in range(options.runs) for name in ("control", "nanolimit")]
    plan += [(peer.name, peer_users, options.budget) for peer in chosen]
    progress = Progress(len(plan), "growing")
    rows: list[list[object]] = []
    kept: dict[str, list[tuple[int, list[tuple[int, int]]]]] = {}
    for name, size, budget_s in plan:
        progress.note(name)
        outcome, why = ask(name, grow, name, size, budget_s, budget_s=budget_s + 120)
        progress.step(name)
        if outcome is None:
            if name == "nanolimit":
                print(f"nanolimit: {why}", file=sys.stderr)
                return 1
            rows.append([name, None, None, None, None, None, None, None, why])
            continue
        done, slow, powers = outcome
        if done < size:
            why = f"did not finish: stopped at {done:,} of {size:,} users after {budget_s:.0f} s"
        kept.setdefault(name, []).append((done, slow))
        stalls = sum(1 for _, took in slow if took > STALL_NS)
        rate = done / len(slow) if slow else float("inf")
        rows.append([name, done, len(slow), f"1 in {rate:,.0f}" if slow else "none", stalls,
                     max((took for _, took in slow), default=0) / 1e6,
                     percentile(powers, 0.999) / 1e3, percentile(powers, 0.99999) / 1e3,
                     why])  # fmt: skip
    progress.done()
    rows += [[name, None, None, None, None, None, None, None, why]
             for name, why in missing.items()]  # fmt: skip

    mine = kept["nanolimit"]
    total = sum(done for done, _ in mine)
    slow_calls = sum(len(slow) for _, slow in mine)
    control_slow = sum(len(slow) for _, slow in kept["control"])
    rate = total / max(slow_calls, 1)
    twins = repeated(mine[0][1], mine[1][1], users) if len(mine) > 1 else 0
    lines = [
        Verdict("one call over 50 us in so many, growing", rate, 30_000, 100_000, True),
        Verdict("calls over 2 ms that repeat at the same size", float(twins), 0, 0),
    ]
    worst: list[list[object]] = []
    for run, (_, slow) in enumerate(mine):
        for at, took in sorted(slow, key=lambda call: -call[1])[:5]:
            worst.append([run + 1, at, took / 1e6])
    with tables_shown(options.json):
        if options.quick:
            print("--quick: these figures show that it runs, nothing else\n")
        print_environment(facts)
        print_table(f"Growing (calls timed one by one; control: an empty call in the same loop, "
                    f"{control_slow} calls over 50 us in {total:,})",
                    ("subject", "users", "> 50 us", "rate", "> 2 ms", "worst ms", "p99.9 us <",
                     "p99.999 us <", "note"), rows)  # fmt: skip
        print_table("The slowest calls of nanolimit", ("run", "at user", "ms"), worst)
        print_verdicts(lines)
    emit(options.json, facts, {"growth": rows, "slowest": worst, "verdicts": lines,
                               "control_slow": control_slow, "quick": options.quick})  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
