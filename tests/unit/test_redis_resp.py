"""The bytes of requests and replies."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st

from lua import COUNT
from nanolimit.redis.fault import Unavailable, fault_of_reply
from nanolimit.redis.resp import NOTHING, ErrorReply, ProtocolError, Reader, pack, pack_source

words = st.one_of(st.binary(max_size=30), st.text(max_size=30), st.integers())
replies = st.recursive(
    st.one_of(st.integers(), st.none(), st.binary(max_size=30)),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=20,
)


def as_bytes(word: bytes | str | int) -> bytes:
    if isinstance(word, bytes):
        return word
    return word.encode() if isinstance(word, str) else str(word).encode()


def sent(reply: object) -> bytes:
    """What a server sends for a reply."""
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    assert isinstance(reply, list)
    return b"*%d\r\n" % len(reply) + b"".join(sent(each) for each in reply)


@given(st.lists(st.binary(max_size=30), max_size=4), st.lists(words, max_size=4))
def test_a_request_is_a_list_of_its_words(keys: list[bytes], args: list[bytes | str | int]) -> None:
    rest = [str(len(keys)).encode(), *keys, *map(as_bytes, args)]
    assert pack(COUNT, keys, args) == sent([b"EVALSHA", COUNT.sha.encode(), *rest])
    assert pack_source(COUNT, keys, args) == sent([b"EVAL", COUNT.source.encode(), *rest])


@given(st.lists(replies, max_size=4), st.data())
def test_replies_come_in_pieces(wanted: list[object], data: st.DataObject) -> None:
    stream = b"".join(map(sent, wanted))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    reader, found = Reader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        reader.feed(stream[start:end])
        while (reply := reader.next()) is not NOTHING:
            found.append(reply)
    assert found == wanted
    assert reader.empty


def test_each_kind_of_reply() -> None:
    reader = Reader()
    reader.feed(b"+OK\r\n-ERR no\r\n*-1\r\n$0\r\n\r\n:-5\r\n")
    assert reader.next() == b"OK"
    error = reader.next()
    assert isinstance(error, ErrorReply)
    assert error.text == "ERR no"
    assert [reader.next() for _ in range(4)] == [None, b"", -5, NOTHING]


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 400\r\n", b":x\r\n", b"$x\r\n", b"*x\r\n", b"\r\n", b"*1\r\n" * 5000]
)
def test_what_is_no_reply(data: bytes) -> None:
    reader = Reader()
    reader.feed(data)
    with pytest.raises(ProtocolError, match="no reply of a Redis server"):
        reader.next()


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("LOADING Redis is loading the dataset in memory", False),
        ("BUSY Redis is busy running a script.", False),
        ("OOM command not allowed when used memory > 'maxmemory'. script: a, on @user_script:1.",
         False),
        ("READONLY You can't write against a read only replica. script: a, on @user_script:1.",
         False),
        ("ERR Error running script (call to f_a): @user_script:1: @user_script: 1: -READONLY No",
         False),
        ("ERR Error running script (call to f_a): @user_script:1: -OOM command not allowed", False),
        ("ERR Error running script (call to f_a): @user_script:1: WRONGTYPE Operation", True),
        ("WRONGTYPE Operation against a key. script: a, on @user_script:1.", True),
        ("NOPERM this user has no permissions. script: a, on @user_script:1.", True),
        ("NOPERM this user has no permissions to run the 'evalsha' command", False),
        ("ERR unknown command 'EVALSHA'", False),
        ("CLUSTERDOWN The cluster is down", False),
    ],
)  # fmt: skip
def test_what_an_error_says_of_the_outcome(text: str, unknown: bool) -> None:
    fault = fault_of_reply(text)
    assert (fault.reason, fault.outcome_unknown) == (text, unknown)


def test_a_fault_is_copied_like_any_exception() -> None:
    import copy
    import pickle

    fault = Unavailable("no reply", outcome_unknown=True)
    for again in (copy.copy(fault), pickle.loads(pickle.dumps(fault))):
        assert (again.reason, again.outcome_unknown) == ("no reply", True)
        assert str(again) == "no reply (it may have counted)"
