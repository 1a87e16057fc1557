"""How does each algorithm treat the same requests? A picture, made by real runs.

A user may make 10 requests a minute. He makes one at 0:00, tries every second from 0:40 to 1:20,
across the edge of a window that began with that first one, and again from 3:00 to 5:00. The picture
shows which of his requests pass, and how many passed within the minute that ends there: where the
line goes above 10, a window of one minute held more than the limit.

  python benchmarks/algorithms.py                                     numbers only
  python benchmarks/algorithms.py --plot docs/images/algorithms.png

Nothing is timed: the clock is set by the script, so every run gives the same.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from harness import emit, environment, make_parser, print_table, tables_shown

from nanolimit import ManualClock, RateLimiter

ALGORITHMS = ("sliding-log", "gcra", "fixed-window", "sliding-counter")
LIMIT, PER_S = 10, 60
COLOURS = ("#3366aa", "#cc6633", "#558833", "#884488")


def requests() -> list[int]:
    """The seconds at which the user asks."""
    return [0, *range(40, 80), *range(180, 300)]


def passed(algorithm: Any) -> list[int]:
    """The seconds of the requests that were allowed."""
    clock = ManualClock()
    limiter = RateLimiter(LIMIT, per=PER_S, algorithm=algorithm, clock=clock)
    allowed = []
    for second in requests():
        clock.advance(second - clock())
        if limiter.allow("user"):
            allowed.append(second)
    return allowed


def within(allowed: list[int], second: int) -> int:
    """How many passed in the window that ends with this second."""
    return sum(second - PER_S < when <= second for when in allowed)


def draw(runs: dict[str, list[int]], path: Path) -> None:
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(len(runs), 1, figsize=(8, 7.5), sharex=True, sharey=True)
    for axis, colour, (algorithm, allowed) in zip(axes, COLOURS, runs.items(), strict=True):
        denied = sorted(set(requests()) - set(allowed))
        seconds = range(301)
        axis.step(seconds, [within(allowed, second) for second in seconds], where="post",
                  color=colour)  # fmt: skip
        axis.axhline(LIMIT, color="#888888", linewidth=0.8, linestyle="--")
        axis.plot(denied, [-2] * len(denied), "|", color="#bbbbbb", markersize=6)
        axis.plot(allowed, [-2] * len(allowed), "|", color=colour, markersize=9)
        axis.set_title(f"{algorithm}: {len(allowed)} passed", fontsize=10, loc="left")
        axis.set_ylim(-4, 2 * LIMIT)
        axis.set_yticks([0, LIMIT, 2 * LIMIT])
        axis.grid(axis="x", alpha=0.3)
    axes[-1].set_xticks(range(0, 301, 60), [f"{minute}:00" for minute in range(6)])
    figure.supxlabel("ticks: requests (coloured: passed); line: passed in the minute before")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--plot", type=Path, help="draw the picture into this file (.png)")
    options = parser.parse_args()
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        print("--plot needs matplotlib: pip install matplotlib", file=sys.stderr)
        return 2
    runs = {algorithm: passed(algorithm) for algorithm in ALGORITHMS}
    rows = [
        [algorithm, len(allowed), max(within(allowed, second) for second in range(301))]
        for algorithm, allowed in runs.items()
    ]
    with tables_shown(options.json):
        print_table(f"{len(requests())} requests, {LIMIT} per {PER_S} s",
                    ("algorithm", "passed", "most in one window"), rows)  # fmt: skip
    emit(options.json, environment(), {"runs": runs})
    if options.plot:
        draw(runs, options.plot)
        print(f"wrote {options.plot}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
