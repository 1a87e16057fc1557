"""Names: which lists of Redis hold the logs of a key.

A key has one list per quota, ``PREFIX:{KEY}:RULE``. The braces are Redis Cluster's hash tag, so
that all lists of a key stand on one node and one script sees them together::

    nl:{s:user:42}:api:60000000     str "user:42", limiter "api", a window of a minute
    nl:{(s:user,i:42)}:5/60000000   tuple ("user", 42), a limiter without a name, 5 a minute

KEY begins with its kind and is another one for every two keys that differ:

==========  ====================================================================================
``s:``      str, in UTF-8
``b:``      bytes
``i:``      int, in decimal; ``x:`` in hexadecimal, from 128 bits on
``u:``      UUID
``a:``      address; ``n:`` network; ``f:`` interface
``(,)``     tuple of these
``h:``      digest of a KEY that would have more than 256 bytes
==========  ====================================================================================

What would be read as something else - braces, parentheses, commas, control bytes, ``%`` itself,
and of bytes all that is not ASCII - is written as ``%`` and two hexadecimal digits.
"""

from __future__ import annotations

import re
import sys
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanolimit.limiter import Key
    from nanolimit.quota import Quota

__all__ = ["Names"]

MAX_KEY_BYTES = 256

# 192 bits: to find two keys of one digest takes 2^96 attempts.
_DIGEST_BYTES = 24

_UNSAFE = re.compile(rb"[\x00-\x1f\x7f%(),{}]")
_UNSAFE_OR_HIGH = re.compile(rb"[\x00-\x1f\x7f-\xff%(),{}]")
_UNSAFE_TEXT = re.compile(r"[\x00-\x1f\x7f%(),{}]")
_PLAIN_INT_BITS = 128


class Names:
    """The names of the lists of one limiter.

    Args:
        prefix: What all names begin with, so that several programs can share a server.
        name: The limiter's name, which its rules then carry in the place of the limit: limiters of
            one name and window share their logs, also where their limits differ. So a limit can be
            changed and what was used stays counted. None: those of the same limit and window
            share them.
        quotas: The limiter's quotas.

    Immutable and thread-safe.
    """

    __slots__ = ("_head", "_head_of_str", "_tails")

    def __init__(self, prefix: str, name: str | None, quotas: tuple[Quota, ...]) -> None:
        self._head = _escaped(_utf8(prefix)) + b":{"
        self._head_of_str = self._head + b"s:"
        self._tails = tuple(b"}:" + rule for rule in _rules(name, quotas))

    @property
    def whose(self) -> bytes:
        """What is the same for all keys: the prefix, and what tells the quotas."""
        return b" ".join((self._head, *self._tails))

    def of(self, key: Key) -> list[bytes]:
        """Return the names of a key's lists, in the order of the quotas.

        Raises:
            TypeError: The key is of a type that is no key.
            RecursionError: It is a tuple nested deeper than Python recurs.

        About a microsecond for a short str; for a long key, the time to hash it once.
        """
        if type(key) is str and len(key) < 64 and _UNSAFE_TEXT.search(key) is None:
            # At most 252 bytes in UTF-8.
            tagged = self._head_of_str + key.encode("utf-8", "surrogatepass")
        else:
            tagged = self._head + tag(key)
        tails = self._tails
        if len(tails) == 1:  # a list comprehension is a call of its own, up to 3.11
            return [tagged + tails[0]]
        return [tagged + tail for tail in tails]


def _rules(name: str | None, quotas: tuple[Quota, ...]) -> list[bytes]:
    """Return what tells a limiter's quotas apart. Equal ones are counted: ``#2``, ``#3``."""
    seen: dict[bytes, int] = {}
    rules = []
    for quota in quotas:
        window = b"%d" % window_us(quota)
        if name is None:
            rule = b"%d/%b" % (quota.limit, window)
        else:
            rule = b"%b:%b" % (_escaped(_utf8(name)), window)
        seen[rule] = seen.get(rule, 0) + 1
        rules.append(rule if seen[rule] == 1 else b"%b#%d" % (rule, seen[rule]))
    return rules


def window_us(quota: Quota) -> int:
    """Return a quota's window in whole microseconds, rounded up: never one too many."""
    return -(-quota.window_ns // 1_000)


def tag(key: Key) -> bytes:
    """Return KEY for a key: 3 to 256 bytes, another one for every other key.

    Raises:
        TypeError: The key is of a type that is no key.
    """
    kind, text = _parts(key)
    # What is hashed is the text before it is escaped. It still says its kind: a digest is of one
    # key only.
    if len(text) <= MAX_KEY_BYTES:
        readable = _readable(kind, text)
        if len(readable) <= MAX_KEY_BYTES:
            return readable
    return b"h:" + blake2b(kind + text, digest_size=_DIGEST_BYTES).hexdigest().encode()


def _readable(kind: bytes, text: bytes) -> bytes:
    if kind == b"(":
        return kind + text  # its parts are escaped
    if kind == b"b:":
        return kind + _UNSAFE_OR_HIGH.sub(_percent, text)
    return kind + _escaped(text)


def _parts(key: Any) -> tuple[bytes, bytes]:
    """Return a key's kind and its text.

    Subclasses (bool, IntEnum, StrEnum ...) count by their value, as in the core.
    """
    if isinstance(key, str):
        return b"s:", _utf8(str.__str__(key))
    if isinstance(key, int):
        number = int.__index__(key)
        if number.bit_length() <= _PLAIN_INT_BITS:
            return b"i:", b"%d" % number
        return b"x:", hex(number).encode()  # decimals of a long one are slow, then an error
    if isinstance(key, bytes):
        return b"b:", bytes.__getitem__(key, slice(None))
    if isinstance(key, tuple):
        inner = b",".join(_readable(*_parts(part)) for part in tuple(key))
        return b"(", inner + b")"
    return _parts_of_library_type(key)


def _parts_of_library_type(key: Any) -> tuple[bytes, bytes]:
    """uuid and ipaddress: whoever has such a key has imported the module."""
    uuid = sys.modules.get("uuid")
    if uuid is not None and isinstance(key, uuid.UUID):
        return b"u:", key.hex.encode()
    ip = sys.modules.get("ipaddress")
    if ip is not None:
        # Of their bytes: how they are printed has changed between versions of Python.
        if isinstance(key, (ip.IPv4Network, ip.IPv6Network)):
            return b"n:", _address(key.network_address) + b"/%d" % key.prefixlen
        if isinstance(key, (ip.IPv4Interface, ip.IPv6Interface)):
            return b"f:", _address(key) + b"/%d" % key.network.prefixlen
        if isinstance(key, (ip.IPv4Address, ip.IPv6Address)):
            return b"a:", _address(key)
    raise TypeError(
        f"key must be a str, bytes, int, uuid.UUID, ipaddress object or a tuple of these, "
        f"got {type(key).__name__}"
    )


def _address(address: Any) -> bytes:
    """Return ``10.0.0.1``, or ``20010db8000000000000000000000001%eth0``."""
    packed: bytes = address.packed
    if len(packed) == 4:
        return b"%d.%d.%d.%d" % tuple(packed)
    scope: str | None = address.scope_id
    text = packed.hex().encode()
    return text if scope is None else text + b"%" + _utf8(scope)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _escaped(text: bytes) -> bytes:
    return _UNSAFE.sub(_percent, text)


def _percent(found: re.Match[bytes]) -> bytes:
    return b"%%%02X" % found[0][0]
