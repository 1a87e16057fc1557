"""The types: what a user may write passes mypy --strict and pyright, what they may not is found."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import pytest

from subprocesses import run
from tools import missing

GOOD = """
from __future__ import annotations

from array import array
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from uuid import uuid4

import nanolimit
from nanolimit import Decision, ManualClock, NanolimitError, Quota, RateLimiter, RateLimitExceeded
from nanolimit import telemetry
from nanolimit.integrations import asgi, wsgi
from nanolimit.redis import AsyncRedisRateLimiter, Lease, RedisRateLimiter

clock = ManualClock(start=0.0)
limiter = RateLimiter(5, per=60, name="api", max_keys=1_000, on_full="deny", clock=clock)
RateLimiter()
RateLimiter(5, shared="api", on_mismatch="replace", mode=0o660, group="web", typical=3)
RateLimiter(5, shared="api", stall_timeout=0.1, on_stall="wait")
RateLimiter(5, shared=Path("tables") / "api", max_keys=None, group=33)
RateLimiter(5, shared="api", stall_timeout=timedelta(seconds=1))
print(RateLimiter("5/minute", shared=True).stats().stalled + limiter.stats().log_bytes)
RateLimiter("5/minute")
RateLimiter(Quota(5, per=60.0))
RateLimiter(5, per=timedelta(minutes=1))
RateLimiter(5, per=60, clock=lambda: 1.5)

allowed: bool = limiter.allow("user:42")
limiter.allow(b"user", 3)
limiter.allow(42, cost=3)
limiter.allow(uuid4())
limiter.allow(ip_address("192.0.2.1"))
limiter.allow(("tenant", 7, (b"nested", uuid4())))
decision: Decision = limiter.check("user:42")
if not decision:
    raise RateLimitExceeded(decision)
numbers: tuple[int, int] = (decision.limit, decision.remaining)
seconds: tuple[float, float, float] = (
    decision.retry_after, decision.reset_after, decision.refill_after,
)
quota: Quota = limiter.peek("user:42", cost=2).quota
answers: list[bool] = limiter.allow_many(["a", "b"])
view: memoryview = limiter.allow_many(array("q", [1, 2]), cost=1)
was_there: bool = limiter.reset("user:42")
dropped: int = limiter.evict()
limiter.clear()
stats = limiter.stats()
total: int = stats.allowed + stats.denied + stats.keys + stats.evicted + stats.overflowed
memory: int = stats.memory_bytes + stats.capacity
live: int = len(limiter)
known: bool = "user:42" in limiter
name: str = limiter.name
per: float = limiter.quota.per
with RateLimiter("5/minute") as other:
    other.allow("me")
limiter.close()
clock.advance(1.5)
now: float = clock()


def handler(event: str, measurements: dict[str, float], metadata: dict[str, object]) -> None:
    print(event, measurements["count"], metadata["limiter"])


waited: bool = limiter.acquire("user:42", 2, timeout=timedelta(seconds=1))
with limiter.slot("user:42", timeout=0) as entered:
    left: int = entered.remaining


async def wait() -> None:
    waited: bool = await limiter.acquire_async(("tenant", 7), cost=2, timeout=1.5)
    async with limiter.slot("user:42") as entered:
        print(entered.remaining, waited)


@limiter.limit
def add(one: int, two: int = 2) -> str:
    return str(one + two)


def by_name(name: str, size: int = 1) -> str:
    return name


def by_size(name: str, size: int = 1) -> int:
    return size


@limiter.limit(key=by_name, cost=by_size, wait=True, timeout=3)
async def send(name: str, size: int = 1) -> float:
    return 1.5


def nothing(decision: Decision, name: str) -> None:
    return None


@limiter.limit(key="fixed", on_denied=nothing)
def find(name: str) -> bytes:
    return b""


async def instead(decision: Decision, name: str) -> int:
    return 1


@limiter.limit(cost=2, on_denied=instead)
async def look(name: str) -> bytes:
    return b""


class Client:
    name: str

    def key(self, path: str) -> tuple[str, str]:
        return self.name, path

    @limiter.limit(key=key)
    def fetch(self, path: str) -> bytes:
        return b""

    @classmethod
    @limiter.limit()
    def make(cls) -> int:
        return 1


async def decorated() -> None:
    text: str = add(1, two=3)
    number: float = await send("me", size=3)
    found: bytes | None = find("me")
    seen: bytes | int = await look("me")
    page: bytes = Client().fetch("/")
    made: int = Client.make()
    print(text, number, found, seen, page, made)


telemetry.attach("console", "denied", handler)
telemetry.attach("all", ["allowed", "denied"], handler)
telemetry.attach("some", "denied", handler, sample=0.1, limiter=limiter)
telemetry.ConsoleReporter(period=1).stop()
offender = limiter.top(3)[0]
count: int = offender.denied + offender.error
telemetry.detach("console")
far = RedisRateLimiter("100/minute", "redis://localhost", lease=Lease(max_share=0.1))
far_off = AsyncRedisRateLimiter("100/minute", "redis://localhost", on_error="deny")
allowed_far: bool = far.allow("me")
degraded: bool = far.check("me").degraded
telemetry.attach("far", "denied", handler, limiter=far)


def wrapped(blocking: Any, awaiting: Any) -> None:
    wsgi.RateLimitMiddleware(blocking, far, wsgi.client_ip())
    asgi.RateLimitMiddleware(awaiting, far_off, asgi.client_ip())


async def ask_far() -> bool:
    return await far_off.allow("me")


easy: bool = nanolimit.allow("me")
nanolimit.configure("5/minute")
version: str = nanolimit.__version__
try:
    limiter.allow("me")
except NanolimitError:
    pass
"""

# Each of these lines is a mistake that a type checker must find.
BAD = """
from nanolimit import Quota, RateLimiter, telemetry
from nanolimit.integrations import asgi
from nanolimit.redis import RedisRateLimiter
limiter = RateLimiter(5, per=60)
limiter.allow(None)
limiter.allow(1.5)
limiter.allow("me", cost="3")
limiter.allow()
answer: str = limiter.allow("me")
limiter.check("me").remaining = 3
limiter.allow_many(None)
RateLimiter(5, 60, "api")
RateLimiter(5, per=60, on_full="forget")
RateLimiter(5, per=60, clock=1.5)
Quota("5")
limiter.stats().allowed = 3
RateLimiter(5, shared=False)
RateLimiter(5, shared="api", on_stall="hope")
RateLimiter(5, shared="api", on_mismatch="ignore")
limiter.nothing
limiter.acquire("me", timeout="1")
limiter.acquire(None)
limiter.slot("me", "3")
truth: bool = limiter.acquire_async("me")
limiter.limit(key=1.5)
limiter.limit(wait=1)
limiter.limit(lambda number: number + 1)("3", 4)
telemetry.attach("me", "denied", print, sample="x")
telemetry.attach("me", "denied", print, limiter=5)
limiter.top("3")
RedisRateLimiter("1/s", "redis://localhost", on_error="hope")
RedisRateLimiter("1/s", "redis://localhost", lease=0.25)
far = RedisRateLimiter("1/s", "redis://localhost")
asgi.RateLimitMiddleware(lambda *about: print(), far, asgi.client_ip())
"""
BAD_LINES = {*range(6, 34), 35}


@pytest.fixture
def mypy() -> None:
    if importlib.util.find_spec("mypy") is None:
        missing("mypy")


@pytest.fixture
def pyright() -> None:
    if importlib.util.find_spec("pyright") is None:
        missing("pyright")


@pytest.mark.usefixtures("mypy")
def test_mypy_takes_what_users_write(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    done = run("-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", "good.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("mypy")
def test_mypy_finds_mistakes(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    done = run("-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", "bad.py", cwd=tmp_path)
    found = {int(line) for line in re.findall(r"^bad\.py:(\d+): error", done.stdout, re.MULTILINE)}
    assert found == BAD_LINES, done.stdout


def pyright_lines(tmp_path: Path, text: str) -> dict[int, str]:
    (tmp_path / "user.py").write_text(text)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    done = run(
        "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "user.py", cwd=tmp_path
    )
    told = json.loads(done.stdout)
    return {
        problem["range"]["start"]["line"] + 1: problem["message"]
        for problem in told["generalDiagnostics"]
        if problem["severity"] == "error"
    }


@pytest.mark.usefixtures("pyright")
def test_pyright_takes_what_users_write(tmp_path: Path) -> None:
    assert pyright_lines(tmp_path, GOOD) == {}


@pytest.mark.usefixtures("pyright")
def test_pyright_finds_mistakes(tmp_path: Path) -> None:
    found = pyright_lines(tmp_path, BAD)
    assert set(found) == BAD_LINES, found


# A program, not an interface; below classes that have no types; and what the class of another
# package declares, which may not be declared again.
NOT_OURS = (
    "nanolimit.cli.",
    "nanolimit.integrations.drf.",
    "nanolimit.integrations.httpx.RateLimitTimeout",
    "nanolimit.integrations.requests.RateLimitTimeout",
)


@pytest.mark.usefixtures("pyright")
def test_pyright_knows_the_type_of_everything_public(tmp_path: Path) -> None:
    # --verifytypes knows no --pythonpath: it asks the first `python` on the PATH
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = run(
        "-m", "pyright", "--verifytypes", "nanolimit", "--ignoreexternal", "--outputjson",
        cwd=tmp_path, env={"PATH": path},
    )  # fmt: skip
    told = json.loads(done.stdout)["typeCompleteness"]
    unknown = [
        symbol["name"]
        for symbol in told["symbols"]
        if symbol["isExported"]
        and not (symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"])
        and not symbol["name"].startswith(NOT_OURS)
    ]
    assert told["pyTypedPath"]
    assert len(told["symbols"]) > 50
    assert unknown == []


@pytest.mark.usefixtures("mypy")
def test_the_stubs_are_what_was_compiled(tmp_path: Path) -> None:
    allowed = Path(__file__).with_name("stubtest.txt")
    done = run("-m", "mypy.stubtest", "--allowlist", allowed, "nanolimit._core", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
