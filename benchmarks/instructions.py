"""How many instructions does one hot check execute? Counted by callgrind, not timed.

Counts don't depend on the machine's mood, so they can be watched: `--check` fails when one has
grown by more than 5 % over the baseline in instructions.json. A baseline belongs to one pair of
compiler (of nanolimit._core) and Python version; for a pair without one, `--check` says so and
passes, and `--update` records it.

Each count is the difference of two runs, with N and 2N calls, so that start-up cancels; the empty
loop, counted the same way, is taken off. Control rows: the empty loop, an empty METH_O method, and
the same plus one clock read (under valgrind the clock is a system call, whose kernel side is not
counted).

  python benchmarks/instructions.py               count and show beside the baseline
  python benchmarks/instructions.py --check       fail on more than 5 % over it
  python benchmarks/instructions.py --update      record the counts for this pair

Needs valgrind. The `allowed` row is a user with about a thousand live stamps, `inline` the second
to fifth request of a user, whose stamps are in the slot itself; all of them are allowed. The same
two rows for each of the other algorithms.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import (
    HERE,
    emit,
    environment,
    extension_compiler,
    make_parser,
    print_environment,
    print_table,
    tables_shown,
)

BASELINES = HERE / "instructions.json"
TOLERANCE = 0.05
METERS = ("gcra", "fixed-window", "sliding-counter")
WATCHED = (
    "denied", "allowed", "inline",
    *(f"{meter} {row}" for meter in METERS for row in ("denied", "inline")),
)  # fmt: skip
ROWS = ("empty loop", "short loop", "empty method", "method + clock", *WATCHED)
LOOPS = {
    row: "short loop" for row in WATCHED if row.endswith("inline")
}  # the loop that is taken off, where it is not the empty loop

# What valgrind runs: everything is set up for 2N calls, then `times` (N or 2N) calls are made.
PROGRAM = """
import sys
from itertools import repeat
import nanolimit
from nanolimit._core import Control
row, calls, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
algorithm, _, own = row.rpartition(" ")
if own in ("denied", "inline"):
    row = own
else:
    algorithm = ""
algorithm = algorithm or "sliding-log"
control = Control()
users = [f"user:{number}" for number in range(2 * calls // 800)]
turns = 400 * times // calls
if row in ("inline", "short loop"):
    users, turns = [f"user:{number}" for number in range(2 * calls // 4)], 4
call, each = None, 1
if row == "empty method":
    call = control.empty
elif row == "method + clock":
    call = control.clock
elif row == "denied":
    limiter = nanolimit.RateLimiter(5, per=3600, algorithm=algorithm)
    for user in users:
        for _ in range(5):
            limiter.allow(user)
    call = limiter.allow
elif row == "allowed":
    limiter = nanolimit.RateLimiter(2000, per=3600)
    for user in users:
        for _ in range(1100):
            limiter.allow(user)
    call = limiter.allow
elif row == "inline":
    limiter = nanolimit.RateLimiter(5, per=3600, algorithm=algorithm)
    for user in users:
        limiter.allow(user)
    call = limiter.allow
if turns == 4:
    users = users[: times // 4]
before = limiter.stats() if row in ("denied", "allowed", "inline") else None
def run(call, users, turns):
    if call is None:
        for user in users:
            for _ in repeat(None, turns):
                pass
    else:
        for user in users:
            for _ in repeat(None, turns):
                call(user)
run(call, users, turns)
if before is not None:
    after = limiter.stats()
    made = len(users) * turns
    allowed = after.allowed - before.allowed
    denied = after.denied - before.denied
    expected = (0, made) if row == "denied" else (made, 0)
    if (allowed, denied) != expected:
        sys.exit(f"{row}: {allowed} allowed and {denied} denied of {made}")
"""


def count(row: str, calls: int, times: int, folder: str) -> int:
    """Instructions of one run of the program. Raises RuntimeError when it fails."""
    out = Path(folder) / f"{row.replace(' ', '-')}-{times}.out"
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--quiet",
               sys.executable, "-c", PROGRAM, row, str(calls), str(times)]  # fmt: skip
    settings = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=settings)
    if done.returncode:
        raise RuntimeError(f"{row}: {done.stderr.strip()}")
    found = re.search(r"^(?:totals|summary): (\d+)", out.read_text(), re.MULTILINE)
    if not found:
        raise RuntimeError(f"{row}: callgrind wrote no total")
    return int(found[1])


def per_call(calls: int) -> dict[str, float]:
    """Instructions per call of every row; of all but the loops, with the loop taken off."""
    counts: dict[tuple[str, int], int] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {(row, times): pool.submit(count, row, calls, times, folder)
                for row in ROWS for times in (calls, 2 * calls)}  # fmt: skip
        for place, (what, run) in enumerate(runs.items()):
            counts[what] = run.result()
            print(f"callgrind {place + 1}/{len(runs)}: {what[0]}, {what[1]} calls", file=sys.stderr)
    each = {row: (counts[row, 2 * calls] - counts[row, calls]) / calls for row in ROWS}
    return {
        row: value if row.endswith(" loop") else value - each[LOOPS.get(row, "empty loop")]
        for row, value in each.items()
    }


def pair() -> str:
    """The key of a baseline: the compiler of nanolimit._core and the Python version."""
    free = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    python = f"{platform.python_implementation()} {platform.python_version()}{free}"
    return f"{extension_compiler()} / {python} / {platform.machine()}"


def main() -> int:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--calls", type=int, default=16_000, help="N (default 16,000)")
    parser.add_argument("--check", action="store_true", help="exit 1 on more than 5 %% over it")
    parser.add_argument("--update", action="store_true", help="record the counts as the baseline")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("instructions.py needs valgrind (Debian: apt-get install valgrind)", file=sys.stderr)
        return 2
    if importlib.util.find_spec("nanolimit") is None:
        print("instructions.py needs nanolimit installed", file=sys.stderr)
        return 2
    # Multiples of 800 make whole users; see PROGRAM.
    calls = max(800, (3_200 if options.quick else options.calls) // 800 * 800)
    facts, key = environment(), pair()
    baselines: dict[str, dict[str, float]] = (
        json.loads(BASELINES.read_text()) if BASELINES.exists() else {}
    )
    try:
        counts = per_call(calls)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    known = baselines.get(key)
    rows: list[list[object]] = []
    grown: list[str] = []
    for row, value in counts.items():
        old = known.get(row) if known else None
        over = value / old - 1 if old else None
        rows.append([row, round(value, 1), old, None if over is None else f"{over:+.1%}"])
        if row in WATCHED and over is not None and over > TOLERANCE:
            grown.append(f"{row}: {value:.1f} instructions, {over:+.1%} over {old}")
    with tables_shown(options.json):
        print_environment(facts)
        print_table(f"Instructions a call, empty loop taken off, {key}",
                    ("row", "instructions", "baseline", "change"), rows)  # fmt: skip
        if known is None and not options.update:
            print(
                "notice: there is no baseline for this pair of compiler and Python; nothing is "
                "compared.\nRecord one with: python benchmarks/instructions.py --update"
            )
    emit(options.json, facts, {"pair": key, "counts": counts, "baseline": known, "grown": grown})
    if options.update:
        baselines[key] = {row: round(value, 1) for row, value in counts.items()}
        BASELINES.write_text(json.dumps(baselines, indent=2, sort_keys=True) + "\n")
        print(f"recorded for {key}", file=sys.stderr)
        return 0
    if options.check and grown:
        print("\n".join(["more than 5 % over the baseline:", *grown]), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
