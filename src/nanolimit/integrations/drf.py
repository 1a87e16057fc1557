"""The throttles of Django REST framework, counted exactly, and by all workers together.

    REST_FRAMEWORK = {
        "DEFAULT_THROTTLE_CLASSES": ["nanolimit.integrations.drf.UserRateThrottle"],
        "DEFAULT_THROTTLE_RATES": {"user": "100/minute"},
    }
    NANOLIMIT = {"SHARED": "api"}

These are subclasses of `rest_framework.throttling`'s, with its settings, scopes, keys and methods.
What they replace is the history in Django's cache, which is read, changed and written back: of
requests at the same time, each finds what the others have not written yet.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from nanolimit.clock import NS_PER_SECOND, shown
from nanolimit.errors import NanolimitError
from nanolimit.integrations.address import InvalidRequestError
from nanolimit.integrations.django import configured
from nanolimit.integrations.outage import Outage
from nanolimit.limiter import RateLimiter
from nanolimit.place import table_of
from nanolimit.quota import Quota
from nanolimit.remote import StoreUnavailableError, check_kind, is_limiter

try:
    from django.core import mail  # type: ignore[import-untyped]
    from django.core.exceptions import ImproperlyConfigured  # type: ignore[import-untyped]
    from rest_framework import throttling  # type: ignore[import-untyped]
    from rest_framework.exceptions import (  # type: ignore[import-untyped]
        APIException,
        ParseError,
    )
    from rest_framework.settings import api_settings  # type: ignore[import-untyped]
except ImportError as _error:
    raise ImportError(
        "nanolimit.integrations.drf needs Django REST framework >= 3.15: "
        "pip install 'nanolimit[drf]'"
    ) from _error

if TYPE_CHECKING:
    from nanolimit._core import Decision
    from nanolimit.integrations.setting import Setting
    from nanolimit.remote import BlockingLimiter

__all__ = [
    "AnonRateThrottle",
    "ScopedRateThrottle",
    "SimpleRateThrottle",
    "UserRateThrottle",
    "clear",
]

_log = logging.getLogger("nanolimit")

_TIMER = vars(throttling.SimpleRateThrottle)["timer"]
_RATES = throttling.SimpleRateThrottle.THROTTLE_RATES
_MOST_LIMITERS = 1_000
_MOST_QUOTAS = 10_000
_SMALL = 2_047  # up to here a log has 4 bytes a unit, above 8: tables of two kinds
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_MARK = "nanolimit-throttles"

_outage = Outage()


class _Rates:
    """`THROTTLE_RATES`: the settings' at each look, so that tests may override them.

    Who replaces the attribute of DRF's own class means this one too.
    """

    def __get__(self, throttle: Any, owner: Any = None) -> Any:
        theirs = throttling.SimpleRateThrottle.THROTTLE_RATES
        return api_settings.DEFAULT_THROTTLE_RATES if theirs is _RATES else theirs


class SimpleRateThrottle(throttling.SimpleRateThrottle):  # type: ignore[misc]
    """DRF's `SimpleRateThrottle`: subclasses say in `get_cache_key` who asks.

    A rate is written as for DRF, ``"100/min"``, or as any quota: ``"100/15m"``. Its time is the
    engine's own clock; a `timer` of one's own is asked instead.

    Attributes:
        shared: The table in which all workers count, a name or a path; by default
            ``NANOLIMIT["SHARED"]``. Each scope and window has a table of its own beside it.
        limiter: A `RedisRateLimiter` that counts in the place of all that, for all machines; its
            quota is the rate. What it has counted stays counted, also where a subclass decides
            against a request in `throttle_success`. (A `RateLimiter` will do as well.)
        decision: The `Decision` on the request, once `allow_request` has made it.

    Raises:
        ImproperlyConfigured: There is no rate for the scope, or it is not understood; or `limiter`
            is none, or goes with something else that says the rate or the table.

    A request that a `limiter` of ``on_error="raise"`` can't count is answered 503.
    """

    shared: Any = None
    limiter: BlockingLimiter | None = None
    decision: Decision | None = None
    THROTTLE_RATES = _Rates()

    # What DRF's own class and its subclasses set.
    timer: Any
    rate: Any
    num_requests: Any
    duration: Any
    key: Any
    now: Any

    _history: list[float] | None = None
    _limiter: RateLimiter | None = None
    _quota: Quota
    # Whether `throttle_success` has confirmed what was counted.
    _confirmed = False
    _refunded = False

    def __init__(self) -> None:
        self._check_limiter()
        if self.limiter is not None:
            self.rate = str(self.limiter.quotas[0])
        super().__init__()

    def _check_limiter(self) -> None:
        limiter = self.limiter
        if limiter is None:
            return
        name = type(self).__name__
        try:
            if not is_limiter(limiter):
                raise TypeError(f"it must be a RedisRateLimiter, not {shown(limiter)}")
            check_kind(limiter, False, "a throttle")
            for other in ("rate", "shared"):
                if getattr(type(self), other, None) is not None:
                    raise TypeError(f"{other} does not go with it: it says that itself")
        except TypeError as error:
            raise ImproperlyConfigured(f"limiter of the throttle {name}: {error}") from error

    def parse_rate(self, rate: str | None) -> tuple[Any, Any]:
        """Return the number of requests and the seconds of a rate, or None for both.

        Raises:
            ImproperlyConfigured: It is not understood.
        """
        if rate is None:
            return None, None
        try:
            return _parsed(rate)
        except (ValueError, TypeError) as error:
            where = f"the scope {self.scope!r}" if self.scope else type(self).__name__
            raise ImproperlyConfigured(
                f"the throttle rate {shown(rate)} of {where} is not understood: write it like "
                f"'100/min', '100/15m' or '10/2h', or None for no limit ({error})"
            ) from error

    def allow_request(self, request: Any, view: Any) -> bool:
        """Count the request if it fits, and say whether it did."""
        if self.rate is None:
            return True
        try:
            self.key = self.get_cache_key(request, view)
        except InvalidRequestError as error:  # of a key function of ours
            raise ParseError(str(error)) from None
        if self.key is None:
            return True
        self.now = self.timer()
        self._history = None
        self.decision = None
        if isinstance(self.num_requests, int) and self.num_requests <= 0:
            self._history = []
            return bool(self.throttle_failure())
        if self.limiter is not None:
            return self._allowed_by(self.limiter)
        self._quota = _quota(self.num_requests, self.duration)
        told = self.timer is not _TIMER
        testing = hasattr(mail, "outbox")
        if testing:
            _forget_with(self.cache)
        setting = configured()
        shared = setting.shared if self.shared is None else self.shared
        if testing:
            shared = None
        self._limiter = _limiter(setting, self.scope, self._quota, told or testing, shared)
        self._confirmed = self._refunded = False
        self.decision = self._check()
        if not self.decision.allowed:
            return bool(self.throttle_failure())
        allowed = bool(self.throttle_success())
        if not self._confirmed:  # a subclass has decided against it, as it may in DRF
            self._limiter.refund(str(self.key))
            self._refunded = True
        return allowed

    def _allowed_by(self, limiter: BlockingLimiter) -> bool:
        """Count the request in a limiter of one's own."""
        self._confirmed = self._refunded = False
        try:
            self.decision = limiter.check(str(self.key))
        except StoreUnavailableError as error:
            _outage.tell("a request could not be counted and was answered 503: %s", error)
            raise _Unavailable from None
        return bool(self.throttle_success() if self.decision.allowed else self.throttle_failure())

    def throttle_success(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Keep the request counted. A subclass that doesn't call this has it not counted."""
        if self.decision is None or (self._limiter is None and self.limiter is None):
            return bool(super().throttle_success())  # of an allow_request of one's own
        if self._refunded:
            self._refunded = False
            self.decision = self._check()
        self._confirmed = True
        self._history = None
        return True

    def wait(self) -> float | None:
        """Return the seconds until the request would fit, exactly."""
        decision = self.decision
        if decision is not None and not decision.allowed:
            if decision.blocked:
                return decision.retry_after
            # (a stamp is rounded up to its tick, which must not make a minute 61 s)
            return min(decision.retry_after, decision.quota.per)
        return super().wait()  # type: ignore[no-any-return]

    @property
    def history(self) -> list[float]:
        """When the requests that count were made, by `timer`, newest first.

        Their number, the newest and the oldest are right; the ones between are not known to the
        engine one by one, and stand as the newest.
        """
        if self._history is None:
            self._history = self._told_history()
        return self._history

    @history.setter
    def history(self, history: list[float]) -> None:
        self._history = history

    def _told_history(self) -> list[float]:
        decision = self.decision
        if decision is None:
            return []
        number = decision.limit - decision.remaining
        duration = self.duration if self.limiter is None else decision.quota.per
        newest = self.now + decision.reset_after - duration
        oldest = self.now + decision.refill_after - duration
        history = [newest] * (number - 1) + [oldest] if number else []
        if decision.allowed and not self._confirmed:
            del history[:1]  # as in DRF, where `throttle_success` puts it there
        return history

    def _check(self) -> Decision:
        _told.now = self.now
        return self._limiter.check(str(self.key), quota=self._quota)  # type: ignore[union-attr]


class AnonRateThrottle(SimpleRateThrottle, throttling.AnonRateThrottle):  # type: ignore[misc]
    """Limits who is not logged in, by address. Scope ``anon``."""


class UserRateThrottle(SimpleRateThrottle, throttling.UserRateThrottle):  # type: ignore[misc]
    """Limits users, and by address who is none. Scope ``user``."""


class ScopedRateThrottle(SimpleRateThrottle, throttling.ScopedRateThrottle):  # type: ignore[misc]
    """Limits views that have a `throttle_scope`, each scope by its own rate."""

    def __init__(self) -> None:
        """Ask for no rate: the view tells the scope, and that the rate."""
        self._check_limiter()

    def allow_request(self, request: Any, view: Any) -> bool:
        """Count the request if the view has a scope, and say whether it fits."""
        self.scope = getattr(view, self.scope_attr, None)
        if not self.scope:
            return True
        self.rate = self.get_rate() if self.limiter is None else str(self.limiter.quotas[0])
        self.num_requests, self.duration = self.parse_rate(self.rate)
        return super().allow_request(request, view)


class _Unavailable(APIException):  # type: ignore[misc]
    """The store of a limiter is away, and that is to be told."""

    status_code = 503
    default_detail = "The server can't check its limits at the moment."
    default_code = "store_unavailable"
    wait = 1  # seconds: DRF makes it the Retry-After


def clear() -> None:
    """Forget what all throttles of this process have counted, in shared tables too.

    For tests. Under Django's test runner clearing Django's cache does it as well, as for DRF's own
    throttles, and there no throttle counts in a shared table.
    """
    for limiter in list(_limiters.values()):
        limiter.clear()


class _Told(threading.local):
    """The time that a throttle's own `timer` told this thread."""

    now: float = 0.0

    def __call__(self) -> float:
        return float(self.now)


_told = _Told()

_making = threading.RLock()


def _renew_lock() -> None:
    global _making
    _making = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_lock)

# By scope, window, kind of clock, table and size: one engine for all rates of that window, as a
# call's own limit holds for it. So a rate may change, and what was counted stays.
_limiters: dict[tuple[Any, ...], RateLimiter] = {}
_quotas: dict[tuple[Any, Any], Quota] = {}


def _quota(number: Any, seconds: Any) -> Quota:
    found = _quotas.get((number, seconds))
    if found is None:
        try:
            found = Quota(number, seconds)
        except (ValueError, TypeError) as error:
            raise ImproperlyConfigured(
                f"a throttle's parse_rate gave ({number!r}, {seconds!r}): {error}"
            ) from error
        if len(_quotas) >= _MOST_QUOTAS:
            _quotas.clear()
        _quotas[number, seconds] = found
    return found


def _limiter(setting: Setting, scope: Any, quota: Quota, told: bool, shared: Any) -> RateLimiter:
    room = _SMALL if quota.limit <= _SMALL else 1 << (quota.limit - 1).bit_length()
    # `setting` is compared by identity: another NANOLIMIT has counts of its own.
    identity = setting, scope, quota.window_ns, told, shared, room
    found = _limiters.get(identity)
    if found is not None:
        return found
    with _making:
        found = _limiters.get(identity)
        if found is None:
            found = _made(setting, scope, quota, told, shared, room)
            if len(_limiters) >= _MOST_LIMITERS:
                _make_room()
            _limiters[identity] = found
    return found


def _made(
    setting: Setting, scope: Any, quota: Quota, told: bool, shared: Any, room: int
) -> RateLimiter:
    options: dict[str, Any]
    if shared is None:
        options = setting.options(None)
    else:
        what = f"throttle-{scope}-{quota.per:g}s"
        if room > _SMALL:
            what += f"-{room}"
        if told:
            what += "-timer"
        options = setting.options(table_of(shared, what))
        # The limit is told with each call: workers with other rates share the table.
        options["on_mismatch"] = "adopt"
        options["max_limit"] = room
    if told:
        options["clock"] = _told
    try:
        return RateLimiter(quota, **options)
    except (ValueError, TypeError, NanolimitError) as error:
        raise ImproperlyConfigured(
            f"no limiter for the throttle scope {scope!r} with {quota}: {error}"
        ) from error


def _make_room() -> None:
    """Let go of limiters that hold nothing, else of the oldest."""
    idle = [identity for identity, limiter in _limiters.items() if not len(limiter)]
    for identity in idle:
        del _limiters[identity]
    if not idle:
        _log.warning(
            "more than %d scopes and windows of throttles: one is forgotten, with its counts",
            _MOST_LIMITERS,
        )
        del _limiters[next(iter(_limiters))]


def _forget_with(cache: Any) -> None:
    """Forget everything if Django's cache was cleared, which is how tests begin anew."""
    if cache.get(_MARK) is None:
        for identity, limiter in list(_limiters.items()):
            if identity[4] is None:
                limiter.clear()
        cache.set(_MARK, 1, None)


@functools.lru_cache(_MOST_LIMITERS)
def _parsed(rate: Any) -> tuple[int, int | float]:
    """Return the number and seconds of a rate: a quota, or what DRF makes of its first letter."""
    if not isinstance(rate, str):
        raise TypeError(f"it is no str but {type(rate).__name__}")
    number, slash, period = rate.partition("/")
    none = bool(slash) and number.strip() == "0"  # no quota, but a rate of DRF: nothing passes
    if none:
        number = "1"
    try:
        quota = Quota.parse(f"{number}/{period}" if slash else rate)
    except ValueError:
        # DRF reads "5/mins" and "5/hr" so; but a month is no minute.
        if not (slash and period.isalpha() and period[0] in _UNITS and period[:2] != "mo"):
            raise
        quota = Quota(int(number), _UNITS[period[0]])
    whole, rest = divmod(quota.window_ns, NS_PER_SECOND)
    return 0 if none else quota.limit, quota.per if rest else whole
