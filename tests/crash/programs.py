"""The C programs of the crash tests: built once a session, run, and their failures told."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import impossible, missing

HERE = Path(__file__).parent
CORE = HERE.parents[1] / "src" / "nanolimit" / "core"
SOAK = os.environ.get("NANOLIMIT_SOAK", "") not in ("", "0")
#: What a program says that may not do what it is for.
SKIPPED = 77

FLAGS = [
    "-std=c11", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{CORE}",
]  # fmt: skip
SANITIZERS = [
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer",
]  # fmt: skip

needs_stepping = pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"),
    reason="shared tables are for Linux on x86-64 and arm64",
)


def compiler() -> str:
    """What CC names, or else cc, gcc or clang."""
    found = map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))
    return next(filter(None, found), None) or missing("a C compiler")


def compile_program(source: str, to: Path, compiler: str, *flags: str) -> Path:
    """Compile one of this folder's sources.

    Args:
        source: the file's name.
        to: where the program shall be.
        compiler: the compiler's path.
        flags: options besides those that all of them get.

    Returns:
        `to`.
    """
    run(compiler, *FLAGS, *flags, str(HERE / source), "-o", str(to))
    return to


def run(*command: str, seconds: float = 200) -> str:
    """Run a command.

    Args:
        command: the program and its arguments.
        seconds: how long it may take; a hundred times as long in a soak.

    Returns:
        What it printed. If it fails, or does not end, the test fails with its last words; if it
        says that it may not do what it is for, the test is skipped.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True, text=True, check=False, errors="replace",
            timeout=seconds * (100 if SOAK else 1),
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"{' '.join(command)}: no end after {late.timeout} s")
    if done.returncode == SKIPPED:
        impossible("the system permits no tracing")
    if done.returncode != 0:
        # The last words of a compiler, a sanitizer or a fuzzer are behind a lot of others.
        words = f"{done.stdout[-3_000:]}{done.stderr[-9_000:]}"
        pytest.fail(f"{' '.join(command)}: {done.returncode}\n{words}")
    return done.stdout
