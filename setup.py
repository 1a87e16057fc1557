"""The extension and its toggles; everything else stands in pyproject.toml.

Environment, all off by default:

NANOLIMIT_DEBUG=1               asserts in the core (NL_DEBUG), no optimisation unless sanitized
NANOLIMIT_SANITIZE=LIST         a compiler's -fsanitize list: "address,undefined" or "thread"
NANOLIMIT_COVERAGE=1            line tracing in the seam, gcov in the core
NANOLIMIT_KILL_POINTS=1         points in the core that can kill (core/point.h), for tests
NANOLIMIT_ANNOTATE=1            Cython's HTML report beside the generated C
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CORE = Path("src/nanolimit/core")


def toggled(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


debug = toggled("NANOLIMIT_DEBUG")
coverage = toggled("NANOLIMIT_COVERAGE")
annotate = toggled("NANOLIMIT_ANNOTATE")
kill_points = toggled("NANOLIMIT_KILL_POINTS")
sanitize = os.environ.get("NANOLIMIT_SANITIZE", "")

# Compilers compare time stamps, not flags: each variant has a build folder of its own.
variant = "-".join(
    part
    for part in (
        "debug" * debug,
        "coverage" * coverage,
        "kill" * kill_points,
        sanitize.replace(",", "-"),
    )
    if part
)
build_base = f"build/{variant or 'plain'}"

macros: list[tuple[str, str | None]] = []
if debug:
    macros.append(("NL_DEBUG", None))
if kill_points:
    macros.append(("NL_KILL_POINTS", None))
if coverage:
    macros.append(("CYTHON_TRACE_NOGIL", "1"))


def compile_flags(compiler_type: str) -> tuple[list[str], list[str]]:
    """The flags for compiling and for linking."""
    if compiler_type == "msvc":
        return ["/std:c11", "/Od" if debug else "/O2"], []
    compile_args = ["-std=c11", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
    link_args: list[str] = []
    if sanitize:
        compile_args += ["-O1", "-g"]
    elif debug or coverage:
        compile_args += ["-O0", "-g"]
    elif kill_points:
        compile_args += ["-O1", "-g0"]  # for tests, which wait for it
    else:
        # -g0: Python's own flags often hold -g, which would triple the size of a wheel
        compile_args += ["-O3", "-g0"]
    if debug:
        compile_args += ["-UNDEBUG"]
    if sanitize:
        compile_args += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer"]
        link_args += [f"-fsanitize={sanitize}"]
    if coverage:
        compile_args += ["--coverage"]
        link_args += ["--coverage"]
    return compile_args, link_args


class BuildExtension(build_ext):
    """Asks which compiler it is before it chooses the flags."""

    def build_extensions(self) -> None:
        compile_args, link_args = compile_flags(self.compiler.compiler_type)
        for extension in self.extensions:
            extension.extra_compile_args = compile_args
            extension.extra_link_args = link_args
        super().build_extensions()


generated = f"{build_base}/cython"
# Cython copies the headers beside the C that it generates, and only newer ones: start without any.
shutil.rmtree(f"{generated}/{CORE}", ignore_errors=True)

core = Extension(
    "nanolimit._core",
    sources=["src/nanolimit/_core.pyx"],
    # A changed header is a changed extension.
    depends=sorted(str(header) for header in CORE.glob("*.h")),
    include_dirs=[str(CORE.parent)],
    define_macros=macros,
)

setup(
    ext_modules=cythonize(
        [core],
        build_dir=generated,
        include_path=["src"],
        annotate=annotate,
        compiler_directives={
            "language_level": 3,
            # Methods with binding=True share a reference count that threads fight over.
            "binding": False,
            "embedsignature": True,
            "embedsignature.format": "clinic",
            "freethreading_compatible": True,
            "linetrace": coverage,
        },
    ),
    cmdclass={"build_ext": BuildExtension},
    options={"build": {"build_base": build_base}},
)
