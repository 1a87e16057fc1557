"""Rules: which limiter holds for which requests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from nanolimit.clock import shown
from nanolimit.limiter import RateLimiter
from nanolimit.quota import Quota
from nanolimit.remote import is_limiter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nanolimit.integrations.key import KeyFunction
    from nanolimit.remote import AnyLimiter, AwaitedLimiter, BlockingLimiter

    # A limiter, or what makes one: for those who call from threads, from tasks, and for both.
    Limit = BlockingLimiter | Quota | str | Sequence[Quota | str]
    AwaitedLimit = AwaitedLimiter | Quota | str | Sequence[Quota | str]
    AnyLimit = AnyLimiter | Quota | str | Sequence[Quota | str]

_METHODS = re.compile(r"[A-Z]+(?:,[A-Z]+)*")
_PIECE = re.compile(r"(\*\*|\*|\{[A-Za-z_]\w*\}|[{}])")


def limiter_of(limit: Any) -> Any:
    """Return the limiter, or make one of a quota: ``"5/minute"``.

    Raises:
        ValueError: A quota that does not parse.
        TypeError: It is neither.
    """
    if is_limiter(limit):
        return limit
    if isinstance(limit, (str, Quota, list, tuple)):
        return RateLimiter(limit)
    raise TypeError(
        f"limiter must be a RateLimiter or a quota such as '5/minute', not {shown(limit)}"
    )


class Rule:
    """Which requests a limiter holds for: ``Rule("POST /login", "5/minute")``.

    The first rule that fits a request decides about it; no other one counts it.

    Args:
        pattern: A path, with the methods before it if not all: ``"GET,POST /search"``. In a path
            ``*`` is any piece of a segment, ``{name}`` a whole one, ``**`` anything. A slash at
            the end makes no difference, and GET is HEAD as well.
        limiter: A `RateLimiter` or a quota that makes one; or a `RedisRateLimiter`, where the
            middleware awaits an `AsyncRedisRateLimiter`. None: these requests are not limited.
            Rules that are given one limiter share its counts.
        key: A key function of its own; by default the middleware's.
        cost: Of its own: an int, or a callable on the request.
        name: What clients know the policy by; by default the limiter's name.

    Raises:
        ValueError: The pattern or the quota is not understood.
    """

    __slots__ = ("_fits", "_methods", "cost", "key", "limiter", "name", "pattern")

    def __init__(
        self,
        pattern: str,
        limiter: AnyLimit | None,
        key: KeyFunction | None = None,
        *,
        cost: int | Callable[[Any], int] | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(pattern, str):
            raise TypeError(f"pattern must be a str, not {type(pattern).__name__}")
        methods, _, path = pattern.strip().rpartition(" ")
        methods = methods.strip()
        if methods == "*":
            methods = ""
        if not path.startswith(("/", "*")) or (methods and not _METHODS.fullmatch(methods)):
            raise ValueError(
                "pattern must be a path, or methods and a path, as in '/search' or "
                f"'GET,POST /search', not {shown(pattern)}"
            )
        self.pattern: str = pattern
        self._methods = frozenset(methods.split(",")) if methods else None
        if self._methods and "GET" in self._methods:
            self._methods |= {"HEAD"}
        self._fits = re.compile(_regex(path, pattern)).fullmatch
        self.limiter: AnyLimiter | None = None if limiter is None else limiter_of(limiter)
        if key is not None and not callable(key):
            raise TypeError(f"key must be a key function such as client_ip(), not {shown(key)}")
        self.key: KeyFunction | None = key
        self.cost: int | Callable[[Any], int] | None = cost
        self.name: str | None = name

    def fits(self, method: str, path: str) -> bool:
        """Say whether it holds for such a request."""
        return (self._methods is None or method in self._methods) and bool(self._fits(path))

    def __repr__(self) -> str:
        return f"Rule({self.pattern!r}, {self.limiter!r})"


def _regex(path: str, pattern: str) -> str:
    said = []
    for piece in _PIECE.split(path if path == "/" else path.rstrip("/")):
        if piece in ("{", "}"):
            raise ValueError(
                f"a parameter in a pattern is a whole name in braces, as in '/users/{{id}}', "
                f"not {shown(pattern)}"
            )
        if piece == "**":
            said.append(r".*")
        elif piece == "*":
            said.append(r"[^/]*")
        elif piece.startswith("{"):
            said.append(r"[^/]+")
        else:
            said.append(re.escape(piece))
    return f"(?s:{''.join(said)}/?)"
