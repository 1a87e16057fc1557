"""Calls of threads and processes that meet: some order of them, one by one, explains each answer.

tests/history.py records and judges; its own tests come first here, on histories made by hand.
"""

from __future__ import annotations

import mmap
import multiprocessing
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from crew import PATIENCE_S, run
from doors import verify
from history import (
    Actor,
    Call,
    Gate,
    Rules,
    Scene,
    Told,
    Watch,
    cores,
    judge,
    linearizable,
    order,
    parts,
    require_linearizable,
)
from nanolimit import RateLimiter
from sharing import memory_folder, needs_shared

NS = 1_000_000_000
SECOND, MINUTE = NS, 60 * NS
ALGORITHMS = ["sliding-log", "gcra", "fixed-window", "sliding-counter"]

# --- the checker, by histories made by hand -----------------------------------------------------

TWO = Rules(((2, MINUTE),))
ONE = Rules(((1, MINUTE),))


def call(
    line: int,
    began: int,
    ended: int,
    verb: str,
    result: Any,
    cost: int = 1,
    *,
    items: Any = None,
    at: int | Sequence[int] = 0,
    ticket: Any = None,
) -> Call:
    times = (at,) if isinstance(at, int) else tuple(at)
    return Call(line, verb, items or ((0, 0, cost),), result, began, ended, times, ticket)


def told(
    allowed: bool,
    remaining: int,
    wait: float = 0.0,
    *,
    quota: tuple[int, int] = (2, MINUTE),
    reset: float = 60.0,
    refill: float = 60.0,
) -> Told:
    return Told(allowed, remaining, quota, wait, reset, refill)


BOTH = ((0, 0, 1), (1, 0, 1))
DENIED_BY_ONE = told(False, 0, 60.0, quota=(1, MINUTE))

GOOD = {
    "one after the other": [
        call(0, 0, 1, "allow", True),
        call(0, 2, 3, "allow", True),
        call(0, 4, 5, "allow", False),
    ],
    "the later one first, as they overlap": [
        call(0, 0, 9, "allow", False, 1),
        call(1, 1, 3, "allow", True, 2),
    ],
    "a peek in the middle of a call that sees nothing of it": [
        call(0, 0, 9, "check", told(True, 1)),
        call(1, 1, 2, "peek", told(True, 2, reset=0.0, refill=0.0)),
        call(1, 3, 4, "peek", told(True, 1)),
    ],
    "a reset between two of which one could not fit": [
        call(0, 0, 1, "allow", True, 2),
        call(0, 2, 3, "allow", True, 2),
        call(1, 0, 9, "reset", True),
    ],
    "a refund that came just in time": [
        call(0, 0, 1, "allow", True, 2),
        call(0, 2, 9, "refund", 1),
        call(1, 3, 8, "allow", True),
    ],
    "what was reserved and given back": [
        call(0, 0, 1, "reserve", told(True, 0), 2, ticket="t"),
        call(1, 2, 3, "allow", False),
        call(0, 4, 9, "cancel", 2, 2, ticket="t"),
        call(1, 5, 6, "allow", False),
        call(1, 7, 8, "allow", True, 2),
    ],
    "of two that cancel the same one gets it all": [
        call(0, 0, 1, "reserve", told(True, 0), 2, ticket="t"),
        call(0, 2, 9, "cancel", 0, 2, ticket="t"),
        call(1, 2, 9, "cancel", 2, 2, ticket="t"),
    ],
    "one that read the clock and was overtaken": [
        call(0, 0, 9, "allow", True, at=0),
        call(1, 1, 2, "check", told(True, 1), at=30 * SECOND),
        call(1, 3, 4, "peek", told(True, 1), at=30 * SECOND),
        call(1, 10, 11, "peek", told(False, 0, 60.0), at=30 * SECOND),
    ],
    "both keys, and then neither": [
        call(0, 0, 5, "check_all", told(True, 0, quota=(1, MINUTE)), items=BOTH, at=[0, 0]),
        call(1, 1, 6, "check_all", DENIED_BY_ONE, items=BOTH, at=[0, 0]),
        call(1, 7, 8, "peek", told(True, 1), items=((0, 0, 1),)),
    ],
    "a denial tells of each quota at an instant of its own": [
        call(0, 0, 1, "allow", True, items=((1, 0, 1),)),
        call(1, 2, 9, "check_all", DENIED_BY_ONE, items=((0, 0, 2), (1, 0, 1)), at=[0, 0]),
        call(0, 3, 4, "allow", True, 1, items=((0, 0, 2),)),
    ],
}

BAD = {
    "one too many": [call(line, 0, 9, "allow", True) for line in range(3)],
    "one too few": [call(line, 0, 9, "allow", line == 0) for line in range(2)],
    "a lost update": [
        call(0, 0, 9, "check", told(True, 1)),
        call(1, 0, 9, "check", told(True, 1)),
    ],
    "a stale read": [
        call(0, 0, 1, "allow", True),
        call(1, 2, 3, "peek", told(True, 2, reset=0.0, refill=0.0)),
    ],
    "two reads of which the later one knows less": [
        call(0, 0, 9, "allow", True),
        call(1, 1, 2, "peek", told(True, 1)),
        call(1, 3, 4, "peek", told(True, 2, reset=0.0, refill=0.0)),
    ],
    "a denial before there was a reason": [
        call(0, 0, 1, "allow", False, 1),
        call(1, 2, 3, "allow", True, 2),
    ],
    "a denial after the reason was gone": [
        call(0, 0, 1, "allow", True, 2),
        call(0, 2, 3, "reset", True),
        call(1, 4, 5, "allow", False),
    ],
    "a reset that is not seen": [
        call(0, 0, 1, "allow", True),
        call(0, 2, 3, "reset", True),
        call(1, 4, 5, "reset", True),
    ],
    "a refund of more than there was": [
        call(0, 0, 1, "allow", True),
        call(0, 2, 3, "refund", 2, 2),
    ],
    "units given back twice": [
        call(0, 0, 1, "reserve", told(True, 0), 2, ticket="t"),
        call(0, 2, 9, "cancel", 2, 2, ticket="t"),
        call(1, 2, 9, "cancel", 2, 2, ticket="t"),
    ],
    "a wait that is too short": [
        call(0, 0, 1, "allow", True, 2, at=30 * SECOND),
        call(1, 2, 3, "check", told(False, 0, 59.0), at=30 * SECOND),
    ],
    "it counted at a time that nobody read": [
        call(0, 0, 1, "allow", True, at=10 * SECOND),
        call(1, 2, 3, "peek", told(True, 1), at=20 * SECOND),
    ],
    "check_all counted in one only": [
        call(0, 0, 1, "check_all", told(True, 0, quota=(1, MINUTE)), items=BOTH, at=[0, 0]),
        call(1, 2, 3, "peek", told(True, 2, reset=0.0, refill=0.0)),
    ],
    "a denied check_all counted in one": [
        call(0, 0, 1, "allow", True, items=((1, 0, 1),)),
        call(0, 2, 3, "check_all", DENIED_BY_ONE, items=BOTH, at=[0, 0]),
        call(1, 4, 5, "peek", told(True, 1)),
    ],
    "half of a check_all": [  # key by key all is well
        call(0, 0, 9, "check_all", told(True, 0, quota=(1, MINUTE)), items=BOTH, at=[0, 0]),
        call(1, 1, 2, "peek", told(True, 1)),
        call(1, 3, 4, "allow", True, items=((1, 0, 1),)),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_history_that_could_be(name: str) -> None:
    require_linearizable([TWO, ONE], GOOD[name], name)


@pytest.mark.parametrize("name", BAD)
def test_a_history_that_could_not(name: str) -> None:
    with pytest.raises(AssertionError, match="no order of these calls makes sense"):
        require_linearizable([TWO, ONE], BAD[name], name)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_meters_of_the_checker(algorithm: str) -> None:
    """Each waits differently: what is right for one is wrong for the others, but for the log."""
    waits = {"sliding-log": 60.0, "gcra": 30.0, "fixed-window": 60.0, "sliding-counter": 90.0}
    refill = {**waits, "sliding-counter": 90.0}[algorithm]
    reset = {"gcra": 60.0, "sliding-counter": 120.0}.get(algorithm, 60.0)
    for told_wait in {30.0, 60.0, 90.0}:
        denied = told(False, 0, told_wait, reset=reset, refill=refill)
        calls = [call(0, 0, 1, "allow", True, 2), call(1, 2, 3, "check", denied)]
        fits = told_wait == waits[algorithm]
        assert linearizable([Rules(TWO.quotas, algorithm)], calls) is fits, told_wait


def test_the_order_that_is_found_respects_time() -> None:
    calls = GOOD["what was reserved and given back"]
    found, path = order([TWO], calls)
    assert found
    assert sorted(path, key=calls.index) == calls
    for nth, later in enumerate(path):
        assert not any(later.ended_ns < earlier.began_ns for earlier in path[:nth])


def test_keys_are_judged_by_themselves_unless_a_call_joins_them() -> None:
    apart = [call(0, 0, 1, "allow", True, items=((0, key, 1),)) for key in range(3)]
    assert [len(part) for part in parts(apart)] == [1, 1, 1]
    joint = call(1, 0, 1, "check_all", True, items=((0, 0, 1), (0, 2, 1)))
    assert sorted(len(part) for part in parts([*apart, joint])) == [1, 3]


def test_long_conflicts_are_searched_in_no_time() -> None:
    """Four threads of eight calls, all at once, and one answer that is wrong at the end."""
    rules = Rules(((12, MINUTE),))
    calls = [
        call(line, 10 * nth, 1_000 + 10 * nth + 9 * (nth == 7), "allow", True)
        for line in range(4)
        for nth in range(1)
    ]
    calls += [
        call(line, 2_000 + 10 * nth, 2_009 + 10 * nth, "allow", nth < 2)
        for line in range(4)
        for nth in range(7)
    ]
    assert linearizable([rules], calls)
    wrong = [*calls, call(9, 2_000, 3_000, "peek", told(True, 3, quota=(12, MINUTE)))]
    assert not linearizable([rules], [*wrong[:-2], replace_result(wrong[-2]), wrong[-1]])


def replace_result(wrong: Call) -> Call:
    return call(wrong.line, wrong.began_ns, wrong.ended_ns, wrong.verb, not wrong.result)


# --- threads ------------------------------------------------------------------------------------

# (A meter that gives back after time has passed gives less than it took, which the checker's
# model does not know: so where the clock moves, or is the system's, they give nothing back.)
PLAIN_VERBS = ("allow", "allow", "check", "check", "peek", "reset")
VERBS = (*PLAIN_VERBS, "refund", "reserve", "cancel", "commit")


def scenes() -> list[Scene]:
    made = []
    for algorithm in ALGORITHMS:
        is_log = algorithm == "sliding-log"
        # Between two ticks, gcra gives back a tick's leakage less than it took.
        start_ns = 1_234_567_890_123 if is_log else 1_234_567_890_000
        small = Rules(((3, MINUTE),), algorithm)
        large = Rules(((9, MINUTE),), algorithm)  # a log of so many does not fit into its slot
        double = Rules(((4, SECOND), (6, MINUTE)), algorithm)
        moves = (1, SECOND, 20 * SECOND, 40 * SECOND, MINUTE)
        verbs = VERBS if is_log else PLAIN_VERBS
        made += [
            Scene((small,), VERBS, start_ns=start_ns),
            Scene((large,), VERBS, most=8, start_ns=start_ns),
            Scene((double,), VERBS, calls=4, start_ns=start_ns),
            Scene((small, large), ("allow", "peek", "check_all", "check_all", "reset"), keys=2),
            Scene((small,), (*verbs, "advance", "advance"), moves_ns=moves),
            Scene((double,), (*verbs, "advance"), calls=4, moves_ns=(SECOND // 4, SECOND)),
        ]
    return made


#: Without a clock of one's own a check takes the short way. Windows so long that no time passes.
YEAR = 365 * 86_400 * NS
SYSTEM_SCENES = [
    Scene((Rules(((3, YEAR),)),), (*PLAIN_VERBS, "refund"), timed=False),
    Scene((Rules(((4, YEAR), (6, 2 * YEAR))),), ("allow", "check", "peek"), timed=False),
    Scene((Rules(((3, YEAR),), "fixed-window"),), (*PLAIN_VERBS, "refund"), timed=False),
    Scene((Rules(((3, YEAR),), "gcra"),), PLAIN_VERBS, timed=False),
]

SCENES = scenes()
THREADS = 3
ROUNDS = 40


def make(scene: Scene, watch: Watch, **options: Any) -> list[RateLimiter]:
    if scene.timed:
        options["clock"] = watch
    return [rules.limiter(**options) for rules in scene.rules]


def meet(scene: Scene) -> int:
    """Have threads meet at new limiters, and judge what they say; how many pairs of calls met."""
    watch = Watch(scene.start_ns)
    limiters = make(scene, watch)
    turns = [0] * THREADS
    lines: list[list[list[Call]]] = [[]] * THREADS

    def work(line: int) -> None:
        actor = Actor(scene, line, limiters, watch)
        lines[line] = actor.rounds(Gate(turns, line), 1, ROUNDS)

    run(THREADS, work)
    met = judge(scene, lines)
    for limiter in limiters:
        verify(limiter)
    return met


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("scene", [*SCENES, *SYSTEM_SCENES], ids=str)
def test_threads(scene: Scene) -> None:
    # Where none meets another nothing was tried. With a GIL a call may be so short that they don't;
    # the processes make up for it. Without it, on a busy machine, they may once get one core only.
    with_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    tries = 1 if with_gil or cores() == 1 else 20
    assert any(meet(scene) > 0 for _ in range(tries)) or tries == 1


@pytest.mark.usefixtures("restless")
def test_threads_that_cancel_the_same_reservation() -> None:
    """One gives back, the others are told 0; none that it came too late."""
    scene = Scene((Rules(((3, MINUTE),)),), ())
    watch = Watch(scene.start_ns)
    (limiter,) = make(scene, watch)
    watch.readings()
    rounds = 500
    held = [limiter.reserve(("key", turn), 2) for turn in range(rounds)]
    turns = [0] * THREADS
    lines: list[list[list[Call]]] = [[]] * THREADS

    def work(line: int) -> None:
        actor, gate = Actor(scene, line, [limiter], watch), Gate(turns, line)
        cancel, check = ("cancel", ((0, 0, 2),), "held"), ("check", ((0, 0, 1),), None)
        try:
            lines[line] = [
                actor.play(
                    [(*cancel, held[nth].cancel, ()), (*check, limiter.check, (("key", nth),))],
                    gate,
                    nth + 1,
                )
                for nth in range(rounds)
            ]
        finally:
            gate.leave()

    run(THREADS, work)
    before = [
        [Call(-1, "reserve", ((0, 0, 2),), Told.by(each.decision), 0, 0, (watch.ns,), "held")]
        for each in held
    ]
    judge(scene, [before, *lines])


# --- processes ----------------------------------------------------------------------------------

PROCESS_SCENES = [*SCENES, *SYSTEM_SCENES]


def turns_of(folder: Path, nth: int) -> Any:
    """A number for each process, where all of them see it."""
    with (folder / f"turns-{nth}").open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")


def play_all(writer: Connection, line: int, folder: Path, rounds: int) -> None:
    """In a process of its own: all scenes, one after the other, each with tables of its own."""
    told: list[list[list[Call]]] = []
    for nth, scene in enumerate(PROCESS_SCENES):
        watch = Watch(scene.start_ns)
        limiters = [
            make_shared(scene, watch, folder / f"scene-{nth}-{number}", rules)
            for number, rules in enumerate(scene.rules)
        ]
        actor = Actor(scene, line, limiters, watch)
        told.append(actor.rounds(Gate(turns_of(folder, nth), line), 2, rounds))
        for limiter in limiters:
            limiter.close()
    writer.send(told)


def make_shared(scene: Scene, watch: Watch, path: Path, rules: Rules) -> RateLimiter:
    # A process that is not given a core for a while must not be taken for one that stalls.
    return rules.limiter(
        clock=watch if scene.timed else None,
        shared=path,
        max_keys=2_000,
        stall_timeout=60,
        on_stall="wait",
    )


@needs_shared
@pytest.mark.parametrize(
    ("method", "size", "rounds"), [("fork", 2, 100), ("spawn", 3, 15)], ids=["fork", "spawn"]
)
def test_processes_on_a_shared_table(method: str, size: int, rounds: int) -> None:
    context = multiprocessing.get_context(method)
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    with memory_folder() as folder:
        for nth in range(len(PROCESS_SCENES)):
            (folder / f"turns-{nth}").write_bytes(bytes(8 * size))
        crew = [
            context.Process(target=play_all, args=(writer, line, folder, rounds))
            for line, (_, writer) in enumerate(pipes)
        ]
        for process in crew:
            process.start()
        try:
            told = []
            for reader, writer in pipes:
                writer.close()
                assert reader.poll(PATIENCE_S), "a process hangs"
                told.append(reader.recv())
                reader.close()
        finally:
            for process in crew:
                process.join(5)
                if process.exitcode is None:
                    process.kill()
                    process.join()
    assert [process.exitcode for process in crew] == [0] * size
    met = [
        judge(scene, lines, f"{method}: ")
        for scene, lines in zip(PROCESS_SCENES, zip(*told, strict=True), strict=True)
    ]
    assert sum(met) > rounds or cores() == 1, met
