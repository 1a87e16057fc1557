"""`nanolimit replay --redis` on a real server: the same decisions, and nothing is left there."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("redis")
pytest.importorskip("click")
pytest.importorskip("rich")

from nanolimit import Quota
from nanolimit.cli import rehearsal
from nanolimit.cli.command import run
from nanolimit.redis import script
from nanolimit.redis.name import window_us
from nanolimit.redis.rehearsal import Expiry, Stage
from nanolimit.redis.wire import Wire
from redis_server import RedisCluster, RedisServer

Result = tuple[int, str, str]
Command = Callable[..., Result]
PATIENT_S = 60.0
START_S = 1_700_000_000


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.ask("FLUSHALL")
    running.ask("SCRIPT", "FLUSH")
    return running


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command line in this process and give (exit code, stdout, stderr)."""

    def call(*arguments: object) -> Result:
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A day of a shop: a scraper, a login attack, and many at the same second."""
    path = tmp_path_factory.mktemp("logs") / "access.log"
    assert run(["sample", "--lines", "3000", "--seed", "5", "-o", str(path)]) == 0
    return path


def written(path: Path, requests: Sequence[tuple[float, str]]) -> Path:
    """A log of (seconds, user), as JSON lines."""
    lines = [json.dumps({"time": t, "ip": user}) for t, user in requests]
    path.write_text("\n".join(lines) + "\n")
    return path


def on_the_edge(path: Path, seed: int = 1, number: int = 1_500) -> Path:
    """Whole seconds, so that many requests come exactly one window after another."""
    rng = random.Random(seed)
    now, requests = START_S, []
    for _ in range(number):
        now += rng.choice((0, 0, 0, 1, 1, 2, 10, 30))
        requests.append((float(now), f"user {min(int(rng.expovariate(0.3)), 19)}"))
    return written(path, requests)


def only_run(out: str) -> dict[str, Any]:
    (found,) = json.loads(out)["redis"]["runs"]
    assert isinstance(found, dict)
    return found


# Decisions


@pytest.mark.parametrize(
    "limit", ["5/minute", "1/second", "30/10m", "5/minute; 100/hour", "2/10s; 5/minute; 60/hour"]
)
def test_the_server_decides_as_the_local_engine(
    server: RedisServer, sample: Path, command: Command, limit: str
) -> None:
    server.ask("SET", "mine", "untouched")
    code, out, err = command("replay", sample, "--limit", limit, "--redis", server.url, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    told = only_run(out)
    assert told["quotas"] == found["quotas"]
    assert told["requests"] == found["requests"] == 3_000
    assert told["denied"] == found["denied"] > 0
    assert (told["differences"], told["first_differences"]) == (0, [])
    assert 0 <= told["cached"] < told["denied"]
    single, pipelined = told["single"], told["pipelined"]
    assert single["requests"] + pipelined["requests"] == 3_000
    assert min(single["requests"], pipelined["requests"]) > 1_000
    assert 0 < single["median_us"] <= single["p99_us"] <= single["longest_us"]
    assert min(single["per_s"], pipelined["per_s"]) > 0
    assert told["server_us"] > 0
    assert server.ask("DBSIZE") == 1
    assert server.ask("GET", "mine") == b"untouched"


@pytest.mark.parametrize("seed", range(3))
def test_on_the_edge_of_windows(
    server: RedisServer, tmp_path: Path, command: Command, seed: int
) -> None:
    log = on_the_edge(tmp_path / "app.jsonl", seed)
    code, out, _ = command(
        "replay", log, "--limit", "3/minute; 20/10m", "--redis", server.url, "--json"
    )
    assert (code, only_run(out)["differences"]) == (0, 0)


def test_times_finer_than_the_engines_ticks(
    server: RedisServer, tmp_path: Path, command: Command
) -> None:
    """An hour's ticks are 5 us, the server's 1 us: requests between these are no difference."""
    rng = random.Random(3)
    now_ns, requests = START_S * 10**9, []
    for _ in range(400):
        now_ns += rng.choice((0, 1, 500, 1_000, 3_000, 7_001, 1_800_000_000_000))
        # Read back to the nanosecond: an integer of so many digits is nanoseconds.
        requests.append((now_ns, rng.choice("ab")))
    log = written(tmp_path / "app.jsonl", requests)
    code, out, _ = command("replay", log, "--limit", "5/hour", "--redis", server.url, "--json")
    assert (code, only_run(out)["differences"]) == (0, 0)
    assert only_run(out)["denied"] > 0


def test_a_window_one_microsecond_longer_is_found(
    server: RedisServer, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "window_us", lambda quota: window_us(quota) + 1)
    log = on_the_edge(tmp_path / "app.jsonl")
    arguments = ["replay", log, "--limit", "3/minute", "--redis", server.url]
    code, out, err = command(*arguments, "--json")
    assert code == 1
    told = only_run(out)
    assert told["differences"] > 0
    assert len(told["first_differences"]) == min(5, told["differences"])
    first = told["first_differences"][0]
    assert (first["redis"], first["local"]) == ("denied", "allowed")
    assert err == (
        f"Error: --redis: the server decides {told['differences']:,} of 1,500 requests otherwise "
        f"than the local engine\n"
    )
    code, out, _ = command(*arguments)
    assert code == 1
    assert f"{told['differences']:,} of 1,500 differ from the local engine's" in out
    assert "Where it differs from the local engine, 3/minute" in out
    assert server.ask("DBSIZE") == 0


def test_a_script_that_allows_one_more_is_found(
    server: RedisServer, sample: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Generous(script.Arguments):
        def __init__(self, quotas: tuple[Quota, ...]) -> None:
            more = tuple(Quota(quota.limit + 1, quota.per) for quota in quotas)
            super().__init__(more)

    monkeypatch.setattr("nanolimit.redis.rehearsal.Arguments", Generous)
    code, out, _ = command("replay", sample, "--redis", server.url, "--json")
    told = only_run(out)
    assert code == 1
    assert told["first_differences"][0]["redis"] == "allowed"


def test_the_sweep_is_tried_there_too(server: RedisServer, sample: Path, command: Command) -> None:
    code, out, _ = command(
        "replay", sample, "--redis", server.url, "--sweep", "1,10/minute,50/hour", "--json"
    )
    found = json.loads(out)
    runs = found["redis"]["runs"]
    assert code == 0
    limits = [(each["quotas"][0]["limit"], each["quotas"][0]["per"]) for each in runs]
    assert limits == [(5, 60.0), (1, 60.0), (10, 60.0), (50, 3600.0)]
    assert [each["denied"] for each in runs[1:]] == [row["denied"] for row in found["sweep"]]
    code, out, _ = command("replay", sample, "--redis", server.url, "--sweep", "1/minute")
    assert code == 0
    assert "What other limits do and cost there" in out
    assert server.ask("DBSIZE") == 0


def test_an_empty_log(server: RedisServer, tmp_path: Path, command: Command) -> None:
    log = tmp_path / "empty.log"
    log.write_text("")
    code, out, err = command("replay", log, "--redis", server.url, "--json")
    assert (code, err) == (0, "")
    assert only_run(out)["requests"] == 0
    code, out, err = command("replay", log, "--redis", server.url)
    assert (code, err) == (0, "")
    told = server.info("server")
    name = "Valkey {valkey_version}" if "valkey_version" in told else "Redis {redis_version}"
    assert name.format(**told) in out


def test_the_deny_cache_answers_for_a_second_or_until_it_would_fit(
    server: RedisServer, tmp_path: Path, command: Command
) -> None:
    log = written(tmp_path / "app.jsonl", [(START_S + i / 4, "user") for i in range(21)])
    arguments = ["replay", log, "--redis", server.url, "--json", "--limit"]
    # Denied from 0.5 s on; asked at 0.5, 1.5, 2.5, 3.5 and 4.5 s, and three are answered each time.
    code, out, _ = command(*arguments, "2/minute")
    told = only_run(out)
    assert (code, told["denied"], told["cached"]) == (0, 19, 14)
    # Of each second the third is told to wait for half a second, and so the fourth is answered.
    code, out, _ = command(*arguments, "2/second")
    told = only_run(out)
    assert (code, told["denied"], told["cached"]) == (0, 10, 5)


# Memory and expiry


def test_lists_expire_when_the_server_says(server: RedisServer) -> None:
    """`Expiry` tells when: to the millisecond, also as stamps are added."""
    rng = random.Random(2)
    quotas = (Quota(50, 0.5), Quota(50, 60.0), Quota(50, 86_400.0))
    expiry = Expiry(quotas)
    with Wire(server.url, PATIENT_S) as wire:
        stage = Stage(wire, quotas, "t")
        now_us = stage.clock_us() + 3_600_000_000
        for _ in range(40):
            now_us += rng.choice((0, 1, 999, 60_000, 5_000_000, 9_000_000_000))
            for user, nth in expiry.gone(now_us):
                stage.drop([stage.lists(str(user))[nth]])
            user = rng.randrange(3)
            if not stage.take(str(user), now_us):
                expiry.count(user, now_us)
            assert server.ask("DBSIZE") == len(expiry)
            for nth, dues in enumerate(expiry._dues):
                for each, due_us in dues.items():
                    name = stage.lists(str(each))[nth]
                    assert server.ask("PEXPIRETIME", name) * 1_000 == due_us


def test_memory_is_that_of_the_busiest_moment(
    server: RedisServer, sample: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, int]] = []
    usage_bytes = Stage.usage_bytes

    def looking(stage: Stage, lists: Sequence[bytes]) -> list[int] | None:
        sizes = usage_bytes(stage, lists)
        assert sizes is not None
        names = server.ask("KEYS", "nl:replay-*")
        whole = sum(server.ask("MEMORY", "USAGE", name) for name in names)
        seen.append((len(names), whole, sum(sizes)))
        return sizes

    monkeypatch.setattr(Stage, "usage_bytes", looking)
    code, out, _ = command(
        "replay", sample, "--redis", server.url, "--limit", "5/10m; 100/hour", "--json"
    )
    assert code == 0
    peak = only_run(out)["peak"]
    ((lists, whole, sampled),) = seen
    assert peak["lists"] == lists > peak["keys"] > 0
    # All of them were asked for, there being so few.
    assert sampled == whole == peak["bytes"]
    assert peak["bytes_per_key"] == pytest.approx(whole / peak["keys"])
    # What the server keeps for its clients comes and goes: it may even have become less.
    assert isinstance(peak["used_memory_bytes"], int)


def test_of_many_keys_the_memory_of_some_is_asked_for(
    server: RedisServer, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = written(tmp_path / "app.jsonl", [(START_S, f"user {i:03}") for i in range(101)])
    asked: list[int] = []
    usage_bytes = Stage.usage_bytes

    def looking(stage: Stage, lists: Sequence[bytes]) -> list[int] | None:
        asked.append(len(lists))
        return usage_bytes(stage, lists)

    monkeypatch.setattr(Stage, "usage_bytes", looking)
    monkeypatch.setattr(rehearsal, "_SAMPLED_KEYS", 50)
    code, out, _ = command("replay", log, "--redis", server.url, "--json")
    peak = only_run(out)["peak"]
    assert (code, asked, peak["keys"]) == (0, [34], 101)
    # They are all as large as each other.
    assert peak["bytes"] == 101 * peak["bytes_per_key"]


def test_the_server_never_has_more_lists_than_in_service(
    server: RedisServer, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand users, each of whom comes once, ten minutes after the one before."""
    requests = [(START_S + 600.0 * i, f"user {i}") for i in range(1_000)]
    sizes: list[int] = []
    take_many = Stage.take_many

    def looking(stage: Stage, asked: Any) -> list[int]:
        sizes.append(server.ask("DBSIZE"))
        return take_many(stage, asked)

    monkeypatch.setattr(Stage, "take_many", looking)
    log = written(tmp_path / "app.jsonl", requests)
    code, out, _ = command("replay", log, "--redis", server.url, "--json")
    assert code == 0
    assert only_run(out)["peak"]["lists"] == 1
    # What is over is dropped before each block: only the last one of the block before is left.
    assert max(sizes) <= 1
    assert len(sizes) > 5


def test_a_server_that_is_too_slow_for_its_clock_is_an_error(
    server: RedisServer, sample: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had taken so long: lists could have expired, and decisions be wrong."""
    monkeypatch.setattr(rehearsal, "_AHEAD_US", -100 * 86_400 * 1_000_000)
    code, out, err = command("replay", sample, "--redis", server.url)
    assert (code, out) == (1, "")
    assert "so long that lists expire before the log has got as far" in err
    assert server.ask("DBSIZE") == 0


# What the server says of itself


def test_a_policy_that_evicts_is_warned_of(
    server: RedisServer, sample: Path, command: Command
) -> None:
    server.config_set("maxmemory-policy", "allkeys-lru")
    try:
        code, out, _ = command("replay", sample, "--redis", server.url)
        assert code == 0
        assert "Warning: maxmemory-policy is allkeys-lru" in out
        code, out, _ = command("replay", sample, "--redis", server.url, "--json")
        told = json.loads(out)["redis"]
        assert len(told["warnings"]) == 1
        assert told["nodes"][0]["maxmemory_policy"] == "allkeys-lru"
    finally:
        server.config_set("maxmemory-policy", "noeviction")


def test_scripts_of_others_leave_the_servers_time_unknown(
    server: RedisServer, sample: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = server.ask("SCRIPT", "LOAD", "return 1")
    take_many = Stage.take_many

    def crowded(stage: Stage, asked: Any) -> list[int]:
        with server.line() as line:
            for _ in range(300):
                line.ask("EVALSHA", sha, 0)
        return take_many(stage, asked)

    monkeypatch.setattr(Stage, "take_many", crowded)
    code, out, _ = command("replay", sample, "--redis", server.url, "--json")
    assert (code, only_run(out)["server_us"]) == (0, None)


def test_a_user_who_may_only_limit(server: RedisServer, sample: Path, command: Command) -> None:
    """With what docs/distributed.md says that a limiter needs: no INFO, no MEMORY USAGE."""
    server.ask(
        "ACL", "SETUSER", "limiter", "on", ">sesame", "resetkeys", "~nl:*", "-@all", "+evalsha",
        "+eval", "+time", "+lindex", "+lpush", "+linsert", "+rpush", "+llen", "+ltrim", "+lrange",
        "+pexpireat", "+unlink",
    )  # fmt: skip
    try:
        url = f"redis://limiter:sesame@{server.host}:{server.port}/0"
        code, out, err = command("replay", sample, "--redis", url, "--json")
        assert (code, err) == (0, "")
        told = only_run(out)
        assert told["differences"] == 0
        assert told["server_us"] is None
        assert told["peak"]["bytes_per_key"] is told["peak"]["used_memory_bytes"] is None
        assert told["peak"]["lists"] > 0
        assert json.loads(out)["redis"]["nodes"] == []
        code, out, _ = command("replay", sample, "--redis", url)
        assert "does not let this user ask what it is (INFO)" in out
        assert "sesame" not in out
        server.ask("ACL", "SETUSER", "limiter", "resetkeys", "~other:*")
        code, out, err = command("replay", sample, "--redis", url)
        assert (code, out) == (1, "")
        assert "NOPERM" in err or "permission" in err.lower()
        assert len(err.splitlines()) == 1
    finally:
        server.ask("ACL", "DELUSER", "limiter")
    assert server.ask("DBSIZE") == 0


def test_a_cluster(sample: Path, command: Command) -> None:
    with RedisCluster() as cluster:
        code, out, err = command(
            "replay", sample, "--limit", "5/minute; 50/hour", "--redis", cluster.url, "--json"
        )
        assert (code, err) == (0, "")
        told = only_run(out)
        assert told["differences"] == 0
        assert told["peak"]["bytes_per_key"] > 0
        assert isinstance(told["peak"]["used_memory_bytes"], int)
        server = json.loads(out)["redis"]
        assert server["cluster"] is True
        assert len(server["nodes"]) == 3
        assert [node.ask("DBSIZE") for node in cluster.nodes] == [0, 0, 0]


# What goes wrong


def after(calls: int, what: Callable[[], object]) -> Callable[[Stage, Any], list[int]]:
    """A `Stage.take_many` that does something after so many calls of it."""
    take_many = Stage.take_many
    left = calls

    def counting(stage: Stage, asked: Any) -> list[int]:
        nonlocal left
        left -= 1
        waits_us = take_many(stage, asked)
        if left == 0:
            what()
        return waits_us

    return counting


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(
    server: RedisServer,
    sample: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    # Where the tests run in the background, the shell has them ignore Ctrl-C.
    before = signal.signal(number, signal.default_int_handler)
    seen: list[int] = []
    blocks: list[int] = []
    take_many = Stage.take_many

    def interrupted(stage: Stage, asked: Any) -> list[int]:
        waits_us = take_many(stage, asked)
        blocks.append(len(asked))
        if len(blocks) == 3:
            seen.append(server.ask("DBSIZE"))
            os.kill(os.getpid(), number)
        return waits_us

    monkeypatch.setattr(Stage, "take_many", interrupted)
    monkeypatch.setattr(rehearsal, "_SINGLE_MAX", 0)
    try:
        code, out, err = command("replay", sample, "--redis", server.url)
    finally:
        signal.signal(number, before)
    assert (code, out, err.strip()) == (130, "", "nanolimit: interrupted")
    assert seen[0] > 0
    assert len(blocks) == 3
    assert server.ask("DBSIZE") == 0


def test_an_interrupt_at_the_very_end_counts(
    server: RedisServer, sample: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    clean = rehearsal._Run.clean

    def interrupted(run: rehearsal._Run) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return clean(run)

    monkeypatch.setattr(rehearsal._Run, "clean", interrupted)
    try:
        code, out, _ = command("replay", sample, "--redis", server.url)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out) == (130, "")
    assert server.ask("DBSIZE") == 0


def test_ctrl_c_of_a_process_leaves_nothing(server: RedisServer, sample: Path) -> None:
    sweep = ",".join(map(str, range(1, 200))) + "/hour"
    process = subprocess.Popen(
        [sys.executable, "-m", "nanolimit", "replay", str(sample), "--redis", server.url,
         "--sweep", sweep],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that starts it in the background would have it ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENT_S
        while server.ask("DBSIZE") < 10:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENT_S)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err.strip()) == (130, "", "nanolimit: interrupted")
    assert server.ask("DBSIZE") == 0


def test_a_server_that_is_killed(
    sample: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RedisServer() as server:
        monkeypatch.setattr(Stage, "take_many", after(4, server.kill))
        code, out, err = command("replay", sample, "--redis", server.url)
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("Error: --redis: after ")
    assert " of 3,000 requests: " in line
    assert "could not be deleted; they expire by themselves" in line


def test_an_interrupt_while_the_server_is_gone_says_what_is_left(
    sample: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with RedisServer() as server:

        def stop() -> None:
            server.kill()
            os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(Stage, "take_many", after(2, stop))
        try:
            code, out, err = command("replay", sample, "--redis", server.url)
        finally:
            signal.signal(signal.SIGINT, before)
    assert (code, out) == (1, "")
    assert " of 3,000 requests: broken off. The lists nl:replay-" in err
    assert "could not be deleted" in err
    assert len(err.splitlines()) == 1


def test_a_connection_that_is_cut_leaves_nothing(
    server: RedisServer, sample: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was on its way may have been counted: its lists are deleted too."""
    take_many = Stage.take_many
    cut: list[int] = []

    def cutting(stage: Stage, asked: Any) -> list[int]:
        if not cut and server.ask("DBSIZE"):
            take_many(stage, asked)
            cut.append(server.ask("DBSIZE"))
            raise rehearsal.Unavailable("the connection broke", outcome_unknown=True)
        return take_many(stage, asked)

    monkeypatch.setattr(Stage, "take_many", cutting)
    code, out, err = command("replay", sample, "--redis", server.url)
    assert (code, out) == (1, "")
    assert "the connection broke" in err
    assert "could not be deleted" not in err
    assert cut[0] > 0
    assert server.ask("DBSIZE") == 0


def test_a_replica(running: RedisServer, sample: Path, command: Command) -> None:
    with RedisServer("--replicaof", f"{running.host} {running.port}") as replica:
        deadline = time.monotonic() + PATIENT_S
        while "master_link_status:up" not in replica.ask("INFO", "replication").decode():
            assert time.monotonic() < deadline
        code, out, err = command("replay", sample, "--redis", replica.url)
    assert (code, out) == (1, "")
    assert err.startswith("Error: --redis: READONLY ")
    assert len(err.splitlines()) == 1


def test_no_memory(server: RedisServer, sample: Path, command: Command) -> None:
    server.config_set("maxmemory", 1)
    try:
        code, out, err = command("replay", sample, "--redis", server.url)
        assert (code, out) == (1, "")
        assert err.startswith("Error: --redis: OOM ")
        assert len(err.splitlines()) == 1
    finally:
        server.config_set("maxmemory", 0)
    assert server.ask("DBSIZE") == 0


@pytest.mark.parametrize("singly", [0, 2_048])
def test_memory_that_is_used_up_meanwhile(
    server: RedisServer,
    sample: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    singly: int,
) -> None:
    monkeypatch.setattr(rehearsal, "_SINGLE_MAX", singly)
    monkeypatch.setattr(Stage, "take_many", after(3, lambda: server.config_set("maxmemory", 1)))
    try:
        code, out, err = command("replay", sample, "--redis", server.url)
    finally:
        server.config_set("maxmemory", 0)
    assert (code, out) == (1, "")
    assert " of 3,000 requests: OOM " in err
    assert server.ask("DBSIZE") == 0


def test_what_is_no_redis(command: Command, sample: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.close()
        code, out, err = command("replay", sample, "--redis", f"redis://127.0.0.1:{port}/0")
    assert (code, out) == (1, "")
    assert "refused" in err
    assert len(err.splitlines()) == 1


def test_a_wrong_password(sample: Path, command: Command) -> None:
    with RedisServer(password="sesame") as server:
        url = f"redis://:wrong@{server.host}:{server.port}/0"
        code, out, err = command("replay", sample, "--redis", url)
        assert (code, out) == (1, "")
        assert "WRONGPASS" in err or "password" in err.lower()
        assert len(err.splitlines()) == 1
        code, out, err = command("replay", sample, "--redis", server.url)
        assert (code, err) == (0, "")
        assert "sesame" not in out
