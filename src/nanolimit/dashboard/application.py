"""The dashboard as an ASGI application: its paths, its stream, and its one button."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from importlib.resources import files
from typing import TYPE_CHECKING
from urllib.parse import quote

from nanolimit.dashboard.access import CHANGE_HEADER, is_own_change
from nanolimit.dashboard.request import (
    BodyTooLargeError,
    ClientGoneError,
    Request,
    body_of,
    form_value,
)
from nanolimit.dashboard.response import NO_STORE, SECURITY, Response, json_of, redirect, text
from nanolimit.dashboard.sampler import Sampler
from nanolimit.dashboard.shutdown import is_stopping
from nanolimit.errors import NanolimitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanolimit.dashboard.access import Access
    from nanolimit.dashboard.request import Receive, Scope, Send
    from nanolimit.dashboard.source import Source

_logger = logging.getLogger("nanolimit")

# Streams that are open at a time. Each costs a message a second; who opens more has gone astray.
MAX_STREAMS = 100

_HTML = b"text/html; charset=utf-8"
_SCRIPT = b"text/javascript; charset=utf-8"
_STYLE = b"text/css; charset=utf-8"
# Where a file lies in the package, and what it is. All of them are public: they tell nothing.
_FILES = {
    "/app.js": ("page/app.js", _SCRIPT),
    "/style.css": ("page/style.css", _STYLE),
    "/icon.svg": ("page/icon.svg", b"image/svg+xml"),
    "/uplot.js": ("uplot/uplot.js", _SCRIPT),
    "/uplot.css": ("uplot/uplot.css", _STYLE),
}
_READ = ("GET", "HEAD")
_PATHS = {
    "/": _READ,
    **dict.fromkeys(_FILES, _READ),
    "/events": _READ,
    "/data.json": _READ,
    "/reset": ("POST",),
    "/login": ("POST",),
    "/logout": ("POST",),
}
_ONWARD = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=./">
<title>nanolimit</title><p><a href="./">To the dashboard</a></p></html>
"""
_WHO_ARE_YOU = (b"www-authenticate", b'Bearer realm="nanolimit dashboard"')


class Dashboard:
    """The application that `nanolimit.dashboard.app` returns. Mount it, or give it to a server."""

    def __init__(self, sources: Sequence[Source], access: Access) -> None:
        self._sources = sources
        self._access = access
        self._sampler = Sampler(sources, {"token": access.needs_token})
        self._streams = 0
        self._stopped = False
        package = files("nanolimit.dashboard")
        self._page = package.joinpath("page/index.html").read_bytes()
        self._login_page = package.joinpath("page/login.html").read_bytes()
        self._files = {
            path: (package.joinpath(place).read_bytes(), content_type)
            for path, (place, content_type) in _FILES.items()
        }

    def __repr__(self) -> str:
        names = ", ".join(repr(source.name) for source in self._sources)
        guard = "a token" if self._access.needs_token else "no token"
        return f"<{type(self).__name__} of {names}, {guard}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            return await self._live(receive, send)
        if kind == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008, "reason": ""})
        if kind != "http":
            raise ValueError(f"the dashboard answers http, not {kind!r}")
        request = Request(scope)
        if request.path == "/events" and request.method == "GET":
            if (refused := self._refused(request)) is not None:
                return await refused.send(send, head=False)
            return await self._stream(receive, send)
        try:
            response = await self._respond(request, receive)
        except ClientGoneError:
            return None
        return await response.send(send, head=request.method == "HEAD")

    async def _live(self, receive: Receive, send: Send) -> None:
        """Follow the server from its start to its end: only then is the past complete."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._stopped = False
                self._sampler.keep()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self._stopped = True
                self._sampler.stop()
                return await send({"type": "lifespan.shutdown.complete"})

    def _refused(self, request: Request) -> Response | None:
        """Return the answer to a request that gets nothing of what it asks for."""
        said = self._access.refusal(request)
        if said is not None:
            return text(403, said)
        methods = _PATHS.get(request.path)
        if methods is None:
            return text(404, "There is no such page.")
        if request.method not in methods:
            allow = (b"allow", ", ".join(methods).encode())
            return text(405, f"Only {' and '.join(methods)} here.", allow)
        if request.path in self._files or request.path == "/login":
            return None
        if not self._access.admits(request):
            if request.path == "/":
                return self._login(401, b"")
            return text(401, "The token is missing or wrong.", _WHO_ARE_YOU)
        return None

    async def _respond(self, request: Request, receive: Receive) -> Response:
        path = request.path
        if not path and self._access.refusal(request) is None:
            # Without its last slash, the page's relative addresses would lead beside the mount.
            return redirect(308, _last_part(request))
        given = request.query("token") if path == "/" else None
        if given is not None and request.method in _READ and self._access.needs_token:
            return self._sign_in(request, given)
        refused = self._refused(request)
        if refused is not None:
            return refused
        if path == "/":
            return Response(200, _HTML, self._page, [NO_STORE])
        if path == "/data.json":
            return Response(200, b"application/json", self._sampler.snapshot(), [NO_STORE])
        if path == "/events":
            return Response(200, fields=_STREAM_FIELDS)  # to a HEAD
        if path == "/reset":
            return await self._reset(request, receive)
        if path == "/login":
            return await self._sign_in_by_form(request, receive)
        if path == "/logout":
            if not is_own_change(request):
                return _not_ours()
            return Response(204, fields=[self._access.no_cookie(request), NO_STORE])
        return self._file(request)

    def _file(self, request: Request) -> Response:
        content, content_type = self._files[request.path]
        # Asked for anew each time, and sent only if it changed: with the package's version.
        tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
        fields = [(b"etag", tag.encode()), (b"cache-control", b"no-cache")]
        if request.header(b"if-none-match") == tag:
            return Response(304, fields=fields)
        return Response(200, content_type, content, fields)

    def _login(self, status: int, said: bytes) -> Response:
        page = self._login_page.replace(b"<!-- said -->", said)
        return Response(status, _HTML, page, [NO_STORE, _WHO_ARE_YOU])

    def _sign_in(self, request: Request, given: str) -> Response:
        said = self._access.refusal(request)
        if said is not None:
            return text(403, said)
        if not self._access.is_token(given):
            return self._login(401, b"That token is not the right one.")
        # To the page's own address: the one with the token should stay in no history.
        cookie = self._access.cookie(request)
        if request.header(b"sec-fetch-site") in ("cross-site", "same-site"):
            # A link in a chat. A strict cookie does not go along with a redirect of such a visit,
            # but with one that the page itself asks for.
            return Response(200, _HTML, _ONWARD, [NO_STORE, cookie])
        return redirect(303, "./", cookie)

    async def _sign_in_by_form(self, request: Request, receive: Receive) -> Response:
        if not self._access.needs_token:
            return redirect(303, "./")
        if _content_type(request) != "application/x-www-form-urlencoded":
            return text(415, "A login is a form: application/x-www-form-urlencoded.")
        try:
            body = await body_of(receive)
        except BodyTooLargeError:
            return text(413, "That is no login.")
        given = form_value(body, "token")
        if given is None:
            return text(400, "A login has one field: token.")
        return self._sign_in(request, given)

    async def _reset(self, request: Request, receive: Receive) -> Response:
        if not is_own_change(request):
            return _not_ours()
        if _content_type(request) != "application/json":
            return _problem(415, "A reset is application/json.")
        try:
            asked = json.loads(await body_of(receive))
            place, entry_id = asked["limiter"], asked["id"]
        except BodyTooLargeError:
            return _problem(413, "That is no reset.")
        except (ValueError, KeyError, TypeError, RecursionError):
            return _problem(400, 'A reset is {"limiter": number, "id": text}.')
        if type(place) is not int or type(entry_id) is not str:
            return _problem(400, 'A reset is {"limiter": number, "id": text}.')
        if not 0 <= place < len(self._sources):
            return _problem(404, "There is no such limiter.")
        source = self._sources[place]
        if not source.can_reset:
            return _problem(409, "This limiter is only looked at from here: it can't be reset.")
        try:
            found = source.find(entry_id)
            if found is None:
                return _problem(404, "The key is no longer among the top offenders.")
            # Of a shared table it may wait for a process that was stopped: not in the loop.
            there = await asyncio.to_thread(source.reset, found[0])
        except NanolimitError as error:
            return _problem(409, str(error))
        _logger.info(
            "dashboard: key %r of limiter %r was reset by %s",
            found[0], source.name, request.peer or "a local client",
        )  # fmt: skip
        return json_of(200, {"reset": there})

    async def _stream(self, receive: Receive, send: Send) -> None:
        """Send the state once a second, until the client goes or the server ends."""
        if self._streams >= MAX_STREAMS:
            busy = text(503, f"{MAX_STREAMS} pages are open already.", (b"retry-after", b"5"))
            return await busy.send(send, head=False)
        self._streams += 1
        tasks = [asyncio.ensure_future(self._pump(send)), asyncio.ensure_future(_left(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._streams -= 1
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            # A server may say by an OSError that nobody is there to be sent to.
            if isinstance(end, Exception) and not isinstance(end, OSError):
                raise end
        return None

    async def _pump(self, send: Send) -> None:
        sampler = self._sampler
        fields = [(b"content-type", b"text/event-stream; charset=utf-8"), *SECURITY]
        await send(
            {"type": "http.response.start", "status": 200, "headers": fields + _STREAM_FIELDS}
        )
        # Comes back after a second; and the past, which the page has not seen.
        head = b"retry: 1000\nevent: history\ndata: " + sampler.history() + b"\n\n"
        while not (self._stopped or is_stopping()):
            event = head + b"event: now\ndata: " + sampler.snapshot() + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})
            head = b""
            await sampler.next()
        await send({"type": "http.response.body", "body": head})


# A stream is kept by no cache and held back by no proxy (nginx collects answers otherwise).
_STREAM_FIELDS = [NO_STORE, (b"x-accel-buffering", b"no")]


async def _left(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _last_part(request: Request) -> str:
    return quote(request.scope["path"].rpartition("/")[2]) + "/"


def _content_type(request: Request) -> str:
    return (request.header(b"content-type") or "").partition(";")[0].strip().lower()


def _problem(status: int, said: str) -> Response:
    return json_of(status, {"error": said})


def _not_ours() -> Response:
    return _problem(
        403,
        f"A change is asked for by the dashboard's own page, with the header "
        f"{CHANGE_HEADER.decode()}.",
    )
