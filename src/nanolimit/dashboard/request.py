"""An HTTP request, read from its ASGI scope as far as the dashboard needs it."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

# What a body of ours has at most: a login or a reset is far below it.
MAX_BODY_BYTES = 4096
# More fields than a form of ours has.
_MAX_FIELDS = 8


class BodyTooLargeError(Exception):
    """The body has more than MAX_BODY_BYTES."""


class ClientGoneError(Exception):
    """The client went away before its request was whole."""


class Request:
    """What a request asks for. Immutable."""

    __slots__ = ("_headers", "mount", "path", "scope")

    def __init__(self, scope: Scope) -> None:
        self.scope: Scope = scope
        self._headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            self._headers.setdefault(bytes(name).lower(), []).append(bytes(value))
        path: str = scope["path"]
        root: str = scope.get("root_path", "").rstrip("/")
        if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("/", ""):
            path = path[len(root) :]
        self.path: str = path
        """The path within the dashboard; empty where the mount's last slash is missing."""
        self.mount: str = f"{root}/" if root else "/"
        """The path of the page, as far as the server knows it."""

    @property
    def method(self) -> str:
        """GET, POST, ..."""
        return str(self.scope["method"])

    @property
    def secure(self) -> bool:
        """Whether the client speaks https, as far as the server knows it."""
        return bool(self.scope.get("scheme") == "https")

    @property
    def peer(self) -> str | None:
        """The client's address; None of a Unix socket, or if the server does not say."""
        client = self.scope.get("client")
        return str(client[0]) if client else None

    def header(self, name: bytes) -> str | None:
        """Return the one field of this name; None if there is none, or more than one."""
        values = self._headers.get(name, ())
        return values[0].decode("latin-1") if len(values) == 1 else None

    def has(self, name: bytes) -> bool:
        """Say whether there is a field of this name."""
        return name in self._headers

    def query(self, name: str) -> str | None:
        """Return the one value of this name in the query."""
        return _one(scope_bytes(self.scope.get("query_string", b"")), name)

    def cookie(self, name: str) -> str | None:
        """Return the cookie of this name."""
        for field in self._headers.get(b"cookie", ()):
            # One that a neighbour set badly must not hide ours: each is read for itself.
            for pair in field.decode("latin-1").split(";"):
                if pair.partition("=")[0].strip() != name:
                    continue
                try:
                    return SimpleCookie(pair)[name].value
                except (CookieError, KeyError):
                    continue
        return None


def scope_bytes(value: bytes | str) -> bytes:
    """Return a query string as bytes: some servers give a str."""
    return value.encode("latin-1", "replace") if isinstance(value, str) else bytes(value)


def _one(encoded: bytes, name: str) -> str | None:
    try:
        fields = parse_qs(
            encoded.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_FIELDS
        )
    except ValueError:
        return None
    values = fields.get(name, ())
    return values[0] if len(values) == 1 else None


def form_value(body: bytes, name: str) -> str | None:
    """Return the one value of this name in a form."""
    return _one(body, name)


async def body_of(receive: Receive) -> bytes:
    """Read a request's body.

    Raises:
        BodyTooLargeError: It is larger than any that we ask for; the rest was not read.
        ClientGoneError: The client went away meanwhile.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLargeError
        if not message.get("more_body", False):
            return bytes(body)
