"""Sessions of requests with our adapter, against a server that tells them to wait."""

from __future__ import annotations

import importlib
import io
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.auth import HTTPDigestAuth

from nanolimit import LimiterClosedError, ManualClock, Quota, RateLimiter, RateLimitExceeded
from nanolimit.integrations.requests import (
    IDEMPOTENT,
    RateLimitAdapter,
    RateLimitTimeout,
    by_host,
)
from origin import Answer, Origin, check_pace, first
from server import gunicorn
from waiters import PATIENCE_S, Waiting, until, waiting


def refused(seconds: object, status: int = 429) -> Answer:
    return Answer(status, [("Retry-After", str(seconds))], b"too many")


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        yield server


@pytest.fixture
def manual() -> ManualClock:
    return ManualClock(1_000)


def session_of(adapter: BaseAdapter) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def test_threads_share_one_pace(origin: Origin) -> None:
    limit, per = 5, 0.1
    began_s = time.monotonic()
    with session_of(RateLimitAdapter(Quota(limit, per), pool_maxsize=10)) as session:
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda n: session.get(f"{origin.url}/{n}"), range(23)))
    assert [answer.status_code for answer in answers] == [200] * 23
    assert len(origin.arrivals) == 23
    check_pace(origin.arrivals, began_s, limit, per)


def test_in_the_order_in_which_they_came(origin: Origin, manual: ManualClock) -> None:
    limiter = RateLimiter(1, per=60, clock=manual)
    with session_of(RateLimitAdapter(limiter)) as session:
        session.get(f"{origin.url}/0")
        waiters = []
        for number in range(1, 4):
            url = f"{origin.url}/{number}"
            waiters.append(Waiting(limiter, lambda url=url: session.get(url)))  # type: ignore[misc]
        for number, waiter in enumerate(waiters, 1):
            manual.advance(59.999_999_999)
            assert len(origin.arrivals) == number
            manual.advance(1e-9)
            waiter.result()
    assert [arrival.path for arrival in origin.arrivals] == ["/0", "/1", "/2", "/3"]


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("HTTPS://User:Secret@API.Example.ORG:443/v1?q=1#x", "https://api.example.org"),
        ("http://api.example.org:443/", "http://api.example.org:443"),
        ("http://api.example.org:80/", "http://api.example.org"),
        ("http://[2001:DB8::1]:8080/", "http://[2001:db8::1]:8080"),
        ("https://b\u00fccher.example/", "https://xn--bcher-kva.example"),
    ],
)
def test_by_host(url: str, key: str) -> None:
    """The very key that httpx's requests have."""
    assert by_host(requests.Request("GET", url).prepare()) == key


def test_a_key_of_one_s_own(origin: Origin, manual: ManualClock) -> None:
    adapter = RateLimitAdapter(
        RateLimiter(1, per=60, clock=manual), key=lambda request: request.method or "", timeout=0
    )
    with session_of(adapter) as session:
        session.get(origin.url)
        session.put(origin.url)
        with pytest.raises(RateLimitTimeout):
            session.get(origin.url)


def test_each_hop_of_a_redirect_takes_its_turn(origin: Origin, manual: ManualClock) -> None:
    with Origin() as goal:
        origin.script = first(Answer(302, [("Location", f"{goal.url}/there")]))
        limiter = RateLimiter(5, per=60, clock=manual)
        with session_of(RateLimitAdapter(limiter)) as session:
            assert session.get(origin.url).url == f"{goal.url}/there"
        assert limiter.peek(origin.url).remaining == 4
        assert limiter.peek(goal.url).remaining == 4


def test_what_authentication_sends_takes_its_turn_as_well(
    origin: Origin, manual: ManualClock
) -> None:
    challenge = ("WWW-Authenticate", 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5')
    for adapter in (None, HTTPAdapter()):
        limiter = RateLimiter(5, per=60, clock=manual)
        origin.script = first(*[Answer(401, [challenge])] * (len(origin.arrivals) + 1))
        with session_of(RateLimitAdapter(limiter, adapter)) as session:
            answer = session.get(origin.url, auth=HTTPDigestAuth("me", "secret"))
            assert answer.status_code == 200
        assert limiter.peek(origin.url).remaining == 3


def test_a_time_out_is_one_of_requests_and_ours(origin: Origin, manual: ManualClock) -> None:
    limiter = RateLimiter(1, per=60, clock=manual)
    with session_of(RateLimitAdapter(limiter, timeout=30)) as session:
        session.get(origin.url)
        waiter = Waiting(limiter, lambda: session.get(origin.url, timeout=0.001))
        manual.advance(30)
        with pytest.raises(requests.Timeout) as caught:
            waiter.result()
    error: Any = caught.value
    assert isinstance(error, RateLimitExceeded)
    assert isinstance(error, RateLimitTimeout)
    assert not isinstance(error, requests.ConnectionError), "nothing is wrong with the server"
    assert "within timeout=30 s; the limit of 1 per 60 s has room in 30.000 s" in str(error)
    assert error.retry_after == 30.0
    assert error.key == origin.url
    assert error.request.url == f"{origin.url}/"
    assert len(origin.arrivals) == 1
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.key, copied.retry_after) == (str(error), error.key, 30.0)


# What servers say


@pytest.mark.parametrize(
    "answer",
    [
        refused(100),
        refused(100, 503),
        Answer(200, [("RateLimit", '"a";r=0;t=100'), ("RateLimit", '"b";r=3;t=5000')]),
        Answer(404, [("X-RateLimit-Remaining", "0"), ("X-RateLimit-Reset", "100")]),
    ],
)
def test_advice_holds_for_all(origin: Origin, manual: ManualClock, answer: Answer) -> None:
    origin.script = first(answer)
    limiter = RateLimiter(50, per=60, clock=manual)
    with session_of(RateLimitAdapter(limiter, max_wait=100)) as session:
        assert session.get(origin.url).status_code == answer.status
        waiter = Waiting(limiter, lambda: session.get(origin.url))
        with session_of(RateLimitAdapter(limiter, timeout=0, max_wait=None)) as another:
            with pytest.raises(RateLimitTimeout, match=r"left alone for another 100\.000 s"):
                another.get(origin.url)
        manual.advance(99.999_999_999)
        assert len(origin.arrivals) == 1
        manual.advance(1e-9)
        assert waiter.result().status_code == 200  # type: ignore[attr-defined]


def test_advice_holds_for_other_processes(origin: Origin, tables: Path) -> None:
    """One of them is told to wait. The table is shared, and so is what it says of the host."""
    origin.script = first(refused(100))
    child = (
        "import sys, requests\n"
        "from nanolimit import RateLimiter\n"
        "from nanolimit.integrations.requests import RateLimitAdapter\n"
        "session = requests.Session()\n"
        "session.trust_env = False\n"
        "limiter = RateLimiter('50/minute', shared='api')\n"
        "session.mount('http://', RateLimitAdapter(limiter))\n"
        "assert session.get(sys.argv[1]).status_code == 429\n"
    )
    subprocess.run([sys.executable, "-c", child, origin.url], check=True, timeout=PATIENCE_S)
    limiter = RateLimiter("50/minute", shared="api")
    with session_of(RateLimitAdapter(limiter)) as session:
        with pytest.raises(RateLimitTimeout, match="left alone") as caught:
            session.get(origin.url)
    assert 60 < caught.value.retry_after <= 100
    limiter.close()
    assert origin.statuses == [429]


def test_more_than_max_wait_is_not_waited_out(origin: Origin, manual: ManualClock) -> None:
    limiter = RateLimiter(1, per=10, clock=manual)
    origin.script = first(Answer(), refused(3600))
    with session_of(RateLimitAdapter(limiter, retries=5)) as session:
        session.get(origin.url)
        waiters = [Waiting(limiter, lambda: session.get(origin.url)) for _ in range(3)]
        manual.advance(10)
        assert waiters[0].result().status_code == 429  # type: ignore[attr-defined]
        with pytest.raises(RateLimitTimeout, match=r"left alone for 3600\.000 s, max_wait is 60 s"):
            session.get(origin.url)
        manual.advance(10)
        for waiter in waiters[1:]:
            # Who came to ask after the answer was told at once, the others when they woke.
            with pytest.raises(RateLimitTimeout, match=r"left alone for 3(600|590)\.000 s"):
                waiter.result()
        manual.advance(3590)
        assert session.get(origin.url).status_code == 200
    assert origin.statuses == [200, 429, 200]


@pytest.mark.parametrize("value", ["", "\xfc\xff", "-5", "NaN", "0" * 60_000, "9" * 60_000])
def test_headers_that_make_no_sense(origin: Origin, manual: ManualClock, value: str) -> None:
    names = ("Retry-After", "RateLimit", "RateLimit-Policy", "Date", "Age", "X-RateLimit-Reset")
    fields = [(name, value) for name in names]
    origin.script = first(*[Answer(status, fields) for status in (429, 200)])
    limiter = RateLimiter(50, per=60, clock=manual)
    with session_of(RateLimitAdapter(limiter, max_wait=86_400)) as session:
        for number, status in enumerate((429, 200, 200)):
            waiter = Waiting(limiter, lambda: session.get(origin.url))
            manual.advance(86_400)
            assert waiter.result().status_code == status, number  # type: ignore[attr-defined]


# Sending again


def test_again_when_the_time_is_over(origin: Origin, manual: ManualClock) -> None:
    limiter = RateLimiter(50, per=60, clock=manual)
    origin.script = first(refused(30), refused(7, 503))
    with session_of(RateLimitAdapter(limiter, retries=2)) as session:
        waiter = Waiting(limiter, lambda: session.put(origin.url, data="the body"))
        assert origin.statuses == [429]
        assert limiter.peek(origin.url).retry_after == 30.0
        manual.advance(30)
        until(lambda: len(origin.arrivals) == 2 and waiting(limiter) == 1)
        manual.advance(7)
        assert waiter.result().status_code == 200  # type: ignore[attr-defined]
    assert origin.statuses == [429, 503, 200]
    assert [arrival.body for arrival in origin.arrivals] == [b"the body"] * 3


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "POST"])
def test_what_may_be_sent_twice(origin: Origin, method: str) -> None:
    origin.script = first(refused(0))
    with session_of(RateLimitAdapter(None, retries=1)) as session:
        again = session.request(method, origin.url)
    assert again.status_code == (200 if method in IDEMPOTENT else 429)
    if method == "POST":
        assert again.content == b"too many"


def test_a_body_that_is_used_up_is_not_sent_again(origin: Origin) -> None:
    origin.script = lambda number, method, path: refused(0)
    with session_of(RateLimitAdapter(None, retries=5)) as session:
        assert session.put(origin.url, data=iter([b"one, ", b"two"])).status_code == 429
        assert session.put(origin.url, data=io.BytesIO(b"three")).status_code == 429
        assert session.put(origin.url, json=[4]).status_code == 429
    assert [arrival.body for arrival in origin.arrivals] == [b"one, two", b"three"] + [b"[4]"] * 6


def test_connections_are_used_again_after_a_refusal(origin: Origin) -> None:
    """With one connection, and nobody who waits for another: none is lost."""
    origin.script = first(*[refused(0)] * 5)
    with session_of(RateLimitAdapter(None, retries=5, pool_maxsize=1, pool_block=True)) as session:
        for _ in range(3):
            assert session.get(origin.url, timeout=PATIENCE_S).status_code == 200


# A server with a limit of ours


@pytest.mark.usefixtures("tables")
def test_a_server_that_nanolimit_guards(tmp_path: Path) -> None:
    """It says when to come again, and who comes then is served: nobody fails, nobody is told twice.

    Two workers with one table; the client knows nothing of their limit.
    """
    with gunicorn(limit="5/second", log=tmp_path / "log", workers=2) as server:
        with session_of(RateLimitAdapter(None, retries=1)) as session:
            answers = [session.get(f"http://127.0.0.1:{server.port}/me") for _ in range(12)]
    assert [answer.status_code for answer in answers] == [200] * 12
    stamps = [answer.json() for answer in answers]
    for early, late in zip(stamps, stamps[5:], strict=False):
        assert late["after_ns"] - early["before_ns"] >= 1_000_000_000


# Around it


def test_a_streamed_answer(origin: Origin) -> None:
    body = bytes(range(256)) * 1024
    origin.script = lambda number, method, path: Answer(body=body)
    with session_of(RateLimitAdapter("100/second")) as session:
        with session.get(origin.url, stream=True) as answer:
            assert b"".join(answer.iter_content(10_000)) == body


def test_options_of_the_pool() -> None:
    adapter = RateLimitAdapter("10/second", pool_connections=3, pool_maxsize=7, max_retries=2)
    assert adapter.max_retries.total == 2
    assert adapter.poolmanager.connection_pool_kw["maxsize"] == 7
    with pytest.raises(TypeError, match="pool_size"):
        RateLimitAdapter("10/second", pool_size=3)


class Inner(BaseAdapter):
    """Notes what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(f"send {kwargs['timeout']}")
        answer = requests.Response()
        answer.status_code = 429
        answer.headers["Retry-After"] = "0"
        answer.raw = io.BytesIO(b"x")
        answer.request = request
        answer.url = request.url or ""
        return answer

    def close(self) -> None:
        self.calls.append("close")


def test_another_adapter_within() -> None:
    inner = Inner()
    with session_of(RateLimitAdapter(None, inner, retries=1)) as session:
        assert session.get("http://example.org", timeout=3).text == "x"
    assert inner.calls == ["send 3", "send 3", "close", "close"], "closed for each of two mounts"


def test_a_session_can_be_pickled(origin: Origin) -> None:
    adapter = RateLimitAdapter(
        "3/hour",
        key=by_host,
        timeout=0,
        retries=2,
        max_wait=10,
        statuses=iter([503]),
        methods=iter(["GET"]),
        pool_maxsize=7,
    )
    with session_of(adapter) as session:
        session.get(origin.url)
        copied: requests.Session = pickle.loads(pickle.dumps(session))
    adapter = copied.adapters["http://"]  # type: ignore[assignment]
    assert isinstance(adapter, RateLimitAdapter)
    assert adapter.poolmanager.connection_pool_kw["maxsize"] == 7
    assert adapter.limiter.quota == Quota(3, per=3600)
    # As of the first session, 503 is sent again and 429 is not; and it counts for itself.
    origin.script = first(Answer(), refused(0, 503), Answer(), refused(0))
    with copied:
        assert copied.get(origin.url).status_code == 200
        assert adapter.limiter.peek(origin.url).remaining == 1
        assert copied.get(origin.url).status_code == 429
        with pytest.raises(RateLimitTimeout):
            copied.get(origin.url)


def test_one_with_a_limiter_of_one_s_own_can_not() -> None:
    with session_of(RateLimitAdapter(RateLimiter("3/hour"))) as session:
        with pytest.raises(TypeError, match="Make one in each process"):
            pickle.dumps(session)


def test_a_limiter_that_is_closed(origin: Origin) -> None:
    limiter = RateLimiter("3/hour")
    with session_of(RateLimitAdapter(limiter)) as session:

        def script(number: int, method: str, path: str) -> Answer:
            limiter.close()
            return refused(5)

        origin.script = script
        assert session.get(origin.url).status_code == 429, "the answer was there"
        with pytest.raises(LimiterClosedError):
            session.get(origin.url)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"limiter": 10}, TypeError, "limiter must be a RateLimiter"),
        ({"adapter": object()}, TypeError, "adapter must be an adapter of requests"),
        ({"adapter": Inner(), "pool_maxsize": 3}, TypeError, "pool_maxsize goes to the adapter"),
        ({"retries": -1}, ValueError, "retries must be from 0 to 1000, not -1"),
        ({"max_wait": -1}, ValueError, "max_wait must be >= 0 seconds"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        RateLimitAdapter(**{"limiter": None, **arguments})


def test_it_says_what_it_is() -> None:
    text = repr(RateLimitAdapter(RateLimiter("10/second", name="github")))
    assert text.startswith("<RateLimitAdapter of <RateLimiter 'github' 10 per 1 s")


def test_without_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "requests", None)
    monkeypatch.delitem(sys.modules, "nanolimit.integrations.requests")
    with pytest.raises(ImportError, match=r"pip install 'nanolimit\[requests\]'"):
        importlib.import_module("nanolimit.integrations.requests")
