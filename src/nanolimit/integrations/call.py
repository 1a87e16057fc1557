"""A gRPC call as a rate limit sees it, and whose call it is.

A key function gets a `Call` and returns a key of the limiter. The ready ones are made by `peer`,
`metadata`, `user` and `combine`. Nothing here imports grpc: what a call's context has to offer is
asked of it by name.
"""

from __future__ import annotations

import re
from inspect import iscoroutinefunction
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from nanolimit.clock import shown
from nanolimit.quota import whole_number

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from typing import Protocol

    from nanolimit.limiter import Key

    KeyFunction = Callable[["Call"], "Key | None"]
    AsyncKeyFunction = Callable[["Call"], Awaitable["Key | None"]]
    AnyKeyFunction = KeyFunction | AsyncKeyFunction
    # What is made of others is what they are.
    AnyFunction = Callable[["Call"], Any]

    class Context(Protocol):
        """What is asked of grpc's ServicerContext."""

        def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...
        def peer(self) -> str: ...
        def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...
        def peer_identity_key(self) -> str | None: ...
        def peer_identities(self) -> Iterable[bytes] | None: ...


__all__ = ["Call", "InvalidCall", "combine", "metadata", "peer", "user"]

# gRPC over HTTP/2, "Custom-Metadata": what a name consists of. gRPC sends it in lower case.
_NAME = re.compile(r"[0-9a-z_.-]+")


class InvalidCall(ValueError):
    """A call that says no proper key. It ends with INVALID_ARGUMENT and this message.

    Key functions raise it. The client reads the message, so it tells no secrets. `on_key_error` has
    no say: a client that could pass by being wrong would have no limit.
    """


class Call:
    """One call, before its handler runs.

    Everything but the method is asked of grpc when it is read, so that a key function pays for what
    it uses.
    """

    __slots__ = ("_context", "method")

    #: The full name, ``/package.Service/Method``.
    method: str

    def __init__(self, method: str, context: Context) -> None:
        self.method = method
        self._context = context

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What the client sent: pairs of a name in lower case and a value, in the client's order.

        Values of names that end in ``-bin`` are bytes. A name may come several times. All of it is
        the client's own choice.
        """
        # grpc's pairs are named tuples, aio's are plain ones.
        return tuple((name, value) for name, value in self._context.invocation_metadata() or ())

    def values(self, name: str) -> list[str | bytes]:
        """Return the values of this name, which is given in lower case."""
        pairs = self._context.invocation_metadata() or ()
        return [value for found, value in pairs if found == name]

    @property
    def peer(self) -> str:
        """Who is at the other end, as gRPC writes it.

        ``ipv4:192.0.2.1:50410``, ``ipv6:%5B2001:db8::1%5D:50410``, ``unix:`` or another kind.
        """
        return self._context.peer()

    @property
    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """What the transport knows of the client, such as the names in its certificate."""
        context = self._context.auth_context()
        return {name: tuple(values) for name, values in context.items()}

    @property
    def identity(self) -> tuple[str, tuple[bytes, ...]] | None:
        """Who the transport says that the client is; None if it does not.

        The name of the property that tells it, such as ``x509_subject_alternative_name``, and its
        values.
        """
        name = self._context.peer_identity_key()
        values = tuple(self._context.peer_identities() or ()) if name else ()
        return (name, values) if name and values else None

    def __repr__(self) -> str:
        return f"Call({self.method!r})"  # and nothing of whose it is: it may end up in logs


def is_async(function: object) -> bool:
    """Tell whether it is a coroutine function, or an object with such a ``__call__``."""
    return iscoroutinefunction(function) or iscoroutinefunction(
        getattr(type(function), "__call__", None)  # noqa: B004
    )


def check_key_function(parameter: str, function: object) -> None:
    """Refuse what is no key function.

    Raises:
        TypeError: It can't be called, or it is one of the functions that make key functions.
    """
    for maker in (peer, metadata, user, combine):
        if function is maker:
            name = maker.__name__
            raise TypeError(f"{parameter} must be what {name}(...) returns, not {name} itself")
    if not callable(function):
        raise TypeError(
            f"{parameter} must be a callable that gets the call and returns its key, "
            f"not {shown(function)}"
        )


# The ready key functions


def peer(*, ipv6_prefix: int = 64) -> KeyFunction:
    """Make a key function: the address at the other end of the connection, without its port.

    The key is a str: ``"192.0.2.1"``; of IPv6 the network, ``"2001:db8::/64"``, because whoever has
    one address of it has all. An IPv4 address that is mapped into IPv6 is that IPv4 address. All
    clients on Unix sockets have the key ``"unix"``; all of any other kind that has no address for
    sure have its name, such as ``"unknown"``.

    Behind a proxy that ends connections, this is the proxy.

    Args:
        ipv6_prefix: How many bits of an IPv6 address are the key, 1 to 128.

    Raises:
        TypeError: `ipv6_prefix` is no int.
        ValueError: It is out of range.

    Takes a microsecond or two. Thread-safe.
    """
    prefix = whole_number("ipv6_prefix", ipv6_prefix)
    if not 1 <= prefix <= 128:
        raise ValueError(f"ipv6_prefix must be from 1 to 128 bits, not {shown(ipv6_prefix)}")

    def key(call: Call) -> str:
        return _address(call.peer, prefix)

    return key


def metadata(
    name: str, *, missing: AnyKeyFunction | Literal["peer"] | None = "peer"
) -> AnyFunction:
    """Make a key function: the value that the client sent under this name.

    The key is the tuple of the name and the value, so that no value is ever taken for an address. A
    value that comes more than once is an `InvalidCall`: otherwise a client could have as many keys
    as it likes by sending its own beside another.

    A client that sends another value has another key. So it must be a value that something
    before this checks, such as an authenticating interceptor or a proxy; else limit by `peer` too.

    Args:
        name: As in ``"x-api-key"``, in any case. The values of one that ends in ``-bin`` are bytes.
        missing: The key function for calls without a value, or with an empty one. When left out,
            that of `peer`. None: such a call is an `InvalidCall`.

    Raises:
        TypeError: `name` is no str, or `missing` no key function.
        ValueError: No metadata can have this name.

    Thread-safe.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    wanted = name.lower()
    if not _NAME.fullmatch(wanted):
        raise ValueError(
            f"name must consist of letters, digits, '_', '-' and '.', as metadata's do, "
            f"not {shown(name)}"
        )
    otherwise: Any
    if missing == "peer":
        otherwise = peer()
    elif missing is None:
        otherwise = _refusing(wanted)
    else:
        check_key_function("missing", missing)
        otherwise = missing

    def key(call: Call) -> Any:
        values = call.values(wanted)
        if len(values) > 1:
            raise InvalidCall(f"metadata {wanted!r} must come once, not {len(values)} times")
        return (wanted, values[0]) if values and values[0] else otherwise(call)

    return _awaiting(key) if is_async(otherwise) else key


def user(*, missing: AnyKeyFunction | Literal["peer"] | None = "peer") -> AnyFunction:
    """Make a key function: whom the transport has authenticated, as by a client's certificate.

    The key is a tuple of ``"user"``, the property that tells it and its values. A client can't
    choose it: an authority that the server trusts has signed it. (`Call.identity` has it.)

    Args:
        missing: The key function for clients that are not authenticated. When left out, that of
            `peer`. None: such a call is an `InvalidCall`.

    Raises:
        TypeError: `missing` is no key function.

    Thread-safe.
    """
    otherwise: Any
    if missing == "peer":
        otherwise = peer()
    elif missing is None:
        otherwise = _nobody
    else:
        check_key_function("missing", missing)
        otherwise = missing

    def key(call: Call) -> Any:
        identity = call.identity
        return otherwise(call) if identity is None else ("user", *identity)

    return _awaiting(key) if is_async(otherwise) else key


def combine(*keys: AnyKeyFunction) -> AnyFunction:
    """Make a key function: the keys of several together, as a tuple.

    ``combine(metadata("x-api-key"), lambda call: call.method)`` counts each method of a client for
    itself. If one of them gives None, there is no key.

    Raises:
        TypeError: One of them is no key function.
        ValueError: There is none.

    With a coroutine function among them it makes one. Thread-safe.
    """
    if not keys:
        raise ValueError("combine needs at least one key function: combine(peer(), ...)")
    for each in keys:
        check_key_function("keys", each)
    plain: Any = keys
    if not any(is_async(each) for each in keys):

        def key(call: Call) -> Any:
            return _whole([part(call) for part in plain])

        return key

    async def awaited(call: Call) -> Any:
        parts = []
        for part in plain:
            value = part(call)
            parts.append(await value if hasattr(type(value), "__await__") else value)
        return _whole(parts)

    return awaited


def _whole(parts: list[Any]) -> tuple[Any, ...] | None:
    return None if any(part is None for part in parts) else tuple(parts)


def _awaiting(key: Callable[[Call], Any]) -> AsyncKeyFunction:
    """Return it as a coroutine function; it may return an awaitable."""

    async def awaited(call: Call) -> Any:
        value = key(call)
        return await value if hasattr(type(value), "__await__") else value

    return awaited


def _refusing(name: str) -> KeyFunction:
    def refuse(call: Call) -> Key:
        raise InvalidCall(f"metadata {name!r} is missing")

    return refuse


def _nobody(call: Call) -> Key:
    raise InvalidCall("the client is not authenticated")


def _address(text: str, ipv6_prefix: int) -> str:
    """Return the key of a peer.

    What can't be read has the key of all of its kind: a port in it would be a key for each
    connection, and so no limit.
    """
    kind, _, rest = text.partition(":")
    if kind == "ipv4":
        # gRPC has it from the socket: there are not two ways to write one.
        return rest.rpartition(":")[0] or rest or kind
    if kind != "ipv6":
        return kind
    # "%5B2001:db8::1%5D:50410", or before gRPC 1.50 "[2001:db8::1]:50410".
    inside, bracket, _ = unquote(rest).rpartition("]")
    if not bracket or inside[:1] != "[":
        return kind
    try:
        address = IPv6Address(inside[1:])
    except ValueError:
        return kind
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    spare = 128 - ipv6_prefix
    network = IPv6Address(int(address) >> spare << spare)
    return f"{network}/{ipv6_prefix}" if spare else str(network)
