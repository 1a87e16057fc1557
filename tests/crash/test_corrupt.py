"""A damaged table's file: whatever its bytes are, an error or an answer.

No crash, no hang, no access outside the mapping. corrupt.h says how. NANOLIMIT_SOAK=1 damages
100,000 tables in each way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from programs import SANITIZERS, SOAK, compile_program, compiler, needs_stepping, run

pytestmark = needs_stepping

SAID = re.compile(
    r"(?P<tables>\d+) tables .* (?P<changes>\d+) changes: (?P<refused>\d+) refused, "
    r"(?P<used>\d+) used .*: no harm done\n"
)


@pytest.mark.parametrize("flags", [["-O2"], ["-O1", *SANITIZERS]], ids=["plain", "asan"])
def test_damaged_at_random(tmp_path: Path, flags: list[str]) -> None:
    program = compile_program("corrupt.c", tmp_path / "corrupt", compiler(), *flags)
    count = 100_000 if SOAK else 2_000
    said = SAID.fullmatch(run(str(program), str(count)))
    assert said is not None
    assert int(said["tables"]) == count
    assert int(said["changes"]) > 3 * count
    # Both ways are gone often enough to mean something.
    assert min(int(said["refused"]), int(said["used"])) > count // 4


def test_damaged_by_a_fuzzer(tmp_path: Path, require_tool: Callable[[str], str]) -> None:
    program = compile_program(
        "corrupt.c", tmp_path / "corrupt", require_tool("clang"),
        "-O1", "-DCORRUPT_FUZZ", "-fsanitize=fuzzer", *SANITIZERS,
    )  # fmt: skip
    length = ["-runs=100000"] if SOAK else ["-max_total_time=4"]
    run(
        str(program), *length, "-max_len=600", "-len_control=20", "-seed=1", "-timeout=60",
        f"-artifact_prefix={tmp_path}/",
    )  # fmt: skip
