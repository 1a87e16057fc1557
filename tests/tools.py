"""What a test does without a tool that it needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skip by name on a user's machine; fail where everything is meant to be installed."""
    impossible(f"{what} is not installed")


def at_hand(path: Path) -> Path:
    """A file or folder of the checkout; there is none where only the tests were copied."""
    if not path.exists():
        impossible(f"{path.name} is not at hand: only the tests were copied here")
    return path


def impossible(reason: str) -> NoReturn:
    """The same for what a machine does not permit, such as a container without ptrace."""
    if os.environ.get("NANOLIMIT_REQUIRE_TOOLS") == "1":
        pytest.fail(f"{reason}, and NANOLIMIT_REQUIRE_TOOLS=1 asks for it")
    pytest.skip(reason)
