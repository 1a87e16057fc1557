"""Which methods of a gRPC server have which limit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from nanolimit.clock import shown
from nanolimit.integrations.call import check_key_function
from nanolimit.limiter import RateLimiter
from nanolimit.quota import Quota, whole_number
from nanolimit.remote import is_limiter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nanolimit.integrations.call import AnyKeyFunction, Call
    from nanolimit.remote import AnyLimiter, AwaitedLimiter, BlockingLimiter

    Limit = BlockingLimiter | Quota | str | Sequence[str | Quota]
    AwaitedLimit = AwaitedLimiter | Quota | str | Sequence[str | Quota]
    AnyLimit = AnyLimiter | Quota | str | Sequence[str | Quota]
    Cost = int | Callable[[Call], Any]

__all__ = ["MethodRule", "checked_pattern", "matches"]

_MEND = "write it like '/package.Service/Method', '/package.Service/*' or '/*'"


def checked_pattern(parameter: str, pattern: object) -> str:
    """Return what names a method, or all that begin in the same way, with ``*`` for the rest.

    Raises:
        TypeError: It is no str.
        ValueError: No method can have such a name.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"{parameter} must be a str, not {type(pattern).__name__}: {_MEND}")
    stem = pattern[:-1] if pattern.endswith("*") else pattern
    whole = stem is pattern
    service, _, method = stem[1:].partition("/")
    if (
        not stem.startswith("/")
        or "*" in stem
        or "/" in method
        or any(not "!" <= letter <= "~" for letter in stem)
        or (whole and not (service and method))
    ):
        raise ValueError(f"{parameter} {shown(pattern)} is no method: {_MEND}")
    return pattern


def matches(pattern: str, method: str) -> bool:
    """Tell whether the method's full name is the pattern's, or begins as the pattern does."""
    if pattern.endswith("*"):
        return method.startswith(pattern[:-1])
    return method == pattern


class MethodRule:
    """A limit for one method of a gRPC server, or for several that share it. Immutable.

    Of the rules of an interceptor the first that matches a method holds for it. One rule is one
    limit: the methods that it matches count together. For a count of each, make a rule for each, or
    put the method into the key.

    Args:
        method: ``"/package.Service/Method"``; or ``"/package.Service/*"``, all of a service; or
            any other beginning with ``*`` for the rest, such as ``"/package.*"`` and ``"/*"``.
        limiter: A `RateLimiter`, or what one is made of: ``"5/minute"``, a `Quota` or several; or a
            `RedisRateLimiter`, in a `grpc.aio.server` an `AsyncRedisRateLimiter`. None: these
            methods have no limit.
        key: The key function. That of the interceptor when left out.
        cost: Units, or a callable that gets the call. That of the interceptor when left out.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: The method or a quota is not understood, or `cost` never fits.
    """

    __slots__ = ("cost", "key", "limiter", "method")

    method: str
    limiter: AnyLimiter | None
    key: AnyKeyFunction | None
    cost: Cost | None

    def __init__(
        self,
        method: str,
        limiter: AnyLimit | None,
        *,
        key: AnyKeyFunction | None = None,
        cost: Cost | None = None,
    ) -> None:
        method = checked_pattern("method", method)
        limiter = checked_limiter(limiter)
        if key is not None:
            check_key_function("key", key)
        if cost is not None:
            cost = checked_cost(cost, limiter)
        for name, value in (("method", method), ("limiter", limiter), ("key", key), ("cost", cost)):
            object.__setattr__(self, name, value)

    def matches(self, method: str) -> bool:
        """Tell whether it holds for the method of this full name."""
        return matches(self.method, method)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a MethodRule is immutable: {name!r} cannot be set; make another one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a MethodRule is immutable: {name!r} cannot be deleted")

    def __repr__(self) -> str:
        return f"MethodRule({self.method!r}, {self.limiter!r})"


def checked_limiter(limiter: object) -> AnyLimiter | None:
    """Return the limiter that was given, or make one of the quota that was."""
    if limiter is None or is_limiter(limiter):
        return limiter  # type: ignore[return-value]
    if isinstance(limiter, (str, Quota, list, tuple)):
        return RateLimiter(limiter)
    raise TypeError(
        f"limiter must be a RateLimiter, or a quota such as '5/minute', or None, "
        f"not {type(limiter).__name__}"
    )


def checked_cost(cost: object, limiter: AnyLimiter | None) -> Any:
    """Return units that fit into the limiter's quotas, or a callable that tells them."""
    if callable(cost):
        return cost
    units = whole_number("cost", cost)
    if units < 0:
        raise ValueError(f"cost must be >= 0, not {shown(units)}")
    if limiter is not None:
        limit = min(quota.limit for quota in limiter.quotas)
        if units > limit:
            raise ValueError(f"cost {shown(units)} never fits into the limit of {limit}")
    return units


def checked_rules(rules: object) -> tuple[MethodRule, ...]:
    """Return the rules that were given, all of them `MethodRule`."""
    if isinstance(rules, (str, MethodRule)) or not isinstance(rules, Iterable):
        raise TypeError(f"rules must be a list of MethodRule, not {type(rules).__name__}")
    checked = tuple(rules)
    for rule in checked:
        if not isinstance(rule, MethodRule):
            raise TypeError(f"rules must hold MethodRules, not {type(rule).__name__}")
    return checked


def checked_exempt(exempt: object) -> tuple[tuple[str, ...], Any]:
    """Return the patterns of methods that are exempt, and the callable that says which calls are.

    One of the two is given, or none.
    """
    if exempt is None:
        return (), None
    if isinstance(exempt, str):
        return (checked_pattern("exempt", exempt),), None
    if callable(exempt):
        return (), exempt
    if not isinstance(exempt, Iterable):
        raise TypeError(
            f"exempt must be a list of methods, or a callable that gets the call, "
            f"not {type(exempt).__name__}"
        )
    return tuple(checked_pattern("exempt", pattern) for pattern in exempt), None
