"""Whose request it is: ready-made key functions.

A key function takes a request and returns a key. A request is an ASGI scope, a WSGI environ, or a
framework's request object around one of them (Starlette's and FastAPI's, Flask's, Django's): the
ones that stand here take all of these, so that a rule can be moved from one to the other.

A client can't choose its own key by what `client_ip` and `user` look at. What `header` looks at it
can: see there.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any

from nanolimit.clock import shown
from nanolimit.integrations.address import (
    UNKNOWN,
    InvalidRequestError,
    address_of,
    key_of_host,
    network_of,
    nodes_of_forwarded,
    nodes_of_list,
    peer_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nanolimit.limiter import Key

    KeyFunction = Callable[[Any], Key]

__all__ = ["InvalidRequestError", "client_ip", "combine", "header", "user"]

_FORWARDED = ("forwarded", "x-forwarded-for")
_MOST_HOPS = 64  # more proxies in a row than anybody has


def mapping_of(request: Any) -> Mapping[str, Any]:
    """Return the scope or environ of a request, which may be one itself.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(request, dict):
        return request
    for name in ("scope", "META", "environ"):
        found = getattr(request, name, None)
        if isinstance(found, dict):
            return found
    raise TypeError(
        f"no ASGI scope, no WSGI environ and no request that has one: {type(request).__name__}"
    )


def header_values(request: Mapping[str, Any], name: str) -> list[str]:
    """Return the values of a header, named in lower case; a WSGI server has joined them by now."""
    headers = request.get("headers")
    if headers is not None:
        raw = name.encode("latin-1")
        return [value.decode("latin-1") for field, value in headers if field.lower() == raw]
    value = request.get("HTTP_" + name.upper().replace("-", "_"))
    return [] if value is None else [value]


def _peer(request: Mapping[str, Any]) -> str:
    """Return the host at the other end of the connection, '' if the server does not know it."""
    if "REQUEST_METHOD" in request:
        return request.get("REMOTE_ADDR") or ""
    client = request.get("client")
    return (client[0] or "") if client else ""


class _ClientIP:
    """What `client_ip` makes."""

    __slots__ = (
        "_direct", "_header", "_hops", "_ipv4_prefix", "_ipv6_prefix", "_networks", "_unix",
    )  # fmt: skip

    def __init__(
        self,
        trusted_proxies: Iterable[str | IPv4Network | IPv6Network] | int,
        header: Any,
        ipv4_prefix: Any,
        ipv6_prefix: Any,
    ) -> None:
        self._hops = 0
        self._networks: list[IPv4Network | IPv6Network] = []
        self._unix = False
        if isinstance(trusted_proxies, (bool, str, bytes)):
            raise TypeError(
                "trusted_proxies must be a list of networks such as ['10.0.0.0/8'], or how many "
                f"proxies there are, not {shown(trusted_proxies)}"
            )
        if isinstance(trusted_proxies, int):
            if not 0 <= trusted_proxies <= _MOST_HOPS:
                raise ValueError(
                    f"trusted_proxies must be from 0 to {_MOST_HOPS}, not {trusted_proxies}"
                )
            self._hops = trusted_proxies
        else:
            for proxy in trusted_proxies:
                if proxy == "unix":
                    self._unix = True
                    continue
                try:
                    self._networks.append(ip_network(proxy))
                except ValueError as error:
                    raise ValueError(
                        f"trusted_proxies must hold addresses, networks or 'unix': {error}"
                    ) from None
        if header is not None and (not isinstance(header, str) or header.lower() not in _FORWARDED):
            raise ValueError(
                f"header must be 'Forwarded', 'X-Forwarded-For' or None, not {shown(header)}"
            )
        self._header = None if header is None else header.lower()
        for parameter, bits, most in (
            ("ipv4_prefix", ipv4_prefix, 32),
            ("ipv6_prefix", ipv6_prefix, 128),
        ):
            if not isinstance(bits, int) or isinstance(bits, bool):
                raise TypeError(f"{parameter} must be an int, not {type(bits).__name__}")
            if not 1 <= bits <= most:
                raise ValueError(f"{parameter} must be from 1 to {most} bits, not {bits}")
        self._ipv4_prefix = ipv4_prefix
        self._ipv6_prefix = ipv6_prefix
        self._direct = not (self._hops or self._networks or self._unix)

    def __call__(self, request: Any) -> str:
        fields = request if isinstance(request, dict) else mapping_of(request)
        host = _peer(fields)
        if self._direct:
            return key_of_host(host, self._ipv4_prefix, self._ipv6_prefix)
        peer = peer_of(host)
        if not self._trusts(peer, 0):
            return self._key(peer, host)
        chosen = None
        for name in _FORWARDED if self._header is None else (self._header,):
            values = header_values(fields, name)
            if values:
                nodes = (nodes_of_forwarded if name == "forwarded" else nodes_of_list)(
                    ",".join(values)
                )
                found = self._key(self._client(nodes, peer), host)
                # A proxy that writes one of the two lets the client write the other.
                if chosen is not None and found != chosen:
                    raise InvalidRequestError(
                        "Forwarded and X-Forwarded-For name two different clients; say which one "
                        "the proxies write: client_ip(header='X-Forwarded-For')"
                    )
                chosen = found
        return self._key(peer, host) if chosen is None else chosen

    def _client(
        self, nodes: list[str], peer: IPv4Address | IPv6Address | None
    ) -> IPv4Address | IPv6Address | None:
        """Follow the proxies from the last one back to the first address that none of them has.

        Each node was written by the hop that stands behind it, so it is believed if that one is.
        """
        address = peer
        for hop, node in enumerate(reversed(nodes)):
            if not self._trusts(address, hop):
                break
            if hop == _MOST_HOPS:
                raise InvalidRequestError(f"more than {_MOST_HOPS} proxies in a row")
            before = address_of(node)
            if before is None:  # it does not say for whom it works: then it is its own request
                break
            address = before
        return address

    def _trusts(self, address: IPv4Address | IPv6Address | None, hop: int) -> bool:
        if hop < self._hops:
            return True
        if address is None:
            return self._unix  # only the peer itself: what proxies write has an address
        return any(address in network for network in self._networks)

    def _key(self, address: IPv4Address | IPv6Address | None, host: str) -> str:
        if address is None:
            return host or UNKNOWN
        return network_of(address, self._ipv4_prefix, self._ipv6_prefix)

    def __repr__(self) -> str:
        return "client_ip(...)"


def client_ip(
    trusted_proxies: Iterable[str | IPv4Network | IPv6Network] | int = (),
    *,
    header: str | None = None,
    ipv4_prefix: int = 32,
    ipv6_prefix: int = 64,
) -> KeyFunction:
    """Limit by the client's address; behind proxies, by the address that a trusted one names.

    Without `trusted_proxies` it is the address of whoever connects: behind a proxy that is the
    proxy, and all its clients together have one limit. With it, Forwarded (RFC 7239) and
    X-Forwarded-For are read from their end: each entry is believed if the hop that wrote it is
    trusted, and the first address that is not a trusted proxy's is the client. What the client
    itself wrote into these headers stands before that, and is not looked at.

    An IPv6 client has a whole network of addresses to choose from and counts as that; an IPv4
    address that is mapped into IPv6 counts as the IPv4 one. Peers without any address, as behind a
    Unix socket that is not trusted, are one client together: ``"unknown"``.

    A forwarding header of a trusted proxy that can't be read, or two that contradict each other,
    raise `InvalidRequestError`: the request is answered 400. It costs a microsecond or two.

    Args:
        trusted_proxies: Their addresses and networks (``["10.0.0.0/8", "::1"]``; ``"unix"``: who
            connects by a Unix socket), or how many proxies stand in front, for those whose
            addresses are not known beforehand. Trust no network that clients are in.
        header: Which of the two headers the proxies write, ``"Forwarded"`` or
            ``"X-Forwarded-For"``. None: either; if both are there they must agree.
        ipv4_prefix, ipv6_prefix: Bits of an address that make a client.

    Raises:
        ValueError: No network, no such header, no such number of bits.
        TypeError: `trusted_proxies` is a single string.
    """
    return _ClientIP(trusted_proxies, header, ipv4_prefix, ipv6_prefix)


_address = _ClientIP((), None, 32, 64)


class _Header:
    """What `header` makes."""

    __slots__ = ("_missing", "_name")

    def __init__(self, name: str, missing: KeyFunction) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name must be a header's name as a str, not {type(name).__name__}")
        if not name or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"name must be a header's name such as 'X-API-Key', not {shown(name)}")
        self._name = name.lower()
        self._missing: KeyFunction = _callable("missing", missing)

    def __call__(self, request: Any) -> Key:
        values = header_values(mapping_of(request), self._name)
        if len(values) > 1:
            # One of them the application reads, the other would be the key.
            raise InvalidRequestError(f"the header {self._name} stands in the request twice")
        if not values or not values[0]:
            return self._missing(request)
        return f"{self._name}={values[0]}"

    def __repr__(self) -> str:
        return f"header({self._name!r})"


def header(name: str, missing: KeyFunction = _address) -> KeyFunction:
    """Limit by the value of a header, such as an API key.

    The client writes it: who may send any value has a fresh limit with each. Use it behind
    something that refuses unknown values, or together with the address, both as rules of their
    own. A header that stands there twice is answered 400.

    Args:
        name: The header's name, in any case.
        missing: The key function for requests without it; by default the client's address.

    Raises:
        ValueError: It is no header's name.
    """
    return _Header(name, missing)


class _User:
    """What `user` makes."""

    __slots__ = ("_anonymous",)

    def __init__(self, anonymous: KeyFunction) -> None:
        self._anonymous: KeyFunction = _callable("anonymous", anonymous)

    def __call__(self, request: Any) -> Key:
        fields = mapping_of(request)
        found = None
        if request is not fields and "user" not in fields:
            try:
                found = getattr(request, "user", None)
            except AssertionError:  # Starlette's, where nothing logs in
                pass
        if found is None:
            found = fields.get("user") or fields.get("REMOTE_USER")
        if not found or not getattr(found, "is_authenticated", True):
            return self._anonymous(request)
        if isinstance(found, (str, int)):
            return f"user={found}"
        for name in ("pk", "id", "identity", "username", "display_name"):
            try:
                identity = getattr(found, name, None)
            except NotImplementedError:  # as of Starlette's BaseUser
                continue
            if identity is not None:
                return f"user={identity}"
        raise TypeError(
            f"a user of type {type(found).__name__} has no pk, id, identity, username or "
            "display_name; give a key function of your own"
        )

    def __repr__(self) -> str:
        return "user()"


def user(anonymous: KeyFunction = _address) -> KeyFunction:
    """Limit by the user who is logged in, by whatever logs in: it must stand outside of this.

    That is the scope's ``user`` (Starlette's AuthenticationMiddleware), ``request.user`` (Django)
    or ``REMOTE_USER`` (WSGI). Users are told apart by ``pk``, ``id``, ``identity``, ``username`` or
    ``display_name``, the first that there is.

    Args:
        anonymous: The key function for requests without a user; by default the client's address.
    """
    return _User(anonymous)


class _Combined:
    """What `combine` makes."""

    __slots__ = ("_keys",)

    def __init__(self, keys: tuple[KeyFunction, ...]) -> None:
        if not keys:
            raise TypeError("combine needs at least one key function")
        self._keys = tuple(_callable("each argument of combine", key) for key in keys)

    def __call__(self, request: Any) -> Key:
        parts = []
        for key in self._keys:
            part = key(request)
            if part is None:
                raise TypeError(f"the key function {key!r} returned None")
            parts.append(part)
        return tuple(parts)

    def __repr__(self) -> str:
        return f"combine({', '.join(map(repr, self._keys))})"


def combine(*keys: KeyFunction) -> KeyFunction:
    """Limit by several at once: ``combine(user(), header("X-Tenant"))`` has a limit per pair.

    That is one limit for each combination. For a limit per user *and* one per address use two
    rules in two middlewares, or `nanolimit.check_all`.
    """
    return _Combined(keys)


def asks_user(key: Any) -> bool:
    """Say whether a key function looks for the user, who may have to be awaited."""
    if isinstance(key, _Combined):
        return any(map(asks_user, key._keys))
    return isinstance(key, _User) or (isinstance(key, _Header) and asks_user(key._missing))


def _callable(parameter: str, value: Any) -> Any:
    if not callable(value):
        raise TypeError(
            f"{parameter} must be a key function such as client_ip(), not {shown(value)}"
        )
    return value
