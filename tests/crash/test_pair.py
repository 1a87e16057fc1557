"""Workers that count in several tables at once are killed: nothing jams, nothing is lost.

A worker owns the slots of several quotas and limiters when it dies, has counted in some and not in
others, or is in the middle of giving units back. Each writes what it was told into memory that
outlives it; at the end every table must hold that, give or take the one call of each of the dead.
"""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import time
from mmap import mmap
from pathlib import Path

from doors import verify
from nanolimit import RateLimiter
from sharing import memory_folder, needs_shared

pytestmark = needs_shared

DEATHS = 40
WORKERS = 3
KEYS = ("a", "b")
MOST = 3  # units of one call
PAIR = ["2000/day", "2040/week"]
TALLY = struct.Struct("=qq")  # units of each key that the caller knows of

WORKER = """
import random, sys
from mmap import mmap
from nanolimit import RateLimiter, check_all

folder, place, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dice = random.Random(seed)
pair = RateLimiter(["2000/day", "2040/week"], shared=folder + "/pair", max_keys=50, typical=2000)
one = RateLimiter("2030/day", shared=folder + "/one", max_keys=50, typical=2000)
with open(folder + "/tally", "r+b") as file:
    memory = mmap(file.fileno(), 0)
tally = memoryview(memory).cast("q")  # each number by one store: a pack_into fills with zeros first
counted = [0, 0]
print("ready", flush=True)
held = []
while True:
    at, cost = dice.randrange(2), dice.randint(1, 3)
    key = "ab"[at]
    if dice.random() < 0.002:  # seldom, for these units stay
        if check_all([(one, key, cost), (pair, key, cost)]):
            counted[at] += cost
    elif len(held) < 8 and dice.random() < 0.6:
        first, second = pair.reserve(key, cost), one.reserve(key, cost)
        if first.ok and second.ok:
            counted[at] += cost
            held.append((at, first, second))
        else:
            first.cancel(), second.cancel()
    elif held:
        at, first, second = held.pop(dice.randrange(len(held)))
        rest = dice.randint(0, first.cost) if dice.random() < 0.02 else 0
        first.commit(rest), second.commit(rest)
        counted[at] -= first.cost - rest
    tally[2 * place], tally[2 * place + 1] = counted
"""


def test_killed_between_two_tables() -> None:
    dice = random.Random(4)
    with memory_folder() as folder:
        places = DEATHS + WORKERS
        (folder / "tally").write_bytes(bytes(TALLY.size * places))
        options = {"max_keys": 50, "typical": 2_000}
        pair = RateLimiter(PAIR, shared=folder / "pair", **options)  # type: ignore[arg-type]
        one = RateLimiter("2030/day", shared=folder / "one", **options)  # type: ignore[arg-type]
        crew: list[subprocess.Popen[str]] = []

        def hire(place: int) -> None:
            command = [sys.executable, "-c", WORKER, str(folder), str(place), str(place)]
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            crew.append(worker)
            assert worker.stdout is not None
            with worker.stdout as told:
                assert told.readline() == "ready\n"

        try:
            for place in range(WORKERS):
                hire(place)
            for death in range(DEATHS):
                time.sleep(dice.uniform(0.002, 0.03))
                victim = crew.pop(dice.randrange(len(crew)))
                assert victim.poll() is None, "it ended by itself"
                victim.kill()
                victim.wait()
                hire(WORKERS + death)
                before = time.monotonic()
                for key in KEYS:
                    pair.reserve(key).cancel()  # takes over what the dead one held
                    one.reserve(key).cancel()
                assert time.monotonic() - before < 5
        finally:
            for worker in crew:
                worker.kill()
                worker.wait()
        compare(folder, pair, one, places)


def compare(folder: Path, pair: RateLimiter, one: RateLimiter, places: int) -> None:
    slack = (DEATHS + WORKERS) * MOST  # a call of each, and as many were killed as were hired
    told = [0, 0]
    with (folder / "tally").open("rb+") as file, mmap(file.fileno(), 0) as memory:
        for place in range(places):
            for at, units in enumerate(TALLY.unpack_from(memory, TALLY.size * place)):
                told[at] += units
    for limiter in (pair, one):
        verify(limiter)
        assert limiter.stats().stalled == 0
    for at, key in enumerate(KEYS):
        day, week = (limiter.peek(key, 0) for limiter in pair._engine.limiters)  # type: ignore[union-attr]
        used = [day.limit - day.remaining, week.limit - week.remaining]
        decision = one.peek(key, 0)
        used.append(decision.limit - decision.remaining)
        for units in used:
            assert 0 <= units <= 2_040
            assert abs(units - told[at]) <= slack, (key, used, told[at])
    assert sum(told) > slack, "there is nothing that could have been lost"
