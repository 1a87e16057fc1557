"""OpenTelemetry: what the real SDK collects, and which meter tells of which limiters."""

from __future__ import annotations

import gc
import importlib
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nanolimit import RateLimiter, __version__
from nanolimit.errors import LimiterClosedError
from watched import Table

pytest.importorskip("opentelemetry.metrics", reason="the extra nanolimit[otel] is not installed")
sdk = pytest.importorskip("opentelemetry.sdk.metrics", reason="opentelemetry-sdk is not installed")
from opentelemetry.metrics import NoOpMeterProvider  # noqa: E402
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402

from nanolimit.metrics import otel  # noqa: E402
from nanolimit.metrics.measure import MEASURES  # noqa: E402

Points = dict[tuple[str, frozenset[tuple[str, Any]]], float]


class Sdk:
    """An SDK of its own for a test."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def metrics(self) -> list[Any]:
        data = self.reader.get_metrics_data()
        if data is None:
            return []
        return [
            metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def collect(self) -> Points:
        """All points, of which no two have the same name and attributes."""
        found: Points = {}
        for metric in self.metrics():
            for point in metric.data.data_points:
                one = (metric.name, frozenset((point.attributes or {}).items()))
                assert one not in found, f"{one} comes twice"
                found[one] = point.value
        return found


@pytest.fixture
def telemetry(caplog: pytest.LogCaptureFixture) -> Iterator[Sdk]:
    """The SDK logs what it holds against instruments and callbacks; there is nothing."""
    found = Sdk()
    yield found
    found.provider.shutdown()
    complaints = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("opentelemetry") and record.levelno >= logging.WARNING
    ]
    assert complaints == []


def point(name: str, **attributes: str) -> tuple[str, frozenset[tuple[str, Any]]]:
    return (
        f"nanolimit.{name}",
        frozenset((f"nanolimit.{label}", value) for label, value in attributes.items()),
    )


def limiters_in(points: Points) -> list[str]:
    return sorted(
        dict(labels)["nanolimit.limiter"] for name, labels in points if name == "nanolimit.keys"
    )


def test_names_and_values(telemetry: Sdk) -> None:
    otel.register(Table("t", ("mallory", 9)), meter_provider=telemetry.provider)
    assert telemetry.collect() == {
        point("decisions", limiter="t", result="allowed"): 7,
        point("decisions", limiter="t", result="denied"): 3,
        point("would_deny", limiter="t"): 1,
        point("overflows", limiter="t"): 4,
        point("stalled", limiter="t"): 6,
        point("evictions", limiter="t"): 5,
        point("keys", limiter="t"): 2,
        point("capacity.keys", limiter="t"): 1_000,
        point("memory", limiter="t"): 24_576,
        point("log", limiter="t"): 512,
        point("log.capacity", limiter="t"): 8_192,
        point("top_denied", limiter="t", key="mallory"): 9,
    }


def test_kinds_units_and_scope(telemetry: Sdk) -> None:
    otel.register(Table("t", ("mallory", 9)), meter_provider=telemetry.provider)
    found = {
        metric.name: (
            type(metric.data).__name__,
            getattr(metric.data, "is_monotonic", None),
            metric.unit,
        )
        for metric in telemetry.metrics()
    }
    assert found == {
        "nanolimit.decisions": ("Sum", True, "{decision}"),
        "nanolimit.would_deny": ("Sum", True, "{decision}"),
        "nanolimit.overflows": ("Sum", True, "{decision}"),
        "nanolimit.stalled": ("Sum", True, "{decision}"),
        "nanolimit.evictions": ("Sum", True, "{key}"),
        "nanolimit.keys": ("Sum", False, "{key}"),
        "nanolimit.capacity.keys": ("Sum", False, "{key}"),
        "nanolimit.memory": ("Sum", False, "By"),
        "nanolimit.log": ("Sum", False, "By"),
        "nanolimit.log.capacity": ("Sum", False, "By"),
        "nanolimit.top_denied": ("Gauge", None, "{decision}"),
    }
    data = telemetry.reader.get_metrics_data()
    assert data is not None
    (scope,) = {each.scope for each in data.resource_metrics[0].scope_metrics}
    assert (scope.name, scope.version) == ("nanolimit", __version__)
    assert all(metric.description for metric in telemetry.metrics())


def test_a_limiter_is_read_when_it_is_collected(telemetry: Sdk) -> None:
    with RateLimiter(2, per=60, name="api") as limiter:
        otel.register(limiter, meter_provider=telemetry.provider)
        denied = point("decisions", limiter="api", result="denied")
        for number in range(5):
            assert telemetry.collect()[denied] == max(0, number - 2)
            limiter.allow("me")
        memory = telemetry.collect()[point("memory", limiter="api")]
        assert memory == limiter.stats().memory_bytes


def test_to_register_reads_nothing(telemetry: Sdk) -> None:
    table = Table("t", ("a", 1))
    otel.register(table, meter_provider=telemetry.provider)
    assert (table.reads, table.asked) == (0, [])
    telemetry.collect()
    assert table.asked == [10]


def test_later_limiters_join_the_same_instruments(telemetry: Sdk) -> None:
    tables = [Table(f"t{number}") for number in range(4)]
    otel.register(tables[0], meter_provider=telemetry.provider)
    otel.register(tables[1], tables[2], meter_provider=telemetry.provider)
    otel.register(tables[3], tables[0], meter_provider=telemetry.provider)
    assert limiters_in(telemetry.collect()) == ["t0", "t1", "t2", "t3"]
    assert len(telemetry.metrics()) == len(MEASURES) - 1  # no keys are denied


def test_a_meter_of_ones_own(telemetry: Sdk) -> None:
    meter = telemetry.provider.get_meter("mine")
    otel.register(Table("1"), meter=meter)
    otel.register(Table("2"), meter=meter)
    assert limiters_in(telemetry.collect()) == ["1", "2"]
    data = telemetry.reader.get_metrics_data()
    assert data is not None
    assert [each.scope.name for each in data.resource_metrics[0].scope_metrics] == ["mine"]


def test_the_meter_that_a_provider_gives_is_one_and_the_same(telemetry: Sdk) -> None:
    otel.register(Table("1"), meter_provider=telemetry.provider)
    otel.register(Table("2"), meter=telemetry.provider.get_meter("nanolimit", __version__))
    assert limiters_in(telemetry.collect()) == ["1", "2"]


def test_providers_are_apart(telemetry: Sdk) -> None:
    other = Sdk()
    first, second = Table("same name"), Table("same name")
    otel.register(first, meter_provider=telemetry.provider)
    otel.register(second, meter_provider=other.provider)
    assert otel.unregister(first, meter_provider=other.provider) == 0
    assert limiters_in(telemetry.collect()) == ["same name"]
    assert limiters_in(other.collect()) == ["same name"]
    other.provider.shutdown()


def test_unregistered_ones_tell_nothing(telemetry: Sdk) -> None:
    provider = telemetry.provider
    first, second = Table("1"), Table("2")
    otel.register(first, second, meter_provider=provider)
    assert limiters_in(telemetry.collect()) == ["1", "2"]
    assert otel.unregister(first, meter_provider=provider) == 1
    assert otel.unregister(first, meter_provider=provider) == 0
    assert limiters_in(telemetry.collect()) == ["2"]
    assert otel.unregister(first, second, meter_provider=provider) == 1
    assert telemetry.collect() == {}
    otel.register(first, meter_provider=provider)
    assert limiters_in(telemetry.collect()) == ["1"]
    assert otel.unregister(second, meter=provider.get_meter("never used")) == 0


def test_closed_at_once_is_refused_and_closed_later_disappears(telemetry: Sdk) -> None:
    limiter = RateLimiter(5, per=60, name="api")
    otel.register(limiter, meter_provider=telemetry.provider)
    assert limiters_in(telemetry.collect()) == ["api"]
    limiter.close()
    assert telemetry.collect() == {}
    with pytest.raises(LimiterClosedError, match="'api' is closed"):
        otel.register(limiter, meter_provider=telemetry.provider)
    again = RateLimiter(5, per=60, name="api")
    otel.register(again, meter_provider=telemetry.provider)
    assert telemetry.collect()[point("decisions", limiter="api", result="allowed")] == 0


def test_a_limiter_that_is_forgotten_disappears(telemetry: Sdk) -> None:
    otel.register(RateLimiter(5, per=60, name="forgotten"), meter_provider=telemetry.provider)
    gc.collect()
    assert telemetry.collect() == {}


@pytest.mark.parametrize(
    ("limiters", "options", "error", "message"),
    [
        (["api"], {}, TypeError, "limiter must be a RateLimiter .*, not str"),
        ([Table("a"), Table("a")], {}, ValueError, "another limiter named 'a'"),
        ([Table("a")], {"top": 1001}, ValueError, "top must be from 0 .*, not 1001"),
        ([Table("a")], {"key_text": 5}, TypeError, "key_text must be a callable"),
        ([Table("a")], {"meter_provider": "x"}, TypeError, "meter_provider must be .*, not str"),
        (
            [Table("a")],
            {"meter_provider": None, "meter": "x"},
            TypeError,
            "meter must be a Meter, not str",
        ),
        (
            [Table("a")],
            {"meter": NoOpMeterProvider().get_meter("x")},
            TypeError,
            "meter_provider and meter",
        ),
    ],
)
def test_bad_input_changes_nothing(
    telemetry: Sdk,
    limiters: list[Any],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    for before in ([], ["t"]):
        with pytest.raises(error, match=message):
            otel.register(*limiters, **{"meter_provider": telemetry.provider, **options})
        assert limiters_in(telemetry.collect()) == before
        if not before:
            otel.register(Table("t"), meter_provider=telemetry.provider)


def test_attributes_are_text_that_can_be_sent(telemetry: Sdk) -> None:
    keys = (("\udc80", 5), (1, 4), ("1", 3), (b"\0", 2))
    otel.register(Table("t", *keys), meter_provider=telemetry.provider)
    found = {
        dict(labels)["nanolimit.key"]: value
        for (name, labels), value in telemetry.collect().items()
        if name == "nanolimit.top_denied"
    }
    assert found == {"\\udc80": 5, "1 (int)": 4, "1": 3, "b'\\x00'": 2}


def test_no_more_keys_than_were_asked_for(telemetry: Sdk) -> None:
    table = Table("t", *((f"user:{number}", number) for number in range(100)))
    otel.register(table, meter_provider=telemetry.provider, top=2, key_text=str.upper)
    found = {
        dict(labels)["nanolimit.key"]
        for name, labels in telemetry.collect()
        if name == "nanolimit.top_denied"
    }
    assert found == {"USER:99", "USER:98"}


@pytest.mark.usefixtures("restless")
def test_collections_while_the_limiter_is_closed_again_and_again(telemetry: Sdk) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []
    seen: set[bool] = set()

    def collector() -> None:
        try:
            while not stop.is_set():
                seen.add(bool(telemetry.collect()))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=collector)
    thread.start()
    try:
        for number in range(10_000):
            with RateLimiter(5, per=60, name="api") as limiter:
                otel.register(limiter, meter_provider=telemetry.provider)
                limiter.allow("me")
            if failures or (number > 200 and len(seen) == 2):
                break
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    assert failures == []
    assert seen == {True, False}


# The global provider can be set once in a process.
GLOBAL = """
import logging, sys
logging.basicConfig(level="WARNING", stream=sys.stderr)
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from nanolimit import RateLimiter
from nanolimit.metrics import otel

first, second, third, fourth = (RateLimiter(5, per=60, name=name) for name in "abcd")
otel.register(first)
otel.register(second, meter_provider=metrics.get_meter_provider())
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
otel.register(third)
otel.register(fourth, meter_provider=metrics.get_meter_provider())
assert otel.unregister(second) == 1
data = reader.get_metrics_data().resource_metrics[0].scope_metrics
for scope in data:
    for metric in scope.metrics:
        if metric.name == "nanolimit.keys":
            print(*sorted(each.attributes["nanolimit.limiter"] for each in metric.data.data_points))
"""


def test_the_global_provider_may_be_set_later() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GLOBAL], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "a c d\n", "")


def test_without_the_package_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    monkeypatch.delitem(sys.modules, "nanolimit.metrics.otel")
    with pytest.raises(ImportError, match=r"pip install 'nanolimit\[otel\]'"):
        importlib.import_module("nanolimit.metrics.otel")
