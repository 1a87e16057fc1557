"""What a given client or URL points to: how a connection to it is made."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from nanolimit.redis.cluster import Address

__all__ = ["Target", "target_of"]

Style = Literal["sync", "async"]

# These belong to the client's own pool: its retries above all, which would run a script twice;
# listeners for what the server pushes; and a cache.
_NOT_OURS = (
    "retry", "health_check", "maint", "oss_cluster_maint", "orig_", "event_dispatcher", "cache",
    "himport", "parser_class", "decode_responses", "legacy_responses", "response_callbacks",
    "max_connections",
)  # fmt: skip
# A connection is made beside the calls that wait for it: they leave when their time is up, it may
# take longer than that.
_CONNECT_S = 1.0


class Target(NamedTuple):
    """How to connect."""

    # The class of the client library that makes connections, and what it is given.
    connection_class: Callable[..., Any]
    kwargs: Mapping[str, Any]
    # Nodes of a cluster to begin with; of one server, its only address.
    seeds: tuple[Address, ...]
    clustered: bool
    # What a cluster's node calls itself -> where it is reached from here.
    remap: Callable[[tuple[str, int]], tuple[str, int]] | None
    # For messages; without password.
    name: str
    # How many connections the client would make at most.
    max_connections: int
    # Kept alive: a Sentinel's connections ask the pool of their client where the master is.
    client: object

    def connection(self, address: Address | None) -> Any:
        """Return a connection object, not connected; to `address`, if one is given."""
        kwargs = dict(self.kwargs)
        if address is not None:
            kwargs["host"], kwargs["port"] = address
        return self.connection_class(**kwargs)


def target_of(client_or_url: object, style: Style, timeout_s: float) -> Target:
    """Return what a client or URL points to. Does no I/O.

    Args:
        client_or_url: A client of redis-py or valkey-py, or a URL.
        style: Which clients will do.
        timeout_s: Seconds that a call may take.

    Raises:
        TypeError: It is neither, or a client of the other style.
        ValueError: The URL is wrong.
        ImportError: A URL was given and no client library is installed.
    """
    if isinstance(client_or_url, str):
        return _of_url(client_or_url, style, timeout_s)
    kind = _kind(client_or_url)
    if kind is None:
        raise TypeError(_refusal(client_or_url, style))
    library, found, clustered = kind
    if found != style:
        raise TypeError(_of_other_style(client_or_url, library, style))
    if clustered:
        return _of_cluster(client_or_url, timeout_s)
    client: Any = client_or_url
    return _of_pool(client.connection_pool, client, timeout_s)


# Clients

# Where the classes live, below redis or valkey.
_KINDS: dict[tuple[str, str], tuple[Style, bool]] = {
    ("client", "Redis"): ("sync", False),
    ("client", "Valkey"): ("sync", False),
    ("asyncio.client", "Redis"): ("async", False),
    ("asyncio.client", "Valkey"): ("async", False),
    ("cluster", "RedisCluster"): ("sync", True),
    ("cluster", "ValkeyCluster"): ("sync", True),
    ("asyncio.cluster", "RedisCluster"): ("async", True),
    ("asyncio.cluster", "ValkeyCluster"): ("async", True),
}
_LIBRARIES = ("redis", "valkey")


def _kind(client: object) -> tuple[str, Style, bool] | None:
    """Library, style and "is it a cluster's"; None for what is no client."""
    for each in type(client).__mro__:
        library, _, module = each.__module__.partition(".")
        if library not in _LIBRARIES:
            continue
        if each.__name__.endswith("Pipeline"):
            return None  # below a client's class, but a list of commands
        kind = _KINDS.get((module, each.__name__))
        if kind is not None:
            return library, *kind
    return None


def _refusal(given: object, style: Style) -> str:
    names = [each.__name__ for each in type(given).__mro__]
    what = f"not {type(given).__name__}"
    if given is None:
        what = "not None"
    elif isinstance(given, bytes):
        what = f"not bytes: give the URL as str, {shown_url(given.decode('utf-8', 'replace'))}"
    elif isinstance(given, type):
        what = f"not the class {given.__name__}: make a client of it, {given.__name__}(...)"
    elif any(name.endswith("Pipeline") for name in names):
        what += ": give the client of which the pipeline was made"
    elif "Sentinel" in names:
        what += ": give the client of the master, sentinel.master_for('its name')"
    elif "ConnectionPool" in names:
        what += ": give a client, Redis(connection_pool=...)"
    return (
        f"client_or_url must be {_wanted(style)} of redis-py or valkey-py, or a URL such as "
        f"'redis://localhost:6379/0', {what}"
    )


def _wanted(style: Style) -> str:
    return "a client" if style == "sync" else "an asyncio client"


def _of_other_style(client: object, library: str, style: Style) -> str:
    name = type(client).__name__
    if style == "sync":
        return (
            f"client_or_url is {library}.asyncio's {name}, which only async code can use: give a "
            f"{library}.{name}, or use AsyncRedisRateLimiter"
        )
    return (
        f"client_or_url is {library}'s {name}, which would block the event loop: give a "
        f"{library}.asyncio.{name}, or use RedisRateLimiter"
    )


def _of_pool(pool: Any, client: object, timeout_s: float) -> Target:
    if pool.connection_class.__module__.partition(".")[0] == "fakeredis":
        raise TypeError(
            "client_or_url is a fakeredis client, which has no server: use nanolimit.RateLimiter "
            "in such tests, or a real server"
        )
    kwargs = pool.connection_kwargs
    if "path" in kwargs:
        name, address = str(kwargs["path"]), Address("localhost", 0)
    else:
        address = Address(str(kwargs.get("host", "localhost")), _port(kwargs.get("port", 6379)))
        name = str(address)
    if hasattr(pool, "service_name"):  # of a Sentinel
        name = f"the master of {pool.service_name!r}"
        if not pool.is_master:
            raise TypeError(
                f"client_or_url is a client of replicas of {pool.service_name!r}, which can't "
                f"count: give sentinel.master_for({pool.service_name!r})"
            )
    return Target(
        connection_class=pool.connection_class,
        kwargs=_ours(kwargs, timeout_s),
        seeds=(address,),
        clustered=False,
        remap=None,
        name=name,
        max_connections=pool.max_connections,
        client=client,
    )


def _port(port: Any) -> int:
    """Return the port of a client, which takes any; out of range, it would reach another one."""
    try:
        number = int(port)
    except (TypeError, ValueError):
        number = 0
    if not 1 <= number <= 65_535:
        raise ValueError(
            f"client_or_url is a client of the port {port!r}, and ports are from 1 to 65535"
        )
    return number


def _of_cluster(client: Any, timeout_s: float) -> Target:
    manager = client.nodes_manager
    nodes = [*manager.nodes_cache.values(), *manager.startup_nodes.values()]
    seeds = dict.fromkeys(Address(str(node.host), int(node.port)) for node in nodes)
    node = nodes[0]
    if hasattr(node, "connection_class"):  # asyncio
        connection_class, kwargs = node.connection_class, node.connection_kwargs
        most = node.max_connections
    else:
        # Each node has a client of its own, under the library's name.
        found = (
            getattr(each, f"{library}_connection", None) for each in nodes for library in _LIBRARIES
        )
        own = next((each for each in found if each is not None), None)
        if own is None:
            raise TypeError(f"client_or_url is a {type(client).__name__} that knows no nodes")
        pool = own.connection_pool
        connection_class, kwargs = pool.connection_class, pool.connection_kwargs
        most = pool.max_connections
    first = next(iter(seeds))
    return Target(
        connection_class=connection_class,
        kwargs=_ours(kwargs, timeout_s),
        seeds=tuple(seeds),
        clustered=True,
        remap=getattr(manager, "address_remap", None),
        name=f"the cluster of {first}",
        max_connections=most,
        client=client,
    )


def _ours(kwargs: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    own = {name: each for name, each in kwargs.items() if not name.startswith(_NOT_OURS)}
    limit_s = max(timeout_s, _CONNECT_S)
    own.update(socket_timeout=limit_s, socket_connect_timeout=limit_s, protocol=2)
    return own


# URLs

_SCHEMES = {
    "redis": ("redis", "valkey"),
    "rediss": ("redis", "valkey"),
    "unix": ("redis", "valkey"),
    "valkey": ("valkey",),
    "valkeys": ("valkey",),
}


def _of_url(url: str, style: Style, timeout_s: float) -> Target:
    scheme, divider, _ = url.partition("://")
    if not divider or scheme not in _SCHEMES:
        raise ValueError(
            f"client_or_url must be a client or a URL such as 'redis://localhost:6379/0', "
            f"'rediss://...' (TLS), 'unix:///path?db=0' or 'valkey://...', not {shown_url(url)}"
        )
    library = _library(scheme)
    try:
        _check_parts(url, scheme)
        module = importlib.import_module(f"{library}.asyncio" if style == "async" else library)
        pool = module.ConnectionPool.from_url(url)
        # What the URL asks for is looked at by the class of connections, not before.
        pool.connection_class(**_ours(pool.connection_kwargs, timeout_s))
    except (ValueError, TypeError) as error:
        raise ValueError(f"client_or_url {shown_url(url)} is no URL of a server: {error}") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _LIBRARIES:
            raise
        raise ValueError(f"client_or_url {shown_url(url)} can't be used: {error}") from None
    return _of_pool(pool, pool, timeout_s)


def _check_parts(url: str, scheme: str) -> None:
    """Refuse what the client library overlooks. A password is not told, nor a part of one."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        # It tells what it takes for a port.
        raise ValueError(_BROKEN if "@" in url else str(error)) from None
    if scheme == "unix":
        if parts.path in ("", "/"):
            raise ValueError("it names no path, as in 'unix:///run/redis.sock'")
        if parts.hostname:
            raise ValueError("the path begins with a third slash, as in 'unix:///run/redis.sock'")
        return
    if port == 0:
        raise ValueError("the port is 0")
    number = parts.path.strip("/")
    if "@" in number or "@" in parts.fragment:
        raise ValueError(_BROKEN)
    if number and not (number.isascii() and number.isdigit()):
        raise ValueError(f"the path is the number of a database, such as '/0', not {parts.path!r}")


_BROKEN = (
    "host and port are not understood (in user and password, '/' is written as %2F, '?' as %3F, "
    "'#' as %23, '[' as %5B)"
)


def _library(scheme: str) -> str:
    for library in _SCHEMES[scheme]:
        try:
            importlib.import_module(library)
        except ModuleNotFoundError as error:
            if error.name != library:
                raise
        else:
            return library
    wanted = _SCHEMES[scheme]
    raise ImportError(
        f"a URL {scheme}:// needs {' or '.join(wanted)}: pip install 'nanolimit[{wanted[0]}]'",
        name=wanted[0],
    )


def shown_url(url: str) -> str:
    """Return the repr of a URL without its password, also where it is not well-formed."""
    before, secret, where = url.rpartition("@")
    if secret:
        scheme, divider, _ = before.partition("://")
        url = f"{scheme if divider else ''}{divider}***@{where}"
    if "password" in url.casefold():
        url = url.partition("?")[0] + "?***"
    return repr(url if len(url) <= 200 else url[:199] + "…")


def checked_timeout(timeout_s: object) -> float:
    """Return seconds as a float.

    Raises:
        TypeError: It is no number.
        ValueError: It is not in (0, 3600].
    """
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)):
        raise TypeError(f"timeout_s must be a number of seconds, not {type(timeout_s).__name__}")
    if not (math.isfinite(timeout_s) and 0 < timeout_s <= 3600):
        raise ValueError(f"timeout_s must be above 0 and at most 3600 s, not {timeout_s!r}")
    return float(timeout_s)
