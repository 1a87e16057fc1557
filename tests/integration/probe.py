"""A WSGI application that answers in every way that PEP 3333 has, behind the middleware.

`application` is what the tests run under gunicorn; `seen` tells them what became of iterables.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from nanolimit.integrations.wsgi import RateLimitMiddleware, Rule, header

Environ = dict[str, Any]
Start = Callable[..., Any]

FILE = b"0123456789" * 20_000
PIECES = 5
LIMIT = 3


class Closing:
    """An iterable that notes that it was closed."""

    def __init__(self, name: str, pieces: Iterable[bytes], fail: bool = False) -> None:
        self._name = name
        self._pieces = iter(pieces)
        self._fail = fail

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._fail:
            raise RuntimeError("broken off")
        return next(self._pieces)

    def close(self) -> None:
        closed[self._name] = closed.get(self._name, 0) + 1


closed: dict[str, int] = {}
TEXT = [("Content-Type", "text/plain")]


def plain(environ: Environ, start: Start) -> Iterable[bytes]:
    body = environ["REQUEST_METHOD"].encode()
    start("200 OK", [*TEXT, ("Content-Length", str(len(body)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def about(environ: Environ, start: Start) -> Iterable[bytes]:
    decision = environ.get("nanolimit.decision")
    body = json.dumps(
        {
            "pid": os.getpid(),
            "script": environ.get("SCRIPT_NAME", ""),
            "path": environ["PATH_INFO"].encode("latin-1").hex(),
            "peer": environ.get("REMOTE_ADDR"),
            "remaining": None if decision is None else decision.remaining,
            "closed": closed,
        }
    ).encode()
    start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def streaming(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", TEXT)
    return Closing("streaming", (b"piece %d\n" % nth for nth in range(PIECES)))


def late(environ: Environ, start: Start) -> Iterable[bytes]:
    """A generator: it calls `start` when its first piece is asked for."""
    start("200 OK", TEXT)
    yield b"late"


def written(environ: Environ, start: Start) -> Iterable[bytes]:
    write = start("200 OK", TEXT)
    write(b"written ")
    write(b"before ")
    return [b"returned"]


def file(environ: Environ, start: Start) -> Iterable[bytes]:
    wrapper = environ["wsgi.file_wrapper"]
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(FILE)))])
    return wrapper(io.BytesIO(FILE), 4096)  # type: ignore[no-any-return]


def changed(environ: Environ, start: Start) -> Iterable[bytes]:
    """An answer that is taken back before any of it was sent: `exc_info`."""
    start("200 OK", [*TEXT, ("Retry-After", "never sent")])
    try:
        raise ValueError("what went wrong")
    except ValueError:
        start("500 Internal Server Error", TEXT, sys.exc_info())
    return [b"changed"]


def broken(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", TEXT)
    return Closing("broken", [], fail=True)


ANSWERS = {
    "plain": plain,
    "about": about,
    "streaming": streaming,
    "late": late,
    "written": written,
    "file": file,
    "changed": changed,
    "broken": broken,
}


def probe(environ: Environ, start: Start) -> Iterable[bytes]:
    name = environ.get("PATH_INFO", "/").strip("/").partition("/")[0]
    return ANSWERS.get(name, about)(environ, start)


application = RateLimitMiddleware(
    probe,
    f"{LIMIT}/hour",
    header("X-User"),  # each test is a user; who says nothing is an address
    rules=[Rule("/about/**", "1000/hour"), Rule("/is-it-up", "1000/hour")],
)
