"""Plants the bugs of mutants.py one by one: the test that each names must fail.

    python tests/mutants/run.py [--only NAME ...] [--jobs N]

Every mutant is planted in a copy of the tree. Exit status 1: one survived, a named test fails
without any mutant, or a mutant no longer applies or builds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from queue import SimpleQueue

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["src", "tests", "setup.py", "pyproject.toml", "README.md"]
TIME_OUT_S = 60  # the slowest takes 20 s on a slow machine


@dataclass
class Tree:
    """A copy of the tree, with the extension built in place."""

    root: Path
    stale: bool = True  # the extension is not that of the sources

    @classmethod
    def of_this(cls, at: Path) -> Tree:
        left_out = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.egg-info", "_core.c")
        at.mkdir()
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, at / part, ignore=left_out)
            elif (ROOT / part).exists():
                shutil.copy(ROOT / part, at / part)
        return cls(at)

    def copy(self, at: Path) -> Tree:
        shutil.copytree(self.root, at)
        return Tree(at, self.stale)

    def build(self) -> None:
        """Brings the extension up to date: unoptimised and with asserts, which is quick."""
        if not self.stale:
            return
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**os.environ, "NANOLIMIT_DEBUG": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise Broken(f"it does not build: {done.stdout[-600:]}{done.stderr[-600:]}")
        self.stale = False

    def compile_core(self) -> None:
        """A C test compiles the core itself; that it did not compile must not count as caught."""
        strict = [
            "-std=c11",
            "-D_GNU_SOURCE",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unused-function",
        ]
        command = (os.environ.get("CC") or "cc").split()
        for header in ["batch.h", "shared.h", "verify.h"]:
            source = f'#include "nanolimit/core/{header}"\n'
            done = subprocess.run(
                [*command, *strict, "-fsyntax-only", "-x", "c", "-I", "src", "-"],
                cwd=self.root,
                input=source,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise Broken(f"it does not compile: {done.stderr[-600:]}")

    def test(self, tests: list[str], seconds: float = TIME_OUT_S) -> tuple[bool, str]:
        """Did they pass? And pytest's last words."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        if not any(entry.name == "nanolimit" for entry in entry_points(group="pytest11")):
            command += ["-p", "nanolimit.pytest_plugin"]
        try:
            done = subprocess.run(
                [*command, *tests],
                cwd=self.root,
                env={**os.environ, "PYTHONPATH": str(self.root / "src")},
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return False, "hung"
        words = (done.stdout.strip().splitlines() or ["-"])[-1]
        if done.returncode < 0:
            return False, f"died of signal {-done.returncode}"
        if done.returncode not in (0, 1):  # not a failed test: no such test, or no such module
            raise Broken(f"pytest could not run it: {done.stdout[-600:]}{done.stderr[-600:]}")
        if done.returncode == 0 and " passed" not in words:
            raise Broken(f"the test did not run: {words}")
        return done.returncode == 0, words


class Broken(Exception):
    """A mutant that says nothing about its test."""


def try_one(tree: Tree, mutant: Mutant) -> str:
    path = tree.root / mutant.file
    text = path.read_text("utf-8")
    if text.count(mutant.old) != 1:
        raise Broken(
            f"its old text occurs {text.count(mutant.old)} times in {mutant.file}, not once"
        )
    in_c = mutant.test.startswith(("tests/c/", "tests/crash/test_step.py"))
    compiled = path.suffix in (".h", ".pyx", ".pxd", ".pxi")
    path.write_text(text.replace(mutant.old, mutant.new), "utf-8")
    try:
        tree.stale |= compiled
        if in_c:
            tree.compile_core()
        else:
            tree.build()
        passed, words = tree.test([mutant.test])
        return "SURVIVED" if passed else f"caught: {words}"
    finally:
        path.write_text(text, "utf-8")
        tree.stale |= compiled


def check_unmutated(tree: Tree, mutants: list[Mutant]) -> bool:
    tests = sorted({mutant.test for mutant in mutants})
    passed, words = tree.test(tests, TIME_OUT_S * 6)  # all of them, one after the other
    print(f"without a mutant: {len(tests)} tests: {words}", flush=True)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants only")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: 2)")
    arguments = parser.parse_args()
    unknown = set(arguments.only or []) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not arguments.only or mutant.name in arguments.only]
    with_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    mutants = [mutant for mutant in chosen if not (with_gil and mutant.free_threaded)]
    for mutant in chosen:
        if mutant not in mutants:
            print(f"{mutant.name:32} skipped: it shows on a free-threaded Python only")

    begun = time.monotonic()
    bad: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        idle: SimpleQueue[Tree] = SimpleQueue()
        first = Tree.of_this(Path(scratch) / "tree0")
        said = threading.Lock()

        def work(mutant: Mutant) -> None:
            tree = idle.get()
            started = time.monotonic()
            try:
                verdict = try_one(tree, mutant)
            except Broken as error:
                verdict = f"BROKEN: {error}"
            finally:
                idle.put(tree)
            with said:
                print(
                    f"{mutant.name:32} {time.monotonic() - started:5.1f} s  {verdict}", flush=True
                )
                if not verdict.startswith("caught"):
                    print(f"{'':32} {mutant.file}: {mutant.why}; {mutant.test}", flush=True)
                    bad.append(mutant.name)

        def work_unmutated() -> None:
            tree = idle.get()
            try:
                passed = check_unmutated(tree, mutants)
            except Broken as error:
                print(f"without a mutant: {error}", flush=True)
                passed = False
            finally:
                idle.put(tree)
            if not passed:
                bad.append("(no mutant)")

        try:
            first.build()
        except Broken as error:
            print(f"without a mutant: {error}")
            return 1
        idle.put(first)
        for number in range(1, arguments.jobs):
            idle.put(first.copy(Path(scratch) / f"tree{number}"))
        with ThreadPoolExecutor(arguments.jobs) as pool:
            unmutated = pool.submit(work_unmutated)
            list(pool.map(work, mutants))
            unmutated.result()
    took = time.monotonic() - begun
    print(f"{len(mutants)} mutants, {len(bad)} not as they should be, {took:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
