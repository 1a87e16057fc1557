"""The bytes of a request and of its reply: RESP2.

The client library makes a connection and logs in; from then on these few lines speak on it. So one
deadline holds for all parts of a call, many calls go out in one write, and `decode_responses` makes
no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol, Union

from nanolimit.redis.fork import call_after_fork

__all__ = [
    "ASKING", "NOTHING", "ErrorReply", "Packed", "Reader", "Reply", "ScriptLike", "Word", "pack",
]  # fmt: skip

Word = bytes | str | int


class ScriptLike(Protocol):
    """A Lua script."""

    @property
    def source(self) -> str:
        """Its text."""
        ...

    @property
    def sha(self) -> str:
        """The SHA1 of its text, in hexadecimal."""
        ...


class ErrorReply:
    """A reply that is an error, such as "NOSCRIPT No matching script."."""

    __slots__ = ("text",)

    text: str

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"ErrorReply({self.text!r})"


class _Nothing:
    """No whole reply has come yet."""


NOTHING: Final = _Nothing()

# A list holds replies.
Reply = Union[int, bytes, None, ErrorReply, "list[Reply]"]

ASKING: Final = b"*1\r\n$6\r\nASKING\r\n"


def pack_words(*words: Word) -> bytes:
    """Return a command as it is sent."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        parts.append(_packed_word(word))
    return b"".join(parts)


def _packed_word(word: Word) -> bytes:
    data = _encoded(word)
    return b"$%d\r\n%b\r\n" % (len(data), data)


class Packed(list[bytes]):
    """Arguments that are sent again and again, and are packed once. They must not be changed."""

    __slots__ = ("data",)

    data: bytes
    """How they are sent."""

    def __init__(self, words: Iterable[bytes]) -> None:
        super().__init__(words)
        self.data = b"".join(map(_packed_word, self))


def _encoded(word: Word) -> bytes:
    if isinstance(word, bytes):
        return word
    if isinstance(word, str):
        return word.encode()
    if isinstance(word, int):
        return b"%d" % word
    raise TypeError(f"keys and arguments must be bytes, str or int, not {type(word).__name__}")


def _evalsha_head(script: ScriptLike, words: int, keys: int) -> bytes:
    sha, count = script.sha.encode(), b"%d" % keys
    return b"*%d\r\n$7\r\nEVALSHA\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
        3 + words, len(sha), sha, len(count), count,
    )  # fmt: skip


_heads: dict[tuple[str, int, int], bytes] = {}
_HEADS_MAX = 1_024


def _forget_heads() -> None:
    """In the child of a fork: a thread of the parent may have held the dict's own lock."""
    global _heads
    _heads = {}


call_after_fork(_forget_heads)


def pack(script: ScriptLike, keys: Sequence[bytes], args: Sequence[Word]) -> bytes:
    """Return EVALSHA of a script as it is sent."""
    shape = (script.sha, len(keys), len(args))
    head = _heads.get(shape)
    if head is None:
        head = _evalsha_head(script, len(keys) + len(args), len(keys))
        if len(_heads) < _HEADS_MAX:
            _heads[shape] = head
    tail = args.data if type(args) is Packed else b"".join(map(_packed_word, args))
    if len(keys) == 1:  # of most limiters
        key = keys[0]
        return b"%b$%d\r\n%b\r\n%b" % (head, len(key), key, tail)
    return b"".join([head, *[b"$%d\r\n%b\r\n" % (len(key), key) for key in keys], tail])


def pack_source(script: ScriptLike, keys: Sequence[bytes], args: Sequence[Word]) -> bytes:
    """Return EVAL of a script as it is sent; the server knows it by its hash afterwards."""
    return pack_words("EVAL", script.source, len(keys), *keys, *args)


class ProtocolError(ValueError):
    """What came is no reply of a Redis server."""


class _Short(Exception):
    """The rest of the reply is yet to come."""


class Reader:
    """Takes bytes as they come and gives whole replies."""

    __slots__ = ("_data", "_position")

    def __init__(self) -> None:
        self._data = b""
        self._position = 0

    @property
    def empty(self) -> bool:
        """Whether nothing was fed that was not read."""
        return self._position == len(self._data)

    def feed(self, data: bytes) -> None:
        """Add what came."""
        if self._position == len(self._data):
            self._data = data
        else:
            self._data = self._data[self._position :] + data
        self._position = 0

    def next(self) -> Reply | _Nothing:
        """Return the next reply; NOTHING where it has not come in whole.

        Raises:
            ProtocolError: What came is no reply.
        """
        if self._position == len(self._data):
            return NOTHING
        try:
            reply, self._position = _parsed(self._data, self._position)
        except _Short:
            return NOTHING
        except (ValueError, RecursionError):
            start = self._data[self._position : self._position + 60]
            raise ProtocolError(f"no reply of a Redis server: {start!r}") from None
        return reply


def _parsed(data: bytes, start: int) -> tuple[Reply, int]:
    end = data.find(b"\r\n", start)
    if end < 0:
        raise _Short
    kind, after = data[start], end + 2
    if kind == 58:  # ':'
        return int(data[start + 1 : end]), after
    if kind == 43:  # '+'
        return data[start + 1 : end], after
    if kind == 45:  # '-'
        return ErrorReply(data[start + 1 : end].decode("utf-8", "replace")), after
    size = int(data[start + 1 : end])
    if kind == 36:  # '$'
        if size < 0:
            return None, after
        if len(data) < after + size + 2:
            raise _Short
        return data[after : after + size], after + size + 2
    if kind == 42:  # '*'
        if size < 0:
            return None, after
        replies: list[Reply] = []
        for _ in range(size):
            reply, after = _parsed(data, after)
            replies.append(reply)
        return replies, after
    raise ValueError
