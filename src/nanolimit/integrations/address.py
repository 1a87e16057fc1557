"""Addresses of clients, as limits count them: an IPv4 address, or the network of an IPv6 one.

What proxies write about addresses is read here too: the nodes of Forwarded (RFC 7239) and
X-Forwarded-For.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from nanolimit.errors import NanolimitError

#: Whose address nobody knows: the peers of a Unix socket, all of them together.
UNKNOWN = "unknown"
_LONGEST = 64  # "[ffff:...:255.255.255.255%zone]:65535", and some


class InvalidRequestError(NanolimitError):
    """A request says of itself what can't be: whose it is, cannot be told. It is answered 400."""


def address_of(node: str) -> IPv4Address | IPv6Address | None:
    """Return the address in what a proxy wrote, None if it says that it does not know or tell.

    A port and a zone are left out; an IPv4 address that is mapped into IPv6 is an IPv4 address.

    Raises:
        InvalidRequestError: it is no address.
    """
    if len(node) > _LONGEST:
        raise InvalidRequestError(f"an address of {len(node)} characters in a forwarding header")
    return _address_of(node)


@lru_cache(maxsize=4096)
def _address_of(node: str) -> IPv4Address | IPv6Address | None:
    text = node.strip()
    if text.lower() == UNKNOWN or text.startswith("_"):
        return None
    if text.startswith("["):
        text, closed, port = text[1:].partition("]")
        if not closed or (port and not _PORT.fullmatch(port)):
            raise InvalidRequestError(f"{node!r} in a forwarding header is no address")
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _PORT.fullmatch(":" + port):
            raise InvalidRequestError(f"{node!r} in a forwarding header is no address")
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        raise InvalidRequestError(f"{node!r} in a forwarding header is no address") from None
    return _unmapped(address)


# RFC 7239, 6: digits, or an obfuscated one
_PORT = re.compile(r":(?:[0-9]{1,5}|_[A-Za-z0-9._-]+)")


def _unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@lru_cache(maxsize=4096)
def peer_of(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address of the other end of a connection, None where it has none."""
    try:
        return _unmapped(ip_address(host.partition("%")[0]))
    except ValueError:
        return None


@lru_cache(maxsize=65_536)
def network_of(address: IPv4Address | IPv6Address, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """Return the key of an address: itself, or the network around it as ``2001:db8::/64``."""
    bits = ipv4_prefix if address.version == 4 else ipv6_prefix
    if bits == address.max_prefixlen:
        return str(address)
    return str(ip_network((address, bits), strict=False))


@lru_cache(maxsize=65_536)
def key_of_host(host: str, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """Return the key of the other end of a connection.

    Who has no address has a name: "unknown" (a Unix socket), or what a test gives.
    """
    address = peer_of(host)
    return host or UNKNOWN if address is None else network_of(address, ipv4_prefix, ipv6_prefix)


# RFC 7239, 4. Colons and brackets belong into quotes there; proxies are seen to leave these out.
_PAIR = re.compile(
    r"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:([!#$%&'*+.^_`|~0-9A-Za-z:\[\]-]+)"
    r'|"((?:[^"\\]|\\.)*)")[ \t]*'
)
_GAP = re.compile(r"[ \t,]*")


def nodes_of_forwarded(value: str) -> list[str]:
    """Return who each proxy says it works for, in the order of the header: RFC 7239.

    The whole is read from its beginning and must be right: in ``for="1.2.3.4, for=5.6.7.8`` a
    client left a quote open to swallow what a proxy wrote behind it.

    Raises:
        InvalidRequestError: it does not follow the grammar.
    """
    nodes: list[str] = []
    at, end = _GAP.match(value).end(), len(value)  # type: ignore[union-attr]
    while at < end:
        node = None
        while True:
            pair = _PAIR.match(value, at)
            if pair is None:
                raise InvalidRequestError("a Forwarded header that does not follow RFC 7239")
            at = pair.end()
            if pair[1].lower() == "for":
                if node is not None:
                    raise InvalidRequestError("a Forwarded header that says `for` twice in one hop")
                quoted = pair[3]
                node = pair[2] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            if at >= end or value[at] != ";":
                break
            at += 1
        nodes.append(UNKNOWN if node is None else node)
        if at < end and value[at] != ",":
            raise InvalidRequestError("a Forwarded header that does not follow RFC 7239")
        at = _GAP.match(value, at).end()  # type: ignore[union-attr]
    return nodes


def nodes_of_list(value: str) -> list[str]:
    """Return the addresses of an X-Forwarded-For, in its order."""
    return [node for node in (part.strip(" \t") for part in value.split(",")) if node]
