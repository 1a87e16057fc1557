"""Which keys are one user and which are two."""

from __future__ import annotations

import enum
import ipaddress
import itertools
import sys
import uuid
from collections import namedtuple
from typing import Any

import pytest

from doors import fingerprint
from nanolimit import RateLimiter


class Colour(enum.IntEnum):
    RED = 1


class Name(str, enum.Enum):
    ADA = "ada"


class Text(str):
    """A str that lies about itself: only its value counts."""

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return False

    def __str__(self) -> str:
        return "somebody else"


class Number(int):
    def __index__(self) -> int:
        return 7

    def __int__(self) -> int:
        return 7


Pair = namedtuple("Pair", "left right")

#: Every two of these are different users.
DIFFERENT: list[Any] = [
    "", "1", "a", "A", "aa", "a\0", "a\0\0", "\0", "é", "e\u0301", "\xe9\xe9", "日本", "日本語",
    "\U0001f600", "\udc80", "\ud800", "x" * 7, "x" * 8, "x" * 9, "x" * 100, "x" * 101, b"", b"1",
    b"a", b"aa", b"a\0", b"\0", b"\xe9", "é".encode(), "é".encode("utf-16-le"),
    "日本".encode("utf-16-le"), "\U0001f600".encode("utf-32-le"), 0, 1, -1, 2, 255, 256, -256,
    2**31,
    -(2**31), 2**32, 2**62, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64, -(2**64),
    2**64 + 1, 2**65, 2**127, 2**128, -(2**128), 2**4_096, -(2**4_096), 2**4_096 + 1, (), ((),),
    ((), ()), (((),),), ("1",), (1,), (b"1",), ("1", "1"), ("11",), (1, 1), (11,),
    ("a", ("b", "c")), (("a", "b"), "c"), ("a", "b", "c"), ("ab", "c"), ("a", "bc"), ("", "abc"),
    ("abc", ""), ("abc",), (1, "1", b"1"), (b"1", "1", 1), uuid.UUID(int=0), uuid.UUID(int=1),
    uuid.UUID(int=2**128 - 1), bytes(16), bytes(15) + b"\1", ipaddress.IPv4Address("0.0.0.1"),
    ipaddress.IPv6Address("::1"), ipaddress.IPv6Address("::ffff:0.0.0.1"),
    ipaddress.IPv4Network("0.0.0.1/32"), ipaddress.IPv4Network("0.0.0.0/31"),
    ipaddress.IPv4Network("0.0.0.0/30"), ipaddress.IPv6Network("::1/128"),
    ipaddress.IPv6Network("::/127"), ipaddress.IPv4Interface("0.0.0.1/32"),
    ipaddress.IPv4Interface("0.0.0.1/31"), ipaddress.IPv6Interface("::1/128"),
    ipaddress.IPv6Interface("::1/127"), ipaddress.IPv6Address("fe80::1"),
    ipaddress.IPv6Address("fe80::1%eth0"), ipaddress.IPv6Address("fe80::1%eth1"), "0.0.0.1", "::1",
    (uuid.UUID(int=1),), (ipaddress.IPv4Address("0.0.0.1"),),
]  # fmt: skip

#: In each row all are the same user.
SAME: list[list[Any]] = [
    [1, True, Colour.RED, int("1")],
    [0, False],
    [7, int("7")],
    [8, Number(8)],
    ["ada", Name.ADA, Text("ada"), "".join(["a", "da"])],
    [("ada", 1), ("ada", True), (Name.ADA, Colour.RED), Pair("ada", 1)],
    [10**50, 10**25 * 10**25],
    ["é" * 50, ("é" * 51)[:50]],
    [b"abc", bytes(bytearray(b"abc"))],
    [uuid.UUID(int=5), uuid.UUID("00000000-0000-0000-0000-000000000005")],
    [ipaddress.ip_address("10.0.0.1"), ipaddress.IPv4Address(0x0A000001)],
    [ipaddress.ip_address("2001:db8::1"), ipaddress.ip_address("2001:0db8:0:0:0:0:0:1")],
    [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("10.0.0.0/255.0.0.0")],
    [ipaddress.ip_interface("10.0.0.1/8"), ipaddress.ip_interface("10.0.0.1/255.0.0.0")],
    [("a", ("b", 1)), ("a", ("b", True))],
]


def test_different_keys_are_different_users() -> None:
    limiter = RateLimiter(1, per=60)
    for nth, key in enumerate(DIFFERENT):
        assert limiter.allow(key), f"{key!r} was taken for one of {DIFFERENT[:nth]!r}"
    assert len(limiter) == len(DIFFERENT)
    for key in DIFFERENT:
        assert not limiter.allow(key)
        assert key in limiter


def test_the_fingerprints_of_different_keys_differ() -> None:
    limiter = RateLimiter(1)
    for one, other in itertools.combinations(DIFFERENT, 2):
        assert fingerprint(limiter, one) != fingerprint(limiter, other), (one, other)


@pytest.mark.parametrize("row", SAME, ids=lambda row: repr(row[0])[:20])
def test_equal_values_are_one_user(row: list[Any]) -> None:
    limiter = RateLimiter(len(row), per=60)
    assert all(limiter.allow(key) for key in row)
    assert len(limiter) == 1
    for key in row:
        assert not limiter.allow(key)
        assert key in limiter
        assert limiter.peek(key).remaining == 0
    assert limiter.reset(row[-1])
    assert row[0] not in limiter


@pytest.mark.skipif(sys.version_info < (3, 11), reason="StrEnum came with 3.11")
def test_members_of_a_str_enum_count_by_value() -> None:
    kind: Any = enum.StrEnum("Kind", {"ADA": "ada"})  # type: ignore[attr-defined,unused-ignore]
    limiter = RateLimiter(1, per=60)
    assert limiter.allow(kind.ADA)
    assert not limiter.allow("ada")


@pytest.mark.parametrize("text", ["a", "é", "日", "\U0001f600", "\udcff"])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 63, 64, 65, 1_000])
def test_every_way_to_store_a_str(text: str, length: int) -> None:
    """ASCII, Latin-1, two and four bytes a character: told apart in the last place too."""
    limiter = RateLimiter(1, per=60)
    key = text * length
    others = [key + text, key + "\0", key[:-1] + "z", "z" + key[1:], key.swapcase() + "!"]
    assert limiter.allow(key)
    assert not limiter.allow(str(key + "x")[:-1])
    assert all(limiter.allow(other) for other in dict.fromkeys(others))


def test_integers_of_any_size() -> None:
    limiter = RateLimiter(1, per=60)
    numbers = {
        sign * (2**bits + off) for bits in range(300) for off in (-1, 0, 1) for sign in (-1, 1)
    }
    assert all(limiter.allow(number) for number in numbers)
    assert len(limiter) == len(numbers)
    huge = 3**200_000
    assert limiter.allow(huge)
    assert not limiter.allow(huge * 1)
    assert limiter.allow(-huge)


def test_a_key_of_ten_megabytes() -> None:
    """It is hashed whole: the last byte tells two apart."""
    limiter = RateLimiter(1, per=60)
    for big in ("x" * 10_000_000, "日" * 4_000_000, b"x" * 10_000_000):
        other = big[:-1] + (b"y" if isinstance(big, bytes) else "y")  # type: ignore[operator]
        assert limiter.allow(big)
        assert limiter.allow(other)
        assert not limiter.allow(big)
        assert not limiter.allow(other)


def nested(depth: int) -> tuple[Any, ...]:
    key: tuple[Any, ...] = ()
    for _ in range(depth):
        key = (key,)
    return key


def test_nested_tuples_as_deep_as_anybody_needs() -> None:
    limiter = RateLimiter(1, per=60)
    for depth in (0, 1, 2, 3, 10, 50, 100):
        assert limiter.allow(nested(depth))
        assert not limiter.allow(nested(depth))
    assert len(limiter) == 7


@pytest.mark.parametrize("call", ["allow", "check", "peek", "reset", "__contains__"])
def test_a_hundred_thousand_deep_is_an_error_and_not_a_crash(call: str) -> None:
    limiter = RateLimiter(1, per=60)
    deep = nested(100_000)
    ask = limiter.__contains__ if call == "__contains__" else getattr(limiter, call)
    with pytest.raises(RecursionError):
        ask(deep)
    with pytest.raises(RecursionError):
        limiter.allow_many(["fine", deep])
    assert len(limiter) == 0
    assert limiter.allow("user")
    while deep:  # undone by hand: some interpreters don't like to free it in one go
        deep = deep[0]


def test_wide_tuples() -> None:
    limiter = RateLimiter(1, per=60)
    wide = tuple(range(100_000))
    assert limiter.allow(wide)
    assert not limiter.allow(tuple(range(100_000)))
    assert limiter.allow((*wide, 1))
    assert limiter.allow((*wide[:-1], 0))


def test_keys_are_not_kept() -> None:
    """Only a fingerprint is stored: no reference to a key survives the call."""
    limiter = RateLimiter(1, per=60)
    key = ("user", "x" * 50, 2**100)
    before = [sys.getrefcount(part) for part in (key, *key)]
    for _ in range(100):
        limiter.allow(key)
        limiter.check(key)
        limiter.peek(key)
        limiter.allow_many([key, key])
        assert key in limiter
        limiter.reset(key)
    assert [sys.getrefcount(part) for part in (key, *key)] == before
