"""Each header of the core stands on its own: as C11, without warnings, in any order."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import nanolimit
from tools import missing

HEADERS = sorted((Path(nanolimit.__file__).parent / "core").glob("*.h"))
FLAGS = ["-std=c11", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
# As Python.h, which stands first in the extension, has it.
FLAGS += ["-D_GNU_SOURCE"]


@pytest.mark.skipif(os.name == "nt", reason="speaks to gcc and clang only")
@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
@pytest.mark.parametrize("define", ["PLAIN", "NL_DEBUG", "NL_PORTABLE_TAGS"])
def test_a_header_compiles_alone(header: Path, define: str, tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        missing("a C compiler")
    unit = tmp_path / "unit.c"
    # twice: it must guard itself against being included again
    unit.write_text(f'#include "{header.name}"\n' * 2 + "typedef int nothing_else;\n")
    done = subprocess.run(
        [compiler, *FLAGS, f"-D{define}", f"-I{header.parent}", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
