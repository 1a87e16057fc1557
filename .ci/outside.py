"""Tests a built distribution from outside the source tree, in a fresh virtual environment.

usage: python .ci/outside.py {wheel,sdist} [--extras EXTRAS] [--group GROUP]... TESTS...

Takes the newest wheel or sdist in dist/, installs it with the Python that runs this script, copies
tests/ and pyproject.toml (pytest's settings) to a temporary folder and runs TESTS there. The
checkout is named in NANOLIMIT_SOURCE, for the tests that compare the two. Standard library only,
any platform.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent


def newest(pattern: str) -> Path:
    found = sorted((SOURCE / "dist").glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit(f"no {pattern} in dist/: build it first (make dist)")
    return found[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=["wheel", "sdist"])
    parser.add_argument("--extras", default="cli", help="extras to install with it (default: cli)")
    parser.add_argument("--group", action="append", help="dependency groups (default: wheel-test)")
    parser.add_argument("tests", nargs="+", help="paths relative to the checkout")
    options = parser.parse_args()
    groups: list[str] = options.group or ["wheel-test"]

    distribution = newest("nanolimit-*.whl" if options.kind == "wheel" else "nanolimit-*.tar.gz")
    # A folder whose name has a space and a letter beyond ASCII: people have such folders.
    with tempfile.TemporaryDirectory(prefix="nanolimit outsidé ") as temporary:
        outside = Path(temporary)
        home = outside / "venv"
        venv.EnvBuilder(with_pip=True).create(home)
        python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

        def run(*command: str | Path) -> int:
            print("+", *command, flush=True)
            environment = {**os.environ, "NANOLIMIT_SOURCE": str(SOURCE)}
            environment.pop("PYTHONPATH", None)
            return subprocess.run(
                [python, *command], cwd=outside, env=environment, check=False
            ).returncode

        pip = ("-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--prefer-binary")
        shutil.copytree(
            SOURCE / "tests", outside / "tests", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copy(SOURCE / "pyproject.toml", outside)
        print(f"{distribution.name} on {sys.version}", flush=True)
        installed = (
            run(*pip, "--upgrade", "pip>=25.1")
            or run(*pip, *(part for group in groups for part in ("--group", group)))
            # pip keeps the wheel of an sdist by its path: the cache would bring an old one
            or run(*pip, "--no-cache-dir", f"nanolimit[{options.extras}] @ {distribution.as_uri()}")
        )
        return installed or run("-m", "pytest", "-p", "no:cacheprovider", *options.tests)


if __name__ == "__main__":
    sys.exit(main())
