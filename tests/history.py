"""Histories of concurrent calls: recorded, and judged by whether any order of them makes sense.

A history is what each thread (or process) called, when the call began and ended, and what it said.
It is *linearizable* (Herlihy and Wing, 1990) if every call can be given one instant between its
beginning and its end, so that a limiter in plain Python which gets the calls one after the other in
that order gives the same answers. `order` searches for such an order, as Wing and Gong (1993) do
it, and remembers where it has been, as Lowe (2017) does.

What the model does about time: each call is asked with the time that it read from its clock, which
is recorded too. A call that read its clock, and was overtaken by one that read it later, is the
case of a clock that goes back, which the references know.

Not everything is one instant. A request that several quotas or limiters allow is decided while all
are owned, and they are let go one by one, each counted: who must own one sees all or nothing, who
only reads, a peek or a denial, may see that one has counted and another has not yet. It is denied
if one denies; what a denial tells of the others, what `peek` tells of each quota, and what
`reset`, `refund` and `cancel` do to each, have an instant each. The model takes such calls in
steps.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

from nanolimit import Decision, Quota, RateLimiter, check_all
from reference import Reference, Verdict, seconds
from reference_meters import METERS, Bucket, Window

PATIENCE_S = 60.0


class Told(NamedTuple):
    """What a Decision says, in a form that goes from one process to another."""

    allowed: bool
    remaining: int
    quota: tuple[int, int]
    retry_after: float
    reset_after: float
    refill_after: float

    @classmethod
    def by(cls, decision: Decision) -> Told:
        quota = decision.quota
        assert decision.violated == (None if decision.allowed else quota)
        return cls(
            decision.allowed,
            decision.remaining,
            (quota.limit, quota.window_ns),
            decision.retry_after,
            decision.reset_after,
            decision.refill_after,
        )


@dataclass(frozen=True)
class Call:
    """One call: what was asked, and what came of it."""

    line: int  # the thread that made it: its calls follow one another
    verb: str
    items: tuple[tuple[int, int, int], ...]  # limiter, key, cost
    result: Any
    began_ns: int
    ended_ns: int
    times: tuple[int, ...] = ()  # what it read from the clock; none: from the system's
    ticket: Hashable = None  # which reservation it made or settled

    def __str__(self) -> str:
        asked = ", ".join(f"{limiter}:{key} x{cost}" for limiter, key, cost in self.items)
        ticket = "" if self.ticket is None else f" {self.ticket}"
        times = f" at {', '.join(map(str, self.times))}" if self.times else ""
        span = f"{self.began_ns}..{self.ended_ns}"
        return f"[{self.line}] {span} {self.verb}({asked}){ticket}{times} -> {self.result}"


@dataclass(frozen=True)
class Rules:
    """What a limiter is made of."""

    quotas: tuple[tuple[int, int], ...]  # limit, window in nanoseconds
    algorithm: str = "sliding-log"

    def limiter(self, **options: Any) -> RateLimiter:
        quotas = [Quota._of(limit, window_ns) for limit, window_ns in self.quotas]
        return RateLimiter(quotas, algorithm=self.algorithm, **options)  # type: ignore[arg-type]

    @property
    def least(self) -> int:
        return min(limit for limit, _ in self.quotas)


# --- the model: what one caller after the other would be told -----------------------------------

KEY = "key"
UNTIMED_NS = (
    10**18 + 1
)  # where the time of a call is not known, windows are so long that any will do


class Ledger:
    """One key in one quota. A state in, a state and an answer out; None is a key without a log."""

    def __init__(self, limit: int, window_ns: int, algorithm: str) -> None:
        self.quota = (limit, window_ns)
        self.is_log = algorithm == "sliding-log"
        self._log = Reference(limit, window_ns)
        self._meter = None if self.is_log else METERS[algorithm](limit, window_ns)
        # The search asks the same again and again.
        self.peek = cache(self._peek)
        self.count = cache(self._count)
        self.reset = cache(self._reset)
        self.give_back = cache(self._give_back)

    def _open(self, state: Any) -> Any:
        if self._meter is not None:
            self._meter.states = {} if state is None else {KEY: state}
            return self._meter
        self._log.logs = {} if state is None else {KEY: list(state)}
        return self._log

    def _state(self) -> Any:
        if self._meter is not None:
            return self._meter.states.get(KEY)
        log = self._log.logs.get(KEY)
        return None if log is None else tuple(log)

    def _peek(self, state: Any, now_ns: int, cost: int) -> Verdict:
        verdict: Verdict = self._open(state).peek(KEY, now_ns, cost)
        return verdict

    def _count(self, state: Any, now_ns: int, cost: int) -> tuple[Any, Verdict]:
        verdict = self._open(state).check(KEY, now_ns, cost)
        return self._state(), verdict

    def _reset(self, state: Any, now_ns: int) -> bool:
        """Was there anything to forget?"""
        book = self._open(state)
        live: bool = book.contains(KEY, now_ns) if self.is_log else book.holds(KEY, now_ns)
        return live

    def stamp(self, state: Any) -> int | None:
        """By what the units that were counted last are known; a meter does not know one unit
        from another."""
        return state[-1] if self.is_log else None

    def _give_back(self, state: Any, now_ns: int, units: int, stamp: int | None) -> tuple[Any, int]:
        if self.is_log:
            given = self._open(state).refund(KEY, now_ns, units, stamp)
            return self._state(), given
        # As long as no time passes: then a meter is a sum.
        if state is None:
            return None, 0
        given = min(units, state.units)
        left = state.units - given
        if not left:
            return None, given
        if isinstance(state, Bucket):
            made = replace(state, units=left)
            end = self._open(None).tat(made)
            return replace(made, idle_from=-(-end.numerator // end.denominator)), given
        assert isinstance(state, Window)
        return replace(state, units=left), given


class _Place(NamedTuple):
    """A key in a quota of a limiter."""

    limiter: int
    quota: int
    key: int


class Owned(NamedTuple):
    """A place that a call is about to count in: others read what was there, and must wait."""

    published: Any


def published(state: Any) -> Any:
    return state.published if isinstance(state, Owned) else state


#: What is yet to be done of a call: nothing, or as much as `Model.steps` says of it.
BEGINNING: Any = ("beginning",)
DONE: Any = ("done",)

State = tuple[Any, ...]


class Model:
    """All keys that the calls of a history name, and its reservations, as one tuple."""

    def __init__(self, rules: Sequence[Rules], calls: Sequence[Call]) -> None:
        self.rules = rules
        self.ledgers = {
            (number, quota): _ledger(*each.quotas[quota], each.algorithm)
            for number, each in enumerate(rules)
            for quota in range(len(each.quotas))
        }
        self.at: dict[Hashable, int] = {}  # where a place or a ticket stands in the state
        for call in calls:
            for place in self.places(call):
                self.at.setdefault(place, len(self.at))
            if call.ticket is not None:
                self.at.setdefault(("ticket", call.ticket), len(self.at))

    def places(self, call: Call) -> dict[_Place, tuple[int, int]]:
        """What the call takes from each, and its time there. Costs of the same key add up."""
        places: dict[_Place, tuple[int, int]] = {}
        for nth, (limiter, key, cost) in enumerate(call.items):
            for quota in range(len(self.rules[limiter].quotas)):
                place = _Place(limiter, quota, key)
                before, now_ns = places.get(place, (0, _time(call, nth)))
                places[place] = (before + cost, now_ns)
        return places

    @property
    def empty(self) -> State:
        return (None,) * len(self.at)

    def put(self, state: State, where: Hashable, value: Any) -> State:
        at = self.at[where]
        return (*state[:at], value, *state[at + 1 :])

    def steps(self, state: State, call: Call, progress: Any) -> Iterator[tuple[State, Any]]:
        """What may come next of the call: what has become of the state, and how far it is.

        It yields nothing if the call could not be told then what it was told.
        """
        if call.verb in ("allow", "check", "reserve", "check_all"):
            yield from self._count(state, call, progress)
        elif call.verb == "peek":
            yield from self._peek(state, call, progress)
        elif call.verb in ("cancel", "commit"):
            yield from self._settle(state, call, progress)
        elif call.verb == "advance":
            yield state, DONE
        else:
            yield from self._change(state, call, progress)

    def _fits(self, call: Call, verdicts: Sequence[Verdict]) -> bool:
        """Was it told this?"""
        allowed = all(verdict.allowed for verdict in verdicts)
        if call.verb == "allow":
            return bool(call.result == allowed)
        if call.result.allowed != allowed:
            return False
        at = binding(verdicts)
        quotas = [self.ledgers[place[:2]].quota for place in self.places(call)]
        expected = told(verdicts[at], quotas[at], allowed)
        # The system's clock is read where nobody sees it.
        return bool(call.result == expected if call.times else call.result[:3] == expected[:3])

    def _count(self, state: State, call: Call, progress: Any) -> Iterator[tuple[State, Any]]:
        """Counted in all: decided at one instant, and let go one by one."""
        if not (call.result if call.verb == "allow" else call.result.allowed):
            yield from self._deny(state, call, progress)
            return
        places = self.places(call)
        if progress is not BEGINNING:
            (place, counted), *others = progress
            yield self.put(state, place, counted), tuple(others) or DONE
            return
        verdicts, left = [], []
        for place, (cost, now_ns) in places.items():
            ledger, was = self.ledgers[place[:2]], state[self.at[place]]
            if isinstance(was, Owned) or not ledger.peek(was, now_ns, cost).allowed:
                return
            counted, verdict = ledger.count(was, now_ns, cost)
            verdicts.append(verdict)
            left.append((place, counted))
        if not self._fits(call, verdicts):
            return
        if call.verb == "reserve":
            stamps = tuple(self.ledgers[place[:2]].stamp(counted) for place, counted in left)
            state = self.put(state, ("ticket", call.ticket), stamps)
        if len(left) == 1:
            yield self.put(state, *left[0]), DONE
            return
        for place, _ in left:
            state = self.put(state, place, Owned(state[self.at[place]]))
        yield state, tuple(left)

    def _deny(self, state: State, call: Call, progress: Any) -> Iterator[tuple[State, Any]]:
        """By one of them; each is read at an instant of its own, in any order."""
        places = self.places(call)
        if progress is BEGINNING:
            verdicts = [
                self.ledgers[place[:2]].peek(published(state[self.at[place]]), now_ns, cost)
                for place, (cost, now_ns) in places.items()
            ]
            if self._fits(call, verdicts):
                yield state, DONE
            if call.verb == "allow" or len(places) == 1:
                return
            progress = (None,) * len(places)
        for nth, (place, (cost, now_ns)) in enumerate(places.items()):
            if progress[nth] is not None:
                continue
            was = published(state[self.at[place]])
            verdict = self.ledgers[place[:2]].peek(was, now_ns, cost)
            read = (*progress[:nth], verdict, *progress[nth + 1 :])
            if None not in read:
                if self._fits(call, read):
                    yield state, DONE
            else:
                yield state, read

    def _peek(self, state: State, call: Call, progress: Any) -> Iterator[tuple[State, Any]]:
        """One quota after the other."""
        places = list(self.places(call).items())
        read = () if progress is BEGINNING else progress
        place, (cost, now_ns) = places[len(read)]
        was = published(state[self.at[place]])
        verdict = self.ledgers[place[:2]].peek(was, now_ns, cost)
        read = (*read, verdict)
        if len(read) < len(places):
            yield state, read
        elif self._fits(call, read):
            yield state, DONE

    def _change(self, state: State, call: Call, progress: Any) -> Iterator[tuple[State, Any]]:
        """reset and refund: one quota after the other, each with a look at the clock."""
        places = list(self.places(call).items())
        nth, most = (0, 0) if progress is BEGINNING else progress
        place, (units, _) = places[nth]
        ledger, was, now_ns = self.ledgers[place[:2]], state[self.at[place]], _time(call, nth)
        if isinstance(was, Owned):
            return
        if call.verb == "reset":
            given = int(ledger.reset(was, now_ns))
            left = None
        else:
            left, given = ledger.give_back(was, now_ns, units, None)
        yield from self._changed(call, self.put(state, place, left), nth, most, given, places)

    def _settle(self, state: State, call: Call, progress: Any) -> Iterator[tuple[State, Any]]:
        """It is taken out of the others' hands first; then each quota gets its units back."""
        ticket = ("ticket", call.ticket)
        if progress is BEGINNING:
            stamps = state[self.at[ticket]]
            if stamps is not None:
                yield self.put(state, ticket, None), (stamps, 0, 0)
            elif call.result == 0:
                yield state, DONE  # it was settled before, or denied
            return
        stamps, nth, most = progress
        places = list(self.places(call).items())
        place, (units, _) = places[nth]
        ledger, was = self.ledgers[place[:2]], state[self.at[place]]
        if isinstance(was, Owned):
            return
        left, given = ledger.give_back(was, _time(call, nth), units, stamps[nth])
        changed = self.put(state, place, left)
        for after, further in self._changed(call, changed, nth, most, given, places):
            yield after, further if further is DONE else (stamps, *further)

    def _changed(
        self, call: Call, state: State, nth: int, most: int, given: int, places: list[Any]
    ) -> Iterator[tuple[State, Any]]:
        most = max(most, given)
        if nth + 1 < len(places):
            yield state, (nth + 1, most)
        elif call.verb == "commit" or call.result == most:
            yield state, DONE


_ledger = cache(Ledger)


def _time(call: Call, nth: int) -> int:
    return call.times[min(nth, len(call.times) - 1)] if call.times else UNTIMED_NS


def binding(verdicts: Sequence[Verdict]) -> int:
    """The first of those that deny longest; else the first of those with the least left."""
    if all(verdict.allowed for verdict in verdicts):
        left = [verdict.remaining for verdict in verdicts]
        return left.index(min(left))
    waits = [-1 if verdict.allowed else verdict.retry_after_ns for verdict in verdicts]
    return waits.index(max(waits))


@cache
def told(verdict: Verdict, quota: tuple[int, int], allowed: bool) -> Told:
    return Told(
        allowed,
        verdict.remaining,
        quota,
        seconds(verdict.retry_after_ns),
        seconds(verdict.reset_after_ns),
        seconds(verdict.refill_after_ns),
    )


# --- the search ---------------------------------------------------------------------------------


def parts(calls: Sequence[Call]) -> list[list[Call]]:
    """The calls by what they have in common: keys that no call joins don't know of each other, and
    a history is linearizable if it is key by key."""
    group_of: dict[Hashable, set[Hashable]] = {}
    for call in calls:
        joined: set[Hashable] = set()
        for limiter, key, _ in call.items:
            joined |= group_of.get((limiter, key), {(limiter, key)})
        for each in joined:
            group_of[each] = joined
    groups: dict[int, list[Call]] = {}
    for call in calls:
        if call.items:
            limiter, key, _ = call.items[0]
            groups.setdefault(id(group_of[limiter, key]), []).append(call)
    return list(groups.values())


def order(rules: Sequence[Rules], calls: Sequence[Call]) -> tuple[bool, list[Call]]:
    """An order of the calls that respects time and that the model allows; and whether there is one.

    If there is none, as many calls as could be brought into an order.
    """
    model = Model(rules, calls)
    by_line: dict[int, list[Call]] = {}
    for call in sorted(calls, key=lambda call: (call.began_ns, call.ended_ns)):
        by_line.setdefault(call.line, []).append(call)
    lines = list(by_line.values())
    for line in lines:
        for before, after in pairwise(line):
            assert before.ended_ns <= after.began_ns, "calls of one line overlap"

    def moves(place: Any) -> Iterator[tuple[Any, Call | None]]:
        """One step of any call that need not wait for another one to end."""
        positions, progress, state = place
        open_calls = [
            (number, lines[number][at])
            for number, at in enumerate(positions)
            if at < len(lines[number])
        ]
        first_end_ns = min(call.ended_ns for _, call in open_calls)
        for number, call in sorted(open_calls, key=lambda each: each[1].ended_ns):
            if call.began_ns > first_end_ns:
                continue
            for after, further in model.steps(state, call, progress[number]):
                done = further is DONE
                went = list(positions)
                went[number] += done
                how_far = list(progress)
                how_far[number] = BEGINNING if done else further
                yield (tuple(went), tuple(how_far), after), call if done else None

    start = ((0,) * len(lines), (BEGINNING,) * len(lines), model.empty)
    been = {start}
    path: list[Call] = []
    longest: list[Call] = []
    stack = [(moves(start), False)]
    while True:
        if len(path) == len(calls):
            return True, path
        for place, finished in stack[-1][0]:
            if place in been:
                continue
            been.add(place)
            if finished is not None:
                path.append(finished)
                if len(path) > len(longest):
                    longest = path[:]
            if len(path) == len(calls):
                return True, path
            stack.append((moves(place), finished is not None))
            break
        else:
            _, was_finished = stack.pop()
            if was_finished:
                path.pop()
            if not stack:
                return False, longest


def linearizable(rules: Sequence[Rules], calls: Sequence[Call]) -> bool:
    return all(order(rules, part)[0] for part in parts(calls))


def require_linearizable(rules: Sequence[Rules], calls: Sequence[Call], what: str) -> None:
    for part in parts(calls):
        found, longest = order(rules, part)
        if found:
            continue
        begun = min(call.began_ns for call in part)
        shown = [
            replace(call, began_ns=call.began_ns - begun, ended_ns=call.ended_ns - begun)
            for call in sorted(part, key=lambda call: call.began_ns)
        ]
        where = {id(call): nth for nth, call in enumerate(longest, 1)}
        numbers = [
            where.get(id(call), "-") for call in sorted(part, key=lambda call: call.began_ns)
        ]
        lines = [f"{number:>4} {call}" for number, call in zip(numbers, shown, strict=True)]
        raise AssertionError(
            f"{what}: no order of these calls makes sense, of {rules}. The longest that does is "
            f"numbered.\n" + "\n".join(lines)
        )


def overlaps(calls: Sequence[Call]) -> int:
    """Pairs of calls that were under way at the same time."""
    ordered = sorted(calls, key=lambda call: call.began_ns)
    return sum(
        other.began_ns < call.ended_ns
        for nth, call in enumerate(ordered)
        for other in ordered[nth + 1 :]
    )


# --- the recorder -------------------------------------------------------------------------------


class Watch:
    """A clock that stands still until it is told to move, and knows who read what from it."""

    def __init__(self, ns: int) -> None:
        self.ns = ns
        self._own = threading.local()

    def readings(self) -> list[int]:
        """What this thread reads from now on."""
        self._own.readings = []
        readings: list[int] = self._own.readings
        return readings

    def now_ns(self) -> int:
        now_ns = self.ns
        self._own.readings.append(now_ns)
        return now_ns

    def __call__(self) -> float:
        return self.now_ns() / 1e9


class Gate:
    """Holds everybody until all are there. They spin: a call takes less than waking up does."""

    OPEN = 2**62

    def __init__(self, turns: Any, number: int) -> None:
        self._turns = turns  # one for each: a list, or memory that processes share
        self._number = number

    def meet(self, turn: int) -> None:
        turns = self._turns
        turns[self._number] = turn
        end = time.monotonic() + PATIENCE_S
        spins = 0
        while min(turns) < turn:
            spins += 1
            if spins % 32 == 0:
                _yield()
                assert time.monotonic() < end, "somebody did not come"

    def leave(self) -> None:
        """For good: nobody need wait for this one."""
        self._turns[self._number] = self.OPEN


def _yield() -> None:
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(0)


def _pin(line: int) -> None:
    """This thread to a core: else the scheduler may have them take turns on one, and nobody meets
    anybody."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[line % len(allowed)]})


def cores() -> int:
    """How many threads can run at the same time here."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Scene:
    """What the threads of a round may ask, at random."""

    rules: tuple[Rules, ...]
    verbs: tuple[str, ...]
    calls: int = 5  # of each thread
    keys: int = 1
    most: int = 3  # units at once
    moves_ns: tuple[int, ...] = ()  # by which the first thread moves the clock on
    timed: bool = True  # with a clock of one's own
    start_ns: int = 1_234_567_890_123

    def __str__(self) -> str:
        algorithms = {each.algorithm for each in self.rules}
        quotas = "+".join("/".join(str(limit) for limit, _ in each.quotas) for each in self.rules)
        clock = "moving" if self.moves_ns else "still" if self.timed else "system"
        return f"{'-'.join(algorithms)} {quotas} {clock}"


class Actor:
    """One thread of a scene: writes down what it asks and what it is told."""

    def __init__(
        self, scene: Scene, line: int, limiters: Sequence[RateLimiter], watch: Watch
    ) -> None:
        self.scene = scene
        self.line = line
        self.limiters = limiters
        self.watch = watch
        self.held: dict[Hashable, Any] = {}

    def script(self, seed: int, turn: int) -> list[tuple[Any, ...]]:
        """verb, items, ticket, function, arguments. Keys are this turn's own."""
        scene, dice = self.scene, random.Random(f"{seed} {turn} {self.line}")
        script: list[tuple[Any, ...]] = []
        tickets: list[Any] = []

        def item(limiter: int) -> tuple[int, int, int]:
            cost = dice.randint(1, min(scene.most, scene.rules[limiter].least))
            return limiter, dice.randrange(scene.keys), cost

        for nth in range(scene.calls):
            verb = dice.choice(scene.verbs)
            if verb == "advance" and self.line:
                verb = "check"
            if verb in ("cancel", "commit") and not tickets:
                verb = "reserve"
            items: tuple[tuple[int, int, int], ...] = (item(dice.randrange(len(self.limiters))),)
            ticket = None
            limiter, key, cost = items[0]
            named = ("key", turn, key)
            arguments: tuple[Any, ...] = (named, cost)
            function: Callable[..., Any]
            if verb == "check_all":
                items = tuple(item(number) for number in range(len(self.limiters)))
                function = check_all
                arguments = (
                    [(self.limiters[n], ("key", turn, key), cost) for n, key, cost in items],
                )
            elif verb == "reserve":
                ticket = (self.line, nth)
                tickets.append((ticket, items))
                function, arguments = self._reserve, (ticket, limiter, named, cost)
            elif verb in ("cancel", "commit"):
                ticket, items = tickets.pop()
                limiter, key, cost = items[0]
                if verb == "commit":  # as if it had been one less
                    items = ((limiter, key, 1),)
                function, arguments = self._settle, (verb, ticket, cost - 1)
            elif verb == "advance":
                items = ()
                function, arguments = self._advance, (dice.choice(scene.moves_ns),)
            else:
                function = getattr(self.limiters[limiter], verb)
                if verb == "reset":
                    arguments = (named,)
                elif cost == 1:
                    arguments = (named,)  # the short way
            script.append((verb, items, ticket, function, arguments))
        return script

    def _reserve(self, ticket: Hashable, limiter: int, key: Hashable, cost: int) -> Decision:
        self.held[ticket] = reservation = self.limiters[limiter].reserve(key, cost)  # type: ignore[arg-type]
        return reservation.decision

    def _settle(self, verb: str, ticket: Hashable, actual: int) -> int:
        reservation = self.held[ticket]
        if verb == "cancel":
            return int(reservation.cancel())
        return int(reservation.commit(actual)) if reservation.ok else 0

    def _advance(self, step_ns: int) -> None:
        self.watch.ns += step_ns

    def play(self, script: Sequence[tuple[Any, ...]], gate: Gate, turn: int) -> list[Call]:
        now_ns, readings = time.monotonic_ns, self.watch.readings()
        rows = []
        gate.meet(turn)
        for _, _, _, function, arguments in script:
            began_ns = now_ns()
            result = function(*arguments)
            ended_ns = now_ns()
            rows.append((result, began_ns, ended_ns, len(readings)))
        calls = []
        read = 0
        for (verb, items, ticket, _, _), (result, began_ns, ended_ns, so_far) in zip(
            script, rows, strict=True
        ):
            if isinstance(result, Decision):
                result = Told.by(result)
            times = tuple(readings[read:so_far])
            read = so_far
            calls.append(Call(self.line, verb, items, result, began_ns, ended_ns, times, ticket))
        self.held.clear()
        return calls

    def rounds(self, gate: Gate, seed: int, rounds: int) -> list[list[Call]]:
        _pin(self.line)
        try:
            return [self.play(self.script(seed, turn), gate, turn) for turn in range(1, rounds + 1)]
        finally:
            gate.leave()


def judge(scene: Scene, lines: Sequence[list[list[Call]]], what: str = "") -> int:
    """Every round must be linearizable. How many pairs of calls overlapped in all."""
    met = 0
    for turn, together in enumerate(zip(*lines, strict=True), 1):
        calls = [call for line in together for call in line]
        require_linearizable(scene.rules, calls, f"{what}{scene}, round {turn}")
        met += overlaps(calls)
    return met
