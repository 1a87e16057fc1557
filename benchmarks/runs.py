"""What does one user's log take, where the limit is large? With and without `max_log`.

The user sends requests at an even pace, one unit each, until the window holds as many as it says.
Counted from `stats().log_bytes`: spans of 16 KiB. No timing; a second's run.

  python benchmarks/runs.py
"""

from __future__ import annotations

import sys

import nanolimit

PER_S = 86_400
LIMIT = 1_000_000
REQUESTS = (1, 100, 1_000, 10_000, 100_000, 1_000_000)
MAX_LOGS = (None, 10_000, 1_000)


def log_bytes(requests: int, max_log: int | None) -> int:
    """Bytes of the log of one user who sent so many requests within a day."""
    clock = nanolimit.ManualClock()
    limiter = nanolimit.RateLimiter(LIMIT, per=PER_S, clock=clock, max_log=max_log)
    apart = PER_S / requests
    for _ in range(requests):
        assert limiter.allow("user")
        clock.advance(apart)
    clock.advance(-apart)
    return limiter.stats().log_bytes


def main() -> int:
    names = ["no max_log", *(f"max_log={most:,}" for most in MAX_LOGS if most)]
    print(f"bytes of one user's log, of {LIMIT:,} a day")
    print(f"{'requests':>10}" + "".join(f"{name:>16}" for name in names))
    for requests in REQUESTS:
        row = "".join(f"{log_bytes(requests, max_log):>16,}" for max_log in MAX_LOGS)
        print(f"{requests:>10,}{row}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
