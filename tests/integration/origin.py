"""A server for clients: it answers as a test says, and keeps what came and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

STOP_S = 30.0


class Arrival(NamedTuple):
    """One request."""

    method: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    came_s: float  # of time.monotonic, which all threads and processes share
    answered_s: float  # before the first byte of the answer
    status: int


class Answer(NamedTuple):
    """What is sent back."""

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b"{}"


#: Says what a request gets: it is called with the request's number, from 0, its method and path.
Script = Callable[[int, str, str], Answer]


def always(number: int, method: str, path: str) -> Answer:
    return Answer()


def first(*answers: Answer) -> Script:
    """These answers, one after the other, and then 200."""

    def script(number: int, method: str, path: str) -> Answer:
        return answers[number] if number < len(answers) else Answer()

    return script


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer is two writes, of head and body. With a delay for the second one each takes 40 ms.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        came_s = time.monotonic()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        server: Any = self.server
        origin: Origin = server.origin
        answer = origin.answer(self, body, came_s)
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Tests say what went wrong."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # clients keep connections; they end with the sockets
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may hang up."""


class Origin:
    """Runs while the ``with`` block does, on a port of its own."""

    def __init__(self, script: Script = always) -> None:
        self.script = script
        self.arrivals: list[Arrival] = []
        self._lock = threading.Lock()
        self._number = 0

    def answer(self, request: BaseHTTPRequestHandler, body: bytes, came_s: float) -> Answer:
        with self._lock:
            number = self._number
            self._number += 1
        answer = self.script(number, request.command, request.path)
        arrival = Arrival(
            request.command,
            request.path,
            body,
            request.headers,  # type: ignore[arg-type]
            came_s,
            time.monotonic(),
            answer.status,
        )
        with self._lock:
            self.arrivals.append(arrival)
        return answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def statuses(self) -> list[int]:
        return [arrival.status for arrival in self.arrivals]

    def __enter__(self) -> Origin:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.origin = self  # type: ignore[attr-defined]
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join(STOP_S)
        assert not self._thread.is_alive()
        self._server.server_close()


def check_pace(arrivals: Sequence[Arrival], began_s: float, limit: int, per: float) -> None:
    """Check the arrivals against the limit, whatever the machine does meanwhile.

    The n-th request to come was granted no sooner than the n-th that was granted, and that one not
    before ``n // limit`` whole windows had passed since the first. A slow machine lets them come
    later, never sooner.
    """
    for number, came_s in enumerate(sorted(arrival.came_s for arrival in arrivals)):
        soonest_s = number // limit * per
        assert came_s - began_s >= soonest_s, f"request {number} came too soon"
