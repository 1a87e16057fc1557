"""The core alone, in C programs: against a model, under sanitizers, fuzzed, on other machines.

random.c and fuzz.c compare every answer with model.h; threads.c races. NANOLIMIT_SOAK=1 runs all
of it longer.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools import missing

HERE = Path(__file__).parent
CORE = HERE.parents[1] / "src" / "nanolimit" / "core"
SOAK = os.environ.get("NANOLIMIT_SOAK", "") not in ("", "0")

BASE = ["-std=c11", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra", "-Werror", f"-I{CORE}"]
DEBUG = ["-DNL_DEBUG"]
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
# The vector load reads tags that others write meanwhile, as it may; the sanitizer can't know.
THREAD = ["-fsanitize=thread", "-DNL_PORTABLE_TAGS"]

#: rounds of each test of threads.c, in a second or so
RACES = {
    "hot": 1_000, "sliding": 600, "clear": 1_000, "full": 2_000, "claims": 200_000, "heirs": 20_000,
    "meters": 1_500, "top": 2_000,
    "fork": 40,
}  # fmt: skip

pytestmark = pytest.mark.skipif(os.name == "nt", reason="speaks to gcc and clang only")

Build = Callable[..., Path]


@dataclass(frozen=True)
class Target:
    """A platform that is reached through the compiler in the package ziglang.

    Building a C library takes zig half a minute for musl, and more than a minute for mingw. So
    `native` compiles, where it is installed. What is only linked for Windows is linked against the
    system's own libraries, with startup_windows.c in place of mingw's.
    """

    triple: str
    runner: tuple[str, ...] | None  # None: nothing here runs it
    flags: tuple[str, ...] = ()
    native: str = ""  # a compiler of the system for it, which has its C library ready


TARGETS = {
    "linux-musl": Target("x86_64-linux-musl", (), native="musl-gcc"),
    "linux-arm64": Target("aarch64-linux-musl", ("qemu-aarch64",)),
    "macos-arm64": Target("aarch64-macos", None),
    "windows": Target("x86_64-windows-gnu", None),
    "windows-interlocked": Target("x86_64-windows-gnu", None, ("-DNL_FORCE_INTERLOCKED",)),
}


def longer(count: int) -> int:
    return count * 100 if SOAK else count


def run(command: list[str], *, seconds: float = 120, **environment: str) -> str:
    """The command's output; its error output when it fails or does not end."""
    done = subprocess.run(
        command,
        capture_output=True, text=True, check=False, errors="replace",
        timeout=seconds * (200 if SOAK else 1), env={**os.environ, **environment},
    )  # fmt: skip
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"[:8000])
    return done.stdout


def clang_or_nothing() -> str:
    return shutil.which("clang") or missing("clang")


def a_compiler() -> str:
    """What CC names, or else cc, gcc or clang."""
    found = map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))
    return next(filter(None, found), None) or missing("a C compiler")


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """build("random.c", compiler, flags): the program; each is made once a session."""
    made: dict[tuple[str, ...], Path] = {}
    directory = tmp_path_factory.mktemp("core")

    def make(source: str, compiler: list[str], flags: list[str]) -> Path:
        recipe = (source, *compiler, *flags)
        if recipe not in made:
            kind = ".o" if "-c" in flags else ""  # by its name zig knows what to do with it
            program = directory / f"{Path(source).stem}-{len(made)}{kind}"
            # (zig may build a C library before)
            command = [*compiler, *BASE, *flags, str(HERE / source), "-o", str(program)]
            run(command, seconds=600)
            made[recipe] = program
        return made[recipe]

    return make


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gcc", "clang"])
@pytest.mark.parametrize("tags", ["vector tags", "portable tags"])
def test_every_answer_is_the_models(
    build: Build, require_tool: Callable[[str], str], name: str, tags: str
) -> None:
    flags = ["-O2", *DEBUG, "-pthread"] + ["-DNL_PORTABLE_TAGS"] * (tags == "portable tags")
    program = build("random.c", [require_tool(name)], flags)
    first = {"gcc": 0, "clang": 2}[name] + (tags == "portable tags")
    span = longer(60)
    # One of them runs them all; the others are for what their compiler makes of it.
    count = span if first == 0 else span // 2
    assert "all as the model says" in run([str(program), str(count), str(1 + first * span)])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="shared tables are for Linux")
@pytest.mark.parametrize(
    ("flags", "count"),
    [(["-O2", *DEBUG], 60), (["-O1", *DEBUG, *ADDRESS], 25)],
    ids=["fast", "asan"],
)
def test_a_shared_table_answers_alike(build: Build, flags: list[str], count: int) -> None:
    program = build("random.c", [a_compiler()], [*flags, "-pthread"])
    assert "all as the model says" in run([str(program), str(longer(count)), "2000000", "shared"])


def test_every_answer_is_the_models_under_address_sanitizer(build: Build) -> None:
    program = build("random.c", [a_compiler()], ["-O1", *DEBUG, *ADDRESS, "-pthread"])
    assert "all as the model says" in run([str(program), str(longer(25)), "1000000"])


@pytest.mark.parametrize(
    ("what", "arguments"), [("operations", ["1", "12"]), ("races", ["hot", "2"])]
)
def test_optimised_without_asserts(build: Build, what: str, arguments: list[str]) -> None:
    """As it is shipped: a compiler that is let loose finds other orders."""
    source = {"operations": "random.c", "races": "threads.c"}[what]
    program = build(source, [a_compiler()], ["-O3", "-DNDEBUG", "-pthread"])
    assert run([str(program), *arguments])


def test_fuzzed(build: Build, tmp_path: Path) -> None:
    flags = ["-O1", *DEBUG, "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    program = build("fuzz.c", [clang_or_nothing()], [*flags, "-pthread"])
    run(
        [
            str(program), f"-max_total_time={1800 if SOAK else 5}", "-max_len=1500", "-seed=1",
            "-timeout=60", "-print_final_stats=1", f"-artifact_prefix={tmp_path}/",
        ],
    )  # fmt: skip


# --- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize("threads", [2, 5])
def test_races(build: Build, race: str, threads: int) -> None:
    program = build("threads.c", [a_compiler()], ["-O2", *DEBUG, "-pthread"])
    run([str(program), race, str(longer(RACES[race])), str(threads)])


@pytest.mark.parametrize("race", RACES)
def test_races_under_address_sanitizer(build: Build, race: str) -> None:
    program = build("threads.c", [a_compiler()], ["-O1", *DEBUG, *ADDRESS, "-pthread"])
    run([str(program), race, str(longer(RACES[race] // 4)), "3"])


@pytest.mark.parametrize("race", [race for race in RACES if race != "fork"])
def test_races_under_thread_sanitizer(build: Build, race: str) -> None:
    """It knows no fences, but every shared word that two threads touch at once must be atomic.

    What ordering the fences bring is shown by weak.c.
    """
    program = build("threads.c", [clang_or_nothing()], ["-O1", *THREAD, "-pthread"])
    run(
        [str(program), race, str(longer(RACES[race] // 10)), "3"],
        TSAN_OPTIONS="halt_on_error=1 exitcode=66",
    )


# --- other machines ------------------------------------------------------------------------------


def linked_for_windows(
    build: Build, source: str, compiler: list[str], flags: list[str], folder: Path
) -> Path:
    """Every function that the program calls is one of Windows', or startup_windows.c names it."""
    parts = [build(each, compiler, [*flags, "-c"]) for each in (source, "startup_windows.c")]
    program = folder / "program.exe"
    run(
        [
            *compiler, "-nostdlib", "-Wl,--entry=main", *map(str, parts), "-o", str(program),
            "-lkernel32", "-lucrtbase",
        ],
    )  # fmt: skip
    return program


@pytest.mark.parametrize("source", ["random.c", "threads.c"])
@pytest.mark.parametrize("name", TARGETS)
def test_on_another_platform(build: Build, tmp_path: Path, name: str, source: str) -> None:
    target = TARGETS[name]
    native = platform.machine() == "x86_64" and target.native and shutil.which(target.native)
    if native:
        compiler = [native]
    elif importlib.util.find_spec("ziglang") is None:
        missing("the package ziglang")
    else:
        compiler = [sys.executable, "-m", "ziglang", "cc", "-target", target.triple]
    flags = ["-O2", *DEBUG, *target.flags]
    if target.runner is not None:
        flags += ["-static", "-pthread"]
    if name.startswith("windows"):
        program = linked_for_windows(build, source, compiler, flags, tmp_path)
    else:
        program = build(source, compiler, flags)
    if target.runner is None:
        assert program.stat().st_size > 10_000
        return
    for tool in target.runner:
        if shutil.which(tool) is None:
            missing(tool)
    command = [*target.runner, str(program)]
    slow = 20 if target.runner else 1
    if source == "random.c":
        run([*command, str(longer(40 // slow)), "2000000"])
    else:
        for race, rounds in RACES.items():
            run([*command, race, str(longer(rounds // 20 // slow + 1)), "2"])


# --- the headers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_each_header_compiles_alone(
    require_tool: Callable[[str], str], name: str, tmp_path: Path
) -> None:
    compiler = require_tool(name)
    headers = sorted(CORE.glob("*.h"))
    assert headers
    for header in headers:
        unit = tmp_path / f"{header.stem}.c"
        unit.write_text(f'#include "{header.name}"\n' * 2 + "typedef int nothing_else;\n")
        run([compiler, *BASE, "-Wno-unused-function", "-fsyntax-only", str(unit)])
