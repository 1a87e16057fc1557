"""What does it cost to wait? Tasks of asyncio that wait for their turn, against a bare timer.

So many tasks come at once and wait, all of them for one key, or each for a key of its own. The bare
row is the least that can do it, with no limit at all: `loop.call_at` and a Future for each task, at
the instants at which the limiter grants. aiolimiter does the same work: one limiter, or one a key.

  python benchmarks/waiting.py
  python benchmarks/waiting.py --tasks 1_000 --peers none
  python benchmarks/waiting.py --quick

The figure is processor time, from the first task to the last grant, for each task: what passes
between them, asleep, costs nothing and is not counted. Making a task and ending it is in all rows
alike; the row `tasks` does nothing else, and the last column has it taken off.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from harness import (
    Progress,
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
    version_of,
)

SHAPES = ("one key", "a key each")
BURSTS = 5  # windows that it takes to serve all who wait for one key


def sample(tasks: int, start: Callable[[], Callable[[int], Awaitable[object]]]) -> Sample:
    """Run so many tasks, and take their processor time. start() runs in the loop, untimed."""

    async def main() -> int:
        one = start()
        gc.collect()
        before_ns = time.process_time_ns()
        crew = [asyncio.ensure_future(one(number)) for number in range(tasks)]
        for task in crew:
            await task
        return time.process_time_ns() - before_ns

    return Sample(asyncio.run(main()), tasks, tasks)


def window_of(tasks: int, shape: str) -> float:
    """Seconds: long enough that all tasks wait before the first is granted."""
    return max(0.05, tasks * (100e-6 if shape == "a key each" else 50e-6))


def bare(tasks: int) -> dict[str, Row]:
    """Worker: call_at and a Future for each task, and tasks that wait for nothing."""

    def rows(shape: str) -> Row:
        window_s = window_of(tasks, shape)
        burst = max(1, tasks // BURSTS) if shape == "one key" else tasks

        def start() -> Callable[[int], Awaitable[object]]:
            loop = asyncio.get_running_loop()
            first = loop.time() + window_s

            async def one(number: int) -> None:
                future = loop.create_future()
                loop.call_at(first + number // burst * window_s, future.set_result, None)
                await future

            return one

        return lambda _: sample(tasks, start)

    async def nothing(number: int) -> None:
        await asyncio.sleep(0)

    return {
        **{shape: rows(shape) for shape in SHAPES},
        "tasks": lambda _: sample(tasks, lambda: nothing),
    }


def limiter(tasks: int) -> dict[str, Row]:
    """Worker: nanolimit."""
    nanolimit = importlib.import_module("nanolimit")

    def rows(shape: str) -> Row:
        window_s = window_of(tasks, shape)

        def one_key() -> Callable[[int], Awaitable[object]]:
            burst = max(1, tasks // BURSTS)
            limiter = nanolimit.RateLimiter(min(burst, 2_047), per=window_s)
            acquire: Any = limiter.acquire_async
            assert limiter.allow("user", limiter.quota.limit)
            return lambda _: acquire("user")

        def key_each() -> Callable[[int], Awaitable[object]]:
            limiter = nanolimit.RateLimiter(1, per=window_s)
            acquire: Callable[[int], Awaitable[object]] = limiter.acquire_async
            for number in range(tasks):
                limiter.allow(number)
            return acquire

        return lambda _: sample(tasks, one_key if shape == "one key" else key_each)

    return {shape: rows(shape) for shape in SHAPES}


def aiolimiter(tasks: int) -> dict[str, Row]:
    """Worker: aiolimiter, a leaky bucket: it serves evenly, not in bursts."""
    make = importlib.import_module("aiolimiter").AsyncLimiter

    def rows(shape: str) -> Row:
        window_s = window_of(tasks, shape)

        def start() -> Callable[[int], Awaitable[object]]:
            if shape == "one key":
                burst = max(1, tasks // BURSTS)
                limiter = make(burst, window_s)
                limiter._level = burst
                limiter._last_check = asyncio.get_running_loop().time()
                return lambda _: limiter.acquire()
            limiters = [make(1, window_s) for _ in range(tasks)]
            for used in limiters:
                used._level = 1
                used._last_check = asyncio.get_running_loop().time()
            return lambda number: limiters[number].acquire()

        return lambda _: sample(tasks, start)

    return {shape: rows(shape) for shape in SHAPES}


def main() -> int:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--tasks", type=int, default=10_000, help="how many wait at a time")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", default="all", choices=("all", "none"), help="aiolimiter or not")
    options = parser.parse_args()
    tasks, rounds = options.tasks, options.rounds
    if options.quick:
        tasks, rounds = min(tasks, 500), 2
    subjects: dict[str, tuple[Any, ...]] = {"bare": (bare, tasks), "nanolimit": (limiter, tasks)}
    missing = ""
    if options.peers == "all":
        if version_of("aiolimiter"):
            subjects["aiolimiter"] = (aiolimiter, tasks)
        else:
            missing = "aiolimiter is not installed"
    facts = environment()
    facts["aiolimiter"] = version_of("aiolimiter") or "not installed"
    progress = Progress(rounds, "waiting")
    results = run_rounds(subjects, rounds=rounds, seed=options.seed, progress=progress)
    if "nanolimit" in results.troubles or "bare" in results.troubles:
        print(results.troubles, file=sys.stderr)
        return 1

    def ratio(name: str, shape: str, empty: bool) -> float:
        """Within each round: this subject's time over the bare timer's."""
        mine, theirs = results.samples[name, shape], results.samples["bare", shape]
        loops = results.samples["bare", "tasks"]
        quotients = []
        for at in mine.keys() & theirs.keys() & loops.keys():
            off = loops[at].per_call_ns if empty else 0.0
            below = theirs[at].per_call_ns - off
            if below > 0:
                quotients.append((mine[at].per_call_ns - off) / below)
        return sorted(quotients)[len(quotients) // 2] if quotients else float("nan")

    rows: list[list[object]] = [
        ["bare", "tasks", results.gross_ns("bare", "tasks") / 1e3, None, None, ""]
    ]
    for shape in SHAPES:
        for name in subjects:
            if results.has(name, shape):
                rows.append([name, shape, results.gross_ns(name, shape) / 1e3,
                             ratio(name, shape, False), ratio(name, shape, True), ""])  # fmt: skip
            else:
                rows.append([name, shape, None, None, None, results.troubles.get(name, "")])
        if missing:
            rows.append(["aiolimiter", shape, None, None, None, missing])
    lines = [
        Verdict(f"{tasks:,} tasks wait, {shape}: against the bare timer",
                ratio("nanolimit", shape, False), 1.5, 1.3)
        for shape in SHAPES
    ]  # fmt: skip
    with tables_shown(options.json):
        if options.quick:
            print("--quick: these figures show that it runs, nothing else\n")
        print_environment(facts)
        print_table(f"{tasks:,} tasks wait (processor time of one, in us)",
                    ("subject", "wait for", "us", "x bare", "x bare, less the task", "note"),
                    rows)  # fmt: skip
        print_verdicts(lines)
    emit(options.json, facts, {"waiting": rows, "verdicts": lines, "quick": options.quick})
    return 0


if __name__ == "__main__":
    sys.exit(main())
