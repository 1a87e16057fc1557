"""The names of the lists that Redis keeps: one to one with keys, and one slot for each key."""

from __future__ import annotations

import ipaddress
import itertools
import re
import uuid
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from doors import fingerprint
from nanolimit import Quota, RateLimiter
from nanolimit.redis.name import MAX_KEY_BYTES, Names, tag, window_us
from test_keys import DIFFERENT, SAME, nested

MINUTE = Quota(5, per=60)
NAMES = Names("nl", "api", (MINUTE,))
CORE = RateLimiter(1)

texts = st.text(st.characters(), max_size=12) | st.text("{}%(),:sb\\\0\x7f\udc80a", max_size=6)
addresses = st.ip_addresses()
prefixes = st.integers(0, 32)


def network(address: Any, prefix: int) -> Any:
    return ipaddress.ip_network((address, prefix), strict=False)


def interface(address: Any, prefix: int) -> Any:
    return ipaddress.ip_interface((address, prefix))


atoms = (
    texts
    | st.binary(max_size=8)
    | texts.map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.integers(-3, 3)
    | st.integers()
    | st.integers(2**126, 2**130)
    | st.booleans()
    | st.uuids()
    | st.integers(0, 3).map(lambda number: uuid.UUID(int=number))
    | addresses
    | st.builds(network, addresses, prefixes)
    | st.builds(interface, addresses, prefixes)
    | texts.filter(lambda text: text and not set("%/") & set(text)).map(
        lambda scope: ipaddress.IPv6Address(f"fe80::1%{scope}")
    )
    | st.builds(str.__mul__, texts, st.integers(20, 300))
    | st.builds(bytes.__mul__, st.binary(max_size=2), st.integers(100, 300))
)
keys = st.recursive(atoms, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=6)


@given(keys, keys)
@example("(a)", ("a",))
@example(("a,s:b",), ("a", "b"))
@example("{" * 100, "%7B" * 100)  # the one's escaped text is the other's text, both are hashed
@example("é" * 200, ("é" * 200).encode())
def test_two_keys_have_one_name_if_they_are_one_user_to_the_core(one: Any, other: Any) -> None:
    assert (tag(one) == tag(other)) == (fingerprint(CORE, one) == fingerprint(CORE, other))
    assert (NAMES.of(one) == NAMES.of(other)) == (tag(one) == tag(other))


def unescaped(text: bytes) -> bytes:
    return re.sub(rb"%([0-9A-F]{2})", lambda found: bytes.fromhex(found[1].decode()), text)


def address_of(text: bytes) -> Any:
    packed, _, scope = unescaped(text).partition(b"%")
    if b"." in packed:
        return ipaddress.IPv4Address(packed.decode())
    address = ipaddress.IPv6Address(bytes.fromhex(packed.decode()))
    if not scope:
        return address
    return ipaddress.IPv6Address(f"{address}%{scope.decode('utf-8', 'surrogatepass')}")


def key_of(text: bytes, at: int = 0) -> tuple[Any, int]:
    """Read the key off its name, from there on, and say where it ends."""
    if text[at : at + 1] == b"(":
        parts, at = [], at + 1
        while text[at : at + 1] != b")":
            part, at = key_of(text, at)
            parts.append(part)
            at += text[at : at + 1] == b","
        return tuple(parts), at + 1
    found = re.compile(rb"(\w):([^(),]*)").match(text, at)
    assert found, text[at:]
    kind, inner = found[1], found[2]
    if kind == b"s":
        return unescaped(inner).decode("utf-8", "surrogatepass"), found.end()
    if kind == b"b":
        return unescaped(inner), found.end()
    if kind in b"ix":
        return int(inner, 0), found.end()
    if kind == b"u":
        return uuid.UUID(inner.decode()), found.end()
    whole, _, prefix = inner.partition(b"/")
    if kind == b"a":
        return address_of(whole), found.end()
    pair = address_of(whole), int(prefix)
    return (network if kind == b"n" else interface)(*pair), found.end()


@given(keys)
def test_a_key_can_be_read_off_its_name(key: Any) -> None:
    text = tag(key)
    if text.startswith(b"h:"):
        return
    read, end = key_of(text)
    assert end == len(text)
    assert fingerprint(CORE, read) == fingerprint(CORE, key)


def test_different_keys_have_different_names() -> None:
    for one, other in itertools.combinations(DIFFERENT, 2):
        assert NAMES.of(one) != NAMES.of(other), (one, other)


@pytest.mark.parametrize("row", SAME, ids=lambda row: repr(row[0])[:20])
def test_equal_values_have_one_name(row: list[Any]) -> None:
    assert len({tuple(NAMES.of(key)) for key in row}) == 1


def hash_tag(name: bytes) -> bytes:
    """What Redis Cluster takes the slot of: between the first brace and the next closing one."""
    start = name.find(b"{")
    end = name.find(b"}", start + 1)
    return name[start + 1 : end] if start >= 0 and end > start + 1 else name


@given(keys, texts, st.none() | texts)
def test_all_lists_of_a_key_have_its_hash_tag(key: Any, prefix: str, name: str | None) -> None:
    quotas = (MINUTE, Quota(100, per=3_600), MINUTE)
    made = Names(prefix, name, quotas).of(key)
    assert len(set(made)) == 3
    assert {hash_tag(each) for each in made} == {tag(key)}
    assert 1 <= len(tag(key)) <= MAX_KEY_BYTES
    for each in made:
        assert each.count(b"{") == each.count(b"}") == 1
        assert not re.search(rb"[\x00-\x1f\x7f]", each)


windows = st.sampled_from([Quota(5, 60), Quota(6, 60), Quota(5, 61), Quota(5, 60.0000001)])
limiters = st.tuples(
    st.sampled_from(["nl", "n", "nl:", "n{", ""]) | texts,
    st.none() | st.sampled_from(["", "a", "a:60000000", "5/60000000", "a#2", "}:"]) | texts,
    st.lists(windows, min_size=1, max_size=4).map(tuple),
)


def log_of(prefix: str, name: str | None, quotas: tuple[Quota, ...], nth: int) -> tuple[Any, ...]:
    """What tells the nth log of a key from all others."""
    rules = [
        (name, window_us(quota), None if name is not None else quota.limit) for quota in quotas
    ]
    return prefix, rules[nth], rules[:nth].count(rules[nth])


@given(limiters, limiters)
@example(("nl", "a", (MINUTE, MINUTE)), ("nl", "a:60000000", (MINUTE,)))
def test_limiters_share_a_log_if_name_and_window_are_the_same(one: Any, other: Any) -> None:
    for nth, first in enumerate(Names(*one).of("key")):
        for mth, second in enumerate(Names(*other).of("key")):
            assert (first == second) == (log_of(*one, nth) == log_of(*other, mth))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("user:42", b"nl:{s:user:42}:api:60000000"),
        (42, b"nl:{i:42}:api:60000000"),
        (-1, b"nl:{i:-1}:api:60000000"),
        (b"\xffa", b"nl:{b:%FFa}:api:60000000"),
        ("", b"nl:{s:}:api:60000000"),
        ("{a}%", b"nl:{s:%7Ba%7D%25}:api:60000000"),
        (("user", 42, ()), b"nl:{(s:user,i:42,())}:api:60000000"),
        (ipaddress.ip_address("10.0.0.1"), b"nl:{a:10.0.0.1}:api:60000000"),
        (ipaddress.ip_network("10.0.0.0/8"), b"nl:{n:10.0.0.0/8}:api:60000000"),
        (ipaddress.ip_interface("10.0.0.1/8"), b"nl:{f:10.0.0.1/8}:api:60000000"),
        (
            ipaddress.ip_address("::ffff:10.0.0.1"),
            b"nl:{a:00000000000000000000ffff0a000001}:api:60000000",
        ),
        (uuid.UUID(int=1), b"nl:{u:00000000000000000000000000000001}:api:60000000"),
        (2**128, b"nl:{x:0x100000000000000000000000000000000}:api:60000000"),
        ("x" * 254, b"nl:{s:" + b"x" * 254 + b"}:api:60000000"),
        # printf s:xx... | b2sum -l 192
        ("{" * 100, b"nl:{h:57c679827c9ef15204f697a71ed85dbde53ff4b319afeef9}:api:60000000"),
        ("x" * 255, b"nl:{h:3f8820ca001894b80a0d613288fc90dffecfb8409ceace0b}:api:60000000"),
    ],
)
def test_names_are_these(key: Any, name: bytes) -> None:
    """Programs of several versions share a server: a name that changes loses what was counted."""
    assert NAMES.of(key) == [name]


def test_rules_are_these() -> None:
    quotas = (MINUTE, Quota(6, per=60), Quota(5, per=1e-9 * 1_000_001), MINUTE)
    rules = [name.rpartition(b"}:")[2] for name in Names("nl", None, quotas).of("k")]
    assert rules == [b"5/60000000", b"6/60000000", b"5/1001", b"5/60000000#2"]
    rules = [name.rpartition(b"}:")[2] for name in Names("nl", "a{b", quotas).of("k")]
    assert rules == [b"a%7Bb:60000000", b"a%7Bb:60000000#2", b"a%7Bb:1001", b"a%7Bb:60000000#3"]


@pytest.mark.parametrize("key", [None, 1.0, ["a"], {"a"}, bytearray(b"a"), ("a", None), object])
def test_what_is_no_key_is_refused_by_its_type(key: Any) -> None:
    culprit = key[1] if isinstance(key, tuple) else key
    with pytest.raises(TypeError, match=rf"key must be .*, got {type(culprit).__name__}$"):
        NAMES.of(key)


def test_a_hundred_thousand_deep_is_an_error_and_not_a_crash() -> None:
    deep = nested(100_000)
    with pytest.raises(RecursionError):
        NAMES.of(deep)
    while deep:
        deep = deep[0]


def test_large_keys_are_told_apart_in_their_last_place() -> None:
    many: list[Any] = ["x" * 1_000_000, "x" * 999_999 + "y", b"x" * 1_000_000, 3**100_000]
    many += [3**100_000 + 1, -(3**100_000), (3**100_000,), tuple(range(10_000))]
    assert len({tag(key) for key in many}) == len(many)
    assert all(re.fullmatch(rb"h:[0-9a-f]{48}", tag(key)) for key in many)
