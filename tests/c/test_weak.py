"""The core on a simulated machine with weakly ordered memory: weak.c says what is checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import missing

HERE = Path(__file__).parent
SCENARIOS = ["hot_key", "views", "reused_slot", "stolen_slot", "growth", "death", "meters", "runs"]

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="its threads are coroutines of Linux's ucontext"
)


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        missing("a C compiler (gcc or clang)")
    program = tmp_path_factory.mktemp("weak") / "weak"
    # _FORTIFY_SOURCE takes a jump to another stack for a mistake.
    flags = ["-std=gnu11", "-O1", "-g", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-I", str(HERE)]
    build = [*compiler.split(), *flags, str(HERE / "weak.c"), "-o", str(program), "-pthread"]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_schedule_gives_a_log_that_could_be(weak: Path, scenario: str) -> None:
    soak = os.environ.get("NANOLIMIT_SOAK", "") not in ("", "0")
    seeds = "400000" if soak else "0"  # 0: as many as take a second
    done = subprocess.run([weak, scenario, "0", seeds], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
