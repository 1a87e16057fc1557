"""Does a shared table survive that its processes are killed, at any moment, ten thousand times?

Worker processes hammer one table while they are killed with SIGKILL and replaced. Each keeps a
journal in memory that outlives it: what it was about to ask, and what it was told. After each round
the survivors stop, and the table must agree with the journals:

* no deadlock: every survivor, and a process that comes anew, answers within --patience;
* no over-admission: no window holds more acknowledged units than the limit;
* no wrong denial: nobody is turned away while all that may be in the log leaves room;
* nothing lost: what was acknowledged is in the log, and in the counters of `stats`;
* nothing made up: what is in the log and was not acknowledged, a killed thread had under way;
* no duplicate or unreachable entry, and no leak: the core's own `_verify` walks everything; slots
  in nobody's hand are at most one for each thread killed (192 if it was in evict or clear); and
  an emptied table takes as many keys and stamps as one that was just made.

  python benchmarks/kill.py --deaths 10000
  python benchmarks/kill.py --deaths 10000 --points
  python benchmarks/kill.py --quick

With --points the extension is built, in a temporary folder, with the points of core/point.h in it.
Workers then die at those: inserting, accepting, purging, growing, freeing, and repairing what
others left. Every point must have killed at least once. Without it, deaths come at random.

When is it certain that a window held too much? Each accept was decided between two readings of the
same clock, before the call and after it. A stamp is no earlier than the first and, tick aside, no
later than the second. So units whose calls all began and ended within one window are over the limit
only if the limiter was wrong: no false alarm, however long a worker was kept from the processor.
Denials are judged by the same two readings.

Exit code 1: something was wrong; it is printed with the seed. A seed repeats the choices of every
worker, not the moments at which they die.
"""

from __future__ import annotations

import dataclasses
import heapq
import importlib.util
import mmap
import os
import pickle
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

from harness import (
    HERE,
    Progress,
    emit,
    environment,
    make_parser,
    print_environment,
    print_table,
    tables_shown,
)

LANES, RECORDS = 200, 20_000  # threads in a round, and what each can note
# A window in which nothing leaves, so that counts must agree exactly. The clock's start is not in
# it: a stamp that was never written is 0, and must not pass for a live one.
LONG_S = max(60.0, min(86_400.0, time.clock_gettime(time.CLOCK_BOOTTIME) / 4))
FOREVER_NS = 1 << 62
WALK_SLOTS = 192  # what evict and clear may have in hand at a time
WORST_SHOWN = 10
ANSWER_S = 60.0  # how long the checks of a round may take, which do much more than answer


# --- What is done to the table --------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Scenario:
    """A table and what its workers ask of it: how often each verb, in parts of the sum."""

    name: str
    limit: int
    per_s: float
    max_keys: int
    keys: int  # that there are; workers draw from `width` of them, which move on during a round
    width: int
    verbs: dict[str, int]
    on_full: str = "deny"
    typical: int | None = None
    most_cost: int = 3
    forgets: bool = False  # live keys may lose their logs to others: counts say nothing
    track_top: int = 0

    @property
    def is_long(self) -> bool:
        return self.per_s == LONG_S

    @property
    def may_fill(self) -> bool:
        """Whether a denial may be for want of a slot."""
        return self.keys >= self.max_keys

    @property
    def has_chunks(self) -> bool:
        return self.limit > 6

    def limiter(self, path: str, **changes: Any) -> Any:
        """Attach to the table, or make it. Without a path: one without a name."""
        from nanolimit import RateLimiter

        options: dict[str, Any] = {
            "max_keys": self.max_keys, "on_full": self.on_full, "typical": self.typical,
            # A lock that is never let go must show as a worker that never comes back.
            "on_stall": "wait", "shared": path or True, "track_top": self.track_top,
        }  # fmt: skip
        return RateLimiter(self.limit, per=self.per_s, **{**options, **changes})


PLAIN = {"allow": 6, "cost": 3, "check": 1, "many": 4, "repeat": 1, "peek": 1, "evict": 1}
SCENARIOS = (
    Scenario("few stamps", 5, LONG_S, 12_000, 11_500, 400, PLAIN),
    Scenario("chunks", 100, LONG_S, 512, 480, 24, PLAIN, typical=100, most_cost=30, track_top=5),
    Scenario("expiry", 5, 0.002, 128, 20, 20, PLAIN, most_cost=4, track_top=7),
    Scenario("expiry, chunks", 100, 0.004, 128, 20, 20, PLAIN, most_cost=30),
    Scenario("slots reused", 5, 0.02, 64, 500, 500, {**PLAIN, "reset": 2}, track_top=9),
    Scenario("slots reused, hand", 5, 0.01, 2_048, 6_000, 2_000, PLAIN),
    Scenario("slots taken from live keys", 5, 0.05, 64, 1_000, 1_000, PLAIN, "evict", forgets=True),
    Scenario("forgetting", 20, LONG_S, 512, 300, 300, {**PLAIN, "reset": 6, "clear": 1}),
    Scenario("one key, forgotten", 5, LONG_S, 64, 2, 2, {"allow": 8, "check": 2, "reset": 8}),
)

# Points at which only those come who inherit from the dead, and points that make them come there.
RARE = ("repair_began", "repair_entry", "repair_done", "orphan_claimed")
CAUSES = ("insert_tag", "free_fingerprint", "slab_taken", "free_removed")

VERBS = ("", "allow", "cost", "check", "many", "repeat", "peek", "evict", "reset", "clear",
         "denied")  # fmt: skip
CODES = {name: code for code, name in enumerate(VERBS)}
COUNTING = {CODES[name] for name in ("allow", "cost", "check", "many", "repeat")}
BATCHES = {CODES["many"], CODES["repeat"]}
WALKING = {CODES["evict"], CODES["clear"]}

Call = tuple[int, int, int]  # began and ended, in ns, and the cost


def clock_ns() -> int:
    """The clock of shared tables."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


# --- The journal ----------------------------------------------------------------------------------
# One board a round, which all its processes map: a few words, then a lane for each thread. A lane
# is its cursor and records; records below the cursor were acknowledged, the one at the cursor is
# under way if its verb is not 0. One store of the cursor acknowledges: a death leaves no doubt.
STOP, FRONT, BOARD_WORDS = 0, 1, 8
CURSOR, LONGEST_NS, LANE_WORDS = 0, 1, 8
VERB, KEY, COST, COUNT, BEGAN, ENDED, RECORD_WORDS = 0, 1, 2, 3, 4, 5, 6


@dataclasses.dataclass(frozen=True)
class Record:
    """One question: of `count` keys from `key` on (or `count` times of `key`)."""

    verb: int
    key: int
    cost: int
    count: int
    began_ns: int
    ended_ns: int

    def each_key(self) -> Iterable[int]:
        if self.verb == CODES["many"]:
            return range(self.key, self.key + self.count)
        return [self.key] * self.count


class Board:
    """The shared memory of a round."""

    def __init__(self, lanes: int, records: int) -> None:
        self.lanes, self.records = lanes, records
        self._lane_words = LANE_WORDS + RECORD_WORDS * records
        self._map = mmap.mmap(-1, 8 * (BOARD_WORDS + lanes * self._lane_words))
        self.words = memoryview(self._map).cast("q")

    def lane(self, number: int) -> int:
        """The place of a lane's first word."""
        return BOARD_WORDS + number * self._lane_words

    def longest_ns(self, number: int) -> int:
        return self.words[self.lane(number) + LONGEST_NS]

    def acknowledged(self, number: int) -> Iterator[Record]:
        lane = self.lane(number)
        for nth in range(self.words[lane + CURSOR]):
            yield self._record(lane + LANE_WORDS + RECORD_WORDS * nth)

    def under_way(self, number: int) -> Record | None:
        lane = self.lane(number)
        record = self._record(lane + LANE_WORDS + RECORD_WORDS * self.words[lane + CURSOR])
        return record if record.verb else None

    def close(self) -> None:
        self.words.release()
        self._map.close()

    def _record(self, at: int) -> Record:
        return Record(*self.words[at : at + RECORD_WORDS])


# --- Workers --------------------------------------------------------------------------------------
def hammer(board: Board, lane: int, limiter: Any, scenario: Scenario, dice: random.Random) -> None:
    """Ask until told to stop, or until the lane is full. Every call stands in the journal."""
    words, at = board.words, board.lane(lane)
    verbs = dice.choices(list(scenario.verbs), list(scenario.verbs.values()), k=997)
    allow, check, allow_many = limiter.allow, limiter.check, limiter.allow_many
    width, keys, most = scenario.width, scenario.keys, scenario.most_cost
    clock, below = clock_ns, dice.randrange
    room = board.records - 200
    cursor = turn = longest = 0
    while cursor < room and not words[STOP]:
        verb = verbs[turn % 997]
        turn += 1
        key = words[FRONT] + below(width)
        cost = count = 1
        if verb == "cost":
            cost = 1 + below(most)
        elif verb == "many":
            count = min(1 << below(7), keys - key)
            cost = 1 + below(2)
            batch: Any = range(key, key + count)
            if turn & 1:
                batch = array("q", batch)
        elif verb == "repeat":
            count = 1 + below(12)
            batch = [key] * count
        record = at + LANE_WORDS + RECORD_WORDS * cursor
        words[record + KEY] = key
        words[record + COST] = cost
        words[record + COUNT] = count
        words[record + BEGAN] = began = clock()
        words[record + VERB] = CODES[verb]
        kept = 0  # records that the answer is worth
        if verb == "allow":
            kept = allow(key)
        elif verb == "cost":
            kept = allow(key, cost)
        elif verb == "check":
            kept = bool(check(key))  # (a bool is 1 or 0)
        elif verb in ("many", "repeat"):
            kept = note_batch(words, record, allow_many(batch, cost), verb == "many")
        elif verb == "peek":
            remaining = limiter.peek(key).remaining
            if not 0 <= remaining <= scenario.limit:
                raise AssertionError(f"peek says that {remaining} of {scenario.limit} remain")
        elif verb == "evict":
            limiter.evict()
        elif verb == "reset":
            limiter.reset(key)
            kept = 1
        elif verb == "clear":
            limiter.clear()
            kept = 1
        words[record + ENDED] = ended = clock()
        if ended - began > longest:
            longest = words[at + LONGEST_NS] = ended - began
        if not kept and not turn & 7 and verb in ("allow", "cost", "check"):
            words[record + VERB] = CODES["denied"]  # one in eight is kept in mind
            kept = 1
        if kept:
            cursor += kept
            words[at + CURSOR] = cursor
        else:
            words[record + VERB] = 0


def note_batch(words: memoryview, record: int, answers: Iterable[bool], each: bool) -> int:
    """Write what a batch allowed behind it, as records of one key each; how many with its own."""
    ended = clock_ns()
    key, cost, began = (words[record + field] for field in (KEY, COST, BEGAN))
    kept = 0
    for nth, told in enumerate(answers):
        if told:
            kept += 1
            own = record + RECORD_WORDS * kept
            words[own + KEY] = key + nth if each else key
            words[own + COST] = cost
            words[own + COUNT] = 1
            words[own + BEGAN] = began
            words[own + ENDED] = ended
            words[own + VERB] = CODES["cost"]
    return kept and kept + 1


def live(
    board: Board, lanes: list[int], scenario: Scenario, path: str, inherited: Any,
    point: str | None, seed: int, complaints: Path,
) -> NoReturn:  # fmt: skip
    """The life of a forked worker, if nobody ends it."""
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sees to it
        os.nice(5)  # that whoever kills is not kept waiting
        dice = random.Random(seed)
        if point:
            from nanolimit import _core

            _core._kill_at(point, 1 if point in RARE else 1 + int(dice.expovariate(0.5)))
        limiter = inherited if inherited is not None else scenario.limiter(path)
        crew = [
            threading.Thread(
                target=guarded,
                args=(complaints, hammer, board, lane, limiter, scenario, random.Random(lane)),
            )
            for lane in lanes[1:]
        ]
        for thread in crew:
            thread.start()
        guarded(complaints, hammer, board, lanes[0], limiter, scenario, dice)
        for thread in crew:
            thread.join()
        del limiter
        status = 0
    except BaseException:
        complaints.write_text(traceback.format_exc())
    finally:
        os._exit(status)


def guarded(complaints: Path, work: Callable[..., None], *arguments: Any) -> None:
    """Call; an exception ends the process, with its traceback left behind."""
    try:
        work(*arguments)
    except BaseException:
        complaints.write_text(traceback.format_exc())
        os._exit(1)


@dataclasses.dataclass
class Life:
    """One worker, as its parent knows it."""

    pid: int
    lanes: list[int]
    point: str | None
    complaints: Path
    born_s: float
    was_shot: bool = False  # by the parent
    killed_at_ns: int = 0  # not before its death; 0: it was not killed


@dataclasses.dataclass
class Kept:
    """What a table that was emptied and is used again still has from before."""

    allowed: int = 0
    orphans: int = 0


# --- A round --------------------------------------------------------------------------------------
@dataclasses.dataclass
class Tally:
    """What all rounds together come to."""

    deaths: int = 0
    rounds: Counter[str] = dataclasses.field(default_factory=Counter)
    by_scenario: Counter[str] = dataclasses.field(default_factory=Counter)
    by_point: Counter[str] = dataclasses.field(default_factory=Counter)
    by_verb: Counter[str] = dataclasses.field(default_factory=Counter)
    acknowledged: Counter[str] = dataclasses.field(default_factory=Counter)
    stored_only: Counter[str] = dataclasses.field(default_factory=Counter)
    orphans: Counter[str] = dataclasses.field(default_factory=Counter)
    kept: dict[str, Kept] = dataclasses.field(default_factory=dict)
    longest_ns: Counter[str] = dataclasses.field(default_factory=Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)


class Round:
    """Workers at one new table, until the time is over; then the checks."""

    def __init__(self, scenario: Scenario, options: Any, points: list[str], seed: int,
                 folder: Path, tally: Tally) -> None:  # fmt: skip
        self.scenario, self.options, self.tally = scenario, options, tally
        self.dice = random.Random(seed)
        self.points = [point for point in points if fits(scenario, point)]
        if (
            points and self.dice.random() < 0.3
        ):  # some die so that others have to mend, and die of it
            self.points = [point for point in self.points if point in CAUSES or point in RARE]
        self.folder = folder
        # Most tables are used again, so that they see thousands of deaths; some are made anew.
        self.path = str(folder / f"table-{SCENARIOS.index(scenario)}")
        self.kept = tally.kept.pop(scenario.name, Kept())
        self.board = Board(LANES, RECORDS)
        self.lanes_used = 0
        self.at_work: dict[int, Life] = {}
        self.gone: list[Life] = []
        self.wrong: list[str] = []
        self.found: dict[str, Any] | None = None
        self.began_ns = clock_ns()
        # Some workers come to a table that their parent has open, as under a preloading server.
        self.inherited = scenario.limiter(self.path) if self.dice.random() < 0.5 else None

    def run(self, deaths: int) -> None:
        """Play the round, with at most so many deaths, and check. Interrupted, it leaves nobody."""
        try:
            self.play(deaths)
        except BaseException:
            for pid in self.at_work:
                os.kill(pid, signal.SIGKILL)
            raise

    def play(self, deaths: int) -> None:
        words, scenario, dice = self.board.words, self.scenario, self.dice
        before = self.tally.deaths
        length_s = self.options.seconds_per_round
        pause_s = 0.025 if self.points else 0.004
        began = time.monotonic()
        next_shot_s = began + dice.expovariate(1 / pause_s)
        while (now := time.monotonic()) < began + length_s and self.tally.deaths < before + deaths:
            moved = (now - began) / length_s * (scenario.keys - scenario.width)
            words[FRONT] = max(0, int(moved))
            while len(self.at_work) < self.options.workers and self.lanes_used + 2 <= LANES:
                self.start()
            if now >= next_shot_s:
                next_shot_s = now + dice.expovariate(1 / pause_s)
                # With points, those get a while in which to come to theirs.
                # Most of the others get to work before they are shot.
                rest_s = 0.01 * (dice.random() < 0.9)
                old = [life for life in self.at_work.values()
                       if now - life.born_s > (0.05 if life.point else rest_s)]  # fmt: skip
                if old:
                    victim = dice.choice(old)
                    victim.was_shot = True
                    os.kill(victim.pid, signal.SIGKILL)
            if not self.reap():
                time.sleep(0.0003)
            if self.lanes_used + 2 > LANES and not self.at_work:
                break
        words[STOP] = 1
        self.await_survivors()
        if not self.wrong:
            self.check()
        self.finish()

    def start(self) -> None:
        """Fork a worker, of one thread or two."""
        lanes = list(range(self.lanes_used, self.lanes_used + 1 + (self.dice.random() < 0.25)))
        self.lanes_used += len(lanes)
        point = None
        if self.points and self.dice.random() < 0.9:
            least = sorted(self.points, key=lambda name: self.tally.by_point[name])
            point = self.dice.choice(self.points if self.dice.random() < 0.5 else least[:6])
        seed = self.dice.getrandbits(48)
        inherited = self.inherited if self.dice.random() < 0.5 else None
        complaints = self.folder / f"complaint-{lanes[0]}"
        pid = os.fork()
        if not pid:
            live(self.board, lanes, self.scenario, self.path, inherited, point, seed, complaints)
        self.at_work[pid] = Life(pid, lanes, point, complaints, time.monotonic())

    def reap(self) -> bool:
        """Take note of one who ended. False: nobody did."""
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if not pid:
            return False
        life = self.at_work.pop(pid)
        self.gone.append(life)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            life.killed_at_ns = clock_ns()
            self.tally.deaths += 1
            self.tally.by_scenario[self.scenario.name] += 1
            if not life.was_shot and life.point:
                self.tally.by_point[life.point] += 1
            elif not life.was_shot:
                self.wrong.append("a worker was killed by somebody else (short of memory?)")
            else:
                self.tally.by_verb[self.caught_in(life.lanes[0])] += 1
        elif os.WIFSIGNALED(status):
            self.wrong.append(f"a worker died of signal {os.WTERMSIG(status)}: {self.doing(life)}")
        elif os.WEXITSTATUS(status):
            text = life.complaints.read_text() if life.complaints.exists() else "(no traceback)"
            self.wrong.append(f"a worker failed: {text.strip().splitlines()[-1]}\n{text}")
        return True

    def caught_in(self, lane: int) -> str:
        """Where the last of a thread was."""
        last = self.board.under_way(lane)
        if last:
            return VERBS[last.verb]
        return "between calls" if self.board.longest_ns(lane) else "before the first call"

    def doing(self, life: Life) -> str:
        """What a worker was about, in words."""
        said = []
        for lane in life.lanes:
            caught = self.board.under_way(lane)
            said.append(f"in {VERBS[caught.verb]}, key {caught.key}" if caught else "in no call")
        return f"process {life.pid} ({' and '.join(said)})"

    def await_survivors(self) -> None:
        """All who are left must come back soon."""
        deadline = time.monotonic() + self.options.patience
        while self.at_work and time.monotonic() < deadline:
            if not self.reap():
                time.sleep(0.0003)
        for life in list(self.at_work.values()):
            self.wrong.append(f"deadlock: {self.doing(life)} did not answer within "
                              f"{self.options.patience:g} s")  # fmt: skip
            os.kill(life.pid, signal.SIGKILL)
            life.was_shot = True
        while self.at_work:
            if not self.reap():
                time.sleep(0.001)

    def finish(self) -> None:
        """Add to the tally, and leave nothing."""
        tally, name = self.tally, self.scenario.name
        tally.rounds[name] += 1
        longest = max((self.board.longest_ns(lane) for lane in range(self.lanes_used)), default=0)
        tally.longest_ns[name] = max(tally.longest_ns[name], longest)
        for text in self.wrong[:WORST_SHOWN]:
            tally.wrong.append(f"{name}, round {sum(tally.rounds.values())}: {text}")
        if self.wrong and self.options.keep and Path(self.path).exists():
            shutil.copy(self.path, self.options.keep)
        self.inherited = None
        self.board.close()
        if self.found and not self.wrong and self.dice.random() < 0.9:
            tally.kept[name] = Kept(self.found["allowed_after"], self.found["orphans_after"])
        else:
            Path(self.path).unlink(missing_ok=True)
        for left in self.folder.glob("complaint-*"):
            left.unlink()

    # --- checks
    def check(self) -> None:
        """Compare the table with the journals."""
        scenario = self.scenario
        accepts: dict[int, list[Call]] = defaultdict(list)
        denials: dict[int, list[Call]] = defaultdict(list)
        lost: dict[int, list[Call]] = defaultdict(list)  # under way when they were killed
        forgot: dict[int, list[tuple[int, int]]] = defaultdict(list)
        forgot_all: list[tuple[int, int]] = []
        perhaps: Counter[int] = Counter()  # units that were under way
        asked = perhaps_asked = 0
        may_be_orphans = self.kept.orphans
        for life in self.gone:
            for lane in life.lanes:
                for record in self.board.acknowledged(lane):
                    span = (record.began_ns, record.ended_ns)
                    if record.verb == CODES["reset"]:
                        forgot[record.key].append(span)
                    elif record.verb == CODES["clear"]:
                        forgot_all.append(span)
                    elif record.verb == CODES["denied"]:
                        denials[record.key].append((*span, record.cost))
                    elif record.verb not in BATCHES:  # their answers follow one by one
                        accepts[record.key].append((*span, record.cost))
                        asked += 1
                last = self.board.under_way(lane) if life.killed_at_ns else None
                if life.killed_at_ns:
                    walked = last is not None and last.verb in WALKING
                    may_be_orphans += WALK_SLOTS if walked else 1
                if last is None:
                    continue
                if last.verb == CODES["reset"]:
                    forgot[last.key].append((last.began_ns, life.killed_at_ns))
                elif last.verb == CODES["clear"]:
                    forgot_all.append((last.began_ns, life.killed_at_ns))
                elif last.verb in COUNTING:
                    for key in last.each_key():
                        perhaps[key] += last.cost
                        perhaps_asked += 1
                        lost[key].append((last.began_ns, life.killed_at_ns, last.cost))
        self.tally.acknowledged[scenario.name] += asked
        if not scenario.forgets:
            self.check_windows(accepts, forgot, forgot_all)
        if not scenario.forgets and not scenario.may_fill:
            self.check_denials(denials, accepts, lost)
        found = self.found = self.ask_anew()
        if found is None:
            return
        allowed = found["allowed"] - self.kept.allowed
        if not asked <= allowed <= asked + perhaps_asked:
            self.wrong.append(f"stats: {allowed} allowed, {asked} acknowledged and "
                              f"{perhaps_asked} under way")  # fmt: skip
        if found["stalled"]:
            self.wrong.append(f"stats: {found['stalled']} stalled, and nobody was stopped")
        if found["orphans"] > may_be_orphans:
            self.wrong.append(f"{found['orphans']} slots in nobody's hand, the dead may have left "
                              f"{may_be_orphans}")  # fmt: skip
        self.tally.orphans[scenario.name] = max(self.tally.orphans[scenario.name], found["orphans"])
        if scenario.is_long:
            self.check_logs(found["logs"], accepts, perhaps, forgot, forgot_all)

    def check_denials(self, denials: dict[int, list[Call]], accepts: dict[int, list[Call]],
                      lost: dict[int, list[Call]]) -> None:  # fmt: skip
        """Whoever was denied would have made it too many, at some time during the call."""
        window_ns = round(self.scenario.per_s * 1e9) + tick_ns_of(self.scenario)
        for key, calls in denials.items():
            there = Units([*accepts.get(key, ()), *lost.get(key, ())])
            for began, ended, cost in calls:
                units = there.perhaps(began - window_ns, ended)
                if units + cost <= self.scenario.limit:
                    self.wrong.append(f"wrong denial: {cost} units of key {key}, which held at "
                                      f"most {units} of {self.scenario.limit}")  # fmt: skip

    def check_windows(self, accepts: dict[int, list[Call]],
                      forgot: dict[int, list[tuple[int, int]]],
                      forgot_all: list[tuple[int, int]]) -> None:  # fmt: skip
        """No window may hold more than the limit, unless the key was forgotten in between."""
        window_ns = round(self.scenario.per_s * 1e9) - tick_ns_of(self.scenario)
        for key, spans in accepts.items():
            for part in apart(spans, [*forgot.get(key, ()), *forgot_all]):
                units = most_units(part, window_ns)
                if units > self.scenario.limit:
                    self.wrong.append(f"over-admission: {units} units of key {key} within one "
                                      f"window, {self.scenario.limit} fit")  # fmt: skip

    def check_logs(self, logs: list[tuple[int, int, int]], accepts: dict[int, list[Call]],
                   perhaps: Counter[int], forgot: dict[int, list[tuple[int, int]]],
                   forgot_all: list[tuple[int, int]]) -> None:  # fmt: skip
        """In a window that never ends, the log holds what was acknowledged, and little more."""
        for key, (stored, oldest_ns, newest_ns) in enumerate(logs):
            cuts = [*forgot.get(key, ()), *forgot_all]
            since_ns = max((ended for _, ended in cuts), default=-1)
            kept = [call for call in accepts.get(key, ()) if call[0] > since_ns]
            units = sum(cost for _, _, cost in kept)
            if stored < units:
                self.wrong.append(f"lost: key {key} holds {stored} units, {units} were "
                                  f"acknowledged")  # fmt: skip
            if not cuts:
                self.tally.stored_only[self.scenario.name] += max(0, stored - units)
                if stored > units + perhaps[key]:
                    self.wrong.append(
                        f"made up: key {key} holds {stored} units, {units} were acknowledged and "
                        f"{perhaps[key]} under way"
                    )
            if stored and oldest_ns < self.began_ns:
                self.wrong.append(f"made up: key {key} holds a stamp from before the round")
            if kept and newest_ns < max(began for began, _, _ in kept):
                self.wrong.append(f"lost: key {key} does not hold its newest stamp")

    def ask_anew(self) -> dict[str, Any] | None:
        """What a new process finds in the table. None: it found a fault, or no answer."""
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.close(reader)
                os.set_blocking(writer, True)
                with os.fdopen(writer, "wb") as pipe:
                    examine(self.scenario, self.path, pipe)
            finally:
                os._exit(0)
        os.close(writer)
        answers: list[Any] = []
        with os.fdopen(reader, "rb") as pipe:
            for patience_s in (self.options.patience, ANSWER_S):
                if not select.select([pipe], [], [], patience_s)[0]:
                    self.wrong.append(f"deadlock: a new process did not answer within "
                                      f"{patience_s:g} s")  # fmt: skip
                    break
                try:
                    answers.append(pickle.load(pipe))
                except EOFError:
                    self.wrong.append("the process that examines the table died")
                    break
                if isinstance(answers[-1], str):
                    self.wrong.append(answers[-1])
                    break
        os.kill(pid, signal.SIGKILL)  # a zombie, unless it hangs
        os.waitpid(pid, 0)
        if len(answers) < 2 or isinstance(answers[1], str):
            return None
        return dict(answers[1])


def fits(scenario: Scenario, point: str) -> bool:
    """Whether a table of that kind can come to a point."""
    if point.startswith(("chunk_", "move_")):
        return scenario.has_chunks
    if point.startswith("top_"):
        return scenario.track_top > 0
    return True


def tick_ns_of(scenario: Scenario) -> int:
    """Not less than a tick of its window, of which there are more than 2^28."""
    return 1 + (round(scenario.per_s * 1e9) >> 28)


class Units:
    """The units of a key, to be summed by when they may have been in its log."""

    def __init__(self, calls: list[Call]) -> None:
        self._by_began, self._by_ended = sorted(calls), sorted(calls, key=lambda call: call[1])
        self._began = [call[0] for call in self._by_began]
        self._ended = [call[1] for call in self._by_ended]
        self._sum_began = [0, *accumulate(call[2] for call in self._by_began)]
        self._sum_ended = [0, *accumulate(call[2] for call in self._by_ended)]

    def perhaps(self, after_ns: int, before_ns: int) -> int:
        """Those of calls that ended after the one time and began before the other."""
        return (self._sum_began[bisect_left(self._began, before_ns)]
                - self._sum_ended[bisect_right(self._ended, after_ns)])  # fmt: skip


def apart(spans: list[Call], cuts: list[tuple[int, int]]) -> Iterator[list[Call]]:
    """The accepts between the times at which the key may have been forgotten, gap by gap."""
    spans = sorted(spans)
    starts = [span[0] for span in spans]
    edge = -1
    for began, ended in [*sorted(cuts), (FOREVER_NS, FOREVER_NS)]:
        between = spans[bisect_right(starts, edge) : bisect_left(starts, began)]
        part = [span for span in between if span[1] < began]
        if part:
            yield part
        edge = max(edge, ended)


def most_units(spans: list[Call], window_ns: int) -> int:
    """The most units whose calls all began and ended within less than a window."""
    most = units = 0
    within: list[tuple[int, int]] = []  # a heap: the call that ended last first
    for began, ended, cost in sorted(spans, reverse=True):
        heapq.heappush(within, (-ended, cost))
        units += cost
        while within and -within[0][0] >= began + window_ns:
            units -= heapq.heappop(within)[1]
        most = max(most, units)
    return most


def log_of(scenario: Scenario, limiter: Any, key: int) -> tuple[int, int, int]:
    """What a key holds: units, and when the oldest and the newest came, in ns, or a bit later."""
    decision = limiter.peek(key)
    left_ns = clock_ns() - round(scenario.per_s * 1e9) + tick_ns_of(scenario)
    oldest_ns, newest_ns = (
        left_ns + round(after_s * 1e9) for after_s in (decision.refill_after, decision.reset_after)
    )
    return scenario.limit - decision.remaining, oldest_ns, newest_ns


def examine(scenario: Scenario, path: str, pipe: Any) -> None:
    """Attach anew; answer; then look at all of it with nobody else there."""

    def say(what: Any) -> None:
        pickle.dump(what, pipe)
        pipe.flush()

    try:
        limiter = scenario.limiter(path, on_full="deny")
        logs = [log_of(scenario, limiter, key) for key in range(scenario.keys)]
        stats = limiter.stats()
        limiter.allow("anew")
        say(None)
        orphans = limiter.core._verify()
        # (log_bytes may be 16 KiB off for each death)
        if stats.keys > scenario.max_keys or stats.log_bytes > stats.log_capacity_bytes + (1 << 30):
            raise AssertionError(f"stats: {stats}, {stats.log_bytes} of {stats.log_capacity_bytes}")
        refill(scenario, limiter)
        say({
            "logs": logs, "allowed": stats.allowed, "stalled": stats.stalled, "orphans": orphans,
            "allowed_after": limiter.stats().allowed, "orphans_after": limiter.core._verify(),
        })  # fmt: skip
    except Exception as error:
        say(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")


def refill(scenario: Scenario, limiter: Any) -> None:
    """An emptied table takes as much as a new one."""
    fresh = array("q", range(10**9, 10**9 + scenario.max_keys))
    limiter.clear()
    refused = scenario.max_keys - sum(limiter.allow_many(fresh))
    if scenario.is_long and refused:
        raise AssertionError(f"leak: {refused} of {scenario.max_keys} keys find no slot")
    left = limiter.core._verify()
    if left and scenario.is_long:
        raise AssertionError(f"leak: {left} slots in nobody's hand although all are needed")
    limiter.clear()
    if len(limiter):
        raise AssertionError(f"{len(limiter)} keys after clear()")
    if scenario.has_chunks and scenario.is_long:
        new = scenario.limiter("", on_full="deny")
        took = [sum(sum(each.allow_many(fresh)) for _ in range(scenario.limit))
                for each in (new, limiter)]  # fmt: skip
        if took[1] < took[0]:
            raise AssertionError(f"leak: room for {took[1]} stamps, a new table has {took[0]}")
    limiter.clear()


# --- The build with points ------------------------------------------------------------------------
def build_with_points(folder: Path) -> Path:
    """Build the package with kill points in a folder; the directory to import it from.

    Raises:
        RuntimeError: It could not be built; the message says why.
    """
    root = HERE.parent
    if importlib.util.find_spec("Cython") is None or importlib.util.find_spec("setuptools") is None:
        raise RuntimeError("building needs Cython and setuptools in this Python")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, folder)
    shutil.copytree(root / "src", folder / "src", dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))  # fmt: skip
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder, env={**os.environ, "NANOLIMIT_KILL_POINTS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"building with points failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return folder / "src"


def run_with_points(arguments: list[str]) -> int:
    """Run this script anew, with a package that has points."""
    with tempfile.TemporaryDirectory(prefix="nanolimit-points-") as folder:
        sys.stderr.write("building with kill points\n")
        try:
            source = build_with_points(Path(folder))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 2
        paths = [str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, check=False,
        ).returncode  # fmt: skip


# --- All rounds -----------------------------------------------------------------------------------
def play(options: Any, points: list[str], folder: Path) -> Tally:
    """Round after round until enough have died."""
    tally = Tally()
    dice = random.Random(options.seed)
    progress = Progress(options.deaths, "deaths")
    chosen = [each for each in SCENARIOS if not options.scenario or options.scenario in each.name]
    while tally.deaths < options.deaths and len(tally.wrong) < WORST_SHOWN:
        scenario = chosen[sum(tally.rounds.values()) % len(chosen)]
        before = tally.deaths
        left = options.deaths - tally.deaths
        Round(scenario, options, points, dice.getrandbits(48), folder, tally).run(left)
        progress.step(f"{scenario.name}", tally.deaths - before)
    progress.done()
    missed = [point for point in points if not tally.by_point[point]]
    if missed and not options.scenario:
        tally.wrong.append(f"nobody died at {', '.join(missed)}: give more --deaths")
    return tally


def report(tally: Tally, points: list[str], options: Any) -> dict[str, Any]:
    """The tables, and the same for --json."""
    rows: list[list[object]] = [
        [name, tally.rounds[name], tally.by_scenario[name], tally.acknowledged[name],
         tally.stored_only[name], tally.orphans[name], tally.longest_ns[name] / 1e6]
        for name in tally.rounds
    ]  # fmt: skip
    print_table("Rounds (stored only: units in a log that no process was told of; orphans: most "
                "slots in nobody's hand at a round's end)",
                ("table", "rounds", "deaths", "accepts", "stored only", "orphans",
                 "longest call, ms"), rows)  # fmt: skip
    places: list[list[object]] = [[point, tally.by_point[point]] for point in points]
    if places:
        print_table("Deaths at points", ("point", "deaths"), places)
    verbs: list[list[object]] = [[verb, count] for verb, count in tally.by_verb.most_common()]
    print_table("Deaths at random, by what the process was in", ("call", "deaths"), verbs)
    print(f"{tally.deaths:,} deaths in {sum(tally.rounds.values()):,} rounds, seed {options.seed}: "
          + (f"{len(tally.wrong)} things wrong" if tally.wrong else "nothing wrong"))  # fmt: skip
    return {"rounds": rows, "points": places, "verbs": verbs, "deaths": tally.deaths,
            "wrong": tally.wrong, "seed": options.seed, "quick": options.quick}  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--deaths", type=int, default=10_000, help="how many are killed")
    parser.add_argument("--workers", type=int, default=8, help="processes at a time")
    parser.add_argument("--seconds-per-round", type=float, default=0.3, metavar="SECONDS",
                        help="how long a table is used before it is checked")  # fmt: skip
    parser.add_argument("--points", action="store_true",
                        help="build with kill points, and have every one of them kill")  # fmt: skip
    parser.add_argument("--patience", type=float, default=1.0, metavar="SECONDS",
                        help="how long an answer may take")  # fmt: skip
    parser.add_argument("--scenario", default="", metavar="TEXT",
                        help="only tables with this in their name")  # fmt: skip
    parser.add_argument("--keep", default="", metavar="FOLDER",
                        help="copy tables there in which something is wrong")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.quick:
        options.deaths = min(options.deaths, 200)
    if options.workers < 1 or options.deaths < 1:
        parser.error("--workers and --deaths must be at least 1")
    from nanolimit import _core

    if not _core.SHARED:
        print("shared tables are for Linux", file=sys.stderr)
        return 2
    points: list[str] = []
    if options.points:
        # (A pane is emptied once in two minutes: tests/crash/test_top_death.py dies there.)
        points = [point for point in _core._kill_points() if point != "top_emptied"]
        if not points:
            return run_with_points(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    facts = environment()
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="nanolimit-kill-", dir=where))
    try:
        tally = play(options, points, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    with tables_shown(options.json):
        print_environment(facts)
        payload = report(tally, points, options)
    for text in tally.wrong[:WORST_SHOWN]:
        print(f"WRONG (seed {options.seed}): {text}", file=sys.stderr)
    emit(options.json, facts, payload)
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
