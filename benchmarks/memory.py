"""How many bytes does one user take, and what comes back when they are gone?

Bytes per user, by resident memory and by `stats().memory_bytes`: at limit 5 at every size from one
to ten million, at limit 100 with three stamps a user on average, and the peers at one million.
Then: ten million users go idle (their time is a ManualClock's) and `evict()` is called; the share
of the memory that is still there. Control row: the same program without a limiter.

  python benchmarks/memory.py
  python benchmarks/memory.py --users 2_000_000 --peers deque,limits
  python benchmarks/memory.py --quick

Reads /proc/self/statm: Linux only. Needs numpy. Every subject has a process of its own. The peers
get a new str key for each user that nobody else holds: what they keep of it counts, as it would
in a service. nanolimit gets the same keys in the peers' table, integers in its own.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
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
    rss_bytes,
    tables_shown,
)

SLICE = 100_000  # users per allow_many call: small enough that the buffers don't show


def answer(figures: list[float]) -> dict[str, Any]:
    """A worker's rows: the one row hands the figures over."""
    return {"figures": lambda _: figures}


def grow(sizes: list[int], limit: int, mean_stamps: int, seed: int) -> dict[str, Any]:
    """Worker: bytes per user at each size: resident, counted; and what evict() leaves."""
    numpy = importlib.import_module("numpy")
    nanolimit = importlib.import_module("nanolimit")
    dice = numpy.random.default_rng(seed)
    clock = nanolimit.ManualClock()
    # Touch the code paths (numpy's generators too) before the first reading.
    warm = nanolimit.RateLimiter(limit, per=60, clock=clock)
    warm.allow_many(requests(numpy, dice, 0, SLICE, mean_stamps)[:1_000].copy())
    warm.close()
    del warm
    gc.collect()
    limiter = nanolimit.RateLimiter(limit, per=60, max_keys=sizes[-1], clock=clock)
    start = rss_bytes()
    figures: list[float] = []
    low = 0
    for size in sizes:
        while low < size:
            high = min(low + SLICE, size)
            limiter.allow_many(requests(numpy, dice, low, high, mean_stamps))
            low = high
        gc.collect()
        stats = limiter.stats()
        if stats.keys != size or stats.denied or stats.overflowed:
            raise RuntimeError(f"expected {size} keys and no denial: {stats!r}")
        figures += [(rss_bytes() - start) / size, stats.memory_bytes / size, stats.allowed / size]
    before = rss_bytes() - start, limiter.stats().memory_bytes
    clock.advance(61.0)
    dropped = limiter.evict()
    gc.collect()
    if dropped != sizes[-1]:
        raise RuntimeError(f"evict() dropped {dropped} of {sizes[-1]}")
    after = rss_bytes() - start, limiter.stats().memory_bytes
    figures += [after[0] / before[0], after[1] / before[1]]
    return answer(figures)


def requests(numpy: Any, dice: Any, low: int, high: int, mean_stamps: int) -> Any:
    """Each of the users low..high-1 once, or 1 + Poisson times, in random order."""
    users = numpy.arange(low, high, dtype=numpy.int64)
    if mean_stamps > 1:
        users = numpy.repeat(users, 1 + dice.poisson(mean_stamps - 1, high - low))
        dice.shuffle(users)
    return users


def hold(name: str, users: int, limit: int) -> dict[str, Any]:
    """Worker: bytes per user of a peer; `nothing` is the control, a loop that makes the keys."""
    call = (lambda key: None) if name == "nothing" else peers_module.subject(name, limit, 3600)[0]
    for number in range(1_000):
        call(f"warm:{number}")
    gc.collect()
    start = rss_bytes()
    for number in range(users):
        call(f"user:{number}")
    gc.collect()
    return answer([(rss_bytes() - start) / users])


def main() -> int:
    parser = make_parser(__doc__ or "")
    add_peer_option(parser)
    parser.add_argument("--users", type=int, default=10_000_000, help="the largest size")
    parser.add_argument("--peer-users", type=int, default=1_000_000, help="users of the peers")
    parser.add_argument("--budget", type=float, default=120.0, metavar="SECONDS",
                        help="how long a peer may take")  # fmt: skip
    options = parser.parse_args()
    if importlib.util.find_spec("numpy") is None:
        print("memory.py needs numpy: pip install numpy", file=sys.stderr)
        return 2
    if not sys.platform.startswith("linux"):
        print("memory.py reads /proc/self/statm and runs on Linux only", file=sys.stderr)
        return 2
    try:
        chosen, missing = peers_module.choose(options.peers)
    except ValueError as error:
        parser.error(str(error))
    users, peer_users = options.users, options.peer_users
    if options.quick:
        users, peer_users = min(users, 200_000), min(peer_users, 20_000)
    step = max(users // 10, 1)
    sizes = [*range(step, users, step), users]
    facts = environment()
    names = ["nothing", "nanolimit", *(peer.name for peer in chosen)]
    progress = Progress(2 + len(names), "memory")

    tight, trouble = ask("nanolimit", grow, sizes, 5, 1, options.seed, budget_s=600)
    progress.step("limit 5")
    if not trouble:
        loose, trouble = ask("nanolimit", grow, sizes, 100, 3, options.seed, budget_s=600)
        progress.step("limit 100")
    if trouble:
        print(f"nanolimit: {trouble}", file=sys.stderr)
        return 1
    beside: list[list[object]] = []
    for name in names:
        figures, why = ask(name, hold, name, peer_users, 5, budget_s=options.budget)
        label = "nothing (the keys are made and dropped)" if name == "nothing" else name
        beside.append([label, figures[0] if figures else None, why])
        progress.step(name)
    beside += [[name, None, why] for name, why in missing.items()]
    progress.done()

    by_size: list[list[object]] = []
    for place, size in enumerate(sizes):
        at = slice(3 * place, 3 * place + 3)
        by_size.append([size, *tight[at][:2], *loose[at]])
    gone: list[list[object]] = [
        ["limit 5", 100 * tight[-2], 100 * tight[-1]],
        ["limit 100, 3 stamps", 100 * loose[-2], 100 * loose[-1]],
    ]
    lines = [
        Verdict("bytes per user, limit 5, worst size", max(tight[0:-2:3]), 62, 56),
        Verdict("bytes per user, limit 100 with 3 stamps, worst size", max(loose[0:-2:3]), 70, 64),
        Verdict("left after evict(), % of before", 100 * tight[-2], 10, 3),
    ]
    with tables_shown(options.json):
        if options.quick:
            print("--quick: small tables; the fixed part weighs more than at full size\n")
        print_environment(facts)
        print_table("nanolimit, bytes per user",
                    ("users", "limit 5, RSS", "limit 5, stats", "limit 100, RSS",
                     "limit 100, stats", "stamps a user"), by_size)  # fmt: skip
        print_table("Left after all went idle and evict(), % of before",
                    ("table", "RSS", "stats"), gone)  # fmt: skip
        print_table(f"Bytes per user, {peer_users:,} users, limit 5, str keys, RSS",
                    ("subject", "bytes", "note"), beside)  # fmt: skip
        print_verdicts(lines)
    emit(options.json, facts, {"sizes": by_size, "evicted": gone, "peers": beside,
                               "verdicts": lines, "quick": options.quick})  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
