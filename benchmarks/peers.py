"""The peers, each behind the quickest right call that its documentation offers.

A peer is imported only when it is asked for, in its own worker process. `call(key)` counts one
request; `admits(answer)` reads the answer. `call` is a bound method or a `functools.partial` of
one where the peer's API allows that, so that no adapter frame is billed to the peer; the rows
that need a Python function around them say so in `note`.
"""

from __future__ import annotations

import dataclasses
import importlib
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from harness import version_of

# Caps that some peers need to hold the keys of a run at all.
MOST_KEYS = 20_000_000


class Subject(NamedTuple):
    """A limiter that is ready to be asked."""

    call: Callable[[Any], object]
    admits: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Peer:
    """How to make one peer and what to know about it."""

    name: str
    distribution: str | None
    algorithm: str
    exact: bool
    make: Callable[[int, int], Subject]  # (limit, per_s)
    note: str = ""

    @property
    def version(self) -> str | None:
        return version_of(self.distribution) if self.distribution else "-"

    @property
    def installed(self) -> bool:
        return self.distribution is None or self.version is not None


def _is_true(answer: Any) -> bool:
    return answer is True


def _is_none(answer: Any) -> bool:
    return answer is None


# --- limits -------------------------------------------------------------------------------------
def _make_limits(limit: int, per_s: int) -> Subject:
    limits = importlib.import_module("limits")
    storage = importlib.import_module("limits.storage").MemoryStorage()
    strategy = importlib.import_module("limits.strategies").MovingWindowRateLimiter(storage)
    item = limits.RateLimitItemPerSecond(limit, per_s)
    return Subject(partial(strategy.hit, item), _is_true)


# --- throttled-py -------------------------------------------------------------------------------
def subject_of_throttled(using: str, limit: int, per_s: int) -> Subject:
    throttled = importlib.import_module("throttled")
    quota = throttled.per_duration(timedelta(seconds=per_s), limit, burst=limit)
    store = throttled.MemoryStore(options={"MAX_SIZE": MOST_KEYS})
    limiter = throttled.Throttled(using=using, quota=quota, store=store)
    return Subject(limiter.limit, _throttled_admits)


def _throttled_admits(answer: Any) -> bool:
    return not answer.limited


# --- PyrateLimiter ------------------------------------------------------------------------------
def _make_pyrate(limit: int, per_s: int) -> Subject:
    pyrate = importlib.import_module("pyrate_limiter")
    clock = pyrate.MonotonicClock()
    rates = [pyrate.Rate(limit, per_s * 1000)]

    class PerName(pyrate.BucketFactory):  # type: ignore[misc, name-defined]
        """A bucket per key, as the project's README writes it."""

        def __init__(self) -> None:
            self.buckets: dict[str, Any] = {}

        def wrap_item(self, name: str, weight: int = 1) -> Any:
            return pyrate.RateItem(name, clock.now(), weight=weight)

        def get(self, item: Any) -> Any:
            bucket = self.buckets.get(item.name)
            if bucket is None:
                bucket = self.buckets[item.name] = self.create(pyrate.InMemoryBucket, rates)
            return bucket

    limiter = pyrate.Limiter(PerName())
    return Subject(partial(limiter.try_acquire, blocking=False), _is_true)


# --- token-bucket -------------------------------------------------------------------------------
def _make_token_bucket(limit: int, per_s: int) -> Subject:
    token_bucket = importlib.import_module("token_bucket")
    limiter = token_bucket.Limiter(limit / per_s, limit, token_bucket.MemoryStorage())
    return Subject(limiter.consume, _is_true)


# --- rust-py-rate-limit -------------------------------------------------------------------------
def _make_rust_py(limit: int, per_s: int) -> Subject:
    module = importlib.import_module("rust_py_rate_limit")
    limiter = module.RateLimiter(limit, per_s, "sliding")
    return Subject(limiter.allow, _is_true)


# --- floodgate-rs -------------------------------------------------------------------------------
def _make_floodgate(limit: int, per_s: int) -> Subject:
    floodgate = importlib.import_module("floodgate")
    mapping = floodgate.FixedMapping(capacity=limit, period=timedelta(seconds=per_s))
    return Subject(mapping.trigger, _is_none)


# --- cpex-rate-limiter --------------------------------------------------------------------------
def _make_cpex(limit: int, per_s: int) -> Subject:
    module = importlib.import_module("cpex_rate_limiter.rate_limiter_rust")
    unit = {1: "s", 60: "m", 3600: "h"}[per_s]
    engine = module.RateLimiterEngine(
        {"by_user": f"{limit}/{unit}", "algorithm": "sliding_window", "backend": "memory"}
    )
    check, now = engine.check, time.time

    def call(key: str) -> object:
        return check(key, None, "tool", int(now()), False, None)

    return Subject(call, _cpex_admits)


def _cpex_admits(answer: Any) -> bool:
    return answer[0] is True


# --- what people write themselves ---------------------------------------------------------------
class DequeLimiter:
    """A deque of times per key in a dict, under one lock. It never forgets a key."""

    def __init__(self, limit: int, per_s: float) -> None:
        self.limit, self.per_s = limit, per_s
        self._logs: dict[object, deque[float]] = {}
        self._lock = threading.Lock()

    def allow(self, key: object) -> bool:
        now = time.monotonic()
        with self._lock:
            log = self._logs.get(key)
            if log is None:
                log = self._logs[key] = deque()
            oldest = now - self.per_s
            while log and log[0] <= oldest:
                log.popleft()
            if len(log) >= self.limit:
                return False
            log.append(now)
            return True


def _make_deque(limit: int, per_s: int) -> Subject:
    return Subject(DequeLimiter(limit, per_s).allow, _is_true)


# --- nanolimit itself, behind the same face -----------------------------------------------------
def _make_nanolimit(limit: int, per_s: int) -> Subject:
    nanolimit = importlib.import_module("nanolimit")
    limiter = nanolimit.RateLimiter(limit, per=per_s, max_keys=MOST_KEYS)
    return Subject(limiter.allow, _is_true)


NANOLIMIT = Peer("nanolimit", "nanolimit", "sliding log", True, _make_nanolimit)

PEERS: tuple[Peer, ...] = (
    Peer("rust-py-rate-limit", "rust-py-rate-limit", "sliding counter", False, _make_rust_py,
         "an estimate from two windows; str keys only"),
    Peer("floodgate-rs", "floodgate-rs", "jumping window", False, _make_floodgate,
         "twice the limit may pass around a window's end; keeps the key object"),
    Peer("token-bucket", "token-bucket", "token bucket", False, _make_token_bucket,
         "no lock; never forgets a key"),
    Peer("deque", None, "sliding log", True, _make_deque,
         "hand-written deque + dict + lock; never forgets a key"),
    Peer("limits", "limits", "moving window", True, _make_limits,
         "a timer thread scans all keys"),
    Peer("throttled gcra", "throttled-py", "GCRA", False, partial(subject_of_throttled, "gcra"),
         "store raised from 1,024 keys, beyond which it evicts live ones"),
    Peer("throttled sliding", "throttled-py", "sliding counter", False,
         partial(subject_of_throttled, "sliding_window"),
         "store raised from 1,024 keys; an estimate from two windows"),
    Peer("PyrateLimiter", "pyrate-limiter", "sliding log", True, _make_pyrate,
         "a bucket per key from its BucketFactory; one lock for all keys"),
    Peer("cpex-rate-limiter", "cpex-rate-limiter", "sliding log", True, _make_cpex,
         "its check() wants the time and returns dicts; one Python function around it"),
)  # fmt: skip

BY_NAME: dict[str, Peer] = {peer.name: peer for peer in (NANOLIMIT, *PEERS)}


def choose(names: str) -> tuple[list[Peer], dict[str, str]]:
    """The peers that `--peers` asks for, and why each missing one is missing.

    Raises ValueError for a name that is not a peer's.
    """
    if names == "none":
        return [], {}
    wanted = [p.name for p in PEERS] if names == "all" else [n.strip() for n in names.split(",")]
    unknown = [name for name in wanted if name not in BY_NAME]
    if unknown:
        known = ", ".join(peer.name for peer in PEERS)
        raise ValueError(f"no such peer: {', '.join(unknown)}; there are: {known}")
    chosen = [BY_NAME[name] for name in wanted]
    missing = {p.name: "not installed (pip install " + str(p.distribution) + ")"
               for p in chosen if not p.installed}  # fmt: skip
    return [peer for peer in chosen if peer.installed], missing


def subject(name: str, limit: int, per_s: int) -> Subject:
    """Make the limiter called `name` at `limit` requests in `per_s` seconds."""
    return BY_NAME[name].make(limit, per_s)


def self_check(name: str) -> None:
    """Raise AssertionError unless the peer lets exactly 5 of 8 calls through and then denies.

    A row whose peer does not limit would be a fast and worthless row.
    """
    call, admits = subject(name, 5, 3600)
    answers = [admits(call("self-check")) for _ in range(8)]
    if answers != [True] * 5 + [False] * 3:
        raise AssertionError(f"{name}: expected five allowed, three denied; got {answers}")


def main() -> None:
    """List the peers and check that each one limits."""
    from harness import print_table

    rows = []
    for peer in (NANOLIMIT, *PEERS):
        state = "not installed"
        if peer.installed:
            try:
                self_check(peer.name)
                state = "limits 5 of 8"
            except Exception as error:
                state = f"{type(error).__name__}: {error}"
        exact = "yes" if peer.exact else "no"
        rows.append((peer.name, peer.version, peer.algorithm, exact, state, peer.note))
    print_table("Peers", ("peer", "version", "algorithm", "exact", "self-check", "note"), rows)


if __name__ == "__main__":
    main()
