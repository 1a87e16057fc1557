"""Names, keys and quotas as the dashboard says them."""

from __future__ import annotations

import ipaddress
import json
import uuid
from typing import Any

import pytest

from nanolimit import Quota
from nanolimit.dashboard import label, words
from nanolimit.dashboard.response import encoded


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("user:42", ["user:42"]),
        ("<script>alert(1)</script>", ["<script>alert(1)</script>"]),
        ("two words", ["two words"]),
        ("ключ 鍵 😀", ["ключ 鍵 😀"]),
        ("", ["", "empty", ""]),
        (" a", ["", "space", "a"]),
        ("a ", ["a", "space", ""]),
        ("a  b", ["a ", "space", "b"]),
        (" ", ["", "space", ""]),
        ("a\nb", ["a", "\\n", "b"]),
        ("\r\t\0", ["", "\\r", "", "\\t", "", "\\0", ""]),
        ("\\n", ["\\n"]),
        ("a\u2028b", ["a", "U+2028", "b"]),
        ("\u202egpj.exe", ["", "U+202E", "gpj.exe"]),
        ("a\u2066b\u2069", ["a", "U+2066", "b", "U+2069", ""]),
        ("a\u200bb", ["a", "U+200B", "b"]),
        ("\ufeffa", ["", "U+FEFF", "a"]),
        ("a\u00a0b", ["a", "U+00A0", "b"]),
        ("\udce9", ["", "U+DCE9", ""]),
        ("\u3164", ["", "U+3164", ""]),
        ("\u2800", ["", "U+2800", ""]),
        ("\x1b[31m", ["", "U+001B", "[31m"]),
        ("\x7f", ["", "U+007F", ""]),
        ("\U000e0041", ["", "U+E0041", ""]),
    ],
)
def test_what_cannot_be_seen_is_named(text: str, parts: list[str]) -> None:
    assert label.parts(text) == parts
    assert json.loads(encoded(parts)) == parts


def test_a_text_without_end_has_one() -> None:
    assert label.parts("x" * 5000) == ["x" * 400 + "…"]


@pytest.mark.parametrize(
    ("key", "kind", "text"),
    [
        ("1", "", "1"),
        (1, "int", "1"),
        (b"1", "bytes", "b'1'"),
        (("1", 1), "tuple", "('1', 1)"),
        (uuid.UUID(int=1), "uuid", "00000000-0000-0000-0000-000000000001"),
        (ipaddress.ip_address("::1"), "address", "::1"),
        (ipaddress.ip_network("10.0.0.0/8"), "address", "10.0.0.0/8"),
        pytest.param(10**5000, "int", hex(10**5000), id="a long int"),
    ],
)
def test_keys(key: Any, kind: str, text: str) -> None:
    assert (label.kind(key), label.text(key)) == (kind, text)


@pytest.mark.parametrize(
    ("quota", "algorithm", "said"),
    [
        ("100/minute", "sliding-log", "100 requests in any 60 seconds, counted exactly"),
        ("1/second", "sliding-log", "1 request in any second, counted exactly"),
        ("5/15m", "sliding-log", "5 requests in any 15 minutes, counted exactly"),
        ("5/hour", "sliding-log", "5 requests in any hour, counted exactly"),
        ("5000/2h", "sliding-log", "5,000 requests in any 2 hours, counted exactly"),
        ("5/day", "sliding-log", "5 requests in any day, counted exactly"),
        ("5/14d", "sliding-log", "5 requests in any 2 weeks, counted exactly"),
        ("5/90s", "sliding-log", "5 requests in any 90 seconds, counted exactly"),
        ("5/0.25s", "sliding-log", "5 requests in any 0.25 seconds, counted exactly"),
        ("60/minute", "gcra",
         "60 requests at once, then one every second: a bucket that fills in 60 seconds"),
        ("10/minute", "gcra",
         "10 requests at once, then one every 6 seconds: a bucket that fills in 60 seconds"),
        ("100/minute", "gcra",
         "100 requests at once, then 1.667 a second: a bucket that fills in 60 seconds"),
        ("7/minute", "gcra",
         "7 requests at once, then one every 8.571 seconds: a bucket that fills in 60 seconds"),
        ("3/hour", "gcra",
         "3 requests at once, then one every 20 minutes: a bucket that fills in an hour"),
        ("1000/day", "fixed-window",
         "1,000 requests in a day that begins with a key's first request"),
        ("5/minute", "sliding-counter",
         "5 requests in 60 seconds, estimated from two windows that follow one another"),
        ("5/minute", "new", "5 requests in 60 seconds (new)"),
    ],
)  # fmt: skip
def test_a_quota_in_words(quota: str, algorithm: str, said: str) -> None:
    assert words.sentence(Quota.parse(quota), algorithm) == said


def test_several_quotas() -> None:
    quotas = Quota.parse_all("10/second; 1000/hour")
    assert words.sentences(quotas, "sliding-log") == [
        "10 requests in any second, counted exactly",
        "1,000 requests in any hour, counted exactly",
    ]
