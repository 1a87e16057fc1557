"""The face: what RateLimiter takes and refuses, hands out and is; the default limiter."""

from __future__ import annotations

import copy
import gc
import importlib
import importlib.metadata
import inspect
import pickle
import pydoc
import re
import subprocess
import sys
import threading
import types
import weakref
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import nanolimit
from nanolimit import LimiterClosedError, ManualClock, Quota, RateLimiter
from nanolimit import _core as core
from nanolimit.limiter import _VERBS, Verbs
from nanolimit.limiter import _next_name as next_name

default = importlib.import_module("nanolimit.default")


# What it is made of


@pytest.mark.parametrize(
    ("arguments", "quota"),
    [
        ((), Quota(5, per=60)),
        ((7,), Quota(7, per=60)),
        ((7, 2.5), Quota(7, per=2.5)),
        ((7, timedelta(hours=1)), Quota(7, per=3600)),
        (("100/15m",), Quota(100, per=900)),
        (("10 per 2 hours",), Quota(10, per=7200)),
        ((Quota(3, per=1),), Quota(3, per=1)),
    ],
)
def test_the_ways_to_say_a_quota(arguments: tuple[Any, ...], quota: Quota) -> None:
    assert RateLimiter(*arguments).quota == quota


def test_per_by_name_and_alone() -> None:
    assert RateLimiter(5, per=60).quota == Quota(5, 60)
    assert RateLimiter(per=10).quota == Quota(5, 10)


def test_the_rest_is_by_name_only() -> None:
    with pytest.raises(TypeError):
        RateLimiter(5, 60, "api")  # type: ignore[misc]


def test_the_quota_is_the_one_that_was_given() -> None:
    quota = Quota(3, per=1)
    limiter = RateLimiter(quota)
    assert limiter.quota is quota
    assert limiter.check("me").quota is quota


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((0,), {}, ValueError, "limit must be from 1 to 16777216, not 0"),
        ((-1,), {}, ValueError, "limit must be from 1 to 16777216, not -1"),
        ((2**24 + 1,), {}, ValueError, "limit must be from 1 to 16777216, not 16777217"),
        ((5,), {"algorithm": "gkra"}, ValueError, "algorithm must be 'sliding-log', .* not 'gkra'"),
        ((5,), {"algorithm": None}, TypeError, "algorithm must be a str, not NoneType"),
        ((2**24 + 1,), {}, ValueError, "limit must be from 1 to 16777216"),
        ((2.5,), {}, TypeError, "an int, a str .* a Quota or a list of these, not float"),
        ((5.0,), {}, TypeError, "not float"),
        ((True,), {}, TypeError, "not bool"),
        ((None,), {}, TypeError, "not NoneType"),
        ((b"5/minute",), {}, TypeError, "not bytes"),
        (("",), {}, ValueError, "quota '' is not understood"),
        (("5/fortnight",), {}, ValueError, "'fortnight' is no unit"),
        (("10/second; 1000/month",), {}, ValueError, "'month' is no unit"),
        ((5, 0), {}, ValueError, "per must be from 1e-6 to 315576000 seconds"),
        ((5, float("nan")), {}, ValueError, "per must be a finite number"),
        ((5, float("inf")), {}, ValueError, "per must be a finite number"),
        ((5, 9e-7), {}, ValueError, "per must be from 1e-6"),
        ((5, "minute"), {}, TypeError, "per must be seconds .*not str"),
        ((5, True), {}, TypeError, "per must be seconds .*not bool"),
        (("5/minute", 60), {}, TypeError, "per goes with a limit given as an int; '5/minute' says"),
        ((Quota(5), 60), {}, TypeError, r"per goes with .* Quota\(5, per=60.0\) says"),
        ((), {"max_keys": 0}, ValueError, r"max_keys must be from 1 to 2\*\*31, not 0"),
        ((), {"max_keys": -1}, ValueError, r"max_keys must be from 1 to 2\*\*31, not -1"),
        ((), {"max_keys": 2**31 + 1}, ValueError, r"max_keys must be from 1 to 2\*\*31"),
        ((), {"max_keys": 10**5000}, ValueError, "an integer of 16610 bits"),
        ((), {"max_keys": 1.0}, TypeError, "max_keys must be an int, not float"),
        ((), {"max_keys": True}, TypeError, "max_keys must be an int, not bool"),
        ((), {"max_keys": "5"}, TypeError, "max_keys must be an int, not str"),
        (
            (),
            {"on_full": "panic"},
            ValueError,
            "on_full must be 'allow', 'deny' or 'evict', not 'panic'",
        ),
        ((), {"on_full": "DENY"}, ValueError, "on_full must be"),
        ((), {"on_full": None}, TypeError, "on_full must be a str, not NoneType"),
        ((), {"clock": 5}, TypeError, "clock must be a callable that returns seconds, not int"),
        ((), {"name": 5}, TypeError, "name must be a str, not int"),
        ((), {"name": ""}, ValueError, "name must have 1 to 200 characters, not 0"),
        ((), {"name": "x" * 201}, ValueError, "name must have 1 to 200 characters, not 201"),
        ((), {"shared": False}, TypeError, "shared must be a name, a path or True, not bool False"),
        ((), {"shared": 5}, TypeError, "shared must be a name, a path or True, not int 5"),
        ((), {"shared": b"api"}, TypeError, "not bytes b'api'"),
        ((), {"shared": ""}, ValueError, "shared must be a name of 1 to 200 letters"),
        ((), {"on_mismatch": "adopt"}, TypeError, "on_mismatch needs shared="),
        ((), {"mode": 0o660, "group": 5}, TypeError, "mode and group need shared="),
        ((), {"stall_timeout": 1}, TypeError, "stall_timeout needs shared="),
        ((), {"on_stall": "deny", "typical": 3}, TypeError, "on_stall and typical need shared="),
        ((), {"window": 5}, TypeError, "window"),
    ],
)
def test_what_it_refuses(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        RateLimiter(*arguments, **options)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("on_full", ["allow", "deny", "evict"])
@pytest.mark.parametrize("max_keys", [1, 1_000_000, 2**31])
def test_the_bounds_themselves_are_fine(on_full: Any, max_keys: int) -> None:
    with RateLimiter(on_full=on_full, max_keys=max_keys) as limiter:
        assert limiter.allow("me")


# Names


def test_names() -> None:
    assert RateLimiter(name="api").name == "api"
    first, second = RateLimiter().name, RateLimiter().name
    assert re.fullmatch(r"limiter-[0-9]+", first)
    assert int(second.split("-")[1]) == int(first.split("-")[1]) + 1


def test_threads_get_different_names(restless: None) -> None:
    names: list[str] = []
    start = threading.Barrier(4)

    def make() -> None:
        start.wait(60)
        names.extend([next_name() for _ in range(10_000)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(names)) == len(names) == 40_000


# What it hands out


def test_the_verbs_are_the_core_s_own_bound_methods() -> None:
    limiter = RateLimiter()
    engine = limiter.allow.__self__  # type: ignore[attr-defined]
    assert type(engine) is core.Limiter
    for verb in _VERBS:
        method = getattr(limiter, verb)
        assert type(method) is types.BuiltinMethodType, verb
        assert method.__self__ is engine, verb
        assert method is getattr(limiter, verb), verb  # made once, not at each call


def test_a_check_runs_no_python() -> None:
    limiter = RateLimiter()
    seen: list[str] = []

    def profile(frame: types.FrameType, event: str, argument: object) -> None:
        if frame.f_code.co_name == "test_a_check_runs_no_python" and event == "c_call":
            seen.append(getattr(argument, "__name__", "?"))
        elif event == "call":
            seen.append(f"python: {frame.f_code.co_name}")

    sys.setprofile(profile)
    limiter.allow("me")
    limiter.allow("me", 2)
    limiter.allow("me", cost=2)
    sys.setprofile(None)
    assert seen[:3] == ["allow", "allow", "allow"]
    assert not [name for name in seen if name.startswith("python")]


def test_every_verb_says_its_signature_the_same_way_everywhere() -> None:
    limiter = RateLimiter()
    for verb in _VERBS:
        documented = inspect.signature(vars(Verbs)[verb])
        names = list(documented.parameters)[1:]
        runtime = inspect.signature(getattr(limiter, verb))
        assert list(runtime.parameters) == names, verb
        assert [p.default for p in runtime.parameters.values()] == [
            p.default for p in list(documented.parameters.values())[1:]
        ], verb
        spelled = {"cost": "cost=1", "quota": "*, quota=None"}
        head = f"{verb}({', '.join(spelled.get(name, name) for name in names)}) -> "
        text = inspect.getdoc(vars(RateLimiter)[verb])
        assert text is not None
        assert text.startswith(head), verb
        assert text.splitlines()[2] == (inspect.getdoc(vars(Verbs)[verb]) or "").splitlines()[0]


def test_help_shows_the_verbs() -> None:
    text = pydoc.plain(pydoc.render_doc(RateLimiter))
    assert "allow(key, cost=1, *, quota=None) -> bool" in text
    assert "Do what `allow` does, and tell more" in text
    assert "max_keys" in text


def test_the_documented_methods_do_what_they_document() -> None:
    limiter = RateLimiter(2, per=60, clock=ManualClock())
    assert Verbs.allow(limiter, "me") is True
    assert Verbs.check(limiter, "me").remaining == 0
    assert Verbs.peek(limiter, "me").allowed is False
    assert Verbs.allow_many(limiter, ["me", "you"]) == [False, True]
    assert Verbs.stats(limiter)[:3] == (3, 1, 2)
    assert Verbs.reset(limiter, "me") is True
    assert Verbs.evict(limiter) == 0
    Verbs.clear(limiter)
    assert len(limiter) == 0
    Verbs.close(limiter)
    assert limiter.closed


def test_a_subclass_may_override_a_verb_and_call_the_one_above() -> None:
    class Shouting(RateLimiter):
        def allow(self, key: Any, cost: int = 1) -> bool:
            return super().allow(key.upper(), cost)

    limiter = Shouting(1)
    assert limiter.allow("me")
    assert "ME" in limiter
    assert "me" not in limiter
    assert limiter.check("ME").allowed is False
    assert repr(limiter).startswith("<Shouting 'limiter-")


def test_a_method_that_was_taken_outlives_the_limiter() -> None:
    allow = RateLimiter(1).allow
    gc.collect()
    assert [allow("me"), allow("me")] == [True, False]


# What it is


def test_len_contains_and_truth() -> None:
    clock = ManualClock()
    limiter = RateLimiter(5, per=60, clock=clock)
    assert len(limiter) == 0
    assert limiter  # an empty limiter is true: `if limiter:` asks whether there is one
    limiter.allow("a")
    limiter.allow("b")
    assert len(limiter) == 2
    assert "a" in limiter
    assert "c" not in limiter
    clock.advance(60)
    assert len(limiter) == 0
    assert "a" not in limiter
    with pytest.raises(TypeError, match="NoneType"):
        assert None in limiter


def test_repr() -> None:
    limiter = RateLimiter("5/minute", name="api")
    assert repr(limiter) == "<RateLimiter 'api' 5 per 60 s, 0 of 1000000 keys>"
    for number in range(12):
        limiter.allow(number)
    assert repr(limiter) == "<RateLimiter 'api' 5 per 60 s, 12 of 1000000 keys>"
    limiter.close()
    assert repr(limiter) == "<RateLimiter 'api' 5 per 60 s, closed>"
    assert repr(RateLimiter(1, 0.5, name="a\nb", max_keys=7)) == (
        r"<RateLimiter 'a\nb' 1 per 0.5 s, 0 of 7 keys>"
    )


def test_close_and_what_goes_on_working() -> None:
    limiter = RateLimiter("5/minute", name="api")
    allow = limiter.allow
    limiter.allow("me")
    assert limiter.closed is False
    limiter.close()
    limiter.close()
    assert limiter.closed is True
    assert (limiter.name, limiter.quota) == ("api", Quota(5))
    for use in (
        lambda: limiter.allow("me"),
        lambda: allow("me"),
        lambda: limiter.check("me"),
        lambda: limiter.peek("me"),
        lambda: limiter.allow_many(["me"]),
        lambda: limiter.reset("me"),
        limiter.clear,
        limiter.evict,
        limiter.stats,
        lambda: len(limiter),
        lambda: "me" in limiter,
    ):
        with pytest.raises(LimiterClosedError, match="api"):
            use()


def test_the_context_manager_closes_also_after_an_error() -> None:
    with RateLimiter() as limiter:
        assert type(limiter) is RateLimiter
        assert limiter.allow("me")
    assert limiter.closed
    with pytest.raises(KeyError), RateLimiter() as limiter:
        raise KeyError
    assert limiter.closed


def test_it_is_not_pickled_or_copied() -> None:
    limiter = RateLimiter()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="RateLimiter cannot be pickled or copied"):
            pickle.dumps(limiter, protocol)
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        copy.copy(limiter)
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        copy.deepcopy({"limiter": limiter})


def test_attributes() -> None:
    limiter = RateLimiter()
    assert not hasattr(limiter, "__dict__")
    for name in ("name", "quota", "closed"):
        with pytest.raises(AttributeError):
            setattr(limiter, name, None)
    with pytest.raises(AttributeError):
        limiter.nmae = "api"  # type: ignore[attr-defined]


def test_weak_references_and_collection() -> None:
    limiter = RateLimiter()
    limiter.allow("me")
    engine = limiter.allow.__self__  # type: ignore[attr-defined]
    gone = weakref.ref(limiter)
    assert gone() is limiter
    del limiter
    gc.collect()
    assert gone() is None
    assert engine.allow("me")
    del engine


def test_a_limiter_that_is_part_of_a_cycle_is_collected() -> None:
    class Clock:
        limiter: RateLimiter

        def __call__(self) -> float:
            return 0.0

    clock = Clock()
    clock.limiter = RateLimiter(clock=clock)
    clock.limiter.allow("me")
    gone = weakref.ref(clock.limiter)
    del clock
    gc.collect()
    assert gone() is None


def test_failed_construction_leaves_nothing_broken() -> None:
    half = RateLimiter.__new__(RateLimiter)
    with pytest.raises(AttributeError):
        half.allow("me")
    del half
    gc.collect()


# Clocks


def test_any_callable_is_a_clock() -> None:
    seconds = [10.0]
    limiter = RateLimiter(1, per=1, clock=lambda: seconds[0])
    assert limiter.allow("me")
    seconds[0] = 10.999
    assert not limiter.allow("me")
    seconds[0] = 11.0
    assert limiter.allow("me")


def test_without_a_clock_time_is_real() -> None:
    limiter = RateLimiter(1, per=315_576_000)
    assert limiter.allow("me")
    decision = limiter.check("me")
    assert not decision
    assert 0 < decision.retry_after <= 315_576_000.5


# The default limiter


@pytest.fixture
def no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default, "_limiter", None)


@pytest.mark.usefixtures("no_default")
def test_the_default_limiter_is_five_a_minute() -> None:
    assert [nanolimit.allow("me") for _ in range(6)] == [True] * 5 + [False]
    assert nanolimit.allow("you", 5)
    assert not nanolimit.allow("you", cost=1)
    assert default._limiter.quota == Quota(5, 60)
    assert default._limiter.name == "default"
    with pytest.raises(TypeError):
        nanolimit.allow()  # type: ignore[call-arg]


@pytest.mark.usefixtures("no_default")
def test_configure_makes_it_anew() -> None:
    assert nanolimit.allow("me", 5)
    before = default._limiter
    limiter = nanolimit.configure("2/minute", clock=ManualClock(), max_keys=10, on_full="deny")
    assert type(limiter) is RateLimiter
    assert (limiter.quota, limiter.name) == (Quota(2), "default")
    assert [nanolimit.allow("me") for _ in range(3)] == [True, True, False]
    assert limiter.stats()[:2] == (2, 1)
    assert before.closed is False  # whoever is inside of it, stays unharmed
    assert nanolimit.configure(1, per=1, name="api").name == "api"


@pytest.mark.usefixtures("no_default")
def test_a_bad_configuration_changes_nothing() -> None:
    kept = nanolimit.configure(2)
    with pytest.raises(ValueError, match="no unit"):
        nanolimit.configure("5/fortnight")
    with pytest.raises(TypeError, match="not bool False"):
        nanolimit.configure(shared=False)  # type: ignore[arg-type]
    assert default._limiter is kept


@pytest.mark.usefixtures("no_default")
def test_threads_that_come_first_share_one_limiter(
    monkeypatch: pytest.MonkeyPatch, restless: None
) -> None:
    for _ in range(100):
        monkeypatch.setattr(default, "_limiter", None)
        start = threading.Barrier(4)
        answers: list[bool] = []

        def ask(start: threading.Barrier = start, answers: list[bool] = answers) -> None:
            start.wait(60)
            answers.extend([nanolimit.allow("me") for _ in range(3)])

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(answers) == [False] * 7 + [True] * 5


def test_configure_and_rate_limiter_take_the_same() -> None:
    limiter = inspect.signature(RateLimiter.__init__).parameters
    configure = inspect.signature(nanolimit.configure).parameters
    assert list(limiter)[1:] == list(configure)
    for name in configure:
        expected = "default" if name == "name" else limiter[name].default
        assert configure[name].default == expected
        assert configure[name].kind == limiter[name].kind


# The package


def test_the_public_names() -> None:
    assert sorted(nanolimit.__all__) == sorted(
        [
            "Backoff",
            "Decision",
            "LimiterClosedError",
            "ManualClock",
            "NanolimitError",
            "Quota",
            "RateLimitExceeded",
            "RateLimiter",
            "ReservationClosedError",
            "SharedTableError",
            "Stats",
            "TopKey",
            "__version__",
            "allow",
            "check_all",
            "configure",
            "get_include",
            "telemetry",
        ]
    )
    for name in nanolimit.__all__:
        assert hasattr(nanolimit, name), name


def test_the_version_is_the_distribution_s() -> None:
    assert nanolimit.__version__ == importlib.metadata.version("nanolimit")
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+((a|b|rc)[0-9]+)?", nanolimit.__version__)


def test_get_include_leads_to_the_headers() -> None:
    headers = {path.name for path in Path(nanolimit.get_include()).rglob("*.h")}
    assert {"ring.h", "segment.h", "table.h"} <= headers


def test_importing_it_imports_nothing_of_others() -> None:
    script = """
import sys
import nanolimit
own = {name for name in sys.modules if name.partition(".")[0] not in sys.stdlib_module_names}
print(sorted(name for name in own if name.partition(".")[0] not in ("nanolimit", "__main__")))
unwanted = (
    "asyncio", "nanolimit.cli", "nanolimit.pytest_plugin", "nanolimit.line", "nanolimit.tasks",
    "nanolimit.reporter", "nanolimit.supervisor", "nanolimit.watch",
)
print([name for name in unwanted if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{script}"],
        timeout=120,
        check=True,
        capture_output=True,
        text=True,
    )
    # cython_runtime and the like are modules that Cython makes up; they come with the core.
    made_up = re.compile(r"'_?cython_[A-Za-z0-9_]+'(, )?")
    first, second = done.stdout.splitlines()
    assert made_up.sub("", first) == "[]"
    assert second == "[]"


def test_the_modules_form_layers() -> None:
    """Each module imports only those that stand below it."""
    below = {
        "errors": set(),
        "clock": set(),
        "quota": {"clock"},
        "telemetry": {"_core", "clock", "limiter", "remote", "reporter"},
        "supervisor": set(),
        "reporter": {"clock", "errors", "limiter", "remote", "supervisor"},
        "process": set(),
        "place": {"clock", "errors"},
        "algorithm": {"_core", "clock", "quota"},
        "header": {"_core", "algorithm", "clock", "errors", "quota"},
        "table": {"_core", "algorithm", "clock", "errors", "header", "place", "quota"},
        "shared": {
            "_core",
            "algorithm",
            "clock",
            "errors",
            "header",
            "place",
            "quota",
            "table",
            "watch",
            "limiter",
            "process",
        },
        "watch": {"_core", "errors", "header", "place", "quota", "table", "top"},
        "watched": set(),
        "top": {"_core", "clock", "errors", "quota"},
        "reservation": {"clock", "errors", "quota"},
        "line": {"clock"},
        "waiting": {"errors", "line", "tasks"},
        "anyio": {"line"},
        "tasks": {"anyio", "line"},
        "decorator": {"errors", "line", "tasks", "waiting"},
        "backoff": {"clock", "quota"},
        "policy": {"clock", "errors", "quota"},
        "limiter": {
            "_core",
            "algorithm",
            "backoff",
            "clock",
            "decorator",
            "errors",
            "line",
            "place",
            "policy",
            "quota",
            "reservation",
            "table",
            "tasks",
            "top",
            "waiting",
        },
        "claim": {"_core"},
        "remote": {"errors", "limiter"},
        "default": {"limiter"},
        "pytest_plugin": {"clock"},
    }
    package = Path(nanolimit.__file__).parent
    for module, allowed in below.items():
        source = (package / f"{module}.py").read_text(encoding="utf-8")
        # What type checkers alone see does not count.
        source = re.sub(r"^if TYPE_CHECKING:\n(?:    .*\n|\n)+", "", source, flags=re.MULTILINE)
        found = set(re.findall(r"^\s*from nanolimit\.(\w+) import", source, re.MULTILINE))
        found |= set(re.findall(r"^\s*from nanolimit import (\w+)", source, re.MULTILINE))
        found |= set(re.findall(r"^\s*import nanolimit\.(\w+)", source, re.MULTILINE))
        assert found <= allowed, module
