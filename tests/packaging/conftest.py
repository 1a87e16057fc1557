"""Where the source is, and what is installed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import nanolimit

# What never belongs to the source, in case the checkout is no git repository.
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "wheelhouse", "site", "demo", "*.egg-info", "__pycache__",
    ".*_cache", ".hypothesis", "*.so", "*.pyd",
)  # fmt: skip


@pytest.fixture(scope="session")
def installed() -> Path:
    """The package as it is installed, which is what the tests import."""
    return Path(nanolimit.__file__).parent


@pytest.fixture(scope="session")
def source() -> Path:
    """The checkout or the unpacked sdist: named by NANOLIMIT_SOURCE, or where this file lies."""
    path = Path(os.environ.get("NANOLIMIT_SOURCE") or Path(__file__).resolve().parents[2])
    if not (path / "src" / "nanolimit" / "_core.pyx").is_file():
        pytest.skip("the source of nanolimit is not at hand: only its tests were copied here")
    return path


@pytest.fixture(scope="session")
def pristine(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source, to build in."""
    copy = tmp_path_factory.mktemp("source") / "nanolimit"
    shutil.copytree(source, copy, ignore=NOT_SOURCE)
    return copy
