"""OpenTelemetry: the counters of limiters, as observable instruments.

```python
from nanolimit import RateLimiter
from nanolimit.metrics import otel

limiter = RateLimiter("100/minute", name="api")
otel.register(limiter)
```

From then on every collection of the meter tells of the limiter, by the attribute
``nanolimit.limiter``, which is its name:

============================  ============  ======================================================
``nanolimit.decisions``       {decision}    requests, by ``nanolimit.result``: ``allowed`` or
                                            ``denied``
``nanolimit.would_deny``      {decision}    allowed ones that ``enforce=False`` let pass
``nanolimit.overflows``       {decision}    requests that `on_full` decided
``nanolimit.stalled``         {decision}    requests that `on_stall` decided
``nanolimit.evictions``       {key}         live keys displaced, keys that `evict` dropped
``nanolimit.keys``            {key}         keys in the table
``nanolimit.capacity.keys``   {key}         keys that may be live at a time
``nanolimit.memory``          By            memory of the table
``nanolimit.log``             By            memory for long logs: in use
``nanolimit.log.capacity``    By            ... and what there can be
``nanolimit.top_denied``      {decision}    denials of the keys denied most, by ``nanolimit.key``,
                                            in the last 8 to 10 minutes; of limiters with
                                            `track_top`
============================  ============  ======================================================

It needs opentelemetry-api only. Without an SDK nothing happens, and nothing is lost: the SDK may be
set up later.

Of a distributed limiter there are the decisions, and besides:

============================  ============  ======================================================
``nanolimit.denied_locally``  {decision}    denials repeated without asking the store
``nanolimit.leased``          {decision}    requests allowed from a lease without asking the store
``nanolimit.degraded``        {decision}    requests that `on_error` decided, without the store
``nanolimit.store.failures``  {call}        calls to the store that failed, by
                                            ``nanolimit.outcome``: ``unknown`` if it may have
                                            counted the request, else ``uncounted``
============================  ============  ======================================================

It tells what it decided itself, and so every process registers its own.

A shared limiter tells what all processes of its table counted. So one process should register it:
where each worker does, each sends the whole, and a sum over them counts it several times.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from nanolimit import __version__
from nanolimit.metrics.measure import ALL
from nanolimit.metrics.roster import Roster, lock

try:
    from opentelemetry.metrics import (
        Meter,
        MeterProvider,
        Observation,
        get_meter,
        get_meter_provider,
    )
except ImportError as _error:
    raise ImportError(
        "nanolimit.metrics.otel needs opentelemetry-api >= 1.25: pip install 'nanolimit[otel]'"
    ) from _error

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.metrics import CallbackOptions

    from nanolimit.metrics.measure import Measure
    from nanolimit.remote import Remote
    from nanolimit.watched import Watched

__all__ = ["register", "unregister"]

_SCOPE = "nanolimit"

_rosters: weakref.WeakKeyDictionary[Meter, Roster] = weakref.WeakKeyDictionary()

# The meter of the global provider, asked for once. Before an SDK is set up the API hands out
# another stand-in each time, and all of them end up as one meter, which takes the instruments of
# the first only.
_global_meter: Meter | None = None


def register(
    limiter: Watched | Remote,
    *more: Watched | Remote,
    meter_provider: MeterProvider | None = None,
    meter: Meter | None = None,
    top: int = 10,
    key_text: Callable[[Any], str] | None = None,
) -> None:
    """Have a meter tell of these limiters, besides those that it tells of already.

    A limiter is held by a weak reference: it leaves the metrics when it is closed, or when
    the application forgets it. A `nanolimit.shared.watch` stays until it is closed or unregistered.
    Registering one again is no error; `top` and `key_text` of the last time hold. If anything is
    wrong, nothing is registered.

    Args:
        limiter: A `RateLimiter`, a `RedisRateLimiter` or `AsyncRedisRateLimiter`, or a
            `nanolimit.shared.watch`.
        more: Further ones. Each needs a name of its own.
        meter_provider: Gives the meter, named ``nanolimit``. The global one when left out.
        meter: A meter of your own, in the place of a provider.
        top: How many of a limiter's keys become attributes at most, 0 to 1000. 0 keeps all keys
            out of the metrics. Limiters without `track_top` have none.
        key_text: Gives the text by which a key is told, to keep personal data out: a hash, a
            network in the place of an address. Keys of one text count together. When left out, a
            str is its own text and others are written as Python writes them. It is called at
            every collection, at most `top` times for each limiter. If it raises, the keys of that
            limiter are left out, and the log says why.

    Raises:
        TypeError: One is no limiter, an argument is of the wrong type, or both `meter_provider`
            and `meter` are given.
        ValueError: `top` is out of range; or another limiter of this name is registered.
        LimiterClosedError: One is closed.

    Thread-safe. It reads no limiter. A collection takes some microseconds for each, whatever they
    hold, and about a millisecond more for one with ``track_top=100``, unless `top` is 0.
    OpenTelemetry's instruments can't be taken back: after `unregister` they stay and tell nothing.
    """
    meter = _checked(meter_provider, meter)
    with lock():
        roster = _rosters.get(meter)
        if roster is not None:
            roster.add((limiter, *more), top, key_text)
            return
        roster = Roster()
        roster.add((limiter, *more), top, key_text)
        for measure in ALL:
            _instrument(meter, measure, roster)
        _rosters[meter] = roster


def unregister(
    limiter: Watched | Remote,
    *more: Watched | Remote,
    meter_provider: MeterProvider | None = None,
    meter: Meter | None = None,
) -> int:
    """Have a meter tell of these limiters no longer.

    Returns:
        How many of them it told of.

    Raises:
        TypeError: One is no limiter, or an argument is of the wrong type.

    Thread-safe. A collection that runs at this moment may still tell of them.
    """
    meter = _checked(meter_provider, meter)
    with lock():
        roster = _rosters.get(meter)
        return (Roster() if roster is None else roster).drop((limiter, *more))


def _checked(meter_provider: object, meter: object) -> Meter:
    """Return the meter, always the same one for the same provider."""
    global _global_meter
    if meter is not None:
        if meter_provider is not None:
            raise TypeError("meter_provider and meter are two ways to say one thing: give one")
        if not isinstance(meter, Meter):
            raise TypeError(f"meter must be a Meter, not {type(meter).__name__}")
        return meter
    if meter_provider is not None and not isinstance(meter_provider, MeterProvider):
        raise TypeError(
            f"meter_provider must be a MeterProvider, not {type(meter_provider).__name__}"
        )
    if meter_provider is not None and meter_provider is not get_meter_provider():
        return meter_provider.get_meter(_SCOPE, __version__)
    with lock():
        if _global_meter is None:
            _global_meter = get_meter(_SCOPE, __version__)
        return _global_meter


def _instrument(meter: Meter, measure: Measure, roster: Roster) -> None:
    create = {
        "counter": meter.create_observable_counter,
        "amount": meter.create_observable_up_down_counter,
        "gauge": meter.create_observable_gauge,
    }[measure.kind]
    create(
        measure.name,
        callbacks=[partial(_observe, measure, roster)],
        unit=measure.unit,
        description=measure.text,
    )


def _observe(measure: Measure, roster: Roster, options: CallbackOptions) -> list[Observation]:
    names = [f"nanolimit.{label}" for label in measure.labels]
    (points,) = roster.read(measure)
    return [Observation(number, dict(zip(names, labels, strict=True))) for labels, number in points]
