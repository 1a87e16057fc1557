"""What does one count for all processes cost?

Three questions, each with its control rows:

* alone: `allow` on a shared table against `allow` on a private one, one process, from Python: one
  hot user, denied and allowed, and a million users at random;
* together: two processes at one table against one: each on its own users, both on one hot user who
  is denied, both on one hot user who is allowed (the empty loop and an empty METH_O method show how
  the machine itself scales);
* Redis: the same counts kept by `limits` in a Redis that is reached over a unix socket, a call at
  a time, as its users do; beside it, `limits`' own script in a pipeline of 64. The server is
  started here, in a temporary folder, without a port. Without redis-server the part is left out.

  python benchmarks/shared.py
  python benchmarks/shared.py --rounds 7 --launches 1
  python benchmarks/shared.py --quick

Tables lie in /dev/shm where there is one. Two processes need two processors that nobody else uses.
"""

from __future__ import annotations

import importlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from check import WIDE_LIMIT, allowed_row, denied_row, draw, make_key
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
    time_keys,
    time_keys_empty,
    version_of,
)

KINDS = ("private", "shared")
HEAD_START_NS = 2_000_000
OWN = 1_000  # users of each process in the own-keys rows
PIPELINE = 64
SCENARIOS = ("own keys", "own keys, allowed", "denied hot key", "allowed hot key")
CONTROLS = ("loop hot", "loop own", "empty method", "own keys, method")


def table(folder: str, name: str) -> str:
    """A table that no other launch has."""
    return str(Path(folder) / f"{name}-{os.getpid()}")


# --- Alone ----------------------------------------------------------------------------------------
def setup_alone(folder: str, calls: int, users: int, rounds: int, block: int,
                seed: int) -> dict[str, Row]:  # fmt: skip
    """Rows of a private and of a shared limiter, in one process."""
    nanolimit = importlib.import_module("nanolimit")
    control = importlib.import_module("nanolimit._core").Control()
    hot = make_key("str", 0)
    keys = [make_key("str", number) for number in range(users)]
    picks = draw(keys, 4, rounds, block, seed)

    def limiter(kind: str, name: str, limit: int, **options: Any) -> Any:
        if kind == "shared":
            options["shared"] = table(folder, name)
        else:
            options.pop("typical", None)
        return nanolimit.RateLimiter(limit, per=3600, **options)

    def counted(many: Any, lists: list[list[Any]]) -> Row:
        def row(turn: int) -> Sample:
            before = many.stats().allowed
            elapsed = time_keys(many.allow, lists[turn])
            return Sample(elapsed, block, many.stats().allowed - before)

        return row

    rows: dict[str, Row] = {
        "loop": lambda _: Sample(time_hot_empty(calls), calls),
        "empty method": lambda _: Sample(time_hot(control.empty, hot, calls), calls),
        "method + clock": lambda _: Sample(time_hot(control.clock, hot, calls), calls),
        "loop users": lambda turn: Sample(time_keys_empty(picks[0][turn]), block),
        "method users": lambda turn: Sample(time_keys(control.empty, picks[1][turn]), block),
    }
    for place, kind in enumerate(KINDS):
        tight = limiter(kind, "tight", 5, max_keys=1_000)
        wide = limiter(kind, "wide", WIDE_LIMIT, max_keys=4_000, typical=WIDE_LIMIT)
        rows[f"denied {kind}"] = denied_row(tight.allow, bool, hot, calls)
        rows[f"allowed {kind}"] = allowed_row(wide.allow, bool, "str", 1)
        many = limiter(kind, "many", 5, max_keys=users + users // 8)
        for key in keys:
            many.allow(key)
        rows[f"users {kind}"] = counted(many, picks[2 + place])
    return rows


# --- Together -------------------------------------------------------------------------------------
Body = Callable[[], int]  # a timed loop; returns nanoseconds
ORDER = struct.Struct("=qq")  # which row, and when to begin
SPAN = struct.Struct("=qq")  # when it began and ended


class Partner:
    """A forked process that runs the same rows at the same time."""

    def __init__(self, make: Callable[[], list[Body]]) -> None:
        order_reader, self._orders = os.pipe()
        self._spans, span_writer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(order_reader)
            os.close(span_writer)
            return
        try:
            os.close(self._orders)  # so that it ends when its parent does
            bodies = make()  # limiters and keys are made by the process that uses them
            os.write(span_writer, SPAN.pack(0, 0))
            while order := os.read(order_reader, ORDER.size):
                row, start_ns = ORDER.unpack(order)
                os.write(span_writer, SPAN.pack(*timed(bodies[row], start_ns)))
        finally:
            os._exit(0)

    def tell(self, row: int, start_ns: int) -> None:
        os.write(self._orders, ORDER.pack(row, start_ns))

    def span(self) -> tuple[int, int]:
        """When the last row began and ended; first, that it is ready."""
        data = os.read(self._spans, SPAN.size)
        if not data:
            raise RuntimeError("the second process died")
        began, ended = SPAN.unpack(data)
        return began, ended


def timed(body: Body, start_ns: int) -> tuple[int, int]:
    """Run a body from that moment on (CLOCK_MONOTONIC, which processes share)."""
    while time.monotonic_ns() < start_ns:
        pass
    began = time.monotonic_ns()
    body()
    return began, time.monotonic_ns()


def bodies_of(folder: str, number: int, calls: int, owner: int) -> dict[str, Body]:
    """The loops of one of two processes, each on tables that both have open."""
    nanolimit = importlib.import_module("nanolimit")
    control = importlib.import_module("nanolimit._core").Control()

    def limiter(name: str, limit: int, per: float) -> Any:
        path = str(Path(folder) / f"{name}-{owner}")
        return nanolimit.RateLimiter(limit, per=per, shared=path, max_keys=10_000)

    own = [f"own:{number}:{turn % OWN}" for turn in range(OWN)] * (calls // OWN)
    own_calls = len(own)
    hot = "hot:user"
    tight = limiter("tight", 5, 3600)
    # Windows so short that the limit is never reached, however fast the processes are.
    brief = limiter("brief", 2047, 0.00002)
    for _ in range(5):
        tight.allow(hot)

    bodies: dict[str, Body] = {
        "loop hot": lambda: time_hot_empty(own_calls),
        "loop own": lambda: time_keys_empty(own),
        "empty method": lambda: time_hot(control.empty, hot, own_calls),
        "own keys, method": lambda: time_keys(control.empty, own),
        "own keys": lambda: time_keys(tight.allow, own),
        "own keys, allowed": lambda: time_keys(brief.allow, own),
        "denied hot key": lambda: time_hot(tight.allow, hot, own_calls),
        "allowed hot key": lambda: time_hot(brief.allow, hot, own_calls),
    }
    for name in ("own keys", "own keys, allowed"):
        bodies[name]()  # its users are there
    return bodies


def stay_on(processor: int) -> None:
    """Each process on its own: whoever is woken by another is put beside it at first."""
    os.sched_setaffinity(0, {processor})


def setup_together(folder: str, calls: int) -> dict[str, Row]:
    """Each loop in this process alone, and in two processes at once."""
    nanolimit = importlib.import_module("nanolimit")
    owner = os.getpid()
    processors = sorted(os.sched_getaffinity(0))

    def theirs() -> list[Body]:
        stay_on(processors[-1])
        return list(bodies_of(folder, 1, calls, owner).values())

    partner = Partner(theirs)
    stay_on(processors[0])
    mine = bodies_of(folder, 0, calls, owner)
    names = list(mine)
    partner.span()
    calls = calls // OWN * OWN
    brief = nanolimit.RateLimiter(
        2047, per=0.00002, shared=str(Path(folder) / f"brief-{owner}"), max_keys=10_000
    )

    def row(place: int, count: int) -> Row:
        def run(_: int) -> Sample:
            denied = brief.stats().denied
            start_ns = time.monotonic_ns() + HEAD_START_NS
            if count == 2:
                partner.tell(place, start_ns)
            spans = [timed(mine[names[place]], start_ns)]
            if count == 2:
                spans.append(partner.span())
            if brief.stats().denied != denied:
                raise RuntimeError("a call was denied in a row of allowed calls")
            elapsed = max(end for _, end in spans) - min(start for start, _ in spans)
            return Sample(elapsed, calls * count)

        return run

    return {f"{name} x{count}": row(place, count)
            for place, name in enumerate(names) for count in (1, 2)}  # fmt: skip


# --- Redis ----------------------------------------------------------------------------------------
@contextmanager
def redis_server(folder: str) -> Iterator[str | None]:
    """A Redis that keeps nothing on disk; the path of its socket. None: there is none here."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    socket = str(Path(folder) / "redis.sock")
    process = subprocess.Popen(
        [program, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no",
         "--daemonize", "no", "--dir", folder, "--logfile", str(Path(folder) / "redis.log")],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 10
        while not Path(socket).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield socket
    finally:
        process.terminate()
        process.wait()


def setup_limits(socket: str, calls: int) -> dict[str, Row]:
    """Rows of `limits`' moving window in Redis: a call at a time, and its script in pipelines."""
    limits = importlib.import_module("limits")
    storage = importlib.import_module("limits.storage").storage_from_string(
        f"redis+unix://{socket}"
    )
    strategy = importlib.import_module("limits.strategies").MovingWindowRateLimiter(storage)
    tight = limits.RateLimitItemPerSecond(5, 3600)
    wide = limits.RateLimitItemPerSecond(WIDE_LIMIT, 3600)

    def hit_tight(key: object) -> bool:
        return bool(strategy.hit(tight, key))

    def hit_wide(key: object) -> bool:
        return bool(strategy.hit(wide, key))

    client = storage.get_connection()
    sha = storage.lua_acquire_moving_window.sha
    client.script_load(storage.lua_acquire_moving_window.script)

    def in_pipelines(key: str, limit: int) -> list[object]:
        told: list[object] = []
        for _ in range(0, calls, PIPELINE):
            pipeline = client.pipeline(transaction=False)
            now = time.time()
            for _ in range(PIPELINE):
                pipeline.evalsha(sha, 1, key, now, limit, 3600, 1)
            told += pipeline.execute()
        return told

    fresh = iter(range(10**9))

    def piped(limit: int, name: str) -> Row:
        def row(_: int) -> Sample:
            key = name if limit == 5 else f"{name}:{next(fresh)}"
            start = time.perf_counter_ns()
            told = in_pipelines(key, limit)
            elapsed = time.perf_counter_ns() - start
            return Sample(elapsed, len(told), sum(1 for each in told if each))

        return row

    in_pipelines("piped", 5)
    denied = denied_row(hit_tight, bool, "limits:hot", calls)
    many = users_in_turn(calls)

    def allowed(_: int) -> Sample:
        key = f"limits:wide:{next(fresh)}"
        elapsed = time_hot(hit_wide, key, calls)
        if not hit_wide(key):
            raise RuntimeError("a call was denied in a row of allowed calls")
        return Sample(elapsed, calls, calls)

    return {
        "loop": lambda _: Sample(time_hot_empty(calls), calls),
        "ping": lambda _: Sample(time_hot(lambda _: client.ping(), None, calls), calls),
        "denied": denied,
        "allowed": allowed,
        "users": lambda _: Sample(time_keys(hit_wide, many), calls),
        "pipeline denied": piped(5, "piped"),
        "pipeline allowed": piped(WIDE_LIMIT, "piped"),
    }


def users_in_turn(calls: int) -> list[str]:
    return [f"user:{number}" for number in range(calls)]


def setup_beside(folder: str, calls: int) -> dict[str, Row]:
    """The same rows of a shared table, for ratios within a round."""
    nanolimit = importlib.import_module("nanolimit")
    tight, wide = (
        nanolimit.RateLimiter(limit, per=3600, shared=table(folder, name), max_keys=4_000,
                              typical=limit)
        for name, limit in (("beside-tight", 5), ("beside-wide", WIDE_LIMIT))
    )  # fmt: skip
    many = users_in_turn(calls)
    return {
        "loop": lambda _: Sample(time_hot_empty(20_000), 20_000),
        "loop users": lambda _: Sample(time_keys_empty(many), calls),
        "denied": denied_row(tight.allow, bool, "beside:hot", 20_000),
        "allowed": allowed_row(wide.allow, bool, "str", 10**9),
        "users": lambda _: Sample(time_keys(wide.allow, many), calls),
    }


# --- Report ---------------------------------------------------------------------------------------
ALONE, TOGETHER, LIMITS, BESIDE = "alone", "together", "limits", "shared"


def report_alone(results: Results, users: int) -> dict[str, Any]:
    """Print the tables of one process; return the figures."""
    controls: list[list[object]] = [
        ["empty loop (taken off below)", results.gross_ns(ALONE, "loop")],
        ["empty METH_O method", results.net_ns(ALONE, "empty method", "loop")],
        ["the same + one clock read", results.net_ns(ALONE, "method + clock", "loop")],
        [f"empty loop over {users:,} users", results.gross_ns(ALONE, "loop users")],
        ["empty METH_O method, over them", results.net_ns(ALONE, "method users", "loop users")],
    ]
    print_table("Control rows, one process (ns a call)", ("row", "ns"), controls)
    rows: list[list[object]] = []
    for what, loop in (("denied", "loop"), ("allowed", "loop"), ("users", "loop users")):
        nets = [results.net_ns(ALONE, f"{what} {kind}", loop) for kind in KINDS]
        label = f"{users:,} users at random" if what == "users" else f"one hot user, {what}"
        spread = max(results.spread(ALONE, f"{what} {kind}") for kind in KINDS)
        rows.append([label, *nets, over_private(results, what), spread])
    print_table("allow, one process (ns a call, empty loop taken off)",
                ("row", *KINDS, "shared x private", "spread"), rows)  # fmt: skip
    return {"control": controls, "rows": rows}


def over_private(results: Results, what: str) -> float:
    """The shared table's row over the private one's."""
    loop = "loop users" if what == "users" else "loop"
    return results.ratio((ALONE, f"{what} shared"), (ALONE, f"{what} private"), loop, loop)


def scaling(results: Results, scenario: str) -> float:
    """Throughput of two processes over one, the empty loop taken off both."""
    loop = "loop own" if scenario.startswith("own keys") else "loop hot"
    return results.ratio((TOGETHER, f"{scenario} x1"), (TOGETHER, f"{scenario} x2"),
                         f"{loop} x1", f"{loop} x2")  # fmt: skip


def report_together(results: Results) -> dict[str, Any]:
    """Print the table of two processes; return the figures."""
    rows: list[list[object]] = []
    for scenario in (*CONTROLS, *SCENARIOS):
        one, two = (results.gross_ns(TOGETHER, f"{scenario} x{count}") for count in (1, 2))
        control = scenario in CONTROLS
        net = None if scenario.startswith("loop") else scaling(results, scenario)
        rows.append([f"control: {scenario}" if control else scenario, one, two, one / two, net])
    print_table("Two processes at one table (ns a call, wall clock over all calls)",
                ("row", "1 process", "2 processes", "raw scaling", "loop taken off"),
                rows)  # fmt: skip
    return {"rows": rows}


def over_shared(redis: Results, row: str) -> float:
    """How many times the time of a shared table's call."""
    what = row.removeprefix("pipeline ").replace("ping", "denied")
    loop = "loop users" if what == "users" else "loop"
    return redis.ratio((LIMITS, row), (BESIDE, what), "loop", loop)


def report_redis(redis: Results, why: str) -> dict[str, Any]:
    """Print what stands beside; return the figures."""
    rows: list[list[object]] = []
    for row, label in (
        ("denied", "limits, one call, denied"),
        ("allowed", "limits, one call, allowed"),
        ("users", "limits, one call, users in turn"),
        ("pipeline denied", f"its script, pipeline of {PIPELINE}, denied"),
        ("pipeline allowed", f"its script, pipeline of {PIPELINE}, allowed"),
        ("ping", "control: a bare PING"),
    ):
        if redis.has(LIMITS, row):
            rows.append([label, redis.net_ns(LIMITS, row, "loop") / 1000,
                         over_shared(redis, row), redis.spread(LIMITS, row)])  # fmt: skip
    if not rows:
        rows = [[why, None, None, None]]
    print_table("Redis over a unix socket (us a call, empty loop taken off)",
                ("row", "us", "x shared allow", "spread"), rows)  # fmt: skip
    return {"rows": rows, "note": why}


def verdicts_of(alone: Results, together: Results, redis: Results) -> list[Verdict]:
    """The lines of the issue that this script answers."""
    lines = [
        Verdict("shared over private, hot, denied", over_private(alone, "denied"), 1.1, 1.05),
        Verdict("shared over private, hot, allowed", over_private(alone, "allowed"), 1.1, 1.05),
        Verdict("shared over private, users at random", over_private(alone, "users"), 1.1, 1.05),
    ]
    for scenario, must, goal in (
        ("own keys", 1.8, 1.95), ("own keys, allowed", 1.8, 1.95), ("denied hot key", 1.8, 1.95),
        ("allowed hot key", 1.0, 1.1),
    ):  # fmt: skip
        lines.append(Verdict(f"two processes over one, {scenario}", scaling(together, scenario),
                             must, goal, True))  # fmt: skip
    for row in ("denied", "allowed", "users"):
        if redis.has(LIMITS, row):
            lines.append(Verdict(f"limits with Redis over shared, {row}",
                                 over_shared(redis, row), 200, 500, True))  # fmt: skip
    return lines


def main() -> int:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--users", type=int, default=1_000_000, help="users at random")
    parser.add_argument("--rounds", type=int, default=21, help="rounds per launch")
    parser.add_argument("--launches", type=int, default=3, help="fresh processes")
    parser.add_argument("--budget", type=float, default=120.0, metavar="SECONDS",
                        help="how long learning all users may take")  # fmt: skip
    options = parser.parse_args()
    users, rounds, launches = options.users, options.rounds, options.launches
    calls, pair_calls, redis_calls = 20_000, 500_000, 1_920
    block = max(1_000, min(100_000, 2 * users // rounds))
    if options.quick:
        users, rounds, launches = min(users, 20_000), 5, 1
        calls, pair_calls, redis_calls, block = 2_000, 20_000, 640, 2_000
    if not importlib.import_module("nanolimit._core").SHARED:
        print("shared tables are for Linux", file=sys.stderr)
        return 2
    facts = environment()
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="nanolimit-bench-", dir=where)
    try:
        alone = run_rounds(
            {ALONE: (setup_alone, folder, calls, users, rounds, block, options.seed)},
            rounds=rounds, launches=launches, seed=options.seed, ready_budget_s=options.budget,
            progress=Progress(rounds * launches, "one process"),
        )  # fmt: skip
        together = run_rounds(
            {TOGETHER: (setup_together, folder, pair_calls)}, rounds=rounds, launches=launches,
            seed=options.seed, progress=Progress(rounds * launches, "two processes"),
        )  # fmt: skip
        redis, why = Results(), "redis-server is not installed"
        with redis_server(folder) as socket:
            if socket is not None and (version_of("limits") is None or version_of("redis") is None):
                why = "limits and redis are not both installed"
            elif socket is not None:
                redis = run_rounds(
                    {LIMITS: (setup_limits, socket, redis_calls),
                     BESIDE: (setup_beside, folder, redis_calls)},
                    rounds=rounds, seed=options.seed, progress=Progress(rounds, "Redis"),
                )  # fmt: skip
                why = " ".join(redis.troubles.values())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for results in (alone, together):
        for name, trouble in results.troubles.items():
            print(f"{name}: {trouble}", file=sys.stderr)
            return 1
    with tables_shown(options.json):
        if options.quick:
            print("--quick: these figures show that it runs, nothing else\n")
        print_environment(facts)
        tables = {"alone": report_alone(alone, users), "together": report_together(together),
                  "redis": report_redis(redis, why)}  # fmt: skip
        lines = verdicts_of(alone, together, redis)
        print_verdicts(lines)
    emit(options.json, facts, {"tables": tables, "verdicts": lines, "quick": options.quick})
    return 0


if __name__ == "__main__":
    sys.exit(main())
