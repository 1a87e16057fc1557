"""gRPC servers with a limit: real ones, on loopback and Unix sockets, with gRPC's own clients.

No message is described: handlers take and give bytes, or what their serializers make of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status

import nanolimit
from nanolimit import ManualClock, RateLimiter
from nanolimit.integrations.grpc import (
    AioRateLimitInterceptor,
    Call,
    InvalidCall,
    MethodRule,
    RateLimitInterceptor,
    combine,
    metadata,
    peer,
    user,
)

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "grpc_server.py"
TIMEOUT_S = 30.0
OK = grpc.StatusCode.OK
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
INTERNAL = grpc.StatusCode.INTERNAL
INVALID = grpc.StatusCode.INVALID_ARGUMENT

KINDS = ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream"]
MAKERS = {
    "UnaryUnary": grpc.unary_unary_rpc_method_handler,
    "UnaryStream": grpc.unary_stream_rpc_method_handler,
    "StreamUnary": grpc.stream_unary_rpc_method_handler,
    "StreamStream": grpc.stream_stream_rpc_method_handler,
}


def decoded(message: bytes) -> str:
    return message.decode("utf-8")


def encoded(message: str) -> bytes:
    return message.encode("utf-8")


class Text:
    """A message as handlers see it: none that gRPC could send without the serializer."""

    def __init__(self, text: str) -> None:
        self.text = text


def received(message: bytes) -> Text:
    return Text(decoded(message))


def sent_back(message: Text) -> bytes:
    return encoded(message.text)


class Handlers:
    """Handlers of all kinds. They join what they get, give back words, and count themselves."""

    def __init__(self) -> None:
        self._runs = count()
        self.contexts: list[Any] = []

    @property
    def runs(self) -> int:
        return next(self._runs)  # asked once, at the end

    def _begin(self, context: Any) -> None:
        next(self._runs)
        self.contexts.append(tuple(context.invocation_metadata()))

    def sync(self) -> dict[str, Callable[..., Any]]:
        def unary_unary(request: Text, context: Any) -> Text:
            self._begin(context)
            return Text(request.text.upper())

        def unary_stream(request: Text, context: Any) -> Iterator[Text]:
            self._begin(context)
            yield from map(Text, request.text.upper().split())

        def stream_unary(requests: Iterator[Text], context: Any) -> Text:
            self._begin(context)
            return Text(" ".join(request.text.upper() for request in requests))

        def stream_stream(requests: Iterator[Text], context: Any) -> Iterator[Text]:
            self._begin(context)
            yield from (Text(request.text.upper()) for request in requests)

        return by_kind(unary_unary, unary_stream, stream_unary, stream_stream)

    def aio(self) -> dict[str, Callable[..., Any]]:
        async def unary_unary(request: Text, context: Any) -> Text:
            self._begin(context)
            return Text(request.text.upper())

        async def unary_stream(request: Text, context: Any) -> Any:
            self._begin(context)
            for word in request.text.upper().split():
                yield Text(word)

        async def stream_unary(requests: Any, context: Any) -> Text:
            self._begin(context)
            return Text(" ".join([request.text.upper() async for request in requests]))

        async def stream_stream(requests: Any, context: Any) -> Any:
            self._begin(context)
            async for request in requests:
                yield Text(request.text.upper())

        return by_kind(unary_unary, unary_stream, stream_unary, stream_stream)

    def aio_writing(self) -> dict[str, Callable[..., Any]]:
        """Those that answer a stream by writing to it, and read it by asking for messages."""

        async def unary_stream(request: Text, context: Any) -> None:
            self._begin(context)
            for word in request.text.upper().split():
                await context.write(Text(word))

        async def stream_stream(requests: Any, context: Any) -> None:
            self._begin(context)
            while (request := await context.read()) is not grpc.aio.EOF:
                await context.write(Text(request.text.upper()))

        return {**self.aio(), "UnaryStream": unary_stream, "StreamStream": stream_stream}


def by_kind(*functions: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return dict(zip(KINDS, functions, strict=True))


def generic(functions: dict[str, Callable[..., Any]], service: str = "p.S") -> Any:
    """Return what a server is given: a service of methods that are named after their kinds."""
    return grpc.method_handlers_generic_handler(
        service,
        {
            name: MAKERS[name.rstrip("2")](
                function, request_deserializer=received, response_serializer=sent_back
            )
            for name, function in functions.items()
        },
    )


class Outcome:
    """What a client got."""

    def __init__(self, call: Any, answer: str | None, details: str) -> None:
        self.code = call.code()
        self.answer = answer
        self.details = details
        self.trailing: dict[str, Any] = {}
        for name, value in call.trailing_metadata() or ():
            assert name not in self.trailing
            self.trailing[name] = value

    def __repr__(self) -> str:
        return f"Outcome({self.code}, {self.answer!r}, {self.details!r}, {self.trailing})"


class Client:
    """One connection of its own."""

    def __init__(self, target: str, options: Any = (), credentials: Any = None) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), *options]
        if credentials is None:
            self.channel = grpc.insecure_channel(target, options)
        else:
            self.channel = grpc.secure_channel(target, credentials, options)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.channel.close()

    def ask(
        self, method: str = "UnaryUnary", *, service: str = "p.S", sent: Any = (), kind: str = ""
    ) -> Outcome:
        """Send "one two" and return what came of it."""
        make = {
            "UnaryUnary": self.channel.unary_unary,
            "UnaryStream": self.channel.unary_stream,
            "StreamUnary": self.channel.stream_unary,
            "StreamStream": self.channel.stream_stream,
        }[kind or method]
        multi = make(f"/{service}/{method}", encoded, decoded)
        streams_in = (kind or method).startswith("Stream")
        request: Any = iter(["one", "two"]) if streams_in else "one two"
        try:
            if (kind or method).endswith("Stream"):
                call = multi(request, timeout=TIMEOUT_S, metadata=sent)
                answer = " ".join(call)
            else:
                answer, call = multi.with_call(request, timeout=TIMEOUT_S, metadata=sent)
        except grpc.RpcError as error:
            return Outcome(error, None, error.details())
        return Outcome(call, answer, call.details())


Start = Callable[..., Any]


@contextmanager
def sync_server(*handlers: Any, interceptors: Any, port: Any = None, threads: int = 8) -> Any:
    """Run a `grpc.server`; its target."""
    with ThreadPoolExecutor(threads) as pool:
        server = grpc.server(pool, interceptors=interceptors)
        server.add_generic_rpc_handlers(handlers)
        target = listen(server, port)
        server.start()
        try:
            yield target
        finally:
            server.stop(0).wait()


class Loop:
    """A loop in a thread of its own, for all the aio servers.

    One for all, because grpc.aio has one poller a process: what comes late for a loop that is
    closed, it raises in the next one.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)

    def __enter__(self) -> Loop:
        self._thread.start()
        return self

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(2 * TIMEOUT_S)

    def __exit__(self, *exc: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        self.loop.close()


the_loop: Loop


@pytest.fixture(scope="module", autouse=True)
def _loop() -> Iterator[None]:
    global the_loop
    with Loop() as the_loop:
        yield


@contextmanager
def aio_server(*handlers: Any, interceptors: Any, port: Any = None, threads: int = 8) -> Any:
    """Run a `grpc.aio.server`; its target."""

    async def start() -> tuple[Any, str]:
        server = grpc.aio.server(pool, interceptors=interceptors)
        server.add_generic_rpc_handlers(handlers)
        target = listen(server, port)
        await server.start()
        return server, target

    # Its threads talk to the loop, after the call that they serve has ended.
    with ThreadPoolExecutor(threads) as pool:
        server, target = the_loop.run(start())
        try:
            yield target
        finally:
            the_loop.run(server.stop(0))


def listen(server: Any, port: Any) -> str:
    if port is None:
        return f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    if callable(port):
        return str(port(server))
    server.add_insecure_port(port)
    return str(port)


# (how to serve, the interceptor, which handlers)
WAYS = {
    "sync": (sync_server, RateLimitInterceptor, Handlers.sync),
    "aio": (aio_server, AioRateLimitInterceptor, Handlers.aio),
    "aio-writing": (aio_server, AioRateLimitInterceptor, Handlers.aio_writing),
    "aio-sync": (aio_server, AioRateLimitInterceptor, Handlers.sync),
}


class Way:
    """One kind of server, with its interceptor and handlers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.serve, self.interceptor, self._functions = WAYS[name]
        self.handlers = Handlers()

    @contextmanager
    def client(self, *args: Any, port: Any = None, outer: Any = (), **kwargs: Any) -> Any:
        """Serve with such an interceptor; a client."""
        interceptors = [*outer, self.interceptor(*args, **kwargs)]
        with self.serve(self.generic(), interceptors=interceptors, port=port) as target:
            with Client(target) as client:
                yield client

    def generic(self) -> Any:
        return generic(self._functions(self.handlers))


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> Way:
    """Each kind of server and of handlers."""
    return Way(request.param)


@pytest.fixture(params=["sync", "aio"])
def either(request: pytest.FixtureRequest) -> Way:
    """Both kinds of servers, for what does not depend on the handlers."""
    return Way(request.param)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[logging.LogRecord]]:
    """What "nanolimit" has logged since it was asked the last time, and that gRPC logs nothing."""
    caplog.set_level(logging.INFO)

    def records() -> list[logging.LogRecord]:
        found = caplog.records[:]
        caplog.clear()
        assert [record.getMessage() for record in found if record.name != "nanolimit"] == []
        return found

    return records


# What is let through


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit(way: Way, kind: str, logged: Any) -> None:
    clock = ManualClock()
    limiter = RateLimiter("3/minute", clock=clock)
    with way.client(limiter) as client:
        for _ in range(3):
            outcome = client.ask(kind)
            assert (outcome.code, outcome.answer, outcome.trailing) == (OK, "ONE TWO", {})
        denied = client.ask(kind)
        assert denied.code is EXHAUSTED
        assert denied.details == "rate limit of 3 per 60 s exceeded, retry after 60.000 s"
        clock.advance(59.9)
        assert client.ask(kind).code is EXHAUSTED
        clock.advance(0.1)
        assert client.ask(kind).answer == "ONE TWO"
    assert way.handlers.runs == 4
    assert (limiter.stats().allowed, limiter.stats().denied) == (4, 2)
    assert logged() == []


def test_what_a_denial_tells(way: Way) -> None:
    clock = ManualClock()
    with way.client(RateLimiter("1/minute", name="api-ü\ud800", clock=clock)) as client:
        assert client.ask().code is OK
        clock.advance(1.2345)
        denied = client.ask()
    assert denied.details == "rate limit of 1 per 60 s exceeded, retry after 58.766 s"
    assert denied.trailing["retry-after"] == "59"
    assert denied.trailing["grpc-retry-pushback-ms"] == "58766"
    status = Status.FromString(denied.trailing["grpc-status-details-bin"])
    assert (status.code, status.message) == (EXHAUSTED.value[0], denied.details)
    retry, quota = RetryInfo(), QuotaFailure()
    first, second = status.details
    assert first.Unpack(retry)
    assert second.Unpack(quota)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (58, 766_000_000)
    (violation,) = quota.violations
    assert (violation.subject, violation.description) == ("api-ü?", "1 per 60 s")


def test_headers(way: Way) -> None:
    limiter = RateLimiter("2/minute", name="api", clock=ManualClock())
    with way.client(limiter, headers="draft") as client:
        told = [client.ask(kind).trailing for kind in KINDS]
    assert [each["ratelimit"] for each in told] == [
        '"api";r=1;t=60', '"api";r=0;t=60', '"api";r=0;t=60', '"api";r=0;t=60',
    ]  # fmt: skip
    assert {each["ratelimit-policy"] for each in told} == {'"api";q=2;w=60'}
    assert ["retry-after" in each for each in told] == [False, False, True, True]


def test_what_others_tell_stays(either: Way) -> None:
    """Another limit outside of this one has set trailing metadata before."""
    clock = ManualClock()
    outer = either.interceptor(RateLimiter("9/minute", name="o", clock=clock), headers="draft")
    inner = RateLimiter("1/minute", clock=clock)
    with either.client(inner, outer=[outer]) as client:
        assert set(client.ask().trailing) == {"ratelimit", "ratelimit-policy"}
        denied = client.ask()
    assert denied.code is EXHAUSTED
    assert denied.trailing["ratelimit"] == '"o";r=7;t=60'
    assert denied.trailing["retry-after"] == "60"


def test_cost(either: Way) -> None:
    limiter = RateLimiter("10/minute", clock=ManualClock())

    def cost(call: Call) -> int:
        return 4 if call.method == "/p.S/UnaryUnary" else 1

    with either.client(limiter, cost=cost) as client:
        kinds = [
            "UnaryUnary",
            "UnaryUnary",
            "UnaryUnary",
            "UnaryStream",
            "UnaryStream",
            "UnaryStream",
        ]
        assert [client.ask(kind).code for kind in kinds] == [OK, OK, EXHAUSTED, OK, OK, EXHAUSTED]


def test_only_watching(either: Way) -> None:
    limiter = RateLimiter("1/minute", enforce=False)
    with either.client(limiter) as client:
        assert [client.ask().code for _ in range(3)] == [OK] * 3
    assert limiter.stats().would_deny == 2


# Keys


def test_a_client_is_its_address(either: Way) -> None:
    """Connections of one host are one client, those from another address another."""
    limiter = RateLimiter("2/minute")

    def listen(server: Any) -> str:
        port = server.add_insecure_port("[::]:0")
        return f"127.0.0.1:{port}"

    with either.client(limiter, port=listen) as client, ExitStack() as stack:
        port = client_port(client)
        assert client.ask().code is OK
        again = stack.enter_context(Client(f"127.0.0.1:{port}"))
        assert again.ask().code is OK
        assert again.ask().code is EXHAUSTED
        assert client.ask().code is EXHAUSTED
        other = stack.enter_context(Client(f"[::1]:{port}"))
        assert [other.ask().code for _ in range(3)] == [OK, OK, EXHAUSTED]
    assert "127.0.0.1" in limiter
    assert "::/64" in limiter
    assert len(limiter) == 2


def client_port(client: Client) -> int:
    target = client.channel._channel.target().decode()
    return int(target.rpartition(":")[2])


def test_unix_sockets(way: Way, tmp_path: Path) -> None:
    limiter = RateLimiter("2/minute")
    with way.client(limiter, port=f"unix:{tmp_path}/s") as client:
        with Client(f"unix:{tmp_path}/s") as other:
            outcomes = [client.ask(), other.ask(), client.ask(), other.ask()]
    assert [outcome.code for outcome in outcomes] == [OK, OK, EXHAUSTED, EXHAUSTED]
    assert "unix" in limiter


def test_metadata_keys(way: Way) -> None:
    limiter = RateLimiter("1/minute")
    with way.client(limiter, metadata("X-Api-Key")) as client:
        for key in ("alice", "bob", "127.0.0.1"):
            sent = [("x-api-key", key)]
            assert client.ask(sent=sent).code is OK
            assert client.ask(sent=sent).code is EXHAUSTED
        # Who sends none is his address, whatever else he sends.
        assert client.ask().code is OK
        assert client.ask(sent=[("x-api-key", "")]).code is EXHAUSTED
        assert client.ask(sent=[("x-api-key2", "carol")]).code is EXHAUSTED
    assert len(limiter) == 4


def test_a_repeated_key_is_refused(way: Way, logged: Any) -> None:
    """Or it would be one's own beside any number of others. Passing errors does not let it pass."""
    limiter = RateLimiter("1/minute")
    with way.client(limiter, metadata("k"), on_key_error="allow") as client:
        for kind in KINDS:
            for sent in ([("k", "a"), ("k", "b")], [("k", "a"), ("x", "y"), ("k", "a")]):
                refused = client.ask(kind, sent=sent)
                assert refused.code is INVALID
                assert refused.details == "metadata 'k' must come once, not 2 times"
    assert way.handlers.runs == 0
    assert (len(limiter), limiter.stats().denied) == (0, 0)
    assert logged() == []


def test_forged_metadata(either: Way) -> None:
    """Whatever a client says of where it comes from, its key stays the same."""
    limiter = RateLimiter("3/minute")
    forged = [
        (),
        [("x-forwarded-for", "198.51.100.7")],
        [("forwarded", "for=198.51.100.7"), ("x-real-ip", "198.51.100.7")],
        [("peer", "ipv4:198.51.100.7:1")],
        [("x-api-key", "7" * 4000), ("x-api-key", "8")],
    ]
    with either.client(limiter) as client:
        codes = [client.ask(sent=sent).code for sent in forged]
    assert codes == [OK, OK, OK, EXHAUSTED, EXHAUSTED]
    assert len(limiter) == 1


def test_binary_keys(either: Way) -> None:
    with either.client(RateLimiter("1/minute"), metadata("k-bin")) as client:
        for key in (b"\0", b"\xff", b"\0\0"):
            assert client.ask(sent=[("k-bin", key)]).code is OK
            assert client.ask(sent=[("k-bin", key)]).code is EXHAUSTED
        assert client.ask(sent=[("k-bin", b"\1"), ("k-bin", b"\2")]).code is INVALID


def test_combined_keys(either: Way) -> None:
    key = combine(metadata("k", missing=None), lambda call: call.method)
    with either.client(RateLimiter("1/minute"), key) as client:
        for kind in KINDS:
            assert client.ask(kind, sent=[("k", "a")]).code is OK
            assert client.ask(kind, sent=[("k", "a")]).code is EXHAUSTED
        missing = client.ask()
    assert (missing.code, missing.details) == (INVALID, "metadata 'k' is missing")


def test_a_key_function_of_ones_own(either: Way) -> None:
    calls: list[tuple[Any, ...]] = []

    def key(call: Call) -> str:
        calls.append((call.method, call.peer, call.identity, dict(call.auth_context)))
        if call.values("banned"):
            raise InvalidCall("no, ünder no circumstances")
        return str(dict(call.metadata)["tenant"])

    limiter = RateLimiter("1/minute")
    with either.client(limiter, key) as client:
        assert client.ask(sent=[("tenant", "t1")]).code is OK
        refused = client.ask(sent=[("banned", "yes")])
    assert (refused.code, refused.details) == (INVALID, "no, ünder no circumstances")
    assert "t1" in limiter
    method, address, identity, context = calls[0]
    assert method == "/p.S/UnaryUnary"
    assert address.startswith("ipv4:127.0.0.1:")
    assert identity is None
    assert context["transport_security_type"] == (b"insecure",)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of a server and two users that it has signed."""
    import shutil

    from tools import missing

    if shutil.which("openssl") is None:
        missing("openssl")
    place = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=place, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca")
    for name in ("localhost", "alice", "bob"):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        (place / "names").write_text(f"subjectAltName=DNS:{name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
                "-CAcreateserial", "-out", f"{name}.crt", "-extfile", "names")  # fmt: skip
    return place


def test_users(either: Way, certificates: Path) -> None:
    """Who has a certificate is who it says, from wherever and however often he comes."""

    def read(name: str) -> bytes:
        return (certificates / name).read_bytes()

    def listen(server: Any) -> str:
        credentials = grpc.ssl_server_credentials(
            [(read("localhost.key"), read("localhost.crt"))], read("ca.crt"), True
        )
        return f"localhost:{server.add_secure_port('localhost:0', credentials)}"

    limiter = RateLimiter("2/minute")
    interceptor = either.interceptor(limiter, user(missing=None))
    with either.serve(either.generic(), interceptors=[interceptor], port=listen) as target:
        for name in ("alice", "bob"):
            credentials = grpc.ssl_channel_credentials(
                read("ca.crt"), read(f"{name}.key"), read(f"{name}.crt")
            )
            with Client(target, credentials=credentials) as client:
                assert client.ask().code is OK
            with Client(target, credentials=credentials) as client:
                assert [client.ask().code for _ in range(2)] == [OK, EXHAUSTED]
    for name in (b"alice", b"bob"):
        assert ("user", "x509_subject_alternative_name", (name,)) in limiter
    assert len(limiter) == 2


def test_no_user(either: Way) -> None:
    limiter = RateLimiter("1/minute")
    with either.client(limiter, user()) as client:
        assert [client.ask().code for _ in range(2)] == [OK, EXHAUSTED]
    assert "127.0.0.1" in limiter


# Rules


def test_rules(either: Way) -> None:
    """The first that matches holds; one rule is one count."""
    clock = ManualClock()

    def limiter(quota: str) -> RateLimiter:
        return RateLimiter(quota, clock=clock)

    rules = [
        MethodRule("/p.S/UnaryUnary", limiter("2/minute"), cost=2),
        MethodRule("/p.S/Unary*", limiter("3/minute"), key=lambda call: "all"),
        MethodRule("/p.S/StreamUnary", None),
        MethodRule("/p.S/*", limiter("1/minute")),
    ]
    functions = {**either.handlers.sync()} if either.serve is sync_server else either.handlers.aio()
    functions = {**functions, "UnaryStream2": functions["UnaryStream"]}
    interceptor = either.interceptor(limiter("4/minute"), rules=rules)
    handlers = [generic(functions), generic(functions, "q.S")]
    with either.serve(*handlers, interceptors=[interceptor]) as target, Client(target) as client:

        def codes(method: str, number: int, service: str = "p.S") -> list[Any]:
            kind = method.rstrip("2")
            return [client.ask(method, service=service, kind=kind).code for _ in range(number)]

        assert codes("UnaryUnary", 2) == [OK, EXHAUSTED]
        assert codes("UnaryStream", 2) == [OK, OK]
        assert codes("UnaryStream2", 2) == [OK, EXHAUSTED]
        assert codes("StreamUnary", 9) == [OK] * 9
        assert codes("StreamStream", 2) == [OK, EXHAUSTED]
        assert codes("UnaryUnary", 3, "q.S") == [OK] * 3
        assert codes("StreamUnary", 2, "q.S") == [OK, EXHAUSTED]


def test_only_rules(either: Way) -> None:
    with either.client(None, rules=[MethodRule("/p.S/UnaryUnary", "1/hour")]) as client:
        assert [client.ask().code for _ in range(2)] == [OK, EXHAUSTED]
        assert [client.ask("UnaryStream").code for _ in range(5)] == [OK] * 5


def test_exempt_methods(either: Way) -> None:
    limiter = RateLimiter("1/hour")
    rules = [MethodRule("/*", limiter)]
    with either.client("9/hour", rules=rules, exempt=["/p.S/Stream*", "/x.Y/Z"]) as client:
        assert [client.ask("StreamUnary").code for _ in range(5)] == [OK] * 5
        assert [client.ask().code for _ in range(2)] == [OK, EXHAUSTED]
        assert client.ask("StreamStream").code is OK
    assert limiter.stats().allowed == 1


def test_exempt_calls(way: Way) -> None:
    def exempt(call: Call) -> bool:
        return call.values("probe") == ["yes"]

    with way.client("1/hour", exempt=exempt) as client:
        assert [client.ask(sent=[("probe", "yes")]).code for _ in range(5)] == [OK] * 5
        assert [client.ask(sent=[("probe", "no")]).code for _ in range(2)] == [OK, EXHAUSTED]


def test_a_method_that_is_not_there(either: Way) -> None:
    limiter = RateLimiter("1/hour")
    with either.client(limiter) as client:
        for _ in range(3):
            missing = client.ask("Missing", kind="UnaryUnary")
            assert missing.code is grpc.StatusCode.UNIMPLEMENTED
        assert client.ask().code is OK
    assert limiter.stats().allowed == 1


# What goes wrong


def fails(call: Call) -> str:
    raise LookupError(f"nobody knows {call.method}")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"key": fails}, "LookupError: nobody knows /p.S/"),
        ({"key": lambda call: None}, "NoneType"),
        ({"key": lambda call: 1.5}, "float"),
        ({"key": lambda call: call.values("no")[0]}, "IndexError"),
        ({"cost": fails}, "LookupError"),
        ({"cost": lambda call: 6}, "ValueError"),
        ({"cost": lambda call: "1"}, "TypeError"),
        ({"exempt": fails}, "LookupError"),
    ],
)
@pytest.mark.parametrize("policy", ["deny", "allow", None])
def test_functions_that_fail(
    either: Way, arguments: dict[str, Any], error: str, policy: Any, logged: Any
) -> None:
    limiter = RateLimiter("5/hour")
    arguments = {**arguments, **({"on_key_error": policy} if policy else {})}
    kinds = ["UnaryUnary", "StreamStream"]
    with either.client(limiter, **arguments) as client:
        outcomes = [client.ask(kind) for kind in kinds]
    what = "let pass" if policy == "allow" else "denied"
    for kind, outcome, record in zip(kinds, outcomes, logged(), strict=True):
        if policy == "allow":
            assert (outcome.code, outcome.answer) == (OK, "ONE TWO")
        else:
            # Nothing of what went wrong: the client is a stranger.
            assert (outcome.code, outcome.details) == (
                INTERNAL,
                "the rate limit could not be checked",
            )
        assert record.levelname == "ERROR"
        assert record.getMessage() == (
            f"the rate limit of /p.S/{kind} could not be checked, the call is {what}"
        )
        text = logging.Formatter().format(record)
        assert "Traceback" in text
        assert error in text
    assert either.handlers.runs == (2 if policy == "allow" else 0)
    assert limiter.stats().allowed == 0


def test_a_closed_limiter(either: Way, logged: Any) -> None:
    """It is not the client's key that is at fault, so its policy does not open the door."""
    limiter = RateLimiter("5/hour")
    with either.client(limiter, on_key_error="allow") as client:
        assert client.ask().code is OK
        limiter.close()
        assert client.ask().code is INTERNAL
    assert "LimiterClosedError" in logging.Formatter().format(logged()[0])


def test_handlers_that_fail(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    """Their errors and aborts are theirs, as without a limit."""

    class Failing(Handlers):
        def _begin(self, context: Any) -> None:
            super()._begin(context)
            raise ArithmeticError("by the handler")

    way.handlers = Failing()
    with way.client("1/hour") as client:
        failed = client.ask()
        assert failed.code is grpc.StatusCode.UNKNOWN
        assert "by the handler" in failed.details
        assert client.ask().code is EXHAUSTED
    assert way.handlers.runs == 1
    assert [record for record in caplog.records if record.name == "nanolimit"] == []


INTERCEPTORS = [RateLimitInterceptor, AioRateLimitInterceptor]


@pytest.mark.parametrize("make", INTERCEPTORS)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"limiter": None}, ValueError, "there is no limit: give limiter"),
        ({"limiter": 5}, TypeError, "limiter must be a RateLimiter, or a quota such as '5/minute'"),
        ({"limiter": "5/fortnight"}, ValueError, "is not understood"),
        ({"key": "127.0.0.1"}, TypeError, "key must be a callable"),
        ({"key": metadata}, TypeError, r"key must be what metadata\(\.\.\.\) returns"),
        ({"cost": -1}, ValueError, "cost must be >= 0, not -1"),
        ({"cost": 6}, ValueError, "cost 6 never fits into the limit of 5"),
        ({"cost": "1"}, TypeError, "cost must be an int, not str"),
        (
            {"cost": 3, "rules": [MethodRule("/*", "2/hour")]},
            ValueError,
            "never fits into the limit of 2",
        ),
        ({"rules": ["/p.S/M"]}, TypeError, "rules must hold MethodRules, not str"),
        ({"rules": MethodRule("/*", None)}, TypeError, "rules must be a list of MethodRule"),
        ({"rules": 5}, TypeError, "rules must be a list of MethodRule, not int"),
        ({"exempt": "p.S/M"}, ValueError, "exempt 'p.S/M' is no method"),
        ({"exempt": ["/p.S/M", 5]}, TypeError, "exempt must be a str, not int"),
        ({"exempt": 5}, TypeError, "exempt must be a list of methods, or a callable"),
        (
            {"on_key_error": "ignore"},
            ValueError,
            "on_key_error must be 'deny' or 'allow', not 'ignore'",
        ),
        ({"headers": "x"}, ValueError, "headers must be 'draft' or None, not 'x'"),
    ],
)
def test_interceptors_that_can_not_be(
    make: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**{"limiter": "5/minute", **arguments})


async def awaited(call: Call) -> Any:
    await asyncio.sleep(0)
    return "key"


@pytest.mark.parametrize(
    "arguments",
    [
        {"key": awaited},
        {"key": combine(peer(), awaited)},
        {"cost": awaited},
        {"exempt": awaited},
        {"rules": [MethodRule("/*", None, key=awaited)]},
    ],
)
def test_nothing_to_await_with(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="must not be a coroutine function in a"):
        RateLimitInterceptor("5/minute", **arguments)
    AioRateLimitInterceptor("5/minute", **arguments)


@pytest.mark.parametrize(
    ("blocked", "code", "expected"),
    [
        ("grpc", "import nanolimit.integrations.grpc", "pip install 'nanolimit[grpc]'"),
        ("google.rpc", "import nanolimit.integrations.googleapis", "pip install 'nanolimit[grpc]'"),
        (
            "google.rpc",
            "from nanolimit.integrations.grpc import details; print(details(None, ''))",
            "()",
        ),
    ],
)
def test_what_is_not_installed(blocked: str, code: str, expected: str) -> None:
    code = f"import sys; sys.modules[{blocked!r}] = None; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert expected in done.stdout + done.stderr


# Functions that await


@pytest.mark.parametrize("name", ["aio", "aio-writing", "aio-sync"])
@pytest.mark.parametrize("kind", KINDS)
def test_key_functions_that_await(name: str, kind: str) -> None:
    loops = set()

    async def key(call: Call) -> Any:
        await asyncio.sleep(0.001)
        loops.add(asyncio.get_running_loop())
        return call.values("k")[0]

    async def cost(call: Call) -> int:
        return 2

    async def exempt(call: Call) -> bool:
        return call.values("k") == ["free"]

    way = Way(name)
    with way.client("2/hour", key, cost=cost, exempt=exempt) as client:
        for value in ("a", "b"):
            codes = [client.ask(kind, sent=[("k", value)]).code for _ in range(2)]
            assert codes == [OK, EXHAUSTED]
        assert [client.ask(kind, sent=[("k", "free")]).code for _ in range(3)] == [OK] * 3
    assert len(loops) == 1


def test_functions_that_give_something_to_await() -> None:
    way = Way("aio")
    with way.client("1/hour", lambda call: awaited(call)) as client:
        assert [client.ask().code for _ in range(2)] == [OK, EXHAUSTED]


@pytest.mark.parametrize("policy", ["deny", "allow"])
@pytest.mark.parametrize("name", ["aio", "aio-sync"])
def test_awaited_functions_that_fail(name: str, policy: Any, logged: Any) -> None:
    async def key(call: Call) -> Any:
        await asyncio.sleep(0)
        if call.values("twice"):
            raise InvalidCall("once")
        raise LookupError("nobody")

    way = Way(name)
    with way.client("1/hour", key, on_key_error=policy) as client:
        assert client.ask().code is (OK if policy == "allow" else INTERNAL)
        assert client.ask(sent=[("twice", "")]).code is INVALID
    (record,) = logged()
    assert "LookupError: nobody" in logging.Formatter().format(record)


def test_a_call_that_is_cancelled_while_its_key_is_awaited(logged: Any) -> None:
    """It counts nothing, and is no error."""
    reached, cancelled = threading.Event(), threading.Event()

    async def key(call: Call) -> Any:
        if call.values("slow"):
            reached.set()
            try:
                await asyncio.sleep(TIMEOUT_S)
            except asyncio.CancelledError:
                cancelled.set()
                raise
        return "key"

    way = Way("aio")
    limiter = RateLimiter("1/hour")
    with way.client(limiter, key) as client:
        slow = client.channel.unary_unary("/p.S/UnaryUnary", encoded, decoded).future(
            "", metadata=[("slow", "yes")]
        )
        assert reached.wait(TIMEOUT_S)
        slow.cancel()
        assert cancelled.wait(TIMEOUT_S)
        assert [client.ask().code for _ in range(2)] == [OK, EXHAUSTED]
    assert way.handlers.runs == 1
    assert logged() == []


# Clients that come again


def retry_policy(*codes: str) -> Any:
    """Options of a channel. Left to itself, it would come again after ages."""
    policy = {
        "maxAttempts": 3,
        "initialBackoff": "600s",
        "maxBackoff": "600s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": codes,
    }
    return [
        (
            "grpc.service_config",
            json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]}),
        )
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_clients_come_again_when_they_are_told(way: Way, kind: str) -> None:
    limiter = RateLimiter("1 per 0.2s")
    with way.serve(way.generic(), interceptors=[way.interceptor(limiter)]) as target:
        with Client(target, retry_policy("RESOURCE_EXHAUSTED")) as client:
            # One of them comes too early, unless this machine is very slow.
            for _ in range(200):
                assert client.ask(kind).answer == "ONE TWO"
                if limiter.stats().denied:
                    break
    attempts = [dict(sent).get("grpc-previous-rpc-attempts") for sent in way.handlers.contexts]
    # What was denied came again once, and was let in.
    assert limiter.stats().denied == 1
    assert attempts == [None] * (len(attempts) - 1) + ["1"]


def test_clients_that_do_not_ask_for_it_do_not_come_again(either: Way) -> None:
    limiter = RateLimiter("1/hour")
    with either.serve(either.generic(), interceptors=[either.interceptor(limiter)]) as target:
        with Client(target, retry_policy("UNAVAILABLE")) as client:
            assert [client.ask().code for _ in range(2)] == [OK, EXHAUSTED]
    assert limiter.stats().denied == 1


def test_clients_are_not_told_to_wait_for_weeks(either: Way) -> None:
    limiter = RateLimiter("1/5w")
    with either.serve(either.generic(), interceptors=[either.interceptor(limiter)]) as target:
        with Client(target, retry_policy("RESOURCE_EXHAUSTED")) as client:
            assert [client.ask().code for _ in range(2)] == [OK, EXHAUSTED]
    assert limiter.stats().denied == 1


# Many at a time


def test_many_threads(way: Way) -> None:
    limit, clients, each = 150, 8, 50
    limiter = RateLimiter(limit, per=3600)
    with way.serve(way.generic(), interceptors=[way.interceptor(limiter)]) as target:
        barrier = threading.Barrier(clients)

        def run(number: int) -> list[Any]:
            with Client(target) as client:
                barrier.wait()
                return [client.ask(KINDS[turn % 4]).code for turn in range(each)]

        with ThreadPoolExecutor(clients) as pool:
            codes = [code for found in pool.map(run, range(clients)) for code in found]
    assert (codes.count(OK), codes.count(EXHAUSTED)) == (limit, clients * each - limit)
    assert way.handlers.runs == limit


def test_many_tasks() -> None:
    limiter = RateLimiter(100, per=3600)
    way = Way("aio")

    async def run(target: str) -> list[Any]:
        async with grpc.aio.insecure_channel(target) as channel:
            ask = channel.unary_unary("/p.S/UnaryUnary", encoded, decoded)

            async def code() -> Any:
                return await ask("", timeout=TIMEOUT_S).code()

            return await asyncio.gather(*(code() for _ in range(300)))

    with way.serve(way.generic(), interceptors=[way.interceptor(limiter)]) as target:
        codes = the_loop.run(run(target))
    assert (codes.count(OK), codes.count(EXHAUSTED)) == (100, 200)
    assert way.handlers.runs == 100


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the package begins: "task" and "thread", once for each."""
    package = str(Path(nanolimit.__file__).parent)
    found: list[str] = []

    def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
        # gRPC's own coroutines are compiled, and of no file.
        code = getattr(coroutine, "cr_code", None)
        if code is not None and code.co_filename.startswith(package):
            found.append("task")
        return asyncio.Task(coroutine, loop=loop, **options)

    start = threading.Thread.start

    def watched(thread: threading.Thread) -> None:
        if any(frame.filename.startswith(package) for frame in traceback.extract_stack()):
            found.append("thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", watched)
    the_loop.loop.set_task_factory(factory)
    yield found
    the_loop.loop.set_task_factory(None)


def test_no_task_and_no_thread_for_a_call(way: Way, begun: list[str]) -> None:
    # (a server without a loop takes no key function that is awaited)
    keys = [None] if way.interceptor is RateLimitInterceptor else [None, awaited]
    for key in keys:
        begun.clear()
        with way.client("6/hour", key) as client:
            codes = [client.ask(kind).code for _ in range(2) for kind in KINDS]
        assert codes == [OK] * 6 + [EXHAUSTED] * 2
        # The exception that the documentation names.
        in_loop = key is awaited and way.name == "aio-sync"
        assert begun == (["task"] * 8 if in_loop else [])


WORKER = """
import asyncio, os, sys
from concurrent.futures import ThreadPoolExecutor
import grpc, grpc.aio
from nanolimit import RateLimiter
from nanolimit.integrations.grpc import AioRateLimitInterceptor, RateLimitInterceptor

kind, port = sys.argv[1:]
make = RateLimitInterceptor if kind == "sync" else AioRateLimitInterceptor
limiter = RateLimiter("200/hour", shared="calls")
interceptors = [make(limiter, exempt="/p.S/Who")]
options = [("grpc.so_reuseport", 1)]

def answer(request, context):
    return str(os.getpid()).encode()

async def answer_async(request, context):
    return answer(request, context)

def prepared(server, function):
    handler = grpc.unary_unary_rpc_method_handler(function)
    methods = {"Who": handler, "Do": handler}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("p.S", methods)])
    assert server.add_insecure_port(f"127.0.0.1:{port}") == int(port)
    return server

async def serve_async():
    server = prepared(grpc.aio.server(interceptors=interceptors, options=options), answer_async)
    await server.start()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)

if kind == "sync":
    pool = ThreadPoolExecutor(4)
    server = prepared(grpc.server(pool, interceptors=interceptors, options=options), answer)
    server.start()
    print("ready", flush=True)
    sys.stdin.read()
    server.stop(0).wait()
else:
    asyncio.run(serve_async())
"""


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_processes_that_share_a_port_and_a_table(kind: str, tables: Path) -> None:
    workers = 4
    with ExitStack() as stack:
        # Holds the port, and answers nobody: it does not listen.
        holder = stack.enter_context(socket.socket())
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        processes = []
        for _ in range(workers):
            process = subprocess.Popen(
                [sys.executable, "-c", WORKER, kind, str(port)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.terminate)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

        # As many connections to each.
        clients: dict[int, list[Any]] = {process.pid: [] for process in processes}
        for _ in range(500):
            client = stack.enter_context(Client(f"127.0.0.1:{port}"))
            pid = int(client.channel.unary_unary("/p.S/Who")(b"", timeout=TIMEOUT_S))
            if len(clients[pid]) < 2:
                clients[pid].append(client)
            else:
                client.channel.close()
            if all(len(found) == 2 for found in clients.values()):
                break

        def run(client: Client) -> tuple[int, int]:
            do = client.channel.unary_unary("/p.S/Do")
            allowed = denied = 0
            for _ in range(60):
                try:
                    do(b"", timeout=TIMEOUT_S)
                    allowed += 1
                except grpc.RpcError as error:
                    denied += error.code() is EXHAUSTED
            return allowed, denied

        everybody = [client for found in clients.values() for client in found]
        assert len(everybody) == 2 * workers
        with ThreadPoolExecutor(len(everybody)) as pool:
            counts = list(pool.map(run, everybody))
        assert sum(allowed for allowed, _ in counts) == 200
        assert sum(denied for _, denied in counts) == 60 * len(everybody) - 200
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(TIMEOUT_S) == 0
    # They are gone, and what they counted is there.
    with RateLimiter("200/hour", shared="calls") as limiter:
        assert not limiter.allow("127.0.0.1")


# How a handler is wrapped


def details(method: str) -> Any:
    from grpc._server import _HandlerCallDetails

    return _HandlerCallDetails(method, ())


def test_a_handler_is_wrapped_once() -> None:
    interceptor = RateLimitInterceptor("5/hour", exempt="/p.S/UnaryStream")
    service = generic(Handlers().sync())
    for name in KINDS:
        asked = details(f"/p.S/{name}")
        limited = interceptor.intercept_service(service.service, asked)
        assert interceptor.intercept_service(service.service, asked) is limited
        own = service.service(asked)
        assert (limited is own) == (name == "UnaryStream")
        assert limited.request_streaming == own.request_streaming
        assert limited.response_streaming == own.response_streaming
        assert limited.request_deserializer is own.request_deserializer
        assert limited.response_serializer is own.response_serializer
    # Another handler of the same name is wrapped anew.
    other = generic(Handlers().sync())
    assert interceptor.intercept_service(other.service, asked) is not limited
    assert interceptor.intercept_service(lambda asked: None, asked) is None


def test_ever_new_methods_take_no_more_memory() -> None:
    """A handler for whatever comes, as proxies have, is asked for names that clients make up."""
    interceptor = RateLimitInterceptor("5/hour")
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
    for number in range(10_000):
        interceptor.intercept_service(lambda asked: handler, details(f"/made.Up/{number}"))
    assert len(interceptor._kept) <= 4096


def test_handlers_with_a_pool_of_their_own() -> None:
    """gRPC reads it off the handler's function."""
    names: list[str] = []

    def unary_unary(request: Text, context: Any) -> Text:
        names.append(threading.current_thread().name)
        return request

    def keyed(call: Call) -> str:
        names.append(threading.current_thread().name)
        return "key"

    with ThreadPoolExecutor(1, "own") as pool:
        unary_unary.experimental_thread_pool = pool  # type: ignore[attr-defined]
        service = generic({"UnaryUnary": unary_unary})
        interceptor = RateLimitInterceptor("5/hour", keyed)
        with sync_server(service, interceptors=[interceptor]) as target, Client(target) as client:
            assert client.ask().code is OK
    assert names == ["own_0", "own_0"]


def test_handlers_that_do_not_block() -> None:
    """gRPC gives them a third argument, to answer with."""

    def unary_stream(request: Text, context: Any, send: Callable[[Text | None], None]) -> None:
        for word in request.text.split():
            send(Text(word))
        send(None)

    unary_stream.experimental_non_blocking = True  # type: ignore[attr-defined]
    service = generic({"UnaryStream": unary_stream})
    interceptor = RateLimitInterceptor("1/hour")
    with sync_server(service, interceptors=[interceptor]) as target, Client(target) as client:
        assert client.ask("UnaryStream").answer == "one two"
        assert client.ask("UnaryStream").code is EXHAUSTED


def test_a_stream_that_is_left_closes_its_handler() -> None:
    """The handler's own generator is closed with the one around it."""
    closed = threading.Event()

    async def unary_stream(request: Text, context: Any) -> Any:
        try:
            while True:
                yield Text("word")
                await asyncio.sleep(0.001)
        finally:
            closed.set()

    service = generic({"UnaryStream": unary_stream})
    interceptor = AioRateLimitInterceptor("1/hour")
    with aio_server(service, interceptors=[interceptor]) as target, Client(target) as client:
        call = client.channel.unary_stream("/p.S/UnaryStream", encoded, decoded)("")
        assert next(call) == "word"
        call.cancel()
        assert closed.wait(TIMEOUT_S)


def test_a_stream_that_is_closed_closes_its_handler_at_once() -> None:
    """And not when it is collected."""
    closed = []

    async def unary_stream(request: Text, context: Any) -> Any:
        try:
            yield Text("word")
        finally:
            closed.append(True)

    async def run() -> None:
        service = generic({"UnaryStream": unary_stream})

        async def continuation(asked: Any) -> Any:
            return service.service(asked)

        interceptor = AioRateLimitInterceptor("1/hour")
        asked = details("/p.S/UnaryStream")
        limited = await interceptor.intercept_service(continuation, asked)
        messages = limited.unary_stream(Text(""), Lax())
        assert (await anext(messages)).text == "word"
        await messages.aclose()
        assert closed == [True]

    asyncio.run(run())


class Lax:
    """A context that ends no call: a test double, or that of an interceptor outside of ours."""

    def peer(self) -> str:
        return "unix:"

    def set_trailing_metadata(self, metadata: Any) -> None:
        pass

    def abort(self, code: Any, details: str) -> Any:
        return asyncio.sleep(0) if self.awaits else None

    def __init__(self, awaits: bool = False) -> None:
        self.awaits = awaits


def test_a_context_that_does_not_abort_does_not_open_the_door() -> None:
    handlers = Handlers()
    limiter = RateLimiter("1/hour")
    assert limiter.allow("unix")
    asked = details("/p.S/UnaryUnary")
    service = generic(handlers.sync())
    limited = RateLimitInterceptor(limiter).intercept_service(service.service, asked)
    with pytest.raises(RuntimeError, match="abort"):
        limited.unary_unary(Text(""), Lax())

    async def run() -> None:
        service = generic(handlers.aio())

        async def continuation(asked: Any) -> Any:
            return service.service(asked)

        interceptor = AioRateLimitInterceptor(limiter)
        limited = await interceptor.intercept_service(continuation, asked)
        with pytest.raises(RuntimeError, match="abort"):
            await limited.unary_unary(Text(""), Lax(awaits=True))

    asyncio.run(run())
    assert handlers.runs == 0


def test_the_limiter_that_was_made() -> None:
    limiter = RateLimiter("5/hour")
    assert RateLimitInterceptor(limiter).limiter is limiter
    made = AioRateLimitInterceptor(["5/hour", "9/day"]).limiter
    assert made is not None
    assert [quota.limit for quota in made.quotas] == [5, 9]
    assert RateLimitInterceptor(rules=[MethodRule("/*", limiter)]).limiter is None


# The example


needs_example = pytest.mark.skipif(
    not EXAMPLE.is_file(), reason="the examples are not at hand: only the tests were copied here"
)


@needs_example
def test_the_demo_of_the_example() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), "--demo"],
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},  # it likes to tell how connections end
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    hello, again, third, denied, patient = done.stdout.splitlines()
    assert hello.startswith("Hello, you ")
    assert again.startswith("Hello, you ")
    assert third.startswith("Hello, you ")
    assert denied.startswith("RESOURCE_EXHAUSTED rate limit of 3 per 1 s exceeded, retry after ")
    assert patient == "Hello, patient one"


@needs_example
def test_the_example_serves(tables: Path) -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLE)],
            env={**os.environ, "LIMIT": "2/hour", "TABLE": "example", "ADDRESS": address},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline().startswith("2 per 3600 s on port ")
                with Client(address) as client:

                    def codes(method: str, number: int, key: str) -> list[Any]:
                        sent = [("x-api-key", key)] if key else []
                        kind = "StreamStream" if method == "Chat" else "UnaryUnary"
                        return [
                            client.ask(method, service="example.Greeter", kind=kind, sent=sent).code
                            for _ in range(number)
                        ]

                    assert codes("Greet", 3, "") == [OK, OK, EXHAUSTED]
                    assert codes("Greet", 3, "key") == [OK, OK, EXHAUSTED]
                    assert codes("Chat", 11, "") == [OK] * 10 + [EXHAUSTED]
            finally:
                process.send_signal(signal.SIGINT)
            assert process.wait(TIMEOUT_S) == 0
