"""Types of the seam. The documentation stands in limiter.py and, for Decision and Stats, here."""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, NoReturn, final, overload

from typing_extensions import Buffer, disjoint_base

from nanolimit.limiter import Key
from nanolimit.quota import Quota

ABI_VERSION: Final[int]
EVENT_BITS: Final[dict[str, int]]

SHARED: Final[bool]
LAYOUT_VERSION: Final[int]
HEADER_BYTES: Final[int]

ALGORITHMS: Final[tuple[str, ...]]
MAX_LOG_LIMIT: Final[int]
MAX_METER_LIMIT: Final[int]

def table_bytes(
    *, limit: int, window_ns: int, max_keys: int, typical: int, algorithm: str = "sliding-log"
) -> int: ...
def format_table(
    fd: int,
    *,
    limit: int,
    window_ns: int,
    max_keys: int,
    typical: int,
    own_clock: bool,
    boot_id: bytes,
    pid_namespace: int,
    time_namespace: int,
    algorithm: str = "sliding-log",
) -> None: ...
def read_header(fd: int) -> dict[str, Any]: ...
def same_layout(
    limit: int, other_limit: int, window_ns: int, algorithm: str = "sliding-log"
) -> bool: ...
def mark_replaced(fd: int) -> None: ...
def inspect_table(fd: int) -> dict[str, Any]: ...
def set_emitter(mask: int, emit: Callable[[str, int, str, object], object] | None) -> None: ...
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
    def quota(self) -> Quota:
        """The binding quota."""
    @property
    def limit(self) -> int:
        """The binding quota's limit, in units."""
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
        algorithm: str = "sliding-log",
    ) -> Limiter: ...
    @property
    def quota(self) -> Quota: ...
    @property
    def name(self) -> str: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def closed(self) -> bool: ...
    def allow(self, key: Key, cost: int = 1) -> bool: ...
    def check(self, key: Key, cost: int = 1) -> Decision: ...
    def peek(self, key: Key, cost: int = 1) -> Decision: ...
    @overload
    def allow_many(self, keys: Buffer, cost: int = 1) -> memoryview: ...
    @overload
    def allow_many(self, keys: Sequence[Key], cost: int = 1) -> list[bool]: ...
    def reset(self, key: Key) -> bool: ...
    def clear(self) -> None: ...
    def evict(self) -> int: ...
    def stats(self) -> Stats: ...
    def close(self) -> None: ...
    def set_limit(self, limit: int) -> None: ...
    def __len__(self) -> int: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __reduce__(self) -> NoReturn: ...
    def _fingerprint(self, key: Key) -> int: ...
    def _verify(self) -> int: ...

@final
class Control:
    def empty(self, key: object) -> bool: ...
    def clock(self, key: object) -> bool: ...
