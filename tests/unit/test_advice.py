"""What a server advises, read off its fields: nothing here needs a client, nor Hypothesis."""

from __future__ import annotations

import time
from typing import Any

import pytest

from nanolimit.integrations.advice import LONGEST_S, advised, epoch
from nanolimit.integrations.item import Item, read_items

# Tue, 15 Nov 1994 18:00:00 GMT, which the drafts use for an example.
NOW_S = 784_922_400.0
DATE = "Tue, 15 Nov 1994 18:00:00 GMT"


def clock() -> float:
    return NOW_S


def ask(refused: bool, fields: dict[str, str]) -> float | None:
    """Ask for a server's advice. Names are as http.client and others give them: in any case."""
    return advised({name.lower(): value for name, value in fields.items()}, refused, clock)


def refusal(**fields: str) -> float | None:
    return ask(True, {name.replace("_", "-"): value for name, value in fields.items()})


def answer(**fields: str) -> float | None:
    return ask(False, {name.replace("_", "-"): value for name, value in fields.items()})


def test_nothing_said() -> None:
    assert refusal() is None
    assert answer() is None
    assert refusal(server="nginx", date=DATE) is None


# Retry-After


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7\t", 7.0),
        ("007", 7.0),
        ("1.5", 1.5),
        ("2.", 2.0),
        ("Tue, 15 Nov 1994 18:01:40 GMT", 100.0),
        ("Tuesday, 15-Nov-94 18:01:40 GMT", 100.0),
        ("Tue Nov 15 18:01:40 1994", 100.0),
        ("tue, 15 nov 1994 18:01:40 gmt", 100.0),
        ("Tue, 15 Nov 1994 18:00:60 GMT", 60.0),
        (DATE, 0.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),  # past
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_S),
        ("Sun, 01 Jan 0001 00:00:00 GMT", 0.0),
        ("99999999999999999999", LONGEST_S),
        ("9" * 65_536, LONGEST_S),
        ("0." + "9" * 65_536, pytest.approx(1.0)),
    ],
)
def test_retry_after(field: str, seconds: float) -> None:
    assert refusal(retry_after=field) == seconds
    assert refusal(Retry_After=field, Date="not a date") == seconds
    assert answer(retry_after=field) is None, "a 202 or a 301 means something else by it"


@pytest.mark.parametrize(
    "field",
    [
        "",
        " ",
        "soon",
        "-1",
        "+5",
        "1e3",
        "0x10",
        "NaN",
        "inf",
        "1,5",
        "5, 10",
        ".5",
        "5s",
        "\u0665",  # a digit, but not HTTP's
        "\u00b2",
        "five",
        "Tue, 15 Nov 1994",
        "Tue, 31 Feb 1994 18:01:40 GMT",
        "Tue, 15 Nov 1994 24:01:40 GMT",
        "Tue, 15 Nov 1994 18:60:40 GMT",
        "Tue, 15 Nov 1994 18:01:61 GMT",
        "Tue, 15 Nov 0000 18:01:40 GMT",
        "Tue, 15 Nov 1994 18:01:40 CET",
        "Tue, 15 \u017fep 1994 18:01:40 GMT",  # a long s, which is an s in small letters
        "Tue, 15 Nov 19\u0669\u0664 18:01:40 GMT",
        "1994-11-15T18:01:40Z",
        "x" * 65_536,
        "Tue, " * 13_000,
        "\x00",
        "\udcff",
    ],
)
def test_what_is_no_retry_after_is_not_said(field: str) -> None:
    assert refusal(retry_after=field) is None
    assert refusal(retry_after=field, ratelimit='"a";r=0;t=3') == 3.0, "then the next is asked"


def test_a_date_counts_by_the_server_s_clock() -> None:
    """It is an hour slow; so is the date that it names."""
    fields = {
        "Retry-After": "Tue, 15 Nov 1994 17:01:00 GMT",
        "Date": "Tue, 15 Nov 1994 17:00:00 GMT",
    }
    assert ask(True, fields) == 60.0
    del fields["Date"]
    assert ask(True, fields) == 0.0


def test_the_system_s_clock_if_none_is_given() -> None:
    ahead = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 1000))
    seconds = advised({"retry-after": ahead}, True)
    assert seconds is not None
    assert 900 < seconds <= 1000


def test_years_of_two_digits() -> None:
    """Never more than fifty years ahead: RFC 9110, section 5.6.7."""
    now = time.gmtime().tm_year
    for ahead in (-49, -1, 0, 1, 49, 50):
        year = now + ahead
        text = f"Monday, 01-Jan-{year % 100:02d} 00:00:00 GMT"
        assert epoch(text) == epoch(f"Mon, 01 Jan {year} 00:00:00 GMT"), year
    assert epoch(f"Monday, 01-Jan-{(now + 51) % 100:02d} 00:00:00 GMT") == epoch(
        f"Mon, 01 Jan {now - 49} 00:00:00 GMT"
    )


# RateLimit


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        ('"default";r=0;t=30', 30.0),
        ('"default";r=0;t=0', 0.0),
        ('"default";r=50;t=30', None),
        ('"default";t=30;r=0', 30.0),
        ('"burst";r=0;t=3, "daily";r=0;t=4000,"hourly";r=7;t=5000', 4000.0),
        ('"burst";r=0;t=3\t,\t"daily";r=9', 3.0),
        ('"a \\"name\\", it;r=7 \\\\";r=0;t=5', 5.0),
        ('"";r=0;t=5', 5.0),
        ('"a"; r=0;  t=5', 5.0),
        ('"a";r=0;t=5;pk=:cHsdsRa894==:', 5.0),
        ('"a";acme-x;r=0;b=1.5;c=tok/en;d=?1;e="s";f=@17;g=%"%c3%bc";t=5', 5.0),
        ('"a";r=7;r=0;t=9;t=5', 5.0),  # of two parameters of a name the last counts
        ('"a";r=0;t=999999999999999', LONGEST_S),
        ('"a";r=999999999999999;t=1', None),
        ("", None),
    ],
)
def test_ratelimit(field: str, seconds: float | None) -> None:
    assert answer(RateLimit=field) == seconds
    assert refusal(RateLimit=field) == seconds


@pytest.mark.parametrize(
    "field",
    [
        "default;r=0;t=30",  # a token
        "default",
        "17;r=0;t=30",
        '("default");r=0;t=30',
        '"default";r=0;t=30,',
        ',"default";r=0;t=30',
        '"default";r=0;t=30;',
        '"default";r=0;t=30 x',
        '"default" ;r=0;t=30',
        '"default";r=0;t =30',
        '"default";r=0;t= 30',
        '"default";r=0;t=',
        '"default";R=0;t=30',
        '"default;r=0;t=30',
        'default";r=0;t=30',
        '"def\\ault";r=0;t=30',
        '"d\u00e9faut";r=0;t=30',
        '"def\x7fault";r=0;t=30',
        '"default";r=-1;t=30',
        '"default";r=-1;t=30, "other";r=0;t=5',
        '"default";r=0;t=-30',
        '"default";r=0.0;t=30',
        '"default";r=0;t=30.5',
        '"default";r=0;t="30"',
        '"default";r=0;t',
        '"default";r;t=30',
        '"default";r=?0;t=30',
        '"default";r=0;t=1234567890123456',
        '"default";r=0;t=30, "other";t=5',  # r is required
        '"default";r=0;t=30, "other"',
        '"default";r=0;t=30, 7;r=1',
        "limit=100, remaining=0, reset=30",  # drafts 07 and before
        '"default";r=0;t=\u0663\u0660',
        '"default";r=0;t=30' + ";x" * 5000,  # longer than anybody reads
        "\x00" * 65_536,
        '"' * 8_000,
        "\\" * 8_000,
        '"' + "\\" * 7_999,
        ";" * 8_000,
        ":" * 8_000,
        ":" + "A" * 7_999,
        "%" + '"%' * 3_000,
        '"a"' + ";" * 7_000,
        '"a"' + "; " * 3_500,
        '"a"' + " " * 7_000 + "x",
    ],
)
def test_a_malformed_ratelimit_is_ignored_entirely(field: str) -> None:
    before = time.process_time()
    assert answer(RateLimit=field) is None
    assert refusal(RateLimit=field) is None
    assert refusal(RateLimit=field, X_RateLimit_Remaining="0", X_RateLimit_Reset="7") == 7.0
    assert time.process_time() - before < 5.0, "it takes time out of proportion"


def test_retry_after_takes_precedence() -> None:
    fields = {"Retry-After": "5", "RateLimit": '"a";r=0;t=30', "X-RateLimit-Remaining": "0"}
    fields["X-RateLimit-Reset"] = "40"
    assert ask(True, fields) == 5.0
    assert ask(False, fields) == 30.0
    del fields["RateLimit"]
    assert ask(False, fields) == 40.0


def test_a_refusal_that_names_no_time_but_the_policy_s_window() -> None:
    policy = '"burst";q=10;w=60, "daily";q=1000;w=86400;pk=:aGk=:, "odd";q=1;w=0, "more";q=3'
    assert refusal(RateLimit='"burst";r=0', RateLimit_Policy=policy) == 60.0
    assert answer(RateLimit='"burst";r=0', RateLimit_Policy=policy) is None, "it may be sooner"
    assert refusal(RateLimit='"burst";r=3', RateLimit_Policy=policy) is None
    for unknown in ("another", "odd", "more"):
        assert refusal(RateLimit=f'"{unknown}";r=0', RateLimit_Policy=policy) is None
    assert refusal(RateLimit='"burst";r=0', RateLimit_Policy=policy + ",") is None
    assert refusal(RateLimit='"burst";r=0;t=2, "daily";r=0', RateLimit_Policy=policy) == 86_400.0


# What was before it


@pytest.mark.parametrize("name", ["RateLimit-", "X-RateLimit-", "X-Rate-Limit-"])
@pytest.mark.parametrize(
    ("remaining", "reset", "seconds"),
    [
        ("0", "30", 30.0),
        ("0", "0", 0.0),
        ("0.0", "30.5", 30.5),
        ("0.7", "30", 30.0),
        ("-1", "30", 30.0),
        ("1", "30", None),
        ("4999", "30", None),
        ("0", f"{NOW_S + 100:.0f}", None),  # 1994 has no ten digits: between the two readings
        ("0", "31622400", LONGEST_S),
        ("0", "31622401", None),
        ("0", "1000000000", LONGEST_S),  # 2001, which is ahead of 1994
        ("0", "1000000000000", LONGEST_S),
        ("0", "99999999999999999999", None),
        ("0", "-30", None),
        ("0", "soon", None),
        ("0", "", None),
        ("none", "30", None),
        ("", "30", None),
        ("NaN", "30", None),
        ("0", "inf", None),
        ("0, 5", "30, 40", None),
        ("9" * 65_536, "30", None),
        ("0", "9" * 65_536, None),
        ("\u0660", "30", None),
    ],
)
def test_remaining_and_reset(name: str, remaining: str, reset: str, seconds: float | None) -> None:
    fields = {f"{name}Remaining": remaining, f"{name}Reset": reset}
    assert ask(False, fields) == seconds
    assert ask(True, fields) == seconds


@pytest.mark.parametrize("factor", [1, 1000])
def test_a_reset_since_1970_counts_by_the_server_s_clock(factor: int) -> None:
    there_s = epoch("Mon, 01 Jan 2024 00:00:00 GMT")
    assert there_s is not None
    fields = {
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": str((there_s + 90) * factor),
        "Date": "Mon, 01 Jan 2024 00:00:00 GMT",
    }
    assert ask(False, fields) == 90.0
    del fields["Date"]
    assert advised(lowered(fields), False, lambda: there_s + 80.0) == pytest.approx(10.0)
    assert advised(lowered(fields), False, lambda: there_s + 100.0) == 0.0


def lowered(fields: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in fields.items()}


def test_an_answer_from_a_cache_tells_nothing_of_what_is_left() -> None:
    fields = {"RateLimit": '"a";r=0;t=30', "Age": "3"}
    assert ask(False, fields) is None
    assert ask(True, fields) is None
    assert ask(True, {**fields, "Retry-After": "5"}) == 5.0
    assert ask(False, {**fields, "Age": "0"}) == 30.0
    assert ask(False, {**fields, "Age": "old"}) == 30.0


# Items


def test_items() -> None:
    read: Any = read_items('"a\\"b";r=0;t, tok;x="y" , -17;z=1.5')
    assert read == [
        Item('a"b', {"r": 0, "t": None}),
        Item(None, {"x": "y"}),
        Item(-17, {"z": None}),
    ]
    assert read_items("") == []
    assert read_items("   ") == []
    assert read_items('"' + "a" * 8_000 + '"') == [Item("a" * 8_000, {})]
