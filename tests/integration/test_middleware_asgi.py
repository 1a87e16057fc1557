"""The ASGI middleware under uvicorn: workers that count together, answers that stay as they are."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import websockets

from server import EXAMPLES, WORKERS, Server

pytestmark = pytest.mark.usefixtures("tables")
LIMIT = 60


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(
        "uvicorn", "--fd", "{fd}", "--workers", str(WORKERS), "--app-dir", str(EXAMPLES),
        "--no-proxy-headers", "middleware:app",
        limit=f"{LIMIT}/hour", table="web", log=tmp_path / "log", workers=WORKERS,
    )  # fmt: skip
    with server:
        yield server


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.body = response.read()
        self.status = response.status
        self.headers = response.headers


def ask(
    server: Server, method: str = "GET", path: str = "/", client: str = "", **headers: str
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if client:
            sent["X-Forwarded-For"] = client
        connection.request(method, path, headers={"Connection": "close", **sent})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def test_four_workers_admit_exactly_the_limit(server: Server) -> None:
    pids: set[int] = set()

    def one(_: int) -> int:
        answer = ask(server)
        if answer.status == 200:
            pids.add(json.loads(answer.body)["pid"])
        return answer.status

    with ThreadPoolExecutor(16) as pool:
        statuses = Counter(pool.map(one, range(LIMIT * 3)))
    assert statuses == {200: LIMIT, 429: LIMIT * 2}
    assert len(pids) > 1, "one worker alone proves nothing"
    # Another client has a limit of its own, and each route with a rule another one.
    assert ask(server, client="198.51.100.7").status == 200
    logins = [ask(server, "POST", "/login").status for _ in range(7)]
    assert logins == [200] * 5 + [429] * 2


def test_forged_chains(server: Server) -> None:
    """Whatever the client writes, what its proxy adds decides."""

    def spoof(number: int) -> int:
        forged = f"203.0.113.{number}, 198.51.100.9"
        return ask(server, "POST", "/login", client=forged).status

    assert [spoof(number) for number in range(7)] == [200] * 5 + [429] * 2
    mapped = ask(server, "POST", "/login", client="1.2.3.4, [::ffff:198.51.100.9]:4711")
    assert mapped.status == 429
    assert ask(server, client="nobody").status == 400
    assert ask(server, client="1.2.3.4", Forwarded="for=5.6.7.8").status == 400
    # No crash: the server refuses what is too large itself, or the end of the chain decides.
    huge = ask(server, "POST", "/login", client="1.2.3.4," * 4_000 + "198.51.100.9").status
    assert huge in (400, 429, 431)


def test_head_options_and_streams(server: Server) -> None:
    for _ in range(5):
        ask(server, "POST", "/login")
    denied = ask(server, "HEAD", "/login")
    assert denied.status == 200, "the rule is for POST"
    denied = ask(server, "POST", "/login", Accept="text/plain")
    assert denied.status == 429
    assert denied.headers["Content-Type"].startswith("text/plain")
    assert denied.body.startswith(b"At most 5 requests in 60 s")
    assert 1 <= int(denied.headers["Retry-After"]) <= 60
    preflight = ask(
        server, "OPTIONS", "/login", Origin="https://a.example",
        Access_Control_Request_Method="POST",
    )  # fmt: skip
    assert preflight.status == 200
    assert "RateLimit" not in preflight.headers
    streamed = ask(server, path="/stream")
    assert streamed.body == b"0\n1\n2\n3\n4\n"
    assert streamed.headers["RateLimit-Policy"] == f'"web";q={LIMIT};w=3600'
    assert streamed.headers["Transfer-Encoding"] == "chunked"


def test_a_head_that_is_denied(server: Server) -> None:
    while (answer := ask(server, "HEAD")).status == 200:
        assert answer.body == b""
    assert (answer.status, answer.body) == (429, b"")
    assert int(answer.headers["Content-Length"]) > 100


def test_websockets(server: Server) -> None:
    async def connect() -> object:
        address = f"ws://127.0.0.1:{server.port}/ws"
        try:
            async with websockets.connect(address, proxy=None) as connection:
                return await connection.recv()
        except websockets.InvalidStatus as refused:
            return refused.response.status_code

    async def several() -> list[object]:
        return [await connect() for _ in range(LIMIT + 2)]

    answers = asyncio.run(several())
    assert answers == ["hello"] * LIMIT + [429] * 2
