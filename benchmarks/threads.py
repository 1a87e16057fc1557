"""Do two threads do twice the work of one, on a build without the global lock?

Four questions: each thread on its own users; both on one hot user who is denied; both on users
drawn from Zipf's law; both on one hot user who is allowed. The figure is the throughput of two
threads over that of one, the empty loop taken off both. Control rows: the empty loop itself and an
empty METH_O method, which show how the interpreter alone scales here.

  python3.13t benchmarks/threads.py
  python3.13t benchmarks/threads.py --quick

Every thread takes its own bound method and makes its own key objects: two threads that share them
through a global spend their time on reference counts, in any extension (--shared shows it).
A peer without a wheel for this build, or whose import turns the global lock on, is left out.
"""

from __future__ import annotations

import importlib
import random
import sys
import threading
import time
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
    is_free_threaded,
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

NL = "nanolimit"
POPULATION = 100_000  # users of the Zipf row
HEAD_START_NS = 1_000_000
OWN = 1_000  # users of each thread in the own-keys row

Body = Callable[[], int]  # the timed loop of one thread; returns nanoseconds


def in_threads(makers: list[Callable[[], Body]]) -> int:
    """Run one body per maker, all from one moment; ns from the first start to the last end."""
    start_at = 0

    def agree() -> None:
        nonlocal start_at
        start_at = time.perf_counter_ns() + HEAD_START_NS

    barrier = threading.Barrier(len(makers), action=agree)
    spans: list[tuple[int, int]] = []
    troubles: list[BaseException] = []

    def run(maker: Callable[[], Body]) -> None:
        try:
            body = maker()  # keys and bound methods are made by the thread that uses them
            barrier.wait()
            # Waking up takes one thread longer than the other; a moment ahead takes that out.
            while time.perf_counter_ns() < start_at:
                pass
            start = time.perf_counter_ns()
            body()
            spans.append((start, time.perf_counter_ns()))
        except BaseException as error:
            troubles.append(error)
            barrier.abort()

    workers = [threading.Thread(target=run, args=(maker,)) for maker in makers]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if troubles:
        raise troubles[0]
    return max(end for _, end in spans) - min(start for start, _ in spans)


def own_keys(thread: int, calls: int) -> list[str]:
    """Users that no other thread asks about, visited in turn."""
    keys = [f"own:{thread}:{number}" for number in range(OWN)]
    return [keys[number % OWN] for number in range(calls)]


def zipf_ranks(thread: int, calls: int, seed: int) -> list[int]:
    """Places of users in one population that all threads share, drawn with weight 1/rank."""
    dice = random.Random(seed * 1000 + thread)
    weights = [1 / rank for rank in range(1, POPULATION + 1)]
    return dice.choices(range(POPULATION), weights, k=calls)


def zipf_keys(ranks: list[int]) -> list[str]:
    """The users at those places: key objects of the thread that calls this."""
    names: dict[int, str] = {}
    return [names.setdefault(rank, f"zipf:{rank}") for rank in ranks]


def rows_for(bound: Callable[[str], Callable[[Any], object]], calls: int, seed: int,
             scenarios: list[str]) -> dict[str, Row]:  # fmt: skip
    """One row for each scenario and thread count. bound(scenario) gives a new bound method."""
    ranks = [zipf_ranks(thread, calls, seed) for thread in range(2)]

    def maker(scenario: str, thread: int) -> Callable[[], Body]:
        def make() -> Body:
            if scenario == "loop hot":
                return lambda: time_hot_empty(calls)
            if scenario == "loop own":
                own = own_keys(thread, calls)
                return lambda: time_keys_empty(own)
            call = bound(scenario)
            if scenario in ("own keys", "own keys, method"):
                keys = own_keys(thread, calls)
                return lambda: time_keys(call, keys)
            if scenario == "zipf":
                keys = zipf_keys(ranks[thread])
                return lambda: time_keys(call, keys)
            key = "".join(("hot", ":user"))
            return lambda: time_hot(call, key, calls)

        return make

    def row(scenario: str, count: int) -> Row:
        return lambda _: Sample(
            in_threads([maker(scenario, thread) for thread in range(count)]), calls * count
        )

    return {f"{scenario} x{count}": row(scenario, count)
            for scenario in scenarios for count in (1, 2)}  # fmt: skip


SCENARIOS = ["own keys", "denied hot key", "zipf", "allowed hot key"]
CONTROLS = ["loop hot", "loop own", "empty method", "own keys, method"]


def own(limiter: Any) -> Callable[[Any], object]:
    """A bound method of the core that nobody else holds."""
    method: Callable[[Any], object] = limiter.core.allow
    return method


def setup_nanolimit(calls: int, seed: int, shared: bool) -> dict[str, Row]:
    """Rows of nanolimit and the control rows."""
    nanolimit = importlib.import_module("nanolimit")
    control = importlib.import_module("nanolimit._core").Control()
    limiters = {
        "own keys": nanolimit.RateLimiter(5, per=3600),
        "denied hot key": nanolimit.RateLimiter(5, per=3600),
        "zipf": nanolimit.RateLimiter(5, per=3600),
        # A window so short that the limit is never reached, however fast the threads are.
        "allowed hot key": nanolimit.RateLimiter(2047, per=0.00002),
    }
    for _ in range(5):
        limiters["denied hot key"].allow("hot:user")
    passed: dict[str, Callable[[Any], object]] = {
        name: limiter.allow for name, limiter in limiters.items()
    }

    def bound(scenario: str) -> Callable[[Any], object]:
        if scenario not in limiters:
            empty: Callable[[Any], object] = control.empty  # a new bound method, as below
            return empty
        return passed[scenario] if shared else own(limiters[scenario])

    rows = rows_for(bound, calls, seed, [*SCENARIOS, *CONTROLS])

    def verified(inner: Row, limiter: Any) -> Row:
        def row(turn: int) -> Sample:
            before = limiter.stats().denied
            sample = inner(turn)
            if limiter.stats().denied != before:
                raise RuntimeError("a call was denied in a row of allowed calls")
            return sample

        return row

    for count in (1, 2):
        name = f"allowed hot key x{count}"
        rows[name] = verified(rows[name], limiters["allowed hot key"])
    return rows


def setup_peer(name: str, calls: int, seed: int) -> dict[str, Row]:
    """Rows of a peer: the same, but for the allowed hot key, which not all of them can do."""
    subjects = {scenario: peers_module.subject(name, 5, 3600) for scenario in SCENARIOS[:3]}
    if not is_free_threaded():
        raise RuntimeError("its import turns the global lock on")
    for _ in range(5):
        subjects["denied hot key"].call("hot:user")
    scenarios = [*SCENARIOS[:3], *CONTROLS[:2]]
    return rows_for(lambda scenario: subjects[scenario].call, calls, seed, scenarios)


def scaling(results: Results, name: str, scenario: str) -> float:
    """Throughput of two threads over one, the empty loop taken off both."""
    loop = "loop own" if scenario in ("own keys", "zipf", "own keys, method") else "loop hot"
    return results.ratio((name, f"{scenario} x1"), (name, f"{scenario} x2"),
                         f"{loop} x1", f"{loop} x2")  # fmt: skip


def raw_scaling(results: Results, name: str, scenario: str) -> float:
    """The same, nothing taken off."""
    one, two = (results.gross_ns(name, f"{scenario} x{count}") for count in (1, 2))
    return one / two


def main() -> int:
    parser = make_parser(__doc__ or "")
    add_peer_option(parser)
    parser.add_argument("--rounds", type=int, default=21, help="rounds")
    parser.add_argument("--launches", type=int, default=2, help="fresh processes")
    parser.add_argument("--calls", type=int, default=200_000, help="calls of each thread")
    parser.add_argument(
        "--shared",
        action="store_true",
        help="the threads share one bound method, as careless callers do",
    )
    options = parser.parse_args()
    if not is_free_threaded():
        print("threads.py asks how threads scale without the global interpreter lock; this Python "
              "has it on.\nRun it with a free-threaded build (python3.13t or later) in which "
              "nanolimit is installed.", file=sys.stderr)  # fmt: skip
        return 2
    try:
        chosen, missing = peers_module.choose(options.peers)
    except ValueError as error:
        parser.error(str(error))
    rounds, launches, calls = options.rounds, options.launches, options.calls
    if options.quick:
        rounds, launches, calls = 5, 1, 20_000
    facts = environment()
    peer_calls = max(1_000, calls // 20)  # they are slower; a row takes about as long
    subjects: dict[str, tuple[Any, ...]] = {
        NL: (setup_nanolimit, calls, options.seed, options.shared)
    }
    subjects |= {peer.name: (setup_peer, peer.name, peer_calls, options.seed) for peer in chosen}
    results = run_rounds(subjects, rounds=rounds, launches=launches, seed=options.seed,
                         progress=Progress(rounds * launches, "threads"))  # fmt: skip
    if NL in results.troubles:
        print(f"nanolimit: {results.troubles[NL]}", file=sys.stderr)
        return 1
    rows: list[list[object]] = []
    for scenario in ("loop hot", "loop own"):
        rows.append([f"control: {scenario}", results.gross_ns(NL, f"{scenario} x1"),
                     results.gross_ns(NL, f"{scenario} x2"),
                     raw_scaling(results, NL, scenario), None])  # fmt: skip
    for scenario in ("empty method", "own keys, method", *SCENARIOS):
        control = "control: " if scenario not in SCENARIOS else ""
        rows.append([f"{control}{scenario}", results.gross_ns(NL, f"{scenario} x1"),
                     results.gross_ns(NL, f"{scenario} x2"), raw_scaling(results, NL, scenario),
                     scaling(results, NL, scenario)])  # fmt: skip
    beside: list[list[object]] = []
    for peer in chosen:
        if peer.name in results.troubles:
            beside.append([peer.name, None, None, None, results.troubles[peer.name]])
        else:
            beside.append([peer.name, *(scaling(results, peer.name, scenario)
                                        for scenario in SCENARIOS[:3]), ""])  # fmt: skip
    beside += [[name, None, None, None, why] for name, why in missing.items()]
    musts = {"own keys": 1.8, "denied hot key": 1.8, "zipf": 1.7, "allowed hot key": 1.0}
    lines = [Verdict(f"two threads over one, {scenario}", scaling(results, NL, scenario), must,
                     1.95, True) for scenario, must in musts.items()]  # fmt: skip
    with tables_shown(options.json):
        if options.quick:
            print("--quick: these figures show that it runs, nothing else\n")
        print_environment(facts)
        how = "one bound method shared" if options.shared else "own bound method per thread"
        print_table(f"nanolimit, {how} (ns a call, wall clock over all calls)",
                    ("row", "1 thread", "2 threads", "raw scaling", "loop taken off"),
                    rows)  # fmt: skip
        print_table("Peers, two threads over one, loop taken off",
                    ("peer", *SCENARIOS[:3], "note"), beside)  # fmt: skip
        print_verdicts(lines)
    emit(options.json, facts, {"scaling": rows, "peers": beside, "verdicts": lines,
                               "shared": options.shared, "quick": options.quick})  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
