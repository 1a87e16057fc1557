"""A stand-in for the wire to a Redis: a store in memory whose clock and failures a test moves."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nanolimit.redis import script
from nanolimit.redis.cluster import Address, SlotMap, slot_of
from nanolimit.redis.fault import Unavailable

#: The server's clock when a test begins, far from that of the process.
EPOCH_US = 1_700_000_000_000_000


class Store:
    """Keeps stamps and decides as the scripts do; told to fail, it fails."""

    def __init__(self) -> None:
        self.now_s = 1_000.0  # the process's monotonic clock; the server's goes along with it
        self.logs: dict[bytes, list[int]] = {}
        self.calls: list[str] = []
        self.timeouts_s: list[float | None] = []  # of single calls; None: as usual
        self.faults: list[Unavailable] = []  # of the next calls, one each
        self.down: Unavailable | None = None  # of all calls
        self.counts_before_fault = False
        self.on_call: Callable[[], object] = lambda: None
        self.latency_s = 0.0
        self.clustered = False
        self.slots: SlotMap | None = None  # of a cluster, if it is to be known who serves what
        self.down_at: dict[Address, Unavailable] = {}  # nodes of it that fail
        self.closed = False

    def monotonic(self) -> float:
        """Stand in for `time.monotonic` of the modules under test."""
        return self.now_s

    @property
    def now_us(self) -> int:
        return EPOCH_US + round(self.now_s * 1e6)

    def ask(self, what: script.Script, keys: Sequence[bytes], args: Sequence[Any]) -> Any:
        """Answer one call."""
        self.calls.append(what.name)
        self.now_s += self.latency_s
        fault = self.faults.pop(0) if self.faults else self.down
        if fault is None and self.slots is not None and self.down_at:
            node = self.slots.owners[slot_of(keys[0])]
            if node in self.down_at:
                fault = self.down_at[node].again()
                fault.node = node
        if fault is not None and not self.counts_before_fault:
            raise fault
        reply = self._run(what.name, list(keys), [int(arg) for arg in args])
        self.now_s += self.latency_s
        self.on_call()
        if fault is not None:
            raise fault
        return reply

    def _run(self, name: str, keys: list[bytes], args: list[int]) -> Any:
        if name == "return":
            units, stamp = args[0], -args[1]
            found = 0
            for key in keys:
                log = self.logs.get(key, [])
                found = max(found, min(units, log.count(stamp)))
                for _ in range(min(units, log.count(stamp))):
                    log.remove(stamp)
            return found
        if name == "grant":
            return self._grant(keys, args[0], args[1:-1], args[-1])
        cost, rules = args[0], [(args[i], args[i + 1]) for i in range(1, len(args), 3)]
        if name in ("take", "take_one"):
            return self._take(keys, cost, rules)
        if name == "batch":
            each = len(rules)
            waits = [self._take(keys[i : i + each], cost, rules) for i in range(0, len(keys), each)]
            return " ".join(map(str, waits)).encode()
        if name == "take_some":
            waits = [self._take(keys, 1, rules) for _ in range(cost)]
            return [waits.count(0), waits[-1]]
        if name == "reset":
            was_there = any(
                self._live(key, window) for key, (window, _) in zip(keys, rules, strict=True)
            )
            for key in keys:
                self.logs.pop(key, None)
            return int(was_there)
        assert name in ("tell", "look"), name
        asked = [self._wait(key, cost, *rule) for key, rule in zip(keys, rules, strict=True)]
        if name == "tell" and not any(wait for wait, _ in asked):
            self._count(keys, cost)
        views = [self.now_us]
        for key, (window, _), (_, deciding) in zip(keys, rules, asked, strict=True):
            live = self._live(key, window)
            views += [len(live), live[-1] if live else 0, live[0] if live else 0, deciding]
        return views

    def _live(self, key: bytes, window: int) -> list[int]:
        return [stamp for stamp in self.logs.get(key, ()) if self.now_us - stamp < window]

    def _wait(self, key: bytes, cost: int, window: int, limit: int) -> tuple[int, int]:
        live = self._live(key, window)
        over = len(live) + cost - limit
        if cost == 0 or over <= 0:
            return 0, 0
        return live[over - 1] + window - self.now_us, live[over - 1]

    def _take(self, keys: list[bytes], cost: int, rules: list[Any]) -> int:
        wait = max(self._wait(key, cost, *rule)[0] for key, rule in zip(keys, rules, strict=True))
        if not wait:
            self._count(keys, cost)
        return wait

    def _grant(self, keys: list[bytes], units: int, rest: list[int], ttl_us: int) -> list[int]:
        rules = [(rest[i], rest[i + 1]) for i in range(0, len(rest), 3)]
        each = list(zip(keys, rules, strict=True))
        room = min(units, *(limit - len(self._live(key, window)) for key, (window, limit) in each))
        room = max(room, 0)
        ends = self.now_us + ttl_us
        self._count(keys, room, ends)
        wait = max(self._wait(key, 1, *rule)[0] for key, rule in each) if room < units else 0
        return [room, wait, ends if room else 0]

    def _count(self, keys: list[bytes], cost: int, stamp: int | None = None) -> None:
        for key in keys:
            log = self.logs.setdefault(key, [])
            for _ in range(cost):
                insort(log, self.now_us if stamp is None else stamp)


class StoreWire:
    """Stands in for `Wire`."""

    def __init__(self, store: Store, timeout_s: float) -> None:
        self.store = store
        self.timeout_s = timeout_s

    @property
    def clustered(self) -> bool:
        return self.store.clustered

    @property
    def slots(self) -> SlotMap | None:
        return self.store.slots

    def run(
        self,
        what: Any,
        keys: Sequence[bytes],
        args: Sequence[Any] = (),
        timeout_s: float | None = None,
    ) -> Any:
        self.store.timeouts_s.append(timeout_s)
        return self.store.ask(what, keys, args)

    def run_many(self, calls: Iterable[Any]) -> list[Any]:
        replies: list[Any] = []
        for call in calls:
            try:
                replies.append(self.store.ask(*call))
            except Unavailable as fault:
                replies.append(fault)
        return replies

    def close(self) -> None:
        self.store.closed = True


class AsyncStoreWire:
    """Stands in for `AsyncWire`."""

    def __init__(self, store: Store, timeout_s: float) -> None:
        self._wire = StoreWire(store, timeout_s)

    @property
    def clustered(self) -> bool:
        return self._wire.clustered

    @property
    def slots(self) -> SlotMap | None:
        return self._wire.slots

    async def run(
        self,
        what: Any,
        keys: Sequence[bytes],
        args: Sequence[Any] = (),
        timeout_s: float | None = None,
    ) -> Any:
        return self._wire.run(what, keys, args, timeout_s)

    async def run_many(self, calls: Iterable[Any], tells: Iterable[Any] = ()) -> list[Any]:
        return self._wire.run_many(calls)

    async def drain(self) -> None:
        """Nothing is ever on its way."""

    async def aclose(self) -> None:
        self._wire.close()
