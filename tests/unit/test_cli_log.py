"""Reading logs: formats, compression, order, and what is no request."""

from __future__ import annotations

import gzip
import io
import json
import random
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from nanolimit.cli import key, log, timestamp

if TYPE_CHECKING:
    from pathlib import Path

AT = "17/May/2015:10:05:03 +0000"
AT_NS = 1_431_857_103 * 1_000_000_000
COMMON = f'10.0.0.1 - alice [{AT}] "GET / HTTP/1.1" 200 5'
COMBINED = COMMON + ' "https://a.example/" "curl/8.0"'


def read(path: Path, text: str | bytes, name: str = "ip", file: str = "access.log") -> log.Requests:
    target = path / file
    target.write_bytes(text if isinstance(text, bytes) else text.encode())
    return log.read([str(target)], key.parse(name))


def users(requests: log.Requests) -> list[str]:
    return [requests.names[user] for user in requests.users]


@pytest.mark.parametrize(
    ("line", "name", "user"),
    [
        (COMMON, "ip", "10.0.0.1"),
        (COMMON, "user", "alice"),
        (COMBINED, "referer", "https://a.example/"),
        (COMBINED, "user-agent", "curl/8.0"),
        (COMBINED + ' "10.9.9.9"', "x-forwarded-for", "10.9.9.9"),
        (COMBINED + " 0.002 backend-1", "user-agent", "curl/8.0"),
        (COMBINED, r'"GET (\S+)', "/"),
        (COMMON.replace("alice", "John Smith"), "user", "John Smith"),
        (COMMON.replace("10.0.0.1", "2001:db8::1"), "ip", "2001:db8::1"),
        (COMMON.replace("10.0.0.1", "::1"), "ip", "::1"),
        ("shop.example:443 " + COMMON, "ip", "10.0.0.1"),
        ("shop.example:443 " + COMMON.replace("10.0.0.1", "::1"), "ip", "::1"),
        (COMMON.replace("GET / HTTP/1.1", r"GET /\"x\" HTTP/1.1"), "ip", "10.0.0.1"),
        (COMMON.replace("GET / HTTP/1.1", 'GET /"x" HTTP/1.1'), "ip", "10.0.0.1"),
        (COMMON.replace("GET / HTTP/1.1", ""), "ip", "10.0.0.1"),
        (COMMON.replace("GET / HTTP/1.1", r"\x16\x03\x01"), "ip", "10.0.0.1"),
        (COMMON.replace("200 5", "304 -"), "ip", "10.0.0.1"),
        (COMBINED.replace("curl/8.0", r"a \"quoted\" agent"), "user-agent", r"a \"quoted\" agent"),
        (COMBINED[:-4], "ip", "10.0.0.1"),  # cut off in the last field
    ],
)
def test_combined(tmp_path: Path, line: str, name: str, user: str) -> None:
    requests = read(tmp_path, line + "\n", name)
    assert (users(requests), list(requests.times_ns)) == ([user], [AT_NS])
    assert (requests.lines, requests.bad_lines, requests.no_key) == (1, 0, 0)


@pytest.mark.parametrize("field", ["time", "timestamp", "ts", "@timestamp", "time_iso8601", "msec"])
def test_json_time_fields(tmp_path: Path, field: str) -> None:
    lines = [
        json.dumps({field: "2015-05-17T10:05:03Z", "ip": "a"}),
        json.dumps({field: 1431857103, "ip": "a"}),
        json.dumps({field: 1431857103000, "ip": "a"}),
        json.dumps({field: "1431857103.000", "ip": "a"}),
    ]
    requests = read(tmp_path, "\n".join(lines))
    assert list(requests.times_ns) == [AT_NS] * 4
    assert requests.bad_lines == 0


def test_json_takes_the_first_field_that_is_a_time(tmp_path: Path) -> None:
    requests = read(tmp_path, json.dumps({"time": "12 ms", "ts": 1431857103, "ip": "a"}))
    assert list(requests.times_ns) == [AT_NS]


def test_formats_may_be_mixed(tmp_path: Path) -> None:
    requests = read(tmp_path, f'{COMMON}\n  {{"ts": 1431857104, "ip": "b"}}\n{COMBINED}\n')
    assert users(requests) == ["10.0.0.1", "10.0.0.1", "b"]  # in the order of their times


def test_expression_in_json_line(tmp_path: Path) -> None:
    requests = read(tmp_path, '{"ts": 1, "path": "/users/7"}\n', r"/users/(\d+)")
    assert users(requests) == ["7"]


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        COMMON.replace(AT, "yesterday"),
        COMMON.replace("17/May", "31/Feb"),
        COMMON.replace("17/May/2015", "17/May/2216"),
        COMMON.replace(" 200 5", ""),
        COMMON.replace(" 200 5", " 20000 5"),
        '{"ts": 1',
        "[1, 2]",
        '{"ip": "a"}',
        '{"ts": "never", "ip": "a"}',
        '{"ts": true, "ip": "a"}',
        '{"ts": NaN, "ip": "a"}',
        '{"ts": ' + "9" * 5000 + "}",
        '{"a":' * 100_000,
        "\0\0\0",
    ],
)
def test_bad_line(tmp_path: Path, line: str) -> None:
    requests = read(tmp_path, f"{COMMON}\n{line}\n{COMMON}\n")
    assert (len(requests), requests.bad_lines, requests.lines) == (2, 1, 3)
    (bad,) = requests.bad
    assert (bad.file, bad.line) == (str(tmp_path / "access.log"), 2)
    assert bad.reason
    assert len(bad.text) <= 120


def test_only_the_first_bad_lines_are_kept(tmp_path: Path) -> None:
    requests = read(tmp_path, "".join(f"bad {number}\n" for number in range(1000)))
    assert requests.bad_lines == requests.lines == 1000
    assert [bad.line for bad in requests.bad] == [1, 2, 3, 4, 5]


def test_blank_lines_are_neither_good_nor_bad(tmp_path: Path) -> None:
    requests = read(tmp_path, f"\n{COMMON}\n   \n\r\n")
    assert (len(requests), requests.bad_lines, requests.lines) == (1, 0, 4)


@pytest.mark.parametrize("absent", ["-", '""'])
def test_no_key(tmp_path: Path, absent: str) -> None:
    requests = read(tmp_path, f"{COMMON.replace('alice', absent)}\n{COMMON}\n", "user")
    assert (users(requests), requests.no_key, requests.bad_lines) == (["alice"], 1, 0)


def test_no_key_in_common_format_or_json(tmp_path: Path) -> None:
    requests = read(
        tmp_path, f'{COMMON}\n{{"ts": 1}}\n{{"ts": 1, "user_agent": ""}}\n', "user-agent"
    )
    assert (len(requests), requests.no_key, requests.bad_lines) == (0, 3, 0)


def test_ends_of_lines(tmp_path: Path) -> None:
    requests = read(
        tmp_path, f"\ufeff{COMBINED}\r\n{COMBINED}\r\n{COMBINED}".encode(), "user-agent"
    )
    assert users(requests) == ["curl/8.0"] * 3
    requests = read(tmp_path, f"\ufeff{COMMON}\n".encode())
    assert users(requests) == ["10.0.0.1"]
    # A lone carriage return, or another of Unicode's line ends, is no end of a line.
    requests = read(tmp_path, COMBINED.replace("curl", "cu\u2028\x0brl") + "\n", "user-agent")
    assert (users(requests), requests.lines) == (["cu\u2028\x0brl/8.0"], 1)


def test_bytes_that_are_no_utf8_stay_distinct(tmp_path: Path) -> None:
    lines = b"\n".join(
        COMBINED.encode().replace(b"curl", agent) for agent in (b"\xff", b"\xfe", b"\xff")
    )
    requests = read(tmp_path, lines, "user-agent")
    assert (len(requests), len(requests.names)) == (3, 2)
    assert all(name.isprintable() for name in requests.names)


def test_order_of_times_is_stable(tmp_path: Path) -> None:
    generator = random.Random(7)
    seconds = [generator.randrange(50) for _ in range(1000)]
    lines = [json.dumps({"ts": second, "ip": f"u{i}"}) for i, second in enumerate(seconds)]
    requests = read(tmp_path, "\n".join(lines))
    expected = sorted(range(1000), key=lambda i: seconds[i])
    assert users(requests) == [f"u{i}" for i in expected]
    assert list(requests.times_ns) == [seconds[i] * timestamp.NS for i in expected]


def test_several_files_are_one_log(tmp_path: Path) -> None:
    later, earlier = tmp_path / "access.log", tmp_path / "access.log.1"
    later.write_text('{"ts": 20, "ip": "b"}\n')
    earlier.write_text('{"ts": 10, "ip": "a"}\nbad\n{"ts": 30, "ip": "a"}\n')
    requests = log.read([str(later), str(earlier)], key.parse("ip"))
    assert users(requests) == ["a", "b", "a"]
    assert (requests.lines, requests.bad_lines, requests.bad[0].file) == (4, 1, str(earlier))


def test_gzip_is_told_by_its_bytes(tmp_path: Path) -> None:
    packed = gzip.compress(f"{COMMON}\n".encode() * 3)
    assert len(read(tmp_path, packed, file="no-suffix")) == 3
    assert len(read(tmp_path, packed + packed + bytes(100))) == 6  # two members and padding
    assert (
        len(read(tmp_path, f"{COMMON}\n", file="access.log.gz")) == 1
    )  # plain in spite of its name


def test_gzip_of_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(json.dumps({"ts": i, "ip": f"u{i % 7}"}) + "\n" for i in range(2000)).encode()
    packed = gzip.compress(text[:9000]) + gzip.compress(text[9000:])
    for size in (1, 2, 7, 100, 4096):
        monkeypatch.setattr(log, "CHUNK_BYTES", size)
        for stored in (packed, text):
            requests = read(tmp_path, stored)
            assert (len(requests), requests.bad_lines, requests.lines) == (2000, 0, 2000)
            assert users(requests) == [f"u{i % 7}" for i in range(2000)]


def test_gzip_that_was_cut_off_or_damaged(tmp_path: Path) -> None:
    generator = random.Random(3)
    lines = [json.dumps({"ts": i, "ip": str(generator.random())}) for i in range(20_000)]
    packed = gzip.compress("\n".join(lines).encode())
    requests = read(tmp_path, packed[: len(packed) // 2])
    assert 0 < len(requests) < 20_000
    assert requests.bad[-1].reason == "the gzip data ends early"
    damaged = bytearray(packed)
    damaged[-6] ^= 1  # in the checksum
    requests = read(tmp_path, bytes(damaged))
    assert "damaged gzip data" in requests.bad[-1].reason
    assert requests.bad_lines == 1


def test_packed_zeros_do_not_fill_the_memory(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    packed = b"".join(packer.compress(zeros) for _ in range(64)) + packer.flush()
    requests = read(tmp_path, packed)
    assert (requests.bad_lines, requests.lines) == (1, 1)
    assert "longer than" in requests.bad[0].reason


def test_a_line_too_long_is_one_bad_line(tmp_path: Path) -> None:
    for length in (log.MAX_LINE_CHARS, 3 * log.MAX_LINE_CHARS + 17):
        requests = read(tmp_path, f"{COMMON}\n{'x' * length}\n{COMMON}\n{COMMON}")
        assert (len(requests), requests.bad_lines, requests.lines) == (3, 1, 4)
        assert requests.bad[0].line == 2


def test_empty_file(tmp_path: Path) -> None:
    requests = read(tmp_path, "")
    assert (len(requests), requests.lines, requests.bad_lines, requests.names) == (0, 0, 0, [])


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    class Standard:
        buffer = io.BytesIO(gzip.compress(COMMON.encode()))

    monkeypatch.setattr("sys.stdin", Standard())
    assert users(log.read(["-"], key.parse("ip"))) == ["10.0.0.1"]
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(OSError, match="closed"):
        log.read(["-"], key.parse("ip"))


def test_progress_counts_the_stored_bytes(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a", tmp_path / "b"
    plain.write_text(f"{COMMON}\n" * 100)
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    paths = [str(plain), str(packed)]
    told: list[int] = []
    log.read(paths, key.parse("ip"), told.append)
    assert sum(told) == log.size_bytes(paths) == plain.stat().st_size + packed.stat().st_size
    assert log.size_bytes([str(plain), "-"]) is None


def test_only_and_counts(tmp_path: Path) -> None:
    text = "".join(f'{{"ts": {i}, "ip": "u{i % 3}"}}\n' for i in range(10))
    requests = read(tmp_path, text)
    assert list(requests.counts()) == [4, 3, 3]
    times, chosen = requests.only(bytearray([1, 0, 1]))
    assert [time // timestamp.NS for time in times] == [0, 2, 3, 5, 6, 8, 9]
    assert list(chosen) == [0, 2, 0, 2, 0, 2, 0]


def test_missing_file_raises(tmp_path: Path) -> None:
    missing: Any = str(tmp_path / "none.log")
    with pytest.raises(FileNotFoundError):
        log.read([missing], key.parse("ip"))
