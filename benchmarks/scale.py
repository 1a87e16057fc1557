"""A hundred million users on one machine: memory, speed, and nobody gets too much.

Every user asks three times at a limit of two an hour: the first two rounds must be allowed for
each single user, the third denied for each single user. Anything else fails, with the first user
it happened to. Control row: the same loop over the same buffers without a limiter.

  python benchmarks/scale.py --keys 100_000_000     about 6 GiB of memory
  python benchmarks/scale.py --quick

Needs numpy; Linux. There are no peers here: none of them gets to ten million users (memory.py and
pause.py show how far they get).
"""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import Any

from harness import (
    Progress,
    emit,
    environment,
    make_parser,
    print_environment,
    print_table,
    rss_bytes,
    tables_shown,
)

SLICE = 1_000_000


def main() -> int:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--keys", type=int, default=100_000_000, help="how many users")
    parser.add_argument("--limit", type=int, default=2, help="requests an hour (default 2)")
    options = parser.parse_args()
    if importlib.util.find_spec("numpy") is None:
        print("scale.py needs numpy: pip install numpy", file=sys.stderr)
        return 2
    import numpy

    import nanolimit

    keys = min(options.keys, 200_000) if options.quick else options.keys
    limit: int = options.limit
    facts = environment()
    clock = time.perf_counter
    passes = limit + 1
    progress = Progress((passes + 1) * keys, f"{keys:,} users")

    # The control: make every buffer, add it up, and do nothing else.
    control_s, start_bytes = 0.0, 0
    for low in range(0, keys, SLICE):
        started = clock()
        control_buffer = numpy.arange(low, min(low + SLICE, keys), dtype=numpy.int64)
        int(control_buffer.sum())
        control_s += clock() - started
        progress.step("control", by=len(control_buffer))
    start_bytes = rss_bytes()

    began = clock()
    limiter = nanolimit.RateLimiter(limit, per=3600, max_keys=keys)
    rows: list[list[object]] = [["control: buffers without a limiter", control_s,
                                 keys / control_s / 1e6, None]]  # fmt: skip
    allowed_in_all = 0
    for turn in range(passes):
        expected = turn < limit
        spent_s, allowed = 0.0, 0
        for low in range(0, keys, SLICE):
            started = clock()
            # Any: numpy tells type checkers of its buffer from Python 3.12 on only.
            buffer: Any = numpy.arange(low, min(low + SLICE, keys), dtype=numpy.int64)
            answers = numpy.frombuffer(limiter.allow_many(buffer), dtype=numpy.bool_)
            count = int(answers.sum())
            spent_s += clock() - started
            if count != (len(buffer) if expected else 0):
                user = low + int(numpy.flatnonzero(answers != expected)[0])
                print(f"user {user}: request {turn + 1} at limit {limit} was "
                      f"{'denied' if expected else 'allowed'}", file=sys.stderr)  # fmt: skip
                return 1
            allowed += count
            progress.step(f"request {turn + 1}", by=len(buffer))
        allowed_in_all += allowed
        label = f"request {turn + 1} of each user, {'allowed' if expected else 'denied'}"
        rows.append([label, spent_s, keys / (spent_s - control_s) / 1e6, allowed])
    took_s = clock() - began
    progress.done()
    if took_s >= 3600:
        print(f"the run took {took_s:.0f} s, longer than the window: nothing is shown by it",
              file=sys.stderr)  # fmt: skip
        return 1

    stats = limiter.stats()
    resident = (rss_bytes() - start_bytes) / keys
    exact = (
        stats.allowed == allowed_in_all == limit * keys
        and stats.denied == keys
        and stats.keys == keys
        and stats.overflowed == 0
    )
    started = clock()
    limiter.close()
    closing_s = clock() - started
    with tables_shown(options.json):
        if options.quick:
            print("--quick: these figures show that it runs, nothing else\n")
        print_environment(facts)
        print_table(f"{keys:,} users, {limit} an hour (control taken off the speeds)",
                    ("row", "seconds", "million a second", "allowed"), rows)  # fmt: skip
        print(f"bytes per user: {resident:.1f} resident, {stats.memory_bytes / keys:.1f} counted")
        print(f"allowed {stats.allowed:,} = {limit} x {keys:,}; denied {stats.denied:,}; "
              f"keys {stats.keys:,}; overflowed {stats.overflowed:,}: "
              f"{'exact' if exact else 'NOT EXACT'}")  # fmt: skip
        print(f"closing took {closing_s:.2f} s")
    emit(options.json, facts, {
        "rows": rows, "keys": keys, "limit": limit, "exact": exact,
        "bytes_per_user_rss": resident, "bytes_per_user_stats": stats.memory_bytes / keys,
        "quick": options.quick,
    })  # fmt: skip
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
