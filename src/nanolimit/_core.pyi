"""Types of the seam. The documentation stands in limiter.py and, for Decision and Stats, here."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, NoReturn, final, overload

from typing_extensions import Buffer, disjoint_base

from nanolimit.limiter import Key, RateLimiter
from nanolimit.quota import Quota
from nanolimit.top import Pane

ABI_VERSION: Final[int]
EVENT_BITS: Final[dict[str, int]]

SHARED: Final[bool]
LAYOUT_VERSION: Final[int]
HEADER_BYTES: Final[int]

ALGORITHMS: Final[tuple[str, ...]]
MAX_LOG_LIMIT: Final[int]
MAX_LOG_LEAST: Final[int]
MAX_METER_LIMIT: Final[int]
MAX_TRACK_TOP: Final[int]
TOP_PANE_NS: Final[int]
TOP_PANES: Final[int]
RECORD_WINDOW_NS: Final[int]

def table_bytes(
    *,
    limit: int,
    window_ns: int,
    max_keys: int,
    typical: int,
    algorithm: str = "sliding-log",
    max_log: int = 0,
    track_top: int = 0,
) -> int: ...
def format_table(
    fd: int,
    *,
    limit: int,
    in_force: int,
    window_ns: int,
    max_keys: int,
    typical: int,
    own_clock: bool,
    boot_id: bytes,
    pid_namespace: int,
    time_namespace: int,
    number: int = 0,
    quotas: int = 1,
    algorithm: str = "sliding-log",
    max_log: int = 0,
    track_top: int = 0,
) -> None: ...
def read_header(fd: int) -> dict[str, Any]: ...
def has_room(
    layout_limit: int,
    limit: int,
    window_ns: int,
    algorithm: str = "sliding-log",
    max_log: int = 0,
) -> bool: ...
def mark_replaced(fd: int) -> None: ...
def inspect_table(fd: int) -> dict[str, Any]: ...
def set_routes(
    mask: int,
    names: frozenset[str] | None,
    routes: dict[str, tuple[Attachment, ...]],
    failed: Callable[[list[tuple[Attachment, str, Exception]], str, object], object],
) -> None: ...
def send_event(
    event: str, count: float, limiter: str, key: object, more: dict[str, object] | None = None
) -> None: ...
def send_detached(
    limiter: str,
    key: object,
    more: dict[str, object],
    failures: list[tuple[Attachment, str, Exception]],
) -> None: ...
def _defer_refcount(obj: object) -> bool: ...
def _kill_points() -> list[str]: ...
def _kill_at(name: str, passings: int = 1) -> None: ...
def _stop_at(name: str, passings: int = 1) -> None: ...
def _signal_at(name: str, passings: int, signal: int) -> None: ...
def _siphash128(key16: bytes, data: bytes) -> bytes: ...

class _Stats(NamedTuple):
    allowed: int
    denied: int
    keys: int
    evicted: int
    overflowed: int
    memory_bytes: int
    capacity: int

@disjoint_base
class Stats(_Stats):
    """What a limiter has done so far, and what it holds.

    Besides the items of the tuple it has three attributes, which mean something for shared tables.
    """

    would_deny: int
    """Requests among the allowed ones that `enforce=False` let pass."""
    stalled: int
    """Calls that `on_stall` answered, because a process that is stopped held what they needed."""
    log_bytes: int
    """Memory for logs that don't fit into a slot: what is in use of it."""
    log_capacity_bytes: int
    """... and how much there can be."""

@final
class Decision:
    """The answer to one check. True if allowed. Immutable; seconds are computed when asked for."""

    @property
    def allowed(self) -> bool:
        """Whether the request fits (and, by `check`, was counted)."""
    @property
    def would_deny(self) -> bool:
        """Whether it was let pass only because the limiter does not enforce."""
    @property
    def degraded(self) -> bool:
        """Whether it was made without the distributed store that should have made it."""
    @property
    def blocked(self) -> bool:
        """Whether the key is blocked: by its denials in a row, or by `block`."""
    @property
    def quota(self) -> Quota:
        """The binding quota."""
    @property
    def limit(self) -> int:
        """The binding quota's limit, in units."""
    @property
    def violated(self) -> Quota | None:
        """The quota that denied, or would; of several, the one that makes one wait longest."""
    @property
    def remaining(self) -> int:
        """Units that would still fit now, after this decision."""
    @property
    def retry_after(self) -> float:
        """Seconds until the same cost would fit, if nobody else comes; 0.0 if allowed."""
    @property
    def reset_after(self) -> float:
        """Seconds until the key's newest request leaves the window: its whole quota is back."""
    @property
    def refill_after(self) -> float:
        """Seconds until the key's oldest request leaves the window; 0.0 if the key is unused."""
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def __bool__(self) -> bool: ...
    def __reduce__(self) -> tuple[object, ...]: ...

@final
class Attachment:
    handler_id: Final[str]
    events: Final[tuple[str, ...]]
    handler: Final[Callable[[str, dict[str, float], dict[str, object]], object]]
    sample: Final[float]
    limiters: Final[frozenset[str] | None]
    chance: Callable[[], float] | None
    def __init__(
        self,
        handler_id: str,
        events: tuple[str, ...],
        handler: Callable[[str, dict[str, float], dict[str, object]], object],
        sample: float = 1.0,
        limiters: frozenset[str] | None = None,
    ) -> None: ...

@final
class Limiter:
    def __new__(
        cls,
        quota: Quota,
        *,
        limit: int,
        window_ns: int,
        name: str,
        max_keys: int,
        on_full: str,
        clock: Callable[[], float] | None,
        table: int | None = None,
        path: str | None = None,
        stall_ns: int = 0,
        on_stall: str = "allow",
        make_quota: Callable[[int], Quota] | None = None,
        kin: Limiter | None = None,
        algorithm: str = "sliding-log",
        max_log: int = 0,
        track_top: int = 0,
    ) -> Limiter: ...
    open_records: Callable[[], Limiter] | None
    @property
    def quota(self) -> Quota: ...
    @property
    def name(self) -> str: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def closed(self) -> bool: ...
    @property
    def track_top(self) -> int: ...
    def denied_most(self) -> tuple[list[Pane], int | None]: ...
    def allow(
        self, key: Key, cost: int = 1, *, quota: Quota | tuple[Quota, ...] | None = None
    ) -> bool: ...
    def check(
        self, key: Key, cost: int = 1, *, quota: Quota | tuple[Quota, ...] | None = None
    ) -> Decision: ...
    def peek(
        self, key: Key, cost: int = 1, *, quota: Quota | tuple[Quota, ...] | None = None
    ) -> Decision: ...
    @overload
    def allow_many(self, keys: Buffer, cost: int = 1) -> memoryview: ...
    @overload
    def allow_many(self, keys: Sequence[Key], cost: int = 1) -> list[bool]: ...
    def reset(self, key: Key) -> bool: ...
    def clear(self) -> None: ...
    def evict(self) -> int: ...
    def stats(self) -> Stats: ...
    def close(self) -> None: ...
    @property
    def limiters(self) -> tuple[Limiter, ...]: ...
    @property
    def max_limit(self) -> int: ...
    def set_limit(self, limit: int) -> None: ...
    def update(self, quota: Quota, make_quota: Callable[[int], Quota] | None) -> None: ...
    def make_room(self, quota: Quota) -> None: ...
    def require_room(self, quota: Quota) -> None: ...
    def refuse_if_fixed(self, quota: Quota) -> None: ...
    def drop_idle(self, now_ns: int) -> None: ...
    def governing(self) -> Bundle: ...
    @property
    def quotas(self) -> tuple[Quota, ...]: ...
    def count(self, key: Key, cost: int) -> tuple[Decision, Any]: ...
    def give_back(self, key: Key, units: int, token: Any = None, *, many: bool = False) -> int: ...
    def __len__(self) -> int: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __reduce__(self) -> NoReturn: ...
    def place(self, key: Key) -> bytes: ...
    def _is_heard(self) -> bool: ...
    def _fingerprint(self, key: Key) -> int: ...
    def _verify(self) -> int: ...

@final
class Bundle:
    def __new__(cls, limiters: Sequence[Limiter], *, alone: bool = False) -> Bundle: ...
    limiters: Final[tuple[Limiter, ...]]
    name: Final[str]
    @property
    def quota(self) -> Quota: ...
    @property
    def quotas(self) -> tuple[Quota, ...]: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def clock(self) -> Callable[[], float] | None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def track_top(self) -> int: ...
    def denied_most(self) -> tuple[list[Pane], int | None]: ...
    def allow(
        self, key: Key, cost: int = 1, *, quota: Quota | tuple[Quota, ...] | None = None
    ) -> bool: ...
    def check(
        self, key: Key, cost: int = 1, *, quota: Quota | tuple[Quota, ...] | None = None
    ) -> Decision: ...
    def peek(
        self, key: Key, cost: int = 1, *, quota: Quota | tuple[Quota, ...] | None = None
    ) -> Decision: ...
    def count(self, key: Key, cost: int) -> tuple[Decision, Any]: ...
    def give_back(self, key: Key, units: int, token: Any = None) -> int: ...
    @overload
    def allow_many(self, keys: Buffer, cost: int = 1) -> memoryview: ...
    @overload
    def allow_many(self, keys: Sequence[Key], cost: int = 1) -> list[bool]: ...
    def reset(self, key: Key) -> bool: ...
    def clear(self) -> None: ...
    def evict(self) -> int: ...
    def stats(self) -> Stats: ...
    def close(self) -> None: ...
    def governing(self) -> Bundle: ...
    def govern(
        self,
        *,
        enforces: bool | None = None,
        after: int = 0,
        base: float = 0.0,
        factor: float = 1.0,
        maximum: float = 0.0,
        forgive_ms: int = 0,
        prolong: bool = False,
    ) -> None: ...
    def set_quota(self, key: Key, given: tuple[Quota, ...] | None) -> None: ...
    def exempt(self, key: Key, yes: bool) -> None: ...
    def block(self, key: Key, duration_ns: int, seconds: float) -> None: ...
    def unblock(self, key: Key) -> bool: ...
    def forgive_all(self) -> None: ...
    def __len__(self) -> int: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __reduce__(self) -> NoReturn: ...
    def place(self, key: Key) -> bytes: ...
    def _is_heard(self) -> bool: ...
    def _fingerprint(self, key: Key) -> int: ...
    def _verify(self) -> int: ...

def _decision(
    allowed: bool,
    untracked: bool,
    quota: Quota,
    tick_ns: int,
    window: int,
    seconds: float,
    now_ns: int,
    newest_tick: int,
    oldest_tick: int,
    deciding_tick: int,
    used: int,
    limit: int,
    would_deny: bool = False,
    fits: bool = False,
    blocked_ns: int = 0,
    degraded: bool = False,
) -> Decision: ...
def stats_of(every: list[Stats]) -> Stats: ...
def check_together(
    items: Iterable[tuple[RateLimiter, Key] | tuple[RateLimiter, Key, int]],
) -> Decision: ...

@final
class Reader:
    own_clock: Final[bool]
    def __new__(cls, fd: int) -> Reader: ...
    @property
    def limit(self) -> int: ...
    @property
    def track_top(self) -> int: ...
    @property
    def replaced(self) -> bool: ...
    def stats(self) -> Stats: ...
    def denied_most(self) -> tuple[list[Pane], int | None]: ...
    def _fingerprint(self, key: Key) -> int: ...

@final
class DenialTable:
    def __new__(cls, limiter: Limiter, salt: int, cap_ns: int) -> DenialTable: ...
    def now_ns(self) -> int: ...
    def left_s(self, place: bytes, cost: int) -> float: ...
    def decision(self, place: bytes, cost: int, quotas: tuple[Quota, ...]) -> Decision | None: ...
    def put(
        self,
        place: bytes,
        cost: int,
        sent_ns: int,
        retry_ns: int,
        decision: Decision | None = None,
        nth: int = 0,
    ) -> bool: ...
    def forget(self, place: bytes, keep_ns: int) -> bool: ...
    def __reduce__(self) -> NoReturn: ...

@final
class Control:
    def empty(self, key: object) -> bool: ...
    def clock(self, key: object) -> bool: ...
