"""The commands as they are typed: results, errors, exit codes."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

import pytest

import nanolimit
from nanolimit.cli import main
from nanolimit.cli.extra import MissingExtraError, require

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("click", reason="the extra nanolimit[cli] is not installed")
pytest.importorskip("rich", reason="the extra nanolimit[cli] is not installed")

from nanolimit.cli.command import run

Result = tuple[int, str, str]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command line in this process and give (exit code, stdout, stderr)."""

    def call(*arguments: object) -> Result:
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def sampled(path: Path, lines: int = 4000, seed: int = 3) -> Path:
    """A generated log with a scraper and a login attack, so that there is something to deny."""
    assert run(["sample", "--lines", str(lines), "--seed", str(seed), "-o", str(path)]) == 0
    return path


def counted(path: Path, limit: int, window_s: int) -> dict[str, int]:
    """The figures of a combined log by a reader of its own and a deque for each client."""
    requests = []
    for line in path.read_text().splitlines():
        client, _, _, rest = line.split(" ", 3)
        day = re.match(r"\[02/Mar/2026:(\d\d):(\d\d):(\d\d) \+0000\]", rest)
        assert day is not None
        requests.append((int(day[1]) * 3600 + int(day[2]) * 60 + int(day[3]), client))
    requests.sort(key=lambda request: request[0])
    logs: dict[str, deque[int]] = defaultdict(deque)
    denied, affected = 0, set()
    for now, client in requests:
        log = logs[client]
        while log and now - log[0] >= window_s:
            log.popleft()
        if len(log) < limit:
            log.append(now)
        else:
            denied += 1
            affected.add(client)
    return {
        "requests": len(requests),
        "allowed": len(requests) - denied,
        "denied": denied,
        "users": len(logs),
        "users_denied": len(affected),
        "bad_lines": 0,
    }


@pytest.mark.parametrize(("limit", "window_s", "text"), [(5, 60, "5/minute"), (30, 900, "30/15m")])
def test_json_figures(
    tmp_path: Path, command: Callable[..., Result], limit: int, window_s: int, text: str
) -> None:
    log = sampled(tmp_path / "access.log")
    code, out, err = command("replay", log, "--limit", text, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    expected = counted(log, limit, window_s)
    assert expected["denied"] > 0
    assert {name: found[name] for name in expected} == expected
    assert (found["limit"], found["per"], found["key"]) == (limit, window_s, "ip")
    assert found["files"] == [str(log)]


def test_several_quotas_hold_together(tmp_path: Path, command: Callable[..., Result]) -> None:
    log = sampled(tmp_path / "access.log")
    code, out, err = command("replay", log, "--limit", "5/minute; 12/hour", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["quotas"] == [{"limit": 5, "per": 60.0}, {"limit": 12, "per": 3600.0}]
    assert (found["limit"], found["per"]) == (5, 60.0)
    # Of one alone it would be another number. But the lowest limits are of one quota.
    alone = [counted(log, 5, 60)["denied"], counted(log, 12, 3600)["denied"]]
    assert found["denied"] > max(alone)
    for row in found["lowest"]:
        assert counted(log, row["limit"], 60)["denied"] == row["denied"]
    code, out, err = command("replay", log, "--limit", "5/minute; 12/hour")
    assert (code, err) == (0, "")
    assert "5/minute; 12/hour" in out
    assert "The lowest limit, alone, that denies less" in out


def test_json_schema(tmp_path: Path, command: Callable[..., Result]) -> None:
    log = sampled(tmp_path / "access.log")
    _, out, _ = command("replay", log, "--json", "--sweep", "1,5,10/minute,7/hour", "--top", "3")
    found = json.loads(out)
    kinds: dict[str, Any] = {
        "files": list,
        "key": str,
        "limit": int,
        "per": float,
        "quotas": list,
        "requests": int,
        "allowed": int,
        "denied": int,
        "users": int,
        "users_denied": int,
        "lines": int,
        "bad_lines": int,
        "bad": list,
        "no_key": int,
        "first": str,
        "last": str,
        "top": list,
        "sweep": list,
        "lowest": list,
        "plot": type(None),
        "redis": type(None),
    }
    assert found["quotas"] == [{"limit": 5, "per": 60.0}]
    assert {name: type(value) for name, value in found.items()} == kinds
    assert found["first"].startswith("2026-03-02T")
    assert found["first"] < found["last"]
    assert len(found["top"]) == 3
    for hit in found["top"]:
        assert set(hit) == {"user", "requests", "denied", "worst_minute"}
        assert set(hit["worst_minute"]) == {"minute", "requests", "denied"}
        assert 0 < hit["worst_minute"]["denied"] <= hit["denied"] <= hit["requests"]
    assert [(row["limit"], row["per"]) for row in found["sweep"]] == [
        (1, 60.0),
        (5, 60.0),
        (10, 60.0),
        (7, 3600.0),
    ]
    for row in found["sweep"]:
        expected = counted(log, row["limit"], int(row["per"]))
        assert (row["denied"], row["users_denied"]) == (
            expected["denied"],
            expected["users_denied"],
        )
    assert [row["under"] for row in found["lowest"]] == [0.001, 0.01, 0.05]
    for row in found["lowest"]:
        assert set(row) == {"under", "limit", "per", "denied", "users_denied"}
        assert row["denied"] < row["under"] * found["requests"]
        assert counted(log, row["limit"], 60)["denied"] == row["denied"]
        below = counted(log, row["limit"] - 1, 60)["denied"]
        assert below >= row["under"] * found["requests"]


def test_bad_lines_are_counted_and_shown(tmp_path: Path, command: Callable[..., Result]) -> None:
    log = tmp_path / "a.log"
    log.write_text('{"ts": 1, "ip": "a"}\nnonsense \x1b[31m\n{"ts": 2, "ip": "a"}\n')
    code, out, err = command("replay", log, "--limit", "1/minute")
    assert (code, err) == (0, "")
    assert "Bad lines: 1 of 3" in out
    assert f"{log}:2: " in out
    assert "\x1b" not in out  # what a log says must not steer the terminal
    code, out, _ = command("replay", log, "--limit", "1/minute", "--json")
    found = json.loads(out)
    assert (found["requests"], found["denied"], found["bad_lines"]) == (2, 1, 1)
    assert found["bad"][0]["line"] == 2


def test_tables(tmp_path: Path, command: Callable[..., Result]) -> None:
    log = tmp_path / "a.log"
    lines = [f'{{"ts": {i // 10}, "ip": "user{i % 2}"}}' for i in range(1200)]
    log.write_text("\n".join([*lines, '{"ts": 5}']))
    code, out, _ = command("replay", log, "--limit", "5/minute", "--sweep", "1,300,600/minute")
    assert code == 0
    assert re.search(r"denied\s+1,180 requests \(98\.3 %\)", out)
    assert re.search(r"users denied\s+2 of 2 \(100 %\)", out)
    assert re.search(r"user0\s+600\s+590\s+98\.3 %\s+1970-01-01 00:00\s+300\s+295", out)
    assert re.search(r"1/minute\s+1,196\s+99\.7 %\s+2", out)
    assert re.search(r"300/minute\s+0\s+0 %\s+0", out)
    assert re.search(r"0\.1 %\s+300/minute\s+0 ", out)
    assert re.search(r"5 %\s+286/minute\s+56\s+4\.7 %", out)
    assert "1 lines that name no user" in out
    _, out, _ = command("replay", log, "--limit", "300/minute")
    assert "Nobody is denied at 300/minute." in out


def test_stdin_and_gzip(
    tmp_path: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = sampled(tmp_path / "access.log")
    _, plain, _ = command("replay", log, "--json")

    class Standard:
        buffer = io.BytesIO(gzip.compress(log.read_bytes()))

    monkeypatch.setattr("sys.stdin", Standard())
    code, out, _ = command("replay", "-", "--json")
    assert code == 0
    assert json.loads(out) == {**json.loads(plain), "files": ["stdin"]}


def test_order_of_lines_does_not_matter(tmp_path: Path, command: Callable[..., Result]) -> None:
    log = sampled(tmp_path / "access.log")
    _, in_order, _ = command("replay", log, "--json")
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[::-1]))
    code, out, _ = command("replay", log, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(in_order)


@pytest.mark.parametrize(
    ("name", "users"),
    [
        ("ip", {"10.0.0.1", "10.0.0.2"}),
        ("user", {"bob"}),
        ("user-agent", {"x", "y"}),
        (r'"GET /(\w)', {"p"}),
    ],
)
def test_keys(tmp_path: Path, command: Callable[..., Result], name: str, users: set[str]) -> None:
    log = tmp_path / "a.log"
    at = "[17/May/2015:10:05:03 +0000]"
    log.write_text(
        f'10.0.0.1 - - {at} "GET /p HTTP/1.1" 200 5 "-" "x"\n' * 2
        + f'10.0.0.2 - bob {at} "GET /p HTTP/1.1" 200 5 "-" "y"\n' * 2
    )
    code, out, _ = command("replay", log, "--key", name, "--limit", "1/minute", "--json")
    found = json.loads(out)
    assert (code, found["users"]) == (0, len(users))
    assert {hit["user"] for hit in found["top"]} == users
    assert found["requests"] + found["no_key"] == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--limit", "5/fortnight"], "fortnight"),
        (["--limit", "0/minute"], "limit"),
        (["--limit", "1000000000/minute"], "limit"),
        (["--key", "(a)(b)"], "2 groups"),
        (["--key", "("], "does not compile"),
        (["--sweep", "1,x"], "'x'"),
        (["--plot", "picture.pdf"], ".png or .svg"),
        (["--plot", "no/such/place/picture.png"], "no directory"),
        (["--top", "-1"], "--top"),
        (["--nonsense"], "--nonsense"),
        (["-", "-"], "only once"),
    ],
)
def test_wrong_usage(
    tmp_path: Path, command: Callable[..., Result], arguments: list[str], says: str
) -> None:
    log = tmp_path / "a.log"
    log.write_text('{"ts": 1, "ip": "a"}\n')
    code, out, err = command("replay", log, *arguments)
    assert (code, out) == (2, "")
    assert says in err


def test_wrong_usage_without_arguments(command: Callable[..., Result]) -> None:
    assert command("replay")[0] == 2
    assert command("dance")[0] == 2


def test_unusable_input(tmp_path: Path, command: Callable[..., Result]) -> None:
    missing = tmp_path / "none.log"
    code, out, err = command("replay", missing)
    assert (code, out) == (1, "")
    assert f"{missing}: No such file" in err
    code, _, err = command("replay", tmp_path)
    assert code == 1
    assert str(tmp_path) in err
    nonsense = tmp_path / "nonsense"
    nonsense.write_bytes(bytes(range(256)) * 10)
    code, out, err = command("replay", nonsense, "--json")
    assert code == 1
    assert "no line of" in err
    found = json.loads(out)
    assert (found["requests"], found["bad_lines"]) == (0, found["lines"])
    keyless = tmp_path / "keyless"
    keyless.write_text('{"ts": 1, "ip": "a"}\n')
    code, out, err = command("replay", keyless, "--key", "account", "--json")
    assert code == 1
    assert "'account'" in err
    assert (json.loads(out)["no_key"], json.loads(out)["requests"]) == (1, 0)


def test_empty_log(tmp_path: Path, command: Callable[..., Result]) -> None:
    log = tmp_path / "empty.log"
    log.write_text("")
    code, out, err = command("replay", log, "--json", "--sweep", "1,2/m")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [found[name] for name in ("requests", "denied", "users", "users_denied")] == [0] * 4
    assert (found["first"], found["last"], found["top"]) == (None, None, [])
    assert [row["limit"] for row in found["lowest"]] == [None] * 3
    assert [row["denied"] for row in found["sweep"]] == [0, 0]
    code, out, err = command("replay", log)
    assert (code, err) == (0, "")


def test_version_and_help(command: Callable[..., Result]) -> None:
    code, out, _ = command("--version")
    assert (code, out) == (0, f"nanolimit {nanolimit.__version__}\n")
    for arguments in (["--help"], ["replay", "--help"]):
        code, out, _ = command(*arguments)
        assert code == 0
        assert "Examples:\n" in out
        assert "  nanolimit replay access.log" in out


def test_sample_is_seeded(tmp_path: Path, command: Callable[..., Result]) -> None:
    one = sampled(tmp_path / "one", 1000, 5).read_bytes()
    assert sampled(tmp_path / "two", 1000, 5).read_bytes() == one
    assert sampled(tmp_path / "three", 1000, 6).read_bytes() != one
    code, out, _ = command("sample", "--lines", "1000", "--seed", "5")
    assert (code, out.encode()) == (0, one)
    _, out, _ = command("sample", "--lines", "3", "--start", "2024-12-31")
    assert out.count("[31/Dec/2024:") == 3
    code, _, err = command("sample", "-o", tmp_path / "no" / "such" / "file")
    assert code != 0
    assert "No such file" in err


@pytest.mark.parametrize("package", ["click", "rich"])
def test_missing_extra_is_asked_for_by_name(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (3, "")
    assert f"needs {package}," in err
    assert "pip install 'nanolimit[cli]'" in err
    assert err.count("\n") == 1


def test_missing_plot_extra_is_asked_for_before_the_log_is_read(
    tmp_path: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = command("replay", tmp_path / "none.log", "--plot", tmp_path / "a.png")
    assert (code, out) == (3, "")
    assert "pip install 'nanolimit[plot]'" in err


def test_require(monkeypatch: pytest.MonkeyPatch) -> None:
    require("cli")
    monkeypatch.setitem(sys.modules, "click", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(MissingExtraError, match="needs click and rich") as raised:
        require("cli")
    assert raised.value.missing == ["click", "rich"]


def python_m(*arguments: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "nanolimit", *arguments],
        input=text,
        capture_output=True,
        timeout=120,
        check=False,
    )


def test_as_a_process() -> None:
    done = python_m("--version")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.split() == [b"nanolimit", nanolimit.__version__.encode()]
    log = b"".join(b'{"ts": %d, "ip": "a"}\n' % second for second in range(100))
    done = python_m("replay", "-", "--limit", "5/minute", "--json", text=gzip.compress(log))
    assert (done.returncode, done.stderr) == (0, b"")
    # Of the 60 seconds of a window 5 requests are allowed.
    assert json.loads(done.stdout)["denied"] == 90
    done = python_m("replay", "-", "--limit", "5/never", text=log)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.skipif(os.name == "nt", reason="Windows says EINVAL, which is told as an error")
def test_a_reader_that_leaves_is_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "nanolimit", "sample", "--lines", "50000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        code = process.wait(60)
    assert (code, err) == (1, b"")
