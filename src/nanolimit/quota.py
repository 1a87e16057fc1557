"""Quota: how many, and in what time.

Quotas are written as a number and a window, ``Quota(5, per=60)``, or as people say them,
``Quota.parse("5/minute")``. The grammar, in any case and with spaces where one likes them::

    quota  = limit ("/" | " per ") [amount] unit        "5/minute"  "100/15m"  "10 per 2 hours"
    limit  = digits
    amount = digits ["." digits]                        1 when left out
    unit   = s sec second seconds | m min minute minutes | h hour hours | d day days
           | w week weeks

There are no months: they differ in length.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, NoReturn

from nanolimit.clock import NS_PER_SECOND, divided, nanoseconds, shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from typing_extensions import Self

__all__ = ["Quota"]

# The most that any algorithm can count: algorithm.py knows what each can.
MAX_LIMIT = 1 << 24

MIN_WINDOW_NS = 1_000
MAX_WINDOW_NS = 315_576_000 * NS_PER_SECOND  # ten years of 365.25 days

MAX_QUOTAS = 8  # that one limiter has

# Nobody writes a longer quota; a bound keeps the pattern's work and the error message small.
_MAX_TEXT = 100

_PARTS = re.compile(r"(?P<limit>[^\s/]+)(?:\s*/\s*|\s+per\s+)(?P<window>\S.*)", re.IGNORECASE)
_WINDOW = re.compile(
    r"(?:(?P<whole>[0-9]+)(?:\.(?P<fraction>[0-9]+))?\s*)?(?P<unit>[a-z]+)",
    re.IGNORECASE | re.ASCII,
)
_DIGITS = re.compile(r"[0-9]+")

_UNIT_NS = {
    name: seconds * NS_PER_SECOND
    for seconds, names in (
        (1, "s sec second seconds"),
        (60, "m min minute minutes"),
        (3_600, "h hour hours"),
        (86_400, "d day days"),
        (604_800, "w week weeks"),
    )
    for name in names.split()
}

_MEND = "write it like '5/minute', '100/15m' or '10 per 2 hours', with s, m, h, d or w"


def whole_number(parameter: str, value: object) -> int:
    """Return `value` as an int: an int, or anything with ``__index__`` that is no bool.

    Raises:
        TypeError: It is something else. Floats are refused even when they are whole.
    """
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{parameter} must be an int, not {type(value).__name__}")
    # int(): operator.index() hands a subclass of int through as it is.
    return int(operator.index(value))  # type: ignore[arg-type]


def check_number(number: int, given: str) -> None:
    """Refuse a limiter without quotas, or with more than the core checks at once."""
    if number < 1:
        raise ValueError("a limiter needs at least one quota, got none: '5/minute' is one")
    if number > MAX_QUOTAS:
        raise ValueError(
            f"a limiter has at most {MAX_QUOTAS} quotas, got more in {given}: "
            f"take the tightest ones"
        )


class Quota:
    """So many units in any window of this length. Immutable, hashable, compared by value.

    Args:
        limit: Units that fit into one window, 1 to 16,777,216 (2**24).
        per: The length of the window: seconds as int or float, or a `timedelta`, from one
            microsecond to ten years. A float becomes the nearest whole nanosecond.

    Raises:
        TypeError: `limit` is no int, or `per` is no span of time. A bool is neither.
        ValueError: One of them is out of range, or `per` is NaN or infinite.

    Example:
        >>> Quota(5, per=60.0) == Quota.parse("5/minute")
        True
        >>> str(Quota(100, per=0.25))
        '100 per 0.25 s'
    """

    __slots__ = {
        "limit": "Units that fit into one window, as an int.",
        "window_ns": "The length of the window in nanoseconds, as an int: the exact value.",
    }
    __match_args__ = ("limit", "per")

    limit: int
    window_ns: int

    # __new__ and not __init__: a second call of __init__ could change a quota.
    def __new__(cls, limit: int, per: float | timedelta = 60.0) -> Self:
        limit = whole_number("limit", limit)
        window_ns = nanoseconds("per", per)
        if not MIN_WINDOW_NS <= window_ns <= MAX_WINDOW_NS:
            raise ValueError(
                f"per must be from 1e-6 to 315576000 seconds (ten years), not {shown(per)}"
            )
        return cls._of(limit, window_ns)

    @classmethod
    def _of(cls, limit: int, window_ns: int) -> Self:
        """Make a quota from its two integers; the window is known to be in range."""
        if not 1 <= limit <= MAX_LIMIT:
            raise ValueError(f"limit must be from 1 to {MAX_LIMIT}, not {shown(limit)}")
        self = object.__new__(cls)
        object.__setattr__(self, "limit", limit)
        object.__setattr__(self, "window_ns", window_ns)
        return self

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a quota as people write it: ``"5/minute"``, ``"100/15m"``, ``"10 per 2 hours"``.

        The grammar stands at the head of this module. What `str` of a quota prints is part of it.

        Raises:
            TypeError: `text` is no str.
            ValueError: It is not understood, or a number in it is out of range; the message
                names the text and what would do.
        """
        if not isinstance(text, str):
            raise TypeError(f"a quota to parse must be a str, not {type(text).__name__}")
        if len(text) > _MAX_TEXT:
            raise ValueError(
                f"quota {shown(text[:40])}... is not understood: it has {len(text)} characters, "
                f"{_MAX_TEXT} are allowed; {_MEND}"
            )
        if ";" in text or "," in text:
            raise ValueError(f"quota {text!r} holds several quotas: give one, or use parse_all")
        parts = _PARTS.fullmatch(text.strip())
        if parts is None:
            raise ValueError(f"quota {text!r} is not understood: {_MEND}")
        limit = parts["limit"]
        if not _DIGITS.fullmatch(limit):
            raise ValueError(
                f"quota {text!r} is not understood: its limit {limit!r} is no whole number "
                f"above 0; {_MEND}"
            )
        window_ns = _window_ns(text, parts["window"])
        if not MIN_WINDOW_NS <= window_ns <= MAX_WINDOW_NS:
            raise ValueError(
                f"quota {text!r} has a window out of range: "
                f"it must be from 1e-6 to 315576000 seconds (ten years)"
            )
        try:
            return cls._of(int(limit), window_ns)
        except ValueError as error:
            raise ValueError(f"quota {text!r} is out of range: {error}") from None

    @classmethod
    def parse_all(cls, text: str) -> tuple[Self, ...]:
        """Read one quota or several, with ``;`` or ``,`` between them: ``"10/second; 1000/hour"``.

        Raises:
            TypeError: `text` is no str.
            ValueError: There are more than 8, one of them is empty, or as `parse`.
        """
        if not isinstance(text, str):
            raise TypeError(f"a quota to parse must be a str, not {type(text).__name__}")
        parts = text.replace(",", ";").split(";", MAX_QUOTAS)
        check_number(len(parts), shown(text))
        if len(parts) > 1 and not all(part.strip() for part in parts):
            raise ValueError(f"quotas {shown(text)} are not understood: one of them is empty")
        return tuple(map(cls.parse, parts))

    @property
    def per(self) -> float:
        """The length of the window in seconds, as the nearest float."""
        return self.window_ns / NS_PER_SECOND

    def __str__(self) -> str:
        return f"{self.limit} per {_seconds_text(self.window_ns)} s"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.limit}, per={self.per!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Quota):
            return NotImplemented
        return self.limit == other.limit and self.window_ns == other.window_ns

    def __hash__(self) -> int:
        return hash((Quota, self.limit, self.window_ns))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Quota is immutable: {name!r} cannot be set; make another one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Quota is immutable: {name!r} cannot be deleted")

    def __reduce__(self) -> tuple[object, tuple[int, int]]:
        # By window_ns: `per` as a float does not hold every nanosecond of a long window.
        return type(self)._of, (self.limit, self.window_ns)


def checked_quotas(quota: object, per: float | timedelta | None) -> tuple[Quota, ...]:
    """Return what was given as a limit, and perhaps a window, as quotas.

    Raises:
        TypeError: It is nothing of the kind.
        ValueError: It is out of range, or is not understood; or there are none, or more than 8.
    """
    if isinstance(quota, (Quota, str)):
        if per is not None:
            raise TypeError(
                f"per goes with a limit given as an int; {shown(quota)} says its window itself"
            )
        return (quota,) if isinstance(quota, Quota) else Quota.parse_all(quota)
    if isinstance(quota, (list, tuple)):
        if per is not None:
            raise TypeError("per goes with a limit given as an int; quotas say their windows")
        return _checked_several(quota)
    if isinstance(quota, bool) or not hasattr(type(quota), "__index__"):
        raise TypeError(
            f"the limit must be an int, a str such as '5/minute', a Quota or a list of these, "
            f"not {type(quota).__name__}"
        )
    return (Quota(whole_number("limit", quota), 60.0 if per is None else per),)


def _checked_several(quotas: Sequence[object]) -> tuple[Quota, ...]:
    for quota in quotas:
        if not isinstance(quota, (Quota, str)):
            raise TypeError(
                f"a list of quotas must hold Quotas or strs such as '5/minute', "
                f"not {type(quota).__name__}"
            )
    checked = tuple(
        quota if isinstance(quota, Quota) else Quota.parse(quota)
        for quota in quotas
        if isinstance(quota, (Quota, str))
    )
    check_number(len(checked), shown(quotas))
    return checked


def _window_ns(text: str, window: str) -> int:
    """Return the length of a window such as ``15m``; `text` is the whole quota, for the error."""
    parts = _WINDOW.fullmatch(window)
    if parts is None:
        why = f"{window!r} has no unit" if _DIGITS.fullmatch(window) else f"{window!r} is no window"
        raise ValueError(f"quota {text!r} is not understood: {why}; {_MEND}")
    unit = parts["unit"].lower()
    if unit not in _UNIT_NS:
        why = f"{parts['unit']!r} is no unit"
        if unit in ("month", "months", "year", "years"):
            why += ", as it has no fixed length (use days)"
        raise ValueError(f"quota {text!r} is not understood: {why}; {_MEND}")
    whole, fraction = parts["whole"] or "1", parts["fraction"] or ""
    return divided(int(whole + fraction) * _UNIT_NS[unit], 10 ** len(fraction))


def _seconds_text(window_ns: int) -> str:
    """Return nanoseconds as exact decimal seconds, without needless zeros."""
    seconds, rest = divmod(window_ns, NS_PER_SECOND)
    return f"{seconds}.{rest:09d}".rstrip("0") if rest else str(seconds)
