"""What tests of the dashboard have in common: a client that speaks ASGI by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

HOST = (b"host", b"127.0.0.1:8377")
LONG_S = 30.0


class Answer:
    """A whole answer."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        start, *bodies = messages
        assert start["type"] == "http.response.start"
        assert all(body["type"] == "http.response.body" for body in bodies)
        assert [body.get("more_body", False) for body in bodies] == [True] * (len(bodies) - 1) + [
            False
        ]
        self.status: int = start["status"]
        self.fields: list[tuple[str, str]] = [
            (name.decode("ascii"), value.decode("latin-1")) for name, value in start["headers"]
        ]
        self.content = b"".join(body.get("body", b"") for body in bodies)

    def field(self, name: str) -> str | None:
        values = [value for given, value in self.fields if given == name]
        assert len(values) < 2, f"{name} is there twice"
        return values[0] if values else None

    @property
    def text(self) -> str:
        return self.content.decode("utf-8")

    @property
    def json(self) -> Any:
        return json.loads(self.content)


def scope_of(
    method: str = "GET",
    path: str = "/",
    *,
    fields: Iterable[tuple[bytes, bytes]] = (),
    host: bytes | None = HOST[1],
    root_path: str = "",
    query: bytes = b"",
    scheme: str = "http",
    client: tuple[str, int] | None = ("127.0.0.1", 40_000),
) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": root_path + path,
        "root_path": root_path,
        "query_string": query,
        "scheme": scheme,
        "client": client,
        "server": ("127.0.0.1", 8377),
        "headers": [*([] if host is None else [(b"host", host)]), *fields],
    }


async def asked(app: Any, scope: dict[str, Any], chunks: Iterable[bytes] = (b"",)) -> Answer:
    """Ask once, in a loop that runs."""
    sent: list[dict[str, Any]] = []
    left = list(chunks)

    async def receive() -> dict[str, Any]:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await asyncio.wait_for(app(scope, receive, send), LONG_S)
    return Answer(sent)


def ask(
    app: Any, method: str = "GET", path: str = "/", body: bytes | list[bytes] = b"", **more: Any
) -> Answer:
    """Ask once, in a loop of its own."""
    chunks = body if isinstance(body, list) else [body]
    return asyncio.run(asked(app, scope_of(method, path, **more), chunks))


class Stream:
    """A client that reads events until it goes. For use as ``async with``."""

    def __init__(self, app: Any, **more: Any) -> None:
        self._app = app
        self._scope = scope_of("GET", "/events", **more)
        self._gone = asyncio.Event()
        self._sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._events: list[tuple[str, Any]] = []
        self.before_send: Callable[[], Awaitable[None]] | None = None

    async def __aenter__(self) -> Stream:
        self.task = asyncio.ensure_future(self._app(self._scope, self._receive, self._send))
        self.start = await asyncio.wait_for(self._sent.get(), LONG_S)
        return self

    async def _receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self.before_send is not None:
            await self.before_send()
        self._sent.put_nowait(message)

    async def event(self) -> tuple[str, Any] | None:
        """The next one's name and data; None at the end of the answer."""
        while not self._events:
            message = await asyncio.wait_for(self._sent.get(), LONG_S)
            for block in message.get("body", b"").decode("ascii").split("\n\n"):
                lines = dict(line.split(": ", 1) for line in block.splitlines())
                if "data" in lines:
                    self._events.append((lines["event"], json.loads(lines["data"])))
            if not message.get("more_body", False):
                return None
        return self._events.pop(0)

    async def until(self, wanted: Callable[[Any], bool]) -> Any:
        """The first state for which this is so."""
        while True:
            event = await self.event()
            assert event is not None, "the stream has ended"
            if event[0] == "now" and wanted(event[1]):
                return event[1]

    async def ended(self) -> None:
        """Wait until the server has ended the answer."""

        async def end() -> None:
            while await self.event() is not None:
                pass

        await asyncio.wait_for(end(), LONG_S)

    def go(self) -> None:
        """Close the connection."""
        self._gone.set()

    async def __aexit__(self, *exc: object) -> None:
        self.go()
        await asyncio.wait_for(self.task, LONG_S)


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function, and see that it leaves no task behind."""

    async def whole() -> T:
        result = await main()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert left == set(), "tasks are left"
        return result

    return asyncio.run(whole())
