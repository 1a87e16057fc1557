"""The rules of the house, read off the imports.

core/ knows no Python; `_core` knows no facade; the facade knows no framework; optional dependencies
are imported only in the module that is named after them, or in cli/. Each rule is a function that
takes text and returns what is wrong with it, and each is shown a breach that it must find.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Headers of C11 that a freestanding reader would expect in the core.
STANDARD = {
    "assert.h", "errno.h", "inttypes.h", "limits.h", "stdalign.h", "stdbool.h", "stddef.h",
    "stdint.h", "stdio.h", "stdlib.h", "string.h", "time.h",
}  # fmt: skip
# What a platform brings may be included here and nowhere else.
PLATFORM_CORNERS = {"atomic.h", "clock.h", "lock.h", "memory.h", "point.h", "shared.h"}
# Vector instructions are a processor's, not a platform's; there is a way in plain C beside them.
PROCESSOR_CORNERS = {"tags.h": {"emmintrin.h", "arm_neon.h"}}

INCLUDE = re.compile(
    r'^\s*#\s*include\s+(?:<(?P<system>[^>]+)>|"(?P<own>[^"]+)"|(?P<macro>\w+))', re.M
)
PYTHON_WORD = re.compile(r"\b(?:Py[A-Z_]\w*|_Py\w+|__pyx\w+)\b")
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)


def header_faults(name: str, text: str, headers: set[str]) -> Iterator[str]:
    """What a header of the core does that it must not."""
    code = COMMENT.sub(" ", text)
    for include in INCLUDE.finditer(code):
        own, system, macro = include["own"], include["system"], include["macro"]
        if own is not None and own not in headers:
            yield f'{name} includes "{own}", which is no header of the core'
        allowed = STANDARD | PROCESSOR_CORNERS.get(name, set())
        if system is not None and system not in allowed and name not in PLATFORM_CORNERS:
            yield f"{name} includes <{system}>; platforms belong in {sorted(PLATFORM_CORNERS)}"
        if system in ("Python.h", "pyconfig.h"):
            yield f"{name} includes <{system}>"
        if macro is not None and name != "atomic.h":
            yield f"{name} includes {macro}, so that nobody sees what"
    for word in PYTHON_WORD.finditer(code):
        yield f"{name} speaks of {word[0]}"


def circles(texts: dict[str, str]) -> list[str]:
    """Headers that include themselves by way of others."""
    uses = {
        name: {found["own"] for found in INCLUDE.finditer(COMMENT.sub(" ", text)) if found["own"]}
        for name, text in texts.items()
    }

    def reaches(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            for name in uses.get(ahead.pop(), ()):
                if name not in seen:
                    seen.add(name)
                    ahead.append(name)
        return seen

    return sorted(name for name in uses if name in reaches(name))


CYTHON_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<source>\.*[\w.]*)[ \t]+c?import\b"
    r"|c?import[ \t]+(?P<names>[\w., \t]+))",
    re.M,
)
SEAM_MAY_IMPORT = {"nanolimit._core", "nanolimit.errors"}
SEAM_BASES = {"cython", "cpython", "libc", "__future__"}


def seam_faults(name: str, text: str) -> Iterator[str]:
    """What the seam imports that it must not."""
    for found in CYTHON_IMPORT.finditer(text):
        modules = [found["source"]] if found["source"] else found["names"].split(",")
        for module in (module.split(" as ")[0].strip() for module in modules):
            if module.startswith("nanolimit") and module not in SEAM_MAY_IMPORT:
                yield f"{name} imports {module}: the seam knows no facade"
            top = module.partition(".")[0]
            if module.startswith("."):
                yield f"{name} imports {module}: by its full name, please"
            elif top not in {"nanolimit", *SEAM_BASES} | sys.stdlib_module_names:
                yield f"{name} imports {module}, which is neither Cython's nor Python's own"


def imports(text: str) -> Iterator[tuple[str, bool]]:
    """Every module that Python code imports, and whether only a type checker sees it."""

    def walk(node: ast.AST, typing_only: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, typing_only) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = "." * child.level + (child.module or "")
                # `from nanolimit import telemetry` imports a module, `... import Quota` a name.
                yield base, typing_only
                if base == "nanolimit":
                    yield from (
                        (f"nanolimit.{alias.name}", typing_only)
                        for alias in child.names
                        if alias.name.islower() and not alias.name.startswith("__")
                    )
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                for statement in child.body:
                    yield from walk(ast.Module([statement], []), True)
                for statement in child.orelse:
                    yield from walk(ast.Module([statement], []), typing_only)
            else:
                yield from walk(child, typing_only)

    yield from walk(ast.parse(text), False)


# Functions of the package whose names look like modules'.
FUNCTIONS = {"nanolimit.allow", "nanolimit.configure", "nanolimit.get_include"}
# An optional dependency, and the one module of the facade that may import it.
OPTIONAL_IN = {"pytest": "pytest_plugin", "anyio": "anyio"}
CLI_MAY_IMPORT = {"click", "rich", "matplotlib", "numpy"}
# One command each that stands on a package beside the facade, and what else its extra brings.
CLI_STANDS_ON = {"dashboard": {"dashboard", "uvicorn"}, "rehearsal": {"redis"}}
# The benchmark's control rows, an empty method and a clock read, are compiled with the seam.
MAY_ASK_THE_SEAM = {"bench"}


def facade_faults(name: str, text: str, modules: set[str]) -> Iterator[str]:
    """What a module of the facade imports that it must not; `modules` are those of the facade."""
    for module, typing_only in imports(text):
        top, _, rest = module.partition(".")
        if module.startswith("."):
            yield f"{name} imports {module}: by its full name, please"
        elif top == "nanolimit":
            part = rest.partition(".")[0]
            command = name == "__main__" and part == "cli"
            if part and part not in modules | {"_core"} and module not in FUNCTIONS and not command:
                yield f"{name} imports {module}, which stands above it"
        elif top not in sys.stdlib_module_names:
            stub = typing_only and top == "typing_extensions"
            if OPTIONAL_IN.get(top) != name and not stub:
                yield f"{name} imports {module}, which a user need not have"


def command_faults(name: str, text: str, modules: set[str]) -> Iterator[str]:
    """What a module of cli/ imports that it must not."""
    for module, _ in imports(text):
        top, _, rest = module.partition(".")
        if top == "nanolimit":
            part = rest.partition(".")[0]
            if part == "_core" and name in MAY_ASK_THE_SEAM:
                continue
            if part in CLI_STANDS_ON.get(name, ()):
                continue
            if part and part != "cli" and part not in modules and module not in FUNCTIONS:
                yield f"{name} imports {module}: the command line stands on the facade"
        elif top not in sys.stdlib_module_names | CLI_MAY_IMPORT | CLI_STANDS_ON.get(name, set()):
            yield f"{name} imports {module}, which the extra does not bring"


# A module of these packages may import what it is named after, or what stands here.
DROP_INS = ("integrations", "compat", "metrics", "dashboard", "redis")
NAMED_OTHERWISE = {
    "django": {"django", "asgiref"},
    "drf": {"django", "rest_framework"},
    "fastapi": {"fastapi", "starlette"},
    "flask": {"flask", "werkzeug"},
    "googleapis": {"google"},
    "grpc": {"grpc"},
    "otel": {"opentelemetry"},
    "prometheus": {"prometheus_client"},
}


def drop_in_faults(package: str, name: str, text: str, modules: set[str]) -> Iterator[str]:
    """What a module of one of those packages imports that it must not."""
    for module, typing_only in imports(text):
        top, _, rest = module.partition(".")
        if top == "nanolimit":
            part = rest.partition(".")[0]
            if part and part not in modules | {package, "_core"} and module not in FUNCTIONS:
                yield f"{name} imports {module}: drop-ins stand on the facade"
        elif package == "redis" and top in ("redis", "valkey"):
            continue
        elif top not in sys.stdlib_module_names | NAMED_OTHERWISE.get(name, {name}):
            stub = typing_only and top == "typing_extensions"
            if not stub:
                yield f"{name} imports {module}, which it is not named after"


@pytest.fixture(scope="module")
def headers(installed: Path) -> dict[str, str]:
    """The headers as they are installed, by name."""
    found = {path.name: path.read_text("utf-8") for path in (installed / "core").glob("*.h")}
    assert "table.h" in found
    return found


def facade_modules(package: Path) -> dict[str, str]:
    return {path.stem: path.read_text("utf-8") for path in package.glob("*.py")}


def test_the_core_knows_no_python(headers: dict[str, str]) -> None:
    faults = [
        fault for name, text in headers.items() for fault in header_faults(name, text, set(headers))
    ]
    assert faults == []


def test_no_header_includes_itself(headers: dict[str, str]) -> None:
    assert circles(headers) == []


def test_the_seam_knows_no_facade(source: Path) -> None:
    package = source / "src" / "nanolimit"
    for name in ("_core.pyx", "_core.pxd"):
        text = (package / name).read_text("utf-8")
        assert CYTHON_IMPORT.search(text), f"{name} imports nothing at all? The rule is broken"
        assert list(seam_faults(name, text)) == []


def test_the_facade_knows_no_framework(installed: Path) -> None:
    modules = facade_modules(installed)
    assert {"limiter", "quota", "clock", "errors", "telemetry"} <= set(modules)
    faults = [
        fault for name, text in modules.items() for fault in facade_faults(name, text, set(modules))
    ]
    assert faults == []


def test_the_command_line_stands_on_the_facade(installed: Path) -> None:
    modules = set(facade_modules(installed))
    texts = {path.stem: path.read_text("utf-8") for path in (installed / "cli").glob("*.py")}
    assert "replay" in texts
    faults = [
        fault for name, text in texts.items() for fault in command_faults(name, text, modules)
    ]
    assert faults == []


@pytest.mark.parametrize("package", DROP_INS)
def test_drop_ins_import_what_they_are_named_after(installed: Path, package: str) -> None:
    modules = set(facade_modules(installed))
    texts = {path.stem: path.read_text("utf-8") for path in (installed / package).glob("*.py")}
    assert len(texts) > 1
    faults = [
        fault
        for name, text in texts.items()
        for fault in drop_in_faults(package, name, text, modules)
    ]
    assert faults == []


@pytest.mark.parametrize(
    "text",
    [
        "import django",
        "from nanolimit.cli import main",
        "import fastapi",
        "from nanolimit.compat import limits",
        "if TYPE_CHECKING:\n    import starlette",
    ],
)
def test_a_breach_in_a_drop_in_is_found(text: str) -> None:
    assert list(drop_in_faults("integrations", "flask", text, {"limiter", "quota"}))
    assert not list(drop_in_faults("integrations", "flask", "import flask", {"limiter"}))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("table.h", "#include <Python.h>"),
        ("table.h", "#include <pthread.h>"),
        ("table.h", "#include <emmintrin.h>"),
        ("table.h", "  #  include <sys/mman.h>"),
        ("table.h", '#include "../_core.h"'),
        ("table.h", "#include ELSEWHERE"),
        ("clock.h", "#include <Python.h>"),
        ("table.h", "static inline void f(PyObject *key);"),
    ],
)
def test_a_breach_in_the_core_is_found(name: str, text: str) -> None:
    assert list(header_faults(name, text, {"table.h", "clock.h"}))
    assert not list(header_faults(name, f"/* {text} */", {"table.h", "clock.h"}))


def test_a_circle_is_found() -> None:
    texts = {"a.h": '#include "b.h"', "b.h": '#include "c.h"', "c.h": '#include "b.h"'}
    assert circles(texts) == ["b.h", "c.h"]


@pytest.mark.parametrize(
    "text",
    [
        "from nanolimit.quota import Quota",
        "import nanolimit.telemetry as telemetry",
        "    from nanolimit import RateLimiter",
        "from .errors import LimiterClosedError",
        "cimport numpy",
    ],
)
def test_a_breach_in_the_seam_is_found(text: str) -> None:
    assert list(seam_faults("_core.pyx", text))


@pytest.mark.parametrize(
    "text",
    [
        "import click",
        "from nanolimit.cli import main",
        "def f():\n    import numpy",
        "from nanolimit import cli",
        "from . import quota",
        "import typing_extensions",
        "if TYPE_CHECKING:\n    import flask",
    ],
)
def test_a_breach_in_the_facade_is_found(text: str) -> None:
    assert list(facade_faults("limiter", text, {"limiter", "quota"}))


@pytest.mark.parametrize("text", ["from nanolimit import _core", "import requests"])
def test_a_breach_in_the_command_line_is_found(text: str) -> None:
    assert list(command_faults("replay", text, {"limiter", "quota"}))
