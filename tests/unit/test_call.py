"""Whose a gRPC call is, which rule holds for it and what a denial says: all that needs no grpc."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from nanolimit import ManualClock, Quota, RateLimiter
from nanolimit.integrations.answer import Announcement
from nanolimit.integrations.call import Call, InvalidCall, combine, metadata, peer, user
from nanolimit.integrations.method import MethodRule
from nanolimit.integrations.trailer import Denial, fields


class Context:
    """A call's context, as far as a limit asks it."""

    def __init__(
        self,
        peer: str = "ipv4:192.0.2.1:50410",
        metadata: Iterable[tuple[str, str | bytes]] | None = (),
        identity: tuple[str, list[bytes]] | None = None,
    ) -> None:
        self._peer = peer
        self._metadata = metadata
        self._identity = identity

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        return self._metadata

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {"transport_security_type": [b"ssl"]}

    def peer_identity_key(self) -> str | None:
        return self._identity[0] if self._identity else None

    def peer_identities(self) -> Iterable[bytes] | None:
        return self._identity[1] if self._identity else None


def call(*args: Any, **kwargs: Any) -> Call:
    return Call("/p.S/M", Context(*args, **kwargs))


# Peers


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("ipv4:192.0.2.1:50410", "192.0.2.1"),
        ("ipv4:192.0.2.1", "192.0.2.1"),
        ("ipv4:", "ipv4"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50410", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:50410", "2001:db8:1:2::/64"),
        ("ipv6:%5b2001:db8:1:2::%5d:1", "2001:db8:1:2::/64"),
        ("ipv6:%5B::1%5D:50410", "::/64"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:50410", "192.0.2.1"),
        ("ipv6:%5B::ffff:c000:201%5D:50410", "192.0.2.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50410", "fe80::/64"),
        ("ipv6:[fe80::1%25eth0]:50410", "fe80::/64"),
        # What can't be read is no key of its own.
        ("ipv6:%5B2001:db8::1:50410", "ipv6"),
        ("ipv6:2001:db8::1", "ipv6"),
        ("ipv6:%5Bnobody%5D:50410", "ipv6"),
        ("ipv6:", "ipv6"),
        ("unix:", "unix"),
        ("unix:/run/client-7.sock", "unix"),
        ("unknown", "unknown"),
        ("vsock:3:1024", "vsock"),
        ("", ""),
    ],
)
def test_peer(text: str, key: str) -> None:
    assert peer()(call(text)) == key


def test_no_port_makes_another_key() -> None:
    for form in ("ipv4:192.0.2.1:{}", "ipv6:%5B2001:db8::1%5D:{}", "vsock:3:{}", "new:thing:{}"):
        assert len({peer()(call(form.format(port))) for port in (1, 50410, 65535)}) == 1


@pytest.mark.parametrize(
    ("prefix", "key"),
    [(128, "2001:db8::1"), (127, "2001:db8::/127"), (32, "2001:db8::/32"), (1, "::/1")],
)
def test_peer_prefix(prefix: int, key: str) -> None:
    assert peer(ipv6_prefix=prefix)(call("ipv6:%5B2001:db8::1%5D:50410")) == key
    assert peer(ipv6_prefix=prefix)(call("ipv6:%5B::ffff:192.0.2.1%5D:1")) == "192.0.2.1"


@pytest.mark.parametrize("prefix", [0, 129, -1])
def test_peer_prefix_out_of_range(prefix: int) -> None:
    with pytest.raises(ValueError, match=rf"ipv6_prefix must be from 1 to 128 bits, not {prefix}"):
        peer(ipv6_prefix=prefix)


def test_peer_prefix_of_another_type() -> None:
    with pytest.raises(TypeError, match="ipv6_prefix must be an int, not float"):
        peer(ipv6_prefix=64.0)  # type: ignore[arg-type]


# Metadata


def test_metadata() -> None:
    key = metadata("X-Api-Key")
    assert key(call(metadata=[("x-api-key", "abc"), ("x", "y")])) == ("x-api-key", "abc")
    assert metadata("k-bin")(call(metadata=[("k-bin", b"\0\xff")])) == ("k-bin", b"\0\xff")


@pytest.mark.parametrize("found", [(), None, [("x-api-key", "")], [("x-api-key-2", "abc")]])
def test_metadata_that_is_missing(found: Any) -> None:
    assert metadata("x-api-key")(call(metadata=found)) == "192.0.2.1"
    assert metadata("x-api-key", missing=lambda call: call.method)(call(metadata=found)) == "/p.S/M"
    with pytest.raises(InvalidCall, match=r"^metadata 'x-api-key' is missing$"):
        metadata("x-api-key", missing=None)(call(metadata=found))


@pytest.mark.parametrize("second", ["abc", "xyz", ""])
def test_metadata_that_comes_twice(second: str) -> None:
    """Whichever was taken, a client could put what it likes beside it."""
    for pairs in ([("k", "abc"), ("k", second)], [("k", second), ("x", "y"), ("k", "abc")]):
        with pytest.raises(InvalidCall, match=r"^metadata 'k' must come once, not 2 times$"):
            metadata("k")(call(metadata=pairs))


def test_a_value_is_no_address() -> None:
    """Who sends the address of another as a key does not get that one's."""
    assert metadata("k")(call(metadata=[("k", "192.0.2.9")])) != peer()(call("ipv4:192.0.2.9:1"))


@pytest.mark.parametrize("name", ["", "x api", "x:y", "schlüssel", "x\n", ":path"])
def test_metadata_of_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="name must consist of letters"):
        metadata(name)


def test_metadata_of_another_type() -> None:
    with pytest.raises(TypeError, match="name must be a str, not bytes"):
        metadata(b"k")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="missing must be a callable"):
        metadata("k", missing="anybody")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"missing must be what peer\(\.\.\.\) returns, not peer"):
        metadata("k", missing=peer)  # type: ignore[arg-type]


# Users


def test_user() -> None:
    alice = call(identity=("x509_common_name", [b"alice"]))
    both = call(identity=("x509_subject_alternative_name", [b"alice", b"a.example"]))
    assert user()(alice) == ("user", "x509_common_name", (b"alice",))
    assert user()(both) == (
        "user",
        "x509_subject_alternative_name",
        (b"alice", b"a.example"),
    )


@pytest.mark.parametrize("identity", [None, ("x509_common_name", [])])
def test_user_that_nobody_knows(identity: Any) -> None:
    nobody = call(identity=identity)
    assert nobody.identity is None
    assert user()(nobody) == "192.0.2.1"
    assert user(missing=lambda call: "nobody")(nobody) == "nobody"
    with pytest.raises(InvalidCall, match=r"^the client is not authenticated$"):
        user(missing=None)(nobody)


# Several


def test_combine() -> None:
    key = combine(peer(), metadata("k"), lambda call: call.method)
    assert key(call(metadata=[("k", "v")])) == ("192.0.2.1", ("k", "v"), "/p.S/M")
    assert combine(peer())(call()) == ("192.0.2.1",)
    assert combine(peer(), lambda call: None)(call()) is None


def test_coroutine_functions_among_them() -> None:
    async def account(call: Call) -> str:
        await asyncio.sleep(0)
        return "account"

    async def nobody(call: Call) -> None:
        return None

    class Lookup:
        async def __call__(self, call: Call) -> str:
            return "found"

    async def ask(key: Any, *args: Any, **kwargs: Any) -> Any:
        return await key(call(*args, **kwargs))

    keys = combine(peer(), account, Lookup())
    assert asyncio.run(ask(keys)) == ("192.0.2.1", "account", "found")
    assert asyncio.run(ask(combine(peer(), nobody))) is None
    assert asyncio.run(ask(metadata("k", missing=account))) == "account"
    assert asyncio.run(ask(metadata("k", missing=account), metadata=[("k", "v")])) == ("k", "v")
    assert asyncio.run(ask(user(missing=account))) == "account"


def test_combine_what_is_none() -> None:
    with pytest.raises(ValueError, match="at least one key function"):
        combine()
    with pytest.raises(TypeError, match="keys must be a callable"):
        combine(peer(), "192.0.2.1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"keys must be what metadata\(\.\.\.\) returns"):
        combine(metadata)  # type: ignore[arg-type]


# A call


def test_call() -> None:
    asked = call(metadata=[("a", "1"), ("b-bin", b"2"), ("a", "3")])
    assert asked.method == "/p.S/M"
    assert asked.metadata == (("a", "1"), ("b-bin", b"2"), ("a", "3"))
    assert asked.values("a") == ["1", "3"]
    assert asked.values("c") == []
    assert call(metadata=None).metadata == ()
    assert asked.peer == "ipv4:192.0.2.1:50410"
    assert asked.auth_context == {"transport_security_type": (b"ssl",)}
    assert repr(asked) == "Call('/p.S/M')"


# Rules


@pytest.mark.parametrize(
    ("pattern", "those", "not_those"),
    [
        ("/p.S/M", ["/p.S/M"], ["/p.S/M2", "/p.S/m", "p.S/M", "/p.S/M/", "/p.S"]),
        ("/p.S/*", ["/p.S/M", "/p.S/"], ["/p.S2/M", "/p.S", "/p/S"]),
        ("/p.S/Get*", ["/p.S/Get", "/p.S/GetAll"], ["/p.S/get", "/p.S/M"]),
        ("/p.*", ["/p.S/M", "/p.T/M"], ["/pS/M", "/q.S/M"]),
        ("/*", ["/p.S/M", "/"], [""]),
    ],
)
def test_patterns(pattern: str, those: list[str], not_those: list[str]) -> None:
    rule = MethodRule(pattern, "5/minute")
    assert [method for method in those + not_those if rule.matches(method)] == those


@pytest.mark.parametrize(
    "pattern",
    ["", "*", "p.S/M", "/p.S", "/p.S/", "//M", "/", "/p.S/M/x", "/*/M", "/p.S/**", "/p.S/M x",
     "/p.S/M\n", "POST /login", "/a/b/*"],
)  # fmt: skip
def test_patterns_of_no_method(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"is no method: write it like '/package\.Service/Method'"):
        MethodRule(pattern, "5/minute")


def test_a_rule() -> None:
    limiter = RateLimiter("5/minute")
    key = peer()
    rule = MethodRule("/p.S/M", limiter, key=key, cost=5)
    assert (rule.method, rule.limiter, rule.key, rule.cost) == ("/p.S/M", limiter, key, 5)
    made = MethodRule("/p.S/M", ["5/minute", "10/hour"]).limiter
    assert made is not None
    assert made.quotas == (Quota(5), Quota(10, per=3600))
    assert MethodRule("/p.S/M", None).limiter is None
    assert repr(MethodRule("/p.S/M", None)) == "MethodRule('/p.S/M', None)"
    with pytest.raises(AttributeError, match="immutable"):
        rule.cost = 1
    with pytest.raises(AttributeError, match="immutable"):
        del rule.cost


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": b"/p.S/M"}, TypeError, "method must be a str, not bytes"),
        ({"limiter": 5}, TypeError, "limiter must be a RateLimiter, or a quota"),
        ({"limiter": "5/fortnight"}, ValueError, "quota '5/fortnight' is not understood"),
        ({"key": "me"}, TypeError, "key must be a callable"),
        ({"key": peer}, TypeError, r"key must be what peer\(\.\.\.\) returns"),
        ({"cost": -1}, ValueError, "cost must be >= 0, not -1"),
        ({"cost": 6}, ValueError, "cost 6 never fits into the limit of 5"),
        ({"cost": 1.0}, TypeError, "cost must be an int, not float"),
        ({"cost": True}, TypeError, "cost must be an int, not bool"),
    ],
)
def test_a_rule_that_can_not_be(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MethodRule(**{"method": "/p.S/M", "limiter": ["9/minute", "5/second"], **arguments})


# Denials


def denied(limiter: RateLimiter, key: str = "key") -> Any:
    decision = limiter.check(key)
    while decision.allowed:
        decision = limiter.check(key)
    return decision


@pytest.mark.parametrize(
    ("after", "seconds", "pushback", "message"),
    [
        (60.0, "60", "60000", "60.000 s"),
        (59.0004, "60", "59001", "59.001 s"),
        (1.0001, "2", "1001", "1.001 s"),
        (1.0, "1", "1000", "1.000 s"),
        (0.9999, "1", "1000", "1.000 s"),
        (0.25, "1", "250", "0.250 s"),
        (0.000001, "1", "1", "0.001 s"),
        (2_147_480.0, "2147480", "2147480000", "2147480.000 s"),
        (2_147_490.0, "2147490", "-1", "2147490.000 s"),  # longer than gRPC's clients can wait
        (315_576_000.0, "315576000", "-1", "315576000.000 s"),
    ],
)
def test_denial(after: float, seconds: str, pushback: str, message: str) -> None:
    limiter = RateLimiter(1, per=after, clock=ManualClock())
    denial = Denial.of(denied(limiter))
    assert denial.metadata == (("retry-after", seconds), ("grpc-retry-pushback-ms", pushback))
    assert denial.message == f"rate limit of {limiter.quota} exceeded, retry after {message}"


def test_fields() -> None:
    clock = ManualClock()
    limiter = RateLimiter("3/minute", name="api", clock=clock)

    def told(decision: Any) -> list[str]:
        (first, policy), (second, left) = fields(decision, Announcement(limiter))
        assert (first, second) == ("ratelimit-policy", "ratelimit")
        return [str(left), str(policy)]

    assert told(limiter.check("k")) == ['"api";r=2;t=60', '"api";q=3;w=60']
    clock.advance(20.5)
    assert told(limiter.check("k", 2)) == ['"api";r=0;t=40', '"api";q=3;w=60']
    assert told(limiter.check("k")) == ['"api";r=0;t=40', '"api";q=3;w=60']
    assert told(limiter.check("k", 3)) == ['"api";r=0;t=60', '"api";q=3;w=60']
    limiter.set_quota("paid", Quota(50))
    assert told(limiter.check("paid")) == ['"api";r=49;t=60', '"api";q=50;w=60']


def test_a_name_can_break_out_of_no_field() -> None:
    limiter = RateLimiter("5/minute", name='a"b\\c\r\nset-cookie: ü\ud800')
    for _, value in fields(limiter.check("k"), Announcement(limiter)):
        assert str(value).startswith('"a\\"b\\\\c%0D%0Aset-cookie: %C3%BC%ED%A0%80";')
