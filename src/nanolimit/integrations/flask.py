"""Limits in a Flask application: one for all of it, and others at views and blueprints.

    from flask import Flask
    from nanolimit.integrations.flask import RateLimit, client_ip

    app = Flask(__name__)
    ratelimit = RateLimit(app, "100/minute", client_ip())

    @app.post("/login")
    @ratelimit.limit("5/minute")
    def login(): ...

A denied request raises `RateLimited`, a 429 of Werkzeug, so that error handlers see it.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

try:
    from flask import Blueprint, Flask, Response, current_app, g
    from flask import request as current_request
    from werkzeug.exceptions import (
        BadRequest,
        InternalServerError,
        ServiceUnavailable,
        TooManyRequests,
    )
    from werkzeug.wrappers import Response as AnyResponse
except ImportError as _error:
    raise ImportError(
        "nanolimit.integrations.flask needs Flask: pip install nanolimit[flask]"
    ) from _error

from nanolimit.clock import shown
from nanolimit.integrations.answer import _UNNAMED, check_kind, refusal, retry_after
from nanolimit.integrations.gate import Gate, Gates, Refused, checked_exempt
from nanolimit.integrations.key import InvalidRequestError, client_ip, combine, header, user
from nanolimit.integrations.rule import Rule, limiter_of
from nanolimit.limiter import RateLimiter
from nanolimit.remote import check_kind as check_limiter
from nanolimit.remote import is_limiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Literal

    from flask import Request
    from flask.sansio.blueprints import Blueprint as AnyBlueprint

    from nanolimit._core import Decision
    from nanolimit.integrations.answer import Announcement, Kind
    from nanolimit.integrations.key import KeyFunction
    from nanolimit.integrations.rule import Limit as Limited
    from nanolimit.remote import BlockingLimiter

    OnDenied = Callable[[Request, Decision], Any]

__all__ = [
    "InvalidRequestError",
    "Limit",
    "RateLimit",
    "RateLimited",
    "Rule",
    "client_ip",
    "combine",
    "header",
    "user",
]

F = TypeVar("F")

_EXTENSION = "nanolimit"
_WHERE = "a Flask application"
_MARKS = "__nanolimit__"
_RECORD = "nanolimit"  # of a request's own attributes
# Fields of which an answer has one line; the draft's are lists, with a line for each policy.
_LISTS = ("RateLimit-Policy", "RateLimit")


class RateLimited(TooManyRequests):
    """A request was denied: what ``@app.errorhandler(429)`` is called with.

    Attributes:
        decision: The `Decision`.
        description: What it says to people.
        retry_after: Seconds to wait, whole ones.
        response: The answer if no error handler makes another: problem+json or plain text,
            whichever the client prefers.
    """

    def __init__(self, decision: Decision, announcement: Announcement, accept: str = "") -> None:
        body = announcement.body(decision, accept)
        super().__init__(
            announcement.body(decision, "text/plain").content.decode().strip(),
            Response(body.content, 429, content_type=body.content_type),
            retry_after=retry_after(decision),
        )
        self.decision = decision


class Limit:
    """A limit for views and blueprints, as `RateLimit.limit` returns it: decorate with it.

    All that one of them decorates has one limit together. For a limit each, write one each.
    """

    def __init__(
        self,
        extension: RateLimit,
        limiter: Limited,
        key: KeyFunction,
        cost: int | Callable[[Any], int],
        methods: Iterable[str] | None,
        per_method: bool,
        override_defaults: bool,
        exempt: Callable[[Any], object] | None,
        on_denied: OnDenied | None,
        name: str | None,
        shared: str | Literal[True] | None,
    ) -> None:
        key = _checked_key(key)
        if shared is not None:
            if is_limiter(limiter):
                raise TypeError("shared goes with a quota; a limiter says itself what it shares")
            limiter = RateLimiter(limiter, shared=shared, on_mismatch="replace")  # type: ignore[arg-type]
        self.extension = extension
        self.override_defaults = override_defaults
        self.exempt: Callable[[Any], Any] | None = checked_exempt(exempt)
        self.on_denied: Callable[..., Any] | None = _checked_on_denied(on_denied)
        self._limit = limiter
        self._key = combine(_method, key) if per_method else key
        self._cost = cost
        self._methods = _checked_methods(methods)
        self._name = name
        # A mistake shows here, not at the first request.
        found = limiter_of(limiter)
        check_limiter(found, False, _WHERE)
        Gate(found, self._key, cost)

    def gate(self, headers: Kind | None) -> Gate:
        """Make the gate of one application: a quota becomes a limiter of its own in each."""
        limiter: Any = self._limit
        if not is_limiter(limiter):
            limiter = RateLimiter(limiter, name=self._name)
        return Gate(limiter, self._key, self._cost, headers, self.extension._on_error, self._name)

    def covers(self, method: str) -> bool:
        """Say whether it holds for such a request; HEAD is GET."""
        return self._methods is None or method in self._methods

    def __call__(self, place: F) -> F:
        """Put the limit around a view, or on all views of a blueprint.

        Raises:
            TypeError: It is neither.
        """
        if isinstance(place, Blueprint):
            self._take_name(place.name, self.extension._marks_of(place))
            self.extension._mark_blueprint(place, self)
            return place
        if isinstance(place, Flask):
            raise TypeError("the limit of a whole application is the limiter of its RateLimit")
        if inspect.isclass(place):
            raise TypeError(
                f"@limit decorates no class, as {place.__name__} is: write it into the class, "
                "decorators = [ratelimit.limit(...)], or above one of its methods"
            )
        if isinstance(place, (classmethod, staticmethod)) or not callable(place):
            raise TypeError(f"@limit decorates views and blueprints, not {shown(place)}")
        marks = getattr(place, _MARKS, ())
        self._take_name(getattr(place, "__name__", type(place).__name__), marks)
        around: Any = self._around(place)
        setattr(around, _MARKS, (*marks, self))
        return around  # type: ignore[no-any-return]

    def _around(self, view: Callable[..., Any]) -> Callable[..., Any]:
        extension = self.extension
        if inspect.iscoroutinefunction(view):

            @functools.wraps(view)
            async def limited_coroutine(*args: Any, **kwargs: Any) -> Any:
                answer = extension._bound(current_app).enter(self)
                return await view(*args, **kwargs) if answer is None else answer

            return limited_coroutine

        @functools.wraps(view)
        def limited(*args: Any, **kwargs: Any) -> Any:
            answer = extension._bound(current_app).enter(self)
            return view(*args, **kwargs) if answer is None else answer

        return limited

    def _take_name(self, name: str, others: Iterable[object]) -> None:
        """Be called like the place that it was first put on, unless it has a name."""
        limiter: Any = self._limit
        if self._name is None and not (
            is_limiter(limiter) and not _UNNAMED.fullmatch(limiter.name)
        ):
            nth = 1 + sum(isinstance(other, Limit) for other in others)
            self._name = name if nth == 1 else f"{name}-{nth}"

    def __repr__(self) -> str:
        return f"<Limit {self._limit!r}>"


class _Exempt:
    """The mark of what no limit around it counts."""

    def __init__(self, extension: RateLimit) -> None:
        self.extension = extension


class RateLimit:
    """Limits the requests of Flask applications.

    Every request counts under the default limit, also one that no view answers (404, 405).
    Outside of it are: files of ``static`` folders, the OPTIONS that Flask answers by itself,
    preflights of CORS, and views that have a limit of their own or are exempt.

    A denied request raises `RateLimited`: 429, problem+json, Retry-After. The view, and functions
    of ``before_request`` that were registered later, are not called. All answers to limited
    requests have the header fields, whatever made them. ``flask.g.ratelimit`` is the `Decision`;
    of several the one that denied, else the one with the least remaining.

    Settings of the application (``app.config``), which win over what was given here:

    - ``NANOLIMIT_QUOTA``: the default limit.
    - ``NANOLIMIT_SHARED``: the shared table that it counts in, as `RateLimiter`'s ``shared``, made
      with ``on_mismatch="replace"``. It needs a limit that is a quota, and no limiter yet.
    - ``NANOLIMIT_HEADERS``: ``"draft"``, ``"x"``, ``"both"`` or None.
    - ``NANOLIMIT_STATIC``: True counts files of ``static`` folders, too.
    - ``NANOLIMIT_ENABLED``: False lets everything pass uncounted. It is read at every request.

    One extension may serve several applications. A quota is a limiter of its own in each of them;
    a `RateLimiter` is one for all. Safe for any number of threads, tasks and greenlets: a check
    is a call into C that never yields. It adds some microseconds to a request. That of a
    `RedisRateLimiter` adds a round trip; an ``async def`` view waits for it like any other, because
    Flask runs that in a thread of its own.

    Args:
        app: The application; None: `init_app` is called later.
        limiter: The default limit: a `RateLimiter`, or a quota. With ``shared=`` all workers count
            together, with a `RedisRateLimiter` all machines. None: only what a rule fits, or what
            is decorated, is limited.
        key: Whose request it is: a callable on Flask's request, or one of `client_ip`, `header`,
            `user`, `combine`.
        cost: Units per request, or a callable on the request.
        headers: ``"draft"``: RateLimit and RateLimit-Policy; ``"x"``: X-RateLimit-*; ``"both"``;
            None. Retry-After is sent with every denial.
        rules: Other default limits for some requests: ``[Rule("POST /api/**", "5/minute"), ...]``.
            The first that fits counts.
        exempt: A callable on the request; what it says True to passes uncounted everywhere.
        on_denied: A callable ``(request, decision)`` that gives the answer to a denied request,
            whatever a view may return, past Flask's error handlers. It has the status 429 unless
            it says another. None from it, and it is as without.
        on_error: A key function that raises or gives None is logged, and the request is answered
            500 (``"deny"``) or let pass uncounted (``"allow"``). So is one for which a limiter of
            ``on_error="raise"`` raises `StoreUnavailableError`, but with 503 in the place of 500.
        name: What clients know the policy by; by default the limiter's name.

    Raises:
        ValueError, TypeError: An argument or a setting is wrong; it is named. A key function that
            raises `InvalidRequestError` for a request has it answered 400.
    """

    def __init__(
        self,
        app: Flask | None = None,
        limiter: Limited | None = None,
        key: KeyFunction = client_ip(),  # noqa: B008
        *,
        cost: int | Callable[[Any], int] = 1,
        headers: Kind | None = "draft",
        rules: Iterable[Rule] = (),
        exempt: Callable[[Any], object] | None = None,
        on_denied: OnDenied | None = None,
        on_error: Literal["deny", "allow"] = "deny",
        name: str | None = None,
    ) -> None:
        if app is not None:
            _check_app(app)
        check_kind(headers)
        if on_error not in ("deny", "allow"):
            raise ValueError(f"on_error must be 'deny' or 'allow', not {shown(on_error)}")
        self._limiter = limiter
        self._key = _checked_key(key)
        self._cost = cost
        self._headers = headers
        self._rules = list(rules)
        self._exempt = checked_exempt(exempt)
        self._on_denied = _checked_on_denied(on_denied)
        self._on_error: Literal["deny", "allow"] = on_error
        self._name = name
        self._blueprints: WeakKeyDictionary[AnyBlueprint, tuple[object, ...]] = WeakKeyDictionary()
        if limiter is not None or self._rules:
            self._gates(limiter, headers)  # a mistake shows here, not in init_app
        for rule in self._rules:
            if rule.key is not None:
                _checked_key(rule.key)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Limit the requests of an application, from its next one on.

        The default limit is asked in the order of ``before_request``: functions that were
        registered earlier run before it, and what they put into ``g`` is there for the key
        function.

        Raises:
            ValueError, TypeError: A setting is wrong.
            RuntimeError: The application has it already.
        """
        _check_app(app)
        known = app.extensions.get(_EXTENSION)
        if known is not None and self in known:
            raise RuntimeError("init_app was called before for this application")
        bound = _Bound(self, app)
        app.before_request(bound.before)
        if known is None:
            known = app.extensions[_EXTENSION] = {}
            app.after_request(_announce)
        known[self] = bound

    def limit(
        self,
        limiter: Limited,
        key: KeyFunction | None = None,
        *,
        cost: int | Callable[[Any], int] | None = None,
        methods: Iterable[str] | None = None,
        per_method: bool = False,
        override_defaults: bool = True,
        exempt: Callable[[Any], object] | None = None,
        on_denied: OnDenied | None = None,
        name: str | None = None,
        shared: str | Literal[True] | None = None,
    ) -> Limit:
        """Return a limit of their own for views and blueprints, to decorate them with.

        It stands below the line that registers the view: ``@app.get("/")`` above
        ``@ratelimit.limit("5/minute")``. A request is counted when it comes to the limit, so not
        if a decorator above it, such as ``@login_required``, sent it away; then nothing counts it.
        Several on one view must all let a request pass, and are asked from above to below; those
        that did have counted it when a later one denies. A blueprint's limit holds for the
        blueprints inside it, too.

        Args:
            limiter: A `RateLimiter`, a `RedisRateLimiter` or a quota. A quota counts in each
                process for itself, unless there is `shared`.
            key: A key function of its own; by default the extension's.
            cost: Of its own; by default the extension's.
            methods: The methods that it holds for, all by default; GET is HEAD as well.
            per_method: Each method has a limit of its own.
            override_defaults: It holds in the place of the limits around it: those of the view's
                blueprints and the default one. False: they hold as well, and are asked before it.
            exempt: A callable on the request; what it says True to passes this limit uncounted.
            on_denied: Of its own; by default the extension's.
            name: What clients know the policy by; by default the limiter's name, or the view's.
            shared: A shared table for a quota, as `RateLimiter`'s, which all workers count in.

        Raises:
            ValueError, TypeError: An argument is wrong; it is named.
        """
        return Limit(
            self,
            limiter,
            self._key if key is None else key,
            self._cost if cost is None else cost,
            methods,
            per_method,
            override_defaults,
            exempt,
            self._on_denied if on_denied is None else on_denied,
            name,
            shared,
        )

    def limit_blueprint(
        self, blueprint: Blueprint, limiter: Limited, key: KeyFunction | None = None, **more: Any
    ) -> Limit:
        """Limit a blueprint: ``ratelimit.limit(...)(blueprint)``, with the same arguments.

        Raises:
            TypeError: It is no blueprint.
        """
        if not isinstance(blueprint, Blueprint):
            raise TypeError(f"blueprint must be a Blueprint, not {type(blueprint).__name__}")
        limit = self.limit(limiter, key, **more)
        limit(blueprint)
        return limit

    def exempt(self, place: F) -> F:
        """Take a view, or all views of a blueprint, out of the limits around it.

        These are the default limit, and those of the blueprints that it is in. A limit on the
        place itself, or inside of an exempt blueprint, holds nevertheless.

        Raises:
            TypeError: It is neither.
        """
        if isinstance(place, Blueprint):
            self._mark_blueprint(place, _Exempt(self))
        elif isinstance(place, Flask) or not callable(place):
            raise TypeError(f"exempt decorates views and blueprints, not {shown(place)}")
        else:
            setattr(place, _MARKS, (*getattr(place, _MARKS, ()), _Exempt(self)))
        return place

    def default_limiter(self, app: Flask | None = None) -> BlockingLimiter | None:
        """Return the limiter of an application's default limit, for its `reset`, `stats`, ...

        Args:
            app: The application; by default the current one.

        Raises:
            RuntimeError: The application was not given to `init_app`; or there is none.
        """
        return self._bound(current_app if app is None else app).limiter

    def _gates(self, limiter: Limited | None, headers: Kind | None) -> Gates:
        return Gates(
            limiter,
            self._key,
            self._cost,
            headers,
            self._rules,
            self._on_error,
            self._name,
            awaits=False,
            where=_WHERE,
        )

    def _bound(self, app: Flask) -> _Bound:
        """Return what belongs to an application."""
        bound: _Bound | None = app.extensions.get(_EXTENSION, {}).get(self)
        if bound is None:
            raise RuntimeError(
                f"the application {app.name!r} has a limit but no RateLimit: "
                "call ratelimit.init_app(app)"
            )
        return bound

    def _marks_of(self, blueprint: AnyBlueprint) -> tuple[object, ...]:
        return self._blueprints.get(blueprint, ())

    def _mark_blueprint(self, blueprint: Blueprint, mark: object) -> None:
        if blueprint not in self._blueprints:
            # Where init_app was forgotten, its requests fail instead of having no limit.
            blueprint.before_request(self._require)
        self._blueprints[blueprint] = (*self._marks_of(blueprint), mark)

    def _require(self) -> None:
        self._bound(current_app)


class _Record:
    """What was decided about one request."""

    __slots__ = ("decisions", "passes")

    def __init__(self) -> None:
        self.decisions: list[tuple[Decision, Announcement]] = []
        # By extension: whether it lets the request pass uncounted.
        self.passes: dict[RateLimit, bool] = {}

    @property
    def tightest(self) -> int:
        """The index of the decision that counts: the denial, else the least remaining."""
        return min(
            range(len(self.decisions)),
            key=lambda nth: (self.decisions[nth][0].allowed, self.decisions[nth][0].remaining),
        )


class _Bound:
    """An extension in one application."""

    def __init__(self, extension: RateLimit, app: Flask) -> None:
        self._extension = extension
        self._app = app  # what `current_app` stands for, without the way there
        self._config = config = app.config
        headers = config.get("NANOLIMIT_HEADERS", extension._headers)
        if headers is not None and not isinstance(headers, str):
            raise TypeError(f"NANOLIMIT_HEADERS must be a str or None, not {shown(headers)}")
        check_kind(headers)
        self._headers: Kind | None = headers  # type: ignore[assignment]
        for setting, default in (("NANOLIMIT_ENABLED", True), ("NANOLIMIT_STATIC", False)):
            if not isinstance(config.setdefault(setting, default), bool):
                raise TypeError(f"{setting} must be True or False, not {shown(config[setting])}")
        self._static: bool = config["NANOLIMIT_STATIC"]
        self.limiter = self._default(config)
        self._default_gates = (
            None
            if self.limiter is None and not extension._rules
            else extension._gates(self.limiter, self._headers)
        )
        self._gates: dict[Limit, Gate] = {}

    def _default(self, config: Any) -> BlockingLimiter | None:
        """Make the limiter of the default limit."""
        limiter = config.get("NANOLIMIT_QUOTA")
        if limiter is None:
            limiter = self._extension._limiter
        else:
            try:
                limiter_of(limiter)
            except (TypeError, ValueError) as error:
                raise type(error)(f"NANOLIMIT_QUOTA: {error}") from None
        shared = config.get("NANOLIMIT_SHARED")
        if shared is None or shared is False:
            return None if limiter is None else limiter_of(limiter)
        if limiter is None or is_limiter(limiter):
            raise TypeError(
                "NANOLIMIT_SHARED goes with a default limit that is a quota, as in "
                f"NANOLIMIT_QUOTA = '100/minute', not with {shown(limiter)}"
            )
        quota: Any = limiter
        return RateLimiter(quota, shared=shared, on_mismatch="replace")

    def before(self) -> Any:
        """Ask the limits that stand around the view: what `before_request` is given."""
        request = _request()
        if self._passes(request):
            return None
        method = "GET" if request.method == "HEAD" else request.method
        for limit in self._around(request, method):
            answer = self._default_gate(request, method) if limit is None else self.enter(limit)
            if answer is not None:
                return answer
        return None

    def enter(self, limit: Limit) -> Any:
        """Count a request that came to a limit. None: it may go on; else the answer to it."""
        request = _request()
        method = "GET" if request.method == "HEAD" else request.method
        if not limit.covers(method) or self._passes(request):
            return None
        if limit.exempt is not None and limit.exempt(request):
            return None
        gate = self._gates.get(limit)
        if gate is None:
            # Of several threads that make one at once, all take the same.
            gate = self._gates.setdefault(limit, limit.gate(self._headers))
        return self._ask(gate, request, limit.on_denied)

    def _default_gate(self, request: Request, method: str) -> Any:
        gates = self._default_gates
        gate = None if gates is None else gates.find(method, request.path)
        return None if gate is None else self._ask(gate, request, self._extension._on_denied)

    def _ask(self, gate: Gate, request: Request, on_denied: OnDenied | None) -> Any:
        try:
            decision = gate.decide(request)
        except Refused as refused:
            raise _refusal(refused, request) from None
        if decision is None:
            return None
        record = _record(request)
        record.decisions.append((decision, gate.announcement))
        g.ratelimit = record.decisions[record.tightest][0]
        if decision.allowed:
            return None
        if on_denied is not None:
            answer = on_denied(request, decision)
            if answer is not None:
                return _denial(answer)
        raise RateLimited(decision, gate.announcement, request.headers.get("Accept", ""))

    def _passes(self, request: Request) -> bool:
        """Say whether no limit counts the request; found out once."""
        passes = _record(request).passes
        found = passes.get(self._extension)
        if found is None:
            exempt = self._extension._exempt
            found = passes[self._extension] = (
                not self._config["NANOLIMIT_ENABLED"]
                or (request.method == "OPTIONS" and _asks_only(request))
                or (not self._static and _is_static(self._app, request))
                or (exempt is not None and bool(exempt(request)))
            )
        return found

    def _around(self, request: Request, method: str) -> list[Limit | None]:
        """Return the limits around the view from the outermost on; None is the default one."""
        limits: list[Limit | None] = []
        if self._stops(_marks_of_view(self._app, request), method, []):
            return limits
        for name in request.blueprints:  # from the innermost on
            blueprint = self._app.blueprints.get(name)
            if blueprint is None:
                continue
            own: list[Limit | None] = []
            stops = self._stops(self._extension._marks_of(blueprint), method, own)
            limits[:0] = own
            if stops:
                return limits
        return [None, *limits]

    def _stops(self, marks: Iterable[object], method: str, limits: list[Limit | None]) -> bool:
        """Collect a place's limits, and say whether those around it don't hold for it."""
        stops = False
        for mark in marks:
            if isinstance(mark, _Exempt):
                stops = stops or mark.extension is self._extension
            elif (
                isinstance(mark, Limit)
                and mark.extension is self._extension
                and mark.covers(method)
            ):
                limits.append(mark)
                stops = stops or mark.override_defaults
        return stops


def _announce(response: Response) -> Response:
    """Write the header fields of all limits that a request met: an `after_request` function."""
    record: _Record | None = vars(_request()).get(_RECORD)
    if record is None or not record.decisions:
        return response
    decisions = list(record.decisions)
    decisions.insert(0, decisions.pop(record.tightest))
    lists: dict[str, list[str]] = {}
    for nth, (decision, announcement) in enumerate(decisions):
        for name, value in announcement.fields(decision):
            if name in _LISTS:
                lists.setdefault(name, []).append(value)
            elif name == "Retry-After":
                response.headers.setdefault(name, value)  # an error handler may know better
            elif nth == 0:
                response.headers[name] = value
    # A view may return one response object again and again: nothing may heap up in it.
    for name, values in lists.items():
        response.headers.setlist(name, values)
    return response


def _request() -> Request:
    """Return the request itself, not what stands for it everywhere."""
    return current_request._get_current_object()  # type: ignore[attr-defined, no-any-return]


def _record(request: Request) -> _Record:
    record: _Record | None = vars(request).get(_RECORD)
    if record is None:
        record = vars(request)[_RECORD] = _Record()
        # Tests may keep one application context, and so one `g`, for many requests.
        g.pop("ratelimit", None)
    return record


def _refusal(
    refused: Refused, request: Request
) -> BadRequest | InternalServerError | ServiceUnavailable:
    body = refusal(refused.status, refused.detail, request.headers.get("Accept", ""))
    response = Response(
        body.content, refused.status, refused.fields, content_type=body.content_type
    )
    if refused.status == 503:
        return ServiceUnavailable(refused.detail, response, retry_after=refused.retry_after_s)
    kind = BadRequest if refused.status == 400 else InternalServerError
    return kind(refused.detail, response)


def _denial(answer: Any) -> AnyResponse:
    """Make a response of what `on_denied` gave."""
    response: AnyResponse = current_app.make_response(answer)
    if not isinstance(answer, AnyResponse) and response.status_code == 200:
        response.status_code = 429
    return response


def _asks_only(request: Request) -> bool:
    """Say whether an OPTIONS comes to no view, or only before another request of a page."""
    rule = request.url_rule
    if rule is None:
        return False
    return bool(getattr(rule, "provide_automatic_options", False)) or (
        "Origin" in request.headers and "Access-Control-Request-Method" in request.headers
    )


def _is_static(app: Flask, request: Request) -> bool:
    """Say whether a request is for a file of a `static` folder."""
    endpoint = request.endpoint
    if endpoint is None or endpoint.rpartition(".")[2] != "static":
        return False
    name = request.blueprint
    owner: Any = app if name is None else app.blueprints.get(name)
    return owner is not None and bool(owner.has_static_folder)


def _marks_of_view(app: Flask, request: Request) -> list[object]:
    """Return the marks of the view that a request is for: on the function, class or method."""
    endpoint = request.endpoint
    view: Any = None if endpoint is None else app.view_functions.get(endpoint)
    if view is None:
        return []
    marks = [*getattr(view, _MARKS, ())]
    kind = getattr(view, "view_class", None)
    if kind is not None:
        method = getattr(kind, request.method.lower(), None)
        if method is None and request.method == "HEAD":
            method = getattr(kind, "get", None)
        if method is None:
            method = getattr(kind, "dispatch_request", None)
        marks += [*getattr(kind, _MARKS, ()), *getattr(method, _MARKS, ())]
    return marks


def _method(request: Any) -> str:
    """Return a request's method: the key function of a limit for each."""
    return "GET" if request.method == "HEAD" else request.method


def _check_app(app: object) -> None:
    if not isinstance(app, Flask):
        raise TypeError(f"app must be a Flask application, not {shown(app)}")


def _checked_key(key: Any) -> KeyFunction:
    if not callable(key):
        raise TypeError(f"key must be a key function such as client_ip(), not {shown(key)}")
    if inspect.iscoroutinefunction(key) or inspect.iscoroutinefunction(type(key).__call__):
        raise TypeError(f"key must be a plain function, as no loop runs yet, not {shown(key)}")
    return key  # type: ignore[no-any-return]


def _checked_on_denied(on_denied: Any) -> OnDenied | None:
    if on_denied is not None and not callable(on_denied):
        raise TypeError(
            "on_denied must be a callable (request, decision) that returns what a view may, "
            f"not {shown(on_denied)}"
        )
    return on_denied  # type: ignore[no-any-return]


def _checked_methods(methods: Any) -> frozenset[str] | None:
    if methods is None:
        return None
    if isinstance(methods, str):
        raise TypeError(f"methods must be a list such as ['POST'], not {shown(methods)}")
    names = list(methods)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"methods must hold strs such as 'POST', not {shown(name)}")
    if not names:
        raise ValueError("methods must name at least one, as in ['POST']; None is all of them")
    found = frozenset(name.upper() for name in names)
    # What is asked for HEAD is asked as GET.
    return found - {"HEAD"} | {"GET"} if "HEAD" in found else found
