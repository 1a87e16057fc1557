"""Whose request it is: nobody can choose a key of his own by what he writes into a header."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolimit.integrations import InvalidRequestError, client_ip
from nanolimit.integrations.address import nodes_of_forwarded

PROXY = "10.0.0.1"
TRUSTED = ["10.0.0.0/8", "fd00::/8"]
CLIENT = "198.51.100.7"


def scope(peer: str | None, **headers: str | list[str]) -> dict[str, Any]:
    """An ASGI scope; a header given as a list stands there several times."""
    fields = []
    for name, values in headers.items():
        for value in [values] if isinstance(values, str) else values:
            fields.append((name.replace("_", "-").encode(), value.encode("latin-1")))
    return {
        "type": "http",
        "client": None if peer is None else (peer, 1234),
        "headers": fields,
    }


def environ(peer: str | None, **headers: str | list[str]) -> dict[str, Any]:
    """The same for WSGI, whose servers join what stands there several times."""
    fields: dict[str, Any] = {"REQUEST_METHOD": "GET"}
    if peer is not None:
        fields["REMOTE_ADDR"] = peer
    for name, values in headers.items():
        joined = values if isinstance(values, str) else ",".join(values)
        fields["HTTP_" + name.upper()] = joined
    return fields


BOTH = pytest.mark.parametrize("request_of", [scope, environ])


# Without proxies


@BOTH
@pytest.mark.parametrize(
    ("peer", "key"),
    [
        (CLIENT, CLIENT),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("::ffff:198.51.100.7", CLIENT),
        ("::FFFF:c633:6407", CLIENT),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", "unknown"),
        (None, "unknown"),
        ("testclient", "testclient"),
    ],
)
def test_the_peer(request_of: Any, peer: str | None, key: str) -> None:
    assert client_ip()(request_of(peer)) == key


@BOTH
def test_what_it_writes_changes_nothing(request_of: Any) -> None:
    for name in ("forwarded", "x_forwarded_for", "x_real_ip"):
        for value in ("1.2.3.4", "for=1.2.3.4", "\0garbage", "x" * 65_536):
            assert client_ip()(request_of(CLIENT, **{name: value})) == CLIENT
            # nor if it is no proxy that we trust
            assert client_ip(TRUSTED)(request_of(CLIENT, **{name: value})) == CLIENT


def test_the_prefixes() -> None:
    assert client_ip(ipv6_prefix=48)(scope("2001:db8:1:2::3")) == "2001:db8:1::/48"
    assert client_ip(ipv6_prefix=128)(scope("2001:db8:1:2::3")) == "2001:db8:1:2::3"
    assert client_ip(ipv4_prefix=24)(scope(CLIENT)) == "198.51.100.0/24"


# Behind proxies


@BOTH
@pytest.mark.parametrize(
    ("chain", "key"),
    [
        (CLIENT, CLIENT),
        (f"1.2.3.4, {CLIENT}", CLIENT),
        (f"1.2.3.4, 10.9.9.9, {CLIENT}", CLIENT),
        (f"{CLIENT}, 10.0.0.2", CLIENT),
        (f"1.2.3.4, {CLIENT}, 10.0.0.2, 10.0.0.3", CLIENT),
        (f"garbage, , \0, {CLIENT}", CLIENT),
        (f"{CLIENT}:51234", CLIENT),
        ("[2001:db8:1:2::3]:443", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::3", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::3]", "2001:db8:1:2::/64"),
        (f"::ffff:{CLIENT}", CLIENT),
        (f"[::ffff:{CLIENT}]:80", CLIENT),
        (f"  {CLIENT}\t", CLIENT),
        (f"{CLIENT}, ::ffff:10.0.0.2", CLIENT),
        (f"{CLIENT}, fd00::7", CLIENT),
        ("10.0.0.9", "10.0.0.9"),
        ("unknown", PROXY),
        ("1.2.3.4, _hidden", PROXY),
        ("1.2.3.4, unknown, 10.0.0.2", "10.0.0.2"),
        (" , ,", PROXY),
        ("x," * 30_000 + CLIENT, CLIENT),
    ],
)
def test_x_forwarded_for(request_of: Any, chain: str, key: str) -> None:
    assert client_ip(TRUSTED)(request_of(PROXY, x_forwarded_for=chain)) == key
    for name in ("X-Forwarded-For", "x-forwarded-for"):
        assert client_ip(TRUSTED, header=name)(request_of(PROXY, x_forwarded_for=chain)) == key


@BOTH
@pytest.mark.parametrize(
    ("chain", "key"),
    [
        (f"for={CLIENT}", CLIENT),
        (f"for=1.2.3.4, for={CLIENT}", CLIENT),
        (f"For={CLIENT};proto=https;by=10.0.0.1", CLIENT),
        (f'proto=https; FOR="{CLIENT}:4711" ;host="a,b;c"', CLIENT),
        ('for="[2001:db8:1:2::3]:4711"', "2001:db8:1:2::/64"),
        (f"for={CLIENT}:80", CLIENT),
        (f"for={CLIENT}, for=10.0.0.2", CLIENT),
        (f'for="\\{CLIENT}"', CLIENT),
        ('for="_gazonk"', PROXY),
        ("for=unknown", PROXY),
        ("proto=https", PROXY),
        (f"for={CLIENT},", CLIENT),
    ],
)
def test_forwarded(request_of: Any, chain: str, key: str) -> None:
    assert client_ip(TRUSTED)(request_of(PROXY, forwarded=chain)) == key
    assert client_ip(TRUSTED, header="Forwarded")(request_of(PROXY, forwarded=chain)) == key


@BOTH
@pytest.mark.parametrize(
    ("name", "chain"),
    [
        ("x_forwarded_for", "garbage"),
        ("x_forwarded_for", "1.2.3.4, 300.1.1.1"),
        ("x_forwarded_for", "1.2.3.4:99999999"),
        ("x_forwarded_for", "1.2.3.4:"),
        ("x_forwarded_for", "[::1"),
        ("x_forwarded_for", "[::1]x"),
        ("x_forwarded_for", "1.2.3.4\r\nX-Evil: 1"),
        ("x_forwarded_for", "\xff\xfe"),
        ("x_forwarded_for", "1" * 65_536),
        ("x_forwarded_for", "01.02.03.04"),
        ("x_forwarded_for", ",".join(["10.0.0.2"] * 100)),
        ("forwarded", "1.2.3.4"),
        ("forwarded", "for="),
        ("forwarded", 'for="1.2.3.4'),
        ("forwarded", "for=1.2.3.4;for=5.6.7.8"),
        ("forwarded", "for=garbage"),
        ("forwarded", 'for="' + "\\" * 65_535),
        ("forwarded", "for=1.2.3.4 for=5.6.7.8"),
    ],
)
def test_what_no_proxy_writes_is_refused(request_of: Any, name: str, chain: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client_ip(TRUSTED)(request_of(PROXY, **{name: chain}))
    assert len(str(caught.value)) < 300


@BOTH
def test_an_open_quote_swallows_no_hop(request_of: Any) -> None:
    """The client writes `for="1.2.3.4`, and the proxy adds what it saw behind that."""
    for added in (f", for={CLIENT}", f', for="{CLIENT}"', f', for="{CLIENT}:80"'):
        with pytest.raises(InvalidRequestError):
            client_ip(TRUSTED)(request_of(PROXY, forwarded='for="1.2.3.4' + added))


@BOTH
def test_lines_are_joined_in_their_order(request_of: Any) -> None:
    found = client_ip(TRUSTED)(request_of(PROXY, x_forwarded_for=["1.2.3.4", CLIENT]))
    assert found == CLIENT


@BOTH
def test_a_client_adds_the_header_that_the_proxy_does_not_write(request_of: Any) -> None:
    forged = request_of(PROXY, x_forwarded_for=CLIENT, forwarded="for=1.2.3.4")
    with pytest.raises(InvalidRequestError, match="two different clients"):
        client_ip(TRUSTED)(forged)
    assert client_ip(TRUSTED, header="X-Forwarded-For")(forged) == CLIENT
    agreed = request_of(PROXY, x_forwarded_for=CLIENT, forwarded=f"for={CLIENT}")
    assert client_ip(TRUSTED)(agreed) == CLIENT


@BOTH
def test_so_many_proxies(request_of: Any) -> None:
    chain = f"1.2.3.4, {CLIENT}, 203.0.113.5"
    assert client_ip(0)(request_of("203.0.113.9", x_forwarded_for=chain)) == "203.0.113.9"
    assert client_ip(1)(request_of("203.0.113.9", x_forwarded_for=chain)) == "203.0.113.5"
    assert client_ip(2)(request_of("203.0.113.9", x_forwarded_for=chain)) == CLIENT
    # Fewer hops than said: the first of them saw the client.
    assert client_ip(2)(request_of("203.0.113.9", x_forwarded_for=CLIENT)) == CLIENT
    assert client_ip(2)(request_of("203.0.113.9")) == "203.0.113.9"
    assert client_ip(1)(request_of(None, x_forwarded_for=CLIENT)) == CLIENT


@BOTH
def test_a_unix_socket(request_of: Any) -> None:
    there = request_of(None, x_forwarded_for=f"1.2.3.4, {CLIENT}")
    assert client_ip(TRUSTED)(there) == "unknown"
    assert client_ip(["unix"])(there) == CLIENT
    assert client_ip(["unix"])(request_of(None)) == "unknown"
    # Who has an address does not come by the socket.
    assert client_ip(["unix"])(request_of("1.1.1.1", x_forwarded_for=CLIENT)) == "1.1.1.1"


@given(st.text(st.characters(max_codepoint=255), max_size=60), st.booleans())
def test_a_forged_chain_is_the_right_key_or_refused(forged: str, modern: bool) -> None:
    """Whatever the client wrote, the proxy has added what it saw."""
    if modern:
        request = scope(PROXY, forwarded=f"{forged},for={CLIENT}")
    else:
        request = scope(PROXY, x_forwarded_for=f"{forged},{CLIENT}")
    for trusted in (TRUSTED, 1):
        try:
            assert client_ip(trusted)(request) == CLIENT
        except InvalidRequestError:
            assert modern, "the end of a plain list can't be hidden"


@given(st.text(st.characters(max_codepoint=255)))
def test_any_forwarded_header_is_read_or_refused(value: str) -> None:
    try:
        nodes = nodes_of_forwarded(value)
    except InvalidRequestError:
        return
    assert all(isinstance(node, str) for node in nodes)


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"trusted_proxies": "10.0.0.0/8"}, TypeError, "must be a list of networks"),
        ({"trusted_proxies": True}, TypeError, "must be a list of networks"),
        ({"trusted_proxies": -1}, ValueError, "trusted_proxies must be from 0 to 64, not -1"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, ValueError, "has host bits set"),
        ({"trusted_proxies": ["proxy"]}, ValueError, "addresses, networks or 'unix'.*'proxy'"),
        ({"header": "X-Real-IP"}, ValueError, "'Forwarded', 'X-Forwarded-For' or None, not 'X-R"),
        ({"header": 5}, ValueError, "not 5"),
        ({"ipv6_prefix": 0}, ValueError, "ipv6_prefix must be from 1 to 128 bits, not 0"),
        ({"ipv4_prefix": 33}, ValueError, "ipv4_prefix must be from 1 to 32 bits, not 33"),
        ({"ipv4_prefix": True}, TypeError, "ipv4_prefix must be an int, not bool"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        client_ip(**arguments)
