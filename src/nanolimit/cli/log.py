"""Access logs into arrays: the common and combined formats, and JSON lines, plain or gzip.

A request is 12 bytes here (a time and the number of its user), and each user's name is held once,
so that a log larger than memory can be replayed. Lines are read in pieces of a megabyte; nothing
holds the whole text.
"""

from __future__ import annotations

import errno
import json
import re
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from nanolimit.cli import timestamp

if TYPE_CHECKING:
    from io import FileIO

    from nanolimit.cli.key import Key

STDIN = "-"
CHUNK_BYTES = 1 << 20
# No server writes such lines; without a bound a file without newlines would be read into memory as
# a whole.
MAX_LINE_CHARS = 1 << 20
# Of the bad lines, so many are kept to be shown; all are counted.
BAD_SHOWN = 5
# How much of a bad line is shown.
_EXCERPT_CHARS = 120

# host ident user [time] "request" status size ["referer" ["agent" ["forwarded"]]] and whatever
# follows. A virtual host with its port may come first (Apache's vhost_combined). The request is
# quoted with escapes; the second form is for loggers that don't.
_QUOTED = r'"([^"\\]*(?:\\.[^"\\]*)*)"'
_LINE = re.compile(
    r"(?:[^\s:]+:\d+ )?(\S+) \S+ (.+?) "
    rf"\[({timestamp.APACHE})\] "
    r'"(?:[^"\\]*(?:\\.[^"\\]*)*|.*?)" (?:\d{3}|-) (?:\d+|-)(?![^ \t\r])'
    rf"(?: {_QUOTED}(?: {_QUOTED}(?: {_QUOTED})?)?)?",
    re.ASCII,
)
_TIME_GROUP = 3
_TIME_FIELDS = ("time", "timestamp", "ts", "@timestamp", "time_iso8601", "msec", "time_local")
# Absent, as servers write it.
_ABSENT = frozenset(("", "-", '""'))

Advance = Callable[[int], None]


@dataclass(frozen=True)
class BadLine:
    """A line that is no request, and why."""

    file: str
    line: int
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}: {self.text}"


@dataclass
class Requests:
    """What a log says, in the order of its lines until `sort` is called.

    ``times_ns[i]`` (since the epoch) and ``users[i]`` (an index into ``names``) are request i.
    ``no_key`` counts lines that are requests but name no user; they are in no other figure.
    """

    times_ns: array[int] = field(default_factory=lambda: array("q"))
    users: array[int] = field(default_factory=lambda: array("I"))
    names: list[str] = field(default_factory=list)
    lines: int = 0
    bad_lines: int = 0
    bad: list[BadLine] = field(default_factory=list)
    no_key: int = 0

    def __len__(self) -> int:
        return len(self.times_ns)

    def sort(self) -> None:
        """Order the requests by their time stamps; equal ones stay in the order of their lines."""
        times = self.times_ns
        order = sorted(range(len(times)), key=times.__getitem__)
        self.times_ns = array("q", map(times.__getitem__, order))
        self.users = array("I", map(self.users.__getitem__, order))

    def counts(self) -> array[int]:
        """Requests of each user."""
        counts = array("Q", bytes(8 * len(self.names)))
        for user in self.users:
            counts[user] += 1
        return counts

    def only(self, chosen: bytearray) -> tuple[array[int], array[int]]:
        """(times_ns, users) of the requests whose user is marked with a 1 in `chosen`."""
        return (
            array("q", compress(self.times_ns, map(chosen.__getitem__, self.users))),
            array("I", compress(self.users, map(chosen.__getitem__, self.users))),
        )


def size_bytes(paths: Sequence[str]) -> int | None:
    """How many bytes are to be read, as stored; None if nobody can tell (stdin, a pipe)."""
    total = 0
    for path in paths:
        if path == STDIN or not Path(path).is_file():
            return None
        total += Path(path).stat().st_size
    return total


def read(paths: Sequence[str], key: Key, advance: Advance | None = None) -> Requests:
    """Read logs one after the other and put the requests in order.

    `advance` is told the number of bytes taken from the files, as they are taken. Bad lines are
    counted, never fatal. OSError: a file that can't be opened or read.
    """
    reader = _Reader(key)
    for path in paths:
        if path == STDIN:
            if sys.stdin is None:
                raise OSError(errno.EBADF, "standard input is closed")
            reader.take(sys.stdin.buffer, "stdin", advance)
        else:
            with Path(path).open("rb", buffering=0) as file:
                reader.take(file, path, advance)
    requests = reader.requests
    requests.names = list(reader.index)
    if not reader.in_order:
        requests.sort()
    return requests


class _Reader:
    def __init__(self, key: Key) -> None:
        self.requests = Requests()
        self.index: dict[str, int] = {}
        self.in_order = True
        self._key = key
        self._latest_ns = 0

    def take(self, file: BinaryIO | FileIO, name: str, advance: Advance | None) -> None:
        """Read one file to its end."""
        number = 0
        try:
            for lines in _lines(_inflated(_pieces(file, advance))):
                self._take_lines(lines, name, number)
                number += len(lines)
        except _BadDataError as error:
            # What came before stands: a log that was cut off is not worthless.
            number += 1
            self._bad(name, number, str(error), "")
        self.requests.lines += number

    def _take_lines(self, lines: list[str], name: str, before: int) -> None:
        """Take the lines after line `before`. The inner loop of it all: hence the local names."""
        requests, index, key = self.requests, self.index, self._key
        add_time, add_user = requests.times_ns.append, requests.users.append
        match, group, expression = _LINE.match, key.group, key.pattern
        latest_ns, in_order = self._latest_ns, self.in_order
        # Neighbouring lines often have the same second: its text is read once.
        last_text, last_ns = "", 0
        for number, line in enumerate(lines, before + 1):
            user: str | None = None
            found = match(line) if line[:1] != "{" else None
            if found is not None:
                text = found[_TIME_GROUP]
                if text != last_text:
                    try:
                        last_ns = timestamp.apache_ns(text)
                    except ValueError as error:
                        self._bad(name, number, str(error), line)
                        continue
                    last_text = text
                ns = last_ns
                if group is not None:
                    user = found[group]
                elif expression is not None:
                    user = key.of_line(line)
            else:
                text = line.strip()
                if not text:
                    continue
                if len(line) >= MAX_LINE_CHARS:
                    self._bad(name, number, f"longer than {MAX_LINE_CHARS:,} characters", line)
                    continue
                if text[0] != "{":
                    self._bad(name, number, "neither the common or combined format nor JSON", line)
                    continue
                try:
                    ns, user = _record(text, key)
                except ValueError as error:
                    self._bad(name, number, str(error), line)
                    continue
            if user is None or user in _ABSENT:
                requests.no_key += 1
                continue
            if ns < latest_ns:
                in_order = False
            else:
                latest_ns = ns
            add_time(ns)
            add_user(index.setdefault(user, len(index)))
        self._latest_ns, self.in_order = latest_ns, in_order

    def _bad(self, name: str, number: int, reason: str, line: str) -> None:
        self.requests.bad_lines += 1
        if len(self.requests.bad) < BAD_SHOWN:
            text = line.strip()
            if len(text) > _EXCERPT_CHARS:
                text = text[: _EXCERPT_CHARS - 3] + "..."
            self.requests.bad.append(BadLine(name, number, reason, text))


def _record(text: str, key: Key) -> tuple[int, str | None]:
    """Time and user of a JSON line."""
    try:
        record = json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError("JSON, but not an object")
    problem = f"no time stamp (looked for {', '.join(_TIME_FIELDS)})"
    # The first that is one: "time" may hold something else in this log.
    for name in _TIME_FIELDS:
        value = record.get(name)
        if value is None:
            continue
        try:
            ns = timestamp.value_ns(value)
        except ValueError as error:
            problem = str(error)
            continue
        return ns, key.of_line(text) if key.pattern is not None else key.of_record(record)
    raise ValueError(problem)


class _BadDataError(Exception):
    """The rest of a file can't be read."""


def _pieces(file: BinaryIO | FileIO, advance: Advance | None) -> Iterator[bytes]:
    """The bytes of a file as they are stored; three in the first piece if there are so many."""
    head = b""
    while piece := file.read(CHUNK_BYTES):
        if advance is not None:
            advance(len(piece))
        head += piece
        if len(head) >= 3:
            yield head
            break
    else:
        if head:
            yield head
        return
    while piece := file.read(CHUNK_BYTES):
        if advance is not None:
            advance(len(piece))
        yield piece


def _inflated(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack gzip, told by its first two bytes, whatever the file is called.

    Members may follow each other, as in ``cat a.gz b.gz``.
    """
    first = next(pieces, b"")
    if not first.startswith(b"\x1f\x8b"):
        if first:
            yield first
        yield from pieces
        return
    member = zlib.decompressobj(wbits=31)
    for packed in chain((first,), pieces):
        while packed:
            if member.eof:
                # Zeros may pad the end of a file.
                packed = packed.lstrip(b"\0")
                if not packed:
                    break
                member = zlib.decompressobj(wbits=31)
            try:
                # Bounded, so that a megabyte of packed zeros doesn't become a gigabyte at once.
                text = member.decompress(packed, 4 * CHUNK_BYTES)
            except zlib.error as error:
                raise _BadDataError(f"damaged gzip data ({error})") from None
            if text:
                yield text
            packed = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise _BadDataError("the gzip data ends early")


def _lines(pieces: Iterator[bytes]) -> Iterator[list[str]]:
    """Lists of lines without their newlines.

    Of a line that is longer than a piece and MAX_LINE_CHARS, only the beginning is kept.
    """
    rest = b""
    skipping = False  # inside a line that was too long and has been handed on already
    start = True
    for piece in pieces:
        if start:
            # A byte order mark, as Windows writes it, is no part of the first line.
            piece = piece.removeprefix(b"\xef\xbb\xbf")
            start = False
        if skipping:
            end = piece.find(b"\n")
            if end < 0:
                continue
            piece = piece[end + 1 :]
            skipping = False
        end = piece.rfind(b"\n")
        if end < 0:
            rest += piece
        else:
            whole = rest + piece[:end]
            rest = piece[end + 1 :]
            yield _text(whole).split("\n")
        if len(rest) >= MAX_LINE_CHARS:
            # latin-1 keeps it one character a byte, so that it stays too long for who counts the
            # characters.
            yield [rest[:MAX_LINE_CHARS].decode("latin-1")]
            rest = b""
            skipping = True
    if rest:
        yield [_text(rest)]


def _text(data: bytes) -> str:
    # Not surrogates: what is no UTF-8 must be printable later, and distinct bytes must stay
    # distinct users.
    return data.decode("utf-8", "backslashreplace")
