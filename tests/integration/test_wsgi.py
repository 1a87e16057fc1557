"""The pure WSGI middleware: under the validator of the standard library, and under gunicorn."""

from __future__ import annotations

import http.client
import io
import json
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest
import requests

import probe
from nanolimit.integrations.wsgi import RateLimitMiddleware, Rule, client_ip, header
from server import Server

POLICY = f'"default";q={probe.LIMIT};w=3600'
WAYS = ["plain", "streaming", "late", "written", "file", "changed"]


class Caller:
    """A WSGI server for one application, which checks what it is given."""

    def __init__(self, app: Any) -> None:
        self._app = validator(app)
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.exc_info: list[bool] = []

    def __call__(self, path: str = "/", method: str = "GET", **more: Any) -> bytes:
        environ: dict[str, Any] = {"REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path}
        setup_testing_defaults(environ)
        environ["wsgi.file_wrapper"] = FileWrapper
        environ["QUERY_STRING"] = ""
        environ.update({"REMOTE_ADDR": "192.0.2.1", **more})
        environ = {name: value for name, value in environ.items() if value is not None}
        self.exc_info.clear()
        sent = io.BytesIO()

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            self.status, self.headers = status, headers
            self.exc_info.append(exc_info is not None)
            return sent.write

        pieces = self._app(environ, start)
        try:
            for piece in pieces:
                sent.write(piece)
        finally:
            pieces.close()
        return sent.getvalue()

    def field(self, name: str) -> list[str]:
        return [value for field, value in self.headers if field.lower() == name.lower()]


@pytest.fixture
def caller() -> Caller:
    return Caller(RateLimitMiddleware(probe.probe, f"{probe.LIMIT}/hour", client_ip()))


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_answering_is_valid_and_announced(way: str, caller: Caller) -> None:
    bare = Caller(probe.probe)
    expected = bare(f"/{way}")
    for remaining in (2, 1, 0):
        assert caller(f"/{way}") == expected
        assert caller.status == bare.status
        assert caller.field("RateLimit-Policy") == [POLICY]
        assert caller.field("RateLimit")[0].startswith(f'"default";r={remaining};t=')
        assert caller.field("Retry-After") == []
    assert json.loads(caller(f"/{way}"))["status"] == 429
    assert caller.status == "429 Too Many Requests"


def test_an_answer_that_is_taken_back_passes_exc_info_on(caller: Caller) -> None:
    assert caller("/changed") == b"changed"
    assert caller.exc_info == [False, True]
    assert len(caller.field("RateLimit")) == 1


def test_start_response_is_not_called_before_the_application_does(caller: Caller) -> None:
    called: list[str] = []
    app = RateLimitMiddleware(probe.probe, "3/hour", client_ip())
    environ: dict[str, Any] = {"PATH_INFO": "/late", "REMOTE_ADDR": "192.0.2.1"}
    setup_testing_defaults(environ)
    pieces = iter(app(environ, lambda status, headers: called.append(status)))
    assert called == []
    assert next(pieces) == b"late"
    assert called == ["200 OK"]


def test_the_iterable_itself_is_handed_on() -> None:
    """So its close() is the server's to call, and a file wrapper is known by the server."""
    given = probe.Closing("own", [b"a"])

    def app(environ: Any, start: Any) -> Iterable[bytes]:
        start("200 OK", [])
        return given

    environ: dict[str, Any] = {"PATH_INFO": "/", "REMOTE_ADDR": "192.0.2.1"}
    setup_testing_defaults(environ)
    limited = RateLimitMiddleware(app, "3/hour", client_ip())
    assert limited(environ, lambda status, headers: None) is given


def test_head_has_no_body_and_get_s_header_fields(caller: Caller) -> None:
    for _ in range(probe.LIMIT):
        caller("/plain")
    body = caller("/plain")
    length = caller.field("Content-Length")
    assert length == [str(len(body))]
    assert caller("/plain", "HEAD") == b""
    assert caller.status == "429 Too Many Requests"
    assert caller.field("Content-Length") == length


def test_a_preflight_is_not_counted_and_other_options_are(caller: Caller) -> None:
    asked = {
        "HTTP_ORIGIN": "https://example.org",
        "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "POST",
    }
    for _ in range(2 * probe.LIMIT):
        assert caller("/plain", "OPTIONS", **asked) == b"OPTIONS"
        assert caller.field("RateLimit") == []
    # Nor is it one if the method is another.
    assert caller("/plain", "POST", **asked) == b"POST"
    assert caller("/plain", "OPTIONS") == b"OPTIONS"
    assert caller.field("RateLimit")[0].startswith('"default";r=1;')


def test_without_an_address_all_are_one_client(caller: Caller) -> None:
    for remaining, address in ((2, None), (1, ""), (0, None)):
        caller("/plain", REMOTE_ADDR=address)
        assert caller.field("RateLimit")[0].startswith(f'"default";r={remaining};')
    caller("/plain", REMOTE_ADDR="")
    assert caller.status == "429 Too Many Requests"
    caller("/plain", REMOTE_ADDR="192.0.2.1")
    assert caller.status == "200 OK"


def test_a_rule_is_about_the_path_within_the_application() -> None:
    app = RateLimitMiddleware(
        probe.probe, None, client_ip(), rules=[Rule("/plain/**", "1/hour"), Rule("/ü*", "1/hour")]
    )
    caller = Caller(app)
    caller("/plain/x", SCRIPT_NAME="/mounted")
    assert caller.field("RateLimit") != []
    caller("/x", SCRIPT_NAME="/plain")
    assert caller.field("RateLimit") == []
    # Bytes as Latin-1, as PEP 3333 has them: "/über" in UTF-8; and what is no UTF-8 at all.
    caller("/über".encode().decode("latin-1"))
    assert caller.field("RateLimit") != []
    caller("/\xfc\xff")
    assert caller.status == "200 OK"
    assert caller.field("RateLimit") == []


def test_what_the_application_said_itself_stays() -> None:
    def app(environ: Any, start: Any) -> Iterable[bytes]:
        start("200 OK", [("Content-Type", "text/plain"), ("x-ratelimit-limit", "mine")])
        return [b"x"]

    caller = Caller(RateLimitMiddleware(app, "3/hour", client_ip(), headers="x"))
    caller()
    assert caller.field("X-RateLimit-Limit") == ["mine"]
    assert caller.field("X-RateLimit-Remaining") == ["2"]


def test_a_refused_request_is_valid_too(caplog: pytest.LogCaptureFixture) -> None:
    limited = RateLimitMiddleware(probe.probe, "3/hour", client_ip(["192.0.2.1"]))
    caller = Caller(limited)
    assert json.loads(caller(HTTP_FORWARDED='for="'))["status"] == 400
    assert caller.status == "400 Bad Request"

    def broken(environ: Any) -> str:
        raise LookupError("no such tenant")

    caller = Caller(RateLimitMiddleware(probe.probe, "3/hour", broken))
    assert json.loads(caller())["status"] == 500
    assert "no such tenant" in caplog.text


def test_an_answer_of_one_s_own_is_valid() -> None:
    def denied(environ: Any, decision: Any) -> Any:
        def answer(environ: Any, start: Any) -> Iterable[bytes]:
            start("503 Busy", [("Content-Type", "text/plain"), ("Retry-After", "77")])
            return [b"%d" % decision.limit]

        return answer

    caller = Caller(RateLimitMiddleware(probe.probe, "1/hour", header("X-User"), on_denied=denied))
    caller(HTTP_X_USER="a")
    assert caller(HTTP_X_USER="a") == b"1"
    assert caller.status == "503 Busy"
    assert caller.field("Retry-After") == ["77"]
    assert len(caller.field("RateLimit")) == 1


# gunicorn


class UnixConnection(http.client.HTTPConnection):
    """HTTP by a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


class UnixServer(Server):
    """A server that listens to a Unix socket only."""

    address: Path

    def ask(self, user: str, timeout_s: float = 10.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while True:
            connection = UnixConnection(self.address)
            try:
                connection.request("GET", f"/{user}")
                return json.loads(connection.getresponse().read())
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline or self._process.poll() is not None:
                    pytest.fail(f"nobody listens at the Unix socket:\n{self.log()}")
                time.sleep(0.05)
            finally:
                connection.close()


def gunicorn(kind: type[Server], bind: str, log: Path) -> Server:
    return kind(
        "gunicorn", "--bind", bind, "--workers", "1", "--threads", "2",
        "--chdir", str(Path(__file__).parent), "--no-control-socket", "probe:application",
        limit="", table="", log=log, workers=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("gunicorn") / "log"
    with gunicorn(Server, "fd://{fd}", log) as running:
        yield running


@pytest.fixture
def who(request: pytest.FixtureRequest) -> dict[str, str]:
    """A user for this test alone."""
    return {"X-User": request.node.name.encode("ascii", "replace").decode()}


@pytest.mark.parametrize("way", WAYS)
def test_gunicorn_sends_each_way(way: str, server: Server, who: dict[str, str]) -> None:
    expected = Caller(probe.probe)(f"/{way}")
    url = f"http://127.0.0.1:{server.port}/{way}"
    for remaining in (2, 1, 0):
        answer = requests.get(url, headers=who, timeout=20)
        assert answer.content == expected
        assert answer.status_code == (500 if way == "changed" else 200)
        # gunicorn itself keeps the fields of an answer that was taken back.
        times = 2 if way == "changed" else 1
        assert answer.headers["Content-Type"] == ", ".join(["text/plain"] * times)
        assert answer.headers["RateLimit-Policy"] == ", ".join([POLICY] * times)
        assert answer.headers["RateLimit"].startswith(f'"default";r={remaining};t=')
    answer = requests.get(url, headers=who, timeout=20)
    assert answer.status_code == 429
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Retry-After"] == answer.headers["RateLimit"].rpartition("t=")[2]
    assert answer.json()["violated-policies"] == ["default"]


def test_gunicorn_streams_a_piece_at_a_time(server: Server, who: dict[str, str]) -> None:
    url = f"http://127.0.0.1:{server.port}/streaming"
    with requests.get(url, headers=who, stream=True, timeout=20) as answer:
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert len(list(answer.raw.read_chunked())) == probe.PIECES


def test_gunicorn_closes_what_it_was_given(server: Server, who: dict[str, str]) -> None:
    def closed(name: str) -> int:
        url = f"http://127.0.0.1:{server.port}/about/closed"
        counts = requests.get(url, timeout=20).json()["closed"]
        assert isinstance(counts, dict)
        return int(counts.get(name, 0))

    before = closed("streaming"), closed("broken")
    requests.get(f"http://127.0.0.1:{server.port}/streaming", headers=who, timeout=20)
    with pytest.raises(requests.RequestException):
        # The header was sent by then, so that only the connection can tell.
        answer = requests.get(f"http://127.0.0.1:{server.port}/broken", headers=who, timeout=20)
        answer.raise_for_status()
    assert (closed("streaming"), closed("broken")) == (before[0] + 1, before[1] + 1)


def test_gunicorn_answers_head(server: Server, who: dict[str, str]) -> None:
    """Over one connection: a body that must not be there would be taken for the next answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        statuses = []
        for _ in range(probe.LIMIT + 2):
            connection.request("HEAD", "/plain", headers=who)
            answer = connection.getresponse()
            assert answer.read() == b""
            assert answer.headers["RateLimit-Policy"] == POLICY
            statuses.append(answer.status)
        assert statuses == [200, 200, 200, 429, 429]
    finally:
        connection.close()


def test_gunicorn_passes_preflights(server: Server, who: dict[str, str]) -> None:
    asked = {**who, "Origin": "https://a.example", "Access-Control-Request-Method": "PUT"}
    url = f"http://127.0.0.1:{server.port}/plain"
    for _ in range(probe.LIMIT + 1):
        answer = requests.options(url, headers=asked, timeout=20)
        assert (answer.status_code, answer.text) == (200, "OPTIONS")
    answer = requests.options(url, headers=who, timeout=20)
    assert answer.headers["RateLimit"].startswith('"default";r=2;')


def test_gunicorn_with_urllib(server: Server, who: dict[str, str]) -> None:
    question = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/plain", headers={**who, "Accept": "text/plain"}
    )
    for _ in range(probe.LIMIT):
        with urllib.request.urlopen(question, timeout=20) as answer:
            assert answer.read() == b"GET"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(question, timeout=20)
    with caught.value as denied:
        assert denied.code == 429
        assert denied.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert denied.read().startswith(b"At most 3 requests in 3600 s; try again in ")


def test_clients_of_a_unix_socket_are_one(tmp_path: Path) -> None:
    # The address of a Unix socket may have some hundred bytes, and no more.
    with tempfile.TemporaryDirectory(prefix="nl-") as directory:
        address = Path(directory) / "socket"
        server = gunicorn(UnixServer, f"unix:{address}", tmp_path / "log")
        assert isinstance(server, UnixServer)
        server.address = address
        with server:
            told = []
            for _ in range(probe.LIMIT + 1):
                connection = UnixConnection(address)
                try:
                    connection.request("GET", "/plain")
                    told.append((answer := connection.getresponse()).status)
                    answer.read()
                finally:
                    connection.close()
    assert told == [200, 200, 200, 429]


def test_gunicorn_with_a_script_name(server: Server, who: dict[str, str]) -> None:
    url = f"http://127.0.0.1:{server.port}/mounted/about/here"
    told = requests.get(url, headers={**who, "SCRIPT_NAME": "/mounted"}, timeout=20).json()
    assert (told["script"], bytes.fromhex(told["path"])) == ("/mounted", b"/about/here")
    assert told["remaining"] > probe.LIMIT  # so the rule for /about/ fitted


@pytest.mark.parametrize("path", ["/about/%FC%FF", "/about/%C3%BC", "/about/%00"])
def test_gunicorn_with_paths_of_any_bytes(path: str, server: Server, who: dict[str, str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("GET", path, headers=who)
        answer = connection.getresponse()
        told = json.loads(answer.read())
    finally:
        connection.close()
    assert answer.status == 200
    assert bytes.fromhex(told["path"]) == urllib.request.unquote_to_bytes(path)  # type: ignore[attr-defined]
    assert told["remaining"] > probe.LIMIT
