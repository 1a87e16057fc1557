"""Django REST framework: our throttles beside its own, through its public API; real servers."""

from __future__ import annotations

import django_project  # first: it configures Django

# isort: split

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import time_machine
from django.core import mail
from django.core.cache import cache, caches
from django.core.exceptions import ImproperlyConfigured
from django.test import AsyncRequestFactory, override_settings
from django.urls import path
from hypothesis import given, settings
from hypothesis import strategies as st
from rest_framework import throttling, viewsets
from rest_framework.decorators import api_view, throttle_classes
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.settings import api_settings
from rest_framework.test import APIClient, APIRequestFactory
from rest_framework.views import APIView

from django_project import Person, python_of_document, run_without
from nanolimit import RateLimiter
from nanolimit.integrations import drf
from nanolimit.integrations.drf import (
    AnonRateThrottle,
    ScopedRateThrottle,
    SimpleRateThrottle,
    UserRateThrottle,
)
from saturation import QUOTA, check_windows
from server import WORKERS, Server


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    drf.clear()
    cache.clear()
    yield
    drf.clear()
    cache.clear()


@pytest.fixture
def testing() -> Iterator[None]:
    """As Django's test runners have it."""
    assert not hasattr(mail, "outbox")
    mail.outbox = []
    yield
    del mail.outbox


@contextmanager
def urls(*patterns: Any) -> Iterator[APIClient]:
    module = type("urls", (), {"urlpatterns": list(patterns)})
    with override_settings(ROOT_URLCONF=module):
        yield APIClient()


def view_of(*throttles: Any, scope: str | None = None) -> Any:
    class Seen(APIView):
        throttle_classes = throttles
        throttle_scope = scope

        def get(self, request: Any) -> Response:
            return Response("seen")

    return Seen.as_view()


def statuses(client: APIClient, number: int, where: str = "/a") -> list[int]:
    return [client.get(where).status_code for _ in range(number)]


def test_they_are_those_of_the_framework() -> None:
    for name in (
        "SimpleRateThrottle",
        "AnonRateThrottle",
        "UserRateThrottle",
        "ScopedRateThrottle",
    ):
        mine, theirs = getattr(drf, name), getattr(throttling, name)
        assert issubclass(mine, theirs)
        assert issubclass(mine, SimpleRateThrottle)
        for attribute in ("scope", "cache_format", "timer", "cache", "THROTTLE_RATES"):
            assert getattr(mine, attribute) == getattr(theirs, attribute)
        for method in ("get_cache_key", "get_ident", "get_rate"):
            assert getattr(mine, method) is getattr(theirs, method)


def test_the_settings_alone() -> None:
    """DEFAULT_THROTTLE_CLASSES and _RATES, as in a project."""
    rates = {"anon": "2/min", "user": "3/min"}
    names = [
        "nanolimit.integrations.drf.AnonRateThrottle",
        "nanolimit.integrations.drf.UserRateThrottle",
    ]
    with override_settings(
        REST_FRAMEWORK={
            "DEFAULT_THROTTLE_CLASSES": names,
            "DEFAULT_THROTTLE_RATES": rates,
            "DEFAULT_AUTHENTICATION_CLASSES": [],
        }
    ):

        class Seen(APIView):
            throttle_classes = api_settings.DEFAULT_THROTTLE_CLASSES

            def get(self, request: Any) -> Response:
                return Response("seen")

        with urls(path("a", Seen.as_view())) as client:
            assert statuses(client, 3) == [200, 200, 429]
            denied = client.get("/a")
            assert denied.headers["Retry-After"] in ("59", "60")
            assert denied.json()["detail"].startswith("Request was throttled. Expected available")
            client.force_authenticate(Person(1))
            assert statuses(client, 4) == [200, 200, 200, 429]
            client.force_authenticate(Person(2))
            assert statuses(client, 4) == [200, 200, 200, 429]


def test_function_views_viewsets_and_scopes() -> None:
    @api_view(["GET"])
    @throttle_classes([AnonRateThrottle])
    def function(request: Any) -> Response:
        return Response("seen")

    class Things(viewsets.ViewSet):
        throttle_classes = (ScopedRateThrottle,)
        throttle_scope = "few"

        def list(self, request: Any) -> Response:
            return Response([])

    router = SimpleRouter()
    router.register("things", Things, basename="thing")
    others = path("others", view_of(ScopedRateThrottle, scope="few"))
    free = path("free", view_of(ScopedRateThrottle))
    wrong = path("wrong", view_of(ScopedRateThrottle, scope="nameless"))
    with urls(path("a", function), *router.urls, others, free, wrong) as client:
        assert statuses(client, 4) == [200, 200, 200, 429]
        assert statuses(client, 1, "/things/") + statuses(client, 2, "/others") == [200, 200, 429]
        assert statuses(client, 9, "/free") == [200] * 9
        with pytest.raises(ImproperlyConfigured, match="'nameless'"):
            client.get("/wrong")


def test_rates_may_change() -> None:
    view = view_of(AnonRateThrottle)
    with urls(path("a", view)) as client:
        assert statuses(client, 4) == [200, 200, 200, 429]
        with override_settings(REST_FRAMEWORK={"DEFAULT_THROTTLE_RATES": {"anon": "5/min"}}):
            # What was counted stays, as the window is the same.
            assert statuses(client, 3) == [200, 200, 429]
        with override_settings(REST_FRAMEWORK={"DEFAULT_THROTTLE_RATES": {"anon": None}}):
            assert statuses(client, 9) == [200] * 9
        for owner in (AnonRateThrottle, SimpleRateThrottle, throttling.SimpleRateThrottle):
            with mock.patch.object(owner, "THROTTLE_RATES", {"anon": "7/hour"}):
                drf.clear()
                assert statuses(client, 8) == [200] * 7 + [429]
        assert AnonRateThrottle.THROTTLE_RATES is api_settings.DEFAULT_THROTTLE_RATES
        assert statuses(client, 4) == [200, 200, 200, 429]
        with override_settings(NANOLIMIT={"MAX_KEYS": 10}):
            assert statuses(client, 4) == [200, 200, 200, 429]


def test_addresses_behind_proxies() -> None:
    with urls(path("a", view_of(AnonRateThrottle))) as client:

        def by(*chains: str) -> list[int]:
            return [client.get("/a", headers={"X-Forwarded-For": c}).status_code for c in chains]

        rates = {"DEFAULT_THROTTLE_RATES": {"anon": "1/min"}}
        with override_settings(REST_FRAMEWORK={**rates, "NUM_PROXIES": 1}):
            assert by("192.0.2.1", "9.9.9.9, 192.0.2.1", "192.0.2.2") == [200, 429, 200]
        with override_settings(REST_FRAMEWORK={**rates, "NUM_PROXIES": 0}):
            assert by("192.0.2.3", "192.0.2.4") == [200, 429]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["wsgi", "asgi"])
def test_addresses_by_client_ip(asynchronous: bool) -> None:
    """What docs/django.md advises: a header of trusted proxies only, and IPv6 by network."""
    said = python_of_document(3)
    throttle = type("One", (said["AnonRateThrottle"],), {"rate": "1/min"})
    view = view_of(throttle)
    factory = AsyncRequestFactory() if asynchronous else APIRequestFactory()

    def by(chain: str) -> int:
        request = factory.get("/", headers={"X-Forwarded-For": chain})
        if asynchronous:
            request.scope["client"] = ["10.0.0.1", 1]
        else:
            request.META["REMOTE_ADDR"] = "10.0.0.1"
        return int(view(request).status_code)

    chains = ["2001:db8::1", "2001:db8::2", "9.9.9.9, 2001:db8::3", "192.0.2.1", "no address"]
    assert [by(chain) for chain in chains] == [200, 429, 429, 200, 400]


# Side by side


class Clock:
    """What both kinds of throttle are told."""

    now = 0.0

    def __call__(self, throttle: Any = None) -> float:
        return self.now


def pair(rate: str, clock: Clock, kind: str = "UserRateThrottle") -> list[Any]:
    def timer(self: Any) -> float:
        return clock.now

    return [
        type("Mine", (getattr(module, kind),), {"rate": rate, "timer": timer})
        for module in (drf, throttling)
    ]


def request_of(pk: int) -> Any:
    request: Any = APIRequestFactory().get("/")
    request.user = Person(pk)
    return request


QUARTERS = st.integers(0, 60 * 4 + 1).map(lambda quarters: quarters / 4)


@settings(max_examples=150, deadline=None)
@given(
    rate=st.sampled_from(["1/sec", "2/min", "3/m", "5/minute", "7/hour", "0/min", "2/day"]),
    steps=st.lists(
        st.tuples(st.integers(1, 2), st.one_of(QUARTERS, st.sampled_from([0.0, 1.0, 59.75, 60.0]))),
        max_size=60,
    ),
)
def test_the_same_decisions(rate: str, steps: list[tuple[int, float]]) -> None:
    drf.clear()
    cache.clear()
    clock = Clock()
    clock.now = 1_000.0
    mine, theirs = pair(rate, clock)
    for pk, step in steps:
        clock.now += step
        request = request_of(pk)
        ours, original = mine(), theirs()
        allowed = ours.allow_request(request, None)
        assert allowed == original.allow_request(request, None)
        assert len(ours.history) == len(original.history)
        assert (ours.now, ours.key) == (original.now, original.key)
        if original.history:
            assert ours.history[0] == pytest.approx(original.history[0], abs=1e-3)
            assert ours.history[-1] == pytest.approx(original.history[-1], abs=1e-3)
        if not allowed:
            assert ours.wait() == original.wait()
        elif original.wait() is not None:
            assert ours.wait() == pytest.approx(original.wait(), rel=1e-3)


def test_the_boundary() -> None:
    """A stamp exactly one window old is out; a denied request is not counted."""
    clock = Clock()
    for throttle in pair("2/min", clock):
        clock.now = 5.0
        request = request_of(1)
        assert throttle().allow_request(request, None)
        clock.now = 35.0
        assert throttle().allow_request(request, None)
        for now in (35.0, 64.75):
            clock.now = now
            denied = throttle()
            assert not denied.allow_request(request, None)
            assert denied.wait() == 65.0 - now
        clock.now = 65.0
        assert throttle().allow_request(request, None)
        assert not throttle().allow_request(request, None)


@pytest.mark.parametrize(
    ("rate", "parsed"),
    [
        ("5/s", (5, 1)),
        ("5/sec", (5, 1)),
        ("5/m", (5, 60)),
        ("5/min", (5, 60)),
        ("5/minute", (5, 60)),
        ("5/mins", (5, 60)),
        ("5/hr", (5, 3_600)),
        ("5/hour", (5, 3_600)),
        ("5/d", (5, 86_400)),
        ("5/day", (5, 86_400)),
        ("0/day", (0, 86_400)),
        ("0/hr", (0, 3_600)),
        (None, (None, None)),
    ],
)
def test_rates_as_the_framework_reads_them(rate: str | None, parsed: Any) -> None:
    for module in (drf, throttling):
        throttle = type("T", (module.UserRateThrottle,), {"rate": "1/s"})()
        found = throttle.parse_rate(rate)
        assert found == parsed
        assert [type(each) for each in found] == [type(each) for each in parsed]


def test_rates_as_nanolimit_reads_them() -> None:
    throttle = type("T", (UserRateThrottle,), {"rate": "1/s"})()
    assert throttle.parse_rate("10/5m") == (10, 300)
    assert throttle.parse_rate("10 per 2 hours") == (10, 7_200)
    assert throttle.parse_rate("10/0.5s") == (10, 0.5)


@pytest.mark.parametrize(
    "rate", ["", "5", "5/", "/min", "x/min", "-1/min", "5/fortnight", "5/month", "5.5/min", 5,
             "99999999999/day", "5/min/min"],
)  # fmt: skip
def test_wrong_rates(rate: Any) -> None:
    throttle = type("T", (UserRateThrottle,), {"rate": "1/s"})()
    with pytest.raises(ImproperlyConfigured, match=r"the throttle rate .* of the scope 'user' is"):
        throttle.parse_rate(rate)


def test_no_rate_for_the_scope() -> None:
    with pytest.raises(ImproperlyConfigured, match="'unknown'"):
        type("T", (UserRateThrottle,), {"scope": "unknown"})()
    with pytest.raises(ImproperlyConfigured, match=r"\.scope"):
        SimpleRateThrottle()
    with pytest.raises(ImproperlyConfigured, match="parse_rate gave"):
        type(
            "T", (UserRateThrottle,), {"parse_rate": lambda self, rate: ("5", 60)}
        )().allow_request(request_of(1), None)


# What subclasses do


@pytest.mark.parametrize("module", [drf, throttling])
def test_subclasses(module: Any) -> None:
    clock = Clock()

    class ByPlan(module.SimpleRateThrottle):  # type: ignore[name-defined, misc]
        cache_format = "plan_%(ident)s"
        scope = "plan"

        def timer(self) -> float:
            return clock.now

        def get_rate(self) -> str:
            return "2 in 10"

        def parse_rate(self, rate: str) -> tuple[int, int]:
            number, _, seconds = rate.partition(" in ")
            return int(number), int(seconds)

        def get_cache_key(self, request: Any, view: Any) -> str | None:
            if request.user.pk == 0:
                return None
            return self.cache_format % {"ident": request.user.pk}

    def ask(pk: int) -> bool:
        return bool(ByPlan().allow_request(request_of(pk), None))

    assert [ask(1), ask(1), ask(1), ask(2), ask(0), ask(0), ask(0)] == [
        True, True, False, True, True, True, True,
    ]  # fmt: skip
    clock.now = 9.75
    assert not ask(1)
    clock.now = 10.0
    assert [ask(1), ask(1), ask(1)] == [True, True, False]


@pytest.mark.parametrize("module", [drf, throttling])
def test_a_subclass_decides_what_counts(module: Any) -> None:
    """Without a call of super().throttle_success() nothing is counted; with a late one it is."""

    class Failures(module.UserRateThrottle):  # type: ignore[name-defined, misc]
        rate = "2/min"

        def throttle_success(self) -> bool:
            return True

        def failed(self) -> None:
            super().throttle_success()

    request = request_of(1)
    for _ in range(9):
        assert Failures().allow_request(request, None)
    for _ in range(2):
        throttle = Failures()
        assert throttle.allow_request(request, None)
        throttle.failed()
    assert not Failures().allow_request(request, None)


@pytest.mark.parametrize("module", [drf, throttling])
def test_what_subclasses_see(module: Any) -> None:
    told: list[Any] = []
    clock = Clock()

    class Telling(module.UserRateThrottle):  # type: ignore[name-defined, misc]
        rate = "3/min"

        def timer(self) -> float:
            return clock.now

        def throttle_success(self) -> bool:
            before = len(self.history)
            allowed = super().throttle_success()
            told.append((before, len(self.history), self.num_requests, self.duration))
            return bool(allowed)

        def throttle_failure(self) -> bool:
            told.append((len(self.history), self.history[-1]))
            return False

    for now in (0.0, 1.0, 2.0, 3.0):
        clock.now = now
        Telling().allow_request(request_of(1), None)
    assert told[:3] == [(0, 1, 3, 60), (1, 2, 3, 60), (2, 3, 3, 60)]
    assert told[3] == (3, pytest.approx(0.0, abs=1e-3))


@pytest.mark.parametrize("module", [drf, throttling])
def test_a_subclass_with_an_algorithm_of_its_own(module: Any) -> None:
    """It counts in the cache, and with the framework's own methods."""

    class Own(module.UserRateThrottle):  # type: ignore[name-defined, misc]
        rate = "2/min"

        def allow_request(self, request: Any, view: Any) -> bool:
            self.key = self.get_cache_key(request, view)
            self.history = self.cache.get(self.key, [])
            self.now = self.timer()
            if len(self.history) >= self.num_requests:
                return bool(self.throttle_failure())
            return bool(self.throttle_success())

    assert [Own().allow_request(request_of(1), None) for _ in range(3)] == [True, True, False]
    denied = Own()
    denied.allow_request(request_of(1), None)
    assert 59 < denied.wait() <= 60


def test_timers_that_are_patched() -> None:
    """On an instance, on a class, on the framework's class, and as time.time is."""
    request = request_of(1)
    for owner in (UserRateThrottle, throttling.SimpleRateThrottle):
        with mock.patch.object(owner, "timer", return_value=100.0):
            drf.clear()
            assert [UserRateThrottle().allow_request(request, None) for _ in range(6)] == [
                *[True] * 5,
                False,
            ]
        with mock.patch.object(owner, "timer", return_value=160.0):
            assert UserRateThrottle().allow_request(request, None)
    drf.clear()
    throttle = type("One", (UserRateThrottle,), {"rate": "1/min"})()
    for now, allowed in ((10, True), (69, False), (70, True)):
        throttle.timer = lambda now=now: now
        assert throttle.allow_request(request, None) is allowed


def test_a_wait_is_never_longer_than_the_window() -> None:
    throttle = type("One", (UserRateThrottle,), {"rate": "1/day"})
    denied = []
    for pk in range(100):
        assert throttle().allow_request(request_of(pk), None)
        denied.append(throttle())
        assert not denied[-1].allow_request(request_of(pk), None)
    assert all(86_399 < each.wait() <= 86_400 for each in denied)


# In tests of a project


@pytest.mark.usefixtures("testing")
def test_clearing_the_cache_is_enough_for_tests() -> None:
    with urls(path("a", view_of(AnonRateThrottle))) as client:
        for _ in range(3):
            cache.clear()
            assert statuses(client, 4) == [200, 200, 200, 429]


@pytest.mark.usefixtures("testing")
def test_time_machine() -> None:
    with urls(path("a", view_of(AnonRateThrottle))) as client:
        with time_machine.travel(1_800_000_000, tick=False) as traveller:
            assert statuses(client, 4) == [200, 200, 200, 429]
            traveller.shift(59)
            assert client.get("/a").headers["Retry-After"] == "1"
            traveller.shift(1)
            assert statuses(client, 4) == [200, 200, 200, 429]


@pytest.mark.usefixtures("testing")
def test_tests_count_in_no_shared_table(tables: Path) -> None:
    with override_settings(NANOLIMIT={"SHARED": "api"}):
        with urls(path("a", view_of(AnonRateThrottle))) as client:
            assert statuses(client, 4) == [200, 200, 200, 429]
    assert list(tables.iterdir()) == []


def test_a_cleared_cache_means_nothing_in_production() -> None:
    with urls(path("a", view_of(AnonRateThrottle))) as client:
        assert statuses(client, 4) == [200, 200, 200, 429]
        cache.clear()
        assert statuses(client, 1) == [429]
        assert cache.get("throttle_anon_127.0.0.1") is None


# Limiters


def test_shared_tables(tables: Path) -> None:
    class Elsewhere(UserRateThrottle):
        rate = "1/hour"
        scope = "else where"
        shared = "other"

    with override_settings(NANOLIMIT={"SHARED": "api", "MAX_KEYS": 100}):
        assert UserRateThrottle().allow_request(request_of(1), None)
        assert Elsewhere().allow_request(request_of(1), None)
        names = {each.name for each in tables.iterdir() if each.is_file()}
        assert any(name.startswith("api.throttle-user-60s") for name in names)
        assert any(name.startswith("other.throttle-else-where-3600s-") for name in names)
        # Another process, with another rate in this window, counts in the same table.
        other = RateLimiter(
            "5/minute", shared="api.throttle-user-60s", max_keys=100, on_mismatch="adopt"
        )
        assert other.check("throttle_user_1").remaining == 3
        other.close()
        for limiter in drf._limiters.values():
            limiter.close()
        drf._limiters.clear()
        more = type("More", (UserRateThrottle,), {"rate": "7/min"})()
        assert more.allow_request(request_of(1), None)
        assert more.decision is not None
        assert (more.decision.limit, more.decision.remaining) == (7, 4)
    for limiter in drf._limiters.values():
        limiter.close()
    drf._limiters.clear()


def test_large_rates_have_larger_tables(tables: Path) -> None:
    with override_settings(NANOLIMIT={"SHARED": "api", "MAX_KEYS": 100}):
        for rate in ("10/day", "2047/day", "2048/day", "5000/day", "100000/day"):
            throttle = type("T", (UserRateThrottle,), {"rate": rate})()
            assert throttle.allow_request(request_of(1), None)
            assert throttle.decision is not None
            assert throttle.decision.limit == int(rate.partition("/")[0])
    for limiter in drf._limiters.values():
        limiter.close()
    drf._limiters.clear()


def test_limiters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drf, "_MOST_LIMITERS", 5)
    for number in range(20):
        throttle = type("T", (UserRateThrottle,), {"rate": "1/min", "scope": f"s{number}"})
        assert throttle().allow_request(request_of(1), None)
        assert not throttle().allow_request(request_of(1), None)
        assert len(drf._limiters) <= 5


def test_threads_get_exactly_the_limit() -> None:
    """The framework's own throttle lets more through: what it replaces is a race."""

    class Twenty(UserRateThrottle):
        rate = "20/hour"

    allowed: list[bool] = []
    start = threading.Barrier(8)

    def run() -> None:
        start.wait()
        for _ in range(50):
            allowed.append(Twenty().allow_request(SimpleNamespace(user=Person(1)), None))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert (len(allowed), sum(allowed)) == (400, 20)


def test_wrong_settings_show() -> None:
    with override_settings(NANOLIMIT={"MAX_KEY": 5}):
        with pytest.raises(ImproperlyConfigured, match="did you mean 'MAX_KEYS'"):
            UserRateThrottle().allow_request(request_of(1), None)


def test_the_document(tables: Path) -> None:
    """The settings in docs/django.md are right."""
    said = python_of_document(2)
    with override_settings(NANOLIMIT={**said["NANOLIMIT"], "MAX_KEYS": 100}):
        with override_settings(
            REST_FRAMEWORK={**said["REST_FRAMEWORK"], "DEFAULT_AUTHENTICATION_CLASSES": []}
        ):
            classes = api_settings.DEFAULT_THROTTLE_CLASSES
            with urls(path("a", view_of(*classes))) as client:
                assert statuses(client, 21) == [200] * 20 + [429]
    assert any(each.name.startswith("api.throttle-anon-60s") for each in tables.iterdir())
    for limiter in drf._limiters.values():
        limiter.close()
    drf._limiters.clear()


def test_without_the_framework() -> None:
    said = run_without("rest_framework", "nanolimit.integrations.drf")
    assert "pip install 'nanolimit[drf]'" in said


def test_another_cache_is_not_asked() -> None:
    class Elsewhere(UserRateThrottle):
        cache = caches["default"]

    with mock.patch.object(type(caches["default"]), "get", side_effect=AssertionError):
        assert Elsewhere().allow_request(request_of(1), None)
    assert time.time() - Elsewhere().timer() < 60


# Real servers


def server(log: Path) -> Server:
    here = str(Path(django_project.__file__).parent)
    return Server(
        "gunicorn", "--bind", "fd://{fd}", "--workers", str(WORKERS), "--chdir", here,
        "--threads", "2", "--no-control-socket", "django_project:application",
        limit=QUOTA, table="drf", log=log, workers=WORKERS,
    )  # fmt: skip


@pytest.mark.usefixtures("tables")
def test_four_workers_admit_exactly_the_limit(tmp_path: Path) -> None:
    with server(tmp_path / "log") as running:
        check_windows(running)
