"""What Redis was asked, in the order in which it answered, and whether the answers were right.

`journaled` makes of a script one that also writes down the time that it saw, what it was given and
what it said. `replay` takes these records through a model of the lists that keeps every stamp for
ever and counts them one by one. As a program, this sends random requests to a server.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from nanolimit import Quota
from nanolimit.redis import script
from nanolimit.redis.name import Names
from nanolimit.redis.script import Arguments, Script
from reference import Reference, Verdict

JOURNAL = "journal"
US = 1_000

_JOURNALED = """
local real, seen = redis, nil
local redis = {call = function(...)
  local reply = real.call(...)
  if (...) == 'TIME' then
    assert(not seen, 'a script has one time')
    seen = reply
  end
  return reply
end}
local function body()
%s
end
local reply = body()
local said = {}
if type(reply) == 'table' then
  for i, each in ipairs(reply) do said[i] = string.format('%%.0f', each) end
elseif type(reply) == 'number' then
  said[1] = string.format('%%.0f', reply)
else
  said[1] = reply
end
seen = seen or real.call('TIME')
real.call('RPUSH', '%s', cjson.encode({'%s', seen, KEYS, ARGV, said}))
return reply
"""

SCRIPTS = (
    script.TAKE, script.TAKE_ONE, script.TELL, script.LOOK, script.BATCH, script.TAKE_SOME,
    script.GRANT, script.RETURN, script.RESET,
)  # fmt: skip


def journaled(plain: Script) -> Script:
    """The same script, that writes down what it did."""
    return Script.of(plain.name, _JOURNALED % (plain.source, JOURNAL, plain.name))


# The model


@dataclass
class Log:
    """One list: (stamp, was it lent), the newest first. Nothing is ever dropped."""

    stamps: list[tuple[int, bool]] = field(default_factory=list)
    reference: Reference | None = None  # of what was never lent

    def now(self, clock: int) -> int:
        if self.stamps and not self.stamps[0][1]:
            return max(clock, self.stamps[0][0])
        return clock

    def live(self, clock: int, window: int) -> list[int]:
        """The stamps that count, the newest first."""
        now = self.now(clock)
        live = []
        for stamp, _ in self.stamps:
            if now - stamp >= window:
                break  # nor do those behind it
            live.append(stamp)
        return live

    def add(self, stamp: int, lent: bool, units: int) -> None:
        at = 0
        while at < len(self.stamps) and self.stamps[at][0] > stamp:
            at += 1
        self.stamps[at:at] = [(stamp, lent)] * units


@dataclass
class Rule:
    """A list, and what a request says of it."""

    log: Log
    window: int
    limit: int

    def wait(self, clock: int, cost: int) -> int:
        """Microseconds until `cost` fits; 0 if it does now."""
        live = self.log.live(clock, self.window)
        missing = len(live) + cost - self.limit
        return live[-missing] + self.window - clock if missing > 0 and cost else 0

    def view(self, clock: int, cost: int) -> list[int]:
        live = self.log.live(clock, self.window)
        missing = len(live) + cost - self.limit
        deciding = live[-missing] if missing > 0 and cost else 0
        return [len(live), live[0] if live else 0, live[-1] if live else 0, deciding]


@dataclass
class Lease:
    """Units that may be used from its start until it ends."""

    start: int
    units: int


@dataclass
class Model:
    """All lists of a server."""

    logs: dict[str, Log] = field(default_factory=dict)
    lives: Counter[str] = field(default_factory=Counter)  # how often a list was reset
    uses: dict[tuple[str, int], list[int]] = field(default_factory=dict)  # by list and life
    leases: dict[tuple[str, int, int], Lease] = field(default_factory=dict)  # and end
    bounds: dict[str, tuple[int, int]] = field(default_factory=dict)  # window, highest limit
    seen: Counter[str] = field(default_factory=Counter)

    def rules(self, keys: list[str], args: list[str]) -> list[Rule]:
        numbers = list(map(int, args))
        for nth, key in enumerate(keys):
            window, limit = numbers[3 * nth + 1 : 3 * nth + 3]
            self.bounds[key] = window, max(limit, self.bounds.get(key, (0, 0))[1])
        return [
            Rule(self.logs.setdefault(key, Log()), numbers[3 * nth + 1], numbers[3 * nth + 2])
            for nth, key in enumerate(keys)
        ]

    def take(self, keys: list[str], args: list[str], clock: int, cost: int) -> int:
        rules = self.rules(keys, args)
        wait = max(rule.wait(clock, cost) for rule in rules)
        for key, rule in zip(keys, rules, strict=True):
            self.compare(rule, clock, cost, counted=not wait)
            if not wait and cost:
                stamp = rule.log.now(clock)
                rule.log.add(stamp, False, cost)
                self.uses.setdefault((key, self.lives[key]), []).extend([stamp] * cost)
        return wait

    def compare(self, rule: Rule, clock: int, cost: int, counted: bool) -> None:
        """The model and tests/reference.py say the same, wherever nothing is lent."""
        if any(lent for _, lent in rule.log.stamps):
            rule.log.reference = None
            return
        reference = rule.log.reference
        if reference is None:
            if rule.log.stamps:
                return
            reference = Reference(rule.limit, rule.window * US, mode="exact")
            rule.log.reference = reference
        reference.limit = rule.limit
        verdict = reference.peek("", clock * US, cost)
        used, newest, oldest, deciding = rule.view(clock, cost)
        assert verdict == Verdict(
            deciding == 0,
            rule.limit - used,
            (deciding + rule.window - clock) * US if deciding else 0,
            (newest + rule.window - clock) * US if used else 0,
            (oldest + rule.window - clock) * US if used else 0,
        )
        if counted:
            assert reference.allow("", clock * US, cost)

    def answer(
        self, name: str, clock: int, keys: list[str], args: list[str]
    ) -> list[int] | str | None:
        """What the script should say."""
        if name == "return":
            return [self.give_back(keys, int(args[0]), -int(args[1]), clock)]
        cost = int(args[0])
        if name in ("take", "take_one"):
            return [self.take(keys, args, clock, cost)]
        if name == "batch":
            size = len(args) // 3
            groups = [keys[at : at + size] for at in range(0, len(keys), size)]
            return " ".join(str(self.take(group, args, clock, cost)) for group in groups)
        rules = self.rules(keys, args)
        if name in ("tell", "look"):
            return self.tell(name, keys, args, clock, cost, rules)
        if name == "take_some":
            room = 0
            while room < cost and not (wait := self.take(keys, args, clock, 1)):
                room += 1
            return [room, wait if room < cost else 0]
        if name == "grant":
            return self.grant(keys, rules, clock, cost, int(args[-1]))
        assert name == "reset"
        live = any(rule.log.live(clock, rule.window) for rule in rules)
        for key in keys:
            self.logs[key] = Log()
            self.lives[key] += 1
        return [int(live)]

    def tell(
        self, name: str, keys: list[str], args: list[str], clock: int, cost: int, rules: list[Rule]
    ) -> list[int]:
        before = [rule.view(clock, cost) for rule in rules]
        if name == "look" or any(view[3] for view in before):
            for rule in rules:
                self.compare(rule, clock, cost, counted=False)
            return [clock, *(number for view in before for number in view)]
        assert self.take(keys, args, clock, cost) == 0
        return [clock, *(number for rule in rules for number in rule.view(clock, 0))]

    def grant(
        self, keys: list[str], rules: list[Rule], clock: int, most: int, ttl: int
    ) -> list[int]:
        room, wait = most, 0
        for rule in rules:
            room = max(0, min(room, rule.limit - len(rule.log.live(clock, rule.window))))
        ends = max(rule.log.now(clock) for rule in rules) + ttl
        for key, rule in zip(keys, rules, strict=True):
            rule.log.add(ends, True, room)
            if room:
                lease = self.leases.setdefault((key, self.lives[key], ends), Lease(clock, 0))
                # Two may end at one microsecond: nothing of the later one was used before it began.
                lease.start = clock
                lease.units += room
        if room < most:
            wait = max(rule.wait(clock, 1) for rule in rules)
        return [room, wait, ends if room else 0]

    def give_back(self, keys: list[str], units: int, stamp: int, clock: int) -> int:
        # What is out may have been dropped: then it is not found. All the same to the model.
        for key in keys:
            log = self.logs.setdefault(key, Log())
            for _ in range(units):
                if (stamp, True) in log.stamps:
                    log.stamps.remove((stamp, True))
                    self.leases[key, self.lives[key], stamp].units -= 1
        return units

    def over_admitted(self, when: Callable[[int, int], int]) -> list[str]:
        """The lists with more units used in some window than the limit.

        Args:
            when: At what moment of a lease, from its start to its end, a unit of it is used.
        """
        times = {life: list(used) for life, used in self.uses.items()}
        for (key, life, ends), lease in self.leases.items():
            used = [when(lease.start, ends) for _ in range(lease.units)]
            times.setdefault((key, life), []).extend(used)
        faults = []
        for (key, _), used in times.items():
            window, limit = self.bounds[key]
            most = most_in_a_window(used, window)
            if most > limit:
                faults.append(f"{key}: {most} units in {window} us, limit {limit}")
        return faults


def replay(journal: Iterable[bytes]) -> tuple[Model, list[str]]:
    """Take the records through the model; returns it, and every answer that was wrong."""
    model, mismatches = Model(), []
    for record in journal:
        name, time, keys, args, said = json.loads(record)
        clock = int(time[0]) * 1_000_000 + int(time[1])
        expected = model.answer(name, clock, keys, args)
        given = said[0] if name == "batch" else list(map(int, said))
        if name in ("tell", "look"):
            # The newest stamp is told also where it does not count any more: nobody reads it.
            for at in range(1, len(given), 4):
                if given[at] == 0:
                    given[at + 1] = 0
        model.seen[name] += 1
        if name == "return":
            if given[0] > expected[0]:  # type: ignore[index, operator]
                mismatches.append(f"{name} {keys} {args} at {clock}: {given}")
        else:
            if name in ("take", "take_one", "take_some", "grant"):
                nothing = given[0] > 0 if name in ("take", "take_one") else given[0] == 0
                model.seen[f"{name} {'denied' if nothing else 'allowed'}"] += 1
            if given != expected:
                mismatches.append(f"{name} {keys} {args} at {clock}: {given}, not {expected}")
    return model, mismatches


def most_in_a_window(times: list[int], window: int) -> int:
    """How many of them lie in one half-open window at most."""
    times = sorted(times)
    most = start = 0
    for end, time in enumerate(times):
        while time - times[start] >= window:
            start += 1
        most = max(most, end + 1 - start)
    return most


# The crowd

MS = 1e-3
#: name, quotas, keys. Two of them share their logs with different limits.
LIMITERS: list[tuple[str | None, tuple[Quota, ...], tuple[str, ...]]] = [
    ("one", (Quota(7, 4 * MS),), ("a", "b")),
    ("odd", (Quota(3, 1.0000005 * MS),), ("a",)),
    ("two", (Quota(5, 2 * MS), Quota(20, 17 * MS)), ("a", "b")),
    ("same", (Quota(9, 6 * MS),), ("{c}",)),
    ("same", (Quota(6, 6 * MS),), ("{c}",)),
    (None, (Quota(1, 1 * MS),), ("d",)),
    ("wide", (Quota(300, 60 * MS),), ("e",)),
]
LENDERS: list[tuple[str | None, tuple[Quota, ...], tuple[str, ...]]] = [
    ("lent", (Quota(30, 12 * MS),), ("f", "g")),
    ("lent2", (Quota(25, 8 * MS), Quota(60, 30 * MS)), ("f",)),
]


class Crowd:
    """Sends random requests by journaled scripts."""

    def __init__(self, client: Any, rng: random.Random) -> None:
        self.client = client
        self.rng = rng
        self.scripts = {each.name: journaled(each) for each in SCRIPTS}
        for each in self.scripts.values():
            client.script_load(each.source)
        self.leases: list[tuple[list[bytes], Arguments, int, int]] = []

    def run(self, name: str, keys: list[bytes], args: list[bytes]) -> Any:
        return self.client.evalsha(self.scripts[name].sha, len(keys), *keys, *args)

    def step(self) -> None:
        rng = self.rng
        lends = rng.random() < 0.4
        name, quotas, keys = rng.choice(LENDERS if lends else LIMITERS)
        names, arguments = Names("t", name, quotas), Arguments(quotas)
        lists = names.of(rng.choice(keys))
        least = min(quota.limit for quota in quotas)
        cost = rng.choice((1, 1, 1, 1, 1, 2, 3, least, rng.randint(0, least)))
        cost = min(cost, least)
        kind = rng.random()
        if lends and kind < 0.25:
            args = arguments.lent(rng.randint(1, least), rng.randint(1, 5_000))
            units, _, stamp = self.run("grant", lists, args)
            if units and rng.random() < 0.6:
                self.leases.append((lists, arguments, rng.randint(1, units), stamp))
        elif self.leases and kind < 0.35:
            lists, arguments, units, stamp = self.leases.pop(rng.randrange(len(self.leases)))
            self.run("return", lists, arguments.returned(units, stamp))
        elif kind < 0.55:
            take = arguments.take.name if rng.random() < 0.8 else "take"
            self.run(take, lists, arguments.of(cost))
        elif kind < 0.7:
            self.run("tell", lists, arguments.of(cost))
        elif kind < 0.8:
            self.run("look", lists, arguments.of(cost))
        elif kind < 0.9:
            self.run("take_some", lists, arguments.some(rng.randint(1, 2 * least)))
        elif kind < 0.995:
            many = [each for _ in range(rng.randint(1, 6)) for each in names.of(rng.choice(keys))]
            self.run("batch", many, arguments.of(cost))
        else:
            self.run("reset", lists, arguments.of(0))


def main(path: str, seed: str, number: str) -> None:
    import redis

    # Its own 5 seconds are little where others keep all cores busy.
    client = redis.Redis(unix_socket_path=path, socket_timeout=120)
    crowd = Crowd(client, random.Random(int(seed)))
    for _ in range(int(number)):
        crowd.step()


if __name__ == "__main__":
    main(*sys.argv[1:])
