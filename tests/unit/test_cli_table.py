"""Shared tables on the command line: ls, inspect, rm, size."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanolimit import Quota, RateLimiter, _core, shared
from nanolimit.process import described
from sharing import needs_shared, put_field

pytest.importorskip("click", reason="the extra nanolimit[cli] is not installed")
pytest.importorskip("rich", reason="the extra nanolimit[cli] is not installed")

from nanolimit.cli import table as tables
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


@pytest.fixture
def limiter(folder: Path) -> RateLimiter:
    """A limiter whose table has something to tell."""
    limiter = RateLimiter("100/15m", shared="api", max_keys=2000, on_full="deny")
    limiter.allow_many(list(range(1000)), 60)
    limiter.allow_many(list(range(250)), 60)
    return limiter


FIELDS: dict[str, Any] = {
    "name": str,
    "path": str,
    "state": str,
    "problem": type(None),
    "bytes": int,
    "limit": int,
    "per": float,
    "max_keys": int,
    "typical": int,
    "algorithm": str,
    "own_clock": bool,
    "created": str,
    "keys": int,
    "live_keys": int,
    "allowed": int,
    "denied": int,
    "evicted": int,
    "overflowed": int,
    "stalled": int,
    "log_bytes": int,
    "log_capacity_bytes": int,
    "pids": list,
    "quotas": list,
    "max_log": type(None),
    "max_limit": int,
    "track_top": int,
    "layout_version": int,
    "boot_id": str,
    "pid_namespace": int,
    "time_namespace": int,
    "number": int,
    "part_of": type(None),
    "parts": list,
    "missing_parts": list,
    "processes": list,
}


def told_by(out: str) -> dict[str, str]:
    """What stands beside the words of a picture's first paragraph."""
    first = out.partition("\n\n")[0]
    return dict(re.split(r"  +", line.strip(), maxsplit=1) for line in first.splitlines())


# ls


@needs_shared
def test_ls(limiter: RateLimiter, folder: Path, command: Callable[..., Result]) -> None:
    RateLimiter(5, shared="logins").close()
    (folder / "notes\x1b[31m.txt").write_text("text")
    code, out, err = command("ls")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    titles = ["name", "limit", "keys", "full", "allowed", "denied", "size", "processes", "state"]
    assert lines[0] == titles
    size = tables.binary(shared.bytes_for(2000, 100)).split()
    assert lines[1] == [
        "api", "100/15", "minutes", "1,000", "50.0", "%", "1,000", "250", *size, "1", "ready",
    ]  # fmt: skip
    size = tables.binary(shared.bytes_for(100_000, 5)).split()
    assert lines[2] == ["logins", "5/minute", "0", "0", "%", "0", "0", *size, "0", "ready"]
    assert lines[3][-3:] == ["4", "bytes", "unusable"]
    assert "it is no table of nanolimit" in out
    assert "\x1b" not in out


@needs_shared
def test_ls_json(limiter: RateLimiter, folder: Path, command: Callable[..., Result]) -> None:
    (folder / "notes").write_text("text")
    code, out, err = command("ls", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert set(found) == {"directory", "tables"}
    assert found["directory"] == str(folder)
    first, second = found["tables"]
    assert {name: type(value) for name, value in first.items()} == FIELDS
    assert set(second) == set(FIELDS)
    assert (second["name"], second["state"], second["limit"]) == ("notes", "unusable", None)
    assert "it is no table of nanolimit" in second["problem"]


@needs_shared
def test_ls_without_tables(folder: Path, command: Callable[..., Result]) -> None:
    assert command("ls") == (0, f"No tables in {folder}.\n", "")
    code, out, _ = command("ls", "--json")
    assert (code, json.loads(out)) == (0, {"directory": str(folder), "tables": []})


@needs_shared
def test_ls_of_no_directory(
    folder: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOLIMIT_DIR", "relative")
    code, out, err = command("ls")
    assert (code, out) == (1, "")
    assert err.startswith("Error: NANOLIMIT_DIR must be an absolute path")


# inspect


@needs_shared
def test_inspect(limiter: RateLimiter, folder: Path, command: Callable[..., Result]) -> None:
    code, out, err = command("inspect", "api")
    assert (code, err) == (0, "")
    told = told_by(out)
    size = shared.bytes_for(2000, 100)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    spaces = [Path(f"/proc/self/ns/{kind}").stat().st_ino for kind in ("pid", "time")]
    assert told.pop("layout") == f"version {_core.LAYOUT_VERSION}, of this boot ({boot})"
    assert told.pop("namespaces") == "PID {}, time {}".format(*spaces)
    assert told.pop("made").endswith(" UTC")
    assert told.pop("long logs").startswith(tables.binary(limiter.stats().log_bytes) + " of ")
    assert told == {
        "table": str(folder / "api"),
        "state": "ready",
        "size": f"{size:,} bytes ({tables.binary(size)})",
        "limit": "100/15 minutes",
        "algorithm": "sliding-log",
        "keys": "1,000 of 2,000 (50.0 %)",
        "live keys": "1,000",
        "typical": "room for 32 requests a key on average",
        "offenders": "room for the 100 keys denied most",
        "clock": "the system's",
        "allowed": "1,000",
        "denied": "250",
        "evicted": "0",
        "overflowed": "0",
        "stalled": "0",
        "processes": f"1: {os.getpid()}",
    }
    assert command("inspect", folder / "api")[1] == out
    (title, *owners) = out.partition("\n\n")[2].splitlines()
    assert title.split() == ["process", "started", "command"]
    ((pid, day, _, utc, *words),) = (line.split() for line in owners)
    assert (pid, day[:2], utc) == (str(os.getpid()), "20", "UTC")
    # (Its first words: a long path is cut to the width of the table.)
    began = Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode()
    assert words[0].rstrip("…")[:9] == began[:9]


@needs_shared
def test_inspect_what_else_it_was_made_for(folder: Path, command: Callable[..., Result]) -> None:
    limiter = RateLimiter(
        "100/minute", shared="api", max_keys=500, max_limit=300, max_log=64, clock=lambda: 5.0
    )
    limiter.allow("me")
    told = told_by(command("inspect", "api")[1])
    assert told["laid out for"].startswith("limits up to ")
    assert told["max_log"] == "64 requests a key"
    assert told["clock"] == "its limiters bring one of their own"
    assert "live keys" not in told
    found = json.loads(command("inspect", "api", "--json")[1])
    assert (found["max_log"], found["own_clock"], found["live_keys"]) == (64, True, None)
    assert found["max_limit"] >= 300


@needs_shared
def test_inspect_tells_who_was_killed(folder: Path, command: Callable[..., Result]) -> None:
    limiter = RateLimiter(5, shared="api", max_keys=500)
    code = (
        "import os, signal\n"
        "from nanolimit import RateLimiter\n"
        "limiter = RateLimiter(5, shared='api', max_keys=500)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    assert child.wait(60) == -9
    code, out, _ = command("inspect", "api")
    assert re.search(rf"^ *{child.pid}  has died *$", out, re.MULTILINE)
    assert told_by(out)["processes"] == f"1: {os.getpid()}"
    found = json.loads(command("inspect", "api", "--json")[1])
    owners = {each["pid"]: each for each in found["processes"]}
    assert found["pids"] == [os.getpid()]
    assert owners[child.pid] == {
        "pid": child.pid, "alive": False, "command": None, "started": None,
    }  # fmt: skip
    assert owners[os.getpid()]["command"]
    limiter.close()


@needs_shared
def test_a_process_is_listed_once(folder: Path, command: Callable[..., Result]) -> None:
    limiters = [RateLimiter(5, shared="api", max_keys=500) for _ in range(3)]
    out = command("inspect", "api")[1]
    assert len(out.partition("\n\n")[2].splitlines()) == 2
    assert len(json.loads(command("inspect", "api", "--json")[1])["processes"]) == 3
    assert len(limiters) == 3


@needs_shared
def test_a_process_of_that_number_that_is_not_at_the_table(folder: Path) -> None:
    """Of another PID namespace, say: what /proc has under its number is somebody else."""
    limiter = RateLimiter(5, shared="api", max_keys=500)
    status = (folder / "api").stat()
    own = shared.Process(os.getpid(), True)
    assert described(own, status).command is not None
    assert described(shared.Process(os.getppid(), True), status).command is None
    assert described(shared.Process(os.getpid(), False), status).command is None
    assert described(shared.Process(2**22 + 1, True), status).command is None
    limiter.close()
    assert described(own, status).command is None


@needs_shared
def test_commands_do_not_steer_the_terminal(
    limiter: RateLimiter, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hostile(process: shared.Process, status: object) -> shared.Process:
        return replace(process, command="evil\x1b[2J\n[red]\u202e" * 50)

    monkeypatch.setattr(shared, "described", hostile)
    _, out, _ = command("inspect", "api")
    assert "evil\\x1b[2J\\n[red]" in out
    assert out.replace("\n", "").isprintable()
    assert len(out.partition("\n\n")[2].splitlines()) == 2


# Limiters with several tables


@pytest.fixture
def several(folder: Path) -> RateLimiter:
    """A limiter that has three tables."""
    limiter = RateLimiter("5/minute; 7/hour", shared="api", max_keys=500)
    for _ in range(8):
        limiter.allow("me")
    limiter.block("you", 60)
    return limiter


@needs_shared
def test_ls_of_parts(several: RateLimiter, folder: Path, command: Callable[..., Result]) -> None:
    RateLimiter(3, shared="api.x", max_keys=500).close()
    RateLimiter(3, shared="b.2", max_keys=500).close()
    code, out, err = command("ls")
    assert (code, err) == (0, "")
    _, *lines, more = out.splitlines()
    assert [line.split()[0] for line in lines] == ["api", "api.x", "b.2"]
    assert "5/minute; 7/hour" in lines[0]
    size = sum((folder / name).stat().st_size for name in ("api", "api.2", "api.records"))
    assert tables.binary(size) in lines[0]
    assert more == "2 further tables of these limiters are counted with them: --all lists each."
    code, out, _ = command("ls", "--all")
    _, *lines = out.splitlines()
    assert [re.split("  +", line)[:2] for line in lines] == [
        ["api", "5/minute"],
        ["api.2", "7/hour"],
        ["api.records", "blocks, penalties, quotas of keys"],
        ["api.x", "3/minute"],
        ["b.2", "3/minute"],
    ]
    assert tables.binary((folder / "api").stat().st_size) in lines[0]
    listed = json.loads(command("ls", "--json")[1])["tables"]
    assert {each["name"]: each["part_of"] for each in listed} == {
        "api": None, "api.2": "api", "api.records": "api", "api.x": None, "b.2": None,
    }  # fmt: skip
    assert listed[0]["parts"] == ["api.2", "api.records"]


@needs_shared
def test_ls_of_parts_that_can_not_be_used(
    several: RateLimiter, folder: Path, command: Callable[..., Result]
) -> None:
    several.close()  # whoever has it mapped would die of it
    os.truncate(folder / "api.2", 5000)
    listed = json.loads(command("ls", "--json")[1])["tables"]
    assert [each["part_of"] for each in listed] == [None, "api", "api"]
    _, out, _ = command("ls")
    assert re.search(r"^api\.2 .* unusable *$", out, re.MULTILINE)
    assert re.search(r"^api\.2: .* its size is 5000", out, re.MULTILINE)
    code, out, _ = command("inspect", "api")
    assert code == 1, "no limiter can attach to it"
    assert "api.2: " in out


@needs_shared
def test_ls_of_parts_without_the_first(
    several: RateLimiter, folder: Path, command: Callable[..., Result]
) -> None:
    (folder / "api").unlink()
    _, out, _ = command("ls")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["api.2", "api.records"]


@needs_shared
def test_inspect_of_parts(
    several: RateLimiter, folder: Path, command: Callable[..., Result]
) -> None:
    code, out, _ = command("inspect", "api")
    assert code == 0
    assert told_by(out)["limit"] == "5/minute; 7/hour"
    parts = out.split("\n\n")[2].splitlines()
    assert [re.split("  +", line)[:2] for line in parts[1:]] == [
        ["api.2", "7/hour"],
        ["api.records", "blocks, penalties, quotas of keys"],
    ]
    assert (
        "quota 2 of the limiter of table 'api'" in told_by(command("inspect", "api.2")[1])["part"]
    )
    assert "what stands of keys" in told_by(command("inspect", "api.records")[1])["part"]
    found = json.loads(command("inspect", "api", "--json")[1])
    assert found["quotas"] == [{"limit": 5, "per": 60.0}, {"limit": 7, "per": 3600.0}]
    assert (found["parts"], found["missing_parts"]) == (["api.2", "api.records"], [])
    shared.remove(folder / "api.records", force=True)
    (folder / "api.2").unlink()
    code, out, _ = command("inspect", "api")
    assert code == 0
    assert re.search(r"^api\.2 .*missing *$", out, re.MULTILINE)
    found = json.loads(command("inspect", "api", "--json")[1])
    assert (found["parts"], found["missing_parts"]) == ([], ["api.2"])


@needs_shared
def test_a_table_that_only_sounds_like_a_part(folder: Path) -> None:
    RateLimiter(3, shared="api", max_keys=500).close()
    RateLimiter(3, shared="api.2", max_keys=500).close()
    RateLimiter(3, shared="api.records", max_keys=500).close()
    RateLimiter(3, shared="api.1", max_keys=500).close()
    assert [table.part_of for table in shared.tables()] == [None] * 4
    assert shared.inspect("api").parts == ()


@needs_shared
def test_inspect_json(limiter: RateLimiter, folder: Path, command: Callable[..., Result]) -> None:
    code, out, err = command("inspect", "api", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert {name: type(value) for name, value in found.items()} == FIELDS
    assert (found["limit"], found["per"], found["max_keys"]) == (100, 900.0, 2000)
    assert (found["allowed"], found["denied"], found["keys"]) == (1000, 250, 1000)
    assert found["pids"] == [os.getpid()]
    assert found["bytes"] == (folder / "api").stat().st_size
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["created"])


@needs_shared
def test_inspect_what_is_damaged(
    limiter: RateLimiter, folder: Path, command: Callable[..., Result]
) -> None:
    os.truncate(folder / "api", 5000)
    code, out, err = command("inspect", "api")
    assert (code, err) == (1, "")
    assert "unusable" in out
    assert "its size is 5000, expected " in out
    code, out, _ = command("inspect", "api", "--json")
    assert code == 1
    assert json.loads(out)["state"] == "unusable"


@needs_shared
def test_inspect_what_is_stale(
    limiter: RateLimiter, folder: Path, command: Callable[..., Result]
) -> None:
    put_field(folder / "api", "boot_id", bytes(16))
    code, out, _ = command("inspect", "api")
    assert code == 0
    assert re.search(r"state +stale", out)


@needs_shared
def test_inspect_what_is_not_there(folder: Path, command: Callable[..., Result]) -> None:
    code, out, err = command("inspect", "api")
    assert (code, out) == (1, "")
    assert err == f"Error: there is no table '{folder / 'api'}'\n"
    code, _, err = command("inspect", ".api")
    assert code == 2
    assert "shared must be a name" in err
    assert command("inspect")[0] == 2


# rm


@needs_shared
def test_rm(folder: Path, command: Callable[..., Result]) -> None:
    for name in ("one", "two", "three"):
        RateLimiter(3, shared=name).close()
    assert command("rm", "one", folder / "two") == (0, "", "")
    assert [each.name for each in folder.iterdir()] == ["three"]


@needs_shared
def test_rm_of_what_is_in_use(
    limiter: RateLimiter, folder: Path, command: Callable[..., Result]
) -> None:
    RateLimiter(3, shared="other").close()
    (folder / "notes").write_text("text")
    code, out, err = command("rm", "api", "notes", "none", "other")
    assert (code, out) == (1, "")
    in_use, no_table, nothing = err.splitlines()
    assert f"Error: table '{folder / 'api'}' is in use by {os.getpid()}" in in_use
    assert f"'{folder / 'notes'}' is no table of nanolimit" in no_table
    assert nothing == f"Error: there is no table '{folder / 'none'}'"
    # What could be removed, is.
    assert sorted(each.name for each in folder.iterdir()) == ["api", "notes"]
    assert command("rm", "--force", "api") == (0, "", "")
    assert [each.name for each in folder.iterdir()] == ["notes"]


@needs_shared
def test_the_command_that_an_error_advises(folder: Path, command: Callable[..., Result]) -> None:
    RateLimiter(3, shared=folder / "a table").close()
    os.truncate(folder / "a table", 5000)
    info = shared.inspect(folder / "a table")
    advised = re.search(r"remove it \(nanolimit (rm .*?)\),", info.problem or "")
    assert advised is not None, info.problem
    line = f"{shlex.quote(sys.executable)} -m nanolimit {advised[1]}"
    done = subprocess.run(line, shell=True, check=False, timeout=60)
    assert done.returncode == 0
    assert not list(folder.iterdir())


def test_rm_of_nothing(command: Callable[..., Result]) -> None:
    assert command("rm")[0] == 2


# size


@needs_shared
def test_size(folder: Path, command: Callable[..., Result]) -> None:
    code, out, err = command("size", "--keys", "1e6", "--limit", "100", "--typical", "5")
    assert (code, err) == (0, "")
    told = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in out.splitlines())
    size = shared.bytes_for(1_000_000, 100, 60, 5)
    assert told["keys"] == "1,000,000"
    assert told["limit"] == "100/minute"
    assert told["typical"] == "5 requests a key"
    assert told["bytes"] == f"{size:,} ({size / 2**20:.1f} MiB), {size / 1e6:.1f} a key"
    assert re.fullmatch(rf"it fits: .* free in {folder}", told["room"])
    _, out, _ = command("size", "--keys", "1e9")
    assert "it does not fit: " in out


@needs_shared
@pytest.mark.parametrize(
    ("arguments", "keys", "quota", "typical"),
    [
        (["--keys", "1000"], 1000, Quota(5), None),
        (["--keys", "1e6", "--limit", "100/15m"], 1_000_000, Quota(100, 900), None),
        (["--keys", "100k", "--limit", "7", "--per", "0.5"], 100_000, Quota(7, 0.5), None),
        (["--keys", "1.5M", "--limit", "7/s", "--typical", "3"], 1_500_000, Quota(7, 1), 3),
    ],
)
def test_size_json(
    folder: Path,
    command: Callable[..., Result],
    arguments: list[str],
    keys: int,
    quota: Quota,
    typical: int | None,
) -> None:
    code, out, err = command("size", *arguments, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert isinstance(found.pop("free_bytes"), int)
    assert found == {
        "keys": keys,
        "limit": quota.limit,
        "per": quota.per,
        "typical": typical,
        "algorithm": "sliding-log",
        "bytes": shared.bytes_for(keys, quota.limit, quota.per, typical),
        "directory": str(folder),
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--keys"),
        (["--keys", "many"], "'many' is no number: write it like 1000000, 1e6, 100k or 1.5M"),
        (["--keys", "1.5"], "'1.5' is no whole number"),
        (["--keys", "0"], "keys must be from 1 to 2**30"),
        (["--keys", "1e10"], "keys must be from 1 to 2**30"),
        (["--keys", "1e999"], "is no number"),
        (["--keys", "-5"], "is no number"),
        (["--keys", "5", "--limit", "0"], "limit must be from 1 to 16777216"),
        (["--keys", "5", "--limit", "x"], "is not understood"),
        (["--keys", "5", "--limit", "5/minute", "--per", "60"], "says its window itself"),
        (["--keys", "5", "--limit", "5", "--per", "0"], "window out of range"),
        (["--keys", "5", "--limit", "5", "--per", "x"], "is not understood"),
        (["--keys", "5", "--typical", "6"], "typical must be from 1 to the limit of 5, not 6"),
    ],
)
def test_sizes_that_may_not_be(
    folder: Path, command: Callable[..., Result], arguments: list[str], says: str
) -> None:
    code, out, err = command("size", *arguments)
    assert (code, out) == (2, "")
    assert says in " ".join(err.split())


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7),
        ("1_000", 1000),
        ("1,000,000", 1_000_000),
        ("1E3", 1000),
        ("2.5e3", 2500),
        ("3M", 3_000_000),
        (" 10K ", 10_000),
        ("0.5k", 500),
    ],
)
def test_numbers(text: str, number: int) -> None:
    assert tables.parse_count(text) == number


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 29, "1.5 GiB"),
    ],
)
def test_bytes(number: int, text: str) -> None:
    assert tables.binary(number) == text


# All of them


@pytest.mark.parametrize("name", ["ls", "inspect", "rm", "size"])
def test_help_has_examples_and_exit_codes(name: str, command: Callable[..., Result]) -> None:
    code, out, _ = command(name, "--help")
    assert code == 0
    assert f"  nanolimit {name}" in out
    assert "Exit codes: 0 done" in out
    assert re.search(rf"^  {name} +\S", command("--help")[1], re.MULTILINE)


@pytest.mark.parametrize("arguments", [["ls"], ["inspect", "api"], ["rm", "api"]])
def test_a_platform_without_it(
    command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(_core, "SHARED", False)
    code, out, err = command(*arguments)
    assert (code, out) == (1, "")
    assert "Error: shared= needs Linux" in err
