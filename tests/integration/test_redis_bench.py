"""benchmarks/redis.py: it runs, sees for what it checks, and leaves nothing behind.

How fast anything is, nobody learns here: blocks are tiny, and other tests may run beside them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redis_server import RedisServer, free_port
from tools import at_hand

pytest.importorskip("redis")
pytest.importorskip("limits")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
BUDGET_S = 300.0


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python in the directory of the benchmarks, with the nanolimit of this one."""
    script = at_hand(BENCHMARKS / "redis.py")
    paths = [path for path in sys.path if path and not path.startswith(str(script.parent))]
    return subprocess.run(
        [sys.executable, *arguments], cwd=script.parent, capture_output=True, text=True,
        timeout=BUDGET_S, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python("redis.py", "--quick", "--rounds", "1", *arguments)


def figures(*arguments: str) -> dict[str, Any]:
    """Run it for JSON, and return that."""
    done = bench("--json", *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_all_parts_run_on_a_server_of_their_own_that_ends_with_them() -> None:
    found = figures()
    assert found["troubles"] == {}
    environment = found["environment"]
    assert "loopback" in environment["connections"]
    pid = int(environment["server"].rpartition(" ")[2])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    tables = found["tables"]
    assert {"single", "concurrent", "denied", "batch", "memory"} <= set(tables)
    for name in ("single", "denied"):
        assert {"nanolimit", "limits"} <= {who for _, who, *_ in tables[name]}
    for what, _, took_us, *_ in tables["single"] + tables["concurrent"] + tables["batch"]:
        assert took_us > 0, what
    # A must is either short or not, and its median lies between the quartiles.
    assert len(found["musts"]) >= 6
    for must in found["musts"]:
        figure = must["figure"]
        assert figure["low"] <= figure["median"] <= figure["high"]
        is_met = figure["median"] >= must["must"]
        if not must["higher_is_better"]:
            is_met = figure["median"] <= must["must"]
        assert must["ok"] is is_met


def test_memory_is_of_the_limit_that_was_used(server: RedisServer) -> None:
    table = figures("--only", "memory", "--server", server.url)["tables"]["memory"]
    sizes = {who: numbers for who, *numbers in table}
    for who in ("nanolimit", "limits", "a sorted set"):
        assert sizes[who] == sorted(sizes[who])
        assert sizes[who][-1] > 5_000  # a thousand stamps
    assert sizes["nanolimit"][-1] < sizes["limits"][-1] < sizes["a sorted set"][-1]


def test_a_given_server_keeps_what_it_had_and_nothing_else(server: RedisServer) -> None:
    assert server.ask("SET", "user:1", "ours") == "OK"
    done = bench("--only", "single,denied,batch", "--server", server.url)
    assert done.returncode == 0, done.stderr
    assert "One blocking check" in done.stdout
    assert "Against what it must show" in done.stdout
    assert server.calls("evalsha") > 0
    assert server.ask("KEYS", "*") == [b"user:1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "single,nothing"), "memory, not 'single,nothing'"),
        (("--only", ""), "memory, not ''"),
        (("--server", "http://localhost"), "redis://, rediss:// or unix://"),
        (("--server", "redis://127.0.0.1:1", "--program", "valkey-server"), "not allowed with"),
        (("--program", "no-such-server"), "no-such-server is not installed"),
        (("--program", "true"), "did not start"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], message: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    port = free_port()
    done = bench("--server", f"redis://:secret@127.0.0.1:{port}/0")
    assert done.returncode == 2
    assert f"the server at 127.0.0.1:{port} does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stdout + done.stderr


# The script as a module of another name.
IMPORT = (
    "import harness, importlib.util as util, sys\n"
    "spec = util.spec_from_file_location('bench', 'redis.py')\n"
    "bench = sys.modules['bench'] = util.module_from_spec(spec)\n"
    "spec.loader.exec_module(bench)\n"
)


def test_a_must_that_is_missed_is_short() -> None:
    done = python(
        "-c",
        IMPORT + "figure = bench.Figure.of([1.0, 2.0, 3.0])\n"
        "for must, higher in ((2, True), (2.1, True), (2, False), (1.9, False)):\n"
        "    print(*bench.Must('this', figure, must, higher).row(), sep=' | ')\n",
    )
    assert done.stdout.splitlines() == [
        "this | >= 2 | 2.0 | 1.5 - 2.5 | ok",
        "this | >= 2.1 | 2.0 | 1.5 - 2.5 | SHORT",
        "this | <= 2 | 2.0 | 1.5 - 2.5 | ok",
        "this | <= 1.9 | 2.0 | 1.5 - 2.5 | SHORT",
    ], done.stderr


def test_who_does_not_limit_is_not_timed() -> None:
    done = python(
        "-c",
        IMPORT + "async def yes(key): return True\n"
        "for blocking, awaited in ((lambda key: True, None), (None, yes)):\n"
        "    made = [call and (lambda limit, call=call: call) for call in (blocking, awaited)]\n"
        "    try: bench.Contender(*made, bool).prove()\n"
        "    except RuntimeError as error: print(error)\n",
    )
    assert done.stdout.splitlines() == [
        f"8 requests of 5 an hour: {[True] * 8}, not {[True] * 5 + [False] * 3}",
        "of 64 requests at once of 20 an hour, passed: 64, not 20",
    ], done.stderr


def test_the_script_does_not_hide_the_library_of_its_name() -> None:
    done = python("-c", "import harness, redis; print(redis.Redis.__module__)")
    assert done.stdout == "redis.client\n", done.stderr
