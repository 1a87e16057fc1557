"""Fixtures of the crash tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from puppet import Puppet
from sharing import memory_folder
from tools import missing

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where to import a nanolimit from that has kill points; it is built once a session."""
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        missing("a C compiler")
    if importlib.util.find_spec("Cython") is None or importlib.util.find_spec("setuptools") is None:
        missing("Cython or setuptools")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from kill import build_with_points
    finally:
        sys.path.remove(str(BENCHMARKS))
    return build_with_points(tmp_path_factory.mktemp("points"))


@pytest.fixture
def table() -> Iterator[str]:
    """The path of a table that is not there yet."""
    with memory_folder() as folder:
        yield str(folder / "table")


@pytest.fixture
def puppet(points: Path) -> Iterator[Callable[..., Puppet]]:
    """puppet(): a process with kill points that does as it is told, and is gone after the test."""
    made: list[Puppet] = []

    def make(*prefix: str) -> Puppet:
        made.append(Puppet(points, *prefix))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            each.end()
