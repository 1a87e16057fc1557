"""Prometheus: the counters of limiters, read when they are scraped.

```python
from nanolimit import RateLimiter
from nanolimit.metrics import prometheus

limiter = RateLimiter("100/minute", name="api")
prometheus.register(limiter)
```

From then on every scrape of the registry tells of the limiter, by the label ``limiter``, which is
its name:

======================================  ==========================================================
``nanolimit_decisions_total``           requests, by ``result``: ``allowed`` or ``denied``
``nanolimit_would_deny_total``          allowed ones that ``enforce=False`` let pass
``nanolimit_overflows_total``           requests that `on_full` decided
``nanolimit_stalled_total``             requests that `on_stall` decided
``nanolimit_evictions_total``           live keys displaced, keys that `evict` dropped
``nanolimit_keys``                      keys in the table
``nanolimit_capacity_keys``             keys that may be live at a time
``nanolimit_memory_bytes``              memory of the table
``nanolimit_log_bytes``                 memory for long logs: in use
``nanolimit_log_capacity_bytes``        ... and what there can be
``nanolimit_top_denied``                denials of the keys denied most, by ``key``, in the last 8
                                        to 10 minutes; of limiters with `track_top`
======================================  ==========================================================

Of a distributed limiter there are the decisions, and besides:

======================================  ==========================================================
``nanolimit_denied_locally_total``      denials repeated without asking the store
``nanolimit_leased_total``              requests allowed from a lease without asking the store
``nanolimit_degraded_total``            requests that `on_error` decided, without the store
``nanolimit_store_failures_total``      calls to the store that failed, by ``outcome``:
                                        ``unknown`` if it may have counted the request, else
                                        ``uncounted``
======================================  ==========================================================

Nothing is counted twice and no thread runs: the collector reads what the limiters count anyway. A
private limiter has counted for its own process, a shared one for all processes of its table, those
that died included. So one scrape of any worker is right for all of them, without the directory of
prometheus_client's multi-process mode.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from nanolimit.metrics.measure import ALL, REMOTE_MEASURES
from nanolimit.metrics.roster import Roster, lock

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as _error:
    raise ImportError(
        "nanolimit.metrics.prometheus needs prometheus-client >= 0.20: "
        "pip install 'nanolimit[prometheus]'"
    ) from _error

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanolimit.metrics.measure import Measure
    from nanolimit.remote import Remote
    from nanolimit.watched import Watched

__all__ = ["register", "unregister"]

_UNITS = {"By": "bytes"}


class _Collector(Collector):
    """Tells a registry of the limiters of its roster."""

    def __init__(self) -> None:
        self.roster = Roster()

    def describe(self) -> list[CounterMetricFamily | GaugeMetricFamily]:
        """Return the families without samples: to register it reads no limiter."""
        return [_family(measure) for measure in ALL]

    def collect(self) -> list[CounterMetricFamily | GaugeMetricFamily]:
        """Return the families with what the limiters have counted by now."""
        families: list[CounterMetricFamily | GaugeMetricFamily] = []
        for measure, points in zip(ALL, self.roster.read(*ALL), strict=True):
            # Who has no remote limiter need not read of their measures.
            if points or measure not in REMOTE_MEASURES:
                family = _family(measure)
                for labels, number in points:
                    family.add_metric(labels, number)
                families.append(family)
        return families


# A registry that is forgotten, such as one made for each scrape, takes its collector with it.
_collectors: weakref.WeakKeyDictionary[CollectorRegistry, _Collector] = weakref.WeakKeyDictionary()


def register(
    limiter: Watched | Remote,
    *more: Watched | Remote,
    registry: CollectorRegistry | None = None,
    top: int = 10,
    key_text: Callable[[Any], str] | None = None,
) -> None:
    """Have a registry tell of these limiters, besides those that it tells of already.

    A limiter is held by a weak reference: it leaves the metrics when it is closed, or when
    the application forgets it. A `nanolimit.shared.watch` stays until it is closed or unregistered.
    Registering one again is no error; `top` and `key_text` of the last time hold. If anything is
    wrong, nothing is registered.

    Args:
        limiter: A `RateLimiter`, a `RedisRateLimiter` or `AsyncRedisRateLimiter`, or a
            `nanolimit.shared.watch`.
        more: Further ones. Each needs a name of its own.
        registry: prometheus_client's default registry when left out.
        top: How many of a limiter's keys become labels at most, 0 to 1000. 0 keeps all keys out
            of the metrics. Limiters without `track_top` have none.
        key_text: Gives the text by which a key is told, to keep personal data out: a hash, a
            network in the place of an address. Keys of one text count together. When left out, a
            str is its own text and others are written as Python writes them. It is called at
            every scrape, at most `top` times for each limiter. If it raises, the keys of that
            limiter are left out, and the log says why.

    Raises:
        TypeError: One is no limiter, or an argument is of the wrong type.
        ValueError: `top` is out of range; another limiter of this name is registered; or another
            collector of the registry has one of the names above.
        LimiterClosedError: One is closed.

    Thread-safe. It reads no limiter. A scrape takes some microseconds for each, whatever they
    hold, and about a millisecond more for one with ``track_top=100``, unless `top` is 0. A child
    that is forked goes on with the same limiters.
    """
    registry = _checked(registry)
    with lock():
        collector = _collectors.get(registry)
        if collector is None:
            collector = _Collector()
            collector.roster.add((limiter, *more), top, key_text)
            registry.register(collector)
            _collectors[registry] = collector
            return
        collector.roster.add((limiter, *more), top, key_text)
        try:
            # Others may have emptied the registry meanwhile, as tests do; and it says whether it
            # knows a collector only so.
            registry.register(collector)
        except ValueError:
            pass  # it does


def unregister(limiter: Watched, *more: Watched, registry: CollectorRegistry | None = None) -> int:
    """Have a registry tell of these limiters no longer.

    Returns:
        How many of them it told of.

    Raises:
        TypeError: One is no limiter, or `registry` is no registry.

    Thread-safe. A scrape that runs at this moment may still tell of them.
    """
    registry = _checked(registry)
    with lock():
        collector = _collectors.get(registry, None)
        left = (collector or _Collector()).roster.drop((limiter, *more))
        if collector is not None and not collector.roster:
            del _collectors[registry]
            try:
                registry.unregister(collector)
            except KeyError:
                pass  # others have emptied the registry meanwhile
        return left


def _checked(registry: object) -> CollectorRegistry:
    if registry is None:
        return REGISTRY
    if not isinstance(registry, CollectorRegistry):
        raise TypeError(f"registry must be a CollectorRegistry, not {type(registry).__name__}")
    return registry


def _family(measure: Measure) -> CounterMetricFamily | GaugeMetricFamily:
    """Name it as OpenTelemetry's own translation to Prometheus does."""
    name = measure.name.replace(".", "_")
    unit = _UNITS.get(measure.unit, "")
    if measure.kind == "counter":
        return CounterMetricFamily(name, measure.text, labels=measure.labels, unit=unit)
    return GaugeMetricFamily(name, measure.text, labels=measure.labels, unit=unit)
