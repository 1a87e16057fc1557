"""Builds the extension with asserts, AddressSanitizer and UBSan and runs tests under it (Linux).

usage: python .ci/sanitize.py TESTS...

The interpreter itself is not instrumented, so the sanitizer's library is preloaded and leaks, which
CPython has by design, are not looked for. PYTHONMALLOC=malloc lets it see Python's own blocks.
The tests run in two halves side by side, every other file in each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
COMPILER = os.environ.get("CC", "gcc")


def library(name: str) -> str:
    """Where the compiler keeps its runtime library `name`."""
    path = subprocess.run(
        [COMPILER, f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"{COMPILER} has no {name}")
    return path


def main() -> int:
    tests = [str(SOURCE / test) for test in sys.argv[1:]]
    preload = f"{library('libasan.so')} {library('libubsan.so')}"
    with tempfile.TemporaryDirectory(prefix="nanolimit-sanitize-") as temporary:
        home = Path(temporary) / "venv"
        venv.EnvBuilder(with_pip=True).create(home)
        python = home / "bin" / "python"
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        built = {
            **os.environ,
            "CC": COMPILER,
            "NANOLIMIT_SANITIZE": "address,undefined",
            "NANOLIMIT_DEBUG": "1",
        }
        subprocess.run([*pip, "--upgrade", "pip>=25.1"], check=True)
        groups = ["--group", "wheel-test", "--group", "trio"]
        subprocess.run([*pip, *groups], check=True, cwd=SOURCE)
        subprocess.run(
            [*pip, "--no-build-isolation", f"{SOURCE}[cli]"], check=True, env=built, cwd=temporary
        )
        under = {
            **os.environ,
            "LD_PRELOAD": preload,
            "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
            "NANOLIMIT_SOURCE": str(SOURCE),
        }
        command = [
            python,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-c",
            SOURCE / "pyproject.toml",
        ]
        halves = [half for half in (tests[0::2], tests[1::2]) if half]
        # What the first says is seen as it comes, and that of the other one when it is done.
        with tempfile.TemporaryFile() as said:
            running = [
                subprocess.Popen(
                    [*command, *half],
                    cwd=SOURCE,
                    env=under,
                    stdout=said if number else None,
                    stderr=subprocess.STDOUT if number else None,
                )
                for number, half in enumerate(halves)
            ]
            statuses = [each.wait() for each in running]
            said.seek(0)
            sys.stdout.write(said.read().decode(errors="replace"))
        return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(main())
