"""What does a changed import change? ratelimit, aiolimiter, token-bucket, beside nanolimit.compat.

  python benchmarks/replacements.py
  python benchmarks/replacements.py --quick

Three questions, each to the original and to its replacements:

- What does a call cost that passes, and one that is denied? (Of aiolimiter: an acquire that need
  not wait.) In nanoseconds, the empty loop taken off; and how often that fits into the original.
- What memory does a bucket take, of very many?
- How many tokens do four threads take of one bucket that holds 1,000 and is hardly refilled? Run it
  with a free-threaded Python: with a GIL the original's race needs more luck.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import (
    Row,
    Sample,
    ask,
    emit,
    environment,
    make_parser,
    print_environment,
    print_table,
    rss_bytes,
    run_rounds,
    tables_shown,
    time_hot,
    time_hot_empty,
    version_of,
)

# What is measured: library, its module, what is given besides, and what that is called.
VARIANTS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("ratelimit", "ratelimit", {}, "original"),
    ("ratelimit", "nanolimit.compat.ratelimit", {}, "ours"),
    ("ratelimit", "nanolimit.compat.ratelimit", {"algorithm": "sliding-log"}, "sliding-log"),
    ("ratelimit", "nanolimit.compat.ratelimit", {"shared": "ratelimit"}, "shared"),
    ("aiolimiter", "aiolimiter", {}, "original"),
    ("aiolimiter", "nanolimit.compat.aiolimiter", {}, "ours"),
    ("aiolimiter", "nanolimit.compat.aiolimiter", {"shared": "aiolimiter"}, "shared"),
    ("token-bucket", "token_bucket", {}, "original"),
    ("token-bucket", "nanolimit.compat.token_bucket", {}, "ours"),
    ("token-bucket", "nanolimit.compat.token_bucket", {"table": None}, "TableStorage()"),
    ("token-bucket", "nanolimit.compat.token_bucket", {"table": "buckets"}, "TableStorage(name)"),
)
MANY = 2_047  # a limit that a table is made for at once
FOREVER_S = 1e6


@contextmanager
def private_tables() -> Iterator[None]:
    """A directory for the shared tables of this process, gone when it ends."""
    memory = Path("/dev/shm")
    where = tempfile.mkdtemp(prefix="nanolimit-bench-", dir=memory if memory.is_dir() else None)
    os.environ["NANOLIMIT_DIR"] = where
    try:
        yield
    finally:
        shutil.rmtree(where, ignore_errors=True)


def token_limiter(module: Any, extra: dict[str, Any], rate: float, capacity: int) -> Any:
    storage = module.TableStorage(extra["table"]) if extra else module.MemoryStorage()
    return module.Limiter(rate, capacity, storage)


def calls_of(library: str, path: str, extra: dict[str, Any], calls: int) -> dict[str, Row]:
    """Worker: calls that pass, calls that are denied, the empty loop."""
    module = importlib.import_module(path)

    def rows(passing: Callable[[Any], object], denied: Callable[[Any], object] | None) -> Any:
        for call in filter(None, (passing, denied)):
            call("user")
        made = {"passes": passing, "denied": denied}
        return {
            **{
                name: lambda _, call=call: Sample(time_hot(call, "user", calls), calls)
                for name, call in made.items()
                if call is not None
            },
            "empty": lambda _: Sample(time_hot_empty(calls), calls),
        }

    with private_tables():
        if library == "ratelimit":

            def limit(number: int, period: float, name: str) -> Callable[[Any], object]:
                given = {**extra, "shared": extra["shared"] + name} if "shared" in extra else extra
                decorator = module.limits(number, period, raise_on_limit=False, **given)
                return decorator(lambda key: None)  # type: ignore[no-any-return]

            # Of the engine's a window that is over at every call, as no log is so long.
            passes = limit(MANY, 1e-6, "1") if extra else limit(10**9, FOREVER_S, "1")
            return rows(passes, limit(1, FOREVER_S, "2"))  # type: ignore[no-any-return]
        if library == "token-bucket":
            named = bool(extra and extra["table"])
            other = {"table": "denied"} if named else extra
            return rows(  # type: ignore[no-any-return]
                token_limiter(module, extra, 1e9, 1_000).consume,
                token_limiter(module, other, 1 / FOREVER_S, 1).consume,
            )
        limiter = module.AsyncLimiter(1_000, 1e-6, **extra)

    async def acquire() -> int:
        acquire = limiter.acquire
        clock = time.perf_counter_ns
        start = clock()
        for _ in range(calls):
            await acquire()
        return clock() - start

    loop = asyncio.new_event_loop()
    return {
        "passes": lambda _: Sample(loop.run_until_complete(acquire()), calls),
        "empty": lambda _: Sample(time_hot_empty(calls), calls),
    }


def memory_of(path: str, extra: dict[str, Any], keys: int) -> dict[str, Callable[[int], Any]]:
    """Worker: bytes for each of so many buckets."""
    module = importlib.import_module(path)
    names = [f"user:{number}" for number in range(keys)]
    with private_tables():
        limiter = token_limiter(module, extra, 1 / FOREVER_S, 10)
        gc.collect()
        before = rss_bytes()
        for name in names:
            limiter.consume(name)
        took = (rss_bytes() - before) / keys
    return {"bytes": lambda _: took}


def taken_of(path: str, extra: dict[str, Any], turns: int) -> dict[str, Callable[[int], Any]]:
    """Worker: tokens that four threads took, each time that there were 1,000."""
    module = importlib.import_module(path)
    taken = []
    for _ in range(turns):
        limiter = token_limiter(module, extra, 1e-4, 1_000)
        parts: list[int] = []

        def work(limiter: Any = limiter, parts: list[int] = parts) -> None:
            parts.append(sum(limiter.consume("user") for _ in range(700)))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken.append(sum(parts))
    return {"taken": lambda _: taken}


def main() -> int:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    calls, keys, rounds = 50_000, 200_000, options.rounds
    if options.quick:
        calls, keys, rounds = 500, 2_000, 3
    subjects: dict[str, tuple[Any, ...]] = {
        f"{library} {name}": (calls_of, library, path, extra, calls)
        for library, path, extra, name in VARIANTS
    }
    results = run_rounds(subjects, rounds=rounds, seed=options.seed)
    cost = []
    for library, _, _, name in VARIANTS:
        worker = f"{library} {name}"
        cells: list[object] = [library, name]
        for row in ("passes", "denied"):
            if results.has(worker, row):
                first = (f"{library} original", row)
                cells.append(results.net_ns(worker, row, "empty"))
                cells.append(results.ratio(first, (worker, row), "empty", "empty"))
            else:
                cells += [None, None]
        cost.append(cells)
    memory, taken = [], []
    for library, path, extra, name in VARIANTS:
        if library == "token-bucket" and not (extra and extra["table"]):
            memory.append([name, ask(name, memory_of, path, extra, keys, budget_s=120)[0]])
            turns = 3 if options.quick else 30
            counts, trouble = ask(name, taken_of, path, extra, turns, budget_s=120)
            if counts is None:
                print(f"{name} dropped out: {trouble}", file=sys.stderr)
                continue
            taken.append([name, max(counts), sum(count > 1_000 for count in counts), len(counts)])
    facts = environment()
    for name in ("ratelimit", "aiolimiter"):
        facts[name] = version_of(name) or "not installed"
    with tables_shown(options.json):
        print_environment(facts)
        head = ("library", "which", "passes, ns", "faster", "denied, ns", "faster")
        print_table("One call", head, cost)
        print_table(f"token-bucket: {keys:,} buckets", ("which", "bytes each"), memory)
        print_table("token-bucket: four threads, one bucket of 1,000",
                    ("which", "most taken", "runs above 1,000", "runs"), taken)  # fmt: skip
        for name, trouble in results.troubles.items():
            print(f"{name} dropped out: {trouble}")
    emit(options.json, facts, {"cost": cost, "memory": memory, "taken": taken})
    return 0


if __name__ == "__main__":
    sys.exit(main())
