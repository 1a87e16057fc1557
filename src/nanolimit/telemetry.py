"""Events: be told what limiters decide.

A handler is a function ``handler(event, measurements, metadata)`` that is attached under an id to
one or more events::

    def on_denied(event, measurements, metadata):
        print(metadata["limiter"], "denied", metadata["key"])

    telemetry.attach("console", "denied", on_denied)
    ...
    telemetry.detach("console")

========================  ====================================================================
event                     it is sent when
========================  ====================================================================
``allowed``, ``denied``   a request was decided: each that stats() counts, by any method
``overflow``              the table was full and ``on_full`` decided, just before that decision
``evicted``               a live key was displaced, or evict() dropped idle keys (key is None)
``blocked``               a key was blocked: by its denials in a row (`Backoff`), or by block()
``degraded``,             a remote store went away, came back (distributed mode)
``recovered``
``handler_detached``      a handler raised and was detached
========================  ====================================================================

*measurements* is ``{"count": n}``: the cost of the request, or the number of keys; of ``blocked``,
the seconds. *metadata* is ``{"limiter": name, "key": key}``; a ``denied`` of a limiter that only
watches (``enforce=False``) adds ``enforced``, which is False; ``handler_detached`` adds
``handler_id``, ``event`` (the event that the handler failed on) and ``error`` (the exception). Each
handler gets dicts of its own.

Handlers run in the thread that asked, after the decision is made and with no lock held, in the
order in which they were attached. A handler may use limiters, also the one that called it, and may
attach and detach; it is not called for events that it causes itself. While nobody is attached,
events cost nothing.

A handler can be attached for a share of the events (``sample=0.01``), and for some limiters only
(``limiter=api``, ``limiter="api"``); the events of other limiters then cost what they cost before.
Telemetry knows a limiter by its name: two of one name are one to it.

A handler that raises is detached at once, the error is logged with its traceback to the logger
``nanolimit``, ``handler_detached`` is sent, and the decision stands. Exceptions that are no
`Exception` (KeyboardInterrupt, SystemExit) are not the handler's fault and pass through.

`ConsoleReporter` needs no events: it writes the counters of each limiter every few seconds.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from nanolimit import _core
from nanolimit.clock import shown

if TYPE_CHECKING:
    from nanolimit.limiter import RateLimiter
    from nanolimit.remote import Remote
    from nanolimit.reporter import ConsoleReporter

__all__ = ["EVENTS", "ConsoleReporter", "Handler", "attach", "detach", "handlers"]

Handler = Callable[[str, dict[str, float], dict[str, object]], object]

#: All events that a handler can be attached to.
EVENTS: tuple[str, ...] = (
    "allowed",
    "denied",
    "overflow",
    "evicted",
    "blocked",
    "degraded",
    "recovered",
    "handler_detached",
)

# Those that the core never sends: they are sent from Python, and wanting them slows no limiter.
_SENT_FROM_PYTHON = frozenset({"degraded", "recovered", "handler_detached"})

_logger = logging.getLogger("nanolimit")


#: A handler that raised, on which event, and what.
_Failure = tuple[_core.Attachment, str, Exception]


# Copy on write: both names are bound to new objects under the lock and never changed in place, so
# an event that is under way reads them without any lock. The lock is reentrant, because a
# finalizer or a signal handler that calls detach() can run in the middle of attach().
_attachments: tuple[_core.Attachment, ...] = ()
_routes: dict[str, tuple[_core.Attachment, ...]] = {}
_changing = threading.RLock()


def _after_fork() -> None:
    # The child may have inherited the lock from a thread that it does not have. What the lock
    # guards is whole in any case; the core may have missed the newest mask and is told once more.
    global _changing
    _changing = threading.RLock()
    for attachment in _attachments:
        _give_die(attachment)  # else parent and child would leave out the same ones
    with _changing:
        _tell_core()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)


def attach(
    handler_id: str,
    events: str | Iterable[str],
    handler: Handler,
    *,
    sample: float = 1.0,
    limiter: RateLimiter | Remote | str | Iterable[RateLimiter | Remote | str] | None = None,
) -> None:
    """Call `handler` for these events from now on.

    Args:
        handler_id: A name of your choice, to detach it by. One id, one handler.
        events: One event or several, out of `EVENTS`.
        handler: Called as ``handler(event, measurements, metadata)``; what it returns is ignored.
        sample: The share of the events that the handler gets, above 0 and at most 1. Chance decides
            for each event by itself, and the measurements are those of that one event: whoever adds
            them up divides by the share. ``handler_detached`` is never left out.
        limiter: Whose events the handler gets: a `RateLimiter` or `RedisRateLimiter`, or the name
            of one, which need not exist yet; or several, as a tuple, list or set. All limiters when
            left out. They are told apart by their names only: a handler gets the events of all
            that are called so.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: The id is empty or taken, an event is unknown, or there is none; `sample` is
            out of range; `limiter` names none, or one that no limiter can have.

    Thread-safe. A limiter that is in use elsewhere sees the handler from its next call on. A
    handler for some limiters costs the others nothing, unless another handler is for those.
    """
    _check_id(handler_id)
    wanted = _event_names(events)
    if not callable(handler):
        raise TypeError(f"handler must be callable, not {type(handler).__name__}")
    attachment = _core.Attachment(
        handler_id, wanted, handler, _checked_sample(sample), _limiter_names(limiter)
    )
    _give_die(attachment)

    def added(attachments: tuple[_core.Attachment, ...]) -> tuple[_core.Attachment, ...]:
        if any(other.handler_id == handler_id for other in attachments):
            raise ValueError(
                f"handler_id {_short(handler_id)} is taken; detach it first or choose another"
            )
        return (*attachments, attachment)

    _change(added)


def detach(handler_id: str) -> bool:
    """Stop calling the handler of this id, and return whether there was one.

    An event that another thread is sending at this moment may still reach it.

    Raises:
        TypeError: The id is no str.

    Thread-safe. A handler may detach itself.
    """
    _check_id(handler_id)
    return _change(
        lambda attachments: tuple(other for other in attachments if other.handler_id != handler_id)
    )


def is_wanted(event: str) -> bool:
    """Say whether anybody is attached to the event, for whoever sends it from Python (`emit`)."""
    return event in _routes


def handlers() -> dict[str, tuple[str, ...]]:
    """Return the ids that are attached now, each with its events, in the order of attaching."""
    return {attachment.handler_id: attachment.events for attachment in _attachments}


def _check_id(handler_id: object) -> None:
    if not isinstance(handler_id, str):
        raise TypeError(f"handler_id must be a str, not {type(handler_id).__name__}")
    if not handler_id:
        raise ValueError("handler_id must not be empty")


def _event_names(events: object) -> tuple[str, ...]:
    """Return the events, each once, in the order given."""
    if isinstance(events, str):
        events = (events,)
    if not isinstance(events, Iterable):
        raise TypeError(f"events must be a str or strs, not {type(events).__name__}")
    names: dict[str, None] = {}
    for event in events:
        if not isinstance(event, str):
            raise TypeError(f"events must be a str or strs, not {type(event).__name__} among them")
        if event not in EVENTS:
            raise ValueError(f"event {_short(event)} is unknown; there are {', '.join(EVENTS)}")
        names[event] = None
    if not names:
        raise ValueError(f"events must name at least one of {', '.join(EVENTS)}")
    return tuple(names)


def _checked_sample(sample: object) -> float:
    if isinstance(sample, bool) or not isinstance(sample, (int, float)):
        raise TypeError(
            f"sample must be a number above 0 and at most 1, not {type(sample).__name__}"
        )
    if not 0 < sample <= 1:  # NaN is caught here as well
        raise ValueError(f"sample must be above 0 and at most 1, not {shown(sample)}")
    return float(sample)


def _limiter_names(limiter: object) -> frozenset[str] | None:
    """Return the names of these limiters; None for all."""
    if limiter is None:
        return None
    # They stand above this module.
    from nanolimit.limiter import _MAX_NAME
    from nanolimit.remote import is_limiter

    if isinstance(limiter, str) or is_limiter(limiter):
        limiter = (limiter,)
    if not isinstance(limiter, (tuple, list, set, frozenset)):
        raise TypeError(
            f"limiter must be a RateLimiter, a name, or a tuple, list or set of such, "
            f"not {type(limiter).__name__}"
        )
    names: set[str] = set()
    each: Any
    for each in limiter:
        if is_limiter(each):
            names.add(each.name)
        elif not isinstance(each, str):
            raise TypeError(
                f"limiter must be a RateLimiter or a name, not {type(each).__name__} among them"
            )
        elif not 1 <= len(each) <= _MAX_NAME:
            raise ValueError(
                f"limiter {_short(each)} is no name that one can have: 1 to {_MAX_NAME} characters"
            )
        else:
            names.add(each)
    if not names:
        raise ValueError("limiter must name at least one; leave it out for all")
    return frozenset(names)


def _short(text: str) -> str:
    return repr(text) if len(text) <= 100 else f"{text[:100]!r}..."


def _change(
    rule: Callable[[tuple[_core.Attachment, ...]], tuple[_core.Attachment, ...]],
) -> bool:
    """Make what `rule` returns the attached handlers; return whether that changed them."""
    global _attachments, _routes
    with _changing:
        while True:
            before = _attachments
            after = rule(before)
            if after == before:
                return False
            routes: dict[str, tuple[_core.Attachment, ...]] = {}
            for attachment in after:
                for event in attachment.events:
                    routes[event] = (*routes.get(event, ()), attachment)
            # Otherwise this thread changed them itself meanwhile, in a finalizer: once more.
            if _attachments is before:
                _attachments = after
                _routes = routes
                _tell_core()
                return True


def _tell_core() -> None:
    """Tell the core which events are wanted. The lock is held."""
    while True:
        told = _routes
        mask, names = _wanted(told)
        _core.set_routes(mask, names, told, _settle)
        if _routes is told:
            return


def _wanted(
    routes: dict[str, tuple[_core.Attachment, ...]],
) -> tuple[int, frozenset[str] | None]:
    """Return what the core is to send: the bits of the events, and whose; None for everybody's."""
    mask = 0
    names: set[str] = set()
    everybody = False
    for event, attachments in routes.items():
        if event in _SENT_FROM_PYTHON:
            continue
        mask |= _core.EVENT_BITS[event]
        for attachment in attachments:
            if attachment.limiters is None:
                everybody = True
            else:
                names |= attachment.limiters
    return mask, None if everybody else frozenset(names)


def emit(
    event: str, count: float, limiter: str, key: object, more: dict[str, object] | None = None
) -> None:
    """Send an event to whom it concerns; it raises nothing of a handler's.

    For events that the core does not send by itself, such as those of a distributed limiter.
    `more`: what else the metadata has.
    """
    _core.send_event(event, count, limiter, key, more)


def _give_die(attachment: _core.Attachment) -> None:
    """Make the die that decides whether an event is in the sample.

    It is this handler's own: random.seed() of a program changes nothing here, nor this there.
    """
    if attachment.sample < 1:
        from random import Random  # here, because few handlers need it

        attachment.chance = Random().random


def _settle(failures: list[_Failure], limiter: str, key: object) -> None:
    """Detach the handlers that failed, each once, and tell of it in the log and by an event."""
    # A loop and not a recursion: a handler of handler_detached can fail as well, and is added to
    # the list. Each round detaches one handler, so it ends.
    while failures:
        attachment, failed_event, error = failures.pop(0)
        if not _drop(attachment):
            continue  # another thread was first, and tells of it
        _log(attachment, failed_event, error)
        _core.send_detached(
            limiter,
            key,
            {"handler_id": attachment.handler_id, "event": failed_event, "error": error},
            failures,
        )


def _drop(attachment: _core.Attachment) -> bool:
    """Detach exactly this handler, not a later one of the same id; return whether it was there."""
    return _change(
        lambda attachments: tuple(other for other in attachments if other is not attachment)
    )


def _log(attachment: _core.Attachment, event: str, error: Exception) -> None:
    try:
        _logger.error(
            "telemetry handler %s raised on event %r and was detached",
            _short(attachment.handler_id),
            event,
            exc_info=error,
        )
    except Exception:  # a broken logging set-up must not undo a decision
        return


def __getattr__(name: str) -> object:
    # The reporter brings a thread's keeper with it, which who wants events only need not import.
    if name == "ConsoleReporter":
        from nanolimit.reporter import ConsoleReporter

        globals()[name] = ConsoleReporter
        return ConsoleReporter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
