"""Whatever a server sends: its advice is a bounded time or nothing; lists are read by RFC 9651."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanolimit.integrations.advice import LONGEST_S, NAMES, advised
from nanolimit.integrations.item import Item, read_items

# Pieces that parsers of such fields act upon, so that most texts come close to being right.
_PIECES = st.sampled_from(
    [
        '"', "\\", '\\"', ";", ",", "=", " ", "\t", ":", "?1", "?", "@", "%", '%"', "%c3%bc", "(",
        ")", "r=0", "t=30", ";r=0", ";t=7", '"a"', '"default";r=0;t=30', "w=60", "r", "*", "a", "-",
        ".", "0", "1", "-1", "1.5", "999999999999999", "1234567890123456", ":aGk=:", "tok", "A/b",
        "Tue, 15 Nov 1994 18:00:00 GMT", "Tuesday, 15-Nov-94 18:00:00 GMT", "Nov", "GMT",
        "18:00:60", "784922400", "1e9", "NaN", "inf", "\x00",
        "\u0665", "\u017f", "\u00fc", "\udcff",
    ]
)  # fmt: skip
fields = st.one_of(
    st.lists(_PIECES, max_size=12).map("".join),
    st.text(max_size=40),
    st.integers().map(str),
    st.floats().map(repr),
    st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT")),
    _PIECES.map(lambda piece: piece * (65_536 // len(piece))),
)


@given(st.dictionaries(st.sampled_from(sorted(NAMES)), fields), st.booleans(), st.floats(0, 1e12))
def test_advice_is_bounded_or_none(headers: dict[str, str], refused: bool, now_s: float) -> None:
    seconds = advised(headers, refused, lambda: now_s)
    assert seconds is None or 0.0 <= seconds <= LONGEST_S


@given(st.one_of(st.lists(_PIECES, max_size=12).map("".join), st.text(max_size=40)))
@example('"a";r=0;t=30, "b";r=17')
@example("a;b=1.5;c")
@example("1.")
@example("-")
@example("-0")
@example("@1.5")
@example('"a",')
@example('"a"\t,\t"b"')
@example(' "a" ')
@example('\t"a"')
@example('"a"; b')
@example('"a" ;b')
@example("a/b:c*")
@example("?2")
@example("123456789012.123")
@example("1234567890123.1")
@example("1.1234")
def test_lists_of_items_are_read_as_the_standard_says(text: str) -> None:
    """Against another reader, http-sf. Of a list with an inner list all is ignored here."""
    http_sf = pytest.importorskip("http_sf")  # in the group test, not where the sanitizers run
    try:
        raw = text.encode("ascii")
        theirs: Any = http_sf.parse(raw, tltype="list")
    except ValueError:  # UnicodeError is one as well
        theirs = None
    else:
        if any(isinstance(member, list) for member, _ in theirs):
            theirs = None
    ours = read_items(text)
    if theirs is None:
        # What stands in bytes, dates and other text is not looked at.
        assert ours is None or any(kind in text for kind in (":", '%"', "@"))
        return
    assert ours == [
        Item(plain(value), {key: plain(each) for key, each in parameters.items()})
        for value, parameters in theirs
    ]


def plain(value: object) -> int | str | None:
    """What is kept of a value."""
    return value if type(value) in (int, str) else None
