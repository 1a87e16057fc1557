"""Containers that share a directory: other namespaces than ours, on one table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanolimit import RateLimiter
from tools import impossible

pytestmark = pytest.mark.usefixtures("tables")

# Asks 15 times, and tells what it was told. With an argument it goes without signing off.
ASK = """
import json, os, sys
from nanolimit import NanolimitError, RateLimiter
try:
    limiter = RateLimiter("20/hour", shared="api")
    allowed = sum(limiter.allow("user") for _ in range(15))
    print(json.dumps({"allowed": allowed, "pid": os.getpid()}), flush=True)
except NanolimitError as error:
    print(json.dumps(str(error)), flush=True)
if len(sys.argv) > 1:
    os._exit(1)
"""

Contain = Callable[..., Any]


@pytest.fixture
def contained(require_tool: Callable[[str], str], tmp_path: Path) -> Contain:
    """contained("--pid", ...) -> what ASK prints in such namespaces."""
    unshare = require_tool("unshare")
    script = tmp_path / "ask.py"
    script.write_text(ASK)

    def contain(*options: str, arguments: tuple[str, ...] = ()) -> Any:
        able = subprocess.run(
            [unshare, *options, "--fork", "true"], capture_output=True, text=True, check=False
        )
        if able.returncode:
            impossible(f"no such namespaces here: {able.stderr.strip()}")
        done = subprocess.run(
            [unshare, *options, "--fork", sys.executable, script, *arguments],
            stdout=subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip
        return json.loads(done.stdout)

    return contain


def test_other_pid_namespaces_share_one_count(contained: Contain) -> None:
    with RateLimiter("20/hour", shared="api") as limiter:
        assert limiter.allow("user")
        told = contained("--pid")
        assert told == {"allowed": 15, "pid": 1}
        assert limiter.peek("user").remaining == 4
        assert contained("--pid")["allowed"] == 4
        assert not limiter.allow("user")


def test_all_namespaces_of_a_container_but_time(contained: Contain) -> None:
    with RateLimiter("20/hour", shared="api") as limiter:
        told = contained("--pid", "--mount", "--ipc", "--net", "--uts", "--cgroup")
        assert told == {"allowed": 15, "pid": 1}
        assert limiter.peek("user").remaining == 5


def test_one_that_ends_without_signing_off_loses_nothing(contained: Contain) -> None:
    """Its pid was 1, and somebody lives here who has that: who lives is not told by pids."""
    with RateLimiter("20/hour", shared="api") as limiter:
        assert contained("--pid", arguments=("go",))["allowed"] == 15
        assert sum(limiter.allow("user") for _ in range(15)) == 5
        assert contained("--pid")["allowed"] == 0


def test_other_clocks_are_refused(contained: Contain) -> None:
    with RateLimiter("20/hour", shared="api") as limiter:
        told = contained("--time", "--boottime", "1000")
        assert isinstance(told, str)
        assert "time namespace" in told
        assert limiter.stats().allowed == 0
