"""Time stamps of log lines."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from nanolimit.cli import timestamp

NS = 1_000_000_000


def utc_ns(*civil: int) -> int:
    """Nanoseconds of a UTC date by the standard library, for whole seconds."""
    return int(datetime(*civil, tzinfo=timezone.utc).timestamp()) * NS  # type: ignore[arg-type,misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("17/May/2015:10:05:03 +0000", utc_ns(2015, 5, 17, 10, 5, 3)),
        ("17/May/2015:10:05:03 +0200", utc_ns(2015, 5, 17, 8, 5, 3)),
        ("17/May/2015:10:05:03 -0730", utc_ns(2015, 5, 17, 17, 35, 3)),
        ("01/Jan/1970:00:00:00 +0000", 0),
        ("29/feb/2024:23:59:59 +0000", utc_ns(2024, 2, 29, 23, 59, 59)),
        ("31/Dec/2016:23:59:60 +0000", utc_ns(2017, 1, 1)),
        ("17/May/2015:10:05:03.25 +0000", utc_ns(2015, 5, 17, 10, 5, 3) + NS // 4),
    ],
)
def test_apache(text: str, expected: int) -> None:
    assert timestamp.apache_ns(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "17/Mai/2015:10:05:03 +0000",
        "30/Feb/2015:10:05:03 +0000",
        "17/May/2015:24:05:03 +0000",
        "17/May/2015:10:60:03 +0000",
        "17/May/2015:10:05:61 +0000",
        "17/May/2015:10:05:03 +2500",
        "17/May/2015:10:05:03 +0060",
        "17/May/2015:10:05:03",
        "17/May/1969:10:05:03 +0000",
        "17/May/2117:10:05:03 +0000",
        "01/Jan/1970:00:30:00 +0100",
        "",
    ],
)
def test_apache_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"time|stamp"):
        timestamp.apache_ns(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2015-05-17T10:05:03Z", utc_ns(2015, 5, 17, 10, 5, 3)),
        ("2015-05-17T10:05:03+02:00", utc_ns(2015, 5, 17, 8, 5, 3)),
        ("2015-05-17T10:05:03-0730", utc_ns(2015, 5, 17, 17, 35, 3)),
        ("2015-05-17T10:05:03+02", utc_ns(2015, 5, 17, 8, 5, 3)),
        ("2015-05-17 10:05:03.123456789", utc_ns(2015, 5, 17, 10, 5, 3) + 123_456_789),
        ("2015-05-17T10:05:03,5Z", utc_ns(2015, 5, 17, 10, 5, 3) + NS // 2),
        ("2015-05-17T10:05Z", utc_ns(2015, 5, 17, 10, 5)),
        ("2015-05-17T10:05:03.1234567891Z", utc_ns(2015, 5, 17, 10, 5, 3) + 123_456_789),
        ("17/May/2015:10:05:03 +0000", utc_ns(2015, 5, 17, 10, 5, 3)),
        (1431857103, 1431857103 * NS),
        ("1431857103", 1431857103 * NS),
        (1431857103.123, 1431857103 * NS + 123_000_000),
        ("1431857103.123", 1431857103 * NS + 123_000_000),
        (1431857103123, 1431857103 * NS + 123_000_000),
        (1431857103123456, 1431857103 * NS + 123_456_000),
        (1431857103123456789, 1431857103 * NS + 123_456_789),
        (1431857103123.5, 1431857103 * NS + 123_500_000),
        (0, 0),
        (0.5, NS // 2),
        ("1e3", 1000 * NS),
    ],
)
def test_json_values(value: object, expected: int) -> None:
    assert timestamp.value_ns(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        [],
        {},
        "",
        "yesterday",
        "2015-02-30T00:00:00Z",
        "2015-05-17",
        "2015-05-17T25:00:00Z",
        -1,
        -0.5,
        float("nan"),
        float("inf"),
        1e300,
        10**400,
        "9" * 5000,
        "١٤٣١٨٥٧١٠٣",
    ],
)
def test_json_values_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"time|stamp"):
        timestamp.value_ns(value)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1431857103 * NS, "2015-05-17T10:05:03Z"),
        (1431857103 * NS + 120_000_000, "2015-05-17T10:05:03.12Z"),
        (1431857103 * NS + 1, "2015-05-17T10:05:03.000000001Z"),
    ],
)
def test_iso_round_trip(ns: int, text: str) -> None:
    assert timestamp.iso(ns) == text
    assert timestamp.iso_ns(text) == ns
