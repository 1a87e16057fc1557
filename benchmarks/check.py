"""What does one check cost, on one hot user and on a million users at random?

The first three rows of the figures to reach: `allow` on one hot user (denied and allowed apart),
`allow` on a million users at random, and `check` (a Decision) against `allow`. Control rows: the
empty loop (taken off everywhere), an empty METH_O method, and the same plus one clock read. The
last of the three is the *floor*: no limiter that reads a clock can be cheaper from Python.

  python benchmarks/check.py                      everything, with all installed peers
  python benchmarks/check.py --peers none         nanolimit and the control rows only
  python benchmarks/check.py --quick              seconds instead of minutes
"""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable
from typing import Any

import peers as peers_module
from harness import (
    Progress,
    Results,
    Row,
    Sample,
    Verdict,
    add_peer_option,
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
    time_keys,
    time_keys_empty,
)

WIDE_LIMIT = 2_000  # of 2,047: a fresh user may spend this many at once, all allowed
FRESH_USERS = 5  # fresh users per timed block of allowed calls
KINDS = ("str", "int", "bytes", "tuple")


def make_key(kind: str, number: int) -> object:
    """The key of user `number`, as an object of its own."""
    text = f"user:{number}"
    if kind == "str":
        return text
    if kind == "int":
        return 10**12 + number
    if kind == "bytes":
        return text.encode()
    return ("user", number)


# --- One hot user -------------------------------------------------------------------------------
def denied_row(
    call: Callable[[Any], object], admits: Callable[[Any], bool], key: object, calls: int
) -> Row:
    """A hot user who has used everything up. The limiter must be at 5 per hour."""
    for _ in range(5):
        call(key)

    def row(_: int) -> Sample:
        time_hot(call, key, 500)
        elapsed = time_hot(call, key, calls)
        if admits(call(key)):
            raise RuntimeError("a call was allowed in a row of denied calls")
        return Sample(elapsed, calls, 0)

    return row


def allowed_row(
    call: Callable[[Any], object], admits: Callable[[Any], bool], kind: str, first: int
) -> Row:
    """Hot users who are allowed: fresh ones, 1,990 calls each of the 2,000 that they have."""
    calls = WIDE_LIMIT - 10
    users = iter(range(first, first + 10**9))

    def row(_: int) -> Sample:
        time_hot(call, make_key(kind, next(users)), 500)
        elapsed = 0
        for _user in range(FRESH_USERS):
            key = make_key(kind, next(users))
            elapsed += time_hot(call, key, calls)
            # Counts add up: had one of them been denied, this one would be too.
            if not admits(call(key)):
                raise RuntimeError("a call was denied in a row of allowed calls")
        return Sample(elapsed, calls * FRESH_USERS, calls * FRESH_USERS)

    return row


def setup_hot(name: str, calls: int) -> dict[str, Row]:
    """Rows of a peer: str keys."""
    peers_module.self_check(name)
    tight = peers_module.subject(name, 5, 3600)
    wide = peers_module.subject(name, WIDE_LIMIT, 3600)
    return {
        "loop": lambda _: Sample(time_hot_empty(calls), calls),
        "denied str": denied_row(tight.call, tight.admits, make_key("str", 0), calls),
        "allowed str": allowed_row(wide.call, wide.admits, "str", 1),
    }


def setup_hot_nanolimit(calls: int) -> dict[str, Row]:
    """Rows of nanolimit, all kinds of keys, and the control rows."""
    nanolimit = importlib.import_module("nanolimit")
    control = importlib.import_module("nanolimit._core").Control()
    peers_module.self_check("nanolimit")
    tight = nanolimit.RateLimiter(5, per=3600)
    wide = nanolimit.RateLimiter(WIDE_LIMIT, per=3600)
    hot = make_key("str", 0)
    rows: dict[str, Row] = {
        "loop": lambda _: Sample(time_hot_empty(calls), calls),
        "empty method": lambda _: Sample(time_hot(control.empty, hot, calls), calls),
        "method + clock": lambda _: Sample(time_hot(control.clock, hot, calls), calls),
    }
    for place, kind in enumerate(KINDS):
        rows[f"denied {kind}"] = denied_row(tight.allow, bool, make_key(kind, 0), calls)
        rows[f"allowed {kind}"] = allowed_row(wide.allow, bool, kind, 10**9 * (place + 1))
    rows["check denied"] = denied_row(tight.check, bool, make_key("str", 0), calls)
    rows["check allowed"] = allowed_row(wide.check, bool, "str", 10**10)

    # A user who comes back: the ring is full of stamps that have just run out.
    brief = nanolimit.RateLimiter(5, per=0.001)
    pool = [f"back:{number}" for number in range(calls // 10)]
    visits = [key for key in pool for _ in range(5)]
    clock = importlib.import_module("time").perf_counter_ns

    def returning(_: int) -> Sample:
        for key in visits:
            brief.allow(key)
        ready = clock() + 1_100_000
        while clock() < ready:
            pass
        before = brief.stats().denied
        elapsed = time_keys(brief.allow, visits)
        denied = brief.stats().denied - before
        # A window may end within the block; then more are allowed, never fewer.
        if denied:
            raise RuntimeError("a returning user was denied")
        return Sample(elapsed, len(visits), len(visits))

    rows["loop over keys"] = lambda _: Sample(time_keys_empty(visits), len(visits))
    rows["returning str"] = returning

    # A user who never stops, at a limit that is never reached: each call drops an old stamp.
    steady = nanolimit.RateLimiter(2047, per=0.00005)

    def never_stops(_: int) -> Sample:
        time_hot(steady.allow, hot, 2_000)
        before = steady.stats().denied
        elapsed = time_hot(steady.allow, hot, calls)
        return Sample(elapsed, calls, calls - (steady.stats().denied - before))

    rows["steady str"] = never_stops
    return rows


# --- Many users ---------------------------------------------------------------------------------
def draw(keys: list[Any], rows: int, rounds: int, block: int, seed: int) -> list[list[list[Any]]]:
    """Random keys for each row and round, drawn beforehand so that no block finds them warm."""
    dice = random.Random(seed)
    return [[dice.choices(keys, k=block) for _ in range(rounds)] for _ in range(rows)]


def setup_users(name: str, users: int, rounds: int, block: int, seed: int) -> dict[str, Row]:
    """Rows of a peer that knows `users` users."""
    call, _ = peers_module.subject(name, 5, 3600)
    keys = [make_key("str", number) for number in range(users)]
    for key in keys:
        call(key)
    picks = draw(keys, 2, rounds, block, seed)
    return {
        "loop": lambda turn: Sample(time_keys_empty(picks[0][turn]), block),
        "allow": lambda turn: Sample(time_keys(call, picks[1][turn]), block),
    }


def setup_users_nanolimit(users: int, rounds: int, block: int, seed: int) -> dict[str, Row]:
    """Rows of nanolimit with `users` users, and the control rows over such keys."""
    nanolimit = importlib.import_module("nanolimit")
    control = importlib.import_module("nanolimit._core").Control()
    rows: dict[str, Row] = {}
    for kind in ("str", "int"):
        keys = [make_key(kind, number) for number in range(users)]
        limiter = nanolimit.RateLimiter(5, per=3600, max_keys=users)
        spent = nanolimit.RateLimiter(1, per=3600, max_keys=users)
        for key in keys:
            limiter.allow(key)
            spent.allow(key)
        picks = draw(keys, 5, rounds, block, seed)

        def plain(call: Any, lists: list[list[Any]]) -> Row:
            return lambda turn: Sample(time_keys(call, lists[turn]), block)

        def counted(limiter: Any, lists: list[list[Any]]) -> Row:
            def row(turn: int) -> Sample:
                before = limiter.stats().allowed
                elapsed = time_keys(limiter.allow, lists[turn])
                return Sample(elapsed, block, limiter.stats().allowed - before)

            return row

        def empty(lists: list[list[Any]]) -> Row:
            return lambda turn: Sample(time_keys_empty(lists[turn]), block)

        suffix = "" if kind == "str" else f" {kind}"
        rows[f"loop{suffix}"] = empty(picks[0])
        rows[f"empty method{suffix}"] = plain(control.empty, picks[1])
        rows[f"method + clock{suffix}"] = plain(control.clock, picks[2])
        rows[f"allow{suffix}"] = counted(limiter, picks[3])
        rows[f"denied{suffix}"] = counted(spent, picks[4])
    return rows


# --- Report -------------------------------------------------------------------------------------
NL = "nanolimit"
FLOOR = (NL, "method + clock")


def over_floor(results: Results, row: str, empty: str = "loop", floor: str = FLOOR[1]) -> float:
    """nanolimit's row over the floor."""
    suffix = " int" if floor.endswith("int") else ""
    return results.ratio((NL, row), (NL, floor), empty, f"loop{suffix}")


def control_rows(results: Results) -> list[list[object]]:
    loop_ns = results.gross_ns(NL, "loop")
    rows: list[list[object]] = [["empty loop (taken off below)", loop_ns, None]]
    for row in ("empty method", "method + clock"):
        label = "empty METH_O method" if row == "empty method" else "the same + one clock read"
        rows.append([label, results.net_ns(NL, row, "loop"), over_floor(results, row)])
    return rows


def report_hot(results: Results, names: list[str], missing: dict[str, str]) -> dict[str, Any]:
    """Print the tables of the hot user; return the figures."""
    print_table("Control rows, one hot user (ns a call)", ("row", "ns", "x floor"),
                control_rows(results))  # fmt: skip
    rows = []
    for row, label in (
        *((f"{verdict} {kind}", f"allow, {verdict}, {kind}")
          for verdict in ("denied", "allowed") for kind in KINDS),
        ("steady str", "allow, allowed, 50 us window that never fills"),
        ("check denied", "check, denied, str"),
        ("check allowed", "check, allowed, str"),
    ):  # fmt: skip
        rows.append([label, results.net_ns(NL, row, "loop"), over_floor(results, row),
                     results.spread(NL, row)])  # fmt: skip
    rows.append(["allow, allowed, 5 per ms, returning users",
                 results.net_ns(NL, "returning str", "loop over keys"),
                 over_floor(results, "returning str", "loop over keys"),
                 results.spread(NL, "returning str")])  # fmt: skip
    print_table("nanolimit, one hot user (ns a call, empty loop taken off)",
                ("row", "ns", "x floor", "spread"), rows)  # fmt: skip
    beside: list[list[object]] = []
    for name in names:
        if not (results.has(name, "denied str") and results.has(name, "allowed str")):
            beside.append([name, None, None, None, None, results.troubles.get(name, "")])
            continue
        line: list[object] = [name]
        for row in ("denied str", "allowed str"):
            line.append(results.net_ns(name, row, "loop"))
            line.append(results.ratio((name, row), (NL, row), "loop", "loop"))
        beside.append([*line, results.troubles.get(name, "")])
    beside += [[name, None, None, None, None, why] for name, why in missing.items()]
    print_table("Peers, one hot user, str key (ns a call, empty loop taken off)",
                ("peer", "denied", "x nanolimit", "allowed", "x nanolimit", "note"),
                beside)  # fmt: skip
    return {"nanolimit": rows, "peers": beside, "control": control_rows(results)}


def report_users(
    results: Results, users: int, names: list[str], missing: dict[str, str]
) -> dict[str, Any]:
    """Print the tables of many users; return the figures."""
    print_table(f"Control rows, {users:,} users at random (ns a call)", ("row", "ns", "x floor"),
                control_rows(results))  # fmt: skip
    rows = []
    for row, label, suffix in (
        ("allow", "allow, str", ""), ("denied", "allow, all denied, str", ""),
        ("allow int", "allow, int", " int"), ("denied int", "allow, all denied, int", " int"),
    ):  # fmt: skip
        rows.append([label, results.net_ns(NL, row, f"loop{suffix}"),
                     over_floor(results, row, f"loop{suffix}", f"method + clock{suffix}"),
                     results.admitted_share(NL, row)])  # fmt: skip
    print_table(f"nanolimit, {users:,} users at random (ns a call, empty loop taken off)",
                ("row", "ns", "x floor", "share allowed"), rows)  # fmt: skip
    beside: list[list[object]] = []
    for name in names:
        if results.has(name, "allow"):
            beside.append([name, results.net_ns(name, "allow", "loop"),
                           results.ratio((name, "allow"), (NL, "allow"), "loop", "loop"),
                           results.troubles.get(name, "")])  # fmt: skip
        else:
            beside.append([name, None, None, results.troubles.get(name, "")])
    beside += [[name, None, None, why] for name, why in missing.items()]
    print_table(f"Peers, {users:,} users at random, str keys (ns a call, empty loop taken off)",
                ("peer", "allow", "x nanolimit", "note"), beside)  # fmt: skip
    return {"nanolimit": rows, "peers": beside, "control": control_rows(results)}


def verdicts_of(hot: Results, many: Results) -> list[Verdict]:
    """The lines of the table of figures to reach that this script answers."""
    rust = "rust-py-rate-limit"
    lines = [
        Verdict("allow, hot, denied, over floor", over_floor(hot, "denied str"), 1.45, 1.2),
        Verdict("allow, hot, allowed, over floor", over_floor(hot, "allowed str"), 1.45, 1.2),
    ]
    for row in ("denied str", "allowed str"):
        if hot.has(rust, row):
            measured = hot.ratio((rust, row), (NL, row), "loop", "loop")
            lines.append(Verdict(f"{rust} over allow, hot, {row[:-4]}", measured, 3, 4, True))
    lines.append(Verdict("allow, users at random, over floor", over_floor(many, "allow"), 2.2, 1.8))
    if many.has(rust, "allow"):
        measured = many.ratio((rust, "allow"), (NL, "allow"), "loop", "loop")
        lines.append(Verdict(f"{rust} over allow, users at random", measured, 2, 2.5, True))
    for row in ("denied", "allowed"):
        measured = hot.ratio((NL, f"check {row}"), (NL, f"{row} str"), "loop", "loop")
        lines.append(Verdict(f"check over allow, hot, {row}", measured, 1.6, 1.4))
    return lines


def main() -> int:
    parser = make_parser(__doc__ or "")
    add_peer_option(parser)
    parser.add_argument("--users", type=int, default=1_000_000, help="users of the second part")
    parser.add_argument("--rounds", type=int, default=21, help="rounds per launch")
    parser.add_argument("--launches", type=int, default=3, help="fresh processes for the hot part")
    parser.add_argument("--budget", type=float, default=90.0, metavar="SECONDS",
                        help="how long a peer may take to learn all users")  # fmt: skip
    options = parser.parse_args()
    users, rounds, launches = options.users, options.rounds, options.launches
    calls, block = 20_000, max(1_000, min(100_000, 2 * users // rounds))
    if options.quick:
        users, rounds, launches, calls = min(users, 20_000), 5, 1, 2_000
        block = 2_000
    try:
        chosen, missing = peers_module.choose(options.peers)
    except ValueError as error:
        parser.error(str(error))
    names = [peer.name for peer in chosen]
    facts = environment()

    hot_subjects: dict[str, tuple[Any, ...]] = {NL: (setup_hot_nanolimit, calls)}
    hot_subjects |= {name: (setup_hot, name, calls) for name in names}
    hot = run_rounds(hot_subjects, rounds=rounds, launches=launches, seed=options.seed,
                     progress=Progress(rounds * launches, "one hot user"))  # fmt: skip
    many_subjects: dict[str, tuple[Any, ...]] = {
        NL: (setup_users_nanolimit, users, rounds, block, options.seed)
    }
    many_subjects |= {name: (setup_users, name, users, rounds, block, options.seed)
                      for name in names}  # fmt: skip
    many = run_rounds(many_subjects, rounds=rounds, seed=options.seed,
                      ready_budget_s=options.budget,
                      progress=Progress(rounds, f"{users:,} users"))  # fmt: skip
    for results in (hot, many):
        if NL in results.troubles:
            print(f"nanolimit: {results.troubles[NL]}", file=sys.stderr)
            return 1

    with tables_shown(options.json):
        if options.quick:
            print("--quick: these figures show that it runs, nothing else\n")
        print_environment(facts)
        tables = {"hot": report_hot(hot, names, missing),
                  "users": report_users(many, users, names, missing)}  # fmt: skip
        lines = verdicts_of(hot, many)
        print_verdicts(lines)
    emit(options.json, facts, {"tables": tables, "verdicts": lines, "quick": options.quick})
    return 0


if __name__ == "__main__":
    sys.exit(main())
