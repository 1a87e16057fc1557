"""Prometheus: what a scrape says, and which registry tells of which limiters."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from nanolimit import RateLimiter
from nanolimit.errors import LimiterClosedError
from sharing import in_child, needs_shared
from watched import Table

client = pytest.importorskip(
    "prometheus_client", reason="the extra nanolimit[prometheus] is not installed"
)
from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402
from prometheus_client.openmetrics import exposition as openmetrics  # noqa: E402
from prometheus_client.openmetrics import parser as openmetrics_parser  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from nanolimit.metrics import prometheus  # noqa: E402
from nanolimit.metrics.measure import MEASURES  # noqa: E402

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture(autouse=True)
def _default_registry() -> Iterator[None]:
    before = list(client.REGISTRY._collector_to_names)
    yield
    assert list(client.REGISTRY._collector_to_names) == before


def samples_of(families: Any) -> Samples:
    """All samples, of which no two have the same name and labels."""
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            one = (sample.name, frozenset(sample.labels.items()))
            assert one not in found, f"{one} comes twice"
            found[one] = sample.value
    return found


def scrape(registry: CollectorRegistry) -> Samples:
    """What a scrape brings, in both formats that Prometheus asks for, read as Prometheus does."""
    text = generate_latest(registry).decode()
    named = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(named) == len(set(named)), "a family comes twice"
    samples = samples_of(text_string_to_metric_families(text))
    open_text = openmetrics.generate_latest(registry).decode()
    assert samples_of(openmetrics_parser.text_string_to_metric_families(open_text)) == samples
    return samples


def sample(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"nanolimit_{name}", frozenset(labels.items())


def limiters_in(samples: Samples) -> list[str]:
    return sorted(dict(labels)["limiter"] for name, labels in samples if name == "nanolimit_keys")


def test_names_types_and_values(registry: CollectorRegistry) -> None:
    prometheus.register(Table("t", ("mallory", 9)), registry=registry)
    assert scrape(registry) == {
        sample("decisions_total", limiter="t", result="allowed"): 7,
        sample("decisions_total", limiter="t", result="denied"): 3,
        sample("would_deny_total", limiter="t"): 1,
        sample("overflows_total", limiter="t"): 4,
        sample("stalled_total", limiter="t"): 6,
        sample("evictions_total", limiter="t"): 5,
        sample("keys", limiter="t"): 2,
        sample("capacity_keys", limiter="t"): 1_000,
        sample("memory_bytes", limiter="t"): 24_576,
        sample("log_bytes", limiter="t"): 512,
        sample("log_capacity_bytes", limiter="t"): 8_192,
        sample("top_denied", limiter="t", key="mallory"): 9,
    }
    types = {family.name: family.type for family in registry.collect()}
    assert {name for name, kind in types.items() if kind == "counter"} == {
        "nanolimit_decisions",
        "nanolimit_would_deny",
        "nanolimit_overflows",
        "nanolimit_stalled",
        "nanolimit_evictions",
    }
    assert set(types.values()) == {"counter", "gauge"}
    assert all(family.documentation.endswith(".") for family in registry.collect())


def test_a_limiter_is_read_when_it_is_scraped(registry: CollectorRegistry) -> None:
    with RateLimiter(2, per=60, name="api", max_keys=100) as limiter:
        prometheus.register(limiter, registry=registry)
        denied = sample("decisions_total", limiter="api", result="denied")
        for number in range(5):
            assert scrape(registry)[denied] == max(0, number - 2)
            limiter.allow("me")
        samples = scrape(registry)
        assert samples[sample("decisions_total", limiter="api", result="allowed")] == 2
        assert samples[sample("keys", limiter="api")] == 1
        assert samples[sample("capacity_keys", limiter="api")] == 100
        stats = limiter.stats()
        assert samples[sample("memory_bytes", limiter="api")] == stats.memory_bytes


def test_to_register_reads_nothing(registry: CollectorRegistry) -> None:
    table = Table("t", ("a", 1))
    for kind in (registry, CollectorRegistry(auto_describe=True)):
        prometheus.register(table, registry=kind)
    assert (table.reads, table.asked) == (0, [])


def test_the_default_registry() -> None:
    limiter = RateLimiter(2, per=60, name="by default")
    prometheus.register(limiter)
    try:
        value = client.REGISTRY.get_sample_value("nanolimit_keys", {"limiter": "by default"})
        assert value == 0
    finally:
        assert prometheus.unregister(limiter) == 1


def test_later_limiters_join_the_same_families(registry: CollectorRegistry) -> None:
    tables = [Table(f"t{number}") for number in range(4)]
    prometheus.register(tables[0], registry=registry)
    prometheus.register(tables[1], tables[2], registry=registry)
    prometheus.register(tables[3], tables[0], registry=registry)
    assert limiters_in(scrape(registry)) == ["t0", "t1", "t2", "t3"]


def test_registries_are_apart(registry: CollectorRegistry) -> None:
    other = CollectorRegistry()
    first, second = Table("same name"), Table("same name")
    prometheus.register(first, registry=registry)
    prometheus.register(second, registry=other)
    assert prometheus.unregister(first, registry=other) == 0
    assert prometheus.unregister(first, registry=registry) == 1
    assert limiters_in(scrape(registry)) == []
    assert limiters_in(scrape(other)) == ["same name"]


def test_unregistered(registry: CollectorRegistry) -> None:
    first, second = Table("1"), Table("2")
    prometheus.register(first, second, registry=registry)
    assert prometheus.unregister(first, registry=registry) == 1
    assert prometheus.unregister(first, registry=registry) == 0
    assert limiters_in(scrape(registry)) == ["2"]
    assert prometheus.unregister(first, second, registry=registry) == 1
    # The names are free for others then.
    mine = client.Gauge("nanolimit_keys", "Mine.", registry=registry)
    with pytest.raises(ValueError, match="nanolimit_keys"):
        prometheus.register(first, registry=registry)
    registry.unregister(mine)
    prometheus.register(first, registry=registry)
    assert limiters_in(scrape(registry)) == ["1"]


def test_a_registry_that_others_emptied(registry: CollectorRegistry) -> None:
    first, second = Table("1"), Table("2")
    prometheus.register(first, registry=registry)
    for collector in list(registry._collector_to_names):
        registry.unregister(collector)
    assert scrape(registry) == {}
    prometheus.register(second, registry=registry)
    assert limiters_in(scrape(registry)) == ["1", "2"]
    for collector in list(registry._collector_to_names):
        registry.unregister(collector)
    assert prometheus.unregister(first, second, registry=registry) == 2


def test_names_that_others_have_are_refused_and_nothing_is_registered(
    registry: CollectorRegistry,
) -> None:
    mine = client.Gauge("nanolimit_keys", "Mine.", registry=registry)
    with pytest.raises(ValueError, match="nanolimit_keys"):
        prometheus.register(Table("t"), registry=registry)
    registry.unregister(mine)
    assert scrape(registry) == {}
    prometheus.register(Table("other"), registry=registry)
    assert limiters_in(scrape(registry)) == ["other"]


@pytest.mark.parametrize(
    ("limiters", "options", "error", "message"),
    [
        (["api"], {}, TypeError, "limiter must be a RateLimiter .*, not str"),
        ([Table("a"), 5], {}, TypeError, "limiter must be .*, not int"),
        ([Table("a")], {"registry": "default"}, TypeError, "registry must be .*, not str"),
        ([Table("a")], {"top": -1}, ValueError, "top must be from 0 .*, not -1"),
        ([Table("a")], {"key_text": 5}, TypeError, "key_text must be a callable"),
        ([Table("a"), Table("a")], {}, ValueError, "another limiter named 'a'"),
    ],
)
def test_bad_input_changes_nothing(
    registry: CollectorRegistry,
    limiters: list[Any],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    for before in ([], ["t"]):
        assert limiters_in(scrape(registry)) == before
        with pytest.raises(error, match=message):
            prometheus.register(*limiters, **{"registry": registry, **options})
        assert limiters_in(scrape(registry)) == before
        if not before:
            prometheus.register(Table("t"), registry=registry)


def test_closed_at_once_is_refused_and_closed_later_disappears(
    registry: CollectorRegistry,
) -> None:
    limiter = RateLimiter(5, per=60, name="api")
    prometheus.register(limiter, registry=registry)
    limiter.close()
    assert scrape(registry) == {}
    with pytest.raises(LimiterClosedError, match="'api' is closed"):
        prometheus.register(limiter, registry=registry)
    again = RateLimiter(5, per=60, name="api")
    prometheus.register(again, registry=registry)
    assert limiters_in(scrape(registry)) == ["api"]


def test_a_limiter_that_is_forgotten_disappears(registry: CollectorRegistry) -> None:
    prometheus.register(RateLimiter(5, per=60, name="forgotten"), registry=registry)
    gc.collect()
    assert scrape(registry) == {}


def test_a_registry_that_is_forgotten_takes_its_collector_with_it() -> None:
    table = Table("t")
    registry = CollectorRegistry()
    prometheus.register(table, registry=registry)
    gone = weakref.ref(registry), weakref.ref(next(iter(registry._collector_to_names)))
    del registry
    gc.collect()
    assert [each() for each in gone] == [None, None]


def test_labels_are_escaped(registry: CollectorRegistry) -> None:
    odd = 'a"b\\c\nd{}, é<script>\t\r\0'
    prometheus.register(Table(odd, (odd, 9), ("\udc80", 1)), registry=registry)
    samples = scrape(registry)
    assert samples[sample("top_denied", limiter=odd, key=odd)] == 9
    assert samples[sample("top_denied", limiter=odd, key="\\udc80")] == 1
    assert samples[sample("keys", limiter=odd)] == 2


def test_keys_of_two_types_that_read_alike_do_not_clash(registry: CollectorRegistry) -> None:
    prometheus.register(Table("t", (1, 5), ("1", 4), (b"1", 3), ("b'1'", 2)), registry=registry)
    samples = scrape(registry)
    assert {
        dict(labels)["key"]: value
        for (name, labels), value in samples.items()
        if name == "nanolimit_top_denied"
    } == {"1 (int)": 5, "1": 4, "b'1' (bytes)": 3, "b'1'": 2}


def test_one_name_of_many(registry: CollectorRegistry) -> None:
    """Prometheus can ask for some names only: ``/metrics?name[]=nanolimit_keys``."""
    prometheus.register(Table("t"), registry=registry)
    some = registry.restricted_registry(["nanolimit_keys"])
    assert limiters_in(samples_of(some.collect())) == ["t"]
    assert len(samples_of(some.collect())) == 1


def test_a_limiter_made_anew_is_a_counter_that_starts_again(registry: CollectorRegistry) -> None:
    allowed = sample("decisions_total", limiter="api", result="allowed")
    with RateLimiter(5, per=60, name="api") as limiter:
        prometheus.register(limiter, registry=registry)
        limiter.allow("me")
        assert scrape(registry)[allowed] == 1
    with RateLimiter(5, per=60, name="api") as limiter:
        prometheus.register(limiter, registry=registry)
        assert scrape(registry)[allowed] == 0


@pytest.mark.usefixtures("restless")
def test_scrapes_while_the_limiter_is_closed_again_and_again(registry: CollectorRegistry) -> None:
    """Each is whole: of every limiter that it shows, it shows all."""
    stop = threading.Event()
    failures: list[BaseException] = []
    seen: set[int] = set()

    def scraper() -> None:
        try:
            while not stop.is_set():
                samples = samples_of(
                    text_string_to_metric_families(generate_latest(registry).decode())
                )
                seen.add(len(samples))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=scraper)
    thread.start()
    try:
        for number in range(10_000):
            with RateLimiter(5, per=60, name="api") as limiter:
                prometheus.register(limiter, registry=registry)
                limiter.allow("me")
            if failures or (number > 200 and len(seen) == 2):
                break
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    assert failures == []
    assert seen == {0, len(MEASURES)}, "it never met one open and one closed"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("options", "seen_by_the_parent"),
    [
        pytest.param({}, 1, id="private"),
        pytest.param({"shared": True, "max_keys": 100}, 2, id="shared", marks=needs_shared),
    ],
)
def test_a_child_scrapes_what_was_registered_before_the_fork(
    registry: CollectorRegistry, options: dict[str, Any], seen_by_the_parent: int
) -> None:
    with RateLimiter(5, per=60, name="api", **options) as limiter:
        prometheus.register(limiter, registry=registry)
        limiter.allow("me")
        allowed = sample("decisions_total", limiter="api", result="allowed")

        def child() -> Any:
            before = scrape(registry)[allowed]
            limiter.allow("me")
            prometheus.register(Table("of the child"), registry=registry)
            samples = scrape(registry)
            return before, samples[allowed], limiters_in(samples)

        assert in_child(child) == (1, 2, ["api", "of the child"])
        assert scrape(registry)[allowed] == seen_by_the_parent
        assert limiters_in(scrape(registry)) == ["api"]


MULTIPROCESS = """
import sys
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from nanolimit import RateLimiter
from nanolimit.metrics import prometheus

requests = Counter("requests", "Of the application.")
requests.inc(3)
limiter = RateLimiter(5, per=60, name="api")
limiter.allow("me")
for _ in range(2):  # as the documentation of prometheus_client has it: a registry a scrape
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    prometheus.register(limiter, registry=registry)
    text = generate_latest(registry).decode()
sys.stdout.write(text)
"""


def test_beside_the_multi_process_mode_of_the_client(tmp_path: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MULTIPROCESS],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    samples = samples_of(text_string_to_metric_families(done.stdout))
    assert samples["requests_total", frozenset()] == 3
    assert samples[sample("decisions_total", limiter="api", result="allowed")] == 1


def test_without_the_package_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "nanolimit.metrics.prometheus")
    with pytest.raises(ImportError, match=r"pip install 'nanolimit\[prometheus\]'"):
        importlib.import_module("nanolimit.metrics.prometheus")
