"""Answers of the dashboard, with the header fields that keep a browser on a short lead."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanolimit.dashboard.request import Send

    Fields = list[tuple[bytes, bytes]]

# The page is built of files from its own host: nothing inline, nothing from elsewhere, and it can
# be put into no frame. Its script makes no HTML out of text, and Trusted Types say so.
_POLICY = b"; ".join(
    (
        b"default-src 'none'",
        b"script-src 'self'",
        b"style-src 'self'",
        b"img-src 'self'",
        b"connect-src 'self'",
        b"form-action 'self'",
        b"base-uri 'none'",
        b"frame-ancestors 'none'",
        b"require-trusted-types-for 'script'",
        b"trusted-types 'none'",
    )
)
SECURITY: Fields = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"x-robots-tag", b"noindex, nofollow"),
]
NO_STORE = (b"cache-control", b"no-store")


@dataclass(frozen=True)
class Response:
    """One whole answer."""

    status: int
    content_type: bytes = b"text/plain; charset=utf-8"
    content: bytes = b""
    fields: Fields = field(default_factory=list)
    """Besides those of `SECURITY`, type and length."""

    async def send(self, send: Send, *, head: bool) -> None:
        """Send it; without its content to a HEAD."""
        await send(
            {
                "type": "http.response.start",
                "status": self.status,
                "headers": [
                    *([(b"content-type", self.content_type)] if self.content else []),
                    (b"content-length", b"%d" % len(self.content)),
                    *SECURITY,
                    *self.fields,
                ],
            }
        )
        await send({"type": "http.response.body", "body": b"" if head else self.content})


def text(status: int, said: str, *fields: tuple[bytes, bytes]) -> Response:
    """Return an answer of one line."""
    return Response(status, content=f"{said}\n".encode(), fields=[NO_STORE, *fields])


def json_of(status: int, value: object) -> Response:
    """Return an answer that a script reads."""
    return Response(status, b"application/json", encoded(value), [NO_STORE])


def encoded(value: object) -> bytes:
    """Return JSON in ASCII on one line, whatever characters are in it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def redirect(status: int, where: str, *fields: tuple[bytes, bytes]) -> Response:
    """Return an answer that leads elsewhere, relative to the request's own address."""
    return Response(status, fields=[(b"location", where.encode("ascii")), NO_STORE, *fields])
