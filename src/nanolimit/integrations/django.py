"""Limits in Django: a middleware for all views, and a decorator for one.

    MIDDLEWARE = [..., "nanolimit.integrations.django.RateLimitMiddleware"]
    NANOLIMIT = {"LIMITER": "100/minute", "SHARED": "web"}

    from nanolimit.integrations.django import limit

    @limit("5/minute", name="login")
    def login(request): ...

A check is a call into C: it waits for nothing, so an asynchronous view gets no thread for it. A
`RedisRateLimiter` is for synchronous stacks and views, an `AsyncRedisRateLimiter` for others.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from nanolimit.clock import shown
from nanolimit.errors import NanolimitError
from nanolimit.integrations.answer import check_kind, refusal
from nanolimit.integrations.gate import Gate, Gates, Refused, checked_exempt
from nanolimit.integrations.key import (
    InvalidRequestError,
    asks_user,
    client_ip,
    combine,
    header,
    user,
)
from nanolimit.integrations.rule import Rule
from nanolimit.integrations.setting import Setting, check_quota, current
from nanolimit.remote import check_kind as check_limiter
from nanolimit.remote import is_limiter

try:
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
    from django.conf import settings  # type: ignore[import-untyped]
    from django.core.exceptions import ImproperlyConfigured  # type: ignore[import-untyped]
    from django.http import HttpResponse  # type: ignore[import-untyped]
    from django.utils.functional import LazyObject  # type: ignore[import-untyped]
except ImportError as _error:
    raise ImportError(
        "nanolimit.integrations.django needs Django >= 4.2: pip install 'nanolimit[django]'"
    ) from _error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Literal

    from nanolimit._core import Decision
    from nanolimit.integrations.answer import Body, Kind
    from nanolimit.integrations.key import KeyFunction
    from nanolimit.integrations.rule import AnyLimit
    from nanolimit.remote import AnyLimiter

__all__ = [
    "InvalidRequestError",
    "RateLimitMiddleware",
    "Rule",
    "client_ip",
    "combine",
    "header",
    "limit",
    "user",
]

_AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
_LISTS = ("RateLimit", "RateLimit-Policy")
_EMPTY: dict[str, Any] = {}
_FROM_SETTINGS: Any = object()


def configured() -> Setting:
    """Return what ``settings.NANOLIMIT`` says; without one, the defaults.

    Raises:
        ImproperlyConfigured: It is wrong; the message names the entry and the mend.
    """
    try:
        return current(getattr(settings, "NANOLIMIT", _EMPTY))
    except ValueError as error:
        raise ImproperlyConfigured(str(error)) from error


class RateLimitMiddleware:
    """Limits all requests; a denied one is answered 429 and reaches no view.

    For ``settings.MIDDLEWARE``, after AuthenticationMiddleware if users are limited; it is
    configured by ``settings.NANOLIMIT``, whose entries docs/django.md lists. A preflight of CORS
    passes uncounted. The view finds the `Decision` as ``request.ratelimit``.

    It works in synchronous and asynchronous stacks, and takes no thread in either. In a synchronous
    one LIMITER may be a `RedisRateLimiter`, in an asynchronous one an `AsyncRedisRateLimiter`.

    Raises:
        ImproperlyConfigured: An entry of NANOLIMIT is missing, unknown or wrong, when Django
            starts.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        self._async = iscoroutinefunction(get_response)
        if self._async:
            markcoroutinefunction(self)
        setting = configured()
        if setting.limiter is None and not setting.rules:
            raise ImproperlyConfigured(
                "RateLimitMiddleware needs a limit: set NANOLIMIT = {'LIMITER': '100/minute'}, or "
                "RULES in it"
            )
        try:
            self._gates = Gates(
                setting.limiter,
                setting.key,
                setting.cost,
                setting.headers,
                setting.rules,
                setting.on_error,
                setting.name,
                awaits=self._async,
                where="an asynchronous stack" if self._async else "a synchronous stack",
            )
        except (ValueError, TypeError) as error:
            raise ImproperlyConfigured(f"NANOLIMIT: {error}") from error
        self._exempt = setting.exempt
        self._on_denied = setting.on_denied
        gates = list(self._gates)
        if not self._async and any(gate.key_waits for gate in gates):
            raise ImproperlyConfigured(
                "NANOLIMIT['KEY'] is a coroutine function, but the middleware runs in a "
                "synchronous stack: under WSGI, or with a middleware that is synchronous only"
            )
        if not self._async and iscoroutinefunction(self._on_denied):
            raise ImproperlyConfigured(
                "NANOLIMIT['ON_DENIED'] is a coroutine function, but the middleware runs in a "
                "synchronous stack: under WSGI, or with a middleware that is synchronous only"
            )
        if any(asks_user(gate.key) for gate in gates):
            _check_order(type(self))

    def __call__(self, request: Any) -> Any:
        if self._async:
            return self._answered(request)
        gate = self._gates.find(request.method, request.path_info)
        if gate is None or _passes(request, self._exempt):
            return self.get_response(request)
        verdict = _verdict(gate, request, self._on_denied)
        if verdict.answer is not None:
            return verdict.answer
        return verdict.announced(self.get_response(request))

    async def _answered(self, request: Any) -> Any:
        gate = self._gates.find(request.method, request.path_info)
        if gate is None:
            return await self.get_response(request)
        if asks_user(gate.key):
            await _load_user(request)
        if _passes(request, self._exempt):
            return await self.get_response(request)
        verdict = await _averdict(gate, request, self._on_denied)
        if verdict.answer is not None:
            return verdict.answer
        return verdict.announced(await self.get_response(request))


def limit(
    limiter: AnyLimit,
    *,
    key: KeyFunction | Callable[[Any], Awaitable[Any]] | None = None,
    cost: int | Callable[[Any], int] = 1,
    methods: str | Iterable[str] | None = None,
    exempt: Callable[[Any], object] | None = None,
    on_denied: Callable[[Any, Decision], Any] | None = None,
    headers: Kind | None = _FROM_SETTINGS,
    on_error: Literal["deny", "allow"] | None = None,
    name: str | None = None,
) -> ViewLimit:
    """Limit a view: ``@limit("5/minute", methods="POST")``.

    For functions, synchronous or asynchronous, and for class-based views through Django's
    ``method_decorator``. Views that are decorated by one ``limit(...)`` share its counts. Several
    may stand over a view: the outermost counts first, and what it has counted stays counted when
    an inner one denies; for all or nothing give one of them several quotas, ``"5/minute; 50/day"``.

    What is not given is as ``settings.NANOLIMIT`` says when the view is decorated.

    Args:
        limiter: A `RateLimiter`, or a quota that makes one with the settings' arguments. Where
            these have SHARED, a quota needs a `name`: that is its table for all workers. For
            synchronous views also a `RedisRateLimiter`, for others an `AsyncRedisRateLimiter`.
        key: A key function; in an asynchronous view it may be a coroutine function.
        cost: Units per request, or a callable on the request.
        methods: The methods that are limited, ``"POST"`` or ``["PUT", "PATCH"]``; GET is HEAD as
            well. All when left out.
        exempt: A callable on the request; what it says True to passes uncounted.
        on_denied: A callable ``(request, decision)`` that returns the answer to a denied request.
        headers: ``"draft"``, ``"x"``, ``"both"`` or None.
        on_error: What happens where the key function fails: ``"deny"`` or ``"allow"``. Also where
            a limiter of ``on_error="raise"`` can't ask its store: 503 or passed uncounted.
        name: What clients know the policy by, and what the shared table is called.

    Raises:
        ValueError, TypeError: An argument is wrong.
        ImproperlyConfigured: The settings are, or a shared limit has no name.
    """
    return ViewLimit(
        limiter, key, cost, _methods(methods), exempt, on_denied, headers, on_error, name
    )


class ViewLimit:
    """The decorator that `limit` makes. It may decorate many views, which then share its counts."""

    __slots__ = ("_arguments", "_exempt", "_gates", "_methods", "_on_denied", "limiter")

    limiter: AnyLimiter

    def __init__(
        self,
        limiter: AnyLimit,
        key: Any,
        cost: int | Callable[[Any], int],
        methods: frozenset[str] | None,
        exempt: Callable[[Any], object] | None,
        on_denied: Callable[[Any, Decision], Any] | None,
        headers: Any,
        on_error: Any,
        name: str | None,
    ) -> None:
        check_quota(limiter)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str, not {type(name).__name__}")
        if on_denied is not None and not callable(on_denied):
            raise TypeError(
                "on_denied must be a callable (request, decision) that returns a response, "
                f"not {type(on_denied).__name__}"
            )
        setting = configured()
        if is_limiter(limiter):
            self.limiter = limiter  # type: ignore[assignment]
        else:
            if setting.shared is not None and name is None:
                raise ImproperlyConfigured(
                    "NANOLIMIT['SHARED'] has all workers count together, for which this limit's "
                    f"table needs a name: @limit({limiter!r}, name='login')"
                )
            try:
                self.limiter = setting.made(limiter, name)
            except NanolimitError as error:
                raise ImproperlyConfigured(f"@limit({limiter!r}): {error}") from error
        self._methods = methods
        self._exempt = checked_exempt(exempt)
        self._on_denied = on_denied
        if headers is _FROM_SETTINGS:
            headers = setting.headers
        check_kind(headers)
        self._arguments = (
            setting.key if key is None else key,
            cost,
            headers,
            setting.on_error if on_error is None else on_error,
            name,
        )
        # By how many limits stand below it: that makes the policy's name where none was given.
        self._gates: dict[int, Gate] = {}
        self._gate(0)

    def _gate(self, depth: int) -> Gate:
        gate = self._gates.get(depth)
        if gate is None:
            key, cost, headers, on_error, name = self._arguments
            if name is None and self.limiter.name.startswith("limiter-"):
                name = f"view-{depth + 1}" if depth else "view"
            gate = Gate(self.limiter, key, cost, headers, on_error, name)
            self._gates[depth] = gate
        return gate

    def __call__(self, view: Any, /) -> Any:
        """Return the view with the limit around it."""
        if inspect.isclass(view):
            raise TypeError(
                f"@limit decorates a function, not the class {view.__name__}: write "
                "@method_decorator(limit(...), name='dispatch')"
            )
        if not callable(view):
            raise TypeError(f"@limit decorates a view, not {shown(view)}")
        depth = getattr(view, "_nanolimit_depth", 0)
        gate = self._gate(depth)
        around: Any
        name = getattr(view, "__name__", view)
        # (method_decorator tries a decorator on a function of its own.)
        tried = getattr(view, "__module__", "") == "django.utils.decorators"
        if _is_async(view):
            check_limiter(self.limiter, True, f"the asynchronous view {name!r}")
            around = self._around_coroutine(view, gate)
        else:
            if not tried:
                check_limiter(self.limiter, False, f"the synchronous view {name!r}")
            for what, given in (("key", gate.key), ("on_denied", self._on_denied)):
                if not tried and (iscoroutinefunction(given) or (what == "key" and gate.key_waits)):
                    raise TypeError(
                        f"{what} is a coroutine function, {shown(given)}, but the view "
                        f"{name!r} is synchronous"
                    )
            around = self._around(view, gate)
        around._nanolimit_depth = depth + 1
        return around

    def _leaves(self, request: Any) -> bool:
        """Say whether a request is none that this limits."""
        if not isinstance(getattr(request, "META", None), dict):
            raise TypeError(
                f"@limit got {type(request).__name__} where a request should be: around a method "
                "write @method_decorator(limit(...))"
            )
        return self._methods is not None and request.method not in self._methods

    def _around(self, view: Any, gate: Gate) -> Any:
        @functools.wraps(view)
        def limited(request: Any, /, *args: Any, **kwargs: Any) -> Any:
            if self._leaves(request) or _passes(request, self._exempt):
                return view(request, *args, **kwargs)
            verdict = _verdict(gate, request, self._on_denied)
            if verdict.answer is not None:
                return verdict.answer
            return verdict.announced(view(request, *args, **kwargs))

        return limited

    def _around_coroutine(self, view: Any, gate: Gate) -> Any:
        loads = asks_user(gate.key)

        @functools.wraps(view)
        async def limited(request: Any, /, *args: Any, **kwargs: Any) -> Any:
            if self._leaves(request):
                return await view(request, *args, **kwargs)
            if loads:
                await _load_user(request)
            if _passes(request, self._exempt):
                return await view(request, *args, **kwargs)
            verdict = await _averdict(gate, request, self._on_denied)
            if verdict.answer is not None:
                return verdict.answer
            return verdict.announced(await view(request, *args, **kwargs))

        return limited


class _Verdict:
    """What becomes of a request: an answer in the view's stead, or fields for the view's."""

    __slots__ = ("answer", "fields")

    def __init__(self, answer: Any = None, fields: list[tuple[str, str]] | None = None) -> None:
        self.answer = answer
        self.fields = fields

    def announced(self, response: Any) -> Any:
        """Add the header fields to an answer; one that the view set itself stays as it is."""
        if self.fields:
            headers = getattr(response, "headers", None)
            if headers is not None:
                for name, value in self.fields:
                    if name not in headers:
                        headers[name] = value
                    elif name in _LISTS:  # of another policy: the draft's fields are lists
                        headers[name] = f"{headers[name]}, {value}"
        return response


_PASSED = _Verdict()


def _verdict(gate: Gate, request: Any, on_denied: Any) -> _Verdict:
    try:
        decision = gate.decide(request)
    except Refused as refused:
        return _refused(request, refused)
    if decision is None or decision.allowed:
        return _allowed(gate, request, decision)
    request.ratelimit = decision
    return _denied(gate, request, decision, on_denied and on_denied(request, decision))


async def _averdict(gate: Gate, request: Any, on_denied: Any) -> _Verdict:
    try:
        decision = await gate.decided(request) if gate.waits else gate.decide(request)
    except Refused as refused:
        return _refused(request, refused)
    if decision is None or decision.allowed:
        return _allowed(gate, request, decision)
    request.ratelimit = decision
    answer = on_denied and on_denied(request, decision)
    if inspect.isawaitable(answer):
        answer = await answer
    return _denied(gate, request, decision, answer)


def _allowed(gate: Gate, request: Any, decision: Decision | None) -> _Verdict:
    if decision is None:  # it could not be counted, and may pass
        return _PASSED
    request.ratelimit = decision
    return (
        _PASSED if gate.announcement.silent else _Verdict(None, gate.announcement.fields(decision))
    )


def _denied(gate: Gate, request: Any, decision: Decision, answer: Any) -> _Verdict:
    fields = gate.announcement.fields(decision)
    if answer is None:
        body = gate.announcement.body(decision, request.META.get("HTTP_ACCEPT", ""))
        answer = _response(request, 429, body)
    return _Verdict(_Verdict(None, fields).announced(answer))


def _refused(request: Any, refused: Refused) -> _Verdict:
    body = refusal(refused.status, refused.detail, request.META.get("HTTP_ACCEPT", ""))
    return _Verdict(
        _Verdict(None, refused.fields).announced(_response(request, refused.status, body))
    )


def _response(request: Any, status: int, body: Body) -> Any:
    response = HttpResponse(
        b"" if request.method == "HEAD" else body.content,
        status=status,
        content_type=body.content_type,
    )
    response.headers["Content-Length"] = str(len(body.content))
    return response


def _passes(request: Any, exempt: Any) -> bool:
    """Say whether a request is not to be counted: a preflight of CORS, or an exempt one."""
    if (
        request.method == "OPTIONS"
        and "HTTP_ORIGIN" in request.META
        and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in request.META
    ):
        return True
    return exempt is not None and bool(exempt(request))


async def _load_user(request: Any) -> None:
    """Ask who the user is, where `request.user` would do so behind the event loop's back."""
    found = getattr(request, "user", None)
    if not isinstance(found, LazyObject):
        return
    auser = getattr(request, "auser", None)
    if auser is None:  # before Django 5.0 there was no other way
        await sync_to_async(bool)(found)
    else:
        request.user = await auser()


def _is_async(view: Any) -> bool:
    """Say whether a view is awaited. The `dispatch` of an asynchronous class is not marked so."""
    if iscoroutinefunction(view) or iscoroutinefunction(getattr(type(view), "__call__", None)):  # noqa: B004
        return True
    while isinstance(view, functools.partial):
        view = view.func
    return bool(getattr(getattr(view, "__self__", None), "view_is_async", False))


def _methods(methods: Any) -> frozenset[str] | None:
    if methods is None:
        return None
    given = [methods] if isinstance(methods, str) else list(methods)
    for method in given:
        if not isinstance(method, str) or not method.isalpha() or method != method.upper():
            raise ValueError(f"methods must hold methods such as 'POST', not {shown(method)}")
    if not given:
        raise ValueError("methods must name at least one method; leave it out for all")
    return frozenset(given) | ({"HEAD"} if "GET" in given else frozenset())


def _check_order(middleware: type) -> None:
    """Refuse to look for users before they are known: all of them would be anonymous."""
    order = list(settings.MIDDLEWARE)
    own = f"{middleware.__module__}.{middleware.__qualname__}"
    if own in order and _AUTHENTICATION in order[order.index(own) :]:
        raise ImproperlyConfigured(
            f"NANOLIMIT['KEY'] asks for the user, who is not known yet: in MIDDLEWARE, {own} must "
            f"stand after {_AUTHENTICATION}"
        )
