"""Fixtures that every test may ask for."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator

import pytest

from clocks import NanoClock
from tools import missing

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # the unit tests run without it
    pass
else:
    _CALM = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    settings.register_profile(
        "default",
        max_examples=200,
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=_CALM,
    )
    settings.register_profile(
        "soak",
        max_examples=5_000,
        stateful_step_count=150,
        deadline=None,
        suppress_health_check=_CALM,
    )
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def require_tool() -> Callable[[str], str]:
    """require_tool("redis-server") -> its path; skips or fails (tools.py) without it."""

    def require(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            missing(name)
        return path

    return require


@pytest.fixture
def clock() -> NanoClock:
    """A clock that stands at an odd hour, on no round number of anything."""
    return NanoClock(1_234_567_890_123)


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads of a GIL build change places as often as the interpreter can do it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
