"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sharing import memory_folder


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of shared tables, for this test alone."""
    with memory_folder() as path:
        monkeypatch.setenv("NANOLIMIT_DIR", str(path))
        yield path
