"""A process that hammers a shared table, counts what came back, and can be scraped. A program.

    python hammer.py TABLE COUNTS INDEX TRACK_TOP

It prints the port of its metrics. Each line that it reads sends it to work, until the first word
of the file COUNTS is not 0; then it prints what it stopped at. At the end of its input it ends.
The word INDEX of that file is how many checks have returned to it: the file outlives it.
"""

from __future__ import annotations

import mmap
import random
import sys
from pathlib import Path
from typing import Any

WORDS = 512
KEYS = tuple(f"user:{number}" for number in range(8))
# So that allowing and denying both go on for as long as it does.
LIMIT, PER_S = 2_000, 0.02


class Counts:
    """Numbers that processes share and that outlive them: one word each, in a file."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8 * WORDS))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8 * WORDS)
        self.words = memoryview(self._map).cast("Q")

    def returned(self) -> int:
        return sum(self.words[1:])


def main(table: str, path: str, place: str, track_top: str) -> None:
    from prometheus_client import CollectorRegistry, start_http_server

    from nanolimit import RateLimiter
    from nanolimit.metrics import prometheus

    words, index = Counts(Path(path)).words, int(place)
    options: dict[str, Any] = {"track_top": int(track_top)} if int(track_top) else {}
    limiter = RateLimiter(LIMIT, per=PER_S, shared=table, max_keys=1_000, **options)
    registry = CollectorRegistry()
    prometheus.register(limiter, registry=registry)
    server, _ = start_http_server(0, "127.0.0.1", registry)
    print(server.server_port, flush=True)
    keys = [random.choice(KEYS) for _ in range(1_000)]
    for _ in sys.stdin:
        while not words[0]:
            for key in keys:
                limiter.allow(key)
                words[index] += 1
                limiter.check(key)
                words[index] += 1
        print(words[index], flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
