"""What does `allow_many` save against one check at a time?

Two questions. An integer buffer with millions of users at random: `allow_many` against single
checks in a C loop (a small Cython module, built here against the installed package, that calls
`allow_int` through `cimport nanolimit`). And a list of str keys: `allow_many` against a Python
loop over `allow`. Control rows: the same C loop without a check, and with a clock read only.

  python benchmarks/batch.py                      10 million users
  python benchmarks/batch.py --users 1_000_000
  python benchmarks/batch.py --quick

Needs numpy, Cython and a C compiler.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import (
    HERE,
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
    time_keys,
    time_keys_empty,
)

NL = "nanolimit"

BUILD = """
from Cython.Build import cythonize
from setuptools import Extension, setup
setup(name="single", script_args=["-q", "build_ext", "--inplace"],
      ext_modules=cythonize([Extension("single", ["single.pyx"], extra_compile_args=["-O3"])],
                            quiet=True))
"""


def build_consumer(folder: Path) -> None:
    """Build consumer/single.pyx in `folder`. Raises RuntimeError with the compiler's words."""
    shutil.copy(HERE / "consumer" / "single.pyx", folder / "single.pyx")
    (folder / "build_single.py").write_text(BUILD)
    done = subprocess.run(
        [sys.executable, "build_single.py"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError("the consumer does not build:\n" + done.stdout + done.stderr)


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[int, Any]:
    """Nanoseconds of one call, and what it returned."""
    start = time.perf_counter_ns()
    answer = call(*arguments)
    return time.perf_counter_ns() - start, answer


def setup_buffers(folder: str, users: int, rounds: int, block: int, seed: int) -> dict[str, Row]:
    """Rows over int64 buffers of random users."""
    numpy = importlib.import_module("numpy")
    nanolimit = importlib.import_module("nanolimit")
    sys.path.insert(0, folder)
    single = importlib.import_module("single")
    limiter = nanolimit.RateLimiter(5, per=3600, max_keys=users)
    spent = nanolimit.RateLimiter(1, per=3600, max_keys=users)
    for low in range(0, users, 100_000):
        fresh = numpy.arange(low, min(low + 100_000, users), dtype=numpy.int64)
        limiter.allow_many(fresh)
        spent.allow_many(fresh)
    dice = numpy.random.default_rng(seed)
    names = ("walk", "clock", "single", "batch", "single denied", "batch denied")
    picks = {name: [dice.integers(0, users, block, dtype=numpy.int64) for _ in range(rounds)]
             for name in names}  # fmt: skip

    def consumer(name: str, call: Callable[[Any], Any]) -> Row:
        return lambda turn: Sample(timed(call, picks[name][turn])[0], block)

    def checks(name: str, subject: Any) -> Row:
        def row(turn: int) -> Sample:
            elapsed, allowed = timed(single.check_each, subject, picks[name][turn])
            return Sample(elapsed, block, int(allowed))

        return row

    def batches(name: str, subject: Any) -> Row:
        def row(turn: int) -> Sample:
            elapsed, answer = timed(subject.allow_many, picks[name][turn])
            return Sample(elapsed, block, int(numpy.asarray(answer).sum()))

        return row

    return {
        "walk": consumer("walk", single.walk),
        "clock": consumer("clock", single.walk_and_read_clock),
        "single": checks("single", limiter),
        "batch": batches("batch", limiter),
        "single denied": checks("single denied", spent),
        "batch denied": batches("batch denied", spent),
    }


def setup_lists(users: int, rounds: int, block: int, seed: int) -> dict[str, Row]:
    """Rows over lists of str keys."""
    nanolimit = importlib.import_module("nanolimit")
    control = importlib.import_module("nanolimit._core").Control()
    keys = [f"user:{number}" for number in range(users)]
    limiter = nanolimit.RateLimiter(5, per=3600, max_keys=users)
    for key in keys:
        limiter.allow(key)
    dice = random.Random(seed)
    picks = [[dice.choices(keys, k=block) for _ in range(rounds)] for _ in range(5)]
    return {
        "loop": lambda turn: Sample(time_keys_empty(picks[0][turn]), block),
        "empty method": lambda turn: Sample(time_keys(control.empty, picks[1][turn]), block),
        "method + clock": lambda turn: Sample(time_keys(control.clock, picks[2][turn]), block),
        "allow": lambda turn: Sample(time_keys(limiter.allow, picks[3][turn]), block),
        "allow_many": lambda turn: Sample(timed(limiter.allow_many, picks[4][turn])[0], block),
    }


def report(buffers: Results, lists: Results, users: int, list_users: int) -> dict[str, Any]:
    """Print both tables; return the figures."""
    rows: list[list[object]] = [["C loop over the buffer (taken off below)",
                                 buffers.gross_ns(NL, "walk"), None, None]]  # fmt: skip
    single = buffers.net_ns(NL, "single", "walk")
    for row, label in (
        ("clock", "the same + one clock read"),
        ("single", "single checks in C"), ("batch", "allow_many"),
        ("single denied", "single checks in C, denied"), ("batch denied", "allow_many, denied"),
    ):  # fmt: skip
        net = buffers.net_ns(NL, row, "walk")
        rows.append([label, net, single / net, buffers.admitted_share(NL, row)])
    print_table(f"Integer buffer, {users:,} users at random (ns a key)",
                ("row", "ns", "single / row", "share allowed"), rows)  # fmt: skip
    listed: list[list[object]] = [["empty Python loop (taken off the loops below)",
                                   lists.gross_ns(NL, "loop"), None]]  # fmt: skip
    for row, label in (("empty method", "Python loop, empty METH_O method"),
                       ("method + clock", "Python loop, the same + one clock read"),
                       ("allow", "Python loop over allow")):  # fmt: skip
        listed.append([label, lists.net_ns(NL, row, "loop"), None])
    listed.append(
        [
            "allow_many of a list (nothing taken off)",
            lists.gross_ns(NL, "allow_many"),
            lists.net_ns(NL, "allow", "loop") / lists.gross_ns(NL, "allow_many"),
        ]
    )
    print_table(f"List of str keys, {list_users:,} users at random (ns a key)",
                ("row", "ns", "loop / row"), listed)  # fmt: skip
    return {"buffers": rows, "lists": listed}


def main() -> int:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--users", type=int, default=10_000_000, help="users in the buffer")
    parser.add_argument("--rounds", type=int, default=15, help="rounds")
    options = parser.parse_args()
    for needed in ("numpy", "Cython", "setuptools"):
        if importlib.util.find_spec(needed) is None:
            print(f"batch.py needs {needed}: pip install {needed}", file=sys.stderr)
            return 2
    users, rounds = options.users, options.rounds
    block = max(10_000, min(1_000_000, users // 10))
    list_users = min(users, 1_000_000)
    list_block = max(2_000, min(100_000, list_users // 10))
    if options.quick:
        users, rounds, block, list_users, list_block = 50_000, 5, 10_000, 10_000, 2_000
    facts = environment()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        build_consumer(Path(folder))
        buffers = run_rounds(
            {NL: (setup_buffers, folder, users, rounds, block, options.seed)},
            rounds=rounds, seed=options.seed, progress=Progress(rounds, "buffers"),
        )  # fmt: skip
    lists = run_rounds(
        {NL: (setup_lists, list_users, rounds, list_block, options.seed)},
        rounds=rounds, seed=options.seed, progress=Progress(rounds, "lists"),
    )  # fmt: skip
    for results in (buffers, lists):
        if NL in results.troubles:
            print(f"nanolimit: {results.troubles[NL]}", file=sys.stderr)
            return 1
    saved = buffers.ratio((NL, "single"), (NL, "batch"), "walk", "walk")
    lines = [Verdict("single checks in C over allow_many, buffer", saved, 5, 8, True)]
    with tables_shown(options.json):
        if options.quick:
            print("--quick: these figures show that it runs, nothing else\n")
        print_environment(facts)
        tables = report(buffers, lists, users, list_users)
        print_verdicts(lines)
    emit(options.json, facts, {"tables": tables, "verdicts": lines, "quick": options.quick})
    return 0


if __name__ == "__main__":
    os.environ.setdefault("CFLAGS", "-O3")
    sys.exit(main())
