"""Who may see the dashboard: hosts, the token, and where a change may come from."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nanolimit.clock import shown

if TYPE_CHECKING:
    from nanolimit.dashboard.request import Request

# A page of another origin can't set it without asking first (CORS), and is never told yes.
CHANGE_HEADER = b"x-nanolimit"

_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via")


class Access:
    """Decides on requests. Immutable, safe from any thread.

    Args:
        token: As `nanolimit.dashboard.app`.
        allowed_hosts: As `nanolimit.dashboard.app`.
    """

    def __init__(self, token: str | None, allowed_hosts: Iterable[str] | None) -> None:
        _check_token(token)
        self._hosts = _checked_hosts(allowed_hosts)
        self._secret = None if token is None else token.encode("ascii")
        secret = self._secret or b""
        # Cookies know no ports: dashboards of other tokens on this host have other names.
        self.cookie_name: str = (
            f"nanolimit_{hmac.digest(secret, b'cookie name', 'sha256')[:4].hex()}"
        )
        # Not the token itself: who reads a browser's cookies doesn't learn what opens the API.
        self._session = hmac.digest(secret, b"session", "sha256").hex()

    @property
    def needs_token(self) -> bool:
        """Whether there is a token to know."""
        return self._secret is not None

    def refusal(self, request: Request) -> str | None:
        """Say why a request's host is not answered; None if it is."""
        host = _host_name(request.header(b"host"))
        if self._hosts is not None:
            if "*" in self._hosts or host in self._hosts:
                return None
            return f"This dashboard does not answer to the host {shown(host)}; see allowed_hosts."
        if self.needs_token:
            return None
        # Without a token, being on this machine is what entitles. A page of the web that had its
        # own name point here (DNS rebinding) comes with that name; others come from elsewhere.
        if not is_loopback_name(host):
            return (
                f"Without a token this dashboard answers to localhost only, not to {shown(host)}. "
                "Give dashboard.app() a token, or allowed_hosts if you guard it yourself."
            )
        if any(map(request.has, _FORWARDED)) or not _is_loopback_peer(request.peer):
            return (
                "Without a token this dashboard answers to this machine only, and to no proxy. "
                "Give dashboard.app() a token, or allowed_hosts if you guard it yourself."
            )
        return None

    def admits(self, request: Request) -> bool:
        """Say whether a request brings the token, or the cookie that was given for it."""
        if self._secret is None:
            return True
        scheme, _, given = (request.header(b"authorization") or "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return True
        session = request.cookie(self.cookie_name)
        return session is not None and _same(session.encode("latin-1"), self._session.encode())

    def is_token(self, given: str | None) -> bool:
        """Compare in a time that does not tell how much of it is right, nor how long it is."""
        if self._secret is None or given is None:
            return False
        return _same(given.encode("utf-8", "surrogatepass"), self._secret)

    def cookie(self, request: Request) -> tuple[bytes, bytes]:
        """Return the header field that signs a browser in, until it is closed."""
        return self._set_cookie(request, self._session, "")

    def no_cookie(self, request: Request) -> tuple[bytes, bytes]:
        """Return the header field that signs a browser out."""
        return self._set_cookie(request, "", "; Max-Age=0")

    def _set_cookie(self, request: Request, value: str, more: str) -> tuple[bytes, bytes]:
        # A path is quoted by no rule of cookies: one that could end the attribute stays out.
        path = request.mount
        if not path.isascii() or not path.isprintable() or ";" in path or "," in path:
            path = "/"
        secure = "; Secure" if request.secure else ""
        text = f"{self.cookie_name}={value}; Path={path}; HttpOnly; SameSite=Strict{secure}{more}"
        return b"set-cookie", text.encode("ascii")


def is_own_change(request: Request) -> bool:
    """Say whether a request that changes something comes from our page, or from no page at all."""
    if request.header(CHANGE_HEADER) is None:
        return False
    site = request.header(b"sec-fetch-site")
    if request.has(b"sec-fetch-site"):
        return site == "same-origin"  # a browser's word, which no page can change
    if not request.has(b"origin"):
        return True  # no browser: those send an Origin with every POST
    scheme, separator, host = (request.header(b"origin") or "").partition("://")
    # Without the scheme: a proxy in front may speak https where we see http.
    return bool(
        separator and scheme in ("http", "https") and host.lower() == _lower(request, b"host")
    )


def _lower(request: Request, name: bytes) -> str | None:
    value = request.header(name)
    return None if value is None else value.lower()


def _same(given: bytes, wanted: bytes) -> bool:
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(wanted).digest())


def _host_name(host: str | None) -> str | None:
    """The name in a Host field: without port and brackets, in lower case."""
    if host is None:
        return None
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_loopback_name(name: str | None) -> bool:
    """Say whether a host's name can only mean this machine."""
    if name is None:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_loopback_peer(peer: str | None) -> bool:
    if not peer or peer.startswith("/"):
        return True  # a Unix socket, which some servers name by its path
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _check_token(token: object) -> None:
    """Raise for what is no token. The message never has it: it may end up in a log."""
    if token is None:
        return
    if not isinstance(token, str):
        raise TypeError(f"token must be a str or None, not {type(token).__name__}")
    if not token:
        raise ValueError(
            "token is empty: give a long random text, such as secrets.token_urlsafe(32) returns; "
            "or leave it out, and only this machine is answered"
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(
            "token must be printable ASCII without spaces, to fit into a header field: "
            "secrets.token_urlsafe(32) returns such a text"
        )


def _checked_hosts(hosts: object) -> frozenset[str] | None:
    if hosts is None:
        return None
    if isinstance(hosts, (str, bytes)) or not isinstance(hosts, Iterable):
        raise TypeError(
            f"allowed_hosts must be a list of names such as ['limits.example.com'], "
            f"not {type(hosts).__name__}"
        )
    names = list(hosts)
    if not names:
        raise ValueError("allowed_hosts is empty: nobody could see the dashboard; leave it out")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"allowed_hosts must hold strs, not {type(name).__name__}")
        plain = name.strip("[]")
        is_name = plain and not any(char in plain for char in "/ @,;") and plain.isprintable()
        if not is_name or (":" in plain and not _is_address(plain)):
            raise ValueError(
                f"allowed_hosts has {shown(name)}: write a host's name or address without scheme "
                f"and port, or '*'"
            )
    return frozenset(name.strip("[]").lower() for name in names)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
