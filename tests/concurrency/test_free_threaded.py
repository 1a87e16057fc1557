"""The tests of this folder once more, by a free-threaded interpreter.

Where the running interpreter is one, there is nothing to do: the tests have run without the GIL.
Otherwise NANOLIMIT_PYTHON_FT names one that has nanolimit and pytest installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import missing

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def test_importing_leaves_the_gil_off() -> None:
    """An extension that does not declare itself would switch it on again."""
    if not FREE_THREADED:
        pytest.skip("this interpreter has a GIL")
    import nanolimit

    assert nanolimit.RateLimiter(1).allow("user")
    is_gil_enabled: Callable[[], bool] = sys._is_gil_enabled  # type: ignore[attr-defined,unused-ignore]
    assert not is_gil_enabled()


def test_the_folder_without_a_gil() -> None:
    if FREE_THREADED:
        pytest.skip("already running without a GIL")
    python = os.environ.get("NANOLIMIT_PYTHON_FT")
    if not python:
        missing("a free-threaded Python (NANOLIMIT_PYTHON_FT)")
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHON_GIL")
    }
    result = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent)],
        env=env,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-20_000:] + result.stderr[-5_000:]
    assert " passed" in result.stdout
