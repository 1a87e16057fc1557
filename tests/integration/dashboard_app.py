"""A dashboard in a server of its own, and traffic on the table that it shows, for its tests.

python dashboard_app.py serve FD             uvicorn on an inherited socket
python dashboard_app.py work TABLE SEED      checks until stdin ends, then prints what it counted
"""

from __future__ import annotations

import os
import random
import sys
import threading
from typing import Any

from nanolimit import RateLimiter, dashboard

LIMIT = "20/minute"
NAME = "api"
#: Keys that would do harm on a page that made HTML of them, or that can't be read.
ODD_KEYS: list[Any] = [
    "<script>document.title='pwned';window.pwned=1</script>",
    "<img src=x onerror='window.pwned=1'>",
    "\"'><svg onload=window.pwned=1>&lt;",
    "a\nb\u2028c\u202ed",
    "1",
    1,
    "x" * 200,
]


def make(name: str = NAME) -> RateLimiter:
    return RateLimiter(LIMIT, shared=name, track_top=50, on_mismatch="adopt")


def serve(fd: int) -> None:
    import uvicorn

    second = RateLimiter("5/minute; 20/hour", name="login <b>", track_top=10)
    app = dashboard.app(make(), second, token=os.environ.get("TOKEN") or None)
    uvicorn.run(app, fd=fd, access_log=False, log_level="warning")


def work(table: str, seed: int) -> None:
    """Check at random until told to end; then say what was allowed and denied."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    dice = random.Random(seed)
    users = [f"user:{number}" for number in range(500)]
    counted = [0, 0]
    with make(table) as limiter:
        for key in ODD_KEYS:
            for _ in range(30):
                counted[not limiter.allow(key)] += 1
        print("started", flush=True)
        while not ended.wait(0.02):
            for _ in range(10):
                counted[not limiter.allow(dice.choice(users))] += 1
            counted[not limiter.allow("203.0.113.77")] += 1
    print(*counted, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        work(sys.argv[2], int(sys.argv[3]))
