"""Fixtures of the tests that run several processes on one table."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanolimit import _core
from redis_server import REDIS

# What these assert is shown in full, as in a test.
pytest.register_assert_rewrite("load", "saturation", "server")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _core.SHARED:
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="this platform has no shared tables"))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of its own for the tables of this test and the processes that it starts."""
    memory = Path("/dev/shm")
    directory = Path(
        tempfile.mkdtemp(prefix="nanolimit-test-", dir=memory if memory.is_dir() else None)
    )
    monkeypatch.setenv("NANOLIMIT_DIR", str(directory))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def binary(request: pytest.FixtureRequest) -> str:
    """The Redis that a test's server runs; under the mark `on_both`, Valkey as well."""
    found = getattr(request, "param", REDIS)
    assert isinstance(found, str)
    return found
