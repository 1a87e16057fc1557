"""How slow are the slow calls? p50, p99 and p99.99 of single calls, as a picture.

Two situations: two threads that ask about a hundred thousand users at random, and one thread
while the table grows from nothing to a million users. Every call is timed by itself; the two clock
reads around it are in every figure. Control row: an empty METH_O method in the same loop, which
shows what the machine and the interpreter add (on a build with the global lock, most of p99.99
under two threads is the hand-over of that lock).

  python benchmarks/latency.py --plot docs/images/latency.png
  python benchmarks/latency.py --peers none
  python benchmarks/latency.py --quick

Garbage collection is on, as in a service. A peer that does not finish within its budget is shown
as far as it got, and the picture says how far that was.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import random
import sys
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers as peers_module
from harness import (
    Progress,
    add_peer_option,
    ask,
    emit,
    environment,
    make_parser,
    print_environment,
    print_table,
    tables_shown,
)

SHARES = (0.5, 0.99, 0.9999)
CHUNK = 10_000


def callable_of(name: str, users: int) -> Callable[[Any], object]:
    """The call to be timed."""
    if name == "control":
        empty: Callable[[Any], object] = importlib.import_module("nanolimit._core").Control().empty
        return empty
    if name == "nanolimit":
        nanolimit = importlib.import_module("nanolimit")
        allow: Callable[[Any], object] = nanolimit.RateLimiter(5, per=3600, max_keys=users).allow
        return allow
    return peers_module.subject(name, 5, 3600).call


def timed_calls(call: Callable[[Any], object], keys: list[str], deadline: float) -> array[int]:
    """Nanoseconds of each call, until the keys or the time are used up."""
    clock = time.perf_counter_ns
    times = array("q", bytes(8 * len(keys)))
    done = 0
    for low in range(0, len(keys), CHUNK):
        if time.monotonic() > deadline:
            break
        for key in keys[low : low + CHUNK]:
            start = clock()
            call(key)
            times[done] = clock() - start
            done += 1
    return times[:done]


def percentiles(times: list[int]) -> list[float]:
    """The durations at SHARES, nearest rank."""
    times.sort()
    return [float(times[max(0, math.ceil(share * len(times)) - 1)]) for share in SHARES]


def under_threads(name: str, users: int, calls: int, budget_s: float, seed: int) -> dict[str, Any]:
    """Worker: two threads, random users, all of them known."""
    call = callable_of(name, users)
    names = [f"user:{number}" for number in range(users)]
    timed_calls(call, names, time.monotonic() + budget_s)
    barrier = threading.Barrier(2)
    kept: list[list[int]] = []

    def run(thread: int) -> None:
        keys = random.Random(seed * 1000 + thread).choices(names, k=calls)
        barrier.wait()
        kept.append(list(timed_calls(call, keys, time.monotonic() + budget_s)))

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = kept[0] + kept[1]
    return {"times": lambda _: (len(times), percentiles(times))}


def growing(name: str, users: int, budget_s: float) -> dict[str, Any]:
    """Worker: one thread, each user for the first time."""
    call = callable_of(name, users)
    names = [f"user:{number}" for number in range(users)]
    times = list(timed_calls(call, names, time.monotonic() + budget_s))
    return {"times": lambda _: (len(times), percentiles(times))}


def draw(panels: list[tuple[str, dict[str, tuple[str, list[float]]]]], path: Path) -> None:
    """One panel a situation, one line a subject: p50, p99, p99.99 on a log scale."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(1, len(panels), figsize=(12, 5), sharex=True)
    markers = ("o", "s", "D")
    for axis, (title, rows) in zip(axes, panels, strict=True):
        labels = []
        for place, (name, (note, values)) in enumerate(reversed(rows.items())):
            colour = {"nanolimit": "#c0392b", "control": "#7f8c8d"}.get(name, "#2c5f8a")
            axis.plot(values, [place] * 3, color=colour, linewidth=1.5, zorder=1)
            for value, marker in zip(values, markers, strict=True):
                axis.scatter([value], [place], color=colour, marker=marker, s=36, zorder=2)
            labels.append(f"{name}\n({note})" if note else name)
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
        axis.set_xscale("log")
        axis.set_xlabel("one call (log scale)")
        ticks = [100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8]
        axis.set_xticks(ticks, ["100 ns", "1 us", "10 us", "100 us", "1 ms", "10 ms", "100 ms"],
                        fontsize=8)  # fmt: skip
        axis.grid(axis="x", alpha=0.3)
        axis.set_title(title, fontsize=10)
    handles = [
        pyplot.Line2D([], [], color="#555555", marker=marker, linestyle="", label=label)
        for marker, label in zip(markers, ("p50", "p99", "p99.99"), strict=True)
    ]
    figure.legend(handles=handles, loc="lower center", ncol=3, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = make_parser(__doc__ or "")
    add_peer_option(parser)
    parser.add_argument("--users", type=int, default=1_000_000, help="users of the growing part")
    parser.add_argument("--calls", type=int, default=500_000, help="calls of each of two threads")
    parser.add_argument("--budget", type=float, default=30.0, metavar="SECONDS",
                        help="how long one subject may take in one situation")  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the picture here")
    options = parser.parse_args()
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        print("--plot needs matplotlib: pip install matplotlib", file=sys.stderr)
        return 2
    try:
        chosen, missing = peers_module.choose(options.peers)
    except ValueError as error:
        parser.error(str(error))
    users, known, calls, budget_s = options.users, 100_000, options.calls, options.budget
    if options.quick:
        users, known, calls, budget_s = min(users, 20_000), 5_000, 20_000, 5.0
    facts = environment()
    names = ["control", "nanolimit", *(peer.name for peer in chosen)]
    progress = Progress(2 * len(names), "latency")
    panels: list[tuple[str, dict[str, tuple[str, list[float]]]]] = []
    tables: list[tuple[str, list[list[object]]]] = []
    for title, setup, arguments, full in (
        (f"Two threads, {known:,} users at random", under_threads,
         (known, calls, budget_s, options.seed), 2 * calls),
        (f"One thread, growing to {users:,} users", growing, (users, budget_s), users),
    ):  # fmt: skip
        drawn: dict[str, tuple[str, list[float]]] = {}
        rows: list[list[object]] = []
        for name in names:
            progress.note(name)
            worker: Any = setup
            outcome, why = ask(name, worker, name, *arguments, budget_s=3 * budget_s + 60)
            progress.step(name)
            if outcome is None:
                if name == "nanolimit":
                    print(f"nanolimit: {why}", file=sys.stderr)
                    return 1
                rows.append([name, None, None, None, None, why])
                continue
            count, values = outcome
            short = f"stopped at {count:,} of {full:,}" if count < full else ""
            drawn[name] = (short, values)
            rows.append([name, count, *(value / 1e3 for value in values), short])
        rows += [[name, None, None, None, None, why] for name, why in missing.items()]
        panels.append((title, drawn))
        tables.append((title, rows))
    progress.done()
    if options.plot:
        draw(panels, options.plot)
    with tables_shown(options.json):
        if options.quick:
            print("--quick: these figures show that it runs, nothing else\n")
        print_environment(facts)
        for title, rows in tables:
            print_table(f"{title} (us a call, two clock reads included)",
                        ("subject", "calls", "p50", "p99", "p99.99", "note"), rows)  # fmt: skip
        if options.plot:
            print(f"picture: {options.plot}")
    emit(options.json, facts, {"latency": dict(tables), "quick": options.quick})
    return 0


if __name__ == "__main__":
    sys.exit(main())
